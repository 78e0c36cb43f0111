"""The chain: any change of any row is found, and what a chain without a key cannot show is known."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from audits import alter, edit, fill, forge, open_store, records, verified
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import SetupError
from monitor.outputs.audit_chain import Chain, Verdict
from monitor.outputs.audit_file import open_to_read
from monitor.outputs.audit_read import compare_head

KEY = b"0123456789abcdef0123456789abcdef"
ROWS = 14
"""Rows of the store below, from row 6 on: a row of pruning, a second run and a third."""
FIRST = 6


@pytest.fixture(scope="module", params=[None, KEY], ids=["open", "keyed"])
def key(request: pytest.FixtureRequest) -> bytes | None:
    """The key of the chain."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def store(key: bytes | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of several runs, the first of which was pruned."""
    folder = tmp_path_factory.mktemp("chain")
    key_file = folder / "key"
    key_file.write_bytes(KEY)
    options = {"key_file": key_file if key else None}
    path = folder / "audit.db"
    fill(path, 4, **options)
    open_store(path, retain_days=1e-9, **options).close()
    fill(path, 6, first=5, **options)
    fill(path, 5, first=11, **options)
    return path


class Copy:
    """A copy of a store to work on."""

    def __init__(self, store: Path) -> None:
        self._store = store

    def __enter__(self) -> Path:
        self._folder = tempfile.TemporaryDirectory()
        return Path(shutil.copy(self._store, self._folder.name))

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    """All rows, raw."""
    with closing(sqlite3.connect(path)) as raw:
        return raw.execute("SELECT seq, kind, unix_ns, payload, trace, hash FROM rows ORDER BY seq").fetchall()


any_row = st.integers(FIRST, FIRST + ROWS - 1)


class TestWholeChains:
    """Chains nobody worked on."""

    def test_hold(self, store: Path, key: bytes | None) -> None:
        """Over several runs and a pruning the chain holds, from the first row that is left to the head."""
        found = records(store)
        assert [row.seq for row in found] == list(range(FIRST, FIRST + ROWS))
        assert {row.kind for row in found} == {"turn", "action", "pruned"}
        verdict = verified(store, key)
        assert (verdict.bad, verdict.first, verdict.rows) == (None, FIRST, ROWS)
        assert (verdict.head.seq, verdict.head.hash.hex()) == (found[-1].seq, found[-1].hash)

    def test_hold_with_nothing_in_them(self, tmp_path: Path) -> None:
        """A store that was only opened verifies, with no rows."""
        open_store(tmp_path / "audit.db").close()
        verdict = verified(tmp_path / "audit.db")
        assert (verdict.bad, verdict.rows) == (None, 0)

    def test_tell_of_their_progress(self, store: Path, key: bytes | None) -> None:
        """A verification says how far it is, and in the end that it is done."""
        from monitor.outputs.audit_chain import verify

        told: list[tuple[int, int]] = []
        with closing(open_to_read(store, "--file")) as reader:
            verify(reader, Chain(key), lambda done, total: told.append((done, total)))
        assert (told[0], told[-1]) == ((0, ROWS), (ROWS, ROWS))


