"""What is kept on disk is there whole or not at all, is what was written, and cannot run code; whatever
interrupts it."""
import errno
import hashlib
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import tempfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load as tensors_of
from safetensors.torch import save as file_of

from multiscene_rec import storage

wrong = pytest.mark.wrong
ABOUT = dict(format=3, name="a model", sizes=[1, 2.5, None, True], nested=dict(a="ü", b=[[]]))
FILES = "model.json", "model.safetensors"


def numbers(seed=0):
    "Tensors of every kind that a record may hold."
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 3, generator=g)
    kinds = dict(f32=x, f64=x.double(), f16=x.half(), bf16=x.bfloat16(), i64=(x*1e6).long() * 2**40,
                 i32=(x*9).int(), i16=(x*9).short(), i8=(x*9).char(),
                 u8=(x.abs()*9).byte(), bool=x > 0)
    return kinds | dict(scalar=torch.tensor(7.), none=torch.zeros(0, 5), across=x.T, part=x[1:, :2], again=x)


def write(folder, about=ABOUT, tensors=None, name="model"):
    return storage.write_record(folder, name, about, numbers() if tensors is None else tensors)


def read(folder, format=3, name="model"): return storage.read_record(folder, name, "Thing.save", format)


def refused(folder, says, kind=ValueError):
    with pytest.raises(kind) as e: read(folder)
    assert says in str(e.value) and "\n" not in str(e.value), str(e.value)
    assert str(folder) in str(e.value), "the file is named"


def equal(a, b):
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and a[k].shape == b[k].shape
                                      and torch.equal(a[k], b[k]) for k in a)


def describe(folder, change):
    "Edit model.json on purpose: its own checksum is computed anew, from the rule in words."
    about = json.loads((folder/"model.json").read_text(encoding="utf-8"))
    change(about)
    about.pop("checksum", None)
    plain = json.dumps(about, separators=(",", ":"))
    (folder/"model.json").write_text(
        json.dumps(about | dict(checksum=hashlib.sha256(plain.encode("ascii")).hexdigest())),
        encoding="utf-8")


# ---- one file

