"""The SGLang plugin on SGLang's own requests, batches and reading of results."""

from __future__ import annotations

import importlib
import logging
import threading
from typing import TYPE_CHECKING, Any

import needs
import pytest
import torch
from sglang_server import LAYERS, Model, SglangServer, row
from sglang_standins import sglang_with_standins

from monitor.capture import introduction
from monitor.capture.client import SidecarClient
from monitor.capture.sglang import compat, register
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from double import SidecarDouble

PROMPTS = [list(range(10 * number, 10 * number + 3 + 5 * number)) for number in range(5)]
SCHEDULES = [{"overlap": overlap, "mixed": mixed} for overlap in (False, True) for mixed in (False, True)]
FOLLOWED = ["ask", "extend_parts", "decode_parts", "hidden_states", "begin", "cached_tokens", "tokens", "is_over"]
FOLLOWED += ["end_reason", "processed_tokens"]
STARTED = ["refusal", "speaks", "hello", "layers", "identify"]


@pytest.fixture
def _sglang() -> Iterator[None]:
    with sglang_with_standins(needs.sglang_source()):
        yield


@pytest.fixture
def attach(_sglang: None, address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., SglangServer]]:
    """Makes servers that the plugin is attached to."""
    clients: list[SidecarClient] = []

    def connect(*args: Any, **kwargs: Any) -> SidecarClient:
        clients.append(SidecarClient(*args, **kwargs))
        return clients[-1]

    def make(**schedule: Any) -> SglangServer:
        from sglang.srt.plugins.hook_registry import HookRegistry

        monkeypatch.setenv("AFFECT_SIDECAR", address)
        monkeypatch.setenv("AFFECT_WEIGHTS_FINGERPRINT", "f00d")
        register()
        HookRegistry.apply_hooks()
        return SglangServer(**schedule)

    monkeypatch.setattr(introduction, "SidecarClient", connect)
    yield make
    for client in clients:
        client.close(timeout=0.2)


@pytest.fixture
def listening(sidecar: Callable[..., SidecarDouble]) -> SidecarDouble:
    """A sidecar."""
    return sidecar()


def connected(server: SglangServer, listening: SidecarDouble) -> SglangServer:
    """The server, once it has introduced itself."""
    for thread in threading.enumerate():
        if thread.name == "affect-introduction":
            thread.join()
    listening.wait(lambda: listening.frames)
    return server


def submit_all(server: SglangServer, **options: Any) -> list[Any]:
    """Requests of all lengths, under way at once."""
    return [server.submit(f"r{number}", prompt, 5, **options) for number, prompt in enumerate(PROMPTS)]


def plain(schedule: dict[str, Any], **options: Any) -> tuple[list[list[int]], list[Any]]:
    """Outputs and lists of hidden states of a server without the plugin."""
    server = SglangServer(**schedule)
    requests = submit_all(server, **options)
    server.run()
    return [list(request.output_ids) for request in requests], list(server.lists.values())


def ended(listening: SidecarDouble, count: int) -> dict[str, Any]:
    """Ends of the requests, by the id of their caller, once all have come."""
    listening.wait(lambda: len(listening.events("end")) == count)
    ids = {request_id: start.external_id for request_id, start in listening.events("start")}
    return {ids[request_id]: end for request_id, end in listening.events("end")}


