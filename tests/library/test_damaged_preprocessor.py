"""A saved preprocessor or log that was damaged or edited: one clear error that names the file, or one that
works."""
import copy
import hashlib
import json
import pickle
import resource
import shutil
import struct
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscene_rec import preprocess, storage
from multiscene_rec.data import Schema, toy_mall

wrong = pytest.mark.wrong
MALL = toy_mall(n_users=40, n_items=15, n_events=400, seed=3)
TRAIN, TEST = preprocess.time_split(MALL.events, fractions=(.7, .3))
SCHEMA = Schema(categorical=("age_band", "category"), numeric=("price",), item_columns=("category", "price"))
PARTS = (preprocess.Categories(), preprocess.Numbers(), preprocess.Labels(), preprocess.Histories(words=3),
         preprocess.Vectors("title", MALL.items.item_id, MALL.item_vectors), preprocess.Sequences(4))
PREP = preprocess.Preprocessor(SCHEMA, PARTS).fit(TRAIN, MALL.users, MALL.items)
LOG = preprocess.EventLog(TRAIN, MALL.users, SCHEMA)
# name of the record: how to keep another one, how to read it, who writes it, its format, an old format
OTHER = (*PARTS[:4], preprocess.Vectors("title", MALL.items.item_id, -MALL.item_vectors), PARTS[5])
KEPT = {"preprocess": (lambda folder: preprocess.Preprocessor(SCHEMA, OTHER).fit(TEST, MALL.users,
    MALL.items).save(folder), preprocess.Preprocessor.load, "Preprocessor.save", 4, 3),
        "log": (lambda folder: preprocess.save_log(preprocess.EventLog(TEST, MALL.users, SCHEMA), folder),
                preprocess.load_log, "save_log", 1, 0)}
NAMES = list(KEPT)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    PREP.save(folder)
    preprocess.save_log(LOG, folder)
    return folder


class Quiet(dict):
    "Files that a report of a failure does not print."
    def __repr__(self): return f"<{len(self)} entries>"
    def __or__(self, other): return Quiet({**self, **other})


@pytest.fixture(scope="module")
def files(saved): return Quiet({p.name: p.read_bytes() for p in saved.iterdir()})


@pytest.fixture(scope="module")
def place(tmp_path_factory): return tmp_path_factory.mktemp("place")


def load(place, name, files):
    "Load a record from these bytes."
    for file in ("json", "safetensors"): (place/f"{name}.{file}").write_bytes(files[f"{name}.{file}"])
    return KEPT[name][1](place)


def load_or_refuse(place, name, files):
    "What load gives, or None where it says in one line which file is wrong."
    try: return load(place, name, files)
    except ValueError as e:
        assert f"{place/name}." in str(e) and "\n" not in str(e) and len(str(e)) < 900, e
    except ImportError as e:
        assert name == "preprocess" and str(place) in str(e) and "import that module first" in str(e)
    return None


def batch(x):
    return x.transform(TEST, LOG) if isinstance(x, preprocess.Preprocessor) else PREP.transform(TEST, x)


def same(x, name):
    "Whether what was loaded does what was saved."
    one, two = batch(x), batch({"preprocess": PREP, "log": LOG}[name])
    return (name == "log" or x.spec == PREP.spec) and all(torch.equal(getattr(one, p), getattr(two, p))
                                                          for p in (*two.rows, *two.tables))


def works(x):
    "It transforms, or says in a ValueError what it lacks."
    try: made = batch(x)
    except ValueError: return
    assert len(made) == len(TEST)


def sealed(known):
    "JSON of an edited content, its checksum computed anew, by other means than the package's."
    rest = dict(known)
    rest.pop("checksum", None)
    own = hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()
    return json.dumps(rest | dict(checksum=own)).encode()


def with_tensors(files, name, content):
    "Other numbers, and both checksums computed anew."
    return {f"{name}.safetensors": content, f"{name}.json": sealed(json.loads(files[f"{name}.json"])
        | dict(sha256=hashlib.sha256(content).hexdigest()))}


@pytest.mark.parametrize("name", NAMES)
def test_checksums_are_what_they_say(place, files, name):
    known = json.loads(files[f"{name}.json"])
    assert known["format"] == KEPT[name][3] and known["sha256"] == hashlib.sha256(
        files[f"{name}.safetensors"]).hexdigest()
    assert json.loads(sealed(known))["checksum"] == known["checksum"]
    # blanks say nothing
    for text in (files[f"{name}.json"], sealed(known), json.dumps(known, indent=3).encode()):
        assert same(load(place, name, files | {f"{name}.json": text}), name)


