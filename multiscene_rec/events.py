"""What is known about users: an `EventLog`, how newer rows extend it, and its files. Hand-written; not part
of a lesson."""
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from .checks import damage_named
from .columns import check_columns, one_row_per_id, seconds
from .data import Schema
from .storage import pack_frame, read_record, unpack_frame, write_record

__all__ = ["LOG_FORMAT", "EventLog", "with_news", "save_log", "load_log", "stored_frame"]

LOG_FORMAT = 1


def _as_index(ids): # Words of a category column as words
    ids = pd.Index(ids, dtype=object if not len(ids) else None)
    return pd.Index(np.asarray(ids)) if isinstance(ids.dtype, pd.CategoricalDtype) else ids


def _kind_of(ids): # text, numbers, or a mix that only looks like one of them
    kind = pd.api.types.infer_dtype(ids, skipna=True)
    if kind == "string": return "text"
    mixed = kind.startswith("mixed") and any(isinstance(x, str) for x in ids)
    return "a mix of text and numbers" if mixed else "numbers"


class EventLog:
    """What is known about users: their events, sorted once by user and time, and the table describing them.

    It is the only thing that holds users' data; a fitted preprocessor and a model hold none.

    Raises: `ValueError` naming a column that is missing, a time that is not a time, or a user who appears
    twice in `users`.
    """
    def __init__(self,
        events: pd.DataFrame, # Rows with the columns that schema names; other columns are ignored
        users: pd.DataFrame | None = None, # One row per user; None takes what each user's last event says
        schema: Schema = Schema(), # Which column means what
    ):
        check_columns(events.reset_index(drop=True), schema.required, "log")
        about_user = [c for c in (*schema.categorical, *schema.numeric) if c not in schema.item_columns]
        self.schema, time = schema, seconds(events, schema.time)
        code, ids = pd.factorize(events[schema.user])
        order = np.lexsort((time, code))
        order = order[np.searchsorted(code[order], 0):] # a row without a user belongs to nobody's past
        columns = [c for c in events if c in (*schema.required, *schema.categorical, *schema.numeric)]
        self.events = events[columns].take(order).reset_index(drop=True)
        self.user, self.time, self.ids = code[order], time[order], _as_index(ids)
        self.start = np.searchsorted(self.user, np.arange(len(ids) + 1))
        self.last = int(time.max()) if len(time) else None
        self.derived = users is None
        table = one_row_per_id(users, schema.user, about_user, self.events, "users")
        # about people, keep only what the schema names
        self.users = table[[c for c in table if c == schema.user or c in about_user]]
        self._kept = {}

    def __len__(self): return len(self.events)
    def __repr__(self): return f"EventLog({len(self):,} events of {len(self.ids):,} users)"

    def rows(self,
        users: pd.Series, # (U,) ids; lists and arrays too; unknown ones have no rows
        before: int | None = None, # Moment in seconds; only rows strictly earlier; None takes all
    ) -> tuple[np.ndarray, np.ndarray]: # (n,) positions in events, by user and time; (n,) user, 0 to U - 1
        """The events of some users."""
        at = self.code(users)
        begin, end = (np.where(at < 0, 0, self.start[at + k]) for k in (0, 1))
        if before is not None:
            end = [a + np.searchsorted(self.time[a:b], before) for a, b in zip(begin, end)]
            end = np.array(end, dtype=np.int64)
        count = end - begin
        whose = np.repeat(np.arange(len(count)), count)
        return np.arange(count.sum()) + (begin - (count.cumsum() - count))[whose], whose

    def code(self,
        users: pd.Series, # (n,) ids; lists and arrays too
    ) -> np.ndarray: # (n,) int64: each user's position in ids, -1 for one without events
        """The code of each user. Raises: `ValueError` for numbers where the log has text, or the other way
        round: all would seem new."""
        users = _as_index(users)
        theirs, own = (_kind_of(x) for x in (users, self.ids))
        if users.notna().any() and len(self.ids) and theirs != own:
            raise ValueError(f"column {self.schema.user!r}: these ids are {theirs}, those of the log are "
                             f"{own}: convert them")
        return self.ids.get_indexer(users)

    def kept(self,
        key: object, # Names what is computed
        make: Callable, # Function without arguments that computes it
    ) -> object: # What make returned the first time
        """Compute something from these events once, and keep it."""
        if key not in self._kept: self._kept[key] = make()
        return self._kept[key]


# Newer rows

def _place_of(log, news, keys): # (len(news),) position in the log of the same row, by its keys; -1: it is new
    both = pd.concat([log[keys], news[keys]], ignore_index=True)
    code = both.groupby(keys, dropna=False, sort=False).ngroup().to_numpy()
    # twins are matched one to one: a page may show an item twice
    old, new = (part*(len(both) + 1) + pd.Series(part).groupby(part).cumcount().to_numpy()
                for part in (code[:len(log)], code[len(log):]))
    return pd.Index(old).get_indexer(new)


def with_news(
    log: EventLog, # What is known
    news: pd.DataFrame, # Newer rows; some may already be known
    users: pd.DataFrame | None = None, # One row per user; None keeps the present table
) -> EventLog: # Both, each row once
    """Extend a log; for a row that is already known, the newer label counts. Raises: `ValueError` as
    `EventLog` does."""
    schema, events = log.schema, log.events.copy()
    check_columns(news.reset_index(drop=True), schema.required, "news")
    at = _place_of(events, news, [schema.user, schema.item, schema.scenario, schema.time])
    labels = list(schema.labels)
    events.loc[at[at >= 0], labels] = news[labels].to_numpy()[at >= 0] # a click may have come late
    fresh = news.loc[at < 0, [c for c in events if c in news]]
    if users is None and not log.derived: users = log.users
    return EventLog(pd.concat([events, fresh], ignore_index=True), users, schema)


# Its files

def save_log(
    log: EventLog, # The log to save
    folder: str | Path, # Created if needed; log.json and log.safetensors are written into it
) -> str: # The record's checksum
    """Save events and users as a record of their own, apart from model and preprocessor.

    Raises: `ValueError` naming a column that holds anything but numbers or text.
    """
    tensors = {}
    frames = {name: pack_frame(getattr(log, name), name, tensors) for name in ("events", "users")}
    about = dict(format=LOG_FORMAT, schema=asdict(log.schema), derived=log.derived, frames=frames)
    return write_record(folder, "log", about, tensors)


def load_log(
    folder: str | Path, # The folder that save_log wrote into
) -> EventLog: # The same events and users
    """Read a log back. Raises: `FileNotFoundError`, or `ValueError` naming the damaged file."""
    about, tensors = read_record(folder, "log", "save_log", LOG_FORMAT)
    with damage_named(Path(folder)/"log.json", "save_log"):
        events, users = (stored_frame(about["frames"][name], name, tensors) for name in ("events", "users"))
        return EventLog(events, None if about["derived"] else users, Schema(**about["schema"]))


def stored_frame(
    columns: list, # What pack_frame returned, read from a file
    name: str, # Name of the frame
    tensors: dict, # Name: tensor
) -> pd.DataFrame: # The frame
    """Read a stored frame. Raises: `ValueError` naming a column whose words are not text or numbers."""
    for c in columns:
        if c["words"] is not None and not {type(w) for w in c["words"]} <= {str, int, float, bool}:
            raise ValueError(f"the words of column {c['name']!r} of {name} are not text or numbers")
    return unpack_frame(columns, name, tensors)
