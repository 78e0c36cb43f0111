"""Makes the bytecode of whatever serving imports, Python's own modules too; of all there is that is a fifth.

It is not compared with its source later on: the times of files do not matter, and every build makes the same bytes.
"""

from __future__ import annotations

import pkgutil
import py_compile
import sys
from importlib import import_module

import monitor.cli
import monitor.outputs
import monitor.sidecar

for package in (monitor.outputs, monitor.sidecar):
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        import_module(found.name)
for module in list(sys.modules.values()):
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.has_location and spec.origin.endswith(".py"):
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(spec.origin, doraise=True, invalidation_mode=mode)
