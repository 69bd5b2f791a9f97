"""Train with DistributedDataParallel: torchrun --nproc-per-node 2 examples/train_ddp.py model.safetensors

Each process takes its share of every batch from the loader. So all of them together train on the samples of one process
with larger batches.
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import zerosum_ext as zx


def main(path: str, batch_size: int = 128, epochs: int = 3) -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )

    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle()).to(device)
    model = zx.MatrixFactorization.from_interactions(train, embedding_dim=16, seed=0).to(device)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=0.01)
    loss = zx.ZerosumLoss(w=0.9)
    loader = zx.TripletLoader(train, batch_size, seed=0, rank=rank, world_size=size)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for users, positives, negatives in loader:
            scores = parallel(users, torch.stack([positives, negatives], 1))
            optimizer.zero_grad()
            loss(scores[:, 0], scores[:, 1]).backward()
            optimizer.step()
    if rank == 0:
        model.save(path)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
