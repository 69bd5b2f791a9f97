"""How files are written, and folders locked."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

import zerosum_ext as zx
from zerosum_ext import _files
from zerosum_ext._files import LOCK, locked, read_text, replacing, same_name, write_text

posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and locks are those of POSIX")


def start(code: str, *arguments: object, **options: object) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **options)


def test_writers_of_one_file_do_not_tear_it(tmp_path):
    target = tmp_path / "numbers"

    def write(digit: str) -> None:
        for _ in range(50):
            write_text(target, digit * 10_000)

    threads = [threading.Thread(target=write, args=(digit,)) for digit in "0123"]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if target.exists():
            seen.add(read_text(target))
    for thread in threads:
        thread.join()
    seen.add(read_text(target))
    assert all(len(set(text)) == 1 and len(text) == 10_000 for text in seen)
    assert [p.name for p in tmp_path.iterdir()] == ["numbers"]


@posix
def test_no_link_is_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("target", "target.part"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "target", "new")
    assert victim.read_text() == "mine"
    assert (tmp_path / "target").read_text() == "new"
    assert not (tmp_path / "target").is_symlink()


@posix
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "text", "x")
        model = zx.MatrixFactorization(3, 4, 2, seed=0)
        model.save(tmp_path / "model.safetensors")
        with replacing(tmp_path / "tensor") as part:
            torch.save(torch.ones(2), part)
    finally:
        os.umask(before)
    for name in ("text", "model.safetensors", "tensor"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask


@posix
@pytest.mark.parametrize("limit", [0, 1, 4096, 100_000, 199_999])
def test_a_full_disk_leaves_what_was_there(tmp_path, limit):
    target = tmp_path / "data"
    target.write_text("before")
    # A limit on the size of files stands in for the disk's end: it stops a write in the middle in the same way.
    # Python ignores the signal that comes with it, and so it stays for the tests after this one.
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="data") as error:
            write_text(target, "x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value)
    assert target.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


# Mounts a disk of argv[2] bytes at argv[1]. What follows fills it, and ends with 0 if the error is the right one.
OWN_DISK = """
import ctypes, sys
libc = ctypes.CDLL(None)
if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):
    sys.exit(3)
if libc.mount(b"tmpfs", sys.argv[1].encode(), b"tmpfs", 0, b"size=" + sys.argv[2].encode()):
    sys.exit(3)
"""
MAPPED = """
from zerosum_ext.training import parts
import torch
with open(sys.argv[1] + "/before", "w") as file:
    file.write("before")
try:
    with parts.replacing(sys.argv[1] + "/model") as part:
        for table in parts._mapped(part, {"table": ((1000, 64), torch.float32)}, {"model_file": {}}).values():
            table.fill_(1.0)
except OSError as error:
    assert "No space left" in str(error) and "model" in str(error) and "\\n" not in str(error)
    assert [p.name for p in parts.Path(sys.argv[1]).iterdir()] == ["before"]
    sys.exit(0)
sys.exit(1)
"""
BY_TORCH = """
import torch
from zerosum_ext.training.checkpoint import write_checkpoint
file = sys.argv[1] + "/run.pt"
try:
    write_checkpoint(file, {"table": torch.zeros(1000, 1000)}, {})
except OSError as error:
    assert str(error) == f"[Errno 28] No space left on device: {file!r}", error
    sys.exit(0)
