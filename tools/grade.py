"""Marks behind a wall: a student's code runs in a process of its own (tools/student.py), the checks here.

A check that calls a function of the student sends plain values through a pipe and gets plain values back, as
new objects that this process makes. What the other side does to its modules and frames cannot reach checks or
marks. A submission is `FOLDER/STUDENT/EXERCISE/EXERCISE.ipynb`, as nbgrader collects it.
"""
import ast
import contextlib
import csv
import io
import json
import os
import re
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path

from tools import exercises, notebooks, plain, student

SECONDS, MIB = 60, 2048 # time for one notebook, and memory beyond what is loaded
OUTPUT, ANSWER = 1_000_000, 2**24 # bytes that it may print, and bytes of one answer
NOTEBOOK, CODE = 50_000_000, 1_000_000 # bytes of a notebook, and characters of its solution
ENTRIES, DEPTH = 2000, 6 # files of a student that are looked at, and folders in folders
PLACE = "STUDENT/EXERCISE/EXERCISE.ipynb, as in ada/05a_distance/05a_distance.ipynb"
UNREADABLE = "what came back from its process cannot be read"


class Stopped(BaseException):
    "The student's process or its time has ended: no check can be judged any more."


# ---------------------------------------------------------------- checks, in this process

def judged(exercise, solution, exchange, seed=0):
    """What is wrong, for each cell of checks: {id: "" or a reason}.

    `solution` maps ids of cells to the student's code. `exchange(message, calls)` sends a message through the
    wall, serves calls of the functions in the list `calls`, and returns the answer.
    """
    judge = types.ModuleType("check")
    exec(exercises.CHECKS, vars(judge))
    judge._seed = seed
    space, wrong, broken = {"__name__": "__main__"}, {}, ""
    for cell in exercise.cells:
        try:
            if cell.kind in ("setup", "solution"):
                code = cell.source if cell.kind == "setup" else solution.get(cell.id, "")
                if not broken: _given(exchange(["run", code, cell.id], []))
            if cell.kind in ("setup", "helper"): _run(cell, space, judge)
            elif cell.kind == "solution":
                space |= {name: _called(name, exchange, judge) for name in _functions(cell)}
            elif cell.kind == "test":
                wrong[cell.id] = broken
                if not broken: _run(cell, dict(space), judge)
        except Exception as e: reason = _reason(e)
        except Stopped as e: broken = reason = str(e)
        else: continue
        if cell.kind == "test": wrong[cell.id] = reason
        else: broken = broken or reason
    return wrong


def _run(cell, space, judge):
    sys.modules["check"] = space["check"] = judge
    judge._changed = False
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(cell.source, f"<{cell.id}>", "exec"), space)


def _functions(cell): # Of a solution as the exercise has it
    return [f.name for f in ast.parse(cell.source).body if isinstance(f, ast.FunctionDef)]


def _called(name, exchange, judge):
    "A function that stands for the student's. `check.unchanged` is told of changes: they are made to a copy."
    def call(*args, **named):
        calls = []
        message = ["call", name, plain.pack(list(args), calls), plain.pack(named, calls)]
        value, changed = _given(exchange(message, calls))
        judge._changed = judge._changed or changed
        return value
    call.__name__ = name
    return call


def _given(answer):
    "The value in an answer, and whether arguments were changed; an error in it is raised."
    try:
        what, *rest = answer
        if what == "raised": e = plain.error(*rest)
        else: return plain.unpack(rest[0]), bool(rest[1])
    except Exception: raise Stopped(UNREADABLE) from None
    raise e


def _reason(e):
    "Why a check was lost, in words; the error may be the student's, by name."
    name, text = type(e).__name__, str(e)
    if name == "SystemExit": return "it ended the program"
    if name == "KeyboardInterrupt": return "stopped: it was interrupted"
    if name == "NotImplementedError": return "no answer yet"
    if name == "EOFError": return "it waited for input: nobody is there to type"
    if name == "MemoryError" or "allocate memory" in text: return "it asked for too much memory"
    return text if name in ("Wrong", "AssertionError") and text else f"{name}: {text}"


# ---------------------------------------------------------------- the wall

