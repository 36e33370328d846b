"check_recommender: the package's models keep every promise, and a model that breaks one is told which."
import random

import numpy as np
import pytest
import torch
from torch import nn

from multiscene_rec import contract
from multiscene_rec.data import toy_mall
from multiscene_rec.extractor import FieldEmbedding
from multiscene_rec.fusion import FUSIONS as ALL
from multiscene_rec.model import InterestModel, Recommender
from multiscene_rec.preprocess import EventLog, Preprocessor
from multiscene_rec.recommender import _MODELS

FUSIONS = ("none", *(name for name, kind in ALL.items() if kind.__module__.startswith("multiscene_rec.")))


@pytest.fixture(scope="module")
def rows():
    mall = toy_mall(n_users=200, n_items=60, n_events=3000)
    prep = Preprocessor().fit(mall.events, mall.users, mall.items)
    return prep.spec, prep.transform(mall.events[1000:1300], EventLog(mall.events, mall.users))


@pytest.mark.parametrize("fusion, heads",
    [("attention", "shared"), *(pytest.param(f, t, marks=pytest.mark.slow) for f in FUSIONS
                                for t in ("shared", "per_scenario"))])
def test_our_own_models_keep_every_promise(fusion, heads, rows):
    spec, batch = rows
    made = contract.check_recommender(InterestModel, spec, batch, fusion=fusion, heads=heads)
    left = set(contract.CHECKS) - set(made)
    assert left <= {"explains what it scores", "gives the same on a gpu"}, left


