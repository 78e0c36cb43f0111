"""Capture of continuous batching, on small random models and the demo assistant, against plain passes."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import needs
import pytest
import torch
from recorder import Recorder

from monitor.capture.passes import LayerRows
from monitor.capture.transformers import TappedRequest
from monitor.capture.transformers_batching import BatchingTap
from monitor.errors import SetupError
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from double import SidecarDouble

    from monitor.capture.client import SidecarClient

transformers = pytest.importorskip("transformers", minversion="5.24")

DEPTH, VOCABULARY = 3, 64
END = 1
LAYERS = [0, 2, DEPTH]
PATIENCE = 20.0
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": DEPTH,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 4096,
    "pad_token_id": 0, "eos_token_id": END, "bos_token_id": 2,
}  # fmt: skip
SHAPES = {"Llama": {}, "Qwen3": {}, "Mistral": {"sliding_window": 8}, "Gemma2": {"sliding_window": 8}}


def build(shape: str = "Llama") -> Any:
    """A small random model."""
    torch.manual_seed(5)
    config = getattr(transformers, f"{shape}Config")(**SIZES, **SHAPES[shape])
    return getattr(transformers, f"{shape}ForCausalLM")(config).eval()


@pytest.fixture
def model() -> Any:
    """A model, where the shape does not matter."""
    return build()


def prompts(*lengths: int) -> list[list[int]]:
    """Prompts of these lengths with nothing in common and no special tokens."""
    return [
        [3 + (7 * number + 5 * at) % (VOCABULARY - 3) for at in range(length)] for number, length in enumerate(lengths)
    ]


def batching(**options: Any) -> Any:
    """A small cache and small batches: left to themselves, they take most of the machine's memory."""
    return transformers.ContinuousBatchingConfig(
        **{"page_size": 4, "num_blocks": 64, "max_batch_tokens": 32, "max_requests_per_batch": 16, **options}
    )


def greedy(tokens: int, **options: Any) -> Any:
    """Generation without chance, to the last token unless an end token is given."""
    return transformers.GenerationConfig(
        **{"max_new_tokens": tokens, "do_sample": False, "eos_token_id": -1, **options}
    )


def generate(
    tap_on: Any, inputs: list[list[int]], tokens: int = 8, config: Any = None, **options: Any
) -> dict[str, Any]:
    """Runs a batch to its end."""
    return tap_on.generate_batch(
        inputs, generation_config=greedy(tokens, **options), continuous_batching_config=config or batching()
    )


@contextmanager
def tapped(model: Any, client: Any, layers: list[int] = LAYERS) -> Iterator[BatchingTap]:
    """A tap that is closed again, and that no error was kept from."""
    tap = BatchingTap(model, client, layers)
    yield tap
    tap.close()


@contextmanager
def serving(model: Any, tokens: int = 8, config: Any = None, **options: Any) -> Iterator[Any]:
    """A manager that takes requests."""
    manager = model.init_continuous_batching(
        generation_config=greedy(tokens, **options), continuous_batching_config=config or batching()
    )
    manager.start()
    yield manager
    manager.stop(block=True, timeout=PATIENCE)


@torch.no_grad()
def plain(model: Any, tokens: list[int], layers: list[int]) -> torch.Tensor:
    """Hidden states of a plain pass over these tokens, [tokens, layers, hidden], on the host."""
    kept = LayerRows(model, layers)
    model(torch.tensor([tokens], device=model.device))
    rows = torch.stack([kept.rows[layer][0] for layer in layers], 1).cpu()
    kept.close()
    return rows