# ---- bytes

@st.composite
def damage(draw, size):
    "A function that spoils so many bytes."
    a, b, c, d = sorted(draw(st.lists(st.integers(0, size), min_size=4, max_size=4)))
    some = draw(st.binary(min_size=1, max_size=9))
    kind = draw(st.sampled_from(["flip", "delete", "insert", "cut", "swap", "repeat", "overwrite", "only"]))
    return {"flip": lambda x: x[:a] + bytes([v ^ 1 << some[0] % 8 for v in x[a:a + 1]]) + x[a + 1:],
            "delete": lambda x: x[:a] + x[b:],
            "insert": lambda x: x[:a] + some + x[a:], "cut": lambda x: x[:b], "swap": lambda x: x[:a] + x[c:d]
            + x[b:c] + x[a:b] + x[d:],
            "repeat": lambda x: x[:b] + x[a:], "overwrite": lambda x: x[:a] + some + x[a + len(some):],
            "only": lambda x: some}[kind]


@settings(max_examples=300)
@given(st.sampled_from(NAMES), st.sampled_from(["json", "safetensors"]), st.data())
def test_any_damage_is_noticed(place, files, name, which, data):
    which = f"{name}.{which}"
    found = load_or_refuse(place, name, files | {which: data.draw(damage(len(files[which])))(files[which])})
    assert found is None or same(found, name)


@settings(max_examples=200)
@given(st.sampled_from(NAMES), st.data())
def test_damaged_tensors_with_right_checksums(place, files, name, data):
    "Somebody edited the tensors and computed both checksums anew."
    content = files[f"{name}.safetensors"]
    found = load_or_refuse(place, name, with_tensors(files, name, data.draw(damage(len(content)))(content)))
    if found is not None: works(found)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_that_promise_too_much(place, files, name):
    whole = files[f"{name}.safetensors"]
    for header in (2**63 - 1, 2**64 - 1, 2**40, 10**8, 0):
        assert load_or_refuse(place, name,
                              with_tensors(files, name, struct.pack("<Q", header) + whole[8:])) is None
    size = struct.unpack("<Q", whole[:8])[0]
    about = json.loads(whole[8:8 + size])
    first = next(k for k in about if k != "__metadata__")
    for shape, offsets in (([10**15], [0, 8*10**15]), ([2**62], about[first]["data_offsets"]),
                           ([-1], about[first]["data_offsets"])):
        header = json.dumps(about | {first: about[first] | dict(shape=shape, data_offsets=offsets)}).encode()
        assert load_or_refuse(place, name, with_tensors(files, name, struct.pack("<Q", len(header)) + header
                                                        + whole[8 + size:])) is None


# ---- structure

def spots(x, path=()):
    "Every place in a JSON value, as a path."
    yield path
    for key in (x if isinstance(x, dict) else range(min(len(x), 6)) if isinstance(x, list) else ()):
        yield from spots(x[key], (*path, key))


@pytest.fixture(scope="module")
def places(files):
    return Quiet({name: [p for p in spots(json.loads(files[f"{name}.json"])) if p] for name in NAMES})


DEEP = json.loads("["*400 + "]"*400)
VALUES = [None, True, False, 0, 1, -1, 2, 10**6, 10**18, 2**63, 10**30, 10**400, -10**400, .5, 1e308, -1e-320,
          "", "x", "user_id", "price", "Histories", "Vectors", [], {}, [1], ["x"], [None],
          [1, "x"], ["x", "x"], [[]], [10**400], {"x": 1}, {"log": 1}, [1.5], [True], DEEP, "\ud800", "ü",
          "x"*10_000, list(range(1000))]


