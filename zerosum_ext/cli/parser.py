"""The parser of the command line: errors in one line, help in two levels, options that all commands have."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

__all__ = ["LEVELS", "Parser"]

LEVELS = ("debug", "info", "warning", "error")
# These stand in the short help of every command.
_ALWAYS = frozenset(("-h", "--help-all", "--json", "--quiet"))

# Arguments of the library whose options have another name.
_ARGUMENTS = {"w": "weight", "loss_options": "loss_option", "model_options": "model_option"}


class Parser(argparse.ArgumentParser):
    """A parser of one command, or of all commands.

    ``--help`` shows what :meth:`essential` names, and ``--help-all`` shows everything. A command that never calls
    ``essential`` shows everything in both.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._essential: frozenset[str] | None = None
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all options and exit")

    def essential(self, *options: str) -> None:
        """Name the options that ``--help`` shows. Positional arguments always show."""
        known = {option for action in self._actions for option in action.option_strings}
        unknown = set(options) - known
        if unknown:
            raise ValueError(f"options: expected options of {self.prog}, got {', '.join(sorted(unknown))}")
        self._essential = frozenset(options) | _ALWAYS

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line. argparse would print the whole usage before it."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """Exit with what the command does not know, and the options that are spelled nearly alike."""
        names = {option.lstrip("-"): option for option in self._option_string_actions if option.startswith("--")}
        near = []
        for word in unknown:
            if word.startswith("--"):
                near += difflib.get_close_matches(word[2:].partition("=")[0], names, n=1, cutoff=0.7)
        advice = f"; did you mean {', '.join(names[name] for name in near)}?" if near else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")

    def worded(self, message: str) -> str:
        """Return what the library says of an argument, with the command's option in the argument's place."""
        argument = re.match(r"[a-z][a-z0-9_]*(?=: )", message)
        if not argument:
            return message
        name = _ARGUMENTS.get(argument[0], argument[0]).replace("_", "-")
        option = f"-{name}" if len(name) == 1 and f"-{name}" in self._option_string_actions else f"--{name}"
        return option + message[argument.end() :] if option in self._option_string_actions else message

    def format_help(self) -> str:
        """Return the short help."""
        hidden = [a for a in self._actions if a.option_strings and not self._shows(a)]
        if not hidden:
            return super().format_help()
        with _suppressed(hidden):
            text = super().format_help()
        return f"{text}\n{len(hidden)} more options: {self.prog} --help-all\n"

    def format_help_all(self) -> str:
        """Return the help with all options, and that of all commands."""
        texts = [super().format_help()]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                texts += [command.format_help_all() for command in action.choices.values()]
        return f"\n{'-' * 78}\n".join(texts)

    def _shows(self, action: argparse.Action) -> bool:
        return self._essential is None or not self._essential.isdisjoint(action.option_strings)


class _HelpAll(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> NoReturn:
        assert isinstance(parser, Parser)
        print(parser.format_help_all(), end="")
        parser.exit()


@contextlib.contextmanager
def _suppressed(actions: Sequence[argparse.Action]) -> Iterator[None]:
    """Leave actions out of the help for a while."""
    texts = [action.help for action in actions]
    for action in actions:
        action.help = argparse.SUPPRESS
    try:
        yield
    finally:
        for action, text in zip(actions, texts, strict=True):
            action.help = text
