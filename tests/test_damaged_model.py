"Model folders that are broken, by accident and on purpose: each is refused with a reason, or gives the model that was saved."
import copy
import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import time
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as tensors_of
from safetensors.torch import save as file_of

from multiscene_rec import model
from test_model import FUSIONS, SPEC, a_batch, a_model, logits

FILES = "model.json", "model.safetensors"
wrong = pytest.mark.wrong


@pytest.fixture
def saved(tmp_path):
    "A model and its folder."
    m = a_model(towers=True)
    m.save(tmp_path/"here")
    return m, tmp_path/"here"


def checked(about):
    "A description with the checksum that belongs to it, computed from the rule in the notebook's words."
    rest = {k: v for k, v in about.items() if k != "checksum"}
    return {**rest, "checksum": hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode("ascii")).hexdigest()}


def read(folder): return json.loads((folder/"model.json").read_text(encoding="utf-8"))


def rewrite(folder, change):
    "Edit model.json on purpose: the checksum is computed anew."
    about = read(folder)
    change(about)
    (folder/"model.json").write_text(json.dumps(checked(about)), encoding="utf-8")


def reweigh(folder, content):
    "Put other weights into a folder, so that their checksum fits."
    (folder/"model.safetensors").write_bytes(content)
    rewrite(folder, lambda a: a.update(sha256=hashlib.sha256(content).hexdigest()))


def refused(folder, says=""):
    with pytest.raises(ValueError, match=says) as e: model.InterestModel.load(folder)
    assert str(folder) in str(e.value), "the file is named"


# What a user meets

@wrong("model.json is not there: give the folder that InterestModel.save wrote", area="files",
       cause="The folder is another one, or a file of it was not copied.", remedy="Name the folder that holds model.json and model.safetensors.")
@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(saved, name):
    (saved[1]/name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is not there: give the folder that InterestModel.save wrote"): model.InterestModel.load(saved[1])


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.json is not there"): model.InterestModel.load(tmp_path/"nowhere")
    (tmp_path/"file").write_text("here")
    with pytest.raises(FileNotFoundError, match="model.json is not there"): model.InterestModel.load(tmp_path/"file")


@wrong("model.safetensors is damaged: …", area="files", cause="The file was cut short, or its bytes changed on the way.",
       remedy="Copy the folder again, or save the model again.")
@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -20, -1])
def test_a_truncated_file(saved, keep):
    for name in FILES:
        path, content = saved[1]/name, (saved[1]/name).read_bytes()
        path.write_bytes(content[:keep])
        refused(saved[1], f"{name} is damaged: ")
        path.write_bytes(content)


@wrong("model.safetensors is damaged, or is not the partner of the model.json beside it", area="files",
       cause="The two files come from two models, or the numbers changed on the way.", remedy="Copy both files of one folder together, or save the model again.")
def test_a_flipped_bit_and_weights_of_another_model_of_the_same_shape(saved, tmp_path):
    path = saved[1]/"model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(saved[1], "model.safetensors is damaged, or is not the partner of the model.json beside it")
    a_model(seed=9, towers=True).save(tmp_path/"other")
    os.replace(tmp_path/"other"/"model.safetensors", path)
    refused(saved[1], "is not the partner of the model.json beside it: its checksum differs")


@pytest.mark.parametrize("options, says", [(dict(towers=True, d_embed=3), "model.json does not fit: it describes a model of [0-9,]+ numbers, model.safetensors beside it holds"),
                                           (dict(towers=True, d_embed=30), "model.safetensors does not fit the model it describes: ")])
def test_weights_of_another_model_of_another_shape(saved, tmp_path, options, says):
    a_model(**options).save(tmp_path/"other")
    os.replace(tmp_path/"other"/"model.safetensors", saved[1]/"model.safetensors")
    refused(saved[1], says)


@wrong("model.json is damaged or was edited: its own checksum differs", area="files",
       cause="model.json was changed after it was written.", remedy="Build the model with other options and save it, instead of editing the file.")
@pytest.mark.parametrize("change", [lambda a: a["options"].update(d_embed=9), lambda a: a["spec"]["scenarios"].reverse(), lambda a: a.update(extra=1),
                                    lambda a: a["spec"].update(fields=dict(reversed(a["spec"]["fields"].items()))), lambda a: a.update(checksum="")])
