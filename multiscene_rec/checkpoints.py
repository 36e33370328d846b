"""The files of a training checkpoint: what is in them, which run they belong to, and how it is restored.
Hand-written; not part of a lesson.

A checkpoint is one record, `checkpoint.json` beside `checkpoint.safetensors`; see `storage`.
"""
import contextlib
import hashlib
import math
import re
from dataclasses import asdict
from pathlib import Path

import torch

from .checks import damage_named
from .data import Batch
from .model import Recommender
from .storage import read_record, sole_writer, write_record, write_whole

__all__ = ["FORMAT", "checkpoint_folder", "reserved", "describe_run", "save_run", "restore_run", "check_room"]

FORMAT = 4


# The folder

def checkpoint_folder(
    folder: str | Path, # As for Checkpoint
) -> Path: # The same
    """Refuse the name of a file. Raises: `ValueError` naming it."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise ValueError(f"checkpoint {str(folder)!r} is a file; name a folder")
    return Path(folder)


@contextlib.contextmanager
def reserved(
    folder: Path, # Created if it does not exist
    run, # The run that writes there; only its first process does
    resume: bool, # Whether there must be a checkpoint
):
    """Lock a folder for this run while a `with` block runs.

    Raises: `FileNotFoundError` if there is no checkpoint to resume from, `BlockingIOError` if another run is
    writing, `OSError` if the folder cannot be created or written to.
    """
    path = folder/"checkpoint.json"
    if resume and not path.is_file():
        raise FileNotFoundError(f"there is no {path} to resume from: run without resume first")
    with contextlib.ExitStack() as lock:
        if run.rank == 0:
            try: lock.enter_context(sole_writer(folder))
            except BlockingIOError: raise
            except OSError as e:
                text = (f"the checkpoint's folder cannot be created or written to: {e.strerror}; name "
                        "another folder")
                raise OSError(e.errno, text, str(folder)) from e
        yield


def check_room(
    folder: Path, # Where the checkpoint goes
    run, # Whose checkpoint it is
) -> None:
    """Before the first epoch, write as many bytes as a checkpoint will need, so that a full disk is noticed
    in time.

    Raises: `OSError` naming the folder.
    """
    if run.rank != 0 or run.epoch >= run.settings["epochs"] or run.stop: return
    # the weights, the best weights, Adam's two means, and the head
    size, trial = 4*sum(v.nbytes for v in run.model.state_dict().values()) + 2**16, folder/"trial.0.part"
    try: write_whole(trial, bytes(size))
    except OSError as e:
        text = (f"training did not start, because its checkpoint of {size/1e6:.1f} MB cannot be written: "
                f"{e.strerror}")
        raise OSError(e.errno, text, str(folder)) from e
    finally:
        with contextlib.suppress(OSError): trial.unlink(missing_ok=True)


# Which run a checkpoint belongs to

def describe_run(
    run, # A run that is about to begin
) -> dict: # Plain data
    """Everything that must be the same when a run is resumed: settings, model, optimizer, callbacks, and the
    rows down to the last bit."""
    kinds = dict(batch_size=int, lr=float, seed=int, precision=str)
    about = {name: kind(run.settings[name]) for name, kind in kinds.items()} | dict(processes=run.world)
    about |= dict(callbacks=", ".join(type(c).__name__ for c in _altering(run)) or "none")
    about |= _describe_model(run.model) | dict(optimizer=type(run.optimizer).__name__)
    for name, data in (("train", run.train), ("valid", run.valid)):
        about |= {f"rows of {name}": len(data) if hasattr(data, "__len__") else None,
                  f"content of {name}": _digest(data)}
    return about


def _altering(run): return [c for c in run.callbacks if c.alters]


def _describe_model(model): # Which one it is, and its arguments
    if not isinstance(model, Recommender): return dict(model=type(model).__name__)
    spec, arguments = asdict(model.spec), re.sub(r" at 0x\w+", "", str(model.get_params()))
    about = dict(model=type(model).name, arguments=arguments)
    about |= {k: str(v) for k in ("scenarios", "tasks") if (v := spec.pop(k))}
    return about | {"rest of spec": hashlib.sha256(str(spec).encode()).hexdigest()[:16]}


def _digest(data): # Of everything that a model could learn from: one changed number changes the digest
    if not isinstance(data, Batch): return None
    digest = hashlib.sha256()
    for name, x in sorted((data.rows | data.tables).items()):
        digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


# Writing

def save_run(
    folder: Path, # Holds the checkpoint
    run, # After an epoch
    about: dict, # As describe_run returned it
) -> None:
    """Write the whole state of a run as one record; only the first process does.

    Raises: `OSError` naming the file if the disk is full.
    """
    if run.rank != 0: return
    tensors, state = {f"model.{k}": v for k, v in run.model.state_dict().items()}, run.optimizer.state_dict()
    optimizer = dict(kind=type(run.optimizer).__name__, state={}, groups=[])
    for i, part in state["state"].items():
        optimizer["state"][str(i)] = _plain_part(part, f"optimizer.state.{i}", tensors)
    for i, group in enumerate(state["param_groups"]):
        optimizer["groups"].append(_plain_part(group, f"optimizer.groups.{i}", tensors))
    callbacks = []
    for k, c in enumerate(_altering(run)):
        plain, own = c.state()
        callbacks.append(plain)
        tensors |= {f"callbacks.{k}.{name}": v for name, v in own.items()}
    whole = dict(format=FORMAT, run=about, results=_without_nan(run.results), optimizer=optimizer,
                 callbacks=callbacks)
    write_record(folder, "checkpoint", whole, tensors)


# Tensors go into their file, all else is plain data; tuples become lists
def _plain_part(part, prefix, tensors):
    tensors |= {f"{prefix}.{k}": v for k, v in part.items() if isinstance(v, torch.Tensor)}
    return {k: v for k, v in part.items() if not isinstance(v, torch.Tensor)}


def _without_nan(results): # JSON has neither nan nor infinity
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
            for row in results]


# Reading

def restore_run(
    folder: Path, # Holds the checkpoint
    run, # A run that is about to begin
    about: dict, # As describe_run returned it
) -> int: # Number of epochs that were finished
    """Put a run back into its state after the last complete epoch.

    Raises: `ValueError` for a checkpoint that is damaged or belongs to another run or model.
    """
    saved, tensors = read_record(folder, "checkpoint", "Checkpoint", FORMAT)
    path = folder/"checkpoint.json"
    with damage_named(path, "Checkpoint"):
        before, results, callbacks = dict(saved["run"]), list(saved["results"]), list(saved["callbacks"])
    _check_same(path, before, about, len(results), run)
    part = lambda name: {k.removeprefix(name): v.to(run.device) for k, v in tensors.items()
                         if k.startswith(name)}
    _check_fits(path, part("model."), run.model)
    with damage_named(path, "Checkpoint"):
        run.model.load_state_dict(part("model."))
        run.results = [{k: math.nan if v is None else v for k, v in row.items()} for row in results]
        run.epoch = len(results)
        for k, c in enumerate(_altering(run)): c.restore(run, callbacks[k], part(f"callbacks.{k}."))
        kind = saved["optimizer"]["kind"]
    if kind != type(run.optimizer).__name__:
        ours = type(run.optimizer).__name__
        raise ValueError(f"{path} holds the state of optimizer {kind}, but this run has {ours}: a callback "
                         "that replaces the optimizer must do so in restore too")
    with damage_named(path, "Checkpoint"): _restore_optimizer(run.optimizer, saved["optimizer"], tensors)
    return run.epoch


def _check_same(path, before, now, done, run): # The same run, and no further than asked for
    if differ := [f"{k} was {before.get(k)!r}, now {now[k]!r}" for k in now if before.get(k) != now[k]]:
        remedy = "name another folder, or train again without resume"
        raise ValueError(f"{path} belongs to another run: {', '.join(differ)}; {remedy}")
    if done > run.settings["epochs"]:
        remedy = f"give epochs={done} or more, or train again without resume"
        raise ValueError(f"{path} holds {done} epochs, more than epochs={run.settings['epochs']}: {remedy}")


def _layout(tensors): # Type and shape of each
    return {k: f"{v.dtype} {tuple(v.shape)}".removeprefix("torch.") for k, v in tensors.items()}


def _check_fits(path, tensors, model): # Every weight is present, with the right shape
    stored, wanted = _layout(tensors), _layout(model.state_dict())
    odd = [f"{k} is {stored.get(k, 'missing')}, expected {wanted.get(k, 'nothing')}"
           for k in sorted(stored | wanted) if stored.get(k) != wanted.get(k)]
    if odd: raise ValueError(f"{path} does not fit this model: {'; '.join(odd[:3])}")


def _restore_optimizer(optimizer, about, tensors):
    now = optimizer.state_dict()
    def whole(plain, name):
        return plain | {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}
    for i, group in enumerate(now["param_groups"]):
        stored = whole(about["groups"][i], f"optimizer.groups.{i}.")
        group |= {k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in stored.items()}
    now["state"] = {int(i): whole(plain, f"optimizer.state.{i}.") for i, plain in about["state"].items()}
    optimizer.load_state_dict(now) # moves each tensor to its weight
