"""Tests of reading texts that others have labelled, layout by layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from monitor.calibration.readers import Read, read_texts
from monitor.errors import CorpusError, SetupError

EMOTIONS = ("joy", "fear")
NAMES = ["joy", "fear", "desire", "neutral"]
CLASS_LABEL = {"names": NAMES, "_type": "ClassLabel"}


def pyarrow() -> Any:
    """The package, or the test is skipped."""
    return pytest.importorskip("pyarrow", reason="pyarrow is missing: pip install pyarrow")


def write(path: Path, content: str | bytes) -> Path:
    """Writes a file."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(folder: Path, *lines: dict[str, Any]) -> Path:
    """Writes a JSON Lines file."""
    return write(folder / "texts.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


def labelled(read: Read) -> list[tuple[str, str]]:
    """Text and emotion of what was read."""
    return [(text.text, text.emotion) for text in read.texts]


def saved(folder: Path, columns: dict[str, list[Any]], feature: Any = CLASS_LABEL) -> Path:
    """A folder as ``Dataset.save_to_disk`` leaves it, with another's cache beside the data."""
    pa = pyarrow()
    table = pa.table(columns)
    for name in ("data-00000-of-00001.arrow", "cache-0123456789abcdef.arrow"):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    features = {"text": {"dtype": "string", "_type": "Value"}} | {name: feature for name in columns if name != "text"}
    write(folder / "dataset_info.json", json.dumps({"features": features}))
    write(folder / "state.json", json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return folder


class TestLabels:
    """Which texts are kept, and with which emotion."""

    def test_one_known_label_is_kept(self, tmp_path: Path) -> None:
        """A text stays when one of its labels was asked for, or neutral is its only one; all others are counted."""
        labels = (["joy"], ["joy", "desire"], "neutral", ["joy", "neutral"], ["joy", "fear"], "desire",
                  ["neutral", "desire"])  # fmt: skip
        read = read_texts(
            jsonl(tmp_path, *({"text": f"text {at}", "labels": label} for at, label in enumerate(labels))), EMOTIONS
        )
        assert [text.emotion for text in read.texts] == ["joy", "joy", "neutral", "joy"]
        assert read.left_out == 3

    def test_names_are_matched_in_any_case(self, tmp_path: Path) -> None:
        """A label of another case is the emotion, spelt as it was asked for."""
        assert labelled(read_texts(jsonl(tmp_path, {"text": "t", "label": "JOY"}), ["Joy"])) == [("t", "Joy")]

    def test_a_text_stands_once(self, tmp_path: Path) -> None:
        """Of texts that differ in case and spaces alone, the first is kept and the others are counted."""
        lines = [{"text": text, "label": label} for text, label in (("A b", "joy"), ("a  B", "fear"), ("c", "fear"))]
        read = read_texts(jsonl(tmp_path, *lines), EMOTIONS)
        assert labelled(read) == [("A b", "joy"), ("c", "fear")]
        assert read.repeated == 1

    def test_none_of_use_is_an_error(self, tmp_path: Path) -> None:
        """A file without any label asked for is refused, with what its labels are."""
        with pytest.raises(CorpusError, match="its labels are glee"):
            read_texts(jsonl(tmp_path, {"text": "t", "label": "glee"}), EMOTIONS)

    @pytest.mark.parametrize(
        ("line", "field", "said"),
        [
            ({"text": "t"}, "label", "is missing"), ({"label": "joy"}, "text", "is missing"),
            ({"text": " ", "label": "joy"}, "text", "empty"), ({"text": 3, "label": "joy"}, "text", "no text"),
            ({"text": "t", "label": 4}, "label", "out of range: labels 0 to 3"),
            ({"text": "t", "label": -1}, "label", "out of range"), ({"text": "t", "labels": []}, "labels", "no label"),
            ({"text": "t", "emotion": ""}, "emotion", "no label"), ({"text": "t", "label": 1.5}, "label", "no label"),
            ({"text": "t", "label": True}, "label", "no label"), ({"text": "t", "label": None}, "label", "no label"),
            ({"text": "t", "label": "joy", "topic": [1]}, "topic", "valid string"),
        ],
    )  # fmt: skip
    def test_a_bad_row_is_named(self, tmp_path: Path, line: dict[str, Any], field: str, said: str) -> None:
        """The error names file, line and field, and what is wrong there."""
        write(tmp_path / "labels.txt", "\n".join(NAMES))
        path = jsonl(tmp_path, {"text": "good", "label": "joy"}, line)
        with pytest.raises(CorpusError, match=said) as caught:
            read_texts(path, EMOTIONS)
        assert caught.value.field == f"{path}:2:{field}"

    def test_numbers_need_names(self, tmp_path: Path) -> None:
        """A number without labels.txt beside the file is an error that says so."""
        with pytest.raises(CorpusError, match=r"put labels\.txt beside it"):
            read_texts(jsonl(tmp_path, {"text": "t", "label": 0}), EMOTIONS)


class TestWhatSourcesLack:
    """Register, topic and keyword_free of sources without them."""

    def test_given_fields_count(self, tmp_path: Path) -> None:
        """A line of the corpus is read as it stands, even where its keyword_free is a reader's judgement."""
        line = {"emotion": "joy", "register": "chat", "topic": "pets", "keyword_free": False, "text": "the dog is back"}
        path = jsonl(tmp_path, line)
        (text,) = read_texts(path, EMOTIONS).texts
        assert text.model_dump(by_alias=True) == line
        assert text.place == f"{path}:1"

    def test_keyword_free_is_computed(self, tmp_path: Path) -> None:
        """Without it, a text is keyword-free when it holds no form of its emotion's word."""
        lines = [{"text": text, "label": "joy"} for text in ("what a joyful day", "the dog is back")]
        assert [text.keyword_free for text in read_texts(jsonl(tmp_path, *lines), EMOTIONS).texts] == [False, True]

    def test_texts_of_one_author_are_held_out_together(self, tmp_path: Path) -> None:
        """Texts of one author share a topic that does not name the author, and other texts have their own."""
        lines = [
            {"text": f"text {at}", "label": "joy", "author": author} for at, author in enumerate(["ann", "ann", ""])
        ]
        first, second, third = (text.topic for text in read_texts(jsonl(tmp_path, *lines), EMOTIONS).texts)
        assert first == second != third
        assert "ann" not in first

    def test_texts_without_origin_spread_over_folds(self, tmp_path: Path) -> None:
        """Texts of which nothing else is known fall into different folds, and the register is unknown."""
        read = read_texts(jsonl(tmp_path, *({"text": f"text {at}", "label": "joy"} for at in range(40))), EMOTIONS)
        assert len({text.fold for text in read.texts}) > 2
        assert {text.register_ for text in read.texts} == {"unknown"}


class TestFiles:
    """Layouts of files."""

    def test_goemotions_as_it_is(self, tmp_path: Path) -> None:
        """Tab-separated text, numbers and id without a header, quotation marks included, named by labels.txt."""
        write(tmp_path / "labels.txt", "\n".join(NAMES))
        path = write(
            tmp_path / "dev.tsv", 'he said "oh\t0\tid1\n"well, well\t0,2\tid2\r\nboth\t0,1\tid3\nplain\t3\tid4\n'
        )
        read = read_texts(path, EMOTIONS)
        assert labelled(read) == [('he said "oh', "joy"), ('"well, well', "joy"), ("plain", "neutral")]
        assert read.left_out == 1

    @pytest.mark.parametrize(("suffix", "separator"), [(".csv", ","), (".tsv", "\t")])
    def test_tables_with_a_header(self, tmp_path: Path, suffix: str, separator: str) -> None:
        """Columns are found by name, cells may be quoted and hold line breaks, and labels may be a written list."""
        rows = (("id", "Labels", "Text"), ("1", "joy", '"one,\n""two"""'), ("2", "\"['fear', 'desire']\"", "three"))
        path = write(tmp_path / f"a{suffix}", "\ufeff" + "\n".join(separator.join(row) for row in rows))
        assert labelled(read_texts(path, EMOTIONS)) == [('one,\n"two"', "joy"), ("three", "fear")]

    def test_the_line_of_a_cell_with_line_breaks(self, tmp_path: Path) -> None:
        """An error behind a cell of two lines names the line of the file at which its row begins."""
        path = write(tmp_path / "a.csv", 'text,label\n"one\ntwo",joy\n,joy\n')
        with pytest.raises(CorpusError) as caught:
            read_texts(path, EMOTIONS)
        assert caught.value.field == f"{path}:4:text"

    @pytest.mark.parametrize(
        ("name", "content", "place", "said"),
        [
            ("a.csv", "text,label\na, b,joy\n", ":2:(line)", "has 3 cells where the first line has 2"),
            ("a.csv", "text,label\n" + "a" * 140_000 + ",joy\n", ":2:(line)", "no line of a table"),
            ("a.csv", b"text,label\ngood,joy\nb\xe4d,joy\n", ":3:(line)", "not UTF-8"),
            ("a.tsv", "good\t0\tid\nbad\t0\n", ":2:(line)", "has 2 cells"),
            ("a.jsonl", '{"text": "t", "label": "joy"}\n\n{oops\n', ":3:(line)", "not JSON"),
            ("a.jsonl", '{"text": "half of a pair: \\ud800", "label": "joy"}', ":1:(line)", "not JSON"),
            ("a.jsonl", "[" * 100_000, ":1:(line)", "not JSON"),
            ("a.jsonl", "[1]\n", ":1:(line)", "no JSON object"),
            ("a.jsonl", b'{"text": "\xff"}', ":1:(line)", "not UTF-8"),
            ("a.csv", "text,label\n", "", "it is empty"),
            ("a.txt", "hello\n", "", "of no kind that is read"),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path: Path, name: str, content: str | bytes, place: str, said: str) -> None:
        """The error names file and line, and what is wrong there."""
        write(tmp_path / "labels.txt", "joy")
        path = write(tmp_path / name, content)
        with pytest.raises(CorpusError, match=said) as caught:
            read_texts(path, EMOTIONS)
        assert caught.value.field == f"{path}{place}"

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        """A path where nothing is gives an error with that path."""
        with pytest.raises(CorpusError, match="No such file"):
            read_texts(tmp_path / "none.csv", EMOTIONS)


class TestFolders:
    """Folders of datasets."""

    def test_saved_dataset(self, tmp_path: Path) -> None:
        """The files that state.json lists are read, and dataset_info.json names the numbers."""
        folder = saved(tmp_path, {"text": ["a", "b", "c"], "label": [0, 2, 3]})
        read = read_texts(folder, EMOTIONS)
        assert labelled(read) == [("a", "joy"), ("c", "neutral")]
        assert (read.left_out, read.repeated) == (1, 0)

    @pytest.mark.parametrize(
        "feature",
        [
            {"feature": CLASS_LABEL, "_type": "List"},
            {"feature": CLASS_LABEL, "length": -1, "_type": "Sequence"},
            [CLASS_LABEL],
        ],
    )
    def test_lists_of_labels(self, tmp_path: Path, feature: Any) -> None:
        """Names of a list of labels are found in each of the ways that datasets has described it."""
        folder = saved(tmp_path, {"text": ["a", "b"], "labels": [[0, 2], [1]]}, feature)
        assert labelled(read_texts(folder, EMOTIONS)) == [("a", "joy"), ("b", "fear")]

    def test_parquet(self, tmp_path: Path) -> None:
        """Files in Parquet are read in order, and their own metadata names the numbers."""
        pa = pyarrow()
        from pyarrow import parquet

        described = {"info": {"features": {"label": CLASS_LABEL}}}
        for part, text in enumerate("ab"):
            table = pa.table({"text": [text], "label": [part]})
            table = table.replace_schema_metadata({"huggingface": json.dumps(described)})
            parquet.write_table(table, tmp_path / f"train-{part}.parquet")
        assert labelled(read_texts(tmp_path, EMOTIONS)) == [("a", "joy"), ("b", "fear")]

    def test_a_bad_row_is_named(self, tmp_path: Path) -> None:
        """A number that no feature names is an error of its file and row."""
        folder = saved(tmp_path, {"text": ["a", "b"], "label": [0, 7]})
        with pytest.raises(CorpusError, match="out of range") as caught:
            read_texts(folder, EMOTIONS)
        assert caught.value.field == f"{folder / 'data-00000-of-00001.arrow'}:2:label"

    def test_what_is_no_utf8_is_named(self, tmp_path: Path) -> None:
        """Bytes that are no UTF-8 are an error that names the file and the first row of their batch."""
        pa = pyarrow()
        texts = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff"))
        folder = saved(tmp_path, {"text": texts, "label": [0]})
        with pytest.raises(CorpusError, match="cannot be read") as caught:
            read_texts(folder, EMOTIONS)
        assert "data-00000-of-00001.arrow:1:" in caught.value.field

    @pytest.mark.parametrize(
        ("files", "said"),
        [
            ({}, r"neither state\.json nor"),
            ({"dataset_dict.json": '{"splits": ["train"]}'}, "name one of these"),
            ({"state.json": "{"}, "not JSON"),
            ({"state.json": '{"_data_files": [{}]}'}, "names no files"),
            ({"state.json": '{"_data_files": [{"filename": "gone.arrow"}]}'}, "cannot be read"),
            ({"a.parquet": "no table"}, "cannot be read"),
        ],
    )
    def test_a_bad_folder_is_named(self, tmp_path: Path, files: dict[str, str], said: str) -> None:
        """A folder that holds no dataset, or a broken one, says what it lacks."""
        pyarrow()
        for name, content in files.items():
            write(tmp_path / name, content)
        with pytest.raises(CorpusError, match=said) as caught:
            read_texts(tmp_path, EMOTIONS)
        assert caught.value.field.startswith(str(tmp_path))

    def test_without_pyarrow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where pyarrow is missing, the error says how to get it."""
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(SetupError, match="pip install pyarrow"):
            read_texts(tmp_path, EMOTIONS)
