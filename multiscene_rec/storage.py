"""Everything the package keeps on disk: JSON beside safetensors, whole or not at all. Hand-written; not part
of a lesson.

A record called `model` is two files: `model.json` describes it, `model.safetensors` holds its numbers.
Neither can run code. The JSON carries the SHA-256 of the numbers and of itself, so that one flipped bit, or a
file of another record, is an error that names the file. A new record replaces an old one in one step: its
numbers are written beside the old ones first, and what counts is the JSON, which is renamed into place.
"""
import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

__all__ = ["write_record", "read_record", "record_checksum", "checksum", "build_from", "pack_frame",
           "unpack_frame", "write_results", "write_whole", "read_whole", "check_finite", "header",
           "sole_writer", "settle", "work_folder", "foreign_file", "replaced_folder"]

_PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt"}


# One file

def write_whole(
    path: str | Path, # The file to write; its folder exists
    content: bytes, # All of it
) -> None:
    """Write a file whole or not at all: beside its place first, then renamed.

    Raises: `OSError` naming the file if the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        raise OSError(e.errno,
                      f"{e.strerror}: free space or name another folder; the previous file is untouched",
                      str(path)) from e
    finally:
        with contextlib.suppress(OSError): part.unlink(missing_ok=True)


def read_whole(
    path: str | Path, # The file to read
    writer: str, # What writes such files, for the error message, such as Recommender.save
) -> bytes: # All of it
    """Read a file of data; a file that could run code is refused unopened.

    Raises: `FileNotFoundError` if it does not exist; `ValueError` if it is a pickle, with or without the zip
    file that `torch.save` puts around it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder that {writer} wrote")
    with open(path, "rb") as f: head = f.read(16)
    numbers = head[6:9] == b"\0\0{" # safetensors: a length of 8 bytes, far below 2^48, then JSON
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and not numbers or head[:4] == b"PK\x03\x04":
        raise ValueError(
            f"{path} is a pickle or a zip file, which can run code when opened, so it is not read: save "
            f"again with {writer}")
    return path.read_bytes()


def checksum(
    about: dict, # Plain data; an entry called checksum is left out
) -> str: # 64 hexadecimal digits
    """SHA-256 of plain data as JSON, whatever its spaces and line ends. The order of the entries counts: it
    can be the order of columns.

    Raises: `ValueError` for a number that is not finite, which JSON does not have.
    """
    plain = {k: v for k, v in about.items() if k != "checksum"}
    return hashlib.sha256(json.dumps(plain, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


# One record

def _plain(tensors): # On the CPU, contiguous, none sharing another's memory
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}

def check_finite(
    tensors: dict, # Name: tensor, learned numbers
    what: str, # Whose they are, for the error message
) -> None:
    """Refuse nan and infinity: a model that holds them is not worth keeping. Raises: `ValueError` naming the
    tensor."""
    for name, x in tensors.items():
        if x.is_floating_point() and not x.isfinite().all():
            raise ValueError(
                f"{what}: tensor {name!r} is not finite: it holds nan or infinity; train again with a "
                "smaller lr")

def _document(about, content): # What the JSON holds: about, the checksum of the numbers, and its own
    if type(about.get("format")) is not int:
        raise ValueError("a record's about needs a whole number as format")
    about = about | dict(sha256=hashlib.sha256(content).hexdigest() if content else "")
    return about | dict(checksum=checksum(about))

def record_checksum(
    about: dict, # As for write_record
    tensors: dict, # As for write_record
) -> str: # 64 hexadecimal digits
    """The checksum that `write_record` would give this record; other records name the one they belong to by
    it."""
    return _document(about, to_bytes(_plain(tensors)) if tensors else b"")["checksum"]


def write_record(
    folder: str | Path, # Created if it does not exist
    name: str, # The record's name: name.json and name.safetensors
    about: dict, # Plain data for JSON, including format, a whole number
    tensors: dict, # Name: tensor; if empty, there is no second file
) -> str: # The record's checksum
    """Store plain data and tensors as one record; an interruption leaves either the whole old record or the
    whole new one.

    Raises: `ValueError` for a number in `about` that is not finite, `TypeError` for data that JSON cannot
    hold, `OSError` naming the file if the disk is full.
    """
    folder, tensors = Path(folder), _plain(tensors)
    content = to_bytes(tensors) if tensors else b""
    document = _document(about, content)
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    folder.mkdir(parents=True, exist_ok=True)
    first, last = folder/f"{name}.next.safetensors", folder/f"{name}.safetensors"
    _finish(folder/f"{name}.json", first, last)
    if content: write_whole(first, content)
    write_whole(folder/f"{name}.json", text.encode())
    if content: os.replace(first, last)
    else: last.unlink(missing_ok=True)
    return document["checksum"]

# If a writer was killed between its two renames, the valid numbers still have their first name
def _finish(description, first, last):
    if not first.is_file(): return
    try: expected = json.loads(description.read_bytes())["sha256"]
    except (OSError, ValueError, LookupError, TypeError): return
    if hashlib.sha256(first.read_bytes()).hexdigest() == expected: os.replace(first, last)


def _read_about(path, writer, format): # What the JSON holds, if it is of this format and unchanged
    content = read_whole(path, writer)
    try:
        about = json.loads(content.decode())
        own = checksum(about) if isinstance(about, dict) else None
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} is damaged: {e}; copy it again, or save it again with {writer}") from None
    version = about.get("format") if isinstance(about, dict) else None
    if type(version) is not int or version != format:
        shown = version if type(version) is int and abs(version) < 10**6 else "unknown"
        raise ValueError(
            f"{path} has format {shown}, but this version reads {format}: save it again with {writer}")
    if about.get("checksum") != own or not isinstance(about.get("sha256"), str):
        raise ValueError(
            f"{path} is damaged or was edited: it does not match its checksum; copy it again, or save it "
            f"again with {writer}")
    return about

