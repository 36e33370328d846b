"Second opinions on notebook 03: plain loops, scikit-learn and hypothesis."
import json
import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import sympy
import torch
from hypothesis import given, settings, strategies as st

from multiscene_rec import preprocess
from multiscene_rec.data import Schema, toy_mall

quick = settings(max_examples=30, deadline=None)
number = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 3))
column = st.lists(number, min_size=1, max_size=30)


# ---- scalers

@pytest.mark.formula("3.2")
@given(column, column)
def test_min_max_is_the_line_through_two_points(train, later):
    mm = preprocess.MinMax().fit(train)
    lo, hi = min(train), max(train)
    width = hi - lo if hi > lo else 1
    np.testing.assert_allclose(mm.transform(later), [(v - lo)/width for v in later], rtol=1e-9, atol=1e-9)
    inside = mm.transform(train)
    assert inside.min() == 0 and inside.max() == (1 if hi > lo else 0)
    clipped = preprocess.MinMax(clip=True).fit(train).transform(later)
    assert ((clipped >= 0) & (clipped <= 1)).all()


@pytest.mark.formula("3.3")
@given(column, column)
def test_min_max_back(train, scaled):
    lo, hi = min(train), max(train)
    back = preprocess.MinMax().fit(train).inverse(scaled)
    np.testing.assert_allclose(back, [lo + v*(hi - lo if hi > lo else 1) for v in scaled], rtol=1e-9, atol=1e-6)
    mm = preprocess.MinMax().fit(train)
    np.testing.assert_allclose(mm.inverse(mm.transform(train)), train, rtol=1e-9, atol=1e-6)


def test_min_max_against_scikit_learn():
    scalers = pytest.importorskip("sklearn.preprocessing")
    x = np.random.default_rng(0).lognormal(size=50)
    ours = preprocess.MinMax().fit(x[:40])
    theirs = scalers.MinMaxScaler().fit(x[:40, None])
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x[:, None])[:, 0], rtol=1e-12)


@pytest.mark.formula("3.4")
@given(column, column)
def test_standard_score_against_loops(train, later):
    n = len(train)
    mean = math.fsum(train)/n
    std = math.sqrt(math.fsum((v - mean)**2 for v in train)/n) or 1
    if max(train) == min(train): mean, std = train[0], 1
    ss = preprocess.StandardScore().fit(train)
    np.testing.assert_allclose(ss.transform(later), [(v - mean)/std for v in later], rtol=1e-6, atol=1e-6)
    if max(train) - min(train) > 1e-2:
        z = ss.transform(train)
        assert abs(z.mean()) < 1e-6 and abs(z.var() - 1) < 1e-6


def test_standard_score_has_mean_0_and_variance_1_symbolically():
    x = sympy.symbols("x0:4", real=True)
    mean = sum(x)/4
    variance = sum((v - mean)**2 for v in x)/4
    z2 = [(v - mean)**2/variance for v in x]
    assert sympy.simplify(sum(v - mean for v in x)) == 0
    assert sympy.simplify(sum(z2)/4) == 1


@pytest.mark.formula("3.5")
@given(column)
def test_standard_score_back(train):
    ss = preprocess.StandardScore().fit(train)
    std = np.std(train) if max(train) > min(train) else 1
    np.testing.assert_allclose(ss.inverse([0, 1, -2]), np.mean(train) + std*np.array([0, 1, -2]), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(ss.inverse(ss.transform(train)), train, rtol=1e-9, atol=1e-6)


def test_standard_score_against_scikit_learn():
    scalers = pytest.importorskip("sklearn.preprocessing")
    x = np.random.default_rng(1).normal(3, 5, size=50)
    ours = preprocess.StandardScore().fit(x[:40])
    theirs = scalers.StandardScaler().fit(x[:40, None])
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x[:, None])[:, 0], rtol=1e-12)


@pytest.mark.formula("3.6")
def test_log_scale_against_the_decimal_logarithm():
    x = [0, .5, 1, 9, 99, 12_345.6]
    np.testing.assert_allclose(preprocess.log_scale(x), [math.log10(1 + v)/math.log10(math.e) for v in x], rtol=1e-12)
    np.testing.assert_allclose(np.expm1(preprocess.log_scale(x)), x, rtol=1e-12, atol=1e-12)


