"""Policy files: one bad file for each rule, and the way from labels to a policy."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitor.assess.overindex import exceedance_bound
from monitor.errors import PolicyError
from monitor.policy.schema import MutingWindow, Policy, PolicyFile, load_policy
from monitor.probes.bank import Bank, Stance


def policy(name: str = "all", **fields: Any) -> dict[str, Any]:
    """A policy as YAML has it."""
    return {"name": name, "stance": "neutral", "turn": {"false_alarm_rate": 0.05}} | fields


def night(**fields: Any) -> dict[str, Any]:
    """A muting window as YAML has it."""
    return {"start": "22:00", "end": "06:00"} | fields


GOOD = {
    "version": 1,
    "policies": [
        policy(
            "care", match={"route": "care", "tier": "gold"}, stance="crisis", turn={"false_alarm_rate": 0.08},
            families={"contagion": 0.1},
        ),
        policy("support", match={"route": "care"}, stance="supportive"),
        policy("all", families={"warmth": 0.02}, severity="critical", owner="team", rate={"budget": 0.1}),
    ],
}  # fmt: skip


def write(tmp_path: Path, document: Any) -> Path:
    """A policy file."""
    path = tmp_path / "policy.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return path


class TestGoodFiles:
    """Files that are read."""

    def test_every_field_is_read(self, tmp_path: Path, small_bank: Bank) -> None:
        """A full file is read, with defaults where it is silent."""
        found = load_policy(write(tmp_path, GOOD), small_bank)
        care, _, everything = found.policies
        assert care.stance is Stance.CRISIS
        assert care.families == {"contagion": 0.1}
        assert (care.severity, everything.severity) == ("warning", "critical")
        assert everything.turn.model_dump() == {
            "false_alarm_rate": 0.05,
            "min_assistant_tokens": 8,
            "min_coverage": 0.9,
            "pending_turns": 1,
            "resolve_turns": 5,
            "stale_minutes": 60,
        }
        assert everything.rate is not None
        assert everything.rate.model_dump() == {"budget": 0.1, "period_days": 30, "min_turns": 50}
        assert care.rate is None
        assert care.model_dump(include={"drift", "mirror", "coverage", "mute"}) == {
            "drift": {"alpha": 0.01},
            "mirror": {"alpha": 0.01, "window_turns": 200},
            "coverage": {"budget": 0.05},
            "mute": (),
        }

    @pytest.mark.parametrize(
        ("stance", "turns", "sides"), [("neutral", 200, 1), ("supportive", 150, 1), ("crisis", 100, 2)]
    )
    def test_the_finest_rate_of_the_reference_is_allowed(
        self, tmp_path: Path, small_bank: Bank, stance: str, turns: int, sides: int
    ) -> None:
        """A rate that the smallest p-value of the stance's reference just reaches is good; a finer one is refused."""
        finest = sides * exceedance_bound(0, turns)
        document = {"version": 1, "policies": [policy(stance=stance, turn={"false_alarm_rate": finest})]}
        assert load_policy(write(tmp_path, document), small_bank).policies[0].turn.false_alarm_rate == finest
        document["policies"] = [policy(stance=stance, turn={"false_alarm_rate": finest - 1e-6})]
        with pytest.raises(PolicyError, match=f"{turns} reference turns"):
            load_policy(write(tmp_path, document), small_bank)


