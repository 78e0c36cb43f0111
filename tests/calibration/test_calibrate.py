"""Tests of calibration end to end: a tiny model and a small corpus, and the demo assistant with the shipped bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from builders import make_tokenizer
from small_corpus import HIDDEN, OWN_USER, grid_item, make_corpus, make_model, read, write_corpus

from monitor.calibration.calibrate import calibrate
from monitor.calibration.corpus import SHIPPED, GridItem, read_lines
from monitor.errors import CorpusError, SetupError
from monitor.policy.schema import load_policy
from monitor.probes.bank import Bank, Stance, load_bank
from monitor.sidecar.offline import OfflineScorer

POLICY = """
version: 1
policies:
  - name: desk
    stance: neutral
    turn: {false_alarm_rate: 0.5, min_assistant_tokens: 2}
"""


def made(model: Any, tokenizer: Any, folder: Path, cache: Path) -> Bank:
    """The bank of a model and the corpus in a folder."""
    return calibrate("tiny", lambda: (model, tokenizer), read(folder), cache)


@pytest.fixture(scope="module")
def bank(model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Bank:
    """The bank of the tiny model and the small corpus."""
    folder = tmp_path_factory.mktemp("calibration")
    return made(model, tiny_tokenizer, write_corpus(folder / "corpus", make_corpus()), folder / "cache")


def assessed(scorer: OfflineScorer, folder: Path, talks: list[list[dict[str, str]]]) -> list[dict[str, Any]]:
    """Assessments of conversations by ``affect-monitor score``'s own code."""
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps({"id": n, "messages": talk}) + "\n" for n, talk in enumerate(talks)))
    scorer.score_file(source, target)
    return [json.loads(line)["assessment"] for line in target.read_text().splitlines()]


class TestBank:
    """What calibration makes."""

    def test_it_is_saved_and_verified(self, bank: Bank, tmp_path: Path) -> None:
        """The bank passes its own checks when it is read back, and says what it was made from."""
        bank.save(tmp_path)
        loaded = load_bank(str(tmp_path))
        assert loaded.card == bank.card
        assert loaded.card.layers == (2, 3)
        assert loaded.card.model.hidden_size == HIDDEN
        assert set(loaded.card.corpus_sha256) == {
            "emotions.json", "texts.jsonl", "grid.jsonl", "service.jsonl", "approved",
        }  # fmt: skip
        files = make_corpus()
        grid, clear = len(files["grid.jsonl"]), sum(item["strength"] >= 2 for item in files["grid.jsonl"])
        rest = len(files["approved.jsonl"]) + 2 * len(files["service.jsonl"])
        turns = {Stance.NEUTRAL: 2 * grid + rest, Stance.SUPPORTIVE: grid + rest, Stance.CRISIS: clear}
        assert loaded.card.reference.turns == turns
        held = np.isfinite(loaded.tensors.residuals).sum(axis=2)
        assert held.tolist() == [[count] * 4 for count in turns.values()]

    def test_it_is_the_same_bit_for_bit(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, corpus_folder: Path, tmp_path: Path
    ) -> None:
        """The same inputs give the same two files, by a fresh run and by one that reads its cache."""
        bank.save(tmp_path / "first")
        for name in ("fresh", "cached"):
            made(model, tiny_tokenizer, corpus_folder, tmp_path / "cache").save(tmp_path / name)
            for file in ("bank.json", "bank.safetensors"):
                assert (tmp_path / name / file).read_bytes() == (tmp_path / "first" / file).read_bytes()

    def test_other_inputs_are_another_bank(
        self, bank: Bank, tiny_tokenizer: Any, corpus_folder: Path, tmp_path: Path
    ) -> None:
        """Other weights give a bank with another fingerprint and id."""
        other = made(make_model(len(tiny_tokenizer), seed=6), tiny_tokenizer, corpus_folder, tmp_path / "cache")
        assert other.card.model.weights_fingerprint != bank.card.model.weights_fingerprint
        assert other.card.bank_id != bank.card.bank_id

    def test_directions_are_units_and_the_reference_standard(self, bank: Bank) -> None:
        """Directions have length one; reference scores have mean 0 and spread 1 on either side."""
        np.testing.assert_allclose(np.linalg.norm(bank.tensors.directions, axis=-1), 1.0, atol=1e-6)
        for scores in (bank.tensors.reference_user, bank.tensors.reference_assistant):
            np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose(scores.std(axis=0), 1, atol=1e-4)

    def test_signs_shared_by_all_domains_are_learnt(self, bank: Bank) -> None:
        """Excess that looks alike everywhere is found in held-out domains, by probes and twin alike."""
        assert bank.card.figures["excess_auroc"] > 0.95
        assert bank.card.figures["excess_auroc_twin"] > 0.95


