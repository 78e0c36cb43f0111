"""Tests of offline scoring: a small random model, and the sidecar itself as the measure."""

from __future__ import annotations

import json
import math
import queue
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from builders import EMOTIONS, FAMILIES, make_card, make_tensors
from transformers import LlamaConfig, LlamaForCausalLM

from monitor.capture.client import SidecarClient
from monitor.capture.identity import hello_of, template_hash, tokenizer_hash, weights_fingerprint
from monitor.capture.transformers import TappedRequest, TransformersTap
from monitor.errors import CorpusError, ModelMismatchError, SetupError
from monitor.policy.schema import PolicyFile, load_policy
from monitor.probes.bank import Bank, seal
from monitor.sidecar import offline
from monitor.sidecar.offline import OfflineScorer, Speed

if TYPE_CHECKING:
    from monitor.sidecar.server import Sidecar
    from monitor.wire.v1 import ingest_pb2

HIDDEN, LAYERS, DEPTH, CONTEXT = 16, (1, 4), 4, 300
PATIENCE = 60.0
POLICY = """
version: 1
policies:
  - name: strict
    match: {policy: strict}
    stance: neutral
    turn: {false_alarm_rate: 0.99, min_assistant_tokens: 4}
    families: {warmth: 0.99}
  - name: short
    match: {policy: short}
    stance: supportive
    turn: {false_alarm_rate: 0.99, min_assistant_tokens: 200}
  - name: desk
    stance: neutral
    turn: {false_alarm_rate: 0.02, min_assistant_tokens: 4}
"""
TALK = [
    {"role": "system", "content": "You help."},
    {"role": "user", "content": "Where is the parcel?"},
    {"role": "assistant", "content": "On its way to you."},
    {"role": "user", "content": "It was due last week, the poor thing!"},
    {"role": "assistant", "content": "Then the sender has to ask for it."},
    {"role": "user", "content": "And what do I do?"},
    {"role": "assistant", "content": "Write to the sender, and wait."},
]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A random model of four blocks."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=300, hidden_size=HIDDEN, intermediate_size=32, num_hidden_layers=DEPTH, num_attention_heads=2,
        max_position_embeddings=CONTEXT, initializer_range=0.2, bos_token_id=None, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def bank(model: Any, tiny_tokenizer: Any) -> Bank:
    """A bank of that model, of a seed for which the replies of ``TALK`` lie within the reference, not at its end."""
    card = make_card(HIDDEN, LAYERS, DEPTH)
    known = {
        "weights_fingerprint": weights_fingerprint(model),
        "tokenizer_hash": tokenizer_hash(tiny_tokenizer),
        "template_hash": template_hash(tiny_tokenizer),
    }
    return seal({**card, "model": {**card["model"], **known}}, make_tensors(HIDDEN, len(LAYERS), seed=3))


@pytest.fixture
def policy_path(tmp_path: Path) -> Path:
    """A policy that finds fault with everything, one that wants long replies, and one for all else."""
    file = tmp_path / "offline.yaml"
    file.write_text(POLICY)
    return file


@pytest.fixture
def policies(policy_path: Path, bank: Bank) -> PolicyFile:
    """The same, loaded."""
    return load_policy(policy_path, bank)


class Scored:
    """What came of a file."""

    def __init__(self, speed: Speed, target: Path, told: list[tuple[int, int]]) -> None:
        self.speed, self.told = speed, told
        self.text = target.read_text(encoding="utf-8")
        self.lines: list[dict[str, Any]] = [
            json.loads(line, parse_constant=_no_json) for line in self.text.splitlines()
        ]

    @property
    def errors(self) -> list[dict[str, str]]:
        """Errors of the lines that have one."""
        return [line["error"] for line in self.lines if "error" in line]


def _no_json(name: str) -> float:
    raise AssertionError(f"{name} is no JSON")


Score = Callable[..., Scored]


@pytest.fixture
def score(bank: Bank, policies: PolicyFile, model: Any, tiny_tokenizer: Any, tmp_path: Path) -> Score:
    """Scores lines: objects, or bytes as they are."""

    def run(*lines: Any, by: OfflineScorer | None = None) -> Scored:
        source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        source.write_bytes(b"".join(line + b"\n" for line in raw))
        told: list[tuple[int, int]] = []
        scorer = by or OfflineScorer(bank, policies, model, tiny_tokenizer)
        speed = scorer.score_file(source, target, lambda done, total: told.append((done, total)))
        return Scored(speed, target, told)

    return run


