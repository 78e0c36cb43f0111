"""The cap on small random models: what it keeps down, what it leaves alone, what it counts and what it refuses."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from recorder import Recorder
from steering_files import WHY, steering, unit, write

import monitor.capture.cap as room
from monitor.capture.cap import cap
from monitor.capture.passes import LayerRows, decoder_blocks
from monitor.capture.steering_file import read_ceiling
from monitor.capture.transformers import TappedRequest, TransformersTap
from monitor.errors import ModelMismatchError, SteeringError
from monitor.evaluation.interventions.knob import SteeringFile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

transformers = pytest.importorskip("transformers")

DEPTH, HIDDEN, VOCABULARY = 3, 16, 64
PAD, END = 0, 1
CENTRE, CEILING = 0.1, 0.05
"""Most generated tokens of these random models reach further on their own."""
LAYERS = (2, DEPTH)
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": 32, "num_hidden_layers": DEPTH,
    "num_attention_heads": 2, "max_position_embeddings": 64, "pad_token_id": PAD, "eos_token_id": END,
    "bos_token_id": 2, "initializer_range": 0.5,
}  # fmt: skip
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15]]
REPLIES = [[9, END], [21, 22, 23, END], [31, 32, 33, 34, 35, 36]]
"""Scripted; the last token of each never passes through the model."""
LENGTH = 6


def build(kind: str = "Llama", **changes: Any) -> Any:
    """A small random model."""
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    return getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()


@pytest.fixture
def model() -> Any:
    """A small random Llama."""
    return build()


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes the steering file of a model."""

    def make(model: Any, ceiling: float = CEILING, layers: tuple[int, ...] = LAYERS) -> Path:
        return write(tmp_path, steering(model, dict.fromkeys(layers, ceiling), CENTRE))

    return make


