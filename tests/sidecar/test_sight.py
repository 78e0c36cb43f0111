"""Whether the monitor sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.policy.marks import UNSEEN
from monitor.sidecar.sight import Sight


class Watched:
    """A sight whose changes are remembered."""

    def __init__(self) -> None:
        self.sight = Sight()
        self.blind = False

    def turns(self, *turns: list[str], times: int = 1) -> bool:
        """Whether it is blind after these turns, so often."""
        for marks in turns * times:
            changed = self.sight.turn(marks)
            assert changed != self.blind
            self.blind = self.blind if changed is None else changed
        return self.blind


class TestSight:
    """The last turns that were meant to be judged."""

    @pytest.mark.parametrize("mark", sorted(UNSEEN))
    def test_is_lost_when_turns_are_not_seen(self, mark: str) -> None:
        """Half of twenty turns unseen, by whatever mark, is blindness; nineteen turns say nothing yet."""
        sight = Watched()
        assert not sight.turns([], times=10)
        assert not sight.turns([mark], times=9)
        assert sight.turns([mark])
        assert sight.sight.description == f"10 of the last 20 turns could not be judged (10 {mark})."

    def test_comes_back_late(self) -> None:
        """Blind at a half, it sees again below a quarter: it does not flicker in between."""
        sight = Watched()
        assert sight.turns(["partial"], times=50)
        assert sight.turns([], times=37)
        assert not sight.turns([])
        assert not sight.turns(["partial"], [], [], times=10)

    def test_forgets(self) -> None:
        """Only the last fifty turns count, however long it saw before."""
        sight = Watched()
        sight.turns([], times=10_000)
        assert not sight.turns(["abandoned"], times=24)
        assert sight.turns(["abandoned"])

    @pytest.mark.parametrize("marks", [["sampled_out"], ["canary"], ["short"], ["canary", "low_coverage"]])
    def test_leaves_out_turns_that_are_not_to_be_judged(self, marks: list[str]) -> None:
        """Turns outside the sample, canaries and short ones say nothing, either way."""
        sight = Watched()
        assert not sight.turns(marks, times=100)
        assert sight.turns(["partial"], times=20)
        assert sight.turns(marks, times=100)

    def test_counts_turns_that_are_short_for_what_is_missing(self) -> None:
        """A reply of which nothing came has too few tokens too, and is what blindness looks like."""
        assert Watched().turns(["low_coverage", "short"], times=20)

    def test_of_an_unvalidated_model_is_sight(self) -> None:
        """What was seen was seen, whichever model it was."""
        assert not Watched().turns(["unvalidated"], times=50)

    @given(st.lists(st.booleans(), max_size=200))
    def test_any_course(self, course: list[bool]) -> None:
        """Blind means at least a quarter of the last fifty unseen, seeing that it is less than a half."""
        sight, seen = Watched(), []
        for unseen in course:
            seen.append(unseen)
            lost = sight.turns(["partial"] if unseen else [])
            share = sum(seen[-50:]) / len(seen[-50:])
            assert lost <= (share >= 0.25)
            assert lost >= (share >= 0.5 and len(seen) >= 20)
