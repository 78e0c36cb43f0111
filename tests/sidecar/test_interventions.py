"""What a cap in the engine did to a turn: from a model through a sidecar to its audit store, and bad news of it."""

from __future__ import annotations

import json
import math
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from audits import PATIENCE, records, verified
from chat_model import make_model, make_tokenizer
from engine import Event, make_frame, make_turn
from steering_files import steering, write

from monitor.capture.cap import cap
from monitor.capture.client import SidecarClient
from monitor.capture.identity import hello_of
from monitor.capture.transformers import TappedRequest, TransformersTap
from monitor.sidecar.limits import MAX_INTERVENTIONS
from monitor.wire.v1 import ingest_pb2, inspect_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine import Engine, Turn

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar

COUNTED = "affect_interventions_total"
SOUND: dict[str, Any] = {
    "family": "warmth", "at": "0.99", "layers": 2, "tokens": 12, "touched": 5, "largest": 2.0, "mean": 0.5,
}  # fmt: skip


def ended(turn: Turn, *told: dict[str, Any]) -> ingest_pb2.StreamActivationsRequest:
    """A turn in one frame, whose end tells of interventions."""
    interventions = [ingest_pb2.Intervention(**each) for each in told]
    end = ingest_pb2.End(total_tokens=turn.length, interventions=interventions)
    return make_frame((turn, 0, turn.length), events=[turn.start, Event(request_id=turn.request_id, end=end)])


def test_every_touch_of_a_model_reaches_the_audit_store(
    serve: Callable[..., Sidecar], connect: Callable[..., Engine], small_bank: Bank, address: str, tmp_path: Path
) -> None:
    """A capped reply is recorded with what was taken from it, shown by every door, counted, and the chain holds."""
    path, model, layers = tmp_path / "audit.db", make_model(), small_bank.card.layers
    sidecar = serve(audit_file=path, audit_sample_rate=0.0, allow_unvalidated=True)
    assessed: list[ingest_pb2.Assessment] = []
    hello = hello_of(model, make_tokenizer(), "tiny", layers, "engine")
    prompt = torch.arange(5, 15)[None]
    with (
        closing(SidecarClient(address, hello, on_assessment=assessed.append)) as client,
        closing(TransformersTap(model, client, layers)) as tap,
        cap(model, write(tmp_path, steering(model, {1: -50.0, 2: 100.0})), "warmth", tap=tap),
    ):
        with tap.requests([TappedRequest("capped")]):
            model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9, do_sample=False)
        assert client.flush(PATIENCE)
    (assessment,) = assessed
    (told,) = assessment.interventions
    # Of nine tokens the last never runs; layer 2 never reaches its ceiling.
    assert (told.family, told.at, told.layers, told.tokens, told.touched) == ("warmth", "0.99", 2, 8, 8)
    assert 30 < told.mean <= told.largest < 120
    got = connect().inspect.GetTurn(inspect_pb2.GetTurnRequest(turn_id=assessment.turn_id)).assessment
    assert list(got.interventions) == [told]
    page = httpx.get(f"{sidecar.http_url}/turns/{assessment.turn_id}", timeout=PATIENCE).text
    assert "<strong>warmth</strong> at 0.99 of the reference" in page
    assert httpx.get(f"{sidecar.http_url}/api/turns", timeout=PATIENCE).json()[0]["interventions"][0]["touched"] == 8
    assert sidecar.pipeline.metrics.series(COUNTED) == {
        ("affect",): 0,
        ("contagion",): 0,
        ("other",): 0,
        ("warmth",): 1,
    }
    sidecar.stop()
    (row,) = [row for row in records(path) if row.kind == "turn"]
    assert row.payload["turn_id"] == assessment.turn_id
    (kept,) = row.payload["interventions"]
    assert (kept["family"], kept["touched"], kept["largest"]) == ("warmth", 8, pytest.approx(told.largest, rel=1e-5))
    assert verified(path).bad is None