BAD: dict[str, tuple[Any, str, str]] = {
    "unknown family": ([policy(families={"envy": 0.1})], "all.families.envy", "no such family"),
    "rate zero": ([policy(turn={"false_alarm_rate": 0})], "policies.0.turn.false_alarm_rate", "greater than 0"),
    "rate one": ([policy(turn={"false_alarm_rate": 1})], "policies.0.turn.false_alarm_rate", "less than 1"),
    "rate above": ([policy(turn={"false_alarm_rate": 1.5})], "policies.0.turn.false_alarm_rate", "less than 1"),
    "rate below": ([policy(turn={"false_alarm_rate": -0.1})], "policies.0.turn.false_alarm_rate", "greater than 0"),
    "rate nan": ([policy(turn={"false_alarm_rate": float("NaN")})], "policies.0.turn.false_alarm_rate", "finite"),
    "rate missing": ([policy(turn={})], "policies.0.turn.false_alarm_rate", "is missing"),
    "rate a word": ([policy(turn={"false_alarm_rate": "low"})], "policies.0.turn.false_alarm_rate", "number"),
    "family rate zero": ([policy(families={"warmth": 0})], "policies.0.families.warmth", "greater than 0"),
    "family rate one": ([policy(families={"warmth": 1})], "policies.0.families.warmth", "less than 1"),
    "rate too fine": ([policy(turn={"false_alarm_rate": 0.014})], "all.turn.false_alarm_rate", "200 reference turns"),
    "family rate too fine": ([policy(families={"warmth": 0.014})], "all.families.warmth", "200 reference turns"),
    "rate too fine for two sides": (
        [policy(stance="crisis", turn={"false_alarm_rate": 0.05})],
        "all.turn.false_alarm_rate",
        "100 reference turns",
    ),
    "duplicate names": ([policy("a", match={"x": "y"}), policy("a")], "policies", "names must differ"),
    "no catch-all": ([policy(match={"x": "y"})], "policies", "must have no match"),
    "catch-all too early": ([policy("a"), policy("b")], "policies", "a matches every turn"),
    "no policies": ([], "policies", "at least 1"),
    "unknown field": ([policy(colour="red")], "policies.0.colour", "is no field here"),
    "unknown field in a rule": (
        [policy(turn={"false_alarm_rate": 0.1, "colour": 1})], "policies.0.turn.colour", "is no field here"
    ),
    "unknown stance": ([policy(stance="angry")], "policies.0.stance", "crisis"),
    "unknown severity": ([policy(severity="loud")], "policies.0.severity", "critical"),
    "bad name": ([policy("No Spaces")], "policies.0.name", "pattern"),
    "label that is no text": ([policy("a", match={"tier": 1}), policy()], "policies.0.match.tier", "string"),
    "label no request can carry": (
        [policy("a", match={"a/b": "x"}), policy()], "policies.0.match.a/b.[key]", "pattern"
    ),
    "coverage above one": (
        [policy(turn={"false_alarm_rate": 0.1, "min_coverage": 1.1})], "policies.0.turn.min_coverage", "less than"
    ),
    "no turns to pend": (
        [policy(turn={"false_alarm_rate": 0.1, "pending_turns": 0})], "policies.0.turn.pending_turns", "greater than"
    ),
    "no turns to resolve": (
        [policy(turn={"false_alarm_rate": 0.1, "resolve_turns": 0})], "policies.0.turn.resolve_turns", "greater than"
    ),
    "budget that false alarms spend": ([policy(rate={"budget": 0.05})], "policies.0", "spent by false alarms alone"),
    "budget of everything": ([policy(rate={"budget": 1})], "policies.0.rate.budget", "less than 1"),
    "budget without a period": (
        [policy(rate={"budget": 0.1, "period_days": 0})], "policies.0.rate.period_days", "greater than 0"
    ),
    "drift at no level": ([policy(drift={"alpha": 0})], "policies.0.drift.alpha", "greater than 0"),
    "mirror through too few turns": (
        [policy(mirror={"window_turns": 19})], "policies.0.mirror.window_turns", "greater than or equal to 20"
    ),
    "coverage budget of everything": ([policy(coverage={"budget": 1})], "policies.0.coverage.budget", "less than 1"),
    "muted on no day": ([policy(mute=[night(days=[])])], "policies.0.mute.0.days", "at least 1"),
    "muted on a day that is none": ([policy(mute=[night(days=["monday"])])], "policies.0.mute.0.days.0", "'mon'"),
    "muted in a zone that is none": (
        [policy(mute=[night(timezone="Berlin")])], "policies.0.mute.0.timezone", "as in Europe/Berlin"
    ),
    "muted in a file of this machine": (
        [policy(mute=[night(timezone="../../etc/passwd")])], "policies.0.mute.0.timezone", "is no time zone"
    ),
    "muted from a time with its own zone": (
        [policy(mute=[night(start="22:00Z")])], "policies.0.mute.0.start", "no time of day"
    ),
    "muted from an hour that is none": (
        [policy(mute=[night(start="24:00")])], "policies.0.mute.0.start", "no time of day"
    ),
    "budget for ever": (
        [policy(rate={"budget": 0.1, "period_days": float("inf")})], "policies.0.rate.period_days", "finite"
    ),
    "budget of a century": (
        [policy(rate={"budget": 0.1, "period_days": 36_500})], "policies.0.rate.period_days", "less than or equal"
    ),
    "mirror through more turns than are kept": (
        [policy(mirror={"window_turns": 501})], "policies.0.mirror.window_turns", "less than or equal to 500"
    ),
    "more turns to pend than can be forecast": (
        [policy(turn={"false_alarm_rate": 0.1, "pending_turns": 1001})], "policies.0.turn.pending_turns", "less than"
    ),
    "owner that is a template": ([policy(owner="{{ .Labels }}")], "policies.0.owner", "pattern"),
    "owner on two lines": ([policy(owner="a\nb")], "policies.0.owner", "pattern"),
    "owner that no file can hold": ([policy(owner="\ud800")], "policies.0.owner", "unicode"),
    "families in a list": ([policy(families=["warmth"])], "policies.0.families", "must hold names and values"),
    "where runbooks stood before": (
        [policy(runbook_url="https://example.org")], "policies.0.runbook_url", "is no field here"
    ),
}  # fmt: skip


