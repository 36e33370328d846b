"""The command line: its options, its messages, and the demo. Hand-written; not part of a lesson."""
import json
import os
import sys
import traceback
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer

from .core import pick_device
from .coupons import CouponEncoder, context_lists, split_respondents
from .data import log_summary, toy_mall
from .logs import load_coupons
from .metrics import report
from .predictor import observable_ceiling
from .preprocess import EventLog, Preprocessor, clean, time_split
from .recommender import model_names
from .runs import (
    as_json,
    callbacks,
    evaluate_log,
    import_module,
    list_for,
    metrics_text,
    pictures,
    plain_text,
    read_schema,
    show,
    train_log,
)
from .serving import recommend
from .storage import foreign_file, replaced_folder, write_whole
from .train import attention_map, compare, interest_models

__all__ = ["app", "main", "demo", "Data", "compare_table"]


# What is printed

def _say(text=""): # Progress goes to the same stream as results: a demo is read, not piped
    print(plain_text(text), flush=True)

def _hint(text): # Notes that must not get mixed with the results
    print(plain_text(text), file=sys.stderr)


def compare_table(
    results: pd.DataFrame, # Rows of one or more reports, with a column model
    metric: str, # auc, gauc or log_loss
) -> pd.DataFrame: # One row per model, one column per scenario, then macro and all
    """One metric for every model and scenario, the models in order of first appearance."""
    columns = list(results.scenario.unique())
    averages = [name for name in ("macro", "all") if name in columns]
    table = results.pivot_table(index="model", columns="scenario", values=metric, sort=False, dropna=False)
    return table.reindex(index=results.model.unique(),
                         columns=[*(name for name in columns if name not in averages), *averages])


# The demo

_FUSIONS = {"none": "no history", "own": "own scenario", "mean": "mean", "concat": "concatenation",
            "attention": "attention"}
_DEMO_FILES = ("metrics.csv", "attention.png", "curve.png", "model", "preprocess")
_SITUATIONS = {
    "7AM, alone, on the way to work": dict(time="7AM", passanger="Alone", destination="Work"),
    "6PM, with friends, no urgent place": dict(time="6PM", passanger="Friend(s)",
                                               destination="No Urgent Place")}


def _train_fusions(spec, parts, user, seed, progress, patience, heads="shared", **options):
    train, valid, test = parts # each fusion is trained, and its result printed at once
    frames, attention = [], None
    for fusion, make in interest_models(spec, tuple(_FUSIONS), heads=heads).items():
        name = _FUSIONS[fusion]
        comparison = compare({name: make}, train, valid, test, user, (seed,),
                             callbacks=callbacks(patience, progress), **options)
        frames.append(comparison.frame)
        macro = comparison.frame.set_index("scenario").loc["macro"]
        _say(f"  {name:<14} AUC {macro.auc:.3f}   GAUC {macro.gauc:.3f}   log loss {macro.log_loss:.3f}   "
             "(mean over scenarios)")
        if fusion == "attention": attention = comparison.models[name], comparison.training_logs[name]
    return pd.concat(frames, ignore_index=True), *attention

def _ceiling_rows(ceilings, test, scenarios, user): # A report for each list of probabilities
    scenario = np.array(scenarios, dtype=object)[test.scenario.numpy()]
    return [report(test.label.numpy(), prob, scenario, user).reset_index().assign(model=name)
            for name, prob in ceilings.items()]

def _print_tables(results):
    titles = dict(auc="AUC", gauc="GAUC (AUC inside users)",
                  log_loss="log loss (nats per row, lower is better)")
    for metric, title in titles.items():
        _say(f"\n{title}\n{show(compare_table(results, metric).rename_axis(index=None, columns=None))}")

def _write_demo(folder, results, log, maps): # What a reader may want to keep
    results.to_csv(folder/"metrics.csv", index=False)
    for name, content in pictures(log, maps, "training the model with attention").items():
        write_whole(folder/name, content)
    (folder/"demo.txt").write_text("written by multiscene-rec demo\n")

