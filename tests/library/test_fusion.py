"""Second opinions on notebook 05: plain loops, SymPy, enumeration and finite differences."""
import itertools
import math

import mpmath
import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from multiscene_rec import fusion

WEIGHTED = ("attention", "mean", "own")
KINDS = (*WEIGHTED, "concat")


def case(B=7, S=4, d=6, d_query=3, seed=0, dtype=torch.float64):
    "Random inputs; row 0 has no history, row 1 has only scenario 2, row 2 lacks its target."
    g = torch.Generator().manual_seed(seed)
    h, query = torch.randn(B, S, d, generator=g, dtype=dtype), torch.randn(B, d_query, generator=g,
        dtype=dtype)
    present, scenario = torch.rand(B, S, generator=g) < .6, torch.randint(S, (B,), generator=g)
    if S == 4:
        present[0], present[1] = False, torch.tensor([False, False, True, False])
        present[2], present[2, scenario[2]] = True, False
    return h, present, query, scenario


def build(kind, S=4, d=6, d_query=3, dtype=torch.float64, seed=1):
    torch.manual_seed(seed)
    return fusion.make_fusion(kind, d, S, d_query).to(dtype)


def loop_softmax(e, m):
    top = sum(math.exp(x) for x, keep in zip(e, m) if keep)
    return [math.exp(x) / top if keep else 0. for x, keep in zip(e, m)]


def loop_attention_weights(att, h, present, query, scenario):
    E, Wq, Wk = att.target.weight.tolist(), att.query.weight.tolist(), att.key.weight.T.tolist()
    rows = []
    for hs, m, q, t in zip(h.tolist(), present.tolist(), query.tolist(), scenario.tolist()):
        c = q + E[t]
        asked = [sum(w*x for w, x in zip(row, c)) for row in Wq]
        keys = [[sum(w*x for w, x in zip(row, one)) for row in Wk] for one in hs]
        rows.append(loop_softmax([sum(a*b for a, b in zip(asked, k)) / math.sqrt(len(asked)) for k in keys],
                                 m))
    return torch.tensor(rows, dtype=torch.float64)


def loop_z(fus, h, alpha):
    Wv, z0 = fus.value.weight.tolist(), fus.fallback.weight[0].tolist()
    out = []
    for hs, a in zip(h.tolist(), alpha.tolist()):
        if not any(a):
            out.append(z0)
            continue
        # W_v inside the sum, as in the books
        v = [[sum(w*x for w, x in zip(row, one)) for row in Wv] for one in hs]
        out.append([sum(a[s]*v[s][j] for s in range(len(a))) for j in range(len(z0))])
    return torch.tensor(out, dtype=torch.float64)


# ---- each numbered formula, computed another way

@pytest.mark.formula("5.1")
@pytest.mark.parametrize("B,S,d,seed", [(7, 4, 6, 0), (1, 1, 1, 1), (5, 2, 8, 2)])
def test_weighted_sum_against_loops(B, S, d, seed):
    att = build("attention", S, d)
    h, present, query, scenario = case(B, S, d, seed=seed)
    z, alpha = att(h, present, query, scenario)
    expected = loop_attention_weights(att, h, present, query, scenario)
    torch.testing.assert_close(alpha, expected)
    torch.testing.assert_close(z, loop_z(att, h, expected))


@pytest.mark.formula("5.2")
def test_mean_weights_against_loops():
    fus, inputs = build("mean"), case()
    expected = torch.tensor([[m / sum(row) if m else 0. for m in row] for row in inputs[1].tolist()],
                            dtype=torch.float64)
    torch.testing.assert_close(fus.weights(*inputs), expected)
    z, alpha = fus(*inputs)
    torch.testing.assert_close(alpha, expected)
    torch.testing.assert_close(z, loop_z(fus, inputs[0], expected))