def test_a_file_is_whole_whatever_happens(tmp_path, monkeypatch):
    path = tmp_path/"state"
    storage.write_whole(path, b"old")
    real = os.replace
    def broken(*_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError,
                       match="No space left on device: free space or name another folder; the previous file "
                             "is "
                             "untouched") as e:
        storage.write_whole(path, b"new")
    assert e.value.errno == errno.ENOSPC and str(path) in str(e.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["state"]
    monkeypatch.setattr(os, "replace", real)
    storage.write_whole(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["state"]


@given(st.binary(max_size=200))
def test_what_is_written_is_read(content):
    with tempfile.TemporaryDirectory() as folder:
        storage.write_whole(Path(folder)/"x", content)
        if content[:1] != b"\x80" and content[:4] != b"PK\x03\x04":
            assert storage.read_whole(Path(folder)/"x", "save") == content


@wrong("… is a pickle or a zip file, which can run code when opened, so it is not read: save again with …",
       area="files",
       cause="The file was written by pickle or torch.save, and opening such a file can run what its writer "
             "wants.", remedy="Save again with the function that the message names.")
@pytest.mark.parametrize("content", [pickle.dumps(1), *(pickle.dumps([1, "a"], k) for k in (2, 3, 4, 5)),
                                     b"PK\x03\x04rest"])
def test_a_pickle_is_never_opened(content, tmp_path):
    (tmp_path/"weights").write_bytes(content)
    with pytest.raises(ValueError,
                       match="weights is a pickle or a zip file, which can run code when opened, so it is "
                             "not read: save again with save"):
        storage.read_whole(tmp_path/"weights", "save")


class Bomb:
    "What a pickle can do."
    def __reduce__(self): return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", FILES)
def test_no_pickle_runs_under_the_name_of_a_record(tmp_path, monkeypatch, protocol, name):
    monkeypatch.setenv("BOMB", str(tmp_path/"ran"))
    write(tmp_path/"here")
    content = pickle.dumps(Bomb(), protocol)
    (tmp_path/"here"/name).write_bytes(content)
    if name.endswith("safetensors"):
        describe(tmp_path/"here", lambda a: a.update(sha256=hashlib.sha256(content).hexdigest()))
    refused(tmp_path/"here", name)
    torch.save(Bomb(), tmp_path/"here"/name)
    refused(tmp_path/"here", "is a pickle or a zip file, which can run code when opened")
    assert not (tmp_path/"ran").exists()


def test_safetensors_whose_length_looks_like_a_pickle_are_read(tmp_path):
    content = (0x0580).to_bytes(8, "little") + b"{" + b" "*0x57f
    storage.write_whole(tmp_path/"x", content)
    assert storage.read_whole(tmp_path/"x", "save") == content


# ---- checksums

plain = st.recursive(st.integers() | st.text(max_size=5) | st.booleans() | st.none()
                     | st.floats(allow_nan=False, allow_infinity=False), lambda x: st.lists(x, max_size=3),
                     max_leaves=8)


@given(st.dictionaries(st.text(max_size=5), plain, max_size=5))
def test_a_checksum_sees_the_content_and_not_the_spaces(known):
    text = json.dumps({k: v for k, v in known.items() if k != "checksum"}, separators=(",", ":"))
    assert storage.checksum(known) == hashlib.sha256(text.encode()).hexdigest() == storage.checksum(
        json.loads(json.dumps(known, indent=3)))
    assert storage.checksum(known | {"one more": 1}) != storage.checksum({k: v for k, v in known.items()
        if k != "one more"})


def test_a_checksum_sees_the_order():
    assert storage.checksum(dict(a=1, b=2)) != storage.checksum(dict(b=2, a=1))


def test_a_checksum_of_what_json_does_not_have():
    with pytest.raises(ValueError): storage.checksum(dict(rate=float("nan")))


def test_the_checksum_of_a_record_is_known_before_it_is_written(tmp_path):
    expected = storage.record_checksum(ABOUT, numbers())
    assert write(tmp_path) == expected == read(tmp_path)[0]["checksum"]
    changes = [dict(about=ABOUT | dict(name="b")), dict(tensors=numbers(seed=1)), dict(tensors={}),
               dict(about=ABOUT | dict(format=4))]
    assert len({expected, *(storage.record_checksum(**(dict(about=ABOUT, tensors=numbers()) | c))
                        for c in changes)}) == 5


# ---- records

def test_a_record_comes_back_in_every_kind(tmp_path):
    write(tmp_path/"new"/"folder")
    about, tensors = read(tmp_path/"new"/"folder")
    assert {k: v for k, v in about.items() if k != "checksum"} == {k: v for k, v in ABOUT.items()
        if k != "format"}
    assert sorted(tensors) == sorted(numbers()) and equal({k: tensors[k] for k in numbers()}, numbers())
    assert sorted(os.listdir(tmp_path/"new"/"folder")) == sorted(FILES)
    assert tensors["i64"].abs().max() > 2**53, "numbers that a float cannot hold"


def test_tensors_may_be_learned_shared_and_not_finite(tmp_path):
    x = torch.nn.Parameter(torch.tensor([math.nan, math.inf, -math.inf, -0.]))
    write(tmp_path, tensors=dict(a=x, b=x, c=x.view(2, 2)))
    tensors = read(tmp_path)[1]
    for name, was in dict(a=x, b=x, c=x.view(2, 2)).items():
        assert tensors[name].view(torch.int32).equal(was.detach().view(torch.int32)) and not tensors[
            name].requires_grad, "bit for bit"


def test_writing_changes_nothing_that_is_given(tmp_path):
    about, tensors = dict(ABOUT), numbers()
    write(tmp_path, about, tensors)
    assert about == ABOUT and equal(tensors, numbers())
    read(tmp_path)[1]["f32"].zero_()
    assert equal({"f32": read(tmp_path)[1]["f32"]}, {"f32": numbers()["f32"]})


@pytest.mark.parametrize("about, kind, says",
    [(dict(format=1, rate=math.nan), ValueError, "not JSON compliant"),
     (dict(format=1, rate=[math.inf]), ValueError, "not JSON compliant"),
    (dict(format=1, a=np.float32(1)), TypeError, "float32"), (dict(format=1, a={1, 2}), TypeError, "set"),
     (dict(), ValueError, "needs a whole number as format"),
    (dict(format="1"), ValueError, "needs a whole number"),
     (dict(format=True), ValueError, "needs a whole number")])
def test_what_a_record_cannot_say(tmp_path, about, kind, says):
    write(tmp_path)
    with pytest.raises(kind, match=says): write(tmp_path, about)
    assert equal({k: read(tmp_path)[1][k] for k in numbers()}, numbers()), "the old record is untouched"


def test_a_record_without_tensors_is_one_file(tmp_path):
    assert write(tmp_path, tensors={}) == storage.record_checksum(ABOUT, {})
    assert os.listdir(tmp_path) == ["model.json"] and read(tmp_path)[1] == {}
    write(tmp_path)
    assert len(read(tmp_path)[1]) == len(numbers())
    write(tmp_path, tensors={})
    assert os.listdir(tmp_path) == ["model.json"] and read(tmp_path)[1] == {}


def test_two_records_in_one_folder(tmp_path):
    write(tmp_path, name="a")
    write(tmp_path, dict(format=3, other=1), dict(x=torch.ones(2)), "b")
    assert sorted(read(tmp_path, name="a")[1]) == sorted(numbers()) and read(tmp_path,
        name="b")[0]["other"] == 1


@wrong("… does not exist: give the folder that … wrote", area="files",
       cause="The folder is another one, or a file of it was not copied.",
       remedy="Name the folder that the function in the message wrote.")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(tmp_path, name):
    write(tmp_path)
    (tmp_path/name).unlink()
    refused(tmp_path, f"{name} does not exist: give the folder that Thing.save wrote", FileNotFoundError)


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path/"file").write_text("here")
    for name in ("nowhere", "file"):
        refused(tmp_path/name, "model.json does not exist: give the folder that Thing.save wrote",
                FileNotFoundError)


@wrong("… is a pickle by its name, which can run code when opened, so it is not read: save again with …",
       area="files",
       cause="The folder holds a model of another program, as a pickle.",
       remedy="Save the model again with the function that the message names.")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "last.ckpt"])
