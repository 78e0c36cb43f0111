"""The status page in a real browser: what people see, and that it needs nothing but the sidecar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from browser import DESK, PHONE, Browser
from servers import PATIENCE, Engine, eventually

from monitor.sidecar.server import Sidecar

pytestmark = pytest.mark.servers

TOKEN = "correct-horse"  # noqa: S105 - of this test alone
DRAWN = "document.querySelectorAll('.canvas .main-svg').length > 3"
LIVE = "document.getElementById('live').className === 'live now'"
# Contrast as WCAG 2.1 has it, of every text that is shown; large text may have less.
PALE = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => {
    const [r, g, b] = rgba(colour).map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return "white";
  };
  const pale = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility() || element.closest("script, svg")) continue;
    const style = getComputedStyle(element);
    const [high, low] = [light(style.color), light(behind(element))].sort((a, b) => b - a);
    const least = parseFloat(style.fontSize) >= 24 ? 3 : 4.5;
    if ((high + 0.05) / (low + 0.05) < least) pale.push(texts.currentNode.data.trim());
  }
  return pale;
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One browser for all tests; each opens a profile of its own."""
    started = Browser()
    yield started
    started.close()


@pytest.fixture
def seen(watch: Callable[..., Any], tmp_path: Any) -> Iterator[tuple[Sidecar, Engine]]:
    """A sidecar that saw calm turns on both routes, and keeps tokens of turns that alert."""
    with watch(audit_file=tmp_path / "audit.db", audit_tokens=32) as (sidecar, engine):
        for number in range(4):
            engine.turn(-0.5, user_affect=number / 2)
            engine.turn(-0.5, user_affect=number, route="helpline")
        yield sidecar, engine


def alarm(engine: Engine) -> str:
    """Has the desk's alert fire; returns the id of its last turn."""
    return [engine.turn(9.0).turn_id for _ in range(2)][-1]


def pages(sidecar: Sidecar, turn_id: str) -> list[str]:
    """Every kind of page."""
    paths = ("/", "/turns", f"/turns/{turn_id}", "/runbooks", "/runbooks/AffectBlind", "/turns/none")
    return [sidecar.http_url + path for path in paths]


def test_needs_nothing_but_the_sidecar(browser: Browser, seen: tuple[Sidecar, Engine]) -> None:
    """Plots are drawn, the browser has nothing to complain of, and all that it asks for comes from the sidecar."""
    sidecar, engine = seen
    alarm(engine)

    browser.open(sidecar.http_url)
    browser.wait(DRAWN)
    browser.wait(LIVE)

    assert browser.complaints == []
    assert {urlsplit(url)._replace(path="", query="").geturl() for url in browser.asked} == {sidecar.http_url}


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("dark", [False, True])
def test_fits_and_is_readable(browser: Browser, seen: tuple[Sidecar, Engine], width: int, dark: bool) -> None:
    """No page scrolls sideways, on a phone neither, and every text stands out from what is behind it."""
    sidecar, engine = seen
    browser.open(sidecar.http_url, width=width, dark=dark)

    for url in pages(sidecar, alarm(engine)):
        browser.go(url)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width, url
        assert browser.evaluate(PALE) == [], url


def test_new_alert_comes_by_itself(browser: Browser, seen: tuple[Sidecar, Engine]) -> None:
    """An alert appears on an open page, which keeps the focus, what was opened and where it was scrolled to."""
    sidecar, engine = seen
    browser.open(sidecar.http_url)
    browser.wait(DRAWN)
    assert "All quiet" in browser.text
    browser.wait(LIVE)
    browser.evaluate("(document.querySelector('#route-desk details').open = true, window.here = true)")
    browser.evaluate("document.querySelector('#route-desk summary').focus()")

    alarm(engine)
    browser.wait("document.querySelector('h1').innerText.includes('1 alert firing')")

    assert "desk: more affect than is warranted" in browser.text
    assert browser.evaluate("document.title").startswith("1 alert firing")
    assert browser.evaluate("[window.here, document.querySelector('#route-desk details').open]") == [True, True]
    assert browser.evaluate("document.activeElement.closest('section').id") == "route-desk"
    assert browser.complaints == []


