"""Clean a log by rules that count what they change. Written by hand; notebook 03 lists the rules."""
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .columns import as_float, check_columns
from .data import Schema

__all__ = ["dedupe", "CleanReport", "clean"]


# Rules for one row: what they return is True where the row is wrong

def _empty(column): # Missing, or a string of blanks
    out = column.isna().to_numpy()
    if pd.api.types.is_numeric_dtype(column): return out
    code, words = pd.factorize(column) # each different word is looked at once
    return out | np.append([str(w).strip() == "" for w in words], False).astype(bool)[code]


def _outside(column, low, high): # Not a number from low to high
    x = as_float(column)
    return ~((x >= low) & (x <= high))


def _bad_price(column, limit): # Not finite, not above 0, or more than limit times the median
    x = as_float(column)
    good = np.isfinite(x) & (x > 0)
    return ~good | (x > limit*np.median(x[good])) if good.any() else ~good


def _seconds(when): # A year or date as text, or seconds -> seconds since 1970
    if isinstance(when, (int, float, np.number)): return float(when)
    return pd.Timestamp(str(when), tz="UTC").timestamp()


def _limits(time_range): # First and last second allowed; without a range, all that float64 counts exactly
    if time_range is None: return -2.**53 + 1, 2.**53 - 1
    low, high = map(_seconds, time_range)
    return low, np.nextafter(high, low)


def _rules(schema, time_range, price, price_limit): # (name, function of a log -> rows to drop), in order
    ids = (schema.user, schema.item, schema.scenario)
    return [("missing id", lambda log: np.any([_empty(log[c]) for c in ids], axis=0)),
            ("label", lambda log: np.any([_outside(log[c], 0, 1) for c in schema.labels], axis=0)),
            *([("price", lambda log: _bad_price(log[price], price_limit))] if price is not None else []),
            ("time", lambda log: _outside(log[schema.time], *_limits(time_range))),
            ("duplicate", lambda log: log.duplicated().to_numpy())]


# Names of scenarios

def _one_spelling(column): # The column with each name in its commonest spelling; where that changed something
    code, words = pd.factorize(column)
    words = pd.Series(np.asarray(words, dtype=object), dtype=object)
    text = words.map(lambda v: isinstance(v, str) and v.strip() != "").to_numpy(dtype=bool)
    rows = np.bincount(code[code >= 0], minlength=len(words))[text]
    names = pd.DataFrame(dict(short=words[text].map(str.strip), rows=rows))
    names["folded"] = names.short.map(str.casefold)
    count = names.groupby(["folded", "short"], as_index=False).rows.sum()
    count = count.sort_values(["rows", "short"], ascending=[False, True])
    best = count.drop_duplicates("folded").set_index("folded").short
    spelled = words.copy()
    spelled[text] = names.folded.map(best)
    changed = np.append(text & (spelled != words).to_numpy(dtype=bool), False)[code]
    out = np.append(spelled.to_numpy(), np.nan)[code] # a code of -1 is "missing"
    return pd.Series(out, index=column.index, name=column.name, dtype=object), changed


# Rules for two rows

def _shows_label(log, c, schema): # Such as event, view or click: it splits one exposure
    rows = log[c].value_counts()
    # a few rows may agree by chance
    if log[c].dtype.kind == "f" or not 1 < len(rows) <= 10 or rows.min() < 5: return False
    return any(log[y].nunique() > 1 and (log.groupby(c, observed=True)[y].nunique() == 1).all()
               for y in schema.labels)


def _twins(rows, group): # (n,) position of the first row that agrees in the group and in all columns
    code = rows.groupby([group, *rows], sort=False, dropna=False, observed=True).ngroup().to_numpy()
    return np.unique(code, return_index=True)[1][code]


def _exposures(log, schema, window): # (n,) position of the first row of each row's exposure
    same = [schema.user, schema.item, schema.scenario]
    code = log.groupby(same, sort=False, dropna=False, observed=True).ngroup().to_numpy()
    time = as_float(log[schema.time])
    order = np.lexsort((time, code)) # event by event, in order of time
    code, time = code[order], time[order]
    begins = np.ones(len(log), dtype=bool)
    begins[1:] = (np.diff(code) != 0) | ~(np.diff(time) <= window)
    first = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    # only rows that are not alone need a closer look: which of them agree in all other columns?
    close = np.flatnonzero(~begins | np.append(~begins[1:], False))
    others = [c for c in log if c not in (*same, schema.time, *schema.labels)]
    others = [c for c in others if not _shows_label(log, c, schema)]
    twin = close[_twins(log[others].iloc[order[close]], first[close])]
    first[close] = np.where(time[twin] == time[first[twin]], twin, first[close])
    out = np.empty(len(log), dtype=np.int64)
    out[order] = order[first]
    return out


def _one_row_each(log, schema, window): # One row per exposure with its highest labels; re-sent; click rows
    first = _exposures(log, schema, window)
    later, click, out = first != np.arange(len(log)), np.zeros(len(log), dtype=bool), log
    for c in schema.labels:
        y = as_float(log[c])
        y = np.where(np.isnan(y), -np.inf, y)
        higher = np.flatnonzero(y > y[first])
        if not len(higher): continue
        click[higher] = True
        highest = np.arange(len(log))
        higher = higher[np.argsort(y[higher], kind="stable")] # the highest is written last, and stays
        highest[first[higher]] = higher
        out = out.assign(**{c: log[c].take(highest).set_axis(log.index)})
    return out[~later] if later.any() else out, later & ~click, click


def _check(log, schema, window, what):
    check_columns(log, schema.required, what)
    if not window >= 0: raise ValueError(f"window must be a time in seconds, 0 or more, got {window}")


