"""The hidden states of one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monitor.capture.copies import Taken, to_device

if TYPE_CHECKING:
    import torch

    from monitor.capture.plan import StepPlan


class BatchRows:
    """Rows of the batch whose result is being read.

    Args:
        layers: Layers in each row.
        hidden_size: Width of one layer.
    """

    def __init__(self, layers: int, hidden_size: int) -> None:
        self._layers = layers
        self.hidden_size = hidden_size
        self._hidden: torch.Tensor | None = None

    def hold(self, hidden: torch.Tensor | None) -> None:
        """Holds the rows of a batch, [tokens, layers * hidden], or lets go of them."""
        self._hidden = hidden

    def take(self, plan: StepPlan) -> Taken | None:
        """The rows at the slots of a plan, if it has any: copies, or a view of what nobody will write to.

        Raises:
            ValueError: The batch has no rows, or rows of another width than that of the layers.
        """
        slots = plan.slots
        if not len(slots):
            return None
        hidden, width = self._hidden, self._layers * self.hidden_size
        if hidden is None or hidden.dim() != 2 or hidden.shape[1] != width:  # noqa: PLR2004 - [tokens, width]
            found = None if hidden is None else tuple(hidden.shape)
            raise ValueError(f"hidden states are {found} where rows of {self._layers} x {self.hidden_size} should be")
        if hidden.is_pinned() and slots[-1] - slots[0] + 1 == len(slots):
            # SGLang's own copy of this batch: each has one of its own.
            rows = hidden[slots[0] : slots[-1] + 1]
        else:
            # Maybe a buffer of a CUDA graph, which the next replay overwrites: gathered in the order of the stream.
            rows = hidden[to_device(slots, hidden.device)]
        return Taken(rows.view(-1, self._layers, self.hidden_size))
