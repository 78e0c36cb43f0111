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
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

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

LAYERS, HIDDEN, VOCABULARY = (0, 1, 2), 4, 6
_CACHE_LAYER = "cache_only_layers.2"
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
    """

    asynchronous: bool = False
    second_runner: bool = False
    hybrid: bool = False
    priority: bool = False
    workers: int = 1
    rank: int = 0

    def config(self, folder: Path) -> VllmConfig:
        """VLLM's configuration for it."""
        registry._run_in_subprocess = lambda look: look()  # one more process that imports vLLM takes half a minute
        VllmConfig.use_v2_model_runner = property(lambda _: False)
        (folder / "config.json").write_text(json.dumps(_MODEL))
        speculation = {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": list(LAYERS)}},
        }
        transfer = {"kv_connector": "AffectConnector", "kv_role": "kv_producer", "engine_id": "engine"}
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
            speculative_config=speculation,
            kv_transfer_config=transfer,
            additional_config={"hybrid": self.hybrid},
        ).create_engine_config()
        # CPUs have neither of these; what they change of scheduling needs no device.
        config.scheduler_config.async_scheduling = self.asynchronous
        VllmConfig.use_v2_model_runner = property(lambda _: self.second_runner)
        config.parallel_config.data_parallel_index = self.rank
        return config


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


def rows_of(tokens: list[int]) -> torch.Tensor:
    """What the model computes for tokens, [tokens, layers, hidden]: a digest of all so far, position, token, layer."""
    digest, rows = 0, []
    for position, token in enumerate(tokens):
        digest = (31 * digest + token + 7) % _MODULUS
        rows.append([[digest, position, token, layer] for layer in LAYERS])
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, len(LAYERS), HIDDEN)


# -- the worker -------------------------------------------------------------------------------------------------------


@dataclass
class _Sequence:
    """A request as the worker knows it."""

    tokens: list[int]
    blocks: list[list[int]]
    """Of each cache group."""
    done: int
    """Tokens whose rows are in the cache."""
    draft: int | None = None
    """Guess of the last step."""


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
        self._group = 0
        self._running: Any = None
        self._drafts: dict[str, int] = {}
        self._second: ActiveKVConnector | None = None
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
        specs = {"layers.0": FullAttentionSpec(**attention), _CACHE_LAYER: self._layer.get_kv_cache_spec(self.config)}
        if self.config.additional_config.get("hybrid"):
            specs["layers.1"] = SlidingWindowSpec(**attention, sliding_window=16)
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
        (self._group,) = [index for index, group in enumerate(groups) if _CACHE_LAYER in group.layer_names]
        size = groups[self._group].kv_cache_spec.block_size
        self.cache = torch.full((config.num_blocks, len(LAYERS), size, HIDDEN), -1.0)
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
        told = None
        if self._second is not None:
            self._second.pre_forward(output)
            self._second.finish_forward()
        else:
            mixin = KVConnectorModelRunnerMixin
            with (
                set_forward_context(None, self.config),
                mixin.maybe_get_kv_connector_output(output, defer_finalize=True) as told,
            ):
                pass
        self._running = output, told
        return None

    def sample_tokens(self, _grammar: Any) -> ModelRunnerOutput:
        """Writes the rows of the step, samples, and lets the connector go on."""
        output, told = self._running
        sampled = {request_id: self._run(request_id, output) for request_id in output.num_scheduled_tokens}
        if self._second is None:
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
        return DraftTokenIds(list(self._drafts), [[draft] for draft in self._drafts.values()])

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

    def _run(self, request_id: str, output: Any) -> list[int]:
        """Computes the tokens of a request in a step; returns what was sampled."""
        sequence, count = self._sequences[request_id], output.num_scheduled_tokens[request_id]
        guesses = list(output.scheduled_spec_decode_tokens.get(request_id, ()))
        if guesses == [-1] and sequence.draft is not None:
            guesses = [sequence.draft]
        start, known = sequence.done, len(sequence.tokens)
        end = start + count
        assert max(0, end - known) == len(guesses)
        self._write(sequence, start, (sequence.tokens + [max(guess, 0) for guess in guesses])[:end])
        self._drafts.pop(request_id, None)
        if end < known:
            self.seen["chunked"] += 1
            sequence.done = end
            return []
        sampled = [self._random.randrange(VOCABULARY)]
        sequence.done = known
        self.seen["rejected"] += bool(guesses) and guesses != sampled
        self.seen["accepted"] += guesses == sampled
        if guesses == sampled:
            sampled.append(self._random.randrange(VOCABULARY))
            sequence.done += 1
        sequence.tokens += sampled
        sequence.draft = self._drafts[request_id] = sampled[0]
        return sampled

    def _write(self, sequence: _Sequence, start: int, tokens: list[int]) -> None:
        size, blocks = self.cache.shape[2], sequence.blocks[self._group]
        for position, row in enumerate(rows_of(tokens)[start:], start):
            self.cache[blocks[position // size], :, position % size] = row


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
