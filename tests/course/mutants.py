"""Is every part of a solution looked at? Its mutants, each with one thing changed, and marks of trusted code.

`marks` grades in this process, for speed, by the messages that otherwise cross the wall: for code of our own.
"""
import ast
import contextlib
import copy
import io
import json
import signal
import tomllib

from tools import exercises, grade, plain, student


def through(tree):
    "What arrives of a message on the other side."
    return json.loads(json.dumps(tree))


def exchange():
    "A student's side within this process."
    answer = student.Answer(None)
    def send(message, calls):
        def ask(number, args, named):
            args, named = (plain.unpack(through(plain.pack(x))) for x in (list(args), named))
            return plain.unpack(through(plain.pack(calls[number](*args, **named))))
        answer.ask = ask
        return through(answer(through(message)))
    return send


def wrong(exercise, solution=None, seed=0):
    'What is wrong with our own code, for each cell of checks: {id: "" or a reason}.'
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return grade.judged(exercise, exercise.solution() if solution is None else solution, exchange(), seed)


def marks(exercise, solution=None, seed=0):
    "Points of our own code."
    return grade.points(exercise, wrong(exercise, solution, seed))


# ---------------------------------------------------------------- mutants

COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
           ast.NotEq: ast.Eq, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
          ast.FloorDiv: ast.Div, ast.Mod: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr,
          ast.BitOr: ast.BitAnd}
STATEMENTS = ast.Assign, ast.AugAssign, ast.Return, ast.Expr, ast.If, ast.For, ast.While, ast.Raise, ast.With


def changes(node, key):
    "Other forms of one node: (what was changed, function that changes a copy of it)."
    kind = type(node).__name__
    if kind == "Constant" and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", lambda n: setattr(n, "value", not n.value)
    elif kind == "Constant" and isinstance(node.value, (int, float)):
        old, axis = node.value, key in ("dim", "axis") and isinstance(node.value, int)
        new = old + 1 if isinstance(old, int) else float(f"{old*1.5 + .01:.4g}")
        if axis: new = {0: 1, 1: 0, -1: 0}.get(old, 0)
        yield f"{key + ' ' if key else ''}{old} -> {new}", lambda n: setattr(n, "value", new)
    elif kind == "Compare":
        for i, op in enumerate(node.ops):
            other = COMPARE[type(op)]
            yield (f"{type(op).__name__} -> {other.__name__}",
                   lambda n, i=i, other=other: n.ops.__setitem__(i, other()))
    elif kind in ("BinOp", "AugAssign") and type(node.op) in BINARY:
        other = BINARY[type(node.op)]
        yield f"{type(node.op).__name__} -> {other.__name__}", lambda n: setattr(n, "op", other())
    elif kind == "BoolOp":
        other = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} swapped", lambda n: setattr(n, "op", other())
    elif kind == "UnaryOp" and isinstance(node.op, ast.Not):
        yield "Not dropped", lambda n: setattr(n, "operand", ast.UnaryOp(ast.Not(), n.operand))
    elif kind == "UnaryOp" and isinstance(node.op, (ast.USub, ast.Invert)):
        yield f"{type(node.op).__name__} dropped", lambda n: setattr(n, "op", ast.UAdd())


def sites(node, path=(), key=""):
    "Every node with its path, and the name of the keyword that it is the value of."
    yield node, path, key
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"): continue
        if isinstance(node, ast.keyword): key = node.arg
        elif isinstance(node, ast.expr) and not isinstance(node, ast.UnaryOp): key = ""
        for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST): yield from sites(child, (*path, (name, i)), key)


def at(tree, path):
    "The node at a path."
    for name, i in path: tree = getattr(tree, name) if i is None else getattr(tree, name)[i]
    return tree


def mutants(code):
    "All codes with one thing changed: (line, what was changed, code)."
    tree = ast.parse(code)
    made = []
    def add(node, what, change):
        other = copy.deepcopy(tree)
        change(other)
        made.append((node.lineno, what, ast.unparse(ast.fix_missing_locations(other))))
    for node, path, key in sites(tree):
        for what, change in changes(node, key):
            add(node, what, lambda other, path=path, change=change: change(at(other, path)))
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, STATEMENTS) and not docstring:
            def drop(other, path=path, node=node):
                holder, (name, i) = at(other, path[:-1]), path[-1]
                getattr(holder, name)[i] = ast.copy_location(ast.Pass(), node)
            add(node, f"dropped: {ast.unparse(node).splitlines()[0][:60]}", drop)
    same = ast.unparse(tree)
    return list({text: (line, what, text) for line, what,
                 text in reversed(made) if text != same}.values())[::-1]


@contextlib.contextmanager
def at_most(seconds):
    "Raise Stopped in the code inside after so many seconds."
    def stop(*_): raise grade.Stopped("too long")
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, .5)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def survivors(exercise, seconds=10):
    "(number of mutants, those with full marks as (line, what was changed))."
    number, alive = 0, []
    for id, code in exercise.solution().items():
        for line, what, text in mutants(code):
            number += 1
            try:
                with at_most(seconds): full = marks(exercise,
                    exercise.solution() | {id: text}) == exercise.points
            except grade.Stopped: continue
            if full: alive.append((line, what))
    return number, alive


def wrong_answers(exercise):
    """From wrong.toml: (another right answer or None, wrong answers, mutants that change nothing).

    A wrong answer (why, marks, solution) changes texts of the other right answer, or of the solution where
    there is none: `old` to `new`, one or a list. Or it is `code` of its own.
    """
    with open(exercise.path.with_name("wrong.toml"), "rb") as f: table = tomllib.load(f)
    (first, solution), *_ = exercise.solution().items()
    whole = lambda code: dict.fromkeys(exercise.solution(), "") | {first: code}
    made = []
    for w in table["wrong"]:
        code, listed = table.get("right", solution), lambda x: x if isinstance(x, list) else [x]
        for old, new in zip(listed(w.get("old", [])), listed(w.get("new", [])), strict=True):
            assert code.count(old) == 1, f"{exercise.name}, {w['why']}: {old!r} should stand there once"
            code = code.replace(old, new)
        made.append((w["why"], w["marks"], whole(w.get("code", code))))
    return whole(table["right"]) if "right" in table else None, made, table.get("equivalent", [])


BY_NAME = {e.name: e for e in exercises.sources()}
