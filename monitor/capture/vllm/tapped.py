"""Finds the rows that a model's taps have written by the cache slots of their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from monitor.capture.copies import Taken, to_device

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from monitor.capture.plan import StepPlan

_NOBODY = -1
_UNWRITTEN = {2: (torch.int16, 0x7FA1), 4: (torch.int32, 0x7FA10001)}
"""By the bytes of a number: bits, read as an integer, of a NaN that no arithmetic makes."""


class TappedRows:
    """Rows of the step that has run, and rows of earlier steps that may still become final.

    A step writes its rows in the order of its batch, which is known to the engine's device alone, as the cache slot of
    each token. All is looked up there, and the engine never waits: the device keeps where the newest row of each slot
    lies, and whose each row is. What was overwritten, or never written, is found to be so and told as missing.

    For each step ``begin``, then ``take``; after a step for which one of these was left out or failed, or whose slots
    were not known, rows of earlier steps are not trusted.

    Args:
        rows: [tokens + kept, layers, hidden]; taps write into the first, and the others are for rows to be kept.
        tokens: Most tokens of a step.
        slots: Slots of the cache.
    """

    def __init__(self, rows: torch.Tensor, tokens: int, slots: int) -> None:
        self.hidden_size = int(rows.shape[2])
        self._rows = rows
        kind, self._unwritten = _UNWRITTEN[rows.element_size()]
        self._first = rows[0].view(kind)[:, 0]
        """Beginning of the first token's row of each layer, as integers."""
        self._tokens = tokens
        self._slots = slots
        self._owners = torch.full((len(rows),), _NOBODY, device=rows.device)
        """Slot of each row."""
        self._places = torch.zeros(slots + 1, dtype=torch.int64, device=rows.device)
        """Place of the newest row of each slot; the last is for tokens that are padding."""
        self._next = 0
        self._begun = self._followed = False
        self._sound = True
        self._over: tuple[torch.Tensor, torch.Tensor] | None = None

    def forget(self) -> None:
        """Steps may have gone by unseen: what was kept may be out of date."""
        self._sound = False

    def begin(self, plan: StepPlan, slots: torch.Tensor | None) -> None:
        """Makes ready for a step, before the model runs.

        Args:
            plan: Of this step. Rows of requests that are over are taken now: their slots may be another's in it.
            slots: Slot of each of its tokens, -1 for padding; None where they are not known.
        """
        if not self._sound:
            self._owners[self._tokens :] = _NOBODY
        self._sound = self._followed = False
        self._owners[: self._tokens] = _NOBODY
        # A tap that does not run in this step leaves these as they are.
        self._first[:] = self._unwritten
        self._over = self._find(plan.slots[: plan.over]) if plan.over else None
        if slots is not None:
            self._follow(slots)
        self._begun = True

    def take(self, plan: StepPlan) -> Taken | None:
        """Takes the rows of a plan after its step has run, and keeps those that may become final later."""
        if not self._begun:
            self._owners[:] = _NOBODY
            self._over = self._find(plan.slots[: plan.over]) if plan.over else None
        elif plan.runs and not self._followed:
            self._owners[self._tokens :] = _NOBODY
        self._begun = False
        wanted = plan.slots[plan.over :]
        pending = plan.pending[: len(self._rows) - self._tokens]
        rows, there = self._find(np.concatenate([wanted, pending]))
        if len(pending):
            self._keep(pending, rows[len(wanted) :], there[len(wanted) :])
        self._sound = True
        if not len(plan.slots):
            return None
        rows, there = rows[: len(wanted)], there[: len(wanted)]
        if self._over is not None:
            rows, there = torch.cat([self._over[0], rows]), torch.cat([self._over[1], there])
        return Taken(rows, there)

    def _follow(self, slots: torch.Tensor) -> None:
        slots = slots[: self._tokens]
        slots = torch.where((slots >= 0) & (slots < self._slots), slots, _NOBODY)
        self._owners[: len(slots)] = slots
        self._places[slots] = torch.arange(len(slots), device=slots.device)
        self._followed = True

    def _find(self, slots: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the newest rows of some slots, and which of them are there."""
        if len(slots) and slots.max() >= self._slots:
            raise IndexError(f"slot {slots.max()} lies beyond the {self._slots} of the cache")
        wanted = to_device(slots, self._rows.device)
        places = self._places[wanted]
        written = (places >= self._tokens) | (self._first != self._unwritten).all()
        return self._rows[places], written & (self._owners[places] == wanted)

    def _keep(self, slots: NDArray[np.int64], rows: torch.Tensor, there: torch.Tensor) -> None:
        """Keeps rows where others have been kept longest."""
        room = len(self._rows) - self._tokens
        places = to_device((self._next + np.arange(len(slots))) % room + self._tokens, self._rows.device)
        self._next = (self._next + len(slots)) % room
        of = to_device(slots, self._rows.device)
        self._rows[places] = rows
        self._owners[places] = torch.where(there, of, _NOBODY)
        self._places[of] = torch.where(there, places, self._places[of])
