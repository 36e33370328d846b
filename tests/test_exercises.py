"The graders are graded: right answers get all marks, wrong ones lose what they should, and every part of a solution counts."
import json
import os
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


def test_names_and_ids():
    assert len({e.name for e in EXERCISES}) == len(EXERCISES)
    for e in EXERCISES:
        assert e.name[:2] == e.assignment[:2] and (notebooks.NBS/f"{e.assignment}.ipynb").exists()
        raw = json.loads((exercises.SOURCE/e.assignment/f"{e.name}.ipynb").read_text())["cells"]
        marks = [c["metadata"]["nbgrader"] for c in raw]
        ids = [m["grade_id"] for m in marks]
        assert len(set(ids)) == len(ids) and all(i.startswith(e.name.split("_")[0] + "-") for i in ids)
        assert all(m["schema_version"] == 3 and m["locked"] != m["solution"] for m in marks)
        assert not any(c.get("outputs") for c in raw), "outputs would give the answer away"
        tests = [c for c in e.cells if c.kind == "test"]
        assert len(tests) >= 2 and all(c.points > 0 for c in tests) and all("### BEGIN HIDDEN TESTS" in c.source for c in tests)
        assert any("check.seed" in c.source or "check.rng" in c.source or "check.torch_rng" in c.source for c in tests), "hidden checks must use another seed"
        assert "Goes with" in "".join(c.source for c in e.cells if c.kind == "text")


@each
def test_the_solution_has_full_marks_for_every_seed(exercise, monkeypatch):
    import check
    for seed in (0, 1, 20_261_124):
        monkeypatch.setattr(check, "_seed", seed)
        start = time.monotonic()
        found = exercises.marks(exercise)
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
    record_property("kill_rate", (exercise.name, counted - alive, counted, len(found & same)))
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


CHEATS = {
    "patched comparison": "import torch, numpy as np\ntorch.allclose = torch.equal = np.allclose = lambda *a, **k: True\ntorch.testing.assert_close = np.testing.assert_allclose = lambda *a, **k: None\nnp.asarray = lambda *a, **k: 0.",
    "patched checks": "import check\ncheck.close = check.true = check.equal = lambda *a, **k: None\ncheck.Wrong = type('Never', (Exception,), {})",
    "own check": "class check:\n    close = true = equal = staticmethod(lambda *a, **k: None)\n    torch_rng = staticmethod(lambda k: None)",
    "patched tensors": "import torch\ntorch.Tensor.sum = torch.Tensor.any = lambda *a, **k: torch.tensor(1.)\ntorch.Tensor.__eq__ = lambda *a: True",
    "patched arrays": "import numpy as np\nnp.ndarray = np.float64 = object\nnp.abs = np.max = np.where = lambda *a, **k: 0.\nnp.isnan = lambda x: True",
    "patched modules": "import sys, types\nfake = types.ModuleType('check')\nfake.close = fake.true = fake.equal = fake.refuses = lambda *a, **k: None\nfake.torch_rng = lambda k=0: None\nfake.seed = lambda k=0: 0\nsys.modules['check'] = fake",
    "patched package": "import multiscene_rec.fusion as f\nfor n in list(vars(f)):\n    if n[0] != '_': setattr(f, n, lambda *a, **k: torch.zeros(2, 2))",
    "patched builtins": "import builtins\nbuiltins.bool = lambda x: True\nbuiltins.isinstance = lambda *a: True\nbuiltins.abs = lambda x: 0",
}


@unix
@pytest.mark.parametrize("cheat", CHEATS)
def test_patching_gains_nothing(cheat):
    code = CHEATS[cheat] + "\ndef distance_attention(query, keys, present, tau): return torch.zeros(2, 2)"
    assert total(exercises.graded(SAMPLE, with_code(SAMPLE, code), seed=3)[0]) == 0
    assert total(exercises.marks(SAMPLE)) == SAMPLE.points


