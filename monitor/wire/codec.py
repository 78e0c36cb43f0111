"""Frames to bytes and back, without copying the rows on the receiving side.

A frame is an ordinary protobuf message. The fast path only uses that its one big field is a length-delimited run of
bytes: the sender appends it to the encoded header, the receiver takes it as a view (protobuf wire format,
https://protobuf.dev/programming-guides/encoding/). Stock clients and stock servers interoperate with both.
"""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from google.protobuf.message import DecodeError

from monitor.errors import FrameError
from monitor.wire.v1 import ingest_pb2

# The bytes of a received frame are read-only and stay so: scoring never writes into rows.
warnings.filterwarnings("ignore", message="The given buffer is not writable")

DTYPES: dict[int, torch.dtype] = {
    ingest_pb2.DTYPE_BF16: torch.bfloat16,
    ingest_pb2.DTYPE_F16: torch.float16,
    ingest_pb2.DTYPE_F32: torch.float32,
}
_WIRE_DTYPES: dict[torch.dtype, Any] = {dtype: wire for wire, dtype in DTYPES.items()}
_ROWS_FIELD = ingest_pb2.StreamActivationsRequest.ROWS_FIELD_NUMBER
_DATA_FIELD = ingest_pb2.Tensor.DATA_FIELD_NUMBER
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BITS = 64
MAX_HEADER = 4 << 20
"""Bytes of a frame beside its rows: parsed, they take ten times as much memory."""
_MAX_TAG_BITS = 32
"""Protobuf's own parser refuses tags of more than five bytes; lengths it takes like any other number."""

_MAX_FIELDS = 1 << 15
"""Of a frame, each event one. Millions of empty ones fit into a frame, and would take seconds to look through."""


class Frame(NamedTuple):
    """A received frame: everything but the rows as a message, the rows as a view."""

    message: ingest_pb2.StreamActivationsRequest
    data: memoryview
    size: int


def encode_frame(message: ingest_pb2.StreamActivationsRequest, rows: torch.Tensor | None) -> bytes:
    """Encodes a frame with one copy of the rows.

    Args:
        message: The frame without rows.
        rows: Shape [tokens, layers, hidden] on the CPU, or None for a frame of events alone.

    Raises:
        FrameError: The rows have a dtype the wire does not carry.
    """
    head: bytes = message.SerializeToString()
    if rows is None:
        return head
    described = describe_rows(rows).SerializeToString()
    # As bytes, since numpy has no bfloat16; flat first, since view() refuses the odd strides of dimensions of one.
    flat = rows.detach().contiguous().as_strided((rows.numel(),), (1,))
    data = memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]
    inner = described + _tag(_DATA_FIELD) + _varint(data.nbytes)
    return b"".join((head, _tag(_ROWS_FIELD), _varint(len(inner) + data.nbytes), inner, data))


def describe_rows(rows: torch.Tensor) -> ingest_pb2.Tensor:
    """Dtype and shape of rows, without their elements.

    Raises:
        FrameError: The rows have a dtype the wire does not carry.
    """
    if rows.dtype not in _WIRE_DTYPES:
        raise FrameError("rows.dtype", f"{rows.dtype} is not on the wire; send one of {sorted(map(str, _WIRE_DTYPES))}")
    return ingest_pb2.Tensor(dtype=_WIRE_DTYPES[rows.dtype], shape=rows.shape)


def encode_tensor(tensor: torch.Tensor) -> ingest_pb2.Tensor:
    """A small tensor, elements and all."""
    message = describe_rows(tensor)
    message.data = tensor.contiguous().numpy().tobytes()
    return message


def decode_tensor(message: ingest_pb2.Tensor) -> torch.Tensor:
    """What ``encode_tensor`` made a message of."""
    return torch.frombuffer(bytearray(message.data), dtype=DTYPES[message.dtype]).view(tuple(message.shape))


