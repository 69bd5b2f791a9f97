"""Every loss of the library as one record: its scores, constants, options, formula and source.

All else follows from these records: the functions, the modules, :func:`zerosum_ext.losses.get_loss`, the exports, the
cases of ``gradcheck`` and of the tests, and the tables of docs/losses.md. After a change run

    python tools/generate_losses.py

which writes the files that hold generated text. docs/adding_a_loss.md shows how a loss is added.

A record is a function from the options of a loss to the compiled loss (csrc/common/losses.h) that it amounts to: the
name and up to three numbers. The decorator says the rest. [RCS22] is Rhee, Cho, Suh, RecSys 2022; [BPR09] Rendle et
al., UAI 2009; :mod:`zerosum_ext.reference.losses` has all sources.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from zerosum_ext._checks import describe, require_choice, require_finite_number, require_floating, require_tensor
from zerosum_ext.reference import SHAPES, Kernel

#: The scores that a loss takes: those of a compiled loss, or "branches" for MACR with scores of its own.
Scores = Literal["pair", "quad", "row", "branches"]


@dataclass(frozen=True)
class Constants:
    """One constant of each item, which a loss takes beside the item's score.

    Attributes:
        pos, neg: names of the function's arguments for the items scored.
        about: their description.
        items: name of the module's argument for all items.
        items_about: its description.
        of_scores: from the function's two arguments, and options, to the constants of the kernel.
        of_items: from the module's argument, and options, to those of all items.
        buffer: name of the module's buffer that holds them.
        required: whether the loss cannot do without.
    """

    pos: str
    neg: str
    about: str
    items: str
    items_about: str
    of_scores: Callable[..., tuple[Tensor | None, Tensor | None]]
    of_items: Callable[..., Tensor | None]
    buffer: str = "constants"
    required: bool = True


@dataclass(frozen=True)
class LossRecord:
    """What the library knows of one loss.

    Attributes:
        name: as :func:`zerosum_ext.losses.get_loss` takes it; the function is ``<name>_loss``.
        kernel: from the options to the compiled loss; its signature has the options, their types and their defaults.
        class_name: of the module.
        summary: a phrase of one line.
        formula: the value of a sample, as text.
        latex: the same in LaTeX.
        source: short tag of the paper and number of the equation.
        options: name -> description, of all options that the function or the module takes.
        checks: options with which gradcheck and the tests call the loss. Together they make every term count.
        constants: of the items, if the loss takes any.
        shared: which of "pos" and "neg" may be one score for both BPR terms, with the option of this name.
        replaces: option -> the options that it stands for where it is given.
        note: more sentences of the docstring.
    """

    name: str
    kernel: Callable[..., Kernel]
    class_name: str
    summary: str
    formula: str
    latex: str
    source: str
    options: Mapping[str, str] = field(default_factory=dict)
    checks: Sequence[Mapping[str, Any]] = ({},)
    constants: Constants | None = None
    shared: Literal["", "pos", "neg"] = ""
    replaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    note: str = ""

    @functools.cached_property
    def scores(self) -> Scores:
        """Return the scores that the loss takes, those of its compiled loss."""
        return SHAPES.get(self.compiled(self.checks[0]).loss, "branches")

    def compiled(self, options: Mapping[str, Any]) -> Kernel:
        """Return the compiled loss for these options of the function, of which some may concern the constants."""
        known = inspect.signature(self.kernel).parameters
        return self.kernel(**{name: value for name, value in options.items() if name in known})

    @property
    def function_options(self) -> dict[str, inspect.Parameter]:
        """Return the options of the function, in order: those of the kernel, of the constants, and ``shared``."""
        own = dict(inspect.signature(self.kernel).parameters)
        if self.constants is not None:
            own |= dict(list(inspect.signature(self.constants.of_scores).parameters.items())[2:])
        return own | self._shared_option()

    @property
    def module_options(self) -> dict[str, inspect.Parameter]:
        """Return the options of the module, in order, without the constants."""
        own = dict(inspect.signature(self.kernel).parameters)
        if self.constants is not None:
            own |= dict(list(inspect.signature(self.constants.of_items).parameters.items())[1:])
        return own | self._shared_option()

    def _shared_option(self) -> dict[str, inspect.Parameter]:
        if not self.shared:
            return {}
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return {"shared": inspect.Parameter("shared", kind, default=False, annotation="bool")}


#: All losses by name, in the order of their definitions below.
RECORDS: dict[str, LossRecord] = {}


def loss(**fields: Any) -> Callable[[Callable[..., Kernel]], Callable[..., Kernel]]:
    """Make the record of the loss that the function is named after; ``fields`` are those of :class:`LossRecord`."""

    def register(kernel: Callable[..., Kernel]) -> Callable[..., Kernel]:
        name = kernel.__name__
        RECORDS[name] = LossRecord(name=name, kernel=kernel, **fields)
        return kernel

    return register


# ---- checks of options


def _positive(name: str, value: float) -> float:
    number = require_finite_number(name, value)
    if number <= 0:
        raise ValueError(f"{name}: expected a number > 0, got {value!r}")
    return number


def _weights(
    bpr_weight: float, reg_weight: float, w: float | None, a_share: float, b_share: float
) -> tuple[float, float]:
    """Return the factors (a, b) of the BPR and the regularising terms, from either convention of the authors."""
    if w is None:
        a = require_finite_number("bpr_weight", bpr_weight, minimum=0)
        return a, require_finite_number("reg_weight", reg_weight, minimum=0)
    if bpr_weight != 1.0 or reg_weight != 1.0:
        raise ValueError(
            f"w: expected w or bpr_weight and reg_weight, not both; got w={w!r}, bpr_weight={bpr_weight!r}, "
            f"reg_weight={reg_weight!r}"
        )
    w = require_finite_number("w", w, minimum=0, maximum=1)
    return w * a_share, (1 - w) * b_share


def _weight_options(a_share: str, b_share: str) -> dict[str, str]:
    return {
        "bpr_weight": "a, >= 0.",
        "reg_weight": "b, >= 0.",
        "w": f"the convention of the authors' code instead: a = {a_share}, b = {b_share}, with w in [0, 1].",
    }


_REPLACES = {"w": ("bpr_weight", "reg_weight")}


# ---- the paper's losses


@loss(
    class_name="BPRLoss",
    summary="Bayesian personalized ranking",
    formula="sp(n - p)",
    latex=r"\operatorname{sp}(n - p)",
    source="[BPR09]",
    note="Weighted BPR is this loss with a sample_weight.",
)
def bpr() -> Kernel:
    return _BPR


_BPR = Kernel("bpr", 1.0)


@loss(
    class_name="ZerosumLoss",
    summary="BPR plus a term that makes positive and negative scores sum to zero",
    formula="a sp(n - p) + b rho(p + n)",
    latex=r"a \operatorname{sp}(n - p) + b\, \rho(p + n)",
    source="[RCS22] eq. 7",
    options=_weight_options("w/2", "(1-w)/2"),
    checks=({}, {"w": 0.8}),
    replaces=_REPLACES,
)
def zerosum(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    a, b = _weights(bpr_weight, reg_weight, w, 0.5, 0.5)
    return Kernel("zerosum", a, b)


@loss(
    class_name="Pos2Neg2Loss",
    summary="BPR on two pairs plus a term that makes positives, and negatives, score alike",
    formula="a (sp(n1 - p1) + sp(n2 - p2)) + b (rho(p1 - p2) + rho(n1 - n2))",
    latex=r"a \sum_{i=1}^2 \operatorname{sp}(n_i - p_i) + b\, (\rho(p_1 - p_2) + \rho(n_1 - n_2))",
    source="[RCS22] eq. 6",
    options=_weight_options("w/4", "(1-w)/4"),
    checks=({}, {"bpr_weight": 0.2, "reg_weight": 0.3}),
    replaces=_REPLACES,
)
def pos2neg2(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    a, b = _weights(bpr_weight, reg_weight, w, 0.25, 0.25)
    return Kernel("pos2neg2", a, b, b)


_SHARED = (
    "the form of the authors' code, with one {0} in both BPR terms; {1} is then [B], or [B, 2] of which the first "
    "column counts."
)


@loss(
    class_name="Pos2Loss",
    summary="The ablation of Pos2Neg2 that only makes positives score alike",
    formula="a (sp(n1 - p1) + sp(n2 - p2)) + b rho(p1 - p2)",
    latex=r"a \sum_{i=1}^2 \operatorname{sp}(n_i - p_i) + b\, \rho(p_1 - p_2)",
    source="[RCS22] section 5",
    options={**_weight_options("w/4", "(1-w)/2"), "shared": _SHARED.format("negative", "neg")},
    checks=({"w": 0.8},),
    shared="neg",
    replaces=_REPLACES,
)
def pos2(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    a, b = _weights(bpr_weight, reg_weight, w, 0.25, 0.5)
    return Kernel("pos2neg2", a, b)


@loss(
    class_name="Neg2Loss",
    summary="The ablation of Pos2Neg2 that only makes negatives score alike",
    formula="a (sp(n1 - p1) + sp(n2 - p2)) + b rho(n1 - n2)",
    latex=r"a \sum_{i=1}^2 \operatorname{sp}(n_i - p_i) + b\, \rho(n_1 - n_2)",
    source="[RCS22] section 5",
    options={**_weight_options("w/4", "(1-w)/2"), "shared": _SHARED.format("positive", "pos")},
    checks=({"w": 0.8},),
    shared="pos",
    replaces=_REPLACES,
)
def neg2(bpr_weight: float = 1.0, reg_weight: float = 1.0, w: float | None = None) -> Kernel:
    a, b = _weights(bpr_weight, reg_weight, w, 0.25, 0.5)
    return Kernel("pos2neg2", a, 0.0, b)


# ---- the methods that the paper compares with


def require_popularity(name: str, popularity: Any) -> Tensor:
    """Return a tensor of counts, or raise."""
    require_tensor(name, popularity)
    if popularity.dtype == torch.bool or popularity.is_complex():
        raise TypeError(f"{name}: expected numbers, got {describe(popularity)}")
    counts: Tensor = popularity
    return counts


def ipw_weights(popularity: Tensor, clip: float | None = None) -> Tensor:
    """Return inverse-popularity weights of all items: 1/popularity, scaled to mean 1, then clipped.

    Args:
        popularity: interaction counts of the items, [num_items].
        clip: the largest weight allowed, or None.

    Returns:
        float64 weights [num_items]. The mean is over items of popularity > 0. An item of popularity 0, whose inverse
        does not exist, weighs as much as the rarest of the others.

    Example:
        >>> import torch
        >>> import zerosum_ext as zx
        >>> zx.ipw_weights(torch.tensor([4.0, 2.0, 1.0]))
        tensor([0.4286, 0.8571, 1.7143], dtype=torch.float64)
    """
    counts = require_popularity("popularity", popularity).to(torch.float64)
    if clip is not None:
        clip = require_finite_number("clip", clip, minimum=0)
    seen = counts > 0
    rarest = torch.where(seen, counts, torch.inf).amin() if counts.numel() else counts.sum()
    inverse = 1 / torch.where(seen, counts, rarest)
    weights = inverse * (seen.sum() / torch.where(seen, inverse, 0).sum())
    return weights if clip is None else weights.clamp(max=clip)


def ipw_of_scores(
    pos_popularity: Tensor, neg_popularity: Tensor, clip: float | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the weights of positives and negatives, scaled over the items given here."""
    x_pos = require_popularity("pos_popularity", pos_popularity)
    x_neg = require_popularity("neg_popularity", neg_popularity)
    weights = ipw_weights(torch.cat([x_pos.reshape(-1), x_neg.reshape(-1)]), clip)
    split = x_pos.numel()
    return weights[:split].reshape(x_pos.shape), weights[split:].reshape(x_neg.shape)


