"""Lists of the best items and neighbours: candidates, filters, exclusions in every form, ids, files of all users."""

import csv
import gc
import os
import resource
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import zerosum_ext as zx

USERS, ITEMS, K = 90, 70, 9
NAMES = ("mf", "gmf", "neumf", "lightgcn", "ngcf", "compensated", "macr")


def _data(density=0.1, seed=0):
    mask = torch.rand(USERS, ITEMS, generator=torch.Generator().manual_seed(seed)) < density
    return mask, zx.Interactions.from_arrays(*mask.nonzero().T.numpy(), shape=(USERS, ITEMS))


def _model(name, train):
    if name == "mf":
        model = zx.MatrixFactorization(USERS, ITEMS, 8, item_bias=True, init_std=1.0, seed=0)
        torch.nn.init.normal_(model.item_bias, generator=torch.Generator().manual_seed(1))
        return model
    if name == "compensated":
        return zx.Compensated(zx.MatrixFactorization(USERS, ITEMS, 8, init_std=1.0, seed=0), train.popularity, 0.5)
    if name == "macr":
        return zx.MACR(zx.get_model("gmf", train, embedding_dim=8, init_std=1.0, seed=0), 0.3)
    return zx.get_model(name, train, embedding_dim=8, init_std=1.0, seed=0)


def _reference(model, users, k, allowed):
    """Return what a list is by definition: all scores, and those of other items taken out. [n, k] each."""
    with torch.no_grad():
        scores = model.eval().score_all_items(users).masked_fill(~allowed, -torch.inf)
    values, items = scores.topk(min(k, ITEMS), dim=1)
    items = items.masked_fill(values == -torch.inf, -1)
    pad = (0, k - items.shape[1])
    return torch.nn.functional.pad(items, pad, value=-1), torch.nn.functional.pad(values, pad, value=-torch.inf)


def _assert_lists(got, want):
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(got[0], want[0])


def _matrix(mask, form):
    scipy = sp.csr_matrix(mask.numpy().astype(np.float32))
    if form == "interactions":
        return zx.Interactions.from_scipy(scipy)
    if form == "torch":
        return mask.float().to_sparse_csr()
    return getattr(scipy, f"to{form}")()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 5, 80])
def test_candidates_filters_and_exclusions_agree_with_the_definition(name, count):
    mask, train = _data()
    model = _model(name, train)
    users = torch.randperm(USERS, generator=torch.Generator().manual_seed(count))[:count]
    free = ~mask[users]
    generator = torch.Generator().manual_seed(3)
    for size in (5, 60):
        chosen = torch.randperm(ITEMS, generator=generator)[:size]
        among = torch.zeros(ITEMS, dtype=torch.bool)
        among[chosen] = True
        _assert_lists(model.recommend(users, K, exclude=train, items=chosen), _reference(model, users, K, free & among))
        _assert_lists(model.recommend(users, K, items=among.numpy()), _reference(model, users, K, among))
        _assert_lists(
            model.recommend(users, K, exclude=train, filter_items=chosen), _reference(model, users, K, free & ~among)
        )
        own = torch.rand(count, ITEMS, generator=generator) < size / 100
        rows = sp.csr_matrix(own.numpy())
        wanted = _reference(model, users, K, own & free & ~among)
        _assert_lists(model.recommend(users, K, exclude=train, items=rows, filter_items=chosen), wanted)
    both = model.recommend(users, K, items=[1, 2, 3], filter_items=[2])
    assert set(both[0].flatten().tolist()) == {1, 3, -1}


@pytest.mark.parametrize("form", ["interactions", "csr", "csc", "coo", "torch"])
@pytest.mark.parametrize("count", [1, 7, 75])
def test_exclude_takes_all_rows_or_those_of_the_users(form, count):
    mask, train = _data()
    model = _model("mf", train)
    users = torch.randperm(USERS, generator=torch.Generator().manual_seed(count))[:count]
    want = _reference(model, users, K, ~mask[users])
    _assert_lists(model.recommend(users, K, exclude=_matrix(mask, form)), want)
    _assert_lists(model.recommend(users, K, exclude=_matrix(mask[users], form)), want)
    # A matrix of all users may hold the candidates of each, too.
    _assert_lists(model.recommend(users, K, items=_matrix(~mask, form)), want)


