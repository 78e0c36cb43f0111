"""A bank fetched by its address: the promised one comes, and nothing else does."""

from __future__ import annotations

import functools
import hashlib
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import runner

from monitor.errors import BankError, SetupError
from monitor.probes import fetch
from monitor.probes.bank import Bank, load_bank
from monitor.probes.fetch import fetch_bank


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keeps the tests' output clean."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server, and the folder that it serves."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def packed(file: Path, bank: Bank, folder: Path, *names: str) -> str:
    """Packs a bank into an archive under each of some names of its folder; returns the archive's SHA-256."""
    bank.save(folder)
    with tarfile.open(file, "w:gz") as archive:
        for name in names:
            archive.add(folder, name)
    return hashlib.sha256(file.read_bytes()).hexdigest()


class TestFetch:
    """``fetch_bank``."""

    @pytest.mark.parametrize("name", [".", "banks/assistant", "../../outside"])
    def test_puts_the_bank_into_its_folder(
        self, site: tuple[str, Path], small_bank: Bank, tmp_path: Path, name: str
    ) -> None:
        """Whatever folder the archive names, bank.json and bank.safetensors lie in ours, and nothing beside them."""
        digest = packed(site[1] / "bank.tar.gz", small_bank, tmp_path / "made", name)
        fetch_bank(f"{site[0]}/bank.tar.gz", digest.upper(), tmp_path / "out" / "bank")
        assert load_bank(str(tmp_path / "out" / "bank")).card == small_bank.card
        assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == ["bank", "bank.json", "bank.safetensors"]

    def test_replaces_what_was_there(self, site: tuple[str, Path], small_bank: Bank, tmp_path: Path) -> None:
        """A container that is started anew finds the rest of its last try, and goes on all the same."""
        digest = packed(site[1] / "bank.tar.gz", small_bank, tmp_path / "made", "bank")
        out = tmp_path / "out"
        out.mkdir()
        (out / "bank.json").write_text("{")
        fetch_bank(f"{site[0]}/bank.tar.gz", digest, out)
        assert load_bank(str(out)).card == small_bank.card

    def test_refuses_another_file(self, site: tuple[str, Path], small_bank: Bank, tmp_path: Path) -> None:
        """A file with another SHA-256 is told with the one it has, and not unpacked."""
        digest = packed(site[1] / "bank.tar.gz", small_bank, tmp_path / "made", "bank")
        with pytest.raises(BankError, match=f"--sha256: .*bank.tar.gz has {digest}"):
            fetch_bank(f"{site[0]}/bank.tar.gz", "0" * 64, tmp_path / "out")
        assert list((tmp_path / "out").iterdir()) == []

    def test_asks_for_an_address_that_answers(self, site: tuple[str, Path], tmp_path: Path) -> None:
        """A missing file and an address that is none name the option."""
        for url in (f"{site[0]}/bank.tar.gz", "https://", "bank.tar.gz"):
            with pytest.raises(SetupError, match=r"--url: .* cannot be fetched"):
                fetch_bank(url, "0" * 64, tmp_path / "out")

    def test_asks_for_a_folder_it_can_write_to(self, tmp_path: Path) -> None:
        """A file in the folder's place is told as such."""
        (tmp_path / "out").write_text("")
        with pytest.raises(SetupError, match=r"--out: .* name a folder"):
            fetch_bank("https://banks.example.org", "0" * 64, tmp_path / "out")

    def test_refuses_an_archive_of_two_banks(self, site: tuple[str, Path], small_bank: Bank, tmp_path: Path) -> None:
        """Which of two it is to be cannot be known."""
        digest = packed(site[1] / "bank.tar.gz", small_bank, tmp_path / "made", "a", "b")
        with pytest.raises(BankError, match=r"bank\.json: is there 2 times in the archive"):
            fetch_bank(f"{site[0]}/bank.tar.gz", digest, tmp_path / "out")

    @pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8b\x08"])
    def test_refuses_what_is_no_archive(self, site: tuple[str, Path], tmp_path: Path, content: bytes) -> None:
        """A page in the archive's place, or a part of one, is refused in words."""
        (site[1] / "bank.tar.gz").write_bytes(content)
        with pytest.raises(BankError, match=r"is no \.tar\.gz"):
            fetch_bank(f"{site[0]}/bank.tar.gz", hashlib.sha256(content).hexdigest(), tmp_path / "out")

    def test_refuses_what_no_bank_is_as_large_as(
        self, site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What does not end fills no disk."""
        monkeypatch.setattr(fetch, "_MAX_BYTES", 3)
        (site[1] / "bank.tar.gz").write_bytes(b"four")
        with pytest.raises(BankError, match="is larger than 3 bytes"):
            fetch_bank(f"{site[0]}/bank.tar.gz", "0" * 64, tmp_path / "out")


class TestCommand:
    """``affect-monitor bank fetch``."""

    def test_is_what_an_init_container_runs(
        self,
        site: tuple[str, Path],
        small_bank: Bank,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The arguments that the chart's init container has bring a bank that loads."""
        digest = packed(site[1] / "bank.tar.gz", small_bank, tmp_path / "made", "bank")
        run, out = runner(monkeypatch, capsys, "bank", "fetch"), tmp_path / "out"
        done = run("--url", f"{site[0]}/bank.tar.gz", "--sha256", digest, "--out", out)
        assert (done.code, done.out) == (0, f"bank in {out}\n")
        assert load_bank(str(out)).card == small_bank.card
