"""Checks of capture against one version of vLLM, in a process of its own: imports of two versions do not mix.

``python vllm_checks.py RESULTS CHECK...`` with that version first on the path; writes what is wrong with each check as
JSON, null where nothing is.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import logging
import math
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, SupportsHMA
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import SamplingParams
from vllm.v1.request import Request, RequestStatus
from vllm_engine import HIDDEN, LAYERS, Setup
from vllm_play import Listener, Play

from monitor.capture import vllm as plugin
from monitor.capture.vllm import compat
from monitor.capture.vllm import connector as connector_module
from monitor.capture.vllm.connector import AffectConnector, AffectMetadata
from monitor.wire.v1 import ingest_pb2

FOLDER = Path(tempfile.mkdtemp())
SEEDS = (0, 4)
TROUBLES = frozenset(("aborted", "accepted", "chunked", "held", "preempted", "prefix cached", "rejected", "reset"))
"""What has to happen in every kind of engine."""


class Log(logging.Handler):
    """Keeps what capture logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        self.lines.append(record.getMessage())


LOG = Log()


# -- the shape of things ----------------------------------------------------------------------------------------------


def hooks() -> None:
    """Every hook that the connector overrides is one of vLLM's, and takes what vLLM passes."""
    for name, ours in vars(AffectConnector).items():
        if name.startswith("_"):
            continue
        theirs = next((vars(base)[name] for base in _BASES if name in vars(base)), None)
        assert theirs is not None, f"vLLM has no hook {name}"
        assert type(ours) is type(theirs), name
        if not isinstance(ours, property):
            _takes_all(name, inspect.signature(_function(ours)), inspect.signature(_function(theirs)))


