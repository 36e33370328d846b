"""Exercises: one source each in nbgrader's form, student copies, marks, and tests of the graders themselves.

    python -m tools.exercises build                  student copies of all into exercises/release/ (nbgrader)
    python -m tools.exercises grade FOLDER           marks of all submissions, as FOLDER/marks.csv
    python -m tools.exercises list                   names and points

A submission is a folder `FOLDER/student/assignment/exercise.ipynb`, as nbgrader collects it. Each notebook is graded in
a process of its own, with limits on time, memory and output: what loops, crashes or floods is a zero with a reason, and
the next one is graded. Against code that means harm it takes a container; nbs/teaching.md says how.
"""
import argparse
import ast
import builtins
import contextlib
import copy
import csv
import functools
import importlib
import io
import json
import os
import pkgutil
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
import types
from dataclasses import dataclass, field
from pathlib import Path

from tools import notebooks

FOLDER = notebooks.ROOT/"exercises"
SOURCE, RELEASE = FOLDER/"source", FOLDER/"release"
SECONDS, MIB, OUTPUT, FILE = 60, 2048, 1_000_000, 2**28   # limits for one notebook: time, memory beyond what is loaded, bytes printed, bytes of a file
_SOLUTION = re.compile(r"^[ \t]*### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION[ \t]*\n?", re.DOTALL | re.MULTILINE)
_HIDDEN = re.compile(r"^[ \t]*### BEGIN HIDDEN TESTS\n.*?^[ \t]*### END HIDDEN TESTS[ \t]*\n?", re.DOTALL | re.MULTILINE)
STUB = "# YOUR CODE HERE\nraise NotImplementedError()"


@dataclass
class Cell:
    "A cell of an exercise: kind is text, setup, solution, answer (in words) or test."
    kind: str
    id: str
    source: str
    points: float = 0


@dataclass
class Exercise:
    "An exercise as its source says it."
    name: str         # 05a_distance
    assignment: str   # 05_fusion
    cells: list = field(default_factory=list)

    @property
    def points(self):
        "Full marks: those of the checks. A teacher reads the answers in words."
        return sum(cell.points for cell in self.cells if cell.kind == "test")

    @property
    def title(self):
        "The headline."
        return next(line for cell in self.cells for line in cell.source.splitlines() if line.startswith("# ")).removeprefix("# ").strip()

    def solution(self):
        "What stands between the solution marks, cell by cell."
        return {cell.id: cell.source for cell in self.cells if cell.kind == "solution"}


def _kind(cell):
    mark = cell["metadata"].get("nbgrader", {})
    if mark.get("solution"): return "answer" if cell["cell_type"] == "markdown" else "solution"
    if mark.get("grade"): return "test"
    return "text" if cell["cell_type"] == "markdown" else "setup"


