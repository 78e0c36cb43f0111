"""Neutral service dialogues by others, in their layout and in ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from monitor.calibration.dialogues import read_dialogues
from monitor.errors import CorpusError


def guided(*said: str, services: Any = ("Restaurants_1", "Hotels_2")) -> dict[str, Any]:
    """A dialogue as Schema-Guided Dialogue has it, user first, with fields nobody asks for."""
    turns = [
        {"frames": [], "speaker": ("USER", "SYSTEM")[number % 2], "utterance": text} for number, text in enumerate(said)
    ]
    return {"dialogue_id": "1_00000", "services": list(services), "turns": turns}


class TestSchemaGuided:
    """The layout of Schema-Guided Dialogue."""

    def test_a_file_is_read(self, tmp_path: Path) -> None:
        """The system is the assistant, and the domain is the first service without its number."""
        file = tmp_path / "dialogues_001.json"
        talks = [guided("A table for two?", "At what time?"), guided("Hi", "Yes?", services=["Bus"])]
        file.write_text(json.dumps(talks))
        first, second = read_dialogues(file)
        assert [(message.role, message.content) for message in first.messages] == [
            ("user", "A table for two?"),
            ("assistant", "At what time?"),
        ]
        assert (first.domain, second.domain) == ("Restaurants", "Bus")
        assert second.place == f"{file}:dialogue 2"

    def test_a_folder_is_read_file_by_file(self, tmp_path: Path) -> None:
        """All JSON files of a folder, in the order of their names, and nothing else in it."""
        for number in (2, 1):
            (tmp_path / f"dialogues_00{number}.json").write_text(json.dumps([guided(f"ask {number}", "reply")]))
        (tmp_path / "README.md").write_text("of the data")
        assert [talk.messages[0].content for talk in read_dialogues(tmp_path)] == ["ask 1", "ask 2"]

    def test_each_reply_is_an_exchange_with_what_came_before(self, tmp_path: Path) -> None:
        """A dialogue gives as many exchanges as the assistant speaks, each ending with its reply."""
        file = tmp_path / "a.json"
        file.write_text(json.dumps([guided("one", "two", "three", "four", "five")]))
        (talk,) = read_dialogues(file)
        assert [[message["content"] for message in exchange] for exchange in talk.exchanges()] == [
            ["one", "two"],
            ["one", "two", "three", "four"],
        ]


class TestOwnLayout:
    """JSON Lines as in the corpus."""

    def test_it_is_read(self, tmp_path: Path) -> None:
        """A line is a dialogue, placed by its number."""
        file = tmp_path / "service.jsonl"
        messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
        file.write_text("\n" + json.dumps({"domain": "bus", "messages": messages}) + "\n")
        (talk,) = read_dialogues(file)
        assert (talk.domain, talk.place, talk.exchanges()) == ("bus", f"{file}:2", [messages])

    def test_a_bad_line_is_named(self, tmp_path: Path) -> None:
        """File, line and field of what is wrong."""
        file = tmp_path / "service.jsonl"
        file.write_text('{"domain": "bus", "messages": [{"role": "user", "content": "hello"}]}\n')
        with pytest.raises(CorpusError) as caught:
            read_dialogues(file)
        assert caught.value.field == f"{file}:1:messages"


class TestFaults:
    """What cannot be read, by file and dialogue."""

    @pytest.mark.parametrize(
        "entry",
        [
            {"turns": [], "services": ["Bus_1"]},
            {"services": ["Bus_1"]},
            {"turns": guided("a", "b")["turns"]},
            guided("a", "b", services=()),
            guided("a", " "),
            {**guided("a", "b"), "turns": [{"speaker": "BOT", "utterance": "a"}] * 2},
            {**guided("a", "b"), "turns": [{"speaker": "USER"}, {"speaker": "SYSTEM", "utterance": "b"}]},
            {**guided("a", "b"), "turns": [{"speaker": "SYSTEM", "utterance": "b"}] * 2},
            "a dialogue",
            None,
        ],
        ids=["empty", "no turns", "no services", "no service", "blank", "speaker", "utterance", "no user", "text",
             "null"],
    )  # fmt: skip
    def test_a_dialogue_that_is_none_is_named(self, tmp_path: Path, entry: Any) -> None:
        """Whatever a dialogue lacks, the error says which one of which file it is."""
        file = tmp_path / "a.json"
        file.write_text(json.dumps([guided("one", "two"), entry]))
        with pytest.raises(CorpusError) as caught:
            read_dialogues(file)
        assert caught.value.field == f"{file}:dialogue 2"

    @pytest.mark.parametrize(("raw", "told"), [("{oops", "is not JSON"), ('{"turns": []}', "must be a list")])
    def test_a_file_of_another_kind_is_named(self, tmp_path: Path, raw: str, told: str) -> None:
        """What is no JSON, or no list, is an error of the file."""
        file = tmp_path / "a.json"
        file.write_text(raw)
        with pytest.raises(CorpusError, match=told) as caught:
            read_dialogues(file)
        assert caught.value.field == str(file)

    @pytest.mark.parametrize("name", ["none.json", "none.jsonl"])
    def test_a_missing_file_is_named(self, tmp_path: Path, name: str) -> None:
        """A file that is not there is an error of that file, in either layout."""
        with pytest.raises(CorpusError, match="No such file") as caught:
            read_dialogues(tmp_path / name)
        assert caught.value.field == str(tmp_path / name)

    @pytest.mark.parametrize(("name", "raw"), [("none.json", "[]"), ("none.jsonl", "\n")])
    def test_a_file_without_dialogues_is_named(self, tmp_path: Path, name: str, raw: str) -> None:
        """A file that holds no dialogue is refused, for it would pass as a test on nothing."""
        (tmp_path / name).write_text(raw)
        with pytest.raises(CorpusError, match="holds no dialogues") as caught:
            read_dialogues(tmp_path / name)
        assert caught.value.field == str(tmp_path / name)

    def test_a_folder_without_files_is_named(self, tmp_path: Path) -> None:
        """A folder that holds no JSON file is refused, for it would pass as a test on nothing."""
        with pytest.raises(CorpusError, match=r"holds no \.json file") as caught:
            read_dialogues(tmp_path)
        assert caught.value.field == str(tmp_path)
