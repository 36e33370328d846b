"A saved preprocessor that was damaged or edited: one clear error that names the file, or a preprocessor that works."
import copy
import hashlib
import json
import pickle
import resource
import shutil
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from multiscene_rec import preprocess
from multiscene_rec.data import Schema, toy_mall

MALL = toy_mall(n_users=40, n_items=15, n_events=400, seed=3)
TRAIN, TEST = preprocess.time_split(MALL.events, fractions=(.7, .3))
SCHEMA = Schema(categorical=("age_band", "category"), numeric=("price",), item_columns=("category", "price"))
PREP = preprocess.Preprocessor(SCHEMA).fit(TRAIN, MALL.users, MALL.items)
PARTS = ("fields", "dense", "scenario", "label", "history_table", "present_table", "history_row")
JSON, TENSORS = "preprocess.json", "preprocess.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    PREP.save(folder)
    return folder


@pytest.fixture(scope="module")
def files(saved): return {name: (saved/name).read_bytes() for name in (JSON, TENSORS)}


@pytest.fixture(scope="module")
def place(tmp_path_factory): return tmp_path_factory.mktemp("place")


def load(place, files):
    "Load from these bytes."
    for name, content in files.items(): (place/name).write_bytes(content)
    return preprocess.Preprocessor.load(place)


def load_or_refuse(place, files):
    "What load gives, or None where it says in one line which file is wrong."
    try: return load(place, files)
    except ValueError as e:
        assert str(place) in str(e) and "\n" not in str(e) and len(str(e)) < 700, e
        return None


def same(prep):
    one, two = PREP.transform(TEST), prep.transform(TEST)
    return prep.spec == PREP.spec and all(torch.equal(getattr(one, p), getattr(two, p)) for p in PARTS)


def sealed(known):
    "JSON of an edited content, its checksum computed anew, by other means than the package's."
    rest = dict(known)
    rest.pop("checksum", None)
    own = hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode()).hexdigest()
    return json.dumps(rest | dict(checksum=own)).encode()


def test_checksums_are_what_they_say(place, files):
    known = json.loads(files[JSON])
    assert known["format"] == 2 and known["sha256"] == hashlib.sha256(files[TENSORS]).hexdigest()
    assert json.loads(sealed(known))["checksum"] == known["checksum"]
    assert same(load(place, files)) and same(load(place, files | {JSON: sealed(known)}))
    assert same(load(place, files | {JSON: json.dumps(known, indent=3).encode()}))  # blanks say nothing


# ---- bytes

@st.composite
def damage(draw, size):
    "A function that spoils so many bytes."
    a, b, c, d = sorted(draw(st.lists(st.integers(0, size), min_size=4, max_size=4)))
    some = draw(st.binary(min_size=1, max_size=9))
    kind = draw(st.sampled_from(["flip", "delete", "insert", "cut", "swap", "repeat", "overwrite", "only"]))
    return {"flip": lambda x: x[:a] + bytes([v ^ 1 << some[0] % 8 for v in x[a:a + 1]]) + x[a + 1:], "delete": lambda x: x[:a] + x[b:],
            "insert": lambda x: x[:a] + some + x[a:], "cut": lambda x: x[:b], "swap": lambda x: x[:a] + x[c:d] + x[b:c] + x[a:b] + x[d:],
            "repeat": lambda x: x[:b] + x[a:], "overwrite": lambda x: x[:a] + some + x[a + len(some):], "only": lambda x: some}[kind]


@settings(max_examples=300)
@given(which=st.sampled_from([JSON, TENSORS]), data=st.data())
def test_any_damage_is_noticed(place, files, which, data):
    spoil = data.draw(damage(len(files[which])))
    prep = load_or_refuse(place, files | {which: spoil(files[which])})
    assert prep is None or same(prep)


