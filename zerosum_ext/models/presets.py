"""Hyper-parameters of published experiments, as data.

``MODELS[preset][model]`` holds options of the model's class. ``TRAINING[preset][data]`` holds keyword arguments of
:func:`zerosum_ext.training.fit`, and ``lr``, which is Adam's.

"paper" is [RCS22] section 5 and its released code, for the synthetic data ("synthetic") and for all other data
("real"). Neither states the hidden layers of NeuMF; they are this library's choice. The released code's LightGCN does
not propagate; the one here does. The released code trains its graph models in batches of 256 unless told otherwise,
which reproduces the published figures.
"lightgcn" is [HDW20] section 4.1.2.

References:
    [RCS22] Rhee, Cho, Suh, "Countering Popularity Bias by Regularizing Score Differences", RecSys 2022.
    [HDW20] He et al., "LightGCN", SIGIR 2020.
"""

from __future__ import annotations

from typing import Any

from zerosum_ext._checks import require_choice

__all__ = ["MODELS", "TRAINING", "model_options", "training_options"]

MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "mf": {"embedding_dim": 64, "init_std": 0.01},
        "gmf": {"embedding_dim": 64, "init_std": 0.01},
        "mlp": {"embedding_dim": 64, "init_std": 0.01},
        "neumf": {"embedding_dim": 64, "init_std": 0.01},
        "ngcf": {
            "embedding_dim": 10,
            "layers": (10, 10, 10),
            "normalization": "row",
            "node_dropout": 0.1,
            "message_dropout": 0.1,
            "self_loops": True,
            "bias": True,
            "init_std": 0.02,
        },
        "lightgcn": {
            "embedding_dim": 10,
            "num_layers": 3,
            "normalization": "row",
            "combine": "concat",
            "node_dropout": 0.1,
            "init_std": 0.01,
        },
    },
    "lightgcn": {
        "lightgcn": {"embedding_dim": 64, "num_layers": 3, "init_std": 0.1},
        "mf": {"embedding_dim": 64, "init_std": 0.1},
    },
}

TRAINING: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {
        "synthetic": {"epochs": 10, "batch_size": 256, "draws": 3, "lr": 1e-3},
        "real": {"epochs": 20, "batch_size": 2048, "draws": 3, "lr": 1e-3},
    },
    "lightgcn": {"real": {"epochs": 1000, "batch_size": 2048, "draws": 1, "lr": 1e-3, "l2": 1e-4}},
}


def model_options(preset: str, model: str) -> dict[str, Any]:
    """Return the options of a model in a preset.

    Raises:
        ValueError: the preset is unknown, or has no such model.
    """
    require_choice("preset", preset, list(MODELS))
    return dict(MODELS[preset][require_choice(f"model of preset {preset!r}", model, list(MODELS[preset]))])


def training_options(preset: str, data: str = "real") -> dict[str, Any]:
    """Return the options of training in a preset, for "synthetic" or "real" data.

    Raises:
        ValueError: the preset or the kind of data is unknown.
    """
    require_choice("preset", preset, list(TRAINING))
    return dict(TRAINING[preset][require_choice("data", data, list(TRAINING[preset]))])
