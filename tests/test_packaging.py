"""What is shipped: the source distribution is complete, and a release is refused as long as something is missing."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import zerosum_ext as zx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import old_glibc  # noqa: E402
import release  # noqa: E402
import try_installs  # noqa: E402

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="the sources are not here")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The names of the files in the source distribution, without its top folder.

    It is made in a copy of the sources: setuptools gathers the files in a folder beside setup.py, where two processes
    that make it at once would take each other's away.
    """
    folder = tmp_path_factory.mktemp("sdist")
    sources = folder / "sources"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", ".*cache", "build", "dist", "*.so", "*.egg-info", "__pycache__", "_build", "results"
    )
    shutil.copytree(ROOT, sources, ignore=ignored)
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder), "sdist", "-d", str(folder)]
    environment = {**os.environ, "ZEROSUM_EXT_PURE": "1"}
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("*.tar.gz")
    assert archive.name == f"zerosum_ext-{zx.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


@pytest.mark.parametrize(
    ("folder", "suffixes"),
    [
        ("csrc", (".h", ".cpp", ".cu", ".cuh", ".c")),
        ("zerosum_ext", (".py", ".typed")),
        ("tests", (".py", ".cpp", ".h", ".safetensors", ".csv", ".json")),
        ("docs", (".md", ".png")),
        ("tools", (".py", ".toml")),
        ("examples", (".py",)),
    ],
)
def test_the_source_distribution_has_all_sources(sdist, folder, suffixes):
    built = ROOT / "docs" / "_build"
    here = {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and built not in path.parents and "__pycache__" not in path.parts
    }
    assert here
    assert here - sdist == set()


def test_the_source_distribution_has_nothing_that_was_built(sdist):
    assert not [name for name in sdist if name.endswith((".so", ".pyc", ".o")) or "/_build/" in name]
    assert {"Makefile", "CHANGELOG.md", "CITATION.cff", "LICENSE", "README.md", "setup.py", "pyproject.toml"} <= sdist
    assert "csrc/common/losses.h" in sdist


