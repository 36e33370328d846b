"""Count where a model's parameters are and where its work is done. Hand-written; not part of a lesson.
Notebook 08 has the formulas that predict both.
"""
import pandas as pd
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .data import Batch

__all__ = ["count_parameters", "count_flops", "size_table"]


def count_parameters(
    model: nn.Module, # Any model
) -> dict[str, int]: # Learned numbers of each part, under the part's name in the model
    """Count the learned numbers of a model, part by part; what two parts share counts once."""
    parts = {name: 0 for name, _ in model.named_children()}
    for name, p in model.named_parameters():
        part = name.partition(".")[0]
        parts[part] = parts.get(part, 0) + p.numel()
    return parts


def count_flops(
    model: nn.Module, # Any model
    batch: Batch, # B rows to score
) -> dict[str, int]: # FLOPs of each part's matrix products in the forward pass; rest: outside all parts
    """Count the work of scoring some rows with PyTorch's own counter, which counts matrix products alone."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(): model(batch)
    root = f"{type(model).__name__}."
    work = {path.removeprefix(root): sum(operations.values())
            for path, operations in counter.get_flop_counts().items() if path.startswith(root)}

    def of(part): # A list of modules is never called itself: its members are
        inside = [path for path in work if f"{path}.".startswith(f"{part}.")]
        top = [path for path in inside if not any(path.startswith(f"{other}.") for other in inside)]
        return sum(work[path] for path in top)

    parts = {name: of(name) for name, _ in model.named_children()}
    rest = counter.get_total_flops() - sum(parts.values())
    return parts | ({"rest": rest} if rest else {})


def size_table(
    model: nn.Module, # Any model
    batch: Batch | None = None, # Rows to count the work of; None leaves that column out
) -> pd.DataFrame: # One line per part and the total: parameters, parameters_share; flops, flops_share
    """Count a model's parameters and, given a batch, its work, part by part."""
    columns = dict(parameters=count_parameters(model))
    if batch is not None: columns["flops"] = count_flops(model, batch)
    table = pd.DataFrame(columns).fillna(0).astype("int64")
    table.loc["total"] = table.sum()
    for name in columns: table[f"{name}_share"] = table[name]/max(table.loc["total", name], 1)
    return table.rename_axis("part")[[c for name in columns for c in (name, f"{name}_share")]]
