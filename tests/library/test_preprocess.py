"Second opinions on notebook 03: plain loops, scikit-learn and hypothesis."
import copy
import json
import math
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscene_rec import preprocess
from multiscene_rec.data import Batch, Schema, toy_mall

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
    np.testing.assert_allclose(back, [lo + v*(hi - lo if hi > lo else 1) for v in scaled], rtol=1e-9,
                               atol=1e-6)
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
    np.testing.assert_allclose(ss.inverse([0, 1, -2]), np.mean(train) + std*np.array([0, 1, -2]), rtol=1e-9,
                               atol=1e-6)
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
    np.testing.assert_allclose(preprocess.log_scale(x), [math.log10(1 + v)/math.log10(math.e) for v in x],
                               rtol=1e-12)
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

words = st.one_of(st.lists(st.text(max_size=3), max_size=30), st.lists(st.integers(-2**63, 2**63 - 1),
    max_size=30),
                  st.lists(st.integers(0, 4), max_size=30))


@quick
@given(words, st.integers(1, 3))
def test_vocabulary_against_a_counter(values, min_count):
    vocabulary = preprocess.Vocabulary(min_count=min_count).fit(values)
    count = Counter(values)
    expected = sorted((w for w in count if count[w] >= min_count), key=lambda w: (-count[w], w))
    assert list(vocabulary.words_) == expected and len(vocabulary) == len(expected) + 1
    ids = vocabulary.encode(values)
    assert ids.tolist() == [expected.index(w) + 1 if w in expected else 0 for w in values]
    assert vocabulary.decode(ids) == [w if w in expected else None for w in values]
    again = preprocess.Vocabulary(**json.loads(json.dumps(asdict(vocabulary))))
    assert again == vocabulary
    assert [type(w) for w in again.words_] == [type(w) for w in vocabulary.words_]
    assert again.encode(values).tolist() == ids.tolist()


def test_vocabulary_kinds():
    v = preprocess.Vocabulary().fit(pd.Series([3, 3, 5]))
    assert v.encode(torch.tensor([5, 3, 4])).tolist() == [2, 1, 0]
    assert v.encode(pd.Series([3., None])).tolist() == [1, 0]
    assert v.encode(pd.Series([None, 5], dtype="Int64")).tolist() == [0, 2]
    assert v.encode([]).tolist() == [] and v.encode([None]).tolist() == [0]
    assert preprocess.Vocabulary().fit(pd.Series(["b", "a", "b"], dtype="category")).words_ == ("b", "a")
    assert preprocess.Vocabulary().fit([True, False, True]).words_ == (1, 0)
    assert preprocess.Vocabulary().fit(np.array(["x", "y"])).encode(["y"]).tolist() == [2]
    assert preprocess.Vocabulary().encode(["never fitted"]).tolist() == [0]


def test_vocabulary_errors():
    with pytest.raises(ValueError, match="1 or more"): preprocess.Vocabulary(min_count=0)
    for bad in ([.5], ["a", 1], [2**64], [2.**60]):
        with pytest.raises(ValueError, match="astype"): preprocess.Vocabulary().fit(bad)
    with pytest.raises(ValueError, match="knows strings, but the column holds whole numbers"):
        preprocess.Vocabulary().fit(["7"]).encode([7])
    with pytest.raises(ValueError, match="knows whole numbers, but the column holds strings"):
        preprocess.Vocabulary().fit([7]).encode(["7"])
    for bad in ([2], [-1]):
        with pytest.raises(ValueError, match="ids must lie between 0 and 1"):
            preprocess.Vocabulary().fit(["a"]).decode(bad)


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

BASE = pd.DataFrame(dict(user_id=[1, 2, 3, 4], item_id=[10, 20, 30, 40],
                         scenario=["home", "home", "cart", "home"],
                         timestamp=[1_700_000_000 + 100*k for k in range(4)], price=[5., 6., 7., 8.],
                         clicked=[0, 1, 0, 1]))


def with_cell(column, value, row=1):
    out = BASE.astype({column: object})
    out.loc[row, column] = value
    return out


@pytest.mark.parametrize("rule, column, value", [
    ("missing id", "user_id", None), ("missing id", "item_id", float("nan")),
    ("missing id", "scenario", None),
    ("missing id", "scenario", "  "), ("missing id", "user_id", ""),
    ("label", "clicked", 2), ("label", "clicked", -.1), ("label", "clicked", None),
    ("label", "clicked", "yes"),
    ("price", "price", 0), ("price", "price", -3.), ("price", "price", float("inf")),
    ("price", "price", None), ("price", "price", 1e9),
    ("time", "timestamp", 0), ("time", "timestamp", -5), ("time", "timestamp", 1_700_000_000_000),
    ("time", "timestamp", None),
    ("time", "timestamp", 631_151_999), ("time", "timestamp", 4_102_444_800)])
def test_each_rule_drops_its_row_and_no_other(rule, column, value):
    tidy, report = preprocess.clean(with_cell(column, value))
    assert tidy.index.tolist() == [0, 2, 3]
    assert dict(zip(report.counts.rule, report.counts.rows)) == {r: int(r == rule)
        for r in report.counts.rule}
    assert report.rows.values.tolist() == [[1, rule]]
    assert (report.rows_in, report.rows_out) == (4, 3)
    assert f"{rule:<11}{1:>7,} dropped" in str(report) and "4 rows in, 3 rows out" in str(report)


def test_limits_of_the_rules_are_kept():
    for column, value in (("clicked", .5), ("price", .01), ("timestamp", 631_152_000),
                          ("timestamp", 4_102_444_799), ("price", 6e4)):
        assert len(preprocess.clean(with_cell(column, value))[0]) == 4
    assert len(preprocess.clean(with_cell("timestamp", 0), time_range=(0, "2100-01-01"))[0]) == 4
    assert len(preprocess.clean(with_cell("price", 1e9), price_limit=math.inf)[0]) == 4
    assert len(preprocess.clean(with_cell("price", -1), price=None)[0]) == 4
    assert "price" not in preprocess.clean(BASE.drop(columns="price"))[1].counts.rule.tolist()


@quick
@given(st.lists(st.sampled_from(["home", "Home", " HOME", "hOme  ", "cart", "Cart ", "STRASSE", "straße"]),
                min_size=1, max_size=20))
def test_scenario_names_take_the_commonest_spelling(names):
    log = pd.DataFrame(dict(user_id=range(len(names)), item_id=1, scenario=names, timestamp=1_700_000_000,
                            clicked=0))
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


events = st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), st.sampled_from(["a", "b"]),
                            st.integers(0, 20), st.integers(0, 1), st.integers(1, 2)),
                  min_size=1, max_size=25)


def as_log(rows, columns=("user_id", "item_id", "scenario", "timestamp", "clicked", "position")):
    log = pd.DataFrame(rows, columns=columns)
    return log.assign(timestamp=log.timestamp + 1_700_000_000)


def slow_dedupe(rows, window):
    """Which rows stay and with which label, and why each of the others goes, by loops over (user, item,
    scenario, second, label, position)."""
    stay, why = {}, {k: "duplicate" for k, r in enumerate(rows) if r in rows[:k]}
    left = [k for k in range(len(rows)) if k not in why]
    for event in {rows[k][:3] for k in left}:
        mine, last = [k for k in left if rows[k][:3] == event], -10**9
        for second in sorted({rows[k][3] for k in mine}):
            here = [k for k in mine if rows[k][3] == second]
            if second - last > window: first, page = here[0], {}
            for k in here:
                position, label = rows[k][5], rows[k][4]
                if second - last > window and position not in page: page[position], stay[k] = k, label
                else:
                    to = page.get(position, first)
                    why[k] = "click row" if label > rows[to][4] else "resent"
                    stay[to] = max(stay[to], label)
            last = second
    return stay, why


