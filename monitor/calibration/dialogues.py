"""Reads neutral service dialogues that others wrote: our own layout, or that of Schema-Guided Dialogue."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monitor.calibration.lines import ChatMessage, Dialogue, read_lines
from monitor.errors import CorpusError

_ROLES = {"USER": "user", "SYSTEM": "assistant"}


def read_dialogues(path: Path) -> list[Dialogue]:
    """Reads dialogues: JSON Lines of ``Dialogue``, a file of Schema-Guided Dialogue, or a folder of such files.

    The domain of a schema-guided dialogue is its first service, less the number behind it.

    Raises:
        CorpusError: A file or dialogue cannot be used; names file, dialogue and field.
    """
    dialogues = read_lines(path, Dialogue) if path.suffix == ".jsonl" else _from_files(path)
    if not dialogues:
        raise CorpusError(str(path), "holds no dialogues; write at least one, or name another file")
    return dialogues


def _from_files(path: Path) -> list[Dialogue]:
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise CorpusError(str(path), "holds no .json file; name a folder or file of dialogues")
    return [dialogue for file in files for dialogue in _schema_guided(file)]


def _schema_guided(path: Path) -> list[Dialogue]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise CorpusError(str(path), f"{error.strerror}; name one that can be read") from None
    except (ValueError, RecursionError) as error:
        raise CorpusError(
            str(path), f"is not JSON: {error}; correct it, or end the name of JSON Lines in .jsonl"
        ) from None
    if not isinstance(document, list):
        raise CorpusError(str(path), "must be a list of dialogues, as Schema-Guided Dialogue has them")
    return [_dialogue(f"{path}:dialogue {number}", entry) for number, entry in enumerate(document, 1)]


def _dialogue(place: str, entry: Any) -> Dialogue:
    try:
        messages = [
            ChatMessage.model_validate({"role": _ROLES[turn["speaker"]], "content": turn["utterance"]})
            for turn in entry["turns"]
        ]
        domain = str(entry["services"][0]).partition("_")[0]
        return Dialogue.model_validate({"domain": domain, "messages": messages}, context=place)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CorpusError(place, f"has no services, turns, speaker or utterance as they should be ({error})") from None