def load(path):
    "Read an exercise or a submission."
    path = Path(path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    made = [Cell(_kind(c), c["metadata"].get("nbgrader", {}).get("grade_id", ""), "".join(c["source"]),
                 c["metadata"].get("nbgrader", {}).get("points", 0)) for c in cells if c["cell_type"] in ("markdown", "code")]
    return Exercise(path.stem, path.parent.name, made)


def sources():
    "All exercises, in order."
    return [load(path) for path in sorted(SOURCE.glob("*/*.ipynb"))]


def student_copy(exercise):
    "The exercise as a student gets it: solutions replaced by a stub, hidden tests gone. The same rules as nbgrader's."
    out = copy.deepcopy(exercise)
    for cell in out.cells:
        if cell.kind == "solution":
            cell.source = _SOLUTION.sub(lambda m: re.match(r"[ \t]*", m[0])[0] + STUB.replace("\n", "\n" + re.match(r"[ \t]*", m[0])[0]) + "\n", cell.source).rstrip("\n")
        elif cell.kind == "test": cell.source = _HIDDEN.sub("", cell.source).rstrip("\n")
    return out


# ---------------------------------------------------------------- marks, in this process

_GUARDED = ("builtins", "math", "random", "numpy", "numpy.random", "numpy.testing", "numpy.linalg", "torch", "torch.nn", "torch.nn.functional",
            "torch.testing", "torch.linalg", "pandas", "check")


def _modules():
    return {name: m for name, m in list(sys.modules.items()) if m is not None and (name in _GUARDED or name.split(".")[0] == "multiscene_rec")}


def _inner(f): return f.__code__, f.__defaults__, f.__kwdefaults__


@contextlib.contextmanager
def guarded():
    "Put back what the code inside replaces in the modules that checks rely on; the list that it gives names what that was."
    changed, modules = [], _modules()
    owners = [(o, dict(vars(o))) for o in (*modules.values(), *_classes(modules))]
    functions = [(f, _inner(f)) for _, was in owners for f in was.values() if isinstance(f, types.FunctionType)]
    try: yield changed
    finally:
        for name, m in modules.items():
            if sys.modules.get(name) is not m: sys.modules[name] = m
        for owner, was in owners:
            now = vars(owner)
            hiding = [n for n in now if n not in was and (isinstance(owner, type) or hasattr(builtins, n))]  # it hides an inherited or built-in one
            for name in hiding:
                if name == "__slotnames__": continue  # Python's own note on a class, made when one is first copied
                delattr(owner, name)
                changed.append(f"{owner.__name__}.{name}")
            for name, value in was.items():
                if now.get(name) is not value:
                    with contextlib.suppress(AttributeError, TypeError):
                        setattr(owner, name, value)
                        changed.append(f"{owner.__name__}.{name}")
        for f, inner in functions:
            if any(a is not b for a, b in zip(_inner(f), inner)):
                f.__code__, f.__defaults__, f.__kwdefaults__ = inner
                changed.append(f"{f.__module__}.{f.__name__}")


def _classes(modules):
    import torch
    return [torch.Tensor, torch.nn.Module, *(v for name, m in modules.items() if name.startswith("multiscene_rec") for v in vars(m).values() if isinstance(v, type) and v.__module__ == name)]


@functools.cache
def _code_of_checks(): return compile((FOLDER/"check.py").read_text(encoding="utf-8"), "check.py", "exec")


def _judge(seed):
    "Checks and built-in functions that no import reaches, for the tests alone."
    judge = types.ModuleType("check")
    exec(_code_of_checks(), vars(judge))
    judge._seed = seed
    return {"check": judge, "__builtins__": dict(vars(builtins))}


def marks(exercise, solution=None, seed=0):
    """Points of each test cell and what went wrong: {id: (points, reason)}.

    `solution` maps ids of solution cells to code and stands in for the exercise's own. Each test is run on a namespace of
    its own in which the exercise's names are the exercise's, whatever the solution bound them to, and so they are for
    the functions of the exercise that a test calls.
    """
    space, setup, found, broken, judge = {"__name__": "__main__"}, {}, {}, "", _judge(seed)
    given = exercise.solution() if solution is None else solution
    for cell in exercise.cells:
        if cell.kind == "setup":
            before = dict(space)
            _run(cell.source, space, cell.id)
            setup |= {k: (v, _inner(v) if isinstance(v, types.FunctionType) else None) for k, v in space.items() if before.get(k, space) is not v}
        elif cell.kind == "solution" and not broken:
            with guarded():
                try: _run(given.get(cell.id, ""), space, cell.id)
                except BaseException as e: broken = _reason(e)
        elif cell.kind == "test":
            if broken: found[cell.id] = (0, broken); continue
            own = {**space, **judge}
            for name, (v, inner) in setup.items():
                if name not in judge: own[name] = v if inner is None or v.__globals__ is not space else _rebound(v, inner, own)
            with guarded() as changed:
                try: _run(cell.source, own, cell.id)
                except BaseException as e: found[cell.id] = (0, _reason(e))
                else: found[cell.id] = (cell.points, "")
            if changed and found[cell.id][0]: found[cell.id] = (0, f"while a check ran, the solution replaced {changed[0]}")
    return found


def _rebound(f, inner, space):
    "A function of the exercise as it was made, that sees the names of the test."
    code, defaults, more = inner
    new = types.FunctionType(code, space, f.__name__, defaults, f.__closure__)
    new.__kwdefaults__ = more
    return new


def _run(code, space, name):
    exec(compile(code, f"<{name}>", "exec"), space)


def _reason(e):
    if isinstance(e, (KeyboardInterrupt, TimeoutError)): return "stopped: it ran too long"
    if isinstance(e, SystemExit): return "it ended the program"
    if isinstance(e, NotImplementedError): return "no answer yet"
    if isinstance(e, EOFError): return "it waited for input: nobody is there to type"
    if isinstance(e, SyntaxError) and (e.text or "").lstrip().startswith(("%", "!")): return _line(f"line {e.lineno} is a command to Jupyter, {e.text.strip()!r}: a solution is plain Python")
    try: text = str(e)
    except BaseException: text = "an error that cannot be shown"
    if isinstance(e, MemoryError) or "allocate memory" in text: return "it asked for too much memory"
    return _line(text if type(e).__name__ == "Wrong" else f"{type(e).__name__}: {text}")


def _line(text, room=300):
    "A text of anybody's in one line that any terminal and any spreadsheet can show."
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:room]
    return f"'{text}" if text[:1] in tuple("=+-@") else text


