"""Runs the CUDA kernels of csrc/cuda on the host: compiles them with a C++ compiler against an emulator.

``load(topic)`` compiles ``tests/cuda_on_host/<topic>.cpp``, a table of launchers, and returns a `Kernels`
whose attributes are those launchers. They take torch CPU tensors (or None) and numbers, and write into the
tensors they are given. What is compiled is kept in ``build/cuda_on_host`` under a hash of all that went into it.

``with kernels.count() as counts`` tells afterwards which launches (and memsets) were made, and, of the kernels that
``load(topic, "count")`` returns, how many bytes they moved.

Environment
  CUDA_ON_HOST_SANITIZE=asan   compile the kernels with ASan and UBSan (Python must then run under LD_PRELOAD:
                               see sanitize.py)
  CUDA_ON_HOST_RECORD=DIR      record small calls to DIR/<topic>.calls for replay.cpp, at most
                               CUDA_ON_HOST_RECORD_PER_KIND (3) of one launcher with the same dtypes
  CUDA_ON_HOST_BUILD=DIR       compile there instead of build/cuda_on_host
  CXX                          the compiler (default g++)
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import shutil
import struct
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent.resolve()
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"

# The order is that of hostcall::DType.
DTYPES = ("float32", "float64", "float16", "bfloat16", "uint8", "int16", "int32", "int64", "bool")

COMMON_FLAGS = (
    *(
        "-std=c++17",
        "-fPIC",
        "-fvisibility=hidden",
        "-fno-strict-aliasing",
        "-fno-math-errno",
        "-ffp-contract=off",
    ),
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function"),
)
# What the kernels are compiled with; the emulator itself is never sanitized, only told of it.
KERNEL_FLAGS = {
    "plain": ("-O2",),
    "asan": (
        *("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
        "-fno-omit-frame-pointer",
    ),
    "tsan": ("-O1", "-g1", "-fsanitize=thread"),
    # The calls that a compiler puts at each access for ThreadSanitizer, answered by counting.cpp.
    "count": ("-O2", "-fsanitize=thread"),
}
EMULATOR_FLAGS = {
    "plain": (),
    "asan": ("-DCUEMU_ASAN",),
    "tsan": ("-DCUEMU_TSAN",),
    "count": ("-DCUEMU_COUNT",),
}

# Recorded calls are few and small: under ThreadSanitizer a thread costs between 6 us (clang) and .5 ms (gcc).
RECORD_THREADS = 4096
RECORD_PER_KIND = int(os.environ.get("CUDA_ON_HOST_RECORD_PER_KIND") or 3)


class BuildError(RuntimeError):
    """The compiler refused a source; the message is the compiler's."""


def compiler() -> str | None:
    """The C++ compiler's path, or None where there is none."""
    return shutil.which(os.environ.get("CXX") or "g++")


def missing() -> str | None:
    """Why kernels cannot be compiled here, or None if they can."""
    if compiler() is None:
        return "no C++ compiler (g++) on PATH"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        return "Python's headers (python3-dev) are not installed"
    return None


def build_folder() -> Path:
    """Where everything compiled is kept."""
    return Path(os.environ.get("CUDA_ON_HOST_BUILD") or ROOT / "build" / "cuda_on_host")