def _takes_all(name: str, ours: inspect.Signature, theirs: inspect.Signature) -> None:
    """Compares two signatures: what can be passed to theirs can be passed to ours."""
    mine = dict(ours.parameters)
    for parameter in theirs.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            assert any(each.kind is parameter.kind for each in mine.values()), f"{name} takes no {parameter}"
        elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
            assert mine.pop(parameter.name, None) is not None, f"{name} takes no {parameter}"
    for parameter in mine.values():
        variable = parameter.kind in {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
        assert variable or parameter.default is not parameter.empty, f"{name} is not passed {parameter}"


_BASES = [*KVConnectorBase_V1.__mro__, *SupportsHMA.__mro__]


def _function(member: Any) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(member, "__func__", member)
    return function


def completeness() -> None:
    """Nothing that vLLM demands is missing, and vLLM makes the connector by its name."""
    assert not AffectConnector.__abstractmethods__
    plugin.register()
    plugin.register()
    made = KVConnectorFactory.get_connector_class_by_name(plugin.CONNECTOR)
    assert made is AffectConnector


def imports() -> None:
    """Everything that capture imports from vLLM is there, wherever it is imported."""
    for file in sorted(Path(plugin.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"{file.name}: {node.module} has no {name.name}"


def known() -> None:
    """This is a version that capture knows."""
    assert compat.is_known(), vllm.__version__


# -- requests ---------------------------------------------------------------------------------------------------------


def _request(**fields: Any) -> Request:
    usual = {"request_id": "1_chatcmpl-mine-0123abcd", "prompt_token_ids": [1, 2, 3], "pooling_params": None}
    return Request(**{**usual, "sampling_params": SamplingParams(max_tokens=2), **fields})


def requests() -> None:
    """What is read of a request is what vLLM keeps of it."""
    told = {"affect": {"labels": {"route": "desk", "turn": 3}, "session_id": "s", "external_id": "e"}}
    sampling = SamplingParams(max_tokens=2, extra_args={"kv_transfer_params": told})
    begin = compat.begin(_request(sampling_params=sampling))
    assert begin == ("1_chatcmpl-mine-0123abcd", 3, {"route": "desk", "turn": "3"}, "s", "e"), begin
    for wrong in ("text", {"affect": "text"}, {"affect": {"labels": [1]}}):
        sampling = SamplingParams(max_tokens=2, extra_args={"kv_transfer_params": wrong})
        assert compat.begin(_request(sampling_params=sampling))[2] == {}, wrong
    begin = compat.begin(_request(session_id="of the header"))
    assert begin[2:] == ({}, "of the header", "chatcmpl-mine"), begin
    request = _request()
    tokens = compat.tokens(request)
    request.append_output_token_ids([5])
    assert list(tokens) == [1, 2, 3, 5]


def followed() -> None:
    """Plain generation is followed, and nothing else."""
    assert compat.is_followed(_request())
    assert not compat.is_followed(_request(resumable=True))
    assert not compat.is_followed(_request(lora_request=SimpleNamespace(adapter_id=1)))
    assert not compat.is_followed(_request(sampling_params=None, pooling_params=PoolingParams()))
    assert not compat.is_followed(_request(prompt_embeds=torch.zeros(3, HIDDEN)))


def ends() -> None:
    """Every way in which a request may end has a reason on the wire."""
    stop, length = ingest_pb2.END_REASON_STOP, ingest_pb2.END_REASON_LENGTH
    special = {RequestStatus.FINISHED_STOPPED: stop, RequestStatus.FINISHED_LENGTH_CAPPED: length}
    for status in RequestStatus:
        if RequestStatus.is_finished(status):
            right = special.get(status, ingest_pb2.END_REASON_ABORTED)
            assert compat.end_reason(SimpleNamespace(status=status)) == right, status


# -- the scheduler ----------------------------------------------------------------------------------------------------


def _play(asynchronous: bool, second_runner: bool, *, tapped: bool = False) -> None:
    seen: Counter[str] = Counter()
    for hybrid in (False, True):
        setup = Setup(asynchronous, second_runner, hybrid=hybrid, priority=hybrid, tapped=tapped)
        for seed in SEEDS:
            play = Play(setup, seed, FOLDER)
            play.run()
            play.judge_serving()
            play.judge_rows()
            play.judge_whole(play.requests)
            assert not play.listener.errors
            # What a preemption discarded of a request that ended before it was computed again cannot be had.
            assert not play.listener.dropped or play.seen["ended while preempted"]
            assert tapped == bool(play.listener.cached)
            seen += play.seen + play.workers[0].seen
    ahead = {"ended while preempted"} if asynchronous and not tapped else set()
    troubles = (TROUBLES - {"held"} if tapped else TROUBLES) | ahead
    assert troubles <= set(+seen), f"never seen: {troubles - set(+seen)}"


def scheduling() -> None:
    """Every row once, the right one, none missing."""
    _play(asynchronous=False, second_runner=False)


def scheduling_of_the_second_runner() -> None:
    """The same with version 2 of the model runner."""
    _play(asynchronous=False, second_runner=True)


def scheduling_ahead() -> None:
    """The same where steps are scheduled ahead of their tokens."""
    _play(asynchronous=True, second_runner=False)


def scheduling_ahead_of_the_second_runner() -> None:
    """The same with both."""
    _play(asynchronous=True, second_runner=True)


def taps() -> None:
    """Rows from taps: every one that was computed, and gaps for prefixes from the cache."""
    for second_runner in (False, True):
        _play(asynchronous=False, second_runner=second_runner, tapped=True)


def taps_ahead() -> None:
    """The same where steps are scheduled ahead of their tokens."""
    for second_runner in (False, True):
        _play(asynchronous=True, second_runner=second_runner, tapped=True)


def taps_without_ends() -> None:
    """The same on a stage whose steps vLLM does not end: the next one does."""
    play = Play(Setup(asynchronous=True, tapped=True, unended=True), 0, FOLDER)
    play.run()
    play.judge_serving()
    play.judge_rows()
    play.judge_whole(play.requests)
    assert play.listener.cached


# -- several workers, several engines ---------------------------------------------------------------------------------


def tensor_parallel() -> None:
    """One worker of several sends, and blocks are released though the others say nothing."""
    play = Play(Setup(asynchronous=True, workers=2), 0, FOLDER)
    play.run()
    play.judge_serving()
    play.judge_rows()
    play.judge_whole(play.requests)
    assert play.scheduler.connector.get_finished_count() == 1
    assert play.seen["held"]
    for silent in play.workers[1:]:
        assert silent.connector._introduction is None
        silent.connector.bind_connector_metadata(_held("x"))
        assert silent.connector.get_finished(set()) == (None, None)
    play.workers[0].connector.bind_connector_metadata(_held("x"))
    assert play.workers[0].connector.get_finished(set()) == ({"x"}, None)


def data_parallel() -> None:
    """Each rank is an engine of its own, and says which."""
    for rank in (0, 2):
        play = Play(Setup(rank=rank), rank, FOLDER, requests=4)
        play.run()
        play.judge_whole(play.requests)
        hello = play.listener.hello
        assert (hello.engine_id, hello.data_parallel_rank) == ("engine", rank)
        assert (list(hello.layers), hello.hidden_size) == (list(LAYERS), HIDDEN)
        assert hello.model_name == "tiny"
        assert not hello.lacks_cached_prefixes


def _held(request_id: str) -> AffectMetadata:
    metadata = AffectMetadata(connector_module.StepPlan())
    metadata.plan.held.append(request_id)
    return metadata


# -- errors -----------------------------------------------------------------------------------------------------------


class Fault:
    """An error in place of a function.

    Args:
        owner: Whose function.
        name: Its name.
        times: How often it fails; then it works again.
    """

    def __init__(self, owner: Any, name: str, times: float) -> None:
        self._owner, self._name = owner, name
        self._kept = vars(owner).get(name)
        self._works = getattr(owner, name)
        self.left = times
        setattr(owner, name, self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Fails, or works."""
        if self.left <= 0:
            return self._works(*arguments, **named)
        self.left -= 1
        raise RuntimeError("injected")

    def mend(self) -> None:
        """Puts the function back."""
        self.left = 0
        if self._kept is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._kept)


def _inside(play: Play) -> dict[str, tuple[Any, str]]:
    """What runs inside the hooks while an engine serves."""
    ledger, sender = play.scheduler.connector._ledger, play.workers[0].connector
    emitter, tapped = sender._emitter, sender._tapped
    if tapped is not None:
        return {"step_slots": (compat, "step_slots"), **{name: (tapped, name) for name in ("begin", "_follow", "take")}}
    return {
        **{name: (compat, name) for name in ("is_followed", "begin", "tokens", "scheduled", "runs", "end_reason")},
        **{f"ledger.{name}": (ledger, name) for name in ("begin", "fill", "finish")},
        "source.take": (emitter._source, "take"),
        "copies.hand_on": (emitter._copies, "hand_on"),
        "introduction.client": (emitter, "_client"),
        **{f"client.{name}": (play.listener, name) for name in ("start", "rows", "end", "failed")},
    }


_EVERY_STEP = {"scheduled", "runs", "ledger.fill", "source.take", "copies.hand_on", "step_slots", "begin", "take"}
_DEAF = {"client.failed", "introduction.client"}
"""Where these fail, the sidecar cannot be told of every error."""


def _serve_through(setup: Setup, inside: str, times: float) -> None:
    """Plays with something failing, then with it mended; serving must not notice, and capture must come back."""
    play, now = Play(setup, 1, FOLDER, requests=12), [0.0]
    halves = play.scheduler.connector._breaker, play.workers[0].connector._breaker
    for breaker in halves:
        breaker._clock = lambda: now[0]
    LOG.lines.clear()
    fault: list[Fault] = []
    opened: list[bool] = []

    def step(number: int) -> None:
        if number == 3:
            fault.append(Fault(*_inside(play)[inside], times))
        opened.append(any(breaker.open for breaker in halves))

    play.run(before_step=step)
    play.judge_serving()
    play.judge_rows()
    errors = sum(breaker.errors for breaker in halves)
    if inside != "client.failed":  # it is called where something else fails
        assert errors
        failures = Counter(line for line in LOG.lines if "capture failed" in line)
        assert max(failures.values()) == 1, failures
        # The client is asked for in two places, each with a line of its own if it fails there.
        places = 2 if inside == "introduction.client" else 1
        assert 1 <= sum("RuntimeError" in line for line in failures) <= places, failures
    if inside in _EVERY_STEP:
        assert any(opened) == (times >= 5)
        assert sum("capture stops" in line for line in LOG.lines) == (times >= 5)
        assert errors >= min(times, 5)
    fault[0].mend()
    now[0] += 31.0
    before = set(play.requests)
    play.run(12)
    play.judge_serving()
    play.judge_rows()
    play.judge_whole(set(play.requests) - before)
    if inside not in _DEAF:
        assert play.listener.errors == sum(breaker.errors for breaker in halves) == errors


def errors_once() -> None:
    """Anything inside a hook fails once."""
    _serve_through_all(1)


def errors_five_times() -> None:
    """Anything inside a hook fails five times in a row."""
    _serve_through_all(5)


def errors_for_ever() -> None:
    """Anything inside a hook fails until it is mended."""
    _serve_through_all(math.inf)


def _serve_through_all(times: float) -> None:
    for setup in (Setup(asynchronous=True), Setup(asynchronous=True, tapped=True)):
        for inside in _inside(Play(setup, 0, FOLDER, requests=0)):
            with _named(inside):
                _serve_through(setup, inside, times)


def errors_at_the_start() -> None:
    """Anything fails that runs before the first step: the engine starts and serves without capture."""
    for setup, places in _BEFORE_THE_FIRST_STEP.items():
        for place in places:
            fault = Fault(*place, math.inf)
            with _named(place[1]):
                LOG.lines.clear()
                play = Play(setup, 1, FOLDER, requests=6)
                play.run()
                play.judge_serving()
                assert any("capture failed" in line for line in LOG.lines), LOG.lines
                assert not any(told.tokens for told in Listener.made) or place[1] == "required_layout"
            fault.mend()


_BEFORE_THE_FIRST_STEP = {
    Setup(asynchronous=True): [
        *((compat, name) for name in ("is_tapped", "setting", "layers", "cache_group", "required_layout")),
        *((compat, name) for name in ("hidden_cache", "is_first_tensor_rank", "hello", "tls")),
        *((connector_module, name) for name in ("Ledger", "CachedRows", "Introduction", "Emitter")),
    ],
    Setup(asynchronous=True, tapped=True): [
        *((compat, name) for name in ("attention_group", "step_room")),
        (connector_module, "TappedRows"),
    ],
}


def nonsense() -> None:
    """Hooks that are passed what they do not understand answer what changes nothing."""
    play = Play(Setup(), 0, FOLDER, requests=0)
    scheduler, worker = play.scheduler.connector, play.workers[0].connector
    assert scheduler.on_new_request(object()) is None
    assert scheduler.get_num_new_matched_tokens(object(), 5) == (0, False)
    assert scheduler.update_state_after_alloc(object(), object(), 0) is None
    plan = scheduler.build_connector_meta(object()).plan
    assert [plan.begins, plan.counts, plan.ends, plan.held] == [[]] * 4
    assert plan.errors == 2
    assert AffectConnector.request_finished(scheduler, object(), []) == (False, None)
    assert AffectConnector.request_finished_all_groups(scheduler, object(), ([],)) == (False, None)
    assert not scheduler.requires_kv_delivery
    worker.register_kv_caches({})
    worker.bind_connector_metadata(AffectMetadata(plan))
    worker.start_load_kv(object(), attn_metadata=object())
    worker.save_kv_layer("layer", torch.empty(0), object())
    worker.wait_for_layer_load("layer")
    worker.wait_for_save()
    assert worker.get_finished(set()) == (None, None)
    worker.clear_connector_metadata()
    assert not worker.has_connector_metadata()
    assert AffectConnector.get_required_kvcache_layout(object()) is None


def shutdown() -> None:
    """An engine that ends is not kept from it."""
    for part in ("_emitter", "_introduction"):
        connector = Play(Setup(), 0, FOLDER, requests=0).workers[0].connector
        Fault(getattr(connector, part), "close", math.inf)
        connector.shutdown()


def unknown_version() -> None:
    """On a version that capture does not know the engine serves, and each half logs why nothing is captured."""
    kept, vllm.__version__ = vllm.__version__, "0.99.0"
    LOG.lines.clear()
    try:
        play = Play(Setup(asynchronous=True), 1, FOLDER, requests=12)
        play.run()
        play.judge_serving()
    finally:
        vllm.__version__ = kept
    assert not Listener.made
    assert len(LOG.lines) == 2
    assert all("0.99.0" in line for line in LOG.lines)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Says what an error was about."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{what}: {error}") from error


def main(results: Path, names: list[str]) -> None:
    """Runs checks and writes what is wrong with them."""
    torch.set_num_threads(1)
    plugin.register()
    logging.getLogger("affect_monitor.capture").addHandler(LOG)
    wrong: dict[str, str | None] = {}
    for name in names:
        wrong[name] = None
        try:
            globals()[name]()
        except Exception:  # noqa: BLE001 - all of them are told
            wrong[name] = traceback.format_exc()
    results.write_text(json.dumps(wrong))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
