"""Timing and results for all benchmarks.

A speed alone says little about a program and much about the machine. So each benchmark runs two ways of doing
the same
work in turn (A B A B ...) in one process, and reports the ratio, pair by pair. `bench/results/NAME-cpu.json`
(or -cuda)
holds the last run with date, commit and hardware.
"""
import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import pandas as pd
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT/"bench"/"results"


def options(description, device=True):
    "The command line that all benchmarks share."
    parser = argparse.ArgumentParser(description=description,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true",
                        help="tiny sizes: does it run at all? Nothing is written")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs, after one that is not counted")
    if device: parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def in_turn(ways, repeats=5, sync=lambda: None):
    """Seconds of each way, a dict name -> list: all ways once uncounted, then A B A B ...; `sync` waits
    for a GPU."""
    seconds = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, work in ways.items():
            sync()
            start = time.perf_counter()
            work()
            sync()
            if turn: seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds, other):
    "Median, smallest and largest of seconds/other, pair by pair."
    pairs = [a/b for a, b in zip(seconds, other, strict=True)]
    return statistics.median(pairs), min(pairs), max(pairs)


def peak_mib():
    "Largest memory of this process so far, in MiB."
    status = Path("/proc/self/status")  # a child begins with its parent's ru_maxrss; VmHWM is its own
    if status.exists(): return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1])/2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak/2**20 if sys.platform == "darwin" else peak/2**10


def alone(module, *args, timeout=3600):
    """Run `python -m module args` in a fresh process, so that memory is its own; what it prints as JSON on
    its last line."""
    done = subprocess.run([sys.executable, "-m", module, *map(str, args)], cwd=ROOT, capture_output=True,
                          text=True, timeout=timeout)
    if done.returncode: raise RuntimeError(f"{module} {args} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def hardware(device="cpu"):
    "What the figures were taken on."
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        name = {k.strip(): v.strip() for k, v in lines.items()}.get("model name", name)
    found = dict(cpu=name, cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity")
                 else os.cpu_count(),
                 threads=torch.get_num_threads(), cpu_capability=torch.backends.cpu.get_cpu_capability())
    if device.startswith("cuda"): found["gpu"] = torch.cuda.get_device_name()
    return found


def _git(*args):
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def record(name, rows, device="cpu", write=True, **more):
    """Print the rows as a table and write them, with when, which commit and on what, to
    bench/results/NAME-DEVICE.json."""
    print(f"\n{name} ({device})\n" + pd.DataFrame(rows).to_string(index=False,
        float_format=lambda x: f"{x:.4g}", na_rep="-"), flush=True)
    if not write: return
    changed = _git("status", "--porcelain", "--", "multiscene_rec", "bench/*.py")
    about = dict(benchmark=name, date=datetime.now(timezone.utc).strftime("%Y-%m-%d"),
                 commit=_git("rev-parse", "--short", "HEAD"),
                 changed_since=bool(changed), hardware=hardware(device), python=platform.python_version(),
                 torch=torch.__version__,
                 pandas=pd.__version__, rows=rows, **more)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS/f"{name}-{device.split(':')[0]}.json").write_text(json.dumps(about, indent=1) + "\n",
        encoding="utf-8")