def test_a_folder_with_a_pickle_in_the_place_of_a_record(tmp_path, name):
    torch.save(dict(w=torch.ones(2)), tmp_path/name)
    refused(tmp_path,
            f"{name} is a pickle by its name, which can run code when opened, so it is not read: save again "
            "with Thing.save")
    write(tmp_path)
    assert read(tmp_path), "beside a record it is nobody's business"


@wrong("… is damaged, or does not belong to the … beside it: its checksum differs; copy both again, or "
       "save them again with …", area="files",
       cause="The two files come from two records, or the numbers changed on the way.",
       remedy="Copy both files of one folder together, or save again.")
@wrong("… is damaged or was edited: it does not match its checksum; copy it again, or save it again with …",
       area="files", cause="The description changed on the way, or was edited by hand.",
       remedy="Copy the file again, or save again.")
@given(data=st.data())
def test_one_flipped_bit_in_either_file(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flip")
    write(folder)
    name = data.draw(st.sampled_from(FILES))
    content = bytearray((folder/name).read_bytes())
    at, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    content[at] ^= 1 << bit
    (folder/name).write_bytes(content)
    if name.endswith("json") and _same_json(content, folder): return  # a space more or less says nothing
    with pytest.raises(ValueError) as e: read(folder)
    assert str(folder/name) in str(e.value) or name.endswith("json") and "model.safetensors" in str(e.value)
    if name.endswith("safetensors"):
        says = ("is damaged, or does not belong to the model.json beside it: its checksum differs; copy "
                "both again, or save them again with Thing.save")
        assert says in str(e.value) or "is a pickle or a zip file" in str(e.value)


def _same_json(content, folder):
    write(folder/"whole")
    try: return json.loads(content) == json.loads((folder/"whole"/"model.json").read_bytes())
    except ValueError: return False


@wrong("… is damaged: …; copy it again, or save it again with …", area="files",
       cause="The description was cut short, or is no JSON.", remedy="Copy the file again, or save again.")
@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -20, -1])
def test_cut_files(tmp_path, keep):
    write(tmp_path)
    for name in FILES:
        path, content = tmp_path/name, (tmp_path/name).read_bytes()
        path.write_bytes(content[:keep])
        refused(tmp_path, f"{name} is damaged")
        path.write_bytes(content)
    read(tmp_path)


def test_the_partner_of_another_record(tmp_path):
    for k in (0, 1): write(tmp_path/str(k), tensors=numbers(seed=k))
    os.replace(tmp_path/"1"/"model.safetensors", tmp_path/"0"/"model.safetensors")
    refused(tmp_path/"0",
            "model.safetensors is damaged, or does not belong to the model.json beside it: its checksum "
            "differs")


@wrong("… has format …, but this version reads …: save it again with …", area="files",
       cause="The files were written by another version of the package, or are not a record at all.",
       remedy="Save again with the version that you have.")
@pytest.mark.parametrize("found, shown", [(2, "2"), (4, "4"), (-1, "-1"), ("3", "unknown"), (None, "unknown"),
    (3.0, "unknown"), (True, "unknown"), (10**40, "unknown"), ([3], "unknown")])
def test_another_format(tmp_path, found, shown):
    write(tmp_path)
    describe(tmp_path, lambda a: a.update(format=found))
    refused(tmp_path,
            f"model.json has format {shown}, but this version reads 3: save it again with Thing.save")
    describe(tmp_path, lambda a: a.pop("format"))
    refused(tmp_path, "model.json has format unknown, but this version reads 3")


@pytest.mark.parametrize("text", ["[]", "[1, 2]", '"x"', "3", "null", "true", "{}", '{"format": 3}',
    '{"format": 3, "checksum": null}', "[" * 100_000, "NaN", '{"format": 3, "a": Infinity}'])
def test_a_json_that_is_no_description(tmp_path, text):
    write(tmp_path)
    (tmp_path/"model.json").write_text(text)
    refused(tmp_path, "model.json ")


@pytest.mark.parametrize("value", [None, 5, ["a"], "0"*64, "../x"])
def test_a_checksum_of_numbers_that_is_none(tmp_path, value):
    write(tmp_path)
    describe(tmp_path, lambda a: a.update(sha256=value))
    refused(tmp_path, "model.")


def test_numbers_that_are_no_safetensors(tmp_path):
    write(tmp_path)
    for content in (b"", b"\0"*8, b"hello", (2**40).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little")
                    + b"[]"):
        (tmp_path/"model.safetensors").write_bytes(content)
        describe(tmp_path, lambda a, content=content: a.update(sha256=hashlib.sha256(content).hexdigest()))
        refused(tmp_path, "model.safetensors is damaged: ")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z: z.writestr("data", b"x")
    (tmp_path/"model.safetensors").write_bytes(out.getvalue())
    refused(tmp_path, "is a pickle or a zip file")


# ---- interrupted

class Killed(BaseException): "As if the machine had stopped here."


def interrupted(monkeypatch, at, action):
    "Run something and stop it before the nth renaming; whether it was stopped."
    real, count = os.replace, 0
    def replace(*args):
        nonlocal count
        if count == at: raise Killed
        count += 1
        return real(*args)
    with monkeypatch.context() as m:
        m.setattr(os, "replace", replace)
        try: action()
        except Killed: return True
    return False


