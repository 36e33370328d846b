"""Second opinions on multiscene_rec.data: formulas by plain loops and enumeration, files of every dialect,
a local web server."""
import copy
import hashlib
import http.server
import io
import itertools
import math
import pickle
import struct
import threading
import time
import tracemalloc
import warnings
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch.utils import _pytree as pytree

from multiscene_rec import data, logs

SMALL = dict(n_users=150, n_items=40, n_events=3000)


@pytest.fixture(scope="module")
def mall(): return data.toy_mall(**SMALL)


def white(n, k):
    "n rows whose sample covariance is exactly the identity: correlations of their mixes are then exact."
    x = np.random.default_rng(0).normal(size=(n, k))
    x -= x.mean(0)
    return np.linalg.qr(x)[0]*math.sqrt(n)


# The mall's formulas

@pytest.mark.formula("2.1")
@pytest.mark.parametrize("loading", [data.scenario_loading(), data.scenario_loading(.4),
                                     np.array([[1., 2], [-3, .5], [0, -1]])])
def test_taste_correlation_is_that_of_a_sample(loading):
    tastes = white(500, loading.shape[1]) @ loading.T
    np.testing.assert_allclose(data.taste_correlation(loading), np.corrcoef(tastes.T), atol=1e-9)


@pytest.mark.formula("2.2")
@pytest.mark.parametrize("rho", [0, .25, .5, 1])
def test_dial_gives_its_correlation_and_length_one(rho):
    loading = data.scenario_loading(rho)
    tastes = white(500, 6) @ loading.T
    np.testing.assert_allclose(np.cov(tastes.T, bias=True), rho + (1 - rho)*np.eye(4), atol=1e-9)
    b, c = sympy.symbols("b c", positive=True)
    if 0 < rho < 1:
        (root,) = sympy.solve([2*b**2 - sympy.Rational(rho), 2*b**2 + c**2 - 1], [b, c], dict=True)
        np.testing.assert_allclose(loading[0, :3], [float(root[b])]*2 + [float(root[c])], atol=1e-9)


def test_mall_mixing_has_two_blocks():
    corr = data.taste_correlation(data.scenario_loading())
    home, search, cart, live = range(4)
    assert corr[home, live] > .9 and corr[search, cart] > .9
    assert corr[home, search] < .6 and corr[live, cart] < .6


@pytest.mark.parametrize("bad", [-.1, 1.1])
def test_similarity_outside_is_an_error(bad):
    with pytest.raises(ValueError, match="between 0"): data.scenario_loading(bad)
    with pytest.raises(ValueError, match="between 0"): data.toy_mall(**SMALL, similarity=bad)


def test_a_scenario_without_taste_is_an_error():
    with pytest.raises(ValueError, match="row 1 of loading is all zero"):
        data.taste_correlation(np.array([[1., 0], [0, 0]]))


@pytest.mark.formula("2.3")
@pytest.mark.parametrize("similarity", [None, .3])
def test_truth_by_plain_loops(similarity):
    mall = data.toy_mall(**SMALL, similarity=similarity)
    rows = mall.events.sample(60, random_state=1)
    slow = []
    for user, item, scenario in zip(rows.user_id, rows.item_id, rows.scenario):
        s = mall.scenarios.index(scenario)
        odds = mall.bias[s] + mall.item_effect[item]
        for k in range(mall.item_vectors.shape[1]):
            for tau in range(mall.loading.shape[1]):
                odds += mall.strength[s]*mall.loading[s, tau]*mall.tastes[user, tau,
                    k]*mall.item_vectors[item, k]
        slow.append(1/(1 + math.exp(-odds)))
    np.testing.assert_allclose(mall.truth(rows), slow, rtol=1e-10)


@pytest.mark.parametrize("column, value", [("user_id", 10_000), ("item_id", -1), ("scenario", "Home")])
def test_truth_names_an_unknown_id(mall, column, value):
    rows = mall.events.head(3).copy()
    rows[column] = [*rows[column].head(2), value]
    with pytest.raises(ValueError, match=f"column '{column}', row 2"): mall.truth(rows)


# What the truth scores

def enumerated(p, s):
    "Expected right pairs over expected pairs, over all 2^n label vectors, in exact fractions."
    p, right, pairs = [Fraction(x) for x in p], Fraction(0), Fraction(0)
    for label in itertools.product((0, 1), repeat=len(p)):
        weight = math.prod(x if y else 1 - x for x, y in zip(p, label))
        for i, j in itertools.permutations(range(len(p)), 2):
            if label[i] > label[j]:
                pairs += weight
                right += weight*(Fraction(int(s[i] > s[j])) + Fraction(int(s[i] == s[j]), 2))
    return float(right/pairs)


PROBS, SCORES = [.5, .125, .875, .25, .125, .75], [3, 1, 2, 2, 5, 2]


@pytest.mark.formula("2.4")
def test_expected_auc_by_enumeration_of_all_labels():
    assert data.expected_auc(PROBS, SCORES) == pytest.approx(enumerated(PROBS, SCORES), abs=1e-12)
    assert data.expected_auc(PROBS) == pytest.approx(enumerated(PROBS, PROBS), abs=1e-12)


@pytest.mark.formula("2.5")
def test_auc_regret_by_enumeration_of_all_labels():
    assert data.auc_regret(PROBS, SCORES) == pytest.approx(enumerated(PROBS, PROBS)
                                                           - enumerated(PROBS, SCORES), abs=1e-12)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=60))
def test_with_labels_it_is_the_ordinary_auc(rows):
    label, score = map(np.array, zip(*rows))
    if label.all() or not label.any():
        with pytest.raises(ValueError, match="only one can occur"): data.expected_auc(label, score)
    else: assert data.expected_auc(label, score) == pytest.approx(roc_auc_score(label, score), abs=1e-12)


@given(st.lists(st.tuples(st.floats(.01, .99), st.integers(-3, 3)), min_size=2, max_size=40))
def test_nothing_beats_the_truth(rows):
    p, score = map(np.array, zip(*rows))
    lost = data.expected_auc(p) - data.expected_auc(p, score)
    assert lost >= -1e-12
    assert data.auc_regret(p, score) == pytest.approx(lost, abs=1e-10)
    assert data.auc_regret(p, 3*p**3 - 1) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("density", ["1", "2*(1-p)"])
def test_auc_of_the_truth_as_an_integral(density):
    p, q, f = *sympy.symbols("p q"), sympy.sympify(density)
    mean = sympy.integrate(p*f, (p, 0, 1))
    inner = sympy.integrate((1 - q)*f.subs(sympy.Symbol("p"), q), (q, 0, p))
    exact = float(sympy.integrate(p*f*inner, (p, 0, 1))/(mean*(1 - mean)))
    grid = (np.arange(20_000) + .5)/20_000
    if density == "1": assert exact == pytest.approx(5/6)
    else: grid = 1 - np.sqrt(1 - grid) # quantiles of 2(1 - p)
    assert data.expected_auc(grid) == pytest.approx(exact, abs=2e-4)


def test_expected_auc_takes_tensors_and_names_mistakes():
    assert data.expected_auc(torch.tensor([.25, .75]), torch.tensor([0., 1.])) == pytest.approx(.5625/.625)
    with pytest.raises(ValueError, match="row 1 is outside"): data.expected_auc([.5, 1.5])
    with pytest.raises(ValueError, match="row 0 is outside"): data.expected_auc([math.nan, .5])
    with pytest.raises(ValueError, match="one axis"): data.expected_auc([[.5, .5]])
    with pytest.raises(ValueError, match="score has shape"): data.expected_auc([.5, .2], [1.])
    with pytest.raises(ValueError, match="row 1 is not finite"): data.expected_auc([.5, .2], [1., math.inf])
    with pytest.raises(ValueError, match="only one"): data.auc_regret([1., 1.], [1., 2.])


