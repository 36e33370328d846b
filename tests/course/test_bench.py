"""The benchmarks run, at sizes that say nothing about speed; what they wrote last has date, commit and
hardware."""
import json
import re
import subprocess
import sys

import pytest

from bench import common
from tools import notebooks

NAMES = ("rank", "train", "preprocess", "notebooks")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in ("train", "notebooks")
                                  else name for name in NAMES])
def test_a_benchmark_runs(name):
    if name == "preprocess": pytest.importorskip("polars", reason="needs polars: pip install -e '.[bench]'")
    done = subprocess.run([sys.executable, "-m", f"bench.{name}", "--quick"], cwd=notebooks.ROOT,
                          env=notebooks.child_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{name} (cpu)" in done.stdout or f"{name}-" in done.stdout or name in done.stdout


def test_results_say_when_where_and_on_what():
    files = list(common.RESULTS.glob("*.json"))
    assert {f.stem.split("-")[0] for f in files} >= {*NAMES, "imports"}
    for path in files:
        run = json.loads(path.read_text())
        assert run["rows"] and run["date"] >= "2026-11-24" and run["commit"] and run["hardware"][
            "cores"] >= 1 and run["torch"], path.name


def test_in_turn_alternates_and_ratios_go_pair_by_pair():
    order = []
    seconds = common.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3)
    assert order == ["a", "b"]*4 and [len(s) for s in seconds.values()] == [3, 3]
    assert common.ratio([2., 9., 4.], [1., 3., 4.]) == (2., 1., 3.)


@pytest.mark.parametrize("path", sorted((notebooks.ROOT/"bench").glob("*.py")), ids=lambda p: p.stem)
def test_what_is_measured_is_what_users_can_call(path):
    private = re.findall(r"\b(?:core|data|logs|preprocess|fusion|model|train|rank)\._[a-z]\w*",
                         path.read_text(encoding="utf-8"))
    assert not private, f"{path.name} calls {', '.join(private)}"
