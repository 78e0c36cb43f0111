"""Chromium, driven by playwright-core in a process of node."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import needs
from servers import eventually

_DRIVER = Path(__file__).with_name("browser.mjs")
PHONE, DESK = 390, 1280
"""Widths of windows."""


class Browser:
    """A browser with one page."""

    def __init__(self) -> None:
        chromium, playwright = needs.browser()
        self._process = subprocess.Popen(
            ["node", str(_DRIVER), str(playwright), chromium], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def open(self, url: str, *, width: int = DESK, dark: bool = False, **options: Any) -> int:
        """Opens an address in a fresh profile; returns the status of the answer."""
        viewport = {"width": width, "height": 850}
        scheme = "dark" if dark else "light"
        return int(self._ask("open", url=url, options={"viewport": viewport, "colorScheme": scheme, **options}))

    def go(self, url: str) -> int:
        """Goes on to another address; returns the status of the answer."""
        return int(self._ask("go", url=url))

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self._ask("evaluate", script=script)

    def wait(self, script: str) -> None:
        """Waits until an expression in the page is true; fails when it never is."""
        # From here: the page's own policy forbids to evaluate anything in it.
        eventually(lambda: self._ask("holds", script=script))

    def press(self, key: str) -> None:
        """Presses a key."""
        self._ask("press", key=key)

    @property
    def text(self) -> str:
        """What can be read on the page."""
        return str(self.evaluate("document.body.innerText"))

    @property
    def address(self) -> str:
        """Where the page is."""
        return str(self._ask("address"))

    @property
    def complaints(self) -> list[str]:
        """What the browser has said on its console since the page was opened: errors, violations, warnings."""
        return list(self._ask("complaints"))

    @property
    def asked(self) -> list[str]:
        """Every address that was asked for since."""
        return list(self._ask("asked"))

    def close(self) -> None:
        """Ends it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)

    def _ask(self, name: str, **given: Any) -> Any:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the browser has no pipes")
        self._process.stdin.write(json.dumps({"name": name, **given}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the browser has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer
        return answer["value"]
