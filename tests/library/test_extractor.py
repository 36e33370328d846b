"""Second opinions on notebook 04: loops, SymPy, integrals and one-hot matrices instead of the module's own
tensor code."""
import math
from itertools import product

import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import nn

from multiscene_rec import extractor


def layer_in_loops(x, W, b):
    "ReLU(W x + b) for lists of lists."
    return [[max(0.0, sum(w*v for w, v in zip(Wj, row)) + bj) for Wj, bj in zip(W, b)] for row in x]


def problem(B=6, p=4, d=3, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return [torch.randn(*s, generator=gen, dtype=torch.float64) for s in ((B, p), (d, p), (d,), (B, d))]


# --- the layer and its gradients

@pytest.mark.formula("4.1")
@pytest.mark.parametrize("widths", [(3,), (5, 2), (4, 3, 2)])
def test_extractor_against_loops(widths):
    torch.manual_seed(1)
    model = extractor.ReLUExtractor(4, widths).double()
    for layer in model.layers: nn.init.normal_(layer.bias)
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    want = x.reshape(-1, 4).tolist()
    for layer in model.layers: want = layer_in_loops(want, layer.weight.tolist(), layer.bias.tolist())
    torch.testing.assert_close(model(x), torch.tensor(want, dtype=torch.float64).view(3, 2, -1))


def gradients_by_loops(x, W, b, g):
    "The chain rule, one scalar at a time."
    (B, p), d = x.shape, len(W)
    dW, db, dx = np.zeros((d, p)), np.zeros(d), np.zeros((B, p))
    for r, j in product(range(B), range(d)):
        if sum(W[j, i].item()*x[r, i].item() for i in range(p)) + b[j].item() <= 0: continue
        db[j] += g[r, j].item()
        for i in range(p):
            dW[j, i] += g[r, j].item()*x[r, i].item()
            dx[r, i] += g[r, j].item()*W[j, i].item()
    return [torch.tensor(t) for t in (dW, db, dx)]


@pytest.mark.parametrize("part", [pytest.param(0, marks=pytest.mark.formula("4.2")),
    pytest.param(1, marks=pytest.mark.formula("4.3")), pytest.param(2, marks=pytest.mark.formula("4.4"))])
def test_gradient_against_loops(part):
    args = problem()
    torch.testing.assert_close(extractor.relu_backward(*args)[part], gradients_by_loops(*args)[part])


@pytest.mark.parametrize("B,p,d,seed", [(1, 1, 1, 0), (7, 3, 5, 1), (40, 6, 2, 2)])
def test_gradients_against_autograd_in_float64(B, p, d, seed):
    x, W, b, g = problem(B, p, d, seed)
    leaves = [t.clone().requires_grad_() for t in (W, b, x)]
    auto = torch.autograd.grad((leaves[2] @ leaves[0].T + leaves[1]).relu(), leaves, g)
    for ours, theirs in zip(extractor.relu_backward(x, W, b, g), auto):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_gradients_against_sympy():
    "SymPy differentiates the whole loss, with ReLU written as a case distinction."
    W, x = sp.Matrix(2, 3, sp.symbols("w:6")), sp.Matrix(sp.symbols("x:3"))
    b, g = sp.Matrix(sp.symbols("b:2")), sp.Matrix(sp.symbols("g:2"))
    z = W*x + b
    loss = sum(g[j]*sp.Piecewise((z[j], z[j] > 0), (0, True)) for j in range(2))
    for seed in range(4):
        tx, tW, tb, tg = problem(1, 3, 2, seed)
        at = dict(zip([*W, *x, *b, *g], [*tW.flatten().tolist(), *tx.flatten().tolist(), *tb.tolist(),
                                         *tg.flatten().tolist()]))
        want = [[float(loss.diff(v).subs(at)) for v in vs] for vs in (W, b, x)]
        for ours, theirs in zip(extractor.relu_backward(tx, tW, tb, tg), want):
            torch.testing.assert_close(ours.flatten(), torch.tensor(theirs, dtype=torch.float64))


def test_gradient_of_a_corner_is_zero_as_in_torch():
    x, W, b, g = torch.zeros(1, 2), torch.ones(3, 2), torch.zeros(3), torch.ones(1, 3)
    for ours in extractor.relu_backward(x, W, b, g): assert not ours.any()


def test_two_layers_chained_equal_the_extractor():
    torch.manual_seed(3)
    model = extractor.ReLUExtractor(5, (4, 3)).double()
    x, g = torch.randn(8, 5, dtype=torch.float64, requires_grad=True), torch.randn(8, 3, dtype=torch.float64)
    model(x).backward(g)
    one, two = model.layers
    middle = one(x).relu().detach()
    dW2, db2, dmiddle = extractor.relu_backward(middle, two.weight, two.bias, g)
    dW1, db1, dx = extractor.relu_backward(x, one.weight, one.bias, dmiddle)
    for ours, theirs in ((dW2, two.weight), (db2, two.bias), (dW1, one.weight), (db1, one.bias), (dx, x)):
        torch.testing.assert_close(ours, theirs.grad)


@pytest.mark.parametrize("which,shape,axis", [(0, (6, 5), "p"), (1, (3, 9), "p"), (2, (4,), "d"),
                                              (3, (5, 3), "B"), (3, (6, 2), "d")])
def test_gradient_errors_name_the_axis(which, shape, axis):
    args = problem()
    args[which] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"axis '{axis}'"): extractor.relu_backward(*args)


