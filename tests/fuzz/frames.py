"""Frames for fuzzing: seeds, mutations, and what must hold of whatever arrives.

An input is a stream: frames one after the other, each behind its length in four bytes (little endian).
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import grpc
import numpy as np
import structlog
import torch
from builders import chatml_ids, make_bank
from google.protobuf.message import DecodeError
from sidecar.engine import make_frame, make_hello, make_turn, whole

from monitor.errors import FrameError
from monitor.outputs.metrics import Metrics
from monitor.policy.engine import AlertEngine
from monitor.policy.schema import PolicyFile
from monitor.probes.bank import Bank
from monitor.settings import SidecarSettings
from monitor.sidecar.memory import Region
from monitor.sidecar.pipeline import Pipeline
from monitor.sidecar.servicer import IngestServicer
from monitor.wire import codec
from monitor.wire.codec import Frame, decode_frame, encode_frame, rows_of
from monitor.wire.v1 import ingest_pb2

Message = ingest_pb2.StreamActivationsRequest
Event, Start, Gap, End = ingest_pb2.Event, ingest_pb2.Start, ingest_pb2.Gap, ingest_pb2.End
Mutate = Callable[[bytes, random.Random], bytes]
VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
_ROWS, _DATA = 15, 3
_DEPTH = 3
_LENGTH = 4
_GENERATION = 7
_ANSWER_BYTES = 4 << 20
_MOST_KNOWN = 40
_CACHED = ingest_pb2.GAP_REASON_PREFIX_CACHED
_IDS = ("a", "b", "c", "", "é", "r" * 300)
_NUMBERS = (0, 1, 2, 7, 8, 16, 20, 127, 128, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
_LARGE = (*_NUMBERS, 2**63 - 1, 2**63, 2**64 - 1)
_VALUES = (0.0, -0.0, 1.0, -9.0, 65504.0, 3.4e38, -3.4e38, 1e-45, math.nan, math.inf, -math.inf)


# -- the wire ---------------------------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """One field of a message as it stands on the wire: its number, its kind, its payload without length."""

    field: int
    kind: int
    payload: bytes


def varint(value: int, *, surplus: int = 0) -> bytes:
    """Base 128, with so many bytes more than are needed."""
    out = bytearray()
    while value > 0x7F or surplus > 0:
        if value <= 0x7F:
            surplus -= 1
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def split(raw: bytes) -> list[Piece] | None:
    """The fields of a message, groups with their marks alone; None where it is none."""
    pieces, position = [], 0

    def number() -> int:
        nonlocal position
        value = shift = 0
        while shift < 70:
            value |= (raw[position] & 0x7F) << shift
            position, shift = position + 1, shift + 7
            if raw[position - 1] < 0x80:
                return value
        raise ValueError("varint")

    try:
        while position < len(raw):
            tag = number()
            begins = position
            kind = tag & 7
            if kind == VARINT:
                number()
            elif kind == BYTES:
                length = number()
                begins, position = position, position + length
            elif kind not in (GROUP, END_GROUP):
                position += {FIXED64: 8, FIXED32: 4}[kind]
            pieces.append(Piece(tag >> 3, kind, raw[begins:position]))
    except (IndexError, KeyError, ValueError):
        return None
    return pieces if position == len(raw) else None


def join(pieces: list[Piece], chance: random.Random | None = None) -> bytes:
    """Fields as a message; by chance with tags and lengths of more bytes than they need, or wrong lengths."""
    odd = chance.randrange(4 * len(pieces) + 1) if chance and pieces else -1
    out = []
    for number, (field, kind, payload) in enumerate(pieces):
        surplus = chance.choice((1, 2, 3, 4, 5, 8, 9)) if chance and number == odd else 0
        also, wrong = 0, 0
        if chance and number + len(pieces) == odd:
            also = chance.choice((1, 3, 4, 8, 9))
        if chance and number + 2 * len(pieces) == odd:
            wrong = chance.choice((-1, 1, 2**31, 2**32, 2**62))
        out.append(varint(field << 3 | kind, surplus=surplus))
        if kind == BYTES:
            out.append(varint(max(0, len(payload) + wrong), surplus=also))
        out.append(payload)
    return b"".join(out)


def frames_of(stream: bytes) -> list[bytes]:
    """The frames of an input; the last one may be cut off."""
    frames, position = [], 0
    while position < len(stream):
        length = int.from_bytes(stream[position : position + _LENGTH], "little")
        position += _LENGTH
        frames.append(stream[position : position + length])
        position += length
    return frames


def stream_of(frames: list[bytes]) -> bytes:
    """Frames as an input."""
    return b"".join(len(frame).to_bytes(_LENGTH, "little") + frame for frame in frames)


# -- seeds ------------------------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Streams that reach every part of the decoder and the pipeline, good ones and odd ones."""
    bank = make_bank()
    one, two = make_turn(bank, "a", assistant=9.0, words=10), make_turn(bank, "b", 0.5, words=4, seed=1)
    hello = Message(hello=make_hello(bank)).SerializeToString()
    first = make_frame((one, 0, 9), (two, 0, 3), events=[one.start, two.start])
    last = make_frame((one, 9, one.length), (two, 5, two.length), events=[two.gap(3, 5), one.end, two.end])
    bare = make_frame((one, 9, 12))
    rows = torch.from_numpy(one.rows[9:12].copy())
    bare.ClearField("rows")
    rows_alone = encode_frame(Message(), rows)
    spoilt = make_turn(bank, "c", words=4)
    spoilt.rows[2:5] = np.array([math.nan, math.inf, 3.4e38], np.float32)[:, None, None]
    pieces = split(bare.SerializeToString()) or []
    tensor = split(encode_frame(Message(), rows))
    assert tensor is not None
    odd = Piece(_ROWS, BYTES, join((split(tensor[0].payload) or [])[::-1]))
    group = varint(100 << 3 | GROUP) + varint(8) + varint(1) + varint(100 << 3 | END_GROUP)
    begun = first.SerializeToString()
    shared = make_frame((one, 9, 12))
    shared.rows.data = b""
    shared.rows.shared.MergeFrom(ingest_pb2.SharedData(generation=_GENERATION, offset=64, length=3 * 2 * 16 * 4))
    scores = torch.zeros(9, 1, bank.columns.probes)
    projected = make_frame((one, 0, 9), events=[one.start])
    projected.ClearField("rows")
    onto = Message(hello=make_hello(bank, projection=bank.probes))
    lacking = Message(hello=make_hello(bank, lacks_cached_prefixes=True))
    cached = Message(events=[two.start, two.gap(0, 20, _CACHED), two.end])
    cached.events[1].gap.token_ids.extend(one.token_ids[:20].tolist())
    capped = Message(events=[one.end])
    capped.events[0].end.interventions.add(
        family="warmth", at="0.99", layers=2, tokens=9, touched=3, largest=2.5, mean=1
    )
    streams = [
        [hello, begun, last.SerializeToString()],
        [whole(one).SerializeToString(), whole(two).SerializeToString()],
        [begun, *(encode_frame(bare, rows.to(dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float32))],
        [begun, begun, whole(one).SerializeToString()],
        [whole(spoilt).SerializeToString()],
        [begun, join([odd, *pieces])],
        [begun, rows_alone + rows_alone],
        [begun, bare.SerializeToString() + varint(_ROWS << 3 | BYTES) + varint(4) + b"\x08\x03\x1a\x00"],
        [join(pieces) + group, group + rows_alone],
        [Message(events=[Event(request_id=name) for name in _IDS]).SerializeToString()],
        [Message(events=[Event(request_id="a", start=Start(labels={"route": "helpline"}))]).SerializeToString()],
        [begun, shared.SerializeToString()],
        [begun, capped.SerializeToString()],
        [onto.SerializeToString(), encode_frame(projected, scores)],
        [lacking.SerializeToString(), whole(one).SerializeToString(), cached.SerializeToString()],
        [b"", b"\xff" * 40],
    ]
    return [stream_of(frames) for frames in streams]


# -- mutations --------------------------------------------------------------------------------------------------------


def scramble(raw: bytes, chance: random.Random) -> bytes:
    """Bytes with one place flipped, cut out, doubled or cut off."""
    if not raw:
        return chance.randbytes(chance.randint(1, 8))
    at, size = chance.randrange(len(raw)), chance.randint(1, 8)
    return chance.choice(
        (
            raw[:at] + chance.randbytes(1) + raw[at + 1 :],
            raw[:at] + raw[at + size :],
            raw[:at] + raw[at : at + 5 * size] + raw[at:],
            raw[:at],
        )
    )


def mutated(stream: bytes, chance: random.Random, mutate: Mutate = scramble) -> bytes:
    """A stream with one change, of the order of its frames, of fields, of the wire, or of bytes."""
    frames = frames_of(stream)
    if not frames:
        return chance.choice(seeds())
    at = chance.randrange(len(frames))
    kind = chance.randrange(10)
    if kind < 2:
        _reorder(frames, at, chance)
    elif kind < 6:
        frames[at] = _edited(frames[at], chance)
    elif kind < 9:
        frames[at] = _rewired(frames[at], chance, mutate)
    else:
        frames[at] = mutate(frames[at], chance)
    return stream_of(frames)


def _reorder(frames: list[bytes], at: int, chance: random.Random) -> None:
    kind = chance.randrange(5)
    if kind == 0:
        del frames[at]
    elif kind == 1:
        frames.insert(chance.randrange(len(frames)), frames[at])
    elif kind == 2:
        frames.append(frames.pop(at))
    elif kind == 3:
        frames[at] += chance.choice(frames)
    else:
        frames[at:at] = frames_of(chance.choice(seeds()))


def _rewired(raw: bytes, chance: random.Random, mutate: Mutate, depth: int = 0) -> bytes:
    """A message with one field dropped, doubled, moved, put elsewhere, changed within or added."""
    pieces = split(raw)
    if not pieces:
        return mutate(raw, chance)
    at = chance.randrange(len(pieces))
    piece, kind = pieces[at], chance.randrange(8)
    if kind == 0:
        del pieces[at]
    elif kind == 1:
        pieces.insert(chance.randrange(len(pieces) + 1), piece)
    elif kind == 2:
        chance.shuffle(pieces)
    elif kind == 3:
        other = chance.choice((piece.field, 0, 1, 2, 3, 4, 15, 100, 2**29 - 1, 2**29, 2**61))
        pieces[at] = piece._replace(field=other, kind=chance.choice((piece.kind, *range(8))))
    elif kind == 4:
        unknown = Piece(chance.choice((3, 4, 15, 16, 100)), chance.choice((BYTES, GROUP, END_GROUP, FIXED32)), bytes(4))
        pieces.insert(at, unknown)
    elif piece.kind == BYTES and depth < _DEPTH:
        pieces[at] = piece._replace(payload=_rewired(piece.payload, chance, mutate, depth + 1))
    else:
        return join(pieces, chance)
    return join(pieces, chance if chance.random() < 0.2 else None)


def _edited(raw: bytes, chance: random.Random) -> bytes:
    """A frame with one field set to something that may make sense."""
    try:
        message = Message.FromString(raw)
    except DecodeError:
        return chance.choice(frames_of(chance.choice(seeds())))
    with suppress(IndexError):  # nothing there to change
        chance.choice(_EDITS)(message, chance)
    return message.SerializeToString()


def _edit_spans(message: Message, chance: random.Random) -> None:
    column = chance.choice((message.spans.starts, message.spans.counts, message.spans.token_ids))
    column[chance.randrange(len(column) or 1)] = chance.choice(_NUMBERS)


def _edit_starts(message: Message, chance: random.Random) -> None:
    at = chance.randrange(len(message.spans.starts) or 1)
    message.spans.starts[at] = min(max(message.spans.starts[at] + chance.randint(-12, 12), 0), 2**32 - 1)


def _edit_tokens(message: Message, chance: random.Random) -> None:
    ids = chatml_ids()
    at = chance.randrange(len(message.spans.token_ids) or 1)
    message.spans.token_ids[at] = ids[chance.choice(("<|im_start|>", "<|im_end|>", "user", "assistant", "Ċ"))]


def _edit_ids(message: Message, chance: random.Random) -> None:
    ids = message.spans.request_ids
    ids[chance.randrange(len(ids) or 1)] = chance.choice(_IDS)


def _edit_length(message: Message, chance: random.Random) -> None:
    spans = message.spans
    column: Any = chance.choice((spans.starts, spans.counts, spans.token_ids, spans.request_ids, message.rows.shape))
    if chance.random() < 0.5:
        column.append(column[0])
    else:
        column.pop()


def _edit_rows(message: Message, chance: random.Random) -> None:
    rows = message.rows
    kind = chance.randrange(4)
    if kind == 0:
        rows.dtype = chance.choice((0, 1, 2, 3, 4, -1, 2**31 - 1))  # type: ignore[assignment]
    elif kind == 1:
        rows.shape[chance.randrange(len(rows.shape) or 1)] = chance.choice(_NUMBERS)
    elif kind == 2:
        rows.data = rows.data[: chance.randrange(len(rows.data) + 1)]
    else:
        data = bytearray(rows.data)
        at = 4 * chance.randrange(len(data) // 4 or 1)
        data[at : at + 4] = np.float32(chance.choice(_VALUES)).tobytes()
        rows.data = bytes(data)


def _edit_shared(message: Message, chance: random.Random) -> None:
    shared = message.rows.shared
    shared.generation = chance.choice((_GENERATION, _GENERATION, 0))
    shared.offset = chance.choice((0, 64, 1, 1 << 13, *_LARGE))
    shared.length = chance.choice((len(message.rows.data), shared.length, 0, *_LARGE))
    if chance.random() < 0.8:
        message.rows.data = b""


def _edit_part(message: Message, chance: random.Random) -> None:
    """Takes the first rows of a frame's spans alone, all columns in agreement."""
    spans = message.spans
    if len(message.rows.data) and len(spans.counts) == 1 and spans.counts[0] > 1:
        keep = chance.randrange(1, min(spans.counts[0], 64))
        width = len(message.rows.data) // spans.counts[0]
        spans.counts[0] = message.rows.shape[0] = keep
        del spans.token_ids[keep:]
        message.rows.data = message.rows.data[: keep * width]


def _edit_event(message: Message, chance: random.Random) -> None:
    event = Event(request_id=chance.choice(_IDS))
    kind = chance.randrange(4)
    if kind == 0:
        event.start.prompt_length = chance.choice(_NUMBERS)
        event.start.labels[chance.choice(("route", "x", "y" * 129))] = chance.choice(("helpline", "", "z" * 129))
    elif kind == 1:
        event.end.total_tokens = chance.choice(_NUMBERS)
    elif kind == 2:
        event.gap.MergeFrom(Gap(start=chance.choice(_NUMBERS), count=chance.choice(_NUMBERS)))
        event.gap.reason = chance.choice((1, 2, 3, 4, 0, 9))  # type: ignore[assignment]
        if chance.randrange(2):
            known = min(event.gap.count, _MOST_KNOWN) + chance.choice((0, 0, 0, 1))
            event.gap.token_ids.extend([chance.choice(_NUMBERS)] * known)
    events = [*message.events, event]
    chance.shuffle(events)
    del message.events[:]
    message.events.extend(events)


def _edit_events(message: Message, chance: random.Random) -> None:
    del message.events[chance.randrange(len(message.events) or 1)]


def _edit_head(message: Message, chance: random.Random) -> None:
    message.sequence = chance.choice(_LARGE)
    message.sent_unix_ns = chance.choice((0, 1, -1, 2**63 - 1, -(2**63)))


def _edit_hello(message: Message, chance: random.Random) -> None:
    hello = message.hello
    kind = chance.randrange(6)
    if kind == 0:
        hello.engine_id = chance.choice(_IDS)
    elif kind == 1:
        hello.hidden_size = chance.choice(_NUMBERS)
    elif kind == 2:
        hello.layers.append(chance.choice(_NUMBERS))
    elif kind == 3:
        hello.weights_fingerprint = chance.choice(_IDS)
    elif kind == 4:
        hello.wants_shared_memory = not hello.wants_shared_memory
        hello.lacks_cached_prefixes = not hello.lacks_cached_prefixes
        hello.projection = chance.choice(("", "other"))
    else:
        hello.data_parallel_rank = chance.choice(_NUMBERS)
        hello.answer_every = chance.choice(_NUMBERS)


_EDITS: tuple[Callable[[Message, random.Random], None], ...] = (
    _edit_spans, _edit_starts, _edit_tokens, _edit_ids, _edit_length, _edit_rows, _edit_part, _edit_shared, _edit_event,
    _edit_events, _edit_head, _edit_hello,
)  # fmt: skip


# -- what must hold ---------------------------------------------------------------------------------------------------


def check_decoder(raw: bytes) -> None:
    """The decoder says what a stock parser says, or refuses a frame for one of its few reasons of its own."""
    try:
        stock = Message.FromString(raw)
    except DecodeError:
        stock = None
    frame = _decoded(raw)
    if isinstance(frame, FrameError):
        assert stock is None or _is_refused_by_us(raw, frame), f"refused what stock accepts: {frame}"
        return
    assert stock is not None, "accepted what stock refuses"
    assert frame.size == len(raw)
    data = bytes(frame.data)
    assert data == stock.rows.data, "other elements than stock"
    assert frame.message.HasField("rows") == stock.HasField("rows")
    if stock.HasField("rows"):
        stock.rows.ClearField("data")
    assert frame.message == stock, "another message than stock"
    with suppress(FrameError):
        rows = rows_of(frame)
        assert list(rows.shape) == list(stock.rows.shape)
        assert rows.contiguous().flatten().view(torch.uint8).numpy().tobytes() == data


def _decoded(raw: bytes) -> Frame | FrameError:
    try:
        return decode_frame(raw)
    except FrameError as error:
        return error


def _is_refused_by_us(raw: bytes, error: FrameError) -> bool:
    """Whether a frame that stock accepts has rows or elements twice, or a group or too many parts for the decoder."""
    pieces = split(raw) or []
    tensors = [piece.payload for piece in pieces if (piece.field, piece.kind) == (_ROWS, BYTES)]
    inner = [piece for tensor in tensors for piece in split(tensor) or []]
    if error.field == "rows":
        return len(tensors) > 1
    if error.field == "rows.data":
        return sum((piece.field, piece.kind) == (_DATA, BYTES) for piece in inner) > 1
    crowded = len(pieces) + len(inner) > codec._MAX_FIELDS
    return crowded or any(piece.kind in (GROUP, END_GROUP) for piece in (*pieces, *inner))


POLICIES = PolicyFile.model_validate(
    {
        "version": 1,
        "policies": [
            {
                "name": "helpline",
                "match": {"route": "helpline"},
                "stance": "crisis",
                "turn": {"false_alarm_rate": 0.3, "min_assistant_tokens": 1, "min_coverage": 0.01},
            },
            {
                "name": "desk",
                "stance": "neutral",
                "turn": {"false_alarm_rate": 0.3, "min_assistant_tokens": 1, "min_coverage": 0.01, "resolve_turns": 2},
            },
        ],
    }
)


class _AbortedError(Exception):
    """A stream that the servicer ended on purpose."""


class _Context:
    """What the servicer needs of a gRPC context."""

    def peer(self) -> str:
        """Where the stream comes from."""
        return "unix:"

    def abort(self, _code: object, told: str) -> NoReturn:
        """Ends the stream."""
        raise _AbortedError(told)

    def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """Ends the stream, and tells more."""
        raise _AbortedError(status.details)


class _Lender:
    """Lends the same memory to every stream."""

    def __init__(self) -> None:
        self._region = Region(1 << 14, _GENERATION)

    def lend(self) -> Region:
        """The memory."""
        return self._region

    def offer(self, region: Region) -> ingest_pb2.SharedMemory:
        """How a client would get at it."""
        return ingest_pb2.SharedMemory(generation=region.generation, size_bytes=region.size)

    def take_back(self, region: Region) -> None:
        """Keeps it."""


_LENDER = _Lender()


class House:
    """A sidecar without its server.

    Args:
        bank: The probes.
    """

    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.metrics = Metrics()
        self.alerts = AlertEngine(POLICIES, lambda alerts: [alert.annotations for alert in alerts])
        self.pipeline = Pipeline(
            bank,
            POLICIES,
            self.metrics,
            self.alerts,
            max_open_turns=8,
            turn_timeout=-1.0,
            allow_unvalidated=True,
            keep_turns=16,
        )
        self.servicer = IngestServicer(self.pipeline, SidecarSettings.model_construct())
        self.servicer.lender = _LENDER  # type: ignore[assignment]

    def take(self, frames: list[bytes]) -> None:
        """Takes a stream, and checks that each frame ends in numbers or typed errors, and leaves nothing behind."""
        hello = Message(hello=make_hello(self.bank, wants_shared_memory=True))
        first = _decoded(frames[0]) if frames else None
        if not isinstance(first, Frame) or not first.message.HasField("hello"):
            frames = [hello.SerializeToString(), *frames]
        with suppress(_AbortedError):
            for answer in self.servicer.stream_activations(iter(frames), _Context()):  # type: ignore[arg-type]
                assert answer.ByteSize() < _ANSWER_BYTES
                for assessment in answer.assessments:
                    self._check_turn(assessment)
        for assessment in self.pipeline.sweep():
            self._check_turn(assessment)
        assert self.pipeline.status()["open_turns"] == 0, "turns left open"
        assert self.metrics.value("affect_streams_open") == 0, "streams left open"
        assert self.metrics.value("affect_faults_total", "internal") == 0, "an internal fault; the log says where"

    @staticmethod
    def _check_turn(turn: ingest_pb2.Assessment) -> None:
        assert 0 <= turn.coverage <= 1
        if set(turn.marks) - {"unvalidated"}:
            assert not turn.alerts
        elif turn.assistant_tokens:
            assert 0 < turn.p_value <= 1 or math.isnan(turn.p_value)


class Streams:
    """Checks input after input; every so often in a fresh sidecar, so that what it keeps is never long ago."""

    _EVERY = 200

    def __init__(self) -> None:
        quiet()
        self._bank = make_bank()
        self._count = 0

    def check(self, stream: bytes) -> None:
        """Checks one input."""
        if self._count % self._EVERY == 0:
            self._house = House(self._bank)
        self._count += 1
        frames = frames_of(stream)
        for raw in frames:
            check_decoder(raw)
        self._house.take(frames)


def quiet() -> None:
    """Leaves faults of inputs out of the log, and errors of the sidecar in it."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


def walk(stream: bytes, chance: random.Random, steps: int) -> Iterator[bytes]:
    """So many mutations, each of the one before."""
    for _ in range(steps):
        stream = mutated(stream, chance)
        yield stream
