"""Labels, scores, ids, lists and vectors as arrays, checked: what metrics and rankings need. Hand-written;
not part of a lesson."""
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch

from .checks import float_array
from .core import check_shape

__all__ = ["as_array", "numbers", "label_and_score", "label_and_prob", "id_codes", "bootstrap_columns",
           "flat_lists", "item_rows", "score_axis", "finite_scores", "unit_vectors", "list_positions",
           "probability_axis"]


def as_array(
    x, # An array, a tensor or a list
) -> np.ndarray: # On the CPU; floats of a tensor as float64
    """Any column as an array."""
    if not isinstance(x, torch.Tensor): return np.asarray(x)
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).numpy()


# ---------------------------------------------------------------- columns of a log, for metrics

def numbers(
    x, # A column
    name: str, # Its name, for the error message
) -> np.ndarray: # (n,) float64, n 1 or more, without nan
    """A column of numbers. Raises: `ValueError` naming the column, and the row that holds no number."""
    a = as_array(x)
    if a.ndim != 1:
        raise ValueError(f"{name} must have one axis (n,), got shape {a.shape}: pass one number per row")
    if not len(a): raise ValueError(f"{name} is empty: pass at least one row")
    try: a = None if a.dtype.kind in "USMm" else a.astype(np.float64)
    except (TypeError, ValueError): a = None
    if a is None:
        raise ValueError(f"{name} must hold numbers in every row: convert it, and drop rows that lack one")
    if np.isnan(a).any():
        raise ValueError(
            f"{name} is NaN in row {np.isnan(a).argmax()}: drop such rows or find out where they come from")
    return a


def label_and_score(
    label, # A column: labels from 0 to 1
    score, # A column: one score per label
    hard: str | None = None, # Name of a metric that takes no labels but 0 and 1
) -> tuple: # Both (n,) float64
    """Two columns of one length. Raises: `ValueError` naming the column and the row that is wrong."""
    y, s = numbers(label, "label"), numbers(score, "score")
    if len(y) != len(s):
        raise ValueError(f"label has {len(y)} rows, but score has {len(s)}: pass one of each per row")
    if hard and not np.isin(y, (0, 1)).all():
        row = (~np.isin(y, (0, 1))).argmax()
        raise ValueError(f"label must be 0 or 1 for {hard}, but row {row} holds {y[row]:g}: "
                         "cut soft labels first, e.g. label >= 0.5")
    if not ((y >= 0) & (y <= 1)).all():
        row = (~((y >= 0) & (y <= 1))).argmax()
        raise ValueError(f"label must lie in [0, 1], but row {row} holds {y[row]:g}: rescale it")
    return y, s


def label_and_prob(
    label, # A column: labels from 0 to 1
    prob, # A column: one probability per label
) -> tuple: # Both (n,) float64
    """Labels and probabilities. Raises: `ValueError` naming the row that is outside 0 to 1."""
    y, p = float_array(label), float_array(prob)
    if y.ndim != 1 or y.shape != p.shape or not len(y):
        raise ValueError(
            f"label {y.shape} and prob {p.shape} must be two lists of the same length, at least 1")
    for name, x in (("label", y), ("prob", p)):
        bad = np.flatnonzero(~((x >= 0) & (x <= 1)))
        if len(bad):
            raise ValueError(
                f"{name} must lie in [0, 1], but row {bad[0]} is {x[bad[0]]}; pass probabilities, not logits")
    return y, p


def id_codes(
    ids, # A column of ids: numbers or words
    name: str, # Its name, for the error message
    rows: int, # How many there must be
    sort: bool = False, # Whether the codes follow the order of the ids, not that of their first rows
) -> tuple: # (n,) int64 codes from 0; the id of each code
    """Ids as codes. Raises: `ValueError` naming the row that has no id."""
    a = ids if isinstance(ids, (pd.Series, pd.Index, pd.Categorical)) else as_array(ids)
    if a.ndim != 1:
        raise ValueError(f"{name} must have one axis (n,), got shape {a.shape}: pass one id per row")
    if len(a) != rows:
        raise ValueError(f"{name} has {len(a)} rows, but label has {rows}: pass one id per row")
    codes, values = pd.factorize(a, sort=sort)
    if (codes < 0).any():
        raise ValueError(
            f"{name} is missing in row {(codes < 0).argmax()}: drop such rows or give them an id")
    return codes, values


def bootstrap_columns(
    label, # A column: labels
    score, # A column of scores, or (n, m) with one column per model
    user, # A column of user ids
) -> tuple: # (n,) float64, (n,) or (n, m) float64, (n,) int64 codes
    """Columns from which users are drawn.

    Raises: `ValueError` for a column that does not fit, or for a single user.
    """
    y, s = numbers(label, "label"), as_array(score)
    if s.ndim not in (1, 2): raise ValueError(f"score must have axes (n,) or (n, m), got shape {s.shape}")
    s = np.stack([numbers(column, "score") for column in np.atleast_2d(s.T)], axis=1).reshape(s.shape)
    if len(y) != len(s):
        raise ValueError(f"label has {len(y)} rows, but score has {len(s)}: pass one of each per row")
    codes, ids = id_codes(user, "user", len(y))
    if len(ids) < 2: raise ValueError("user holds a single user: an interval over users needs two or more")
    return y, s, codes


# ---------------------------------------------------------------- one list of items per user

