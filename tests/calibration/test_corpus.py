"""The corpus as a whole: which turns it gives, where each comes from, and what is held out together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_corpus import OWN_USER, REPLIES, grid_item, make_corpus, optional_parts, read, write_corpus

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
    user_says,
)
from monitor.calibration.lines import FOLDS, EmotionText, read_lines
from monitor.errors import CorpusError


@pytest.fixture
def whole(tmp_path: Path) -> Corpus:
    """A corpus with every part."""
    return read(write_corpus(tmp_path / "whole", make_corpus() | optional_parts()))


def of(corpus: Corpus, source: str) -> list[Turn]:
    """Turns of one source."""
    return [turn for turn in corpus.turns() if turn.source == source]


class TestTurns:
    """Conversations of a corpus."""

    def test_sources_come_one_after_the_other(self, whole: Corpus) -> None:
        """Fitted turns come first, those for tests last, each source with as many turns as its lines give."""
        order = [turn.source for turn in whole.turns()]
        assert list(dict.fromkeys(order)) == [GRID, CONTRAST, SERVICE, APPROVED, CROSSED, CRISIS, HARD, INTENSITY]
        counts = Counter(order)
        assert counts[GRID] == 3 * len(whole.grid)
        assert counts[CONTRAST] == 2 * len(whole.contrast)
        assert counts[SERVICE] == sum(len(talk.exchanges()) for talk in whole.service)
        assert counts[APPROVED] == len(whole.approved)
        assert counts[CRISIS] == 3 * len(whole.crisis)
        assert (counts[HARD], counts[INTENSITY]) == (len(whole.hard), len(whole.intensity))
        assert order == sorted(order, key=list(dict.fromkeys(order)).index)

    def test_replies_are_graded_in_their_order(self, whole: Corpus) -> None:
        """Neutral 0, warranted 1, excessive 2; the first of a user's turns, and no other, stands for the user."""
        turns = of(whole, GRID)
        for item, three in zip(whole.grid, zip(*[iter(turns)] * 3, strict=True), strict=True):
            assert [turn.messages for turn in three] == [
                exchange(item.user, reply) for reply in (item.neutral, item.warranted, item.excessive)
            ]
            assert [(turn.grade, turn.strength, turn.first) for turn in three] == [
                (grade, item.strength, grade == 0) for grade in (0, 1, 2)
            ]
            assert [turn.place for turn in three] == [f"{item.place}:{reply}" for reply in REPLIES]
        pairs = of(whole, CONTRAST)
        assert [(turn.grade, turn.first) for turn in pairs] == [(1, True), (2, False)] * len(whole.contrast)

    def test_turns_go_with_their_domain(self, whole: Corpus) -> None:
        """All replies of the domains of a fold share it, contrast pairs among them; domains spread over all folds."""
        domain_of = {item.user: item.domain for item in [*whole.grid, *whole.contrast]}
        for turn in [*of(whole, GRID), *of(whole, CONTRAST), *of(whole, CROSSED)]:
            reply_of = {item.neutral: item.domain for item in whole.grid}
            asked, answered = turn.messages[0]["content"], turn.messages[1]["content"]
            assert turn.fold == whole.domain_folds[domain_of[asked]]
            assert domain_of[asked] == reply_of.get(answered, domain_of[asked])
        assert set(whole.domain_folds.values()) == set(range(FOLDS))

    def test_service_is_plain_and_goes_with_its_domain(self, whole: Corpus) -> None:
        """Exchanges of a service dialogue are of grade and strength 0, each with what came before it."""
        turns = of(whole, SERVICE)
        expected = [(talk.fold, messages) for talk in whole.service for messages in talk.exchanges()]
        assert [(turn.fold, turn.messages) for turn in turns] == expected
        assert {(turn.grade, turn.strength, turn.first) for turn in turns} == {(0, 0, True)}

    def test_approved_turns_go_with_the_graded_user_they_answer(self, tmp_path: Path) -> None:
        """A user of the grid or of a pair is held out wherever it recurs, by case or spaces too; others never were."""
        files = make_corpus() | optional_parts()
        grid, pair = files["grid.jsonl"][13], files["contrast.jsonl"][2]
        users = [grid["user"], f" {pair['user'].upper()} ", OWN_USER]
        files["approved.jsonl"] = [{"messages": exchange(user, f"reply {n}")} for n, user in enumerate(users)]
        earlier = [*exchange(grid["user"], "earlier"), *exchange(pair["user"], "later")]
        files["approved.jsonl"].append({"messages": [*earlier, {"role": "user", "content": "bye"}, earlier[1]]})
        corpus = read(write_corpus(tmp_path / "corpus", files))
        folds = [corpus.domain_folds[item["domain"]] for item in (grid, pair)]
        # The last graded user of a conversation decides.
        assert [turn.fold for turn in of(corpus, APPROVED)] == [*folds, UNGRADED, folds[1]]
        assert {turn.grade for turn in of(corpus, APPROVED)} == {UNGRADED}

    def test_crossed_turns_put_one_reply_to_calm_and_upset_users(self, tmp_path: Path) -> None:
        """Each plain reply goes to its own user and to two of the most upset ones of its domain; none is fitted on."""
        rng, files = np.random.default_rng(2), make_corpus()
        files["grid.jsonl"] += [grid_item(rng, f"domain {number % 6}", strength=3) for number in range(12)]
        corpus = read(write_corpus(tmp_path / "corpus", files))
        calm = [item for item in corpus.grid if item.strength == 0]
        asked = {item.user: item for item in corpus.grid}
        groups: dict[str, list[Turn]] = {}
        for turn in of(corpus, CROSSED):
            groups.setdefault(turn.place, []).append(turn)
        assert list(groups) == [item.place for item in calm]
        for item, turns in zip(calm, groups.values(), strict=True):
            assert {turn.messages[1]["content"] for turn in turns} == {item.neutral}
            users = [asked[turn.messages[0]["content"]] for turn in turns]
            assert users[0] == item
            assert len({user.user for user in users}) == 3
            assert {(user.domain, user.strength) for user in users[1:]} == {(item.domain, 3)}
            assert [turn.strength for turn in turns] == [user.strength for user in users]
            assert {(turn.grade, turn.first) for turn in turns} == {(UNGRADED, False)}

    def test_turns_for_tests_are_fitted_on_by_nobody(self, whole: Corpus) -> None:
        """Crises, hard texts and series have neither grade nor fold; series are read as a user's words."""
        tests = [turn for source in (CRISIS, HARD, INTENSITY) for turn in of(whole, source)]
        assert {(turn.grade, turn.fold, turn.first) for turn in tests} == {(UNGRADED, UNGRADED, False)}
        first = whole.crisis[0]
        assert [turn.messages[1]["content"] for turn in of(whole, CRISIS)[:3]] == [
            first.cold, first.warranted, first.excessive,
        ]  # fmt: skip
        assert [turn.messages[-1]["role"] for turn in of(whole, HARD)] == ["assistant"] * len(whole.hard)
        assert [turn.messages for turn in of(whole, INTENSITY)] == [user_says(text.text) for text in whole.intensity]

    def test_every_place_is_a_line_and_field(self, whole: Corpus) -> None:
        """Whatever fails later can say where the text stands."""
        for turn in whole.turns():
            name, line = turn.place.removeprefix(str(Path(whole.grid[0].place).parent) + "/").split(":")[:2]
            assert name.endswith(".jsonl")
            assert int(line) >= 1


