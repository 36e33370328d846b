"""From a csv to a Batch: read_log, clean, fit and transform, beside the same steps written directly against
polars (and pyarrow's reader).

    python -m bench.preprocess            100,000 and 1,000,000 rows
    python -m bench.preprocess --large    10,000,000 rows too: one run of each way, each in a fresh process
    python -m bench.preprocess --quick    seconds, nothing written

One thread each, for ours has one. `ratio` is ours by theirs: above 1 ours is slower. The log is a dirty mall
with two columns of the
item, so every rule of clean has work; what both ways make is compared, and a difference ends the run.
"""
import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import csv as arrow_csv

from bench.common import alone, in_turn, options, peak_mib, ratio, record
from multiscene_rec import data, logs, preprocess

SCHEMA = data.Schema(categorical=("category", "brand"), numeric=("price",),
                     item_columns=("category", "brand", "price"))
KEYS = ["user_id", "item_id", "scenario"]
STEPS = ("read", "clean", "fit", "transform")


def write_log(path, rows, part=1_000_000):
    "A csv of so many events (and the twins that dirt adds), written in parts, each of other users."
    part = min(part, rows)
    mall = data.toy_mall(n_users=max(part//25, 10), n_items=min(20_000, part//5), n_events=part)
    log = mall.dirty(seed=0)[0].merge(mall.items[["item_id", "category", "brand"]], on="item_id", how="left")
    log = log[[*SCHEMA.required, "price", "category", "brand"]]
    for k in range(rows//part):
        log.assign(user_id=log.user_id + k*len(mall.users)).astype({"item_id": "Int64",
            "user_id": "Int64"}).to_csv(path, index=False, header=k == 0, mode="w" if k == 0 else "a")


class Ours:
    "The package."
    def read(self, path): self.raw = logs.read_log(path, SCHEMA)

    def clean(self):
        self.log, self.report = preprocess.clean(self.raw, SCHEMA)
        self.train = preprocess.time_split(self.log, SCHEMA, (.8, .2))[0]

    def fit(self): self.prep = preprocess.Preprocessor(SCHEMA).fit(self.train)

    def transform(self): self.batch = self.prep.transform(self.train)


class Polars:
    "The same, as one would write it with polars."
    def read(self, path): self.raw = pl.read_csv(path, infer_schema_length=None)

    def clean(self):
        names = self.raw.group_by("scenario").len().drop_nulls().with_columns(
            short=pl.col("scenario").str.strip_chars())
        best = names.group_by("short").agg(pl.col("len").sum()).sort(["len", "short"],
            descending=[True, False])
        best = best.with_columns(folded=pl.col("short").str.to_lowercase()).unique("folded", keep="first",
            maintain_order=True)
        spelled = dict(names.with_columns(folded=pl.col("short").str.to_lowercase()).join(best,
            on="folded").select("scenario", "short_right").iter_rows())
        log = self.raw.with_columns(pl.col("scenario").replace(spelled)).drop_nulls(KEYS)
        log = log.filter(pl.col("scenario") != "").filter(pl.col("clicked").is_between(0, 1))
        good = pl.col("price").is_finite() & (pl.col("price") > 0)
        log = log.filter(good & (pl.col("price") <= 10_000*pl.col("price").filter(good).median()))
        log = log.filter(pl.col("timestamp").is_between(631_152_000, 4_102_444_800, closed="left")).unique(
            maintain_order=True, keep="first")
        self.log = self.one_row_each(log.with_row_index("row"))
        ordered = self.log.sort("timestamp", maintain_order=True)
        time = ordered["timestamp"]
        self.train = ordered.head(time.search_sorted(time[int(.8*len(time))], "left"))

    @staticmethod
    def one_row_each(log):
        """Rows of one exposure become one, with its highest label; two different rows of one second are
        two exposures."""
        events = log.sort(*KEYS, "timestamp", maintain_order=True)
        begins = (pl.col("timestamp") - pl.col("timestamp").shift(1).over(KEYS) > 5).fill_null(True)
        events = events.with_columns(begins=begins, exposure=begins.cum_sum())
        close = events.filter(~(pl.col("begins") & pl.col("begins").shift(-1, fill_value=True)))
        rest = [c for c in log.columns if c not in (*KEYS, "timestamp", "clicked", "row")]
        first = lambda name, *more: pl.col(name).first().over("exposure", *more)
        twin = first("timestamp", *rest) == first("timestamp")
        close = close.with_columns(stands=pl.when(twin).then(first("row", *rest)).otherwise(first("row")))
        close = close.select("row", "stands", label=pl.col("clicked").max().over("stands"))
        gone, kept = close.filter(pl.col("row") != pl.col("stands")), close.filter(
            pl.col("row") == pl.col("stands"))
        log = log.join(gone, on="row", how="anti", maintain_order="left")
        log = log.join(kept.drop("stands"), on="row", how="left", maintain_order="left")
        return log.with_columns(clicked=pl.coalesce("label", "clicked")).drop("row", "label")

    def fit(self):
        self.items = self.train.unique("item_id", keep="last", maintain_order=True).select("item_id",
            "category", "brand", "price")
        self.words = {c: self.train[c].value_counts().sort(["count", c], descending=[True, False])[c]
                      for c in ("category", "brand", "item_id")}
        price = self.train["price"]
        z = (price - price.mean())/price.std(ddof=0)
        self.heavy = bool(price.min() >= 0 and (z**3).mean() > 1)
        x = (price + 1).log() if self.heavy else price
        self.scale = x.mean(), x.std(ddof=0)
        self.rate = dict(self.train.group_by("scenario").agg(pl.col("clicked").mean()).iter_rows())

    def transform(self):
        ids = [self.train[c].replace_strict(words, pl.int_range(1, len(words) + 1, eager=True), default=0)
               for c, words in self.words.items()]
        self.fields = np.stack([x.to_numpy() for x in ids],
                               1) + np.cumsum([0, *(len(w) + 1 for w in self.words.values())])[:-1]
        x = (self.train["price"] + 1).log() if self.heavy else self.train["price"]
        self.dense = ((x - self.scale[0])/self.scale[1]).to_numpy().astype(np.float32)
        scenarios, index = sorted(self.rate), ["user_id", "timestamp"]
        moments = self.train.select(index).unique().sort(index)
        counted = [c + "=" + self.words[c] for c in ("category", "brand")]
        values = [f"{v}" for words in counted for v in words] + ["all items"]
        rows = [self.train.select(*index, "scenario", "clicked", value=v)
                for v in (pl.lit("category=") + pl.col("category"), pl.lit("brand=") + pl.col("brand"),
                          pl.lit("all items"))]
        long = pl.concat(rows).group_by(*index, "scenario", "value").agg(shown=pl.len().cast(pl.Float64),
            clicked=pl.col("clicked").sum().cast(pl.Float64))
        long = long.with_columns(at=pl.col("scenario") + "/" + pl.col("value")).drop("scenario", "value")
        shown, clicked = [], []
        table = np.empty((len(moments), len(scenarios), 2*len(values) + len(scenarios)), dtype=np.float32)
        # one scenario at a time: all at once would need several times the memory
        for s, name in enumerate(scenarios):
            here = long.filter(pl.col("at").str.starts_with(name + "/"))
            before = {}
            for what in ("shown", "clicked"):
                wide = here.pivot("at", index=index, values=what).fill_null(0)
                columns = [f"{name}/{v}" for v in values]
                wide = wide.with_columns(pl.lit(0.).alias(c) for c in columns if c not in wide.columns)
                wide = moments.join(wide, on=index, how="left", maintain_order="left").select("user_id",
                    *(pl.col(c).fill_null(0) for c in columns))
                before[what] = wide.select((pl.col(c).cum_sum().over("user_id") - pl.col(c))
                                           for c in columns).to_numpy()
            shown, clicked = before["shown"], before["clicked"]
            table[:, s, :len(values)] = (clicked - self.rate[name]*shown)/np.sqrt(1 + shown)
            table[:, s, len(values):2*len(values)] = np.log1p(shown)
        table[:, :, 2*len(values):] = np.eye(len(scenarios))
        rows = self.train.select(index).join(moments.with_row_index("row"), on=index, how="left",
                                             maintain_order="left")
        self.table, self.row, self.values = table, rows["row"].to_numpy().astype(np.int64), values


class Arrow:
    "pyarrow's reader, into pandas."
    def read(self, path):
        options = arrow_csv.ReadOptions(use_threads=False)
        self.raw = arrow_csv.read_csv(path, read_options=options).to_pandas()


def _same(what, ok):
    if not ok: sys.exit(f"{what}: the two ways differ")


def compare(ours, other):
    "End the run where they made different things."
    for name in ("raw", "log", "train"):
        mine, theirs = getattr(ours, name), getattr(other, name)
        for c in mine:
            _same(f"{name}.{c}", mine[c].astype(object).where(mine[c].notna(),
                None).tolist() == theirs[c].to_list())
    prep = ours.prep
    known = prep.part(preprocess.Categories).words_
    for c, words in other.words.items(): _same(f"words of {c}", known[c].words_ == tuple(words.to_list()))
    heavy, score = prep.part(preprocess.Numbers).scales_["price"]
    _same("scale", heavy == other.heavy and np.allclose([score.mean_, score.std_], other.scale, rtol=1e-10))
    rates = [other.rate[s] for s in prep.scenarios_]
    _same("rates", np.allclose(prep.part(preprocess.Histories).rate_, rates, rtol=1e-12))
    batch, V = ours.batch, len(other.values)
    _same("fields", np.array_equal(batch.fields.numpy(), other.fields))
    _same("dense", np.allclose(batch.dense[:, 0].numpy(), other.dense, rtol=1e-5, atol=1e-6))
    table, row = batch.history_table.numpy(), batch.history_row.numpy()
    place = np.empty(len(table), dtype=np.int64) # the two number users in different orders
    place[row] = other.row
    _same("history_row", len(table) == len(other.table) and np.array_equal(place[row], other.row))
    theirs = other.table[place]
    _same("values", list(prep.spec.history_names[:V]) == [f"liked {v}" for v in other.values])
    _same("shown before", np.array_equal(np.rint(np.expm1(table[:, :, V:2*V].astype(float))),
                                         np.rint(np.expm1(theirs[:, :, V:2*V].astype(float)))))
    _same("histories", np.allclose(table, theirs, rtol=1e-5, atol=1e-6))


WAYS = dict(ours=Ours, polars=Polars, pyarrow=Arrow)


def own_peak_mib():
    """Peak of this program alone: what Linux tells of a child through getrusage starts at the peak of its
    parent."""
    status = Path("/proc/self/status")
    lines = [line.split() for line in status.read_text().splitlines()
             if line.startswith("VmHWM")] if status.exists() else []
    return int(lines[0][1])/1024 if lines else peak_mib()


def one(path, name):
    "One run of one way: seconds of each step and peak memory."
    way, seconds = WAYS[name](), {}
    for step in STEPS if name != "pyarrow" else STEPS[:1]:
        start = time.perf_counter()
        getattr(way, step)(*([path] if step == "read" else []))
        seconds[step] = time.perf_counter() - start
    return dict(seconds=seconds, peak_mib=own_peak_mib(), rows=len(way.raw))


def measure(path, repeats):
    "All steps of both ways in turn, in this process."
    made, rows = {name: way() for name, way in WAYS.items()}, []
    for step in STEPS:
        names = [n for n in made if hasattr(made[n], step)]
        seconds = in_turn({n: (lambda n=n: getattr(made[n], step)(*([path] if step == "read" else [])))
                           for n in names}, repeats)
        rows += [(step, n, seconds["ours"], seconds[n]) for n in names[1:]]
    compare(made["ours"], made["polars"])
    return len(made["ours"].raw), rows


def line(rows, step, other, ours, theirs):
    "A row of the table, from seconds in turn."
    middle, low, high = ratio(ours, theirs)
    return dict(rows=rows, step=step, other=other, ours_s=float(np.median(ours)),
                other_s=float(np.median(theirs)), ours_rows_per_s=rows/float(np.median(ours)),
                ratio=middle, lowest=low, highest=high)


def main():
    "The command line."
    parser = options(__doc__, device=False)
    parser.add_argument("--large", action="store_true",
                        help="10,000,000 rows too: 500 MB of csv, about 5 GiB of memory and some minutes")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one: return print(json.dumps(one(*args.one)))
    table, peaks = [], []
    with tempfile.TemporaryDirectory() as folder:
        for n in [5000] if args.quick else [100_000, 1_000_000, *([10_000_000] if args.large else [])]:
            path = Path(folder)/"log.csv"
            write_log(path, n)
            if n <= 1_000_000:
                rows, found = measure(path, 1 if args.quick else args.repeats)
                table += [line(rows, *f) for f in found]
            each = {name: alone("bench.preprocess", "--one", path, name) for name in WAYS}
            if n > 1_000_000:
                table += [line(each["ours"]["rows"], step, other, [each["ours"]["seconds"][step]], [s])
                          for other in ("polars", "pyarrow") for step, s in each[other]["seconds"].items()]
            peaks += [dict(rows=e["rows"], way=name, peak_gib=e["peak_mib"]/1024,
                           whole_s=sum(e["seconds"].values())) for name, e in each.items()]
    print("\npeak memory of a fresh process (pyarrow: reading alone)")
    for p in peaks:
        print(f"{p['rows']:>11,} rows  {p['way']:<8}{p['peak_gib']:6.2f} GiB {p['whole_s']:8.1f} s")
    record("preprocess", table, write=not args.quick, peaks=peaks, polars=pl.__version__,
           pyarrow=pa.__version__)


if __name__ == "__main__":
    main()
