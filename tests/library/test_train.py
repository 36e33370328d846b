"""Second opinions on training: optimisers by plain loops and torch.optim, fit step by step, every promised
error."""
import builtins
import contextlib
import errno
import io
import itertools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from multiscene_rec import (
    checkpoints,
    core,
    data,
    metrics,
    model,
    predictor,
    preprocess,
    train,
    training,
    trials,
)
from multiscene_rec.data import Batch, with_parts
from multiscene_rec.fusion import fusion_names
from multiscene_rec.storage import read_record, write_record
from multiscene_rec.train import Callback, Checkpoint, FiniteCheck, KeepBest, Progress

GO = dict(epochs=2, batch_size=512, lr=4e-3)


def prepared(**options):
    "A mall, its spec, three batches and the three frames."
    mall = data.toy_mall(**options)
    log, _ = preprocess.clean(mall.events)
    frames = preprocess.time_split(log)
    prep = preprocess.Preprocessor().fit(frames[0], users=mall.users, items=mall.items)
    past = preprocess.EventLog(log, mall.users)
    return mall, prep.spec, [prep.transform(frame, past) for frame in frames], frames


def small():
    """Spec and batches: 4800 rows to train on, so that an epoch is a fraction of a second; and the users
    of the test rows."""
    _, spec, parts, frames = prepared(n_users=250, n_items=60, n_events=6000)
    return spec, *parts, frames[2].user_id.to_numpy()


@pytest.fixture(scope="module")
def tiny(): return small()


def fresh(spec, fusion="attention", seed=0, **options):
    "A small model that is always the same."
    core.set_seed(seed)
    return model.InterestModel(spec, fusion, **dict(widths=(16, 8), hidden=(16,), d_embed=4) | options)


def fit(m, rows, valid=None, checkpoint=None, resume=False, patience=None, beside=(), **options):
    "Train without a bar; keep the best weights, and a checkpoint where a folder is named."
    kept = [Checkpoint(checkpoint, resume)] if checkpoint is not None else []
    return train.fit(m, rows, valid, callbacks=(FiniteCheck(), KeepBest(patience), *beside, *kept), **options)