@settings(max_examples=60)
@given(events, st.integers(0, 6))
def test_dedupe_against_loops(rows, window):
    stay, why = slow_dedupe(rows, window)
    log = as_log(rows)
    before = log.copy()
    out = preprocess.dedupe(log, window=window)
    pd.testing.assert_frame_equal(log, before)
    expected = log.loc[sorted(stay)].assign(clicked=[stay[k] for k in sorted(stay)])
    pd.testing.assert_frame_equal(out, expected)
    tidy, report = preprocess.clean(log, window=window)
    pd.testing.assert_frame_equal(tidy, expected, check_dtype=False)
    assert dict(zip(report.rows.row, report.rows.rule)) == why
    counts = dict(zip(report.counts.rule, report.counts.rows))
    assert counts == {rule: list(why.values()).count(rule) for rule in counts} and report.rows_out == len(
        rows) - len(why)
    again, second = preprocess.clean(tidy, window=window)
    assert again.equals(tidy) and second.counts.rows.sum() == 0
    # no click is lost, and none is made up
    clicks = [{rows[k][:3] for k in frame.index[frame.clicked == 1]} for frame in (log, out)]
    assert clicks[0] == clicks[1] and out.clicked.sum() <= log.clicked.sum()


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 10_000),
                          st.one_of(st.none(), st.integers(0, 30)), st.booleans()), min_size=1, max_size=30,
                unique_by=(lambda e: e[2] // 200, lambda e: e[2])), st.randoms(use_true_random=False))
def test_a_log_of_impression_and_click_rows_keeps_its_clicks(shown, random):
    """Each exposure is a row with label 0 and, where it is clicked after so many seconds, a second row
    with label 1; in any order."""
    rows, clicks = [], []
    for user, item, page, delay, place in shown:
        time = page // 200*200
        rows.append((user, item, "home", time, 0, 1))
        if delay is not None:
            rows.append((user, item, "home", time + delay, 1, 1 if place or delay == 0 else None))
        clicks.append(delay is not None)
    random.shuffle(rows)
    tidy, report = preprocess.clean(as_log(rows), window=30)
    assert len(tidy) == len(shown) and tidy.clicked.sum() == sum(clicks)
    found = {(r.user_id, r.item_id, r.timestamp - 1_700_000_000): r.clicked for r in tidy.itertuples()}
    assert found == {(u, i, page // 200*200): float(c) for (u, i, page, *_), c in zip(shown, clicks)}
    counts = dict(zip(report.counts.rule, report.counts.rows))
    assert counts["click row"] + counts["resent"] == sum(clicks) and counts["duplicate"] == 0
    late = sum(delay is not None and delay > 5 for *_, delay, _ in shown)
    short, said = preprocess.clean(as_log(rows))
    # a click that comes too late stays as a row of its own
    assert short.clicked.sum() == sum(clicks) and len(short) == len(shown) + late
    assert ("if some come later, pass a larger window" in str(said)) == (said.counts.rows.iloc[-1] > 0)


def test_click_rows_by_hand():
    rows = [(1, 5, "home", 0, 0, 1), (1, 5, "home", 0, 0, 4), (1, 5, "home", 3, 1, 4),
            (1, 6, "home", 3, 1, 2), (1, 6, "home", 5, 0, 2), (2, 5, "home", 0, 0, 1),
            (2, 5, "home", 0, 1, 1)]
    tidy, report = preprocess.clean(as_log(rows).set_axis([f"r{k}" for k in range(7)]))
    assert tidy.clicked.to_dict() == {"r0": 0, "r1": 1, "r3": 1, "r5": 1} and tidy.clicked.dtype == "int64"
    assert report.counts.tail(2).values.tolist() == [["resent", "dropped", 1], ["click row", "merged", 2]]
    assert "click row        2 merged" in str(report)
    assert ("clicks up to 5 s after an exposure were merged into it; if some come later, pass a larger "
            "window" in str(report))
    both = Schema(label=("clicked", "bought"))
    log = as_log(rows).assign(bought=[0, 0, 0, .5, 1, .25, 0])
    tidy, report = preprocess.clean(log, both)
    assert tidy.clicked.tolist() == [0, 1, 1, 1] and tidy.bought.tolist() == [0, 0, 1, .25]
    assert report.counts.rows.tolist()[-2:] == [0, 3]  # of the label that rises, whichever it is
    assert preprocess.clean(log.assign(bought=[0, 0, 0, 0, 0, 0, 2]), both)[1].rows.values.tolist()[0] == [6,
        "label"]
    log = log.drop(columns="bought")
    soft = preprocess.dedupe(log.assign(clicked=[None, 0, 0, None, .5, 0, .7]))
    assert soft.clicked.fillna(-1).tolist() == [-1, 0, .5, .7]
    words = preprocess.dedupe(log.assign(clicked=pd.Categorical(["0", "0", "1", "1", "0", "0", "1"])))
    assert words.clicked.tolist() == ["0", "1", "1", "1"]


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
    for kind in dirt.kind.unique():
        assert score.loc[kind, "recall"] == 1 and score.loc[kind, "precision"] > .95, kind
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
    assert score.loc["a", "precision"] == pytest.approx(3/4) and score.loc["a", "recall"] == pytest.approx(
        3/5)
    assert math.isnan(score.loc["b", "recall"]) and score.loc["c", "recall"] == pytest.approx(0)
    with pytest.raises(ValueError, match="no column 'kind'"):
        preprocess.score_rules(report, dirt.drop(columns="kind"))


def test_cleaning_errors():
    for f in (preprocess.clean, preprocess.dedupe):
        with pytest.raises(ValueError, match="no column 'scenario'"): f(BASE.drop(columns="scenario"))
        with pytest.raises(ValueError, match="reset_index"): f(pd.concat([BASE, BASE]))
        with pytest.raises(ValueError, match="0 or more, got -1"): f(BASE, window=-1)
    with pytest.raises(ValueError,
                       match="rule 'time' dropped 4; if the times in 'timestamp' are milliseconds"):
        preprocess.clean(BASE.assign(timestamp=BASE.timestamp*1000))
    with pytest.raises(ValueError, match="rule 'label' dropped 4$"): preprocess.clean(BASE.assign(clicked=7))


@pytest.mark.parametrize("unit, size", [("milliseconds", 10**3), ("microseconds", 10**6),
                                        ("nanoseconds", 10**9)])
def test_the_unit_of_times_is_seen_by_their_size(unit, size):
    says = (f"if the times in 'timestamp' are {unit}, divide them by {size}; times must run from 1990 up "
            "to 2100, in seconds since 1970")
    with pytest.raises(ValueError, match=f"none of the 4 rows is left; rule 'time' dropped 4; {says}"):
        preprocess.clean(BASE.assign(timestamp=BASE.timestamp*size))
    _, report = preprocess.clean(BASE.assign(timestamp=BASE.timestamp*[1, size, size, 1]))
    assert report.remarks == (f"rule 'time' dropped 50% of all rows; {says}",
                              ) and f"Look: {report.remarks[0]}" in str(report)


@pytest.mark.wrong(
    "clean: none of the … rows is left; rule 'time' dropped …; its times in … run from … to …; times must "
    "run "
    "from … up to …, in seconds since 1970; "
                   "if they count from another moment, pass time_range=None", area="your log",
                   cause="Times count from the first day of the log, or are days or minutes.",
    remedy="Pass time_range=None to clean; or turn them into seconds since 1970.")
def test_times_that_count_from_another_moment():
    for times, shown in (([0, 1, 2, 3], "run from 0 to 3"),
        ([18_000.5, 18_001, 18_002, 18_900], "run from 18000.5 to 18900"),
                         ([-5, 1, 2, 20260101], "run from -5 to 20260101")):
        log = BASE.assign(timestamp=times)
        with pytest.raises(ValueError) as e: preprocess.clean(log)
        assert str(e.value) == (
            f"clean: none of the 4 rows is left; rule 'time' dropped 4; its times in 'timestamp' {shown}; "
            "times "
            "must run from 1990 up to 2100, "
                                "in seconds since 1970; if they count from another moment, pass "
                                "time_range=None")
        tidy, report = preprocess.clean(log, time_range=None)
        assert len(tidy) == 4 and report.remarks == ()
    bad = [0, float("inf"), 2.**53, None]
    tidy, report = preprocess.clean(BASE.assign(timestamp=bad), time_range=None)
    assert tidy.index.tolist() == [0] and report.remarks == ("rule 'time' dropped 75% of all rows",)
    assert preprocess.Preprocessor(Schema(categorical=(), numeric=())).fit(
        BASE.assign(timestamp=[0, 1, 2, 3])).last_ == 3
    with pytest.raises(ValueError, match="times must run from 2030 up to 2031-06"):
        preprocess.clean(BASE, time_range=("2030", "2031-06"))


def test_remarks_are_made_of_what_is_much():
    log = pd.concat([BASE]*5, ignore_index=True).assign(item_id=range(20))
    for bad, share in ((2, None), (3, "15%")):  # a tenth is not yet much
        _, report = preprocess.clean(log.assign(clicked=[9]*bad + [0]*(20 - bad)))
        assert report.remarks == ((f"rule 'label' dropped {share} of all rows",) if share else ())
    # repaired rows are still there
    assert preprocess.clean(log.assign(scenario=[" home"]*10 + ["home"]*10))[1].remarks == ()
    assert "Look" not in str(preprocess.clean(log)[1])


# ---- splits

@quick
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40),
       st.sampled_from([(.5, .5), (.8, .08, .12), (.2, .3, .5)]))
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
    with pytest.raises(ValueError, match="3 rows at 2 different moments do not make 3 parts"):
        preprocess.time_split(log)
    with pytest.raises(ValueError, match="missing values"):
        preprocess.time_split(log.assign(timestamp=[1, None, 2]))
    with pytest.raises(ValueError, match="no column 'timestamp'"):
        preprocess.time_split(log.drop(columns="timestamp"))
    with pytest.raises(ValueError, match="would be empty"): preprocess.time_split(log.head(0))
    with pytest.raises(ValueError, match="no column 'h'"): preprocess.group_split(log, "h")
    with pytest.raises(ValueError, match="1 groups do not make"): preprocess.group_split(log.assign(g=1), "g")


# ---- histories

@pytest.mark.formula("3.8")
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 6), st.integers(0, 1),
                          st.floats(0, 1).map(lambda v: round(v, 2)),
                          st.integers(-1, 2), st.integers(-1, 2)), min_size=1, max_size=12),
       st.sets(st.tuples(st.integers(0, 3), st.integers(-4, 8)), min_size=1, max_size=5))
