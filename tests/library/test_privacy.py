"""A gradient per row goes through the public hooks of fit: Opacus replaces the optimizer in a callback
(extra privacy)."""
import pytest
import torch

from multiscene_rec import (
    Callback,
    EventLog,
    InterestModel,
    KeepBest,
    Preprocessor,
    fit,
    set_seed,
    time_split,
    toy_mall,
)

pytestmark = pytest.mark.slow


class Private(Callback):
    "Clip every row's gradient to length `clip` and add noise, as DP-SGD does (Abadi et al. 2016)."
    def __init__(self, batch_size, clip=1., noise=0.):
        self.batch_size, self.clip, self.noise = batch_size, clip, noise

    def begin(self, run):
        from opacus import GradSampleModule
        from opacus.optimizers import DPOptimizer
        self.hooks = GradSampleModule(run.model, batch_first=True, loss_reduction="mean")
        run.optimizer = DPOptimizer(run.optimizer, noise_multiplier=self.noise, max_grad_norm=self.clip,
                                    expected_batch_size=self.batch_size)

    def end(self, run): self.hooks.remove_hooks()


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("opacus", reason="needs the extra privacy")
    mall = toy_mall(n_users=200, n_items=80, n_events=4000)
    past, later = time_split(mall.events, fractions=(.8, .2))
    prep, log = Preprocessor().fit(past, mall.users, mall.items), EventLog(mall.events, mall.users)
    return prep.spec, prep.transform(past, log), prep.transform(later, log)


def test_each_row_gets_a_gradient_of_its_own(data):
    from opacus import GradSampleModule
    spec, train, _ = data
    set_seed(0)
    model, rows = InterestModel(spec), train[:6]
    alone = []
    for i in range(len(rows)):
        model.zero_grad()
        model.loss(rows[i]).backward()
        alone.append({name: p.grad.clone() for name, p in model.named_parameters()})
    model.zero_grad()
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="mean")
    model.loss(rows).backward()
    for name, p in model.named_parameters():
        assert p.grad_sample.shape[0] == len(rows), name
        torch.testing.assert_close(p.grad_sample, torch.stack([g[name] for g in alone]), atol=1e-5, rtol=1e-4,
                                   msg=name)
    wrapped.remove_hooks()


def test_fit_trains_with_clipped_gradients_and_noise(data):
    spec, train, valid = data
    go = dict(epochs=2, batch_size=256, lr=3e-3, device="cpu")
    frames, models = {}, {}
    for name, extra in {"plain": (), "wide": (Private(256, clip=1e6),),
                        "private": (Private(256, clip=.5, noise=1.),)}.items():
        set_seed(0)
        models[name] = InterestModel(spec)
        frames[name] = fit(models[name], train[:1024], valid, callbacks=(KeepBest(), *extra), **go).frame
    # With room for every gradient and without noise it is the plain run, up to rounding
    assert (frames["wide"].train_loss - frames["plain"].train_loss).abs().max() < 1e-3
    assert frames["private"].train_loss.notna().all() and not torch.equal(
        *(next(models[n].predictors.parameters()) for n in ("plain", "private")))