# The file of numbers that belongs to the JSON; between the two renames it still has its first name
def _numbers_of(folder, name, sha256, writer):
    for path in (folder/f"{name}.safetensors", folder/f"{name}.next.safetensors"):
        if path.is_file():
            content = read_whole(path, writer)
            if hashlib.sha256(content).hexdigest() == sha256: return path, content
    path = folder/f"{name}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the folder that {writer} wrote")
    raise ValueError(
        f"{path} is damaged, or does not belong to the {name}.json beside it: its checksum differs; copy "
        f"both again, or save them again with {writer}")


def read_record(
    folder: str | Path, # The folder that write_record wrote into
    name: str, # The record's name
    writer: str, # What writes such records, for the error messages, such as Recommender.save
    format: int, # The format that the caller reads
) -> tuple[dict, dict]: # The plain data, with its checksum; name: tensor
    """Read a record back; nothing is used before both files have been compared with their checksums.

    Raises: `FileNotFoundError` for a file that is missing; `ValueError` naming the file that is damaged,
    edited, a pickle, of another format, or does not belong to the other.
    """
    folder, tries = Path(folder), {}
    _refuse_pickles(folder, name, writer)
    while True: # a writer may replace the record between the two reads; real damage stays
        about = _read_about(folder/f"{name}.json", writer, format)
        if not about["sha256"]: return {k: v for k, v in about.items() if k not in ("sha256", "format")}, {}
        tries[about["checksum"]] = tries.get(about["checksum"], 0) + 1
        try: path, content = _numbers_of(folder, name, about["sha256"], writer)
        except (ValueError, FileNotFoundError):
            if tries[about["checksum"]] == 3: raise
        else: break
    try: tensors = from_bytes(content)
    except SafetensorError as e: raise ValueError(f"{path} is damaged: {e}") from None
    return {k: v for k, v in about.items() if k not in ("sha256", "format")}, tensors

# Models of other programs are often pickles: say so, instead of asking for a file that nobody wrote
def _refuse_pickles(folder, name, writer):
    if (folder/f"{name}.json").is_file() or not folder.is_dir(): return
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise ValueError(
            f"{folder/pickles[0]} is a pickle by its name, which can run code when opened, so it is not "
            f"read: save again with {writer}")


def header(
    path: str | Path, # A safetensors file
) -> dict: # Name: shape of each tensor
    """Read the shapes in a safetensors file, but none of its numbers; the header is checked against the
    file's size.

    Raises: `ValueError` naming the file if it is damaged.
    """
    try:
        with safe_open(path, "pt") as f: return {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}
    except (SafetensorError, OSError) as e: raise ValueError(f"{path} is damaged: {e}") from None


