"""Second opinions on training: optimisers by plain loops and torch.optim, fit step by step, every promised error."""
import builtins
import contextlib
import copy
import errno
import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import nn

from multiscene_rec import core, data, metrics, model, predictor, preprocess, train

GO = dict(epochs=2, batch_size=512, lr=4e-3, progress=False)


def prepared(**options):
    "A mall, its spec, three batches and the three frames."
    mall = data.toy_mall(**options)
    log, _ = preprocess.clean(mall.events)
    frames = preprocess.time_split(log)
    prep = preprocess.Preprocessor().fit(frames[0], users=mall.users, items=mall.items)
    return mall, prep.spec, [prep.transform(frame, log=log) for frame in frames], frames


def small():
    "Spec and batches: 4800 rows to train on, so that an epoch is a fraction of a second; and the users of the test rows."
    _, spec, parts, frames = prepared(n_users=250, n_items=60, n_events=6000)
    return spec, *parts, frames[2].user_id.to_numpy()


@pytest.fixture(scope="module")
def tiny(): return small()


def fresh(spec, fusion="attention", seed=0, **options):
    "A small model that is always the same."
    core.set_seed(seed)
    return model.InterestModel(spec, fusion, **dict(widths=(16, 8), hidden=(16,), d_embed=4) | options)


def weights(m): return {k: v.detach().clone() for k, v in m.state_dict().items()}


def same(a, b): return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# The optimisers -------------------------------------------------------------------------------------------------------

def slopes(seed, n=200, size=5):
    "A sequence of gradients of very different sizes, in float64."
    r = np.random.default_rng(seed)
    return torch.tensor(r.normal(size=(n, size))*10.**r.integers(-4, 3, size=size) + r.normal(size=size))


