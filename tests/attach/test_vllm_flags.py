"""Tests of the options that make vLLM send hidden states, and of what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitor.attach import Capture
from monitor.attach.arguments import Arguments
from monitor.attach.model import ServedModel
from monitor.attach.vllm_flags import Attached, with_capture
from monitor.errors import SetupError

SIDECAR = "unix:///run/affect/ingest.sock"
LAYERS = (16, 20)
LLAMA = ServedModel(Path("llama"), ("LlamaForCausalLM",), 4096, 32, "bfloat16", is_latent=False, speculates=False)
NIXL = {"kv_connector": "NixlConnector", "kv_role": "kv_both", "engine_id": "pod-1", "kv_load_failure_policy": "fail"}


def attach(
    *arguments: str, model: ServedModel | None = LLAMA, capture: Capture = Capture.CACHE, **more: Any
) -> Attached:
    """What becomes of arguments of vLLM, behind a model's name."""
    given = {"layers": LAYERS, "settings": {"sidecar": SIDECAR}, **more}
    return with_capture(["llama", *arguments], capture=capture, model=model, **given)


def table(attached: Attached, name: str) -> dict[str, Any]:
    """A JSON option of the result, which has it once."""
    assert attached.arguments.count(name) == 1
    read: dict[str, Any] = json.loads(attached.arguments[attached.arguments.index(name) + 1])
    return read


def connector(attached: Attached) -> dict[str, Any]:
    """The KV connector of the result."""
    return table(attached, "--kv-transfer-config")


def refused(*arguments: str, **more: Any) -> str:
    """What is said of arguments that capture does not go with."""
    with pytest.raises(SetupError) as error:
        attach(*arguments, **more)
    return str(error.value)


class TestWhatIsAdded:
    """Arguments without conflicts."""

    def test_in_mode_cache_are_extraction_and_the_connector(self) -> None:
        """The user's arguments stay as they are, in front."""
        made = attach("--port", "8001", "--tensor_parallel_size=2")
        assert made.arguments[:4] == ["llama", "--port", "8001", "--tensor_parallel_size=2"]
        assert table(made, "--speculative-config") == {
            "method": "extract_hidden_states",
            "num_speculative_tokens": 1,
            "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [16, 20]}},
        }
        assert connector(made) == {
            "kv_connector": "AffectConnector",
            "kv_role": "kv_producer",
            "kv_connector_extra_config": {"sidecar": SIDECAR},
        }
        assert made.notes == []

    def test_in_mode_tap_is_the_connector_alone(self) -> None:
        """Speculation is left to the user, and the connector is told what to tap."""
        made = attach("--speculative-config", '{"method": "ngram"}', capture=Capture.TAP)
        assert table(made, "--speculative-config") == {"method": "ngram"}
        assert connector(made)["kv_connector_extra_config"] == {
            "sidecar": SIDECAR, "affect_capture": "tap", "layers": [16, 20],
        }  # fmt: skip

    @pytest.mark.parametrize("capture", Capture)
    def test_is_the_same_when_added_again(self, capture: Capture) -> None:
        """What is attached already is attached once."""
        once = attach("--port", "8001", capture=capture)
        again = with_capture(once.arguments, LAYERS, {"sidecar": SIDECAR}, capture, LLAMA)
        assert again == once

    def test_takes_the_place_of_what_was_added_for_another_mode(self) -> None:
        """Going back from tap to cache leaves nothing of the tap."""
        tapped = attach(capture=Capture.TAP)
        assert with_capture(tapped.arguments, LAYERS, {"sidecar": SIDECAR}, Capture.CACHE, LLAMA) == attach()

    def test_keeps_settings_of_the_connector_that_the_user_gave(self) -> None:
        """Further settings stay, and those of this call win."""
        mine = {"kv_connector": "AffectConnector", "engine_id": "pod-1"}
        extra = {"weights_fingerprint": "ab", "sidecar": "unix:///old"}
        made = attach("--kv-transfer-config", json.dumps({**mine, "kv_connector_extra_config": extra}))
        assert connector(made)["kv_connector_extra_config"] == {"weights_fingerprint": "ab", "sidecar": SIDECAR}
        assert connector(made)["engine_id"] == "pod-1"

    def test_says_what_it_could_not_check(self) -> None:
        """A model and a file of options that are elsewhere are noted, and no fault."""
        made = attach("--config", "elsewhere.yaml", model=None)
        assert [note.partition(" is not here")[0] for note in made.notes] == [
            "--config elsewhere.yaml",
            "the model llama",
        ]


