"""Checks that answer in words: the same for students, who see them, and for graders, who run more of them.

Everything that a check uses is taken when this file is imported, before any solution runs. A solution that replaces
`torch.allclose` or `np.testing.assert_allclose` by something kinder changes nothing here.
"""
import os

import numpy as np
import torch

_asarray, _isnan, _isfinite, _abs, _max, _argmax, _unravel, _where, _quiet = (
    np.asarray, np.isnan, np.isfinite, np.abs, np.max, np.argmax, np.unravel_index, np.where, np.errstate)
_rng, _generator, _Tensor, _ndarray, _scalar = np.random.default_rng, torch.Generator, torch.Tensor, np.ndarray, np.generic
_detach, _cpu, _numpy = torch.Tensor.detach, torch.Tensor.cpu, torch.Tensor.numpy
_repr, _isinstance, _type, _int, _bool, _len, _tuple, _zip, _enumerate, _sorted, _str = (
    repr, isinstance, type, int, bool, len, tuple, zip, enumerate, sorted, str)
_PLAIN = (bool, int, float, complex, str, bytes, _type(None), np.dtype, torch.dtype)
_INF = float("inf")
_seed = _int(os.environ.get("MULTISCENE_GRADE_SEED", "0"))


class Wrong(AssertionError):
    "The answer is not right; the text says in what way."


def _array(x, what):
    "Numbers of any kind as a float64 array."
    if x is None: raise Wrong(f"{what} is None: does the function return its result?")
    if x is Ellipsis or x is NotImplemented: raise Wrong(f"{what} is not there yet")
    try:
        if _isinstance(x, _Tensor): x = _numpy(_cpu(_detach(x)))
        with _quiet(all="ignore"): return _asarray(x, dtype="float64")
    except Exception: raise Wrong(f"{what} should be numbers, got {_named(x)}.") from None


def close(found, wanted, what, tol=1e-6, hint="", nan=False):
    """Numbers agree up to tol, relative to 1 or to the wanted number if that is larger; shapes agree too.

    An infinite number must be the same infinity. With nan=True a missing number (nan) is wanted where wanted has one.
    """
    found, wanted = _array(found, what), _array(wanted, "the expected value")
    hint = f" {hint}" if hint else ""
    if found.shape != wanted.shape: raise Wrong(f"{what} should have shape {wanted.shape}, got {found.shape}.{hint}")
    with _quiet(all="ignore"):
        off = _abs(found - wanted)/_where(_abs(wanted) > 1, _abs(wanted), 1.)
        same = (found == wanted) | (_isnan(found) & _isnan(wanted) if nan else False)
        off = _where(same, 0., _where(_isfinite(found) & _isfinite(wanted), off, _INF))
    if not off.size or _max(off) <= tol: return
    at = _unravel(_argmax(off), off.shape)
    place = f" at position {_tuple(_int(i) for i in at)}" if found.ndim else ""
    a, b = found[at], wanted[at]
    digits = 6 if f"{a:.6g}" != f"{b:.6g}" else 17  # should be 0.5, got 0.5 would help nobody
    raise Wrong(f"{what}{place} should be {b:.{digits}g}, got {a:.{digits}g}.{hint}")


def true(condition, words):
    "The condition holds; else the words say what is wrong."
    if not _bool(condition): raise Wrong(words)


def equal(found, wanted, what, hint=""):
    "Two plain values are the same; lists and arrays are compared entry by entry, and nan is the same as nan."
    found, wanted = _plain(found), _plain(wanted)
    hint = f" {hint}" if hint else ""
    shape = [_shape(x) for x in (found, wanted)]
    if None not in shape and shape[0] != shape[1]:
        if _len(shape[0]) == _len(shape[1]) == 1:
            words = f"{what} should have {_count(shape[1][0])}, got {shape[0][0]}: wanted {_short(wanted)}, got {_short(found)}."
        else: words = f"{what} should have shape {shape[1]}, got {shape[0]}."
        raise Wrong(words + hint)
    if None in shape:
        if not _same(found, wanted): raise Wrong(f"{what} should be {_short(wanted)}, got {_short(found)}.{hint}")
        return
    pairs = _list_of_pairs(found, wanted, ())
    off = [(at, a, b) for at, a, b in pairs if not _same(a, b)]
    if not off: return
    if _len(pairs) <= 6: raise Wrong(f"{what} should be {_short(wanted)}, got {_short(found)}.{hint}")
    first = "; ".join(f"at {at[0] if _len(at) == 1 else at} it should be {_short(b, 40)}, got {_short(a, 40)}" for at, a, b in off[:3])
    more = f"; and {_len(off) - 3} more" if _len(off) > 3 else ""
    raise Wrong(f"{what}: {_len(off)} of {_count(_len(pairs))} {'differs' if _len(off) == 1 else 'differ'}: {first}{more}.{hint}")


def refuses(call, kinds, words):
    "The call raises one of the kinds of error."
    try: call()
    except kinds: return
    except Exception as e: raise Wrong(f"{words} It raised {_type(e).__name__} instead: {_short(e, 100)}") from None
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


# ---------------------------------------------------------------- comparing and showing

def _named(x):
    "A type in a student's words."
    name = _type(x).__name__
    return {"NoneType": "None", "str": "text", "function": "a function"}.get(name, f"something of type {name}")


def _count(n): return f"{n} entry" if n == 1 else f"{n} entries"


def _plain(x):
    "Arrays, tensors and tables as nested lists; NumPy's numbers as Python's."
    if _isinstance(x, _Tensor): x = _numpy(_cpu(_detach(x)))
    if _type(x).__module__.startswith("pandas.") and hasattr(x, "to_numpy"): x = x.to_numpy()
    return _ndarray.tolist(x) if _isinstance(x, _ndarray) else x.item() if _isinstance(x, _scalar) else x


def _shape(x):
    "The shape of nested lists; None for all else, and for ragged ones."
    if _type(x) not in (list, _tuple): return None
    inner = {_shape(v) for v in x}
    return (_len(x),) if not x or inner == {None} else (_len(x), *inner.pop()) if _len(inner) == 1 else None


def _list_of_pairs(a, b, at):
    "Entries of two nested lists of one shape: (place, entry, entry)."
    if _shape(a) is None: return [(at, a, b)]
    return [pair for i, (u, v) in _enumerate(_zip(a, b)) for pair in _list_of_pairs(u, v, (*at, i))]


def _same(a, b):
    "Plain values are the same. Whatever has a comparison of its own is not plain: it could say yes to everything."
    a, b = _plain(a), _plain(b)
    if _type(a) in (list, _tuple) and _type(b) in (list, _tuple): return _len(a) == _len(b) and all(_same(u, v) for u, v in _zip(a, b))
    if _type(a) is dict and _type(b) is dict: return _len(a) == _len(b) and all(k in b and _same(a[k], b[k]) for k in a)
    if _type(a) in (set, frozenset) and _type(b) in (set, frozenset): return all(_type(v) in _PLAIN for v in a) and a == b
    if not (_isinstance(b, _PLAIN) and (_type(a) in _PLAIN or _type(a) is _type(b))): return _type(a) is _type(b) and a is b
    return a == b or (a != a and b != b)


def _short(x, room=200):
    "How a value is shown: the beginning of a long one, in one line."
    try: text = " ".join((_str(x) if _isinstance(x, BaseException) else _repr(x)).split())
    except Exception: return _named(x)
    return text if _len(text) <= room else f"{text[:room - 20]} … ({_count(_len(x))})" if hasattr(x, "__len__") and not _isinstance(x, str) else f"{text[:room - 2]} …"
