"""Checks that answer in words: the same for students, who see them, and for graders, who run more of them."""
import os

import numpy as np
import torch

COUNTS = "none one two three four five six seven eight nine ten".split()
PLAIN = bool, int, float, complex, str, bytes, range, type(None)
_seed = int(os.environ.get("MULTISCENE_GRADE_SEED", "0"))
_changed = False # a grader's functions work on copies, and note here that one was changed


class Wrong(AssertionError):
    "The answer is not right; the text says in what way."


# ---------------------------------------------------------------- what test cells call

def close(found, wanted, what, tol=1e-6, hint="", nan=False):
    """Numbers agree up to tol, relative to 1 or to the wanted number if that is larger; shapes agree too.

    Where inf is wanted, only inf will do. Where nan is wanted, nan will do if nan=True, and nothing if not.
    """
    found, wanted = _array(found, what), _array(wanted, "the expected value")
    if found.shape != wanted.shape:
        raise Wrong(_with(f"{what} should have shape {wanted.shape}, got {found.shape}.", hint))
    with np.errstate(all="ignore"):
        off = np.abs(found - wanted)/np.maximum(np.abs(wanted), 1)
        off = np.where(np.isfinite(found) & np.isfinite(wanted), off, np.inf)
        off = np.where((found == wanted) | (np.isnan(found) & np.isnan(wanted) & nan), 0., off)
    if not off.size or np.max(off) <= tol: return
    at = np.unravel_index(np.argmax(off), off.shape)
    place = f" at position {tuple(int(i) for i in at)}" if found.ndim else ""
    a, b = found[at], wanted[at]
    digits = 6 if f"{a:.6g}" != f"{b:.6g}" else 17 # "should be 0.5, got 0.5" would help nobody
    raise Wrong(_with(f"{what}{place} should be {b:.{digits}g}, got {a:.{digits}g}.", hint))


def true(condition, words):
    "The condition holds; else the words say what is wrong."
    if not bool(condition): raise Wrong(words)


def unchanged(same, words):
    "What a function was given is the same as before; else the words say so."
    if _changed or not bool(same): raise Wrong(words)


def equal(found, wanted, what, hint=""):
    "Two plain values are the same. Lists, arrays and tensors are compared entry by entry; nan equals nan."
    found, wanted = _plain(found), _plain(wanted)
    if _same(found, wanted): return
    shape, other = _shape(wanted), _shape(found)
    both = f"{_short(wanted)}, got {_short(found)}."
    if None in (shape, other): raise Wrong(_with(f"{what} should be {both}", hint))
    if shape != other and len(shape) == len(other) == 1:
        raise Wrong(_with(f"{what} should have {_entries(shape[0])}, got {other[0]}: wanted {both}", hint))
    if shape != other: raise Wrong(_with(f"{what} should have shape {shape}, got {other}.", hint))
    pairs = list(_pairs(found, wanted, ()))
    if len(pairs) <= 8: raise Wrong(_with(f"{what} should be {both}", hint))
    off = [f"at {at[0] if len(at) == 1 else at} {_short(b, 40)} is wanted, got {_short(a, 40)}"
           for at, a, b in pairs if not _same(a, b)]
    more = [f"and {len(off) - 3} more"] if len(off) > 3 else []
    verb = "is" if len(off) == 1 else "are"
    words = f"{what}: {len(off)} of {_entries(len(pairs))} {verb} wrong: {'; '.join(off[:3] + more)}."
    raise Wrong(_with(words, hint))


def several(found, names):
    """The results of a function that returns several, as a tuple; names is a text such as "W, b, x, a".

    A list will do, and so will one row of numbers in an array: both hold as many values as are wanted.
    """
    wanted = names.split(", ")
    row = isinstance(found, (torch.Tensor, np.ndarray)) and found.ndim == 1
    if (row or isinstance(found, (tuple, list))) and len(found) == len(wanted): return tuple(found)
    kind = {torch.Tensor: "tensor", np.ndarray: "array"}.get(type(found), type(found).__name__)
    got = f"one {kind}"
    if isinstance(found, (tuple, list)): got = _count(len(found))
    if found is None: got = "None: does the function return its results?"
    raise Wrong(f"the function should return {_count(len(wanted))} values, {names}; got {got}")