@loss(
    class_name="IPWLoss",
    summary="Inverse propensity weighting: cross-entropy of every positive and negative, weighted by 1/popularity",
    formula="x_p sp(-p) + x_n sp(n), x = 1/popularity scaled to mean 1",
    latex=r"x_p \operatorname{sp}(-p) + x_n \operatorname{sp}(n), \quad x \propto 1 / \mathrm{popularity}",
    source="[RCS22] section 5",
    options={"clip": "the largest weight allowed, after scaling, or None."},
    checks=({"clip": None}, {"clip": 2.0}),
    note="All terms are kept; the code released with [RCS22] keeps one of four.",
    constants=Constants(
        pos="pos_popularity",
        neg="neg_popularity",
        about="popularity of the items scored, [B] and [B] or [B, K]. The weights are scaled to mean 1 over the items "
        "given here; :class:`IPWLoss` scales them over all items once, which suits training.",
        items="popularity",
        items_about="interaction counts of the items, [num_items].",
        of_scores=ipw_of_scores,
        of_items=ipw_weights,
    ),
)
def ipw() -> Kernel:
    return Kernel("ipw", 1.0)


def pd_of_scores(
    pos_popularity: Tensor, neg_popularity: Tensor, gamma: float = 0.25
) -> tuple[Tensor | None, Tensor | None]:
    """Return popularity^gamma of positives and negatives."""
    gamma = require_finite_number("gamma", gamma, minimum=0)
    return (
        require_popularity("pos_popularity", pos_popularity).double() ** gamma,
        require_popularity("neg_popularity", neg_popularity).double() ** gamma,
    )


