"""Training that is killed at random moments, in processes of its own: what is left loads, and going on
changes no bit.

The file is its own child. `python tests/library/test_killed_training.py FOLDER EPOCHS` imports once, trains a
moment, and then forks a
training for each line on its standard input, so that a killed training costs no import. With the word
`commands` it forks the
command instead, with the words of each line.
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from multiscene_rec import checkpoints, core, data, runs, storage, train
from multiscene_rec.data import Batch
from multiscene_rec.storage import read_record

ROOT = Path(__file__).resolve().parent.parent.parent
EPOCHS = 150
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


class Small(nn.Module):
    "A large table, so that writing takes a good part of the time, and dropout, so that random numbers count."
    def __init__(self):
        super().__init__()
        self.table, self.linear, self.drop = nn.Embedding(20_000, 4), nn.Linear(10, 1), nn.Dropout(.2)

    def forward(self, batch):
        return self.linear(self.drop(torch.cat([self.table(batch.fields).flatten(1), batch.dense], 1)))[:, 0]


def rows(n, seed):
    "Random rows that cost nothing to make."
    r = np.random.default_rng(seed)
    fields = torch.tensor(np.stack([r.integers(0, 10_000, n), r.integers(10_000, 20_000, n)], 1))
    return Batch(dict(fields=fields, dense=torch.tensor(r.normal(size=(n, 2)).astype(np.float32)),
                      label=torch.tensor((r.random(n) < .3).astype(np.float32))))


def go(folder=None, epochs=EPOCHS):
    "Train, or go on training, up to the last epoch; the trained model."
    torch.set_num_threads(1)
    core.set_seed(0)
    model = Small()
    kept = [] if folder is None else [train.Checkpoint(folder,
                                                       resume=(Path(folder)/"checkpoint.json").exists())]
    callbacks = train.FiniteCheck(), train.KeepBest(), *kept
    train.fit(model, rows(1500, 0), rows(300, 1), epochs=epochs, batch_size=500, lr=.02, device="cpu",
              callbacks=callbacks)
    return model


def serve(folder, epochs):
    """Fork a training for each first line that comes in and say its process number; for each second, say
    how it ended."""
    go(epochs=1) # what PyTorch imports only when it trains
    for _ in sys.stdin:
        Path(folder, "said.txt").unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            said, code = "", 0
            try: go(folder, epochs)
            except KeyboardInterrupt as e: said, code = str(e), 130
            except BaseException as e: said, code = repr(e), 1
            Path(folder, "said.txt").write_text(said)
            os._exit(code)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Trainings:
    "Trainings in one folder, one after the other."
    def __init__(self, folder, epochs):
        self.folder, self.file = Path(folder), Path(folder)/"checkpoint.json"
        self.child = subprocess.Popen([sys.executable, __file__, str(folder), str(epochs)],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      text=True, env=os.environ | {"PYTHONPATH": str(ROOT),
                                          "OMP_NUM_THREADS": "1"})

    def tell(self):
        self.child.stdin.write("\n")
        self.child.stdin.flush()
        return int(self.child.stdout.readline())

    def start(self): self.pid, self.version = self.tell(), self.stamp()

    def stop(self, sign):
        os.kill(self.pid, sign) # not waited for yet, so that the number is still its own
        return self.tell()

    def stamp(self): return self.file.stat().st_ino if self.file.exists() else None

    def wait_for_an_epoch(self):
        "Until a new file is there, or the training has ended."
        end = time.monotonic() + 60
        while self.stamp() == self.version and not (self.folder/"said.txt").exists():
            assert time.monotonic() < end, "a training stands still"
            time.sleep(.001)
        self.version = self.stamp()


@pytest.fixture
def trainings(tmp_path, request):
    "Trainings of so many epochs, ended with the test."
    made = Trainings(tmp_path, getattr(request, "param", EPOCHS))
    with made.child:
        try: yield made
        finally: made.child.kill() # it may wait for a training that a failed test did not stop


@pytest.fixture(scope="module")
def undisturbed():
    "The weights of a run that nobody stopped."
    return go().state_dict()


def epochs_in(folder):
    "Whole epochs in the checkpoint, 0 without one; a damaged one is an error."
    if not (Path(folder)/"checkpoint.json").exists(): return 0
    return len(read_record(folder, "checkpoint", "Checkpoint", checkpoints.FORMAT)[0]["results"])


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def killed(trainings, times):
    """Kill as many trainings, each going on from the one before, every third before its first epoch;
    epochs saved after each kill."""
    seed = random.SystemRandom().randrange(2**32) # set_seed has seeded the common one
    print("seed of the kills", seed)
    r, done, left = random.Random(seed), [0], 0
    for turn in range(times):
        trainings.start()
        for _ in range(turn % 3): trainings.wait_for_an_epoch()
        time.sleep(r.random()*.04)
        assert trainings.stop(signal.SIGKILL) in (-signal.SIGKILL, 0)
        done.append(epochs_in(trainings.folder))
        left += len(list(trainings.folder.glob("*.part")))
        assert done[-1] >= done[-2], "a kill lost an epoch that was saved"
    print("epochs after each kill", done, "- unfinished files", left)
    return done


def test_twenty_kills_leave_a_whole_checkpoint_and_the_same_bits(trainings, tmp_path, undisturbed):
    assert killed(trainings, 20)[-1] > 10
    assert same(go(tmp_path).state_dict(), undisturbed)
    assert epochs_in(tmp_path) == EPOCHS and not list(tmp_path.glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("trainings", [1000], indirect=True)
def test_two_hundred_kills(trainings, tmp_path):
    assert killed(trainings, 200)[-1] > 100
    assert same(go(tmp_path, 1000).state_dict(), go(epochs=1000).state_dict())


@pytest.mark.wrong(
    "stopped in epoch …; … holds the state after epoch …: call fit again with Checkpoint(FOLDER, "
    "resume=True)",
                   cause="You pressed Ctrl-C, and the run has a checkpoint.",
                   remedy="Call fit again with the same arguments and Checkpoint(FOLDER, resume=True): it "
                          "goes on after the last whole epoch, and ends in the same weights.",
                   area="training")
def test_ctrl_c_names_the_checkpoint_and_the_same_bits_follow(trainings, tmp_path, undisturbed):
    for _ in range(3):
        trainings.start()
        for _ in range(2): trainings.wait_for_an_epoch()
        assert trainings.stop(signal.SIGINT) == 130
        said = (tmp_path/"said.txt").read_text()
        found = re.fullmatch(
            r"stopped in epoch (\d+); (.*) holds the state after epoch (\d+): call fit again with "
            r"Checkpoint\(FOLDER, resume=True\)", said)
        assert found and found[2] == str(tmp_path), said
        at, after = int(found[1]), int(found[3])
        # at: it hit just after the file was complete
        assert at == after + 1 and epochs_in(tmp_path) in (after, at)
    assert same(go(tmp_path).state_dict(), undisturbed)


# ---------------------------------------------------------------- the command

def serve_commands():
    """Fork the command for each first line that comes in, a list of words, and say its process number; for
    each second, say how it ended."""
    from multiscene_rec import cli
    said, sys.stdout = sys.stdout, open(os.devnull, "w")
    cli.main(json.loads(sys.stdin.readline())) # here, so that what it imports is there for all that follow
    sys.stdout = said
    print(0, flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code = 1
            try: code = cli.main(json.loads(line))
            finally: os._exit(code)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


class Commands:
    "Commands, one after the other, each of which may be stopped after some seconds."
    def __init__(self):
        self.child = subprocess.Popen([sys.executable, __file__, "commands"], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                      text=True, env=os.environ | {"PYTHONPATH": str(ROOT),
                                          "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"})

    def tell(self, line):
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        return int(self.child.stdout.readline())

    def warm(self, words): assert self.tell(json.dumps(list(map(str, words)))) == 0

    def run(self, words, sign=None, after=0.):
        pid = self.tell(json.dumps(list(map(str, words))))
        if sign is not None:
            time.sleep(after)
            os.kill(pid, sign) # not waited for yet, so that the number is still its own
        return self.tell("")


@pytest.fixture
def commands():
    made = Commands()
    with made.child:
        try: yield made
        finally: made.child.kill()


def command_killed(commands, folder, times):
    """Stop a training that replaces a model as many times; the folder must hold the old run or the new
    one, whole, after each."""
    mall = data.toy_mall(n_users=60, n_items=40, n_events=900, seed=3)
    mall.events.to_csv(folder/"log.csv", index=False)
    plan = ("train", folder/"log.csv", "--device", "cpu", "--batch-size", 64, "--epochs", 12, "--patience",
            12)
    commands.warm([*plan, "--out", folder/"m", "--seed", 1])
    start = time.monotonic()
    assert commands.run([*plan, "--out", folder/"whole"]) == 0
    took = time.monotonic() - start
    weights = lambda name: (folder/name/"model"/"model.safetensors").read_bytes()
    shutil.copytree(folder/"m", folder/"first")
    old, new, plan = weights("m"), weights("whole"), [*plan, "--out", folder/"m"]
    seed = random.SystemRandom().randrange(2**32)
    print("seed of the kills", seed)
    r, told = random.Random(seed), []
    for turn in range(times):
        begun = (storage.work_folder(folder/"m")/"checkpoint"/"checkpoint.json").exists()
        sign = signal.SIGINT if turn % 2 else signal.SIGKILL
        code = commands.run([*plan, "--resume" if begun else "--overwrite"], sign, took*r.uniform(.1, 1.1))
        assert code in (-signal.SIGKILL, 130, 0), code
        runs.load_run(folder/"m")
        there = {p.name for p in (folder/"m").iterdir()}
        assert weights("m") in (old, new) and there == {p.name for p in (folder/"whole").iterdir()}
        told.append((code, begun, weights("m") == new))
        if weights("m") == new:
            shutil.rmtree(folder/"m")
            shutil.copytree(folder/"first", folder/"m")
    print("exit code, went on, replaced:", told)
    begun = (storage.work_folder(folder/"m")/"checkpoint"/"checkpoint.json").exists()
    assert commands.run([*plan, "--resume" if begun else "--overwrite"]) == 0
    assert weights("m") == new and not storage.work_folder(folder/"m").exists()


@pytest.mark.slow
def test_a_command_that_is_killed_leaves_the_old_run_or_the_new_one(commands, tmp_path):
    command_killed(commands, tmp_path, 6)


@pytest.mark.slow
def test_forty_kills_of_the_command(commands, tmp_path): command_killed(commands, tmp_path, 40)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("at", ["after the first rename", "after the second", "before both"])
def test_a_swap_that_is_cut_off(at, sign, tmp_path):
    "Both renames are atomic: what counts is what is there between them."
    (tmp_path/"m").mkdir()
    (tmp_path/"m"/"run.json").write_text("old")
    code = f"""
import os, signal, sys
from multiscene_rec import storage
signal.signal(signal.SIGINT, signal.default_int_handler)
real, done = os.replace, []
def replace(a, b):
    stop = {["before both", "after the first rename", "after the second"].index(at)}
    folders = os.path.isdir(a)
    if folders and len(done) == stop == 0: os.kill(os.getpid(), {int(sign)})
    real(a, b)
    if folders: done.append(b)
    if folders and len(done) == stop: os.kill(os.getpid(), {int(sign)})
os.replace = replace
with storage.replaced_folder(sys.argv[1]) as work: (work/"run"/"run.json").write_text("new")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path/"m")], env=os.environ
                   | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)
    storage.settle(tmp_path/"m")
    assert (tmp_path/"m"/"run.json").read_text() == ("new" if at == "after the second" else "old")
    with storage.replaced_folder(tmp_path/"m") as work: (work/"run"/"run.json").write_text("newer")
    assert (tmp_path/"m"/"run.json").read_text() == "newer" and [p.name for p in tmp_path.iterdir()] == ["m"]


if __name__ == "__main__":
    if sys.argv[1:] == ["commands"]: serve_commands()
    else: serve(sys.argv[1], int(sys.argv[2]))