def check_rows(listening: SidecarDouble, request: Any) -> dict[int, int]:
    """Each row of a request came once and is right; returns positions and reasons of those told as missing."""
    (request_id,) = [each for each, start in listening.events("start") if start.external_id == request.rid]
    came = listening.rows()[request_id]
    (end,) = [each for of, each in listening.events("end") if of == request_id]
    tokens = [*request.origin_input_ids, *request.output_ids]
    missing: dict[int, int] = {}
    for of, gap in listening.events("gap"):
        if of == request_id:
            missing.update(dict.fromkeys(range(gap.start, gap.start + gap.count), gap.reason))
            assert list(gap.token_ids) == tokens[gap.start : gap.start + gap.count]
    assert sorted([*came, *missing]) == list(range(end.total_tokens))
    for position, (token, hidden) in came.items():
        assert token == tokens[position]
        assert torch.equal(hidden, row(token, position))
    return missing


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_row_comes_once(
    attach: Callable[..., SglangServer], listening: SidecarDouble, schedule: dict[str, Any]
) -> None:
    """Under chunked prefill, mixed batches and overlap all rows but the last sampled token's come, each once."""
    server = connected(attach(**schedule), listening)
    requests = submit_all(server)
    server.run()
    ends = ended(listening, len(requests))
    for request in requests:
        assert check_rows(listening, request) == {}
        assert ends[request.rid].total_tokens == len(request.origin_input_ids) + 4
        assert ends[request.rid].reason == ingest_pb2.END_REASON_LENGTH


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_answers_and_lists_are_those_of_a_server_without_the_plugin(
    attach: Callable[..., SglangServer], listening: SidecarDouble, schedule: dict[str, Any]
) -> None:
    """Callers who ask for hidden states get the lists SGLang makes, in each of its modes; others get none."""
    for mode in (False, True, "last"):
        expected = plain(schedule, return_hidden_states=mode)
        server = connected(attach(**schedule), listening)
        requests = submit_all(server, return_hidden_states=mode)
        server.run()
        assert ([list(request.output_ids) for request in requests], list(server.lists.values())) == expected
        assert any(server.lists.values()) == bool(mode)


def test_tokens_of_the_radix_cache_are_told_as_gaps(
    attach: Callable[..., SglangServer], listening: SidecarDouble
) -> None:
    """Tokens that an earlier request computed are a gap with their ids, and the rest of the rows come."""
    server = connected(attach(chunk=4), listening)
    first = server.submit("first", list(range(10, 22)), 4)
    server.run()
    second = server.submit("second", [*first.origin_input_ids, *first.output_ids[:2], 7, 8, 9, 6, 5], 3)
    server.run()
    ended(listening, 2)
    assert check_rows(listening, first) == {}
    assert check_rows(listening, second) == dict.fromkeys(range(14), ingest_pb2.GAP_REASON_PREFIX_CACHED)
    assert listening.frames[0].hello.lacks_cached_prefixes


@pytest.mark.parametrize("overlap", [False, True])
def test_what_a_retraction_has_computed_anew_comes_once(
    attach: Callable[..., SglangServer], listening: SidecarDouble, *, overlap: bool
) -> None:
    """A request that lost its memory on the way has all its rows once, as if nothing had happened."""
    server = connected(attach(overlap=overlap), listening)
    kept, retracted = server.submit("kept", [11, 12, 13], 8), server.submit("retracted", [21, 22], 8)
    for _ in range(4):
        server.step()
    server.retract(retracted)
    server.run()
    ended(listening, 2)
    assert check_rows(listening, kept) == check_rows(listening, retracted) == {}


def test_a_start_tells_who_asked(attach: Callable[..., SglangServer], listening: SidecarDouble) -> None:
    """Labels, session and the caller's id are told; the id of the request is unique though callers use theirs again."""
    server = connected(attach(), listening)
    told = {"custom_params": {"affect_labels": {"policy": "service-desk", "tier": 2}}, "session_id": "s1"}
    server.submit("mine", [11, 12], 2, **told)
    server.run()
    server.submit("mine", [31, 32, 33], 2, custom_params={"affect_labels": "none"})
    server.run()
    listening.wait(lambda: len(listening.events("end")) == 2)
    (first, start), (second, bare) = listening.events("start")
    assert (start.external_id, start.session_id, start.prompt_length) == ("mine", "s1", 2)
    assert dict(start.labels) == {"policy": "service-desk", "tier": "2"}
    assert (bare.external_id, bare.session_id, bare.prompt_length, dict(bare.labels)) == ("mine", "", 3, {})
    assert first != second


