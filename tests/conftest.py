"""Marks, threads and the table of seconds per notebook.

slow     skipped unless --slow (or MULTISCENE_SLOW=1)
gpu      needs CUDA: skipped where there is none
coupons  needs the coupon file in $MULTISCENE_DATA: skipped where it is not
wrong    a message that a user can meet, its cause and its remedy; the page What went wrong? is made of these
formula  names the numbered formula that a test computes another way; see test_ledger.py
"""
import os

os.environ.pop("IN_TEST", None)  # nbdev's own; see tools.notebooks.child_env

import pytest
import torch
from hypothesis import settings

from tools import run_notebooks

torch.set_num_threads(1)
# The machine's load must not decide whether a property test passes.
settings.register_profile("house", deadline=None)
settings.load_profile("house")


def pytest_addoption(parser):
    group = parser.getgroup("multiscene_rec")
    group.addoption("--slow", action="store_true", default=os.environ.get("MULTISCENE_SLOW") == "1",
                    help="also run the slow tests, and the cells of notebooks flagged slow")


def pytest_configure(config):
    for line in ("slow: takes over ten seconds; run with --slow",
                 "gpu: needs an NVIDIA GPU",
                 "coupons: needs the coupon file in $MULTISCENE_DATA",
                 "formula(tag): computes the numbered formula another way",
                 "wrong(message, cause, remedy, area): a message that a user can meet; the site's page What "
                 "went wrong? is made of these",
                 "notebook: runs a whole notebook",
                 "swap: runs the tests of one notebook's formulas with a wrong symbol"):
        config.addinivalue_line("markers", line)


def pytest_collection_modifyitems(config, items):
    missing = {"slow": None if config.getoption("--slow") else "slow: run with --slow, or make test-all",
               "gpu": None if run_notebooks.have_cuda() else "needs an NVIDIA GPU; PyTorch sees none",
               "coupons": None if run_notebooks.have_coupons() else
               f"needs {run_notebooks.COUPONS}/*.csv in the folder that $MULTISCENE_DATA names"}
    for item in items:
        for mark, reason in missing.items():
            if reason and item.get_closest_marker(mark): item.add_marker(pytest.mark.skip(reason=reason))
    # The long ones first, so that no worker is left with one at the end. With two workers in mind, every
    # second one: worksteal gives each worker one half of the list.
    long = [item for item in items if item.get_closest_marker("notebook") or item.get_closest_marker("swap")]
    rest = [item for item in items if not (item.get_closest_marker("notebook")
                                           or item.get_closest_marker("swap"))]
    half = len(items)//2
    items[:] = long[::2] + rest[:half - len(long[::2])] + long[1::2] + rest[half - len(long[::2]):]


def pytest_terminal_summary(terminalreporter):
    said = [pair for reports in terminalreporter.stats.values() for report in reports
            if getattr(report, "when", "") == "call" for pair in report.user_properties]
    for alone, everything in [value for key, value in said if key == "import_ms"]:
        terminalreporter.write_line(f"import multiscene_rec: {alone:.1f} ms beyond torch, numpy and pandas; "
                                    f"all its modules: {everything:.0f} ms")
    rates = sorted(value for key, value in said if key == "kill_rate")
    if rates:
        terminalreporter.section("mutants killed per exercise, of those that change something")
        for name, killed, counted, same in rates:
            terminalreporter.write_line(f"{name:<14} {killed:4d}/{counted:<4d} {killed/counted:7.1%}"
                                        + f"  equivalent: {'; '.join(same)}"*bool(same))
        killed, counted = sum(r[1] for r in rates), sum(r[2] for r in rates)
        terminalreporter.write_line(f"{'in all':<14} {killed:4d}/{counted:<4d} {killed/counted:7.1%}")
    rows = [value for key, value in said if key == "notebook"]
    if rows:
        terminalreporter.section("seconds per notebook")
        for name, seconds in sorted(rows): terminalreporter.write_line(f"{seconds:7.1f} s  {name}")
        terminalreporter.write_line(f"{sum(seconds for _, seconds in rows):7.1f} s  in all")