def pd_of_items(popularity: Tensor, gamma: float = 0.25, normalize: bool = True) -> Tensor:
    """Return popularity^gamma of all items, with popularity divided by its maximum if ``normalize``."""
    gamma = require_finite_number("gamma", gamma, minimum=0)
    counts = require_popularity("popularity", popularity).double()
    if normalize and counts.numel():
        counts = counts / counts.amax().clamp(min=torch.finfo(torch.float64).tiny)
    return counts**gamma


@loss(
    class_name="PDLoss",
    summary="Popularity deconfounding (PD, PDA): BPR of scores that are multiplied by popularity^gamma",
    formula="sp(f(n) x_n - f(p) x_p), f = ELU + 1, x = popularity^gamma",
    latex=r"\operatorname{sp}(f(n) x_n - f(p) x_p), \quad f = \mathrm{ELU} + 1, \; x = \mathrm{popularity}^\gamma",
    source="[ZFH21] eq. 6, 7",
    options={
        "gamma": "the exponent, >= 0.",
        "normalize": "divide popularity by its maximum first. False with gamma = .25 is what [RCS22] ran on their "
        "synthetic data.",
    },
    checks=({},),
    note="At inference PD ranks by ``f(y)``, that is by ``y``; PDA multiplies by a predicted popularity.",
    constants=Constants(
        pos="pos_popularity",
        neg="neg_popularity",
        about="popularity of the items scored, [B] and [B] or [B, K], taken as given: divide counts by their maximum "
        "first, as the authors do, or the margins grow with the data.",
        items="popularity",
        items_about="interaction counts of the items, [num_items].",
        of_scores=pd_of_scores,
        of_items=pd_of_items,
    ),
)
def pd() -> Kernel:
    return Kernel("pd", 1.0)


