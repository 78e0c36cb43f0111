"""Capture on small random models of the shapes people serve, against the hidden states the models themselves report."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from recorder import Recorder
from torch import nn

from monitor.capture.breaker import Breaker
from monitor.capture.identity import weights_fingerprint
from monitor.capture.passes import LayerRows, decoder_blocks
from monitor.capture.transformers import TappedRequest, TransformersTap
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from double import SidecarDouble

    from monitor.capture.client import SidecarClient

transformers = pytest.importorskip("transformers")

DEPTH, VOCABULARY = 3, 64
PAD, END = 0, 1
COMMON = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": END, "bos_token_id": 2}
SIZES = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": DEPTH, "num_attention_heads": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
SHAPES = {
    "Llama": GROUPED,
    "Qwen2": {**SIZES, "num_key_value_heads": 1},
    "Mistral": {**GROUPED, "sliding_window": 4},
    "Gemma": GROUPED,
    "Gemma2": {**GROUPED, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "GPT2": {"n_embd": 16, "n_layer": DEPTH, "n_head": 2, "n_positions": 64},
    "GPTNeoX": SIZES,
}


def build(shape: str, **changes: Any) -> Any:
    """A small random model."""
    torch.manual_seed(len(shape))
    config = getattr(transformers, f"{shape}Config")(**{**COMMON, **SHAPES[shape], **changes})
    head = "GPT2LMHeadModel" if shape == "GPT2" else f"{shape}ForCausalLM"
    return getattr(transformers, head)(config).eval()


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> Any:
    """One model of each shape."""
    return build(request.param)


@pytest.fixture
def llama() -> Any:
    """One model, where the shape does not matter."""
    return build("Llama")


def prompts(*lengths: int) -> list[list[int]]:
    """Prompts of these lengths, without special tokens."""
    return [[3 + (7 * number + at) % (VOCABULARY - 3) for at in range(length)] for number, length in enumerate(lengths)]


def padded(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    """A batch with padding on one side."""
    width = max(map(len, rows))
    fill = [[PAD] * (width - len(row)) for row in rows]
    mask = [[0] * len(pad) for pad in fill]
    if side == "left":
        pairs = [(pad + row, none + [1] * len(row)) for pad, row, none in zip(fill, rows, mask, strict=True)]
    else:
        pairs = [(row + pad, [1] * len(row) + none) for pad, row, none in zip(fill, rows, mask, strict=True)]
    ids, masks = zip(*pairs, strict=True)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(masks)}


def named(count: int) -> list[TappedRequest]:
    """Requests r0, r1, ..."""
    return [TappedRequest(f"r{number}") for number in range(count)]


@torch.no_grad()
def generate(model: Any, batch: dict[str, torch.Tensor], tokens: int = 6, **options: Any) -> Any:
    """Generates greedily and keeps the hidden states of every pass."""
    options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, **options}
    return model.generate(**batch, output_hidden_states=True, return_dict_in_generate=True, **options)


def expected(made: Any, batch: dict[str, torch.Tensor], number: int, layers: list[int]) -> torch.Tensor:
    """Rows of one request as generate() itself reports them, [positions, layers, hidden]."""
    real = batch["attention_mask"][number].bool()
    first, *later = made.hidden_states
    prefill = torch.stack([first[layer][number][real] for layer in layers], 1)
    decode = [torch.stack([step[layer][number] for layer in layers], 1) for step in later]
    return torch.cat([prefill, *decode])


class TestLayerRows:
    """The residual stream, layer by layer."""

    @torch.no_grad()
    def test_every_layer_is_that_of_the_pass(self, model: Any) -> None:
        """Layers 0 to depth - 1 equal output_hidden_states bit for bit; the last is what the final norm gets."""
        kept = LayerRows(model, range(DEPTH + 1))
        out = model(**padded(prompts(7, 4), "left"), output_hidden_states=True)
        for layer in range(DEPTH):
            assert torch.equal(kept.rows[layer], out.hidden_states[layer])
        names = ("norm", "ln_f", "final_layer_norm")
        norm = next(getattr(model.base_model, name) for name in names if hasattr(model.base_model, name))
        assert torch.equal(norm(kept.rows[DEPTH]), out.hidden_states[DEPTH])
        kept.close()

    def test_closed_hooks_are_gone(self, llama: Any) -> None:
        """After close a pass leaves nothing behind."""
        kept = LayerRows(llama, [0, DEPTH])
        kept.close()
        llama(torch.tensor([[3, 4]]))
        assert not kept.rows
        assert not any(block._forward_pre_hooks or block._forward_hooks for block in decoder_blocks(llama))

    @pytest.mark.parametrize("layer", [-1, DEPTH + 1])
    def test_layers_beyond_the_model(self, llama: Any, layer: int) -> None:
        """A layer the model does not have is refused with the range there is."""
        with pytest.raises(ValueError, match=rf"0\.\.{DEPTH}"):
            LayerRows(llama, [layer])


class TestDecoderBlocks:
    """Where the blocks of a model are."""

    def test_blocks_of_every_shape(self, model: Any) -> None:
        """The blocks are found whatever an architecture calls them."""
        assert len(decoder_blocks(model)) == DEPTH

    def test_experts_inside_a_block_are_no_blocks(self) -> None:
        """A long list inside each block, as of experts, is not taken for the blocks."""

        def block() -> nn.Module:
            holder = nn.Module()
            holder.experts = nn.ModuleList(nn.Linear(1, 1) for _ in range(8))
            return holder

        model = nn.Module()
        model.layers = nn.ModuleList(block() for _ in range(3))
        assert decoder_blocks(model) is model.layers

    def test_model_without_blocks(self) -> None:
        """A model with no list of blocks is refused by name."""
        with pytest.raises(ValueError, match="Linear has no list"):
            decoder_blocks(nn.Linear(1, 1))


class TestFingerprint:
    """Which weights these are."""

    def test_equal_weights_have_equal_fingerprints(self) -> None:
        """Two models with the same weights cannot be told apart, in any wire dtype."""
        assert weights_fingerprint(build("Llama")) == weights_fingerprint(build("Llama"))
        assert weights_fingerprint(build("Llama").bfloat16()) == weights_fingerprint(build("Llama").bfloat16())

    @pytest.mark.parametrize("change", ["one bit", "dtype", "shape"])
    def test_any_change_shows(self, llama: Any, change: str) -> None:
        """One changed element, another dtype or another shape gives another fingerprint."""
        before = weights_fingerprint(llama)
        if change == "one bit":
            llama.model.norm.weight.data.view(torch.int32)[0] ^= 1
        elif change == "dtype":
            llama.half()
        else:
            llama.model.norm.weight = nn.Parameter(llama.model.norm.weight.data.view(1, -1))
        assert weights_fingerprint(llama) != before

    def test_scalars_and_empty_tensors(self) -> None:
        """Buffers without dimensions or elements are part of it."""
        module = nn.Module()
        module.register_buffer("count", torch.tensor(3))
        module.register_buffer("nothing", torch.empty(0, 2))
        assert len(weights_fingerprint(module)) == 64


class TestGenerate:
    """Requests that run through model.generate."""

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_rows_equal_the_hidden_states_of_the_pass(self, model: Any, side: str) -> None:
        """Prefill and decode rows of a padded batch are, at several layers, bit for bit what the model reports."""
        client, layers, batch = Recorder(), [0, 1, DEPTH - 1], padded(prompts(5, 2, 4), side)
        tap = TransformersTap(model, client, layers)
        with tap.requests(named(3)):
            made = generate(model, batch)
        tap.close()
        for number, length in enumerate((5, 2, 4)):
            name = f"r{number}"
            assert torch.equal(client.of(name), expected(made, batch, number, layers))
            sequence = made.sequences[number, batch["input_ids"].shape[1] :].tolist()
            assert client.ids(name) == prompts(5, 2, 4)[number] + sequence[:-1]
            assert client.starts[name]["prompt_length"] == length
            assert client.ends[name] == (length + 5, ingest_pb2.END_REASON_STOP)

    def test_one_frame_a_pass(self, model: Any) -> None:
        """Each forward pass is handed over once, all its requests together, at absolute positions."""
        client = Recorder()
        tap = TransformersTap(model, client, [1])
        with tap.requests(named(2)):
            generate(model, padded(prompts(3, 1), "left"), tokens=4)
        tap.close()
        names = ["r0", "r1"]
        assert client.steps == [(names, [0, 0], [3, 1]), *[(names, [3 + n, 1 + n], [1, 1]) for n in range(3)]]

    def test_without_a_cache(self, model: Any) -> None:
        """Where every pass runs the whole sequence again, each position is still sent once."""
        client, batch = Recorder(), padded(prompts(4, 2), "left")
        tap = TransformersTap(model, client, [1])
        with tap.requests(named(2)):
            made = generate(model, batch, use_cache=False)
        tap.close()
        for number, length in enumerate((4, 2)):
            assert client.ids(f"r{number}") == (prompts(4, 2)[number] + made.sequences[number, 4:-1].tolist())
            assert client.ends[f"r{number}"][0] == length + 5

    def test_prompt_in_chunks(self, llama: Any) -> None:
        """A prompt that is run in parts, end tokens within it, is not taken for a finished reply."""
        client, rows = Recorder(), [[5, 6, END, 7, END, 8, 9]]
        tap = TransformersTap(llama, client, [0])
        with tap.requests(named(1)):
            made = generate(llama, padded(rows, "left"), prefill_chunk_size=3)
        tap.close()
        assert client.ids("r0") == made.sequences[0, :-1].tolist()

    @pytest.mark.parametrize("shape", ["Llama", "Gemma2"])
    def test_static_cache(self, shape: str) -> None:
        """A single request on a preallocated cache, where masks are not [batch, tokens], is captured whole."""
        model, client = build(shape), Recorder()
        tap = TransformersTap(model, client, [0, 1])
        with tap.requests(named(1)):
            made = generate(model, padded(prompts(5), "left"), cache_implementation="static", disable_compile=True)
        tap.close()
        assert client.ids("r0") == made.sequences[0, :-1].tolist()
        assert torch.equal(client.of("r0"), expected(made, padded(prompts(5), "left"), 0, [0, 1]))

    @pytest.mark.parametrize("shape", ["Llama", "Gemma2", "Mistral"])
    def test_batch_on_a_static_cache(self, shape: str) -> None:
        """Padding is told from tokens by their positions where masks are those of a preallocated cache."""
        model, client, batch = build(shape), Recorder(), padded(prompts(5, 2, 7), "left")
        tap = TransformersTap(model, client, [0, 1])
        with tap.requests(named(3)):
            made = generate(model, batch, cache_implementation="static", disable_compile=True)
        tap.close()
        for number in range(3):
            assert torch.equal(client.of(f"r{number}"), expected(made, batch, number, [0, 1]))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        """Rows keep the dtype of the model."""
        model, client, batch = build("Llama").to(dtype), Recorder(), padded(prompts(4, 2), "left")
        tap = TransformersTap(model, client, [1])
        with tap.requests(named(2)):
            made = generate(model, batch, tokens=3)
        tap.close()
        assert client.of("r1").dtype == dtype
        assert torch.equal(client.of("r1"), expected(made, batch, 1, [1]))

    def test_requests_are_told_apart(self, llama: Any) -> None:
        """Labels, session and external id travel with the start; the next block begins its requests at position 0."""
        client = Recorder()
        tap = TransformersTap(llama, client, [0])
        for name in ("first", "second"):
            with tap.requests([TappedRequest(name, labels={"policy": name}, session_id="s", external_id="theirs")]):
                generate(llama, padded(prompts(3), "left"), tokens=2)
        tap.close()
        assert client.starts["second"] == {
            "prompt_length": 3, "labels": {"policy": "second"}, "session_id": "s", "external_id": "theirs",
        }  # fmt: skip
        assert client.ends == dict.fromkeys(("first", "second"), (4, ingest_pb2.END_REASON_STOP))
        assert torch.equal(client.of("first"), client.of("second"))


class TestCompiled:
    """Decoding under torch.compile, as generate() does it on a GPU with a static cache."""

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """Options of generate() that compile decoding on any device, without the wait for fast code."""
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        options = transformers.CompileConfig(backend="eager", mode=None)
        options._compile_all_devices = True
        return {"cache_implementation": "static", "compile_config": options}

    def test_hooks_are_in_the_graph(self, llama: Any, options: dict[str, Any]) -> None:
        """Every step's rows are its own, and the whole pass stays one graph."""
        client, batch = Recorder(), padded(prompts(5, 2), "left")
        tap = TransformersTap(llama, client, [0, 1])
        with tap.requests(named(2)):
            made = generate(llama, batch, **options)
        tap.close()
        for number in range(2):
            assert torch.equal(client.of(f"r{number}"), expected(made, batch, number, [0, 1]))
        assert not torch._dynamo.utils.counters["graph_break"]

    def test_a_model_that_was_compiled_before(
        self, llama: Any, options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Hooks that come too late see nothing, which is said, and what they miss counts against coverage."""
        client, batch = Recorder(), padded(prompts(5), "left")
        plain = generate(llama, batch, **options)
        tap = TransformersTap(llama, client, [0, 1])
        with tap.requests(named(1)):
            made = generate(llama, batch, **options)
        tap.close()
        assert torch.equal(made.sequences, plain.sequences)
        assert len(client.held["r0"]) == 5
        assert client.ends["r0"][0] == 5 + 5
        assert "before its first compiled pass" in caplog.text


class Scripted(nn.Module):
    """Makes a model say what is written for it, whatever it computes."""

    def __init__(self, replies: list[list[int]]) -> None:
        super().__init__()
        self.replies, self.step = replies, 0

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As a logits processor."""
        forced = torch.full_like(scores, -1e9)
        for row, reply in enumerate(self.replies):
            forced[row, reply[min(self.step, len(reply) - 1)]] = 0
        self.step += 1
        return forced


class TestFinishing:
    """Requests of a batch that end at different times."""

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_finished_rows_stop(self, llama: Any, side: str) -> None:
        """After its end token a request sends nothing, while the others of its batch go on."""
        client, batch = Recorder(), padded(prompts(4, 2, 3), side)
        tap = TransformersTap(llama, client, [0, 1])
        script = Scripted([[9, END, 9, 9, 9, 9], [9, 9, 9, END], [9, 9, 9, 9, 9, 9]])
        with tap.requests(named(3)):
            made = generate(llama, batch, logits_processor=[script], min_new_tokens=0)
        tap.close()
        rows = prompts(4, 2, 3)
        assert [client.ids(f"r{n}") for n in range(3)] == [
            [*rows[0], 9, END], [*rows[1], 9, 9, 9, END], [*rows[2], 9, 9, 9, 9, 9],
        ]  # fmt: skip
        for number, total in enumerate((6, 6, 8)):
            assert client.ends[f"r{number}"] == (total, ingest_pb2.END_REASON_STOP)
            assert torch.equal(client.of(f"r{number}"), expected(made, batch, number, [0, 1])[:total])

    def test_end_tokens_in_the_prompt_end_nothing(self, llama: Any) -> None:
        """A chat template full of end tokens does not finish the request before it has begun."""
        client, batch = Recorder(), padded([[5, END, 6, END], [END, END, 7]], "left")
        tap = TransformersTap(llama, client, [0])
        with tap.requests(named(2)):
            generate(llama, batch, tokens=4)
        tap.close()
        assert [client.ends[name][0] for name in ("r0", "r1")] == [7, 6]

    def test_other_end_tokens(self, llama: Any) -> None:
        """The caller's end tokens take the place of the model's."""
        client, batch = Recorder(), padded(prompts(2, 2), "left")
        tap = TransformersTap(llama, client, [0], end_tokens=[11, 12])
        with tap.requests(named(2)):
            generate(
                llama, batch, logits_processor=[Scripted([[9, 12], [9, 9, END, 9]])], min_new_tokens=0, eos_token_id=12
            )
        tap.close()
        assert [client.ends[name][0] for name in ("r0", "r1")] == [4, 7]

    def test_aborted_generation(self, llama: Any) -> None:
        """An exception of the caller ends the requests as aborted, with the tokens so far, and is not swallowed."""
        client = Recorder()
        tap = TransformersTap(llama, client, [0])

        def chat() -> None:
            with tap.requests(named(1)):
                generate(llama, padded(prompts(3), "left"), tokens=2)
                raise KeyError("caller")

        with pytest.raises(KeyError, match="caller"):
            chat()
        tap.close()
        assert client.ends == {"r0": (4, ingest_pb2.END_REASON_ABORTED)}

    def test_requests_that_never_ran(self, llama: Any) -> None:
        """A request without a forward pass is neither started nor ended."""
        client = Recorder()
        tap = TransformersTap(llama, client, [0])
        with tap.requests(named(2)):
            pass
        assert client.calls == 0


class TestPlainForward:
    """Passes that are not generate's."""

    @torch.no_grad()
    def test_arguments_by_position(self, model: Any) -> None:
        """Ids and masks are found where the model's own signature has them."""
        batch = padded(prompts(4, 2), "right")
        client = Recorder()
        tap = TransformersTap(model, client, [1])
        before = [None] if "GPT2" in type(model).__name__ else []
        with tap.requests(named(2)):
            out = model(batch["input_ids"], *before, batch["attention_mask"], output_hidden_states=True)
        tap.close()
        assert torch.equal(client.of("r1")[:, 0], out.hidden_states[1][1, :2])

    @torch.no_grad()
    def test_without_a_mask(self, llama: Any) -> None:
        """Without a mask everything is a token, and a cached continuation follows the prompt."""
        client = Recorder()
        tap = TransformersTap(llama, client, [1])
        with tap.requests(named(1)):
            cache = llama(torch.tensor([[3, 4, 5]])).past_key_values
            llama(torch.tensor([[6]]), past_key_values=cache)
        tap.close()
        assert client.steps == [(["r0"], [0], [3]), (["r0"], [3], [1])]

    @torch.no_grad()
    def test_passes_outside_a_block(self, llama: Any) -> None:
        """Passes nobody named are not sent, and no hidden state of theirs stays in memory."""
        client = Recorder()
        tap = TransformersTap(llama, client, [0, 1])
        llama(torch.tensor([[3, 4, 5]]))
        assert client.calls == 0
        assert not tap._passes._kept.rows
        tap.close()

    def test_rows_are_copies(self, llama: Any) -> None:
        """What was handed over carries no graph and does not change when the model does."""
        client = Recorder()
        tap = TransformersTap(llama, client, [0])
        with tap.requests(named(1)):
            llama(torch.tensor([[3, 4, 5]]))
        tap.close()
        before = client.of("r0").clone()
        assert not before.requires_grad
        with torch.no_grad():
            llama.model.embed_tokens.weight.zero_()
        assert torch.equal(client.of("r0"), before)


class TestFailing:
    """Nothing that goes wrong in capture reaches the model."""

    @pytest.mark.parametrize("kind", ["start", "rows", "end"])
    def test_a_client_that_raises(self, llama: Any, kind: str) -> None:
        """Generation gives the same tokens with a broken client as with none."""
        batch = padded(prompts(3, 2), "left")
        plain = generate(llama, batch).sequences
        client = Recorder()
        client.failing = {kind}
        tap = TransformersTap(llama, client, [0])
        with tap.requests(named(2)):
            assert torch.equal(generate(llama, batch).sequences, plain)
        tap.close()

    def test_capture_stops_after_repeated_errors(self, llama: Any, caplog: pytest.LogCaptureFixture) -> None:
        """After five failures in a row the client is left alone, which is logged once and counted each time."""
        client = Recorder()
        client.failing = {"rows"}
        tap = TransformersTap(llama, client, [0])
        with caplog.at_level(logging.ERROR, "affect_monitor.capture"), tap.requests(named(1)):
            generate(llama, padded(prompts(3), "left"), tokens=20)
        assert client.calls == 1 + 5 + 1
        assert client.failures == 5
        assert len(caplog.records) == 2
        assert "capture stops" in caplog.text
        assert client.ends["r0"][0] == 3 + 19, "what was not captured counts against coverage"
        client.failing = set()
        with tap.requests([TappedRequest("later")]):
            generate(llama, padded(prompts(3), "left"), tokens=2)
        assert "later" not in client.starts
        tap.close()

    @torch.no_grad()
    def test_capture_is_tried_again(self, llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a pause capture goes on, also of a request that began meanwhile, and the end counts what was missed."""
        now = 0.0
        monkeypatch.setattr("monitor.capture.transformers.Breaker", partial(Breaker, clock=lambda: now))
        client = Recorder()
        tap = TransformersTap(llama, client, [0])
        client.failing = {"rows"}
        with tap.requests([TappedRequest("early")]):
            for _ in range(5):
                llama(torch.tensor([[3]]))
        client.failing = set()
        with tap.requests([TappedRequest("late")]):
            llama(torch.tensor([[3, 4]]))
            assert "late" not in client.starts
            now = 60.0
            llama(torch.tensor([[5]]))
        tap.close()
        assert client.starts["late"]["prompt_length"] == 2
        assert list(client.held["late"]) == [2]
        assert client.ends["late"][0] == 3

    def test_errors_apart_do_not_stop_it(self, llama: Any) -> None:
        """A pass that works in between starts the count of failures anew."""
        client = Recorder()
        tap = TransformersTap(llama, client, [0])
        with tap.requests(named(1)), torch.no_grad():
            llama(torch.tensor([[3]]))
            for _ in range(8):
                client.failing = {"rows"}
                llama(torch.tensor([[4]]))
                client.failing = set()
                llama(torch.tensor([[5]]))
        tap.close()
        assert sorted(client.held["r0"]) == list(range(0, 17, 2))
        assert client.ends["r0"][0] == 17

    def test_a_batch_that_was_not_named(self, llama: Any) -> None:
        """A batch of another size than the requests is not captured, and runs."""
        client = Recorder()
        tap = TransformersTap(llama, client, [0])
        with tap.requests(named(1)):
            assert generate(llama, padded(prompts(3, 2), "left"), tokens=2).sequences.shape == (2, 5)
        tap.close()
        assert client.calls == 0

    def test_blocks_called_in_an_unknown_way(self) -> None:
        """A block that gets its hidden states under a name the hooks do not know leaves the model alone."""

        class Block(nn.Module):
            def forward(self, stream: torch.Tensor) -> dict[str, torch.Tensor]:
                return {"stream": stream + 1}

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.ModuleList([Block(), Block()])

            def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
                stream = input_ids.float()[..., None]
                for block in self.layers:
                    stream = block(stream=stream)["stream"]
                return stream

        model, client = Model(), Recorder()
        tap = TransformersTap(model, client, [0, 2])
        with tap.requests(named(1)):
            assert model(torch.tensor([[3, 4]])).flatten().tolist() == [5.0, 6.0]
        tap.close()
        assert "rows" not in client.held
        assert client.ends["r0"][0] == 2

    def test_a_pass_that_fails(self, llama: Any) -> None:
        """The model's own exception passes through, and no hidden state of the failed pass stays in memory."""

        def fail(*_args: Any) -> None:
            raise RuntimeError("out of memory")

        client = Recorder()
        tap = TransformersTap(llama, client, [0])
        handle = llama.lm_head.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"), tap.requests(named(1)):
            llama(torch.tensor([[3, 4]]))
        assert not tap._passes._kept.rows
        assert client.calls == 0
        handle.remove()
        tap.close()

    @torch.no_grad()
    def test_closing_takes_every_hook_out(self, llama: Any) -> None:
        """A closed tap sees nothing more."""
        client = Recorder()
        tap = TransformersTap(llama, client, [0, DEPTH])
        tap.close()
        with tap.requests(named(1)):
            llama(torch.tensor([[3, 4]]))
        assert client.calls == 0
        assert not llama._forward_hooks
        assert not llama._forward_pre_hooks


def test_all_the_way_to_a_sidecar(
    sidecar: Callable[..., SidecarDouble], client: Callable[..., SidecarClient], llama: Any
) -> None:
    """Through the real client and a real server, a padded batch arrives bit for bit, frame by pass."""
    double, sender, batch = sidecar(), client(), padded(prompts(5, 2), "left")
    tap = TransformersTap(llama.bfloat16(), sender, [0, 2])
    with tap.requests(named(2)):
        made = generate(llama, batch)
    tap.close()
    assert sender.flush(20)
    held = double.rows()
    for number in range(2):
        rows = torch.stack([held[f"r{number}"][position][1] for position in sorted(held[f"r{number}"])])
        assert torch.equal(rows, expected(made, batch, number, [0, 2]))
    assert len([frame for frame in double.frames if frame.HasField("rows")]) == 6
    assert {name: end.total_tokens for name, end in double.events("end")} == {"r0": 10, "r1": 7}
