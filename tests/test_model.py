"Second opinions on the joined model: its forward pass in plain loops, its size and work by counting, its files there and back; broken ones in test_damaged_model.py."
import errno
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate
from torch.utils.flop_counter import FlopCounterMode

from multiscene_rec import data, model, preprocess

FUSIONS = ("none", "own", "mean", "concat", "attention", "attention+own")
SPEC = preprocess.Spec(("cart", "home", "live"), {"age": 4, "category": 6, "item_id": 9}, ("category", "item_id"), ("price", "quality"),
                       ("price",), 7, tuple(f"h{k}" for k in range(7)))


def a_batch(spec, n=40, R=None, seed=0, present=.6):
    "Random rows that fit a spec."
    g = torch.Generator().manual_seed(seed)
    R, S = R or n, len(spec.scenarios)
    fields = torch.stack([torch.randint(o, o + size, (n,), generator=g) for o, size in zip(spec.offsets, spec.fields.values())], 1)
    return data.Batch(fields, torch.randn(n, len(spec.dense), generator=g), torch.randint(S, (n,), generator=g),
                      torch.randint(2, (n,), generator=g).float(), torch.randn(R, S, spec.history, generator=g),
                      torch.rand(R, S, generator=g) < present, torch.randint(R, (n,), generator=g))


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
    return prep.spec, prep.transform(past)


# The match, and what it is for

@pytest.mark.formula("8.1")
def test_match_number_by_number():
    z, w = torch.randn(5, 3), torch.randn(5, 3)
    expected = [[a*b for a, b in zip(*rows)] for rows in zip(z.tolist(), w.tolist())]
    torch.testing.assert_close(model.match(z, w), torch.tensor(expected))


@pytest.mark.parametrize("wrong", [(1, 3), (5, 2), (3,)])
def test_match_refuses_what_would_broadcast(wrong):
    with pytest.raises(ValueError, match="axis|axes"): model.match(torch.ones(5, 3), torch.ones(wrong))


@pytest.mark.formula("8.2")
def test_item_gap_is_the_difference_of_two_scores():
    g = torch.Generator().manual_seed(1)
    z, q, w_z, w_q, w_m, W = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((6, 3), (2, 4), (3,), (4,), (3,), (3, 4)))
    def score(u, i): # the head on [z, q, z ∘ W_m q], term by term
        wanted = [sum(W[k, l]*q[i, l] for l in range(4)) for k in range(3)]
        return sum(w_z[k]*z[u, k] + w_m[k]*z[u, k]*wanted[k] for k in range(3)) + sum(w_q[l]*q[i, l] for l in range(4))
    expected = torch.stack([score(u, 0) - score(u, 1) for u in range(6)])
    torch.testing.assert_close(model.item_gap(z, q[0], q[1], w_q, w_m, W), expected)


@pytest.mark.parametrize("axis, changed", [("d_query", dict(q_j=torch.ones(3))), ("d_query", dict(w_q=torch.ones(5))),
                                           ("d", dict(w_m=torch.ones(4))), ("d", dict(W_m=torch.ones(5, 4)))])
def test_item_gap_names_the_axis(axis, changed):
    good = dict(z=torch.ones(6, 3), q_i=torch.ones(4), q_j=torch.ones(4), w_q=torch.ones(4), w_m=torch.ones(3), W_m=torch.ones(3, 4))
    with pytest.raises(ValueError, match=f"axis '{axis}'"): model.item_gap(**good | changed)


def crossed(spec, n_users=12, n_items=8, seed=3, present=.6):
    "The same items, in the same scenario, for users with different histories."
    batch = a_batch(spec, n_users*n_items, n_users, seed, present)
    item = torch.arange(n_items).repeat(n_users)
    at = [list(spec.fields).index(f) for f in spec.item_fields]
    user = torch.arange(n_users).repeat_interleave(n_items)
    fields = batch.fields[user]  # what describes the user is one value per user, what describes the item one per item
    fields[:, at] = batch.fields[:n_items, at][item]
    return replace(batch, fields=fields, dense=batch.dense[:n_items][item], scenario=torch.zeros_like(item),
                   history_row=user)


def orders(m, batch, n_items=8): return len(logits(m.double(), batch).view(-1, n_items).argsort(dim=1, stable=True).unique(dim=0))