def assert_complete(client: Recorder, model: Any, outputs: dict[str, Any], layers: list[int] = LAYERS) -> None:
    """Rows and gaps cover every request but for its last sampled token, none twice; rows are those of a plain pass."""
    assert client.failures == 0
    names = {start["external_id"]: name for name, start in client.starts.items()}
    assert set(names) == set(outputs)
    for external, output in outputs.items():
        name = names[external]
        passed = (output.prompt_ids + output.generated_tokens)[:-1]
        assert sorted([*client.held[name], *client.gaps[name]]) == list(range(len(passed)))
        assert [(client.tokens[name] | client.gaps[name])[at] for at in range(len(passed))] == passed
        assert client.starts[name]["prompt_length"] == len(output.prompt_ids)
        assert client.ends[name][0] == len(passed)
        expected = plain(model, passed, layers)
        for position, row in client.held[name].items():
            torch.testing.assert_close(
                row, expected[position], rtol=0, atol=1e-4 * float(expected[position].abs().max())
            )


def until(condition: Callable[[], object]) -> None:
    """Waits until something holds; the test fails if it never does."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


class TestParity:
    """Every row of every request, against a plain pass of its tokens."""

    @pytest.mark.parametrize("shape", SHAPES)
    def test_prompts_in_chunks_beside_replies(self, shape: str) -> None:
        """Prompts longer than a batch, and short ones that already decode, come whole and at their positions."""
        model, client = build(shape), Recorder()
        with tapped(model, client):
            outputs = generate(model, prompts(50, 3, 41, 9), config=batching(max_batch_tokens=16))
        assert len({tuple(names) for names, _, _ in client.steps}) > 1
        assert max(len(names) for names, _, _ in client.steps) > 1
        assert_complete(client, model, outputs)

    @pytest.mark.parametrize("implementation", ["eager", "sdpa"])
    def test_attention_implementations(self, model: Any, implementation: str) -> None:
        """Both attention implementations that run without a GPU give the rows of a plain pass."""
        model.set_attn_implementation(implementation)
        client = Recorder()
        with tapped(model, client):
            outputs = generate(model, prompts(20, 5))
        assert_complete(client, model, outputs)

    def test_preempted_requests(self, model: Any) -> None:
        """Where the cache is too small, requests come again from their beginning; nothing is sent twice or missing."""
        client = Recorder()
        began = beginnings(model)
        with tapped(model, client):
            outputs = generate(model, prompts(9, 5, 7, 6), tokens=24, config=batching(num_blocks=10))
        assert sum(began) > len(outputs)
        assert_complete(client, model, outputs)

    def test_prefixes_that_are_shared(self, model: Any) -> None:
        """What another request left in the cache is a gap with its tokens; the rest comes as rows."""
        client = Recorder()
        common = prompts(24)[0]
        inputs = [[*common, 40 + number, 50] for number in range(4)]
        with tapped(model, client):
            outputs = generate(model, inputs, config=batching(max_batch_tokens=26))
        assert max(len(client.gaps[name]) for name in client.starts) >= 20
        assert_complete(client, model, outputs)

    def test_further_sequences(self, model: Any) -> None:
        """With n = 3 the copies miss the prompt that the first one brought, and each has a name of its own."""
        client = Recorder()
        with tapped(model, client) as tap:
            tap.name("req_0", TappedRequest("mine", labels={"policy": "p"}))
            torch.manual_seed(0)
            outputs = generate(model, prompts(11), do_sample=True, num_return_sequences=3)
        assert {name: len(client.gaps[name]) for name in client.starts} == {"mine": 0, "mine-1": 10, "mine-2": 10}
        assert all(start["labels"] == {"policy": "p"} for start in client.starts.values())
        assert_complete(client, model, outputs)

    def test_under_compile(self, model: Any) -> None:
        """Compiled passes are padded, and warm up on requests of nobody's: neither is sent."""
        client = Recorder()
        compiled = transformers.CompileConfig(backend="eager", mode="default")
        with tapped(model, client):
            outputs = generate(model, prompts(20), tokens=3, config=batching(varlen_compile_config=compiled))
        assert_complete(client, model, outputs)

    @pytest.mark.assistant
    def test_the_demo_assistant(self) -> None:
        """Conversations behind one system prompt, preempted and sharing it, equal plain passes of the real model."""
        from monitor.demo.assistant import load_assistant

        model, tokenizer = load_assistant(needs.assistant())
        client = Recorder()
        questions = [
            "Where is my parcel?", "I want my money back, and I want it now.", "Which papers does a visa need?",
            "My cat died this morning.", "How do I reset my password?", "Thank you, that was lovely of you!",
        ]  # fmt: skip
        system = {"role": "system", "content": "You help the customers of a shop."}
        talks = [[system, {"role": "user", "content": question}] for question in questions]
        texts = [tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True) for talk in talks]
        inputs = [tokenizer(text)["input_ids"] for text in texts]
        config = batching(page_size=8, num_blocks=22, max_batch_tokens=48)
        began = beginnings(model)
        with tapped(model, client, [18, 22]):
            outputs = generate(model, inputs, tokens=12, config=config)
        assert any(client.gaps.values())
        assert sum(began) > len([gaps for gaps in client.gaps.values() if not gaps])
        assert_complete(client, model, outputs, [18, 22])


