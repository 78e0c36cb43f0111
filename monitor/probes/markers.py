"""Markers of a chat template: token runs after which another role begins to speak.

They are found once, when a bank is calibrated, and kept in it: an inference server sends token ids, nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


_EDGES = (
    ("", ""),
    *((edge, "") for edge in ("\n", "\n\n", " ", "  ")),
    *(("", edge) for edge in ("\n", "\n\n", " ", ".")),
)
"""How contents may begin or end: tokenizers merge a content's edge with the template's words beside it."""

_Runs = dict[Role, list[tuple[int, ...]]]


def find_markers(tokenizer: Any) -> tuple[Marker, ...]:
    """Finds the markers of a tokenizer's chat template by rendering conversations with known contents.

    A header is the shortest run that starts at a special token, precedes a content of its role and precedes no content
    of another; where no special token stands in front, it is all that the runs of a role have in common. A footer is
    the special token that closes a segment. A template without a system role, or one that puts the system's words
    into the user's message, gets no system marker.

    Args:
        tokenizer: A fast Hugging Face tokenizer.

    Returns:
        The markers; empty where the tokenizer has no chat template, and then the prompt counts as the user's.

    Raises:
        BankError: The template does not tell its roles apart, or does not render a plain conversation.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ()
    try:
        return _markers(tokenizer, with_system=True)
    except BankError:
        return _markers(tokenizer, with_system=False)


def _markers(tokenizer: Any, *, with_system: bool) -> tuple[Marker, ...]:
    before, after = _separators(tokenizer, with_system=with_system)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    tokens = {token for runs in before.values() for run in runs for token in run}
    blank = {token for token in tokens if not tokenizer.decode([token]).strip()}
    markers: list[Marker] = []
    for role, runs in before.items():
        others = {run for other, its in before.items() if other is not role for run in its}
        markers.extend(
            Marker(_header(group, others, special, blank), role) for group in _groups(runs, others, blank, role)
        )
    headers = {marker.tokens[:1] for marker in markers}
    for runs in after.values():
        footers = {run[:1] for run in runs if run and run[0] in special}
        markers.extend(Marker(token, Role.TEMPLATE) for token in footers - headers)
    if tokenizer.eos_token_id is not None:
        markers.append(Marker((int(tokenizer.eos_token_id),), Role.TEMPLATE))
    return tuple(sorted(set(markers), key=lambda marker: (marker.role, marker.tokens)))


def _separators(tokenizer: Any, *, with_system: bool) -> tuple[_Runs, _Runs]:
    """Token runs found before and after the contents of each role."""
    user, assistant, system = Role.USER, Role.ASSISTANT, Role.SYSTEM
    conversations = [[user, assistant, user, assistant], [user], [user, assistant, user]]
    if with_system:
        conversations += [[system, user], [system, user, assistant, user]]
    roles = {role for conversation in conversations for role in conversation}
    before: _Runs = {role: [] for role in sorted(roles)}
    after: _Runs = {role: [] for role in sorted(roles)}
    for conversation in conversations:
        for prompted in (False, True) if conversation[-1] is user else (False,):
            for edges in _EDGES:
                gaps = _gaps(tokenizer, conversation, edges, prompted=prompted)
                for role, gap in zip(conversation, gaps, strict=False):
                    before[role].append(gap)
                for role, gap in zip(conversation, gaps[1:], strict=True):
                    after[role].append(gap)
                if prompted:
                    before[assistant].append(gaps[-1])
    return before, after