class TestHoldingOut:
    """What is reported or calibrates was not fitted on."""

    def test_a_signature_of_each_domain_is_no_excess(self, tiny_tokenizer: Any, tmp_path: Path) -> None:
        """Signs that mark excess in one domain alone help nowhere, unless the folds mix the domains' items.

        The same texts under labels that put every domain's items into all folds are found: the test can see a leak.
        """
        model = make_model(len(tiny_tokenizer), hidden=128)
        rng, files = np.random.default_rng(3), make_corpus()
        alphabet = [chr(code) for code in range(0xC0, 0xC0 + 18)]
        rng.shuffle(alphabet)
        items = [
            grid_item(rng, f"domain {domain}", strength, [4 * sign for sign in alphabet[3 * domain : 3 * domain + 3]])
            for domain in range(6)
            for strength in 2 * (0, 1, 2, 3)
        ]
        figures = {}
        for kind in ("held out", "leaking"):
            for number, item in enumerate(items):
                item["domain"] = f"domain {number // 8 if kind == 'held out' else number // 2 % 4}"
            folder = write_corpus(tmp_path / kind, {**files, "grid.jsonl": items})
            figures[kind] = made(model, tiny_tokenizer, folder, tmp_path / "cache").card.figures
        held, leaking = figures["held out"], figures["leaking"]
        assert max(held["excess_auroc"], held["excess_auroc_twin"]) < 0.65
        assert leaking["excess_auroc_twin"] > 0.95
        assert leaking["excess_auroc"] > held["excess_auroc"] + 0.2

    @pytest.mark.parametrize("label", ["domain 0", "elsewhere", None])
    def test_approved_turns_go_with_the_grids_users(
        self, model: Any, tiny_tokenizer: Any, corpus_folder: Path, tmp_path: Path, label: str | None
    ) -> None:
        """A user turn of the grid is scored without its domain wherever it recurs, whatever the label says."""
        files = make_corpus()
        asked = [next(n for n, item in enumerate(files["grid.jsonl"]) if item["user"] == turn["messages"][0]["content"])
                 for turn in files["approved.jsonl"][:-1]]  # fmt: skip
        for turn in files["approved.jsonl"]:
            turn["labels"] = {"domain": label} if label else {}
        write_corpus(corpus_folder, files)
        user = made(model, tiny_tokenizer, corpus_folder, tmp_path / "cache").tensors.reference_user
        first = 2 * len(files["grid.jsonl"])
        np.testing.assert_allclose(user[first : first + len(asked)], user[2 * np.array(asked)], atol=1e-4)

    def test_own_turns_are_scored_as_the_sidecar_will(
        self, bank: Bank, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """Approved turns with users of their own stand in the reference with their live scores, twin included."""
        policy = tmp_path / "policy.yaml"
        policy.write_text(POLICY)
        scorer = OfflineScorer(bank, load_policy(policy, bank), model, tiny_tokenizer)
        files = make_corpus()
        own = files["approved.jsonl"][-1]["messages"]
        assert own[0]["content"] == OWN_USER
        (found,) = assessed(scorer, tmp_path, [own])
        tensors, columns = bank.tensors, bank.columns
        row = 2 * len(files["grid.jsonl"]) + len(files["approved.jsonl"]) - 1
        assert found["user_affect"] == pytest.approx(tensors.reference_user[row, columns.user_affect], abs=1e-3)
        value = tensors.reference_assistant[row, columns.assistant_affect]
        assert found["assistant_affect"] == pytest.approx(value, abs=1e-3)
        line, scale = tensors.warranted[0, -1], tensors.warranted_scale[0, -1]
        level = line[0] + line[1] * tensors.reference_user[row, columns.twin_user_affect]
        twin = tensors.reference_assistant[row, columns.twin_assistant_affect]
        assert found["twin_over_index"] == pytest.approx((twin - level) / scale, abs=1e-3)


class TestFaults:
    """What cannot be calibrated."""

    def test_no_chat_template(self, model: Any, corpus_folder: Path, tmp_path: Path) -> None:
        """Without a chat template nobody knows where a reply begins."""
        tokenizer = make_tokenizer(None, ("<|im_end|>",), eos="<|im_end|>")
        with pytest.raises(SetupError, match="no chat template") as caught:
            made(model, tokenizer, corpus_folder, tmp_path / "cache")
        assert caught.value.field == "--model"

    def test_a_reply_beyond_the_context(
        self, model: Any, tiny_tokenizer: Any, corpus_folder: Path, tmp_path: Path
    ) -> None:
        """A text too long for the model is named by file, line and field."""
        files = make_corpus()
        files["grid.jsonl"][6]["excessive"] = "long " * 200
        write_corpus(corpus_folder, files)
        with pytest.raises(CorpusError, match="cut it") as caught:
            made(model, tiny_tokenizer, corpus_folder, tmp_path / "cache")
        assert caught.value.field == f"{corpus_folder / 'grid.jsonl'}:7:excessive"


@pytest.mark.assistant
class TestShippedBank:
    """The shipped bank on the real assistant."""

    def test_excessive_replies_exceed_warranted_ones(self, tmp_path: Path) -> None:
        """Live scores of replies to the same users are higher for the excessive one in most pairs."""
        folder = needs.assistant()
        from monitor.demo.assistant import load_assistant

        policy = tmp_path / "policy.yaml"
        policy.write_text(POLICY)
        shipped = load_bank("smollm2-135m-instruct")
        scorer = OfflineScorer(shipped, load_policy(policy, shipped), *load_assistant(folder))
        grid = read_lines(SHIPPED / "grid.jsonl", GridItem)[::28]
        talks = [
            [{"role": "user", "content": item.user}, {"role": "assistant", "content": reply}]
            for item in grid
            for reply in (item.warranted, item.excessive)
        ]
        over = np.array([found["over_index"] for found in assessed(scorer, tmp_path, talks)]).reshape(-1, 2)
        assert len(over) == 12
        assert (over[:, 1] > over[:, 0]).mean() >= 0.8
