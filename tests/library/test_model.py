"""Second opinions on the joined model: its forward pass in plain loops, its size and work by counting, its
files there and back.

The contract that every model keeps, and the registry, are here too. Broken files are in
test_damaged_model.py.
"""
import errno
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import multiscene_rec
from multiscene_rec import data, fusion, model, preprocess, recommender
from multiscene_rec.data import with_parts
from multiscene_rec.preprocess import Feature, Spec, Task
from tools import notebooks

FUSIONS = ("none", "own", "mean", "concat", "attention", "attention+own")
HISTORY = Feature("history", "history", 7, "user", tuple(f"h{k}" for k in range(7)))
SPEC = Spec(("cart", "home", "live"),
            (Feature("age", "category", 4, "user"), Feature("category", "category", 6, "item"),
            Feature("item_id", "category", 9, "item"), Feature("price", "number", 1, "item"),
             Feature("quality", "number", 1), HISTORY))
TWO = replace(SPEC, tasks=(Task(), Task("bought", weight=2.)))


def without(spec, *kinds, of=None):
    "A spec less the features of some kinds."
    return replace(spec, features=tuple(f for f in spec.features if f.kind not in kinds
                                        or of not in (None, f.of)))


def a_batch(spec, n=40, R=None, seed=0, present=.6):
    "Random rows that fit a spec."
    g = torch.Generator().manual_seed(seed)
    R, S, T = R or n, len(spec.scenarios), len(spec.tasks)
    fields = [torch.randint(o, o + size, (n,), generator=g) for o,
              size in zip(spec.offsets, spec.fields.values())]
    rows = dict(fields=torch.stack(fields, 1), dense=torch.randn(n, len(spec.dense), generator=g),
                scenario=torch.randint(S, (n,), generator=g),
                label=torch.randint(2, (n,) if T == 1 else (n, T), generator=g).float())
    tables = dict(history_table=torch.randn(R, S, spec.history, generator=g),
                  present_table=torch.rand(R, S, generator=g) < present)
    rows["history_row"] = torch.randint(R, (n,), generator=g)
    return data.Batch(rows, tables) if spec.history else data.Batch({k: x for k, x in rows.items()
        if k != "history_row"})


def a_model(spec=SPEC, seed=0, **options):
    "A fresh model, with every constant moved away from 0 so that none can be forgotten unnoticed."
    torch.manual_seed(seed)
    out = model.InterestModel(spec, **options)
    with torch.no_grad():
        for p in out.parameters(): p.add_(.1*torch.randn_like(p))
    return out.eval()


def logits(m, batch):
    "Scores without gradients."
    with torch.no_grad(): return m(batch)


@pytest.fixture(scope="module")
def mall():
    "A small mall, made ready."
    made = data.toy_mall(n_users=600, n_items=200, n_events=15_000)
    past, _ = preprocess.time_split(made.events, fractions=(.8, .2))
    prep = preprocess.Preprocessor().fit(past, made.users, made.items)
    return prep.spec, prep.transform(past, preprocess.EventLog(past, made.users))


# The interaction, and what it is for

@pytest.mark.formula("8.1")
def test_interaction_number_by_number():
    z, w = torch.randn(5, 3), torch.randn(5, 3)
    expected = [[a*b for a, b in zip(*rows)] for rows in zip(z.tolist(), w.tolist())]
    torch.testing.assert_close(model.interaction(z, w), torch.tensor(expected))


@pytest.mark.parametrize("wrong", [(1, 3), (5, 2), (3,)])
def test_interaction_refuses_what_would_broadcast(wrong):
    with pytest.raises(ValueError, match="axis|axes"): model.interaction(torch.ones(5, 3), torch.ones(wrong))


@pytest.mark.formula("8.2")
def test_item_gap_is_the_difference_of_two_scores():
    g = torch.Generator().manual_seed(1)
    z, q, w_z, w_q, w_m, W = (torch.randn(*s, generator=g, dtype=torch.float64)
                              for s in ((6, 3), (2, 4), (3,), (4,), (3,), (3, 4)))
    def score(u, i): # the head on [z, q, z ∘ W_m q], term by term
        wanted = [sum(W[k, l]*q[i, l] for l in range(4)) for k in range(3)]
        return sum(w_z[k]*z[u, k] + w_m[k]*z[u, k]*wanted[k] for k in range(3)) + sum(w_q[l]*q[i, l]
            for l in range(4))
    expected = torch.stack([score(u, 0) - score(u, 1) for u in range(6)])
    torch.testing.assert_close(model.item_gap(z, q[0], q[1], w_q, w_m, W), expected)


@pytest.mark.parametrize("axis, changed",
                         [("d_query", dict(q_j=torch.ones(3))), ("d_query", dict(w_q=torch.ones(5))),
                                           ("d", dict(w_m=torch.ones(4))), ("d", dict(W_m=torch.ones(5, 4)))])
def test_item_gap_names_the_axis(axis, changed):
    good = dict(z=torch.ones(6, 3), q_i=torch.ones(4), q_j=torch.ones(4), w_q=torch.ones(4),
                w_m=torch.ones(3), W_m=torch.ones(3, 4))
    with pytest.raises(ValueError, match=f"axis '{axis}'"): model.item_gap(**good | changed)


def crossed(spec, n_users=12, n_items=8, seed=3, present=.6):
    "The same items, in the same scenario, for users with different histories."
    batch = a_batch(spec, n_users*n_items, n_users, seed, present)
    item = torch.arange(n_items).repeat(n_users)
    at = [list(spec.fields).index(f) for f in spec.item_fields]
    user = torch.arange(n_users).repeat_interleave(n_items)
    # what describes the user is one value per user, what describes the item one per item
    fields = batch.fields[user]
    fields[:, at] = batch.fields[:n_items, at][item]
    return with_parts(batch, fields=fields, dense=batch.dense[:n_items][item],
                      scenario=torch.zeros_like(item),
                   history_row=user)


def orders(m, batch, n_items=8):
    return len(logits(m.double(), batch).view(-1, n_items).argsort(dim=1, stable=True).unique(dim=0))


def without_interaction(m):
    "Take the interaction away."
    with torch.no_grad():
        for p in m.item_projection.parameters(): p.zero_()
    return m


@pytest.mark.parametrize("fusion", ["own", "mean", "concat"])
@pytest.mark.parametrize("seed", range(3))
def test_a_linear_head_without_the_interaction_gives_everybody_one_order(fusion, seed):
    batch = crossed(SPEC)
    assert orders(without_interaction(a_model(seed=seed, fusion=fusion, hidden=())), batch) == 1
    loud = a_model(seed=seed, fusion=fusion, hidden=())
    with torch.no_grad(): loud.item_projection.weight.mul_(30)
    assert orders(loud, batch) > 1
    assert orders(without_interaction(a_model(seed=seed, fusion=fusion, hidden=(64,))), batch) > 1


def test_attention_and_one_history_give_everybody_one_order():
    m, batch = without_interaction(a_model(hidden=())), crossed(SPEC)
    one = torch.zeros_like(batch.present_table).index_fill(1, torch.tensor([2]), True)
    assert orders(m, with_parts(batch, present_table=one)) == 1


