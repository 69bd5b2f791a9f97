"""New users and items: rows of users who were not trained with, models that grow, training that goes on."""

import os

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp
import torch

import zerosum_ext as zx
from zerosum_ext.data import datasets
from zerosum_ext.training import fit

HISTORIES = [[3, 7, 8], [], [1], list(range(50)), [4, 9, 30, 31, 2]]


def _items(num_items=50, dim=6, bias=True):
    model = zx.MatrixFactorization(4, num_items, dim, item_bias=bias, init_std=0.7, seed=0, dtype=torch.float64)
    if bias:
        torch.nn.init.normal_(model.item_bias, generator=torch.Generator().manual_seed(1))
    return model


def _objective(model, history, negatives, loss, l2):
    """Return the objective of one user by its definition, as a function of a NumPy row."""
    item, bias = model.item_embedding.detach(), model.item_bias.detach()

    def value(row):
        p = torch.tensor(row, requires_grad=True)
        pos = item[history] @ p + bias[history]
        neg = item[negatives] @ p + bias[negatives]  # [P, K]
        total = zx.get_loss(loss)(pos, neg) + l2 / 2 * p.square().sum()
        total.backward()
        return total.item(), p.grad.numpy()

    return value


def _negatives(matrix, loss, k, seed):
    """Return those that each user's positives are set against."""
    from zerosum_ext.models import folding

    indptr, _, drawn = folding.samples_of(matrix, folding.FoldIn.of(loss, 0.1, k, seed, 1e-4, 100))
    return drawn.split(indptr.diff().tolist())


@pytest.mark.parametrize("loss", ["bpr", "sampled_softmax"])
@pytest.mark.parametrize("negatives", [1, 3, None])
def test_fold_in_finds_the_minimum_that_scipy_finds(loss, negatives):
    model = _items()
    rows = model.fold_in(HISTORIES, loss=loss, negatives=negatives, l2=0.02, seed=5, tolerance=1e-6)
    assert rows[1].abs().max() == rows[3].abs().max() == 0  # nothing to learn from
    matrix = zx.Interactions.from_arrays(
        [u for u, h in enumerate(HISTORIES) for _ in h], [i for h in HISTORIES for i in h], shape=(5, 50)
    )
    for user in (0, 2, 4):
        history = torch.tensor(sorted(HISTORIES[user]))
        if negatives is None:
            others = torch.tensor([i for i in range(50) if i not in HISTORIES[user]]).expand(len(history), -1)
        else:
            others = _negatives(matrix, loss, negatives, seed=5)[user]
        value = _objective(model, history, others, loss, 0.02)
        want = scipy.optimize.minimize(value, np.zeros(6), jac=True, method="L-BFGS-B", tol=1e-14)
        assert value(rows[user].numpy())[0] == pytest.approx(want.fun, rel=1e-8)
        np.testing.assert_allclose(rows[user].numpy(), want.x, atol=1e-3)


def _samples(num_users=60, num_items=50):
    mask = torch.rand(num_users, num_items, generator=torch.Generator().manual_seed(3)) < 0.2
    mask[:, 0] = True
    mask[7], mask[8] = False, True  # users without samples
    return zx.Interactions.from_arrays(*mask.nonzero().T.numpy(), shape=(num_users, num_items))


FOLDED = ["bpr", "zerosum", "pos2neg2", "bsl", "psl", "sampled_softmax", "ipw", "pd"]


def _loss(name):
    popularity = torch.arange(1, 51)
    if name in ("ipw", "pd"):
        return zx.get_loss(name, popularity=popularity)
    return zx.BSLLoss(positive_temperature=1.0, negative_temperature=1.0) if name == "bsl" else zx.get_loss(name)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", FOLDED)
