"""Second opinions on notebook 00: plain Python, NumPy, SymPy and search instead of the formulas."""
import itertools
import math

import numpy as np
import pytest
import sympy
import torch

from multiscene_rec import article

USERS = ITEMS = [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]
LABELS = [0.8, 0.9]


def build(seed=0, n_scenarios=1):
    torch.manual_seed(seed)
    extractor = article.build_feature_extractor(input_shape=(3,))
    fuser = article.build_scenario_fuser(extractor, n_scenarios)
    return extractor, fuser, article.build_interest_predictor(fuser)


@pytest.mark.formula("0.1")
def test_relu_twice_is_relu_once():
    x = torch.randn(50, dtype=torch.float64)
    by_hand = torch.tensor([v if v > 0 else 0.0 for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(article.relu(x), by_hand, rtol=0, atol=0)
    torch.testing.assert_close(article.relu(article.relu(x)), by_hand, rtol=0, atol=0)


@pytest.mark.formula("0.2")
def test_concat_scores_is_one_linear_layer_on_the_joined_rows():
    g = torch.Generator().manual_seed(1)
    users, items = torch.randn(4, 5, generator=g), torch.randn(3, 5, generator=g)
    layer = torch.nn.Linear(10, 1)
    scores = article.concat_scores(users, items, layer.weight[0], layer.bias.item())
    for (u, user), (i, item) in itertools.product(enumerate(users), enumerate(items)):
        torch.testing.assert_close(scores[u, i], layer(torch.cat([user, item]))[0])


def test_everybody_gets_the_same_list():
    g = torch.Generator().manual_seed(2)
    scores = article.concat_scores(*(torch.randn(n, 6, generator=g).double() for n in (200, 8)),
                                   torch.randn(12, generator=g).double())
    assert len({tuple(article.rank_by_interest(row).tolist()) for row in scores}) == 1


@pytest.mark.formula("0.3")
def test_interest_against_loops():
    rng = np.random.default_rng(3)
    x, W, b, w = rng.normal(size=(6, 4)), rng.normal(size=(5, 4)), rng.normal(size=5), rng.normal(size=5)
    expected = [sum(w[j]*max(0.0, sum(W[j, p]*row[p] for p in range(4)) + b[j]) for j in range(5))
                for row in x]
    got = article.interest(*(torch.from_numpy(v) for v in (x, W, b, w)))
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.formula("0.4")
def test_sigmoid_keeps_the_order():
    rng = np.random.default_rng(4)
    for _ in range(20):
        scores = rng.normal(size=9).tolist()
        expected = sorted(range(9), key=lambda i: -scores[i])
        prob = [1/(1 + math.exp(-s)) for s in scores]
        assert article.rank_by_interest(torch.tensor(scores)).tolist() == expected
        assert article.rank_by_interest(torch.tensor(prob, dtype=torch.float64)).tolist() == expected


def test_ties_keep_their_order_and_k_cuts():
    assert article.rank_by_interest(torch.tensor([1., 2, 1, 2]), k=3).tolist() == [1, 3, 0]


@pytest.mark.parametrize("k", [0, 3])
def test_rank_refuses_a_list_length(k):
    with pytest.raises(ValueError, match="k must be from 1 to 2"):
        article.rank_by_interest(torch.tensor([1., 2]), k)


def test_rank_refuses_two_axes():
    with pytest.raises(ValueError, match="expected one axis"): article.rank_by_interest(torch.ones(2, 2))


@pytest.mark.formula("0.5")
@pytest.mark.parametrize("y", [0.0, 0.3, 0.8, 1.0])
def test_cross_entropy_is_the_average_surprise_of_ten_draws(y):
    p = 0.37
    draws = [1]*round(10*y) + [0]*(10 - round(10*y))
    surprise = sum(-math.log(p if draw else 1 - p) for draw in draws)/10
    assert article.soft_bce(torch.tensor(y, dtype=torch.float64), p).item() == pytest.approx(surprise,
        rel=1e-7)


def test_hard_labels_at_the_edge():
    assert article.soft_bce([1.0, 0.0], [1.0, 0.0]).tolist() == [0, 0]
    assert article.soft_bce([1.0], [0.0]).item() == math.inf


@pytest.mark.formula("0.6")
@pytest.mark.parametrize("y", [0.05, 0.5, 0.8, 0.9])
def test_entropy_is_the_minimum_found_by_search(y):
    label = torch.tensor(y, dtype=torch.float64)
    grid = torch.arange(1, 10_000, dtype=torch.float64)/10_000
    loss = -y*np.log(grid.numpy()) - (1 - y)*np.log1p(-grid.numpy())
    assert grid[loss.argmin()].item() == pytest.approx(y, abs=1e-9)
    assert article.binary_entropy(label).item() == pytest.approx(loss.min(), abs=1e-9)


def test_derivation_of_the_minimum_by_sympy():
    y, p = sympy.symbols("y p", positive=True)
    loss = -y*sympy.log(p) - (1 - y)*sympy.log(1 - p)
    assert sympy.simplify(sympy.diff(loss, p) - (p - y)/(p*(1 - p))) == 0
    assert sympy.solve(sympy.diff(loss, p), p) == [y]
    assert sympy.simplify(sympy.diff(loss, p, 2).subs(p, y) - 1/(y*(1 - y))) == 0


@pytest.mark.formula("0.7")
def test_excess_against_torch_distributions():
    y, p = (torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (5, 6))
    judge = torch.distributions.kl_divergence(torch.distributions.Bernoulli(y),
                                              torch.distributions.Bernoulli(p))
    torch.testing.assert_close(article.binary_divergence(y, p), judge)
    torch.testing.assert_close(article.binary_divergence(y, y), torch.zeros_like(y), rtol=0, atol=1e-12)


@pytest.mark.formula("0.8")
def test_pooled_entropy_is_the_lowest_common_loss():
    labels = np.array([0.8, 0.3, 0.6])
    grid = np.arange(1, 10_000)/10_000
    mean_loss = np.mean([-y*np.log(grid) - (1 - y)*np.log(1 - grid) for y in labels], axis=0)
    assert article.pooled_entropy(torch.from_numpy(labels)).item() == pytest.approx(mean_loss.min(), abs=1e-7)
    assert article.pooled_entropy(torch.from_numpy(labels)) >= article.binary_entropy(
        torch.from_numpy(labels)).mean()


@pytest.mark.parametrize("call", [
    lambda: article.soft_bce([0.5, 1.5], [0.5, 0.5]), lambda: article.binary_entropy([0.5, -1]),
    lambda: article.binary_divergence([0.5, float("nan")], [0.5, 0.5]),
    lambda: article.pooled_entropy([0, 2]),
])
def test_labels_outside_the_unit_interval(call):
    with pytest.raises(ValueError, match="label: entry 1 is"): call()


def test_probabilities_outside_the_unit_interval():
    with pytest.raises(ValueError, match="prob: entry 0 is 2"): article.soft_bce([0.5], [2.0])
    with pytest.raises(ValueError, match="prob: entry 0 is 2"): article.binary_divergence([0.5], [2.0])


@pytest.mark.formula("0.9")
def test_attention_weights_against_loops():
    rng = np.random.default_rng(7)
    q, k = rng.normal(size=(4, 6)), rng.normal(size=(4, 3, 6))
    expected = []
    for row, keys in zip(q, k):
        powers = [math.exp(sum(a*b for a, b in zip(row, key))/math.sqrt(6)) for key in keys]
        expected.append([v/sum(powers) for v in powers])
    np.testing.assert_allclose(article.attention_weights(torch.from_numpy(q), torch.from_numpy(k)), expected,
                               rtol=1e-12)


@pytest.mark.formula("0.10")
def test_fused_vector_row_by_row():
    _, fuser, _ = build(n_scenarios=3)
    fuser = fuser.double()
    user, item = (torch.rand(5, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(s))
                  for s in (8, 9))
    place = torch.tensor([0, 1, 2, 0, 1])
    z, alpha = fuser(user, item, place)
    matrix = lambda layer: layer.weight.detach().numpy()
    for b in range(5):
        h = [user[b].numpy(), item[b].numpy(), fuser.scenario.weight[place[b]].detach().numpy()]
        q = matrix(fuser.query) @ np.concatenate([h[1], h[2]])
        fit = np.array([q @ (matrix(K) @ v) for K, v in zip(fuser.keys, h)])/8
        a = np.exp(fit)/np.exp(fit).sum()
        total = h[0] + h[1] + sum(w*(matrix(V) @ v) for w, V, v in zip(a, fuser.values, h))
        np.testing.assert_allclose(z[b].detach(), np.where(total > 0, total, 0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(alpha[b].detach(), a, rtol=1e-9)


def test_preprocess_drops_incomplete_and_repeated_rows_everywhere():
    users = [[1, 5], [None, 5], [1, 5], [3, 7], [2, 6]]
    items = [[0, 9], [0, 9], [0, 9], [4, 9], [2, float("inf")]]
    u, i, y, where = article.preprocess_data(users, items, [1, 0, 1, 0, 1], [0, 0, 0, 1, 1])
    assert u.tolist() == [[0, 0], [1, 1]] and i.tolist() == [[0, 0], [1, 0]]
    assert y.tolist() == [1, 0] and where.tolist() == [0, 1]
    assert u.dtype == torch.float32 and where.dtype == torch.int64


def test_preprocess_keeps_equal_rows_with_different_labels():
    u, i, y = article.preprocess_data([[1], [1]], [[2], [2]], [0, 1])
    assert len(u) == len(i) == 2 and y.tolist() == [0, 1]


def test_preprocess_takes_arrays_and_tensors_alike():
    want = article.preprocess_data(USERS, ITEMS)
    for kind in (np.array, torch.tensor):
        got = article.preprocess_data(kind(USERS), kind(ITEMS))
        for a, b in zip(want, got): torch.testing.assert_close(a, b)


@pytest.mark.parametrize("users, items, message", [
    ([[1], [2]], [[1]], r"got lengths \[2, 1\]"),
    ([1, 2], [[1], [2]], "user_data: expected rows × features"),
    ([[1, 2], [3]], [[1], [2]], "user_data: rows must be numbers"),
    ([["a"]], [[1]], "user_data: rows must be numbers"),
    ([[None]], [[1]], "nothing is left"),
])
def test_preprocess_errors(users, items, message):
    with pytest.raises(ValueError, match=message): article.preprocess_data(users, items)


def test_the_articles_script_converges_to_its_labels():
    extractor, fuser, predictor = build()
    losses = article.train_model(extractor, fuser, predictor, USERS, ITEMS, LABELS)
    prob = article.predict_interests(extractor, fuser, predictor, USERS, ITEMS)
    floor = np.mean([-y*math.log(y) - (1 - y)*math.log(1 - y) for y in LABELS])
    assert losses[-1] == pytest.approx(floor, abs=1e-4) and losses[0] > losses[-1]
    np.testing.assert_allclose(prob, LABELS, atol=2e-3)
    assert not prob.requires_grad and prob.shape == (2,)
    assert all(p.grad is not None for part in (extractor, fuser, predictor) for p in part.parameters())


def test_training_repeats_and_batches_cover_all_rows():
    runs = []
    for _ in range(2):
        model = build(3, n_scenarios=2)
        runs.append(article.train_model(*model, USERS*3, ITEMS*3, LABELS*3, scenario=[0, 1]*3, epochs=5,
                                        batch_size=4))
    assert runs[0] == runs[1] and len(runs[0]) == 5


def test_scenario_changes_the_answer_only_when_told():
    users, labels, where = USERS*2, [0.8, 0.9, 0.3, 0.6], [0, 0, 1, 1]
    told, blind = build(n_scenarios=2), build()
    article.train_model(*told, users, users, labels, scenario=where)
    article.train_model(*blind, users, users, labels)
    np.testing.assert_allclose(article.predict_interests(*told, users, users, where), labels, atol=0.02)
    np.testing.assert_allclose(article.predict_interests(*blind, users, users), [0.55, 0.75]*2, atol=0.02)


@pytest.mark.parametrize("change, message", [
    (dict(item_data=[[1, 2, 3]]), "user_data has 2 rows, but item_data 1"),
    (dict(user_data=[[1, 2, None], [1, 2, 3]]), "user_data: row 0, column 2 is missing"),
    (dict(labels=[0.8]), "labels: expected 2 entries"),
    (dict(labels=[0.8, 9]), "labels: entry 1 is 9"),
    (dict(scenario=None), "the fuser knows 2 scenarios"),
    (dict(scenario=[0, 2]), "row 1 is 2, expected 0 to 1"),
    (dict(scenario=[0.5, 1]), "row 0 is 0.5"),
    (dict(scenario=[0]), "scenario: expected 2 entries"),
    (dict(user_data=[[1, 2], [3, 4]]), "rows of 3 features"),
])
def test_train_and_predict_errors(change, message):
    model = build(n_scenarios=2)
    given = dict(user_data=USERS, item_data=ITEMS, labels=LABELS, scenario=[0, 1]) | change
    with pytest.raises(ValueError, match=message): article.train_model(*model, **given)
    if "labels" in change: return
    given.pop("labels")
    with pytest.raises(ValueError, match=message): article.predict_interests(*model, **given)


def test_builders():
    extractor, fuser, predictor = build(n_scenarios=4)
    assert extractor.output_shape == (None, 64) and fuser.output_shape == (None, 64)
    assert sum(p.numel() for p in extractor.parameters()) == 3*128 + 128 + 128*64 + 64
    assert predictor(torch.zeros(7, 64)).shape == (7,)
    for shape in ((), (3, 2), (0,), (2.5,)):
        with pytest.raises(ValueError, match="input_shape must be"): article.build_feature_extractor(shape)
    with pytest.raises(ValueError, match="n_scenarios must be 1 or larger"):
        article.build_scenario_fuser(extractor, 0)
    with pytest.raises(ValueError, match=r"w: expected shape \(4,\)"):
        article.concat_scores(torch.ones(1, 2), torch.ones(1, 2), torch.ones(3))
