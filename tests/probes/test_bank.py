"""The bank on disk: what goes out comes back, and nothing damaged comes in."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import make_bank, make_battery, make_card, make_tensors
from safetensors.numpy import load, save

from monitor.assess.drift import ALARMS
from monitor.assess.overindex import AFFECT
from monitor.errors import BankError
from monitor.probes import bank as bank_module
from monitor.probes.bank import Bank, Columns, Tensors, bank_folder, load_bank, seal

WHOLE_NUMBERS = ("twin_tokens", "reference_tokens", "reference_stance")


@pytest.fixture
def folder(small_bank: Bank, tmp_path: Path) -> Path:
    """A saved bank."""
    small_bank.save(tmp_path / "bank")
    return tmp_path / "bank"


def reseal(folder: Path, tensors: dict[str, Any] | None = None, **card: Any) -> None:
    """Changes a saved bank and makes its hashes true again, as somebody who writes banks by other means might."""
    said = json.loads((folder / "bank.json").read_text()) | card
    if tensors is not None:
        stored = load((folder / "bank.safetensors").read_bytes())
        kept = {name: array for name, array in (stored | tensors).items() if array is not None}
        (folder / "bank.safetensors").write_bytes(save(kept))
        said["tensors_sha256"] = hashlib.sha256((folder / "bank.safetensors").read_bytes()).hexdigest()
    rest = {name: value for name, value in said.items() if name != "bank_id"}
    said["bank_id"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]
    (folder / "bank.json").write_text(json.dumps(said))


def refusal(folder: Path) -> BankError:
    """The error that loading a bank ends in."""
    with pytest.raises(BankError) as caught:
        load_bank(str(folder))
    assert caught.value.message
    return caught.value


class TestRoundTrip:
    """What is saved comes back."""

    def test_a_saved_bank_is_the_same_bank(self, small_bank: Bank, folder: Path) -> None:
        """Card and every array come back as they were, dtype and all."""
        loaded = load_bank(str(folder))
        assert loaded.card == small_bank.card
        assert loaded.markers == small_bank.markers
        for field in dataclasses.fields(Tensors):
            before, after = getattr(small_bank.tensors, field.name), getattr(loaded.tensors, field.name)
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after, err_msg=field.name)

    def test_arrays_come_back_however_they_lie_in_memory(self, tmp_path: Path) -> None:
        """Transposed and sliced arrays are saved by value, not as their memory lies."""
        tensors = make_tensors()
        crooked = {
            "directions": np.asfortranarray(tensors.directions),
            "residuals": np.repeat(tensors.residuals, 2, axis=2)[:, :, ::2],
            "twin_weights": np.asfortranarray(tensors.twin_weights),
        }
        bank = seal(make_card(), dataclasses.replace(tensors, **crooked))
        bank.save(tmp_path)
        loaded = load_bank(str(tmp_path)).tensors
        for name in crooked:
            np.testing.assert_array_equal(getattr(loaded, name), getattr(tensors, name), err_msg=name)
        assert bank.card.bank_id == make_bank().card.bank_id

    def test_the_same_inputs_make_the_same_files(self, tmp_path: Path) -> None:
        """Two banks from the same inputs are the same bit for bit; from others they have another id."""
        for name in ("one", "two"):
            make_bank().save(tmp_path / name)
        for file in ("bank.json", "bank.safetensors"):
            assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
        assert make_bank(seed=1).card.bank_id != make_bank().card.bank_id

    def test_saving_replaces(self, folder: Path) -> None:
        """Saving into a folder that holds a bank leaves the new one there."""
        other = make_bank(seed=1)
        other.save(folder)
        assert load_bank(str(folder)).card.bank_id == other.card.bank_id

    def test_two_files_and_no_pickle(self, folder: Path) -> None:
        """A bank is one JSON and one safetensors file; neither is, nor is read as, a pickle."""
        assert sorted(path.name for path in folder.iterdir()) == ["bank.json", "bank.safetensors"]
        json.loads((folder / "bank.json").read_text())
        raw = (folder / "bank.safetensors").read_bytes()
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
        assert set(header) == {field.name for field in dataclasses.fields(Tensors)}
        source = Path(bank_module.__file__).read_text()
        assert "pickle" not in source.replace("No pickle", "")

    def test_shipped_banks_are_found_by_name(
        self, small_bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A name that is no folder means a bank in the package."""
        monkeypatch.setattr(bank_module, "SHIPPED", tmp_path)
        small_bank.save(tmp_path / "tiny-model")
        assert bank_folder("tiny-model") == tmp_path / "tiny-model"
        assert load_bank("tiny-model").card == small_bank.card