@pytest.mark.parametrize("kills", [(a, b, c) for a in range(4) for b in range(4) for c in range(4)])
def test_a_writer_killed_at_any_renaming_leaves_the_old_record_or_the_new_one(tmp_path, monkeypatch, kills):
    """Three writers, one after the other, each stopped before its first, second, third or no renaming.
    Renaming is what makes a change visible."""
    write(tmp_path, ABOUT | dict(k=-1), numbers(9))
    last = -1
    for k, at in enumerate(kills):
        interrupted(monkeypatch, at, lambda: write(tmp_path, ABOUT | dict(k=k), numbers(k)))
        about, tensors = read(tmp_path)
        assert about["k"] in (last, k) and equal({n: tensors[n] for n in numbers()},
                                                 numbers(9 if about["k"] == -1 else about["k"]))
        last = about["k"]
    write(tmp_path, ABOUT | dict(k=7), numbers(7))
    assert read(tmp_path)[0]["k"] == 7 and sorted(os.listdir(tmp_path)) == sorted(FILES)


@pytest.mark.parametrize("first, second", [({}, None), (None, {}), ({}, {})])
def test_killed_between_records_with_and_without_tensors(tmp_path, monkeypatch, first, second):
    for at in range(3):
        folder = tmp_path/str(at)
        write(folder, tensors=first)
        interrupted(monkeypatch, at, lambda: write(folder, ABOUT | dict(k=1), second))
        about, tensors = read(folder)
        assert len(tensors) == (len(numbers()) if (second if "k" in about else first) is None else 0)


def test_both_places_of_the_numbers_are_read(tmp_path):
    """Between the two renames the new numbers have their first name still; before them the old ones are
    under the last one."""
    write(tmp_path/"new", tensors=numbers(1))
    write(tmp_path)
    before = {name: (tmp_path/name).read_bytes() for name in FILES}
    (tmp_path/"model.next.safetensors").write_bytes((tmp_path/"new"/"model.safetensors").read_bytes())
    assert equal({"f32": read(tmp_path)[1]["f32"]},
                 {"f32": numbers()["f32"]}), "the old record, with what counts not yet renamed"
    (tmp_path/"model.json").write_bytes((tmp_path/"new"/"model.json").read_bytes())
    assert (tmp_path/"model.safetensors").read_bytes() == before["model.safetensors"]
    assert equal({"f32": read(tmp_path)[1]["f32"]}, {"f32": numbers(1)["f32"]}), "the new one"


# quicker, where there is one
OTHERS = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn")


def _write_again_and_again(folder, seconds):
    end, k = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        k += 1
        storage.write_record(folder, "model", dict(format=3, k=k), dict(x=torch.full((300,), float(k))))


def test_a_reader_beside_a_writer_sees_whole_records_only(tmp_path):
    _write_again_and_again(tmp_path, 0.01)
    child = OTHERS.Process(target=_write_again_and_again, args=(tmp_path, 2.))
    child.start()
    seen = []
    try:
        while child.is_alive():
            about, tensors = read(tmp_path)
            assert (tensors["x"] == about["k"]).all()
            seen.append(about["k"])
    finally:
        child.kill()
        child.join()
    assert len(seen) > 20 and len(set(seen)) > 5 and seen[-1] > seen[0]


@pytest.mark.parametrize("after", [.0, .1, .13, .16])
def test_a_writer_that_is_killed_for_real(tmp_path, after):
    child = OTHERS.Process(target=_write_again_and_again, args=(tmp_path, 60))
    child.start()
    try:
        while not (tmp_path/"model.safetensors").exists(): time.sleep(.01)
        time.sleep(after)
    finally:
        child.kill()
        child.join()
    about, tensors = read(tmp_path)
    assert (tensors["x"] == about["k"]).all()
    write(tmp_path)
    with storage.sole_writer(tmp_path): pass
    assert sorted(os.listdir(tmp_path)) in (sorted(FILES), sorted([".lock", *FILES]))


def test_a_full_disk_leaves_the_old_record(tmp_path, monkeypatch):
    write(tmp_path)
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: free space or name another folder"):
        write(tmp_path, ABOUT | dict(k=1), numbers(1))
    monkeypatch.undo()
    assert "k" not in read(tmp_path)[0] and sorted(os.listdir(tmp_path)) == sorted(FILES)


# ---- headers, finite numbers

