"""Tests of ``affect-monitor audit``: what the commands print, and with which exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audits import PATIENCE, alter, edit, fill, held_down, make_trace, make_turn, open_store, records, verified
from commands import Run, runner


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an audit command in this process."""
    return runner(monkeypatch, capsys, "audit")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store of an action and six turns, the third and sixth with an alert and a trace."""
    fill(tmp_path / "audit.db", 6)
    return tmp_path / "audit.db"


class TestList:
    """audit list."""

    def seqs(self, run: Run, path: Path, *arguments: str) -> list[int]:
        """Numbers of the rows that are listed."""
        done = run("list", "--file", path, "--json", *arguments)
        assert done.code == 0
        return [row["seq"] for row in json.loads(done.out)]

    def test_shows_rows_in_order(self, run: Run, path: Path) -> None:
        """A line a row: turns with their scores and alerts, actions with what they say."""
        done = run("list", "--file", path)
        lines = done.out.splitlines()
        assert (done.code, len(lines)) == (0, 8)
        assert "action start, version 1" in lines[1]
        assert "bank-3 desk: over-index 1.50, p 0.0040, coverage 100%, text_silent alert: affect" in lines[4]
        assert "alert:" not in lines[3]

    def test_leaves_out_what_is_not_asked_for(self, run: Run, path: Path) -> None:
        """By policy, by alerts and by number; the latest ones count."""
        assert self.seqs(run, path) == [1, 2, 3, 4, 5, 6, 7]
        assert self.seqs(run, path, "--alerted") == [4, 7]
        assert self.seqs(run, path, "--policy", "desk") == [2, 3, 4, 5, 6, 7]
        assert self.seqs(run, path, "--policy", "other") == []
        assert self.seqs(run, path, "--limit", "2") == [6, 7]
        assert self.seqs(run, path, "--alerted", "--limit", "1") == [7]

    def test_knows_times_and_ages(self, run: Run, path: Path) -> None:
        """Rows since a time: an age, or a time with or without a zone."""
        assert self.seqs(run, path, "--since", "2h") == self.seqs(run, path, "--since", "2020-01-01") != []
        assert self.seqs(run, path, "--since", "2999-01-01T00:00Z") == []

    @pytest.mark.parametrize("since", ["yesterday", "xh", "h", "2020-13-01", "9e99d"])
    def test_refuses_other_times(self, since: str, run: Run, path: Path) -> None:
        """What is no time is told by the flag."""
        done = run("list", "--file", path, "--since", since)
        assert done.code == 2
        assert "error --since" in done.err


class TestShow:
    """audit show."""

    def test_draws_the_tokens_of_an_alerted_turn(self, run: Run, path: Path) -> None:
        """Scores, families, emotions, and a strip of bars above the roles of its tokens."""
        done = run("show", "bank-3", "--file", path)
        assert done.code == 0
        assert "A 2.50 where 1.00 is warranted for U 0.25: over-index 1.50, p 0.0040" in done.out
        assert "warmth" in done.out
        assert "affect of 6 tokens, ▁ = -1.0 to █ = 1.4" in done.out
        assert done.out.splitlines()[-2:] == ["    100 ▁▃▅▆█·", "        uuuaaa"]

    def test_shows_a_turn_without_trace(self, run: Run, path: Path) -> None:
        """A sampled turn has scores alone."""
        done = run("show", "bank-1", "--file", path)
        assert (done.code, "over-index" in done.out, "tokens," in done.out) == (0, True, False)

    def test_says_what_was_held_down(self, run: Run, path: Path) -> None:
        """What a cap did to a turn stands in show, its family in list; a turn of an earlier version has neither."""
        store = open_store(path)
        store.turn(make_turn(99, interventions=[held_down(3)]), bank_id="b", stance="neutral")
        store.close(PATIENCE)
        line = "cap on warmth at 0.99, layers 2: held down 3 of 40 generated tokens, by 1.50 at most, 0.50 in mean"
        assert line in run("show", "bank-99", "--file", path).out
        assert "held down: warmth" in run("list", "--file", path, "--limit", 1).out
        alter(path, "UPDATE rows SET payload = json_remove(payload, '$.interventions')")
        shown = run("show", "bank-99", "--file", path)
        assert (shown.code, "held down" in shown.out) == (0, False)
        assert run("list", "--file", path).code == 0

    def test_breaks_long_strips(self, run: Run, path: Path) -> None:
        """A long trace goes over several lines, each with the position it begins at."""
        store = open_store(path)
        store.turn(make_turn(99, alerts=("affect",)), bank_id="b", stance="neutral", trace=make_trace(150))
        store.close(PATIENCE)
        lines = run("show", "bank-99", "--file", path).out.splitlines()[-6:]
        assert [line[:8] for line in lines[::2]] == ["    100 ", "    164 ", "    228 "]
        assert "".join(line[8:] for line in lines[1::2]) == "u" * 75 + "a" * 75

    def test_has_everything_for_programs(self, run: Run, path: Path) -> None:
        """JSON has all fields and the trace."""
        told = json.loads(run("show", "bank-6", "--file", path, "--json").out)
        (row,) = [row for row in records(path) if row.payload.get("turn_id") == "bank-6"]
        assert told == {
            "seq": row.seq, "kind": "turn", "unix_ns": row.unix_ns, "hash": row.hash, **row.payload, "trace": row.trace,
        }  # fmt: skip

    def test_says_when_there_is_no_such_turn(self, run: Run, path: Path) -> None:
        """An unknown turn is told, with why it may be missing."""
        done = run("show", "bank-77", "--file", path)
        assert done.code == 2
        assert "was not sampled, was pruned or never happened" in done.err

    def test_shows_text_where_ids_are_stored(self, run: Run, path: Path, tiny_tokenizer: Any, tmp_path: Path) -> None:
        """With a tokenizer every token has a line: position, role, affect, bar, text."""
        tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
        store = open_store(path, text=True)
        trace = make_trace()._replace(token_ids=make_trace().positions[:6].astype("int32") - 95)
        store.turn(make_turn(50, alerts=("affect",)), bank_id="b", stance="neutral", trace=trace)
        store.close(PATIENCE)
        lines = run("show", "bank-50", "--file", path, "--tokenizer", tmp_path / "tokenizer").out.splitlines()[-6:]
        assert [line.split()[:3] for line in lines[:2]] == [["100", "u", "-1.00"], ["101", "u", "-0.40"]]
        assert lines[0].endswith(f"{tiny_tokenizer.decode([5])!r}")
        assert lines[-1].split()[:3] == ["105", "a", "·"]

    def test_says_when_no_ids_are_stored(self, run: Run, path: Path, tmp_path: Path) -> None:
        """Text that was never stored cannot be shown."""
        done = run("show", "bank-3", "--file", path, "--tokenizer", tmp_path)
        assert done.code == 2
        assert "no token ids are stored" in done.err


class TestVerify:
    """audit verify."""

    def test_says_that_a_chain_holds(self, run: Run, path: Path) -> None:
        """Rows and head are told, and the head is taken back as a copy."""
        done = run("verify", "--file", path)
        head = str(verified(path).head)
        assert (done.code, done.out) == (0, f"{path} ok: 7 rows from 1 on, head {head}\n")
        assert run("verify", "--file", path, "--head", head).code == 0

    def test_names_the_first_row_at_fault(self, run: Run, path: Path) -> None:
        """A changed row is exit code 1, with its number and what is wrong."""
        edit(path, 4, over_index=0.0)
        done = run("verify", "--file", path)
        assert (done.code, done.out) == (
            1,
            f"{path} does not verify: row 4 was changed, or stands in another's place\n",
        )
        told = json.loads(run("verify", "--file", path, "--json").out)
        assert (told["ok"], told["wrong"]["seq"], told["rows"]) == (False, 4, 3)

    def test_finds_an_end_cut_off_by_a_copy(self, run: Run, path: Path) -> None:
        """A head from the log shows what the file alone cannot."""
        head = str(verified(path).head)
        alter(path, "DELETE FROM rows WHERE seq = 7")
        assert run("verify", "--file", path, "--head", head).code == 1

    def test_asks_for_the_key(self, run: Run, tmp_path: Path) -> None:
        """A chain with a key verifies with it, does not with another, and without one is not tried."""
        path, key = tmp_path / "audit.db", tmp_path / "key"
        key.write_text("k" * 32)
        (tmp_path / "other").write_text("o" * 32)
        fill(path, 2, key_file=key)
        assert run("verify", "--file", path, "--key-file", key).code == 0
        assert run("verify", "--file", path, "--key-file", tmp_path / "other").code == 1
        done = run("verify", "--file", path)
        assert (done.code, "error --key-file" in done.err) == (2, True)

    def test_refuses_what_is_no_store(self, run: Run, tmp_path: Path) -> None:
        """A file of something else is exit code 2."""
        (tmp_path / "x").write_text("x")
        for file in (tmp_path / "x", tmp_path / "none"):
            done = run("verify", "--file", file)
            assert (done.code, "error --file" in done.err) == (2, True)

    def test_takes_the_file_from_the_environment(self, run: Run, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the sidecar is told its file by AFFECT_AUDIT_FILE, so are the commands."""
        monkeypatch.setenv("AFFECT_AUDIT_FILE", str(path))
        assert run("verify").code == 0


class TestExport:
    """audit export."""

    def test_writes_parquet(self, run: Run, path: Path, tmp_path: Path) -> None:
        """All rows are in the file, and the count is told."""
        parquet = pytest.importorskip("pyarrow.parquet")
        out = tmp_path / "x.parquet"
        done = run("export", "--file", path, "--out", out)
        assert (done.code, done.out) == (0, f"7 rows in {out}\n")
        assert parquet.read_table(out).num_rows == 7


def test_rows_that_cannot_be_read_are_told(run: Run, path: Path) -> None:
    """Somebody who spoilt a row makes a list fail with a hint to verify, not with a traceback."""
    alter(path, "UPDATE rows SET payload = 'x' WHERE kind = 'action'")
    done = run("list", "--file", path)
    assert (done.code, "audit verify" in done.err) == (2, True)
