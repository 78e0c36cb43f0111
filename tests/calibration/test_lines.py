"""Lines of a corpus: how they are read, and what is said of bad ones."""

from __future__ import annotations

import json
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import make_corpus, read, write_corpus

from monitor.calibration.lines import FOLDS, Approved, Dialogue, EmotionText, GridItem, fold_of, plain, read_lines
from monitor.errors import CorpusError

TEXTS = "texts.jsonl"
GOOD_TEXT = {"emotion": "joy", "register": "chat", "topic": "pets", "keyword_free": True, "text": "the dog came home"}


class TestReadLines:
    """Lines and where they stand."""

    def test_blank_lines_count_but_hold_nothing(self, tmp_path: Path) -> None:
        """Blank lines are passed over, and later lines keep the numbers an editor shows."""
        file = tmp_path / TEXTS
        entries = [json.dumps(entry) for entry in make_corpus()[TEXTS][:2]]
        file.write_text(f"\n{entries[0]}\r\n  \n{entries[1]}\n")
        assert [text.place for text in read_lines(file, EmotionText)] == [f"{file}:2", f"{file}:4"]

    def test_a_faulty_line_after_blank_ones_keeps_its_number(self, corpus_folder: Path) -> None:
        """An unknown emotion after blank lines is reported at the line an editor shows."""
        lines = (corpus_folder / TEXTS).read_text().replace('"joy"', '"hunger"', 1)
        (corpus_folder / TEXTS).write_text("\n\n" + lines)
        with pytest.raises(CorpusError) as caught:
            read(corpus_folder)
        assert caught.value.field == f"{corpus_folder / TEXTS}:3:emotion"

    def test_a_byte_order_mark_is_no_part_of_the_first_line(self, tmp_path: Path) -> None:
        """Files that begin with a byte order mark are read as if they did not."""
        files = make_corpus()
        folder = write_corpus(tmp_path, files)
        for name in (TEXTS, "grid.jsonl", "service.jsonl", "approved.jsonl"):
            (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
        corpus = read(folder)
        assert [text.model_dump(by_alias=True) for text in corpus.texts] == files[TEXTS]
        assert [item.model_dump() for item in corpus.grid] == files["grid.jsonl"]
        assert [len(corpus.service), len(corpus.approved)] == [
            len(files["service.jsonl"]),
            len(files["approved.jsonl"]),
        ]

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
        path = tmp_path / TEXTS
        path.write_text(json.dumps(GOOD_TEXT) + "\n" + json.dumps(GOOD_TEXT | change) + "\n")
        with pytest.raises(CorpusError) as caught:
            read_lines(path, EmotionText)
        assert caught.value.field == f"{path}:2:{field}"

    @pytest.mark.parametrize("raw", [b"{oops", b"\xff\xfe", b'"text"'], ids=["no JSON", "no UTF-8", "no object"])
    def test_what_is_no_object_is_named(self, tmp_path: Path, raw: bytes) -> None:
        """A line that is not a JSON object is an error of that line."""
        path = tmp_path / TEXTS
        path.write_bytes(raw + b"\n")
        with pytest.raises(CorpusError) as caught:
            read_lines(path, EmotionText)
        assert caught.value.field == f"{path}:1:(line)"


class TestFolds:
    """Parts that are held out in turn."""

    @given(st.text(string.printable, max_size=30))
    def test_a_topic_has_one_whatever_its_case(self, topic: str) -> None:
        """Every topic has one of the folds, and case does not move it."""
        assert fold_of(topic) in range(FOLDS)
        assert fold_of(topic) == fold_of(topic.upper()) == fold_of(topic.lower())

    def test_topics_spread_over_all(self) -> None:
        """No fold holds more than twice its share of many topics."""
        counts = Counter(fold_of(f"topic {number}") for number in range(400))
        assert len(counts) == FOLDS
        assert max(counts.values()) < 2 * 400 / FOLDS

    def test_they_never_change(self) -> None:
        """A topic's fold is the same in every process and version, or a bank could not be made again bit for bit."""
        assert [fold_of(topic) for topic in ("swimming", "code", "Nursing", "banking")] == [2, 2, 3, 0]


class TestPlain:
    """Copies of a text."""

    @given(st.lists(st.text("abcÄß", min_size=1, max_size=5), min_size=1, max_size=4))
    def test_case_and_spaces_do_not_count(self, words: list[str]) -> None:
        """Two copies that differ in these are one."""
        assert plain(" ".join(words)) == plain("\n  ".join(words).title() + "\t ")


class TestKinds:
    """What single kinds of lines say of themselves."""

    @pytest.mark.parametrize(("strength", "clear"), [(0, False), (1, False), (2, True), (3, True)])
    def test_affect_is_clear_from_strength_2(self, strength: int, clear: bool) -> None:
        """Users of strength 2 and 3 feel clearly."""
        item = GridItem.model_validate({**make_corpus()["grid.jsonl"][0], "strength": strength})
        assert item.clear is clear

    def test_exchanges_end_with_a_reply_and_hold_what_came_before(self) -> None:
        """A dialogue counts as many turns as the assistant speaks."""
        said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d"), ("assistant", "e"), ("user", "f")]
        messages = [{"role": role, "content": text} for role, text in said]
        talk = Dialogue.model_validate({"domain": "bus", "messages": messages})
        assert talk.exchanges() == [messages[:2], messages[:5]]
        assert talk.fold == fold_of("Bus")

    def test_approved_conversations_keep_their_messages(self) -> None:
        """A conversation is given to the model as it was written, system prompt and labels apart."""
        messages = [{"role": r, "content": r} for r in ("system", "user", "assistant")]
        line = Approved.model_validate({"messages": messages, "labels": {"domain": "bus"}})
        assert line.conversation == messages
