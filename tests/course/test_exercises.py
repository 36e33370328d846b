"The graders are graded: right answers get all marks, wrong ones lose what they should, and every part of a solution counts."
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tools import exercises, notebooks

ROOT = notebooks.ROOT
EXERCISES = exercises.sources()
each = pytest.mark.parametrize("exercise", EXERCISES, ids=[e.name for e in EXERCISES])
unix = pytest.mark.skipif(sys.platform == "win32", reason="grading forks: use Linux, macOS or WSL")


@pytest.fixture(autouse=True, scope="module")
def _checks(): exercises.ready()


def told(exercise):
    "Wrong answers and equivalent mutants of an exercise."
    with open(ROOT/"tests"/"exercises"/f"{exercise.name}.toml", "rb") as f: return tomllib.load(f)


def total(found): return sum(points for points, _ in found.values())


def with_code(exercise, code):
    "The solution cells, the first of them replaced; a wrong answer may also be a table id -> code."
    return code if isinstance(code, dict) else dict.fromkeys(exercise.solution(), "") | {next(iter(exercise.solution())): code}


def test_every_notebook_has_two_exercises():
    for path in notebooks.paths("[0-9][0-9]_*.ipynb"):
        if path.stem < "12": assert sum(e.assignment == path.stem for e in EXERCISES) >= 2, path.stem


def test_answers_in_words_have_no_points():
    "The teacher reads them; README.md and the page for teachers say so."
    for e in EXERCISES: assert all(c.points == 0 for c in e.cells if c.kind == "answer")


def test_no_name_stands_twice(): assert len({e.name for e in EXERCISES}) == len(EXERCISES)


@each
def test_the_source_is_in_order(exercise):
    e, where = exercise, f"exercises/source/{exercise.assignment}/{exercise.name}.ipynb"
    assert e.name[:2] == e.assignment[:2] and (notebooks.NBS/f"{e.assignment}.ipynb").exists(), f"{where} belongs to no notebook"
    raw = json.loads((exercises.SOURCE/e.assignment/f"{e.name}.ipynb").read_text(encoding="utf-8"))["cells"]
    marks, start = [c["metadata"].get("nbgrader", {}) for c in raw], e.name.split("_")[0] + "-"
    ids = [m.get("grade_id", "") for m in marks]
    assert [i for i in ids if not i.startswith(start)] == [], f"{where}: a grade_id begins with {start}"
    assert sorted(i for i in set(ids) if ids.count(i) > 1) == [], f"{where}: a grade_id stands twice"
    assert [i for i, m in zip(ids, marks) if m["schema_version"] != 3 or m["locked"] == m["solution"]] == [], f"{where}: schema_version 3, and locked where it is no solution"
    assert [i for i, c in zip(ids, raw) if c.get("outputs")] == [], f"{where}: outputs would give the answer away; make export drops them"
    tests = [c for c in e.cells if c.kind == "test"]
    assert len(tests) >= 2 and all(c.points > 0 for c in tests), f"{where}: two cells of checks or more, each with points"
    assert [c.id for c in tests if "### BEGIN HIDDEN TESTS" not in c.source] == [], f"{where}: each cell of checks has hidden ones"
    assert any("check.seed" in c.source or "check.rng" in c.source or "check.torch_rng" in c.source for c in tests), f"{where}: hidden checks draw from check.seed, check.rng or check.torch_rng"
    assert "Goes with" in "".join(c.source for c in e.cells if c.kind == "text"), f"{where}: say 'Goes with [NN topic](...)'"
    assert (ROOT/"tests"/"exercises"/f"{e.name}.toml").is_file(), f"tests/exercises/{e.name}.toml is missing: wrong answers and what they should get"


@each
def test_the_solution_has_full_marks_for_every_seed(exercise):
    for seed in (0, 1, 20_261_124):
        start = time.monotonic()
        found = exercises.marks(exercise, seed=seed)
        assert total(found) == exercise.points, found
        if time.monotonic() - start > 10: pytest.fail("hidden tests take over 10 s")


@each
def test_the_untouched_copy_has_none(exercise):
    assert total(exercises.marks(exercise, exercises.student_copy(exercise).solution())) == 0


@each
def test_wrong_answers_lose_what_they_should(exercise):
    wrong = told(exercise)["wrong"]
    assert len(wrong) >= 5
    found = {w["why"]: total(exercises.marks(exercise, with_code(exercise, w["code"]))) for w in wrong}
    assert found == {w["why"]: w["marks"] for w in wrong}
    assert all(m < exercise.points for m in found.values())


