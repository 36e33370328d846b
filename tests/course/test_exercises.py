"The graders are graded: right answers get all marks, wrong ones lose what they should, tricks gain nothing."
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

import mutants
import numpy as np
import pandas as pd
import pytest
import torch

from tools import exercises, grade, notebooks, plain

sys.path.insert(0, str(exercises.FOLDER))
import check  # noqa: E402

ROOT = notebooks.ROOT
EXERCISES = exercises.sources()
NAMES = {e.name: e for e in EXERCISES}
each = pytest.mark.parametrize("exercise", EXERCISES, ids=[e.name for e in EXERCISES])
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="grading forks: use Linux, macOS or WSL")
SAMPLE, OTHER = NAMES["05a_distance"], NAMES["01a_halves"]


@pytest.fixture(scope="module")
def nursery():
    with grade.Nursery() as nursery: yield nursery


def walled(nursery, exercise, code=None, **limits):
    "(points, reasons, what was printed) of code for the first cell, behind the wall."
    solution = exercise.solution()
    if code is not None: solution = dict.fromkeys(solution, "") | {next(iter(solution)): code}
    wrong, said = grade.graded(nursery, exercise, solution, **{"seed": 3, "seconds": 20, **limits})
    return grade.points(exercise, wrong), [reason for reason in wrong.values() if reason], said


# ---------------------------------------------------------------- the sources

def test_every_lesson_has_two_exercises():
    for path in notebooks.paths("[0-9][0-9]_*.ipynb"):
        if path.stem < "12": assert sum(e.lesson == path.stem for e in EXERCISES) >= 2, path.stem


def test_answers_in_words_have_no_points():
    "The teacher reads them; README.md and the page for teachers say so."
    for e in EXERCISES: assert all(c.points == 0 for c in e.cells if c.kind == "answer")


@each
def test_the_source_is_in_order(exercise):
    e, where = exercise, f"exercises/source/{exercise.name}/{exercise.name}.ipynb"
    assert sorted(p.name for p in e.path.parent.iterdir() if not p.name.startswith((".", "__"))) == [
        f"{e.name}.ipynb", "wrong.toml"], f"{e.path.parent} holds the notebook of its name and wrong.toml"
    raw = json.loads(e.path.read_text(encoding="utf-8"))["cells"]
    marks, start = [c["metadata"].get("nbgrader", {}) for c in raw], e.name.split("_")[0] + "-"
    ids = [m.get("grade_id", "") for m in marks]
    assert [i for i in ids if not i.startswith(start)] == [], f"{where}: a grade_id begins with {start}"
    assert sorted(i for i in set(ids) if ids.count(i) > 1) == [], f"{where}: a grade_id appears twice"
    odd = [i for i, m in zip(ids, marks, strict=True) if m["schema_version"] != 3
           or m["locked"] == m["solution"]]
    assert odd == [], f"{where}: schema_version 3, and locked where it is no solution"
    outputs = [i for i, c in zip(ids, raw, strict=True) if c.get("outputs")]
    assert outputs == [], f"{where}: outputs would give the answer away; make export drops them"
    tests = [c for c in e.cells if c.kind == "test"]
    assert len(tests) >= 2, f"{where}: two cells of checks or more, with points"
    hidden = [c for c in e.cells if c.kind in ("test", "helper")]
    assert [c.id for c in hidden
            if "### BEGIN HIDDEN TESTS" not in c.source] == [], f"{where}: each has hidden ones"
    assert any(re.search(r"check\.(seed|rng|torch_rng)", c.source) for c in hidden), (
        f"{where}: hidden checks draw from check.seed, check.rng or check.torch_rng")
    assert "Goes with" in "".join(c.source for c in e.cells
                                  if c.kind == "text"), f"{where}: 'Goes with [NN ...](...)'"
    _, wrong, _ = mutants.wrong_answers(e)
    assert len({why for why, _, _ in wrong}) == len(wrong) >= 3, f"{where}: three wrong answers or more"


@each
def test_hidden_helpers_appear_once(exercise):
    "A function that several cells of hidden checks need has a cell of its own, without points."
    found = [name for c in exercise.cells if c.kind in ("test", "helper")
             for name in re.findall(r"^(?:def (\w\w+)|(\w\w+) = lambda)", c.source, re.MULTILINE)]
    assert sorted(n for n in set(found) if found.count(n) > 1) == []


@each
def test_the_solution_has_full_marks(exercise, nursery):
    start = time.monotonic()
    assert walled(nursery, exercise, seed=20_261_124)[:2] == (exercise.points, [])
    assert time.monotonic() - start < 20, "hidden checks take too long"


@pytest.mark.slow
@each
def test_right_answers_have_full_marks_for_other_seeds(exercise):
    other = mutants.wrong_answers(exercise)[0]
    assert mutants.marks(exercise, other) == exercise.points
    for seed in (0, 77): assert mutants.wrong(exercise, seed=seed) == dict.fromkeys(exercise.tests(), "")


