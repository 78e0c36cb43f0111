"""Words that stand in YAML without quotes: what kubectl reads from them, kept with the word as it is written."""

from __future__ import annotations

import math
import re
from typing import Any

from ruamel.yaml.constructor import RoundTripConstructor
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.scalarbool import ScalarBoolean
from ruamel.yaml.scalarfloat import ScalarFloat
from ruamel.yaml.scalarint import ScalarInt
from ruamel.yaml.tag import Tag

_NAMED: dict[str, bool | None] = {
    **dict.fromkeys(("y", "Y", "yes", "Yes", "YES", "on", "On", "ON", "true", "True", "TRUE"), True),
    **dict.fromkeys(("n", "N", "no", "No", "NO", "off", "Off", "OFF", "false", "False", "FALSE"), False),
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
}
_NUMERIC = re.compile(r"[-+0-9]|\.[0-9]")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_OCTAL = re.compile(r"^([-+]?)0(?=[0-7]+$)")
_TAGS = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str"}


def value_of(word: str) -> bool | int | float | str | None:
    """What kubectl reads from a word: truth values and octal numbers as in YAML 1.1, but dates and times are texts."""
    if word in _NAMED:
        return _NAMED[word]
    if not _NUMERIC.match(word):
        return word
    digits = word.replace("_", "")
    try:
        return int(_OCTAL.sub(r"\g<1>0o", digits), 0)
    except ValueError:
        number = float(digits) if _FLOAT.fullmatch(digits) else math.inf
        return number if math.isfinite(number) else word


class Word:
    """A truth value or number that knows its word.

    Attributes:
        word: As it is written.
        value: What kubectl reads from it.
    """

    word: str
    value: bool | int | float

    def __str__(self) -> str:
        return self.word


class _Truth(Word, ScalarBoolean):
    pass


class _Integer(Word, ScalarInt):
    pass


class _Float(Word, ScalarFloat):
    pass


class Resolver(VersionedResolver):
    """Takes words for what kubectl takes them, in reading and, so that texts get quotes, in writing."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node."""
        if kind is not ScalarNode or not implicit[0]:
            return super().resolve(kind, value, implicit)
        return Tag(suffix=f"tag:yaml.org,2002:{'merge' if value == '<<' else _TAGS[type(value_of(str(value)))]}")


class Constructor(RoundTripConstructor):
    """Reads words so that they stay as they are written."""


class Representer(RoundTripRepresenter):
    """Writes them as they are written; nothing where there is no value."""


def _keep(kind: type[Any], name: str) -> None:
    tag = f"tag:yaml.org,2002:{name}"

    def construct(_: Any, node: Any) -> Any:
        value = value_of(node.value)
        kept = kind(value, anchor=node.anchor)
        kept.word, kept.value = node.value, value
        return kept

    def represent(representer: Any, kept: Any) -> Any:
        return representer.represent_scalar(tag, kept.word, anchor=kept.yaml_anchor(any=True))

    Constructor.add_constructor(tag, construct)
    Representer.add_representer(kind, represent)


_keep(_Truth, "bool")
_keep(_Integer, "int")
_keep(_Float, "float")