@unix
@each
def test_mutants_are_killed(exercise, record_property):
    number, survivors = exercises.kill_rate(exercise)
    same = {(e["line"], e["mutant"]) for e in told(exercise).get("equivalent", [])}
    found = {(line, what) for _, line, what in survivors}
    assert not same - found, "listed as equivalent, but killed or not there"
    assert all(len(e["reason"]) > 10 for e in told(exercise).get("equivalent", []))
    alive, counted = len(found - same), number - len(found & same)
    record_property("kill_rate", (exercise.name, counted - alive, counted, sorted(f"line {line}, {what}" for line, what in found & same)))
    assert alive <= .05*counted, f"{counted - alive} of {counted} killed; alive: {sorted(found - same)}"


# ---------------------------------------------------------------- what nbdev and nbgrader do with the sources

@each
def test_the_student_copy_gives_nothing_away(exercise):
    copy = exercises.student_copy(exercise)
    text = "".join(c.source for c in copy.cells if c.kind in ("solution", "test"))
    assert "SOLUTION" not in text and "HIDDEN" not in text and exercises.STUB.splitlines()[-1] in text


def test_nbdev_clean_keeps_what_nbgrader_needs(tmp_path):
    source = exercises.SOURCE/EXERCISES[0].assignment/f"{EXERCISES[0].name}.ipynb"
    copy = tmp_path/source.name
    shutil.copy(source, copy)
    subprocess.run([str(Path(sys.executable).parent/"nbdev_clean"), "--fname", str(copy)], cwd=ROOT, env=notebooks.child_env(), check=True)
    assert json.loads(copy.read_text())["cells"] == json.loads(source.read_text())["cells"]


def course(tmp_path, name):
    "A course of one assignment in another folder."
    shutil.copytree(exercises.SOURCE/name, tmp_path/"source"/name)
    shutil.copy(exercises.FOLDER/"nbgrader_config.py", tmp_path)
    shutil.copy(exercises.FOLDER/"check.py", tmp_path/"source"/name)
    return tmp_path


def nbgrader(folder, *args):
    env = notebooks.child_env(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))  # nbgrader calls alembic
    done = subprocess.run([sys.executable, "-m", "nbgrader", *args], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@unix
def test_nbgrader_makes_the_same_student_copy(tmp_path):
    folder = course(tmp_path, "05_fusion")
    nbgrader(folder, "generate_assignment", "05_fusion", "--create")
    for path in sorted((folder/"release"/"05_fusion").glob("*.ipynb")):
        exercise = next(e for e in EXERCISES if e.name == path.stem)
        ours, theirs = exercises.student_copy(exercise), exercises.load(path)
        assert [(c.kind, c.id, c.source.rstrip()) for c in ours.cells if c.kind != "answer"] == [(c.kind, c.id, c.source.rstrip()) for c in theirs.cells if c.kind != "answer"]


@unix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["01_core", "05_fusion", "07_metrics"])
def test_nbgrader_gives_the_same_marks(name, tmp_path):
    "One student with the solutions, one with an untouched copy: through nbgrader's own kernels and gradebook."
    from nbgrader.api import Gradebook
    folder = course(tmp_path, name)
    nbgrader(folder, "generate_assignment", name, "--create")
    for student, place in (("ada", folder/"source"), ("bob", folder/"release")): shutil.copytree(place/name, folder/"submitted"/student/name)
    nbgrader(folder, "autograde", name, "--create")
    full = sum(e.points for e in EXERCISES if e.assignment == name)
    with Gradebook(f"sqlite:///{folder/'gradebook.db'}") as book:
        assert {s: book.find_submission(name, s).score for s in ("ada", "bob")} == {"ada": full, "bob": 0}


# ---------------------------------------------------------------- code that nobody trusts

