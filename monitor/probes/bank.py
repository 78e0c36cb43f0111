"""The bank: all probes of one model version, with their calibration, reference and provenance, in one folder.

``bank.json`` holds what a person reads, ``bank.safetensors`` every array. Loading checks hashes, shapes and finiteness.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
)
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from monitor.errors import BankError
from monitor.probes.markers import Marker, Role

Floats = NDArray[np.float32]

SHIPPED = Path(__file__).parent / "banks"
"""Banks in the package, by name."""


RESERVED = ("affect", "overfitting", "mirror", "users")
"""What turns and routes are watched for beside families, by the same labels: no family may be called so."""
_WHOLE_NUMBERS = {"twin_tokens", "reference_tokens", "reference_stance"}
_MAX_TOKENS = 1 << 24
"""More than any tokenizer has. Tables are as long as the largest token id, and a bank may not fill the memory."""
_MAX_MARKER = 1024
"""Tokens of a marker: every open turn keeps so many of its last ones."""
_MAX_DEPTH = 1 << 16

_MAX_NAME = 256
"""Characters of what an engine says of its model."""

_Name = Annotated[str, Field(max_length=_MAX_NAME)]
_TokenId = Annotated[int, Field(ge=0, lt=_MAX_TOKENS)]


class Stance(str, Enum):
    """What a policy asks of a route."""

    NEUTRAL = "neutral"
    SUPPORTIVE = "supportive"
    CRISIS = "crisis"


class _Part(BaseModel):
    # JSON has no other numbers: a bank that held one would come back altered.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelCard(_Part):
    """The model version a bank belongs to."""

    name: _Name
    hidden_size: int = Field(gt=0)
    depth: int = Field(gt=0, le=_MAX_DEPTH, description="Blocks of the model.")
    weights_fingerprint: _Name = Field(description="SHA-256 over the weights, in name order.")
    tokenizer_hash: _Name = Field(description="SHA-256 of the serialised tokenizer.")
    template_hash: _Name = Field(description="SHA-256 of the chat template.")


class EmotionCard(_Part):
    """One emotion of a bank."""

    name: str
    family: str
    valence: float = Field(ge=-1, le=1)
    arousal: float = Field(ge=-1, le=1)


class MarkerCard(_Part):
    """A marker of the chat template, as token ids."""

    tokens: tuple[_TokenId, ...] = Field(min_length=1, max_length=_MAX_MARKER)
    role: Literal["TEMPLATE", "SYSTEM", "USER", "ASSISTANT"]


class ReferenceCard(_Part):
    """Where the reference comes from and how much of it there is."""

    source: str
    turns: dict[Stance, Annotated[int, Field(ge=0, lt=1 << 31)]]


class RowCard(_Part):
    """One row of the battery: a claim about the bank, its bar, and what was found on data it was not fitted on."""

    number: str
    name: str
    bar: str
    value: float | None = Field(description="None: not run, or not defined on these data.")
    low: float | None = Field(description="Lower end of the 95 % bootstrap interval.")
    high: float | None
    passed: bool | None
    note: str


class RealignedCard(_Part):
    """How a bank came from that of an earlier version of its model, without labels."""

    from_bank: str = Field(description="Id of the bank it was realigned from.")
    from_model: _Name = Field(description="Fingerprint of the weights that bank belongs to.")
    texts: int = Field(gt=0, description="Texts both versions read.")
    texts_sha256: str = Field(description="SHA-256 of the file they stood in.")
    method: str
    explained: float = Field(description="Share of the variance of held-out rows that the map explains.")
    agreement: float = Field(description="Mean correlation of held-out scores by either bank on its own model.")
    agreement_before: float = Field(description="The same by the old probes as they are on the new model.")


class BankCard(_Part):
    """``bank.json``."""

    schema_version: Literal[2]
    bank_id: str
    made_by: str
    model: ModelCard
    layers: tuple[int, ...] = Field(min_length=1)
    markers: tuple[MarkerCard, ...]
    emotions: tuple[EmotionCard, ...] = Field(min_length=1)
    families: tuple[str, ...] = Field(min_length=1)
    estimator: dict[str, float | str]
    reference: ReferenceCard
    corpus_sha256: dict[str, str]
    battery: tuple[RowCard, ...]
    text_equivalent: tuple[str, ...] = Field(description="Emotions the text twin reads as well as the probes.")
    validated: bool
    tensors_sha256: str
    realigned: RealignedCard | None = Field(default=None, description="None: calibrated on its own model.")

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves ``realigned`` out where there is nothing to say: ids of calibrated banks stay what they are."""
        said: dict[str, Any] = handler(self)
        if self.realigned is None:
            said.pop("realigned", None)
        return said

    @field_validator("layers")
    @classmethod
    def _within_depth(cls, layers: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        model = info.data.get("model")
        if model and (list(layers) != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] <= model.depth):
            raise ValueError(f"layers {list(layers)} must ascend within 0..{model.depth}")
        return layers

    @field_validator("emotions")
    @classmethod
    def _distinct(cls, emotions: tuple[EmotionCard, ...]) -> tuple[EmotionCard, ...]:
        if len({emotion.name for emotion in emotions}) < len(emotions):
            raise ValueError("names of emotions must differ")
        return emotions

    @field_validator("families")
    @classmethod
    def _known(cls, families: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        unknown = {emotion.family for emotion in info.data.get("emotions", ())} - set(families)
        if unknown:
            raise ValueError(f"emotions name families that are not listed: {sorted(unknown)}")
        if len(set(families)) < len(families):
            raise ValueError("names of families must differ")
        if reserved := set(families).intersection(RESERVED):
            raise ValueError(f"{sorted(reserved)} would hide what is watched beside families; call them otherwise")
        return families


@dataclass(frozen=True)
class Columns:
    """Which column of a token's scores is what.

    Emotions, families, user affect, assistant affect and expected affect come from hidden states; the text twin repeats
    families, user affect and assistant affect from token ids alone.
    """

    emotions: int
    families: int

    @property
    def emotion(self) -> slice:
        """Emotion probes."""
        return slice(0, self.emotions)

    @property
    def family(self) -> slice:
        """Family probes: mean of their emotions' standardised directions."""
        return slice(self.emotions, self.emotions + self.families)

    @property
    def user_affect(self) -> int:
        """Strength of the user's affect."""
        return self.emotions + self.families

    @property
    def assistant_affect(self) -> int:
        """Strength of the assistant's affect."""
        return self.user_affect + 1

    @property
    def expected_affect(self) -> int:
        """Assistant affect that a user's tokens lead to expect: what the task and the user's affect explain of it."""
        return self.assistant_affect + 1

    @property
    def probes(self) -> int:
        """Columns that need hidden states."""
        return self.expected_affect + 1

    @property
    def twin_family(self) -> slice:
        """Families by the text twin."""
        return slice(self.probes, self.probes + self.families)

    @property
    def twin_user_affect(self) -> int:
        """Strength of the user's affect by the text twin."""
        return self.probes + self.families

    @property
    def twin_assistant_affect(self) -> int:
        """Strength of the assistant's affect by the text twin."""
        return self.twin_user_affect + 1

    @property
    def twins(self) -> int:
        """Columns of the text twin."""
        return self.families + 2

    @property
    def total(self) -> int:
        """All columns."""
        return self.probes + self.twins


@dataclass(frozen=True)
class Tensors:
    """``bank.safetensors``.

    P probe columns, T twin columns, C = P + T, L layers, H hidden size, E emotions, F families, N reference turns.

    Attributes:
        directions: Unit directions, [L, P, H].
        centres: Mean hidden state of the reference, [L, H].
        scales: Spread of the reference's token means along each direction, [L, P].
        twin_tokens: Token ids the text twin knows, ascending, [K].
        twin_weights: Weight of each of them, [K, T].
        turn_means: Mean over reference turns of user (0) and assistant (1) scores, [2, C].
        turn_scales: Standard deviation of the same, [2, C].
        platt: Slope and intercept of each emotion's probability on user (0) and assistant (1) tokens, [2, E, 2].
        reference_user: Standardised user scores of the reference turns, [N, C].
        reference_assistant: Standardised assistant scores of the reference turns, [N, C].
        reference_tokens: Assistant tokens of the reference turns, [N].
        reference_stance: Index of the last stance that allows each reference turn; so do all before it, [N].
        warranted: Warranted quantile of A per stance and target: intercept, slope on what the target is judged by
            (``target_values``), slope on tokens ** -1/2, [3, F + 2, 3].
        spread: Unit of the over-index: intercept, slope on tokens ** -1/2, [3, F + 2, 2].
        residuals: Over-index of the reference turns held out for it, ascending, padded with NaN, [3, F + 2, M].
    """

    directions: Floats
    centres: Floats
    scales: Floats
    twin_tokens: NDArray[np.int32]
    twin_weights: Floats
    turn_means: Floats
    turn_scales: Floats
    platt: Floats
    reference_user: Floats
    reference_assistant: Floats
    reference_tokens: NDArray[np.int32]
    reference_stance: NDArray[np.int32]
    warranted: Floats
    spread: Floats
    residuals: Floats


def tensors_of(arrays: dict[str, NDArray[Any]]) -> Tensors:
    """Arrays in the precision banks hold: single; whole numbers stay."""
    stored: dict[str, Any] = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in arrays.items()
    }
    return Tensors(**stored)