class Nursery:
    """The process that the students' processes are copies of; a new one is started where it does not answer.

    `user` is (uid, gid) of another user for the students' processes, which only root can ask for. `alone`
    says that the grader has no other children: then what outlives this process is ended too.
    """
    def __init__(self, user=None, alone=False):
        self.process, self.user, self.alone = None, user, alone
        if alone: student.shield((student.SUBREAPER, 1), (student.DUMPABLE, 0))

    def __enter__(self): return self

    def __exit__(self, *_):
        if self.process:
            self.control.close()
            with contextlib.suppress(OSError): os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None
        if self.alone: student.end_children()

    def _start(self):
        self.control, theirs = socket.socketpair()
        self.control.settimeout(120)
        env = notebooks.child_env(PYTHONPATH=os.pathsep.join((str(notebooks.ROOT), str(exercises.FOLDER))))
        env.pop("MULTISCENE_GRADE_SEED", None)
        self.process = subprocess.Popen([sys.executable, "-m", "tools.student"], stdin=theirs, env=env,
                                        cwd=notebooks.ROOT, start_new_session=True)
        theirs.close()
        if self.control.recv(1) != b"+": raise RuntimeError("python -m tools.student does not start")
        self.control.settimeout(5)

    @contextlib.contextmanager
    def copy(self, mib=MIB):
        "(socket to a new student's process, file of what it prints); the process is ended afterwards."
        if self.process is not None and self.process.poll() is not None: self.__exit__()
        if self.process is None: self._start()
        with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as place:
            ours, theirs = socket.socketpair()
            said, speak = os.pipe()
            if self.user: os.chown(place, *self.user)
            request = json.dumps(dict(place=place, mib=mib, user=self.user)).encode()
            try:
                socket.send_fds(self.control, [request], [theirs.fileno(), speak])
                theirs.close(), os.close(speak)
                yield ours, said
            finally:
                ours.close(), os.close(said)
                try: alive = self.control.send(b"-") and self.control.recv(1)
                except OSError: alive = b""
                if not alive: self.__exit__()


class Exchange:
    "Messages to a student's process and its answers, within its time; what it prints is read meanwhile."
    def __init__(self, pipe, said, seconds):
        self.pipe, self.said, self.talk, self.seconds = pipe, said, bytearray(), seconds
        self.end = time.monotonic() + seconds
        pipe.setblocking(False)

    def __call__(self, message, calls):
        self._send(message)
        while True:
            answer = self._message()
            if type(answer) is not list or answer[:1] != ["ask"]: return answer
            self._send(self._served(answer, calls))

    def _served(self, message, calls): # A call of a function that the grader has sent
        try:
            _, number, args, named = message
            call, args, named = calls[number], plain.unpack(args), plain.unpack(named)
        except Exception: raise Stopped(UNREADABLE) from None
        try: return ["gave", plain.pack(call(*args, **named))]
        except Exception as e: return ["raised", *plain.told(e)]

    def _send(self, message):
        data = memoryview(plain.framed(message))
        while data:
            self._wait([self.pipe])
            try: data = data[self.pipe.send(data):]
            except BlockingIOError: pass
            except OSError: raise Stopped("it ended the program") from None

    def _message(self):
        size = int.from_bytes(self._exactly(4), "big")
        if size > ANSWER: raise Stopped(f"its answer is larger than {ANSWER:,} bytes")
        try: return json.loads(self._exactly(size))
        except (ValueError, RecursionError): raise Stopped(UNREADABLE) from None

    def _exactly(self, size):
        data = bytearray()
        while len(data) < size:
            self._wait([])
            try: more = self.pipe.recv(min(size - len(data), 2**20))
            except BlockingIOError: continue
            except OSError: more = b""
            if not more: raise Stopped("it ended the program")
            data += more
        return data

    def _wait(self, write):
        "Until the pipe can be read, or written to; what was printed is removed."
        while True:
            heard = [] if self.said is None else [self.said]
            read, free, _ = select.select(heard if write else [*heard, self.pipe], write, [], .2)
            if time.monotonic() > self.end: raise Stopped(f"stopped after {self.seconds} s")
            if heard and self.said in read:
                more = os.read(self.said, 2**16)
                self.talk += more
                if not more: self.said = None # it has closed its standard output
                if len(self.talk) > OUTPUT: raise Stopped(f"it printed more than {OUTPUT:,} characters")
            if free or self.pipe in read: return


