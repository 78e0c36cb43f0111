"""A scheduler of a few lines around SGLang's own requests, batches and reading of results; the model is a formula."""

from __future__ import annotations

from array import array
from collections import deque
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

LAYERS = (1, 3)
HIDDEN = 4
VOCABULARY = 100


def row(token: int, position: int) -> torch.Tensor:
    """Hidden states of one token: [layers, hidden]."""
    return torch.tensor([[token, position, layer, token * position % 11] for layer in LAYERS], dtype=torch.float32)


def _next(token: int, position: int) -> int:
    return (3 * token + 7 * position) % (VOCABULARY - 10) + 10


class Model(nn.Module):
    """Notes the layers it captures as SGLang's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers_to_capture = list(LAYERS)


class SglangServer:
    """Schedules like SGLang: prefill first, in chunks, with a prefix cache; results a step late where told so.

    Must be made while SGLang can be imported.

    Args:
        overlap: Whether the result of a batch is read when the next one runs already.
        chunk: Tokens that a prefill batch may hold.
        mixed: Whether prefill batches take running requests along.
        model: What the worker holds as its model.

    Attributes:
        lists: Hidden states that went back to callers who asked, by request.
        read: Batches whose results were read.
    """

    def __init__(
        self, *, overlap: bool = False, chunk: int = 6, mixed: bool = False, model: Model | None = None
    ) -> None:
        from sglang.srt.managers import schedule_batch
        from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor

        self._module: Any = schedule_batch
        self._module.is_pin_memory_available = lambda *_args: False
        self._module.flatten_arrays_to_pinned_cpu = lambda ids, _pin: torch.tensor([i for each in ids for i in each])
        self._module.split_cached_prefix_by_tier = lambda **_kwargs: (0, 0, 0)
        self._module.alloc_for_extend = lambda batch: (_indices(batch), _indices(batch), _indices(batch))
        self._module.alloc_for_decode = lambda batch, **_kwargs: _indices(batch)
        self._module.strip_beam_tail = self._module.append_beam_tail = lambda _batch: None
        self._module.SamplingBatchInfo = SimpleNamespace(from_schedule_batch=lambda *_args: _Sampling())
        self._overlap, self._chunk, self._mixed = overlap, chunk, mixed
        self._cache: list[list[int]] = []
        self._waiting: list[Any] = []
        self._chunked: Any = None
        self._running: Any = None
        self._last: Any = None
        self._results: deque[tuple[Any, Any]] = deque()
        self._retracted: Any = None
        self._sampled: dict[str, int] = {}
        self.lists: dict[str, list[Any]] = {}
        self.read = 0
        allocator = SimpleNamespace(free_group_begin=lambda: None, free_group_end=lambda: None)
        metrics = SimpleNamespace(
            num_generated_tokens=0,
            forward_ct_decode=0,
            report_decode_stats=lambda *_args, **_kwargs: None,
            report_prefill_stats=lambda *_args, **_kwargs: None,
        )
        self._config = SimpleNamespace(
            vocab_size=VOCABULARY,
            is_encoder_decoder=False,
            hidden_size=HIDDEN,
            model_path="tiny",
            revision=None,
            dtype=torch.float32,
            self_opened_think_start_ids=None,
        )
        self.worker = SimpleNamespace(model_runner=SimpleNamespace(model=model or Model()), tokenizer=None)
        made = {
            "is_generation": True,
            "disaggregation_mode": SimpleNamespace(value="null"),
            "enable_overlap": overlap,
            "enable_overlap_mlx": False,
            "model_config": self._config,
            "token_to_kv_pool_allocator": allocator,
            "metrics_reporter": metrics,
            "model_worker": self.worker,
            "output_streamer": SimpleNamespace(stream_output=self._stream),
            "beam_coordinator": SimpleNamespace(commit_decode=lambda _batch: set()),
        }
        names = SchedulerBatchResultProcessor.__dataclass_fields__
        self._processor = SchedulerBatchResultProcessor(**{name: made.get(name) for name in names})

    # -- from outside -------------------------------------------------------------------------------------------------

    def submit(self, rid: str, prompt: list[int], new_tokens: int = 4, **options: Any) -> Any:
        """Queues a request; options are those of ``Req``, and ``custom_params``."""
        sampling = SimpleNamespace(
            max_new_tokens=new_tokens,
            custom_params=options.pop("custom_params", None),
            stop_strs=[],
            stop_regex_strs=[],
            stop_token_ids=options.pop("stop_token_ids", None),
            ignore_eos=False,
        )
        request = self._module.Req(rid, "", array("q", prompt), sampling, **options)
        self._waiting.append(request)
        return request

    def run(self) -> None:
        """Works until nothing is left to do."""
        while self.step():
            pass

    def step(self) -> bool:
        """One turn of the scheduler's loop; False if there was nothing to do."""
        self._merge()
        # Memory is short when there is nothing to prefill.
        batch = (self._prefill() if self._retracted is None else None) or self._decode()
        if batch is not None:
            self._results.append((batch, self._forward(batch)))
            copied, result = self._results.pop()
            self._results.append((copied.copy(), result))
        if self._results and (not self._overlap or len(self._results) > 1 or batch is None):
            self._read(*self._results.popleft())
        self._last = batch
        return bool(batch is not None or self._results or self._waiting or self._chunked)

    def retract(self, request: Any) -> None:
        """Takes the memory of a running request in the next step; later it will be computed anew."""
        self._retracted = request

    def forget(self, request: Any) -> None:
        """Drops a waiting request without a word, as SGLang does with those whose caller went away."""
        self._waiting.remove(request)

    def abort_chunked(self) -> None:
        """Aborts the request in the middle of its prefill."""
        self._chunked.finished_reason = self._module.FINISH_ABORT()
        self._chunked = None

    # -- the scheduler ------------------------------------------------------------------------------------------------

    def _merge(self) -> None:
        last = self._last
        if last is not None and last.forward_mode.is_extend():
            last.filter_batch(reqs_to_exclude=[each for each in (self._chunked, last.chunked_req) if each])
            if not last.is_empty() and last is not self._running:
                if self._running is None or self._running.is_empty():
                    self._running = last
                else:
                    self._running.merge_batch(last)
        if self._running is not None:
            self._running.filter_batch()

    def _prefill(self) -> Any:
        room, requests = self._chunk, []
        if self._chunked is not None:
            self._chunked.prefix_len = self._chunked.extend_end
            requests.append(self._chunked)
        while self._waiting:
            request = self._waiting.pop(0)
            request.refresh_fill_ids()
            request.prefix_len = self._matched(request.full_untruncated_fill_ids)
            requests.append(request)
        taken, self._chunked = [], None
        for request in requests:
            left = len(request.full_untruncated_fill_ids) - request.prefix_len
            if not room or self._chunked is not None:
                self._waiting.append(request)
                continue
            request.extend_end = request.prefix_len + min(room, left)
            if left > room:
                self._chunked = request
                request.inflight_middle_chunks += 1
            room -= min(room, left)
            taken.append(request)
        if not taken:
            return None
        batch = self._batch(taken)
        batch.prepare_for_extend()
        if self._mixed and self._running is not None and not self._running.is_empty():
            self._running.prepare_for_decode()
            batch.mix_with_running(self._running)
            batch.decoding_reqs = self._running.reqs
            self._running = None
        return batch

    def _batch(self, requests: list[Any]) -> Any:
        return self._module.ScheduleBatch.init_new(
            requests,
            SimpleNamespace(device="cpu"),
            None,
            SimpleNamespace(page_size=1),
            self._config,
            self._overlap,
            SimpleNamespace(is_none=lambda: True),
            chunked_req=self._chunked,
        )

    def _decode(self) -> Any:
        if self._running is None or self._running.is_empty():
            return None
        if self._retracted is not None:
            kept = [index for index, each in enumerate(self._running.reqs) if each is not self._retracted]
            self._running.filter_batch(keep_indices=kept)
            self._retracted.reset_for_retract()
            self._waiting.insert(0, self._retracted)
            self._retracted = None
            if self._running.is_empty():
                return None
        self._running.prepare_for_decode()
        return self._running

    def _matched(self, tokens: Any) -> int:
        def common(cached: list[int]) -> int:
            same = 0
            while same < min(len(cached), len(tokens) - 1) and cached[same] == tokens[same]:
                same += 1
            return same

        return max(map(common, self._cache), default=0)

    def _forward(self, batch: Any) -> Any:
        from sglang.srt.managers.utils import GenerationBatchResult

        rows, sampled = [], []
        extends = batch.forward_mode.is_extend()
        for index, request in enumerate(batch.reqs):
            if extends and not (batch.decoding_reqs and request in batch.decoding_reqs):
                start, length = batch.prefix_lens[index], batch.extend_lens[index]
                tokens = request.full_untruncated_fill_ids[start : start + length]
            else:
                start, tokens = int(batch.seq_lens_cpu[index]) - 1, [self._sampled[request.rid]]
            rows += [row(token, start + offset) for offset, token in enumerate(tokens)]
            sampled.append(_next(tokens[-1], start + len(tokens) - 1))
            self._sampled[request.rid] = sampled[-1]
        hidden = torch.stack(rows).flatten(1)
        if not batch.return_hidden_states:
            hidden = torch.full_like(hidden, torch.nan)  # left where the next batch overwrites it
        result = GenerationBatchResult(
            logits_output=SimpleNamespace(hidden_states=hidden, customized_info=None, sampling_mask_output=None),
            next_token_ids=torch.tensor(sampled),
        )
        if batch.return_hidden_states and extends:
            result.extend_input_len_per_req = list(batch.extend_lens)
        return result

    def _read(self, batch: Any, result: Any) -> None:
        self.read += 1
        if batch.forward_mode.is_decode():
            self._processor.process_batch_result_decode(batch, result)
        else:
            self._processor.process_batch_result_prefill(batch, result)

    def _stream(self, requests: list[Any], _logprob: bool, _skipped: Any = None) -> None:
        for request in requests:
            self.lists[request.rid] = request.hidden_states
            if request.finished():
                self._cache.append([*request.origin_input_ids, *request.output_ids[:-1]])


class _Sampling:
    penalizer_orchestrator = SimpleNamespace(is_required=False)

    def filter_batch(self, *_args: Any) -> None:
        """Nothing is sampled with."""

    def merge_batch(self, _other: Any) -> None:
        """Nothing is sampled with."""


def _indices(batch: Any) -> torch.Tensor:
    return torch.zeros(len(batch.reqs), dtype=torch.int64)