class TestOtherConnectors:
    """A KV connector of the user's own."""

    def test_shares_its_place_in_mode_tap(self) -> None:
        """Both are in a MultiConnector; what vLLM reads of the whole stays with the whole, the id with it alone."""
        made = connector(attach("--kv-transfer-config", json.dumps(NIXL), capture=Capture.TAP))
        theirs, ours = made["kv_connector_extra_config"]["connectors"]
        assert theirs == {key: value for key, value in NIXL.items() if key != "engine_id"}
        assert ours["kv_connector"] == "AffectConnector"
        assert {**NIXL, "kv_connector": "MultiConnector"}.items() <= made.items()

    def test_is_joined_where_there_are_several(self) -> None:
        """A MultiConnector gets one more part, and no further one the next time."""
        parts = [{"kv_connector": name, "kv_role": "kv_both"} for name in ("NixlConnector", "OffloadingConnector")]
        several = {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"connectors": parts},
        }
        once = attach("--kv-transfer-config", json.dumps(several), capture=Capture.TAP)
        assert [part["kv_connector"] for part in connector(once)["kv_connector_extra_config"]["connectors"]] == [
            "NixlConnector", "OffloadingConnector", "AffectConnector",
        ]  # fmt: skip
        assert with_capture(once.arguments, LAYERS, {"sidecar": SIDECAR}, Capture.TAP, LLAMA) == once

    def test_is_refused_in_mode_cache(self) -> None:
        """It would carry cached hidden states along; the way out is named."""
        assert "--capture tap" in refused("--kv-transfer-config", json.dumps(NIXL))

    @pytest.mark.parametrize("capture", Capture)
    def test_is_refused_where_vllm_puts_it_in_by_itself(self, capture: Capture) -> None:
        """Offloading by its short option overwrites every connector."""
        assert "OffloadingConnector" in refused("--kv-offloading-size", "4", capture=capture)

    @pytest.mark.parametrize("written", ["no json", "[]", '"text"'])
    def test_must_be_legible(self, written: str) -> None:
        """A value that is no JSON object is a fault of that option."""
        assert refused("--kv-transfer-config", written).startswith("--kv-transfer-config: ")

    def test_must_be_written_whole(self) -> None:
        """Key by key it would silently win over ours."""
        assert "as one JSON object" in refused("--kv-transfer-config.kv_connector", "NixlConnector")


