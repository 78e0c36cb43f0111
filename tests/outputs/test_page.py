"""The status page: what it says of a moment, without a sidecar around it."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from audits import held_down, make_trace
from audits import make_turn as make_told
from builders import FAMILIES

from monitor.assess.overindex import Excess
from monitor.outputs.audit_rows import trace_json
from monitor.outputs.metrics import Metrics
from monitor.outputs.page import runbooks, wording
from monitor.outputs.page.assets import PLOTLY, address, asset
from monitor.outputs.page.render import Pages
from monitor.outputs.page.snapshot import Snapshot
from monitor.outputs.page.turns import told_of, turn_view
from monitor.policy.alert import Alert, AlertState, Worst
from monitor.policy.faults import MonitorFault
from monitor.policy.schema import PolicyFile
from monitor.probes.bank import Bank
from monitor.wire.v1 import ingest_pb2

MINUS, DASH, SPACE = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}"
NOW = 1_780_000_000.0
FIGURE = re.compile(r'id="plot-([^"]+)".*?<script type="application/json">(.*?)</script>', re.DOTALL)
POLICIES: dict[str, Any] = {
    "version": 1,
    "policies": [
        {"name": "desk", "stance": "neutral", "turn": {"false_alarm_rate": 0.01}, "rate": {"budget": 0.25}},
    ],
}


def make_turn(number: int, *, over: bool = False, **fields: Any) -> ingest_pb2.Assessment:
    """A turn of the desk."""
    scores = dict.fromkeys(FAMILIES, 0.5 * number)
    common = {
        "user_affect": 0.5 * number,
        "assistant_affect": 0.25 * number,
        "over_index": 2.0 if over else -1.0,
        "families": scores,
        "user_families": scores,
        "user_tokens": 10,
        "ended_unix_ns": int(NOW * 1e9) + number,
    }
    return make_told(number, alerts=("affect",) if over else (), **{**common, **fields})


def make_alert(**fields: Any) -> Alert:
    """A firing alert of the desk with two turns."""
    common: dict[str, Any] = {
        "policy": "desk",
        "target": "affect",
        "labels": {"alertname": "AffectOverIndex", "policy": "desk", "target": "affect", "severity": "critical"},
        "runbook_url": "",
        "state": AlertState.FIRING,
        "started": NOW - 60,
        "worst": Worst("bank-3", Excess(4.5, 1.25, 3.25, 0.0016), 0.2),
        "visibility": {"text_silent": 2},
        "coverage": 0.97,
        "over_turns": 2,
        "turn_ids": ("bank-1", "bank-3"),
    }
    return Alert(**{**common, **fields})


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of a sidecar whose routes have not moved."""
    made = Metrics()
    for test, value in (("overfitting", 0.0), ("affect", 0.1), ("warmth", -0.1), ("mirror", 0.2), ("users", -0.3)):
        made.set("affect_drift_log_evalue", value, "desk", test)
    for test in ("overfitting", "mirror", "users"):
        made.set("affect_drift_log_line", math.log(100), "desk", test)
    return made


@pytest.fixture
def shown(small_bank: Bank, metrics: Metrics) -> Any:
    """Renders the first page of a moment."""

    def render(policies: dict[str, Any] = POLICIES, **fields: Any) -> str:
        turns = fields.pop("turns", [make_turn(1), make_turn(2), make_turn(3, over=True)])
        common = {
            "started": NOW - 3600,
            "now": NOW,
            "validated": True,
            "open_streams": 1,
            "open_turns": 2,
            "finished_turns": 1234,
            "card": small_bank.card,
            "policies": PolicyFile.model_validate(policies),
            "alerts": [],
            "faults": [],
            "turns": {"desk": turns},
            "examples": {},
            "metrics": metrics,
        }
        return Pages().status(Snapshot(**{**common, **fields}))

    return render