def by_torch(make, gs):
    "The weights after each step of a torch optimiser that is fed these gradients."
    w = torch.ones(gs.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser, path = make([w]), []
    for g in gs:
        w.grad = g.clone()
        optimiser.step()
        path.append(w.detach().clone())
    return torch.stack(path)


def by_us(step, n_state, gs):
    "The same with one of our steps."
    w, state, path = torch.ones(gs.shape[1], dtype=torch.float64), [torch.zeros(gs.shape[1], dtype=torch.float64)]*n_state, []
    for t, g in enumerate(gs, 1):
        w, *state = step(w, g, *state, t)
        path.append(w)
    return torch.stack(path)


@pytest.mark.formula("9.1")
@pytest.mark.parametrize("lr", [1e-3, .1])
def test_sgd(lr):
    gs = slopes(0)
    torch.testing.assert_close(by_us(lambda w, g, t: (train.sgd_step(w, g, lr),), 0, gs),
                               by_torch(lambda p: torch.optim.SGD(p, lr=lr), gs), rtol=0, atol=1e-7)
    w = [1., 2.]
    for g in ([.5, -1.], [3., .25]): w = [a - lr*b for a, b in zip(w, g)]
    ours = train.sgd_step(train.sgd_step(torch.tensor([1., 2.]), torch.tensor([.5, -1.]), lr), torch.tensor([3., .25]), lr)
    assert ours.tolist() == pytest.approx(w, abs=1e-6)


@pytest.mark.formula("9.3")
@pytest.mark.parametrize("mu", [0., .5, .99])
def test_momentum(mu):
    gs = slopes(1)
    torch.testing.assert_close(by_us(lambda w, g, v, t: train.momentum_step(w, g, v, .01, mu), 1, gs),
                               by_torch(lambda p: torch.optim.SGD(p, lr=.01, momentum=mu), gs), rtol=0, atol=1e-7)
    v = torch.zeros(5, dtype=torch.float64)
    for g in gs[:30]: _, v = train.momentum_step(g, g, v, .01, mu)
    unrolled = sum(mu**(29 - i)*gs[i] for i in range(30))
    torch.testing.assert_close(v, unrolled, rtol=1e-12, atol=1e-12)


@pytest.mark.formula("9.6")
@pytest.mark.parametrize("betas,eps", [((.9, .999), 1e-8), ((.5, .9), 1e-3), ((0., 0.), 1e-8)])
def test_adam(betas, eps):
    gs = slopes(2)
    torch.testing.assert_close(by_us(lambda w, g, m, v, t: train.adam_step(w, g, m, v, t, .03, betas, eps), 2, gs),
                               by_torch(lambda p: torch.optim.Adam(p, lr=.03, betas=betas, eps=eps), gs), rtol=0, atol=1e-7)
    g, w, m, v = [float(x[0]) for x in gs[:5]], 1., 0., 0.
    for t, x in enumerate(g, 1):
        m, v = betas[0]*m + (1 - betas[0])*x, betas[1]*v + (1 - betas[1])*x*x
        w -= .03*(m/(1 - betas[0]**t))/(math.sqrt(v/(1 - betas[1]**t)) + eps)
    assert by_us(lambda w, g, m, v, t: train.adam_step(w, g, m, v, t, .03, betas, eps), 2, gs)[4, 0].item() == pytest.approx(w, abs=1e-12)


def test_adam_does_not_see_the_scale_of_the_loss():
    gs = slopes(3, n=50)
    walk = lambda scale: by_us(lambda w, g, m, v, t: train.adam_step(w, g, m, v, t, .01, eps=0.), 2, gs*scale)
    torch.testing.assert_close(walk(1.), walk(1e5), rtol=0, atol=1e-10)


@pytest.mark.formula("9.5")
@given(beta=st.floats(0, .999), t=st.integers(1, 60), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_debias_is_a_weighted_mean(beta, t, seed):
    g = np.random.default_rng(seed).normal(size=t) + 3
    m = 0.
    for x in g: m = beta*m + (1 - beta)*x
    share = np.array([beta**(t - i) for i in range(1, t + 1)])
    assert train.debias(torch.tensor(m, dtype=torch.float64), beta, t).item() == pytest.approx(np.average(g, weights=share), rel=1e-8)


@pytest.mark.formula("9.2")
@pytest.mark.parametrize("B", range(1, 7))
def test_batch_noise_over_all_batches(B):
    x = np.random.default_rng(B).gamma(1., size=6)
    means = [np.mean(rows) for rows in itertools.combinations(x, B)]
    assert train.batch_noise(x.std(), 6, B) == pytest.approx(np.std(means), abs=1e-12)


@pytest.mark.formula("9.4")
@given(curvature=st.floats(.01, 100), lr=st.floats(1e-3, 2), mu=st.floats(0, .99))
@settings(max_examples=100)
def test_shrink_rate_is_the_spectral_radius(curvature, lr, mu):
    matrix = np.array([[1 + mu - lr*curvature, -mu], [1, 0]])
    assert train.shrink_rate(curvature, lr, mu) == pytest.approx(np.abs(np.linalg.eigvals(matrix)).max(), rel=1e-4, abs=1e-6)


def test_shrink_rate_is_seen_on_the_way():
    w, v, far = torch.tensor(1., dtype=torch.float64), torch.tensor(0., dtype=torch.float64), []
    for _ in range(400):
        w, v = train.momentum_step(w, 3.*w, v, .05, .6)
        far.append(abs(w.item()))
    assert (max(far[-40:])/max(far[-80:-40]))**(1/40) == pytest.approx(train.shrink_rate(3., .05, .6), rel=.02)


@pytest.mark.parametrize("kappa", [4., 50.])
def test_tuned_momentum_is_best_on_a_grid(kappa):
    root = math.sqrt(kappa)
    worst = lambda lr, mu: max(train.shrink_rate(curve, lr, mu) for curve in (1., kappa))
    best = worst((2/(1 + root))**2, ((root - 1)/(root + 1))**2)
    assert best == pytest.approx((root - 1)/(root + 1), rel=1e-6)
    grid = [worst(lr, mu) for lr in np.linspace(.001, 4/kappa, 150) for mu in np.linspace(0, .99, 100)]
    assert min(grid) >= best - 1e-9


@pytest.mark.parametrize("call,says", [
    (lambda: train.batch_noise(1., 4, 5), "from 1 to n_rows = 4"), (lambda: train.batch_noise(1., 4, 0), "from 1 to n_rows"),
    (lambda: train.batch_noise(-1., 4, 2), "std must be 0 or more"),
    (lambda: train.shrink_rate(0., .1), "above 0"), (lambda: train.shrink_rate(1., 0.), "above 0"), (lambda: train.shrink_rate(1., .1, 1.), "below 1"),
    (lambda: train.debias(torch.ones(1), .9, 0), "counts steps from 1"), (lambda: train.debias(torch.ones(1), 1., 1), "below 1"),
    (lambda: train.adam_step(*[torch.ones(1)]*4, t=0), "counts steps from 1"),
    (lambda: train.adam_step(*[torch.ones(1)]*4, t=1, betas=(.9, 1.)), "below 1"),
])
def test_errors_of_the_formulas(call, says):
    with pytest.raises(ValueError, match=says): call()


# fit ------------------------------------------------------------------------------------------------------------------

def test_one_step_of_fit_is_one_step_of_adam(tiny):
    spec, rows = tiny[0], tiny[1]
    m = fresh(spec)
    before = dict(m.named_parameters())
    loss = predictor.bce_with_logits(m(rows), rows.label)
    found = torch.autograd.grad(loss, list(before.values()), allow_unused=True)
    wanted = {name: train.adam_step(w.detach(), torch.zeros_like(w) if g is None else g, torch.zeros_like(w), torch.zeros_like(w), 1, lr=1e-3)[0]
              for (name, w), g in zip(before.items(), found)}
    history = train.fit(m, rows, epochs=1, batch_size=len(rows), lr=1e-3, progress=False)
    assert history.frame.train_loss.item() == pytest.approx(loss.item(), abs=1e-5)
    for (name, w), g in zip(m.named_parameters(), found):
        sure = torch.zeros_like(w, dtype=torch.bool) if g is None else g.abs() > 1e-6 # below, the sign is rounding
        torch.testing.assert_close(w[sure], wanted[name][sure], rtol=0, atol=1e-5)


def test_loss_of_an_epoch_is_the_mean_over_rows(tiny):
    "The last batch is smaller and must not count as a whole one; with a step of nearly nothing the model stands still."
    spec, rows = tiny[0], tiny[1]
    m = fresh(spec)
    with torch.no_grad(): loss = predictor.bce_with_logits(m(rows), rows.label).item()
    assert len(rows) % 700 not in (0, 699)
    assert train.fit(m, rows, epochs=1, batch_size=700, lr=1e-12, progress=False).frame.train_loss.item() == pytest.approx(loss, abs=1e-6)


def test_thirty_two_rows_by_heart(tiny):
    spec, rows = tiny[0], tiny[1]
    assert 0 < rows[-32:].label.mean() < 1
    history = train.fit(fresh(spec, widths=(64, 32), hidden=(64,), d_embed=8), rows[-32:], epochs=150, batch_size=32, lr=1e-2, progress=False)
    assert history.frame.train_loss.iloc[-1] < .01


def test_validation_loss_chooses_the_epoch(tiny):
    spec, rows, valid = tiny[:3]
    m = fresh(spec)
    history = train.fit(m, rows, valid, **GO | dict(epochs=8, lr=2e-2))
    frame = history.frame
    assert list(frame.columns) == ["epoch", "train_loss", "valid_loss", "valid_auc"] and frame.epoch.tolist() == list(range(1, 9))
    assert history.best_epoch == frame.epoch[frame.valid_loss.argmin()] < 8
    prob = train.predict(m, valid)
    best = frame.set_index("epoch").loc[history.best_epoch]
    assert torch.nn.functional.binary_cross_entropy(prob.double(), valid.label.double()).item() == pytest.approx(best.valid_loss, abs=1e-5)
    assert metrics.auc(valid.label, prob) == pytest.approx(best.valid_auc, abs=1e-6)
    assert not m.training
    cut = fresh(spec)
    early = train.fit(cut, rows, valid, **GO | dict(epochs=8, lr=2e-2), patience=1)
    first_rise = next(e for e in range(2, 9) if frame.valid_loss[e - 1] >= frame.valid_loss[:e - 1].min())
    assert len(early.frame) == first_rise and early.best_epoch == first_rise - 1


def test_without_validation_the_last_epoch_stays(tiny):
    spec, rows = tiny[:2]
    history = train.fit(fresh(spec), rows, **GO)
    assert history.best_epoch == 2 and history.frame[["valid_loss", "valid_auc"]].isna().all(axis=None)


def test_soft_labels_have_a_loss_and_no_auc(tiny):
    spec, rows, valid = tiny[:3]
    soft = copy.copy(valid)
    soft.label = valid.label*.8 + .1
    history = train.fit(fresh(spec), rows, soft, **GO)
    assert history.frame.valid_loss.notna().all() and history.frame.valid_auc.isna().all()


def test_seeds(tiny):
    spec, rows = tiny[:2]
    made = []
    for seed in (1, 1, 2):
        made.append(fresh(spec))
        train.fit(made[-1], rows, **GO, seed=seed)
    assert same(made[0], made[1]) and not same(made[0], made[2])


def test_every_epoch_has_an_order_of_its_own_and_each_row_once(tiny):
    spec, rows = tiny[:2]
    seen = []

    class Spy(model.InterestModel):
        def forward(self, batch):
            seen.append(batch.dense[:, 0].clone())
            return super().forward(batch)
    train.fit(Spy(spec, widths=(8,), hidden=()), rows, **GO)
    per = math.ceil(len(rows)/512)
    one, two = torch.cat(seen[:per]), torch.cat(seen[per:])
    assert len(seen) == 2*per and not torch.equal(one, two)
    for order in (one, two): assert torch.equal(order.sort().values, rows.dense[:, 0].sort().values)


def test_the_order_of_other_random_numbers_is_left_alone(tiny):
    m = fresh(tiny[0])
    torch.manual_seed(5)
    train.fit(m, tiny[1], **GO)
    after = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(3))


class Simple(nn.Module):
    "Not an InterestModel: a linear map of the dense columns, with dropout."
    def __init__(self, width):
        super().__init__()
        self.linear, self.drop = nn.Linear(width, 1), nn.Dropout(.3)

    def forward(self, batch): return self.linear(self.drop(batch.dense))[:, 0]


def test_any_module_can_be_trained_and_resumed(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    def made():
        torch.manual_seed(0)
        return Simple(rows.dense.shape[1])
    whole, cut, rest = made(), made(), made()
    history = train.fit(whole, rows, valid, **GO | dict(epochs=4))
    assert history.frame.train_loss.iloc[-1] < history.frame.train_loss.iloc[0]
    train.fit(cut, rows, valid, **GO, checkpoint=tmp_path)
    train.fit(rest, rows, valid, **GO | dict(epochs=4), checkpoint=tmp_path, resume=True)
    assert same(whole, rest)


@pytest.mark.parametrize("change,says", [
    (dict(epochs=0), "epochs must be a whole number of 1 or more, got 0"), (dict(epochs=1.5), "epochs"), (dict(epochs=True), "epochs"),
    (dict(batch_size=0), "batch_size must be a whole number"), (dict(lr=0), "lr must be above 0"), (dict(lr=-1.), "lr must be above 0"),
    (dict(lr=float("nan")), "lr must be above 0"), (dict(lr=float("inf")), "finite"),
    (dict(precision="fp16"), "precision 'fp16' is unknown; choose fp32 or bf16"), (dict(patience=0), "patience must be a whole number"),
    (dict(patience=1, valid=None), "patience needs valid"), (dict(train="none"), "train has no rows"), (dict(valid="none"), "valid has no rows"),
    (dict(resume=True), "resume needs checkpoint"), (dict(device="gpu"), "unknown device"),
])
def test_wrong_arguments_are_named_before_any_work(tiny, change, says):
    spec, rows, valid = tiny[:3]
    m, change = fresh(spec), dict(change)
    before = weights(m)
    given_train = rows[:0] if change.pop("train", 0) == "none" else rows
    given_valid = {"none": valid[:0], None: None, 0: valid}[change.pop("valid", 0)]
    with pytest.raises(ValueError, match=says): train.fit(m, given_train, given_valid, **GO | change)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


@pytest.mark.wrong("device … was asked for but this machine has none; use 'auto' or 'cpu'",
                   cause="A GPU was named, and PyTorch sees none, or fewer.",
                   remedy="Leave device at 'auto', or install a PyTorch built for your GPU.", area="training")
def test_a_device_that_is_not_there(tiny):
    with pytest.raises(RuntimeError, match="device 'cuda:99' was asked for but this machine has none; use 'auto' or 'cpu'"): train.fit(fresh(tiny[0]), tiny[1], **GO, device="cuda:99")


@pytest.mark.wrong("epoch …: the loss is nan; lower lr (…) or look for huge inputs",
                   cause="The steps were so long that the weights ran away, or an input is so large that float32 overflows.",
                   remedy="Divide lr by ten. If that does not help, look at the largest values of your numeric columns.", area="training")
def test_a_loss_that_is_not_finite(tiny):
    rows = copy.copy(tiny[1])
    rows.dense = rows.dense.clone()
    rows.dense[7] = float("inf")
    with pytest.raises(FloatingPointError, match=r"epoch 1: the loss is nan; lower lr \(0.004\) or look for huge inputs$"): train.fit(fresh(tiny[0]), rows, **GO)


class Sick(model.InterestModel):
    "After so many steps its log-odds are nan, or its weights become so in the last step of an epoch."
    left, weights = 99, False

    def forward(self, batch):
        self.left -= torch.is_grad_enabled()
        found = super().forward(batch)
        if self.left >= 0: return found
        return found + (found.sum() - found.sum().detach())*math.inf if self.weights else found*math.nan


@pytest.mark.parametrize("weights,says", [(False, "the loss is nan"), (True, "(the loss is nan|a weight is not finite any more)")])
def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint_and_the_best_weights(tiny, tmp_path, weights, says):
    spec, rows, valid = tiny[:3]
    per, go = math.ceil(len(rows)/512), GO | dict(epochs=5)
    def sick(left, seed=0):
        core.set_seed(0)
        m = Sick(spec, widths=(16, 8), hidden=(16,), d_embed=4)
        m.left, m.weights = left, weights
        return m
    two, ill = fresh(spec), sick(3*per - 1)
    train.fit(two, rows, valid, **go | dict(epochs=2))
    kept = f"epoch 3: {says}; lower lr \\(0.004\\) or look for huge inputs; .*checkpoint.safetensors still holds the state after epoch 2"
    with pytest.raises(FloatingPointError, match=kept): train.fit(ill, rows, valid, **go, checkpoint=tmp_path)
    assert same(two, ill) and not ill.training
    again = sick(0)
    with pytest.raises(FloatingPointError, match="epoch 3: .*still holds the state after epoch 2"):
        train.fit(again, rows, valid, **go, checkpoint=tmp_path, resume=True)
    assert same(two, again)
    with pytest.raises(FloatingPointError) as e: train.fit(sick(0), rows, valid, **go)
    assert "epoch 1" in str(e.value) and "holds" not in str(e.value)


def test_training_labels_of_one_class_are_allowed_and_validation_ones_have_no_auc(tiny):
    spec, rows, valid = tiny[:3]
    none, few = copy.copy(rows), copy.copy(valid)
    none.label, few.label = torch.zeros_like(rows.label), torch.zeros_like(valid.label)
    frame = train.fit(fresh(spec), none, few, **GO).frame
    assert frame.valid_auc.isna().all() and frame.valid_loss.notna().all() and frame.train_loss.iloc[1] < frame.train_loss.iloc[0]


# Checkpoints ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [{}, dict(fusion="attention+own"), dict(fusion="none"), dict(towers=True)], ids=str)
def test_resume_at_the_end_of_an_epoch_gives_the_same_bits(tiny, tmp_path, options):
    spec, rows, valid = tiny[:3]
    whole, cut, rest = (fresh(spec, **options) for _ in range(3))
    one = train.fit(whole, rows, valid, **GO | dict(epochs=5))
    train.fit(cut, rows, valid, **GO | dict(epochs=3), checkpoint=tmp_path)
    two = train.fit(rest, rows, valid, **GO | dict(epochs=5), checkpoint=tmp_path, resume=True)
    assert same(whole, rest) and one.best_epoch == two.best_epoch
    pd.testing.assert_frame_equal(one.frame, two.frame, check_exact=True)


class Doomed(model.InterestModel):
    "Dies in the middle of a step."
    left = 0

    def forward(self, batch):
        self.left -= torch.is_grad_enabled()
        if self.left < 0: raise KeyboardInterrupt
        return super().forward(batch)


@pytest.mark.parametrize("steps", [13, 27])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_after_a_kill_inside_an_epoch_gives_the_same_bits(tiny, tmp_path, steps, precision):
    spec, rows, valid = tiny[:3]
    go = GO | dict(epochs=4, seed=2, precision=precision)
    whole, rest = fresh(spec), fresh(spec)
    train.fit(whole, rows, valid, **go)
    core.set_seed(0)
    doomed = Doomed(spec, widths=(16, 8), hidden=(16,), d_embed=4)
    doomed.left = steps
    with pytest.raises(KeyboardInterrupt): train.fit(doomed, rows, valid, **go, checkpoint=tmp_path)
    history = train.fit(rest, rows, valid, **go, checkpoint=tmp_path, resume=True)
    assert same(whole, rest) and len(history.frame) == 4


def test_resume_keeps_the_best_weights_and_the_patience_of_before(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    go = GO | dict(lr=2e-2, epochs=9)
    whole, rest = fresh(spec), fresh(spec)
    one = train.fit(whole, rows, valid, **go, patience=1)
    assert one.best_epoch == len(one.frame) - 1 < 8
    for epochs in range(1, 10):
        history = train.fit(rest if epochs == 9 else fresh(spec), rows, valid, **go | dict(epochs=epochs), patience=1,
                            checkpoint=tmp_path, resume=epochs > 1)
    assert same(whole, rest)
    pd.testing.assert_frame_equal(one.frame, history.frame, check_exact=True)


def test_a_finished_run_only_gives_its_weights_back(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    whole, again = fresh(spec), fresh(spec, seed=9)
    train.fit(whole, rows, valid, **GO, checkpoint=tmp_path)
    before = (tmp_path/"checkpoint.safetensors").read_bytes()
    assert len(train.fit(again, rows, valid, **GO, checkpoint=tmp_path, resume=True).frame) == 2
    assert same(whole, again) and (tmp_path/"checkpoint.safetensors").read_bytes() == before


def test_without_resume_the_checkpoint_is_replaced(tiny, tmp_path):
    spec, rows = tiny[:2]
    a, b = fresh(spec), fresh(spec)
    train.fit(fresh(spec, seed=4), rows, **GO | dict(lr=1e-3), checkpoint=tmp_path)
    train.fit(a, rows, **GO, checkpoint=tmp_path)
    train.fit(b, rows, **GO, checkpoint=tmp_path, resume=True)
    assert same(a, b)


@pytest.mark.parametrize("name", ["open", "replace"])
@pytest.mark.wrong("No space left on device: free space or name another folder; what was there before is untouched",
                   cause="The disk filled up while a checkpoint was being written.",
                   remedy="Free space and call fit again with resume=True: the checkpoint of the epoch before is whole. The model in memory holds its best weights.",
                   area="files")
def test_a_disk_that_fills_up_leaves_the_old_checkpoint_and_the_best_weights(tiny, tmp_path, monkeypatch, name):
    spec, rows = tiny[:2]
    whole, cut, rest, go = fresh(spec), fresh(spec), fresh(spec), GO | dict(epochs=3)
    train.fit(whole, rows, **go)
    module, real, seen = dict(open=(builtins, open), replace=(os, os.replace))[name] + ([],)
    def full(path, *args, **options):
        if "checkpoint.safetensors" in str(path): seen.append(path)
        if len(seen) == 2 and str(path).endswith(".part"): raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(OSError, match="No space left on device: free space or name another folder; what was there before is untouched: .*checkpoint.safetensors'$"):
            train.fit(cut, rows, **go, checkpoint=tmp_path)
    assert [p.name for p in sorted(tmp_path.iterdir())] == [".lock", "checkpoint.safetensors"]
    assert len(train._read(tmp_path/"checkpoint.safetensors")[1]["log"]) == 1 and not cut.training
    train.fit(rest, rows, **go, checkpoint=tmp_path, resume=True)
    assert same(whole, rest)


@pytest.mark.parametrize("number,text", [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied")])
@pytest.mark.wrong("training was not begun, because its checkpoint of … MB cannot be written: Read-only file system: free space or name another folder; what was there before is untouched",
                   cause="The folder for the checkpoint cannot be written to, or the disk is full.",
                   remedy="Name a folder that you may write to, with that much room.", area="files")
def test_a_folder_that_cannot_be_written_to_is_found_before_the_first_epoch(tiny, tmp_path, monkeypatch, number, text):
    spec, rows = tiny[:2]
    m = fresh(spec)
    train.fit(m, rows, **GO | dict(epochs=1), checkpoint=tmp_path)
    before, file = weights(m), (tmp_path/"checkpoint.safetensors").read_bytes()
    def shut(path, mode="r", *args, real=open, **options):
        if str(path).endswith(".part") and "w" in mode: raise OSError(number, text, str(path))
        return real(path, mode, *args, **options)
    monkeypatch.setattr(builtins, "open", shut)
    for resume in (True, False):
        with pytest.raises(OSError, match=rf"training was not begun, because its checkpoint of 0\.1 MB cannot be written: {text}: free space or name another folder; what was there before is untouched: '.*checkpoint.safetensors'") as e:
            train.fit(m, rows, **GO, checkpoint=tmp_path, resume=resume)
        assert e.value.errno == number and e.value.filename == str(tmp_path/"checkpoint.safetensors")
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items()) and (tmp_path/"checkpoint.safetensors").read_bytes() == file
    train.fit(m, rows, **GO | dict(epochs=1), checkpoint=tmp_path, resume=True) # nothing is left to do, so nothing is written


@pytest.mark.wrong("the folder for the checkpoint cannot be made or written to: Not a directory; name another folder",
                   cause="checkpoint names a place where no folder can be: below a file, or where you may not write.",
                   remedy="Name another folder.", area="files")
def test_a_folder_that_cannot_be_made(tiny, tmp_path, monkeypatch):
    spec, rows = tiny[:2]
    m = fresh(spec)
    before = weights(m)
    (tmp_path/"file").write_text("x")
    with pytest.raises(OSError, match="the folder for the checkpoint cannot be made or written to: Not a directory; name another folder: .*below"):
        train.fit(m, rows, **GO, checkpoint=tmp_path/"file"/"below")
    def refuse(*args, **options): raise PermissionError(errno.EACCES, "Permission denied", str(args[0]))
    for target, name in ((Path, "mkdir"), (os, "open")): # no right to make it; no right to make the lock in it
        with monkeypatch.context() as patch:
            patch.setattr(target, name, refuse)
            with pytest.raises(PermissionError, match="the folder for the checkpoint cannot be made or written to: Permission denied"):
                train.fit(m, rows, **GO, checkpoint=tmp_path/"new")
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


LIMITED = """
import resource, sys, torch
from tests.test_train import GO, Doomed, fresh, same, small, train
torch.set_num_threads(1)
spec, rows = small()[:2]
class Filling(type(fresh(spec))):
    left = 99
    def forward(self, batch):
        self.left -= torch.is_grad_enabled()
        if self.left < 0: limit(20_000)
        return super().forward(batch)
def limit(size): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
def go(m, epochs, **more):
    try: train.fit(m, rows, **GO | dict(epochs=epochs), checkpoint=sys.argv[1], **more)
    except OSError as e: print(e)
whole, rest, filling = fresh(spec), fresh(spec), fresh(spec)
filling.__class__, filling.left = Filling, 15
train.fit(whole, rows, **GO | dict(epochs=4))
go(filling, 4)
go(fresh(spec), 4, resume=True)
limit(resource.RLIM_INFINITY)
go(rest, 4, resume=True)
print(same(whole, rest))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
def test_files_that_may_not_grow(tmp_path):
    "The system itself refuses: in the second epoch, then before the first one of the next try; then there is room again."
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path/"run")], cwd=root, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    full, again, alike = done.stdout.splitlines()
    assert re.search("File too large: free space or name another folder; what was there before is untouched: .*checkpoint.safetensors", full)
    assert re.search("training was not begun, because its checkpoint of 0.1 MB cannot be written: File too large: free space .*checkpoint.safetensors", again)
    assert alike == "True"
    assert [p.name for p in sorted((tmp_path/"run").iterdir())] == [".lock", "checkpoint.safetensors"]


# Ctrl-C and a second run ----------------------------------------------------------------------------------------------

def doomed(spec, steps):
    "A model at which somebody presses Ctrl-C after so many steps."
    core.set_seed(0)
    m = Doomed(spec, widths=(16, 8), hidden=(16,), d_embed=4)
    m.left = steps
    return m


@pytest.mark.wrong("stopped in epoch … and no checkpoint was asked for: give checkpoint=FOLDER to be able to go on",
                   cause="You pressed Ctrl-C, and the run had no folder for its state.",
                   remedy="Train again with checkpoint=FOLDER. The model in memory holds its best weights so far.", area="training")
@pytest.mark.wrong("stopped in epoch 1 and nothing was saved yet: the first state goes to … after epoch 1",
                   cause="You pressed Ctrl-C before the first epoch was over.", remedy="Call fit again, without resume.", area="training")
def test_ctrl_c_says_what_was_saved_and_leaves_the_best_weights(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    per, go = math.ceil(len(rows)/512), GO | dict(epochs=9, lr=2e-2)
    with pytest.raises(KeyboardInterrupt, match="^stopped in epoch 1 and no checkpoint was asked for: give checkpoint=FOLDER to be able to go on$"):
        train.fit(doomed(spec, 3), rows, valid, **go)
    with pytest.raises(KeyboardInterrupt, match="^stopped in epoch 1 and nothing was saved yet: the first state goes to .*checkpoint.safetensors after epoch 1$"):
        train.fit(doomed(spec, 3), rows, valid, **go, checkpoint=tmp_path)
    assert not (tmp_path/"checkpoint.safetensors").exists()
    stopped, whole = doomed(spec, 8*per + 2), fresh(spec)
    with pytest.raises(KeyboardInterrupt, match="^stopped in epoch 9; .*checkpoint.safetensors holds the state after epoch 8: call fit again with resume=True$"):
        train.fit(stopped, rows, valid, **go, checkpoint=tmp_path)
    best = train.fit(whole, rows, valid, **go | dict(epochs=8)).best_epoch
    assert best < 8 and same(whole, stopped) and not stopped.training
    with pytest.raises(KeyboardInterrupt, match="epoch 9; .* after epoch 8"): train.fit(doomed(spec, 2), rows, valid, **go, checkpoint=tmp_path, resume=True)


def test_ctrl_c_closes_the_bar(tiny, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    before = len(train.tqdm._instances)
    with pytest.raises(KeyboardInterrupt): train.fit(doomed(tiny[0], 3), tiny[1], **GO | dict(progress=True))
    assert "epoch 1/2" in sys.stderr.getvalue() and sys.stderr.getvalue().endswith("\r") and len(train.tqdm._instances) == before


@pytest.mark.wrong("another run is writing into …: wait until it ends, or name another folder",
                   cause="Two trainings were given the same folder for their checkpoint.", remedy="Give each run a folder of its own.", area="training")
@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_in_one_folder(tiny, tmp_path, resume):
    spec, rows = tiny[:2]
    train.fit(fresh(spec), rows, **GO, checkpoint=tmp_path)
    second = fresh(spec)
    before, file = weights(second), (tmp_path/"checkpoint.safetensors").read_bytes()

    class First(model.InterestModel):
        def forward(self, batch):
            with pytest.raises(BlockingIOError, match="another run is writing into .*: wait until it ends, or name another folder"):
                train.fit(second, rows, **GO, checkpoint=tmp_path, resume=resume)
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match="nothing was saved yet"): train.fit(First(spec), rows, **GO, checkpoint=tmp_path)
    assert all(torch.equal(before[k], v) for k, v in second.state_dict().items()) and (tmp_path/"checkpoint.safetensors").read_bytes() == file
    train.fit(second, rows, **GO, checkpoint=tmp_path, resume=resume) # the folder is free again


# Which checkpoint may be gone on from ---------------------------------------------------------------------------------

@pytest.mark.parametrize("change,says", [
    (dict(lr=1e-3), "is of another run: lr was 0.004, now 0.001; name another folder, or train anew without resume"), (dict(batch_size=256), "batch_size was 512, now 256"), (dict(seed=1), "seed was 0, now 1"),
    (dict(precision="bf16"), "precision was 'fp32', now 'bf16'"), (dict(rows=slice(1, None)), "rows of train was"),
    (dict(valid=None), "rows of valid was"), (dict(fusion="mean"), r"does not fit this model: .* is float32 \(.*\), expected nothing; .*; …$"),
    (dict(widths=(8, 8)), r"does not fit this model: model\.extract\.layers\.0\.weight is float32 \(16, \d+\), expected float32 \(8, \d+\); .*; …$"),
])
@pytest.mark.wrong("… is of another run: lr was 0.004, now 0.001; name another folder, or train anew without resume",
                   cause="resume=True was given with other arguments or other rows than the run began with.",
                   remedy="Give the arguments of before, or start a run of its own in another folder.", area="training")
@pytest.mark.wrong("… does not fit this model: model.… is …, expected …",
                   cause="resume=True was given with a model of another shape than the run began with.",
                   remedy="Build the model with the options of before.", area="training")
def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path, change, says):
    spec, rows, valid = tiny[:3]
    train.fit(fresh(spec), rows, valid, **GO, checkpoint=tmp_path)
    change = dict(change)
    m = fresh(spec, **{k: change.pop(k) for k in ("fusion", "widths") if k in change})
    with pytest.raises(ValueError, match=says):
        train.fit(m, rows[change.pop("rows", slice(None))], change.pop("valid", valid), **GO | change, checkpoint=tmp_path, resume=True)


def test_other_labels_are_noticed(tiny, tmp_path):
    spec, rows = tiny[:2]
    train.fit(fresh(spec), rows, **GO, checkpoint=tmp_path)
    other = copy.copy(rows)
    other.label = 1 - rows.label
    with pytest.raises(ValueError, match="sum of train.label was"): train.fit(fresh(spec), other, **GO, checkpoint=tmp_path, resume=True)


@pytest.mark.wrong("… holds 2 epochs, and epochs=1 asks for fewer: give epochs=2 or more, or train anew without resume",
                   cause="epochs counts from the start of the run, also when it is resumed, and the run is further already.",
                   remedy="Give the number of epochs that you want in all.", area="training")
def test_fewer_epochs_than_are_done(tiny, tmp_path):
    spec, rows = tiny[:2]
    train.fit(fresh(spec), rows, **GO, checkpoint=tmp_path)
    m = fresh(spec, seed=1)
    before = weights(m)
    with pytest.raises(ValueError, match="checkpoint.safetensors holds 2 epochs, and epochs=1 asks for fewer: give epochs=2 or more, or train anew without resume"):
        train.fit(m, rows, **GO | dict(epochs=1), checkpoint=tmp_path, resume=True)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


def stored(path):
    "The tensors of a checkpoint and what it tells, without its checksum."
    with safe_open(path, "pt") as f: about = json.loads(f.metadata()["about"])
    del about["sha256"]
    return from_bytes(path.read_bytes()), about


def forge(path, tensors, about):
    "A checkpoint with a right checksum, whatever it holds."
    path.write_bytes(to_bytes(tensors, dict(about=json.dumps(about | dict(sha256=train._digest(tensors, about))))))


@pytest.mark.wrong("… is not there: nothing to resume; run without resume first",
                   cause="resume=True was given, and the folder holds no checkpoint.", remedy="Check the folder's name, or leave resume away for the first run.",
                   area="training")
@pytest.mark.wrong("… is damaged or no checkpoint: …", cause="The file was changed, cut short, or is something else under this name.",
                   remedy="Put a copy back, or train anew without resume.", area="files")
@pytest.mark.wrong("… is a pickle or a zip file, which can run code when opened, so it is not read: save again with fit",
                   cause="The checkpoint was written with torch.save or pickle.", remedy="Never open such a file from others. Train with fit, which writes data only.",
                   area="files")
@pytest.mark.wrong("… has format …, this version reads 2; train anew without resume", cause="The checkpoint was written by another version of the package.",
                   remedy="Train anew, or go on with the version that wrote it.", area="files")
def test_checkpoints_that_cannot_be_read(tiny, tmp_path):
    spec, rows = tiny[:2]
    resume = lambda: train.fit(fresh(spec), rows, **GO, checkpoint=tmp_path/"run", resume=True)
    with pytest.raises(FileNotFoundError, match="checkpoint.safetensors is not there: nothing to resume; run without resume first"): resume()
    assert not (tmp_path/"run").exists()
    train.fit(fresh(spec), rows, **GO, checkpoint=tmp_path/"run")
    path = tmp_path/"run"/"checkpoint.safetensors"
    whole, (tensors, about) = path.read_bytes(), stored(path)
    for broken in (whole[:-100], whole[:10], b"", b"\xff"*200, whole + b"0", whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="checkpoint.safetensors is damaged or no checkpoint"): resume()
    torch.save(tensors, path)
    with pytest.raises(ValueError, match="checkpoint.safetensors is a pickle or a zip file, which can run code when opened, so it is not read: save again with fit"): resume()
    for other in (1, 99, None):
        forge(path, tensors, about | dict(format=other))
        with pytest.raises(ValueError, match=f"has format {other}, this version reads 2; train anew without resume"): resume()
    for told in ({}, dict(about="[]"), dict(about="{")):
        path.write_bytes(to_bytes(tensors, told))
        with pytest.raises(ValueError, match="is damaged or no checkpoint"): resume()
    forge(path, tensors, about)
    resume()


@pytest.mark.parametrize("change,says", [
    (lambda t, a: t.update({"adam.0.exp_avg": t["adam.0.exp_avg"][:-1]}), r"does not fit this model: adam\.0\.exp_avg is float32 \(.*\), expected float32"),
    (lambda t, a: t.update({"adam.0.exp_avg_sq": t["adam.0.exp_avg_sq"].double()}), r"adam\.0\.exp_avg_sq is float64 .*, expected float32"),
    (lambda t, a: t.update({"adam.0.step": torch.ones(1)}), r"adam\.0\.step is float32 \(1,\), expected float32 \(\)"),
    (lambda t, a: t.pop("adam.0.step"), r"adam\.0\.step is missing, expected float32"),
    (lambda t, a: t.update({"adam.77.step": torch.tensor(1.)}), r"adam\.77\.step is float32 \(\), expected nothing"),
    (lambda t, a: t.update({"adam.x": torch.tensor(1.)}), r"adam\.x is float32"), (lambda t, a: t.update(other=torch.ones(2)), "other is float32"),
    (lambda t, a: t.pop("best.embed.table.weight"), r"best\.embed\.table\.weight is missing"),
    (lambda t, a: t.update({"model.embed.table.weight": t["model.embed.table.weight"].half()}), r"model\.embed\.table\.weight is float16"),
    (lambda t, a: a.update(log=[]), "its log is not one line per epoch"), (lambda t, a: a.update(log=a["log"][1:]), "its log is not one line per epoch"),
    (lambda t, a: a.update(log="long"), "its log"), (lambda t, a: a.update(log=[3]), "its log"), (lambda t, a: a.update(run=None), "damaged"), (lambda t, a: a.pop("log"), "its log"),
])
def test_what_is_in_a_checkpoint_is_checked_before_it_is_used(tiny, tmp_path, change, says):
    spec, rows = tiny[:2]
    train.fit(fresh(spec), rows, **GO, checkpoint=tmp_path)
    tensors, about = stored(tmp_path/"checkpoint.safetensors")
    change(tensors, about)
    forge(tmp_path/"checkpoint.safetensors", tensors, about)
    m = fresh(spec, seed=1)
    before = weights(m)
    with pytest.raises(ValueError, match=f"checkpoint.safetensors .*{says}"): train.fit(m, rows, **GO | dict(epochs=3), checkpoint=tmp_path, resume=True)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


@pytest.fixture(scope="module")
def known(tiny, tmp_path_factory):
    "Few rows, the bytes of a checkpoint after two epochs, and the weights after three."
    rows, folder = tiny[1][:200], tmp_path_factory.mktemp("known")
    go = dict(batch_size=100, lr=1e-2, progress=False)
    made = lambda: fresh(tiny[0], widths=(4,), hidden=())
    train.fit(made(), rows, epochs=2, **go, checkpoint=folder)
    whole = made()
    train.fit(whole, rows, epochs=3, **go)
    return made, rows, go, (folder/"checkpoint.safetensors").read_bytes(), whole, folder


@given(st.data())
@settings(max_examples=150)
def test_a_checkpoint_with_other_bytes_is_refused_or_gives_the_same_bits(known, data):
    made, rows, go, content, whole, folder = known
    changed = bytearray(content)
    head = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, 7), st.integers(8, head - 1), st.integers(head, len(changed) - 1))) % max(len(changed), 1)
        kind = data.draw(st.sampled_from(["flip", "put", "cut", "insert", "double"]))
        if kind == "flip": changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "put": changed[at:at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut": del changed[at:at + data.draw(st.integers(1, 2000))]
        elif kind == "insert": changed[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        else: changed[at:at] = changed[at:at + 100]
        if not changed: break
    (folder/"checkpoint.safetensors").write_bytes(changed)
    m = made()
    with contextlib.suppress(ValueError):
        train.fit(m, rows, epochs=3, **go, checkpoint=folder, resume=True)
        assert same(m, whole)


def test_any_flipped_bit_of_a_weight_is_noticed(known):
    made, rows, go, content, _, folder = known
    head, r = 8 + int.from_bytes(content[:8], "little"), np.random.default_rng(0)
    for at in r.integers(head, len(content), 200):
        changed = bytearray(content)
        changed[at] ^= 1 << int(r.integers(8))
        (folder/"checkpoint.safetensors").write_bytes(changed)
        assert from_bytes(bytes(changed)) # the format alone does not notice
        with pytest.raises(ValueError, match="its checksum differs; put a copy back, or train anew without resume"): train._read(folder/"checkpoint.safetensors")


@pytest.mark.wrong("checkpoint … is a file; name a folder", cause="checkpoint names a file.", remedy="Name a folder: fit makes it and chooses the file's name.", area="files")
def test_a_file_is_no_folder(tiny, tmp_path):
    (tmp_path/"file").write_text("x")
    with pytest.raises(ValueError, match="checkpoint '.*' is a file; name a folder"): train.fit(fresh(tiny[0]), tiny[1], **GO, checkpoint=tmp_path/"file")


def test_a_folder_is_made_and_may_be_a_string(tiny, tmp_path):
    train.fit(fresh(tiny[0]), tiny[1], **GO, checkpoint=str(tmp_path/"new"/"folder"))
    assert [p.name for p in sorted((tmp_path/"new"/"folder").iterdir())] == [".lock", "checkpoint.safetensors"]


# Faster ---------------------------------------------------------------------------------------------------------------

def test_bf16_is_close_and_keeps_float32_weights(tiny):
    spec, rows, valid = tiny[:3]
    exact, rough = fresh(spec), fresh(spec)
    losses = [train.fit(m, rows, valid, **GO, precision=p).frame for m, p in ((exact, "fp32"), (rough, "bf16"))]
    assert {v.dtype for v in rough.state_dict().values() if v.is_floating_point()} == {torch.float32}
    assert (losses[0] - losses[1])[["train_loss", "valid_loss"]].abs().max(axis=None) < .02 and not same(exact, rough)
    assert (train.predict(exact, valid) - train.predict(rough, valid)).abs().mean() < .02


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))), reason="torch.compile needs a C++ compiler")
def test_compile_is_close(tiny):
    spec, rows, valid = tiny[:3]
    plain, quick = fresh(spec), fresh(spec)
    train.fit(plain, rows, valid, **GO)
    train.fit(quick, rows, valid, **GO, compile=True)
    assert list(plain.state_dict()) == list(quick.state_dict())
    torch.testing.assert_close(train.predict(plain, valid), train.predict(quick, valid), rtol=0, atol=5e-3)


class Screen(io.StringIO):
    "A terminal."
    def isatty(self): return True


def test_progress_shows_on_a_terminal_alone(tiny, monkeypatch, capfd):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    train.fit(fresh(tiny[0]), tiny[1], **GO | dict(progress=True))
    assert capfd.readouterr() == ("", "")
    for progress in (True, False):
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        train.fit(fresh(tiny[0]), tiny[1], **GO | dict(progress=progress))
        assert ("epoch 2/2" in screen.getvalue()) is progress


# predict, compare, maps -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fusion", list(model.FUSIONS))
def test_predict(tiny, fusion):
    spec, _, valid = tiny[:3]
    m = fresh(spec, fusion)
    prob = train.predict(m, valid, batch_size=100)
    assert prob.dtype == torch.float32 and prob.shape == (len(valid),) and not prob.requires_grad and m.training
    rows = range(0, len(valid), 37)
    torch.testing.assert_close(prob[::37], torch.cat([torch.sigmoid(m(valid[i])) for i in rows]).detach(), rtol=0, atol=1e-6)
    assert train.predict(m, valid[:0]).shape == (0,)
    assert not (m.eval(), train.predict(m, valid), m.training)[2]


def test_predict_leaves_the_mode_alone_even_after_an_error(tiny):
    m = fresh(tiny[0])
    with pytest.raises(ValueError, match="1 or more"): train.predict(m, tiny[2], batch_size=0)
    assert m.training


def test_compare(tiny):
    spec, rows, valid, test, user = tiny
    found = train.compare(spec, rows, valid, test, user, ("none", "mean"), seeds=(0, 3), epochs=2, progress=False, widths=(8,), hidden=())
    places = [*dict.fromkeys(found.frame.scenario)]
    assert places == [*sorted(spec.scenarios), "macro", "all"] and len(found.frame) == 2*2*len(places)
    assert set(found.models) == set(found.histories) == {"none", "mean"} and found.models["mean"].options["widths"] == (8,)
    core.set_seed(3)
    again = model.InterestModel(spec, "mean", widths=(8,), hidden=())
    train.fit(again, rows, valid, epochs=2, batch_size=512, lr=4e-3, patience=2, seed=3, progress=False)
    assert same(again, found.models["mean"])
    prob, row = train.predict(again, test).numpy(), found.frame.query("fusion == 'mean' and seed == 3").set_index("scenario")
    assert row.auc["all"] == pytest.approx(metrics.auc(test.label, prob))
    for k, name in enumerate(spec.scenarios):
        here = (test.scenario == k).numpy()
        assert row.auc[name] == pytest.approx(metrics.auc(test.label[here], prob[here]))
        assert row.gauc[name] == pytest.approx(metrics.gauc(test.label[here], prob[here], user[here]))
    with pytest.raises(ValueError, match="fusion 'sum' is unknown"): train.compare(spec, rows, valid, test, user, ("sum",))


def test_spread_by_loops():
    r = np.random.default_rng(0)
    frame = pd.DataFrame([(f, s, p, r.random()) for f in ("own", "attention", "mean") for s in range(4) for p in ("home", "cart", "macro")],
                         columns=["fusion", "seed", "scenario", "auc"])
    mean, sd = train.spread(frame)
    assert list(mean.index) == ["own", "attention", "mean"] and list(mean.columns) == list(sd.columns) == ["home", "cart", "macro"]
    for f in mean.index:
        for p in mean.columns:
            x = [row.auc for row in frame.itertuples() if row.fusion == f and row.scenario == p]
            m = sum(x)/4
            assert mean.loc[f, p] == pytest.approx(m) and sd.loc[f, p] == pytest.approx(math.sqrt(sum((v - m)**2 for v in x)/3))
    assert train.spread(frame[frame.seed == 0])[1].isna().all(axis=None)
    with pytest.raises(ValueError, match="no column 'gauc'"): train.spread(frame, "gauc")
    with pytest.raises(ValueError, match="no column 'seed'"): train.spread(frame.drop(columns="seed"))


@pytest.mark.formula("9.7")
@pytest.mark.parametrize("fusion", ["attention", "attention+own"])
def test_attention_map_by_loops(tiny, fusion):
    spec, _, _, test = tiny[:4]
    m = fresh(spec, fusion)
    S = len(spec.scenarios)
    total, count = [[0.]*S for _ in range(S)], [0]*S
    for i in range(len(test)):
        row = test[i]
        if not row.present.all(): continue
        alpha, t = m.explain(row)[1][0].tolist(), row.scenario.item()
        total[t], count[t] = [a + b for a, b in zip(total[t], alpha)], count[t] + 1
    assert min(count) > 0
    found = train.attention_map(m, test, batch_size=100)
    np.testing.assert_allclose(found.to_numpy(), [[x/n for x in line] for line, n in zip(total, count)], atol=1e-6)
    assert list(found.index) == list(found.columns) == list(spec.scenarios) and (found.index.name, found.columns.name) == ("target", "history")
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert m.training


def test_attention_map_of_known_fusions_and_of_none(tiny):
    spec, _, _, test = tiny[:4]
    S = len(spec.scenarios)
    np.testing.assert_allclose(train.attention_map(fresh(spec, "own"), test), np.eye(S), atol=1e-9)
    np.testing.assert_allclose(train.attention_map(fresh(spec, "mean"), test), np.full((S, S), 1/S), atol=1e-6)
    every, model_ = train.attention_map(fresh(spec, "mean"), test, complete=False), fresh(spec, "mean")
    alpha = model_.explain(test)[1].detach().numpy()
    for s, name in enumerate(spec.scenarios): np.testing.assert_allclose(every.loc[name], alpha[test.scenario.numpy() == s].mean(0), atol=1e-6)
    only = train.attention_map(fresh(spec), test[test.scenario == 1])
    assert only.iloc[1].notna().all() and only.drop(index=only.index[1]).isna().all(axis=None)
    for fusion in ("none", "concat"):
        m = fresh(spec, fusion)
        with pytest.raises(ValueError, match=f"fusion '{fusion}' has no weights"): train.attention_map(m, test)
        assert m.training
    with pytest.raises(ValueError, match="1 or more"): train.attention_map(fresh(spec), test, batch_size=0)


def test_pictures():
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    one = pd.DataFrame([[.25, .75], [float("nan")]*2], ["a", "b"], ["a", "b"])
    fig = train.plot_map({"first": one, "second": one.fillna(0)})
    assert [ax.get_title() for ax in fig.axes] == ["first", "second"]
    assert [t.get_text() for t in fig.axes[0].texts] == ["0.25", "0.75", "nan", "nan"]
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in fig.axes)
    frame = pd.DataFrame(dict(epoch=[1, 2, 3], train_loss=[.6, .5, .4], valid_loss=[.6, .5, .55], valid_auc=[.6, .7, .7]))
    ax = train.History(frame, 2).plot()
    assert [line.get_label() for line in ax.get_lines()] == ["training rows", "validation rows", "best epoch"]
    alone = train.History(frame.assign(valid_loss=float("nan")), 3).plot(plt.figure().subplots())
    assert [line.get_label() for line in alone.get_lines()] == ["training rows", "best epoch"]
    plt.close("all")


# Gates ----------------------------------------------------------------------------------------------------------------

def race(parts, spec, user, fusions, seeds, **options):
    "Mean AUC over seeds, (fusions, scenarios)."
    return train.spread(train.compare(spec, *parts, user, fusions, seeds=seeds, progress=False, **options).frame)[0]


def ceiling(mall, rows):
    "The report of the observable ceiling on these rows."
    return metrics.report(rows.clicked, predictor.observable_ceiling(mall, rows), rows.scenario, rows.user_id)


def test_attention_leads_on_a_small_mall():
    mall, spec, parts, frames = prepared(n_users=1500, n_events=40_000)
    mean = race(parts, spec, frames[2].user_id.to_numpy(), ("own", "mean", "attention"), (0,), batch_size=256, epochs=4)
    top = ceiling(mall, frames[2])
    for place in ("macro", "all"):
        assert mean.loc["attention", place] > mean.loc[["own", "mean"], place].max() + .003, mean
        assert mean.loc["attention", place] < top.auc[place]


@pytest.mark.slow
def test_attention_leads_on_the_whole_mall_over_five_seeds():
    mall, spec, parts, frames = prepared()
    mean = race(parts, spec, frames[2].user_id.to_numpy(), ("none", "own", "mean", "attention"), range(5))
    top = ceiling(mall, frames[2])
    for place in ("macro", "all"):
        assert mean.loc["attention", place] >= mean.loc[["own", "mean"], place].max() + .01, mean
        assert mean.loc["none", place] + .1 < mean.loc["attention", place] < top.auc[place]


@pytest.mark.gpu
@pytest.mark.parametrize("fusion", list(model.FUSIONS))
def test_cpu_and_gpu_agree(tiny, fusion, monkeypatch):
    "Scores, the loss and the gradients of one step, and the model after the step, in fp32 with TF32 off."
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    spec, rows, valid = tiny[:3]
    cpu, gpu = fresh(spec, fusion), fresh(spec, fusion).to("cuda")
    torch.testing.assert_close(train.predict(gpu, valid), train.predict(cpu, valid), rtol=0, atol=1e-4)
    go = dict(epochs=1, batch_size=len(rows), lr=2e-4, progress=False)
    losses = [train.fit(m, rows, **go, device=device).frame.train_loss.item() for m, device in ((cpu, "cpu"), (gpu, "cuda"))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for (name, a), b in zip(cpu.named_parameters(), gpu.parameters()):
        assert b.device.type == "cuda"
        torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=0, atol=1e-4, msg=lambda m, name=name: f"gradient of {name}: {m}")
        sure = a.grad.abs() > 1e-5 # Adam's first step is the sign of the gradient, and below this the sign is rounding
        torch.testing.assert_close(b.detach().cpu()[sure], a.detach()[sure], rtol=0, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    torch.testing.assert_close(train.predict(gpu, valid), train.predict(cpu, valid), rtol=0, atol=1e-4)
