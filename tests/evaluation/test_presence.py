"""Verdicts on emotions under perturbation, on scores whose truth is planted."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from monitor.evaluation.robustness.perturbed import CLEAN, Case, Item, Items, kinds_of, plan, read_items
from monitor.evaluation.robustness.presence import COLLAPSES, HOLDS, TASK_SHAPED, TEXT_EQUIVALENT, Presence, Study
from monitor.evaluation.robustness.recognition import Read

Floats = NDArray[np.float64]
PAIRS = 40


def presence(
    *,
    probe: float = 4.0,
    perturbed: float = 4.0,
    twin: float = 0.0,
    lost: float = 0.0,
    frame: float = 0.0,
    about: bool = False,
) -> Presence:
    """One emotion, ``joy``, under style.

    Args:
        probe: How far the probe's scores of its clean texts lie above those of neutral ones.
        perturbed: The same of perturbed texts.
        twin: The same of the twin's scores of all of them.
        lost: Share of the perturbed texts that score as neutral ones do.
        frame: What the perturbation adds to every score.
        about: Whether texts are only talked about.
    """  # fmt: skip
    rng = np.random.default_rng(0)
    texts = [Item(f"pair {pair}", emotion, 0, "") for pair in range(PAIRS) for emotion in ("joy", "neutral")]
    cases = [Case(kind, index, (), 1) for kind in (CLEAN, "style") for index in range(len(texts))]
    noise = rng.normal(size=len(cases))
    joy = np.array([texts[case.item].emotion == "joy" for case in cases])
    style = np.array([case.kind == "style" for case in cases])
    gone = np.array([case.item // 2 < lost * PAIRS for case in cases])
    probes = noise + joy * np.where(style, perturbed * ~gone, probe) + style * frame
    read = Read(probes[:, None], (rng.normal(size=len(cases)) + twin * joy)[:, None], rng.normal(size=(len(cases), 50)))
    study = Study(Items(texts, [], []), cases, read, ["joy"], {"joy": 1}, seed=0)
    return study.of("joy", "style", about=about)


class TestVerdict:
    """One word for an emotion under a kind of perturbation."""

    def test_what_is_found_as_before_holds(self) -> None:
        """Found as before, with few false alarms, where words tell nothing."""
        found = presence()
        assert found.verdict == HOLDS
        assert found.probe.auroc[0] > 0.95
        assert found.probe.clean[0] == pytest.approx(found.probe.recall[0], abs=0.1)

    def test_what_loses_a_quarter_is_task_shaped(self) -> None:
        """More than 10 points of recall are lost, and less than half."""
        found = presence(lost=0.25)
        assert found.loss[0] == pytest.approx(0.25, abs=0.1)
        assert found.verdict == TASK_SHAPED

    def test_what_fires_by_the_frame_is_task_shaped(self) -> None:
        """No recall is lost, but neutral texts in the same frame fire too."""
        found = presence(frame=1.5)
        assert found.loss[0] <= 0.1
        assert found.probe.alarms[0] > 0.1
        assert found.verdict == TASK_SHAPED

    def test_what_words_tell_is_text_equivalent(self) -> None:
        """The twin finds it as well, whatever the probe finds."""
        assert presence(twin=5.0).verdict == TEXT_EQUIVALENT

    def test_what_loses_most_collapses(self) -> None:
        """Fewer than half of the texts found clean are found."""
        assert presence(lost=0.7).verdict == COLLAPSES

    def test_what_was_never_found_collapses(self) -> None:
        """An AUROC that may be 0.5 is no presence."""
        found = presence(probe=0.0, perturbed=0.0)
        assert found.verdict == COLLAPSES
        assert found.above < 0.99

    @pytest.mark.parametrize(
        ("perturbed", "twin", "verdict"),
        [(0.0, 5.0, HOLDS), (0.0, 0.0, TEXT_EQUIVALENT), (1.0, 5.0, TASK_SHAPED), (4.0, 5.0, COLLAPSES)],
    )
    def test_talk_of_an_emotion_should_not_fire(self, perturbed: float, twin: float, verdict: str) -> None:
        """Where texts are only talked about, what fires counts, and the twin is what would fire by words."""
        assert presence(perturbed=perturbed, twin=twin, about=True).verdict == verdict

    def test_the_nulls_are_at_chance(self) -> None:
        """Shuffled labels hardly reach the AUROC of a probe that finds its emotion, nor do random directions."""
        found = presence()
        assert 0.5 < found.shuffled < 0.7
        assert found.chance == 0
        assert found.above == 1


class TestPlan:
    """Which texts are read under which perturbations."""

    def test_the_texts_of_a_pair_are_perturbed_alike(self) -> None:
        """A neutral text stands beside each emotional one under the same perturbations, for those of either valence."""
        items = read_items()
        signs = {name: -1 if name in {"sadness", "fear", "anger", "contempt"} else 1 for name in items.emotions}
        cases = plan(items, kinds_of(items.perturbations), signs, 3, 1, np.random.default_rng(0))
        how = {
            (case.kind, items.texts[case.item].pair, case.sign, items.texts[case.item].emotion): case.how
            for case in cases
        }
        for (kind, pair, sign, emotion), chosen in how.items():
            assert how[kind, pair, sign, "neutral"] == chosen, emotion

    def test_perturbations_suit_position_and_valence(self) -> None:
        """None is used for whom it does not suit, nor against an emotion it does not contradict."""
        items = read_items()
        signs = {name: -1 if name in {"sadness", "fear", "anger", "contempt"} else 1 for name in items.emotions}
        for case in plan(items, kinds_of(items.perturbations), signs, 10, 3, np.random.default_rng(0)):
            position = ("user", "assistant")[items.texts[case.item].position]
            for each in (items.perturbations[index] for index in case.how):
                assert position in each.get("roles", [position])
                assert each.get("against") in {None, "negative" if case.sign < 0 else "positive"}

    def test_every_family_is_used_and_its_perturbations_equally(self) -> None:
        """Of the perturbations of a family none comes up much more often than another."""
        items = read_items()
        signs = dict.fromkeys(items.emotions, 1)
        cases = plan(items, kinds_of(items.perturbations), signs, 10, 3, np.random.default_rng(0))
        typing = [case.how[0] for case in cases if case.kind == "typing"]
        counts = np.unique(typing, return_counts=True)[1]
        assert len(counts) == 5
        assert counts.max() - counts.min() <= 6
        assert {case.kind for case in cases} >= {each["family"] for each in items.perturbations} - {"padding"}
