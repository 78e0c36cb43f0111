"""Banks for fuzzing: seeds, mutations behind their hashes, and what must hold of whatever is loaded.

An input is a bank: a byte, the length of the card in four (little endian), the card, the tensors. Unless the byte is
zero the hashes are made true before the bank is loaded, so that what lies behind them is reached.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from builders import make_card, make_tensors
from fuzz.frames import House, quiet, scramble
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save
from sidecar.engine import Event, make_frame
from sidecar.engine import Turn as Said

from monitor.assess.overindex import finest_rate
from monitor.errors import BankError
from monitor.probes import bank as bank_module
from monitor.probes.bank import Bank, BankCard, load_bank, seal
from monitor.wire.v1 import ingest_pb2

Mutate = Callable[[bytes, random.Random], bytes]
Arrays = dict[str, NDArray[Any]]
_TURNS = 5
_HEAD = 5
_MISFITS: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 2**31 - 1, 2**31, 2**32, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 1e-320,
    math.nan, math.inf, -math.inf, "", "x", "2", "nan", "é\u2028\0", "x" * 2000, [], [[]], [0], [-1], [2**31], {},
    {"": 1}, "__class__", "USER", "neutral", "warmth", "affect",
)  # fmt: skip
_VALUES = (0.0, -0.0, -1.0, 1.0, 3.4e38, -3.4e38, 1e-45, 1e-30, math.nan, math.inf, -math.inf)
_WHOLE = (0, -1, 1, 2, 3, 2**24, 2**31 - 1, -(2**31))
_TYPES = ("f2", "f4", "f8", "i1", "i4", "i8", "u4", "?", "c8")
_WIRE_TYPES = ("F4", "F8_E5M2", "F8_E8M0", "BF16", "F16", "F32", "F64", "I32", "U64", "BOOL", "C64", "X", "", 3, None)
_SIZES = (0, 1, -1, 2, 65, 2**31, 2**32, 2**62, 2**63, 2**64 - 1, 2**64)
_TOO_MANY_AXES = 65


# -- an input ---------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """What an input holds."""

    sealed: bool
    card: bytes
    tensors: bytes


def parts_of(raw: bytes) -> Parts:
    """Takes an input apart; any bytes are one."""
    end = _HEAD + int.from_bytes(raw[1:_HEAD], "little")
    return Parts(raw[:1] != b"\0", raw[_HEAD:end], raw[end:])


def joined(parts: Parts) -> bytes:
    """Puts an input together."""
    return bytes([parts.sealed]) + len(parts.card).to_bytes(4, "little") + parts.card + parts.tensors


def true_card(card: bytes, tensors: bytes) -> bytes:
    """A card with its hashes made true, and all else of its text as it was."""
    card = _stated(card, "tensors_sha256", hashlib.sha256(tensors).hexdigest())
    try:
        identity = bank_module._identity(BankCard.model_validate_json(card))
    except (ValidationError, ValueError):
        return card
    return _stated(card, "bank_id", identity)


def _stated(card: bytes, name: str, value: str) -> bytes:
    return re.sub(rb'("' + name.encode() + rb'"\s*:\s*")[^"]*', rb"\g<1>" + value.encode(), card)


def seeds() -> list[bytes]:
    """Small banks: of two families and of one, of one layer, without markers, reference, twin or residuals."""
    one_family = [{"name": name, "family": "warmth", "valence": 0.0, "arousal": 0.0} for name in ("a", "b", "c", "d")]
    bare = {"markers": (), "battery": (), "corpus_sha256": {}, "text_equivalent": (), "validated": False}
    nothing = {"source": "none", "turns": {}}
    banks = [
        _small(),
        _small(layers=(2,), **bare),
        _small(keep=0, reference=nothing),
        _small(twin=0, emotions=one_family, families=("warmth", "contagion")),
    ]
    found = []
    for bank in banks:
        card = bank.card.model_dump_json().encode()
        found += [joined(Parts(sealed, card, bank_module._serialised(bank.tensors))) for sealed in (True, False)]
    return found


def _small(keep: int = _TURNS, twin: int = 4, layers: tuple[int, ...] = (1, 2), **card: Any) -> Bank:
    tensors = make_tensors(9, len(layers))
    reference = {name: array[:keep] for name, array in vars(tensors).items() if name.startswith("reference_")}
    known = {name: array[:twin] for name, array in vars(tensors).items() if name in ("twin_tokens", "twin_weights")}
    residuals = tensors.residuals[..., :keep]
    return seal(make_card(9, layers) | card, dataclasses.replace(tensors, **reference, **known, residuals=residuals))


# -- mutations --------------------------------------------------------------------------------------------------------


def mutated(raw: bytes, chance: random.Random, mutate: Mutate = scramble) -> bytes:
    """A bank with one change, of its card, of its tensors, or of the bytes of either."""
    parts = parts_of(raw)
    kind = chance.randrange(12)
    if kind == 0:
        parts = parts._replace(sealed=not parts.sealed)
    elif kind == 1:
        other = parts_of(chance.choice(seeds()))
        parts = parts._replace(card=other.card) if chance.random() < 0.5 else parts._replace(tensors=other.tensors)
    elif kind == 2:
        parts = parts._replace(card=mutate(parts.card, chance))
    elif kind == 3:
        parts = parts._replace(tensors=mutate(parts.tensors, chance))
    elif kind < 7:
        parts = parts._replace(card=_other_card(parts.card, chance, mutate))
    elif kind < 9:
        parts = parts._replace(tensors=_other_header(parts.tensors, chance, mutate))
    else:
        parts = parts._replace(tensors=_other_arrays(parts.tensors, chance, mutate))
    return joined(parts)


def _other_card(card: bytes, chance: random.Random, mutate: Mutate) -> bytes:
    try:
        said = json.loads(card)
    except (ValueError, RecursionError):
        return mutate(card, chance)
    if not isinstance(said, dict) or not said:
        return mutate(card, chance)
    said = {"": said}
    _change(said, chance)
    with suppress(ValueError):  # a number too long to be written
        return json.dumps(said.get("", said), ensure_ascii=chance.random() < 0.9).encode(errors="surrogatepass")
    return card


def _change(said: Any, chance: random.Random) -> None:
    """Changes one value within a document: another, none, one more, or one from elsewhere in it."""
    places = [place for place in _places(said) if place[0] is not said]
    if not places:
        return
    holder, key = chance.choice(places)
    kind = chance.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1:
        other, there = chance.choice(places)
        holder[key] = json.loads(json.dumps(other[there]))
    elif kind == 2 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == 2:
        holder[chance.choice(("surprise", "", "angry", "crisis"))] = holder[key]
    elif kind == 3 and isinstance(holder[key], int | float):
        with suppress(OverflowError):
            holder[key] = holder[key] + chance.choice((-1, 1, 0.5, 2**31, 2**63))
    else:
        holder[key] = chance.choice(_MISFITS)


def _places(said: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(said) if isinstance(said, dict) else range(len(said)) if isinstance(said, list) else ()
    for key in keys:
        yield said, key
        yield from _places(said[key])


def _other_header(raw: bytes, chance: random.Random, mutate: Mutate) -> bytes:
    """A tensor file with one entry of its header changed."""
    length = int.from_bytes(raw[:8], "little")
    try:
        header = json.loads(raw[8 : 8 + length])
        name = chance.choice(sorted(header))
        entry = header[name]
        kind = chance.randrange(6)
        if kind == 0:
            entry["dtype"] = chance.choice(_WIRE_TYPES)
        elif kind == 1:
            entry["shape"] = [1] * chance.choice((_TOO_MANY_AXES, 64, 0)) + entry["shape"]
        elif kind == 2:
            sizes = [chance.choice(_SIZES) for _ in range(chance.randint(1, 4))]
            entry["shape"] = [0, *sizes] if chance.random() < 0.5 else sizes
            if chance.random() < 0.5:
                entry["data_offsets"][1] = entry["data_offsets"][0]
        elif kind == 3:
            entry["data_offsets"][chance.randrange(2)] = chance.choice((*_SIZES, len(raw)))
        elif kind == 4:
            header[chance.choice(("__metadata__", "self", "surprise", ""))] = header.pop(name)
        else:
            _change({"": header}, chance)
        text = json.dumps(header).encode() + b" " * chance.randrange(9)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        return mutate(raw, chance)
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def _other_arrays(raw: bytes, chance: random.Random, mutate: Mutate) -> bytes:
    """A tensor file that is well formed, one or some of its arrays being of other values, types or shapes."""
    try:
        arrays = load(raw)
        _EDITS[chance.randrange(len(_EDITS))](arrays, chance.choice(sorted(arrays)), chance)
        return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))
    except (SafetensorError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return mutate(raw, chance)


def _edit_value(arrays: Arrays, name: str, chance: random.Random) -> None:
    array = arrays[name] = arrays[name].copy()
    whole = np.issubdtype(array.dtype, np.integer)
    flat = array.reshape(-1)
    at = chance.randrange(flat.size)
    flat[at : at + chance.choice((1, 1, flat.size))] = chance.choice(_WHOLE if whole else _VALUES)


def _edit_type(arrays: Arrays, name: str, chance: random.Random) -> None:
    with np.errstate(all="ignore"):
        arrays[name] = arrays[name].astype(chance.choice(_TYPES))


def _edit_shape(arrays: Arrays, name: str, chance: random.Random) -> None:
    array = arrays[name]
    axis = chance.randrange(array.ndim)
    arrays[name] = chance.choice(
        (
            array[..., None],
            array.reshape(-1),
            array.take(0, axis),
            array.take([], axis),
            np.concatenate([array, array], axis),
            array[None],
            array.swapaxes(0, axis),
        )
    )


def _edit_names(arrays: Arrays, name: str, chance: random.Random) -> None:
    array = arrays.pop(name)
    if chance.random() < 0.5:
        arrays[chance.choice(("self", "surprise", "", *arrays))] = array


def _edit_length(arrays: Arrays, _name: str, chance: random.Random) -> None:
    """Takes more or fewer turns, tokens or residuals, in agreement."""
    keep = chance.choice((0, 1, 2, 3))
    kind = chance.choice(("reference_", "twin_", "residuals"))
    for name in arrays:
        if name.startswith(kind):
            arrays[name] = arrays[name][..., :keep] if kind == "residuals" else arrays[name][:keep]


def _edit_pad(arrays: Arrays, _name: str, chance: random.Random) -> None:
    arrays["residuals"] = arrays["residuals"].copy()
    arrays["residuals"][..., chance.randrange(_TURNS) :] = math.nan


_EDITS: tuple[Callable[[Arrays, str, random.Random], None], ...] = (
    _edit_value, _edit_value, _edit_type, _edit_shape, _edit_names, _edit_length, _edit_pad,
)  # fmt: skip


def walk(raw: bytes, chance: random.Random, steps: int) -> Iterator[bytes]:
    """So many mutations, each of the one before."""
    for _ in range(steps):
        raw = mutated(raw, chance)
        yield raw


# -- what must hold ---------------------------------------------------------------------------------------------------


class Shelf:
    """Loads bank after bank from a folder.

    Args:
        folder: Where the files are written.
    """

    def __init__(self, folder: Path) -> None:
        quiet()
        self._folder, self._copy = folder / "bank", folder / "copy"
        self._folder.mkdir(exist_ok=True)

    def check(self, raw: bytes) -> Bank | None:
        """Loads a bank: it is refused with the name of the field at fault, or scores turns and is saved as it is."""
        sealed, card, tensors = parts_of(raw)
        (self._folder / "bank.json").write_bytes(true_card(card, tensors) if sealed else card)
        (self._folder / "bank.safetensors").write_bytes(tensors)
        try:
            bank = load_bank(str(self._folder))
        except BankError as error:
            _check_refusal(error)
            return None
        again = seal(bank.card.model_dump(exclude={"bank_id", "tensors_sha256"}), bank.tensors)
        again.save(self._copy)
        assert load_bank(str(self._copy)).card == again.card, "another bank when saved"
        _check_use(bank)
        return bank


def _check_refusal(error: BankError) -> None:
    assert error.field.startswith(("bank.json", "bank.safetensors", "--bank"))
    assert error.message


def _check_use(bank: Bank) -> None:
    """A bank that loads is told of on the wire, and scores rows."""
    card = bank.card
    for stance, turns in card.reference.turns.items():
        assert 0 < finest_rate(stance, turns) <= 1
    ingest_pb2.DescribeResponse(
        bank_id=card.bank_id, layers=card.layers, hidden_size=card.model.hidden_size, model_name=card.model.name
    ).SerializeToString()
    rng = np.random.default_rng(0)
    starts = [list(marker.tokens)[:20] for marker in card.markers[:8]]
    tokens = np.array([token for start in (*starts, []) for token in (*start, 5, 6, 7, 8)], np.int64)
    rows = rng.normal(size=(len(tokens), len(card.layers), card.model.hidden_size)).astype(np.float32)
    with np.errstate(all="ignore"), torch.no_grad():
        house = House(bank)
        for stance in ("helpline", "desk"):
            turn = Said(stance, tokens, rows, len(tokens) // 2, labels={"route": stance})
            frame = make_frame((turn, 0, turn.length), events=[turn.start, turn.end, Event(request_id="x")])
            house.take([frame.SerializeToString()])
        assert house.pipeline.status()["finished_turns"] == 2, "an engine of the bank's model was refused"
        for family in house.metrics.collect():
            assert family.samples is not None
