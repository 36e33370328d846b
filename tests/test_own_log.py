"A log of one's own through the command: train, evaluate, recommend; and each thing that can be wrong with it, as one line."
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

from multiscene_rec import cli, data, metrics, model, preprocess, rank, train

NAMES = dict(user_id="who", item_id="what", scenario="where", timestamp="when", clicked="liked", price="paid")
SCHEMA = dict(user="who", item="what", scenario="where", time="when", label="liked",
              categorical=["category"], numeric=["paid"], item_columns=["category"])
QUICK = ("--epochs", "2", "--device", "cpu")


def make_log(rows=3000, users=120):
    mall = data.toy_mall(n_users=users, n_items=60, n_events=rows, seed=3)
    return mall.events.merge(mall.items[["item_id", "category"]], on="item_id").rename(columns=NAMES).drop(columns=["page", "position"])


@pytest.fixture(scope="module")
def log():
    raw = make_log()
    return preprocess.clean(raw, data.Schema(**{k: tuple(v) if isinstance(v, list) else v for k, v in SCHEMA.items()}), price=None)[0].reset_index(drop=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory, log):
    folder = tmp_path_factory.mktemp("own")
    log.to_csv(folder/"log.csv", index=False)
    (folder/"schema.json").write_text(json.dumps(SCHEMA))
    return folder


@pytest.fixture(scope="module")
def trained(place):
    assert cli.main(["train", str(place/"log.csv"), "--schema", str(place/"schema.json"), "--out", str(place/"model"), *QUICK]) == 0
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
    assert names == {"model", "preprocess", "metrics.csv", "metrics.json", "curve.png", "attention.png", "model_card.md", "run.json"}
    assert not list(trained.rglob("*.part"))
    for name in ("curve.png", "attention.png"): assert (trained/name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    card, run = (trained/"model_card.md").read_text(), json.loads((trained/"run.json").read_text())
    for words in (f"{len(log):,} rows were read", "Split by time", "rows to learn from", "seed: 0", "versions: multiscene_rec", "AUC (95 %)", "log.csv", "## Limits"):
        assert words in card, words
    assert run["schema"]["user"] == "who" and run["seed"] == 0 and run["rows"]["read"] == len(log)
    assert sum(run["rows"][part] for part in ("train", "valid", "test")) == run["rows"]["kept"]


def test_metrics_are_those_of_the_test_rows(trained, log):
    "Split, histories, scores and metrics again, step by step with the library."
    schema = data.Schema(**{k: tuple(v) if isinstance(v, list) else v for k, v in SCHEMA.items()})
    rows, _ = preprocess.clean(log, schema, price=None)
    parts = preprocess.time_split(rows, schema)
    prep = preprocess.Preprocessor(schema).fit(parts[0])
    batch = prep.transform(parts[2], log=rows)
    prob = train.predict(model.InterestModel.load(trained/"model"), batch).numpy()
    wanted = metrics.report(parts[2].liked, prob, parts[2]["where"], parts[2].who)
    for found in (pd.read_csv(trained/"metrics.csv", index_col=0), pd.DataFrame(json.loads((trained/"metrics.json").read_text())).set_index("scenario")):
        for column in ("rows", "users", "click_rate", "auc", "gauc", "log_loss"):
            np.testing.assert_allclose(found[column].astype(float), wanted.loc[found.index, column].astype(float), rtol=1e-6, err_msg=column)
    rate = parts[0].groupby("where").liked.mean()
    base = metrics.log_loss(parts[2].liked, parts[2]["where"].map(rate))
    np.testing.assert_allclose(found.loc["all", "base_log_loss"], base, rtol=1e-9)
    assert (found.auc_low.dropna() <= found.auc[found.auc_low.notna()]).all() and (found.auc_high.dropna() >= found.auc[found.auc_low.notna()]).all()


def test_evaluate_on_the_same_log_gives_the_test_metrics_again(trained, place, capsys):
    code, out, err = call(capsys, "evaluate", trained, place/"log.csv", "--json")
    assert code == 0 and "rows left out: the model was trained with them" in err
    again, was = pd.DataFrame(json.loads(out)), pd.DataFrame(json.loads((trained/"metrics.json").read_text()))
    pd.testing.assert_frame_equal(again, was, rtol=1e-5)


def test_evaluate_on_newer_rows_and_on_used_ones(trained, place, log, tmp_path, capsys):
    newer = log.assign(when=log.when + 90*86400)
    newer.to_csv(tmp_path/"newer.csv", index=False)
    assert json.loads(call(capsys, "evaluate", trained, tmp_path/"newer.csv", "--json")[1])[-1]["rows"] == len(log)
    assert json.loads(call(capsys, "evaluate", trained, place/"log.csv", "--used", "--json")[1])[-1]["rows"] == len(log)


def test_evaluate_prints_a_table(trained, place, capsys):
    code, out, _ = call(capsys, "evaluate", trained, place/"log.csv")
    assert code == 0 and "macro" in out and "auc_low" in out and "search" in out


def test_recommend_prints_the_list_of_the_library(trained, log, capsys):
    user = int(log.who.value_counts().index[0])
    code, out, err = call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 4, "--json")
    assert code == 0 and err == ""
    net, prep = model.InterestModel.load(trained/"model"), preprocess.Preprocessor.load(trained/"preprocess")
    wanted = rank.recommend(net, prep, user, "home", k=4)
    assert [row["what"] for row in json.loads(out)] == wanted.what.tolist()
    assert not set(wanted.what) & set(log.what[log.who == user]), "an item that the user has seen in any part of the log"
    assert len(prep.log) == len(log), "the histories of lists reach to the end of the log"
    table = call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 4)[1]
    assert len(table.splitlines()) == 5 and "score" in table.splitlines()[0]