class TestBadFiles:
    """Files that are refused."""

    @pytest.mark.parametrize(("policies", "field", "message"), BAD.values(), ids=BAD)
    def test_are_refused_by_field(
        self, tmp_path: Path, small_bank: Bank, policies: Any, field: str, message: str
    ) -> None:
        """Each rule of the schema has an error that names file and field and says what is wrong."""
        path = write(tmp_path, {"version": 1, "policies": policies})
        with pytest.raises(PolicyError, match=message) as caught:
            load_policy(path, small_bank)
        assert caught.value.field == f"{path}:{field}"
        assert "Value error" not in caught.value.message

    def test_with_times_that_yaml_takes_for_numbers(self, tmp_path: Path, small_bank: Bank) -> None:
        """A time without quotes, which YAML reads as a number of minutes, is refused with the way to write it."""
        text = """
version: 1
policies:
  - name: all
    stance: neutral
    turn: {false_alarm_rate: 0.05}
    mute: [{start: 22:00, end: 06:00}]
"""
        with pytest.raises(PolicyError, match='in quotes, as in "22:00"') as caught:
            load_policy(write(tmp_path, text), small_bank)
        assert caught.value.field.endswith(":policies.0.mute.0.start")

    @pytest.mark.parametrize(
        ("document", "field"),
        [
            ("", "(file)"),
            ("[]", "(file)"),
            ("just words", "(file)"),
            ("policies: []", "version"),
            ("version: 2\npolicies: []", "version"),
            ("version: 1", "policies"),
            ("version: 1\npolicies: {}", "policies"),
            ("version: 1\nsurprise: 1\npolicies: []", "policies"),
        ],
    )
    def test_that_are_no_policy_file(self, tmp_path: Path, small_bank: Bank, document: str, field: str) -> None:
        """YAML that is something else is refused by the field that shows it."""
        path = write(tmp_path, document)
        with pytest.raises(PolicyError) as caught:
            load_policy(path, small_bank)
        assert caught.value.field == f"{path}:{field}"

    @pytest.mark.parametrize(
        "raw",
        [b"policies: [", b"a: b: c", b"\xff\xfe\xfa", b"\x00\x01", b"when: 2024-99-99", b"!!python/object:os.x {}"],
    )
    def test_that_are_no_yaml(self, tmp_path: Path, small_bank: Bank, raw: bytes) -> None:
        """A file that is no YAML, or no text at all, is refused as such."""
        path = tmp_path / "policy.yaml"
        path.write_bytes(raw)
        with pytest.raises(PolicyError, match="is not YAML") as caught:
            load_policy(path, small_bank)
        assert caught.value.field == str(path)

    def test_that_are_missing(self, tmp_path: Path, small_bank: Bank) -> None:
        """A missing file, or a folder in its place, is refused as the argument that names it."""
        for path in (tmp_path / "nothing.yaml", tmp_path):
            with pytest.raises(PolicyError, match=str(path)) as caught:
                load_policy(path, small_bank)
            assert caught.value.field == "--policy"


def at(moment: str) -> float:
    """A moment in seconds since the epoch."""
    return datetime.fromisoformat(moment).timestamp()


