"""The recorded run of canary prompts, and how a later run compares with it. Scores only, no text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from monitor.assess.paired import signed_rank_p
from monitor.errors import SetupError

_FIX = "move it away or name another file"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CanaryTurn(_Part):
    """What one prompt's turn scored."""

    over_index: float
    user_affect: float
    assistant_affect: float
    tokens: int
    """Of the reply."""


Turns = Mapping[str, CanaryTurn]
"""By the id of the prompt."""


class CanaryRecord(_Part):
    """A recorded run."""

    version: Literal[1] = 1
    bank: str
    """Id of the bank that scored it."""
    prompts: str
    """Fingerprint of the prompts."""
    recorded_unix: float
    tolerance: float
    """Largest difference in over-index between two plays of the same prompt, one after the other."""
    turns: dict[str, CanaryTurn]


class Comparison(NamedTuple):
    """A run against the recorded one.

    Attributes:
        p_value: Exact, two-sided, of differences that favour one direction.
        shift: Median difference in over-index.
        same: Prompts within the tolerance.
        changed: Prompts beyond it.
    """

    p_value: float
    shift: float
    same: int
    changed: int


def compare(record: CanaryRecord, now: Turns) -> Comparison:
    """Compares over prompts that both runs scored, at least one."""
    pairs = [(turn.over_index, record.turns[name].over_index) for name, turn in now.items()]
    differences = np.array([present - recorded for present, recorded in pairs])
    moved = differences[np.abs(differences) > record.tolerance]
    shift = float(np.median(differences))
    return Comparison(signed_rank_p(moved), shift, len(differences) - len(moved), len(moved))


def repeat_spread(first: Turns, second: Turns) -> float:
    """Largest difference in over-index between two plays of the same prompts."""
    return max(abs(second[name].over_index - turn.over_index) for name, turn in first.items())


def read_record(file: Path) -> CanaryRecord | None:
    """The recorded run; None where there is none yet.

    Raises:
        SetupError: The file holds something else, or it cannot be read or written.
    """
    if not os.access(file.parent, os.W_OK) or file.is_dir():
        raise SetupError("canary_record", f"{file} cannot be written; name a file in a folder that can be")
    try:
        return CanaryRecord.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError("canary_record", f"{file}: {error.strerror}; {_FIX}") from None
    except ValidationError:
        raise SetupError("canary_record", f"{file} holds no recorded run of canary prompts; {_FIX}") from None


def write_record(file: Path, record: CanaryRecord) -> None:
    """Writes a recorded run, all of it or nothing.

    Raises:
        SetupError: It cannot be written.
    """
    partial = file.with_name(file.name + ".part")
    try:
        partial.write_text(record.model_dump_json(indent=1) + "\n")
        partial.replace(file)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        raise SetupError("canary_record", f"{file}: {error.strerror}; make room or name another file") from None
