"""Tests of corpora that a model writes: what is asked, tried again, left out, and gone on with."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import stamina
import torch
from builders import make_tokenizer

from monitor.calibration.lines import EmotionText, read_emotions, read_lines
from monitor.calibration.write_corpus import REGISTERS, Written, read_topics, write_texts
from monitor.calibration.writers import API_KEY, EndpointWriter, LocalWriter, Writer
from monitor.errors import CorpusError, SetupError

SHIPPED = Path(__file__).parents[2] / "monitor" / "calibration" / "corpus"
GOOD = "the dog came home and everybody in the street cheered"


class Script:
    """Answers by a script, then with texts that all differ; keeps what it was asked."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    def complete(self, prompt: str, seed: int) -> str:
        """The next answer."""
        self.asked.append((prompt, seed))
        return self.answers.pop(0) if self.answers else f"{GOOD} {seed}"


def run(
    writer: Writer, target: Path, *, registers: tuple[str, ...] = ("story",), per_pair: int = 1, **lists: Any
) -> Written:
    """Has texts written: about joy and a dog unless told otherwise."""
    chosen = {"emotions": ["joy"], "topics": ["a dog"]} | lists
    return write_texts(writer, chosen["emotions"], chosen["topics"], registers, per_pair, target, lambda *_: None)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where the corpus goes."""
    return tmp_path / "texts.jsonl"


class TestWriting:
    """What ends up in the file."""

    def test_every_combination_gets_its_texts(self, target: Path) -> None:
        """Each emotion on each topic in each register gets as many texts as asked for, as lines of the corpus."""
        told: list[tuple[int, int]] = []
        lists = ["joy", "neutral"], ["a dog", "rain"], ["chat", "story"]
        written = write_texts(Script(), *lists, 2, target, lambda done, total: told.append((done, total)))
        texts = read_lines(target, EmotionText)
        cells = {(text.emotion, text.topic, text.register_) for text in texts}
        assert (len(texts), len(cells)) == (16, 8)
        assert written == Written(written=16, named=0, left_out=0, present=0)
        assert told == [(done, 16) for done in range(17)]

    def test_what_is_asked(self, target: Path) -> None:
        """The prompt names topic, register and emotion and forbids its word; a neutral one asks for no emotion."""
        writer = Script()
        run(writer, target, emotions=["joy", "neutral"], registers=("diary",))
        (joy, seed), (neutral, another) = writer.asked
        assert all("a dog" in prompt and REGISTERS["diary"] in prompt for prompt in (joy, neutral))
        assert 'Never use the word "joy"' in joy
        assert "nobody in it feels" in neutral
        assert seed != another

    def test_a_named_emotion_is_tried_again(self, target: Path) -> None:
        """A text that holds a form of the emotion's word is asked for once more, with another seed."""
        writer = Script(f"full of joy, {GOOD}", GOOD)
        assert run(writer, target) == Written(written=1, named=0, left_out=0, present=0)
        assert [text.text for text in read_lines(target, EmotionText)] == [GOOD]
        assert len({seed for _, seed in writer.asked}) == 2

    def test_after_three_more_tries_it_is_kept(self, target: Path) -> None:
        """Where every try names the emotion, the text is written as one that is not keyword-free."""
        writer = Script(*(f"joyful {number} {GOOD}" for number in range(4)))
        assert run(writer, target) == Written(written=1, named=1, left_out=0, present=0)
        (text,) = read_lines(target, EmotionText)
        assert not text.keyword_free
        assert len(writer.asked) == 4

    @pytest.mark.parametrize(
        "answer",
        ["", "too short a text", "I'm sorry, but I can't help with stories about that topic.",
         "As an AI language model I have no feelings to write about.", "<think>what would a dog do, I wonder"],
    )  # fmt: skip
    def test_answers_of_no_use(self, target: Path, answer: str) -> None:
        """An empty, short or refused answer is tried again three times, then left out, and again by the next run."""
        assert run(Script(*[answer] * 4), target) == Written(written=0, named=0, left_out=1, present=0)
        assert run(Script(answer, GOOD), target) == Written(written=1, named=0, left_out=0, present=0)

    def test_no_text_stands_twice(self, target: Path) -> None:
        """A text that is there already, but for case and spaces, is tried again."""
        run(Script(GOOD, GOOD.upper(), GOOD + "!"), target, per_pair=2)
        assert [text.text for text in read_lines(target, EmotionText)] == [GOOD, GOOD + "!"]

    @pytest.mark.parametrize(
        "answer", [f"<think>a dog?\n</think>\n\n{GOOD}\n", f'"{GOOD}"', f"Sure! Here is one:\n\n{GOOD}"]
    )
    def test_asides_are_taken_off(self, target: Path, answer: str) -> None:
        """Thoughts, quotation marks around the whole and a line of introduction are no part of the text."""
        run(Script(answer), target)
        assert [text.text for text in read_lines(target, EmotionText)] == [GOOD]

    def test_an_unknown_register_is_named(self, target: Path) -> None:
        """A register that is none is refused before anything is written, with those there are."""
        with pytest.raises(SetupError, match="work_note"):
            run(Script(), target, registers=("opera",))
        assert not target.exists()