def batch(rows: list[list[int]] = PROMPTS) -> dict[str, torch.Tensor]:
    """Prompts with padding on the left."""
    width = max(map(len, rows))
    ids = [[PAD] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


class Scripted:
    """Makes a model say what is written for it, whatever it computes."""

    def __init__(self, replies: list[list[int]]) -> None:
        self.replies, self.step = replies, 0

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """As a logits processor."""
        forced = torch.full_like(scores, -1e9)
        for row, reply in enumerate(self.replies):
            forced[row, reply[min(self.step, len(reply) - 1)]] = 0
        self.step += 1
        return forced


@torch.no_grad()
def generate(model: Any, inputs: dict[str, torch.Tensor] | None = None, **options: Any) -> torch.Tensor:
    """Generates the scripted replies, or greedily where options say so."""
    inputs = inputs or batch()
    script = Scripted(REPLIES[-len(inputs["input_ids"]) :])
    options = {"do_sample": False, "max_new_tokens": LENGTH, "logits_processor": [script], **options}
    made: torch.Tensor = model.generate(**inputs, **options)
    return made


@contextmanager
def streams(model: Any, layers: tuple[int, ...] = LAYERS) -> Iterator[list[dict[int, torch.Tensor]]]:
    """The streams of every pass at some layers, as those see them who look at the model: [batch, tokens, hidden]."""
    kept, passes = LayerRows(model, layers), []
    handle = model.register_forward_hook(lambda *_: passes.append({n: row.clone() for n, row in kept.rows.items()}))
    try:
        yield passes
    finally:
        handle.remove()
        kept.close()


def along(rows: torch.Tensor, layer: int) -> torch.Tensor:
    """Projections of rows, counted from the centre."""
    return rows.double() @ unit(HIDDEN, layer) - CENTRE


class TestKeeps:
    """What is kept down."""

    @pytest.mark.parametrize(("dtype", "slack"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
    def test_generated_tokens_at_the_ceiling(
        self, dtype: torch.dtype, slack: float, model: Any, written: Callable[..., Path]
    ) -> None:
        """No generated token passes a capped layer above the ceiling, in a padded batch, where many did before."""
        model = model.to(dtype)
        with streams(model) as before:
            generate(model)
        with streams(model) as after, cap(model, written(model), "warmth"):
            generate(model)
        reached = torch.stack([along(step[layer], layer) for step in before[1:] for layer in LAYERS])
        kept = torch.stack([along(step[layer], layer) for step in after[1:] for layer in LAYERS])
        assert (reached > CEILING + slack).float().mean() > 0.3
        assert kept.max() <= CEILING + slack

    def test_along_the_direction_alone(self, model: Any, written: Callable[..., Path]) -> None:
        """What is taken from a row is a multiple of the direction; a row below the ceiling stays as it is."""
        with streams(model) as before:
            generate(model)
        with streams(model) as after, cap(model, written(model, layers=(2,)), "warmth"):
            generate(model)
        # Scripted replies: until the first capped pass has written its keys, both runs see the same.
        was, now = before[1][2][:, 0], after[1][2][:, 0]
        over = along(was, 2) > CEILING
        assert 0 < over.sum() < len(over)
        assert torch.equal(was[~over], now[~over])
        taken = (was - now)[over].double()
        assert torch.allclose(taken, (taken @ unit(HIDDEN, 2))[:, None] * unit(HIDDEN, 2), atol=1e-6)

    @pytest.mark.parametrize("changes", [{"kind": "GPT2"}, {"kind": "Gemma2", "head_dim": 8, "num_key_value_heads": 1}])
    def test_in_other_models(self, changes: dict[str, Any], written: Callable[..., Path]) -> None:
        """Blocks that hand on something else than a Llama's are capped as well."""
        model = build(**changes)
        with streams(model) as after, cap(model, written(model), "warmth"):
            generate(model)
        assert max(along(step[layer], layer).max() for step in after[1:] for layer in LAYERS) <= CEILING + 1e-4

    def test_on_a_static_cache_under_compile(self, model: Any, written: Callable[..., Path]) -> None:
        """Decoding that is compiled says, capped, what plain decoding says."""
        torch.compiler.reset()
        compiled = transformers.CompileConfig(backend="eager", mode=None)
        compiled._compile_all_devices = True
        client = Recorder()
        tap = TransformersTap(model, client, [2])
        inputs, free = batch(PROMPTS[:1]), {"logits_processor": None, "min_new_tokens": LENGTH}
        with cap(model, written(model), "warmth", tap=tap) as capped:
            plain = generate(model, inputs, **free)
            with tap.requests([TappedRequest("r0")]):
                made = generate(model, inputs, **free, cache_implementation="static", compile_config=compiled)
            assert capped.on
        tap.close()
        assert torch.equal(made, plain)
        assert client.interventions["r0"][0].tokens == LENGTH - 1


class TestLeavesAlone:
    """What is not touched."""

    def test_prompts(self, model: Any, written: Callable[..., Path]) -> None:
        """Rows of the prompt are, at every layer, bit for bit those of the model by itself."""
        everywhere = tuple(range(DEPTH + 1))
        with streams(model, everywhere) as before:
            generate(model)
        with streams(model, everywhere) as after, cap(model, written(model), "warmth"):
            generate(model)
        assert (along(before[0][2], 2) > CEILING).any()
        assert all(torch.equal(before[0][layer], after[0][layer]) for layer in everywhere)

    def test_prompt_of_one_token(self, model: Any, written: Callable[..., Path]) -> None:
        """A prompt of a single token is a prompt all the same."""
        with streams(model) as before:
            generate(model, batch([[7]]))
        with streams(model) as after, cap(model, written(model, ceiling=-50.0), "warmth"):
            generate(model, batch([[7]]))
        assert torch.equal(before[0][2], after[0][2])
        assert not torch.equal(before[1][2], after[1][2])

    @torch.no_grad()
    def test_plain_passes(self, model: Any, written: Callable[..., Path]) -> None:
        """Reading a text, or a part of the model that runs by itself after a reply, is not capped."""
        inputs = batch(PROMPTS[:1])
        logits, single = model(**inputs).logits, model.base_model(torch.tensor([[7]])).last_hidden_state
        with cap(model, written(model), "warmth"):
            generate(model)
            assert torch.equal(model(**inputs).logits, logits)
            assert torch.equal(model.base_model(torch.tensor([[7]])).last_hidden_state, single)

    def test_what_stays_below(self, model: Any, written: Callable[..., Path]) -> None:
        """Under a ceiling that nothing reaches, every row is that of the model by itself."""
        with streams(model) as before:
            generate(model)
        with streams(model) as after, cap(model, written(model, ceiling=100.0), "warmth"):
            generate(model)
        assert all(torch.equal(b[n], a[n]) for b, a in zip(before, after, strict=True) for n in LAYERS)

    def test_model_after_close(self, model: Any, written: Callable[..., Path]) -> None:
        """Closed, it leaves no hook behind and the model says what it said."""
        free = {"logits_processor": None}
        before = generate(model, **free)
        with cap(model, written(model), "warmth") as capped:
            assert capped.on
            assert not torch.equal(generate(model, **free), before)
        assert not capped.on
        assert torch.equal(generate(model, **free), before)
        modules = [model, *decoder_blocks(model)]
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in modules)

    def test_model_when_a_hook_fails(
        self,
        model: Any,
        written: Callable[..., Path],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """After an error the cap is off, says so, tells the sidecar, and the model says what it says by itself."""
        free, client = {"logits_processor": None}, Recorder()
        before = generate(model, **free)
        tap = TransformersTap(model, client, [1])

        def fail(*_: object) -> None:
            raise RuntimeError("no such kernel")

        monkeypatch.setattr(room, "held_down", fail)
        with cap(model, written(model), "warmth", tap=tap) as capped, tap.requests(named(3)):
            assert torch.equal(generate(model, **free), before)
            assert not capped.on
        tap.close()
        assert client.failures == 1
        assert "the cap on warmth failed and is off from now on" in caplog.text
        assert [client.interventions[f"r{n}"][0].tokens for n in range(3)] == [0, 0, 0]


def named(count: int) -> list[TappedRequest]:
    """Requests r0, r1, ..."""
    return [TappedRequest(f"r{number}") for number in range(count)]


class TestCounts:
    """What is told of each request."""

    def test_per_request(self, model: Any, written: Callable[..., Path]) -> None:
        """Tokens, those touched, the largest and the mean removal are those of each row up to its end."""
        client = Recorder()
        tap = TransformersTap(model, client, [1])
        taken: list[torch.Tensor] = []
        with cap(model, written(model), "warmth", tap=tap), tap.requests(named(3)):
            # In front of the cap's own hooks: rows as they were.
            for layer in LAYERS:
                decoder_blocks(model)[layer - 1].register_forward_hook(
                    lambda _module, _args, rows, layer=layer: taken.append((along(rows, layer) - CEILING).clamp(min=0)),
                    prepend=True,
                )
            generate(model)
        tap.close()
        decoding = torch.stack([each[:, 0] for each in taken if each.shape[1] == 1])
        by_step = decoding.unflatten(0, (-1, len(LAYERS)))
        for number, reply in enumerate(REPLIES):
            # The last of LENGTH tokens is sampled and never runs; an end token before that does.
            passed = min(len(reply), LENGTH - 1)
            mine = by_step[:passed, :, number]
            (told,) = client.interventions[f"r{number}"]
            assert (told.family, told.at, told.layers, told.tokens) == ("warmth", "0.99", 2, passed)
            assert told.touched == (mine > 0).any(1).sum()
            assert told.largest == pytest.approx(mine.max().item(), abs=1e-5)
            assert told.mean == pytest.approx(mine.sum().item() / max(1, (mine > 0).sum().item()), abs=1e-5)
        assert sum(told.touched for (told,) in client.interventions.values()) > 3

    def test_anew_in_every_batch(self, model: Any, written: Callable[..., Path]) -> None:
        """The requests of the next batch begin at zero, and without a cap nothing is told."""
        client = Recorder()
        tap = TransformersTap(model, client, [1])
        with cap(model, written(model), "warmth", at="0.90", tap=tap):
            for name in ("first", "second"):
                with tap.requests([TappedRequest(name)]):
                    generate(model, batch(PROMPTS[2:]))
        with tap.requests([TappedRequest("third")]):
            generate(model, batch(PROMPTS[2:]))
        tap.close()
        first, second = client.interventions["first"], client.interventions["second"]
        assert first == second
        assert (first[0].at, first[0].tokens) == ("0.90", LENGTH - 1)
        assert first[0].touched > 0
        assert not client.interventions["third"]

    def test_rows_are_what_the_model_went_on_with(self, model: Any, written: Callable[..., Path]) -> None:
        """A tap at a capped layer sends capped rows, though it was there first."""
        client = Recorder()
        tap = TransformersTap(model, client, LAYERS)
        with cap(model, written(model), "warmth", tap=tap), tap.requests(named(3)):
            generate(model)
        tap.close()
        for place, layer in enumerate(LAYERS):
            assert along(client.of("r2")[len(PROMPTS[2]) :, place], layer).max() <= CEILING + 1e-5

    def test_not_in_the_middle_of_a_batch(self, model: Any, written: Callable[..., Path]) -> None:
        """A cap that would begin in the middle of a batch is refused, and leaves no hook behind."""
        tap = TransformersTap(model, Recorder(), [1])
        with tap.requests(named(1)), pytest.raises(ValueError, match="before its requests are named"):
            cap(model, written(model), "warmth", tap=tap)
        tap.close()
        assert not any(block._forward_hooks for block in decoder_blocks(model))


class TestRefuses:
    """Files that cap nothing."""

    @pytest.mark.parametrize(
        ("change", "family", "at", "field", "why"),
        [
            ({}, "calm", "0.99", "families.calm.safe", WHY),
            ({}, "awe", "0.99", "families.awe", "choose one of its families: calm, warmth"),
            ({}, "warmth", "0.5", "families.warmth.cap.layers.0.ceilings.0.5", "one of its levels: 0.90, 0.99"),
            ({"schema_version": 2}, "warmth", "0.99", "schema_version", "is 2 where this version reads 1"),
            ({"schema_version": True}, "warmth", "0.99", "schema_version", "not a whole number"),
            ({"model": None}, "warmth", "0.99", "model", "is no object"),
            ({"model.hidden_size": "16"}, "warmth", "0.99", "model.hidden_size", "not a whole number"),
            ({"families.warmth.safe": "yes"}, "warmth", "0.99", "families.warmth.safe", "not true or false"),
            ({"families.warmth.cap": None}, "warmth", "0.99", "families.warmth.cap", "is no object"),
            ({"families.warmth.cap.layers": []}, "warmth", "0.99", "families.warmth.cap.layers", "is empty"),
            ({"L.centre": float("nan")}, "warmth", "0.99", "L.centre", "no finite number"),
            ({"L.direction": [1.0]}, "warmth", "0.99", "L.direction", "has 1 numbers where model.hidden_size is 16"),
            ({"L.direction": [0.5] * HIDDEN}, "warmth", "0.99", "L.direction", "is 2 long where it must be 1"),
            ({"L.direction": ["1"] * HIDDEN}, "warmth", "0.99", "L.direction.0", "no finite number"),
            ({"L.ceilings": {"0.99": None}}, "warmth", "0.99", "L.ceilings.0.99", "one of its levels"),
            ({"L.layer": 0}, "warmth", "0.99", "families.warmth.cap.layers", "[0] must lie within 1..3"),
            ({"L.layer": DEPTH + 1}, "warmth", "0.99", "families.warmth.cap.layers", "[4] must lie within 1..3"),
        ],
    )
    def test_with_the_field_and_the_reason(
        self, change: dict[str, Any], family: str, at: str, field: str, why: str, model: Any, tmp_path: Path
    ) -> None:
        """What is wrong is named by file, field and fix, and the model has no hooks."""
        told = steering(model, dict.fromkeys(LAYERS, CEILING))
        first = "families.warmth.cap.layers.0"
        for path, value in change.items():
            *way, last = path.replace("L", first).split(".")
            place: Any = told
            for name in way:
                place = place[int(name)] if name.isdecimal() else place[name]
            place[last] = value
        file = write(tmp_path, told)
        with pytest.raises(SteeringError) as caught:
            cap(model, file, family, at)
        assert caught.value.field == f"{file}: {field.replace('L', first)}"
        assert why in caught.value.message
        assert not any(block._forward_hooks for block in decoder_blocks(model))

    @pytest.mark.parametrize(("text", "why"), [("{", "is no JSON"), ("[1]", "is no object"), ("[" * 99_999, "no JSON")])
    def test_what_is_no_such_file(self, text: str, why: str, model: Any, tmp_path: Path) -> None:
        """A file that is none is told by its name."""
        file = tmp_path / "steering.json"
        file.write_text(text)
        with pytest.raises(SteeringError, match=why) as caught:
            cap(model, file, "warmth")
        assert caught.value.field == str(file)

    def test_a_file_that_is_not_there(self, model: Any, tmp_path: Path) -> None:
        """A missing file is told by its name."""
        with pytest.raises(SteeringError, match=r"none\.json: No such file"):
            cap(model, tmp_path / "none.json", "warmth")

    def test_other_weights(self, model: Any, written: Callable[..., Path]) -> None:
        """One changed weight, and the file is another model's."""
        file = written(model)
        model.model.norm.weight.data[0] += 1
        with pytest.raises(ModelMismatchError) as caught:
            cap(model, file, "warmth")
        assert caught.value.field == f"{file}: model.weights_fingerprint"

    def test_another_width(self, model: Any, written: Callable[..., Path]) -> None:
        """A file of another width names both."""
        with pytest.raises(ModelMismatchError, match=r"model\.hidden_size: 16 where the model has 32"):
            cap(build(hidden_size=32), written(model), "warmth")


def test_reads_what_the_report_writes(model: Any, tmp_path: Path) -> None:
    """The file as the intervention report writes it is the one that is read here."""
    file = tmp_path / "steering.json"
    SteeringFile.model_validate(steering(model, {2: CEILING}, CENTRE)).save(file)
    (layer,) = read_ceiling(file, "warmth", "0.99").layers
    assert (layer.layer, layer.centre, layer.ceiling) == (2, CENTRE, CEILING)
    assert torch.equal(torch.tensor(layer.direction, dtype=torch.float64), unit(HIDDEN, 2))


def test_says_that_it_is_on(model: Any, written: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    """The log says what is capped, where, and whether anybody is told."""
    caplog.set_level(logging.WARNING)
    cap(model, written(model), "warmth").close()
    assert "cap on: warmth is kept below 0.99 of the reference at layers 2, 3" in caplog.text
    assert "without a tap nobody is told" in caplog.text