def decode_frame(raw: bytes) -> Frame:
    """Splits the bytes of a frame into its message and a view of the rows.

    Raises:
        FrameError: The bytes are not a frame, carry rows twice, or are of too many parts.
    """
    view = memoryview(raw)
    message = ingest_pb2.StreamActivationsRequest()
    try:
        return Frame(message, _parse(view, message), len(raw))
    except (DecodeError, IndexError, ValueError) as error:
        raise FrameError(
            "frame", f"not a StreamActivationsRequest ({error}); rebuild the client from the protos"
        ) from None


def _parse(view: memoryview, message: ingest_pb2.StreamActivationsRequest) -> memoryview:
    """Merges all of a frame but the elements of its tensor into ``message``; returns these."""
    before, start, end = _find(view, _ROWS_FIELD) or (len(view),) * 3
    tensor, rest = view[start:end], view[end:]
    if _find(rest, _ROWS_FIELD):
        raise FrameError("rows", "stands twice in the frame; send one tensor")
    inner, first, last = _find(tensor, _DATA_FIELD) or (len(tensor),) * 3
    if _find(tensor[last:], _DATA_FIELD):
        raise FrameError("rows.data", "stands twice in the tensor; send its bytes once")
    if len(view) - (last - first) > MAX_HEADER:
        raise FrameError(
            "frame", f"has more than {MAX_HEADER} bytes beside its rows; send it in parts", reason="frame_size"
        )
    message.MergeFromString(view[:before])
    message.MergeFromString(rest)
    if before < len(view):
        message.rows.SetInParent()
        message.rows.MergeFromString(tensor[:inner])
        message.rows.MergeFromString(tensor[last:])
    return tensor[first:last]


def rows_of(frame: Frame) -> torch.Tensor:
    """The rows of a frame as a tensor over the received bytes: [tokens, layers, hidden], no copy.

    Raises:
        FrameError: Unknown dtype, or shape and bytes disagree.
    """
    described = frame.message.rows
    dtype = DTYPES.get(described.dtype)
    if dtype is None:
        raise FrameError("rows.dtype", f"{described.dtype} is unknown; send BF16, F16 or F32", reason="dtype")
    shape = tuple(described.shape)
    if len(shape) != 3:  # noqa: PLR2004 - tokens, layers, hidden
        raise FrameError("rows.shape", f"{list(shape)} must be [tokens, layers, hidden]", reason="shape")
    expected = shape[0] * shape[1] * shape[2] * dtype.itemsize
    if expected != frame.data.nbytes:
        raise FrameError(
            "rows.data",
            f"{frame.data.nbytes} bytes where shape {list(shape)} of {dtype} needs {expected}",
            reason="shape",
        )
    if expected == 0:
        # No row says how wide rows are, and torch cannot hold every width the wire can.
        raise FrameError("rows.shape", f"{list(shape)} is empty; leave rows out of a frame without any", reason="shape")
    return torch.frombuffer(frame.data, dtype=dtype).view(shape)


def _find(view: memoryview, field: int) -> tuple[int, int, int] | None:
    """Finds a length-delimited field: (offset of its tag, offset of its payload, end of its payload)."""
    position, end, fields = 0, len(view), 0
    while position < end:
        before = position
        fields += 1
        if fields > _MAX_FIELDS:
            raise FrameError(
                "events", f"the frame has more than {_MAX_FIELDS} fields; send events in parts", reason="events"
            )
        tag, position = _read_varint(view, position, _MAX_TAG_BITS)
        kind = tag & 7
        if kind == _BYTES:
            length, position = _read_varint(view, position)
            if position + length > end:
                raise ValueError("truncated")
            if tag >> 3 == field:
                return before, position, position + length
            position += length
        elif kind == _VARINT:
            _, position = _read_varint(view, position)
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind}")
    if position > end:
        raise ValueError("truncated")
    return None


def _read_varint(view: memoryview, position: int, max_bits: int = _MAX_VARINT_BITS) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the continuation bit
            return value, position
        shift += 7
        if shift >= max_bits:
            raise ValueError("varint too long")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(field: int) -> bytes:
    return _varint(field << 3 | _BYTES)