def _demo_mall(folder, seed, quick, progress, **options):
    from .cli import true_mixing  # formula (90.1), which the lesson defines

    mall = toy_mall(seed=seed, **(dict(n_users=1500, n_events=40_000) if quick else
                                  dict(n_users=4000, n_events=100_000)))
    dirty, _ = mall.dirty(seed)
    rows, cleaning = clean(dirty)
    _say(f"A toy mall: {len(mall.users):,} users, {len(mall.items):,} items, {len(dirty):,} rows of "
         f"log.\n\nCleaning\n{cleaning}\n")
    _say(show(log_summary(rows)))
    train, valid, test = time_split(rows)
    prep = Preprocessor().fit(train, users=mall.users, items=mall.items)
    log = EventLog(pd.concat([train, valid, test]), mall.users)
    parts = [prep.transform(part, log=log) for part in (train, valid, test)]
    _say(f"\nTraining on {len(train):,} rows, choosing the epoch on {len(valid):,}, testing on the last "
         f"{len(test):,}")
    options |= dict(epochs=10, patience=2, batch_size=256) if quick else dict(epochs=8, patience=1,
                                                                              batch_size=1024)
    user = test.user_id.to_numpy()
    results, model, curve = _train_fusions(prep.spec, parts, user, seed, progress, **options)
    ceilings = {"ceiling: the log": observable_ceiling(mall, test), "ceiling: the truth": mall.truth(test)}
    results = pd.concat([results, *_ceiling_rows(ceilings, parts[2], prep.spec.scenarios, user)],
                        ignore_index=True)
    _print_tables(results)
    names = list(mall.scenarios)
    learned = attention_map(model, parts[2]).loc[names, names]
    _write_demo(folder, results, curve, {"learned attention": learned, "true mixing": true_mixing(mall)})
    _print_mall_lists(model, prep, log)
    return model, prep

def _print_mall_lists(model, prep, log): # The busiest user of the log, in two scenarios
    user = log.events.user_id.value_counts().index[0]
    n_rows = int((log.events.user_id == user).sum())
    _say(f"\nTen items for user {user}, who has {n_rows} rows of history, in two scenarios")
    for scenario in ("home", "search"):
        top = recommend(model, prep, log, user, scenario, k=10)
        top = top[["rank", "title", "category", "price", "score"]]
        _say(f"\n{scenario}\n{show(top.set_index('rank').rename_axis(None))}")

def _demo_coupons(path, folder, seed, quick, progress, **options):
    frame = load_coupons(path)
    train, valid, test = split_respondents(frame, seed)
    _say(f"In-vehicle coupons (UCI 603): {len(frame):,} answers of {frame.respondent.nunique()} respondents, "
         f"{frame.Y.mean():.1%} would accept.\nNothing is dropped: a survey without ids cannot tell a "
         "duplicate from a twin.\n")
    kinds = frame.groupby("coupon", sort=False).agg(rows=("Y", "size"), accepted=("Y", "mean"))
    _say(show(kinds.rename_axis(None)))
    encoder = CouponEncoder().fit(train)
    n_train, n_valid, n_test = (part.respondent.nunique() for part in (train, valid, test))
    _say(f"\nTraining on {n_train} respondents, choosing the epoch on {n_valid}, testing on {n_test} others")
    parts = [encoder.transform(part) for part in (train, valid, test)]
    options |= dict(heads="per_scenario", batch_size=256, lr=1e-3, epochs=6 if quick else 20, patience=3)
    results, model, curve = _train_fusions(encoder.spec, parts, test.respondent.to_numpy(), seed, progress,
                                           **options)
    _print_tables(results)
    _write_demo(folder, results, curve, {"learned attention": attention_map(model, parts[2])})
    person = test.respondent.iloc[0]
    lists = context_lists(model, encoder, frame, person, _SITUATIONS)
    for situation, part in lists.groupby("context", sort=False):
        _say(f"\nCoupon kinds for respondent {person}, "
             f"{situation}\n{show(part.set_index('rank')[['coupon', 'score']].rename_axis(None))}")
    return model, encoder


