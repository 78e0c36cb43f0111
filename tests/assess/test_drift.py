"""Drift of one route."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from builders import SLOPE, make_stats, make_tensors

from monitor.assess.drift import ALARMS, MIRROR, OVERFITTING, USERS, Change, DriftWatch, Levels
from monitor.assess.overindex import AFFECT, Assessor, TurnAssessment
from monitor.probes.bank import Bank, Stance

ALPHA = 0.01
LEVELS = Levels(ALPHA, ALPHA, ("warmth",), 200)
LINE = -math.log(ALPHA)
REFERENCE = 600


def law(
    bank: Bank, rng: np.random.Generator, count: int
) -> tuple[np.ndarray[tuple[int, int], np.dtype[np.float64]], ...]:
    """Scores of turns in which everything the assistant shows follows the user's affect, and nothing else does."""
    columns = bank.columns
    user, noise = rng.normal(size=(2, count, columns.total))
    user[:, columns.expected_affect] = user[:, columns.twin_user_affect] = user[:, columns.user_affect]
    return user, noise


@pytest.fixture(scope="module")
def bank(small_bank: Bank) -> Bank:
    """A bank with 600 reference turns of that law, allowed under every stance."""
    user, noise = law(small_bank, np.random.default_rng(0), REFERENCE)
    at = small_bank.columns.user_affect
    tensors = replace(
        make_tensors(),
        reference_user=user.astype(np.float32),
        reference_assistant=(SLOPE * user[:, [at]] + noise).astype(np.float32),
        reference_tokens=np.full(REFERENCE, 20, np.int32),
        reference_stance=np.full(REFERENCE, 2, np.int32),
    )
    return Bank(small_bank.card, tensors)


def make_turns(
    bank: Bank,
    count: int,
    seed: int = 1,
    *,
    risen: float = 0.0,
    family: float = 0.0,
    users: float = 0.0,
    slope: float = 0.0,
    stance: Stance = Stance.NEUTRAL,
) -> Iterator[TurnAssessment]:
    """Turns of the reference's law, or changed.

    Args:
        bank: Assesses them.
        count: How many.
        seed: Of what is drawn.
        risen: How much more of everything the assistant shows.
        family: How much more warmth.
        users: How much more affect users show.
        slope: How much steeper the assistant follows them.
        stance: What the route asks.
    """
    columns, assessor = bank.columns, Assessor(bank)
    user, noise = law(bank, np.random.default_rng(seed), count)
    user[:, [columns.user_affect, columns.expected_affect]] += users
    assistant = (SLOPE + slope) * user[:, [columns.user_affect]] + noise + risen
    assistant[:, columns.emotions] += family  # the first family
    for each, shown in zip(user, assistant, strict=True):
        yield assessor.assess(make_stats(bank, each, shown), stance)


def play(watch: DriftWatch, turns: Iterator[TurnAssessment]) -> list[Change]:
    """Shows turns to a watch; returns the changes it told."""
    return [change for turn in turns for change in watch.observe(turn)]


def told(changes: list[Change]) -> list[tuple[str, bool, str]]:
    """Tests, whether their alarms came up, and what led."""
    return [(change.test, change.on, change.leading) for change in changes]


