"""Model folders that are broken, by accident and on purpose: each is refused with a reason, or gives the
model that was saved."""
import hashlib
import json
import os
import pickle
import struct
import time
import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as tensors_of
from safetensors.torch import save as file_of
from test_model import FUSIONS, SPEC, a_batch, a_model, logits

from multiscene_rec import model

JSON, NUMBERS = FILES = "model.json", "model.safetensors"
wrong = pytest.mark.wrong


@pytest.fixture
def saved(tmp_path):
    "A model and its folder."
    m = a_model(heads="per_scenario")
    m.save(tmp_path/"here")
    return m, tmp_path/"here"


def checked(about):
    "A description with the checksum that belongs to it, computed from the rule in the notebook's words."
    rest = {k: v for k, v in about.items() if k != "checksum"}
    return {**rest,
            "checksum": hashlib.sha256(json.dumps(rest, separators=(",", ":")).encode("ascii")).hexdigest()}


def read(folder): return json.loads((folder/JSON).read_text(encoding="utf-8"))


def rewrite(folder, change):
    "Edit model.json on purpose: the checksum is computed anew."
    about = read(folder)
    change(about)
    (folder/JSON).write_text(json.dumps(checked(about)), encoding="utf-8")


def reweigh(folder, content):
    "Put other weights into a folder, so that their checksum fits."
    (folder/NUMBERS).write_bytes(content)
    rewrite(folder, lambda a: a.update(sha256=hashlib.sha256(content).hexdigest()))


def refused(folder, says="", error=ValueError):
    with pytest.raises(error, match=says) as e: model.Recommender.load(folder)
    assert str(folder) in str(e.value), "the file is named"


# What happens to a file: how it is broken, and what is said of it

class Runs:
    "A pickle of this leaves a file behind when it is opened."
    def __init__(self, path): self.path = path
    def __reduce__(self): return open, (str(self.path), "w")


def flip(path): path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))


def swap_in(folder, name, **options):
    "A file of another model."
    a_model(seed=9, **options).save(folder/"other")
    os.replace(folder/"other"/name, folder/name)


def edit(folder, change):
    "As an editor would: the checksum stays."
    about = read(folder)
    change(about)
    (folder/JSON).write_text(json.dumps(about))


def pickled(path):
    path.write_bytes(pickle.dumps(Runs(path.parent/"ran")))


def of_format(folder, found): rewrite(folder, lambda a: a.update(format=found))


PARTNER, EDITED = "does not belong to the model.json beside it", "it does not match its checksum"
ACCIDENTS = {
    "numbers missing": (lambda d: (d/NUMBERS).unlink(),
                        "model.safetensors does not exist: give the folder that Recommender.save wrote"),
    "description missing": (lambda d: (d/JSON).unlink(),
                            "model.json does not exist: give the folder that Recommender.save wrote"),
    "a bit flipped": (lambda d: flip(d/NUMBERS),
                      "model.safetensors is damaged, or does not belong to the model.json beside it: its "
                      "checksum differs"),
    "cut short": (lambda d: (d/NUMBERS).write_bytes((d/NUMBERS).read_bytes()[:100]), PARTNER),
    "description cut short": (lambda d: (d/JSON).write_bytes((d/JSON).read_bytes()[:-20]),
                              "model.json is damaged: "),
    "description empty": (lambda d: (d/JSON).write_text(""), "model.json is damaged: "),
    "numbers of the same shape": (lambda d: swap_in(d, NUMBERS, heads="per_scenario"), PARTNER),
    "numbers of another shape": (lambda d: swap_in(d, NUMBERS, d_embed=3), PARTNER),
    "description of another": (lambda d: swap_in(d, JSON, heads="per_scenario"), PARTNER),
    "an argument edited": (lambda d: edit(d, lambda a: a["params"].update(d_embed=9)), EDITED),
    "the order of the scenarios edited": (lambda d: edit(d, lambda a: a["spec"]["scenarios"].reverse()),
                                          EDITED),
    "an entry added": (lambda d: edit(d, lambda a: a.update(extra=1)),
                       "model.json is damaged or was edited: it does not match its checksum; copy it "
                       "again, or save it again with Recommender.save"),
    "not a description": (lambda d: (d/JSON).write_text("[]"),
                          "model.json has format unknown, but this version reads 3"),
    "format 2": (lambda d: of_format(d, 2),
                 "model.json has format 2, but this version reads 3: save it again with Recommender.save"),
    "format 4": (lambda d: of_format(d, 4), "model.json has format 4, but this version reads 3"),
    "a format that is no number": (lambda d: of_format(d, True), "model.json has format unknown"),
    "numbers pickled": (lambda d: pickled(d/NUMBERS),
                        "model.safetensors is a pickle or a zip file, which can run code when opened, so it "
                        "is not read"),
    "description pickled": (lambda d: pickled(d/JSON),
        "model.json is a pickle or a zip file, which can run code when opened, so it is not read"),
    "numbers of torch.save": (lambda d: torch.save({}, d/NUMBERS),
                              "model.safetensors is a pickle or a zip file"),
}


