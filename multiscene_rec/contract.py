"""The contract that every model must keep, as a test; and the export of models. Hand-written; not part of a
lesson."""
import copy
import inspect
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from .batch import Batch, with_parts
from .checks import ends_in_sigmoid
from .core import require, set_seed
from .preprocess import Spec
from .recommender import Recommender, model_class, user_modules
from .storage import write_record
from .train import Checkpoint, FiniteCheck, KeepBest, fit

__all__ = ["check_recommender", "export_program", "export_onnx"]

CHECKS = {} # Name: function of a subject, in the order in which they run


def _check(f): # Registered under its own name, written as words
    CHECKS[f.__name__.strip("_").replace("_", " ")] = f
    return f


class _Subject: # The model that is checked, with its data
    def __init__(self, kind, spec, batch, params):
        self.kind, self.spec, self.batch, self.params = kind, spec, batch, params
        self.device = batch.device

    def fresh(self, seed=0):
        set_seed(seed)
        return self.kind(self.spec, **self.params).to(self.device)


def check_recommender(
    kind: type, # A subclass of Recommender
    spec: Spec, # From the preprocessor that made the batch
    batch: Batch, # 64 rows or more, with labels
    skip: tuple = (), # Names of checks to leave out, such as "learns rows by heart"
    **params, # Arguments of the model
) -> list: # Names of the checks that were made
    """Put a model through the contract of the course, as scikit-learn's `check_estimator` does.

    It checks shapes; finite scores without any history; that scores depend neither on the order of the rows
    nor, in evaluation, on the rest of the batch; that 32 rows can be learned by heart; that the model is the
    same when loaded in a fresh process, after resuming, and on a GPU, if there is one; and `torch.export`.

    Raises: `AssertionError` that says which promise is broken and what to look at.
    """
    if not (isinstance(kind, type) and issubclass(kind, Recommender)):
        raise AssertionError(f"{kind!r} is not a subclass of Recommender")
    if len(batch) < 64: raise AssertionError(f"check_recommender needs 64 rows or more, got {len(batch)}")
    if unknown := [name for name in skip if name not in CHECKS]:
        raise ValueError(f"there is no check {unknown[0]!r}; the checks are {', '.join(CHECKS)}")
    subject, made = _Subject(kind, spec, batch, params), []
    for name, check in CHECKS.items():
        if name in skip: continue
        try: result = check(subject)
        except AssertionError as e: raise AssertionError(f"{kind.__name__}: {name}: {e}") from e
        except Exception as e:
            raise AssertionError(f"{kind.__name__}: {name}: {type(e).__name__}: {e}") from e
        if result is not False: made.append(name) # False: there is nothing to check
    return made


def _assert(ok, text):
    if not ok: raise AssertionError(text)

def _scores(model, batch):
    model.eval()
    with torch.no_grad(): return model(batch)

def _close(a, b, atol=1e-5):
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-4, atol=atol)

def _shape(spec, n): return (n,) if len(spec.tasks) == 1 else (n, len(spec.tasks))


@_check
def _keeps_its_arguments(s):
    model = s.fresh()
    again = s.kind(s.spec, **model.get_params())
    _assert(again.get_params() == model.get_params(),
            "a model built from get_params() has different arguments")
    _assert(model.spec == s.spec, "it changed its spec")

@_check
def _is_known_by_its_name(s):
    _assert(model_class(s.kind.name) is s.kind,
            f"the name {s.kind.name!r} belongs to another class; define the class once, at the top of a "
            "module")

@_check
def _returns_log_odds_of_the_right_shape(s):
    model = s.fresh()
    logits, expected = _scores(model, s.batch), _shape(s.spec, len(s.batch))
    _assert(isinstance(logits, torch.Tensor) and logits.shape == expected,
            f"forward gave {tuple(getattr(logits, 'shape', ()))}, expected {expected}")
    _assert(logits.is_floating_point() and logits.isfinite().all(),
            "forward gave numbers that are not finite")
    _assert(not ends_in_sigmoid(model(s.batch)),
            "it returns probabilities: return log-odds, without a sigmoid at the end")
    one = _scores(model, s.batch[:1])
    _assert(one.shape == _shape(s.spec, 1),
            f"for one row forward gave {tuple(one.shape)}: did it squeeze() without an axis?")

@_check
def _gives_a_finite_loss_with_gradients(s):
    model = s.fresh().train()
    loss = model.loss(s.batch)
    _assert(loss.ndim == 0 and loss.isfinite(), f"loss gave {loss}, expected one finite number")
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
    _assert(grads and all(g.isfinite().all() for g in grads), "a gradient is not finite, or there is none")
    _assert(any(g.any() for g in grads), "all gradients are zero: nothing can be learned")

