"""Softmax losses that look at popularity: what they mean, and that each can be trained with by its name."""

from __future__ import annotations

import math

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _ops
from zerosum_ext.losses.records import adjustment_of_items, sampler_log_q

COUNTS = torch.tensor([90.0, 30.0, 10.0, 3.0, 1.0, 0.0])


def scores(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_no_exponent_is_the_sampled_softmax():
    p, n = scores(7), scores(7, 5, seed=1)
    counts = COUNTS[torch.arange(7) % 5], COUNTS[torch.arange(35).reshape(7, 5) % 6]
    plain = zx.sampled_softmax_loss(p, n, temperature=0.3)
    torch.testing.assert_close(zx.popularity_softmax_loss(p, n, *counts, temperature=0.3, alpha=0.0), plain)


@pytest.mark.parametrize("alpha", [0.7, -0.4])
def test_the_exponent_adds_log_popularity_to_the_logits(alpha):
    p, n = scores(6).requires_grad_(), scores(6, 5, seed=1).requires_grad_()
    pos, neg = torch.arange(6) % 5, torch.arange(30).reshape(6, 5) % 5
    logs = COUNTS.log()
    z = torch.cat([(p / 0.5 + alpha * logs[pos]).unsqueeze(1), n / 0.5 + alpha * logs[neg]], 1)
    want = torch.nn.functional.cross_entropy(z, torch.zeros(6, dtype=torch.int64))
    got = zx.popularity_softmax_loss(p, n, COUNTS[pos], COUNTS[neg], temperature=0.5, alpha=alpha)
    torch.testing.assert_close(got, want)
    for x, y in zip(torch.autograd.grad(got, (p, n)), torch.autograd.grad(want, (p, n)), strict=True):
        torch.testing.assert_close(x, y)
    module = zx.PopularitySoftmaxLoss(COUNTS, temperature=0.5, alpha=alpha)
    torch.testing.assert_close(module(p, n, pos_items=pos, neg_items=neg), want)


def test_an_item_that_nobody_has_counts_as_the_rarest():
    assert adjustment_of_items(COUNTS, 0.5)[5] == adjustment_of_items(COUNTS, 0.5)[4]
    assert adjustment_of_items(COUNTS, 0.5).isfinite().all()
    assert adjustment_of_items(torch.zeros(3), 2.0).tolist() == [0, 0, 0]
    assert sampler_log_q(torch.zeros(4), 1.0).exp().tolist() == pytest.approx([0.25] * 4)
    assert float(sampler_log_q(COUNTS, 1.0).exp().sum()) == pytest.approx(1)
    torch.testing.assert_close(sampler_log_q(COUNTS).exp(), torch.full((6,), 1 / 6, dtype=torch.float64))


def test_the_refined_correction_has_the_gradient_of_the_paper():
    """[KBM25]: the gradient of sg(1 - P) (LSE_j(n_j - log q'_j) - p), with q' = q / (1 - q_p) and P as in the note."""
    p, n = scores(8).requires_grad_(), scores(8, 6, seed=1).requires_grad_()
    log_q = sampler_log_q(COUNTS, 1.0)
    x_p, x_n = log_q[torch.arange(8) % 6], log_q[torch.arange(48).reshape(8, 6) % 6]
    t = 0.7
    z = n / t - (x_n - torch.log1p(-x_p.exp()).unsqueeze(1))
    estimate = torch.cat([(p / t).unsqueeze(1), z - math.log(6)], 1).softmax(1)[:, 0]
    paper = ((1 - estimate).detach() * (torch.logsumexp(z, 1) - p / t)).mean()
    got = zx.refined_softmax_loss(p, n, x_p, x_n, temperature=t)
    torch.testing.assert_close(got, -estimate.log().mean())
    for x, y in zip(torch.autograd.grad(got, (p, n)), torch.autograd.grad(paper, (p, n)), strict=True):
        torch.testing.assert_close(x, y)


def test_the_refined_correction_estimates_the_full_softmax():
    """With many draws the mean gradient tends to that of the softmax over all items; without correction it does not."""
    generator = torch.Generator().manual_seed(0)
    all_scores = scores(5, seed=3)
    counts = torch.tensor([50.0, 20.0, 10.0, 5.0, 1.0])
    log_q = sampler_log_q(counts, 1.0)
    draws, k = 5000, 200
    others = torch.tensor([1, 2, 3, 4])  # the positive is item 0, which is not drawn
    drawn = others[torch.multinomial(counts[others], draws * k, replacement=True, generator=generator)].reshape(
        draws, k
    )
    table = all_scores.clone().requires_grad_()
    loss = zx.refined_softmax_loss(table[0].expand(draws), table[drawn], log_q[0].expand(draws), log_q[drawn])
    (got,) = torch.autograd.grad(loss, table)
    want = all_scores.softmax(0) - torch.tensor([1.0, 0, 0, 0, 0])
    torch.testing.assert_close(got, want, atol=0.01, rtol=0)
    plain = zx.sampled_softmax_loss(table[0].expand(draws), table[drawn])
    assert (torch.autograd.grad(plain, table)[0] - want).abs().max() > 0.05


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: zx.PopularitySoftmaxLoss(COUNTS, alpha=float("nan")), "alpha: expected a finite number"),
        (lambda: zx.PopularitySoftmaxLoss(COUNTS, temperature=0), "temperature: expected a number > 0, got 0"),
        (lambda: zx.RefinedSoftmaxLoss(COUNTS, exponent=float("inf")), "exponent: expected a finite number"),
    ],
)
def test_bad_options(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize("name", ["popularity_softmax", "refined_softmax", "ipw", "pd"])
def test_fit_gives_a_loss_by_name_the_popularities_of_the_training_part(name):
    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 40))
    negatives = 4 if name.endswith("softmax") else 1

    def trained(loss):
        model = zx.MatrixFactorization(40, 40, 8, seed=0)
        model.fit(train, loss, epochs=1, batch_size=128, negatives=negatives, progress=False)
        return model.item_embedding

    assert torch.equal(trained(name), trained(zx.get_loss(name, popularity=train.popularity)))


