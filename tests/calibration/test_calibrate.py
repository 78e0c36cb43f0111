"""Tests of calibration end to end: a tiny model and a small corpus, and the demo assistant with the shipped bank."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import needs
import numpy as np
import pytest
from builders import make_tokenizer
from small_corpus import (
    DEPTH,
    HIDDEN,
    OWN_USER,
    Files,
    grid_item,
    make_corpus,
    make_model,
    optional_parts,
    read,
    words,
    write_corpus,
)

from monitor.calibration.calibrate import Calibration, calibrate
from monitor.calibration.corpus import APPROVED, CONTRAST, GRID, SHIPPED
from monitor.calibration.lines import GridItem, read_lines
from monitor.calibration.statistics import auroc
from monitor.calibration.sweep import candidate_layers
from monitor.errors import CorpusError, SetupError
from monitor.policy.schema import load_policy
from monitor.probes.bank import Stance, load_bank
from monitor.probes.fit import ESTIMATORS
from monitor.sidecar.offline import OfflineScorer

POLICY = """
version: 1
policies:
  - name: desk
    stance: neutral
    turn: {false_alarm_rate: 0.5, min_assistant_tokens: 2}
"""


def made(model: Any, tokenizer: Any, folder: Path, cache: Path, **options: Any) -> Calibration:
    """The calibration of a model and the corpus in a folder."""
    return calibrate("tiny", lambda: (model, tokenizer), read(folder), cache, **options)


def whole_corpus() -> Files:
    """A corpus with every file."""
    return make_corpus() | optional_parts()


@pytest.fixture
def whole_folder(tmp_path: Path) -> Path:
    """A folder with every file of a corpus."""
    return write_corpus(tmp_path / "whole", whole_corpus())


@pytest.fixture(scope="module")
def whole(model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    """The calibration of the tiny model and a corpus with every file."""
    folder = tmp_path_factory.mktemp("calibration")
    return made(model, tiny_tokenizer, write_corpus(folder / "corpus", whole_corpus()), folder / "cache")


def assessed(scorer: OfflineScorer, folder: Path, talks: list[list[dict[str, str]]]) -> list[dict[str, Any]]:
    """Assessments of conversations by ``affect-monitor score``'s own code."""
    source, target = folder / "in.jsonl", folder / "out.jsonl"
    source.write_text("".join(json.dumps({"id": n, "messages": talk}) + "\n" for n, talk in enumerate(talks)))
    scorer.score_file(source, target)
    return [json.loads(line)["assessment"] for line in target.read_text().splitlines()]


def excess(found: Calibration, source: str = GRID) -> tuple[float, float]:
    """AUROC of excessive against warranted replies by held-out scores: probes and twin."""
    turns, columns = found.tables.turns, found.bank.columns
    sides = [found.scores.turns[(turns.source == source) & (turns.grade == grade), 1] for grade in (1, 2)]
    probe, twin = (
        auroc(*(side[:, column] for side in sides))
        for column in (columns.assistant_affect, columns.twin_assistant_affect)
    )
    return probe, twin


def emotions(found: Calibration) -> float:
    """Macro AUROC of emotions by held-out scores of texts, both positions."""
    truth = np.tile(found.tables.texts.emotion, 2)
    scores = found.scores.texts[..., found.bank.columns.emotion].reshape(len(truth), -1)
    return float(np.mean([auroc(scores[truth != e, e], scores[truth == e, e]) for e in range(scores.shape[1])]))