def _gaps(tokenizer: Any, roles: Sequence[Role], edges: tuple[str, str], *, prompted: bool) -> list[tuple[int, ...]]:
    """Renders one message a role and returns the token runs before, between and after their contents."""
    text, cores = _rendered(tokenizer, roles, edges, prompted=prompted)
    # Templates may trim contents: an edge is there where the text around a content is longer than without it.
    bare_text, bare = _rendered(tokenizer, roles, ("", ""), prompted=prompted)
    grown = [
        (core_gap - bare_gap)
        for core_gap, bare_gap in zip(_between(cores, len(text)), _between(bare, len(bare_text)), strict=True)
    ]
    bounds = [
        (low - (grown[number] if edges[0] else 0), high + (grown[number + 1] if edges[1] else 0))
        for number, (low, high) in enumerate(cores)
    ]
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    gaps: list[list[int]] = [[] for _ in range(len(roles) + 1)]
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        inside = any(start < high and end > low for low, high in bounds)
        if not inside:
            gaps[sum(start >= high for _, high in bounds)].append(token)
    return [tuple(gap) for gap in gaps]


def _rendered(
    tokenizer: Any, roles: Sequence[Role], edges: tuple[str, str], *, prompted: bool
) -> tuple[str, list[tuple[int, int]]]:
    """A conversation of made-up contents with these edges, and where each content lies, its edges aside."""
    contents = [f"Qz{number}content{number}zQ" for number in range(len(roles))]
    messages = [
        {"role": role.name.lower(), "content": content.join(edges)}
        for role, content in zip(roles, contents, strict=True)
    ]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompted)
    except Exception as error:  # noqa: BLE001 - templates raise whatever jinja raises
        raise BankError("chat_template", f"does not render a plain conversation: {error}") from None
    lows = [text.find(content) for content in contents]
    if lows != sorted(lows) or lows[0] < 0:
        raise BankError("chat_template", "moves or drops messages; roles cannot be read from it")
    return text, [(low, low + len(content)) for low, content in zip(lows, contents, strict=True)]


def _between(bounds: Sequence[tuple[int, int]], length: int) -> list[int]:
    """Characters before, between and after spans of a text."""
    lows, highs = [low for low, _ in bounds], [high for _, high in bounds]
    return [low - high for low, high in zip([*lows, length], [0, *highs], strict=True)]


def _common_suffix(runs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    length = 0
    while all(len(run) > length and run[-1 - length] == runs[0][-1 - length] for run in runs):
        length += 1
    return runs[0][len(runs[0]) - length :]


def _groups(
    runs: Collection[tuple[int, ...]], others: Collection[tuple[int, ...]], blank: set[int], role: Role
) -> list[list[tuple[int, ...]]]:
    """Groups runs by the shortest end that tells their role.

    A generation prompt may end otherwise than a recorded turn (thinking models), and a content that begins with a
    newline may swallow the one that ends its header.
    """
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for run in dict.fromkeys(runs):
        ends = (run[-length:] for length in range(1, len(run) + 1))
        telling = next((end for end in ends if _tells(end, others, blank)), None)
        if telling is None:
            name = role.name.lower()
            raise BankError("chat_template", f"does not mark where the {name} begins; roles cannot be read from it")
        groups.setdefault(telling, []).append(run)
    return list(groups.values())


def _header(
    runs: Sequence[tuple[int, ...]], others: Collection[tuple[int, ...]], special: set[int], blank: set[int]
) -> tuple[int, ...]:
    common = _common_suffix(runs)
    suffixes = (common[-length:] for length in range(1, len(common) + 1) if common[-length] in special)
    # Without a special token in front: as much as there is, but for blanks, which contents are full of.
    whole = (common[start:] for start in range(len(common)) if common[start] not in blank)
    return next(suffix for suffix in (*suffixes, *whole) if _tells(suffix, others, blank))


def _tells(suffix: tuple[int, ...], others: Collection[tuple[int, ...]], blank: set[int]) -> bool:
    """Whether no run of another role ends like this; blanks tell nothing, for contents may begin with more of them."""
    words = _words(suffix, blank)
    return bool(words) and not any(_words(other, blank)[-len(words) :] == words for other in others)


def _words(run: tuple[int, ...], blank: set[int]) -> tuple[int, ...]:
    return tuple(token for token in run if token not in blank)