def test_fold_in_ends_where_the_gradient_is_small(loss, bias):
    """By the objective's definition in double precision, whichever implementation found the rows."""
    from zerosum_ext import reference
    from zerosum_ext.models import folding

    model = _items(bias=bias).float()
    settings = folding.FoldIn.of(_loss(loss), 0.05, 2, 0, 1e-4, 500)
    histories = _samples()
    rows = model.fold_in(histories, loss=_loss(loss), l2=0.05, negatives=2, max_iterations=500)
    assert rows.dtype == torch.float32
    assert not rows[7].any()
    assert not rows[8].any()
    samples = folding.samples_of(histories, settings)
    constants = settings.loss.item_constants()
    kink = folding._KINK_WIDTH if settings.kernel.loss in folding._ROUNDED else 0
    value_of = reference.rounded_loss(settings.kernel, None if constants is None else constants.double(), kink)
    users = (samples[0].diff() > 0).nonzero().flatten()
    item = model.item_embedding.detach().double()
    offset = model.item_bias.detach().double() if bias else None
    objective = reference.Objective(item, offset, samples, users, value_of, 0.05)
    rows = rows[users].double()
    first = objective(torch.zeros_like(rows))[1].norm(dim=1)
    value, gradient = objective(rows)
    assert (gradient.norm(dim=1) <= 1.02e-4 * first).all()
    step = 1e-3 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(1))
    assert (objective(rows + step)[0] >= value - 1e-6 * value.abs()).all()


class _Own(torch.nn.Module):
    """BPR as somebody else's module, which has no kernel."""

    reduction = "none"

    def forward(self, pos, neg):
        return -torch.nn.functional.logsigmoid(pos.unsqueeze(-1) - neg)


