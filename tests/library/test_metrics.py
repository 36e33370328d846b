"Second opinions on the metrics: plain loops, scikit-learn and torchmetrics."
import functools
import itertools
import math
import time

import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import torch
import torchmetrics.retrieval as tm
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from multiscene_rec import article, metrics

formula = pytest.mark.formula
at_k = ("precision_at_k", "recall_at_k", "hit_rate_at_k", "mrr", "dcg_at_k", "ndcg_at_k")


CLICKS, SCORES = st.integers(0, 1), st.integers(-3, 3)


@st.composite
def logs(draw, labels=CLICKS, scores=SCORES, least=1, most=30):
    "Rows (label, score, user) with many ties and few users."
    rows = draw(st.lists(st.tuples(labels, scores, st.integers(0, 3)), min_size=least, max_size=most))
    return [list(column) for column in zip(*rows)]


def by_user(label, score, user):
    "User -> its (label, score), in the order of the rows."
    out = {}
    for y, s, u in zip(label, score, user): out.setdefault(u, []).append((y, s))
    return out


def pairs(rows):
    "AUC by looking at every pair; None where there is none."
    won = [(a > b) + (a == b)/2 for y, a in rows if y == 1 for z, b in rows if z == 0]
    return sum(won)/len(won) if won else None


def ranked(label, score, user):
    "The lists of labels, best first, of users with a click."
    lists = [[y for y, _ in sorted(rows, key=lambda row: -row[1])]
             for rows in by_user(label, score, user).values()]
    return [x for x in lists if sum(x)]


def mean(x): return sum(x)/len(x)


# ---------------------------------------------------------------- accuracy and log loss

@formula("7.1")
def test_accuracy_by_scikit_learn_and_by_loops():
    r = np.random.default_rng(0)
    y, p = r.integers(0, 2, 200), r.random(200)
    assert metrics.accuracy(y, p) == pytest.approx(sk.accuracy_score(y, p >= .5), abs=1e-12)
    soft = r.random(200)
    slow = mean([a if b >= .3 else 1 - a for a, b in zip(soft, p)])
    assert metrics.accuracy(soft, p, threshold=.3) == pytest.approx(slow, abs=1e-12)


def test_accuracy_counts_the_threshold_as_a_click():
    assert metrics.accuracy([1, 0], [.5, .5]) == .5 and metrics.accuracy([1], [.5]) == 1


@formula("7.2")
def test_log_loss_by_scikit_learn_and_by_the_likelihood():
    r = np.random.default_rng(1)
    y, p = r.integers(0, 2, 60), r.uniform(.05, .95, 60)
    assert metrics.log_loss(y, p) == pytest.approx(sk.log_loss(y, p), rel=1e-12)
    likelihood = math.prod(q if a else 1 - q for a, q in zip(y, p))
    assert metrics.log_loss(y, p) == pytest.approx(-math.log(likelihood)/60, rel=1e-12)


@given(logs(labels=st.floats(0, 1), scores=st.floats(1e-9, 1 - 1e-9)))
def test_log_loss_of_soft_labels(log):
    y, p, _ = log
    ours, judge = metrics.log_loss(y, p), torch.nn.BCELoss()(*(torch.tensor(x, dtype=torch.double)
        for x in (p, y)))
    assert ours == pytest.approx(judge.item(), rel=1e-6, abs=1e-9)


def test_log_loss_where_the_model_is_sure():
    assert metrics.log_loss([1], [0.]) == pytest.approx(-math.log(1e-15)) == metrics.log_loss([1], [1e-30])
    # 1 - 1e-15 is rounded in float64
    assert metrics.log_loss([0], [1.]) == pytest.approx(-math.log(1e-15), rel=1e-2)
    assert metrics.log_loss([1], [0.], eps=0) == math.inf == metrics.log_loss([0], [1.], eps=0)
    assert metrics.log_loss([0, 1], [0., 1.], eps=0) == 0
    assert 0 <= metrics.log_loss([0, 1], [0., 1.]) < 1e-14
    assert metrics.log_loss([.5], [0.], eps=.1) == pytest.approx(-(math.log(.1) + math.log(.9))/2)


@formula("7.3")
def test_entropy_by_sympy_and_its_ends():
    import sympy
    x = sympy.Symbol("x")
    exact = sympy.lambdify(x, -x*sympy.log(x) - (1 - x)*sympy.log(1 - x), "math")
    p = np.linspace(.01, .99, 50)
    np.testing.assert_allclose(article.binary_entropy(p), [exact(v) for v in p], rtol=1e-12)
    np.testing.assert_allclose(article.binary_entropy(torch.tensor([0., 1., .5])), [0, 0, math.log(2)],
                               atol=1e-12)


