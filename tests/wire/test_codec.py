"""The codec between frames and bytes, against the stock protobuf encoder and decoder."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import FrameError
from monitor.wire.codec import DTYPES, Frame, decode_frame, encode_frame, rows_of
from monitor.wire.v1 import ingest_pb2

Message = ingest_pb2.StreamActivationsRequest
WIRE_DTYPES = {dtype: wire for wire, dtype in DTYPES.items()}


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of any wire dtype with random bits, some of them views with odd strides."""
    shape = draw(st.tuples(*[st.integers(1, 5)] * 3))
    dtype = draw(st.sampled_from(sorted(WIRE_DTYPES, key=str)))
    stride = draw(st.integers(1, 3))
    wide = (shape[0], shape[1], shape[2] * stride)
    count = wide[0] * wide[1] * wide[2] * dtype.itemsize
    bits = random.Random(draw(st.integers(0, 2**32))).randbytes(count)  # noqa: S311 - test data
    rows = torch.frombuffer(bytearray(bits), dtype=dtype).view(wide)[:, :, ::stride]
    return rows.transpose(0, 2) if draw(st.booleans()) else rows


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Frames without rows; the length of the request id moves the rows to any alignment."""
    name = draw(st.text(min_size=1, max_size=20))
    message = Message(sequence=draw(st.integers(0, 2**64 - 1)), sent_unix_ns=draw(st.integers(-(2**63), 2**63 - 1)))
    message.spans.request_ids.append(name)
    message.spans.starts.append(draw(st.integers(0, 2**32 - 1)))
    message.spans.token_ids.extend(draw(st.lists(st.integers(0, 2**32 - 1), max_size=5)))
    message.events.add(request_id=name).start.labels[name] = name
    if draw(st.booleans()):
        message.hello.layers.extend([1, 2])
    return message


def bits(rows: torch.Tensor) -> bytes:
    """The elements as they are in memory, so that NaNs compare equal."""
    return bytes(rows.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).tolist())


def stock(message: Message, rows: torch.Tensor) -> Message:
    """The same frame made by a client that knows nothing but the protos."""
    whole = Message()
    whole.CopyFrom(message)
    whole.rows.dtype = WIRE_DTYPES[rows.dtype]
    whole.rows.shape.extend(rows.shape)
    whole.rows.data = bits(rows)
    return whole


def frame_of(**fields: object) -> Frame:
    """A frame with a tensor of these fields, by way of the wire."""
    return decode_frame(Message(rows=ingest_pb2.Tensor(**fields)).SerializeToString())


FIELDS = {"", "frame", "rows", "rows.data", "rows.dtype", "rows.shape"}


def refused_field(raw: bytes) -> str:
    """Field the decoder finds fault with; empty where it reads the rows."""
    try:
        rows_of(decode_frame(raw))
    except FrameError as error:
        return error.field
    return ""


def varint(value: int) -> bytes:
    """Base 128, as protobuf writes it."""
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


class TestRoundTrip:
    """What goes in comes out, whoever is at the other end."""

    @given(messages(), tensors())
    def test_own_decoder_reads_own_encoder(self, message: Message, rows: torch.Tensor) -> None:
        """A frame comes back with the same message, dtype, shape and bits, at every alignment and stride."""
        raw = encode_frame(message, rows)
        frame = decode_frame(raw)
        back = rows_of(frame)
        assert back.dtype == rows.dtype
        assert back.shape == rows.shape
        assert bits(back) == bits(rows)
        assert frame.size == len(raw)
        frame.message.ClearField("rows")
        assert frame.message == message

    @given(messages(), tensors())
    def test_own_decoder_reads_stock_encoder(self, message: Message, rows: torch.Tensor) -> None:
        """A frame of a plain protobuf client is read like one of ours."""
        frame = decode_frame(stock(message, rows).SerializeToString())
        assert bits(rows_of(frame)) == bits(rows)
        frame.message.ClearField("rows")
        assert frame.message == message

    @given(messages(), tensors())
    def test_stock_decoder_reads_own_encoder(self, message: Message, rows: torch.Tensor) -> None:
        """A plain protobuf server reads our frame as the message the protos describe."""
        assert Message.FromString(encode_frame(message, rows)) == stock(message, rows)

    @given(messages())
    def test_frame_of_events_alone(self, message: Message) -> None:
        """A frame without rows comes back without rows."""
        frame = decode_frame(encode_frame(message, None))
        assert frame.message == message
        assert not frame.message.HasField("rows")
        assert frame.data.nbytes == 0

    @given(messages(), tensors(), st.integers(100, 10_000), st.binary(max_size=20), st.booleans())
    def test_unknown_fields_are_passed_over(
        self, message: Message, rows: torch.Tensor, field: int, payload: bytes, in_front: bool
    ) -> None:
        """Fields of a later version of the protos, before or after the rows, disturb nothing."""
        raw = encode_frame(message, rows)
        unknown = varint(field << 3 | 2) + varint(len(payload)) + payload
        unknown += (
            varint(field << 3) + varint(7) + varint(field << 3 | 1) + bytes(8) + varint(field << 3 | 5) + bytes(4)
        )
        frame = decode_frame(unknown + raw if in_front else raw + unknown)
        assert bits(rows_of(frame)) == bits(rows)
        assert frame.message.sequence == message.sequence

    @given(messages(), tensors())
    def test_fields_may_stand_in_any_order(self, message: Message, rows: torch.Tensor) -> None:
        """Rows ahead of the header, and elements ahead of their shape, are read all the same."""
        whole = stock(message, rows)
        data = ingest_pb2.Tensor(data=whole.rows.data).SerializeToString()
        whole.rows.ClearField("data")
        tensor = data + whole.rows.SerializeToString()
        frame = decode_frame(varint(15 << 3 | 2) + varint(len(tensor)) + tensor + message.SerializeToString())
        assert bits(rows_of(frame)) == bits(rows)
        assert frame.message.spans == message.spans

    def test_gradients_are_left_behind(self) -> None:
        """Rows that still belong to a graph are sent by value."""
        rows = torch.ones(2, 1, 3, requires_grad=True)
        assert rows_of(decode_frame(encode_frame(Message(), rows))).tolist() == rows.tolist()

    def test_received_rows_are_a_view(self) -> None:
        """The rows lie in the received bytes; nothing is copied."""
        raw = bytearray(encode_frame(Message(sequence=1), torch.arange(6.0).view(1, 2, 3)))
        rows = rows_of(decode_frame(raw))
        raw[-4:] = torch.tensor([42.0]).numpy().tobytes()
        assert rows[0, 1].tolist() == [3.0, 4.0, 42.0]


class TestBadFrames:
    """Whatever arrives, the answer is rows or a FrameError."""

    @settings(max_examples=400)
    @given(messages(), tensors(), st.randoms(use_true_random=False))
    def test_mutated_bytes_raise_nothing_else(
        self, message: Message, rows: torch.Tensor, chance: random.Random
    ) -> None:
        """Bytes that were flipped, cut out, doubled or cut off are read, or refused with a FrameError."""
        raw = bytearray(encode_frame(message, rows))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(raw))
            kind = chance.randrange(4)
            if kind == 0:
                raw[at] = chance.randrange(256)
            elif kind == 1:
                del raw[at : at + chance.randint(1, 8)]
            elif kind == 2:
                raw[at:at] = raw[at : at + chance.randint(1, 40)]
            else:
                del raw[at + 1 :]
            if not raw:
                break
        assert refused_field(bytes(raw)) in FIELDS

    @given(st.binary(max_size=200))
    def test_noise_raises_nothing_else(self, raw: bytes) -> None:
        """Random bytes are read or refused with a FrameError."""
        assert refused_field(bytes(raw)) in FIELDS

    @given(messages(), tensors(), st.floats(0, 1, exclude_max=True))
    def test_a_truncated_frame_never_yields_rows(self, message: Message, rows: torch.Tensor, share: float) -> None:
        """A frame that was cut off anywhere is no frame, or has no rows."""
        raw = encode_frame(message, rows)
        with pytest.raises(FrameError):
            rows_of(decode_frame(raw[: int(share * len(raw))]))

    def test_group_behind_the_rows(self) -> None:
        """An old-style group, which the fast path does not know, is refused rather than raised through."""
        raw = encode_frame(Message(), torch.ones(1, 1, 1)) + varint(100 << 3 | 3) + varint(100 << 3 | 4)
        with pytest.raises(FrameError, match="wire type 3"):
            decode_frame(raw)

    @pytest.mark.parametrize("where", ["rows", "rows.data"])
    def test_tags_as_long_as_stock_takes_them(self, where: str) -> None:
        """A tag of more bytes than it needs is read up to five of them, as protobuf does, and refused beyond."""
        data = ingest_pb2.Tensor(data=bytes(4)).SerializeToString()
        plain = varint(15 << 3 | 2) + varint(len(data)) + data
        for surplus in range(8):
            # The last byte goes on with zeros that say nothing.
            tail = b"" if not surplus else bytes([0x80] * (surplus - 1) + [0])
            if where == "rows":
                raw = bytes([plain[0] | (0x80 if surplus else 0)]) + tail + plain[1:]
            else:
                longer = bytes([data[0] | (0x80 if surplus else 0)]) + tail + data[1:]
                raw = varint(15 << 3 | 2) + varint(len(longer)) + longer
            if surplus < 5:
                assert bytes(decode_frame(raw).data) == Message.FromString(raw).rows.data == bytes(4)
            else:
                assert refused_field(raw) == "frame"

    @pytest.mark.parametrize("rows", [b"", b"\x7a\x00"])
    def test_millions_of_empty_fields(self, rows: bytes) -> None:
        """A frame of more parts than anyone sends is given up before its parts are looked at, wherever they stand."""
        with pytest.raises(FrameError) as raised:
            decode_frame(rows + b"\x2a\x00" * (1 << 22))

        assert (raised.value.field, raised.value.reason) == ("events", "events")

    def test_rows_twice(self) -> None:
        """A second rows field is refused; merging two tensors has no meaning."""
        once = encode_frame(Message(), torch.ones(1, 1, 1))
        with pytest.raises(FrameError, match="rows: stands twice"):
            decode_frame(once + once)

    def test_rows_behind_an_empty_tensor(self) -> None:
        """Rows that follow a tensor without elements are a second rows field too."""
        empty = Message(rows=ingest_pb2.Tensor(dtype=ingest_pb2.DTYPE_F32)).SerializeToString()
        with pytest.raises(FrameError, match="rows: stands twice"):
            decode_frame(empty + encode_frame(Message(), torch.ones(1, 1, 1)))

    def test_data_twice(self) -> None:
        """A tensor with two runs of elements is refused."""
        data = ingest_pb2.Tensor(data=bytes(4)).SerializeToString()
        raw = varint(15 << 3 | 2) + varint(2 * len(data)) + data + data
        with pytest.raises(FrameError, match=r"rows\.data: stands twice"):
            decode_frame(raw)

    @pytest.mark.parametrize("dtype", [0, 77])
    def test_unknown_dtype(self, dtype: int) -> None:
        """A dtype that is not in the protos is named as such."""
        with pytest.raises(FrameError) as caught:
            rows_of(frame_of(dtype=dtype, shape=[1, 1, 1], data=bytes(4)))
        assert (caught.value.field, caught.value.reason) == ("rows.dtype", "dtype")

    def test_tensor_without_any_field(self) -> None:
        """An empty tensor is a tensor of unknown dtype, not a frame without rows."""
        frame = decode_frame(Message(rows=ingest_pb2.Tensor()).SerializeToString())
        assert frame.message.HasField("rows")
        with pytest.raises(FrameError, match=r"rows\.dtype"):
            rows_of(frame)

    @pytest.mark.parametrize("shape", [[], [4], [2, 2], [1, 2, 2, 1], [0, 1, 4], [0, 2**32 - 1, 2**32 - 1]])
    def test_shape_that_is_no_batch_of_rows(self, shape: list[int]) -> None:
        """Rows must be [tokens, layers, hidden], none of them zero; sizes no memory could hold are refused as well."""
        with pytest.raises(FrameError) as caught:
            rows_of(frame_of(dtype=ingest_pb2.DTYPE_F32, shape=shape, data=bytes(0 if 0 in shape else 16)))
        assert (caught.value.field, caught.value.reason) == ("rows.shape", "shape")

    @pytest.mark.parametrize("size", [0, 15, 17, 32])
    def test_data_that_does_not_fill_the_shape(self, size: int) -> None:
        """Too few or too many bytes for the shape are named with the number that was expected."""
        with pytest.raises(FrameError, match="needs 16") as caught:
            rows_of(frame_of(dtype=ingest_pb2.DTYPE_F32, shape=[1, 2, 2], data=bytes(size)))
        assert (caught.value.field, caught.value.reason) == ("rows.data", "shape")

    def test_encoder_refuses_other_dtypes(self) -> None:
        """Rows of a dtype that is not on the wire are not sent."""
        with pytest.raises(FrameError, match=r"rows\.dtype: torch\.float64"):
            encode_frame(Message(), torch.ones(1, 1, 1, dtype=torch.float64))
