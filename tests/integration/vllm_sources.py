"""Fetches the Python files of the vLLM versions that capture knows, against which the contract tests run.

``python tests/integration/vllm_sources.py --out DIR`` takes a minute, 180 MB of download and 200 MB of disk. Tests find
them by ``AFFECT_VLLM_SOURCES=DIR``, and what they need beside them in the environment of ``vllm_server.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import sys
import tarfile
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

SHA256 = {
    "0.30.0": "5f8f4e890c042ffa1c3e103f81c35e2d96f60a0a175ac43a4adbae7006bef62b",
    "0.31.0": "dde46f1efbe846e5bd0c5c4ec6ec71842c42254c7ff3d9bebb2a57028715d380",
    "0.32.0": "d2c957d5eee3d0985012151315ddc62cbe0cd368fc96a5fc3510438d9dddf2ad",
    "0.33.0": "f4c33c2503d52bb411146afa9618a4f48bed68912f617e6803ac8d76e4c74112",
}
"""Of the source distributions, by version."""
_INDEX = "https://pypi.org/simple"
_FORM = "application/vnd.pypi.simple.v1+json"
_TIMEOUT = 300.0


def fetch(folder: Path) -> None:
    """Lays the Python files of every version into a folder of its own; what is there already stays.

    Raises:
        LookupError: The index lacks a version.
        ValueError: What came is not what was asked for.
    """
    page = os.environ.get("PIP_INDEX_URL", _INDEX).rstrip("/") + "/vllm/"
    missing = [version for version in SHA256 if not source(folder, version).is_dir()]
    addresses = _addresses(page) if missing else {}
    for version in missing:
        name = f"vllm-{version}.tar.gz"
        if name not in addresses:
            raise LookupError(f"{page} has no {name}; set PIP_INDEX_URL to an index that has")
        print(f"{name}, some seconds", flush=True)
        data = _read(urljoin(page, addresses[name]))
        if hashlib.sha256(data).hexdigest() != SHA256[version]:
            raise ValueError(f"{name} of {page} is another than it should be; use another index")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            wanted = [member for member in archive if _is_wanted(member.name, version)]
            archive.extractall(folder, wanted, filter="data")
    print(f"done; tests find them by AFFECT_VLLM_SOURCES={folder}")


def source(folder: Path, version: str) -> Path:
    """Where the package of a version lies: its parent belongs on the path."""
    return folder / f"vllm-{version}" / "vllm"


def _is_wanted(name: str, version: str) -> bool:
    return name.startswith(f"vllm-{version}/vllm/") and name.endswith(".py")


def _addresses(page: str) -> dict[str, str]:
    """Where the files of a page of the index lie (the simple API in JSON, PEP 691)."""
    return {file["filename"]: file["url"] for file in json.loads(_read(page))["files"]}


def _read(address: str) -> bytes:
    request = urllib.request.Request(address, headers={"Accept": f"{_FORM}, */*;q=0.1"})  # noqa: S310 - an index of packages
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
        data: bytes = answer.read()
    return data


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    try:
        fetch(parser.parse_args().out.absolute())
    except (LookupError, ValueError, OSError) as error:
        sys.exit(f"cannot fetch the files of vLLM: {error}")