class Bank:
    """A card and its tensors, in agreement with each other.

    Raises:
        BankError: Shapes disagree with the card, or a value is not finite.
    """

    def __init__(self, card: BankCard, tensors: Tensors) -> None:
        self.card = card
        self.tensors = tensors
        self._check()

    @cached_property
    def columns(self) -> Columns:
        """Layout of a token's scores."""
        return Columns(len(self.card.emotions), len(self.card.families))

    @cached_property
    def markers(self) -> tuple[Marker, ...]:
        """Markers of the model's chat template."""
        return tuple(Marker(marker.tokens, Role[marker.role]) for marker in self.card.markers)

    @cached_property
    def probes(self) -> str:
        """SHA-256, shortened, of all that scores come from; a bank keeps it when only its reference is fitted anew."""
        tensors = self.tensors
        digest = hashlib.sha256(str(self.card.layers).encode())
        for part in (tensors.directions, tensors.centres, tensors.scales, tensors.twin_tokens, tensors.twin_weights):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:12]

    def save(self, folder: Path) -> None:
        """Writes the two files; an existing bank in ``folder`` is replaced.

        Raises:
            BankError: They cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "bank.safetensors").write_bytes(_serialised(self.tensors))
            (folder / "bank.json").write_text(self.card.model_dump_json(indent=1) + "\n")
        except OSError as error:
            raise BankError(str(folder), f"cannot be written ({error.strerror}); name another folder") from None

    def _check(self) -> None:
        card, tensors, columns = self.card, self.tensors, self.columns
        layers, hidden, stances = len(card.layers), card.model.hidden_size, len(Stance)
        known, turns = tensors.twin_tokens.size, tensors.reference_stance.size
        targets = columns.families + 2
        expected = {
            "directions": (layers, columns.probes, hidden),
            "centres": (layers, hidden),
            "scales": (layers, columns.probes),
            "twin_tokens": (known,),
            "twin_weights": (known, columns.twins),
            "turn_means": (2, columns.total),
            "turn_scales": (2, columns.total),
            "platt": (2, columns.emotions, 2),
            "reference_user": (turns, columns.total),
            "reference_assistant": (turns, columns.total),
            "reference_tokens": (turns,),
            "reference_stance": (turns,),
            "warranted": (stances, targets, 3),
            "spread": (stances, targets, 2),
            "residuals": (stances, targets, *(tensors.residuals.shape[2:3] or (0,))),
        }
        for name, shape in expected.items():
            array = getattr(tensors, name)
            if array.shape != shape:
                raise BankError(f"bank.safetensors:{name}", f"has shape {array.shape}, the card asks for {shape}")
            kind = np.int32 if name in _WHOLE_NUMBERS else np.float32
            if array.dtype != kind:
                raise BankError(f"bank.safetensors:{name}", f"holds {array.dtype} where {kind.__name__} belongs")
            if name != "residuals" and not np.isfinite(array).all():
                raise BankError(f"bank.safetensors:{name}", "holds values that are not finite; calibrate again")
        self._check_values()

    def _check_values(self) -> None:
        tensors, stances = self.tensors, len(Stance)
        for name in ("scales", "turn_scales", "reference_tokens"):
            if (getattr(tensors, name) <= 0).any():
                raise BankError(f"bank.safetensors:{name}", "must be positive; calibrate again")
        # At one token and at endless ones; between them it is linear.
        if (tensors.spread[..., 0] <= 0).any() or (tensors.spread.sum(axis=2) <= 0).any():
            raise BankError("bank.safetensors:spread", "must be positive at every length; calibrate again")
        known = tensors.twin_tokens
        if not ((known >= 0) & (known < _MAX_TOKENS)).all() or (np.diff(known) <= 0).any():
            raise BankError(
                "bank.safetensors:twin_tokens",
                f"must be token ids in ascending order, below {_MAX_TOKENS}; calibrate again",
            )
        if not np.isin(tensors.reference_stance, range(stances)).all():
            raise BankError("bank.safetensors:reference_stance", f"must be 0 to {stances - 1}; calibrate again")
        ordered = np.array_equal(np.sort(tensors.residuals), tensors.residuals, equal_nan=True)
        if not ordered or np.isinf(tensors.residuals).any():
            raise BankError("bank.safetensors:residuals", "must ascend, finite, with NaN after them; calibrate again")


def seal(card: dict[str, object], tensors: Tensors) -> Bank:
    """Completes a card with the hash of its tensors and the bank's id, and makes the bank."""
    digest = hashlib.sha256(_serialised(tensors)).hexdigest()
    complete = BankCard.model_validate({**card, "tensors_sha256": digest, "bank_id": ""})
    return Bank(complete.model_copy(update={"bank_id": _identity(complete)}), tensors)


