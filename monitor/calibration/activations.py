"""Runs conversations through a model and keeps, per conversation, the mean hidden state of each role's last segment.

Scores are linear in the rows, so the mean row is all a fit needs; roles come from token ids exactly as in the sidecar.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from monitor.calibration.lines import Message
from monitor.capture.passes import LayerRows, decoder_blocks
from monitor.errors import CorpusError, SetupError
from monitor.probes.markers import Marker, Role
from monitor.turns.roles import RoleLabeller

Floats = NDArray[np.float32]
Progress = Callable[[int, int], None]

_BATCH_TOKENS = 4096
SHARD = 128
"""Conversations that are run, kept and told of together."""
ROLES = (Role.USER, Role.ASSISTANT)


@dataclass(frozen=True)
class Activations:
    """Pooled hidden states of N conversations at L layers.

    Attributes:
        layers: The layers.
        means: Mean row of the last user (0) and assistant (1) segment, [N, 2, L, H]; zeros without tokens.
        tokens: Tokens in each segment, [N, 2].
        token_ids: Tokens of both segments of all conversations, one after the other.
    """

    layers: tuple[int, ...]
    means: Floats
    tokens: NDArray[np.int64]
    token_ids: NDArray[np.int32]

    def ids(self, role: int) -> list[NDArray[np.int32]]:
        """Token ids of one role's segments (0 user, 1 assistant), a conversation each."""
        parts = np.split(self.token_ids, np.cumsum(self.tokens.reshape(-1))[:-1])
        return parts[role::2]


