"""A bank for another version of its model, without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_bank, make_chatml_tokenizer, make_tensors
from small_corpus import DEPTH, HIDDEN, make_model, words
from turned import turned

from monitor.calibration.activations import Activations, collect
from monitor.calibration.corpus import exchange, sha256_of
from monitor.calibration.realign import LEAST_TEXTS, METHOD, SharedTexts, read_shared, realign
from monitor.capture.identity import template_hash, tokenizer_hash, weights_fingerprint
from monitor.errors import CorpusError, ModelMismatchError
from monitor.evaluation.judge import scores_of
from monitor.probes.bank import Bank, load_bank, seal
from monitor.probes.diff import compare, told
from monitor.probes.markers import find_markers

LAYERS = (2, 3)


@pytest.fixture(scope="module")
def bank(model: Any, tiny_tokenizer: Any) -> Bank:
    """A bank of the tiny model, with its identity."""
    plain = make_bank(HIDDEN, LAYERS, DEPTH)
    card = plain.card.model_dump(exclude={"bank_id", "tensors_sha256"})
    card["model"] |= {
        "weights_fingerprint": weights_fingerprint(model),
        "tokenizer_hash": tokenizer_hash(tiny_tokenizer),
        "template_hash": template_hash(tiny_tokenizer),
    }
    card["markers"] = [{"tokens": marker.tokens, "role": marker.role.name} for marker in find_markers(tiny_tokenizer)]
    return seal(card, make_tensors(HIDDEN, len(LAYERS)))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SharedTexts:
    """Texts without labels, from a file."""
    rng = np.random.default_rng(3)
    file = tmp_path_factory.mktemp("shared") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": words(rng)}) + "\n" for _ in range(150)))
    return read_shared(file)


@pytest.fixture(scope="module")
def realigned(bank: Bank, model: Any, tiny_tokenizer: Any, shared: SharedTexts) -> Bank:
    """The bank, realigned to the turned model."""
    return realign(bank, (model, tiny_tokenizer), (turned(model), tiny_tokenizer), shared, name="turned")


def read(model: Any, tokenizer: Any) -> Activations:
    """Exchanges nothing was fitted on."""
    rng = np.random.default_rng(8)
    talks = [exchange(words(rng), words(rng)) for _ in range(40)]
    return collect(model, tokenizer, find_markers(tokenizer), talks, LAYERS)


def probe_scores(bank: Bank, found: Activations) -> np.ndarray:
    """Standardised scores of both roles, of the probes alone."""
    return scores_of(bank, found, (0, 1))[..., : bank.columns.probes]


class TestRealign:
    """The realigned bank."""

    def test_scores_the_new_version_as_the_old_was(
        self, bank: Bank, realigned: Bank, model: Any, tiny_tokenizer: Any
    ) -> None:
        """Of a model that says the same in turned coordinates every probe says the same; the old bank does not."""
        before = probe_scores(bank, read(model, tiny_tokenizer))
        there = read(turned(model), tiny_tokenizer)
        after, stale = probe_scores(realigned, there), probe_scores(bank, there)
        np.testing.assert_allclose(after, before, atol=0.05)
        assert np.abs(stale - before).mean() > 0.5

    def test_leaves_the_bank_of_an_unchanged_model_as_it_is(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, shared: SharedTexts
    ) -> None:
        """Realigned to its own model a bank scores as it did."""
        pair = (model, tiny_tokenizer)
        found = read(*pair)
        again = realign(bank, pair, pair, shared, name="same")
        np.testing.assert_allclose(probe_scores(again, found), probe_scores(bank, found), atol=1e-3)

    def test_says_where_it_comes_from(
        self, bank: Bank, realigned: Bank, model: Any, tiny_tokenizer: Any, shared: SharedTexts
    ) -> None:
        """The card names the new model, the old bank, the texts, the method and what held-out texts say of it."""
        card, new = realigned.card, turned(model)
        assert card.model.name == "turned"
        assert card.model.weights_fingerprint == weights_fingerprint(new)
        assert card.model.template_hash == template_hash(tiny_tokenizer)
        assert not card.validated
        assert card.battery == ()
        assert card.realigned is not None
        assert card.realigned.from_bank == bank.card.bank_id
        assert card.realigned.from_model == bank.card.model.weights_fingerprint
        assert card.realigned.texts == len(shared.texts)
        assert card.realigned.texts_sha256 == sha256_of(shared.file)
        assert card.realigned.method == METHOD
        assert card.realigned.explained > 0.99
        assert card.realigned.agreement > 0.99
        assert card.realigned.agreement_before < 0.9

    def test_can_be_saved_and_compared(self, bank: Bank, realigned: Bank, tmp_path: Path) -> None:
        """It loads and verifies like any bank, and a comparison tells that it was realigned."""
        realigned.save(tmp_path / "bank")
        loaded = load_bank(str(tmp_path / "bank"))
        assert loaded.card == realigned.card
        lines = "\n".join(told(compare(bank, loaded)))
        assert "validated: True -> False" in lines
        assert f"realigned.from_bank: none -> {bank.card.bank_id}" in lines

    def test_says_nothing_in_banks_that_were_calibrated(self, bank: Bank) -> None:
        """The card of a calibrated bank is what it was before banks could be realigned, and so is its id."""
        assert "realigned" not in bank.card.model_dump()
        assert "realigned" not in bank.card.model_dump_json()

    def test_tells_of_its_progress(self, bank: Bank, model: Any, tiny_tokenizer: Any, shared: SharedTexts) -> None:
        """Both models read each text in both positions."""
        steps: list[tuple[int, int]] = []
        pair = (model, tiny_tokenizer)
        realign(bank, pair, pair, shared, name="same", progress=lambda done, total: steps.append((done, total)))
        assert steps[-1] == (600, 600)
        assert [done for done, _ in steps] == sorted(done for done, _ in steps)


class TestRefuses:
    """What cannot be realigned."""

    def test_an_old_model_that_is_not_the_banks(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, shared: SharedTexts
    ) -> None:
        """The model the bank was calibrated on has to be there."""
        pair = (turned(model), tiny_tokenizer)
        with pytest.raises(ModelMismatchError, match="name the model the bank was calibrated on"):
            realign(bank, pair, pair, shared, name="other")

    def test_another_shape(self, bank: Bank, model: Any, tiny_tokenizer: Any, shared: SharedTexts) -> None:
        """A wider model has other rows."""
        wider = make_model(len(tiny_tokenizer), hidden=64)
        with pytest.raises(ModelMismatchError, match="hidden size: 64 where the bank has 32"):
            realign(bank, (model, tiny_tokenizer), (wider, tiny_tokenizer), shared, name="wider")

    def test_another_vocabulary(self, bank: Bank, model: Any, tiny_tokenizer: Any, shared: SharedTexts) -> None:
        """The text twin reads token ids, which must mean the same."""
        other = make_chatml_tokenizer()
        other.add_tokens(["unheard"])
        with pytest.raises(ModelMismatchError, match="another vocabulary"):
            realign(bank, (model, tiny_tokenizer), (model, other), shared, name="other")


class TestReadShared:
    """Files of shared texts."""

    def test_needs_enough_texts(self, tmp_path: Path) -> None:
        """Too few are refused with their number."""
        file = tmp_path / "few.jsonl"
        file.write_text('{"text": "hello"}\n' * (LEAST_TEXTS - 1))
        with pytest.raises(CorpusError, match=f"holds 99 texts where {LEAST_TEXTS} are needed"):
            read_shared(file)

    def test_names_a_row_without_text(self, tmp_path: Path) -> None:
        """An empty text is refused with its line."""
        file = tmp_path / "gap.jsonl"
        file.write_text('{"text": "hello"}\n{"text": " "}\n')
        with pytest.raises(CorpusError, match=r"gap.jsonl:2:text: is empty or missing"):
            read_shared(file)

    def test_looks_at_no_label(self, tmp_path: Path) -> None:
        """Labelled texts, a corpus's for one, serve as well."""
        file = tmp_path / "labelled.csv"
        file.write_text("text,label\n" + "hello,no emotion anybody knows\n" * LEAST_TEXTS)
        assert read_shared(file).texts == ["hello"] * LEAST_TEXTS
