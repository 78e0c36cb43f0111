"""vLLM's own engine core and scheduler around a model that is not there.

Everything between requests and the worker's steps is vLLM's: queues, scheduler, cache manager, connector hooks. The
worker stands in: what it computes for a position is a digest of all tokens up to it, as a hidden state would be, laid
where vLLM says. So any row that comes from a wrong place, too early or too late is told from the right one.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from itertools import zip_longest
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.distributed.kv_transfer import kv_transfer_state
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.engine.arg_utils import EngineArgs
from vllm.forward_context import set_forward_context
from vllm.model_executor.models import registry
from vllm.model_executor.models.extract_hidden_states import CacheOnlyAttentionLayer
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin
from vllm.v1.worker.worker_base import CompilationTimes

from monitor.capture.vllm.compat import step_room
from monitor.capture.vllm.placing import TAPS

LAYERS, HIDDEN, VOCABULARY = (0, 1, 2), 4, 6
_CACHE_LAYER, _ATTENTION_LAYER, _LOCAL_LAYER = "cache_only_layers.2", "layers.0", "layers.1"
_LAYOUTS = ["LBNHC", "LBHNC", "BLNHC", "BLHNC"]
_MODULUS = 1 << 20
"""Digests below it are exact in float32."""


@dataclass(frozen=True)
class Setup:
    """How an engine is set up.

    Attributes:
        asynchronous: Whether a step is scheduled before the tokens of the last are known.
        second_runner: Whether the worker is version 2 of the model runner.
        hybrid: Whether hidden states have a cache group of their own, with blocks of another size.
        priority: Whether some requests go before others.
        workers: Tensor-parallel workers.
        rank: Data-parallel rank.
        tapped: Whether rows are taken from taps, and the engine speculates.
        unended: Whether the first model runner ends no step, as on a pipeline's stages before the last.
    """

    asynchronous: bool = False
    second_runner: bool = False
    hybrid: bool = False
    priority: bool = False
    workers: int = 1
    rank: int = 0
    tapped: bool = False
    unended: bool = False

    def config(self, folder: Path) -> VllmConfig:
        """VLLM's configuration for it."""
        registry._run_in_subprocess = lambda look: look()  # one more process that imports vLLM takes half a minute
        VllmConfig.use_v2_model_runner = property(lambda _: False)
        (folder / "config.json").write_text(json.dumps(_MODEL))
        transfer = {"kv_connector": "AffectConnector", "kv_role": "kv_producer", "engine_id": "engine"}
        if self.tapped:
            transfer["kv_connector_extra_config"] = {"affect_capture": "tap", "layers": list(LAYERS)}
        config = EngineArgs(
            model=str(folder),
            served_model_name="tiny",
            skip_tokenizer_init=True,
            load_format="dummy",
            dtype="float32",
            max_model_len=160,
            block_size=8,
            num_gpu_blocks_override=90 if self.hybrid else 40,
            max_num_seqs=8,
            max_num_batched_tokens=64,
            enforce_eager=True,
            enable_prefix_caching=True,
            scheduling_policy="priority" if self.priority else "fcfs",
            tensor_parallel_size=self.workers,
            speculative_config=_NGRAMS if self.tapped else _EXTRACTION,
            kv_transfer_config=transfer,
            additional_config={"hybrid": self.hybrid, "tapped": self.tapped, "unended": self.unended},
        ).create_engine_config()
        # CPUs have neither of these; what they change of scheduling needs no device.
        config.scheduler_config.async_scheduling = self.asynchronous
        VllmConfig.use_v2_model_runner = property(lambda _: self.second_runner)
        config.parallel_config.data_parallel_index = self.rank
        return config


_EXTRACTION = {
    "method": "extract_hidden_states",
    "num_speculative_tokens": 1,
    "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(LAYERS)}},
}
_NGRAMS = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "head_dim": 2,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "torch_dtype": "float32",
}


