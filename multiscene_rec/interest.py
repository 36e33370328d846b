"""What the InterestModel checks: its arguments, its batches, its loss; and the sizes that follow.
Hand-written; not part of a lesson. Notebook 08 defines the model, and counts it with these sizes.
"""
from typing import NamedTuple

import torch

from .checks import whole_number
from .core import check_shape
from .data import Batch
from .fusion import fusion_names
from .preprocess import Spec
from .recommender import known_arguments, model_class

__all__ = ["FORMULAS", "Sizes", "interest_sizes", "formula_sizes", "check_batch", "check_logits"]

# The fusions that the formulas of notebook 08 cover
FORMULAS = ("none", "own", "mean", "concat", "attention", "attention+own")


class Sizes(NamedTuple):
    """What follows from the data and from the arguments of an `InterestModel`."""
    fusion: str # none, or one of fusion.fusion_names()
    heads: str # shared or per_scenario
    e: int # Width of an embedding
    widths: tuple # Layers of the extractor
    hidden: tuple # Hidden layers of a head
    N: int # Rows of the embedding table
    S: int # Scenarios
    H: int # Width of a history
    T: int # Tasks
    d: int # Width of the fused vector
    d_query: int # Width of the query
    d_in: int # Width of what a head reads
    n_heads: int # Heads, of all tasks and scenarios together
    item_columns: tuple # Which fields describe the item


def _tuple_of_sizes(name, sizes):
    if isinstance(sizes, int):
        raise ValueError(f"{name} must be a tuple of sizes, such as ({sizes},), got {sizes!r}")
    for n in sizes: whole_number(f"{name}: every size", n)
    return tuple(sizes)


def _check_spec(spec, reads_histories): # What the model reads must be present
    if not spec.fields:
        raise ValueError("the spec has no categories: an InterestModel needs at least the item's id; "
                         "add Categories() to the preprocessor's parts")
    if reads_histories and not spec.item_fields:
        raise ValueError("the spec has no field of the item, so there is no query: add one, "
                         "or use fusion='none'")
    if reads_histories and not spec.history:
        raise ValueError("the spec has no history to fuse: add Histories() to the preprocessor's parts, "
                         "or use fusion='none'")


def interest_sizes(
    spec: Spec, # What the data holds
    fusion: str, # none, or one of fusion.fusion_names()
    heads: str, # shared or per_scenario
    d_embed: int, # Width of each field's embedding
    widths: tuple, # Layers of the extractor; the last is d
    hidden: tuple, # ReLU layers of a head
) -> Sizes: # Checked
    """Check the arguments of an `InterestModel` and work out its sizes.

    Raises: `ValueError` naming the argument that is wrong, or what the spec lacks.
    """
    if heads not in ("shared", "per_scenario"):
        raise ValueError(f"heads must be 'shared' or 'per_scenario', got {heads!r}")
    widths, hidden = _tuple_of_sizes("widths", widths), _tuple_of_sizes("hidden", hidden)
    e, reads_histories = whole_number("d_embed", d_embed), fusion != "none"
    if reads_histories and fusion not in fusion_names():
        raise ValueError(f"fusion {fusion!r} is unknown; choose from none, {', '.join(fusion_names())}; "
                         "one of your own is known once its class is defined")
    if not widths:
        raise ValueError("widths is empty: the extractor needs at least one layer; the last width is d")
    _check_spec(spec, reads_histories)
    position = {field: i for i, field in enumerate(spec.fields)}
    F, D, S, T, d = len(spec.fields), len(spec.dense), len(spec.scenarios), len(spec.tasks), widths[-1]
    return Sizes(fusion, heads, e, widths, hidden, N=sum(spec.fields.values()), S=S, H=spec.history, T=T, d=d,
                 d_query=len(spec.item_fields)*e, d_in=(F + 1)*e + D + 2*d*reads_histories,
                 n_heads=T*S if heads == "per_scenario" else T,
                 item_columns=tuple(position[field] for field in spec.item_fields))


def formula_sizes(
    spec: Spec, # What the data holds
    options: dict, # Arguments of InterestModel; those left out have its defaults
) -> Sizes: # Checked
    """The sizes that the formulas need, without building a model.

    Raises: `ValueError` as `interest_sizes` does, for an unknown argument, or for a fusion without formulas.
    """
    options = known_arguments(model_class("interest"), options) | options
    if options["fusion"] in fusion_names() and options["fusion"] not in FORMULAS:
        raise ValueError(f"the formulas cover the fusions {', '.join(FORMULAS)}, not {options['fusion']!r}: "
                         "build the model, then call count_parameters(model) and count_flops(model, batch)")
    return interest_sizes(spec, **options)


def check_batch(
    batch: Batch, # B rows
    spec: Spec, # Of the model that reads them
) -> None:
    """Check that a batch has every part a model reads, and that the sizes agree with its spec.

    Raises: `ValueError` naming the part that is missing, or the axis that does not fit.
    """
    sizes = dict(F=len(spec.fields), D=len(spec.dense), S=len(spec.scenarios), H=spec.history)
    parts = dict(fields="B F", dense="B D", scenario="B")
    if spec.history: parts |= dict(history_table="R S H", present_table="R S", history_row="B")
    for name, axes in parts.items():
        try: check_shape(getattr(batch, name), axes, **{a: sizes[a] for a in axes.split() if a in sizes})
        except (ValueError, AttributeError) as e:
            raise ValueError(f"the batch does not fit the model's spec: Batch.{name}: {e}; "
                             "use the preprocessor that the model was trained with") from None


def check_logits(
    logits: torch.Tensor, # What forward returned
    label: torch.Tensor, # (B,) or (B, T): the labels
    tasks: tuple, # T tasks
) -> None:
    """Find the mistakes that broadcasting would hide.

    Raises: `ValueError` saying what forward must return, or for a task that is not binary.
    """
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"the model returned {type(logits).__name__}, expected log-odds of shape (B,) or "
                         "(B, T): return only these, and leave explanations to explain()")
    if odd := [task for task in tasks if task.kind != "binary"]:
        raise ValueError(f"task {odd[0].name!r} is of kind {odd[0].kind!r}: "
                         "a model for such a task must define its own loss")
    one = logits.ndim == 1 and len(tasks) == 1
    several = logits.ndim == 2 and logits.shape[1] == len(tasks) > 1
    if (one or several) and logits.shape == label.shape: return
    if logits.ndim == 2 and logits.shape[1] == 1:
        raise ValueError(f"the model returned shape {tuple(logits.shape)}, expected ({len(logits)},): "
                         "end its forward with .squeeze(1)")
    raise ValueError(f"the model returned shape {tuple(logits.shape)} for labels of shape "
                     f"{tuple(label.shape)} and tasks {', '.join(t.name for t in tasks)}: "
                     "expected one column per task, and a single axis for a single task")