def test_log_scale_slope():
    x = sympy.symbols("x", positive=True)
    assert sympy.simplify(sympy.diff(sympy.log(1 + x), x) - 1/(1 + x)) == 0
    step = 1e-6
    for v in (0, 1, 99):
        low, high = preprocess.log_scale([v, v + step])
        assert (high - low)/step == pytest.approx(1/(1 + v), rel=1e-4)


@pytest.mark.parametrize("scaler", ["MinMax", "StandardScore"])
def test_scalers_keep_what_is_missing_and_take_tensors(scaler):
    s = getattr(preprocess, scaler)().fit([1, float("nan"), 3])
    assert np.isnan(s.transform([float("nan"), 2])).tolist() == [True, False]
    np.testing.assert_array_equal(s.transform(torch.tensor([1., 3.])), s.transform(pd.Series([1, 3])))
    nullable = pd.Series([1, None, 3], dtype="Int64")
    np.testing.assert_array_equal(s.transform(nullable), s.transform([1, float("nan"), 3]))
    assert type(s)(**json.loads(json.dumps(asdict(s)))) == s


@pytest.mark.parametrize("scaler", ["MinMax", "StandardScore"])
def test_scaler_errors(scaler):
    cls = getattr(preprocess, scaler)
    for method in ("transform", "inverse"):
        with pytest.raises(ValueError, match=f"{scaler} is not fitted"): getattr(cls(), method)([1])
    with pytest.raises(ValueError, match="infinite value in row 2"): cls().fit([0, 1, float("-inf")])
    with pytest.raises(ValueError, match="at least one value"): cls().fit([])
    with pytest.raises(ValueError, match="at least one value"): cls().fit([float("nan")]*2)
    with pytest.raises(ValueError, match="categorical"): cls().fit(["a", "b"])
    with pytest.raises(ValueError, match="expected 1 axes"): cls().fit(np.zeros((2, 2)))


def test_log_scale_errors():
    with pytest.raises(ValueError, match="got -3.0 in row 1"): preprocess.log_scale([1, -3])
    with pytest.raises(ValueError, match="categorical"): preprocess.log_scale(["a"])


# ---- vocabulary

words = st.one_of(st.lists(st.text(max_size=3), max_size=30), st.lists(st.integers(-2**63, 2**63 - 1), max_size=30),
                  st.lists(st.integers(0, 4), max_size=30))


@quick
@given(words, st.integers(1, 3))
def test_vocabulary_against_a_counter(values, min_count):
    vocabulary = preprocess.Vocabulary(min_count=min_count).fit(values)
    count = Counter(values)
    expected = sorted((w for w in count if count[w] >= min_count), key=lambda w: (-count[w], w))
    assert list(vocabulary.words) == expected and len(vocabulary) == len(expected) + 1
    ids = vocabulary.encode(values)
    assert ids.tolist() == [expected.index(w) + 1 if w in expected else 0 for w in values]
    assert vocabulary.decode(ids) == [w if w in expected else None for w in values]
    again = preprocess.Vocabulary(**json.loads(json.dumps(asdict(vocabulary))))
    assert again == vocabulary
    assert [type(w) for w in again.words] == [type(w) for w in vocabulary.words]
    assert again.encode(values).tolist() == ids.tolist()


def test_vocabulary_kinds():
    v = preprocess.Vocabulary().fit(pd.Series([3, 3, 5]))
    assert v.encode(torch.tensor([5, 3, 4])).tolist() == [2, 1, 0]
    assert v.encode(pd.Series([3., None])).tolist() == [1, 0]
    assert v.encode(pd.Series([None, 5], dtype="Int64")).tolist() == [0, 2]
    assert v.encode([]).tolist() == [] and v.encode([None]).tolist() == [0]
    assert preprocess.Vocabulary().fit(pd.Series(["b", "a", "b"], dtype="category")).words == ("b", "a")
    assert preprocess.Vocabulary().fit([True, False, True]).words == (1, 0)
    assert preprocess.Vocabulary().fit(np.array(["x", "y"])).encode(["y"]).tolist() == [2]
    assert preprocess.Vocabulary().encode(["never fitted"]).tolist() == [0]


