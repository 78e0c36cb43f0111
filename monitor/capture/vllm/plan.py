"""What the scheduler's half of the connector tells the worker's half, once a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Begin(NamedTuple):
    """A request and what the sidecar is told of it."""

    request_id: str
    prompt_length: int
    labels: dict[str, str]
    session_id: str
    external_id: str


class End(NamedTuple):
    """A request that is over."""

    request_id: str
    total_tokens: int
    """Tokens the model processed: all but the one sampled last."""
    reason: int
    """EndReason of the wire."""


class Missing(NamedTuple):
    """Tokens that were processed in another request, and whose rows this one will never have."""

    request_id: str
    start: int
    token_ids: list[int]


@dataclass
class StepPlan:
    """Rows that are final after a step, and what happened to requests, in the order in which it is to be told.

    Attributes:
        begins: Requests whose first tokens are here.
        missing: Tokens whose rows will not come.
        request_ids: Request of each span of rows.
        starts: Absolute position of the first row of each span.
        counts: Rows of each span.
        token_ids: Token of each row.
        slots: Where the row of each token lies, [rows].
        ends: Requests that are over.
        held: Requests whose blocks stay until this step is done.
        errors: Errors in the scheduler's half so far.
    """

    begins: list[Begin] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    slots: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    ends: list[End] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    errors: int = 0
