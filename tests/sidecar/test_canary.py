"""Canary prompts: played through an inference server, compared with what was recorded, kept apart from users' turns."""

from __future__ import annotations

import json
import threading
import zlib
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import httpx
import pytest
import structlog
from builders import make_bank
from commands import runner
from engine import PATIENCE, Turn, make_turn
from prometheus_client import CollectorRegistry, generate_latest
from sender import Sender

from monitor.errors import SetupError
from monitor.settings import SidecarSettings
from monitor.sidecar import canary
from monitor.sidecar.canary_prompts import SHIPPED, read_prompts
from monitor.sidecar.canary_record import least_p_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar
    from monitor.wire.v1 import ingest_pb2

LINES = SHIPPED.read_text().splitlines()[:13]
"""As few prompts as can show a change when one is missing."""
PROMPTS = len(LINES)
SHIFT = 2.0
"""How far a changed model's affect lies off, in reference standard deviations."""


class Inference:
    """An OpenAI-compatible server whose replies show as much affect as a test asks for.

    Attributes:
        shift: Affect beside that of the prompt, in reference standard deviations.
        noise: Affect that differs from reply to reply.
        read: Affect on the prompts, beside their own.
        refuses: Prompts that are answered with an error.
        unseen: Prompts of which half the reply never reaches the sidecar.
        silent: Whether turns are kept from the sidecar.
        bodies: What was asked.
        open: Cleared, replies wait.
    """

    def __init__(self, bank: Bank, address: str, **options: Any) -> None:
        self.shift = self.noise = self.read = 0.0
        self.refuses: set[str] = set()
        self.unseen: set[str] = set()
        self.bodies: list[dict[str, Any]] = []
        self.open = threading.Event()
        self.open.set()
        self._bank = bank
        self.sender = Sender(address, bank, **options)
        inference = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                status = inference.answer(self.path, body)
                with suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-length", "2")
                    self.end_headers()
                    self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, path: str, body: dict[str, Any]) -> int:
        """The status of an answer; its turn is sent on the way."""
        self.bodies.append(body)
        assert self.open.wait(PATIENCE)
        labels, name = body["metadata"], body["metadata"]["affect_canary_id"]
        if path != "/v1/chat/completions" or name in self.refuses:
            return 400
        seed = zlib.crc32(name.encode())
        affect = seed % 7 / 7 - 1 + self.shift + self.noise * (len(self.bodies) * 0.7548 % 1 - 0.5)
        turn = make_turn(self._bank, uuid4().hex, self.read, affect, seed=seed, labels=labels)
        if name in self.unseen:
            self.sender.start(turn)
            self.sender.rows((turn, 0, turn.prompt_length + 1))
            self.sender.end(turn)
        else:
            self.sender.send([turn], step=64)
        return 200

    def close(self) -> None:
        """Hangs up and stops."""
        self.open.set()
        self.sender.client.close()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _prompt_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "_FIRST_WAIT", 0.01)


@pytest.fixture
def inference(serve: Any, address: str, small_bank: Bank) -> Iterator[Inference]:  # noqa: ARG001 - ends before sidecars
    """An inference server at the address."""
    made = Inference(small_bank, address)
    yield made
    made.close()


@pytest.fixture
def judged(inference: Inference, eventually: Any) -> Callable[[Turn], ingest_pb2.Assessment]:
    """Sends a user's turn and waits for what the sidecar says of it."""

    def ask(turn: Turn) -> ingest_pb2.Assessment:
        inference.sender.send([turn])
        (told,) = eventually(lambda: inference.sender.told.get(turn.request_id))
        assessment: ingest_pb2.Assessment = told
        return assessment

    return ask


@pytest.fixture
def record(tmp_path: Path) -> Path:
    """Where the recorded run is kept."""
    return tmp_path / "canaries.json"


@pytest.fixture
def watched(serve: Any, inference: Inference, record: Path, tmp_path: Path) -> Callable[..., Sidecar]:
    """Starts sidecars that play canaries."""
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(LINES))

    def start(**flags: Any) -> Sidecar:
        common = {"canary_url": inference.url, "canary_file": file, "canary_record": record}
        sidecar: Sidecar = serve(**common | flags)
        return sidecar

    return start


