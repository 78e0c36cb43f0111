"""Policy files: one bad file for each rule, and the way from labels to a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from monitor.assess.overindex import exceedance_bound
from monitor.errors import PolicyError
from monitor.policy.schema import Policy, PolicyFile, load_policy
from monitor.probes.bank import Bank, Stance


def policy(name: str = "all", **fields: Any) -> dict[str, Any]:
    """A policy as YAML has it."""
    return {"name": name, "stance": "neutral", "turn": {"false_alarm_rate": 0.05}} | fields


GOOD = {
    "version": 1,
    "policies": [
        policy(
            "care", match={"route": "care", "tier": "gold"}, stance="crisis", turn={"false_alarm_rate": 0.08},
            families={"contagion": 0.1},
        ),
        policy("support", match={"route": "care"}, stance="supportive"),
        policy("all", families={"warmth": 0.02}, severity="critical", owner="team", runbook_url="https://example.org"),
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
    "rate nan": ([policy(turn={"false_alarm_rate": float("NaN")})], "policies.0.turn.false_alarm_rate", "than"),
    "rate missing": ([policy(turn={})], "policies.0.turn.false_alarm_rate", "required"),
    "rate a word": ([policy(turn={"false_alarm_rate": "low"})], "policies.0.turn.false_alarm_rate", "number"),
    "family rate zero": ([policy(families={"warmth": 0})], "policies.0.families.warmth", "greater than 0"),
    "family rate one": ([policy(families={"warmth": 1})], "policies.0.families.warmth", "less than 1"),
    "rate too fine": ([policy(turn={"false_alarm_rate": 0.014})], "all.turn.false_alarm_rate", "200 reference turns"),
    "family rate too fine": ([policy(families={"warmth": 0.014})], "all.warmth", "200 reference turns"),
    "rate too fine for two sides": (
        [policy(stance="crisis", turn={"false_alarm_rate": 0.05})],
        "all.turn.false_alarm_rate",
        "100 reference turns",
    ),
    "duplicate names": ([policy("a", match={"x": "y"}), policy("a")], "policies", "names must differ"),
    "no catch-all": ([policy(match={"x": "y"})], "policies", "must have no match"),
    "catch-all too early": ([policy("a"), policy("b")], "policies", "a matches every turn"),
    "no policies": ([], "policies", "at least 1"),
    "unknown field": ([policy(colour="red")], "policies.0.colour", "not permitted"),
    "unknown field in a rule": (
        [policy(turn={"false_alarm_rate": 0.1, "colour": 1})], "policies.0.turn.colour", "not permitted"
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
