"""A run of the command: read a log, train, evaluate, keep everything in one folder, use it later.
Hand-written; not part of a lesson.

The folder of a run: `model/` and `preprocess/` can be shipped; `log/` holds users' data and is a record of
its own; `run.json` names the checksums of all three, so that parts of two runs are never mixed. The rest is
for readers: metrics, pictures, card.
"""
import contextlib
import csv
import gzip
import importlib
import io
import json
import os
import platform
import re
import shutil
import sys
import tomllib
import warnings
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import multiscene_rec

from .checks import damage_named, whole_number
from .core import pick_device, require, set_seed
from .data import log_summary
from .inspection import model_card
from .logs import load_movielens_100k, read_log
from .metrics import auc, bootstrap_interval, log_loss, report
from .preprocess import (
    EventLog,
    Preprocessor,
    Vocabulary,
    clean,
    group_split,
    load_log,
    save_log,
    time_split,
    with_news,
)
from .recommender import Recommender, build, model_class, plain_params
from .schema import Schema
from .serving import recommend
from .storage import (
    foreign_file,
    read_record,
    replaced_folder,
    settle,
    work_folder,
    write_record,
    write_whole,
)
from .train import Checkpoint, FiniteCheck, KeepBest, Progress, attention_map, fit, plot_map, predict

__all__ = ["read_schema", "measure", "column_auc", "find_model", "train_log", "evaluate_log", "list_for",
           "load_run", "Run", "picture", "pictures", "plain_text", "metrics_text", "callbacks"]

FORMAT = 2
OURS = ("model", "preprocess", "log", "metrics.csv", "metrics.json", "curve.png", "attention.png",
        "model_card.md")
WRITER = "multiscene-rec train"
MANY_SCENARIOS = 300 # More suggest a wrong column: a session, a page, a time
SUSPECT_COLUMN, SUSPECT_MODEL = .95, .98 # Above this AUC something is probably known only after the click


# Words and pictures