def ready():
    "Let exercises import `check`, as they do in their own folder; and load the course, once for all."
    if str(FOLDER) not in sys.path: sys.path.insert(0, str(FOLDER))
    import check  # noqa: F401

    import multiscene_rec
    for module in pkgutil.iter_modules(multiscene_rec.__path__):
        with contextlib.suppress(ImportError): importlib.import_module(f"multiscene_rec.{module.name}")


# ---------------------------------------------------------------- marks, of code that nobody trusts

def _lost(exercise, why): return {c.id: (0, why) for c in exercise.cells if c.kind == "test"}


def graded(exercise, solution, seed=0, seconds=SECONDS, mib=MIB):
    "As `marks`, in a forked process with limits: ({id: (points, reason)}, what it printed)."
    word = secrets.token_hex(16)  # with which the answer begins: what else is written into the pipe does not count
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as place:
        answer, tell, said, speak = *os.pipe(), *os.pipe()
        child = os.fork()
        if not child:
            os.close(answer), os.close(said)
            _inside(exercise, solution, seed, mib, tell, speak, word, place)
        os.close(tell), os.close(speak)
        try: results, talk, why = _listen(child, answer, said, seconds)
        finally:
            for kill in (os.killpg, os.kill):  # its children too
                with contextlib.suppress(ProcessLookupError, PermissionError): kill(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError): os.waitpid(child, 0)
            os.close(answer), os.close(said)
    text = talk[:10_000].decode("utf-8", "replace")
    if why: return _lost(exercise, why), text
    if not results.startswith(word.encode()): return _lost(exercise, "it ended the program"), text
    try: found = {k: tuple(v) for k, v in json.loads(results[len(word):]).items()}
    except (ValueError, RecursionError): return _lost(exercise, "it ended the program"), text
    return found, text


def _listen(child, answer, said, seconds):
    "(answer, what was printed, why it was cut off), until the child has ended; a child of its own may hold the pipes longer."
    got, end, over = {answer: bytearray(), said: bytearray()}, time.monotonic() + seconds, False
    pipes = set(got)
    while pipes:
        ready_ = select.select(list(pipes), [], [], 0 if over else .1)[0]
        for pipe in ready_:
            data = os.read(pipe, 65536)
            if data: got[pipe] += data
            else: pipes.discard(pipe)
        if len(got[said]) > OUTPUT: return got[answer], got[said], f"it printed more than {OUTPUT:,} characters"
        if time.monotonic() > end: return got[answer], got[said], f"stopped after {seconds} s"
        if over and not ready_: break
        over = over or os.waitpid(child, os.WNOHANG)[0] == child
    return got[answer], got[said], ""


def _inside(exercise, solution, seed, mib, tell, speak, word, place):
    "The child: limits, then the marks, then nothing more; a solution that ends the process never comes to the answer."
    try:
        import resource

        import torch
        torch.set_num_threads(1)  # a fork has none of its parent's threads, and would wait for them
        os.setsid()
        me = os.getpid()
        os.chdir(place)
        os.environ.pop("MULTISCENE_GRADE_SEED", None)
        sys.modules["check"]._seed = 0  # what the student can import draws what students see
        os.environ["MPLBACKEND"] = "Agg"  # no windows
        if "matplotlib" in sys.modules: sys.modules["matplotlib"].use("Agg")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, closefd=False)
        os.dup2(speak, 1), os.dup2(speak, 2)
        low, high = sorted((tell, speak))
        os.closerange(3, low), os.closerange(low + 1, high), os.closerange(high + 1, 4096)  # the parent's files are not the student's
        used = int(Path("/proc/self/statm").read_text().split()[0])*os.sysconf("SC_PAGE_SIZE") if Path("/proc/self/statm").exists() else 0
        if used: resource.setrlimit(resource.RLIMIT_AS, (used + mib*2**20,)*2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(os.dup(speak), "wb", 0), write_through=True) for _ in range(2))
        found = marks(exercise, solution, seed)
        left = memoryview((word + json.dumps(found)).encode())
        while left and os.getpid() == me: left = left[os.write(tell, left):]  # not from a fork that the solution made
    finally: os._exit(0)


