"""What differs between two banks."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from builders import EMOTIONS, make_bank, make_battery, make_card, make_tensors

from monitor.probes.bank import Bank, Tensors, seal
from monitor.probes.diff import LOWEST, BankDiff, Change, compare, told

BANK = make_bank()


def other(tensors: dict[str, Any] | None = None, **card: Any) -> Bank:
    """``BANK`` with some arrays or fields of the card changed."""
    return seal({**make_card(), **card}, dataclasses.replace(make_tensors(), **(tensors or {})))


def changes(diff: BankDiff) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, with both values."""
    return {change.field: (change.a, change.b) for change in diff.fields}


def turned(degrees: float, layer: int, emotion: int) -> np.ndarray:
    """Directions of ``BANK``, one of them turned within the plane it spans with its neighbour."""
    directions = make_tensors().directions.copy()
    ours, next_one = directions[layer, emotion], directions[layer, emotion + 1]
    angle = np.deg2rad(degrees)
    directions[layer, emotion] = np.cos(angle) * ours + np.sin(angle) * next_one
    return directions


class TestSame:
    """One bank and itself."""

    def test_shows_nothing(self) -> None:
        """A bank and its copy are the same: no field, name, array or figure differs, and cosines are 1."""
        diff = compare(BANK, make_bank())
        assert diff.same
        assert not diff.fields
        assert not diff.tensors
        assert diff.emotions == diff.text_equivalent
        assert (diff.emotions.removed, diff.emotions.added) == ((), ())
        assert {row.change for row in diff.battery} == {0.0}
        assert diff.least_cosine == pytest.approx(1)
        assert list(told(diff)) == [f"both are bank {BANK.card.bank_id}"]