class TestGoingOn:
    """A second run on the file of a first."""

    LISTS: ClassVar[dict[str, Any]] = {"topics": ["a dog", "rain", "school"], "per_pair": 2}

    @pytest.fixture
    def whole(self, tmp_path: Path) -> bytes:
        """What an undisturbed run writes."""
        run(Script(), tmp_path / "whole.jsonl", **self.LISTS)
        return (tmp_path / "whole.jsonl").read_bytes()

    @pytest.mark.parametrize("kept", [0, 3, 60, 400, -40, -1])
    def test_it_goes_on_where_the_file_ends(self, target: Path, whole: bytes, kept: int) -> None:
        """Wherever a run was cut, in a line too, the next one leaves the file that one run would have left."""
        target.write_bytes(whole[:kept])
        writer = Script()
        written = run(writer, target, **self.LISTS)
        assert target.read_bytes() == whole
        assert (written.present, written.written) == (6 - len(writer.asked), len(writer.asked))

    def test_a_finished_file_is_left_alone(self, target: Path, whole: bytes) -> None:
        """With everything there, nobody is asked."""
        target.write_bytes(whole)
        writer = Script()
        assert run(writer, target, **self.LISTS) == Written(written=0, named=0, left_out=0, present=6)
        assert writer.asked == []

    def test_what_was_written_is_there_at_once(self, target: Path) -> None:
        """When the writer fails, the texts before are in the file."""

        class Failing(Script):
            def complete(self, prompt: str, seed: int) -> str:
                if len(self.asked) == 2:
                    raise SetupError("--endpoint", "is gone")
                return super().complete(prompt, seed)

        with pytest.raises(SetupError, match="is gone"):
            run(Failing(), target, **self.LISTS)
        assert len(read_lines(target, EmotionText)) == 2

    @pytest.mark.parametrize("content", [b"my notes", b"my notes\nand more\n", b'{"id": 3}\n'])
    def test_another_file_is_not_touched(self, target: Path, content: bytes) -> None:
        """A file with other lines than texts is refused by its first such line and stays as it is."""
        target.write_bytes(content)
        with pytest.raises(CorpusError, match=r"texts\.jsonl:1:"):
            run(Script(), target)
        assert target.read_bytes() == content

    def test_a_place_that_cannot_be_written(self, tmp_path: Path) -> None:
        """A folder in the file's place is named."""
        with pytest.raises(SetupError, match="cannot be written"):
            run(Script(), tmp_path)


class TestLocalWriter:
    """A transformers model as the writer."""

    def test_a_seed_gives_the_same_text(self, model: Any, tiny_tokenizer: Any) -> None:
        """The same seed gives the same answer and another seed another, and the process's random state stays."""
        writer = LocalWriter(model, tiny_tokenizer)
        before = torch.random.get_rng_state()
        one, again, other = (writer.complete("A dog.", seed) for seed in (1, 1, 2))
        assert one == again != other
        assert one
        assert "<|im_end|>" not in one
        assert torch.equal(before, torch.random.get_rng_state())

    def test_without_a_chat_template(self, model: Any) -> None:
        """A tokenizer without chat template is refused at once."""
        with pytest.raises(SetupError, match="no chat template"):
            LocalWriter(model, make_tokenizer(None, ("<|end|>",), eos="<|end|>"))