class TestBank:
    """What calibration makes."""

    def test_it_is_saved_and_verified(self, whole: Calibration, tmp_path: Path) -> None:
        """The bank passes its own checks when it is read back, and says what it was made from."""
        whole.bank.save(tmp_path)
        loaded = load_bank(str(tmp_path))
        assert loaded.card == whole.bank.card
        assert set(loaded.card.layers) <= set(candidate_layers(DEPTH))
        assert (loaded.card.model.hidden_size, loaded.card.model.depth) == (HIDDEN, DEPTH)
        assert set(loaded.card.corpus_sha256) == {*whole_corpus(), "approved"} - {"approved.jsonl"}
        assert loaded.card.estimator["name"] == "whitened"
        assert loaded.card.validated
        assert loaded.card.battery == ()

    def test_its_reference_is_all_that_a_stance_allows(self, whole: Calibration) -> None:
        """Neutral, warranted, service and approved turns, each where it would be right; the card counts them."""
        files = whole_corpus()
        grid, pairs = files["grid.jsonl"], files["contrast.jsonl"]
        clear = sum(item["strength"] >= 2 for item in [*grid, *pairs])
        rest = len(files["approved.jsonl"]) + 2 * len(files["service.jsonl"]) + len(pairs)
        turns = {
            Stance.NEUTRAL: 2 * len(grid) + rest, Stance.SUPPORTIVE: len(grid) + rest, Stance.CRISIS: clear,
        }  # fmt: skip
        card = whole.bank.card.reference
        assert card.turns == turns
        held = np.isfinite(whole.bank.tensors.residuals).sum(axis=2)
        assert held.tolist() == [[count] * 4 for count in turns.values()]
        assert card.source == (
            f"{len(files['approved.jsonl'])} approved turns of the model, 8 exchanges of plain service, "
            f"{2 * len(grid)} authored neutral and warranted replies, "
            f"{len(pairs)} authored warranted replies of contrast pairs"
        )

    def test_it_is_the_same_bit_for_bit(
        self, whole: Calibration, model: Any, tiny_tokenizer: Any, whole_folder: Path, tmp_path: Path
    ) -> None:
        """The same inputs give the same two files, by a fresh run and by one that reads its cache."""
        whole.bank.save(tmp_path / "first")
        for name in ("fresh", "cached"):
            made(model, tiny_tokenizer, whole_folder, tmp_path / "cache").bank.save(tmp_path / name)
            for file in ("bank.json", "bank.safetensors"):
                assert (tmp_path / name / file).read_bytes() == (tmp_path / "first" / file).read_bytes()

    def test_other_inputs_are_another_bank(
        self, whole: Calibration, tiny_tokenizer: Any, whole_folder: Path, tmp_path: Path
    ) -> None:
        """Other weights give a bank with another fingerprint and id."""
        other = made(make_model(len(tiny_tokenizer), seed=6), tiny_tokenizer, whole_folder, tmp_path / "cache").bank
        assert other.card.model.weights_fingerprint != whole.bank.card.model.weights_fingerprint
        assert other.card.bank_id != whole.bank.card.bank_id

    def test_directions_are_units_and_the_reference_standard(self, whole: Calibration) -> None:
        """Directions have length one; reference scores have mean 0 and spread 1 on either side."""
        tensors = whole.bank.tensors
        np.testing.assert_allclose(np.linalg.norm(tensors.directions, axis=-1), 1.0, atol=1e-6)
        for scores in (tensors.reference_user, tensors.reference_assistant):
            np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose(scores.std(axis=0), 1, atol=1e-4)

    @pytest.mark.parametrize("source", [GRID, CONTRAST])
    def test_signs_shared_by_all_domains_are_learnt(self, whole: Calibration, source: str) -> None:
        """Excess that looks alike everywhere is found in held-out domains, by probes and twin alike."""
        probe, twin = excess(whole, source)
        assert probe > 0.95
        assert twin > 0.95

    @pytest.mark.parametrize("name", ESTIMATORS)
    def test_each_estimator_makes_a_bank_that_loads(
        self, model: Any, tiny_tokenizer: Any, corpus_folder: Path, tmp_path: Path, name: str
    ) -> None:
        """The card names the estimator and its settings, and the bank it made finds a planted excess."""
        found = made(model, tiny_tokenizer, corpus_folder, tmp_path / "cache", estimator=name, layers=(3,))
        found.bank.save(tmp_path / "bank")
        loaded = load_bank(str(tmp_path / "bank"))
        assert loaded.card.estimator["name"] == name
        assert vars(ESTIMATORS[name]).items() <= loaded.card.estimator.items()
        assert excess(found)[0] > 0.8


