"""What all ops share: where they have kernels, and callables and fake kernels that follow from their schemas.

A fake kernel tells shapes and dtypes without data, for torch.compile and torch.export.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

from zerosum_ext import _library

P = ParamSpec("P")
R = TypeVar("R")

#: Numbers of the reductions, as csrc/common/losses.h counts them.
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}


def _kernels(library: _library.Library, key: str) -> frozenset[str]:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(op for op in _library.OPS if library.loaded and has(f"zerosum_ext::{op}", key))


#: Ops that have a compiled kernel, for each type of device. has_op asks here, so that a test may take kernels away.
KERNELS = {"cpu": _kernels(_library.CPU, "CPU"), "cuda": _kernels(_library.CUDA, "CUDA")}
#: Why the CUDA kernels cannot run on a GPU, by its number, once that has been asked; "" where they can.
GPU_OBSTACLES: dict[int | None, str] = {}


def gpu_obstacle(index: int | None) -> str:
    """Return why the CUDA kernels cannot run on this GPU, or "" if they can. Warn once of each GPU.

    Args:
        index: the number of the GPU, or None for the current one. A GPU that does not exist, or that is asked for
            before CUDA was first used, can only be that of a fake tensor, for which the kernels "run".
    """
    known = GPU_OBSTACLES.get(index)
    if known is not None:
        return known
    if index is None and torch.cuda.is_available():
        return gpu_obstacle(torch.cuda.current_device())
    if index is None or not torch.cuda.is_initialized() or index >= torch.cuda.device_count():
        return ""
    GPU_OBSTACLES[index] = obstacle = _library.gpu_obstacle(index)
    if obstacle:
        message = f"zerosum_ext runs on plain PyTorch there, slowly: {obstacle}"
        warnings.warn(f"{message}. To mend it: {_library.gpu_remedy(index)}", RuntimeWarning, stacklevel=2)
    return obstacle


# What torch.compiler.assume_constant_result does, without the second that it takes to import the compiler. The function
# is called while a graph is traced, and is not part of the graph.
gpu_obstacle.__dict__["_dynamo_marked_constant"] = True


def has_op(name: str, device: torch.device) -> bool:
    """Return whether the op has a compiled kernel for tensors of this device. If not, its definition is evaluated."""
    kind = device.type
    return name in KERNELS.get(kind, ()) and (kind != "cuda" or not gpu_obstacle(device.index))


def capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured there.

    What is made then must not be kept: it lies in the graph's memory, and only a replay writes its numbers.
    """
    # Without CUDA, or before it is used, the tensors are fake and torch cannot answer.
    return device.type == "cuda" and torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def finish(device: torch.device) -> None:
    """Wait for what was begun on a GPU's current stream.

    This is for what is made once and kept where nobody sees it: another stream may be the next one to use it, and does
    not know whom to wait for.
    """
    if device.type == "cuda" and torch.cuda.is_initialized() and not capturing(device):
        torch.cuda.current_stream(device).synchronize()


def overload(name: str) -> Callable[..., Any]:
    """Return the compiled op itself. A cached overload saves the dispatcher's look-up: about 1 us a call."""
    if _library.CPU.loaded:
        op: Callable[..., Any] = getattr(torch.ops.zerosum_ext, name).default
        return op

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{name}: {_library.CPU.reason}. To mend it: {_library.CPU.remedy}")

    return missing


def kernel_or_definition(name: str, definition: Callable[P, R]) -> Callable[P, R]:
    """Return the op as a function: its kernel where the first tensor's device has one, else its definition.

    The definition takes the arguments of the op's schema, in that order; tests/test_ops.py compares the two.
    """
    kernel = overload(name)

    @functools.wraps(definition)
    def op(*args: P.args, **kwargs: P.kwargs) -> R:
        first: Any = args[0]
        if has_op(name, first.device):
            result: R = kernel(*args, **kwargs)
            return result
        return definition(*args, **kwargs)

    return op


def fake_kernel(
    name: str, *, elsewhere: tuple[str, ...] = ()
) -> Callable[[Callable[[SimpleNamespace], Any]], Callable[[SimpleNamespace], Any]]:
    """Register a function as the op's fake kernel; it gets the arguments by the names of the op's schema.

    Args:
        name: of the op.
        elsewhere: tensors that may be on another device than the first one. All others are checked.
    """

    def register(function: Callable[[SimpleNamespace], Any]) -> Callable[[SimpleNamespace], Any]:
        if not _library.CPU.loaded:
            return function
        arguments = getattr(torch.ops.zerosum_ext, name).default._schema.arguments
        names = [argument.name for argument in arguments]
        defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}

        def fake(*args: Any, **kwargs: Any) -> Any:
            given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
            tensors = {n: given[n] for n in names if isinstance(given.get(n), Tensor) and n not in elsewhere}
            _check_devices(tensors)
            return function(SimpleNamespace(**given))

        torch.library.register_fake(f"zerosum_ext::{name}", fake)
        return function

    return register


def _check_devices(tensors: dict[str, Tensor]) -> None:
    if not tensors:  # the op takes lists alone
        return
    (first_name, first), *others = tensors.items()
    for name, other in others:
        message = f"{first_name} is on {first.device}, {name} on {other.device}: expected one device"
        torch._check(first.device == other.device, lambda message=message: message)