def test_vocabulary_errors():
    with pytest.raises(ValueError, match="1 or more"): preprocess.Vocabulary(min_count=0)
    for bad in ([.5], ["a", 1], [2**64], [2.**60]):
        with pytest.raises(ValueError, match="astype"): preprocess.Vocabulary().fit(bad)
    with pytest.raises(ValueError, match="knows strings, the column holds whole numbers"): preprocess.Vocabulary().fit(["7"]).encode([7])
    with pytest.raises(ValueError, match="knows whole numbers, the column holds strings"): preprocess.Vocabulary().fit([7]).encode(["7"])
    for bad in ([2], [-1]):
        with pytest.raises(ValueError, match="ids go from 0 to 1"): preprocess.Vocabulary().fit(["a"]).decode(bad)


@pytest.mark.formula("3.7")
def test_skewness_against_sympy_and_loops():
    x = [1, 2, 2, 3, 12]
    n, mean = len(x), sympy.Rational(sum(x), len(x))
    variance = sum((v - mean)**2 for v in x)/n
    exact = sum((v - mean)**3 for v in x)/n/variance**sympy.Rational(3, 2)
    assert preprocess.skewness(x) == pytest.approx(float(exact), rel=1e-10)
    assert preprocess.skewness([-1, 0, 1]) == pytest.approx(0, abs=1e-12)
    assert preprocess.skewness([2, 2]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="at least one value"): preprocess.skewness([])
    with pytest.raises(ValueError, match="infinite"): preprocess.skewness([float("inf")])


# ---- cleaning

BASE = pd.DataFrame(dict(user_id=[1, 2, 3, 4], item_id=[10, 20, 30, 40], scenario=["home", "home", "cart", "home"],
                         timestamp=[1_700_000_000 + 100*k for k in range(4)], price=[5., 6., 7., 8.], clicked=[0, 1, 0, 1]))


def with_cell(column, value, row=1):
    out = BASE.astype({column: object})
    out.loc[row, column] = value
    return out


@pytest.mark.parametrize("rule, column, value", [
    ("missing id", "user_id", None), ("missing id", "item_id", float("nan")), ("missing id", "scenario", None),
    ("missing id", "scenario", "  "), ("missing id", "user_id", ""),
    ("label", "clicked", 2), ("label", "clicked", -.1), ("label", "clicked", None), ("label", "clicked", "yes"),
    ("price", "price", 0), ("price", "price", -3.), ("price", "price", float("inf")), ("price", "price", None), ("price", "price", 1e9),
    ("time", "timestamp", 0), ("time", "timestamp", -5), ("time", "timestamp", 1_700_000_000_000), ("time", "timestamp", None),
    ("time", "timestamp", 631_151_999), ("time", "timestamp", 4_102_444_800)])
def test_each_rule_drops_its_row_and_no_other(rule, column, value):
    tidy, report = preprocess.clean(with_cell(column, value))
    assert tidy.index.tolist() == [0, 2, 3]
    assert dict(zip(report.counts.rule, report.counts.rows)) == {r: int(r == rule) for r in report.counts.rule}
    assert report.rows.values.tolist() == [[1, rule]]
    assert (report.rows_in, report.rows_out) == (4, 3)
    assert f"{rule:<11}{1:>7,} dropped" in str(report) and "4 rows in, 3 rows out" in str(report)


def test_limits_of_the_rules_are_kept():
    for column, value in (("clicked", .5), ("price", .01), ("timestamp", 631_152_000), ("timestamp", 4_102_444_799), ("price", 6e4)):
        assert len(preprocess.clean(with_cell(column, value))[0]) == 4
    assert len(preprocess.clean(with_cell("timestamp", 0), time_range=(0, "2100-01-01"))[0]) == 4
    assert len(preprocess.clean(with_cell("price", 1e9), price_limit=math.inf)[0]) == 4
    assert len(preprocess.clean(with_cell("price", -1), price=None)[0]) == 4
    assert "price" not in preprocess.clean(BASE.drop(columns="price"))[1].counts.rule.tolist()


