"""A GPU that is played: tensors that say they are elsewhere, hold their numbers on the CPU and note what leaves.

The device is called "meta", which no kernel works on and every torch knows; one without CUDA stumbles over "cuda".

Everything that asks a GPU for numbers is written down: transfers to the host, numbers that Python looks at, and
operations whose results have as many entries as the numbers say, for which a GPU is waited for as well.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

PLAYED = torch.device("meta")
# Their sizes follow from values.
_WAITING = {
    "aten.nonzero.default",
    "aten._unique2.default",
    "aten.unique_dim.default",
    "aten.unique_consecutive.default",
    "aten.masked_select.default",
    "aten.bincount.default",
    "aten._local_scalar_dense.default",
    "aten.equal.default",
}


class Played(torch.Tensor):
    """A tensor on the played device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Played:
        played = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=PLAYED
        )
        played.held = held
        return played

    def __repr__(self) -> str:
        return f"Played({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        raise AssertionError(f"{function} outside the mode")


class PlayedDevice(TorchDispatchMode):
    """While it is on, "meta" is the played device. ``asked`` names what a GPU was asked for, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = dict(options or {})
        name, leaves = str(function), tree_leaves((arguments, options))
        there = [x for x in leaves if isinstance(x, Played)]
        target = options.get("device")
        target = None if target is None else torch.device(target)
        arguments, options = tree_map(lambda x: x.held if isinstance(x, Played) else x, (arguments, options))
        if target is not None:
            options["device"] = torch.device("cpu")
        if name == "aten._to_copy.default" and target is not None:
            out = function(*arguments, **options)
            if target.type == "cpu":
                if there:
                    self.asked.append(f"a transfer of {list(out.shape)}")
                return out.clone()
            return Played(out.clone())
        if name == "aten.copy_.default" and len({isinstance(x, Played) for x in leaves[:2]}) == 2:
            raise AssertionError("copy_ between devices is not played")
        if there:
            indices = tree_leaves(arguments[1]) if name.startswith(("aten.index.", "aten.index_put")) else []
            masks = [x for x in indices if isinstance(x, torch.Tensor) and x.dtype == torch.bool]
            lengths = name == "aten.repeat_interleave.Tensor" and options.get("output_size") is None
            if name in _WAITING or lengths or masks:
                self.asked.append(name)
            alone = [x for x in leaves if isinstance(x, torch.Tensor) and not isinstance(x, Played) and x.dim() > 0]
            if alone and not name.startswith("zerosum_ext."):
                raise AssertionError(f"{name}: tensors of two devices")
        out = function(*arguments, **options)
        if there or (target is not None and target.type == PLAYED.type):
            if name.endswith(("_.default", "_.Tensor", "_.Scalar")) and "__." not in name:
                return there[0]  # in place, as __lshift__ is not
            return tree_map(lambda x: Played(x) if isinstance(x, torch.Tensor) else x, out)
        return out
