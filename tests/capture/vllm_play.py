"""Plays random traffic on vLLM's engine core, and judges what the sidecar would have been told of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import RequestStatus
from vllm_engine import VOCABULARY, Setup, Worker, executor, rows_of

from monitor.capture import introduction
from monitor.wire.v1 import ingest_pb2

_IDLE_STEPS = 50
"""Steps in which nothing happens any more, after which a request is stuck."""


class Listener:
    """Takes the place of the client, and keeps what it is told; like it, it leaves out what belongs to no request."""

    made: ClassVar[list[Listener]] = []

    def __init__(self, address: str, hello: Any, **_: Any) -> None:
        self.address, self.hello = address, hello
        self.starts: dict[str, int] = {}
        self.ends: dict[str, int] = {}
        self.tokens: dict[str, dict[int, int]] = {}
        self.rows_of: dict[str, dict[int, torch.Tensor]] = {}
        self.gaps: dict[str, dict[int, int]] = {}
        self.errors = 0
        self.cached = self.dropped = 0
        """Tokens told as missing."""
        Listener.made.append(self)

    def start(self, request_id: str, prompt_length: int = 0, **_: Any) -> None:
        """Keeps a start."""
        assert request_id not in self.starts
        self.starts[request_id], self.gaps[request_id] = prompt_length, {}
        self.tokens[request_id], self.rows_of[request_id] = {}, {}

    def rows(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int],
        rows: torch.Tensor,
    ) -> None:
        """Keeps rows, which come in the order of their positions."""
        assert len(rows) == len(token_ids) == sum(counts)
        row = 0
        for request_id, start, count in zip(request_ids, starts, counts, strict=True):
            if request_id in self.starts:
                assert request_id not in self.ends
                assert all(position < start for position in {**self.tokens[request_id], **self.gaps[request_id]})
                positions = range(start, start + count)
                self.tokens[request_id].update(zip(positions, token_ids[row : row + count], strict=True))
                self.rows_of[request_id].update(zip(positions, rows[row : row + count], strict=True))
            row += count

    def gap(self, request_id: str, start: int, token_ids: Sequence[int], reason: int) -> None:
        """Keeps the tokens of a gap."""
        if request_id in self.starts:
            self.dropped += len(token_ids) if reason == ingest_pb2.GAP_REASON_DROPPED else 0
            self.cached += len(token_ids) if reason == ingest_pb2.GAP_REASON_PREFIX_CACHED else 0
            assert all(position < start for position in {**self.tokens[request_id], **self.gaps[request_id]})
            self.gaps[request_id].update(enumerate(token_ids, start))

    def end(self, request_id: str, total_tokens: int, _reason: int) -> None:
        """Keeps an end."""
        if request_id in self.starts:
            assert request_id not in self.ends
            self.ends[request_id] = total_tokens

    def failed(self, errors: int = 1) -> None:
        """Counts errors."""
        self.errors += errors

    def close(self) -> None:
        """Does nothing."""


class Play:
    """One engine under random traffic.

    Args:
        setup: How it is set up.
        seed: Of requests, of what is sampled, of when something happens.
        folder: Where its model's configuration may be written.
        requests: How many there are.
    """

    def __init__(self, setup: Setup, seed: int, folder: Path, requests: int = 80) -> None:
        self.workers: list[Worker] = []
        self.requests: dict[str, Any] = {}
        self.early: list[int] = []
        """Blocks of which rows were taken when they were free already."""
        self.seen: Counter[str] = Counter()
        """How often what happened that makes capture hard."""
        self._random = Random(seed)  # noqa: S311 - a test
        self._left = requests
        """Tokens that lay in a request's blocks when it ended."""
        self._documents = [self._some_tokens(120) for _ in range(3)]
        Listener.made.clear()
        introduction.SidecarClient = Listener  # type: ignore[misc,assignment]
        self.core = EngineCore(setup.config(folder), executor(self.workers, seed=seed), log_stats=False)
        self.scheduler: Any = self.core.scheduler
        self._watch()

    @property
    def listener(self) -> Listener:
        """What the sidecar was told; one worker speaks for all."""
        (listener,) = Listener.made
        return listener

    def run(self, requests: int = 0, before_step: Callable[[int], None] = lambda _: None) -> None:
        """Plays until nothing is left.

        Args:
            requests: How many more there are.
            before_step: Called with the number of every step.
        """
        self._left += requests
        step = idle = 0
        while self._left or self.core.batch_queue or self.scheduler.has_requests():
            before_step(step)
            self._stir()
            outputs, executed = self.core.step_fn()
            self.core.post_step(executed)
            step += 1
            idle = 0 if executed or outputs or self._left else idle + 1
            assert idle < _IDLE_STEPS, f"stuck with {list(self.scheduler.requests)}"

    # -- whether it was right -----------------------------------------------------------------------------------------

    def judge_serving(self) -> None:
        """Checks that every request was answered, and that nothing is held any more."""
        pool = self.scheduler.kv_cache_manager.block_pool
        assert not self.scheduler.requests
        assert all(request.is_finished() for request in self.requests.values())
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "blocks were not released"
        assert not self.early, "blocks were released too early"

    def judge_rows(self) -> None:
        """Checks that every row that was told is the right one."""
        for request_id, told in self.listener.tokens.items():
            tokens = list(self.requests[request_id].all_token_ids)
            for position, token in {**told, **self.listener.gaps[request_id]}.items():
                assert token == tokens[position], (request_id, position)
            if told:
                rows = torch.stack(list(self.listener.rows_of[request_id].values()))
                wrong = (rows != rows_of(tokens)[list(told)]).any(dim=(1, 2))
                assert not wrong.any(), (request_id, [at for at, off in zip(told, wrong, strict=True) if off])

    def judge_whole(self, request_ids: Iterable[str]) -> None:
        """Checks that nothing is missing of some requests, and that they were told to begin and to end."""
        told = self.listener
        for request_id in request_ids:
            request = self.requests[request_id]
            positions = sorted([*told.tokens.get(request_id, ()), *told.gaps.get(request_id, ())])
            known, prompt = len(request.all_token_ids), request.num_prompt_tokens
            if request_id not in told.starts:
                assert known == prompt, f"{request_id} was answered, and nothing was told of it"
                continue
            assert told.starts[request_id] == prompt
            total = told.ends[request_id]
            # The last token was never fed to the model, unless it was, and what came of it was not awaited.
            aborted = request.status is RequestStatus.FINISHED_ABORTED
            assert known == prompt or total == known - 1 or (aborted and total == known), (request_id, total, known)
            assert positions == list(range(total)), (request_id, positions, total)

    # -- what happens -------------------------------------------------------------------------------------------------

    def _stir(self) -> None:
        """Has requests come and go."""
        chance = self._random.random
        while self._left and (not self.scheduler.has_requests() or chance() < 0.5):
            self._add()
        if chance() < 0.03 and self.scheduler.requests:
            self.core.abort_requests([self._random.choice(list(self.scheduler.requests))])
            self.seen["aborted"] += 1
        nothing_held = len(self.scheduler.requests) == sum(self.scheduler.get_request_counts())
        if chance() < 0.02 and nothing_held:
            self.scheduler.reset_prefix_cache(reset_running_requests=True)
            self.seen["reset"] += 1

    def _add(self) -> None:
        """Adds a request, or several answers to one."""
        length = self._random.choice((1, 3, 8, 17, 40, 64, 90, 120))
        shared = self._random.choice(self._documents)[: self._random.randrange(length + 1)]
        prompt = [*shared, *self._some_tokens(length - len(shared))]
        self._left -= 1
        for answer in range(self._random.choice((1, 1, 1, 2))):
            request_id = f"{answer}_chatcmpl-{len(self.requests)}-0123abcd"
            sampling = SamplingParams(max_tokens=self._random.randrange(1, 30), stop_token_ids=[0])
            made = EngineCoreRequest(
                request_id=request_id,
                prompt_token_ids=list(prompt),
                mm_features=None,
                sampling_params=sampling,
                pooling_params=None,
                arrival_time=time.time(),
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
                priority=self._random.randrange(3),
            )
            request, wave = self.core.preprocess_add_request(made)
            self.requests[request_id] = request
            self.core.add_request(request, wave)

    def _some_tokens(self, count: int) -> list[int]:
        return [self._random.randrange(1, VOCABULARY) for _ in range(count)]

    # -- what is looked at --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Looks over the shoulders of the scheduler's half and of the worker that sends."""
        connector, sender = self.scheduler.connector, self.workers[0].connector
        finished = connector.request_finished_all_groups

        def watch_end(request: Any, block_ids: Any) -> Any:
            held, told = finished(request, block_ids)
            self.seen["held"] += held
            self.seen["preempted"] += request.num_preemptions > 0
            behind = request.num_computed_tokens < request.num_tokens - 1
            self.seen["ended while preempted"] += request.num_preemptions > 0 and behind
            return held, told

        connector.request_finished_all_groups = watch_end
        if sender._emitter is None:
            return
        while sender._introduction.client() is None:
            time.sleep(0.01)
        if sender._tapped is not None:
            return  # rows are taken from elsewhere, where blocks do not matter
        take = sender._emitter._source.take

        def watch_rows(plan: Any) -> Any:
            blocks = self.scheduler.kv_cache_manager.block_pool.blocks
            size = self.workers[0].cache.shape[2]
            self.early += [block for block in np.unique(plan.slots // size) if not blocks[block].ref_cnt]
            return take(plan)

        sender._emitter._source.take = watch_rows
