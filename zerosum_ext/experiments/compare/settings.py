"""The settings of a comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from zerosum_ext._checks import require_choice, require_finite_number, require_positive_int
from zerosum_ext.evaluation import PER_USER_METRICS
from zerosum_ext.experiments.compare.candidates import families
from zerosum_ext.training import parse_metric

__all__ = ["BIASES", "GOALS", "Plan"]

#: What is looked for: the share of BPR's accuracy that may be lost, and the measure of bias.
GOALS: dict[str, tuple[float, str]] = {
    "accuracy": (0.0, "overall"),
    "balanced": (0.01, "overall"),
    "long-tail": (0.1, "aplt"),
}

#: The measures of bias that can be asked for. "overall" is the mean of four, each as a share of BPR's.
BIASES = ("overall", "pop_q_at_1", "pri", "upo", "pcc", "arp", "aplt", "coverage")


@dataclass(frozen=True)
class Plan:
    """What is compared, and what is looked for.

    Attributes:
        goal: "accuracy" takes the most accurate setting. "balanced" and "long-tail" take the one with the least bias
            among those that cost at most ``max_cost`` of BPR's accuracy.
        max_cost: a share in [0, 1). None: 0 with "accuracy", .01 with "balanced", .1 with "long-tail".
        bias: a name of :data:`BIASES`. None: "overall", or the long-tail share ("aplt") with "long-tail".
        metric: the measure of accuracy, a mean over users.
        methods: the families to try, by default all that this version has.
        model, embedding_dim: of all candidates.
        epochs: the largest number of epochs of a candidate. Those with many negatives get a third.
        patience: epochs without a better one, after which a candidate stops.
        batch_size: None chooses it by the number of interactions: 1024, 2048 or 4096.
        rungs: how often candidates are measured and the less promising ones left; 1 trains all to the end.
        keep: one of so many candidates goes on from a rung to the next.
        seeds: the search uses the first. The chosen setting and BPR are trained with all.
        engine: "halving", or "optuna", which also draws ``trials`` settings of its own.
        trials: the number of settings that Optuna draws.
        device: where to train.
    """

    goal: Literal["accuracy", "balanced", "long-tail"] = "balanced"
    max_cost: float | None = None
    bias: str | None = None
    metric: str = "ndcg@10"
    methods: tuple[str, ...] | None = None
    model: str = "mf"
    embedding_dim: int = 64
    epochs: int = 90
    patience: int = 5
    batch_size: int | None = None
    rungs: int = 3
    keep: int = 3
    seeds: tuple[int, ...] = (0,)
    engine: Literal["halving", "optuna"] = "halving"
    trials: int = 20
    device: str = "cpu"

    def __post_init__(self) -> None:
        require_choice("goal", self.goal, tuple(GOALS))
        require_choice("engine", self.engine, ("halving", "optuna"))
        if self.max_cost is not None and not 0 <= require_finite_number("max_cost", self.max_cost) < 1:
            raise ValueError(f"max_cost: expected a share in [0, 1), got {self.max_cost}")
        if self.bias is not None:
            require_choice("bias", self.bias, BIASES)
        name, _ = parse_metric(self.metric)
        if name not in PER_USER_METRICS or name in ("arp", "aplt", "aclt", "novelty", "pop_q_at_1", "upo", "pru"):
            raise ValueError(
                f"metric: expected a measure of accuracy that users have, such as ndcg@10, got {self.metric!r}"
            )
        for option in ("epochs", "patience", "rungs", "trials", "embedding_dim"):
            require_positive_int(option, getattr(self, option))
        require_positive_int("keep", self.keep, minimum=2)
        if self.batch_size is not None:
            require_positive_int("batch_size", self.batch_size)
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected one or several different numbers, got {self.seeds}")
        for seed in self.seeds:
            require_positive_int("seeds", seed, minimum=0)
        for family in self.methods or ():
            require_choice("methods", family, tuple(families()))

    @property
    def cost(self) -> float:
        """The share of BPR's accuracy that may be lost."""
        return GOALS[self.goal][0] if self.max_cost is None else self.max_cost

    @property
    def cutoff(self) -> int:
        """The cut-off of accuracy, which the measures of lists get too."""
        return parse_metric(self.metric)[1]

    @property
    def bias_key(self) -> str:
        """The measure of bias, with its cut-off if it has one."""
        name = GOALS[self.goal][1] if self.bias is None else self.bias
        return f"{name}@{self.cutoff}" if name in ("arp", "aplt", "coverage") else name

    @property
    def keys(self) -> tuple[str, ...]:
        """All measures that are taken in validation."""
        k = self.cutoff
        return (self.metric, "pri", "pop_q_at_1", "upo", "pcc", f"arp@{k}", f"aplt@{k}", f"coverage@{k}")

    def batch(self, interactions: int) -> int:
        """Return the size of batches for so many training interactions."""
        if self.batch_size is not None:
            return self.batch_size
        return 1024 if interactions < 150_000 else 2048 if interactions < 500_000 else 4096

    def common(self, interactions: int) -> dict[str, Any]:
        """Return the settings that all candidates share."""
        return {
            "model": self.model,
            "embedding_dim": self.embedding_dim,
            "batch_size": self.batch(interactions),
            "metric": self.metric,
            "patience": self.patience,
            "seed": self.seeds[0],
            "device": self.device,
        }