@unix
def test_another_seed_other_hidden_checks():
    "Numbers learned by heart from one seed are worth nothing with another."
    learn = ("import check\n_k = {}\ndef distance_attention(q, k, present, tau):\n    right = ((q[:, None] - k)**2).sum(2)\n"
             "    ok = torch.softmax((-right/(2*tau)).masked_fill(~present, -torch.inf), 1).nan_to_num(0)\n    return ok if check._seed == 1 else ok*0\n")
    assert [total(exercises.graded(SAMPLE, with_code(SAMPLE, learn), seed=s)[0]) for s in (1, 2)] == [SAMPLE.points, 0]


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


@unix
def test_a_folder_of_submissions(tmp_path):
    "A full one, an empty one, five wrong ones, one that is no notebook: the right marks, in a csv, whoever comes first."
    hand_in(tmp_path, "full", SAMPLE, None)
    hand_in(tmp_path, "empty", SAMPLE, exercises.student_copy(SAMPLE).solution())
    wrong = told(SAMPLE)["wrong"][:5]
    for i, w in enumerate(wrong): hand_in(tmp_path, f"wrong{i}", SAMPLE, with_code(SAMPLE, w["code"]))
    hand_in(tmp_path, "a-first-loop", SAMPLE, with_code(SAMPLE, "while True: pass"))
    (tmp_path/"broken"/SAMPLE.assignment).mkdir(parents=True)
    (tmp_path/"broken"/SAMPLE.assignment/f"{SAMPLE.name}.ipynb").write_text("{")
    done = subprocess.run([sys.executable, "-m", "tools.exercises", "grade", str(tmp_path), "--seconds", "5", "--seed", "11"], cwd=ROOT, env=notebooks.child_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    import csv
    with open(tmp_path/"marks.csv", newline="") as f: rows = {r["student"]: r for r in csv.DictReader(f) if r["exercise"] == SAMPLE.name}
    assert {s: float(r["points"]) for s, r in rows.items()} == {"full": SAMPLE.points, "empty": 0, "a-first-loop": 0, "broken": 0} | {f"wrong{i}": w["marks"] for i, w in enumerate(wrong)}
    printed = {line.split()[0]: line for line in done.stdout.splitlines() if " exercises " in line}
    assert printed.keys() == rows.keys() and f" {SAMPLE.points:g} of " in printed["full"] and " 0 of " in printed["empty"], "a line of totals a student"
    assert "stopped after 5 s" in rows["a-first-loop"]["reasons"] and "not a notebook" in rows["broken"]["reasons"] and "no answer yet" in rows["empty"]["reasons"]


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
    for cell in untouched["cells"]:
        if cell["metadata"]["nbgrader"]["solution"] and cell["cell_type"] == "markdown": cell["source"] = "YOUR ANSWER HERE"
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
    import torch
    inf, nan = float("inf"), float("nan")
    assert words(check.close, [1., inf, -inf, nan], [1., inf, -inf, nan], "x") == ""
    assert words(check.close, [1., -inf], [1., inf], "x") == "x at position (1,) should be inf, got -inf."
    assert words(check.close, [1., nan], [1., 2.], "x") == "x at position (1,) should be 2, got nan."
    assert words(check.close, torch.ones(2, 3), np.ones((3, 2)), "the weights", hint="Rows first.") == "the weights should have shape (3, 2), got (2, 3). Rows first."
    assert "does the function return" in words(check.close, None, 1, "x") and "not there yet" in words(check.close, ..., 1, "x")
    assert words(check.close, "many", 1, "x") == "x should be numbers, got str"
    assert words(check.equal, torch.tensor([1, 2, 4]), [1, 2, 3], "the places") == "the places at position (2,) should be 3, got 4."
    assert words(check.equal, np.arange(3), np.arange(3), "x") == "" and words(check.equal, ["a"], ["a"], "x") == ""
    assert words(check.equal, list(range(1000)), [1], "the list").startswith("the list should be [1], got [0, 1, 2") and len(words(check.equal, list(range(1000)), [1], "the list")) < 260
    assert words(check.refuses, lambda: 1, ValueError, "A negative k should be refused.") == "A negative k should be refused. Nothing was raised."
    assert words(check.refuses, lambda: 1/0, ValueError, "k.").startswith("k. It raised ZeroDivisionError instead")
    assert words(check.true, torch.tensor(False), "it is not so") == "it is not so"
