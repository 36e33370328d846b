"""Checks of arguments that several lessons share. Written by hand; it teaches nothing."""
import contextlib
import inspect

import numpy as np
import torch
from safetensors import SafetensorError

__all__ = ["whole_number", "float_array", "fitted", "get_params", "damage_named", "ends_in_sigmoid"]


def whole_number(
    name: str, # Of the argument, for the error message
    value, # What was given
    low: int = 1, # The smallest value allowed
) -> int: # The same value
    """Refuse what is not a whole number of at least `low`; True and 3.0 are not."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < low:
        raise ValueError(f"{name} must be a whole number of {low} or more, got {value!r}")
    return int(value)


def float_array(
    x, # An array, a tensor or a list
) -> np.ndarray: # float64
    """Numbers as a float64 array, wherever they live."""
    return x.detach().cpu().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x,
        dtype=np.float64)


def fitted(
    learned, # Something that is None before fit
    what: str, # Name of the class
) -> None:
    """Refuse to work before fit."""
    if learned is None: raise ValueError(f"{what} is not fitted: call fit on the training rows first")


def get_params(
    thing, # An object whose class keeps every keyword argument of __init__ under its own name
    skip: tuple = (), # Arguments to leave out
) -> dict: # Name: value
    """The arguments that an object was made with, by scikit-learn's rule.

    Raises: `TypeError` naming the argument that was not kept, or not as it was given, or the class whose
    arguments have no names.
    """
    kind, found = type(thing), {}
    for name, p in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", *skip): continue
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise TypeError(
                f"{kind.__name__}.__init__ takes *{name}: name every argument, so that a saved one can be "
                "built again")
        value = getattr(thing, name, None)
        if isinstance(value, (torch.nn.Module, torch.Tensor)):
            raise TypeError(
                f"{kind.__name__} keeps a {type(value).__name__} as self.{name}, where its argument belongs: "
                            f"write self.{name} = {name} in __init__, and give what is made from it another "
                            "name")
        if name not in vars(thing) and not isinstance(getattr(kind, name, None), property):
            raise TypeError(
                f"{kind.__name__}.__init__ takes {name!r} and does not keep it: write self.{name} = {name} "
                "in it")
        found[name] = value
    return found


@contextlib.contextmanager
def damage_named(
    path, # The file that is being read
    writer: str, # Who writes such files, such as Preprocessor.save
):
    """Whatever a wrong description of something stored runs into becomes one kind of error, which names the
    file."""
    try: yield
    except ImportError: raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError,
            SafetensorError) as e:
        why = str(e)[:200] if isinstance(e, ValueError) else f"{type(e).__name__}: {str(e)[:100]}"
        raise ValueError(
            f"{path} is damaged, or is not what {writer} wrote ({why}): copy it again, or make it anew") from e


_PASSING = ("View", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Index", "Gather", "Expand",
            "Clone", "ToCopy", "Transpose", "T", "Permute", "Cat", "Stack",
            "Clamp", "ClampMin", "ClampMax")

def ends_in_sigmoid(
    scores: torch.Tensor, # What a model returned, with its graph
) -> bool: # Whether the last thing that was done to them makes probabilities
    """Probabilities where log-odds are expected train slowly and wrongly, without an error; the graph of
    gradients tells."""
    step = scores.grad_fn
    while step is not None:
        name = type(step).__name__.rstrip("0123456789").removesuffix("Backward")
        if name in ("Sigmoid", "Hardsigmoid", "Softmax"): return True
        if name not in _PASSING: return False
        step = next((before for before, _ in step.next_functions if before is not None), None)
    return False
