"""Tests of the options that make SGLang send hidden states, and of their names in SGLang's own files."""

from __future__ import annotations

import re

import needs
import pytest

from monitor.attach.sglang_flags import NAMES, with_sglang_capture
from monitor.errors import SetupError


def test_capture_stands_behind_the_users_own() -> None:
    """A bank's layers less one, since SGLang counts the block whose output it keeps."""
    added = ["--enable-return-aux-hidden-states", "--speculative-algorithm", "EAGLE3"]
    ids = ["--return-aux-hidden-state-layer-ids", "15", "19"]
    given = ["--model-path", "m", "--disaggregation-mode", "null", "--pp-size", "1"]
    assert with_sglang_capture(given, [16, 20]) == [*given, *added, *ids]


@pytest.mark.parametrize(
    ("arguments", "field", "told"),
    [
        (["--speculative-algorithm", "EAGLE"], "--speculative-algorithm", "drop it"),
        (["--speculative-algo", "NGRAM"], "--speculative-algo", "drop it"),
        (["--speculative-draft-model-path=d"], "--speculative-draft-model-path", "drop it"),
        (["--enable-pdmux"], "--enable-pdmux", "drop it"),
        (["--disaggregation-mode", "prefill"], "--disaggregation-mode", "serve both in one"),
        (["--dllm-algorithm", "LowConfidence"], "--dllm-algorithm", "no token at a time"),
        (["--lora-paths", "a", "b"], "--lora-paths", "not captured"),
        (["--enable-lora"], "--enable-lora", "not captured"),
        (["--pp-size", "2"], "--pp-size", "use tensor parallelism"),
        (["--pipeline-parallel-size=2"], "--pp-size", "use tensor parallelism"),
    ],
)
def test_what_is_not_captured_is_refused(arguments: list[str], field: str, told: str) -> None:
    """By the option, in whichever way SGLang takes it, with what to do."""
    with pytest.raises(SetupError, match=told) as raised:
        with_sglang_capture(["--model-path", "m", *arguments], [16])
    assert raised.value.field == field


@pytest.mark.parametrize("name", NAMES)
def test_names_are_sglangs_own(name: str) -> None:
    """Every option is one of SGLang's fields, or said to be another name of one."""
    folder = needs.sglang_source() / "sglang" / "srt" / "arg_groups" / "fields"
    fields = "\n".join(file.read_text() for file in sorted(folder.glob("*.py")))
    field = name.removeprefix("--").replace("-", "_")
    assert re.search(rf"^    {field}: A\[", fields, re.MULTILINE) or f'aliases=["{name}"]' in fields