def test_an_edited_description(saved, change):
    about = read(saved[1])
    change(about)
    (saved[1]/"model.json").write_text(json.dumps(about))
    refused(saved[1], "model.json is damaged or was edited: its own checksum differs; save the model again")


def test_another_layout_of_the_same_description_is_no_damage(saved):
    (saved[1]/"model.json").write_text(json.dumps(read(saved[1]), indent=7, ensure_ascii=True))
    assert torch.equal(logits(model.InterestModel.load(saved[1]), a_batch(SPEC)), logits(saved[0], a_batch(SPEC)))


@wrong("model.json has format …, this version reads 2; save the model again with this version", area="files",
       cause="Another version of the package wrote the folder.", remedy="Train or save the model again with this version.")
@pytest.mark.parametrize("found, shown", [(1, "1"), (3, "3"), (True, "of type bool"), (2., "of type float"), ("2", "of type str"), ([[]], "of type list"), (None, "None")])
def test_another_format(saved, found, shown):
    rewrite(saved[1], lambda a: a.update(format=found))
    refused(saved[1], f"model.json has format {shown}, this version reads 2; save the model again with this version")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"format"', "{}"])
def test_a_description_that_is_something_else(saved, text):
    (saved[1]/"model.json").write_text(text)
    refused(saved[1], "has format None")


class Runs:
    "A pickle of this leaves a file behind when it is opened."
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")


@wrong("… is a pickle or a zip file, which can run code when opened, so it is not read", area="files",
       cause="The file was written by torch.save or pickle.", remedy="Save the model with InterestModel.save, which writes data only.")
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("write", ["pickle", "torch.save"])
def test_a_pickle_in_the_place_of_a_file(saved, name, write, tmp_path):
    if write == "pickle": (saved[1]/name).write_bytes(pickle.dumps(Runs(tmp_path/"ran")))
    else: torch.save(saved[0].state_dict(), saved[1]/name)
    refused(saved[1], f"{name} is a pickle or a zip file, which can run code when opened, so it is not read")
    assert not (tmp_path/"ran").exists()


@wrong("… is a pickle by its name, which can run code when opened, so it is not read", area="files",
       cause="The folder holds a model of another program.", remedy="Build an InterestModel, give it the numbers, and save it with InterestModel.save.")
@pytest.mark.parametrize("name", ["model.pt", "weights.pth", "model.pkl", "pytorch_model.bin"])
def test_a_folder_of_pickles(tmp_path, name):
    torch.save(a_model().state_dict(), tmp_path/name)
    refused(tmp_path, f"{name} is a pickle by its name, which can run code when opened, so it is not read: save again with InterestModel.save")