class TestWorkedOn:
    """Chains somebody worked on, by raw SQL."""

    @settings(max_examples=60, deadline=None)
    @given(seq=any_row, column=st.sampled_from(["kind", "unix_ns", "payload", "trace", "hash"]), data=st.data())
    def test_any_edit_is_found(
        self, seq: int, column: str, data: st.DataObject, store: Path, key: bytes | None
    ) -> None:
        """Whatever value any column of any row is given instead of its own, verification stops there or before."""
        anything = st.one_of(
            st.text(st.characters(codec="utf-8"), max_size=20),
            st.integers(-(2**63), 2**63 - 1),
            st.binary(max_size=40),
            st.floats(allow_nan=False),
            st.just(None),
        )
        value = data.draw(anything)
        with Copy(store) as path:
            before = rows_of(path)
            try:
                alter(path, f"UPDATE rows SET {column} = ? WHERE seq = ?", value, seq)  # noqa: S608
            except sqlite3.Error:
                return  # not null, or no JSON for the index: the file itself refuses it
            if rows_of(path) == before and _types(path) == _types(store):
                return
            bad = verified(path, key).bad
            assert bad is not None
            assert bad.seq <= seq

    @settings(max_examples=40, deadline=None)
    @given(
        seq=any_row, place=st.integers(0), bit=st.integers(0, 7), column=st.sampled_from(["payload", "trace", "hash"])
    )
    def test_any_bit_is_found(
        self, seq: int, place: int, bit: int, column: str, store: Path, key: bytes | None
    ) -> None:
        """A single bit of a row is enough."""
        with Copy(store) as path, closing(sqlite3.connect(path)) as raw, raw:
            raw.text_factory = bytes
            (value,) = raw.execute(f"SELECT {column} FROM rows WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
            if value is None:
                return
            turned = bytearray(value)
            turned[place % len(turned)] ^= 1 << bit
            raw.execute("DROP INDEX rows_by_turn")
            kind = "BLOB" if column == "hash" else "TEXT"
            raw.execute(f"UPDATE rows SET {column} = CAST(? AS {kind}) WHERE seq = ?", (bytes(turned), seq))  # noqa: S608
            raw.commit()
            bad = verified(path, key).bad
            assert bad is not None
            assert bad.seq <= seq

    @settings(max_examples=40, deadline=None)
    @given(begin=any_row, count=st.integers(1, ROWS))
    def test_any_deletion_is_found(self, begin: int, count: int, store: Path, key: bytes | None) -> None:
        """Rows deleted at the beginning, in the middle or at the end are missed."""
        with Copy(store) as path:
            alter(path, "DELETE FROM rows WHERE seq BETWEEN ? AND ?", begin, begin + count - 1)
            assert verified(path, key).bad is not None

    @settings(max_examples=40, deadline=None)
    @given(one=any_row, other=any_row, whole=st.booleans())
    def test_any_swap_is_found(self, one: int, other: int, whole: bool, store: Path, key: bytes | None) -> None:
        """Two rows that change places are found, with their hashes or without them."""
        if one == other:
            return

        def swap(raw: sqlite3.Connection) -> None:
            columns = ["kind", "unix_ns", "payload", "trace", *(["hash"] if whole else [])]
            asked = f"SELECT {', '.join(columns)} FROM rows WHERE seq = ?"  # noqa: S608
            first, second = (raw.execute(asked, (seq,)).fetchone() for seq in (one, other))
            put = f"UPDATE rows SET {', '.join(f'{name} = ?' for name in columns)} WHERE seq = ?"  # noqa: S608
            raw.execute(put, (*second, one))
            raw.execute(put, (*first, other))

        with Copy(store) as path:
            alter(path, swap)
            bad = verified(path, key).bad
            assert bad is not None
            assert bad.seq <= min(one, other)

    @settings(max_examples=20, deadline=None)
    @given(seq=any_row)
    def test_any_insertion_is_found(self, seq: int, store: Path, key: bytes | None) -> None:
        """A row put before the first, behind the last or among the others is found."""

        def insert(raw: sqlite3.Connection) -> None:
            raw.execute("UPDATE rows SET seq = -seq WHERE seq >= ?", (seq,))
            raw.execute("UPDATE rows SET seq = 1 - seq WHERE seq < 0")
            copied = raw.execute("SELECT kind, unix_ns, payload, trace, hash FROM rows LIMIT 1").fetchone()
            raw.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)", (seq, *copied))

        with Copy(store) as path:
            alter(path, insert)
            assert verified(path, key).bad is not None

    def test_rows_that_come_back_are_found(self, store: Path, key: bytes | None) -> None:
        """A row with a number that was pruned is none of the chain."""
        with Copy(store) as path:
            alter(path, "INSERT INTO rows SELECT 5, kind, unix_ns, payload, trace, hash FROM rows WHERE seq = 6")
            bad = verified(path, key).bad
            assert bad is not None
            assert (bad.seq, "pruned" in bad.what) == (5, True)

    @pytest.mark.parametrize(
        "change",
        [
            "DELETE FROM head",
            "UPDATE head SET seq = seq - 1",
            "UPDATE head SET seal = x'00'",
            "UPDATE head SET hash = 7",
        ],
    )
    def test_heads_that_were_changed_are_found(self, change: str, store: Path, key: bytes | None) -> None:
        """The head alone, changed or gone, is enough."""
        with Copy(store) as path:
            alter(path, change)
            assert verified(path, key).bad is not None

    def test_everything_gone_is_found(self, store: Path, key: bytes | None) -> None:
        """An empty store that its head says had rows."""
        with Copy(store) as path:
            alter(path, "DELETE FROM rows")
            assert verified(path, key).bad is not None

    def test_say_what_is_wrong(self, store: Path, key: bytes | None) -> None:
        """The first row at fault is named, and how it is at fault."""
        cases = {
            "UPDATE rows SET unix_ns = unix_ns + 1 WHERE seq = 9": (9, "was changed, or stands in another's place"),
            "DELETE FROM rows WHERE seq = 9": (9, "is missing"),
            "DELETE FROM rows WHERE seq BETWEEN 9 AND 11": (9, "is missing, with all up to row 11"),
            "DELETE FROM rows WHERE seq > 15": (16, "is missing from the end, with all up to row 19"),
        }
        for change, expected in cases.items():
            with Copy(store) as path:
                alter(path, change)
                assert verified(path, key).bad == expected

    def test_damage_is_found(self, store: Path, key: bytes | None) -> None:
        """Pages overwritten in the file are a break, not an error."""
        with Copy(store) as path:
            raw = bytearray(path.read_bytes())
            raw[3 * 4096 :] = b"\xa5" * (len(raw) - 3 * 4096)
            path.write_bytes(raw)
            with closing(open_to_read(path, "--file")) as reader:
                from monitor.outputs.audit_chain import verify

                assert verify(reader, Chain(key)).bad is not None