@quick
@given(st.lists(st.sampled_from(["home", "Home", " HOME", "hOme  ", "cart", "Cart ", "STRASSE", "straße"]), min_size=1, max_size=20))
def test_scenario_names_take_the_commonest_spelling(names):
    log = pd.DataFrame(dict(user_id=range(len(names)), item_id=1, scenario=names, timestamp=1_700_000_000, clicked=0))
    tidy, report = preprocess.clean(log)
    count = Counter(n.strip() for n in names)
    expected = []
    for name in names:
        alike = [n for n in count if n.casefold() == name.strip().casefold()]
        expected.append(min(alike, key=lambda n: (-count[n], n)))
    assert tidy.scenario.tolist() == expected
    changed = [k for k, (a, b) in enumerate(zip(names, expected)) if a != b]
    assert report.rows.row.tolist() == changed and set(report.rows.rule) <= {"scenario"}
    assert report.counts.rows[report.counts.rule == "scenario"].item() == len(changed)


events = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), st.sampled_from(["a", "b"]), st.integers(0, 20), st.integers(0, 1)), min_size=1, max_size=25)


def as_log(rows):
    log = pd.DataFrame(rows, columns=["user_id", "item_id", "scenario", "timestamp", "clicked"])
    return log.assign(timestamp=log.timestamp + 1_700_000_000)


@quick
@given(events, st.integers(0, 6))
def test_dedupe_against_pairs(rows, window):
    kept = [k for k, r in enumerate(rows) if r not in rows[:k]]
    expected = [k for k in kept if not any(rows[j][:3] == rows[k][:3] and 0 < rows[k][3] - rows[j][3] <= window for j in kept)]
    log = as_log(rows)
    out = preprocess.dedupe(log, window=window)
    assert out.index.tolist() == expected
    pd.testing.assert_frame_equal(out, log.loc[expected])
    tidy, report = preprocess.clean(log, window=window)
    assert tidy.index.tolist() == expected
    counts = dict(zip(report.counts.rule, report.counts.rows))
    assert counts["duplicate"] == len(rows) - len(kept) and counts["resent"] == len(kept) - len(expected)
    again, second = preprocess.clean(tidy, window=0)
    assert len(again) == len(tidy) and second.counts.rows.sum() == 0


def test_clean_leaves_its_input_alone_and_restores_whole_numbers():
    log = with_cell("user_id", float("nan")).astype({"user_id": "float64"})
    before = log.copy()
    tidy, _ = preprocess.clean(log)
    pd.testing.assert_frame_equal(log, before)
    assert tidy.user_id.dtype == "int64" and tidy.user_id.tolist() == [1, 3, 4]
    nullable, _ = preprocess.clean(BASE.astype({"user_id": "Int64"}))
    assert nullable.user_id.dtype == "int64"
    empty, report = preprocess.clean(BASE.head(0))
    assert len(empty) == 0 and report.counts.rows.sum() == 0


def test_clean_scored_on_a_dirty_mall():
    mall = toy_mall(n_users=300, n_events=6000)
    dirty, dirt = mall.dirty(seed=3)
    tidy, report = preprocess.clean(dirty)
    score = preprocess.score_rules(report, dirt).set_index("kind")
    for kind in dirt.kind.unique(): assert score.loc[kind, "recall"] == 1 and score.loc[kind, "precision"] > .95, kind
    assert score.loc["label", "hit"] == 0 and math.isnan(score.loc["label", "precision"])
    assert preprocess.clean(mall.events)[1].counts.rows.sum() <= 3
    assert set(tidy.scenario) == set(mall.scenarios)


@pytest.mark.formula("3.1")
def test_score_rules_by_hand():
    counts = pd.DataFrame(dict(rule=["a", "b"], action="dropped", rows=[4, 0]))
    report = preprocess.CleanReport(10, 6, counts, pd.DataFrame(dict(row=[1, 2, 3, 4], rule="a")))
    dirt = pd.DataFrame(dict(row=[1, 2, 3, 7, 8, 9], kind=["a"]*5 + ["c"]))
    score = preprocess.score_rules(report, dirt).set_index("kind")
    assert score.loc["a", ["dirty", "hit"]].tolist() == [5, 4]
    assert score.loc["a", "precision"] == pytest.approx(3/4) and score.loc["a", "recall"] == pytest.approx(3/5)
    assert math.isnan(score.loc["b", "recall"]) and score.loc["c", "recall"] == pytest.approx(0)
    with pytest.raises(ValueError, match="no column 'kind'"): preprocess.score_rules(report, dirt.drop(columns="kind"))


