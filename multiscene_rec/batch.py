"""Rows as a model reads them: `Batch`, checked where it is built. Hand-written; not part of a lesson."""
import json
import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch.utils._pytree import MappingKey, register_pytree_node

from .core import check_shape

__all__ = ["Batch", "with_parts"]


class Batch:
    """Rows as a model reads them: tensors with one entry per row, and tables that the rows point into.

    A part is reached by its name, such as `batch.fields`. A model may have parts of its own; `NAME_row`
    points into `NAME`.

    Raises: `ValueError` naming the part, the axis or the row that is wrong.
    """
    def __init__(self,
        rows: Mapping[str, torch.Tensor], # Name: tensor (B, ...), one entry per row
        tables: Mapping[str, torch.Tensor] = MappingProxyType({}), # Name: tensor (...), shared by all rows
    ):
        self.rows, self.tables = dict(rows), dict(tables)
        _check_names(self.rows, self.tables)
        _check_values(self.rows, self.tables, _check_parts(self.rows, self.tables))

    @classmethod
    def _of(cls, rows, tables): # Of parts checked before: checks make a GPU wait and cannot be traced
        batch = cls.__new__(cls)
        batch.rows, batch.tables = rows, tables
        return batch

    def __getattr__(self, name):
        # a batch that is being copied has neither yet
        parts = self.__dict__.get("rows", {}) | self.__dict__.get("tables", {})
        if name in parts: return parts[name]
        raise AttributeError(f"the batch has no part {name!r}; it has {', '.join(parts)}")

    def __len__(self): return len(next(iter(self.rows.values())))

    def __repr__(self):
        rows, tables = (", ".join(f"{k} {tuple(x.shape)}" for k, x in p.items())
                        for p in (self.rows, self.tables))
        return f"Batch({len(self)} rows: {rows}; tables: {tables or 'none'}; {self.device})"

    def __getitem__(self,
        rows: slice | int | torch.Tensor, # Slice, int, bool mask (B,) or index (n,); lists and arrays too
    ) -> "Batch": # The rows; the tables are shared, not copied
        """Take rows; an int gives a batch of one row. Raises: `IndexError` for rows that do not exist."""
        rows = _as_index(rows, len(self))
        if isinstance(rows, torch.Tensor): rows = rows.to(self.device)
        return Batch._of({name: x[rows] for name, x in self.rows.items()}, self.tables)

    def batches(self,
        size: int, # Rows in a batch; the last batch may be smaller
        shuffle: bool = False, # Mix the rows first: one gather, then only slices
        seed: int = 0, # Seed of the mixing; give every epoch its own
        shard: tuple[int, int] = (0, 1), # (rank, world): every world-th row of the order, from row rank on
    ) -> Iterator["Batch"]: # Each row once; several shards have equally many rows
        """One epoch of small batches, cut from memory. Raises: `ValueError` if `size` is below 1."""
        if size < 1: raise ValueError(f"size must be 1 or more, got {size}")
        order = _order(len(self), shuffle, seed, *shard)
        whole = self if order is None else self[order]
        return (whole[i:i + size] for i in range(0, len(whole), size))

    def to(self,
        device: torch.device | str, # The target device
    ) -> "Batch": # Same rows, all parts on the device
        """Move every part, tables included, to a device."""
        return Batch._of(*({k: x.to(device) for k, x in p.items()} for p in (self.rows, self.tables)))

    @property
    def device(self) -> torch.device:
        """Where all parts live."""
        return next(iter(self.rows.values())).device

    @property
    def history(self) -> torch.Tensor:
        """(B, S, H): what the user did before."""
        return self.history_table[self.history_row]

    @property
    def present(self) -> torch.Tensor:
        """(B, S) bool: where there is a history."""
        return self.present_table[self.history_row]


def with_parts(
    batch: Batch, # Rows
    **parts: torch.Tensor, # Name: tensor that replaces a part; a new one goes to the rows
) -> Batch: # A new batch, checked; the other parts are shared
    """The same rows with some parts replaced, among the rows or the tables. Raises: `ValueError` as
    `Batch` does."""
    tables = {name: parts.pop(name) for name in list(parts) if name in batch.tables}
    return Batch(batch.rows | parts, batch.tables | tables)


# What a batch must be

_PARTS = { # A part that the course knows: its axes and its type
    "fields": ("B F", torch.int64), "dense": ("B D", torch.float32),
    "scenario": ("B", torch.int64), "label": ("B *", torch.float32),
    "history_table": ("R S H", torch.float32), "present_table": ("R S", torch.bool),
    "history_row": ("B", torch.int64)}
_BLOCK = 2**24 # Numbers checked at a time: checking a large table must not double its memory


def _check_names(rows, tables): # A part is found by its name, so a name means one thing
    if not rows: raise ValueError("Batch: give at least one part with an entry per row")
    for name in (*rows, *tables):
        if not isinstance(name, str): raise ValueError(f"Batch: a part's name must be a string, got {name!r}")
        if name in rows and name in tables:
            raise ValueError(f"Batch.{name}: is both among the rows and among the tables")
        if name in ("rows", "tables") or hasattr(Batch, name):
            raise ValueError(f"Batch.{name}: this name belongs to the batch itself; give the part another")


