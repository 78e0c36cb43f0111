"""Prometheus' and Alertmanager's own tools, as the tests run them."""

from __future__ import annotations

import subprocess

import needs


def promtool(*arguments: object, page: bytes | None = None) -> str:
    """What promtool prints; whatever it finds fault with fails the test.

    Args:
        arguments: Its arguments.
        page: Its standard input.
    """
    return _printed("promtool", arguments, page)


def amtool(*arguments: object) -> str:
    """What amtool prints; whatever it finds fault with fails the test."""
    return _printed("amtool", arguments, None)


def _printed(name: str, arguments: tuple[object, ...], page: bytes | None) -> str:
    command = [needs.server(name), *map(str, arguments)]
    done = subprocess.run(command, input=page, capture_output=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    return done.stdout.decode()
