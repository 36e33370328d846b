"""Columns of a frame as numbers, seconds, words and positions, checked. Hand-written; not part of a
lesson."""
import math

import numpy as np
import pandas as pd
import torch

from .core import check_shape

__all__ = ["check_columns", "check_fractions", "as_float", "numbers", "known_numbers", "seconds", "words_of",
           "positions", "one_row_per_id", "sort_keys"]


def check_columns(
    frame: pd.DataFrame, # Rows, such as a log
    columns: tuple, # Names of the columns that it must have
    what: str, # Name of the caller, for the error message
) -> None:
    """Refuse a frame without a column that is needed, or whose row labels are not unique.

    Raises: `ValueError` naming the column.
    """
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        columns = ", ".join(map(str, frame.columns))
        raise ValueError(f"{what}: there is no column {missing[0]!r}; the columns are {columns}")
    if not frame.index.is_unique:
        raise ValueError(f"{what}: row labels appear twice; use log.reset_index(drop=True)")


def check_fractions(
    fractions: tuple, # Shares of the parts
    what: str, # Name of the caller, for the error message
) -> np.ndarray: # (parts - 1,) where to cut, as shares from the beginning
    """Refuse shares that are not two or more numbers above 0 that sum to 1. Raises: `ValueError`."""
    if len(fractions) < 2 or min(fractions) <= 0 or not math.isclose(sum(fractions), 1, abs_tol=1e-9):
        raise ValueError(
            f"{what}: fractions must be two or more numbers above 0 that sum to 1, got {tuple(fractions)}")
    return np.cumsum(fractions)[:-1]


# Numbers

def as_float(
    column: pd.Series, # (n,) of any kind
) -> np.ndarray: # (n,) float64
    """A column as numbers; what is not a number becomes nan."""
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype="float64", na_value=np.nan)


def numbers(
    x: np.ndarray, # (n,) numbers: a column, an array, a tensor or a list
    what: str, # Name of the caller, for the error message
) -> np.ndarray: # (n,) float64, a new array; missing values are nan
    """A column of numbers. Raises: `ValueError` for words, and for more than one axis."""
    if isinstance(x, torch.Tensor): x = x.detach().cpu().numpy()
    try:
        if hasattr(x, "to_numpy"): out = x.to_numpy(dtype="float64", na_value=np.nan, copy=True)
        else: out = np.array(x, dtype="float64")
    except (TypeError, ValueError) as e:
        raise ValueError(
            f"{what} needs a column of numbers, got {getattr(x, 'dtype', type(x).__name__)}: list a column "
            "of words as categorical") from e
    check_shape(out, "n")
    return out


def known_numbers(
    x: np.ndarray, # (n,) numbers: a column, an array, a tensor or a list
    what: str, # Name of the caller, for the error message
) -> np.ndarray: # (m,) float64, m of 1 or more: without the missing values
    """The values that something is learned from.

    Raises: `ValueError` for words, for an infinite value, naming its row, and where all values are missing.
    """
    x = numbers(x, what)
    if np.isinf(x).any():
        raise ValueError(
            f"{what} found an infinite value in row {np.isinf(x).argmax()}: clean the column first")
    x = x[~np.isnan(x)]
    if not len(x): raise ValueError(f"{what} needs at least one value that is not missing")
    return x


def seconds(
    frame: pd.DataFrame, # Rows
    name: str, # Name of the column that holds the times
) -> np.ndarray: # (n,) int64
    """Times as whole seconds. Raises: `ValueError` naming the column and row that is not a time."""
    time = as_float(frame[name])
    good = abs(time) < 2**53
    if not good.all():
        raise ValueError(
            f"column {name!r}, row {good.argmin()} is not a time in seconds; clean the log first")
    return np.floor(time).astype(np.int64)


# Words and ids