# The mall's frames

def test_same_seed_same_mall(mall):
    again = data.toy_mall(**SMALL)
    pd.testing.assert_frame_equal(mall.events, again.events)
    pd.testing.assert_frame_equal(mall.items, again.items)
    assert not mall.events.equals(data.toy_mall(**SMALL, seed=8).events)


def test_frames_hold_what_the_schema_names(mall):
    schema = data.Schema()
    assert set(schema.required) <= set(mall.events)
    assert set(schema.categorical) <= {*mall.users, *mall.items} and set(schema.item_columns) <= set(
        mall.items)
    assert mall.events.clicked.isin((0, 1)).all() and len(mall.events) == SMALL["n_events"]
    assert mall.events.timestamp.dtype == np.int64 and mall.events.timestamp.is_monotonic_increasing
    assert mall.items.title.is_unique and (
        mall.items.price > 0).all() and mall.items.popularity.sum() == pytest.approx(1)
    assert mall.users.user_id.is_unique and mall.events.user_id.isin(mall.users.user_id).all()


def test_a_page_is_one_visit(mall):
    pages = mall.events.groupby("page")
    assert (pages[["user_id", "scenario", "timestamp"]].nunique() == 1).all(axis=None)
    for _, page in pages: assert page.position.tolist() == list(range(len(page)))


def test_scenarios_differ_and_some_users_are_absent():
    lines = data.log_summary(data.toy_mall().events)
    assert len(lines) == 5 and lines.share[:-1].max() > 2*lines.share[:-1].min()
    assert lines.click_rate[:-1].max() > 1.3*lines.click_rate[:-1].min()
    assert (lines.users[:-1] < lines.users["all"]).all()
    mall = data.toy_mall()
    assert len(set(mall.bias)) == 4 and len(set(mall.strength)) > 1


def test_labels_are_coins_of_the_truth():
    mall = data.toy_mall(n_users=2000, n_events=60_000)
    p, y = mall.truth(mall.events), mall.events.clicked
    for name in mall.scenarios:
        at = (mall.events.scenario == name).to_numpy()
        z = (y[at] - p[at]).sum()/math.sqrt((p[at]*(1 - p[at])).sum())
        assert abs(z) < 4, (name, z)
    assert roc_auc_score(y, p) == pytest.approx(data.expected_auc(p), abs=.01)


def test_tastes_are_normal_around_the_band():
    mall = data.toy_mall(n_users=4000, n_events=1000)
    rest = mall.tastes - mall.prior_mean
    assert abs(rest.mean()) < .02 and abs(rest.std() - 1) < .02
    bands = pd.DataFrame(mall.prior_mean.reshape(4000, -1)).groupby(mall.users.age_band).nunique()
    assert (bands == 1).all(axis=None)
    np.testing.assert_allclose(np.linalg.norm(mall.item_vectors, axis=1), 1)


def test_rich_history_means_more_rows_a_user():
    sparse, rich = (data.toy_mall(n_users=700, n_items=40, n_events=5000, history=h)
                    for h in ("sparse", "rich"))
    assert len(sparse.users) == 700 and len(rich.users) == 100
    assert data.log_summary(rich.events).rows_per_user["all"] > 4*data.log_summary(
        sparse.events).rows_per_user["all"]


@pytest.mark.parametrize("similarity, T", [(None, 2), (.5, 6)])
def test_revealed_tastes_are_the_hidden_ones(similarity, T):
    mall = data.toy_mall(**SMALL, similarity=similarity, reveal_tastes=True)
    shown = mall.users.drop(columns=["user_id", "age_band", "city"])
    assert shown.shape[1] == 4*T and {"browse_1", "buy_4"} <= set(shown)
    np.testing.assert_allclose(shown.to_numpy().reshape(mall.tastes.shape), mall.tastes)
    pd.testing.assert_frame_equal(mall.events, data.toy_mall(**SMALL, similarity=similarity).events)
    np.testing.assert_allclose(np.hstack([mall.mixing, np.diag(mall.private)])[:, :T], mall.loading)


@pytest.mark.parametrize("wrong, says", [(dict(n_users=0), "n_users"), (dict(n_items=0), "n_items"),
                                         (dict(n_events=-1), "n_events"),
                                         (dict(history="long"), "history")])
def test_mall_names_a_wrong_argument(wrong, says):
    with pytest.raises(ValueError, match=says): data.toy_mall(**(SMALL | wrong))


def test_smallest_mall():
    mall = data.toy_mall(n_users=1, n_items=1, n_events=1, history="rich")
    assert len(mall.events) == len(mall.users) == len(mall.items) == 1


def test_a_million_events_take_seconds():
    start = time.process_time()
    mall = data.toy_mall(n_events=1_000_000)
    assert len(mall.truth(mall.events)) == 1_000_000
    assert time.process_time() - start < 20


# Dirt

def test_dirt_is_what_it_says(mall):
    log, dirt = mall.dirty(seed=3)
    assert dirt.row.is_unique and log.index.equals(pd.RangeIndex(len(log)))
    clean = mall.events
    for row, kind, original in dirt.itertuples(index=False):
        got, was = log.loc[row], clean.loc[original]
        columns = {"duplicate": [], "resent": ["timestamp"], "missing id": ["user_id", "item_id"],
                   "price": ["price"],
                   "time": ["timestamp"], "scenario": ["scenario"]}[kind]
        changed = [c for c in clean if pd.isna(got[c]) or got[c] != was[c]]
        if kind == "missing id":
            assert len(changed) == 1 and changed[0] in columns and pd.isna(got[changed[0]])
        else: assert changed == columns
        if kind == "price": assert got.price <= 0 or got.price > 1e6
        if kind == "time": assert not was.timestamp - 90*86400 < got.timestamp < was.timestamp + 90*86400
        if kind == "resent": assert 1 <= got.timestamp - was.timestamp <= 5
        if kind == "scenario": assert got.scenario.lower() == was.scenario
    assert len(log) == len(clean) + dirt.kind.isin(["duplicate", "resent"]).sum()
    assert dirt.original.is_unique


def test_clean_rows_of_a_dirty_log_are_untouched(mall):
    log, dirt = mall.dirty(seed=3)
    good = log.drop(index=dirt.row).astype({"user_id": "int64", "item_id": "int64"})
    hit = dirt.original[~dirt.kind.isin(["duplicate", "resent"])]
    want = mall.events.drop(index=hit)
    pd.testing.assert_frame_equal(good.sort_values(["page", "position"], ignore_index=True),
                                  want.reset_index(drop=True))
    assert set(dirt.kind) == {"duplicate", "resent", "missing id", "price", "time", "scenario"}
    assert not log.equals(mall.dirty(seed=4)[0]) and dirt.equals(mall.dirty(seed=3)[1])


# The summary

def test_log_summary_by_loops(mall):
    lines, events = data.log_summary(mall.events), mall.events
    pairs = len(set(events.user_id))*len(set(events.item_id))
    for name, line in lines.iterrows():
        part = [r for r in events.itertuples() if name in ("all", r.scenario)]
        assert line.rows == len(part) and line.users == len({r.user_id for r in part})
        assert line.click_rate == pytest.approx(sum(r.clicked for r in part)/len(part))
        assert line["share"] == pytest.approx(len(part)/len(events))
        assert line.pairs_seen == pytest.approx(len({(r.user_id, r.item_id) for r in part})/pairs)
    with pytest.raises(ValueError, match="lacks column 'clicked'"):
        data.log_summary(events.drop(columns="clicked"))