def test_every_length_of_header_is_told_from_a_pickle(saved):
    "A pickle begins with the byte 128; so does a safetensors file whose header has 128 + 256 n bytes."
    path, told = saved[1]/"model.safetensors", 0
    header, rest = path.read_bytes()[8:].split(b"]}}", 1)
    header = (header + b"]}}").rstrip()
    for length in range(-(-len(header)//8)*8, len(header) + 3000, 8):
        if length % 256 != 128: continue
        reweigh(saved[1], struct.pack("<Q", length) + header.ljust(length) + rest.lstrip(b" "))
        assert torch.equal(logits(model.InterestModel.load(saved[1]), a_batch(SPEC)), logits(saved[0], a_batch(SPEC)))
        told += 1
    assert told > 5


@wrong("tensor … is not finite, it holds nan or infinity", area="files", cause="Training diverged before the model was saved.",
       remedy="Train again with a smaller lr, and look at the losses.")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(saved, value, tmp_path):
    m, folder = saved
    tensors = tensors_of((folder/"model.safetensors").read_bytes())
    tensors["fuse.key.weight"][3, 2] = value
    reweigh(folder, file_of(tensors))
    refused(folder, "model.safetensors: tensor 'fuse.key.weight' is not finite, it holds nan or infinity")
    with torch.no_grad(): m.place.weight[1, 0] = value
    with pytest.raises(ValueError, match="InterestModel.save: tensor 'place.weight' is not finite"): m.save(tmp_path/"new")
    assert not (tmp_path/"new").exists()


# Crafted descriptions: the checksums fit

@pytest.mark.parametrize("change, says", [
    (lambda a: a.pop("sha256"), "lacks sha256"), (lambda a: (a.pop("spec"), a.pop("tensors")), "lacks spec, tensors"),
    (lambda a: a["options"].update(fusion="sum"), "does not describe a model: fusion 'sum'"),
    (lambda a: a["options"].update(depth=3), "does not describe a model: options has an unknown 'depth'"),
    (lambda a: a["options"].pop("hidden"), "options lacks 'hidden'"), (lambda a: a["spec"].pop("history"), "spec lacks 'history'"),
    (lambda a: a.update(spec=[]), "does not describe a model"), (lambda a: a.update(options=None), "does not describe a model"),
    (lambda a: a["spec"].update(history="many"), "spec.history has a value of the wrong kind"),
    (lambda a: a["spec"].update(scenarios="cart"), "spec.scenarios"), (lambda a: a["spec"].update(scenarios=[]), "spec.scenarios"),
    (lambda a: a["spec"].update(scenarios=["cart", None, "live"]), "spec.scenarios"), (lambda a: a["spec"].update(item_fields=[["category"]]), "spec.item_fields"),
    (lambda a: a["spec"].update(item_fields=["brand"]), "does not describe a model: spec.item_fields names 'brand'"),
    (lambda a: a["spec"].update(dense={"price": 1}), "spec.dense"), (lambda a: a["spec"]["fields"].update(age=-4), "spec.fields"),
    (lambda a: a["spec"]["fields"].update(age=4.), "spec.fields"), (lambda a: a["spec"].update(fields={}), "does not describe a model"),
    (lambda a: a["options"].update(fusion=["mean"]), "options.fusion"), (lambda a: a["options"].update(towers=1), "options.towers"),
    (lambda a: a["options"].update(widths=[[64]]), "options.widths"), (lambda a: a["options"].update(d_embed=True), "options.d_embed"),
    (lambda a: a["options"].update(hidden=64), "options.hidden"), (lambda a: a["tensors"].pop("place.weight"), "model.json does not fit the model it describes: place.weight"),
    (lambda a: a.update(tensors=3), "model.json does not fit the model it describes"), (lambda a: a["tensors"].update({"place.weight": "3, 8"}), "does not fit .* place.weight"),
    (lambda a: a["spec"].update(history=6), "model.json does not fit the model it describes: extract.layers.0.weight"),
    (lambda a: a["spec"].update(history=8), "model.json does not fit: it describes a model of"),
    (lambda a: a.update(sha256=None), "checksum differs"), (lambda a: a.update(sha256=[0]), "checksum differs")])
def test_a_crafted_description(saved, change, says):
    rewrite(saved[1], change)
    refused(saved[1], says)


@pytest.mark.parametrize("content, says", [(b"no tensors", "is damaged"), (b"", "is damaged"), (struct.pack("<Q", 2**63), "is damaged"), (struct.pack("<Q", 10) + b"[[[[[[[[[[", "is damaged"),
    (struct.pack("<Q", 2) + b"{}", "model.json does not fit: it describes a model of"), (file_of({"a": torch.zeros(10**5, dtype=torch.int32)}), "tensor 'a' holds I32"),
    (file_of({"a": torch.zeros(10**5)}), "model.safetensors does not fit the model it describes: a, ")])
def test_crafted_weights(saved, content, says):
    reweigh(saved[1], content)
    refused(saved[1], says)


def huge(about, what):
    "Descriptions that ask for more than there is."
    spec, options = about["spec"], about["options"]
    if what == "items": spec["fields"]["item_id"] = 10**12
    if what == "beyond 64 bits": spec["fields"]["item_id"] = 10**30
    if what == "widths": options["widths"] = [10**6, 10**6]
    if what == "layers": options["hidden"] = [1]*200_000
    if what == "embedding": options["d_embed"] = 2**47
    if what == "history": spec["history"] = 10**11
    if what == "towers": spec["scenarios"] = list(range(50_000))
    if what == "fields": spec.update(fields={f"f{i}": 1 for i in range(100_000)}, item_fields=[f"f{i}" for i in range(100_000)])
    if what == "negative": spec["fields"]["item_id"] = -10**12
    if what == "tensors": about["tensors"]["place.weight"] = [10**12, 10**12]
    return about


HUGE = ["items", "beyond 64 bits", "widths", "layers", "embedding", "history", "towers", "fields", "negative", "tensors"]


@pytest.mark.parametrize("what", HUGE)
def test_a_description_of_something_huge_costs_nothing(saved, what):
    about = huge(read(saved[1]), what)
    (saved[1]/"model.json").write_text(json.dumps(checked(about)))
    start = time.perf_counter()
    tracemalloc.start()
    try: refused(saved[1], "model.json does not (fit|describe)")
    finally: peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 100e6
    assert time.perf_counter() - start < 30  # well under a second each; building any of them would take minutes


@pytest.mark.parametrize("text", ["["*100_000, '{"format":2,"spec":' + '{"a":'*100_000, '{"format": ' + "9"*5000 + "}", '{"format": 2, "a": ' + "[" + "9"*4000 + "]}",
                                  '{"format": ' + "["*700 + "]"*700 + "}", '{"format": NaN}', "\ufeff{}", '{"a": "\\ud800"}'])
def test_texts_that_trouble_a_parser(saved, text):
    (saved[1]/"model.json").write_text(text, encoding="utf-8")
    refused(saved[1], "is damaged|has format|lacks")


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux' limit on address space")
def test_in_little_memory_the_huge_is_refused_and_the_model_loaded(saved):
    "A process that may take 300 MB more than it has after its imports; each huge description in turn, then the model itself."
    (saved[1].parent/"about.json").write_text(json.dumps([checked(huge(read(saved[1]), what)) for what in HUGE]))
    code = textwrap.dedent("""
        import json, pathlib, resource, sys
        import torch
        from multiscene_rec.model import InterestModel
        folder = pathlib.Path(sys.argv[1])
        InterestModel.load(folder)  # whatever is made at first use
        taken = int(pathlib.Path("/proc/self/statm").read_text().split()[0])*resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 300*2**20,)*2)
        try: bytearray(2**30)
        except MemoryError: print("limited")
        good = (folder/"model.json").read_text()
        for about in json.loads((folder.parent/"about.json").read_text()):
            (folder/"model.json").write_text(json.dumps(about))
            try: InterestModel.load(folder)
            except ValueError: print("refused")
        (folder/"model.json").write_text(good)
        InterestModel.load(folder)
        print("loaded")""")
    done = subprocess.run([sys.executable, "-c", code, str(saved[1])], capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.split() == ["limited"] + ["refused"]*len(HUGE) + ["loaded"], done.stderr[-2000:]


# Whatever happens to the bytes

class Quiet(list):
    "A list that a report of a failure does not print."
    def __repr__(self): return f"<{len(self)} models>"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "Small models, their bytes and their scores, and a folder to break them in."
    out = Quiet()
    for fusion in FUSIONS:
        m, folder = a_model(fusion=fusion, towers=fusion == "own", d_embed=2, widths=(3,), hidden=(2,)), tmp_path_factory.mktemp("kept")
        m.save(folder)
        model.InterestModel.load(folder) # what is made at first use is not the file's doing
        out.append(({name: (folder/name).read_bytes() for name in FILES}, logits(m, a_batch(SPEC))))
    return out, tmp_path_factory.mktemp("broken")


def lay(folder, files):
    "Exactly these files."
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items(): (folder/name).write_bytes(content)


@st.composite
def mutations(draw):
    "One to three changes of bytes: (kind, where, how long, where to, bytes); places are shares of the length."
    share = st.floats(0, 1, exclude_max=True)
    one = st.tuples(st.sampled_from(["flip", "delete", "insert", "truncate", "swap", "double"]), share, st.integers(1, 40), share, st.binary(min_size=1, max_size=20), st.integers(0, 7))
    return draw(st.lists(one, min_size=1, max_size=3))


def mutated(content, changes):
    "The bytes after the changes."
    for kind, where, n, to, extra, bit in changes:
        if not content: return content
        at, other = int(where*len(content)), int(to*len(content))
        if kind == "flip": content = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1:]
        if kind == "delete": content = content[:at] + content[at + n:]
        if kind == "insert": content = content[:at] + extra + content[at:]
        if kind == "truncate": content = content[:at]
        if kind == "double": content = content[:at + n] + content[at:]
        if kind == "swap":
            a, b = sorted((at, other))
            n = min(n, b - a, len(content) - b)
            content = content[:a] + content[b:b + n] + content[a + n:b] + content[a:a + n] + content[b + n:]
    return content


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(FUSIONS) - 1), st.sampled_from(FILES), mutations())
def test_damage_is_noticed_or_does_no_harm(kept, which, name, changes):
    (files, scores), folder = kept[0][which], kept[1]
    lay(folder, {**files, name: mutated(files[name], changes)})
    try: again = model.InterestModel.load(folder)
    except (ValueError, FileNotFoundError) as e: assert name in str(e)
    else: assert torch.equal(logits(again, a_batch(SPEC)), scores)