# --- dead units

def test_dead_units_against_loops():
    h = torch.relu(torch.randn(4, 3, 12, generator=torch.Generator().manual_seed(0)) - 1.5)
    want = [all(h[i, s, j] == 0 for i in range(4) for s in range(3)) for j in range(12)]
    assert extractor.dead_units(h).tolist() == want
    assert any(want) and not all(want)


def test_a_dead_unit_gets_no_gradient():
    torch.manual_seed(0)
    model = extractor.ReLUExtractor(3, (4,))
    with torch.no_grad(): model.layers[0].bias[1] = -100
    h = model(torch.randn(64, 3))
    assert extractor.dead_units(h).tolist() == [False, True, False, False]
    h.square().sum().backward()
    layer = model.layers[0]
    assert not layer.weight.grad[1].any() and layer.bias.grad[1] == 0
    assert layer.weight.grad[[0, 2, 3]].abs().sum(1).min() > 0


@pytest.mark.parametrize("h,word", [(torch.zeros(()), "scalar"), (torch.zeros(0, 3), "no row"),
                                    (torch.zeros(2, 0, 3), "no row")])
def test_dead_units_errors(h, word):
    with pytest.raises(ValueError, match=word): extractor.dead_units(h)


# --- the first weights

def scale_by_integral(std, fan_in, depth):
    "Root mean square after ReLU layers of normal sums, by numerical integration of the positive half."
    mean_square = 1.0
    for _ in range(depth):
        s = math.sqrt(fan_in*mean_square)*std
        density = lambda z: z*z*math.exp(-z*z/(2*s*s))/(s*math.sqrt(2*math.pi))
        mean_square = quad(density, 0, 12*s)[0]
    return math.sqrt(mean_square)


@pytest.mark.formula("4.5")
@pytest.mark.parametrize("std,fan_in,depth", [(.1, 200, 1), (.3, 8, 3), (1., 2, 5), (.05, 64, 4)])
def test_scale_against_an_integral(std, fan_in, depth):
    assert extractor.relu_scale(std, fan_in, depth) == pytest.approx(scale_by_integral(std, fan_in, depth),
        rel=1e-6)