@formula("7.4")
def test_divergence_by_torch():
    p, q = (torch.rand(50, generator=torch.Generator().manual_seed(i)).double() for i in (1, 2))
    coin = torch.distributions.Bernoulli
    judge = torch.distributions.kl_divergence(coin(probs=p), coin(probs=q))
    np.testing.assert_allclose(article.binary_divergence(p, q), judge, rtol=1e-9)


@given(st.floats(0, 1), st.floats(0, 1))
def test_divergence_is_never_negative(p, q):
    assert article.binary_divergence(p, q) >= -1e-15 and article.binary_divergence(p, p) == 0


@pytest.mark.parametrize("p, q", [(.5, 0), (.5, 1), (1, 0), (0, 1)])
def test_divergence_is_infinite_where_the_model_excludes_what_happens(p, q):
    assert article.binary_divergence(p, q) == math.inf


def test_expected_log_loss_is_entropy_and_divergence():
    r = np.random.default_rng(2)
    p, q = r.uniform(.05, .95, 100), r.uniform(.05, .95, 100)
    expected = (article.binary_entropy(p) + article.binary_divergence(p, q)).mean().item()
    assert metrics.log_loss(p, q) == pytest.approx(expected)


def test_the_metrics_of_a_coin_are_those_of_the_article():
    assert metrics.binary_entropy is article.binary_entropy
    assert metrics.binary_divergence is article.binary_divergence
    assert article.binary_entropy([.2, .5]).dtype == torch.float64  # numbers and arrays keep their digits


# ---------------------------------------------------------------- AUC and GAUC

@formula("7.5")
@given(logs())
def test_mid_ranks_by_counting(log):
    _, s, u = log
    slow = [sum(b < a for b in s) + (s.count(a) + 1)/2 for a in s]
    np.testing.assert_allclose(metrics.mid_ranks(s), slow)
    slow = [sum(b < a and v == w for b, w in zip(s, u)) + (sum(b == a and v == w for b, w in zip(s, u)) + 1)/2
            for a, v in zip(s, u)]
    np.testing.assert_allclose(metrics.mid_ranks(s, u), slow)


def test_mid_ranks_by_pandas():
    s = np.random.default_rng(3).normal(size=1000).round(1)
    np.testing.assert_allclose(metrics.mid_ranks(s), pd.Series(s).rank())


@formula("7.6")
@example([[1, 0], [0, 0], [0, 0]])
@given(logs())
def test_auc_by_pairs_and_by_scikit_learn(log):
    y, s, _ = log
    assume(0 < sum(y) < len(y))
    assert metrics.auc(y, s) == pytest.approx(pairs(list(zip(y, s))), abs=1e-12)
    assert metrics.auc(y, s) == pytest.approx(sk.roc_auc_score(y, s), abs=1e-12)


@given(logs(scores=st.floats(-5, 5)))
def test_auc_knows_only_the_order(log):
    y, s, _ = log
    assume(0 < sum(y) < len(y))
    s = np.round(s, 3)
    assert metrics.auc(y, s) == metrics.auc(y, s**3 + 2*s)
    assert metrics.auc(y, s) + metrics.auc(y, -s) == pytest.approx(1)
    assert metrics.auc(y, np.zeros(len(y))) == .5


def test_auc_with_infinite_scores():
    assert metrics.auc([0, 1, 0, 1], [-math.inf, 0, 1, math.inf]) == .75


@formula("7.7")
@example([[1, 0], [0, 0], [0, 0]])
@given(logs())
def test_gauc_by_a_loop_over_users(log):
    parts = [(len(rows), pairs(rows)) for rows in by_user(*log).values()]
    parts = [(n, a) for n, a in parts if a is not None]
    assume(parts)
    assert metrics.gauc(*log) == pytest.approx(sum(n*a for n, a in parts)/sum(n for n, _ in parts), abs=1e-12)


def test_gauc_of_one_user_is_auc():
    r = np.random.default_rng(4)
    y, s = r.integers(0, 2, 50), r.normal(size=50)
    assert metrics.gauc(y, s, ["a"]*50) == pytest.approx(metrics.auc(y, s))


# ---------------------------------------------------------------- lists

def dcg(x): return sum(g/math.log2(1 + j) for j, g in enumerate(x, 1))


