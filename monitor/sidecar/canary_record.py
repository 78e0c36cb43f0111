"""The recorded run of canary prompts, and how a later run compares with it. Scores only, no text."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from monitor.assess.paired import least_p, signed_rank_p
from monitor.errors import SetupError

QUANTITIES = ("over_index", "user_affect")
"""What is compared: what replies show, and how the prompts are read, which no chance of generation touches."""
_FLOOR = 0.01
"""Least tolerance, in the reference's standard deviations: other batches moved a bfloat16 model's scores by 0.0035."""
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
    tolerance: dict[str, float]
    """By quantity: how far it moves when nothing changes."""
    turns: dict[str, CanaryTurn]


class Comparison(NamedTuple):
    """A run against the recorded one.

    Attributes:
        p_value: Of differences that favour one direction: exact, two-sided, for all quantities together.
        shift: Median difference in over-index.
        user_shift: Median difference in user affect.
        same: Prompts within the tolerance.
        changed: Prompts beyond it in some quantity.
    """

    p_value: float
    shift: float
    user_shift: float
    same: int
    changed: int


def compare(record: CanaryRecord, now: Turns) -> Comparison:
    """Compares over prompts that both runs scored, at least one; each quantity is tested at its share of the level."""
    moved = {name: _differences(record.turns, now, name) for name in QUANTITIES}
    beyond = {name: np.abs(differences) > record.tolerance[name] for name, differences in moved.items()}
    p_values = [signed_rank_p(moved[name][beyond[name]]) for name in QUANTITIES]
    changed = int(np.any(list(beyond.values()), axis=0).sum())
    shift, user_shift = (float(np.median(moved[name])) for name in QUANTITIES)
    return Comparison(min(1.0, len(QUANTITIES) * min(p_values)), shift, user_shift, len(now) - changed, changed)


def least_p_value(prompts: int) -> float:
    """The least p-value that a comparison over so many prompts can have."""
    return min(1.0, len(QUANTITIES) * least_p(prompts))


def repeat_spread(first: Turns, second: Turns) -> dict[str, float]:
    """By quantity, the largest difference between two plays of one prompt."""
    spread = {name: float(np.abs(_differences(first, second, name)).max()) for name in QUANTITIES}
    return {name: max(_FLOOR, found) for name, found in spread.items()}


def _differences(first: Turns, second: Turns, quantity: str) -> NDArray[np.float64]:
    return np.array([getattr(turn, quantity) - getattr(first[name], quantity) for name, turn in second.items()])


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
