"""Drift through the whole sidecar: what it says of lasting changes, and that it remembers over a restart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from builders import make_bank
from engine import Engine, make_turn, whole
from structlog.testing import capture_logs

from monitor.sidecar.server import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from monitor.probes.bank import Bank

Values = dict[str, float]
NESTED = (100_000).to_bytes(8, "little") + b"[" * 100_000
"""A state whose header nests deeper than can be read."""


@pytest.fixture
def play(small_bank: Bank, connect: Callable[..., Engine]) -> Callable[..., None]:
    """Sends turns whose user and assistant show so much affect; of a neutral route, unless labels say otherwise."""
    sent = 0

    def send(turns: int, assistant: float, user: float = 0.0, **hello: Any) -> None:
        nonlocal sent
        stream = connect().stream(small_bank, **hello)
        for _ in range(turns):
            sent += 1
            stream.send(whole(make_turn(small_bank, f"r{sent}", user, assistant, seed=sent)))

    return send


def evidence(sidecar: Sidecar, policy: str = "desk") -> Values:
    """E-values on the page, as logarithms, by test."""
    sidecar.pipeline.sweep()
    tests = ("overfitting", "affect", "warmth", "contagion", "mirror", "users")
    return {test: sidecar.metrics.value("affect_drift_log_evalue", policy, test) for test in tests}


def alarms(sidecar: Sidecar) -> set[str]:
    """Tests whose alarm is on."""
    sidecar.pipeline.sweep()
    return {
        test
        for test in ("overfitting", "mirror", "users")
        if sidecar.metrics.value("affect_drift_alarm", "desk", test) == 1
    }


class TestAlarm:
    """What the page and the log say of lasting change."""

    def test_comes_up_with_a_changed_assistant_and_goes_when_it_is_undone(
        self, serve: Callable[..., Sidecar], play: Callable[..., None]
    ) -> None:
        """Much affect under users as ever is overfitting, told with its evidence; calm replies undo it."""
        sidecar = serve()
        with capture_logs() as logs:
            play(12, 4.0)
            assert alarms(sidecar) == {"overfitting"}
            assert evidence(sidecar)["overfitting"] >= sidecar.metrics.value(
                "affect_drift_log_line", "desk", "overfitting"
            )
            play(30, -0.5)
            assert alarms(sidecar) == set()
            assert evidence(sidecar)["overfitting"] < 1
        told = [(log["state"], log["test"], log["policy"]) for log in logs if log["event"] == "drift"]
        assert told == [("found", "overfitting", "desk"), ("undone", "overfitting", "desk")]

    def test_of_users_is_not_one_of_the_assistant(
        self, serve: Callable[..., Sidecar], play: Callable[..., None]
    ) -> None:
        """Users who show more, answered as such users are, have moved; the assistant has not."""
        sidecar = serve()
        play(12, 0.0, user=2.5)
        assert alarms(sidecar) == {"users"}

    def test_does_not_count_a_model_that_is_not_the_banks(
        self, serve: Callable[..., Sidecar], play: Callable[..., None]
    ) -> None:
        """Turns of an unvalidated model say nothing of change against the bank's reference."""
        sidecar = serve(allow_unvalidated=True)
        play(5, 6.0, weights_fingerprint="other")
        assert sidecar.metrics.value("affect_drift_turns", "desk") == 0
        assert sidecar.metrics.value("affect_turns_judged_total", "desk") == 5

    def test_that_cannot_be_shown_ends_no_sweeping(
        self, serve: Callable[..., Sidecar], monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
    ) -> None:
        """An error in looking after one thing is counted, and all are looked after again a second later."""
        sidecar = serve()
        monkeypatch.setattr(sidecar.pipeline.drifts, "show", lambda: 1 / 0)
        eventually(lambda: sidecar.metrics.value("affect_faults_total", "internal") >= 2)

    def test_leaves_other_routes_alone(self, serve: Callable[..., Sidecar], play: Callable[..., None]) -> None:
        """Each policy has its own evidence."""
        sidecar = serve()
        play(5, 3.0)
        assert evidence(sidecar)["affect"] > 1
        assert evidence(sidecar, "helpline") == dict.fromkeys(evidence(sidecar), 0.0)


