"""What the SGLang plugin takes for granted of SGLang, held against SGLang's own files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import needs
import pytest
from sglang_server import SglangServer
from sglang_standins import sglang_with_standins

from monitor.capture.sglang import compat

if TYPE_CHECKING:
    from collections.abc import Iterator

SRT = Path("sglang", "srt")
READ_OF_A_REQUEST = [
    "rid", "origin_input_ids", "output_ids", "sampling_params", "session_id", "lora_id", "input_embeds",
    "positional_embed_overrides", "return_hidden_states", "return_hidden_states_mode", "beam_group", "cached_tokens",
    "finished_reason", "discard_output_reason", "finished", "seqlen",
]  # fmt: skip
READ_OF_A_BATCH = ["reqs", "prefix_lens", "extend_lens", "seq_lens_cpu"]
READ_OF_A_PROCESSOR = ["is_generation", "disaggregation_mode", "model_config", "model_worker"]
WRITTEN = {
    # Settings that are read lie where SGLang itself reads them.
    "model_executor/model_runner_components/spec_aux_hidden_state.py": [
        "features = get_exec().features",
        "features.aux_hidden_state_capture",
    ],
    "model_executor/model_runner.py": ["get_exec().dllm.dllm_algorithm"],
    "managers/scheduler.py": [
        "get_disagg().enable_pdmux",
        "get_serving().served_model_name",
        "load_plugins()",
        "session_id=recv_req.session_id",
    ],
    "managers/scheduler_components/kv_events_publisher.py": ["parallel.attn_dp_size", "parallel.dp_rank"],
    "runtime_context.py": ['"attn_dp_rank"', '"attn_cp_rank"', '"attn_tp_rank"'],
    "managers/tp_worker.py": ["self.tokenizer = get_tokenizer(", "def model_runner(self)"],
    # One pipeline stage, no draft model, all rows of a batch.
    "arg_groups/validation_hook.py": [
        "if cfg.pp_size != 1:",
        "speculative_algorithm=None,",
        "aux_hidden_state_capture=method.lower(),",
    ],
    "arg_groups/serving_hook.py": ['return_hidden_states_mode="full",'],
    "model_executor/forward_batch_info.py": ["get_server_return_hidden_states_mode(),"],
    # Hidden states reach the host where a batch asks, each batch in memory of its own.
    "managers/utils.py": ["if return_hidden_states and self.logits_output.hidden_states is not None:"],
    "utils/common.py": ["host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)"],
    # Layers: what enters block i, for an id of the flag that is one less.
    "models/llama.py": [
        "self.model.layers_to_capture = [val + 1 for val in layer_ids]",
        "if i in self.layers_to_capture",
    ],
    # What callers send and requests keep.
    "entrypoints/openai/protocol.py": ['"custom_params": self.custom_params,', "session_id: Optional[str] = None"],
    "sampling/sampling_params.py": ["Dict[str, _JsonScalar],"],
    "managers/scheduler_components/batch_result_processor.py": ["if store and req.return_hidden_states:"],
}


@pytest.fixture(scope="module")
def source() -> Iterator[Path]:
    """Files of SGLang, importable."""
    folder = needs.sglang_source()
    with sglang_with_standins(folder):
        yield folder


def processor() -> Any:
    """SGLang's reader of results."""
    from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor

    return SchedulerBatchResultProcessor


@pytest.mark.usefixtures("source")
def test_hooked_methods_take_what_the_hooks_take() -> None:
    """Both readers of results take a batch and its result, and are called by position."""
    for name in ("process_batch_result_prefill", "process_batch_result_decode"):
        assert list(inspect.signature(getattr(processor(), name)).parameters) == ["self", "batch", "result"]


def test_readers_of_results_are_called_by_position(source: Path) -> None:
    """The scheduler hands batch and result over by position, as the hooks expect them."""
    scheduler = (source / SRT / "managers/scheduler.py").read_text()
    for name in ("process_batch_result_prefill", "process_batch_result_decode"):
        assert f"self.batch_result_processor.{name}(batch, result)" in scheduler