@wrong("model.json does not exist: give the folder that Recommender.save wrote", area="files",
       cause="The folder is another one, or a file of it was not copied.",
       remedy="Name the folder that holds model.json and model.safetensors.")
@wrong("model.safetensors is damaged, or does not belong to the model.json beside it", area="files",
       cause="The two files come from two models, or the numbers were cut short or changed on the way.",
       remedy="Copy both files of one folder together, or save the model again.")
@wrong("model.json is damaged or was edited: it does not match its checksum", area="files",
       cause="model.json was changed after it was written.",
       remedy="Build the model with other arguments and save it, instead of editing the file.")
@wrong("model.json has format …, but this version reads 3: save it again with Recommender.save", area="files",
       cause="Another version of the package wrote the folder.",
       remedy="Train or save the model again with this version.")
@wrong("… is a pickle or a zip file, which can run code when opened, so it is not read", area="files",
       cause="The file was written by torch.save or pickle.",
       remedy="Save the model with Recommender.save, which writes data only.")
@pytest.mark.parametrize("what", ACCIDENTS)
def test_what_happens_to_files(saved, what):
    breaks, says = ACCIDENTS[what]
    breaks(saved[1])
    refused(saved[1], says, FileNotFoundError if "missing" in what else ValueError)
    assert not (saved[1]/"ran").exists()


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path/"file").write_text("here")
    for name in ("nowhere", "file"): refused(tmp_path/name, "model.json does not exist", FileNotFoundError)


@wrong("… is a pickle by its name, which can run code when opened, so it is not read", area="files",
       cause="The folder holds a model of another program.",
       remedy="Build a model, give it the numbers, and save it with its save.")
@pytest.mark.parametrize("name", ["model.pt", "weights.pth", "model.pkl", "pytorch_model.bin"])
def test_a_folder_of_pickles(tmp_path, name):
    torch.save(a_model().state_dict(), tmp_path/name)
    refused(tmp_path,
            f"{name} is a pickle by its name, which can run code when opened, so it is not read: save again "
            "with Recommender.save")


def test_another_layout_of_the_same_description_is_no_damage(saved):
    (saved[1]/JSON).write_text(json.dumps(read(saved[1]), indent=7, ensure_ascii=True))
    assert torch.equal(logits(model.Recommender.load(saved[1]), a_batch(SPEC)),
                       logits(saved[0], a_batch(SPEC)))


@wrong("tensor … is not finite: it holds nan or infinity", area="files",
       cause="Training diverged before the model was saved.",
       remedy="Train again with a smaller lr, and look at the losses.")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(saved, value, tmp_path):
    m, folder = saved
    tensors = tensors_of((folder/NUMBERS).read_bytes())
    tensors["fuse.key.weight"][3, 2] = value
    reweigh(folder, file_of(tensors))
    refused(folder, "model.safetensors: tensor 'fuse.key.weight' is not finite: it holds nan or infinity")
    with torch.no_grad(): m.scenario_embedding.weight[1, 0] = value
    with pytest.raises(ValueError,
                       match="InterestModel.save: tensor 'scenario_embedding.weight' is not finite"):
        m.save(tmp_path/"new")
    assert not (tmp_path/"new").exists()


# Crafted on purpose: the checksums fit

def feature(about, name): return next(f for f in about["spec"]["features"] if f["name"] == name)