def test_history_sums_against_the_definition(rows, moments):
    user, time, scenario, label, *values = (np.array(c) for c in zip(*rows))
    q_user, q_time = (np.array(c) for c in zip(*sorted(moments)))
    shown, clicked = preprocess.history_sums(user, time, scenario, label.astype(float), np.stack(values, 1),
                                             3, q_user, q_time, 2)
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
            preprocess.history_sums(z, z, z, z.astype(float), z[:, None], 1, np.array(q_user),
                                    np.array(q_time), 1)


@pytest.mark.formula("3.9")
def test_residual_clicks_by_hand():
    r = preprocess.residual_clicks(np.array([[[3., 0.]], [[15., 8.]]]), np.array([[[2., 0.]], [[3., 8.]]]),
                                   np.array([.25]))
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
LOG = preprocess.EventLog(MALL.events, MALL.users)


def known(events): return preprocess.EventLog(events, MALL.users)


def parts_of(batch): return batch.rows | batch.tables


def same(one, two):
    return parts_of(one).keys() == parts_of(two).keys() and all(torch.equal(x, parts_of(two)[name]) for name,
        x in parts_of(one).items())


def slow_history(row, log, prep):
    "The history of one row, (S, H), by plain loops over the log."
    items = MALL.items.set_index("item_id")
    names = [n.split("=")
             for n in prep.spec.history_names[:(prep.spec.history - len(prep.spec.scenarios))//2]]
    rate = {s: TRAIN.clicked[TRAIN.scenario == s].mean() for s in prep.spec.scenarios}
    out = []
    for s in prep.spec.scenarios:
        liked, seen = [], []
        past = log[(log.user_id == row.user_id) & (log.scenario == s) & (log.timestamp < row.timestamp)]
        for _, column, *value in [(None, *n) for n in names]:
            column = column.removeprefix("liked ")
            hits = [y for i, y in zip(past.item_id, past.clicked) if not value
                    or items.loc[i, column] == value[0]]
            liked.append((sum(hits) - rate[s]*len(hits))/math.sqrt(1 + len(hits)))
            seen.append(math.log(1 + len(hits)))
        out.append(liked + seen + [float(other == s) for other in prep.spec.scenarios])
    return np.array(out)


@pytest.mark.parametrize("frame, log, counted", [
    (TRAIN, known(TRAIN), TRAIN), (TEST, known(pd.concat([TRAIN, TEST])), pd.concat([TRAIN, TEST])),
    (TEST, LOG, MALL.events), (TRAIN.merge(MALL.users), None, TRAIN),
    (TEST, known(TRAIN), TRAIN), (TEST.drop(columns="clicked"), known(TRAIN), TRAIN),
    (TEST.merge(MALL.users), MALL.events, MALL.events),
    (TEST.sample(frac=1, random_state=1), known(MALL.events.sample(frac=1, random_state=2)), MALL.events)])
def test_histories_of_a_batch_against_loops(frame, log, counted):
    batch = PREP.transform(frame, log)
    assert len(batch) == len(frame) and ("label" in batch.rows) == ("clicked" in frame)
    for k in range(3, len(frame), len(frame)//9):
        row = frame.iloc[k]
        np.testing.assert_allclose(batch.history[k].numpy(), slow_history(row, counted, PREP), rtol=1e-5,
                                   atol=1e-5)
        past = counted[(counted.user_id == row.user_id) & (counted.timestamp < row.timestamp)]
        assert batch.present[k].tolist() == [s in set(past.scenario) for s in PREP.spec.scenarios]


def test_no_row_sees_itself_its_page_or_the_future():
    at = TEST.iloc[len(TEST)//2].timestamp
    flipped = MALL.events.assign(clicked=MALL.events.clicked.where(MALL.events.timestamp < at,
        1 - MALL.events.clicked))
    rows = MALL.events.timestamp <= at
    one, two = (PREP.transform(log[rows], known(log)) for log in (MALL.events, flipped))
    assert torch.equal(one.history, two.history)
    later = PREP.transform(flipped[~rows], known(flipped)).history
    assert not torch.equal(later, PREP.transform(MALL.events[~rows], LOG).history)


def test_fit_reads_the_training_rows_only():
    wild = VALID.assign(price=1e6, item_id=10**6, user_id=10**6, clicked=1)
    state = lambda: json.dumps([asdict(PREP.spec), [part.state()[0] for part in PREP.parts]])
    before = state()
    PREP.transform(wild, LOG)
    PREP.transform(TEST, known(wild))
    assert state() == before
    dense = PREP.transform(TRAIN, LOG).dense.double()
    assert dense.mean(0).abs().max() < 1e-5 and (dense.var(0, correction=0) - 1).abs().max() < 1e-4


def test_spec_and_fields():
    spec, batch = PREP.spec, PREP.transform(TRAIN, LOG)
    assert tuple(spec.fields) == ("age_band", "city", "category", "brand", "item_id")
    assert spec.offsets == tuple(sum(list(spec.fields.values())[:k]) for k in range(5))
    assert spec.item_fields == ("category", "brand", "item_id") and spec.item_dense == ("price",
        "quality") == spec.dense
    assert batch.history_table.shape[1:] == (len(spec.scenarios),
                                             spec.history) and len(spec.history_names) == spec.history
    wide = TRAIN.merge(MALL.users, on="user_id").merge(MALL.items.drop(columns="price"), on="item_id")
    for k, name in enumerate(spec.fields):
        words = PREP.part(preprocess.Categories).words_[name].decode(batch.fields[:, k].numpy()
            - spec.offsets[k])
        assert words == wide[name].tolist()
    assert [spec.scenarios[s] for s in batch.scenario] == TRAIN.scenario.tolist()
    assert batch.label.tolist() == TRAIN.clicked.tolist()


def test_unknown_users_items_and_missing_numbers():
    new = TEST.head(3).assign(user_id=10**6, item_id=10**6).drop(columns="price")
    batch = PREP.transform(new, LOG)
    assert batch.fields.tolist() == [list(PREP.spec.offsets)]*3
    assert batch.dense.abs().max() == 0 and not batch.present.any()
    assert PREP.transform(TEST.head(0), LOG).history.shape == (0, len(PREP.spec.scenarios), PREP.spec.history)
    gap = TEST.head(2).assign(price=[float("nan"), 5.])
    assert PREP.transform(gap, LOG).dense[0, 0] == 0


def test_a_log_alone_is_enough():
    schema = Schema(categorical=(), numeric=())
    log = MALL.events[["user_id", "item_id", "scenario", "timestamp", "clicked"]]
    train, test = preprocess.time_split(log, fractions=(.8, .2))
    prep = preprocess.Preprocessor(schema, (preprocess.Categories(), preprocess.Labels(),
                                            preprocess.Numbers(), preprocess.Histories(words=5))).fit(train)
    assert tuple(prep.spec.fields) == ("item_id",) and prep.spec.history == 2*6 + len(prep.spec.scenarios)
    batch = prep.transform(test, log)
    assert batch.dense.shape == (len(test), 0)
    common = train.item_id.value_counts().sort_index().sort_values(ascending=False, kind="stable").index[:5]
    assert prep.spec.history_names[:5] == tuple(f"liked item_id={i}" for i in common)


def test_row_order_and_twins_do_not_matter():
    mixed = TEST.sample(frac=1, random_state=0)
    one, two = PREP.transform(TEST, LOG), PREP.transform(mixed, LOG)
    back = torch.as_tensor(pd.Index(mixed.index).get_indexer(TEST.index))
    assert torch.equal(one.history, two.history[back]) and torch.equal(one.fields, two.fields[back])
    twice = pd.concat([TRAIN, TRAIN.tail(1)], ignore_index=True)  # an item twice on a page
    later = TRAIN.tail(1).assign(timestamp=TEST.timestamp.max() + 1)
    plain, more = (PREP.transform(later, known(f)).history[0] for f in (TRAIN, twice))
    s, seen = PREP.spec.scenarios.index(TRAIN.scenario.iloc[-1]), PREP.spec.history_names.index(
        "seen all items")
    assert round(math.expm1(more[s, seen]) - math.expm1(plain[s, seen])) == 1


def test_preprocessor_errors(tmp_path):
    fresh = preprocess.Preprocessor
    with pytest.raises(ValueError, match="Preprocessor is not fitted"): fresh().transform(TEST)
    with pytest.raises(ValueError, match="Preprocessor is not fitted"): fresh().save(tmp_path)
    with pytest.raises(ValueError, match="no rows"): fresh().fit(TRAIN.head(0), MALL.users, MALL.items)
    with pytest.raises(ValueError, match="no column 'clicked'"):
        fresh().fit(TRAIN.drop(columns="clicked"), MALL.users, MALL.items)
    with pytest.raises(ValueError,
                       match="column 'age_band' is neither in the frame nor in users or items; pass users, "
                             "or add the column, or take it out of the schema"):
        fresh().fit(TRAIN, None, MALL.items)
    with pytest.raises(ValueError,
                       match="column 'category' is neither in the frame nor in users or items; add the "
                             "column, or take it out of the schema"):
        fresh().fit(TRAIN, MALL.users)
    with pytest.raises(ValueError,
                       match="users: user_id 0 appears twice, in rows 0 and 120; keep one row of each"):
        fresh().fit(TRAIN, pd.concat([MALL.users]*2), MALL.items)
    with pytest.raises(ValueError, match="items: there is no column 'item_id'"):
        fresh().fit(TRAIN, MALL.users, MALL.items.drop(columns="item_id"))
    with pytest.raises(ValueError, match="row 1 has scenario 'kiosk'"):
        PREP.transform(TEST.assign(scenario=["home", "kiosk"] + ["home"]*(len(TEST) - 2)), LOG)
    with pytest.raises(ValueError, match="no column 'timestamp'"):
        PREP.transform(TEST.drop(columns="timestamp"), LOG)
    with pytest.raises(ValueError, match="log: there is no column 'clicked'"):
        PREP.transform(TEST, log=TRAIN.drop(columns="clicked"))
    with pytest.raises(ValueError,
                       match="column 'item_id': this vocabulary knows whole numbers, but the column holds "
                             "strings"):
        PREP.transform(TEST.assign(item_id=TEST.item_id.astype(str)), LOG)
    with pytest.raises(ValueError, match="is not a time in seconds"):
        PREP.transform(TEST.assign(timestamp=float("nan")), LOG)
    with pytest.raises(ValueError, match="label"): PREP.transform(TEST.assign(clicked=2), LOG)
    for make, name in ((preprocess.Categories, "min_count"), (preprocess.Histories, "min_count"),
                       (preprocess.Histories, "words"), (preprocess.Sequences, "length")):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of 1 or more, got 0"):
            make(**{name: 0})
    when = MALL.items.assign(since=pd.Timestamp("2026-01-01"))
    with pytest.raises(ValueError, match="column 'since' of items cannot be stored: it holds Timestamp"):
        fresh().fit(TRAIN, MALL.users, when)
    for bad, says in (((preprocess.Categories,), "write Categories\\(\\), with brackets"),
                      ((preprocess.Categories(), 5), "5 is not a Part")):
        with pytest.raises(ValueError, match=says): fresh(parts=bad)
    with pytest.raises(ValueError,
                       match="the preprocessor has no Vectors; its parts are Categories, Numbers, Labels, "
                             "Histories"):
        PREP.part(preprocess.Vectors)
    twins = (preprocess.Labels(), preprocess.Sequences(3), preprocess.Sequences(3, "other"))
    with pytest.raises(ValueError, match="feature 'events' appears twice"):
        fresh(parts=(*twins[:2], twins[1])).fit(TRAIN)
    assert len(fresh(parts=twins).fit(TRAIN).transform(TRAIN)) == len(TRAIN)  # what both bring is the same
    with pytest.raises(ValueError, match="two parts add 'seq_start'; give one of them another name"):
        fresh(parts=(*twins, preprocess.Sequences(2, "third"))).fit(TRAIN).transform(TRAIN)


@pytest.mark.wrong(
    "column … is neither in the frame nor in users or items; pass log=EventLog(events, users), or add the "
    "column, or take it out of the schema", area="your log",
                   cause="The column describes users, and transform was given no table of users.",
    remedy="Pass log=EventLog(events, users): the log brings that table.")
@pytest.mark.wrong(
    "transform: these rows are later than all training rows and no log was given, so their histories would "
    "start empty: pass log= with all that happened before", area="your log",
                   cause="What users did before is known from the log alone.",
    remedy="Pass log=EventLog(events, users) with the training rows and what came after.")
@pytest.mark.wrong(
    "transform: the log was made for the columns …, but these rows have …: pass EventLog(events, users, "
    "prep.schema)", area="your log",
                   cause="An EventLog takes its columns from the schema it was made with; left out, that is "
                         "the mall's.", remedy="Make the log with the schema of the preprocessor.")
@pytest.mark.wrong(
    "transform: these rows have no label, so they cannot serve as a past, and no log was given: pass "
    "log= with what has happened so far", area="your log",
                   cause="Rows to predict have no answers yet, and histories are counted from answers.",
    remedy="Pass log=EventLog(events, users).")
def test_what_transform_refuses_without_a_log():
    with pytest.raises(ValueError,
                       match=r"column 'age_band' is neither in the frame nor in users or items; pass "
                             r"log=EventLog\(events, users\), or add the column, or take it out of the "
                             r"schema"):
        PREP.transform(TRAIN)
    with pytest.raises(ValueError,
                       match="later than all training rows and no log was given, so their histories would "
                             "start empty: pass log= with all that happened before"):
        PREP.transform(TEST)
    with pytest.raises(ValueError,
                       match="have no label, so they cannot serve as a past, and no log was given: pass "
                             "log= with what has happened so far"):
        PREP.transform(TRAIN.drop(columns="clicked"))
    other = preprocess.EventLog(MALL.events.rename(columns={"clicked": "bought"}), MALL.users,
                                Schema(label="bought"))
    with pytest.raises(ValueError) as e: PREP.transform(TEST, other)
    assert str(e.value) == (
        "transform: the log was made for the columns user_id, item_id, scenario, timestamp, bought, but "
        "these rows have user_id, item_id, scenario, timestamp, clicked: "
                            "pass EventLog(events, users, prep.schema)")
    plain = preprocess.Preprocessor(Schema(categorical=(), numeric=()), (preprocess.Categories(),)).fit(TRAIN)
    # no part reads a log
    for frame in (TRAIN, TEST, TEST.drop(columns="clicked")): assert len(plain.transform(frame)) == len(frame)


@pytest.mark.wrong(
    "…: none of the … ids in column …, such as …, is known; a known one is …: are they written "
    "differently?", area="your log",
                   cause="Ids have zeros in front, a letter more, or belong to another shop.",
    remedy="Write the ids in the log and in the tables in one way.")
@pytest.mark.wrong("column …: these ids are text, those of the log are numbers: convert them",
                   area="your log",
                   cause="One file holds ids as text and the other as numbers, so everybody would seem new.",
                   remedy="Convert one of the two, for example with .astype(int).")
def test_ids_that_are_written_in_another_way():
    with pytest.raises(ValueError,
                       match="column 'user_id': this vocabulary knows whole numbers, but the column holds "
                             "strings"):
        PREP.transform(TEST.assign(user_id=TEST.user_id.astype(str)), LOG)
    plain = preprocess.Preprocessor(Schema(categorical=(), numeric=())).fit(TRAIN)
    texts = TEST.assign(user_id=TEST.user_id.astype(str))
    with pytest.raises(ValueError,
                       match="column 'user_id': these ids are text, those of the log are numbers: convert "
                             "them"):
        plain.transform(texts, TRAIN)
    with pytest.raises(ValueError,
                       match="column 'user_id': these ids are numbers, those of the log are text: convert "
                             "them"):
        plain.transform(TEST, texts)
    fits = preprocess.Preprocessor().fit
    says = ("none of the {} ids in column '{}', such as {}, is known; a known one is {}: are they written "
            "differently?")
    def refused(says, call):
        with pytest.raises(ValueError) as e: call()
        assert str(e.value) == says
    n, m = TRAIN.item_id.nunique(), TRAIN.user_id.nunique()
    refused("fit, items: " + says.format(n, "item_id", TRAIN.item_id.iloc[0], 1000),
            lambda: fits(TRAIN, MALL.users, MALL.items.assign(item_id=MALL.items.item_id + 1000)))
    refused("fit, users: " + says.format(m, "user_id", TRAIN.user_id.iloc[0], 1000),
            lambda: fits(TRAIN, MALL.users.assign(user_id=MALL.users.user_id + 1000), MALL.items))
    with pytest.raises(ValueError, match="column 'item_id': this vocabulary knows strings"):
        fits(TRAIN, MALL.users, MALL.items.assign(item_id=MALL.items.item_id.astype(str)))
    n = TEST.item_id.nunique()
    refused("transform: " + says.format(n, "item_id", TEST.item_id.iloc[0] + 1000, 0),
            lambda: PREP.transform(TEST.assign(item_id=TEST.item_id + 1000), LOG))
    # a few new items may come alone
    assert len(PREP.transform(TEST.head(9).assign(item_id=range(1000, 1009)), LOG)) == 9
    half = TEST.assign(item_id=TEST.item_id.where(TEST.item_id < 20, TEST.item_id + 1000))
    assert len(PREP.transform(half, LOG)) == len(TEST)


@pytest.mark.wrong("column …, row …: … is too large to be scaled; clean the log, or make it missing",
                   area="your log", cause="A cell such as 1e308, whose square no computer can hold.",
                   remedy="Run clean, or put a missing value there; it becomes the mean.")
@pytest.mark.filterwarnings("error")
def test_numbers_that_cannot_be_scaled():
    for huge in (1e308, -1e300, 1e151):
        spoiled = TRAIN.astype({"price": float}).assign(price=TRAIN.price.where(np.arange(len(TRAIN)) != 7,
            huge))
        with pytest.raises(ValueError) as e: preprocess.Preprocessor().fit(spoiled, MALL.users, MALL.items)
        assert str(
            e.value) == (f"column 'price', row 7: {huge:g} is too large to be scaled; clean the log, or make "
                         "it missing")
    quality = MALL.items.assign(quality=[*MALL.items.quality[:-1], 1e308])
    with pytest.raises(ValueError, match="column 'quality', row .*: 1e\\+308 is too large to be scaled"):
        preprocess.Preprocessor().fit(MALL.events, MALL.users, quality)
    wide = TRAIN.astype({"price": float}).assign(price=TRAIN.price.where(np.arange(len(TRAIN)) != 7, 1e149))
    assert preprocess.Preprocessor().fit(wide, MALL.users, MALL.items).transform(wide,
        LOG).dense.isfinite().all()
    signed = preprocess.Preprocessor().fit(TRAIN.assign(price=np.sin(TRAIN.price)), MALL.users, MALL.items)
    for value in (1e300, 1e308, -1e200):
        with pytest.raises(ValueError, match="column 'price', row 0: .* is too large to be scaled"):
            signed.transform(TEST.assign(price=value), LOG)


# ---- what there is, declared

def test_features_tasks_and_spec():
    F, T, S = preprocess.Feature, preprocess.Task, preprocess.Spec
    for bad, says in ((lambda: F("a", "word", 2),
                       "kind 'word' is unknown; choose from category, number, vector, sequence, history"),
                      (lambda: F("a", "number", 1, "shop"), "of 'shop' is unknown"),
                      (lambda: F("a", "category", 0), "size must be a whole number of 1 or more, got 0"),
                      (lambda: F("a", "category", 2.), "size must be"),
                      (lambda: T(weight=-1), "weight must be 0 or more"),
                      (lambda: T(weight=math.inf), "finite"), (lambda: T(weight=math.nan), "finite"),
                      (lambda: S(()), "at least one scenario"), (lambda: S(("a",), tasks=()), "and one task"),
                      (lambda: S(("a", "a")), "scenario 'a' appears twice"),
                      (lambda: S(("a",), (F("x", "number", 1), F("x", "category", 2))),
                       "feature 'x' appears twice"),
                      (lambda: S(("a",), tasks=(T("y"), T("y"))), "task 'y' appears twice"),
                      (lambda: S(("a",), (F("x", "number", 1),), query=("x",)),
                       "Spec.query names 'x', which is not one of its categories")):
        with pytest.raises(ValueError, match=says): bad()
    assert F("h", "history", 2, "user", ["one", "two"]).names == ("one", "two")
    features = (F("brand", "category", 5, "item"), F("price", "number", 1, "item"),
                F("city", "category", 3, "user"), F("hour", "number", 1),
                F("h", "history", 4, "user", tuple("abcd")), F("t", "vector", 7, "item"))
    spec = S(["a", "b"], list(features), [T("clicked"), T("bought", weight=.5)])
    assert spec.fields == {"brand": 5, "city": 3} and spec.offsets == (0, 5) and spec.item_fields == ("brand",
        ) and spec.dense == ("price", "hour") and spec.item_dense == ("price",)
    assert spec.history == 4 and spec.history_names == tuple("abcd") and spec.of(
        "vector") == features[5:] and spec.of("category", "user") == features[2:3]
    assert replace(spec, query=("city",)).item_fields == ("city",)
    assert spec.with_features(F("t", "vector", 9, "item"), F("z", "number", 1)).features == (*features[:5],
        F("t", "vector", 9, "item"), F("z", "number", 1))
    assert hash(spec) == hash(S(["a", "b"], list(features),
                                [T("clicked"), T("bought", weight=.5)])) and spec != replace(spec, prep="x")


def test_labels_of_two_tasks():
    events = MALL.events.assign(bought=(MALL.events.clicked*(MALL.events.item_id % 2)).astype(float))
    schema = Schema(label=("clicked", "bought"))
    parts = lambda weights: (preprocess.Categories(), preprocess.Labels(weights), preprocess.Histories())
    prep = preprocess.Preprocessor(schema, parts((1, .25))).fit(events, MALL.users, MALL.items)
    assert prep.spec.tasks == (preprocess.Task("clicked", "binary", 1.),
                               preprocess.Task("bought", "binary", .25))
    log = preprocess.EventLog(events, MALL.users, schema)
    batch = prep.transform(events, log)
    assert batch.label.shape == (len(events), 2) and batch.label.numpy().tolist() == events[["clicked",
        "bought"]].to_numpy().tolist()
    # the first label is the click
    assert batch.history_table.equal(preprocess.Preprocessor(parts=parts(())).fit(events, MALL.users,
        MALL.items).transform(events, LOG).history_table)
    assert "label" not in prep.transform(TEST, log).rows  # one of the two alone is no answer
    with pytest.raises(ValueError, match="Labels: 1 weights for 2 labels"):
        preprocess.Preprocessor(schema, parts((1,))).fit(events, MALL.users, MALL.items)
    with pytest.raises(ValueError, match="task 'clicked': weight must be 0 or more"):
        preprocess.Preprocessor(schema, parts((-1, 1))).fit(events, MALL.users, MALL.items)
    with pytest.raises(ValueError, match="fit: every label is 0: .* check the column 'bought'"):
        preprocess.Preprocessor(schema).fit(events.assign(bought=0), MALL.users, MALL.items)
    assert PREP.spec.tasks == (preprocess.Task(),)


def test_a_model_can_tell_preprocessors_of_one_size_apart():
    fits = lambda train, items=MALL.items: preprocess.Preprocessor().fit(train, MALL.users, items).spec
    assert fits(TRAIN) == PREP.spec
    names = {"shoes": "tea", "tea": "shoes"}
    for other in (fits(TRAIN.assign(clicked=1 - TRAIN.clicked)), fits(TRAIN.assign(price=TRAIN.price*2)),
                  fits(TRAIN, MALL.items.assign(category=MALL.items.category.replace(names))),
                  fits(TRAIN, MALL.items.assign(title=MALL.items.title[::-1].to_numpy()))):
        assert (other.fields == PREP.spec.fields and other.history == PREP.spec.history
                and other.prep != PREP.spec.prep and other != PREP.spec)


def test_what_was_fitted_stays_whole_if_fit_fails():
    prep = preprocess.Preprocessor().fit(TRAIN, MALL.users, MALL.items)
    one = prep.transform(TEST, LOG)
    for bad in (TRAIN.assign(clicked=1), TRAIN.assign(price=1e308)):
        with pytest.raises(ValueError): prep.fit(bad, MALL.users, MALL.items)
    assert prep.spec == PREP.spec and same(one, prep.transform(TEST, LOG))
    # the same log, learned anew: nothing of before is kept
    prep.fit(TRAIN.assign(clicked=1 - TRAIN.clicked), MALL.users, MALL.items.iloc[::-1])
    assert same(prep.transform(TEST, LOG), prep.transform(TEST, known(MALL.events))) and not same(one,
        prep.transform(TEST, LOG))


# ---- the log

@quick
@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 3)), st.integers(0, 6)), max_size=15),
       st.lists(st.integers(0, 5), max_size=4), st.one_of(st.none(), st.integers(-1, 7)))
