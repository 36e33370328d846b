"Every public symbol and method has a docstring and a comment on every parameter, as show_doc prints them."
import ast
import io
import tokenize
from pathlib import Path

import pytest

from tools import notebooks

MODULES = [p for p in sorted((notebooks.ROOT/"multiscene_rec").glob("*.py")) if p.name[0] != "_"]
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def comments_of(source):
    "Line number -> text of the comment on that line."
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ").strip() for t in tokens if t.type == tokenize.COMMENT}


def is_dataclass(node):
    "Whether a class statement is decorated as a dataclass."
    return any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def is_property(node):
    "Whether a method is read like an attribute."
    return any("property" in ast.unparse(d) for d in node.decorator_list)


def parameters(function, method):
    """(name, last line) of each parameter, its default included; a method's self or cls left out.

    A parameter of the command says what it is by the `help=` that the shell prints.
    """
    a = function.args
    plain = a.posonlyargs + a.args
    defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults
    found = list(zip(plain, defaults)) + [(x, None) for x in (a.vararg, a.kwarg)
                                          if x] + list(zip(a.kwonlyargs, a.kw_defaults))
    static = any(getattr(d, "id", "") == "staticmethod" for d in function.decorator_list)
    return [(arg.arg, (default or arg).end_lineno) for i, (arg, default) in
            enumerate(sorted(found, key=lambda pair: pair[0].lineno*1000 + pair[0].col_offset))
            if not (method and not static and i == 0) and not (arg.annotation
                and "help=" in ast.unparse(arg.annotation))]


def bases(trees):
    "Class -> (names of its bases, names of its methods), of all modules together."
    return {node.name: ({getattr(b, "id", getattr(b, "attr", "")) for b in node.bases},
                        {m.name for m in node.body if isinstance(m, FUNCTION)})
            for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def inherited(node, known):
    "Methods that a base class of ours defines: what they promise and take is said there."
    found, seen, left = set(), set(), {getattr(b, "id", getattr(b, "attr", "")) for b in node.bases}
    while left:
        name = left.pop()
        if name in seen or name not in known: continue
        seen.add(name)
        found |= known[name][1] - {"__init__", "forward"}
        left |= known[name][0]
    return found


def complaints(source, name="planted", known=None):
    "What a module's docstrings and comments lack, one line each."
    tree, comments, out = ast.parse(source), comments_of(source), []
    known = bases([tree]) if known is None else known
    public = {e.value for n in tree.body if isinstance(n, ast.Assign)
              and getattr(n.targets[0], "id", "") == "__all__"
              for e in n.value.elts}

    def check_comment(where, what, line):
        text = comments.get(line, "")
        if not text: out.append(f"{where}: {what} has no comment on its line ({name}:{line})")
        elif "`" in text:
            out.append(f"{where}: the comment on {what} has a backtick, which show_doc turns into a raw link")

    def check_function(node, where, method=False):
        seen = {}
        for arg, line in parameters(node, method):
            if line in seen:
                out.append(f"{where}: parameters {seen[line]} and {arg} share a line; give each its own")
            seen[line] = arg
            check_comment(where, f"parameter {arg}", line)
        end = node.returns.end_lineno if node.returns else None
        if end and "`" in comments.get(end, ""):
            out.append(f"{where}: the comment on the result has a backtick")
        if not ast.get_docstring(node) and node.name != "__init__": out.append(f"{where}: no docstring")

    for node in tree.body:
        if not isinstance(node, (*FUNCTION, ast.ClassDef)) or node.name not in public: continue
        where = f"{name}.{node.name}"
        if isinstance(node, FUNCTION):
            check_function(node, where)
            continue
        if not ast.get_docstring(node): out.append(f"{where}: no docstring")
        taken_over = inherited(node, known)
        for part in node.body:
            if isinstance(part, FUNCTION) and part.name not in taken_over and (part.name[0] != "_"
                or part.name == "__init__"):
                check_function(part, f"{where}.{part.name}", method=True)
            if is_dataclass(node) and isinstance(part, ast.AnnAssign) and part.target.id[0] != "_":
                check_comment(where, f"field {part.target.id}", part.end_lineno)
    if not ast.get_docstring(tree):
        out.append(f"{name}: the module has no docstring (the notebook's one-line purpose)")
    return out


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_documented(path):
    sources = {p: p.read_text(encoding="utf-8") for p in MODULES}
    found = complaints(sources[path], path.stem, bases(ast.parse(source) for source in sources.values()))
    assert not found, "\n" + "\n".join(found)


GOOD = '''"Purpose."
__all__ = ["f", "C", "D"]
from dataclasses import dataclass
def f(
    x: int, # A number
    *rest: int, # More
    y: tuple = (1,
                2), # A pair
) -> int: # The sum
    "Add."
class C:
    "A thing."
    def __init__(self,
        n: int, # How many
    ): self.n = n
    def go(self): "Go."
    def _hidden(self, z): pass
@dataclass
class D:
    "Data."
    a: int # First
def _private(x): pass
'''


def test_a_documented_module_passes():
    assert complaints(GOOD) == []


@pytest.mark.parametrize("old, new, says", [
    ("    x: int, # A number\n", "    x: int,\n", "parameter x has no comment"),
    ("    *rest: int, # More\n", "    *rest: int,\n", "parameter rest has no comment"),
    ("2), # A pair", "2),", "parameter y has no comment"),
    ("# A number", "# A `number`", "backtick"),
    ("# The sum", "# The `sum`", "backtick"),
    ('    "Add."\n', "    pass\n", "f: no docstring"),
    ('    "A thing."\n', "", "C: no docstring"),
    ('"Go."', "pass", "C.go: no docstring"),
    ("        n: int, # How many\n", "        n: int,\n", "parameter n has no comment"),
    ("    a: int # First", "    a: int", "field a has no comment"),
    ("    x: int, # A number\n    *rest: int, # More\n", "    x: int, *rest: int, # Both\n", "share a line"),
    ('"Purpose."\n', "", "module has no docstring"),
])
def test_what_is_missing_is_found(old, new, says):
    assert old in GOOD
    found = complaints(GOOD.replace(old, new))
    assert any(says in line for line in found), found


def test_what_a_base_class_promises_is_not_said_again():
    child = GOOD.replace('["f", "C", "D"]',
                         '["f", "C", "D", "E"]') + "class E(C):\n    'Another.'\n    def go(self, x): pass\n"
    assert complaints(child) == []
    assert any("E.went: no docstring" in line
               for line in complaints(child.replace("def go(self, x)", "def went(self)")))


def test_help_on_the_command_line_counts_as_a_comment():
    assert complaints(GOOD.replace("    x: int, # A number",
                                   '    x: Annotated[int, Option(help="a number")],')) == []


def test_the_modules_are_seen():
    assert {p.stem for p in MODULES} >= {"core"} and Path(MODULES[0]).exists()
