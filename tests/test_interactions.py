"""Interactions: what goes in comes out, rows are accounted for, and bad input is named."""

from __future__ import annotations

import csv
import gzip
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zerosum_ext import _ops
from zerosum_ext.data.interactions import Interactions
from zerosum_ext.data.readers import sources


def pairs_of(x: Interactions) -> list[tuple[int, int]]:
    users, items = x.pairs()
    return list(zip(users.tolist(), items.tolist(), strict=True))


def write(tmp_path: Path, text: str | bytes, name: str = "data.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# ---------------------------------------------------------------------------------------- arrays and matrices


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=60))
def test_from_arrays_is_the_canonical_csr_of_the_set(rows):
    users = np.array([u for u, _ in rows], np.int64)
    items = np.array([i for _, i in rows], np.int64)
    x = Interactions.from_arrays(users, items, shape=(7, 10))
    assert pairs_of(x) == sorted(set(rows))
    assert x.indptr.dtype == torch.int64
    assert x.indices.dtype == torch.int32
    assert x.indptr.tolist() == np.cumsum([0] + [sum(u == v for v, _ in set(rows)) for u in range(7)]).tolist()
    assert x.popularity.tolist() == [sum(i == j for _, j in set(rows)) for i in range(10)]
    assert x.user_counts.tolist() == np.diff(x.indptr.numpy()).tolist()
    assert x.report.rows == len(rows)
    assert x.report.duplicates == len(rows) - len(set(rows))
    dense = np.zeros((7, 10))
    dense[users, items] = 1
    np.testing.assert_array_equal(x.to_scipy().toarray(), dense)


def test_the_last_of_duplicates_counts_and_columns_stay_aligned():
    x = Interactions.from_arrays([1, 0, 1, 0], [2, 1, 2, 0], columns={"rating": [1.0, 2.0, 3.0, 4.0]})
    assert pairs_of(x) == [(0, 0), (0, 1), (1, 2)]
    assert x.columns["rating"].tolist() == [4.0, 2.0, 3.0]
    assert x.columns["row"].tolist() == [3, 1, 2]
    assert x.report.duplicates == 1


def test_from_arrays_never_renumbers():
    x = Interactions.from_arrays([0, 5], [3, 1])
    assert x.shape == (6, 4)
    assert x.user_ids is None
    assert x.decode_users([5]).tolist() == [5]
    assert Interactions.from_arrays([], [], shape=(3, 2)).nnz == 0


def test_ids_are_mapped_in_ascending_order():
    x = Interactions.from_arrays([70, 7, 70], ["b", "a", "c"], ids=True)
    assert x.shape == (2, 3)
    assert x.user_ids.tolist() == [7, 70]
    assert x.item_ids.tolist() == ["a", "b", "c"]
    assert pairs_of(x) == [(0, 0), (1, 1), (1, 2)]
    assert x.encode_users([70, 7]).tolist() == [1, 0]
    assert x.encode_users("70").tolist() == 1
    assert x.encode_items([["c", "a"]]).tolist() == [[2, 0]]
    assert x.decode_items(torch.tensor([[0, 2]])).tolist() == [["a", "c"]]
    for bad in (8, 71, -1, "x"):
        with pytest.raises(ValueError, match="user ids"):
            x.encode_users([bad])
    with pytest.raises(ValueError, match="no item 'zz'"):
        x.encode_items("zz")
    with pytest.raises(ValueError, match=r"item indices.*got 3"):
        x.decode_items([3])


@pytest.mark.parametrize(
    "ids",
    [
        np.array(["a", None, "b"], object),
        np.array(["a", float("nan"), "b"], object),
        np.array([1.0, np.nan, 3.0]),
        np.array([1.0, np.inf, 3.0]),
        np.array([1.0, 1.5, 3.0]),
        np.array([1, 2**63, 3], np.uint64),
    ],
)
def test_missing_and_other_ids_that_are_none(ids):
    with pytest.raises(ValueError, match=r"users: expected .* at position 1"):
        Interactions.from_arrays(ids, [0, 1, 2], ids=True)
    with pytest.raises(ValueError, match=r"items: expected .* at position 1"):
        Interactions.from_arrays([0, 1, 2], ids, ids=True)


def test_ids_from_pandas():
    pandas = pytest.importorskip("pandas")
    for missing in (None, float("nan"), pandas.NA):
        with pytest.raises(ValueError, match=r"users: expected .*, got .* at position 1"):
            Interactions.from_arrays(pandas.Series(["a", missing, "b"]), [0, 1, 2], ids=True)
    with pytest.raises(ValueError, match=r"users: expected .* at position 1"):
        Interactions.from_arrays(pandas.Series([1, None, 3], dtype="Int64"), [0, 1, 2], ids=True)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint64])
def test_integral_ids_are_integers(dtype):
    x = Interactions.from_arrays(np.array([70, 7, 70], dtype), [0, 1, 2], ids=True)
    assert (x.user_ids.dtype, x.user_ids.tolist()) == (np.int64, [7, 70])
    assert x.encode_users([70]).tolist() == [1]