@pytest.mark.formula("4.6")
@pytest.mark.parametrize("fan_in", [1, 3, 64, 500])
def test_he_keeps_the_scale_of_the_integral(fan_in):
    low, high = 0.0, 2.0
    for _ in range(50): # bisection: the scale grows with the standard deviation
        middle = (low + high)/2
        low, high = (middle, high) if scale_by_integral(middle, fan_in, 1) < 1 else (low, middle)
    assert extractor.he_std(fan_in) == pytest.approx(middle, rel=1e-6)


def test_scale_against_sampling():
    "For any input, ReLU outputs or not: only the mean square counts."
    gen = torch.Generator().manual_seed(0)
    x = torch.rand(40, generator=gen, dtype=torch.float64)
    h = (torch.randn(200_000, 40, generator=gen, dtype=torch.float64)*.2 @ x).relu()
    ratio = (h.square().mean()/x.square().mean()).sqrt().item()
    assert ratio == pytest.approx(extractor.relu_scale(.2, 40), rel=.01)


def test_he_init_and_errors():
    torch.manual_seed(0)
    layer = nn.Linear(300, 400)
    assert extractor.he_init(layer) is layer
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2/300), rel=.01)
    assert not layer.bias.any()
    assert extractor.he_init(nn.Linear(3, 2, bias=False)).bias is None
    for bad in (0, -1):
        with pytest.raises(ValueError, match="fan_in"): extractor.he_std(bad)
        with pytest.raises(ValueError, match="fan_in"): extractor.relu_scale(.1, bad)
    with pytest.raises(ValueError, match="negative"): extractor.relu_scale(-.1, 3)
    with pytest.raises(ValueError, match="negative"): extractor.relu_scale(.1, 3, -1)


# --- the extractor

def test_extractor_shares_weights_and_starts_by_he():
    torch.manual_seed(0)
    model, history = extractor.ReLUExtractor(30), torch.randn(200, 3, 30)
    h = model(history)
    assert h.shape == (200, 3, 64) and (h >= 0).all() and model.d == 64 and model.d_in == 30
    assert sum(p.numel() for p in model.parameters()) == 30*128 + 128 + 128*64 + 64
    for s in range(3): torch.testing.assert_close(h[:, s], model(history[:, s]))
    assert .7 < h.square().mean().sqrt() < 1.4
    assert model(history[:0]).shape == (0, 3, 64) and model(history[0, 0]).shape == (64,)


@pytest.mark.parametrize("make", [lambda: extractor.ReLUExtractor(0), lambda: extractor.ReLUExtractor(3, ()),
                                  lambda: extractor.ReLUExtractor(3, (4, 0))])
def test_extractor_construction_errors(make):
    with pytest.raises(ValueError, match="at least one width"): make()


def test_extractor_input_errors():
    model = extractor.ReLUExtractor(4, (3,))
    for bad in (torch.zeros(2, 5), torch.zeros(())):
        with pytest.raises(ValueError, match="axis 'd_in': expected 4"): model(bad)
    with pytest.raises(ValueError, match="floating point"): model(torch.zeros(2, 4, dtype=torch.long))


# --- polylines

@pytest.mark.formula("4.7")
def test_polyline_against_numpy():
    rng = np.random.default_rng(0)
    for n in (1, 2, 7):
        knots, values = np.sort(rng.normal(size=n + 1)), rng.normal(size=n + 1)
        x = rng.uniform(knots[0] - 1, knots[-1], size=50)
        ours = extractor.relu_interpolate(*(torch.tensor(a) for a in (x, knots, values)))
        np.testing.assert_allclose(ours.numpy(), np.interp(x, knots, values), atol=1e-9)


def test_polyline_keeps_its_last_slope():
    t, v = torch.tensor([0., 1, 2]), torch.tensor([0., 5, 6])
    assert extractor.relu_interpolate(torch.tensor([4.]), t, v).item() == 8


@pytest.mark.parametrize("knots,values,word", [([0., 1], [0.], "axis 'm'"), ([0.], [0.], "two or more"),
    ([0., 0], [1., 2], "increasing"), ([1., 0], [1., 2], "increasing")])
