"""What a preprocessor is made of: parts that turn columns into tensors, and the `Preprocessor` that calls
them in turn. Written by hand; notebook 03 derives what they compute."""
import copy
import importlib
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import multiscene_rec

from .checks import damage_named, fitted, get_params, whole_number
from .columns import (
    as_float,
    check_columns,
    known_numbers,
    numbers,
    one_row_per_id,
    positions,
    seconds,
    sort_keys,
)
from .core import check_shape
from .data import Batch, Schema
from .events import EventLog, stored_frame
from .features import Feature, Spec, Task
from .storage import pack_frame, read_record, record_checksum, write_record

__all__ = ["Context", "Part", "Categories", "Numbers", "Labels", "history_features", "Histories", "item_rows",
           "Vectors", "Sequences", "Preprocessor"]

# The formulas of notebook 03 are imported by the functions that use them: the notebook's module imports the
# classes below, and either may be imported first.


@dataclass
class Context:
    """Where a part looks things up while it fits or transforms."""
    schema: Schema # Which column means what
    scenarios: tuple # S names
    users: pd.DataFrame # One row per user
    items: pd.DataFrame # One row per item
    log: EventLog | None = None # The events that may count as somebody's past; None while fitting
    known: dict = field(default_factory=dict) # Vocabularies counted so far

    def column(self,
        frame: pd.DataFrame, # Rows
        name: str, # A column of the schema
    ) -> pd.Series: # (n,) its values; missing where the id is new
        """A column of the frame, or looked up by the row's item or user. Raises: `ValueError` saying where it
        was looked for."""
        if name in frame: return frame[name].reset_index(drop=True)
        for table, key in ((self.items, self.schema.item), (self.users, self.schema.user)):
            if name in table:
                return table[name].reindex(positions(table[key], frame[key], key)).reset_index(drop=True)
        remedy = ("" if name in self.schema.item_columns else "pass users, or " if self.log is None
                  else "pass log=EventLog(events, users), or ")
        raise ValueError(f"column {name!r} is neither in the frame nor in users or items; {remedy}add the "
                         "column, or take it out of the schema")

    def of(self,
        name: str, # A column of the schema
    ) -> str: # item, user or context
        """Whether a column describes the item, the user or the moment."""
        if name in (*self.schema.item_columns, self.schema.item): return "item"
        return "user" if name in self.users else "context"

    def vocabulary(self,
        frame: pd.DataFrame, # The training rows
        name: str, # A column of the schema
        min_count: int = 1, # As for Vocabulary
    ): # A Vocabulary, fitted; counted once for all parts that ask
        """The words of a column. Raises: `ValueError` as `Vocabulary.fit` does."""
        from .preprocess import Vocabulary
        if (name, min_count) not in self.known:
            self.known[name, min_count] = Vocabulary(min_count).fit(self.column(frame, name))
        return self.known[name, min_count]


# What was learned, as plain data and tensors

_IS = "is" # Marks plain data that stands for something else

def _classes(): # What may be learned besides plain data, by name
    from .preprocess import MinMax, StandardScore, Vocabulary
    return {kind.__name__: kind for kind in (MinMax, StandardScore, Vocabulary, Feature, Task)}


def _pack(x, name, tensors): # Plain data for JSON; tensors and arrays go among the tensors, under their name
    if isinstance(x, np.generic): x = x.item()
    if x is None or isinstance(x, (str, bool, int, float)): return x
    if isinstance(x, torch.Tensor) or isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
        tensors[name] = torch.as_tensor(x)
        return {_IS: "tensor" if isinstance(x, torch.Tensor) else "array", "name": name}
    if isinstance(x, dict) and _IS not in x and all(isinstance(k, str) for k in x):
        return {k: _pack(v, f"{name}.{k}", tensors) for k, v in x.items()}
    if isinstance(x, (list, tuple, np.ndarray)):
        return [_pack(v, f"{name}.{k}", tensors) for k, v in enumerate(x)]
    if type(x) in _classes().values():
        return {_IS: type(x).__name__} | {f.name: _pack(getattr(x, f.name), f"{name}.{f.name}", tensors)
                                          for f in fields(x)}
    raise TypeError(f"{name} holds {type(x).__name__}, which cannot be saved: learn plain data, arrays or "
                    "tensors, or define state and from_state")


def _unpack(x, tensors): # The reverse of _pack; lists come back as tuples
    if isinstance(x, list): return tuple(_unpack(v, tensors) for v in x)
    if not isinstance(x, dict): return x
    kind, values = x.get(_IS), {k: _unpack(v, tensors) for k, v in x.items() if k != _IS}
    if kind == "tensor": return tensors[values["name"]]
    if kind == "array": return tensors[values["name"]].numpy()
    return values if kind is None else _sound(_classes()[kind](**values))