def test_a_matrix_is_read_where_its_users_are_and_not_converted(monkeypatch):
    mask, train = _data()
    model, scipy = _model("mf", train), sp.csr_matrix(mask.numpy().astype(np.float32))
    want = model.recommend([4, 2], 5, exclude=train)

    def refuse(*args, **options):
        raise AssertionError("the whole matrix is converted")

    monkeypatch.setattr(zx.Interactions, "from_scipy", refuse)
    _assert_lists(model.recommend([4, 2], 5, exclude=scipy), want)


def test_entries_that_are_zero_twice_or_out_of_order():
    """Stored zeros are no interactions, and a matrix need not be canonical."""
    train = _data()[1]
    model = _model("mf", train)
    indices, values = np.array([5, 3, 3, 9, 1]), np.array([1.0, 2.0, 1.0, 0.0, 4.0])
    rough = sp.csr_matrix((values, indices, np.array([0, 4, 5])), shape=(2, ITEMS))
    allowed = torch.ones(2, ITEMS, dtype=torch.bool)
    allowed[0, [3, 5]] = allowed[1, 1] = False
    users = torch.tensor([8, 3])
    _assert_lists(model.recommend(users, 70, exclude=rough), _reference(model, users, 70, allowed))
    assert rough.nnz == 5  # as it was


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exclude": sp.csr_matrix((2, ITEMS))}, r"exclude: expected shape \(90, 70\).* or \(3, 70\) .* got \(2, 70\)"),
        ({"exclude": sp.csr_matrix((3, ITEMS + 1))}, "exclude: expected shape"),
        ({"exclude": sp.csr_matrix(-np.eye(3, ITEMS))}, "exclude: the value at user 1, item 0 is -1"),
        ({"exclude": sp.csr_matrix(np.full((3, ITEMS), np.nan))}, "expected none below zero and no NaN"),
        ({"items": [1, ITEMS]}, "items: id 70 is out of range"),
        ({"items": np.ones(ITEMS - 1, bool)}, "items: expected a mask of shape"),
        ({"items": np.ones((3, 2), int)}, r"items: expected ids \[C\] or a mask"),
        ({"filter_items": [-1]}, "filter_items: id -1 is out of range"),
        ({"return_ids": True}, "return_ids: expected a model with a vocabulary"),
    ],
)
def test_what_recommend_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        _model("mf", _data()[1]).recommend([1, 2, 3], 5, **options)


@pytest.mark.parametrize(("name", "value"), [("items", ["a"]), ("filter_items", [1.5]), ("exclude", {"a": 1})])
def test_what_is_of_a_wrong_type(name, value):
    with pytest.raises(TypeError, match=r"items|interactions"):
        _model("mf", _data()[1]).recommend([1, 2, 3], 5, **{name: value})


def test_nothing_is_left_and_nobody_asks():
    train = _data()[1]
    model = _model("mf", train)
    for options in ({"items": []}, {"filter_items": range(ITEMS)}, {"items": sp.csr_matrix((2, ITEMS))}):
        items, scores = model.recommend([1, 2], 4, **options)
        assert items.tolist() == [[-1] * 4] * 2
        assert bool(torch.isneginf(scores).all())
    for options in ({}, {"items": [1]}, {"exclude": train}, {"items": sp.csr_matrix((0, ITEMS))}):
        items, scores = model.recommend([], 4, **options)
        assert items.shape == scores.shape == (0, 4)
    assert model.recommend(3, ITEMS + 5)[0][0, ITEMS:].tolist() == [-1] * 5


def test_a_model_that_diverged_is_refused_whatever_the_candidates():
    model = _model("mf", _data()[1])
    with torch.no_grad():
        model.item_embedding[5] = torch.nan
    for options in ({}, {"items": [5, 6]}, {"items": sp.csr_matrix(([1], ([0], [5])), shape=(1, ITEMS))}):
        with pytest.raises(ValueError, match="diverged"):
            model.recommend([1], 2, **options)
    assert (model.recommend([1], 2, filter_items=[5])[0] >= 0).all()


