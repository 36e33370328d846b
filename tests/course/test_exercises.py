"The graders are graded: right answers get all marks, wrong ones lose what they should, tricks gain nothing."
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import mutants
import pytest

from tools import exercises, grade, notebooks, plain, student

ROOT = notebooks.ROOT
EXERCISES = exercises.sources()
NAMES = {e.name: e for e in EXERCISES}
each = pytest.mark.parametrize("exercise", EXERCISES, ids=[e.name for e in EXERCISES])
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="grading forks: use Linux, macOS or WSL")
SAMPLE, OTHER = NAMES["05a_distance"], NAMES["01a_halves"]


@pytest.fixture(autouse=True, scope="module")
def _course():
    if str(exercises.FOLDER) not in sys.path: sys.path.insert(0, str(exercises.FOLDER))
    student.load_course()


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
    wrong, _ = mutants.wrong_answers(e)
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
def test_the_solution_has_full_marks_for_other_seeds(exercise):
    for seed in (0, 1, 77): assert mutants.wrong(exercise, seed=seed) == dict.fromkeys(exercise.tests(), "")


@each
def test_the_untouched_copy_has_none(exercise):
    wrong = mutants.wrong(exercise, exercises.student_copy(exercise).solution())
    assert grade.points(exercise, wrong) == 0 and "no answer yet" in wrong.values()


@each
@pytest.mark.parametrize("first", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["three", "rest"])
def test_wrong_answers_lose_what_they_should(exercise, first):
    asked = mutants.wrong_answers(exercise)[0]
    asked = asked[:3] if first else asked[3:]
    found = {why: mutants.marks(exercise, code) for why, _, code in asked}
    assert found == {why: wanted for why, wanted, _ in asked}
    assert all(marks < exercise.points for marks in found.values())


@pytest.mark.parametrize("exercise", [e if e in (SAMPLE, OTHER) else pytest.param(e, marks=pytest.mark.slow)
                                      for e in EXERCISES], ids=list(NAMES))