def plain_text(
    text, # Anything to print
) -> str: # The same, with control characters escaped
    """Names in a log are data: a terminal shows them and never obeys them."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda m: repr(m[0])[1:-1], str(text))

def _silent(text=""): # For the processes that do not report
    pass

_OPTIONS = {"pass time_range=None": "add --any-time, or name their unit with --time-unit",
            "pass a larger window": "give --window a larger number",
            "pass exclude_seen=False": "add --seen"}

def in_options(text): # The library's advice in the command's words
    text = re.sub(r"give its value, context=\{'([^']*)': \.\.\.\}; if it describes users, give .*",
                  r"give its value, --context \1=VALUE; if it describes users, train with --users", str(text))
    for advice, option in _OPTIONS.items(): text = text.replace(advice, option)
    return text

def show(frame, digits=3): # A table as text
    return plain_text(frame.to_string(float_format=lambda x: f"{x:.{digits}f}", na_rep="-"))

def metrics_text(
    metrics: pd.DataFrame, # As measure returns it
) -> str: # A table
    """Metrics for the screen; the interval of the log loss is left to the file."""
    return show(metrics.drop(columns=["log_loss_low", "log_loss_high"]))

def some(names, most=10): # The first names of a list, in words
    names = [repr(getattr(x, "item", lambda x=x: x)()) for x in names]
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")

def as_json(value): # Text of plain data; NaN, which JSON does not have, becomes null
    plain = lambda x: x.item() if isinstance(x, np.generic) else str(x)
    text = json.dumps(json.loads(json.dumps(value, default=plain), parse_constant=lambda _: None), indent=1,
                      ensure_ascii=False)
    # control characters of a terminal; those below 32 are escaped already
    return re.sub(r"[\x7f-\x9f]", lambda m: f"\\u{ord(m[0]):04x}", text) + "\n"

def picture(
    figure, # A matplotlib figure; it is closed
) -> bytes: # Of a png file
    """Render a figure."""
    import matplotlib.pyplot as plt
    buffer = io.BytesIO()
    try: figure.savefig(buffer, format="png", dpi=120)
    finally: plt.close(figure)
    return buffer.getvalue()

def pictures(
    log, # A TrainingLog
    maps: dict | None, # Title: frame of attention_map; None if the model gives no weights
    title: str = "", # Title of the curve
) -> dict: # Name of the file: its bytes
    """The losses of each epoch, and the weights of the histories."""
    with warnings.catch_warnings():
        # a missing glyph, or a name too long for its space, is nothing that the user can mend
        warnings.simplefilter("ignore", UserWarning)
        axes = log.plot()
        axes.set_title(title)
        axes.figure.tight_layout()
        made = {"curve.png": picture(axes.figure)}
        if maps:
            plain = {title: frame.rename(index=plain_text, columns=plain_text)
                     for title, frame in maps.items()}
            made["attention.png"] = picture(plot_map(plain))
    return made


# Which column is what

def read_schema(
    path: str | Path, # A .json or .toml file with fields of Schema
) -> Schema: # Which column means what
    """Read a Schema from a file. A field that is left out keeps its default name; features default to none.

    Raises: `FileNotFoundError`; `ValueError` for text that is not JSON or TOML, a field that Schema does not
    have, or names that contradict each other.
    """
    path, known = Path(path), [f.name for f in fields(Schema)]
    if not path.is_file(): raise FileNotFoundError(f"no such schema file: {path}")
    kind = "TOML" if path.suffix == ".toml" else "JSON"
    try: plain = (tomllib.loads if kind == "TOML" else json.loads)(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as e: raise ValueError(f"{path} is not {kind}: {e}") from None
    if not isinstance(plain, dict):
        raise ValueError(
            f"{path} must hold fields of a schema, such as {{\"user\": \"customer\"}}, not a "
            f"{type(plain).__name__}")
    if wrong := [k for k in plain if k not in known]:
        raise ValueError(
            f"{path}: there is no field {wrong[0]!r} in a schema; the fields are {', '.join(known)}")
    try: return Schema(**(dict(categorical=(), numeric=(), item_columns=()) | plain))
    except (TypeError, ValueError) as e: raise ValueError(f"{path}: {e}") from None

# Without a file: the five columns, and the features of the mall's schema that are not among the five
def _default_schema(**named):
    named, default = {k: v for k, v in named.items() if v}, Schema()
    if "label" in named:
        named["label"] = tuple(named["label"]) if not isinstance(named["label"], str) else named["label"]
    keys = Schema(**named, categorical=(), numeric=(), item_columns=()).required
    return replace(default, **named, **_features(default, lambda c: c not in keys))

def _features(schema, keep): # The fields that list features, cut down
    return {name: tuple(c for c in getattr(schema, name) if keep(c))
            for name in ("categorical", "numeric", "item_columns")}

def _with_features(schema, *tables): # Only features that are columns of a table
    columns = {c for table in tables if table is not None for c in table.columns}
    return replace(schema, **_features(schema, columns.__contains__))

def _without(schema, drop): # The schema without some of its features
    listed = (*schema.categorical, *schema.numeric)
    for c in drop:
        if c not in listed:
            raise ValueError(
                f"--drop: {c!r} is not a feature here; the features are {', '.join(listed) or 'none'}")
    history = tuple(c for c in schema.history or () if c not in drop) or None
    return replace(schema, **_features(schema, lambda c: c not in drop), history=history)


# Reading

@dataclass
class Log:
    """A log that is ready to be split."""
    name: str # Where it came from
    rows: pd.DataFrame # Clean, in order of time
    users: pd.DataFrame | None # One row per user, or None
    items: pd.DataFrame | None # One row per item, or None
    schema: Schema # Which column means what
    cleaning: object # CleanReport
    notes: list # Lines that the user should read

def _side_table(path, key, log, option): # A file of users or items, with ids of the log's type
    path = Path(path).expanduser()
    if not path.is_file(): raise FileNotFoundError(f"{option}: no such file: {path}")
    try: table = _read_side(path, key)
    except (ValueError, OSError, EOFError) as e:
        raise ValueError(f"{option}: {path} is not a table: {' '.join(str(e).split())}") from None
    names = list(map(str, table.columns))
    if twice := [n for n in names if names.count(n) > 1]:
        raise ValueError(
            f"{option}: {path}: column {twice[0]!r} appears twice in the header; rename one of the two")
    if key not in table:
        raise ValueError(f"{option}: {path} has no column {key!r}; the columns are {', '.join(names)}")
    if pd.api.types.is_numeric_dtype(log[key]): # "007" is not 7, as in the log
        text = table[key].astype(object).where(table[key].notna(), "").astype(str).str.strip()
        number = pd.to_numeric(text.where(text.str.fullmatch(r"(0|-?[1-9]\d{0,17})(\.0)?")), errors="coerce")
        table[key] = number.where(number % 1 == 0).astype("Int64")
    else: table[key] = table[key].map(str, na_action="ignore")
    if table[key].isna().any():
        raise ValueError(
            f"{option}: {path}: column {key!r}, row {int(table[key].isna().argmax()) + 1} below the header "
            "has no id like those of the log")
    table = table.astype({key: log[key].dtype})
    if not log[key].isin(table[key]).any():
        raise ValueError(
            f"{option}: {path}: no id in column {key!r} occurs in the log; the log has "
            f"{some(log[key].unique(), 2)}, the file has {some(table[key].unique(), 2)}")
    return table

def _read_side(path, key): # As it is in the file; repeated names stay repeated
    if path.suffix == ".parquet":
        frame = require("pyarrow.parquet", "data").read_table(path)
        names = frame.column_names
        return frame.to_pandas() if len(set(names)) == len(names) else pd.DataFrame(columns=names)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as f:
        header = f.readline().rstrip("\r\n")
    sep = max(",;\t|", key=header.count) # of the four usual ones the most frequent
    names = [name.strip() for name in next(csv.reader([header], delimiter=sep), [])]
    frame = pd.read_csv(path, sep=sep, decimal="," if sep == ";" else ".", encoding="utf-8-sig",
                        dtype={key: "str"}, skipinitialspace=True, index_col=False)
    return frame.set_axis(names, axis=1) if len(names) == frame.shape[1] else frame

def _coverage(log, table, key, option): # A line on the ids that a table of users or items lacks
    if table is None: return []
    unknown = ~log[key].isin(table[key])
    if not unknown.any(): return []
    effect = ("can never be recommended" if option == "--items"
              else "count as unknown in every column of that file")
    return [f"{log[key][unknown].nunique():,} of {log[key].nunique():,} ids in column {key!r} are not in the "
            f"{option} file: they {effect}"]

def _contradictions(log, items, schema): # Items that log and file describe differently
    notes = []
    for c in () if items is None else schema.item_columns:
        if c not in schema.categorical or c not in log or c not in items: continue
        in_file = items.set_index(schema.item)[c].reindex(log[schema.item]).to_numpy()
        in_log = log[c].to_numpy()
        differs = (in_file.astype(str) != in_log.astype(str)) & pd.notna(in_file) & pd.notna(in_log)
        if differs.any():
            notes.append(
                f"in {int(differs.sum()):,} of {len(log):,} rows column {c!r} of the log differs from the "
                "--items file: training reads the log, lists read the file")
    return notes

# (frame, users, items, schema) of a file, or of MovieLens under its name
def _raw(path, schema, columns, users, items, time_unit):
    if str(path) == "movielens-100k":
        if schema is not None or columns or users or items:
            raise ValueError("movielens-100k has its own columns, users and items: leave out the options "
                             "that name them")
        films = load_movielens_100k()
        return films.events, films.users, films.items, films.schema
    own = schema if schema is not None else _default_schema(**(columns or {}))
    log = read_log(path, own, time_unit=time_unit) if time_unit else read_log(path, own)
    users = users and _side_table(users, own.user, log, "--users")
    items = items and _side_table(items, own.item, log, "--items")
    return log, users, items, own

def open_log(path, schema, price=None, columns=None, users=None, items=None, time_unit=None, any_time=False,
             window=5., drop=()):
    "Read and clean a file; returns a Log."
    named, (log, users, items, schema) = schema, _raw(path, schema, columns, users, items, time_unit)
    if named is None: schema = _with_features(schema, log, users, items)
    schema = _without(schema, drop)
    if price is not None and price not in log:
        raise ValueError(
            f"--price: the log has no column {price!r}; the columns are {', '.join(map(str, log.columns))}")
    any_range = dict(time_range=None) if any_time or time_unit == "none" else {}
    try: rows, cleaning = clean(log, schema, window=window, price=price, **any_range)
    except ValueError as e: raise ValueError(in_options(e)) from None
    for name in schema.labels:
        soft = ~rows[name].isin((0, 1)).to_numpy()
        if soft.any():
            raise ValueError(
                f"column {name!r}, row {rows.index[soft.argmax()] + 1} below the header: "
                f"{rows[name].iloc[soft.argmax()]} is a soft label; the command measures AUC, which needs 0 "
                "or 1: round the labels, or use fit and predict from Python")
    names = rows[schema.scenario].unique()
    if taken := {"macro", "all"} & set(names):
        raise ValueError(
            f"a scenario is called {min(taken)!r}, which is the name of a line of the "
                        "results: rename it in the log")
    if len(names) > MANY_SCENARIOS:
        raise ValueError(
            f"column {schema.scenario!r} names {len(names):,} scenarios ({some(names, 3)}): is it the right "
            f"column? At most {MANY_SCENARIOS} are allowed")
    notes = [*_coverage(rows, users, schema.user, "--users"), *_coverage(rows, items, schema.item, "--items")]
    if items is not None and not items[schema.item].duplicated().any():
        notes += _contradictions(rows, items, schema)
    name = str(path).encode("utf-8", "backslashreplace").decode() # bytes that are not text
    return Log(name, rows.sort_values(schema.time, kind="stable"), users, items, schema, cleaning, notes)

def _split(log, by, seed): # (train, valid, test), and how the log was split
    schema = log.schema
    if by == "user":
        return group_split(log.rows, schema.user, (.8, .08, .12), seed), dict(by="user", seed=seed)
    parts = time_split(log.rows, schema)
    return parts, dict(by="time", valid_from=int(parts[1][schema.time].iloc[0]),
                       test_from=int(parts[2][schema.time].iloc[0]))

def _known(rows, scenarios, schema, part): # Rows of known scenarios, and a line on those left out
    new = ~rows[schema.scenario].isin(scenarios)
    if not new.any(): return rows, []
    names, kept = rows[schema.scenario][new].unique(), rows[~new]
    line = (f"{int(new.sum()):,} of {len(rows):,} {part} rows left out: scenario {some(sorted(names))} does "
            "not occur in the training rows")
    if not len(kept):
        raise ValueError(
            f"{line}; none is left: train on a log that holds these scenarios early on, or use --split user")
    return kept, [line]


# Measuring

def measure(
    label: np.ndarray, # (n,) 0 or 1
    prob: np.ndarray, # (n,) predicted probability of a click
    scenario: np.ndarray, # (n,) names
    user: np.ndarray, # (n,) ids
    base: np.ndarray | None = None, # (n,) probability without a model; None leaves out the column
    resamples: int = 200, # Number of resamples for the intervals
) -> pd.DataFrame: # As metrics.report, with auc_low, auc_high, log_loss_low, log_loss_high, base_log_loss
    """A report with 95 % intervals over users; with one class or one user, AUC and intervals are NaN.

    Raises: `ValueError` as metrics.report.
    """
    table = report(label, prob, scenario, user)
    for line in table.index.drop("macro"):
        rows = np.full(len(label), True) if line == "all" else np.asarray(scenario) == line
        for name, metric in (("auc", auc), ("log_loss", log_loss)):
            try:
                low, high = bootstrap_interval(metric, label[rows], prob[rows], user[rows],
                                               resamples=resamples)
            except ValueError: low = high = np.nan
            table.loc[line, [f"{name}_low", f"{name}_high"]] = low, high
        if base is not None: table.loc[line, "base_log_loss"] = log_loss(label[rows], base[rows])
    if base is not None:
        table.loc["macro", "base_log_loss"] = table.base_log_loss.drop(["macro", "all"]).mean()
    order = ["rows", "users", "click_rate", "auc", "auc_low", "auc_high", "gauc", "log_loss", "log_loss_low",
             "log_loss_high", "base_log_loss"]
    return table[[c for c in order if c in table]]

def column_auc(
    value: pd.Series, # (n,) numbers, or words and ids
    label: np.ndarray, # (n,) 0 or 1, both of them
    numeric: bool, # Whether the column is a quantity
    seed: int = 0, # Seed of the folds
) -> float: # 0.5 to 1; at 0.5 the column tells nothing
    """How well one column alone separates clicks from the rest: a quantity by its order, words by their
    click rate in other rows.

    Missing values of a quantity form a group of their own, below all others.
    """
    y = np.asarray(label, dtype=float)
    if numeric:
        x = pd.to_numeric(value, errors="coerce").to_numpy(dtype=float, na_value=np.nan)
        score = np.where(np.isnan(x), -np.inf, x)
        score = pd.Series(score).rank().to_numpy()
    else:
        code, fold = pd.factorize(value)[0] + 1, np.random.default_rng(seed).integers(5, size=len(y))
        clicks, rows = (np.bincount(code*5 + fold, w, minlength=(code.max() + 1)*5).reshape(-1, 5)
                        for w in (y, np.ones(len(y))))
        others = lambda x: (x.sum(1, keepdims=True) - x)[code, fold]
        # five made-up rows of the mean click rate damp rare words
        score = (others(clicks) + 5*y.mean())/(others(rows) + 5)
    value = auc(y, score)
    return float(max(value, 1 - value))

def suspects(rows, log): # Features that give the label away on their own: column -> AUC on training rows
    schema, suspicious = log.schema, {}
    part = rows.sample(min(len(rows), 200_000), random_state=0)
    labels = [y for y in (part[name].to_numpy(dtype=float) for name in schema.labels) if y.min() < y.max()]
    for c in (*schema.categorical, *schema.numeric):
        if c in part: value = part[c]
        else:
            key, table = next(((k, t) for k, t in ((schema.item, log.items), (schema.user, log.users))
                               if t is not None and c in t), (None, None))
            if table is None: continue
            value = table[c].reindex(Vocabulary(words_=table[key].tolist()).encode(part[key]) - 1)
        score = max((column_auc(value.reset_index(drop=True), label, c in schema.numeric)
                     for label in labels), default=0.)
        if score > SUSPECT_COLUMN: suspicious[c] = score
    return suspicious

def _warnings(leaks, metrics): # Lines for the screen and for the card
    lines = [
        f"WARNING: column {c!r} alone tells clicks from the rest (AUC {score:.3f} on the training rows). Is "
        f"it known before the click? If not, leave it out with --drop {c}" for c, score in leaks.items()]
    best = metrics.loc[metrics.index == "all", "auc"].max()
    if best > SUSPECT_MODEL and not leaks:
        lines.append(
            f"WARNING: an AUC of {best:.3f} on the test rows is too good for clicks. Look for a feature that "
            "is known only after the click")
    return lines


# Training

def callbacks(
    patience: int, # Stop after this many epochs without a lower validation loss
    progress: bool, # Whether a bar is drawn
) -> tuple: # As for fit
    """The callbacks of a training run of the command."""
    return FiniteCheck(), KeepBest(patience), *((Progress(),) if progress else ())

def find_model(
    name: str, # One of model_names(), or package.module:Class
) -> str: # The name under which it is registered
    """A model by its name; a user's own module is imported because the user names it, never because a file
    does.

    Raises: `ValueError` for a name that is unknown, a module that cannot be imported, or a class that is not
    a Recommender.
    """
    module, _, kind = name.partition(":")
    if not kind:
        model_class(name)
        return name
    import_module(module)
    value = sys.modules[module]
    for part in kind.split("."): value = getattr(value, part, None)
    if not (isinstance(value, type) and issubclass(value, Recommender)):
        raise ValueError(f"--model {name}: {module} has no class {kind!r} that is a Recommender")
    return value.name

def import_module(name): # A user's module; it may lie in the folder where the command runs
    if os.getcwd() not in sys.path and "" not in sys.path: sys.path.insert(0, os.getcwd())
    try: importlib.import_module(name)
    except ImportError as e: raise ValueError(f"module {name!r} cannot be imported: {e}") from e

def _check_out(out, resume, overwrite): # Refuse to write where something would be lost
    if Path(out).exists() and not Path(out).is_dir(): raise ValueError(f"{out} is a file: name a folder")
    if foreign := foreign_file(out, "run.json", OURS):
        raise ValueError(f"{out} holds {foreign!r}, which no run wrote: name a new or an empty folder")
    done, begun = (Path(out)/"run.json").exists(), _begun(out).exists()
    if resume and not begun:
        if done:
            raise ValueError(
                f"{out} holds a finished run, so there is nothing to resume: name another folder, or use "
                "--overwrite")
        raise FileNotFoundError(f"there is no unfinished run for {out}: leave out --resume")
    if not (resume or overwrite):
        if begun:
            raise ValueError(
                f"a run for {out} was stopped: --resume continues it, --overwrite starts again")
        if done:
            raise ValueError(
                f"{out} holds a trained model: name another folder, or use --overwrite to replace it")

def _begun(out): return work_folder(out)/"checkpoint"/"checkpoint.json" # Exists while a run is unfinished

# Number of this process, under torchrun
def _rank(): return int(os.environ.get("RANK", 0)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else 0

def train_log(
    log: str | Path, # A .csv, .csv.gz or .parquet file, or movielens-100k
    out: str | Path, # Folder for the model and all that belongs to it; created if needed
    schema: Schema | None = None, # Which column means what; None: the mall's names, if the log has them
    columns: dict | None = None, # Without a schema: names of the five columns, such as dict(user="who")
    users: str | Path | None = None, # File with one row per user
    items: str | Path | None = None, # File with one row per item
    split: str = "time", # Test rows: time, the latest; user, those of other users
    price: str | None = None, # Column of prices that clean checks
    time_unit: str | None = None, # As for read_log; "none" keeps any numbers as they are
    any_time: bool = False, # Accept times outside 1990 to 2099
    window: float = 5., # Seconds within which rows of one user, item and scenario are one exposure
    drop: tuple = (), # Features to leave out
    resume: bool = False, # Continue a run that was stopped
    overwrite: bool = False, # Replace what the folder holds
    seed: int = 0, # Seed of the weights, the order of the rows and a split by user
    say=print, # Called with each line of progress
    model: str = "interest", # Name of a model, or package.module:Class
    params: dict | None = None, # Its arguments, such as fusion and heads
    patience: int = 2, # Stop after this many epochs without a lower validation loss
    progress: bool = True, # A bar per epoch, in a terminal
    **training, # epochs, batch_size, lr, device, precision, as for fit
) -> pd.DataFrame: # As measure returns it for the test rows; empty in all processes but the first
    """Train on a log and write model, preprocessor, log, metrics, pictures and a model card into a folder.

    The folder is built beside its final place and swapped in when it is complete: a failure leaves the old
    one as it was.

    Raises: `ValueError`, `FileNotFoundError`, `OSError` for a wrong log, option or folder;
    `KeyboardInterrupt` that names the checkpoint.
    """
    training = dict(epochs=10, batch_size=1024, lr=4e-3, precision="fp32", device="auto") | training
    if split not in ("time", "user"): raise ValueError(f"split is time or user, got {split!r}")
    name, first = find_model(model), _rank() == 0
    if not first: say = _silent
    if training["device"] != "auto": pick_device(training["device"])
    whole_number("patience", patience)
    out = Path(out).expanduser()
    settle(out)
    if first or not resume: _check_out(out, resume, overwrite)
    before = _stamp(out)
    try:
        with replaced_folder(out) if first else contextlib.nullcontext(work_folder(out)) as work:
            say(f"Reading {log}")
            data = open_log(log, schema, price, columns, users, items, time_unit, any_time, window, drop)
            run = _Training(data, out, work, split, seed, name, dict(params or {}), patience, progress,
                            resume, training, say)
            metrics = run.go(first)
            if first:
                run.about |= dict(price=price, time_unit=time_unit, any_time=any_time, window=window)
                run.keep(work/"run")
    except KeyboardInterrupt: raise KeyboardInterrupt(_stopped(out, before)) from None
    return metrics

def _stamp(out): # Differs between a run and the one that replaces it
    with contextlib.suppress(OSError): return (Path(out)/"run.json").stat().st_ino


@dataclass
class _Training:
    "A training run of the command, from the clean log to the folder."
    data: Log
    out: Path
    work: Path
    split: str
    seed: int
    name: str
    params: dict
    patience: int
    progress: bool
    resume: bool
    training: dict
    say: object

    def go(self, first): # Everything up to the metrics
        self.prepare()
        schema, train, valid, test = self.data.schema, *self.batches
        features = [*schema.categorical, *schema.numeric]
        hint = "none but the ids; name columns of your log in a schema file to use them"
        self.say(f"Features: {', '.join(features) or hint}")
        set_seed(self.seed)
        self.model = build(self.name, self.prep.spec, **self.params)
        plain_params(self.model) # an argument that cannot be saved is refused before training
        self.say(
            f"Learning from {len(train):,} rows, choosing the epoch on {len(valid):,}, testing on "
            f"{len(test):,}")
        folder = self.work/"checkpoint"
        if first and not self.resume: shutil.rmtree(folder, ignore_errors=True)
        self.results = fit(self.model, train, valid, seed=self.seed, **self.training, callbacks=(
            *callbacks(self.patience, self.progress), Checkpoint(folder, self.resume)))
        for row in self.results.frame.to_dict("records"):
            aucs = ", ".join(f"{k.removeprefix('valid_').replace('auc', 'AUC').replace('_', ' ')} {v:.4f}"
                             for k, v in row.items() if k.startswith("valid_auc"))
            kept = "   <- kept" if row["epoch"] == self.results.best_epoch else ""
            self.say(f"  epoch {row['epoch']}: training loss {row['train_loss']:.4f}, validation loss "
                     f"{row['valid_loss']:.4f}, {aucs}{kept}")
        if not first: return pd.DataFrame()
        self.say("Measuring on the test rows")
        self.model.to("cpu")
        self.metrics = judge(self.model, self.prep, self.parts[2], test, self.rates)
        self.weights = weight_maps(self.model, test)
        self.warned = _warnings(self.leaks, self.metrics)
        for line in self.warned: self.say(line)
        cleaning, sizes = self.data.cleaning, dict(zip(("train", "valid", "test"), map(len, self.parts)))
        self.about = dict(
            format=FORMAT, log=self.data.name, schema=asdict(schema), split=self.cut, seed=self.seed,
            model=self.name, params=self.params, training=self.training | dict(patience=self.patience),
            best_epoch=self.results.best_epoch, rates=self.rates, suspects=self.leaks,
            rows=dict(read=cleaning.rows_in, kept=cleaning.rows_out) | sizes, versions=versions())
        return self.metrics

    def prepare(self): # The three batches, and the rows they are made of
        data, say = self.data, self.say
        say(f"{in_options(data.cleaning)}\n\n{show(log_summary(data.rows, data.schema))}\n")
        parts, self.cut = _split(data, self.split, self.seed)
        scenarios, self.notes = set(parts[0][data.schema.scenario]), list(data.notes)
        for i, what in ((1, "validation"), (2, "test")):
            kept, notes = _known(parts[i], scenarios, data.schema, what)
            parts, self.notes = (*parts[:i], kept, *parts[i + 1:]), self.notes + notes
        for note in self.notes: say(note)
        self.leaks = suspects(parts[0], data)
        say("Counting histories: what each user did before each row")
        own = getattr(model_class(self.name), "parts", None)
        self.prep = Preprocessor(data.schema, own(data.schema, data.items) if own else None).fit(parts[0],
            users=data.users, items=data.items)
        whole = EventLog(data.rows, data.users, data.schema)
        self.parts, self.batches = parts, [self.prep.transform(part, log=whole) for part in parts]
        known = data.rows[data.rows[data.schema.scenario].isin(scenarios)]
        self.kept_log = EventLog(known if self.cut["by"] == "time" else pd.concat(parts[:2]), data.users,
                                 data.schema)
        rates = parts[0].groupby(data.schema.scenario)[list(data.schema.labels)].mean()
        self.rates = rates.loc[list(self.prep.scenarios_)].to_dict("list")

    # Model, preprocessor, log, then what is made for readers; run.json names the checksums of the first three
    def keep(self, folder):
        try:
            belongs = dict(model=self.model.save(folder/"model"),
                preprocess=self.prep.save(folder/"preprocess"), log=save_log(self.kept_log, folder/"log"))
            write_whole(folder/"metrics.csv", self.metrics.to_csv().encode())
            write_whole(folder/"metrics.json",
                        as_json(self.metrics.reset_index().to_dict("records")).encode())
            for name, content in pictures(self.results, self.weights).items():
                write_whole(folder/name, content)
            write_whole(folder/"model_card.md", plain_text(self.card()).encode())
            write_record(folder, "run", self.about | dict(belongs=belongs), {})
        except Exception as e:
            message = (f"{e}; the training is not lost: {self.out} is as it was before, and --resume writes "
                       "the results again")
            raise (OSError(e.errno, message) if isinstance(e, OSError) else ValueError(message)) from e

    def card(self): # Markdown
        table = self.metrics.assign(**{
            "AUC (95 %)": _spans(self.metrics, "auc"), "log loss (95 %)": _spans(self.metrics, "log_loss")})
        order = ("task", "rows", "users", "click_rate", "AUC (95 %)", "gauc", "log loss (95 %)",
                 "base_log_loss")
        table = table[[c for c in order if c in table]].rename(columns=dict(
            click_rate="click rate", gauc="GAUC", base_log_loss="log loss of the click rate"))
        settings = ", ".join(f"{k} {v}" for k, v in self.about["training"].items() if v is not None)
        files = "the losses of each epoch: curve.png"
        if self.weights: files += "; the weights that the model gives to each history: attention.png"
        epochs = len(self.results.frame)
        made = [f"trained with: {settings}; best epoch {self.results.best_epoch} of {epochs}", files]
        title = f"Interest in {some(self.model.spec.scenarios).replace(chr(39), '')}"
        return model_card(self.model, table, seed=self.seed, title=title, data=plain_text(self.data.name),
                          batch=self.batches[2][:1], rows=[*_data_lines(self), *self.warned], made=made)


def weight_maps(model, batch): # Title and map for attention.png; None where the model explains no weights
    if len(model.spec.scenarios) > 40: return None # nobody could read it
    with torch.inference_mode(): explanation = model.explain(batch[:1])
    if explanation is None or explanation.weights is None: return None
    complete = attention_map(model, batch)
    if complete.notna().all().all(): return {"weight of each history (test rows with all of them)": complete}
    return {"mean weight of each history (all test rows)": attention_map(model, batch, complete=False)}

def versions(): # What a result may depend on
    return dict(multiscene_rec=multiscene_rec.__version__, torch=torch.__version__, numpy=np.__version__,
                pandas=pd.__version__, python=platform.python_version())

def _when(seconds): # A moment in words; a number that is not a time stays a number
    if not 6e8 < seconds < 4.2e9: return f"{int(seconds):,}"
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%d %H:%M UTC")

def _data_lines(run): # Of the model card: where the rows came from and where they went
    log, cut, time, cleaning = run.data, run.cut, run.data.schema.time, run.data.cleaning
    lines = [
        f"{cleaning.rows_in:,} rows were read from {plain_text(log.name)}, {cleaning.rows_out:,} were kept."]
    lines += [f"{rows:,} rows {action} by the rule \"{rule}\" (see 03_preprocess)."
              for rule, action, rows in cleaning.counts.itertuples(index=False) if rows]
    lines += [f"The rows run from {_when(log.rows[time].min())} to {_when(log.rows[time].max())}."]
    split = (f"by time: validation from {_when(cut['valid_from'])}, test from {_when(cut['test_from'])}"
             if cut["by"] == "time"
             else f"by user, seed {cut['seed']}: no user is in two parts")
    train, valid, test = map(len, run.parts)
    return [*lines,
            f"Split {split}. {train:,} rows to learn from, {valid:,} to choose the epoch, {test:,} to test.",
            *(f"{note[0].upper()}{note[1:]}." for note in run.notes)]

def _spans(metrics, name): # Each number with its interval
    def span(value, low, high):
        if np.isnan(value): return "-"
        return f"{value:.3f}" if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
    return [span(*row) for row in metrics[[name, f"{name}_low", f"{name}_high"]].to_numpy()]

def _stopped(out, before): # The message after Ctrl-C
    if _stamp(out) not in (None, before): return f"stopped after all was done: {out} holds the whole run"
    if not _begun(out).exists():
        return f"stopped before the first epoch was complete: nothing was saved for {out}"
    return (f"stopped; the last complete epoch is kept beside {out}: the same command with --resume "
            "continues from it")

# Metrics of some rows, with several tasks one block of lines per task
def judge(model, prep, rows, batch, rates):
    code, prob, tables = batch.scenario.numpy(), predict(model, batch).numpy(), []
    names = np.array(prep.scenarios_, dtype=object)[code]
    for k, label in enumerate(prep.schema.labels):
        p = prob if prob.ndim == 1 else prob[:, k]
        table = measure(rows[label].to_numpy(), p, names, rows[prep.schema.user].to_numpy(),
                        np.asarray(rates[label])[code])
        if prob.ndim > 1: table.insert(0, "task", label)
        tables.append(table)
    return pd.concat(tables)


# Using it later

@dataclass
class Run:
    """What train_log wrote."""
    folder: Path # Its folder
    model: Recommender # In evaluation mode
    prep: Preprocessor # Fitted
    log: EventLog | None # The log of the training; None if the folder was shipped without it
    about: dict # run.json

def load_run(
    folder: str | Path, # The folder that train_log wrote
) -> Run:
    """Read a run back; its parts must be those it was written with.

    Raises: `FileNotFoundError`; `ValueError` naming the file that is damaged or of another run; `ImportError`
    for a model or a part that is not defined here.
    """
    folder = Path(folder).expanduser()
    settle(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}; name the one that train wrote")
    if not (folder/"run.json").is_file() and _begun(folder).is_file():
        raise ValueError(f"the run for {folder} was stopped: finish it with train --resume")
    about, _ = read_record(folder, "run", WRITER, FORMAT)
    with damage_named(folder/"run.json", WRITER): belongs = _well_formed(about)
    for name in ("model", "preprocess", "log"):
        path = folder/name/f"{name}.json"
        if name == "log" and not path.is_file(): continue
        try: own = json.loads(path.read_bytes().decode()).get("checksum") if path.is_file() else None
        except (ValueError, AttributeError, RecursionError): own = None # its own reader will name the damage
        if own is not None and own != belongs.get(name):
            raise ValueError(
                f"{path} does not belong to this run: another run wrote it; put the run's own file back, or "
                "train again")
    try: model, prep = Recommender.load(folder/"model"), Preprocessor.load(folder/"preprocess")
    except ImportError as e: raise ImportError(f"{e}; the command imports it with --import MODULE") from e
    if model.spec != prep.spec:
        raise ValueError(f"{folder}: model and preprocess do not belong together: train again")
    with damage_named(folder/"run.json", WRITER):
        if [len(about["rates"][name]) for name in prep.schema.labels] != [len(prep.scenarios_)]*len(
            prep.schema.labels):
            raise ValueError("its rates are not those of the scenarios")
    return Run(folder, model, prep, load_log(folder/"log") if (folder/"log"/"log.json").is_file() else None,
               about)

def _well_formed(about): # The fields of run.json that are used later; returns the checksums of the parts
    kinds = dict(belongs=dict, split=dict, rates=dict, window=(int, float), any_time=bool,
                 price=(str, type(None)), time_unit=(str, type(None)))
    for name, kind in kinds.items():
        if not isinstance(about[name], kind): raise ValueError(f"its {name} is not well formed")
    cut = about["split"]
    if cut["by"] not in ("time", "user") or cut["by"] == "time" and type(cut["test_from"]) is not int:
        raise ValueError("its split is not well formed")
    return about["belongs"]

# The log of the training and, if there is one, a newer file; and that file's clean rows
def _newer(run, path, users):
    schema, about = run.prep.schema, run.about
    if path is None and run.log is None:
        raise ValueError(
            f"{run.folder} was shipped without its log: give --log FILE with what has happened so far")
    data = None
    if path is not None:
        data = open_log(path, None if str(path) == "movielens-100k" else schema, about["price"],
                        time_unit=about["time_unit"], any_time=about["any_time"], window=about["window"])
        data.rows = _ids_as_known(run, data.rows, path)
        # scenarios are spelt as in training, not as most often in this file
        known = {str(s).casefold(): s for s in run.prep.scenarios_}
        if len(known) == len(run.prep.scenarios_):
            spelled = data.rows[schema.scenario].map(lambda s: known.get(str(s).casefold(), s))
            data.rows = data.rows.assign(**{schema.scenario: spelled})
    table = None if data is None else data.users
    if users is not None:
        ids = run.log.ids if run.log is not None else data.rows[schema.user]
        table = _side_table(users, schema.user, pd.DataFrame({schema.user: ids}), "--users")
    if data is None: return (run.log if table is None else EventLog(run.log.events, table, schema)), None
    if run.log is None: return EventLog(data.rows, table, schema), data
    return with_news(run.log, data.rows, table if users is not None else None), data

# Where training had text, 7 becomes "7"; text where training had numbers would match nothing, unnoticed
def _ids_as_known(run, rows, path):
    schema, known = run.prep.schema, {run.prep.schema.item: run.prep.items_[run.prep.schema.item]}
    if run.log is not None: known[schema.user] = pd.Series(run.log.ids)
    for c, ids in known.items():
        was, now = (pd.api.types.is_numeric_dtype(x) for x in (ids, rows[c]))
        if was and not now:
            odd = rows[c][~rows[c].map(str).str.fullmatch(r"0|-?[1-9]\d{0,17}")]
            where = f", row {odd.index[0] + 1} below the header: {odd.iloc[0]!r}" if len(odd) else ""
            raise ValueError(
                f"{path}: column {c!r}{where}: the training ids are whole numbers, such as "
                f"{ids.iloc[0]}: write them the same way")
        if now and not was: rows = rows.assign(**{c: rows[c].astype(str)})
    return rows

def _strangers(run, rows, path): # Lines on ids of which none is known: a sign of another program's log
    notes, schema = [], run.prep.schema
    known = {schema.item: (run.prep.items_[schema.item], "item")} | ({} if run.log is None
        else {schema.user: (run.log.ids, "user")})
    for c, (ids, what) in known.items():
        if not rows[c].isin(ids).any():
            notes.append(
                f"no {what} in column {c!r} of {path} is known to the model: is the id written as in the "
                f"training log ({some(ids[:2])}; here {some(rows[c].unique(), 2)})?")
    return notes

def evaluate_log(
    folder: str | Path, # The folder that train_log wrote
    log: str | Path, # A file with the columns of the training log, or movielens-100k
    used: bool = False, # Also count rows that the model has learned from
    users: str | Path | None = None, # A newer file with one row per user
    say=print, # Called with each note
) -> pd.DataFrame: # As measure returns it
    """Measure a trained model on a log.

    Raises: `ValueError`, `FileNotFoundError` for a wrong folder or log, and if no row is left.
    """
    run = load_run(folder)
    schema, cut = run.prep.schema, run.about["split"]
    whole, data = _newer(run, log, users)
    rows = data.rows
    for note in _strangers(run, rows, log): say(note)
    if not used and cut["by"] == "time": rows = rows[rows[schema.time] >= cut["test_from"]]
    elif not used:
        if run.log is None:
            raise ValueError(
                f"{run.folder} was shipped without its log, so the users that the model was trained on are "
                "not known: --used counts all rows")
        rows = rows[~rows[schema.user].isin(run.log.ids)]
    if len(rows) < len(data.rows):
        say(f"{len(data.rows) - len(rows):,} of {len(data.rows):,} rows left out: the model was trained on "
            "them (--used counts them)")
    if not len(rows):
        raise ValueError(
            f"no row of {log} is new to the model: give a newer log, or --used to score what it was trained "
            "on")
    rows, notes = _known(rows, run.prep.scenarios_, schema, "log")
    for note in notes: say(note)
    return judge(run.model, run.prep, rows, run.prep.transform(rows, log=whole), run.about["rates"])

def list_for(
    folder: str | Path, # The folder that train_log wrote
    user: str, # User id as text
    scenario: str, # Where the list will be shown
    log: str | Path | None = None, # A newer log
    users: str | Path | None = None, # A newer file with one row per user
    **options, # As for recommend: k, exclude_seen, diversity, task, context
) -> tuple[pd.DataFrame, str | None]: # The list, and a note or None
    """The list for one user. Raises: as `load_run` and `recommend` do."""
    run = load_run(folder)
    whole, data = _newer(run, log, users)
    if pd.api.types.is_numeric_dtype(whole.ids):
        try: user = int(user)
        except ValueError:
            raise ValueError(f"--user: the user ids of this model are whole numbers, got {user!r}") from None
    notes = [] if user in whole.ids else [
        f"user {user!r} is not in the log: this is a list for a newcomer, without a history"]
    if data is not None:
        new = ~data.rows[run.prep.schema.scenario].isin(run.prep.scenarios_)
        if new.any():
            notes.append(
                f"{int(new.sum()):,} of {len(new):,} rows of {log} are in scenarios that the model does not "
                "know: they count in no history")
        notes += _strangers(run, data.rows, log)
    note = "; ".join(notes) or None
    try: return recommend(run.model, run.prep, whole, user, scenario, **options), note
    except ValueError as e: raise ValueError(in_options(e)) from None