# Schema

def test_schema_defaults_and_cuts():
    assert data.Schema().required == ("user_id", "item_id", "scenario", "timestamp", "clicked")
    assert data.Schema(categorical=["brand"], numeric=()).item_columns == ("brand",)
    assert data.Schema(categorical=("a",), numeric=("n",), item_columns=["a"], history=["a"]).history == ("a",
        )
    assert data.Schema(history=("item_id",)).history == ("item_id",)


@pytest.mark.parametrize("wrong, says", [
    (dict(user="clicked"), "'clicked' is used twice"),
    (dict(categorical=("user_id",)), "'user_id' is used twice"),
    (dict(numeric="price"), "not one string"), (dict(user=""), "non-empty"),
    (dict(categorical=(3,)), "non-empty"),
    (dict(item_columns=("size",)), "'size' is in neither"),
    (dict(history=("city",)), "'city' is not a categorical item column"),
    (dict(history=("price",)), "'price' is not a categorical"), (dict(history=()), "at least one"),
    (dict(label=()), "Schema.label: name the column of the answer"),
    (dict(label=("a", "a")), "'a' is used twice"),
    (dict(label=("clicked", "city")), "'city' is used twice"),
    (dict(label=("a", 3)), "Schema.label: column names must be non-empty")])
def test_schema_names_a_mistake(wrong, says):
    with pytest.raises(ValueError, match=says): data.Schema(**wrong)


def test_several_labels(mall):
    schema = data.Schema(label=["clicked", "bought"])
    assert schema.labels == ("clicked", "bought") and schema.required[4:] == schema.labels and hash(
        schema) == hash(data.Schema(label=schema.labels))
    assert data.Schema(label=("liked",)).label == "liked" and data.Schema(label=("liked",)) == data.Schema(
        label="liked")
    events = mall.events.assign(bought=mall.events.clicked*(mall.events.price > 20))
    lines = data.log_summary(events, schema)
    assert lines.columns.tolist()[2:4] == ["click_rate", "bought_rate"]
    for name in mall.scenarios:
        assert lines.bought_rate[name] == pytest.approx(events.bought[events.scenario == name].mean())
    with pytest.raises(ValueError, match="the log lacks column 'bought'"):
        data.log_summary(mall.events, schema)


# Batch

TABLES = "history_table", "present_table"


def build(**parts):
    "A batch of these parts, each where it belongs."
    return data.Batch({k: v for k, v in parts.items() if k not in TABLES},
                      {k: v for k, v in parts.items() if k in TABLES})


def parts(B=7, F=3, D=2, S=4, H=5, R=3):
    g = torch.Generator().manual_seed(0)
    return dict(fields=torch.randint(9, (B, F), generator=g), dense=torch.randn(B, D, generator=g),
                scenario=torch.randint(S, (B,), generator=g),
        label=torch.rand(B, generator=g), history_table=torch.randn(R, S, H, generator=g),
        present_table=torch.rand(R, S, generator=g) < .5, history_row=torch.randint(R, (B,), generator=g))


def test_history_is_gathered():
    p = parts()
    batch = build(**p)
    for i in range(7):
        r = p["history_row"][i].item()
        assert torch.equal(batch.history[i], p["history_table"][r]) and torch.equal(batch.present[i],
            p["present_table"][r])
    assert len(batch) == 7 and repr(batch).startswith(
        "Batch(7 rows: fields (7, 3), dense (7, 2), scenario (7,), label (7,), history_row (7,)")
    assert repr(batch).endswith(
        "tables: history_table (3, 4, 5), present_table (3, 4); cpu)") and "tables: none; cpu)" in repr(
            data.Batch(batch.rows))


@pytest.mark.parametrize("rows", [slice(2, 5), slice(None, None, 2), slice(None, None, -1), slice(4, 1, -2),
                                  3, -1, np.int64(2), [0, -1, 0], [],
    torch.tensor([6, 2]), np.array([1, 1]), [True, False]*3 + [True], torch.zeros(7, dtype=torch.bool),
                                  np.arange(7) > 4,
    torch.tensor([3], dtype=torch.int32)])
def test_rows_as_numpy_takes_them(rows):
    batch = build(**parts())
    cut, which = batch[rows], np.atleast_1d(np.arange(7)[np.asarray(rows, dtype=int if rows == [] else None)
                                                         if isinstance(rows, list)
                                                          else rows.numpy() if isinstance(rows, torch.Tensor)
                                                         else rows])
    assert cut.label.tolist() == batch.label[torch.from_numpy(which.copy())].tolist() and len(cut) == len(
        which)
    assert cut.fields.shape == (len(which), 3) and cut.history.shape == (len(which), 4, 5)
    assert cut.history_table is batch.history_table and cut.present_table is batch.present_table


@pytest.mark.parametrize("rows, says", [(7, "row 7"), (-8, "row -8"), ([7], "not all exist in a batch of 7"),
                                        ([-8], "not all exist in a batch of 7"),
    ([True], "a mask of 1"), ([.5], "whole numbers"), ([[0]], "one axis")])
def test_rows_that_are_not_there(rows, says):
    with pytest.raises(IndexError, match=says): build(**parts())[rows]


@given(B=st.integers(0, 30), size=st.integers(1, 12), shuffle=st.booleans(), seed=st.integers(0, 5))
@settings(max_examples=40)
def test_an_epoch_holds_each_row_once(B, size, shuffle, seed):
    batch = build(**parts(B=B))
    batch.fields[:, 0] = torch.arange(B)
    epoch = list(batch.batches(size, shuffle, seed))
    assert [len(b) for b in epoch] == [size]*(B//size) + [B % size]*(B % size > 0)
    seen = torch.cat([b.fields[:, 0] for b in epoch]) if epoch else torch.empty(0).long()
    assert sorted(seen.tolist()) == list(range(B))
    if not shuffle: assert seen.tolist() == list(range(B))
    again = [b.label.tolist() for b in batch.batches(size, shuffle, seed)]
    assert again == [b.label.tolist() for b in epoch]
    for b in epoch:
        assert torch.equal(b.label, batch.label[b.fields[:, 0]]) and torch.equal(b.history,
            batch.history[b.fields[:, 0]])


def test_batches_are_slices_of_one_gather():
    batch = build(**parts(B=10))
    first, second, _ = batch.batches(4, shuffle=True)
    memory = lambda batch: batch.fields.untyped_storage().data_ptr()
    assert memory(first) == memory(second) != memory(batch)
    assert next(batch.batches(4)).label.data_ptr() == batch.label.data_ptr()
    orders = {tuple(b.label.tolist()) for seed in range(5) for b in batch.batches(10, shuffle=True,
        seed=seed)}
    assert len(orders) == 5
    with pytest.raises(ValueError, match="1 or more"): batch.batches(0)


def test_to_moves_every_part():
    moved = build(**parts()).to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in parts())