def _check_parts(rows, tables): # Kind, type, shape and device of every part; returns the sizes of the axes
    sizes, device = {}, None
    for name, x in (rows | tables).items():
        if not isinstance(x, torch.Tensor):
            raise ValueError(
                f"Batch.{name}: expected a tensor, got {type(x).__name__}; torch.as_tensor makes one")
        if x.ndim < 1: raise ValueError(f"Batch.{name}: expected an axis of rows, got a single number")
        device = device or x.device
        if x.device != device:
            raise ValueError(
                f"Batch.{name}: is on {x.device}, others are on {device}; all parts must be on one device")
        axes, dtype = _PARTS.get(name, ("B *" if name in rows else "*", x.dtype))
        if x.dtype != dtype:
            raise ValueError(f"Batch.{name}: expected {dtype}, got {x.dtype}; convert it with .to({dtype})")
        sizes |= _check_axes(name, x, axes, sizes)
    return sizes


def _check_axes(name, x, axes, sizes): # A star stands for axes that no other part has
    free = range(x.ndim - len(axes.replace("*", "").split()))
    axes = axes.replace("*", " ".join(f"{name}_{k}" for k in free))
    try: return check_shape(x, axes, **sizes)
    except ValueError as e: raise ValueError(f"Batch.{name}: {e}") from None


def _check_rows(name, x, rule, good): # The first row that breaks the rule is named
    step = max(1, _BLOCK//max(1, x[:1].numel()))
    for start in range(0, len(x), step):
        ok = good(x[start:start + step])
        if ok.ndim > 1: ok = ok.flatten(1).all(1)
        if not ok.all():
            row = start + (~ok).nonzero()[0, 0].item()
            raise ValueError(f"Batch.{name}: row {row} is {x[row].tolist()}, expected {rule}")


def _index_end(name, rows, tables, sizes): # A part that points into something: its values are below this
    if name == "fields": return math.inf
    if name == "scenario": return sizes.get("S", math.inf)
    if name == "history_row": return sizes.get("R", math.inf)
    return len(tables[name[:-4]]) if name.endswith("_row") and name[:-4] in tables else None


def _check_values(rows, tables, sizes): # Values that would index past a table, or make the loss undefined
    for name, x in (rows | tables).items():
        end = _index_end(name, rows, tables, sizes)
        if name == "label": _check_rows(name, x, "a number from 0 to 1", lambda x: (x >= 0) & (x <= 1))
        elif x.is_floating_point():
            _check_rows(name, x, "finite numbers; fill what is missing first", torch.isfinite)
        elif end is not None and name in rows:
            rule = "0 or more" if end == math.inf else f"0 to {end - 1}"
            _check_rows(name, x, rule, lambda x, end=end: (x >= 0) & (x < end))


# Which rows

def _as_index(rows, n): # What stands in the brackets, checked: a slice or an index tensor
    if isinstance(rows, (int, np.integer)) and not isinstance(rows, bool):
        if not -n <= rows < n: raise IndexError(f"row {rows} does not exist in a batch of {n} rows")
        return slice(int(rows) % n, int(rows) % n + 1)
    if isinstance(rows, slice):
        return torch.arange(*rows.indices(n)) if (rows.step or 1) < 0 else rows # torch has no negative steps
    rows = torch.as_tensor(rows)
    if rows.ndim != 1: raise IndexError(f"rows must be chosen by one axis, got shape {tuple(rows.shape)}")
    if rows.dtype == torch.bool:
        if len(rows) != n: raise IndexError(f"a mask of {len(rows)} entries for a batch of {n} rows")
        return rows.nonzero()[:, 0]
    if len(rows) == 0: return rows.long()
    if rows.is_floating_point(): 
        raise IndexError(f"rows must be whole numbers or a bool mask, got {rows.dtype}")
    if not (-n <= rows.min() and rows.max() < n):
        raise IndexError(f"rows {rows.min()} to {rows.max()} do not all exist in a batch of {n} rows")
    return rows.long()


def _order(n, shuffle, seed, rank, world): # The order of the rows, for one of several processes
    if not 0 <= rank < world:
        raise ValueError(f"shard must be (rank, world) with rank from 0 to world - 1, got {(rank, world)}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if shuffle else None
    if world == 1: return order
    order = torch.arange(n) if order is None else order
    return order[:n//world*world][rank::world] # all processes make the same number of steps


# PyTorch then sees a tree of tensors: torch.export, torch.func and DistributedDataParallel take it apart

def _flatten(batch): # Tensors, and their names
    return [*batch.rows.values(), *batch.tables.values()], (tuple(batch.rows), tuple(batch.tables))


def _flatten_with_keys(batch): # The same with a key per tensor, for the messages of torch.export
    leaves, names = _flatten(batch)
    return [(MappingKey(name), x) for name, x in zip(sum(names, ()), leaves)], names


def _unflatten(leaves, names):
    leaves = list(leaves)
    rows, tables = (dict(zip(part, leaves[k:k + len(part)])) for part, k in zip(names, (0, len(names[0]))))
    return Batch._of(rows, tables)


register_pytree_node(
    Batch, _flatten, _unflatten, flatten_with_keys_fn=_flatten_with_keys,
    serialized_type_name="multiscene_rec.Batch",
    to_dumpable_context=json.dumps, from_dumpable_context=lambda text: tuple(map(tuple, json.loads(text))))
# An exported model keeps an example of what it reads; opening one is harmless
torch.serialization.add_safe_globals([Batch])