def test_cleaning_errors():
    for f in (preprocess.clean, preprocess.dedupe):
        with pytest.raises(ValueError, match="no column 'scenario'"): f(BASE.drop(columns="scenario"))
        with pytest.raises(ValueError, match="reset_index"): f(pd.concat([BASE, BASE]))
        with pytest.raises(ValueError, match="0 or more, got -1"): f(BASE, window=-1)
    with pytest.raises(ValueError, match="rule 'time' dropped 4; if the times in 'timestamp' are milliseconds"):
        preprocess.clean(BASE.assign(timestamp=BASE.timestamp*1000))
    with pytest.raises(ValueError, match="rule 'label' dropped 4$"): preprocess.clean(BASE.assign(clicked=7))


# ---- splits

@quick
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.sampled_from([(.5, .5), (.8, .08, .12), (.2, .3, .5)]))
def test_time_split_properties(times, fractions):
    log = pd.DataFrame(dict(timestamp=times, id=range(len(times))))
    try: parts = preprocess.time_split(log, fractions=fractions)
    except ValueError as e:
        assert "would be empty" in str(e)
        return
    assert sorted(i for p in parts for i in p.id) == list(range(len(times))) and all(len(p) for p in parts)
    for a, b in zip(parts, parts[1:]): assert a.timestamp.max() < b.timestamp.min()
    for p in parts: assert p.timestamp.is_monotonic_increasing
    # each cut lies at most one moment's rows before the share asked for
    cut, most = 0, max(Counter(times).values())
    for p, wanted in zip(parts, np.cumsum(fractions)):
        cut += len(p)
        assert cut == len(times) or wanted*len(times) - most - 1 <= cut <= wanted*len(times)


@quick
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(0, 5))
def test_group_split_properties(groups, seed):
    log = pd.DataFrame(dict(g=groups, id=range(len(groups))))
    try: parts = preprocess.group_split(log, "g", (.6, .2, .2), seed)
    except ValueError as e:
        assert "would be empty" in str(e)
        return
    sides = [set(p.g) for p in parts]
    assert sum(map(len, sides)) == len(set(groups)) and all(sides)
    assert sorted(i for p in parts for i in p.id) == list(range(len(groups)))
    mixed = preprocess.group_split(log.sample(frac=1, random_state=1), "g", (.6, .2, .2), seed)
    assert [set(p.g) for p in mixed] == sides


def test_group_split_by_several_columns_and_shares():
    log = pd.DataFrame(dict(a=np.arange(200)//2 % 10, b=np.arange(200)//20, c=[None]*200))
    parts = preprocess.group_split(log, ["a", "b", "c"], (.7, .1, .2))
    assert [len(p) for p in parts] == [140, 20, 40]
    pairs = [set(zip(p.a, p.b)) for p in parts]
    assert not pairs[0] & pairs[1] and not pairs[0] & pairs[2] and not pairs[1] & pairs[2]
    assert not parts[0].equals(preprocess.group_split(log, ["a", "b", "c"], (.7, .1, .2), seed=1)[0])


def test_split_errors():
    log = pd.DataFrame(dict(timestamp=[1, 1, 2], g=[1, 2, 3]))
    for bad in ((1.,), (.5, .6), (1.2, -.2), (.5, .5, 0)):
        with pytest.raises(ValueError, match="sum to 1"): preprocess.time_split(log, fractions=bad)
        with pytest.raises(ValueError, match="sum to 1"): preprocess.group_split(log, "g", bad)
    with pytest.raises(ValueError, match="3 rows at 2 different moments do not make 3 parts"): preprocess.time_split(log)
    with pytest.raises(ValueError, match="missing values"): preprocess.time_split(log.assign(timestamp=[1, None, 2]))
    with pytest.raises(ValueError, match="no column 'timestamp'"): preprocess.time_split(log.drop(columns="timestamp"))
    with pytest.raises(ValueError, match="would be empty"): preprocess.time_split(log.head(0))
    with pytest.raises(ValueError, match="no column 'h'"): preprocess.group_split(log, "h")
    with pytest.raises(ValueError, match="1 groups do not make"): preprocess.group_split(log.assign(g=1), "g")


# ---- histories

@pytest.mark.formula("3.8")
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 6), st.integers(0, 1), st.floats(0, 1).map(lambda v: round(v, 2)),
                          st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=12),
       st.sets(st.tuples(st.integers(0, 3), st.integers(-4, 8)), min_size=1, max_size=5))