def _sound(x): # Refuse what cannot have been learned
    if hasattr(x, "words_"):
        kinds = {type(w) for w in x.words_}
        fit = kinds <= {str} or kinds == {int} and -2**63 <= min(x.words_) and max(x.words_) < 2**63
        if not fit or len(set(x.words_)) < len(x.words_):
            raise ValueError("a vocabulary is not a list of different words")
    if hasattr(x, "std_") and not (math.isfinite(x.mean_) and math.isfinite(x.std_) and x.std_ >= 0):
        raise ValueError("a scale is not a finite mean and standard deviation")
    return x


class Part:
    """One kind of input, from log to batch. A subclass defines `transform`, and `fit` if it learns something.

    What it learns is kept in attributes whose names end in an underscore, as plain data, arrays, tensors,
    vocabularies or scales; a saved preprocessor keeps them, and the arguments of `__init__`. A part is known
    by its name as soon as it is defined, so that a saved preprocessor can find it.
    """
    features: tuple = () # The features it adds to the Spec; known after fit at the latest
    tasks: tuple = () # The tasks it adds, likewise
    reads_log = False # Whether transform looks at context.log
    kinds: dict = {} # Name: class of every part that has been defined

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        name, module = cls.__name__, cls.__module__
        home = f"multiscene_rec.{multiscene_rec._PARTS.get(name)}"
        own = getattr(Part.kinds.get(name), "__module__", home if name in multiscene_rec._PARTS else module)
        if own.startswith("multiscene_rec.") and module not in (own, "__main__"):
            raise ValueError(f"the name {name!r} belongs to a part of the package: choose another one")
        Part.kinds[name] = cls

    def fit(self,
        train: pd.DataFrame, # Training rows, sorted by time
        context: Context, # Where columns are looked up
    ) -> "Part": # Itself
        """Learn, from training rows alone. A part that learns nothing leaves this out."""
        return self

    def transform(self,
        frame: pd.DataFrame, # Rows to make ready
        context: Context, # Where columns and the log are looked up
    ) -> tuple[dict, dict]: # Rows and tables of the batch, name: tensor
        """The part's tensors. Numbers of a row go into `dense`, beside those of other parts; every other name
        belongs to one part."""
        raise NotImplementedError(f"{type(self).__name__} defines no transform")

    def check(self) -> None:
        """Refuse values that cannot have been learned; called after reading a file. Raises: `ValueError`."""

    def state(self) -> tuple[dict, dict]: # Plain data for JSON; name: tensor
        """The part's arguments and what it learned. Raises: `TypeError` naming what cannot be saved."""
        params = get_params(self) if type(self).__init__ is not object.__init__ else {}
        learned = {k: v for k, v in vars(self).items() if k.endswith("_") and not k.startswith("_")}
        tensors = {}
        return {what: {k: _pack(v, k, tensors) for k, v in values.items()}
                for what, values in (("params", params), ("learned", learned))}, tensors

    @classmethod
    def from_state(cls,
        about: dict, # Plain data, as state returned it
        tensors: dict, # Name: tensor
    ) -> "Part": # Fitted
        """Rebuild a part from its state. Raises: `ValueError` for what cannot have been learned."""
        part, learned = cls(**_unpack(about["params"], tensors)), _unpack(about["learned"], tensors)
        for name, value in learned.items():
            if not name.endswith("_") or name.startswith("_"):
                raise ValueError(f"{name!r} cannot be the name of something learned")
            setattr(part, name, value)
        part.check()
        return part


def _part_class(name, defined, folder): # Parts of the package have a known home; a file imports nothing
    if name not in Part.kinds and name in multiscene_rec._PARTS:
        importlib.import_module(f"multiscene_rec.{multiscene_rec._PARTS[name]}")
    if name not in Part.kinds:
        raise ImportError(f"{folder} holds a part {name!r}, defined in {defined}, which has not been "
                          "imported: import that module first")
    return Part.kinds[name]


def _require(ok, what): # What a file says about something learned
    if not ok: raise ValueError(f"{what}: fit cannot have learned this")


def _all_vocabularies(words): # Whether a dict holds nothing else
    from .preprocess import Vocabulary
    return isinstance(words, dict) and all(isinstance(v, Vocabulary) for v in words.values())


# Words, numbers and labels