def test_fold_in_with_a_module_of_ones_own():
    model, histories = _items(), _samples()
    got = model.fold_in(histories, loss=_Own(), tolerance=1e-7)
    torch.testing.assert_close(got, model.fold_in(histories, loss="bpr", tolerance=1e-7), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", ["zerosum", "pos2neg2"])
def test_a_user_is_folded_in_alone_or_with_others_to_the_same_bits(loss):
    model, histories = _items().float(), _samples()
    settings = {"loss": loss, "l2": 0.1}
    rows = model.fold_in(histories, **settings)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert torch.equal(model.fold_in(histories, **settings), rows)
    finally:
        torch.set_num_threads(threads)
    matrix = histories.to_scipy()
    assert torch.equal(model.fold_in(matrix[::-1].tocsr(), **settings).flip(0), rows)
    for user in (0, 7, 8, 59):
        assert torch.equal(model.fold_in([matrix[user].indices.tolist()[::-1]], **settings)[0], rows[user])


def test_negatives_of_folded_users_are_exact_and_evenly_drawn():
    generator = torch.Generator().manual_seed(0)
    own = [torch.randperm(50, generator=generator)[:5].tolist() for _ in range(2000)]
    matrix = zx.Interactions.from_arrays(
        [u for u, row in enumerate(own) for _ in row], [i for row in own for i in row], shape=(2000, 50)
    )
    drawn = _negatives(matrix, "bpr", 4, seed=0)
    counts = torch.zeros(50, dtype=torch.int64)
    for row, items in zip(own, drawn, strict=True):
        assert not set(row) & set(items.flatten().tolist())
        counts += torch.bincount(items.flatten(), minlength=50)
    free = 2000 - torch.bincount(torch.tensor(own).flatten(), minlength=50)
    expected = 40000 * free / free.sum()
    assert float(((counts - expected) ** 2 / expected).sum()) < 85  # chi2 of 49 degrees: 1 in 1,000 lies above
    # Sessions that are served one by one do not meet the same few items first.
    alone = (zx.Interactions.from_arrays([0] * 5, row, shape=(1, 50)) for row in own[:40])
    firsts = [_negatives(one, "bpr", 4, seed=0)[0][0, 0] for one in alone]
    assert len(set(map(int, firsts))) > 15


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fold_in_of_16_bit_tables_computes_in_float32(dtype):
    model = _items().to(dtype)
    wide = _items().float()
    with torch.no_grad():
        wide.item_embedding.copy_(model.item_embedding)
        wide.item_bias.copy_(model.item_bias)
    for negatives in (2, None):
        got = model.fold_in(HISTORIES, negatives=negatives)
        assert got.dtype == dtype
        assert torch.equal(got, wide.fold_in(HISTORIES, negatives=negatives).to(dtype))


@pytest.mark.parametrize("negatives", [4, None])
@pytest.mark.parametrize("loss", ["bpr", "zerosum", _Own()])
def test_fold_in_says_that_a_model_diverged(loss, negatives):
    for wrong in (float("nan"), float("inf")):
        model = _items().float()
        with torch.no_grad():
            model.item_embedding[9, 2] = wrong
        with pytest.raises(ValueError, match=r"fold_in: the vectors of the items of history [01]"):
            model.fold_in([[1], [9]], loss=loss, negatives=negatives if negatives is None else 1, seed=3)


def test_fold_in_with_the_kinks_of_zerosum_is_near_the_minimum_of_the_loss_itself():
    model = _items()
    row = model.fold_in([HISTORIES[0]], loss="zerosum", negatives=3, l2=0.1, seed=5)[0].numpy()
    matrix = zx.Interactions.from_arrays([0, 0, 0], HISTORIES[0], shape=(1, 50))
    drawn = _negatives(matrix, "zerosum", 3, seed=5)[0]
    value = _objective(model, torch.tensor(HISTORIES[0]), drawn, "zerosum", 0.1)
    best = min(
        scipy.optimize.minimize(lambda x: value(x)[0], row + shift, method="Nelder-Mead", options={"maxiter": 4000}).fun
        for shift in (0, 0.1)
    )
    assert value(row)[0] - best < 0.04  # the width of the rounding, twice


def test_fold_in_takes_histories_in_any_form_and_each_user_alone_or_not():
    model = _items()
    want = model.fold_in(HISTORIES, negatives=None)
    matrix = sp.csr_matrix(np.array([[i in h for i in range(50)] for h in HISTORIES], np.float32))
    for form in (matrix, matrix.tocoo(), zx.Interactions.from_scipy(matrix)):
        assert torch.equal(model.fold_in(form, negatives=None), want)
    for user, history in enumerate(HISTORIES):
        torch.testing.assert_close(model.fold_in([history], negatives=None)[0], want[user])
    assert torch.equal(model.fold_in(HISTORIES, seed=1), model.fold_in(HISTORIES, seed=1))
    assert not torch.equal(model.fold_in(HISTORIES, seed=1), model.fold_in(HISTORIES, seed=2))
    assert model.fold_in([]).shape == (0, 6)


def test_recommendations_for_rows():
    model = _items()
    rows = model.fold_in(HISTORIES)
    scores = rows @ model.item_embedding.detach().T + model.item_bias.detach()
    allowed = torch.tensor([[i not in h for i in range(50)] for h in HISTORIES])
    values, items = scores.masked_fill(~allowed, -torch.inf).topk(4, dim=1)
    got = model.recommend_for(rows, 4, exclude=HISTORIES)
    torch.testing.assert_close(got[1], values)
    assert torch.equal(got[0], items.masked_fill(values == -torch.inf, -1))
    few = model.recommend_for(rows[:1], 2, items=[5, 6, 7], filter_items=[6])[0]
    assert sorted(few[0].tolist()) == [5, 7]
    with pytest.raises(ValueError, match=r"rows: expected a tensor \[n, 6\]"):
        model.recommend_for(rows[:, :5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"l2": 0}, "l2: expected a number > 0"),
        ({"negatives": 0}, "negatives: expected an integer >= 1"),
        ({"loss": "hinge"}, "loss: expected one without kinks"),
        ({"loss": "pos2neg2", "negatives": None}, "negatives: expected a number with a loss of two positives"),
        ({"tolerance": 0}, "tolerance: expected a number > 0"),
    ],
)
def test_what_fold_in_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        _items().fold_in([[1]], **options)


