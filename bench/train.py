"""Rows a second of `fit` beside a bare loop, and seconds and memory of the whole path by the number of rows.

    python -m bench.train                  speed at batch 4096, then 10^5 and 10^6 rows from the mall to a
    trained epoch
    python -m bench.train --large          10^7 rows as well (takes minutes and some 16 GiB)
    python -m bench.train --device cuda    on a GPU, and compiled
    python -m bench.train --quick          seconds, nothing written

The bare loop trains the same model on the same tensors and checks nothing: one gather that mixes the rows,
slices of it,
PyTorch's own loss, fused Adam. `of_bare` is its seconds divided by those of `fit`, pair by pair: 1 is as
fast.
"""
import contextlib
import json
import time
from pathlib import Path
from unittest.mock import patch

import torch
from torch.nn import functional as F

from bench.common import alone, in_turn, options, peak_mib, ratio, record
from multiscene_rec import fusion
from multiscene_rec import model as models
from multiscene_rec.core import set_seed
from multiscene_rec.data import Batch, toy_mall
from multiscene_rec.extractor import FieldEmbedding
from multiscene_rec.model import InterestModel
from multiscene_rec.preprocess import EventLog, Preprocessor
from multiscene_rec.train import FiniteCheck, KeepBest, fit

EVENTS_PER_USER = 25
BESIDE = FiniteCheck(), KeepBest() # no bar, which a file would not show either


def path(events, device, batch_size=4096):
    "Seconds and peak memory of each step from the mall to a model trained for one epoch, and the pieces."
    steps = [dict(step="imports", seconds=None, peak_mib=peak_mib())]

    def step(name, work):
        start = time.perf_counter()
        made = work()
        steps.append(dict(step=name, seconds=time.perf_counter() - start, peak_mib=peak_mib()))
        return made
    mall = step("toy_mall", lambda: toy_mall(n_users=max(events//EVENTS_PER_USER, 50), n_events=events))
    prep = step("Preprocessor.fit", lambda: Preprocessor().fit(mall.events, users=mall.users,
        items=mall.items))
    rows = step("transform", lambda: prep.transform(mall.events, EventLog(mall.events, mall.users)))
    set_seed(0)
    model = InterestModel(prep.spec)
    step("one epoch", lambda: fit(model, rows, epochs=1, batch_size=batch_size, lr=4e-3, device=device,
                                  callbacks=BESIDE))
    return steps


@contextlib.contextmanager
def unchecked():
    "The model without its checks of what it is given."
    with (patch.object(models, "check_batch", lambda *a: None),
          patch.object(fusion, "_check_inputs", lambda *a: None),
          patch.object(FieldEmbedding, "check", lambda self, fields: fields)):
        yield


def bare_epoch(model, rows, precision, batch_size, seed=1):
    "What one would write by hand."
    device = rows.label.device
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3, fused=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).to(device)
    mixed, total = {k: v[order] for k, v in rows.rows.items()}, 0.
    for i in range(0, len(rows), batch_size):
        part = Batch._of({k: v[i:i + batch_size] for k, v in mixed.items()}, rows.tables)
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"): logits = model(part)
        loss = F.binary_cross_entropy_with_logits(logits.float(), part.label)
        loss.backward()
        optimiser.step()
        total += loss.detach()*len(part.label)
    return total.item()/len(rows)


def speed(events, device, batch_size, repeats):
    "Rows a second of both, in turn."
    mall = toy_mall(n_users=max(events//EVENTS_PER_USER, 50), n_events=events)
    prep = Preprocessor().fit(mall.events, users=mall.users, items=mall.items)
    rows = prep.transform(mall.events, EventLog(mall.events, mall.users)).to(device)
    sync = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    kinds = [("fp32", False), ("bf16", False)]
    if device.startswith("cuda"): kinds += [("fp32", True), ("bf16", True)]
    found = []
    for precision, compiled in kinds:
        made = {}
        for name in ("fit", "bare"):
            set_seed(0)
            made[name] = InterestModel(prep.spec).to(device)
        bare = made["bare"]
        if compiled: torch._dynamo.reset()

        def by_hand():
            with unchecked(): return bare_epoch(bare, rows, precision, batch_size)
        def by_fit():
            return fit(made["fit"], rows, epochs=1, batch_size=batch_size, lr=4e-3, device=device,
                       precision=precision, compile=compiled, callbacks=BESIDE)
        seconds = in_turn({"fit": by_fit, "bare": by_hand}, repeats, sync)
        middle, low, high = ratio(seconds["bare"], seconds["fit"])
        per = {k: len(rows)/sorted(v)[len(v)//2] for k, v in seconds.items()}
        found.append(dict(precision=precision, compile=compiled, batch_size=batch_size, rows=len(rows),
                          fit_rows_per_s=per["fit"],
                          bare_rows_per_s=per["bare"], of_bare=middle, smallest=low, largest=high))
    return found


def bf16_units():
    "Whether the CPU multiplies bf16 itself; without it, bf16 says nothing about fit."
    flags = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return [f for f in ("avx512_bf16", "amx_bf16") if f in flags]


def sizes(counts, device):
    "Each number of rows in a process of its own; the work per row in the last column should not grow."
    found = []
    for n in counts:
        steps = alone("bench.train", "--rows", n, "--device", device)
        base = steps[0]["peak_mib"]
        for s in steps[1:]:
            found.append(dict(rows=n, step=s["step"], seconds=s["seconds"], s_per_million=s["seconds"]*1e6/n,
                              peak_mib=s["peak_mib"],
                              mib_per_million=(s["peak_mib"] - base)*1e6/n))
        found.append(dict(rows=n, step="all", seconds=sum(s["seconds"] for s in steps[1:]),
                          s_per_million=sum(s["seconds"] for s in steps[1:])*1e6/n,
                          peak_mib=steps[-1]["peak_mib"],
                          mib_per_million=(steps[-1]["peak_mib"] - base)*1e6/n))
    return found


def main():
    "The command line."
    parser = options(__doc__)
    parser.add_argument("--large", action="store_true", help="10^7 rows as well")
    parser.add_argument("--rows", type=int,
                        help="only the path for this many rows, as JSON: what each size is run with")
    args = parser.parse_args()
    if args.rows:
        path(2000, args.device) # what is imported or loaded only when it is first used
        return print(json.dumps(path(args.rows, args.device)))
    events, batch, counts = (20_000, 512, (5_000,)) if args.quick else (300_000, 4096, (10**5, 10**6)
        + (10**7,)*args.large)
    # first: a process is born with the peak of the one that starts it
    units, by_size = bf16_units(), sizes(counts, args.device)
    rows = speed(events, args.device, batch, 1 if args.quick else args.repeats)
    rows = [r | dict(counts=args.device != "cpu" or r["precision"] == "fp32" or bool(units)) for r in rows]
    record("train", rows, args.device, write=not args.quick, bf16_units=units, sizes=by_size)
    record("train by size", by_size, args.device, write=False)


if __name__ == "__main__":
    main()