class TestAlarm:
    """What is told of which change."""

    def test_stays_off_while_nothing_changes(self, bank: Bank) -> None:
        """No alarm over 1,500 turns of the reference's law, and no evidence near a line."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        assert play(watch, make_turns(bank, 1500)) == []
        drift = watch.drift()
        assert drift.turns == 1500
        assert set(drift.log_evalues) == {"warmth", "contagion", AFFECT, OVERFITTING, MIRROR, USERS}
        assert max(drift.log_evalues.values()) < LINE
        assert drift.log_lines == pytest.approx(dict.fromkeys(ALARMS, LINE))
        assert not any(drift.alarms.values())

    def test_names_what_leads(self, bank: Bank) -> None:
        """More warmth alone, a family that counts, is overfitting led by warmth."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        changes = play(watch, make_turns(bank, 80, family=1.0))
        assert told(changes) == [(OVERFITTING, True, "warmth")]
        assert changes[0].log_evalue >= LINE
        assert watch.drift().alarms == {OVERFITTING: True, MIRROR: False, USERS: False}

    def test_does_not_page_for_a_family_that_does_not_count(self, bank: Bank) -> None:
        """The same change is seen in the family's own evidence and told to nobody."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS._replace(families=()))
        assert play(watch, make_turns(bank, 80, family=1.0)) == []
        assert watch.drift().log_evalues["warmth"] > LINE

    def test_finds_a_small_rise_in_affect(self, bank: Bank) -> None:
        """Half a standard deviation in everything, after 300 turns as ever, within 200 turns."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        assert play(watch, make_turns(bank, 300, 5)) == []
        changes = play(watch, make_turns(bank, 200, 2, risen=0.5))
        assert [(change.test, change.on) for change in changes] == [(OVERFITTING, True)]

    @pytest.mark.parametrize("users", [-1.0, 0.7])
    def test_of_users_alone_is_theirs(self, bank: Bank, users: float) -> None:
        """Users who show more or less, answered as such users are, have moved; the assistant has not."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        assert told(play(watch, make_turns(bank, 600, users=users))) == [(USERS, True, USERS)]

    def test_of_a_steeper_mirror(self, bank: Bank) -> None:
        """An assistant that takes on more of its users' mood, high and low, mirrors."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        assert (MIRROR, True, MIRROR) in told(play(watch, make_turns(bank, 400, slope=0.6)))

    def test_of_mirroring_asks_for_a_slope_not_a_level(self, bank: Bank) -> None:
        """Everything risen, under users who moved too, is no steeper."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        changes = play(watch, make_turns(bank, 400, risen=0.7, users=0.7))
        assert {change.test for change in changes} == {OVERFITTING, USERS}

    def test_holds_coldness_for_a_fault_in_a_crisis_only(self, bank: Bank) -> None:
        """Less affect than the reference pages on a crisis line and nowhere else."""
        found = {}
        for stance in (Stance.NEUTRAL, Stance.CRISIS):
            watch = DriftWatch(bank, stance, LEVELS)
            found[stance] = {change.test for change in play(watch, make_turns(bank, 100, risen=-1.0, stance=stance))}
        assert found == {Stance.NEUTRAL: set(), Stance.CRISIS: {OVERFITTING}}

    def test_keeps_its_evalue_at_the_line_until_it_is_undone(self, bank: Bank) -> None:
        """While it is on the e-value is at least the line; when the change is undone a run begins with e-value 1."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        play(watch, make_turns(bank, 60, risen=1.0))
        for turn in make_turns(bank, 200, 2):
            drift = watch.drift()
            assert drift.alarms[OVERFITTING]
            assert drift.log_evalues[OVERFITTING] >= LINE
            if changes := watch.observe(turn):
                break
        assert [(change.test, change.on) for change in changes] == [(OVERFITTING, False)]
        drift = watch.drift()
        assert drift.turns == 0
        assert not drift.alarms[OVERFITTING]
        assert [drift.log_evalues[test] for test in (OVERFITTING, AFFECT, "warmth", "contagion")] == pytest.approx(
            [0] * 4
        )

    @pytest.mark.parametrize("risen", [0.5, 1.5])
    def test_stays_on_while_the_change_lasts(self, bank: Bank, risen: float) -> None:
        """Told once, and never called undone in 1,000 turns."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        changes = play(watch, make_turns(bank, 1000, risen=risen))
        assert [change.on for change in changes if change.test == OVERFITTING] == [True]

    def test_comes_up_again_with_the_change(self, bank: Bank) -> None:
        """Risen, undone, risen: told each time, and silent between."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        changes = [
            [change.on for change in play(watch, make_turns(bank, 150, seed, risen=risen))]
            for seed, risen in enumerate((1.0, 0.0, 1.0, 0.0))
        ]
        assert changes == [[True], [False], [True], [False]]


class TestLearning:
    """Which turns later ones are ranked among."""

    def test_stops_while_the_assistant_has_changed(self, bank: Bank) -> None:
        """Turns of a change that was found do not become what is normal."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        changes = play(watch, make_turns(bank, 300, risen=1.5))
        learnt = watch.state()["ranks.counts"].sum() - REFERENCE
        assert learnt == changes[0].turns
        assert watch.state()["users.counts"].sum() == REFERENCE + 300

    def test_goes_on_while_users_have_moved(self, bank: Bank) -> None:
        """Other users answered as ever are learnt from, or a fixed sample's luck would be found in the end."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        changes = play(watch, make_turns(bank, 300, users=1.0))
        assert watch.state()["users.counts"].sum() - REFERENCE == changes[0].turns < 300
        assert watch.state()["ranks.counts"].sum() == REFERENCE + 300