def build_from(
    path: str | Path, # The record, folder/name, for the error messages
    make, # Function without arguments that returns a fresh module as the record describes it
    tensors: dict, # Name: tensor, as read_record returned them
): # The module with these tensors, in their precision
    """Build a module from a record: first on the meta device, where it costs no memory, to compare its
    shapes with the tensors.

    Raises: `ValueError` naming the record if its description is wrong or its tensors do not fit.
    """
    try:
        try:
            with torch.device("meta"): expected = make().state_dict()
        # a module that reads a number while it is built finds none on the meta device
        except (RuntimeError, NotImplementedError):
            with torch.random.fork_rng(devices=[]): expected = make().state_dict()
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError) as e:
        raise ValueError(f"{path}.json does not describe a model: {e}") from None
    def kind(x): return tuple(x.shape), "float" if x.is_floating_point() else x.dtype
    differing = sorted(k for k in expected.keys() | tensors if k not in expected or k not in tensors
                       or kind(expected[k]) != kind(tensors[k]))
    if differing:
        raise ValueError(
            f"{path}.safetensors does not fit the model that {path}.json describes: "
            f"{', '.join(differing[:5])}")
    with torch.random.fork_rng(devices=[]): module = make()
    for name, x in module.state_dict(keep_vars=True).items(): x.data = x.data.to(tensors[name].dtype)
    module.load_state_dict(tensors)
    return module


# A table as tensors

def pack_frame(
    frame: pd.DataFrame, # Columns of numbers or of words
    name: str, # Name of the frame, used in the names of its tensors
    tensors: dict, # The tensors are added here
) -> list: # What unpack_frame needs, as plain data
    """Turn the columns of a frame into tensors: numbers as they are, words as positions in a list of words.

    Raises: `ValueError` naming a column that holds anything else.
    """
    columns = []
    for k, c in enumerate(frame.columns):
        x, words = frame[c], None
        if isinstance(x.dtype, np.dtype) and x.dtype.kind in "iufb": values = x.to_numpy(copy=True)
        else:
            values, words = pd.factorize(x)
            words = np.asarray(words, dtype=object).tolist()
            other = [type(w).__name__ for w in words
                     if not isinstance(w, (str, int, float, bool, np.integer))]
            if other:
                raise ValueError(
                    f"column {c!r} of {name} cannot be stored: it holds {other[0]}, not numbers or text; "
                    "convert it with .astype(str)")
            words = [int(w) if isinstance(w, np.integer) else w for w in words]
        tensors[f"{name}.{k}"] = torch.from_numpy(np.ascontiguousarray(values))
        columns.append(dict(name=c, words=words))
    return columns


def unpack_frame(
    columns: list, # What pack_frame returned
    name: str, # Name of the frame
    tensors: dict, # Name: tensor
) -> pd.DataFrame: # The same values; words as Python objects, None where missing
    """Undo `pack_frame`. Raises: `ValueError` naming a column that does not fit its tensor."""
    frame = {}
    for k, c in enumerate(columns):
        x = tensors[f"{name}.{k}"].numpy()
        if c["words"] is not None:
            if len(x) and not -1 <= x.min() <= x.max() < len(c["words"]):
                raise ValueError(f"column {c['name']!r} of {name} points past the end of its list of words")
            x = pd.Series(np.array([*c["words"], None], dtype=object)[x], dtype=object)
        frame[c["name"]] = x
    return pd.DataFrame(frame)


def write_results(
    path: str | Path, # A csv file, such as course/results/mall.csv
    frame: pd.DataFrame, # The rows of a closing table, plain columns
) -> pd.DataFrame: # The same with the columns commit, hardware and date
    """Store a closing table as data, with where and when it was computed; the site's pages are made from such
    files."""
    def output(*command):
        try: done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError): return ""
        return done.stdout.strip()
    hardware = f"{os.cpu_count()} {platform.machine()} cores, {torch.get_num_threads()} thread(s)"
    if torch.cuda.is_available(): hardware += f", {torch.cuda.get_device_name()}"
    table = frame.assign(commit=output("git", "rev-parse", "--short", "HEAD") or "unknown", hardware=hardware,
                         date=time.strftime("%Y-%m-%d"))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    return table


# Folders

