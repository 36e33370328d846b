"""The other side of the wall: a process that runs a student's code and answers calls of its functions.

    python -m tools.student          started by tools.grade, with a socket as standard input

It has loaded the course and nothing of the exercises: no solution, no seed, no hidden check. For each
submission it makes a copy of itself by a fork, with limits; the copy is sent the setup of the exercise and
the student's cells, and then one call after another. Whatever the code does, it does to that copy, and all
that it started is ended before the next one.
"""
import contextlib
import ctypes
import importlib
import io
import json
import os
import pkgutil
import resource
import signal
import socket
import sys
import time
from pathlib import Path

from tools import plain

FILE, PROCESSES = 2**28, 256 # bytes of a file that a solution may write, and processes of another user
SUBREAPER, DUMPABLE, END_WITH_PARENT = 36, 4, 1 # options of prctl


class Answer:
    "Runs cells, and calls what they define. `ask` sends a call of the grader's own functions."
    def __init__(self, ask): self.space, self.ask = {"__name__": "__main__"}, ask

    def __call__(self, message):
        "The answer to one message: ['gave', value, were arguments changed?] or ['raised', classes, text]."
        try:
            what, *rest = message
            if what == "call": return ["gave", *self._called(*rest)]
            code, name = rest
            exec(compile(code, f"<{name}>", "exec"), self.space)
            return ["gave", None, False]
        except BaseException as e: return ["raised", *plain.told(e)]

    def _called(self, name, args, named):
        if name not in self.space: raise NameError(f"name {name!r} is not defined")
        args, named = plain.unpack(args, self.ask), plain.unpack(named, self.ask)
        before = json.dumps(plain.pack([args, named], []))
        value = plain.pack(self.space[name](*args, **named))
        return value, json.dumps(plain.pack([args, named], [])) != before


def _received(pipe): # The next message; the pipe is this process's alone
    size = int.from_bytes(_exactly(pipe, 4), "big")
    return json.loads(_exactly(pipe, size))


def _exactly(pipe, size):
    data = bytearray()
    while len(data) < size:
        more = pipe.recv(min(size - len(data), 2**20))
        if not more: os._exit(0)
        data += more
    return data


def _answers(pipe):
    "Answer messages until the grader closes the pipe."
    def ask(number, args, named):
        pipe.sendall(plain.framed(["ask", number, plain.pack(list(args)), plain.pack(named)]))
        what, *rest = _received(pipe)
        if what == "raised": raise plain.error(*rest)
        return plain.unpack(rest[0])
    answer = Answer(ask)
    while True: pipe.sendall(plain.framed(answer(_received(pipe))))


def _limits(printed, mib, user, place):
    os.chdir(place)
    os.setsid()
    shield((DUMPABLE, 1))
    os.environ["MPLBACKEND"] = "Agg" # no windows
    if "matplotlib" in sys.modules: sys.modules["matplotlib"].use("Agg")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(printed, 1), os.dup2(printed, 2)
    sys.stdin = os.fdopen(0, closefd=False)
    for name in ("stdout", "stderr"):
        setattr(sys, name, io.TextIOWrapper(os.fdopen(os.dup(printed), "wb", 0), write_through=True))
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text().split()[0])*os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + mib*2**20,)*2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if user:
        resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES, PROCESSES))
        os.environ["HOME"] = place
        os.setgroups([]), os.setgid(user[1]), os.setuid(user[0])
    shield((END_WITH_PARENT, signal.SIGKILL))


def _one(control, pipe, printed, request):
    "The copy: limits, then answers, then nothing more."
    try:
        control.close()
        _limits(printed, **request)
        with socket.socket(fileno=pipe) as pipe: _answers(pipe)
    finally: os._exit(0)


def _children(): # Of this process, those that a dead child has left behind among them
    found = [path.read_text().split() for path in Path("/proc/self/task").glob("*/children")]
    return [int(pid) for pids in found for pid in pids]


def end_children(*known):
    "End all children of this process. Without /proc (macOS) these are the known ones and their sessions."
    for _ in range(500):
        for pid in {*known, *_children()}:
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(OSError): kill(pid, signal.SIGKILL)
        known = ()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]: pass
            time.sleep(.002)
            continue
        return


def shield(*options):
    "Options of this process on Linux: whose children it ends, who may look into its memory, when it ends."
    with contextlib.suppress(OSError, AttributeError):
        for option, value in options: ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def load_course():
    "All modules of the course, and `check`, as exercises import it in their own folder."
    import multiscene_rec
    for module in pkgutil.iter_modules(multiscene_rec.__path__):
        with contextlib.suppress(ImportError): importlib.import_module(f"multiscene_rec.{module.name}")
    importlib.import_module("check")


def main():
    "Fork for each request that comes with two files, until the grader has gone."
    import torch
    torch.set_num_threads(1) # a fork has none of its parent's threads, and would wait for them
    control = socket.socket(fileno=os.dup(0))
    load_course()
    shield((SUBREAPER, 1), (DUMPABLE, 0))
    control.sendall(b"+")
    while True:
        data, files, *_ = socket.recv_fds(control, 4096, 2)
        if not data: return
        child = os.fork()
        if not child: _one(control, *files, json.loads(data))
        for file in files: os.close(file)
        control.recv(1)
        end_children(child)
        with contextlib.suppress(OSError): control.sendall(b"+")


if __name__ == "__main__":
    main()