class Categories(Part):
    """Columns of words and ids become `fields` (B, F) int64: ids offset into one table; the first id of each
    field means unknown."""
    def __init__(self,
        min_count: int = 1, # Words seen less often among the training rows count as unknown
    ):
        self.min_count = whole_number("min_count", min_count)

    @property
    def features(self):
        "A category for each column."
        fitted(getattr(self, "words_", None), "Categories")
        return tuple(Feature(c, "category", len(v), self.of_[c]) for c, v in self.words_.items())

    def fit(self,
        train: pd.DataFrame, # Training rows, sorted by time
        context: Context, # Where columns are looked up
    ) -> "Categories": # Itself
        """Learn the words of the schema's categories and of the item id."""
        columns = (*context.schema.categorical, context.schema.item)
        self.words_ = {c: context.vocabulary(train, c, self.min_count) for c in columns}
        self.of_ = {c: context.of(c) for c in columns}
        return self

    def transform(self,
        frame: pd.DataFrame, # Rows to make ready
        context: Context, # Where columns are looked up
    ) -> tuple[dict, dict]: # fields (B, F), and no tables
        """Words to ids."""
        ids, offset = np.empty((len(frame), len(self.words_)), dtype=np.int64), 0
        for k, (c, v) in enumerate(self.words_.items()):
            ids[:, k] = positions(v.words_, context.column(frame, c), c) + (1 + offset)
            offset += len(v)
        return {"fields": torch.from_numpy(ids)}, {}

    def check(self):
        """Check the words of each column. Raises: `ValueError`."""
        ok = _all_vocabularies(self.words_) and self.words_.keys() == self.of_.keys()
        _require(ok, "words of categories")


def _too_large(x, name, ok): # The message for a number that cannot be scaled
    row = int(np.argmin(ok))
    return (f"column {name!r}, row {row}: {x[row]:g} is too large to be scaled; clean the log, or make it "
            "missing")


def _fit_scale(x, name): # Whether the tail is heavy, which takes a logarithm; the standard score after it
    from .preprocess import StandardScore, log_scale, skewness
    x = numbers(x, f"column {name!r}")
    known = known_numbers(x, f"column {name!r}")
    if abs(known).max() > 1e150: raise ValueError(_too_large(x, name, ~(abs(x) > 1e150)))
    logarithm = bool(known.min() >= 0 and skewness(known) > 1)
    return logarithm, StandardScore().fit(log_scale(known) if logarithm else known)


def _scale(x, name, logarithm, score): # (n,) float64; missing becomes 0, the mean
    from .preprocess import log_scale
    x = numbers(x, f"column {name!r}")
    if np.isinf(x).any():
        raise ValueError(f"column {name!r}, row {np.isinf(x).argmax()}: an infinite value; clean the log, or "
                         "make it missing")
    if logarithm and (x < 0).any():
        raise ValueError(
            f"column {name!r}, row {(x < 0).argmax()}: {x[(x < 0).argmax()]} is below 0, but no training "
            "row was; clean the log, or make it missing")
    with np.errstate(over="ignore"):
        z = score.transform(log_scale(x) if logarithm else x)
    z = np.nan_to_num(z, nan=0., posinf=np.inf, neginf=-np.inf)
    if not (ok := abs(z) < 3e38).all(): raise ValueError(_too_large(x, name, ok)) # beyond float32
    return z


class Numbers(Part):
    """Columns of quantities become `dense` (B, D) float32: standard scores, after a logarithm where the tail
    is heavy; missing is 0."""
    @property
    def features(self):
        "A number for each column."
        fitted(getattr(self, "scales_", None), "Numbers")
        return tuple(Feature(c, "number", 1, self.of_[c]) for c in self.scales_)

    def fit(self,
        train: pd.DataFrame, # Training rows, sorted by time
        context: Context, # Where columns are looked up
    ) -> "Numbers": # Itself
        """Learn the scales. Raises: `ValueError` naming a column and row that cannot be scaled."""
        columns = context.schema.numeric
        self.scales_ = {c: _fit_scale(context.column(train, c), c) for c in columns}
        self.of_ = {c: context.of(c) for c in columns}
        return self

    def transform(self,
        frame: pd.DataFrame, # Rows to make ready
        context: Context, # Where columns are looked up
    ) -> tuple[dict, dict]: # dense (B, D), and no tables
        """Quantities to scores. Raises: `ValueError` naming a column and row that cannot be scaled."""
        dense = [_scale(context.column(frame, c), c, *scale) for c, scale in self.scales_.items()]
        if not dense: return {"dense": torch.zeros(len(frame), 0)}, {}
        return {"dense": torch.from_numpy(np.stack(dense, 1, dtype=np.float32, casting="same_kind"))}, {}

    def check(self):
        """Check the scale of each column. Raises: `ValueError`."""
        from .preprocess import StandardScore
        _require(self.scales_.keys() == self.of_.keys(), "scales of numbers")
        for c, (logarithm, score) in self.scales_.items():
            _require(type(logarithm) is bool and isinstance(score, StandardScore), f"the scale of {c!r}")


def _check_classes(label, name): # Without a click, or without a miss, there is nothing to tell apart
    y = as_float(label)
    if not np.isfinite(y).all():
        raise ValueError(f"fit: column {name!r}, row {np.isfinite(y).argmin()} is not a label from 0 to 1; "
                         "clean the log first")
    if len(y) and (y == y[0]).all():
        raise ValueError(
            f"fit: every label is {y[0]:g}: a model cannot learn from one class; check the column {name!r}")