def test_history_sums_against_the_definition(rows, moments):
    user, time, scenario, label, *values = (np.array(c) for c in zip(*rows))
    q_user, q_time = (np.array(c) for c in zip(*sorted(moments)))
    shown, clicked = preprocess.history_sums(user, time, scenario, label.astype(float), np.stack(values, 1), 3, q_user, q_time, 2)
    for g, (u, t) in enumerate(sorted(moments)):
        for s in range(2):
            for v in range(3):
                hits = [r[3] for r in rows for x in r[4:] if r[0] == u and r[2] == s and r[1] < t and x == v]
                assert shown[g, s, v] == pytest.approx(len(hits), abs=1e-9)
                assert clicked[g, s, v] == pytest.approx(sum(hits), abs=1e-9)


def test_history_sums_refuses_moments_out_of_order():
    z = np.zeros(1, dtype=int)
    for q_user, q_time in (([0, 0], [2, 1]), ([0, 0], [1, 1]), ([1, 0], [1, 2])):
        with pytest.raises(ValueError, match="sorted by user and time"):
            preprocess.history_sums(z, z, z, z.astype(float), z[:, None], 1, np.array(q_user), np.array(q_time), 1)


@pytest.mark.formula("3.9")
def test_residual_clicks_by_hand():
    r = preprocess.residual_clicks(np.array([[[3., 0.]], [[15., 8.]]]), np.array([[[2., 0.]], [[3., 8.]]]), np.array([.25]))
    np.testing.assert_allclose(r, [[[1.25/2, 0]], [[-.75/4, 6/3]]], rtol=1e-12, atol=1e-12)


def test_residual_of_an_average_user_has_variance_rate_times_one_minus_rate():
    r, rate = np.random.default_rng(0), .2
    for n in (10., 400.):
        clicked = r.binomial(int(n), rate, size=(20_000, 1, 1)).astype(float)
        x = preprocess.residual_clicks(np.full((20_000, 1, 1), n), clicked, np.array([rate]))
        assert x.mean() == pytest.approx(0, abs=.02)
        assert x.var()*(1 + n)/n == pytest.approx(rate*(1 - rate), rel=.05)


def test_residual_errors():
    x = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match="axis 'V'"): preprocess.residual_clicks(x, x[..., :2], np.zeros(3))
    with pytest.raises(ValueError, match="axis 'S'"): preprocess.residual_clicks(x, x, np.zeros(4))


# ---- the whole

MALL = toy_mall(n_users=120, n_items=40, n_events=2500, seed=1)
TRAIN, VALID, TEST = preprocess.time_split(MALL.events, fractions=(.7, .1, .2))
PREP = preprocess.Preprocessor().fit(TRAIN, MALL.users, MALL.items)


