"""A cap: keeps a model's projection onto a family's direction below a ceiling while it replies.

    with cap(model, "steering.json", "warmth", tap=tap), tap.requests(requests):
        model.generate(**inputs)

Nobody calls it unless asked; nothing is capped by default. It reads the file in which an intervention report hands on
what may be steered, and refuses what that report found no safe window for. A row above the ceiling is moved straight
down to it, along the direction alone: h - max(0, h . d - ceiling) d (activation capping: Lu et al., The Assistant Axis,
arXiv 2601.10387). Only generated tokens are touched: those that pass one a request on a cache that holds others.
So without a key-value cache nothing is capped, nor when several tokens pass at once (assisted generation, continuous
batching); a prompt that is fed in parts has to end with a part of more than one token.

An error in a hook never reaches the model: the cap is off from then on, and says so.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import torch
from torch import nn

from monitor.capture.identity import weights_fingerprint
from monitor.capture.passes import decoder_blocks
from monitor.capture.steering_file import CappedLayer, Ceiling, read_ceiling
from monitor.errors import ModelMismatchError, SteeringError
from monitor.wire.v1 import ingest_pb2

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from monitor.capture.transformers import TransformersTap

_LOG = logging.getLogger("affect_monitor.capture")
_CACHES = ("cache", "past_key_values")
"""What models call the key-value cache: transformers 5.24 and later, and before."""


def cap(
    model: nn.Module, steering: Path | str, family: str, at: str = "0.99", tap: TransformersTap | None = None
) -> Cap:
    """Caps a model until the cap is closed.

    Args:
        model: The model whose ``forward`` runs the batch, such as LlamaForCausalLM.
        steering: The steering file of an intervention report on this model.
        family: Family to cap.
        at: The ceiling: a quantile of the reference for which the file has one.
        tap: Capture on the same model, between two batches: tells the sidecar, with the end of every request, what was
            taken away.

    Raises:
        ValueError: The tap is in the middle of a batch.
        SteeringError: The file cannot be used, has no such family or level, calls the family unsafe, or names layers
            that the model does not have.
        ModelMismatchError: It was made for other weights, or another width.
    """
    file = Path(steering)
    ceiling = read_ceiling(file, family, at)
    _check(file, family, ceiling, model)
    capped = Cap(model, family, at, ceiling.layers, tap)
    told = "the sidecar is told of every token touched" if tap else "without a tap nobody is told what it touches"
    places = ", ".join(str(each.layer) for each in ceiling.layers)
    _LOG.warning("cap on: %s is kept below %s of the reference at layers %s; %s", family, at, places, told)
    return capped


def _check(file: Path, family: str, ceiling: Ceiling, model: nn.Module) -> None:
    """Asks for the model that the ceiling was measured on."""
    config: Any = model.config
    depth = len(decoder_blocks(model))
    if config.hidden_size != ceiling.hidden_size:
        raise ModelMismatchError(
            f"{file}: model.hidden_size",
            f"{ceiling.hidden_size} where the model has {config.hidden_size}; it was made for {ceiling.model_name}",
        )
    beyond = [each.layer for each in ceiling.layers if not 1 <= each.layer <= depth]
    if beyond:
        raise SteeringError(
            f"{file}: families.{family}.cap.layers", f"{beyond} must lie within 1..{depth}, the blocks of this model"
        )
    if weights_fingerprint(model) != ceiling.weights_fingerprint:
        raise ModelMismatchError(
            f"{file}: model.weights_fingerprint",
            f"is not that of this model, but of {ceiling.model_name}; evaluate interventions on these weights",
        )


class Chosen(NamedTuple):
    """Which cap is wanted, in the order in which ``cap`` takes it.

    Attributes:
        steering: The steering file.
        family: Family to cap.
        at: The ceiling.
    """

    steering: Path
    family: str
    at: str


@final
class Cap:
    """A cap at work, made by ``cap``; a context manager.

    Args:
        model: The model.
        family: Family that is capped.
        at: Name of the ceiling.
        layers: Where it is capped, and how.
        tap: Capture on the same model.
    """

    def __init__(
        self, model: nn.Module, family: str, at: str, layers: tuple[CappedLayer, ...], tap: TransformersTap | None
    ) -> None:
        if tap is not None:
            tap.add(self)
        self._family, self._at, self._tap = family, at, tap
        self._on, self._replying = True, False
        self._taken: dict[int, torch.Tensor] = {}
        """What was taken in this pass, by layer: [batch, tokens]."""
        self._tally = _Tally(0)
        self._arguments = tuple(inspect.signature(model.forward).parameters)
        blocks = decoder_blocks(model)
        untraced: Any = torch.compiler.disable
        self._handles = [
            model.register_forward_pre_hook(untraced(self._before), with_kwargs=True),
            model.register_forward_hook(untraced(self._after), always_call=True),
            # First, so that whoever looks at a layer sees what the model goes on with.
            *(
                blocks[each.layer - 1].register_forward_hook(
                    partial(self._block, each, torch.tensor(each.direction, dtype=torch.float32)), prepend=True
                )
                for each in layers
            ),
        ]
        self._layers = len(layers)

    @property
    def on(self) -> bool:
        """Whether it caps: until it is closed or has failed."""
        return self._on

    def close(self) -> None:
        """Takes the hooks out of the model."""
        self._on = False
        for handle in self._handles:
            handle.remove()
        if self._tap is not None:
            self._tap.remove(self)

    def __enter__(self) -> Cap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what the tap asks --------------------------------------------------------------------------------------------

    def begin(self, requests: int) -> None:
        """A batch of so many requests begins."""
        self._tally = _Tally(requests)

    def count(self, fresh: NDArray[np.bool_]) -> None:
        """Counts the pass that has just run.

        Args:
            fresh: Tokens that were new and no padding, [batch, tokens].
        """
        if self._taken:
            self._tally.add(torch.stack([each.cpu() for each in self._taken.values()]).numpy(), fresh)

    def intervention(self, row: int) -> ingest_pb2.Intervention:
        """What was done to one request of the batch."""
        return ingest_pb2.Intervention(family=self._family, at=self._at, layers=self._layers, **self._tally.of(row))

    # -- in the model -------------------------------------------------------------------------------------------------

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._taken = {}
        try:
            given = {**dict(zip(self._arguments, args, strict=False)), **kwargs}
            self._replying = self._on and _is_reply(given)
        except Exception as error:  # noqa: BLE001 - the model must not see it
            self._failed(error)

    def _after(self, *_: object) -> None:
        # Also after a pass that failed: a part of the model may be run by itself later on.
        self._replying = False

    def _block(
        self, capped: CappedLayer, direction: torch.Tensor, _module: nn.Module, _args: tuple[Any, ...], output: Any
    ) -> Any:
        if not self._replying:
            return None
        try:
            hidden = output[0] if isinstance(output, tuple) else output
            kept, self._taken[capped.layer] = held_down(hidden, direction, capped.centre + capped.ceiling)
        except Exception as error:  # noqa: BLE001 - the model must not see it
            self._failed(error)
            return None
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    def _failed(self, error: Exception) -> None:
        # For good: a reply that is capped now and then is neither what was measured nor what the model says by itself.
        self._on = self._replying = False
        _LOG.error("the cap on %s failed and is off from now on; serving goes on", self._family, exc_info=error)
        if self._tap is not None:
            with suppress(Exception):
                self._tap.failed()


def held_down(hidden: torch.Tensor, direction: torch.Tensor, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that reach no further along a direction than a limit, and what was taken from each.

    Args:
        hidden: [..., hidden]; rows that are not finite stay as they are.
        direction: [hidden], of length one.
        limit: Greatest row . direction.
    """
    along = direction.to(hidden.device)
    taken = torch.nan_to_num((hidden.float() @ along - limit).clamp(min=0), 0.0, 0.0, 0.0)
    return hidden - (taken[..., None] * along).to(hidden.dtype), taken