def read_solution(exercise, path):
    """(the student's solution cells, "") of a submitted notebook, or ({}, why there are none).

    A cell is known by its nbgrader id alone. JupyterLab gives a cell that is split or copied the same id twice: the parts
    are put together again, without copies in which nothing was written.
    """
    parts = {id: [] for id in exercise.solution()}
    try:
        if not path.exists():
            others = sorted(p.name for p in path.parent.glob("*.ipynb") if p.stem not in {e.name for e in sources()})
            return {}, _line(f"not handed in under the name {path.name}; there is {', '.join(others)}" if others else "not handed in")
        if not path.is_file(): return {}, "not a file"
        if path.stat().st_size > 50_000_000: return {}, "the notebook is larger than 50 MB"
        for cell in json.loads(path.read_text(encoding="utf-8-sig"))["cells"]:
            id = cell["metadata"].get("nbgrader", {}).get("grade_id")
            if id in parts: parts[id].append("".join(cell["source"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e: return {}, _line(f"not a notebook: {type(e).__name__} {e}")
    if gone := [id for id, texts in parts.items() if not texts]: return {}, f"the cell {', '.join(gone)} is not there any more: copy the answer into a fresh student copy"
    found = {id: "\n".join([t for t in texts if STUB.splitlines()[-1] not in t] or texts[:1]) for id, texts in parts.items()}
    return (found, "") if sum(map(len, found.values())) <= 1_000_000 else ({}, "the solution is longer than a million characters")


def grade_file(exercise, path, **limits):
    "Marks of one submitted notebook: the tests are the exercise's own, only the solution cells are the student's."
    solution, why = read_solution(exercise, Path(path))
    return (_lost(exercise, why), "") if why else graded(exercise, solution, **limits)


def grade_folder(folder, out=None, seed=None, say=print, **limits):
    "Grade FOLDER/student/assignment/exercise.ipynb, print a table, and write one line a student and exercise to a csv."
    folder, lines = Path(folder), []
    out = Path(out or folder/"marks.csv")
    ready()
    seed = secrets.randbelow(2**31) if seed is None else seed
    asked = sources()
    # All are read before any of them runs: none can change another one.
    handed = [(_line(os.fsencode(student.name).decode("utf-8", "replace")), exercise, *read_solution(exercise, student/exercise.assignment/f"{exercise.name}.ipynb"))
              for student in sorted(p for p in folder.iterdir() if p.is_dir()) for exercise in asked if (student/exercise.assignment).is_dir()]
    for line in _astray(folder, asked): say(line)
    wide = max((len(student) for student, *_ in handed), default=0)
    try:
        for student, exercise, solution, why in handed:
            found = _lost(exercise, why) if why else graded(exercise, solution, seed, **limits)[0]
            got, reasons = sum(points for points, _ in found.values()), "; ".join(dict.fromkeys(reason for _, reason in found.values() if reason))
            lines.append(dict(student=student, assignment=exercise.assignment, exercise=exercise.name, points=got, of=exercise.points, reasons=reasons))
            say(f"{student:<{wide}}  {exercise.name:<14} {got:g} of {exercise.points:g}  {reasons if len(reasons) <= 90 else reasons[:88] + ' …'}".rstrip())
    finally:
        with open(out, "w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, ["student", "assignment", "exercise", "points", "of", "reasons"])
            writer.writeheader()
            writer.writerows(lines)
    if not lines: say(f"nothing to grade: {folder} should hold STUDENT/ASSIGNMENT/EXERCISE.ipynb, as in ada/05_fusion/05a_distance.ipynb")
    else: say("\n" + "\n".join(table(lines)) + "\n")
    say(f"{len(lines)} marks in {out}, seed {seed}")
    return lines


def _astray(folder, asked):
    "What lies where no exercise is looked for: a student would get no mark for it, so it is said."
    known = {e.assignment for e in asked}
    for path in sorted(p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts):
        parts = path.relative_to(folder).parts
        if len(parts) != 3 or parts[1] not in known: yield _line(f"NOT GRADED: {os.fsencode('/'.join(parts)).decode('utf-8', 'replace')} lies in no folder of an assignment; it should be STUDENT/ASSIGNMENT/EXERCISE.ipynb, as in ada/05_fusion/05a_distance.ipynb")


def table(lines):
    "Students times exercises, with totals, as lines of text; a dot where a student has no such folder."
    names, students = sorted({m["exercise"] for m in lines}), list(dict.fromkeys(m["student"] for m in lines))
    points = {(m["student"], m["exercise"]): m["points"] for m in lines}
    full = {m["exercise"]: m["of"] for m in lines}
    wide = max(7, *map(len, students))
    row = lambda name, values, total: f"{name:<{wide}}  " + " ".join(f"{v:>4}" for v in values) + f"  {total:>6}"
    yield row("", [n.split("_")[0] for n in names], "total")
    for s in students: yield row(s, [f"{points[s, n]:g}" if (s, n) in points else "." for n in names], f"{sum(p for (who, _), p in points.items() if who == s):g}")
    mean = lambda n: sum(p for (_, m), p in points.items() if m == n)/sum(m == n for _, m in points)
    yield row("average", [f"{mean(n):.1f}" for n in names], f"{sum(points.values())/len(students):.1f}")
    yield row("out of", [f"{full[n]:g}" for n in names], f"{sum(full.values()):g}")


# ---------------------------------------------------------------- mutants: is every part of a solution looked at?

_COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}
_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Div,
           ast.Mod: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}


def _changes(node, parent_key):
    "Other forms of one node: (what was changed, function that changes a copy of it)."
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} -> {not node.value}", lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        old = node.value
        new = {0: 1, 1: 0, -1: 0}.get(old, 0) if parent_key in ("dim", "axis") and isinstance(old, int) else old + 1 if isinstance(old, int) else float(f"{old*1.5 + .01:.4g}")
        yield f"{parent_key + ' ' if parent_key else ''}{old} -> {new}", lambda n: setattr(n, "value", new)
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            if type(op) in _COMPARE: yield f"{type(op).__name__} -> {_COMPARE[type(op)].__name__}", lambda n, i=i, op=op: n.ops.__setitem__(i, _COMPARE[type(op)]())
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _BINARY:
        yield f"{type(node.op).__name__} -> {_BINARY[type(node.op)].__name__}", lambda n: setattr(n, "op", _BINARY[type(n.op)]())
    elif isinstance(node, ast.BoolOp):
        yield f"{type(node.op).__name__} swapped", lambda n: setattr(n, "op", ast.Or() if isinstance(n.op, ast.And) else ast.And())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        yield f"{type(node.op).__name__} dropped", lambda n: setattr(n, "op", ast.UAdd()) if not isinstance(n.op, ast.Not) else setattr(n, "operand", ast.UnaryOp(ast.Not(), n.operand))


def _sites(tree):
    "Every node with its path, and the name of the keyword that it is the value of."
    def walk(node, path, key):
        yield node, path, key
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"): continue
            for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if isinstance(child, ast.AST): yield from walk(child, (*path, (name, i)), node.arg if isinstance(node, ast.keyword) else "" if isinstance(node, ast.expr) and not isinstance(node, ast.UnaryOp) else key)
    yield from walk(tree, (), "")


def _at(tree, path):
    for name, i in path: tree = getattr(tree, name) if i is None else getattr(tree, name)[i]
    return tree


def mutants(code):
    "All codes with one thing changed: (line, what was changed, code)."
    tree = ast.parse(code)
    made = []
    for node, path, key in _sites(tree):
        for what, change in _changes(node, key):
            other = copy.deepcopy(tree)
            change(_at(other, path))
            made.append((node.lineno, what, ast.unparse(ast.fix_missing_locations(other))))
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.Return, ast.Expr, ast.If, ast.For, ast.While, ast.Raise, ast.With)):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant): continue  # a docstring
            other = copy.deepcopy(tree)
            holder, (name, i) = _at(other, path[:-1]), path[-1]
            getattr(holder, name)[i] = ast.copy_location(ast.Pass(), node)
            made.append((node.lineno, f"dropped: {ast.unparse(node).splitlines()[0][:60]}", ast.unparse(ast.fix_missing_locations(other))))
    same, out = ast.unparse(tree), {}
    for line, what, text in made:
        if text != same: out.setdefault(text, (line, what, text))
    return list(out.values())