class TestReload:
    """Evidence over reloads."""

    def test_of_the_policy_keeps_it(
        self, serve: Callable[..., Sidecar], play: Callable[..., None], policy_file: Path
    ) -> None:
        """A new level moves the line and leaves what was gathered."""
        sidecar = serve()
        play(5, 3.0)
        before = evidence(sidecar)
        policy_file.write_text(policy_file.read_text().replace("neutral", "neutral\n    drift: {alpha: 0.5}"))
        assert sidecar.reload()
        assert evidence(sidecar) == before
        assert sidecar.metrics.value("affect_drift_log_line", "desk", "overfitting") == pytest.approx(0.693, abs=1e-3)

    def test_without_a_route_is_no_fault(
        self, serve: Callable[..., Sidecar], play: Callable[..., None], policy_file: Path
    ) -> None:
        """A route whose turns were not drawn yet may be gone after a reload: no fault, and no series of it."""
        sidecar = serve()
        play(3, 3.0)
        policy_file.write_text(policy_file.read_text().replace("name: desk", "name: counter"))
        assert sidecar.reload()
        sidecar.pipeline.sweep()
        assert sidecar.metrics.value("affect_faults_total", "internal") == 0
        assert not any(labels[0] == "desk" for labels in sidecar.metrics.series("affect_drift_turns"))

    def test_of_the_bank_begins_anew(
        self, serve: Callable[..., Sidecar], play: Callable[..., None], tmp_path: Path, small_bank: Bank
    ) -> None:
        """Against another reference nothing is known yet."""
        folder = tmp_path / "bank"
        small_bank.save(folder)
        sidecar = serve(bank=str(folder))
        play(5, 3.0)
        make_bank(seed=1).save(folder)
        assert sidecar.reload()
        assert evidence(sidecar)["affect"] == 0


class TestState:
    """What outlasts a restart."""

    def test_is_evidence_and_alerts(
        self, serve: Callable[..., Sidecar], play: Callable[..., None], tmp_path: Path
    ) -> None:
        """A sidecar that is started again goes on with the same e-values, alarms and firing alerts, and saves them."""
        file = tmp_path / "state"
        first = serve(state_file=file)
        play(12, 4.0)
        before, alert = evidence(first), first.alerts.active[0]
        first.stop()
        second = serve(state_file=file)
        assert evidence(second) == pytest.approx(before)
        assert alarms(second) == {"overfitting"}
        (restored,) = second.alerts.active
        assert (restored.labels, restored.started, restored.over_turns) == (
            alert.labels, alert.started, alert.over_turns,
        )  # fmt: skip
        play(30, -0.5)
        assert alarms(second) == set()
        assert second.alerts.active == []
        second.stop()
        assert file.exists()

    def test_of_another_stance_is_left_behind(
        self, serve: Callable[..., Sidecar], play: Callable[..., None], tmp_path: Path, policy_file: Path
    ) -> None:
        """A route that is judged otherwise after the restart begins anew, and so do no others."""
        file = tmp_path / "state"
        first = serve(state_file=file)
        play(5, 4.0)
        first.stop()
        policy_file.write_text(policy_file.read_text().replace("neutral", "supportive"))
        second = serve(state_file=file)
        assert evidence(second) == dict.fromkeys(evidence(second), 0.0)
        assert second.metrics.value("affect_drift_turns", "desk") == 0

    def test_of_another_bank_is_left_behind(
        self, serve: Callable[..., Sidecar], play: Callable[..., None], tmp_path: Path
    ) -> None:
        """Evidence against another reference means nothing here; alerts that fired go on."""
        file = tmp_path / "state"
        first = serve(state_file=file)
        play(5, 4.0)
        first.stop()
        make_bank(seed=1).save(tmp_path / "bank")
        second = serve(state_file=file, bank=str(tmp_path / "bank"))
        assert evidence(second)["affect"] == 0
        assert len(second.alerts.active) == 1

    @pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\xff" * 64, b"{}", b"\x02\0\0\0\0\0\0\0{}", NESTED])
    def test_that_cannot_be_read_costs_the_memory_alone(
        self, serve: Callable[..., Sidecar], play: Callable[..., None], tmp_path: Path, content: bytes
    ) -> None:
        """A file of something else is logged; the sidecar starts without, and replaces it."""
        file = tmp_path / "state"
        file.write_bytes(content)
        with capture_logs() as logs:
            sidecar = serve(state_file=file)
        assert any(log["event"] == "state_not_read" for log in logs)
        play(1, 0.0)
        sidecar.stop()
        assert file.read_bytes() != content

    def test_on_a_disk_that_fails_is_logged_once(self, serve: Callable[..., Sidecar], tmp_path: Path) -> None:
        """A folder that is gone when the state is saved costs a line in the log."""
        folder = tmp_path / "gone"
        folder.mkdir()
        sidecar = serve(state_file=folder / "state")
        folder.rmdir()
        with capture_logs() as logs:
            sidecar.stop()
        assert [log["event"] for log in logs].count("state_not_written") == 1