def test_recommend_with_a_newer_log(trained, log, tmp_path, capsys):
    user = int(log.who.value_counts().index[0])
    first = json.loads(call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 1, "--json")[1])[0]["what"]
    seen = log.iloc[[0]].assign(who=user, what=first, when=log.when.max() + 60)
    seen.to_csv(tmp_path/"news.csv", index=False)
    after = json.loads(call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 60, "--log", tmp_path/"news.csv", "--json")[1])
    assert first not in [row["what"] for row in after]
    shown = json.loads(call(capsys, "recommend", trained, "--user", user, "--scenario", "home", "-k", 60, "--seen", "--log", tmp_path/"news.csv", "--json")[1])
    assert first in [row["what"] for row in shown] and len(shown) == 60


def test_columns_by_options_and_other_kinds_of_file(log, tmp_path, capsys):
    plain = log.drop(columns=["paid", "category"]).assign(who=lambda f: "u" + f.who.astype(str), when=lambda f: pd.to_datetime(f.when, unit="s", utc=True).dt.strftime("%Y-%m-%dT%H:%M:%SZ"))
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
    code, out, err = call(capsys, "train", tmp_path/"log.csv", "--users", tmp_path/"users.csv", "--items", tmp_path/"items.csv", "--price", "price", "--out", tmp_path/"m", *QUICK)
    assert code == 0 and "age_band, city, category, brand, price, quality" in out and "repaired" in out, err
    assert "by the rule \"duplicate\"" in (tmp_path/"m"/"model_card.md").read_text()
    top = json.loads(call(capsys, "recommend", tmp_path/"m", "--user", 5, "--scenario", "live", "-k", 3, "--json")[1])
    assert len(top) == 3 and top[0]["title"] in set(mall.items.title)


def test_a_split_by_user(place, tmp_path, capsys, log):
    args = ("train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", "--split", "user", *QUICK)
    assert call(capsys, *args)[0] == 0
    known = set(preprocess.Preprocessor.load(tmp_path/"m"/"preprocess").log.who)
    again = json.loads(call(capsys, "evaluate", tmp_path/"m", place/"log.csv", "--json")[1])
    assert again[-1]["rows"] == (~log.who.isin(known)).sum() == json.loads((tmp_path/"m"/"metrics.json").read_text())[-1]["rows"]
    np.testing.assert_allclose(again[-1]["auc"], json.loads((tmp_path/"m"/"metrics.json").read_text())[-1]["auc"], rtol=1e-5)
    assert "no user is in two parts" in (tmp_path/"m"/"model_card.md").read_text()
    other = int(log.who[~log.who.isin(known)].value_counts().index[0]) # nobody the model has met: their rows come with the log
    ask = ("recommend", tmp_path/"m", "--user", other, "--scenario", "home", "-k", 60, "--json")
    code, out, err = call(capsys, *ask)
    assert code == 0 and "newcomer" in err and len(json.loads(out)) == 60
    code, out, err = call(capsys, *ask, "--log", place/"log.csv")
    assert code == 0 and err == "" and not {row["what"] for row in json.loads(out)} & set(log.what[log.who == other])