@each
def test_the_untouched_copy_has_none(exercise):
    wrong = mutants.wrong(exercise, exercises.student_copy(exercise).solution())
    assert grade.points(exercise, wrong) == 0 and "no answer yet" in wrong.values()


@each
@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["two", "rest"])
def test_wrong_answers_lose_what_they_should(exercise, first):
    asked = mutants.wrong_answers(exercise)[1]
    asked = asked[:2] if first else asked[2:]
    found = {why: mutants.marks(exercise, code) for why, _, code in asked}
    assert found == {why: wanted for why, wanted, _ in asked}
    assert all(marks < exercise.points for marks in found.values())


@pytest.mark.parametrize("exercise", [e if e in (SAMPLE, OTHER) else pytest.param(e, marks=pytest.mark.slow)
                                      for e in EXERCISES], ids=list(NAMES))
def test_mutants_are_killed(exercise, record_property):
    number, survivors = mutants.survivors(exercise)
    equivalent = mutants.wrong_answers(exercise)[2]
    same, found = {(e["line"], e["mutant"]) for e in equivalent}, set(survivors)
    assert not same - found, "listed as equivalent, but killed or not there"
    assert all(len(e["reason"]) > 10 for e in equivalent)
    alive, counted = len(found - same), number - len(found & same)
    named = sorted(f"line {line}, {what}" for line, what in found & same)
    record_property("kill_rate", (exercise.name, counted - alive, counted, named))
    assert alive <= .05*counted, f"{counted - alive} of {counted} killed; alive: {sorted(found - same)}"


# ---------------------------------------------------------------- what nbdev and nbgrader do with the sources

def test_nbdev_clean_keeps_what_nbgrader_needs(tmp_path):
    copy = Path(shutil.copy(SAMPLE.path, tmp_path))
    clean = str(Path(sys.executable).parent/"nbdev_clean")
    subprocess.run([clean, "--fname", str(copy)], cwd=ROOT, env=notebooks.child_env(), check=True)
    assert json.loads(copy.read_text())["cells"] == json.loads(SAMPLE.path.read_text())["cells"]


def course(folder, *names):
    "A course of some exercises in another folder."
    for name in names: shutil.copytree(exercises.SOURCE/name, folder/"source"/name)
    shutil.copy(exercises.FOLDER/"nbgrader_config.py", folder)
    return folder


