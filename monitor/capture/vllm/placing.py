"""Puts the taps into a worker's model when it has been loaded, and before it runs or is compiled."""

from __future__ import annotations

import logging
from typing import Any

import torch

from monitor.capture.breaker import Breaker
from monitor.capture.vllm import compat
from monitor.capture.vllm.tap import place_taps

_LOG = logging.getLogger("affect_monitor.capture")


class Taps:
    """The taps of this process's model.

    Attributes:
        rows: What they write into: [tokens + kept, layers, hidden]. None where there are none, or not all of them.
    """

    def __init__(self) -> None:
        self._breaker = Breaker()
        self.rows: torch.Tensor | None = None

    def before_loading(self, config: Any) -> None:
        """Keeps graphs with taps apart from graphs without, and from those with others."""
        with self._breaker.guard("preparing for taps"):
            if compat.is_tapped(config):
                compat.mark_graphs(config, {"affect_monitor_taps": compat.layers(config)})

    def after_loading(self, worker: Any) -> None:
        """Places the taps."""
        self.rows = None
        with self._breaker.guard("placing the taps"):
            config = worker.vllm_config
            if compat.is_tapped(config):
                compat.check_tappable(config)
                self.rows = self._place(worker, compat.layers(config))

    def _place(self, worker: Any, layers: list[int]) -> torch.Tensor | None:
        model, config = worker.get_model(), worker.vllm_config
        tokens, kept = compat.step_room(config)
        shape = tokens + kept, len(layers), config.model_config.get_hidden_size()
        rows = torch.zeros(shape, dtype=config.model_config.dtype, device=next(model.parameters()).device)
        # Tensor-parallel ranks run one graph: those that send nothing have the taps all the same.
        placed = place_taps(compat.blocks(config, model), layers, rows[:tokens])
        compat.count_memory(worker, rows.nbytes)
        if placed == layers:
            return rows
        if placed:
            _LOG.error(
                "layers %s are on this pipeline stage and the others of %s are not: nothing is captured, serving goes "
                "on; name layers of one stage",
                placed, layers,
            )  # fmt: skip
        return None


TAPS = Taps()
