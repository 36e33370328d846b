"""Seconds of each notebook, run one at a time as `make test` runs them, and of importing the package beside
PyTorch.

    python -m bench.notebooks            all notebooks
    python -m bench.notebooks --quick    one notebook, nothing written
"""
import statistics
import subprocess
import sys
import time

from bench.common import ROOT, options, record
from tools import notebooks, run_notebooks

_IMPORTS = {"python alone": "pass", "import torch": "import torch",
            "import torch, numpy, pandas": "import torch, numpy, pandas",
            "import multiscene_rec": "import multiscene_rec", "from multiscene_rec import fit":
            "from multiscene_rec import fit",
            "from multiscene_rec import recommend, read_log":
            "from multiscene_rec import recommend, read_log"}


def import_seconds(repeats):
    "Median seconds of a fresh Python that only imports, all in turn."
    found = {name: [] for name in _IMPORTS}
    for turn in range(repeats + 1):
        for name, code in _IMPORTS.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
            if turn: found[name].append(time.perf_counter() - start)
    torch = statistics.median(found["import torch"])
    return [dict(what=name, seconds=statistics.median(s), of_import_torch=statistics.median(s)/torch)
            for name, s in found.items()]


def main():
    "The command line."
    args = options(__doc__, device=False).parse_args()
    record("imports", import_seconds(1 if args.quick else args.repeats), write=not args.quick)
    rows = []
    for path in notebooks.paths()[:1 if args.quick else None]:
        passed, seconds, said = run_notebooks.run(path, run_notebooks.default_flags())
        if not passed: sys.exit(f"{path.name} failed:\n{said}")
        rows.append(dict(notebook=path.stem, seconds=round(seconds, 1)))
    rows.append(dict(notebook="in all", seconds=round(sum(r["seconds"] for r in rows), 1)))
    record("notebooks", rows, write=not args.quick)


if __name__ == "__main__":
    main()
