"""The command ``zerosum-ext``: parse, call the library, print. Bad input is one line on stderr and exit status 2."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from zerosum_ext.cli import demo, doctor, evaluate, gradcheck, recommend, reproduce, train
from zerosum_ext.data import wording

__all__ = ["main"]

_COMMANDS = (doctor, demo, gradcheck, train, evaluate, recommend, reproduce)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zerosum-ext`` with the given arguments (by default those of the process) and return the exit status.

    0: done. 1: ``doctor`` found something missing, or ``gradcheck`` a difference. 2: bad input, with one line on
    stderr. 130: Ctrl-C.
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    if getattr(arguments, "preset", None):
        arguments.parser.set_defaults(**train.preset_defaults(arguments))
        arguments = parser.parse_args(argv)  # explicit options override the preset
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with wording.command_line():
            return int(arguments.run(arguments))
    except KeyboardInterrupt as interrupt:
        print(f"zerosum-ext: interrupted{interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError) as error:
        named = isinstance(error, OSError) and error.filename is not None and error.strerror
        text = f"{error.filename}: {error.strerror}" if named else str(error)  # type: ignore[union-attr]
        print(f"zerosum-ext: error: {' '.join(text.split())}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """Print errors in one line. argparse would print the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="zerosum-ext", description="Recommenders that do not just push what is popular.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser
