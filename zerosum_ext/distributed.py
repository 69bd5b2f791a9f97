"""Training beyond one machine: tables, data and evaluation in parts, by torch.distributed.

    torchrun --nproc-per-node 4 train.py

    from torch.distributed.device_mesh import init_device_mesh
    from zerosum_ext import distributed as zxd

    mesh = init_device_mesh("cpu", (4,))
    data = zxd.ShardedInteractions.from_interactions(everything, mesh)
    train, valid, test = data.split_random((0.8, 0.1, 0.1))
    model = zxd.ShardedMatrixFactorization.from_interactions(train, embedding_dim=64)
    model.fit(train, "zerosum", validation=valid, checkpoint="run/checkpoint")
    print(zxd.evaluate(model, train, test))

docs/scale.md tells the rest.
"""

from zerosum_ext._group import Group, LostProcess, as_group, start_group
from zerosum_ext.data.shard_files import read_shards, write_shards
from zerosum_ext.data.shards import ShardedInteractions
from zerosum_ext.evaluation.sharded import evaluate_shards as evaluate
from zerosum_ext.models.sharded import ShardedMatrixFactorization
from zerosum_ext.training.parts import latest as latest_checkpoint
from zerosum_ext.training.parts import to_safetensors

__all__ = [
    "Group",
    "LostProcess",
    "ShardedInteractions",
    "ShardedMatrixFactorization",
    "as_group",
    "evaluate",
    "latest_checkpoint",
    "read_shards",
    "start_group",
    "to_safetensors",
    "write_shards",
]