def weights(m): return {k: v.detach().clone() for k, v in m.state_dict().items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


# The optimisers
# -------------------------------------------------------------------------------------------------------

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
    w, state, path = torch.ones(gs.shape[1], dtype=torch.float64), [torch.zeros(gs.shape[1],
        dtype=torch.float64)]*n_state, []
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
    ours = train.sgd_step(train.sgd_step(torch.tensor([1., 2.]), torch.tensor([.5, -1.]), lr),
                          torch.tensor([3., .25]), lr)
    assert ours.tolist() == pytest.approx(w, abs=1e-6)


@pytest.mark.formula("9.3")
@pytest.mark.parametrize("mu", [0., .5, .99])
def test_momentum(mu):
    gs = slopes(1)
    torch.testing.assert_close(by_us(lambda w, g, v, t: train.momentum_step(w, g, v, .01, mu), 1, gs),
                               by_torch(lambda p: torch.optim.SGD(p, lr=.01, momentum=mu), gs), rtol=0,
                               atol=1e-7)
    v = torch.zeros(5, dtype=torch.float64)
    for g in gs[:30]: _, v = train.momentum_step(g, g, v, .01, mu)
    unrolled = sum(mu**(29 - i)*gs[i] for i in range(30))
    torch.testing.assert_close(v, unrolled, rtol=1e-12, atol=1e-12)


@pytest.mark.formula("9.6")
@pytest.mark.parametrize("betas,eps", [((.9, .999), 1e-8), ((.5, .9), 1e-3), ((0., 0.), 1e-8)])
def test_adam(betas, eps):
    gs = slopes(2)
    torch.testing.assert_close(by_us(lambda w, g, m, v, t: train.adam_step(w, g, m, v, t, .03, betas, eps), 2,
                                     gs),
                               by_torch(lambda p: torch.optim.Adam(p, lr=.03, betas=betas, eps=eps), gs),
                               rtol=0, atol=1e-7)
    g, w, m, v = [float(x[0]) for x in gs[:5]], 1., 0., 0.
    for t, x in enumerate(g, 1):
        m, v = betas[0]*m + (1 - betas[0])*x, betas[1]*v + (1 - betas[1])*x*x
        w -= .03*(m/(1 - betas[0]**t))/(math.sqrt(v/(1 - betas[1]**t)) + eps)
    assert by_us(lambda w, g, m, v, t: train.adam_step(w, g, m, v, t, .03, betas, eps), 2, gs)[4,
        0].item() == pytest.approx(w, abs=1e-12)


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
    assert train.debias(torch.tensor(m, dtype=torch.float64), beta, t).item() == pytest.approx(np.average(g,
        weights=share), rel=1e-8)


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
    assert train.shrink_rate(curvature, lr, mu) == pytest.approx(np.abs(np.linalg.eigvals(matrix)).max(),
        rel=1e-4, abs=1e-6)


def test_shrink_rate_is_seen_on_the_way():
    w, v, far = torch.tensor(1., dtype=torch.float64), torch.tensor(0., dtype=torch.float64), []
    for _ in range(400):
        w, v = train.momentum_step(w, 3.*w, v, .05, .6)
        far.append(abs(w.item()))
    assert (max(far[-40:])/max(far[-80:-40]))**(1/40) == pytest.approx(train.shrink_rate(3., .05, .6),
        rel=.02)


@pytest.mark.parametrize("kappa", [4., 50.])
def test_tuned_momentum_is_best_on_a_grid(kappa):
    root = math.sqrt(kappa)
    worst = lambda lr, mu: max(train.shrink_rate(curve, lr, mu) for curve in (1., kappa))
    best = worst((2/(1 + root))**2, ((root - 1)/(root + 1))**2)
    assert best == pytest.approx((root - 1)/(root + 1), rel=1e-6)
    grid = [worst(lr, mu) for lr in np.linspace(.001, 4/kappa, 150) for mu in np.linspace(0, .99, 100)]
    assert min(grid) >= best - 1e-9


@pytest.mark.parametrize("call,says", [
    (lambda: train.batch_noise(1., 4, 5), "from 1 to n_rows = 4"),
    (lambda: train.batch_noise(1., 4, 0), "from 1 to n_rows"),
    (lambda: train.batch_noise(-1., 4, 2), "std must be 0 or more"),
    (lambda: train.shrink_rate(0., .1), "above 0"), (lambda: train.shrink_rate(1., 0.), "above 0"),
    (lambda: train.shrink_rate(1., .1, 1.), "below 1"),
    (lambda: train.debias(torch.ones(1), .9, 0), "count steps from 1"),
    (lambda: train.debias(torch.ones(1), 1., 1), "below 1"),
    (lambda: train.adam_step(*[torch.ones(1)]*4, t=0), "count steps from 1"),
    (lambda: train.adam_step(*[torch.ones(1)]*4, t=1, betas=(.9, 1.)), "below 1"),
])
def test_errors_of_the_formulas(call, says):
    with pytest.raises(ValueError, match=says): call()


# fit --------------------------------------------------------------------------------------------------------
# ----------

def test_one_step_of_fit_is_one_step_of_adam(tiny):
    spec, rows = tiny[0], tiny[1]
    m = fresh(spec)
    before = dict(m.named_parameters())
    loss = predictor.bce_with_logits(m(rows), rows.label)
    found = torch.autograd.grad(loss, list(before.values()), allow_unused=True)
    wanted = {name: train.adam_step(w.detach(), torch.zeros_like(w) if g is None else g, torch.zeros_like(w),
                                    torch.zeros_like(w), 1, lr=1e-3)[0]
              for (name, w), g in zip(before.items(), found)}
    trained = fit(m, rows, epochs=1, batch_size=len(rows), lr=1e-3)
    assert trained.frame.train_loss.item() == pytest.approx(loss.item(), abs=1e-5)
    for (name, w), g in zip(m.named_parameters(), found):
        # below, the sign is rounding
        sure = torch.zeros_like(w, dtype=torch.bool) if g is None else g.abs() > 1e-6
        torch.testing.assert_close(w[sure], wanted[name][sure], rtol=0, atol=1e-5)


def test_loss_of_an_epoch_is_the_mean_over_rows(tiny):
    """The last batch is smaller and must not count as a whole one; with a step of nearly nothing the model
    stands still."""
    spec, rows = tiny[0], tiny[1]
    m = fresh(spec)
    with torch.no_grad(): loss = predictor.bce_with_logits(m(rows), rows.label).item()
    assert len(rows) % 700 not in (0, 699)
    assert fit(m, rows, epochs=1, batch_size=700, lr=1e-12).frame.train_loss.item() == pytest.approx(loss,
        abs=1e-6)


def test_thirty_two_rows_by_heart(tiny):
    spec, rows = tiny[0], tiny[1]
    assert 0 < rows[-32:].label.mean() < 1
    trained = fit(fresh(spec, widths=(64, 32), hidden=(64,), d_embed=8), rows[-32:], epochs=150,
                  batch_size=32, lr=1e-2)
    assert trained.frame.train_loss.iloc[-1] < .01


def test_validation_loss_chooses_the_epoch(tiny):
    spec, rows, valid = tiny[:3]
    m = fresh(spec)
    trained = fit(m, rows, valid, **GO | dict(epochs=8, lr=2e-2))
    frame = trained.frame
    assert list(frame.columns) == ["epoch", "train_loss", "valid_loss",
                                   "valid_auc"] and frame.epoch.tolist() == list(range(1, 9))
    assert trained.best_epoch == frame.epoch[frame.valid_loss.argmin()] < 8
    prob = train.predict(m, valid)
    best = frame.set_index("epoch").loc[trained.best_epoch]
    assert torch.nn.functional.binary_cross_entropy(prob.double(),
        valid.label.double()).item() == pytest.approx(best.valid_loss, abs=1e-5)
    assert metrics.auc(valid.label, prob) == pytest.approx(best.valid_auc, abs=1e-6)
    assert not m.training
    cut = fresh(spec)
    early = fit(cut, rows, valid, **GO | dict(epochs=8, lr=2e-2), patience=1)
    first_rise = next(e for e in range(2, 9) if frame.valid_loss[e - 1] >= frame.valid_loss[:e - 1].min())
    assert len(early.frame) == first_rise and early.best_epoch == first_rise - 1


def test_without_validation_the_last_epoch_stays(tiny):
    spec, rows = tiny[:2]
    trained = fit(fresh(spec), rows, **GO)
    assert trained.best_epoch == 2 and trained.frame[["valid_loss", "valid_auc"]].isna().all(axis=None)


def test_soft_labels_have_a_loss_and_no_auc(tiny):
    spec, rows, valid = tiny[:3]
    soft = with_parts(valid, label=valid.label*.8 + .1)
    m = fresh(spec)
    trained = fit(m, rows, soft, **GO)
    assert trained.frame.valid_loss.notna().all() and trained.frame.valid_auc.isna().all()
    found, prob = train.evaluate(m, soft), train.predict(m, soft).double()
    assert found["loss"] == pytest.approx(nn.functional.binary_cross_entropy(prob,
        soft.label.double()).item(), abs=1e-6)
    assert math.isnan(found["auc"])


def test_seeds(tiny):
    spec, rows = tiny[:2]
    made = []
    for seed in (1, 1, 2):
        made.append(fresh(spec))
        fit(made[-1], rows, **GO, seed=seed)
    assert same(made[0], made[1]) and not same(made[0], made[2])


def test_every_epoch_has_an_order_of_its_own_and_each_row_once(tiny):
    spec, rows = tiny[:2]
    seen = []

    class Spy(model.InterestModel):
        def forward(self, batch):
            if self.training: seen.append(batch.dense[:, 0].clone())
            return super().forward(batch)
    fit(Spy(spec, widths=(8,), hidden=()), rows, **GO)
    per = math.ceil(len(rows)/512)
    one, two = torch.cat(seen[:per]), torch.cat(seen[per:])
    assert len(seen) == 2*per and not torch.equal(one, two)
    for order in (one, two): assert torch.equal(order.sort().values, rows.dense[:, 0].sort().values)


def test_the_order_of_other_random_numbers_is_left_alone(tiny):
    m = fresh(tiny[0])
    torch.manual_seed(5)
    fit(m, tiny[1], **GO)
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
    trained = fit(whole, rows, valid, **GO | dict(epochs=4))
    assert trained.frame.train_loss.iloc[-1] < trained.frame.train_loss.iloc[0]
    fit(cut, rows, valid, **GO, checkpoint=tmp_path)
    fit(rest, rows, valid, **GO | dict(epochs=4), checkpoint=tmp_path, resume=True)
    assert same(whole, rest)


@pytest.mark.parametrize("change,says", [
    (dict(epochs=0), "epochs must be a whole number of 1 or more, got 0"), (dict(epochs=1.5), "epochs"),
    (dict(epochs=True), "epochs"),
    (dict(batch_size=0), "batch_size must be a whole number"), (dict(lr=0), "lr must be above 0"),
    (dict(lr=-1.), "lr must be above 0"),
    (dict(lr=float("nan")), "lr must be above 0"), (dict(lr=float("inf")), "finite"),
    (dict(precision="fp16"), "precision 'fp16' is unknown; choose fp32 or bf16"),
    (dict(device="gpu"), "unknown device"),
    (dict(train="none"), "train has no rows"),
    (dict(valid="none"), "valid has no rows; pass None to train without validation"),
    (dict(train="unlabelled"), "train has no labels: transform a frame that holds the label's column"),
    (dict(valid="unlabelled"), "valid has no labels"),
    (dict(train="frame"), r"train is a table; a model reads a Batch: pass prep.transform\(frame, log\)"),
    (dict(valid="frame"), "valid is a table"),
    (dict(train="list"), r"train is a list; it needs batches\(size, shuffle, seed, shard\), as a Batch has"),
    (dict(callbacks=(KeepBest,)), r"callbacks holds the class KeepBest; write KeepBest\(\)"),
    (dict(callbacks=KeepBest()), r"callbacks is a single callback; write a tuple"),
    (dict(callbacks=("KeepBest",)), "callbacks holds a str; expected objects"),
])
def test_wrong_arguments_are_named_before_any_work(tiny, change, says):
    spec, rows, valid = tiny[:3]
    m, change = fresh(spec), dict(change)
    before = weights(m)
    kinds = {"none": lambda x: x[:0], "unlabelled": unlabelled, "frame": lambda x: pd.DataFrame(dict(a=[1])),
             "list": lambda x: [1, 2], None: lambda x: x}
    given = [kinds[change.pop(name, None)](x) for name, x in (("train", rows), ("valid", valid))]
    with pytest.raises(ValueError, match=says): train.fit(m, *given, **GO | change)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


def unlabelled(batch): return Batch({k: v for k, v in batch.rows.items() if k != "label"}, batch.tables)


@pytest.mark.wrong("train is a table; a model reads a Batch: pass prep.transform(frame, log)",
                   cause="A frame was given to fit.",
                   remedy="Fit a Preprocessor on the training rows and pass prep.transform(frame, log).",
                   area="training")
@pytest.mark.wrong("train has no labels: transform a frame that holds the label's column",
                   cause="The frame had no column with the answers, so the batch has none.",
                   remedy="Transform rows that were shown and answered; to score others use predict.",
                   area="training")
@pytest.mark.wrong("callbacks holds …; expected objects of subclasses of Callback",
                   cause="The brackets are missing.", remedy="Pass an object: callbacks=(KeepBest(),).",
                   area="training")
def test_the_words_for_what_is_no_batch_and_no_callback(tiny):
    spec, rows = tiny[:2]
    for call, says in ((lambda: train.fit(fresh(spec), pd.DataFrame()),
                        "train is a table; a model reads a Batch: pass prep.transform(frame, log)"),
                       (lambda: train.predict(fresh(spec), pd.DataFrame()),
                        "batch is a table; a model reads a Batch: pass prep.transform(frame, log)"),
                       (lambda: train.fit(fresh(spec), unlabelled(rows)),
                        "train has no labels: transform a frame that holds the label's column"),
                       (lambda: train.fit(fresh(spec), rows, callbacks=(KeepBest,)),
                        "callbacks holds the class KeepBest; write KeepBest(); expected objects of "
                        "subclasses of Callback")):
        with pytest.raises(ValueError, match=re.escape(says)): call()


@pytest.mark.wrong("model is the class InterestModel; make one first: InterestModel(spec)",
                   cause="The class was given in place of a model.",
                   remedy="Write InterestModel(prep.spec).", area="training")
def test_what_is_no_model(tiny):
    spec, rows = tiny[:2]
    for what, says in ((model.InterestModel,
                         r"model is the class InterestModel; make one first: InterestModel\(spec\)$"),
                        (lambda batch: batch.dense[:, 0],
                            "model is a function, expected a Recommender or another torch module|model is a "
                            "<lambda>, expected a Recommender"),
                        (nn.Identity(), "Identity has no parameter to learn")):
        with pytest.raises(ValueError, match=says): train.fit(what, rows, **GO)


class Linear(nn.Module):
    "A linear model whose answer goes through a function."
    def __init__(self, width, spoil):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.spoil = nn.Linear(width, 1), spoil

    def forward(self, batch): return self.spoil(self.linear(batch.dense))


@pytest.mark.wrong(
    "the model returned shape (256, 1) for 256 rows, expected (256,), or (256, T) for T tasks: end its "
    "forward with .squeeze(1)",
                   cause="The last layer has one output, and its axis is still there.",
    remedy="End forward with .squeeze(1).", area="training")
@pytest.mark.wrong("the model returned a tuple, expected log-odds in a tensor of shape (B,) or (B, T)",
                   cause="forward returns more than the log-odds, such as weights beside them.",
                   remedy="Return the log-odds alone; what else there is belongs into explain.",
                   area="training")
def test_models_that_return_something_else(tiny):
    rows = tiny[1]
    for spoil, says in ((lambda x: x,
        "the model returned shape (256, 1) for 256 rows, expected (256,), or (256, T) for T tasks: end its "
        "forward with .squeeze(1)"),
                        (lambda x: (x[:, 0], None),
                         "the model returned a tuple, expected log-odds in a tensor of shape (B,) or (B, T)"),
                        (lambda x: x.mean(), "the model returned shape () for 256 rows"),
                        (lambda x: x[:-1, 0], "the model returned shape (255,) for 256 rows"),
                        (lambda x: x.expand(-1, 2),
                            "the model returned shape (512, 2) for labels of shape (512,) and tasks clicked: "
                            "expected one column per task")):
        m = Linear(rows.dense.shape[1], spoil)
        with pytest.raises(ValueError, match=re.escape(says)): train.fit(m, rows, **GO, callbacks=())
    with pytest.raises(ValueError, match="returned shape .*squeeze"):
        train.predict(Linear(rows.dense.shape[1], lambda x: x), rows)
    with pytest.raises(ValueError, match="one column per task"):
        train.evaluate(Linear(rows.dense.shape[1], lambda x: x.expand(-1, 2)), rows)


@pytest.mark.wrong("… returns probabilities: it must return log-odds, without a sigmoid at the end",
                   cause="forward ends in a sigmoid. The loss takes log-odds, so the model would learn "
                         "slowly and wrongly.",
                   remedy="Take the sigmoid out; predict applies it.", area="training")
def test_probabilities_get_a_warning_and_log_odds_none(tiny):
    rows = tiny[1]
    with pytest.warns(UserWarning,
                      match="Linear returns probabilities: it must return log-odds, without a sigmoid at the "
                            "end"):
        train.fit(Linear(rows.dense.shape[1], lambda x: x[:, 0].sigmoid()), rows, **GO, callbacks=())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for m in (Linear(rows.dense.shape[1], lambda x: x[:, 0]), fresh(tiny[0])):
            train.fit(m, rows, **GO, callbacks=())


@pytest.mark.wrong(
    "fit needs gradients, but they are switched off: call it outside torch.no_grad() and "
    "torch.inference_mode()",
                   cause="The call stands inside torch.no_grad() or torch.inference_mode().",
    remedy="Take it out of there.", area="training")
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_switched_off(tiny, off):
    with off(), pytest.raises(ValueError,
        match=r"fit needs gradients, but they are switched off: call it outside torch.no_grad\(\) and "
              r"torch.inference_mode\(\)"):
        train.fit(fresh(tiny[0]), tiny[1], **GO)


def test_a_patience_below_one():
    with pytest.raises(ValueError, match="patience must be a whole number of 1 or more"): KeepBest(patience=0)


@pytest.mark.wrong("device … was asked for but this machine has none; use 'auto' or 'cpu'",
                   cause="A GPU was named, and PyTorch sees none, or fewer.",
                   remedy="Leave device at 'auto', or install a PyTorch built for your GPU.", area="training")
def test_a_device_that_is_not_there(tiny):
    with pytest.raises(RuntimeError,
                       match="device 'cuda:99' was asked for but this machine has none; use 'auto' or 'cpu'"):
        fit(fresh(tiny[0]), tiny[1], **GO, device="cuda:99")


@pytest.mark.wrong("epoch …: the loss is nan; lower lr (…) or look for huge inputs",
                   cause="The steps were so long that the weights ran away, or an input is so large that "
                         "float32 overflows.",
                   remedy="Divide lr by ten. If that does not help, look at the largest values of your "
                          "numeric columns.", area="training")
def test_a_loss_that_is_not_finite(tiny):
    dense = tiny[1].dense.clone()
    dense[7] = float("inf")
    # a Batch made from outside would be refused
    rows = Batch._of(tiny[1].rows | dict(dense=dense), tiny[1].tables)
    with pytest.raises(FloatingPointError,
                       match=r"epoch 1: the loss is nan; lower lr \(0.004\) or look for huge inputs$"):
        fit(fresh(tiny[0]), rows, **GO)


class Sick(model.InterestModel, name="sick"):
    "After so many steps its log-odds are nan, or its weights become so in the last step of an epoch."
    left, weights = 99, False

    def forward(self, batch):
        self.left -= torch.is_grad_enabled()
        found = super().forward(batch)
        if self.left >= 0: return found
        return found + (found.sum() - found.sum().detach())*math.inf if self.weights else found*math.nan


@pytest.mark.parametrize("weights,says",
    [(False, "the loss is nan"), (True, "(the loss is nan|a weight is no longer finite)")])
def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint_and_the_best_weights(tiny, tmp_path, weights,
    says):
    spec, rows, valid = tiny[:3]
    per, go = math.ceil(len(rows)/512), GO | dict(epochs=5)
    def sick(left, seed=0):
        core.set_seed(0)
        m = Sick(spec, widths=(16, 8), hidden=(16,), d_embed=4)
        m.left, m.weights = left, weights
        return m
    two, ill = fresh(spec), sick(3*per - 1)
    fit(two, rows, valid, **go | dict(epochs=2))
    kept = (f"epoch 3: {says}; lower lr \\(0.004\\) or look for huge inputs; {tmp_path} still holds the "
            "state "
            "after epoch 2")
    with pytest.raises(FloatingPointError, match=kept): fit(ill, rows, valid, **go, checkpoint=tmp_path)
    assert same(two, ill) and not ill.training
    again = sick(0)
    with pytest.raises(FloatingPointError, match="epoch 3: .*still holds the state after epoch 2"):
        fit(again, rows, valid, **go, checkpoint=tmp_path, resume=True)
    assert same(two, again)
    with pytest.raises(FloatingPointError) as e: fit(sick(0), rows, valid, **go)
    assert "epoch 1" in str(e.value) and "holds" not in str(e.value)


def test_training_labels_of_one_class_are_allowed_and_validation_ones_have_no_auc(tiny):
    spec, rows, valid = tiny[:3]
    none, few = (with_parts(x, label=torch.zeros_like(x.label)) for x in (rows, valid))
    frame = fit(fresh(spec), none, few, **GO).frame
    assert frame.valid_auc.isna().all() and frame.valid_loss.notna().all() and frame.train_loss.iloc[
        1] < frame.train_loss.iloc[0]


# Beside the steps
# -----------------------------------------------------------------------------------------------------

class Told(Callback):
    "Writes down when it is called."
    def __init__(self, name, said, order=0, fails=None):
        self.name, self.said, self.order, self.fails = name, said, order, fails

    def _tell(self, when):
        self.said.append((self.name, when))
        if when == self.fails: raise OSError("planted")

    def begin(self, run): self._tell("begin")
    def after_batch(self, run): self._tell("batch")
    def after_steps(self, run): self._tell("steps")
    def after_epoch(self, run): self._tell("epoch")
    def end(self, run): self._tell("end")


def test_callbacks_are_called_in_order(tiny):
    said, per = [], math.ceil(len(tiny[1])/1024)
    callbacks = tuple(Told(name, said, order) for name, order in (("late", 1), ("a", 0), ("b", 0),
        ("early", -1)))
    train.fit(fresh(tiny[0]), tiny[1], epochs=2, batch_size=1024, callbacks=callbacks)
    names = ["early", "a", "b", "late"]
    one = [(n, "batch") for _ in range(per) for n in names] + [(n, when) for when in ("steps", "epoch")
        for n in names]
    assert said == [(n, "begin") for n in names] + 2*one + [(n, "end") for n in reversed(names)]


@pytest.mark.parametrize("fails", ["begin", "batch", "steps", "epoch", "end"])
def test_callbacks_that_began_are_told_of_the_end_after_an_error(tiny, fails):
    said = []
    callbacks = Told("a", said), Told("b", said, fails=fails), Told("c", said)
    m = fresh(tiny[0])
    with pytest.raises(OSError, match="planted"):
        train.fit(m, tiny[1], epochs=1, batch_size=1024, callbacks=callbacks)
    began = ["a", "b"] if fails == "begin" else ["a", "b", "c"]
    assert [n for n, when in said if when == "begin"] == began and [n for n, when in said
        if when == "end"] == began[::-1]
    assert not m.training


def test_a_callback_may_stop_the_run(tiny):
    class Stop(Callback):
        def after_epoch(self, run): run.stop = run.epoch == 2
    for callbacks in ((Stop(),), (Stop(), KeepBest(patience=5)), (KeepBest(patience=5), Stop())):
        assert len(train.fit(fresh(tiny[0]), tiny[1], tiny[2], epochs=5, callbacks=callbacks).frame) == 2


@pytest.mark.parametrize("when", ["begin", "after_epoch"])
def test_a_callback_that_replaces_the_optimizer_takes_effect(tiny, when):
    "By hand: Adam until then, plain SGD from there on."
    spec, rows = tiny[0], tiny[1][:1000]
    class Swap(Callback):
        def _swap(self, run): run.optimizer = torch.optim.SGD(run.model.parameters(), lr=.05)
    setattr(Swap, when, Swap._swap)
    m, hand = fresh(spec), fresh(spec)
    train.fit(m, rows, epochs=2, batch_size=1000, lr=1e-3, callbacks=(Swap(),))
    for epoch in range(2):
        plain = when == "begin" or epoch == 1
        steps = torch.optim.SGD(hand.parameters(), lr=.05) if plain else torch.optim.Adam(hand.parameters(),
            lr=1e-3, fused=True)
        hand.zero_grad()
        hand.loss(next(rows.batches(1000, shuffle=True, seed=epoch + 1))).backward()
        steps.step()
    assert same(m, hand)


def test_an_optimizer_of_ones_own(tiny):
    spec, rows = tiny[0], tiny[1][:1000]
    m, hand = fresh(spec), fresh(spec)
    make = lambda parameters, lr: torch.optim.SGD(parameters, lr=lr)
    before = weights(hand)
    train.fit(m, rows, epochs=1, batch_size=1000, lr=.1, optimizer=make, callbacks=())
    hand.loss(next(rows.batches(1000, shuffle=True, seed=1))).backward()
    for name, w in hand.named_parameters():
        wanted = before[name] if w.grad is None else train.sgd_step(before[name], w.grad, .1)
        torch.testing.assert_close(m.state_dict()[name], wanted, rtol=0, atol=1e-7)


def test_default_callbacks_stop_early_and_keep_the_best(tiny):
    spec, rows, valid = tiny[:3]
    a, b, go = fresh(spec), fresh(spec), dict(epochs=30, batch_size=512, lr=5e-2)
    one = train.fit(a, rows, valid, **go)
    two = train.fit(b, rows, valid, **go, callbacks=(FiniteCheck(), KeepBest(patience=2), Progress()))
    assert same(a, b) and len(one.frame) == len(two.frame) == one.best_epoch + 2 < 30


@pytest.mark.wrong(
    "KeepBest watches 'valid_gauc', which is not among the columns epoch, train_loss, valid_loss, valid_auc: "
    "name "
    "one of them, watch=...",
                   cause="There is no such column: a slip, or an evaluate of your own that does not return "
                         "it.",
                   remedy="Name a column that is there.", area="training")
def test_keep_best_watches_another_column(tiny):
    spec, rows, valid = tiny[:3]
    go = GO | dict(epochs=7, lr=2e-2)
    for watch, larger in (("valid_auc", True), ("valid_auc", False), ("train_loss", False)):
        trained = train.fit(fresh(spec), rows, valid, **go, callbacks=(KeepBest(watch=watch, larger=larger),))
        assert trained.best_epoch == trained.frame.epoch[trained.frame[watch].argmax() if larger
                                                 else trained.frame[watch].argmin()]
    with pytest.raises(ValueError,
                       match="KeepBest watches 'valid_gauc', which is not among the columns epoch, "
                             "train_loss, valid_loss, valid_auc: name one of them, watch=..."):
        train.fit(fresh(spec), rows, valid, **GO, callbacks=(KeepBest(watch="valid_gauc"),))


def test_an_evaluate_of_ones_own(tiny):
    spec, rows, valid = tiny[:3]
    seen = []
    def judge(m, batch):
        seen.append((m.training, len(batch)))
        return dict(loss=np.float32(1/len(seen)), rows=torch.tensor(len(batch)))
    frame = fit(fresh(spec), rows, valid, **GO, evaluate=judge).frame
    assert list(frame.columns) == ["epoch", "train_loss", "valid_loss", "valid_rows", "valid_auc"]
    assert frame.valid_loss.tolist() == [1., .5] and frame.valid_rows.tolist() == [len(valid)]*2 and [n for _,
        n in seen] == [len(valid)]*2


class Stream:
    "Something that only has batches and a length."
    def __init__(self, batch): self.batch, self.asked = batch, []

    def __len__(self): return len(self.batch)

    def batches(self, size, shuffle=False, seed=0, shard=(0, 1)):
        self.asked.append((size, shuffle, seed, shard))
        return self.batch.batches(size, shuffle, seed, shard)


def test_train_may_be_anything_with_batches_and_a_length(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    a, b, c, stream = fresh(spec), fresh(spec), fresh(spec), Stream(rows)
    one, two = fit(a, rows, valid, **GO, seed=3), fit(b, stream, valid, **GO, seed=3, checkpoint=tmp_path)
    assert same(a, b) and one.frame.equals(two.frame)
    assert stream.asked[1:] == [(512, True, 3*10_007 + epoch, (0, 1)) for epoch in (1, 2)]
    fit(c, stream, valid, **GO | dict(epochs=2), seed=3, checkpoint=tmp_path, resume=True)
    assert same(a, c)


def two_tasks():
    "A small mall with two labels, the second one rarer."
    mall = data.toy_mall(n_users=250, n_items=60, n_events=6000)
    events = mall.events.assign(bought=mall.events.clicked*(mall.events.price.rank(pct=True) < .5))
    schema = data.Schema(label=("clicked", "bought"))
    frames = preprocess.time_split(events)
    prep = preprocess.Preprocessor(schema).fit(frames[0], users=mall.users, items=mall.items)
    past = preprocess.EventLog(events, mall.users, schema)
    return prep.spec, [prep.transform(frame, past) for frame in frames], frames


def test_several_tasks():
    spec, (rows, valid, test), frames = two_tasks()
    m = fresh(spec)
    trained = fit(m, rows, valid, **GO | dict(epochs=3))
    assert list(trained.frame.columns) == ["epoch", "train_loss", "valid_loss", "valid_auc_clicked",
                                       "valid_auc_bought"]
    prob, best = train.predict(m, valid), trained.frame.set_index("epoch").loc[trained.best_epoch]
    assert prob.shape == (len(valid), 2)
    assert trained.frame.train_loss.iloc[-1] < trained.frame.train_loss.iloc[0]
    bce = [nn.functional.binary_cross_entropy(prob[:, k].double(), valid.label[:, k].double()).item()
           for k in (0, 1)]
    assert best.valid_loss == pytest.approx(sum(bce), abs=1e-5)
    for k, name in enumerate(("clicked", "bought")):
        assert best[f"valid_auc_{name}"] == pytest.approx(metrics.auc(valid.label[:, k], prob[:, k]))
    table = train.report_of(m, test, frames[2].user_id.to_numpy())
    assert set(table.task) == {"clicked", "bought"}
    for k, name in enumerate(("clicked", "bought")):
        found = table[(table.task == name) & (table.scenario == "all")].auc.item()
        assert found == pytest.approx(metrics.auc(test.label[:, k], train.predict(m, test)[:, k]))


# Checkpoints
# ----------------------------------------------------------------------------------------------------------

class Killed(Callback):
    "Ends the run in the middle of an epoch, as Ctrl-C does."
    alters = False

    def __init__(self, steps): self.left = steps

    def after_batch(self, run):
        self.left -= 1
        if self.left < 0: raise KeyboardInterrupt


@pytest.mark.parametrize("options", [{}, dict(fusion="attention+own"), dict(fusion="none"),
                                     dict(heads="per_scenario")], ids=str)
def test_resume_at_the_end_of_an_epoch_gives_the_same_bits(tiny, tmp_path, options):
    spec, rows, valid = tiny[:3]
    whole, cut, rest = (fresh(spec, **options) for _ in range(3))
    one = fit(whole, rows, valid, **GO | dict(epochs=5))
    fit(cut, rows, valid, **GO | dict(epochs=3), checkpoint=tmp_path)
    two = fit(rest, rows, valid, **GO | dict(epochs=5), checkpoint=tmp_path, resume=True)
    assert same(whole, rest) and one.best_epoch == two.best_epoch
    pd.testing.assert_frame_equal(one.frame, two.frame, check_exact=True)


@pytest.mark.parametrize("steps", [13, 27])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resume_after_a_kill_inside_an_epoch_gives_the_same_bits(tiny, tmp_path, steps, precision):
    spec, rows, valid = tiny[:3]
    go = GO | dict(epochs=4, seed=2, precision=precision)
    whole, doomed, rest = fresh(spec), fresh(spec), fresh(spec)
    fit(whole, rows, valid, **go)
    with pytest.raises(KeyboardInterrupt):
        fit(doomed, rows, valid, **go, checkpoint=tmp_path, beside=(Killed(steps),))
    trained = fit(rest, rows, valid, **go, checkpoint=tmp_path, resume=True)
    assert same(whole, rest) and len(trained.frame) == 4


class Counting(torch.optim.Optimizer):
    """Signed steps that shrink with a count; its state holds a number, a list and nothing, and no tensor
    but one."""
    def __init__(self, parameters, lr): super().__init__(parameters, dict(lr=lr, powers=(.5, .25), word="x"))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in [p for p in group["params"] if p.grad is not None]:
                state = self.state[p]
                if not state: state.update(n=0, scale=1/3, past=[], none=None, mean=torch.zeros_like(p))
                state["n"], state["scale"] = state["n"] + 1, state["scale"]*(1 - .1**state["n"])
                state["past"] = [*state["past"][-2:], p.grad.abs().mean().item()]
                state["mean"].mul_(group["powers"][0]).add_(p.grad, alpha=group["powers"][1])
                p.sub_(state["mean"].sign(), alpha=group["lr"]*state["scale"]*sum(state["past"]))


class Slower(Callback):
    "Another step size in each epoch, and a number of its own."
    def begin(self, run): self.factor = 1.

    def after_epoch(self, run):
        self.factor *= .7
        for group in run.optimizer.param_groups: group["lr"] = run.settings["lr"]*self.factor

    def state(self): return dict(factor=self.factor), {"one": torch.tensor([self.factor])}

    def restore(self, run, about, tensors):
        assert tensors["one"].item() == pytest.approx(about["factor"])
        self.factor = about["factor"]


@pytest.mark.parametrize("make", [
    lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=.9), lambda p,
    lr: torch.optim.AdamW(p, lr=lr, amsgrad=True), Counting,
    lambda p, lr: torch.optim.SGD([dict(params=list(p)[:2], momentum=.5)], lr=lr), lambda p,
    lr: torch.optim.Adam(p, lr=torch.tensor(lr)),
], ids=["momentum", "amsgrad", "numbers", "one group", "lr as a tensor"])
def test_any_optimizer_and_a_schedule_resume_to_the_bit(tiny, tmp_path, make):
    spec, rows, valid = tiny[:3]
    whole, cut, rest = fresh(spec), fresh(spec), fresh(spec)
    go = GO | dict(optimizer=make, beside=(Slower(),), lr=.02)
    one = fit(whole, rows, valid, **go | dict(epochs=4))
    fit(cut, rows, valid, **go, checkpoint=tmp_path)
    two = fit(rest, rows, valid, **go | dict(epochs=4), checkpoint=tmp_path, resume=True)
    assert same(whole, rest) and one.frame.equals(two.frame)


class Late(Callback):
    "Another optimizer from the second epoch on; it knows the way back, or not."
    def __init__(self, back): self.back = back

    def after_epoch(self, run):
        if run.epoch == 1: self._swap(run)

    def _swap(self, run): run.optimizer = torch.optim.SGD(run.model.parameters(), lr=.05, momentum=.9)

    def restore(self, run, about, tensors):
        if self.back: self._swap(run)


@pytest.mark.wrong(
    "… holds the state of optimizer SGD, but this run has Adam: a callback that replaces the optimizer must "
    "do so "
    "in restore too",
                   cause="A callback replaced the optimizer during the run, and the resumed run began with "
                         "the first one.",
                   remedy="Let its restore replace it as well.", area="training")
def test_an_optimizer_that_was_replaced_on_the_way(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    whole, rest = fresh(spec), fresh(spec)
    fit(whole, rows, valid, **GO | dict(epochs=4), beside=(Late(True),))
    fit(fresh(spec), rows, valid, **GO, beside=(Late(True),), checkpoint=tmp_path)
    with pytest.raises(ValueError,
                       match="checkpoint.json holds the state of optimizer SGD, but this run has Adam: a "
                             "callback that replaces the optimizer must do so in restore too"):
        fit(fresh(spec), rows, valid, **GO | dict(epochs=4), beside=(Late(False),), checkpoint=tmp_path,
            resume=True)
    fit(rest, rows, valid, **GO | dict(epochs=4), beside=(Late(True),), checkpoint=tmp_path, resume=True)
    assert same(whole, rest)


def test_resume_keeps_the_best_weights_and_the_patience_of_before(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    go = GO | dict(lr=2e-2, epochs=9)
    whole, rest = fresh(spec), fresh(spec)
    one = fit(whole, rows, valid, **go, patience=1)
    assert one.best_epoch == len(one.frame) - 1 < 8
    for epochs in range(1, 10):
        trained = fit(rest if epochs == 9 else fresh(spec), rows, valid, **go | dict(epochs=epochs),
                      patience=1, checkpoint=tmp_path, resume=epochs > 1)
    assert same(whole, rest)
    pd.testing.assert_frame_equal(one.frame, trained.frame, check_exact=True)
    # more patience than before goes on
    longer = fit(fresh(spec), rows, valid, **go, patience=3, checkpoint=tmp_path, resume=True)
    assert len(longer.frame) > len(one.frame)


def test_a_finished_run_only_gives_its_weights_back(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    whole, again = fresh(spec), fresh(spec, seed=9)
    fit(whole, rows, valid, **GO, checkpoint=tmp_path)
    before = content(tmp_path)
    assert len(fit(again, rows, valid, **GO, checkpoint=tmp_path, resume=True).frame) == 2
    assert same(whole, again) and content(tmp_path) == before


NAMES = [".lock", "checkpoint.json", "checkpoint.safetensors"]


def content(folder): return {p.name: p.read_bytes() for p in folder.iterdir() if p.name in NAMES[1:]}


def epochs_in(folder):
    return len(read_record(folder, "checkpoint", "Checkpoint", checkpoints.FORMAT)[0]["results"])


def test_without_resume_the_checkpoint_is_replaced(tiny, tmp_path):
    spec, rows = tiny[:2]
    a, b = fresh(spec), fresh(spec)
    fit(fresh(spec, seed=4), rows, **GO | dict(lr=1e-3), checkpoint=tmp_path)
    fit(a, rows, **GO, checkpoint=tmp_path)
    fit(b, rows, **GO, checkpoint=tmp_path, resume=True)
    assert same(a, b)


@pytest.mark.parametrize("module,name,file", [(builtins, "open", "next.safetensors"),
                                              (os, "replace", "next.safetensors"),
                                              (builtins, "open", "checkpoint.json"),
                                              (os, "replace", "checkpoint.json")])
@pytest.mark.wrong(
    "No space left on device: free space or name another folder; the previous file is untouched",
                   cause="The disk filled up while a checkpoint was being written.",
                   remedy="Free space and call fit again with Checkpoint(FOLDER, resume=True): the "
                          "checkpoint of the epoch before is whole. The model in memory holds its best "
                          "weights.",
                   area="files")
def test_a_disk_that_fills_up_leaves_the_old_checkpoint_and_the_best_weights(tiny, tmp_path, monkeypatch,
    module, name, file):
    spec, rows = tiny[:2]
    whole, cut, rest, go = fresh(spec), fresh(spec), fresh(spec), GO | dict(epochs=3)
    fit(whole, rows, **go)
    real, seen = getattr(module, name), []
    def full(path, *args, **options):
        if file in str(path) and str(path).endswith(".part"):
            seen.append(path)
            if len(seen) == 2: raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *args, **options)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        with pytest.raises(OSError,
            match="No space left on device: free space or name another folder; the previous file is "
                  f"untouched: .*{file}'$"):
            fit(cut, rows, **go, checkpoint=tmp_path)
    assert not list(tmp_path.glob("*.part")) and epochs_in(tmp_path) == 1 and not cut.training
    fit(rest, rows, **go, checkpoint=tmp_path, resume=True)
    assert same(whole, rest) and [p.name for p in sorted(tmp_path.iterdir())] == NAMES


@pytest.mark.parametrize("number,text", [(errno.ENOSPC, "No space left on device"),
    (errno.EROFS, "Read-only file system"), (errno.EACCES, "Permission denied")])
@pytest.mark.wrong(
    "training did not start, because its checkpoint of … MB cannot be written: Read-only file system: free "
    "space or name another folder; the previous file is untouched",
                   cause="The folder for the checkpoint cannot be written to, or the disk is full.",
                   remedy="Name a folder that you may write to, with that much room.", area="files")
def test_a_folder_that_cannot_be_written_to_is_found_before_the_first_epoch(tiny, tmp_path, monkeypatch,
    number, text):
    spec, rows = tiny[:2]
    m = fresh(spec)
    fit(m, rows, **GO | dict(epochs=1), checkpoint=tmp_path)
    before, files = weights(m), content(tmp_path)
    def shut(path, mode="r", *args, real=open, **options):
        if str(path).endswith(".part") and "w" in mode: raise OSError(number, text, str(path))
        return real(path, mode, *args, **options)
    monkeypatch.setattr(builtins, "open", shut)
    for resume in (True, False):
        with pytest.raises(OSError,
            match=rf"training did not start, because its checkpoint of 0\.1 MB cannot be written: {text}: "
                  "free space or name another folder; the previous file is untouched: '") as e:
            fit(m, rows, **GO, checkpoint=tmp_path, resume=resume)
        assert e.value.errno == number and e.value.filename == str(tmp_path)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items()) and content(tmp_path) == files
    # nothing is left to do, so nothing is written
    fit(m, rows, **GO | dict(epochs=1), checkpoint=tmp_path, resume=True)


@pytest.mark.wrong(
    "the checkpoint's folder cannot be created or written to: Not a directory; name another folder",
                   cause="Checkpoint names a place where no folder can be: below a file, or where you may "
                         "not write.",
                   remedy="Name another folder.", area="files")
def test_a_folder_that_cannot_be_made(tiny, tmp_path, monkeypatch):
    spec, rows = tiny[:2]
    m = fresh(spec)
    before = weights(m)
    (tmp_path/"file").write_text("x")
    with pytest.raises(OSError,
                       match="the checkpoint's folder cannot be created or written to: Not a directory; "
                             "name another folder: .*below"):
        fit(m, rows, **GO, checkpoint=tmp_path/"file"/"below")
    def refuse(*args, **options): raise PermissionError(errno.EACCES, "Permission denied", str(args[0]))
    # no right to make it; no right to make the lock in it
    for target, name in ((Path, "mkdir"), (os, "open")):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, refuse)
            with pytest.raises(PermissionError,
                match="the checkpoint's folder cannot be created or written to: Permission denied"):
                fit(m, rows, **GO, checkpoint=tmp_path/"new")
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


LIMITED = """
import resource, sys, torch
from tests.library.test_train import GO, Callback, fit, fresh, same, small
torch.set_num_threads(1)
spec, rows = small()[:2]
class Filling(Callback):
    left, alters = 15, False
    def after_batch(self, run):
        self.left -= 1
        if self.left < 0: limit(20_000)
def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
def go(m, epochs, **more):
    try: fit(m, rows, **GO | dict(epochs=epochs), checkpoint=sys.argv[1], **more)
    except OSError as e: print(e)
whole, rest = fresh(spec), fresh(spec)
fit(whole, rows, **GO | dict(epochs=4))
go(fresh(spec), 4, beside=(Filling(),))
go(fresh(spec), 4, resume=True)
limit(resource.RLIM_INFINITY)
go(rest, 4, resume=True)
print(same(whole, rest))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
def test_files_that_may_not_grow(tmp_path):
    """The system itself refuses: in the second epoch, then before the first one of the next try; then
    there is room again."""
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path/"run")], cwd=root, capture_output=True,
                          text=True, timeout=120)
    assert not done.returncode, done.stderr
    full, again, alike = done.stdout.splitlines()
    assert re.search(
        "File too large: free space or name another folder; the previous file is untouched: "
        ".*checkpoint", full)
    assert re.search(
        "training did not start, because its checkpoint of 0.1 MB cannot be written: File too large: free "
        "space", again)
    assert alike == "True" and [p.name for p in sorted((tmp_path/"run").iterdir())] == NAMES


# Ctrl-C and a second run
# ----------------------------------------------------------------------------------------------

@pytest.mark.wrong(
    "stopped in epoch …, and there is no checkpoint to resume from: pass callbacks=(..., Checkpoint(FOLDER))",
                   cause="You pressed Ctrl-C, and the run had no folder for its state.",
                   remedy="Train again with a Checkpoint(FOLDER) among the callbacks. The model in memory "
                          "holds its best weights so far.", area="training")
@pytest.mark.wrong(
    "stopped in epoch 1, before anything was saved: the first checkpoint is written to … after epoch 1",
                   cause="You pressed Ctrl-C before the first epoch was over.",
                   remedy="Call fit again, without resume.", area="training")
def test_ctrl_c_says_what_was_saved_and_leaves_the_best_weights(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    per, go = math.ceil(len(rows)/512), GO | dict(epochs=9, lr=2e-2)
    with pytest.raises(KeyboardInterrupt,
                       match=r"^stopped in epoch 1, and there is no checkpoint to resume from: pass "
                             r"callbacks=\(\.\.\., Checkpoint\(FOLDER\)\)$"):
        fit(fresh(spec), rows, valid, **go, beside=(Killed(3),))
    with pytest.raises(KeyboardInterrupt,
                       match="^stopped in epoch 1, before anything was saved: the first checkpoint is "
                             "written "
                             f"to {tmp_path} after epoch 1$"):
        fit(fresh(spec), rows, valid, **go, beside=(Killed(3),), checkpoint=tmp_path)
    assert not content(tmp_path)
    stopped, whole = fresh(spec), fresh(spec)
    says = (rf"^stopped in epoch 9; {tmp_path} holds the state after epoch 8: call fit again with "
            r"Checkpoint\(FOLDER, resume=True\)$")
    with pytest.raises(KeyboardInterrupt, match=says):
        fit(stopped, rows, valid, **go, beside=(Killed(8*per + 2),), checkpoint=tmp_path)
    best = fit(whole, rows, valid, **go | dict(epochs=8)).best_epoch
    assert best < 8 and same(whole, stopped) and not stopped.training
    with pytest.raises(KeyboardInterrupt, match="epoch 9; .* after epoch 8"):
        fit(fresh(spec), rows, valid, **go, beside=(Killed(2),), checkpoint=tmp_path, resume=True)


def test_a_real_ctrl_c(tiny, tmp_path):
    "A signal, under a handler of the test's own: a shell that puts a run in the background has it ignored."
    class Press(Callback):
        alters = False
        def after_epoch(self, run):
            if run.epoch == 2: signal.raise_signal(signal.SIGINT)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped in epoch 2; .* holds the state after epoch 1"):
            fit(fresh(tiny[0]), tiny[1], tiny[2], **GO | dict(epochs=4), beside=(Press(),),
                checkpoint=tmp_path)
    finally: signal.signal(signal.SIGINT, before)
    assert epochs_in(tmp_path) == 1


def test_ctrl_c_closes_the_bar(tiny, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen())
    before = len(training.tqdm._instances)
    with pytest.raises(KeyboardInterrupt):
        train.fit(fresh(tiny[0]), tiny[1], **GO, callbacks=(Progress(), Killed(3)))
    assert "epoch 1/2" in sys.stderr.getvalue() and sys.stderr.getvalue().endswith("\r") and len(
        training.tqdm._instances) == before


@pytest.mark.wrong("another run is writing into …: wait until it ends, or name another folder",
                   cause="Two trainings were given the same folder for their checkpoint.",
                   remedy="Give each run a folder of its own.", area="training")
@pytest.mark.parametrize("resume", [False, True])
def test_two_runs_in_one_folder(tiny, tmp_path, resume):
    spec, rows = tiny[:2]
    fit(fresh(spec), rows, **GO, checkpoint=tmp_path)
    second = fresh(spec)
    before, files = weights(second), content(tmp_path)

    class First(Callback):
        alters = False
        def after_batch(self, run):
            with pytest.raises(BlockingIOError,
                match="another run is writing into .*: wait until it ends, or name another folder"):
                fit(second, rows, **GO, checkpoint=tmp_path, resume=resume)
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match="before anything was saved"):
        fit(fresh(spec), rows, **GO, beside=(First(),), checkpoint=tmp_path)
    assert all(torch.equal(before[k], v) for k, v in second.state_dict().items()) and content(
        tmp_path) == files
    fit(second, rows, **GO, checkpoint=tmp_path, resume=resume) # the folder is free again


# Which checkpoint may be gone on from
# ---------------------------------------------------------------------------------

def other_prices(rows):
    dense = rows.dense.clone()
    dense[-1, 0] += 1e-3
    return with_parts(rows, dense=dense)


def swapped_labels(rows):
    "Two labels that change places: the same sum."
    label, places = rows.label.clone(), [rows.label.argmax().item(), rows.label.argmin().item()]
    label[places] = rows.label[places[::-1]]
    return with_parts(rows, label=label)


class Wider(model.InterestModel, name="wider"): "The same network under another name."


@pytest.mark.parametrize("change,says", [
    (dict(lr=1e-3),
     "belongs to another run: lr was 0.004, now 0.001; name another folder, or train again without resume"),
    (dict(batch_size=256), "batch_size was 512, now 256"),
    (dict(seed=1), "seed was 0, now 1"), (dict(precision="bf16"), "precision was 'fp32', now 'bf16'"),
    (dict(optimizer=lambda p, lr: torch.optim.SGD(p, lr=lr)), "optimizer was 'Adam', now 'SGD'"),
    (dict(rows=lambda x: x[1:]), "rows of train was"), (dict(valid=lambda x: None), "rows of valid was"),
    (dict(rows=other_prices), "content of train was"), (dict(rows=swapped_labels), "content of train was"),
    (dict(valid=swapped_labels), "content of valid was"),
    (dict(rows=lambda x: x[torch.arange(len(x)).flip(0)]), "content of train was"),
    (dict(fusion="mean"), "arguments was .*'attention'.*, now .*'mean'"),
    (dict(widths=(8, 8)), "arguments was"), (dict(d_embed=8), "arguments was"),
    (dict(spec=lambda s: replace(s, scenarios=s.scenarios[::-1])), "scenarios was"),
    (dict(spec=lambda s: replace(s, prep="another")), "rest of spec was"),
    (dict(kind=Wider), "model was 'interest', now 'wider'"),
    (dict(beside=(Slower(),)), "callbacks was 'KeepBest', now 'KeepBest, Slower'"),
])
@pytest.mark.wrong(
    "… belongs to another run: lr was 0.004, now 0.001; name another folder, or train again without resume",
                   cause="resume=True was given with other arguments, another model, other callbacks or "
                         "other rows than the run began with.",
                   remedy="Give the arguments of before, or start a run of its own in another folder.",
    area="training")
def test_a_checkpoint_of_another_run_is_refused(tiny, tmp_path, change, says):
    spec, rows, valid = tiny[:3]
    fit(fresh(spec), rows, valid, **GO, checkpoint=tmp_path)
    change, same_ = dict(change), lambda x: x
    kind, spec = change.pop("kind", model.InterestModel), change.pop("spec", same_)(spec)
    core.set_seed(0)
    m = kind(spec, change.pop("fusion", "attention"), **dict(widths=(16, 8), hidden=(16,), d_embed=4)
             | {k: change.pop(k) for k in ("widths", "d_embed") if k in change})
    before, files = weights(m), content(tmp_path)
    with pytest.raises(ValueError,
                       match="checkpoint.json belongs to another run: "
                             f".*{says.removeprefix('belongs to another run: ')}"):
        fit(m, change.pop("rows", same_)(rows), change.pop("valid", same_)(valid), **GO | change,
            checkpoint=tmp_path, resume=True)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items()) and content(tmp_path) == files


def test_callbacks_that_change_no_weight_may_come_and_go(tiny, tmp_path):
    spec, rows, valid = tiny[:3]
    whole, rest = fresh(spec), fresh(spec)
    fit(whole, rows, valid, **GO | dict(epochs=3))
    train.fit(fresh(spec), rows, valid, **GO, callbacks=(KeepBest(), Checkpoint(tmp_path)))
    train.fit(rest, rows, valid, **GO | dict(epochs=3), callbacks=(Progress(), FiniteCheck(), KeepBest(),
        Checkpoint(tmp_path, resume=True)))
    assert same(whole, rest)


@pytest.mark.wrong("… does not fit this model: linear.weight is float32 (1, 5), expected float32 (1, 4)",
                   cause="resume=True was given with a model of another shape than the run began with.",
                   remedy="Build the model with the options of before.", area="training")
@pytest.mark.filterwarnings("ignore:all scores of the untrained")
def test_a_checkpoint_of_a_plain_module_of_another_shape(tiny, tmp_path):
    rows = tiny[1]
    fit(Linear(rows.dense.shape[1], lambda x: x[:, 0]), rows, **GO, checkpoint=tmp_path)
    other = Linear(rows.dense.shape[1] - 1, lambda x: x[:, 0])
    other.linear.in_features, other.forward = 1, lambda batch: other.linear(batch.dense[:, 1:])[:, 0]
    n = rows.dense.shape[1]
    with pytest.raises(ValueError,
                       match=rf"does not fit this model: linear.weight is float32 \(1, {n}\), expected "
                             rf"float32 \(1, {n - 1}\)"):
        fit(other, rows, **GO, checkpoint=tmp_path, resume=True)


@pytest.mark.wrong(
    "… holds 2 epochs, more than epochs=1: give epochs=2 or more, or train again without resume",
                   cause="epochs counts from the start of the run, also when it is resumed, and the run is "
                         "further already.",
                   remedy="Give the number of epochs that you want in all.", area="training")
def test_fewer_epochs_than_are_done(tiny, tmp_path):
    spec, rows = tiny[:2]
    fit(fresh(spec), rows, **GO, checkpoint=tmp_path)
    m = fresh(spec, seed=1)
    before = weights(m)
    with pytest.raises(ValueError,
                       match="checkpoint.json holds 2 epochs, more than epochs=1: give epochs=2 or "
                             "more, or train again without resume"):
        fit(m, rows, **GO | dict(epochs=1), checkpoint=tmp_path, resume=True)
    assert all(torch.equal(before[k], v) for k, v in m.state_dict().items())


@pytest.mark.wrong("there is no … to resume from: run without resume first",
                   cause="resume=True was given, and the folder holds no checkpoint.",
                   remedy="Check the folder's name, or leave resume away for the first run.",
                   area="training")
def test_checkpoints_that_cannot_be_read(tiny, tmp_path):
    spec, rows = tiny[:2]
    resume = lambda: fit(fresh(spec), rows, **GO, checkpoint=tmp_path/"run", resume=True)
    with pytest.raises(FileNotFoundError,
                       match="there is no .*checkpoint.json to resume from: run without resume first"):
        resume()
    assert not (tmp_path/"run").exists()
    fit(fresh(spec), rows, **GO, checkpoint=tmp_path/"run")
    for name in NAMES[1:]:
        path = tmp_path/"run"/name
        whole = path.read_bytes()
        for broken in (whole[:-100], whole[:10], b"", b"\xff"*200, whole + b"0",
                       whole[:-1] + bytes([whole[-1] ^ 1])):
            path.write_bytes(broken)
            with pytest.raises(ValueError, match=f"{name} (is damaged|has format unknown)"): resume()
        torch.save(dict(a=1), path)
        with pytest.raises(ValueError,
            match=f"{name} is a pickle or a zip file, which can run code when opened, so it is not read: "
                  "save again with Checkpoint"):
            resume()
        path.write_bytes(whole)
    about, tensors = read_record(tmp_path/"run", "checkpoint", "Checkpoint", checkpoints.FORMAT)
    del about["checksum"]
    for other in (1, 2, 99):
        write_record(tmp_path/"run", "checkpoint", about | dict(format=other), tensors)
        with pytest.raises(ValueError,
            match=f"has format {other}, but this version reads {checkpoints.FORMAT}: save it again with "
                  "Checkpoint"):
            resume()
    write_record(tmp_path/"run", "checkpoint", about | dict(format=checkpoints.FORMAT), tensors)
    resume()


@pytest.mark.parametrize("change", [
    lambda t, a: a.update(results=3), lambda t, a: a.update(results=[3]), lambda t, a: a.update(run=None),
    lambda t,
    a: a.pop("results"), lambda t, a: a.pop("callbacks"),
    lambda t, a: a["callbacks"].pop(), lambda t, a: a["callbacks"][0].pop("epoch"), lambda t,
    a: a.update(optimizer=[]), lambda t, a: a["optimizer"].pop("groups"),
    lambda t, a: a["optimizer"]["groups"].pop(), lambda t, a: a["optimizer"]["state"].update(x={}),
    lambda t, a: t.pop("model.embed.table.weight"), lambda t,
    a: t.update({"model.embed.table.weight": t["model.embed.table.weight"].half()}),
    lambda t, a: t.update({"model.other": torch.ones(1)}),
])
def test_a_checkpoint_that_says_something_odd_is_an_error_that_names_it(tiny, tmp_path, change):
    "With right checksums, as another program could write it."
    spec, rows = tiny[:2]
    fit(fresh(spec), rows, **GO, checkpoint=tmp_path)
    about, tensors = read_record(tmp_path, "checkpoint", "Checkpoint", checkpoints.FORMAT)
    del about["checksum"]
    change(tensors, about)
    write_record(tmp_path, "checkpoint", about | dict(format=checkpoints.FORMAT), tensors)
    with pytest.raises(ValueError,
                       match="checkpoint.json (is damaged, or is not what Checkpoint wrote|does not fit this "
                             "model)"):
        fit(fresh(spec, seed=1), rows, **GO | dict(epochs=3), checkpoint=tmp_path, resume=True)


@pytest.fixture(scope="module")
def known(tiny, tmp_path_factory):
    "Few rows, the files of a checkpoint after two epochs, and the weights after three."
    rows, folder = tiny[1][:200], tmp_path_factory.mktemp("known")
    go = dict(batch_size=100, lr=1e-2)
    made = lambda: fresh(tiny[0], widths=(4,), hidden=())
    fit(made(), rows, epochs=2, **go, checkpoint=folder)
    whole = made()
    fit(whole, rows, epochs=3, **go)
    return made, rows, go, content(folder), whole, folder


@given(st.data())
@settings(max_examples=150)
def test_a_checkpoint_with_other_bytes_is_refused_or_gives_the_same_bits(known, data):
    made, rows, go, files, whole, folder = known
    for name, x in files.items(): (folder/name).write_bytes(x)
    name = data.draw(st.sampled_from(NAMES[1:]))
    changed = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, 7), st.integers(0, 3000),
                                 st.integers(0, len(changed) - 1))) % len(changed)
        kind = data.draw(st.sampled_from(["flip", "put", "cut", "insert", "double"]))
        if kind == "flip": changed[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "put": changed[at:at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif kind == "cut": del changed[at:at + data.draw(st.integers(1, 2000))]
        elif kind == "insert": changed[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        else: changed[at:at] = changed[at:at + 100]
        if not changed: break
    (folder/name).write_bytes(changed)
    m = made()
    with contextlib.suppress(ValueError):
        fit(m, rows, epochs=3, **go, checkpoint=folder, resume=True)
        assert same(m, whole)


def test_any_flipped_bit_of_a_weight_is_noticed(known):
    _, _, _, files, _, folder = known
    for name, x in files.items(): (folder/name).write_bytes(x)
    whole, r = files["checkpoint.safetensors"], np.random.default_rng(0)
    for at in r.integers(8 + int.from_bytes(whole[:8], "little"), len(whole), 200):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(r.integers(8))
        (folder/"checkpoint.safetensors").write_bytes(changed)
        with pytest.raises(ValueError, match="its checksum differs"): epochs_in(folder)


@pytest.mark.wrong("checkpoint … is a file; name a folder", cause="Checkpoint names a file.",
                   remedy="Name a folder: it is made, and its files have names of their own.", area="files")
def test_a_file_is_no_folder(tmp_path):
    (tmp_path/"file").write_text("x")
    with pytest.raises(ValueError, match="checkpoint '.*' is a file; name a folder"):
        Checkpoint(tmp_path/"file")


def test_a_folder_is_made_and_may_be_a_string(tiny, tmp_path):
    fit(fresh(tiny[0]), tiny[1], **GO, checkpoint=str(tmp_path/"new"/"folder"))
    assert [p.name for p in sorted((tmp_path/"new"/"folder").iterdir())] == NAMES


# Faster -----------------------------------------------------------------------------------------------------
# ----------

def test_bf16_is_close_and_keeps_float32_weights(tiny):
    spec, rows, valid = tiny[:3]
    exact, rough = fresh(spec), fresh(spec)
    losses = [fit(m, rows, valid, **GO, precision=p).frame for m, p in ((exact, "fp32"), (rough, "bf16"))]
    assert {v.dtype for v in rough.state_dict().values() if v.is_floating_point()} == {torch.float32}
    assert (losses[0] - losses[1])[["train_loss", "valid_loss"]].abs().max(axis=None) < .02 and not same(
        exact, rough)
    assert (train.predict(exact, valid) - train.predict(rough, valid)).abs().mean() < .02


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "cl"))),
                    reason="torch.compile needs a C++ compiler")
def test_compile_is_close(tiny):
    spec, rows, valid = tiny[:3]
    plain, quick = fresh(spec), fresh(spec)
    fit(plain, rows, valid, **GO)
    fit(quick, rows, valid, **GO, compile=True)
    assert list(plain.state_dict()) == list(quick.state_dict())
    torch.testing.assert_close(train.predict(plain, valid), train.predict(quick, valid), rtol=0, atol=5e-3)


class Screen(io.StringIO):
    "A terminal."
    def isatty(self): return True


def test_progress_shows_on_a_terminal_alone(tiny, monkeypatch, capfd):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    train.fit(fresh(tiny[0]), tiny[1], **GO)
    assert capfd.readouterr() == ("", "")
    for callbacks in (None, (Progress(),), (KeepBest(),)):
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        train.fit(fresh(tiny[0]), tiny[1], **GO, callbacks=callbacks)
        assert ("epoch 2/2" in screen.getvalue()) is (callbacks is None or isinstance(callbacks[0], Progress))


# predict, compare, maps
# -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fusion", ["none", *fusion_names()])
def test_predict(tiny, fusion):
    spec, _, valid = tiny[:3]
    m = fresh(spec, fusion)
    prob = train.predict(m, valid, batch_size=100)
    assert prob.dtype == torch.float32 and prob.shape == (len(valid),
                                                          ) and not prob.requires_grad and m.training
    rows = range(0, len(valid), 37)
    torch.testing.assert_close(prob[::37], torch.cat([torch.sigmoid(m(valid[i])) for i in rows]).detach(),
                               rtol=0, atol=1e-6)
    assert train.predict(m, valid[:0]).shape == (0,)
    assert not (m.eval(), train.predict(m, valid), m.training)[2]


def test_predict_leaves_the_mode_alone_even_after_an_error(tiny):
    m = fresh(tiny[0])
    with pytest.raises(ValueError, match="1 or more"): train.predict(m, tiny[2], batch_size=0)
    assert m.training


def test_compare(tiny):
    spec, rows, valid, test, user = tiny
    two = train.interest_models(spec, ("none", "mean"), widths=(8,), hidden=())
    go = dict(epochs=2, batch_size=512, callbacks=(KeepBest(patience=2),))
    found = train.compare(two, rows, valid, test, user, seeds=(0, 3), **go)
    places = [*dict.fromkeys(found.frame.scenario)]
    assert places == [*sorted(spec.scenarios), "macro", "all"] and len(found.frame) == 2*2*len(places)
    assert set(found.models) == set(found.training_logs) == {"none",
        "mean"} and found.models["mean"].widths == (8,)
    core.set_seed(3)
    again = model.InterestModel(spec, "mean", widths=(8,), hidden=())
    train.fit(again, rows, valid, **go, seed=3)
    assert same(again, found.models["mean"])
    prob, row = train.predict(again, test).numpy(), found.frame.query(
        "model == 'mean' and seed == 3").set_index("scenario")
    assert row.auc["all"] == pytest.approx(metrics.auc(test.label, prob))
    for k, name in enumerate(spec.scenarios):
        here = (test.scenario == k).numpy()
        assert row.auc[name] == pytest.approx(metrics.auc(test.label[here], prob[here]))
        assert row.gauc[name] == pytest.approx(metrics.gauc(test.label[here], prob[here], user[here]))
    with pytest.raises(ValueError, match="fusion 'sum' is unknown"):
        train.compare(train.interest_models(spec, ("sum",)), rows, valid, test, user)


def test_compare_takes_any_models_and_gives_each_its_seed(tiny):
    spec, rows, valid, test, user = tiny
    seeds = []
    def plain(seed):
        seeds.append(seed)
        m = Linear(rows.dense.shape[1], lambda x: x[:, 0])
        m.spec = spec
        return m
    found = train.compare(dict(plain=plain, interest=lambda seed: fresh(spec, seed=seed)), rows, valid, test,
                          user, seeds=(4, 5), epochs=1)
    assert seeds == [4, 5] and list(found.frame.model.unique()) == ["plain",
        "interest"] and list(train.spread(found.frame)[0].index) == ["plain", "interest"]


@pytest.mark.wrong(
    "Linear has no spec, which is needed here: subclass Recommender, or set model.spec = prep.spec",
                   cause="A table per scenario needs the scenarios' names, which the model's spec holds, and "
                         "a plain module has none.",
                   remedy="Subclass Recommender, or set model.spec.", area="training")
@pytest.mark.wrong("models['own'] is not a function of a seed: write lambda seed: InterestModel(spec)",
                   cause="compare was given a model; it makes a fresh one for each seed.",
                   remedy="Give a function: dict(own=lambda seed: InterestModel(spec)).", area="training")
def test_models_without_a_spec_and_models_that_are_no_functions(tiny):
    spec, rows, valid, test, user = tiny
    plain = lambda seed=0: Linear(rows.dense.shape[1], lambda x: x[:, 0])
    says = "Linear has no spec, which is needed here: subclass Recommender, or set model.spec = prep.spec"
    for call in (lambda: train.compare(dict(plain=plain), rows, valid, test, user),
                 lambda: train.attention_map(plain(), test), lambda: train.report_of(plain(), test, user)):
        with pytest.raises(ValueError, match=says): call()
    with pytest.raises(ValueError,
                       match=r"models\['own'\] is not a function of a seed: write lambda seed: "
                             r"InterestModel\(spec\)"):
        train.compare(dict(own=fresh(spec)), rows, valid, test, user)
    told = plain()
    told.spec = spec
    with pytest.raises(ValueError,
                       match="Linear does not explain its scores by weights of scenarios; a fusion"):
        train.attention_map(told, test)


def test_spread_by_loops():
    r = np.random.default_rng(0)
    frame = pd.DataFrame([(f, s, p, r.random()) for f in ("own", "attention", "mean") for s in range(4)
                          for p in ("home", "cart", "macro")],
                         columns=["model", "seed", "scenario", "auc"])
    mean, sd = train.spread(frame)
    assert list(mean.index) == ["own", "attention", "mean"] and list(mean.columns) == list(sd.columns) == [
        "home", "cart", "macro"]
    for f in mean.index:
        for p in mean.columns:
            x = [row.auc for row in frame.itertuples() if row.model == f and row.scenario == p]
            m = sum(x)/4
            assert mean.loc[f, p] == pytest.approx(m) and sd.loc[f, p] == pytest.approx(
                math.sqrt(sum((v - m)**2 for v in x)/3))
    assert train.spread(frame[frame.seed == 0])[1].isna().all(axis=None)
    with pytest.raises(ValueError, match="no column 'gauc'"): train.spread(frame, "gauc")
    two = pd.concat([frame.assign(task="click"), frame.assign(task="buy")])
    with pytest.raises(ValueError, match="several tasks; choose one, such as frame.frame.task == 'click'."):
        train.spread(two)
    assert train.spread(two[two.task == "buy"])[0].equals(mean)
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
        alpha, t = m.explain(row).weights[0].tolist(), row.scenario.item()
        total[t], count[t] = [a + b for a, b in zip(total[t], alpha)], count[t] + 1
    assert min(count) > 0
    found = train.attention_map(m, test, batch_size=100)
    np.testing.assert_allclose(found.to_numpy(), [[x/n for x in line] for line, n in zip(total, count)],
                               atol=1e-6)
    assert list(found.index) == list(found.columns) == list(spec.scenarios) and (found.index.name,
        found.columns.name) == ("target", "history")
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert m.training


def test_attention_map_of_known_fusions_and_of_none(tiny):
    spec, _, _, test = tiny[:4]
    S = len(spec.scenarios)
    np.testing.assert_allclose(train.attention_map(fresh(spec, "own"), test), np.eye(S), atol=1e-9)
    np.testing.assert_allclose(train.attention_map(fresh(spec, "mean"), test), np.full((S, S), 1/S),
                               atol=1e-6)
    every, model_ = train.attention_map(fresh(spec, "mean"), test, complete=False), fresh(spec, "mean")
    alpha = model_.explain(test).weights.detach().numpy()
    for s, name in enumerate(spec.scenarios):
        np.testing.assert_allclose(every.loc[name], alpha[test.scenario.numpy() == s].mean(0), atol=1e-6)
    only = train.attention_map(fresh(spec), test[test.scenario == 1])
    assert only.iloc[1].notna().all() and only.drop(index=only.index[1]).isna().all(axis=None)
    for fusion in ("none", "concat"):
        m = fresh(spec, fusion)
        with pytest.raises(ValueError,
            match="InterestModel does not explain its scores by weights of scenarios; a fusion with weights "
                  "does, such as attention, mean or own"):
            train.attention_map(m, test)
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
    frame = pd.DataFrame(dict(epoch=[1, 2, 3], train_loss=[.6, .5, .4], valid_loss=[.6, .5, .55],
                              valid_auc=[.6, .7, .7]))
    ax = train.TrainingLog(frame, 2).plot()
    assert [line.get_label() for line in ax.get_lines()] == ["training rows", "validation rows", "best epoch"]
    alone = train.TrainingLog(frame.assign(valid_loss=float("nan")), 3).plot(plt.figure().subplots())
    assert [line.get_label() for line in alone.get_lines()] == ["training rows", "best epoch"]
    plt.close("all")


def test_tables_of_a_comparison():
    frame = pd.DataFrame(dict(model=["b", "a"]*2, seed=[0, 0, 1, 1], scenario="home", auc=[.5, .6, .7, .6]))
    line = pd.DataFrame(dict(auc=[.9, .8]), ["cart", "home"])
    text = training.comparison_table(*train.spread(frame), {"ceiling": line})
    assert [row.split(maxsplit=1) for row in text.splitlines()] == [
        ["scenario", "home"], ["model"], ["b", "0.600 ± 0.141"], ["a", "0.600 ± 0.000"], ["ceiling", "0.800"]]
    rows = training.comparison_rows({"auc": train.spread(frame)}, 2, {"ceiling": line})
    assert list(rows.columns) == ["model", "scenario", "metric", "mean", "sd", "seeds"]
    assert rows["mean"].tolist() == pytest.approx([.6, .6, .8]) and rows.seeds.tolist()[:2] == [2, 2]
    assert rows.sd[0] == pytest.approx(.1414, abs=1e-4) and rows.iloc[2][["sd", "seeds"]].isna().all()


# What the experiments share
# ------------------------------------------------------------------------------------------

def test_prepare_is_clean_split_fit_transform():
    mall, spec, parts, frames = prepared(n_users=60, n_items=30, n_events=1500)
    ready, batches, rows = trials.prepare(mall)
    assert ready == spec and all(a.equals(b) for a, b in zip(rows, frames))
    for a, b in zip(batches, parts):
        assert all(torch.equal(a.rows[k], b.rows[k]) for k in b.rows | a.rows)
        assert all(torch.equal(a.tables[k], b.tables[k]) for k in b.tables | a.tables)
    _, _, few = trials.prepare(mall, users=(40, 20, 20))
    for part, whole, limit in zip(few, frames, (40, 20, 20)): assert part.equals(whole[whole.user_id < limit])


def test_ceilings_are_reports_of_the_log_and_of_the_truth():
    mall, _, _, frames = prepared(n_users=250, n_items=60, n_events=6000)
    found = trials.ceilings(mall, frames[2])
    assert list(found) == ["ceiling: the log", "ceiling: the truth"]
    assert found["ceiling: the log"].equals(ceiling(mall, frames[2]))
    assert found["ceiling: the truth"].auc["all"] > found["ceiling: the log"].auc["all"]


def test_histories_along_the_vectors_by_loops():
    mall = trials.reveal_items(data.toy_mall(n_users=60, n_items=30, n_events=1500))
    without = trials.reveal_items(data.toy_mall(n_users=60, n_items=30, n_events=100), vectors=False)
    assert "pair" in without.items and "v1" not in without.items
    schema = data.Schema(categorical=("age_band", "city", "category", "brand", "pair"), history=("pair",),
                         item_columns=("category", "brand", "price", "quality", "pair"))
    spec, batches, _ = trials.prepare(mall, schema, words=100)
    new, (changed, *_) = trials.along_vectors(spec, batches, mall)
    table, S = batches[0].history_table, len(spec.scenarios)
    names = [n.partition("=")[2] for n in spec.history_names if n.startswith("liked ")]
    vector = dict(zip(mall.items.pair, mall.item_vectors))
    for r, s in itertools.product(range(0, len(table), 17), range(S)):
        liked, shown = table[r, s, :2*len(names)].view(2, -1)
        liked, shown = liked.tolist(), shown.expm1().tolist()
        pull, squares, total = np.zeros(4), np.zeros((4, 4)), shown[-1]
        for name, clicks, n in zip(names, liked, shown):
            v = vector.get(name, np.zeros(4))
            pull, squares = pull + clicks*math.sqrt(1 + n)*v, squares + n*np.outer(v, v)
        wanted = [*pull/math.sqrt(1 + total), *squares[np.triu_indices(4)]/(1 + total), math.log1p(total)]
        np.testing.assert_allclose(changed.history_table[r, s, :15], wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(changed.history_table[r, s, 15:], table[r, s, -S:])
    assert new.of("history")[0].size == changed.history_table.shape[-1] == 15 + S


# Gates ------------------------------------------------------------------------------------------------------
# ----------

def race(parts, spec, user, fusions, seeds, batch_size=512, **options):
    "Mean AUC over seeds, (fusions, scenarios)."
    models = train.interest_models(spec, fusions)
    return train.spread(train.compare(models, *parts, user, seeds=seeds, batch_size=batch_size,
                                      **options).frame)[0]


def ceiling(mall, rows):
    "The report of the observable ceiling on these rows."
    return metrics.report(rows.clicked, predictor.observable_ceiling(mall, rows), rows.scenario, rows.user_id)


def test_attention_leads_on_a_small_mall():
    mall, spec, parts, frames = prepared(n_users=1500, n_events=40_000)
    mean = race(parts, spec, frames[2].user_id.to_numpy(), ("own", "mean", "attention"), (0,), batch_size=256,
                epochs=4)
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
@pytest.mark.parametrize("fusion", ["none", *fusion_names()])
def test_cpu_and_gpu_agree(tiny, fusion, monkeypatch):
    "Scores, the loss and the gradients of one step, and the model after the step, in fp32 with TF32 off."
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    spec, rows, valid = tiny[:3]
    cpu, gpu = fresh(spec, fusion), fresh(spec, fusion).to("cuda")
    torch.testing.assert_close(train.predict(gpu, valid), train.predict(cpu, valid), rtol=0, atol=1e-4)
    go = dict(epochs=1, batch_size=len(rows), lr=2e-4)
    losses = [fit(m, rows, **go, device=device).frame.train_loss.item() for m,
              device in ((cpu, "cpu"), (gpu, "cuda"))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for (name, a), b in zip(cpu.named_parameters(), gpu.parameters()):
        assert b.device.type == "cuda"
        torch.testing.assert_close(b.grad.cpu(), a.grad, rtol=0, atol=1e-4, msg=lambda m,
                                   name=name: f"gradient of {name}: {m}")
        # Adam's first step is the sign of the gradient, and below this the sign is rounding
        sure = a.grad.abs() > 1e-5
        torch.testing.assert_close(b.detach().cpu()[sure], a.detach()[sure], rtol=0, atol=1e-4, msg=lambda m,
                                   name=name: f"{name}: {m}")
    torch.testing.assert_close(train.predict(gpu, valid), train.predict(cpu, valid), rtol=0, atol=1e-4)
