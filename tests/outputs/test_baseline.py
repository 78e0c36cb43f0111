"""The writer of the baseline file: what a line holds, its bound, and disks that fail."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_bank, make_stats
from structlog.testing import capture_logs

from monitor.errors import SetupError
from monitor.outputs.baseline import BaselineWriter
from monitor.outputs.metrics import Metrics
from monitor.probes.bank import Bank, Stance

LOST = "affect_baseline_turns_lost_total"
Start = Callable[..., BaselineWriter]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file."""
    return tmp_path / "baseline.jsonl"


@pytest.fixture
def start(small_bank: Bank, metrics: Metrics, path: Path) -> Start:
    """Makes a writer, as a sidecar does at its start."""

    def make(turns: int = 3, to: Path = path, bank: Bank = small_bank) -> BaselineWriter:
        return BaselineWriter(to, bank, turns, metrics)

    return make


def lines(path: Path) -> list[dict[str, Any]]:
    """Lines of the file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(writer: BaselineWriter, bank: Bank, turns: int) -> None:
    """Gives a writer some turns, each with a user of its own."""
    for number in range(turns):
        writer.add(make_stats(bank, float(number)), Stance.NEUTRAL, bank)


class TestLines:
    """What is written."""

    def test_hold_scores_and_not_a_word(self, start: Start, path: Path, small_bank: Bank) -> None:
        """A line has bank, probes, stance, tokens and mean raw scores to six digits, and nothing else."""
        stats = make_stats(small_bank, 1.0, -0.123456789)
        start().add(stats, Stance.SUPPORTIVE, small_bank)
        (line,) = lines(path)
        assert set(line) == {"bank", "probes", "stance", "tokens", "user", "assistant"}
        assert (line["bank"], line["probes"]) == (small_bank.card.bank_id, small_bank.probes)
        assert (line["stance"], line["tokens"]) == ("supportive", 20)
        for said, scores in ((line["user"], stats.user), (line["assistant"], stats.assistant)):
            np.testing.assert_allclose(said, scores, rtol=1e-5)
            assert all(float(f"{score:.6g}") == score for score in said)

    def test_are_there_at_once(self, start: Start, path: Path, small_bank: Bank) -> None:
        """A turn is on the disk when it was added: a process that is killed loses none."""
        writer = start()
        for count in (1, 2):
            write(writer, small_bank, 1)
            assert len(lines(path)) == count


class TestBound:
    """The file grows to its bound and no further."""

    def test_holds(self, start: Start, path: Path, small_bank: Bank) -> None:
        """The first turns are kept, later ones are left out, and the log says once that the file is full."""
        with capture_logs() as log:
            write(start(3), small_bank, 5)
        assert len(lines(path)) == 3
        assert [entry["event"] for entry in log] == ["baseline_full"]

    @pytest.mark.parametrize(("before", "bound", "after"), [(2, 3, 3), (3, 3, 3), (3, 2, 3), (1, 9, 5)])
    def test_counts_what_the_file_holds_at_the_start(
        self, before: int, bound: int, after: int, start: Start, path: Path, small_bank: Bank
    ) -> None:
        """Turns of an earlier run count towards the bound, and stay even where it was lowered."""
        write(start(before), small_bank, before)
        kept = path.read_bytes()
        write(start(bound), small_bank, 4)
        assert len(lines(path)) == after
        assert path.read_bytes().startswith(kept)

    @pytest.mark.parametrize("whole", [0, 2])
    @pytest.mark.parametrize("torn", [5, 60])
    def test_half_a_line_is_no_line(self, whole: int, torn: int, start: Start, path: Path, small_bank: Bank) -> None:
        """What a killed process left of its last line is taken away, so that the file stays readable."""
        write(start(), small_bank, whole + 1)
        *rest, last = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join([*rest, last[:torn]]))
        write(start(), small_bank, 9)
        assert len(lines(path)) == 3

    def test_goes_on_with_a_bank_that_was_refitted(self, start: Start, path: Path, small_bank: Bank) -> None:
        """Lines of the same probes count whatever bank id they name."""
        write(start(), small_bank, 2)
        path.write_text(path.read_text().replace(small_bank.card.bank_id, "0" * 12))
        write(start(), small_bank, 2)
        assert [line["bank"] for line in lines(path)] == ["0" * 12, "0" * 12, small_bank.card.bank_id]

    def test_leaves_turns_of_other_probes_out(self, start: Start, path: Path, small_bank: Bank) -> None:
        """After a new bank with other probes no more lines are added, and the bound still has room for its own."""
        writer, other = start(2), make_bank(seed=1)
        for bank in (small_bank, other, small_bank, small_bank):
            write(writer, bank, 1)
        assert [line["probes"] for line in lines(path)] == [small_bank.probes] * 2


class TestRefusals:
    """Files that are not a baseline of this bank."""

    @pytest.mark.parametrize("raw", [b"version: 1\npolicies: []\n", b"no newline", b"\n{}\n", b'{"bank":"x"}\n'])
    def test_of_something_else_are_left_as_they_are(self, raw: bytes, start: Start, path: Path) -> None:
        """A file that holds something else is refused at the start, by the flag, and not touched."""
        path.write_bytes(raw)
        with pytest.raises(SetupError, match="move it away or name another file") as caught:
            start()
        assert caught.value.field == "--baseline-file"
        assert path.read_bytes() == raw

    def test_of_other_probes(self, start: Start, small_bank: Bank) -> None:
        """Scores of other probes are in other units: a sidecar with another bank does not add to them."""
        write(start(), small_bank, 1)
        other = make_bank(seed=1)
        with pytest.raises(SetupError, match=f"the probes of bank {other.card.bank_id}"):
            start(bank=other)

    def test_of_places_where_no_file_can_be(self, start: Start, tmp_path: Path) -> None:
        """A folder that is missing, and one in place of the file, are refused at the start."""
        for to in (tmp_path, tmp_path / "none" / "baseline.jsonl"):
            with pytest.raises(SetupError, match=str(to.parent if to != tmp_path else to)) as caught:
                start(to=to)
            assert caught.value.field == "--baseline-file"


class TestDisk:
    """Disks that fail."""

    def test_that_are_full_cost_the_line_alone(self, start: Start, metrics: Metrics, small_bank: Bank) -> None:
        """Each turn that finds no space is counted, the first is logged, and nothing is raised."""
        with capture_logs() as log:
            write(start(to=Path("/dev/full")), small_bank, 3)
        assert metrics.value(LOST, "no_space") == 3
        assert [(entry["event"], entry["error"]) for entry in log] == [
            ("baseline_not_written", "No space left on device")
        ]

    def test_that_fail_otherwise_are_told_apart(
        self, start: Start, metrics: Metrics, path: Path, small_bank: Bank
    ) -> None:
        """A folder that vanished is no full disk; when it is back, lines are written again up to the bound."""
        folder = path.parent / "mount"
        folder.mkdir()
        writer = start(2, to=folder / "baseline.jsonl")
        folder.rmdir()
        write(writer, small_bank, 1)
        assert (metrics.value(LOST, "io"), metrics.value(LOST, "no_space")) == (1, 0)
        folder.mkdir()
        write(writer, small_bank, 3)
        assert len(lines(folder / "baseline.jsonl")) == 2

    def test_that_end_within_a_line_leave_no_half_line(
        self, start: Start, path: Path, metrics: Metrics, small_bank: Bank
    ) -> None:
        """A line that was cut by the end of the disk is taken back."""
        writer = start()
        write(writer, small_bank, 1)
        before = path.read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 30, hard))
        try:
            write(writer, small_bank, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert path.read_bytes() == before
        assert metrics.value(LOST, "no_space") + metrics.value(LOST, "io") == 1
        write(writer, small_bank, 1)
        assert len(lines(path)) == 2

    def test_that_cannot_be_read_at_the_start_stop_nothing(
        self, start: Start, metrics: Metrics, small_bank: Bank
    ) -> None:
        """Without knowing what the file holds nothing is added to it, and the sidecar starts all the same."""
        with capture_logs() as log:
            write(start(to=Path("/proc/self/mem")), small_bank, 2)
        assert metrics.value(LOST, "io") == 1
        assert [entry["event"] for entry in log] == ["baseline_not_written"]
