# %% [markdown]
# # A two-tower model with in-batch negatives
#
# You have a model of your own in PyTorch. This tutorial trains one with Zerosum instead of BPR. The model has two towers
# that turn features of users and items into vectors. Negatives are the positives of the other rows of the batch, so that
# the item tower runs once for each row.

# %%
import torch
from torch import nn

import zerosum_ext as zx

torch.manual_seed(0)
users, items, features = 1500, 300, 12
taste = torch.randn(users, features)
traits = torch.randn(items, features)
fame = torch.arange(items).float().add(1).pow(-0.6)

chances = torch.softmax(taste @ traits.T, dim=1) * fame  # what users see is biased towards what is famous
bought = torch.multinomial(chances, 20, generator=torch.Generator().manual_seed(0))
data = zx.Interactions.from_arrays(torch.arange(users).repeat_interleave(20), bought.flatten(), shape=(users, items))
split = data.split_random((0.8, 0.0, 0.2), seed=0)
print(split.train)

# %% [markdown]
# ## The model
#
# `score_all_items(users)` is all that evaluation asks for.


# %%
class TwoTower(nn.Module):
    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.user_tower = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, dim))
        self.item_tower = nn.Sequential(nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, dim))
        self.bias = nn.Parameter(torch.zeros(items))

    def pair_scores(self, batch_users: torch.Tensor, batch_items: torch.Tensor) -> torch.Tensor:
        """Scores of every user of a batch with every item of it, [B, B]."""
        vectors = self.item_tower(traits[batch_items])
        return self.user_tower(taste[batch_users]) @ vectors.T + self.bias[batch_items]

    def score_all_items(self, chosen: torch.Tensor) -> torch.Tensor:
        return self.user_tower(taste[chosen]) @ self.item_tower(traits).T + self.bias


# %% [markdown]
# ## The loop
#
# Row r of the scores has its positive on the diagonal. The other columns are negatives, but not all of them:
# `in_batch_mask` is False where the user of the row has the item of the column too. A score of minus infinity leaves such
# a pair out.


# %%
def train(loss: nn.Module, epochs: int = 8) -> TwoTower:
    torch.manual_seed(1)
    model = TwoTower()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = zx.TripletLoader(split.train, batch_size=256, seed=0)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch_users, positives, _ in loader:
            scores = model.pair_scores(batch_users, positives)
            mask = zx.in_batch_mask(split.train, batch_users, positives)
            value = loss(scores.diagonal(), scores.masked_fill(~mask, -torch.inf))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return model


metrics = ("ndcg", "pop_q_at_1", "upo", "arp")
for name, loss in {"sampled softmax": zx.SampledSoftmaxLoss(), "BPR": zx.BPRLoss()}.items():
    found = zx.evaluate(train(loss), split.train, split.test, metrics=metrics, k=10)
    print(f"{name:16}", {key: round(value, 3) for key, value in found.items()})

# %% [markdown]
# ## Zerosum in the same loop
#
# Zerosum has a term of the sum of two scores, for which a masked pair has no value. So exact negatives from the loader
# take the place of the batch's own: sixteen for each positive.


# %%
def train_exact(loss: nn.Module, epochs: int = 8, negatives: int = 16) -> TwoTower:
    torch.manual_seed(1)
    model = TwoTower()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loader = zx.TripletLoader(split.train, batch_size=256, negatives=negatives, seed=0)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch_users, positives, others in loader:
            scores = model.score_all_items(batch_users)
            value = loss(scores.gather(1, positives[:, None]).squeeze(1), scores.gather(1, others))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    return model


for name, loss in {
    "BPR": zx.BPRLoss(),
    "Zerosum w=.9": zx.ZerosumLoss(w=0.9),
    "Zerosum w=.7": zx.ZerosumLoss(w=0.7),
}.items():
    found = zx.evaluate(train_exact(loss), split.train, split.test, metrics=metrics, k=10)
    print(f"{name:16}", {key: round(value, 3) for key, value in found.items()})

# %% [markdown]
# On these data Zerosum costs accuracy and removes no bias. What a loss does to matrix factorization it need not do to
# every model, so measure before you decide.
#
# Every loss of the library takes the same two tensors: [losses](../losses.md). [Training](../training.md) has `fit`, which
# trains the included models in compiled steps.
