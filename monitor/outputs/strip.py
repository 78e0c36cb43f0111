"""Affect token by token, drawn in characters: bars with positions, coloured by whose the tokens are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from monitor.probes.markers import Role

_BARS = "▁▂▃▄▅▆▇█"
_ABSENT = "·"
_STYLES = {Role.TEMPLATE: "dim", Role.SYSTEM: "yellow", Role.USER: "cyan", Role.ASSISTANT: "magenta"}
_LETTERS = {Role.TEMPLATE: "-", Role.SYSTEM: "s", Role.USER: "u", Role.ASSISTANT: "a"}


class Strip:
    """Tokens of one turn.

    Args:
        positions: Absolute position of each, ascending.
        roles: ``Role`` of each.
        affect: Affect of each; None where it was not finite.
    """

    def __init__(self, positions: Sequence[int], roles: Sequence[int], affect: Sequence[float | None]) -> None:
        self._positions = positions
        self._roles = [Role(role) for role in roles]
        self._affect = affect
        seen = [value for value in affect if value is not None]
        self._low, self._high = min(seen, default=0.0), max(seen, default=0.0)

    def __len__(self) -> int:
        return len(self._positions)

    @property
    def legend(self) -> str:
        """What the characters mean."""
        whose = ", ".join(f"{_LETTERS[role]} {role.name.lower()}" for role in _LETTERS)
        return f"{_BARS[0]} = {self._low:.1f} to {_BARS[-1]} = {self._high:.1f}, {_ABSENT} none; {whose}"

    def lines(self, width: int) -> Iterator[Text]:
        """The strip, ``width`` tokens a line, each above a line of roles; lines begin with their first position."""
        for begin in range(0, len(self), width):
            part = range(begin, min(begin + width, len(self)))
            yield Text.assemble(
                f"{self._positions[begin]:>7} ", *((self._bar(index), _STYLES[self._roles[index]]) for index in part)
            )
            yield Text(" " * 8 + "".join(_LETTERS[self._roles[index]] for index in part), style="dim")

    def told(self, words: Sequence[str]) -> Iterator[Text]:
        """A line a token: position, role, affect, bar, text."""
        for index, word in enumerate(words):
            role, affect = self._roles[index], self._affect[index]
            figure = _ABSENT if affect is None else f"{affect:.2f}"
            yield Text.assemble(
                f"{self._positions[index]:>7} {_LETTERS[role]} {figure:>7} ",
                (self._bar(index), _STYLES[role]),
                f" {word!r}",
            )

    def _bar(self, index: int) -> str:
        affect = self._affect[index]
        if affect is None:
            return _ABSENT
        share = (affect - self._low) / (self._high - self._low) if self._high > self._low else 0.0
        return _BARS[round(share * (len(_BARS) - 1))]