def _serialised(tensors: Tensors) -> bytes:
    # safetensors writes memory as it lies: a transposed array would come back scrambled.
    return save_tensors({name: np.ascontiguousarray(array) for name, array in vars(tensors).items()})


def _identity(card: BankCard) -> str:
    """The bank's id: a hash of all that the card says besides, the hash of its tensors included."""
    said = card.model_dump(mode="json", exclude={"bank_id"})
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def bank_folder(name: str) -> Path:
    """The folder a ``--bank`` argument means: a path, or the name of a shipped bank.

    Raises:
        BankError: There is neither.
    """
    for folder in (Path(name), SHIPPED / name):
        with suppress(OSError):  # a name no file can have
            if (folder / "bank.json").is_file():
                return folder
    shipped = sorted(path.parent.name for path in SHIPPED.glob("*/bank.json"))
    raise BankError("--bank", f"{name!r} is neither a folder with bank.json nor a shipped bank {shipped}")


def load_bank(name: str) -> Bank:
    """Loads and verifies a bank.

    Args:
        name: A folder, or the name of a shipped bank.

    Raises:
        BankError: Missing, truncated, altered or inconsistent; the error names the file and field.
    """
    folder = bank_folder(name)
    try:
        card = BankCard.model_validate_json((folder / "bank.json").read_bytes())
        raw = (folder / "bank.safetensors").read_bytes()
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "(file)"
        raise BankError(f"bank.json:{field}", f"{first['msg']}; restore the bank or calibrate again") from None
    except OSError as error:
        raise BankError(str(error.filename), f"{error.strerror}; restore the bank or calibrate again") from None
    if card.bank_id != _identity(card):
        raise BankError("bank.json:bank_id", "is not the hash of the rest of the card: altered; restore it")
    if hashlib.sha256(raw).hexdigest() != card.tensors_sha256:
        raise BankError(
            "bank.safetensors", "does not have the SHA-256 bank.json states: truncated or altered; restore it"
        )
    try:
        tensors = Tensors(**load_tensors(raw))
    except (SafetensorError, TypeError, KeyError, ValueError) as error:  # ValueError: shapes that numpy cannot hold
        raise BankError("bank.safetensors", f"{error}; restore the bank or calibrate again") from None
    return Bank(card, tensors)