def test_mutants_are_killed(exercise, record_property):
    number, survivors = mutants.survivors(exercise)
    equivalent = mutants.wrong_answers(exercise)[1]
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
    build = lambda: exercises.build([SAMPLE.name, OTHER.name], said.append, folder)
    build()
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
    "One student with the solutions, one with an untouched copy: through nbgrader's own kernels and gradebook."
    from nbgrader.api import Gradebook
    folder = course(tmp_path, name)
    exercises.build([name], lambda text: None, folder)
    for person, place in (("ada", folder/"source"), ("bob", folder/"release")):
        shutil.copytree(place/name, folder/"submitted"/person/name)
        shutil.copy(exercises.FOLDER/"check.py", folder/"submitted"/person/name)
    env = notebooks.child_env(PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    done = subprocess.run([sys.executable, "-m", "nbgrader", "autograde", name, "--create"], cwd=folder,
                          env=env,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    with Gradebook(f"sqlite:///{folder/'gradebook.db'}") as book:
        scores = {s: book.find_submission(name, s).score for s in ("ada", "bob")}
    assert scores == {"ada": NAMES[name].points, "bob": 0}


# ---------------------------------------------------------------- code that nobody trusts

STAYS = "[sys.executable, '-c', 'import time; time.sleep(60)']"
BAD = { # code that is run at once: what the reasons say
    "a loop": ("while True: pass", "stopped after 1 s"),
    "a flood": ("while True: print('x'*100_000)", "it printed more than"),
    "a hog": ("hoard = bytearray(10**11)", "it asked for too much memory"),
    "a hog of tensors": ("import torch; hoard = torch.zeros(10**11)", "it asked for too much memory"),
    "a file without end": ("with open('endless', 'wb') as f: f.truncate(10**12)", "OSError"),
    "a stopped process": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "stopped after 1 s"),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", "it ended the program"),
    "an error without words": ("class E(Exception):\n    def __str__(self): return 1/0\nraise E",
                               "E: an error that cannot be shown"),
    "half a character": ("x = '\ud800'", "UnicodeEncodeError"),
    "a nul": ("x = 1\0", "null bytes"),
    "a missing name": ("del distance_attention", "NameError: name 'distance_attention' is not defined"),
    "an exit": ("import os; os._exit(0)", "it ended the program"),
    "a polite exit": ("raise SystemExit", "it ended the program"),
    "exit()": ("exit()", "it ended the program"),
    "a kill": ("import os; os.kill(os.getpid(), 9)", "it ended the program"),
    "an error": ("1/0", "ZeroDivisionError: division by zero"),
    "an error of its own": ("class Odd(UnicodeDecodeError): pass\nraise Odd('u', b'', 0, 1, 'x')", "Odd: "),
    "no code at all": ("", "NameError"),
    "no Python": ("def (", "SyntaxError"),
    "a command to Jupyter": ("x = 1\n%timeit x", "line 2 is a command to Jupyter, '%timeit x'"),
    "a shell": ("!ls", "line 1 is a command to Jupyter"),
    "a deep well": ("def f(): return f()\nf()", "RecursionError"),
    "a deeper one": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): return eval('f()')\nf()", ""),
    "a question": ("name = input()", "it waited for input"),
    "an interrupt": ("raise KeyboardInterrupt", "stopped: it was interrupted"),
    "a closed standard output": ("import sys; sys.stdout.close(); sys.stderr.close(); print(1)",
                                 "ValueError"),
    "a child that stays": (f"import subprocess, sys\nsubprocess.Popen({STAYS})\n1/0", "ZeroDivisionError"),
    "a thread that stays": ("import threading, time\nthreading.Thread(target=time.sleep, "
                            "args=(60,)).start()\n1/0",
                            "ZeroDivisionError"),
    "files in the way": ("import os, tempfile\nos.chdir(tempfile.mkdtemp())\nos.environ.clear()\n1/0",
                         "ZeroDivision"),
    "the end of the nursery": ("import os\nos.kill(os.getppid(), 9)\nwhile True: pass", ""),
    "a nursery that waits": ("import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nos._exit(0)", ""),
}
PIPE = """
import os, socket, stat
pipe = next(fd for fd in range(3, 64) if os.path.exists(f"/dev/fd/{fd}") and stat.S_ISSOCK(os.fstat(fd).st_mode))
pipe = socket.socket(fileno=os.dup(pipe))
send = lambda data: pipe.sendall(len(data).to_bytes(4, "big") + data)
"""
FORGED = ['[1, 2]', '{"a": 1}', '{"05a-test-1": ["5", ""]}', 'null', '[5]', '5', 'NaN', '"gave"', '',
          '[' * 10**5,
          '["gave"]', '["gave", ["tensor", "float32", [2], "AAAA"], []]', '["raised", [5], "x"]',
          '["raised", [], ""]',
          '["gave", ["tensor", "object", [1], "AAAAAAAAAAA="], []]',
          '["gave", ["array", "float64", [-1], ""], 0]',
          '["gave", ["array", "float64", [1000000000000, 0], ""], 0]',
          '["gave", ["array", "bool", [1], "Ag=="], 0]',
          '["gave", ["model", "os", "system", 1, 2, 3, 4], 0]', '["gave", ["data", "os", "system", []], 0]',
          '["gave", ["call", 0, "x"], 0]', '["ask", 0, ["list", []], ["dict", []]]', '["ask", -1]',
          '["raised", ["a\\u0000"], ""]']


@pytest.mark.parametrize("what", BAD)
def test_bad_code_is_a_zero_with_a_reason(what, nursery):
    code, says = BAD[what]
    got, reasons, said = walled(nursery, SAMPLE, code, seconds=1)
    assert got == 0 and reasons and all(says in reason for reason in reasons), reasons
    assert len(said) <= 10_000
    assert walled(nursery, SAMPLE)[0] == SAMPLE.points, "the next one is graded"