def test_the_rows_of_users_before_a_moment_against_loops(rows, asked, before):
    events = pd.DataFrame([(u, k, "home", t, k % 2) for k, (u, t) in enumerate(rows)],
                          columns=["user_id", "item_id", "scenario", "timestamp", "clicked"])
    log = preprocess.EventLog(events.astype({"user_id": "Int64"}), schema=Schema(categorical=(), numeric=()))
    mine = [k for k, (u, _) in enumerate(rows) if u is not None]
    assert len(log) == len(mine) and len(log.ids) == len({rows[k][0] for k in mine}) and log.last == max(
        [t for _, t in rows], default=None)
    at, whose = log.rows(asked, before)
    found = list(zip(whose.tolist(), log.events.item_id.iloc[at].tolist()))
    want = [(j, k) for j, u in enumerate(asked)
            for k in sorted((k for k in mine if rows[k][0] == u and (before is None or rows[k][1] < before)),
                            key=lambda k: (rows[k][1], k))]
    assert found == want  # of one moment, in the order of the log
    assert log.code(asked).tolist() == [log.ids.tolist().index(u) if u in log.ids else -1 for u in asked]


def test_the_table_of_users_of_a_log():
    about = MALL.events.merge(MALL.users)
    mixed = about.assign(city=about.city.where(about.timestamp > about.timestamp.median(), "north")).sample(
        frac=1, random_state=0)
    last = mixed.sort_values("timestamp", kind="stable").drop_duplicates("user_id",
        keep="last").set_index("user_id").city
    made = preprocess.EventLog(mixed).users.set_index("user_id").city
    assert made.to_dict() == last.to_dict()
    assert preprocess.EventLog(mixed,
        MALL.users).users.equals(MALL.users) and "page" not in preprocess.EventLog(mixed).events
    with pytest.raises(ValueError, match="users: user_id 0 appears twice"):
        preprocess.EventLog(MALL.events, pd.concat([MALL.users]*2))
    with pytest.raises(ValueError, match="log: there is no column 'clicked'"):
        preprocess.EventLog(MALL.events.drop(columns="clicked"))
    with pytest.raises(ValueError, match="is not a time in seconds"):
        preprocess.EventLog(MALL.events.assign(timestamp=None))
    made = []
    for _ in range(3): assert LOG.kept("here", lambda: made.append(1) or 7) == 7
    assert made == [1] and repr(LOG) == f"EventLog(2,500 events of {MALL.events.user_id.nunique()} users)"