SLOW = {
    "precision_at_k": lambda x, k: sum(x[:k])/k,
    "recall_at_k": lambda x, k: sum(x[:k])/sum(x),
    "hit_rate_at_k": lambda x, k: float(any(x[:k])),
    "mrr": lambda x, k: next((1/j for j, g in enumerate(x[:k], 1) if g), 0.),
    "dcg_at_k": lambda x, k: dcg(x[:k]),
    "ndcg_at_k": lambda x, k: dcg(x[:k])/dcg(sorted(x, reverse=True)[:k]),
}


def compare(name, log, k):
    lists = ranked(*log)
    assume(lists)
    assert getattr(metrics, name)(*log, k) == pytest.approx(mean([SLOW[name](x, k) for x in lists]),
                                                            abs=1e-12)


K = st.integers(1, 8)
CLICK = ([[1, 0, 1, 0], [1, 2, 2, 0], [0, 0, 0, 1]], 2)


@formula("7.8")
@example(*CLICK)
@given(logs(), K)
def test_precision_by_a_loop(log, k): compare("precision_at_k", log, k)


@formula("7.9")
@example(*CLICK)
@given(logs(), K)
def test_recall_by_a_loop(log, k): compare("recall_at_k", log, k)


@formula("7.10")
@example(*CLICK)
@given(logs(), K)
def test_hit_rate_by_a_loop(log, k): compare("hit_rate_at_k", log, k)


@formula("7.11")
@example(*CLICK)
@given(logs(), K)
def test_mrr_by_a_loop(log, k): compare("mrr", log, k)


@formula("7.12")
@example(*CLICK)
@given(logs(), K)
def test_dcg_by_a_loop(log, k): compare("dcg_at_k", log, k)


@formula("7.13")
@example(*CLICK)
@given(logs(), K)
def test_ndcg_by_a_loop(log, k): compare("ndcg_at_k", log, k)


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("name, judge", [
    ("precision_at_k", tm.RetrievalPrecision), ("recall_at_k", tm.RetrievalRecall),
    ("hit_rate_at_k", tm.RetrievalHitRate),
    ("mrr", tm.RetrievalMRR), ("ndcg_at_k", tm.RetrievalNormalizedDCG)])
def test_lists_by_torchmetrics(name, judge, k):
    g = torch.Generator().manual_seed(k)
    label, user = (torch.rand(300, generator=g) < .3).long(), torch.randint(40, (300,), generator=g)
    # no ties: torchmetrics breaks them its own way
    score = torch.randperm(300, generator=g).double()/300
    theirs = judge(top_k=k, empty_target_action="skip")(score, label, indexes=user)
    assert getattr(metrics, name)(label, score, user, k) == pytest.approx(theirs.item(), abs=1e-5)


def test_ndcg_by_scikit_learn():
    r = np.random.default_rng(5)
    label, score = r.integers(0, 2, (30, 12)), r.permutation(360).reshape(30, 12)
    label[:, 0] = 1
    user = np.repeat(np.arange(30), 12)
    assert metrics.ndcg_at_k(label.ravel(), score.ravel(), user, 5) == pytest.approx(sk.ndcg_score(label,
        score, k=5))
    assert metrics.dcg_at_k(label.ravel(), score.ravel(), user, 5) == pytest.approx(sk.dcg_score(label, score,
        k=5))


def test_mrr_of_the_whole_list():
    log = [0, 0, 0, 1], [4, 3, 2, 1], [7, 7, 7, 7]
    assert metrics.mrr(*log) == .25 and metrics.mrr(*log, 3) == 0


@pytest.mark.parametrize("name", at_k)
@settings(max_examples=30)
@given(logs(), K)
def test_users_without_a_click_change_nothing(name, log, k):
    y, s, u = log
    assume(sum(y))
    f = getattr(metrics, name)
    assert f(y + [0, 0], s + [9, -9], u + [99, 99], k) == f(y, s, u, k)


@pytest.mark.parametrize("name", at_k)
def test_ties_keep_the_order_of_rows(name):
    f = getattr(metrics, name)
    assert f([1, 0, 0], [0, 0, 0], list("aaa"), 1) == 1 and f([0, 1, 0], [0., -0., 0.], list("aaa"), 1) == 0
    # rows of other users between them do not matter
    assert f([0, 1, 1, 0], [5, 5, 5, 5], list("abab"), 1) == f([1, 0, 0, 1], [5, 5, 5, 5], list("bbaa"),
        1) == .5


# ---------------------------------------------------------------- catalogue

LISTS = st.lists(st.lists(st.integers(-1, 9), max_size=6), min_size=1, max_size=6)


def filled(lists): return [[i for i in x if i >= 0] for x in lists]