@pytest.fixture
def outcome(eventually: Any) -> Callable[..., dict[str, Any]]:
    """The outcome of a run: the first, or that which a request begins."""

    def wait(sidecar: Sidecar, number: int = 1) -> dict[str, Any]:
        def over() -> dict[str, Any] | None:
            state = stands(sidecar)
            return state["last"] if state["last"] and state["last"]["run"] >= number else None

        found: dict[str, Any] = eventually(over)
        eventually(lambda: not stands(sidecar)["running"])
        return found

    return wait


@pytest.fixture
def again(outcome: Any) -> Callable[..., dict[str, Any]]:
    """Begins a run and waits for its outcome."""

    def play(sidecar: Sidecar) -> dict[str, Any]:
        began = begin(sidecar)
        assert began.status_code == 202
        found: dict[str, Any] = outcome(sidecar, began.json()["run"])
        return found

    return play


def begin(sidecar: Sidecar) -> httpx.Response:
    """Asks for a run."""
    return httpx.post(sidecar.http_url + "/-/canary", timeout=PATIENCE)


def stands(sidecar: Sidecar) -> dict[str, Any]:
    """How canaries stand."""
    told: dict[str, Any] = httpx.get(sidecar.http_url + "/-/canary", timeout=PATIENCE).json()
    return told


def samples(sidecar: Sidecar) -> dict[str, float]:
    """All samples on the page, by name and labels."""
    registry = CollectorRegistry()
    registry.register(sidecar.metrics)
    lines = generate_latest(registry).decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def counts(sidecar: Sidecar) -> dict[str, float]:
    """Prompts of the last run by result, as the page has them."""
    return {
        result: samples(sidecar)[f'affect_canary_turns{{result="{result}"}}']
        for result in ("same", "changed", "missing")
    }