@contextlib.contextmanager
def at_most(seconds):
    "Raise TimeoutError in the code inside after so many seconds."
    def stop(*_): raise TimeoutError
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, .5)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def kill_rate(exercise, seconds=10):
    "(mutants, survivors): each mutant of the solution is graded in this process; a survivor has full marks."
    ready()
    survivors, number = [], 0
    for id, code in exercise.solution().items():
        for line, what, text in mutants(code):
            number += 1
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                try:
                    with at_most(seconds): found = marks(exercise, exercise.solution() | {id: text})
                except TimeoutError: continue
            if all(points == cell.points for cell in exercise.cells if cell.kind == "test" for points in [found[cell.id][0]]): survivors.append((id, line, what))
    return number, survivors


# ---------------------------------------------------------------- student copies

def _keep(release, kept, say=print):
    "Copy what somebody has put into the folder of student copies to another one, before new copies replace it."
    fresh = {f"{e.assignment}/{e.name}.ipynb": [c.source.strip() for c in student_copy(e).cells if c.kind != "answer"] for e in sources()}
    for path in sorted(p for folder in {name.split("/")[0] for name in fresh} for p in (release/folder).rglob("*") if p.is_file()):
        name = path.relative_to(release).as_posix()
        if path.name == "check.py" or {"__pycache__", ".ipynb_checkpoints"} & set(path.parts): continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            mine = load(path).cells
            if [c.source.strip() for c in mine if c.kind != "answer"] == fresh.get(name) and all(c.source.strip() == "YOUR ANSWER HERE" for c in mine if c.kind == "answer"): continue
        place = (kept/name).parent
        place.mkdir(parents=True, exist_ok=True)
        copy_ = next(p for k in range(1, 10**6) if not (p := place/f"{path.stem}-{k}{path.suffix}").exists())
        copy_.write_bytes(path.read_bytes())
        say(f"{name} was worked on: kept as {kept.name}/{copy_.relative_to(kept).as_posix()}")


