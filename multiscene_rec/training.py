"""What surrounds a training loop: checks of arguments, devices, several processes, the progress bar, tables
and plots. Hand-written; not part of a lesson."""
import contextlib
import math
import os
import re
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import nn
from tqdm.auto import tqdm

from .checks import ends_in_sigmoid, whole_number
from .core import pick_device
from .data import Batch
from .model import task_loss
from .preprocess import Task

__all__ = ["Run", "set_up", "in_order", "attended", "epoch_order", "epoch_batches", "precision_of",
           "mean_loss", "judge", "results_frame", "Bar", "inference", "check_rows", "check_makers",
           "check_spread", "log_odds", "device_of", "spec_of", "by_task", "weights_of", "plot_losses",
           "plot_map", "comparison_table", "comparison_rows"]


# A run

@dataclass
class Run:
    """A training run as callbacks see it; what they change, such as `optimizer` or `stop`, takes effect at
    once."""
    model: nn.Module # The model being trained
    train: object # The rows it learns from
    valid: Batch | None # The rows it is evaluated on
    optimizer: torch.optim.Optimizer # Takes the steps
    device: torch.device # Where model and rows live
    settings: dict # epochs, batch_size, lr, precision, seed
    callbacks: tuple # In the order in which they are called
    rank: int = 0 # Number of this process
    world: int = 1 # How many processes train together
    epoch: int = 0 # Number of the current epoch, from 1
    rows: int = 0 # Rows of this epoch so far, in this process
    results: list = field(default_factory=list) # One dict per finished epoch: its losses and metrics
    stop: bool = False # True ends the run after this epoch
    checkpoint: Path | None = None # Folder of the checkpoint, if there is one
    saved: int = 0 # Number of the epoch that the checkpoint holds, 0 for none
    best: int = 0 # Number of the epoch whose weights the model holds in the end, 0 for the last


def set_up(
    model, # As for fit
    train, # As for fit
    valid, # As for fit
    settings: dict, # epochs, batch_size, lr, precision, seed
    device: str, # As for pick_device
    compile: bool, # Whether to compile the model
    optimizer, # As for fit
    callbacks: tuple, # As in_order returns them
) -> tuple[Run, nn.Module]: # The run, and a module that gives the loss of a batch
    """Check everything that can be checked before the first step, and move it to its device."""
    _check_settings(settings)
    _check_model(model)
    _check_data("train", train, "")
    if valid is not None: _check_data("valid", valid, "; pass None to train without validation")
    rank, world, device = _processes(device)
    model.to(device)
    train, valid = (data.to(device) if hasattr(data, "to") else data for data in (train, valid))
    fused = device.type in ("cpu", "cuda")
    make = optimizer or (lambda parameters, lr: torch.optim.Adam(parameters, lr=lr, fused=fused))
    run = Run(model, train, valid, make(model.parameters(), lr=settings["lr"]), device, settings, callbacks,
              rank, world)
    _check_first_rows(run)
    loss_of = _Loss(model)
    if world > 1:
        idle = _some_are_idle(loss_of, run)
        loss_of = nn.parallel.DistributedDataParallel(loss_of, find_unused_parameters=idle)
    return run, torch.compile(loss_of) if compile else loss_of


class _Loss(nn.Module): # The loss as a module: what is compiled, and whose gradients the processes share
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, part):
        if hasattr(self.model, "loss"): return self.model.loss(part)
        return task_loss(self.model(part), part.label, _tasks_of(self.model))


def _processes(device): # (rank, world, device); under torchrun the processes find each other here
    if dist.is_available() and int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ:
        if torch.cuda.is_available() and device in ("auto", "cuda"):
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
            torch.cuda.set_device(device)
        elif device == "auto": device = "cpu"
        if not dist.is_initialized(): dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    together = dist.is_available() and dist.is_initialized()
    return *((dist.get_rank(), dist.get_world_size()) if together else (0, 1)), pick_device(device)