@settings(max_examples=300)
@given(st.integers(0, len(FUSIONS) - 1), mutations())
def test_crafted_weights_are_refused_or_fit(kept, which, changes):
    "The checksums are made anew, so only the numbers may differ."
    (files, _), folder = kept[0][which], kept[1]
    lay(folder, files)
    reweigh(folder, mutated(files["model.safetensors"], changes))
    try: again = model.InterestModel.load(folder)
    except ValueError as e: assert str(folder) in str(e)
    else: assert all(v.isfinite().all() for v in again.state_dict().values())


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from([0, 1, -1, 2**31, 2**47, 2**63, 10**12, 10**400, "", "own", "attention+own", float("inf"), 1.5]),
                   st.text(max_size=4), st.recursive(st.integers(-2, 5), lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=6))


def places(x, at=()):
    "Every place in a JSON value, the value itself first."
    inside = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    return [at] + [p for k, v in inside for p in places(v, (*at, k))]


@st.composite
def edits(draw):
    "One to three edits of structure: what, which place (a share), a value."
    return draw(st.lists(st.tuples(st.sampled_from(["put", "drop", "add", "number"]), st.floats(0, 1, exclude_max=True), VALUES, st.sampled_from([0, 1, 2, 3, 7, 9, 2**20, 10**12])), min_size=1, max_size=3))


