"""Checks that answer in words: the same for students, who see them, and for graders, who run more of them.

Everything that a check uses is taken when this file is imported, before any solution runs. A solution that replaces
`torch.allclose` or `np.testing.assert_allclose` by something kinder changes nothing here.
"""
import os

import numpy as np
import torch

_asarray, _shape, _isnan, _isfinite, _abs, _max, _argmax = np.asarray, np.shape, np.isnan, np.isfinite, np.abs, np.max, np.argmax
_unravel, _where, _broadcast, _any = np.unravel_index, np.where, np.broadcast_to, np.any
_rng, _generator, _Tensor, _repr, _isinstance, _str, _int = np.random.default_rng, torch.Generator, torch.Tensor, repr, isinstance, str, int
_quiet, _array_equal, _ndarray, _bool, _len, _list = np.errstate, np.array_equal, np.ndarray, bool, len, list
_detach, _cpu, _numpy = torch.Tensor.detach, torch.Tensor.cpu, torch.Tensor.numpy
_INF = float("inf")
_seed = _int(os.environ.get("MULTISCENE_GRADE_SEED", "0"))


class Wrong(AssertionError):
    "The answer is not right; the text says in what way."


def _array(x, what):
    "Numbers of any kind as a float64 array."
    if x is None: raise Wrong(f"{what} is None: does the function return its result?")
    if x is Ellipsis or x is NotImplemented: raise Wrong(f"{what} is not there yet")
    if _isinstance(x, _Tensor): x = _numpy(_cpu(_detach(x)))
    try: return _asarray(x, dtype="float64")
    except (TypeError, ValueError): raise Wrong(f"{what} should be numbers, got {type(x).__name__}") from None


def close(found, wanted, what, tol=1e-6, hint=""):
    "Numbers agree up to tol, relative to 1 or to the wanted number if that is larger; shapes agree too."
    found, wanted = _array(found, what), _array(wanted, "the expected value")
    hint = f" {hint}" if hint else ""
    if found.shape != wanted.shape: raise Wrong(f"{what} should have shape {wanted.shape}, got {found.shape}.{hint}")
    nan = _isnan(wanted)
    with _quiet(all="ignore"):
        off = _where(nan, _where(_isnan(found), 0., _INF), _abs(found - wanted))
        off = _where(_isnan(off), _INF, off)/_where(nan | (_abs(wanted) < 1), 1., _abs(wanted))
        off = _where(~nan & ~_isfinite(wanted), _where(found == wanted, 0., _INF), off)
    if not off.size or _max(off) <= tol: return
    at = _unravel(_argmax(off), off.shape)
    place = f" at position {tuple(_int(i) for i in at)}" if found.ndim else ""
    raise Wrong(f"{what}{place} should be {wanted[at]:.6g}, got {found[at]:.6g}.{hint}")


def true(condition, words):
    "The condition holds; else the words say what is wrong."
    if not bool(condition): raise Wrong(words)


def _short(x):
    "How a value is shown: a long one by its beginning and its length."
    try: text = _repr(x)
    except Exception: return f"something of type {type(x).__name__}"
    if _len(text) <= 200: return text
    return f"{text[:160]} … ({_len(x)} entries)" if hasattr(x, "__len__") else f"{text[:160]} …"


def equal(found, wanted, what, hint=""):
    "Two plain values are the same; arrays are compared entry by entry."
    if _isinstance(found, (_Tensor, _ndarray)) or _isinstance(wanted, (_Tensor, _ndarray)): return close(found, wanted, what, 0., hint)
    try: same = _bool(found == wanted)
    except Exception: same = False  # what cannot be compared is not the same
    if not same: raise Wrong(f"{what} should be {_short(wanted)}, got {_short(found)}. {hint}".strip())


def refuses(call, kinds, words):
    "The call raises one of the kinds of error."
    try: call()
    except kinds: return
    except Exception as e: raise Wrong(f"{words} It raised {type(e).__name__} instead: {e}") from None
    raise Wrong(f"{words} Nothing was raised.")


def seed(k=0):
    "A seed for check number k; graders set MULTISCENE_GRADE_SEED, so that theirs differ from the ones that students see."
    return 1_000_003*_seed + 7919*k + 17


def rng(k=0):
    "NumPy's random numbers for check number k."
    return _rng(seed(k))


def torch_rng(k=0):
    "PyTorch's random numbers for check number k."
    return _generator().manual_seed(seed(k) % 2**63)