# Whether a parameter gets no gradient: DistributedDataParallel would wait for it forever
def _some_are_idle(loss_of, run):
    loss_of.eval() # running statistics and random numbers stay as they are
    loss_of(_on_device(next(iter(run.train.batches(256))), run)).backward()
    idle = any(p.grad is None for p in loss_of.parameters() if p.requires_grad)
    loss_of.zero_grad(set_to_none=True)
    return idle


def in_order(
    callbacks, # As for fit
    kind: type, # The class that each must belong to
) -> tuple: # Sorted by their order
    """Callbacks in the order in which they are called.

    Raises: `ValueError` for a single one, a class, or something else.
    """
    if isinstance(callbacks, kind):
        name = type(callbacks).__name__
        raise ValueError(f"callbacks is a single callback; write a tuple: callbacks=({name}(),)")
    for c in callbacks:
        if isinstance(c, kind): continue
        what = f"the class {c.__name__}; write {c.__name__}()" if isinstance(c, type) \
            else f"a {type(c).__name__}"
        raise ValueError(f"callbacks holds {what}; expected objects of subclasses of {kind.__name__}")
    return tuple(sorted(callbacks, key=lambda c: c.order))


@contextlib.contextmanager
def attended(
    run: Run, # Its callbacks' begin and end are called around the block
):
    """Call each callback's `begin`, and its `end` whatever happens in between.

    Raises: what the block raises; on Ctrl-C `KeyboardInterrupt` that says how to resume, `RuntimeError` where
    another process has ended.
    """
    try:
        with contextlib.ExitStack() as ends:
            ends.callback(run.model.eval)
            for c in run.callbacks:
                ends.callback(c.end, run)
                c.begin(run)
            yield
    except KeyboardInterrupt: raise KeyboardInterrupt(_how_to_resume(run)) from None
    except RuntimeError as e:
        if "Expected to have finished reduction" in str(e):
            raise RuntimeError(
                f"a part of {type(run.model).__name__} got no gradient in one batch of one process: under "
                "torchrun every parameter must take part in every batch; compute all heads and choose among "
                "their results") from e
        if run.world == 1 or not re.search("gloo|NCCL|onnection|peer", str(e)): raise
        raise RuntimeError("another process of this run has ended, so this one ends too; its "
                           "message says why") from e


def _how_to_resume(run):
    at = f"stopped in epoch {run.epoch}"
    if run.checkpoint is None:
        return f"{at}, and there is no checkpoint to resume from: pass callbacks=(..., Checkpoint(FOLDER))"
    if not run.saved:
        return (f"{at}, before anything was saved: the first checkpoint is written to {run.checkpoint} after "
                "epoch 1")
    return (f"{at}; {run.checkpoint} holds the state after epoch {run.saved}: call fit again with "
            "Checkpoint(FOLDER, resume=True)")


# An epoch

@contextlib.contextmanager
def epoch_order(
    run: Run, # In the epoch that is about to begin
):
    """Random numbers of one epoch: the block gets the seed of the rows' order, and dropout repeats after a
    resume too."""
    seed = run.settings["seed"]*10_007 + run.epoch
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(seed + run.rank)
        yield seed


def epoch_batches(
    run: Run, # Whose training rows are read
    seed: int, # Seed of their order
):
    """The batches of one epoch, shuffled, on the model's device; each process gets its share of the rows."""
    shard = run.rank, run.world
    for part in run.train.batches(run.settings["batch_size"], shuffle=True, seed=seed, shard=shard):
        yield _on_device(part, run)


def _on_device(part, run): # A Batch was moved as a whole before the first step
    return part if part.device == run.device else part.to(run.device)


def precision_of(
    run: Run, # Whose settings name the precision
): # A context manager
    """Autocast to bfloat16 where the run asks for it."""
    if run.settings["precision"] == "fp32": return contextlib.nullcontext()
    return torch.autocast(run.device.type, torch.bfloat16)


