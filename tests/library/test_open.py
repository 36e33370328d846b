"""The house is open: models of a user's own, from public names alone, go every way that the package's own
model goes.

Each is trained by fit, put through check_recommender, saved and loaded in a fresh process, asked for lists,
compared,
described by a card, and trained from the command.
"""
import importlib
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from multiscene_rec import (
    Categories,
    EventLog,
    FieldEmbedding,
    Histories,
    InterestModel,
    KeepBest,
    Labels,
    Numbers,
    Preprocessor,
    Recommender,
    Schema,
    Sequences,
    Vectors,
    WeightedFusion,
    check_recommender,
    compare,
    evaluate,
    fit,
    recommend,
    time_split,
    toy_mall,
)
from multiscene_rec.cli import main
from multiscene_rec.contract import export_onnx, unlabelled
from multiscene_rec.model import build, model_card, model_names
from multiscene_rec.rank import Catalogue

HERE = Path(__file__).resolve().parent


class Star(Recommender, name="test_star"):
    "STAR (Sheng et al. 2021), its core: the weights of a scenario are shared ones times its own."
    def __init__(self, spec, d_embed=8, hidden=(32,)):
        super().__init__(spec)
        self.d_embed, self.hidden = d_embed, tuple(hidden)
        self.embed = FieldEmbedding(spec.fields, d_embed)
        sizes, S = (len(spec.fields)*d_embed + len(spec.dense), *self.hidden, 1), len(spec.scenarios)
        self.shared = nn.ParameterList(nn.Parameter(torch.randn(a, b)*(2/a)**.5) for a,
                                       b in zip(sizes, sizes[1:]))
        self.own = nn.ParameterList(nn.Parameter(torch.ones(S, a, b)) for a, b in zip(sizes, sizes[1:]))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(S, b)) for b in sizes[1:])

    def forward(self, batch):
        x = torch.cat([self.embed(batch.fields).flatten(1), batch.dense], 1).expand(len(self.own[0]), -1, -1)
        for k, (shared, own, bias) in enumerate(zip(self.shared, self.own, self.bias)):
            x = torch.baddbmm(bias.unsqueeze(1), x, shared*own)
            if k < len(self.shared) - 1: x = x.relu()
        return x.squeeze(2).gather(0, batch.scenario.unsqueeze(0)).squeeze(0)


class Mmoe(Recommender, name="test_mmoe"):
    "MMoE (Ma et al. 2018): experts for all, a gate and a head for each task."
    def __init__(self, spec, d_embed=8, n_experts=4, width=32):
        super().__init__(spec)
        self.d_embed, self.n_experts, self.width = d_embed, n_experts, width
        self.embed, d_in = FieldEmbedding(spec.fields, d_embed), len(spec.fields)*d_embed + len(spec.dense)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(d_in, width), nn.ReLU())
                                     for _ in range(n_experts))
        self.gates = nn.ModuleList(nn.Linear(d_in, n_experts) for _ in spec.tasks)
        self.heads = nn.ModuleList(nn.Linear(width, 1) for _ in spec.tasks)

    def forward(self, batch):
        x = torch.cat([self.embed(batch.fields).flatten(1), batch.dense], 1)
        seen = torch.stack([expert(x) for expert in self.experts], 1)
        mixed = [(gate(x).softmax(1).unsqueeze(2)*seen).sum(1) for gate in self.gates]
        logits = torch.cat([head(z) for head, z in zip(self.heads, mixed)], 1)
        return logits if len(self.heads) > 1 else logits.squeeze(1)


# A stand-in for a language model: a random direction per word of what the item is called
def title_vectors(items):
    words = items[[c for c in ("category", "brand") if c in items]].astype(str)
    direction = {w: np.random.default_rng(sum(map(ord, w))).normal(size=16)
                 for w in pd.unique(words.to_numpy().ravel())}
    return np.stack([sum(direction[w] for w in row) for row in words.to_numpy()])


