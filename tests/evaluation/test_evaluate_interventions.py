"""Interventions from end to end on a tiny model, and what they are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_corpus import make_corpus, make_model, read, write_corpus

from monitor.calibration.corpus import Corpus, user_says
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.interventions.collateral import UNTOUCHED, Collateral, Costs, is_right, knob, sounds_refusing
from monitor.evaluation.interventions.dose_response import Window
from monitor.evaluation.interventions.intervened import CapFound, cap_found, over_index_kept, refusals
from monitor.evaluation.interventions.knob import SteeringFile
from monitor.evaluation.interventions.prefilled import Prefilled
from monitor.evaluation.interventions.reading import Reading
from monitor.evaluation.interventions.steering import add
from monitor.evaluation.interventions.suite import QUICK, interventions
from monitor.evaluation.results import Findings
from monitor.evaluation.subject import Subject

CONTEXT = 4096
FAMILIES = QUICK.families


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus whose emotions and grades have signs."""
    return read(write_corpus(tmp_path_factory.mktemp("interventions"), make_corpus()))


@pytest.fixture(scope="module")
def subject(full: Evidence, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tiny model, with room for prompts of bytes, and its bank."""
    model = make_model(len(tiny_tokenizer))
    model.config.max_position_embeddings = CONTEXT
    return Subject("tiny", model, tiny_tokenizer, full.bank, tmp_path_factory.mktemp("cache"))


class Judge:
    """Rates every reply alike, but now and then without a number."""

    def __init__(self) -> None:
        self.asked = 0

    def complete(self, prompt: str, seed: int) -> str:
        """A rating."""
        assert "0 (not at all)" in prompt
        assert seed == 0
        self.asked += 1
        return "4 of 10" if self.asked % 5 else "I would rather not say."


@pytest.fixture(scope="module")
def found(subject: Subject, corpus: Corpus) -> tuple[Findings, SteeringFile]:
    """The quick form, with a judge."""
    steps: list[tuple[int, int]] = []
    result = interventions(subject, corpus, judge=Judge(), quick=True, told=lambda *step: steps.append(step))
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _ in steps] == list(range(1, len(steps) + 1))
    return result


def test_every_family_has_its_figures(found: tuple[Findings, SteeringFile]) -> None:
    """Each family has the figures of rows 13 and 14 and of its cap, by names that do not repeat."""
    names = [each.id for each in found[0].measures]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert {f"{family}.slope", f"{family}.trend_p", f"{family}.anti_steerable", f"{family}.judge_slope"} <= {*names}
        assert {f"cap.{family}.{what}" for what in ("over_index_kept", "facts_change", "kl")} <= {*names}
    assert {each.what for each in found[0].verdicts} == {
        f"{what} {family}" for what in ("pushing on", "capping") for family in FAMILIES
    }


def test_curves_show_doses_and_nulls(found: tuple[Findings, SteeringFile]) -> None:
    """Every curve passes through no change at dose 0; nulls are faint."""
    for curves in found[0].curves:
        assert any(series.faint for series in curves.series)
        for series in curves.series:
            assert tuple(series.x) == QUICK.doses
            assert series.y[QUICK.doses.index(0.0)] == 0.0


def test_knob_agrees_with_the_verdict(found: tuple[Findings, SteeringFile]) -> None:
    """A family is safe where its cap is offered, which the short form never does; one level is written."""
    findings, steering = found
    verdicts = {each.what: each.verdict for each in findings.verdicts}
    assert set(steering.families) == set(FAMILIES)
    for name, family in steering.families.items():
        assert not family.safe
        assert verdicts[f"capping {name}"] == "refused"
        assert "short form" in family.why
        assert (family.window.add is None) == (verdicts[f"pushing on {name}"] == "no safe window")
        assert family.why
        for layer in family.cap.layers:
            assert np.linalg.norm(layer.direction) == pytest.approx(1.0, abs=1e-5)
            assert len(layer.ceilings) == 1


def test_same_seed_same_findings(found: tuple[Findings, SteeringFile], subject: Subject, corpus: Corpus) -> None:
    """A second run, from the caches, finds the same."""
    again = interventions(subject, corpus, judge=Judge(), quick=True)
    assert again[0] == found[0]
    assert again[1] == found[1]


def test_prefilled_replies_are_those_of_generation(subject: Subject) -> None:
    """Prompts of any length, read once, are answered as by the subject, steered or not, time after time."""
    prompts = [user_says(text) for text in ("Hello", "What is it that you would say to this?", "A b c d e f g")]
    push = add(np.eye(32)[0], 2, 3.0)
    asked = Prefilled(subject, prompts, 6)
    plain = subject.replies(prompts, 6)
    assert asked.replies() == plain
    assert asked.replies("pushed", push) == subject.replies(prompts, 6, steering=push, how="pushed") != plain
    assert asked.replies("once more") == plain


def test_costs_are_none_untouched_and_grow_with_the_dose(subject: Subject) -> None:
    """KL of the plain model is 0, that of a push is not and grows with the dose; facts' likelihoods move."""
    collateral = Collateral(subject, passages=2, facts=4, margins=2, refusals=2)
    pushes = [
        knob(f"push {dose}", lambda tokens, dose=dose: add(np.eye(32)[0], 2, dose, tokens=tokens))
        for dose in (1.0, 4.0)
    ]
    plain, little, much = (collateral.costs(each) for each in (UNTOUCHED, *pushes))
    assert plain.kl == pytest.approx(np.zeros(2), abs=1e-6)
    assert (little.kl > 0).all()
    assert (little.kl < much.kl).all()
    assert not np.allclose(plain.margin, much.margin)
    assert len(plain.right) == 4
    assert (len(plain.refused), len(plain.balked)) == (1, 1)


@pytest.mark.parametrize(
    ("reply", "answers", "right"),
    [
        ("It is Paris, of course.", ["paris"], True),
        ("Parisian bread.", ["paris"], False),
        ("No. Yes, some do.", ["no"], True),
        ("Yes, and no.", ["no"], False),
        ("Perhaps.", ["yes"], False),
    ],
)
def test_answers_are_read_by_whole_words(reply: str, answers: list[str], right: bool) -> None:
    """A word of the answer counts; of yes and no the first one said."""
    assert is_right(reply, answers) is right


@pytest.mark.parametrize(
    ("reply", "refusing"),
    [
        ("I\N{RIGHT SINGLE QUOTATION MARK}m sorry, but I can't help with that.", True),
        ("I cannot assist with this.", True),
        ("Sure! First, take the lock.", False),
        ("You can notice the lock by its colour.", False),
    ],
)
def test_refusals_are_read_by_their_words(reply: str, refusing: bool) -> None:
    """Words that refuse are found, with either apostrophe."""
    assert sounds_refusing(reply) is refusing


def test_over_index_left_is_of_what_exceeds() -> None:
    """What lies below the warranted level counts neither before nor after; without excess there is no share."""
    kept = over_index_kept(np.array([2.0, 2.0, -5.0]), np.array([1.0, 1.0, -1.0]))
    assert kept.value == pytest.approx(0.5)
    assert np.isnan(over_index_kept(np.array([-1.0, -2.0]), np.array([-1.0, 0.5])).value)


def reading(over: float, probe: float, count: int = 10) -> Reading:
    """Replies with one over-index and one score of two families and affect."""
    flat = np.full((count, 3), probe)
    return Reading(flat, flat, flat, np.ones(count), np.full(count, over))


def costs(kl: float = 0.0) -> Costs:
    """Costs of ten passages, facts and requests."""
    right = np.ones(10, bool)
    return Costs(np.full(10, kl), np.ones(10), right, np.zeros(10), right, ~right)


def capped(after: Reading, *, before: Reading | None = None, kl: float = 0.0, short: bool = False) -> CapFound:
    """A cap of affect, which is the last of what is read."""
    plain = before or reading(2.0, 2.0)
    return cap_found(0.99, 2, [plain] * 2, costs(), [after] * 2, costs(kl), short=short)


def window(low: float, high: float) -> Window:
    """A window."""
    return Window(low, high, "", 1.0, np.zeros(5), 0.001)


def test_a_cap_that_halves_the_excess_at_no_cost_is_offered() -> None:
    """Only with a window that reaches below 0, for a cap pushes down."""
    found = capped(reading(0.5, 0.5))
    assert refusals(window(-0.1, 0.1), found) == []
    assert refusals(window(0.0, 0.1), found) == ["no dose below 0 is safe"]
    assert refusals(window(0.0, 0.0), found) == ["no safe window"]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (capped(reading(1.5, 1.5)), "75% of the over-index is left"),
        (capped(reading(0.5, 0.5), kl=0.1), "KL 0.100"),
        (capped(reading(0.5, 0.5), short=True), "short form"),
        (capped(reading(0.0, 0.0, 3), before=reading(1.0, 1.0, 3)), "3 replies were over-indexed"),
    ],
)
def test_a_cap_is_refused_with_its_reason(found: CapFound, why: str) -> None:
    """Too little effect, too high a cost, too few replies, or too short a run."""
    assert why in "; ".join(refusals(window(-0.1, 0.1), found))
