"""The corpus: what ships, and what is said of bad lines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from monitor.calibration.calibrate import read_corpus
from monitor.calibration.corpus import SHIPPED, Dialogue, EmotionText, GridItem, read_emotions, read_lines
from monitor.errors import CorpusError

REGISTERS = {"chat", "ticket", "forum", "diary", "email", "work_note", "dialogue", "news"}


class TestShipped:
    """The corpus in the package."""

    def test_every_emotion_has_its_texts_in_every_register(self) -> None:
        """Each of at least 16 emotions has at least 40 texts over eight registers, half of them keyword-free."""
        emotions = read_emotions(SHIPPED / "emotions.json")
        texts = read_lines(SHIPPED / "texts.jsonl", EmotionText)
        assert len(emotions) == 32
        for emotion in emotions:
            mine = [text for text in texts if text.emotion == emotion.name]
            assert len(mine) >= 40
            assert {text.register_ for text in mine} == REGISTERS
            assert sum(text.keyword_free for text in mine) * 2 >= len(mine)

    def test_replies_to_one_user_are_equally_long(self) -> None:
        """Neutral, warranted and excessive replies differ by at most 15 % of words, so that length tells nothing."""
        for item in read_lines(SHIPPED / "grid.jsonl", GridItem):
            lengths = [len(reply.split()) for reply in (item.neutral, item.warranted, item.excessive)]
            assert max(lengths) <= 1.15 * min(lengths)

    def test_the_grid_is_crossed(self) -> None:
        """Every domain has every user emotion in three strengths, and users without emotion."""
        grid = read_lines(SHIPPED / "grid.jsonl", GridItem)
        cells = Counter((item.domain, item.user_emotion, item.strength) for item in grid)
        domains = {item.domain for item in grid}
        emotions = {item.user_emotion for item in grid} - {"none"}
        assert len(domains) == 12
        assert len(emotions) == 8
        assert all(
            cells[domain, emotion, strength] for domain in domains for emotion in emotions for strength in (1, 2, 3)
        )

    def test_folds_share_no_topic_domain_or_user(self) -> None:
        """What is held out together stays together: texts by topic, the grid by domain, service by domain."""
        corpus = read_corpus(SHIPPED, SHIPPED / "approved.jsonl")
        for groups in (
            {(text.topic.lower(), text.fold) for text in corpus.texts},
            {(talk.domain.lower(), talk.fold) for talk in corpus.service},
        ):
            assert max(Counter(group for group, _ in groups).values()) == 1
        assert set(corpus.grid_folds.values()) == {0, 1, 2}

    def test_service_gives_every_exchange_with_what_came_before(self) -> None:
        """A dialogue counts as many turns as the assistant speaks, each ending with its reply."""
        talk = read_lines(SHIPPED / "service.jsonl", Dialogue)[0]
        exchanges = talk.exchanges()
        assert len(exchanges) == sum(message.role == "assistant" for message in talk.messages)
        assert all(exchange[-1]["role"] == "assistant" for exchange in exchanges)


GOOD_TEXT = {"emotion": "joy", "register": "chat", "topic": "pets", "keyword_free": True, "text": "the dog came home"}


class TestBadLines:
    """Every bad line is named by file, line and field."""

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"text": " "}, "text"),
            ({"keyword_free": "perhaps"}, "keyword_free"),
            ({"mood": "fine"}, "mood"),
            ({"emotion": None}, "emotion"),
        ],
    )
    def test_a_bad_field_is_named(self, tmp_path: Path, change: dict[str, object], field: str) -> None:
        """The error names file, line number and field."""
        path = tmp_path / "texts.jsonl"
        path.write_text(json.dumps(GOOD_TEXT) + "\n" + json.dumps(GOOD_TEXT | change) + "\n")
        with pytest.raises(CorpusError) as caught:
            read_lines(path, EmotionText)
        assert caught.value.field == f"{path}:2:{field}"

    def test_what_is_no_json_is_named(self, tmp_path: Path) -> None:
        """A line that is not JSON is an error of that line."""
        path = tmp_path / "texts.jsonl"
        path.write_text("{oops\n")
        with pytest.raises(CorpusError, match=r"texts\.jsonl:1"):
            read_lines(path, EmotionText)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        """A corpus folder without its files says which one is missing."""
        with pytest.raises(CorpusError, match=r"emotions\.json"):
            read_corpus(tmp_path, tmp_path / "approved.jsonl")

    @pytest.mark.parametrize(
        ("change", "said"), [({}, "stands already"), ({"emotion": "glee"}, "not in emotions.json")]
    )
    def test_a_corpus_that_contradicts_itself_is_refused(
        self, tmp_path: Path, change: dict[str, object], said: str
    ) -> None:
        """A text that stands twice and an emotion nobody listed are refused before the model runs."""
        for name in ("emotions.json", "texts.jsonl", "grid.jsonl", "service.jsonl", "approved.jsonl"):
            (tmp_path / name).write_bytes((SHIPPED / name).read_bytes())
        lines = (tmp_path / "texts.jsonl").read_text().splitlines()
        extra = json.loads(lines[0]) | change
        (tmp_path / "texts.jsonl").write_text("\n".join([*lines, json.dumps(extra)]) + "\n")
        with pytest.raises(CorpusError, match=said):
            read_corpus(tmp_path, tmp_path / "approved.jsonl")
