"""The README's recipes for servers of one's own, run as they stand there, but for the paths."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from chat_model import make_model, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from double import SidecarDouble

README = Path(__file__).parents[2] / "README.md"
PLACES = {'"/models/assistant"': '"{folder}"', "[18, 22]": "[0, 1]", '"unix:///run/affect/ingest.sock"': '"{address}"'}
MESSAGES = [{"role": "user", "content": "Hello"}]
PROMPT = len("<user\nHello>\n<assistant\n")
TOKENS = 64


def block(heading: str) -> str:
    """The first block of Python under a heading of the README."""
    section = re.search(rf"^#+ {heading}$(.*?)^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert section is not None, f"the README has no block of Python under {heading}"
    return section[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny chat model."""
    place = tmp_path_factory.mktemp("assistant")
    make_model().save_pretrained(place)
    make_tokenizer().save_pretrained(place)
    return place


@pytest.fixture
def recipe(folder: Path, address: str, tmp_path: Path) -> Callable[[str], ModuleType]:
    """Makes a module of what all recipes share and one of them."""

    def make(heading: str) -> ModuleType:
        text = block("Recipes") + block(heading)
        for theirs, ours in PLACES.items():
            text = text.replace(theirs, ours.format(folder=folder, address=address))
        file = tmp_path / "recipe.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location("recipe", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return make


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """A module in the place of a framework that is not installed."""
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def assert_captured(double: SidecarDouble, external_id: str = "", session_id: str = "") -> None:
    """One request arrived whole, with what the recipe says of it."""
    double.wait(lambda: double.events("end"))
    ((name, start),) = double.events("start")
    assert (dict(start.labels), start.external_id, start.session_id) == (
        {"app": "service-desk"},
        external_id,
        session_id,
    )
    assert start.prompt_length == PROMPT
    # The last sampled token never passes through the model.
    assert sorted(double.rows()[name]) == list(range(PROMPT + TOKENS - 1))


@pytest.mark.parametrize("heading", ["KServe", "Ray Serve", "Triton"])
def test_is_five_lines(heading: str) -> None:
    """What capture adds to a server is five lines."""
    assert block(heading).count("# capture\n") == 5


def test_kserve(
    monkeypatch: pytest.MonkeyPatch, sidecar: Callable[..., SidecarDouble], recipe: Callable[[str], ModuleType]
) -> None:
    """A predictor of KServe answers, and its request reaches the sidecar by KServe's own id."""
    if find_spec("kserve") is None:

        class Model:
            def __init__(self, name: str) -> None:
                self.name, self.ready = name, False

            async def __call__(self, body: Any, headers: dict[str, str]) -> Any:
                return self.predict(body, headers)  # type: ignore[attr-defined]

            def stop(self) -> None:
                self.ready = False

        stand_in(monkeypatch, "kserve", Model=Model)
    double = sidecar()
    assistant: Any = recipe("KServe").Assistant("assistant")
    assert assistant.load()
    answer = asyncio.run(assistant({"instances": [{"messages": MESSAGES}]}, {"x-request-id": "theirs"}))
    # Newer versions of KServe hand headers back beside the answer.
    read = answer[0] if isinstance(answer, tuple) else answer
    assert [type(text) for text in read["predictions"]] == [str]
    assistant.stop()
    assert not assistant.ready
    assert_captured(double, external_id="theirs")


def test_ray_serve(
    monkeypatch: pytest.MonkeyPatch, sidecar: Callable[..., SidecarDouble], recipe: Callable[[str], ModuleType]
) -> None:
    """A deployment of Ray Serve answers one request at a time, and closes the stream when its replica goes."""
    if find_spec("ray") is None:

        class Deployment:
            def __init__(self, func_or_class: type, max_ongoing_requests: int) -> None:
                self.func_or_class, self.max_ongoing_requests = func_or_class, max_ongoing_requests

            def bind(self) -> Deployment:
                return self

        def deployment(max_ongoing_requests: int) -> Callable[[type], Deployment]:
            return lambda made: Deployment(made, max_ongoing_requests)

        serve = SimpleNamespace(deployment=deployment)
        stand_in(monkeypatch, "ray", serve=serve)
    double = sidecar()
    deployed = recipe("Ray Serve").Assistant
    assert deployed.max_ongoing_requests == 1

    async def read() -> dict[str, Any]:
        return {"messages": MESSAGES, "session_id": "s"}

    assistant = deployed.func_or_class()
    assert isinstance(asyncio.run(assistant(SimpleNamespace(json=read))), str)
    assistant.__del__()
    assert_captured(double, session_id="s")


def test_triton(
    monkeypatch: pytest.MonkeyPatch, sidecar: Callable[..., SidecarDouble], recipe: Callable[[str], ModuleType]
) -> None:
    """A Python model of Triton, whose utilities are only found inside of Triton, answers every request of a call."""

    class Tensor:
        def __init__(self, name: str, array: Any) -> None:
            self.name, self._array = name, array

        def as_numpy(self) -> Any:
            return self._array

    stand_in(
        monkeypatch,
        "triton_python_backend_utils",
        Tensor=Tensor,
        InferenceResponse=lambda output_tensors: output_tensors,
        get_input_tensor_by_name=lambda request, name: request.tensors[name],
    )
    double = sidecar()
    model = recipe("Triton").TritonPythonModel()
    model.initialize({"model_name": "assistant"})
    messages = Tensor("MESSAGES", np.array([json.dumps(MESSAGES).encode()], dtype=object))
    asked = SimpleNamespace(tensors={"MESSAGES": messages}, request_id=lambda: "theirs")
    ((output,),) = model.execute([asked])
    assert output.name == "REPLY"
    assert isinstance(output.as_numpy().item(), bytes)
    model.finalize()
    assert_captured(double, external_id="theirs")
