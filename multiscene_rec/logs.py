"""Reading files: logs of one's own, the coupon survey, MovieLens. Written by hand; it teaches nothing."""
import csv
import gzip
import http.client
import importlib.util
import io
import os
import tempfile
import urllib.request
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from .core import require
from .data import Schema

__all__ = ["read_log", "load_coupons", "load_movielens_100k", "MovieLens"]


_COUPONS_URL = "https://archive.ics.uci.edu/static/public/603/in+vehicle+coupon+recommendation.zip"
_COUPON_FILE, _COUPON_ROWS = "in-vehicle-coupon-recommendation.csv", 12_684
_VISITS = ("Bar", "CoffeeHouse", "CarryAway", "RestaurantLessThan20", "Restaurant20To50")
_PROFILE = ("gender", "age", "maritalStatus", "has_children", "education", "occupation", "income", "car", *_VISITS)
_COUPON_COLUMNS = ("destination", "passanger", "weather", "temperature", "time", "coupon", "expiration", *_PROFILE,
    "toCoupon_GEQ5min", "toCoupon_GEQ15min", "toCoupon_GEQ25min", "direction_same", "direction_opp", "Y")

def _cache_dir(): # Where this user's programs keep what they can fetch again
    if os.name == "nt" and os.environ.get("LOCALAPPDATA"): base = Path(os.environ["LOCALAPPDATA"])
    else: base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home()/".cache")
    return base/"multiscene_rec"

def _find(folder, *names): # The first of these files in the folder, or None
    return next((Path(folder)/n for n in names if (Path(folder)/n).is_file()), None)

def _find_coupons(folder): # The coupon file in a folder, or in its folder in-vehicle-coupon
    names = [_COUPON_FILE, _COUPON_FILE + ".gz"]
    return _find(folder, *names, *(f"in-vehicle-coupon/{n}" for n in names))

def _read_coupons(path, rows=None): # A checked frame under one set of names
    try: frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"age": "str"}, low_memory=False)
    except (ValueError, OSError, EOFError) as e: raise ValueError(f"{path} is no coupon file: {e}") from None
    frame = frame.rename(columns={"couponType": "coupon", "cartype": "car"})
    missing = [c for c in _COUPON_COLUMNS if c not in frame]
    if missing: raise ValueError(f"{path} is no coupon file: missing column {', '.join(map(repr, missing))}")
    if rows is not None and len(frame) != rows: raise ValueError(f"{path} has {len(frame)} rows, expected {rows}: the file is not whole")
    frame = frame[list(_COUPON_COLUMNS)]
    respondent = frame.groupby(list(_PROFILE), sort=False, dropna=False).ngroup()
    return frame.assign(respondent=respondent.astype("int64"))

def _download(url, target, timeout): # Into a file object, with a progress bar on a terminal
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        total = int(answer.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc="coupons", disable=None) as bar:
            while chunk := answer.read(1 << 16):
                target.write(chunk)
                bar.update(len(chunk))

def _fetch_coupons(folder, timeout): # Fetch, check, and only then move into place: no half file is ever found there
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        archive, table = Path(temporary)/"archive.zip", Path(temporary)/_COUPON_FILE
        with open(archive, "wb") as f: _download(_COUPONS_URL, f, timeout)
        with zipfile.ZipFile(archive) as z:
            name = next((n for n in z.namelist() if n.endswith(_COUPON_FILE)), None)
            if name is None: raise ValueError(f"{_COUPONS_URL} holds no {_COUPON_FILE}")
            table.write_bytes(z.read(name))
        _read_coupons(table, _COUPON_ROWS)
        os.replace(table, folder/_COUPON_FILE)
    return folder/_COUPON_FILE

