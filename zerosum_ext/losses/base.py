"""What training asks of a loss, and what the modules of the library have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from zerosum_ext._checks import require_choice, require_index_tensor
from zerosum_ext._types import Reduction
from zerosum_ext.losses.records import LossRecord
from zerosum_ext.losses.shapes import REDUCTIONS, NamedTensor
from zerosum_ext.reference import Kernel


class Loss(nn.Module):
    """Base of the losses: what training asks of a loss.

    ``forward(pos, neg, sample_weight=None)``, and with :attr:`needs_items` also ``pos_items`` and ``neg_items``, the
    indices of the items scored, of the shapes of pos and neg.
    """

    #: Positives (and negatives) of one user that a sample consists of: 1, or 2 for scores [B, 2].
    num_positives: ClassVar[int] = 1
    #: Whether forward also wants the indices of the items.
    needs_items: bool = False

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        require_choice("reduction", reduction, REDUCTIONS)
        self.reduction: Reduction = reduction

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments that make this loss, without constants of the items."""
        return {"reduction": self.reduction}

    def kernel(self) -> Kernel | None:
        """Return the compiled loss that forward amounts to, or None where forward is more than that.

        Kernels that evaluate a loss inside, such as that of :func:`zerosum_ext.mf_loss`, ask for it.
        """
        return None

    def item_constants(self) -> Tensor | None:
        """Return the constants that the compiled loss takes beside each item, [num_items], or None."""
        return None

    def extra_repr(self) -> str:
        """Return the options, for the representation of the module."""
        return ", ".join(f"{k}={v!r}" for k, v in self.options().items())


class RecordLoss(Loss):
    """Base of the modules that are generated from the records of :mod:`zerosum_ext.losses.records`."""

    record: ClassVar[LossRecord]

    def __init__(self, reduction: Reduction, constants: Tensor | None = None) -> None:
        super().__init__(reduction)
        if self.record.constants is not None:
            self.register_buffer(self.record.constants.buffer, constants)
            self.needs_items = constants is not None

    def options(self) -> dict[str, Any]:
        """Return the keyword arguments that make this loss, without constants of the items."""
        given = {name: getattr(self, name) for name in self.record.module_options}
        for name, replaced in self.record.replaces.items():
            for left_out in (name,) if given[name] is None else replaced:
                del given[left_out]
        return {**given, **super().options()}

    def item_constants(self) -> Tensor | None:
        """Return the constants that the compiled loss takes beside each item, [num_items], or None."""
        constants = self.record.constants
        return None if constants is None else getattr(self, constants.buffer)

    def look_up(self, pos_items: Tensor | None, neg_items: Tensor | None) -> tuple[NamedTensor, NamedTensor] | None:
        """Return the constants of the items scored, or None where the loss has none."""
        table = self.item_constants()
        if table is None:
            return None
        for name, items in (("pos_items", pos_items), ("neg_items", neg_items)):
            if items is None:
                raise ValueError(f"{name}: expected the indices of the items scored, got None")
            require_index_tensor(name, items)
        return ("pos_items", table[pos_items]), ("neg_items", table[neg_items])