class Reader(Recommender, name="test_reader"):
    """A Transformer that reads the user's last events, each by the vector of its title, and then the
    candidate's."""
    def __init__(self, spec, d=16, heads=2):
        super().__init__(spec)
        self.d, self.heads = d, heads
        self.length = spec.of("sequence")[0].size
        self.title = nn.Linear(spec.of("vector")[0].size, d)
        self.scene, self.position = nn.Embedding(len(spec.scenarios) + 1, d), nn.Embedding(self.length + 1, d)
        self.click = nn.Linear(1, d, bias=False)
        self.body = nn.TransformerEncoderLayer(d, heads, 2*d, dropout=0., batch_first=True)
        self.out = nn.Sequential(nn.Linear(2*d, d), nn.ReLU(), nn.Linear(d, 1))

    @classmethod
    def parts(cls, schema, items):
        return (Categories(), Numbers(), Labels(), Histories(), Sequences(10),
                Vectors("title", items[schema.item], title_vectors(items)))

    def forward(self, batch):
        at = batch.seq_stop.unsqueeze(1) - torch.arange(self.length, 0, -1, device=batch.device)
        absent = at < batch.seq_start.unsqueeze(1)
        at = at.clamp(min=0)
        # One more event at the end, so that a log without any can be looked into
        item, scene, click = (torch.cat([x, x.new_zeros(1)])[at]
                              for x in (batch.event_item, batch.event_scenario, batch.event_label))
        past = self.title(batch.title[item]) + self.scene(scene) + self.click(
            click.unsqueeze(2)) + self.position.weight[:self.length]
        asked = self.title(batch.title[batch.item_row]) + self.scene(batch.scenario) + self.position.weight[
            self.length]
        mask = torch.cat([absent, torch.zeros_like(absent[:, :1])], 1)
        h = self.body(torch.cat([past, asked.unsqueeze(1)], 1), src_key_padding_mask=mask)[:, -1]
        return self.out(torch.cat([h, h*asked], 1)).squeeze(1)


class Freshest(WeightedFusion, name="test_softer"):
    "A fusion of a user's own: the target scenario counts twice, every other one once."
    def weights(self, h, present, query, scenario):
        target = torch.arange(self.n_scenarios, device=h.device) == scenario.unsqueeze(1)
        w = present*(1. + target)
        return w/w.sum(1, keepdim=True).clamp(min=1)


MODELS = {"star": (Star, {}), "mmoe": (Mmoe, {}), "reader": (Reader, {}),
          "own fusion": (InterestModel, dict(fusion="test_softer"))}


@pytest.fixture(scope="module")
def shop():
    mall = toy_mall(n_users=250, n_items=80, n_events=6000)
    events = mall.events.assign(bought=mall.events.clicked*(mall.events.price < mall.events.price.median()))
    return mall, events, time_split(events)


@pytest.fixture(scope="module")
def ready(shop):
    "Name of a model -> preprocessor, log, three batches."
    mall, events, frames = shop
    made = {}
    for name, (kind, _) in MODELS.items():
        schema = Schema(label=("clicked", "bought")) if name == "mmoe" else Schema()
        prep = Preprocessor(schema, kind.parts(schema, mall.items)).fit(frames[0], mall.users, mall.items)
        log = EventLog(events, mall.users, schema)
        made[name] = prep, log, [prep.transform(frame, log) for frame in frames]
    return made


@pytest.mark.parametrize("name", MODELS)
def test_it_keeps_every_promise_of_the_contract(name, ready):
    (kind, params), (prep, _, (train, *_)) = MODELS[name], ready[name]
    made = check_recommender(kind, prep.spec, train[:200], **params)
    assert ("is the same when loaded in a fresh process" in made and "goes through torch export" in made
            and "resumes to the bit" in made)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_trained_judged_compared_asked_and_described(name, ready, shop, tmp_path):
    (kind, params), (prep, log, (train, valid, test)), frames = MODELS[name], ready[name], shop[2]
    torch.manual_seed(0)
    model = kind(prep.spec, **params)
    seen = fit(model, train, valid, epochs=2, batch_size=128, lr=3e-3, callbacks=(KeepBest(),))
    assert seen.frame.train_loss.iloc[-1] < seen.frame.train_loss.iloc[0]
    columns = {"valid_auc"} if name != "mmoe" else {"valid_auc_clicked", "valid_auc_bought"}
    assert columns <= set(seen.frame) and evaluate(model, test)["loss"] < 1.5*len(prep.spec.tasks)

    model.save(tmp_path)
    assert torch.equal(Recommender.load(tmp_path)(test), model(test))

    task = dict(task="bought") if name == "mmoe" else {}
    top, mixed = (recommend(model, prep, log, 3, "home", k=5, diversity=d, **task) for d in (0., .7))
    assert len(top) == 5 and top.score.is_monotonic_decreasing and set(mixed.item_id) != set(top.item_id)
    assert Catalogue(model, prep, log).recommend(3, "home", k=5,
                                                 **task).item_id.tolist() == top.item_id.tolist()

    rival = {"interest": lambda seed: InterestModel(prep.spec), name: lambda seed: kind(prep.spec, **params)}
    found = compare(rival, train, valid, test, frames[2].user_id.to_numpy(), epochs=1, batch_size=256,
                    callbacks=(KeepBest(),))
    assert set(found.frame.model) == set(rival) and found.frame.auc.notna().any()
    card = model_card(model, batch=test[:1])
    assert kind.__name__ in card and "| total |" in card


