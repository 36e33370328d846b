"""The formula ledger: number in a notebook <-> entry in formulas.toml <-> exported symbol <-> a test that
would notice.

The last arrow is tried out: with the symbol swapped for a wrong one (output x 1.01 + 0.01) every test marked
with the
formula's number must fail.
"""
import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import notebooks

HERE = Path(__file__).parent
LEDGER = notebooks.NBS/"course"/"formulas.toml"
ENTRIES = tomllib.loads(LEDGER.read_text(encoding="utf-8")) if LEDGER.exists() else {}
PACKAGE = notebooks.ROOT/"multiscene_rec"


def tags_of_notebooks(paths):
    "Tag -> notebook."
    found = {}
    for path in paths:
        for cell in notebooks.read(path)["cells"]:
            if cell["cell_type"] == "markdown":
                for tag in re.findall(r"\\tag\{([^}]*)\}", cell["source"]): found[tag] = path.stem
    return found


def formulas_in(doc):
    "The numbers that a docstring's Formula: lines name, up to the next empty line."
    found = re.findall(r"Formulas?:(.*?)(?=\n\s*\n|\Z)", doc or "", flags=re.S)
    return {tag for text in found for tag in re.findall(r"\((\d+\.\d+)\)", text)}


def methods(class_, classes):
    """Method -> the formulas that its docstring names, those inherited from classes of the same module
    included."""
    out = {}
    for base in class_.bases:
        if getattr(base, "id", None) in classes: out |= methods(classes[base.id], classes)
    return out | {part.name: formulas_in(ast.get_docstring(part)) for part in class_.body
                  if isinstance(part, ast.FunctionDef)}


def documented(folder):
    """Symbol (module.name or module.Class.method) -> the formulas that its docstring names; public symbols
    only."""
    out = {}
    for path in sorted(Path(folder).glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public = {e.value for n in tree.body if isinstance(n, ast.Assign)
                  and getattr(n.targets[0], "id", "") == "__all__" for e in n.value.elts}
        classes = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef)}
        for node in tree.body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public: continue
            symbol = f"{path.stem}.{node.name}"
            out[symbol] = formulas_in(ast.get_docstring(node))
            if isinstance(node, ast.ClassDef):
                out |= {f"{symbol}.{name}": found for name, found in methods(node, classes).items()}
    return out


def marked(folder):
    """The formula numbers that tests are marked with: the words in any call of `formula` (or
    pytest.mark.formula)."""
    found = set()
    for path in sorted(Path(folder).rglob("test_*.py")):
        if path.name == Path(__file__).name: continue  # its planted marks are text
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (getattr(node.func, "attr", "")
                                               or getattr(node.func, "id", "")) == "formula":
                found |= {a.value for a in node.args if isinstance(a, ast.Constant)}
    return found


def complaints(entries, tags, docs, marks):
    "What does not fit together, one line each."
    listed = {}
    for notebook, formulas in entries.items():
        for entry in formulas:
            tag, symbol = entry["tag"], entry["symbol"]
            if tag in listed: yield f"({tag}) is listed twice"
            listed[tag] = symbol
            if tags.get(tag) != notebook:
                yield (f"({tag}) {entry['name']}: listed for {notebook}, found in "
                       f"{tags.get(tag, 'no notebook')}")
            class_ = symbol.rpartition(".")[0]
            if symbol not in docs: yield f"({tag}): {symbol} is not an exported symbol"
            elif tag not in docs[symbol] | docs.get(class_, set()):
                yield f"({tag}): no 'Formula: ({tag})' in the docstring of {symbol}"
            if tag not in marks: yield f'({tag}): no test is marked @pytest.mark.formula("{tag}")'
    for tag in sorted(tags.keys() - listed.keys()):
        yield f"({tag}) stands in {tags[tag]} and not in the ledger"
    for symbol, named in docs.items():
        for tag in sorted(named - listed.keys()):
            yield f"the docstring of {symbol} names ({tag}), which the ledger does not list"
    for tag in sorted(marks - listed.keys()):
        yield f"a test is marked with ({tag}), which the ledger does not list"


def verdicts(result):
    "What is wrong with the outcome of a swap, one line each."
    for tag, got in result.items():
        if got["error"]: yield f"({tag}): {got['error']}"
        elif not got["tests"]: yield f"({tag}): no marked test was collected"
        else:
            if not got["changed"]: yield f"({tag}): the swapped symbol was never called, or gave no number"
            for test, outcome in got["tests"].items():
                if outcome != "failed":
                    yield f"({tag}): {test} {outcome} with the symbol swapped for a wrong one"


def swap(ledger, section, out, **options):
    "Run tests/course/swap.py; return its result."
    more = [part for key, value in options.items() for part in (f"--{key}", str(value))]
    done = subprocess.run([sys.executable, str(HERE/"swap.py"), str(ledger), section, "--json", str(out),
                           *more], cwd=notebooks.ROOT,
                          env=notebooks.child_env(), capture_output=True, text=True, encoding="utf-8",
                          timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text(encoding="utf-8"))


def test_ledger_fits_notebooks_modules_and_tests():
    found = list(complaints(ENTRIES, tags_of_notebooks(notebooks.paths()), documented(PACKAGE),
                            marked(HERE.parent)))
    assert not found, "\n" + "\n".join(found)


