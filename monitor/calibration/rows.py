"""Rows of the files that labelled texts come in, whatever their layout.

| what | layout |
|---|---|
| ``.jsonl`` | an object a line: ``text`` and ``label``, ``emotion`` or ``labels``, as in lines of the corpus |
| ``.csv``, ``.tsv`` | a header with the same names; or GoEmotions' own: text, label numbers and id, no header |
| folder | what ``Dataset.save_to_disk`` wrote, or files in Parquet, with the same columns |

Labels are names, or numbers that ``labels.txt`` beside the file (a name a line) or the dataset's features name.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from monitor.errors import CorpusError, SetupError

LABELS = ("label", "emotion", "labels")
"""Names of the column of labels."""

_GOEMOTIONS = ("text", "labels", "id")
_GOEMOTIONS_LINE = re.compile(r"[^\t\n]*\t[\d,]+\t[^\t\n]*(\n|$)")


class Row(NamedTuple):
    """One row.

    Attributes:
        place: File and line, or row.
        fields: What stands in it, by name of the column.
        names: What the numbers of labels mean; empty where nothing says so.
    """

    place: str
    fields: dict[str, Any]
    names: list[str]


def read_rows(path: Path) -> Iterator[Row]:
    """Reads a file or folder, row by row.

    Raises:
        CorpusError: It cannot be read, or a row of it; names file and line.
        SetupError: It is a folder, and pyarrow is missing.
    """
    if path.is_dir():
        return _table_rows(path)
    if path.suffix == ".jsonl":
        return _json_rows(path)
    if path.suffix in {".csv", ".tsv"}:
        return _cell_rows(path)
    if not path.exists():
        raise CorpusError(str(path), "cannot be read (No such file or directory); name a file that can")
    raise CorpusError(str(path), "is of no kind that is read; give a .jsonl, .csv or .tsv file or a dataset's folder")


def _json_rows(path: Path) -> Iterator[Row]:
    names = _label_names(path.parent)
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if line.strip():
            fields = _json(line, f"{path}:{number}:(line)")
            yield Row(f"{path}:{number}", fields, names)


def _cell_rows(path: Path) -> Iterator[Row]:
    text, names = _decoded(path), _label_names(path.parent)
    tabs = path.suffix == ".tsv"
    # GoEmotions has no header, and quotation marks that quote nothing.
    header = list(_GOEMOTIONS) if tabs and _GOEMOTIONS_LINE.match(text) else None
    lines = csv.reader(
        io.StringIO(text, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if header else csv.QUOTE_MINIMAL,
    )
    place = f"{path}:1"
    try:
        for cells in lines:
            if header is None:
                header = [cell.strip().lower() for cell in cells]
            elif cells and len(cells) != len(header):
                told = (
                    f"has {len(cells)} cells where the first line has {len(header)}; quote cells that hold separators"
                )
                raise CorpusError(f"{place}:(line)", told)
            elif cells:
                yield Row(place, dict(zip(header, cells, strict=True)), names)
            place = f"{path}:{lines.line_num + 1}"
    except csv.Error as error:
        raise CorpusError(f"{place}:(line)", f"is no line of a table ({error}); correct or remove it") from None


def _table_rows(folder: Path) -> Iterator[Row]:
    try:
        import pyarrow as pa
    except ImportError:
        raise SetupError("pyarrow", "is not installed, and folders are read with it; pip install pyarrow") from None
    for file in _table_files(folder):
        number = 0
        try:
            with pa.memory_map(str(file)) as source:
                metadata, batches = _batches(source, file.suffix)
                names = _feature_names(folder, metadata)
                for batch in batches:
                    rows = batch.to_pylist()
                    yield from (Row(f"{file}:{number + at}", fields, names) for at, fields in enumerate(rows, 1))
                    number += len(rows)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            place = f"{file}:{number + 1}:(this row and others)"
            raise CorpusError(place, f"cannot be read ({error}); write the dataset anew") from None


def _table_files(folder: Path) -> list[Path]:
    """Files of a dataset, by ``state.json`` where there is one: caches lie beside them."""
    if (folder / "dataset_dict.json").is_file():
        raise CorpusError(str(folder), "holds the parts of a dataset as folders; name one of these")
    state = folder / "state.json"
    if state.is_file():
        entries = _json(_decoded(state), str(state)).get("_data_files")
        try:
            return [folder / Path(entry["filename"]).name for entry in entries or ()]
        except (LookupError, TypeError):
            raise CorpusError(f"{state}:_data_files", "names no files; write the dataset anew") from None
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise CorpusError(str(folder), "holds neither state.json nor *.parquet; name what Dataset.save_to_disk wrote")
    return files


def _batches(source: Any, suffix: str) -> tuple[dict[bytes, bytes], Iterator[Any]]:
    from pyarrow import ipc, parquet

    if suffix == ".parquet":
        opened = parquet.ParquetFile(source)
        return opened.schema_arrow.metadata or {}, opened.iter_batches()
    stream = ipc.open_stream(source)
    return stream.schema.metadata or {}, iter(stream)


def _feature_names(folder: Path, metadata: dict[bytes, bytes]) -> list[str]:
    """Names of the numbers of the labels' column, by ``dataset_info.json``, the file's own metadata or labels.txt."""
    info = folder / "dataset_info.json"
    if info.is_file():
        described = _json(_decoded(info), str(info))
    else:
        described = _json(metadata.get(b"huggingface", b"{}").decode(), f"{folder}:huggingface").get("info") or {}
    features = described.get("features") or {}
    feature: Any = next((features[name] for name in LABELS if name in features), None)
    while feature and "names" not in feature:  # a list of labels: datasets has written these in several ways
        feature = feature[0] if isinstance(feature, list) else feature.get("feature")
    return list(feature["names"]) if feature else _label_names(folder)


def _label_names(folder: Path) -> list[str]:
    names = folder / "labels.txt"
    return _decoded(names).strip().splitlines() if names.is_file() else []


def _json(text: str, place: str) -> dict[str, Any]:
    try:
        read = from_json(text)  # unlike json.loads, refuses halves of surrogate pairs
    except ValueError as error:
        raise CorpusError(place, f"is not JSON ({error}); correct or remove it") from None
    if not isinstance(read, dict):
        raise CorpusError(place, "is no JSON object; write one with text and label")
    return read


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CorpusError(str(path), f"cannot be read ({error.strerror}); name a file that can") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise CorpusError(f"{path}:{line}:(line)", f"is not UTF-8 ({error.reason}); save the file as UTF-8") from None
