"""transformers as an engine: a process of its own, with capture or without, told over a pipe what to generate."""

from __future__ import annotations

import logging
import math
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from monitor.bench.child import Child, told
from monitor.bench.engine.load import Load, Sample
from monitor.bench.engine.model import build
from monitor.bench.load import connect, hello
from monitor.bench.proc import resident_mb
from monitor.capture.client import SidecarClient
from monitor.capture.transformers import TappedRequest, TransformersTap
from monitor.probes.bank import load_bank

LAYERS = 2
"""Layers that are captured, as many as the shipped bank has."""
_PLACES = (0.6, 11 / 15)
"""Where they lie in the model."""
_LABELS = {"app": "service-desk"}
_USER, _ASSISTANT = (1, 4, 6), (2, 1, 5, 6)
"""What stands before a message in the bench's bank."""
_FIRST_WORD, _WORDS = 100, 400


@dataclass(frozen=True)
class Plan:
    """How the process generates.

    Attributes:
        model: As ``build`` takes it.
        load: Lengths of prompts and replies.
        compiled: Static cache and torch.compile.
        threads: Of torch on the CPU.
    """

    model: str
    load: Load
    compiled: bool
    threads: int


class Capture(NamedTuple):
    """Where rows go: the sidecar's address, and the folder of its bank."""

    address: str
    bank: str


class About(NamedTuple):
    """What the process says of its model, and of its GPU: the name, empty without one."""

    hidden_size: int
    gpu: str


class TransformersEngine:
    """The process, until it is closed.

    Args:
        plan: How it generates.
        capture: Where rows go; None: nowhere, and the model has no hooks.

    Attributes:
        about: Its model.

    Raises:
        SetupError: The model cannot be loaded, or the sidecar does not take it.
    """

    def __init__(self, plan: Plan, capture: Capture | None) -> None:
        self._child = Child("engine", _work, (plan, capture))
        self.about: About = self._child.answer()

    def run(self, batch: int) -> Sample:
        """Generates; see ``Engine``."""
        self._child.tell(batch)
        sample: Sample = self._child.answer()
        return sample

    def close(self) -> None:
        """Ends it."""
        self._child.close()


class _Clock:
    """Stands where a streamer would: notes when tokens come, without looking at them."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: torch.Tensor) -> None:
        """Called with the prompt, then with each token of the batch."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Called when all is said."""


def _prompt(length: int) -> list[int]:
    """Token ids of a user's message."""
    words = (_FIRST_WORD + 7 * at % _WORDS for at in range(length - len(_USER) - len(_ASSISTANT)))
    return [*_USER, *words, *_ASSISTANT]


def _work(pipe: Connection, plan: Plan, capture: Capture | None) -> None:
    """The process: generates as it is told until the pipe is hung up."""
    torch.set_num_threads(plan.threads)
    # That the sidecar is gone every other minute is the point here; that capture fails is not.
    logging.getLogger("affect_monitor").setLevel(logging.ERROR)
    with told(pipe):
        model = build(plan.model)
        with _tapped(model, capture) as tap:
            gpu = torch.cuda.get_device_name() if model.device.type == "cuda" else ""
            pipe.send(About(int(model.config.hidden_size), gpu))
            while True:
                pipe.send(_generate(model, tap, plan, pipe.recv()))


@contextmanager
def _tapped(model: Any, capture: Capture | None) -> Iterator[TransformersTap | None]:
    if capture is None:
        yield None
        return
    depth = int(model.config.num_hidden_layers)
    with closing(SidecarClient(capture.address, hello(load_bank(capture.bank)))) as client:
        connect(client)
        with closing(TransformersTap(model, client, [round(place * depth) for place in _PLACES])) as tap:
            yield tap


@torch.inference_mode()
def _generate(model: Any, tap: TransformersTap | None, plan: Plan, batch: int) -> Sample:
    load, clock = plan.load, _Clock()
    ids = torch.tensor([_prompt(load.prompt_tokens)] * batch, device=model.device)
    requests = [TappedRequest(f"bench-{uuid.uuid4().hex}", labels=_LABELS) for _ in range(batch)]
    if ids.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    began, worked = time.perf_counter(), time.process_time()
    with tap.requests(requests) if tap is not None else nullcontext():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=load.new_tokens, streamer=clock,
            **_compiling() if plan.compiled else {},
        )  # fmt: skip
    seconds = time.perf_counter() - began
    _, *times = clock.times
    return Sample(
        tokens=batch * load.new_tokens,
        processed=batch * (load.prompt_tokens + load.new_tokens - 1),
        seconds=seconds,
        first=[times[0] - began],
        gaps=[after - before for before, after in pairwise(times)],
        cpu_seconds=time.process_time() - worked,
        resident_mb=resident_mb(os.getpid()),
        cuda_mb=torch.cuda.max_memory_allocated() / 1e6 if ids.is_cuda else math.nan,
    )


def _compiling() -> dict[str, Any]:
    """Options of ``generate`` as people set them on a GPU: decoding is compiled, on a preallocated cache."""
    from transformers import CompileConfig

    # Each batch size is compiled for itself: what it costs must not depend on those that were measured before it.
    config: Any = CompileConfig(dynamic=False)
    config._compile_all_devices = True  # noqa: SLF001 - else a CPU, where the bench is tried, would not compile
    return {"cache_implementation": "static", "compile_config": config}