class TestReload:
    """What a reloaded policy asks."""

    def test_leaves_evidence(self, bank: Bank) -> None:
        """Other levels move lines and what counts, and nothing that was gathered."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        play(watch, make_turns(bank, 20, family=0.4))
        before = watch.drift()
        watch.adopt(Levels(0.001, 0.05, (), 50))
        after = watch.drift()
        assert after.log_lines == pytest.approx(
            {OVERFITTING: -math.log(0.001), USERS: -math.log(0.001), MIRROR: -math.log(0.05)}
        )
        own = {test: value for test, value in before.log_evalues.items() if test != OVERFITTING}
        assert own.items() <= after.log_evalues.items()
        assert after.log_evalues[OVERFITTING] == pytest.approx(after.log_evalues[AFFECT])
        assert after.turns == before.turns

    def test_weighs_affect_as_much_as_all_families(self, bank: Bank) -> None:
        """The e-value that pages is half that of affect and half the mean of the families that count."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS._replace(families=("warmth", "contagion")))
        play(watch, make_turns(bank, 50, risen=0.3))
        values = {test: math.exp(value) for test, value in watch.drift().log_evalues.items()}
        assert values[OVERFITTING] == pytest.approx(values[AFFECT] / 2 + (values["warmth"] + values["contagion"]) / 4)


class TestState:
    """What a restarted sidecar goes on from."""

    def test_continues_as_if_never_stopped(self, bank: Bank) -> None:
        """Stopped in the midst of a change: the same alarm by the same evidence, but for lots; it is undone as well."""
        kept = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        play(kept, make_turns(bank, 400))
        play(kept, make_turns(bank, 20, 2, risen=0.8))
        restored = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        restored.restore(kept.state())
        assert restored.drift() == kept.drift()
        after = [play(watch, make_turns(bank, 60, 3, risen=0.8)) for watch in (kept, restored)]
        assert told(after[1]) == told(after[0]) != []
        values = [watch.drift().log_evalues for watch in (kept, restored)]
        assert values[1] == pytest.approx(values[0], abs=1)
        again = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        again.restore(restored.state())
        assert again.drift().alarms[OVERFITTING]
        assert [change.on for change in play(again, make_turns(bank, 150, 4))] == [False]

    def test_restored_twice_continues_the_same(self, bank: Bank) -> None:
        """All that matters is in the state: two watches that go on from it never differ."""
        before = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        play(before, make_turns(bank, 301, risen=0.1))
        watches = [DriftWatch(bank, Stance.NEUTRAL, LEVELS) for _ in range(2)]
        for watch in watches:
            watch.restore(before.state())
            play(watch, make_turns(bank, 100, 2, risen=0.3))
        assert watches[0].drift() == watches[1].drift()

    def test_is_not_changed_by_what_comes_after(self, bank: Bank) -> None:
        """A state that was taken may be written later."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        play(watch, make_turns(bank, 60, risen=1.0))
        state = watch.state()
        copies = {name: value.copy() for name, value in state.items()}
        assert play(watch, make_turns(bank, 150, 2)) != []
        assert all(np.array_equal(state[name], copy) for name, copy in copies.items())

    def test_of_another_bank_is_refused(self, bank: Bank, small_bank: Bank) -> None:
        """What does not fit is not taken over."""
        other = DriftWatch(small_bank, Stance.NEUTRAL, LEVELS).state()
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        with pytest.raises(ValueError, match="does not fit this bank and stance"):
            watch.restore(other)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("ranks.scores", math.nan),
            ("ranks.counts", -1),
            ("ranks.counts", 3000),
            ("users.counts", 1),
            ("log_capital", math.nan),
            ("log_capital", math.inf),
            ("turns", -1),
            ("alarms", math.nan),
            ("alarms", 99),
            ("recent", math.inf),
        ],
    )
    def test_that_is_damaged_is_refused_as_a_whole(self, bank: Bank, name: str, value: float) -> None:
        """Numbers that no watch can have raise no alarm: the watch stays as it was, and goes on."""
        state = DriftWatch(bank, Stance.NEUTRAL, LEVELS).state()
        play(watch := DriftWatch(bank, Stance.NEUTRAL, LEVELS), make_turns(bank, 60))
        before = watch.drift()
        state["recent"] = np.zeros((5, 3))
        state[name] = np.full_like(state[name], value)
        with pytest.raises(ValueError, match="damaged"):
            watch.restore(state)
        assert watch.drift() == before
        assert play(watch, make_turns(bank, 20, 2)) == []

    def test_of_a_coarser_level_alarms_at_a_finer_one_by_its_evidence_alone(self, bank: Bank) -> None:
        """What was found at odds of 100 is not shown as found at odds of a billion, reloaded or restarted."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        assert told(play(watch, make_turns(bank, 80, family=1.0)))[-1][:2] == (OVERFITTING, True)
        state, finer = watch.state(), LEVELS._replace(overfitting=1e-300)
        watch.adopt(finer)
        again = DriftWatch(bank, Stance.NEUTRAL, finer)
        again.restore(state)
        for each in (watch, again):
            drift = each.drift()
            assert not drift.alarms[OVERFITTING]
            assert LINE < drift.log_evalues[OVERFITTING] < drift.log_lines[OVERFITTING]