class TestMuting:
    """Times in which nobody is told."""

    @pytest.mark.parametrize(
        ("moment", "holds"),
        [
            ("2026-03-04T08:59:59+00:00", False),
            ("2026-03-04T09:00:00+00:00", True),
            ("2026-03-04T16:59:59+00:00", True),
            ("2026-03-04T17:00:00+00:00", False),
            ("2026-03-05T12:00:00+00:00", False),
        ],
    )
    def test_within_a_day(self, moment: str, holds: bool) -> None:
        """A window begins with its start, is over at its end, and is of its days alone."""
        assert MutingWindow(days=("wed",), start="09:00", end="17:00").holds(at(moment)) is holds

    @pytest.mark.parametrize(
        ("moment", "holds"),
        [
            ("2026-03-06T23:00:00+00:00", True),
            ("2026-03-07T05:59:59+00:00", True),
            ("2026-03-07T06:00:00+00:00", False),
            ("2026-03-07T23:00:00+00:00", False),
            ("2026-03-06T05:00:00+00:00", False),
        ],
    )
    def test_over_midnight_belongs_to_the_day_it_begins_on(self, moment: str, holds: bool) -> None:
        """Friday's night goes on on Saturday morning, and Thursday's does not on Friday's."""
        assert MutingWindow(days=("fri",), start="22:00", end="06:00").holds(at(moment)) is holds

    def test_over_midnight_from_sunday_to_monday(self) -> None:
        """The last day of the week is followed by the first."""
        window = MutingWindow(days=("sun",), start="22:00", end="02:00")
        assert window.holds(at("2026-03-09T01:00:00+00:00"))
        assert not window.holds(at("2026-03-10T01:00:00+00:00"))

    def test_that_ends_when_it_begins_lasts_a_day(self) -> None:
        """A window whose end is its start is a whole day, from then on."""
        window = MutingWindow(days=("sat",), start="06:00", end="06:00")
        assert window.holds(at("2026-03-08T05:59:00+00:00"))
        assert not window.holds(at("2026-03-08T06:00:00+00:00"))

    @pytest.mark.parametrize(
        ("moment", "holds"),
        [
            ("2026-03-04T20:59:00+00:00", False),
            ("2026-03-04T21:00:00+00:00", True),
            ("2026-07-04T19:59:00+00:00", False),
            ("2026-07-04T20:00:00+00:00", True),
        ],
    )
    def test_goes_by_the_clocks_of_its_zone(self, moment: str, holds: bool) -> None:
        """Ten in the evening in Berlin is nine UTC in winter and eight in summer."""
        assert MutingWindow(start="22:00", end="06:00", timezone="Europe/Berlin").holds(at(moment)) is holds


class TestRunbooks:
    """Where an alert's page is."""

    @pytest.mark.parametrize("folder", ["https://example.org/runbooks", "https://example.org/runbooks/"])
    def test_is_the_folder_and_the_alerts_name(self, folder: str) -> None:
        """The address is the same with and without a slash at the folder's end."""
        found = PolicyFile.model_validate(GOOD | {"links": {"runbooks": folder}})
        assert found.runbook("AffectDrift") == "https://example.org/runbooks/AffectDrift.md"

    def test_is_empty_without_a_folder(self) -> None:
        """A file that names no folder gives no address."""
        assert not PolicyFile.model_validate(GOOD).runbook("AffectDrift")


names, values = st.sampled_from(["route", "tier", "tenant"]), st.sampled_from(["care", "gold", "x"])
labels = st.dictionaries(names, values, max_size=2)


class TestRouting:
    """From labels to a policy."""

    @pytest.mark.parametrize(
        ("of", "name"),
        [
            ({"route": "care", "tier": "gold", "more": "x"}, "care"),
            ({"route": "care", "tier": "silver"}, "support"),
            ({"route": "care"}, "support"),
            ({"tier": "gold"}, "all"),
            ({}, "all"),
        ],
    )
    def test_the_first_policy_whose_labels_a_turn_carries(self, of: dict[str, str], name: str) -> None:
        """A turn falls under the first policy all of whose labels it carries, and else under the last one."""
        assert PolicyFile.model_validate(GOOD).route(of).name == name

    @given(labels, st.lists(st.dictionaries(names, values, min_size=1, max_size=2), max_size=4))
    def test_every_turn_has_a_policy(self, of: dict[str, str], matches: list[dict[str, str]]) -> None:
        """Whatever a turn's labels, it has a policy, that policy matches it and none before does."""
        listed = [policy(f"p{number}", match=match) for number, match in enumerate(matches)]
        found = PolicyFile.model_validate({"version": 1, "policies": [*listed, policy()]})
        chosen: Policy = found.route(of)
        assert chosen.matches(of)
        assert not any(earlier.matches(of) for earlier in found.policies[: found.policies.index(chosen)])