# Options: their types, and the lines that --help prints

def _option(kind, help, *names, **limits): # An option with its type and its line of help
    return Annotated[kind, typer.Option(*names, help=help, **limits)]

class Data(str, Enum):
    """What the demo runs on."""
    mall = "mall"
    coupons = "coupons"

# Which column is what
_Log = Annotated[str, typer.Argument(
    help="a .csv, .csv.gz or .parquet file; or movielens-100k, from an installed recbole")]
_Folder = Annotated[Path, typer.Argument(help="folder that train wrote")]
_User = _option(str | None, "column of the user  [user_id]")
_Item = _option(str | None, "column of the item  [item_id]")
_Scenario = _option(str | None, "column of the scenario  [scenario]")
_Time = _option(str | None, "column of the time, in seconds or ISO text  [timestamp]")
_Label = _option(list[str] | None, "column of the answer, 0 or 1; repeat it for further answers  [clicked]")
_SchemaFile = _option(Path | None, "JSON or TOML file that names all columns, features too")
_Users = _option(Path | None, "file with one row per user")
_Items = _option(Path | None, "file with one row per item")
_Drop = _option(list[str] | None, "a feature to leave out; may be repeated")

# Which rows
_By = Enum("Split", {n: n for n in ("time", "user")}, type=str)
_Unit = Enum("TimeUnit", {n: n for n in ("s", "ms", "us", "ns", "days", "none")}, type=str)
_Split = _option(_By, "what the test rows are: the latest, or those of other users")
_Price = _option(str | None, "column of prices: drop rows where it is not above 0, or absurd")
_Window = _option(float, "seconds within which rows of one user, item and scenario count once", min=0)
_TimeUnit = _option(_Unit | None, "unit of the time column; none: any numbers, kept as they are")
_AnyTime = _option(bool, "accept times outside 1990 to 2099", "--any-time")
_Newer = _option(Path | None, "a newer file with one row per user")

# Which model
_HeadKind = Enum("Heads", {n: n for n in ("shared", "per_scenario")}, type=str)
_Model = _option(str, f"one of {', '.join(model_names())}, or package.module:Class")
_Set = _option(list[str] | None, "an argument of the model, as key=value; may be repeated", "--set")
_Fusion = _option(str | None, "how histories are fused; short for --set fusion=NAME")
_Heads = _option(_HeadKind | None,
                 "one head for all scenarios or one for each; short for --set heads=per_scenario", "--heads")
_Import = _option(list[str] | None, "module that defines a model of your own; may be repeated", "--import")

# How it is trained and kept
_Out = _option(Path, "folder for the model and all that belongs to it")
_DemoOut = _option(Path, "folder for tables, pictures and the model; created if it does not exist")
_Epochs = _option(int, "passes over the rows, at most", min=1)
_BatchSize = _option(int, "rows per step, in each process", min=1)
_Rate = _option(float, "step size")
_Patience = _option(int, "stop after this many epochs without a lower validation loss", min=1)
_Seed = _option(int, "seed of everything random", min=0)
_Device = _option(str, "auto, cpu, cuda or mps")
_Precision = _option(str, "fp32 or bf16")
_Resume = _option(bool, "continue a run that was stopped", "--resume")
_Overwrite = _option(bool, "replace the model in the folder", "--overwrite")
_Bar = _option(bool, "a progress bar for each epoch, in a terminal")
_Json = _option(bool, "JSON for scripts, and nothing else on stdout", "--json")


def _pairs(option, words): # key=value, the value as JSON where it is JSON, else as text
    pairs = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise ValueError(f"{option} {word}: write key=value, such as hidden=[64,32] or price=9.5")
        try: pairs[key] = json.loads({"True": "true", "False": "false", "None": "null"}.get(value, value))
        except ValueError: pairs[key] = value
    return pairs

