"""Room for more rows: what an optimizer knows of parameters that grew, and states of before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["grow_parameter", "grown_optimizer_state", "grown_tensor"]


def grown_tensor(old: Tensor, like: Tensor, fill: Tensor | float) -> Tensor:
    """Return ``old`` with further rows, in the shape of ``like``.

    Args:
        old: [n, ...].
        like: [m, ...] with m >= n, and the same other sizes.
        fill: a tensor of the shape of ``like`` whose rows from n on are taken, or a number.

    Raises:
        ValueError: the shapes differ in more than a larger number of rows.
    """
    if old.shape == like.shape:
        return old
    if old.dim() != like.dim() or old.dim() == 0 or old.shape[1:] != like.shape[1:] or len(old) > len(like):
        raise ValueError(f"expected a tensor that grows to {tuple(like.shape)}, got {tuple(old.shape)}")
    rest = fill[len(old) :] if isinstance(fill, Tensor) else old.new_full((len(like) - len(old), *old.shape[1:]), fill)
    return torch.cat([old, rest.to(old)])


def grow_parameter(parameter: nn.Parameter, rows: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    """Add rows to a parameter in place, and zeros to what an optimizer knows of it.

    The parameter stays the same object, so that an optimizer still holds it.

    Args:
        parameter: [n, ...].
        rows: [m, ...], to be added.
        optimizer: the optimizer whose state grows with it, or None.
    """
    before = parameter.shape
    parameter.grad = None
    parameter.data = torch.cat([parameter.data, rows.to(parameter.data)])
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        if any(held is parameter for held in group["params"]) and parameter in optimizer.state:
            state = optimizer.state[parameter]
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == before:
                    state[name] = grown_tensor(value, parameter, _start(name, group))


def grown_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's state dict of before, in the shapes of the parameters that ``optimizer`` holds now."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    groups = [group for group in state["param_groups"] for _ in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    grown = dict(state["state"])
    for number, parameter, group in zip(numbers, parameters, groups, strict=True):
        if number in grown:
            grown[number] = {
                name: grown_tensor(value, parameter, _start(name, group))
                if isinstance(value, Tensor) and value.dim()
                else value
                for name, value in grown[number].items()
            }
    return {**state, "state": grown}


def _start(name: str, group: Mapping[str, Any]) -> float:
    """Return what a new row's state begins with."""
    return float(group.get("initial_accumulator_value", 0.0)) if name == "sum" else 0.0