@given(data=st.data())
@settings(max_examples=150)
def test_damaged_tensors_with_a_right_checksum(place, files, data):
    "Somebody edited the tensors and computed both checksums anew."
    content = data.draw(damage(len(files[TENSORS])))(files[TENSORS])
    known = json.loads(files[JSON]) | dict(sha256=hashlib.sha256(content).hexdigest())
    prep = load_or_refuse(place, {JSON: sealed(known), TENSORS: content})
    if prep is not None: works(prep)


@pytest.mark.parametrize("header", [2**63 - 1, 2**64 - 1, 2**40, 10**8, 0])
def test_a_header_that_promises_too_much(place, files, header):
    content = struct.pack("<Q", header) + files[TENSORS][8:]
    known = json.loads(files[JSON]) | dict(sha256=hashlib.sha256(content).hexdigest())
    assert load_or_refuse(place, {JSON: sealed(known), TENSORS: content}) is None


def test_tensors_larger_than_their_file(place, files):
    size = struct.unpack("<Q", files[TENSORS][:8])[0]
    about = json.loads(files[TENSORS][8:8 + size])
    for shape, offsets in (([10**15], [0, 8*10**15]), ([2**62], about["log.0"]["data_offsets"]), ([-1], about["log.0"]["data_offsets"])):
        header = json.dumps(about | {"log.0": dict(dtype="I64", shape=shape, data_offsets=offsets)}).encode()
        content = struct.pack("<Q", len(header)) + header + files[TENSORS][8 + size:]
        known = json.loads(files[JSON]) | dict(sha256=hashlib.sha256(content).hexdigest())
        assert load_or_refuse(place, {JSON: sealed(known), TENSORS: content}) is None


# ---- structure

def works(prep):
    "It transforms, or says in a ValueError what it lacks."
    try: batch = prep.transform(TEST)
    except ValueError: return
    assert len(batch) == len(TEST)


def spots(x, path=()):
    "Every place in a JSON value, as a path."
    yield path
    for key in (x if isinstance(x, dict) else range(min(len(x), 6)) if isinstance(x, list) else ()): yield from spots(x[key], (*path, key))


@pytest.fixture(scope="module")
def places(files): return [p for p in spots(json.loads(files[JSON])) if p]


DEEP = json.loads("["*400 + "]"*400)
VALUES = [None, True, False, 0, 1, -1, 2, 10**6, 10**18, 2**63, 10**30, 10**400, -10**400, .5, 1e308, -1e-320, "", "x", "user_id", "price", [], {}, [1], ["x"], [None],
          [1, "x"], ["x", "x"], [[]], [10**400], {"x": 1}, {"log": 1}, [1.5], [True], DEEP, "\ud800", "ü", "x"*10_000, list(range(1000))]


@settings(max_examples=600)
@given(data=st.data())
def test_edited_json_with_a_right_checksum(place, files, places, data):
    known = json.loads(files[JSON])
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places))
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
        except (TypeError, KeyError, IndexError, AttributeError, OverflowError): continue  # no such edit at this place
    prep = load_or_refuse(place, files | {JSON: sealed(known)})
    if prep is not None: works(prep)


def edit(files, *path, to=KeyError):
    known = json.loads(files[JSON])
    spot = known
    for key in path[:-1]: spot = spot[key]
    if to is KeyError: del spot[path[-1]]
    else: spot[path[-1]] = to
    return files | {JSON: sealed(known)}


@pytest.mark.wrong("… is damaged, or is not what Preprocessor.save wrote (…): copy it again, or fit and save again", area="files",
                   cause="The file was edited by hand, or is another file by the same name.", remedy="Copy the folder again, or fit and save again.")