def _label_tensor(frame, schema): # (n,) float32; (n, T) where there are several labels
    label = np.stack([as_float(frame[name]) for name in schema.labels], 1)
    label = torch.from_numpy(label.astype(np.float32))
    return label if len(schema.labels) > 1 else label[:, 0].contiguous()


class Labels(Part):
    """The answers become `label` (B,) float32, or (B, T) where the schema names several; a frame without them
    gives none."""
    def __init__(self,
        weights: tuple = (), # Weight of each task's loss in the sum; () weighs all tasks alike
    ):
        self.weights = tuple(weights)

    @property
    def tasks(self):
        "A task for each label."
        fitted(getattr(self, "names_", None), "Labels")
        weights = self.weights or (1.,)*len(self.names_)
        if len(weights) != len(self.names_):
            raise ValueError(f"Labels: {len(weights)} weights for {len(self.names_)} labels")
        return tuple(Task(name, "binary", float(w)) for name, w in zip(self.names_, weights))

    def fit(self,
        train: pd.DataFrame, # Training rows, sorted by time
        context: Context, # Where columns are looked up
    ) -> "Labels": # Itself
        """Check that there is something to tell apart. Raises: `ValueError` naming the label that is missing
        or always the same."""
        for name in context.schema.labels: _check_classes(train[name], name)
        self.names_ = context.schema.labels
        return self

    def transform(self,
        frame: pd.DataFrame, # Rows to make ready
        context: Context, # Where columns are looked up
    ) -> tuple[dict, dict]: # label (B,) or (B, T), or nothing; no tables
        """The answers as they stand in the frame."""
        if not set(context.schema.labels) <= set(frame): return {}, {}
        return {"label": _label_tensor(frame, context.schema)}, {}

    def check(self):
        """Check the names of the labels. Raises: `ValueError`."""
        _require(self.names_ and all(isinstance(name, str) for name in self.names_), "names of labels")


# Histories

_BLOCK = 2**21 # Numbers of the sums (3.8) that are held at a time