@pytest.mark.usefixtures("source")
def test_the_registry_wraps_what_is_hooked() -> None:
    """Registered hooks end up around SGLang's own methods, which are called with what the caller gave."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.plugins.hook_registry import HookRegistry

    hooked = {
        name: getattr(processor(), name) for name in ("process_batch_result_prefill", "process_batch_result_decode")
    }
    init = Req.__init__
    calls: list[tuple[str, int]] = []
    compat.register_hooks(
        processor_made=lambda *args, **_kwargs: calls.append(("processor", len(args))),
        request_made=lambda *args, **_kwargs: calls.append(("request", len(args))),
        prefill_done=lambda *args: calls.append(("prefill", len(args))),
        decode_done=lambda *args: calls.append(("decode", len(args))),
    )
    HookRegistry.apply_hooks()
    for name, original in hooked.items():
        assert getattr(processor(), name).__wrapped__ is original
    assert Req.__init__.__wrapped__ is init
    server = SglangServer()
    server.submit("r", [11, 12], 2)
    server.run()
    assert calls == [("processor", 2), ("request", 6), ("prefill", 4), ("decode", 4)]


@pytest.mark.usefixtures("source")
def test_what_is_read_is_there() -> None:
    """Requests, batches and the reader of results have every attribute that capture reads."""
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    request = SglangServer().submit("r", [11, 12])
    assert [name for name in READ_OF_A_REQUEST if not hasattr(request, name)] == []
    assert set(READ_OF_A_BATCH) <= set(ScheduleBatch.__dataclass_fields__)
    assert set(READ_OF_A_PROCESSOR) <= set(processor().__dataclass_fields__)


@pytest.mark.usefixtures("source")
def test_copies_of_batches_keep_what_is_read() -> None:
    """Under overlap results are read with a copy of their batch: positions are still in it."""
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    batch = ScheduleBatch(reqs=[], prefix_lens=[3], extend_lens=[2], seq_lens_cpu=7, return_hidden_states=True)
    copied = batch.copy()
    assert (copied.prefix_lens, copied.extend_lens, copied.seq_lens_cpu) == ([3], [2], 7)
    assert copied.return_hidden_states


@pytest.mark.usefixtures("source")
def test_reasons_of_ends_are_known() -> None:
    """SGLang tells reasons apart by the names that capture knows."""
    from sglang.srt.managers import schedule_batch

    told = {
        schedule_batch.FINISH_MATCHED_TOKEN(1).to_json()["type"],
        schedule_batch.FINISH_MATCHED_STR("x").to_json()["type"],
        schedule_batch.FINISH_LENGTH(1).to_json()["type"],
        schedule_batch.FINISH_ABORT().to_json()["type"],
    }
    assert told == {"stop", "length", "abort"}


@pytest.mark.parametrize(("file", "snippet"), [(file, each) for file, found in WRITTEN.items() for each in found])
def test_sglang_is_written_as_capture_takes_it(source: Path, file: str, snippet: str) -> None:
    """Files that cannot be imported without a GPU still say what capture relies on."""
    assert snippet in (source / SRT / file).read_text()


def test_the_version_is_one_that_capture_knows(source: Path) -> None:
    """The files are of a version that capture was made for."""
    assert source
    assert compat.is_known()


@pytest.mark.usefixtures("source")
def test_the_entry_point_is_in_the_group_that_sglang_loads() -> None:
    """SGLang finds the plugin by the group in which the package declares it."""
    tomllib = pytest.importorskip("tomllib")
    from sglang.srt.plugins import GENERAL_PLUGINS_GROUP

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"][GENERAL_PLUGINS_GROUP] == {"affect_monitor": "monitor.capture.sglang:register"}
