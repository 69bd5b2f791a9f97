"""The command line, and that it never shows a traceback for bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from zerosum_ext import build_info, cli


def test_doctor(capsys):
    status = cli.main(["doctor"])
    text = capsys.readouterr().out
    info = build_info()
    assert status == (0 if info["cpu"]["loaded"] else 1)
    assert info["torch"] in text
    for part in (info["cpu"], info["cuda"]):
        if not part["loaded"]:
            assert part["remedy"] in text


def test_doctor_json_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "zerosum_ext", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert json.loads(done.stdout)["torch"] == build_info()["torch"]


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("w:\n bad"), 2), (OSError("gone"), 2), (KeyboardInterrupt(), 130)]
)
def test_errors_are_one_line(monkeypatch, capsys, error, status):
    def fail(arguments):
        raise error

    monkeypatch.setattr(cli, "_doctor", fail)
    assert cli.main(["doctor"]) == status
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_unknown_commands_exit_with_2(capsys):
    for argv in ([], ["nonsense"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 2


def test_demo(tmp_path, capsys):
    assert cli.main(["demo", "--output", str(tmp_path / "out"), "--seeds", "1", "--epochs", "1"]) == 0
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(values) == {"bpr", "pos2neg2", "zerosum"}
    assert all(set(v) == {"error", "pri", "pop_q_at_1"} for v in values.values())
    assert {"scores.png", "popq.png", "seeds.json"} <= {p.name for p in (tmp_path / "out").iterdir()}
    assert "published" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--seeds", "0"], ["--epochs", "0"], ["--weight", "1.5"], ["--weight", "nan"]])
def test_demo_refuses_bad_options(tmp_path, capsys, option):
    assert cli.main(["demo", "--output", str(tmp_path), "--epochs", "1", "--seeds", "1", *option]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