@pytest.mark.parametrize("path, to, says", [
    (("rate",), KeyError, "expected"), (("rate",), [.1], "rate has no number from 0 to 1 for each scenario"), (("rate", 0), 10**400, "rate has no number"), (("rate", 0), 2, "rate has no"),
    (("scenarios",), [], "scenarios are not"), (("scenarios", 0), "cart2", "scenarios are not those of the log"), (("scenarios", 1), "cart", "scenarios are not different"),
    (("min_count",), 0, "min_count is no whole number"), (("min_count",), True, "min_count"), (("history_words",), 1e9, "history_words"), (("schema",), [], "schema is a list"),
    (("schema", "user"), 5, "column names are non-empty strings"), (("schema", "numeric"), 5, "Schema.numeric"), (("schema", "label"), "user_id", "used twice"), (("schema", "extra"), 1, "schema names"),
    (("vocabularies", "category"), KeyError, "vocabularies names"), (("vocabularies", "category"), ["a", 1], "the vocabulary of 'category'"), (("vocabularies", "item_id"), [2**63], "the vocabulary of"),
    (("scales", "price", "std"), -1, "the scale of 'price' is not well formed"), (("scales", "price", "mean"), "1", "not well formed"), (("scales", "price", "log"), 1, "not well formed"),
    (("scales", "price", "std"), 10**400, "not well formed"), (("frames", "log"), [], "the tensors are not those"), (("frames", "log", 0), KeyError, "the tensors are not those"),
    (("frames", "log", 2, "words"), ["cart"], "stand for nothing"), (("frames", "log", 2, "words"), None, "scenarios are not those of the log"), (("frames", "log", 0, "name"), "item_id", "a column twice"),
    (("frames", "log", 0, "name"), "other", "there is no column 'user_id'"), (("frames", "items", 0, "name"), "other", "no column 'item_id'"), (("frames", "users", 0, "words"), ["a"], "stand for nothing")])
def test_what_was_edited_is_said(place, files, path, to, says):
    with pytest.raises(ValueError) as e: load(place, edit(files, *path, to=to))
    assert says in str(e.value) and f"{place/JSON} is damaged, or is not what Preprocessor.save wrote (" in str(e.value)


@pytest.mark.wrong("… is damaged or was edited (its own checksum differs): copy it again, or fit and save again", area="files",
                   cause="Some bytes of preprocess.json have changed since it was written.", remedy="Copy the folder again, or fit and save again.")
@pytest.mark.wrong("… is damaged, or is not the partner of the … beside it (its checksum differs): copy both again, or fit and save again", area="files",
                   cause="Some bytes have changed, or one file is newer than the other.", remedy="Copy both files again, or fit and save again.")
@pytest.mark.wrong("… has format …, this version reads …: fit and save again", area="files", cause="Another version of the package wrote the folder.",
                   remedy="Fit and save again, or use the version that wrote it.")
def test_damage_and_other_formats(place, files, tmp_path):
    with pytest.raises(ValueError) as e: load(place, files | {JSON: files[JSON].replace(b'"min_count": 1', b'"min_count": 2')})
    assert str(e.value) == f"{place/JSON} is damaged or was edited (its own checksum differs): copy it again, or fit and save again"
    preprocess.Preprocessor(SCHEMA).fit(TEST, MALL.users, MALL.items).save(tmp_path)
    with pytest.raises(ValueError) as e: load(place, files | {TENSORS: (tmp_path/TENSORS).read_bytes()})
    assert f"{place/TENSORS} is damaged, or is not the partner of the preprocess.json beside it (its checksum differs): copy both again" in str(e.value)
    for format, shown in ((1, 1), (99, 99), (10**30, "unknown"), (None, "unknown"), (2.0, "unknown"), (True, "unknown"), (DEEP, "unknown")):
        with pytest.raises(ValueError) as e: load(place, edit(files, "format", to=format))
        assert str(e.value) == f"{place} has format {shown}, this version reads 2: fit and save again"


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"null", b"\xff", b"["*100_000, b'{"a":'*50_000, b'{"format": ' + b"9"*10_000 + b"}", b'{"format": NaN}', b'{"format": 2}'])
def test_json_that_is_none(place, files, text): assert load_or_refuse(place, files | {JSON: text}) is None


@pytest.mark.wrong("… is a pickle or a zip file, which can run code when opened, so it is not read: save again with …", area="files",
                   cause="The file was made by torch.save or pickle.", remedy="Never open such a file from others; save again with Preprocessor.save.")