class TestWhatIsCounted:
    """The counter of turns that were held down."""

    def test_families_that_the_bank_lacks_are_one(
        self, serve: Callable[..., Sidecar], connect: Callable[..., Engine], small_bank: Bank
    ) -> None:
        """Turns without a touch do not count, and unknown families share a series, whatever engines call them."""
        sidecar, stream = serve(), connect().stream(small_bank)
        for number, told in enumerate([{}, {"touched": 0}, {"family": "awe"}, {"family": "x" * 63}]):
            answer = stream.send(ended(make_turn(small_bank, f"r{number}"), {**SOUND, **told}))
            assert not answer.faults
        assert sidecar.pipeline.metrics.series(COUNTED) == {
            ("affect",): 0,
            ("contagion",): 0,
            ("other",): 2,
            ("warmth",): 1,
        }


class TestBaseline:
    """The window of turns that a new reference may be made of."""

    def test_has_no_turn_that_was_held_down(
        self, serve: Callable[..., Sidecar], connect: Callable[..., Engine], small_bank: Bank, tmp_path: Path
    ) -> None:
        """A turn under a cap that had nothing to do is the model's own; one that was touched is not."""
        path = tmp_path / "baseline.jsonl"
        sidecar, stream = serve(baseline_file=path), connect().stream(small_bank)
        for number, touched in enumerate((0, 5, 0)):
            stream.send(ended(make_turn(small_bank, f"r{number}", seed=number), {**SOUND, "touched": touched}))
        sidecar.stop()
        assert len([json.loads(line) for line in path.read_text().splitlines() if "tokens" in line]) == 2


class TestBadNews:
    """Interventions that cannot be."""

    @pytest.mark.parametrize(
        ("wrong", "why"),
        [
            ({"family": ""}, "family must be"),
            ({"family": "x" * 64}, "family must be"),
            ({"family": "a b"}, "family must be"),
            ({"at": ""}, "at must be a quantile"),
            ({"at": "0.9" * 99}, "at must be a quantile"),
            ({"at": "99"}, "at must be a quantile"),
            ({"layers": 0}, "layers must be 1 to 256"),
            ({"layers": 257}, "layers must be 1 to 256"),
            ({"touched": 13}, "touched 13 tokens of 12"),
            ({"largest": math.nan}, "largest must be finite"),
            ({"largest": math.inf}, "largest must be finite"),
            ({"mean": math.nan}, "largest must be finite"),
            ({"mean": 2.5}, "mean lie between 0 and largest"),
            ({"mean": -0.5}, "mean lie between 0 and largest"),
        ],
    )
    def test_are_left_out_and_told(
        self, wrong: dict[str, Any], why: str, shared: Sidecar, small_bank: Bank, client_of: Callable[[], Engine]
    ) -> None:
        """A bad one is a fault with its field and the fix; the turn ends as ever, with the good one beside it."""
        before = shared.metrics.value("affect_faults_total", "intervention")
        turn = make_turn(small_bank, "r")
        answer = client_of().stream(small_bank).send(ended(turn, {**SOUND, **wrong}, SOUND))
        (fault,) = answer.faults
        assert (fault.reason, fault.field, fault.request_id) == ("intervention", "events.end.interventions", "r")
        assert why in fault.message
        assert len(fault.message) < 200
        assert shared.metrics.value("affect_faults_total", "intervention") == before + 1
        (assessment,) = answer.assessments
        assert assessment.coverage == 1.0
        assert list(assessment.interventions) == [ingest_pb2.Intervention(**SOUND)]

    def test_too_many(self, small_bank: Bank, client_of: Callable[[], Engine]) -> None:
        """Beyond the limit none is kept, and one fault says how many there were."""
        many = [SOUND] * (MAX_INTERVENTIONS + 3)
        answer = client_of().stream(small_bank).send(ended(make_turn(small_bank, "r"), *many))
        (fault,) = answer.faults
        assert fault.message == f"left out: {len(many)} of them; the limit is {MAX_INTERVENTIONS}"
        assert len(answer.assessments[0].interventions) == MAX_INTERVENTIONS


@pytest.fixture
def client_of(shared: Sidecar, connect: Callable[..., Engine]) -> Callable[[], Engine]:
    """Engines at the sidecar that many tests use."""
    return lambda: connect(shared._settings.ingest)
