"""The command line of an engine in a container: where its arguments stand, and how they are written back.

Arguments stand in ``args``, in ``command``, or in a script that a shell is given by ``-c``, whatever starts that shell.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from monitor.errors import SetupError

Start = Callable[[Sequence[str]], "int | None"]
"""Where, in the words of a command, the arguments of an engine begin; None where it starts none."""

_SHELL = re.compile(
    r"(?<![^\0])(?:[^\0]*/)?(?:ash|bash|dash|sh|zsh)\0(?:[-+][^\0]*\0(?:[^-+\0][^\0]*\0)?)*?-[a-z]*c[a-z]*\0"
)
"""In words with NUL between them: a shell, its options with a value or without, and what its script is behind."""
_BLANK = re.compile(r"(?:[ \t]|\\\n)+|#[^\n]*")
_OPERATOR = re.compile(r"&>>?|\d*(?:>>|>|<)(?:&\d*-?)?|&&|\|\||;;|[;&|()\n]")
_QUOTED = r"""'[^']*'|"(?:\\.|[^"\\])*\""""
_NESTED = ""
for _ in range(4):
    # What $( ) holds, as in $(( (1 + 2) * 3 )).
    _NESTED = rf"""(?:[^()'"\\]|\\.|{_QUOTED}|\({_NESTED}\))*"""
_WORD = re.compile(
    rf"""(?:\\[^\n]|{_QUOTED}|\$\({_NESTED}\)|\$\{{[^}}]*\}}|`[^`]*`|\$(?!\()|[^\s;&|<>()'"\\`$])+""", re.DOTALL
)
_FIXED = re.compile(r"""(?:\\.|'[^']*'|"(?:\\.|[^"\\`$])*"|[^'"\\`$])*""", re.DOTALL)
"""A word that the shell fills nothing into."""


class _Word(NamedTuple):
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class CommandLine:
    """How a container starts an engine.

    Attributes:
        arguments: The engine's own arguments.
        command: The container's command, as far as it is not arguments; None where the image's counts.
        in_command: How many of the arguments stand in ``command``.
        has_args: Whether the container has ``args``.
        script: A shell's script that the arguments stand in, and where it stands: a key and an index.
    """

    arguments: list[str]
    command: list[str] | None
    in_command: int = 0
    has_args: bool = True
    script: tuple[str, int, list[_Word]] | None = None

    def changed(self, container: dict[str, Any], arguments: Sequence[str]) -> dict[str, list[str]]:
        """The container's ``command`` and ``args``, as far as they change.

        Args:
            container: The container this was read from.
            arguments: The engine's arguments: those there were, some maybe left out, and further ones behind them.

        Raises:
            SetupError: One that goes holds what the shell fills in, so that it cannot be written anew.
        """
        if self.script is not None:
            key, index, words = self.script
            parts = _parts(container, key)
            parts[index] = _rewritten(parts[index], words, self.arguments, arguments)
            return {key: parts}
        if self.command is not None and not self.has_args:
            return {"command": [*self.command, *arguments]}
        if list(arguments[: self.in_command]) == self.arguments[: self.in_command]:
            return {"args": list(arguments[self.in_command :])}
        return {"command": list(self.command or []), "args": list(arguments)}


def _parts(container: dict[str, Any], key: str) -> list[str]:
    return [str(part) for part in container.get(key) or ()]


def read_command(container: dict[str, Any], start: Start) -> CommandLine | None:
    """Finds an engine's arguments in a container.

    Args:
        container: The container.
        start: Says where the arguments of the engine begin.

    Returns:
        Where its arguments are; all of ``args``, where the command does not show what it starts, or is the image's.
        None where a shell's script shows no start of the engine.

    Raises:
        SetupError: A script starts it more than once, or cannot be read.
    """
    command, args = (_parts(container, key) for key in ("command", "args"))
    script = _script_index(command, args)
    if script is not None:
        return _in_script(container, *script, start)
    begins = start([*command, *args])
    if begins is not None:
        own = command[begins:]
        prefix = [*command, *args][:begins]
        return CommandLine([*own, *args[max(0, begins - len(command)) :]], prefix, len(own), "args" in container)
    return CommandLine(args, None)


def words_of(container: dict[str, Any]) -> list[str]:
    """Every word of a container's command, those of a shell's script too."""
    parts = [*_parts(container, "command"), *_parts(container, "args")]
    return [word for part in parts for word in (part.split() if " " in part else [part])]


def _script_index(command: Sequence[str], args: Sequence[str]) -> tuple[str, int] | None:
    words = "\0".join([*command, *args])
    shell = _SHELL.search(words)
    if shell is None:
        return None
    at = words.count("\0", 0, shell.end())
    return ("command", at) if at < len(command) else ("args", at - len(command))


def _in_script(container: dict[str, Any], key: str, index: int, start: Start) -> CommandLine | None:
    found = []
    for words in _commands(str(container[key][index])):
        values = [_value(word.text) for word in words]
        begins = start(values)
        if begins is not None:
            # The last word before the arguments says where they go when there are none.
            found.append(CommandLine(values[begins:], None, script=(key, index, words[begins - 1 :])))
    if len(found) > 1:
        raise SetupError(f"{key}[{index}]", "starts the engine more than once; write one start, or args as a list")
    return found[0] if found else None


def _commands(script: str) -> list[list[_Word]]:
    """The simple commands of a script, word by word."""
    commands: list[list[_Word]] = [[]]
    at = 0
    while at < len(script):
        if blank := _BLANK.match(script, at):
            at = blank.end()
        elif operator := _OPERATOR.match(script, at):
            commands.append([])
            at = operator.end()
        elif word := _WORD.match(script, at):
            commands[-1].append(_Word(word[0], at, word.end()))
            at = word.end()
        else:
            raise SetupError("sh -c", f"cannot be read from {script[at : at + 20]!r} on; write the arguments as a list")
    return commands


def _value(text: str) -> str:
    """A word as the shell hands it on; variables stay as they are written."""
    try:
        return "".join(shlex.split(text))
    except ValueError:
        return text


def _rewritten(script: str, words: Sequence[_Word], before: Sequence[str], after: Sequence[str]) -> str:
    """A script in which a command's arguments are others."""
    kept = 0
    dropped = []
    for position, value in enumerate(before, start=1):
        if kept < len(after) and after[kept] == value:
            kept += 1
        else:
            _check_fixed(words[position])
            dropped.append(position)
    added = "".join(f" {shlex.quote(word)}" for word in after[kept:])
    end = words[-1].end
    script = script[:end] + added + script[end:]
    for position in reversed(dropped):
        script = script[: words[position - 1].end] + script[words[position].end :]
    return script


def _check_fixed(word: _Word) -> None:
    """Whether a word that goes, to be written anew in quotes, is the same whoever reads it."""
    if not _FIXED.fullmatch(word.text):
        raise SetupError(
            "sh -c",
            f"{word.text} would be written anew in single quotes, into which the shell fills nothing; write it in them "
            "yourself, with $(NAME) for a variable of the container's, which Kubernetes fills in",
        )
