"""What holds of attach and detach whatever a workload looks like; the shell itself says what a script means."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import yaml
from attach_cases import CASES, POLICY, parsed, workload
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from monitor.attach import Capture
from monitor.attach.capturing import Wanted
from monitor.attach.edits import find
from monitor.attach.files import Configuration, attach_file, detach_file
from monitor.attach.pod import Sidecar

FAST = tuple(phase for phase in Phase if phase not in {Phase.shrink, Phase.explain})
"""Examples of whole files are slow to make smaller, and small as they are."""
# Versions of YAML do not agree on which of the exotic ends of lines are some.
TEXT = st.characters(codec="utf-8", exclude_characters="\x00\x85\u2028\u2029\ufeff", exclude_categories=["Cs"])
WORDS = st.lists(st.text(TEXT, max_size=8))
SPEC = ("spec", "template", "spec")
HOLES = [
    (*SPEC, "volumes"),
    (*SPEC, "initContainers"),
    (*SPEC, "securityContext"),
    ("metadata", "annotations"),
    ("spec", "template", "metadata", "annotations"),
    (*SPEC, "containers", "engine", "env"),
    (*SPEC, "containers", "engine", "volumeMounts"),
]
"""Fields that a workload may lack, or have without a value, or empty."""
LISTS = {"volumes", "initContainers", "env", "volumeMounts"}


def attached(text: str, *, classic: bool = False) -> str:
    """A file after attach."""
    wanted = Wanted(Sidecar("sidecar:1", ""), (18, 22), Capture.CACHE, classic=classic)
    return attach_file(text, wanted, Configuration("", "some-bank", {}, POLICY)).text


@st.composite
def workloads(draw: st.DrawFn) -> dict[str, Any]:
    """A Deployment of vLLM with what its author happened to write."""
    arguments = [f"--custom-{word}" for word in draw(WORDS)]
    container: dict[str, Any] = {"name": "engine", "image": "vllm/vllm-openai:v0.32.0"}
    manifest: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": draw(st.sampled_from(["DaemonSet", "Deployment", "StatefulSet"])),
        "metadata": {"name": "assistant"},
        "spec": {"template": {"metadata": {"labels": {"app": "assistant"}}, "spec": {"containers": [container]}}},
    }
    place = draw(st.sampled_from(["args", "command", "both"]))
    if place == "args":
        container["args"] = ["model", *arguments]
    elif place == "command":
        container["command"] = ["vllm", "serve", "model", *arguments]
    else:
        container |= {"command": ["python3", "-m", "vllm.entrypoints.openai.api_server"], "args": arguments}
    for *above, key in HOLES:
        value = draw(st.sampled_from(["absent", "null", "empty", "theirs"]))
        theirs: Any = [{"name": "theirs", "mountPath": "/theirs"}] if key in LISTS else {"theirs": "1"}
        if value != "absent":
            empty: Any = [] if key in LISTS else {}
            find(manifest, above)[key] = {"null": None, "empty": empty, "theirs": theirs}[value]
    return manifest


@given(workloads(), st.booleans())
@settings(deadline=None, phases=FAST, max_examples=30)
def test_attach_is_done_once_and_undone(manifest: dict[str, Any], classic: bool) -> None:
    """Twice is once; detach gives back what was there; a second detach changes nothing."""
    text = yaml.safe_dump(manifest, allow_unicode=True, sort_keys=False)
    once = attached(text, classic=classic)
    assert attached(once, classic=classic) == once
    assert attached(attached(text, classic=not classic), classic=classic) == once
    undone = detach_file(once).text
    assert parsed(undone) == [manifest]
    assert detach_file(undone).text == undone


def said_by_shell(script: str) -> list[str]:
    """The arguments a script starts vLLM with, as the shell has it."""
    play = f"vllm() {{ printf '%s\\0' \"$@\" >&3; }}\n{script}"
    done = subprocess.run(["sh", "-c", f"{{ {play}\n}} 3>&1 >/dev/null 2>/dev/null"], capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


def in_script(script: str, *, key: str = "args") -> dict[str, Any]:
    """A Deployment that a shell starts by a script."""
    command = ["/bin/sh", "-ec", script]
    container = (
        {"name": "engine", "command": command}
        if key == "command"
        else {"name": "engine", "command": command[:2], "args": command[2:]}
    )
    spec = {"template": {"spec": {"containers": [container]}}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "assistant"}, "spec": spec}


@given(
    st.lists(
        st.text(
            st.characters(
                codec="utf-8", exclude_characters="\x00\r\x85\u2028\u2029\ufeff", exclude_categories=["Cs", "Cc"]
            ),
            min_size=1,
            max_size=10,
        )
    ),
    st.sampled_from(["", "export A=1; ", "set -e\n# vllm serve other\n", "test -d / && exec_=1 ", "sleep 0 & "]),
    st.sampled_from(["", "\n", " 2>&1", " | cat", " > /dev/null 2>&1", " &\nwait", "; true", " # the end", " \\\n"]),
    st.sampled_from([" ", "  ", " \\\n  ", "\t"]),
    st.sampled_from(["args", "command"]),
)
@settings(deadline=None, phases=FAST, max_examples=60)
def test_a_script_means_the_same_and_more(words: list[str], before: str, after: str, between: str, key: str) -> None:
    """The shell hands vLLM the words of before, and behind them those of capture; detach gives the script back."""
    words = [f"+{word}" for word in words]  # no options, among them such as capture refuses
    script = before + between.join(["vllm", "serve", *map(shlex.quote, words)]) + after
    manifest = in_script(script, key=key)
    text = attached(yaml.safe_dump(manifest, allow_unicode=True))
    container = find(parsed(text)[-1], (*SPEC, "containers", "engine"))
    said = said_by_shell(container[key][-1])
    assert said[: len(words) + 1] == said_by_shell(script) == ["serve", *words]
    assert [word for word in said[len(words) + 1 :] if word.startswith("--")] == [
        "--speculative-config",
        "--kv-transfer-config",
    ]
    assert parsed(detach_file(text).text) == [manifest]


@given(st.data())
@settings(deadline=None, phases=FAST, max_examples=8)
def test_any_two_workloads_of_a_file_keep_apart(data: st.DataObject) -> None:
    """A file of several workloads is attached to and detached as each by itself."""
    names = data.draw(
        st.lists(st.sampled_from(sorted(CASES.keys() - {"transformers"})), min_size=2, max_size=3, unique=True)
    )
    texts = [workload(name).read_text() for name in names]
    text = "---\n".join(texts)
    wanted = Wanted(Sidecar("sidecar:1", ""), (18, 22), Capture.TAP)
    done = attach_file(text, wanted, Configuration("affect", "some-bank", {}, None))
    assert len(done.patches) == len(names)
    assert parsed(done.text) == [
        document
        for each in texts
        for document in parsed(attach_file(each, wanted, Configuration("affect", "b", {}, None)).text)
    ]
    assert parsed(detach_file(done.text).text) == parsed(text)