def _params(words, **short_forms): # --fusion and --heads are short forms of --set
    return _pairs("--set", words) | {name: value for name, value in short_forms.items() if value is not None}

def _columns(schema, **named): # The columns, from a schema file or from single options
    named = {option: column for option, column in named.items() if column}
    if schema is None: return dict(columns=named)
    if named:
        raise ValueError(
            f"--schema already names the columns: leave out --{next(iter(named))}, or write it into {schema}")
    return dict(schema=read_schema(schema))


# The commands

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
                  help="Learn, teach and use multi-scenario recommendation.")

@app.callback(invoke_without_command=True)
def _about(ctx: typer.Context): # Without a command, print the help
    if ctx.invoked_subcommand is None: typer.echo(ctx.get_help())


@app.command()
def demo(
    data: _option(Data, "mall: made up, its truth is known; coupons: real answers of 567 respondents"
                  ) = Data.mall, # What it runs on
    path: _option(Path | None, "the coupon file, or a folder that holds it") = None, # Path of the coupon file
    out: _DemoOut = Path("demo"), # Folder to write
    seed: _option(int, "seed of the data and the training", min=0) = 7, # Seed of everything random
    device: _Device = "auto", # As for pick_device
    quick: _option(bool, "less data, in a few seconds", "--quick") = False, # A smaller mall
    progress: _Bar = True, # Whether bars are drawn
) -> None:
    """Train a multi-scenario recommender, compare it with its baselines and print its lists."""
    pick_device(device)
    if path is not None and data is Data.mall:
        raise ValueError("--path goes with --data coupons; the mall is generated, not read")
    if foreign := foreign_file(out, "demo.txt", _DEMO_FILES):
        raise ValueError(f"{out} holds {foreign!r}, which no demo wrote: name a new folder with --out")
    options = dict(seed=seed, quick=quick, progress=progress, device=device)
    with replaced_folder(out) as work:
        folder = work/"run"
        if data is Data.mall: model, prep = _demo_mall(folder, **options)
        else: model, prep = _demo_coupons(path, folder, **options)
        model.save(folder/"model")
        prep.save(folder/"preprocess")
    _say(f"\nWritten to {out}: metrics.csv, attention.png, curve.png and the trained model")


class _Stopped(Exception): # Ctrl-C, with a message that the parser of options would drop
    pass


@app.command("train")
def _train_command(
    log: _Log, out: _Out,
    user: _User = None, item: _Item = None, scenario: _Scenario = None, time: _Time = None,
    label: _Label = None, schema: _SchemaFile = None, users: _Users = None, items: _Items = None,
    drop: _Drop = None,
    split: _Split = _By.time, price: _Price = None, window: _Window = 5.0,
    time_unit: _TimeUnit = None, any_time: _AnyTime = False,
    model: _Model = "interest", set_: _Set = None, fusion: _Fusion = None, heads: _Heads = None,
    epochs: _Epochs = 10, batch_size: _BatchSize = 1024, lr: _Rate = 4e-3, patience: _Patience = 2,
    seed: _Seed = 0, device: _Device = "auto", precision: _Precision = "fp32",
    resume: _Resume = False, overwrite: _Overwrite = False, progress: _Bar = True,
) -> None:
    """Train on your own log and write the model, its metrics, pictures and a model card."""
    columns = _columns(schema, user=user, item=item, scenario=scenario, time=time, label=label)
    rows = dict(users=users, items=items, drop=tuple(drop or ()), split=split.value, price=price,
                window=window, time_unit=time_unit and time_unit.value, any_time=any_time)
    training = dict(epochs=epochs, batch_size=batch_size, lr=lr, patience=patience, seed=seed, device=device,
                    precision=precision, resume=resume, overwrite=overwrite, progress=progress)
    params = _params(set_ or [], fusion=fusion, heads=heads and heads.value)
    try: metrics = train_log(log, out, say=_say, model=model, params=params, **columns, **rows, **training)
    except KeyboardInterrupt as e: raise _Stopped(str(e) or "stopped") from None
    if not len(metrics): return # the first process prints for all
    written = ", ".join(sorted(p.name for p in out.iterdir() if not p.name.startswith(".")))
    _say(f"\nTest rows (intervals: 95 %, over users)\n{metrics_text(metrics)}\n\nWritten to {out}: {written}")