def test_external_ids_of_items():
    users, items = ["ann", "bob", "ann", "cid"], ["x", "y", "z", "y"]
    train = zx.Interactions.from_arrays(users, items, ids=True)
    model = zx.MatrixFactorization(3, 3, 4, init_std=1.0, seed=0)
    model.fit(train, epochs=1, progress=False)
    assert model.vocabulary == train.vocabulary
    numbers, scores = model.recommend([0, 2], 3, exclude=train)
    names, again = model.recommend([0, 2], 3, exclude=train, return_ids=True)
    assert torch.equal(scores, again)
    assert names.tolist() == [[train.item_ids[i] if i >= 0 else "" for i in row] for row in numbers.tolist()]
    assert names[0, 1:].tolist() == ["", ""]
    near = model.similar_items([0], 2, return_ids=True)[0]
    assert set(near[0]) == {"y", "z"}
    assert set(model.similar_users([1], 2, return_ids=True)[0][0]) == {"ann", "cid"}
    by_number = zx.Interactions.from_arrays([7, 8], [90, 80], ids=True)
    model = zx.MatrixFactorization.from_interactions(by_number, embedding_dim=2)
    assert sorted(model.recommend([0], 3, return_ids=True)[0][0].tolist()) == [-1, 80, 90]


# ---- neighbours


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize("count", [2, 70])
@pytest.mark.parametrize("side", ["items", "users"])
def test_neighbours_agree_with_the_definition(metric, count, side):
    model = _model("mf", _data()[1])
    table = getattr(model, f"{side[:-1]}_embedding").detach().double()
    size = len(table)
    index = torch.randperm(size, generator=torch.Generator().manual_seed(1))[:count]
    unit = torch.nn.functional.normalize(table, dim=1) if metric == "cosine" else table
    scores = unit[index] @ unit.T
    scores[torch.arange(count), index] = -torch.inf
    call = getattr(model, f"similar_{side}")
    for allowed, options in (
        (torch.arange(size), {}),
        (torch.arange(0, size, 3), {"candidates": range(0, size, 3)}),
        (torch.arange(30, size), {f"filter_{side}": torch.arange(30)}),
    ):
        values, place = scores[:, allowed].topk(6, dim=1)
        got = call(index, 6, metric=metric, **options)
        torch.testing.assert_close(got[1].double(), values, rtol=1e-4, atol=1e-5)
        assert torch.equal(got[0], allowed[place])


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-38])
@pytest.mark.parametrize("count", [1, 70])
def test_neighbours_do_not_depend_on_the_scale(scale, count):
    model = zx.MatrixFactorization(2, 70, 4, init_std=1.0, seed=0)
    index = torch.arange(count)
    want = model.similar_items(index, 5)
    dots = model.similar_items(index, 5, metric="dot")[0]
    with torch.no_grad():
        model.item_embedding *= scale
    got = model.similar_items(index, 5)
    torch.testing.assert_close(got[1], want[1], rtol=1e-3, atol=1e-3)
    if scale > 1e-38:  # where what is left of the numbers is a few bits
        assert torch.equal(got[0], want[0])
        assert torch.equal(model.similar_items(index, 5, metric="dot")[0], dots)


def test_rows_of_zeros_and_of_mixed_lengths():
    model = zx.MatrixFactorization(2, 4, 2, seed=0)
    with torch.no_grad():
        model.item_embedding.copy_(torch.tensor([[1e30, 0.0], [1e-30, 1e-30], [0.0, 0.0], [-1.0, 0.0]]))
    items, scores = model.similar_items([0, 2], 3)
    assert items.tolist() == [[1, 3, -1], [-1, -1, -1]]
    torch.testing.assert_close(scores[0, :2], torch.tensor([0.5**0.5, -1.0]))
    assert model.similar_items([0], 2, candidates=[2, 3])[0].tolist() == [[3, -1]]


def test_neighbours_of_what_diverged_are_refused():
    model = _model("mf", _data()[1])
    with torch.no_grad():
        model.item_embedding[3, 1] = torch.nan
        model.user_embedding[4, 0] = torch.inf
    for metric in ("cosine", "dot"):
        with pytest.raises(ValueError, match="vector of item 3 is not finite"):
            model.similar_items([0], 2, metric=metric)
        with pytest.raises(ValueError, match="vector of user 4 is not finite"):
            model.similar_users([0], 2, metric=metric)