@loss(
    class_name="MACRLoss",
    summary="MACR: cross-entropy of the product of three branches, and of the user and the item branch alone",
    formula="BCE(s(y) s(u) s(i)) + alpha BCE(s(i)) + beta BCE(s(u)), each summed over the positive and the negative",
    latex=r"\mathrm{BCE}(\sigma(y) \sigma(u) \sigma(i)) + \alpha\, \mathrm{BCE}(\sigma(i)) + \beta\, "
    r"\mathrm{BCE}(\sigma(u))",
    source="[WFC21] eq. 4-7",
    options={
        "alpha": "weight of the item branch's own cross-entropy, >= 0.",
        "beta": "weight of the user branch's own cross-entropy, >= 0.",
    },
    checks=({"alpha": 0.3, "beta": 0.7},),
    note="All terms are kept. At inference rank by ``(y - c) s(u) s(i)``. :class:`zerosum_ext.MACRLoss` is the module "
    "that goes with the model :class:`zerosum_ext.MACR`.",
)
def macr(alpha: float, beta: float) -> Kernel:
    return Kernel(
        "macr",
        require_finite_number("alpha", alpha, minimum=0),
        require_finite_number("beta", beta, minimum=0),
    )


# ---- more losses of a positive and a negative


@loss(
    class_name="HingeLoss",
    summary="The hinge of a margin between the positive and the negative",
    formula="max(0, margin - p + n)",
    latex=r"\max(0, m - p + n)",
    source="[WBU11]",
    options={"margin": "by which the positive should score higher."},
    checks=({"margin": 0.7},),
)
def hinge(margin: float = 1.0) -> Kernel:
    return Kernel("hinge", require_finite_number("margin", margin))


# ---- losses of all K negatives of a positive