def mean_loss(
    run: Run, # After an epoch
    losses: list, # Loss of each batch times its rows, on the model's device
) -> float: # Nats per row
    """Mean loss over the rows of all processes."""
    total = torch.stack(losses).cpu().double().sum() if losses else torch.zeros((), dtype=torch.float64)
    both = torch.stack([total, torch.tensor(float(run.rows), dtype=torch.float64)])
    if run.world > 1:
        both = both.to(run.device)
        dist.all_reduce(both)
    return (both[0]/both[1]).item()


def judge(
    run: Run, # After an epoch
    evaluate, # As for fit
) -> dict: # valid_NAME: number; empty without validation rows
    """Evaluate in the first process and tell the others, so that all stop after the same epoch."""
    if run.valid is None: return {}
    metrics = [None]
    if run.rank == 0:
        metrics = [{f"valid_{name}": float(x) for name, x in evaluate(run.model, run.valid).items()}]
    if run.world > 1: dist.broadcast_object_list(metrics, device=run.device)
    return metrics[0]


def results_frame(
    run: Run, # After training
) -> pd.DataFrame: # One row per epoch
    """The results of a run as a table; validation columns are present even without validation rows."""
    frame = pd.DataFrame(run.results)
    for name in ("valid_loss", *(("valid_auc",) if len(_tasks_of(run.model)) == 1 else ())):
        if name not in frame: frame[name] = math.nan
    return frame


class Bar:
    """A progress bar per epoch where somebody is watching: on a terminal or in a notebook, in the first
    process."""
    def __init__(self,
        run: Run, # The run to watch
    ):
        self.bar, self.total = None, len(run.train)//run.world if hasattr(run.train, "__len__") else None
        self.watched = run.rank == 0 and (sys.stderr.isatty() or "ipykernel" in sys.modules)

    def show(self,
        run: Run, # Its rows so far are shown
    ):
        """Move the bar; the first call of an epoch opens it."""
        if not self.watched: return
        if self.bar is None:
            text = f"epoch {run.epoch}/{run.settings['epochs']}"
            self.bar = tqdm(total=self.total, desc=text, unit="rows", unit_scale=True, leave=False)
        self.bar.update(run.rows - self.bar.n)

    def close(self):
        """Remove the bar."""
        if self.bar is not None: self.bar.close()
        self.bar = None


# A model and what it returns

