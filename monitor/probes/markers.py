"""Markers of a chat template: token runs after which another role begins to speak.

They are found once, when a bank is calibrated, and kept in it: an inference server sends token ids, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from monitor.errors import BankError


class Role(IntEnum):
    """Who a token belongs to."""

    TEMPLATE = 0
    SYSTEM = 1
    USER = 2
    ASSISTANT = 3


@dataclass(frozen=True)
class Marker:
    """A run of token ids after which a role begins; TEMPLATE means that the segment before it has ended."""

    tokens: tuple[int, ...]
    role: Role


def find_markers(tokenizer: Any) -> tuple[Marker, ...]:
    """Finds the markers of a tokenizer's chat template by rendering conversations with known contents.

    A header is the shortest run that starts at a special token, precedes every content of its role and precedes no
    content of another; a footer is the special token that closes a segment.

    Args:
        tokenizer: A fast Hugging Face tokenizer.

    Returns:
        The markers; empty where the tokenizer has no chat template, and then the prompt counts as the user's.

    Raises:
        BankError: The template does not tell its roles apart.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ()
    before, after = _separators(tokenizer)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    markers: list[Marker] = []
    for role, runs in before.items():
        others = [run for other, its in before.items() if other is not role for run in its]
        for group in _agreeing(runs):
            markers.append(Marker(_header(group, others, special, role), role))
    for runs in after.values():
        first = {run[:1] for run in runs if run[:1] and run[0] in special}
        headers = {marker.tokens[:1] for marker in markers}
        markers.extend(Marker(token, Role.TEMPLATE) for token in first - headers)
    if tokenizer.eos_token_id is not None:
        markers.append(Marker((int(tokenizer.eos_token_id),), Role.TEMPLATE))
    # Footers first: where both match at one token, the header is the later word.
    return tuple(sorted(dict.fromkeys(markers), key=lambda marker: (marker.role, marker.tokens)))


def _separators(tokenizer: Any) -> tuple[dict[Role, list[tuple[int, ...]]], dict[Role, list[tuple[int, ...]]]]:
    """Token runs found before and after the contents of each role."""
    user, assistant, system = Role.USER, Role.ASSISTANT, Role.SYSTEM
    conversations = [[user, assistant, user, assistant], [user], [user, assistant, user]]
    before: dict[Role, list[tuple[int, ...]]] = {user: [], assistant: []}
    after: dict[Role, list[tuple[int, ...]]] = {user: [], assistant: []}
    if _renders_system(tokenizer):
        conversations.append([system, user, assistant, user])
        before[system], after[system] = [], []
    for roles in conversations:
        for prompted in (False, True) if roles[-1] is user else (False,):
            gaps = _gaps(tokenizer, roles, prompted=prompted)
            for role, gap in zip(roles, gaps, strict=False):
                before[role].append(gap)
            for role, gap in zip(roles, gaps[1:], strict=True):
                after[role].append(gap)
            if prompted:
                before[assistant].append(gaps[-1])
    return before, after


def _renders_system(tokenizer: Any) -> bool:
    try:
        return len(_gaps(tokenizer, [Role.SYSTEM, Role.USER], prompted=False)) > 0
    except Exception:  # noqa: BLE001 - templates raise whatever jinja raises
        return False


def _gaps(tokenizer: Any, roles: Sequence[Role], *, prompted: bool) -> list[tuple[int, ...]]:
    """Renders one message a role and returns the token runs before, between and after their contents."""
    contents = [f"Qz{number}content{number}zQ" for number in range(len(roles))]
    messages = [{"role": role.name.lower(), "content": text} for role, text in zip(roles, contents, strict=True)]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    bounds = [(text.index(content), text.index(content) + len(content)) for content in contents]
    if bounds != sorted(bounds):
        raise BankError("chat_template", "moves messages about; roles cannot be read from it")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    gaps: list[list[int]] = [[] for _ in range(len(roles) + 1)]
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        inside = any(start < high and end > low for low, high in bounds)
        if not inside:
            gaps[sum(start >= high for _, high in bounds)].append(token)
    return [tuple(gap) for gap in gaps]


def _common_suffix(runs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    length = 0
    while all(len(run) > length and run[-1 - length] == runs[0][-1 - length] for run in runs):
        length += 1
    return runs[0][len(runs[0]) - length :]


def _agreeing(runs: Iterable[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Groups runs by their last token: a generation prompt may end otherwise than a recorded turn (thinking models)."""
    groups: dict[int, list[tuple[int, ...]]] = {}
    for run in runs:
        if run:
            groups.setdefault(run[-1], []).append(run)
    return list(groups.values())


def _header(
    runs: Sequence[tuple[int, ...]], others: Sequence[tuple[int, ...]], special: set[int], role: Role
) -> tuple[int, ...]:
    common = _common_suffix(runs)
    starts = [n for n in range(1, len(common) + 1) if common[-n] in special] or [len(common)]
    for length in starts:
        header = common[-length:]
        if length and not any(other[-length:] == header for other in others):
            return header
    raise BankError("chat_template", f"does not mark where the {role.name.lower()} begins; roles cannot be read from it")