class TestCard:
    """Fields of the card."""

    @pytest.mark.parametrize(
        ("card", "field", "before", "after"),
        [
            ({"made_by": "others"}, "made_by", "tests", "others"),
            ({"validated": False}, "validated", True, False),
            ({"estimator": {"name": "made-up", "shrinkage": 0.5}}, "estimator.shrinkage", None, 0.5),
            ({"corpus_sha256": {"texts": "y" * 64}}, "corpus_sha256.texts", "x" * 64, "y" * 64),
            ({"model": {**make_card()["model"], "name": "tuned"}}, "model.name", "tiny", "tuned"),
            ({"markers": make_card()["markers"][:-1]}, "markers.6.role", "ASSISTANT", None),
            ({"reference": {"source": "own", "turns": make_card()["reference"]["turns"]}}, "reference.source",
             "made up", "own"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )  # fmt: skip
    def test_are_told_by_their_path(self, card: dict[str, Any], field: str, before: object, after: object) -> None:
        """A field that changed, is gone or is new stands with both values, and the banks are not the same."""
        diff = compare(BANK, other(**card))
        assert not diff.same
        assert changes(diff)[field] == (before, after)
        assert all(change.field.startswith(field.partition(".")[0]) for change in diff.fields)

    def test_reference_turns_by_stance(self) -> None:
        """Each stance whose reference has another size is told."""
        turns = {**make_card()["reference"]["turns"], "neutral": 500}
        diff = compare(BANK, other(reference={"source": "made up", "turns": turns}))
        assert diff.fields == (Change(field="reference.turns.neutral", a=200, b=500),)

    def test_emotions_that_came_and_went(self) -> None:
        """Emotions by name: those that are gone, those that are new, and what changed about one that stayed."""
        listed = [dict(emotion) for emotion in make_card()["emotions"]]
        listed[0]["name"], listed[1]["valence"] = "awe", -0.5
        diff = compare(BANK, other(emotions=listed, text_equivalent=("fear",)))
        assert (diff.emotions.removed, diff.emotions.added) == (("joy",), ("awe",))
        assert changes(diff)["emotions.affection.valence"] == (0.5, -0.5)
        assert (diff.text_equivalent.removed, diff.text_equivalent.added) == (("distress",), ("fear",))
        assert {cosine.emotion for cosine in diff.cosines} == {name for name, _ in EMOTIONS[1:]}
        lines = list(told(diff))
        assert "emotions: -joy, +awe" in lines
        assert "text-equivalent: -distress, +fear" in lines


class TestDirections:
    """Directions of shared emotions at shared layers."""

    @pytest.mark.parametrize("degrees", [1.0, 60.0, 180.0])
    def test_are_compared_by_their_cosine(self, degrees: float) -> None:
        """An emotion whose direction turned is the first of the table, at the layer where it turned furthest."""
        diff = compare(BANK, other({"directions": turned(degrees, layer=1, emotion=2)}))
        assert diff.least_cosine == pytest.approx(np.cos(np.deg2rad(degrees)), abs=1e-5)
        first, second = diff.cosines[:2]
        assert (first.emotion, first.layer) == ("fear", 2)
        assert first.cosine == diff.least_cosine
        assert second.cosine == pytest.approx(1)
        assert diff.tensors == ("directions",)
        assert any(line.startswith("  fear at layer 2: ") for line in told(diff))

    def test_are_matched_by_emotion_and_layer_and_not_by_place(self) -> None:
        """Another order of emotions, and other layers beside the shared one, change nothing of what is compared."""
        order, tensors = [2, 0, 3, 1], make_tensors()
        directions = tensors.directions.copy()
        directions[0, :4] = tensors.directions[1, order]
        listed = [make_card()["emotions"][index] for index in order]
        model = {**make_card()["model"], "depth": 4}
        diff = compare(BANK, other({"directions": directions}, emotions=listed, layers=(2, 4), model=model))
        assert diff.layers == (2,)
        assert {cosine.layer for cosine in diff.cosines} == {2}
        assert diff.least_cosine == pytest.approx(1)
        assert (diff.emotions.removed, diff.emotions.added) == ((), ())

    @pytest.mark.parametrize("bank", [make_bank(hidden_size=32), make_bank(layers=(3, 4), depth=4)])
    def test_without_anything_in_common_have_no_cosine(self, bank: Bank) -> None:
        """Banks of another width, or without a shared layer, differ otherwise and have no cosine."""
        diff = compare(BANK, bank)
        assert (diff.least_cosine, diff.cosines) == (None, ())
        assert not diff.same
        assert not any("cosine" in line for line in told(diff))

    def test_table_is_bounded(self) -> None:
        """Of many emotions the five that differ most are listed, lowest first."""
        names = [f"e{number}" for number in range(8)]
        card = make_card() | {
            "emotions": [{"name": name, "family": "warmth", "valence": 0, "arousal": 0} for name in names],
            "text_equivalent": (),
        }
        banks = [seal(card, _of_emotions(seed, len(names))) for seed in (0, 1)]
        found = [cosine.cosine for cosine in compare(*banks).cosines]
        assert len(found) == LOWEST
        assert found == sorted(found)


def _of_emotions(seed: int, emotions: int) -> Tensors:
    """Tensors of a bank of so many emotions whose directions are random."""
    small, more = make_tensors(seed=seed), emotions - len(EMOTIONS)
    rng = np.random.default_rng(seed)

    def wide(array: np.ndarray, axis: int, fill: float = 1.0) -> np.ndarray:
        shape = [*array.shape]
        shape[axis] = more
        return np.concatenate([np.full(shape, fill, np.float32), array], axis=axis)

    extra = rng.normal(size=(2, more, 16)).astype(np.float32)
    extra /= np.linalg.norm(extra, axis=2, keepdims=True)
    names = ("turn_means", "turn_scales", "reference_user", "reference_assistant")
    return dataclasses.replace(
        small,
        directions=np.concatenate([extra, small.directions], axis=1),
        scales=wide(small.scales, 1),
        platt=wide(small.platt, 1),
        **{name: wide(getattr(small, name), 1) for name in names},
    )


class TestBattery:
    """Rows side by side."""

    def test_have_both_figures_and_their_change(self) -> None:
        """Rows stand by number and name with both figures; one that is missing, or was not run, has no change."""
        battery = [*make_battery(**{"2": 0.75, "3": 0.5}), {**make_battery(**{"6": 0.0})[0], "value": None}]
        diff = compare(BANK, other(battery=battery))
        found = {row.number: (row.a, row.b, row.change) for row in diff.battery}
        assert found["2"] == (0.5, 0.75, 0.25)
        assert found["3"] == (None, 0.5, None)
        assert found["6"] == (0.625, None, None)
        assert found["7b"] == (0.75, None, None)
        lines = list(told(diff))
        assert "  2 row 2: 0.500 -> 0.750 (+0.250)" in lines
        assert "  6 row 6: 0.625 -> none" in lines


class TestTensors:
    """Arrays."""

    @pytest.mark.parametrize("name", ["platt", "residuals", "twin_weights", "reference_tokens"])
    def test_that_differ_are_named(self, name: str) -> None:
        """An array that changed anywhere is named, NaN in the same place is no change."""
        array = getattr(make_tensors(), name).copy()
        array.flat[0] -= 1
        diff = compare(BANK, other({name: array}))
        assert diff.tensors == (name,)
        assert not diff.fields


class TestJson:
    """For programs."""

    def test_holds_everything(self) -> None:
        """The JSON is strict and holds every part by name."""
        bank = other({"directions": turned(5.0, 0, 0)}, validated=False)
        found = json.loads(compare(BANK, bank).model_dump_json())
        assert found["bank_ids"] == [BANK.card.bank_id, bank.card.bank_id]
        assert found["same"] is False
        assert found["fields"] == [{"field": "validated", "a": True, "b": False}]
        assert found["cosines"][0]["emotion"] == "joy"
        assert len(found["battery"]) == len(BANK.card.battery)