def load_coupons(
    path: str | os.PathLike | None = None, # The csv or csv.gz file, or a folder that holds it
    timeout: float = 30.0, # Seconds without an answer before a download gives up
) -> pd.DataFrame: # One row per coupon offered: 26 columns of the survey, and respondent, int64 from 0
    """The In-Vehicle Coupon survey: from `path`, else `$MULTISCENE_DATA`, else your cache, else fetched from UCI.

    Copies name two columns in two ways; here they are always `coupon` and `car`. Rows that agree in all thirteen
    profile columns share a `respondent`: split by it, never by row.

    Raises: `FileNotFoundError` that says where to get the file and where to put it; `ValueError` for another file.

    Source: Wang et al. (2017); UCI Machine Learning Repository 603, CC BY 4.0.
    """
    if path is not None:
        found = Path(path) if Path(path).is_file() else _find_coupons(path)
        if found is None: raise FileNotFoundError(f"no {_COUPON_FILE} (or .gz) at {path}; it is in {_COUPONS_URL}")
        return _read_coupons(found)
    cache = _cache_dir()/"in-vehicle-coupon"
    named = os.environ.get("MULTISCENE_DATA")
    found = (named and _find_coupons(named)) or _find_coupons(cache)
    try: return _read_coupons(found or _fetch_coupons(cache, timeout))
    except (OSError, http.client.HTTPException, zipfile.BadZipFile) as e:
        raise FileNotFoundError(f"the coupon file is not here and could not be fetched ({e}): "
            f"get {_COUPONS_URL} and put {_COUPON_FILE} from it into {cache}, or into a folder named by MULTISCENE_DATA") from e

_GENRES = ("unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir "
    "Horror Musical Mystery Romance Sci-Fi Thriller War Western").split()

@dataclass
class MovieLens:
    """MovieLens-100K as a log with its users and items."""
    events: pd.DataFrame # user_id, item_id, scenario (age band), timestamp (s), rating (1 to 5), clicked (rating of 4 or 5)
    users: pd.DataFrame # user_id, age (years), gender, occupation, age_band
    items: pd.DataFrame # item_id, title, year (missing for one film), genre (the first), genres
    schema: Schema # Names these columns

def _read_original(folder): # The files of GroupLens: u.data, u.user, u.item
    read = lambda name, sep, columns: pd.read_csv(folder/name, sep=sep, names=columns, encoding="latin-1", quoting=csv.QUOTE_NONE)
    events = read("u.data", "\t", ["user_id", "item_id", "rating", "timestamp"])
    users = read("u.user", "|", ["user_id", "age", "gender", "occupation", "zip_code"])
    items = read("u.item", "|", ["item_id", "title", "released", "video", "url", *_GENRES])
    items["year"] = pd.to_numeric(items.released.str[-4:])
    items["genres"] = [" ".join(g for g, has in zip(_GENRES, row) if has) for row in items[_GENRES].to_numpy()]
    items["title"] = items.title.str.replace(r"\s*\(\d{4}\)$", "", regex=True)
    return events, users, items

def _read_atomic(folder): # The same data as the recbole package carries it
    frames = [pd.read_csv(folder/f"ml-100k.{kind}", sep="\t", quoting=csv.QUOTE_NONE) for kind in ("inter", "user", "item")]
    events, users, items = (f.rename(columns=lambda c: c.split(":")[0]) for f in frames)
    items = items.rename(columns={"movie_title": "title", "release_year": "year", "class": "genres"})
    items["year"] = pd.to_numeric(items.year, errors="coerce")
    return events, users, items

def _movielens_folder(path): # The folder that holds the files, and which kind they are; (None, None) if there is none
    if path is None:
        package = importlib.util.find_spec("recbole") # finds it without importing it
        places = [Path(p)/"dataset_example" for p in (package.submodule_search_locations or ())] if package else []
    else: places = [Path(path).parent if Path(path).is_file() else Path(path)]
    for folder in [f for p in places for f in (p, p/"ml-100k")]:
        if all(_find(folder, n) for n in ("u.data", "u.user", "u.item")): return folder, "original"
        if all(_find(folder, f"ml-100k.{n}") for n in ("inter", "user", "item")): return folder, "atomic"
    return None, None

