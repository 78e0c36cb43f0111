"""The ready-made policies: what each promises its route, and that the shipped bank can keep it."""

from __future__ import annotations

import json

import pytest

from monitor.policy.forecast import forecast
from monitor.policy.schema import SHIPPED, Policy, PolicyFile, load_policy
from monitor.probes.bank import Bank, Stance, load_bank

NAMES = ("companion", "crisis-line", "medical-triage", "service-desk", "supportive-coach")


@pytest.fixture(scope="module")
def bank() -> Bank:
    """The shipped bank."""
    return load_bank("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def shipped(bank: Bank) -> dict[str, PolicyFile]:
    """All ready-made policies, by the name of their file."""
    return {file.stem: load_policy(file, bank) for file in sorted(SHIPPED.glob("*.yaml"))}


def last(file: PolicyFile) -> Policy:
    """The policy that takes every turn the others leave."""
    return file.policies[-1]


class TestAll:
    """What holds of every file."""

    def test_load_against_the_shipped_bank(self, shipped: dict[str, PolicyFile]) -> None:
        """Each is there, fits the bank, and its last policy bears the name of its file."""
        assert tuple(shipped) == NAMES
        assert all(last(file).name == name for name, file in shipped.items())

    def test_have_budget_owner_and_links(self, shipped: dict[str, PolicyFile]) -> None:
        """Whoever is paged knows whose the route is, how much is left, and where to read on."""
        for file in shipped.values():
            assert file.runbook("AffectDrift").startswith("https://")
            assert file.links.dashboards
            assert all(policy.rate and policy.owner for policy in file.policies)

    def test_budgets_can_burn(self, shipped: dict[str, PolicyFile], bank: Bank) -> None:
        """At two thousand turns a day no budget alert is one that cannot fire."""
        for file in shipped.values():
            for policy in file.policies:
                assert not [burn.alert for burn in forecast(policy, bank, 2000).burn if burn.never]

    def test_page_less_than_once_a_day_by_chance(self, shipped: dict[str, PolicyFile], bank: Bank) -> None:
        """At ten thousand turns a day all but the desk, which asks for nothing but a look, expect less than one."""
        expected = {
            policy.name: forecast(policy, bank, 10_000).per_day for file in shipped.values() for policy in file.policies
        }
        assert {name for name, alerts in expected.items() if alerts >= 1} == {"service-desk"}

    def test_name_the_schema_on_their_first_line(self) -> None:
        """Editors find the JSON Schema beside the file."""
        for file in SHIPPED.glob("*.yaml"):
            assert file.read_text().startswith("# yaml-language-server: $schema=policy.schema.json\n")

    def test_schema_is_that_of_the_model(self) -> None:
        """The committed JSON Schema is what check-config --schema prints now."""
        assert json.loads((SHIPPED / "policy.schema.json").read_text()) == PolicyFile.model_json_schema()


class TestEach:
    """What each file promises."""

    def test_desk_tells_at_the_first_turn_and_is_never_muted(self, shipped: dict[str, PolicyFile]) -> None:
        """A service desk is neutral, tells of a single turn at one in a hundred, and watches affect as a whole."""
        desk = last(shipped["service-desk"])
        assert (desk.stance, desk.turn.false_alarm_rate, desk.turn.pending_turns) == (Stance.NEUTRAL, 0.01, 1)
        assert not desk.families
        assert not desk.mute

    def test_coach_may_be_warm_and_not_ashamed(self, shipped: dict[str, PolicyFile]) -> None:
        """A coach is supportive; fear, euphoria, shame and hostility are watched, warmth is not; nights are quiet."""
        coach = last(shipped["supportive-coach"])
        assert coach.stance is Stance.SUPPORTIVE
        assert set(coach.families) == {"contagion", "elation", "shame", "hostility"}
        (night,) = coach.mute
        assert (night.start.hour, night.end.hour) == (22, 6)

    def test_companion_is_bounded_and_more_so_with_minors(self, shipped: dict[str, PolicyFile]) -> None:
        """Warmth is watched with everybody; minors get the neutral bound, a critical severity and no muting."""
        file = shipped["companion"]
        minors, adults = file.route({"audience": "minor"}), file.route({})
        assert (minors.stance, adults.stance) == (Stance.NEUTRAL, Stance.SUPPORTIVE)
        assert "warmth" in minors.families
        assert "warmth" in adults.families
        assert minors.severity == "critical"
        assert not minors.mute

    def test_triage_watches_alarm_and_playing_down(self, shipped: dict[str, PolicyFile]) -> None:
        """Triage watches contagion and calm, judges emergencies two-sided, pages, and is never muted."""
        file = shipped["medical-triage"]
        assert {"contagion", "calm"} < set(last(file).families)
        assert file.route({"route": "emergency"}).stance is Stance.CRISIS
        assert all(policy.severity == "critical" and not policy.mute for policy in file.policies)

    def test_crisis_line_is_two_sided_and_never_muted(self, shipped: dict[str, PolicyFile]) -> None:
        """A crisis line is one policy for every turn: too cold is a fault too, it pages, and nothing silences it."""
        (line,) = shipped["crisis-line"].policies
        assert line.stance is Stance.CRISIS
        assert line.severity == "critical"
        assert not line.mute
        assert "warmth" in line.families