@pytest.mark.slow
@pytest.mark.parametrize("heads", ["shared", "per_scenario"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_onnx_runtime_gives_the_scores_of_our_own_models(fusion, heads, rows, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs the extra export")
    spec, batch = rows
    model = InterestModel(spec, fusion, heads).eval()
    contract.export_onnx(model, contract.unlabelled(batch[:40]), tmp_path/"model.onnx")
    session = ort.InferenceSession(tmp_path/"model.onnx")
    for part in (batch, batch[:1]):
        found = session.run(None, {i.name: getattr(part, i.name).numpy() for i in session.get_inputs()})[0]
        with torch.no_grad(): np.testing.assert_allclose(found, model(part).numpy(), atol=1e-5)


class Sound(Recommender, name="test_sound"):
    def __init__(self, spec, width=8):
        super().__init__(spec)
        self.width = width
        self.embed = FieldEmbedding(spec.fields, width)
        self.out = nn.Sequential(nn.Linear(width*len(spec.fields), 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, batch): return self.out(self.embed(batch.fields).flatten(1)).squeeze(1)


class Probabilities(Sound, name="test_probabilities"):
    def forward(self, batch): return super().forward(batch).sigmoid()

class OneColumn(Sound, name="test_one_column"):
    def forward(self, batch): return super().forward(batch).unsqueeze(1)

class Squeezed(Sound, name="test_squeezed"):
    def forward(self, batch): return self.out(self.embed(batch.fields).flatten(1)).squeeze()

class FirstRow(Sound, name="test_first_row"):
    "The first row's scenario stands for the whole batch."
    def __init__(self, spec, width=8):
        super().__init__(spec, width)
        self.shift = nn.Embedding(len(spec.scenarios), 1)

    def forward(self, batch): return super().forward(batch) + self.shift(batch.scenario[:1]).squeeze(1)

class BatchStatistics(Sound, name="test_batch_statistics"):
    def __init__(self, spec, width=8):
        super().__init__(spec, width)
        self.norm = nn.BatchNorm1d(width*len(spec.fields), track_running_stats=False)

    def forward(self, batch):
        x = self.embed(batch.fields).flatten(1)
        return self.out(x - x.mean(0)).squeeze(1) if len(x) > 1 else self.out(x).squeeze(1)

class NanForNewcomers(Sound, name="test_nan"):
    def forward(self, batch):
        return super().forward(batch) + (batch.history.sum((1, 2))*0 + 1)*batch.present.sum(
            1)/batch.present.sum(1)*0

class Deaf(Sound, name="test_deaf"):
    def forward(self, batch): return super().forward(batch).relu()*0

class Shut(Sound, name="test_shut"):
    "No log-odds below zero: rows without a click are never learned."
    def forward(self, batch): return (super().forward(batch) + .5).relu()

class Restless(Sound, name="test_restless"):
    "Draws from a generator of its own, which no checkpoint holds."
    def __init__(self, spec, width=8):
        super().__init__(spec, width)
        self.draw = np.random.default_rng(0)

    def loss(self, batch): return super().loss(batch)*(1 + .1*float(self.draw.random()))

class Forgetful(Sound, name="test_forgetful"):
    "A number that is learned and stands outside state_dict."
    def __init__(self, spec, width=8):
        super().__init__(spec, width)
        self.shift = random.random()

    def forward(self, batch): return super().forward(batch) + self.shift

class LooksInside(Sound, name="test_looks"):
    "A choice by value in Python cannot be traced."
    def forward(self, batch):
        return super().forward(batch) if batch.scenario.float().mean().item() > -1 else super().forward(
            batch)*2

class SigmoidFirst(Sound, name="test_sigmoid_first"):
    def forward(self, batch):
        return torch.sigmoid(self.out(self.embed(batch.fields).flatten(1))).clamp(1e-6, 1 - 1e-6).squeeze(1)

class Peek(Sound, name="test_peek"):
    def forward(self, batch): return super().forward(batch) + (batch.label if "label" in batch.rows else 0)

class OtherExplanation(Sound, name="test_other"):
    def explain(self, batch):
        from multiscene_rec.model import Explanation
        return Explanation(self(batch) + 1, torch.ones(len(batch), len(self.spec.scenarios)))


def test_a_sound_model_passes(rows):
    made = contract.check_recommender(Sound, *rows, width=4)
    assert {"learns rows by heart", "resumes to the bit", "is the same when loaded in a fresh process",
            "goes through torch export"} <= set(made)


@pytest.mark.parametrize("kind, says", [
    (Probabilities, "returns probabilities: return log-odds"),
    (SigmoidFirst, "returns probabilities: return log-odds"),
    (Peek, "its scores change with the rows' own labels"),
    (OneColumn, "returns log odds of the right shape"),
    (Squeezed, r"did it squeeze\(\) without an axis"),
    (FirstRow, "depend on the order of the rows|depends on the other rows"),
    pytest.param(BatchStatistics, "depends on the other rows of the batch", marks=pytest.mark.slow),
    (NanForNewcomers, "finite"),
    (Deaf, "all gradients are zero"),
    (Shut, "some part is not connected"),
    pytest.param(Restless, "ends with different weights", marks=pytest.mark.slow),
    pytest.param(Forgetful, "a fresh process could not load it: its scores differ|scores",
                 marks=pytest.mark.slow),
    pytest.param(LooksInside, "goes through torch export", marks=pytest.mark.slow),
    (OtherExplanation, "explain gives different log-odds")])
def test_a_broken_promise_is_named(kind, says, rows):
    with pytest.raises(AssertionError, match=f"(?s)^{kind.__name__}: .*({says})"):
        contract.check_recommender(kind, *rows)


def test_what_is_not_a_model_or_not_enough(rows):
    spec, batch = rows
    with pytest.raises(AssertionError, match="is not a subclass of Recommender"):
        contract.check_recommender(nn.Linear, spec, batch)
    with pytest.raises(AssertionError, match="needs 64 rows or more, got 10"):
        contract.check_recommender(Sound, spec, batch[:10])
    with pytest.raises(ValueError, match="there is no check 'speed'"):
        contract.check_recommender(Sound, spec, batch, skip=("speed",))
    assert "learns rows by heart" not in contract.check_recommender(Sound, spec, batch,
        skip=("learns rows by heart", "goes through torch export"))


def test_the_registry_knows_all_that_is_checked():
    assert _MODELS["interest"] is InterestModel and contract.model_class("test_sound") is Sound


def test_a_model_is_the_same_on_a_gpu_and_that_is_checked_only_there(rows):
    found = contract.CHECKS["gives the same on a gpu"](contract._Subject(Sound, *rows, {}))
    assert found is (None if torch.cuda.is_available() else False)