SAMPLE = next(e for e in EXERCISES if e.name == "05a_distance")
BAD = {
    "a loop": ("while True: pass", "stopped after 3 s"),
    "a flood": ("while True: print('x'*100_000)", "it printed more than"),
    "a hog": ("hoard = bytearray(10**11)", "it asked for too much memory"),
    "a hog of tensors": ("import torch; hoard = torch.zeros(10**11)", "it asked for too much memory"),
    "a file without end": ("with open('endless', 'wb') as f: f.truncate(10**12)", "OSError"),
    "a stopped process": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "stopped after 3 s"),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", "it ended the program"),
    "an error without words": ("class E(Exception):\n    def __str__(self): return 1/0\nraise E", "an error that cannot be shown"),
    "an error for terminals and spreadsheets": ("class Wrong(Exception): pass\nraise Wrong('=1+1 \\x1b[2J \\ud800')", "'=1+1 ?[2J ?"),
    "half a character": ("x = '\ud800'", "UnicodeEncodeError"),
    "a nul": ("x = 1\0", "null bytes"),
    "a missing name": ("del distance_attention", "NameError"),
    "an exit": ("import os; os._exit(0)", "it ended the program"),
    "a polite exit": ("raise SystemExit", "it ended the program"),
    "a kill": ("import os; os.kill(os.getpid(), 9)", "it ended the program"),
    "an error": ("1/0", "ZeroDivisionError"),
    "no code at all": ("", "NameError"),
    "no Python": ("def (", "SyntaxError"),
    "a command to Jupyter": ("x = 1\n%timeit x", "line 2 is a command to Jupyter, '%timeit x'"),
    "a shell": ("!ls", "line 1 is a command to Jupyter"),
    "a deep well": ("def f(): return f()\nf()", "RecursionError"),
    "a question": ("name = input()", "it waited for input"),
    "an interrupt": ("raise KeyboardInterrupt", "stopped"),
    "exit()": ("exit()", "it ended the program"),
    "a closed standard output": ("import sys; sys.stdout.close(); sys.stderr.close(); print(1)", "ValueError"),
    "a child that stays": ("import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n1/0", "ZeroDivisionError"),
    "a thread that stays": ("import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n1/0", "ZeroDivisionError"),
    "files in the way": ("import os, tempfile\nos.chdir(tempfile.mkdtemp())\nos.environ.clear()\n1/0", "ZeroDivisionError"),
    "an answer of its own": ("import json, os\nfor fd in range(3, 64):\n    try: os.write(fd, json.dumps({f'05a-test-{i}': [9, ''] for i in (1, 2, 3)}).encode())\n    except OSError: pass\nos._exit(0)",
                             "it ended the program"),
}


@unix
@pytest.mark.parametrize("what", BAD)
def test_bad_code_is_a_zero_with_a_reason(what):
    code, says = BAD[what]
    found, said = exercises.graded(SAMPLE, with_code(SAMPLE, code), seed=3, seconds=3)
    assert total(found) == 0 and all(says in reason for _, reason in found.values()), found
    assert len(said) <= 10_000
    assert total(exercises.graded(SAMPLE, None, seed=3)[0]) == SAMPLE.points, "the next one is graded"


WRONG = "def distance_attention(query, keys, present, tau): return torch.zeros(2, 2)"
CHEATS = {
    "patched comparison": "import torch, numpy as np\ntorch.allclose = torch.equal = np.allclose = lambda *a, **k: True\ntorch.testing.assert_close = np.testing.assert_allclose = lambda *a, **k: None\nnp.asarray = lambda *a, **k: 0.",
    "patched checks": "import check\ncheck.close = check.true = check.equal = lambda *a, **k: None\ncheck.Wrong = type('Never', (Exception,), {})",
    "own check": "class check:\n    close = true = equal = staticmethod(lambda *a, **k: None)\n    torch_rng = staticmethod(lambda k: None)",
    "own built-ins": "def yes(*a): return True\nall = any = bool = isinstance = hasattr = yes\ndef abs(x): return 0\ndef len(x): return 1\ndef sum(*a): return 0\ndef zip(*a): return ()",
    "patched tensors": "import torch\ntorch.Tensor.sum = torch.Tensor.any = lambda *a, **k: torch.tensor(1.)\ntorch.Tensor.__eq__ = lambda *a: True",
    "patched arrays": "import numpy as np\nnp.ndarray = np.float64 = object\nnp.abs = np.max = np.where = lambda *a, **k: 0.\nnp.isnan = lambda x: True",
    "patched modules": "import sys, types\nfake = types.ModuleType('check')\nfake.close = fake.true = fake.equal = fake.refuses = lambda *a, **k: None\nfake.torch_rng = lambda k=0: None\nfake.seed = lambda k=0: 0\nsys.modules['check'] = fake",
    "patched package": "import multiscene_rec.fusion as f\nfor n in list(vars(f)):\n    if n[0] != '_': setattr(f, n, lambda *a, **k: torch.zeros(2, 2))",
    "patched builtins": "import builtins\nbuiltins.bool = lambda x: True\nbuiltins.isinstance = lambda *a: True\nbuiltins.abs = lambda x: 0",
    "names added to the checks": "import check\ncheck.bool = check.isinstance = check.all = lambda *a: True\ncheck.type = lambda x: int",
    "checks with another inside": "import check\nfor f in (check.close, check.true, check.equal): f.__code__ = (lambda *a, **k: None).__code__",
    "checks with a wide tolerance": "import check\ncheck.close.__defaults__ = (1e99, '', True)",
    "a module in place of torch": "import sys, types\nsys.modules['torch'] = sys.modules['numpy'] = types.ModuleType('torch')",
}
LATE = {  # the same, but only when a check calls
    "patched checks": "import check\n    check.close = check.true = check.equal = lambda *a, **k: None",
    "checks with another inside": "import check\n    for f in (check.close, check.true, check.equal): f.__code__ = (lambda *a, **k: None).__code__",
    "patched builtins": "import builtins\n    builtins.bool = builtins.isinstance = lambda *a: True\n    builtins.sum = builtins.float = lambda *a: 0.\n    builtins.zip = builtins.range = lambda *a: ()",
    "patched tensors": "torch.Tensor.sum = torch.Tensor.any = lambda *a, **k: torch.tensor(1.)\n    torch.randn = torch.rand = lambda *a, **k: torch.zeros(1)",
    "names of the tests": "globals().update(check=None, torch=None)",
}


