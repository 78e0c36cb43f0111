"""Tests of the demo's scripted conversations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from monitor.demo.script import Exchange, load_script
from monitor.errors import CorpusError

GOOD = '{"id": "a", "kind": "ordinary", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}'


def written(folder: Path, *lines: str) -> Path:
    """A script file with these lines."""
    file = folder / "script.jsonl"
    file.write_text("\n".join(lines))
    return file


class TestShippedScript:
    """The script that comes with the package."""

    def test_has_enough_of_every_kind(self) -> None:
        """The demo shows plain turns, upset users answered well, and replies that go too far."""
        kinds = Counter(exchange.kind for exchange in load_script())
        assert kinds["ordinary"] >= 12
        assert kinds["distressed"] >= 6
        assert kinds["overshoot"] >= 8

    def test_is_played_from_plain_to_overshoot_and_back(self) -> None:
        """Ordinary turns come first and last, so that an alert is seen to fire and to resolve."""
        kinds = [exchange.kind for exchange in load_script()]
        runs = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]
        assert runs == ["ordinary", "distressed", "overshoot", "ordinary"]

    def test_forced_replies_are_long_enough_to_judge_and_not_generated(self) -> None:
        """A forced reply has 40 to 60 words, and the model adds one token, which nobody reads."""
        forced = [exchange for exchange in load_script() if exchange.forced_reply]
        assert sum(exchange.kind == "overshoot" for exchange in forced) >= 5
        for exchange in forced:
            assert 40 <= len((exchange.forced_reply or "").split()) <= 60, exchange.id
            assert exchange.max_tokens == 1, exchange.id

    def test_some_overshoot_is_the_models_own(self) -> None:
        """At least three overshooting replies are generated, under a system prompt that asks for it."""
        own = [exchange for exchange in load_script() if exchange.kind == "overshoot" and not exchange.forced_reply]
        assert len(own) >= 3
        assert all(exchange.messages[0].role == "system" for exchange in own)

    def test_every_exchange_falls_under_the_service_desk_policy(self) -> None:
        """Labels route every turn of the demo to one policy."""
        assert all(exchange.labels == {"policy": "service-desk"} for exchange in load_script())


class TestExchange:
    """What an exchange becomes on the wire."""

    def test_a_forced_reply_becomes_the_beginning_of_the_reply(self) -> None:
        """The authored reply is the last message, which the server is told to continue."""
        exchange = Exchange.model_validate_json(GOOD[:-1] + ', "forced_reply": "Well."}')
        body = exchange.body("m")
        assert body["messages"][-1] == {"role": "assistant", "content": "Well."}
        assert body["continue_final_message"] is True
        assert body["add_generation_prompt"] is False

    def test_labels_and_conversation_travel_with_the_request(self) -> None:
        """Metadata carries the labels, session_id the exchange's own id."""
        body = Exchange.model_validate_json(GOOD[:-1] + ', "labels": {"policy": "p"}}').body("m")
        assert body["metadata"] == {"policy": "p"}
        assert body["session_id"] == "a"
        assert "continue_final_message" not in body


class TestLoadScript:
    """Faults of a script file."""

    def test_a_bad_field_is_named_with_its_line(self, tmp_path: Path) -> None:
        """The error says which line and which field is at fault."""
        with pytest.raises(CorpusError) as caught:
            load_script(written(tmp_path, GOOD, GOOD.replace("ordinary", "odd").replace('"a"', '"b"')))
        assert caught.value.field == "script.jsonl:2:kind"

    def test_a_line_that_is_not_json_is_named(self, tmp_path: Path) -> None:
        """A broken line is an error with its number."""
        with pytest.raises(CorpusError) as caught:
            load_script(written(tmp_path, "{"))
        assert caught.value.field == "script.jsonl:1"

    def test_the_user_must_speak_last(self, tmp_path: Path) -> None:
        """A reply among the messages would be answered instead of played."""
        with pytest.raises(CorpusError, match="forced_reply"):
            load_script(written(tmp_path, GOOD.replace('"user"', '"assistant"')))

    def test_an_id_is_used_once(self, tmp_path: Path) -> None:
        """Two exchanges of one id could not be told apart in the demo's output."""
        with pytest.raises(CorpusError) as caught:
            load_script(written(tmp_path, GOOD, GOOD))
        assert caught.value.field == "script.jsonl:2:id"

    @pytest.mark.parametrize("name", ["absent.jsonl", "empty.jsonl"])
    def test_a_script_without_exchanges_is_an_error(self, tmp_path: Path, name: str) -> None:
        """A missing and an empty file are refused rather than played as nothing."""
        (tmp_path / "empty.jsonl").write_text("\n")
        with pytest.raises(CorpusError, match=name):
            load_script(tmp_path / name)