@pytest.mark.parametrize("fusion", ["none", "own", "mean", "concat", "attention+own"])
def test_every_fusion(fusion, place, tmp_path, capsys):
    code, _, err = call(capsys, "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", "--fusion", fusion, "--towers", "--epochs", 1)
    assert code == 0 and (tmp_path/"m"/"attention.png").exists() == (fusion not in ("none", "concat")), err
    assert call(capsys, "recommend", tmp_path/"m", "--user", 1, "--scenario", "home")[0] == 0


def test_a_schema_in_toml(place, tmp_path):
    (tmp_path/"s.toml").write_text('user = "who"\nitem = "what"\ncategorical = ["category"]\nitem_columns = ["category"]\n')
    found = cli.read_schema(tmp_path/"s.toml")
    assert (found.user, found.item, found.scenario, found.categorical, found.numeric) == ("who", "what", "scenario", ("category",), ())


def test_two_trainings_are_equal(trained, place, tmp_path, capsys):
    assert call(capsys, "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *QUICK)[0] == 0
    for name in ("metrics.csv", "model/model.safetensors", "preprocess/preprocess.safetensors"):
        assert (tmp_path/"m"/name).read_bytes() == (trained/name).read_bytes(), name


def test_movielens_goes_through_the_same_command(tmp_path, capsys):
    try: data.load_movielens_100k()
    except FileNotFoundError as e: pytest.skip(str(e))
    code, out, err = call(capsys, "train", "movielens-100k", "--out", tmp_path/"ml", "--epochs", 2)
    assert code == 0 and "gender, occupation, genre, age" in out, err
    again = json.loads(call(capsys, "evaluate", tmp_path/"ml", "movielens-100k", "--json")[1])
    np.testing.assert_allclose(again[-1]["auc"], json.loads((tmp_path/"ml"/"metrics.json").read_text())[-1]["auc"], rtol=1e-5)
    assert call(capsys, "recommend", tmp_path/"ml", "--user", 42, "--scenario", "<25", "-k", 5)[0] == 0


# ---------------------------------------------------------------- a log that is wrong

BROKEN = {  # name: (what to do to the log, what the command says)
    "header only": (lambda f: f.head(0), "has a header and no rows"),
    "no such column": (lambda f: f.rename(columns=dict(who="customer")), "missing column 'who'; there are: customer, what, where, when"),
    "label outside": (lambda f: f.assign(liked=[7, *f.liked[1:]]), "column 'liked', row 1 below the header: '7' is not a label from 0 to 1"),
    "labels all alike": (lambda f: f.assign(liked=1), "one class"),
    "soft labels": (lambda f: f.assign(liked=.5), "is a soft label"),
    "infinite": (lambda f: f.assign(paid=[np.inf, *f.paid[1:]]), "column 'paid', row 1"),
    "no time": (lambda f: f.assign(when=["noon", *f.when[1:]]), "column 'when', row 1 below the header: 'noon' is not"),
    "milliseconds": (lambda f: f.assign(when=f.when*1000), "if the times in 'when' are milliseconds, divide them by 1000"),
    "zones mixed": (lambda f: f.assign(when=["2026-01-05T10:00:00", *["2026-01-05T10:00:00Z"]*(len(f) - 1)]), "zone"),
    "one moment": (lambda f: f.assign(when=1_770_000_000), "a part would be empty"),
    "a reserved name": (lambda f: f.assign(where=["macro", *f["where"][1:]]), "a scenario is called 'macro'"),
    "no price": (lambda f: f, "--price: the log has no column 'cost'"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_log_is_one_line(what, log, place, tmp_path, capsys):
    spoil, says = BROKEN[what]
    spoil(log.copy()).to_csv(tmp_path/"log.csv", index=False)
    more = ("--price", "cost") if what == "no price" else ()
    refused(capsys, says, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *more, *QUICK)
    assert not (tmp_path/"m"/"run.json").exists() and (tmp_path/"log.csv").exists()


@pytest.mark.wrong("column … is a soft label; the command measures AUC, which needs 0 or 1", area="the command",
                   cause="The answers are shares such as 0.5, not yes or no.", remedy="Round the labels in the log, or train from Python with fit, which takes soft labels.")
@pytest.mark.wrong("a scenario is called …, which names a line of the results", area="the command",
                   cause="Results have lines called macro and all.", remedy="Give that scenario another name in the log.")
@pytest.mark.wrong("--price: the log has no column …", area="the command", cause="The column of prices has another name, or is in the file of items.",
                   remedy="Name a column of the log; the message lists them.")
def test_messages_of_labels_names_and_prices(log, place, tmp_path, capsys):
    for spoil, says, more in ((dict(liked=.5), "is a soft label; the command measures AUC, which needs 0 or 1", ()), ({"where": "all"}, "which names a line of the results", ()),
                              ({}, "--price: the log has no column", ("--price", "cost"))):
        log.assign(**spoil).to_csv(tmp_path/"log.csv", index=False)
        refused(capsys, says, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *more)


def test_an_empty_file_and_one_that_is_not_there(tmp_path, capsys):
    (tmp_path/"log.csv").write_bytes(b"")
    refused(capsys, "is empty: expected a header line", "train", tmp_path/"log.csv", "--out", tmp_path/"m")
    refused(capsys, "no such file", "train", tmp_path/"none.csv", "--out", tmp_path/"m")


@pytest.mark.parametrize("change", [dict(encoding="utf-8-sig"), dict(sep=";", decimal=","), dict(lineterminator="\r\n")], ids=["BOM", "semicolons", "CRLF"])
def test_three_dialects_give_the_same_model(change, log, trained, place, tmp_path, capsys):
    log.to_csv(tmp_path/"log.csv", index=False, **change)
    code, _, err = call(capsys, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *QUICK)
    assert code == 0, err
    assert (tmp_path/"m"/"metrics.csv").read_text() == (trained/"metrics.csv").read_text()


@pytest.mark.wrong("… of … … rows left out: scenario … does not occur in the training rows", area="the command",
                   cause="The scenario is newer than the training rows, so the model has no vector for it.", remedy="Nothing is lost; train again when the log holds more of it, or use --split user.")
def test_a_scenario_seen_only_in_the_test_rows(log, place, tmp_path, capsys):
    late = log.sort_values("when").copy()
    late.iloc[-50:, late.columns.get_loc("where")] = "mirror"
    late.to_csv(tmp_path/"log.csv", index=False)
    code, out, _ = call(capsys, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *QUICK)
    assert code == 0 and re.search(r"50 of \d+ test rows left out: scenario 'mirror' does not occur in the training rows", out)
    assert re.search(r"50 of \d+ test rows left out", (tmp_path/"m"/"model_card.md").read_text())
    code, out, err = call(capsys, "evaluate", tmp_path/"m", tmp_path/"log.csv", "--json")
    assert code == 0 and "scenario 'mirror'" in err
    assert json.loads(out)[-1]["rows"] == json.loads((tmp_path/"m"/"run.json").read_text())["rows"]["test"]


def test_a_test_set_of_one_class_has_a_dash_for_auc(log, place, tmp_path, capsys):
    flat = log.sort_values("when").copy()
    flat.iloc[-400:, flat.columns.get_loc("liked")] = 0
    flat.to_csv(tmp_path/"log.csv", index=False)
    code, out, err = call(capsys, "train", tmp_path/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *QUICK)
    assert code == 0 and json.loads((tmp_path/"m"/"metrics.json").read_text())[-1]["auc"] is None, err


@pytest.mark.wrong("--items: … column …, row … below the header has no id such as the log's", area="the command",
                   cause="An id of the file is missing, or is text where the log has whole numbers.", remedy="Write the ids the way the log has them.")
@pytest.mark.wrong("--users: … lacks column …", area="the command", cause="The file names its ids otherwise than the log.", remedy="Rename the column of ids; the message lists the columns that are there.")
def test_files_of_users_and_items_that_do_not_fit(log, place, tmp_path, capsys):
    items = log[["what", "category"]].drop_duplicates("what")
    def attempt(frame, says, option="--items"):
        frame.to_csv(tmp_path/"side.csv", index=False)
        refused(capsys, says, "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", option, tmp_path/"side.csv", *QUICK)
    attempt(pd.concat([items, items.head(1)]), "stands twice")
    attempt(items.assign(what=["x", *items.what[1:].astype(str)]), "column 'what', row 1 below the header has no id such as the log's")
    attempt(items.rename(columns=dict(what="id")), "lacks column 'who'", "--users")
    refused(capsys, "--items: no such file", "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", "--items", tmp_path/"none.csv")


# ---------------------------------------------------------------- options that do not go together

@pytest.mark.wrong("there is no field … in a schema; the fields are …", area="the command", cause="A name on the left in the schema file is misspelt.", remedy="Use the fields that the message lists.")
@pytest.mark.wrong("--schema names the columns already: leave … out", area="the command", cause="A column is named by an option and a schema file is given too.", remedy="Write the name into the schema file.")
@pytest.mark.wrong("… is no JSON", area="the command", cause="The schema file has a typing error, such as a comma after the last entry.", remedy="Correct it where the message says; TOML is read too, from a file ending in .toml.")
def test_schema_files_and_options(place, tmp_path, capsys):
    def attempt(text, says, *more, name="s.json"):
        (tmp_path/name).write_text(text)
        refused(capsys, says, "train", place/"log.csv", "--out", tmp_path/"m", "--schema", tmp_path/name, *more)
    attempt('{"users": "who"}', "there is no field 'users' in a schema; the fields are user, item, scenario")
    attempt('{"user": "who",}', "is no JSON")
    attempt('user = ', "is no TOML", name="s.toml")
    attempt('["who"]', "must hold fields of a schema")
    attempt('{"user": 3}', "column names are non-empty strings")
    attempt('{"categorical": "city"}', "not one string")
    attempt('{"categorical": 3}', "s.json")
    attempt(json.dumps(SCHEMA), "--schema names the columns already: leave --user out", "--user", "who")
    refused(capsys, "no such schema file", "train", place/"log.csv", "--out", tmp_path/"m", "--schema", tmp_path/"none.json")
    assert not list(tmp_path.glob("m/*.json"))


@pytest.mark.parametrize("args, says", [
    (("--lr", "0"), "lr must be above 0"), (("--precision", "fp8"), "fp8"), (("--device", "gpu"), "unknown device"), (("--fusion", "blend"), "blend"),
    (("--epochs", "0"), "--epochs"), (("--split", "row"), "row"), (("--resume",), "holds no run that was begun")])
def test_options_that_cannot_be(args, says, place, tmp_path, capsys):
    refused(capsys, says, "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *args)


def test_debug_shows_the_traceback(tmp_path, capsys):
    for args in (("--debug", "train", tmp_path/"none.csv", "--out", tmp_path/"m"), ("train", tmp_path/"none.csv", "--out", tmp_path/"m", "--debug")):
        code, _, err = call(capsys, *args)
        assert code == 2 and "Traceback" in err and err.splitlines()[-1].startswith("multiscene-rec: no such file")


# ---------------------------------------------------------------- lists

@pytest.mark.wrong("scenario … is unknown; choose from …", area="lists", cause="The model was not trained on this scenario, or it is spelt otherwise.", remedy="Use one of the names in the message.")
@pytest.mark.wrong("user … is not in the log: this is a list for a newcomer, without a history", area="lists", cause="The model has never seen this user.", remedy="Nothing needs to be done; check the id if you expected a history.")
@pytest.mark.wrong("--user: the users of this model are whole numbers, got …", area="lists", cause="The ids of the log are numbers.", remedy="Give the number.")
def test_lists_for_the_unknown(trained, capsys):
    refused(capsys, "scenario 'attic' is unknown; choose from cart, home, live, search", "recommend", trained, "--user", 1, "--scenario", "attic")
    code, out, err = call(capsys, "recommend", trained, "--user", 987654, "--scenario", "home", "-k", 3)
    assert code == 0 and len(out.splitlines()) == 4 and "user 987654 is not in the log: this is a list for a newcomer, without a history" in err
    refused(capsys, "--user: the users of this model are whole numbers, got 'ann'", "recommend", trained, "--user", "ann", "--scenario", "home")


def test_lengths_of_lists(trained, capsys):
    for k in (0, -3): refused(capsys, f"got {k}", "recommend", trained, "--user", 1, "--scenario", "home", "-k", k)
    refused(capsys, "diversity runs from 0 to 1", "recommend", trained, "--user", 1, "--scenario", "home", "--diversity", 2)
    shown = json.loads(call(capsys, "recommend", trained, "--user", 987654, "--scenario", "home", "-k", 10_000, "--json")[1])
    assert 0 < len(shown) <= 60


# ---------------------------------------------------------------- folders

def copy_of(folder, to):
    import shutil
    return Path(shutil.copytree(folder, to))


@pytest.mark.wrong("… holds a trained model: name another folder, or say --overwrite to replace it", area="the command", cause="The folder is the result of an earlier training.", remedy="Give another --out, or --overwrite if the old model is not needed.")
def test_a_trained_model_is_not_overwritten_by_chance(trained, place, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    args = ("train", place/"log.csv", "--schema", place/"schema.json", "--out", folder, "--epochs", 1)
    refused(capsys, "holds a trained model: name another folder, or say --overwrite to replace it", *args)
    refused(capsys, "holds a finished run", *args, "--resume")
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    (tmp_path/"bad.csv").write_text("who,what\n1,2\n")
    refused(capsys, "missing column", "train", tmp_path/"bad.csv", *args[2:], "--overwrite")
    assert call(capsys, "recommend", folder, "--user", 1, "--scenario", "home")[0] == 0, "a bad log cost the old model"
    assert call(capsys, *args, "--overwrite", "--seed", 5)[0] == 0
    assert json.loads((folder/"run.json").read_text())["seed"] == 5


@pytest.mark.wrong("no such folder: …; name the one that train wrote", area="files", cause="The name of the folder is wrong.", remedy="Name the folder that was given to train as --out.")
@pytest.mark.wrong("… is not there: give the folder that … wrote", area="files", cause="The folder is another one, or a part of it was deleted.", remedy="Name the folder that was given to train as --out, or train again.")
def test_folders_that_are_none_and_folders_that_are_damaged(trained, tmp_path, capsys):
    ask = ("--user", 1, "--scenario", "home")
    refused(capsys, "no such folder", "recommend", tmp_path/"none", *ask)
    refused(capsys, "is not there: give the folder that multiscene-rec train wrote", "recommend", tmp_path, *ask)
    for n, (name, content, says) in enumerate([
            ("run.json", b"{", "run.json"), ("run.json", b'{"format": 99}', "format 99"), ("run.json", b"[1]", "format None"), ("run.json", b'{"format": 1}', "damaged or was edited"),
            ("run.json", b"\xff\xfe", "damaged"), ("model/model.json", b"{}", "model.json"), ("model/model.safetensors", b"\x80\x04rest", "pickle"),
            ("preprocess/preprocess.json", b"[]", "preprocess.json"), ("preprocess/preprocess.safetensors", b"", "preprocess.safetensors")]):
        folder = copy_of(trained, tmp_path/str(n))
        (folder/name).write_bytes(content)
        refused(capsys, says, "recommend", folder, *ask)
    for n, name in enumerate(("model/model.json", "model/model.safetensors", "preprocess/preprocess.json", "preprocess/preprocess.safetensors")):
        folder = copy_of(trained, tmp_path/f"gone{n}")
        (folder/name).unlink()
        refused(capsys, "is not there", "recommend", folder, *ask)
        folder = copy_of(trained, tmp_path/f"cut{n}")
        (folder/name).write_bytes((trained/name).read_bytes()[:-20])
        refused(capsys, Path(name).name, "recommend", folder, *ask)


@pytest.mark.wrong("… is damaged or was edited: train again", area="files", cause="A byte of run.json changed, or somebody edited it.", remedy="Put a copy back, or train again.")
@pytest.mark.parametrize("change", [lambda r: r["split"].pop("test_from"), lambda r: r["split"].update(by="moon"), lambda r: r.update(price=3), lambda r: r.pop("checksum")])
def test_an_edited_run_is_refused(change, trained, place, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    run = json.loads((folder/"run.json").read_text())
    change(run)
    (folder/"run.json").write_text(json.dumps(run))
    refused(capsys, "is damaged or was edited: train again", "evaluate", folder, place/"log.csv")


def test_model_and_preprocessor_of_two_trainings(trained, log, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    other = log.assign(liked=log.liked, where=log["where"].replace("live", "stream"))
    other.to_csv(tmp_path/"log.csv", index=False)
    (tmp_path/"s.json").write_text(json.dumps(SCHEMA))
    assert call(capsys, "train", tmp_path/"log.csv", "--schema", tmp_path/"s.json", "--out", tmp_path/"o", "--epochs", 1)[0] == 0
    import shutil
    shutil.rmtree(folder/"model")
    shutil.copytree(tmp_path/"o"/"model", folder/"model")
    refused(capsys, "do not belong together", "recommend", folder, "--user", 1, "--scenario", "home")


@pytest.mark.wrong("no row of … is new to the model: give a newer log, or --used", area="the command", cause="All rows of the log are older than the test rows of the training.", remedy="Give a log that goes on after the training, or --used to score the rows of the training.")
def test_a_log_without_a_new_row(trained, log, tmp_path, capsys):
    log.assign(when=log.when - 90*86400).to_csv(tmp_path/"old.csv", index=False)
    code, out, err = call(capsys, "evaluate", trained, tmp_path/"old.csv")
    assert code == 2 and "is new to the model: give a newer log, or --used" in err


def test_evaluate_a_log_with_other_columns(trained, log, tmp_path, capsys):
    log.rename(columns=dict(who="user_id")).to_csv(tmp_path/"other.csv", index=False)
    refused(capsys, "missing column 'who'", "evaluate", trained, tmp_path/"other.csv")


# ---------------------------------------------------------------- mishaps: processes of their own

def start(*args, before="", **popen):
    code = f"import sys; from multiscene_rec.cli import main\n{before}\nsys.exit(main())"
    env = dict(os.environ, OMP_NUM_THREADS="1", MPLBACKEND="Agg")
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)


def until(condition, child, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert child.poll() is None and time.monotonic() < end, child.communicate()
        time.sleep(.02)


@pytest.mark.wrong("stopped; … holds the last whole epoch: the same command with --resume goes on from it", area="the command", cause="Ctrl-C was pressed.", remedy="Repeat the command with --resume; it ends in the same weights as if it had never been stopped.")
@pytest.mark.wrong("… holds a run that was stopped: --resume goes on with it, --overwrite begins again", area="the command", cause="An earlier run into this folder did not end.", remedy="Say which of the two you want.")
@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_keeps_and_names_the_checkpoint_and_resume_ends_in_the_same_weights(place, tmp_path, capsys):
    plan = ("train", place/"log.csv", "--schema", place/"schema.json", "--epochs", 40, "--patience", 40, "--batch-size", 64, "--device", "cpu")
    child = start(*plan, "--out", tmp_path/"m")
    checkpoint = tmp_path/"m"/"checkpoint"/"checkpoint.safetensors"
    until(checkpoint.exists, child)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in err and len(err.splitlines()) == 1
    assert f"stopped; {checkpoint} holds the last whole epoch: the same command with --resume goes on from it" in err
    refused(capsys, "holds a run that was stopped: --resume goes on with it, --overwrite begins again", *plan, "--out", tmp_path/"m")
    refused(capsys, "holds a run that was stopped: finish it with train --resume", "recommend", tmp_path/"m", "--user", 1, "--scenario", "home")
    assert call(capsys, *plan, "--out", tmp_path/"m", "--resume")[0] == 0
    assert call(capsys, *plan, "--out", tmp_path/"whole")[0] == 0
    assert (tmp_path/"m"/"model"/"model.safetensors").read_bytes() == (tmp_path/"whole"/"model"/"model.safetensors").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="needs SIGINT")
def test_ctrl_c_while_overwriting_leaves_the_old_model_and_can_be_resumed(trained, place, tmp_path, capsys):
    folder = copy_of(trained, tmp_path/"m")
    before = (folder/"model"/"model.safetensors").read_bytes()
    plan = ("train", place/"log.csv", "--schema", place/"schema.json", "--out", folder, "--epochs", 40, "--patience", 40, "--batch-size", 64, "--device", "cpu")
    child = start(*plan, "--overwrite")
    until((folder/"checkpoint"/"checkpoint.safetensors").exists, child)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60) and child.returncode == 130
    assert (folder/"model"/"model.safetensors").read_bytes() == before
    assert call(capsys, "recommend", folder, "--user", 1, "--scenario", "home")[0] == 0
    refused(capsys, "holds a run that was stopped", *plan)
    assert call(capsys, *plan, "--resume")[0] == 0
    assert (folder/"model"/"model.safetensors").read_bytes() != before and not (folder/"checkpoint").exists()


@pytest.mark.wrong("another run is writing into …: wait until it ends, or name another folder", area="files", cause="Two trainings were given the same folder.", remedy="Wait for the first, or give the second another --out.")
def test_two_runs_one_folder(place, tmp_path, capsys):
    plan = ("train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", "--device", "cpu")
    child = start(*plan, "--epochs", 500, "--patience", 500)
    try:
        until((tmp_path/"m"/".lock").exists, child)
        refused(capsys, "another run is writing into", *plan)
    finally:
        child.kill()
        child.communicate()


_FULL = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))"


@pytest.mark.skipif(os.name == "nt", reason="needs resource limits")
@pytest.mark.parametrize("limit", [4096, 60_000])
def test_a_disk_that_is_full(limit, place, tmp_path):
    "A limit on the size of files stands for a full disk: the write in the middle of a file fails."
    child = start("train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *QUICK, before=_FULL.format(limit))
    _, err = child.communicate(timeout=120)
    assert child.returncode == 2 and "free space or name another folder" in err and str(tmp_path/"m") in err and "Traceback" not in err and len(err.splitlines()) == 1, err
    assert not (tmp_path/"m"/"run.json").exists() and not list((tmp_path/"m").rglob("*.part"))


def test_a_full_disk_leaves_an_older_model_as_it_was(trained, place, tmp_path, monkeypatch, capsys):
    folder = copy_of(trained, tmp_path/"m")
    before = (folder/"model"/"model.safetensors").read_bytes()
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    refused(capsys, "No space left on device", "train", place/"log.csv", "--schema", place/"schema.json", "--out", folder, "--overwrite", *QUICK)
    assert (folder/"model"/"model.safetensors").read_bytes() == before


@pytest.mark.parametrize("out", ["file/below", "file"])
def test_a_folder_that_cannot_be_written(out, place, tmp_path, capsys):
    (tmp_path/"file").write_text("mine")
    refused(capsys, "file", "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/out, *QUICK)
    assert (tmp_path/"file").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs permissions, which root does not heed")
def test_a_read_only_folder(place, tmp_path, capsys):
    (tmp_path/"m").mkdir(mode=0o555)
    refused(capsys, "Permission denied", "train", place/"log.csv", "--schema", place/"schema.json", "--out", tmp_path/"m", *QUICK)


# ---------------------------------------------------------------- the README's own lines

def readme_lines():
    "The shell blocks of the README's section on a log of one's own."
    text = (Path(__file__).parent.parent/"README.md").read_text(encoding="utf-8")
    section = text.split("## On a log of your own")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, flags=re.S)


@pytest.mark.skipif(os.name == "nt", reason="the lines are for a Unix shell")
@pytest.mark.parametrize("size", [("800", "20_000"), pytest.param(("40_000", "1_000_000"), marks=pytest.mark.slow)], ids=["small", "as written"])
def test_the_readme_s_lines_work(size, tmp_path):
    blocks = readme_lines()
    assert len(blocks) == 3
    script = "set -e\n" + "\n".join(blocks).replace("n_users=40_000", f"n_users={size[0]}").replace("n_events=1_000_000", f"n_events={size[1]}")
    env = dict(os.environ, OMP_NUM_THREADS="1", PATH=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip().splitlines()[-6:]) == 6 and done.stdout.strip().splitlines()[-1].startswith("5 ")
    assert (tmp_path/"my_model"/"model_card.md").exists()