class TestColumns:
    """Layout of a token's scores."""

    def test_cover_every_column_once(self) -> None:
        """Emotions, families, affects and their twins lie side by side without overlap."""
        columns = Columns(4, 2)
        numbers = list(range(columns.total))
        parts = [
            *numbers[columns.emotion], *numbers[columns.family],
            columns.user_affect, columns.assistant_affect, columns.expected_affect,
            *numbers[columns.twin_family], columns.twin_user_affect, columns.twin_assistant_affect,
        ]  # fmt: skip
        assert parts == numbers
        assert (columns.probes, columns.twins) == (9, 4)


class TestDamagedFiles:
    """Files that were lost, cut or altered."""

    def test_no_such_bank(self, tmp_path: Path) -> None:
        """A name that is neither folder nor shipped bank is refused as the argument it is."""
        error = refusal(tmp_path / "nowhere")
        assert error.field == "--bank"
        assert "nowhere" in error.message

    def test_missing_card(self, folder: Path) -> None:
        """A folder without bank.json is no bank, and the error says which file is missing."""
        (folder / "bank.json").unlink()
        assert "bank.json" in refusal(folder).message

    def test_missing_tensors(self, folder: Path) -> None:
        """A missing bank.safetensors is named."""
        (folder / "bank.safetensors").unlink()
        assert refusal(folder).field.endswith("bank.safetensors")

    @pytest.mark.parametrize("keep", [0, 4, 100, -1])
    def test_truncated_tensors(self, folder: Path, keep: int) -> None:
        """A tensor file that is cut short anywhere is refused by name."""
        raw = (folder / "bank.safetensors").read_bytes()
        (folder / "bank.safetensors").write_bytes(raw[:keep])
        assert refusal(folder).field == "bank.safetensors"

    @pytest.mark.parametrize("place", [0, 9, 0.5, -1])
    def test_a_flipped_bit_in_the_tensors(self, folder: Path, place: float) -> None:
        """One flipped bit in length, header or data of the tensor file is noticed."""
        raw = bytearray((folder / "bank.safetensors").read_bytes())
        raw[int(place * len(raw)) if isinstance(place, float) else place] ^= 1
        (folder / "bank.safetensors").write_bytes(raw)
        error = refusal(folder)
        assert error.field == "bank.safetensors"
        assert "SHA-256" in error.message

    def test_a_flipped_digit_in_the_card(self, folder: Path) -> None:
        """A card that was altered but is still valid is noticed by the bank's id."""
        text = (folder / "bank.json").read_text()
        assert text.count('"value":0.9') + text.count('"value": 0.9') == 1
        (folder / "bank.json").write_text(text.replace("0.9", "0.8"))
        assert refusal(folder).field == "bank.json:bank_id"

    @pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"not json"])
    def test_bad_json(self, folder: Path, raw: bytes) -> None:
        """A card that is no JSON object is refused by name."""
        (folder / "bank.json").write_bytes(raw)
        assert refusal(folder).field.startswith("bank.json:")

    def test_truncated_card(self, folder: Path) -> None:
        """A card that is cut short is refused by name."""
        raw = (folder / "bank.json").read_bytes()
        (folder / "bank.json").write_bytes(raw[: len(raw) // 2])
        assert refusal(folder).field.startswith("bank.json:")

    @pytest.mark.parametrize("raw", [b"", b"\x08\0\0\0\0\0\0\0notjson!", b"\xff" * 64])
    def test_tensors_that_are_none(self, folder: Path, raw: bytes) -> None:
        """Bytes that are no safetensors are refused by name even where their hash is the stated one."""
        (folder / "bank.safetensors").write_bytes(raw)
        reseal(folder, tensors_sha256=hashlib.sha256(raw).hexdigest())
        assert refusal(folder).field == "bank.safetensors"


class TestBadCards:
    """Cards that are valid JSON and no card."""

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"schema_version": 1}, "schema_version"),
            ({"schema_version": 3}, "schema_version"),
            ({"schema_version": None}, "schema_version"),
            ({"surprise": 1}, "surprise"),
            ({"layers": []}, "layers"),
            ({"layers": [2, 1]}, "layers"),
            ({"layers": [1, 1]}, "layers"),
            ({"layers": [1, 3]}, "layers"),
            ({"layers": [-1, 1]}, "layers"),
            ({"families": ["warmth"]}, "families"),
            ({"families": ["warmth", "contagion", "warmth"]}, "families"),
            ({"families": []}, "families"),
            ({"emotions": []}, "emotions"),
            ({"markers": [{"tokens": [], "role": "USER"}]}, "markers.0.tokens"),
            ({"markers": [{"tokens": [1], "role": "NOBODY"}]}, "markers.0.role"),
            ({"reference": {"source": "x", "turns": {"angry": 3}}}, "reference.turns.angry"),
            ({"markers": [{"tokens": [-1], "role": "USER"}]}, "markers.0.tokens.0"),
            ({"markers": [{"tokens": [2**64], "role": "USER"}]}, "markers.0.tokens.0"),
            ({"markers": [{"tokens": [1] * 1025, "role": "USER"}]}, "markers.0.tokens"),
            ({"reference": {"source": "x", "turns": {"neutral": -1}}}, "reference.turns.neutral"),
            ({"reference": {"source": "x", "turns": {"neutral": 10**400}}}, "reference.turns.neutral"),
            ({"estimator": {"shrinkage": math.inf}}, "estimator.shrinkage"),
            ({"battery": [make_battery()[0] | {"high": math.nan}]}, "battery.0.high"),
            ({"battery": [{"number": "7"}]}, "battery.0.name"),
            ({"text_equivalent": "distress"}, "text_equivalent"),
            ({"validated": "perhaps"}, "validated"),
        ],
        ids=lambda value: json.dumps(value)[:80] if isinstance(value, dict) else "",
    )
    def test_name_the_field(self, folder: Path, change: dict[str, Any], field: str) -> None:
        """A card that is no card of this schema is refused by the path of its field."""
        reseal(folder, **change)
        assert refusal(folder).field.startswith(f"bank.json:{field}")

    @pytest.mark.parametrize("name", [AFFECT, *ALARMS])
    def test_families_called_like_what_is_watched_beside_them(self, folder: Path, name: str) -> None:
        """A family that would hide affect or a question of drift on the page is refused."""
        card = json.loads((folder / "bank.json").read_text())
        reseal(folder, families=[*card["families"], name])
        assert refusal(folder).field == "bank.json:families"

    @pytest.mark.parametrize("name", ["name", "weights_fingerprint", "tokenizer_hash", "template_hash"])
    def test_names_no_engine_may_say(self, folder: Path, name: str) -> None:
        """What an engine has to say of its model is no longer than it may say."""
        card = json.loads((folder / "bank.json").read_text())
        reseal(folder, model=card["model"] | {name: "x" * 257})
        assert refusal(folder).field == f"bank.json:model.{name}"

    def test_layers_the_wire_cannot_tell(self, folder: Path) -> None:
        """A model of more blocks than layer numbers can tell on the wire is refused."""
        card = json.loads((folder / "bank.json").read_text())
        reseal(folder, model=card["model"] | {"depth": 2**40}, layers=[1, 2**40])
        assert refusal(folder).field == "bank.json:model.depth"

    @pytest.mark.parametrize("name", ["schema_version", "bank_id", "model", "layers", "emotions", "tensors_sha256"])
    def test_a_missing_field_is_named(self, folder: Path, name: str) -> None:
        """A card that lacks a field is refused by that field."""
        card = json.loads((folder / "bank.json").read_text())
        del card[name]
        (folder / "bank.json").write_text(json.dumps(card))
        assert refusal(folder).field == f"bank.json:{name}"

    def test_emotions_of_one_name(self, folder: Path) -> None:
        """Two emotions of one name would hide each other in every output, and are refused."""
        card = json.loads((folder / "bank.json").read_text())
        reseal(folder, emotions=[*card["emotions"][:3], card["emotions"][0]])
        assert refusal(folder).field == "bank.json:emotions"