@pytest.mark.parametrize("name", MODELS)
def test_it_is_trained_and_used_from_the_command(name, shop, tmp_path, monkeypatch, capsys):
    mall, events, _ = shop
    log = events.merge(mall.items[["item_id", "category", "brand"]], on="item_id").sort_values("timestamp")
    log.to_csv(tmp_path/"log.csv", index=False)
    mall.items.to_csv(tmp_path/"items.csv", index=False)
    kind, params = MODELS[name]
    word = "interest" if name == "own fusion" else f"test_open:{kind.__name__}"
    labels = ["--label", "clicked", "--label", "bought"] if name == "mmoe" else []
    sets = [word for key, value in params.items() for word in ("--set", f"{key}={value}")]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))
    args = ["train", "log.csv", "--items", "items.csv", "--out", "m", "--model", word, *sets, *labels,
            "--epochs", "1", "--device", "cpu", "--no-progress"]
    assert main(args) == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "Test rows" in told and ("bought" in told) == (name == "mmoe")
    assert kind.__name__ in (tmp_path/"m"/"model_card.md").read_text()
    assert main(["evaluate", "m", "log.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[-1]["rows"] > 0
    assert main(["recommend", "m", "--user", "3", "--scenario", "home", "-k", "4", "--diversity", "0.5",
                 "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4


def test_a_model_that_is_not_imported_is_an_error_that_says_what_to_import(ready, tmp_path):
    prep = ready["star"][0]
    Star(prep.spec).save(tmp_path)
    code = (f"from multiscene_rec import Recommender\ntry: Recommender.load({str(tmp_path)!r})\nexcept "
            "ImportError as e: print(e)")
    env = os.environ | {"PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True,
                          timeout=120)
    assert "holds a model 'test_star'" in done.stdout and "import test_open first" in done.stdout, (
        done.stdout + done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_runtime_gives_the_same_scores(name, ready, tmp_path):
    ort = pytest.importorskip("onnxruntime", reason="needs the extra export")
    (kind, params), (prep, _, (_, _, test)) = MODELS[name], ready[name]
    model = kind(prep.spec, **params).eval()
    export_onnx(model, unlabelled(test[:50]), tmp_path/"model.onnx")
    session = ort.InferenceSession(tmp_path/"model.onnx")
    for part in (test[:200], test[:1]):
        found = session.run(None, {i.name: getattr(part, i.name).numpy() for i in session.get_inputs()})[0]
        with torch.no_grad(): np.testing.assert_allclose(found, model(part).numpy(), atol=1e-5)


def test_the_words_of_contributing_work(ready, shop, tmp_path, monkeypatch):
    "The block of code under Add a model, as it stands there, goes the way that the text says."
    text = (HERE.parent.parent/"CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"## Add a model.*?```python\n(.*?)```", text, flags=re.S)[1]
    names = "from torch import nn\nfrom multiscene_rec import FieldEmbedding, Recommender\n"
    (tmp_path/"contributed.py").write_text(names + textwrap.dedent(block))
    monkeypatch.syspath_prepend(str(tmp_path))
    kind, (prep, log, (train, valid, _)) = importlib.import_module("contributed").Logistic, ready["star"]
    assert "logistic" in model_names() and isinstance(build("logistic", prep.spec, bias=.5), kind)
    assert "is the same when loaded in a fresh process" in check_recommender(kind, prep.spec, train[:200],
        skip=("learns rows by heart",))
    model = kind(prep.spec)
    fit(model, train, valid, epochs=2, batch_size=128, callbacks=(KeepBest(),))
    assert len(recommend(model, prep, log, 3, "home", k=3)) == 3
    assert InterestModel(prep.spec, fusion="test_softer").fuse.__class__ is Freshest