def build(names=(), say=print):
    "Student copies by nbgrader, one assignment a notebook of the course; each gets check.py beside it."
    _keep(RELEASE, FOLDER/"kept", say)
    env = notebooks.child_env(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    for folder in sorted(p for p in SOURCE.iterdir() if p.is_dir() and (not names or p.name in names)):
        done = subprocess.run([sys.executable, "-m", "nbgrader", "generate_assignment", folder.name, "--force", "--create"], cwd=FOLDER, env=env, capture_output=True, text=True)
        if done.returncode: sys.exit(f"{folder.name}: nbgrader failed\n{done.stderr[-3000:]}")
        (RELEASE/folder.name/"check.py").write_bytes((FOLDER/"check.py").read_bytes())
        number = len(list((RELEASE/folder.name).glob("*.ipynb")))
        say(f"{RELEASE.relative_to(notebooks.ROOT)/folder.name}: {number} exercise{'s'*(number != 1)}")


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("build").add_argument("names", nargs="*", help="assignments; default all")
    grade = commands.add_parser("grade")
    grade.add_argument("folder", type=Path)
    grade.add_argument("--out", type=Path, help="csv file; default FOLDER/marks.csv")
    grade.add_argument("--seed", type=int, help="of the hidden checks; default: MULTISCENE_GRADE_SEED, else drawn, and printed")
    grade.add_argument("--seconds", type=int, default=SECONDS, help="for one notebook")
    commands.add_parser("list")
    args = parser.parse_args()
    if args.what == "build": build(args.names)
    elif args.what == "list":
        for e in sources(): print(f"{e.name:<28} {e.points:g} points  {e.title}")
    else:
        if not args.folder.is_dir(): sys.exit(f"no such folder: {args.folder}; it holds one folder a student")
        told = os.environ.get("MULTISCENE_GRADE_SEED", "")
        if args.seed is None and told and not told.isdecimal(): sys.exit(f"MULTISCENE_GRADE_SEED should be a whole number, not {told!r}")
        grade_folder(args.folder, args.out, int(told) if args.seed is None and told else args.seed, seconds=args.seconds)


if __name__ == "__main__":
    main()
