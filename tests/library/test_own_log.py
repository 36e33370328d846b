"""A log of one's own through the command: train, evaluate, recommend; and each thing that can be wrong
with it, as one line."""
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiscene_rec import cli, data, logs, metrics, model, preprocess, rank, runs, storage, train

NAMES = dict(user_id="who", item_id="what", scenario="where", timestamp="when", clicked="liked", price="paid")
SCHEMA = dict(user="who", item="what", scenario="where", time="when", label="liked",
              categorical=["category"], numeric=["paid"], item_columns=["category"])
QUICK = ("--epochs", "2", "--device", "cpu")


def make_log(rows=3000, users=120):
    mall = data.toy_mall(n_users=users, n_items=60, n_events=rows, seed=3)
    return mall.events.merge(mall.items[["item_id", "category"]], on="item_id").rename(columns=NAMES).drop(
        columns=["page", "position"])


@pytest.fixture(scope="module")
def log():
    raw = make_log()
    return preprocess.clean(raw,
        data.Schema(**{k: tuple(v) if isinstance(v, list) else v for k, v in SCHEMA.items()}),
                            price=None)[0].reset_index(drop=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory, log):
    folder = tmp_path_factory.mktemp("own")
    log.to_csv(folder/"log.csv", index=False)
    (folder/"schema.json").write_text(json.dumps(SCHEMA))
    return folder


@pytest.fixture(scope="module")
def trained(place):
    assert cli.main(["train", str(place/"log.csv"), "--schema", str(place/"schema.json"), "--out",
                     str(place/"model"), *QUICK]) == 0
    return place/"model"


def call(capsys, *args):
    "(exit code, stdout, stderr) of a command in this process."
    capsys.readouterr()
    code = cli.main([str(a) for a in args])
    return code, *capsys.readouterr()


def refused(capsys, says, *args):
    "The command ends with 2 and one line that says so, on stderr."
    code, _, err = call(capsys, *args)
    assert code == 2 and says in err and len(err.splitlines()) == 1 and "Traceback" not in err, err


# ---------------------------------------------------------------- the path that works

def test_the_folder_holds_all_that_belongs_to_the_model(trained, log):
    names = {p.name for p in trained.iterdir() if not p.name.startswith(".")}
    assert names == {"model", "preprocess", "log", "metrics.csv", "metrics.json", "curve.png",
                     "attention.png", "model_card.md", "run.json"}
    assert not list(trained.rglob("*.part")) and not storage.work_folder(trained).exists()
    for name in ("curve.png", "attention.png"): assert (trained/name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    card, run = (trained/"model_card.md").read_text(), json.loads((trained/"run.json").read_text())
    for words in (f"{len(log):,} rows were read", "Split by time", "rows to learn from", "seed: 0",
                  "versions: multiscene_rec", "AUC (95 %)", "log.csv", "## Limits"):
        assert words in card, words
    assert run["schema"]["user"] == "who" and run["seed"] == 0 and run["rows"]["read"] == len(log)
    assert sum(run["rows"][part] for part in ("train", "valid", "test")) == run["rows"]["kept"]


def test_metrics_are_those_of_the_test_rows(trained, log):
    "Split, histories, scores and metrics again, step by step with the library."
    schema = data.Schema(**{k: tuple(v) if isinstance(v, list) else v for k, v in SCHEMA.items()})
    rows, _ = preprocess.clean(log, schema, price=None)
    parts = preprocess.time_split(rows, schema)
    prep = preprocess.Preprocessor(schema).fit(parts[0])
    batch = prep.transform(parts[2], log=preprocess.EventLog(rows, schema=schema))
    prob = train.predict(model.InterestModel.load(trained/"model"), batch).numpy()
    wanted = metrics.report(parts[2].liked, prob, parts[2]["where"], parts[2].who)
    for found in (pd.read_csv(trained/"metrics.csv", index_col=0),
                  pd.DataFrame(json.loads((trained/"metrics.json").read_text())).set_index("scenario")):
        for column in ("rows", "users", "click_rate", "auc", "gauc", "log_loss"):
            np.testing.assert_allclose(found[column].astype(float),
                wanted.loc[found.index, column].astype(float), rtol=1e-6, err_msg=column)
    rate = parts[0].groupby("where").liked.mean()
    base = metrics.log_loss(parts[2].liked, parts[2]["where"].map(rate))
    np.testing.assert_allclose(found.loc["all", "base_log_loss"], base, rtol=1e-9)
    assert (found.auc_low.dropna() <= found.auc[found.auc_low.notna()]).all() and (
        found.auc_high.dropna() >= found.auc[found.auc_low.notna()]).all()


def test_evaluate_on_the_same_log_gives_the_test_metrics_again(trained, place, capsys):
    code, out, err = call(capsys, "evaluate", trained, place/"log.csv", "--json")
    assert code == 0 and "rows left out: the model was trained on them" in err
    again, was = pd.DataFrame(json.loads(out)), pd.DataFrame(json.loads((trained/"metrics.json").read_text()))
    pd.testing.assert_frame_equal(again, was, rtol=1e-5)


def test_evaluate_on_newer_rows_and_on_used_ones(trained, place, log, tmp_path, capsys):
    newer = log.assign(when=log.when + 90*86400)
    newer.to_csv(tmp_path/"newer.csv", index=False)
    assert json.loads(call(capsys, "evaluate", trained, tmp_path/"newer.csv", "--json")[1])[-1][
        "rows"] == len(log)
    assert json.loads(call(capsys, "evaluate", trained, place/"log.csv", "--used", "--json")[1])[-1][
        "rows"] == len(log)


def test_evaluate_prints_a_table(trained, place, capsys):
    code, out, _ = call(capsys, "evaluate", trained, place/"log.csv")
    assert code == 0 and "macro" in out and "auc_low" in out and "search" in out


def test_recommend_prints_the_list_of_the_library(trained, log, capsys):
    user = int(log.who.value_counts().index[0])
    code, out, err = call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 4,
                          "--json")
    assert code == 0 and err == ""
    net, prep, whole = model.InterestModel.load(trained/"model"), preprocess.Preprocessor.load(
        trained/"preprocess"), preprocess.load_log(trained/"log")
    wanted = rank.recommend(net, prep, whole, user, "home", k=4)
    assert [row["what"] for row in json.loads(out)] == wanted.what.tolist()
    assert not set(wanted.what) & set(
        log.what[log.who == user]), "an item that the user has seen in any part of the log"
    assert len(whole) == len(log), "the histories of lists reach to the end of the log"
    table = call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 4)[1]
    assert len(table.splitlines()) == 5 and "score" in table.splitlines()[0]


def test_recommend_with_a_newer_log(trained, log, tmp_path, capsys):
    user = int(log.who.value_counts().index[0])
    first = json.loads(call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 1,
                            "--json")[1])[0]["what"]
    seen = log.iloc[[0]].assign(who=user, what=first, when=log.when.max() + 60)
    seen.to_csv(tmp_path/"news.csv", index=False)
    after = json.loads(call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 60,
                            "--log", tmp_path/"news.csv", "--json")[1])
    assert first not in [row["what"] for row in after]
    shown = json.loads(call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 60,
                            "--seen", "--log", tmp_path/"news.csv", "--json")[1])
    assert first in [row["what"] for row in shown] and len(shown) == 60


def test_a_newer_log_may_spell_scenarios_in_its_own_way(trained, log, tmp_path, capsys):
    user, lists = int(log.who.value_counts().index[0]), {}
    news = log.head(40).assign(who=user, when=log.when.max() + np.arange(60, 100), liked=1)
    for name, change in {"as before": str, "loud": str.upper, "elsewhere": lambda s: "attic"}.items():
        news.assign(where=news["where"].map(change)).to_csv(tmp_path/"news.csv", index=False)
        code, out, err = call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 3,
                              "--log", tmp_path/"news.csv", "--json")
        assert code == 0, err
        lists[name] = json.loads(out)
        assert ("are in scenarios that the model does not know: they count in no history" in err) == (
            name == "elsewhere")
    assert lists["loud"] == lists["as before"] != lists["elsewhere"]


