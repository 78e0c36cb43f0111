"""An inference engine made of the stock generated stub alone, and turns for it to send."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from builders import chatml_ids, rows_scoring

from monitor.wire.v1 import ingest_pb2, ingest_pb2_grpc, inspect_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from monitor.probes.bank import Bank

Request, Response = ingest_pb2.StreamActivationsRequest, ingest_pb2.StreamActivationsResponse
Event, Start, Gap, End = ingest_pb2.Event, ingest_pb2.Start, ingest_pb2.Gap, ingest_pb2.End
PATIENCE = 60.0


# -- what is sent -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """A conversation of one user message and one reply, with its hidden states."""

    request_id: str
    token_ids: NDArray[np.int64]
    rows: NDArray[np.float32]
    prompt_length: int
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Tokens of the turn."""
        return len(self.token_ids)

    @property
    def start(self) -> Event:
        """Its start."""
        return Event(request_id=self.request_id, start=Start(prompt_length=self.prompt_length, labels=self.labels))

    @property
    def end(self) -> Event:
        """Its end."""
        return Event(request_id=self.request_id, end=End(total_tokens=self.length))

    def gap(self, start: int, stop: int, reason: Any = ingest_pb2.GAP_REASON_DROPPED) -> Event:
        """Tells that some of its positions never come."""
        return Event(request_id=self.request_id, gap=Gap(start=start, count=stop - start, reason=reason))


def make_turn(
    bank: Bank,
    request_id: str,
    user: float = 0.0,
    assistant: float = 0.0,
    *,
    words: int = 12,
    seed: int = 0,
    **more: Any,
) -> Turn:
    """A turn whose user and assistant show so much affect, in reference standard deviations."""
    rng = np.random.default_rng(seed)
    ids = chatml_ids()
    spoken = [number for piece, number in ids.items() if piece.isalpha() and len(piece) == 1 and piece.isascii()]

    def header(role: str) -> list[int]:
        return [ids["<|im_start|>"], ids[role], ids["Ċ"]]

    asked = [int(word) for word in rng.choice(spoken, words)]
    replied = [int(word) for word in rng.choice(spoken, words)]
    prompt = [*header("user"), *asked, ids["<|im_end|>"], ids["Ċ"], *header("assistant")]
    tokens = np.array([*prompt, *replied], np.int64)
    columns = bank.columns
    scores = rng.normal(0, 0.2, (len(tokens), columns.probes))
    means, scales = bank.tensors.turn_means, bank.tensors.turn_scales
    for role, column, value, held in (
        (0, columns.user_affect, user, slice(0, len(prompt))),
        (1, columns.assistant_affect, assistant, slice(len(prompt), None)),
    ):
        scores[held, column] += means[role, column] + scales[role, column] * value
    return Turn(request_id, tokens, rows_scoring(bank, scores), len(prompt), **more)


def make_hello(bank: Bank, **fields: Any) -> ingest_pb2.Hello:
    """The hello of an engine that serves the bank's model."""
    model = bank.card.model
    said: dict[str, Any] = {
        "model_name": model.name,
        "weights_fingerprint": model.weights_fingerprint,
        "engine_id": "engine",
        "layers": bank.card.layers,
        "hidden_size": model.hidden_size,
    }
    return ingest_pb2.Hello(**(said | fields))


def tensor(rows: NDArray[np.float32]) -> ingest_pb2.Tensor:
    """Rows as the wire has them."""
    return ingest_pb2.Tensor(dtype=ingest_pb2.DTYPE_F32, shape=rows.shape, data=np.ascontiguousarray(rows).tobytes())


def make_frame(
    *parts: tuple[Turn, int, int], events: Sequence[Event] = (), hello: ingest_pb2.Hello | None = None
) -> Request:
    """A frame with positions [start, stop) of some turns, and events."""
    frame = Request(events=events, hello=hello)
    if parts:
        frame.spans.request_ids.extend(turn.request_id for turn, _, _ in parts)
        frame.spans.starts.extend(start for _, start, _ in parts)
        frame.spans.counts.extend(stop - start for _, start, stop in parts)
        for turn, start, stop in parts:
            frame.spans.token_ids.extend(turn.token_ids[start:stop].tolist())
        frame.rows.CopyFrom(tensor(np.concatenate([turn.rows[start:stop] for turn, start, stop in parts])))
    return frame


def whole(turn: Turn) -> Request:
    """A turn in one frame."""
    return make_frame((turn, 0, turn.length), events=[turn.start, turn.end])


def numbers(assessment: ingest_pb2.Assessment) -> dict[str, float]:
    """All that was measured of a turn, by name."""
    found: dict[str, float] = {}
    for described, value in assessment.ListFields():
        if isinstance(value, float | int) and described.name != "ended_unix_ns":
            found[described.name] = float(value)
        elif described.name in ("families", "emotions", "user_families", "user_emotions"):
            found |= {f"{described.name}.{key}": score for key, score in value.items()}
    return found


# -- the way it is sent -----------------------------------------------------------------------------------------------


class Stream:
    """One stream: sends a frame, waits for its answer."""

    def __init__(self, method: Any) -> None:
        self._frames: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sequence = 0
        self.call = method(iter(self._frames.get, None), timeout=PATIENCE)

    def post(self, frame: Request | bytes) -> None:
        """Sends a frame that nothing is expected to come back for."""
        self._sequence += 1
        if isinstance(frame, Request):
            frame.sequence = self._sequence
        self._frames.put(frame)

    def send(self, frame: Request | bytes) -> Response:
        """The answer to a frame."""
        self.post(frame)
        answer: Response = next(self.call)
        return answer

    def close(self) -> None:
        """Hangs up, as a process that ends."""
        self._frames.put(None)
        self.call.cancel()


class Engine:
    """A channel to a sidecar with the generated stubs on it."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = (
            grpc.secure_channel(address, credentials, options=options)
            if credentials
            else grpc.insecure_channel(address, options=options)
        )
        self.ingest = ingest_pb2_grpc.IngestServiceStub(self.channel)
        self.inspect = inspect_pb2_grpc.InspectServiceStub(self.channel)
        self._streams: list[Stream] = []

    def open(self) -> Stream:
        """A stream on which nothing has been sent."""
        self._streams.append(Stream(self.ingest.StreamActivations))
        return self._streams[-1]

    def stream(self, bank: Bank, **fields: Any) -> Stream:
        """A stream of an engine that serves the bank's model, its hello accepted."""
        stream = self.open()
        stream.send(Request(hello=make_hello(bank, **fields)))
        return stream

    def raw_stream(self, bank: Bank) -> Stream:
        """A stream that takes bytes, its hello accepted."""
        method = self.channel.stream_stream(
            "/affect.monitor.v1.IngestService/StreamActivations",
            request_serializer=None,
            response_deserializer=Response.FromString,
        )
        stream = Stream(method)
        self._streams.append(stream)
        stream.send(Request(hello=make_hello(bank)).SerializeToString())
        return stream

    def close(self) -> None:
        """Hangs up everywhere."""
        for stream in self._streams:
            stream.close()
        self.channel.close()