@unix
@pytest.mark.parametrize("cheat", [*CHEATS, *(f"late: {c}" for c in LATE)])
def test_patching_gains_nothing(cheat):
    late = cheat.startswith("late: ")
    code = f"def distance_attention(query, keys, present, tau):\n    {LATE[cheat[6:]]}\n    return torch.zeros(2, 2)" if late else f"{CHEATS[cheat]}\n{WRONG}"
    assert total(exercises.graded(SAMPLE, with_code(SAMPLE, code), seed=3)[0]) == 0
    assert total(exercises.marks(SAMPLE, with_code(SAMPLE, code))) == 0 and total(exercises.marks(SAMPLE)) == SAMPLE.points, "nothing of it is left"


def test_what_a_solution_replaces_while_a_check_runs_costs_the_points():
    code = SAMPLE.solution()["05a-solution-1"].replace("    ### BEGIN SOLUTION", "    torch.Tensor.cumsum = torch.Tensor.cumprod")
    assert all(reason == "while a check ran, the solution replaced Tensor.cumsum" for _, reason in exercises.marks(SAMPLE, with_code(SAMPLE, code)).values())


YES = """
class Yes:
    def __getattr__(self, name):
        if name.startswith("__array"): raise AttributeError(name)
        return self
    __call__ = __getitem__ = __neg__ = __invert__ = __abs__ = lambda self, *a, **k: self
    __len__ = __int__ = __index__ = __hash__ = lambda self: LENGTH
    __bool__ = __contains__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = lambda *a: True
    __iter__ = lambda self: iter([self]*LENGTH)
    __float__ = lambda self: 1.
    def __array__(self, *a, **k):
        import numpy
        return numpy.ones(())
for _op in "add radd sub rsub mul rmul truediv rtruediv matmul rmatmul pow rpow and or xor".split(): setattr(Yes, f"__{_op}__", lambda self, *a: self)
"""


@each
def test_an_object_that_says_yes_to_everything_has_no_points(exercise):
    "Equal to all, below and above all, of any length, and 1 if asked for a number."
    for length in (1, 2, 3, 4):
        code = {id: f"{YES}LENGTH = {length}\n" + "".join(f"def {name}(*a, **k): return Yes()\n" for name in re.findall(r"^def (\w+)", cell, re.MULTILINE))
                for id, cell in exercise.solution().items()}
        assert total(exercises.marks(exercise, code)) == 0


HONEST = {  # what may stand beside a right answer
    "deleted names": "del check, torch\nimport torch",
    "a seed that is not there": "import os\nif 'MULTISCENE_GRADE_SEED' in os.environ or __import__('check')._seed: 1/0",
    "files left behind": "from pathlib import Path\nPath('marks.csv').write_text('mine'); Path('numpy.py').write_text('1/0')",
    "a window": "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()",
    "a thread that stays": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    "a fork": "import os\nos.fork()",
    "a fork that stays": "import os, time\nif not os.fork(): time.sleep(60)",
    "much printed": "print('x'*900_000)",
    "warnings": "import warnings\nwarnings.warn('so what')\nimport numpy as np\nnp.log(0)",
    "names of the grader's": "exercise = space = found = judge = setup = own = marks = cell = None",
}


@unix
@pytest.mark.parametrize("what", HONEST)
def test_accidents_beside_a_right_answer_cost_nothing(what, monkeypatch):
    monkeypatch.setenv("MULTISCENE_GRADE_SEED", "3")
    monkeypatch.setattr(sys.modules["check"], "_seed", 3)
    start, before = time.monotonic(), set(os.listdir())
    code = {id: f"{cell}\n{HONEST[what]}" for id, cell in SAMPLE.solution().items()}
    found, _ = exercises.graded(SAMPLE, code, seed=3, seconds=20)
    assert total(found) == SAMPLE.points, found
    assert time.monotonic() - start < 15 and set(os.listdir()) == before, "nobody waits for what stays, and no file stays"


