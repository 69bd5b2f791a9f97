"""PyTorch Geometric's LightGCN: its propagation is ours, and it trains on our losses and samples."""

from __future__ import annotations

import pytest
import torch

import zerosum_ext as zx

pytest.importorskip("torch_geometric")
from torch_geometric.nn.models.lightgcn import LightGCN as Theirs

from zerosum_ext.integrations.pyg import LightGCN, edge_index, edge_labels, scores_of_samples

SPLIT = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle(40, 60)).split_random((0.8, 0.2, 0.0), seed=0)
TRAIN = SPLIT.train


def with_rows_of(ours: zx.LightGCN, **options) -> LightGCN:
    model = LightGCN(100, 8, ours.num_layers, **options)
    with torch.no_grad():
        model.embedding.weight.copy_(torch.cat([ours.user_embedding, ours.item_embedding]))
    return model


def test_the_embeddings_are_those_of_our_lightgcn():
    ours = zx.LightGCN(TRAIN, 8, num_layers=3, seed=0, init_std=0.3)
    theirs = with_rows_of(ours).get_embedding(edge_index(TRAIN))
    user, item, _ = ours.factors()
    torch.testing.assert_close(theirs[:40], user)
    torch.testing.assert_close(theirs[40:], item)


def test_bpr_is_their_own_loss():
    torch.manual_seed(0)
    mine = LightGCN(100, 8, 2, loss="bpr")
    theirs = Theirs(100, 8, 2)
    theirs.load_state_dict(mine.state_dict())
    pos, neg = torch.randn(50), torch.randn(50)
    nodes = torch.arange(30)
    value = mine.recommendation_loss(pos, neg, nodes, 0.1)
    torch.testing.assert_close(value, theirs.recommendation_loss(pos, neg, nodes, 0.1))


@pytest.mark.parametrize(
    ("loss", "options"), [("zerosum", {}), ("pos2neg2", {"positives": 2, "negatives": 2}), ("bsl", {"negatives": 3})]
)
def test_training_goes_as_that_of_our_lightgcn(loss, options):
    module = zx.BSLLoss(positive_temperature=1.0, negative_temperature=1.0) if loss == "bsl" else zx.get_loss(loss)
    ours = zx.LightGCN(TRAIN, 8, num_layers=2, seed=0, init_std=0.3)
    theirs = with_rows_of(ours, loss=module)
    edges, optimizer = edge_index(TRAIN), torch.optim.SGD(theirs.parameters(), lr=0.5)
    for users, positives, negatives in zx.TripletLoader(TRAIN, 256, **options):
        scores = theirs(edges, edge_labels(TRAIN, users, positives, negatives))
        optimizer.zero_grad()
        theirs.recommendation_loss(*scores_of_samples(scores, positives, negatives), lambda_reg=0.0).backward()
        optimizer.step()
    ours.fit(
        TRAIN, module, "sgd", lr=0.5, batch_size=256, epochs=1, negatives=options.get("negatives", 1), progress=False
    )
    rows = torch.cat([ours.user_embedding, ours.item_embedding])
    torch.testing.assert_close(theirs.embedding.weight, rows, rtol=1e-4, atol=1e-5)
