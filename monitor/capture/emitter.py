"""Takes the rows of a plan and streams them to the sidecar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from monitor.capture.copies import HostCopies

if TYPE_CHECKING:
    from collections.abc import Callable

    from monitor.capture.breaker import Breaker
    from monitor.capture.client import SidecarClient
    from monitor.capture.copies import Taken
    from monitor.capture.plan import StepPlan


class RowSource(Protocol):
    """Where rows are taken from."""

    hidden_size: int

    def take(self, plan: StepPlan) -> Taken | None:
        """Copies of the rows of a plan, if it has any; called once a step, after it has run."""


class Emitter:
    """Streams plans to the sidecar.

    Args:
        source: Where rows are taken from.
        breaker: Keeps errors from the engine.
        client: Gives the client, or none while there is no telling who the model is: nothing is sent then.
    """

    def __init__(self, source: RowSource, breaker: Breaker, client: Callable[[], SidecarClient | None]) -> None:
        self._source = source
        self._breaker = breaker
        self._client = client
        self._copies = HostCopies(self._deliver, breaker)
        self._errors_told = 0

    def emit(self, plan: StepPlan) -> None:
        """Takes the rows of a step that has run and hands them on."""
        taken = None
        if not self._breaker.open and self._client() is not None:
            # What cannot be taken is missing from its turns; their beginnings and ends are told all the same.
            with self._breaker.guard("taking rows"):
                taken = self._source.take(plan)
        self._copies.hand_on(plan, taken)

    def close(self) -> None:
        """Lets go of the copies under way."""
        self._copies.close()

    def _deliver(self, plan: StepPlan, taken: Taken | None) -> None:
        with self._breaker.guard("telling the sidecar"):
            client = self._client()
            if client is None:
                return
            if plan.errors > self._errors_told:
                client.failed(plan.errors - self._errors_told)
                self._errors_told = plan.errors
            if not self._breaker.open:
                for begin in plan.begins:
                    client.start(
                        begin.request_id,
                        begin.prompt_length,
                        labels=begin.labels,
                        session_id=begin.session_id,
                        external_id=begin.external_id,
                    )
            rows = self._whole(plan, taken)
            for gap in plan.missing:
                client.gap(*gap)
            if rows is not None:
                client.rows(plan.request_ids, plan.starts, plan.counts, plan.token_ids, rows)
            for gap in plan.tails:
                client.gap(*gap)
            for end in plan.ends:
                client.end(*end)

    def _whole(self, plan: StepPlan, taken: Taken | None) -> torch.Tensor | None:
        """Rows of the spans of which none is missing; the others are told as missing."""
        if taken is None:
            plan.give_up()
            return None
        if taken.there is None or taken.there.all():
            return taken.rows
        with self._breaker.guard("finding rows"):
            if not taken.there.any():
                raise LookupError("none of the rows of a step is there; have its taps run?")
        left = plan.set_aside(taken.there.numpy())
        return taken.rows[torch.from_numpy(left)] if plan.counts else None