def test_neighbours_follow_a_table_however_it_is_changed():
    """Nothing announces changes through ``.data`` or NumPy: what is kept from call to call would be wrong."""
    model = zx.MatrixFactorization(2, 5, 2, seed=0)
    table = model.item_embedding
    with torch.no_grad():
        table.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]]))
    assert model.similar_items(0, 1)[0].tolist() == [[1]]
    table.data[1] = torch.tensor([-5.0, 0.1])
    assert model.similar_items(0, 1)[0].tolist() == [[3]]
    table.detach().numpy()[4] = 2.0, 0.0
    items, scores = model.similar_items(0, 1)
    assert items.tolist() == [[4]]
    assert scores.item() == pytest.approx(1)


@pytest.mark.parametrize("name", NAMES)
def test_lists_of_ids_are_excluded(name):
    mask, train = _data()
    model = _model(name, train)
    users = torch.tensor([5, 3, 5])
    own = [torch.nonzero(mask[u]).flatten().tolist() for u in users.tolist()]
    got = model.recommend(users, K, exclude=[own[0][::-1] + own[0][:1], np.array(own[1], np.int64), own[2]])
    want = model.recommend(users, K, exclude=train)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    assert torch.equal(model.recommend([3], K, exclude=[[]])[0], model.recommend([3], K)[0])


def test_what_is_no_exclusion_is_named():
    model = _model("mf", _data()[1])
    for wrong in (np.zeros((2, ITEMS)), torch.zeros(2, ITEMS), "train.csv", [1, 2]):
        with pytest.raises(TypeError, match="exclude: expected"):
            model.recommend([0, 1], 2, exclude=wrong)
    with pytest.raises(ValueError, match="exclude: expected a list of ids for each of 2 users, got 1 lists"):
        model.recommend([0, 1], 2, exclude=[[1]])
    with pytest.raises(ValueError, match="exclude: id 70 is out of range"):
        model.recommend([0, 1], 2, exclude=[[1], [ITEMS]])


def test_models_of_other_scores_say_what_they_cannot():
    model = _model("neumf", _data()[1])
    for name in ("fold_in", "recommend_for", "similar_items", "similar_users"):
        with pytest.raises(ValueError, match=f"{name}: expected a model whose scores are dot products, got NeuMF"):
            getattr(model, name)([[1]])


def test_one_user_is_given_the_list_that_many_are():
    _, train = _data()
    model = _model("mf", train)
    items, scores = model.recommend(np.arange(USERS), ITEMS + 3, exclude=train)
    for user in (0, 7, np.int64(8), USERS - 1):
        one, values = model.recommend(user, ITEMS + 3, exclude=train)
        torch.testing.assert_close(values[0], scores[int(user)])
        assert set(one[0].tolist()) == set(items[int(user)].tolist())
    assert model.training
    model.eval()
    model.recommend(0, 3)
    assert not model.training
    with pytest.raises(ValueError, match=r"users: id -1 is out of range \[0, 90\)"):
        model.recommend(-1, 3)
    with torch.no_grad():
        model.item_embedding[3] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        model.recommend(0, 3)


def test_neighbours_that_are_not_there():
    model = _model("mf", _data()[1])
    assert model.similar_items([0, 1], 3, candidates=[1])[0].tolist() == [[1, -1, -1], [-1, -1, -1]]
    assert model.similar_items([0], 3, candidates=[])[0].tolist() == [[-1, -1, -1]]
    assert model.similar_items([], 3)[0].shape == (0, 3)
    with pytest.raises(TypeError, match="candidates: expected ids or a mask"):
        model.similar_items([0], 3, candidates=sp.csr_matrix((1, ITEMS)))


# ---- files of all users


