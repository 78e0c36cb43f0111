"""Prompts read once and answered many times, each time under another steering.

A prompt is not steered (``Tokens.GENERATED``), so its keys and values are the same under every steering: what is left
of a reply is a pass a token.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch

from monitor.calibration.lines import Message
from monitor.evaluation.subject import Steering, Subject, cache_name

_BATCH = 64


class _Read(NamedTuple):
    """A batch of prompts, padded at the left.

    Attributes:
        cache: Keys and values of the prompts.
        mask: 1 where a prompt's token stands, [batch, width].
        first: The token each reply begins with, [batch].
    """

    cache: Any
    mask: torch.Tensor
    first: torch.Tensor


class Prefilled:
    """Prompts and the beginning of whatever is replied to them.

    Args:
        subject: The model.
        prompts: Conversations that end with a user's message.
        tokens: Tokens of a reply at most.
    """

    def __init__(self, subject: Subject, prompts: Sequence[Sequence[Message]], tokens: int) -> None:
        self.subject, self.prompts, self._tokens = subject, list(prompts), tokens
        ids = [subject.prompt_ids(messages) for messages in prompts]
        self._batches = [ids[begin : begin + _BATCH] for begin in range(0, len(ids), _BATCH)]
        self._read: dict[int, _Read] = {}
        self._cache_name = cache_name(subject.model)

    def replies(self, how: str = "", steering: Steering | None = None) -> list[str]:
        """Greedy replies, kept under the subject's cache.

        Args:
            how: Everything of the steering that replies depend on.
            steering: Changes the model while it writes.
        """
        found: list[str] = []
        for number, batch in enumerate(self._batches):
            asked = hashlib.sha256(json.dumps(batch).encode()).hexdigest()
            key = ["prefilled", how, self._tokens, self.subject.ends, asked]
            found += self.subject.stored(key, partial(self._written, number, steering))
        return found

    @torch.inference_mode()
    def _written(self, number: int, steering: Steering | None) -> list[str]:
        subject = self.subject
        if number not in self._read:
            self._read[number] = self._prefill(self._batches[number])
        read = self._read[number]
        with steering(subject.model) if steering else nullcontext():
            ids = self._continued(read)
        told: list[str] = subject.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in told]

    def _prefill(self, batch: Sequence[Sequence[int]]) -> _Read:
        width, device = max(map(len, batch)), self.subject.model.device
        ids, mask = torch.zeros((2, len(batch), width), dtype=torch.long)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ids, mask = ids.to(device), mask.to(device)
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        out = self.subject.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
        )
        return _Read(getattr(out, self._cache_name), mask, out.logits[:, -1].argmax(-1))

    def _continued(self, read: _Read) -> torch.Tensor:
        """Tokens of the replies, ends and what follows them as the first token that ends a reply, [batch, tokens]."""
        cache, mask, token = copy.deepcopy(read.cache), read.mask, read.first
        ends = torch.tensor(self.subject.ends, device=token.device)
        said, over = [token], torch.isin(token, ends)
        while len(said) < self._tokens and not over.all():
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
            out = self.subject.model(
                input_ids=token[:, None], attention_mask=mask, position_ids=mask.sum(dim=1, keepdim=True) - 1,
                use_cache=True, **{self._cache_name: cache},
            )  # fmt: skip
            token = torch.where(over, ends[0], out.logits[:, -1].argmax(-1))
            over = over | torch.isin(token, ends)
            said.append(token)
        return torch.stack(said, dim=1)