def _is_reply(given: dict[str, Any]) -> bool:
    """Whether a pass is of generated tokens: one a request, on a cache that holds others."""
    ids = given.get("input_ids")
    caches = [given[name] for name in _CACHES if given.get(name) is not None]
    return ids is not None and ids.shape[-1] == 1 and any(cache.get_seq_length() > 0 for cache in caches)


class _Tally:
    """What was done to the requests of a batch, a column each."""

    def __init__(self, requests: int) -> None:
        self._tokens = np.zeros(requests, np.int64)
        self._touched = np.zeros(requests, np.int64)
        self._times = np.zeros(requests, np.int64)
        self._sum = np.zeros(requests)
        self._largest = np.zeros(requests)

    def add(self, taken: NDArray[np.float32], fresh: NDArray[np.bool_]) -> None:
        """Adds a pass: what was taken, [layers, batch, tokens], and which tokens count, [batch, tokens]."""
        taken = np.where(fresh, taken, 0)
        touched = taken > 0
        self._tokens += fresh.sum(1)
        self._touched += touched.any(0).sum(1)
        self._times += touched.sum((0, 2))
        self._sum += taken.sum((0, 2), dtype=np.float64)
        np.maximum(self._largest, taken.max((0, 2)), out=self._largest)

    def of(self, row: int) -> dict[str, Any]:
        """One request, as fields of an intervention."""
        return {
            "tokens": int(self._tokens[row]),
            "touched": int(self._touched[row]),
            "largest": float(self._largest[row]),
            "mean": float(self._sum[row] / max(1, self._times[row])),
        }
