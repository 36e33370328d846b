"""What all models share: a registry of names, checks, files, and vectors of items. Hand-written; not part of
a lesson. Notebook 08 explains what a model is and imports it from here.
"""
import importlib
import inspect
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import multiscene_rec

from .checks import damage_named, get_params
from .data import Batch
from .fusion import fusion_names
from .preprocess import Feature, Spec, Task
from .storage import build_from, check_finite, read_record, write_record

__all__ = ["Explanation", "Recommender", "model_names", "model_class", "known_arguments", "build",
           "content_vectors", "plain_params", "user_modules", "spec_from"]

FORMAT = 3 # of model.json


# The registry

_MODELS = {} # Name: class, filled when a class is defined

def _snake(name): # TextAndSequence -> text_and_sequence
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()

def _origin(kind): # A cell that runs again defines its class under the same module and name
    return f"{kind.__module__}.{kind.__qualname__}"

def _register(kind, name):
    old, home, owner = _MODELS.get(name), multiscene_rec._MODELS.get(name), None
    if kind.__module__ != f"multiscene_rec.{home}": # the package always gets its own names
        if old is not None and _origin(old) != _origin(kind): owner = _origin(old)
        elif home and kind.__module__ != "__main__": # a lesson may define what its module will hold
            owner = f"multiscene_rec.{home}"
    if owner:
        raise ValueError(f"the name {name!r} belongs to {owner}: choose another one, "
                         f"class {kind.__name__}(Recommender, name=\"...\")")
    _MODELS[name] = kind


def model_names() -> tuple: # In the order of the course, then your own
    """The models that can be built by name: the package's, and every `Recommender` that has been defined."""
    return tuple(dict.fromkeys([*multiscene_rec._MODELS, *_MODELS]))


def model_class(
    name: str, # One of model_names()
) -> type: # The class
    """The class behind a name; a model of the package is imported when it is first asked for.

    Raises: `ValueError` naming the known models.
    """
    home = multiscene_rec._MODELS.get(name)
    if home and name not in _MODELS: importlib.import_module(f"multiscene_rec.{home}")
    if name in _MODELS: return _MODELS[name]
    if name in fusion_names():
        raise ValueError(f"{name!r} is a fusion, not a model: use build(\"interest\", spec, fusion={name!r})")
    raise ValueError(f"model {name!r} is unknown; choose from {', '.join(model_names())}; "
                     "a model of your own is known once the module that defines it has been imported")


def known_arguments(
    kind: type, # A subclass of Recommender
    params: dict, # Arguments by name
) -> dict: # Every argument of the class and its default; inspect.Parameter.empty where there is none
    """Refuse an argument that a model does not have. Raises: `ValueError` naming those it has."""
    parameters = inspect.signature(kind.__init__).parameters.items()
    known = {name: p.default for name, p in parameters if name not in ("self", "spec")}
    if unknown := [name for name in params if name not in known]:
        raise ValueError(f"model {kind.name!r} has no argument {unknown[0]!r}; "
                         f"it has {', '.join(known) or 'none'}")
    return known


def build(
    name: str, # One of model_names()
    spec: Spec, # What the data holds
    **params, # Arguments of the model
) -> nn.Module: # A fresh Recommender
    """Build a model by name.

    Raises: `ValueError` for an unknown name or argument, naming the known ones.
    """
    kind = model_class(name)
    known_arguments(kind, params)
    return kind(spec, **params)


_LOSS = [] # The function last passed to Recommender.default_loss


# The base class

class Explanation(NamedTuple):
    """What a model can say about its scores."""
    logits: torch.Tensor # (B,) log-odds of a click
    weights: torch.Tensor # (B, S) how much each scenario's history counted; unitless, 0 where there is none