def rows_of(tokens: list[int], start: int = 0) -> torch.Tensor:
    """What the model computes for tokens from ``start`` on: [tokens, layers, hidden].

    A row has a digest of all tokens up to its own, its position, its token, and its layer.
    """
    digest, rows = 0, []
    for position, token in enumerate(tokens):
        digest = (31 * digest + token + 7) % _MODULUS
        rows.append((digest, position, token))
    of_tokens = torch.tensor(rows[start:], dtype=torch.float32).reshape(-1, 1, HIDDEN - 1).expand(-1, len(LAYERS), -1)
    layers = torch.tensor(LAYERS, dtype=torch.float32).reshape(1, -1, 1).expand(len(of_tokens), -1, -1)
    return torch.cat([of_tokens, layers], dim=2)


# -- the worker -------------------------------------------------------------------------------------------------------


@dataclass
class _Sequence:
    """A request as the worker knows it."""

    tokens: list[int]
    blocks: list[list[int]]
    """Of each cache group."""
    done: int
    """Tokens whose rows are in the cache."""
    drafts: tuple[int, ...] = ()
    """Guesses of the last step."""


class _Part(NamedTuple):
    """A request's part of a step."""

    request_id: str
    start: int
    """First position that is computed."""
    tokens: list[int]
    """All up to the last that is."""
    guesses: list[int]
    """Those of them that are drafts; -1 for one that is none."""


