"""Does a test notice when its formula is wrong? A helper of test_ledger.py, run in a process of its own.

    python tests/course/swap.py LEDGER SECTION [--tests DIR] [--package NAME] [--only TAG]

For each numbered formula of one section of the ledger, the symbol is swapped for one whose output is
multiplied by 1.01
and increased by 0.01, and every test marked with the formula's number runs against it. Prints one JSON
object:
tag -> {"tests": {name: "failed", "passed" or "skipped"}, "changed": whether the swapped symbol was called and
gave
numbers, "error": why the swap was not possible}.

A function that returns nothing has its output in what it changes: the tensors and arrays that a call changed
in its
arguments are shifted instead.
"""
import argparse
import copy
import dataclasses
import functools
import importlib
import inspect
import json
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from _pytest.runner import runtestprotocol


class Shift:
    "Multiply every number by 1.01 and add 0.01; remember whether there was any."
    def __init__(self): self.changed = False

    def __call__(self, x):
        "A shifted copy of a tensor, array, frame, number, or of what holds them."
        if isinstance(x, (bool, np.bool_, str, bytes)) or x is None: return x
        if isinstance(x, torch.nn.Module): return self._copied(x)
        if isinstance(x, torch.Tensor): return x if x.dtype == torch.bool else self._number(x)
        if isinstance(x, np.ndarray): return self._number(x) if x.dtype.kind in "iufc" else x
        if isinstance(x, (int, float, complex, np.number)): return self._number(x)
        if isinstance(x, pd.Series): return self._number(x) if x.dtype.kind in "iuf" else x
        if isinstance(x, pd.DataFrame):
            out = x.copy()
            for name in x.columns: out[name] = self(x[name])
            return out
        if isinstance(x, dict): return {key: self(value) for key, value in x.items()}
        if isinstance(x, tuple) and hasattr(x, "_fields"): return type(x)(*map(self, x))
        if isinstance(x, (list, tuple, set, frozenset)): return type(x)(map(self, x))
        if isinstance(x, types.GeneratorType): return (self(item) for item in x)
        if dataclasses.is_dataclass(x) and not isinstance(x, type):
            out = copy.copy(x)
            for field in dataclasses.fields(x):
                object.__setattr__(out, field.name, self(getattr(x, field.name)))
            return out
        return x

    def _number(self, x):
        self.changed = True
        return x*1.01 + 0.01

    def _copied(self, module):
        out = copy.deepcopy(module)
        for p in out.parameters(): self.in_place(p)
        return out

    def in_place(self, x):
        "Shift a tensor or array where it is."
        self.changed = True
        if isinstance(x, torch.Tensor):
            with torch.no_grad(): x.mul_(1.01).add_(0.01)
        else: x[...] = x*1.01 + 0.01


def held(x, depth=4):
    "The float tensors and arrays inside an argument."
    if isinstance(x, torch.Tensor): return [x] if x.is_floating_point() else []
    if isinstance(x, np.ndarray): return [x] if x.dtype.kind == "f" else []
    if depth == 0 or isinstance(x, (str, bytes, pd.DataFrame, pd.Series, type, types.ModuleType)): return []
    if isinstance(x, torch.nn.Module): inside = [*x.parameters(), *x.buffers()]
    elif isinstance(x, dict): inside = list(x.values())
    elif isinstance(x, (list, tuple)): inside = list(x)[:1000]
    else: inside = list(getattr(x, "__dict__", {}).values())
    return [t for item in inside for t in held(item, depth - 1)]


def values(x): return x.detach().clone() if isinstance(x, torch.Tensor) else x.copy()


def same(a, b):
    return torch.equal(a.detach(), b) if isinstance(a, torch.Tensor) else np.array_equal(a, b, equal_nan=True)


def wrong(function, shift):
    "The function with its output shifted."
    @functools.wraps(function)
    def swapped(*args, **kwargs):
        before = [(t, values(t)) for t in held([args, kwargs])]
        result = function(*args, **kwargs)
        if result is not None: return shift(result)
        for t, old in {id(t): (t, old) for t, old in before}.values():
            if not same(t, old): shift.in_place(t)
        return None
    return swapped


def resolve(package, symbol):
    "The owner (module or class), the attribute's name, and what stands there."
    module, *path = symbol.split(".")
    owner = importlib.import_module(f"{package}.{module}")
    for name in path[:-1]: owner = getattr(owner, name)
    return owner, path[-1], inspect.getattr_static(owner, path[-1])