class Recommender(nn.Module):
    """What every model is: a module that knows its `spec` and its arguments, and maps a batch to log-odds.

    A subclass takes `spec` first, keeps every other argument under its own name, and defines `forward`. It is
    known by its name as soon as it is defined: `class Star(Recommender, name="star")`.

    Raises: `ValueError` if the spec is not a `Spec`, or the name is taken.
    """
    def __init_subclass__(cls, name: str | None = None, **kwargs):
        super().__init_subclass__(**kwargs)
        cls.name = name or _snake(cls.__name__)
        _register(cls, cls.name)

    def __init__(self,
        spec: Spec, # What the data holds, from Preprocessor.spec
    ):
        super().__init__()
        if not isinstance(spec, Spec):
            is_fitted = isinstance(getattr(spec, "spec", None), Spec)
            remedy = "pass its spec" if is_fitted else "a Spec comes from a fitted preprocessor"
            raise ValueError(
                f"{type(self).__name__} needs a Spec, got {type(spec).__name__}: {remedy}: prep.spec")
        self.spec = spec

    def get_params(self) -> dict: # Name: value
        """The arguments it was made with, apart from the spec.

        Raises: `TypeError` naming an argument that `__init__` does not keep.
        """
        return get_params(self, skip=("spec",))

    def loss(self, batch: Batch) -> torch.Tensor: # Scalar, nats per row
        """What training minimises: the mean binary cross-entropy, summed over the tasks. Formula: (8.9)."""
        if not _LOSS: importlib.import_module("multiscene_rec.model")
        return _LOSS[0](self(batch), batch.label, self.spec.tasks)

    @staticmethod
    def default_loss(
        function, # Function of logits, labels and tasks
    ): # The same function
        """Make a function the loss of every model without one of its own; notebook 08 calls it."""
        _LOSS[:] = [function]
        return function

    def explain(self, batch: Batch) -> "Explanation | None": # None if it has no explanation
        """Score each row and say how much each scenario's history counted."""

    def item_vectors(self, batch: Batch) -> torch.Tensor: # (B, m) float
        """Describe each row's item by a vector, for diverse lists; here by what the batch holds about it."""
        return content_vectors(batch, self.spec)

    @classmethod
    def parts(cls,
        schema, # Which column means what
        items, # The table of items
    ) -> tuple | None: # Parts of a preprocessor; None for the usual four
        """What the preprocessor of this model is made of; the command asks for it."""

    def serving(self, prep): # A rank.Scorer
        """What scores all items for some users: the whole forward pass, unless the model has a faster way."""
        return multiscene_rec.rank.Scorer(self, prep)

    def save(self, folder: str | Path) -> str: # The record's checksum
        """Save it as `model.json` and `model.safetensors`.

        Raises: `ValueError` for a tensor that is not finite, `TypeError` for an argument that JSON cannot
        hold.
        """
        kind, weights = type(self), self.state_dict()
        check_finite(weights, f"{kind.__name__}.save")
        record = dict(format=FORMAT, model=kind.name, defined=f"{kind.__module__}:{kind.__qualname__}",
                      needs=user_modules(self), spec=asdict(self.spec), params=plain_params(self))
        return write_record(Path(folder), "model", record, weights)

    @classmethod
    def load(cls, folder: str | Path) -> "Recommender": # The same model, on the CPU, in evaluation mode
        """Load a saved model.

        Raises: `FileNotFoundError`; `ValueError` for a damaged file; `ImportError` for a model whose class is
        not defined here.
        """
        folder = Path(folder)
        path = folder/"model.json"
        record, weights = read_record(folder, "model", "Recommender.save", FORMAT)
        with damage_named(path, "Recommender.save"):
            name, defined, spec = record["model"], record["defined"], spec_from(record["spec"])
            params = {key: _from_plain(value) for key, value in record["params"].items()}
            needs = [str(module) for module in record.get("needs", ())]
        if name not in model_names(): raise _not_defined(path, name, defined)
        kind = model_class(name)
        if not issubclass(kind, cls):
            raise ValueError(f"{path} holds a model of class {kind.__name__}, not {cls.__name__}: "
                             f"load it with {kind.__name__}.load or Recommender.load")
        check_finite(weights, folder/"model.safetensors")
        try: return build_from(folder/"model", lambda: kind(spec, **params), weights).eval()
        except ValueError as e:
            missing = [module for module in needs if module not in sys.modules]
            if not missing: raise
            raise ImportError(f"{path} holds a model of class {kind.__name__} with parts that {missing[0]} "
                              f"defines: import {missing[0]} first, then load again") from e