def talk(name: str, messages: Sequence[dict[str, str]] = TALK, **labels: str) -> dict[str, Any]:
    """A line with a conversation."""
    return {"id": name, "messages": list(messages), "labels": labels}


def numbers(value: Any) -> list[float]:
    """All numbers of a result, in order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


class TestFormat:
    """What goes in and what comes out."""

    def test_of_a_conversation_is_a_turn_a_message_and_an_assessment(self, score: Score) -> None:
        """Each message has its role, tokens, emotions and families; the last reply has the assessment."""
        (line,) = score(talk("a")).lines
        assert list(line) == ["id", "turns", "assessment"]
        assert line["id"] == "a"
        assert [turn["role"] for turn in line["turns"]] == [message["role"] for message in TALK]
        for turn in line["turns"]:
            assert turn["tokens"] > 0
            assert list(turn["emotions"]) == [name for name, _ in EMOTIONS]
            assert all(0 < probability < 1 for probability in turn["emotions"].values())
            assert list(turn["families"]) == list(FAMILIES)
        assert set(line["assessment"]) == {
            "user_affect", "assistant_affect", "warranted", "over_index", "p_value", "mirror", "coverage", "visibility",
            "twin_over_index", "alerts",
        }  # fmt: skip
        assert line["assessment"]["coverage"] == 1
        assert 0 < line["assessment"]["p_value"] <= 1

    def test_of_a_text_has_turns_alone(self, score: Score) -> None:
        """A bare text is read as a user's, and there is nothing to assess."""
        (line,) = score({"id": 7, "text": "Where is the parcel?"}).lines
        assert list(line) == ["id", "turns"]
        assert line["id"] == 7
        (turn,) = line["turns"]
        assert turn["role"] == "user"

    def test_of_a_conversation_that_ends_with_the_user_has_no_assessment(self, score: Score) -> None:
        """Without any reply there is nothing to assess."""
        (line,) = score(talk("a", TALK[:2])).lines
        assert list(line) == ["id", "turns"]

    def test_mirror_needs_three_exchanges(self, score: Score) -> None:
        """The mirror slope is of this conversation's exchanges, and null for too few of them."""
        long, brief = score(talk("long"), talk("brief", TALK[:5])).lines
        assert isinstance(long["assessment"]["mirror"], float)
        assert brief["assessment"]["mirror"] is None

    def test_mirror_pairs_a_reply_with_the_user_it_answers(self, score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
        """An assistant's greeting answers nobody, and of two user messages the last one is answered."""
        paired: list[int] = []
        monkeypatch.setattr(offline, "mirror_slope", lambda user, reply: paired.append(len(user)) or len(reply))
        greeting, doubled = {"role": "assistant", "content": "Welcome."}, {"role": "user", "content": "Hello?"}
        lines = score(talk("a", [TALK[0], greeting, doubled, *TALK[1:]])).lines
        assert paired == [3]
        assert lines[0]["assessment"]["mirror"] == 3

    def test_labels_choose_the_policy(self, score: Score) -> None:
        """The policy a line's labels name decides which alerts it raises; visibility stands with an alert on affect."""
        strict, desk, short = score(talk("a", policy="strict"), talk("b"), talk("c", policy="short")).lines
        assert set(strict["assessment"]["alerts"]) <= {"affect", "warmth"}
        assert strict["assessment"]["alerts"]
        assert strict["assessment"]["visibility"] in {"text_visible", "text_silent"}
        assert (desk["assessment"]["alerts"], desk["assessment"]["visibility"]) == ([], None)
        assert short["assessment"]["alerts"] == []

    def test_is_utf_8_and_readable(self, score: Score) -> None:
        """Names of any script stay as they are, and a byte order mark is no part of the first line."""
        raw = "\ufeff" + json.dumps({"id": "Grüße 🙂", "text": "Wo?"}, ensure_ascii=False)
        assert '"id": "Grüße 🙂"' in score(raw.encode()).text

    def test_reports_speed_and_progress(self, score: Score) -> None:
        """Every token that went through the model is counted, and progress goes from nothing to all."""
        scored = score(talk("a"), b"{", {"id": "b", "text": "Where?"})
        assert (scored.speed.lines, scored.speed.failed) == (3, 1)
        shown = sum(turn["tokens"] for line in scored.lines for turn in line.get("turns", []))
        assert scored.speed.tokens > shown
        assert scored.speed.seconds > scored.speed.model_seconds > 0
        assert (scored.told[0], scored.told[-1]) == ((0, 3), (3, 3))
        assert scored.told == sorted(scored.told)


LONG = "wait " * CONTEXT
BAD = [
    (b"not json", None, "(line)", "JSON"),
    (b'["a"]', None, "(line)", "object"),
    (b'{"id": "a"}', "a", "messages", "either"),
    (b'{"id": "a", "text": "x", "messages": [{"role": "user", "content": "x"}]}', "a", "messages", "either"),
    (b'{"id": "a", "text": ""}', "a", "text", "at least 1"),
    (b'{"id": "a", "messages": []}', "a", "messages", "at least 1"),
    (b'{"id": "a", "text": "x", "mood": 1}', "a", "mood", "not permitted"),
    (b'{"id": "a", "text": "x", "labels": {"policy": 3}}', "a", "labels.policy", "string"),
    (b'{"id": "a", "messages": [{"role": "king", "content": "x"}]}', "a", "messages.0.role", "system"),
    (b'{"id": "a", "messages": [{"role": "user"}]}', "a", "messages.0.content", "required"),
    (b'{"text": "x"}', None, "id", "required"),
    (b'{"id": true, "text": "x"}', None, "id", "a string or an integer"),
    (b'{"id": NaN, "text": "x"}', None, "id", "a string or an integer"),
    (b'{"id": 1.5, "text": "x"}', None, "id", "a string or an integer"),
    (b'{"id": "\\ud800", "text": 3}', "\ud800", "(line)", "JSON"),
    (b'{"id": "a", "text": "\xff"}', None, "(line)", "JSON"),
    (b"[" * 100_000, None, "(line)", "JSON"),
    (json.dumps({"id": "a", "text": LONG}).encode(), "a", "text", f"context is {CONTEXT}"),
    (json.dumps(talk("a", [{"role": "user", "content": LONG}])).encode(), "a", "messages", f"context is {CONTEXT}"),
]


class TestBadLines:
    """Lines that cannot be scored."""

    @pytest.mark.parametrize(("raw", "name", "field", "message"), BAD, ids=[f"{bad[2]}-{bad[3]}" for bad in BAD])
    def test_get_their_error_in_place(
        self, raw: bytes, name: str | None, field: str, message: str, score: Score
    ) -> None:
        """A bad line becomes an error with its id, field, line number and fix; its neighbours are scored."""
        good = {"id": "good", "text": "Where?"}
        scored = score(good, b"", raw, good)
        before, bad, after = scored.lines
        assert list(bad) == ["id", "error"]
        assert (bad["id"], bad["error"]["field"]) == (name, field)
        assert bad["error"]["message"].startswith("line 3: ")
        assert message in bad["error"]["message"]
        assert "turns" in before
        assert before == after
        assert scored.speed.failed == 1
        assert scored.told[-1] == (3, 3)

    def test_are_all_there_is(self, score: Score) -> None:
        """A file of bad lines alone is answered line by line, an empty file by an empty file."""
        assert [error["field"] for error in score(b"{", b"}").errors] == ["(line)", "(line)"]
        assert score().lines == []

    def test_never_quote_what_was_said(self, score: Score) -> None:
        """No error holds words of the conversation."""
        said = {
            "id": "a",
            "messages": [{"role": "user", "content": "my secret"}, {"role": "x", "content": "my secret"}],
        }
        assert "secret" not in score(said, {"id": "b", "text": ["my secret"]}, b'{"my secret').text

    def test_are_those_a_template_refuses(
        self,
        score: Score,
        bank: Bank,
        policies: PolicyFile,
        model: Any,
        tiny_tokenizer: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What the chat template raises becomes the line's error."""
        scorer = OfflineScorer(bank, policies, model, tiny_tokenizer)
        monkeypatch.setattr(tiny_tokenizer, "chat_template", "{{ raise_exception('roles must alternate') }}")
        (error,) = score(talk("a"), by=scorer).errors
        assert error["field"] == "messages"
        assert "roles must alternate" in error["message"]

    def test_are_those_whose_rows_are_not_finite(
        self, score: Score, bank: Bank, policies: PolicyFile, model: Any, tiny_tokenizer: Any
    ) -> None:
        """A model that gives NaN gets errors and no numbers, and the file stays JSON."""
        scorer = OfflineScorer(bank, policies, model, tiny_tokenizer)
        ids = tiny_tokenizer("?")["input_ids"]
        with torch.no_grad():
            row = model.model.embed_tokens.weight[ids[0]]
            kept = row.clone()
            row.fill_(math.nan)
        try:
            scored = score(talk("a", TALK[:1] + TALK[4:5]), {"id": "b", "text": "Where?"}, by=scorer)
        finally:
            with torch.no_grad():
                row.copy_(kept)
        assert "turns" in scored.lines[0]
        assert scored.lines[1]["error"]["field"] == "text"
        assert "not finite" in scored.lines[1]["error"]["message"]


class TestOrder:
    """Batches go longest first; nobody must see it."""

    def test_of_output_is_that_of_input(self, score: Score) -> None:
        """Lines come out in the order they went in, whatever their length, failed ones among them."""
        lines: list[Any] = []
        for number in range(40):
            text = "wait " * (1 + (number * 17) % 45)
            lines.append({"id": number, "text": text if number % 7 else ""})
        scored = score(*lines)
        assert [line["id"] for line in scored.lines] == list(range(40))
        assert [number for number, line in enumerate(scored.lines) if "error" in line] == list(range(0, 40, 7))
        for number, line in enumerate(scored.lines):
            if number % 7:
                alone = len(lines[number]["text"])
                assert line["turns"][0]["tokens"] == alone

    def test_and_company_do_not_change_a_result(self, score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
        """A line has the same numbers alone, in a batch of one length, and padded beside a longer one."""
        lines = [talk("a"), talk("b", TALK[1:3]), {"id": "c", "text": "Where?"}, talk("d", policy="strict")]
        together = score(*lines).lines
        apart = [score(line).lines[0] for line in lines]
        monkeypatch.setattr(offline, "BATCH_TOKENS", 1)
        singly = score(*lines).lines
        for first, second, third in zip(together, apart, singly, strict=True):
            assert numbers(first) == pytest.approx(numbers(second), abs=1e-5)
            assert numbers(first) == pytest.approx(numbers(third), abs=1e-5)
            assert first.get("assessment", {}).get("alerts") == second.get("assessment", {}).get("alerts")


class TestSidecar:
    """The sidecar's own code."""

    @pytest.mark.parametrize("labels", [{}, {"policy": "strict"}, {"policy": "short"}], ids=["desk", "strict", "short"])
    @pytest.mark.parametrize("messages", [TALK, TALK[1:3]], ids=["long", "brief"])
    def test_says_the_same_of_a_captured_conversation(
        self,
        messages: list[dict[str, str]],
        labels: dict[str, str],
        score: Score,
        serve: Callable[..., Sidecar],
        address: str,
        bank: Bank,
        model: Any,
        tiny_tokenizer: Any,
        policy_path: Path,
        tmp_path: Path,
    ) -> None:
        """What offline scoring says of a conversation is what a sidecar says that watched the model process it."""
        (line,) = score(talk("a", messages, **labels)).lines
        bank.save(tmp_path / "bank")
        serve(bank=str(tmp_path / "bank"), policy=policy_path)
        seen = captured(address, model, tiny_tokenizer, messages, labels)

        assessment, reply, asked = line["assessment"], line["turns"][-1], line["turns"][-2]
        for name in (
            "user_affect",
            "assistant_affect",
            "warranted",
            "over_index",
            "p_value",
            "twin_over_index",
            "coverage",
        ):
            assert assessment[name] == pytest.approx(getattr(seen, name), abs=1e-5), name
        assert list(seen.alerts) == assessment["alerts"]
        shown = {0: None, 1: "text_visible", 2: "text_silent"}[seen.visibility]
        assert shown == assessment["visibility"]
        assert dict(seen.emotions) == pytest.approx(reply["emotions"], abs=1e-5)
        assert dict(seen.families) == pytest.approx(reply["families"], abs=1e-5)
        assert dict(seen.user_emotions) == pytest.approx(asked["emotions"], abs=1e-5)
        assert dict(seen.user_families) == pytest.approx(asked["families"], abs=1e-5)
        assert (seen.assistant_tokens, seen.user_tokens) == (reply["tokens"], asked["tokens"])


def captured(
    address: str, model: Any, tokenizer: Any, messages: list[dict[str, str]], labels: dict[str, str]
) -> ingest_pb2.Assessment:
    """What the sidecar says of a conversation that runs through the model with capture on, in two passes."""
    finished: queue.SimpleQueue[ingest_pb2.Assessment] = queue.SimpleQueue()
    client = SidecarClient(address, hello_of(model, tokenizer, "tiny", LAYERS, "test"), on_assessment=finished.put)
    tap = TransformersTap(model, client, LAYERS)
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        half = ids.shape[1] // 2
        with torch.inference_mode(), tap.requests([TappedRequest("a", labels)]):
            cache = model(input_ids=ids[:, :half], use_cache=True).past_key_values
            model(input_ids=ids[:, half:], past_key_values=cache, use_cache=True)
        return finished.get(timeout=PATIENCE)
    finally:
        tap.close()
        client.close()


class TestNetwork:
    """Scored text stays on the machine."""

    def test_is_never_touched(self, score: Score, monkeypatch: pytest.MonkeyPatch) -> None:
        """Conversations, texts and bad lines are scored with every way to a network closed."""

        def refuse(*args: Any, **_: Any) -> None:
            tried.append(args)
            raise OSError("the network is closed")

        tried: list[tuple[Any, ...]] = []
        for name in ("connect", "connect_ex", "sendto", "sendmsg", "bind"):
            monkeypatch.setattr(socket.socket, name, refuse)
        for name in ("getaddrinfo", "gethostbyname", "create_connection"):
            monkeypatch.setattr(socket, name, refuse)
        scored = score(talk("a"), {"id": "b", "text": "Where is the parcel?"}, {"id": "c", "text": ""})
        assert [sorted(line) for line in scored.lines] == [
            ["assessment", "id", "turns"],
            ["id", "turns"],
            ["error", "id"],
        ]
        assert tried == []
        # What is closed is closed: a program that tried would have been seen.
        with pytest.raises(OSError, match="closed"), socket.socket() as opened:
            opened.connect(("127.0.0.1", 9))
        with pytest.raises(OSError, match="closed"):
            socket.getaddrinfo("localhost", 80)
        assert len(tried) == 2


class TestSetup:
    """What cannot be done at all."""

    @pytest.mark.parametrize("name", ["weights_fingerprint", "tokenizer_hash", "template_hash"])
    def test_refuses_a_model_that_is_not_the_banks(
        self, name: str, bank: Bank, policies: PolicyFile, model: Any, tiny_tokenizer: Any, score: Score
    ) -> None:
        """A model with other weights, tokenizer or template is refused unless that is allowed; then it is scored."""
        card = bank.card.model_dump(exclude={"bank_id", "tensors_sha256"})
        other = seal({**card, "model": {**card["model"], name: "0" * 64}}, bank.tensors)
        with pytest.raises(ModelMismatchError, match=f"{name} is not .* calibrate a bank for this model") as caught:
            OfflineScorer(other, policies, model, tiny_tokenizer)
        assert caught.value.field == "--model"
        allowed = OfflineScorer(other, policies, model, tiny_tokenizer, allow_unvalidated=True)
        assert "assessment" in score(talk("a"), by=allowed).lines[0]

    def test_refuses_a_model_of_another_width_in_any_case(
        self, policies: PolicyFile, model: Any, tiny_tokenizer: Any
    ) -> None:
        """No permission makes a bank of another hidden size fit."""
        wide = seal(make_card(32, LAYERS, DEPTH), make_tensors(32, len(LAYERS)))
        with pytest.raises(ModelMismatchError, match="hidden size: 16 where the bank has 32"):
            OfflineScorer(wide, policies, model, tiny_tokenizer, allow_unvalidated=True)

    def test_refuses_a_model_that_is_too_shallow(self, policies: PolicyFile, model: Any, tiny_tokenizer: Any) -> None:
        """A layer the model does not have is a mismatch and not an error of a hook."""
        deep = seal(make_card(HIDDEN, (1, 9), 12), make_tensors(HIDDEN, 2))
        with pytest.raises(ModelMismatchError, match="blocks: 4 where the bank has 12"):
            OfflineScorer(deep, policies, model, tiny_tokenizer, allow_unvalidated=True)

    def test_names_a_source_that_cannot_be_read(
        self, bank: Bank, policies: PolicyFile, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """A missing input is named by its flag, and no output is made."""
        scorer = OfflineScorer(bank, policies, model, tiny_tokenizer)
        with pytest.raises(CorpusError, match=r"^--input: .*none\.jsonl: No such file"):
            scorer.score_file(tmp_path / "none.jsonl", tmp_path / "out.jsonl")
        assert not (tmp_path / "out.jsonl").exists()

    @pytest.mark.parametrize("target", ["", "missing/out.jsonl"])
    def test_names_a_target_that_cannot_be_written_before_the_work(
        self, target: str, bank: Bank, policies: PolicyFile, model: Any, tiny_tokenizer: Any, tmp_path: Path
    ) -> None:
        """A folder as output, or one that is missing, is refused before the model runs."""
        source = tmp_path / "in.jsonl"
        source.write_text(json.dumps(talk("a")) + "\n")
        scorer = OfflineScorer(bank, policies, model, tiny_tokenizer)
        told: list[int] = []
        with pytest.raises(SetupError, match=r"^--output: "):
            scorer.score_file(source, tmp_path / target, lambda done, _total: told.append(done))
        assert told == []
