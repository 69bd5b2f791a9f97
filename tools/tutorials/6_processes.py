# %% [markdown]
# # Several processes
#
# One model is trained by several processes: on the cores of a machine, on its GPUs, or on many machines. `torchrun` starts
# them and `torch.distributed` carries their messages. This notebook starts two processes on a CPU, which speak by gloo.
# On GPUs the same program speaks by NCCL.
#
# Processes run programs rather than cells of a notebook, so the notebook writes the program to a file.

# %%
import os
import re
import subprocess
import sys
import tempfile

folder = tempfile.mkdtemp()
os.chdir(folder)

program = """
import os
import sys

import torch

import zerosum_ext as zx
from zerosum_ext import distributed as zxd

epochs = int(sys.argv[1])
torch.set_num_threads(1)
group = zxd.start_group()  # the processes of torchrun, or this one alone

if group.rank == 0 and not os.path.exists("shards"):  # one process writes the data: parts of users
    users, items = torch.arange(2000), torch.arange(300)
    taste = torch.where(users[:, None] % 8 == items % 8, 10.0, 1.0)  # every user likes one of eight kinds of items
    chances = taste / (1 + items).pow(0.8)
    bought = torch.multinomial(chances, 15, generator=torch.Generator().manual_seed(0))
    pairs = zx.Interactions.from_arrays(users.repeat_interleave(15), bought.flatten(), shape=(2000, 300))
    zxd.write_shards(pairs, "shards", parts=4)
group.barrier()

data = zxd.read_shards("shards", group)
train, valid, test = data.split_random((0.8, 0.1, 0.1), seed=0)
model = zxd.ShardedMatrixFactorization.from_interactions(train, embedding_dim=16, seed=0, dtype=torch.float64)
options = {"optimizer": "adagrad", "lr": 0.2, "batch_size": 512, "seed": 0, "checkpoint": "checkpoint"}
model.fit(train, "zerosum", epochs=epochs, progress=False, **options)
found = zxd.evaluate(model, train, test)
print(f"process {group.rank} of {group.size}: {train.local.num_users} users", flush=True)
group.barrier()
if group.rank == 0:
    print({name: round(found[name], 6) for name in ("ndcg@10", "pop_q_at_1")}, flush=True)
torch.distributed.destroy_process_group()
"""
with open("train.py", "w") as file:
    file.write(program)


def run(processes: int, *arguments: str) -> None:
    """Start the program in so many processes, and print what they say."""
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*start, "train.py", *arguments], capture_output=True, text=True, env=environment, timeout=240
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    print(
        *sorted(re.findall(r"^(?:process|\{).*", done.stdout, re.M), key=lambda line: (line[0] == "{", line)), sep="\n"
    )


# %% [markdown]
# ## One process, then two
#
# On a command line this is `torchrun --nproc-per-node 2 train.py 15`. Each process owns the rows of its users and a share
# of the items. It draws its own samples, exactly; what travels is the rows of a batch's items, and their gradients.

# %%
run(1, "15")

# %%
import shutil

shutil.rmtree("checkpoint")
run(2, "15")

# %% [markdown]
# The samples are the same for any number of processes. So the model is the same too, up to the order of additions. In
# float64, as here, that is the same for every purpose. In float32 optimizers that divide by the size of the gradient
# (Adam, Adagrad) magnify the last bits: another number of processes is then another run of the same quality.
#
# ## Stop, and go on with another number of processes
#
# A checkpoint holds the parts of all processes. Below, two processes have trained fifteen epochs; one process trains the
# next five from their checkpoint.

# %%
run(1, "20")

# %% [markdown]
# ## One model file
#
# The parts become one file, which serves like any other: [serving](../serving.md).

# %%
import zerosum_ext as zx
from zerosum_ext import distributed as zxd

zxd.to_safetensors(zxd.latest_checkpoint("checkpoint"), "model.safetensors")
model = zx.MatrixFactorization.load("model.safetensors")
print(model)

# %% [markdown]
# ## What next?
#
# - Any model, with the gradients of all parameters averaged: `model.fit(data, mesh=mesh)`.
# - Which layout for which size, what a step sends, and what happens if a process dies: [scale](../scale.md).