class TestTurns:
    """What is made of single turns."""

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_that_are_not_finite_leave_no_trace(self, bank: Bank, value: float) -> None:
        """Neither evidence nor what later turns are ranked among."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        play(watch, make_turns(bank, 10))
        before = watch.state()
        turn = next(make_turns(bank, 1, 2))
        bad = turn.affect._replace(over_index=value)
        assert watch.observe(turn._replace(affect=bad)) == []
        assert watch.observe(turn._replace(families=turn.families | {"warmth": bad})) == []
        after = watch.state()
        assert all(np.array_equal(before[name], value) for name, value in after.items())

    def test_are_compared_with_the_reference_once_there_are_enough(self, bank: Bank) -> None:
        """Distances of over-index and user affect appear at fifty turns, and tell which of the two has moved."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        play(watch, make_turns(bank, 49, users=1.0))
        assert watch.drift().distances == {}
        play(watch, make_turns(bank, 451, 2, users=1.0))
        distances = watch.drift().distances
        assert set(distances) == {(q, m) for q in ("over_index", "user_affect") for m in ("psi", "ks", "wasserstein")}
        assert distances["user_affect", "wasserstein"] == pytest.approx(1, abs=0.15)
        assert distances["over_index", "wasserstein"] < 0.2

    def test_show_their_slope(self, bank: Bank) -> None:
        """That of the last turns, as many as the policy asks for, beside the reference's."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        assert watch.drift().mirror is None
        play(watch, make_turns(bank, 300, slope=0.5))
        play(watch, make_turns(bank, 200, 2))
        drift = watch.drift()
        assert drift.mirror is not None
        assert drift.mirror_reference is not None
        assert drift.mirror.low < SLOPE < drift.mirror.high
        assert drift.mirror_reference.estimate == pytest.approx(SLOPE, abs=0.15)

    def test_are_remembered_in_a_bounded_number(self, bank: Bank) -> None:
        """However many come, the state has room for five hundred recent ones and four times the reference."""
        watch = DriftWatch(bank, Stance.NEUTRAL, LEVELS)
        play(watch, make_turns(bank, 3000))
        state = watch.state()
        assert len(state["recent"]) == 500
        assert max(len(state["ranks.scores"]), len(state["users.scores"])) <= 4 * REFERENCE


def test_little_reference_is_no_reason_to_call_it_mirroring(small_bank: Bank) -> None:
    """Where so few turns make one bin, over-indices that follow users as the reference's do are no steeper mirror."""
    columns, tensors = small_bank.columns, make_tensors()
    few = np.arange(100)
    user = tensors.reference_user[few].copy()
    user[:, columns.expected_affect] = 0.0
    bank = Bank(
        small_bank.card,
        replace(
            tensors,
            reference_user=user,
            reference_assistant=user[:, [columns.user_affect]] + 0.5 * tensors.reference_assistant[few],
            reference_tokens=tensors.reference_tokens[few],
            reference_stance=np.full(100, 2, np.int32),
        ),
    )
    watch, assessor = DriftWatch(bank, Stance.NEUTRAL, LEVELS), Assessor(bank)
    drawn = np.random.default_rng(1).integers(100, size=500)
    turns = (
        assessor.assess(make_stats(bank, user[each], bank.tensors.reference_assistant[each]), Stance.NEUTRAL)
        for each in drawn
    )
    assert play(watch, turns) == []
    assert watch.drift().log_evalues[MIRROR] == pytest.approx(0)