@settings(max_examples=600)
@given(st.sampled_from(NAMES), st.data())
def test_edited_json_with_a_right_checksum(place, files, places, name, data):
    known = json.loads(files[f"{name}.json"])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places[name]))
        try:
            spot = known
            for key in path[:-1]: spot = spot[key]
            kind = data.draw(st.sampled_from(["remove", "replace", "rename", "add", "reverse", "repeat"]))
            if kind == "remove": del spot[path[-1]]
            if kind == "replace": spot[path[-1]] = copy.copy(data.draw(st.sampled_from(VALUES)))
            if kind == "rename": spot["renamed"] = spot.pop(path[-1])
            if kind == "add": spot["more"] = 1
            if kind == "reverse": spot[path[-1]] = spot[path[-1]][::-1]
            if kind == "repeat": spot[path[-1]] = spot[path[-1]]*2
        # no such edit at this place
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError): continue
    found = load_or_refuse(place, name, files | {f"{name}.json": sealed(known)})
    if found is not None: works(found)


def edit(files, name, *path, to=KeyError):
    known = json.loads(files[f"{name}.json"])
    spot = known
    for key in path[:-1]: spot = spot[key]
    if to is KeyError: del spot[path[-1]]
    else: spot[path[-1]] = to
    return files | {f"{name}.json": sealed(known)}


def learned(k): return "parts", k, "about", "learned"


@wrong("… is damaged, or is not what … wrote (…): copy it again, or create it again", area="files",
       cause="The file was edited by hand, or is another file by the same name.",
       remedy="Copy the folder again, or fit and save again.")
@pytest.mark.parametrize("name, path, to, says", [
    ("preprocess", ("schema",), [], "must be a mapping"),
    ("preprocess", ("schema", "user"), 5, "column names must be non-empty strings"),
    ("preprocess", ("schema", "numeric"), 5, "Schema.numeric"),
    ("preprocess", ("schema", "label"), "user_id", "used twice"),
    ("preprocess", ("schema", "extra"), 1, "unexpected keyword argument 'extra'"),
    ("preprocess", ("scenarios",), [], "name at least one scenario"),
    ("preprocess", ("scenarios", 0), ["cart"], "not a list of different words"),
    ("preprocess", ("scenarios", 1), "cart", "not a list of different words"),
    ("preprocess", ("last",), "soon", "last must be a whole number"), ("preprocess", ("scenarios",), KeyError,
        "KeyError: 'scenarios'"), ("preprocess", ("params",), {"x": 1}, "unexpected keyword argument 'x'"),
    ("preprocess", ("parts",), 5, "not iterable"), ("preprocess", ("parts", 0, "about"), KeyError,
        "KeyError: 'about'"), ("preprocess", ("items",), [], "no column 'item_id'"),
    ("preprocess", ("items", 0, "name"), "other", "no column 'item_id'"),
    ("preprocess", ("items", 1, "words"), ["a"], "points past the end of its list of words"),
    ("preprocess", ("items", 1, "words"), [["a"]], "the words of column 'title' of items are not text"),
    ("preprocess", ("parts", 0, "about", "params", "min_count"), 0,
     "min_count must be a whole number of 1 or more, got 0"),
    ("preprocess", ("parts", 0, "about", "params", "min_count"), True, "min_count"),
    ("preprocess", (*learned(0), "words_", "category", "words_"), ["a", 1], "a list of different words"),
    ("preprocess", (*learned(0), "words_", "item_id", "words_"), [2**63], "a list of different words"),
    ("preprocess", (*learned(0), "words_", "category", "is"), "Preprocessor", "KeyError: 'Preprocessor'"),
    ("preprocess", (*learned(0), "words_", "category"), ["a"], "words of categories: fit cannot"),
    ("preprocess", (*learned(0), "of_", "category"), "shop", "of 'shop' is unknown"),
    ("preprocess", (*learned(0), "of_", "more"), "item", "words of categories: fit cannot have learned this"),
    ("preprocess", (*learned(0), "transform"), 1, "'transform' cannot be the name of something learned"),
    ("preprocess", (*learned(0), "words_"), KeyError, "AttributeError"),
    ("preprocess", (*learned(1), "scales_", "price", 1, "std_"), -1, "not a finite mean and standard"),
    ("preprocess", (*learned(1), "scales_", "price", 0), 1,
     "the scale of 'price': fit cannot have learned this"),
    ("preprocess", (*learned(1), "scales_", "price", 1), 1,
     "the scale of 'price': fit cannot have learned this"),
    ("preprocess", (*learned(1), "scales_", "price", 1, "mean_"), "1", "must be real number"),
    ("preprocess", (*learned(1), "scales_", "price", 1, "std_"), 10**400, "damaged"),
    ("preprocess", (*learned(1), "scales_"), {}, "scales of numbers: fit cannot have learned this"),
    ("preprocess", ("parts", 2, "about", "params", "weights"), [-1], "weight must be 0 or more"),
    ("preprocess", (*learned(2), "names_"), [], "names of labels: fit cannot have learned this"),
    ("preprocess", (*learned(3), "words_"), [], "words of histories: fit cannot have learned this"),
    ("preprocess", (*learned(3), "rate_"), [.1], "rate has no number from 0 to 1 for each scenario"),
    ("preprocess", (*learned(3), "rate_", 0), 2, "rate has no number"),
    ("preprocess", (*learned(3), "rate_", 0), 10**400, "OverflowError"),
    ("preprocess", ("parts", 3, "about", "params", "words"), 1e9, "words must be a whole number"),
    ("preprocess", ("parts", 4, "about", "params", "name"), "a b", "name must be a word"),
    ("preprocess", ("parts", 4, "about", "params", "ids"), [1, 1], "expected 2, got 15"),
    ("preprocess", (*learned(4), "rows_"), [1, 1], "rows of 'title': fit cannot have learned this"),
    ("preprocess", ("parts", 4, "part"), "Numbers", "takes no arguments"),
    ("preprocess", ("parts", 5, "about", "params", "length"), 0, "length must be"),
    ("log", ("schema", "time"), "other", "no column 'other'"),
    ("log", ("frames", "events"), [], "no column 'user_id'"), ("log", ("frames", "events", 0, "name"),
        "other", "no column 'user_id'"), ("log", ("frames",), {}, "KeyError: 'events'"),
    ("log", ("frames", "users", 0, "name"), "other", "no column 'user_id'"),
    ("log", ("frames", "events", 2, "words"), ["cart"], "points past the end of its list of words")])