def words_of(
    values: pd.Series, # (n,) strings or whole numbers; lists, arrays and tensors too
    what: str, # Name of the caller, for the error message
) -> tuple: # (n,) which word each row has, -1: missing; the different words; strings, whole numbers or None
    """The different words of a column, all strings or all whole numbers. Raises: `ValueError` for others."""
    if isinstance(values, torch.Tensor): values = values.detach().cpu().numpy()
    s = pd.Series(list(values) if isinstance(values, tuple) else values).reset_index(drop=True)
    code, words = pd.factorize(s)
    if not len(words): return code, pd.Index([], dtype=object), None
    words = pd.Index(words) if not isinstance(s.dtype, pd.CategoricalDtype) else pd.Index(np.asarray(words))
    kind = {"i": "integer", "u": "integer", "b": "integer", "f": "floating"}.get(words.dtype.kind)
    kind = kind or pd.api.types.infer_dtype(words)
    # a single missing id turns whole numbers into floats
    if kind == "floating" and abs(words).max() <= 2**53 and not (words % 1).any(): kind = "integer"
    if kind == "string": return code, words.astype(object), "strings"
    if kind in ("integer", "boolean") and -2**63 <= int(words.min()) and int(words.max()) < 2**63:
        return code, words.astype("int64"), "whole numbers"
    raise ValueError(
        f"{what} needs strings, or whole numbers of 64 bits, got {kind} values: convert the column with "
        ".astype(str)")


def positions(
    known: pd.Series, # (m,) different words, all strings or all whole numbers; tuples and lists too
    values: pd.Series, # (n,) words to look up; lists, arrays and tensors too
    name: str | None = None, # Name of the column, for the error message
) -> np.ndarray: # (n,) int64: where each value stands among the known ones; -1 where unknown or missing
    """Look words up. Raises: `ValueError` for numbers where strings are known, or the other way round."""
    try:
        code, words, kind = words_of(values, "Vocabulary")
        if not kind or not len(known): return np.full(len(code), -1, dtype=np.int64)
        whole = isinstance(known, (pd.Series, np.ndarray)) and known.dtype == "int64"
        index = pd.Index(known if whole else list(known))
        own = "strings" if isinstance(index[0], str) else "whole numbers"
        if kind != own:
            raise ValueError(f"this vocabulary knows {own}, but the column holds {kind}: convert the column")
    except ValueError as e: raise ValueError(f"column {name!r}: {e}" if name else str(e)) from None
    return np.append(index.get_indexer(words), -1)[code]


def one_row_per_id(
    table: pd.DataFrame | None, # Users or items, one row each; None takes the last row of each from rows
    key: str, # Name of the column of ids
    columns: tuple, # Names of the columns to take from the rows; those that are missing are left out
    rows: pd.DataFrame, # Events, used if there is no table
    what: str, # Name of the table, for the error message
) -> pd.DataFrame: # One row per id
    """The table of users or items. Raises: `ValueError` naming the row without an id, or the id that appears
    twice."""
    if table is None:
        own = rows[[key, *(c for c in columns if c in rows)]]
        return own.drop_duplicates(key, keep="last").reset_index(drop=True)
    check_columns(table.reset_index(drop=True), [key], what)
    empty, again = table[key].isna().to_numpy(), table[key].duplicated().to_numpy()
    if empty.any():
        raise ValueError(
            f"{what}: column {key!r} is empty in row {empty.argmax()}; drop the rows without an id")
    if again.any():
        second = int(again.argmax())
        first = int((table[key] == table[key].iloc[second]).argmax())
        raise ValueError(
            f"{what}: {key} {table[key].tolist()[second]!r} appears twice, in rows {first} and {second}; "
            f"keep one row of each, such as {what}.drop_duplicates({key!r}, keep='last')")
    return table.reset_index(drop=True)


def sort_keys(
    user: np.ndarray, # (N,) int64: user codes of rows, 0 or more
    time: np.ndarray, # (N,) int64: their seconds
    query_user: np.ndarray, # (G,) int64: user codes of moments
    query_time: np.ndarray, # (G,) int64: their seconds
) -> tuple[np.ndarray, np.ndarray]: # (N,) and (G,) int64
    """One whole number per user and second that sorts as the pair does, for rows and for moments."""
    both, n = np.concatenate([time, query_time]), len(time)
    low, high = int(both.min(initial=0)), int(both.max(initial=0))
    # too far apart to fit into 64 bits: only the order counts
    if (high - low + 1)*(int(max(user.max(initial=0), query_user.max(initial=0))) + 2) >= 2**63:
        both, low, high = np.unique(both, return_inverse=True)[1], 0, len(both)
    span, both = np.int64(high - low + 1), both - low
    return user*span + both[:n], query_user*span + both[n:]