class TestRequests:
    """What the sidecar is told of requests."""

    def test_names_labels_and_sessions(self, model: Any) -> None:
        """A named request keeps its labels and session, and its id in the manager is its external id."""
        client = Recorder()
        with tapped(model, client) as tap, serving(model) as manager:
            tap.name("chat-7", TappedRequest("mine", labels={"policy": "service-desk"}, session_id="s"))
            manager.add_request(prompts(6)[0], request_id="chat-7")
            until(lambda: "mine" in client.ends)
        assert client.starts["mine"] == {
            "prompt_length": 6, "labels": {"policy": "service-desk"}, "session_id": "s", "external_id": "chat-7",
        }  # fmt: skip

    def test_ids_that_come_again(self, model: Any) -> None:
        """generate_batch counts from req_0 each time: without names the requests are told apart all the same."""
        client = Recorder()
        with tapped(model, client):
            generate(model, prompts(6), tokens=2)
            generate(model, prompts(6), tokens=2)
        assert client.failures == 0
        assert [start["external_id"] for start in client.starts.values()] == ["req_0", "req_0"]
        assert len(client.ends) == 2

    def test_a_manager_that_is_kept(self, model: Any) -> None:
        """A manager that transformers keeps for the next batch is watched once."""
        client = Recorder()
        with tapped(model, client):
            for _ in range(2):
                model.generate_batch(
                    prompts(6), generation_config=greedy(2), continuous_batching_config=batching(),
                    persistent_manager=True,
                )  # fmt: skip
            model.destroy_cached_continuous_batching_manager()
        assert client.failures == 0
        assert len(client.ends) == 2

    def test_why_requests_end(self, model: Any) -> None:
        """An end token is a stop, the limit of tokens is a length."""
        client = Recorder()
        first = generate(model, prompts(6), tokens=3)["req_0"].generated_tokens
        with tapped(model, client):
            generate(model, prompts(6), tokens=3)
            generate(model, prompts(6), tokens=30, eos_token_id=[first[2], VOCABULARY])
        assert [reason for _, reason in client.ends.values()] == [
            ingest_pb2.END_REASON_LENGTH, ingest_pb2.END_REASON_STOP,
        ]  # fmt: skip

    def test_cancelled_requests(self, model: Any) -> None:
        """A request that is cancelled ends as aborted and sends nothing more; one that never ran is not told of."""
        client = Recorder()
        config = batching(max_requests_per_batch=1)
        with tapped(model, client) as tap, serving(model, 3000, config) as manager:
            for name in ("runs", "waits", "follows"):
                tap.name(name, TappedRequest(name))
                manager.add_request(prompts(6)[0], request_id=name, max_new_tokens=4 if name == "follows" else None)
            until(lambda: len(client.held["runs"]) > 10)
            manager.cancel_request("waits")
            manager.cancel_request("runs")
            until(lambda: "follows" in client.ends)
        assert client.failures == 0
        assert client.ends["runs"] == (len(client.held["runs"]), ingest_pb2.END_REASON_ABORTED)
        assert set(client.starts) == {"runs", "follows"}

    def test_copies_of_a_request_that_is_cancelled(self, model: Any) -> None:
        """Those that were still to be made of it leave no name behind."""
        client = Recorder()
        options = {"config": batching(num_blocks=1024), "do_sample": True, "num_return_sequences": 3}
        with tapped(model, client) as tap, serving(model, **options) as manager:
            tap.name("long", TappedRequest("mine", labels={"policy": "p"}))
            manager.add_request(prompts(2000)[0], request_id="long")
            until(lambda: client.held["mine"])
            manager.cancel_request("long")
            manager.add_request(prompts(6)[0], request_id="next")
            until(lambda: len(client.ends) == 1 + 3)
            assert len(client.gaps["mine"]) == 0
            assert not tap._names
        assert client.failures == 0

    def test_a_manager_that_is_stopped(self, model: Any) -> None:
        """Requests that a hard stop leaves unfinished end as aborted."""
        client = Recorder()
        with tapped(model, client) as tap, serving(model, 3000) as manager:
            tap.name("a", TappedRequest("a"))
            manager.add_request(prompts(6)[0], request_id="a")
            until(lambda: client.held["a"])
            manager.stop(hard_stop=True, timeout=PATIENCE)
        assert client.ends["a"] == (len(client.held["a"]), ingest_pb2.END_REASON_ABORTED)

    def test_all_the_way_to_a_sidecar(
        self, sidecar: Callable[..., SidecarDouble], client: Callable[..., SidecarClient], model: Any
    ) -> None:
        """Through the real client and a real server rows, gaps and ends arrive, each in its place."""
        double, sender = sidecar(), client()
        common = prompts(24)[0]
        with tapped(model, sender, [0, 2]):
            outputs = generate(model, [[*common, 40], [*common, 41]], config=batching(max_batch_tokens=25))
        assert sender.flush(PATIENCE)
        names = {start.external_id: name for name, start in double.events("start")}
        gaps = dict(double.events("gap"))
        assert [(gap.start, gap.count, list(gap.token_ids), gap.reason) for gap in gaps.values()] == [
            (0, 24, common, ingest_pb2.GAP_REASON_PREFIX_CACHED)
        ]
        held = double.rows()
        for external, output in outputs.items():
            name = names[external]
            passed = (output.prompt_ids + output.generated_tokens)[:-1]
            first = gaps[name].count if name in gaps else 0
            assert [held[name][at][0] for at in range(first, len(passed))] == passed[first:]
        assert {name: end.total_tokens for name, end in double.events("end")} == {
            names[external]: 25 + 8 - 1 for external in outputs
        }