def test_a_header_tells_the_shapes_without_the_numbers(tmp_path):
    big = dict(x=torch.zeros(2000, 1000), y=torch.zeros(3), z=torch.tensor(1.))
    (tmp_path/"big.safetensors").write_bytes(file_of(big))
    tracemalloc.start()
    assert storage.header(tmp_path/"big.safetensors") == dict(x=(2000, 1000), y=(3,), z=())
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    whole = (tmp_path/"big.safetensors").read_bytes()
    for content in (b"", b"{}", whole[:-1], whole[:50], whole + b"x", (2**50).to_bytes(8, "little") + b"{}"):
        (tmp_path/"cut.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="cut.safetensors is damaged: "):
            storage.header(tmp_path/"cut.safetensors")
    with pytest.raises(ValueError, match="none.safetensors is damaged: "):
        storage.header(tmp_path/"none.safetensors")


@wrong("…: tensor … is not finite: it holds nan or infinity; train again with a smaller lr", area="training",
       cause="The weights have run away, often from too large a step.",
       remedy="Train again with a smaller lr; nothing was written.")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_numbers_that_ran_away(value, kind):
    good = dict(a=torch.ones(3), n=torch.tensor([1, 2]), b=torch.tensor([True]))
    storage.check_finite(good, "save")
    with pytest.raises(ValueError,
                       match="save: tensor 'w' is not finite: it holds nan or infinity; train again with a "
                             "smaller lr"):
        storage.check_finite(good | dict(w=torch.tensor([1., value]).to(kind)), "save")


# ---- a module from a record

class Net(torch.nn.Module):
    "Layers, a buffer of whole numbers, and two names for one parameter."
    def __init__(self, width=3, tie=False):
        super().__init__()
        if width < 1: raise ValueError("width must be 1 or more")
        self.a, self.b = torch.nn.Linear(2, width), torch.nn.Linear(width, 2)
        self.register_buffer("steps", torch.zeros(4, dtype=torch.int64))
        if tie: self.c = self.a


def test_a_module_gets_the_numbers_of_its_record(tmp_path):
    torch.manual_seed(3)
    net = Net()
    net.steps += 2**60
    write(tmp_path, tensors=net.state_dict())
    made = storage.build_from(tmp_path/"model", Net, read(tmp_path)[1])
    assert equal(made.state_dict(), net.state_dict()) and made.training and all(p.requires_grad
        for p in made.parameters())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_a_module_keeps_the_precision_of_its_record(tmp_path, kind):
    write(tmp_path, tensors=Net().to(kind).state_dict())
    made = storage.build_from(tmp_path/"model", Net, read(tmp_path)[1])
    assert {p.dtype for p in made.parameters()} == {kind} and made.steps.dtype == torch.int64
    mixed = Net()
    mixed.b.to(kind)
    write(tmp_path, tensors=mixed.state_dict())
    again = storage.build_from(tmp_path/"model", Net, read(tmp_path)[1])
    assert equal(again.state_dict(), mixed.state_dict()), "each tensor in its own precision"
    tied = storage.build_from(tmp_path/"model", lambda: Net(tie=True), Net(tie=True).to(kind).state_dict())
    assert tied.c.weight is tied.a.weight and tied.a.weight.dtype == kind


@wrong("… does not fit the model that … describes: …", area="files",
       cause="The numbers are those of a model of another size or kind.",
       remedy="Copy both files of one folder together, or save again.")
@pytest.mark.parametrize("change, says", [
    (lambda t: t.update({"a.weight": torch.zeros(4, 2)}), "a.weight"), (lambda t: t.pop("b.bias"), "b.bias"),
    (lambda t: t.update(extra=torch.zeros(1)), "extra"),
    (lambda t: t.update(steps=torch.zeros(4)), "steps"),
    (lambda t: t.update(steps=torch.zeros(4, dtype=torch.int32)), "steps"),
    (lambda t: t.update({"a.bias": torch.zeros(3).int()}), "a.bias"),
    (lambda t: t.clear(), "a.bias, a.weight, b.bias, b.weight, steps")])
def test_numbers_of_another_module_are_named_before_it_is_built(tmp_path, change, says):
    tensors, built = Net().state_dict(), []
    change(tensors)
    def make():
        net = Net()
        if not net.a.weight.is_meta: built.append(net)
        return net
    with pytest.raises(ValueError) as e: storage.build_from(tmp_path/"model", make, tensors)
    path = tmp_path/"model"
    assert str(e.value) == f"{path}.safetensors does not fit the model that {path}.json describes: {says}"
    assert not built


def test_a_description_that_asks_for_too_much_costs_no_memory(tmp_path):
    tracemalloc.start()
    with pytest.raises(ValueError, match="does not fit the model"):
        storage.build_from(tmp_path/"model", lambda: Net(10**11), Net().state_dict())
    assert tracemalloc.get_traced_memory()[1] < 1e7
    tracemalloc.stop()


@wrong("… does not describe a model: …", area="files",
       cause="The description holds a value that no model has.", remedy="Copy the file again, or save again.")
@pytest.mark.parametrize("make", [lambda: Net(0), lambda: Net("a"), lambda: Net(None), lambda: {}["x"],
                                  lambda: 1/0, lambda: [].x, lambda: Net(10**30)])
def test_a_description_of_no_model(tmp_path, make):
    with pytest.raises(ValueError, match="model.json does not describe a model: "):
        storage.build_from(tmp_path/"model", make, Net().state_dict())


def test_building_leaves_the_random_numbers_alone(tmp_path):
    tensors = Net().state_dict()
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        wanted = torch.rand(3).tolist(), random.random(), np.random.rand()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        storage.build_from(tmp_path/"model", Net, tensors)
        assert (torch.rand(3).tolist(), random.random(), np.random.rand()) == wanted


# ---- a table as tensors

def packed(frame, tmp_path):
    "The frame, after it went to the disk and came back."
    tensors = {}
    columns = storage.pack_frame(frame, "users", tensors)
    write(tmp_path, dict(format=3, users=columns), tensors or {"none": torch.zeros(1)})
    about, tensors = read(tmp_path)
    return storage.unpack_frame(about["users"], "users", tensors)


def test_a_frame_comes_back_with_its_types(tmp_path):
    frame = pd.DataFrame(dict(
        i=np.array([1, -2**62, 3]), i32=np.array([1, 2, 3], dtype=np.int32),
        u8=np.array([0, 255, 7], dtype=np.uint8), u64=np.array([2**64 - 1, 0, 1], dtype=np.uint64),
        f=[.1, np.nan, -np.inf], f32=np.array([.1, 2, 3], dtype=np.float32), yes=[True, False, True]))
    pd.testing.assert_frame_equal(packed(frame, tmp_path), frame)
    backwards = frame[list(frame)[::-1]]
    assert list(packed(backwards, tmp_path)) == list(backwards)
    pd.testing.assert_frame_equal(packed(frame.iloc[::-1].reset_index(drop=True), tmp_path),
                                  frame.iloc[::-1].reset_index(drop=True))


@pytest.mark.parametrize("values, wanted", [
    (["b", "a", "b"], ["b", "a", "b"]), (["ü", "", "007"], ["ü", "", "007"]),
    (["a", None, np.nan], ["a", None, None]), ([None, None, None], [None]*3),
    (pd.array([3, None, 2**62], dtype="Int64"), [3, None, 2**62]), (pd.array([.5, None, 1], dtype="Float64"),
        [.5, None, 1.]), (pd.array([True, None, False], dtype="boolean"), [True, None, False]),
    (pd.Categorical(["x", "y", None], categories=["y", "x", "z"]), ["x", "y", None]),
    (pd.array(["p", None, "q"], dtype="string"), ["p", None, "q"]), ([1, "1", 2], [1, "1", 2])])
def test_words_come_back_as_they_were(tmp_path, values, wanted):
    found = packed(pd.DataFrame(dict(n=[1., 2., 3.], c=values)), tmp_path).c.tolist()
    assert found == wanted and [type(v) for v in found] == [type(v) for v in wanted]


def test_frames_without_rows_or_columns(tmp_path):
    none = pd.DataFrame(dict(a=np.zeros(0), b=np.zeros(0, dtype=object)))
    found = packed(none, tmp_path)
    assert list(found) == ["a", "b"] and len(found) == 0
    assert packed(pd.DataFrame(), tmp_path).empty


@wrong("column … of … cannot be stored: it holds …, not numbers or text; convert it with .astype(str)",
       area="files", cause="A column of the log, the users or the items holds dates, lists or other things.",
       remedy="Convert the column to text or numbers.")
@pytest.mark.parametrize("values, kind", [(pd.to_datetime(["2026-01-01", "2026-01-02"]), "Timestamp"),
    ([(1, 2), (3, 4)], "tuple"), (["a", (1,)], "tuple"), ([1j, 2j], "complex")])
def test_columns_that_cannot_be_kept(values, kind):
    with pytest.raises(ValueError) as e: storage.pack_frame(pd.DataFrame(dict(c=values)), "users", {})
    assert str(
        e.value) == (
            f"column 'c' of users cannot be stored: it holds {kind}, not numbers or text; convert it "
                     "with .astype(str)")


def test_words_that_are_not_there():
    columns = [dict(name="c", words=["a", "b"])]
    for code in (2, -2, 10**9):
        with pytest.raises(ValueError, match="column 'c' of users points past the end of its list of words"):
            storage.unpack_frame(columns, "users", {"users.0": torch.tensor([0, code])})
    with pytest.raises(KeyError): storage.unpack_frame(columns, "users", {})


# ---- folders

def _hold(folder, ready):
    with storage.sole_writer(folder):
        ready.set()
        time.sleep(60)


def _work(out, ready):
    with storage.replaced_folder(out) as work:
        (work/"run"/"a").write_text("child")
        (work/"checkpoint").write_text("epoch 3")
        ready.set()
        time.sleep(60)


class held:
    "Another process that holds a folder until it is killed."
    def __init__(self, what, path):
        self.ready = OTHERS.Event()
        self.child = OTHERS.Process(target=what, args=(path, self.ready))

    def __enter__(self):
        self.child.start()
        assert self.ready.wait(60)

    def __exit__(self, *_):
        self.child.kill()
        self.child.join()


@wrong("another run is writing into …: wait until it ends, or name another folder", area="files",
       cause="Two runs write into one folder.",
       remedy="Wait for the first, or give the second a folder of its own.")
def test_a_folder_has_one_writer_and_a_killed_one_lets_go(tmp_path):
    for name in ("model.123.part", "film.part"): (tmp_path/name).write_bytes(b"half")
    with held(_hold, tmp_path):
        (tmp_path/"model.9.part").write_bytes(b"half")
        with pytest.raises(BlockingIOError,
            match="another run is writing into .*: wait until it ends, or name another folder"):
            with storage.sole_writer(tmp_path): pass
        assert (tmp_path/"model.9.part").exists(), "the other run's file was taken away"
    with storage.sole_writer(tmp_path):
        assert not (tmp_path/"model.9.part").exists() and not (tmp_path/"model.123.part").exists()
    assert (tmp_path/"film.part").exists(), "a file of the user's that only ends like ours"


def listed(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def fill(out, text):
    with storage.replaced_folder(out) as work: (work/"run"/"a").write_text(text)


def test_a_folder_is_swapped_in_whole(tmp_path):
    out = tmp_path/"deep"/"shop"
    fill(out, "one")
    assert listed(tmp_path) == ["deep", "deep/shop", "deep/shop/a"]
    (out/"old only").write_text("x")
    with storage.replaced_folder(out) as work:
        (work/"run"/"a").write_text("two")
        (work/"checkpoint").mkdir()
        assert (out/"a").read_text() == "one" and (out/"old only").exists(), "the old one stays until the end"
        assert work == storage.work_folder(out)
    assert listed(tmp_path) == ["deep", "deep/shop", "deep/shop/a"] and (out/"a").read_text() == "two"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_an_error_inside_leaves_the_old_folder_and_the_checkpoint(tmp_path, error):
    out = tmp_path/"shop"
    fill(out, "one")
    with pytest.raises(type(error)):
        with storage.replaced_folder(out) as work:
            (work/"run"/"a").write_text("two")
            (work/"checkpoint").mkdir()
            (work/"checkpoint"/"c").write_text("epoch 3")
            raise error
    assert (out/"a").read_text() == "one" and listed(tmp_path/".shop.work")[-2:] == ["checkpoint",
        "checkpoint/c"] and not (tmp_path/".shop.work"/"run").exists()
    with storage.replaced_folder(out) as work:  # the next run finds it
        assert (work/"checkpoint"/"c").read_text() == "epoch 3" and os.listdir(work/"run") == []
        (work/"run"/"a").write_text("three")
    assert listed(tmp_path) == ["shop", "shop/a"] and (out/"a").read_text() == "three"


def test_an_error_before_anything_was_kept_leaves_nothing(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError):
            with storage.replaced_folder(tmp_path/"shop"): raise ValueError("no such log")
        assert listed(tmp_path) == []


def test_a_killed_run_leaves_the_old_folder_and_its_checkpoint(tmp_path):
    out = tmp_path/"shop"
    fill(out, "one")
    with held(_work, out):
        with pytest.raises(BlockingIOError,
            match=f"another run is writing into {out}: wait until it ends, or name another folder"):
            fill(out, "two")
        assert (tmp_path/".shop.work"/"checkpoint").exists() and (out/"a").read_text() == "one"
    assert (out/"a").read_text() == "one"
    with storage.replaced_folder(out) as work:
        assert (work/"checkpoint").read_text() == "epoch 3" and os.listdir(work/"run") == []
        (work/"run"/"a").write_text("three")
    assert listed(tmp_path) == ["shop", "shop/a"] and (out/"a").read_text() == "three"


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("then", ["read", "write", "write and fail"])
def test_a_swap_that_was_cut_off_is_settled(tmp_path, monkeypatch, at, then):
    "Before the first rename the old folder is in its place; before the second one it has to be put back."
    out = tmp_path/"shop"
    fill(out, "one")
    real = storage._swap
    def cut(out, work):
        if at == 1: os.replace(out, work/"old")
        os._exit(9)
    pid = os.fork() if hasattr(os, "fork") else pytest.skip("needs fork")
    if pid == 0:
        storage._swap = cut
        try: fill(out, "two")
        finally: os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9 and storage._swap is real
    assert out.exists() == (at == 0)
    if then == "read": assert storage.settle(out) == out and (out/"a").read_text() == "one"
    elif then == "write":
        fill(out, "three")
        assert (out/"a").read_text() == "three" and listed(tmp_path) == ["shop", "shop/a"]
    else:
        with pytest.raises(ValueError):
            with storage.replaced_folder(out): raise ValueError
        assert (out/"a").read_text() == "one" and listed(tmp_path) == ["shop", "shop/a"]


def test_cut_off_after_the_second_rename(tmp_path):
    out = tmp_path/"shop"
    fill(out, "two")
    (tmp_path/".shop.work"/"old").mkdir(parents=True)
    (tmp_path/".shop.work"/"old"/"a").write_text("one")
    assert storage.settle(out) == out and (out/"a").read_text() == "two", "the new one counts"
    fill(out, "three")
    assert listed(tmp_path) == ["shop", "shop/a"]


def _look(out, seen): seen.put((storage.settle(out)/"a").read_text())


def test_a_reader_does_not_disturb_a_swap(tmp_path, monkeypatch):
    """In the moment between the two renames a reader waits; to put the old folder back would make the
    second one fail."""
    out, seen, real = tmp_path/"shop", OTHERS.SimpleQueue(), os.replace
    fill(out, "one")
    reader = OTHERS.Process(target=_look, args=(out, seen))
    def slowly(a, b):
        real(a, b)
        if Path(b).name == "old":
            reader.start()
            time.sleep(1 if OTHERS.get_start_method() == "fork" else 8)  # longer than it needs to start
    monkeypatch.setattr(os, "replace", slowly)
    fill(out, "two")
    reader.join(30)
    assert (out/"a").read_text() == "two" and seen.get() == "two"


@wrong("…: the folder cannot be replaced; it is unchanged, and the new one is in …", area="files",
       cause="The folder is one that the system does not let go, such as a mounted disk.",
       remedy="Move the new folder from where it lies, before the next run.")
@pytest.mark.parametrize("which", ["old", "shop"])
def test_a_folder_that_cannot_be_renamed(tmp_path, monkeypatch, which):
    out, real = tmp_path/"shop", os.replace
    fill(out, "one")
    def replace(a, b):
        if Path(b).name == which and Path(a).name != "old":
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(a, b)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError) as e: fill(out, "two")
    monkeypatch.undo()
    assert ("Device or resource busy: the folder cannot be replaced; it is unchanged, and the new one is "
            f"in {tmp_path/'.shop.work'/'run'}" in str(e.value) and str(out) in str(e.value))
    assert (out/"a").read_text() == "one" and (tmp_path/".shop.work"/"run"/"a").read_text() == "two"


@wrong("…: … is first built in the folder around it, which cannot be written to; name a folder inside one "
       "that "
       "you can write to", area="files",
       cause="The folder around the one you named cannot be written to.",
       remedy="Name a folder inside one that is yours.")
def test_nothing_can_be_written_beside_it(tmp_path):
    (tmp_path/"file").write_text("x")
    with pytest.raises(OSError,
                       match="shop is first built in the folder around it, which cannot be written to; name "
                             "a "
                             "folder inside one that you can write to") as e:
        fill(tmp_path/"file"/"shop", "x")
    assert str(tmp_path/"file") in str(e.value)


@wrong("a file of this name exists: name a folder", area="files",
       cause="What you named for a folder is a file.", remedy="Name a folder, or move the file away.")
def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path/"shop").write_text("notes")
    with pytest.raises(FileExistsError, match="a file of this name exists: name a folder"):
        fill(tmp_path/"shop", "x")
    assert (tmp_path/"shop").read_text() == "notes" and listed(tmp_path) == ["shop"]
    assert storage.foreign_file(tmp_path/"shop", "run.json", ("model",)) == "shop"