def test_polyline_errors(knots, values, word):
    with pytest.raises(ValueError, match=word):
        extractor.relu_interpolate(torch.zeros(2), torch.tensor(knots), torch.tensor(values))


# --- embeddings

@pytest.mark.formula("4.8")
def test_lookup_is_a_linear_layer_on_one_hot():
    torch.manual_seed(0)
    embed = extractor.FieldEmbedding([4, 3, 5], d=2, std=1.)
    fields = embed.offset(torch.tensor([[3, 1, 4], [0, 2, 2], [1, 1, 1]]))
    linear = nn.Linear(12, 2, bias=False)
    linear.weight.data = embed.table.weight.data.T.clone()
    one_hot = torch.zeros(3, 3, 12)
    for r, f in product(range(3), range(3)): one_hot[r, f, fields[r, f]] = 1
    torch.testing.assert_close(embed(fields), linear(one_hot))


@pytest.mark.formula("4.9")
def test_embedding_gradient_against_one_hot_and_autograd():
    gen = torch.Generator().manual_seed(0)
    ids, g = torch.randint(5, (20,), generator=gen), torch.randn(20, 3, generator=gen, dtype=torch.float64)
    ids[ids == 2] = 4
    want = [[sum(g[r, k].item() for r in range(20) if ids[r] == i) for k in range(3)] for i in range(7)]
    ours = extractor.embedding_backward(ids, g, 7)
    torch.testing.assert_close(ours, torch.tensor(want, dtype=torch.float64))
    table = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    table[ids].backward(g)
    torch.testing.assert_close(ours, table.grad)
    assert not ours[[2, 5, 6]].any()


@pytest.mark.parametrize("ids,shape,word", [([0, 5], (2, 3), "from 0 to n - 1 = 4"),
    ([-1, 0], (2, 3), "from 0"), ([0], (2, 3), "axis 'B'"), ([[0]], (1, 3), "1 axes")])
def test_embedding_gradient_errors(ids, shape, word):
    with pytest.raises(ValueError, match=word):
        extractor.embedding_backward(torch.tensor(ids), torch.zeros(shape), 5)


@pytest.mark.formula("4.10")
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_offsets_against_counting(sizes, random):
    rows = extractor.FieldEmbedding(sizes, 2)
    local = [[random.randrange(n) for n in sizes] for _ in range(4)]
    order = [(f, i) for f, n in enumerate(sizes) for i in range(n)] # all rows of the table in order
    want = [[order.index((f, i)) for f, i in enumerate(row)] for row in local]
    assert rows.offset(torch.tensor(local)).tolist() == want
    assert rows.offsets.tolist() == [order.index((f, 0)) for f in range(len(sizes))]


def test_one_table_equals_many():
    torch.manual_seed(0)
    sizes, local = {"user": 6, "city": 3}, torch.tensor([[5, 0], [1, 2], [5, 1]])
    embed = extractor.FieldEmbedding(sizes, d=4)
    apart = [nn.Embedding(n, 4) for n in sizes.values()]
    for table, rows in zip(apart, embed.table.weight.data.split(list(sizes.values()))):
        table.weight.data = rows.clone()
    torch.testing.assert_close(embed(embed.offset(local)),
                               torch.stack([t(local[:, f]) for f, t in enumerate(apart)], 1))


def test_start_values_and_state():
    torch.manual_seed(0)
    embed = extractor.FieldEmbedding([1000, 500], d=8, std=.1)
    assert not embed.table.weight[[0, 1000]].any()
    assert embed.table.weight.std().item() == pytest.approx(.1, rel=.03)
    assert extractor.FieldEmbedding([1000], d=8).table.weight.std().item() == pytest.approx(.05, rel=.03)
    assert list(embed.state_dict()) == ["table.weight"] # offsets follow from the sizes and are not saved
    assert [n for n, _ in embed.named_parameters()] == ["table.weight"]


