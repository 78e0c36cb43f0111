"""Capture on a GPU: copies beside the engine's stream, compiled decoding, batches in two sets of inputs."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import test_transformers as ours
import test_transformers_batching as batched
import torch
from recorder import Recorder

from monitor.capture.breaker import Breaker
from monitor.capture.copies import HostCopies, Taken
from monitor.capture.emitter import Emitter
from monitor.capture.plan import Begin, End, StepPlan
from monitor.capture.transformers import TransformersTap
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch sees no GPU here: these tests are for a machine that has one"
)

STEPS, ROWS, HIDDEN = 40, 256, 1024
STOP = int(ingest_pb2.END_REASON_STOP)


class Buffer:
    """Rows on the GPU that every step writes anew, as an engine's do."""

    hidden_size = HIDDEN

    def __init__(self) -> None:
        self._rows = torch.zeros(ROWS, 1, HIDDEN, device="cuda")

    def run(self, step: int) -> None:
        """The model runs: all rows hold the number of the step."""
        self._rows.fill_(float(step))

    def take(self, plan: StepPlan) -> Taken:
        """Gathers a plan's rows."""
        return Taken(self._rows[torch.from_numpy(plan.slots).cuda()])


def plan_of(step: int) -> StepPlan:
    """A request that begins and ends in this step."""
    name = f"r{step}"
    return StepPlan(
        begins=[Begin(name, ROWS, {}, "", "")],
        request_ids=[name], starts=[0], counts=[ROWS], token_ids=[step] * ROWS, slots=np.arange(ROWS),
        ends=[End(name, ROWS, STOP)],
    )  # fmt: skip


def emitted(breaker: Breaker) -> Recorder:
    """What comes of some steps that follow one another without a wait."""
    client, buffer = Recorder(), Buffer()
    with closing(Emitter(buffer, breaker, lambda: client)) as emitter:
        for step in range(STEPS):
            buffer.run(step)
            emitter.emit(plan_of(step))
        batched.until(lambda: len(client.ends) == STEPS)
    return client


class TestCopies:
    """Rows on their way to the host while the engine goes on."""

    def test_rows_are_those_of_their_step(self) -> None:
        """They come in order, as they were when they were taken."""
        breaker = Breaker()
        client = emitted(breaker)
        assert breaker.errors == 0
        assert list(client.ends) == [f"r{step}" for step in range(STEPS)]
        for step in range(STEPS):
            assert not client.of(f"r{step}").is_cuda
            assert (client.of(f"r{step}") == step).all()

    def test_a_copy_that_fails_costs_its_rows_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The end of its request is told, and all others come whole."""
        breaker, copied, copies = Breaker(), HostCopies._to_host, iter(range(STEPS))

        def fails_once(self: HostCopies, part: torch.Tensor) -> torch.Tensor:
            if next(copies) == 7:
                raise torch.OutOfMemoryError("injected")
            return copied(self, part)

        monkeypatch.setattr(HostCopies, "_to_host", fails_once)
        client = emitted(breaker)
        assert breaker.errors == 1
        assert list(client.ends) == [f"r{step}" for step in range(STEPS)]
        assert [name for name in client.starts if len(client.held[name]) != ROWS] == ["r7"]


class TestTransformers:
    """The tap of generate()."""

    @pytest.fixture(autouse=True)
    def _anew(self) -> Iterator[None]:
        torch.compiler.reset()
        yield
        torch.compiler.reset()

    @pytest.fixture
    def batch(self) -> dict[str, torch.Tensor]:
        """Two prompts with padding, on the GPU."""
        return {name: part.cuda() for name, part in ours.padded(ours.prompts(7, 4), "left").items()}

    def test_rows_are_those_of_the_pass(self, batch: dict[str, torch.Tensor]) -> None:
        """Bit for bit what generate() itself reports."""
        model, client = ours.build("Llama").cuda(), Recorder()
        with closing(TransformersTap(model, client, [0, 2])) as tap, tap.requests(ours.named(2)):
            made = ours.generate(model, batch)
        for number in range(2):
            assert torch.equal(client.of(f"r{number}"), ours.expected(made, batch, number, [0, 2]).cpu())
        assert client.failures == 0

    def test_compiled_decoding(self, batch: dict[str, torch.Tensor]) -> None:
        """With a static cache and CUDA graphs, as generate() compiles by itself: rows are those of a plain pass."""
        model, client = ours.build("Llama", eos_token_id=None).cuda(), Recorder()
        with closing(TransformersTap(model, client, [0, 2])) as tap, tap.requests(ours.named(2)):
            model.generate(**batch, do_sample=False, max_new_tokens=8, cache_implementation="static")
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"], "decoding was compiled"
        assert client.failures == 0
        for name, length in (("r0", 7), ("r1", 4)):
            assert len(client.ids(name)) == length + 7
            plain = batched.plain(model, client.ids(name), [0, 2])
            torch.testing.assert_close(client.of(name), plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


def test_continuous_batching() -> None:
    """Without graphs: every token's row comes once, from requests that join and leave batches as they will."""
    model: Any = batched.build().cuda()
    client = Recorder()
    with batched.tapped(model, client):
        config = batched.batching(use_cuda_graph=False)
        outputs = batched.generate(model, batched.prompts(7, 40, 3, 12), config=config)
    batched.assert_complete(client, model, outputs)