def _types(path: Path) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(path)) as raw:
        asked = (
            "SELECT typeof(kind), typeof(unix_ns), typeof(payload), typeof(trace), typeof(hash) FROM rows ORDER BY seq"
        )
        return raw.execute(asked).fetchall()


class TestForged:
    """Chains that were computed anew by somebody who can write the file."""

    def forged(self, path: Path, key: bytes | None) -> Verdict:
        """A row is changed, and every hash and the head are computed to fit, without the key."""
        edit(path, 2, over_index=0.0)
        alter(path, lambda raw: forge(raw, Chain(None)))
        return verified(path, key)

    def test_pass_without_a_key(self, tmp_path: Path) -> None:
        """Without a key a forged chain verifies, and only a head that was kept elsewhere shows it."""
        path = tmp_path / "audit.db"
        fill(path, 4)
        head = str(verified(path).head)
        assert self.forged(path, None).bad is None
        with closing(open_to_read(path, "--file")) as reader:
            bad = compare_head(reader, head)
        assert bad == (5, "is not the row that the copy of the head names")

    def test_are_found_with_a_key(self, tmp_path: Path) -> None:
        """With a key no forged row passes."""
        path, key_file = tmp_path / "audit.db", tmp_path / "key"
        key_file.write_bytes(KEY)
        fill(path, 4, key_file=key_file)
        assert verified(path, KEY).bad is None
        bad = self.forged(path, KEY).bad
        assert bad is not None
        assert bad.seq == 1

    def test_ends_with_a_key_are_found(self, tmp_path: Path) -> None:
        """With a key the head cannot be taken back together with the last rows."""
        path, key_file = tmp_path / "audit.db", tmp_path / "key"
        key_file.write_bytes(KEY)
        fill(path, 4, key_file=key_file)
        alter(path, "DELETE FROM rows WHERE seq > 3")
        alter(path, "UPDATE head SET seq = 3, hash = (SELECT hash FROM rows WHERE seq = 3)")
        assert verified(path, KEY).bad == (3, "is not what the sealed head of the chain names")


class TestCopiesOfHeads:
    """Heads that were kept elsewhere."""

    def compared(self, path: Path, copy: str) -> Any:
        """What the comparison finds."""
        with closing(open_to_read(path, "--file")) as reader:
            return compare_head(reader, copy)

    def test_agree_with_the_rows_they_name(self, store: Path, key: bytes | None) -> None:
        """The present head and every earlier one agree, by all of their digits or by the first twelve."""
        assert self.compared(store, str(verified(store, key).head)) is None
        for row in records(store):
            assert self.compared(store, f"{row.seq}:{row.hash[:12]}") is None

    def test_show_an_end_that_was_cut_off(self, store: Path, key: bytes | None) -> None:
        """A chain whose end was taken away together with its head is shorter than the copy."""
        head = str(verified(store, key).head)
        with Copy(store) as path:
            alter(path, "DELETE FROM rows WHERE seq > 15")
            assert self.compared(path, head) == (
                16,
                "is missing from the end, with all up to row 19, which the copy names",
            )

    @pytest.mark.parametrize("copy", ["", "7", "7:", "7:abc", "x:0123456789ab", "7:0123456789aX", "-1:0123456789ab"])
    def test_that_are_none_are_refused(self, copy: str, store: Path) -> None:
        """What is no head is told, with how one is written."""
        with pytest.raises(SetupError, match="SEQ:HASH"):
            self.compared(store, copy)

    def test_that_were_pruned_are_refused(self, store: Path) -> None:
        """A row that was pruned since can no longer be compared."""
        with pytest.raises(SetupError, match="was pruned, the store begins with row 6"):
            self.compared(store, "3:0123456789ab")
