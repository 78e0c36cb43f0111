"""A bank's reference from an operator's own traffic: the probes stay, what is ordinary is learnt anew.

Turns come from conversations the operator approved, run through the bank's model, or from the baseline file of a
sidecar. That file holds no turn that alerted: a rule of rate a, fitted on turns from under a rule of rate b, alarms on
up to a + b of ordinary turns. Approved turns have no such cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from monitor.assess.baseline import BaselineLine
from monitor.assess.overindex import STANCES, finest_rate, target_values
from monitor.calibration.activations import Activations, Progress, collect
from monitor.calibration.corpus import sha256_of
from monitor.calibration.identity import check_identity, check_shape
from monitor.calibration.lines import Approved, read_lines
from monitor.calibration.reference import Reference, ReferenceTurns, fit_reference, stance_turns
from monitor.errors import CorpusError
from monitor.probes.bank import Bank, Columns, RowCard, Stance, seal, tensors_of
from monitor.probes.score import Scorer

Floats = NDArray[np.float64]

LEAST_TURNS = 50
"""Turns of a stance below which the bank's earlier reference stays: fewer show no upper twentieth."""
_BY_REFERENCE = {6, 7, 8, 11}
"""Rows of the battery that are measured against the reference."""


class Gathered(NamedTuple):
    """Turns for a reference, and where they come from.

    Attributes:
        turns: The turns, one at least.
        source: What they are, in words.
        place: The file, for errors.
    """

    turns: ReferenceTurns
    source: str
    place: Path


# -- turns ------------------------------------------------------------------------------------------------------------


def approved_turns(
    bank: Bank, model: Any, tokenizer: Any, path: Path, cache: Path | None = None, progress: Progress | None = None
) -> Gathered:
    """The last exchange of each approved conversation, scored by the bank's own probes.

    A line may say under which stance its reply is right: ``"labels": {"stance": "crisis"}``. Without it the reply is
    right on neutral and supportive routes.

    Args:
        bank: The bank.
        model: Its model.
        tokenizer: The model's tokenizer.
        path: Approved conversations, JSON Lines.
        cache: Folder for activations; none: nothing is kept.
        progress: Told of conversations done and in all.

    Raises:
        ModelMismatchError: The model is not the bank's.
        CorpusError: The file or a line of it cannot be used.
        SetupError: The model's hidden states are not finite.
    """
    check_shape(bank, model)
    check_identity(bank, model, tokenizer, "name its own model, or calibrate a bank for this one")
    lines, stance = _read_approved(path)
    found = collect(
        model, tokenizer, bank.markers, [line.conversation for line in lines], bank.card.layers,
        places=[f"{line.place}:messages" for line in lines],
        cache=(cache, bank.card.model.weights_fingerprint) if cache else None,
        progress=progress,
    )  # fmt: skip
    scorer = Scorer(bank)
    user, assistant = (_mean_scores(scorer, found, role) for role in (0, 1))
    turns = ReferenceTurns(user, assistant, found.tokens[:, 1], stance, group=stance)
    return Gathered(turns, f"{len(lines)} turns the operator approved", path)


def check_approved(path: Path) -> None:
    """Refuses approved conversations that no reference can be fitted to, before a model is loaded.

    Raises:
        CorpusError: The file or a line of it cannot be used, or there are too few turns for any stance.
    """
    _enough(_read_approved(path)[1], path)


def baseline_turns(bank: Bank, path: Path) -> Gathered:
    """The turns a sidecar wrote to its baseline file.

    Raises:
        CorpusError: The file cannot be read or holds none, or a line is no turn scored by the bank's probes.
    """
    lines = list(_baseline_lines(bank, path))
    if not lines:
        raise CorpusError(str(path), "holds no turns; let the sidecar that writes it judge some")
    stance = np.array([STANCES.index(line.stance) for line in lines])
    user, assistant = (
        np.array(scores) for scores in zip(*((line.user, line.assistant) for line in lines), strict=True)
    )
    turns = ReferenceTurns(user, assistant, np.array([line.tokens for line in lines]), stance, group=stance)
    return Gathered(turns, f"{len(lines)} turns of a sidecar's traffic that raised no alert", path)