class TestRuns:
    """What runs find."""

    def test_first_records(self, watched: Any, outcome: Any, record: Path, inference: Inference) -> None:
        """The first run begins by itself once an engine streams, plays twice, and keeps scores and no text."""
        sidecar = watched()

        found = outcome(sidecar)

        assert (found["result"], found["same"], found["missing"]) == ("recorded", PROMPTS, 0)
        assert len(inference.bodies) == 2 * PROMPTS
        kept = json.loads(record.read_text())
        assert kept["bank"] == sidecar.pipeline.bank.card.bank_id
        assert set(kept["turns"]["parcel-late"]) == {"over_index", "user_affect", "assistant_affect", "tokens"}
        assert len(kept["turns"]) == PROMPTS
        assert not any(message["content"] in record.read_text() for message in inference.bodies[0]["messages"])
        assert list(record.parent.glob("*.part")) == []

    def test_asks_for_the_likeliest_tokens(self, watched: Any, outcome: Any, inference: Inference) -> None:
        """Every prompt is asked without chance, for the bank's model, and past prefix caches."""
        outcome(watched())

        assert {body["temperature"] for body in inference.bodies} == {0}
        assert {body["model"] for body in inference.bodies} == {"tiny"}
        assert len({body["cache_salt"] for body in inference.bodies}) == 2 * PROMPTS

    def test_unchanged_model(self, watched: Any, outcome: Any, again: Any) -> None:
        """A model that answers as recorded is the same, with nothing to show for the contrary."""
        sidecar = watched()
        outcome(sidecar)

        found = again(sidecar)

        assert (found["result"], found["p_value"], found["shift"]) == ("same", 1.0, 0.0)
        assert counts(sidecar) == {"same": PROMPTS, "changed": 0, "missing": 0}
        assert samples(sidecar)["affect_canary_p_value"] == 1.0
        assert samples(sidecar)["affect_canary_last_run_timestamp_seconds"] > 0

    def test_noise_has_no_direction(self, watched: Any, outcome: Any, again: Any, inference: Inference) -> None:
        """Replies that differ without a direction are no change, however many of them differ."""
        sidecar = watched()
        outcome(sidecar)
        inference.noise = 1.0

        found = again(sidecar)

        assert found["result"] == "same"
        assert found["changed"] > PROMPTS / 2

    def test_spread_of_the_recording_is_no_change(
        self, watched: Any, outcome: Any, again: Any, inference: Inference, record: Path
    ) -> None:
        """Prompts that move no further than they did while they were recorded count as the same."""
        inference.noise = 0.5
        sidecar = watched()
        outcome(sidecar)
        tolerance = json.loads(record.read_text())["tolerance"]["over_index"]
        inference.noise = 0.0

        found = again(sidecar)

        assert tolerance > 0.1
        assert found["changed"] == sum(abs(now - then) > tolerance for then, now in found["turns"].values()) < PROMPTS

    @pytest.mark.parametrize("shift", [SHIFT, -SHIFT])
    def test_shifted_model(self, shift: float, watched: Any, outcome: Any, again: Any, inference: Inference) -> None:
        """A model whose replies show more affect, or less, has changed, and page, log and answer say so."""
        sidecar = watched()
        outcome(sidecar)
        inference.shift = shift

        with structlog.testing.capture_logs() as log:
            found = again(sidecar)

        assert found["result"] == "changed"
        assert found["p_value"] == 2 ** (2 - PROMPTS)
        assert found["shift"] * shift > 0
        assert samples(sidecar)["affect_canary_p_value"] == found["p_value"]
        assert samples(sidecar)["affect_canary_shift"] == found["shift"]
        assert counts(sidecar) == {"same": 0, "changed": PROMPTS, "missing": 0}
        (line,) = (line for line in log if line["event"] == "canary")
        assert (line["result"], line["log_level"], line["by"]) == ("changed", "warning", "127.0.0.1")

    def test_prompts_read_otherwise(self, watched: Any, outcome: Any, again: Any, inference: Inference) -> None:
        """A model that reads the same prompts with other affect has changed, whatever it answers."""
        sidecar = watched()
        outcome(sidecar)
        inference.read, inference.noise = 0.05, 1.0

        found = again(sidecar)

        assert found["result"] == "changed"
        assert found["user_shift"] == pytest.approx(0.05, abs=0.01)

    def test_change_undone(self, watched: Any, outcome: Any, again: Any, inference: Inference) -> None:
        """A change that is undone is one no longer: what was recorded first is what later runs are compared with."""
        sidecar = watched()
        outcome(sidecar)
        inference.shift = SHIFT
        again(sidecar)
        inference.shift = 0.0

        assert again(sidecar)["result"] == "same"

    def test_record_outlasts_the_sidecar(
        self, watched: Any, outcome: Any, inference: Inference, eventually: Any
    ) -> None:
        """A sidecar that starts anew compares with what the last one recorded, at once."""
        first = watched()
        outcome(first)
        first.stop()
        inference.shift = SHIFT

        second = watched()
        eventually(lambda: second.pipeline.status()["open_streams"])

        assert outcome(second)["result"] == "changed"


class TestMissing:
    """Prompts without a turn that can be compared."""

    def test_are_counted_and_the_others_compared(
        self, watched: Any, outcome: Any, again: Any, inference: Inference
    ) -> None:
        """A prompt that the server refuses is missing; the others still tell."""
        sidecar = watched()
        outcome(sidecar)
        inference.shift = SHIFT
        inference.refuses = {"refund-angry"}

        found = again(sidecar)

        assert (found["result"], found["missing"], found["changed"]) == ("changed", 1, PROMPTS - 1)
        assert found["error"] == "1 of 13 prompts missing; refund-angry: the server answers 400"
        assert counts(sidecar)["missing"] == 1

    def test_record_nothing(
        self, watched: Any, outcome: Any, inference: Inference, record: Path, eventually: Any
    ) -> None:
        """A first run with prompts missing records nothing and says why; it is tried again until one is whole."""
        inference.unseen = {"lost-job"}
        sidecar = watched()

        found = outcome(sidecar)

        assert found["result"] == "failed"
        assert "lost-job: its turn is low_coverage" in found["error"]
        assert not record.exists()
        inference.unseen = set()
        eventually(record.exists)
        assert outcome(sidecar, found["run"] + 1)["result"] == "recorded"

    def test_those_outside_the_sample_are_asked_again(self, watched: Any, outcome: Any, inference: Inference) -> None:
        """Where engines send a part of the requests, prompts are asked until one of their requests is in it."""
        found = outcome(watched(sampling_rate=0.4))

        assert (found["result"], found["missing"]) == ("recorded", 0)
        assert len(inference.bodies) > 2 * PROMPTS


