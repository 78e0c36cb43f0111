"""The generated code in the package is that of the protos."""

from __future__ import annotations

from pathlib import Path

import pytest

import monitor.wire.v1
from monitor.wire import generate

pytest.importorskip("grpc_tools")

PACKAGE = Path(monitor.wire.v1.__path__[0])


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    """Generating anew from the protos changes no file."""
    generate.generate(tmp_path, Path(__file__).parents[2] / "protos")
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in PACKAGE.iterdir() if "_pb2" in path.name and path.is_file()}
    assert made == kept


def test_bad_protos_are_refused(tmp_path: Path) -> None:
    """A proto that protoc cannot read stops the generator before it writes anything."""
    protos = tmp_path / "protos"
    protos.mkdir()
    (protos / "bad.proto").write_text("message {")
    with pytest.raises(RuntimeError, match="protoc refused"):
        generate.generate(tmp_path / "out", protos)
    assert not (tmp_path / "out").exists()
