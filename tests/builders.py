"""Builders of small banks, tokenizers, statistics and assessments, for tests of every room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Metaspace

from monitor.assess.overindex import Excess, TurnAssessment
from monitor.probes.bank import Bank, Columns, Stance, Tensors, seal
from monitor.turns.tracker import TurnStats

Floats = NDArray[np.float32]

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML_WORDS = ("system", "user", "assistant", "ĊĊ", "ĊĠ", "Ġyou", "Ġthe")
EMOTIONS = (("joy", "warmth"), ("affection", "warmth"), ("fear", "contagion"), ("distress", "contagion"))
FAMILIES = ("warmth", "contagion")
REFERENCE_TURNS = {Stance.NEUTRAL: 200, Stance.SUPPORTIVE: 150, Stance.CRISIS: 100}
SLOPE, QUANTILE_95 = 0.4, 1.645


# -- tokenizers -------------------------------------------------------------------------------------------------------


def bpe_vocabulary(special: Sequence[str], words: Sequence[str], alphabet: Sequence[str]) -> dict[str, int]:
    """Special tokens first, then the alphabet, then every beginning of every word: ids that never change."""
    pieces = [word[:length] for word in words for length in range(2, len(word) + 1)]
    return {piece: number for number, piece in enumerate(dict.fromkeys([*special, *alphabet, *pieces]))}


def make_tokenizer(
    template: str | None,
    special: Sequence[str],
    *,
    eos: str,
    words: Sequence[str] = CHATML_WORDS,
    added: Sequence[str] = (),
    metaspace: bool = False,
) -> Any:
    """A fast tokenizer whose only merges are ``words``, byte-level as GPT-2's or with word marks as Llama 2's.

    Args:
        template: Chat template.
        special: Special tokens; they get the first ids.
        eos: Which of them ends a text.
        words: Words, or pieces with their marks, that are one token.
        added: Added tokens that are not special.
        metaspace: Whether spaces become marks in front of words.
    """
    from transformers import PreTrainedTokenizerFast

    alphabet = [*map(chr, range(32, 127)), "\n", "▁"] if metaspace else sorted(ByteLevel.alphabet())
    vocabulary = bpe_vocabulary(special, words, alphabet)
    merges = list(dict.fromkeys((word[:length], word[length]) for word in words for length in range(1, len(word))))
    backend = tokenizers.Tokenizer(BPE(vocabulary, merges))
    backend.pre_tokenizer = Metaspace() if metaspace else ByteLevel(add_prefix_space=False, use_regex=True)  # type: ignore[assignment]
    backend.decoder = decoders.Metaspace() if metaspace else decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in special])
    backend.add_tokens([tokenizers.AddedToken(text, special=False, normalized=False) for text in added])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def make_chatml_tokenizer() -> Any:
    """A ChatML tokenizer whose markers are those of ``make_bank``."""
    return make_tokenizer(CHATML, CHATML_SPECIAL, eos="<|im_end|>")


def chatml_ids() -> dict[str, int]:
    """Token ids of ``make_chatml_tokenizer``, by piece (newline: Ċ, space: Ġ)."""
    return bpe_vocabulary(CHATML_SPECIAL, CHATML_WORDS, sorted(ByteLevel.alphabet()))


# -- banks ------------------------------------------------------------------------------------------------------------


def make_card(hidden_size: int = 16, layers: tuple[int, ...] = (1, 2), depth: int = 2) -> dict[str, Any]:
    """What ``seal`` wants to be told of a bank."""
    ids = chatml_ids()
    markers: list[dict[str, object]] = [{"tokens": (ids["<|im_end|>"],), "role": "TEMPLATE"}]
    for role in ("system", "user", "assistant"):
        stem = (ids["<|im_start|>"], ids[role])
        # A content that begins with a newline swallows that of the header.
        markers += [{"tokens": tokens, "role": role.upper()} for tokens in (stem, (*stem, ids["Ċ"]))]
    return {
        "schema_version": 2,
        "made_by": "tests",
        "model": {
            "name": "tiny",
            "hidden_size": hidden_size,
            "depth": depth,
            "weights_fingerprint": "w" * 64,
            "tokenizer_hash": "t" * 64,
            "template_hash": "c" * 64,
        },
        "layers": layers,
        "markers": markers,
        "emotions": [{"name": name, "family": family, "valence": 0.5, "arousal": 0.5} for name, family in EMOTIONS],
        "families": FAMILIES,
        "estimator": {"name": "made-up"},
        "reference": {"source": "made up", "turns": REFERENCE_TURNS},
        "corpus_sha256": {"texts": "x" * 64},
        "battery": make_battery(),
        "text_equivalent": ("distress",),
        "validated": True,
    }


def make_battery(**values: float) -> tuple[dict[str, Any], ...]:
    """Rows of a battery, one for each number of ``values`` or for a few known ones."""
    return tuple(
        {
            "number": number, "name": f"row {number}", "bar": ">= 0.5", "value": value, "low": value - 0.25,
            "high": value + 0.25, "passed": value >= 0.5, "note": "",
        }
        for number, value in (values or {"2": 0.5, "6": 0.625, "7b": 0.75, "11": 0.375, "12a": 0.9}).items()
    )  # fmt: skip


def make_tensors(hidden_size: int = 16, layers: int = 2, seed: int = 0) -> Tensors:
    """Orthonormal directions, and a reference in which A = SLOPE U + noise of unit variance."""
    rng = np.random.default_rng(seed)
    columns = Columns(len(EMOTIONS), len(FAMILIES))
    directions = np.stack([np.linalg.qr(rng.normal(size=(hidden_size, columns.probes)))[0].T for _ in range(layers)])
    turns = REFERENCE_TURNS[Stance.NEUTRAL]
    user = rng.normal(size=(turns, columns.total))
    targets = columns.families + 2
    shape = (len(Stance), targets)
    residuals = np.full((*shape, turns), np.nan)
    for stance, count in enumerate(REFERENCE_TURNS.values()):
        residuals[stance, :, :count] = np.sort(rng.normal(size=(targets, count)) - QUANTILE_95, axis=1)
    noise = rng.normal(size=(turns, columns.total))
    crisis, supportive = REFERENCE_TURNS[Stance.CRISIS], REFERENCE_TURNS[Stance.SUPPORTIVE]
    last = np.repeat([2, 1, 0], [crisis, supportive - crisis, turns - supportive])
    tokens = np.sort(rng.choice(np.arange(3, 250), 40, replace=False))

    def single(array: NDArray[Any]) -> Floats:
        return array.astype(np.float32)

    return Tensors(
        directions=single(directions),
        centres=single(rng.normal(size=(layers, hidden_size))),
        scales=single(rng.uniform(0.5, 2, (layers, columns.probes))),
        twin_tokens=tokens.astype(np.int32),
        twin_weights=single(rng.normal(size=(len(tokens), columns.twins))),
        turn_means=single(rng.normal(0, 0.3, (2, columns.total))),
        turn_scales=single(rng.uniform(0.5, 1.5, (2, columns.total))),
        platt=single(np.tile([[[1.5, -1.0]], [[1.25, -0.75]]], (1, columns.emotions, 1))),
        reference_user=single(user),
        reference_assistant=single(SLOPE * user + noise),
        reference_tokens=rng.integers(8, 200, turns).astype(np.int32),
        reference_stance=rng.permutation(last).astype(np.int32),
        warranted=single(np.tile([QUANTILE_95, SLOPE, 0.0], (*shape, 1))),
        spread=single(np.tile([1.0, 0.0], (*shape, 1))),
        residuals=single(residuals),
    )


def make_bank(hidden_size: int = 16, layers: tuple[int, ...] = (1, 2), depth: int = 2, seed: int = 0) -> Bank:
    """A sealed bank of four emotions in two families, with ChatML markers and 200 reference turns."""
    return seal(make_card(hidden_size, layers, depth), make_tensors(hidden_size, len(layers), seed))


def rows_scoring(bank: Bank, scores: NDArray[Any]) -> Floats:
    """Hidden states [tokens, layers, hidden] that a bank of ``make_bank`` gives these probe scores [tokens, probes]."""
    tensors = bank.tensors
    rows: Floats = tensors.centres + np.einsum("np,lp,lph->nlh", scores, tensors.scales, tensors.directions)
    return rows.astype(np.float32)


# -- turns ------------------------------------------------------------------------------------------------------------


def make_stats(bank: Bank, user: Any = 0.0, assistant: Any = 0.0, **fields: Any) -> TurnStats:
    """Statistics of a turn by its standardised scores, one for all columns or one for each."""
    means, scales = bank.tensors.turn_means, bank.tensors.turn_scales
    rows = [means[role] + scales[role] * np.float32(value) for role, value in enumerate((user, assistant))]
    affect = bank.columns.assistant_affect
    tokens: dict[str, Any] = {
        "user": rows[0], "assistant": rows[1], "header": float(rows[1][affect]), "peak": float(rows[1][affect]),
        "user_tokens": 10, "assistant_tokens": 20, "seen_tokens": 40, "scored_tokens": 40,
        "replayed_tokens": 0, "missing_tokens": 0, "filled_tokens": 0,
    }  # fmt: skip
    return TurnStats(**(tokens | fields))


def make_assessment(p_value: float = 1.0, over_index: float = -1.0, **families: float) -> TurnAssessment:
    """An assessment with this affect, and p-values of families that are all in bounds unless given."""

    def excess(p: float) -> Excess:
        return Excess(over_index + QUANTILE_95, QUANTILE_95, over_index, p)

    return TurnAssessment(
        user_affect=0.0,
        affect=excess(p_value),
        twin=excess(1.0),
        families={family: excess(families.get(family, 1.0)) for family in FAMILIES},
        emotions={},
        user_emotions={},
        user_families={},
        prepared=0.0,
        peak=0.0,
    )