def test_models_that_cannot_fold_in_and_histories_that_are_none():
    train = zx.Interactions.from_scipy(datasets.synthetic_triangle(12, 12, boundary=9))
    for name in ("neumf", "mlp", "ngcf"):
        with pytest.raises(ValueError, match="fold_in: expected a model whose scores are dot products"):
            zx.get_model(name, train, embedding_dim=4).fold_in([[1]])
    with pytest.raises(ValueError, match="id 50 is out of range"):
        _items().fold_in([[50]])
    for wrong in ("abc", 3, np.ones((2, 50))):
        with pytest.raises(TypeError, match="histories: expected"):
            _items().fold_in(wrong)
    with pytest.raises(ValueError, match="histories: expected 50 items"):
        _items().fold_in(sp.csr_matrix((2, 49)))


@pytest.mark.parametrize("name", ["gmf", "lightgcn"])
@pytest.mark.parametrize("options", [{}, {"normalization": "row", "combine": "concat"}])
def test_rows_of_other_models_are_those_that_scores_are_made_of(name, options):
    train = zx.Interactions.from_scipy(datasets.synthetic_triangle(12, 12, boundary=9))
    model = zx.get_model(name, train, embedding_dim=4, seed=0, **(options if name == "lightgcn" else {}))
    with torch.no_grad():
        (model.weight if name == "gmf" else model.user_embedding).uniform_(0.5, 1.5)
        if name == "lightgcn":
            model.user_embedding[3] = 0  # as a user who has no embedding of his own
    if name == "gmf":
        rows = model.fold_in([[3, 4]])
        with torch.no_grad():
            model.user_embedding[0] = rows[0]
        scores = model.score_all_items(torch.tensor([0]))
        items, values = model.recommend_for(rows, 12)
        torch.testing.assert_close(values[0], scores[0][items[0]])
    else:
        # Layer 1 of user 3 is what propagation gives; later layers differ, as his edges change no item.
        own = train.indices[train.indptr[3] : train.indptr[4]].tolist()
        with torch.no_grad():
            layers = [layer[0][3] for layer in model.propagate()]
            folded = model.fold_in([own])[0]
            want = layers[1] if options else layers[1] / 4
        first = folded[4:8] if options else None
        if options:
            torch.testing.assert_close(first, want)
        else:
            tables = [layer[1] for layer in model.propagate()]
            scale = model.interaction_graph.scale
            sums = [(t[own] * scale[12:][own, None] * scale[3]).sum(0) for t in tables[:-1]]
            torch.testing.assert_close(folded, sum(sums).detach() / 4)


# ---- models that grow


def _parts(seed=0):
    """Return interactions of 40 users and 30 items, and the same with 50 and 36."""
    data = datasets.synthetic_triangle(50, 36).tocoo()
    small = (data.row < 40) & (data.col < 30)
    before = zx.Interactions.from_arrays(data.row[small], data.col[small], shape=(40, 30))
    return before, zx.Interactions.from_arrays(data.row, data.col, shape=(50, 36))