def dedupe(
    log: pd.DataFrame, # One event per row, columns named by the schema
    schema: Schema = Schema(), # Which column means what
    window: float = 5, # Seconds after which a repeated event is a new one; 0 merges rows of one second
) -> pd.DataFrame: # The log with one row per exposure; order and row labels stay
    """Drop exact duplicates, then re-sent events (same user, item and scenario, at most `window` seconds
    after the one before).

    No click is lost: the row that is kept takes the highest label of its exposure.

    Raises: `ValueError` naming a column that is missing, a window below 0, or row labels that appear twice.
    """
    _check(log, schema, window, "dedupe")
    return _one_row_each(log[~log.duplicated().to_numpy()], schema, window)[0]


# All rules and their report

@dataclass
class CleanReport:
    """What cleaning did: print it, or read its two frames."""
    rows_in: int # Rows before
    rows_out: int # Rows after
    counts: pd.DataFrame # One row per rule, in order: rule, action (dropped, repaired or merged), rows
    rows: pd.DataFrame # One row per hit: row (its label in the log before cleaning), rule
    remarks: tuple = () # What is worth a second look, one sentence each

    def __str__(self):
        lines = [f"{self.rows_in:,} rows in, {self.rows_out:,} rows out"]
        for rule, action, rows in self.counts.itertuples(index=False):
            lines.append(f"  {rule:<11}{rows:>7,} {action}")
        return "\n".join([*lines, *(f"  Look: {remark}" for remark in self.remarks)])


def _about_time(log, schema, time_range): # What the times that were dropped may mean, and how to keep them
    time, (low, high) = as_float(log[schema.time]), _limits(time_range)
    time = time[np.isfinite(time) & ~((time >= low) & (time <= high))]
    if time_range is None or not len(time): return ""
    allowed = f"times must run from {time_range[0]} up to {time_range[1]}, in seconds since 1970"
    for unit, size in (("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)):
        if low <= np.median(time)/size <= high:
            return f"; if the times in {schema.time!r} are {unit}, divide them by {size}; {allowed}"
    return (f"; its times in {schema.time!r} run from {time.min():.15g} to {time.max():.15g}; {allowed}; if "
            "they count from another moment, pass time_range=None")


def _nothing_left(log, counts, hint): # The message when every row broke a rule
    worst = counts[counts.action == "dropped"].nlargest(1, "rows").iloc[0]
    return (f"clean: none of the {len(log):,} rows is left; rule '{worst.rule}' dropped "
            f"{worst.rows:,}{hint if worst.rule == 'time' else ''}")


def _remarks(log, counts, window, hint): # What is worth a second look
    rows = dict(zip(counts.rule, counts.rows))
    many = [c.rule for c in counts.itertuples() if c.action == "dropped" and c.rows > .1*len(log)]
    remarks = [f"rule '{rule}' dropped {rows[rule]/len(log):.0%} of all rows{hint if rule == 'time' else ''}"
               for rule in many]
    if rows["click row"]:
        remarks.append(f"clicks up to {window:g} s after an exposure were merged into it; if some come "
                       "later, pass a larger window")
    return tuple(remarks)


def _apply(log, schema, window, rules): # The log after all rules; and each rule's name, action and rows
    spelled, repaired = _one_spelling(log[schema.scenario])
    out, hits = log.assign(**{schema.scenario: spelled}), [("scenario", "repaired", log.index[repaired])]
    for name, rule in rules:
        bad = rule(out)
        hits.append((name, "dropped", out.index[bad]))
        out = out[~bad] if bad.any() else out
    index, (out, resent, click) = out.index, _one_row_each(out, schema, window)
    return out, [*hits, ("resent", "dropped", index[resent]), ("click row", "merged", index[click])]


def _whole(column): # Whole numbers that a missing value had turned into another type
    if column.dtype.kind not in "iuf" or column.dtype == "int64" or column.isna().any(): return column
    if column.dtype.kind == "f" and ((column % 1).any() or column.abs().max() > 2**53): return column
    return column.astype("int64")


def clean(
    log: pd.DataFrame, # One event per row, columns named by the schema
    schema: Schema = Schema(), # Which column means what
    window: float = 5, # Seconds within which a repeated event is re-sent, or the click on the one before
    time_range: tuple | None = ("1990", "2100"), # From one up to the other, dates or seconds; None: any
    price: str | None = "price", # Column that the rule for prices looks at; without it the rule is skipped
    price_limit: float = 10_000, # Highest price allowed, as a multiple of the median price
) -> tuple[pd.DataFrame, CleanReport]: # The clean log, its order and row labels as before, and what was done
    """Apply all rules, one after the other, and count what each did.

    Raises: `ValueError` naming a column that is missing, a window below 0, row labels that appear twice, or
    the rule that left no row.
    """
    _check(log, schema, window, "clean")
    rules = _rules(schema, time_range, price if price in log.columns else None, price_limit)
    out, hits = _apply(log, schema, window, rules)
    counts = [(rule, action, len(rows)) for rule, action, rows in hits]
    counts = pd.DataFrame(counts, columns=["rule", "action", "rows"])
    dropped_times = bool(counts.rows[counts.rule == "time"].item())
    hint = _about_time(log, schema, time_range) if dropped_times else ""
    if len(log) and not len(out): raise ValueError(_nothing_left(log, counts, hint))
    out = out.assign(**{c: _whole(out[c]) for c in (schema.user, schema.item, schema.time, *schema.labels)})
    rows = pd.concat([pd.DataFrame(dict(row=rows, rule=rule)) for rule, _, rows in hits], ignore_index=True)
    return out, CleanReport(len(log), len(out), counts, rows, _remarks(log, counts, window, hint))