def _read_approved(path: Path) -> tuple[list[Approved], NDArray[np.int64]]:
    """Approved conversations and the last stance that allows each."""
    lines = read_lines(path, Approved)
    if not lines:
        raise CorpusError(str(path), "holds no conversations; write at least one, of the bank's model")
    return lines, np.array([_stance_of(line) for line in lines])


def _enough(stance: NDArray[np.int64], place: Path) -> int:
    """How many stances have turns enough for a reference of their own."""
    # A turn that a stance allows is allowed by all before it, so that those with too few are the last ones.
    enough = sum(count >= LEAST_TURNS for count in stance_turns(stance).values())
    if not enough:
        raise CorpusError(
            str(place),
            f"holds {len(stance)} turns where a stance needs {LEAST_TURNS}; "
            "add approved conversations, or let the sidecar collect more",
        )
    return enough


def _stance_of(line: Approved) -> int:
    said = line.labels.get("stance", Stance.SUPPORTIVE.value)
    known = [stance.value for stance in STANCES]
    if said not in known:
        raise CorpusError(f"{line.place}:labels.stance", f"{said!r} is none of {known}; write one of them or none")
    return known.index(said)


def _mean_scores(scorer: Scorer, found: Activations, role: int) -> Floats:
    """Mean over tokens of the scores of one role's segments, [N, C]; the scorer is linear in the rows."""
    return np.stack([
        scorer.score(torch.from_numpy(mean).expand(len(ids), -1, -1), ids.astype(np.int64)).mean(0, np.float64)
        for mean, ids in zip(found.means[:, role], found.ids(role), strict=True)
    ])  # fmt: skip


def _baseline_lines(bank: Bank, path: Path) -> Iterator[BaselineLine]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorpusError("--baseline", f"{path}: {error.strerror}; name a file that can be read") from None
    for number, text in enumerate(raw.splitlines(), 1):
        try:
            line = BaselineLine.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "(line)"
            raise CorpusError(f"{path}:{number}:{field}", f"{first['msg']}; remove the line") from None
        if line.probes != bank.probes:
            raise CorpusError(
                f"{path}:{number}:probes",
                f"{line.probes} where bank {bank.card.bank_id} has {bank.probes}: scores of other probes are in other "
                f"units; name bank {line.bank}, or one refitted from it",
            )
        for name in ("user", "assistant"):
            has = len(getattr(line, name))
            if has != bank.columns.total:
                raise CorpusError(
                    f"{path}:{number}:{name}", f"{has} scores where the bank has {bank.columns.total}; remove the line"
                )
        yield line


# -- the bank ---------------------------------------------------------------------------------------------------------


def refit(bank: Bank, gathered: Gathered) -> Bank:
    """The bank with a reference of these turns; every probability stays what it was.

    A stance with fewer than ``LEAST_TURNS`` new turns keeps the bank's reference: under it a turn has the over-index
    and p-value it had. Other stances are judged by the new turns alone, which also give the units of all scores.

    Raises:
        CorpusError: There are too few turns for any stance.
    """
    turns = gathered.turns
    enough = _enough(turns.stance, gathered.place)
    reference = fit_reference(turns, bank.columns)
    if enough < len(STANCES):
        reference = _kept(bank, reference, enough)
    tensors = {**vars(bank.tensors), **reference._asdict(), "platt": _moved_platt(bank, reference)}
    card: dict[str, object] = bank.card.model_dump(exclude={"bank_id", "tensors_sha256"})
    card["reference"] = {"source": _words(gathered.source, STANCES[enough:], bank), "turns": _held(reference)}
    card["corpus_sha256"] = {**bank.card.corpus_sha256, "reference": sha256_of(gathered.place)}
    card["battery"] = [row.model_dump() for row in bank.card.battery if not _by_reference(row)]
    return seal(card, tensors_of(tensors))


