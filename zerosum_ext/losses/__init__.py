"""Losses on scores: functions and modules over one fused op each.

Every function takes the scores of positives and negatives from any model and returns a differentiable loss.

Shapes:

- pos [B] and neg [B]: one negative per positive.
- pos [B] and neg [B, K]: K negatives per positive; each (positive, negative) pair is one sample.
- pos, neg [B, 2]: two positives and two negatives of the same user (Pos2Neg2).

dtypes: float64, float32, float16, bfloat16; the arithmetic is in float32 or better. ``reduction="none"`` returns the
dtype of the scores, ``"sum"`` and ``"mean"`` return float32 (float64 for float64). Values and gradients are finite for
any finite scores up to 1e4; NaN in, NaN out. Gradients of any order are right.

Each loss is a function, and a module for ``loss=`` in training; both follow from its record
(:mod:`zerosum_ext.losses.records`). Sources in short: [RCS22] Rhee, Cho,
Suh, RecSys 2022; [BPR09] Rendle et al., UAI 2009; the others stand in full in :mod:`zerosum_ext.reference.losses`.
"""

from zerosum_ext.losses import functional, modules
from zerosum_ext.losses.base import Loss
from zerosum_ext.losses.custom import CustomLoss
from zerosum_ext.losses.direct import loss_and_grad
from zerosum_ext.losses.functional import *  # noqa: F403
from zerosum_ext.losses.mf import mf_loss
from zerosum_ext.losses.modules import *  # noqa: F403
from zerosum_ext.losses.records import RECORDS, LossRecord
from zerosum_ext.losses.registry import compiled_loss, get_loss, loss_names, loss_options
from zerosum_ext.reference import Kernel

__all__ = ["RECORDS", "CustomLoss", "Kernel", "Loss", "LossRecord"]
__all__ += ["compiled_loss", "functional", "get_loss", "loss_and_grad", "loss_names", "loss_options", "mf_loss"]
__all__ += functional.__all__
__all__ += modules.__all__