sys.exit(1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a disk of its own is a thing of Linux")
@pytest.mark.parametrize(("code", "size"), [(MAPPED, "64k"), (BY_TORCH, "300k")], ids=["mapped", "by torch"])
def test_a_full_disk_does_not_end_the_process_and_is_said_to_be_full(code, size, tmp_path):
    process = start(OWN_DISK + code, tmp_path, size)
    if process.wait(60) == 3:
        pytest.skip("mounting a disk needs root")
    assert process.returncode == 0


def test_a_writer_that_fails_with_room_left_is_quoted(tmp_path):
    with pytest.raises(OSError, match=r"file cannot be written: ValueError$"), replacing(tmp_path / "file", ValueError):
        raise ValueError
    with pytest.raises(OSError, match=r"file cannot be written: the end$"), replacing(tmp_path / "file", ValueError):
        raise ValueError("a trace\nthe end")


def test_a_folder_that_vanished_is_named(tmp_path):
    with pytest.raises(OSError, match="gone") as error, replacing(tmp_path / "gone" / "file"):
        pass
    assert isinstance(error.value, FileNotFoundError)
    assert "part" not in str(error.value)


def test_an_error_of_the_writer_leaves_no_file(tmp_path):
    def write() -> None:
        with replacing(tmp_path / "file") as part:
            Path(part).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_text_is_utf8_whatever_the_locale(tmp_path):
    code = (
        "import sys; from zerosum_ext._files import *\n"
        "text = 'Gr\\xf6\\xdfe \\u5008'; write_text(sys.argv[1], text); assert read_text(sys.argv[1]) == text"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    child = start(code, tmp_path / "text", env=env, cwd=tmp_path, stderr=subprocess.PIPE)
    assert child.wait() == 0, child.stderr.read()
    assert (tmp_path / "text").read_bytes() == "Größe 倈".encode()


def test_text_that_is_no_text_is_refused_with_its_place(tmp_path):
    (tmp_path / "text").write_bytes(b"ab\xff")
    with pytest.raises(ValueError, match=r"text is not UTF-8 text: byte 2"):
        read_text(tmp_path / "text")
    with pytest.raises(ValueError, match="not written"):
        write_text(tmp_path / "other", "a\ud800")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("one", "other"), [("BPR.json", "bpr.json"), ("\u00e9", "e\u0301"), ("STRASSE", "stra\u00dfe")]
)
def test_names_that_some_file_system_takes_for_one(one, other):
    assert same_name(one) == same_name(other)
    assert same_name("a") != same_name("b")


# ---- locks

HOLD = """
import sys
from zerosum_ext._files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@posix
def test_a_lock_names_its_owner_and_dies_with_it(tmp_path):
    folder = tmp_path / "run"
    child = start(HOLD, folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path)
    assert child.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"run is in use by process {child.pid} on "), locked(folder):
        pass
    child.kill()
    child.wait()
    with locked(folder):
        pass
    assert list(folder.iterdir()) == []


def test_a_lock_holds_within_one_process_too(tmp_path):
    with locked(tmp_path), pytest.raises(ValueError, match="in use by this process"), locked(tmp_path):
        pass
    with locked(tmp_path):  # and was given back
        pass


@posix
def test_a_lock_removes_what_a_killed_writer_left(tmp_path):
    code = (
        "import os, sys; from zerosum_ext._files import *\n"
        "with replacing(sys.argv[1]) as part:\n    open(part, 'w').write('half'); os.kill(os.getpid(), 9)"
    )
    assert start(code, tmp_path / "file", cwd=tmp_path).wait() == -signal.SIGKILL
    assert len(list(tmp_path.glob(".file.*.part"))) == 1
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@posix
def test_a_lock_on_a_file_that_its_owner_removed_does_not_count(tmp_path, monkeypatch):
    lockf, file = _files.fcntl.lockf, tmp_path / LOCK

    def owner_ends_just_before(descriptor: int, flags: int) -> None:
        monkeypatch.setattr(_files.fcntl, "lockf", lockf)
        file.unlink()
        lockf(descriptor, flags)

    monkeypatch.setattr(_files.fcntl, "lockf", owner_ends_just_before)
    with locked(tmp_path):
        assert file.read_text().startswith(f"process {os.getpid()} on ")  # whoever comes next meets this one


@posix
def test_two_processes_never_hold_one_lock(tmp_path):
    # Both take and give back as fast as they can; whoever holds it makes a file that must not be there yet.
    code = """
import os, sys, time
from zerosum_ext._files import locked
folder, mark = sys.argv[1], sys.argv[2]
held, end = 0, time.monotonic() + 2
while time.monotonic() < end:
    try:
        with locked(folder):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            os.unlink(mark)
            held += 1
    except ValueError:
        pass
assert held > 0
"""
    children = [start(code, tmp_path / "run", tmp_path / "mark", cwd=tmp_path) for _ in range(3)]
    assert [child.wait(600) for child in children] == [0, 0, 0]