@pytest.mark.swap
@pytest.mark.parametrize("section", sorted(ENTRIES))
def test_marked_tests_notice_a_wrong_symbol(section, tmp_path):
    result = swap(LEDGER, section, tmp_path/"result.json")
    assert result.keys() == {e["tag"] for e in ENTRIES[section]}
    found = list(verdicts(result))
    assert not found, "\n" + "\n".join(found)


# The machinery itself, on a planted package with tests that notice and tests that do not.

PLANTED_MODULE = '''
"Planted."
__all__ = ["double", "Twice", "fill", "Frozen", "make", "Half", "stray"]
from dataclasses import dataclass
import torch
def double(x):
    """Twice x.

    Formula: (1.1) `2x`.
    """
    return 2*x
class Twice(torch.nn.Module):
    """Twice x, as a module.

    Formula: (1.2)
    """
    def forward(self, x): return 2*x
def fill(x):
    "Formula: (1.3) Sets x to two."
    x.fill_(2.)
@dataclass(frozen=True)
class Frozen:
    "A number."
    value: float
def make():
    "Formula: (1.4)"
    return Frozen(2.)
class _Base:
    @property
    def value(self):
        "A half."
        return .5
class Half(_Base):
    "Formula: (1.5)"
def stray():
    "Formula: (9.9)"
    return "no number"
'''
PLANTED_TESTS = '''
import pytest, torch
from planted import thing
@pytest.mark.formula("1.1")
def test_notices(): assert thing.double(3.) == 6
@pytest.mark.formula("1.1")
def test_sleeps(): assert thing.double(3.) > 5
@pytest.mark.formula("1.2")
@pytest.mark.parametrize("n", [0, 1])
def test_module(n): assert n or torch.equal(thing.Twice()(torch.ones(2)), torch.full((2,), 2.))
@pytest.mark.formula("1.3")
def test_in_place():
    x = torch.zeros(3); thing.fill(x)
    assert x.tolist() == [2, 2, 2]
@pytest.mark.formula("1.4")
def test_frozen(): assert thing.make().value == 2
@pytest.mark.formula("1.5")
def test_property(): assert thing.Half().value == .5
@pytest.mark.formula("1.6")
def test_without_numbers(): assert thing.stray() == "no number"
@pytest.mark.formula("1.7")
@pytest.mark.skip(reason="planted")
def test_skipped(): pass
def test_other(): assert False
'''
PLANTED_LEDGER = "\n".join(f'[["01_thing"]]\ntag = "1.{i}"\nname = "n"\nsymbol = "thing.{s}"' for i,
                           s in enumerate(
    ["double", "Twice.forward", "fill", "make", "Half.value", "stray", "double", "gone", "Twice"], 1))


@pytest.fixture
def planted(tmp_path):
    package = tmp_path/"planted"
    package.mkdir()
    (package/"__init__.py").write_text("")
    (package/"thing.py").write_text(PLANTED_MODULE)
    tests = tmp_path/"planted_tests"
    tests.mkdir()
    (tests/"test_planted.py").write_text(PLANTED_TESTS)
    (tests/"conftest.py").write_text('import sys\nsys.path.insert(0, r"' + str(tmp_path) + '")\n'
                                     'def pytest_configure(config): config.addinivalue_line("markers", '
                                     '"formula(tag): planted")\n')
    ledger = tmp_path/"formulas.toml"
    ledger.write_text(PLANTED_LEDGER)
    return tmp_path


def test_a_swap_tells_tests_that_notice_from_tests_that_do_not(planted):
    result = swap(planted/"formulas.toml", "01_thing", planted/"result.json", tests=planted/"planted_tests",
                  package="planted")
    assert {t.rpartition("::")[2]: r for got in result.values() for t, r in got["tests"].items()} == {
        "test_notices": "failed", "test_sleeps": "passed", "test_module": "failed", "test_in_place": "failed",
        "test_frozen": "failed",
        "test_property": "failed", "test_without_numbers": "passed", "test_skipped": "skipped"}
    found = list(verdicts(result))
    for says in ("(1.1): planted_tests/test_planted.py::test_sleeps passed",
                 "(1.6): the swapped symbol was never called, or gave no number",
                 "test_skipped skipped", "(1.8): AttributeError", "(1.9): TypeError"):
        assert any(says.replace("planted_tests/", "") in line.replace("planted_tests/", "")
                   for line in found), (says, found)
    assert not any(line.startswith(f"({tag})") for tag in ("1.2", "1.3", "1.4", "1.5")
                   for line in found), found


def test_what_does_not_fit_is_found(planted):
    entries = tomllib.loads(PLANTED_LEDGER
                            + '\n[["02_other"]]\ntag = "1.1"\nname = "n"\nsymbol = "thing.double"')
    tags = {**{f"1.{i}": "01_thing" for i in (1, 2, 3, 4, 5, 7, 8, 9)}, "1.10": "01_thing"}
    found = "\n".join(complaints(entries, tags, documented(planted/"planted"),
                                 marked(planted/"planted_tests")))
    for says in ("(1.1) is listed twice", "(1.6) n: listed for 01_thing, found in no notebook",
                 "(1.8): thing.gone is not an exported symbol",
                 "(1.7): no 'Formula: (1.7)' in the docstring of thing.double",
                 '(1.8): no test is marked @pytest.mark.formula("1.8")',
                 "(1.10) stands in 01_thing and not in the ledger",
                 "the docstring of thing.stray names (9.9)"):
        assert says in found, (says, found)
    assert "(1.2)" not in found and "(1.3)" not in found