def test_what_was_edited_is_said(place, files, name, path, to, says):
    with pytest.raises(ValueError) as e: load(place, name, edit(files, name, *path, to=to))
    assert says in str(
        e.value) and f"{place/name}.json is damaged, or is not what {KEPT[name][2]} wrote (" in str(
            e.value) and str(e.value).endswith("): copy it again, or create it again")


@wrong("… is damaged or was edited: it does not match its checksum; copy it again, or save it again with …",
       area="files", cause="Some bytes of a JSON file have changed since it was written.",
       remedy="Copy the folder again, or fit and save again.")
@wrong("… is damaged, or does not belong to the … beside it: its checksum differs; copy both again, or "
       "save them again with …", area="files",
       cause="Some bytes have changed, or one file is newer than the other.",
       remedy="Copy both files again, or fit and save again.")
@wrong("… has format …, but this version reads …: save it again with …", area="files",
       cause="Another version of the package wrote the folder.",
       remedy="Fit and save again, or use the version that wrote it.")
@pytest.mark.parametrize("name", NAMES)
def test_damage_and_other_formats(place, files, name, tmp_path):
    keep, _, writer, format, old = KEPT[name]
    with pytest.raises(ValueError) as e:
        load(place, name, files | {f"{name}.json": files[f"{name}.json"].replace(b'"price"', b'"prize"')})
    assert str(
        e.value) == (f"{place/name}.json is damaged or was edited: it does not match its checksum; copy "
                     f"it again, or save it again with {writer}")
    keep(tmp_path)
    with pytest.raises(ValueError) as e:
        load(place, name, files | {f"{name}.safetensors": (tmp_path/f"{name}.safetensors").read_bytes()})
    assert str(e.value) == (
        f"{place/name}.safetensors is damaged, or does not belong to the {name}.json beside it: its "
        "checksum differs; "
                            f"copy both again, or save them again with {writer}")
    for found, shown in ((old, old), (1 - format, 1 - format), (99, 99), (10**30, "unknown"),
                         (None, "unknown"), (2.0, "unknown"), (True, "unknown"), (DEEP, "unknown")):
        with pytest.raises(ValueError) as e: load(place, name, edit(files, name, "format", to=found))
        assert str(
            e.value) == (
                f"{place/name}.json has format {shown}, but this version reads {format}: save it again with "
                         f"{writer}")