def test_indices_too_sparse_for_memory(monkeypatch):
    with pytest.raises(ValueError, match=r"users: 2 rows have indices up to 17592186044416"):
        Interactions.from_arrays([0, 2**44], [0, 1])

    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")):

        def no_memory(*arguments, error=error):
            raise error

        monkeypatch.setattr(_ops, "csr_build", no_memory)
        with pytest.raises(ValueError, match=r"users: 1 rows have indices up to 99999, .* ids=True"):
            Interactions.from_arrays([99_999], [0])


def test_wide_range_of_integer_ids():
    ids = np.array([10**17, -5, 10**17, 3])
    x = Interactions.from_arrays(ids, [0, 1, 2, 3], ids=True)
    assert x.user_ids.tolist() == [-5, 3, 10**17]
    assert x.indptr.tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize("make", [torch.tensor, np.array, list, tuple])
def test_from_arrays_takes_any_sequence(make):
    assert pairs_of(Interactions.from_any((make([1, 0]), make([0, 1])))) == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("users", "items", "kwargs", "error", "message"),
    [
        ([0, 1], [0], {}, ValueError, "same length, got 2 and 1"),
        ([0, -1], [0, 0], {}, ValueError, "users: expected indices from 0 to 0, got -1 at position 1"),
        (
            [0, 1],
            [0, 5],
            {"shape": (2, 5)},
            ValueError,
            "items: expected indices from 0 to 4, got 5 at position 1",
        ),
        ([0.0, 1.0], [0, 5], {}, TypeError, "users: expected integer indices, got float64"),
        ([[0]], [[1]], {}, ValueError, "users: expected one dimension"),
        ([0], [1], {"columns": {"rating": [1, 2]}}, ValueError, "expected length 1 as users, got 2"),
        ([0], [1], {"columns": {"row": [1]}}, ValueError, "'row' is taken"),
        ([0], [1], {"ids": True, "shape": (1, 1)}, ValueError, "not with ids=True"),
        ([0], [1], {"shape": (1, 2, 3)}, ValueError, "shape: expected"),
    ],
)
def test_bad_arrays(users, items, kwargs, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        Interactions.from_arrays(users, items, **kwargs)


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "bsr"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool])
def test_from_scipy_formats(form, dtype):
    dense = np.random.default_rng(0).random((9, 7)) < 0.3
    x = Interactions.from_scipy(sp.csr_matrix(dense.astype(dtype)).asformat(form))
    np.testing.assert_array_equal(x.to_scipy().toarray() > 0, dense)
    assert x.report.zeros == 0


def test_from_scipy_unsorted_duplicates_zeros():
    # row 0: items 3, 1, 1 (unsorted, twice); row 1: an explicit zero at 0, then 2
    matrix = sp.csr_matrix((np.array([1.0, 2.0, 1.0, 0.0, 1.0]), [3, 1, 1, 0, 2], [0, 3, 5]), shape=(2, 4))
    before = matrix.indices.copy()
    x = Interactions.from_scipy(matrix)
    assert pairs_of(x) == [(0, 1), (0, 3), (1, 2)]
    assert (x.report.rows, x.report.zeros, x.report.duplicates) == (5, 1, 1)
    assert "1 explicit zeros left out, 1 duplicates merged" in str(x.report)
    np.testing.assert_array_equal(matrix.indices, before)
    # COO duplicates may not cancel to a zero, nor may a negative hide in a sum
    coo = sp.coo_matrix(([1.0, 1.0], ([0, 0], [1, 1])), shape=(1, 2))
    assert Interactions.from_scipy(coo).nnz == 1


def test_from_scipy_is_a_copy():
    matrix = sp.csr_matrix(np.eye(3))
    x = Interactions.from_scipy(matrix)
    matrix.indices[:] = 0
    matrix.indptr[:] = 0
    assert pairs_of(x) == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_from_scipy_rejects_negative_and_nan(value):
    with pytest.raises(ValueError, match="user 1, item 2 is"):
        Interactions.from_scipy(sp.coo_matrix(([1.0, value], ([0, 1], [0, 2])), shape=(2, 3)))


def test_from_scipy_rejects_broken_structure():
    matrix = sp.csr_matrix(np.eye(3))
    matrix.indices[1] = 7
    with pytest.raises(ValueError, match="items: expected indices from 0 to 2, got 7"):
        Interactions.from_scipy(matrix)
    matrix = sp.csr_matrix(np.eye(3))
    matrix.indptr[1] = 3
    with pytest.raises(ValueError, match="indptr"):
        Interactions.from_scipy(matrix)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_from_torch(dtype):
    dense = (torch.rand(6, 5, generator=torch.Generator().manual_seed(1)) < 0.4).to(dtype)
    for sparse in (dense.to_sparse_coo(), dense.to_sparse_csr()):
        x = Interactions.from_any(sparse)
        np.testing.assert_array_equal(
            x.to_scipy().toarray() > 0,
            dense.numpy(force=True) > 0 if dtype != torch.bfloat16 else dense.float().numpy() > 0,
        )
    twice = torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 1.0], (1, 2))
    assert Interactions.from_torch(twice).report.duplicates == 1


@pytest.mark.parametrize("data", [np.eye(2), torch.eye(2), 3, [1, 2], None])
def test_from_any_says_what_it_takes(data):
    with pytest.raises(TypeError, match="interactions: expected"):
        Interactions.from_any(data)