def test_pickles_are_refused_unopened(place, files, tmp_path):
    class Bomb:
        def __reduce__(self): return (open, (str(tmp_path/"ran"), "w"))
    torch.save(dict(x=torch.zeros(2)), tmp_path/"zip")
    for name in (JSON, TENSORS):
        for content in (pickle.dumps(Bomb()), pickle.dumps(Bomb(), 2), (tmp_path/"zip").read_bytes()):
            with pytest.raises(ValueError) as e: load(place, files | {name: content})
            assert f"{place/name} is a pickle or a zip file, which can run code when opened, so it is not read: save again with " in str(e.value)
    assert not (tmp_path/"ran").exists()


def test_a_file_that_is_missing(saved, tmp_path):
    for name in (JSON, TENSORS):
        shutil.copytree(saved, tmp_path/name)
        (tmp_path/name/name).unlink()
        with pytest.raises(FileNotFoundError) as e: preprocess.Preprocessor.load(tmp_path/name)
        assert f"{tmp_path/name/name} is not there: give the folder that " in str(e.value)


# ---- what is saved

def test_damage_needs_no_memory(place, files):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in (("min_count",), ("history_words",), ("scales", "price", "mean"), ("rate", 0)): load_or_refuse(place, edit(files, *path, to=10**18))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_folder_is_overwritten_as_a_whole(files, tmp_path, monkeypatch):
    "A run that is killed between the two files leaves a pair that load refuses, not one that lies."
    PREP.save(tmp_path)
    written, whole = [], preprocess.write_whole
    def stop(path, content):
        if written: raise OSError(28, "No space left on device", str(path))
        written.append(path.name)
        whole(path, content)
    monkeypatch.setattr(preprocess, "write_whole", stop)
    with pytest.raises(OSError): preprocess.Preprocessor(SCHEMA).fit(TEST, MALL.users, MALL.items).save(tmp_path)
    assert written == [TENSORS]
    with pytest.raises(ValueError, match="is not the partner of"): preprocess.Preprocessor.load(tmp_path)


@pytest.mark.parametrize("ids", [lambda x: x, lambda x: x.astype(str), lambda x: x.astype("Int64"), lambda x: x.astype(float), lambda x: x.astype(str).astype("category"), lambda x: x.astype("int32")])
def test_ids_of_every_kind_come_back(tmp_path, ids):
    mall = toy_mall(n_users=30, n_items=12, n_events=300, seed=1)
    train, users, items = (f.assign(**{c: ids(f[c]) for c in ("user_id", "item_id") if c in f}) for f in (mall.events, mall.users, mall.items))
    for frames in ((users, items), ()):
        schema = Schema() if frames else Schema(categorical=(), numeric=())
        prep = preprocess.Preprocessor(schema).fit(train, *frames)
        prep.save(tmp_path)
        one, two = (p.transform(train) for p in (prep, preprocess.Preprocessor.load(tmp_path)))
        assert all(torch.equal(getattr(one, p), getattr(two, p)) for p in PARTS)


def test_no_length_of_the_header_looks_like_a_pickle(tmp_path):
    "A safetensors file begins with the length of its header, and 80 05 in hexadecimal is also how a pickle begins."
    alike = []
    for rows, width in [(r, w) for r in (40, 200) for w in range(8)]:
        users = pd.DataFrame(0, range(rows), ["user_id", *(f"c{k}" for k in range(width))]).assign(user_id=range(rows), age_band="a")
        prep = preprocess.Preprocessor(SCHEMA).fit(TRAIN, users, MALL.items)
        prep.save(tmp_path)
        alike.append((tmp_path/TENSORS).read_bytes()[:1] == b"\x80")
        assert torch.equal(preprocess.Preprocessor.load(tmp_path).transform(TEST).fields, prep.transform(TEST).fields)
    assert any(alike) and not all(alike)
