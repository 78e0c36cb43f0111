"""The account of a turn: whatever comes, in whatever order, every token went somewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from engine import End, Event, Gap, Request, Start, make_hello, tensor
from hypothesis import example, given, settings
from hypothesis import strategies as st

from monitor.outputs.metrics import Metrics
from monitor.policy.engine import AlertEngine
from monitor.policy.schema import load_policy
from monitor.sidecar.pipeline import GAP_REASONS, Pipeline
from monitor.wire.codec import decode_frame
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from monitor.probes.bank import Bank

NAMES = ["a", "b", "c"]
POSITIONS = st.integers(0, 40)
ACTIONS = st.one_of(
    st.tuples(st.just("rows"), st.sampled_from(NAMES), POSITIONS, st.integers(1, 12), st.integers(0, 3)),
    st.tuples(st.just("next"), st.sampled_from(NAMES), st.integers(0, 4), st.integers(1, 12), st.integers(0, 3)),
    st.tuples(
        st.just("gap"), st.sampled_from(NAMES), POSITIONS, st.integers(0, 12), st.sampled_from(sorted(GAP_REASONS))
    ),
    st.tuples(st.just("end"), st.sampled_from(NAMES), st.integers(0, 60), st.just(0), st.just(0)),
)
"""What, whose, from where (for ``next``: positions jumped over, or back), how many, and rows that are not finite."""
_ENGINES = map("engine {}".format, count())


@dataclass
class Model:
    """Positions of one turn, by what became of them."""

    scored: set[int] = field(default_factory=set)
    nonfinite: set[int] = field(default_factory=set)
    gaps: dict[str, int] = field(default_factory=dict)
    next: int = 0
    jumped: int = 0

    def expect(self, start: int, count: int) -> range:
        """The positions of a span that were still expected."""
        first = max(start, self.next)
        if start + count > first:
            self.jumped += first - self.next
            self.next = start + count
        return range(first, start + count)

    def told(self) -> dict[str, int]:
        """Tokens by reason, as far as they were told."""
        return {reason: number for reason, number in self.gaps.items() if number}

    def account(self, said: int) -> dict[str, int]:
        """What an assessment must say."""
        seen = len(self.scored) + len(self.nonfinite)
        untold = max(self.jumped, said - seen - sum(self.gaps.values()))
        gaps = self.told() | ({"untold": untold} if untold else {})
        return {"scored": len(self.scored), "nonfinite": len(self.nonfinite), **gaps}


@pytest.fixture(scope="module")
def pipeline(small_bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline without a network around it."""
    policy = tmp_path_factory.mktemp("policy") / "policy.yaml"
    policy.write_text("version: 1\npolicies: [{name: desk, stance: neutral, turn: {false_alarm_rate: 0.02}}]\n")
    policies = load_policy(policy, small_bank)
    return Pipeline(small_bank, policies, Metrics(), AlertEngine(policies, lambda _: None))