@contextlib.contextmanager
def inference(
    model: nn.Module, # Any module
):
    """Evaluation mode without gradients; afterwards the model is in the mode it was in before."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(): yield
    finally: model.train(training)


def log_odds(
    model: nn.Module, # Any module
    part: Batch, # (B,) rows
) -> torch.Tensor: # (B,) or (B, T)
    """What a model returns, checked: one number per row and task.

    Raises: `ValueError` for anything else.
    """
    logits, n = model(part), len(part)
    if not isinstance(logits, torch.Tensor):
        raise ValueError(f"the model returned a {type(logits).__name__}, expected log-odds in a tensor of "
                         "shape (B,) or (B, T)")
    if logits.ndim not in (1, 2) or len(logits) != n or logits.ndim == 2 and logits.shape[1] == 1:
        remedy = ": end its forward with .squeeze(1)" if logits.shape == (n, 1) else ""
        raise ValueError(f"the model returned shape {tuple(logits.shape)} for {n} rows, expected ({n},), "
                         f"or ({n}, T) for T tasks{remedy}")
    return logits


def device_of(
    model: nn.Module, # Any module
    batch, # Rows
) -> torch.device: # Where the model lives
    """The device of a model; a model without parameters works where the rows are."""
    return next((p.device for p in model.parameters()), getattr(batch, "device", torch.device("cpu")))


def _tasks_of(model): # A plain module has one
    return model.spec.tasks if hasattr(model, "spec") else (Task(),)


def spec_of(
    model: nn.Module, # Any module
): # Its spec
    """The spec of a model. Raises: `ValueError` for a model without one."""
    if not hasattr(model, "spec"):
        raise ValueError(f"{type(model).__name__} has no spec, which is needed here: subclass Recommender, "
                         "or set model.spec = prep.spec")
    return model.spec


def by_task(
    model: nn.Module, # Any module
    batch: Batch, # Rows with labels
    prob: torch.Tensor, # (B,) or (B, T) probabilities, as predict returns them
) -> list: # (Task, (B,) labels, (B,) probabilities) for each task
    """Labels and probabilities, task by task.

    Raises: `ValueError` where labels, probabilities and tasks differ in number.
    """
    label, prob, tasks = batch.label.cpu().numpy(), prob.numpy(), _tasks_of(model)
    if label.shape != prob.shape or len(tasks) != (1 if label.ndim == 1 else label.shape[1]):
        raise ValueError(f"the model returned shape {prob.shape} for labels of shape {label.shape} "
                         f"and tasks {', '.join(t.name for t in tasks)}: expected one column per task, and a "
                         "single axis for a single task")
    if label.ndim == 1: return [(tasks[0], label, prob)]
    return list(zip(tasks, label.T, prob.T))


def weights_of(
    model: nn.Module, # Any module
    part: Batch, # (B,) rows
) -> torch.Tensor: # (B, S)
    """The weights of the scenarios' histories that a model explains its scores with.

    Raises: `ValueError` for a model without such weights.
    """
    explanation = model.explain(part) if hasattr(model, "explain") else None
    if explanation is None or explanation.weights is None:
        raise ValueError(f"{type(model).__name__} does not explain its scores by weights of scenarios; a "
                         "fusion with weights does, such as attention, mean or own")
    return explanation.weights


# Arguments

def check_rows(
    data, # What should be a Batch
    name: str, # Name of the argument
) -> None:
    """Refuse data without batches. Raises: `ValueError` naming the argument."""
    if isinstance(data, pd.DataFrame):
        raise ValueError(f"{name} is a table; a model reads a Batch: pass prep.transform(frame, log)")
    if not hasattr(data, "batches"):
        kind = type(data).__name__
        raise ValueError(f"{name} is a {kind}; it needs batches(size, shuffle, seed, shard), as a Batch has")


def _check_data(name, data, remedy):
    check_rows(data, name)
    if hasattr(data, "__len__") and not len(data): raise ValueError(f"{name} has no rows{remedy}")
    if isinstance(data, Batch) and "label" not in data.rows:
        raise ValueError(f"{name} has no labels: transform a frame that holds the label's column")


def _check_settings(settings):
    for name in ("epochs", "batch_size"): whole_number(name, settings[name])
    if not 0 < settings["lr"] < math.inf:
        raise ValueError(f"lr must be above 0 and finite, got {settings['lr']!r}")
    if settings["precision"] not in ("fp32", "bf16"):
        raise ValueError(f"precision {settings['precision']!r} is unknown; choose fp32 or bf16")
    if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
        raise ValueError("fit needs gradients, but they are switched off: call it outside torch.no_grad() "
                         "and torch.inference_mode()")


def _check_model(model):
    name = getattr(model, "__name__", type(model).__name__)
    if isinstance(model, type): raise ValueError(f"model is the class {name}; make one first: {name}(spec)")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {name}, expected a Recommender or another torch module")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{name} has no parameter to learn")


def _check_first_rows(run): # A model that ends in a sigmoid learns, slowly and wrongly, without an error
    part = next(iter(run.train.batches(256)), None)
    if part is None: return
    training = run.model.training
    run.model.eval()
    logits = log_odds(run.model, part.to(run.device))
    run.model.train(training)
    if run.rank == 0 and ends_in_sigmoid(logits):
        warnings.warn(f"{type(run.model).__name__} returns probabilities: it must return log-odds, "
                      "without a sigmoid at the end", stacklevel=4)


def check_makers(
    models: dict, # As for compare
) -> None:
    """Refuse models where functions are expected. Raises: `ValueError` naming the first of them."""
    for name, make in models.items():
        if isinstance(make, nn.Module) or not callable(make):
            raise ValueError(f"models[{name!r}] is not a function of a seed: write lambda seed: "
                             "InterestModel(spec)")


def check_spread(
    frame: pd.DataFrame, # As for spread
    metric: str, # As for spread
) -> None:
    """Refuse a table without a spread. Raises: `ValueError` for a missing column or several tasks at once."""
    missing = [c for c in ("model", "seed", "scenario", metric) if c not in frame]
    if missing: raise ValueError(f"spread: the table has no column {missing[0]!r}")
    if "task" in frame and frame.task.nunique() > 1:
        raise ValueError("spread: the table holds several tasks; choose one, such as frame[frame.task == "
                         f"{frame.task.iloc[0]!r}]")


# Plots and tables

def plot_losses(
    frame: pd.DataFrame, # epoch, train_loss and valid_loss, nats per row
    best_epoch: int, # This epoch is marked
    ax=None, # A matplotlib Axes; a new one if None
): # The Axes
    """Draw both losses against the epoch."""
    import matplotlib.pyplot as plt
    ax = ax or plt.subplots(figsize=(5, 3))[1]
    ax.plot(frame.epoch, frame.train_loss, "o-", color="#0072B2", label="training rows")
    if frame.valid_loss.notna().any():
        ax.plot(frame.epoch, frame.valid_loss, "s--", color="#D55E00", label="validation rows")
    ax.axvline(best_epoch, ls=":", color="0.4", label="best epoch")
    ax.set(xlabel="epoch", ylabel="log loss (nats per row)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(fontsize=8)
    return ax


def plot_map(
    maps: dict, # Title of each panel: (S, S) frame, as attention_map returns it
): # The matplotlib Figure
    """Draw maps side by side, with each number written into its cell, so that colour is not needed to read
    them."""
    import matplotlib.pyplot as plt
    fig, axes = plt.subplots(1, len(maps), figsize=(3.4*len(maps), 3.2), squeeze=False, layout="constrained")
    for ax, (title, frame) in zip(axes[0], maps.items()):
        values = frame.to_numpy(dtype=float)
        top = max(np.nan_to_num(values).max(), 1e-9)
        ax.imshow(values, cmap="Blues", vmin=0, vmax=top)
        ax.set_title(title, parse_math=False) # names of scenarios are never formulas
        ax.set(xlabel="whose history", ylabel="target scenario",
               xticks=range(values.shape[1]), yticks=range(values.shape[0]))
        ax.set_xticklabels(frame.columns, rotation=40, ha="right", parse_math=False)
        ax.set_yticklabels(frame.index, parse_math=False)
        for (row, column), value in np.ndenumerate(values):
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8,
                    color="white" if value > .6*top else "black")
    return fig


def comparison_table(
    mean: pd.DataFrame, # (models, scenarios), as spread returns it
    sd: pd.DataFrame, # (models, scenarios), as spread returns it
    ceilings: dict, # Name of a line: frame with a row per scenario and a column per metric
    metric: str = "auc", # A column of these frames
) -> str: # Ready to print
    """Mean ± standard deviation of each model and scenario, then the lines that models are compared with."""
    cells = mean.map("{:.3f}".format) + " ± " + sd.map("{:.3f}".format)
    for name, line in ceilings.items():
        cells.loc[name] = line[metric].reindex(cells.columns).map("{:.3f}".format)
    return cells.to_string()


def comparison_rows(
    spreads: dict, # Name of a metric: (mean, standard deviation), as spread returns them
    seeds: int, # Number of seeds
    ceilings: dict, # Name of a line: frame with a row per scenario and a column per metric
) -> pd.DataFrame: # model, scenario, metric, mean, sd, seeds; the last two are missing for a ceiling
    """The numbers of `comparison_table` with all digits: one row per model, scenario and metric."""
    rows = []
    for metric, (mean, sd) in spreads.items():
        rows += [dict(model=m, scenario=s, metric=metric, mean=mean.loc[m, s], sd=sd.loc[m, s], seeds=seeds)
                 for m in mean.index for s in mean.columns]
        rows += [dict(model=name, scenario=s, metric=metric, mean=line.loc[s, metric])
                 for name, line in ceilings.items() for s in mean.columns]
    return pd.DataFrame(rows).astype({"seeds": "Int64"})
