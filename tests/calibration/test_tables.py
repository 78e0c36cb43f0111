"""A corpus as tables: what each row is of, and what may be done with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpus import DEPTH, HIDDEN, make_corpus, optional_parts, read, write_corpus

from monitor.calibration.activations import Activations, collect, render
from monitor.calibration.corpus import (
    APPROVED,
    CONTRAST,
    CRISIS,
    CROSSED,
    GRID,
    HARD,
    INTENSITY,
    SERVICE,
    UNGRADED,
    Corpus,
    Turn,
    exchange,
)
from monitor.calibration.tables import Runner, Tables, as_texts, make_tables, turn_table
from monitor.errors import CorpusError
from monitor.probes.bank import Stance
from monitor.probes.markers import find_markers
from monitor.probes.twin import token_shares

LAYERS = (2, 3)
STANCES = [stance.value for stance in Stance]


def runner(model: Any, tokenizer: Any, cache: Path, told: list[tuple[int, int]], planned: int = 0) -> Runner:
    """Runs conversations through the tiny model."""
    markers = find_markers(tokenizer)
    return Runner(
        model, tokenizer, markers, LAYERS, (cache, "f"), planned, lambda done, total: told.append((done, total))
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A corpus with every part."""
    return read(write_corpus(tmp_path_factory.mktemp("tables"), make_corpus() | optional_parts()))


