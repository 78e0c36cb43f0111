"""What a row of the audit store says: assessments and token traces as canonical JSON, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor

from monitor.turns.trace import TokenTrace
from monitor.wire.v1 import ingest_pb2

FIELDS: tuple[FieldDescriptor, ...] = tuple(ingest_pb2.Assessment.DESCRIPTOR.fields)
"""Fields of an assessment, all of which are kept."""
_DIGITS = 6
_VISIBILITY = "VISIBILITY_"


class Entry(NamedTuple):
    """A row to be: all but its place in the chain.

    Attributes:
        kind: turn, action, lost or pruned.
        unix_ns: When it happened.
        payload: Canonical JSON.
        trace: JSON of token-level scores.
    """

    kind: str
    unix_ns: int
    payload: str
    trace: str | None = None


def turn_json(assessment: ingest_pb2.Assessment, bank_id: str, stance: str) -> str:
    """An assessment with the bank that scored it and the stance it was judged by; NaN becomes null."""
    return canonical({**_told(assessment, FIELDS), "bank_id": bank_id, "stance": stance})


def trace_json(trace: TokenTrace, *, text: bool) -> str:
    """Token-level scores; token ids only where ``text`` allows it."""
    told = {
        "positions": trace.positions.tolist(),
        "roles": trace.roles.tolist(),
        "affect": [_rounded(value) for value in trace.affect.tolist()],
    }
    if text and trace.token_ids is not None:
        told["token_ids"] = trace.token_ids.tolist()
    return canonical(told)


def canonical(told: dict[str, Any]) -> str:
    """JSON that is the same for the same content.

    Raises:
        ValueError: A number is not finite.
        TypeError: A value is none that JSON knows.
    """
    return json.dumps(told, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field maps names to numbers or texts."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _told(message: Any, fields: Iterable[FieldDescriptor]) -> dict[str, Any]:
    return {field.name: _value(field, getattr(message, field.name)) for field in fields}


def _value(field: FieldDescriptor, value: Any) -> Any:
    if is_map(field):
        return {name: _rounded(each) for name, each in value.items()}
    if field.is_repeated:
        inner = field.message_type
        return list(value) if inner is None else [_told(each, inner.fields) for each in value]
    if field.enum_type is not None:
        name = field.enum_type.values_by_number[value].name.removeprefix(_VISIBILITY).lower()
        return "" if name == "unspecified" else name
    return _rounded(value)


def _rounded(value: Any) -> Any:
    """Floats to six digits, which is finer than any probe is; what is not finite has no value."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
