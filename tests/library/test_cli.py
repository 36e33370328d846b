"The command as its user meets it: in a process of its own, from a folder that is not the repository."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiscene_rec import cli, commands, data


def run(*args, cwd, **env):
    code = "import sys; from multiscene_rec.cli import main; sys.exit(main())"
    env = dict(os.environ, OMP_NUM_THREADS="1", MPLBACKEND="Agg", **env)
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=cwd, env=env,
                          capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def mall_demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mall")
    return run("demo", "--quick", "--out", folder/"out", "--device", "cpu", cwd=folder), folder/"out"


@pytest.mark.slow
def test_mall_demo_says_what_it_promises(mall_demo):
    done, _ = mall_demo
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a bar or a warning where no terminal is"
    for part in ("A toy mall", "duplicate", "repaired", "AUC", "GAUC", "log loss", "no history",
                 "own scenario", "mean", "concatenation",
                 "attention", "ceiling: the log", "ceiling: the truth", "home", "search", "cart", "live",
                 "macro", "Ten items for user"):
        assert part in done.stdout, part
    lists = done.stdout.split("Ten items for user")[1]
    assert sum(line.split()[:1] == ["10"] for line in lists.splitlines()) == 2, "two lists of ten"


@pytest.mark.slow
def test_mall_demo_writes_tables_pictures_and_a_model(mall_demo):
    _, out = mall_demo
    metrics = pd.read_csv(out/"metrics.csv")
    assert metrics.model.nunique() == 7 and set(metrics.scenario) == {"home", "search", "cart", "live",
        "macro", "all"}
    assert metrics[["auc", "gauc", "log_loss"]].notna().all().all()
    auc = metrics[metrics.scenario == "macro"].set_index("model").auc
    assert auc["no history"] < auc["attention"] < auc["ceiling: the log"] < auc["ceiling: the truth"]
    for name in ("attention.png", "curve.png"):
        assert (out/name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (out/name).stat().st_size > 5000
    assert json.loads((out/"model"/"model.json").read_text())["params"]["fusion"] == "attention"


@pytest.mark.slow
def test_the_written_model_recommends(mall_demo):
    from multiscene_rec import model, preprocess, rank
    _, out = mall_demo
    net, prep = model.InterestModel.load(out/"model"), preprocess.Preprocessor.load(out/"preprocess")
    mall = data.toy_mall(n_users=1500, n_events=40_000, seed=7)
    log = preprocess.EventLog(preprocess.clean(mall.dirty(7)[0])[0], mall.users)
    user = log.events.user_id.value_counts().index[0]
    top = rank.recommend(net, prep, log, user, "cart", k=5)
    assert len(top) == 5 and top.score.is_monotonic_decreasing and not set(top.item_id) & set(
        log.events.item_id[log.events.user_id == user])


@pytest.mark.slow
def test_the_demo_keeps_no_data_of_users_and_is_replaced_whole(mall_demo):
    from multiscene_rec import storage
    _, out = mall_demo
    names = {p.name for p in out.iterdir()}
    assert names == {"metrics.csv", "attention.png", "curve.png", "demo.txt", "model",
                     "preprocess"} and not storage.work_folder(out).exists()
    foreign = storage.foreign_file(out, "demo.txt", commands._DEMO_FILES)
    assert foreign is None, "a second demo could not replace it"


def test_python_m_is_the_command(tmp_path):
    env = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(cli.__file__).parent.parent))
    done = subprocess.run([sys.executable, "-m", "multiscene_rec", "train", "none.csv", "--out", "m"],
                          cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and done.stderr == "multiscene-rec: no such file: none.csv\n" and not list(
        tmp_path.iterdir())


def test_help_of_train_names_every_option(tmp_path):
    help_text = run("train", "--help", cwd=tmp_path, COLUMNS="200").stdout
    names = ("user item scenario time label schema users items drop split price window time-unit any-time "
             "model set fusion heads epochs batch-size lr patience seed device precision resume overwrite "
             "progress out").split()
    missing = [name for name in names if f"--{name} " not in help_text]
    assert not missing


@pytest.mark.slow
def test_same_seed_same_numbers(mall_demo, tmp_path):
    done = run("demo", "--quick", "--out", tmp_path/"out", "--device", "cpu", cwd=tmp_path)
    assert done.stdout.splitlines()[:-1] == mall_demo[0].stdout.splitlines()[:-1]


@pytest.mark.parametrize("args, says", [
    (("demo", "--device", "gpu"), "unknown device 'gpu'"),
    (("demo", "--path", "x.csv"), "--path goes with --data coupons"),
    (("demo", "--data", "coupons", "--path", "nowhere.csv"), "nowhere.csv"),
])
def test_a_mistake_is_one_line_and_exit_code_2(args, says, tmp_path):
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and len(
        done.stderr.splitlines()) == 1 and done.stdout == ""


@pytest.mark.parametrize("args, says", [(("demo", "--data", "films"), "films"),
    (("demo", "--seed", "-1"), "--seed"), (("dmeo",), "dmeo"), (("demo", "--nope",), "--nope")])
def test_wrong_options_exit_with_2(args, says, tmp_path):
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and len(
        done.stderr.splitlines()) == 1 and done.stdout == ""


def test_help_names_every_option(tmp_path):
    done = run("demo", "--help", cwd=tmp_path)
    assert done.returncode == 0 and all(f"--{name}" in done.stdout for name in ("data", "path", "out", "seed",
        "device", "quick"))
    assert "demo" in run("--help", cwd=tmp_path).stdout


def test_out_that_is_a_file_is_a_mistake(tmp_path):
    (tmp_path/"taken").write_text("mine")
    done = run("demo", "--quick", "--out", "taken", cwd=tmp_path)
    assert done.returncode == 2 and "taken" in done.stderr and (tmp_path/"taken").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.coupons
def test_coupon_demo(tmp_path):
    done = run("demo", "--data", "coupons", "--quick", "--out", tmp_path/"out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("12,684 answers of 567 respondents", "Coffee House", "Bar", "attention",
                 "Coupon kinds for respondent"):
        assert part in done.stdout
    assert (tmp_path/"out"/"attention.png").stat().st_size > 5000 and (tmp_path/"out"/"curve.png").is_file()
    assert set(pd.read_csv(tmp_path/"out"/"metrics.csv").model) == {"no history", "own scenario", "mean",
        "concatenation", "attention"}


@pytest.mark.formula("90.1")
@pytest.mark.parametrize("similarity", [None, 0., .3, 1.])
def test_true_mixing_against_simulated_tastes(similarity):
    mall = data.toy_mall(n_users=20_000, n_items=50, n_events=100, similarity=similarity, seed=3)
    own = mall.tastes - mall.prior_mean
    S = len(mall.scenarios)
    taste = [sum(mall.loading[s, k]*own[:, k] for k in range(own.shape[1])).ravel() for s in range(S)]
    for t in range(S):
        share = [np.corrcoef(taste[t], taste[s])[0, 1]**2 for s in range(S)]
        np.testing.assert_allclose(cli.true_mixing(mall).iloc[t], np.array(share)/sum(share), atol=.006)


def test_words_of_python_are_understood_as_arguments_of_a_model():
    words = ["heads=shared", "hidden=[4,2]", "fusion=mean", "rate=None", "n=3"]
    expected = dict(heads="shared", hidden=[4, 2], fusion="mean", rate=None, n=3)
    assert commands._pairs("--set", words) == expected
