"""Files of manifests: comments, quotes, order and line ends stay, and what is not changed stays to the letter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import ScalarEvent

from monitor.attach.edits import plain
from monitor.attach.words import Constructor, Representer, Resolver
from monitor.errors import SetupError

BORDER = "---\n"
"""What stands between two documents."""

# With the directives above it, as in %YAML 1.2, which say nothing here.
_BORDER = re.compile(r"^(?:%.*\n(?:#.*\n|[ \t]*\n)*)*---(?=\s|$).*\n?", re.MULTILINE)
# Comments that are indented may be lines of a text.
_END = re.compile(r"(?:^(?:#.*|\.\.\.[ \t]*|[ \t]*)\n)*\Z", re.MULTILINE)
_KEEPS_BLANKS = re.compile(r"[|>][0-9]?\+")
_SEQUENCE = re.compile(r"^( *)(?! |-|#)[^\n]*:[ \t]*(?:[ \t]#[^\n]*)?\n(?: *(?:#[^\n]*)?\n)*\1( *)- ", re.MULTILINE)
_INDENT = re.compile(r"\A[{[]\n([ \t]+)")
# What JSON may hold as it is, and YAML may not.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass
class Document:
    """One document of a file.

    Attributes:
        text: As it is written, without what is below it.
        border: The line that it is below.
        end: Blank lines and comments behind it.
        content: What it says; changed in place.
        keeps_comments: Whether comments stay when it is changed.
        is_json: Whether it is JSON, and stays so.
    """

    text: str
    border: str = ""
    end: str = ""
    content: Any = None
    keeps_comments: bool = True
    is_json: bool = False
    _before: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._before = plain(self.content)

    def written(self) -> str:
        """The document as text; as it was, where nothing has changed.

        Raises:
            SetupError: It would be read as something else.
        """
        if plain(self.content) == self._before:
            return self.border + self.text + self.end
        text = _json(self.content, self.text) if self.is_json else _dumped(self.content, self.text)
        if plain(_document(text, "").content) != plain(self.content):
            raise SetupError(
                "manifest",
                "would not be read back as it is; write its folded texts (>), above all those with indented lines, "
                "as | or in quotes",
            )
        return self.border + text + self.end


def read(text: str) -> list[Document]:
    """Reads the documents of a file; line ends of Windows are those of Unix in them.

    Raises:
        SetupError: It is not YAML, or a template of it.
    """
    text = text.replace(ends_of(text), "\n")
    borders = list(_BORDER.finditer(text))
    starts = [0, *(border.end() for border in borders)]
    ends = [*(border.start() for border in borders), len(text)]
    documents = [
        _document(text[start:end], border)
        for start, end, border in zip(starts, ends, ["", *(border[0] for border in borders)], strict=True)
    ]
    first, *others = documents
    if first.text or not others:
        return documents
    # What is before the first border is no document unless it says something, but its comments stay.
    others[0].border = first.end + others[0].border
    return others


def added(content: dict[str, Any], border: str = "") -> Document:
    """A document that is not in the file yet, below a border."""
    return Document(_dumped(_blocks(content), ""), border, content=content)


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
        return Document(text, border, end, json.loads(text), is_json=True)
    except ValueError:
        content = _parsed(text)
    shared = _shares(content, set())
    # What several places share cannot be changed in one of them.
    return Document(text, border, end, _unshared(content) if shared else content, not shared)


def _parsed(text: str) -> Any:
    try:
        content = _yaml(text).load(text)
    except (YAMLError, ValueError, TypeError) as error:
        raise SetupError("manifest", f"is not YAML: {' '.join(str(error).split())}") from None
    if _is_template(content):
        raise SetupError(
            "manifest", "has a key that is no text, as a template has ({{ }}); render it first, as by helm template"
        )
    return content


def _is_template(node: Any) -> bool:
    """Whether a part of a document has keys like those that are read from ``{{ .Values.name }}``."""
    if isinstance(node, list):
        return any(map(_is_template, node))
    return isinstance(node, dict) and any(
        isinstance(key, Mapping | tuple) or _is_template(value) for key, value in node.items()
    )


def _shares(node: Any, seen: set[int]) -> bool:
    """Whether a part of a document stands in several places, by aliases or merged keys."""
    if not isinstance(node, dict | list):
        return False
    if id(node) in seen or getattr(node, "merge", None):
        return True
    seen.add(id(node))
    return any(_shares(item, seen) for item in (node.values() if isinstance(node, dict) else node))


def _unshared(node: Any) -> Any:
    """A part of a document, its values as they are written, in places of its own."""
    if isinstance(node, dict):
        return {key: _unshared(value) for key, value in node.items()}
    return [_unshared(item) for item in node] if isinstance(node, list) else node


def _json(content: Any, like: str) -> str:
    """JSON with the indents of a text, tabs as spaces: behind a document of YAML it is YAML too."""
    found = _INDENT.match(like)
    text = json.dumps(content, indent=found[1].expandtabs(2) if found else None, ensure_ascii=False)
    return _ESCAPED.sub(lambda one: f"\\u{ord(one[0]):04x}", text) + "\n"


def _dumped(content: Any, like: str) -> str:
    """YAML with the indents of a text."""
    text = StringIO()
    _yaml(like).dump(content, text)
    return text.getvalue()


def _yaml(text: str) -> YAML:
    """Reads and writes with the indents of a text."""
    yaml = YAML()
    yaml.Resolver, yaml.Constructor = Resolver, Constructor
    yaml.Representer = Representer if _leaves_out(text) else _WithNulls
    yaml.preserve_quotes = True
    yaml.width = 1 << 16
    found = _SEQUENCE.search(text)
    offset = len(found[2]) if found else 0
    yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    return yaml


class _WithNulls(Representer):
    """Writes null where there is no value, as kubectl does."""


def _leaves_out(text: str) -> bool:
    """Whether a text has nothing where there is no value, as in ``labels:`` alone."""
    scalars = (event for event in YAML().parse(text) if isinstance(event, ScalarEvent))
    return any(scalar.value == "" and scalar.style is None for scalar in scalars)


def _null(representer: Any, _: None) -> Any:
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


_WithNulls.add_representer(type(None), _null)


def _blocks(content: Any) -> Any:
    """Texts of several lines as blocks, for people."""
    from ruamel.yaml.scalarstring import LiteralScalarString

    if isinstance(content, dict):
        return {key: _blocks(value) for key, value in content.items()}
    return LiteralScalarString(content) if isinstance(content, str) and "\n" in content else content