def flat_lists(
    lists, # One list of item ids per user, in any form; negative or missing ids are empty places
) -> tuple: # ids (m,), the number of the list that each is in (m,), and the length of each list
    """Lists as one column. Raises: `ValueError` if there are no lists, or if a flat list is given."""
    if isinstance(lists, Mapping): lists = list(lists.values())
    if isinstance(lists, pd.DataFrame): lists = lists.to_numpy()
    table = isinstance(lists, (np.ndarray, torch.Tensor))
    rows = as_array(lists) if table else [as_array(row) for row in lists]
    if not len(rows): raise ValueError("lists is empty: pass one list of item ids per user")
    if isinstance(rows, np.ndarray) and rows.dtype == object and rows.ndim == 1:
        rows = [as_array(row) for row in rows]
    if not (rows.ndim == 2 if isinstance(rows, np.ndarray) else all(row.ndim == 1 for row in rows)):
        raise ValueError("lists must hold one list of item ids per user: wrap a single list as [items]")
    owner = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    filled = rows.reshape(1, -1) if isinstance(rows, np.ndarray) else [row for row in rows if len(row)]
    ids = np.concatenate(filled) if len(filled) else np.zeros(0, dtype=np.int64)
    ids, owner = ids[~pd.isna(ids)], owner[~pd.isna(ids)]
    if ids.dtype.kind == "f": ids = ids.astype(np.int64)
    if ids.dtype.kind == "O": ids = pd.Series(ids).infer_objects().to_numpy()
    if ids.dtype.kind == "i": ids, owner = ids[ids >= 0], owner[ids >= 0]
    return ids, owner, np.bincount(owner, minlength=len(rows))


def item_rows(
    ids: np.ndarray, # (m,) item ids
    table, # A frame or Series with the ids as index; or an array whose row numbers are the ids
    name: str, # The table's name, for the error message
) -> np.ndarray: # (m,) rows of the table
    """Where each item stands in a table. Raises: `ValueError` naming an item that is absent or appears
    twice."""
    labelled = isinstance(table, (pd.Series, pd.DataFrame))
    if labelled and not table.index.is_unique:
        raise ValueError(f"{name} has an item twice in its index: keep one row per item")
    if not labelled and ids.dtype.kind not in "iu":
        raise ValueError(
            f"lists holds ids that are not row numbers: pass {name} as a frame or Series indexed by item id")
    rows = table.index.get_indexer(ids) if labelled else np.where(ids < len(table), ids, -1)
    if (rows < 0).any():
        raise ValueError(f"item {ids[rows < 0][0]!s} is in lists but not in {name}: add it there")
    return rows


# ---------------------------------------------------------------- scores, vectors and positions of one list

def score_axis(
    score, # Scores of n items
    what: str, # Name of the caller, for the error message
) -> np.ndarray: # (n,) float64 without nan
    """Scores that can be sorted. Raises: `ValueError` naming the row that is nan."""
    x = float_array(score)
    if x.ndim != 1: raise ValueError(f"{what}: expected one axis of scores, got shape {x.shape}")
    if np.isnan(x).any():
        raise ValueError(f"{what}: score of row {int(np.isnan(x).argmax())} is nan; it cannot be ranked")
    return x


def finite_scores(
    score, # Scores of n items
    what: str, # Name of the caller, for the error message
) -> np.ndarray: # (n,) float64, finite
    """Scores that can be added to something else. Raises: `ValueError` naming the row that is not finite."""
    x = score_axis(score, what)
    if not np.isfinite(x).all():
        raise ValueError(
            f"{what}: score of row {int((~np.isfinite(x)).argmax())} is infinite; pass probabilities")
    return x


def unit_vectors(
    vectors, # One vector per item
    n: int, # How many there must be
    what: str, # Name of the caller, for the error message
) -> np.ndarray: # (n, m) float64 of length 1; a vector of zeros stays zero
    """Vectors scaled to length 1.

    Raises: `ValueError` naming the axis that does not fit, or the row that is not finite.
    """
    v = float_array(vectors)
    try: check_shape(v, "n m", n=n)
    except ValueError as e: raise ValueError(f"{what}: vectors: {e}") from None
    if not np.isfinite(v).all():
        raise ValueError(f"{what}: vector of row {int((~np.isfinite(v)).any(1).argmax())} is not finite")
    length = np.linalg.norm(v, axis=1, keepdims=True)
    return np.divide(v, length, out=np.zeros_like(v), where=length > 0)


def list_positions(
    pick, # Positions of the items on a list
    n: int, # Number of items
    what: str, # Name of the caller, for the error message
) -> np.ndarray: # (k,) int64 from 0 to n - 1, each once, k 1 or more
    """A list of items. Raises: `ValueError` for a list that is empty, repeats a position or leaves 0 to
    n - 1."""
    pick = np.asarray(pick.detach().cpu() if isinstance(pick, torch.Tensor) else pick)
    if pick.ndim != 1 or not len(pick) or pick.dtype.kind not in "iu":
        raise ValueError(f"{what}: a list must be one non-empty axis of whole positions, got shape "
                         f"{pick.shape} of {pick.dtype}")
    if pick.min() < 0 or pick.max() >= n:
        raise ValueError(f"{what}: positions run from {pick.min()} to {pick.max()}, but there are {n} items")
    if len(np.unique(pick)) < len(pick): raise ValueError(f"{what}: a position appears twice in the list")
    return pick.astype(np.int64)


def probability_axis(
    prob, # True probabilities of n items
    what: str, # Name of the caller, for the error message
) -> np.ndarray: # (n,) float64 from 0 to 1
    """Probabilities. Raises: `ValueError` naming the row that is outside 0 to 1."""
    p = score_axis(prob, what)
    bad = ~((p >= 0) & (p <= 1))
    if bad.any(): raise ValueError(f"{what}: prob of row {int(bad.argmax())} is outside 0 to 1")
    return p
