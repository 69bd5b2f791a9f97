# %% [markdown]
# # A GPU
#
# Everything in the library works on the device of its tensors. This notebook takes a GPU if torch sees one, and the CPU
# otherwise. The outputs below are those of a CPU; the text says what differs on a GPU.
#
# A GPU needs a CUDA build of torch, and the library built with `FORCE_CUDA=1`: [CUDA](../cuda.md). Without the kernels
# the same calls run on the GPU as plain PyTorch.

# %%
import torch

import zerosum_ext as zx

device = "cuda" if torch.cuda.is_available() else "cpu"
cuda = zx.build_info()["cuda"]
print("device:", device)
print("CUDA kernels:", "loaded" if cuda["loaded"] else cuda["reason"])

# %% [markdown]
# ## A loss
#
# The scores' device is the loss's device. Nothing is copied to the host, and nothing waits for the GPU. The values agree
# with those of the CPU up to the rounding of float32: a sum has one order on each device, and the same input gives the
# same bits on the same device.

# %%
generator = torch.Generator().manual_seed(0)
positive, negative = torch.randn(2, 10_000, generator=generator)
loss = zx.ZerosumLoss(w=0.9)
exact = loss(positive.double(), negative.double())
here = loss(positive.to(device), negative.to(device))
print(here.device.type, "differs from float64 on the CPU by less than 1e-6:", abs(here.item() - exact.item()) < 1e-6)

# %% [markdown]
# ## Negatives
#
# A sample is a function of the seed, the epoch and its place. So a GPU draws the same negatives as a CPU, and a run can
# move from one to the other.

# %%
data = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle()).split_random((0.9, 0.0, 0.1), seed=0)
train = data.train.to(device)
users = torch.arange(5)
drawn = zx.sample_negatives(train, users.to(device), k=4, seed=7)
print(drawn.tolist())
print("the same on the CPU:", torch.equal(drawn.cpu(), zx.sample_negatives(data.train, users, k=4, seed=7)))

# %% [markdown]
# ## Training
#
# `fit` trains matrix factorization in compiled steps on both. On a CPU one call makes many steps. On a GPU the draws and
# the step of a full batch are captured as a CUDA graph once, and replayed, so that the host has nothing to do. Large
# batches suit a GPU: try 65 536 and more for data of millions.

# %%
model = zx.MatrixFactorization(*train.shape, 32, seed=0).to(device)
model.fit(train, "zerosum", epochs=30, batch_size=1024, lr=1e-2, seed=0, progress=False)
print({name: parameter.device.type for name, parameter in model.named_parameters()})

# %% [markdown]
# ## Evaluation
#
# `evaluate` works where the scores are. Ranks and metrics stay on the GPU, and the values come back in one transfer.

# %%
found = zx.evaluate(model, train, data.test.to(device), metrics=("pairwise_accuracy", "pop_q_at_1"), popularity=train)
print({name: round(value, 3) for name, value in found.items()})

# %% [markdown]
# ## A model of yours, in bfloat16
#
# The losses take float16 and bfloat16 scores, and compute in float32 inside. On a CPU bfloat16 saves memory rather than
# time; on a GPU it saves both. float16 on a GPU wants `torch.amp.GradScaler`, as always.

# %%
tower = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)).to(device)
items = torch.nn.Embedding(train.num_items, 32).to(device)
parameters = [*tower.parameters(), *items.parameters()]
optimizer = torch.optim.Adam(parameters, lr=1e-2)
features = torch.nn.functional.one_hot(torch.arange(train.num_users, device=device) % 32, 32).float()
for batch_users, positives, negatives in zx.TripletLoader(train, batch_size=2048, seed=0):
    with torch.autocast(device, dtype=torch.bfloat16):
        vectors = tower(features[batch_users])
        scores = [torch.bmm(vectors[:, None], items(i)[:, :, None]).flatten() for i in (positives, negatives)]
        value = loss(*scores)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
print(scores[0].dtype, value.dtype, "finite:", bool(value.isfinite()))

# %% [markdown]
# ## Time it rightly
#
# A call on a GPU returns before the work is done. `torch.utils.benchmark` waits for it; `time.perf_counter` does not.
# The first call also loads kernels, so it does not count.

# %%
from torch.utils.benchmark import Timer

scores = [tensor.to(device).requires_grad_() for tensor in (positive, negative)]
timer = Timer("loss(*scores).backward()", globals={"loss": loss, "scores": scores})
print("a loss of 10 000 pairs with its gradient takes less than 50 ms:", timer.timeit(20).median < 0.05)

# %% [markdown]
# ## What next?
#
# - What runs where, what waits, and CUDA graphs of your own: [CUDA](../cuda.md).
# - Several GPUs are several processes: [several processes](6_processes.ipynb).
