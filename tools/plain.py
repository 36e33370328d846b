"""Plain values as JSON: all that crosses the wall between a grader and a student's code. Nothing is pickled.

None, truth values, numbers and text stand for themselves; lists, tuples, dicts, arrays, tensors, NumPy's
numbers and data frames are lists that begin with their kind, with dtype, shape and raw bytes where there are
numbers. `unpack` makes new objects of exactly these types or raises an Exception, whatever it is given:
nothing that it returns has code of its own. Only a grader sends more, and only to a student: malls, batches,
models, functions to call back.
"""
import base64
import builtins
import dataclasses
import importlib
import json
import math

import numpy as np
import pandas as pd
import torch

NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
           "float16", "float32", "float64")
ITEMS = 2**22 # numbers in an array; and rows of an array without numbers


class Remote:
    "A function of the grader's in the student's process: a call goes back through the pipe."
    def __init__(self, tree, ask): self.tree, self.ask, self.__name__ = tree, ask, tree[2]
    def __call__(self, *args, **named): return self.ask(self.tree[1], args, named)


def _raw(x): # Bytes of an array's numbers, in order
    return base64.b64encode(np.ascontiguousarray(x).tobytes()).decode()


def _column(x): # A column or an index of a frame
    if str(x.dtype) in NUMBERS: return pack(x.to_numpy())
    return ["text", "str" if str(x.dtype) == "str" else "object", [pack(v) for v in x.tolist()]]


def pack(x, calls=None):
    """A value as a tree for JSON. Raises TypeError for what is not plain.

    A grader passes a list `calls`: functions are added to it and sent as numbers, objects of the course too.
    """
    inner = lambda v: pack(v, calls)
    if x is None or type(x) in (bool, int, float, str): return x
    if isinstance(x, str): return str(x)
    if isinstance(x, Remote): return x.tree
    if isinstance(x, dict): return ["dict", [[inner(k), inner(v)] for k, v in x.items()]]
    if isinstance(x, list): return ["list", [inner(v) for v in x]]
    if isinstance(x, tuple): return ["tuple", [inner(v) for v in x]]
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        return ["tensor", pack((x.float() if x.dtype == torch.bfloat16 else x).numpy())]
    if isinstance(x, np.ndarray):
        if x.dtype.name in NUMBERS: return ["array", x.dtype.name, list(x.shape), _raw(x)]
        return inner(x.tolist())
    if isinstance(x, np.generic) and x.dtype.name in NUMBERS: return ["number", x.dtype.name, _raw(x)]
    if isinstance(x, pd.Series): return inner(x.to_numpy())
    if isinstance(x, pd.DataFrame) and x.columns.nlevels == x.index.nlevels == 1:
        return ["frame", [[inner(name), _column(x[name])] for name in x], _column(x.index)]
    if calls is not None: return _object(x, inner, calls)
    raise TypeError(f"it gave back something of type {type(x).__name__}; "
                    "numbers, text, lists, arrays, tensors and frames can be judged")


def _object(x, inner, calls): # What only a grader sends
    kind = type(x).__module__, type(x).__name__
    if dataclasses.is_dataclass(x):
        return ["data", *kind, inner({f.name: getattr(x, f.name) for f in dataclasses.fields(x)})]
    if kind[1] == "Batch": return ["data", *kind, inner(dict(rows=x.rows, tables=x.tables))]
    if isinstance(x, torch.nn.Module):
        parts = dict(spec=x.spec, **x.get_params()), dict(x.state_dict())
        return ["model", *kind, *map(inner, parts), x.training]
    calls.append(x)
    return ["call", len(calls) - 1, x.__name__]


def _numbers(dtype, shape, text): # A new array of numbers, with every size as announced
    if dtype not in NUMBERS or len(shape) > 16 or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("no such array")
    if math.prod(max(n, 1) for n in shape) > ITEMS: raise ValueError("too many numbers")
    data, stored = base64.b64decode(text, validate=True), "uint8" if dtype == "bool" else dtype
    x = np.frombuffer(data, dtype=stored).astype(dtype) # a copy
    if len(x) != math.prod(shape): raise ValueError("other numbers than announced")
    if dtype == "bool" and max(data, default=0) > 1: raise ValueError("no truth values")
    return x.reshape(shape)


def _labels(tree): # Of a frame: the values of a column
    if tree[0] == "array": return unpack(tree)
    kind, name, values = tree
    if kind != "text" or name not in ("str", "object"): raise ValueError("no such column")
    return pd.Series([unpack(v) for v in values], dtype=name).array


def _index(tree):
    labels = _labels(tree)
    plain = getattr(labels, "dtype", None) == np.int64 and (labels == np.arange(len(labels))).all()
    return pd.RangeIndex(len(labels)) if plain else pd.Index(labels)


def _built(kind, rest, ask): # What only a grader sends
    if kind == "call": return Remote([kind, *rest], ask)
    made = getattr(importlib.import_module(rest[0]), rest[1])(**unpack(rest[2], ask))
    if kind == "model":
        state = unpack(rest[3])
        made = made.to(next(iter(state.values())).dtype).train(rest[4])
        made.load_state_dict(state)
    return made


def unpack(tree, ask=None):
    "The value of a tree; an Exception where there is none. `ask` lets in what only a grader sends."
    if tree is None or type(tree) in (bool, int, float, str): return tree
    kind, *rest = tree
    if kind == "list": return [unpack(v, ask) for v in rest[0]]
    if kind == "tuple": return tuple(unpack(v, ask) for v in rest[0])
    if kind == "dict": return {unpack(k): unpack(v, ask) for k, v in rest[0]}
    if kind == "tensor": return torch.from_numpy(_numbers(*rest[0][1:]))
    if kind == "array": return _numbers(*rest)
    if kind == "number": return _numbers(rest[0], [1], rest[1])[0]
    if kind == "frame": return pd.DataFrame({unpack(k): _labels(v) for k, v in rest[0]},
        index=_index(rest[1]))
    if ask is None: raise ValueError(f"no such kind: {kind!r}")
    return _built(kind, rest, ask)


def told(e):
    "An exception as plain values: the names of its classes, and its text."
    try: text = str(e)
    except BaseException: text = "an error that cannot be shown"
    if isinstance(e, SyntaxError) and (e.text or "").lstrip().startswith(("%", "!")):
        text = f"line {e.lineno} is a command to Jupyter, {e.text.strip()!r}: a solution is plain Python"
        return ["Wrong"], text
    return [kind.__name__ for kind in type(e).__mro__], text[:2000]


def error(names, text):
    "An exception again: of a new class with the first name, under the first built-in one among the names."
    if not all(type(name) is str for name in names) or type(text) is not str: raise ValueError("no exception")
    for base in (*(getattr(builtins, name, None) for name in names[:100]), Exception):
        if not (isinstance(base, type) and issubclass(base, Exception)): continue
        if issubclass(base, (StopIteration, StopAsyncIteration)): continue # a loop would take it for its end
        try: return type(names[0][:50], (base,), {"__str__": lambda self: text})(text)
        except TypeError: continue # some want more than a text


def framed(message):
    "A message as bytes: their number in four bytes, then JSON."
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data