def without_match(m):
    "Take the match away."
    with torch.no_grad():
        for p in m.want.parameters(): p.zero_()
    return m


@pytest.mark.parametrize("fusion", ["own", "mean", "concat"])
@pytest.mark.parametrize("seed", range(3))
def test_a_linear_head_without_the_match_gives_everybody_one_order(fusion, seed):
    batch = crossed(SPEC)
    assert orders(without_match(a_model(seed=seed, fusion=fusion, hidden=())), batch) == 1
    loud = a_model(seed=seed, fusion=fusion, hidden=())
    with torch.no_grad(): loud.want.weight.mul_(30)
    assert orders(loud, batch) > 1
    assert orders(without_match(a_model(seed=seed, fusion=fusion, hidden=(64,))), batch) > 1


def test_attention_and_one_history_give_everybody_one_order():
    m, batch = without_match(a_model(hidden=())), crossed(SPEC)
    one = torch.zeros_like(batch.present_table).index_fill(1, torch.tensor([2]), True)
    assert orders(m, replace(batch, present_table=one)) == 1


def test_item_gap_foretells_the_model():
    m, batch = a_model(fusion="mean", hidden=()).double(), crossed(SPEC)
    scores, e = logits(m, batch).view(-1, 8), m.embed(batch.fields)
    q = e[:, m.item_columns].flatten(1)
    z = m.fuse(m.extract(batch.history.double()), batch.present, q, batch.scenario)[0].view(-1, 8, 32)[:, 0]
    w = m.heads[0].out.weight[0]
    F, D = 3*8, 2
    gap = model.item_gap(z, q[0], q[5], w[:F].view(3, 8)[m.item_columns].flatten(), w[-32:], m.want.weight)
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
        return np_linear(p, f"{name}.project", np.where(present[:, None], h, 0).ravel()) + np_linear(p, f"{name}.flags", present.astype(float))
    if kind == "own": there = [s for s in there if s == t]
    if not there: return p[f"{name}.fallback.weight"][0]
    scores = np.zeros(len(there))
    if kind == "attention":
        asked = np_linear(p, f"{name}.key", np_linear(p, f"{name}.query", np.concatenate([query, p[f"{name}.target.weight"][t]])))
        scores = np.array([asked @ h[s]/math.sqrt(d) for s in there])
    weight = np.exp(scores)/np.exp(scores).sum()
    return np_linear(p, f"{name}.value", sum(w*h[s] for w, s in zip(weight, there)))


def np_model(m, batch):
    "The log-odds of every row, one row at a time, from the numbers in the state dict."
    p, o, out = {k: v.double().numpy() for k, v in m.state_dict().items()}, m.options, []
    columns = [list(m.spec.fields).index(f) for f in m.spec.item_fields]
    for b in range(len(batch)):
        e, t = p["embed.table.weight"][batch.fields[b].numpy()], int(batch.scenario[b])
        x = [e.ravel(), batch.dense[b].double().numpy(), p["place.weight"][t]]
        if o["fusion"] != "none":
            q = e[columns].ravel()
            h = np.stack([np_chain(p, "extract", x_s) for x_s in batch.history[b].double().numpy()])
            z = np_fuse(p, "fuse", o["fusion"], h, batch.present[b].numpy(), q, t)
            x += [z, z*np_linear(p, "want", q)]
        head = f"heads.{t if o['towers'] else 0}"
        out.append(np_linear(p, f"{head}.out", np_chain(p, f"{head}.hidden", np.concatenate(x)))[0])
    return torch.tensor(out)