class Server(ThreadingHTTPServer):
    """A chat server that answers by a script of (status, body) and keeps what it was sent."""

    def __init__(self, *answers: tuple[int, Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []

    @property
    def url(self) -> str:
        """Its base address."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    """One request of ``Server``."""

    server: Server

    def do_POST(self) -> None:
        """Answers with the next of the script; the last one stays."""
        mine = self.server
        mine.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        mine.keys.append(self.headers["Authorization"])
        mine.paths.append(self.path)
        status, answer = mine.answers.pop(0) if len(mine.answers) > 1 else mine.answers[0]
        body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def said(content: str | None) -> dict[str, Any]:
    """A chat completion."""
    return {"choices": [{"message": {"role": "assistant", "content": content}}]}


@pytest.fixture
def serve(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts servers by their scripts; retries do not wait, and no key is set."""
    monkeypatch.delenv(API_KEY, raising=False)

    def start(*answers: tuple[int, Any]) -> Server:
        server = Server(*answers)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        request.addfinalizer(server.server_close)
        request.addfinalizer(server.shutdown)
        return server

    with stamina.set_testing(True, attempts=3):
        yield start


class TestEndpointWriter:
    """An OpenAI-compatible server as the writer."""

    def test_a_corpus_from_a_server(self, serve: Any, target: Path) -> None:
        """Texts are asked for by chat completion, each with its seed, and written."""
        server = serve((200, said(GOOD)), (200, said(GOOD + "!")))
        assert run(EndpointWriter(server.url, "m"), target, per_pair=2).written == 2
        assert set(server.paths) == {"/v1/chat/completions"}
        assert [body["model"] for body in server.bodies] == ["m", "m"]
        assert len({body["seed"] for body in server.bodies}) == 2
        assert server.bodies[0]["messages"][0]["role"] == "user"
        assert server.keys == [None, None]

    def test_the_key_comes_from_the_environment(self, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The key of the environment is sent, and the address may lack /v1."""
        monkeypatch.setenv(API_KEY, "secret")
        server = serve((200, said(GOOD)))
        assert EndpointWriter(server.url.removesuffix("/v1"), "m").complete("A dog.", 1) == GOOD
        assert server.keys == ["Bearer secret"]

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_faults_that_pass_are_waited_out(self, serve: Any, status: int) -> None:
        """A busy or failing server is asked again."""
        server = serve((status, "busy"), (200, said(GOOD)))
        assert EndpointWriter(server.url, "m").complete("A dog.", 1) == GOOD
        assert len(server.bodies) == 2

    def test_faults_that_stay_are_told(self, serve: Any) -> None:
        """A server that goes on failing is an error with its words."""
        server = serve((503, "out of memory"))
        with pytest.raises(SetupError, match="503: out of memory"):
            EndpointWriter(server.url, "m").complete("A dog.", 1)
        assert len(server.bodies) == 3

    def test_a_refused_request_is_not_repeated(self, serve: Any) -> None:
        """A 4xx is an error at once, which says what the server said."""
        server = serve((404, {"error": {"message": "no model m"}}))
        with pytest.raises(SetupError, match=r"404: .*no model m.*correct the model's name") as caught:
            EndpointWriter(server.url, "m").complete("A dog.", 1)
        assert caught.value.field == "--endpoint"
        assert len(server.bodies) == 1

    @pytest.mark.parametrize("answer", ["<html>", {"choices": []}, [1], {"choices": [{"message": None}]}])
    def test_what_is_no_completion_is_told(self, serve: Any, answer: Any) -> None:
        """A server of another kind is an error that shows what it said."""
        with pytest.raises(SetupError, match="answers no chat completion"):
            EndpointWriter(serve((200, answer)).url, "m").complete("A dog.", 1)

    def test_no_content_is_an_empty_answer(self, serve: Any) -> None:
        """A completion without content, as some servers refuse, is an empty answer."""
        assert EndpointWriter(serve((200, said(None))).url, "m").complete("A dog.", 1) == ""

    def test_nobody_there(self, serve: Any) -> None:
        """An address where nobody listens is named."""
        server = serve((200, said(GOOD)))
        server.shutdown()
        server.server_close()
        with pytest.raises(SetupError, match=f"127.0.0.1:{server.server_port}.* cannot be reached"):
            EndpointWriter(server.url, "m").complete("A dog.", 1)

    @pytest.mark.parametrize("url", ["localhost:8000", "ftp://a", "", "http://[::1"])
    def test_what_is_no_address(self, url: str) -> None:
        """An address that is none is refused at once."""
        with pytest.raises(SetupError, match="no http address"):
            EndpointWriter(url, "m")


class TestShippedLists:
    """The lists that come with the package."""

    def test_171_emotions(self) -> None:
        """There are 171 emotions in the families of the shipped corpus, none of them twice."""
        families = {card.family for card in read_emotions(SHIPPED / "emotions.json")}
        emotions = read_emotions(SHIPPED / "emotions171.json")
        assert len(emotions) == 171
        assert {card.family for card in emotions} == families

    def test_100_topics(self) -> None:
        """There are 100 topics, none of them twice."""
        topics = read_topics(SHIPPED / "topics.json")
        assert len(topics) == len({topic.lower() for topic in topics}) == 100

    @pytest.mark.parametrize(
        ("content", "told"), [("{", "not JSON"), ("[]", "at least one"), ('[" "]', "none of them empty")]
    )
    def test_a_bad_list_is_named(self, tmp_path: Path, content: str, told: str) -> None:
        """A list of topics that is none is an error that names the file."""
        (tmp_path / "topics.json").write_text(content)
        with pytest.raises(CorpusError, match=told) as caught:
            read_topics(tmp_path / "topics.json")
        assert caught.value.field == str(tmp_path / "topics.json")