def test_item_gap_foretells_the_model():
    m, batch = a_model(fusion="mean", hidden=()).double(), crossed(SPEC)
    scores, e = logits(m, batch).view(-1, 8), m.embed(batch.fields)
    q = e[:, m.item_columns].flatten(1)
    z = m.fuse(m.extract(batch.history.double()), batch.present, q, batch.scenario)[0].view(-1, 8, 32)[:, 0]
    w = m.predictors[0].out.weight[0]
    F, D = 3*8, 2
    gap = model.item_gap(z, q[0], q[5], w[:F].view(3, 8)[m.item_columns].flatten(), w[-32:],
                         m.item_projection.weight)
    gap = gap + w[F:F + D] @ (batch.dense[0] - batch.dense[5]).double()
    torch.testing.assert_close(scores[:, 0] - scores[:, 5], gap)


# The forward pass, in NumPy

def np_linear(p, name, x): return x @ p[f"{name}.weight"].T + p.get(f"{name}.bias", 0)


def np_chain(p, name, x):
    "Linear and ReLU, as often as there are layers of that name."
    k = 0
    while f"{name}.layers.{k}.weight" in p:
        x = np.maximum(np_linear(p, f"{name}.layers.{k}", x), 0)
        k += 1
    return x


def np_fuse(p, name, kind, h, present, query, t):
    "One row: z of (d,)."
    d, there = h.shape[1], [s for s in range(len(h)) if present[s]]
    if kind == "attention+own":
        both = [np_fuse(p, f"{name}.{k}", k, h, present, query, t) for k in ("attention", "own")]
        return np_linear(p, f"{name}.join", np.concatenate(both))
    if kind == "concat":
        return np_linear(p, f"{name}.project", np.where(present[:, None], h, 0).ravel()) + np_linear(p,
            f"{name}.flags", present.astype(float))
    if kind == "own": there = [s for s in there if s == t]
    if not there: return p[f"{name}.fallback.weight"][0]
    scores = np.zeros(len(there))
    if kind == "attention":
        asked = np_linear(p, f"{name}.key",
            np_linear(p, f"{name}.query", np.concatenate([query, p[f"{name}.target.weight"][t]])))
        scores = np.array([asked @ h[s]/math.sqrt(d) for s in there])
    weight = np.exp(scores)/np.exp(scores).sum()
    return np_linear(p, f"{name}.value", sum(w*h[s] for w, s in zip(weight, there)))


def np_model(m, batch):
    "The log-odds of every row, one row at a time, from the numbers in the state dict."
    p, o, out = {k: v.double().numpy() for k, v in m.state_dict().items()}, m.get_params(), []
    columns = [list(m.spec.fields).index(f) for f in m.spec.item_fields]
    for b in range(len(batch)):
        e, t = p["embed.table.weight"][batch.fields[b].numpy()], int(batch.scenario[b])
        x = [e.ravel(), batch.dense[b].double().numpy(), p["scenario_embedding.weight"][t]]
        if o["fusion"] != "none":
            q = e[columns].ravel()
            h = np.stack([np_chain(p, "extract", x_s) for x_s in batch.history[b].double().numpy()])
            z = np_fuse(p, "fuse", o["fusion"], h, batch.present[b].numpy(), q, t)
            x += [z, z*np_linear(p, "item_projection", q)]
        head = f"predictors.{t if o['heads'] == 'per_scenario' else 0}"
        out.append(np_linear(p, f"{head}.out", np_chain(p, f"{head}.hidden", np.concatenate(x)))[0])
    return torch.tensor(out)


