"""Train with Accelerate: accelerate launch --num_processes 2 examples/train_accelerate.py model.safetensors

The loader shares batches out to the processes by itself, so it stays out of ``prepare``.
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator

import zerosum_ext as zx


def main(path: str, batch_size: int = 128, epochs: int = 3) -> None:
    accelerator = Accelerator()
    train = zx.Interactions.from_scipy(zx.datasets.synthetic_triangle()).to(accelerator.device)
    model = zx.MatrixFactorization.from_interactions(train, embedding_dim=16, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    loss = zx.ZerosumLoss(w=0.9)
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    loader = zx.TripletLoader(train, batch_size, seed=0, **share)
    accelerator.register_for_checkpointing(loader)  # save_state and load_state then keep the place in the epoch
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for users, positives, negatives in loader:
            scores = model(users, torch.stack([positives, negatives], 1))
            optimizer.zero_grad()
            accelerator.backward(loss(scores[:, 0], scores[:, 1]))
            optimizer.step()
    if accelerator.is_main_process:
        accelerator.unwrap_model(model).save(path)
    accelerator.end_training()


if __name__ == "__main__":
    main(sys.argv[1])