@pytest.mark.parametrize("overlap", [False, True])
def test_ends_tell_why(attach: Callable[..., SglangServer], listening: SidecarDouble, *, overlap: bool) -> None:
    """Stopped, aborted in the middle of a prefill, and dropped while waiting: each has its end, with what was seen."""
    server = connected(attach(overlap=overlap), listening)
    stops = server.submit("stops", [11, 12, 13], 50, stop_token_ids=set(range(10, 55)))
    server.run()
    server.submit("chunked", list(range(60, 80)), 4)
    server.step()
    server.abort_chunked()
    server.run()
    forgotten = server.submit("forgotten", [41, 42], 9)
    for _ in range(3):
        server.step()
    server.retract(forgotten)
    server.step()
    server.forget(forgotten)
    del forgotten
    server.submit("next", [51, 52], 2)
    server.run()
    ends = ended(listening, 4)
    assert ends["stops"].reason == ingest_pb2.END_REASON_STOP
    assert ends["stops"].total_tokens == 3 + len(stops.output_ids) - 1
    assert ends["forgotten"].reason == ingest_pb2.END_REASON_ABORTED
    assert (ends["chunked"].reason, ends["chunked"].total_tokens) == (ingest_pb2.END_REASON_ABORTED, 6)


def test_health_checks_and_adapters_are_not_followed(
    attach: Callable[..., SglangServer], listening: SidecarDouble
) -> None:
    """Neither SGLang's questions to itself nor other models come to the sidecar."""
    server = connected(attach(), listening)
    server.submit("HEALTH_CHECK_1", [1], 1)
    server.submit("adapter", [11, 12], 2, lora_id="style")
    server.submit("plain", [21, 22], 2)
    server.run()
    assert set(ended(listening, 1)) == {"plain"}


def test_rows_computed_on_a_cache_that_failed_to_load_do_not_come(
    attach: Callable[..., SglangServer], listening: SidecarDouble
) -> None:
    """What SGLang discards is not told; the request ends as aborted with the rows it had before."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    server = connected(attach(), listening)
    spoilt = server.submit("spoilt", list(range(10, 18)), 4)
    server.step()
    spoilt.discard_output_reason = FINISH_ABORT("the cache failed to load")
    server.run()
    end = ended(listening, 1)["spoilt"]
    assert (end.reason, end.total_tokens) == (ingest_pb2.END_REASON_ABORTED, 6)
    assert check_rows(listening, spoilt) == {}


@pytest.mark.parametrize("broken", [*FOLLOWED, *STARTED])
def test_an_error_in_any_hook_leaves_serving_as_it_is(
    attach: Callable[..., SglangServer],
    listening: SidecarDouble,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    """Whatever part of capture fails, every caller gets the answer and the lists he would have got, and a log line."""
    expected = plain({"overlap": True}, return_hidden_states=True)

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError("injected")

    if broken in STARTED:
        monkeypatch.setattr(compat, broken, fail)
        server = attach(overlap=True)
    else:
        server = connected(attach(overlap=True), listening)
        monkeypatch.setattr(compat, broken, fail)
    requests = submit_all(server, return_hidden_states=True)
    server.run()
    assert ([list(request.output_ids) for request in requests], list(server.lists.values())) == expected
    assert "injected" in caplog.text
    if broken in FOLLOWED:
        listening.wait(lambda: any(frame.capture_errors for frame in listening.frames))


def test_a_batch_that_could_not_be_followed_costs_rows_not_truth(
    attach: Callable[..., SglangServer], listening: SidecarDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests under way in an error get no more rows but an end that counts all tokens; later ones are whole."""
    server = connected(attach(), listening)
    hurt = server.submit("hurt", [11, 12, 13], 6)
    server.step()
    server.step()
    with monkeypatch.context() as injected:
        injected.setattr(compat, "hidden_states", lambda _result: torch.zeros(1, 3))
        injected.setattr(compat, "decode_parts", lambda _batch: 1 / 0)
        server.step()
    server.run()
    whole = server.submit("whole", [31, 32, 33], 6)
    server.run()
    ends = ended(listening, 2)
    assert check_rows(listening, whole) == {}
    assert ends["hurt"].total_tokens == len(hurt.origin_input_ids) + 5
    rows = {start.external_id: len(listening.rows()[request_id]) for request_id, start in listening.events("start")}
    assert rows["hurt"] == 4
    (gap,) = (gap for _, gap in listening.events("gap"))
    assert (gap.start, list(gap.token_ids), gap.reason) == (
        4, [*hurt.origin_input_ids, *hurt.output_ids][4:-1], ingest_pb2.GAP_REASON_DROPPED,
    )  # fmt: skip