class Run:
    """One engine's traffic, and what must come of it."""

    def __init__(self, pipeline: Pipeline, bank: Bank) -> None:
        self.pipeline = pipeline
        self.stream = pipeline.connect(make_hello(bank, engine_id=next(_ENGINES)))
        self.models: dict[str, Model] = {}
        self.ended: list[tuple[ingest_pb2.Assessment, dict[str, int]]] = []

    def send(self, frame: Request) -> list[ingest_pb2.Assessment]:
        """Has a frame processed, as it comes from the wire."""
        done = self.pipeline.process(self.stream, decode_frame(frame.SerializeToString()))
        assert not done.faults
        return done.assessments

    def model(self, name: str, frame: Request) -> Model:
        """The model of a request, which begins with the frame where it is not under way."""
        if name not in self.models:
            self.models[name] = Model()
            frame.events.append(Event(request_id=name, start=Start(prompt_length=5)))
        return self.models[name]

    def act(self, *action: Any) -> None:
        """Does one thing."""
        kind, name, start, number, special = action
        frame = Request()
        model = self.model(name, frame)
        if kind == "next":
            start = max(0, model.next + start - 2)
        if kind in {"rows", "next"}:
            rows = np.zeros((number, 2, 16), np.float32)
            rows[:special, 1, 3] = np.nan
            frame.spans.CopyFrom(
                ingest_pb2.Spans(request_ids=[name], starts=[start], counts=[number], token_ids=[50] * number)
            )
            frame.rows.CopyFrom(tensor(rows))
            for position in model.expect(start, number):
                (model.nonfinite if position - start < special else model.scored).add(position)
        elif kind == "gap":
            gap = Gap(start=start, count=number, reason=special)
            frame.events.append(Event(request_id=name, gap=gap))
            reason = GAP_REASONS[special]
            model.gaps[reason] = model.gaps.get(reason, 0) + len(model.expect(start, number))
        else:
            frame.events.append(Event(request_id=name, end=End(total_tokens=start)))
        assessments = self.send(frame)
        if kind == "end":
            (assessment,) = assessments
            self.ended.append((assessment, self.models.pop(name).account(start)))

    def close(self) -> None:
        """Ends what is still under way, with as many tokens as came."""
        for name, model in list(self.models.items()):
            self.act("end", name, model.next, 0, 0)
        self.pipeline.disconnect(self.stream)


@settings(deadline=None, max_examples=150)
@given(actions=st.lists(ACTIONS, max_size=30))
@example(actions=[("end", "a", 0, 0, 0)])
@example(actions=[("gap", "a", 0, 0, 4), ("end", "a", 3, 0, 0)])
@example(actions=[("rows", "a", 5, 3, 0), ("gap", "a", 0, 6, 2), ("rows", "a", 0, 12, 2), ("end", "a", 1, 0, 0)])
def test_every_token_went_somewhere(pipeline: Pipeline, small_bank: Bank, actions: list[tuple[Any, ...]]) -> None:
    """Total = scored + not finite + gaps by reason, each as the engine told, and what nobody told is untold."""
    before = {name: pipeline.metrics.value(f"affect_tokens_{name}_total") for name in ("scored", "nonfinite")}
    run = Run(pipeline, small_bank)
    for action in actions:
        run.act(*action)
    run.close()

    for assessment, expected in run.ended:
        nonfinite = expected.pop("nonfinite")
        assert {"scored": assessment.scored_tokens, **assessment.gaps} == expected
        assert assessment.total_tokens == sum(expected.values()) + nonfinite
        total = assessment.total_tokens
        assert assessment.coverage == (assessment.scored_tokens / total if total else 0)
        assert ("nonfinite" in assessment.marks) == bool(nonfinite)
        expected["nonfinite"] = nonfinite
    for name, value in before.items():
        grown = pipeline.metrics.value(f"affect_tokens_{name}_total") - value
        assert grown == sum(expected[name] for _, expected in run.ended)
    assert pipeline.status()["open_turns"] == 0


def test_missing_tokens_are_counted_as_the_turns_tell(pipeline: Pipeline, small_bank: Bank) -> None:
    """The metric of missing tokens is the sum of all gaps, reason by reason."""
    reasons = [*GAP_REASONS.values(), "untold"]
    before = {reason: pipeline.metrics.value("affect_tokens_missing_total", reason) for reason in reasons}
    run = Run(pipeline, small_bank)
    for number, reason in enumerate(sorted(GAP_REASONS), 1):
        run.act("next", "a", 2, 3, 1)
        run.act("gap", "a", run.models["a"].next, number, reason)
        run.act("next", "b", 2 + number, 2, 0)
    run.act("end", "a", 100, 0, 0)
    run.close()

    for reason in reasons:
        grown = pipeline.metrics.value("affect_tokens_missing_total", reason) - before[reason]
        assert grown == sum(assessment.gaps.get(reason, 0) for assessment, _ in run.ended) > 0