@functools.cache
def _version(cxx: str) -> str:
    return subprocess.run([cxx, "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def _headers() -> bytes:
    """Everything that a source may include, as one string of bytes."""
    files = [*CSRC.glob("common/*.h"), *CSRC.glob("cuda/*.h"), *CSRC.glob("cuda/*.cuh"), *HERE.glob("*.h")]
    return b"".join(p.name.encode() + b"\0" + p.read_bytes() for p in sorted(files))


def _cached(name: str, suffix: str, command: list[str], inputs: list[bytes]) -> Path:
    """Runs ``command -o PATH`` unless it was run before with the same inputs; returns PATH."""
    digest = hashlib.sha256()
    for part in ["\0".join(command).encode(), _version(command[0]).encode(), *inputs]:
        digest.update(len(part).to_bytes(8, "little") + part)
    path = build_folder() / f"{name}-{digest.hexdigest()[:20]}{suffix}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Renamed into place, so that two test processes may build at once.
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
        if done.returncode:
            raise BuildError(f"{' '.join(command)}\n{done.stderr}")
        partial.rename(path)
    return path


def _object(source: str, flags: tuple[str, ...], includes: tuple[str, ...] = ()) -> Path:
    path = HERE / source
    command = [
        compiler() or "g++",
        *COMMON_FLAGS,
        *flags,
        f"-I{CSRC}",
        f"-I{HERE}",
        *includes,
        "-c",
        str(path),
    ]
    return _cached(path.stem, ".o", command, [path.read_bytes(), _headers()])


def _link(name: str, suffix: str, objects: list[Path], flags: list[str]) -> Path:
    command = [compiler() or "g++", *flags, *map(str, objects)]
    return _cached(name, suffix, command, [])  # objects are named by what went into them


def build_program(source: str, kind: str, topic: str | None = None) -> Path:
    """Compiles a program of this folder: ``bugs.cpp``, or ``replay.cpp`` with the functions of a topic.

    ``kind`` is plain, asan or tsan.
    """
    objects = [
        _object("cuda_emulator.cpp", ("-O2", *EMULATOR_FLAGS[kind])),
        _object(source, KERNEL_FLAGS[kind]),
    ]
    if topic is not None:
        objects.append(_object(f"{topic}.cpp", KERNEL_FLAGS[kind]))
    sanitizers = [f for f in KERNEL_FLAGS[kind] if f.startswith("-fsanitize")]
    return _link(f"{Path(source).stem}-{topic or ''}{kind}", "", objects, sanitizers)


def build_module(topic: str, kind: str, headers: Path | None = None) -> Path:
    """Compiles the functions of ``<topic>.cpp`` into a Python module; ``kind`` is plain, asan or count.

    A header of csrc that ``headers`` has as well is taken from there.
    """
    import pybind11

    # (A header of csrc/common names its neighbours without their folder.)
    changed = () if headers is None else (f"-iquote{headers}", f"-iquote{CSRC / 'common'}")
    names = changed if headers is not None and (headers / "common" / "losses.h").exists() else ()
    python = (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}")
    objects = [
        _object("cuda_emulator.cpp", ("-O2", *EMULATOR_FLAGS[kind])),
        _object("module.cpp", ("-O1", *(EMULATOR_FLAGS[kind] if kind == "count" else ())), (*python, *names)),
        _object(f"{topic}.cpp", KERNEL_FLAGS[kind], changed),
    ]
    sanitizers = [f for f in KERNEL_FLAGS[kind] if f.startswith("-fsanitize")]
    if kind == "count":
        objects.append(_object("counting.cpp", ("-O2",)))
        sanitizers = []
    return _link(f"{topic}-{kind}", ".so", objects, ["-shared", *sanitizers])


def topics() -> list[str]:
    """Every topic that has kernels: the sources here which fill the table of host_call.h."""
    own = {"counting", "cuda_emulator", "module", "replay", "bugs"}
    return sorted(p.stem for p in HERE.glob("*.cpp") if p.stem not in own)


@dataclass(frozen=True)
class Node:
    """What would be a node of a CUDA graph: the launch of a kernel, or a memset."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    cluster: int  # blocks of a cluster, 1 where there are none
    shared: int  # bytes of dynamic shared memory; of a memset, its bytes


@dataclass
class Counts:
    """The launches of a `with` block, and the bytes that they moved (0 unless the kernels count them)."""

    nodes: list[Node] = field(default_factory=list)
    loaded: int = 0  # bytes that instructions ask for, in the tensors of the calls
    stored: int = 0
    sectors_loaded: int = 0  # sectors of 32 bytes, each once a launch: what moves between memory and a perfect cache
    sectors_stored: int = 0
    loads: int = 0  # instructions of threads that load from the tensors
    warp_loads: int = 0  # those of each warp's busiest thread, which the others wait for

    @property
    def moved(self) -> int:
        """Bytes between memory and a perfect cache."""
        return 32 * (self.sectors_loaded + self.sectors_stored)


class Kernels:
    """The launchers of one topic, as attributes that take torch CPU tensors, None and numbers."""

    def __init__(self, topic: str, module: ModuleType, recorded: bool = True) -> None:
        self._topic = topic
        self._record = recorded
        self._module = module
        self._recorded: Counter[tuple[Any, ...]] = Counter()

    def loss_names(self) -> list[str]:
        """The losses in the order of their numbers, as the kernels were compiled with."""
        return self._module.loss_names()

    def __dir__(self) -> list[str]:
        return self._module.names()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._module.names():
            raise AttributeError(f"no launcher {name!r} in {self._topic}; there are {self._module.names()}")
        return functools.partial(self._call, name)

    @contextlib.contextmanager
    def count(self) -> Iterator[Counts]:
        """Counts the launches inside the block; what was counted is there at its end."""
        counts = Counts()
        self._module.forget()
        yield counts
        counts.nodes = [Node(*node) for node in self._module.nodes()]
        if (counted := self._module.bytes()) is not None:
            counts.loaded, counts.stored, counts.sectors_loaded, counts.sectors_stored, *rest = counted
            counts.loads, counts.warp_loads = rest

    def _call(self, name: str, *args: Any) -> None:
        described = [_describe(a) for a in args]
        folder = os.environ.get("CUDA_ON_HOST_RECORD") if self._record else None
        record = _serialise(name, args) if folder else b""  # before the call: it overwrites what it is given
        before = self._module.threads_run()
        self._module.call(name, *described)
        if folder and 0 < self._module.threads_run() - before <= RECORD_THREADS:
            key = (name, *[getattr(a, "dtype", type(a)) for a in args])
            self._recorded[key] += 1
            if self._recorded[key] <= RECORD_PER_KIND:
                with open(Path(folder, f"{self._topic}.calls"), "ab") as out:
                    out.write(record)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "data_ptr")


def _code(tensor: Any) -> int:
    return DTYPES.index(str(tensor.dtype).removeprefix("torch."))


def _describe(value: Any) -> Any:
    if not _is_tensor(value):
        return value
    if value.device.type != "cpu":
        raise ValueError(f"expected a CPU tensor, got one on {value.device}")
    # torch gives an empty tensor the null address, which here would mean None.
    return (value.data_ptr() or 16, _code(value), list(value.shape), list(value.stride()))


def _bytes(storage: Any) -> bytes:
    # bytes(storage) would fetch them one by one.
    return ctypes.string_at(storage.data_ptr(), storage.nbytes()) if storage.nbytes() else b""


def _serialise(name: str, args: tuple[Any, ...]) -> bytes:
    storages: dict[int, tuple[int, Any]] = {}
    for a in args:
        if _is_tensor(a):
            storage = a.untyped_storage()
            storages.setdefault(storage.data_ptr(), (len(storages), storage))
    out = [struct.pack("<i", len(name)), name.encode(), struct.pack("<i", len(storages))]
    for address, (_, storage) in storages.items():
        out += [struct.pack("<qq", storage.nbytes(), address % 64), _bytes(storage)]
    out.append(struct.pack("<i", len(args)))
    for a in args:
        if a is None:
            out.append(struct.pack("<iiqii", 0, -1, 0, 0, 0))
        elif _is_tensor(a):
            address = a.untyped_storage().data_ptr()
            offset = a.storage_offset() * a.element_size()
            out.append(struct.pack("<iiqii", 0, storages[address][0], offset, _code(a), a.dim()))
            out.append(struct.pack(f"<{2 * a.dim()}q", *a.shape, *a.stride()))
        elif isinstance(a, float):
            out.append(struct.pack("<id", 2, a))
        else:
            out.append(struct.pack("<iq", 1, int(a)))
    return b"".join(out)


@functools.cache
def load(topic: str, kind: str | None = None) -> Kernels:
    """Compiles (or finds) the kernels of a topic and loads them.

    ``kind`` is "count" for kernels whose bytes are counted; they run much slower. Without it they are plain, or
    sanitized as the environment says.
    """
    kind = kind or os.environ.get("CUDA_ON_HOST_SANITIZE") or "plain"
    return Kernels(topic, import_module(f"{topic}.{kind}", build_module(topic, kind)))


def import_module(name: str, path: Path) -> ModuleType:
    """Imports what :func:`build_module` has built."""
    # The last part of the name is the module's own; all of it is what pybind11 keeps the module under.
    spec = importlib.util.spec_from_file_location(f"cuda_on_host.{name}.host_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The schedules that a test of a kernel with barriers, shuffles or atomics runs under.
SCHEDULES = (
    {},
    {"CUEMU_ORDER": "1", "CUEMU_RESIDENT": "3"},
    {"CUEMU_ORDER": "2", "CUEMU_SEED": "7", "CUEMU_RESIDENT": "4"},
)


@contextlib.contextmanager
def schedule(settings: dict[str, str]) -> Iterator[None]:
    """Sets the CUEMU_* variables (see cuda_emulator.cpp) for launches inside the block."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
