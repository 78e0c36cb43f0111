"""The baseline window of a running sidecar: which turns it keeps, and the reference that is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from engine import make_frame, make_turn, whole
from structlog.testing import capture_logs

from monitor.calibration.refit import baseline_turns, refit
from monitor.errors import SetupError
from monitor.probes.bank import Stance, load_bank

if TYPE_CHECKING:
    from engine import Turn

    from monitor.probes.bank import Bank

LOST = "affect_baseline_turns_lost_total"
Kept = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file."""
    return tmp_path / "baseline.jsonl"


@pytest.fixture
def kept(path: Path) -> Kept:
    """Reads the lines of the file."""
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def ordinary(bank: Bank, count: int, seed: int = 0, **more: Any) -> list[Turn]:
    """Turns that show a little of everything."""
    rng = np.random.default_rng(seed)
    affects = rng.normal(0, 0.5, (count, 2))
    return [
        make_turn(bank, f"{seed}-{number}", user=user, assistant=assistant, seed=1000 * seed + number, **more)
        for number, (user, assistant) in enumerate(affects)
    ]


class TestKept:
    """Turns that are kept."""

    def test_have_the_scores_that_were_judged(
        self, serve: Any, connect: Any, small_bank: Bank, path: Path, kept: Kept
    ) -> None:
        """A line has stance, tokens and raw scores of its turn, standardised the same as the answer on the stream."""
        serve(baseline_file=path)
        stream = connect().stream(small_bank)
        sent = [
            *ordinary(small_bank, 3, 1, labels={"route": "helpline", "tenant": "secret"}),
            *ordinary(small_bank, 3, 2),
        ]
        said = [stream.send(whole(turn)).assessments[0] for turn in sent]
        lines = kept()
        assert [line["stance"] for line in lines] == ["supportive"] * 3 + ["neutral"] * 3
        columns, tensors = small_bank.columns, small_bank.tensors
        for line, turn in zip(lines, said, strict=True):
            assert (line["bank"], line["probes"]) == (small_bank.card.bank_id, small_bank.probes)
            assert line["tokens"] == turn.assistant_tokens
            for role, at, value in (
                ("user", columns.user_affect, turn.user_affect),
                ("assistant", columns.assistant_affect, turn.assistant_affect),
            ):
                row = int(role == "assistant")
                standard = (line[role][at] - tensors.turn_means[row, at]) / tensors.turn_scales[row, at]
                assert standard == pytest.approx(value, abs=1e-4)

    def test_hold_no_text_and_no_ids(self, serve: Any, connect: Any, small_bank: Bank, path: Path) -> None:
        """Neither labels, nor ids of requests or turns, nor tokens are at rest."""
        serve(baseline_file=path)
        turn = make_turn(small_bank, "request-of-somebody", labels={"tenant": "secret"})
        answer = connect().stream(small_bank).send(whole(turn)).assessments[0]
        text = path.read_text()
        assert text
        for word in ("request-of-somebody", "tenant", "secret", answer.turn_id):
            assert word not in text
        assert set(json.loads(text)) == {"bank", "probes", "stance", "tokens", "user", "assistant"}

    def test_are_judged_and_did_not_alert(
        self, serve: Any, connect: Any, small_bank: Bank, path: Path, kept: Kept
    ) -> None:
        """Turns that alerted, and turns no rule may judge, are not in the file."""
        serve(baseline_file=path)
        stream = connect().stream(small_bank)
        spoilt, partly = make_turn(small_bank, "spoilt"), make_turn(small_bank, "partly")
        spoilt.rows[5] = np.nan
        frames = {
            "calm": whole(make_turn(small_bank, "calm")),
            "over": whole(make_turn(small_bank, "over", assistant=9.0)),
            "short": whole(make_turn(small_bank, "short", words=3)),
            "spoilt": whole(spoilt),
            "partly": make_frame((partly, 12, partly.length), events=[partly.start, partly.end]),
        }
        answers = {name: stream.send(frame).assessments[0] for name, frame in frames.items()}
        assert answers["over"].alerts
        assert all(answers[name].marks for name in ("short", "spoilt", "partly"))
        assert len(kept()) == 1

    def test_are_none_of_a_model_that_is_not_the_banks(
        self, serve: Any, connect: Any, small_bank: Bank, path: Path
    ) -> None:
        """What an unvalidated model does is no reference of the bank's model."""
        serve(baseline_file=path, allow_unvalidated=True)
        stream = connect().stream(small_bank, weights_fingerprint="0" * 64)
        assert stream.send(whole(make_turn(small_bank, "turn"))).assessments[0].marks == ["unvalidated"]
        assert not path.exists()

    def test_are_none_without_a_user(
        self, serve: Any, connect: Any, small_bank: Bank, path: Path, policy_file: Path
    ) -> None:
        """A turn whose user came from the prefix cache has no user scores, and a line of zeros would be a lie."""
        policy_file.write_text(policy_file.read_text().replace("0.02,", "0.02, min_coverage: 0.2,"))
        serve(baseline_file=path)
        turn = make_turn(small_bank, "turn")
        begin = turn.prompt_length - 3
        answer = (
            connect().stream(small_bank).send(make_frame((turn, begin, turn.length), events=[turn.start, turn.end]))
        )
        assert (answer.assessments[0].user_tokens, answer.assessments[0].marks) == (0, [])
        assert not path.exists()