def test_immutable_picklable_movable():
    x = Interactions.from_arrays([0, 1], ["a", "b"], ids=True, columns={"rating": [1, 2]})
    with pytest.raises(AttributeError, match="immutable"):
        x.shape = (1, 1)
    with pytest.raises(ValueError, match="read-only"):
        x.columns["rating"][0] = 5
    with pytest.raises(ValueError, match="read-only"):
        x.item_ids[0] = "z"
    with pytest.raises(TypeError):
        x.columns["more"] = 1
    with pytest.raises(TypeError, match="from_scipy"):
        Interactions()
    y = pickle.loads(pickle.dumps(x))
    assert pairs_of(y) == pairs_of(x)
    assert y.item_ids.tolist() == ["a", "b"]
    assert y.columns["rating"].tolist() == [1, 2]
    assert y.report == x.report
    assert x.to("cpu") is x
    z = x.to("meta")
    assert z.device.type == "meta"
    assert z.shape == x.shape
    assert "2 users x 2 items, 2 interactions, 50 %" in repr(x)
    assert Interactions.from_any(x) is x


# ------------------------------------------------------------------------------------------------------ files

ROWS = [(10, 500, 4, 100), (20, 500, 3, 50), (10, 7, 5, 99)]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|", " ", "::", "  "])
@pytest.mark.parametrize("header", [None, "userId{d}movieId{d}rating{d}timestamp"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", [True, False])
def test_text_files(tmp_path, delimiter, header, newline, end):
    lines = [delimiter.join(map(str, row)) for row in ROWS]
    if header:
        lines.insert(0, header.format(d=delimiter))
    path = write(tmp_path, newline.join(lines) + (newline if end else ""))
    x = Interactions.from_file(path)
    assert x.user_ids.tolist() == [10, 20]
    assert x.item_ids.tolist() == [7, 500]
    assert pairs_of(x) == [(0, 0), (0, 1), (1, 1)]
    assert x.columns["rating"].tolist() == [5, 4, 3]
    assert x.columns["timestamp"].tolist() == [99, 100, 50]
    assert x.report.rows == 3


def test_text_ids_gzip_bom_comments_blank_lines(tmp_path):
    text = (
        "\ufeff% bip unweighted\n# made by hand\n\nuser,item,when\nzoë,007,2020-01-02\n\nadam,7,2020-01-01T12:00:00Z\n"
    )
    path = write(tmp_path, gzip.compress(text.encode()), "data.csv.gz")
    x = Interactions.from_file(path, columns={"timestamp": "when"})
    assert x.user_ids.tolist() == ["adam", "zoë"]
    assert x.item_ids.tolist() == ["007", "7"]
    assert x.columns["timestamp"].tolist() == [1577880000.0, 1577923200.0]
    assert x.report.rows == 2


def test_quoted_fields(tmp_path):
    text = 'reviewerID,asin,text,overall\nA1,B1,"good, ""very""\ngood",5\nA2,B2,fine,3\n\nA1,B2,bad,\n'
    with pytest.raises(ValueError, match=r"data.csv:6: the rating is '', expected a finite number"):
        Interactions.from_file(write(tmp_path, text))
    x = Interactions.from_file(write(tmp_path, text), skip_bad_rows=True)
    assert x.user_ids.tolist() == ["A1", "A2"]
    assert x.columns["rating"].tolist() == [5, 3]
    assert x.report.bad_rows == 1
    assert x.report.rows == 3


def test_quotes_that_first_come_late(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 64)
    lines = [f"u{k},i{k % 7},{k % 5}" for k in range(100)] + ['"u100","i,9",4', "u101,i1,3"]
    x = Interactions.from_file(write(tmp_path, "\n".join(lines)))
    assert x.nnz == 102
    assert x.item_ids.tolist() == ["i,9", "i0", "i1", "i2", "i3", "i4", "i5", "i6"]
    assert x.columns["rating"][x.encode_users("u100")] in (0, 4)
    lines.append("u102,i2,oops")
    with pytest.raises(ValueError, match=r":103: the rating is 'oops'"):
        Interactions.from_file(write(tmp_path, "\n".join(lines)))


def test_an_unclosed_quote_takes_no_other_row(tmp_path):
    titles = {3: '"Heroes', 40: '"Weird', 41: '"closed"', 42: '5" disk', 43: '"Al" again', 59: '"last'}
    lines = [f"{k % 9}\t{k}\t{k % 5}\t{titles.get(k, 'x')}" for k in range(60)]
    path = write(tmp_path, "user\titem\trating\ttitle\n" + "\n".join(lines))
    x = Interactions.from_file(path)
    assert x.report.rows == x.nnz == 60
    assert sorted(x.item_ids.tolist()) == list(range(60))
    title = Interactions.from_file(path, columns={"title": "title"}, skip_bad_rows=True)
    assert (title.nnz, title.report.rows, title.report.bad_rows) == (57, 60, 3)
    assert [m.split(":")[1] for m in title.report.bad_row_messages] == ["5", "42", "61"]
    assert {"closed", '5" disk', "Al again"} < set(title.columns["title"].tolist())
    with pytest.raises(ValueError, match=r"data.csv:5: a quoted field does not end on its line"):
        Interactions.from_file(path, columns={"title": "title"})


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('user\titem\n1\t"Heroes\n2\tabc\n3\tdef\n', 2),  # to the end of the file
        ('1,a,5\n2,"b,4\n3,c,4\n4,d",5\n5,e,1\n', 2),  # to a closing quote: three fields, but of three rows
        ("1,a\n2," + '"b\n' + "".join(f"{k},item{k}\n" for k in range(3, 20000)), 2),  # beyond csv.field_size_limit
        ('1,a,5\n2,"b\nc",4,7\n', 2),  # several lines, but no row of three fields
        ('user,item,title\n1,a,"x, y\n2,b,"z"\n', 2),  # the line is no row either
    ],
)
def test_an_unclosed_quote_where_it_matters_is_a_bad_row(tmp_path, text, line):
    with pytest.raises(ValueError, match=rf"data.csv:{line}: a quoted field does not end on its line"):
        Interactions.from_file(write(tmp_path, text))


