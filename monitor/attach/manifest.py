"""Files of manifests: comments, quotes, order and line ends stay, and what is not changed stays to the letter."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import ScalarEvent
from ruamel.yaml.representer import RoundTripRepresenter

from monitor.attach.edits import plain
from monitor.errors import SetupError

BORDER = "---\n"
"""What stands between two documents."""

# With the directives above it, as in %YAML 1.2, which say nothing here.
_BORDER = re.compile(r"^(?:%.*\n(?:#.*\n|[ \t]*\n)*)*---(?=\s|$).*\n?", re.MULTILINE)
# Comments that are indented may be lines of a text.
_END = re.compile(r"(?:^(?:#.*|\.\.\.[ \t]*|[ \t]*)\n)*\Z", re.MULTILINE)
_KEEPS_BLANKS = re.compile(r"[|>][0-9]?\+")
_TRUTHS = {"y", "n", "yes", "no", "on", "off", "true", "false"}
_SEQUENCE = re.compile(r"^( *)(?! |-|#)[^\n]*:[ \t]*\n(?: *(?:#[^\n]*)?\n)*( *)- ", re.MULTILINE)


@dataclass
class Document:
    """One document of a file.

    Attributes:
        text: As it is written, without what is below it.
        border: The line that it is below.
        end: Blank lines and comments behind it.
        content: What it says; changed in place.
        keeps_comments: Whether comments stay when it is changed.
    """

    text: str
    border: str = ""
    end: str = ""
    content: Any = None
    keeps_comments: bool = True
    _before: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._before = plain(self.content)

    def written(self) -> str:
        """The document as text; as it was, where nothing has changed."""
        if plain(self.content) == self._before:
            return self.border + self.text + self.end
        text = StringIO()
        _yaml(self.text).dump(self.content, text)
        return self.border + text.getvalue() + self.end


def read(text: str) -> list[Document]:
    """Reads the documents of a file; line ends of Windows are those of Unix in them.

    Raises:
        SetupError: It is not YAML.
    """
    text = text.replace(ends_of(text), "\n")
    borders = list(_BORDER.finditer(text))
    starts = [0, *(border.end() for border in borders)]
    ends = [*(border.start() for border in borders), len(text)]
    documents = [
        _document(text[start:end], border)
        for start, end, border in zip(starts, ends, ["", *(border[0] for border in borders)], strict=True)
    ]
    # What is before the first border is no document unless it says something.
    return documents if documents[0].text or len(documents) == 1 else documents[1:]


def added(content: dict[str, Any], border: str = "") -> Document:
    """A document that is not in the file yet, below a border."""
    text = StringIO()
    _yaml("").dump(_blocks(content), text)
    return Document(text.getvalue(), border, content=content)


def ends_of(text: str) -> str:
    """How the lines of a file end: as in Windows where all of them do."""
    return "\r\n" if 0 < text.count("\n") == text.count("\r\n") else "\n"


def write(documents: list[Document], ends: str) -> str:
    """The file.

    Args:
        documents: What is in it.
        ends: How its lines end.
    """
    parts: list[str] = []
    for document in documents:
        if parts and not document.border:
            parts.append(BORDER)
        parts.append(document.written())
    return "".join(parts).replace("\n", ends)


def _document(text: str, border: str) -> Document:
    if text and not text.endswith("\n"):
        text += "\n"
    behind = _END.search(text)
    end = behind[0] if behind and not _KEEPS_BLANKS.search(text) else ""
    text = text.removesuffix(end)
    try:
        content = _yaml(text).load(text)
    except (YAMLError, ValueError) as error:
        raise SetupError("manifest", f"is not YAML: {' '.join(str(error).split())}") from None
    shared = _shares(content, set())
    # What several places share cannot be changed in one of them.
    return Document(text, border, end, plain(content) if shared else content, not shared)


def _shares(node: Any, seen: set[int]) -> bool:
    """Whether a part of a document stands in several places, by aliases or merged keys."""
    if not isinstance(node, dict | list):
        return False
    if id(node) in seen or getattr(node, "merge", None):
        return True
    seen.add(id(node))
    return any(_shares(item, seen) for item in (node.values() if isinstance(node, dict) else node))


def _yaml(text: str) -> YAML:
    """Reads and writes with the indents of a text."""
    yaml = YAML()
    yaml.Representer = _Representer if _leaves_out(text) else _WithNulls
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    found = _SEQUENCE.search(text)
    offset = len(found[2]) - len(found[1]) if found else 0
    yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    return yaml


class _Representer(RoundTripRepresenter):
    """Writes nothing where there is no value."""


class _WithNulls(_Representer):
    """Writes null there, as kubectl does."""


def _leaves_out(text: str) -> bool:
    """Whether a text has nothing where there is no value, as in ``labels:`` alone."""
    scalars = (event for event in YAML().parse(text) if isinstance(event, ScalarEvent))
    return any(scalar.value == "" and scalar.style is None for scalar in scalars)


def _quoted(representer: Any, text: str) -> Any:
    """A text, in quotes where kubectl's older YAML would read a truth value."""
    style = "'" if text.lower() in _TRUTHS else None
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


_Representer.add_representer(str, _quoted)
_WithNulls.add_representer(str, _quoted)
_WithNulls.add_representer(type(None), _null)


def _blocks(content: Any) -> Any:
    """Texts of several lines as blocks, for people."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    if isinstance(content, dict):
        return {key: _blocks(value) for key, value in content.items()}
    return LiteralScalarString(content) if isinstance(content, str) and "\n" in content else content