@pytest.mark.formula("5.3")
def test_own_weights_against_loops():
    fus, inputs = build("own"), case()
    expected = torch.tensor([[float(m and s == t) for s, m in enumerate(row)]
                             for row, t in zip(inputs[1].tolist(), inputs[3].tolist())], dtype=torch.float64)
    assert 0 < expected.sum() < len(expected)
    torch.testing.assert_close(fus.weights(*inputs), expected)
    z, alpha = fus(*inputs)
    torch.testing.assert_close(alpha, expected)
    torch.testing.assert_close(z, loop_z(fus, inputs[0], expected))


@pytest.mark.formula("5.4")
def test_concat_against_loops():
    fus, (h, present, query, scenario) = build("concat"), case()
    W, f, b = (fus.project.weight.detach().numpy(), fus.flags.weight.detach().numpy(),
               fus.project.bias.detach().numpy())
    expected = []
    for hs, m in zip(h.numpy(), present.numpy()):
        z = b.copy()
        for s in range(4):
            if m[s]: z += W[:, 6*s:6*s + 6] @ hs[s] + f[:, s]
        expected.append(z)
    z, alpha = fus(h, present, query, scenario)
    assert alpha is None
    torch.testing.assert_close(z, torch.tensor(np.array(expected)))


@pytest.mark.formula("5.5")
@pytest.mark.parametrize("a,c", [((1, 2, 3), (3, 1, 0)), ((.25,)*4, (0, 1, 0, 0)), ((.5, .5), (1, -.2))])
def test_blend_r2_against_regression_on_the_covariance(a, c):
    # covariance of all S·d coordinates is the identity: least squares in closed form, on matrices written out
    d, u = 3, np.array([.3, -2., 1.])
    blend, outcome = np.kron(a, np.eye(d)), np.kron(c, u)
    cov, cross = blend @ blend.T, blend @ outcome
    expected = cross @ np.linalg.solve(cov, cross) / (outcome @ outcome)
    assert fusion.blend_r2(torch.tensor(a, dtype=torch.float64),
                           torch.tensor(c, dtype=torch.float64)) == pytest.approx(expected, abs=1e-12)


def test_blend_r2_against_a_sample():
    g = torch.Generator().manual_seed(0)
    h, a, c = torch.randn(40_000, 3, 2, generator=g), torch.tensor([.5, .3, .2]), torch.tensor([1., 0., -.5])
    z, y = torch.einsum("s,nsd->nd", a, h), torch.einsum("s,nsd->n", c, h)
    left = y - z @ torch.linalg.lstsq(z, y.unsqueeze(1)).solution.squeeze(1)
    assert fusion.blend_r2(a, c) == pytest.approx(1 - (left.var() / y.var()).item(), abs=.01)


