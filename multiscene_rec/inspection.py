"""What can be said about any model: five checks before training, and a card. Hand-written; not part of a
lesson. Notebook 08 explains both.
"""
import math
from collections.abc import Sequence

import pandas as pd
import torch

import multiscene_rec

from .counting import size_table
from .data import Batch, with_parts
from .recommender import FORMAT, Recommender

__all__ = ["check_model", "model_card"]


# Five checks

def _without_history(batch): # The same rows, with no history in any scenario
    if "present_table" not in batch.tables: return batch
    return with_parts(batch, present_table=torch.zeros_like(batch.present_table))

def _with_noise(batch): # The same rows, with noise where a scenario is absent
    if "present_table" not in batch.tables: return batch
    noise = torch.randn(batch.history_table.shape, generator=torch.Generator().manual_seed(0))
    return with_parts(batch, history_table=torch.where(batch.present_table.unsqueeze(-1), batch.history_table,
                                                       10*noise.to(batch.device)))

def _without_gradient(model, batch): # Names of the parameters that these rows do not move
    with torch.enable_grad():
        loss = model.loss(batch) + model.loss(_without_history(batch))
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    return [name for (name, _), g in zip(named, grads, strict=True) if g is None or not g.any()]


def check_model(
    model: Recommender, # Fresh, before its first step
    batch: Batch, # One or more rows; every scenario among them, if each has a head of its own
) -> pd.DataFrame: # One line per check: found, limit, passed, and which parameters in the last
    """Check on one batch, before training, that a model is wired as it should be; no weight is changed.

    Raises: `ValueError` for a batch without rows.
    """
    if not len(batch): raise ValueError("the batch has no rows, so nothing can be checked on it")
    batch = batch.to(next(model.parameters()).device)
    order, weight = torch.arange(len(batch) - 1, -1, -1), sum(task.weight for task in model.spec.tasks)
    with torch.inference_mode():
        logits = model(batch)
        checks = {
            "first loss is log 2": (model.loss(batch) - math.log(2)*weight, .1),
            "nobody present gives numbers": ((~model(_without_history(batch)).isfinite()).sum(), 0),
            "rows permuted, logits permuted": ((model(batch[order]) - logits[order]).abs().max(), 1e-4),
            "absent content does not matter": ((model(_with_noise(batch)) - logits).abs().max(), 1e-4)}
    dead = _without_gradient(model, batch)
    checks["gradients reach every parameter"] = (len(dead), 0)
    table = pd.DataFrame([(float(x), limit, abs(float(x)) <= limit) for x, limit in checks.values()],
                         index=pd.Index(checks, name="check"), columns=["found", "limit", "passed"])
    return table.assign(which=["", "", "", "", ", ".join(dead)])


# The card

_USE = ("Ordering items for a known kind of user within one of the scenarios above, as one signal among "
        "others, offline or behind a test.")
_LIMITS = (
    "- It learned from what was shown. It cannot know how items that were never shown would do, and it "
    "repeats the choices of the system that showed them.",
    "- Ids that were not seen in training share one vector per field, unknown; histories shorter than those "
    "of training make scores less certain.",
    "- Scores are probabilities of a click at training time. Check calibration before using them as such, "
    "and again when traffic changes.",
    "- Do not use it for decisions about people: credit, work, housing, prices for one person.")

def _cell(x): # A value as text: four digits, commas between thousands
    if isinstance(x, float) and not float(x).is_integer(): return f"{x:.4g}"
    return f"{int(x):,}" if isinstance(x, (int, float)) else str(x).replace("|", "\\|")

def _markdown(frame): # A frame as a Markdown table; the index is the first column
    lines = [[frame.index.name or "", *map(str, frame.columns)], ["---", *["---:"]*len(frame.columns)]]
    for name, *row in frame.itertuples(name=None):
        lines.append([_cell(x.item() if hasattr(x, "item") else x) for x in (name, *row)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

def _sizes(features): # In words
    unit = dict(category="ids", sequence="events")
    return ", ".join(f.name if f.kind == "number" else f"{f.name} ({f.size:,} {unit.get(f.kind, 'numbers')})"
                     for f in features)

def _facts(model): # What is known of the data and of the architecture
    spec, params = model.spec, ", ".join(f"{k} {v}" for k, v in model.get_params().items())
    facts = [("model", f"{type(model).__name__}, {params or 'no arguments'}"),
             ("scenarios", f"{len(spec.scenarios)}: {', '.join(map(str, spec.scenarios))}"),
             ("predicts", ", ".join(t.name for t in spec.tasks))]
    for of in ("item", "user", "context"):
        if features := [f for f in spec.features if f.of == of]:
            facts.append((f"features of the {of}", _sizes(features)))
    return facts


def model_card(
    model: Recommender, # To describe
    metrics: pd.DataFrame | None = None, # What was measured, e.g. the frame of metrics.report
    seed: int | None = None, # The seed of its training; None: not stated
    title: str = "Interest model", # Headline
    batch: Batch | None = None, # One row, to count the work of scoring it; None leaves that out
    data: str = "not stated", # Where the data came from and which period they cover
    use: str = _USE, # Intended use
    rows: Sequence = (), # Lines about the rows: how many there were and how they were split
    made: Sequence = (), # Further lines on how the model was trained
) -> str: # Markdown
    """Describe a model on one page: what it is, data, size, measurements, seed, versions, intended use and
    limits."""
    size = size_table(model, batch)
    size = size[[c for c in ("parameters", "flops") if c in size]]
    counted = "Parameters." if batch is None else "Parameters, and FLOPs of the matrix products for one row."
    facts = "\n".join(f"- {name}: {text}" for name, text in _facts(model))
    origin = ["## Rows", "\n".join(f"- {line}" for line in rows)] if len(rows) else []
    versions = (f"multiscene_rec {multiscene_rec.__version__}, torch {torch.__version__.split('+')[0]}, file "
                f"format {FORMAT}")
    again = (f"seed: {'not stated' if seed is None else seed}", f"versions: {versions}", *made)
    return "\n\n".join([
        f"# {title}",
        "Predicts how likely a user is to click an item in a scenario, or to do what else is named below.",
        "## Data and architecture", f"- data: {data}\n{facts}", *origin, "## Size", counted, _markdown(size),
        "## Measurements", "None were given." if metrics is None else _markdown(metrics),
        "## How to reproduce it", "\n".join(f"- {line}" for line in again),
        "## Intended use", use, "## Limits", "\n".join(_LIMITS)]) + "\n"
