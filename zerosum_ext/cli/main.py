"""The command ``zerosum-ext``: parse, call the library, print.

What this module and the files of commands import at their top must be light: ``--help``, ``--version`` and completion
answer before torch is loaded. tests/test_cli.py holds that.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from zerosum_ext._version import __version__
from zerosum_ext.cli import (
    compare,
    completion,
    demo,
    doctor,
    evaluate,
    gradcheck,
    recommend,
    report,
    reproduce,
    shard,
    train,
)
from zerosum_ext.cli.parser import LEVELS, Parser
from zerosum_ext.data import wording

__all__ = ["main"]

# A new command is a file of this folder with add_to(commands), and its name here.
_COMMANDS = (doctor, demo, gradcheck, train, compare, report, evaluate, recommend, reproduce, shard)
_EPILOG = """\
start here: zerosum-ext demo, or zerosum-ext train YOUR_FILE.csv

exit status:
  0    done
  1    something is missing (doctor), or differs (gradcheck)
  2    bad input, or a file that cannot be read or written: one line on stderr says what
  130  interrupted by Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``zerosum-ext`` with the given arguments (by default those of the process) and return the exit status.

    0: done. 1: ``doctor`` found something missing, or ``gradcheck`` a difference. 2: bad input, with one line on
    stderr. 130: Ctrl-C.
    """
    parser = _parser()
    given = list(sys.argv[1:] if argv is None else argv)
    if not given:
        parser.print_help()
        return 0
    arguments, unknown = parser.parse_known_args(given)
    if unknown:
        arguments.parser.refuse(unknown)
    if getattr(arguments, "preset", None):
        arguments.parser.set_defaults(**train.preset_defaults(arguments))
        arguments = parser.parse_args(given)  # explicit options override the preset
    arguments.argv = given
    with wording.command_line(), _logging(arguments):
        return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt as interrupt:
        print(f"zerosum-ext: interrupted{interrupt}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        text = _said(error)
        if text is None:
            raise
        logging.getLogger(__name__).debug("where the error was raised:", exc_info=True)
        print(f"zerosum-ext: error: {arguments.parser.worded(' '.join(text.split()))}", file=sys.stderr)
        return 2


def _said(error: Exception) -> str | None:
    """Return what an error tells the user, or None where it is a fault of the program."""
    from zerosum_ext._checks import out_of_memory

    if out_of_memory(error):
        said = str(error).rpartition("CPUAllocator: ")[2]
        return f"there is not enough memory{': ' if said else ''}{said}"
    if isinstance(error, RuntimeError):
        return None
    named = isinstance(error, OSError) and error.filename is not None and error.strerror
    return f"{error.filename}: {error.strerror}" if named else str(error)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _logging(arguments: argparse.Namespace) -> Iterator[None]:
    """Write what the library logs to stderr, down to the level that is asked for."""
    level = "warning" if getattr(arguments, "quiet", False) else "info"
    level = arguments.log_level or level
    handler = logging.StreamHandler(sys.stderr)
    detailed = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(logging.Formatter(detailed if level == "debug" else "%(message)s"))
    logger = logging.getLogger("zerosum_ext")
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _parser() -> Parser:
    parser = Parser(
        prog="zerosum-ext",
        description="Recommenders that do not just push what is popular.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"zerosum-ext {__version__}")
    completion.add_to(parser)
    commands: Any = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    for one in commands.choices.values():
        one.add_argument(
            "--log-level",
            choices=LEVELS,
            help="what is said on stderr (default: info, or warning with --quiet); debug also says where errors come "
            "from",
        )
        one.set_defaults(parser=one)
    return parser
