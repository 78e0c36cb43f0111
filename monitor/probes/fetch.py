"""Fetches a bank by its address; only what has the SHA-256 that was promised is unpacked."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from pathlib import Path
from typing import IO

import httpx

from monitor.errors import BankError, SetupError

_FILES = ("bank.json", "bank.safetensors")
_MAX_BYTES = 2 << 30
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_PLAIN = {"accept-encoding": "identity"}
"""Else a server might pack the archive once more, and it would not have its SHA-256."""


def fetch_bank(url: str, sha256: str, out: Path) -> None:
    """Puts a bank into a folder; what is there of another is replaced.

    Args:
        url: Address of a ``.tar.gz`` that holds ``bank.json`` and ``bank.safetensors`` once, at any depth.
        sha256: Of that file, in hexadecimal.
        out: Folder for the bank.

    Raises:
        SetupError: The address cannot be fetched, or the folder not written to.
        BankError: What came is not what was promised, or holds no bank.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        # Beside the bank: an init container may have no other place to write to.
        with tempfile.TemporaryFile(dir=out) as archive:
            found = _download(url, archive)
            if found != sha256.lower():
                raise BankError("--sha256", f"{url} has {found}; fetch the right file, or give its SHA-256")
            archive.seek(0)
            _unpack(archive, out)
    except OSError as error:
        raise SetupError("--out", f"{out}: {error.strerror}; name a folder that can be written to") from None


def _download(url: str, archive: IO[bytes]) -> str:
    """Writes what is at an address into a file; returns its SHA-256."""
    digest, taken = hashlib.sha256(), 0
    try:
        with httpx.stream("GET", url, headers=_PLAIN, follow_redirects=True, timeout=_TIMEOUT) as answer:
            answer.raise_for_status()
            for block in answer.iter_raw():
                taken += len(block)
                if taken > _MAX_BYTES:
                    raise BankError("--url", f"{url} is larger than {_MAX_BYTES} bytes, which no bank is")
                digest.update(block)
                archive.write(block)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SetupError("--url", f"{url} cannot be fetched ({error}); give an address that answers") from None
    return digest.hexdigest()


def _unpack(archive: IO[bytes], out: Path) -> None:
    try:
        with tarfile.open(fileobj=archive, mode="r:gz") as files:
            members = [member for member in files if member.isfile()]
            for name in _FILES:
                # By the last part of its path alone, so that no path in the archive leads anywhere.
                named = [member for member in members if Path(member.name).name == name]
                content = files.extractfile(named[0]) if len(named) == 1 else None
                if content is None:
                    raise BankError(name, f"is there {len(named)} times in the archive; pack one bank's folder")
                (out / name).write_bytes(content.read())
    except (tarfile.TarError, EOFError) as error:
        raise BankError("--url", f"is no .tar.gz ({error}); pack the bank's folder by tar -czf") from None