@pytest.mark.formula("8.4")
@pytest.mark.parametrize("towers", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_forward_against_plain_numpy(fusion, towers):
    m, batch = a_model(fusion=fusion, towers=towers, d_embed=3, widths=(6, 5), hidden=(4,)).double(), a_batch(SPEC, 12)
    torch.testing.assert_close(logits(m, batch), np_model(m, batch))


@pytest.mark.formula("8.3")
def test_attention_beside_own():
    m, batch = a_model(fusion="attention+own", widths=(5,)).double(), a_batch(SPEC, 15)
    p = {f"fuse.{k}": v.numpy() for k, v in m.fuse.state_dict().items()}
    h, q = torch.randn(15, 3, 5, dtype=torch.float64), torch.randn(15, 16, dtype=torch.float64)
    with torch.no_grad(): z, alpha = model.BesideOwn.forward(m.fuse, h, batch.present, q, batch.scenario)
    expected = [np_fuse(p, "fuse", "attention+own", h[b].numpy(), batch.present[b].numpy(), q[b].numpy(), int(batch.scenario[b])) for b in range(15)]
    torch.testing.assert_close(z, torch.from_numpy(np.stack(expected)))
    with torch.no_grad(): torch.testing.assert_close(alpha, m.fuse.attention(h, batch.present, q, batch.scenario)[1])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_shared_histories_change_nothing_but_the_work(fusion):
    m, shared = a_model(fusion=fusion), a_batch(SPEC, 30, 4)
    unshared = replace(shared, history_table=shared.history, present_table=shared.present, history_row=torch.arange(30))
    with_gradient = m(shared).detach()
    torch.testing.assert_close(logits(m, shared), logits(m, unshared))
    torch.testing.assert_close(logits(m, shared), with_gradient)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_explain_gives_weights_where_there_are_any(fusion):
    m, batch = a_model(fusion=fusion), a_batch(SPEC)
    with torch.no_grad(): score, alpha = m.explain(batch)
    torch.testing.assert_close(score, logits(m, batch))
    if fusion in ("none", "concat"): assert alpha is None
    else:
        total = alpha.sum(1)
        assert (((total - 1).abs() < 1e-6) | (total == 0)).all() and (alpha[~batch.present] == 0).all()


def test_towers_answer_for_their_own_scenario_only():
    m, batch = a_model(towers=True), a_batch(SPEC)
    before = logits(m, batch)
    with torch.no_grad(): m.heads[1].out.bias += 1
    torch.testing.assert_close(logits(m, batch) - before, (batch.scenario == 1).float())


@settings(max_examples=25)
@given(st.sampled_from(FUSIONS), st.booleans(), st.integers(0, 1000), st.integers(1, 30), st.integers(1, 12))
def test_rows_do_not_know_each_other(fusion, towers, seed, n, R):
    m, batch = a_model(fusion=fusion, towers=towers), a_batch(SPEC, n, R, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(logits(m, batch[order]), logits(m, batch)[order], atol=1e-5, rtol=1e-5)
    noisy = torch.where(batch.present_table.unsqueeze(-1), batch.history_table, 100.)
    torch.testing.assert_close(logits(m, replace(batch, history_table=noisy)), logits(m, batch), atol=1e-5, rtol=1e-5)
    assert logits(m, replace(batch, present_table=torch.zeros_like(batch.present_table))).isfinite().all()


def test_no_rows_give_no_logits():
    for towers in (False, True): assert logits(a_model(towers=towers), a_batch(SPEC)[:0]).shape == (0,)


def test_names_in_histories_tell_attention_whose_history_it_reads(mall):
    spec, batch = mall
    names = [k for k, name in enumerate(spec.history_names) if name.startswith("in ")]
    assert len(names) == len(spec.scenarios)
    torch.testing.assert_close(batch.history_table[0][:, names], torch.eye(len(names)))
    table = batch.history_table[:, torch.tensor([1, 0, 2, 3])].clone()
    table[..., names] = batch.history_table[..., names]
    rows = batch[batch.present[:, :2].all(1)][:50]
    m = a_model(spec)
    assert (logits(m, replace(rows, history_table=table)) - logits(m, rows)).abs().max() > 1e-3
    blind = [replace(rows, history_table=t.index_fill(2, torch.tensor(names), 0)) for t in (table, batch.history_table)]
    torch.testing.assert_close(logits(m, blind[0]), logits(m, blind[1]), atol=1e-5, rtol=1e-5)


# What does not fit is refused

@pytest.mark.parametrize("options, says", [
    (dict(fusion="sum"), "fusion 'sum' is unknown; choose from none, own, mean, concat, attention, attention\\+own"),
    (dict(widths=()), "widths is empty"), (dict(widths=(8, 0)), "widths: .* got 0"), (dict(hidden=(-1,)), "hidden: .* got -1"),
    (dict(d_embed=0), "d_embed: .* got 0"), (dict(d_embed=True), "d_embed: .* got True"), (dict(widths=(2.5,)), "widths: .* got 2.5")])
def test_bad_options(options, says):
    for ask in (model.InterestModel, model.count_parameters, model.count_flops, model.scenario_cost):
        with pytest.raises(ValueError, match=says): ask(SPEC, **options)


def test_bad_specs():
    with pytest.raises(ValueError, match="item_fields names 'brand', which spec.fields does not have"): model.InterestModel(replace(SPEC, item_fields=("brand",)))
    with pytest.raises(ValueError, match="item_fields is empty"): model.InterestModel(replace(SPEC, item_fields=()))
    assert logits(a_model(replace(SPEC, item_fields=()), fusion="none"), a_batch(SPEC)).shape == (40,)


@pytest.mark.parametrize("axis, other", [
    ("H", replace(SPEC, history=8)), ("S", replace(SPEC, scenarios=("cart", "home"))), ("F", replace(SPEC, fields={**SPEC.fields, "city": 3})),
    ("D", replace(SPEC, dense=("price",)))])
@pytest.mark.parametrize("fusion", ["none", "attention"])
def test_a_batch_that_does_not_fit_names_the_axis(axis, other, fusion):
    with pytest.raises(ValueError, match=f"does not fit the model's spec: .*axis '{axis}'"): a_model(other, fusion=fusion)(a_batch(SPEC))


def test_an_id_outside_its_field_names_the_field():
    batch = a_batch(SPEC)
    batch.fields[3, 1] = 4 + 6  # the first row of item_id
    with pytest.raises(ValueError, match="'category', row 3"): a_model()(batch)


# Sizes

OPTIONS = [dict(fusion=f, towers=t, d_embed=e, widths=w, hidden=h) for f in FUSIONS for t, e, w, h in
           ((False, 8, (64, 32), (64,)), (True, 3, (5,), ()), (False, 1, (1,), (2, 3)), (True, 4, (9, 6, 7), (5, 4)))]


@pytest.mark.formula("8.5")
@pytest.mark.parametrize("options", OPTIONS)
def test_parameters_by_counting(options):
    m = model.InterestModel(SPEC, **options)
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in m.named_children()}
    assert model.count_parameters(SPEC, **options) == counted
    assert sum(counted.values()) == sum(p.numel() for p in m.parameters())


@pytest.mark.formula("8.6")
@pytest.mark.parametrize("options", OPTIONS)
def test_one_more_scenario_by_building_both(options):
    reads = options["fusion"] != "none"
    for columns in (0, 1, 2):
        more = replace(SPEC, scenarios=(*SPEC.scenarios, "search"), history=SPEC.history + columns)
        sizes = [sum(p.numel() for p in model.InterestModel(spec, **options).parameters()) for spec in (SPEC, more)]
        assert model.scenario_cost(SPEC, columns, **options) == sizes[1] - sizes[0], (columns, reads)


def test_scenario_cost_refuses_fewer_columns():
    with pytest.raises(ValueError, match="columns must be 0 or more, got -1"): model.scenario_cost(SPEC, -1)


@pytest.mark.formula("8.7")
@pytest.mark.parametrize("options", OPTIONS)
def test_flops_by_pytorch_s_counter(options):
    m = model.InterestModel(SPEC, **options)
    for n, R in ((13, 13), (13, 4), (13, 20)):
        with FlopCounterMode(display=False) as counter, torch.no_grad(): m(a_batch(SPEC, n, R))
        by_part = {name.split(".")[1]: 0 for name in counter.get_flop_counts() if name.count(".")}
        for name, work in counter.get_flop_counts().items():
            if name.count(".") == (2 if ".heads." in name else 1): by_part[name.split(".")[1]] += sum(work.values())
        mine = model.count_flops(SPEC, n, R, **options)
        assert {k: v for k, v in mine.items() if v} == {k: v for k, v in by_part.items() if v}
        assert sum(mine.values()) == counter.get_total_flops()


def test_flops_of_training_do_not_share_histories():
    m, batch = model.InterestModel(SPEC), a_batch(SPEC, 13, 4)
    with FlopCounterMode(display=False) as counter: m(batch)
    assert counter.get_total_flops() == sum(model.count_flops(SPEC, 13).values())


@pytest.mark.parametrize("asked, says", [(dict(n_rows=-1), "n_rows"), (dict(n_histories=-2), "n_histories")])
def test_flops_refuse_negative_rows(asked, says):
    with pytest.raises(ValueError, match=f"{says} must be 0 or more"): model.count_flops(SPEC, **asked)


def test_size_table_adds_up():
    table = model.size_table(SPEC, 10, 3, fusion="concat", towers=True)
    parts = table.drop(index="total")
    assert parts.parameters.to_dict() == model.count_parameters(SPEC, fusion="concat", towers=True)
    assert parts.flops.to_dict() == model.count_flops(SPEC, 10, 3, fusion="concat", towers=True)
    assert (parts.sum()[["parameters", "flops"]] == table.loc["total", ["parameters", "flops"]]).all()
    np.testing.assert_allclose(parts[["parameters_share", "flops_share"]].sum(), 1)
    assert (model.size_table(SPEC, 0).flops_share == 0).all()


# Before the first epoch

@pytest.mark.formula("8.8")
@pytest.mark.parametrize("rate, mean, var", [(.3, 0., .04), (.05, .2, .01), (.9, -.1, .09), (.5, 0., 1e-8)])
def test_start_loss_by_integration(rate, mean, var):
    def loss(x): return (rate*math.log1p(math.exp(-x)) + (1 - rate)*math.log1p(math.exp(x)))*math.exp(-(x - mean)**2/(2*var))/math.sqrt(2*math.pi*var)
    width = 10*math.sqrt(var)
    expected = integrate.quad(loss, mean - width, mean + width)[0]
    assert model.start_loss(rate, mean, var) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("asked, says", [((1.1,), "rate must lie in 0 to 1"), ((-.1,), "rate"), ((.5, 0., -1.), "var must be 0 or more")])
def test_start_loss_refuses(asked, says):
    with pytest.raises(ValueError, match=says): model.start_loss(*asked)


@pytest.mark.parametrize("towers", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_fresh_model_passes_its_checks(fusion, towers, mall):
    spec, batch = mall
    torch.manual_seed(0)
    m = model.InterestModel(spec, fusion, towers)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    table = model.check_model(m, batch[:1000])
    assert table.passed.all(), table.to_string()
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items()) and all(p.grad is None for p in m.parameters())


class Faulty(model.InterestModel):
    "A model with a planted fault."
    fault = ""

    def explain(self, batch):
        if self.fault == "absent": batch = replace(batch, present_table=torch.ones_like(batch.present_table))
        out, alpha = super().explain(batch)
        if self.fault == "large": out = 10*out
        if self.fault == "rows": out = out + .1*out.cumsum(0)/len(out)
        if self.fault == "nan": out = out/(batch.present.any(1))*batch.present.any(1)
        if self.fault == "cut": out = out.detach() + 0*self.place.weight.sum() + out.mean()*0
        return out, alpha


@pytest.mark.parametrize("fault, check", [("large", "first loss"), ("rows", "rows permuted"), ("nan", "nobody present"), ("absent", "absent content"), ("cut", "gradients")])
def test_each_check_finds_its_fault(fault, check, mall):
    spec, batch = mall
    torch.manual_seed(0)
    m = Faulty(spec)
    m.fault = fault
    table = model.check_model(m, batch[:500])
    assert not table.passed[[name for name in table.index if name.startswith(check)]].any(), table.to_string()


def test_the_check_names_what_gets_no_gradient():
    batch = a_batch(SPEC, 200)
    table = model.check_model(model.InterestModel(SPEC, towers=True), batch[batch.scenario != 2])
    assert table.which.iloc[-1] == "heads.2.hidden.layers.0.weight, heads.2.hidden.layers.0.bias, heads.2.out.weight, heads.2.out.bias"
    with pytest.raises(ValueError, match="no rows"): model.check_model(model.InterestModel(SPEC), batch[:0])


# Other precision, compiled

@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("towers", [False, True])
def test_bfloat16_gives_close_logits_and_gradients(fusion, towers):
    m, batch = a_model(fusion=fusion, towers=towers), a_batch(SPEC)
    with torch.autocast("cpu", torch.bfloat16): coarse = m(batch)
    exact = m(batch)
    assert (coarse.float() - exact).abs().max() < .02*(1 + exact.abs().max())
    coarse.float().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("cl") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("options", [dict(fusion="concat"), dict(fusion="attention+own", towers=True)])
def test_compiled_gives_close_logits_and_gradients(options):
    m, batch = a_model(**options), a_batch(SPEC)
    compiled = torch.compile(m)
    plain = m(batch)
    torch.testing.assert_close(compiled(batch), plain, atol=1e-5, rtol=1e-5)
    expected = torch.autograd.grad(plain.square().mean(), list(m.parameters()), allow_unused=True)
    found = torch.autograd.grad(compiled(batch).square().mean(), list(m.parameters()), allow_unused=True)
    for a, b in zip(found, expected):
        if b is not None: torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with torch.no_grad(): torch.testing.assert_close(compiled(a_batch(SPEC, 30, 4)), m(a_batch(SPEC, 30, 4)), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
def test_gpu_gives_close_logits():
    m, batch = a_model(), a_batch(SPEC)
    here = logits(m, batch)
    torch.testing.assert_close(logits(m.to("cuda"), batch.to("cuda")).cpu(), here, atol=1e-4, rtol=1e-4)


# Files

@pytest.fixture
def saved(tmp_path):
    "A model and its folder."
    m = a_model(towers=True)
    m.save(tmp_path/"made"/"here")
    return m, tmp_path/"made"/"here"


@pytest.mark.parametrize("options", [dict(fusion=f, towers=t) for f in FUSIONS for t in (False, True)] + [dict(widths=(5,), hidden=(), d_embed=2)])
def test_save_and_load_give_the_same_model(options, tmp_path):
    m, batch = a_model(**options), a_batch(SPEC)
    m.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    again = model.InterestModel.load(str(tmp_path))
    assert again.spec == SPEC and again.options == m.options and not again.training
    assert torch.equal(logits(again, batch), logits(m, batch))


def test_a_double_model_stays_double(tmp_path):
    m = a_model().double()
    m.save(tmp_path)
    again = model.InterestModel.load(tmp_path)
    assert all(p.dtype == torch.float64 for p in again.parameters())
    assert torch.equal(logits(again, a_batch(SPEC)), logits(m, a_batch(SPEC)))


def test_saving_again_replaces(saved):
    _, folder = saved
    other = a_model(seed=5)
    other.save(folder)
    assert torch.equal(logits(model.InterestModel.load(folder), a_batch(SPEC)), logits(other, a_batch(SPEC)))


def test_a_save_that_fails_leaves_the_old_files_and_no_rest(saved, monkeypatch):
    m, folder = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    def refuse(*_): raise OSError(errno.ENOSPC, "disk full")
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"): a_model(seed=3).save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_save_cut_off_between_the_files_is_noticed(saved, monkeypatch):
    m, folder = saved
    real = os.replace
    def only_weights(a, b):
        if str(b).endswith(".json"): raise KeyboardInterrupt
        real(a, b)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", only_weights)
        with pytest.raises(KeyboardInterrupt): a_model(seed=3, towers=True).save(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.safetensors"]
    with pytest.raises(ValueError, match="not the partner"): model.InterestModel.load(folder)


# The card

def test_the_card_says_what_is_in_the_folder():
    m = a_model(towers=True)
    metrics = pd.DataFrame({"AUC": [.71234, .5], "rows": [1200, 30]}, index=pd.Index(["cart", "home|feed"], name="scenario"))
    card = model.model_card(m, metrics, seed=7, title="A test", data="made up", use="Testing.")
    total = sum(p.numel() for p in m.parameters())
    for text in ("# A test", "data: made up", "3: cart, home, live", "item_id (9 ids)", "price, quality", "7 numbers per scenario", "one head per scenario",
                 f"| total | {total:,} | {sum(model.count_flops(SPEC, towers=True).values()):,} |", "| cart | 0.7123 | 1,200 |", "home\\|feed", "seed: 7",
                 f"torch {torch.__version__.split('+')[0]}", "file format 2", "## Intended use\n\nTesting.", "## Limits"):
        assert text in card, text
    for block in card.split("\n\n"):
        if block.startswith("| "): assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_the_card_says_what_is_not_known():
    card = model.model_card(a_model(fusion="none"))
    for text in ("data: not stated", "None were given.", "seed: not stated", "history: not read", "one head for all scenarios"): assert text in card, text
