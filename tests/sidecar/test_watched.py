"""Files that change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from monitor.errors import SetupError
from monitor.sidecar.watched import Watched

if TYPE_CHECKING:
    from pathlib import Path


class Reader:
    """Reads a file, and notes how often and what was told."""

    def __init__(self, file: Path) -> None:
        self.file, self.reads = file, 0
        self.told: list[str] = []
        self.meanwhile = ""
        self.watched = Watched([file], self.read, lambda error: self.told.append(error.message if error else "taken"))

    def read(self) -> str:
        """What the file says."""
        self.reads += 1
        text = self.file.read_text() if self.file.exists() else "bad"
        if self.meanwhile:
            self.file.write_text(self.meanwhile)
            self.meanwhile = ""
        if text == "bad":
            raise SetupError("file", "is bad")
        return text


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    """A reader of a good file."""
    file = tmp_path / "file"
    file.write_text("first")
    return Reader(file)


def test_reads_once(reader: Reader) -> None:
    """A file that does not change is read once."""
    assert [reader.watched.current(), reader.watched.current()] == ["first", "first"]
    assert (reader.reads, reader.told) == (1, [])


@pytest.mark.parametrize("swap", [False, True])
def test_change(swap: bool, reader: Reader) -> None:
    """A change is taken, in place or by another file in its place."""
    if swap:
        other = reader.file.with_name("other")
        other.write_text("later")
        other.replace(reader.file)
    else:
        reader.file.write_text("second")

    assert reader.watched.current() == ("later" if swap else "second")
    assert (reader.reads, reader.told) == (2, ["taken"])


@pytest.mark.parametrize("gone", [False, True])
def test_bad_change(gone: bool, reader: Reader) -> None:
    """A bad change is told once, what was there before stays, and the next good one is taken."""
    if gone:
        reader.file.unlink()
    else:
        reader.file.write_text("bad")

    assert [reader.watched.current(), reader.watched.current()] == ["first", "first"]
    reader.file.write_text("mended")
    assert reader.watched.current() == "mended"
    assert reader.told == ["is bad", "taken"]


def test_change_while_it_is_read(reader: Reader) -> None:
    """What is read while it changes is not taken; the next look takes it whole."""
    reader.file.write_text("second")
    reader.meanwhile = "the third"

    assert [reader.watched.current(), reader.watched.current()] == ["first", "the third"]
    assert reader.told == ["taken"]


def test_bad_to_begin_with(tmp_path: Path) -> None:
    """There is no beginning with a bad file."""
    with pytest.raises(SetupError):
        Reader(tmp_path / "none")