@pytest.mark.parametrize("frame", FORGED, ids=range(len(FORGED)))
def test_a_forged_answer_is_a_zero(frame, nursery):
    "Sent before the grader asks, over the pipe that the student's process answers by."
    got, reasons, _ = walled(nursery, SAMPLE, f"{PIPE}send({frame.encode()!r})\n{WRONG}", seconds=5)
    assert got == 0 and reasons


@pytest.mark.parametrize("what, code", {
    "garbage": f"{PIPE}pipe.sendall(os.urandom(10**6))",
    "a frame without end": f"{PIPE}pipe.sendall(b'\\xff\\xff\\xff\\xff' + bytes(10**6))",
    "half a frame": f"{PIPE}pipe.sendall((1000).to_bytes(4, 'big') + b'[')\nos._exit(0)",
    "printed into it": f"{PIPE}print('[\"gave\", 1, false]'*100, file=os.fdopen(pipe.fileno(), 'w'))",
    "closed": f"{PIPE}pipe.shutdown(socket.SHUT_RDWR)\nwhile True: pass",
    "answered twice": f"{PIPE}send(b'[\"gave\", null, false]'); send(b'[\"gave\", 0.0, false]')",
    "a thread that answers first": f"""{PIPE}
import threading
def answers():
    while True: send(b'["gave", ["tensor", "float32", [1, 2], "AAAAAAAAgD8="], false]')
threading.Thread(target=answers).start()""",
}.items(), ids=lambda x: x if " " in x or len(x) < 9 else "")
def test_meddling_with_the_pipe_gains_nothing(what, code, nursery):
    assert walled(nursery, SAMPLE, f"{code}\n{WRONG}", seconds=3)[0] == 0
    assert walled(nursery, SAMPLE)[0] == SAMPLE.points


