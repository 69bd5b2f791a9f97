"""Files of every format, and the ways in which reading used to go wrong in silence: right counts, or one clear line."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import itertools
import json
import lzma
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosum_ext._files import check_npz
from zerosum_ext.cli.main import main
from zerosum_ext.data import wording
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.readers import sources
from zerosum_ext.data.readers import text as text_reader
from zerosum_ext.data.vocabulary import Vocabulary

pa = pytest.importorskip("pyarrow")

ROWS = [("u1", "b", 4.0, 100), ("u2", "b", 3.0, 50), ("u1", "a", 5.0, 99)]


def write(tmp_path: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def triples(x: Interactions, column: str | None = None) -> list[tuple]:
    users, items = x.pairs()
    columns = [x.decode_users(users).tolist(), x.decode_items(items).tolist()]
    if column:
        columns.append(x.columns[column].tolist())
    return sorted(zip(*columns, strict=True))


def frame() -> pa.Table:
    names = ("user_id", "item_id", "rating", "timestamp")
    return pa.table(dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True)))


EXPECTED = sorted((u, i, r) for u, i, r, _ in ROWS)
TEXT = "user_id,item_id,rating,timestamp\n" + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in ROWS)


# ------------------------------------------------------------------------------------------------------ formats


def packed(kind: str, data: bytes, path: Path) -> None:
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ratings.csv", data)
    elif kind == "zst":
        with pa.CompressedOutputStream(str(path), "zstd") as stream:
            stream.write(data)
    else:
        pack = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind]
        path.write_bytes(pack(data))


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "zip"])
def test_packed_text_and_what_is_cut_off(tmp_path, kind):
    path = tmp_path / f"data.csv.{kind}"
    packed(kind, TEXT.encode(), path)
    x = Interactions.from_file(path)
    assert triples(x, "rating") == EXPECTED
    assert x.report.rows == 3
    data = "user,item\n" + "".join(f"{k},{k * k}\n" for k in range(30_000))
    packed(kind, data.encode(), path)
    assert Interactions.from_file(path).nnz == 30_000
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"data.csv.{kind} .*(complete|cannot be read)") as caught:
        Interactions.from_file(path)
    assert "\n" not in str(caught.value)


def test_a_zip_of_several_files_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.csv", "1,2\n")
        archive.writestr("b.csv", "1,2\n")
    with pytest.raises(ValueError, match=r"expected one file in it, found 2 \(a.csv, b.csv\)"):
        Interactions.from_file(tmp_path / "x.zip")


def test_recbole_files_have_typed_headers(tmp_path):
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n" + "".join(
        f"{u}\t{i}\t{r}\t{t}\n" for u, i, r, t in ROWS
    )
    x = Interactions.from_file(write(tmp_path, text, "ml.inter"))
    assert triples(x, "rating") == EXPECTED
    assert triples(x, "timestamp") == sorted((u, i, t) for u, i, _, t in ROWS)


@pytest.mark.parametrize("table_format", ["parquet", "feather"])
def test_typed_tables_and_folders_of_them(tmp_path, table_format):
    import pyarrow.dataset as ds
    import pyarrow.feather as feather
    import pyarrow.parquet as parquet

    path = tmp_path / f"x.{table_format}"
    table = frame().append_column("text", [["long"] * 3])
    save = {"parquet": parquet.write_table, "feather": feather.write_feather}[table_format]
    save(table, path)
    x = Interactions.from_file(path)
    assert triples(x, "rating") == EXPECTED
    assert x.report.unread == ("text",)
    ds.write_dataset(
        frame(), tmp_path / "folder", format=table_format, partitioning=["user_id"], partitioning_flavor="hive"
    )
    assert triples(Interactions.from_file(tmp_path / "folder", format=table_format), "rating") == EXPECTED
    data = bytearray(path.read_bytes())
    for damaged in (data[: len(data) // 2], data[:8] + bytes(len(data) - 16) + data[-8:]):
        with pytest.raises(ValueError, match=rf"x.{table_format} cannot be read as {table_format}") as caught:
            Interactions.from_file(write(tmp_path, bytes(damaged), path.name))
        assert "\n" not in str(caught.value)


def test_json_lines(tmp_path):
    lines = [
        {"user_id": u, "stars": r, "text": "x" * 9, "business_id": i, "date": "2020-01-02 03:04:05"}
        for u, i, r, _ in ROWS
    ]
    path = write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "reviews.json")
    x = Interactions.from_file(path)
    assert triples(x, "rating") == EXPECTED
    assert set(x.columns["timestamp"].tolist()) == {1577934245.0}
    assert x.report.unread == ("text",)
    mixed = '{"user": 1, "item": 5}\n{"user": 2, "item": "7"}\n\n{"user": 3, "item": 9223372036854775807}\n'
    assert Interactions.from_file(write(tmp_path, mixed)).item_ids.tolist() == ["5", "7", "9223372036854775807"]
    big = '{"user": -9223372036854775808, "item": 9223372036854775807}\n'
    assert Interactions.from_file(write(tmp_path, big)).item_ids.tolist() == [2**63 - 1]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"user": 1, "item": 2', r":2: expected a JSON object, got .*user"),
        ("[1, 2]", r":2: expected a JSON object"),
        ('{"user": 1}', r":2: the item is missing \(item\)"),
        ('{"user": 1, "item": null}', r":2: the item is missing"),
        ('{"user": 1, "item": 2.5}', r":2: the item is 2.5, expected text or an integer"),
        ('{"user": 1, "item": true}', r":2: the item is True"),
        ('{"user": {}, "item": 1}', r":2: the user is {}"),
        ('{"user": 1, "item": 2, "rating": "good"}', r":2: the rating is 'good', expected a finite number"),
        ("{" * 100_000, r":2: expected a JSON object"),
    ],
)
def test_bad_json_lines(tmp_path, line, problem):
    path = write(tmp_path, '{"user": 1, "item": 1, "rating": 3}\n' + line + '\n{"user": 2, "item": 1, "rating": 3}\n')
    with pytest.raises(ValueError, match=problem) as caught:
        Interactions.from_file(path)
    assert "\n" not in str(caught.value)
    x = Interactions.from_file(path, skip_bad_rows=True)
    assert (x.nnz, x.report.rows, x.report.bad_rows) == (2, 3, 1)


def test_adjacency_lists(tmp_path):
    path = write(tmp_path, "0 5 6 7 11 12\n1 5\n2\n3 8 9\n", "train.txt")
    x = Interactions.from_file(path)
    assert triples(x) == [(0, 5), (0, 6), (0, 7), (0, 11), (0, 12), (1, 5), (3, 8), (3, 9)]
    assert (x.report.rows, x.report.empty_lists) == (8, 1)
    assert x.report.guesses == x.report.notes == ("each line is taken for a user and its items",)
    told = Interactions.from_file(path, format="adjacency")
    assert (told.report.guesses, told.report.notes) == ((), ("each line is read as a user and its items",))
    blank = write(tmp_path, "\n0 5 6 7 11 12\n\n1 5\n2\n \n3 8 9\n\n", "blank.txt")
    assert triples(Interactions.from_file(blank)) == triples(x)
    by_index = Interactions.from_file(path, ids=False, shape=(5, 20))
    assert (by_index.shape, by_index.nnz) == ((5, 20), 8)
    equal = write(tmp_path, "0 5 6 7 11 12\n1 5 8 9 10 13\n")  # not user, item, rating, time
    assert Interactions.from_file(equal).nnz == 10
    lists = write(tmp_path, "5 6 7\n5\n\n7 5 6 6\n")
    with pytest.raises(ValueError, match=r"lists of 1 to 4 integers, .* format='adjacency' .* format='item-lists'"):
        Interactions.from_file(lists)
    y = Interactions.from_file(lists, format="item-lists")
    assert triples(y) == [(0, 5), (0, 6), (0, 7), (1, 5), (3, 5), (3, 6), (3, 7)]
    assert y.report.duplicates == 1
    comma = write(tmp_path, "a,x,y\nb,z\n")
    assert triples(Interactions.from_file(comma, format="adjacency", delimiter=",")) == [
        ("a", "x"),
        ("a", "y"),
        ("b", "z"),
    ]
    with pytest.raises(
        ValueError, match=r":3: expected 3 fields as in the first row, found 4; if .*format='adjacency'"
    ):
        Interactions.from_file(write(tmp_path, "7 1 2\n3 4 5\n9 8 7 6\n"))
    with pytest.raises(ValueError, match="its lists are empty"):
        Interactions.from_file(write(tmp_path, "1\n2\n"), format="adjacency")


def test_several_files_are_one_data_set(tmp_path):
    a = write(tmp_path, "user,item\n10,b\n7,a\n", "part-0.csv")
    b = write(tmp_path, "user,item\n7,c\nx1,a\n", "part-1.csv")
    for source in ([a, b], str(tmp_path / "part-*.csv")):
        x = Interactions.from_file(source)
        assert triples(x) == [("10", "b"), ("7", "a"), ("7", "c"), ("x1", "a")]
        assert x.report.rows == 4
    with pytest.raises(FileNotFoundError, match="no file fits this pattern"):
        Interactions.from_file(tmp_path / "none-*.csv")
    with pytest.raises(ValueError, match="expected user, item as"):
        Interactions.from_file([a, write(tmp_path, "user,item,rating\n1,2,3\n", "c.csv")])


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "reader", "duckdb", "datasets"])
def test_data_frames(library):
    table = frame()
    if library == "pandas":
        pytest.importorskip("pandas")
        table = table.to_pandas()
    elif library == "polars":
        table = pytest.importorskip("polars").from_arrow(table)
    elif library == "reader":
        table = table.to_reader()
    elif library == "duckdb":
        duckdb = pytest.importorskip("duckdb")
        table = duckdb.from_arrow(table)
    elif library == "datasets":
        table = pytest.importorskip("datasets").Dataset.from_dict(table.to_pydict())
        turned = Interactions.from_table(table.select([2, 0, 1]))
        assert triples(turned, "rating") == EXPECTED
        assert turned.columns["row"][turned.columns["rating"] == 5.0].tolist() == [0]
    x = Interactions.from_table(table)
    assert triples(x, "rating") == EXPECTED
    assert x.report.columns == (
        ("user", "user_id"),
        ("item", "item_id"),
        ("rating", "rating"),
        ("timestamp", "timestamp"),
    )


def test_data_frames_of_other_types():
    import decimal

    table = pa.table(
        {
            "user": pa.array(["b", "a", "b"]).dictionary_encode(),
            "item": pa.array([3, 2**63 - 1, -(2**63)]),
            "rating": [decimal.Decimal("4.50"), decimal.Decimal("2.00"), decimal.Decimal("5.00")],
            "timestamp": pa.array([datetime.date(2020, 1, day) for day in (1, 2, 3)]),
        }
    )
    x = Interactions.from_table(table, min_rating=4)
    assert triples(x, "rating") == [("b", -(2**63), 5.0), ("b", 3, 4.5)]
    assert sorted(x.columns["timestamp"].tolist()) == [1577836800.0, 1578009600.0]
    with pytest.raises(TypeError, match="table: expected a pandas, polars"):
        Interactions.from_table([1, 2])
    for column, problem in (
        (pa.array([1, None]), r"row 1: the item is missing \(null\)"),
        (pa.array(["a", ""]), "row 1: the item is empty"),
        (pa.array([1.0, 2.5]), "row 1: the item is 2.5"),
        (pa.array([1.0, 2.0**53]), "row 1: the item is 9007199254740992.0"),
        (pa.array([1, 2**63], pa.uint64()), "row 1: the item is 9223372036854775808"),
        (pa.array(["a", "a\0"]), "row 1: the item is .*NUL"),
        (pa.array([True, False]), "the items are bool, expected integers or text"),
    ):
        bad = pa.table({"user": [1, 2], "item": column})
        with pytest.raises(ValueError, match=problem):
            Interactions.from_table(bad)
    kept = Interactions.from_table(pa.table({"user": [1, 2], "item": pa.array([1, None])}), skip_bad_rows=True)
    assert (triples(kept), kept.report.bad_rows) == ([(1, 1)], 1)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "bsr", "dia"])
@pytest.mark.parametrize("array", [False, True])
def test_scipy_matrices_and_arrays(form, array):
    dense = np.array([[0, 2, 0], [1, 0, 3]])
    matrix = (sp.csr_array if array else sp.csr_matrix)(dense).asformat(form)
    x = Interactions.from_any(matrix)
    assert triples(x) == [(0, 1), (1, 0), (1, 2)]
    assert x.weights is None
    assert Interactions.from_scipy(matrix, weights=True).weights.tolist() == [2.0, 1.0, 3.0]


def test_a_hive_partitioned_folder_reads_the_columns_that_are_used(tmp_path):
    import pyarrow.dataset as ds

    table = pa.table({"user": [3, 1, 3], "item": ["b", "b", "a"], "year": [2020, 2021, 2020], "text": ["x" * 999] * 3})
    ds.write_dataset(table, tmp_path / "p", format="parquet", partitioning=["year"], partitioning_flavor="hive")
    x = Interactions.from_file(tmp_path / "p")
    assert triples(x) == [(1, "b"), (3, "a"), (3, "b")]
    assert set(x.report.unread) == {"text", "year"}
    by_year = Interactions.from_file(tmp_path / "p", columns={"year": "year"})
    assert sorted(by_year.columns["year"].tolist()) == [2020, 2020, 2021]
    file = next((tmp_path / "p" / "year=2021").glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"cannot be read as parquet: .*") as caught:
        Interactions.from_file(tmp_path / "p")
    assert "\n" not in str(caught.value)


def test_one_damaged_file_of_several_is_named(tmp_path):
    good = write(tmp_path, "user,item\n10,b\n7,a\n", "part-0.csv")
    packed("gz", b"user,item\n" + b"1,2\n" * 3000, tmp_path / "part-1.csv")
    bad = write(tmp_path, (tmp_path / "part-1.csv").read_bytes()[:-9], "part-1.csv")
    for source in ([good, bad], tmp_path / "part-*.csv"):
        with pytest.raises(ValueError, match=r"part-1.csv is not a complete gzip file") as caught:
            Interactions.from_file(source)
        assert "\n" not in str(caught.value)


def _bytes_of(save, *given) -> bytes:
    stream = io.BytesIO()
    save(*given, stream)
    return stream.getvalue()


def _packed_bytes(kind: str, folder: Path) -> bytes:
    lines = "user,item\n" + "".join(f"{k},{k * k}\n" for k in range(2000))
    packed(kind, lines.encode(), folder / "packed")
    return (folder / "packed").read_bytes()


def _whole_file(form: str, folder: Path) -> bytes:
    """A file of 2000 rows in a format."""
    import pyarrow.feather as feather
    import pyarrow.parquet as parquet

    rows = range(2000)
    table = pa.table({"user": list(rows), "item": [k * k for k in rows]})
    if form in ("gz", "bz2", "xz", "zst", "zip"):
        return _packed_bytes(form, folder)
    if form == "parquet":
        return _bytes_of(lambda file: parquet.write_table(table, file))
    if form == "feather":
        return _bytes_of(lambda file: feather.write_feather(table, file))
    if form == "npz":
        return _bytes_of(lambda file: np.savez_compressed(file, user=np.arange(2000), item=np.arange(2000) % 7))
    if form == "scipy":
        return _bytes_of(lambda file: sp.save_npz(file, sp.csr_matrix(np.ones((40, 50)))))
    line = {
        "csv": "{0},{1},5\n",
        "tsv": "{0}\t{1}\t5\r\n",
        "quoted": '"{0}","{1}","a, b"\n',
        "colons": "{0}::{1}::5\n",
        "blanks": "{0} {1}  5\n",
        "inter": "{0}\t{1}\t5\n",
        "adjacency": "{0} 5 6 7 8 9 1{1}\n",
        "jsonl": '{{"user": {0}, "item": {1}}}\n',
    }[form]
    head = "user_id:token\titem_id:token\trating:float\n" if form == "inter" else ""
    return (head + "".join(line.format(k, k * k) for k in rows)).encode()


TEXTS = ("csv", "tsv", "quoted", "colons", "blanks", "inter", "adjacency", "jsonl")
FILES = (*TEXTS, "npz", "scipy", "parquet", "feather", "gz", "bz2", "xz", "zst", "zip")


@pytest.mark.parametrize("form", FILES)
def test_a_file_of_any_format_that_is_cut_off_or_damaged_is_named_on_one_line(tmp_path, form):
    whole = _whole_file(form, tmp_path)
    path = write(tmp_path, whole, "whole")
    rows = Interactions.from_file(path).report.rows
    assert rows == {"adjacency": 12_000}.get(form, 2000)
    rng = np.random.default_rng(FILES.index(form))
    cut = {f"cut{at}": whole[:at] for at in (1, 3, len(whole) // 3, len(whole) // 2, len(whole) - 7, len(whole) - 1)}
    damaged = {}
    for turn in range(6):
        data = bytearray(whole)
        at = int(rng.integers(len(whole))) if turn else len(whole) - 9
        data[at] ^= 1 << int(rng.integers(8))
        damaged[f"bit{turn}"] = bytes(data)
    for name, data in {**cut, **damaged, "nothing": b"", "zeros": bytes(len(whole))}.items():
        path = write(tmp_path, data, name)
        got, error = None, ""
        try:
            got = Interactions.from_file(path)
        except ValueError as raised:
            error = str(raised)
        if got is None:
            assert str(path) in error, name
            assert "\n" not in error, name
        else:  # text does not say what is lost of it; nor does a format without sums what a bit was
            assert form in TEXTS or name.startswith("bit"), name
            assert 0 < got.report.rows <= rows, name


def test_an_archive_whose_table_leads_out_of_it_is_named(tmp_path):
    whole = _whole_file("zip", tmp_path)
    end = whole.rindex(b"PK\x05\x06")
    for where, value in ((end + 16, len(whole)), (end + 12, 9), (end + 16, 2**32 - 2)):  # where it begins, its size
        path = write(tmp_path, whole[:where] + struct.pack("<I", value) + whole[where + 4 :], "x.zip")
        with pytest.raises(ValueError, match=r"x.zip is not a complete zip file") as caught:
            Interactions.from_file(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zst", "zip"])
def test_a_small_file_that_unpacks_to_one_huge_line_is_refused(tmp_path, kind):
    packed(kind, b"1" * 9_000_000, tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 20_000
    with pytest.raises(ValueError, match=r"x:1: the line has more than 1,000,000 bytes.*max_line_bytes= raises"):
        Interactions.from_file(tmp_path / "x", max_line_bytes=1_000_000)


def test_hostile_lists_and_matrices(tmp_path):
    with pytest.raises(ValueError, match=r"data.csv:2: the line has more than 1,000 bytes"):
        Interactions.from_file(
            write(tmp_path, b"1 2 3\n" + b"1 " * 5_000_000 + b"\n"), format="adjacency", max_line_bytes=1000
        )
    with pytest.raises(ValueError, match=r"data.csv:2: not a text file"):
        Interactions.from_file(write(tmp_path, b"1 2 3\n2 \0 4\n"), format="adjacency")
    with pytest.raises(ValueError, match=r"data.csv:3: b'2 .xff 4' is not utf-8; give the file's encoding="):
        Interactions.from_file(write(tmp_path, b"# a\n1 2 3\n2 \xff 4\n"), format="adjacency")
    for text, line in (("1 2 3\n\n2 4 5\n3 6 x\n", 4), ("1 2 3\nx 4\n3 6\n", 2), ("# a\n1 2 3\nx 4\n3 6\n", 3)):
        with pytest.raises(ValueError, match=rf"data.csv:{line}: the (user|item) is 'x', expected an integer"):
            Interactions.from_file(write(tmp_path, text), format="adjacency", id_type="int")
    sp.save_npz(tmp_path / "m.npz", sp.csr_matrix(np.eye(9)))
    assert Interactions.from_file(tmp_path / "m.npz").nnz == 9
    data = (tmp_path / "m.npz").read_bytes()
    for cut in (len(data) // 3, len(data) - 30):
        with pytest.raises(ValueError, match=r"m.npz") as caught:
            Interactions.from_file(write(tmp_path, data[:cut], "m.npz"))
        assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------ D1 to D17, and their neighbours


def test_rows_that_begin_like_comments(tmp_path):
    x = Interactions.from_file(write(tmp_path, "#a,1\n#b,2\nc,3\n"))
    assert triples(x) == [("#a", 1), ("#b", 2), ("c", 3)]
    konect = Interactions.from_file(write(tmp_path, "% bip unweighted\n% 3 2 2\n1 2\n1 3\n2 2\n"))
    assert (konect.nnz, konect.report.comments) == (3, 2)
    assert "2 lines of comments above them" in str(konect.report)


@pytest.mark.parametrize("mark", ["#", "# ", "//", "% "])
def test_a_header_behind_a_mark_of_comments(tmp_path, mark):
    x = Interactions.from_file(write(tmp_path, f"{mark}item_id\tuser_id\n5\t1\n6\t1\n"))
    assert (x.user_ids.tolist(), x.item_ids.tolist()) == ([1], [5, 6])


@pytest.mark.parametrize("descending", [False, True])
def test_all_of_int64_in_any_order(tmp_path, descending):
    ids = sorted([-(2**63), -5, 0, 7, 10**17, 10**18, 2**63 - 1], reverse=descending)
    x = Interactions.from_file(write(tmp_path, "user,item\n" + "".join(f"{i},{i}\n" for i in ids)))
    assert x.user_ids.dtype == np.int64
    assert x.item_ids.tolist() == sorted(ids)
    beyond = Interactions.from_file(write(tmp_path, f"user,item\n1,{2**63}\n1,5\n"))
    assert beyond.item_ids.tolist() == ["5", str(2**63)]


@pytest.mark.parametrize(
    "text", ["007", "+7", "1e3", "NA", "null", "nan", "NaN", "-0", "1.0", "0x10", "True", "1_000", "²"]
)
@pytest.mark.parametrize("first", [True, False])
def test_ids_that_only_look_like_numbers_are_text(tmp_path, text, first):
    rows = [text, "5"] if first else ["5", text]
    x = Interactions.from_file(write(tmp_path, "user,item\n" + "".join(f"1,{i}\n" for i in rows)))
    assert x.item_ids.tolist() == sorted(rows)


def test_a_type_that_changes_late(tmp_path):
    lines = [f"{k},{k % 100}" for k in range(300_000)] + ["abc,7"]
    x = Interactions.from_file(write(tmp_path, "user,item\n" + "\n".join(lines) + "\n"))
    assert x.user_ids.dtype.kind == "U"
    assert x.nnz == 300_001
    with pytest.raises(ValueError, match=r"data.csv:300002: the user is 'abc', expected an integer"):
        Interactions.from_file(tmp_path / "data.csv", id_type="int")
    times = "user,item,timestamp\n" + "".join(f"{k},1,{k}\n" for k in range(2000)) + "1,2,3.5\n"
    assert 3.5 in Interactions.from_file(write(tmp_path, times)).columns["timestamp"].tolist()


PIECES = {
    "integers": [f"{k % 9 - 4},{k * k},{k % 5},{k}" for k in range(90)],
    "beyond int32, late": [f"{k},{k % 7},{k % 5},{k}" for k in range(80)] + [f"{-(2**63)},{2**63 - 1},3,5"],
    "text": [f"u{k % 9},é{k * k},{k % 5},{k}" for k in range(90)],
    "text, late": [f"{k % 9 - 4},{k},{k % 5},{k}" for k in range(80)] + ["007,x,3,5"],
    "integers, late": ["007,x,3,5"] + [f"{k % 9},{k},{k % 5},{k}" for k in range(80)],
    "blanks, late": [f"{k},{k % 7},{k % 5},{k}" for k in range(80)] + [" 7 , 81,3,5"],
    "blanks and text": [f" a{k % 7} ,{k},{k % 5},{k}" for k in range(60)] + ["a3,7,3,5"],
    "fractions, late": [f"{k},{k % 7},{k % 5},{k}" for k in range(80)] + ["1,2,4.5,6.25"],
    "milliseconds": [f"{k},{k % 7},{k % 5},{1_600_000_000_000 + k}" for k in range(80)],
    "dates": [f"{k},{k % 7},{k % 5},2020-01-{k % 28 + 1:02d} 03:04:05.5" for k in range(80)],
    "months": [f"{k},{k % 7},{k % 5},2020-{k % 12 + 1:02d}" for k in range(80)],
    "years": [f"{k},{k % 7},{k % 5},2020" for k in range(80)],
    "other columns": [f"{k},{k % 7},{k % 5},{k},{'ab'[k % 2]},{k / 4}" for k in range(80)],
    "quoted": [f'"{k}","i {k % 7}","{k % 5}","{k}"' for k in range(80)],
    "a quoted field of several lines": [f"{k},{k % 7},{k % 5},{k},x" for k in range(60)]
    + ['7,8,3,5,"x\ny"', "9,9,1,1,x"],
    "blank lines": [f"{k},{k % 7},{k % 5},{k}" for k in range(60)] + [""] * 400 + ["9,9,1,1"] + [""] * 400,
}


@pytest.mark.parametrize("kind", PIECES)
def test_pieces_of_a_file_give_what_the_whole_gives(tmp_path, monkeypatch, kind):
    names = ["user", "item", "rating", "timestamp", "kind", "other"][: PIECES[kind][0].count(",") + 1]
    path = write(tmp_path, "\n".join([",".join(names), *PIECES[kind], ""]))
    more = {name: name for name in names[4:]}
    expected = Interactions.from_file(path, columns=more)
    assert expected.report.rows == sum(map(bool, PIECES[kind]))
    read, parse = [], text_reader._parse
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
    monkeypatch.setattr(sources, "first_lines", lambda blocks: next(blocks))
    monkeypatch.setattr(text_reader, "PIECE_BYTES", 300)
    monkeypatch.setattr(text_reader, "_parse", lambda *given: read.append(parse(*given)) or read[-1])
    got = Interactions.from_file(path, columns=more)
    assert len(read) > 2
    assert (got.shape, got.report) == (expected.shape, expected.report)
    assert triples(got, "row") == triples(expected, "row")
    for ids in ("user_ids", "item_ids"):
        assert getattr(got, ids).dtype == getattr(expected, ids).dtype
    for name, values in expected.columns.items():
        assert got.columns[name].dtype == values.dtype, name
        assert got.columns[name].tolist() == values.tolist(), name


def test_a_bad_row_of_a_late_piece_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
    monkeypatch.setattr(text_reader, "PIECE_BYTES", 300)
    lines = [f"{k},{k % 7},{k % 5},{k}" for k in range(300)]
    for bad, problem in (
        ("1,2,nan,4", "the rating is 'nan', expected a finite number"),
        ("1,,3,4", "the item is empty"),
        ("1,2,3", "expected 4 fields as in the first row, found 3"),
        ("1,2,3,soon", "the timestamp is 'soon', expected a finite number"),
    ):
        path = write(tmp_path, "\n".join(["user,item,rating,timestamp", *lines[:250], bad, *lines[250:], ""]))
        with pytest.raises(ValueError, match=rf"data.csv:252: {problem}"):
            Interactions.from_file(path)
        x = Interactions.from_file(path, skip_bad_rows=True)
        assert (x.nnz, x.report.bad_rows) == (300, 1)


def test_other_encodings(tmp_path):
    x = Interactions.from_file(write(tmp_path, "1|倈x\n2|b\n".encode("gb18030")), encoding="gb18030", delimiter="|")
    assert x.item_ids.tolist() == ["b", "倈x"]
    for encoding in ("utf-16", "utf-16-le", "utf-32"):
        path = write(tmp_path, TEXT.encode(encoding))
        assert triples(Interactions.from_file(path, encoding=encoding), "rating") == EXPECTED
    assert triples(Interactions.from_file(write(tmp_path, TEXT.encode("utf-16"))), "rating") == EXPECTED  # by its mark
    assert Interactions.from_file(write(tmp_path, "é,1\n".encode("latin-1")), encoding="latin-1").user_ids.tolist() == [
        "é"
    ]
    late = b"user,item\n" + b"1,2\n" * 5000 + b"1,\xff\n"
    with pytest.raises(ValueError, match=r"data.csv:5002: .*is not utf-8; give the file's encoding="):
        Interactions.from_file(write(tmp_path, late))


def test_times_with_zones(tmp_path):
    pandas = pytest.importorskip("pandas")
    utc = pandas.to_datetime(["2020-10-25 00:30", "2020-10-25 01:10"], utc=True)
    berlin = utc.tz_convert("Europe/Berlin")  # 02:30 in summer, then 02:10 in winter
    seconds = [1603585800.0, 1603588200.0]
    text = [stamp.isoformat() for stamp in berlin]
    given = (
        berlin,
        pandas.Series(berlin),
        list(berlin),
        text,
        berlin.tz_convert(None),
        np.array(berlin.tz_convert(None)),
    )
    for times in given:
        x = Interactions.from_arrays([0, 0], [0, 1], columns={"timestamp": times})
        assert x.columns["timestamp"].tolist() == seconds
        assert triples(x.split_last().test) == [(0, 1)]
    table = pandas.DataFrame({"user": [0, 0], "item": [0, 1], "timestamp": berlin})
    table.to_parquet(tmp_path / "x.parquet")
    table.to_csv(tmp_path / "x.csv", index=False)
    for x in (
        Interactions.from_table(table),
        *(Interactions.from_file(tmp_path / f"x.{e}") for e in ("parquet", "csv")),
    ):
        assert x.columns["timestamp"].tolist() == seconds


@pytest.mark.parametrize("per_second", [1, 1_000, 1_000_000, 1_000_000_000])
def test_times_since_1970_in_any_unit(tmp_path, per_second):
    numbers = [1_500_000_000 * per_second, 1_600_000_000 * per_second]
    text = "user,item,timestamp\n" + "".join(f"1,{k},{t}\n" for k, t in enumerate(numbers))
    ways = (
        Interactions.from_file(write(tmp_path, text)),
        Interactions.from_arrays([1, 1], [0, 1], ids=True, columns={"timestamp": numbers}),
        Interactions.from_table(pa.table({"user": [1, 1], "item": [0, 1], "timestamp": numbers})),
    )
    for x in ways:
        assert x.columns["timestamp"].tolist() == [1_500_000_000, 1_600_000_000]


def test_ambiguous_times_show_the_value(tmp_path):
    mixed = "user,item,timestamp\n1,1,1500000000\n1,2,1600000000000\n"
    with pytest.raises(
        ValueError, match=r"1500000000 at position 0 looks like seconds .* 1600000000000 .* milliseconds"
    ):
        Interactions.from_file(write(tmp_path, mixed))
    with pytest.raises(ValueError, match="got '10/25/2020' at position 0"):
        Interactions.from_arrays([0], [0], columns={"timestamp": ["10/25/2020"]})
    with pytest.raises(ValueError, match=r":2: the timestamp is '10/25/2020', .*which of these is the day"):
        Interactions.from_file(write(tmp_path, "user,item,timestamp\n1,1,10/25/2020\n1,2,10/26/2020\n"))
    both = ["2020-01-01 00:00:00", "2020-01-01T00:00:00+02:00"]
    with pytest.raises(ValueError, match=r"position 0 is a date without a zone, and .* is a time with a zone"):
        Interactions.from_arrays([0, 0], [0, 1], columns={"timestamp": both})


def test_ids_of_arrays():
    x = Interactions.from_arrays(np.array([2, 10], dtype=object), [0, 1], ids=True)
    assert (x.user_ids.dtype, x.user_ids.tolist()) == (np.int64, [2, 10])
    for bad, problem in (
        (np.array([2.0**53, 2.0**53 + 2]), "below 2.*53, as they are floats"),
        (np.array(["2020-01-01", "NaT"], "M8[s]"), "expected ids that are text or integers"),
        (["a", ""], "expected no empty ids, got '' at position 1"),
        (np.array(["a", ""]), "expected no empty ids, got '' at position 1"),
        (["a", "a\0"], "expected ids without NUL"),
        ([1, "a"], "expected ids of one kind"),
        ([True, False], "expected ids that are text or integers"),
        (np.array([1, None], object), "expected no missing values, got None at position 1"),
    ):
        with pytest.raises(ValueError, match=f"users: .*{problem}"):
            Interactions.from_arrays(bad, [0, 1], ids=True)


def test_nul_bytes_anywhere(tmp_path):
    path = write(tmp_path, b"user,item\n" + b"a,1\n" * 3_000_000 + b"a\0,2\n")  # beyond the first blocks
    with pytest.raises(ValueError, match=r"data.csv:3000002: not a text file .it has NUL bytes"):
        Interactions.from_file(path)


def test_long_lines(tmp_path):
    text = '{"user": 1, "item": 2, "text": "' + "x" * 6_000_000 + '"}\n'
    assert Interactions.from_file(write(tmp_path, text * 2)).report.rows == 2
    line = "1,2," + "x" * 6_000_000 + "\n"
    assert Interactions.from_file(write(tmp_path, line + "3,4,y\n" + line)).report.rows == 3
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"1" * 50_000_000, 1))
    with pytest.raises(ValueError, match=r"x.gz:1: the line has more than 10,000,000 bytes.*max_line_bytes= raises"):
        Interactions.from_file(path, max_line_bytes=10_000_000)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("1,2,-3\n1,3,-5\n", {"user": 0, "item": 1}),  # a negative number is no time and no rating
        ("1,2,0.5,0.25\n1,3,1.5,0.75\n", {"user": 0, "item": 1, "rating": 2}),
        ("1,2,pv,1511544070\n1,3,buy,1511561733\n", {"user": 0, "item": 1, "timestamp": 3}),
        ("1,2268318,2520377,pv,1511544070\n1,2333346,2520771,pv,1511561733\n", {"user": 0, "item": 1, "timestamp": 4}),
        ("1,2,2020-01-02\n1,3,2020-01-03\n", {"user": 0, "item": 1, "timestamp": 2}),
    ],
)
def test_what_is_guessed_without_a_header(tmp_path, text, columns):
    x = Interactions.from_file(write(tmp_path, text))
    assert dict(x.report.columns) == {key: f"column {c}" for key, c in columns.items()}
    width = len(text.split("\n")[0].split(","))
    assert x.report.unread == tuple(f"column {c}" for c in range(width) if c not in columns.values())
    assert "guessed by position" in x.report.guesses[0]


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("1,2020-01-02,55\n2,2020-01-03,56\n", "2"),
        ("1,0.25\n2,0.75\n", r"\.\.\."),
        ("7,2010-10-19T23:55:27Z,30.25,-97.75,22847\n7,2010-10-18T22:17:43Z,30.26,-97.76,420315\n", "4"),  # of Gowalla
    ],
)
def test_what_is_never_guessed(tmp_path, text, item):
    problem = rf"no header says what is what, and column 1 holds .* by its number from 0: columns={{'item': {item}}}"
    with pytest.raises(ValueError, match=problem):
        Interactions.from_file(write(tmp_path, text))


def test_unknown_headers_are_not_taken_by_position(tmp_path):
    known = Interactions.from_file(write(tmp_path, "order_no;customer;article\n9;1;5\n8;1;6\n"))
    assert (known.user_ids.tolist(), known.item_ids.tolist(), known.report.unread) == ([1], [5, 6], ("order_no",))
    path = write(tmp_path, "when,who,what\n5,1,2\n")
    with pytest.raises(ValueError, match=r"which column holds the users; the header has when, who, what. .*columns="):
        Interactions.from_file(path)
    with wording.command_line(), pytest.raises(ValueError, match="Name it: --user-column NAME"):
        Interactions.from_file(path)


def test_the_command_line_speaks_its_options(tmp_path, capsys):
    path = write(tmp_path, "5 6 7\n5\n7 5 6\n")
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "--format adjacency" in error
    assert "--format item-lists" in error
    assert error.count("\n") == 1
    table = write(tmp_path, "9\t5\t1\t4\t2\n7\t5\t2\t4\t2\n")  # five columns of integers, as of Ciao
    assert main(["train", str(table), "--output", str(tmp_path / "run")]) == 2
    assert "--user-column 0 --item-column 1 where they are columns of a table" in capsys.readouterr().err
    x = Interactions.from_file(table, columns={"user": 0, "item": 1})
    assert (triples(x), x.report.unread) == ([(7, 5), (9, 5)], ("column 3", "column 4"))
    assert x.report.guesses == ("no header: rating guessed by position",)


@pytest.mark.parametrize("name", ["sku", "article", "product", "StockCode"])
@pytest.mark.parametrize("user", ["buyer", "customer", "Customer ID"])
@pytest.mark.parametrize("time", ["order_date", "purchased_at", "datum"])
def test_names_of_columns_in_shops(tmp_path, name, user, time):
    x = Interactions.from_file(write(tmp_path, f"n;{time};{user};{name}\n1;2020-01-02;5;6\n"))
    assert dict(x.report.columns) == {"user": user, "item": name, "timestamp": time}


def test_quotes_do_not_change_what_is_read(tmp_path):
    rows = [(str(k), f"i {k % 7}", k % 5, 100 + k) for k in range(500)]
    plain = "user,item,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    header = '"user","item","rating","timestamp"\n' + plain.partition("\n")[2]
    everything = "".join(",".join(f'"{field}"' for field in line.split(",")) + "\n" for line in plain.split("\n")[:-1])
    blank = everything.replace("\n", "\n\n")
    expected = triples(Interactions.from_file(write(tmp_path, plain)), "timestamp")
    for text in (header, everything, blank):
        assert triples(Interactions.from_file(write(tmp_path, text)), "timestamp") == expected


@pytest.mark.parametrize(
    "header", [b"{'descr': '<i8', '" * 9, b"{", b"[" * 90, b"{'shape': (1,)", b"\xff" * 9, b"('a'"]
)
def test_a_header_of_an_array_that_is_none_is_named(tmp_path, header):
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(80)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("user.npy", data)
        archive.writestr("item.npy", data)
    for read in (Interactions.from_file, Interactions.load, Vocabulary.load):
        with pytest.raises(ValueError, match=r"x.npz") as caught:
            read(tmp_path / "x.npz")
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"user.npy has a damaged header"):
        check_npz(tmp_path / "x.npz")


def test_hostile_archives(tmp_path):
    header = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118)
    header += b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("user.npy", header + b"\0" * 80)
        archive.writestr("item.npy", header + b"\0" * 80)
    with pytest.raises(ValueError, match=r"x.npz cannot be read as .npz: user.npy claims 8,000,000,000,000 bytes"):
        Interactions.from_file(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", user=np.array([{}], object), item=[1])
    with pytest.raises(ValueError, match=r"y.npz cannot be read as .npz"):
        Interactions.from_file(tmp_path / "y.npz")


# ----------------------------------------------------------------------------------- vocabularies, keeping, weights


def test_a_vocabulary_is_shared(tmp_path):
    train = Interactions.from_file(write(tmp_path, "user,item\n10,007\n7,7\n"))
    later = write(tmp_path, "user,item\n7,7\n10,8\n11,7\n", "later.csv")  # whose items are integers
    with pytest.raises(
        ValueError, match=r"there is no user 11 in the vocabulary \(1 of 3 rows are of 1 unknown users\)"
    ):
        Interactions.from_file(later, vocabulary=train.vocabulary)
    skipped = Interactions.from_file(later, vocabulary=train.vocabulary, unknown="skip")
    assert (skipped.shape, triples(skipped), skipped.report.unknown) == (train.shape, [(7, "7")], 2)
    assert skipped.columns["row"].tolist() == [0]
    grown = Interactions.from_file(later, vocabulary=train.vocabulary, unknown="grow")
    assert (grown.report.new_users, grown.report.new_items, grown.report.unknown) == (1, 1, 0)
    assert "1 new users, 1 new items" in str(grown.report)
    assert grown.user_ids.tolist() == [7, 10, 11]
    assert grown.item_ids.tolist() == ["007", "7", "8"]
    assert grown.encode_items(["8", "007"]).tolist() == [2, 0]
    both = train.grow(grown.vocabulary) | grown
    assert triples(both) == sorted({*triples(train), *triples(grown)})
    arrays = Interactions.from_arrays([7, 99], ["7", "7"], vocabulary=train.vocabulary, unknown="skip")
    assert (triples(arrays), arrays.report.unknown) == ([(7, "7")], 1)


def test_ids_that_grew_are_found_though_they_do_not_ascend():
    vocabulary = Vocabulary([5, 9], ["b", "c"]).grow([1, 9, 7], ["a"])
    assert vocabulary.user_ids.tolist() == [5, 9, 1, 7]
    assert vocabulary.encode_users([7, 1, 9, 5]).tolist() == [3, 2, 1, 0]
    assert vocabulary.decode_items(vocabulary.encode_items(["a", "b"])).tolist() == ["a", "b"]
    with pytest.raises(ValueError, match="no user 2 among these 4"):
        vocabulary.encode_users([2])
    with pytest.raises(ValueError, match="expected distinct ids, got 5 more than once"):
        Vocabulary([5, 5], ["a"])


def test_saved_vocabularies_and_interactions_come_back(tmp_path):
    x = Interactions.from_arrays([70, 7, 70], ["b", "a", "b"], ids=True, columns={"rating": [1, 2, 3]}, weights="count")
    x.save(tmp_path / "x.npz")
    y = Interactions.load(tmp_path / "x.npz")
    assert (triples(y, "rating"), y.vocabulary, y.weights.tolist()) == (triples(x, "rating"), x.vocabulary, [1.0, 2.0])
    assert Vocabulary.load(tmp_path / "x.npz") == x.vocabulary
    assert y.report == x.report
    assert y.report.duplicates == 1
    x.vocabulary.save(tmp_path / "v.npz")
    assert Vocabulary.load(tmp_path / "v.npz") == x.vocabulary
    data = (tmp_path / "x.npz").read_bytes()
    for cut in (10, len(data) // 2, len(data) - 30):
        with pytest.raises(ValueError, match=r"z.npz"):
            Interactions.load(write(tmp_path, data[:cut], "z.npz"))
    with np.load(tmp_path / "x.npz") as archive:
        arrays = dict(archive)
    for name, value in (
        ("indices", arrays["indices"] + 9),
        ("indptr", arrays["indptr"][::-1].copy()),
        ("shape", np.array([1])),
        ("report", np.array('{"rows": "many"}')),
        ("report", np.array("{")),
        ("report", np.array("[1]")),
    ):
        np.savez(tmp_path / "z.npz", **{**arrays, name: value})
        with pytest.raises(ValueError, match=r"z.npz (is damaged|holds no vocabulary)"):
            Interactions.load(tmp_path / "z.npz")
    with pytest.raises(ValueError, match="holds no interactions that save"):
        Interactions.load(tmp_path / "v.npz")


def test_concat_of_other_users_and_items():
    a = Interactions.from_arrays([2, 1], ["x", "y"], ids=True, columns={"rating": [1, 2]})
    b = Interactions.from_arrays([3, 2], ["y", "x"], ids=True, columns={"rating": [3, 4]})
    c = a.concat(b)
    assert triples(c, "rating") == [(1, "y", 2), (2, "x", 4), (3, "y", 3)]
    assert c.user_ids.tolist() == [1, 2, 3]
    assert c.report.duplicates == 1
    plain = Interactions.from_arrays([0], [5]).concat(Interactions.from_arrays([4], [1]))
    assert plain.shape == (5, 6)
    with pytest.raises(ValueError, match="all with external ids or all with indices"):
        a.concat(plain)


def test_weights(tmp_path):
    path = write(tmp_path, "user,item,plays\n1,a,3\n1,b,2\n1,a,4\n2,a,1\n")
    assert Interactions.from_file(path).weights is None
    assert Interactions.from_file(path, weights="count").weights.tolist() == [2.0, 1.0, 1.0]
    x = Interactions.from_file(path, weights="rating")
    assert x.weights.tolist() == [7.0, 2.0, 1.0]
    assert x.columns["rating"].tolist() == [4, 2, 1]  # of the last row
    assert x.split_last().train.weights.tolist() == [2.0, 1.0]  # they stay with their interactions
    assert "weights" not in x.binarise().columns
    with pytest.raises(ValueError, match="weights: expected 'count' or the name of a column, rating"):
        Interactions.from_file(path, weights="nothing")
    with pytest.raises(ValueError, match="weights: expected finite numbers from 0, got -1"):
        Interactions.from_arrays([0], [0], columns={"w": [-1]}, weights="w")


# ------------------------------------------------------------------------------------------ preparing and splits


@pytest.fixture
def timed() -> Interactions:
    rng = np.random.default_rng(4)
    users, items = rng.integers(0, 25, 500), rng.integers(0, 30, 500) ** 2 // 30
    return Interactions.from_arrays(
        users, items, columns={"timestamp": rng.integers(0, 60, 500), "rating": rng.integers(1, 6, 500)}
    )


def whole(x: Interactions, parts) -> None:
    together = sorted(pair for part in parts for pair in triples(part, "row"))
    assert together == triples(x, "row")
    assert all(part.shape == x.shape for part in parts)


def test_k_core_is_the_fixed_point(timed):
    x = timed.k_core(9, 11)
    assert x.user_counts.min() >= 9
    assert x.popularity.min() >= 11
    kept = {(u, i) for u, i in triples(timed)}
    while True:  # by the definition
        users = {u for u, _ in kept if sum(v == u for v, _ in kept) >= 9}
        items = {i for _, i in kept if sum(j == i for _, j in kept) >= 11}
        smaller = {(u, i) for u, i in kept if u in users and i in items}
        if smaller == kept:
            break
        kept = smaller
    assert set(triples(x)) == kept
    lost = x.report.rare_item_interactions + x.report.rare_user_interactions
    assert lost == timed.nnz - x.nnz > 0
    with pytest.raises(ValueError, match="nothing is left of"):
        timed.k_core(1000, 1)


def test_binarise_and_keep_last(timed):
    x = timed.binarise(4)
    assert x.report.low_ratings == timed.nnz - x.nnz == int((timed.columns["rating"] < 4).sum())
    assert "rating" not in x.columns
    last = timed.keep_last(3)
    assert last.user_counts.max() <= 3
    assert last.report.early_interactions == timed.nnz - last.nnz
    for u in range(timed.num_users):
        cut = slice(int(timed.indptr[u]), int(timed.indptr[u + 1]))
        mine = slice(int(last.indptr[u]), int(last.indptr[u + 1]))
        assert sorted(timed.columns["timestamp"][cut])[-3:] == sorted(last.columns["timestamp"][mine])


def test_a_split_by_time_knows_no_future(timed):
    parts = timed.split_time((0.7, 0.1, 0.2))
    whole(timed, parts)
    train, valid, test = (part.columns["timestamp"] for part in parts)
    assert train.max() < valid.min()
    assert valid.max() < test.min()
    assert abs(len(train) - 0.7 * timed.nnz) < 30
    cut = timed.split_time(cuts=[20, 40])
    whole(timed, cut)
    assert [int(part.columns["timestamp"].min()) for part in cut] == [0, 20, 40]
    assert cut.train.columns["timestamp"].max() < 20
    with pytest.raises(ValueError, match="ratios, cuts: expected one of them"):
        timed.split_time()
    with pytest.raises(ValueError, match=r"no times to split by; .* columns=\{'timestamp': \.\.\.\}"):
        Interactions.from_arrays([0], [0]).split_time((0.5, 0.5))


def test_a_split_by_share_of_each_users_time(timed):
    parts = timed.split_last_share((0.6, 0.2, 0.2))
    whole(timed, parts)
    for u in range(timed.num_users):
        when = [part.columns["timestamp"][int(part.indptr[u]) : int(part.indptr[u + 1])] for part in parts]
        count = sum(map(len, when))
        assert len(when[2]) == round(count * 0.2)
        for before, after in itertools.pairwise(when):
            assert not len(before) or not len(after) or before.max() <= after.min()
    lonely = Interactions.from_arrays([0], [0]).split_last_share((0.5, 0.5))
    assert (lonely.train.nnz, lonely.test.nnz) == (1, 0)


def test_folds_hold_out_everything_once(timed):
    folds = list(timed.folds(4, seed=2))
    held_out = sorted(pair for fold in folds for pair in triples(fold.test))
    assert held_out == triples(timed)
    for fold in folds:
        whole(timed, (fold.train, fold.test))
        assert abs(fold.test.nnz - timed.nnz / 4) <= 1
        assert fold.valid.nnz == 0
    again = list(timed.folds(4, seed=2))
    assert [triples(a.test) for a in folds] == [triples(b.test) for b in again]
    assert triples(folds[0].test) != triples(next(timed.folds(4, seed=3)).test)
    for k in (1, timed.nnz + 1):
        with pytest.raises(ValueError, match="k: expected"):
            timed.folds(k)


def each_users_times(part: Interactions) -> list[np.ndarray]:
    return np.split(part.columns["timestamp"], part.indptr[1:-1].numpy())


SPLITS = {
    "balanced": lambda x: x.split_balanced(seed=3),
    "random": lambda x: x.split_random((0.7, 0.1, 0.2), seed=3),
    "folds": lambda x: next(iter(x.folds(4, seed=3))),
    "last": lambda x: x.split_last(test=2, valid=1),
    "last_share": lambda x: x.split_last_share((0.6, 0.2, 0.2)),
    "time": lambda x: x.split_time((0.7, 0.1, 0.2)),
    "cuts": lambda x: x.split_time(cuts=[20, 40]),
    "column": lambda x: x.split_by("rating", train=(1, 2, 3), valid=4, test=5),
}


@pytest.mark.parametrize("name", SPLITS)
def test_no_split_leaks(timed, name):
    """Every pair is in one part, whatever the seed and however often its rows occurred, and no part knows more."""
    assert timed.report.duplicates  # a pair of several rows must not be in two parts
    parts = SPLITS[name](timed)
    whole(timed, parts)
    for one, other in itertools.combinations(parts, 2):
        assert not {pair[:2] for pair in triples(one)} & {pair[:2] for pair in triples(other)}
    for part in parts:
        assert part.popularity.sum() == part.nnz == part.user_counts.sum()  # nothing is counted that is elsewhere
        assert set(part.columns) == set(timed.columns)
        assert all(len(values) == part.nnz for values in part.columns.values())
    for before, after in itertools.combinations(parts, 2):
        if name in ("time", "cuts"):
            assert before.columns["timestamp"].max() < after.columns["timestamp"].min()
        elif name in ("last", "last_share"):
            for early, late in zip(each_users_times(before), each_users_times(after), strict=True):
                assert not len(early) or not len(late) or early.max() <= late.min()
    again = SPLITS[name](timed)
    assert [triples(part, "row") for part in parts] == [triples(part, "row") for part in again]


# ---------------------------------------------------------------------------------------------------- round trips

_text_ids = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp", "Cf"]), min_size=1, max_size=5
)
_id_columns = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20), st.lists(_text_ids, min_size=1, max_size=20)
)


@settings(max_examples=60, deadline=None)
@given(_id_columns, st.sampled_from(["csv", "pandas", "polars", "pyarrow", "parquet", "jsonl", "feather"]))
def test_what_others_write_comes_back(tmp_path_factory, items, writer):
    folder = tmp_path_factory.mktemp("trip")
    path = folder / "x"
    users = list(range(len(items)))
    table = pa.table({"user": users, "item": items})
    if writer == "csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("user", "item"), *zip(users, items, strict=True)])
    elif writer == "pandas":
        pytest.importorskip("pandas").DataFrame({"user": users, "item": items}).to_csv(path, index=False)
    elif writer == "polars":
        pytest.importorskip("polars").from_arrow(table).write_csv(path)
    elif writer == "pyarrow":
        import pyarrow.csv

        pyarrow.csv.write_csv(table, path)
    elif writer == "parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, path)
    elif writer == "feather":
        import pyarrow.feather

        pyarrow.feather.write_feather(table, path)
    else:
        path.write_text("".join(json.dumps({"user": u, "item": i}) + "\n" for u, i in zip(users, items, strict=True)))
    x = Interactions.from_file(path)
    typed = writer in ("parquet", "feather", "jsonl")
    read = items
    if not typed and all(isinstance(i, str) for i in items) and all(_prints_back(i) for i in items):
        read = [int(i) for i in items]
    assert triples(x) == sorted(zip(users, read, strict=True))


def _prints_back(text: str) -> bool:
    return text.isascii() and text.lstrip("-").isdigit() and str(int(text)) == text


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=200), st.sampled_from(["", "PAR1", "ARROW1", "BZh", "\x1f\x8b", "PK\x03\x04", "{", "(\xb5/\xfd"])
)
def test_bytes_of_any_kind_give_rows_or_one_line(tmp_path_factory, data, start):
    path = tmp_path_factory.mktemp("any") / "x"
    path.write_bytes(start.encode("latin-1") + data)
    try:
        x = Interactions.from_file(path)
        error = ""
    except ValueError as raised:
        x, error = None, str(raised)
    assert (x is not None and x.nnz > 0) or (str(path) in error and "\n" not in error)