def test_lines_of_a_quoted_field_that_look_like_rows(tmp_path):
    review = '7,8,"Great.\nFunny, smart, short."\n7,9,dull\n'
    x = Interactions.from_file(write(tmp_path, "user,item,text\n" + review))
    assert (x.report.rows, x.item_ids.tolist()) == (2, [8, 9])  # "smart" is no item where items are integers
    review = 'ann,8b,"Great.\nFunny, smart, short."\nann,9b,dull\n'
    path = write(tmp_path, "user,item,text\n" + review)
    with pytest.raises(
        ValueError, match=r"data.csv:2: lines 2 to 3 are one row with a quoted field of several lines, or"
    ):
        Interactions.from_file(path)
    assert Interactions.from_file(path, skip_bad_rows=True).item_ids.tolist() == ["9b"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.text('a," \n', max_size=12)), min_size=1, max_size=30),
    st.sampled_from([40, 1 << 20]),
)
def test_what_the_csv_module_writes_comes_back(tmp_path_factory, rows, block):
    before = sources.BLOCK_BYTES
    sources.BLOCK_BYTES = block
    rows = [(0, "the first row says that ids are integers"), *rows]
    try:
        path = tmp_path_factory.mktemp("rows") / "data.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("user", "text", "item"), *((u, text, k) for k, (u, text) in enumerate(rows))])
        x = Interactions.from_file(path)
    finally:
        sources.BLOCK_BYTES = before
    users, items = x.pairs()
    assert x.report.rows == len(rows)
    got = zip(x.decode_users(users).tolist(), x.decode_items(items).tolist(), strict=True)
    assert sorted(got) == sorted((u, k) for k, (u, _) in enumerate(rows))


def test_header_with_an_unclosed_quote(tmp_path):
    x = Interactions.from_file(write(tmp_path, 'user,item,"title\n1,2,x\n3,4,y\n'))
    assert (x.nnz, x.report.rows) == (2, 2)


def test_carriage_returns(tmp_path):
    x = Interactions.from_file(write(tmp_path, "user,item\r1,2\r2,3\r"))
    assert (pairs_of(x), x.report.rows, x.item_ids.tolist()) == ([(0, 0), (1, 1)], 2, [2, 3])
    with pytest.raises(ValueError, match=r"data.csv:2: .*new-line"):  # in a file that goes through the csv module
        Interactions.from_file(write(tmp_path, 'user,item\n1,2\r3,4\n"5","6"\n'))


def times(tmp_path: Path, *fields: str, **options) -> list[float]:
    rows = "".join(f"{k},{k},{text}\n" for k, text in enumerate(fields))
    return (
        Interactions.from_file(write(tmp_path, "user,item,timestamp\n" + rows), **options).columns["timestamp"].tolist()
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2020", 1577836800),
        ("2020-01", 1577836800),
        ("2020-01-02", 1577923200),
        ("2020-01-02T03:04", 1577934240),
        ("2020-01-02 03:04:05.678901Z", 1577934245.678901),
        ("2020-01-02 03:04:05.678901234", 1577934245.678901),
        ("2020-01-02 03:04:05 UTC", 1577934245),
        ("2020-01-02T03:04:05+02:00", 1577927045),
        ("2020-01-02T03:04:05-0230", 1577943245),
        ("2020-01-02T03:04:05+02", 1577927045),
    ],
)
@pytest.mark.filterwarnings("error")
def test_dates(tmp_path, text, seconds):
    assert times(tmp_path, "1970-01-01", text) == [0.0, seconds]


@pytest.mark.parametrize(
    "text", ["", "NaT", "now", "today", "978300760", "20200102", "2020-0102", "2020-01-029", "-2020-01-01", "2020-W01"]
)
def test_what_is_no_date(tmp_path, text):
    with pytest.raises(ValueError, match=rf"data.csv:3: the timestamp is '{text}', expected .*ISO 8601 date"):
        times(tmp_path, "2020-01-01", text, "2020-01-03")
    assert times(tmp_path, "1970-01-02", text, "1970-01-03", skip_bad_rows=True) == [86400, 2 * 86400]