@pytest.fixture(scope="module")
def tables(corpus: Corpus, model: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """Its tables."""
    return make_tables(corpus, runner(model, tiny_tokenizer, tmp_path_factory.mktemp("cache"), []))


def turn(source: str, grade: int, strength: int = 0) -> Turn:
    """A turn of a source."""
    return Turn(source, "place", exchange("a", "b"), 0, strength, grade, first=True)


class TestStance:
    """Where a turn would be right."""

    @pytest.mark.parametrize(
        ("source", "grade", "strength", "last"),
        [
            (GRID, 0, 0, "neutral"), (GRID, 0, 3, "neutral"),
            (GRID, 1, 0, "supportive"), (GRID, 1, 1, "supportive"), (GRID, 1, 2, "crisis"), (GRID, 1, 3, "crisis"),
            (GRID, 2, 0, None), (GRID, 2, 3, None),
            (CONTRAST, 1, 1, "supportive"), (CONTRAST, 1, 3, "crisis"), (CONTRAST, 2, 3, None),
            (SERVICE, 0, 0, "supportive"), (APPROVED, UNGRADED, 0, "supportive"),
            (CROSSED, UNGRADED, 3, None), (CRISIS, UNGRADED, 0, None), (HARD, UNGRADED, 0, None),
            (INTENSITY, UNGRADED, 0, None),
        ],
    )  # fmt: skip
    def test_of_each_kind_of_turn(self, source: str, grade: int, strength: int, last: str | None) -> None:
        """Excess and turns for tests belong to no reference; a neutral reply to neutral routes, and so on."""
        told = Activations(LAYERS, np.zeros((1, 2, 2, 1), np.float32), np.ones((1, 2), np.int64), np.zeros(2, np.int32))
        found = turn_table([turn(source, grade, strength)], told, (None, None)).stance
        assert found.tolist() == [-1 if last is None else STANCES.index(last)]


class TestTurnTable:
    """Turns, one a row."""

    def test_rows_go_with_the_corpus_turns(
        self, corpus: Corpus, tables: Tables, model: Any, tiny_tokenizer: Any
    ) -> None:
        """Source, fold, strength, grade and rows of each turn stand in the corpus' own order."""
        turns = corpus.turns()
        held = tables.turns
        for name in ("source", "fold", "strength", "grade", "first"):
            assert getattr(held, name).tolist() == [getattr(turn, name) for turn in turns]
        markers = find_markers(tiny_tokenizer)
        for index in (0, 40, 100, len(turns) - 1):
            alone = collect(model, tiny_tokenizer, markers, [turns[index].messages], LAYERS)
            np.testing.assert_allclose(held.rows[index], alone.means[0], atol=1e-5)
            assert held.tokens[index] == alone.tokens[0, 1]
        assert held.rows.shape == (len(turns), 2, len(LAYERS), HIDDEN)

    def test_only_graded_turns_are_fitted_on(self, tables: Tables) -> None:
        """Grid, contrast and service; neither approved turns nor any that are for tests."""
        assert set(tables.turns.source[tables.turns.fitted]) == {GRID, CONTRAST, SERVICE}
        assert not set(tables.turns.source[~tables.turns.fitted]) & {GRID, CONTRAST, SERVICE}

    def test_what_is_fitted_has_a_fold(self, tables: Tables) -> None:
        """No turn that something is fitted on escapes being held out."""
        assert (tables.turns.fold[tables.turns.fitted] >= 0).all()

    def test_shares_are_of_each_sides_own_tokens(self, corpus: Corpus, tables: Tables, tiny_tokenizer: Any) -> None:
        """The twin reads of a turn what the user said and what the assistant said, a side each."""
        for index, each in list(enumerate(corpus.turns()))[::17]:
            for side, role in enumerate(("user", "assistant")):
                said = [message["content"] for message in each.messages if message["role"] == role]
                found = tables.turns.shares[side][index].toarray()
                if not said:
                    assert not found.any()
                    continue
                ids = np.array(tiny_tokenizer(said[-1])["input_ids"], np.int32)
                np.testing.assert_allclose(found, token_shares([ids], tables.vocabulary).toarray())


class TestTextTable:
    """Texts, one a row, in two positions."""

    def test_labels_and_folds_are_the_corpus(self, corpus: Corpus, tables: Tables) -> None:
        """Emotions by index, neutral after the last; folds and keyword-free marks as in the lines."""
        names = [emotion.name for emotion in corpus.emotions] + ["neutral"]
        texts = tables.texts
        assert [names[index] for index in texts.emotion] == [text.emotion for text in corpus.texts]
        assert texts.fold.tolist() == [text.fold for text in corpus.texts]
        assert texts.keyword_free.tolist() == [text.keyword_free for text in corpus.texts]

    def test_positions_are_the_users_and_the_assistants(
        self, corpus: Corpus, tables: Tables, model: Any, tiny_tokenizer: Any
    ) -> None:
        """A text's rows are those of the user's message, and of the same words as the assistant's."""
        markers = find_markers(tiny_tokenizer)
        for index in (0, 17, 29):
            for role in (0, 1):
                talks = as_texts([corpus.texts[index].text], role)
                alone = collect(model, tiny_tokenizer, markers, talks, LAYERS)
                np.testing.assert_allclose(tables.texts.rows[role, index], alone.means[0, role], atol=1e-5)

    def test_shares_are_of_the_texts_own_tokens(self, corpus: Corpus, tables: Tables, tiny_tokenizer: Any) -> None:
        """The twin reads what the probes read, and none of the template."""
        ids = [np.array(tiny_tokenizer(text.text)["input_ids"], np.int32) for text in corpus.texts]
        np.testing.assert_allclose(tables.texts.shares.toarray(), token_shares(ids, tables.vocabulary).toarray())


class TestVocabulary:
    """Tokens the twin may know."""

    def test_turns_for_tests_add_none(self, tmp_path: Path, model: Any, tiny_tokenizer: Any) -> None:
        """A token that stands in approved turns and tests alone is unknown: nothing was fitted on it."""
        files = make_corpus() | optional_parts()
        for line in files["hard.jsonl"] + files["intensity.jsonl"]:
            line["text"] += " Z"
        for line in files["approved.jsonl"]:
            line["messages"][-1]["content"] += " Z"
        corpus = read(write_corpus(tmp_path / "corpus", files))
        found = make_tables(corpus, runner(model, tiny_tokenizer, tmp_path / "cache", [])).vocabulary
        (zed,) = tiny_tokenizer("Z")["input_ids"]
        assert zed not in found
        assert set(tiny_tokenizer("....")["input_ids"]) <= set(found.tolist())


class TestRunner:
    """Progress and errors over several runs."""

    def test_progress_counts_over_all_runs(self, model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
        """Later runs go on where earlier ones stopped, and the total is what was planned, or more if it must be."""
        told: list[tuple[int, int]] = []
        runs = runner(model, tiny_tokenizer, tmp_path, told, planned=5)
        for count in (2, 3, 1):
            runs.run(as_texts([f"text {n}" for n in range(count)], 0), ["place"] * count)
        assert told == [(2, 5), (5, 5), (6, 6)]

    def test_errors_name_the_place(self, model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
        """What cannot be run is named by file, line and field."""
        with pytest.raises(CorpusError, match="cut it") as caught:
            runner(model, tiny_tokenizer, tmp_path, []).run(as_texts(["a", "b" * 400], 1), ["a:1:text", "a:2:text"])
        assert caught.value.field == "a:2:text"

    def test_layers_are_those_it_was_given(self, model: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
        """Pooled rows hold the wanted layers of the model and no other."""
        found = runner(model, tiny_tokenizer, tmp_path, []).run(as_texts(["a"], 0), ["a"])
        assert found.layers == LAYERS
        assert max(LAYERS) < DEPTH
        assert found.means.shape == (1, 2, len(LAYERS), HIDDEN)


class TestAsTexts:
    """Texts in either position."""

    def test_the_last_message_is_the_text(self, tiny_tokenizer: Any) -> None:
        """As the user's it stands alone, as the assistant's it answers a question, the same for every text."""
        (user,), (first, second) = as_texts(["abc"], 0), as_texts(["abc", "def"], 1)
        assert user == [{"role": "user", "content": "abc"}]
        assert [message["role"] for message in first] == ["user", "assistant"]
        assert first[0] == second[0]
        assert (first[1]["content"], second[1]["content"]) == ("abc", "def")
        assert render(tiny_tokenizer, first)[:5] == render(tiny_tokenizer, second)[:5]