def _blocks(user, width): # (first, last) of runs of whole users with about _BLOCK numbers each
    first = np.append(np.flatnonzero(np.diff(user, prepend=user[:1] - 1)), len(user)) # where a user begins
    start = 0
    while start < len(user):
        end = int(first[max(np.searchsorted(first, start + _BLOCK//width, side="right") - 1,
                            np.searchsorted(first, start, side="right"))])
        yield start, end
        start = end


def _moments(user, time): # Each user and moment once, sorted; and which one belongs to each row
    order = np.lexsort((time, user))
    user, time = user[order], time[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(user) != 0) | (np.diff(time) != 0)
    row = np.empty(len(order), dtype=np.int64)
    row[order] = np.cumsum(new) - 1
    return user[new], time[new], row


def history_features(
    shown: np.ndarray, # (R, S, V) how often each value was shown, the last one "all items"
    clicked: np.ndarray, # (R, S, V) how often it was clicked
    rate: np.ndarray, # (S,) click rate of each scenario
) -> tuple[np.ndarray, np.ndarray]: # table (R, S, 2V + S) float32 and present (R, S) bool
    """What the sums of R moments become in a batch; the last S numbers say which scenario's history it
    is, since one extractor reads them all."""
    from .preprocess import residual_clicks
    R, S, V = shown.shape
    table = np.empty((R, S, 2*V + S), dtype=np.float32)
    table[:, :, :V] = residual_clicks(shown, clicked, rate)
    table[:, :, V:2*V], table[:, :, 2*V:] = np.log1p(shown), np.eye(S)
    return table, shown[:, :, -1] > 0


class Histories(Part):
    """What each user did before becomes `history_row` (B,) and two tables: `history_table` (R, S, H),
    `present_table` (R, S).

    Only what happened strictly before a row is in its history. Of several labels the first one counts as the
    click.
    """
    reads_log = True

    def __init__(self,
        words: int = 50, # Most common values of a history column, counted one by one; others: all items
        min_count: int = 1, # Values seen less often among the training rows are not counted one by one
    ):
        self.words, self.min_count = whole_number("words", words), whole_number("min_count", min_count)

    @property
    def features(self):
        "One history, with the names of its numbers."
        fitted(getattr(self, "words_", None), "Histories")
        counted = [*(f"{c}={w}" for c, v in self.words_.items() for w in v.words_), "all items"]
        names = (*(f"{what} {name}" for what in ("liked", "seen") for name in counted),
                 *(f"in {s}" for s in self.scenarios_))
        return (Feature("history", "history", len(names), "user", names),)

    @property
    def n_values(self):
        "V: values that are counted, with all items."
        return sum(len(v.words_) for v in self.words_.values()) + 1

    def fit(self,
        train: pd.DataFrame, # Training rows, sorted by time
        context: Context, # Where columns are looked up
    ) -> "Histories": # Itself
        """Learn which values are common, and the click rate of each scenario."""
        from .preprocess import Vocabulary
        schema = context.schema
        columns = schema.history or tuple(c for c in schema.categorical if c in schema.item_columns)
        known = {c: context.vocabulary(train, c, self.min_count).words_ for c in columns or (schema.item,)}
        self.words_ = {c: Vocabulary(self.min_count, words[:self.words]) for c, words in known.items()}
        rates = train.groupby(schema.scenario, observed=True)[schema.labels[0]].mean()
        self.rate_ = tuple(float(rates.loc[s]) for s in context.scenarios)
        self.scenarios_ = tuple(context.scenarios)
        return self

    def transform(self,
        frame: pd.DataFrame, # Rows to make ready
        context: Context, # Where columns and the log are looked up
    ) -> tuple[dict, dict]: # history_row (B,); history_table (R, S, H) and present_table (R, S)
        """Count what happened strictly before each row."""
        log, (scenario, label, values) = context.log, self.events(context)
        code, ids = pd.factorize(frame[context.schema.user])
        user, moment, row = _moments(code, seconds(frame, context.schema.time))
        at, whose = log.rows(ids) # in the order of the users' first rows
        known = scenario[at] >= 0 # an event in an unknown scenario belongs to nobody's history
        at, whose = at[known], whose[known]
        events = whose, log.time[at], scenario[at], label[at], values[at]
        S, V = len(self.scenarios_), self.n_values
        table = np.empty((len(user), S, 2*V + S), dtype=np.float32)
        present = np.empty((len(user), S), dtype=bool)
        for a, b in _blocks(user, S*V):
            block = slice(*np.searchsorted(whose, [user[a], user[b - 1] + 1]))
            table[a:b], present[a:b] = self.at([x[block] for x in events], user[a:b], moment[a:b])
        tables = dict(history_table=torch.from_numpy(table), present_table=torch.from_numpy(present))
        return {"history_row": torch.from_numpy(row)}, tables

    def at(self,
        events: tuple, # User, time, scenario, label and values of each event, as in history_sums
        user: np.ndarray, # (G,) int64: the moments asked for, sorted by user, then time, each once
        moment: np.ndarray, # (G,) int64: seconds
    ) -> tuple[np.ndarray, np.ndarray]: # (G, S, H) float32 and (G, S) bool
        """Histories of some users at some moments."""
        from .preprocess import history_sums
        sums = history_sums(*events, self.n_values, user, moment, len(self.scenarios_))
        return history_features(*sums, np.array(self.rate_))

    def events(self,
        context: Context, # With the log
    ) -> tuple: # Of each event: scenario (N,), -1 for unknown; label (N,); values (N, C), -1: not counted
        """What is counted; computed once per log."""
        return context.log.kept(self, lambda: self._events(context))

    def _events(self, context):
        log, schema, start, columns = context.log.events, context.schema, 0, []
        for name, known in self.words_.items():
            at = positions(known.words_, context.column(log, name), name)
            columns.append(np.where(at >= 0, at + start, -1))
            start += len(known.words_)
        label = as_float(log[schema.labels[0]])
        if not np.isfinite(label).all():
            raise ValueError(f"column {schema.labels[0]!r} has missing labels; clean the log first")
        scenario = positions(context.scenarios, log[schema.scenario])
        return scenario, label, np.stack([*columns, np.full(len(log), start)], 1) # the last one: all items

    def check(self):
        """Check words and click rates. Raises: `ValueError`."""
        _require(_all_vocabularies(self.words_), "words of histories")
        rate = np.array(self.rate_, dtype=float)
        if rate.shape != (len(self.scenarios_),) or not ((rate >= 0) & (rate <= 1)).all():
            raise ValueError("rate has no number from 0 to 1 for each scenario")


# Vectors and sequences

def item_rows(
    context: Context, # With the items
    values: pd.Series, # (n,) item ids
) -> torch.Tensor: # (n,) int64
    """An item's row in every table of items: its place among the preprocessor's items plus 1; 0 for an
    unknown one."""
    key = context.schema.item
    return torch.from_numpy(positions(context.items[key], values, key) + 1)


def _check_vectors(name, ids, matrix): # One finite vector per id
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"Vectors: name must be a word such as title, got {name!r}")
    try: check_shape(matrix, "m width", m=len(ids))
    except ValueError as e: raise ValueError(f"Vectors {name!r}: {e}; give one row per id") from None
    if (bad := ~np.isfinite(matrix).all(1)).any():
        raise ValueError(f"Vectors {name!r}: row {int(bad.argmax())} is not finite")
    if (again := pd.Index(ids).duplicated()).any():
        raise ValueError(
            f"Vectors {name!r}: id {ids[int(again.argmax())]!r} appears twice; keep one vector per item")