def test_a_log_goes_on_and_each_row_counts_once():
    twin = pd.concat([TRAIN, TRAIN.tail(1)], ignore_index=True)  # an item twice on a page
    log = known(twin)
    # of its last row a third one is new
    news = pd.concat([TRAIN.tail(30), TRAIN.tail(1), TRAIN.tail(1), VALID])
    more = preprocess.with_news(log, news)
    assert len(more) == len(twin) + 1 + len(VALID) and len(log) == len(twin) and more.users.equals(MALL.users)
    wanted = known(pd.concat([twin, TRAIN.tail(1), VALID], ignore_index=True))
    pd.testing.assert_frame_equal(more.events, wanted.events, check_dtype=False)
    pd.testing.assert_frame_equal(preprocess.with_news(more, news).events, wanted.events, check_dtype=False)
    assert preprocess.with_news(log, VALID, MALL.users.head(5)).users.equals(MALL.users.head(5))
    assert same(PREP.transform(TEST, more), PREP.transform(TEST, wanted))
    with pytest.raises(ValueError, match="news: there is no column 'clicked'"):
        preprocess.with_news(log, VALID.drop(columns="clicked"))


@pytest.mark.parametrize("ids", [lambda x: x, lambda x: x.astype(str), lambda x: x.astype("Int64"),
    lambda x: x.astype(float), lambda x: x.astype(str).astype("category"), lambda x: x.astype("int32")])
