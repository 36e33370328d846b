"Second opinions on lists: sorting, plain loops, every ordered list tried."
import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiscene_rec import data, fusion, model, preprocess, rank, recommender, train

formula = pytest.mark.formula
scores = st.lists(st.integers(-4, 4), min_size=1, max_size=25)  # many ties


@st.composite
def shops(draw, most=9):
    """(score, vectors) of a few items; small whole numbers, so that there are twins, opposites and vectors
    of zeros."""
    n, m = draw(st.integers(1, most)), draw(st.integers(1, 3))
    score = draw(st.lists(st.integers(0, 8), min_size=n, max_size=n))
    vectors = draw(st.lists(st.lists(st.integers(-2, 2), min_size=m, max_size=m), min_size=n, max_size=n))
    return [s/8 for s in score], vectors


def cos(a, b):
    "Cosine by the book; 0 where a vector has no direction."
    la, lb = math.hypot(*a), math.hypot(*b)
    return sum(x*y for x, y in zip(a, b))/(la*lb) if la and lb else 0.


def gain(i, before, score, vectors, lam):
    "What item i adds to a list."
    return (1 - lam)*score[i] - lam*max((cos(vectors[i], vectors[j]) for j in before), default=0.)


# ---------------------------------------------------------------- top_k

@formula("10.1")
@given(scores, st.integers(1, 30))
def test_top_k_by_counting_who_stands_before(score, k):
    place = [1 + sum(b > a for b in score) + sum(b == a for b in score[:i]) for i, a in enumerate(score)]
    assert sorted(place) == list(range(1, len(score) + 1))
    expected = [i for _, i in sorted((p, i) for i, p in enumerate(place) if p <= k)]
    found = rank.top_k(np.array(score), k)
    assert found.dtype == np.int64 and found.tolist() == expected


@given(st.lists(st.floats(allow_nan=False), max_size=30), st.integers(1, 40))
def test_top_k_by_pythons_stable_sort(score, k):
    assert rank.top_k(score, k).tolist() == sorted(range(len(score)), key=lambda i: -score[i])[:k]


@given(scores, st.integers(1, 20), st.integers(1, 20))
def test_a_short_list_is_the_start_of_a_long_one(score, a, b):
    short, long = sorted((a, b))
    assert rank.top_k(score, short).tolist() == rank.top_k(score, long)[:short].tolist()


@given(scores, st.integers(1, 20))
def test_an_increasing_function_changes_nothing(score, k):
    x = np.array(score, dtype=float)
    for f in (lambda x: 1/(1 + np.exp(-x)), np.exp, lambda x: 3*x - 7, np.cbrt):
        np.testing.assert_array_equal(rank.top_k(f(x), k), rank.top_k(x, k))
    np.testing.assert_array_equal(rank.top_k(torch.tensor(x).sigmoid(), k), rank.top_k(x, k))


def test_top_k_of_other_arrays():
    x = np.arange(6.)
    assert rank.top_k(x[::-1], 2).tolist() == [0, 1]  # negative stride
    assert rank.top_k(torch.arange(6., dtype=torch.bfloat16, requires_grad=True), 2).tolist() == [5, 4]
    assert rank.top_k(pd.Series(x, index=list("abcdef")), 2).tolist() == [5, 4]
    assert rank.top_k([], 3).tolist() == [] and rank.top_k([-np.inf, np.inf, 0], 3).tolist() == [1, 2, 0]


@pytest.mark.parametrize("k", [0, -1, 1.5, True, "3", None])
def test_k_must_be_a_whole_number(k):
    with pytest.raises(ValueError, match="k must be a whole number of 1 or more"): rank.top_k([.1], k)
    with pytest.raises(ValueError, match="k must be a whole number of 1 or more"):
        rank.mmr([.1], [[1.]], k, 0.)


def test_top_k_errors():
    with pytest.raises(ValueError, match="score of row 2 is nan"): rank.top_k([1, 2, np.nan], 1)
    with pytest.raises(ValueError, match=r"one axis of scores, got shape \(2, 1\)"): rank.top_k([[1], [2]], 1)


# ---------------------------------------------------------------- mmr and the value of a list

@formula("10.2")
@given(shops(), st.integers(1, 10), st.sampled_from([0, .1, .3, .5, .9, 1]))
def test_each_pick_of_mmr_has_the_largest_gain(shop, k, lam):
    score, vectors = shop
    found = rank.mmr(score, vectors, k, lam).tolist()
    assert len(set(found)) == len(found) == min(k, len(score))
    for p, i in enumerate(found):
        left = [j for j in range(len(score)) if j not in found[:p]]
        gains = {j: gain(j, found[:p], score, vectors, lam) for j in left}
        assert i in gains and gains[i] >= max(gains.values()) - 1e-12