class Vectors(Part):
    """One vector per item, such as that of its title or picture, stored once: rows point into the table
    `name` (n + 1, width).

    Adds `item_row` (B,) int64 and the table; its row 0, for unknown items, is zero, and so is that of an
    item without a vector.

    Raises: `ValueError` for a matrix that does not fit the ids or holds nan or infinity, or an id that
    appears twice.
    """
    def __init__(self,
        name: str, # Name of the feature and its table, such as title
        ids: pd.Series, # (m,) item ids; lists and arrays too
        matrix: np.ndarray, # (m, width) numbers, one row per id
    ):
        self.name, self.ids = name, tuple(np.asarray(ids).tolist())
        self.matrix = np.asarray(matrix, dtype=np.float32)
        _check_vectors(name, self.ids, self.matrix)
        self._table = None

    @property
    def features(self):
        "One vector of the item."
        return (Feature(self.name, "vector", self.matrix.shape[1], "item"),)

    def fit(self,
        train: pd.DataFrame, # Training rows; nothing is learned from them
        context: Context, # With the items
    ) -> "Vectors": # Itself
        """Find the vector of each item. Raises: `ValueError` if none of the ids is an item."""
        key = context.schema.item
        self.rows_, self._table = positions(self.ids, context.items[key], key), None
        if not (self.rows_ >= 0).any():
            raise ValueError(
                f"Vectors {self.name!r}: none of its ids is among the items, such as "
                f"{context.items[key].tolist()[:1]}; are they of the same type?")
        return self

    def transform(self,
        frame: pd.DataFrame, # Rows to make ready
        context: Context, # With the items
    ) -> tuple[dict, dict]: # item_row (B,); the table, the same one for every batch
        """Point each row at its item's vector. Raises: `ValueError` if the items have changed since fit."""
        if len(self.rows_) != len(context.items):
            raise ValueError(
                f"Vectors {self.name!r}: {len(self.rows_)} vectors for {len(context.items)} items; fit again")
        if self._table is None:
            vectors = np.vstack([np.zeros((1, self.matrix.shape[1]), dtype=np.float32), self.matrix])
            self._table = torch.from_numpy(vectors[np.append(0, self.rows_ + 1)])
        return {"item_row": item_rows(context, frame[context.schema.item])}, {self.name: self._table}

    def check(self):
        """Check each item's row of the matrix. Raises: `ValueError`."""
        x = self.rows_
        ok = isinstance(x, np.ndarray) and x.ndim == 1 and x.dtype == np.int64
        _require(ok and (not len(x) or -1 <= x.min() <= x.max() < len(self.ids)), f"rows of {self.name!r}")


class Sequences(Part):
    """The events before each row, in their order: the sorted log is stored once, and a row knows where its
    user's past begins and ends.

    Adds `seq_start`, `seq_stop` and `seq_time` (B,) int64, seconds; and tables with an entry per event of
    the log: `event_item` (0 for unknown), `event_scenario` (S for one the model does not know), `event_label`
    float32 and `event_time` int64, seconds. Row b's past is `event_item[seq_start[b]:seq_stop[b]]`: strictly
    earlier, the latest last. Also `item_row`, as `Vectors` does.
    """
    reads_log = True

    def __init__(self,
        length: int = 50, # At most this many events of a past, the latest
        name: str = "events", # Name of the feature
    ):
        self.length, self.name = whole_number("length", length), name

    @property
    def features(self):
        "One sequence of the user."
        return (Feature(self.name, "sequence", self.length, "user"),)

    def transform(self,
        frame: pd.DataFrame, # Rows to make ready
        context: Context, # Where columns and the log are looked up
    ) -> tuple[dict, dict]: # Where each row's past begins and ends; the log as tables
        """Find each row's piece of the log."""
        log, schema = context.log, context.schema
        time, user = seconds(frame, schema.time), log.code(frame[schema.user])
        events, moments = sort_keys(log.user, log.time, np.maximum(user, 0), time)
        # the first event of the user that is not strictly earlier; a user of code -1 is unknown
        stop = np.where(user < 0, 0, np.searchsorted(events, moments, side="left"))
        start = np.maximum(np.where(user < 0, 0, log.start[user]), stop - min(self.length, len(log)))
        rows = dict(item_row=item_rows(context, frame[schema.item]), seq_start=torch.from_numpy(start),
                    seq_stop=torch.from_numpy(stop), seq_time=torch.from_numpy(time))
        return rows, log.kept(self, lambda: _events(context))


def _events(context): # The log as tensors, in its order
    log, schema = context.log, context.schema
    scenario = positions(context.scenarios, log.events[schema.scenario], schema.scenario)
    scenario = np.where(scenario < 0, len(context.scenarios), scenario)
    return dict(event_item=item_rows(context, log.events[schema.item]), event_time=torch.from_numpy(log.time),
                event_scenario=torch.from_numpy(scenario), event_label=_label_tensor(log.events, schema))


# The preprocessor

_FORMAT = 4
_FEW = 10 # So few items may all be new; if more are, and none is known, that is a mistake