@formula("7.14")
@example([[1, 2], [2]])
@given(LISTS)
def test_catalogue_coverage_by_a_set(lists):
    assert metrics.catalogue_coverage(lists,
                                      10) == pytest.approx(len({i for x in filled(lists) for i in x})/10)


@formula("7.15")
@example([[1, 2], [2], []])
@given(LISTS)
def test_user_coverage_by_a_loop(lists):
    assert metrics.user_coverage(lists, 8) == pytest.approx(sum(bool(x) for x in filled(lists))/8)


@formula("7.16")
@example([[1, 2], [2], []])
@given(LISTS)
def test_novelty_by_a_loop(lists):
    popularity = np.arange(1, 11)
    full = [x for x in filled(lists) if x]
    assume(full)
    slow = mean([mean([-math.log2((i + 1)/55) for i in x]) for x in full])
    assert metrics.novelty(lists, popularity) == pytest.approx(slow, abs=1e-12)
    assert metrics.novelty(lists, popularity/55) == pytest.approx(slow, abs=1e-12)


@formula("7.17")
@example([[1, 2, 5], [2], [], [3, 4]])
@given(LISTS)
def test_diversity_by_every_pair(lists):
    v = np.random.default_rng(6).normal(size=(10, 3))
    far = lambda a, b: 1 - v[a] @ v[b]/math.sqrt((v[a] @ v[a])*(v[b] @ v[b]))
    full = [x for x in filled(lists) if len(x) > 1]
    assume(full)
    slow = mean([mean([far(a, b) for a, b in itertools.combinations(x, 2)]) for x in full])
    assert metrics.intra_list_diversity(lists, v) == pytest.approx(slow, abs=1e-9)


def test_lists_come_in_many_forms():
    ragged, table = [[0, 2], [1]], np.array([[0, 2], [1, -1]])
    forms = [ragged, [(0, 2), [1]], {"u": [0, 2], "v": [1]}, table, torch.tensor(table), pd.DataFrame(table),
             pd.Series(ragged),
             np.array([[0, 2], [1, np.nan]]), [[0, 2], [1, None]], [torch.tensor([0, 2]), np.array([1])],
             np.array(ragged, dtype=object)]
    popularity, vectors = [4, 2, 2], np.eye(3)
    for lists in forms:
        assert metrics.catalogue_coverage(lists, 4) == .75 and metrics.user_coverage(lists,
            3) == pytest.approx(2/3)
        assert metrics.novelty(lists, popularity) == pytest.approx((1.5 + 2)/2)
        assert metrics.intra_list_diversity(lists, vectors) == pytest.approx(1)


def test_items_may_have_names():
    lists = [["tea", "pot"], ["cup"], []]
    popularity = pd.Series({"cup": 2, "pot": 2, "tea": 4})
    assert metrics.catalogue_coverage(lists, 6) == .5
    for table in (popularity, dict(popularity)):
        assert metrics.novelty(lists, table) == pytest.approx((1.5 + 2)/2)
    vectors = {"cup": [1, 0], "tea": [1, 0], "pot": [0, 2]}
    for table in (vectors, pd.DataFrame(vectors).T):
        assert metrics.intra_list_diversity(lists, table) == pytest.approx(1)


def test_a_series_is_read_by_its_index_and_not_by_its_order():
    counted = pd.Series([2, 2, 0, 1, 2, 0, 0, 0]).value_counts()         # index 0, 2, 1 by count
    assert metrics.novelty([[1]], counted) == pytest.approx(3)


# ---------------------------------------------------------------- report

@formula("7.18")
def test_macro_average_by_a_loop():
    x = [.5, math.nan, .8, .2]
    assert metrics.macro_average(x) == pytest.approx(math.fsum([.5, .8, .2])/3) == metrics.macro_average(
        torch.tensor(x))
    assert math.isnan(metrics.macro_average([math.nan]))


