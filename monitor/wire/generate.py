"""Generates the protobuf code of this package from ``protos/``: ``python -m monitor.wire.generate``.

Needs the ``test`` extra and runs at the top of a checkout. The version of grpcio-tools is pinned there, so that the
result is the same everywhere and runs on every protobuf release a current inference server carries.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PROTOS = Path("protos")
OUTPUT = Path("monitor/wire/v1")
_PACKAGE = "affect.monitor.v1"


def generate(output: Path, protos: Path) -> None:
    """Writes ``*_pb2.py``, ``*_pb2.pyi`` and ``*_pb2_grpc.py`` for every proto into ``output``.

    Raises:
        RuntimeError: protoc refused the protos.
    """
    from grpc_tools import protoc

    package_folder = _PACKAGE.replace(".", "/")
    sources = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    with TemporaryDirectory() as folder:
        options = [f"-I{protos}", *(f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python"))]
        if protoc.main(["protoc", *options, *sources]) != 0:
            raise RuntimeError(f"protoc refused the files under {protos}")
        for made in sorted(Path(folder, package_folder).iterdir()):
            # protoc imports by proto package; ours lives inside the distribution.
            text = made.read_text().replace(f"from {_PACKAGE} import", "from monitor.wire.v1 import")
            (output / made.name).write_text(text)


if __name__ == "__main__":
    generate(OUTPUT, PROTOS)
    sys.stderr.write(f"wrote {OUTPUT}\n")