class TestReading:
    """Files of a corpus."""

    def test_optional_files_may_be_missing(self, corpus_folder: Path) -> None:
        """Contrast pairs and files for tests may be absent; what is absent has no hash."""
        corpus = read(corpus_folder)
        assert (corpus.contrast, corpus.crisis, corpus.hard, corpus.intensity) == ([], [], [], [])
        assert set(corpus.sha256) == {"emotions.json", "texts.jsonl", "grid.jsonl", "service.jsonl", "approved"}

    def test_hashes_are_those_of_the_files(self, whole: Corpus, tmp_path: Path) -> None:
        """Every file that was read has its SHA-256."""
        folder = tmp_path / "whole"
        names = {path.name for path in folder.iterdir()} - {"approved.jsonl"} | {"approved"}
        assert set(whole.sha256) == names
        for name, digest in whole.sha256.items():
            path = folder / (name if name != "approved" else "approved.jsonl")
            assert digest == hashlib.sha256(path.read_bytes()).hexdigest()

    def test_families_stand_in_the_order_of_their_emotions(self, whole: Corpus) -> None:
        """Each family once, in the order of its first emotion."""
        assert whole.families == ["warmth", "contagion"]


class TestWithTexts:
    """Further texts."""

    def further(self, folder: Path, **fields: object) -> tuple[Path, list[EmotionText]]:
        """A file of one more text."""
        path = folder / "more.jsonl"
        line = {"emotion": "joy", "register": "chat", "topic": "new", "keyword_free": True, "text": "something new"}
        path.write_text(json.dumps(line | fields))
        return path, read_lines(path, EmotionText)

    def test_they_come_after_the_others_and_change_no_other_part(self, whole: Corpus, tmp_path: Path) -> None:
        """The corpus has them and the hash of their file; the one it was made from does not."""
        path, texts = self.further(tmp_path)
        more = whole.with_texts(path, texts)
        assert more.texts == [*whole.texts, *texts]
        assert set(more.sha256) - set(whole.sha256) == {"more.jsonl"}
        assert more.turns() == whole.turns()

    @pytest.mark.parametrize(("field", "told"), [("text", "stands already"), ("emotion", "not in emotions.json")])
    def test_they_are_checked_with_the_others(self, whole: Corpus, tmp_path: Path, field: str, told: str) -> None:
        """A copy of a text that is there and an emotion nobody listed are refused."""
        value = {"text": whole.texts[0].text, "emotion": "glee"}[field]
        path, texts = self.further(tmp_path, **{field: value})
        with pytest.raises(CorpusError, match=told) as caught:
            whole.with_texts(path, texts)
        assert caught.value.field == f"{path}:1:{field}"
