# %% [markdown]
# # The paper in ten minutes
#
# Rhee, Cho and Suh (RecSys 2022) build data in which popularity means nothing: 200 users and 200 items, and user u has the
# items 0 to 199 - u. All items that a user has are liked alike. A fair model would score them alike. BPR does not.

# %%
import matplotlib.pyplot as plt

import zerosum_ext as zx
from zerosum_ext.experiments.synthetic import SYNTHETIC_PUBLISHED, synthetic

data = zx.datasets.synthetic_triangle()
fig, ax = plt.subplots(figsize=(3, 3))
ax.spy(data, markersize=0.3)
ax.set(xlabel="item", ylabel="user", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Three losses
#
# Matrix factorization is trained with each, by the protocol of the paper's section 4.1, here with one seed.

# %%
found = {method: synthetic(method, seeds=(0,)) for method in SYNTHETIC_PUBLISHED}
print(f"{'':10}{'error %':>10}{'PRI':>8}{'PopQ@1':>8}   published: error %, PRI, PopQ@1")
for method, run in found.items():
    ours, theirs = run.values[0], SYNTHETIC_PUBLISHED[method]
    published = f"{100 * theirs['error']:.3g}, {theirs['pri']}, {theirs['pop_q_at_1']}"
    print(f"{method:10}{100 * ours['error']:10.3f}{ours['pri']:8.3f}{ours['pop_q_at_1']:8.3f}   {published}")

# %% [markdown]
# All three separate what users have from what they do not have: the error is the share of wrong pairs. PRI is 1 if the
# popular items always come first, and 0 is ideal. PopQ@1 is 0 if each user's first item is their most popular one, and .5
# is ideal.
#
# ## The scores

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3), constrained_layout=True)
for ax, (method, run) in zip(axes, found.items(), strict=True):
    ax.imshow(run.scores, cmap="viridis")
    ax.set(title=method, xticks=[], yticks=[], xlabel="item", ylabel="user")
plt.show()

# %% [markdown]
# With BPR each row grows brighter to the left, where the popular items are. With Zerosum and Pos2Neg2 the triangle has
# about one colour.
#
# ## Why
#
# BPR's gradient pushes the positive up and the negative down by the same amount. A popular item is a positive more often,
# so it is pushed up more often. The term of Zerosum, rho(p + n), stops this where the scores of a positive and a negative
# sum to zero.

# %%
import torch

p = torch.tensor([0.5, 1.0, 2.0], requires_grad=True)
n = -p.detach()
for name, loss in {"BPR": zx.BPRLoss(), "Zerosum w=.8": zx.ZerosumLoss(w=0.8)}.items():
    (gradient,) = torch.autograd.grad(loss(p, n + 0.5), p)
    print(f"{name:14} gradient in the positive: {[round(x, 4) for x in gradient.tolist()]}")

# %% [markdown]
# ## And on real data?
#
# `make reproduce` runs the paper's experiments on real data. In short: PopQ@1 improves as published, PRI hardly moves, and
# accuracy costs more than published. [Experiments](../experiments.md) has the commands.
