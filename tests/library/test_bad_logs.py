"""Every bad log ends in one line that names the file, the column or the row, and what to do; spreadsheets'
ways of writing are no error."""
import gzip
import io
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from multiscene_rec import data, logs, preprocess

HEAD = "user_id,item_id,scenario,timestamp,clicked,price\n"
ROWS = ("1,10,home,1767225600,1,5.5\n2,11,cart,1767225660,0,7\n"
        "1,12,home,1767225720,0,\n3,10,cart,1767225780,1,9\n")
MALL = data.toy_mall(n_users=60, n_items=30, n_events=1500, seed=2)
TRAIN, TEST = preprocess.time_split(MALL.events, fractions=(.8, .2))


def read(folder, content, name="log.csv", time_unit=None, **schema):
    "Read a log with this content, text or bytes."
    path = folder/name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return logs.read_log(path, data.Schema(**schema), time_unit)


def refused(folder, says, content, name="log.csv", **options):
    "The log is refused in one line that names the file and says so."
    with pytest.raises(ValueError) as e: read(folder, content, name, **options)
    said = str(e.value)
    assert says in said and name in said and "\n" not in said, said


def spoiled(row, column, value):
    "The log with one other cell."
    frame = pd.read_csv(io.StringIO(HEAD + ROWS), dtype=object, keep_default_na=False)
    frame.loc[row, column] = value
    return frame.to_csv(index=False)


# ---- the file

@pytest.mark.wrong("… is empty: expected a header line with …", area="your log",
                   cause="The file holds nothing, or its first line is blank.",
                   remedy="Write the log again; its first line names the columns.")
def test_an_empty_file(tmp_path):
    for content in ("", "\n" + HEAD + ROWS, "\ufeff"):
        refused(tmp_path,
                "is empty: expected a header line with user_id, item_id, scenario, timestamp, clicked",
                content)


@pytest.mark.wrong("… has a header but no rows: was the log written in full?", area="your log",
                   cause="The export stopped after the first line, or a filter left nothing.",
                   remedy="Write the log again, and look at the filter.")
def test_a_header_alone(tmp_path):
    for content in (HEAD, HEAD.rstrip("\n"), HEAD + "\n\n"):
        refused(tmp_path, "has a header but no rows: was the log written in full?", content)
    TRAIN.head(0).to_parquet(tmp_path/"none.parquet")
    with pytest.raises(ValueError, match="has a header but no rows"): logs.read_log(tmp_path/"none.parquet")


@pytest.mark.wrong("…: missing column …; the columns are …. Rename yours, or name it in the Schema",
                   area="your log",
                   cause="A column that every log needs is missing, or has another name.",
                   remedy="Rename it in the file, or name your column in the Schema.")
def test_a_missing_column(tmp_path):
    refused(tmp_path,
            "missing column 'clicked'; the columns are user_id, item_id, scenario, timestamp, liked, price. "
            "Rename yours, or name it in the Schema",
            (HEAD + ROWS).replace("clicked", "liked"))
    assert read(tmp_path, (HEAD + ROWS).replace("clicked", "liked"), label="liked").liked.tolist() == [1, 0,
        0, 1]
    TRAIN.drop(columns="item_id").to_parquet(tmp_path/"log.parquet")
    with pytest.raises(ValueError, match="missing column 'item_id'"): logs.read_log(tmp_path/"log.parquet")


@pytest.mark.wrong("…: column … appears twice in the header; rename one of the two or remove it",
                   area="your log",
                   cause="Two columns have one name, so nobody can say which is meant.",
                   remedy="Rename one of them, or take it out.")
def test_a_column_twice(tmp_path):
    for name in ("clicked", " clicked "):
        refused(tmp_path,
                "column 'clicked' appears twice in the header; rename one of the two or remove it",
                HEAD.replace("price", name) + ROWS)
    # columns without a name are nobody's twin
    unnamed = read(tmp_path, HEAD.replace("price", ",") + ROWS.replace("\n", ",\n"))
    assert unnamed.columns.tolist()[5:] == ["Unnamed: 5", "Unnamed: 6"]


@pytest.mark.wrong("… is not UTF-8 text; save it as UTF-8", area="your log",
                   cause="The file was saved in another encoding, such as Latin-1 or UTF-16.",
                   remedy="Save it as UTF-8; spreadsheets offer it as CSV UTF-8.")
def test_another_encoding(tmp_path):
    name = HEAD + ROWS.replace("home", "küche")
    for encoding in ("latin-1", "utf-16", "utf-16-le", "utf-16-be"):
        refused(tmp_path, "is not UTF-8 text; save it as UTF-8", name.encode(encoding))
    late = HEAD + ROWS*5000
    refused(tmp_path, "is not UTF-8 text", late.encode() + b"1,2,\xe9,1767225600,1,2\n")
    refused(tmp_path, "is not UTF-8 text", gzip.compress(name.encode("latin-1")), "log.csv.gz")
    assert read(tmp_path, name).scenario[0] == "küche"


@pytest.mark.wrong("… is cut off: fetch or write it again", area="your log",
                   cause="The end of a gzipped file is missing.", remedy="Fetch or write the file again.")
@pytest.mark.wrong("… is damaged (…): fetch or write it again", area="your log",
                   cause="Some bytes of a gzipped file have changed.",
                   remedy="Fetch or write the file again.")
@pytest.mark.wrong("… ends in .gz but is not a gzip file; remove .gz from its name", area="your log",
                   cause="The file has already been unpacked, or was never packed.",
                   remedy="Take .gz off its name, or pack it with gzip.")