@_check
def _is_finite_without_any_history(s):
    empty, model = without_history(s.batch), s.fresh()
    _assert(_scores(model, empty).isfinite().all(), "rows of newcomers get scores that are not finite")
    model.train()
    model.loss(empty).backward()
    _assert(all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None),
            "rows of newcomers give gradients that are not finite")

def without_history(batch):
    "The same rows, as if nobody had a history."
    parts = {}
    if "present_table" in batch.tables: parts["present_table"] = torch.zeros_like(batch.present_table)
    if "seq_stop" in batch.rows: parts["seq_stop"] = batch.seq_start.clone()
    return with_parts(batch, **parts) if parts else batch

@_check
def _scores_rows_in_any_order_alike(s):
    model, order = s.fresh(), torch.arange(len(s.batch) - 1, -1, -1)
    _assert(_close(_scores(model, s.batch[order]), _scores(model, s.batch)[order]),
            "the scores depend on the order of the rows")

@_check
def _scores_a_row_alike_in_any_company(s):
    model = s.fresh()
    whole, few = _scores(model, s.batch), torch.arange(0, len(s.batch), max(len(s.batch)//16, 1))
    alone = torch.cat([_scores(model, s.batch[int(i)]) for i in few])
    _assert(_close(alone, whole[few]),
            "in evaluation a row's score depends on the other rows of the batch: does it use statistics of "
            "the batch, or one row's scenario for all?")

@_check
def _does_not_read_the_answer(s):
    model, batch = s.fresh(), s.batch
    flipped = with_parts(batch, label=1 - batch.label)
    _assert(_close(_scores(model, flipped), _scores(model, batch)),
            "its scores change with the rows' own labels")
    if "seq_stop" not in batch.rows: return
    position = torch.arange(len(batch.event_label), device=s.device)
    for i in range(0, len(batch), max(len(batch)//16, 1)):
        row = batch[i]
        other = (position < row.seq_start) | (position >= row.seq_stop)
        label = torch.where(other.view(-1, *[1]*(batch.event_label.ndim - 1)), 1 - batch.event_label,
                            batch.event_label)
        hidden = with_parts(row, event_label=label, event_item=torch.where(other, 0, batch.event_item))
        _assert(_close(_scores(model, hidden), _scores(model, row)),
                "its scores change with events that are not in the row's past: read seq_start to seq_stop, "
                "the latter excluded")

@_check
def _explains_what_it_scores(s):
    model = s.fresh().eval()
    with torch.no_grad(): explanation = model.explain(s.batch)
    if explanation is None: return False
    _assert(_close(explanation.logits, _scores(model, s.batch)),
            "explain gives different log-odds from forward")
    shape = tuple(explanation.weights.shape)
    _assert(shape == (len(s.batch), len(s.spec.scenarios)),
            f"the weights have shape {shape}, expected one per row and scenario")

@_check
def _tells_items_apart_for_diverse_lists(s):
    model = s.fresh().eval()
    with torch.no_grad(): vectors = model.item_vectors(s.batch)
    _assert(vectors.ndim == 2 and len(vectors) == len(s.batch) and vectors.isfinite().all(),
            "item_vectors must give one finite vector per row")

@_check
def _learns_rows_by_heart(s):
    rows, model = different(s.batch, 32), s.fresh()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = fit(model, rows, epochs=300, batch_size=32, lr=1e-2, device=str(s.device),
                  callbacks=(FiniteCheck(), _Until(.05*sum(task.weight for task in s.spec.tasks))))
    loss, weight = log.frame.train_loss.min(), sum(task.weight for task in s.spec.tasks)
    _assert(loss < .15*max(weight, 1e-9),
            f"after {len(log.frame)} passes over 32 rows the loss is {loss:.3f}: some part is not connected")

def different(batch, n):
    "At most n rows whose inputs all differ."
    seen, keep = set(), []
    for i in range(len(batch)):
        row = tuple(str(x[i].flatten().tolist()) for name, x in batch.rows.items()
                    if name not in ("label", "history_row", "seq_start", "seq_stop", "seq_time"))
        if row not in seen:
            seen.add(row)
            keep.append(i)
        if len(keep) == n: break
    return batch[torch.tensor(keep)]

class _Until(KeepBest): # Stop as soon as the loss is small
    def __init__(self, goal):
        super().__init__(watch="train_loss")
        self.goal = goal

    def after_epoch(self, run):
        super().after_epoch(run)
        run.stop = run.results[-1]["train_loss"] < self.goal

@_check
def _is_the_same_when_loaded_in_a_fresh_process(s):
    try: file = inspect.getsourcefile(s.kind) if s.kind.__module__ != "__main__" else None
    except (TypeError, OSError): file = None
    # a class of a notebook or of a function cannot be imported
    if file is None or "<locals>" in s.kind.__qualname__: return False
    model = s.fresh().cpu()
    batch = s.batch.to("cpu")
    expected = _scores(model, batch)
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        write_record(folder, "batch", dict(format=1, rows=list(batch.rows), tables=list(batch.tables)),
                     batch.rows | batch.tables)
        write_record(folder, "expected", dict(format=1), {"scores": expected})
        paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        command = [sys.executable, "-c", _FRESH, folder, s.kind.__module__, file, *user_modules(model)]
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True,
                              timeout=300)
    _assert(done.returncode == 0,
            f"a fresh process could not load it: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")

_FRESH = """
import importlib, importlib.util, sys
import torch
torch.set_num_threads(1)
folder, module, file, *needs = sys.argv[1:]
for name in needs: importlib.import_module(name)
try: importlib.import_module(module)
except ImportError:
    spec = importlib.util.spec_from_file_location(module, file)
    sys.modules[module] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[module])
from multiscene_rec.data import Batch
from multiscene_rec.model import Recommender
from multiscene_rec.storage import read_record
about, parts = read_record(folder, "batch", "check_recommender", 1)
batch = Batch({k: parts[k] for k in about["rows"]}, {k: parts[k] for k in about["tables"]})
expected = read_record(folder, "expected", "check_recommender", 1)[1]["scores"]
with torch.no_grad(): scores = Recommender.load(folder)(batch)
if not torch.allclose(scores, expected, rtol=1e-5, atol=1e-6):
    sys.exit(f"its scores differ by {(scores - expected).abs().max():.2g}")
"""

@_check
def _resumes_to_the_bit(s):
    if s.device.type != "cpu": return False
    rows, go = s.batch[:64], dict(batch_size=16, lr=1e-2, seed=5, device="cpu")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, part, resumed = s.fresh(), s.fresh(), s.fresh(seed=1)
        fit(whole, rows, rows, epochs=3, callbacks=(KeepBest(),), **go)
        fit(part, rows, rows, epochs=2, callbacks=(KeepBest(), Checkpoint(folder)), **go)
        fit(resumed, rows, rows, epochs=3, callbacks=(KeepBest(), Checkpoint(folder, resume=True)), **go)
    same = all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    _assert(same,
            "a run that was stopped and resumed ends with different weights: does it keep numbers outside "
            "state_dict, or draw from another generator?")

@_check
def _gives_the_same_on_a_gpu(s):
    if not torch.cuda.is_available(): return False
    model, batch = s.fresh().cpu(), s.batch.to("cpu")
    expected = _scores(model, batch)
    moved = copy.deepcopy(model).cuda()
    _assert(_close(_scores(moved, batch.to("cuda")).cpu(), expected, atol=1e-4),
            "it gives different scores on the GPU")

@_check
def _goes_through_torch_export(s):
    model, batch = s.fresh().cpu(), unlabelled(s.batch.to("cpu"))
    program = export_program(model, batch)
    for part in (batch, batch[:7]):
        with torch.no_grad(): scores = program.module()(part)
        _assert(_close(scores, _scores(model, part)), "the exported program gives different scores")


def unlabelled(
    batch: Batch, # Rows
) -> Batch: # The same without labels
    """What a model gets in use, when the answers are not known yet."""
    return Batch({name: x for name, x in batch.rows.items() if name != "label"}, batch.tables)

def export_program(
    model: nn.Module, # On the CPU
    batch: Batch, # A few rows without labels; the graph takes any number of rows and table rows
) -> torch.export.ExportedProgram: # A program of one argument, the batch
    """The model as a graph without Python, by `torch.export`; `program.module()(batch)` runs it."""
    shapes = torch.export.ShapesCollection()
    for x in (*batch.rows.values(), *batch.tables.values()): shapes[x] = {0: torch.export.Dim.DYNAMIC}
    with torch.no_grad(): return torch.export.export(model.eval(), (batch,), dynamic_shapes=shapes)

def export_onnx(
    model: nn.Module, # On the CPU
    batch: Batch, # As for export_program
    path: str | Path, # The .onnx file to write
) -> list: # Names of the inputs, the parts of the batch in their order
    """Write the model for ONNX Runtime; its inputs are the parts of the batch under their names, its output
    is called logits.

    Raises: `ImportError` naming the `export` extra.
    """
    require("onnxscript", "export")
    names = [*batch.rows, *batch.tables]
    class Flat(nn.Module): # ONNX knows tensors, not batches
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, *parts):
            named = dict(zip(names, parts))
            return self.model(Batch._of({k: named[k] for k in batch.rows},
                                        {k: named[k] for k in batch.tables}))
    parts = tuple((batch.rows | batch.tables).values())
    shapes = ({0: torch.export.Dim.DYNAMIC},)*len(parts)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Flat().eval(), parts, str(path), dynamo=True, dynamic_shapes=(shapes,),
                          input_names=names, output_names=["logits"],
                          external_data=False, verbose=False)
    return names