def render(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, as the server of the model would see them after the reply."""
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=False)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer("\n".join(message["content"] for message in messages))["input_ids"])


def segments(labeller: RoleLabeller, ids: Sequence[int]) -> NDArray[np.int64]:
    """For each token 0 in the last user segment, 1 in the last assistant segment, -1 elsewhere."""
    tokens = np.array(ids, np.int64)
    start = np.array([labeller.initial_state], np.int64)
    tails = np.full((1, labeller.tail_length), -1, np.int64)
    labels = labeller.label(tokens, np.array([len(tokens)]), start, tails)
    part = np.full(len(tokens), -1, np.int64)
    for number, role in enumerate(ROLES):
        begins = np.flatnonzero(labels.began == role)
        after = begins[-1] if len(begins) else -1
        part[(labels.roles == role) & (np.arange(len(tokens)) > after)] = number
    part[:1] = -1
    return part


def collect(
    model: Any,
    tokenizer: Any,
    markers: Sequence[Marker],
    conversations: Sequence[Sequence[Message]],
    layers: Sequence[int],
    *,
    places: Sequence[str] = (),
    cache: tuple[Path, str] | None = None,
    progress: Progress | None = None,
) -> Activations:
    """Runs a model over conversations.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        markers: Markers of its chat template.
        conversations: Messages of each conversation.
        layers: Layers to keep.
        places: Where each conversation stands, for errors; by default its number.
        cache: Folder that keeps what was computed, and the fingerprint of the model's weights. Work is kept in
            shards, so that a run that was cut off goes on where it stopped and a new corpus costs what changed.
        progress: Told of conversations done and in all.

    Raises:
        CorpusError: A conversation has no tokens, or none of a role that should be pooled, or is longer than the
            model's context.
        SetupError: The model's hidden states are not finite.
    """
    labeller = RoleLabeller(markers)
    places = places or [f"conversation {number}" for number in range(1, len(conversations) + 1)]
    shards = []
    for begin in range(0, len(conversations), SHARD):
        here = slice(begin, begin + SHARD)
        ids = [render(tokenizer, messages) for messages in conversations[here]]
        _check_lengths(ids, places[here], int(model.config.max_position_embeddings))
        parts = [segments(labeller, tokens) for tokens in ids]
        _check_segments(conversations[here], parts, places[here])
        shards.append(_shard(model, ids, parts, layers, cache))
        if progress is not None:
            progress(min(begin + SHARD, len(conversations)), len(conversations))
    whole = {name: np.concatenate([shard[name] for shard in shards]) for name in ("means", "tokens", "token_ids")}
    return Activations(tuple(layers), **whole)


def _shard(
    model: Any,
    ids: Sequence[Sequence[int]],
    parts: Sequence[NDArray[np.int64]],
    layers: Sequence[int],
    cache: tuple[Path, str] | None,
) -> dict[str, Any]:
    """Activations of some conversations, from the cache where it has them."""
    file = shard_file(cache, ids, parts, layers) if cache else None
    if file and file.is_file():
        # A shard that a full disk or a crash has cut short is made anew.
        with suppress(SafetensorError):
            return dict(load_file(file))
    means = np.zeros((len(ids), 2, len(layers), int(model.config.hidden_size)), np.float32)
    holders = _holders(ids)
    for batch in _batches({holder: len(ids[holder]) for holder in holders}):
        rows = _rows(model, [ids[holder] for holder in batch], layers)
        for number, holder in enumerate(batch):
            for index in holders[holder]:
                means[index] = _pooled(rows[number], parts[index])
    if not np.isfinite(means).all():
        raise SetupError("--model", "its hidden states are not finite; look at its weights, or load it as float32")
    tokens = np.array([[int((part == role).sum()) for role in (0, 1)] for part in parts], np.int64)
    flat = [np.array(row, np.int32)[part == role] for row, part in zip(ids, parts, strict=True) for role in (0, 1)]
    found: dict[str, Any] = {"means": means, "tokens": tokens, "token_ids": np.concatenate(flat)}
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file(found, partial)
        partial.replace(file)
    return found


def shard_file(
    cache: tuple[Path, str], ids: Sequence[Sequence[int]], parts: Sequence[NDArray[np.int64]], layers: Sequence[int]
) -> Path:
    """Where the cache keeps a shard: named by everything its content depends on."""
    folder, fingerprint = cache
    digest = hashlib.sha256(json.dumps([fingerprint, list(layers)]).encode())
    for tokens, part in zip(ids, parts, strict=True):
        digest.update(np.array([len(tokens), *tokens], np.int64).tobytes() + part.astype(np.int64).tobytes())
    return folder / f"{digest.hexdigest()[:24]}.safetensors"


def _check_lengths(ids: Sequence[Sequence[int]], places: Sequence[str], context: int) -> None:
    for tokens, place in zip(ids, places, strict=True):
        if not tokens:
            raise CorpusError(place, "has no tokens; remove it")
        if len(tokens) > context:
            raise CorpusError(place, f"has {len(tokens)} tokens, the model's context {context}; cut it")


def _check_segments(
    conversations: Sequence[Sequence[Message]], parts: Sequence[NDArray[np.int64]], places: Sequence[str]
) -> None:
    """Refuses zeros where a mean belongs."""
    for messages, part, place in zip(conversations, parts, places, strict=True):
        for number, role in enumerate(ROLES):
            name = role.name.lower()
            if any(message["role"] == name for message in messages) and not (part == number).any():
                raise CorpusError(
                    place, f"has no {name} tokens that the chat template's markers show; write some or remove it"
                )


def _holders(ids: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    """Conversations to be run, each with those it holds: itself and every one it begins with.

    Hidden states of a token depend on earlier tokens alone, so an exchange of a dialogue need not be run again.
    """
    order = sorted(range(len(ids)), key=lambda index: list(ids[index]))
    held: dict[int, list[int]] = {}
    holder = -1
    for index in reversed(order):
        if holder < 0 or ids[holder][: len(ids[index])] != ids[index]:
            holder = index
            held[holder] = []
        held[holder].append(index)
    return held


def _batches(lengths: dict[int, int]) -> Iterator[list[int]]:
    """Batches of like length, longest first."""
    batch: list[int] = []
    for index in sorted(lengths, key=lambda index: (-lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def _rows(model: Any, ids: Sequence[Sequence[int]], layers: Sequence[int]) -> torch.Tensor:
    """Hidden states of a batch, padding included: [batch, tokens, layers, hidden]."""
    width = max(map(len, ids))
    tokens = torch.zeros((len(ids), width), dtype=torch.long)
    for row, sequence in enumerate(ids):
        tokens[row, : len(sequence)] = torch.tensor(sequence)
    mask = (torch.arange(width) < torch.tensor([len(sequence) for sequence in ids])[:, None]).long()
    kept = LayerRows(model, layers)
    stop = stop_at(model, max(layers))
    try:
        with suppress(LastLayerReachedError):
            model.base_model(input_ids=tokens.to(model.device), attention_mask=mask.to(model.device), use_cache=False)
        return torch.stack([kept.rows[layer].float().cpu() for layer in layers], dim=2)
    finally:
        kept.close()
        stop.remove()


def _pooled(rows: torch.Tensor, part: NDArray[np.int64]) -> Floats:
    """Mean rows of each role's segment of a conversation that the rows, [tokens, layers, hidden], begin with."""
    pooled = torch.zeros((2, *rows.shape[1:]))
    for role in (0, 1):
        held = np.flatnonzero(part == role)
        if held.size:
            # A sum, not a matrix product, whose order of summation depends on the machine.
            pooled[role] = rows[torch.from_numpy(held)].sum(0) / held.size
    return pooled.numpy()


class LastLayerReachedError(Exception):
    """No later layer is wanted of this forward pass."""


def stop_at(model: Any, layer: int) -> Any:
    """Ends every forward pass before block ``layer``, once the hooks before this one have seen what enters it."""
    blocks = decoder_blocks(model)
    if layer == len(blocks):
        return blocks[-1].register_forward_hook(lambda *_: None)

    def stop(*_: Any) -> None:
        raise LastLayerReachedError

    return blocks[layer].register_forward_pre_hook(stop)