WRONG = "import torch\ndef distance_attention(query, keys, present, tau): return torch.zeros(2, 2)"
YES = """
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
LIES = { # a body of a function: what it gives back
    "an object that says yes": "return Yes()",
    "a list of them": "return [Yes(), Yes()]",
    "a tensor of its own kind": "return torch.zeros(1, 2).as_subclass(type('T', (torch.Tensor,), "
                                "{'__eq__': lambda *a: True, 'sum': lambda *a: torch.ones(())}))",
    "a float of its own kind": "return type('F', (float,), {'__eq__': lambda *a: True, '__sub__': lambda *a: "
                               "0.})(1)",
    "its argument": "return query",
    "its argument, changed": "return present.fill_(1).float().div_(present.shape[1])",
    "all it was given, changed": "keys.zero_(); query.zero_(); present.zero_(); return "
                                 "torch.zeros(present.shape)",
    "not a number": "return torch.full(present.shape, float('nan'))",
    "an error of the grader's": "raise type('Wrong', (AssertionError,), {})('')",
    "an end of a loop": "raise StopIteration",
    "a late end": "import os; os._exit(0)",
    "a loop": "while True: pass",
    "a flood": "while True: print('x'*10**5)",
    "too many numbers": "return torch.zeros(10**7)",
    "a long list of nothing": "return torch.zeros(10**9, 0)",
    "a very long number": "return 10**10_000",
    "itself": "x = []; x.append(x); return x",
    "a frame with a trap": "import pandas as pd; return pd.DataFrame({'x': [Yes()]})",
}


@pytest.mark.parametrize("what", LIES)
def test_a_lie_gains_nothing(what, nursery):
    code = f"import torch\n{YES}\ndef distance_attention(query, keys, present, tau):\n    {LIES[what]}\n"
    got, reasons, _ = walled(nursery, SAMPLE, code, seconds=2)
    assert got == 0 and len(reasons) == len(SAMPLE.tests())
    assert walled(nursery, SAMPLE)[0] == SAMPLE.points


TRICKS = { # before a wrong answer, in the student's process; full marks or more in a grader of one process
    "json": "import json; json.dumps = lambda *a, **k: '[\"gave\", [\"tensor\", \"bool\", [1], \"AQ==\"], "
            "false]'",
    "json of marks": "import json; json.dumps = lambda *a, **k: '{\"05a-test-1\": [999, \"\"]}'",
    "main": "import __main__; __main__._run = lambda *a, **k: None",
    "numpy's inside": "import numpy._core.fromnumeric as f; f._wrapreduction = lambda *a, **k: 0.",
    "os.write": "import os; write = os.write; os.write = lambda fd, data: write(fd, data.replace(b'false', "
                "b'true'))",
    "sockets": "import socket; socket.socket.sendall = lambda *a: None",
    "the course's tools": "import tools.plain as p; p.pack = lambda *a, **k: True; p.framed = lambda m: "
                          "b'\\0\\0\\0\\1[]'",
    "comparisons": "import torch, numpy as np\ntorch.allclose = torch.equal = np.allclose = lambda *a, **k: "
                   "True\n"
                   "np.asarray = lambda *a, **k: 0.\nnp.abs = np.max = np.where = lambda *a, **k: 0.",
    "checks": "import check\ncheck.close = check.true = check.equal = check.several = lambda *a, **k: None\n"
              "check.Wrong = type('Never', (Exception,), {})\ncheck.close.__code__ = (lambda *a, **k: "
              "None).__code__",
    "a module of checks": "import sys, types\nsys.modules['check'] = sys.modules['torch'] = "
                          "types.ModuleType('check')",
    "built-ins": "import builtins\nbuiltins.bool = builtins.isinstance = builtins.all = lambda *a: True\n"
                 "builtins.abs = lambda x: 0",
    "tensors": "import torch\ntorch.Tensor.sum = torch.Tensor.any = lambda *a, **k: torch.tensor(1.)\n"
               "torch.Tensor.__eq__ = lambda *a: True",
    "imports": "import sys; sys.meta_path.insert(0, None); sys.path.clear()",
    "frames": "import sys\nf = sys._getframe()\nwhile f:\n    for v in list(f.f_locals.values()):\n"
              "        if type(v).__name__ == 'Exercise': solution = v.solution(); exec(*solution.values())\n"
              "    f = f.f_back",
    "gc": "import gc\nfor o in gc.get_objects():\n    if type(o).__name__ in ('Exercise', 'Cell'): "
          "print('found', o)",
    "a profiler": "import sys\ndef p(frame, event, arg):\n    if 'wanted' in frame.f_locals: "
                  "frame.f_locals['wanted'] = 0\n"
                  "sys.setprofile(p)",
    "a tracer": "import sys\nsys.settrace(lambda frame, event, arg: None)",
    "a signal": "import signal\nsignal.signal(signal.SIGALRM, lambda *a: None); "
                "signal.setitimer(signal.ITIMER_REAL, .01, .01)",
    "atexit": "import atexit, os; atexit.register(lambda: os.write(3, b'full marks'))",
    "a thread": "import threading, time, sys\ndef run():\n    while True:\n        for f in "
                "sys._current_frames().values():\n"
                "            if 'found' in f.f_locals: f.f_locals['found'] = 0\n        time.sleep(.001)\n"
                "threading.Thread(target=run, daemon=True).start()",
}


@pytest.mark.parametrize("what", TRICKS)
def test_tricks_gain_nothing(what, nursery):
    got, reasons, said = walled(nursery, SAMPLE, f"{TRICKS[what]}\n{WRONG}", seconds=5)
    assert got == 0 and len(reasons) == len(SAMPLE.tests()) and "found" not in said


def test_a_late_trick_gains_nothing(nursery):
    "The same, but only when a check calls."
    for what in ("json", "comparisons", "checks", "built-ins", "tensors"):
        lines = "".join(f"    {line}\n" for line in TRICKS[what].splitlines())
        code = f"import torch\ndef distance_attention(query, keys, present, tau):\n{lines}    return torch.zeros(2, 2)"
        assert walled(nursery, SAMPLE, code)[0] == 0


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


HONEST = { # what may stand beside a right answer
    "deleted names": "del check, torch\nimport torch",
    "no seed to be seen": "import os\nif 'MULTISCENE_GRADE_SEED' in os.environ or __import__('check')._seed: "
                          "1/0",
    "files left behind": "from pathlib import Path\nPath('marks.csv').write_text('mine'); "
                         "Path('numpy.py').write_text('1/0')",
    "a window": "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()",
    "a thread that stays": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
    "a child that stays": f"import subprocess, sys\nsubprocess.Popen({STAYS}, start_new_session=True)",
    "a fork that stays": "import os, time\nif not os.fork(): os.setsid(), time.sleep(60)",
    "much printed": "print('x'*900_000)",
    "warnings": "import warnings\nwarnings.warn('so what')\nimport numpy as np\nnp.log(0)",
    "a closed output": "import os\nos.close(1), os.close(2)",
    "names of the grader's": "exercise = space = judge = answer = cell = None",
    "other checks": TRICKS["checks"],
}


@pytest.mark.parametrize("what", HONEST)
def test_accidents_beside_a_right_answer_cost_nothing(what, nursery, monkeypatch):
    monkeypatch.setenv("MULTISCENE_GRADE_SEED", "3")
    start, before = time.monotonic(), set(os.listdir())
    got, reasons, _ = walled(nursery, SAMPLE, f"{SAMPLE.solution()['05a-solution-1']}\n{HONEST[what]}")
    assert got == SAMPLE.points, reasons
    assert time.monotonic() - start < 15 and set(os.listdir()) == before, "nobody waits for what stays; no file stays"
    if Path("/proc/self/task").exists():
        children = Path(f"/proc/{nursery.process.pid}/task/{nursery.process.pid}/children")
        assert children.read_text() == "", "a process has stayed"


def test_points_earned_before_a_loop_stay(nursery):
    code = OTHER.solution()["01a-solution-1"].replace("def pairwise_bound(",
        "def pairwise_bound(x):\n    while x: pass\n\ndef _(")
    got, reasons, _ = walled(nursery, OTHER, code.replace("while x", "while 1"), seconds=2)
    assert got == 2 and set(reasons) == {"stopped after 2 s"}


def test_a_solution_cannot_spoil_what_checks_use(nursery):
    "Its setup is a copy too."
    exercise = NAMES["05b_survives"]
    spoil = "\nrows_of.__code__ = (lambda mall: None).__code__\ntoy_mall = history_sums = rows_of = pd = mall = check = None"
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
    import numpy as np
    import pandas as pd
    import torch

    import check
    from multiscene_rec import toy_mall
    mall = toy_mall(n_users=5, n_items=5, n_events=20)
    trip = lambda x: plain.unpack(mutants.through(plain.pack(x)))
    values = [None, True, -1, 1.5, float("inf"), "ä\ud800", [1, (2., "x")], {"a": [None], 3: 4}, b"\0\xff",
              np.float16(.1),
              np.arange(6).reshape(2, 3).T, np.array([True, False]), np.zeros((0, 3), dtype="float32"),
              torch.arange(6.).view(2, 3).T, torch.zeros(1).expand(0),
              np.array(["a", None], dtype=object), torch.tensor(2.)]
    for x in values:
        y = trip(x)
        assert type(y) is type(x) and check._same(y, x) and getattr(y, "dtype", 0) == getattr(x, "dtype",
            0), x
    assert torch.equal(trip(torch.ones(2, dtype=torch.bfloat16)), torch.ones(2, dtype=torch.bfloat16))
    for frame in (mall.events, mall.events.iloc[[3, 1]], mall.users.assign(x=[None, 1., 2, 3, 4]),
                  mall.events.head(0)):
        pd.testing.assert_frame_equal(trip(frame), frame)
    pd.testing.assert_series_equal(trip(mall.events.scenario[::-1]), mall.events.scenario[::-1])
    for x in (object(), {1, 2}, 1j, mall, len, iter([]), np.zeros(1, dtype="datetime64[s]"), [mall]):
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
    lines = grade.grade_folder(folder, seed=1, say=lambda text: said.append(text.encode().decode()),
                               nursery=nursery)
    return {(line["student"], line["exercise"]): line for line in lines}, said


def stub(exercise): return next(iter(exercises.student_copy(exercise).solution().values()))


def test_a_folder_of_submissions(tmp_path):
    "Right, empty, wrong, looping, broken: the marks, on the screen and in a csv, as make grade makes them."
    marks = {}
    for exercise in (SAMPLE, OTHER):
        hand_in(tmp_path, "full", exercise)
        hand_in(tmp_path, "empty", exercise, stub(exercise))
        marks |= {("full", exercise.name): exercise.points, ("empty", exercise.name): 0}
        for i, (_, points, code) in enumerate(mutants.wrong_answers(exercise)[0][:3], 1):
            hand_in(tmp_path, f"wrong{i}", exercise, next(iter(code.values())))
            marks[f"wrong{i}", exercise.name] = points
    hand_in(tmp_path, "a-first-loop", SAMPLE, "while True: pass")
    hand_in(tmp_path, "broken", SAMPLE).write_text("{")
    (tmp_path/"full"/"06a_mend").mkdir()
    marks |= {("a-first-loop", SAMPLE.name): 0, ("broken", SAMPLE.name): 0, ("full", "06a_mend"): 0}
    command = [sys.executable, "-m", "tools.exercises", "grade", str(tmp_path), "--seconds", "5", "--seed",
               "11"]
    done = subprocess.run(command, cwd=ROOT, env=notebooks.child_env(), capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0 and done.stderr == ""
    with open(tmp_path/"marks.csv", newline="", encoding="utf-8") as f:
        rows = {(r["student"], r["exercise"]): r for r in csv.DictReader(f)}
    assert {at: float(r["points"]) for at, r in rows.items()} == marks
    reason = {person: r["reasons"] for (person, name), r in rows.items() if name == SAMPLE.name}
    assert reason["a-first-loop"] == "stopped after 5 s" and reason["empty"] == "no answer yet" and not reason["full"]
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
    for name in (os.fsdecode(b"zo\xeb-\x1b[2J"), "ada", "ada ", "ada (2)", "ada  b", "ada b", "=1+1",
                 "x;=1+1", "marks.csv"):
        hand_in(tmp_path, name, SAMPLE)
    path = hand_in(tmp_path, "zoe", SAMPLE)
    path.rename(path.with_name(os.fsdecode(b"05a (1)\xeb.ipynb")))
    (tmp_path/"notes.txt").write_text("not a student")
    rows, said = graded(tmp_path, nursery)
    assert rows["zoe",
                SAMPLE.name]["reasons"] == f"not handed in under the name {SAMPLE.name}.ipynb; there is 05a (1)?.ipynb"
    full = {name for (name, _), line in rows.items() if line["points"] == SAMPLE.points}
    assert full == {"zo\ufffd-?[2J", "ada", "ada (2)", "ada (2) (2)", "ada b", "ada b (2)", "'=1+1",
                    "x;'=1+1", "marks.csv"}
    assert len((tmp_path/"marks-2.csv").read_text(encoding="utf-8").splitlines()) == 11 and "marks-2.csv" in said[-1]


def test_no_reason_is_a_formula_and_none_moves_the_terminal(tmp_path, nursery):
    texts = {"=HYPERLINK(1)": "'=HYPERLINK(1)", "a;=1+1": "a;'=1+1", "a; @x": "a; '@x",
             "-1\x1b[2J\ud800": "'-1?[2J?",
             "\t+1\nb": "'+1 b", "\uff1d1": "'\uff1d1"}
    for i, text in enumerate(texts):
        hand_in(tmp_path, str(i), SAMPLE, f"class Wrong(Exception): pass\nraise Wrong({text!r})")
    rows, _ = graded(tmp_path, nursery)
    assert [rows[str(i), SAMPLE.name]["reasons"] for i in range(len(texts))] == list(texts.values())


def test_submissions_are_read_before_any_of_them_runs(tmp_path, nursery):
    "The first to be graded removes the work of another one and writes its own marks: both have what they should."
    spoil = f"import shutil\nshutil.rmtree({str(tmp_path/'bob')!r})\nopen({str(tmp_path/'marks.csv')!r}, 'w').write('9')\n1/0"
    hand_in(tmp_path, "ada", SAMPLE, spoil)
    hand_in(tmp_path, "bob", SAMPLE)
    graded(tmp_path, nursery)
    with open(tmp_path/"marks.csv", newline="", encoding="utf-8") as f:
        assert {r["student"]: float(r["points"]) for r in csv.DictReader(f)} == {"ada": 0,
            "bob": SAMPLE.points}


def test_no_process_stays_to_change_the_marks(tmp_path, nursery):
    late = (f"import os, time\nif not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n    "
            f"time.sleep(3)\n"
            f"    open({str(tmp_path/'marks.csv')!r}, 'w').write('ada,100')\n    os._exit(0)\n1/0")
    hand_in(tmp_path, "ada", SAMPLE, late)
    graded(tmp_path, nursery)
    marks = (tmp_path/"marks.csv").read_text()
    time.sleep(3.5)
    assert (tmp_path/"marks.csv").read_text() == marks


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
    assert {who: line["points"] for (who, _), line in rows.items()} == {"ada": SAMPLE.points, "file": 0,
        "folder": 0}
    assert {rows[who, SAMPLE.name]["reasons"] for who in ("file",
        "folder")} == {"it is a link: hand in the notebook itself"}
    assert {line.split()[2] for line in said if line.startswith("NOT GRADED")} == {"sources", "student"}
    assert (tmp_path/"mine").read_text() == "mine" and not (tmp_path/"in"/"marks.csv").is_symlink()


def test_what_lies_astray_is_named(tmp_path, nursery):
    "A notebook one level too high, or under another name, is no silent zero; a very deep folder is no trouble."
    good = hand_in(tmp_path, "ada", SAMPLE).read_text()
    astray = "deep/x/05a_distance/05a_distance.ipynb", "flat/05a_distance.ipynb", "named/05_fusion/05a_distance.ipynb"
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
    assert tuple(line.split()[2] for line in said
                 if line.startswith("NOT GRADED")) == astray and len(rows) == 1
    subprocess.run(["rm", "-rf", str(tmp_path/"well")], check=True)


def test_a_cell_is_known_by_its_id(tmp_path):
    "Flags changed, another kind of cell, split in two, copied before or after it was filled: the answer is found."
    path = hand_in(tmp_path, "ada", SAMPLE)
    good = json.loads(path.read_text())
    cells = good["cells"]
    at = next(i for i, c in enumerate(cells) if c["metadata"]["nbgrader"]["grade_id"] == "05a-solution-1")
    cell, mark = cells[at], cells[at]["metadata"]["nbgrader"]
    lines = "".join(cell["source"]).splitlines(keepends=True)
    empty = dict(cell, source=stub(SAMPLE))
    helper = dict(cell, source="def gap(q, k): return ((q[:, None] - k)**2).sum(2)\n")
    dead = dict(cell, source="".join(lines).replace("((query[:, None, :] - keys)**2).sum(dim=2)",
        "gap(query, keys)")
                + "\n    # YOUR CODE HERE\n    raise NotImplementedError()")
    kinds = {
        "flags": [dict(cell, metadata={"nbgrader": dict(mark, solution=False, grade=True, locked=True,
            points=99)})],
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
    gone, none = "is not there any more", "not a notebook"
    odd = [dict(c, metadata={"nbgrader": {"grade_id": []}}) for c in good["cells"]]
    for text, says in ((json.dumps(dict(good, cells=kept)), gone), (json.dumps(dict(good, cells=bare)), gone),
                       ("[]", none),
                       ("", none), ("{\"cells\": 3}", none), ("{\"cells\": [1]}", none), ("["*100_000, none),
                       (json.dumps(dict(good, cells=odd)), none), (b"\xed\xa0\x80", none), ("9"*5000, none)):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
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
    with pytest.raises(SystemExit,
                       match="MULTISCENE_GRADE_SEED should be a whole number, not 'abc'"): exercises.main()


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
    assert words(check.close, nan, nan, "x") == "x should be nan, got nan." and words(check.close, nan, nan,
        "x", nan=True) == ""
    assert words(check.close, [nan, 1.], [1., nan], "x",
                 nan=True).startswith("x at position (0,) should be 1, got nan")
    assert words(check.close, .5 + 1e-9, .5, "x", tol=0) == "x should be 0.5, got 0.50000000099999997."
    assert words(check.close, torch.ones(2, 3), np.ones((3, 2)), "the weights",
                 hint="Rows first.") == "the weights should have shape (3, 2), got (2, 3). Rows first."
    assert "does the function return" in words(check.close, None, 1,
        "x") and "not there yet" in words(check.close, ..., 1, "x")
    assert words(check.close, "many", 1, "x") == words(check.close, "1", 1,
        "x") == "x should be real numbers, got text."
    assert words(check.close, [[1], [1, 2]], 1,
                 "x") == "x should be real numbers, got a list of something else, or of rows of different lengths."
    assert words(check.close, 1j, 1, "x") == "x should be real numbers, got complex ones."
    assert words(check.close, lambda: 1, 1,
                 "x") == "x should be real numbers, got something of type function."
    assert words(check.close, torch.ones(1, requires_grad=True), [1], "x") == words(check.close, [True], [1],
        "x") == ""
    assert words(check.equal, torch.tensor([1, 2, 4]), [1, 2, 3],
                 "the places") == "the places should be [1, 2, 3], got [1, 2, 4]."
    assert words(check.equal, np.arange(3), np.arange(3), "x") == words(check.equal, ["a", nan], ("a", nan),
        "x") == words(check.equal, torch.ones(2, 3).shape, (2, 3), "x") == ""
    assert words(check.equal, pd.Series([1, 2]), [1, 2], "x") == words(check.equal, {"a": np.ones(2)},
        {"a": [1, 1]}, "x") == words(check.equal, np.True_, True, "x") == ""
    assert words(check.equal, np.float32, np.float64, "the type") and not words(check.equal,
        np.dtype("float16"), np.dtype("float16"), "the type")
    many = np.arange(40).reshape(4, 10)
    assert words(check.equal, many + (many % 10 == 3), many, "the table", hint="Rows first.") == (
        "the table: 4 of 40 entries are wrong: at (0, 3) 3 is wanted, got 4; at (1, 3) 13 is wanted, got 14; "
        "at (2, 3) 23 is wanted, got 24; and 1 more. Rows first.")
    assert words(check.equal, [*range(19), "x"], range(20), "x") and words(check.equal, [*range(19), 7],
        [*range(20)], "x") == "x: 1 of 20 entries is wrong: at 19 19 is wanted, got 7."
    assert words(check.equal, many, many.T, "x") == "x should have shape (10, 4), got (4, 10)."
    long = words(check.equal, list(range(1000)), [1], "the list")
    assert long.startswith("the list should have 1 entry, got 1000: wanted [1], got [0, 1, 2, ") and long.endswith("… (1000 entries).") and len(long) < 260
    assert words(check.equal, None, [1], "x") == "x should be [1], got None."
    assert words(check.refuses, lambda: 1, ValueError,
                 "A negative k should be refused.") == "A negative k should be refused. Nothing was raised."
    assert words(check.refuses, lambda: 1/0, ValueError,
                 "k.") == "k. It raised ZeroDivisionError instead: division by zero"
    assert words(check.refuses, lambda: int("x"), (TypeError, ValueError), "k.") == ""
    assert words(check.true, torch.tensor(False), "it is not so") == "it is not so"
    assert check.several([1, 2], "a, b") == (1, 2)
    assert words(check.several, (1, 2, 3),
                 "W, b, x, a") == "the function should return four values, W, b, x, a; got three"
    assert words(check.several, torch.ones(2, 2), "a, b").endswith("got one tensor") and words(check.several,
        None, "a, b") != ""