def test_ids_of_every_kind_come_back(tmp_path, ids):
    train, users, items = (f.assign(**{c: ids(f[c]) for c in ("user_id", "item_id") if c in f})
                           for f in (MALL.events, MALL.users, MALL.items))
    for frames in ((users, items), (None, None)):
        schema = Schema() if frames[0] is not None else Schema(categorical=(), numeric=())
        prep, log = preprocess.Preprocessor(schema).fit(train, *frames), preprocess.EventLog(train, frames[0],
            schema)
        prep.save(tmp_path)
        preprocess.save_log(log, tmp_path)
        one, two = prep.transform(train, log), preprocess.Preprocessor.load(tmp_path).transform(train,
            preprocess.load_log(tmp_path))
        assert same(one, two) and one.present.any()


# ---- parts

PARTS = {"Categories": lambda: preprocess.Categories(min_count=3), "Numbers": preprocess.Numbers,
         "Labels": lambda: preprocess.Labels((2.,)), "Histories": lambda: preprocess.Histories(words=4,
             min_count=2),
         "Vectors": lambda: preprocess.Vectors("title", MALL.items.item_id[5:], MALL.item_vectors[5:]),
         "Sequences": lambda: preprocess.Sequences(7)}


@pytest.mark.parametrize("name", PARTS)
def test_each_part_alone_goes_to_a_file_and_back(name, tmp_path):
    prep = preprocess.Preprocessor(parts=(PARTS[name](),)).fit(TRAIN, MALL.users, MALL.items)
    before = pickle.dumps(PARTS[name]().state()) if name not in ("Histories", "Vectors") else None
    checksum = prep.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["preprocess.json", "preprocess.safetensors"]
    again = preprocess.Preprocessor.load(tmp_path)
    assert again.spec == prep.spec and again.spec.prep == checksum and again.schema == prep.schema and type(
        again.part(getattr(preprocess, name))).__name__ == name
    for frame in (TRAIN, TEST, TEST.drop(columns=["clicked", "price"])):
        assert same(prep.transform(frame, LOG), again.transform(frame, LOG))
    (about, tensors), (two, more) = (p.parts[0].state() for p in (prep, again))
    assert json.loads(json.dumps(about)) == json.loads(
        json.dumps(two)) and tensors.keys() == more.keys() and all(tensors[k].equal(more[k]) for k in tensors)
    assert again.save(tmp_path/"again") == checksum
    # a class keeps nothing of what an object learned
    if before: assert pickle.dumps(PARTS[name]().state()) == before
    batch = prep.transform(TEST, LOG)
    brought = {"Categories": "fields", "Numbers": "dense", "Labels": "label",
               "Histories": "history_table history_row present_table", "Vectors": "item_row title",
               "Sequences":
               "item_row seq_start seq_stop seq_time event_item event_scenario event_label event_time"}[name]
    assert set(parts_of(batch)) == {"scenario", *brought.split()}