@pytest.mark.gpu
def test_batches_on_the_gpu():
    batch = build(**parts())
    there = batch.to("cuda")
    for a, b in zip(batch.batches(3, shuffle=True, seed=2), there.batches(3, shuffle=True, seed=2)):
        assert b.history.is_cuda and torch.equal(a.history, b.history.cpu()) and torch.equal(a.fields,
            b.fields.cpu())
    assert there[batch.label > .5].label.tolist() == batch[batch.label > .5].label.tolist()
    with pytest.raises(ValueError, match="one device"): build(**(parts() | dict(label=there.label)))


@pytest.mark.parametrize("name, value, says", [
    ("fields", np.zeros((7, 3)), "Batch.fields: expected a tensor, got ndarray"),
    ("fields", torch.zeros(7, 3), "expected torch.int64, got torch.float32"),
    ("dense", torch.zeros(7), "Batch.dense: expected 2 axes"),
    ("label", torch.zeros(6), "Batch.label: axis 'B': expected 7, got 6"),
    ("present_table", torch.ones(3, 5).bool(), "Batch.present_table: axis 'S': expected 4, got 5"),
    ("scenario", torch.tensor([0, 0, 0, 0, 4, 0, 0]), "Batch.scenario: row 4 is 4, expected 0 to 3"),
    ("scenario", torch.full((7,), -1), "Batch.scenario: row 0 is -1"),
    ("history_row", torch.full((7,), 3), "Batch.history_row: row 0 is 3, expected 0 to 2"),
    ("fields", torch.full((7, 3), -1), "Batch.fields: row 0"),
    ("label", torch.full((7,), torch.nan), "Batch.label: row 0 is nan"),
    ("label", torch.full((7,), 1.5), "Batch.label: row 0 is 1.5"), ("dense", torch.full((7, 2), torch.inf),
        "Batch.dense: row 0"),
    ("history_table", torch.full((3, 4, 5), torch.nan), "Batch.history_table: row 0"),
    ("label", torch.zeros(7, device="meta"), "one device"),
    ("label", torch.tensor(1.), "Batch.label: expected an axis of rows, got a single number"),
    ("label", torch.eye(7)[:, :3]*2, "Batch.label: row 0 is [2.0, 0.0, 0.0], expected a number from 0 to 1"),
    ("mine", torch.zeros(6), "Batch.mine: axis 'B': expected 7, got 6"),
    ("mine", torch.tensor([1.]*6 + [torch.inf]), "Batch.mine: row 6 is inf"),
    ("mine", [1]*7, "Batch.mine: expected a tensor, got list"),
    ("history", torch.zeros(7), "Batch.history: this name belongs to the batch itself"),
    ("device", torch.zeros(7), "belongs to the batch itself"),
    ("rows", torch.zeros(7), "belongs to the batch itself"),
    ("batches", torch.zeros(7), "belongs to the batch itself")])
def test_batch_names_the_part(name, value, says):
    with pytest.raises(ValueError) as e: build(**(parts() | {name: value}))
    assert says in str(e.value)