@settings(max_examples=25)
@given(logs(scores=st.floats(.01, .99)), st.randoms(use_true_random=False))
def test_report_by_pieces(log, random):
    y, p, u = map(np.array, log)
    scenario = np.array([random.choice(["home", "cart", "live"]) for _ in y])
    frame = metrics.report(y, p, scenario, u)
    names = sorted(set(scenario))
    assert list(frame.index) == [*names, "macro", "all"] and frame.index.name == "scenario"
    assert list(frame.columns) == ["rows", "users", "click_rate", "auc", "gauc", "log_loss"]
    for name in [*names, "all"]:
        i = np.ones(len(y), bool) if name == "all" else scenario == name
        a, g = pairs(list(zip(y[i], p[i]))), [(len(r), pairs(r)) for r in by_user(y[i], p[i], u[i]).values()]
        g = [(n, x) for n, x in g if x is not None]
        want = [i.sum(), len(set(u[i])), y[i].mean(), math.nan if a is None else a,
                sum(n*x for n, x in g)/sum(n for n, _ in g) if g else math.nan,
                sk.log_loss(y[i], p[i], labels=[0, 1])]
        np.testing.assert_allclose(frame.loc[name].astype(float), want, rtol=1e-9)
    with np.errstate(all="ignore"): want = frame.loc[names].mean()
    np.testing.assert_allclose(frame.loc["macro", "click_rate":].astype(float), want["click_rate":],
                               rtol=1e-9)
    assert (frame.loc["macro", ["rows", "users"]] == frame.loc["all", ["rows", "users"]]).all()


def test_report_gives_nan_where_a_scenario_has_one_class():
    frame = metrics.report(torch.tensor([0., 1., 0., 0.]), torch.tensor([.1, .2, .3, .5]),
                           torch.tensor([0, 0, 1, 1]), list("aabb"))
    assert frame.loc[1, ["auc", "gauc"]].isna().all() and frame.loc[0, "auc"] == frame.loc["macro",
        "auc"] == 1
    one_class = metrics.report([1, 1], [.5, .6], ["home", "cart"], list("ab"))
    assert one_class[["auc", "gauc"]].isna().all(axis=None) and one_class.log_loss.notna().all()
    assert frame.rows.dtype.kind == frame.users.dtype.kind == "i"


def test_report_keeps_the_order_of_a_categorical():
    scenario = pd.Categorical(["home", "cart"], categories=["home", "cart", "live"])
    assert list(metrics.report([0, 1], [.5, .5], scenario, [1, 2]).index) == ["home", "cart", "macro", "all"]


# ---------------------------------------------------------------- bootstrap

def rate(label, score): return label.mean()


@formula("7.19")
@pytest.mark.parametrize("level", [.5, .9])
def test_bootstrap_by_every_possible_draw(level):
    user, label = [0, 0, 1, 2, 2, 2, 3], [1, 0, 1, 1, 0, 0, 0]
    rows = {u: [y for y, v in zip(label, user) if v == u] for u in user}
    every = [mean([y for u in drawn for y in rows[u]]) for drawn in itertools.product(rows, repeat=4)]
    low, high = metrics.bootstrap_interval(rate, label, label, user, level=level, resamples=8000, seed=3)
    # the 256 draws are equally likely: our quantile must lie between theirs a little to either side
    for ours, q in ((low, (1 - level)/2), (high, (1 + level)/2)):
        below, above = np.quantile(every, [q - .015, q + .015], method="inverted_cdf")
        assert below - 1e-12 <= ours <= above + 1e-12
        assert min(abs(ours - x) for x in every) < 1e-9


@formula("7.20")
def test_design_effect_by_adding_up_a_covariance_matrix():
    m, users, rho, variance = 4, 5, .3, 2.
    block = variance*(rho*np.ones((m, m)) + (1 - rho)*np.eye(m))
    whole = np.kron(np.eye(users), block)
    of_mean = whole.sum()/(m*users)**2
    assert metrics.design_effect(m, rho) == pytest.approx(of_mean/(variance/(m*users)))


def clustered(seed=0, users=80, rows=20):
    r = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows)
    keen = r.normal(size=users)[user]
    return (r.random(len(user)) < 1/(1 + np.exp(1 - 1.5*keen))).astype(int), keen, user


def test_users_give_wider_intervals_than_rows_as_the_design_effect_says():
    y, s, user = clustered()
    widths = [np.diff(metrics.bootstrap_interval(rate, y, s, ids, resamples=1000))[0]
              for ids in (user, np.arange(len(y)))]
    d = pd.Series(y - y.mean())
    rho = (d.groupby(user).sum().pow(2).sum() - d.pow(2).sum())/(len(y)*19)/d.pow(2).mean()
    assert widths[0]/widths[1] == pytest.approx(metrics.design_effect(20, rho)**.5, rel=.12)


def test_bootstrap_of_independent_rows_is_the_textbook_interval():
    y = np.random.default_rng(1).integers(0, 2, 1000)
    low, high = metrics.bootstrap_interval(rate, y, y, np.arange(1000), level=.9, resamples=2000)
    half = 1.645*math.sqrt(y.mean()*(1 - y.mean())/1000)
    assert low == pytest.approx(y.mean() - half, abs=.1*half) and high == pytest.approx(y.mean() + half,
        abs=.1*half)


