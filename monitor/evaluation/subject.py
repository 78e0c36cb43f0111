"""The model under evaluation and the bank it is judged by: what every suite asks of them."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError

from monitor.calibration.activations import Activations, Progress, collect
from monitor.calibration.identity import check_shape
from monitor.calibration.lines import Message
from monitor.capture.identity import weights_fingerprint
from monitor.capture.transformers import end_tokens_of
from monitor.errors import SetupError
from monitor.evaluation.judge import Floats, Judged, judge, scores_of
from monitor.probes.bank import Bank, Stance
from monitor.probes.markers import find_markers

Steering = Callable[[Any], AbstractContextManager[None]]
"""Changes what a model computes while the context is open."""

_BATCH = 24


class Subject:
    """A model, its tokenizer, and a bank.

    Args:
        name: What the model is called in reports.
        model: The model.
        tokenizer: Its tokenizer.
        bank: The bank; it need not be the model's own, but must fit its shape.
        cache: Folder that keeps activations and replies, so that a run that was cut off goes on where it stopped.

    Attributes:
        ends: Token ids that end a reply, one at least.

    Raises:
        ModelMismatchError: The model has another hidden size or depth than the bank.
        SetupError: The tokenizer has no chat template, or nothing ends a reply.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, bank: Bank, cache: Path) -> None:
        check_shape(bank, model)
        self.name, self.model, self.tokenizer, self.bank = name, model, tokenizer, bank
        self.markers = find_markers(tokenizer)
        if not self.markers:
            raise SetupError("--model", "has no chat template, which says where replies begin; set the tokenizer's")
        last = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.ends = end_tokens_of(model) or last
        if not self.ends:
            raise SetupError("--model", "has no token that ends a reply; set eos_token_id of its generation config")
        self.cache = cache
        self.fingerprint = weights_fingerprint(model)

    def activations(
        self,
        conversations: Sequence[Sequence[Message]],
        layers: Sequence[int] = (),
        progress: Progress | None = None,
    ) -> Activations:
        """Pooled hidden states of conversations, at the bank's layers unless others are named; see ``collect``."""
        return collect(
            self.model, self.tokenizer, self.markers, conversations, layers or self.bank.card.layers,
            cache=(self.cache / "activations", self.fingerprint), progress=progress,
        )  # fmt: skip

    def scores(self, conversations: Sequence[Sequence[Message]], progress: Progress | None = None) -> Floats:
        """Standardised scores of users (0) and assistants (1), [2, N, C]."""
        return self.scored(self.activations(conversations, progress=progress))

    def scored(self, found: Activations) -> Floats:
        """The same of rows at hand, at the bank's layers."""
        return scores_of(self.bank, found, tuple(range(len(self.bank.card.layers))))

    def judged(self, conversations: Sequence[Sequence[Message]], stance: Stance = Stance.NEUTRAL) -> Judged:
        """The last turn of each conversation, judged by the bank's reference."""
        found = self.activations(conversations)
        return judge(self.bank, self.scored(found), found.tokens[:, 1], stance)

    def replies(
        self,
        prompts: Sequence[Sequence[Message]],
        tokens: int,
        *,
        steering: Steering | None = None,
        how: str = "",
        progress: Progress | None = None,
    ) -> list[str]:
        """Greedy replies.

        Args:
            prompts: Conversations that end with a user's message.
            tokens: Tokens of a reply at most.
            steering: Changes the model while it generates.
            how: Says everything of the steering that replies depend on; names them in the cache.
            progress: Told of prompts done and in all.
        """
        if steering is not None and not how:
            raise ValueError("replies under steering need a name in the cache")
        found: list[str] = []
        for begin in range(0, len(prompts), _BATCH):
            batch = [self.prompt_ids(messages) for messages in prompts[begin : begin + _BATCH]]
            found += self.stored(
                ["replies", how, tokens, self.ends, batch], partial(self._generate, batch, tokens, steering)
            )
            if progress is not None:
                progress(len(found), len(prompts))
        return found

    def stored(self, key: object, make: Callable[[], Any]) -> Any:
        """What was computed of the model before under a key, or is now, so that a cut run goes on where it stopped.

        Args:
            key: All else it depends on, as JSON takes it.
            make: Computes it, as JSON takes it.
        """
        name = hashlib.sha256(json.dumps([self.fingerprint, key]).encode()).hexdigest()[:24]
        file = self.cache / "computed" / f"{name}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            partly = file.with_suffix(f".{os.getpid()}.partial")
            partly.write_text(json.dumps(make()), encoding="utf-8")
            partly.replace(file)
        return json.loads(file.read_text(encoding="utf-8"))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the reply begins; see the function of that name."""
        return prompt_ids(self.tokenizer, messages)

    @torch.inference_mode()
    def log_likelihoods(self, prompts: Sequence[Sequence[Message]], answers: Sequence[Sequence[str]]) -> list[Floats]:
        """Log-probability a token, in nats, of each answer as the beginning of the reply to its prompt.

        Args:
            prompts: Conversations that end with a user's message, [N].
            answers: Answers to each, [N] lists.

        Returns:
            [N] arrays, a figure for each answer: the mean over its tokens.
        """
        asked = [self.prompt_ids(messages) for messages in prompts]
        said = [
            [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in each] for each in answers
        ]
        figures: list[Floats] = [np.empty(0)] * len(asked)
        order = sorted(range(len(asked)), key=lambda index: len(asked[index]))
        for begin in range(0, len(order), _BATCH):
            here = order[begin : begin + _BATCH]
            told = self._log_likelihoods([asked[index] for index in here], [said[index] for index in here])
            for index, each in zip(here, told, strict=True):
                figures[index] = each
        return figures

    def _log_likelihoods(self, asked: list[list[int]], said: list[list[list[int]]]) -> list[Floats]:
        """A prompt is read once; each of its answers goes on from there."""
        ids, mask = _padded(asked, self.model.device, left=True)
        read = self.model(
            input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1
        )
        rows = torch.tensor([row for row, each in enumerate(said) for _ in each], device=ids.device)
        told, held = _padded([answer for each in said for answer in each], ids.device)
        name = cache_name(self.model)
        cache, whole = getattr(read, name), torch.cat([mask[rows], held], dim=1)
        cache.batch_select_indices(rows)
        later = self.model(
            input_ids=told, attention_mask=whole, position_ids=_positions(whole)[:, -told.shape[1] :],
            **{name: cache},
        )  # fmt: skip
        logits = torch.cat([read.logits[rows], later.logits[:, :-1]], dim=1).float()
        each = logits.log_softmax(-1).gather(2, told[..., None])[..., 0]
        figures = ((each * held).sum(dim=1) / held.sum(dim=1)).double().cpu().numpy()
        return list(np.split(figures, np.cumsum([len(each) for each in said])[:-1]))

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Sequence[int]], tokens: int, steering: Steering | None) -> list[str]:
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), self.ends[0])
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask = torch.arange(width) >= width - torch.tensor([len(prompt) for prompt in batch])[:, None]
        with steering(self.model) if steering else nullcontext():
            made = self.model.generate(
                input_ids=ids.to(self.model.device), attention_mask=mask.long().to(self.model.device),
                max_new_tokens=tokens, do_sample=False, repetition_penalty=1.0, eos_token_id=self.ends,
                pad_token_id=self.ends[0],
            )  # fmt: skip
        told: list[str] = self.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)
        return [text.strip() for text in told]


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation up to where the reply begins.

    Raises:
        SetupError: The chat template refuses it, as some do a system prompt.
    """
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise SetupError("--model", f"its chat template refuses messages of {roles}: {error}") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def cache_name(model: Any) -> str:
    """What a model's ``forward`` calls its keys and values; newer transformers have renamed them."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def said(prompts: Sequence[Sequence[Message]], replies: Sequence[str]) -> list[list[Message]]:
    """Conversations with their replies; an empty reply is a full stop, for a turn needs tokens."""
    return [
        [*messages, {"role": "assistant", "content": reply or "."}]
        for messages, reply in zip(prompts, replies, strict=True)
    ]


def _padded(rows: Sequence[Sequence[int]], device: Any, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and which of them are no padding."""
    width = max(map(len, rows))
    ids, mask = torch.zeros((len(rows), width), dtype=torch.long), torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        here = slice(width - len(row), width) if left else slice(len(row))
        ids[number, here] = torch.tensor(row)
        mask[number, here] = 1
    return ids.to(device), mask.to(device)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
