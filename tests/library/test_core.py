"Second opinions on seeds, devices, shapes and the bound on rounding."
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from multiscene_rec import core


def draw():
    "One number of each of the three libraries."
    return random.random(), np.random.rand(), torch.rand(1).item()


@given(st.integers(0, 2**32 - 1))
def test_a_seed_repeats(seed):
    core.set_seed(seed)
    first = draw()
    core.set_seed(np.int64(seed))
    assert draw() == first


def test_other_seeds_draw_other_numbers():
    seen = set()
    for seed in range(20):
        core.set_seed(seed)
        seen.update(draw())
    assert len(seen) == 60


@pytest.mark.parametrize("seed", [-1, 2**32, .5, "7", None, True])
def test_what_is_no_seed(seed):
    with pytest.raises(ValueError, match="whole number from 0 to"): core.set_seed(seed)


def test_auto_takes_what_is_there(monkeypatch):
    cuda, mps = False, False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert core.pick_device().type == "cpu"
    for absent in ("cuda", "cuda:0", "mps"):
        with pytest.raises(RuntimeError, match=f"{absent}.*this machine has none"): core.pick_device(absent)
    mps = True
    assert core.pick_device().type == "mps"
    cuda = True
    assert core.pick_device().type == "cuda" and core.pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(RuntimeError, match="this machine has none"): core.pick_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "tpu:0"])
def test_what_is_no_device(name):
    with pytest.raises(ValueError, match="unknown device"): core.pick_device(name)


@pytest.mark.gpu
def test_a_gpu_is_found():
    assert core.pick_device("cuda").type == "cuda"


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
def test_a_shape_that_fits_and_one_that_does_not(shape, data):
    names = [f"n{i}" for i in range(len(shape))]
    x = np.zeros(shape)
    assert core.check_shape(x, " ".join(names)) == dict(zip(names, shape))
    with pytest.raises(ValueError, match=f"expected {len(shape) + 1} axes"):
        core.check_shape(x, " ".join([*names, "more"]))
    if shape:
        i = data.draw(st.integers(0, len(shape) - 1))
        with pytest.raises(ValueError, match=f"axis 'n{i}': expected {shape[i] + 1}, got {shape[i]}"):
            core.check_shape(torch.zeros(shape), " ".join(names), **{f"n{i}": shape[i] + 1})


def test_a_name_twice_is_one_size():
    assert core.check_shape(torch.zeros(3, 3), "n n") == {"n": 3}
    assert core.check_shape(torch.zeros(2, 3), "2 n") == {"n": 3}
    assert core.check_shape(torch.tensor(1.), "") == {}
    with pytest.raises(ValueError, match="axis 'n'"): core.check_shape(torch.zeros(3, 4), "n n")
    with pytest.raises(ValueError, match="axis '5': expected 5, got 3"): core.check_shape(torch.zeros(3), "5")


@pytest.mark.formula("1.1")
@pytest.mark.parametrize("dtype, digits", [(torch.float32, 24), (torch.float64, 53), (torch.bfloat16, 8),
                                           (torch.float16, 11)])
def test_bound_in_exact_fractions(dtype, digits):
    x = torch.tensor([.5, -.25, 3., 1., -7.], dtype=dtype)
    half_gap = Fraction(1, 2**digits)
    exact = (len(x) - 1)*half_gap*sum(abs(Fraction(v)) for v in x.tolist())
    assert math.isclose(core.sum_error_bound(x), float(exact), rel_tol=1e-12)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))
def test_no_sum_is_further_off_than_the_bound(terms):
    x = torch.tensor(terms, dtype=torch.float32)
    running = np.float32(0)
    for v in x.numpy(): running = np.float32(running + v)
    exact = sum(map(Fraction, x.tolist()))
    # The bound keeps terms of first order: a hair more is allowed for the rest.
    assert abs(Fraction(float(running)) - exact) <= Fraction(core.sum_error_bound(x))*Fraction(1001,
        1000) + Fraction(1, 2**140)


def test_bound_of_few_terms():
    assert core.sum_error_bound(torch.zeros(0)) == 0 and core.sum_error_bound(torch.ones(1)) == 0
    with pytest.raises(ValueError, match="expected 1 axes"): core.sum_error_bound(torch.ones(2, 2))
    with pytest.raises(TypeError, match="floating point"):
        core.sum_error_bound(torch.ones(2, dtype=torch.int64))


def test_a_missing_extra_says_how_to_get_it():
    assert core.require("math", "lab") is math
    with pytest.raises(ImportError, match=r'no_such_module.*pip install "multiscene_rec\[compare\]"'):
        core.require("no_such_module", "compare")