class Worker:
    """A worker of vLLM without a model: its calls are answered by the methods of this class that bear their names."""

    def __init__(self, config: VllmConfig, rank: int, seed: int) -> None:
        self.config = config
        self.seen: Counter[str] = Counter()
        """How often what happened that makes capture hard."""
        self.cache = torch.empty(0)
        self.connector: Any = None
        self._rank = rank
        self._random = Random(seed)  # noqa: S311 - tensor-parallel workers sample alike
        self._sequences: dict[str, _Sequence] = {}
        self._group = self._block_size = 0
        self._running: Any = None
        self._drafts: dict[str, list[int]] = {}
        self._second: ActiveKVConnector | None = None
        self._tapped = config.additional_config["tapped"]
        with set_current_vllm_config(config):
            self._layer = CacheOnlyAttentionLayer(len(LAYERS), HIDDEN, config.cache_config, prefix=_CACHE_LAYER)

    @contextmanager
    def in_its_process(self) -> Iterator[None]:
        """What vLLM keeps once a process is this worker's."""
        group = SimpleNamespace(rank_in_group=self._rank, world_size=self.config.parallel_config.tensor_parallel_size)
        parallel_state._TP = group
        kv_transfer_state._KV_CONNECTOR_AGENT = self.connector
        yield
        parallel_state._TP = kv_transfer_state._KV_CONNECTOR_AGENT = None

    def get_kv_cache_spec(self) -> dict[str, Any]:
        """A layer of each kind that the cache keeps."""
        block = self.config.cache_config.block_size
        attention = {"block_size": block, "num_kv_heads": 2, "head_size": 2, "dtype": torch.float32}
        specs: dict[str, Any] = {_ATTENTION_LAYER: FullAttentionSpec(**attention)}
        if self.config.additional_config["hybrid"]:
            specs[_LOCAL_LAYER] = SlidingWindowSpec(**attention, sliding_window=16)
        if not self._tapped:
            specs[_CACHE_LAYER] = self._layer.get_kv_cache_spec(self.config)
        return specs

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """All of them."""
        return _LAYOUTS

    def determine_available_memory(self) -> int:
        """Plenty; the number of blocks is set."""
        return 1 << 24

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Nothing is compiled."""
        return CompilationTimes(0.0, 0.0)

    def initialize_from_config(self, configs: list[Any]) -> None:
        """Makes the cache of hidden states and the connector."""
        config = configs[self._rank]
        groups = config.kv_cache_groups
        layer = _ATTENTION_LAYER if self._tapped else _CACHE_LAYER
        (self._group,) = [index for index, group in enumerate(groups) if layer in group.layer_names]
        self._block_size = groups[self._group].kv_cache_spec.block_size
        self.cache = torch.full((config.num_blocks, len(LAYERS), self._block_size, HIDDEN), -1.0)
        if self._tapped:
            TAPS.rows = torch.zeros((sum(step_room(self.config)), len(LAYERS), HIDDEN))
        self.connector = KVConnectorFactory.create_connector(self.config, KVConnectorRole.WORKER, config)
        caches = {_CACHE_LAYER: self.cache}
        with self.in_its_process():
            if self.config.use_v2_model_runner:
                self._second = ActiveKVConnector(self.config, caches)
            else:
                self.connector.register_kv_caches(caches)

    def execute_model(self, output: Any) -> ModelRunnerOutput | None:
        """Begins a step; it is finished by ``sample_tokens``."""
        self._update(output)
        if not output.total_num_scheduled_tokens:
            if self._second is not None:
                return self._second.no_forward(output)
            return KVConnectorModelRunnerMixin.kv_connector_no_forward(output, self.config)
        batch = [self._part(request_id, output) for request_id in output.num_scheduled_tokens]
        self._random.shuffle(batch)
        slots = torch.tensor([slot for part in batch for slot in self._slots(part)])
        told = None
        if self._second is None:
            mixin = KVConnectorModelRunnerMixin
            with self._context(slots), mixin.maybe_get_kv_connector_output(output, defer_finalize=True) as told:
                self._run_taps(batch)
        elif self._random.random() < 0.5:
            self._replay(self._second, output, batch, slots)
        else:
            with self._context(slots):
                self._second.pre_forward(output)
                self._run_taps(batch)
                self._second.finish_forward()
        self._running = output, batch, slots, told
        return None

    def sample_tokens(self, _grammar: Any) -> ModelRunnerOutput:
        """Samples, has the drafter write the rows of the step, and lets the connector go on."""
        output, batch, slots, told = self._running
        self.cache[slots // self._block_size, :, slots % self._block_size] = self._rows(batch)
        sampled = {part.request_id: self._sample(part) for part in batch}
        # A drafter writes its own slots where those of the step were.
        slots.fill_(int(slots[-1]))
        if self._second is None:
            if not self.config.additional_config["unended"]:
                KVConnectorModelRunnerMixin.finalize_kv_connector()
        elif hasattr(self._second, "finalize_step"):
            told = self._second.post_forward(output.finished_req_ids, defer_finalize=True)
            self._second.finalize_step()
        else:
            told = self._second.post_forward(output.finished_req_ids)
        places = {request_id: place for place, request_id in enumerate(sampled)}
        return ModelRunnerOutput(list(sampled), places, list(sampled.values()), kv_connector_output=told)

    def take_draft_token_ids(self) -> DraftTokenIds:
        """The guesses of the last step."""
        return DraftTokenIds(list(self._drafts), list(self._drafts.values()))

    def _update(self, output: Any) -> None:
        """Follows which requests there are and where their blocks lie."""
        for request_id in output.finished_req_ids:
            self._sequences.pop(request_id, None)
        for new in output.scheduled_new_reqs:
            tokens = new.prefill_token_ids if self._second is not None else new.prompt_token_ids
            self.seen["prefix cached"] += new.num_computed_tokens > 0
            blocks = [list(of_group) for of_group in new.block_ids]
            self._sequences[new.req_id] = _Sequence(list(tokens), blocks, new.num_computed_tokens)
        old = output.scheduled_cached_reqs
        for request_id, blocks, computed in zip(old.req_ids, old.new_block_ids, old.num_computed_tokens, strict=True):
            sequence = self._sequences[request_id]
            if request_id in old.resumed_req_ids:
                tokens = list(old.all_token_ids[request_id])
                sequence = _Sequence(tokens, [list(of_group) for of_group in blocks], computed)
                self._sequences[request_id] = sequence
                continue
            # A scheduler that runs ahead takes drafts for accepted.
            ahead = computed - sequence.done
            assert ahead == 0 or (self.config.scheduler_config.async_scheduling and ahead > 0)
            for held, of_group in zip(sequence.blocks, blocks or (), strict=False):
                held.extend(of_group)
        for source, target in output.kv_cache_block_copies or ():
            self.cache[target] = self.cache[source]
        if output.new_block_ids_to_zero:
            self.cache[output.new_block_ids_to_zero] = 0

    def _context(self, slots: torch.Tensor) -> Any:
        return set_forward_context(None, self.config, slot_mapping={_ATTENTION_LAYER: slots})

    def _replay(self, second: ActiveKVConnector, output: Any, batch: list[_Part], slots: torch.Tensor) -> None:
        """Runs as a whole graph is replayed: without a forward context, slots among the metadata of attention."""
        attention = {_ATTENTION_LAYER: SimpleNamespace(slot_mapping=slots)}
        if "input_batch" in signature(second.pre_forward).parameters:
            names = [part.request_id for part in batch]
            told = SimpleNamespace(idx_mapping=None, req_ids=names, num_tokens=len(slots))
            second.pre_forward(output, told, attn_metadata=attention)
        else:
            second.pre_forward(output, attn_metadata=attention)
        self._run_taps(batch)
        second.finish_forward()

    def _part(self, request_id: str, output: Any) -> _Part:
        """What a step computes of a request."""
        sequence, count = self._sequences[request_id], output.num_scheduled_tokens[request_id]
        guesses = list(output.scheduled_spec_decode_tokens.get(request_id, ()))
        # A scheduler that runs ahead does not know the drafts.
        guesses = [mine if told == -1 else told for mine, told in zip_longest(sequence.drafts, guesses, fillvalue=-1)]
        end = sequence.done + count
        guesses = guesses[: max(0, end - len(sequence.tokens))]
        assert len(sequence.tokens) + len(guesses) >= end
        tokens = (sequence.tokens + [max(guess, 0) for guess in guesses])[:end]
        return _Part(request_id, sequence.done, tokens, guesses)

    def _slots(self, part: _Part) -> list[int]:
        blocks, size = self._sequences[part.request_id].blocks[self._group], self._block_size
        return [blocks[at // size] * size + at % size for at in range(part.start, len(part.tokens))]

    def _rows(self, batch: list[_Part]) -> torch.Tensor:
        return torch.cat([rows_of(part.tokens, part.start) for part in batch])

    def _run_taps(self, batch: list[_Part]) -> None:
        if self._tapped:
            rows = self._rows(batch)
            TAPS.rows[: len(rows)] = rows

    def _sample(self, part: _Part) -> list[int]:
        """Samples for a request; goes on to the first draft that is not what was sampled."""
        sequence = self._sequences[part.request_id]
        self._drafts.pop(part.request_id, None)
        if len(part.tokens) < len(sequence.tokens):
            self.seen["chunked"] += 1
            sequence.done = len(part.tokens)
            return []
        sampled = []
        for guess in [*part.guesses, None]:
            sampled.append(self._random.randrange(VOCABULARY))
            if sampled[-1] != guess:
                break
        accepted = len(sampled) - 1
        self.seen["accepted"] += accepted
        self.seen["rejected"] += len(part.guesses) - accepted
        sequence.done = len(sequence.tokens) + accepted
        sequence.tokens += sampled
        drafts = [self._random.randrange(VOCABULARY) for _ in range(self._random.randrange(3))]
        sequence.drafts = tuple(drafts if self._tapped else sampled[:1])
        self._drafts[part.request_id] = list(sequence.drafts)
        return sampled


# -- the engine -------------------------------------------------------------------------------------------------------


def executor(workers: list[Worker], *, seed: int) -> type[Executor]:
    """An executor of such workers, in this process; adds them to a list."""

    class InProcess(Executor):
        """Runs every call at once, on messages that went through pickle as they would between processes."""

        def _init_executor(self) -> None:
            count = self.vllm_config.parallel_config.tensor_parallel_size
            for rank in range(count):
                self.vllm_config.compilation_config.static_forward_context.clear()
                workers.append(Worker(self.vllm_config, rank, seed))

        def collective_rpc(
            self,
            method: Any,
            timeout: Any = None,
            args: tuple[Any, ...] = (),
            kwargs: Any = None,
            non_block: Any = False,
        ) -> Any:
            del timeout
            results = []
            for worker in workers:
                call = getattr(worker, method, None) if isinstance(method, str) else None
                with worker.in_its_process():
                    results.append(call(*pickle.loads(pickle.dumps(args)), **(kwargs or {})) if call else None)  # noqa: S301 - our own
            if method in {"execute_model", "sample_tokens"} and self.kv_output_aggregator is not None:
                results = [self.kv_output_aggregator.aggregate(results)]
            if not non_block:
                return results
            future: Future[Any] = Future()
            future.set_result(results[0])
            return [future]

        def check_health(self) -> None:
            return

    return InProcess