class TestBound:
    """How many."""

    def test_holds_over_a_restart(self, serve: Any, connect: Any, small_bank: Bank, path: Path, kept: Kept) -> None:
        """Turns of the sidecar before count; the file never holds more than it may."""
        first = serve(baseline_file=path, baseline_turns=5)
        engine = connect()
        stream = engine.stream(small_bank)
        for turn in ordinary(small_bank, 3, 1):
            stream.send(whole(turn))
        engine.close()
        first.stop()
        serve(baseline_file=path, baseline_turns=5)
        stream = connect().stream(small_bank)
        for turn in ordinary(small_bank, 6, 2):
            assert stream.send(whole(turn)).assessments
        assert len(kept()) == 5

    def test_is_off_unless_asked(self, serve: Any, connect: Any, small_bank: Bank, tmp_path: Path) -> None:
        """Without a file nothing is written anywhere."""
        serve()
        before = sorted(tmp_path.iterdir())
        connect().stream(small_bank).send(whole(make_turn(small_bank, "turn")))
        assert sorted(tmp_path.iterdir()) == before


class TestDisk:
    """Disks and files that do not do."""

    def test_a_full_one_never_stops_scoring(self, serve: Any, connect: Any, small_bank: Bank) -> None:
        """Turns are scored, answered and alerted on as ever; the loss is counted, and logged once."""
        with capture_logs() as log:
            sidecar = serve(baseline_file=Path("/dev/full"))
            stream = connect().stream(small_bank)
            for turn in ordinary(small_bank, 3, 1):
                answer = stream.send(whole(turn))
                assert answer.assessments[0].p_value > 0
                assert not answer.faults
            over = stream.send(whole(make_turn(small_bank, "over", assistant=9.0)))
        assert over.assessments[0].alerts == ["affect"]
        assert sidecar.metrics.value(LOST, "no_space") == 3
        assert len([entry for entry in log if entry["event"] == "baseline_not_written"]) == 1

    def test_a_file_of_something_else_is_refused_at_the_start(self, serve: Any, policy_file: Path) -> None:
        """A flag that names another file by mistake neither spoils it nor goes unnoticed."""
        before = policy_file.read_bytes()
        with pytest.raises(SetupError, match="move it away") as caught:
            serve(baseline_file=policy_file)
        assert caught.value.field == "--baseline-file"
        assert policy_file.read_bytes() == before


class TestReference:
    """The way from a sidecar's traffic to its reference."""

    def test_is_made_of_what_the_sidecar_kept(
        self, serve: Any, connect: Any, small_bank: Bank, path: Path, tmp_path: Path
    ) -> None:
        """Sixty turns of one route make a bank that loads, that serves, and that takes up where the old one was."""
        first = serve(baseline_file=path)
        engine = connect()
        stream = engine.stream(small_bank)
        for turn in ordinary(small_bank, 60, 3):
            stream.send(whole(turn))
        engine.close()
        first.stop()

        gathered = baseline_turns(small_bank, path)
        refit(small_bank, gathered).save(tmp_path / "own")
        own = load_bank(str(tmp_path / "own"))
        count = len(path.read_text().splitlines())

        assert own.card.reference.turns[Stance.NEUTRAL] == count >= 55
        assert own.card.reference.source.startswith(f"{count} turns of a sidecar's traffic that raised no alert")
        serve(bank=str(tmp_path / "own"), baseline_file=path, policy=_coarse(tmp_path))
        answer = connect().stream(own).send(whole(make_turn(own, "over", assistant=9.0)))
        assert answer.assessments[0].alerts == ["affect"]


def _coarse(folder: Path) -> Path:
    """A policy at a rate that fifty turns certify."""
    file = folder / "coarse.yaml"
    file.write_text("version: 1\npolicies:\n  - {name: desk, stance: neutral, turn: {false_alarm_rate: 0.06}}\n")
    return file