def test_bootstrap_seed_and_level():
    y, s, user = clustered()
    take = functools.partial(metrics.bootstrap_interval, metrics.auc, y, s, user, resamples=60)
    assert take(seed=1) == take(seed=1) != take(seed=2)
    (a, b), (c, d) = take(level=.5), take(level=.99)
    assert c < a < b < d
    assert c < metrics.auc(y, s) < d


def test_bootstrap_draws_whole_users_and_counts_repeats_apart():
    seen = []
    def metric(label, score, user):
        seen.append(pd.DataFrame(dict(y=label, s=score, u=user)))
        return 0.
    user = np.array(list("bbacccb"))
    metrics.bootstrap_interval(metric, np.arange(7)/10, np.arange(7), user, resamples=30)
    whole = {tuple(np.flatnonzero(user == u)) for u in "abc"}
    for frame in seen[1:]:
        assert frame.u.nunique() == 3 and {tuple(part.s) for _, part in frame.groupby("u")} <= whole
        assert (frame.y == frame.s/10).all()
    assert any(len({tuple(p.s) for _, p in frame.groupby("u")}) < 3 for frame in seen[1:])


@pytest.mark.parametrize("metric", [
    metrics.auc, metrics.gauc, metrics.mrr, functools.partial(metrics.ndcg_at_k, k=3), lambda y, s,
    u: metrics.gauc(y, s, u),
    lambda label, score, user=None: metrics.gauc(label, score, user), sk.roc_auc_score, metrics.log_loss,
    np.dot])
def test_bootstrap_takes_metrics_with_and_without_users(metric):
    y, s, user = clustered(users=20)
    low, high = metrics.bootstrap_interval(metric, y, 1/(1 + np.exp(-s)), user, resamples=20)
    assert low <= high


def test_bootstrap_compares_two_models_on_the_same_draws():
    y, s, user = clustered()
    gap = lambda label, score: metrics.auc(label, score[:, 0]) - metrics.auc(label, score[:, 1])
    assert metrics.bootstrap_interval(gap, y, torch.tensor(np.c_[s, 2*s]), user, resamples=20) == (0, 0)


def test_bootstrap_leaves_out_undefined_resamples_until_most_are():
    y, user = [1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 2, 2, 3, 3]
    assert metrics.bootstrap_interval(metrics.auc, y, range(8), user, resamples=50) == (0., 0.)
    calls = iter([.5, *[math.nan]*9])
    with pytest.raises(ValueError, match="undefined in 9 of 9 resamples"):
        metrics.bootstrap_interval(lambda label, score: next(calls), y, y, user, resamples=9)


# ---------------------------------------------------------------- one door for all: kinds of columns, and
# errors

WITH_USER = ("gauc", *at_k)
ALL = ("accuracy", "log_loss", "auc", *WITH_USER)


def call(name, label, score, user=None, k=2):
    user = user if user is not None else ["a"]*len(label)
    return getattr(metrics, name)(label, score, *[user][:name in WITH_USER], *[k][:name in at_k])


@pytest.mark.parametrize("name", ALL)
def test_arrays_tensors_lists_and_series_agree(name):
    label, score, user = [0, 1, 1, 0, 1], [.5, .75, .25, .125, .5], [3, 3, 5, 5, 5]
    want = call(name, label, score, user)
    assert isinstance(want, float)
    for kind in (np.array, torch.tensor, pd.Series, lambda x: pd.Series(x, index=range(9, 4, -1)),
                 lambda x: torch.tensor(x, dtype=torch.bfloat16)):
        assert call(name, kind(label), kind(score), kind(user)) == want
    assert call(name, np.array(label, bool), torch.tensor(score, requires_grad=True),
                ["u", "u", "v", "v", "v"]) == want


ERRORS = [
    (dict(label=[], score=[], user=[]), "label is empty"),
    (dict(score=[.1, .2]), "label has 3 rows, but score has 2"),
    (dict(score=[.1, math.nan, .3]), "score is NaN in row 1"),
    (dict(label=[0, 1, math.nan]), "label is NaN in row 2"),
    (dict(label=[[0], [1], [1]]), r"label must have one axis \(n,\), got shape \(3, 1\)"),
    (dict(score=torch.zeros(3, 1)), "score must have one axis"),
    (dict(score=["a", "b", "c"]), "score must hold numbers"),
    (dict(label=[0, 1, None]), "label (must hold numbers|is NaN in row 2)"),
    (dict(label=[0, 1, 2]), r"label must (lie in \[0, 1\]|be 0 or 1).*row 2 holds 2"),
]


