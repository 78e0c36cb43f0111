"""SGLang without a GPU: the modules that capture hooks are the real ones, all around them are stand-ins.

Importing SGLang as it is takes CUDA, and gigabytes of packages. Its requests, batches and the reading of their results
are plain Python; what they import and hardly use gets stood in for by modules in which every name exists.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REAL = frozenset(
    {
        "sglang.version",
        "sglang._version",
        "sglang.srt.constants",
        "sglang.srt.environ",
        "sglang.srt.dllm.mixin.req",
        "sglang.srt.managers.schedule_batch",
        "sglang.srt.managers.scheduler_components.batch_result_processor",
        "sglang.srt.managers.utils",
        "sglang.srt.model_executor.forward_batch_info",
        "sglang.srt.plugins",
        "sglang.srt.plugins.hook_registry",
    }
)
_PACKAGES = ("sglang", "msgspec")


class _Anything(type):
    """A class that can be made, called, subscripted and derived from, and has every attribute."""

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any], **_options: Any) -> _Anything:
        return super().__new__(cls, name, bases, space)

    def __init__(cls, *_args: Any, **_options: Any) -> None:
        super().__init__(cls)

    def __getattr__(cls, name: str) -> Any:
        return _anything(name)

    def __getitem__(cls, _key: Any) -> Any:
        return cls

    def __or__(cls, _other: Any) -> Any:
        return object


def _anything(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)

    def make(cls: Any, *args: Any, **kwargs: Any) -> Any:
        # Used as a decorator, it leaves things as they are.
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else object.__new__(cls)

    space = {
        "__new__": make,
        "__init__": lambda *_args, **_kwargs: None,
        "__call__": lambda _self, decorated: decorated,
        "__getattr__": lambda _self, wanted: _anything(wanted),
    }
    return _Anything(name, (), space)


class _Standin(ModuleType):
    __path__: Sequence[str] = ()

    def __getattr__(self, name: str) -> Any:
        inner = f"{self.__name__}.{name}"
        found = importlib.import_module(inner) if inner in REAL else _anything(name)
        setattr(self, name, found)
        return found


class _Finder(MetaPathFinder, Loader):
    """Finds the real modules in a folder, and stand-ins for all others of their packages."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] not in _PACKAGES:
            return None
        if name not in REAL:
            return ModuleSpec(name, self, is_package=True)
        place = self._folder.joinpath(*name.split("."))
        if place.is_dir():
            return spec_from_file_location(name, place / "__init__.py", submodule_search_locations=[str(place)])
        return spec_from_file_location(name, place.with_suffix(".py"))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Standin(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """A stand-in has nothing in it."""


@contextmanager
def sglang_with_standins(folder: Path) -> Iterator[None]:
    """Makes ``import sglang`` find the files in a folder, until the block ends."""
    finder = _Finder(folder)
    sys.meta_path.insert(0, finder)
    try:
        _configure()
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
            del sys.modules[name]


def _configure() -> None:
    """Settings as those of ``--enable-return-aux-hidden-states --speculative-algorithm EAGLE3``, and no others."""
    context: Any = importlib.import_module("sglang.srt.runtime_context")
    features = SimpleNamespace(
        aux_hidden_state_capture="eagle3",
        return_hidden_states_mode="full",
        enable_encoder_swa_bounded_replay=False,
    )
    mamba = SimpleNamespace(enable_mamba_extra_buffer=False, enable_mamba_extra_buffer_lazy=False)
    executing = SimpleNamespace(features=features, mamba=mamba, dllm=SimpleNamespace(dllm_algorithm=None))
    parallel = SimpleNamespace(attn_tp_rank=0, attn_cp_rank=0, attn_dp_rank=0, attn_dp_size=1, dp_rank=None)
    bags: dict[str, Any] = {
        "exec": executing,
        "parallel": parallel,
        "disagg": SimpleNamespace(disaggregation_decode_enable_offload_kvcache=False, enable_pdmux=False),
        "memory": SimpleNamespace(enable_hisparse=False),
        "observability": SimpleNamespace(enable_metrics=False),
        "serving": SimpleNamespace(served_model_name="tiny", port=30000, chat_template=None),
        "spec": SimpleNamespace(speculative_algorithm=None),
    }
    for name, bag in bags.items():
        setattr(context, f"get_{name}", lambda bag=bag: bag)