@contextlib.contextmanager
def _at_most(seconds):
    "The grader's own work too: what a student gives back may make it long."
    def late(*_): raise Stopped(f"stopped after {seconds} s")
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1, .5)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def graded(nursery, exercise, solution, seed=0, seconds=SECONDS, mib=MIB):
    "Behind the wall: ({id: "" or a reason}, what was printed)."
    wrong, talk = {}, bytearray()
    try:
        with nursery.copy(mib) as (pipe, said), _at_most(seconds):
            exchange = Exchange(pipe, said, seconds)
            talk = exchange.talk
            wrong = judged(exercise, solution, exchange, seed)
    except Stopped as e: wrong = dict.fromkeys(exercise.tests(), str(e)) # late, outside of any cell
    return wrong, talk[:10_000].decode("utf-8", "replace")


def points(exercise, wrong):
    "Points of the cells of checks in which nothing is wrong."
    return sum(worth for id, worth in exercise.tests().items() if wrong.get(id) == "")


# ---------------------------------------------------------------- what was handed in

class Refused(Exception):
    "Why a submission is not read."


def _bytes(path, base):
    "A file's content. Neither it nor a folder between it and `base` may be a link: that may lead anywhere."
    for part in (*reversed(path.relative_to(base).parents[:-1]), path.relative_to(base)):
        try: mode = os.lstat(base/part).st_mode
        except (FileNotFoundError, NotADirectoryError): raise FileNotFoundError from None
        if stat.S_ISLNK(mode): raise Refused("it is a link: hand in the notebook itself")
    if not stat.S_ISREG(mode): raise Refused("not a file")
    if path.stat().st_size > NOTEBOOK: raise Refused(f"the notebook is larger than {NOTEBOOK//10**6} MB")
    return path.read_bytes()


def read_solution(exercise, path, base):
    """The student's code, {id of a solution cell: code}. Raises Refused with the reason where there is none.

    A cell is known by its nbgrader id alone. JupyterLab gives a cell that is split or copied the same id
    twice: the parts are put together again, without those in which nothing was written.
    """
    parts = {id: [] for id in exercise.solution()}
    try:
        for cell in json.loads(_bytes(path, base).decode("utf-8-sig"))["cells"]:
            id = cell["metadata"].get("nbgrader", {}).get("grade_id")
            if id in parts: parts[id].append("".join(cell["source"]))
    except FileNotFoundError:
        others = sorted(p.name for p in path.parent.glob("*.ipynb")) if path.parent.is_dir() else []
        there = f" under the name {path.name}; there is {', '.join(others)}" if others else ""
        raise Refused(f"not handed in{there}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Refused(f"not a notebook: {type(e).__name__} {e}") from None
    if gone := [id for id, texts in parts.items() if not texts]:
        raise Refused(f"the cell {', '.join(gone)} is missing: "
                      "copy the answer into a fresh student copy")
    for id, texts in parts.items():
        if len(texts) > 1:
            stub = exercises.student_copy(exercise).solution()[id].strip()
            parts[id] = [text for text in texts if text.strip() != stub] or texts[:1]
    code = {id: "\n".join(texts) for id, texts in parts.items()}
    if sum(map(len, code.values())) > CODE: raise Refused(f"the solution is longer than {CODE:,} characters")
    return code


def _shown(text, room=300):
    "Anybody's text in one line that any terminal can show, and that no spreadsheet takes for a formula."
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))[:room]
    return re.sub(r"(^|;)( *)([=+\-@\uff1d\uff0b\uff0d\uff20])", r"\1\2'\3", text)


def _names(folders):
    "What each student is called in table and file: no two the same."
    names = {}
    for folder in folders:
        name = first = _shown(os.fsencode(folder.name).decode("utf-8", "replace"), 100) or "?"
        k = 1
        while name in names.values(): name = f"{first} ({(k := k + 1)})"
        names[folder] = name
    return names


def _astray(home, known):
    "Notebooks that lie where none is looked for, a few folders deep: a student would get no mark for them."
    waiting, seen, found = [home], 0, []
    while waiting:
        for entry in os.scandir(waiting.pop()):
            parts = Path(entry.path).relative_to(home).parts
            seen += 1
            if seen > ENTRIES: return found
            if entry.is_dir(follow_symlinks=False) and parts[-1] != ".ipynb_checkpoints":
                if len(parts) < DEPTH: waiting.append(entry.path)
            elif entry.name.endswith(".ipynb") and not (len(parts) == 2
                and parts[0] in known): found.append("/".join(parts))
    return sorted(found)