@pytest.mark.parametrize("name", [*ALL, "report", "bootstrap_interval"])
@pytest.mark.parametrize("change, says", ERRORS, ids=lambda x: None)
def test_errors_that_all_share(name, change, says):
    columns = dict(dict(label=[0, 1, 1], score=[.1, .2, .3], user=list("aab")), **change)
    label, score, user = columns.values()
    # two axes are several models; auc complains
    if name == "bootstrap_interval" and np.ndim(score) == 2: says = "one axis"
    with pytest.raises(ValueError, match=says):
        if name == "report": metrics.report(label, score, ["home"]*len(label), user)
        elif name == "bootstrap_interval": metrics.bootstrap_interval(metrics.auc, label, score, user)
        else: call(name, label, score, user)


@pytest.mark.parametrize("name", ["auc", "gauc", *at_k])
def test_soft_labels_are_refused_where_a_click_is_counted(name):
    with pytest.raises(ValueError,
                       match=f"label must be 0 or 1 for {name}, but row 1 holds 0.8.*label >= 0.5"):
        call(name, [0, .8], [.1, .2])


def test_report_refuses_soft_labels_and_log_odds():
    with pytest.raises(ValueError, match="0 or 1 for report"):
        metrics.report([0, .8], [.1, .2], [0, 0], [0, 0])
    with pytest.raises(ValueError, match=r"pass sigmoid\(logits\)"):
        metrics.report([0, 1], [-2, .2], [0, 0], [0, 0])
    with pytest.raises(ValueError, match="scenario is missing in row 1"):
        metrics.report([0, 1], [.1, .2], ["a", None], [0, 0])
    with pytest.raises(ValueError, match="scenario has 1 rows"):
        metrics.report([0, 1], [.1, .2], ["a"], [0, 0])
    with pytest.raises(ValueError, match="may not be called"):
        metrics.report([0, 1], [.1, .2], ["a", "macro"], [0, 0])


@pytest.mark.parametrize("name", WITH_USER)
def test_users_that_cannot_be_right(name):
    with pytest.raises(ValueError, match="user is missing in row 1"):
        call(name, [0, 1], [.1, .2], ["a", None])
    with pytest.raises(ValueError, match="user is missing in row 0"):
        call(name, [0, 1], [.1, .2], [math.nan, 1.])
    with pytest.raises(ValueError, match="user has 1 rows, but label has 2"):
        call(name, [0, 1], [.1, .2], ["a"])
    with pytest.raises(ValueError, match="user must have one axis"):
        call(name, [0, 1], [.1, .2], [["a"], ["b"]])


@pytest.mark.parametrize("label", [[0, 0], [1, 1]])
def test_one_class_is_an_error(label):
    with pytest.raises(ValueError,
                       match=f"auc needs clicks and non-clicks, but label is {label[0]} in all 2 rows"):
        metrics.auc(label, [.1, .2])
    with pytest.raises(ValueError, match="none of the 2 users has both"):
        metrics.gauc(label, [.1, .2], ["a", "b"])
    with pytest.raises(ValueError, match="none of the 2 users has both"):
        metrics.gauc([0, 1], [.1, .2], ["a", "b"])


@pytest.mark.parametrize("name", at_k)
@pytest.mark.parametrize("k", [0, -1, 1.5, "3", True, math.nan])
def test_wrong_k(name, k):
    with pytest.raises(ValueError, match="k must be a whole number of 1 or more"):
        call(name, [0, 1], [.1, .2], k=k)


@pytest.mark.parametrize("name", at_k)
def test_no_click_at_all_and_whole_numbers_of_numpy(name):
    with pytest.raises(ValueError, match=f"{name}: no user has a click"): call(name, [0, 0], [.1, .2])
    assert call(name, [0, 1], [.1, .2], k=np.int64(2)) == call(name, [0, 1], [.1, .2], k=2)