def _not_defined(path, name, defined): # What to do about a model that is not defined in this process
    module, _, kind = str(defined).partition(":")
    in_notebook = f"run the cell or script that defines class {kind}"
    remedy = in_notebook if module == "__main__" else f"import {module}"
    return ImportError(f"{path} holds a model {name!r}, defined in {defined}, which has not been imported: "
                       f"{remedy} first, then load again")


# Arguments as JSON, which has one kind of list: a bare one stands for a tuple, so that both come back

def _to_plain(x):
    if isinstance(x, tuple): return [_to_plain(v) for v in x]
    if isinstance(x, list): return dict(list=[_to_plain(v) for v in x])
    if not isinstance(x, dict): return x
    if odd := [k for k in x if not isinstance(k, str)]:
        raise TypeError(f"the key {odd[0]!r} of a dict is not text")
    return dict(dict={k: _to_plain(v) for k, v in x.items()})

def _from_plain(x):
    if isinstance(x, list): return tuple(map(_from_plain, x))
    if not isinstance(x, dict): return x
    if "list" in x: return list(map(_from_plain, x["list"]))
    return {k: _from_plain(v) for k, v in x["dict"].items()}

def plain_params(
    model: Recommender, # Whose arguments
) -> dict: # Name: value, as JSON can hold it
    """The arguments of a model as plain data. Raises: `TypeError` naming one that JSON cannot hold."""
    plain = {}
    for name, value in model.get_params().items():
        try:
            plain[name] = _to_plain(value)
            json.dumps(plain[name], allow_nan=False)
        except (TypeError, ValueError) as e:
            raise TypeError(
                f"{type(model).__name__}.save: argument {name!r} is {repr(value)[:60]}, which JSON cannot "
                f"hold ({e}): use numbers, text, None, and tuples, lists and dicts of these") from None
    return plain

def user_modules(
    model: nn.Module, # Any model
) -> list: # Names, sorted
    """Modules outside the package that define a part of a model, such as a fusion of your own."""
    known = {name for name in sys.modules if name.startswith(("torch.", "multiscene_rec."))}
    return sorted({type(part).__module__ for part in model.modules()} - known - {"__main__"})

def _tuples(x): # Lists, at any depth, as tuples
    if isinstance(x, dict): return {k: _tuples(v) for k, v in x.items()}
    return tuple(map(_tuples, x)) if isinstance(x, list) else x

def spec_from(
    plain: dict, # As dataclasses.asdict returns it, with lists for tuples
) -> Spec: # The same spec
    """Build a Spec from plain data. Raises: `ValueError` or `TypeError` if it does not describe one."""
    plain = _tuples(plain)
    features = tuple(Feature(**x) for x in plain["features"])
    tasks = tuple(Task(**x) for x in plain["tasks"])
    return Spec(**plain | dict(features=features, tasks=tasks))


# What items are like

def content_vectors(
    batch: Batch, # B rows
    spec: Spec, # What the batch holds
) -> torch.Tensor: # (B, m) float32; cosines count equal words, near numbers and similar vectors
    """What a batch holds about its items: their vectors, their numbers, and per category a random direction
    for each word.

    The last category counts only if it is the only one: it is the item's own id, which no two items share.

    Raises: `ValueError` if the spec has no features of the item.
    """
    parts = [batch.tables[f.name][batch.item_row] for f in spec.of("vector", "item")
             if f.name in batch.tables]
    names, fields = list(spec.fields), spec.of("category", "item")
    if len(spec.item_dense): parts.append(batch.dense[:, [spec.dense.index(c) for c in spec.item_dense]])
    for f in fields[:-1] or fields:
        j = names.index(f.name)
        words = torch.randn(f.size, 32, generator=torch.Generator().manual_seed(j))
        words = nn.functional.normalize(words, dim=1).to(batch.device)
        parts.append(words[batch.fields[:, j] - spec.offsets[j]])
    if not parts:
        raise ValueError("the spec has no item features to compare items by: "
                         "give the model an item_vectors method, or ask for lists without diversity")
    return torch.cat([part.float() for part in parts], 1)