def _read(path):
    if str(path).endswith(".parquet"):
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        assert table.column_names == ["user", "rank", "item", "score"]
        return [tuple(row.values()) for row in table.to_pylist()]
    import gzip

    with (gzip.open if str(path).endswith(".gz") else open)(path, "rt", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["user", "rank", "item", "score"]
    return rows


@pytest.mark.parametrize("name", ["lists.parquet", "lists.csv", "lists.csv.gz"])
def test_the_lists_of_all_users_as_a_file(tmp_path, monkeypatch, name):
    from zerosum_ext.models import streaming

    monkeypatch.setattr(streaming, "_ROWS_AT_ONCE", 100)  # eleven users at a time
    train = _data(density=0.9)[1]
    model = _model("mf", train)
    items, scores = model.recommend(range(USERS), K, exclude=train)
    count = streaming.write_recommendations(model, tmp_path / name, K, exclude=train, progress=False)
    want = [
        (user, rank + 1, int(items[user, rank]), float(scores[user, rank]))
        for user in range(USERS)
        for rank in range(K)
        if items[user, rank] >= 0
    ]
    got = _read(tmp_path / name)
    assert count == len(got) == len(want) < USERS * K
    kinds = (int, int, int, float)
    for row, expected in zip(got, want, strict=True):
        values = [kind(value) for kind, value in zip(kinds, row, strict=True)]
        assert values[:3] == list(expected[:3])
        assert values[3] == pytest.approx(expected[3], rel=1e-5)


def test_a_file_holds_external_ids_that_need_quotation_marks(tmp_path):
    train = zx.Interactions.from_arrays(["a,b", "c"], ['x"y', "ü\nv"], ids=True)
    model = zx.MatrixFactorization.from_interactions(train, embedding_dim=2, seed=0)
    for name in ("lists.parquet", "lists.csv"):
        assert zx.models.write_recommendations(model, tmp_path / name, 1, exclude=train, progress=False) == 2
        assert [row[:3:2] for row in _read(tmp_path / name)] in (
            [("a,b", "ü\nv"), ("c", 'x"y')],
            [["a,b", "ü\nv"], ["c", 'x"y']],
        )
    path = tmp_path / "some.csv"
    zx.models.write_recommendations(
        model, path, 1, users=[1], vocabulary=zx.Interactions.from_arrays([1], [1]).vocabulary
    )
    assert [row[0] for row in _read(path)] == ["1"]


@pytest.mark.parametrize("name", ["lists.parquet", "lists.csv"])
def test_a_file_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, name):
    from zerosum_ext.models import streaming

    monkeypatch.setattr(streaming, "_ROWS_AT_ONCE", 100)  # eleven users at a time
    train = _data()[1]
    model = _model("lightgcn", train)
    asked = []
    recommend = model.recommend

    def interrupted(users, *arguments, **options):
        asked.extend(users.tolist())
        if len(asked) == 33:
            raise KeyboardInterrupt
        return recommend(users, *arguments, **options)

    monkeypatch.setattr(model, "recommend", interrupted)
    options = {"exclude": train.to_scipy(), "filter_items": [3], "progress": False}
    with pytest.raises(KeyboardInterrupt):
        streaming.write_recommendations(model, tmp_path / name, K, resume=True, **options)
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.parts"]
    for other in ({"filter_items": [4]}, {"exclude": None}, {"exclude": train}, {"users": range(USERS - 1)}):
        with pytest.raises(ValueError, match="is of a call with another model, other users or other arguments"):
            streaming.write_recommendations(model, tmp_path / name, K, resume=True, **{**options, **other})
    with pytest.raises(ValueError, match="of a call with another model"):
        streaming.write_recommendations(_model("mf", train), tmp_path / name, K, resume=True, **options)
    done = streaming.write_recommendations(model, tmp_path / name, K, resume=True, **options)
    assert asked == [*range(33), *range(22, USERS)]
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert done == streaming.write_recommendations(model, tmp_path / f"at-once-{name}", K, **options)
    assert _read(tmp_path / name) == _read(tmp_path / f"at-once-{name}")


def test_a_file_is_complete_or_not_there(tmp_path):
    model = _model("mf", _data()[1])
    with pytest.raises(ValueError, match="expected a name that ends in"):
        zx.models.write_recommendations(model, tmp_path / "lists.xlsx")
    with torch.no_grad():
        model.user_embedding[80] = torch.nan
    for name in ("lists.parquet", "lists.csv"):
        with pytest.raises(ValueError, match="diverged"):
            zx.models.write_recommendations(model, tmp_path / name, 4, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
@pytest.mark.parametrize("name", ["lists.parquet", "lists.csv", "lists.csv.gz"])
def test_a_full_disk_leaves_no_file_open(tmp_path, name):
    model = zx.MatrixFactorization(40, 30, 4, seed=0)
    zx.models.write_recommendations(model, tmp_path / name, 10, progress=False)
    size = (tmp_path / name).stat().st_size
    before, opened = resource.getrlimit(resource.RLIMIT_FSIZE), len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for limit in range(0, size, max(1, size // 9)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            with pytest.raises(OSError, match=r"lists\."):
                zx.models.write_recommendations(model, tmp_path / name, 10, progress=False)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(os.listdir("/proc/self/fd")) == opened
    finally:
        gc.enable()
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