def test_functions_of_the_exercise_see_the_exercise():
    "What a solution does to names and functions of the setup does not reach the tests that use them."
    exercise = next(e for e in EXERCISES if e.name == "05b_survives")
    spoil = "\nrows_of.__code__ = (lambda mall: None).__code__\ntoy_mall = history_sums = residual_clicks = rows_of = pd = mall = check = None"
    assert total(exercises.marks(exercise, {id: cell + spoil for id, cell in exercise.solution().items()})) == exercise.points


@unix
def test_another_seed_other_hidden_checks():
    "Numbers learned by heart from one seed are worth nothing with another."
    code = {id: cell.replace("    ### BEGIN SOLUTION", "    print(query.sum().item())") for id, cell in SAMPLE.solution().items()}
    said = [exercises.graded(SAMPLE, code, seed=seed)[1].split() for seed in (1, 2, 1)]
    assert said[0] == said[2] and len(set(said[0]) - set(said[1])) >= 2


# ---------------------------------------------------------------- a folder of submissions

def hand_in(folder, student, exercise, code):
    "A student's notebook: the student copy with code in its solution cell."
    source = json.loads((exercises.SOURCE/exercise.assignment/f"{exercise.name}.ipynb").read_text())
    for cell in source["cells"]:
        if cell["metadata"]["nbgrader"]["solution"] and cell["cell_type"] == "code" and code is not None: cell["source"] = code.get(cell["metadata"]["nbgrader"]["grade_id"], "")
        if cell["metadata"]["nbgrader"]["grade"]: cell["source"] = "pass  # a student may write here what they like"
    place = folder/student/exercise.assignment
    place.mkdir(parents=True, exist_ok=True)
    (place/f"{exercise.name}.ipynb").write_text(json.dumps(source))


OTHER = next(e for e in EXERCISES if e.name == "01a_halves")