@pytest.mark.parametrize("missing", ["", "NA", "now"])
def test_a_missing_first_time_decides_nothing(tmp_path, missing):
    with pytest.raises(ValueError, match=rf"data.csv:2: the timestamp is '{missing}', expected a finite number"):
        times(tmp_path, missing, "978300760", "978302109")
    assert times(tmp_path, missing, "978300760", "978302109", skip_bad_rows=True) == [978300760, 978302109]
    assert times(tmp_path, missing, "1970-01-02", skip_bad_rows=True) == [86400]
    late = times(tmp_path, *[missing] * 30, "978300760", "978302109", skip_bad_rows=True)  # beyond the sampled rows
    assert late == [978300760, 978302109]
    # without a header, too
    path = write(tmp_path, f"1,2,{missing}\n1,3,978300760\n")
    if missing != "now":
        assert Interactions.from_file(path, skip_bad_rows=True).columns["timestamp"].tolist() == [978300760]


def test_notes_say_what_was_taken_for_what(tmp_path):
    x = Interactions.from_file(write(tmp_path, "user_id,item,when,created_at\n1,2,3,2023-01-03\n1,3,3,2022-01-03\n"))
    assert x.report.notes == ("columns: user = user_id, item, timestamp = created_at", "not read: when")
    assert (x.report.unread, x.report.guesses) == (("when",), ())
    assert pairs_of(x.split_last().test) == [(0, 0)]
    assert x.split_last().train.report.notes[2:] == ("last by timestamp",)
    x = Interactions.from_file(write(tmp_path, "1,2,3\n1,3,3\n"))
    assert x.report.notes == (
        "columns: user = column 0, item = column 1, rating = column 2",
        "no header: user, item, rating guessed by position",
    )
    assert x.report.guesses == x.report.notes[1:]
    assert x.split_last().test.report.notes[2:] == ("no column of times was recognised: last by the order of rows",)
    # nothing says that the first line is a header but that it has no number
    path = write(tmp_path, "abc,x\n1,2\n3,4\n")
    x = Interactions.from_file(path)
    assert x.nnz == 2
    assert "first line is taken for a header: abc, x; if it is a row, say header=False" in x.report.notes[0]
    assert Interactions.from_file(path, header=True).report.notes == (
        "columns: user = abc, item = x",
        "no name is known: users and items are taken for abc and x",
    )
    np.savez(tmp_path / "x.npz", user=[0, 1], movie_id=[1, 0])
    assert Interactions.from_file(tmp_path / "x.npz").report.notes == ("columns: user, item = movie_id",)


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_a_column_without_a_name_is_no_user(tmp_path, name):
    x = Interactions.from_file(write(tmp_path, f"{name},customer,sku\n0,10,20\n1,11,21\n"))
    assert (x.user_ids.tolist(), x.item_ids.tolist()) == ([10, 11], [20, 21])
    with pytest.raises(ValueError, match="cannot tell which column holds the items"):
        Interactions.from_file(write(tmp_path, f"{name},customer\n0,10\n1,11\n"))


