"""The list of mistakes of ``make mutate`` follows the sources."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import mutate  # noqa: E402


def test_every_mistake_can_be_made_once_and_names_tests_that_exist():
    mistakes = mutate.read()
    assert len(mistakes) >= 60
    assert len({mistake.name for mistake in mistakes}) == len(mistakes)
    for mistake in mistakes:
        text = (ROOT / mistake.file).read_text(encoding="utf-8")
        assert mistake.mutated(text) != text
        for test in mistake.tests:
            assert (ROOT / test.partition("::")[0]).is_file()


def test_a_mistake_that_cannot_be_made_is_named():
    mistake = mutate.Mutation("x", "setup.py", "no such text", "y", ())
    with pytest.raises(ValueError, match=r"occurs 0 times in setup\.py"):
        mistake.mutated("text")