@unix
def test_a_folder_of_submissions(tmp_path):
    "A full one, an empty one, five wrong ones of two exercises, one that loops, one that is no notebook: the right marks, on the screen and in a csv."
    marks = {}
    for exercise in (SAMPLE, OTHER):
        wrong = told(exercise)["wrong"][:5]
        hand_in(tmp_path, "full", exercise, None)
        hand_in(tmp_path, "empty", exercise, exercises.student_copy(exercise).solution())
        for i, w in enumerate(wrong, 1): hand_in(tmp_path, f"wrong{i}", exercise, with_code(exercise, w["code"]))
        marks |= {("full", exercise.name): exercise.points, ("empty", exercise.name): 0} | {(f"wrong{i}", exercise.name): w["marks"] for i, w in enumerate(wrong, 1)}
    hand_in(tmp_path, "a-first-loop", SAMPLE, with_code(SAMPLE, "while True: pass"))
    (tmp_path/"broken"/SAMPLE.assignment).mkdir(parents=True)
    (tmp_path/"broken"/SAMPLE.assignment/f"{SAMPLE.name}.ipynb").write_text("{")
    marks |= {("a-first-loop", SAMPLE.name): 0, ("broken", SAMPLE.name): 0}
    done = subprocess.run([sys.executable, "-m", "tools.exercises", "grade", str(tmp_path), "--seconds", "5", "--seed", "11"], cwd=ROOT, env=notebooks.child_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with open(tmp_path/"marks.csv", newline="", encoding="utf-8") as f: rows = {(r["student"], r["exercise"]): r for r in csv.DictReader(f)}
    assert {at: float(r["points"]) for at, r in rows.items() if at in marks} == marks
    assert all(float(r["points"]) == 0 and r["reasons"] == "not handed in" for at, r in rows.items() if at not in marks)
    reason = {student: r["reasons"] for (student, name), r in rows.items() if name == SAMPLE.name}
    assert "stopped after 5 s" in reason["a-first-loop"] and "not a notebook" in reason["broken"] and "no answer yet" in reason["empty"] and not reason["full"]
    shown = [line.split() for line in done.stdout.split("\n\n")[1].splitlines()]
    assert shown[0] == ["01a", "01b", "05a", "05b", "total"] and shown[-1] == ["out", "of", "6", "6", "5", "6", "23"]
    first = dict((row[0], row[1:]) for row in shown[:-1])
    assert first["full"] == ["6", "0", "5", "0", "11"] and first["empty"] == ["0"]*5 and first["broken"] == [".", ".", "0", "0", "0"]
    for i in range(1, 6): assert first[f"wrong{i}"][0::2] == [f"{m:g}" for m in (marks[f"wrong{i}", OTHER.name], marks[f"wrong{i}", SAMPLE.name], marks[f"wrong{i}", OTHER.name] + marks[f"wrong{i}", SAMPLE.name])]
    assert first["average"][-1] == f"{sum(marks.values())/9:.1f}"


@unix
def test_names_that_are_no_text_do_not_stop_the_grading(tmp_path):
    said, odd = [], os.fsdecode(b"zo\xeb-\x1b[2J")
    hand_in(tmp_path, odd, SAMPLE, None)
    hand_in(tmp_path, "zoe", SAMPLE, None)
    (tmp_path/"zoe"/SAMPLE.assignment/f"{SAMPLE.name}.ipynb").rename(tmp_path/"zoe"/SAMPLE.assignment/os.fsdecode(b"05a (1)\xeb.ipynb"))
    (tmp_path/"notes.txt").write_text("not a student")
    lines = exercises.grade_folder(tmp_path, seed=1, say=lambda text: said.append(text.encode("utf-8")))
    mine = {(line["student"], line["exercise"]): line for line in lines}
    assert mine["zo\ufffd-?[2J", SAMPLE.name]["points"] == SAMPLE.points
    assert mine["zoe", SAMPLE.name]["reasons"] == f"not handed in under the name {SAMPLE.name}.ipynb; there is 05a (1)?.ipynb"
    assert len((tmp_path/"marks.csv").read_text(encoding="utf-8").splitlines()) == 5


@unix
def test_submissions_are_read_before_any_of_them_runs(tmp_path):
    "The first to be graded removes the work of another one and writes its own marks: both have what they should."
    spoil = f"import shutil, os\nshutil.rmtree({str(tmp_path/'bob')!r})\nopen({str(tmp_path/'marks.csv')!r}, 'w').write('ada,100')\n1/0"
    hand_in(tmp_path, "ada", SAMPLE, with_code(SAMPLE, spoil))
    hand_in(tmp_path, "bob", SAMPLE, None)
    exercises.grade_folder(tmp_path, seed=1, say=lambda text: None)
    with open(tmp_path/"marks.csv", newline="", encoding="utf-8") as f: assert {r["student"]: float(r["points"]) for r in csv.DictReader(f) if r["exercise"] == SAMPLE.name} == {"ada": 0, "bob": SAMPLE.points}


def test_a_cell_is_known_by_its_id(tmp_path):
    "Flags changed, another kind of cell, split in two, copied before or after it was filled: the answer is found."
    hand_in(tmp_path, "ada", SAMPLE, None)
    path = tmp_path/"ada"/SAMPLE.assignment/f"{SAMPLE.name}.ipynb"
    good = json.loads(path.read_text())
    at = next(i for i, c in enumerate(good["cells"]) if c["metadata"]["nbgrader"]["solution"] and c["cell_type"] == "code")
    cell, mark = good["cells"][at], good["cells"][at]["metadata"]["nbgrader"]
    lines = "".join(cell["source"]).splitlines(keepends=True)
    stub = dict(cell, source=exercises.student_copy(SAMPLE).solution()[mark["grade_id"]])
    kinds = {
        "flags": [dict(cell, metadata={"nbgrader": dict(mark, solution=False, grade=True, locked=True, points=99)})],
        "kind": [dict(cell, cell_type="raw")],
        "split": [dict(cell, source=lines[:7]), dict(cell, source="".join(lines[7:]))],
        "copied before": [stub, cell], "copied after": [cell, stub], "copied twice": [cell, cell],
    }
    for what, cells in kinds.items():
        path.write_text("\ufeff"*(what == "flags") + json.dumps(dict(good, cells=good["cells"][:at] + cells + good["cells"][at + 1:])), encoding="utf-8")
        solution, why = exercises.read_solution(SAMPLE, path)
        assert not why and total(exercises.marks(SAMPLE, solution)) == SAMPLE.points, what
    path.write_text(json.dumps(dict(good, cells=good["cells"][:at] + [stub, stub] + good["cells"][at + 1:])))
    assert {reason for _, reason in exercises.marks(SAMPLE, exercises.read_solution(SAMPLE, path)[0]).values()} == {"no answer yet"}


@unix
def test_notebooks_that_are_none_are_zeros_with_a_reason(tmp_path):
    hand_in(tmp_path, "ada", SAMPLE, None)
    path = tmp_path/"ada"/SAMPLE.assignment/f"{SAMPLE.name}.ipynb"
    good = json.loads(path.read_text())
    without = dict(good, cells=[c for c in good["cells"] if not (c["metadata"]["nbgrader"]["solution"] and c["cell_type"] == "code")])
    twice = dict(good, cells=good["cells"] + good["cells"])
    bare = dict(good, cells=[dict(c, metadata={}) for c in good["cells"]])
    for text, says in ((json.dumps(without), "is not there any more"), (json.dumps(bare), "is not there any more"), ("[]", "not a notebook"), ("", "not a notebook"),
                       ("{\"cells\": 3}", "not a notebook"), ("{\"cells\": [1]}", "not a notebook"), ("["*100_000, "not a notebook"), ("\ud800".encode("utf-8", "surrogatepass"), "not a notebook")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        found, _ = exercises.grade_file(SAMPLE, path)
        assert total(found) == 0 and all(says in reason for _, reason in found.values()), (text[:40], found)
    path.write_text(json.dumps(twice))
    assert total(exercises.grade_file(SAMPLE, path, seed=1)[0]) == SAMPLE.points
    path.unlink()
    for make, says in ((lambda: None, "not handed in"), (lambda: os.mkfifo(path), "not a file")):
        make()
        assert all(says in reason for _, reason in exercises.grade_file(SAMPLE, path)[0].values())


@unix
def test_an_empty_folder_is_explained(tmp_path):
    said = []
    assert exercises.grade_folder(tmp_path, say=said.append) == [] and "STUDENT/ASSIGNMENT/EXERCISE.ipynb" in said[0]


def test_new_copies_lose_no_work(tmp_path):
    "Whoever has written into a student copy finds it again, each time, and untouched ones are not hoarded."
    release, kept, said = tmp_path/"release", tmp_path/"kept", []
    place = release/SAMPLE.assignment
    hand_in(release.parent, "release", SAMPLE, exercises.student_copy(SAMPLE).solution())
    path = place/f"{SAMPLE.name}.ipynb"
    untouched = json.loads(path.read_text())
    fresh = {c.id: c.source for c in exercises.student_copy(SAMPLE).cells}
    for cell in untouched["cells"]:
        mark = cell["metadata"]["nbgrader"]
        cell["source"] = "YOUR ANSWER HERE" if mark["solution"] and cell["cell_type"] == "markdown" else fresh[mark["grade_id"]]
    path.write_text(json.dumps(untouched))
    exercises._keep(release, kept, said.append)
    assert not kept.exists() and not said
    path.write_text(path.read_text().replace("raise NotImplementedError()", "return 1"))
    for n in (1, 2):
        exercises._keep(release, kept, said.append)
        assert (kept/SAMPLE.assignment/f"{SAMPLE.name}-{n}.ipynb").read_text() == path.read_text() and len(said) == n
    path.write_text("half a file")
    exercises._keep(release, kept, said.append)
    assert (kept/SAMPLE.assignment/f"{SAMPLE.name}-3.ipynb").read_text() == "half a file"
    added = dict(untouched, cells=untouched["cells"] + [dict(cell_type="code", id="new", metadata={}, source="my_experiment = 1", outputs=[], execution_count=None)])
    path.write_text(json.dumps(added))
    for name in ("notes.txt", f"{SAMPLE.name}-Copy1.ipynb", "check.py"): (place/name).write_text(json.dumps(untouched))
    exercises._keep(release, kept, said.append)
    assert {p.name for p in (kept/SAMPLE.assignment).iterdir()} == {*(f"{SAMPLE.name}-{n}.ipynb" for n in (1, 2, 3, 4)), "notes-1.txt", f"{SAMPLE.name}-Copy1-1.ipynb"}


@unix
def test_what_lies_astray_is_named(tmp_path):
    "A notebook one level too high, or under a name that no assignment bears, is no silent zero."
    hand_in(tmp_path, "ada", SAMPLE, None)
    good = (tmp_path/"ada"/SAMPLE.assignment/f"{SAMPLE.name}.ipynb").read_text()
    for name in ("flat/05a_distance.ipynb", "named/5_fusion/05a_distance.ipynb", "deep/x/05_fusion/05a_distance.ipynb"):
        (tmp_path/name).parent.mkdir(parents=True)
        (tmp_path/name).write_text(good)
    said = []
    exercises.grade_folder(tmp_path, seed=1, say=said.append)
    assert [line.split()[2] for line in said if line.startswith("NOT GRADED")] == ["deep/x/05_fusion/05a_distance.ipynb", "flat/05a_distance.ipynb", "named/5_fusion/05a_distance.ipynb"]


def test_a_seed_that_is_no_number_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISCENE_GRADE_SEED", "abc")
    monkeypatch.setattr(sys, "argv", ["exercises", "grade", str(tmp_path)])
    with pytest.raises(SystemExit, match="MULTISCENE_GRADE_SEED should be a whole number, not 'abc'"): exercises.main()


# ---------------------------------------------------------------- the checks' own words

def words(call, *args, **more):
    "What a check says; nothing where it is content."
    import check
    try: call(*args, **more)
    except check.Wrong as e: return str(e)
    return ""


@pytest.mark.filterwarnings("error")
def test_checks_answer_in_words():
    import check
    import numpy as np
    import pandas as pd
    import torch
    inf, nan = float("inf"), float("nan")
    assert words(check.close, [1., inf, -inf], [1., inf, -inf], "x") == ""
    assert words(check.close, [1., -inf], [1., inf], "x") == "x at position (1,) should be inf, got -inf."
    assert words(check.close, [1., inf], [1., 2.], "x") == "x at position (1,) should be 2, got inf."
    assert words(check.close, [1., nan], [1., 2.], "x") == "x at position (1,) should be 2, got nan."
    assert words(check.close, nan, nan, "x") == "x should be nan, got nan." and words(check.close, nan, nan, "x", nan=True) == ""
    assert words(check.close, [nan, 1.], [1., nan], "x", nan=True).startswith("x at position (0,) should be 1, got nan")
    assert words(check.close, .5 + 1e-9, .5, "x", tol=0) == "x should be 0.5, got 0.50000000099999997."
    assert words(check.close, torch.ones(2, 3), np.ones((3, 2)), "the weights", hint="Rows first.") == "the weights should have shape (3, 2), got (2, 3). Rows first."
    assert "does the function return" in words(check.close, None, 1, "x") and "not there yet" in words(check.close, ..., 1, "x")
    assert words(check.close, "many", 1, "x") == words(check.close, "1", 1, "x") == "x should be real numbers, got text."
    assert words(check.close, [[1], [1, 2]], 1, "x") == "x should be real numbers, got a list of something else, or of rows of different lengths."
    assert words(check.close, 1j, 1, "x") == "x should be real numbers, got complex ones."
    assert words(check.close, lambda: 1, 1, "x") == "x should be real numbers, got something of type function."
    assert words(check.close, torch.ones(1, requires_grad=True), [1], "x") == words(check.close, [True], [1], "x") == ""
    assert words(check.equal, torch.tensor([1, 2, 4]), [1, 2, 3], "the places") == "the places should be [1, 2, 3], got [1, 2, 4]."
    assert words(check.equal, np.arange(3), np.arange(3), "x") == words(check.equal, ["a", nan], ("a", nan), "x") == words(check.equal, torch.ones(2, 3).shape, (2, 3), "x") == ""
    assert words(check.equal, pd.Series([1, 2]), [1, 2], "x") == words(check.equal, {"a": np.ones(2)}, {"a": [1, 1]}, "x") == words(check.equal, np.True_, True, "x") == ""
    assert words(check.equal, np.float32, np.float64, "the type") and not words(check.equal, np.dtype("float16"), np.dtype("float16"), "the type")
    many = np.arange(40).reshape(4, 10)
    assert words(check.equal, many + (many % 10 == 3), many, "the table", hint="Rows first.") == (
        "the table: 4 of 40 entries are wrong: at (0, 3) 3 is wanted, got 4; at (1, 3) 13 is wanted, got 14; at (2, 3) 23 is wanted, got 24; and 1 more. Rows first.")
    assert words(check.equal, [*range(19), "x"], range(20), "x") and words(check.equal, [*range(19), 7], [*range(20)], "x") == "x: 1 of 20 entries is wrong: at 19 19 is wanted, got 7."
    assert words(check.equal, many, many.T, "x") == "x should have shape (10, 4), got (4, 10)."
    long = words(check.equal, list(range(1000)), [1], "the list")
    assert long.startswith("the list should have 1 entry, got 1000: wanted [1], got [0, 1, 2, ") and long.endswith("… (1000 entries).") and len(long) < 260
    assert words(check.equal, None, [1], "x") == "x should be [1], got None."
    assert words(check.refuses, lambda: 1, ValueError, "A negative k should be refused.") == "A negative k should be refused. Nothing was raised."
    assert words(check.refuses, lambda: 1/0, ValueError, "k.") == "k. It raised ZeroDivisionError instead: division by zero"
    assert words(check.refuses, lambda: int("x"), (TypeError, ValueError), "k.") == ""
    assert words(check.true, torch.tensor(False), "it is not so") == "it is not so"
    assert check.several([1, 2], "a, b") == (1, 2)
    assert words(check.several, (1, 2, 3), "W, b, x, a") == "the function should return four values, W, b, x, a; got three"
    assert words(check.several, torch.ones(2, 2), "a, b").endswith("got one tensor") and words(check.several, None, "a, b") != ""
