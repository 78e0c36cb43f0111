"""vLLM's command line, read the way vLLM's own parser reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from monitor.errors import SetupError

_UNDERSCORES = re.compile(r"(?<=--)[^.]*")


class _Option(NamedTuple):
    name: str
    value: str | None
    written: tuple[str, ...]


class Arguments:
    """The arguments of ``vllm serve``.

    Dashes and underscores are alike, ``--name=value`` is ``--name value``, and of a repeated option the last counts.
    Options of a file that ``--config`` names stand behind those of the command line.

    Args:
        written: The arguments, the model among them.

    Raises:
        SetupError: The file is there and cannot be read.
    """

    def __init__(self, written: Sequence[str]) -> None:
        self._own = list(_options(written))
        self._of_file = list(_options(_file_arguments(self._own)))

    @cached_property
    def names(self) -> set[str]:
        """Names of all options."""
        return {option.name for option in (*self._of_file, *self._own)}

    @property
    def model(self) -> str | None:
        """What is served: the first argument, or ``--model``."""
        first = self._own[0] if self._own else None
        return first.written[0] if first is not None and not first.name else self.get("--model")

    @property
    def unread_file(self) -> str | None:
        """A file of options that is not on this machine."""
        file = _last(self._own, ("--config",))
        return None if file is None or Path(file).is_file() else file

    def get(self, *names: str) -> str | None:
        """Value of an option, by any of its names."""
        own = _last(self._own, names)
        return _last(self._of_file, names) if own is None else own

    def count(self, *names: str) -> int:
        """Value of an option that is a number, and 1 unless it is given.

        Raises:
            SetupError: It is no number.
        """
        value = self.get(*names)
        try:
            return 1 if value is None else int(value)
        except ValueError:
            raise SetupError(names[0], f"{value!r} is no whole number; give one") from None

    def table(self, *names: str) -> dict[str, Any] | None:
        """Value of an option that is a JSON object.

        Raises:
            SetupError: It is none, or it is written key by key.
        """
        for name in names:
            if any(given.startswith(f"{name}.") for given in self.names):
                raise SetupError(name, f"is written key by key; write it as one JSON object: {name} '{{...}}'")
        value = self.get(*names)
        if value is None:
            return None
        try:
            read = json.loads(value)
        except ValueError:
            read = None
        if not isinstance(read, dict):
            raise SetupError(names[0], f"{value!r} is no JSON object; write one")
        return read

    def without(self, *names: str) -> list[str]:
        """The command line without some options."""
        return [part for option in self._own if option.name not in names for part in option.written]


def _options(written: Sequence[str]) -> Iterable[_Option]:
    parts = iter(range(len(written)))
    for number in parts:
        part = written[number]
        if not part.startswith("-"):
            yield _Option("", part, (part,))
            continue
        name, equals, value = part.partition("=")
        name = _UNDERSCORES.sub(lambda found: found[0].replace("_", "-"), name, count=1)
        if equals:
            yield _Option(name, value, (part,))
        elif number + 1 < len(written) and not written[number + 1].startswith("-"):
            yield _Option(name, written[next(parts)], (part, written[number + 1]))
        else:
            yield _Option(name, None, (part,))


def _last(options: Sequence[_Option], names: Sequence[str]) -> str | None:
    return next((option.value for option in reversed(options) if option.name in names), None)


def _file_arguments(own: Sequence[_Option]) -> list[str]:
    """The options in the file of ``--config``, as vLLM puts them on the command line."""
    file = _last(own, ("--config",))
    if file is None or not Path(file).is_file():
        return []
    import yaml

    try:
        read = yaml.safe_load(Path(file).read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SetupError("--config", f"{file} cannot be read ({error}); mend it") from None
    if not isinstance(read, dict):
        raise SetupError("--config", f"{file} holds no options; write one a line, as in port: 8000")
    arguments: list[str] = []
    for name, value in read.items():
        if value is not False:
            arguments += [f"--{name}", *_written(value)]
    return arguments


def _written(value: Any) -> list[str]:
    if value is True:
        return []
    if isinstance(value, dict):
        return [json.dumps(value)]
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]