def refuses(call, kinds, words):
    "The call raises one of the kinds of error."
    try: call()
    except kinds: return
    except Exception as e:
        raise Wrong(f"{words} It raised {type(e).__name__} instead: {_short(e, 100)}") from None
    raise Wrong(f"{words} Nothing was raised.")


def seed(k=0):
    "A seed for check number k; a grader has another one than students, by MULTISCENE_GRADE_SEED."
    return 1_000_003*_seed + 7919*k + 17


def rng(k=0):
    "NumPy's random numbers for check number k."
    return np.random.default_rng(seed(k))


def torch_rng(k=0):
    "PyTorch's random numbers for check number k."
    return torch.Generator().manual_seed(seed(k) % 2**63)


# ---------------------------------------------------------------- how they compare, and how they show it

def _with(words, hint): return f"{words} {hint}".strip()


def _entries(n): return f"{n} entry" if n == 1 else f"{n} entries"


def _count(n): return COUNTS[n] if n < len(COUNTS) else str(n)


def _array(x, what):
    "Numbers of any kind as a float64 array."
    if x is None: raise Wrong(f"{what} is None: does the function return its result?")
    if x is Ellipsis or x is NotImplemented: raise Wrong(f"{what} is missing.")
    try:
        a = np.asarray(x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x)
        if a.dtype.kind in "biufO": return np.asarray(a, dtype="float64")
        kind = {"U": "text", "S": "text", "c": "complex ones"}.get(a.dtype.kind, f"an array of {a.dtype}")
    except Exception:
        kind = f"something of type {type(x).__name__}"
        if type(x) in (list, tuple): kind = "a list of something else, or of rows of different lengths"
    raise Wrong(f"{what} should be real numbers, got {kind}.")


def _plain(x):
    "Arrays, tensors and tables as nested lists; NumPy's numbers as Python's."
    if isinstance(x, torch.Tensor): x = x.detach().cpu().numpy()
    elif type(x).__module__.split(".")[0] == "pandas" and hasattr(x, "to_numpy"): x = x.to_numpy()
    if type(x) is torch.Size: return tuple(x)
    return x.tolist() if isinstance(x, (np.ndarray, np.generic)) else x


def _shape(x):
    "The shape of nested lists; None for all else, and for ragged ones."
    if type(x) not in (list, tuple): return None
    inner = {_shape(v) for v in x}
    return (len(x),) if inner <= {None} else (len(x), *inner.pop()) if len(inner) == 1 else None


def _pairs(a, b, at):
    "Entries of two nested lists of one shape: place, entry, entry."
    if _shape(a) is None: yield at, a, b
    else:
        for i, (u, v) in enumerate(zip(a, b, strict=True)): yield from _pairs(u, v, (*at, i))


def _same(a, b):
    "Plain values are the same. What brings a comparison of its own is not: it could say yes to everything."
    a, b = _plain(a), _plain(b)
    if type(a) in (list, tuple) and type(b) in (list, tuple):
        return len(a) == len(b) and all(_same(u, v) for u, v in zip(a, b, strict=True))
    if type(a) is type(b) is dict: return len(a) == len(b) and all(k in a and _same(a[k], b[k]) for k in b)
    if type(a) is not type(b) and not (type(a) in PLAIN and type(b) in PLAIN): return False
    return bool(a == b or (a != a and b != b))


def _short(x, room=160):
    "How a value is shown: in one line, a long one by its beginning."
    try: text = " ".join((str if isinstance(x, BaseException) else repr)(x).split())
    except Exception: return f"something of type {type(x).__name__}"
    if len(text) <= room: return text
    return f"{text[:room - 20]} …" + (f" ({_entries(len(x))})" if type(x) in (list, tuple, dict, set) else "")