@formula("10.2")
def test_mmr_by_hand():
    score, kinds = [.9, .8, .6, .3], [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert rank.mmr(score, kinds, 3, .5).tolist() == [0, 2, 3]
    assert rank.mmr(torch.tensor(score), torch.tensor(kinds).float(), 3, .1).tolist() == [0, 1, 2]


@given(shops(most=20), st.integers(1, 25))
def test_without_diversity_mmr_is_top_k(shop, k):
    np.testing.assert_array_equal(rank.mmr(*shop, k, 0), rank.top_k(shop[0], k))


@given(shops())
def test_with_nothing_but_diversity_the_best_starts(shop):
    assert rank.mmr(*shop, 1, 1).tolist() == rank.top_k(shop[0], 1).tolist()


@given(shops(), st.integers(1, 5), st.sampled_from([.2, .7]))
def test_lengths_do_not_count(shop, k, lam):
    score, vectors = np.array(shop[0]), np.array(shop[1], dtype=float)
    found = rank.mmr(score, vectors, k, lam)
    np.testing.assert_array_equal(rank.mmr(score, 4*vectors, k, lam), found)  # a power of two: the same bits


def test_equal_items_come_in_order_of_score_then_position():
    assert rank.mmr([.5, .7, .7, .5], np.ones((4, 2)), 4, 1).tolist() == [1, 2, 0, 3]
    assert rank.mmr([.5, .5, .5], np.zeros((3, 2)), 3, .5).tolist() == [0, 1, 2]


@formula("10.3")
@given(shops(), st.sampled_from([0, .2, .5, 1]), st.randoms(use_true_random=False))
def test_list_value_by_loops(shop, lam, r):
    score, vectors = shop
    pick = r.sample(range(len(score)), r.randint(1, len(score)))
    slow = sum(gain(i, pick[:p], score, vectors, lam) for p, i in enumerate(pick))
    assert rank.list_value(score, vectors, np.array(pick), lam) == pytest.approx(slow, abs=1e-9)


@settings(max_examples=30)
@given(shops(most=6), st.sampled_from([0, .3, .8]))
def test_no_greedy_list_beats_every_list_and_without_diversity_none_beats_greedy(shop, lam):
    score, vectors = shop
    k = min(3, len(score))
    best = max(rank.list_value(score, vectors, list(p), lam)
               for p in itertools.permutations(range(len(score)), k))
    greedy = rank.list_value(score, vectors, rank.mmr(score, vectors, k, lam), lam)
    assert greedy <= best + 1e-12
    if lam == 0: assert greedy == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("function",
    [lambda *a: rank.mmr(*a[:2], 2, a[2]), lambda *a: rank.list_value(*a[:2], [0], a[2])])
def test_errors_of_mmr_and_list_value(function):
    v = np.eye(2)
    for lam in (-.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="diversity must lie between 0 and 1"): function([.1, .2], v, lam)
    with pytest.raises(ValueError, match="row 1 is nan"): function([.1, math.nan], v, .5)
    with pytest.raises(ValueError, match="row 0 is infinite"): function([math.inf, 0], v, .5)
    with pytest.raises(ValueError, match="axis 'n': expected 2, got 1"): function([.1, .2], v[:1], .5)
    with pytest.raises(ValueError, match="expected 2 axes"): function([.1, .2], [1., 2.], .5)
    with pytest.raises(ValueError, match="vector of row 1 is not finite"):
        function([.1, .2], [[1, 0], [math.inf, 0]], .5)


BAD_LISTS = [([], "non-empty"), ([[0]], "non-empty axis"), ([0.], "whole positions"),
             ([0, 2], "positions run from 0 to 2, but there are 2 items"),
             ([-1], "positions run from -1 to -1"), ([1, 1], "appears twice in the list")]


@pytest.mark.parametrize("pick, says", BAD_LISTS)
def test_a_list_that_is_none(pick, says):
    for function in (lambda: rank.list_value([.1, .2], np.eye(2), pick, .5),
                     lambda: rank.best_share([.1, .2], pick), lambda: rank.true_ndcg([.1, .2], pick)):
        with pytest.raises(ValueError, match=says): function()


# ---------------------------------------------------------------- lists against lists, and against the truth

@formula("10.4")
@given(st.lists(st.sets(st.integers(0, 12), min_size=1), min_size=1, max_size=4))
def test_overlap_by_indicator_vectors(sets):
    ones = np.array([[i in s for i in range(13)] for s in sets], dtype=float)
    both = ones @ ones.T
    expected = both/(ones.sum(1)[:, None] + ones.sum(1) - both)
    found = rank.overlap({f"list {i}": sorted(s, reverse=i % 2) for i, s in enumerate(sets)})
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert list(found.index) == list(found.columns) == [f"list {i}" for i in range(len(sets))]


def test_overlap_of_names_and_errors():
    assert rank.overlap({"a": pd.Series(["x", "y"]), "b": ["y", "z", "y"]}).loc["a", "b"] == pytest.approx(
        1/3)
    with pytest.raises(ValueError, match="at least one list"): rank.overlap({})
    with pytest.raises(ValueError, match="list 'b' is empty"): rank.overlap({"a": [1], "b": []})


@st.composite
def judged(draw):
    "(prob, pick): true probabilities, with ties, and a list."
    prob = [x/6 for x in draw(st.lists(st.integers(0, 6), min_size=1, max_size=12))]
    order = draw(st.permutations(range(len(prob))))
    return prob, order[:draw(st.integers(1, len(prob)))]


@formula("10.5")
@given(judged())
def test_best_share_by_sorting(case):
    prob, pick = case
    best = sorted(range(len(prob)), key=lambda i: -prob[i])[:len(pick)]
    assert rank.best_share(np.array(prob), pick) == pytest.approx(len(set(best) & set(pick))/len(pick),
        abs=1e-12)


@formula("10.6")
def test_true_ndcg_by_scikit_learn():
    judge = pytest.importorskip("sklearn.metrics").ndcg_score
    r = np.random.default_rng(0)
    for _ in range(20):
        prob = r.random(12)
        pick = r.permutation(12)[:5]
        score = np.full(12, -100.)
        score[pick] = np.arange(5, 0, -1)
        assert rank.true_ndcg(torch.tensor(prob), pick) == pytest.approx(judge([prob], [score], k=5),
            rel=1e-9)


@given(judged())
def test_true_ndcg_by_loops(case):
    prob, pick = case
    dcg = lambda gains: sum(g/math.log2(1 + j) for j, g in enumerate(gains, 1))
    best = dcg(sorted(prob, reverse=True)[:len(pick)])
    if best == 0:
        with pytest.raises(ValueError, match="all probabilities are 0"): rank.true_ndcg(prob, pick)
    else: assert rank.true_ndcg(prob, pick) == pytest.approx(dcg(prob[i] for i in pick)/best, rel=1e-9)


def test_probabilities_are_checked():
    for function in (rank.best_share, rank.true_ndcg):
        with pytest.raises(ValueError, match="prob of row 1 is outside 0 to 1"): function([.5, -.1], [0])
        with pytest.raises(ValueError, match="row 0 is nan"): function([math.nan, .1], [0])


# ---------------------------------------------------------------- recommend

@pytest.fixture(scope="module")
def shop():
    "A small mall, its preprocessor, an untrained model, whose scores differ as well, and the log."
    mall = data.toy_mall(n_users=60, n_items=50, n_events=2500, seed=1)
    prep = preprocess.Preprocessor().fit(mall.events, mall.users, mall.items)
    torch.manual_seed(0)
    return mall, prep, model.InterestModel(prep.spec).eval(), preprocess.EventLog(mall.events, mall.users)


def busy(mall): return int(mall.events.user_id.value_counts().index[-20])


def logged(mall, events): return preprocess.EventLog(events, mall.users)


def slow_list(mall, prep, net, user, scenario, log, when, unseen=True):
    "Score each item in a batch of its own, against the whole log, and sort."
    past = mall.events[mall.events.timestamp < when]
    seen = set(past.item_id[past.user_id == user]) if unseen else set()
    rows = []
    for item in prep.items_.item_id:
        if item in seen: continue
        frame = pd.DataFrame(dict(user_id=[user], item_id=[item], scenario=[scenario], timestamp=[when]))
        rows.append((item, float(train.predict(net, prep.transform(frame, log=log))[0])))
    return dict(rows)


def test_recommend_item_by_item(shop, scenario="cart"):
    mall, prep, net, log = shop
    user, when = busy(mall), int(mall.events.timestamp.max()) + 1
    slow = slow_list(mall, prep, net, user, scenario, log, when)
    top = rank.recommend(net, prep, log, user, scenario, k=8)
    assert top["rank"].tolist() == list(range(1, 9)) and top.score.is_monotonic_decreasing
    assert list(top.columns) == ["rank", *mall.items.columns, "score"]
    np.testing.assert_allclose(top.score, [slow[i] for i in top.item_id], atol=1e-6)
    assert min(top.score) >= sorted(slow.values())[-8] - 1e-6
    own = mall.items.set_index("item_id").loc[top.item_id].reset_index()
    pd.testing.assert_frame_equal(top[list(own.columns)], own)


def test_a_list_of_the_past_knows_nothing_later(shop):
    mall, prep, net, log = shop
    user = busy(mall)
    when = int(mall.events.timestamp[mall.events.user_id == user].median())
    slow = slow_list(mall, prep, net, user, "home", log, when)
    top = rank.recommend(net, prep, log, user, "home", k=50, when=when)
    assert set(top.item_id) == set(slow)
    np.testing.assert_allclose(top.score, [slow[i] for i in top.item_id], atol=1e-6)
    early = logged(mall, mall.events[mall.events.timestamp < when])
    pd.testing.assert_frame_equal(top, rank.recommend(net, prep, early, user, "home", k=50, when=when))


def test_seen_is_shown_in_any_scenario_clicked_or_not(shop):
    mall, prep, net, log = shop
    user = busy(mall)
    seen = set(mall.events.item_id[mall.events.user_id == user])
    assert set(rank.recommend(net, prep, log, user, "home", k=50).item_id) == set(mall.items.item_id) - seen
    assert len(rank.recommend(net, prep, log, user, "home", k=99, exclude_seen=False)) == 50
    others = logged(mall, mall.events[mall.events.user_id != user])  # the log given is the one that counts
    assert len(rank.recommend(net, prep, others, user, "home", k=99)) == 50


def whole_shop(mall): # One user was shown everything
    return pd.DataFrame(dict(user_id=3, item_id=mall.items.item_id, scenario="home", timestamp=10**9,
                             clicked=0))


def test_a_user_who_has_seen_everything(shop):
    mall, prep, net, _ = shop
    log = logged(mall, whole_shop(mall))
    with pytest.raises(ValueError, match="user 3 has seen every item; pass exclude_seen=False"):
        rank.recommend(net, prep, log, 3, "home")
    assert len(rank.recommend(net, prep, log, 3, "home", exclude_seen=False)) == 10
    most = logged(mall, whole_shop(mall)[:-1])
    assert rank.recommend(net, prep, most, 3, "home").item_id.tolist() == [mall.items.item_id.iloc[-1]]


@pytest.mark.parametrize("lam", [.3, 1])
def test_recommend_with_diversity_is_mmr_on_the_embeddings_of_the_item(shop, lam):
    mall, prep, net, log = shop
    top = rank.recommend(net, prep, log, 5, "live", k=6, diversity=lam, exclude_seen=False)
    when = int(mall.events.timestamp.max()) + 1
    batch = prep.transform(prep.items_[["item_id"]].assign(user_id=5, scenario="live", timestamp=when),
                           log=log)
    names = list(prep.spec.fields)
    table = net.embed.table.weight.detach()
    vectors = torch.cat([table[batch.fields[:, names.index(c)]] for c in ("category", "brand", "item_id")], 1)
    picked = mall.items.item_id.to_numpy()[rank.mmr(train.predict(net, batch), vectors, 6, lam)]
    assert top.item_id.tolist() == picked.tolist()


def test_the_same_question_has_the_same_answer_and_changes_nothing(shop):
    mall, prep, net, log = shop
    events, users, items = log.events.copy(), log.users.copy(), prep.items_.copy()
    for lam in (0., .4):
        pd.testing.assert_frame_equal(*[rank.recommend(net, prep, log, 7, "cart", diversity=lam)
                                        for _ in range(2)])
    for now, before in ((log.events, events), (log.users, users), (prep.items_, items)):
        pd.testing.assert_frame_equal(now, before)


def test_newcomers(shop):
    mall, prep, net, log = shop
    nobody = [rank.recommend(net, prep, log, user, "search") for user in (-1, 10**6, None)]
    for other in nobody[1:]: pd.testing.assert_frame_equal(nobody[0], other)  # nobody knows either
    when = int(mall.events.timestamp.max()) + 1
    without = rank.recommend(net, prep, logged(mall, mall.events[:0]), 5, "search", when=when)
    assert len(without) == 10 and without.score.between(0, 1).all()
    assert not np.allclose(without.score, nobody[0].score)  # the users' table still knows the age band


def test_an_item_that_came_after_training_is_scored_and_can_have_been_seen(shop):
    mall, _, net, log = shop
    prep = preprocess.Preprocessor().fit(mall.events, mall.users, mall.items)
    before = rank.recommend(net, prep, log, 5, "home", k=50)  # the log has been asked about the old items
    twin = mall.items.iloc[[4]].assign(item_id=999, title="new")
    prep.items_ = pd.concat([twin, mall.items], ignore_index=True)
    top = rank.recommend(net, prep, log, 5, "home", k=51, exclude_seen=False)
    assert 999 in set(top.item_id) and len(top) == 51 and top.score.notna().all()
    assert len(rank.recommend(net, prep, log, 5, "home", k=51, exclude_seen=False, diversity=.5)) == 51
    assert set(rank.recommend(net, prep, log, 5, "home", k=51).item_id) == {*before.item_id, 999}
    shown = pd.DataFrame(dict(user_id=[5], item_id=[999], scenario=["home"], timestamp=[log.last],
                              clicked=[1]))
    for make in (lambda log: rank.recommend(net, prep, log, 5, "home", k=51),
                 lambda log: rank.Catalogue(net, prep, log).recommend(5, "home", k=51)):
        assert set(make(preprocess.with_news(log, shown)).item_id) == set(before.item_id)


def words(mall):
    "The log and the items with ids that are text."
    log = mall.events.assign(user_id="u" + mall.events.user_id.astype(str),
                             item_id="i" + mall.events.item_id.astype(str))
    return log, mall.items[["item_id", "category"]].assign(item_id="i" + mall.items.item_id.astype(str))


def test_items_of_other_columns():
    "No title; an item column called score; ids that are text; no users' frame."
    events, items = words(data.toy_mall(n_users=30, n_items=20, n_events=600, seed=2))
    prep = preprocess.Preprocessor(data.Schema(categorical=("category",), numeric=())).fit(events,
        items=items.assign(score=5.))
    net = model.InterestModel(prep.spec)
    top = rank.recommend(net, prep, events, "u3", "home", k=4, exclude_seen=False)
    assert list(top.columns) == ["rank", "item_id", "category", "score"] and (top.score < 1).all()
    assert len(rank.recommend(net, prep, events, "nobody", "home", k=4)) == 4
    with pytest.raises(ValueError,
                       match="column 'user_id': these ids are numbers, those of the log are text: convert "
                             "them"):
        rank.recommend(net, prep, events, 3, "home")


def with_hour():
    mall = data.toy_mall(n_users=30, n_items=20, n_events=600, seed=2)
    hour = (mall.events.timestamp//3600 % 24).map(lambda h: "day" if 8 <= h < 20 else "night")
    events = mall.events.merge(mall.users[["user_id", "age_band"]], on="user_id").assign(hour=hour)
    prep = preprocess.Preprocessor(data.Schema(categorical=("age_band", "category", "hour"), numeric=())).fit(
        events, items=mall.items)
    torch.manual_seed(1)
    return mall, events, prep, model.InterestModel(prep.spec)


def test_context():
    _, events, prep, net = with_hour()
    day, night = (rank.recommend(net, prep, events, 1, "home", context={"hour": hour, "age_band": "<25"})
                  for hour in ("day", "night"))
    assert not np.allclose(day.score.sort_values(), night.score.sort_values())
    when = int(events.timestamp.max()) + 1
    frame = pd.DataFrame(dict(item_id=day.item_id, user_id=1, scenario="home", timestamp=when, hour="day",
                              age_band="<25"))
    np.testing.assert_allclose(day.score, train.predict(net, prep.transform(frame, log=events)), atol=1e-6)


def test_a_context_that_is_missing_or_wrong():
    mall, events, prep, net = with_hour()
    log = preprocess.EventLog(events, mall.users, prep.schema)  # a users' frame without the hour
    says = ("column 'hour' belongs to the moment of the list: give its value, context={'hour': ...}; if it "
            "describes users, give EventLog")
    with pytest.raises(ValueError, match=says): rank.recommend(net, prep, log, 1, "home")
    assert len(rank.recommend(net, prep, log, 1, "home", context={"hour": "day"})) == 10
    for name in ("item_id", "category", "timestamp", "colour"):
        with pytest.raises(ValueError,
            match=f"context: '{name}' cannot be set for all items; choose from age_band, hour"):
            rank.recommend(net, prep, log, 1, "home", context={name: 1})


def test_what_recommend_refuses(shop):
    mall, prep, net, log = shop
    def refused(says, *question, net=net, prep=prep, log=log, **more):
        with pytest.raises(ValueError, match=says): rank.recommend(net, prep, log, *question, **more)
    refused("scenario 'roof' is unknown; choose from cart, home, live, search", 1, "roof")
    refused("k must be a whole number", 1, "home", k=0)
    for lam in (-1, 2, math.nan): refused("diversity must lie between 0 and 1", 1, "home", diversity=lam)
    refused("column 'user_id': these ids are text, those of the log are numbers: convert them", "1", "home")
    refused("task 'bought' is unknown; the model predicts clicked", 1, "home", task="bought")
    refused("the log has no rows.*give when", 1, "home", log=logged(mall, mall.events[:0]))
    renamed = preprocess.EventLog(mall.events.rename(columns={"user_id": "who"}), None,
                                  data.Schema(user="who"))
    refused("the log was made for the columns who, item_id, .*, the preprocessor for user_id, item_id, .*: "
            "pass EventLog", 1, "home", log=renamed)
    with pytest.raises(ValueError, match="the log was made for the columns who"):
        rank.Catalogue(net, prep, renamed)
    with pytest.raises(ValueError, match="the log was made for the columns who"):
        rank.Catalogue(net, prep, log).scores([1], "home", log=renamed)
    refused("column 'age_band' belongs to the moment.*if it describes users, give EventLog", 1, "home",
            log=mall.events)
    refused("fit it, or load a fitted one", 1, "home", prep=preprocess.Preprocessor())
    refused("Linear is not a Recommender", 1, "home", net=torch.nn.Linear(2, 1))
    other = preprocess.Spec(("home", "search", "cart", "live"), prep.spec.features, prep.spec.tasks,
                            prep.spec.query, prep.spec.prep)
    refused("do not belong together", 1, "home", net=model.InterestModel(other))


def test_equal_sizes_are_not_the_same_preprocessor(shop):
    """Two preprocessors of one shape, fitted on other rows: everything in their specs is equal but the
    checksum."""
    mall, prep, net, log = shop
    other = preprocess.Preprocessor().fit(mall.events.assign(clicked=1 - mall.events.clicked), mall.users,
                                          mall.items)
    plain = [preprocess.Spec(s.scenarios, s.features, s.tasks, s.query) for s in (prep.spec, other.spec)]
    assert plain[0] == plain[1] and prep.spec != other.spec
    for ask in (lambda: rank.recommend(net, other, log, 1, "home"), lambda: rank.Catalogue(net, other, log),
                lambda: rank.Scorer(net, other)):
        with pytest.raises(ValueError,
                           match="model and preprocessor do not belong together: their specs differ"):
            ask()


def test_saved_and_loaded_they_still_belong_together(shop, tmp_path):
    _, prep, net, log = shop
    prep.save(tmp_path), net.save(tmp_path), preprocess.save_log(log, tmp_path)
    pair = model.InterestModel.load(tmp_path), preprocess.Preprocessor.load(tmp_path)
    for log_of in (log, preprocess.load_log(tmp_path)):
        again = rank.recommend(*pair, log_of, 5, "live", diversity=.2)
        pd.testing.assert_frame_equal(again, rank.recommend(net, prep, log, 5, "live", diversity=.2),
                                      check_dtype=False)


def test_a_sorted_log_and_a_frame_make_the_same_lists(shop):
    "A frame that tells of its users what the users' table tells."
    mall, prep, net, log = shop
    frame = mall.events.merge(mall.users, on="user_id").sample(frac=1, random_state=0)
    frame = frame[[*mall.events.columns, *(c for c in mall.users if c not in mall.events)]]
    catalogue = rank.Catalogue(net, prep, log)
    for user, more in itertools.product((busy(mall), 7, -1),
        (dict(k=50), dict(diversity=.3), dict(when=int(mall.events.timestamp.median())))):
        top = rank.recommend(net, prep, log, user, "cart", **more)
        pd.testing.assert_frame_equal(top, rank.recommend(net, prep, frame, user, "cart", **more))
        for quick in (catalogue.recommend(user, "cart", **more), catalogue.recommend(user, "cart", log=frame,
            **more),
                      rank.Catalogue(net, prep, frame).recommend(user, "cart", **more)): same_list(top, quick)


def test_newer_events_change_the_list(shop):
    mall, prep, net, log = shop
    catalogue, user = rank.Catalogue(net, prep, log), busy(mall)
    first = rank.recommend(net, prep, log, user, "home", k=3)
    news = pd.DataFrame(dict(user_id=user, item_id=first.item_id, scenario="live", timestamp=log.last + 60,
                             clicked=1))
    newer = preprocess.with_news(log, news)
    second = rank.recommend(net, prep, newer, user, "home", k=50)
    assert not set(first.item_id) & set(second.item_id) and newer.last == log.last + 60
    kept = rank.recommend(net, prep, log, user, "home", k=50).set_index("item_id").score[second.item_id]
    assert abs(kept.to_numpy() - second.score.to_numpy()).max() > 1e-4  # three clicks are a new history, too
    same_list(second, catalogue.recommend(user, "home", k=50, log=newer))
    same_list(first, catalogue.recommend(user, "home", k=3))  # its own log is the old one still
    same_list(rank.recommend(net, prep, log, user, "home", k=50),
              catalogue.recommend(user, "home", k=50, log=newer, when=log.last + 1))
    other = 7 if user != 7 else 8
    same_list(rank.recommend(net, prep, newer, other, "home"), catalogue.recommend(other, "home", log=newer))


@pytest.mark.gpu
def test_lists_of_a_model_on_the_gpu(shop):
    _, prep, net, log = shop
    cpu = rank.recommend(net, prep, log, 5, "home", diversity=.3)
    try: gpu = rank.recommend(net.to("cuda"), prep, log, 5, "home", diversity=.3)
    finally: net.to("cpu")
    np.testing.assert_allclose(cpu.score.sort_values(), gpu.score.sort_values(), atol=1e-4)


def test_a_hundred_thousand_items():
    mall = data.toy_mall(n_users=50, n_items=100_000, n_events=5000)
    prep = preprocess.Preprocessor().fit(mall.events, mall.users, mall.items)
    net, log = model.InterestModel(prep.spec), preprocess.EventLog(mall.events, mall.users)
    for lam in (0., .3):
        start = time.perf_counter()
        assert len(rank.recommend(net, prep, log, 1, "home", k=10, diversity=lam)) == 10
        # about a second; a loop over items in Python would take minutes
        assert time.perf_counter() - start < 15
    catalogue = rank.Catalogue(net, prep, log)  # many blocks of items, the last one not full
    same_list(rank.recommend(net, prep, log, 1, "home"), catalogue.recommend(1, "home"))
    for row, user in zip(catalogue.scores([1, -1], "cart"), (1, -1)):
        torch.testing.assert_close(row, catalogue.scores([user], "cart")[0], atol=1e-6, rtol=1e-6)


# ---------------------------------------------------------------- models of one's own

class Affine(model.Recommender, name="affine_of_test_rank"):
    "Reads the item's id and numbers, and knows no shorter way."
    def __init__(self, spec):
        super().__init__(spec)
        self.table = torch.nn.Embedding(sum(spec.fields.values()), len(spec.tasks))
        self.dense = torch.nn.Linear(len(spec.dense), len(spec.tasks))

    def forward(self, batch):
        out = self.table(batch.fields).sum(1) + self.dense(batch.dense) + batch.scenario.unsqueeze(1)/10
        return out if len(self.spec.tasks) > 1 else out.squeeze(1)


def test_a_model_of_ones_own_gets_lists(shop):
    mall, prep, _, log = shop
    torch.manual_seed(0)
    net = Affine(prep.spec)
    assert type(net.serving(prep)) is rank.Scorer
    catalogue, user = rank.Catalogue(net, prep, log), busy(mall)
    for scenario, more in itertools.product(("home", "cart"),
        (dict(k=50), dict(diversity=.4), dict(when=int(mall.events.timestamp.median())))):
        top = rank.recommend(net, prep, log, user, scenario, **more)
        same_list(top, catalogue.recommend(user, scenario, **more))
    slow = slow_list(mall, prep, net, user, "home", log, log.last + 1)
    top = rank.recommend(net, prep, log, user, "home", k=50)
    np.testing.assert_allclose(top.score, [slow[i] for i in top.item_id], atol=1e-6)


def test_the_list_of_a_model_of_ones_own_with_diversity_by_hand(shop):
    """Without embeddings of its own, items are alike in what the batch tells of them: category and brand
    count as words."""
    mall, prep, _, log = shop
    torch.manual_seed(0)
    net, when = Affine(prep.spec), int(mall.events.timestamp.max()) + 1
    batch = prep.transform(mall.items[["item_id"]].assign(user_id=5, scenario="live", timestamp=when),
                           log=log)
    vectors = recommender.content_vectors(batch, prep.spec)
    torch.testing.assert_close(vectors, rank.Scorer(net, prep).vectors())
    twins = mall.items.category.to_numpy()[:, None] == mall.items.category.to_numpy()
    near = (vectors @ vectors.T).numpy()
    assert near[twins].mean() > near[~twins].mean() + .1
    picked = rank.mmr(train.predict(net, batch), vectors, 6, .3)
    top = rank.recommend(net, prep, log, 5, "live", k=6, diversity=.3, exclude_seen=False)
    assert top.item_id.tolist() == mall.items.item_id.to_numpy()[picked].tolist()


class Again(model.Recommender, name="again_of_test_rank"):
    "Counts how often each item was clicked among a user's last events: nothing is learned."
    def forward(self, batch):
        at = batch.seq_start.unsqueeze(1) + torch.arange(4)
        inside = at < batch.seq_stop.unsqueeze(1)
        at = at.clamp(max=max(len(batch.event_item) - 1, 0))
        same = batch.event_item[at] == batch.item_row.unsqueeze(1)
        return (same*inside*batch.event_label[at]).sum(1) + inside.sum(1)/10


def test_a_model_that_reads_sequences(shop):
    mall, _, _, log = shop
    parts = (preprocess.Categories(), preprocess.Numbers(), preprocess.Labels(), preprocess.Sequences(4))
    prep = preprocess.Preprocessor(parts=parts).fit(mall.events, mall.users, mall.items)
    net, user = Again(prep.spec), busy(mall)
    catalogue = rank.Catalogue(net, prep, log)
    for who, when in itertools.product((user, -1, None), (None, int(mall.events.timestamp.median()))):
        moment = log.last + 1 if when is None else when
        past = mall.events[(mall.events.user_id == who) & (mall.events.timestamp < moment)].sort_values(
            "timestamp", kind="stable").tail(4)
        wanted = [sum(past.clicked[past.item_id == i]) + len(past)/10 for i in mall.items.item_id]
        np.testing.assert_allclose(catalogue.scores([who], "home", when=when)[0],
                                   1/(1 + np.exp(-np.array(wanted))), atol=1e-6)
        for more in (dict(exclude_seen=False), dict(exclude_seen=False, diversity=.3)):
            same_list(rank.recommend(net, prep, log, who, "home", when=when, **more),
                      catalogue.recommend(who, "home", when=when, **more))


@pytest.fixture(scope="module")
def two_tasks(shop):
    "A mall with a second label, and a log that knows both."
    mall = shop[0]
    events = mall.events.assign(bought=mall.events.clicked*(mall.events.item_id % 3 == 0))
    schema = data.Schema(label=("clicked", "bought"))
    prep = preprocess.Preprocessor(schema).fit(events, mall.users, mall.items)
    return mall, prep, preprocess.EventLog(events, mall.users, schema)


def test_a_list_by_one_of_two_tasks(two_tasks):
    mall, prep, log = two_tasks
    torch.manual_seed(0)
    net, user = Affine(prep.spec), busy(mall)
    catalogue, frame = rank.Catalogue(net, prep, log), mall.items[["item_id"]].assign(user_id=user,
        scenario="home", timestamp=log.last + 1)
    prob = train.predict(net, prep.transform(frame, log=log))
    for task, column in ((None, 0), ("clicked", 0), ("bought", 1)):
        torch.testing.assert_close(catalogue.scores([user], "home", task=task)[0], prob[:, column])
        for more in (dict(k=50, exclude_seen=False), dict(diversity=.3)):
            same_list(rank.recommend(net, prep, log, user, "home", task=task, **more),
                      catalogue.recommend(user, "home", task=task, **more))
        best = rank.recommend(net, prep, log, user, "home", k=5, exclude_seen=False, task=task)
        assert best.item_id.tolist() == mall.items.item_id.to_numpy()[rank.top_k(prob[:, column], 5)].tolist()
    for ask in (lambda: rank.recommend(net, prep, log, user, "home", task="sold"),
                lambda: catalogue.recommend(user, "home", task="sold")):
        with pytest.raises(ValueError, match="task 'sold' is unknown; the model predicts clicked, bought"):
            ask()


@pytest.mark.parametrize("heads", ["shared", "per_scenario"])
@pytest.mark.parametrize("kind", ["none", "mean", "attention"])
def test_the_shorter_way_knows_several_tasks(two_tasks, kind, heads):
    mall, prep, log = two_tasks
    net = moved(prep.spec, fusion=kind, heads=heads)
    catalogue = rank.Catalogue(net, prep, log)
    assert catalogue.scorer.split
    for user, scenario, task in itertools.product((busy(mall), -1), mall.scenarios, ("clicked", "bought")):
        same_list(rank.recommend(net, prep, log, user, scenario, k=50, task=task),
                  catalogue.recommend(user, scenario, k=50, task=task))
    assert abs(catalogue.scores([7], "home") - catalogue.scores([7], "home", task="bought")).max() > 1e-3


# ---------------------------------------------------------------- the catalogue

FUSIONS = ("none", "own", "mean", "concat", "attention", "attention+own")


def moved(spec, seed=0, **options):
    "A model with every number moved away from its start, so that none can be forgotten unnoticed."
    torch.manual_seed(seed)
    net = model.InterestModel(spec, **options).eval()
    with torch.no_grad():
        for p in net.parameters(): p.add_(.2*torch.randn_like(p))
    return net


def same_list(a, b, atol=1e-6):
    "The same contents; neighbours may change places where their scores are that close."
    assert list(a.columns) == list(b.columns) and a["rank"].tolist() == b["rank"].tolist()
    np.testing.assert_allclose(a.score, b.score, atol=atol)
    for x, y, s in zip(a.item_id, b.item_id, a.score):
        if x != y: assert abs(s - b.score[b.item_id == x]).min() <= 2*atol
    pd.testing.assert_series_equal(a.dtypes, b.dtypes)


@formula("10.8")
def test_item_weights_item_by_item():
    g = torch.Generator().manual_seed(0)
    U, n, S, d, dq = 3, 5, 4, 6, 7
    fuse = fusion.ScenarioAttention(d, S, dq).double()
    h, q = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((U, S, d), (n, dq)))
    present = torch.tensor([[True]*4, [True, False, True, False], [False]*4])
    with torch.no_grad():
        asks = fuse.key(q @ fuse.query.weight[:, :dq].T)
        here = fuse.key(fuse.query.weight[:, dq:] @ fuse.target.weight[2])
        found = rank.item_weights(asks, here, h, present)
        for u, i in itertools.product(range(U), range(n)):
            question = np.concatenate([q[i].numpy(), fuse.target.weight[2].numpy()])
            asked = fuse.key.weight.numpy() @ (fuse.query.weight.numpy() @ question)
            e = {s: math.exp(sum(asked*h[u, s].numpy())/math.sqrt(d)) for s in range(S) if present[u, s]}
            np.testing.assert_allclose(found[u, i],
                [e.get(s, 0)/sum(e.values()) if e else 0 for s in range(S)], atol=1e-12)


@formula("10.7")
def test_catalogue_scores_by_the_whole_sum_one_item_at_a_time(shop):
    mall, prep, _, log = shop
    net = moved(prep.spec, hidden=(5,)).double()
    p = {k: v.numpy() for k, v in net.state_dict().items()}
    users, when = [busy(mall), 3, -1], int(mall.events.timestamp.max()) + 1
    found = rank.Catalogue(net, prep, log).scores(users, "cart")
    for u, user in enumerate(users):
        frame = mall.items[["item_id"]].assign(user_id=user, scenario="cart", timestamp=when)
        batch = prep.transform(frame, log=log)
        with torch.no_grad():
            E = net.embed(batch.fields)
            q = E[:, net.item_columns].flatten(1)
            z = net.fuse(net.extract(batch.history.double()), batch.present, q, batch.scenario)[0].numpy()
        for i in (0, 7, 49):
            x = np.concatenate([E[i].flatten().numpy(), batch.dense[i].numpy(),
                                p["scenario_embedding.weight"][batch.scenario[i]], z[i],
                                z[i]*(p["item_projection.weight"] @ q[i].numpy()
                                      + p["item_projection.bias"])])
            unit = [max(sum(w*x) + b, 0) for w, b in zip(p["predictors.0.hidden.layers.0.weight"],
                                                         p["predictors.0.hidden.layers.0.bias"])]
            assert float(found[u, i]) == pytest.approx(
                1/(1 + math.exp(-(sum(p["predictors.0.out.weight"][0]*unit)
                                  + p["predictors.0.out.bias"][0]))), abs=1e-6)


@pytest.mark.parametrize("hidden", [(), (64,), (8, 5)])
@pytest.mark.parametrize("heads", ["shared", "per_scenario"])
@pytest.mark.parametrize("kind", FUSIONS)
def test_the_catalogue_makes_the_lists_of_recommend(shop, kind, heads, hidden):
    mall, prep, _, log = shop
    net = moved(prep.spec, fusion=kind, heads=heads, hidden=hidden)
    catalogue = rank.Catalogue(net, prep, log)
    assert type(catalogue.scorer) is rank.InterestScorer and catalogue.scorer.split
    for user, scenario in itertools.product((busy(mall), 7, -1, None), ("home", "live")):
        for more in (dict(k=50), dict(exclude_seen=False, when=int(mall.events.timestamp.median())),
                     dict(diversity=.3)):
            same_list(rank.recommend(net, prep, log, user, scenario, **more),
                      catalogue.recommend(user, scenario, **more))


def test_scores_of_many_are_those_of_one(shop):
    mall, prep, net, log = shop
    catalogue, users = rank.Catalogue(net, prep, log), [*mall.users.user_id[:40], -1, mall.users.user_id[3]]
    together = catalogue.scores(users, "search")
    assert together.shape == (42, 50) and together.dtype == torch.float32
    torch.testing.assert_close(together[3], together[41], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(together, torch.cat([catalogue.scores([u], "search") for u in users]),
                               atol=1e-6, rtol=1e-6)
    for user in users[::10]:
        frame = mall.items[["item_id"]].assign(user_id=user, scenario="search",
                                               timestamp=int(mall.events.timestamp.max()) + 1)
        torch.testing.assert_close(together[users.index(user)],
                                   train.predict(net, prep.transform(frame, log=log)), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rank.Scorer(net, prep).scores(users, "search", log, log.last + 1, {}),
                               together, atol=1e-6, rtol=1e-6)
    assert catalogue.scores([], "search").shape == (0, 50)


def test_the_catalogue_follows_the_log_that_is_given(shop):
    mall, prep, net, log = shop
    catalogue, user = rank.Catalogue(net, prep, log), busy(mall)
    shuffled = mall.events.sample(frac=1, random_state=0)
    half = mall.events[mall.events.timestamp < mall.events.timestamp.median()]
    others = mall.events[mall.events.user_id != user]
    # a history column in the log itself counts, as in transform
    titled = mall.events.assign(category="only this one")
    for events in (shuffled, half, others, titled, half):
        other = logged(mall, events)
        same_list(rank.recommend(net, prep, other, user, "cart", k=50),
                  catalogue.recommend(user, "cart", k=50, log=other))
    for when in (0, int(half.timestamp.max()), int(half.timestamp.max()) + 1, 10**12):
        same_list(rank.recommend(net, prep, log, user, "home", k=50, when=when),
                  catalogue.recommend(user, "home", k=50, when=when))
    when, empty = int(mall.events.timestamp.max()) + 1, logged(mall, mall.events[:0])
    same_list(rank.recommend(net, prep, empty, user, "home", when=when),
              catalogue.recommend(user, "home", log=empty, when=when))


def test_rows_before_a_moment_by_scanning(shop):
    mall = shop[0]
    log = logged(mall, mall.events.sample(frac=1, random_state=1))
    for user, when in itertools.product((3, busy(mall), -1), (0, int(mall.events.timestamp.median()),
        10**12)):
        rows, who = log.rows([-7, user], when)
        expected = mall.events[(mall.events.user_id == user) & (mall.events.timestamp < when)]
        columns = ["item_id", "scenario", "timestamp", "clicked"]
        found = log.events.iloc[rows]
        assert sorted(map(tuple, found[columns].to_numpy())) == sorted(
            map(tuple, expected[columns].to_numpy()))
        assert set(who) <= {1} and found.timestamp.is_monotonic_increasing


def test_text_ids_a_context_and_columns_of_other_tables():
    mall = data.toy_mall(n_users=30, n_items=20, n_events=600, seed=2)
    events, items = words(mall)
    prep = preprocess.Preprocessor(data.Schema(categorical=("category",), numeric=())).fit(events,
        items=items.assign(score=5.))
    net, log = moved(prep.spec), preprocess.EventLog(events, None, prep.schema)
    for user in ("u3", "nobody"):
        same_list(rank.recommend(net, prep, log, user, "home"), rank.Catalogue(net, prep, log).recommend(user,
            "home"))
    # nothing but ids, histories of items
    prep = preprocess.Preprocessor(data.Schema(categorical=(), numeric=())).fit(events)
    net = moved(prep.spec)
    same_list(rank.recommend(net, prep, events, "u3", "home"),
              rank.Catalogue(net, prep, events).recommend("u3", "home"))
    _, events, prep, _ = with_hour()
    net = moved(prep.spec)
    catalogue = rank.Catalogue(net, prep, events)
    for context in (None, {"hour": "night"}, {"hour": "day", "age_band": "<25"}, {"hour": "never seen"}):
        same_list(rank.recommend(net, prep, events, 1, "home", context=context),
                  catalogue.recommend(1, "home", context=context))


class Own(model.InterestModel):
    "A model with a forward pass of its own."
    def forward(self, batch): return 2*super().forward(batch) + batch.dense[:, 0]


class Seen(model.InterestModel):
    "A model that finds other items alike."
    def item_vectors(self, batch): return batch.dense


class Loudest(fusion.WeightedFusion, name="loudest_of_test_rank"):
    "A fusion of one's own: the scenario whose vector is longest."
    def weights(self, h, present, query, scenario):
        size = h.norm(dim=2).masked_fill(~present, -1)
        return torch.nn.functional.one_hot(size.argmax(1), h.shape[1])*present.any(1, keepdim=True)


def passed_in_full(net, prep, log):
    catalogue = rank.Catalogue(net, prep, log)
    assert type(catalogue.scorer) is rank.InterestScorer and not catalogue.scorer.split
    for more in (dict(k=50), dict(diversity=.4), dict(when=log.last//2)):
        same_list(rank.recommend(net, prep, log, 5, "home", **more), catalogue.recommend(5, "home", **more))
    assert catalogue.scores([5, -1], "home").shape == (2, 50)
    return catalogue


def test_a_model_that_cannot_be_taken_apart_is_passed_in_full(shop):
    mall, prep, _, log = shop
    torch.manual_seed(0)
    passed_in_full(Own(prep.spec), prep, log)
    torch.testing.assert_close(passed_in_full(Seen(prep.spec), prep, log).scorer.vectors(),
                               rank.item_batch(prep).dense)
    odd = moved(prep.spec)
    odd.predictors[0] = torch.nn.Sequential(odd.predictors[0])  # the same answers, by another head
    passed_in_full(odd, prep, log)
    # a user's column among the items
    late = preprocess.Preprocessor().fit(mall.events, mall.users, mall.items.assign(city="everywhere"))
    passed_in_full(moved(late.spec), late, log)


def test_a_fusion_of_ones_own_is_passed_in_full(shop):
    mall, prep, _, log = shop
    net = moved(prep.spec, fusion="loudest_of_test_rank")
    found = passed_in_full(net, prep, log).scores([busy(mall)], "cart")[0]
    slow = slow_list(mall, prep, net, busy(mall), "cart", log, log.last + 1, unseen=False)
    np.testing.assert_allclose(found, [slow[i] for i in mall.items.item_id], atol=1e-6)


def test_the_catalogue_refuses_what_recommend_refuses(shop):
    mall, prep, net, log = shop
    catalogue = rank.Catalogue(net, prep, log)
    for ask in (dict(user_id=1, scenario="roof"), dict(user_id=1, scenario="home", k=0),
                dict(user_id=1, scenario="home", diversity=2),
                dict(user_id="1", scenario="home"), dict(user_id=1, scenario="home", task="bought"),
                dict(user_id=1, scenario="home", context={"city": 1, "colour": 2}),
                dict(user_id=1, scenario="home", log=logged(mall, mall.events[:0])),
                dict(user_id=1, scenario="home", log=mall.events),
                dict(user_id=3, scenario="home", log=logged(mall, whole_shop(mall)))):
        with pytest.raises(ValueError) as plain: rank.recommend(net, prep, **dict(log=log) | ask)
        with pytest.raises(ValueError) as quick: catalogue.recommend(**ask)
        assert str(plain.value) == str(quick.value)
    with pytest.raises(ValueError, match="log: there is no column 'clicked'"):
        catalogue.recommend(1, "home", log=mall.events.drop(columns="clicked"))
    with pytest.raises(ValueError, match="is not a time in seconds"):
        catalogue.recommend(1, "home", log=mall.events.assign(timestamp=np.nan))
    unlabelled = logged(mall, mall.events.assign(clicked=np.nan))
    with pytest.raises(ValueError, match="has missing labels"):
        catalogue.recommend(busy(mall), "home", log=unlabelled)
    seven = prep.spec.with_features(preprocess.Feature("history", "history", 7, "user"))
    with pytest.raises(ValueError, match="do not belong together"): rank.Catalogue(moved(seven), prep, log)
    with pytest.raises(ValueError, match="fit it, or load a fitted one"):
        rank.Catalogue(net, preprocess.Preprocessor(), log)
    with pytest.raises(ValueError, match="Linear is not a Recommender"):
        rank.Catalogue(torch.nn.Linear(2, 1), prep, log)


def test_a_double_model_keeps_its_digits(shop):
    _, prep, _, log = shop
    net = moved(prep.spec, fusion="attention+own").double()
    np.testing.assert_allclose(rank.Catalogue(net, prep, log).recommend(5, "home").score,
                               rank.recommend(net, prep, log, 5, "home").score, atol=1e-7)


def test_a_catalogue_is_stale_when_the_model_has_changed(shop):
    "What it keeps is a copy: documented, and told apart here."
    _, prep, _, log = shop
    net = moved(prep.spec)
    catalogue = rank.Catalogue(net, prep, log)
    with torch.no_grad(): net.embed.table.weight.add_(1)
    assert abs(catalogue.scores([5], "home") - rank.Catalogue(net, prep, log).scores([5],
        "home")).max() > 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize("heads", ["shared", "per_scenario"])
def test_the_catalogue_on_the_gpu(shop, kind, heads):
    mall, prep, _, log = shop
    net = moved(prep.spec, fusion=kind, heads=heads)
    cpu = rank.Catalogue(net, prep, log)
    expected = cpu.scores(range(20), "home"), cpu.recommend(busy(mall), "cart", k=50)
    gpu = rank.Catalogue(net.to("cuda"), prep, log)
    found = gpu.scores(range(20), "home"), gpu.recommend(busy(mall), "cart", k=50)
    assert found[0].device.type == "cpu"
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    same_list(expected[1], found[1], atol=1e-4)
    assert len(gpu.recommend(3, "home", diversity=.3)) == 10
    with pytest.raises(ValueError,
                       match="the model has moved from cpu to cuda:0 since the catalogue was built: build it "
                             "again"):
        cpu.scores([3], "home")