def test_parts_are_copied_and_their_order_does_not_matter_for_what_they_bring():
    parts = [make() for make in PARTS.values()]
    one = preprocess.Preprocessor(parts=parts).fit(TRAIN, MALL.users, MALL.items)
    two = preprocess.Preprocessor(parts=parts[::-1]).fit(TRAIN, MALL.users, MALL.items)
    a, b = one.transform(TEST, LOG), two.transform(TEST, LOG)
    assert parts_of(a).keys() == parts_of(b).keys() and all(x.equal(parts_of(b)[k]) for k,
                                                            x in parts_of(a).items())
    assert not hasattr(parts[0], "words_") and repr(two).startswith(
        "Preprocessor(Sequences, Vectors, Histories, Labels, Numbers, Categories; fitted") and set(
            one.spec.features) == set(two.spec.features)


class HourOfDay(preprocess.Part):
    "A part of a user's own, on this page: two numbers of the moment, and a table that it learns."
    features = preprocess.Feature("hour cos", "number", 1), preprocess.Feature("hour sin", "number", 1)

    def __init__(self, width=3600): self.width = width

    def fit(self, train, context):
        hour = torch.tensor(train.timestamp.to_numpy()//self.width % 24)
        self.count_, self.names_ = torch.bincount(hour, minlength=24), {"of": ["hour", None], "first": 1.5}
        return self

    def transform(self, frame, context):
        hour = torch.tensor(frame[context.schema.time].to_numpy()//self.width % 24)
        angle = hour*(math.pi/12)
        return {"dense": torch.stack([angle.cos(), angle.sin()], 1).float(),
                "hour": hour}, {"busy": self.count_}


@pytest.mark.wrong("… holds a part …, defined in …, which has not been imported: import that module first",
                   area="files",
                   cause="The preprocessor has a part of somebody's own, whose module was not imported. A "
                         "file never decides what is imported.",
                   remedy="Import the module that is named, then load.")
def test_a_part_of_ones_own(tmp_path, monkeypatch):
    prep = preprocess.Preprocessor(parts=(*preprocess.Preprocessor().parts, HourOfDay())).fit(TRAIN,
        MALL.users, MALL.items)
    assert prep.spec.dense == ("price", "quality", "hour cos", "hour sin")
    batch = prep.transform(TEST, LOG)
    assert torch.equal(batch.dense[:, :2], PREP.transform(TEST, LOG).dense) and batch.hour.tolist() == [
        t//3600 % 24 for t in TEST.timestamp] and batch.busy.sum() == len(TRAIN)
    np.testing.assert_allclose(batch.dense[:, 2:].norm(dim=1), 1, rtol=1e-6)
    prep.save(tmp_path)
    assert same(batch, preprocess.Preprocessor.load(tmp_path).transform(TEST, LOG))
    monkeypatch.setattr(preprocess.Part, "kinds", {k: v for k, v in preprocess.Part.kinds.items()
                                                   if k != "HourOfDay"})
    with pytest.raises(ImportError) as e: preprocess.Preprocessor.load(tmp_path)
    assert str(
        e.value) == (f"{tmp_path} holds a part 'HourOfDay', defined in {__name__}:HourOfDay, which has not "
                     "been imported: import that module first")
    with pytest.raises(NotImplementedError, match="Lazy defines no transform"):
        preprocess.Preprocessor(parts=(type("Lazy", (preprocess.Part,), {})(),)).fit(TRAIN).transform(TRAIN)


def test_what_ends_in_an_underscore_is_kept_and_comes_back():
    class Kept(preprocess.Part):
        def __init__(self, n=1, pair=(1, 2)): self.n, self.pair = n, pair
    part = Kept(5, ("a", .5))
    part.plain_ = {"words": ["a", None, True], "none": {}}
    part.array_, part.tensor_, part.one_ = np.arange(3.), torch.tensor([1, 2]), np.int64(3)
    part.mixed_ = np.array(["x", 1], dtype=object)
    part.scale_, part.words_ = preprocess.MinMax(True).fit([1, 5]), preprocess.Vocabulary(2).fit([3, 3])
    part.list_ = [preprocess.StandardScore(1., 2.), {"f": preprocess.Feature("x", "number", 1, names=("y",))}]
    part.temporary, part._hidden_ = object(), object() # nothing learned
    about, tensors = part.state()
    again = Kept.from_state(json.loads(json.dumps(about)), tensors)
    assert (again.n, again.pair, again.one_) == (5, ("a", .5), 3) and not hasattr(again, "temporary")
    assert again.plain_ == {"words": ("a", None, True), "none": {}} and again.mixed_ == ("x", 1)
    assert again.tensor_.equal(part.tensor_) and np.array_equal(again.array_, part.array_)
    assert again.scale_ == part.scale_ and again.words_ == part.words_ and again.list_ == tuple(part.list_)
    for value in (object(), {1: 2}, {"is": 1}, {"x": [set()]}):
        part.plain_ = value
        with pytest.raises(TypeError,
                           match="plain_.* which cannot be saved: learn plain data, arrays or tensors"):
            part.state()
    class Careless(preprocess.Part):
        def __init__(self, n): self.m = n
    with pytest.raises(TypeError, match="Careless.__init__ takes 'n' but does not keep it"):
        Careless(1).state()
    assert preprocess.Part().state() == ({"params": {}, "learned": {}}, {})


def test_a_part_of_the_package_is_found_in_a_fresh_process_and_modules_may_come_in_any_order(tmp_path):
    data = f"""
from multiscene_rec import toy_mall, Preprocessor, Labels
from multiscene_rec.coupons import VenueHistories
mall = toy_mall(n_users=20, n_items=9, n_events=200)
parts = Labels(), VenueHistories()
Preprocessor(parts=parts).fit(mall.events, mall.users, mall.items).save({str(tmp_path)!r})
"""
    load = f"""
import sys
from multiscene_rec.parts import Preprocessor
assert "multiscene_rec.coupons" not in sys.modules and "multiscene_rec.preprocess" not in sys.modules
print([type(p).__name__ for p in Preprocessor.load({str(tmp_path)!r}).parts])
from multiscene_rec import preprocess
assert preprocess.Preprocessor is Preprocessor
"""
    def run(code):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run(data).returncode == 0 and run(load).stdout == "['Labels', 'VenueHistories']\n"


def test_vectors():
    ids, matrix = MALL.items.item_id[::-1], np.random.default_rng(0).normal(size=(len(MALL.items), 3))
    prep = preprocess.Preprocessor(parts=(preprocess.Vectors("title", ids[2:], matrix[2:]),)).fit(TRAIN,
        MALL.users, MALL.items.sample(frac=1, random_state=3))
    # the last two: an unknown item, and one without a vector
    frame = TEST.head(200).assign(item_id=[*TEST.item_id[:198], 10**6, 39])
    batch = prep.transform(frame)
    wanted = {i: v for i, v in zip(ids[2:].tolist(), matrix[2:].astype(np.float32).tolist())}
    assert batch.title[batch.item_row].tolist() == [wanted.get(i, [0, 0, 0])
        for i in frame.item_id] and batch.item_row[-2] == 0 != batch.item_row[-1]
    assert prep.spec.of("vector") == (preprocess.Feature("title", "vector", 3, "item"),
                                      ) and batch.title.dtype == torch.float32 and not batch.title[0].any()
    others = [prep.transform(TRAIN).title, batch[:5].title,
              *(b.title for b in batch.batches(50, shuffle=True))]
    assert {x.data_ptr() for x in others} == {batch.title.data_ptr()}  # one tensor, however many batches
    two = preprocess.Preprocessor(parts=(preprocess.Vectors("title", ids, matrix),
        preprocess.Vectors("picture", ids, matrix[:, :2]))).fit(TRAIN, MALL.users, MALL.items).transform(TEST)
    assert two.title.shape == (41, 3) and two.picture.shape == (41, 2) and list(two.rows) == ["scenario",
        "item_row"]
    for bad, says in ((lambda: preprocess.Vectors("a title", ids, matrix),
                       "name must be a word such as title"),
                      (lambda: preprocess.Vectors("title", ids, matrix[1:]), "give one row per id"),
                      (lambda: preprocess.Vectors("title", ids, matrix[:, 0]), "expected 2 axes"),
                      (lambda: preprocess.Vectors("title", [1, 2, 1], np.ones((3, 2))),
                       "id 1 appears twice; keep one vector per item"),
                      (lambda: preprocess.Vectors("title", [1, 2], [[1, 2], [3, math.nan]]),
                       "row 1 is not finite"),
                      (lambda: preprocess.Preprocessor(parts=(preprocess.Vectors("title", ids + 1000, matrix),
                          )).fit(TRAIN, MALL.users, MALL.items), "none of its ids is among the items"),
                      (lambda: preprocess.Preprocessor(parts=(preprocess.Vectors("title", ids.astype(str),
                          matrix),)).fit(TRAIN, MALL.users, MALL.items),
                       "column 'item_id': this vocabulary knows strings")):
        with pytest.raises(ValueError, match=says): bad()


def test_sequences_against_loops():
    r = np.random.default_rng(5)
    n, schema = 300, Schema(categorical=(), numeric=())
    events = pd.DataFrame(dict(user_id=r.integers(0, 12, n), item_id=r.integers(0, 25, n),
        scenario=r.choice(["home", "cart", "kiosk"], n), timestamp=1_700_000_000 + r.integers(0, 90, n),
                               clicked=r.integers(0, 2, n)))
    train = events[(events.scenario != "kiosk") & (events.item_id < 20)]
    prep = preprocess.Preprocessor(schema, (preprocess.Labels(), preprocess.Sequences(6))).fit(train)
    frame = events[events.scenario != "kiosk"].sample(frac=1, random_state=1)
    frame = pd.concat([frame, frame.head(9).assign(user_id=range(100, 109))])  # nobody knows these
    log = preprocess.EventLog(events, schema=schema)
    batch = prep.transform(frame, log)
    item, scenario = {i: k + 1 for k, i in enumerate(prep.items_.item_id)}, {s: k for k,
        s in enumerate(prep.spec.scenarios)}
    rows, lengths = list(events.itertuples(index=False)), []
    for k, row in enumerate(frame.itertuples(index=False)):
        past = sorted((e for e in rows if e.user_id == row.user_id and e.timestamp < row.timestamp),
                      key=lambda e: e.timestamp)[-6:]
        piece = slice(batch.seq_start[k], batch.seq_stop[k])
        assert batch.event_item[piece].tolist() == [item.get(e.item_id, 0) for e in past]
        assert batch.event_scenario[piece].tolist() == [scenario.get(e.scenario, 2) for e in past]
        assert batch.event_label[piece].tolist() == [e.clicked
            for e in past] and batch.event_time[piece].tolist() == [e.timestamp for e in past]
        lengths.append(len(past))
    assert (batch.seq_stop - batch.seq_start).tolist() == lengths and set(lengths) == set(
        range(7)) and lengths[-9:] == [0]*9
    assert batch.seq_time.tolist() == frame.timestamp.tolist() and batch.item_row.tolist() == [item.get(i, 0)
        for i in frame.item_id]
    assert {0, 2} <= set(batch.event_item.tolist()) and 2 in batch.event_scenario and prep.spec.of(
        "sequence") == (preprocess.Feature("events", "sequence", 6, "user"),)
    # nothing is copied per row: the log stands once, and is the same tensor in every batch
    more = [batch[:7], *batch.batches(64), prep.transform(frame.head(3), log)]
    for name, table in batch.tables.items():
        assert len(table) == n and {b.tables[name].data_ptr() for b in more} == {table.data_ptr()}
    assert all(x.shape == (len(frame),) for x in batch.rows.values())
    flipped = prep.transform(frame, preprocess.EventLog(events.assign(clicked=1 - events.clicked),
                                                        schema=schema))
    assert flipped.seq_start.equal(batch.seq_start) and flipped.event_label.equal(1 - batch.event_label)
    soft = prep.transform(frame.iloc[:, [4, 3, 2, 1, 0]].drop(columns="clicked"), log)
    assert "label" not in soft.rows and soft.seq_stop.equal(batch.seq_stop)


def test_one_log_serves_two_preprocessors():
    "What is kept of a log belongs to the part that computed it."
    parts = (preprocess.Sequences(3), preprocess.Histories(words=3))
    one, two = (preprocess.Preprocessor(parts=parts).fit(TRAIN, MALL.users, items)
                for items in (MALL.items, MALL.items.iloc[::-1]))
    log = known(MALL.events)
    a, b = one.transform(TEST, log), two.transform(TEST, log)
    assert same(a, one.transform(TEST, known(MALL.events))) and same(b,
        two.transform(TEST, known(MALL.events)))
    assert a.event_item.equal(41 - b.event_item) and isinstance(a, Batch)


# ---- nobody's data

def test_a_fitted_preprocessor_holds_no_users_data(tmp_path):
    mark = lambda frame: frame.assign(user_id="guest-" + frame.user_id.astype(str) + "-zebra")
    train, users = mark(TRAIN).assign(note="zebra"), mark(MALL.users).assign(address="Zebra Street")
    prep = preprocess.Preprocessor(parts=[make() for make in PARTS.values()]).fit(train, users, MALL.items)
    prep.transform(mark(TEST), preprocess.EventLog(mark(MALL.events), users))
    prep.save(tmp_path)
    kept = [p.read_bytes() for p in tmp_path.iterdir()] + [pickle.dumps(prep),
        pickle.dumps(copy.deepcopy(prep)), repr(vars(prep)).encode()]
    assert len(kept) == 5 and not any(b"zebra" in x.lower() for x in kept)
    times = {int(t) for t in TRAIN.timestamp} - {prep.last_}
    assert not times & {x for part in prep.parts for t in part.state()[1].values()
                        for x in t.flatten().long().tolist()}
    preprocess.save_log(preprocess.EventLog(mark(MALL.events), users), tmp_path)  # the log is what holds it
    assert b"guest-0-zebra" in (tmp_path/"log.json").read_bytes()
    assert b"Zebra Street" not in (tmp_path/"log.json").read_bytes() # of people only what the schema names


# ---- what a second reading found

def test_a_column_that_says_view_or_click_does_not_part_an_exposure_from_its_click():
    shown = pd.DataFrame(dict(user_id=range(50), item_id=7, scenario="home", timestamp=range(0, 5000, 100),
                              event="view", clicked=0))
    clicked = shown[::5].assign(event="click", clicked=1)  # in the same second
    out, report = preprocess.clean(pd.concat([shown, clicked], ignore_index=True), time_range=None)
    assert len(out) == 50 and out.clicked.sum() == 10
    assert report.counts.set_index("rule").rows["click row"] == 10


def test_news_bring_users_attributes_and_late_clicks():
    schema = Schema(categorical=("city",), numeric=(), item_columns=())
    old = pd.DataFrame(dict(user_id=[1, 2], item_id=[5, 6], scenario="home", timestamp=[10, 20],
                            clicked=[0, 0], city=["a", "a"]))
    news = pd.DataFrame(dict(user_id=[2, 3, 2], item_id=[6, 5, 5], scenario="home", timestamp=[20, 30, 40],
                             clicked=[1, 0, 1], city=["a", "b", "b"]))
    log = preprocess.with_news(preprocess.EventLog(old, None, schema), news)
    # the exposure at 20 is there once, and was clicked
    assert len(log) == 4 and log.events.clicked.sum() == 2
    assert log.users.set_index("user_id").city.to_dict() == {1: "a", 2: "b", 3: "b"}
    given = pd.DataFrame(dict(user_id=[1, 2, 3], city="c"))
    kept = preprocess.with_news(preprocess.EventLog(old, given, schema), news)
    assert set(kept.users.city) == {"c"}  # a table that was given stays


def test_a_part_of_the_package_cannot_be_replaced_by_a_namesake():
    with pytest.raises(ValueError, match="the name 'Numbers' belongs to a part of the package"):
        class Numbers(preprocess.Part): pass
    assert preprocess.Part.kinds["Numbers"] is preprocess.Numbers