@pytest.mark.parametrize("name", ["mf", "gmf", "neumf", "lightgcn", "ngcf"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD])
def test_a_model_grows_and_goes_on(name, optimizer):
    before, after = _parts()
    model = zx.get_model(name, before, embedding_dim=4, seed=0)
    history = model.fit(before, "bpr", lambda p: optimizer(p, lr=0.1), epochs=1, progress=False, batch_size=64)
    old = [model.user_embedding.detach().clone(), model.item_embedding.detach().clone()]
    held = model.user_embedding
    state = {k: v.clone() for k, v in history.optimizer.state[held].items() if k != "step"}
    model.grow((50, 36), interactions=after, optimizer=history.optimizer, seed=3)
    assert model.user_embedding is held
    assert (model.num_users, model.num_items) == (50, 36)
    assert torch.equal(model.user_embedding[:40], old[0])
    assert torch.equal(model.item_embedding[:30], old[1])
    assert 0 < model.user_embedding[40:].std() < 4 * model.init_std
    for key, value in state.items():
        grown = history.optimizer.state[held][key]
        assert torch.equal(grown[:40], value)
        assert grown[40:].abs().max() == 0
    further = model.fit(after, "bpr", history.optimizer, epochs=1, progress=False, batch_size=64)
    assert further.optimizer is history.optimizer
    assert model.epochs_trained == 2
    assert model.recommend(49, 5, exclude=after)[0].shape == (1, 5)


def test_fits_of_one_epoch_with_the_optimizer_of_before_are_one_longer_fit():
    train = _parts()[0]
    once = zx.MatrixFactorization(40, 30, 4, seed=0)
    whole = once.fit(train, "bpr", epochs=3, batch_size=64, progress=False)
    model = zx.MatrixFactorization(40, 30, 4, seed=0)
    history = model.fit(train, "bpr", epochs=1, batch_size=64, progress=False)
    losses = list(history)
    for _ in range(2):
        history = model.fit(train, "bpr", history.optimizer, epochs=1, batch_size=64, progress=False)
        losses += history
    assert losses == list(whole)
    assert torch.equal(model.user_embedding, once.user_embedding)