def certified_rates(bank: Bank) -> dict[Stance, float]:
    """The finest false-alarm rate each stance's reference certifies."""
    return {stance: finest_rate(stance, turns) for stance, turns in bank.card.reference.turns.items()}


def _kept(bank: Bank, own: Reference, row: int) -> Reference:
    """A reference with the stances from ``row`` on as a bank has them, and their turns, all in its own units.

    Residuals have no unit: a line and its spread that move together leave over-index and p-value of every turn as they
    were. Fitting the old turns anew would not, for a bank does not say which traffic each of them is of.
    """
    tensors, columns = bank.tensors, bank.columns
    means, scales = tensors.turn_means.astype(np.float64), tensors.turn_scales.astype(np.float64)
    given_mean, mean = _targets(own.turn_means, columns)
    given_scale, scale = _targets(own.turn_scales, columns)
    given_was, was = _targets(means, columns)
    given_unit, unit = _targets(scales, columns)
    intercept, slope, brevity = np.moveaxis(tensors.warranted[row:].astype(np.float64), -1, 0)
    level = [
        was - mean + unit * (intercept + slope * (given_mean - given_was) / given_unit),
        unit * slope * given_scale / given_unit,
        unit * brevity,
    ]
    allowed = tensors.reference_stance >= row
    stored = np.stack([tensors.reference_user[allowed], tensors.reference_assistant[allowed]])
    turns = (stored * scales[:, None] + means[:, None] - own.turn_means[:, None]) / own.turn_scales[:, None]
    return own._replace(
        reference_user=np.concatenate([own.reference_user, turns[0]]),
        reference_assistant=np.concatenate([own.reference_assistant, turns[1]]),
        reference_tokens=np.concatenate([own.reference_tokens, tensors.reference_tokens[allowed]]),
        reference_stance=np.concatenate([own.reference_stance, tensors.reference_stance[allowed]]),
        warranted=np.concatenate([own.warranted[:row], np.stack(level, -1) / scale[:, None]]),
        spread=np.concatenate([own.spread[:row], tensors.spread[row:] * (unit / scale)[:, None]]),
        residuals=_stacked(own.residuals[:row], tensors.residuals[row:].astype(np.float64)),
    )


def _targets(scores: Floats, columns: Columns) -> tuple[Floats, Floats]:
    """Of user (0) and assistant (1) scores, [2, C], what targets are judged by and what they are, [T] each."""
    value, given = target_values(scores[0], scores[1], columns)
    return given, value


def _stacked(first: Floats, second: Floats) -> Floats:
    """Residuals of further stances below others, padded with NaN to the longer of them."""
    width = max(first.shape[2], second.shape[2])
    padded = [
        np.pad(part, ((0, 0), (0, 0), (0, width - part.shape[2])), constant_values=np.nan) for part in (first, second)
    ]
    return np.concatenate(padded)


def _held(reference: Reference) -> dict[Stance, int]:
    """How many turns each stance is judged by."""
    return dict(zip(STANCES, np.isfinite(reference.residuals[:, 0]).sum(axis=1).tolist(), strict=True))


def _moved_platt(bank: Bank, reference: Reference) -> Floats:
    """Slopes and intercepts that give new standardised scores the probabilities the old ones had, [2, E, 2]."""
    tensors, at = bank.tensors, bank.columns.emotion
    mean, scale = (array[:, at].astype(np.float64) for array in (tensors.turn_means, tensors.turn_scales))
    slope, intercept = np.moveaxis(tensors.platt.astype(np.float64), -1, 0)
    moved = slope * reference.turn_scales[:, at] / scale
    return np.stack([moved, intercept + slope * (reference.turn_means[:, at] - mean) / scale], -1)


def _words(said: str, kept: Sequence[Stance], bank: Bank) -> str:
    if not kept:
        return said
    names = " and ".join(stance.value for stance in kept)
    return f"{said}; fewer than {LEAST_TURNS} for {names}, which keeps the reference of bank {bank.card.bank_id}"


def _by_reference(row: RowCard) -> bool:
    number = re.match(r"\d+", row.number)
    return number is not None and int(number.group()) in _BY_REFERENCE