def test_a_link_is_followed(tmp_path):
    (tmp_path/"disk").mkdir()
    out = tmp_path/"shop"
    out.symlink_to(tmp_path/"disk"/"real", target_is_directory=True)
    fill(out, "one")
    fill(out, "two")
    assert out.is_symlink() and (tmp_path/"disk"/"real"/"a").read_text() == "two" and listed(
        tmp_path/"disk") == ["real", "real/a"]
    assert storage.settle(out) == (tmp_path/"disk"/"real").resolve() and storage.work_folder(out).parent == (
        tmp_path/"disk").resolve()


def test_a_link_inside_is_not_followed(tmp_path):
    "An old folder is removed, not what a link in it points to."
    (tmp_path/"precious").mkdir()
    (tmp_path/"precious"/"x").write_text("x")
    fill(tmp_path/"shop", "one")
    (tmp_path/"shop"/"link").symlink_to(tmp_path/"precious", target_is_directory=True)
    fill(tmp_path/"shop", "two")
    assert (tmp_path/"precious"/"x").read_text() == "x" and not (tmp_path/"shop"/"link").exists()


@pytest.mark.parametrize("names, found", [
    ([], None), (["run.json", "model"], None), (["run.json"], None),
    (["run.json", "model", "notes.txt"], "notes.txt"), (["model"], "model"), (["metrics.csv"], "metrics.csv"),
    ([".DS_Store"], None), (["run.json", "Thumbs.db", ".ipynb_checkpoints"], None),
    (["run.json", ".git"], ".git"), (["zebra", "run.json", "apple"], "apple")])