def test_only_looked_up_rows_move():
    torch.manual_seed(0)
    embed = extractor.FieldEmbedding([5, 5], d=3)
    before = embed.table.weight.detach().clone()
    opt = torch.optim.SGD(embed.parameters(), lr=.5)
    (embed(torch.tensor([[1, 7], [4, 7]])) - 1).square().sum().backward()
    opt.step()
    assert (embed.table.weight != before).any(1).nonzero()[:, 0].tolist() == [1, 4, 7]


LOCAL_MISTAKES = [([[0, 3]], "field 'city', row 0: local id 3 is outside 0 to 2"),
                  ([[0, 0], [6, 0]], "field 'user', row 1: local id 6 is outside 0 to 5"),
                  ([[-1, 0]], "field 'user', row 0: local id -1")]


@pytest.mark.parametrize("local,message", LOCAL_MISTAKES)
def test_range_errors_name_field_row_and_id(local, message):
    embed = extractor.FieldEmbedding({"user": 6, "city": 3}, d=2)
    for call in (embed.offset, lambda ids: embed(ids + embed.offsets),
                 lambda ids: embed.check(ids + embed.offsets)):
        with pytest.raises(ValueError, match=message): call(torch.tensor(local))


def test_form_errors():
    embed = extractor.FieldEmbedding([6, 3], d=2)
    with pytest.raises(ValueError, match="field 'number 1'"): embed(torch.tensor([[0, 0]]))
    for call in (embed, embed.offset):
        with pytest.raises(ValueError, match="axis 'F': expected 2, got 3"):
            call(torch.zeros(1, 3, dtype=torch.long))
        with pytest.raises(ValueError, match="2 axes"): call(torch.zeros(2, dtype=torch.long))
        with pytest.raises(ValueError, match="int64"): call(torch.zeros(1, 2))
    assert embed(torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2, 2)


@pytest.mark.parametrize("sizes,d,std", [([], 2, .1), ([3, 0], 2, .1), ({"user": -1}, 2, .1), ([3], 0, .1),
                                         ([3], 2, -.1)])
def test_embedding_construction_errors(sizes, d, std):
    with pytest.raises(ValueError): extractor.FieldEmbedding(sizes, d, std)
    if sizes in ([], [3, 0]):
        with pytest.raises(ValueError, match="at least one row"): extractor.FieldEmbedding(sizes, 2)


# --- what later notebooks need of both

class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.extract = extractor.FieldEmbedding([5, 4], 3), extractor.ReLUExtractor(6, (8, 4))

    def forward(self, fields, history):
        return self.embed(fields).flatten(1).sum(1) + self.extract(history).sum((1, 2))


def batch(B):
    gen = torch.Generator().manual_seed(B)
    return torch.stack([torch.randint(5, (B,), generator=gen), 5 + torch.randint(4, (B,), generator=gen)],
                       1), torch.randn(B, 2, 6, generator=gen)


def test_compiles_in_one_graph_and_gives_the_same():
    torch.manual_seed(0)
    model = Both()
    fast = torch.compile(model, fullgraph=True, backend="eager")
    for B in (3, 5, 8): torch.testing.assert_close(fast(*batch(B)), model(*batch(B)))


def test_autocast_bfloat16():
    torch.manual_seed(0)
    model, (fields, history) = Both(), batch(16)
    exact = model.extract(history)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model.extract(history)
        model(fields, history).float().sum().backward()
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=.05, rtol=.05)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_only_layers_with_known_per_sample_gradients():
    "Opacus knows Linear and Embedding; a bare Parameter, or a buffer on a layer with weights, it refuses."
    for module in Both().modules():
        if list(module.parameters(recurse=False)):
            assert type(module) in (nn.Linear, nn.Embedding) and not list(module.buffers(recurse=False))
