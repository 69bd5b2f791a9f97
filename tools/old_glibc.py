#!/usr/bin/env python
"""Make what a library is linked against to run on an older glibc than this machine's, and print the LDFLAGS for it.

LDFLAGS=$(python tools/old_glibc.py build/glibc) pip wheel --no-build-isolation --no-deps -w dist .

The linker takes the newest version of each symbol that the C library has, so a wheel that is built on a new Linux does
not load on an old one. Zig (pip install ziglang) knows the symbols of every glibc and makes libraries of them to link
against. Published wheels are built in the manylinux_2_28 image instead; this is for machines without containers.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

# libstdc++'s headers ask this variable of glibc 2.32 whether there is one thread alone. "No" is always right.
COMPAT = '__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;\n'
NEEDED = {"libc.so.6", "libm.so.6", "libdl.so.2"}


def stubs(folder: Path, glibc: str) -> Path:
    """Make the libraries of a glibc to link against, and return their folder."""
    cache, made = folder / "cache", folder / "lib"
    made.mkdir(parents=True, exist_ok=True)
    (folder / "empty.c").write_text("int zerosum_ext_empty(void) { return 0; }\n", encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", f"{platform.machine()}-linux-gnu.{glibc}", "-shared"]
        + ["-fPIC", "-o", str(folder / "libempty.so"), str(folder / "empty.c"), "-lm", "-ldl", "-lpthread"],
        check=True,
        env={**os.environ, "ZIG_GLOBAL_CACHE_DIR": str(cache), "ZIG_LOCAL_CACHE_DIR": str(cache)},
        timeout=1200,
    )
    found = [path for path in cache.rglob("*.so.*") if path.name.startswith("lib")]
    if not {"libc.so.6", "libm.so.6", "libdl.so.2"} <= {path.name for path in found}:
        sys.exit(
            f"old_glibc: zig made {sorted(path.name for path in found)}, expected libc.so.6, libm.so.6, libdl.so.2"
        )
    for path in found:
        shutil.copy(path, made / path.name)
        shutil.copy(path, made / f"{path.name.partition('.so')[0]}.so")
    shutil.rmtree(cache)
    return made


def flags(folder: Path, glibc: str) -> list[str]:
    """Return the linker's flags for a library that shall run on a glibc."""
    libraries = stubs(folder, glibc)
    (folder / "compat.c").write_text(COMPAT, encoding="utf-8")
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    subprocess.run([*compiler, "-fPIC", "-c", "-o", str(folder / "compat.o"), str(folder / "compat.c")], check=True)
    # Until glibc 2.34, dlsym stood in a library of its own, which the flags of newer machines do not name.
    return [f"-L{libraries}", "-Wl,--no-as-needed", "-ldl", "-Wl,--as-needed", str(folder / "compat.o")]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the libraries go")
    parser.add_argument("--glibc", default="2.28", help="the oldest glibc to run on, default 2.28")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    print(shlex.join(flags(folder, arguments.glibc)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