@pytest.mark.formula("8.4")
@pytest.mark.parametrize("heads", ["shared", "per_scenario"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_forward_against_plain_numpy(fusion, heads):
    m, batch = a_model(fusion=fusion, heads=heads, d_embed=3, widths=(6, 5), hidden=(4,)).double(), a_batch(
        SPEC, 12)
    torch.testing.assert_close(logits(m, batch), np_model(m, batch))


@pytest.mark.formula("8.3")
def test_attention_beside_own():
    m, batch = a_model(fusion="attention+own", widths=(5,)).double(), a_batch(SPEC, 15)
    p = {f"fuse.{k}": v.numpy() for k, v in m.fuse.state_dict().items()}
    h, q = torch.randn(15, 3, 5, dtype=torch.float64), torch.randn(15, 16, dtype=torch.float64)
    with torch.no_grad(): z, alpha = model.BesideOwn.forward(m.fuse, h, batch.present, q, batch.scenario)
    expected = [np_fuse(p, "fuse", "attention+own", h[b].numpy(), batch.present[b].numpy(), q[b].numpy(),
                        int(batch.scenario[b])) for b in range(15)]
    torch.testing.assert_close(z, torch.from_numpy(np.stack(expected)))
    with torch.no_grad():
        torch.testing.assert_close(alpha, m.fuse.attention(h, batch.present, q, batch.scenario)[1])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_shared_histories_change_nothing_but_the_work(fusion):
    m, shared = a_model(fusion=fusion), a_batch(SPEC, 30, 4)
    unshared = with_parts(shared, history_table=shared.history, present_table=shared.present,
                          history_row=torch.arange(30))
    with_gradient = m(shared).detach()
    torch.testing.assert_close(logits(m, shared), logits(m, unshared))
    torch.testing.assert_close(logits(m, shared), with_gradient)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_explain_gives_weights_where_there_are_any(fusion):
    m, batch = a_model(fusion=fusion), a_batch(SPEC)
    with torch.no_grad(): explanation = m.explain(batch)
    if fusion in ("none", "concat"): assert explanation is None
    else:
        torch.testing.assert_close(explanation.logits, logits(m, batch))
        total = explanation.weights.sum(1)
        assert (((total - 1).abs() < 1e-6) | (total == 0)).all()
        assert (explanation.weights[~batch.present] == 0).all()


def test_heads_answer_for_their_own_scenario_only():
    m, batch = a_model(heads="per_scenario"), a_batch(SPEC)
    before = logits(m, batch)
    with torch.no_grad(): m.predictors[1].out.bias += 1
    torch.testing.assert_close(logits(m, batch) - before, (batch.scenario == 1).float())


@settings(max_examples=25)
@given(st.sampled_from(FUSIONS), st.sampled_from(["shared", "per_scenario"]), st.integers(0, 1000),
       st.integers(1, 30), st.integers(1, 12))
def test_rows_do_not_know_each_other(fusion, heads, seed, n, R):
    m, batch = a_model(fusion=fusion, heads=heads), a_batch(SPEC, n, R, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(logits(m, batch[order]), logits(m, batch)[order], atol=1e-5, rtol=1e-5)
    noisy = torch.where(batch.present_table.unsqueeze(-1), batch.history_table, 100.)
    torch.testing.assert_close(logits(m, with_parts(batch, history_table=noisy)), logits(m, batch), atol=1e-5,
                               rtol=1e-5)
    assert logits(m, with_parts(batch, present_table=torch.zeros_like(batch.present_table))).isfinite().all()


def test_no_rows_give_no_logits():
    for heads in ("shared", "per_scenario"):
        assert logits(a_model(heads=heads), a_batch(SPEC)[:0]).shape == (0,)


def test_names_in_histories_tell_attention_whose_history_it_reads(mall):
    spec, batch = mall
    names = [k for k, name in enumerate(spec.history_names) if name.startswith("in ")]
    assert len(names) == len(spec.scenarios)
    torch.testing.assert_close(batch.history_table[0][:, names], torch.eye(len(names)))
    table = batch.history_table[:, torch.tensor([1, 0, 2, 3])].clone()
    table[..., names] = batch.history_table[..., names]
    rows = batch[batch.present[:, :2].all(1)][:50]
    m = a_model(spec)
    assert (logits(m, with_parts(rows, history_table=table)) - logits(m, rows)).abs().max() > 1e-3
    blind = [with_parts(rows, history_table=t.index_fill(2, torch.tensor(names), 0))
             for t in (table, batch.history_table)]
    torch.testing.assert_close(logits(m, blind[0]), logits(m, blind[1]), atol=1e-5, rtol=1e-5)


# What does not fit is refused

@pytest.mark.parametrize("options, says", [
    (dict(fusion="sum"),
     "fusion 'sum' is unknown; choose from none, .*own, .*attention\\+own.*; one of your own is known once "
     "its class is defined"),
    (dict(fusion=["mean"]), "fusion \\['mean'\\] is unknown"),
    (dict(widths=()), "widths is empty"), (dict(widths=(8, 0)), "widths: .* got 0"),
    (dict(hidden=(-1,)), "hidden: .* got -1"),
    (dict(hidden=64), "hidden must be a tuple of sizes, such as \\(64,\\), got 64"),
    (dict(widths=5), "widths must be a tuple of sizes"),
    (dict(d_embed=0), "d_embed .* got 0"), (dict(d_embed=True), "d_embed .* got True"),
    (dict(widths=(2.5,)), "widths: .* got 2.5")])
def test_bad_arguments(options, says):
    for ask in (model.InterestModel, model.parameters_by_formula, model.flops_by_formula,
                model.scenario_cost):
        with pytest.raises(ValueError, match=says): ask(SPEC, **options)


def test_an_unknown_argument_is_named():
    says = "model 'interest' has no argument 'depth'; it has fusion, heads, d_embed, widths, hidden"
    for ask in (model.parameters_by_formula, model.flops_by_formula, model.scenario_cost):
        with pytest.raises(ValueError, match=says): ask(SPEC, depth=3)
    with pytest.raises(ValueError, match=says): model.build("interest", SPEC, depth=3)


def test_bad_specs():
    no_items, no_history = without(SPEC, "category", of="item"), without(SPEC, "history")
    with pytest.raises(ValueError,
                       match="no field of the item, so there is no query: add one, or use fusion='none'"):
        model.InterestModel(no_items)
    with pytest.raises(ValueError, match="no history to fuse: add Histories"): model.InterestModel(no_history)
    with pytest.raises(ValueError, match="the spec has no categories"):
        model.InterestModel(without(SPEC, "category"), "none")
    for spec in (no_items, no_history):
        assert logits(a_model(spec, fusion="none"), a_batch(spec)).shape == (40,)


@pytest.mark.wrong("InterestModel needs a Spec, got Preprocessor: pass its spec: prep.spec", area="training",
                   cause="The model was given the preprocessor itself.",
                   remedy="Write InterestModel(prep.spec).")
def test_a_preprocessor_is_no_spec():
    made = data.toy_mall(n_users=50, n_items=20, n_events=500)
    prep = preprocess.Preprocessor().fit(made.events, made.users, made.items)
    for ask in (model.InterestModel, lambda x: model.build("interest", x)):
        with pytest.raises(ValueError,
                           match="InterestModel needs a Spec, got Preprocessor: pass its spec: prep.spec"):
            ask(prep)
    for wrong in (preprocess.Preprocessor(), {"scenarios": ("home",)}, None):
        with pytest.raises(ValueError,
                           match="needs a Spec, got .*: a Spec comes from a fitted preprocessor: prep.spec"):
            model.InterestModel(wrong)


@pytest.mark.parametrize("axis, other", [
    ("H", SPEC.with_features(replace(HISTORY, size=8))), ("S", replace(SPEC, scenarios=("cart", "home"))),
    ("F", SPEC.with_features(Feature("city", "category", 3))), ("D", without(SPEC, "number", of="context"))])
@pytest.mark.parametrize("fusion", ["none", "attention"])
def test_a_batch_that_does_not_fit_names_the_axis(axis, other, fusion):
    with pytest.raises(ValueError, match=f"does not fit the model's spec: .*axis '{axis}'"):
        a_model(other, fusion=fusion)(a_batch(SPEC))


@pytest.mark.wrong("the batch does not fit the model's spec: Batch.…: the batch has no part '…'",
                   area="training",
                   cause="The preprocessor that made the batch brings other parts than the one of the "
                         "model's spec.",
                   remedy="Make the batch with the preprocessor that the model was trained with.")
@pytest.mark.parametrize("part", ["fields", "dense", "scenario", "history_table", "present_table",
                                  "history_row"])
def test_a_part_that_is_missing_is_named(part):
    batch = a_batch(SPEC)
    less = data.Batch({k: x for k, x in batch.rows.items() if k != part},
                      {k: x for k, x in batch.tables.items() if k != part})
    says = (f"the batch does not fit the model's spec: Batch.{part}: the batch has no part '{part}'; it has "
            ".*use the preprocessor")
    with pytest.raises(ValueError, match=says): a_model()(less)


def test_without_labels_there_are_scores_and_no_loss():
    batch = a_batch(SPEC)
    bare = data.Batch({k: x for k, x in batch.rows.items() if k != "label"}, batch.tables)
    assert torch.equal(logits(a_model(), bare), logits(a_model(), batch))
    with pytest.raises(AttributeError, match="no part 'label'"): a_model().loss(bare)


def test_an_id_outside_its_field_names_the_field():
    batch = a_batch(SPEC)
    batch.fields[3, 1] = 4 + 6  # the first row of item_id
    with pytest.raises(ValueError, match="'category', row 3"): a_model()(batch)


# What every model is

class Plain(model.Recommender):
    "A weight for each id, and arguments of every kind."
    def __init__(self, spec, experts=2, widths=(4, (2, 3)), groups=[[1, 2], [3]], # noqa: B006
                 about={"a": (1, None), "b": [.5]}, rate=.1, name_of=None, on=False): # noqa: B006
        super().__init__(spec)
        self.experts, self.widths, self.groups, self.about = experts, widths, groups, about
        self.rate, self.name_of, self.on = rate, name_of, on
        self.ids = nn.Embedding(sum(spec.fields.values()), experts)

    def forward(self, batch): return self.ids(batch.fields).sum((1, 2))


def test_a_class_is_known_by_its_name_as_soon_as_it_is_defined():
    class TextAndSequence(model.Recommender): pass
    class Starred(model.Recommender, name="star of the test"): pass
    assert (TextAndSequence.name, Starred.name) == ("text_and_sequence", "star of the test")
    assert model.model_class("text_and_sequence") is TextAndSequence and model.model_class(
        "star of the test") is Starred
    assert {"interest", "text_and_sequence", "star of the test",
            "plain"} <= set(model.model_names()) and model.model_names()[0] == "interest"
    class Inner(TextAndSequence): pass
    assert Inner.name == "inner", "a name is not inherited"


@pytest.mark.parametrize("name, snake", [("Star", "star"), ("MMoE", "m_mo_e"), ("DINModel", "din_model"),
                                         ("Mlp2", "mlp2"), ("A", "a")])
def test_a_class_without_a_name_gets_its_own_in_small_letters(name, snake):
    assert type(name, (model.Recommender,), {"__module__": f"of_{name}"}).name == snake
    recommender._MODELS.pop(snake)


def test_a_cell_that_runs_again_defines_its_model_again():
    def cell():
        class Rerun(model.Recommender): pass
        return Rerun
    first, second = cell(), cell()
    assert first is not second and model.model_class("rerun") is second


def test_a_name_that_is_taken():
    class Mine(model.Recommender, name="only one"): pass
    with pytest.raises(ValueError,
                       match="the name 'only one' belongs to test_model.*Mine: choose another one, class "
                             "Yours\\(Recommender, name="):
        class Yours(model.Recommender, name="only one"): pass
    assert model.model_class("only one") is Mine
    with pytest.raises(ValueError,
                       match="the name 'interest' belongs to multiscene_rec.model.InterestModel: choose "
                             "another one"):
        class Other(model.InterestModel, name="interest"): pass
    assert model.model_class("interest") is model.InterestModel


def test_a_name_of_the_package_is_its_own_before_it_is_imported(monkeypatch):
    monkeypatch.setitem(multiscene_rec._MODELS, "later", "later_module")
    assert "later" in model.model_names()
    with pytest.raises(ValueError, match="the name 'later' belongs to multiscene_rec.later_module"):
        class Early(model.Recommender, name="later"): pass
    # the notebook from which the module is made
    class Lesson(model.Recommender, name="later"): __module__ = "__main__"
    assert model.model_class("later") is Lesson
    class Package(model.Recommender, name="later"): __module__ = "multiscene_rec.later_module"
    assert model.model_class("later") is Package
    recommender._MODELS.pop("later")


def test_a_model_of_the_package_is_imported_when_it_is_asked_for():
    code = """
        import sys
        from multiscene_rec import model
        import multiscene_rec
        multiscene_rec._MODELS["far"] = "far"
        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == "multiscene_rec.far":
                    import importlib.util
                    return importlib.util.spec_from_loader(name, self)
            def create_module(self, spec): return None
            def exec_module(self, module):
                code = "class Far(Recommender, name='far'): pass"
                exec(f"from multiscene_rec.model import Recommender\\n{code}", module.__dict__)
        sys.meta_path.insert(0, Finder())
        print(model.model_names(), "multiscene_rec.far" in sys.modules)
        print(model.model_class("far").__module__)"""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["('interest', 'far') False", "multiscene_rec.far"], done.stderr


@pytest.mark.wrong("model '…' is unknown; choose from interest", area="training",
                   cause="The name is misspelt, or its class is not defined in this process.",
                   remedy="Take a name of model_names(), or import the module that defines the class first.")
def test_an_unknown_model():
    with pytest.raises(ValueError,
                       match="model 'sum' is unknown; choose from interest, .*; a model of your own is known "
                             "once the module"):
        model.build("sum", SPEC)
    with pytest.raises(ValueError,
                       match="'attention' is a fusion, not a model: use build\\(\"interest\", spec, "
                             "fusion='attention'\\)"):
        model.build("attention", SPEC)
    assert model.build("interest", SPEC, heads="per_scenario").heads == "per_scenario" and type(
        model.build("plain", SPEC, experts=3)) is Plain


def test_arguments_come_back_as_they_were_given():
    m = Plain(SPEC, experts=5, groups=[[(1, [2])]], about={"dict": {"list": [1]}, "list": (None,)}, rate=1/3,
              name_of="x", on=True)
    assert m.get_params() == dict(experts=5, widths=(4, (2, 3)), groups=[[(1, [2])]],
        about={"dict": {"list": [1]}, "list": (None,)}, rate=1/3, name_of="x", on=True)
    assert model.InterestModel(SPEC, "mean", widths=[5], hidden=[]).get_params() == dict(fusion="mean",
        heads="shared", d_embed=8, widths=(5,), hidden=())
    with pytest.raises(TypeError, match="unexpected keyword"): Plain(SPEC, depth=1)


PLAIN = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(),
                     lambda x: st.lists(x, max_size=3) | st.lists(x, max_size=3).map(tuple)
                     | st.dictionaries(st.text(max_size=4) | st.just("list") | st.just("dict"), x,
                                       max_size=3))


@settings(max_examples=100)
@given(PLAIN)
def test_plain_data_goes_there_and_back(value):
    back = recommender._from_plain(json.loads(json.dumps(recommender._to_plain(value))))
    assert back == value and repr(back) == repr(value)


def test_a_subclass_with_its_own_argument_comes_back_with_it(tmp_path):
    m = Plain(SPEC, experts=5, widths=[1, [2]], about={"x": (1, [2.5, None])})
    m.save(tmp_path)
    for again in (model.Recommender.load(tmp_path), Plain.load(str(tmp_path))):
        assert type(again) is Plain and again.get_params() == m.get_params() and again.spec == SPEC
        assert torch.equal(logits(again, a_batch(SPEC)), logits(m, a_batch(SPEC)))
    with pytest.raises(ValueError,
                       match="model.json holds a model of class Plain, not InterestModel: load it with "
                             "Plain.load or Recommender.load"):
        model.InterestModel.load(tmp_path)


@pytest.mark.wrong("….__init__ takes '…' but does not keep it: write self.… = … there", area="training",
                   cause="A model of your own does not keep an argument, so that a saved one could not be "
                         "built again.",
                   remedy="Keep every argument of __init__ under its own name: self.experts = experts.")
def test_an_argument_that_is_not_kept(tmp_path):
    class Forgets(model.Recommender):
        def __init__(self, spec, experts=2, train=None): super().__init__(spec)
    says = "Forgets.__init__ takes 'experts' but does not keep it: write self.experts = experts there"
    with pytest.raises(TypeError, match=says): Forgets(SPEC).get_params()
    with pytest.raises(TypeError, match=says): Forgets(SPEC, 5).save(tmp_path/"new")
    assert not (tmp_path/"new").exists()
    m = Forgets(SPEC)
    m.experts = 2
    # nn.Module has a method of that name
    with pytest.raises(TypeError, match="takes 'train' but does not keep it"): m.get_params()


@pytest.mark.wrong("… keeps a … as self.…, where its argument belongs", area="training",
                   cause="A model of your own uses the name of an argument for the modules that it makes of "
                         "it.",
                   remedy="Write self.experts = experts, and self.expert_layers = nn.ModuleList(...).")
@pytest.mark.parametrize("made", [lambda n: nn.ModuleList(nn.Linear(1, 1) for _ in range(n)),
                                  lambda n: nn.Parameter(torch.ones(n)), lambda n: torch.ones(n)])
def test_an_argument_kept_as_something_else(made):
    class Reuses(model.Recommender):
        def __init__(self, spec, experts=2):
            super().__init__(spec)
            self.experts = made(experts)
    with pytest.raises(TypeError,
                       match="Reuses keeps a (ModuleList|Parameter|Tensor) as self.experts, where its "
                             "argument belongs: write self.experts = experts in __init__"):
        Reuses(SPEC).get_params()


def test_arguments_without_names():
    class Anything(model.Recommender):
        def __init__(self, spec, *sizes): super().__init__(spec)
    with pytest.raises(TypeError, match="Anything.__init__ takes \\*sizes: name every argument"):
        Anything(SPEC).get_params()


@pytest.mark.wrong("argument '…' is …, which JSON cannot hold", area="training",
                   cause="A model of your own has an argument that is neither a number, nor text, nor made "
                         "of these.",
                   remedy="Give the model what the object is made from: a list of numbers, a name.")
@pytest.mark.parametrize("value", [np.ones(3), np.int64(3), {1: 2}, {3, 4}, float("nan"), float("inf"),
                                   object, b"x", [None, {"a": np.ones(2)}]])
def test_an_argument_that_json_cannot_hold(value, tmp_path):
    m = Plain(SPEC)
    m.about = value
    with pytest.raises(TypeError,
                       match="Plain.save: argument 'about' is .*, which JSON cannot hold .*: use numbers, "
                             "text, None, and tuples, lists and dicts"):
        m.save(tmp_path/"new")
    assert not (tmp_path/"new").exists()


def test_a_fusion_of_ones_own_saves_loads_and_counts(tmp_path):
    class Softest(fusion.WeightedFusion, name="mine"):
        def __init__(self, d, n_scenarios, d_query):
            super().__init__(d, n_scenarios, d_query)
            self.each = nn.Linear(d, 1)
        def weights(self, h, present, query, scenario):
            return fusion.masked_softmax(self.each(h).squeeze(-1), present)
    try:
        m, batch = a_model(fusion="mine", heads="per_scenario"), a_batch(SPEC, 13)
        m.save(tmp_path)
        again = model.Recommender.load(tmp_path)
        assert type(again.fuse) is Softest and again.get_params() == m.get_params() and torch.equal(
            logits(again, batch), logits(m, batch))
        assert model.count_parameters(m)["fuse"] == 32*32 + 32 + 33 and model.count_flops(m,
            batch)["fuse"] == 13*(2*32*32 + 3*2*32)
        assert "fusion mine" in model.model_card(m) and model.size_table(m, batch).loc["fuse", "flops"] > 0
        with torch.no_grad():
            assert (m.explain(batch).weights.sum(1) > .999).sum() == batch.present.any(1).sum()
        for ask in (model.parameters_by_formula, model.flops_by_formula, model.scenario_cost):
            with pytest.raises(ValueError,
                match="the formulas cover the fusions none, own, .*, not 'mine': build the model, then call "
                      "count_parameters"):
                ask(SPEC, fusion="mine")
    finally: fusion.FUSIONS.pop("mine")
    with pytest.raises(ValueError,
                       match="model.json does not describe a model: fusion 'mine' is unknown; .* one of your "
                             "own is known once its class is defined"):
        model.Recommender.load(tmp_path)


# Several tasks

@pytest.mark.formula("8.9")
@pytest.mark.parametrize("weights", [(1., 1.), (1., 2.), (.3, 0.)])
def test_loss_of_several_tasks_is_minus_the_log_likelihood(weights):
    batch = a_batch(TWO, 30)
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(4))
    p, total = 1/(1 + np.exp(-x.double().numpy())), 0.
    for b in range(30):  # one row at a time: the likelihood of each answer, to the power of its weight
        likelihood = 1.
        for k, w in enumerate(weights): likelihood *= (p[b, k] if batch.label[b, k] else 1 - p[b, k])**w
        total -= math.log(likelihood)
    tasks = tuple(Task(name, weight=w) for name, w in zip("ab", weights))
    torch.testing.assert_close(model.task_loss(x, batch.label, tasks).double(),
                               torch.tensor(total/30, dtype=torch.float64), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("heads", ["shared", "per_scenario"])
@pytest.mark.parametrize("fusion", ["none", "attention"])
def test_two_tasks_are_two_heads_by_hand(heads, fusion):
    two, batch = a_model(TWO, fusion=fusion, heads=heads), a_batch(TWO)
    answers, S = logits(two, batch), 3 if heads == "per_scenario" else 1
    assert answers.shape == (40, 2) and len(two.predictors) == 2*S
    for k in range(2):
        one = model.InterestModel(SPEC, fusion, heads).eval()
        shared = {name: x for name, x in two.state_dict().items() if not name.startswith("predictors.")}
        own = {f"predictors.{int(name.split('.')[1]) - k*S}.{name.split('.', 2)[2]}": x for name,
               x in two.state_dict().items()
               if name.startswith("predictors.") and k*S <= int(name.split(".")[1]) < (k + 1)*S}
        one.load_state_dict(shared | own)
        assert torch.equal(logits(one, batch), answers[:, k])
    loss = sum(task.weight*nn.functional.binary_cross_entropy_with_logits(answers[:, k], batch.label[:, k])
               for k, task in enumerate(TWO.tasks))
    with torch.no_grad(): torch.testing.assert_close(two.loss(batch), loss)
    assert model.parameters_by_formula(TWO, fusion=fusion, heads=heads) == model.count_parameters(two)
    assert model.flops_by_formula(TWO, 40, fusion=fusion, heads=heads) == model.count_flops(two, batch)


def test_several_tasks_are_kept(tmp_path):
    m, batch = a_model(TWO, heads="per_scenario"), a_batch(TWO)
    m.save(tmp_path)
    again = model.Recommender.load(tmp_path)
    assert again.spec.tasks == TWO.tasks and torch.equal(logits(again, batch), logits(m, batch))
    assert logits(m, batch[:0]).shape == (0, 2) and "predicts: clicked, bought" in model.model_card(m)
    score, alpha = m.explain(batch)
    assert score.shape == (40, 2) and alpha.shape == (40, 3)


def returns(made):
    "A model whose forward gives that."
    class Returns(Plain):
        def forward(self, batch): return made(super().forward(batch))
    return Returns(SPEC)


@pytest.mark.wrong("the model returned shape (…, 1), expected (…,): end its forward with .squeeze(1)",
                   area="training",
                   cause="A model of your own leaves the last axis on its log-odds.",
                   remedy="End its forward with .squeeze(1).")
@pytest.mark.parametrize("made, says", [
    (lambda x: x[:, None],
     "returned shape \\(40, 1\\), expected \\(40,\\): end its forward with .squeeze\\(1\\)"),
    (lambda x: (x, None),
     "returned tuple, expected log-odds of shape \\(B,\\) or \\(B, T\\): return only these, and "
     "leave explanations to explain"),
    (lambda x: x.tolist(), "returned list, expected log-odds"),
    (lambda x: torch.stack([x, x], 1),
     "returned shape \\(40, 2\\) for labels of shape \\(40,\\) and tasks clicked: expected one column "
     "per task, and a single axis for a single task"),
    (lambda x: x[1:], "returned shape \\(39,\\) for labels of shape \\(40,\\)"),
    (lambda x: x.sum(), "returned shape \\(\\) for labels")])
def test_a_forward_that_returns_something_else(made, says):
    with pytest.raises(ValueError, match=says): returns(made).loss(a_batch(SPEC))


def test_loss_refuses_what_broadcasting_would_hide():
    x, y = torch.zeros(5, 2), torch.zeros(5, 2)
    with pytest.raises(ValueError, match="tasks clicked: expected one column per task"): model.task_loss(x, y)
    with pytest.raises(ValueError, match="labels of shape \\(5,\\) and tasks clicked, bought"):
        model.task_loss(x, y[:, 0], TWO.tasks)
    with pytest.raises(ValueError, match="tasks clicked, bought"):
        model.task_loss(x[:, 0], y[:, 0], TWO.tasks)
    with pytest.raises(ValueError,
                       match="task 'stars' is of kind 'rating': a model for such a task must define its own "
                             "loss"):
        model.task_loss(x[:, 0], y[:, 0], (Task("stars", "rating"),))


# What items are like

def test_content_vectors_tell_equal_words_near_numbers_and_alike_vectors():
    spec = SPEC.with_features(Feature("title", "vector", 3, "item"))
    batch = a_batch(spec, 400)
    table = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    batch = data.Batch(batch.rows | dict(item_row=batch.fields[:, 2] - 10), batch.tables | dict(title=table))
    v = recommender.content_vectors(batch, spec)
    assert v.shape == (400, 3 + 1 + 32) and v.dtype == torch.float32
    torch.testing.assert_close(v[:, :3], table[batch.item_row])
    torch.testing.assert_close(v[:, 3], batch.dense[:, 0])  # price; quality does not describe the item
    words, category = v[:, 4:], batch.fields[:, 1]
    cosine = words @ words.T
    same = category[:, None] == category
    torch.testing.assert_close(cosine[same], torch.ones(int(same.sum())))
    assert cosine[~same].abs().max() < .75 and cosine[~same].abs().mean() < .25
    assert torch.equal(v, recommender.content_vectors(batch, spec)), "the same directions every time"


def test_content_vectors_take_the_item_itself_only_where_nothing_else_is_known():
    only = Spec(("home",), (Feature("item_id", "category", 9, "item"),))
    batch = data.Batch(dict(fields=torch.tensor([[3], [3], [4]]), scenario=torch.zeros(3).long()))
    v = recommender.content_vectors(batch, only)
    assert torch.equal(v[0], v[1]) and not torch.equal(v[0], v[2])
    with pytest.raises(ValueError,
                       match="no item features to compare items by: give the model an item_vectors"):
        recommender.content_vectors(batch, replace(only, features=(Feature("city", "category", 9, "user"),)))


def test_a_model_that_learned_vectors_gives_them_another_gives_the_contents():
    m, batch = a_model(), a_batch(SPEC)
    torch.testing.assert_close(m.item_vectors(batch), m.embed(batch.fields)[:, 1:].flatten(1))
    assert torch.equal(Plain(SPEC).item_vectors(batch), recommender.content_vectors(batch, SPEC)) and Plain(
        SPEC).explain(batch) is None


# Sizes

OPTIONS = [dict(fusion=f, heads=t, d_embed=e, widths=w, hidden=h) for f in FUSIONS for t, e, w, h in
           (("shared", 8, (64, 32), (64,)), ("per_scenario", 3, (5,), ()), ("shared", 1, (1,), (2, 3)),
            ("per_scenario", 4, (9, 6, 7), (5, 4)))]


@pytest.mark.formula("8.5")
@pytest.mark.parametrize("options", OPTIONS)
def test_parameters_by_counting(options):
    m = model.InterestModel(SPEC, **options)
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in m.named_children()}
    assert model.parameters_by_formula(SPEC, **options) == counted == model.count_parameters(m)
    assert sum(counted.values()) == sum(p.numel() for p in m.parameters())


def test_counting_counts_what_is_shared_once_and_what_stands_alone():
    m = nn.Module()
    m.a, m.b, m.none = nn.Linear(2, 3), nn.ModuleList([nn.Linear(3, 1)]), nn.ReLU()
    m.b[0].bias, m.own, m.same = m.a.bias, nn.Parameter(torch.ones(7)), m.a.weight
    assert model.count_parameters(m) == dict(a=3, b=3, none=0, own=7,
        same=6) and sum(model.count_parameters(m).values()) == sum(p.numel() for p in m.parameters())


@pytest.mark.formula("8.6")
@pytest.mark.parametrize("options", OPTIONS)
def test_one_more_scenario_by_building_both(options):
    for start in (SPEC, TWO):
        for columns in (0, 1, 2):
            more = replace(start.with_features(replace(HISTORY, size=7 + columns)),
                           scenarios=(*start.scenarios, "search"))
            sizes = [sum(p.numel() for p in model.InterestModel(spec, **options).parameters())
                     for spec in (start, more)]
            assert model.scenario_cost(start, columns, **options) == sizes[1] - sizes[0], columns


def test_scenario_cost_refuses_fewer_columns():
    with pytest.raises(ValueError, match="columns must be 0 or more, got -1"): model.scenario_cost(SPEC, -1)


@pytest.mark.formula("8.7")
@pytest.mark.parametrize("options", OPTIONS)
def test_flops_by_pytorch_s_counter(options):
    m = model.InterestModel(SPEC, **options)
    for n, R in ((13, 13), (13, 4), (13, 20)):
        batch = a_batch(SPEC, n, R)
        with FlopCounterMode(display=False) as counter, torch.no_grad(): m(batch)
        by_part = {name.split(".")[1]: 0 for name in counter.get_flop_counts() if name.count(".")}
        for name, work in counter.get_flop_counts().items():
            if name.count(".") == (2 if ".predictors." in name else 1):
                by_part[name.split(".")[1]] += sum(work.values())
        mine = model.flops_by_formula(SPEC, n, R, **options)
        assert {k: v for k, v in mine.items() if v} == {k: v for k, v in by_part.items() if v}
        assert sum(mine.values()) == counter.get_total_flops() and mine == model.count_flops(m, batch)


def test_flops_of_lists_in_lists_and_of_what_is_outside_all_parts():
    class Nested(Plain):
        def __init__(self, spec):
            super().__init__(spec)
            self.deep = nn.ModuleList([nn.ModuleList([nn.Linear(2, 5), nn.Linear(5, 1)]),
                                       nn.Sequential(nn.Linear(2, 1), nn.ReLU())])
            self.free = nn.Parameter(torch.ones(2, 3))
        def forward(self, batch):
            (first, second), other = self.deep
            return super().forward(batch) + second(first(batch.dense)).squeeze(1) + other(
                batch.dense).squeeze(1) + (batch.dense @ self.free).sum(1)
    found = model.count_flops(Nested(SPEC), a_batch(SPEC, 10))
    assert found == dict(ids=0, deep=10*2*(2*5 + 5 + 2), rest=10*2*2*3)


def test_flops_of_training_do_not_share_histories():
    m, batch = model.InterestModel(SPEC), a_batch(SPEC, 13, 4)
    with FlopCounterMode(display=False) as counter: m(batch)
    assert counter.get_total_flops() == sum(model.flops_by_formula(SPEC, 13).values())


@pytest.mark.parametrize("asked, says", [(dict(n_rows=-1), "n_rows"), (dict(n_histories=-2), "n_histories")])
def test_flops_refuse_negative_rows(asked, says):
    with pytest.raises(ValueError, match=f"{says} must be 0 or more"): model.flops_by_formula(SPEC, **asked)


def test_size_table_adds_up():
    m, batch = a_model(fusion="concat", heads="per_scenario"), a_batch(SPEC, 10, 3)
    table = model.size_table(m, batch)
    parts = table.drop(index="total")
    assert parts.parameters.to_dict() == model.parameters_by_formula(SPEC, fusion="concat",
        heads="per_scenario")
    assert parts.flops.to_dict() == model.flops_by_formula(SPEC, 10, 3, fusion="concat", heads="per_scenario")
    assert (parts.sum()[["parameters", "flops"]] == table.loc["total", ["parameters", "flops"]]).all()
    np.testing.assert_allclose(parts[["parameters_share", "flops_share"]].sum(), 1)
    assert list(model.size_table(m)) == ["parameters", "parameters_share"]
    assert (model.size_table(Plain(SPEC), batch).flops_share == 0).all()


# Before the first epoch

@pytest.mark.formula("8.8")
@pytest.mark.parametrize("rate, mean, var", [(.3, 0., .04), (.05, .2, .01), (.9, -.1, .09), (.5, 0., 1e-8)])
def test_start_loss_by_integration(rate, mean, var):
    def loss(x):
        return (rate*math.log1p(math.exp(-x)) + (1 - rate)*math.log1p(math.exp(x)))*math.exp(
            -(x - mean)**2/(2*var))/math.sqrt(2*math.pi*var)
    width = 10*math.sqrt(var)
    expected = integrate.quad(loss, mean - width, mean + width)[0]
    assert model.start_loss(rate, mean, var) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("asked, says", [((1.1,), "rate must be between 0 and 1"), ((-.1,), "rate"),
                                         ((.5, 0., -1.), "var must be 0 or more")])
def test_start_loss_refuses(asked, says):
    with pytest.raises(ValueError, match=says): model.start_loss(*asked)


@pytest.mark.parametrize("heads", ["shared", "per_scenario"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fresh_model_passes_its_checks(fusion, heads, mall):
    spec, batch = mall
    torch.manual_seed(0)
    m = model.InterestModel(spec, fusion, heads)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    table = model.check_model(m, batch[:1000])
    assert table.passed.all(), table.to_string()
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items()) and all(p.grad is None
        for p in m.parameters())


class Faulty(model.InterestModel):
    "A model with a planted fault."
    fault = ""

    def logits_and_weights(self, batch):
        if self.fault == "absent":
            batch = with_parts(batch, present_table=torch.ones_like(batch.present_table))
        out, alpha = super().logits_and_weights(batch)
        if self.fault == "large": out = 10*out
        if self.fault == "rows": out = out + .1*out.cumsum(0)/len(out)
        if self.fault == "nan": out = out/(batch.present.any(1))*batch.present.any(1)
        if self.fault == "cut": out = out.detach() + 0*self.scenario_embedding.weight.sum() + out.mean()*0
        return out, alpha


@pytest.mark.parametrize("fault, check", [("large", "first loss"), ("rows", "rows permuted"),
    ("nan", "nobody present"), ("absent", "absent content"), ("cut", "gradients")])
def test_each_check_finds_its_fault(fault, check, mall):
    spec, batch = mall
    torch.manual_seed(0)
    m = Faulty(spec)
    m.fault = fault
    table = model.check_model(m, batch[:500])
    assert not table.passed[[name for name in table.index if name.startswith(check)]].any(), table.to_string()


def test_the_check_names_what_gets_no_gradient():
    batch = a_batch(SPEC, 200)
    table = model.check_model(model.InterestModel(SPEC, heads="per_scenario"), batch[batch.scenario != 2])
    assert table.which.iloc[
        -1] == ("predictors.2.hidden.layers.0.weight, predictors.2.hidden.layers.0.bias, "
                "predictors.2.out.weight, predictors.2.out.bias")
    with pytest.raises(ValueError, match="no rows"): model.check_model(model.InterestModel(SPEC), batch[:0])


# Other precision, compiled

@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("heads", ["shared", "per_scenario"])
def test_bfloat16_gives_close_logits_and_gradients(fusion, heads):
    m, batch = a_model(fusion=fusion, heads=heads), a_batch(SPEC)
    with torch.autocast("cpu", torch.bfloat16): coarse = m(batch)
    exact = m(batch)
    assert (coarse.float() - exact).abs().max() < .02*(1 + exact.abs().max())
    coarse.float().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("cl") is None,
                    reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("options",
                         [dict(fusion="concat"), dict(fusion="attention+own", heads="per_scenario")])
def test_compiled_gives_close_logits_and_gradients(options):
    m, batch = a_model(**options), a_batch(SPEC)
    compiled = torch.compile(m)
    plain = m(batch)
    torch.testing.assert_close(compiled(batch), plain, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad(plain.square().mean(), list(m.parameters()), allow_unused=True)
    found = torch.autograd.grad(compiled(batch).square().mean(), list(m.parameters()), allow_unused=True)
    for a, b in zip(found, expected):
        if b is not None: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(a_batch(SPEC, 30, 4)), m(a_batch(SPEC, 30, 4)), atol=1e-5,
                                   rtol=1e-5)


@pytest.mark.gpu
def test_gpu_gives_close_logits():
    m, batch = a_model(), a_batch(SPEC)
    here = logits(m, batch)
    torch.testing.assert_close(logits(m.to("cuda"), batch.to("cuda")).cpu(), here, atol=1e-4, rtol=1e-4)


# Files

@pytest.mark.parametrize("options",
    [dict(fusion=f, heads=t) for f in FUSIONS for t in ("shared", "per_scenario")]
                         + [dict(widths=(5,), hidden=(), d_embed=2)])
def test_save_and_load_give_the_same_model(options, tmp_path):
    m, batch = a_model(**options), a_batch(SPEC)
    m.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    again = model.InterestModel.load(str(tmp_path))
    assert again.spec == SPEC and again.get_params() == m.get_params() and not again.training
    assert torch.equal(logits(again, batch), logits(m, batch))


def test_a_double_model_stays_double(tmp_path):
    m = a_model().double()
    m.save(tmp_path)
    again = model.InterestModel.load(tmp_path)
    assert all(p.dtype == torch.float64 for p in again.parameters())
    assert torch.equal(logits(again, a_batch(SPEC)), logits(m, a_batch(SPEC)))


def test_saving_again_replaces(tmp_path):
    for seed in (0, 5):
        m = a_model(seed=seed)
        m.save(tmp_path/"made"/"here")
        assert torch.equal(logits(model.InterestModel.load(tmp_path/"made"/"here"), a_batch(SPEC)),
                           logits(m, a_batch(SPEC)))


@pytest.mark.parametrize("at", range(3))
def test_whatever_interrupts_a_save_the_old_model_or_the_new_one_is_there(at, tmp_path, monkeypatch):
    one, two, batch, real, renamed = a_model(seed=1), a_model(seed=2), a_batch(SPEC), os.replace, []
    one.save(tmp_path)
    def until(a, b):
        if len(renamed) == at: raise KeyboardInterrupt
        renamed.append(b)
        real(a, b)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", until)
        with pytest.raises(KeyboardInterrupt): two.save(tmp_path)
    # beside the old numbers, the description, in the place of the old numbers
    expected = one if at < 2 else two
    assert torch.equal(logits(model.Recommender.load(tmp_path), batch), logits(expected, batch))
    two.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    m = a_model()
    m.save(tmp_path)
    def refuse(*_): raise OSError(errno.ENOSPC, "disk full")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="disk full"): a_model(seed=3).save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert torch.equal(logits(model.Recommender.load(tmp_path), a_batch(SPEC)), logits(m, a_batch(SPEC)))


def test_loading_draws_no_random_numbers(tmp_path):
    a_model().save(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model.Recommender.load(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_the_spec_names_the_preprocessor(tmp_path):
    made = data.toy_mall(n_users=50, n_items=20, n_events=3000)
    one, two = (preprocess.Preprocessor().fit(made.events[:n], made.users, made.items) for n in (2800, 3000))
    assert one.spec != two.spec and replace(one.spec, prep="") == replace(two.spec,
        prep=""), "the same sizes, other data"
    model.InterestModel(one.spec).save(tmp_path)
    assert model.Recommender.load(tmp_path).spec == one.spec


ELSEWHERE = """
from torch import nn
from multiscene_rec.model import Recommender
class Far(Recommender, name="far away"):
    def __init__(self, spec, experts=2):
        super().__init__(spec)
        self.experts, self.layer = experts, nn.Linear(len(spec.dense), experts)
    def forward(self, batch): return self.layer(batch.dense).sum(1)
"""


@pytest.fixture
def far(tmp_path, monkeypatch):
    "A folder with a saved model, and beside it the module of its class, which this process has forgotten."
    (tmp_path/"far_model.py").write_text(ELSEWHERE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("far_model").Far(SPEC, experts=5).save(tmp_path/"kept")
    del recommender._MODELS["far away"], sys.modules["far_model"]
    return tmp_path


@pytest.mark.wrong("model.json holds a model '…', defined in …, which has not been imported: import … first",
                   area="files",
                   cause="The class of a saved model is not defined in this process; a file never decides "
                         "what is imported.",
                   remedy="Import the module, or run the cell, that defines the class; then load again.")
def test_a_model_whose_class_is_not_imported(far):
    load = """
        import sys
        from multiscene_rec.model import Recommender
        try: Recommender.load("kept")
        except ImportError as e: print(e)
        print("far_model" in sys.modules)
        import far_model
        print(Recommender.load("kept").get_params())"""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(load)], capture_output=True, text=True,
                          cwd=far,
                          env=os.environ | dict(PYTHONPATH=os.pathsep.join([str(far), str(notebooks.ROOT)])))
    assert done.stdout.splitlines() == [
        f"{Path('kept')/'model.json'} holds a model 'far away', defined in far_model:Far, which has not "
        "been imported: import far_model first, then load again",
        "False", "{'experts': 5}"], done.stderr


def test_a_model_that_was_defined_in_a_notebook(tmp_path):
    Notebook = type("Notebook", (Plain,), {"__module__": "__main__"})
    Notebook(SPEC).save(tmp_path)
    del recommender._MODELS["notebook"]
    with pytest.raises(ImportError,
                       match="defined in __main__:Notebook, which has not been imported: run the cell or "
                             "script that defines class Notebook first, then load again"):
        model.Recommender.load(tmp_path)


# The card

def test_the_card_says_what_is_in_the_folder():
    m, batch = a_model(heads="per_scenario"), a_batch(SPEC, 1)
    metrics = pd.DataFrame({"AUC": [.71234, .5], "rows": [1200, 30]},
                           index=pd.Index(["cart", "home|feed"], name="scenario"))
    card = model.model_card(m, metrics, seed=7, title="A test", batch=batch, data="made up", use="Testing.")
    total = sum(p.numel() for p in m.parameters())
    for text in ("# A test", "data: made up", "3: cart, home, live", "item_id (9 ids)", "price", "quality",
                 "history (7 numbers)",
                 "model: InterestModel, fusion attention, heads per_scenario", "predicts: clicked",
                 f"| total | {total:,} | "
                 f"{sum(model.flops_by_formula(SPEC, heads='per_scenario').values()):,} |",
                 "| cart | 0.7123 | 1,200 |", "home\\|feed", "seed: 7",
                 f"torch {torch.__version__.split('+')[0]}", "file format 3", "## Intended use\n\nTesting.",
                 "## Limits"):
        assert text in card, text
    for block in card.split("\n\n"):
        if block.startswith("| "):
            assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_the_card_says_what_is_not_known():
    card = model.model_card(a_model(fusion="none"))
    for text in ("data: not stated", "None were given.", "seed: not stated", "fusion none",
                 "## Size\n\nParameters.\n"):
        assert text in card, text
    assert "FLOPs" not in card and "## Rows" not in card


def test_the_card_of_any_model():
    class Bare(model.Recommender):
        def __init__(self, spec):
            super().__init__(spec)
            self.one = nn.Linear(2, 1)
        def forward(self, batch): return self.one(batch.dense).squeeze(1)
    card = model.model_card(Bare(SPEC), batch=a_batch(SPEC, 1), rows=["100 of 120 rows were kept"],
                            made=["stopped after 3 epochs"])
    for text in ("model: Bare, no arguments", "| one | 3 | 4 |", "100 of 120 rows were kept",
                 "- stopped after 3 epochs"):
        assert text in card, text



@pytest.mark.parametrize("heads", ["both", True, None])
def test_heads_are_shared_or_per_scenario(heads):
    with pytest.raises(ValueError, match="heads must be .shared. or .per_scenario., got"):
        model.InterestModel(SPEC, heads=heads)