def _with(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


class TestBadTensors:
    """Arrays that do not fit the card."""

    @pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Tensors)])
    @pytest.mark.parametrize(
        "damage",
        [lambda array: array[:-1], lambda array: array[..., None], lambda array: array.reshape(-1)[0].copy()],
        ids=["shorter", "one axis more", "no axis"],
    )
    def test_wrong_shapes_are_named(self, folder: Path, name: str, damage: Callable[[Any], Any]) -> None:
        """An array of another shape than the card asks for is refused, whichever it is."""
        array = load((folder / "bank.safetensors").read_bytes())[name]
        reseal(folder, {name: np.asarray(damage(array))})
        error = refusal(folder)
        assert error.field.startswith("bank.safetensors:")
        assert "shape" in error.message

    @pytest.mark.parametrize(
        "name",
        [f.name for f in dataclasses.fields(Tensors) if f.name not in {*WHOLE_NUMBERS, "residuals"}],
    )
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_named(self, folder: Path, name: str, value: float) -> None:
        """One NaN or infinity in an array of numbers is refused by the array's name."""
        array = load((folder / "bank.safetensors").read_bytes())[name]
        reseal(folder, {name: _with(array, (0,) * array.ndim, value)})
        error = refusal(folder)
        assert error.field == f"bank.safetensors:{name}"
        assert "not finite" in error.message

    @pytest.mark.parametrize("name", ["scales", "turn_scales"])
    @pytest.mark.parametrize("value", [0.0, -1.0])
    def test_scales_must_be_positive(self, folder: Path, name: str, value: float) -> None:
        """A scale of zero or less is refused by name."""
        array = load((folder / "bank.safetensors").read_bytes())[name]
        reseal(folder, {name: _with(array, (0, 0), value)})
        assert refusal(folder).field == f"bank.safetensors:{name}"

    @pytest.mark.parametrize("line", [[0.0, 1.0], [-0.5, 1.0], [1.0, -1.0], [1.0, -2.0]])
    def test_the_unit_of_the_over_index_must_be_positive(self, folder: Path, line: list[float]) -> None:
        """A unit that is zero or less for endless replies, or for a single token, is refused by name."""
        array = load((folder / "bank.safetensors").read_bytes())["spread"]
        array[1, 2] = line
        reseal(folder, {"spread": array})
        assert refusal(folder).field == "bank.safetensors:spread"

    @pytest.mark.parametrize("value", [0, -3])
    def test_reference_turns_have_tokens(self, folder: Path, value: int) -> None:
        """A reference turn without assistant tokens is none, and is refused by name."""
        array = load((folder / "bank.safetensors").read_bytes())["reference_tokens"]
        reseal(folder, {"reference_tokens": _with(array, (0,), value)})
        assert refusal(folder).field == "bank.safetensors:reference_tokens"

    @pytest.mark.parametrize(
        ("place", "value"), [((0, 0, 0), np.nan), ((0, 0, 0), 100.0), ((0, 0, -1), np.inf), ((0, 0, 0), -np.inf)]
    )
    def test_residuals_must_ascend_and_be_padded_behind(
        self, folder: Path, place: tuple[int, ...], value: float
    ) -> None:
        """Residuals out of order, infinite, or with NaN before a number would give wrong p-values and are refused."""
        array = load((folder / "bank.safetensors").read_bytes())["residuals"]
        reseal(folder, {"residuals": _with(array, place, value)})
        assert refusal(folder).field == "bank.safetensors:residuals"

    @pytest.mark.parametrize(("place", "value"), [(0, -1), (1, -1), (-1, 2**31 - 1)])
    def test_tokens_of_the_twin_must_ascend(self, folder: Path, place: int, value: int) -> None:
        """Token ids that are negative, out of order or larger than any tokenizer's are refused."""
        array = load((folder / "bank.safetensors").read_bytes())["twin_tokens"]
        reseal(folder, {"twin_tokens": _with(array, (place,), value)})
        assert refusal(folder).field == "bank.safetensors:twin_tokens"

    @pytest.mark.parametrize("value", [-1, 3])
    def test_reference_turns_are_of_a_stance(self, folder: Path, value: int) -> None:
        """A reference turn of a stance that does not exist is refused by name."""
        array = load((folder / "bank.safetensors").read_bytes())["reference_stance"]
        reseal(folder, {"reference_stance": _with(array, (0,), value)})
        assert refusal(folder).field == "bank.safetensors:reference_stance"

    def test_residuals_of_one_axis_less(self, folder: Path) -> None:
        """Residuals without an axis of turns are refused by name."""
        array = load((folder / "bank.safetensors").read_bytes())["residuals"]
        reseal(folder, {"residuals": np.sort(array[:, :, 0])})
        assert refusal(folder).field == "bank.safetensors:residuals"

    @pytest.mark.parametrize("shape", [[1] * 65, [0, 2**62, 2**62], [2**63, 0]])
    def test_shapes_no_array_can_have(self, folder: Path, shape: list[int]) -> None:
        """A header with more axes, or longer ones, than arrays can have is refused like any other damage."""
        size = 4 * (0 not in shape)
        header = json.dumps({"platt": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        raw = len(header).to_bytes(8, "little") + header + bytes(size)
        (folder / "bank.safetensors").write_bytes(raw)
        reseal(folder, tensors_sha256=hashlib.sha256(raw).hexdigest())
        assert refusal(folder).field == "bank.safetensors"

    @pytest.mark.parametrize(
        ("name", "dtype"), [("directions", np.float64), *((name, np.int64) for name in WHOLE_NUMBERS)]
    )
    def test_other_types_are_named(self, folder: Path, name: str, dtype: type) -> None:
        """An array of another type is refused by name."""
        array = load((folder / "bank.safetensors").read_bytes())[name]
        reseal(folder, {name: array.astype(dtype)})
        assert refusal(folder).field == f"bank.safetensors:{name}"

    def test_missing_and_surplus_arrays(self, folder: Path) -> None:
        """A tensor file that lacks an array, or holds one nobody knows, is refused."""
        reseal(folder, {"platt": None})
        assert "platt" in refusal(folder).message
        make_bank().save(folder)
        reseal(folder, {"surprise": np.zeros(1, np.float32)})
        assert "surprise" in refusal(folder).message

    def test_a_bank_in_memory_is_checked_too(self) -> None:
        """Sealing checks as loading does, so that no calibration can write a bank that will not load."""
        tensors = dataclasses.replace(make_tensors(), centres=np.zeros((2, 15), np.float32))
        with pytest.raises(BankError, match="safetensors:centres"):
            seal(make_card(), tensors)
