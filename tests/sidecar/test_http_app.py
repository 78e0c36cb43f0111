"""The pages as they are served: who gets which, what they forbid the browser, and what they leave alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from engine import PATIENCE, make_turn, whole

from monitor.sidecar import http_app

if TYPE_CHECKING:
    from pathlib import Path

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


def get(sidecar: Sidecar, path: str, **headers: str) -> httpx.Response:
    """A page, as a browser asks for it."""
    return httpx.get(sidecar.http_url + path, headers=HTML | headers, timeout=PATIENCE)


@pytest.fixture
def seen(serve: Any, connect: Any, small_bank: Bank, tmp_path: Path) -> tuple[Sidecar, list[str]]:
    """A sidecar that saw three turns, and their ids: calm, of the helpline, and one that alerts."""
    sidecar = serve(audit_file=tmp_path / "audit.db", audit_tokens=8, audit_sample_rate=0.0)
    stream = connect().stream(small_bank)
    turns = (
        make_turn(small_bank, "calm"),
        make_turn(small_bank, "help", labels={"route": "helpline"}),
        make_turn(small_bank, "over", assistant=9.0),
    )
    return sidecar, [stream.send(whole(turn)).assessments[0].turn_id for turn in turns]


class TestLanding:
    """The first page."""

    def test_browsers_get_html(self, seen: tuple[Sidecar, list[str]]) -> None:
        """Who asks for HTML gets the status page, which no cache may keep or mix up with the other."""
        answer = get(seen[0], "/")

        assert answer.headers["content-type"].startswith("text/html")
        assert (answer.headers["vary"], answer.headers["cache-control"]) == ("accept", "no-store")
        assert "1 alert firing" in answer.text

    @pytest.mark.parametrize("accept", ["application/json", "*/*", ""])
    def test_programs_get_json(self, accept: str, seen: tuple[Sidecar, list[str]]) -> None:
        """All others get JSON, the same as at /api/status."""
        answer = get(seen[0], "/", accept=accept)

        assert answer.json() == get(seen[0], "/api/status").json()
        assert answer.json()["status"]["finished_turns"] == 3

    def test_many_who_look_cost_no_more_than_one(
        self, serve: Any, connect: Any, small_bank: Bank, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A page that was drawn a moment ago is shown again, and a new one when the moment is over."""
        monkeypatch.setattr(http_app, "_FRESH_SECONDS", math.inf)
        sidecar = serve()
        first = get(sidecar, "/").text
        connect().stream(small_bank).send(whole(make_turn(small_bank, "over", assistant=9.0)))

        assert get(sidecar, "/").text == first
        monkeypatch.setattr(http_app, "_FRESH_SECONDS", 0.0)
        assert "1 alert firing" in get(sidecar, "/").text


class TestHeaders:
    """What the browser is told to forbid."""

    @pytest.mark.parametrize("path", ["/", "/turns", "/turns/none", "/runbooks", "/static/page.js"])
    def test_are_strict(self, path: str, seen: tuple[Sidecar, list[str]]) -> None:
        """Nothing comes from elsewhere, nothing inline runs, no frame may hold the page, no address is passed on."""
        headers = get(seen[0], path).headers

        policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")

    def test_files_are_kept_for_good(self, seen: tuple[Sidecar, list[str]]) -> None:
        """Files whose address changes with them need not be asked for twice; others do not exist."""
        assert "immutable" in get(seen[0], "/static/plotly.min.js").headers["cache-control"]
        assert get(seen[0], "/static/none.js").status_code == 404
        assert get(seen[0], "/static/..%2frender.py").status_code == 404


class TestTurns:
    """Lists of turns, for people and for programs."""

    @pytest.mark.parametrize(
        ("query", "expected"),
        [
            ("", ["calm", "help", "over"]),
            ("?limit=2", ["help", "over"]),
            ("?policy=desk", ["calm", "over"]),
            ("?policy=desk&limit=1", ["over"]),
            ("?over=1", ["over"]),
            ("?over=0", ["calm", "help", "over"]),
            ("?policy=helpline&over=1", []),
            ("?policy=unheard-of", []),
            ("?policy=&limit=", ["calm", "help", "over"]),
        ],
    )
    def test_filters(self, query: str, expected: list[str], seen: tuple[Sidecar, list[str]]) -> None:
        """A policy, only turns over, and the latest so many can be asked for."""
        sidecar, turn_ids = seen
        ids = dict(zip(["calm", "help", "over"], turn_ids, strict=True))

        assert [turn["requestId"] for turn in get(sidecar, f"/api/turns{query}").json()] == expected
        page = get(sidecar, f"/turns{query}").text
        assert [name for name, turn_id in ids.items() if f"/turns/{turn_id}" in page] == expected

    @pytest.mark.parametrize("limit", ["0", "-1", "1001", "many", "9" * 500, "²"])
    @pytest.mark.parametrize("path", ["/turns", "/api/turns"])
    def test_bad_limit(self, path: str, limit: str, serve: Any) -> None:
        """A limit that is none is refused by name."""
        answer = get(serve(), f"{path}?limit={limit}")

        assert answer.status_code == 400
        assert "limit" in answer.text

    def test_turn_in_memory(self, seen: tuple[Sidecar, list[str]]) -> None:
        """A calm turn has its page, which says why its tokens are not there."""
        sidecar, (calm, *_) = seen
        answer = get(sidecar, f"/turns/{calm}")

        assert answer.status_code == 200
        assert "Within bounds" in answer.text
        assert "It is not in the audit file" in answer.text

    def test_turn_in_the_audit_file(self, seen: tuple[Sidecar, list[str]], eventually: Any) -> None:
        """A turn that alerted has its last tokens as soon as they are written, and is found when it left memory."""
        sidecar, (*_, over) = seen
        eventually(lambda: 'class="heat"' in get(sidecar, f"/turns/{over}").text)

        sidecar.pipeline._finished.clear()
        answer = get(sidecar, f"/turns/{over}")

        assert answer.status_code == 200
        assert answer.text.count('<span class="away">position') == 8

    def test_unknown_turn(self, seen: tuple[Sidecar, list[str]]) -> None:
        """A turn that is nowhere is not found, and its id is shown as text."""
        answer = get(seen[0], "/turns/%3Cb%3Enone")

        assert answer.status_code == 404
        assert "<b>" not in answer.text


class TestRunbooks:
    """Runbooks."""

    @pytest.mark.parametrize("path", ["/runbooks/AffectBlind", "/runbooks/AffectBlind.md"])
    def test_are_served(self, path: str, serve: Any) -> None:
        """Each has its page, with or without the ending that links in runbooks have."""
        answer = get(serve(), path)

        assert answer.status_code == 200
        assert "AffectBlind" in answer.text

    def test_unknown(self, serve: Any) -> None:
        """Others are not found."""
        assert get(serve(), "/runbooks/AffectNone").status_code == 404
