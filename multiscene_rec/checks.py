"""Checks of arguments that several lessons share. Hand-written; not part of a lesson."""
import contextlib
import inspect

import numpy as np
import torch
from safetensors import SafetensorError

__all__ = ["whole_number", "unit_interval", "float_array", "probability_array", "fitted", "get_params",
           "takes_user", "damage_named", "ends_in_sigmoid"]


def whole_number(
    name: str, # Name of the argument, for the error message
    value, # The value to check
    low: int = 1, # The smallest value allowed
) -> int: # The same value
    """Refuse anything but a whole number of at least `low`; True and 3.0 are refused too."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be a whole number of {low} or more, got {value!r}")
    return int(value)


def unit_interval(
    name: str, # Name of the argument, for the error message
    value: float, # The value to check
) -> float: # The same value
    """Refuse a value outside 0 to 1, or nan."""
    if not 0 <= value <= 1: raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
    return value


def float_array(
    x, # An array, a tensor or a list
) -> np.ndarray: # float64
    """Numbers as a float64 array on the CPU."""
    if isinstance(x, torch.Tensor): return x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=np.float64)


def probability_array(
    name: str, # Name of the argument, for the error message
    x, # An array or a list of numbers
) -> np.ndarray: # (n,) float64
    """Probabilities along one axis. Raises: `ValueError` naming the first row that is outside 0 to 1."""
    p = np.asarray(x, dtype=float)
    if p.ndim != 1: raise ValueError(f"{name}: expected one axis, got shape {p.shape}")
    inside = (p >= 0) & (p <= 1)
    if not inside.all(): raise ValueError(f"{name}: row {int(np.argmin(inside))} is outside 0 to 1")
    return p


def fitted(
    learned, # Something that is None before fit
    what: str, # Name of the class
) -> None:
    """Refuse to work before fit. Raises: `ValueError` naming the class."""
    if learned is None: raise ValueError(f"{what} is not fitted: call fit on the training rows first")


def get_params(
    thing, # An object whose class keeps every keyword argument of __init__ under its own name
    skip: tuple = (), # Arguments to leave out
) -> dict: # Name: value
    """The arguments that an object was created with, by scikit-learn's rule.

    Raises: `TypeError` naming the argument that was not kept, or was kept in another form, or the class
    whose arguments have no names.
    """
    kind, params = type(thing), {}
    for name, p in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", *skip): continue
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(
                f"{kind.__name__}.__init__ takes *{name}: name every argument, so that a saved object can be "
                "built again")
        value = getattr(thing, name, None)
        if isinstance(value, (torch.nn.Module, torch.Tensor)):
            raise TypeError(
                f"{kind.__name__} keeps a {type(value).__name__} as self.{name}, where its argument belongs: "
                f"write self.{name} = {name} in __init__, and give what is made from it another name")
        if name not in vars(thing) and not isinstance(getattr(kind, name, None), property):
            raise TypeError(
                f"{kind.__name__}.__init__ takes {name!r} but does not keep it: write self.{name} = {name} "
                "there")
        params[name] = value
    return params


def takes_user(
    metric, # A function of labels and scores, and perhaps of users
) -> bool: # Whether it has a parameter called user, or a third one without a default
    """Whether a metric needs the users' ids."""
    try: parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError): return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind in positional]
    return any(p.name == "user" for p in parameters) or len(needed) >= 3


@contextlib.contextmanager
def damage_named(
    path, # The file that is being read
    writer: str, # What writes such files, such as Preprocessor.save
):
    """Turn whatever error a damaged description causes into one that names the file.

    Raises: `ValueError`.
    """
    try: yield
    except ImportError: raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError,
            SafetensorError) as e:
        why = str(e)[:200] if isinstance(e, ValueError) else f"{type(e).__name__}: {str(e)[:100]}"
        raise ValueError(
            f"{path} is damaged, or is not what {writer} wrote ({why}): copy it again, or create it again"
        ) from e


# Steps that move or cut numbers without changing what they mean
_PASSING = ("View", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Index", "Gather", "Expand",
            "Clone", "ToCopy", "Transpose", "T", "Permute", "Cat", "Stack",
            "Clamp", "ClampMin", "ClampMax")

def ends_in_sigmoid(
    scores: torch.Tensor, # What a model returned, with its graph
) -> bool: # Whether the last step turned them into probabilities
    """Whether a model ends in a sigmoid, read from the graph of gradients.

    Probabilities where log-odds are expected train slowly and wrongly, without any error.
    """
    step = scores.grad_fn
    while step is not None:
        name = type(step).__name__.rstrip("0123456789").removesuffix("Backward")
        if name in ("Sigmoid", "Hardsigmoid", "Softmax"): return True
        if name not in _PASSING: return False
        step = next((before for before, _ in step.next_functions if before is not None), None)
    return False