NOT_SAVED = "model.json is damaged, or is not what Recommender.save wrote"
CRAFTED = {
    "no numbers named": (lambda a: a.pop("sha256"), "model.json is damaged or was edited"),
    "no spec": (lambda a: a.pop("spec"), NOT_SAVED), "no model": (lambda a: a.pop("model"), NOT_SAVED),
    "a spec that is none": (lambda a: a.update(spec=[]), NOT_SAVED), "arguments that are none":
    (lambda a: a.update(params=3), NOT_SAVED),
    "no features": (lambda a: a["spec"].pop("features"), NOT_SAVED),
    "a scenario twice": (lambda a: a["spec"].update(scenarios=["a", "a"]), NOT_SAVED),
    "a feature of no size": (lambda a: feature(a, "age").update(size=-4), NOT_SAVED),
    "an unknown kind": (lambda a: feature(a, "age").update(kind="x"), NOT_SAVED),
    "an unknown fusion": (lambda a: a["params"].update(fusion="sum"),
                          "model.json does not describe a model: fusion 'sum' is unknown"),
    "an unknown argument": (lambda a: a["params"].update(depth=3), "does not describe a model: .*depth"),
    "an argument of another kind": (lambda a: a["params"].update(widths=[[64]]),
                                    "does not describe a model: "),
    "a list that is none": (lambda a: a["params"].update(widths={"list": 3}), NOT_SAVED),
    "neither list nor dict": (lambda a: a["params"].update(widths={"x": 3}), NOT_SAVED),
    "one shape": (lambda a: feature(a, "history").update(size=6),
                  "model.safetensors does not fit the model that .*model.json describes: "
                  "extract.layers.0.weight"),
    "several shapes": (lambda a: a["params"].update(d_embed=9),
                       "does not fit the model that .* describes: embed.table.weight, fuse.query.weight, "),
    "more tensors": (lambda a: a["params"].update(hidden=[64, 64]),
                     "does not fit the model .*: predictors.0.hidden.layers.1.bias"),
}


@wrong("model.json does not describe a model: …", area="files",
       cause="The description was made by another program, or names a fusion that is not defined here.",
       remedy="Define the fusion first, or save the model again with Recommender.save.")
@wrong("model.safetensors does not fit the model that model.json describes: …", area="files",
       cause="The numbers are those of a model of other sizes.",
       remedy="Copy both files of one folder together, or save the model again.")
@pytest.mark.parametrize("what", CRAFTED)
def test_a_crafted_description(saved, what):
    change, says = CRAFTED[what]
    rewrite(saved[1], change)
    refused(saved[1], says)


def test_a_name_that_is_none(saved):
    for name in (["interest"], 3, None, "os"):
        rewrite(saved[1], lambda a: a.update(model=name))
        refused(saved[1], "which has not been imported: import multiscene_rec.model first", ImportError)


@pytest.mark.parametrize("content", [b"no tensors", b"", struct.pack("<Q", 2**63), struct.pack("<Q", 10)
                                     + b"[[[[[[[[[[", struct.pack("<Q", 2) + b"{}",
                                     file_of({"a": torch.zeros(10**5, dtype=torch.int32)}),
                                     file_of({"a": torch.zeros(10**5)})])
def test_crafted_weights(saved, content):
    reweigh(saved[1], content)
    refused(saved[1], "model.safetensors is damaged: |model.safetensors does not fit the model")


HUGE = {"items": lambda a: feature(a, "item_id").update(size=10**12), "beyond 64 bits": lambda a:
        feature(a, "item_id").update(size=10**30),
        "widths": lambda a: a["params"].update(widths=[10**6, 10**6]),
        "embedding": lambda a: a["params"].update(d_embed=2**47),
        "history": lambda a: feature(a, "history").update(size=10**11),
        "negative": lambda a: a["params"].update(hidden=[-10**12])}


@pytest.mark.parametrize("what", HUGE)
def test_a_description_of_something_huge_costs_nothing(saved, what):
    rewrite(saved[1], HUGE[what])
    start = time.perf_counter()
    tracemalloc.start()
    try: refused(saved[1], "model.json does not describe a model|does not fit the model that")
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # well under a second each; building any of them would take minutes
    assert peak < 50e6 and time.perf_counter() - start < 30


@pytest.mark.parametrize("text", ["["*100_000, '{"format":3,"spec":' + '{"a":'*100_000,
    '{"format": ' + "9"*5000 + "}", '{"format": NaN}', "\ufeff{}", '{"a": "\\ud800"}'])
def test_texts_that_trouble_a_parser(saved, text):
    (saved[1]/JSON).write_text(text, encoding="utf-8")
    refused(saved[1], "is damaged|has format")