def edited(about, changes):
    "The description after the edits."
    about = copy.deepcopy(about)
    for kind, share, value, number in changes:
        every = [p for p in places(about) if p and p[0] not in ("format", "checksum")]
        if not every: return about
        *way, last = every[int(share*len(every))]
        owner = about
        for step in way: owner = owner[step]
        if kind == "put": owner[last] = value
        if kind == "number": owner[last] = number
        if kind == "drop": del owner[last]
        if kind == "add" and isinstance(owner, list): owner.insert(last, value)
        if kind == "add" and isinstance(owner, dict): owner[f"{last}+"] = value
    return about


@settings(max_examples=500)
@given(st.integers(0, len(FUSIONS) - 1), edits())
def test_crafted_descriptions_are_refused_or_describe_a_model(kept, which, changes):
    (files, scores), folder = kept[0][which], kept[1]
    lay(folder, {**files, "model.json": json.dumps(checked(edited(json.loads(files["model.json"]), changes))).encode()})
    start = time.perf_counter()
    tracemalloc.start()
    try:
        try: again = model.InterestModel.load(folder)
        except ValueError as e: assert "model.json" in str(e) or "model.safetensors" in str(e)
        else: assert again.spec.history >= 0 and isinstance(again, model.InterestModel)
    finally: peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 50e6 and time.perf_counter() - start < 30


def test_the_marks_say_what_the_code_says():
    "Each message of a mark stands, up to its dots, in the source."
    source = re.sub(r"\s+", " ", "".join(open(m.__file__, encoding="utf-8").read() for m in (model, sys.modules["multiscene_rec.core"])))
    for name, f in list(globals().items()):
        for mark in getattr(f, "pytestmark", []):
            if mark.name != "wrong": continue
            longest = max(re.split(r"…|model\.(?:json|safetensors)|, this version reads 2|InterestModel\.save wrote", mark.args[0]), key=len).strip(" ,:")
            assert longest.split("'")[0] in source, (name, longest)