def _handed_in(folder, asked, say):
    "(student's name, exercise, code or None, why there is none) of all; read before any of it runs."
    folders = sorted(p for p in folder.iterdir() if p.is_dir())
    for path, name in _names(folders).items():
        if path.is_symlink():
            say(f"NOT GRADED: {name} is a link; give each student a folder")
            continue
        for lost in _astray(path, {e.name for e in asked}):
            lost = _shown(os.fsencode(lost).decode("utf-8", "replace"))
            say(f"NOT GRADED: {name}/{lost} is not in the folder of an exercise; it should be {PLACE}")
        for exercise in asked:
            if not os.path.lexists(path/exercise.name): continue
            notebook = path/exercise.name/f"{exercise.name}.ipynb"
            try: yield name, exercise, read_solution(exercise, notebook, path), ""
            except Refused as e: yield name, exercise, None, str(e)


# ---------------------------------------------------------------- marks

def grade_folder(folder, nursery, out=None, seed=None, say=print, **limits):
    "Grade all submissions, print a table, and write one line per student and exercise to a csv."
    folder, lines = Path(folder), []
    out = Path(out or folder/"marks.csv")
    seed = secrets.randbelow(2**31) if seed is None else seed
    handed = list(_handed_in(folder, exercises.sources(), say))
    wide = max((len(name) for name, *_ in handed), default=0)
    try:
        for name, exercise, solution, why in handed:
            wrong = dict.fromkeys(exercise.tests(), why)
            if not why: wrong, _ = graded(nursery, exercise, solution, seed, **limits)
            why = "; ".join(dict.fromkeys(_shown(reason) for reason in wrong.values() if reason))
            got, full = points(exercise, wrong), exercise.points
            lines.append(dict(student=name, exercise=exercise.name, points=got, of=full, reasons=why))
            short = why if len(why) <= 90 else why[:88] + " …"
            say(f"{name:<{wide}}  {exercise.name:<14} {got:g} of {full:g}  {short}".rstrip())
    finally:
        if lines: say("\n" + "\n".join(table(lines)) + "\n")
        else: say(f"nothing to grade: {folder} should hold {PLACE}")
        say(f"{len(lines)} marks in {_write(lines, out)}, seed {seed}")
    return lines


def _write(lines, out):
    "Into a new file in place of what is there; where that is a folder (of a student), under another name."
    while out.is_dir(): out = out.with_name(f"{out.stem}-2.csv")
    with tempfile.NamedTemporaryFile("w", newline="", encoding="utf-8", dir=out.parent, delete=False) as f:
        writer = csv.DictWriter(f, ["student", "exercise", "points", "of", "reasons"])
        writer.writeheader()
        writer.writerows(lines)
    os.chmod(f.name, 0o644)
    os.replace(f.name, out)
    return out


def table(lines):
    "Students times exercises, with totals, as lines of text; a dot where a student has no such folder."
    names, students = sorted({m["exercise"] for m in lines}), list(dict.fromkeys(m["student"] for m in lines))
    points = {(m["student"], m["exercise"]): m["points"] for m in lines}
    full = {m["exercise"]: m["of"] for m in lines}
    wide = max(7, *map(len, students))
    row = lambda name, cells, sum_: f"{name:<{wide}}  {' '.join(f'{v:>4}' for v in cells)}  {sum_:>6}"
    total = lambda name: sum(p for (who, _), p in points.items() if who == name)
    yield row("", [n.split("_")[0] for n in names], "total")
    for s in students:
        yield row(s, [f"{points[s, n]:g}" if (s, n) in points else "." for n in names], f"{total(s):g}")
    mean = lambda n: sum(p for (_, m), p in points.items() if m == n)/sum(m == n for _, m in points)
    yield row("average", [f"{mean(n):.1f}" for n in names], f"{sum(points.values())/len(students):.1f}")
    yield row("out of", [f"{full[n]:g}" for n in names], f"{sum(full.values()):g}")