def plain(text: str) -> str:
    """A text with the signs of a keyboard."""
    return text.translate({ord(MINUS): "-", ord(DASH): "-", ord(SPACE): " "})


def text_of(page: str) -> str:
    """What can be read on a page, with the signs of a keyboard."""
    without = re.sub(r"<script.*?</script>", " ", page, flags=re.DOTALL)
    return " ".join(plain(re.sub(r"<[^>]+>", " ", without)).split())


def figures_of(page: str) -> dict[str, Any]:
    """The plots of a page, by name."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    return {name: json.loads(figure, parse_constant=refuse) for name, figure in FIGURE.findall(page)}


class TestGlance:
    """What is said first."""

    def test_what_is_watched(self, shown: Any, small_bank: Bank) -> None:
        """Model, layers, bank, whether it is validated, since when, and how many turns."""
        text = text_of(shown())
        assert f"Watching tiny at layers 1, 2 by bank {small_bank.card.bank_id} , validated on this model" in text
        assert "since 2026-05-28 19:26:40 UTC" in text
        assert "turns 1,234" in text

    def test_not_validated(self, shown: Any) -> None:
        """A bank that is not validated on what is connected is said to be so."""
        assert "not validated on every model that is connected" in text_of(shown(validated=False))

    @pytest.mark.parametrize(
        ("fields", "line"),
        [
            ({}, "All quiet"),
            ({"open_streams": 0}, "No engine is connected"),
            ({"turns": [make_turn(1, marks=["short"])]}, "No turn has been judged yet"),
            ({"alerts": [make_alert()]}, "1 alert firing"),
            ({"alerts": [make_alert(state=AlertState.PENDING)]}, "All quiet"),
            ({"faults": [MonitorFault("AffectAuditNotWritten", "full", NOW)]}, "1 monitor fault"),
            (
                {"faults": [MonitorFault("AffectBlind", "31 of 50", NOW)], "alerts": [make_alert()]},
                "Monitor blind · 1 alert",
            ),
        ],
    )
    def test_headline(self, fields: dict[str, Any], line: str, shown: Any) -> None:
        """The state of everything in a line; a monitor at fault, or that judged nothing, is never called quiet."""
        assert f"<title>{line} · affect-monitor</title>" in shown(**fields)


class TestAlerts:
    """Cards of what alarms."""

    def test_explains_itself(self, shown: Any) -> None:
        """An alert says how far beyond what was warranted, with its p-value, visibility, coverage and since when."""
        text = text_of(shown(alerts=[make_alert()]))
        assert "desk: more affect than is warranted" in text
        assert "showed +4.5 where at most +1.2 was warranted: over-index +3.2." in text
        assert "(p = 0.0016)" in text
        assert "Words do not show it" in text
        assert "least coverage 97.0 %" in text
        assert "since 2026-05-28 20:25:40 UTC" in text

    def test_links(self, shown: Any) -> None:
        """It leads to its turns, those in memory with their numbers, and to the runbook here."""
        turn = make_turn(3, over=True)
        page = shown(alerts=[make_alert()], examples={turn.turn_id: turn})
        assert 'href="/turns/bank-3"' in page
        assert 'href="/runbooks/AffectOverIndex"' in page
        assert 'href="/turns/bank-1"' in shown(alerts=[make_alert()])

    def test_runbooks_elsewhere(self, shown: Any) -> None:
        """Where the policy file says where runbooks are, the page leads there."""
        page = shown({**POLICIES, "links": {"runbooks": "https://example.org/books"}}, alerts=[make_alert()])
        assert 'href="https://example.org/books/AffectOverIndex.md"' in page

    def test_silence(self, shown: Any) -> None:
        """An alert that nobody is told of is shown, with the reason."""
        assert "silenced: muted" in text_of(shown(alerts=[make_alert(silenced="muted")]))

    def test_too_cold(self, shown: Any) -> None:
        """In a crisis too little affect is a fault too, and is called that."""
        text = text_of(shown(alerts=[make_alert(worst=Worst("bank-3", Excess(-4.0, 1.0, -5.0, 0.002), 2.0))]))
        assert "desk: less affect than is warranted" in text
        assert "over-index -5.0" in text

    @pytest.mark.parametrize(
        ("test", "name", "line"),
        [
            ("overfitting", "AffectDrift", "1 alert firing"),
            ("mirror", "AffectMirrorDrift", "1 alert firing"),
            ("users", "AffectUsersShifted", "All quiet"),
        ],
    )
    def test_lasting_changes(self, test: str, name: str, line: str, shown: Any, metrics: Metrics) -> None:
        """A test of drift that alarms is a card; that users moved is told, and is no alert."""
        metrics.set("affect_drift_log_evalue", math.log(2500), "desk", test)
        metrics.set("affect_drift_alarm", 1, "desk", test)
        page = shown()
        assert f"/runbooks/{name}" in page
        assert "e-value 2,500" in text_of(page)
        assert f"<title>{line}" in page

    @pytest.mark.parametrize(("stance", "more"), [("neutral", "more"), ("crisis", "another")])
    def test_drift_says_which_way_and_which_family(self, stance: str, more: str, shown: Any, metrics: Metrics) -> None:
        """A lasting change names its leading family; in a crisis it may be one to too little."""
        metrics.set("affect_drift_log_evalue", math.log(40), "desk", "warmth")
        metrics.set("affect_drift_alarm", 1, "desk", "overfitting")
        desk = {**POLICIES["policies"][0], "stance": stance}
        text = text_of(shown({**POLICIES, "policies": [desk]}))
        assert f"desk: the assistant shows {more} affect than in the reference, given its users" in text
        assert "leading family warmth, e = 40" in text

    def test_names_the_family_that_leads(self, shown: Any) -> None:
        """An alert on affect says which family of the worst turn lay farthest out."""
        worst = Worst("bank-3", Excess(4.5, 1.25, 3.25, 0.0016), 0.2, "warmth", 4.0)
        assert "leading family warmth +4.0" in text_of(shown(alerts=[make_alert(worst=worst)]))

    def test_what_others_wrote_is_text(self, shown: Any) -> None:
        """Names and reasons are shown as they are, and never become markup."""
        page = shown(alerts=[make_alert(silenced="<script>alert(1)</script>")])
        assert "<script>alert" not in page
        assert "&lt;script&gt;alert(1)" in page


class TestRoutes:
    """What is shown of a route."""

    def test_figures(self, shown: Any) -> None:
        """A route has its affect profile, over-index, users against assistant and drift, all of them strict JSON."""
        assert set(figures_of(shown())) == {"desk-profile", "desk-over", "desk-scatter", "desk-drift"}

    def test_profile(self, shown: Any) -> None:
        """The profile is the mean of recent turns, users beside assistant; users that were not seen do not count."""
        figure = figures_of(shown(turns=[make_turn(1), make_turn(3), make_turn(8, user_tokens=0)]))["desk-profile"]
        users, assistant = figure["data"]
        assert (users["name"], users["y"], users["x"]) == ("users", list(FAMILIES), [1.0, 1.0])
        assert (assistant["name"], assistant["x"]) == ("assistant", [2.0, 2.0])

    def test_turns_over_stand_out(self, shown: Any) -> None:
        """Turns over are marks of their own shape, and every mark leads to its turn."""
        within, over = figures_of(shown())["desk-over"]["data"]
        assert (within["customdata"], over["customdata"]) == (["/turns/bank-1", "/turns/bank-2"], ["/turns/bank-3"])
        assert over["y"] == [2.0]
        assert within["marker"]["symbol"] != over["marker"]["symbol"]

    def test_unjudged_turns_are_no_dots(self, shown: Any) -> None:
        """A turn that no rule may judge is in the share that was not seen, and in no plot."""
        unseen = make_turn(4, marks=["nonfinite"], over_index=math.nan, assistant_affect=math.nan, coverage=0.5)
        page = shown(turns=[make_turn(1), unseen])
        assert [len(part["x"]) for part in figures_of(page)["desk-over"]["data"]] == [1]
        assert "not seen well, of 2 50.0 %" in text_of(page)
        assert "Not judged: hidden states that are not finite" in text_of(page)

    @pytest.mark.parametrize(("turns", "said"), [(3, "above the budget of 25.0 %"), (5, "within the budget of 25.0 %")])
    def test_budget(self, turns: int, said: str, shown: Any) -> None:
        """The share over stands beside its budget."""
        page = shown(turns=[make_turn(number, over=number == 1) for number in range(1, turns + 1)])
        assert said in text_of(page)

    def test_mirror_slope(self, shown: Any, metrics: Metrics) -> None:
        """The slope is that of the turns shown, or with interval and reference where these are known."""
        assert "mirror slope 0.50" in text_of(shown())
        for bound, value in (("estimate", 0.4), ("low", 0.25), ("high", 0.55), ("reference", 0.3)):
            metrics.set("affect_mirror_slope", value, "desk", bound)
        assert "mirror slope 0.40 95 %: 0.25 to 0.55; reference 0.30" in text_of(shown())

    @pytest.mark.parametrize(
        ("alarms", "said"),
        [
            ((), "Neither the users nor the assistant show a lasting change"),
            (("users",), "The users have moved; the assistant, given its users, shows no lasting change."),
            (("overfitting",), "The assistant has moved; its users show no lasting change."),
            (("users", "mirror"), "the assistant has moved beyond what they explain"),
        ],
    )
    def test_who_moved(self, alarms: tuple[str, ...], said: str, shown: Any, metrics: Metrics) -> None:
        """Drift says whose affect has changed."""
        for test in alarms:
            metrics.set("affect_drift_alarm", 1, "desk", test)
        assert said in text_of(shown())

    def test_tests_with_a_line_come_first(self, shown: Any) -> None:
        """Tests that alarm are drawn before those for looking at, each by the power of ten of its e-value."""
        bars, lines = figures_of(shown())["desk-drift"]["data"]
        assert bars["y"] == ["A given U", "mirror slope", "users (U)", "affect", "warmth"]
        assert bars["x"][1] == pytest.approx(0.2 / math.log(10))
        assert lines["x"] == pytest.approx([2, 2, 2])

    def test_before_the_first_turn(self, shown: Any) -> None:
        """A route without turns says so and has no plot."""
        page = shown(turns=[])
        assert "No turn has ended on this route yet." in text_of(page)
        assert figures_of(page) == {}


class TestTurn:
    """The page of one turn."""

    def page(self, trace: dict[str, Any] | None = None, **fields: Any) -> str:
        """It."""
        view = turn_view(told_of(make_turn(1, **fields), "bank", "neutral"), trace)
        return Pages().turn(view, traced="No audit file is kept.")

    def test_numbers_in_words(self) -> None:
        """Every number stands with what it means."""
        text = text_of(self.page(over=True))
        assert "Over on affect" in text
        assert "over-index +2.00 (A - warranted) / scale" in text
        assert "p 0.0040 no more than this share" in text
        assert "twin 0.00 over-index as the words alone show it: they do not" in text

    def test_account_sums_up(self) -> None:
        """The account of tokens has those scored, not finite, and missing by reason, and sums to all."""
        text = text_of(self.page(total_tokens=100, scored_tokens=70, gaps={"dropped": 20, "untold": 7}))
        assert "scored 70 not finite 3 missing: dropped by the capture, which was behind 20" in text
        assert "all that the server processed 100" in text

    def test_account_of_a_cached_prefix(self) -> None:
        """Tokens that were scored in an earlier turn stand in the account by themselves."""
        text = text_of(self.page(total_tokens=100, scored_tokens=100, filled_tokens=60))
        assert "scored 40 scored in an earlier turn with the same beginning 60 not finite 0" in text

    def test_what_was_held_down(self) -> None:
        """What a cap inside the engine did to the turn is told in words."""
        text = text_of(self.page(interventions=[held_down(3)]))
        assert "A cap on warmth at 0.99 of the reference was on inside the engine, at 2 layers" in text
        assert "it held down 3 of 40 generated tokens, by +1.50 at most and +0.50 on average" in text

    def test_not_judged(self) -> None:
        """A turn without numbers says why."""
        page = self.page(marks=["nonfinite", "short"], over_index=math.nan, p_value=math.nan)
        assert "Not judged: hidden states that are not finite; reply too short" in text_of(page)
        assert "over-index - " in text_of(page)

    @pytest.mark.parametrize("text", [False, True])
    def test_tokens(self, text: bool) -> None:
        """Tokens have position, role and affect, and their ids only where the operator keeps text."""
        trace = json.loads(trace_json(make_trace(text=text), text=text))
        page = plain(self.page(trace))
        assert 'title="position 100, user, affect -1.0"' in page
        assert 'title="position 105, assistant, affect -"' in page
        assert ("31337" in page) is text
        assert set(figures_of(page)) == {"tokens"}

    def test_without_tokens(self) -> None:
        """Where no tokens are kept the page says why."""
        assert "No audit file is kept." in self.page()


class TestRunbooks:
    """Runbooks as pages."""

    @pytest.fixture(autouse=True)
    def book(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """One runbook."""
        (tmp_path / "AffectBlind.md").write_text("# Blind\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n<b>raw</b>\n")
        monkeypatch.setattr(runbooks, "RUNBOOKS", tmp_path)

    def test_is_html(self) -> None:
        """Markdown becomes HTML with tables; what was HTML in it becomes text."""
        html = runbooks.runbook("AffectBlind") or ""
        assert "<h1>Blind</h1>" in html
        assert "<td>2</td>" in html
        assert "&lt;b&gt;raw" in html

    @pytest.mark.parametrize("name", ["AffectNone", "../AffectBlind", "/etc/passwd", ""])
    def test_others(self, name: str) -> None:
        """There is nothing else in that folder, and nothing beyond it."""
        assert runbooks.names() == ["AffectBlind"]
        assert runbooks.runbook(name) is None


class TestAssets:
    """Files that pages load."""

    @pytest.mark.parametrize("name", ["page.css", "page.js", "icon.svg", PLOTLY])
    def test_are_in_packages(self, name: str) -> None:
        """Each is a file, and its address changes with it."""
        file = asset(name)
        assert file is not None
        assert file.is_file()
        assert re.fullmatch(rf"/static/{re.escape(name)}\?v=[0-9a-f]{{12}}", address(name))

    def test_others(self) -> None:
        """There is no other."""
        assert asset("../render.py") is None


class TestWording:
    """Numbers in words."""

    @pytest.mark.parametrize(
        ("told", "expected"),
        [
            (wording.signed(-0.04), "0.0"),
            (wording.signed(1.25), "+1.2"),
            (wording.signed(-2.0), "-2.0"),
            (wording.signed(math.nan), "-"),
            (wording.p_value(0.0016), "0.0016"),
            (wording.p_value(0.00012), "0.00012"),
            (wording.percent(0.0016), "0.16 %"),
            (wording.percent(1.0), "100 %"),
            (wording.evalue(math.log(2500)), "2,500"),
            (wording.evalue(60.0), "1e26"),
            (wording.evalue(-1.0), "0.37"),
            (wording.milliseconds(0.0025), "2.5 ms"),
            (wording.milliseconds(math.inf), "over 5 s"),
            (wording.of_things(1, "alert"), "1 alert"),
        ],
    )
    def test_numbers(self, told: str, expected: str) -> None:
        """Each has the digits it deserves, and what is none is a dash."""
        assert plain(told) == expected