@app.command("evaluate")
def _evaluate_command(
    folder: _Folder,
    log: Annotated[str, typer.Argument(help="a log with the same columns")],
    used: _option(bool, "also count rows that the model was trained on", "--used") = False,
    users: _Newer = None, module: _Import = None, json_output: _Json = False,
) -> None:
    """Measure a trained model on a log; rows that it was trained on are left out."""
    for name in module or (): import_module(name)
    metrics = evaluate_log(folder, log, used, users, say=_hint if json_output else _say)
    if json_output: print(as_json(metrics.reset_index().to_dict("records")), end="")
    else: _say(f"\nIntervals: 95 %, over users\n{metrics_text(metrics)}")


@app.command("recommend")
def _recommend_command(
    folder: _Folder,
    user: _option(str, "user id; an unknown one gets a list without history"),
    scenario: _option(str, "where the list will be shown"),
    k: _option(int, "length of the list", "-k") = 10,
    log: _option(str | None, "a newer log: what happened since the training") = None,
    seen: _option(bool, "also list items that the user was shown before", "--seen") = False,
    diversity: _option(float, "0 sorts by interest alone, up to 1 for variety") = 0.0,
    task: _option(str | None, "which answer counts, if there are several  [the first]") = None,
    context: _option(list[str] | None, "a feature of the moment, as column=value; may be repeated") = None,
    users: _Newer = None, module: _Import = None, json_output: _Json = False,
) -> None:
    """Print the items that a user may like best in a scenario."""
    for name in module or (): import_module(name)
    options = dict(k=k, exclude_seen=not seen, diversity=diversity, task=task,
                   context=_pairs("--context", context or []))
    top, note = list_for(folder, user, scenario, log, users, **options)
    if note: _hint(note)
    if json_output: return print(as_json(top.to_dict("records")), end="")
    score = top.score.map("{:.3f}".format).to_numpy()
    print(plain_text(top.set_index("rank").rename_axis(None).assign(score=score).to_string()))


_MISTAKES = (ValueError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError) # of wrong input

def _complain(text): # One line; under torchrun only the first process reports what stops them all
    alone = torch.distributed.is_available() and torch.distributed.is_initialized()
    if int(os.environ.get("RANK", 0)) and not alone: return
    print(f"multiscene-rec: {plain_text(' '.join(text.split()))}", file=sys.stderr)


def main(
    args: list[str] | None = None, # Words of the command line; None takes them from the shell
) -> int: # Exit code: 0, or 2 for a user's mistake, or 130 after Ctrl-C
    """Run the command. A user's mistake is one line on stderr; anything else is a bug of the package and
    is raised.

    With `--debug` the traceback of a mistake is printed too.
    """
    # layers this small lose more to waiting threads than they gain
    if "OMP_NUM_THREADS" not in os.environ: torch.set_num_threads(1)
    for stream in (sys.stdout, sys.stderr): # a character that the terminal cannot show should not stop it
        if hasattr(stream, "reconfigure"): stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if args is None else list(args)
    debug, words = "--debug" in words, [w for w in words if w != "--debug"]
    try: code = app(words, standalone_mode=False, prog_name="multiscene-rec")
    except (KeyboardInterrupt, _Stopped) as e:
        _complain(str(e) or "stopped")
        return 130
    except Exception as e:
        of_parser = hasattr(e, "format_message") # the parser's errors bring their own text
        if not isinstance(e, _MISTAKES) and not of_parser: raise
        if debug: traceback.print_exc()
        if message := e.format_message() if of_parser else str(e): _complain(message)
        return 2
    return int(code or 0)