def test_growing_by_a_vocabulary():
    train = zx.Interactions.from_arrays(["a", "b"], ["x", "y"], ids=True)
    model = zx.MatrixFactorization.from_interactions(train, embedding_dim=2, item_bias=True, seed=0)
    grown = train.vocabulary.grow(["c"], ["z", "w"])
    model.grow(grown)
    assert model.vocabulary == grown
    assert model.item_bias.tolist() == [0, 0, 0, 0]
    for wrong, message in (
        (train.vocabulary, "expected at least 3 users and 4 items"),
        (zx.Interactions.from_arrays(list("dbac"), list("xyzw"), ids=True).vocabulary, "begins with these"),
        ((3,), r"expected a Vocabulary or \(num_users, num_items\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.grow(wrong)
    with pytest.raises(ValueError, match="grow its backbone"):
        zx.MACR(model).grow((4, 4))
    graph = zx.LightGCN(train, 2)
    with pytest.raises(ValueError, match="interactions: expected those that are the new graph"):
        graph.grow((3, 4))


def test_a_checkpoint_goes_on_with_grown_data(tmp_path):
    before, after = _parts()
    options = {"loss": "bpr", "batch_size": 64, "progress": False}
    model = zx.MatrixFactorization(40, 30, 4, seed=0)
    model.fit(before, epochs=2, checkpoint=tmp_path / "c.pt", **options)
    fresh = zx.MatrixFactorization(50, 36, 4, seed=1)
    with pytest.raises(ValueError, match="was written with shape"):
        fresh.fit(after, epochs=3, resume=tmp_path / "c.pt", **options)
    by_hand = zx.MatrixFactorization(40, 30, 4, seed=0)
    history = by_hand.fit(before, epochs=2, **options)
    by_hand.grow((50, 36), optimizer=history.optimizer)
    with torch.no_grad():  # the same new rows
        by_hand.user_embedding[40:] = fresh.user_embedding[40:]
        by_hand.item_embedding[30:] = fresh.item_embedding[30:]
    by_hand.fit(after, optimizer=history.optimizer, epochs=1, **options)
    resumed = fresh.fit(after, epochs=3, resume=tmp_path / "c.pt", resume_grown=True, **options)
    assert len(resumed) == 3
    assert fresh.epochs_trained == 3
    assert torch.equal(fresh.user_embedding, by_hand.user_embedding)
    small = zx.MatrixFactorization(39, 30, 4, seed=1)
    with pytest.raises(ValueError, match="does not grow into this model"):
        fit(small, _cut(before), epochs=3, resume=tmp_path / "c.pt", resume_grown=True, **options)
    with pytest.raises(ValueError, match="resume_grown: expected False without resume"):
        fresh.fit(after, resume_grown=True, **options)


def _cut(data):
    return zx.Interactions.from_scipy(data.to_scipy()[:39])


def _increments(data, parts, epochs, dim, **options):
    """Return NDCG@10 of a training with all data, and of one whose data grow."""
    split = data.split_random((0.8, 0.2), seed=0)
    train, test = split.train, split.test
    users, items = (t.numpy() for t in train.pairs())
    order = np.random.default_rng(0).permutation(len(users))

    def score(model):
        return zx.evaluate(model, train, test, metrics=("ndcg",), k=(10,))["ndcg@10"]

    whole = zx.MatrixFactorization(*data.shape, dim, seed=0)
    whole.fit(train, "bpr", epochs=epochs, progress=False, **options)
    model, history = None, None
    for part in range(1, parts + 1):
        rows = order[: len(order) * part // parts]
        # Only users and items below the share are there yet.
        shape = tuple(int(np.ceil(size * part / parts)) for size in data.shape)
        there = (users[rows] < shape[0]) & (items[rows] < shape[1])
        now = zx.Interactions.from_arrays(users[rows][there], items[rows][there], shape=shape)
        if model is None:
            model = zx.MatrixFactorization(*shape, dim, seed=0)
        else:
            model.grow(shape, optimizer=history.optimizer, seed=part)
        optimizer = None if history is None else history.optimizer
        history = model.fit(now, "bpr", optimizer, epochs=epochs // parts, progress=False, **options)
    # The last increment's share of epochs saw all data; a few more bring the newest rows as far.
    model.fit(train, "bpr", history.optimizer, epochs=epochs // 2, progress=False, **options)
    return score(whole), score(model)


def test_increments_come_as_far_as_one_training():
    data = zx.Interactions.from_scipy(datasets.synthetic_triangle(120, 90))
    whole, grown = _increments(data, 5, 20, 8, batch_size=256)
    assert grown > whole - 0.02


def _movielens():
    folder = os.environ.get("ZEROSUM_EXT_DATA")
    if not folder or not os.path.isfile(os.path.join(folder, "ml-100k.npz")):
        pytest.skip("ZEROSUM_EXT_DATA names no folder with ml-100k.npz")
    arrays = np.load(os.path.join(folder, "ml-100k.npz"), allow_pickle=False)
    return zx.Interactions.from_arrays(arrays["user"], arrays["item"], shape=(943, 1682))


@pytest.mark.slow
def test_ten_increments_of_movielens_come_within_a_hundredth_of_one_training():
    whole, grown = _increments(_movielens(), 10, 20, 64)
    assert grown > whole - 0.01


@pytest.mark.slow
def test_folded_users_of_movielens_are_served_as_those_that_were_trained_with():
    data, differences = _movielens(), []
    for seed in range(5):
        split = data.split_random((0.8, 0.2), seed=seed)
        train, test = split.train, split.test
        new = np.random.default_rng(seed).permutation(943)[:188]
        old = train.take(~np.isin(train.pairs()[0].numpy(), new))
        full, part = (zx.MatrixFactorization(943, 1682, 64, seed=seed) for _ in range(2))
        full.fit(train, "bpr", epochs=20, seed=seed, progress=False)
        part.fit(old, "bpr", epochs=20, seed=seed, progress=False)
        with torch.no_grad():
            part.user_embedding[new] = part.fold_in(train.to_scipy()[new])
        ndcg = [zx.evaluate(m, train, test, metrics=("ndcg",), k=(10,), users=new)["ndcg@10"] for m in (full, part)]
        differences.append(ndcg[1] - ndcg[0])
    print(differences)
    assert np.mean(differences) > -0.01