@pytest.mark.parametrize("run, says", [
    (lambda: metrics.log_loss([1], [1.5]), "score must be a probability, but row 0 holds 1.5"),
    (lambda: metrics.log_loss([1], [.5], eps=.5), r"eps must lie in \[0, 0.5\)"),
    (lambda: metrics.log_loss([1], [.5], eps=-1), "eps must lie"),
    (lambda: metrics.binary_entropy([1.1]), r"label: entry 0 is 1.1, outside \[0, 1\]"),
    (lambda: metrics.binary_divergence(.5, math.nan), "prob: entry 0 is nan"),
    (lambda: metrics.binary_divergence(-.5, .5), "label: entry 0 is -0.5"),
    (lambda: metrics.mid_ranks([1, 2], [1]), "group has 1 rows"),
    (lambda: metrics.mid_ranks([]), "score is empty"),
    (lambda: metrics.mid_ranks([math.nan]), "score is NaN in row 0"),
    (lambda: metrics.macro_average([]), "values must have one axis"),
    (lambda: metrics.macro_average([[1.]]), "values must have one axis"),
    (lambda: metrics.design_effect(.5, 0), "rows_per_user must be 1 or more"),
    (lambda: metrics.design_effect(2, 1.5), "correlation must lie"),
    (lambda: metrics.catalogue_coverage([], 3), "lists is empty"),
    (lambda: metrics.catalogue_coverage([1, 2], 3), r"wrap a single list as \[items\]"),
    (lambda: metrics.catalogue_coverage(torch.tensor([1, 2]), 3), "wrap a single list"),
    (lambda: metrics.catalogue_coverage(["ab"], 3), "wrap a single list"),
    (lambda: metrics.catalogue_coverage([[1]], 0), "n_items must be a whole number"),
    (lambda: metrics.catalogue_coverage([[1, 2]], 1), "n_items is 1, but lists holds 2 different items"),
    (lambda: metrics.user_coverage([[1], [1]], 1), "n_users is 1, but lists serves 2"),
    (lambda: metrics.user_coverage([[1]], 1.5), "n_users must be a whole number"),
    (lambda: metrics.user_coverage([], 1), "lists is empty"),
    (lambda: metrics.novelty([[]], [1]), "every list is empty"),
    (lambda: metrics.novelty([[1]], [1]), "item 1 is in lists but not in popularity"),
    (lambda: metrics.novelty([["x"]], [1]), "indexed by item id"),
    (lambda: metrics.novelty([["x"]], {"y": 1}), "item x is in lists but not in"),
    (lambda: metrics.novelty([[0]], [0, 1]), "item 0 has popularity 0.*add 1"),
    (lambda: metrics.novelty([[0]], [-1, 2]), "popularity must be 0 or more"),
    (lambda: metrics.novelty([[0]], [0, 0]), "not all 0"), (lambda: metrics.novelty([[0]], [1, math.nan]),
                                                            "popularity is NaN in row 1"),
    (lambda: metrics.novelty([[0]], pd.Series([1, 2], index=[0, 0])), "popularity has an item twice"),
    (lambda: metrics.intra_list_diversity([[0], [1]], np.eye(2)), "no list of two"),
    (lambda: metrics.intra_list_diversity([[0, 2]], np.eye(2)), "item 2 is in lists but not in vectors"),
    (lambda: metrics.intra_list_diversity([[0, 1]], [[1, 0], [0, 0]]),
     "item 1 has a vector without a direction"),
    (lambda: metrics.intra_list_diversity([[0, 1]], [[1, 0], [0, math.nan]]), "item 1 has a vector without"),
    (lambda: metrics.intra_list_diversity([[0, 1]], [1, 2]), r"vectors must have two axes \(n_items, K\)"),
    (lambda: metrics.bootstrap_interval(rate, [0, 1], [0, 1], [0, 1], level=1),
     "level must lie between 0 and 1"),
    (lambda: metrics.bootstrap_interval(rate, [0, 1], [0, 1], [0, 1], resamples=0),
     "resamples must be a whole number"),
    (lambda: metrics.bootstrap_interval(rate, [0, 1], [0, 1], [0, 0]), "a single user"),
    (lambda: metrics.bootstrap_interval(rate, [0, 1], np.zeros((2, 1, 1)), [0, 1]),
     r"score must have axes \(n,\) or \(n, m\)"),
    (lambda: metrics.bootstrap_interval(rate, [0, 1], [0, 1], [0]), "user has 1 rows"),
    (lambda: metrics.bootstrap_interval(metrics.auc, [1, 1], [0, 1], [0, 1]),
     "auc needs clicks and non-clicks"),
], ids=lambda x: None)
def test_errors(run, says):
    with pytest.raises(ValueError, match=says): run()


def test_a_million_rows():
    r = np.random.default_rng(0)
    n = 1_000_000
    label, score, user = r.integers(0, 2, n), r.random(n).round(4), r.integers(0, 100_000, n)
    start = time.process_time()
    metrics.gauc(label, score, user), metrics.ndcg_at_k(label, score, user, 10)
    # under two seconds; a loop over 100 000 users takes over a minute
    assert time.process_time() - start < 15
