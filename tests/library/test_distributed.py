"""Two processes that train together, started by PyTorch's own launcher: the same numbers as one, one writer,
one end.

The file is its own child: `torchrun ... tests/library/test_distributed.py FOLDER EPOCHS RESUME DIES` trains
in each process and leaves
what it found in FOLDER.
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist

from multiscene_rec import checkpoints, core, data, model, preprocess, train
from multiscene_rec.storage import read_record, write_record

ROOT = Path(__file__).resolve().parent.parent.parent
BATCH = 256
pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")


def mall():
    "Spec and batches; an even number of rows, so that two processes leave none out."
    made = data.toy_mall(n_users=120, n_items=40, n_events=2400)
    frames = preprocess.time_split(made.events)
    prep = preprocess.Preprocessor().fit(frames[0], users=made.users, items=made.items)
    past = preprocess.EventLog(made.events, made.users)
    rows, valid = (prep.transform(frame, past) for frame in frames[:2])
    return prep.spec, rows[:len(rows)//2*2], valid


class Beside(train.Callback):
    "Which rows this process saw; one of the processes may die in the second epoch."
    alters = False

    def __init__(self, dies): self.dies, self.seen = dies, []

    def after_batch(self, run):
        self.rank = run.rank
        self.seen.append(run.rows)
        if run.rank == self.dies and run.epoch == 2:
            print(f"process {run.rank} fails on purpose", file=sys.stderr, flush=True)
            os._exit(7)


def go(folder, epochs, batch_size, resume=False, dies=-1):
    "Train, in float64; what came out."
    torch.set_num_threads(1)
    spec, rows, valid = mall()
    core.set_seed(0)
    m = model.InterestModel(spec, widths=(16, 8), hidden=(16,), d_embed=4).double()
    beside, kept = Beside(dies), train.Checkpoint(folder/"run", resume=resume)
    callbacks = train.FiniteCheck(), train.KeepBest(), train.Progress(), beside, kept
    trained = train.fit(m, rows, valid, epochs=epochs, batch_size=batch_size, lr=1e-2, device="cpu",
                    callbacks=callbacks)
    return m, trained, beside


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    "Weights and TrainingLog of a single process with twice the batch, after three epochs."
    m, trained, _ = go(tmp_path_factory.mktemp("one"), 3, 2*BATCH)
    return m.state_dict(), trained


def together(folder, epochs, resume=False, dies=-1, seconds=90):
    "Two processes; the finished launcher, and how long it took."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               __file__,
               str(folder), str(epochs), str(int(resume)), str(dies)]
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, start_new_session=True) as child:
        try: child.out, child.err = child.communicate(timeout=seconds)
        finally: # whatever is left of it, also where the wait was too long
            if child.poll() is None: os.killpg(child.pid, signal.SIGKILL)
    return child, time.monotonic() - start


def found(folder, rank):
    "What a process left."
    return json.loads((folder/f"{rank}.json").read_text()), torch.load(folder/f"{rank}.pt", weights_only=True)


def agree(folder, alone, epochs):
    "Losses and weights of both processes equal those of one."
    state, trained = alone
    for rank in (0, 1):
        told, weights = found(folder, rank)
        frame = pd.DataFrame(told["results"])
        assert list(frame.epoch) == list(range(1, epochs + 1)) and told["best"] == trained.best_epoch
        for name in ("train_loss", "valid_loss", "valid_auc"):
            np.testing.assert_allclose(frame[name], trained.frame[name], rtol=0, atol=1e-9)
        for name, w in weights.items():
            torch.testing.assert_close(w, state[name], rtol=0, atol=1e-9, msg=lambda m,
                                       name=name: f"{name}: {m}")


def test_two_processes_with_half_the_batch_equal_one(tmp_path, alone):
    child, _ = together(tmp_path, 3)
    assert not child.returncode, child.err
    agree(tmp_path, alone, 3)
    seen = [found(tmp_path, rank)[0]["seen"] for rank in (0, 1)]
    n = len(mall()[1])
    assert seen[0] == seen[1] and max(seen[0]) == n//2 # as many rows in each, and all of them
    assert found(tmp_path, 0)[0]["wrote"] and not found(tmp_path, 1)[0]["wrote"]
    assert child.out == "" and "epoch" not in child.err # neither is on a terminal


@pytest.mark.slow
def test_a_run_of_two_processes_is_resumed(tmp_path, alone):
    for epochs, resume in ((2, False), (3, True)):
        child, _ = together(tmp_path, epochs, resume)
        assert not child.returncode, child.err
    agree(tmp_path, alone, 3)


def test_one_process_does_not_go_on_where_two_stopped(tmp_path):
    go(tmp_path, 1, BATCH)
    about, tensors = read_record(tmp_path/"run", "checkpoint", "Checkpoint", checkpoints.FORMAT)
    del about["checksum"]
    about["run"]["processes"] = 2
    write_record(tmp_path/"run", "checkpoint", about | dict(format=checkpoints.FORMAT), tensors)
    with pytest.raises(ValueError, match="belongs to another run: processes was 2, now 1"):
        go(tmp_path, 2, BATCH, resume=True)


@pytest.mark.wrong(
    "another process of this run has ended, so this one ends too; its message says why",
                   cause="One of several processes failed or was killed, and the others cannot go on without "
                         "it.",
                   remedy="Read the message of the one that ended first; then start all again with "
                          "Checkpoint(FOLDER, resume=True).", area="training")
@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_all(tmp_path, dies, alone):
    child, seconds = together(tmp_path, 3, dies=dies)
    assert child.returncode and seconds < 60
    assert child.err.count(f"process {dies} fails on purpose") == 1
    assert child.err.count(
        "RuntimeError: another process of this run has ended, so this one ends too; its message says "
        "why") <= 1
    assert not list(tmp_path.glob("*.json")) and not processes_of(tmp_path)
    assert not together(tmp_path, 3, resume=True)[0].returncode # the checkpoint of the epoch before is whole
    agree(tmp_path, alone, 3)


def processes_of(folder):
    "Numbers of the processes that were started with this folder; none where the system does not tell."
    return [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline")
            if str(folder).encode() in read(p)]


def read(path):
    try: return path.read_bytes()
    except OSError: return b""


if __name__ == "__main__":
    out, epochs, resume, dies = Path(sys.argv[1]), *map(int, sys.argv[2:])
    wrote, real = [], checkpoints.write_record
    checkpoints.write_record = lambda *a: (wrote.append(1), real(*a))[1]
    m, trained, beside = go(out, epochs, BATCH, bool(resume), dies)
    torch.save(m.state_dict(), out/f"{beside.rank}.pt")
    told = dict(results=trained.frame.to_dict("records"), best=trained.best_epoch, seen=beside.seen,
                wrote=bool(wrote))
    (out/f"{beside.rank}.json").write_text(json.dumps(told))