def load_movielens_100k(
    path: str | os.PathLike | None = None, # Folder with u.data, u.user, u.item or ml-100k.inter, .user, .item; None: an installed recbole
) -> MovieLens: # 100,000 ratings of 943 users on 1,682 films; the scenario is the age band
    """MovieLens-100K from a folder of yours or from the installed `recbole` package; its licence forbids shipping it here.

    Raises: `FileNotFoundError` that says how to get it.

    Source: Harper and Konstan (2015).
    """
    folder, kind = _movielens_folder(path)
    if folder is None:
        raise FileNotFoundError(f"no MovieLens-100K {'here' if path is None else f'at {path}'}: pip install --no-deps recbole brings "
            "a copy, or give the folder with u.data, u.user and u.item of https://grouplens.org/datasets/movielens/100k/")
    events, users, items = (_read_original if kind == "original" else _read_atomic)(folder)
    users["age_band"] = np.select([users.age < 25, users.age < 35], ["<25", "25-34"], "35+")
    items["genre"] = items.genres.str.split(" ").str[0]
    events["scenario"] = events.user_id.map(users.set_index("user_id").age_band)
    events["timestamp"] = events.timestamp.astype("int64")
    events["clicked"] = (events.rating >= 4).astype("int64")
    return MovieLens(
        events[["user_id", "item_id", "scenario", "timestamp", "rating", "clicked"]].astype({"rating": "int64"}),
        users[["user_id", "age", "gender", "occupation", "age_band"]], items[["item_id", "title", "year", "genre", "genres"]],
        Schema(categorical=("gender", "occupation", "genre"), numeric=("age",), item_columns=("genre",)))

def _fail_at(path, column, x, bad, rule): # The first bad row, as an error; the index of x says which row a value is of
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        value = None if pd.isna(x.iloc[at]) else x.iloc[[at]].tolist()[0]
        raise ValueError(f"{path}: column {column!r}, row {x.index[at] + 1} below the header: {value!r} {rule}")

def _numbers(x): # Numbers from text, true and false included; NaN where that is impossible
    if not (pd.api.types.is_object_dtype(x) or pd.api.types.is_string_dtype(x)): return pd.to_numeric(x)
    text = x.astype("object").where(x.notna(), "").astype(str).str.strip().str.lower()
    return pd.to_numeric(text.replace({"true": "1", "false": "0"}), errors="coerce")

def _whole(x): # Whole numbers; the type that has a place for "missing" only where it is needed
    return x.astype("Int64") if x.isna().any() else x.astype("int64")

def _ids(x): # Whole numbers where writing them back gives the same text ("007" stays text)
    if pd.api.types.is_integer_dtype(x): return x
    known = x.dropna()
    if pd.api.types.is_float_dtype(x): return _whole(x) if (known % 1 == 0).all() else x
    text = known.astype(str).str.strip()
    text = text[text != ""]
    if len(text) and text.str.fullmatch(r"(0|-?[1-9]\d{0,17})(\.0)?").all():
        return _whole(text.str.removesuffix(".0").astype("int64").astype("Int64").reindex(x.index))
    return text.reindex(x.index)

def _one_clock(path, column, x): # Either every ISO time names its zone or none does: else some would be hours off, unseen
    text = x.dropna().astype(str).str.strip()
    zoned = text.str.contains(r"\d[T ].*(?:Z|[+-]\d\d(?::?\d\d)?)$").to_numpy(dtype=bool)
    if zoned.all() or not zoned.any(): return
    without, named = (int(text.index[flags.argmax()]) for flags in (~zoned, zoned))
    raise ValueError(f"{path}: column {column!r}, row {without + 1} below the header: {text[without]!r} names no time zone, but row {named + 1} does "
        f"({text[named]!r}); write the zone in every row, such as 2026-01-31T12:00:00Z")