def _checked_parts(parts): # Copies, so that fitting one preprocessor leaves another alone
    parts = tuple(copy.deepcopy(part) for part in parts)
    for part in parts:
        if not isinstance(part, Part):
            raise ValueError(
                f"parts: {part!r} is not a Part; write Categories(), with brackets, or subclass Part")
    return parts


def _check_ids(frame, table, key, what, least=1): # If no id is known, ids are probably written differently
    ids = frame[key].dropna().unique()
    if len(ids) >= least and not (positions(table[key], ids, key) >= 0).any():
        known = repr(table[key].tolist()[0]) if len(table) else "nothing"
        raise ValueError(
            f"{what}: none of the {len(ids):,} ids in column {key!r}, such as {ids[:1].tolist()[0]!r}, is "
            f"known; a known one is {known}: are they written differently?")


def _training(train, users, items, schema, order): # Sorted by time; and the context to learn in
    from .preprocess import Vocabulary
    check_columns(train, schema.required, "fit")
    if not len(train): raise ValueError("fit: the training frame has no rows")
    if not train[schema.time].is_monotonic_increasing: train = train.sort_values(schema.time, kind="stable")
    about_user = [c for c in (*schema.categorical, *schema.numeric) if c not in schema.item_columns]
    users = one_row_per_id(users, schema.user, about_user, train, "users")
    items = one_row_per_id(items, schema.item, schema.item_columns, train, "items")
    for table, key, what in ((users, schema.user, "users"), (items, schema.item, "items")):
        _check_ids(train, table, key, f"fit, {what}")
    scenarios = order or tuple(sorted(Vocabulary().fit(train[schema.scenario]).words_))
    return train, Context(schema, scenarios, users, items)


def _add(batch, new): # What one more part adds
    for name, x in new.items():
        if name == "dense" and name in batch: x = torch.cat([batch[name], x], 1)
        elif name in batch and not torch.equal(batch[name], x):
            raise ValueError(f"two parts add {name!r}; give one of them another name")
        batch[name] = x