def test_capture_that_keeps_failing_asks_for_no_more_hidden_states(
    attach: Callable[..., SglangServer], listening: SidecarDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the breaker is open SGLang is spared the copies to the host."""
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    server = connected(attach(), listening)
    monkeypatch.setattr(compat, "hidden_states", lambda _result: 1 / 0)
    before = server.submit("before", [11, 12, 13], 8)
    server.run()
    after = server.submit("after", [21, 22], 2)
    server.run()
    assert before.return_hidden_states_mode == CaptureHiddenMode.FULL
    assert after.return_hidden_states_mode == CaptureHiddenMode.NULL


def test_serving_goes_on_without_a_sidecar(attach: Callable[..., SglangServer]) -> None:
    """With nobody listening every caller is answered as ever."""
    expected = plain({})
    server = attach()
    requests = submit_all(server)
    server.run()
    assert ([list(request.output_ids) for request in requests], list(server.lists.values())) == expected


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        ({"attn_dp_rank": 2, "attn_dp_size": 4, "dp_rank": 2}, 2),
        ({"dp_rank": 3}, 3),
        ({"attn_tp_rank": 1}, None),
        ({"attn_cp_rank": 1}, None),
    ],
)
def test_one_rank_speaks_for_each_data_parallel_copy(
    attach: Callable[..., SglangServer],
    listening: SidecarDouble,
    monkeypatch: pytest.MonkeyPatch,
    ranks: dict[str, int],
    told: int | None,
) -> None:
    """The first tensor- and context-parallel rank introduces itself with the data-parallel one; others stay silent."""
    from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode

    context: Any = importlib.import_module("sglang.srt.runtime_context")
    for name, rank in ranks.items():
        monkeypatch.setattr(context.get_parallel(), name, rank)
    server = attach()
    if told is not None:
        hello = connected(server, listening).worker and listening.frames[0].hello
        assert hello.data_parallel_rank == told
        assert hello.engine_id.endswith(":30000")
        assert (hello.model_name, hello.weights_fingerprint) == ("tiny", "f00d")
        assert (tuple(hello.layers), hello.hidden_size) == (LAYERS, 4)
    request = server.submit("r", [11, 12], 2)
    server.run()
    assert request.return_hidden_states_mode == (CaptureHiddenMode.NULL if told is None else CaptureHiddenMode.FULL)
    assert bool(listening.frames) == (told is not None)


def _no_layers() -> None:
    _context().get_exec().features.aux_hidden_state_capture = None


def _diffusion() -> None:
    _context().get_exec().dllm.dllm_algorithm = "LowConfidence"


def _multiplexed() -> None:
    _context().get_disagg().enable_pdmux = True


def _context() -> Any:
    return importlib.import_module("sglang.srt.runtime_context")


@pytest.mark.parametrize(
    ("configure", "model", "reason"),
    [
        (_no_layers, Model, "--enable-return-aux-hidden-states"),
        (_diffusion, Model, "a token at a time"),
        (_multiplexed, Model, "--enable-pdmux"),
        (lambda: None, type("Gemma3ForCausalLM", (Model,), {}), "less than the residual stream"),
    ],
)
def test_a_server_that_cannot_be_captured_is_told_why(
    attach: Callable[..., SglangServer],
    caplog: pytest.LogCaptureFixture,
    configure: Callable[[], None],
    model: type[Model],
    reason: str,
) -> None:
    """Where hidden states cannot be had one line of the log says why, and serving goes on."""
    configure()
    server = attach(model=model())
    request = server.submit("r", [11, 12], 3)
    server.run()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert reason in errors[0].message
    assert len(request.output_ids) == 3


@pytest.mark.usefixtures("_sglang")
def test_an_unknown_version_is_not_touched(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a version that capture was not made for no hook is registered, and one line says so."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    version: Any = importlib.import_module("sglang.version")
    monkeypatch.setenv("AFFECT_SIDECAR", address)
    monkeypatch.setattr(version, "__version__", "0.6.0")
    register()
    assert not HookRegistry._hooks
    assert [record.message for record in caplog.records if "0.6.0" in record.message]


@pytest.mark.usefixtures("_sglang")
def test_without_a_sidecar_named_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where AFFECT_SIDECAR is not set the plugin leaves SGLang as it is."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.delenv("AFFECT_SIDECAR", raising=False)
    register()
    assert not HookRegistry._hooks