def slow_history(row, log, prep):
    "The history of one row, (S, H), by plain loops over the log."
    items = MALL.items.set_index("item_id")
    names = [n.split("=") for n in prep.spec.history_names[:(prep.spec.history - len(prep.spec.scenarios))//2]]
    rate = {s: TRAIN.clicked[TRAIN.scenario == s].mean() for s in prep.spec.scenarios}
    out = []
    for s in prep.spec.scenarios:
        liked, seen = [], []
        past = log[(log.user_id == row.user_id) & (log.scenario == s) & (log.timestamp < row.timestamp)]
        for _, column, *value in [(None, *n) for n in names]:
            column = column.removeprefix("liked ")
            hits = [y for i, y in zip(past.item_id, past.clicked) if not value or items.loc[i, column] == value[0]]
            liked.append((sum(hits) - rate[s]*len(hits))/math.sqrt(1 + len(hits)))
            seen.append(math.log(1 + len(hits)))
        out.append(liked + seen + [float(other == s) for other in prep.spec.scenarios])
    return np.array(out)


@pytest.mark.parametrize("frame, log, counted", [
    (TRAIN, None, TRAIN), (TEST, None, pd.concat([TRAIN, TEST])), (TEST, MALL.events, MALL.events),
    (MALL.events, None, MALL.events), (TEST, TRAIN, TRAIN), (TEST.drop(columns="clicked"), None, TRAIN)])
def test_histories_of_a_batch_against_loops(frame, log, counted):
    batch = PREP.transform(frame, log=log)
    assert len(batch) == len(frame)
    for k in range(3, len(frame), len(frame)//9):
        row = frame.iloc[k]
        np.testing.assert_allclose(batch.history[k].numpy(), slow_history(row, counted, PREP), rtol=1e-5, atol=1e-5)
        past = counted[(counted.user_id == row.user_id) & (counted.timestamp < row.timestamp)]
        assert batch.present[k].tolist() == [s in set(past.scenario) for s in PREP.spec.scenarios]


def test_no_row_sees_itself_its_page_or_the_future():
    at = TEST.iloc[len(TEST)//2].timestamp
    flipped = MALL.events.assign(clicked=MALL.events.clicked.where(MALL.events.timestamp < at, 1 - MALL.events.clicked))
    rows = MALL.events.timestamp <= at
    one, two = (PREP.transform(log[rows], log=log) for log in (MALL.events, flipped))
    assert torch.equal(one.history, two.history)
    later = PREP.transform(flipped[~rows], log=flipped).history
    assert not torch.equal(later, PREP.transform(MALL.events[~rows], log=MALL.events).history)


def test_fit_reads_the_training_rows_only():
    wild = VALID.assign(price=1e6, item_id=10**6, user_id=10**6, clicked=1)
    before = [json.dumps(PREP.spec.fields), PREP.scales, PREP.rate.tolist()]
    PREP.transform(wild)
    assert [json.dumps(PREP.spec.fields), PREP.scales, PREP.rate.tolist()] == before
    dense = PREP.transform(TRAIN).dense.double()
    assert dense.mean(0).abs().max() < 1e-5 and (dense.var(0, correction=0) - 1).abs().max() < 1e-4


def test_spec_and_fields():
    spec, batch = PREP.spec, PREP.transform(TRAIN)
    assert tuple(spec.fields) == ("age_band", "city", "category", "brand", "item_id")
    assert spec.offsets == tuple(sum(list(spec.fields.values())[:k]) for k in range(5))
    assert spec.item_fields == ("category", "brand", "item_id") and spec.item_dense == ("price", "quality") == spec.dense
    assert batch.history_table.shape[1:] == (len(spec.scenarios), spec.history) and len(spec.history_names) == spec.history
    wide = TRAIN.merge(MALL.users, on="user_id").merge(MALL.items.drop(columns="price"), on="item_id")
    for k, name in enumerate(spec.fields):
        words = PREP.vocabularies[name].decode(batch.fields[:, k].numpy() - spec.offsets[k])
        assert words == wide[name].tolist()
    assert [spec.scenarios[s] for s in batch.scenario] == TRAIN.scenario.tolist()
    assert batch.label.tolist() == TRAIN.clicked.tolist()


def test_unknown_users_items_and_missing_numbers():
    new = TEST.head(3).assign(user_id=10**6, item_id=10**6).drop(columns="price")
    batch = PREP.transform(new)
    assert batch.fields.tolist() == [list(PREP.spec.offsets)]*3
    assert batch.dense.abs().max() == 0 and not batch.present.any()
    assert PREP.transform(TEST.head(0)).history.shape == (0, len(PREP.spec.scenarios), PREP.spec.history)
    gap = TEST.head(2).assign(price=[float("nan"), 5.])
    assert PREP.transform(gap).dense[0, 0] == 0


def test_a_log_alone_is_enough():
    schema = Schema(categorical=(), numeric=())
    log = MALL.events[["user_id", "item_id", "scenario", "timestamp", "clicked"]]
    train, test = preprocess.time_split(log, fractions=(.8, .2))
    prep = preprocess.Preprocessor(schema, history_words=5).fit(train)
    assert tuple(prep.spec.fields) == ("item_id",) and prep.spec.history == 2*6 + len(prep.spec.scenarios)
    batch = prep.transform(test)
    assert batch.dense.shape == (len(test), 0)
    common = train.item_id.value_counts().sort_index().sort_values(ascending=False, kind="stable").index[:5]
    assert prep.spec.history_names[:5] == tuple(f"liked item_id={i}" for i in common)


def test_row_order_and_twins_do_not_matter():
    mixed = TEST.sample(frac=1, random_state=0)
    one, two = PREP.transform(TEST), PREP.transform(mixed)
    back = torch.as_tensor(pd.Index(mixed.index).get_indexer(TEST.index))
    assert torch.equal(one.history, two.history[back]) and torch.equal(one.fields, two.fields[back])
    twice = pd.concat([TRAIN, TRAIN.tail(1)], ignore_index=True)  # one row more than the fitted log holds
    user = MALL.events.user_id == TRAIN.user_id.iloc[-1]
    later = TEST[user.loc[TEST.index]].assign(timestamp=TEST.timestamp.max() + 1).head(1)
    if len(later):
        plain, more = (PREP.transform(pd.concat([f, later], ignore_index=True)).history[-1] for f in (TRAIN, twice))
        s = PREP.spec.scenarios.index(TRAIN.scenario.iloc[-1])
        seen = PREP.spec.history_names.index("seen all items")
        assert round(math.expm1(more[s, seen]) - math.expm1(plain[s, seen])) == 1


def test_save_and_load(tmp_path):
    PREP.save(tmp_path/"prep")
    assert sorted(p.name for p in (tmp_path/"prep").iterdir()) == ["preprocess.json", "preprocess.safetensors"]
    again = preprocess.Preprocessor.load(tmp_path/"prep")
    assert again.spec == PREP.spec and again.schema == PREP.schema
    for frame in (TRAIN, TEST, TEST.drop(columns=["clicked", "price"])):
        one, two = PREP.transform(frame), again.transform(frame)
        for name in ("fields", "dense", "scenario", "label", "history_table", "present_table", "history_row"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
    for name in ("users", "items", "log"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(PREP, name), check_dtype=False)
    known = json.loads((tmp_path/"prep"/"preprocess.json").read_text())
    (tmp_path/"prep"/"preprocess.json").write_text(json.dumps(known | {"format": 99}))
    with pytest.raises(ValueError, match="format 99, this version reads 2"): preprocess.Preprocessor.load(tmp_path/"prep")
    (tmp_path/"prep"/"preprocess.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="preprocess.safetensors"): preprocess.Preprocessor.load(tmp_path/"prep")


def test_preprocessor_errors(tmp_path):
    fresh = preprocess.Preprocessor
    with pytest.raises(ValueError, match="Preprocessor is not fitted"): fresh().transform(TEST)
    with pytest.raises(ValueError, match="Preprocessor is not fitted"): fresh().save(tmp_path)
    with pytest.raises(ValueError, match="no rows"): fresh().fit(TRAIN.head(0), MALL.users, MALL.items)
    with pytest.raises(ValueError, match="no column 'clicked'"): fresh().fit(TRAIN.drop(columns="clicked"), MALL.users, MALL.items)
    with pytest.raises(ValueError, match="column 'age_band' is neither"): fresh().fit(TRAIN, None, MALL.items)
    with pytest.raises(ValueError, match="users: user_id 0 stands twice, in rows 0 and 120; keep one row of each"): fresh().fit(TRAIN, pd.concat([MALL.users]*2), MALL.items)
    with pytest.raises(ValueError, match="items: there is no column 'item_id'"): fresh().fit(TRAIN, MALL.users, MALL.items.drop(columns="item_id"))
    with pytest.raises(ValueError, match="row 1 has scenario 'kiosk'"): PREP.transform(TEST.assign(scenario=["home", "kiosk"] + ["home"]*(len(TEST) - 2)))
    with pytest.raises(ValueError, match="no column 'timestamp'"): PREP.transform(TEST.drop(columns="timestamp"))
    with pytest.raises(ValueError, match="log: there is no column 'clicked'"): PREP.transform(TEST, log=TRAIN.drop(columns="clicked"))
    with pytest.raises(ValueError, match="knows whole numbers, the column holds strings"): PREP.transform(TEST.assign(item_id=TEST.item_id.astype(str)))
    with pytest.raises(ValueError, match="no time in seconds"): PREP.transform(TEST.assign(timestamp=float("nan")))
    with pytest.raises(ValueError, match="label"): PREP.transform(TEST.assign(clicked=2))
    for name in ("min_count", "history_words"):
        with pytest.raises(ValueError, match=f"{name} must be 1 or more, got 0"): fresh(**{name: 0})
    when = MALL.users.assign(joined=pd.Timestamp("2026-01-01"))
    with pytest.raises(ValueError, match="column 'joined' of users"): fresh().fit(TRAIN, when, MALL.items).save(tmp_path)