# Whatever happens to the bytes

class Quiet(list):
    "A list that a report of a failure does not print."
    def __repr__(self): return f"<{len(self)} models>"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    "Small models, their bytes and their scores, and a folder to break them in."
    out = Quiet()
    for fusion in FUSIONS:
        m, folder = a_model(fusion=fusion, heads="per_scenario" if fusion == "own" else "shared", d_embed=2,
                            widths=(3,), hidden=(2,)), tmp_path_factory.mktemp("kept")
        m.save(folder)
        model.Recommender.load(folder) # PyTorch imports what its meta device needs before memory is traced
        out.append(({name: (folder/name).read_bytes() for name in FILES}, logits(m, a_batch(SPEC))))
    return out, tmp_path_factory.mktemp("broken")


share = st.floats(0, 1, exclude_max=True)
MUTATIONS = st.lists(st.tuples(st.sampled_from(["flip", "delete", "insert", "truncate"]), share,
                               st.integers(1, 40), st.binary(min_size=1, max_size=20)),
                     min_size=1, max_size=3)


def mutated(content, changes):
    "The bytes after the changes; a place is a share of the length."
    for kind, where, n, extra in changes:
        at = int(where*len(content))
        if kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 1 << n % 8]) + content[at + 1:]
        if kind == "delete": content = content[:at] + content[at + n:]
        if kind == "insert": content = content[:at] + extra + content[at:]
        if kind == "truncate": content = content[:at]
    return content


@settings(max_examples=200)
@given(st.integers(0, len(FUSIONS) - 1), st.sampled_from(FILES), MUTATIONS)
def test_damage_is_noticed_or_does_no_harm(kept, which, name, changes):
    (files, scores), folder = kept[0][which], kept[1]
    for file, content in files.items():
        (folder/file).write_bytes(mutated(content, changes) if file == name else content)
    try: again = model.Recommender.load(folder)
    except ValueError as e: assert name in str(e)
    else: assert torch.equal(logits(again, a_batch(SPEC)), scores)


@settings(max_examples=150)
@given(st.integers(0, len(FUSIONS) - 1), MUTATIONS)
def test_crafted_weights_are_refused_or_fit(kept, which, changes):
    "The checksums are made anew, so only the numbers may differ."
    (files, _), folder = kept[0][which], kept[1]
    for file, content in files.items(): (folder/file).write_bytes(content)
    reweigh(folder, mutated(files[NUMBERS], changes))
    try: again = model.Recommender.load(folder)
    except ValueError as e: assert str(folder) in str(e)
    else: assert all(v.isfinite().all() for v in again.state_dict().values())


VALUES = st.one_of(st.none(), st.booleans(), st.integers(),
                   st.sampled_from([0, 1, -1, 2**31, 2**47, 2**63, 10**12, 10**400, "", "own", 1.5]),
                   st.text(max_size=4),
                   st.recursive(st.integers(-2, 5), lambda x: st.lists(x, max_size=4)
                                | st.dictionaries(st.text(max_size=3), x, max_size=3), max_leaves=6))


def places(x, at=()):
    "Every place in a JSON value, the value itself first."
    inside = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
    return [at] + [p for k, v in inside for p in places(v, (*at, k))]


@settings(max_examples=250)
@given(st.integers(0, len(FUSIONS) - 1), st.lists(st.tuples(st.booleans(), share, VALUES), min_size=1,
                                                  max_size=3))
def test_crafted_descriptions_are_refused_or_describe_a_model(kept, which, changes):
    "Any entry of the description is dropped or replaced, and the checksum made anew."
    (files, _), folder = kept[0][which], kept[1]
    for file, content in files.items(): (folder/file).write_bytes(content)
    about = read(folder)
    for drop, where, value in changes:
        every = [p for p in places(about) if p and p[0] not in ("format", "checksum")]
        *way, last = every[int(where*len(every))]
        owner = about
        for step in way: owner = owner[step]
        if drop: del owner[last]
        else: owner[last] = value
    (folder/JSON).write_text(json.dumps(checked(about)))
    tracemalloc.start()
    try:
        try: again = model.Recommender.load(folder)
        except (ValueError, ImportError) as e: assert JSON in str(e) or NUMBERS in str(e)
        else: assert isinstance(again, model.InterestModel)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50e6
