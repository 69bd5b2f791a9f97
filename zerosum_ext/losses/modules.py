"""The losses as modules, for ``loss=`` in training."""

# Generated from zerosum_ext/losses/records.py by tools/generate_losses.py: change those, and run it.

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from zerosum_ext._types import Reduction
from zerosum_ext.losses import records
from zerosum_ext.losses.base import RecordLoss
from zerosum_ext.losses.records import RECORDS
from zerosum_ext.losses.shapes import pair_loss, quad_loss, row_loss, shared_score
from zerosum_ext.reference import Kernel

__all__ = [
    "BPRLoss",
    "BSLLoss",
    "CCLLoss",
    "HardestLoss",
    "HingeLoss",
    "IPWLoss",
    "Neg2Loss",
    "PDLoss",
    "PSLLoss",
    "PopularitySoftmaxLoss",
    "Pos2Loss",
    "Pos2Neg2Loss",
    "RefinedSoftmaxLoss",
    "SampledSoftmaxLoss",
    "ZerosumLoss",
]


class BPRLoss(RecordLoss):
    """Bayesian personalized ranking.

    ``sp(n - p)``, [BPR09]. The function is :func:`bpr_loss`.

    Args:
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.BPRLoss()
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> loss(pos, neg)
        tensor(0.2613)
    """

    record = RECORDS["bpr"]

    def __init__(
        self,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.bpr()

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return pair_loss(pos, neg, sample_weight, records.bpr(), self.reduction)


class ZerosumLoss(RecordLoss):
    """BPR plus a term that makes positive and negative scores sum to zero.

    ``a sp(n - p) + b rho(p + n)``, [RCS22] eq. 7. The function is :func:`zerosum_loss`.

    Args:
        bpr_weight: a, >= 0.
        reg_weight: b, >= 0.
        w: the convention of the authors' code instead: a = w/2, b = (1-w)/2, with w in [0, 1].
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.ZerosumLoss(w=0.9)
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> loss(pos, neg)
        tensor(0.2123)
    """

    record = RECORDS["zerosum"]

    def __init__(
        self,
        bpr_weight: float = 1.0,
        reg_weight: float = 1.0,
        w: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.bpr_weight = bpr_weight
        self.reg_weight = reg_weight
        self.w = w
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.zerosum(self.bpr_weight, self.reg_weight, self.w)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return pair_loss(
            pos, neg, sample_weight, records.zerosum(self.bpr_weight, self.reg_weight, self.w), self.reduction
        )


class Pos2Neg2Loss(RecordLoss):
    """BPR on two pairs plus a term that makes positives, and negatives, score alike.

    ``a (sp(n1 - p1) + sp(n2 - p2)) + b (rho(p1 - p2) + rho(n1 - n2))``, [RCS22] eq. 6. The function is
    :func:`pos2neg2_loss`.

    Args:
        bpr_weight: a, >= 0.
        reg_weight: b, >= 0.
        w: the convention of the authors' code instead: a = w/4, b = (1-w)/4, with w in [0, 1].
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.Pos2Neg2Loss(w=0.9)
        >>> pos, neg = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
        >>> loss(pos, neg)
        tensor(0.2123)
    """

    record = RECORDS["pos2neg2"]
    num_positives: ClassVar[int] = 2

    def __init__(
        self,
        bpr_weight: float = 1.0,
        reg_weight: float = 1.0,
        w: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.bpr_weight = bpr_weight
        self.reg_weight = reg_weight
        self.w = w
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.pos2neg2(self.bpr_weight, self.reg_weight, self.w)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return quad_loss(
            pos, neg, sample_weight, records.pos2neg2(self.bpr_weight, self.reg_weight, self.w), self.reduction
        )


class Pos2Loss(RecordLoss):
    """The ablation of Pos2Neg2 that only makes positives score alike.

    ``a (sp(n1 - p1) + sp(n2 - p2)) + b rho(p1 - p2)``, [RCS22] section 5. The function is :func:`pos2_loss`.

    Args:
        bpr_weight: a, >= 0.
        reg_weight: b, >= 0.
        w: the convention of the authors' code instead: a = w/4, b = (1-w)/2, with w in [0, 1].
        shared: the form of the authors' code, with one negative in both BPR terms; neg is then [B], or [B, 2] of which
            the first column counts.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.Pos2Loss(w=0.9)
        >>> pos, neg = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
        >>> loss(pos, neg)
        tensor(0.1893)
    """

    record = RECORDS["pos2"]
    num_positives: ClassVar[int] = 2

    def __init__(
        self,
        bpr_weight: float = 1.0,
        reg_weight: float = 1.0,
        w: float | None = None,
        shared: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.bpr_weight = bpr_weight
        self.reg_weight = reg_weight
        self.w = w
        self.shared = shared
        self.kernel()  # checks the options

    def kernel(self) -> Kernel | None:
        """Return the compiled loss that forward amounts to, or None for the shared form."""
        return None if self.shared else records.pos2(self.bpr_weight, self.reg_weight, self.w)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        if self.shared:
            neg = shared_score("neg", neg)
        return quad_loss(
            pos, neg, sample_weight, records.pos2(self.bpr_weight, self.reg_weight, self.w), self.reduction
        )


class Neg2Loss(RecordLoss):
    """The ablation of Pos2Neg2 that only makes negatives score alike.

    ``a (sp(n1 - p1) + sp(n2 - p2)) + b rho(n1 - n2)``, [RCS22] section 5. The function is :func:`neg2_loss`.

    Args:
        bpr_weight: a, >= 0.
        reg_weight: b, >= 0.
        w: the convention of the authors' code instead: a = w/4, b = (1-w)/2, with w in [0, 1].
        shared: the form of the authors' code, with one positive in both BPR terms; pos is then [B], or [B, 2] of which
            the first column counts.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.Neg2Loss(w=0.9)
        >>> pos, neg = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, -1.0]])
        >>> loss(pos, neg)
        tensor(0.2354)
    """

    record = RECORDS["neg2"]
    num_positives: ClassVar[int] = 2

    def __init__(
        self,
        bpr_weight: float = 1.0,
        reg_weight: float = 1.0,
        w: float | None = None,
        shared: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.bpr_weight = bpr_weight
        self.reg_weight = reg_weight
        self.w = w
        self.shared = shared
        self.kernel()  # checks the options

    def kernel(self) -> Kernel | None:
        """Return the compiled loss that forward amounts to, or None for the shared form."""
        return None if self.shared else records.neg2(self.bpr_weight, self.reg_weight, self.w)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        if self.shared:
            pos = shared_score("pos", pos)
        return quad_loss(
            pos, neg, sample_weight, records.neg2(self.bpr_weight, self.reg_weight, self.w), self.reduction
        )


class IPWLoss(RecordLoss):
    """Inverse propensity weighting: cross-entropy of every positive and negative, weighted by 1/popularity.

    ``x_p sp(-p) + x_n sp(n), x = 1/popularity scaled to mean 1``, [RCS22] section 5. The function is :func:`ipw_loss`.

    Args:
        popularity: interaction counts of the items, [num_items].
        clip: the largest weight allowed, after scaling, or None.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> popularity = torch.tensor([50.0, 20.0, 10.0, 5.0])  # of four items
        >>> loss = zx.IPWLoss(popularity)
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> loss(pos, neg, pos_items=torch.tensor([0, 2]), neg_items=torch.tensor([1, 3]))
        tensor(0.7044)
    """

    record = RECORDS["ipw"]

    def __init__(
        self,
        popularity: Tensor,
        clip: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        constants = records.ipw_weights(popularity, clip)
        super().__init__(reduction, constants)
        self.clip = clip

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.ipw()

    def forward(
        self,
        pos: Tensor,
        neg: Tensor,
        sample_weight: Tensor | None = None,
        pos_items: Tensor | None = None,
        neg_items: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return pair_loss(pos, neg, sample_weight, records.ipw(), self.reduction, self.look_up(pos_items, neg_items))


class PDLoss(RecordLoss):
    """Popularity deconfounding (PD, PDA): BPR of scores that are multiplied by popularity^gamma.

    ``sp(f(n) x_n - f(p) x_p), f = ELU + 1, x = popularity^gamma``, [ZFH21] eq. 6, 7. The function is :func:`pd_loss`.

    Args:
        popularity: interaction counts of the items, [num_items].
        gamma: the exponent, >= 0.
        normalize: divide popularity by its maximum first. False with gamma = .25 is what [RCS22] ran on their synthetic
            data.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> popularity = torch.tensor([50.0, 20.0, 10.0, 5.0])  # of four items
        >>> loss = zx.PDLoss(popularity)
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> loss(pos, neg, pos_items=torch.tensor([0, 2]), neg_items=torch.tensor([1, 3]))
        tensor(0.2610)
    """

    record = RECORDS["pd"]

    def __init__(
        self,
        popularity: Tensor,
        gamma: float = 0.25,
        normalize: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        constants = records.pd_of_items(popularity, gamma, normalize)
        super().__init__(reduction, constants)
        self.gamma = gamma
        self.normalize = normalize

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.pd()

    def forward(
        self,
        pos: Tensor,
        neg: Tensor,
        sample_weight: Tensor | None = None,
        pos_items: Tensor | None = None,
        neg_items: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return pair_loss(pos, neg, sample_weight, records.pd(), self.reduction, self.look_up(pos_items, neg_items))


class HingeLoss(RecordLoss):
    """The hinge of a margin between the positive and the negative.

    ``max(0, margin - p + n)``, [WBU11]. The function is :func:`hinge_loss`.

    Args:
        margin: by which the positive should score higher.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.HingeLoss()
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([0.5, -1.0])
        >>> loss(pos, neg)
        tensor(0.2500)
    """

    record = RECORDS["hinge"]

    def __init__(
        self,
        margin: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.margin = margin
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.hinge(self.margin)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return pair_loss(pos, neg, sample_weight, records.hinge(self.margin), self.reduction)


class SampledSoftmaxLoss(RecordLoss):
    """Softmax cross-entropy over the positive and its K negatives, with logQ correction.

    ``LSE(z_p, z_1 ... z_K) - z_p, z = y / temperature - log q``, [BS08]. The function is :func:`sampled_softmax_loss`.

    Args:
        temperature: > 0.
        log_q: log-probability with which the sampler draws each item, [num_items]; None: all alike.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.SampledSoftmaxLoss()
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> loss(pos, neg)
        tensor(0.5077)
    """

    record = RECORDS["sampled_softmax"]

    def __init__(
        self,
        temperature: float = 1.0,
        log_q: Tensor | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        constants = records.log_q_of_items(log_q)
        super().__init__(reduction, constants)
        self.temperature = temperature
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.sampled_softmax(self.temperature)

    def forward(
        self,
        pos: Tensor,
        neg: Tensor,
        sample_weight: Tensor | None = None,
        pos_items: Tensor | None = None,
        neg_items: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return row_loss(
            pos,
            neg,
            sample_weight,
            records.sampled_softmax(self.temperature),
            self.reduction,
            self.look_up(pos_items, neg_items),
        )


class PopularitySoftmaxLoss(RecordLoss):
    """Sampled softmax of scores that are adjusted by popularity^alpha in training alone.

    ``LSE(z_p, z_1 ... z_K) - z_p, z = y / temperature + alpha log popularity``, [MJR21]. The function is
    :func:`popularity_softmax_loss`.

    Args:
        popularity: interaction counts of the items, [num_items].
        temperature: > 0.
        alpha: the exponent, of either sign. Above 0 the popularity explains a part of the data, and the scores, which
            rank without it, favour the long tail. Below 0 they favour popular items. 0 is the sampled softmax.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> popularity = torch.tensor([50.0, 20.0, 10.0, 5.0])  # of four items
        >>> loss = zx.PopularitySoftmaxLoss(popularity)
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> loss(pos, neg, pos_items=torch.tensor([0, 2]), neg_items=torch.tensor([[1, 3], [3, 0]]))
        tensor(0.5486)
    """

    record = RECORDS["popularity_softmax"]

    def __init__(
        self,
        popularity: Tensor,
        temperature: float = 1.0,
        alpha: float = 0.5,
        reduction: Reduction = "mean",
    ) -> None:
        constants = records.adjustment_of_items(popularity, alpha)
        super().__init__(reduction, constants)
        self.temperature = temperature
        self.alpha = alpha
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.popularity_softmax(self.temperature)

    def forward(
        self,
        pos: Tensor,
        neg: Tensor,
        sample_weight: Tensor | None = None,
        pos_items: Tensor | None = None,
        neg_items: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return row_loss(
            pos,
            neg,
            sample_weight,
            records.popularity_softmax(self.temperature),
            self.reduction,
            self.look_up(pos_items, neg_items),
        )


class RefinedSoftmaxLoss(RecordLoss):
    """Sampled softmax with the refined logQ correction, where the positive is not a sampled term.

    ``sp(LSE_j(z_j) - log K + log(1 - q_p) - p / temperature), z_j = n_j / temperature - log q_j``, [KBM25]. The
    function is :func:`refined_softmax_loss`.

    Args:
        popularity: interaction counts of the items, [num_items].
        temperature: > 0.
        exponent: negatives are drawn in proportion to popularity^exponent: 0 for the strategy "uniform" of training, 1
            for "popularity".
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> popularity = torch.tensor([50.0, 20.0, 10.0, 5.0])  # of four items
        >>> loss = zx.RefinedSoftmaxLoss(popularity)
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> loss(pos, neg, pos_items=torch.tensor([0, 2]), neg_items=torch.tensor([[1, 3], [3, 0]]))
        tensor(0.6888)
    """

    record = RECORDS["refined_softmax"]

    def __init__(
        self,
        popularity: Tensor,
        temperature: float = 1.0,
        exponent: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        constants = records.sampler_log_q(popularity, exponent)
        super().__init__(reduction, constants)
        self.temperature = temperature
        self.exponent = exponent
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.refined_softmax(self.temperature)

    def forward(
        self,
        pos: Tensor,
        neg: Tensor,
        sample_weight: Tensor | None = None,
        pos_items: Tensor | None = None,
        neg_items: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return row_loss(
            pos,
            neg,
            sample_weight,
            records.refined_softmax(self.temperature),
            self.reduction,
            self.look_up(pos_items, neg_items),
        )


class BSLLoss(RecordLoss):
    """Bilateral softmax loss.

    ``-p / t1 + (t2 / t1) (LSE_j(n_j / t2) - log K), t1 and t2 the positive and the negative temperature``, [WCW24]. The
    function is :func:`bsl_loss`.

    Args:
        positive_temperature: t1, > 0.
        negative_temperature: t2, > 0.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.BSLLoss()
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> loss(pos, neg)
        tensor(-1.1108)
    """

    record = RECORDS["bsl"]

    def __init__(
        self,
        positive_temperature: float = 1.0,
        negative_temperature: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.positive_temperature = positive_temperature
        self.negative_temperature = negative_temperature
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.bsl(self.positive_temperature, self.negative_temperature)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return row_loss(
            pos, neg, sample_weight, records.bsl(self.positive_temperature, self.negative_temperature), self.reduction
        )


class PSLLoss(RecordLoss):
    """Pairwise softmax loss.

    ``LSE_j(log(1 + activation(n_j - p)) / temperature)``, [YCX24]. The function is :func:`psl_loss`.

    Args:
        temperature: > 0.
        activation: "tanh" or "relu". (The third of the paper, atan, has no logarithm for margins beyond 1.56.)
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.PSLLoss()
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> loss(pos, neg)
        tensor(-0.7722)
    """

    record = RECORDS["psl"]

    def __init__(
        self,
        temperature: float = 1.0,
        activation: Literal["tanh", "relu"] = "tanh",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.temperature = temperature
        self.activation = activation
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.psl(self.temperature, self.activation)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return row_loss(pos, neg, sample_weight, records.psl(self.temperature, self.activation), self.reduction)


class HardestLoss(RecordLoss):
    """BPR against the hardest of K negatives, as in dynamic negative sampling.

    ``sp(max_j n_j - p)``, [ZCW13]. The function is :func:`hardest_loss`.

    Args:
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.HardestLoss()
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> loss(pos, neg)
        tensor(0.4226)
    """

    record = RECORDS["hardest"]

    def __init__(
        self,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.hardest()

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return row_loss(pos, neg, sample_weight, records.hardest(), self.reduction)


class CCLLoss(RecordLoss):
    """Cosine contrastive loss of SimpleX.

    ``1 - p + weight / K sum_j max(0, n_j - margin)``, [MZW21]. The function is :func:`ccl_loss`.

    Args:
        margin: a negative that scores no higher costs nothing.
        weight: of the negatives' part, >= 0.
        reduction: "none", "sum" or "mean".

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> loss = zx.CCLLoss()
        >>> pos, neg = torch.tensor([1.0, 2.0]), torch.tensor([[0.5, -1.0], [0.0, 1.2]])
        >>> loss(pos, neg)
        tensor(-0.0750)
    """

    record = RECORDS["ccl"]

    def __init__(
        self,
        margin: float = 0.0,
        weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        self.margin = margin
        self.weight = weight
        self.kernel()  # checks the options

    def kernel(self) -> Kernel:
        """Return the compiled loss that forward amounts to."""
        return records.ccl(self.margin, self.weight)

    def forward(self, pos: Tensor, neg: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss of the scores; arguments as for the function."""
        return row_loss(pos, neg, sample_weight, records.ccl(self.margin, self.weight), self.reduction)