@contextlib.contextmanager
def sole_writer(
    folder: str | Path, # The folder to lock; created if it does not exist
):
    """Lock a folder while a `with` block runs, so that no second run writes into it; leftovers of a killed
    run are removed.

    Raises: `BlockingIOError` naming the folder if another run holds it, `OSError` if it cannot be created or
    written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder/".lock")
    try: lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"another run is writing into {folder}: wait until it ends, or name another folder") from None
    try:
        for file in folder.glob("*.part"):
            if re.search(r"\.\d+\.part$", file.name): file.unlink(missing_ok=True)
        yield folder
    finally: lock.release()


_LITTER = {".lock", ".DS_Store", "Thumbs.db", ".ipynb_checkpoints"}

def work_folder(
    out: str | Path, # A folder that replaced_folder writes
) -> Path: # Where the new one is made before it takes its place
    """The folder beside it that holds an unfinished run."""
    out = Path(os.path.realpath(out))
    return out.parent/f".{out.name}.work"

def settle(
    out: str | Path, # A folder that replaced_folder writes
) -> Path: # The same, with links followed
    """Put the old folder back if a swap was cut off between its two renames; wait for one that is under
    way."""
    out = Path(os.path.realpath(out))
    work = work_folder(out)
    if (work/"old").is_dir() and not out.exists():
        with contextlib.suppress(Timeout, OSError), FileLock(work/".lock").acquire(timeout=10):
            _put_back(out, work)
    return out

def _put_back(out, work):
    if (work/"old").is_dir() and not out.exists(): os.replace(work/"old", out)

def foreign_file(
    out: str | Path, # A folder
    mark: str, # The file that marks the folder as ours, such as run.json
    names: tuple, # What we write into such a folder
) -> str | None: # The first entry that is not ours, or the name itself if it is a file; else None
    """What would be lost if the folder were replaced."""
    if not Path(out).is_dir(): return Path(out).name if Path(out).exists() else None
    entries = sorted(p.name for p in Path(out).iterdir() if p.name not in _LITTER)
    ours = {mark, *names} if mark in entries else set()
    if foreign := next((name for name in entries if name not in ours), None): return foreign
    for record in (Path(out)/name for name in entries if (Path(out)/name).is_dir()):
        files = {f"{record.name}{end}" for end in (".json", ".safetensors", ".next.safetensors")}
        for p in sorted(record.iterdir()):
            if p.name not in files | _LITTER and not p.name.endswith(".part"):
                return f"{record.name}/{p.name}"
    return None

@contextlib.contextmanager
def replaced_folder(
    out: str | Path, # The folder that will hold the result; what it holds now stays until the end
):
    """Build a folder beside its final place and swap it in whole at the end of a `with` block; an error
    before that leaves the old one untouched.

    The block gets the folder to work in. What it puts into `run` takes the place of `out`; anything else it
    puts there, such as a checkpoint, is kept if the block fails and removed when it succeeds.

    Raises: `BlockingIOError` naming the folder if another run holds it, `OSError` if nothing can be written
    beside it.
    """
    out = Path(os.path.realpath(out))
    if out.exists() and not out.is_dir():
        raise FileExistsError(errno.EEXIST, "a file of this name exists: name a folder", str(out))
    if os.path.ismount(out):
        raise OSError(errno.EBUSY, "a mount point cannot be swapped: name a folder inside it", str(out))
    work = work_folder(out)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_if_empty, work)
        try: stack.enter_context(sole_writer(work))
        except BlockingIOError:
            raise BlockingIOError(
                f"another run is writing into {out}: wait until it ends, or name another folder") from None
        except OSError as e:
            raise OSError(e.errno,
                f"{e.strerror}: {out.name} is first built in the folder around it, which cannot be "
                "written to; name a folder inside one that you can write to", str(out.parent)) from e
        _put_back(out, work)
        shutil.rmtree(work/"run", ignore_errors=True)
        shutil.rmtree(work/"old", ignore_errors=True)
        (work/"run").mkdir()
        try: yield work
        except BaseException:
            shutil.rmtree(work/"run", ignore_errors=True)
            raise
        else: _swap(out, work)
        finally: stack.callback(_remove_lock, work)

# Move the old folder away and the new one in; nothing is removed before the new one is in place
def _swap(out, work):
    try:
        if out.exists(): os.replace(out, work/"old")
        os.replace(work/"run", out)
    except OSError as e:
        _put_back(out, work)
        raise OSError(e.errno,
                      f"{e.strerror}: the folder cannot be replaced; it is unchanged, and the new one is in "
                      f"{work/'run'}", str(out)) from e
    except BaseException: # Ctrl-C between the two
        _put_back(out, work)
        raise
    for path in work.iterdir():
        if path.is_dir(): shutil.rmtree(path, ignore_errors=True)
        elif path.name != ".lock": path.unlink(missing_ok=True)

def _remove_lock(work): # Only if nothing else is left, and while it is held, so that nobody else can hold it
    if {p.name for p in work.iterdir()} <= {".lock"}:
        with contextlib.suppress(OSError): (work/".lock").unlink(missing_ok=True)

def _remove_if_empty(work): # An empty folder would look like a run that was stopped
    with contextlib.suppress(OSError): work.rmdir()