class Preprocessor:
    """Turn a log into a `Batch`, part by part; everything is learned from training rows only, and no user's
    data is held.

    After `fit` it has `scenarios_`, `items_` (the table of items) and `last_` (second of the last training
    row), and its parts are fitted.

    Raises: `ValueError` for something that is not a part, or two parts of one kind that would add the same
    thing.
    """
    # For the Spec: fields of the query, order of the scenarios; a subclass may choose
    query = scenario_order = ()

    def __init__(self,
        schema: Schema = Schema(), # Which column means what
        parts: tuple | None = None, # Parts, copied; None: Categories(), Numbers(), Labels(), Histories()
    ):
        if parts is None: parts = Categories(), Numbers(), Labels(), Histories()
        self.schema, self.parts = schema, _checked_parts(parts)

    spec = property(lambda self: getattr(self, "spec_", None),
                    doc="The Spec of the batches that it makes; None before fit.")

    def __repr__(self):
        return (f"{type(self).__name__}({', '.join(type(p).__name__ for p in self.parts)}; "
                f"{'fitted' if self.spec else 'not fitted'})")

    def part(self,
        kind: type, # Such as Histories
    ) -> Part: # The first part of that class; after fit it is the fitted one
        """One of the parts. Raises: `ValueError` if there is none."""
        for part in self.parts:
            if isinstance(part, kind): return part
        raise ValueError(
            f"the preprocessor has no {kind.__name__}; its parts are "
            f"{', '.join(type(p).__name__ for p in self.parts)}")

    def fit(self,
        train: pd.DataFrame, # Clean training rows
        users: pd.DataFrame | None = None, # One row per user; None takes the last row of each in train
        items: pd.DataFrame | None = None, # One row per item; None takes the last row of each in train
    ) -> "Preprocessor": # Itself
        """Fit all parts. Raises: `ValueError` naming the column that is missing, of the wrong kind, or not
        unique."""
        train, context = _training(train, users, items, self.schema, self.scenario_order)
        new = copy.copy(self) # if a part refuses the rows, what was fitted before stays whole
        new.parts = _checked_parts(self.parts)
        for part in new.parts: part.fit(train, context)
        new.scenarios_, new.items_ = context.scenarios, context.items
        new.last_ = int(seconds(train.tail(1), self.schema.time)[0])
        new.spec_ = new._spec(record_checksum(*new._record()))
        vars(self).update(vars(new))
        return self

    def transform(self,
        frame: pd.DataFrame, # Rows to make ready
        log: EventLog | pd.DataFrame | None = None, # What may be somebody's past; None: the rows themselves
    ) -> Batch: # One entry per row; only what happened strictly before a row is in its past
        """Make a batch. Raises: `ValueError` before fit, naming a column or scenario that is missing or
        unknown, or if the log is needed."""
        fitted(self.spec, type(self).__name__)
        schema = self.schema
        check_columns(frame.reset_index(drop=True), [c for c in schema.required if c not in schema.labels],
                      "transform")
        _check_ids(frame, self.items_, schema.item, "transform", _FEW)
        log = self._event_log(frame, log)
        context = Context(schema, self.scenarios_, log.users, self.items_, log)
        rows, tables = {"scenario": torch.from_numpy(self._scenarios(frame))}, {}
        for part in self.parts:
            for batch, new in zip((rows, tables), part.transform(frame, context)): _add(batch, new)
        return Batch(rows, tables)

    def _scenarios(self, frame): # (n,) int64 codes
        column = frame[self.schema.scenario]
        code = positions(self.scenarios_, column, self.schema.scenario)
        if (code < 0).any():
            row = int((code < 0).argmax())
            known = ", ".join(map(str, self.scenarios_))
            raise ValueError(f"transform: row {row} has scenario {column.iloc[row]!r}, which is unknown; "
                             f"the known ones are {known}: drop such rows, or fit on rows that include it")
        return code

    def _event_log(self, frame, log): # An EventLog, whatever was passed
        schema, columns = self.schema, ", ".join(self.schema.required)
        if isinstance(log, EventLog) and log.schema.required == schema.required: return log
        if isinstance(log, EventLog):
            raise ValueError(
                f"transform: the log was made for the columns {', '.join(log.schema.required)}, but these "
                f"rows have {columns}: pass EventLog(events, users, prep.schema)")
        if log is not None: return EventLog(log, None, schema)
        needed, labelled = any(part.reads_log for part in self.parts), set(schema.labels) <= set(frame)
        if needed and not labelled:
            raise ValueError(
                "transform: these rows have no label, so they cannot serve as a past, and no log was given: "
                "pass log= with what has happened so far")
        if needed and len(frame) and seconds(frame, schema.time).min() > self.last_:
            raise ValueError(
                "transform: these rows are later than all training rows and no log was given, so their "
                "histories would start empty: pass log= with all that happened before")
        if not labelled: frame = frame.iloc[:0].assign(**{c: 0. for c in schema.labels})
        return EventLog(frame, None, schema)

    def _spec(self, checksum): # What the parts add, and the checksum of the preprocessor
        features, tasks = (sum((getattr(p, name) for p in self.parts), ()) for name in ("features", "tasks"))
        return Spec(self.scenarios_, features, tasks or (Task(),), self.query, checksum)

    def _record(self): # Plain data and tensors of all that was learned
        tensors, parts = {}, []
        for k, part in enumerate(self.parts):
            kind, (about, own) = type(part), part.state()
            defined = f"{kind.__module__}:{kind.__qualname__}"
            parts.append(dict(part=kind.__name__, defined=defined, about=about))
            tensors |= {f"parts.{k}.{name}": x for name, x in own.items()}
        params, items = get_params(self, skip=("schema", "parts")), pack_frame(self.items_, "items", tensors)
        return dict(format=_FORMAT, kind=type(self).__name__, schema=asdict(self.schema), params=params,
                    scenarios=self.scenarios_, last=self.last_, parts=parts, items=items), tensors

    def save(self,
        folder: str | Path, # Created if needed; preprocess.json and .safetensors are written into it
    ) -> str: # The record's checksum, which its specs carry
        """Save what was learned, and the items. Raises: `ValueError` before fit, or naming a column that
        holds anything but numbers or text."""
        fitted(self.spec, type(self).__name__)
        return write_record(folder, "preprocess", *self._record())

    @classmethod
    def load(cls,
        folder: str | Path, # The folder that save wrote into
    ) -> "Preprocessor": # Fitted, equal to the one saved
        """Read a preprocessor back. Raises: `FileNotFoundError`, `ValueError` naming the damaged file, or
        `ImportError` naming a part that has not been imported."""
        about, tensors = read_record(folder, "preprocess", "Preprocessor.save", _FORMAT)
        path, kind = Path(folder)/"preprocess.json", str(about.get("kind"))[:50]
        if kind != cls.__name__: raise ValueError(f"{path} was written by a {kind}: read it with {kind}.load")
        with damage_named(path, "Preprocessor.save"):
            prep = cls(**about["params"])
            prep.schema, prep.last_ = Schema(**about["schema"]), whole_number("last", about["last"], -2**53)
            prep.scenarios_ = _sound_words(about["scenarios"])
            prep.parts = tuple(_load_part(k, part, tensors, folder) for k, part in enumerate(about["parts"]))
            items = stored_frame(about["items"], "items", tensors)
            prep.items_ = one_row_per_id(items, prep.schema.item, (), None, "items")
            prep.spec_ = prep._spec(about["checksum"])
        return prep


def _sound_words(words): # Names of scenarios
    from .preprocess import Vocabulary
    return _sound(Vocabulary(words_=words)).words_


def _load_part(k, part, tensors, folder):
    prefix, kind = f"parts.{k}.", _part_class(part["part"], part["defined"], folder)
    own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    return kind.from_state(part["about"], own)