class TestFailure:
    """An inference server that does not answer."""

    def test_costs_nothing_else(self, watched: Any, outcome: Any, judged: Any, small_bank: Bank) -> None:
        """Where nobody listens, log and page say so, and users' turns are judged as ever."""
        with structlog.testing.capture_logs() as log:
            sidecar = watched(canary_url="http://127.0.0.1:9/v1")
            found = outcome(sidecar)

        assert found["result"] == "failed"
        assert found["error"].startswith("canary_url: http://127.0.0.1:9/v1/chat/completions cannot be reached")
        assert counts(sidecar) == {"same": 0, "changed": 0, "missing": PROMPTS}
        assert "affect_canary_p_value" not in samples(sidecar)
        line = next(line for line in log if line["event"] == "canary")
        assert (line["result"], line["log_level"]) == ("failed", "warning")
        assert judged(make_turn(small_bank, "over", assistant=9.0)).alerts == ["affect"]

    def test_leaves_what_was_found(self, watched: Any, outcome: Any, again: Any, inference: Inference) -> None:
        """A run that fails does not take back what the one before it found."""
        sidecar = watched()
        outcome(sidecar)
        inference.shift = SHIFT
        before = again(sidecar)["p_value"]
        inference.refuses = {json.loads(line)["id"] for line in LINES}

        found = again(sidecar)

        assert (found["result"], found["missing"]) == ("failed", PROMPTS)
        assert "the server answers 400" in found["error"]
        assert samples(sidecar)["affect_canary_p_value"] == before

    def test_turns_that_do_not_come(
        self, watched: Any, outcome: Any, inference: Inference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server that answers, but whose turns do not say that they are canaries, is told of after one prompt."""
        monkeypatch.setattr("monitor.sidecar.canary_play._TURN_SECONDS", 0.2)
        monkeypatch.setattr(canary, "_FIRST_WAIT", 0.5)
        monkeypatch.setattr(inference.sender, "send", lambda *_, **__: None)

        found = outcome(watched())

        assert found["result"] == "failed"
        assert "have it hand on a request's metadata as labels" in found["error"]

    def test_that_nobody_thought_of_is_told(self, watched: Any, outcome: Any) -> None:
        """A run that breaks off on an error of another kind, as of a name no host can have, has failed."""
        found = outcome(watched(canary_url="http://a..b"))

        assert (found["result"], found["missing"]) == ("failed", PROMPTS)
        assert "its log says where" in found["error"]

    def test_without_an_engine(self, serve: Any, record: Path, outcome: Any) -> None:
        """Without an engine a run that is asked for fails at once, and none begins by itself."""
        sidecar = serve(canary_url="http://127.0.0.1:9", canary_record=record)

        run = begin(sidecar).json()["run"]

        assert run == 1
        assert "no engine is connected" in outcome(sidecar)["error"]

    def test_stopping_does_not_wait_for_a_reply(self, watched: Any, inference: Inference, eventually: Any) -> None:
        """A sidecar stops while a prompt waits for its reply."""
        inference.open.clear()
        sidecar = watched()
        eventually(lambda: inference.bodies)

        sidecar.stop()

        assert len(inference.bodies) == 1


class TestApart:
    """Canaries beside users' turns."""

    def test_are_scored_and_never_judged(
        self, watched: Any, outcome: Any, inference: Inference, tmp_path: Path
    ) -> None:
        """Canaries far beyond what is warranted raise no alert, and are in no statistic of users' turns."""
        inference.shift = 9.0
        baseline = tmp_path / "baseline.jsonl"
        sidecar = watched(baseline_file=baseline)
        outcome(sidecar)

        turns = sidecar.pipeline.recent()

        assert len(turns) == 2 * PROMPTS
        assert {tuple(turn.marks) for turn in turns} == {("canary",)}
        assert all(turn.over_index > 3 and not turn.alerts for turn in turns)
        found = samples(sidecar)
        assert found['affect_turns_unjudged_total{policy="desk",reason="canary"}'] == 2 * PROMPTS
        assert found['affect_turns_over_total{policy="desk",target="affect"}'] == 0
        assert not any(name.startswith(("affect_turn_", "affect_alerts_active")) for name in found)
        assert not baseline.exists()

    def test_token_is_nowhere_to_be_seen(
        self, watched: Any, outcome: Any, inference: Inference, tmp_path: Path
    ) -> None:
        """What proves a canary is kept out of turns, log and audit."""
        audit = tmp_path / "audit.db"
        with structlog.testing.capture_logs() as log:
            sidecar = watched(audit_file=audit, audit_sample_rate=1.0)
            outcome(sidecar)
        sidecar.stop()

        tokens = {body["metadata"]["affect_canary"] for body in inference.bodies}

        kept = b"".join(file.read_bytes() for file in audit.parent.glob("audit.db*"))
        turns = sidecar.pipeline.recent()
        assert {turn.labels["affect_canary_id"] for turn in turns} == {json.loads(line)["id"] for line in LINES}
        assert not any("affect_canary" in turn.labels for turn in turns)
        for token in tokens:
            assert token not in str(log)
            assert token.encode() not in kept
        assert b'"action":"canary"' in kept
        assert b"affect_canary_id" in kept

    def test_user_cannot_pass_for_one(
        self, watched: Any, outcome: Any, inference: Inference, judged: Any, small_bank: Bank
    ) -> None:
        """A user's turn with a canary's labels, even those of a run that is over, is judged like any other."""
        sidecar = watched()
        outcome(sidecar)
        seen = inference.bodies[-1]["metadata"]

        for name, token in (("made-up", "0" * 32), ("stale", seen["affect_canary"]), ("empty", "")):
            labels = {**seen, "affect_canary": token}
            told = judged(make_turn(small_bank, name, assistant=9.0, labels=labels))
            assert (told.marks, told.alerts) == ([], ["affect"])

    def test_user_cannot_pass_for_one_during_a_run(
        self, watched: Any, inference: Inference, eventually: Any, judged: Any, small_bank: Bank
    ) -> None:
        """While a run is under way the same holds."""
        inference.open.clear()
        watched()
        eventually(lambda: inference.bodies)

        labels = {**inference.bodies[0]["metadata"], "affect_canary": "0" * 32}
        told = judged(make_turn(small_bank, "forged", assistant=9.0, labels=labels))

        assert (told.marks, told.alerts) == ([], ["affect"])

    def test_follow_their_route(self, watched: Any, outcome: Any, tmp_path: Path) -> None:
        """Labels of a prompt lead it to a policy, whose stance it is assessed by."""
        prompts = [json.loads(line) | {"labels": {"route": "helpline"}} for line in LINES]
        file = tmp_path / "own.jsonl"
        file.write_text("\n".join(map(json.dumps, prompts)))
        sidecar = watched(canary_file=file)

        outcome(sidecar)

        assert {turn.policy for turn in sidecar.pipeline.recent()} == {"helpline"}


class TestChanges:
    """What is recorded anew, and what may change meanwhile."""

    def test_another_bank(self, watched: Any, outcome: Any, again: Any, record: Path, tmp_path: Path) -> None:
        """Scores of another bank cannot be compared: the run is recorded anew, and the log says so."""
        folder = tmp_path / "bank"
        make_bank().save(folder)
        sidecar = watched(bank=str(folder))
        outcome(sidecar)
        make_bank(seed=1).save(folder)
        assert httpx.post(sidecar.http_url + "/-/reload", timeout=PATIENCE).is_success

        with structlog.testing.capture_logs() as log:
            found = again(sidecar)

        assert found["result"] == "recorded"
        assert json.loads(record.read_text())["bank"] == sidecar.pipeline.bank.card.bank_id
        assert any(line["event"] == "canary_recorded_anew" for line in log)

    def test_other_prompts(self, watched: Any, outcome: Any, record: Path, tmp_path: Path) -> None:
        """Other prompts are recorded anew."""
        first = watched()
        outcome(first)
        first.stop()
        file = tmp_path / "own.jsonl"
        file.write_text("\n".join(LINES[1:]))

        found = outcome(watched(canary_file=file))

        assert (found["result"], found["same"]) == ("recorded", PROMPTS - 1)
        assert len(json.loads(record.read_text())["turns"]) == PROMPTS - 1

    def test_another_stance(self, watched: Any, outcome: Any, again: Any, policy_file: Path) -> None:
        """Prompts that a new policy assesses by another stance are recorded anew; any other reload changes nothing."""
        sidecar = watched()
        outcome(sidecar)

        policy_file.write_text(policy_file.read_text().replace("resolve_turns: 2", "resolve_turns: 3"))
        assert httpx.post(sidecar.http_url + "/-/reload", timeout=PATIENCE).is_success
        assert again(sidecar)["result"] == "same"

        policy_file.write_text(policy_file.read_text().replace("stance: neutral", "stance: supportive"))
        assert httpx.post(sidecar.http_url + "/-/reload", timeout=PATIENCE).is_success
        assert again(sidecar)["result"] == "recorded"

    def test_reload_during_a_run(self, watched: Any, outcome: Any, inference: Inference, eventually: Any) -> None:
        """A policy reloaded while prompts are played does not break the run."""
        inference.open.clear()
        sidecar = watched()
        eventually(lambda: inference.bodies)

        assert httpx.post(sidecar.http_url + "/-/reload", timeout=PATIENCE).is_success
        inference.open.set()

        assert outcome(sidecar)["result"] == "recorded"

    def test_bank_replaced_during_a_run(
        self, watched: Any, outcome: Any, inference: Inference, eventually: Any, tmp_path: Path
    ) -> None:
        """A run that saw two banks counts for nothing."""
        folder = tmp_path / "bank"
        make_bank().save(folder)
        inference.open.clear()
        sidecar = watched(bank=str(folder))
        eventually(lambda: inference.bodies)
        make_bank(seed=1).save(folder)
        assert httpx.post(sidecar.http_url + "/-/reload", timeout=PATIENCE).is_success
        inference.open.set()

        found = outcome(sidecar)

        assert (found["result"], "play again" in found["error"]) == ("failed", True)

    def test_one_run_at_a_time(self, watched: Any, outcome: Any, inference: Inference, eventually: Any) -> None:
        """While a run is under way another is refused, and the page tells how far it is."""
        inference.open.clear()
        sidecar = watched()
        eventually(lambda: inference.bodies)

        refused, state = begin(sidecar), stands(sidecar)

        assert refused.status_code == 409
        assert (state["running"], state["run"], state["played"], state["of"]) == (True, 1, 1, 2 * PROMPTS)
        inference.open.set()
        assert outcome(sidecar)["run"] == 1


class TestSettings:
    """What is shipped, and what is refused at the start."""

    def test_shipped_prompts(self) -> None:
        """The shipped prompts are enough to show a change when half of them are missing, and the user speaks last."""
        shipped = read_prompts(SHIPPED)

        assert least_p_value(len(shipped) // 2) <= SidecarSettings.model_fields["canary_alpha"].default
        assert {prompt.messages[-1].role for prompt in shipped} == {"user"}

    @pytest.mark.parametrize(
        ("flags", "field"),
        [
            ({"canary_record": None}, "canary_record"),
            ({"canary_url": "inference:8000"}, "canary_url"),
            ({"canary_file": Path("/nowhere/prompts.jsonl")}, "canary_file"),
            ({"canary_record": Path("/nowhere/record.json")}, "canary_record"),
            ({"canary_alpha": 1e-9}, "canary_file"),
        ],
    )
    def test_that_cannot_work(self, flags: dict[str, Any], field: str, serve: Any, record: Path) -> None:
        """Settings that cannot work name the one at fault."""
        with pytest.raises(SetupError) as refused:
            serve(**{"canary_url": "http://127.0.0.1:9", "canary_record": record, **flags})

        assert refused.value.field == field

    @pytest.mark.parametrize(
        ("line", "field"),
        [
            ("{", "canary_file:2"),
            ('{"id": "a"}', "canary_file:2:messages"),
            ('{"id": "A b", "messages": [{"role": "user", "content": "x"}]}', "canary_file:2:id"),
            ('{"id": "a", "messages": [{"role": "robot", "content": "x"}]}', "canary_file:2:messages.0.role"),
            ('{"id": "first", "messages": [{"role": "user", "content": "x"}]}', "canary_file:2:id"),
        ],
    )
    def test_bad_prompts(self, line: str, field: str, tmp_path: Path) -> None:
        """A line that is no prompt is named with its field."""
        file = tmp_path / "own.jsonl"
        file.write_text('{"id": "first", "messages": [{"role": "user", "content": "x"}]}\n' + line)

        with pytest.raises(SetupError) as refused:
            read_prompts(file)

        assert refused.value.field == field

    def test_another_file_is_not_written_over(self, serve: Any, record: Path) -> None:
        """A file that holds something else is left alone."""
        record.write_text("{}")

        with pytest.raises(SetupError, match="holds no recorded run"):
            serve(canary_url="http://127.0.0.1:9", canary_record=record)

        assert record.read_text() == "{}"

    def test_off(self, serve: Any) -> None:
        """Without an address nothing is played, and the page says how to change that."""
        sidecar = serve()

        assert begin(sidecar).status_code == 404
        assert "canary_url" in begin(sidecar).text
        assert not any(name.startswith("affect_canary") for name in samples(sidecar))

    def test_asks_for_the_token(self, watched: Any, tmp_path: Path) -> None:
        """Only who may reload may begin a run."""
        token = tmp_path / "token"
        token.write_text("secret\n")
        token.chmod(0o600)

        assert begin(watched(token_file=token)).status_code == 401


class TestCommand:
    """The command."""

    @pytest.fixture
    def run(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., tuple[int, str]]:
        """Runs it: exit code and what is printed."""

        def invoke(*arguments: str) -> tuple[int, str]:
            with structlog.testing.capture_logs():
                done = runner(monkeypatch, capsys, "canary")(*arguments)
            return done.code, done.out + done.err

        return invoke

    def test_tells_what_came_of_it(self, watched: Any, outcome: Any, inference: Inference, run: Any) -> None:
        """It exits with 0 for the same model, with 1 for a changed one, and with 2 where nothing was compared."""
        sidecar = watched()
        outcome(sidecar)

        same = run("--url", sidecar.http_url)
        inference.shift = SHIFT
        changed = run("--url", sidecar.http_url, "--json")
        inference.refuses = {json.loads(line)["id"] for line in LINES}
        failed = run("--url", sidecar.http_url)

        assert same[0] == 0
        assert same[1].startswith("same: over-index moved by +0.00, affect of the prompts by +0.00 (medians), p 1;")
        assert (changed[0], json.loads(changed[1])["result"]) == (1, "changed")
        assert failed[0] == 2
        assert failed[1].startswith("failed: ")

    def test_shows_a_token(self, watched: Any, run: Any, tmp_path: Path) -> None:
        """A sidecar that asks for a token gets that of the file."""
        token = tmp_path / "token"
        token.write_text("secret\n")
        token.chmod(0o600)
        sidecar = watched(token_file=token)

        refused = run("--url", sidecar.http_url)
        shown = run("--url", sidecar.http_url, "--token-file", str(token))

        assert (refused[0], "--token-file" in refused[1]) == (2, True)
        assert shown[0] in {0, 2}

    @pytest.mark.parametrize("url", ["http://127.0.0.1:9", "nonsense"])
    def test_without_a_sidecar(self, url: str, run: Any) -> None:
        """Where none answers it says so."""
        code, text = run("--url", url)

        assert (code, "no sidecar answers" in text) == (2, True)