def test_says_when_the_sidecar_is_gone(browser: Browser, watch: Callable[..., Any]) -> None:
    """A page whose sidecar no longer answers says that it is stale, and since when."""
    with watch() as (sidecar, engine):
        engine.turn(0.0)
        browser.open(sidecar.http_url)
        browser.wait(LIVE)

    browser.wait("document.getElementById('live').innerText.includes('stale since')")

    assert browser.evaluate("document.getElementById('live').getAttribute('role')") == "status"


def test_blind_monitor_does_not_look_calm(browser: Browser, seen: tuple[Sidecar, Engine]) -> None:
    """A monitor that sees too little says so before all else."""
    sidecar, _ = seen
    sidecar.faults.set("AffectBlind", failing=True, description="31 of the last 50 turns could not be judged.")

    browser.open(sidecar.http_url)

    assert browser.evaluate("document.querySelector('h1').innerText").endswith("Monitor blind")
    assert "31 of the last 50 turns could not be judged." in browser.text
    assert "All quiet" not in browser.text


def test_keyboard(browser: Browser, seen: tuple[Sidecar, Engine]) -> None:
    """By keyboard alone one skips to the content, comes to an alert's turn, sees where one is, and opens it."""
    sidecar, engine = seen
    turn_id = alarm(engine)
    browser.open(sidecar.http_url)

    browser.press("Tab")
    assert browser.evaluate("document.activeElement.innerText") == "Skip to the content"
    browser.press("Enter")
    focused = "document.activeElement.getAttribute('href')"
    for _ in range(10):
        browser.press("Tab")
        assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        if browser.evaluate(focused) == f"/turns/{turn_id}":
            break
    browser.press("Enter")
    browser.wait("document.querySelector('h1').innerText.includes('Over on affect')")

    assert browser.address.endswith(turn_id)


def test_without_scripts(browser: Browser, seen: tuple[Sidecar, Engine]) -> None:
    """Where scripts are off the words and numbers are all there, in tables."""
    sidecar, engine = seen
    alarm(engine)

    browser.open(sidecar.http_url, javaScriptEnabled=False)

    assert "1 alert firing" in browser.text
    assert browser.evaluate("document.querySelectorAll('#route-desk tbody tr').length") > 10


def test_tokens_of_a_turn(browser: Browser, seen: tuple[Sidecar, Engine]) -> None:
    """A turn that alerted shows its affect token by token, for eyes and for readers of screens."""
    sidecar, engine = seen
    url = f"{sidecar.http_url}/turns/{alarm(engine)}"
    browser.open(url)
    # The audit file is written a moment after the turn.
    eventually(lambda: browser.go(url) and browser.evaluate("document.querySelector('.heat') !== null"))
    browser.wait("document.querySelectorAll('.canvas .main-svg').length > 0")

    cells = browser.evaluate("[...document.querySelectorAll('.heat .away')].map((cell) => cell.textContent)")

    assert len(cells) > 10
    assert all(cell.startswith("position ") for cell in cells)
    assert browser.complaints == []


def test_token_is_a_password(browser: Browser, watch: Callable[..., Any], tmp_path: Any) -> None:
    """Where the sidecar has a token, a browser gives it as a password, and goes on giving it as the page refreshes."""
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    with watch(token_file=file) as (sidecar, _):
        assert httpx.get(sidecar.http_url, timeout=PATIENCE).status_code == 401
        assert browser.open(sidecar.http_url, httpCredentials={"username": "me", "password": TOKEN}) == 200
        browser.wait("document.getElementById('live').title !== ''")
        assert browser.evaluate(LIVE)
