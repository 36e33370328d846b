"""Reading files: your own logs, the coupon survey, MovieLens. Hand-written; not part of a lesson."""
import csv
import gzip
import hashlib
import http.client
import importlib.util
import io
import os
import queue
import re
import threading
import urllib.request
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from .core import require
from .schema import Schema
from .storage import write_whole

__all__ = ["read_log", "load_coupons", "load_movielens_100k", "MovieLens"]


# The coupon survey

_COUPONS_URL = "https://archive.ics.uci.edu/static/public/603/in+vehicle+coupon+recommendation.zip"
_COUPON_FILE, _COUPON_ROWS = "in-vehicle-coupon-recommendation.csv", 12_684
_COUPON_SHA256 = "87e841f5d41cdaf31a09d0a0770187b2fc9cabe4171c30bf7ea2182dd074abaa" # of _content
_MOST_PACKED, _MOST_UNPACKED = 10_000_000, 50_000_000 # bytes; the survey has .2 and 2.2 million
_VISITS = ("Bar", "CoffeeHouse", "CarryAway", "RestaurantLessThan20", "Restaurant20To50")
_PROFILE = (
    "gender", "age", "maritalStatus", "has_children", "education", "occupation", "income", "car", *_VISITS)
_COUPON_COLUMNS = (
    "destination", "passanger", "weather", "temperature", "time", "coupon", "expiration", *_PROFILE,
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


def _read_coupons(source, path): # The survey under one set of column names, from a file or from bytes
    kinds = dict(keep_default_na=False, na_values=[""], dtype={"age": "str"}, low_memory=False)
    try: frame = pd.read_csv(source, **kinds)
    except (ValueError, OSError, EOFError, zlib.error) as e:
        raise ValueError(f"{path} is not a coupon file: {e}") from None
    frame = frame.rename(columns={"couponType": "coupon", "cartype": "car"})
    missing = [c for c in _COUPON_COLUMNS if c not in frame]
    if missing:
        raise ValueError(f"{path} is not a coupon file: missing column {', '.join(map(repr, missing))}")
    return frame[list(_COUPON_COLUMNS)]


def _content(frame): # SHA-256 of the survey, whatever a copy calls its columns or how it is compressed
    return hashlib.sha256(frame.to_csv(index=False, lineterminator="\n").encode()).hexdigest()


def _check_coupons(frame, path, remedy): # The survey that the course speaks of, and no other
    if len(frame) != _COUPON_ROWS:
        raise ValueError(f"{path} has {len(frame)} rows, but the survey has {_COUPON_ROWS}; {remedy}")
    content = _content(frame)
    if content != _COUPON_SHA256:
        raise ValueError(
            f"{path} is not the survey: the SHA-256 of its content is {content}, "
            f"expected {_COUPON_SHA256}; {remedy}")


def _with_respondents(frame): # Rows with the same profile belong to one person
    respondent = frame.groupby(list(_PROFILE), sort=False, dropna=False).ngroup()
    return frame.assign(respondent=respondent.astype("int64"))


def _receive(url, timeout, stop, done): # In a thread of its own; puts the bytes, or the error, into the queue
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            length, content = answer.headers.get("Content-Length") or "", bytearray()
            total = int(length) if length.isascii() and length.isdecimal() else None
            with tqdm(total=total, unit="B", unit_scale=True, desc="coupons", disable=None) as bar:
                # read1 returns what has arrived; read would wait for a whole block, however slowly it comes
                while not stop.is_set() and (chunk := answer.read1(1 << 16)):
                    content += chunk
                    bar.update(len(chunk))
                    if len(content) > _MOST_PACKED:
                        raise OSError(
                            f"received more than {_MOST_PACKED:,} bytes, far more than the survey has")
        if total is not None and len(content) < total:
            raise http.client.IncompleteRead(bytes(content), total - len(content))
        done.put(bytes(content))
    except BaseException as e: done.put(e)


def _download(url, timeout, limit): # All bytes, within limit seconds
    stop, done = threading.Event(), queue.SimpleQueue()
    # A server can delay even the headers, byte by byte, so the time limit is kept from outside the thread
    threading.Thread(target=_receive, args=(url, timeout, stop, done), daemon=True).start()
    try: result = done.get(timeout=limit)
    except queue.Empty:
        raise TimeoutError(f"timed out: the download took longer than {limit:g} seconds") from None
    finally: stop.set()
    if isinstance(result, BaseException): raise result
    return result


def _unpacked(archive): # The table in a zip file; reading stops where it is too long to be the survey
    with zipfile.ZipFile(io.BytesIO(archive)) as z:
        table = next((i for i in z.infolist() if i.filename.endswith(_COUPON_FILE)), None)
        if table is None: raise ValueError(f"{_COUPONS_URL} does not hold {_COUPON_FILE}")
        if table.file_size <= _MOST_UNPACKED: # what the archive claims; it may be wrong
            content = bytearray()
            with z.open(table) as f:
                while len(content) <= _MOST_UNPACKED and (block := f.read(1 << 20)): content += block
            if len(content) <= _MOST_UNPACKED: return bytes(content)
    raise ValueError(
        f"{_COUPONS_URL} unpacks to more than {_MOST_UNPACKED:,} bytes, far more than the survey has")


def _fetch_coupons(folder, timeout, limit): # Checked before it is put into the cache
    folder.mkdir(parents=True, exist_ok=True)
    content = _unpacked(_download(_COUPONS_URL, timeout, limit))
    frame = _read_coupons(io.BytesIO(content), _COUPONS_URL)
    _check_coupons(frame, _COUPONS_URL, "try again later, or give the path of a copy that you trust")
    write_whole(folder/_COUPON_FILE, content)
    return frame


def load_coupons(
    path: str | os.PathLike | None = None, # The csv or csv.gz file, or a folder that holds it
    timeout: float = 30.0, # Seconds without an answer before a download gives up
    limit: float = 300.0, # Seconds that a download may take in all
) -> pd.DataFrame: # One row per coupon offered: the survey's 26 columns, and respondent, int64 from 0
    """The In-Vehicle Coupon survey: from `path`, `$MULTISCENE_DATA`, your cache, or else fetched from UCI.

    Copies differ in the names of two columns; here they are always `coupon` and `car`. Rows with the same
    thirteen profile columns share a `respondent`: split by it, never by row. A file that was fetched or
    cached must be the survey to the last cell; for one that you name yourself, a difference only warns.

    Raises: `FileNotFoundError` that says where to get the file and where to put it; `ValueError` for a file
    that is not the survey.

    Source: Wang et al. (2017); UCI Machine Learning Repository 603, CC BY 4.0.
    """
    cache, named = _cache_dir()/"in-vehicle-coupon", os.environ.get("MULTISCENE_DATA")
    if path is not None:
        path = os.path.expanduser(path)
        own = Path(path) if Path(path).is_file() else _find_coupons(path)
        if own is None:
            raise FileNotFoundError(f"no {_COUPON_FILE} (or .gz) at {path}; it is in {_COUPONS_URL}")
    else: own = named and _find_coupons(os.path.expanduser(named))
    if own:
        frame = _read_coupons(own, own)
        try: _check_coupons(frame, own, "it is read as it is")
        except ValueError as e: warnings.warn(str(e), stacklevel=2)
        return _with_respondents(frame)
    kept = _find_coupons(cache)
    if kept:
        frame = _read_coupons(kept, kept)
        _check_coupons(frame, kept, "delete the file, and it is fetched again")
        return _with_respondents(frame)
    try: return _with_respondents(_fetch_coupons(cache, timeout, limit))
    # A damaged zip file can raise more than BadZipFile: another method, a password, a stream cut short
    except (OSError, http.client.HTTPException, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as e:
        raise FileNotFoundError(
            f"the coupon file is missing and could not be fetched ({e}): get {_COUPONS_URL} and put "
            f"{_COUPON_FILE} from it into {cache}, or into a folder named by MULTISCENE_DATA") from e


# MovieLens

_GENRES = ("unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir "
    "Horror Musical Mystery Romance Sci-Fi Thriller War Western").split()


@dataclass
class MovieLens:
    """MovieLens-100K as a log with its users and items."""
    events: pd.DataFrame # user_id, item_id, scenario (age band), timestamp (s), rating (1 to 5), clicked
    users: pd.DataFrame # user_id, age (years), gender, occupation, age_band
    items: pd.DataFrame # item_id, title, year (missing for one film), genre (the first), genres
    schema: Schema # Names these columns


def _read_original(folder): # The files of GroupLens: u.data, u.user, u.item
    def read(name, sep, columns):
        return pd.read_csv(folder/name, sep=sep, names=columns, encoding="latin-1", quoting=csv.QUOTE_NONE)

    events = read("u.data", "\t", ["user_id", "item_id", "rating", "timestamp"])
    users = read("u.user", "|", ["user_id", "age", "gender", "occupation", "zip_code"])
    items = read("u.item", "|", ["item_id", "title", "released", "video", "url", *_GENRES])
    items["year"] = pd.to_numeric(items.released.str[-4:])
    of_genre = items[_GENRES].to_numpy(dtype=bool)
    items["genres"] = [" ".join(g for g, has in zip(_GENRES, row) if has) for row in of_genre]
    items["title"] = items.title.str.replace(r"\s*\(\d{4}\)$", "", regex=True)
    return events, users, items


def _read_atomic(folder): # The same data as the recbole package carries it
    kinds = ("inter", "user", "item")
    frames = [pd.read_csv(folder/f"ml-100k.{kind}", sep="\t", quoting=csv.QUOTE_NONE) for kind in kinds]
    events, users, items = (f.rename(columns=lambda c: c.split(":")[0]) for f in frames)
    items = items.rename(columns={"movie_title": "title", "release_year": "year", "class": "genres"})
    items["year"] = pd.to_numeric(items.year, errors="coerce")
    return events, users, items


def _movielens_folder(path): # The folder of the files and their kind, or (None, None)
    if path is None:
        package = importlib.util.find_spec("recbole") # finds it without importing it
        locations = package.submodule_search_locations if package else None
        folders = [Path(p)/"dataset_example" for p in locations or ()]
    else:
        path = Path(os.path.expanduser(path))
        folders = [path.parent if path.is_file() else path]
    for folder in [f for p in folders for f in (p, p/"ml-100k")]:
        if all(_find(folder, n) for n in ("u.data", "u.user", "u.item")): return folder, "original"
        if all(_find(folder, f"ml-100k.{n}") for n in ("inter", "user", "item")): return folder, "atomic"
    return None, None


def load_movielens_100k(
    path: str | os.PathLike | None = None, # Folder with u.data or ml-100k.inter and so on; None: recbole's
) -> MovieLens: # 100,000 ratings of 943 users on 1,682 films; the scenario is the age band
    """MovieLens-100K from your own folder or an installed `recbole`; its licence forbids including it here.

    Raises: `FileNotFoundError` that says how to get it.

    Source: Harper and Konstan (2015).
    """
    folder, kind = _movielens_folder(path)
    if folder is None:
        where = "on this machine" if path is None else f"at {path}"
        raise FileNotFoundError(
            f"there is no MovieLens-100K {where}: pip install --no-deps recbole brings a copy, or give the "
            "folder with u.data, u.user and u.item of https://grouplens.org/datasets/movielens/100k/")
    events, users, items = (_read_original if kind == "original" else _read_atomic)(folder)
    users["age_band"] = np.select([users.age < 25, users.age < 35], ["<25", "25-34"], "35+")
    items["genre"] = items.genres.str.split(" ").str[0]
    events["scenario"] = events.user_id.map(users.set_index("user_id").age_band)
    events["timestamp"] = events.timestamp.astype("int64")
    events["clicked"] = (events.rating >= 4).astype("int64")
    schema = Schema(categorical=("gender", "occupation", "genre"), numeric=("age",), item_columns=("genre",))
    return MovieLens(
        events[[*schema.required[:4], "rating", "clicked"]].astype({"rating": "int64"}),
        users[["user_id", "age", "gender", "occupation", "age_band"]],
        items[["item_id", "title", "year", "genre", "genres"]], schema)


# Your own log

_CHUNK = 500_000 # rows of a csv read at a time
_UNITS = dict(s="seconds", ms="milliseconds", us="microseconds", ns="nanoseconds", days="days", none="")
_PER_SECOND = dict(s=1, ms=10**3, us=10**6, ns=10**9)
_FIRST, _LAST = 631_152_000, 4_102_444_800 # 1990 and 2100: the times of a log lie between them


def _fail_at(path, column, x, bad, rule): # The first bad row; the index of x is the row of each value
    if bad.any():
        at = int(np.flatnonzero(bad)[0])
        value = None if pd.isna(x.iloc[at]) else x.iloc[[at]].tolist()[0]
        where = f"{path}: column {column!r}, row {x.index[at] + 1} below the header"
        raise ValueError(f"{where}: {value!r} {rule}")


def _numbers(x): # Numbers from text, true and false included; NaN where that is impossible
    if not (pd.api.types.is_object_dtype(x) or pd.api.types.is_string_dtype(x)): return pd.to_numeric(x)
    text = x.astype("object").where(x.notna(), "").astype(str).str.strip().str.lower()
    return pd.to_numeric(text.replace({"true": "1", "false": "0"}), errors="coerce")


def _whole(x): # Whole numbers; the nullable type only where a value is missing
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


def _one_clock(path, column, x): # All ISO times name a zone, or none does: otherwise some are hours off
    text = x.dropna().astype(str).str.strip()
    zoned = text.str.contains(r"\d[T ].*(?:Z|[+-]\d\d(?::?\d\d)?)$").to_numpy(dtype=bool)
    if zoned.all() or not zoned.any(): return
    without, named = (int(text.index[flags.argmax()]) for flags in (~zoned, zoned))
    raise ValueError(
        f"{path}: column {column!r}, row {without + 1} below the header: {text[without]!r} has no time "
        f"zone, but row {named + 1} has one ({text[named]!r}); write the zone in every row, such as "
        "2026-01-31T12:00:00Z")


def _check_unit(path, column, x, number): # Read as seconds, times in a smaller unit lie centuries ahead
    known = number.dropna()
    for unit in ("ms", "us", "ns"):
        fits = known.between(_FIRST*_PER_SECOND[unit], _LAST*_PER_SECOND[unit], inclusive="left")
        if fits.mean() > .5:
            remedy = f"pass time_unit={unit!r}, or --time-unit {unit} to the command"
            _fail_at(path, column, x[known.index], fits, f"looks like {_UNITS[unit]} since 1970; {remedy}")


def _in_unit(path, column, x, unit): # Whole seconds from numbers of a named unit, or the numbers themselves
    number = _numbers(x[x.notna()]) # without missing values, so that whole numbers keep all digits
    wanted = f" of {_UNITS[unit]}" if _UNITS[unit] else ", which time_unit='none' needs"
    _fail_at(path, column, x[x.notna()], ~(number.abs() < 2**62), f"is not a number{wanted}")
    whole = pd.api.types.is_integer_dtype(number)
    if unit == "days": number = number*86_400 if whole else np.floor((number*86_400).round(3))
    elif unit != "none": number = number//_PER_SECOND[unit] if whole else np.floor(number/_PER_SECOND[unit])
    if not (number % 1 == 0).all(): return number.reindex(x.index)
    return _whole(number.astype("int64").astype("Int64").reindex(x.index))


def _seconds(path, column, x, unit): # Whole seconds since 1970 UTC, from numbers or ISO times
    dates = pd.api.types.is_datetime64_any_dtype(x)
    if unit is not None:
        if dates: raise ValueError(f"{path}: column {column!r} holds dates; leave out time_unit")
        return _in_unit(path, column, x, unit)
    number = pd.Series(np.nan, x.index) if dates else _numbers(x)
    if (number.notna() == x.notna()).all():
        rule = "is not a time: whole seconds since 1970, or an ISO time such as 2026-01-31T12:00:00Z"
        _fail_at(path, column, x, x.notna() & ~(number.abs() < 2**62), rule)
        _check_unit(path, column, x, number)
        return _whole(np.floor(number))
    form = {} if x.dtype.kind == "M" else {"format": "ISO8601"}
    stamp = pd.to_datetime(x, utc=True, errors="coerce", **form)
    rule = "is not an ISO time such as 2026-01-31T12:00:00Z (the column is not all whole seconds)"
    bad = stamp.isna() & x.notna()
    neither = bad & number.isna() # what is neither seconds nor ISO time is reported first
    _fail_at(path, column, x, neither if neither.any() else bad, rule)
    if x.dtype.kind != "M": _one_clock(path, column, x)
    return _whole((stamp - pd.Timestamp(0, tz="UTC")) // pd.Timedelta(seconds=1))


def _labels(path, column, x): # 0 to 1
    y = _numbers(x).astype("float64")
    rule = "is not a label from 0 to 1 (1 = clicked, 0 = shown and not clicked)"
    _fail_at(path, column, x, ~((y >= 0) & (y <= 1)), rule)
    return y.astype("int64") if y.isin((0, 1)).all() else y


def _quantities(path, column, x): # Finite numbers; missing values are allowed
    number, remedy = _numbers(x), "leave the cell empty where the value is not known"
    _fail_at(path, column, x, number.isna() & x.notna(), f"is not a number; {remedy}")
    infinite = np.isinf(number.to_numpy(dtype="float64", na_value=np.nan))
    _fail_at(path, column, x, infinite, f"is not a finite number; {remedy}")
    return number


def _typed(path, column, x, schema, unit): # A named column in its own type; others as they are
    if column == schema.time: return _seconds(path, column, x, unit)
    if column in schema.labels: return _labels(path, column, x)
    if column == schema.scenario: return x.dropna().astype(str).reindex(x.index)
    if column in schema.numeric: return _quantities(path, column, x)
    return _ids(x) if column in (schema.user, schema.item, *schema.categorical) else x


def _check_unique(path, columns): # Two columns of one name are ambiguous
    repeated = [c for c in columns if c != "" and columns.count(c) > 1]
    if repeated:
        raise ValueError(
            f"{path}: column {repeated[0]!r} appears twice in the header; rename one of the two or remove it")


def _check_columns(path, columns, schema): # Each once, and all that a log needs
    columns = list(columns)
    _check_unique(path, columns)
    missing = [c for c in schema.required if c not in columns]
    if missing:
        lacking, present = ", ".join(map(repr, missing)), ", ".join(map(str, columns))
        remedy = "Rename yours, or name it in the Schema"
        raise ValueError(f"{path}: missing column {lacking}; the columns are {present}. {remedy}")


# A csv: a log of ten million rows has ten million times, but far fewer different users, items and words.
# So it is read half a million rows at a time; each different text of a column is kept once, in order of
# first appearance, with one small number per row. Only the different texts are then turned into ids, times
# and numbers. The type of a column is decided when all its texts are known, not block by block.

def _different(code, words): # The code of each row; the values, indexed by the row where each first appears
    code, seen = pd.factorize(code)
    first = np.flatnonzero(np.diff(np.maximum.accumulate(code), prepend=-1))
    words = np.append(words, np.nan) # a code of -1 is "missing"
    return code, pd.Series(words[seen], index=first, dtype=object)


def _pooled(parts): # (codes, words) of each block -> codes of all rows, each word once
    new_code, words = pd.factorize(np.concatenate([words for _, words in parts]))
    start = np.cumsum([0, *(len(words) for _, words in parts)])
    code = [np.append(new_code[a:b], -1)[code] for a, b, (code, _) in zip(start, start[1:], parts)]
    return np.concatenate(code), words


def _as_pandas_reads(x, decimal): # Text in the type that read_csv would give the column
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([v] for v in ["x", *x.where(x.notna(), "")])
    text.seek(0)
    kinds = dict(keep_default_na=False, na_values=[""], skip_blank_lines=False, low_memory=False)
    column = pd.read_csv(text, decimal=decimal, **kinds).iloc[:, 0]
    return column.set_axis(x.index)


def _header(path, schema): # The separator and the names in the first line
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as f:
        header = f.readline().rstrip("\r\n")
    if not header:
        raise ValueError(f"{path} is empty: expected a header line with {', '.join(schema.required)}")
    if "\0" in header: raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8")
    names = {sep: [n.strip() for n in next(csv.reader([header], delimiter=sep))] for sep in ",;\t|"}
    sep = max(names, key=lambda s: (len(set(names[s]) & set(schema.required)), len(names[s])))
    return sep, names[sep]


def _in_blocks(path, sep): # Each column of a csv as text: name -> (codes of all rows, words)
    blocks, columns = {}, {}
    as_text = dict(
        keep_default_na=False, na_values=[""], dtype="object", skipinitialspace=True, index_col=False)
    for block in pd.read_csv(path, sep=sep, encoding="utf-8-sig", chunksize=_CHUNK, **as_text):
        for c in block:
            code, words = pd.factorize(block[c])
            part = code.astype(np.int32), np.asarray(words, dtype=object)
            blocks.setdefault(str(c).strip(), []).append(part)
    for c in list(blocks): columns[c] = _pooled(blocks.pop(c))
    return columns


def _signs(x): # Which texts are numbers with a comma, numbers with a point, and numbers at all
    text = x.astype(object).where(x.notna(), "").astype(str).str.strip()
    number = text.str.fullmatch(r"[+-]?[\d.,]*\d[\d.,]*(?:[eE][+-]?\d+)?")
    comma, point = (number & text.str.contains(sign, regex=False) for sign in ",.")
    return comma, point, number, text


def _check_points(path, column, x, commas): # Among decimal commas 2.781 may mean two thousand and more
    comma, point, number, text = _signs(x)
    thousands = text.str.fullmatch(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+") # 5.5 and 0.125 are clear
    unclear = point.any() and thousands[point].all() and (commas or not point[number].all())
    rule = ("has a point, which may be a decimal point or a thousands separator, since semicolons go with "
            "decimal commas; write the column with one decimal sign and no thousands separator")
    if comma.any() or unclear: _fail_at(path, column, x, point, rule)


def _with_points(path, columns, schema): # In a file with semicolons the decimal sign may be a comma
    named = [c for c in (schema.time, *schema.labels, *schema.numeric) if c in columns]
    values = {c: _different(*columns[c])[1] for c in named}
    commas = any(_signs(x)[0].any() for x in values.values())
    for c, x in values.items(): _check_points(path, c, x, commas)
    for c in named:
        code, words = columns[c]
        columns[c] = code, np.array([w.replace(",", ".") for w in words], dtype=object)


def _csv_frame(path, schema, unit): # Read as text; then each different text of a column is converted once
    sep, names = _header(path, schema)
    _check_columns(path, names, schema)
    columns, log = _in_blocks(path, sep), {}
    if sep == ";": _with_points(path, columns, schema)
    named = (*schema.required, *schema.categorical)
    for c in list(columns):
        code, x = _different(*columns.pop(c))
        if c not in named: x = _as_pandas_reads(x, "," if sep == ";" and c not in schema.numeric else ".")
        if len(x): log[c] = _typed(path, c, x, schema, unit).array.take(code)
    return pd.DataFrame(log, copy=False)


def _check_first_bytes(path): # Files of another kind under the name of a csv
    with open(path, "rb") as f: head = f.read(4)
    kinds = {
        b"PAR1": ("a parquet file", "name it .parquet"), b"\x1f\x8b": ("a gzip file", "name it .csv.gz"),
        b"PK\x03\x04": ("a zip file or a spreadsheet", "save it as csv")}
    for first, (kind, remedy) in kinds.items():
        if head.startswith(first) and not (path.suffix == ".gz" and kind == "a gzip file"):
            raise ValueError(f"{path} is {kind} by its first bytes, not a csv: {remedy}")
    return head


def _read_csv(path, schema, unit): # Each kind of damage has its own message
    head = _check_first_bytes(path)
    try: return _csv_frame(path, schema, unit)
    except UnicodeDecodeError: raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    except EOFError: raise ValueError(f"{path} is cut off: fetch or write it again") from None
    except (gzip.BadGzipFile, zlib.error) as e:
        why = str(e)
        if "Not a gzipped file" in why:
            if head[:2] != b"\x1f\x8b":
                remedy = "remove .gz from its name"
                raise ValueError(f"{path} ends in .gz but is not a gzip file; {remedy}") from None
            why = "other bytes follow the compressed ones"
        raise ValueError(f"{path} is damaged ({why}): fetch or write it again") from None
    except (pd.errors.ParserError, csv.Error) as e:
        raise ValueError(f"{path} is not a table: {str(e).strip()}") from None


# Parquet: the same columns, with the types they already have

def _parquet_frame(path, schema):
    arrow, parquet = require("pyarrow", "data"), require("pyarrow.parquet", "data")
    damaged = "{} is not a parquet file, or is damaged ({}): write it again"
    try: file = parquet.ParquetFile(path)
    except (ValueError, OSError) as e: raise ValueError(damaged.format(path, str(e).strip())) from None
    with file:
        _check_unique(path, file.schema_arrow.names)
        named = (*schema.required, *schema.categorical, *schema.numeric)
        for field in file.schema_arrow:
            if field.name in named and arrow.types.is_nested(field.type):
                raise ValueError(f"{path}: column {field.name!r} holds {field.type}, not one value per "
                                 "row; split it into separate rows or columns")
        try: return file.read().to_pandas().reset_index(drop=True)
        except arrow.ArrowNotImplementedError as e:
            why = f"holds a type that cannot be read ({str(e).strip()})"
            raise ValueError(f"{path} {why}; leave out that column") from None
        except (ValueError, OSError) as e: raise ValueError(damaged.format(path, str(e).strip())) from None


def _read_parquet(path, schema, unit):
    log = _parquet_frame(path, schema)
    _check_columns(path, log.columns, schema)
    for c in [c for c in log if c in (*schema.required, *schema.categorical, *schema.numeric)]:
        log[c] = _typed(path, c, log[c], schema, unit)
    return log


def _log_path(path): # The file that a user means
    text = os.fspath(path)
    kinds = "read_log reads a file ending in .csv, .csv.gz or .parquet"
    if text == "-": raise ValueError(f"'-' is not a file: {kinds}, not standard input")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError(f"{text} is a URL: {kinds}; download it first")
    file = Path(os.path.expanduser(text))
    if not file.is_file(): raise FileNotFoundError(f"no such file: {file}")
    return file


def read_log(
    path: str | os.PathLike, # A file ending in .csv, .csv.gz or .parquet; ~ is your home
    schema: Schema = Schema(), # Which column means what
    time_unit: str | None = None, # s, ms, us, ns, days since 1970; none: any numbers; None: seconds, ISO text
) -> pd.DataFrame: # Every column of the file; times in whole seconds, labels from 0 to 1
    """Read a log of your own; commas, semicolons, tabs, a byte-order mark and Windows line ends are all fine.

    Ids that are whole numbers become integers. Times may be whole seconds or ISO text (UTC where no row
    names a zone). Numbers in a `time_unit` become whole seconds; with the unit `none` they stay as they are,
    such as 0, 1, 2.

    Raises: `FileNotFoundError`; `ValueError` for an unknown ending or unit; a file that is empty, cut off,
    damaged, of another format or not UTF-8; a column that is missing (naming it and the columns present) or
    appears twice; a text that is not a time, a time that looks like another unit, a zone in some rows only;
    an infinite number, a point that may separate thousands, a label outside 0 to 1; `ImportError` for
    parquet without the `data` extra.
    """
    if time_unit not in (None, *_UNITS):
        raise ValueError(f"time_unit must be one of {', '.join(_UNITS)}, or None; got {time_unit!r}")
    path = _log_path(path)
    if path.name.endswith((".csv", ".csv.gz")): log = _read_csv(path, schema, time_unit)
    elif path.suffix == ".parquet": log = _read_parquet(path, schema, time_unit)
    else: raise ValueError(f"{path}: unknown ending; read_log reads .csv, .csv.gz and .parquet")
    if log.empty: raise ValueError(f"{path} has a header but no rows: was the log written in full?")
    return log