def test_a_batch_without_rows_or_with_a_name_twice():
    with pytest.raises(ValueError, match="at least one part with an entry per row"):
        data.Batch({}, dict(title=torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="Batch.x: is both among the rows and among the tables"):
        data.Batch(dict(x=torch.zeros(3)), dict(x=torch.zeros(3)))
    with pytest.raises(ValueError, match="Batch: a part's name must be a string, got 3"):
        data.Batch({3: torch.zeros(3)})
    with pytest.raises(AttributeError, match="no part 'price'; it has fields, dense"):
        _ = build(**parts()).price
    with pytest.raises(AttributeError, match="no part 'history'; it has x"):
        _ = data.Batch(dict(x=torch.zeros(3))).history


@pytest.mark.parametrize("name", ["scenario", "fields", "history_row"])
def test_ids_below_zero_are_found_where_nothing_says_how_many_there_are(name):
    x = torch.tensor([[0, 0], [0, -1]]) if name == "fields" else torch.tensor([0, -1])
    with pytest.raises(ValueError, match=f"Batch.{name}: row 1 is .*-1.*, expected 0 or more"):
        data.Batch({name: x})


def own(B=7):
    "A batch with parts of its own: a vector per title, and a sequence per row."
    b = build(**parts(B=B))
    rows = dict(title_row=torch.arange(B) % 3, seen=torch.arange(B*4).reshape(B, 2, 2))
    return data.Batch(b.rows | rows, b.tables | dict(title=torch.arange(6.).reshape(3, 2),
                                                     words=torch.arange(5)))


def test_parts_of_ones_own_are_cut_moved_and_shared():
    batch = own()
    cut = batch[[5, 1]]
    assert cut.seen.tolist() == [batch.seen[5].tolist(),
        batch.seen[1].tolist()] and cut.title is batch.title and cut.words is batch.words
    assert cut.title[cut.title_row].tolist() == [[4., 5.], [2., 3.]]
    assert [b.title_row.tolist() for b in batch.batches(3)] == [[0, 1, 2], [0, 1, 2], [0]]
    moved = batch.to("meta")
    assert (moved.words.device.type == moved.title_row.device.type == "meta"
            and batch.words.device.type == "cpu")


@pytest.mark.parametrize("row, says",
                         [(3, "row 2 is 3, expected 0 to 2"), (-1, "row 2 is -1, expected 0 to 2")])
def test_a_row_points_into_the_table_of_its_name(row, says):
    x = dict(title_row=torch.tensor([0, 1, row]))
    with pytest.raises(ValueError, match=f"Batch.title_row: {says}"):
        data.Batch(x, dict(title=torch.zeros(3, 2)))
    # there is no table that it could point into
    assert len(data.Batch(x)) == 3 and len(data.Batch(x, dict(other=torch.zeros(1)))) == 3


def test_parts_without_numbers():
    batch = data.Batch(dict(dense=torch.zeros(4, 0), fields=torch.zeros(4, 0, dtype=torch.int64),
                            label=torch.zeros(4, 0)), dict(history_table=torch.zeros(0, 2, 0)))
    assert batch[1:3].dense.shape == (2, 0) and len(batch.to("cpu")) == 4
    none = data.Batch(dict(label=torch.zeros(0)))
    assert len(none) == 0 and list(none.batches(3)) == [] and list(none.batches(3, shuffle=True)) == []


@pytest.mark.parametrize("T", [1, 3])
def test_labels_of_several_tasks(T):
    batch = data.with_parts(build(**parts()), label=torch.rand(7, T))
    assert batch.label.shape == (7, T) and batch[2:4].label.shape == (2,
        T) and [b.label.shape for b in batch.batches(5)] == [(5, T), (2, T)]
    for value in (torch.nan, -.1, 1.1):
        bad = batch.label.clone()
        bad[4, -1] = value
        with pytest.raises(ValueError, match=r"Batch.label: row 4 is \[.*\], expected a number from 0 to 1"):
            data.with_parts(batch, label=bad)


def test_a_batch_without_labels():
    p = parts()
    del p["label"]
    batch = build(**p)
    assert len(batch) == 7 and "label" not in batch.rows and not hasattr(batch,
        "label") and batch[3].history.shape == (1, 4, 5)


def test_with_parts_exchanges_adds_and_checks():
    batch = own()
    other = data.with_parts(batch, label=torch.zeros(7), title=torch.ones(4, 2), age=torch.arange(7))
    assert other.label.sum() == 0 and other.title.shape == (4, 2) and other.age.tolist() == list(range(7))
    assert ("title" in other.tables and "age" in other.rows and other.fields is batch.fields
            and other.words is batch.words)
    assert batch.label.sum() > 0 and "age" not in batch.rows, "the batch itself stays as it was"
    for change, says in ((dict(title=torch.ones(2, 2)), "Batch.title_row: row 2 is 2, expected 0 to 1"),
                         (dict(label=torch.zeros(6)), "axis 'B'"),
                         (dict(title=[1]), "expected a tensor"),
                         (dict(history=torch.zeros(7)), "belongs to the batch itself")):
        with pytest.raises(ValueError, match=says): data.with_parts(batch, **change)


@given(B=st.integers(0, 40), size=st.integers(1, 9), world=st.integers(1, 5), shuffle=st.booleans(),
       seed=st.integers(0, 3))
@settings(max_examples=60)
def test_shards_are_equal_steps_and_together_all_rows(B, size, world, shuffle, seed):
    batch = data.Batch(dict(label=torch.zeros(B), at=torch.arange(B)))
    shards = [list(batch.batches(size, shuffle, seed, shard=(rank, world))) for rank in range(world)]
    assert len({tuple(len(b) for b in shard)
                for shard in shards}) == 1, "as many steps, of as many rows, in each"
    seen = [row for shard in shards for b in shard for row in b.at.tolist()]
    assert len(seen) == len(set(seen)) == B//world*world
    order = [row for b in batch.batches(size, shuffle, seed) for row in b.at.tolist()]
    for rank, shard in enumerate(shards):
        assert [row for b in shard for row in b.at.tolist()] == order[:B//world*world][rank::world]


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_is_none(shard):
    with pytest.raises(ValueError, match=r"shard must be \(rank, world\) with rank from 0 to world - 1, got"):
        own().batches(2, shard=shard)


def same(a, b):
    "Whether two batches hold the same, part by part and in the same order."
    return all(list(p) == list(q) and all(p[k].equal(q[k]) and p[k].dtype == q[k].dtype for k in p) for p,
               q in ((a.rows, b.rows), (a.tables, b.tables)))


def test_a_batch_is_a_tree_of_tensors():
    batch = own()
    leaves, tree = pytree.tree_flatten(batch)
    assert len(leaves) == len(batch.rows) + len(batch.tables) and all(isinstance(x, torch.Tensor)
        for x in leaves)
    assert isinstance(pytree.tree_unflatten(leaves, tree), data.Batch) and same(pytree.tree_unflatten(leaves,
        tree), batch)
    assert same(pytree.tree_unflatten(leaves, pytree.treespec_loads(pytree.treespec_dumps(tree))),
                batch), "as torch.export.save writes it"
    doubled = pytree.tree_map(lambda x: x*2, (batch, dict(more=batch)))
    assert doubled[0].fields.equal(batch.fields*2) and doubled[1]["more"].title.equal(batch.title*2)
    keys = {pytree.keystr(k) for k, _ in pytree.tree_flatten_with_path(batch)[0]}
    assert keys == {f"['{name}']" for name in (*batch.rows, *batch.tables)}


class Tiny(torch.nn.Module):
    "Reads rows, a history and a table of its own from a batch."
    def __init__(self):
        super().__init__()
        self.embed, self.out = torch.nn.Embedding(9, 4), torch.nn.Linear(4 + 2 + 5 + 2, 1)

    def forward(self, batch):
        history = (batch.history*batch.present[..., None]).sum(1)
        return self.out(torch.cat([self.embed(batch.fields).sum(1), batch.dense, history,
                                   batch.title[batch.title_row]], 1))[:, 0]


def test_a_model_of_a_batch_is_exported_for_any_number_of_rows(tmp_path):
    torch.manual_seed(0)
    model, batch = Tiny().eval(), own()
    rows = torch.export.Dim("rows", min=1)
    shapes = [{0: rows}]*len(batch.rows) + [None]*len(batch.tables)
    made = torch.export.export(model, (batch,), dynamic_shapes=(shapes,))
    torch.export.save(made, tmp_path/"tiny.pt2")
    again = torch.export.load(tmp_path/"tiny.pt2").module()
    for n in (7, 2, 30):
        other = own(n)
        torch.testing.assert_close(again(other), model(other))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_a_batch_can_be_copied_and_sent_to_another_process(copied):
    batch = own()
    other = copied(batch)
    assert same(other, batch) and other[2:4].history.equal(batch[2:4].history) and repr(other) == repr(batch)
    if copied is not copy.copy:
        other.label.zero_()
        assert batch.label.sum() > 0


def test_batches_reach_a_loop_through_workers():
    "What a DataLoader needs: batches go through a pipe."
    loader = torch.utils.data.DataLoader(list(own(8).batches(4)), batch_size=None, num_workers=1)
    assert [b.title_row.tolist() for b in loader] == [[0, 1, 2, 0], [1, 2, 0, 1]]


# A log of one's own

SHOP = data.Schema(user="u", item="i", scenario="s", time="t", label="y", categorical=("c",), numeric=("n",),
                   item_columns=())
TEXT = "u,i,s,t,y,c,n,extra\n1,007,home,1767225600,1,x,1.5,a\n2,12,1,1767225601,0,,-2,b\n"


def write(path, text):
    if path.name.endswith(".gz"):
        import gzip
        path.write_bytes(gzip.compress(text.encode()))
    else: path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("change", [lambda t: t, lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n"),
                                    lambda t: t.replace(",", ";"),
    lambda t: t.replace(",", ";").replace("1.5", "1,5"), lambda t: t.replace(",", "\t"),
                                    lambda t: t.replace(",", ", "), lambda t: t.rstrip("\n"),
    lambda t: "\ufeff" + t.replace(",", ";").replace("\n", "\r\n")])
def test_every_dialect_gives_the_same_log(tmp_path, name, change):
    log = logs.read_log(write(tmp_path/name, change(TEXT)), SHOP)
    assert log.columns.tolist() == ["u", "i", "s", "t", "y", "c", "n", "extra"]
    assert log.u.tolist() == [1, 2] and log.i.tolist() == ["007", "12"] and log.s.tolist() == ["home", "1"]
    assert log.t.tolist() == [1767225600, 1767225601] and log.t.dtype == np.int64 and log.y.tolist() == [1, 0]
    assert log.n.tolist() == [1.5, -2] and log.c.isna().tolist() == [False, True] and log.extra.tolist() == [
        "a", "b"]


def test_parquet_equals_csv(tmp_path, mall):
    mall.events.to_csv(tmp_path/"log.csv", index=False)
    mall.events.to_parquet(tmp_path/"log.parquet", index=False)
    csv, parquet = logs.read_log(tmp_path/"log.csv"), logs.read_log(str(tmp_path/"log.parquet"))
    pd.testing.assert_frame_equal(csv, mall.events)
    pd.testing.assert_frame_equal(parquet, mall.events, check_dtype=False)


def test_dirty_log_survives_the_file(tmp_path, mall):
    log, _ = mall.dirty()
    log.to_csv(tmp_path/"log.csv", index=False)
    pd.testing.assert_frame_equal(logs.read_log(tmp_path/"log.csv"), log)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch, mall):
    mall.events.to_parquet(tmp_path/"log.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"multiscene_rec\[data\]"): logs.read_log(tmp_path/"log.parquet")


def one(tmp_path, **cells):
    "Read a log of one row with these cells."
    row = dict(u="1", i="2", s="home", t="5", y="1", n="0") | cells
    return logs.read_log(write(tmp_path/"x.csv", ",".join(row) + "\n" + ",".join(row.values()) + "\n"),
                         SHOP).iloc[0]


@pytest.mark.parametrize("text, seconds", [("1767225600", 1767225600), ("1767225600.0", 1767225600),
                                           ("1.9", 1), ("-3", -3),
    ("2026-01-01T00:00:00Z", 1767225600), ("2026-01-01", 1767225600),
    ("2026-01-01 01:00:00+01:00", 1767225600), ("2026-01-01 00:00:01.9", 1767225601)])
def test_times_become_seconds_utc(tmp_path, text, seconds): assert one(tmp_path, t=text).t == seconds


def test_times_of_a_parquet_file(tmp_path):
    stamps = pd.to_datetime(["2026-01-01T00:00:00", "2026-01-01T00:00:09"])
    for when in (stamps, stamps.tz_localize("UTC").tz_convert("Asia/Shanghai")):
        pd.DataFrame(dict(u=1, i=2, s="a", t=when, y=1)).to_parquet(tmp_path/"t.parquet")
        assert logs.read_log(tmp_path/"t.parquet", SHOP).t.tolist() == [1767225600, 1767225609]


@pytest.mark.parametrize("text, label", [("1", 1), ("0.25", .25), ("TRUE", 1), ("false", 0)])
def test_labels(tmp_path, text, label): assert one(tmp_path, y=text).y == label


@pytest.mark.parametrize("cells, says", [
    (dict(y="2"), "column 'y', row 1 below the header: '2' is not a label from 0 to 1"),
    (dict(y="-0.1"), "is not a label"),
    (dict(y="yes"), "'yes' is not a label"), (dict(y=""), "None is not a label"),
    (dict(t="noon"), "'noon' is not an ISO time"),
    (dict(t="1e30"), "'1e30' is not a time"),
    (dict(n="cheap"), "column 'n', row 1 below the header: 'cheap' is not a number")])
def test_a_bad_cell_is_named(tmp_path, cells, says):
    with pytest.raises(ValueError) as e: one(tmp_path, **cells)
    assert says in str(e.value) and "x.csv" in str(e.value)


def test_empty_cells_stay_missing(tmp_path):
    text = "u,i,s,t,y\n1,,home,5,1\n,3,,,0\n"
    log = logs.read_log(write(tmp_path/"a.csv", text), SHOP)
    assert log.u.isna().tolist() == [False, True] and log.u[0] == 1 and log.i[1] == 3
    assert log.s.isna().tolist() == log.t.isna().tolist() == [False, True]


@pytest.mark.parametrize("name, text, says", [
    ("a.csv", "", "is empty"), ("a.csv.gz", "", "is empty"), ("a.csv", "u,i,s,t,y\n", "a header but no rows"),
    ("a.csv", "u,i,s,when,y\n1,2,3,4,1\n", "missing column 't'; the columns are u, i, s, when, y"),
    ("a.csv", "hello\nworld\n", "missing column 'u', 'i', 's', 't', 'y'"),
    ("a.txt", TEXT, "unknown ending"), ("a.csv", TEXT + "1,2,3,4,5,6,7,8,9,10\n", "is not a table")])
def test_a_bad_file_is_named(tmp_path, name, text, says):
    with pytest.raises(ValueError) as e: logs.read_log(write(tmp_path/name, text), SHOP)
    assert says in str(e.value) and name in str(e.value)


def test_bad_bytes_are_named(tmp_path):
    (tmp_path/"a.csv").write_bytes("u,i,s,t,y\nJosé,2,3,4,1\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"): logs.read_log(tmp_path/"a.csv", SHOP)
    (tmp_path/"a.csv.gz").write_bytes(TEXT.encode())
    with pytest.raises(ValueError, match="not a gzip file"): logs.read_log(tmp_path/"a.csv.gz", SHOP)
    with pytest.raises(FileNotFoundError, match="no such file"): logs.read_log(tmp_path/"none.csv", SHOP)
    (tmp_path/"a.parquet").write_bytes(b"no")
    with pytest.raises(ValueError): logs.read_log(tmp_path/"a.parquet", SHOP)


# Coupons

COLUMNS = (
    "destination passanger weather temperature time coupon expiration gender age maritalStatus has_children "
    "education occupation income car "
    "Bar CoffeeHouse CarryAway RestaurantLessThan20 Restaurant20To50 toCoupon_GEQ5min toCoupon_GEQ15min "
    "toCoupon_GEQ25min direction_same direction_opp Y").split()
OFFERS = [dict(coupon="Bar", age="21", Bar="never", Y=0), dict(coupon="Coffee House", age="21", Bar="never",
    Y=1),
          dict(coupon="Bar", age="50plus", Bar="never", Y=1), dict(coupon="Bar", age="21", Bar="", Y=1),
          dict(coupon="Bar", age="21", Bar="", Y=0)]


def coupon_csv(old=True, drop=()):
    "A tiny file of the survey's form, in one of its two spellings."
    frame = pd.DataFrame([dict.fromkeys(COLUMNS, "1") | dict(car="") | row for row in OFFERS])[
        list(COLUMNS)].drop(columns=list(drop))
    return frame.rename(columns={} if old else {"coupon": "couponType", "car": "cartype"}).to_csv(index=False)


@pytest.fixture
def away(tmp_path, monkeypatch):
    "A home of one's own: no coupon file anywhere, and no network."
    monkeypatch.delenv("MULTISCENE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path/"cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path/"cache"))
    monkeypatch.setattr(logs, "_COUPONS_URL", "http://127.0.0.1:9/none.zip")
    monkeypatch.setattr(logs, "_COUPON_ROWS", len(OFFERS))
    monkeypatch.setattr(logs, "_COUPON_SHA256", SURVEY)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*the survey")
        yield tmp_path


NAME = "in-vehicle-coupon-recommendation.csv"
SURVEY = hashlib.sha256(coupon_csv().encode()).hexdigest()  # of the text under the course's own names
# every answer turned round
FLIPPED = coupon_csv().replace(",1\n", ",2\n").replace(",0\n", ",1\n").replace(",2\n", ",0\n")


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("name", [NAME, NAME + ".gz", f"in-vehicle-coupon/{NAME}.gz"])
def test_coupons_from_a_path(away, old, name):
    (away/"in-vehicle-coupon").mkdir()
    path = write(away/name, coupon_csv(old))
    for given_path in (path, str(path), away):
        frame = logs.load_coupons(given_path)
        assert frame.columns.tolist() == [*COLUMNS, "respondent"] and len(frame) == len(OFFERS)
        assert frame.respondent.tolist() == [0, 0, 1, 2, 2] and frame.age.tolist()[2:4] == ["50plus", "21"]
        assert frame.Bar.isna().sum() == 2 and frame.car.isna().all()


def test_coupons_look_at_the_variable_then_the_cache(away, monkeypatch):
    cache, named = away/"cache/multiscene_rec/in-vehicle-coupon", away/"named"
    for folder in (cache, named): folder.mkdir(parents=True)
    write(cache/NAME, coupon_csv())
    assert len(logs.load_coupons()) == len(OFFERS)
    write(named/NAME, coupon_csv().rsplit("\n", 2)[0] + "\n")
    monkeypatch.setenv("MULTISCENE_DATA", str(named))
    with pytest.warns(UserWarning, match="has 4 rows, but the survey has 5; it is read as it is"):
        assert len(logs.load_coupons()) == len(OFFERS) - 1
    monkeypatch.setenv("MULTISCENE_DATA", str(away/"nowhere"))
    assert len(logs.load_coupons()) == len(OFFERS)


def test_coupons_name_what_is_wrong(away):
    with pytest.raises(FileNotFoundError, match="no in-vehicle-coupon-recommendation.csv .* at"):
        logs.load_coupons(away)
    path = write(away/NAME, coupon_csv(drop=["coupon", "Y"]))
    with pytest.raises(ValueError, match="missing column 'coupon', 'Y'"): logs.load_coupons(path)
    with pytest.raises(ValueError, match="not a coupon file"): logs.load_coupons(write(away/NAME, ""))
    (away/(NAME + ".gz")).write_bytes(b"no gzip")
    with pytest.raises(ValueError, match="not a coupon file"): logs.load_coupons(away/(NAME + ".gz"))


@pytest.mark.wrong(
    "the coupon file is missing and could not be fetched (…): get … and put … from it into …, or into a "
    "folder named by MULTISCENE_DATA", area="files",
                   cause="There is no network, or the server did not answer in time, or sent something else.",
    remedy="Fetch the archive with a browser, and put the file where the message says.")
def test_offline_says_where_to_get_it_and_where_to_put_it(away):
    with pytest.raises(FileNotFoundError) as e: logs.load_coupons(timeout=2)
    for part in (logs._COUPONS_URL, NAME, str(away/"cache/multiscene_rec/in-vehicle-coupon"),
                 "MULTISCENE_DATA"):
        assert part in str(e.value)
    assert str(e.value).startswith(
        "the coupon file is missing and could not be fetched (") and "\n" not in str(e.value)


@pytest.mark.wrong(
    "… is not the survey: the SHA-256 of its content is …, expected …; delete the file, and it is fetched "
    "again", area="files",
                   cause="The coupon file in your cache was changed, or is another one.",
    remedy="Delete the file that is named, and it is fetched again.")
@pytest.mark.wrong("… is not the survey: the SHA-256 of its content is …, expected …; it is read as it is",
                   area="files",
                   cause="A coupon file that you named yourself differs from the one of which the course "
                         "tells.",
                   remedy="It is only a warning: numbers will differ from those of the course.")
@pytest.mark.wrong("… has … rows, but the survey has …; delete the file, and it is fetched again",
                   area="files",
                   cause="The coupon file in your cache is not whole.",
                   remedy="Delete the file that is named, and it is fetched again.")
def test_a_copy_that_is_not_the_survey(away, monkeypatch):
    cache, named = away/"cache/multiscene_rec/in-vehicle-coupon", away/"named"
    for folder in (cache, named): folder.mkdir(parents=True)
    other = hashlib.sha256(FLIPPED.encode()).hexdigest()
    write(cache/NAME, FLIPPED)
    with pytest.raises(ValueError) as e: logs.load_coupons()
    assert str(
        e.value) == (f"{cache/NAME} is not the survey: the SHA-256 of its content is {other}, expected "
                     f"{SURVEY}; delete the file, and it is fetched again")
    write(cache/NAME, coupon_csv().rsplit("\n", 2)[0])
    with pytest.raises(ValueError,
                       match="has 4 rows, but the survey has 5; delete the file, and it is fetched again"):
        logs.load_coupons()
    path = write(named/NAME, FLIPPED)
    monkeypatch.setenv("MULTISCENE_DATA", str(named))
    for given_path in (path, named, None):
        with pytest.warns(UserWarning) as caught: frame = logs.load_coupons(given_path)
        assert str(caught[0].message) == (f"{path} is not the survey: the SHA-256 of its content is {other}, "
                                          f"expected {SURVEY}; it is read as it is")
        assert caught[0].filename == __file__ and frame.Y.tolist() == [1 - row["Y"] for row in OFFERS]


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("name", [NAME, NAME + ".gz"])
def test_the_survey_in_the_cache_however_it_is_written(away, old, name):
    (away/"cache/multiscene_rec/in-vehicle-coupon").mkdir(parents=True)
    write(away/"cache/multiscene_rec/in-vehicle-coupon"/name, coupon_csv(old).replace("\n", "\r\n"))
    assert logs.load_coupons().Y.tolist() == [row["Y"] for row in OFFERS]


def test_five_rows_are_not_the_survey(tmp_path, monkeypatch):
    "With the numbers of the real one: no test has changed them here."
    monkeypatch.delenv("MULTISCENE_DATA", raising=False)
    monkeypatch.setattr(logs, "_cache_dir", lambda: tmp_path)
    write_to = tmp_path/"in-vehicle-coupon"
    write_to.mkdir()
    write(write_to/NAME, coupon_csv())
    with pytest.raises(ValueError, match="has 5 rows, but the survey has 12684; delete the file"):
        logs.load_coupons()


def test_home_is_expanded(away, monkeypatch):
    monkeypatch.setenv("HOME", str(away))
    monkeypatch.setenv("USERPROFILE", str(away))
    write(away/NAME, coupon_csv())
    assert len(logs.load_coupons("~")) == len(logs.load_coupons(f"~/{NAME}")) == len(OFFERS)
    monkeypatch.setenv("MULTISCENE_DATA", "~")
    assert len(logs.load_coupons()) == len(OFFERS)


def zipped(text, name=NAME):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z: z.writestr(name, text)
    return out.getvalue()


@pytest.fixture
def server(away, monkeypatch):
    "A web server that answers with what is put into its .answer."
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked += 1
            time.sleep(server.delay)
            if server.body: return server.body(self.wfile)
            self.send_response(server.status)
            self.send_header("Content-Length", server.length or str(len(server.answer)))
            self.end_headers()
            self.wfile.write(server.answer[:server.cut])
        def log_message(self, *_): pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None # a client that gave up is what some tests want
    server.answer, server.status, server.delay, server.cut, server.asked, server.length, server.body = (b"",
        200, 0, None, 0, None, None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(logs, "_COUPONS_URL", f"http://127.0.0.1:{server.server_port}/coupons.zip")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    server.server_close()


def cached(away):
    return sorted(p.name for p in (away/"cache/multiscene_rec").rglob("*") if p.name != "in-vehicle-coupon")


def test_download_once(away, server, capsys):
    server.answer = zipped(coupon_csv(old=False))
    assert logs.load_coupons().coupon.tolist() == [row["coupon"] for row in OFFERS]
    assert cached(away) == [NAME]
    logs.load_coupons()
    assert server.asked == 1
    assert capsys.readouterr().err == "" # no progress bar where there is no terminal


@pytest.mark.parametrize("answer, status, cut, error, says", [
    (zipped(coupon_csv()), 404, None, FileNotFoundError, "404"), (b"<html>", 200, None, FileNotFoundError,
        "not a zip"),
    (zipped(coupon_csv()), 200, 100, FileNotFoundError, "could not be fetched"),
    (zipped("", "other.csv"), 200, None, ValueError, "does not hold"),
    (zipped(coupon_csv().rsplit("\n", 2)[0] + "\n"), 200, None, ValueError,
     "has 4 rows, but the survey has 5; try again later, or give the path of a copy that you trust"),
    (zipped(FLIPPED), 200, None, ValueError,
     f"/coupons.zip is not the survey: the SHA-256 of its content is [0-9a-f]{{64}}, expected {SURVEY}; try "
     "again later"),
    (zipped(coupon_csv(drop=["Y"])), 200, None, ValueError, "missing column 'Y'")])
def test_a_bad_download_leaves_nothing(away, server, answer, status, cut, error, says):
    server.answer, server.status, server.cut = answer, status, cut
    with pytest.raises(error, match=says): logs.load_coupons()
    assert cached(away) == []


def test_a_silent_server_is_given_up(away, server):
    server.delay = 3
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="timed out"): logs.load_coupons(timeout=.3)
    assert time.monotonic() - start < 2.5 and cached(away) == []


@pytest.mark.parametrize("length", ["abc", "-1", "1e9", "²", "", "0x10"])
def test_a_length_that_is_no_number_says_nothing(away, server, length):
    def answer(out):
        out.write(f"HTTP/1.0 200 OK\r\nContent-Length: {length}\r\n\r\n".encode("utf-8")
                  + zipped(coupon_csv()))
    server.body = answer
    assert len(logs.load_coupons()) == len(OFFERS) and cached(away) == [NAME]


@pytest.mark.parametrize("start", [b"", b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n"],
                         ids=["headers", "body"])
def test_a_server_that_trickles_is_given_up(away, server, start):
    def trickle(out):
        out.write(start)
        for byte in b"HTTP/1.0 200 OK\r\n" + b"X: " + b"a"*1000:
            out.write(bytes([byte]))
            out.flush()
            time.sleep(.05)
    server.body, begin = trickle, time.monotonic()
    with pytest.raises(FileNotFoundError,
                       match=r"could not be fetched \(timed out: the download took longer than 0.4 "
                             r"seconds\): get http"):
        logs.load_coupons(timeout=5, limit=.4)
    assert time.monotonic() - begin < 3 and cached(away) == []


def test_an_endless_answer_is_cut_off(away, server, monkeypatch):
    monkeypatch.setattr(logs, "_MOST_PACKED", 200_000)
    sent = []
    def flood(out):
        out.write(b"HTTP/1.0 200 OK\r\n\r\n")
        for _ in range(5000): sent.append(out.write(bytes(100_000)))  # half a gigabyte
    server.body = flood
    with pytest.raises(FileNotFoundError, match="more than 200,000 bytes, far more than the survey has"):
        logs.load_coupons()
    assert len(sent) < 500 and cached(away) == []


def bomb(claims=None):
    "A zip file of some kilobytes that unpacks to 60 megabytes; it may say that they are fewer."
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        with z.open(NAME, "w") as f:
            for _ in range(60): f.write(bytes(1_000_000))
    real, content = struct.pack("<I", 60_000_000), out.getvalue()
    assert content.count(real) >= 1
    return content if claims is None else content.replace(real, struct.pack("<I", claims))


@pytest.mark.parametrize("claims, error, says", [(None, ValueError, "unpacks to more than 50,000,000 bytes"),
                                                 (1000, FileNotFoundError, "could not be fetched"),
                                                 (49_000_000, FileNotFoundError, "could not be fetched")])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(away, server, claims, error, says):
    server.answer = bomb(claims)
    assert len(server.answer) < 100_000
    tracemalloc.start()
    with pytest.raises(error, match=says): logs.load_coupons()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (5e6 if claims is None or claims < 10**6 else 2.5*claims) and cached(away) == []


@pytest.mark.parametrize("flag", [1, 8])
def test_a_zip_file_that_cannot_be_opened(away, server, flag):
    "With a password, or by a method that nobody knows."
    content = bytearray(zipped(coupon_csv()))
    at = content.index(b"PK\x01\x02")
    for place in (6, at + 8): content[place] |= flag if flag == 1 else 0
    if flag == 8:
        for place in (8, at + 10): content[place] = 99
    server.answer = bytes(content)
    with pytest.raises(FileNotFoundError, match="could not be fetched"): logs.load_coupons()
    assert cached(away) == []


def test_a_cache_that_cannot_be_made(away, monkeypatch):
    (away/"file").write_text("")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"): monkeypatch.setenv(name, str(away/"file"))
    with pytest.raises(FileNotFoundError, match="could not be fetched"): logs.load_coupons()


def test_cache_without_the_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert logs._cache_dir() == tmp_path/".cache"/"multiscene_rec"


@pytest.mark.coupons
def test_the_real_coupons():
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning would say that it is another file
        frame = logs.load_coupons()
    flipped = frame[list(COLUMNS)].assign(Y=1 - frame.Y)
    with pytest.raises(ValueError, match=f"expected {logs._COUPON_SHA256}"):
        logs._check_coupons(flipped, "x", "")
    assert frame.shape == (12_684,
        27) and frame.respondent.nunique() == 567 and frame.respondent.value_counts().max() == 110
    assert frame.coupon.nunique() == 5 and frame.Y.mean() == pytest.approx(.568, abs=5e-4)
    assert frame.drop(columns="respondent").duplicated().sum() == 74
    profile, seen = COLUMNS[7:20], {}
    for key, who in zip(zip(*(frame[c].fillna("").tolist() for c in profile)), frame.respondent):
        assert seen.setdefault(key, who) == who
    assert len(seen) == 567 and frame.respondent.drop_duplicates().tolist() == list(range(567))


# MovieLens

ATOMIC = {"inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t1\t5\t881250949\n"
                   "2\t2\t3\t881250950\n3\t1\t4\t881250951\n",
          "user": "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
                  "1\t24\tM\twriter\t85711\n2\t35\tF\tother\t94043\n3\t34\tF\tother\t94043\n",
          "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n1\tToy "
                  "Story\t1995\tAnimation Children's Comedy\n2\t\"Quoted\"\t\tunknown\n"}
GENRES = "unknown Action Adventure Animation Children's Comedy".split()


def atomic(folder):
    folder.mkdir(parents=True)
    for kind, text in ATOMIC.items(): (folder/f"ml-100k.{kind}").write_text(text)


def original(folder):
    folder.mkdir(parents=True)
    lines = {"u.data": ATOMIC["inter"].split("\n", 1)[1],
             "u.user": ATOMIC["user"].split("\n", 1)[1].replace("\t", "|"),
        "u.item": "1|Toy Story (1995)|01-Jan-1995||url|0|0|0|1|1|1" + "|0"*13 + "\n" + '2|"Quoted"||||1'
             + "|0"*18 + "\n"}
    for name, text in lines.items(): (folder/name).write_text(text, encoding="latin-1")


@pytest.mark.parametrize("make", [atomic, original])
def test_movielens_from_both_layouts(tmp_path, make):
    make(tmp_path/"ml-100k")
    for path in (tmp_path, tmp_path/"ml-100k", next((tmp_path/"ml-100k").iterdir())):
        films = logs.load_movielens_100k(path)
        assert films.events.to_dict("list") == dict(user_id=[1, 2, 3], item_id=[1, 2, 1],
                                                    scenario=["<25", "35+", "25-34"],
            timestamp=[881250949, 881250950, 881250951], rating=[5, 3, 4], clicked=[1, 0, 1])
        assert films.items.title.tolist() == ["Toy Story",
            '"Quoted"'] and films.items.year[0] == 1995 and films.items.year.isna()[1]
        assert films.items.genres.tolist() == ["Animation Children's Comedy",
                                               "unknown"] and films.items.genre[0] == "Animation"
        assert films.users.age.tolist() == [24, 35, 34] and films.schema.required == data.Schema().required
        assert set(films.schema.categorical + films.schema.numeric) <= {*films.users, *films.items}


def test_movielens_from_an_installed_recbole(tmp_path, monkeypatch):
    package = tmp_path/"site/recbole"
    atomic(package/"dataset_example/ml-100k")
    (package/"__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path/"site"))
    assert len(logs.load_movielens_100k().events) == 3


def test_movielens_says_how(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"at .*: pip install --no-deps recbole .*grouplens"):
        logs.load_movielens_100k(tmp_path)
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no MovieLens-100K on this machine"):
        logs.load_movielens_100k()