def _seconds(path, column, x): # Whole seconds since 1970 UTC, from whole numbers or ISO times
    number = _numbers(x) if not pd.api.types.is_datetime64_any_dtype(x) else pd.Series(np.nan, x.index)
    if (number.notna() == x.notna()).all():
        rule = "is not a time: whole seconds since 1970, or an ISO time such as 2026-01-31T12:00:00Z"
        _fail_at(path, column, x, x.notna() & ~(number.abs() < 2**62), rule)
        return _whole(np.floor(number))
    stamp = pd.to_datetime(x, utc=True, errors="coerce", **({} if x.dtype.kind == "M" else {"format": "ISO8601"}))
    rule = "is not an ISO time such as 2026-01-31T12:00:00Z (the column is not all whole seconds)"
    bad, neither = stamp.isna() & x.notna(), stamp.isna() & x.notna() & number.isna() # a word among seconds is worse than seconds among ISO times
    _fail_at(path, column, x, neither if neither.any() else bad, rule)
    if x.dtype.kind != "M": _one_clock(path, column, x)
    return _whole(((stamp - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1)))

def _labels(path, column, x): # 0 to 1
    y = _numbers(x).astype("float64")
    _fail_at(path, column, x, ~((y >= 0) & (y <= 1)), "is not a label from 0 to 1 (1 = clicked, 0 = shown and not clicked)")
    return y.astype("int64") if y.isin((0, 1)).all() else y

def _quantities(path, column, x): # Finite numbers; missing ones may be missing
    number = _numbers(x)
    _fail_at(path, column, x, number.isna() & x.notna(), "is not a number; leave the cell empty where the value is not known")
    infinite = np.isinf(number.to_numpy(dtype="float64", na_value=np.nan))
    _fail_at(path, column, x, infinite, "is not a finite number; leave the cell empty where the value is not known")
    return number

def _typed(path, column, x, schema): # A named column in its own type; others as they are
    if column == schema.time: return _seconds(path, column, x)
    if column == schema.label: return _labels(path, column, x)
    if column == schema.scenario: return x.dropna().astype(str).reindex(x.index)
    if column in schema.numeric: return _quantities(path, column, x)
    return _ids(x) if column in (schema.user, schema.item, *schema.categorical) else x

_CHUNK = 500_000 # Rows of a csv read at a time

def _different(code, words): # Values in order of first appearance, indexed by the row of that; and which one stands in each row
    code, seen = pd.factorize(code)
    first = np.flatnonzero(np.diff(np.maximum.accumulate(code), prepend=-1))
    return code, pd.Series(np.append(words, np.nan)[seen], index=first, dtype=object) # a code of -1 is "missing"

def _pooled(parts): # (codes, words) of each block of rows -> codes of all rows, words of all blocks, each once
    to, words = pd.factorize(np.concatenate([words for _, words in parts]))
    start = np.cumsum([0, *(len(words) for _, words in parts)])
    code = [np.append(to[a:b], -1)[code] for a, b, (code, _) in zip(start, start[1:], parts)]
    return np.concatenate(code), words

def _as_pandas_finds(x, decimal): # Text in the type that read_csv would give a column that holds it
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([v] for v in ["x", *x.where(x.notna(), "")])
    text.seek(0)
    out = pd.read_csv(text, decimal=decimal, keep_default_na=False, na_values=[""], skip_blank_lines=False, low_memory=False).iloc[:, 0]
    return out.set_axis(x.index)

def _check_columns(path, columns, schema): # Each once, and all that a log needs
    columns = list(columns)
    twice = [c for c in columns if c != "" and columns.count(c) > 1]
    if twice: raise ValueError(f"{path}: column {twice[0]!r} stands twice in the header; rename one of the two, or take it out")
    missing = [c for c in schema.required if c not in columns]
    if missing:
        there = ", ".join(map(str, columns))
        raise ValueError(f"{path}: missing column {', '.join(map(repr, missing))}; there are: {there}. Rename it, or name yours in the Schema")

def _header(path, schema): # The separator and the names in the first line
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as f:
        header = f.readline().rstrip("\r\n")
    if not header: raise ValueError(f"{path} is empty: expected a header line with {', '.join(schema.required)}")
    if "\0" in header: raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8")
    names = {sep: [n.strip() for n in next(csv.reader([header], delimiter=sep))] for sep in ",;\t|"}
    sep = max(names, key=lambda s: (len(set(names[s]) & set(schema.required)), len(names[s])))
    return sep, names[sep]