@pytest.mark.formula("5.6")
def test_scores_against_loops():
    h, _, _, _ = case()
    q = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = [[sum(a*b for a, b in zip(qi, k)) / math.sqrt(6) for k in ks] for qi,
                ks in zip(q.tolist(), h.tolist())]
    torch.testing.assert_close(fusion.scaled_scores(q, h), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.formula("5.7")
@pytest.mark.parametrize("d", [1, 2, 4])
@pytest.mark.parametrize("scaled", [True, False])
def test_score_std_against_enumeration(d, scaled):
    # coordinates ±σ with equal chance: mean 0, standard deviation σ; every case counted once
    products = [sum(q*k for q, k in zip(qs, ks)) / (math.sqrt(d) if scaled else 1)
                for qs in itertools.product((-2., 2.), repeat=d) for ks in itertools.product((-.7, .7),
                    repeat=d)]
    assert fusion.score_std(d, 2., .7, scaled=scaled) == pytest.approx(np.std(products), rel=1e-12)


@pytest.mark.formula("5.8")
def test_masked_softmax_against_loops():
    g = torch.Generator().manual_seed(5)
    e, present = 3 * torch.randn(20, 5, generator=g, dtype=torch.float64), torch.rand(20, 5, generator=g) < .5
    present[0], present[1] = True, torch.tensor([False, True, False, False, False])
    present = present[present.any(1)]
    e = e[:len(present)]
    expected = torch.tensor([loop_softmax(x, m) for x, m in zip(e.tolist(), present.tolist())],
                            dtype=torch.float64)
    torch.testing.assert_close(fusion.masked_softmax(e, present), expected)


@pytest.mark.formula("5.9")
def test_jacobian_against_sympy():
    e = sympy.symbols("e0:3")
    alpha = [sympy.exp(x) / sum(map(sympy.exp, e)) for x in e]
    at = dict(zip(e, (sympy.Rational(1, 3), sympy.Rational(-1, 2), 1)))
    J = [[float(sympy.diff(a, x).subs(at)) for x in e] for a in alpha]
    weights = torch.tensor([float(a.subs(at)) for a in alpha], dtype=torch.float64)
    torch.testing.assert_close(fusion.softmax_jacobian(weights), torch.tensor(J, dtype=torch.float64))


@pytest.mark.formula("5.10")
def test_attention_weights_against_loops():
    att, inputs = build("attention"), case()
    torch.testing.assert_close(att.weights(*inputs), loop_attention_weights(att, *inputs))


def numeric(f, x, eps=1e-6):
    "Central differences of a number with respect to every entry of x."
    out = torch.zeros_like(x)
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[i] = eps
        out.view(-1)[i] = (f(x + step.view_as(x)) - f(x - step.view_as(x))) / (2 * eps)
    return out


@pytest.mark.formula("5.11")
def test_fusion_backward_against_differences():
    g = torch.Generator().manual_seed(6)
    e, v, up = (torch.randn(*shape, generator=g, dtype=torch.float64)
                for shape in ((2, 3), (2, 3, 4), (2, 4)))
    loss = lambda e, v: float(
        (torch.tensor(np.exp(e) / np.exp(e).sum(1, keepdims=True)).unsqueeze(-1) * v).sum(1).mul(up).sum())
    alpha = torch.tensor(np.exp(e.numpy()) / np.exp(e.numpy()).sum(1, keepdims=True))
    g_e, g_v = fusion.fusion_backward(alpha, v, up)
    torch.testing.assert_close(g_e, numeric(lambda x: loss(x.numpy(), v), e), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(g_v, numeric(lambda x: loss(e.numpy(), x), v), rtol=1e-6, atol=1e-8)


@pytest.mark.formula("5.12")
def test_scores_backward_against_differences():
    g = torch.Generator().manual_seed(7)
    q, k, up = (torch.randn(*shape, generator=g, dtype=torch.float64)
                for shape in ((2, 4), (2, 3, 4), (2, 3)))
    loss = lambda q, k: float(sum(up[b, s] * (q[b] @ k[b, s]) / 2 for b in range(2) for s in range(3)))
    g_q, g_k = fusion.scores_backward(q, k, up)
    torch.testing.assert_close(g_q, numeric(lambda x: loss(x, k), q), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(g_k, numeric(lambda x: loss(q, x), k), rtol=1e-6, atol=1e-8)


@pytest.mark.formula("5.13")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d,S,d_query", [(4, 1, 2), (16, 5, 7), (8, 4, 1)])
def test_parameters_by_counting(kind, d, S, d_query):
    counted = sum(p.numel() for p in fusion.make_fusion(kind, d, S, d_query).parameters())
    assert fusion.fusion_parameters(kind, d, S, d_query) == counted


# ---- gradients

@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    fus, (h, present, query, scenario) = build(kind, d=3), case(d=3)
    run = lambda h, query: fus(h, present, query, scenario)[0]
    assert torch.autograd.gradcheck(run, (h.requires_grad_(), query.requires_grad_()))


def test_masked_softmax_second_order():
    e, present = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.tensor([[1, 1, 1, 1],
        [1, 0, 1, 0], [0]*4]).bool()
    assert torch.autograd.gradcheck(lambda e: fusion.masked_softmax(e, present), e)
    assert torch.autograd.gradgradcheck(lambda e: fusion.masked_softmax(e, present), e)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rubbish", [0., 1e30, float("inf"), float("nan")])
def test_absent_content_never_matters(kind, dtype, rubbish):
    fus, (h, present, query, scenario) = build(kind, dtype=dtype), case(dtype=dtype)
    clean = fus(h, present, query, scenario)[0]
    dirty = h.masked_fill(~present.unsqueeze(-1), rubbish).requires_grad_()
    z, _ = fus(dirty, present, query, scenario)
    assert torch.equal(z, clean) and z.dtype == dtype
    z.float().square().sum().backward()
    assert dirty.grad.isfinite().all() and not dirty.grad[~present].any()
    assert all(p.grad.isfinite().all() for p in fus.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_present_is_one_learned_vector(kind):
    fus, (h, present, query, scenario) = build(kind), case()
    z, alpha = fus(h, torch.zeros_like(present), query, scenario)
    assert torch.equal(z, z[:1].expand_as(z)) and z.any()
    assert alpha is None or not alpha.any()
    h.requires_grad_()
    z, _ = fus(h, torch.zeros_like(present), query, scenario)
    z.sum().backward()
    learned = fus.project.bias if kind == "concat" else fus.fallback.weight[0]
    torch.testing.assert_close(z[0], learned)
    grad = fus.project.bias.grad if kind == "concat" else fus.fallback.weight.grad[0]
    torch.testing.assert_close(grad, torch.full_like(grad, len(h)))
    assert h.grad is not None and not h.grad.any()


def test_nan_in_a_present_history_is_not_hidden():
    for kind in KINDS:
        h, present, query, scenario = case()
        h[3], present[3] = float("nan"), True
        assert build(kind)(h, present, query, scenario)[0][3].isnan().all()


# ---- limits and symmetries

def test_weights_sum_to_one_or_zero():
    for kind in WEIGHTED:
        h, present, query, scenario = case(B=200, seed=9)
        _, alpha = build(kind)(h, present, query, scenario)
        some = present.gather(1, scenario.unsqueeze(1)).squeeze(1) if kind == "own" else present.any(1)
        torch.testing.assert_close(alpha.sum(1), some.double())
        assert (alpha >= 0).all() and not alpha[~present].any()


@pytest.mark.parametrize("kind", ("attention", "mean"))
def test_order_of_the_histories_does_not_matter(kind):
    fus, (h, present, query, scenario) = build(kind), case()
    z, alpha = fus(h, present, query, scenario)
    for order in itertools.permutations(range(4)):
        z2, alpha2 = fus(h[:, order], present[:, order], query, scenario)
        torch.testing.assert_close(z2, z)
        torch.testing.assert_close(alpha2, alpha[:, order])


def test_attention_contains_mean_and_own():
    att, mean, own = (build(kind) for kind in ("attention", "mean", "own"))
    mean.load_state_dict(att.state_dict(), strict=False), own.load_state_dict(att.state_dict(), strict=False)
    h, present, query, scenario = case(d=6)
    nn.init.zeros_(att.query.weight)
    torch.testing.assert_close(att(h, present, query, scenario), mean(h, present, query, scenario))
    # names in the last four coordinates; the question is a thousand times the target's name
    h = torch.cat([h[..., :2], torch.eye(4, dtype=h.dtype).expand(7, 4, 4)], 2)
    att.target.weight.data = 1000 * torch.eye(4, 6, dtype=h.dtype).roll(2, 1)
    att.query.weight.data = torch.cat([torch.zeros(6, 3), torch.eye(6)], 1).double()
    nn.init.eye_(att.key.weight)
    here = present.gather(1, scenario.unsqueeze(1)).squeeze(1)
    assert here.any()
    for a, b in zip(att(h, present, query, scenario), own(h, present, query, scenario)):
        torch.testing.assert_close(a[here], b[here])


def test_one_present_gets_all_and_teaches_no_score():
    att, (h, _, query, scenario) = build("attention"), case()
    for s in range(4):
        att.zero_grad()
        present = torch.zeros(7, 4).bool()
        present[:, s] = True
        z, alpha = att(h, present, query, scenario)
        assert torch.equal(alpha, present.double())
        torch.testing.assert_close(z, h[:, s] @ att.value.weight.T)
        z.square().sum().backward()
        assert att.query.weight.grad.abs().max() < 1e-12 and att.value.weight.grad.any()


def test_single_scenario_reduces_to_own():
    own, h, query = build("own", S=1), torch.randn(5, 1, 6, dtype=torch.float64), torch.randn(5, 3,
        dtype=torch.float64)
    present, scenario = torch.tensor([[1], [1], [0], [1], [0]]).bool(), torch.zeros(5).long()
    expected = torch.where(present, h[:, 0] @ own.value.weight.T, own.fallback.weight)
    for kind in WEIGHTED:
        fus = build(kind, S=1, seed=2)
        fus.load_state_dict(own.state_dict(), strict=False)
        torch.testing.assert_close(fus(h, present, query, scenario)[0], expected)
    concat = build("concat", S=1)
    concat.project.weight.data, concat.project.bias.data = own.value.weight.data, own.fallback.weight.data[0]
    concat.flags.weight.data = -own.fallback.weight.data.T
    torch.testing.assert_close(concat(h, present, query, scenario)[0], expected)


def test_fused_vector_stays_inside_its_histories():
    for kind in ("attention", "mean"):
        fus, (h, present, query, scenario) = build(kind), case(B=100, seed=11)
        present[:, 0] = True
        nn.init.eye_(fus.value.weight)
        z, _ = fus(h, present, query, scenario)
        high = h.masked_fill(~present.unsqueeze(-1), -math.inf).amax(1)
        low = h.masked_fill(~present.unsqueeze(-1), math.inf).amin(1)
        assert (z <= high + 1e-12).all() and (z >= low - 1e-12).all()


def test_temperature_and_removal():
    e, all_there = torch.tensor([.3, 2., -1., 1.9], dtype=torch.float64), torch.ones(4).bool()
    torch.testing.assert_close(fusion.masked_softmax(e / 1e9, all_there),
                               torch.full((4,), .25, dtype=torch.float64))
    torch.testing.assert_close(fusion.masked_softmax(e / 1e-4, all_there),
                               torch.tensor([0, 1., 0, 0], dtype=torch.float64))
    alpha = fusion.masked_softmax(e, all_there)
    for s in range(4):
        rest = torch.arange(4) != s
        torch.testing.assert_close(fusion.masked_softmax(e, rest)[rest], alpha[rest] / (1 - alpha[s]))
    torch.testing.assert_close(fusion.masked_softmax(e - 1e6, all_there), alpha)


def test_huge_scores_do_not_overflow():
    e = torch.tensor([[1e30, -1e30, 0.], [-1e30, -1e30, 5.]], requires_grad=True)
    alpha = fusion.masked_softmax(e, torch.tensor([[True, True, True], [True, True, False]]))
    torch.testing.assert_close(alpha, torch.tensor([[1., 0, 0], [.5, .5, 0]]))
    alpha.square().sum().backward()
    assert e.grad.isfinite().all()


# ---- infinite scores

def limit_of_softmax(e, m):
    """What the weights tend to when infinite scores grow: a million stands for infinity, in numbers of any
    size."""
    far = {math.inf: mpmath.mpf(10)**6, -math.inf: -mpmath.mpf(10)**6}
    grown = [mpmath.exp(far.get(x, mpmath.mpf(x))) if keep else mpmath.mpf(0) for x, keep in zip(e, m)]
    return [float(x / sum(grown)) if any(m) else 0. for x in grown]


SCORES = st.one_of(st.sampled_from([math.inf, -math.inf]), st.floats(-50, 50))


ROWS = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=6)


@given(ROWS, st.sampled_from([torch.float32, torch.float64]))
def test_infinite_scores_get_the_limits(row, dtype):
    e, present = torch.tensor([x for x, _ in row], dtype=dtype), torch.tensor([m for _, m in row])
    expected = torch.tensor(limit_of_softmax(e.tolist(), present.tolist()), dtype=dtype)
    torch.testing.assert_close(fusion.masked_softmax(e, present), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_infinite_scores_beside_finite_rows(dtype):
    inf = math.inf
    rows = [[inf, 1, 2], [inf, inf, 0], [-inf, 1, 1], [-inf, -inf, -inf], [-inf, 5, 5], [1, 2, 3]]
    e = torch.tensor(rows, dtype=dtype, requires_grad=True)
    present = torch.tensor([[1, 1, 1]]*4 + [[1, 0, 0], [1, 1, 1]]).bool()
    alpha = fusion.masked_softmax(e, present)
    third = [1/3, 1/3, 1/3]
    exact = [[1, 0, 0], [.5, .5, 0], [0, .5, .5], third, [1, 0, 0], loop_softmax([1, 2, 3], [1, 1, 1])]
    torch.testing.assert_close(alpha, torch.tensor(exact, dtype=alpha.dtype))
    alpha.square().sum().backward()
    assert e.grad.isfinite().all() and e.grad[5].any()
    alone = e.detach()[5:].requires_grad_()
    fusion.masked_softmax(alone, present[5:]).square().sum().backward()
    assert torch.equal(e.grad[5:], alone.grad)


def test_a_score_that_is_nan_is_not_hidden():
    assert fusion.masked_softmax(torch.tensor([1., float("nan"), math.inf]),
                                 torch.ones(3).bool()).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_finite_scores_keep_every_bit(dtype):
    def before(e, present): # as it was before infinite scores were thought of
        wide = torch.promote_types(e.dtype, torch.float32)
        return e.to(wide).masked_fill(~present, torch.finfo(wide).min).softmax(-1).masked_fill(~present, 0)
    g = torch.Generator().manual_seed(12)
    size = 10.**torch.randint(-3, 30, (400, 1), generator=g)
    e = (torch.randn(400, 5, generator=g) * size).to(dtype)
    present, up = torch.rand(400, 5, generator=g) < .6, torch.randn(400, 5, generator=g)
    grads = []
    for f in (before, fusion.masked_softmax):
        x = e.clone().requires_grad_()
        (f(x, present) * up).sum().backward()
        grads.append(x.grad)
    assert torch.equal(before(e, present), fusion.masked_softmax(e, present)) and torch.equal(*grads)


def test_softmax_is_exported_whole():
    class Weights(nn.Module):
        def forward(self, e, present): return fusion.masked_softmax(e, present)
    e, present = torch.tensor([[math.inf, 1.], [0., 2.]]), torch.tensor([[True, True], [True, False]])
    exported = torch.export.export(Weights(), (e, present)).module()
    torch.testing.assert_close(exported(e, present), torch.tensor([[1., 0.], [1., 0.]]))


def test_jacobian_rows_sum_to_zero_and_batches():
    alpha = torch.rand(3, 2, 5, dtype=torch.float64).softmax(-1)
    J = fusion.softmax_jacobian(alpha)
    assert J.shape == (3, 2, 5, 5)
    torch.testing.assert_close(J.sum(-1), torch.zeros(3, 2, 5, dtype=torch.float64))
    torch.testing.assert_close(J, J.mT)
    assert (torch.linalg.eigvalsh(J) > -1e-12).all()


# ---- precision, compilers, layers

@pytest.mark.parametrize("kind", KINDS)
def test_bf16_autocast(kind):
    fus, inputs = build(kind, dtype=torch.float32), case(dtype=torch.float32)
    exact, alpha = fus(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, rough = fus(*inputs)
    torch.testing.assert_close(z.float(), exact, atol=.03, rtol=.03)
    z.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in fus.parameters() if p.grad is not None)
    if alpha is not None:
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough.sum(1), alpha.sum(1), atol=1e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiles_in_one_graph(kind):
    fus, (h, present, query, scenario) = build(kind, dtype=torch.float32), case(B=16, dtype=torch.float32)
    compiled = torch.compile(fus, backend="aot_eager", fullgraph=True)
    for n in (16, 9): # the last batch of an epoch is shorter
        part = (h[:n], present[:n], query[:n], scenario[:n])
        fus.zero_grad()
        fus(*part)[0].square().sum().backward()
        expected = [p.grad.clone() for p in fus.parameters() if p.grad is not None]
        fus.zero_grad()
        z, _ = compiled(*part)
        torch.testing.assert_close(z, fus(*part)[0])
        z.square().sum().backward()
        for a, b in zip((p.grad for p in fus.parameters() if p.grad is not None), expected):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_no_bare_parameters(kind):
    for module in build(kind).modules():
        if list(module.parameters(recurse=False)):
            assert isinstance(module, (nn.Linear, nn.Embedding)), module


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch(kind):
    fus, (h, present, query, scenario) = build(kind), case()
    assert fus(h[:0], present[:0], query[:0], scenario[:0])[0].shape == (0, 6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", KINDS)
def test_gpu_agrees(kind):
    fus, inputs = build(kind, dtype=torch.float32), case(dtype=torch.float32)
    expected = fus(*inputs)
    got = fus.to("cuda")(*(x.to("cuda") for x in inputs))
    for a, b in zip(got, expected):
        if b is not None: torch.testing.assert_close(a.cpu(), b, atol=1e-4, rtol=1e-4)


# ---- fusions by name

@pytest.fixture
def table(monkeypatch):
    "The table of fusions, for a test that adds to it."
    monkeypatch.setattr(fusion, "FUSIONS", dict(fusion.FUSIONS))
    return fusion.FUSIONS


def test_the_course_knows_its_fusions_by_name():
    assert fusion.fusion_names()[:4] == ("mean", "own", "concat", "attention")
    for name, kind in fusion.FUSIONS.items():
        assert issubclass(kind, fusion.Fusion) and type(fusion.make_fusion(name, 4, 2, 3)) is kind


def a_user_defines(base, **name):
    "As a cell of a notebook does, each time it runs."
    class Largest(base, **name):
        def weights(self, h, present, query, scenario):
            size = h.abs().sum(-1).masked_fill(~present, -1)
            return (present & (size == size.amax(1, keepdim=True))).to(h.dtype)
    return Largest


def test_a_users_fusion_is_built_by_its_name(table):
    kind, names = a_user_defines(fusion.WeightedFusion, name="largest"), fusion.fusion_names()
    assert names[-1] == "largest" and names.count("largest") == 1
    h, present, query, scenario = case()
    torch.manual_seed(1)
    fus = fusion.make_fusion("largest", 6, 4, 3).double()
    assert type(fus) is kind
    z, alpha = fus(h, present, query, scenario)
    expected = torch.zeros(7, 4, dtype=torch.float64)
    for b in range(7):
        there = [s for s in range(4) if present[b, s]]
        if there: expected[b, max(there, key=lambda s: sum(map(abs, h[b, s].tolist())))] = 1
    assert torch.equal(alpha, expected)
    torch.testing.assert_close(z, loop_z(fus, h, expected))


def test_a_cell_that_runs_again_takes_the_name_over(table):
    first, second = (a_user_defines(fusion.WeightedFusion, name="largest") for _ in range(2))
    assert first is not second and type(fusion.make_fusion("largest", 6, 4, 3)) is second
    assert fusion.fusion_names().count("largest") == 1


def test_a_class_without_a_name_is_in_no_table(table):
    before = fusion.fusion_names()
    for base in (fusion.WeightedFusion, fusion.MeanFusion): # a name is not inherited: the mean stays the mean
        a_user_defines(base)
        assert fusion.fusion_names() == before and fusion.FUSIONS["mean"] is fusion.MeanFusion
    assert not {"Fusion", "WeightedFusion", "weighted_fusion"} & set(before)


def test_a_fusion_of_ones_own_need_not_be_a_weighted_sum(table):
    class Highest(fusion.Fusion, name="highest"):
        def forward(self, h, present, query, scenario):
            return h.masked_fill(~present.unsqueeze(-1), 0).amax(1), None
    h, present, query, scenario = case()
    fus = fusion.make_fusion("highest", 6, 4, 3)
    assert (fus.d, fus.n_scenarios, fus.d_query) == (6, 4, 3)
    assert torch.equal(fus(h, present, query, scenario)[0][1], h[1, 2].clamp(min=0))
    with pytest.raises(ValueError, match="d_query must be a whole number"):
        fusion.make_fusion("highest", 6, 4, 0)


def test_names_that_are_taken(table):
    for name in ("mean", "attention"):
        says = rf"the name '{name}' belongs to multiscene_rec\.fusion\..*: write class Largest\(Fusion, name="
        with pytest.raises(ValueError, match=says): a_user_defines(fusion.WeightedFusion, name=name)
    for name in ("none", ""):
        says = f"the name '{name}' means that there is no fusion"
        with pytest.raises(ValueError, match=says): a_user_defines(fusion.WeightedFusion, name=name)
    assert fusion.FUSIONS == table and "none" not in table


def test_an_unknown_name_is_told_what_there_is(table):
    a_user_defines(fusion.WeightedFusion, name="largest")
    says = "fusion 'sum' is unknown; choose from mean, own, concat, attention.*, largest$"
    with pytest.raises(ValueError, match=says): fusion.make_fusion("sum", 6, 4, 3)


# ---- errors

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change,message", [
    (dict(h=lambda h: h[..., :5]), "axis 'd': expected 6, got 5"),
    (dict(h=lambda h: h[:, :3]), "axis 'S': expected 4, got 3"),
    (dict(h=lambda h: h[0]), "expected 3 axes"),
    (dict(present=lambda m: m[:, :3]), "axis 'S': expected 4, got 3"),
    (dict(present=lambda m: m[:5]), "axis 'B': expected 7, got 5"),
    (dict(present=lambda m: m.float()), "use present.bool"),
    (dict(query=lambda q: q[:, :2]), "axis 'd_query': expected 3, got 2"),
    (dict(query=lambda q: q[:6]), "axis 'B': expected 7, got 6"),
    (dict(scenario=lambda t: t[:6]), "axis 'B': expected 7, got 6"),
    (dict(scenario=lambda t: t.unsqueeze(1)), "expected 1 axes"),
    (dict(scenario=lambda t: t.int()), "use scenario.long"),
    (dict(scenario=lambda t: t + 4), r"scenario ids must lie in 0\.\.3, got [4-7]"),
    (dict(scenario=lambda t: t - 5), r"scenario ids must lie in 0\.\.3, got -"),
])
def test_errors_name_the_axis(kind, change, message):
    inputs = dict(zip(("h", "present", "query", "scenario"), case()))
    for name, f in change.items(): inputs[name] = f(inputs[name])
    with pytest.raises(ValueError, match=message): build(kind)(**inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes,name", [((0, 4, 3), "d"), ((6, 0, 3), "n_scenarios"), ((6, 4, 0), "d_query"),
                                        ((6., 4, 3), "d"), ((True, 4, 3), "d")])
def test_errors_of_sizes(kind, sizes, name):
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number"): fusion.make_fusion(kind, *sizes)
    with pytest.raises(ValueError, match=rf"^{name} must be a whole number"):
        fusion.fusion_parameters(kind, *sizes)


def test_errors_of_functions():
    says = "covers attention, mean, concat and own, not 'sum': build the fusion and count its parameters"
    with pytest.raises(ValueError, match=says): fusion.fusion_parameters("sum", 6, 4, 3)
    with pytest.raises(ValueError, match="must have the same shape"):
        fusion.masked_softmax(torch.zeros(2, 3), torch.ones(2, 4).bool())
    with pytest.raises(ValueError, match="use present.bool"):
        fusion.masked_softmax(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match="axis 'd'"):
        fusion.scaled_scores(torch.zeros(2, 3), torch.zeros(2, 5, 4))
    with pytest.raises(ValueError, match="axis 'S'"):
        fusion.fusion_backward(torch.zeros(2, 3), torch.zeros(2, 5, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="axis 'd'"):
        fusion.fusion_backward(torch.zeros(2, 5), torch.zeros(2, 5, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="axis 'S'"):
        fusion.scores_backward(torch.zeros(2, 4), torch.zeros(2, 5, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="axis of scenarios"): fusion.softmax_jacobian(torch.tensor(1.))
    with pytest.raises(ValueError, match="d must be 1 or more"): fusion.score_std(0)
    with pytest.raises(ValueError, match="axis 'S'"): fusion.blend_r2(torch.ones(3), torch.ones(4))
    with pytest.raises(ValueError, match="not 0"): fusion.blend_r2(torch.zeros(3), torch.ones(3))