def log_q_of_scores(
    log_q_pos: Tensor | None = None, log_q_neg: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Return both as they are."""
    return log_q_pos, log_q_neg


def log_q_of_items(log_q: Tensor | None = None) -> Tensor | None:
    """Check the log-probabilities of all items."""
    if log_q is not None:
        require_floating("log_q", log_q)
    return log_q


@loss(
    class_name="SampledSoftmaxLoss",
    summary="Softmax cross-entropy over the positive and its K negatives, with logQ correction",
    formula="LSE(z_p, z_1 ... z_K) - z_p, z = y / temperature - log q",
    latex=r"\operatorname{LSE}(z_p, z_1, \dots, z_K) - z_p, \quad z = y / t - \log q",
    source="[BS08]",
    options={"temperature": "> 0."},
    checks=({"temperature": 0.5},),
    constants=Constants(
        pos="log_q_pos",
        neg="log_q_neg",
        about="log-probabilities with which the items were drawn, [B] and [B, K], or [K] where all rows have the same "
        "negatives; None: all alike.",
        items="log_q",
        items_about="log-probability with which the sampler draws each item, [num_items]; None: all alike.",
        of_scores=log_q_of_scores,
        of_items=log_q_of_items,
        buffer="log_q",
        required=False,
    ),
)
def sampled_softmax(temperature: float = 1.0) -> Kernel:
    return Kernel("sampled_softmax", 1 / _positive("temperature", temperature))


def _log_counts(counts: Tensor) -> Tensor:
    """Return the logarithms of counts, float64; a count of 0 is taken as the smallest of the others, or as 1."""
    counts = counts.to(torch.float64)
    seen = counts > 0
    rarest = torch.where(seen, counts, torch.inf).amin() if counts.numel() else counts.sum()
    return torch.where(seen, counts, torch.where(rarest.isinf(), 1.0, rarest)).log()


def adjustment_of_items(popularity: Tensor, alpha: float = 0.5) -> Tensor:
    """Return -alpha log popularity of all items, relative to the most popular one."""
    alpha = require_finite_number("alpha", alpha)
    logs = _log_counts(require_popularity("popularity", popularity))
    return -alpha * (logs - logs.amax()) if logs.numel() else logs


def adjustment_of_scores(
    pos_popularity: Tensor, neg_popularity: Tensor, alpha: float = 0.5
) -> tuple[Tensor | None, Tensor | None]:
    """Return -alpha log popularity of positives and negatives."""
    x_pos = require_popularity("pos_popularity", pos_popularity)
    x_neg = require_popularity("neg_popularity", neg_popularity)
    logs = adjustment_of_items(torch.cat([x_pos.reshape(-1), x_neg.reshape(-1)]), alpha)
    return logs[: x_pos.numel()].reshape(x_pos.shape), logs[x_pos.numel() :].reshape(x_neg.shape)


@loss(
    class_name="PopularitySoftmaxLoss",
    summary="Sampled softmax of scores that are adjusted by popularity^alpha in training alone",
    formula="LSE(z_p, z_1 ... z_K) - z_p, z = y / temperature + alpha log popularity",
    latex=r"\operatorname{LSE}(z_p, z_1, \dots, z_K) - z_p, \quad z = y / t + \alpha \log \mathrm{popularity}",
    source="[MJR21]",
    options={
        "temperature": "> 0.",
        "alpha": "the exponent, of either sign. Above 0 the popularity explains a part of the data, and the scores, "
        "which rank without it, favour the long tail. Below 0 they favour popular items. 0 is the sampled softmax.",
    },
    checks=({"temperature": 0.5, "alpha": 0.7}, {"temperature": 0.5, "alpha": -0.4}),
    note="At inference rank by the scores themselves. An item of popularity 0 counts as the rarest of the others.",
    constants=Constants(
        pos="pos_popularity",
        neg="neg_popularity",
        about="popularity of the items scored, [B] and [B, K].",
        items="popularity",
        items_about="interaction counts of the items, [num_items].",
        of_scores=adjustment_of_scores,
        of_items=adjustment_of_items,
    ),
)
def popularity_softmax(temperature: float = 1.0) -> Kernel:
    return Kernel("sampled_softmax", 1 / _positive("temperature", temperature))


def sampler_log_q(popularity: Tensor, exponent: float = 0.0) -> Tensor:
    """Return the log-probability with which a sampler by popularity^exponent draws each item."""
    exponent = require_finite_number("exponent", exponent)
    logs = exponent * _log_counts(require_popularity("popularity", popularity))
    return torch.log_softmax(logs, 0) if logs.numel() else logs


def sampled_log_q(log_q_pos: Tensor, log_q_neg: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return both, checked."""
    require_floating("log_q_pos", log_q_pos)
    require_floating("log_q_neg", log_q_neg)
    return log_q_pos, log_q_neg


@loss(
    class_name="RefinedSoftmaxLoss",
    summary="Sampled softmax with the refined logQ correction, where the positive is not a sampled term",
    formula="sp(LSE_j(z_j) - log K + log(1 - q_p) - p / temperature), z_j = n_j / temperature - log q_j",
    latex=r"\operatorname{sp}(\operatorname{LSE}_j(n_j / t - \log q_j) - \log K + \log(1 - q_p) - p / t)",
    source="[KBM25]",
    options={
        "temperature": "> 0.",
        "exponent": 'negatives are drawn in proportion to popularity^exponent: 0 for the strategy "uniform" of '
        'training, 1 for "popularity".',
    },
    checks=({}, {"temperature": 0.5}),
    note="The paper's loss is ``sg(1 - P) (LSE_j(z_j + log(1 - q_p)) - p / temperature)``, where sg stops the "
    "gradient, ``q_j / (1 - q_p)`` is the probability of a negative among all items but the positive, and ``P = exp(p "
    "/ temperature) / (exp(p / temperature) + mean_j exp(z_j + log(1 - q_p)))`` estimates the probability of the "
    "positive under the softmax over all items. The function here has exactly that gradient, since ``1 - P`` is the "
    "derivative of sp; its value is the cross-entropy ``-log P``.",
    constants=Constants(
        pos="log_q_pos",
        neg="log_q_neg",
        about="log-probabilities log q with which the sampler draws the items, [B] and [B, K], or [K] where all rows "
        "have the same negatives.",
        items="popularity",
        items_about="interaction counts of the items, [num_items].",
        of_scores=sampled_log_q,
        of_items=sampler_log_q,
        buffer="log_q",
    ),
)
def refined_softmax(temperature: float = 1.0) -> Kernel:
    return Kernel("refined_softmax", 1 / _positive("temperature", temperature))


@loss(
    class_name="BSLLoss",
    summary="Bilateral softmax loss",
    formula="-p / t1 + (t2 / t1) (LSE_j(n_j / t2) - log K), t1 and t2 the positive and the negative temperature",
    latex=r"-p / t_1 + (t_2 / t_1) (\operatorname{LSE}_j(n_j / t_2) - \log K)",
    source="[WCW24]",
    options={
        "positive_temperature": "t1, > 0.",
        "negative_temperature": "t2, > 0.",
    },
    checks=({"positive_temperature": 0.5, "negative_temperature": 0.25},),
)
def bsl(positive_temperature: float = 1.0, negative_temperature: float = 1.0) -> Kernel:
    t1 = _positive("positive_temperature", positive_temperature)
    t2 = _positive("negative_temperature", negative_temperature)
    return Kernel("bsl", 1 / t1, 1 / t2, t2 / t1)


@loss(
    class_name="PSLLoss",
    summary="Pairwise softmax loss",
    formula="LSE_j(log(1 + activation(n_j - p)) / temperature)",
    latex=r"\operatorname{LSE}_j(\log(1 + \mathrm{activation}(n_j - p)) / t)",
    source="[YCX24]",
    options={
        "temperature": "> 0.",
        "activation": '"tanh" or "relu". (The third of the paper, atan, has no logarithm for margins beyond 1.56.)',
    },
    checks=({"temperature": 0.5}, {"temperature": 0.5, "activation": "relu"}),
)
def psl(temperature: float = 1.0, activation: Literal["tanh", "relu"] = "tanh") -> Kernel:
    inverse = 1 / _positive("temperature", temperature)
    return Kernel(f"psl_{require_choice('activation', activation, ('tanh', 'relu'))}", inverse)


@loss(
    class_name="HardestLoss",
    summary="BPR against the hardest of K negatives, as in dynamic negative sampling",
    formula="sp(max_j n_j - p)",
    latex=r"\operatorname{sp}(\max_j n_j - p)",
    source="[ZCW13]",
    note="Of equal negatives the first takes the gradient.",
)
def hardest() -> Kernel:
    return _HARDEST


_HARDEST = Kernel("hardest", 1.0)


@loss(
    class_name="CCLLoss",
    summary="Cosine contrastive loss of SimpleX",
    formula="1 - p + weight / K sum_j max(0, n_j - margin)",
    latex=r"1 - p + \frac{w}{K} \sum_j \max(0, n_j - m)",
    source="[MZW21]",
    options={
        "margin": "a negative that scores no higher costs nothing.",
        "weight": "of the negatives' part, >= 0.",
    },
    checks=({"margin": 0.4, "weight": 1.5},),
    note="The authors' scores are cosines of embeddings; the scores given are taken as they are.",
)
def ccl(margin: float = 0.0, weight: float = 1.0) -> Kernel:
    return Kernel("ccl", require_finite_number("margin", margin), require_finite_number("weight", weight, minimum=0))
