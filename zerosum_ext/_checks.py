"""Argument checks shared by the public functions. Messages name the argument, the value and what was expected."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Longest list that is made for a user, most threads, and widest embedding: beyond is a slip, and memory for nothing.
MOST_K = 1 << 20
MOST_THREADS = 1024
MOST_DIM = 1 << 16


def describe(value: Any) -> str:
    """Describe a value in short, for an error message."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, which torch raises as a RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def require_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {describe(value)}")


def require_floating(name: str, value: Any) -> None:
    require_tensor(name, value)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name}: expected a floating-point tensor, got {describe(value)}")


def require_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name}: expected a tensor on {other.device}, where {other_name} is, got {describe(value)}")


def require_device(name: str, value: Any) -> torch.device:
    """Return the value as a device, or raise a ValueError if it is none or this torch sees no such GPU."""
    try:
        device = torch.device(value)
    except (RuntimeError, TypeError):
        raise ValueError(f"{name}: expected 'cpu', 'cuda' or 'cuda:N', got {value!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{name}: {str(device)!r} was asked for, but this torch sees no GPU")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise ValueError(f"{name}: {str(device)!r} was asked for, but the last GPU that this torch sees is {last}")
    return device


def require_finite_number(
    name: str, value: Any, *, minimum: float | None = None, maximum: float | None = None
) -> float:
    """Return the value as a float, or raise if it is not a finite number within the (closed) bounds."""
    number: Any = value  # which isinstance does not narrow to a type without an order
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name}: expected a number, got {describe(value)}")
    if minimum is not None and maximum is not None:
        expected = f"a number in [{minimum:g}, {maximum:g}]"
    elif minimum is not None:
        expected = f"a number >= {minimum:g}"
    else:
        expected = "a finite number"
    if (
        not -math.inf < number < math.inf  # not isfinite: torch.compile may have made a symbol of it
        or (minimum is not None and number < minimum)
        or (maximum is not None and number > maximum)
    ):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number if torch.compiler.is_compiling() else float(number)


def require_positive_int(name: str, value: Any, *, minimum: int = 1, maximum: int | None = None) -> int:
    """Return the value as an int, or raise where it is no integer within the (closed) bounds."""
    expected = f"an integer >= {minimum}" if maximum is None else f"an integer in [{minimum}, {maximum}]"
    if isinstance(value, (bool, np.bool_)) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name}: expected {expected}, got {describe(value)}")
    number = value.__index__()
    if number < minimum or (maximum is not None and number > maximum):
        raise ValueError(f"{name}: expected {expected}, got {number}")
    return int(number)


def require_ids(name: str, values: Any, size: int, device: torch.device | None = None) -> Tensor:
    """Return users or items, of which there are ``size``, as int64 numbers on ``device``.

    Args:
        values: integers of any shape (tensor, array, list, pandas Series, one number), or a mask: booleans [size].

    Raises:
        TypeError: text, fractions or objects. ValueError: a mask of another shape, a number out of range.
    """
    if type(values) is int:  # of a request, which has not much time
        if not 0 <= values < size:
            raise ValueError(f"{name}: id {values} is out of range [0, {size})")
        return torch.tensor(values, dtype=torch.int64, device=device)
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind in "OUS":
            raise TypeError(
                f"{name}: expected numbers from 0 to {size - 1}, got {describe(values)}; external ids become numbers "
                "by Interactions.encode_users and encode_items"
            )
        if array.dtype.kind not in "iubfc":
            raise TypeError(f"{name}: expected integers or a mask, got {array.dtype}")
        require_int64(name, array)
        # Torch has few unsigned dtypes, no strides below zero, and warns of arrays that cannot be written to.
        values = torch.from_numpy(np.array(array, np.int64) if array.dtype.kind in "iu" else np.array(array))
    if values.dtype == torch.bool:
        if tuple(values.shape) != (size,):
            raise ValueError(f"{name}: expected a mask of shape ({size},), got {tuple(values.shape)}")
        chosen: Tensor = values.to(device).nonzero().flatten()
        return chosen
    if values.numel() == 0:
        return torch.empty(values.shape, dtype=torch.int64, device=device)
    if values.is_floating_point() or values.is_complex():
        raise TypeError(f"{name}: expected integers or a mask, got {values.dtype}")
    index: Tensor = values.to(device=device, dtype=torch.int64)
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name}: id {low if low < 0 else high} is out of range [0, {size})")
    return index


def require_int64(name: str, array: np.ndarray) -> None:
    """Raise ValueError for a number that int64 has not."""
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        raise ValueError(f"{name}: id {array.max()} is out of range")


def require_choice(name: str, value: Any, choices: tuple[str, ...] | list[str]) -> str:
    """Return the value, or raise if it is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
    choice: str = value
    return choice


def require_index_tensor(name: str, value: Any) -> None:
    require_tensor(name, value)
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected an int32 or int64 tensor, got {describe(value)}")


def out_of_range(name: str, ids: Tensor, position: int, size: int) -> ValueError:
    """Return the error for an id that names no row: number ``position`` of the flattened ``ids``."""
    got = int(ids.reshape(-1)[position])
    return ValueError(f"{name}: expected numbers from 0 to {size - 1}, got {got} at position {position}")