def test_the_exponent_turns_scores_to_the_tail_or_to_the_head():
    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(60, 60))

    def correlation(alpha):
        model = zx.MatrixFactorization(60, 60, 16, seed=0)
        loss = zx.PopularitySoftmaxLoss(train.popularity, temperature=0.5, alpha=alpha)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        model.fit(train, loss, optimizer, epochs=15, batch_size=256, negatives=8, progress=False)
        return zx.evaluate(model, None, train, metrics=("pcc",), exclude=None)["pcc"]

    tail, plain, head = correlation(1.0), correlation(0.0), correlation(-1.0)
    assert tail < plain - 0.1 < plain < head


# ---- cosine scores


def test_cosine_scores_are_cosines_everywhere():
    model = zx.MatrixFactorization(7, 9, 4, seed=0, normalize=True, item_bias=True, init_std=1.0)
    with torch.no_grad():
        model.item_bias.copy_(torch.arange(9.0))
    users, items = torch.arange(7), torch.arange(7)
    want = torch.cosine_similarity(model.user_embedding[:, None], model.item_embedding[None], dim=-1) + model.item_bias
    torch.testing.assert_close(model(users, items), want[users, items])
    torch.testing.assert_close(model.score_all_items(users), want.detach())
    torch.testing.assert_close(model.score(*model.represent(users, items)), want[users, items])
    best, values = model.recommend(users, 3)
    torch.testing.assert_close(values, want.detach().topk(3).values)
    assert torch.equal(best, want.topk(3).indices)
    torch.testing.assert_close(
        zx.mf_loss(*model.vectors()[:2], users, items, items, loss="bpr"), torch.tensor(math.log(2))
    )


def test_cosine_scores_are_trained_and_kept_in_files(tmp_path):
    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 40))
    model = zx.MatrixFactorization(40, 40, 8, seed=0, normalize=True)
    history = model.fit(train, "ccl", epochs=3, batch_size=128, negatives=8, progress=False)
    assert history.engine == ("fused" if _ops.has_op("mf_train", torch.device("cpu")) else "autograd")
    assert history[-1] < history[0]
    model.save(tmp_path / "m.safetensors")
    again = zx.MatrixFactorization.load(tmp_path / "m.safetensors")
    assert again.normalize
    assert torch.equal(again.score_all_items(torch.arange(40)), model.score_all_items(torch.arange(40)))
    assert "normalize=True" in repr(again)