class TestConflicts:
    """What capture does not go with."""

    @pytest.mark.parametrize(
        "arguments",
        [
            ("--speculative-config", '{"method": "ngram", "num_speculative_tokens": 4}'),
            ('--speculative_config={"model": "draft"}',),
            ("-sc", '{"method": "eagle3"}'),
            ("--spec-method", "ngram"),
            ("--speculative-config.method", "ngram"),
            ("--watermark-config", "{}"),
        ],
    )  # fmt: skip
    def test_of_mode_cache_are_none_of_mode_tap(self, arguments: tuple[str, ...]) -> None:
        """Whatever needs the place of speculative decoding, or excludes it, is offered the tap, which takes it."""
        assert "--capture tap" in refused(*arguments)
        assert attach(*arguments, capture=Capture.TAP).arguments[1 : 1 + len(arguments)] == list(arguments)

    @pytest.mark.parametrize("change", [{"is_latent": True}, {"speculates": True}])
    def test_of_the_model_with_mode_cache_are_none_with_mode_tap(self, change: dict[str, bool]) -> None:
        """Latent attention, and a draft that comes with the model."""
        model = replace(LLAMA, **change)
        assert "--capture tap" in refused(model=model)
        attach(model=model, capture=Capture.TAP)

    @pytest.mark.parametrize("capture", Capture)
    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            (("-dcp", "2"), "--decode-context-parallel-size"),
            (("--prefill-context-parallel-size=2",), "--prefill-context-parallel-size"),
            (("--ubatch-size", "2"), "--ubatch-size"),
            (("--enable-dbo",), "--enable-dbo"),
            (("--kv-sharing-fast-prefill",), "--kv-sharing-fast-prefill"),
            (("-pp", "two"), "--pipeline-parallel-size"),
        ],
    )
    def test_of_either_mode(self, capture: Capture, arguments: tuple[str, ...], field: str) -> None:
        """Rows of a request that are spread over ranks or left out, and numbers that are none."""
        assert refused(*arguments, capture=capture).startswith(f"{field}: ")

    def test_of_pipelines_depend_on_the_model(self) -> None:
        """Stages hand hidden states on in some models; the tap sees one stage, of which a user is told."""
        attach("-pp", "2")
        attach("-pp", "2", model=None)
        assert "GemmaForCausalLM" in refused("-pp", "2", model=replace(LLAMA, architectures=("GemmaForCausalLM",)))
        assert "one stage" in attach("-pp", "2", capture=Capture.TAP).notes[0]

    @pytest.mark.parametrize(
        ("arguments", "bears"),
        [
            (("--kv-cache-dtype", "fp8"), True),
            (("--kv-cache-dtype", "bfloat16"), True),
            (("--kv-cache-dtype", "float16"), False),
            (("--kv-cache-dtype", "float16", "--dtype", "half"), True),
            (("--kv-cache-dtype", "bfloat16", "--dtype", "float32"), False),
        ],
    )
    def test_of_the_cache_are_other_precisions_unless_quantised(self, arguments: tuple[str, ...], bears: bool) -> None:
        """Quantised caches leave hidden states in the model's precision; unquantised ones must have it."""
        if bears:
            attach(*arguments)
        else:
            assert refused(*arguments).startswith("--kv-cache-dtype: ")

    @pytest.mark.parametrize("layers", [(), (20, 16), (16, 16), (-1, 4), (16, 33)])
    def test_are_layers_the_model_does_not_have(self, layers: tuple[int, ...]) -> None:
        """Layers ascend from 0 to the number of blocks."""
        assert refused(layers=layers).startswith("--layers: ")
        attach(layers=(0, 32))

    def test_are_plugins_that_leave_ours_out(self) -> None:
        """The remedy is the variable as it should be."""
        assert "VLLM_PLUGINS=lora_resolver,affect_monitor" in refused(environment={"VLLM_PLUGINS": "lora_resolver"})
        attach(environment={"VLLM_PLUGINS": "affect_monitor,lora_resolver"})

    def test_are_allocators_that_move_the_cache(self) -> None:
        """They are refused, unless vLLM brings its own allocator."""
        moving = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        assert refused(environment=moving).startswith("PYTORCH_CUDA_ALLOC_CONF: ")
        attach("--enable-sleep-mode", environment=moving)


class TestFileOfOptions:
    """vLLM's ``--config``."""

    def test_is_read_like_the_command_line(self, tmp_path: Path) -> None:
        """Options in it conflict and are shared as those of the command line are, which win over them."""
        file = tmp_path / "vllm.yaml"
        file.write_text(f"enforce-eager: true\nkv_transfer_config: {json.dumps(NIXL)}\n")
        assert refused("--config", str(file)).startswith("--kv-transfer-config: ")
        shared = connector(attach("--config", str(file), capture=Capture.TAP))
        assert [part["kv_connector"] for part in shared["kv_connector_extra_config"]["connectors"]] == [
            "NixlConnector",
            "AffectConnector",
        ]
        file.write_text("decode_context_parallel_size: 4\ndtype: float32\nlora-modules: [a=b, c=d]\n")
        attach("--config", str(file), "-dcp", "1")
        assert refused("--config", str(file)).startswith("--decode-context-parallel-size: ")

    @pytest.mark.parametrize("written", ["a: [", "just text"])
    def test_must_hold_options(self, tmp_path: Path, written: str) -> None:
        """A file that is here and illegible is a fault."""
        (tmp_path / "vllm.yaml").write_text(written)
        assert refused("--config", str(tmp_path / "vllm.yaml")).startswith("--config: ")


class TestModelName:
    """Which model arguments name."""

    @pytest.mark.parametrize(
        ("arguments", "name"),
        [
            (["org/model", "--port", "1"], "org/model"),
            (["--port", "1", "--model", "org/model"], "org/model"),
            (["--model=org/model"], "org/model"),
            (["--port", "1"], None),
            ([], None),
        ],
    )
    def test_is_the_first_argument_or_the_option(self, arguments: list[str], name: str | None) -> None:
        """Both ways of vLLM's servers."""
        assert Arguments(arguments).model == name
