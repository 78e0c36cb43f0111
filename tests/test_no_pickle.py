"""Nothing in the package unpickles: a file or a frame is never a program."""

from __future__ import annotations

import ast
from pathlib import Path

import monitor

LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("yaml", "load"), ("yaml", "unsafe_load")}


def test_nothing_unpickles() -> None:
    """No module imports a pickle, or calls what would read one."""
    found = []
    for file in Path(monitor.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            imported = [name.name for name in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                imported = [node.module or ""]
            if LOADERS & {name.partition(".")[0] for name in imported}:
                found.append(f"{file.name}:{node.lineno} imports {imported}")
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name):
                call = called.value.id, called.attr
                if call in CALLS:
                    found.append(f"{file.name}:{called.lineno} calls {'.'.join(call)}")
    assert not found