def test_a_damaged_gz(tmp_path):
    rows = "".join(f"{i*7919 % 1000},{i},home,{1767225600 + i},{i % 2},{i}\n" for i in range(20_000))
    whole = gzip.compress((HEAD + rows).encode(), mtime=0)
    assert len(read(tmp_path, whole, "log.csv.gz")) == 20_000
    for cut in (30, len(whole)//2, len(whole) - 3):
        refused(tmp_path, "is cut off: fetch or write it again", whole[:cut], "log.csv.gz")
    for at in (len(whole)//2, len(whole) - 6):
        refused(tmp_path, "): fetch or write it again", whole[:at] + bytes([whole[at] ^ 255])
                + whole[at + 1:], "log.csv.gz")
    refused(tmp_path, "ends in .gz but is not a gzip file; remove .gz from its name", HEAD + ROWS,
            "log.csv.gz")


def test_a_gz_with_more_behind_it(tmp_path):
    """It is a gzip file, so the advice to remove .gz from its name would be wrong; zeros are what some tapes
    and tools add."""
    whole = gzip.compress((HEAD + ROWS).encode())
    for more in (b"x", b"\n", HEAD.encode(), whole[:5]):
        with pytest.raises(ValueError,
            match=r"log.csv.gz is (damaged \(other bytes follow the compressed ones\): fetch or write it "
                  r"again|cut off)"):
            read(tmp_path, whole + more, "log.csv.gz")
    refused(tmp_path, "is damaged (other bytes follow the compressed ones): fetch or write it again",
            whole + b"x", "log.csv.gz")
    for fine in (whole + bytes(7), whole + gzip.compress(ROWS.encode())):
        assert len(read(tmp_path, fine, "log.csv.gz")) >= 4


@pytest.mark.wrong("… is a parquet file by its first bytes, not a csv: name it .parquet", area="your log",
                   cause="The file was written as parquet under the name of a csv.",
                   remedy="Give it a name that ends in .parquet.")
@pytest.mark.wrong("… is a gzip file by its first bytes, not a csv: name it .csv.gz", area="your log",
                   cause="The file is packed, and its name does not say so.",
                   remedy="Give it a name that ends in .csv.gz.")
@pytest.mark.wrong("… is a zip file or a spreadsheet by its first bytes, not a csv: save it as csv",
                   area="your log", cause="An Excel file or a zip file was renamed.",
                   remedy="Save it as csv from the program that wrote it, or unpack it.")
def test_another_kind_by_the_name_of_a_csv(tmp_path):
    TRAIN.to_parquet(tmp_path/"log.parquet")
    content = (tmp_path/"log.parquet").read_bytes()
    for name in ("log.csv", "log.csv.gz"):
        refused(tmp_path, "is a parquet file by its first bytes, not a csv: name it .parquet", content, name)
    refused(tmp_path, "is a gzip file by its first bytes, not a csv: name it .csv.gz",
            gzip.compress((HEAD + ROWS).encode()))
    refused(tmp_path, "is a zip file or a spreadsheet by its first bytes, not a csv: save it as csv",
            b"PK\x03\x04" + bytes(50))
    assert read(tmp_path, "PAR,item_id,scenario,timestamp,clicked\n1,2,a,5,1\n", user="PAR",
                time_unit="none").PAR.tolist() == [1]


@given(st.data())
def test_any_damage_of_a_gz_is_one_clear_error(tmp_path_factory, data_):
    whole = gzip.compress((HEAD + ROWS*20).encode(), mtime=0)
    at, bit = data_.draw(st.integers(0, len(whole) - 1)), data_.draw(st.integers(0, 7))
    folder = tmp_path_factory.mktemp("gz")
    right = read(folder, whole, "log.csv.gz")
    try: got = read(folder, whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:], "log.csv.gz")
    except ValueError as e: assert "log.csv.gz" in str(e)
    else: pd.testing.assert_frame_equal(got, right)  # a bit of the time of packing says nothing


@pytest.mark.wrong("… is not a table: …", area="your log",
                   cause="A line has more cells than the header names, or a quotation mark is never closed.",
                   remedy="Correct the line that the message names; text that holds the separator stands in "
                          "quotation marks.")
def test_not_a_table(tmp_path):
    refused(tmp_path, "is not a table: ", HEAD + ROWS + "1,2,3,4,5,6,7,8\n")
    refused(tmp_path, "is not a table: ", HEAD + ROWS + '1,"2,3,4,5\n')


@pytest.mark.wrong("…: unknown ending; read_log reads .csv, .csv.gz and .parquet", area="your log",
                   cause="The file has another form, such as that of a spreadsheet.",
                   remedy="Save it as csv or parquet.")
def test_an_unknown_ending(tmp_path):
    for name in ("log.xlsx", "log", "log.txt"):
        refused(tmp_path, "unknown ending; read_log reads .csv, .csv.gz and .parquet", HEAD + ROWS, name)


@pytest.mark.wrong("no such file: …", area="your log",
                   cause="The path is misspelt, or starts from another folder than you think.",
                   remedy="Give the path from the folder you are in, or the whole path.")
def test_no_file(tmp_path):
    for path in (tmp_path/"log.csv", tmp_path, "-log.csv", "--json", "", "C:log.csv"):
        with pytest.raises(FileNotFoundError, match="no such file: "): logs.read_log(path)


@pytest.mark.wrong(
    "'-' is not a file: read_log reads a file ending in .csv, .csv.gz or .parquet, not standard input",
    area="your log", cause="A dash stands for standard input in other programs.",
                   remedy="Write the log into a file, and name it.")
@pytest.mark.wrong(
    "… is a URL: read_log reads a file ending in .csv, .csv.gz or .parquet; download it first",
    area="your log", cause="The log lies on another machine.",
                   remedy="Fetch the file with a browser or a program for that, and name it.")
def test_what_is_no_path(tmp_path, monkeypatch):
    with pytest.raises(ValueError,
                       match="'-' is not a file: read_log reads a file ending in .csv, .csv.gz or .parquet, "
                             "not standard input"):
        logs.read_log("-")
    for text in ("https://example.org/log.csv", "s3://shop/log.parquet", "file:///tmp/log.csv",
                 "hdfs://x/y.csv.gz", Path("https://example.org/log.csv")):
        with pytest.raises(ValueError) as e: logs.read_log(text)
        assert str(
            e.value) == (f"{text} is a URL: read_log reads a file ending in .csv, .csv.gz or .parquet; "
                         "download it first")
    for name in ("HOME", "USERPROFILE"): monkeypatch.setenv(name, str(tmp_path))
    read(tmp_path, HEAD + ROWS)
    assert len(logs.read_log("~/log.csv")) == len(logs.read_log(Path("~")/"log.csv")) == 4
    with pytest.raises(FileNotFoundError) as e: logs.read_log("~/other.csv")
    assert str(e.value) == f"no such file: {tmp_path/'other.csv'}"


@pytest.mark.wrong('… is needed here but not installed: pip install "multiscene_rec[…]"', area="your log",
                   cause="Parquet files are read by pyarrow, which comes with an extra.",
                   remedy="Install the extra that the message names, or save the log as csv.")
def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    TRAIN.to_parquet(tmp_path/"log.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError) as e: logs.read_log(tmp_path/"log.parquet")
    assert 'pyarrow.parquet is needed here but not installed: pip install "multiscene_rec[data]"' in str(
        e.value)


@pytest.mark.wrong("… is not a parquet file, or is damaged (…): write it again", area="your log",
                   cause="The file was cut off, or is something else by the name of parquet.",
                   remedy="Write it again.")
def test_damaged_parquet(tmp_path):
    TRAIN.to_parquet(tmp_path/"log.parquet")
    whole = (tmp_path/"log.parquet").read_bytes()
    for content in (b"", b"no", whole[:-20], whole[:len(whole)//2]):
        refused(tmp_path, "is not a parquet file, or is damaged (", content, "log.parquet")


@pytest.mark.wrong("…: column … holds …, not one value per row; split it into separate rows or columns",
                   area="your log",
                   cause="A column of a parquet file holds lists or tables.",
                   remedy="Write one row for each entry, or one column for each place in the list.")
def test_lists_in_cells(tmp_path):
    for column in ("item_id", "price", "scenario"):
        frame = TRAIN.head(3).astype({column: object})
        frame[column] = [[1], [2, 3], [4]]
        frame.to_parquet(tmp_path/"log.parquet")
        with pytest.raises(ValueError) as e: logs.read_log(tmp_path/"log.parquet")
        assert f"column '{column}' holds list<" in str(
            e.value) and ", not one value per row; split it into separate rows or columns" in str(e.value)


def table(**columns):
    "A log as pyarrow holds it, with other columns."
    plain = pa.Table.from_pandas(TRAIN.head(2), preserve_index=False)
    for name, (values, kind) in columns.items():
        at = plain.schema.get_field_index(name)
        plain = plain.append_column(name, pa.array(values, kind)) if at < 0 else plain.set_column(at, name,
            pa.array(values, kind))
    return plain


def test_maps_and_structs_in_parquet(tmp_path):
    nested = {"map": ([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
              "struct": ([dict(a=1), None], pa.struct({"a": pa.int64()}))}
    for kind, column in nested.items():
        parquet.write_table(table(price=column), tmp_path/"log.parquet")
        with pytest.raises(ValueError,
                           match=f"column 'price' holds {kind}<.*, not one value per row; split it"):
            logs.read_log(tmp_path/"log.parquet")
        # a column that nobody named may hold anything
        parquet.write_table(table(tags=column), tmp_path/"log.parquet")
        assert logs.read_log(tmp_path/"log.parquet").tags.notna().any()


@pytest.mark.wrong("… holds a type that cannot be read (…); leave out that column", area="your log",
                   cause="A column of a parquet file is of a kind that pandas does not have.",
                   remedy="Write the file without that column, or as text.")
def test_a_type_of_parquet_that_pandas_does_not_have(tmp_path, monkeypatch):
    TRAIN.to_parquet(tmp_path/"log.parquet")
    def read(self): raise pa.ArrowNotImplementedError("Unsupported cast")
    monkeypatch.setattr(parquet.ParquetFile, "read", read)
    with pytest.raises(ValueError,
                       match=r"log.parquet holds a type that cannot be read \(Unsupported cast\); leave out "
                             r"that column"):
        logs.read_log(tmp_path/"log.parquet")


def test_a_column_twice_in_parquet(tmp_path):
    plain = table()
    for name in ("price", "other"):
        twice = plain.append_column(name, plain["price"]).append_column(name, plain["price"])
        parquet.write_table(twice, tmp_path/"log.parquet")
        with pytest.raises(ValueError,
            match=f"log.parquet: column '{name}' appears twice in the header; rename one of the two or "
                  "remove it"):
            logs.read_log(tmp_path/"log.parquet")


def test_a_folder_name_is_no_column(tmp_path):
    "pyarrow reads NAME=VALUE in a path as a column, unless it is told not to."
    (tmp_path/"clicked=7").mkdir()
    TRAIN.to_parquet(tmp_path/"clicked=7"/"log.parquet")
    assert logs.read_log(tmp_path/"clicked=7"/"log.parquet").clicked.tolist() == TRAIN.clicked.tolist()


@pytest.mark.wrong("Schema.…: give a tuple of column names, got …", area="your log",
                   cause="Columns are named by a number, a set or something else that is no list.",
                   remedy="Give a tuple or a list of names, such as ('price',).")
def test_a_schema_of_another_kind():
    for value in (5, {"price"}, {"price": 1}, 1.5):
        for name in ("categorical", "numeric", "item_columns", "history"):
            with pytest.raises(ValueError, match=f"Schema.{name}: give a tuple of column names, got "):
                data.Schema(**{name: value})


# ---- cells

@pytest.mark.wrong(
    "…: column …, row … below the header: … is not a label from 0 to 1 (1 = clicked, 0 = shown and not "
    "clicked)", area="your log",
                   cause="A label is empty, a word or a number such as a rating.",
    remedy="Divide ratings by the highest one, or write 1 for a click and 0 for none; leave rows without an "
           "answer out.")
def test_a_label_outside_0_to_1(tmp_path):
    for value in ("5", "-1", "yes", "", "inf"):
        with pytest.raises(ValueError) as e: read(tmp_path, spoiled(2, "clicked", value))
        assert (f"column 'clicked', row 3 below the header: {value or None!r} is not a label from 0 to 1 (1 "
                "= clicked" in str(e.value))
    assert read(tmp_path, spoiled(2, "clicked", "0.25")).clicked.tolist() == [1, 0, .25, 1]


@pytest.mark.wrong(
    "…: column …, row … below the header: … is not a number; leave the cell empty where the value is not "
    "known", area="your log",
                   cause="A column of numbers holds a word, such as a currency or n/a.",
    remedy="Write the number alone, or leave the cell empty.")
@pytest.mark.wrong(
    "…: column …, row … below the header: … is not a finite number; leave the cell empty where the value is "
    "not known", area="your log",
                   cause="A column of numbers holds inf, often from a division by zero.",
    remedy="Leave the cell empty; a missing number becomes the mean.")
def test_numbers_that_are_none(tmp_path):
    for value in ("cheap", "5 EUR"):
        refused(tmp_path, "column 'price', row 2 below the header: ", spoiled(1, "price", value))
    refused(tmp_path, "'cheap' is not a number; leave the cell empty where the value is not known",
            spoiled(1, "price", "cheap"))
    for value in ("inf", "-inf", "Infinity", "1e999"):
        refused(tmp_path, "column 'price', row 4 below the header: ", spoiled(3, "price", value))
        refused(tmp_path, "is not a finite number; leave the cell empty where the value is not known",
                spoiled(3, "price", value))
    assert read(tmp_path, HEAD + ROWS).price.isna().tolist() == [False, False, True, False]
    TRAIN.assign(price=np.inf).to_parquet(tmp_path/"log.parquet")
    with pytest.raises(ValueError,
                       match="column 'price', row 1 below the header: inf is not a finite number"):
        logs.read_log(tmp_path/"log.parquet")


@pytest.mark.wrong(
    "…: column …, row … below the header: … is not an ISO time such as 2026-01-31T12:00:00Z (the column is "
    "not all whole seconds)", area="your log",
                   cause="A time is written in another way, such as 31.01.2026.",
    remedy="Write seconds since 1970, or year-month-day and the time of day.")
@pytest.mark.wrong(
    "…: column …, row … below the header: … is not a time: whole seconds since 1970, or an ISO time such as "
    "2026-01-31T12:00:00Z", area="your log",
                   cause="A number in the column of times is far too large.",
    remedy="Write seconds since 1970, or ISO times.")
def test_times_that_are_none(tmp_path):
    for value in ("noon", "31.01.2026 12:00", "2026-13-01"):
        refused(tmp_path,
                f"row 2 below the header: {value!r} is not an ISO time such as 2026-01-31T12:00:00Z (the "
                "column is not all whole seconds)", spoiled(1, "timestamp", value))
    refused(tmp_path, "row 1 below the header: '1767225600' is not an ISO time",
            spoiled(1, "timestamp", "2026-01-01"))
    refused(tmp_path,
            "row 1 below the header: '1e30' is not a time: whole seconds since 1970, or an ISO time",
            spoiled(0, "timestamp", "1e30"))


@pytest.mark.wrong(
    "…: column …, row … below the header: … has no time zone, but row … has one (…); write the zone in every "
    "row, such as 2026-01-31T12:00:00Z", area="your log",
                   cause="Some times say which zone they are of and others do not, so some would be hours "
                         "off.", remedy="Write the zone in every row, such as Z for UTC or +01:00.")
def test_mixed_time_zones(tmp_path):
    def log(*times): return HEAD + "".join(f"1,{k},home,{t},{k % 2},1\n" for k, t in enumerate(times))
    refused(tmp_path,
            "row 3 below the header: '2026-01-01 14:00' has no time zone, but row 1 has one "
            "('2026-01-01T12:00:00Z'); write the zone in every row",
            log("2026-01-01T12:00:00Z", "2026-01-01T13:00+01:00", "2026-01-01 14:00"))
    refused(tmp_path,
            "row 1 below the header: '2026-01-01' has no time zone, but row 3 has one ('2026-01-01 "
            "14:00+0200')", log("2026-01-01", "2026-01-02", "2026-01-01 14:00+0200"))
    same = ["2026-01-01T12:00:00Z", "2026-01-01T14:00:00+02:00", "2026-01-01 06:30-0530", "2026-01-01T12Z",
            "2026-01-01T13+01", "2026-01-01T12:00:00.9+00:00"]
    assert read(tmp_path, log(*same)).timestamp.tolist() == [1767268800]*6
    # none names one: UTC
    assert read(tmp_path, log("2026-01-01", "2026-01-01T00:00", "")).timestamp.tolist()[:2] == [1767225600]*2


# ---- units of time

PER_SECOND = dict(s=1, ms=10**3, us=10**6, ns=10**9)
TIMES = [1767225600, 1767225661, 631152000, 4102444799]


def timed(times): return HEAD + "".join(f"1,{k},home,{t},{k % 2},1\n" for k, t in enumerate(times))


@pytest.mark.wrong(
    "…: column …, row … below the header: … looks like … since 1970; pass time_unit=…, or --time-unit … to "
    "the command", area="your log",
                   cause="Most times are far too large to be seconds, and just right for another unit.",
    remedy="Name the unit as the message says.")
@pytest.mark.parametrize("unit, name", [("ms", "milliseconds"), ("us", "microseconds"),
                                        ("ns", "nanoseconds")])
def test_another_unit_is_recognised_by_size(tmp_path, unit, name):
    per = PER_SECOND[unit]
    log = timed([t*per for t in TIMES])
    refused(tmp_path,
            f"column 'timestamp', row 1 below the header: '{TIMES[0]*per}' looks like {name} since 1970; "
            f"pass time_unit='{unit}', or --time-unit {unit} to the command", log)
    assert read(tmp_path, log, time_unit=unit).timestamp.tolist() == TIMES
    mixed = [TIMES[0]]*2 + [t*per for t in TIMES]  # the first that is so is named
    refused(tmp_path, f"row 3 below the header: '{TIMES[0]*per}' looks like {name}", timed(mixed))
    few = timed([*range(1767225600, 1767225605), TIMES[0]*per])  # dirt, which clean drops and counts
    assert read(tmp_path, few).timestamp.tolist()[-1] == TIMES[0]*per
    frame = TRAIN.assign(timestamp=TRAIN.timestamp*per)
    frame.to_parquet(tmp_path/"log.parquet")
    with pytest.raises(ValueError, match=f"looks like {name} since 1970"):
        logs.read_log(tmp_path/"log.parquet")
    assert logs.read_log(tmp_path/"log.parquet",
                         time_unit=unit).timestamp.tolist() == TRAIN.timestamp.tolist()


@pytest.mark.parametrize("unit", PER_SECOND)
@pytest.mark.parametrize("missing", [False, True])
def test_a_named_unit_becomes_whole_seconds(tmp_path, unit, missing):
    per = PER_SECOND[unit]
    # the last moment of a second, and before 1970
    times = [TIMES[0]*per, TIMES[1]*per + per - 1, -1, 0, -per - 1][:None if per > 1 else 2]
    log = read(tmp_path, timed([*times, *[""]*missing]), time_unit=unit)
    assert log.timestamp.tolist()[:len(times)] == [t//per for t in times] and log.timestamp.dtype == ("Int64"
        if missing else "int64")
    if per > 1:
        assert read(tmp_path, timed([f"{TIMES[0]*per}.5", f"{per}.0"]),
                    time_unit=unit).timestamp.tolist() == [TIMES[0], 1]


@given(day=st.integers(0, 40_000), second=st.integers(0, 86_399))
def test_days_with_a_fraction(tmp_path_factory, day, second):
    folder = tmp_path_factory.mktemp("days")
    log = read(folder, timed([day, repr(day + second/86_400)]), time_unit="days")
    assert log.timestamp.tolist() == [day*86_400, day*86_400 + second]


@pytest.mark.parametrize("times, kind", [(["0", "1", "2"], "int64"), (["0.5", "1", "2.25"], "float64"),
                                         (["3.0", "4.0"], "int64"), (["1767225600000", "-5"], "int64"),
                                         (["0", "", "2"], "Int64"), (["0.5", ""], "float64")])
def test_numbers_of_no_unit_stay_as_they_are(tmp_path, times, kind):
    log = read(tmp_path, timed(times), time_unit="none")
    assert [None if pd.isna(t) else t for t in log.timestamp] == [float(t) if t else None
        for t in times] and log.timestamp.dtype == kind


@pytest.mark.wrong("…: column …, row … below the header: … is not a number of …", area="your log",
                   cause="A unit was named for the times, and some of them are dates or words.",
                   remedy="Leave the unit out for ISO text, or write every time as a number.")
@pytest.mark.wrong("…: column …, row … below the header: … is not a number, which time_unit='none' needs",
                   area="your log", cause="Times that count from an origin of their own must all be numbers.",
                   remedy="Write every time as a number, or leave the unit out.")
@pytest.mark.wrong("…: column … holds dates; leave out time_unit", area="your log",
                   cause="A parquet file says itself that the column holds dates.",
                   remedy="Leave the unit out.")
@pytest.mark.wrong("time_unit must be one of …, or None; got …", area="your log",
                   cause="The unit is misspelt, or is one that the reader does not know.",
                   remedy="Use one of the six.")
def test_what_goes_against_a_named_unit(tmp_path):
    for unit, says in (("s", "of seconds"), ("ms", "of milliseconds"), ("days", "of days"),
                       ("none", ", which time_unit='none' needs")):
        for value in ("2026-01-01", "noon", "1e30", "inf"):
            says_all = (f"column 'timestamp', row 2 below the header: '{value}' is not a "
                        f"number{' '*(says[0] != ',')}{says}")
            refused(tmp_path, says_all, timed(["1", value]), time_unit=unit)
    TRAIN.assign(timestamp=pd.to_datetime(TRAIN.timestamp, unit="s")).to_parquet(tmp_path/"log.parquet")
    with pytest.raises(ValueError, match="log.parquet: column 'timestamp' holds dates; leave out time_unit"):
        logs.read_log(tmp_path/"log.parquet", time_unit="s")
    with pytest.raises(ValueError,
                       match="time_unit must be one of s, ms, us, ns, days, none, or None; got 'minutes'"):
        read(tmp_path, HEAD + ROWS, time_unit="minutes")


# ---- points and commas

def german(*prices, other=None): # a log with semicolons, these prices, and in each row another number
    return "user_id;item_id;scenario;timestamp;clicked;price;weight\n" + "".join(
        f"1;{k};home;1767225600;{k % 2};{p};{other or 1}\n" for k, p in enumerate(prices))


@pytest.mark.wrong(
    "…: column …, row … below the header: … has a point, which may be a decimal point or a "
    "thousands separator, since semicolons go with decimal commas; write the column with one decimal sign "
    "and no "
    "thousands separator",
                   area="your log",
    cause="In a file with semicolons 2.781 can be less than three or nearly three thousand.",
    remedy="Write 2781 or 2,781, and use one decimal sign in a column.")
@pytest.mark.parametrize("prices, other, row, value", [
    (["465", "2.781", "3.741"], None, 2, "2.781"), (["2.781", "465"], "1,5", 1, "2.781"),
    (["2.781", "3.741"], "1,5", 1, "2.781"),
    (["4,5", "2.781"], None, 2, "2.781"), (["4,5", "2.5"], None, 2, "2.5"),
    (["1.234,56", "3"], None, 1, "1.234,56"), (["12.345.678", "1"], None, 1, "12.345.678"),
    (["-2.781", "", "10"], None, 1, "-2.781")])
def test_a_point_that_may_stand_between_thousands(tmp_path, prices, other, row, value):
    refused(tmp_path,
            f"column 'price', row {row} below the header: '{value}' has a point, which may be a decimal "
            "point or a thousands separator, since semicolons go with "
            "decimal commas; write the column with one decimal sign and no thousands separator",
            german(*prices, other=other), numeric=("price", "weight"), categorical=())


@pytest.mark.parametrize("prices, numbers", [
    (["5.5", "7"], [5.5, 7]), (["5,5", "7"], [5.5, 7]), (["2.781", "3.741"], [2.781, 3.741]),
    (["0.125", "3"], [.125, 3]), (["2.781", "3.5", "4"], [2.781, 3.5, 4]),
    (["465", "2781"], [465, 2781]), (["1,25", "-,5", "+3"], [1.25, -.5, 3]), (["1e3", "2,5e-1"], [1000, .25]),
    (["2.78125", ""], [2.78125, None])])
def test_decimals_that_can_be_read_in_one_way(tmp_path, prices, numbers):
    for packed in (False, True):
        text = german(*prices).encode()
        log = read(tmp_path, gzip.compress(text) if packed else text, "log.csv.gz" if packed else "log.csv",
                   numeric=("price",), categorical=())
        assert [None if pd.isna(p) else p for p in log.price] == numbers
    plain = german(*prices).replace(";", "|").encode()  # with other separators a point is a decimal point
    if not any("," in p for p in prices):
        assert [None if pd.isna(p) else p for p in read(tmp_path, plain, numeric=("price",),
                                                        categorical=()).price] == numbers


def test_points_in_labels_times_and_columns_that_nobody_named(tmp_path):
    text = german("4,5", "5,5").replace(";1767225600;0", ";1767225600.5;0.25")
    log = read(tmp_path, text, numeric=("price",), categorical=())
    assert log.clicked.tolist() == [.25, 1] and log.timestamp.tolist() == [1767225600]*2
    refused(tmp_path, "column 'clicked', row 2 below the header: '0.5' has a point",
            german("1", "1").replace(";0;1;1\n", ";0,5;1;1\n").replace(";1;1;1\n", ";0.5;1;1\n"))
    free = read(tmp_path, german("1", "2", other="2.781").replace("2.781\n", "465\n", 1), numeric=(),
                categorical=(), item_columns=())
    assert free.weight.tolist() == ["465", "2.781"], "text, as pandas finds it"
    ids = read(tmp_path, german("1", "2").replace(";0;home", ";2.781;home"), numeric=(), categorical=(),
               item_columns=())
    assert ids.item_id.tolist() == ["2.781", "1"]
    empty = read(tmp_path, german("", ""), numeric=("price",), categorical=())
    assert empty.price.isna().all()


def test_several_labels(tmp_path):
    text = HEAD.replace("price", "bought") + "1,10,home,1767225600,1,0\n2,11,cart,1767225660,0,1\n"
    log = read(tmp_path, text, label=("clicked", "bought"))
    assert log.clicked.tolist() == [1, 0] and log.bought.tolist() == [0, 1] and log.bought.dtype == np.int64
    refused(tmp_path, "column 'bought', row 2 below the header: '3' is not a label from 0 to 1",
            text.replace("0,1\n", "0,3\n"), label=("clicked", "bought"))
    refused(tmp_path, "missing column 'bought'", HEAD + ROWS, label=("clicked", "bought"))


# ---- beyond reading

@pytest.mark.wrong("fit: every label is …: a model cannot learn from one class; check the column …",
                   area="your log", cause="All rows are clicks, or none is: often only one kind was logged.",
                   remedy="Log what was shown and not clicked, too; check that the Schema names the right "
                          "column.")
def test_one_class(tmp_path):
    for value in (0, 1, .5):
        log = read(tmp_path, TRAIN.assign(clicked=value).to_csv(index=False))  # reading it is no error
        with pytest.raises(ValueError,
            match=f"every label is {value}: a model cannot learn from one class; check the column 'clicked'"):
            preprocess.Preprocessor().fit(log, MALL.users, MALL.items)
    soft = TRAIN.assign(clicked=np.linspace(.4, .6, len(TRAIN)))
    assert preprocess.Preprocessor().fit(soft, MALL.users, MALL.items).transform(soft,
        preprocess.EventLog(soft, MALL.users)).label.std() > 0


@pytest.mark.wrong("fit: column …, row … is not a label from 0 to 1; clean the log first", area="your log",
                   cause="A row of the training frame has no answer.",
                   remedy="Run clean, which drops such rows and counts them.")
def test_rows_without_id_label_or_time_are_dropped_and_counted():
    log = TRAIN.astype({"user_id": "Int64", "timestamp": "Int64", "clicked": "float64"}).reset_index(
        drop=True)
    log.loc[3, "clicked"], log.loc[4, "user_id"], log.loc[5, "timestamp"] = np.nan, pd.NA, pd.NA
    with pytest.raises(ValueError,
                       match="column 'clicked', row 3 is not a label from 0 to 1; clean the log first"):
        preprocess.Preprocessor().fit(log, MALL.users, MALL.items)
    tidy, report = preprocess.clean(log)
    assert not {3, 4, 5} & set(tidy.index) and len(tidy) == report.rows_out
    for rule, row in (("label", 3), ("missing id", 4), ("time", 5)):
        assert report.rows.row[report.rows.rule == rule].tolist() == [
            row] and f"{rule:<11}{1:>7,} dropped" in str(report)
    assert preprocess.Preprocessor().fit(tidy, MALL.users, MALL.items).spec


@pytest.mark.wrong("clean: none of the … rows is left; rule … dropped …", area="your log",
                   cause="Every row breaks a rule: often a column is in another unit, or the Schema names "
                         "the wrong one.",
                   remedy="Look at the column of the rule that is named.")
@pytest.mark.wrong("; if the times in … are milliseconds, divide them by 1000", area="your log",
                   cause="Times are milliseconds since 1970, so all lie far in the future.",
                   remedy="Divide the column by 1000.")
def test_times_in_milliseconds():
    with pytest.raises(ValueError,
                       match="none of the 1,195 rows is left; rule 'time' dropped 1,195; if the times in "
                             "'timestamp' are milliseconds, divide them by 1000"):
        preprocess.clean(TRAIN.assign(timestamp=TRAIN.timestamp*1000))
    with pytest.raises(ValueError,
                       match="clean: none of the 1,195 rows is left; rule 'label' dropped 1,195$"):
        preprocess.clean(TRAIN.assign(clicked=5))


@pytest.mark.wrong(
    "…: … … appears twice, in rows … and …; keep one row of each, such as ….drop_duplicates(…, keep='last')",
    area="your log",
                   cause="A frame of users or items describes one of them twice.",
    remedy="Keep one row of each id, such as the last.")
@pytest.mark.wrong("…: column … is empty in row …; drop the rows without an id", area="your log",
                   cause="A row of the frame of users or items has no id.",
                   remedy="Drop that row, or fill its id in.")
def test_twins_among_users_and_items():
    twice = pd.concat([MALL.items, MALL.items.iloc[[7]]])
    with pytest.raises(ValueError) as e: preprocess.Preprocessor().fit(TRAIN, MALL.users, twice)
    assert str(
        e.value) == ("items: item_id 7 appears twice, in rows 7 and 30; keep one row of each, such as "
                     "items.drop_duplicates('item_id', keep='last')")
    kept = preprocess.Preprocessor().fit(TRAIN, MALL.users,
                                         twice.drop_duplicates("item_id", keep="last").sort_values("item_id"))
    assert kept.spec == preprocess.Preprocessor().fit(TRAIN, MALL.users, MALL.items).spec
    with pytest.raises(ValueError,
                       match="users: column 'user_id' is empty in row 1; drop the rows without an id"):
        preprocess.Preprocessor().fit(TRAIN, MALL.users.assign(user_id=[0, None, *range(2, 60)]), MALL.items)


@pytest.mark.wrong(
    "transform: row … has scenario …, which is unknown; the known ones are …: drop such rows, or fit on rows "
    "that include it",
    area="your log",
                   cause="The scenario is newer than the training rows, or is spelt otherwise.",
    remedy="Drop those rows, or fit again on rows that hold it.")
@pytest.mark.wrong("column …, row …: an infinite value; clean the log, or make it missing", area="your log",
                   cause="A number was divided by zero after the log was read.",
                   remedy="Run clean, or put a missing value there; it becomes the mean.")
@pytest.mark.wrong(
    "column …, row …: … is below 0, but no training row was; clean the log, or make it missing",
    area="your log",
                   cause="A column such as the price was never negative among the training rows, so it is "
                         "scaled by a logarithm.", remedy="Run clean, or put a missing value there.")
def test_what_only_the_test_rows_hold():
    prep, past = preprocess.Preprocessor().fit(TRAIN, MALL.users, MALL.items), preprocess.EventLog(TRAIN,
        MALL.users)
    n = len(TEST)
    with pytest.raises(ValueError,
                       match="transform: row 2 has scenario 'kiosk', which is unknown; the known ones are "
                             "cart, home, live, search: "
                             "drop such rows, or fit on rows that include it"):
        prep.transform(TEST.assign(scenario=["home"]*2 + ["kiosk"]*(n - 2)), past)
    for value in (np.inf, -np.inf):
        with pytest.raises(ValueError,
            match="column 'price', row 1: an infinite value; clean the log, or make it missing"):
            prep.transform(TEST.assign(price=[1., value] + [1.]*(n - 2)), past)
    with pytest.raises(ValueError,
                       match="column 'price', row 0: -3.0 is below 0, but no training row was; clean the "
                             "log, or make it missing"):
        prep.transform(TEST.assign(price=-3.), past)


# ---- no errors: what spreadsheets write

DIALECTS = {"BOM": lambda t: "\ufeff" + t, "semicolons": lambda t: t.replace(",", ";"),
            "CRLF": lambda t: t.replace("\n", "\r\n"), "tabs": lambda t: t.replace(",", "\t"),
            "decimal comma": lambda t: t.replace(",", ";").replace("5.5", "5,5"),
            "no last line end": lambda t: t.rstrip("\n"), "blanks": lambda t: t.replace(",", ", "),
            "all of Excel": lambda t: "\ufeff" + t.replace(",", ";").replace("5.5", "5,5").replace("\n",
                "\r\n"), "quotes": lambda t: t.replace("home", '"home"')}


@pytest.mark.parametrize("way", DIALECTS)
@pytest.mark.parametrize("packed", [False, True])
def test_ways_of_writing_are_no_error(tmp_path, way, packed):
    plain, other = read(tmp_path, HEAD + ROWS), DIALECTS[way](HEAD + ROWS).encode()
    pd.testing.assert_frame_equal(read(tmp_path, gzip.compress(other), "other.csv.gz") if packed
                                  else read(tmp_path, other, "other.csv"), plain)
    assert plain.user_id.tolist() == [1, 2, 1, 3] and plain.price.tolist()[:2] == [5.5, 7]


def test_parquet_works_as_csv_does(tmp_path):
    MALL.events.to_csv(tmp_path/"log.csv", index=False)
    MALL.events.to_parquet(tmp_path/"log.parquet", index=False)
    both = [logs.read_log(tmp_path/name) for name in ("log.csv", "log.parquet")]
    pd.testing.assert_frame_equal(*both, check_dtype=False)
    made = []
    for log in both:
        train, test = preprocess.time_split(preprocess.clean(log)[0], fractions=(.8, .2))
        made.append(preprocess.Preprocessor().fit(train, MALL.users, MALL.items).transform(test,
            preprocess.EventLog(train, MALL.users)))
    for name in ("fields", "dense", "label", "history_table", "history_row"):
        assert getattr(made[0], name).equal(getattr(made[1], name))


# ---- read in blocks, as one

cell = st.sampled_from(["1", "007", "-3", "2.5", "1e3", "", "a", "a b", "x,y", 'say "no"', "true", "False",
                        "9007199254740993", "18446744073709551615", " 4", "nan", "NA", "0.1", "ü"])


@given(rows=st.lists(st.tuples(cell, cell, cell, st.sampled_from(["1767225600", "", "1767225601.5"]),
                               st.sampled_from(["0", "1", "0.5", "true"]),
                               st.sampled_from(["", "1", "2.5", "3"]), cell,
                               st.sampled_from(["1", "2", "", "7.0", "true"])), min_size=1, max_size=9),
       chunk=st.integers(1, 4))
def test_blocks_change_nothing(tmp_path_factory, rows, chunk):
    names = ["u", "i", "s", "t", "y", "n", "c", "free"]
    schema = data.Schema(user="u", item="i", scenario="s", time="t", label="y", numeric=("n",),
                         categorical=("c",), item_columns=())
    path = tmp_path_factory.mktemp("blocks")/"log.csv"
    pd.DataFrame(rows, columns=names).to_csv(path, index=False)
    whole = logs.read_log(path, schema)
    keep, logs._CHUNK = logs._CHUNK, chunk
    try: pd.testing.assert_frame_equal(logs.read_log(path, schema), whole)
    finally: logs._CHUNK = keep
    plain = pd.read_csv(path, keep_default_na=False, na_values=[""], skipinitialspace=True, low_memory=False)
    # what the schema does not name is as pandas finds it
    pd.testing.assert_series_equal(whole.free, plain.free)
    pd.testing.assert_series_equal(whole.n, plain.n)
    text = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    for c in "uic":
        known = [v.strip() for v in text[c] if v.strip()]
        short = [v.removesuffix(".0") for v in known]
        numbers = bool(known) and all(v.lstrip("-").isdigit() and len(v.lstrip("-")) <= 18
                                      and str(int(v)) == v for v in short)
        assert [None if pd.isna(v) else v for v in whole[c]] == [None if not v.strip()
            else int(v.strip().removesuffix(".0")) if numbers else v.strip() for v in text[c]]
    assert [None if pd.isna(v) else v for v in whole.s] == [v or None for v in text.s]


def test_a_column_is_decided_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "_CHUNK", 2)
    log = read(tmp_path, HEAD + ROWS + "007,13,home,1767225840,1,3\n", numeric=(), categorical=(),
               item_columns=())
    assert log.user_id.tolist() == ["1", "2", "1", "3", "007"] and log.item_id.tolist() == [10, 11, 12, 10,
        13] and log.price.dtype == np.float64
    refused(tmp_path, "column 'clicked', row 4 below the header: '7' is not a label",
            spoiled(3, "clicked", "7"))
