"""Train BPR + Zerosum on tables that TorchRec shards over processes.

    pip install torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0       # the pair that fits torch 2.13
    torchrun --nproc-per-node 2 examples/torchrec_parallel.py

TorchRec's planner decides where rows of the tables live; here it is asked to cut the tables of users and of items by
rows. The samples are this library's: exact negatives, and the same ones for any number of processes.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.distributed as dist
from torchrec.distributed import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
from torchrec.distributed.types import ShardingType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

import zerosum_ext as zx
from zerosum_ext import distributed as zxd
from zerosum_ext.integrations.torchrec import FactorizationTask, batches


def made() -> zx.Interactions:
    """Return users of five tastes: each likes 20 of the 40 items of its own."""
    rng = np.random.default_rng(0)
    items = np.stack([rng.choice(40, 20, replace=False) + 40 * (user % 5) for user in range(1000)])
    return zx.Interactions.from_arrays(np.repeat(np.arange(1000), 20), items.reshape(-1), shape=(1000, 200))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a file of interactions (default: made data)")
    parser.add_argument("--loss", default="zerosum")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=512, help="of all processes together")
    parser.add_argument("--lr", type=float, default=0.05, help="of Adagrad")
    given = parser.parse_args()

    group = zxd.start_group()
    train = zx.Interactions.from_file(given.data) if given.data else made()

    task = FactorizationTask(*train.shape, 32, loss=given.loss, device="meta")
    # TorchRec updates rows within the backward pass, and wants to know how before it cuts the tables.
    apply_optimizer_in_backward(torch.optim.Adagrad, task.parameters(), {"lr": given.lr})
    cut = {name: ParameterConstraints(sharding_types=[ShardingType.ROW_WISE.value]) for name in ("user", "item")}
    place = torch.device(group.device)
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=group.size, compute_device=place.type), constraints=cut
    )
    plan = planner.collective_plan(task, pg=dist.group.WORLD)
    model = DistributedModelParallel(task, device=place, plan=plan)
    loader = zx.TripletLoader(train, given.batch_size, rank=group.rank, world_size=group.size, seed=0)
    for epoch in range(given.epochs):
        total, count = torch.zeros(1), 0
        for batch in batches(loader):
            loss, _ = model(batch)
            loss.backward()
            total += loss.detach()
            count += 1
        mean = group.sum_(total / count) / group.size
        if group.rank == 0:
            print(f"epoch {epoch + 1}: loss {float(mean):.4f}", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
