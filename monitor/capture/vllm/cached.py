"""Takes rows from the cache that vLLM keeps beside its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.capture.copies import Taken, to_device

if TYPE_CHECKING:
    import torch

    from monitor.capture.plan import StepPlan


class CachedRows:
    """Rows in the paged cache of ``extract_hidden_states``.

    Args:
        cache: [blocks, layers, block_size, hidden], on the engine's device.
    """

    def __init__(self, cache: torch.Tensor) -> None:
        self._cache = cache
        self.hidden_size = int(cache.shape[3])

    def take(self, plan: StepPlan) -> Taken | None:
        """Copies of the rows at the slots of a plan, on the engine's device."""
        if not len(plan.slots):
            return None
        places = to_device(plan.slots, self._cache.device)
        size = self._cache.shape[2]
        return Taken(self._cache[places // size, :, places % size])