def test_a_folder_of_the_version_before_is_refused_by_name(tmp_path):
    "Format 2 kept the training log, in frames of the preprocessor."
    known = dict(format=2, schema={}, min_count=1, history_words=50, scenarios=["home"], vocabularies={},
                 scales={}, rate=[.1], frames={"log": []}, sha256="0"*64)
    (tmp_path/"preprocess.json").write_bytes(sealed(known))
    (tmp_path/"preprocess.safetensors").write_bytes(b"anything")
    with pytest.raises(ValueError) as e: preprocess.Preprocessor.load(tmp_path)
    assert str(
        e.value) == (
            f"{tmp_path/'preprocess.json'} has format 2, but this version reads 4: save it again with "
                     "Preprocessor.save")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"null", b"\xff", b"["*100_000, b'{"a":'*50_000,
    b'{"format": ' + b"9"*10_000 + b"}", b'{"format": NaN}', b'{"format": 3}', b'{"format": 1}'])
def test_json_that_is_none(place, files, name, text):
    assert load_or_refuse(place, name, files | {f"{name}.json": text}) is None


@wrong("… is a pickle or a zip file, which can run code when opened, so it is not read: save again with …",
       area="files", cause="The file was made by torch.save or pickle.",
       remedy="Never open such a file from others; save again with the function that is named.")
@pytest.mark.parametrize("name", NAMES)
def test_pickles_are_refused_unopened(place, files, name, tmp_path):
    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path/"ran"), "w"))
    torch.save(dict(x=torch.zeros(2)), tmp_path/"zip")
    for file in (f"{name}.json", f"{name}.safetensors"):
        for content in (pickle.dumps(Bomb()), pickle.dumps(Bomb(), 2), (tmp_path/"zip").read_bytes()):
            with pytest.raises(ValueError) as e: load(place, name, files | {file: content})
            assert str(
                e.value) == (f"{place/file} is a pickle or a zip file, which can run code when opened, so it "
                             f"is not read: save again with {KEPT[name][2]}")
    assert not (tmp_path/"ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_missing(saved, name, tmp_path):
    for file in (f"{name}.json", f"{name}.safetensors"):
        shutil.copytree(saved, tmp_path/file)
        (tmp_path/file/file).unlink()
        with pytest.raises(FileNotFoundError) as e: KEPT[name][1](tmp_path/file)
        assert str(
            e.value) == f"{tmp_path/file/file} does not exist: give the folder that {KEPT[name][2]} wrote"


# ---- what is saved

def test_damage_needs_no_memory(place, files):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in (("parts", 0, "about", "params", "min_count"), ("parts", 3, "about", "params", "words"),
                 (*learned(1), "scales_", "price", 1, "mean_"), (*learned(3), "rate_", 0),
                 ("parts", 5, "about", "params", "length")):
        load_or_refuse(place, "preprocess", edit(files, "preprocess", *path, to=10**18))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [0, 1])
def test_a_record_is_replaced_whole_or_not_at_all(saved, name, steps, tmp_path, monkeypatch):
    "Whatever stops the writer, the old record is there."
    for file in saved.glob(f"{name}.*"): shutil.copy(file, tmp_path)
    written, whole = [], storage.write_whole
    def stop(path, content):
        if len(written) == steps: raise OSError(28, "No space left on device", str(path))
        written.append(path.name)
        whole(path, content)
    monkeypatch.setattr(storage, "write_whole", stop)
    with pytest.raises(OSError): KEPT[name][0](tmp_path)
    assert len(written) == steps and same(KEPT[name][1](tmp_path), name)
    monkeypatch.undo()
    KEPT[name][0](tmp_path)
    assert not same(KEPT[name][1](tmp_path), name) and sorted(p.name for p in tmp_path.iterdir()) == [
        f"{name}.json", f"{name}.safetensors"]


def test_no_length_of_the_header_looks_like_a_pickle(tmp_path):
    """A safetensors file begins with the length of its header, and 80 05 in hexadecimal is also how a
    pickle begins."""
    alike = []
    for width in range(24):
        users = pd.DataFrame(0, range(40), ["user_id", *(f"c{k}" for k in range(width))]).assign(
            user_id=range(40), age_band="a")
        named = replace(SCHEMA, numeric=(*SCHEMA.numeric, *(f"c{k}" for k in range(width))))
        preprocess.save_log(preprocess.EventLog(TRAIN, users, named), tmp_path)
        alike.append((tmp_path/"log.safetensors").read_bytes()[:1] == b"\x80")
        pd.testing.assert_frame_equal(preprocess.load_log(tmp_path).users, users, check_dtype=False)
    assert any(alike) and not all(alike)
