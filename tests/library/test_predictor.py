"Second opinions on log-odds, losses, calibration and the observable ceiling."
import math
import time
from types import SimpleNamespace

import mpmath
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats

from multiscene_rec import data, predictor

LOGITS = [-1000., -88., -20., -1.5, -1e-3, 0., .7, 16., 40., 90., 1000.]


def f64(x): return torch.tensor(x, dtype=torch.float64)


def slope(f, x, h=1e-5):
    "Central differences along each entry of a flat array."
    x = np.asarray(x, dtype=float)
    steps = np.eye(len(x))*h
    return np.array([(f(x + e) - f(x - e))/(2*h) for e in steps])


def plain_sigmoid(x): return 1/(1 + math.exp(-x))


# Log-odds, sigmoid, likelihood

@pytest.mark.formula("6.1")
@given(st.floats(1e-9, 1 - 1e-9))
def test_log_odds_against_many_digits(p):
    exact = mpmath.log(mpmath.mpf(p)/(1 - mpmath.mpf(p)))
    assert predictor.log_odds(f64(p)).item() == pytest.approx(float(exact), rel=1e-9, abs=1e-12)


def test_log_odds_at_the_ends_and_beyond():
    assert predictor.log_odds(torch.tensor([0., 1.])).tolist() == [-math.inf, math.inf]
    for bad in (-.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            predictor.log_odds(torch.tensor([.5, bad]))


@pytest.mark.formula("6.2")
@pytest.mark.parametrize("x", LOGITS)
def test_sigmoid_against_many_digits(x):
    exact = float(1/(1 + mpmath.exp(-mpmath.mpf(x))))
    got = predictor.sigmoid(torch.tensor([x, x], dtype=torch.float64))
    assert got.tolist() == pytest.approx([exact]*2, rel=1e-13, abs=1e-300)
    assert predictor.sigmoid(torch.tensor(x)).item() == pytest.approx(exact, rel=1e-5, abs=1e-37)


@pytest.mark.formula("6.3")
def test_slope_of_the_sigmoid():
    exact = [float(mpmath.diff(lambda t: 1/(1 + mpmath.exp(-t)), x)) for x in (-30, -2, 0, .5, 3, 30)]
    torch.testing.assert_close(predictor.sigmoid_grad(f64([-30, -2, 0, .5, 3, 30])), f64(exact), rtol=1e-9,
                               atol=0)
    x = f64(LOGITS).requires_grad_()
    predictor.sigmoid(x).sum().backward()
    torch.testing.assert_close(x.grad, predictor.sigmoid_grad(x.detach()), rtol=1e-10, atol=0)


@pytest.mark.formula("6.4")
def test_likelihood_by_cases():
    p, y = [.9, .2, .6, .5], [1, 0, 0, 1]
    by_hand = math.prod(a if b else 1 - a for a, b in zip(p, y))
    assert predictor.likelihood(f64(p), f64(y)).item() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.formula("6.5")
def test_bce_against_scikit_learn():
    log_loss = pytest.importorskip("sklearn.metrics").log_loss
    r = np.random.default_rng(0)
    p, y = r.random(200), r.integers(2, size=200)
    assert predictor.bce(f64(p), f64(y)).item() == pytest.approx(log_loss(y, p), rel=1e-12)
    assert predictor.bce(f64([0., 1.]), f64([0., 1.])).item() == 0


# The loss from logits

@pytest.mark.formula("6.6")
def test_gradient_by_differences():
    y, x = [1., 0., .3, 1.], [-2., .5, 0., 3.]
    def loss(v):
        return np.mean([-(b*math.log(plain_sigmoid(a)) + (1 - b)*math.log(1 - plain_sigmoid(a))) for a,
                        b in zip(v, y)])
    np.testing.assert_allclose(predictor.bce_grad(f64(x), f64(y)), slope(loss, x), rtol=1e-7, atol=1e-10)


@pytest.mark.formula("6.7")
@pytest.mark.parametrize("x", LOGITS)
def test_softplus_against_many_digits(x):
    exact = float(mpmath.log1p(mpmath.exp(mpmath.mpf(x))))
    assert predictor.softplus(f64(x)).item() == pytest.approx(exact, rel=1e-13, abs=1e-300)


def test_softplus_slope_at_zero():
    x = torch.zeros(1, requires_grad=True)
    predictor.softplus(x).backward()
    assert x.grad.item() == .5


@pytest.mark.formula("6.8")
def test_loss_from_logits_against_many_digits():
    y = [1, 0, .25, 0, 1, 1, 0, .9, 1, 0, 1]
    with mpmath.workdps(500):
        def term(a, b):
            p = 1/(1 + mpmath.exp(-mpmath.mpf(a)))
            return -(b*mpmath.log(p) + (1 - mpmath.mpf(b))*mpmath.log(1 - p))
        exact = float(sum(map(term, LOGITS, y))/len(y))
    assert predictor.bce_with_logits(f64(LOGITS), f64(y)).item() == pytest.approx(exact, rel=1e-12)
    assert predictor.bce_with_logits(torch.tensor(LOGITS), torch.tensor(y)).item() == pytest.approx(exact,
        rel=1e-6)


@given(st.lists(st.tuples(st.floats(-1000, 1000, width=32), st.floats(0, 1, width=32)), min_size=1,
                max_size=20))
def test_loss_and_gradient_against_torch(rows):
    logits, label = (torch.tensor(column) for column in zip(*rows))
    # in float32 theirs cancels digits
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    a = predictor.bce_with_logits(ours, label)
    b = torch.nn.functional.binary_cross_entropy_with_logits(theirs, label.double())
    a.backward()
    b.backward()
    torch.testing.assert_close(a, b.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad.float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, predictor.bce_grad(logits, label), rtol=1e-5, atol=1e-6)


INF = math.inf
# log-odds, label, loss
ENDS = [(INF, 1., 0.), (-INF, 0., 0.), (INF, 0., INF), (-INF, 1., INF), (INF, .3, INF), (-INF, .3, INF)]


@pytest.mark.parametrize("ell, y, expected", ENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_infinite_log_odds_cost_the_limit(ell, y, expected, dtype):
    far = [mpmath.mpf(10)**k*(1 if ell > 0 else -1) for k in (3, 6)] # on the way to infinity
    with mpmath.workdps(30):
        losses = [y*mpmath.log1p(mpmath.exp(-x)) + (1 - y)*mpmath.log1p(mpmath.exp(x)) if y not in (0, 1) else
                  mpmath.log1p(mpmath.exp(-x if y else x)) for x in far]
    assert losses[1] > 100*losses[0] if expected else losses[1] < 1e-300
    assert predictor.bce_with_logits(torch.tensor([ell], dtype=dtype), torch.tensor([y])).item() == expected


def test_infinite_log_odds_leave_their_neighbours_alone():
    far = torch.tensor([[x, y] for x, y, _ in ENDS], dtype=torch.float64)
    near = torch.tensor([[-2., 0.], [.5, 1.], [0., .4], [1000., 1.]], dtype=torch.float64)
    for ends in (far[:2], far): # all of them right; some of them wrong
        logits, label = torch.cat([near, ends]).T
        logits = logits.clone().requires_grad_()
        loss = predictor.bce_with_logits(logits, label)
        loss.backward()
        cost = [-(y*math.log(plain_sigmoid(x)) + (1 - y)*math.log(1 - plain_sigmoid(x))) for x,
                y in near[:3].tolist()]
        assert loss.item() == (math.inf if len(ends) > 2 else pytest.approx(sum(cost)/6, rel=1e-12))
        assert logits.grad.isfinite().all()
        expected = [(plain_sigmoid(x) if x > -700 else 0.) - y for x,
                    y in zip(logits.tolist(), label.tolist())]
        torch.testing.assert_close(logits.grad*len(logits), f64(expected))


def test_log_odds_that_are_nan_are_not_hidden():
    for y in (0., .5, 1.):
        assert predictor.bce_with_logits(torch.tensor([0., math.nan]), torch.tensor([0., y])).isnan()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_finite_log_odds_keep_every_bit(dtype):
    def before(logits, label): # as it was before infinite log-odds were thought of
        ell = logits if logits.dtype == torch.float64 else logits.float()
        return (label*predictor.softplus(-ell) + (1 - label)*predictor.softplus(ell)).mean()
    g = torch.Generator().manual_seed(1)
    logits = (torch.randn(500, generator=g)*10.**torch.randint(-3, 5, (500,), generator=g)).to(dtype)
    logits[:5] = 0
    for label in ((torch.rand(500, generator=g) < .3).float(), torch.rand(500, generator=g)):
        values, grads = [], []
        for f in (before, predictor.bce_with_logits):
            x = logits.clone().requires_grad_()
            values.append(f(x, label.to(x.dtype if dtype == torch.float64 else torch.float32)))
            values[-1].backward()
            grads.append(x.grad)
        assert torch.equal(*values) and torch.equal(*grads)


class Loss(torch.nn.Module):
    def forward(self, logits, label): return predictor.bce_with_logits(logits, label)


def test_the_loss_is_exported_whole():
    label = torch.tensor([1., 0.])
    exported = torch.export.export(Loss(), (torch.zeros(2), label)).module()
    for second, loss in ((-math.inf, 0), (math.inf, math.inf)):
        assert exported(torch.tensor([math.inf, second]), label).item() == loss


@pytest.mark.slow
def test_the_loss_compiles_in_one_graph():
    compiled = torch.compile(predictor.bce_with_logits, backend="aot_eager", fullgraph=True)
    for x in (torch.randn(8), torch.tensor([math.inf, -math.inf, 1.])):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = torch.tensor([1., 0., 1., 0., 1., 0., .5, .2])[:len(x)]
        a, b = compiled(ours, y), predictor.bce_with_logits(theirs, y)
        a.backward()
        b.backward()
        torch.testing.assert_close(a, b), torch.testing.assert_close(ours.grad, theirs.grad)


def test_small_losses_keep_their_digits():
    assert predictor.bce_with_logits(torch.tensor([-15.]), torch.zeros(1)).item() == pytest.approx(
        math.exp(-15), rel=1e-5)
    assert predictor.bce_with_logits(torch.tensor([15.]), torch.ones(1)).item() == pytest.approx(
        math.exp(-15), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = torch.tensor([3., -2.], dtype=dtype)
    loss = predictor.bce_with_logits(logits, torch.tensor([1., 1.]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx((math.log1p(math.exp(-3)) + math.log1p(math.exp(2)))/2, rel=1e-6)


def test_integer_labels_and_what_is_refused():
    assert predictor.bce_with_logits(torch.zeros(2), torch.tensor([0, 1])).item() == pytest.approx(
        math.log(2))
    with pytest.raises(ValueError, match="same shape"):
        predictor.bce_with_logits(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="no row to average"):
        predictor.bce_with_logits(torch.zeros(0), torch.zeros(0))


@pytest.mark.formula("6.9")
def test_squared_error_gradient_by_differences():
    y, x = [1., 0., .3], [-2., .5, 1.]
    def loss(v): return np.mean([(plain_sigmoid(a) - b)**2 for a, b in zip(v, y)])
    np.testing.assert_allclose(predictor.squared_error_grad(f64(x), f64(y)), slope(loss, x), rtol=1e-7)


# The head

@pytest.mark.formula("6.10")
@pytest.mark.parametrize("hidden", [(), (5,), (7, 3)])
def test_head_by_loops(hidden):
    torch.manual_seed(0)
    head, x = predictor.InterestPredictor(4, hidden).double(), torch.randn(6, 4, dtype=torch.float64)
    layers = [(m.weight.tolist(), m.bias.tolist()) for m in head.modules() if isinstance(m, torch.nn.Linear)]
    wide = sorted(layers, key=lambda wb: [*hidden, 1].index(len(wb[1])))
    for row, got in zip(x.tolist(), head(x).tolist()):
        for depth, (W, b) in enumerate(wide):
            row = [sum(w*v for w, v in zip(line, row)) + c for line, c in zip(W, b)]
            if depth < len(hidden): row = [max(v, 0) for v in row]
        assert got == pytest.approx(row[0], rel=1e-9, abs=1e-12)


def test_head_refuses():
    with pytest.raises(ValueError, match="axis 'd_in': expected 4, got 3"):
        predictor.InterestPredictor(4)(torch.zeros(2, 3))
    for d_in, hidden, name in ((0, (), "d_in"), (4, (8, 0), "hidden: every width"),
                               (4, (2.5,), "hidden: every width")):
        says = f"^{name} must be a whole number of 1 or more"
        with pytest.raises(ValueError, match=says): predictor.InterestPredictor(d_in, hidden)


def test_head_learns():
    torch.manual_seed(0)
    x = torch.randn(200, 3)
    y = (x[:, 0] > 0).float()
    head = predictor.InterestPredictor(3, (8,))
    opt = torch.optim.Adam(head.parameters(), lr=.05)
    for _ in range(100):
        opt.zero_grad()
        loss = predictor.bce_with_logits(head(x), y)
        loss.backward()
        opt.step()
    assert loss.item() < .1


# Calibration

def table_by_loops(y, p, bins):
    out = []
    for b in range(bins):
        inside = [i for i, v in enumerate(p) if (b/bins <= v < (b + 1)/bins) or (b == bins - 1 and v == 1)]
        n = len(inside)
        mean = lambda x: sum(x[i] for i in inside)/n if n else math.nan
        noise = math.sqrt(sum(p[i]*(1 - p[i]) for i in inside))/n if n else math.nan
        out.append((b/bins, (b + 1)/bins, n, mean(p), mean(y), mean(y) - mean(p), noise))
    return pd.DataFrame(out, columns=["low", "high", "rows", "mean_prob", "click_rate", "gap", "noise"])


@pytest.mark.formula("6.11")
@pytest.mark.parametrize("bins", [1, 4, 10])
def test_calibration_table_by_loops(bins):
    r = np.random.default_rng(bins)
    p, y = r.random(60)**2, r.integers(2, size=60)
    for label, prob in ((y, p), (torch.tensor(y), torch.tensor(p)), (y.tolist(), p.tolist())):
        pd.testing.assert_frame_equal(predictor.calibration_table(label, prob, bins),
                                      table_by_loops(y, p, bins), rtol=1e-9, atol=1e-12)


def test_calibration_against_scikit_learn():
    calibration_curve = pytest.importorskip("sklearn.calibration").calibration_curve
    r = np.random.default_rng(0)
    p = r.random(300)
    y = r.random(300) < p
    rate, mean = calibration_curve(y, p, n_bins=10)
    table = predictor.calibration_table(y, p).dropna()
    np.testing.assert_allclose(table.click_rate, rate)
    np.testing.assert_allclose(table.mean_prob, mean)


@pytest.mark.formula("6.12")
def test_calibration_error_against_torchmetrics():
    judge = pytest.importorskip("torchmetrics.functional.classification").binary_calibration_error
    g = torch.Generator().manual_seed(0)
    p = torch.rand(500, generator=g)
    y = (torch.rand(500, generator=g) < p**2).long()
    assert predictor.expected_calibration_error(y, p, bins=8) == pytest.approx(judge(p, y, n_bins=8,
        norm="l1").item(), abs=1e-5)


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=40), st.integers(1, 15))
def test_calibration_keeps_the_sums(rows, bins):
    y, p = (np.array(column, dtype=float) for column in zip(*rows))
    table = predictor.calibration_table(y, p, bins)
    assert table.rows.sum() == len(y) and len(table) == bins
    full = table.dropna()
    assert (full.rows*full.mean_prob).sum() == pytest.approx(p.sum(), abs=1e-9)
    assert (full.rows*full.click_rate).sum() == pytest.approx(y.sum(), abs=1e-9)
    assert abs(y.mean() - p.mean()) - 1e-9 <= predictor.expected_calibration_error(y, p, bins) <= 1


def test_noise_is_the_spread_of_the_gap():
    p = np.random.default_rng(0).random(80)
    r = np.random.default_rng(1)
    gaps = np.array([predictor.calibration_table(r.random(80) < p, p, 2).gap for _ in range(400)])
    np.testing.assert_allclose(gaps.std(0), predictor.calibration_table(p > .5, p, 2).noise, rtol=.12)


@pytest.mark.parametrize("label, prob, bins, says", [
    ([1, 0], [.5], 10, "same length"), ([], [], 10, "same length"), ([[1]], [[.5]], 10, "same length"),
    ([1, 0], [.5, 3.], 10, "prob must lie in .* row 1 is 3.0"), ([2], [.5], 10, "label must lie"),
    ([1], [math.nan], 10, "prob must lie"),
    ([1], [.5], 0, "bins must be a whole number of 1 or more"),
    ([1], [.5], 2.5, "bins must be a whole number of 1 or more")])
def test_calibration_refuses(label, prob, bins, says):
    for f in (predictor.calibration_table, predictor.expected_calibration_error, predictor.plot_calibration):
        with pytest.raises(ValueError, match=says): f(label, prob, bins)


def test_calibration_plot():
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("agg")
    _, ax = plt.subplots()
    assert predictor.plot_calibration([0, 1, 1], [.1, .8, .9], ax=ax, name="mine", color="k") is ax
    assert predictor.plot_calibration([0, 1], [.1, .8]).get_xlabel()
    assert ax.get_legend_handles_labels()[1] == ["mine"]
    plt.close("all")


# The posterior of the tastes

def problem(seed, n=12, D=3, scale=1.):
    r = np.random.default_rng(seed)
    X, m, o = scale*r.normal(size=(n, D)), r.normal(size=D), r.normal(size=n) - 1
    y = (r.random(n) < special.expit(o + X @ (m + r.normal(size=D)))).astype(float)
    return X, y, o, m


def plain_log_posterior(theta, X, y, o, m):
    "Log of the two densities as they stand, in plain loops; the constant is kept."
    total = sum(-.5*(a - b)**2 for a, b in zip(theta, m))
    for row, label, shift in zip(X, y, o):
        p = plain_sigmoid(shift + sum(a*b for a, b in zip(row, theta)))
        total += math.log(p if label else 1 - p)
    return total


@pytest.mark.formula("6.14")
def test_log_posterior_by_loops():
    X, y, o, m = problem(0)
    for theta in np.random.default_rng(1).normal(size=(4, 3)):
        got = predictor.log_posterior(*map(f64, (theta, X, y, o, m))).item()
        assert got == pytest.approx(plain_log_posterior(theta, X, y, o, m), rel=1e-9)


@pytest.mark.formula("6.15")
def test_posterior_gradient_by_differences():
    past = problem(1)
    theta = np.array([.3, -1., .5])
    got = predictor.posterior_grad(*map(f64, (theta, *past)))
    np.testing.assert_allclose(got, slope(lambda t: plain_log_posterior(t, *past), theta), rtol=1e-6)


@pytest.mark.formula("6.16")
def test_precision_by_loops():
    X, _, o, _ = problem(2)
    theta = np.array([.3, -1., .5])
    P = np.eye(3)
    for row, shift in zip(X, o):
        p = plain_sigmoid(shift + row @ theta)
        P += p*(1 - p)*np.outer(row, row)
    np.testing.assert_allclose(predictor.posterior_precision(*map(f64, (theta, X, o))), P, rtol=1e-10)


@pytest.mark.formula("6.17")
def test_newton_step_is_the_top_of_the_parabola():
    X, y, o, m = problem(3)
    theta = np.array([.2, .1, -.4])
    p = special.expit(o + X @ theta)
    P, grad = np.eye(3) + X.T @ np.diag(p*(1 - p)) @ X, m - theta + X.T @ (y - p)
    top = optimize.minimize(lambda d: .5*d @ P @ d - grad @ d, np.zeros(3), jac=lambda d: P @ d - grad,
                            tol=1e-12).x
    np.testing.assert_allclose(predictor.newton_step(*map(f64, (theta, X, y, o, m))), theta + top, rtol=1e-6)


@pytest.mark.formula("6.18")
@pytest.mark.parametrize("seed", range(3))
def test_laplace_against_scipy(seed):
    X, y, o, m = problem(seed, n=20, D=4, scale=2.)
    def minus(t): return .5*((t - m)**2).sum() + (np.logaddexp(0, o + X @ t) - y*(o + X @ t)).sum()
    peak = optimize.minimize(minus, m, tol=1e-10).x
    mode, cov = predictor.laplace_posterior(*map(f64, (X, y, o, m)))
    np.testing.assert_allclose(mode, peak, atol=1e-5)
    curvature = slope(lambda t: slope(minus, t, 1e-4), peak, 1e-4)
    np.testing.assert_allclose(cov, np.linalg.inv(curvature), atol=1e-4)


def test_laplace_against_scikit_learn():
    LogisticRegression = pytest.importorskip("sklearn.linear_model").LogisticRegression
    X, y, _, _ = problem(5, n=40)
    fit = LogisticRegression(C=1., fit_intercept=False, tol=1e-10, max_iter=1000).fit(X, y)
    mode, _ = predictor.laplace_posterior(*map(f64, (X, y, np.zeros(40), np.zeros(3))))
    np.testing.assert_allclose(mode, fit.coef_[0], atol=1e-5)


def test_laplace_of_a_batch_and_of_padded_pasts():
    problems = [problem(seed, n=n, D=3, scale=3.) for seed, n in ((0, 4), (1, 9), (2, 1))]
    X, y, o = np.zeros((3, 9, 3)), np.zeros((3, 9)), np.full((3, 9), 5.)
    for k, (a, b, c, _) in enumerate(problems): X[k, :len(b)], y[k, :len(b)], o[k, :len(b)] = a, b, c
    modes, covs = predictor.laplace_posterior(*map(f64, (X, y, o, np.array([p[3] for p in problems]))))
    for k, past in enumerate(problems):
        mode, cov = predictor.laplace_posterior(*map(f64, past))
        torch.testing.assert_close(modes[k], mode, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(covs[k], cov, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 10_000), st.floats(.1, 8), st.floats(-6, 6))
def test_the_peak_is_found_from_anywhere(seed, scale, shift):
    X, y, o, m = problem(seed, n=15, D=2, scale=scale)
    past = list(map(f64, (X, y, o, m + shift)))
    mode, _ = predictor.laplace_posterior(*past)
    assert predictor.posterior_grad(mode, *past).abs().max() < 1e-6


def test_where_full_newton_steps_swing_for_ever():
    past = f64([[3.]]*5), f64([0.]*5), f64([0.]*5), f64([2.])
    theta = past[3]
    for _ in range(50): theta = predictor.newton_step(theta, *past)
    assert predictor.posterior_grad(theta, *past).abs().item() > 1
    mode, _ = predictor.laplace_posterior(*past)
    root = optimize.brentq(lambda t: 2 - t - 15*special.expit(3*t), -5, 5)
    assert mode.item() == pytest.approx(root, abs=1e-9)


def test_laplace_without_a_past_is_the_prior():
    mode, cov = predictor.laplace_posterior(torch.zeros(2, 0, 3), torch.zeros(2, 0), torch.zeros(2, 0),
                                            torch.arange(6.).view(2, 3))
    assert torch.equal(mode, torch.arange(6.).view(2, 3)) and torch.equal(cov, torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize("X, y, o, m", [((4, 2), (3,), (3,), (2,)), ((4, 2), (4,), (3,), (2,)),
                                        ((4, 2), (4,), (4,), (3,)), ((5, 4, 2), (5, 4), (5, 4), (2,))])
def test_laplace_refuses_shapes(X, y, o, m):
    with pytest.raises(ValueError, match="do not fit"):
        predictor.laplace_posterior(*map(torch.zeros, (X, y, o, m)))


# The average of the sigmoid

@pytest.mark.formula("6.19")
def test_probit_average_by_way_of_the_distribution_function():
    kappa = math.sqrt(math.pi/8)
    node, weight = np.polynomial.hermite_e.hermegauss(80)
    for mu, var in ((0., 1.), (2., 24/math.pi), (-3., .5), (1., 0.), (-1., 9.)):
        average = (weight*stats.norm.cdf(kappa*(mu + math.sqrt(var)*node))).sum()/weight.sum()
        expected = plain_sigmoid(stats.norm.ppf(average)/kappa)
        assert predictor.probit_average(f64(mu), f64(var)).item() == pytest.approx(expected, rel=1e-4)


@given(st.floats(-8, 8), st.floats(0, 16))
def test_probit_average_against_quadrature(mu, var):
    node, weight = np.polynomial.hermite_e.hermegauss(100)
    exact = (weight*special.expit(mu + math.sqrt(var)*node)).sum()/weight.sum()
    assert predictor.probit_average(f64(mu), f64(var)).item() == pytest.approx(exact, abs=.02)


def test_probit_average_refuses_a_negative_variance():
    with pytest.raises(ValueError, match="var must be 0 or larger"):
        predictor.probit_average(torch.zeros(2), torch.tensor([1., -1.]))


# The observable ceiling

def little_mall(T=2, K=2, n_users=5, n_items=6, n=60, seed=0, strength=1.5):
    """A mall of the agreed form whose ids are neither 0..n-1 nor in order, and whose log is not in order
    of time."""
    r = np.random.default_rng(seed)
    users = pd.DataFrame(dict(user_id=[f"u{k}" for k in r.permutation(n_users)]))
    items = pd.DataFrame(dict(item_id=100 + 7*r.permutation(n_items)))
    mall = SimpleNamespace(users=users, items=items, scenarios=("home", "cart"),
                           loading=r.normal(size=(2, T)), bias=np.array([-.5, .4]),
                           strength=np.array([strength, .8*strength]),
                           item_vectors=r.normal(size=(n_items, K)),
                           item_effect=r.normal(size=n_items)*.3,
                           prior_mean=r.normal(size=(n_users, T, K))*.5)
    mall.tastes = mall.prior_mean + r.normal(size=mall.prior_mean.shape)
    # the last user has no event
    u, i, s = r.integers(n_users - 1, size=n), r.integers(n_items, size=n), r.integers(2, size=n)
    ell = [logit(mall, mall.tastes[a], b, c) for a, b, c in zip(u, i, s)]
    mall.events = pd.DataFrame(dict(user_id=users.user_id.to_numpy()[u], item_id=items.item_id.to_numpy()[i],
                                    scenario=np.array(mall.scenarios)[s],
                                    timestamp=r.integers(15, size=n),
                                    clicked=(r.random(n) < special.expit(ell)).astype(int)),
                               index=r.permutation(n) + 1000)
    return mall


def logit(mall, taste, i, s):
    "The log-odds of the mall in plain loops; taste is (T, K)."
    total = 0.
    for t, row in enumerate(taste):
        for k, value in enumerate(row): total += mall.loading[s, t]*value*mall.item_vectors[i, k]
    return mall.bias[s] + mall.item_effect[i] + mall.strength[s]*total


def places(mall, event):
    return (mall.users.user_id.tolist().index(event.user_id),
            mall.items.item_id.tolist().index(event.item_id),
            mall.scenarios.index(event.scenario))


def past_of(mall, event):
    return [e for e in mall.events.itertuples() if e.user_id == event.user_id
            and e.timestamp < event.timestamp]


def slow_ceiling(mall, event):
    "The same formula for one event, from scipy's optimiser and plain loops."
    u, i, s = places(mall, event)
    shape, m = mall.prior_mean[u].shape, mall.prior_mean[u].ravel()
    past = [(*places(mall, e)[1:], e.clicked) for e in past_of(mall, event)]
    def minus(theta):
        taste = theta.reshape(shape)
        ell = np.array([logit(mall, taste, j, c) for j, c, _ in past])
        return .5*((theta - m)**2).sum() + (np.logaddexp(0, ell) - ell*[y for _, _, y in past]).sum()
    peak = optimize.minimize(minus, m, tol=1e-9).x
    rows = np.array([[logit(mall, e.reshape(shape), j, c) - logit(mall, 0*e.reshape(shape), j, c)
                      for e in np.eye(len(m))] for j, c, _ in [*past, (i, s, 0)]])
    P = np.eye(len(m))
    for row, (j, c, _) in zip(rows, past):
        p = special.expit(logit(mall, peak.reshape(shape), j, c))
        P += p*(1 - p)*np.outer(row, row)
    mu, var = logit(mall, peak.reshape(shape), i, s), rows[-1] @ np.linalg.solve(P, rows[-1])
    return special.expit(mu/math.sqrt(1 + math.pi*var/8))


@pytest.mark.formula("6.13")
def test_design_rows_by_loops():
    mall = little_mall(T=3)
    x, o = predictor.design_rows(mall, mall.events)
    assert x.shape == (60, 6) and o.shape == (60,)
    for row, shift, event in zip(x, o, mall.events.itertuples()):
        u, i, s = places(mall, event)
        assert shift == pytest.approx(logit(mall, 0*mall.tastes[u], i, s), rel=1e-12)
        assert shift + row @ mall.tastes[u].ravel() == pytest.approx(logit(mall, mall.tastes[u], i, s),
            rel=1e-9)


@pytest.mark.formula("6.20")
def test_ceiling_by_loops():
    mall = little_mall(n=40)
    extra = mall.events.iloc[:2].assign(user_id=mall.users.user_id.iloc[-1], timestamp=99)
    events = pd.concat([mall.events.iloc[::4], extra])
    got = predictor.observable_ceiling(mall, events)
    assert got.dtype == np.float64 and got.shape == (12,)
    np.testing.assert_allclose(got, [slow_ceiling(mall, e) for e in events.itertuples()], atol=2e-5)


def test_ceiling_against_quadrature_over_one_taste():
    "One taste of length 1: the integral over it by brute force, no Gaussian at the peak and no probit."
    mall = little_mall(T=1, K=1, n=80, strength=1.)
    grid = np.linspace(-9, 9, 2001)
    exact = []
    for event in mall.events.itertuples():
        u, i, s = places(mall, event)
        log_p = -.5*(grid - mall.prior_mean[u, 0, 0])**2
        for e in past_of(mall, event):
            _, j, c = places(mall, e)
            p = special.expit(mall.bias[c] + mall.item_effect[j]
                              + mall.strength[c]*mall.loading[c, 0]*mall.item_vectors[j, 0]*grid)
            log_p += np.log(p if e.clicked else 1 - p)
        weight = np.exp(log_p - log_p.max())
        p = special.expit(mall.bias[s] + mall.item_effect[i]
                          + mall.strength[s]*mall.loading[s, 0]*mall.item_vectors[i, 0]*grid)
        exact.append((weight*p).sum()/weight.sum())
    off = np.abs(predictor.observable_ceiling(mall, mall.events) - exact)
    assert off.mean() < .01 and off.max() < .05


def test_ceiling_against_importance_sampling():
    """On the toy mall itself, eight numbers per user: draws from a wide Student t, weighted by prior and
    likelihood."""
    mall = data.toy_mall(n_users=200, n_items=80, n_events=5000, seed=3)
    events = mall.events.iloc[-400::10]
    x_log, o_log = predictor.design_rows(mall, mall.events)
    x_new, o_new = predictor.design_rows(mall, events)
    r, exact = np.random.default_rng(0), []
    for x, o, event in zip(x_new, o_new, events.itertuples()):
        past = ((mall.events.user_id == event.user_id) & (mall.events.timestamp < event.timestamp)).to_numpy()
        X, shift, y, m = x_log[past], o_log[past], mall.events.clicked.to_numpy()[
            past], mall.prior_mean[event.user_id].ravel()
        def minus(t):
            return .5*((t - m)**2).sum() + (np.logaddexp(0, shift + X @ t) - y*(shift + X @ t)).sum()
        fit = optimize.minimize(minus, m)
        proposal = stats.multivariate_t(fit.x, fit.hess_inv, df=5, seed=r)
        theta = proposal.rvs(4000)
        ell = shift + theta @ X.T
        log_w = -.5*((theta - m)**2).sum(1) + (y*ell - np.logaddexp(0, ell)).sum(1) - proposal.logpdf(theta)
        weight = np.exp(log_w - log_w.max())
        assert weight.sum()**2/(weight**2).sum() > 400  # enough draws count
        exact.append((weight*special.expit(o + theta @ x)).sum()/weight.sum())
    off = predictor.observable_ceiling(mall, events) - exact
    assert np.abs(off).mean() < .025 and np.abs(off).max() < .12 and abs(off.mean()) < .01


def test_ceiling_sees_only_the_strict_past():
    mall = little_mall(n=60)
    events = mall.events.sort_values("timestamp")
    full = predictor.observable_ceiling(mall, events)
    for row in (10, 30, 50):
        event = events.iloc[[row]]
        later = mall.events.timestamp >= event.timestamp.item()
        turned = SimpleNamespace(**{**vars(mall),
            "events": mall.events.assign(clicked=np.where(later, 1 - mall.events.clicked,
                                                          mall.events.clicked))})
        assert predictor.observable_ceiling(turned, event)[0] == pytest.approx(full[row], abs=1e-9)
        others = SimpleNamespace(**{**vars(mall),
                                    "events": mall.events[mall.events.user_id == event.user_id.item()]})
        assert predictor.observable_ceiling(others, event)[0] == pytest.approx(full[row], abs=1e-9)


def test_ceiling_does_not_look_at_labels_order_or_index():
    mall = little_mall(n=60)
    before = mall.events.copy()
    full = pd.Series(predictor.observable_ceiling(mall, mall.events), mall.events.index)
    some = mall.events.sample(25, random_state=0).drop(columns="clicked")
    np.testing.assert_allclose(predictor.observable_ceiling(mall, some), full[some.index], atol=1e-9)
    shuffled = SimpleNamespace(**{**vars(mall), "events": mall.events.sample(frac=1, random_state=1)})
    np.testing.assert_allclose(predictor.observable_ceiling(shuffled, some), full[some.index], atol=1e-9)
    pd.testing.assert_frame_equal(mall.events, before)


def test_ceiling_at_its_edges():
    mall = little_mall()
    assert predictor.observable_ceiling(mall, mall.events[:0]).shape == (0,)
    empty = SimpleNamespace(**{**vars(mall), "events": mall.events[:0]})
    x, o = predictor.design_rows(mall, mall.events)
    m = mall.prior_mean.reshape(5, -1)[[places(mall, e)[0] for e in mall.events.itertuples()]]
    prior = special.expit((o + (x*m).sum(1))/np.sqrt(1 + math.pi*(x**2).sum(1)/8))
    np.testing.assert_allclose(predictor.observable_ceiling(empty, mall.events), prior, atol=1e-12)
    # tastes do not matter: nothing to learn
    still = SimpleNamespace(**{**vars(mall), "strength": np.zeros(2)})
    np.testing.assert_allclose(predictor.observable_ceiling(still, mall.events), special.expit(o), atol=1e-12)


def test_ceiling_tends_to_the_truth():
    "With very many events the posterior closes in on the tastes."
    mall = little_mall(T=1, K=1, n_users=2, n=4000)
    mall.item_vectors = np.sign(mall.item_vectors)
    u = np.zeros(4000, int)
    x, o = predictor.design_rows(mall, mall.events.assign(user_id=mall.users.user_id[0]))
    p = special.expit(o + x @ mall.tastes[0].ravel())
    mall.events = mall.events.assign(user_id=mall.users.user_id.to_numpy()[u], timestamp=np.arange(4000),
                                     clicked=(np.random.default_rng(0).random(4000) < p).astype(int))
    assert np.abs(predictor.observable_ceiling(mall, mall.events.iloc[-50:]) - p[-50:]).max() < .08


@pytest.mark.parametrize("column, value", [("user_id", "nobody"), ("item_id", -1), ("scenario", "roof")])
def test_ceiling_names_what_is_unknown(column, value):
    mall = little_mall()
    events = mall.events.copy()
    events.iloc[3, events.columns.get_loc(column)] = value
    with pytest.raises(ValueError, match=f"column '{column}', row 3: .*{value}"):
        predictor.observable_ceiling(mall, events)
    if column != "user_id":
        with pytest.raises(ValueError, match=f"column '{column}', row 3"): predictor.design_rows(mall, events)


def test_ceiling_lies_between_the_prior_and_the_truth_and_is_calibrated():
    mall = data.toy_mall(n_users=800, n_items=200, n_events=20_000, seed=1)
    rows = mall.events.iloc[-8000:]
    first_day = SimpleNamespace(**{**vars(mall), "events": mall.events[:0]})
    y = f64(rows.clicked.to_numpy(float))
    prior, ceiling, truth = (f64(p) for p in (predictor.observable_ceiling(first_day, rows),
                                              predictor.observable_ceiling(mall, rows), mall.truth(rows)))
    assert predictor.bce(truth, y) + .02 < predictor.bce(ceiling, y) < predictor.bce(prior, y) - .02
    assert predictor.expected_calibration_error(y, ceiling) < .04


def test_ceiling_of_25_000_rows_in_seconds():
    mall = data.toy_mall()
    start = time.process_time()
    p = predictor.observable_ceiling(mall, mall.events.iloc[-25_000:])
    assert time.process_time() - start < 20
    assert ((p > 0) & (p < 1)).all()
