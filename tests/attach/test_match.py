"""Tests of finding a model on this machine, and of comparing it with the one a bank was calibrated on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from builders import CHATML

from monitor.attach.arguments import Arguments
from monitor.attach.match import check_bank
from monitor.attach.model import ServedModel, find_model
from monitor.capture.identity import template_hash, tokenizer_hash
from monitor.errors import SetupError
from monitor.probes.bank import Bank, ModelCard

CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 16, "num_hidden_layers": 2, "dtype": "bfloat16"}


def write(folder: Path, **config: Any) -> Path:
    """A model's folder, with nothing in it but a config."""
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder


def found(folder: Path) -> ServedModel:
    """The model of a folder."""
    model = find_model(str(folder))
    assert model is not None
    return model


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    """A model with a tokenizer."""
    tiny_tokenizer.save_pretrained(tmp_path)
    return write(tmp_path)


@pytest.fixture
def card(small_bank: Bank, tiny_tokenizer: Any) -> ModelCard:
    """The bank's card of that model."""
    hashes = {"tokenizer_hash": tokenizer_hash(tiny_tokenizer), "template_hash": template_hash(tiny_tokenizer)}
    return small_bank.card.model.model_copy(update={"hidden_size": 16, "depth": 2, **hashes})


class TestFindModel:
    """Models by name."""

    def test_reads_what_a_folder_holds(self, tmp_path: Path) -> None:
        """Size, depth, precision and classes, by either name of the precision."""
        model = found(write(tmp_path))
        assert (model.folder, model.architectures) == (tmp_path, ("LlamaForCausalLM",))
        assert (model.hidden_size, model.depth, model.dtype) == (16, 2, "bfloat16")
        assert not model.is_latent
        assert not model.speculates
        assert found(write(tmp_path, dtype=None, torch_dtype="float16")).dtype == "float16"

    def test_looks_into_the_language_part_of_models_that_see(self, tmp_path: Path) -> None:
        """What text_config says counts."""
        model = found(write(tmp_path, text_config={"hidden_size": 8, "num_hidden_layers": 4, "kv_lora_rank": 512}))
        assert (model.hidden_size, model.depth, model.is_latent) == (8, 4, True)

    def test_sees_a_draft_that_comes_along(self, tmp_path: Path) -> None:
        """Checkpoints of the speculators library."""
        assert found(write(tmp_path, speculators_config={"algorithm": "eagle3"})).speculates

    @pytest.mark.parametrize("name", ["/nowhere/model", "nobody/nothing-of-this-name", "not a name"])
    def test_knows_what_is_not_here(self, name: str) -> None:
        """Nothing is fetched."""
        assert find_model(name) is None

    def test_refuses_a_config_that_is_illegible(self, tmp_path: Path) -> None:
        """The file is named."""
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(SetupError, match=r"config\.json"):
            find_model(str(tmp_path))


class TestCheckBank:
    """A bank beside a model."""

    def test_has_nothing_to_say_of_its_own_model(self, card: ModelCard, folder: Path) -> None:
        """Size, depth, tokenizer and template agree."""
        assert check_bank(card, found(folder), Arguments(["model"])) == []

    @pytest.mark.parametrize("change", [{"hidden_size": 32}, {"num_hidden_layers": 3}])
    def test_refuses_a_model_it_cannot_score(self, card: ModelCard, folder: Path, change: dict[str, int]) -> None:
        """Rows of another length, layers of another depth."""
        with pytest.raises(SetupError, match="name the bank of this model"):
            check_bank(card, found(write(folder, **change)), Arguments(["model"]))

    def test_notes_another_tokenizer_and_template(self, card: ModelCard, folder: Path) -> None:
        """The sidecar would refuse these, or mark their turns."""
        (folder / "chat_template.jinja").write_text(CHATML + " ")
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "content": "<|new|>", "id": 9999})
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
        notes = check_bank(card, found(folder), Arguments(["model"]))
        assert ["another tokenizer" in note for note in notes] == [True, False]
        assert ["another chat template" in note for note in notes] == [False, True]

    def test_reads_a_template_from_the_tokenizers_config(self, card: ModelCard, folder: Path) -> None:
        """Where older versions of transformers put it."""
        (folder / "chat_template.jinja").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML}))
        assert check_bank(card, found(folder), Arguments(["model"])) == []

    def test_notes_a_precision_that_is_not_the_weights(self, card: ModelCard, folder: Path) -> None:
        """Weights in float32 are served in 16 bits unless vLLM is told otherwise."""
        model = found(write(folder, dtype="float32"))
        assert "--dtype float32" in check_bank(card, model, Arguments(["model"]))[0]
        assert check_bank(card, model, Arguments(["model", "--dtype", "float"])) == []
        assert "float16" in check_bank(card, found(write(folder)), Arguments(["model", "--dtype", "half"]))[0]

    @pytest.mark.parametrize("option", ["--quantization", "--tokenizer", "--chat-template"])
    def test_notes_what_makes_another_model_of_it(self, card: ModelCard, folder: Path, option: str) -> None:
        """Options that change weights, tokens or roles behind the bank's back."""
        (note,) = check_bank(card, found(folder), Arguments(["model", option, "other"]))
        assert note.startswith(option)