class Swapped:
    "A context in which a symbol is wrong, wherever the package's modules hold it."
    def __init__(self, package, symbol):
        self.shift = Shift()
        self.owner, self.name, self.old = resolve(package, symbol)
        self.inherited = self.name not in vars(self.owner)
        kind, old = type(self.old), self.old
        if isinstance(old, (staticmethod, classmethod)): self.new = kind(wrong(old.__func__, self.shift))
        elif isinstance(old, property): self.new = property(wrong(old.fget, self.shift), old.fset)
        elif isinstance(old, functools.cached_property):
            self.new = functools.cached_property(wrong(old.func, self.shift))
            self.new.__set_name__(self.owner, self.name)
        elif isinstance(old, type) and issubclass(old, torch.autograd.Function):
            raise TypeError("name the Function's forward or backward")
        elif isinstance(old, type):
            raise TypeError("the ledger names a class; name the method that computes the formula")
        elif callable(old): self.new = wrong(old, self.shift)
        else: raise TypeError(f"a {kind.__name__} cannot be swapped; name a function or a method")
        self.package = package

    def _replace(self, old, new):
        setattr(self.owner, self.name, new)
        # `from .core import f` in a later module holds the same f
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] != self.package: continue
            for key, value in list(vars(module).items()):
                if value is old: setattr(module, key, new)

    def __enter__(self):
        self._replace(self.old, self.new)
        return self.shift

    def __exit__(self, *_):
        self._replace(self.new, self.old)
        if self.inherited: delattr(self.owner, self.name)


class Plugin:
    "Instead of running the tests once, run those of each formula with its symbol swapped."
    def __init__(self, package, entries):
        self.package, self.entries, self.result = package, entries, {}

    def pytest_runtestloop(self, session):
        "pytest's loop over the tests."
        for entry in self.entries:
            tests = [i for i in session.items
                     if any(str(tag) == entry["tag"] for mark in i.iter_markers("formula")
                            for tag in mark.args)]
            self.result[entry["tag"]] = self._try(entry["symbol"], tests)
        return True

    def _try(self, symbol, tests):
        out = {"tests": {}, "changed": False, "error": None}
        try: swapped = Swapped(self.package, symbol)
        except (ImportError, AttributeError, TypeError) as e:
            return {**out, "error": f"{type(e).__name__}: {e}"}
        for item in tests:
            swapped.shift.changed = False
            with swapped as shift:
                item._initrequest()
                reports = runtestprotocol(item, log=False, nextitem=None)
            worst = "failed" if any(r.failed for r in reports) else "skipped" if any(r.skipped
                for r in reports) else "passed"
            name = item.nodeid.partition("[")[0]
            # One failing case of a parametrised test is enough: not every case need touch the symbol.
            seen = out["tests"].get(name)
            out["tests"][name] = "failed" if "failed" in (seen, worst) else worst if seen in (None,
                "skipped") else seen
            out["changed"] |= shift.changed
        return out


def main():
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ledger")
    parser.add_argument("section", help='a table of the ledger, e.g. 05_fusion')
    parser.add_argument("--tests", default=str(Path(__file__).parent.parent))
    parser.add_argument("--package", default="multiscene_rec")
    parser.add_argument("--only", help="one tag")
    parser.add_argument("--json", help="file for the result; default the screen")
    args = parser.parse_args()
    with open(args.ledger, "rb") as f: entries = tomllib.load(f)[args.section]
    entries = [e for e in entries if args.only in (None, e["tag"])]
    from hypothesis import Phase, settings
    # A failing example is what we want here: no time for shrinking it, no place for remembering it.
    settings.register_profile("swap", max_examples=20, database=None, derandomize=True, deadline=None,
                              phases=(Phase.explicit, Phase.generate))
    plugin = Plugin(args.package, entries)
    plugin.pytest_collection_finish = lambda: settings.load_profile("swap")
    tags = {e["tag"] for e in entries}
    files = [str(p) for p in sorted(Path(args.tests).rglob("test_*.py"))
             if "formula(" in (text := p.read_text(encoding="utf-8"))
             and any(f'"{tag}"' in text or f"'{tag}'" in text for tag in tags)]
    if files:
        code = pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", "-m",
                            "formula", "--rootdir", args.tests,
                            "--import-mode=importlib", *files], plugins=[plugin])
        if code not in (0, 5): sys.exit(f"pytest could not collect the tests: exit {code}")
    result = json.dumps(plugin.result or {tag: {"tests": {}, "changed": False, "error": None}
                                          for tag in tags})
    if args.json: Path(args.json).write_text(result, encoding="utf-8")
    else: print(result)


if __name__ == "__main__":
    main()