class TestBeside:
    """Passes that are not the watched manager's."""

    @torch.no_grad()
    def test_plain_passes(self, model: Any) -> None:
        """A pass outside of continuous batching is not sent, and none of its hidden states stays in memory."""
        client = Recorder()
        with tapped(model, client) as tap, serving(model) as manager:
            manager.add_request(prompts(6)[0], request_id="a")
            until(lambda: client.ends)
            calls = client.calls
            model(torch.tensor([[3, 4, 5]]))
            assert not tap._passes._kept.rows
        assert client.calls == calls

    def test_a_manager_from_before(self, model: Any) -> None:
        """A manager that the model made before it was tapped runs on, and is not captured."""
        client = Recorder()
        with serving(model) as manager, tapped(model, client):
            manager.add_request(prompts(6)[0], request_id="a")
            assert manager.get_result(timeout=PATIENCE).is_finished()
        assert client.calls == 0

    def test_closing_leaves_no_trace(self, model: Any) -> None:
        """After close the model makes managers as before, and one that runs on is not captured."""
        client = Recorder()
        with tapped(model, client) as tap, serving(model) as manager:
            tap.close()
            manager.add_request(prompts(6)[0], request_id="a")
            assert manager.get_result(timeout=PATIENCE).is_finished()
            manager.cancel_request("a")
        assert client.calls == client.failures == 0
        assert not model._forward_hooks
        assert "init_continuous_batching" not in vars(model)

    def test_graphs_are_refused(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where passes are to be replayed as graphs, without hooks, the tap says so before anything is served."""
        module = "transformers.generation.continuous_batching.initialization.get_accelerator_graph_name"
        monkeypatch.setattr(module, lambda: "cuda")
        with tapped(model, Recorder()), pytest.raises(SetupError, match="use_cuda_graph: graphs are replayed"):
            model.init_continuous_batching(
                generation_config=greedy(2), continuous_batching_config=batching(use_cuda_graph=True)
            )


class TestFailing:
    """Nothing that goes wrong in capture reaches the model."""

    @pytest.mark.parametrize("kind", ["start", "gap", "rows", "end"])
    def test_a_client_that_raises(self, model: Any, kind: str) -> None:
        """Generation gives the same tokens with a broken client as with none, and the errors are counted."""
        inputs = [[*prompts(24)[0], 40], [*prompts(24)[0], 41]]
        config = batching(max_batch_tokens=25)
        expected = {name: output.generated_tokens for name, output in generate(model, inputs, config=config).items()}
        client = Recorder()
        client.failing = {kind}
        with tapped(model, client):
            outputs = generate(model, inputs, config=config)
        assert {name: output.generated_tokens for name, output in outputs.items()} == expected
        assert client.failures > 0

    def test_capture_stops_after_repeated_errors(self, model: Any, caplog: pytest.LogCaptureFixture) -> None:
        """After five failures in a row the client is left alone; what was not sent counts against coverage."""
        client = Recorder()
        client.failing = {"rows"}
        with caplog.at_level(logging.ERROR, "affect_monitor.capture"), tapped(model, client):
            generate(model, prompts(6), tokens=20)
        assert client.failures == 5
        assert "capture stops" in caplog.text
        assert [total for total, _ in client.ends.values()] == [6 + 19]

    @pytest.mark.parametrize("moved", ["the requests of a pass", "what a manager is watched by"])
    def test_another_transformers(self, model: Any, monkeypatch: pytest.MonkeyPatch, moved: str) -> None:
        """Where transformers keeps its things elsewhere, generation goes on and the errors are counted."""
        if moved == "the requests of a pass":
            monkeypatch.setattr("monitor.capture.transformers_batching._requests", lambda inputs: inputs.moved)
        else:
            manager = "transformers.generation.continuous_batching.continuous_api.ContinuousBatchingManager"
            monkeypatch.delattr(f"{manager}.cancel_request")
        client = Recorder()
        with tapped(model, client):
            assert generate(model, prompts(6))["req_0"].error is None
        assert client.calls == 0
        assert client.failures > 0

    def test_a_model_that_fails(self, model: Any) -> None:
        """Where the model itself fails, its requests end as aborted, and no hidden state stays in memory."""

        def fail(*_args: Any) -> None:
            raise RuntimeError("out of memory")

        client = Recorder()
        with tapped(model, client) as tap, serving(model, 3000) as manager:
            manager.add_request(prompts(6)[0], request_id="a")
            until(lambda: client.starts)
            model.lm_head.register_forward_pre_hook(fail)
            until(lambda: client.ends)
            assert not tap._passes._kept.rows
        assert [reason for _, reason in client.ends.values()] == [ingest_pb2.END_REASON_ABORTED]


def beginnings(model: Any) -> list[int]:
    """How many requests begin in each pass of continuous batching, the first time or anew."""
    seen: list[int] = []

    def look(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        if "cu_seq_lens_q" in given:
            seen.append(int((given["position_ids"] == 0).sum()))

    model.register_forward_pre_hook(look, with_kwargs=True)
    return seen
