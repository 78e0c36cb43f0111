"""Puts canary prompts to the inference server, one after the other, and gathers the turns that its capture streams."""

from __future__ import annotations

import math
import queue
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from monitor.errors import SetupError
from monitor.policy.marks import CANARY, SAMPLED_OUT
from monitor.sidecar.canary_prompts import ID_LABEL, CanaryPrompt
from monitor.sidecar.canary_record import CanaryTurn
from monitor.sidecar.pipeline import Pipeline
from monitor.wire.v1 import ingest_pb2

_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_TURN_SECONDS = 30.0
"""From a reply to the end of its turn."""
_SEEN = {CANARY, "unvalidated", "short"}
"""Marks of turns whose scores can be compared."""

_Finished = queue.SimpleQueue[ingest_pb2.Assessment]


@dataclass
class Played:
    """What came of the prompts.

    Attributes:
        turns: Scores, by prompt.
        missing: Why there are none, by prompt.
    """

    turns: dict[str, CanaryTurn] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class CanaryPlayer:
    """Plays prompts.

    Args:
        url: Base address of an OpenAI-compatible server, with or without ``/v1``.
        model: What the server calls its model.
        prompts: The prompts.
        pipeline: Scores the turns.
        sampling_rate: Share of requests that engines send.
    """

    def __init__(
        self, url: str, model: str, prompts: Sequence[CanaryPrompt], pipeline: Pipeline, sampling_rate: float
    ) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
        self._model, self._prompts, self._pipeline = model, prompts, pipeline
        # Who is in the sample is decided by the id that the server makes: another try has another one.
        self._tries = 1 if sampling_rate >= 1 else math.ceil(5 / sampling_rate)

    def play(self, on: Callable[[], bool]) -> Played:
        """Plays every prompt once.

        Args:
            on: Called before each prompt; false ends it there.

        Raises:
            SetupError: The server cannot be reached, or its turns do not come.
        """
        played = Played()
        with httpx.Client(timeout=_TIMEOUT) as http, self._expecting() as (token, finished):
            for prompt in self._prompts:
                if not on():
                    break
                try:
                    turn = self._ask(http, prompt, token, finished)
                except httpx.HTTPStatusError as error:
                    played.missing[prompt.id] = f"the server answers {error.response.status_code}"
                except httpx.HTTPError as error:
                    told = str(error) or type(error).__name__
                    fix = "start the server or correct the address"
                    raise SetupError("canary_url", f"{self._url} cannot be reached ({told}); {fix}") from None
                else:
                    unseen = sorted(set(turn.marks) - _SEEN) or (["no numbers"] if math.isnan(turn.over_index) else [])
                    if unseen:
                        played.missing[prompt.id] = f"its turn is {', '.join(unseen)}"
                    else:
                        played.turns[prompt.id] = _scores(turn)
        return played

    @contextmanager
    def _expecting(self) -> Iterator[tuple[str, _Finished]]:
        """A token by which the pipeline knows the turns of a run, and a queue that gets them."""
        finished: _Finished = queue.SimpleQueue()

        def watch(turn: ingest_pb2.Assessment) -> None:
            if CANARY in turn.marks:
                finished.put(turn)

        unwatch = self._pipeline.watch(watch)
        self._pipeline.canary_token = token = secrets.token_hex(16)
        try:
            yield token, finished
        finally:
            self._pipeline.canary_token = ""
            unwatch()

    def _ask(self, http: httpx.Client, prompt: CanaryPrompt, token: str, finished: _Finished) -> ingest_pb2.Assessment:
        """The turn of a prompt; where it fell outside the sample, of a later try."""
        for _ in range(self._tries):
            http.post(self._url, json=prompt.body(self._model, token)).raise_for_status()
            turn = _turn_of(prompt, finished)
            if SAMPLED_OUT not in turn.marks:
                break
        return turn


def _turn_of(prompt: CanaryPrompt, finished: _Finished) -> ingest_pb2.Assessment:
    try:
        while True:
            turn = finished.get(timeout=_TURN_SECONDS)
            if turn.labels.get(ID_LABEL) == prompt.id:
                return turn
    except queue.Empty:
        raise SetupError(
            "canary_url",
            f"answers, but no turn of {prompt.id} came within {_TURN_SECONDS:.0f} s; attach this sidecar's capture to "
            "the server, and have it hand on a request's metadata as labels",
        ) from None


def _scores(turn: ingest_pb2.Assessment) -> CanaryTurn:
    return CanaryTurn(
        over_index=turn.over_index,
        user_affect=turn.user_affect,
        assistant_affect=turn.assistant_affect,
        tokens=turn.assistant_tokens,
    )
