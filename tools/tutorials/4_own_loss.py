# %% [markdown]
# # Your own loss
#
# A loss of a positive and a negative score is a value and two derivatives. `CustomLoss` makes a module of them, with
# weights, reductions, several negatives, float16 and bfloat16. This tutorial writes one, checks it, and trains with it.
#
# The example is a hinge that is smooth at the corner: $\frac12 \max(0, m - p + n)^2$ with a margin $m$.

# %%
import torch

import zerosum_ext as zx
from zerosum_ext.testing import check_loss

margin = 1.0


def value(p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.relu(margin - p + n) ** 2


def derivative(p: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.relu(margin - p + n)
    return -x, x


loss = zx.CustomLoss(value, derivative)
print(loss(torch.tensor([0.2, 3.0]), torch.tensor([0.1, 0.0])))

# %% [markdown]
# ## Check it
#
# `check_loss` compares value, gradient and double backward with a definition in float64. A wrong sign would show here.

# %%
print(check_loss(loss, lambda p, n: value(p, n).mean(), magnitudes=(1.0, 30.0)))
wrong = zx.CustomLoss(value, lambda p, n: derivative(n, p))
print(check_loss(wrong, lambda p, n: value(p, n).mean(), magnitudes=(1.0,)).passed)

# %% [markdown]
# ## Train with it
#
# It goes where a loss's name goes.

# %%
train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle())
for name, chosen in {"bpr": "bpr", "own": loss, "zerosum": zx.ZerosumLoss(w=0.8)}.items():
    model = zx.MatrixFactorization(*train.shape, 32, seed=0)
    model.fit(train, chosen, epochs=30, batch_size=1024, lr=1e-2, optimizer="adam", seed=0, progress=False)
    found = zx.evaluate(model, None, train, metrics=("pairwise_accuracy", "pop_q_at_1"), popularity=train, exclude=None)
    print(f"{name:8}", {key: round(x, 4) for key, x in found.items()})

# %% [markdown]
# [Adding a loss](../adding_a_loss.md) tells how the same becomes a fused kernel for CPU and GPU, in five places.