def test_the_citation_has_the_version():
    assert re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == zx.__version__


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("compiler", r"no C\+\+ compiler was found \('c\+\+'.*g\+\+, or set ZEROSUM_EXT_PURE=1"),
        ("CXX", r"no C\+\+ compiler was found \('no-such-compiler -O1'.*ZEROSUM_EXT_PURE=1"),
        ("headers", r"headers of Python are not in .*python3-dev.*ZEROSUM_EXT_PURE=1"),
    ],
)
def test_a_build_without_its_tools_says_what_to_do(missing, said, monkeypatch, tmp_path):
    monkeypatch.delenv("ZEROSUM_EXT_PURE", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("setuptools.setup", lambda **_: pytest.fail("setup.py went on"))
    if missing == "CXX":
        monkeypatch.setenv("CXX", "no-such-compiler -O1")
    elif missing == "compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        (tmp_path / "c++").write_text("#!/bin/sh\n")
        (tmp_path / "c++").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(SystemExit, match=said):
        runpy.run_path(str(ROOT / "setup.py"))


def test_nothing_is_needed_to_install_without_kernels(monkeypatch, tmp_path):
    monkeypatch.setenv("ZEROSUM_EXT_PURE", "1")
    monkeypatch.setenv("PATH", str(tmp_path))
    called = []
    monkeypatch.setattr("setuptools.setup", lambda **settings: called.append(settings))
    runpy.run_path(str(ROOT / "setup.py"))
    assert called[0]["ext_modules"] == []


@pytest.mark.parametrize("where", ["PATH", "beside Python", "nowhere"])
def test_ninja_is_found_on_path_or_beside_python(where, monkeypatch, tmp_path):
    """pip may be called by its path, as the Dockerfile does: then PATH does not know the folder of its commands."""
    folders = {name: tmp_path / name for name in ("PATH", "beside Python")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "python").write_text("")
        if name == where:
            (folder / "ninja").write_text("#!/bin/sh\n")
            (folder / "ninja").chmod(0o755)
    monkeypatch.setenv("ZEROSUM_EXT_PURE", "1")
    monkeypatch.setenv("PATH", str(folders["PATH"]))
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    has_ninja = runpy.run_path(str(ROOT / "setup.py"))["has_ninja"]
    monkeypatch.setattr(sys, "executable", str(folders["beside Python"] / "python"))
    assert has_ninja() is (where != "nowhere")
    found = shutil.which("ninja")
    assert found == (None if where == "nowhere" else str(folders[where] / "ninja"))
    assert os.environ["PATH"].split(os.pathsep)[0] == str(folders["PATH"])


@pytest.mark.parametrize(("name", "tag"), [("cu130", "+cu130"), ("cu128.gds", "+cu128.gds"), ("", None)])
def test_a_variant_ends_the_version(name, tag, monkeypatch):
    monkeypatch.setenv("ZEROSUM_EXT_PURE", "1")
    monkeypatch.setenv("ZEROSUM_EXT_VARIANT", name)
    called = []
    monkeypatch.setattr("setuptools.setup", lambda **settings: called.append(settings))
    runpy.run_path(str(ROOT / "setup.py"))
    assert called[0]["options"].get("egg_info", {}).get("tag_build") == tag


def test_a_variant_that_no_version_may_have_is_refused(monkeypatch):
    monkeypatch.setenv("ZEROSUM_EXT_PURE", "1")
    monkeypatch.setenv("ZEROSUM_EXT_VARIANT", "cu-13_0")
    monkeypatch.setattr("setuptools.setup", lambda **_: pytest.fail("setup.py went on"))
    with pytest.raises(SystemExit, match="ZEROSUM_EXT_VARIANT='cu-13_0': expected"):
        runpy.run_path(str(ROOT / "setup.py"))


def test_only_the_ways_that_need_a_wheel_build_one(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(try_installs, "make", lambda *_: None)
    monkeypatch.setattr(try_installs, "build", lambda *_: built.append(1) or (tmp_path / "x.whl", WHEEL))
    for options, builds, keys in (
        (["--ways", "sdist", "pure"], 0, ["sdist", "pure"]),
        (["--ways", "wheel"], 1, ["wheel"]),
        (["--ways", "pure", "--also", "python3.10=torch==2.11.0"], 1, ["pure", "wheel python3.10 torch==2.11.0"]),
        ([], 1, ["wheel", "sdist", "source", "isolated", "pure", "without-compiler"]),
    ):
        built.clear()
        _, todo = try_installs.tries(try_installs.parser().parse_args(["x.tar.gz", *options]), tmp_path)
        assert (len(built), [name for name, *_ in todo]) == (builds, keys)
    with pytest.raises(SystemExit, match=r"expected ways among wheel, sdist.*got boat"):
        try_installs.tries(try_installs.parser().parse_args(["x.tar.gz", "--ways", "boat"]), tmp_path)


def test_what_was_tried_is_kept_one_way_at_a_time(monkeypatch, tmp_path):
    results, page = tmp_path / "installs.json", tmp_path / "installing.md"
    monkeypatch.setattr(try_installs, "RESULTS", results)
    monkeypatch.setattr(try_installs, "PAGE", page)
    page.write_text("# Installing\n\nno place\n")
    record = {"what": "a way", "python": "3.12.1", "torch": "2.13.0", "seconds": {}}
    with pytest.raises(SystemExit, match="--save the way 'wheel' first"):
        try_installs.save(None, {"sdist": record})
    with pytest.raises(ValueError, match="has no place for the table"):
        try_installs.save(WHEEL, {"wheel": record})
    page.write_text(f"before\n{try_installs.BEGIN}\nold\n{try_installs.END}\nafter\n")
    try_installs.save(None, {"sdist": {**record, "what": "another way"}})
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert f"| a way | 3.12.1 | 2.13.0 | {zx.__version__} | " in text
    assert "| another way | 3.12.1 |" in text
    assert "| wheel for manylinux_2_28_x86_64 | 2.00 |" in text


@pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("readelf"), reason="needs gcc and readelf")
def test_a_library_for_an_older_glibc_has_its_own_answer_to_what_that_lacks(tmp_path, monkeypatch):
    """Nothing is left to be found, when it is loaded, of a variable that glibc has since 2.32 alone."""
    monkeypatch.setattr(old_glibc, "stubs", lambda folder, glibc: folder)
    monkeypatch.setenv("CC", "gcc")
    flags = old_glibc.flags(tmp_path, "2.28")
    assert flags[0] == f"-L{tmp_path}"
    assert flags.index("-Wl,--no-as-needed") < flags.index("-ldl") < flags.index("-Wl,--as-needed")
    source = tmp_path / "x.c"
    source.write_text("extern char __libc_single_threaded; int alone(void) { return __libc_single_threaded; }\n")
    command = ["gcc", "-shared", "-fPIC", "-o", str(tmp_path / "x.so"), str(source), *flags]
    subprocess.run(command, check=True, timeout=60)
    said = subprocess.run(
        ["readelf", "--dyn-syms", "-W", str(tmp_path / "x.so")], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert "alone" in said
    assert "single_threaded" not in said


WHEEL = {
    "sdist": {"name": "a.tar.gz", "archive": 1_000_000},
    "wheel": {"name": "a.whl", "archive": 2_000_000},
    "repaired": {
        "name": "b-1.0-cp310-abi3-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "archive": 2_000_000,
        "_C.abi3.so": 4_000_000,
    },
    "abi3": [],
    "build_seconds": 240.0,
}
TEXT = "# Changelog\n\n## [Unreleased]\n\n- A thing.\n\n## [1.0.0] - 2026-01-01\n\n- Another.\n"


def test_a_release_takes_what_is_unreleased():
    assert release.section(TEXT, "Unreleased") == "- A thing."
    done = release.released(TEXT, "1.1.0", "2026-02-01")
    assert release.section(done, "Unreleased") == ""
    assert release.section(done, "1.1.0") == "- A thing."
    assert release.section(done, "1.0.0") == "- Another."
    assert release.section(done, "1.0") is None
    with pytest.raises(ValueError, match=r"a section \[1.0.0\] already"):
        release.released(TEXT, "1.0.0", "2026-02-01")


def test_a_release_is_refused_as_long_as_something_is_missing(tmp_path):
    def git(*arguments):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=20)

    git("init")
    (tmp_path / "CITATION.cff").write_text("version: 1.0.0\n")
    git("add", ".")
    found = "\n".join(release.obstacles(tmp_path, "1.1", TEXT))
    for said in ("such as 1.2.3, got 1.1", "unreleased lines", "no section [1.1]", "got 1.0.0", "not committed"):
        assert said in found
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "x")
    text = release.released(TEXT.replace("1.0.0", "0.9.0"), "1.0.0", "2026-02-01")
    assert release.obstacles(tmp_path, "1.0.0", text) == []
    git("tag", "v1.0.0")
    assert release.obstacles(tmp_path, "1.0.0", text) == ["git: the tag v1.0.0 is there already"]
    (found, _) = release.obstacles(tmp_path, "1.0.0", TEXT)
    assert "beside a section [1.0.0]: move them there or raise the version" in found
