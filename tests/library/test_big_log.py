"""A large log on a small machine: read_log -> clean -> time_split -> fit -> transform, in a process of its
own.

    python tests/library/test_big_log.py LOG.csv    the path, its seconds and its peak memory as JSON on the
    last line
"""
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from multiscene_rec import batch, data, logs, parts, preprocess

SCHEMA = data.Schema(categorical=("category", "brand"), numeric=("price",),
                     item_columns=("category", "brand", "price"))
FRACTIONS = (.8, .08, .12)


def write_log(path, rows, part=1_000_000):
    "A csv of so many rows, written in parts: the events of a mall again and again, each time of other users."
    part = min(part, rows)
    users = part//25
    mall = data.toy_mall(n_users=users, n_items=20_000, n_events=part)
    events = mall.events.merge(mall.items[["item_id", "category", "brand"]],
                               on="item_id")[[*SCHEMA.required, "price", "category", "brand"]]
    for k in range(rows//part):
        events.assign(user_id=events.user_id + k*users).to_csv(path, index=False, header=k == 0, mode="w"
            if k == 0 else "a")
    return events, users


def walk(path):
    "All steps: what they made, and the seconds of each."
    seconds, start = {}, time.perf_counter()
    def done(name, out):
        nonlocal start
        seconds[name], start = round(time.perf_counter() - start, 2), time.perf_counter()
        return out
    raw = done("read_log", logs.read_log(path, SCHEMA))
    log, report = done("clean", preprocess.clean(raw, SCHEMA))
    train, _, _ = done("time_split", preprocess.time_split(log, SCHEMA, FRACTIONS))
    prep = done("fit", preprocess.Preprocessor(SCHEMA).fit(train))
    return raw, log, report, train, prep, done("transform", prep.transform(train)), seconds


def alone(path):
    "The same in a fresh process: sums that tell one result from another, seconds and peak memory."
    done = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True,
                          cwd=Path(__file__).parent.parent.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def main(path):
    raw, log, report, train, prep, batch, seconds = walk(path)
    # not below that of pytest
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/(2**30 if sys.platform == "darwin" else 2**20)
    table = batch.history_table
    print(json.dumps(dict(rows=len(raw), kept=len(log), train=len(batch), users=log.user_id.nunique(),
                          histories=len(table), table_gib=table.numel()*4/2**30,
        clicks=int(batch.label.sum(dtype=float)),
        seen=float(sum(part.double().expm1().sum()
                       for part in table[:, :, prep.spec.history_names.index("seen all items")].split(
                           100_000))),
        peak_gib=peak, seconds=seconds)))


def test_two_hundred_thousand_rows_against_small_sums(tmp_path, monkeypatch):
    events, _ = write_log(tmp_path/"log.csv", 200_000, part=100_000)
    monkeypatch.setattr(logs, "_CHUNK", 30_000)
    monkeypatch.setattr(parts, "_BLOCK", 2**16)
    raw, log, report, train, prep, batch, _ = walk(tmp_path/"log.csv")
    wanted = pd.concat([events, events.assign(user_id=events.user_id + 4000)], ignore_index=True)
    pd.testing.assert_frame_equal(raw, wanted)
    assert report.rows_in == 200_000 and 199_000 < len(log) == report.rows_out
    # by other means: items seen and clicked before, by running sums of a sorted frame
    past = train.sort_values(["user_id", "timestamp"], kind="stable")
    moment = [past.user_id, past.timestamp]
    for s, name in enumerate(prep.spec.scenarios):
        here = (past.scenario == name).astype(int)
        shown = here.groupby(past.user_id).cumsum().groupby(moment).transform("first") - here.groupby(
            moment).transform("first")
        clicked = here*past.clicked
        clicks = (clicked.groupby(past.user_id).cumsum() - clicked).groupby(moment).transform("first")
        rate = train.clicked[train.scenario == name].mean()
        at = batch.history_row[train.index.get_indexer(past.index)]
        found = batch.history_table[at, s].numpy()
        names = prep.spec.history_names
        np.testing.assert_allclose(found[:, names.index("seen all items")], np.log1p(shown), rtol=1e-6)
        np.testing.assert_allclose(found[:, names.index("liked all items")],
                                   (clicks - rate*shown)/np.sqrt(1 + shown), rtol=1e-5, atol=1e-6)
        assert (batch.present_table[at, s].numpy() == (shown > 0)).all() and (
            found[:, names.index(f"in {name}")] == 1).all()
    price = np.log1p(train.price) if train.price.skew() > 1 else train.price
    np.testing.assert_allclose(batch.dense[:, 0], (price - price.mean())/price.std(ddof=0), rtol=1e-4,
                               atol=1e-5)
    assert batch.label.tolist() == train.clicked.tolist()
    for k, c in enumerate(prep.spec.fields):
        assert prep.part(preprocess.Categories).words_[c].decode(batch.fields[::997, k].numpy()
            - prep.spec.offsets[k]) == train[c].iloc[::997].tolist()


def test_blocks_of_any_size_make_the_same_histories(monkeypatch):
    mall = data.toy_mall(n_users=50, n_items=20, n_events=1500, seed=5)
    train, test = preprocess.time_split(mall.events, fractions=(.6, .4))
    prep = preprocess.Preprocessor().fit(train, mall.users, mall.items)
    log = preprocess.EventLog(mall.events, mall.users)
    whole = prep.transform(test, log)
    for block in (1, 500, 3000, 10**5):
        monkeypatch.setattr(parts, "_BLOCK", block)
        monkeypatch.setattr(batch, "_BLOCK", block)
        cut = prep.transform(test, log)
        assert cut.history_table.equal(whole.history_table) and cut.present_table.equal(
            whole.present_table) and cut.history_row.equal(whole.history_row)


def test_moments_too_far_apart_for_one_number():
    "Times in nanoseconds times many users pass 2^63: only their order counts then."
    r = np.random.default_rng(0)
    user, time, scenario = r.integers(0, 10**6, 50)//10**5*10**5, r.integers(0, 30, 50), r.integers(0, 2, 50)
    label, values = r.integers(0, 2, 50).astype(float), r.integers(0, 3, (50, 1))
    moments = np.array(sorted(set(zip(user.tolist(), time.tolist()))))
    near = preprocess.history_sums(user, time, scenario, label, values, 3, *moments.T, 2)
    far = preprocess.history_sums(user, time*10**17, scenario, label, values, 3, moments[:, 0],
                                  moments[:, 1]*10**17, 2)
    for a, b in zip(near, far): np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_ten_million_rows_in_eight_gib(tmp_path):
    path = tmp_path/"log.csv"
    try:
        events, users = write_log(path, 10_000_000)
        found = alone(path)
    finally: path.unlink(missing_ok=True)
    print(json.dumps(found))
    assert found["rows"] == 10_000_000 and found["users"] == 10*events.user_id.nunique()
    assert found["peak_gib"] < 8
    # every one of the ten copies goes through the same steps, so one copy tells the sums of all
    log = preprocess.clean(events.assign(user_id=events.user_id.astype("int64")), SCHEMA)[0]
    assert found["kept"] == 10*len(log)
    train = log[log.timestamp < np.sort(log.timestamp.to_numpy())[int(.8*len(log))]]
    assert found["train"] == 10*len(train) and found["clicks"] == 10*train.clicked.sum()
    order = train.sort_values(["user_id", "timestamp"])
    first = order.groupby(["user_id", "timestamp"]).size()
    before = first.groupby(level=0).cumsum() - first
    assert found["histories"] == 10*len(first) and found["seen"] == pytest.approx(10*before.sum(), rel=1e-5)


if __name__ == "__main__": main(sys.argv[1])