def test_student_copies_give_nothing_away_and_lose_no_work(tmp_path):
    "Whoever has written into a student copy finds it again, each time; untouched ones are not hoarded."
    folder, said = course(tmp_path, SAMPLE.name, OTHER.name), []
    build = lambda *names: exercises.build(names or [SAMPLE.name], said.append, folder)
    build(SAMPLE.name, OTHER.name)
    for exercise in (SAMPLE, OTHER):
        place = folder/"release"/exercise.name
        assert sorted(p.name for p in place.iterdir()) == [f"{exercise.name}.ipynb", "check.py"]
        text = (place/f"{exercise.name}.ipynb").read_text()
        assert not re.search("SOLUTION|HIDDEN", text) and "raise NotImplementedError()" in text
        assert "YOUR ANSWER HERE" in text
    path = folder/"release"/SAMPLE.name/f"{SAMPLE.name}.ipynb"
    kept, untouched = folder/"kept"/SAMPLE.name, path.read_text()
    build()
    assert not (folder/"kept").exists() and not [line for line in said if "kept" in line]
    worked = untouched.replace("raise NotImplementedError()", "return 1")
    for n in (1, 2):
        path.write_text(worked)
        build()
        assert (kept/f"{SAMPLE.name}-{n}.ipynb").read_text() == worked and path.read_text() == untouched
    assert [line for line in said if "was worked on: kept as kept/" in line and SAMPLE.name in line] != []
    path.write_text("half a file")
    for name in ("notes.txt", f"{SAMPLE.name}-Copy1.ipynb"): path.with_name(name).write_text("mine")
    build()
    assert {p.name for p in kept.iterdir()} == {*(f"{SAMPLE.name}-{n}.ipynb" for n in (1, 2, 3)),
        "notes-1.txt",
                                               f"{SAMPLE.name}-Copy1-1.ipynb"}
    more = json.loads(untouched)
    more["cells"].append(dict(cell_type="code", id="new", metadata={}, source="x = 1", outputs=[],
                              execution_count=None))
    path.write_text(json.dumps(more))
    build()
    assert (kept/f"{SAMPLE.name}-4.ipynb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["01a_halves", "05a_distance", "07b_macro"])
def test_nbgrader_gives_the_same_marks(name, tmp_path):
    "One student with the solutions, one with an untouched copy, through nbgrader's kernels and gradebook."
    from nbgrader.api import Gradebook
    folder = course(tmp_path, name)
    exercises.build([name], lambda text: None, folder)
    for person, place in (("ada", folder/"source"), ("bob", folder/"release")):
        shutil.copytree(place/name, folder/"submitted"/person/name)
        shutil.copy(exercises.FOLDER/"check.py", folder/"submitted"/person/name)
    env = notebooks.child_env(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    command = [sys.executable, "-m", "nbgrader", "autograde", name, "--create"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with Gradebook(f"sqlite:///{folder/'gradebook.db'}") as book:
        scores = {s: book.find_submission(name, s).score for s in ("ada", "bob")}
    assert scores == {"ada": NAMES[name].points, "bob": 0}


# ---------------------------------------------------------------- code that nobody trusts

STAYS = "[sys.executable, '-c', 'import time; time.sleep(60)']" # of a command
PIPE = """
import os, socket, stat
is_socket = lambda fd: os.path.exists(f"/dev/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode)
pipe = socket.socket(fileno=os.dup(next(filter(is_socket, range(3, 64)))))
send = lambda data: pipe.sendall(len(data).to_bytes(4, "big") + data)
"""
WRONG = "import torch\ndef distance_attention(query, keys, present, tau): return torch.zeros(2, 2)"
YES = """
import torch
class Yes:
    def __getattr__(self, name):
        if name.startswith("__array"): raise AttributeError(name)
        return self
    __call__ = __getitem__ = __neg__ = __invert__ = __abs__ = lambda self, *a, **k: self
    __len__ = __int__ = __index__ = __hash__ = lambda self: 1
    __bool__ = __contains__ = __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = lambda *a: True
    __iter__ = lambda self: iter([self])
    __float__ = lambda self: 1.
"""
FORGED = """[1, 2]
{"a": 1}
{"05a-test-1": ["5", ""]}
null
5
NaN
"gave"

["gave"]
["gave", ["tensor", ["array", "float32", [2], "AAAA"]], false]
["gave", ["array", "object", [1], "AAAAAAAAAAA="], false]
["gave", ["array", "float64", [-1], ""], false]
["gave", ["array", "float64", [1000000000000, 0], ""], false]
["gave", ["array", "bool", [1], "Ag=="], false]
["gave", ["frame", [["x", ["text", "Sparse[int]", [1]]]], ["array", "int64", [0], ""]], false]
["gave", ["model", "os", "system", 1, 2, 3, 4], false]
["gave", ["data", "os", "system", ["dict", []]], false]
["gave", ["call", 0, "x"], false]
["ask", 0, ["list", []], ["dict", []]]
["ask", -1]
["raised", [5], "x"]
["raised", [], ""]
["raised", ["a\\u0000"], ""]""".splitlines() + ["["*10**5, "9"*5000]


def tricks(kind):
    "Parameters from tricks.toml: (code, what the reasons say)."
    with open(Path(__file__).with_name("tricks.toml"), "rb") as f: cases = tomllib.load(f)[kind]
    code = lambda case: case["code"].replace("STAYS", STAYS).replace("PIPE", PIPE)
    rows = [pytest.param(code(case), case.get("says", ""), id=case["what"]) for case in cases]
    return pytest.mark.parametrize("code, says", rows)


def attention(body):
    "A student's cell whose function has this body."
    head = "def distance_attention(query, keys, present, tau):\n"
    return YES + head + "".join(f"    {line}\n" for line in body.strip().splitlines())


@tricks("bad")
def test_bad_code_is_a_zero_with_a_reason(code, says, nursery):
    got, reasons, said = walled(nursery, SAMPLE, code, seconds=1)
    assert got == 0 and reasons and all(says in reason for reason in reasons), reasons
    assert len(said) <= 10_000
    assert walled(nursery, SAMPLE)[0] == SAMPLE.points, "the next one is graded"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_a_process_ends_with_the_one_that_made_it():
    with grade.Nursery() as nursery:
        code = "import os\nprint(os.getpid(), flush=True)\nos.kill(os.getppid(), 9)\nwhile True: pass"
        _, reasons, said = walled(nursery, SAMPLE, code)
    assert set(reasons) == {"it ended the program"}
    state, end = Path(f"/proc/{said.strip()}/stat"), time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < end: time.sleep(.01)
    assert time.monotonic() < end, "it still runs" # what is dead may wait for its new parent


@pytest.mark.parametrize("code, says", [("x = '\ud800'", "UnicodeEncodeError"), ("x = 1\0", "null bytes")])
def test_text_that_is_no_code_is_a_zero_with_a_reason(code, says, nursery):
    assert says in walled(nursery, SAMPLE, code)[1][0]


@pytest.mark.parametrize("frame", FORGED, ids=range(len(FORGED)))
def test_a_forged_answer_is_a_zero(frame, nursery):
    "Sent before the grader asks, over the pipe that the student's process answers by."
    got, reasons, _ = walled(nursery, SAMPLE, f"{PIPE}send({frame.encode()!r})\n{WRONG}", seconds=5)
    assert got == 0 and reasons


@tricks("meddling")
def test_meddling_with_the_pipe_gains_nothing(code, says, nursery):
    assert walled(nursery, SAMPLE, f"{code}\n{WRONG}", seconds=3)[0] == 0
    assert walled(nursery, SAMPLE)[0] == SAMPLE.points


@tricks("lie")
def test_a_lie_gains_nothing(code, says, nursery):
    got, reasons, _ = walled(nursery, SAMPLE, attention(code), seconds=2)
    assert got == 0 and len(reasons) == len(SAMPLE.tests())


@tricks("trick")
def test_a_trick_gains_nothing_before_and_while_a_check_calls(code, says, nursery):
    for whole in (f"{code}\n{WRONG}", attention(f"{code}\nreturn torch.zeros(2, 2)")):
        got, reasons, said = walled(nursery, SAMPLE, whole, seconds=2)
        assert got == 0 and len(reasons) == len(SAMPLE.tests()) and "found" not in said
    assert walled(nursery, SAMPLE)[0] == SAMPLE.points


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="looks into /proc")
def test_a_students_process_holds_no_hidden_check_and_no_solution(nursery):
    code = """
import re
from pathlib import Path
def search(words):
    with open("/proc/self/mem", "rb", 0) as mem:
        for line in Path("/proc/self/maps").read_text().splitlines():
            where, rights, *_ = line.split()
            if "rw" not in rights or "[v" in line: continue
            start, stop = (int(x, 16) for x in where.split("-"))
            mem.seek(start)
            try: data = mem.read(stop - start)
            except (OSError, MemoryError): continue
            for word in words:
                if re.search(word, data): print(word)
search([b"def searc[h]", b"weights of a random exampl[e]", b"score[.]max.dim=1"])
""" # what it looks for does not stand in it, but for the first, which it is known to hold
    _, _, said = walled(nursery, SAMPLE, code)
    assert set(said.splitlines()) == {"b'def searc[h]'"}


@tricks("honest")
def test_accidents_beside_a_right_answer_cost_nothing(code, says, nursery, monkeypatch):
    monkeypatch.setenv("MULTISCENE_GRADE_SEED", "3")
    start, before = time.monotonic(), set(os.listdir())
    got, reasons, _ = walled(nursery, SAMPLE, f"{SAMPLE.solution()['05a-solution-1']}\n{code}")
    assert got == SAMPLE.points, reasons
    assert time.monotonic() - start < 15, "nobody waits for what stays"
    assert set(os.listdir()) == before, "a file has stayed"
    children = Path(f"/proc/{nursery.process.pid}/task/{nursery.process.pid}/children")
    assert not children.exists() or children.read_text() == "", "a process has stayed"


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root can run code as another user")
def test_another_user_can_neither_read_solutions_nor_kill_the_grader(tmp_path):
    secret = tmp_path/"solution"
    secret.write_text("the solution")
    for path in (secret, *list(secret.parents)[:-2]): path.chmod(path.stat().st_mode & 0o700)
    code = f"""
def attempt(f, *args):
    try: f(*args)
    except PermissionError: print("refused")
import os
attempt(open, {str(secret)!r})
attempt(os.listdir, {str(tmp_path)!r})
attempt(os.kill, os.getppid(), 9)
attempt(os.kill, {os.getpid()}, 9 if os.getuid() else 0)
attempt(open, {str(ROOT/"exercises"/"check.py")!r}, "a")
open("mine", "w").write("here I may")"""
    with grade.Nursery(user=(65534, 65534)) as nursery:
        solution = SAMPLE.solution()["05a-solution-1"]
        assert walled(nursery, SAMPLE, solution + code) == (SAMPLE.points, [], "refused\n"*5)


def test_points_earned_before_a_loop_stay(nursery):
    code = OTHER.solution()["01a-solution-1"].split("def pairwise_bound(")[0]
    got, reasons, _ = walled(nursery, OTHER, f"{code}def pairwise_bound(x):\n    while True: pass", seconds=2)
    assert got == 2 and set(reasons) == {"stopped after 2 s"}


def test_a_solution_cannot_spoil_what_checks_use(nursery):
    "Its setup is a copy too."
    exercise = NAMES["05b_survives"]
    spoil = "\nrows_of.__code__ = (lambda mall: None).__code__\ntoy_mall = rows_of = pd = mall = check = None"
    assert walled(nursery, exercise, exercise.solution()["05b-solution-1"] + spoil)[0] == exercise.points


@pytest.mark.slow
@each
def test_an_object_that_says_yes_to_everything_has_no_points(exercise, nursery):
    names = re.findall(r"^def (\w+)", next(iter(exercise.solution().values())), re.MULTILINE)
    code = YES + "".join(f"def {name}(*a, **k): return Yes()\n" for name in names)
    assert walled(nursery, exercise, code)[0] == 0


def test_another_seed_other_hidden_checks(nursery):
    "Numbers learned by heart from one seed are worth nothing with another."
    code = SAMPLE.solution()["05a-solution-1"].replace("    ### BEGIN SOLUTION",
        "    print(query.sum().item())")
    said = [walled(nursery, SAMPLE, code, seed=seed)[2].split() for seed in (1, 2, 1)]
    assert said[0] == said[2] and len(set(said[0]) - set(said[1])) >= 2


def test_plain_values_arrive_as_they_are():
    from multiscene_rec import toy_mall
    mall = toy_mall(n_users=5, n_items=5, n_events=20)
    trip = lambda x: plain.unpack(mutants.through(plain.pack(x)))
    values = [None, True, -1, 1.5, float("inf"), "ä\ud800", [1, (2., "x")], {"a": [None], 3: 4},
              np.float16(.1), np.arange(6).reshape(2, 3).T, np.array([True, False]), np.zeros((0, 3)),
              torch.arange(6.).view(2, 3).T, torch.zeros(1).expand(0), torch.tensor(2.)]
    for x in values:
        y = trip(x)
        assert type(y) is type(x) and getattr(y, "dtype", 0) == getattr(x, "dtype", 0), x
        assert check._same(y, x), x
    assert trip(np.array(["a", None], dtype=object)) == ["a", None]
    assert trip(torch.ones(2, dtype=torch.bfloat16)).tolist() == trip(pd.Series([1., 1.])).tolist() == [1, 1]
    log, users = mall.events, mall.users.assign(x=[None, 1., 2, 3, 4])
    for frame in (log, log.iloc[[3, 1]], log.head(0), users):
        pd.testing.assert_frame_equal(trip(frame), frame)
    for x in (object(), {1, 2}, 1j, b"", mall, len, iter([]), np.zeros(1, dtype="datetime64[s]"), [mall]):
        with pytest.raises(TypeError, match="numbers, text, lists"): plain.pack(x)


# ---------------------------------------------------------------- a folder of submissions

def hand_in(folder, person, exercise, code=None):
    "A student's notebook, with code in the solution cell; its path."
    source = json.loads(exercise.path.read_text())
    for cell in source["cells"]:
        mark = cell["metadata"]["nbgrader"]
        if mark["solution"] and cell["cell_type"] == "code" and code is not None: cell["source"] = code
        if mark["grade"]: cell["source"] = "pass  # a student may write here what they like"
    place = folder/person/exercise.name
    place.mkdir(parents=True, exist_ok=True)
    (place/f"{exercise.name}.ipynb").write_text(json.dumps(source))
    return place/f"{exercise.name}.ipynb"


def graded(folder, nursery):
    "({(student, exercise): line of marks.csv}, what was said)."
    said = []
    lines = grade.grade_folder(folder, nursery, seed=1, say=lambda text: said.append(text.encode().decode()))
    return {(line["student"], line["exercise"]): line for line in lines}, said


def command_line(folder):
    "As make grade does it."
    command = [sys.executable, "-m", "tools.exercises", "grade", str(folder), "--seconds=5", "--seed=11"]
    env = notebooks.child_env()
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done


def stub(exercise): return next(iter(exercises.student_copy(exercise).solution().values()))


def test_a_folder_of_submissions(tmp_path):
    "Right, empty, wrong, looping, broken: the marks, on the screen and in a csv, as make grade makes them."
    marks = {}
    for exercise in (SAMPLE, OTHER):
        hand_in(tmp_path, "full", exercise)
        hand_in(tmp_path, "empty", exercise, stub(exercise))
        marks |= {("full", exercise.name): exercise.points, ("empty", exercise.name): 0}
        for i, (_, points, code) in enumerate(mutants.wrong_answers(exercise)[1][:3], 1):
            hand_in(tmp_path, f"wrong{i}", exercise, next(iter(code.values())))
            marks[f"wrong{i}", exercise.name] = points
    hand_in(tmp_path, "a-first-loop", SAMPLE, "while True: pass")
    hand_in(tmp_path, "broken", SAMPLE).write_text("{")
    (tmp_path/"full"/"06a_mend").mkdir()
    marks |= {("a-first-loop", SAMPLE.name): 0, ("broken", SAMPLE.name): 0, ("full", "06a_mend"): 0}
    done = command_line(tmp_path)
    with open(tmp_path/"marks.csv", newline="", encoding="utf-8") as f:
        rows = {(r["student"], r["exercise"]): r for r in csv.DictReader(f)}
    assert {at: float(r["points"]) for at, r in rows.items()} == marks
    reason = {person: r["reasons"] for (person, name), r in rows.items() if name == SAMPLE.name}
    assert reason["a-first-loop"] == "stopped after 5 s"
    assert (reason["empty"], reason["full"]) == ("no answer yet", "")
    assert "not a notebook" in reason["broken"] and rows["full", "06a_mend"]["reasons"] == "not handed in"
    shown = [line.split() for line in done.stdout.split("\n\n")[1].splitlines()]
    assert shown[0] == ["01a", "05a", "06a", "total"] and shown[-1] == ["out", "of", "6", "5", "5", "16"]
    first = {row[0]: row[1:] for row in shown[:-1]}
    assert first["full"] == ["6", "5", "0", "11"] and first["broken"] == [".", "0", ".", "0"]
    for i in (1, 2, 3):
        two = marks[f"wrong{i}", OTHER.name], marks[f"wrong{i}", SAMPLE.name]
        assert first[f"wrong{i}"] == [f"{two[0]:g}", f"{two[1]:g}", ".", f"{sum(two):g}"]
    assert first["average"][-1] == f"{sum(marks.values())/7:.1f}"
    assert f"{len(marks)} marks in {tmp_path/'marks.csv'}, seed 11" in done.stdout


def test_odd_names_do_not_stop_the_grading(tmp_path, nursery):
    "Names that are no text, that look alike, that are formulas or the name of the file itself."
    odd = os.fsdecode(b"zo\xeb-\x1b[2J")
    for name in (odd, "ada", "ada ", "ada (2)", "ada  b", "ada b", "=1+1", "x;=1+1", "marks.csv"):
        hand_in(tmp_path, name, SAMPLE)
    path = hand_in(tmp_path, "zoe", SAMPLE)
    path.rename(path.with_name(os.fsdecode(b"05a (1)\xeb.ipynb")))
    (tmp_path/"notes.txt").write_text("not a student")
    rows, said = graded(tmp_path, nursery)
    reason = f"not handed in under the name {SAMPLE.name}.ipynb; there is 05a (1)?.ipynb"
    assert rows["zoe", SAMPLE.name]["reasons"] == reason
    full = {name for (name, _), line in rows.items() if line["points"] == SAMPLE.points}
    assert full == {"zo\ufffd-?[2J", "ada", "ada (2)", "ada (2) (2)", "ada b", "ada b (2)", "'=1+1",
                    "x;'=1+1", "marks.csv"}
    assert len((tmp_path/"marks-2.csv").read_text(encoding="utf-8").splitlines()) == 11
    assert "marks-2.csv" in said[-1]


def test_no_reason_is_a_formula_and_none_moves_the_terminal(tmp_path, nursery):
    texts = {"=HYPERLINK(1)": "'=HYPERLINK(1)", "a;=1+1": "a;'=1+1", "a; @x": "a; '@x",
             "-1\x1b[2J\ud800": "'-1?[2J?", "\t+1\nb": "'+1 b", "\uff1d1": "'\uff1d1"}
    for i, text in enumerate(texts):
        hand_in(tmp_path, str(i), SAMPLE, f"class Wrong(Exception): pass\nraise Wrong({text!r})")
    rows, _ = graded(tmp_path, nursery)
    assert [rows[str(i), SAMPLE.name]["reasons"] for i in range(len(texts))] == list(texts.values())


def test_submissions_are_read_before_any_of_them_runs(tmp_path, nursery):
    "The first to be graded removes the work of another one and writes its own marks: in vain."
    hand_in(tmp_path, "ada", SAMPLE, f"""
import shutil
shutil.rmtree({str(tmp_path/"bob")!r})
open({str(tmp_path/"marks.csv")!r}, "w").write("9")
1/0""")
    hand_in(tmp_path, "bob", SAMPLE)
    graded(tmp_path, nursery)
    with open(tmp_path/"marks.csv", newline="", encoding="utf-8") as f:
        marks = {r["student"]: float(r["points"]) for r in csv.DictReader(f)}
    assert marks == {"ada": 0, "bob": SAMPLE.points}


def test_no_process_stays_to_change_the_marks(tmp_path):
    "One leaves its session and its parent; another kills the process that watches over it before."
    marks = tmp_path/"marks.csv"
    for name in ("ada", "eve"): hand_in(tmp_path, name, SAMPLE, f"""
import os, time
parent = os.getppid()
if not os.fork():
    os.setsid()
    if os.fork(): os._exit(0)
    if {name == "eve"}: os.kill(parent, 9)
    end = time.time() + 20
    while not os.path.exists({str(marks)!r}) and time.time() < end: time.sleep(.01)
    time.sleep(.2)
    open({str(marks)!r}, "w").write("ada,100")
    os._exit(0)
time.sleep(.5)
1/0""")
    hand_in(tmp_path, "bob", SAMPLE)
    done = command_line(tmp_path)
    time.sleep(1)
    assert marks.read_text().count("\n") == 4 and "100" not in marks.read_text(), done.stdout


def test_links_are_refused(tmp_path, nursery):
    "A link to the official solution, to a classmate's notebook or folder, to a whole folder of a student."
    hand_in(tmp_path/"in", "ada", SAMPLE)
    for name in ("file", "folder"): (tmp_path/"in"/name).mkdir()
    (tmp_path/"in"/"file"/SAMPLE.name).mkdir()
    (tmp_path/"in"/"file"/SAMPLE.name/SAMPLE.path.name).symlink_to(SAMPLE.path)
    (tmp_path/"in"/"folder"/SAMPLE.name).symlink_to(tmp_path/"in"/"ada"/SAMPLE.name)
    (tmp_path/"in"/"student").symlink_to(tmp_path/"in"/"ada")
    (tmp_path/"in"/"sources").symlink_to(exercises.SOURCE)
    (tmp_path/"in"/"marks.csv").symlink_to(tmp_path/"mine")
    (tmp_path/"mine").write_text("mine")
    rows, said = graded(tmp_path/"in", nursery)
    marks = {who: line["points"] for (who, _), line in rows.items()}
    assert marks == {"ada": SAMPLE.points, "file": 0, "folder": 0}
    for who in ("file", "folder"):
        assert rows[who, SAMPLE.name]["reasons"] == "it is a link: hand in the notebook itself"
    assert {line.split()[2] for line in said if line.startswith("NOT GRADED")} == {"sources", "student"}
    assert (tmp_path/"mine").read_text() == "mine" and not (tmp_path/"in"/"marks.csv").is_symlink()


def test_what_lies_astray_is_named(tmp_path, nursery):
    "A notebook one level too high, or under another name, is named; a very deep folder is no trouble."
    good = hand_in(tmp_path, "ada", SAMPLE).read_text()
    astray = ["deep/x/05a_distance/05a_distance.ipynb", "flat/05a_distance.ipynb",
              "named/05_fusion/05a_distance.ipynb"]
    for name in astray:
        (tmp_path/name).parent.mkdir(parents=True)
        (tmp_path/name).write_text(good)
    (tmp_path/"well").mkdir()
    here = os.open(tmp_path/"well", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    rows, said = graded(tmp_path, nursery)
    assert [line.split()[2] for line in said if line.startswith("NOT GRADED")] == astray and len(rows) == 1
    subprocess.run(["rm", "-rf", str(tmp_path/"well")], check=True)


def test_a_cell_is_known_by_its_id(tmp_path):
    "Flags changed, another kind of cell, split in two, copied before or after it was filled: it is found."
    path = hand_in(tmp_path, "ada", SAMPLE)
    good = json.loads(path.read_text())
    cells = good["cells"]
    at = next(i for i, c in enumerate(cells) if c["metadata"]["nbgrader"]["grade_id"] == "05a-solution-1")
    cell, mark = cells[at], cells[at]["metadata"]["nbgrader"]
    lines = "".join(cell["source"]).splitlines(keepends=True)
    empty = dict(cell, source=stub(SAMPLE))
    helper = dict(cell, source="def gap(q, k): return ((q[:, None] - k)**2).sum(2)\n")
    calls = "".join(lines).replace("((query[:, None, :] - keys)**2).sum(dim=2)", "gap(query, keys)")
    dead = dict(cell, source=calls + "\n    # YOUR CODE HERE\n    raise NotImplementedError()")
    flags = dict(mark, solution=False, grade=True, locked=True, points=99)
    kinds = {
        "flags": [dict(cell, metadata={"nbgrader": flags})],
        "kind": [dict(cell, cell_type="raw")],
        "split": [dict(cell, source=lines[:7]), dict(cell, source="".join(lines[7:]))],
        "split, with a dead line": [helper, dead],
        "copied before": [empty, cell], "copied after": [cell, empty], "copied twice": [cell, cell],
    }
    for what, now in kinds.items():
        text = json.dumps(dict(good, cells=cells[:at] + now + cells[at + 1:]))
        path.write_text("\ufeff"*(what == "flags") + text, encoding="utf-8")
        solution = grade.read_solution(SAMPLE, path, tmp_path)
        assert mutants.marks(SAMPLE, solution) == SAMPLE.points, what
    path.write_text(json.dumps(dict(good, cells=cells[:at] + [empty, empty] + cells[at + 1:])))
    found = mutants.wrong(SAMPLE, grade.read_solution(SAMPLE, path, tmp_path))
    assert set(found.values()) == {"no answer yet"}


def test_notebooks_that_are_none_are_refused(tmp_path):
    path = hand_in(tmp_path, "ada", SAMPLE)
    good = json.loads(path.read_text())
    kept = [c for c in good["cells"] if c["metadata"]["nbgrader"]["grade_id"] != "05a-solution-1"]
    bare = [dict(c, metadata={}) for c in good["cells"]]
    gone, none = "is missing", "not a notebook"
    odd = [dict(c, metadata={"nbgrader": {"grade_id": []}}) for c in good["cells"]]
    cells = ((kept, gone), (bare, gone), (odd, none))
    whole = {json.dumps(dict(good, cells=cells)): says for cells, says in cells}
    whole |= dict.fromkeys(("[]", "", '{"cells": 3}', '{"cells": [1]}', "["*10**5, "\ud800", "9"*5000), none)
    for text, says in whole.items():
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(grade.Refused, match=says): grade.read_solution(SAMPLE, path, tmp_path)
    path.write_text(json.dumps(dict(good, cells=good["cells"] + good["cells"])))
    assert mutants.marks(SAMPLE, grade.read_solution(SAMPLE, path, tmp_path)) == SAMPLE.points
    path.unlink()
    for make, says in ((lambda: None, "not handed in"), (lambda: os.mkfifo(path), "not a file")):
        make()
        with pytest.raises(grade.Refused, match=says): grade.read_solution(SAMPLE, path, tmp_path)


def test_an_empty_folder_is_explained(tmp_path, nursery):
    rows, said = graded(tmp_path, nursery)
    assert rows == {} and "STUDENT/EXERCISE/EXERCISE.ipynb" in said[0]


def test_a_seed_that_is_no_number_is_refused_in_words(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTISCENE_GRADE_SEED", "abc")
    monkeypatch.setattr(sys, "argv", ["exercises", "grade", str(tmp_path)])
    with pytest.raises(SystemExit, match="MULTISCENE_GRADE_SEED should be a whole number, not 'abc'"):
        exercises.main()


# ---------------------------------------------------------------- the checks' own words

def says(call, *args, **more):
    "What a check says; nothing where it has nothing to say."
    try: call(*args, **more)
    except check.Wrong as e: return str(e)
    return ""


@pytest.mark.filterwarnings("error")
def test_close_answers_in_words():
    inf, nan = float("inf"), float("nan")
    close = lambda found, wanted, what="x", **more: says(check.close, found, wanted, what, **more)
    number = lambda kind: f"x should be real numbers, got {kind}."
    assert close([1., inf, -inf], [1., inf, -inf]) == close(nan, nan, nan=True) == close([True], [1]) == ""
    assert close(torch.ones(1, requires_grad=True), [1]) == ""
    assert close([1., -inf], [1., inf]) == "x at position (1,) should be inf, got -inf."
    assert close([1., inf], [1., 2.]) == "x at position (1,) should be 2, got inf."
    assert close([1., nan], [1., 2.]) == "x at position (1,) should be 2, got nan."
    assert close(nan, nan) == "x should be nan, got nan."
    assert close([nan, 1.], [1., nan], nan=True).startswith("x at position (0,) should be 1, got nan")
    assert close(.5 + 1e-9, .5, tol=0) == "x should be 0.5, got 0.50000000099999997."
    shape = close(torch.ones(2, 3), np.ones((3, 2)), "the weights", hint="Rows first.")
    assert shape == "the weights should have shape (3, 2), got (2, 3). Rows first."
    assert "does the function return" in close(None, 1) and "is missing" in close(..., 1)
    assert close("many", 1) == close("1", 1) == number("text")
    assert close([[1], [1, 2]], 1) == number("a list of something else, or of rows of different lengths")
    assert close(1j, 1) == number("complex ones")
    assert close(lambda: 1, 1) == number("something of type function")


@pytest.mark.filterwarnings("error")
def test_equal_answers_in_words():
    nan, many = float("nan"), np.arange(40).reshape(4, 10)
    equal = lambda found, wanted, what="x", **more: says(check.equal, found, wanted, what, **more)
    half = np.dtype("float16")
    for found, wanted in ((np.arange(3), np.arange(3)), (["a", nan], ("a", nan)), (torch.ones(2).shape, (2,)),
                          (pd.Series([1, 2]), [1, 2]), ({"a": np.ones(2)}, {"a": [1, 1]}), (np.True_, True),
                          (half, np.dtype("float16"))):
        assert equal(found, wanted) == ""
    assert equal(np.float32, np.float64) and equal([*range(19), "x"], range(20))
    places = equal(torch.tensor([1, 2, 4]), [1, 2, 3], "the places")
    assert places == "the places should be [1, 2, 3], got [1, 2, 4]."
    assert equal(many + (many % 10 == 3), many, "the table", hint="Rows first.") == (
        "the table: 4 of 40 entries are wrong: at (0, 3) 3 is wanted, got 4; at (1, 3) 13 is wanted, got 14; "
        "at (2, 3) 23 is wanted, got 24; and 1 more. Rows first.")
    assert equal([*range(19), 7], [*range(20)]) == "x: 1 of 20 entries is wrong: at 19 19 is wanted, got 7."
    assert equal(many, many.T) == "x should have shape (10, 4), got (4, 10)."
    assert equal(None, [1]) == "x should be [1], got None."
    long = equal(list(range(1000)), [1])
    assert long.startswith("x should have 1 entry, got 1000: wanted [1], got [0, 1, 2, ") and len(long) < 260
    assert long.endswith("… (1000 entries).")


def test_other_checks_answer_in_words(monkeypatch):
    refuses = lambda call, kinds=ValueError: says(check.refuses, call, kinds, "k.")
    assert refuses(lambda: 1) == "k. Nothing was raised."
    assert refuses(lambda: 1/0) == "k. It raised ZeroDivisionError instead: division by zero"
    assert refuses(lambda: int("x"), (TypeError, ValueError)) == ""
    assert says(check.true, torch.tensor(False), "it is not so") == "it is not so"
    assert says(check.unchanged, False, "work on a copy") == "work on a copy"
    assert says(check.unchanged, True, "work on a copy") == ""
    monkeypatch.setattr(check, "_changed", True)
    assert says(check.unchanged, True, "work on a copy") == "work on a copy"
    assert check.several([1, 2], "a, b") == (1, 2) and len(check.several(np.ones(2), "a, b")) == 2
    three = says(check.several, (1, 2, 3), "W, b, x, a")
    assert three == "the function should return four values, W, b, x, a; got three"
    assert says(check.several, torch.ones(2, 2), "a, b").endswith("got one tensor")
    assert "does the function return its results?" in says(check.several, None, "a, b")