@pytest.mark.parametrize(
    ("text", "users", "items"),
    [
        ("1;2;3,5\n1;3;4,0\n2;3;1,5\n", [1, 2], [2, 3]),  # decimal commas
        ("1|2|3,5\n2|3|1,5\n", [1, 2], [2, 3]),
        ("1;2,a\n3;4\n5;6\n", [1, 3, 5], ["2,a", "4", "6"]),  # only ; in every line
        ("1,2,a;b;c;d\n1,3,e;f;g;h\n", [1], [2, 3]),
        ("a|b|c,d\ne|f|g,h\n", ["a|b|c", "e|f|g"], ["d", "h"]),
        ("1\t2\tA, B, C, D\n2\t2\tE, F, G, H\n", [1, 2], [2]),
    ],
)
def test_delimiters_that_occur_in_fields(tmp_path, text, users, items):
    x = Interactions.from_file(write(tmp_path, text))
    assert (x.user_ids.tolist(), x.item_ids.tolist()) == (users, items)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-(10**17), 10**17),
            st.text(
                st.characters(
                    codec="utf-8",
                    exclude_characters='\n\r",\0\x1f\ufeff',
                    exclude_categories=["Zs", "Cc", "Cs"],
                ),
                min_size=1,
                max_size=6,
            ),
            st.floats(-1e6, 1e6),
        ),
        min_size=1,
        max_size=30,
    ),
    st.sampled_from([40, 200, 1 << 20]),
)
def test_written_rows_come_back(tmp_path_factory, rows, block):
    before = sources.BLOCK_BYTES
    sources.BLOCK_BYTES = block
    try:
        path = tmp_path_factory.mktemp("rows") / "data.csv"
        path.write_text("user,item,rating\n" + "".join(f"{u},{i},{r!r}\n" for u, i, r in rows), encoding="utf-8")
        x = Interactions.from_file(path, id_type="str")
    finally:
        sources.BLOCK_BYTES = before
    expected = {(str(u), i): r for u, i, r in rows}
    users, items = x.pairs()
    got = dict(
        zip(
            zip(x.decode_users(users).tolist(), x.decode_items(items).tolist(), strict=True),
            x.columns["rating"].tolist(),
            strict=True,
        )
    )
    assert got == expected


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "data.csv is empty"),
        ("\n\n", {}, "has no rows"),
        ("user,item\n", {}, "has a header but no rows"),
        ("1\n2\n", {}, r":1: expected at least two columns, a user and an item, found one: '1'"),
        ("1,2\n1,3\n1,2,3\n", {}, r":3: expected 2 fields as in the first row, found 3"),
        ("1,2\n1\n", {}, r":2: expected 2 fields as in the first row, found 1"),
        (
            "1,2\n1,x\n",
            {"id_type": "int"},
            r":2: the item is 'x', expected an integer\. skip_bad_rows=True leaves such rows out$",
        ),
        ("1,2\n1,2.5\n", {"id_type": "int"}, r":2: the item is '2.5', expected an integer\. skip_bad"),
        ("1,2\n1,\n", {}, r":2: the item is empty"),
        ("a,b\n,c\n", {}, r":2: the user is empty"),
        ("1,2,3\n1,3,good\n", {}, r":2: the rating is 'good', expected a finite number"),
        ("1,2,3\n1,3,nan\n", {}, r":2: the rating is 'nan', expected a finite number"),
        ("1,2,2.5\n1,3,inf\n", {}, r":2: the rating is 'inf', expected a finite number"),
        (
            "user,item,time\n1,3,2020-13-01\n",
            {},
            r":2: the timestamp is '2020-13-01', expected a number or an ISO",
        ),
        (
            "user,item,time\n1,3,13.11.2020\n",
            {},
            r"which of these is the day and which the month; columns=\{'timestamp': None\} reads no times",
        ),
        ("a,b\0c\n", {}, "not a text file"),
        (
            "user,item\n1,2\n",
            {"columns": {"item": "movie"}},
            "there is no column 'movie'.*the header has user, item",
        ),
        ("1,2\n", {"columns": {"item": 2}}, "column 2 was asked for as 'item', but there are only 2"),
        ("1,2\n", {"columns": {"item": "movie"}, "header": False}, "the file has no header; give its number"),
        ("1,2\n", {"columns": {"item": 1, "user": 1}}, "user and item are the same column"),
        ("user,thing\n1,2\n", {}, "cannot tell which column holds the items"),
        ("1,2\n", {"id_type": "float"}, "id_type: expected"),
        ("1,2\n", {"delimiter": ""}, "delimiter: expected"),
        ("1,2\n", {"min_rating": 3}, "min_rating: .* has no rating column"),
        ("1,2\n", {"shape": (5, 5)}, "shape: only with ids=False"),
        ("1,9\n", {"shape": (5, 5), "ids": False}, "data.csv: items: expected indices from 0 to 4, got 9"),
        ("a,b\n", {"ids": False}, "the users are not integers"),
    ],
)
def test_bad_files(tmp_path, text, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Interactions.from_file(write(tmp_path, text), **options)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        Interactions.from_file(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="is a folder"):
        Interactions.from_file(tmp_path)
    with pytest.raises(ValueError, match="not a complete gzip file"):
        Interactions.from_file(write(tmp_path, gzip.compress(b"1,2\n" * 1000)[:-12], "x.gz"))
    damaged = bytearray(gzip.compress(b"".join(b"%d,%d\n" % (k, k * k) for k in range(2000)), mtime=0))
    damaged[11] ^= 255
    with pytest.raises(ValueError, match=r"x.gz is not a complete gzip file"):
        Interactions.from_file(write(tmp_path, bytes(damaged), "x.gz"))
    for save, what in (
        (lambda f: np.savez_compressed(f, user=[0] * 99, item=range(99)), "as .npz"),
        (lambda f: sp.save_npz(f, sp.identity(99, format="csr")), "as a scipy sparse matrix"),
    ):
        file = io.BytesIO()
        save(file)
        damaged = bytearray(file.getvalue())
        for at in range(60, 300, 20):
            damaged[at] ^= 255
        with pytest.raises(ValueError, match=f"x.npz cannot be read {what}"):
            Interactions.from_file(write(tmp_path, bytes(damaged), "x.npz"))
    with pytest.raises(ValueError, match=r"cannot be read as .npz"):
        Interactions.from_file(write(tmp_path, b"PK\x03\x04 but no archive", "x.npz"))
    with pytest.raises(ValueError, match="not ascii; give the file's encoding"):
        Interactions.from_file(write(tmp_path, "zoë,1\n"), encoding="ascii")


def test_bad_rows_are_skipped_only_on_request_and_counted(tmp_path):
    path = write(tmp_path, "1,2,3\n1,x,3\nbad\n2,2,?\n2,3,1\n")
    with pytest.raises(ValueError, match=r":2: the item is 'x'"):
        Interactions.from_file(path, id_type="int")
    as_text = Interactions.from_file(path, skip_bad_rows=True)
    assert (as_text.report.rows, as_text.report.bad_rows, as_text.item_ids.tolist()) == (5, 2, ["2", "3", "x"])
    x = Interactions.from_file(path, skip_bad_rows=True, id_type="int")
    assert (x.report.rows, x.report.bad_rows, x.nnz) == (5, 3, 2)
    assert x.item_ids.tolist() == [2, 3]
    assert [m.split(":")[1] for m in x.report.bad_row_messages] == ["2", "3", "4"]
    assert "5 rows read, 3 bad rows skipped" in str(x.report)
    with pytest.raises(ValueError, match="has no usable rows"):
        Interactions.from_file(
            write(tmp_path, "1,2,3\n1,x,3\n"),
            skip_bad_rows=True,
            columns={"item": 0, "user": 1},
            id_type="int",
            header=True,
        )


def test_columns_chosen_by_hand(tmp_path):
    path = write(tmp_path, "when,who,what,likes,place\n5,1,2,3,home\n4,1,3,3,work\n")
    x = Interactions.from_file(path, columns={"user": "who", "item": "what", "timestamp": "when", "place": "place"})
    assert sorted(x.columns) == ["place", "row", "timestamp"]
    assert x.columns["place"].tolist() == ["home", "work"]
    x = Interactions.from_file(write(tmp_path, "1,2,3\n1,3,4\n"), columns={"rating": None})
    assert list(x.columns) == ["row"]
    # a third column of Unix times is no rating
    assert "timestamp" in Interactions.from_file(write(tmp_path, "1,2,1577880000\n")).columns


def test_min_rating_takes_the_last_rating_and_drops_what_is_left_empty(tmp_path):
    x = Interactions.from_file(write(tmp_path, "1,10,5\n1,10,2\n1,20,4\n2,30,1\n"), min_rating=3)
    assert x.user_ids.tolist() == [1]
    assert x.item_ids.tolist() == [20]
    assert (x.report.duplicates, x.report.low_ratings, x.report.emptied_users) == (1, 2, 1)


def test_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(
        path,
        user=np.int32([3, 0]),
        item=np.int32([1, 4]),
        rating=[2.0, 3.0],
        fold=[0, 1],
        other=np.zeros((2, 2)),
    )
    x = Interactions.from_any(path)
    assert x.shape == (4, 5)
    assert x.item_ids is None
    assert sorted(x.columns) == ["fold", "rating", "row"]
    assert Interactions.from_file(path, ids=True).shape == (2, 2)
    assert Interactions.from_file(path, shape=(9, 9)).shape == (9, 9)
    np.savez(path, user=[0, 1], item=[1, 2**44])
    with pytest.raises(ValueError, match=r"x.npz: items: 2 rows have indices up to 17592186044416.*ids=True"):
        Interactions.from_file(path)
    assert Interactions.from_file(path, ids=True).item_ids.tolist() == [1, 2**44]
    np.savez(path, user=[0, 1], item=[0, 1], timestamp=np.array(["2020-01-01", "NaT"], "M8[s]"))
    with pytest.raises(ValueError, match="row 1: the timestamp is NaT, expected a date"):
        Interactions.from_file(path)
    np.savez(path, user=[0, 1], item=[0.0, np.nan])
    with pytest.raises(ValueError, match="row 1: the item is nan"):
        Interactions.from_file(path)
    np.savez(path, user=[0, 1], item=[0])
    with pytest.raises(ValueError, match="'item' has shape"):
        Interactions.from_file(path)
    matrix = sp.csr_matrix(np.eye(3))
    sp.save_npz(path, matrix)
    assert Interactions.from_file(path).nnz == 3
    with pytest.raises(ValueError, match="min_rating: not for"):
        Interactions.from_file(path, min_rating=2)


def test_parquet(tmp_path):
    path = write(tmp_path, b"PAR1 and nothing else", "x.parquet")
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        with pytest.raises(ValueError, match="pip install pyarrow"):
            Interactions.from_file(path)
        return
    pq.write_table(pa.table({"user_id": ["b", "a"], "item_id": [5, 3], "rating": [1.0, 2.0]}), path)
    x = Interactions.from_file(path)
    assert x.user_ids.tolist() == ["a", "b"]
    assert x.columns["rating"].tolist() == [2.0, 1.0]
    pq.write_table(pa.table({"user_id": ["b", None], "item_id": [5, 3]}), path)
    with pytest.raises(ValueError, match="row 1: the user is missing"):
        Interactions.from_file(path)


# ----------------------------------------------------------------------------------------- filters and splits


@pytest.fixture
def random_interactions() -> Interactions:
    rng = np.random.default_rng(3)
    users, items = rng.integers(0, 30, 600), rng.integers(0, 40, 600) ** 2 // 40
    return Interactions.from_arrays(users, items, columns={"timestamp": rng.permutation(600)})


def test_filter_items(random_interactions):
    x = random_interactions
    y = x.filter_items(10)
    counts = x.popularity.numpy()
    assert y.item_ids.tolist() == np.flatnonzero(counts >= 10).tolist()
    assert y.popularity.tolist() == counts[counts >= 10].tolist()
    assert y.report.rare_items == ((counts > 0) & (counts < 10)).sum() > 0
    assert y.report.rare_item_interactions == x.nnz - y.nnz
    users, items = y.pairs()
    kept = set(zip(y.decode_users(users).tolist(), y.decode_items(items).tolist(), strict=True))
    assert kept == {(u, i) for u, i in pairs_of(x) if counts[i] >= 10}
    with pytest.raises(ValueError, match="no item has 1000 interactions"):
        x.filter_items(1000)


def check_partition(x: Interactions, parts) -> None:
    assert all(part.shape == x.shape for part in parts)
    together = [pair for part in parts for pair in pairs_of(part)]
    assert sorted(together) == pairs_of(x)
    rows = np.concatenate([part.columns["row"] for part in parts])
    assert sorted(rows.tolist()) == sorted(x.columns["row"].tolist())
    for part in parts:
        assert part.indptr[-1] == part.nnz == len(part.columns["timestamp"])


def test_split_random(random_interactions):
    x = random_interactions
    parts = x.split_random(seed=5)
    check_partition(x, parts)
    for part, ratio in zip(parts, (0.6, 0.2, 0.2), strict=True):
        assert abs(part.nnz - ratio * x.nnz) <= 1
    assert pairs_of(x.split_random(seed=5).test) == pairs_of(parts.test)
    assert pairs_of(x.split_random(seed=6).test) != pairs_of(parts.test)
    two = x.split_random((0.8, 0.2))
    check_partition(x, two)
    assert two.valid.nnz == 0
    for ratios in ((0.5, 0.6), (1.0,), (1.2, -0.2), (0.5, float("nan"))):
        with pytest.raises(ValueError, match="ratios"):
            x.split_random(ratios)


def test_split_last(random_interactions):
    x = random_interactions
    parts = x.split_last(test=2, valid=1)
    check_partition(x, parts)
    for u in range(x.num_users):
        when = [part.columns["timestamp"][int(part.indptr[u]) : int(part.indptr[u + 1])] for part in parts]
        assert [len(w) for w in when[1:]] == [1, 2]
        assert when[0].max() < when[1].min()
        assert when[1].max() < when[2].min()
    # by file order, ties by row; a user with too few stays in train
    y = Interactions.from_arrays([0, 0, 0, 1], [5, 1, 3, 0])
    split = y.split_last()
    assert pairs_of(split.test) == [(0, 3)]
    assert pairs_of(split.train) == [(0, 1), (0, 5), (1, 0)]
    tied = Interactions.from_arrays([0, 0, 0], [2, 1, 0], columns={"timestamp": [1, 1, 1]})
    assert pairs_of(tied.split_last().test) == [(0, 0)]
    text = Interactions.from_arrays([0, 0, 0], [1, 2, 3], columns={"timestamp": ["9", "10", "11"]})
    assert pairs_of(text.split_last().test) == [(0, 3)]
    for values in ([1.0, float("nan"), 5.0], np.array(["2020-01-01", "NaT", "2021-01-01"], "M8[s]")):
        missing = Interactions.from_arrays([0, 0, 0], [1, 2, 3], columns={"timestamp": values})
        with pytest.raises(ValueError, match="by: column 'timestamp' has no value for user 0, item 2"):
            missing.split_last()
    with pytest.raises(ValueError, match=r"columns\['timestamp'\]: expected no missing values, got None at position 1"):
        Interactions.from_arrays([0, 0], [1, 2], columns={"timestamp": np.array([1, None], object)})
    with pytest.raises(ValueError, match="have no order"):
        Interactions.from_scipy(y.to_scipy()).split_last()
    with pytest.raises(ValueError, match="no column 'when'; these interactions have timestamp, row"):
        x.split_last(by="when")


def test_split_by_column():
    x = Interactions.from_arrays([0, 0, 1, 1], [0, 1, 0, 1], columns={"split": [0, 1, 2, 0], "fold": list("abcb")})
    split = x.split_by()
    assert [pairs_of(p) for p in split] == [[(0, 0), (1, 1)], [(1, 0)], [(0, 1)]]
    folds = x.split_by("fold", train=("b", "c"), valid=(), test="a")
    assert [p.nnz for p in folds] == [3, 0, 1]
    with pytest.raises(ValueError, match="1 interactions have the value 'c', expected train='b'"):
        x.split_by("fold", train="b", test="a")
    with pytest.raises(ValueError, match="no interaction has train=9"):
        x.split_by(train=9, test=(0, 1, 2))


def test_union(random_interactions):
    x = random_interactions
    train, valid, test = x.split_random()
    assert pairs_of(train | valid | test) == pairs_of(x)
    np.testing.assert_array_equal((train | valid | test).columns["timestamp"], x.columns["timestamp"])
    assert (x | x).report.duplicates == x.nnz
    with pytest.raises(ValueError, match="expected shape"):
        x | Interactions.from_arrays([0], [0])
    a, b = (Interactions.from_arrays([0], [name], ids=True) for name in "ab")
    with pytest.raises(ValueError, match="item ids differ"):
        a | b
    with pytest.raises(TypeError, match="expected Interactions"):
        a.union(3)
    plain = Interactions.from_arrays([0], [0])
    for both in (a | plain, plain | a):  # a plain matrix speaks of indices
        assert both.item_ids.tolist() == ["a"]
        assert both.nnz == 1


def test_movielens_1m_after_the_papers_filter():
    folder = os.environ.get("ZEROSUM_EXT_DATA")
    if not folder or not (Path(folder) / "ml-1m.npz").is_file():
        pytest.skip("ZEROSUM_EXT_DATA names no folder with ml-1m.npz")
    x = Interactions.from_file(Path(folder) / "ml-1m.npz").filter_items(10)
    assert (x.shape, x.nnz) == ((6040, 3260), 998_539)  # [RCS22] table 1