class TestLayers:
    """Layers of the bank."""

    def test_those_that_are_given_are_taken(
        self, model: Any, tiny_tokenizer: Any, corpus_folder: Path, tmp_path: Path
    ) -> None:
        """Given layers are the bank's, ascending and once each, and nothing is swept."""
        found = made(model, tiny_tokenizer, corpus_folder, tmp_path / "cache", layers=(4, 1, 4))
        assert found.bank.card.layers == (1, 4)
        assert (found.chosen, found.sweep) == ((0, 1), [])

    def test_without_them_the_best_of_a_sweep_are(self, whole: Calibration) -> None:
        """Every candidate is tried, and the bank has one at least as good as any of them."""
        candidates = candidate_layers(DEPTH)
        assert [swept.layers for swept in whole.sweep] == [(layer,) for layer in candidates]
        assert whole.bank.card.layers == tuple(candidates[at] for at in whole.chosen)
        best = max(whole.sweep, key=lambda swept: swept.worth)
        assert set(best.layers) <= set(whole.bank.card.layers)

    @pytest.mark.parametrize("layers", [(0,), (2, DEPTH + 1), (-1,)])
    def test_others_than_the_models_are_refused(
        self, model: Any, tiny_tokenizer: Any, corpus_folder: Path, tmp_path: Path, layers: tuple[int, ...]
    ) -> None:
        """A layer the model has not, and the embeddings, are an error of the flag that says which there are."""
        with pytest.raises(SetupError, match=f"layers 1 to {DEPTH}") as caught:
            made(model, tiny_tokenizer, corpus_folder, tmp_path / "cache", layers=layers)
        assert caught.value.field == "--layers"


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
            figures[kind] = excess(made(model, tiny_tokenizer, folder, tmp_path / "cache", layers=(3,)))
        assert max(figures["held out"]) < 0.65
        assert figures["leaking"][1] > 0.95
        assert figures["leaking"][0] > figures["held out"][0] + 0.2

    def test_a_signature_of_each_topic_is_no_emotion(self, tiny_tokenizer: Any, tmp_path: Path) -> None:
        """Signs that mark an emotion in the texts of one topic alone help nowhere, unless topics mix them.

        The same texts under topics that put every sign into all folds are found: the test can see a leak.
        """
        model = make_model(len(tiny_tokenizer), hidden=128)
        rng, files = np.random.default_rng(4), make_corpus()
        names = [*dict.fromkeys(text["emotion"] for text in files["texts.jsonl"])]
        alphabet = [chr(code) for code in range(0xC0, 0xC0 + 40)]
        rng.shuffle(alphabet)
        topics = ("topic 0", "topic 1", "topic 2", "topic 3", "topic 4", "topic 6", "topic 7", "topic 9")
        texts = [
            {
                "emotion": name, "register": "chat", "topic": topic, "keyword_free": True,
                "text": f"{words(rng, 2)} {12 * alphabet[5 * place + names.index(name)]}",
            }
            for place, topic in enumerate(topics)
            for name in names
            for _ in range(8)
        ]  # fmt: skip
        figures, probabilities = {}, {}
        for kind in ("held out", "leaking"):
            for number, text in enumerate(texts):
                text["topic"] = topics[number // 40 if kind == "held out" else number % 8]
            folder = write_corpus(tmp_path / kind, {**files, "texts.jsonl": texts})
            found = made(model, tiny_tokenizer, folder, tmp_path / "cache", layers=(3,))
            figures[kind] = emotions(found)
            right = found.tables.texts.emotion[:, None] == np.arange(4)
            probabilities[kind] = found.probabilities[:, right].mean()
        assert figures["held out"] < 0.62
        assert figures["leaking"] > figures["held out"] + 0.2
        # Calibrated on what was held out, probabilities stay near the base rate where there is nothing to know.
        assert probabilities["held out"] < 0.3 < probabilities["leaking"]

    def test_probabilities_are_calibrated_on_other_folds(self, whole: Calibration) -> None:
        """Slope and intercept behind a fold's probabilities fit the others: they predict as many as these hold."""
        texts = whole.tables.texts
        for position in (0, 1):
            scores = whole.scores.texts[position][:, whole.bank.columns.emotion]
            logits = np.log(whole.probabilities[position] / (1 - whole.probabilities[position]))
            for fold in np.unique(texts.fold):
                held = texts.fold == fold
                for emotion in range(scores.shape[1]):
                    slope, intercept = np.polyfit(scores[held, emotion], logits[held, emotion], 1)
                    others = 1 / (1 + np.exp(-(slope * scores[~held, emotion] + intercept)))
                    assert others.mean() == pytest.approx((texts.emotion[~held] == emotion).mean(), abs=1e-3)

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
        found = made(model, tiny_tokenizer, corpus_folder, tmp_path / "cache", layers=(3,))
        users = found.scores.turns[:, 0]
        approved = np.flatnonzero(found.tables.turns.source == APPROVED)[:-1]
        np.testing.assert_allclose(users[approved], users[3 * np.array(asked)], atol=1e-4)

    def test_own_turns_are_scored_as_the_sidecar_will(
        self, whole: Calibration, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """Approved turns with users of their own stand in the reference with their live scores, twin included."""
        bank = whole.bank
        policy = tmp_path / "policy.yaml"
        policy.write_text(POLICY)
        scorer = OfflineScorer(bank, load_policy(policy, bank), model, tiny_tokenizer)
        own = make_corpus()["approved.jsonl"][-1]["messages"]
        assert own[0]["content"] == OWN_USER
        (found,) = assessed(scorer, tmp_path, [own])
        tensors, columns, turns = bank.tensors, bank.columns, whole.tables.turns
        row = int((turns.stance[: np.flatnonzero(turns.source == APPROVED)[-1]] >= 0).sum())
        user, assistant = tensors.reference_user[row], tensors.reference_assistant[row]
        brevity = tensors.reference_tokens[row] ** -0.5
        assert found["user_affect"] == pytest.approx(user[columns.user_affect], abs=1e-3)
        assert found["assistant_affect"] == pytest.approx(assistant[columns.assistant_affect], abs=1e-3)
        for name, target, given, value in (
            ("over_index", -2, columns.expected_affect, columns.assistant_affect),
            ("twin_over_index", -1, columns.twin_user_affect, columns.twin_assistant_affect),
        ):
            level = tensors.warranted[0, target] @ [1, user[given], brevity]
            unit = tensors.spread[0, target] @ [1, brevity]
            assert found[name] == pytest.approx((assistant[value] - level) / unit, abs=1e-3)


class TestProgress:
    """What is told while the model runs."""

    def test_it_counts_every_conversation_of_the_corpus(
        self, model: Any, tiny_tokenizer: Any, whole_folder: Path, tmp_path: Path
    ) -> None:
        """Done rises to what the corpus holds; the total stands from the start and counts what is still to be run."""
        told: list[tuple[int, int]] = []
        found = made(
            model, tiny_tokenizer, whole_folder, tmp_path / "cache",
            progress=lambda done, total: told.append((done, total)), further=7,
        )  # fmt: skip
        conversations = 2 * len(found.corpus.texts) + len(found.corpus.turns())
        done = [step for step, _ in told]
        assert done == sorted(done)
        assert done[-1] == conversations
        assert {total for _, total in told} == {conversations + 7}


class TestFaults:
    """What cannot be calibrated."""

    def test_no_chat_template(self, model: Any, corpus_folder: Path, tmp_path: Path) -> None:
        """Without a chat template nobody knows where a reply begins."""
        tokenizer = make_tokenizer(None, ("<|im_end|>",), eos="<|im_end|>")
        with pytest.raises(SetupError, match="no chat template") as caught:
            made(model, tokenizer, corpus_folder, tmp_path / "cache")
        assert caught.value.field == "--model"

    def test_no_scikit_learn(self, corpus_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a package is missing that is said at once, before a model is loaded."""
        monkeypatch.setitem(sys.modules, "sklearn", None)
        loaded: list[str] = []
        with pytest.raises(SetupError, match=r"pip install 'affect-monitor\[calibrate\]'"):
            calibrate("tiny", lambda: (loaded.append("model"), None), read(corpus_folder), tmp_path / "cache")
        assert loaded == []

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
        grid = read_lines(SHIPPED / "grid.jsonl", GridItem)[::32]
        talks = [
            [{"role": "user", "content": item.user}, {"role": "assistant", "content": reply}]
            for item in grid
            for reply in (item.warranted, item.excessive)
        ]
        over = np.array([found["over_index"] for found in assessed(scorer, tmp_path, talks)]).reshape(-1, 2)
        assert len(over) == len(grid)
        assert (over[:, 1] > over[:, 0]).mean() >= 0.8