def test_a_file_that_is_not_ours_is_found(tmp_path, names, found):
    for name in names: (tmp_path/name).write_text("x")
    assert storage.foreign_file(tmp_path, "run.json", ("model", "preprocess")) == found


def test_a_folder_that_is_absent_holds_nothing_foreign(tmp_path):
    assert storage.foreign_file(tmp_path/"no", "run.json", ()) is None


# ---- tables

def test_results_say_where_and_when_they_were_computed(tmp_path):
    table = pd.DataFrame(dict(model=["a", "b"], auc=[.123456789, 1.]))
    written = storage.write_results(tmp_path/"results"/"mall.csv", table)
    found = pd.read_csv(tmp_path/"results"/"mall.csv", dtype=str)
    assert list(found) == list(written) == ["model", "auc", "commit", "hardware", "date"]
    assert found.auc.tolist() == ["0.123457", "1"]
    assert found.date.str.fullmatch(r"\d{4}-\d\d-\d\d").all() and found.hardware.str.contains("core").all()


def test_the_module_lists_what_it_shows():
    found = {n for n, v in vars(storage).items() if callable(v)
             and getattr(v, "__module__", "") == storage.__name__ and not n.startswith("_")}
    assert set(storage.__all__) == found and tensors_of(file_of({"x": torch.ones(1)}))["x"] == 1


def test_a_file_of_the_users_own_inside_a_record_s_folder_is_foreign(tmp_path):
    for name in ("run.json", "model/model.json", "model/model.safetensors"):
        (tmp_path/name).parent.mkdir(exist_ok=True)
        (tmp_path/name).write_text("{}")
    assert storage.foreign_file(tmp_path, "run.json", ("model",)) is None
    (tmp_path/"model"/"notes.txt").write_text("mine")
    assert storage.foreign_file(tmp_path, "run.json", ("model",)) == "model/notes.txt"


class Stepped(torch.nn.Module):
    "Reads numbers while it is built, as schedules of drop-out rates do."
    def __init__(self):
        super().__init__()
        self.rates = [x.item() for x in torch.linspace(0, .5, 3)]
        self.layer = torch.nn.Linear(2, 1)


def test_a_module_that_reads_numbers_while_it_is_built_is_built_all_the_same(tmp_path):
    made = Stepped()
    again = storage.build_from(tmp_path/"model", Stepped, made.state_dict())
    assert torch.equal(again.layer.weight, made.layer.weight)