def _in_blocks(path, sep): # Every column of a csv as text: name -> codes of all rows and words
    blocks, columns = {}, {}
    for block in pd.read_csv(path, sep=sep, encoding="utf-8-sig", index_col=False, skipinitialspace=True, keep_default_na=False, na_values=[""],
            dtype="object", chunksize=_CHUNK):
        for c in block:
            code, words = pd.factorize(block[c])
            blocks.setdefault(str(c).strip(), []).append((code.astype(np.int32), np.asarray(words, dtype=object)))
    for c in list(blocks): columns[c] = _pooled(blocks.pop(c))
    return columns

def _csv_frame(path, schema): # Read as text, then each different text of a column once in its own type
    sep, names = _header(path, schema)
    _check_columns(path, names, schema)
    decimal, columns, log = "," if sep == ";" else ".", _in_blocks(path, sep), {}
    named = (*schema.required, *schema.categorical)
    for c in list(columns):
        code, x = _different(*columns.pop(c))
        if sep == ";" and c in (schema.time, schema.label): x = x.str.replace(",", ".", regex=False) # a comma may stand for the decimal point
        if len(x): log[c] = _typed(path, c, x if c in named else _as_pandas_finds(x, decimal), schema).array.take(code)
    return pd.DataFrame(log, copy=False)

def _read_csv(path, schema): # What can be wrong with the file, each in words of its own
    try: return _csv_frame(path, schema)
    except UnicodeDecodeError: raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except EOFError: raise ValueError(f"{path} is cut off: fetch or write it again") from None
    except (gzip.BadGzipFile, zlib.error) as e:
        if "Not a gzipped file" in str(e): raise ValueError(f"{path} ends in .gz but is not a gzip file; take .gz off its name") from None
        raise ValueError(f"{path} is damaged ({e}): fetch or write it again") from None
    except (pd.errors.ParserError, csv.Error) as e: raise ValueError(f"{path} is not a table: {str(e).strip()}") from None

def _read_parquet(path, schema): # The same columns with the types that they have there
    parquet = require("pyarrow.parquet", "data")
    try: log = parquet.read_table(path).to_pandas().reset_index(drop=True)
    except (ValueError, OSError) as e: raise ValueError(f"{path} is no parquet file, or a damaged one ({str(e).strip()}): write it again") from None
    _check_columns(path, log.columns, schema)
    for c in [c for c in log if c in (*schema.required, *schema.categorical, *schema.numeric)]:
        listed = np.array([isinstance(v, (list, dict, np.ndarray)) for v in log[c]] if log[c].dtype == object else [])
        if listed.any(): _fail_at(path, c, log[c].astype(str), listed, "is not one value; split lists into rows or columns of their own")
        log[c] = _typed(path, c, log[c], schema)
    return log

def read_log(
    path: str | os.PathLike, # A file ending in .csv, .csv.gz or .parquet
    schema: Schema = Schema(), # Which column means what
) -> pd.DataFrame: # Every column of the file; times in whole seconds, labels from 0 to 1
    """Read a log of your own; commas, semicolons, tabs, a byte-order mark and Windows line ends are all fine.

    Ids that are whole numbers become integers. Times may be whole seconds or ISO text (UTC where no row names a zone).

    Raises: `FileNotFoundError`; `ValueError` for an unknown ending, a file that is empty, cut off, damaged or not UTF-8,
    a column that is missing (naming it and what is there) or stands twice, a time that is none, a zone in some rows only,
    an infinite number, a label outside 0 to 1; `ImportError` for parquet without the `data` extra.
    """
    path = Path(path)
    if not path.is_file(): raise FileNotFoundError(f"no such file: {path}")
    if path.name.endswith((".csv", ".csv.gz")): log = _read_csv(path, schema)
    elif path.suffix == ".parquet": log = _read_parquet(path, schema)
    else: raise ValueError(f"{path}: unknown ending; read_log reads .csv, .csv.gz and .parquet")
    if log.empty: raise ValueError(f"{path} has a header and no rows: was the log written in full?")
    return log