def test_columns_by_options_and_other_kinds_of_file(log, tmp_path, capsys):
    plain = log.drop(columns=["paid", "category"]).assign(who=lambda f: "u" + f.who.astype(str),
        when=lambda f: pd.to_datetime(f.when, unit="s", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
    plain.to_csv(tmp_path/"log.csv.gz", index=False)
    names = ("--user", "who", "--item", "what", "--scenario", "where", "--time", "when", "--label", "liked")
    code, out, err = call(capsys, "train", tmp_path/"log.csv.gz", "--out", tmp_path/"a", *names, *QUICK)
    assert code == 0 and "none but the ids" in out, err
    assert call(capsys, "recommend", tmp_path/"a", "--user", "u3", "--scenario", "cart")[0] == 0
    pytest.importorskip("pyarrow")
    plain.to_parquet(tmp_path/"log.parquet")
    assert call(capsys, "train", tmp_path/"log.parquet", "--out", tmp_path/"b", *names, *QUICK)[0] == 0
    assert (tmp_path/"a"/"metrics.csv").read_text() == (tmp_path/"b"/"metrics.csv").read_text()


def test_the_mall_s_own_names_need_no_option(tmp_path, capsys):
    mall = data.toy_mall(n_users=100, n_items=50, n_events=2500)
    mall.dirty(1)[0].to_csv(tmp_path/"log.csv", index=False)
    mall.users.to_csv(tmp_path/"users.csv", index=False)
    mall.items.to_csv(tmp_path/"items.csv", index=False, sep=";")
    code, out, err = call(capsys, "train", tmp_path/"log.csv", "--users", tmp_path/"users.csv", "--items",
                          tmp_path/"items.csv", "--price", "price", "--out", tmp_path/"m", *QUICK)
    assert code == 0 and "age_band, city, category, brand, price, quality" in out and "repaired" in out, err
    assert "by the rule \"duplicate\"" in (tmp_path/"m"/"model_card.md").read_text()
    top = json.loads(call(capsys, "recommend", tmp_path/"m", "--user", 5, "--scenario", "live", "-k", 3,
                          "--json")[1])
    assert len(top) == 3 and top[0]["title"] in set(mall.items.title)


def test_a_split_by_user(place, tmp_path, capsys, log):
    args = ("train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", "--split",
            "user", *QUICK)
    assert call(capsys, *args)[0] == 0
    known = set(preprocess.load_log(tmp_path/"m"/"log").ids)
    again = json.loads(call(capsys, "evaluate", tmp_path/"m", place/"log.csv", "--json")[1])
    assert again[-1]["rows"] == (~log.who.isin(known)).sum() == json.loads(
        (tmp_path/"m"/"metrics.json").read_text())[-1]["rows"]
    np.testing.assert_allclose(again[-1]["auc"],
                               json.loads((tmp_path/"m"/"metrics.json").read_text())[-1]["auc"], rtol=1e-5)
    assert "no user is in two parts" in (tmp_path/"m"/"model_card.md").read_text()
    # nobody the model has met: their rows come with the log
    other = int(log.who[~log.who.isin(known)].value_counts().index[0])
    ask = ("recommend", tmp_path/"m", "--user", other, "--scenario", "home", "-k", 60, "--json")
    code, out, err = call(capsys, *ask)
    assert code == 0 and "newcomer" in err and len(json.loads(out)) == 60
    code, out, err = call(capsys, *ask, "--log", place/"log.csv")
    assert code == 0 and err == "" and not {row["what"] for row in json.loads(out)} & set(
        log.what[log.who == other])


@pytest.mark.parametrize("fusion", ["none", "own", "mean", "concat", "attention+own"])
def test_every_fusion(fusion, place, tmp_path, capsys):
    code, _, err = call(capsys, "train", place/"log.csv", "--schema", place/"schema.json", "--out",
                        tmp_path/"m", "--fusion", fusion, "--heads", "per_scenario", "--epochs", 1)
    assert code == 0 and (tmp_path/"m"/"attention.png").exists() == (fusion not in ("none", "concat")), err
    assert call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario", "home")[0] == 0


def test_a_schema_in_toml(place, tmp_path):
    (tmp_path/"s.toml").write_text(
        'user = "who"\nitem = "what"\ncategorical = ["category"]\nitem_columns = ["category"]\n')
    found = runs.read_schema(tmp_path/"s.toml")
    assert (found.user, found.item, found.scenario, found.categorical, found.numeric) == ("who", "what",
        "scenario", ("category",), ())


def test_two_trainings_are_equal(trained, place, tmp_path, capsys):
    assert call(capsys, "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m",
                *QUICK)[0] == 0
    for name in ("metrics.csv", "model/model.safetensors", "preprocess/preprocess.safetensors"):
        assert (tmp_path/"m"/name).read_bytes() == (trained/name).read_bytes(), name


def test_movielens_goes_through_the_same_command(tmp_path, capsys):
    try: logs.load_movielens_100k()
    except FileNotFoundError as e: pytest.skip(str(e))
    code, out, err = call(capsys, "train", "movielens-100k", "--out", tmp_path/"ml", "--epochs", 2)
    assert code == 0 and "gender, occupation, genre, age" in out, err
    again = json.loads(call(capsys, "evaluate", tmp_path/"ml", "movielens-100k", "--json")[1])
    np.testing.assert_allclose(again[-1]["auc"],
                               json.loads((tmp_path/"ml"/"metrics.json").read_text())[-1]["auc"], rtol=1e-5)
    assert call(capsys, "recommend", tmp_path/"ml", "--user", 42, "--scenario", "<25", "-k", 5)[0] == 0


# ---------------------------------------------------------------- a log that is wrong

BROKEN = {  # name: (what to do to the log, what the command says)
    "header only": (lambda f: f.head(0), "has a header but no rows"),
    "no such column": (lambda f: f.rename(columns=dict(who="customer")),
                       "missing column 'who'; the columns are customer, what, where, when"),
    "label outside": (lambda f: f.assign(liked=[7, *f.liked[1:]]),
                      "column 'liked', row 1 below the header: '7' is not a label from 0 to 1"),
    "labels all alike": (lambda f: f.assign(liked=1), "one class"),
    "soft labels": (lambda f: f.assign(liked=.5), "is a soft label"),
    "infinite": (lambda f: f.assign(paid=[np.inf, *f.paid[1:]]), "column 'paid', row 1"),
    "no time": (lambda f: f.assign(when=["noon", *f.when[1:]]),
                "column 'when', row 1 below the header: 'noon' is not"),
    "milliseconds": (lambda f: f.assign(when=f.when*1000),
                     "looks like milliseconds since 1970; pass time_unit='ms', or --time-unit ms to the "
                     "command"),
    "zones mixed": (lambda f: f.assign(when=["2026-01-05T10:00:00", *["2026-01-05T10:00:00Z"]*(len(f) - 1)]),
                    "zone"),
    "one moment": (lambda f: f.assign(when=1_770_000_000), "a part would be empty"),
    "a reserved name": (lambda f: f.assign(where=["macro", *f["where"][1:]]), "a scenario is called 'macro'"),
    "no price": (lambda f: f, "--price: the log has no column 'cost'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_log_is_one_line(what, log, place, tmp_path, capsys):
    spoil, says = BROKEN[what]
    spoil(log.copy()).to_csv(tmp_path/"log.csv", index=False)
    more = ("--price", "cost") if what == "no price" else ()
    refused(capsys, says, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m",
            *more, *QUICK)
    assert not (tmp_path/"m"/"run.json").exists() and (tmp_path/"log.csv").exists()


@pytest.mark.wrong("column … is a soft label; the command measures AUC, which needs 0 or 1",
                   area="the command",
                   cause="The answers are shares such as 0.5, not yes or no.",
                   remedy="Round the labels in the log, or train from Python with fit, which takes soft "
                          "labels.")
@pytest.mark.wrong("a scenario is called …, which is the name of a line of the results", area="the command",
                   cause="Results have lines called macro and all.",
                   remedy="Give that scenario another name in the log.")
@pytest.mark.wrong("--price: the log has no column …", area="the command",
                   cause="The column of prices has another name, or is in the file of items.",
                   remedy="Name a column of the log; the message lists them.")
def test_messages_of_labels_names_and_prices(log, place, tmp_path, capsys):
    for spoil, says, more in ((dict(liked=.5),
        "is a soft label; the command measures AUC, which needs 0 or 1", ()),
                              ({"where": "all"}, "which is the name of a line of the results", ()),
                              ({}, "--price: the log has no column", ("--price", "cost"))):
        log.assign(**spoil).to_csv(tmp_path/"log.csv", index=False)
        refused(capsys, says, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out",
                tmp_path/"m", *more)


def test_an_empty_file_and_one_that_is_not_there(tmp_path, capsys):
    (tmp_path/"log.csv").write_bytes(b"")
    refused(capsys, "is empty: expected a header line", "train", tmp_path/"log.csv", "--out", tmp_path/"m")
    refused(capsys, "no such file", "train", tmp_path/"none.csv", "--out", tmp_path/"m")


@pytest.mark.parametrize("change", [dict(encoding="utf-8-sig"), dict(sep=";", decimal=","),
                                    dict(lineterminator="\r\n")], ids=["BOM", "semicolons", "CRLF"])
def test_three_dialects_give_the_same_model(change, log, trained, place, tmp_path, capsys):
    log.to_csv(tmp_path/"log.csv", index=False, **change)
    code, _, err = call(capsys, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out",
                        tmp_path/"m", *QUICK)
    assert code == 0, err
    assert (tmp_path/"m"/"metrics.csv").read_text() == (trained/"metrics.csv").read_text()


@pytest.mark.wrong("… of … … rows left out: scenario … does not occur in the training rows",
                   area="the command",
                   cause="The scenario is newer than the training rows, so the model has no vector for it.",
                   remedy="Nothing is lost; train again when the log holds more of it, or use --split user.")
def test_a_scenario_seen_only_in_the_test_rows(log, place, tmp_path, capsys):
    late = log.sort_values("when").copy()
    late.iloc[-50:, late.columns.get_loc("where")] = "mirror"
    late.to_csv(tmp_path/"log.csv", index=False)
    code, out, _ = call(capsys, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out",
                        tmp_path/"m", *QUICK)
    assert code == 0 and re.search(
        r"50 of \d+ test rows left out: scenario 'mirror' does not occur in the training rows", out)
    assert re.search(r"50 of \d+ test rows left out", (tmp_path/"m"/"model_card.md").read_text())
    code, out, err = call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv", "--json")
    assert code == 0 and "scenario 'mirror'" in err
    assert json.loads(out)[-1]["rows"] == json.loads((tmp_path/"m"/"run.json").read_text())["rows"]["test"]


def test_a_test_set_of_one_class_has_a_dash_for_auc(log, place, tmp_path, capsys):
    flat = log.sort_values("when").copy()
    flat.iloc[-400:, flat.columns.get_loc("liked")] = 0
    flat.to_csv(tmp_path/"log.csv", index=False)
    code, out, err = call(capsys, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out",
                          tmp_path/"m", *QUICK)
    assert code == 0 and json.loads((tmp_path/"m"/"metrics.json").read_text())[-1]["auc"] is None, err


@pytest.mark.wrong("--items: … column …, row … below the header has no id like those of the log",
                   area="the command",
                   cause="An id of the file is missing, or is text where the log has whole numbers.",
                   remedy="Write the ids the way the log has them.")
@pytest.mark.wrong("--users: … has no column …", area="the command",
                   cause="The file names its ids otherwise than the log.",
                   remedy="Rename the column of ids; the message lists the columns that are there.")
def test_files_of_users_and_items_that_do_not_fit(log, place, tmp_path, capsys):
    items = log[["what", "category"]].drop_duplicates("what")
    def attempt(frame, says, option="--items"):
        frame.to_csv(tmp_path/"side.csv", index=False)
        refused(capsys, says, "train", place/"log.csv", "--schema", place/"schema.json", "--out",
                tmp_path/"m", option, tmp_path/"side.csv", *QUICK)
    attempt(pd.concat([items, items.head(1)]), "appears twice")
    attempt(items.assign(what=["x", *items.what[1:].astype(str)]),
            "column 'what', row 1 below the header has no id like those of the log")
    attempt(items.rename(columns=dict(what="id")), "has no column 'who'", "--users")
    refused(capsys, "--items: no such file", "train", place/"log.csv", "--schema", place/"schema.json",
            "--out", tmp_path/"m", "--items", tmp_path/"none.csv")


# ---------------------------------------------------------------- options that do not go together

@pytest.mark.wrong("there is no field … in a schema; the fields are …", area="the command",
                   cause="A name on the left in the schema file is misspelt.",
                   remedy="Use the fields that the message lists.")
@pytest.mark.wrong("--schema already names the columns: leave … out", area="the command",
                   cause="A column is named by an option and a schema file is given too.",
                   remedy="Write the name into the schema file.")
@pytest.mark.wrong("… is not JSON", area="the command",
                   cause="The schema file has a typing error, such as a comma after the last entry.",
                   remedy="Correct it where the message says; TOML is read too, from a file ending in .toml.")
def test_schema_files_and_options(place, tmp_path, capsys):
    def attempt(text, says, *more, name="s.json"):
        (tmp_path/name).write_text(text)
        refused(capsys, says, "train", place/"log.csv", "--out", tmp_path/"m", "--schema", tmp_path/name,
                *more)
    attempt('{"users": "who"}', "there is no field 'users' in a schema; the fields are user, item, scenario")
    attempt('{"user": "who",}', "is not JSON")
    attempt('user = ', "is not TOML", name="s.toml")
    attempt('["who"]', "must hold fields of a schema")
    attempt('{"user": 3}', "column names must be non-empty strings")
    attempt('{"categorical": "city"}', "not one string")
    attempt('{"categorical": 3}', "s.json")
    attempt(json.dumps(SCHEMA), "--schema already names the columns: leave out --user", "--user", "who")
    refused(capsys, "no such schema file", "train", place/"log.csv", "--out", tmp_path/"m", "--schema",
            tmp_path/"none.json")
    assert not list(tmp_path.glob("m/*.json"))


@pytest.mark.parametrize("args, says", [
    (("--lr", "0"), "lr must be above 0"), (("--precision", "fp8"), "fp8"),
    (("--device", "gpu"), "unknown device"), (("--fusion", "blend"), "blend"),
    (("--epochs", "0"), "--epochs"), (("--split", "row"), "row"),
    (("--resume",), "there is no unfinished run for")])
def test_options_that_cannot_be(args, says, place, tmp_path, capsys):
    refused(capsys, says, "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m",
            *args)


def test_debug_shows_the_traceback(tmp_path, capsys):
    for args in (("--debug", "train", tmp_path/"none.csv", "--out", tmp_path/"m"),
                 ("train", tmp_path/"none.csv", "--out", tmp_path/"m", "--debug")):
        code, _, err = call(capsys, *args)
        assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith(
            "multiscene-rec: no such file")


# ---------------------------------------------------------------- lists

@pytest.mark.wrong("scenario … is unknown; choose from …", area="lists",
                   cause="The model was not trained on this scenario, or it is spelt otherwise.",
                   remedy="Use one of the names in the message.")
@pytest.mark.wrong("user … is not in the log: this is a list for a newcomer, without a history", area="lists",
                   cause="The model has never seen this user.",
                   remedy="Nothing needs to be done; check the id if you expected a history.")
@pytest.mark.wrong("--user: the user ids of this model are whole numbers, got …", area="lists",
                   cause="The ids of the log are numbers.", remedy="Give the number.")
def test_lists_for_the_unknown(trained, capsys):
    refused(capsys, "scenario 'attic' is unknown; choose from cart, home, live, search", "recommend", trained,
            "--user", 1, "--scenario", "attic")
    code, out, err = call(capsys, "recommend", trained, "--user", 987654, "--scenario", "home", "-k", 3)
    assert code == 0 and len(out.splitlines()) == 4
    assert "user 987654 is not in the log: this is a list for a newcomer, without a history" in err
    refused(capsys, "--user: the user ids of this model are whole numbers, got 'ann'", "recommend", trained,
            "--user", "ann", "--scenario", "home")


def test_lengths_of_lists(trained, capsys):
    for k in (0, -3):
        refused(capsys, f"got {k}", "recommend", trained, "--user", 1, "--scenario", "home", "-k", k)
    refused(capsys, "diversity must lie between 0 and 1", "recommend", trained, "--user", 1, "--scenario",
            "home",
            "--diversity", 2)
    shown = json.loads(call(capsys, "recommend", trained, "--user", 987654, "--scenario", "home", "-k",
                            10_000, "--json")[1])
    assert 0 < len(shown) <= 60


# ---------------------------------------------------------------- folders

def copy_of(folder, to):
    import shutil
    return Path(shutil.copytree(folder, to))


@pytest.mark.wrong("… holds a trained model: name another folder, or use --overwrite to replace it",
                   area="the command", cause="The folder is the result of an earlier training.",
                   remedy="Give another --out, or --overwrite if the old model is not needed.")
def test_a_trained_model_is_not_overwritten_by_chance(trained, place, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    args = ("train", place/"log.csv", "--schema", place/"schema.json", "--out", folder, "--epochs", 1)
    refused(capsys, "holds a trained model: name another folder, or use --overwrite to replace it", *args)
    refused(capsys, "holds a finished run", *args, "--resume")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    (tmp_path/"bad.csv").write_text("who,what\n1,2\n")
    refused(capsys, "missing column", "train", tmp_path/"bad.csv", *args[2:], "--overwrite")
    assert call(capsys, "recommend", folder, "--user", 1, "--scenario",
                "home")[0] == 0, "a bad log cost the old model"
    assert call(capsys, *args, "--overwrite", "--seed", 5)[0] == 0
    assert json.loads((folder/"run.json").read_text())["seed"] == 5


@pytest.mark.wrong("no such folder: …; name the one that train wrote", area="files",
                   cause="The name of the folder is wrong.",
                   remedy="Name the folder that was given to train as --out.")
@pytest.mark.wrong("… does not exist: give the folder that … wrote", area="files",
                   cause="The folder is another one, or a part of it was deleted.",
                   remedy="Name the folder that was given to train as --out, or train again.")
def test_folders_that_are_none_and_folders_that_are_damaged(trained, tmp_path, capsys):
    ask = ("--user", 1, "--scenario", "home")
    refused(capsys, "no such folder", "recommend", tmp_path/"none", *ask)
    refused(capsys, "does not exist: give the folder that multiscene-rec train wrote", "recommend", tmp_path,
            *ask)
    for n, (name, content, says) in enumerate([
            ("run.json", b"{", "run.json"), ("run.json", b'{"format": 99}', "format 99"),
        ("run.json", b"[1]", "format unknown"), ("run.json", b'{"format": 2}', "damaged or was edited"),
            ("run.json", b"\xff\xfe", "damaged"), ("model/model.json", b"{}", "model.json"),
        ("model/model.safetensors", b"\x80\x04rest", "pickle"),
            ("preprocess/preprocess.json", b"[]", "preprocess.json"),
        ("preprocess/preprocess.safetensors", b"", "preprocess.safetensors")]):
        folder = copy_of(trained, tmp_path/str(n))
        (folder/name).write_bytes(content)
        refused(capsys, says, "recommend", folder, *ask)
    for n, name in enumerate(("model/model.json", "model/model.safetensors", "preprocess/preprocess.json",
                              "preprocess/preprocess.safetensors")):
        folder = copy_of(trained, tmp_path/f"gone{n}")
        (folder/name).unlink()
        refused(capsys, "does not exist", "recommend", folder, *ask)
        folder = copy_of(trained, tmp_path/f"cut{n}")
        (folder/name).write_bytes((trained/name).read_bytes()[:-20])
        refused(capsys, Path(name).name, "recommend", folder, *ask)


@pytest.mark.wrong(
    "… is damaged or was edited: it does not match its checksum; copy it again, or save it again with …",
    area="files",
    cause="A byte of run.json changed, or somebody edited it.", remedy="Put a copy back, or train again.")
@pytest.mark.parametrize("change",
    [lambda r: r["split"].pop("test_from"), lambda r: r["split"].update(by="moon"),
     lambda r: r.update(price=3), lambda r: r.pop("checksum")])
def test_an_edited_run_is_refused(change, trained, place, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    run = json.loads((folder/"run.json").read_text())
    change(run)
    (folder/"run.json").write_text(json.dumps(run))
    refused(capsys,
            "run.json is damaged or was edited: it does not match its checksum; copy it again, or save it "
            "again with "
            "multiscene-rec train", "evaluate", folder, place/"log.csv")


@pytest.mark.wrong("no row of … is new to the model: give a newer log, or --used", area="the command",
                   cause="All rows of the log are older than the test rows of the training.",
                   remedy="Give a log that goes on after the training, or --used to score the rows of the "
                          "training.")
def test_a_log_without_a_new_row(trained, log, tmp_path, capsys):
    log.assign(when=log.when - 90*86400).to_csv(tmp_path/"old.csv", index=False)
    code, out, err = call(capsys, "evaluate", trained, tmp_path/"old.csv")
    assert code == 2 and "is new to the model: give a newer log, or --used" in err


def test_evaluate_a_log_with_other_columns(trained, log, tmp_path, capsys):
    log.rename(columns=dict(who="user_id")).to_csv(tmp_path/"other.csv", index=False)
    refused(capsys, "missing column 'who'", "evaluate", trained, tmp_path/"other.csv")


# ---------------------------------------------------------------- mishaps: processes of their own

def start(*args, before="", **popen):
    # a shell's background jobs ignore Ctrl-C
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import sys; from multiscene_rec.cli import main\n{handler}\n{before}\nsys.exit(main())"
    env = dict(os.environ, OMP_NUM_THREADS="1", MPLBACKEND="Agg")
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **popen)


def begun(out): return storage.work_folder(out)/"checkpoint"/"checkpoint.json"


def until(condition, child, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None and time.monotonic() < end, child.communicate()
        time.sleep(.02)


@pytest.mark.wrong(
    "stopped; the last complete epoch is kept beside …: the same command with --resume continues from it",
    area="the command", cause="Ctrl-C was pressed.",
    remedy="Repeat the command with --resume; it ends in the same weights as if it had never been stopped.")
@pytest.mark.wrong("a run for … was stopped: --resume continues it, --overwrite starts again",
                   area="the command", cause="An earlier run into this folder did not end.",
                   remedy="Say which of the two you want.")
@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_keeps_and_names_the_checkpoint_and_resume_ends_in_the_same_weights(place, tmp_path, capsys):
    plan = ("train", place/"log.csv", "--schema", place/"schema.json", "--epochs", 20, "--patience", 20,
            "--batch-size", 64, "--device", "cpu")
    child = start(*plan, "--out", tmp_path/"m")
    until(begun(tmp_path/"m").exists, child)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in err and len(err.splitlines()) == 1
    assert (f"stopped; the last complete epoch is kept beside {tmp_path/'m'}: the same command with "
            "--resume continues from it" in err)
    assert not (tmp_path/"m").exists()
    refused(capsys,
            f"a run for {tmp_path/'m'} was stopped: --resume continues it, --overwrite starts again",
            *plan, "--out", tmp_path/"m")
    (tmp_path/"m").mkdir()
    refused(capsys, "was stopped: finish it with train --resume", "recommend", tmp_path/"m", "--user", 1,
            "--scenario", "home")
    assert call(capsys, *plan, "--out", tmp_path/"m", "--resume")[0] == 0
    assert call(capsys, *plan, "--out", tmp_path/"whole")[0] == 0
    assert (tmp_path/"m"/"model"/"model.safetensors").read_bytes() == (
        tmp_path/"whole"/"model"/"model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_while_overwriting_leaves_the_old_model_and_can_be_resumed(trained, place, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    before = (folder/"model"/"model.safetensors").read_bytes()
    plan = ("train", place/"log.csv", "--schema", place/"schema.json", "--out", folder, "--epochs", 20,
            "--patience", 20, "--batch-size", 64, "--device", "cpu")
    child = start(*plan, "--overwrite")
    until(begun(folder).exists, child)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60) and child.returncode == 130
    assert (folder/"model"/"model.safetensors").read_bytes() == before
    assert call(capsys, "recommend", folder, "--user", 1, "--scenario", "home")[0] == 0
    refused(capsys, "was stopped: --resume continues it", *plan)
    assert call(capsys, *plan, "--resume")[0] == 0
    assert (folder/"model"/"model.safetensors").read_bytes() != before and not storage.work_folder(
        folder).exists()


@pytest.mark.wrong("another run is writing into …: wait until it ends, or name another folder", area="files",
                   cause="Two trainings were given the same folder.",
                   remedy="Wait for the first, or give the second another --out.")
def test_two_runs_one_folder(place, tmp_path, capsys):
    plan = ("train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", "--device",
            "cpu")
    child = start(*plan, "--epochs", 500, "--patience", 500)
    try:
        until((storage.work_folder(tmp_path/"m")/".lock").exists, child)
        refused(capsys, "another run is writing into", *plan)
    finally:
        child.kill()
        child.communicate()


_FULL = ("import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
         "resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))")


@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
@pytest.mark.parametrize("limit", [4096, 60_000])
def test_a_disk_that_is_full(limit, place, tmp_path):
    "A limit on the size of files stands for a full disk: the write in the middle of a file fails."
    child = start("train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *QUICK,
                  before=_FULL.format(limit))
    _, err = child.communicate(timeout=120)
    assert child.returncode == 2 and "free space or name another folder" in err and str(
        tmp_path) in err and "Traceback" not in err and len(err.splitlines()) == 1, err
    assert not (tmp_path/"m").exists() and not list(tmp_path.rglob("*.part"))


def test_a_full_disk_leaves_an_older_model_as_it_was(trained, place, tmp_path, monkeypatch, capsys):
    folder = copy_of(trained, tmp_path/"m")
    before = (folder/"model"/"model.safetensors").read_bytes()
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    refused(capsys, "No space left on device", "train", place/"log.csv", "--schema", place/"schema.json",
            "--out", folder, "--overwrite", *QUICK)
    assert (folder/"model"/"model.safetensors").read_bytes() == before


@pytest.mark.parametrize("out", ["file/below", "file"])
def test_a_folder_that_cannot_be_written(out, place, tmp_path, capsys):
    (tmp_path/"file").write_text("mine")
    refused(capsys, "file", "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/out,
            *QUICK)
    assert (tmp_path/"file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0,
                    reason="needs permissions, which root does not heed")
def test_a_read_only_folder(place, tmp_path, capsys):
    (tmp_path/"m").mkdir(mode=0o555)
    refused(capsys, "Permission denied", "train", place/"log.csv", "--schema", place/"schema.json", "--out",
            tmp_path/"m", *QUICK)


# ---------------------------------------------------------------- what is too good to be true

@pytest.fixture(scope="module")
def small(): return make_log(900, 40).drop_duplicates(["who", "what", "where", "when"]).reset_index(drop=True)


def train_args(folder, frame, out="m", schema=SCHEMA, **options):
    "Words of a short training on a frame; options by their names, True for a flag."
    frame.to_csv(folder/"log.csv", index=False)
    (folder/"schema.json").write_text(json.dumps(schema))
    words = ["train", folder/"log.csv", "--schema", folder/"schema.json", "--out", folder/out]
    for name, value in (dict(epochs=1, device="cpu") | options).items():
        for v in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", *([] if v is True else [v])]
    return words


LEAKS = {  # name: (a column that is known only after the click, whether it is a quantity)
    "seconds on the page": (lambda f, rng: np.where(f.liked == 1, rng.gamma(2, 20, len(f)), 0), True),
    "copy": (lambda f, rng: f.liked, True), "opposite": (lambda f, rng: 1 - f.liked, True),
    "copy as a word": (lambda f, rng: f.liked.map({0: "no", 1: "yes"}), False),
    "row number": (lambda f, rng: np.where(f.liked == 1, 10**6, 0) + np.arange(len(f)), True),
    "empty unless clicked": (lambda f, rng: pd.Series(rng.random(len(f))).where(f.liked == 1).to_numpy(),
                             True),
}


@pytest.mark.wrong(
    "WARNING: column … alone tells clicks from the rest (AUC … on the training rows). Is it known before the "
    "click? If not, leave it out with --drop …",
                   area="the command",
    cause="A feature knows the answer: it is written down after the click, such as the time spent on a page.",
                   remedy="Leave it out with --drop. If it is known before the click all the same, nothing "
                          "needs to be done.")
@pytest.mark.parametrize("what", LEAKS)
def test_a_column_that_knows_the_answer_is_named(what, small, tmp_path, capsys):
    make, numeric = LEAKS[what]
    leaky = small.assign(after=make(small, np.random.default_rng(0)))
    schema = SCHEMA | (dict(numeric=["paid", "after"]) if numeric
                       else dict(categorical=["category", "after"]))
    code, out, err = call(capsys, *train_args(tmp_path, leaky, schema=schema))
    assert code == 0, err
    warned = [line for line in out.splitlines() if line.startswith("WARNING")]
    line = (r"WARNING: column 'after' alone tells clicks from the rest \(AUC (1\.000|0\.9\d\d) on the "
            r"training rows\)\. Is it known before the click\? If not, leave it out with --drop after")
    assert len(warned) == 1 and re.fullmatch(line, warned[0]), out
    assert warned[0] in (tmp_path/"m"/"model_card.md").read_text() and "after" in json.loads(
        (tmp_path/"m"/"run.json").read_text())["suspects"]
    code, out, _ = call(capsys, *train_args(tmp_path, leaky, schema=schema, drop="after", overwrite=True))
    assert code == 0 and "WARNING" not in out and "after" not in out.split("Features: ")[1].splitlines()[0]


def test_honest_columns_are_not_named(trained, tmp_path):
    assert "WARNING" not in (trained/"model_card.md").read_text() and json.loads(
        (trained/"run.json").read_text())["suspects"] == {}


def test_a_leak_in_the_items_and_one_of_the_second_answer(small, tmp_path, capsys):
    two = small.assign(bought=(small.index % 3 == 0)*1, what=small.what*2 + small.liked)
    two["paid"] = two.bought*5. + .1
    pd.DataFrame(dict(what=two.what.unique())).assign(
        odd=lambda f: (f.what % 2).map({0: "even", 1: "odd"})).to_csv(tmp_path/"items.csv", index=False)
    schema = SCHEMA | dict(label=["liked", "bought"], categorical=["category", "odd"], item_columns=["odd"])
    code, out, err = call(capsys, *train_args(tmp_path, two, schema=schema, items=tmp_path/"items.csv"))
    assert code == 0 and "column 'odd' alone" in out and "column 'paid' alone" in out, (out, err)


@pytest.mark.wrong(
    "WARNING: an AUC of … on the test rows is too good for clicks. Look for a feature that is known only "
    "after the click", area="the command",
                   cause="No single column knows the answer, but several together do.",
    remedy="Ask of each feature whether it is known before the click; leave out with --drop those that are "
           "not.")
def test_two_columns_that_know_the_answer_together(tmp_path):
    table = pd.DataFrame(dict(auc=[.99, .999]), index=["home", "all"])
    assert runs._warnings({},
        table) == [
            "WARNING: an AUC of 0.999 on the test rows is too good for clicks. Look for a feature that is "
            "known only after the click"]
    assert runs._warnings({}, table*.9) == [] and len(runs._warnings(dict(after=.99), table)) == 1


@pytest.mark.parametrize("numeric", [True, False])
def test_column_auc_by_plain_loops(numeric):
    rng = np.random.default_rng(4)
    y, x = (rng.random(300) < .3).astype(float), rng.integers(0, 6, 300).astype(float)
    if numeric:
        x[rng.random(300) < .1] = np.nan
        score = np.where(np.isnan(x), -1, x)
    else:
        fold = np.random.default_rng(0).integers(5, size=300)
        score = []
        for i in range(300):
            others = (x == x[i]) & (fold != fold[i])
            score.append((y[others].sum() + 5*y.mean())/(others.sum() + 5))
        score = np.array(score)
    wins = [(a > b) + .5*(a == b) for a in score[y == 1] for b in score[y == 0]]
    value = pd.Series(x if numeric else [f"w{int(v)}" for v in x])
    np.testing.assert_allclose(runs.column_auc(value, y, numeric), max(np.mean(wins), 1 - np.mean(wins)),
                               rtol=1e-12)


def test_a_word_for_each_row_tells_nothing():
    y = np.random.default_rng(1).random(5000) < .3
    assert runs.column_auc(pd.Series(np.arange(5000).astype(str)), y, False) < .52
    assert runs.column_auc(pd.Series(["same"]*5000), y, False) < .52 and runs.column_auc(pd.Series([3.]*5000),
        y, True) == .5


# ---------------------------------------------------------------- impressions and clicks, times without a
# date

def test_clicks_in_rows_of_their_own_are_merged(small, tmp_path, capsys):
    shown = small.assign(liked=0, when=small.when.min() + np.arange(len(small))*60)
    clicks = shown[small.liked == 1].assign(liked=1, when=lambda f: f.when + 3)
    both = pd.concat([shown, clicks]).sample(frac=1, random_state=0)
    code, out, err = call(capsys, *train_args(tmp_path, both))
    assert code == 0 and re.search(rf"click row +{len(clicks)} merged", out), (out, err)
    assert json.loads((tmp_path/"m"/"run.json").read_text())["rows"]["kept"] == len(shown)
    np.testing.assert_allclose(float(re.search(r"^all +\d+ +\S+ +(\S+)", out, flags=re.M)[1]),
                               small.liked.mean(), atol=.0006)
    late = pd.concat([shown, clicks.assign(when=clicks.when + 17)])
    code, out, _ = call(capsys, *train_args(tmp_path, late, overwrite=True, window=30))
    assert code == 0 and re.search(rf"click row +{len(clicks)} merged", out), out
    again = json.loads(call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv", "--json")[1])
    assert again[-1]["rows"] == json.loads((tmp_path/"m"/"run.json").read_text())["rows"][
        "test"], "another window was used"


@pytest.mark.parametrize("times, options", [
    ("number", dict(time_unit="none")), ("number", dict(any_time=True)),
    ("days", dict(time_unit="days", any_time=True)), ("ms", dict(time_unit="ms"))])
def test_times_of_other_kinds(times, options, small, tmp_path, capsys):
    plain = small.sort_values("when", kind="stable").reset_index(drop=True)
    made = dict(number=np.arange(len(plain))*60, days=np.arange(len(plain))*.25, ms=plain.when*1000)[times]
    plain["when"] = made
    code, out, err = call(capsys, *train_args(tmp_path, plain, **options))
    assert code == 0, err
    assert json.loads((tmp_path/"m"/"run.json").read_text())["rows"]["kept"] > .9*len(plain)
    code, out, err = call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv", "--json")
    assert code == 0 and json.loads(out)[-1]["rows"] == json.loads((tmp_path/"m"/"metrics.json").read_text())[
        -1]["rows"], err
    assert call(capsys, "recommend", tmp_path/"m", "--user", int(plain.who[0]), "--scenario", "home", "-k",
                2)[0] == 0


def test_times_outside_the_range_say_what_is_allowed_and_how_to_say_otherwise(small, tmp_path, capsys):
    plain = small.assign(when=np.arange(len(small)))
    code, _, err = call(capsys, *train_args(tmp_path, plain))
    assert code == 2 and len(
        err.splitlines()) == 1 and "1990" in err and "--any-time" in err and "--time-unit" in err, err


# ---------------------------------------------------------------- nothing is lost

def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.mark.parametrize("name",
                         ["$10_$20", "$$", "$\\frac{", "a^b_c", "ein ganz langer Name mit Ümlauten und 中文"])
def test_names_are_never_parsed_as_mathematics(name, small, tmp_path, capsys):
    code, _, err = call(capsys,
                        *train_args(tmp_path, small.assign(where=small["where"].replace("home", name))))
    assert code == 0 and err == "" and (tmp_path/"m"/"attention.png").is_file(), err
    assert call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario", name, "-k", 2)[0] == 0


def test_a_number_that_overflows_is_refused_before_training(trained, small, tmp_path, capsys):
    copy_of(trained, tmp_path/"m")
    before = bytes_of(tmp_path/"m")
    huge = small.copy()
    huge["paid"] = huge.paid.astype(float)
    huge.loc[7, "paid"] = 1e308
    code, out, err = call(capsys, *train_args(tmp_path, huge, overwrite=True))
    assert code == 2 and len(
        err.splitlines()) == 1 and "'paid'" in err and "1e+308" in err and "epoch" not in out, err
    assert bytes_of(tmp_path/"m") == before and not storage.work_folder(tmp_path/"m").exists()


@pytest.mark.wrong(
    "…; the training is not lost: … is as it was before, and --resume writes the results again",
    area="the command",
                   cause="The model is trained, and something failed while the results were written, such as "
                         "a full disk.",
    remedy="Mend what the line names, then repeat the command with --resume.")
@pytest.mark.parametrize("where", ["picture", "save_log", "write_record", "write_whole"])
def test_a_failure_after_training_leaves_the_old_model_and_resume_writes_again(where, trained, small,
    tmp_path, capsys, monkeypatch):
    copy_of(trained, tmp_path/"m")
    before = bytes_of(tmp_path/"m")
    args = train_args(tmp_path, small)
    with monkeypatch.context() as patch:
        def full(*_, **__): raise OSError(errno.ENOSPC, "No space left on device")
        patch.setattr(runs, where, full)
        code, _, err = call(capsys, *args, "--overwrite")
    says = (f"the training is not lost: {tmp_path/'m'} is as it was before, and --resume writes the results "
            "again")
    assert code == 2 and says in err, err
    assert bytes_of(tmp_path/"m") == before
    code, out, err = call(capsys, *args, "--resume")
    assert code == 0 and "epoch 1" in out and bytes_of(tmp_path/"m") != before and not storage.work_folder(
        tmp_path/"m").exists(), err
    assert call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario", "home")[0] == 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0,
                    reason="needs the right to mount a file system of a few megabytes")
def test_a_disk_that_is_full_at_any_size_leaves_the_old_model(trained, small, tmp_path, capsys):
    disk = tmp_path/"disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk],
                      capture_output=True).returncode:
        pytest.skip("cannot mount here")
    try:
        copy_of(trained, disk/"m")
        before, args = bytes_of(disk/"m"), train_args(tmp_path, small, overwrite=True)
        args[args.index("--out") + 1] = disk/"m"
        for left in (0, 100_000, 200_000, 300_000, 450_000):
            free = os.statvfs(disk)
            (disk/"filler").write_bytes(b"x"*max(0, free.f_bavail*free.f_bsize - left))
            code, _, err = call(capsys, *args)
            assert code == 0 or len(err.splitlines()) == 1 and "No space left" in err and bytes_of(
                disk/"m") == before, err
            assert call(capsys, "recommend", disk/"m", "--user", 1, "--scenario", "home", "-k", 1)[0] == 0
            (disk/"filler").unlink()
            if not code: break
    finally: subprocess.run(["umount", disk])


@pytest.mark.wrong("… holds …, which no run wrote: name a new or an empty folder", area="the command",
                   cause="The folder given as --out holds files of yours, which the result would replace.",
                   remedy="Give another --out. What is in the folder is untouched.")
def test_a_folder_of_somebody_else_is_left_alone(small, trained, tmp_path, capsys):
    args = train_args(tmp_path, small, out="thesis")
    for name in ("checkpoint/weights.pt", "film.part", "metrics.csv"):
        (tmp_path/"thesis"/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/"thesis"/name).write_text("mine")
    before = bytes_of(tmp_path/"thesis")
    for more in ((), ("--overwrite",)):
        refused(capsys,
                f"{tmp_path/'thesis'} holds 'checkpoint', which no run wrote: name a new or an empty "
                "folder", *args, *more)
    refused(capsys, "which no run wrote", *args, "--resume")
    assert bytes_of(tmp_path/"thesis") == before
    copy_of(trained, tmp_path/"m")
    (tmp_path/"m"/"notes.txt").write_text("mine") # a run, and a file of one's own in it
    refused(capsys, "holds 'notes.txt', which no run wrote", *train_args(tmp_path, small), "--overwrite")


@pytest.mark.wrong("… holds …, which no demo wrote: name a new folder with --out", area="the command",
                   cause="The demo would replace a folder that it did not write, such as a trained model.",
                   remedy="Give another --out.")
def test_the_demo_does_not_replace_a_trained_model(trained, tmp_path, capsys):
    copy_of(trained, tmp_path/"m")
    before = bytes_of(tmp_path/"m")
    refused(capsys, "which no demo wrote: name a new folder with --out", "demo", "--quick", "--out",
            tmp_path/"m")
    assert bytes_of(tmp_path/"m") == before


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_out_may_be_a_link(small, tmp_path, capsys):
    (tmp_path/"scratch").mkdir()
    (tmp_path/"m").symlink_to(tmp_path/"scratch")
    args = train_args(tmp_path, small)
    for more in ((), ("--overwrite", "--seed", "2")):
        code, _, err = call(capsys, *args, *more)
        assert code == 0 and (tmp_path/"m").is_symlink() and (tmp_path/"scratch"/"run.json").is_file(), err
    refused(capsys, "holds a trained model", *args)
    assert call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario", "home", "-k", 1)[0] == 0


# ---------------------------------------------------------------- parts that belong together

def stopped(capsys, monkeypatch, args):
    "A run that fails when all is trained, so that --resume has something to go on from."
    with monkeypatch.context() as patch:
        def fail(*_, **__): raise OSError("stopped by the test")
        patch.setattr(runs, "write_record", fail)
        code, _, err = call(capsys, *args)
    assert code == 2 and "stopped by the test" in err


@pytest.mark.wrong("… belongs to another run: …", area="the command",
                   cause="--resume was given another log, or other options, than the run that was stopped.",
                   remedy="Repeat the very command that was stopped with --resume; --overwrite begins anew.")
@pytest.mark.parametrize("change", ["prices", "labels", "scenarios", "users", "fusion", "lr", "seed", "drop",
                                    "split"])
def test_resume_goes_on_with_the_same_run_alone(change, small, tmp_path, capsys, monkeypatch):
    args, rng = train_args(tmp_path, small, out="m"), np.random.default_rng(0)
    stopped(capsys, monkeypatch, args)
    other = dict(prices=dict(paid=small.paid*1.5), labels=dict(liked=rng.permutation(small.liked)),
                 users=dict(who=rng.permutation(small.who)),
                 scenarios={"where": small["where"].map(dict(home="search", search="home", cart="cart",
                     live="live"))}).get(change)
    more = dict(fusion=["--fusion", "mean"], lr=["--lr", "0.01"], seed=["--seed", "9"],
                drop=["--drop", "paid"], split=["--split", "user"]).get(change, [])
    if other: small.assign(**other).to_csv(tmp_path/"log.csv", index=False)
    code, _, err = call(capsys, *args, "--resume", *more)
    assert code == 2 and len(err.splitlines()) == 1 and "belongs to another run: " in err, err
    small.to_csv(tmp_path/"log.csv", index=False)
    assert call(capsys, *args, "--resume")[0] == 0


@pytest.mark.wrong(
    "… does not belong to this run: another run wrote it; put the run's own file back, or train again",
    area="files",
                   cause="A part of one run's folder was copied into another's.",
    remedy="Copy whole folders, or put the part of the same run back.")
@pytest.mark.parametrize("part", ["model", "preprocess", "log", "run.json"])
def test_parts_of_two_runs_do_not_go_together(part, trained, place, tmp_path, capsys):
    "The other run has the same columns, shapes and words: only its last row differs."
    import shutil
    other = pd.read_csv(place/"log.csv")
    other.loc[[0, 50, 100], "paid"] *= 1.01
    code, _, err = call(capsys, *train_args(tmp_path, other, out="o"))
    assert code == 0, err
    folder = copy_of(trained, tmp_path/"m")
    if part == "run.json": shutil.copy(tmp_path/"o"/part, folder/part)
    else:
        shutil.rmtree(folder/part)
        shutil.copytree(tmp_path/"o"/part, folder/part)
    for words in (("recommend", folder, "--user", 1, "--scenario", "home"),
                  ("evaluate", folder, place/"log.csv")):
        refused(capsys,
                "does not belong to this run: another run wrote it; put the run's own file back, or "
                "train again", *words)


@pytest.mark.parametrize("change", [lambda r: r["split"].pop("test_from"), lambda r: r.update(split=[1]),
    lambda r: r.update(rates={}), lambda r: r.update(belongs=None), lambda r: r.pop("window"),
                                    lambda r: r.update(price=3), lambda r: r["split"].update(by="moon"),
                                    lambda r: r.update(rates=dict(liked=[.5]))])
def test_a_run_that_was_edited_with_a_checksum_of_its_own(change, trained, place, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    run = json.loads((folder/"run.json").read_text())
    change(run)
    (folder/"run.json").write_text(json.dumps(run | dict(checksum=storage.checksum(run))))
    for words in (("evaluate", folder, place/"log.csv"), ("recommend", folder, "--user", 1, "--scenario",
                                                          "home")):
        refused(capsys, "run.json is damaged", *words)


@pytest.mark.wrong("… was shipped without its log: give --log FILE with what has happened so far",
                   area="the command",
                   cause="The folder holds model and preprocessor, but not the rows of the training, so "
                         "nobody has a history.", remedy="Give a log with the same columns as --log.")
def test_a_folder_without_its_log(trained, place, log, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    import shutil
    shutil.rmtree(folder/"log")
    ask = ("--user", int(log.who.value_counts().index[0]), "--scenario", "home", "--json")
    refused(capsys, "was shipped without its log: give --log FILE with what has happened so far", "recommend",
            folder, *ask)
    assert call(capsys, "recommend", folder, *ask, "--log", place/"log.csv")[1] == call(capsys, "recommend",
        trained, *ask)[1]
    assert call(capsys, "evaluate", folder, place/"log.csv", "--json")[1] == call(capsys, "evaluate", trained,
        place/"log.csv", "--json")[1]


# ---------------------------------------------------------------- ids that are written otherwise, and tables
# that know only some

@pytest.mark.wrong(
    "…: column …, row … below the header: …: the training ids are whole numbers, such as …: write "
    "them the same way", area="the command",
                   cause="The newer file has text where the log of the training had numbers, such as 007 or "
                         "u7.", remedy="Write the ids as in the log of the training.")
def test_a_newer_log_with_ids_of_another_kind(trained, log, tmp_path, capsys):
    later = log.assign(when=log.when + 90*86400)
    for column, spoil in (("who", lambda x: x.map("{:05d}".format)), ("who", lambda x: "u" + x.astype(str)),
                          ("what", lambda x: "i" + x.astype(str))):
        later.assign(**{column: spoil(later[column])}).to_csv(tmp_path/"newer.csv", index=False)
        says = (f"newer.csv: column {column!r}, row 1 below the header: {spoil(later[column]).iloc[0]!r}: "
                "the "
                "training ids are whole numbers, such as")
        refused(capsys, says, "evaluate", trained, tmp_path/"newer.csv")
        refused(capsys, says, "recommend", trained, "--user", 1, "--scenario", "home", "--log",
                tmp_path/"newer.csv")


@pytest.mark.wrong(
    "no … in column … of … is known to the model: is the id written as in the training log (…; here …)?",
    area="the command",
                   cause="All ids of the newer file are new: another shop, or ids that are written in "
                         "another way.", remedy="Compare the ids that the line shows.")
def test_a_newer_log_that_knows_nobody(trained, log, tmp_path, capsys):
    log.assign(who=log.who + 10**6, when=log.when + 90*86400).to_csv(tmp_path/"newer.csv", index=False)
    code, _, err = call(capsys, "evaluate", trained, tmp_path/"newer.csv", "--json")
    assert code == 0 and re.search(
        r"no user in column 'who' of .*newer.csv is known to the model: is the id written as in the training "
        r"log \(\d+, \d+; here 10", err), err


def test_text_ids_that_look_like_numbers_in_a_newer_log(small, tmp_path, capsys):
    text = small.assign(who=small.who.astype(str).where(small.who > 3, "u" + small.who.astype(str)))
    assert call(capsys, *train_args(tmp_path, text))[0] == 0
    user = text.who[text.who.str.isdigit()].value_counts().index[0]
    seen = json.loads(call(capsys, "recommend", tmp_path/"m", "--user", user, "--scenario", "home", "-k", 1,
                           "--json")[1])[0]["what"]
    pd.DataFrame([dict(who=user, what=seen, where="home", when=text.when.max() + 60, liked=1, paid=3.,
                       category="tea")]).to_csv(tmp_path/"news.csv", index=False)
    code, out, err = call(capsys, "recommend", tmp_path/"m", "--user", user, "--scenario", "home", "-k", 60,
                          "--json", "--log", tmp_path/"news.csv")
    assert code == 0 and err == "" and seen not in [row["what"] for row in json.loads(out)]


@pytest.mark.wrong("… of … ids in column … are not in the --items file: they can never be recommended",
                   area="the command", cause="The log has items that the file does not describe.",
                   remedy="Add them to the file if they should be in lists.")
@pytest.mark.wrong(
    "… of … ids in column … are not in the --users file: they count as unknown in every column of that "
    "file", area="the command", cause="The log has users that the file does not describe.",
    remedy="Add them to the file, if more is known.")
@pytest.mark.wrong("--items: …: no id in column … occurs in the log; the log has …, the file …",
                   area="the command",
                   cause="The ids of the file are written otherwise than those of the log.",
                   remedy="Write them in the same way.")
@pytest.mark.wrong("--items: …: column … appears twice in the header; rename one of the two",
                   area="the command", cause="Two columns of the file have the same name.",
                   remedy="Rename one of them.")
@pytest.mark.wrong(
    "in … of … rows column … of the log differs from the --items file: training reads the "
    "log, lists read the file", area="the command",
                   cause="Log and file of items contradict each other, perhaps because an item has changed.",
    remedy="Nothing needs to be done if the file is the newer one.")
def test_tables_that_know_some_and_tables_that_know_none(small, tmp_path, capsys):
    items = small[["what", "category"]].drop_duplicates("what")
    users = pd.DataFrame(dict(who=small.who.unique())).assign(city=lambda f: np.where(f.who % 2, "Rome",
        "Oslo"))
    items[::2].to_csv(tmp_path/"items.csv", index=False)
    users[::2].to_csv(tmp_path/"users.csv", index=False)
    schema = SCHEMA | dict(categorical=["category", "city"])
    args = train_args(tmp_path, small, schema=schema)
    code, out, err = call(capsys, *args, "--items", tmp_path/"items.csv", "--users", tmp_path/"users.csv")
    lost = [len(f) - len(f[::2]) for f in (items, users)]
    for line in (
        f"{lost[0]} of {len(items)} ids in column 'what' are not in the --items file: they can never be "
        "recommended",
                 f"{lost[1]} of {len(users)} ids in column 'who' are not in the --users file: they count "
                 "as unknown in every column of that file"):
        assert code == 0 and line in out and line in (tmp_path/"m"/"model_card.md").read_text(), (out, err)
    args = [*args, "--overwrite", "--items", tmp_path/"items.csv"]
    def attempt(frame, says, **how):
        frame.to_csv(tmp_path/"items.csv", index=False, **how)
        refused(capsys, says, *args)
    attempt(items.assign(what=[1.5, *items.what[1:]]),
            "column 'what', row 1 below the header has no id like those of the log")
    attempt(items.assign(what=items.what.map("{:04d}".format)),
            "column 'what', row 1 below the header has no id like those of the log")
    attempt(items.assign(what=items.what + 10**6), "no id in column 'what' occurs in the log; the log has")
    attempt(items.assign(more=1).set_axis(["what", "category", "category"], axis=1),
            "column 'category' appears twice in the header; rename one of the two")
    attempt(items.set_axis(["what", "what"], axis=1), "column 'what' appears twice in the header")
    items.assign(category="other").to_csv(tmp_path/"items.csv", index=False)
    code, out, _ = call(capsys, *args[:-3], "--overwrite", "--users", tmp_path/"users.csv", "--items",
                        tmp_path/"items.csv")
    n = json.loads((tmp_path/"m"/"run.json").read_text())["rows"]["kept"]
    assert (code == 0
            and f"in {n} of {n} rows column 'category' of the log differs from the --items file: "
                "training reads the log, lists read the file" in out)


def test_a_newer_file_of_users(small, tmp_path, capsys):
    users = pd.DataFrame(dict(who=small.who.unique())).assign(city=lambda f: np.where(f.who % 2, "Rome",
        "Oslo"))
    users.to_csv(tmp_path/"users.csv", index=False)
    args = train_args(tmp_path, small, schema=SCHEMA | dict(categorical=["category", "city"], numeric=[]),
                      users=tmp_path/"users.csv", epochs=3)
    assert call(capsys, *args)[0] == 0
    ask = ("recommend", tmp_path/"m", "--user", int(users.who[0]), "--scenario", "home", "--json")
    before = call(capsys, *ask)[1]
    assert call(capsys, *ask, "--users", tmp_path/"users.csv")[1] == before
    users.assign(city=users.city.map(dict(Rome="Oslo", Oslo="Rome"))).to_csv(tmp_path/"moved.csv",
        index=False)
    code, out, err = call(capsys, *ask, "--users", tmp_path/"moved.csv")
    assert code == 0 and out != before, err
    code, out, err = call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv", "--users",
                          tmp_path/"moved.csv", "--json")
    assert code == 0 and out != call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv", "--json")[1], err
    refused(capsys, "--users: no such file", *ask, "--users", tmp_path/"none.csv")


@pytest.mark.wrong(
    "column … belongs to the moment of the list: give its value, --context …=VALUE; if it describes users, "
    "train with --users", area="lists",
                   cause="A feature is known only at the moment of the list, such as the weather.",
    remedy="Say --context with its value.")
def test_a_feature_of_the_moment(small, tmp_path, capsys):
    pd.DataFrame(dict(who=small.who.unique())).assign(city="Rome").to_csv(tmp_path/"users.csv", index=False)
    weather = small.assign(weather=np.where(small.liked ^ (small.index % 3 == 0), "rain", "sun"))
    args = train_args(tmp_path, weather, schema=SCHEMA | dict(categorical=["category", "city", "weather"],
        numeric=[]), users=tmp_path/"users.csv", epochs=2)
    code, _, err = call(capsys, *args)
    assert code == 0, err
    ask = ("recommend", tmp_path/"m", "--user", int(small.who[0]), "--scenario", "home", "--json")
    refused(capsys,
            "column 'weather' belongs to the moment of the list: give its value, --context weather=VALUE; if "
            "it describes users, train with --users", *ask)
    code, rain, err = call(capsys, *ask, "--context", "weather=rain")
    assert code == 0 and rain != call(capsys, *ask, "--context", "weather=sun")[1], err
    refused(capsys, "--context weather: write key=value", *ask, "--context", "weather")
    refused(capsys, "'category' cannot be set for all items", *ask, "--context", "category=tea")


def test_side_files_with_semicolons_and_packed_ones(small, tmp_path, capsys):
    items = small[["what", "category"]].drop_duplicates("what").assign(weight=lambda f: f.what + .5)
    items.to_csv(tmp_path/"items.csv", index=False, sep=";", decimal=",")
    items.to_csv(tmp_path/"items.csv.gz", index=False)
    schema = SCHEMA | dict(numeric=["paid", "weight"], item_columns=["category", "weight"])
    found = []
    for name in ("items.csv", "items.csv.gz"):
        code, _, err = call(capsys, *train_args(tmp_path, small, schema=schema, items=tmp_path/name,
                                                overwrite=True))
        assert code == 0, err
        found.append((tmp_path/"m"/"metrics.csv").read_text())
    assert found[0] == found[1]


# ---------------------------------------------------------------- many scenarios, strange names

@pytest.mark.wrong("column … names … scenarios (…): is it the right column? At most … are allowed",
                   area="the command", cause="The column of the scenario holds a session, a page or a time.",
                   remedy="Name another column with --scenario, or group its values.")
def test_a_session_is_no_scenario(small, tmp_path, capsys):
    many = pd.concat([small]*4, ignore_index=True).assign(where=lambda f: "session " + f.index.astype(str),
                                                          when=lambda f: f.when + f.index)
    code, _, err = call(capsys, *train_args(tmp_path, many))
    assert code == 2 and len(err) < 300 and re.search(
        r"column 'where' names 3,\d\d\d scenarios \('session \d+', .* more\): is it the right column\? At "
        r"most 300 are allowed", err), err


def test_many_scenarios_get_no_picture_of_all_pairs(small, tmp_path, capsys):
    many = small.assign(where=lambda f: "page " + (f.index % 60).astype(str))
    start_ = time.monotonic()
    code, _, err = call(capsys, *train_args(tmp_path, many))
    assert code == 0 and not (tmp_path/"m"/"attention.png").exists() and (
        tmp_path/"m"/"curve.png").exists() and time.monotonic() - start_ < 30, err


@pytest.mark.skipif(os.name == "nt", reason="a terminal that is not UTF-8 is set by a variable here")
def test_a_terminal_that_knows_no_chinese(small, tmp_path):
    args = train_args(tmp_path, small.assign(where=small["where"].replace("home", "首页")))
    code = "import sys; from multiscene_rec.cli import main; sys.exit(main())"
    env = dict(os.environ, OMP_NUM_THREADS="1", MPLBACKEND="Agg", PYTHONIOENCODING="cp1252")
    done = subprocess.run([sys.executable, "-c", code, *map(str, args)], env=env, capture_output=True,
                          timeout=120)
    assert done.returncode == 0 and b"\\u9996\\u9875" in done.stdout, done.stderr
    assert "首页" in (tmp_path/"m"/"model_card.md").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_a_path_that_is_no_text(small, tmp_path, capsys):
    odd = tmp_path/os.fsdecode(b"caf\xe9.csv")
    args = train_args(tmp_path, small)
    small.to_csv(odd, index=False)
    args[1], args[args.index("--out") + 1] = odd, tmp_path/os.fsdecode(b"mod\xe8le")
    with open(tmp_path/"output", "w", errors="backslashreplace") as f, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", f)
        code = cli.main([str(a) for a in args])
    assert code == 0, capsys.readouterr().err
    assert "caf\\udce9.csv" in (Path(args[args.index("--out") + 1])/"model_card.md").read_text()


def test_control_characters_reach_no_terminal(small, tmp_path, capsys):
    name, late = "ho\x1b]0;mine\x07me", "\x9b31m"
    odd = small.assign(where=small["where"].replace("home", name)).sort_values("when").reset_index(drop=True)
    odd.loc[len(odd) - 20:, "where"] = late
    code, out, err = call(capsys, *train_args(tmp_path, odd))
    assert code == 0 and "\\x1b]0;mine\\x07" in out, err
    texts = [out, err, (tmp_path/"m"/"model_card.md").read_text()]
    texts += call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv")[1:]
    texts += call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv", "--json")[1:]
    texts += call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario", late)[1:]
    texts += call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario", name)[1:]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "".join(texts))
    assert name in {row["scenario"] for row in json.loads((tmp_path/"m"/"metrics.json").read_text())}


@pytest.mark.parametrize("name, says",
    [("-", "'-' is not a file"), ("https://example.org/log.csv", "is a URL"),
     ("~/no such log.csv", str(Path.home())), ("--json", "--json")])
def test_names_that_are_no_files(name, says, tmp_path, capsys):
    refused(capsys, says, "train", name, "--out", tmp_path/"m")


def test_a_scenario_that_begins_with_dashes(small, tmp_path, capsys):
    assert call(capsys, *train_args(tmp_path, small.assign(where=small["where"].replace("home", "--json"))))[
        0] == 0
    code, out, err = call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario=--json", "-k", 2)
    assert code == 0 and len(out.splitlines()) == 3, err


@pytest.mark.wrong("user … has seen every item; add --seen to show them again", area="lists",
                   cause="The user has seen everything in the log's items.", remedy="Say --seen.")
def test_who_has_seen_all(small, tmp_path, capsys):
    user, items = int(small.who[0]), small.what.unique()
    all_ = pd.concat([small, small.drop_duplicates("what").assign(who=user)]).assign(
        when=lambda f: f.when.min() + np.arange(len(f))*60)
    assert call(capsys, *train_args(tmp_path, all_))[0] == 0
    code, _, err = call(capsys, "recommend", tmp_path/"m", "--user", user, "--scenario", "home")
    assert code == 2 and f"user {user} has seen every item; add --seen to show them again" in err, err
    assert len(json.loads(call(capsys, "recommend", tmp_path/"m", "--user", user, "--scenario", "home",
                               "--seen", "--json", "-k", 1000)[1])) == len(items)


# ---------------------------------------------------------------- several answers, other models, several
# processes

def test_a_log_that_does_not_fit_into_memory_is_one_line(small, tmp_path, capsys, monkeypatch):
    def huge(*_, **__): return np.empty((10**9, 10**9))
    monkeypatch.setattr(runs, "log_summary", huge)
    refused(capsys, "Unable to allocate", *train_args(tmp_path, small))


@pytest.mark.wrong("task … is unknown; the model predicts …", area="lists",
                   cause="The model does not predict this answer.",
                   remedy="Use one of the names in the message.")
def test_two_answers(small, tmp_path, capsys):
    two = small.assign(bought=small.liked*(small.index % 2))
    names = ("--user", "who", "--item", "what", "--scenario", "where", "--time", "when", "--label", "liked",
             "--label", "bought")
    two.to_csv(tmp_path/"log.csv", index=False)
    code, out, err = call(capsys, "train", tmp_path/"log.csv", *names, "--out", tmp_path/"m", "--epochs", 2)
    assert code == 0 and "task" in out, err
    metrics = json.loads((tmp_path/"m"/"metrics.json").read_text())
    assert [(row["task"], row["scenario"]) for row in metrics if row["scenario"] == "all"] == [
        ("liked", "all"), ("bought", "all")]
    assert "bought" in (tmp_path/"m"/"model_card.md").read_text()
    again = json.loads(call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv", "--json")[1])
    assert [row["log_loss"] for row in again] == pytest.approx([row["log_loss"] for row in metrics], rel=1e-5)
    ask = ("recommend", tmp_path/"m", "--user", 1, "--scenario", "home", "--json", "-k", 60, "--seen")
    first, liked, bought = (json.loads(call(capsys, *ask, *more)[1]) for more in ((), ("--task", "liked"),
        ("--task", "bought")))
    assert first == liked and sorted(r["score"] for r in bought) != sorted(r["score"] for r in liked)
    code, _, err = call(capsys, *ask, "--task", "stolen")
    assert code == 2 and "task 'stolen' is unknown; the model predicts liked, bought" in err, err


MINE = '''
from torch import nn
from multiscene_rec.extractor import FieldEmbedding
from multiscene_rec.model import Recommender

class {0}(Recommender, name="{1}"):
    def __init__(self, spec, scale=1.0):
        super().__init__(spec)
        self.scale, self.word = scale, FieldEmbedding(spec.fields, 1)
    def forward(self, batch): return self.scale*self.word(batch.fields).sum((1, 2))
class Other: pass
'''


@pytest.mark.wrong("…; the command imports it with --import MODULE", area="the command",
                   cause="The model is one of your own, and a saved model never runs code by itself.",
                   remedy="Say --import with the module that defines it.")
@pytest.mark.wrong("module … cannot be imported: …", area="the command",
                   cause="The module of a model is not in this folder, nor installed.",
                   remedy="Run the command from the folder with the module, or install it.")
@pytest.mark.wrong("--model …: … has no class … that is a Recommender", area="the command",
                   cause="The name behind the colon is misspelt, or the class is no subclass of Recommender.",
                   remedy="Write module:Class, such as shop:Star.")
@pytest.mark.wrong("--set …: write key=value, such as hidden=[64,32] or price=9.5", area="the command",
                   cause="An argument of the model is given without its name.",
                   remedy="Write its name, an equals sign and the value.")
def test_a_model_of_one_s_own(small, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/"my_shop.py").write_text(MINE.format("Mine", "mine_of_a_test"))
    args = train_args(tmp_path, small)
    code, out, err = call(capsys, *args, "--model", "my_shop:Mine", "--set", "scale=0.5")
    run = json.loads((tmp_path/"m"/"run.json").read_text())
    assert code == 0 and run["model"] == "mine_of_a_test" and run["params"] == dict(scale=.5) and not (
        tmp_path/"m"/"attention.png").exists(), err
    assert call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario", "home", "--import", "my_shop",
                "-k", 2)[0] == 0
    done = start("recommend", tmp_path/"m", "--user", "1", "--scenario", "home",
                 cwd=tmp_path).communicate(timeout=60)
    assert "mine_of_a_test" in done[1] and "the command imports it with --import MODULE" in done[1] and len(
        done[1].splitlines()) == 1
    child = start("recommend", tmp_path/"m", "--user", "1", "--scenario", "home", "--import", "my_shop", "-k",
                  "2", cwd=tmp_path)
    assert len(child.communicate(timeout=60)[0].splitlines()) == 3 and child.returncode == 0
    for more, says in ((("--model", "nowhere:Mine"), "module 'nowhere' cannot be imported"),
                       (("--model", "my_shop:Other"),
                        "--model my_shop:Other: my_shop has no class 'Other' that is a Recommender"),
                       (("--model", "my_shop:None"), "has no class 'None' that is a Recommender"),
                       (("--model", "nothing"), "nothing"),
                       (("--set", "hidden"),
                        "--set hidden: write key=value, such as hidden=[64,32] or price=9.5"),
                       (("--set", "widht=3"), "has no argument 'widht'"),
                       (("--model", "my_shop:Mine", "--fusion", "mean"), "has no argument 'fusion'")):
        refused(capsys, says, *args, "--overwrite", *more)


def test_short_forms_and_long_ones(small, tmp_path, capsys):
    assert call(capsys, *train_args(tmp_path, small, out="a", fusion="mean", heads="per_scenario"))[0] == 0
    assert call(capsys, *train_args(tmp_path, small, out="b", set=["fusion=mean", "heads=per_scenario"]))[
        0] == 0
    assert call(capsys, *train_args(tmp_path, small, out="c", set=["hidden=[8]", "widths=[16,8]"]))[0] == 0
    assert (tmp_path/"a"/"model"/"model.safetensors").read_bytes() == (
        tmp_path/"b"/"model"/"model.safetensors").read_bytes()
    assert json.loads((tmp_path/"c"/"run.json").read_text())["params"] == dict(hidden=[8], widths=[16, 8])


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="processes meet through gloo")
def test_two_processes_give_the_model_of_one(log, tmp_path, capsys):
    schema = runs.Schema(**{k: tuple(v) if isinstance(v, list) else v for k, v in SCHEMA.items()})
    # of an odd number each epoch leaves a row out
    log = next(f for f in (log, log[1:], log[2:]) if len(preprocess.time_split(f, schema)[0]) % 2 == 0)
    args = [str(a) for a in train_args(tmp_path, log, epochs=2, batch_size=64)]
    env = dict(os.environ, OMP_NUM_THREADS="1", MPLBACKEND="Agg")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
              "multiscene_rec"]
    done = subprocess.run([*launch, *args], cwd=Path(__file__).parent.parent.parent, env=env,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for line in ("Reading ", "Counting histories", "epoch 2:", "Measuring on", "Written to "):
        assert done.stdout.count(line) == 1, f"{line!r} is said by more than the first process"
    code, out, err = call(capsys, *train_args(tmp_path, log, out="one", epochs=2, batch_size=128))
    assert code == 0, err
    two, one = (pd.read_csv(tmp_path/name/"metrics.csv", index_col=0) for name in ("m", "one"))
    pd.testing.assert_frame_equal(two, one, atol=1e-5, rtol=1e-5)
    assert not storage.work_folder(tmp_path/"m").exists()
    missing = subprocess.run([*launch, "train", str(tmp_path/"none.csv"), "--out", str(tmp_path/"x")],
        cwd=Path(__file__).parent.parent.parent, env=env, capture_output=True, text=True, timeout=300)
    assert missing.returncode and missing.stderr.count("no such file") == 1 and not (tmp_path/"x").exists()


# ---------------------------------------------------------------- the README's own lines

def readme_lines():
    "The shell blocks of the README's section on a log of one's own."
    text = (Path(__file__).parent.parent.parent/"README.md").read_text(encoding="utf-8")
    section = text.split("## On a log of your own")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, flags=re.S)


@pytest.mark.skipif(os.name == "nt", reason="the lines are for a Unix shell")
@pytest.mark.slow
@pytest.mark.parametrize("size", [("800", "20_000"), ("40_000", "1_000_000")], ids=["small", "as written"])
def test_the_readme_s_lines_work(size, tmp_path):
    blocks = readme_lines()
    assert len(blocks) == 3
    script = "set -e\n" + "\n".join(blocks).replace("n_users=40_000", f"n_users={size[0]}").replace(
        "n_events=1_000_000", f"n_events={size[1]}")
    env = dict(os.environ, OMP_NUM_THREADS="1",
               PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True,
                          timeout=1200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()[-6:]) == 6 and done.stdout.strip().splitlines()[
        -1].startswith("5 ")
    assert (tmp_path/"my_model"/"model_card.md").exists()
