"""A share of the requests: chosen by the operator, or by what an overloaded engine can still send."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from engine import Turn, make_turn
from sender import Sender, account

from monitor.wire.sampling import position_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from monitor.probes.bank import Bank
    from monitor.sidecar.server import Sidecar

ROW = 2 * 16 * 4


@pytest.fixture
def sender(address: str, serve: Any, small_bank: Bank) -> Iterator[Callable[..., Sender]]:  # noqa: ARG001 - order of ends
    """Makes clients."""
    made: list[Sender] = []

    def make(**options: Any) -> Sender:
        made.append(Sender(address, small_bank, **options))
        return made[-1]

    yield make
    for each in made:
        each.client.close(0.2)


@pytest.fixture(scope="module")
def many(small_bank: Bank) -> list[Turn]:
    """200 turns with the same rows."""
    one = make_turn(small_bank, "one")
    return [Turn(f"request {n}", one.token_ids, one.rows, one.prompt_length) for n in range(200)]


def page(sidecar: Sidecar) -> dict[tuple[str, ...], float]:
    """All samples of a sidecar's page."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in sidecar.metrics.collect()
        for sample in family.samples
    }


class TestSamplingRate:
    """``sampling_rate``."""

    def test_scores_the_sample_and_tells_of_the_others(self, serve: Any, sender: Any, many: list[Turn]) -> None:
        """Requests below the rate are seen whole, the others are finished unseen and spoil no coverage."""
        sidecar, sending = serve(sampling_rate=0.3), sender()
        assert sending.client.wait_connected(60)

        for first in range(0, len(many), 20):
            sending.send(many[first : first + 20], step=50)
        found = {turn.request_id: turn for turn in sending.ended(many)}

        chosen = {turn.request_id for turn in many if position_of(turn.request_id) < 0.3}
        length, count = many[0].length, page(sidecar)
        assert 30 < len(chosen) < 90
        for name, turn in found.items():
            seen = name in chosen
            gaps = {} if seen else {"sampled_out": length}
            assert account(turn) == {"total": length, "scored": length if seen else 0, **gaps}
            assert list(turn.marks) == ([] if seen else ["sampled_out"])
            assert not turn.alerts
        out = len(many) - len(chosen)
        assert sending.client.counters.sampled_out_requests == out
        assert sending.client.counters.dropped_tokens == sending.client.counters.dropped_requests == 0
        assert count["affect_tokens_scored_total",] == length * len(chosen)
        assert count["affect_tokens_missing_total", "sampled_out"] == length * out
        assert count["affect_turns_total", "desk"] == len(many)
        assert count["affect_turns_unjudged_total", "desk", "sampled_out"] == out
        assert count["affect_turns_unjudged_total", "desk", "low_coverage"] == 0
        assert count["affect_turn_coverage_ratio_bucket", "desk", "+Inf"] == len(chosen)

    def test_is_the_same_at_every_rank(self, serve: Any, sender: Any, many: list[Turn]) -> None:
        """Two ranks of an engine that send the same requests choose the same of them."""
        serve(sampling_rate=0.5)
        ranks = [sender(hello={"data_parallel_rank": rank}) for rank in range(2)]
        for sending in ranks:
            assert sending.client.wait_connected(60)
            sending.send(many[:40], step=50)

        scored = [[turn.scored_tokens for turn in sending.ended(many[:40])] for sending in ranks]

        assert scored[0] == scored[1]
        assert {0, many[0].length} == set(scored[0])


class TestOverload:
    """An engine that makes more rows than its queue and the sidecar take."""

    def test_drops_whole_turns_by_position_and_tells_of_every_token(
        self, serve: Any, sender: Any, many: list[Turn]
    ) -> None:
        """While the sidecar is held up turns with high positions go first; all tokens are told, whichever go."""
        sidecar = serve(credit_bytes=1 << 16)
        sending = sender(queue_bytes=400 * ROW)
        assert sending.client.wait_connected(60)

        with sidecar.pipeline._lock:
            for first in range(0, len(many), 10):
                sending.send(many[first : first + 10], step=8)
        found = {turn.request_id: turn for turn in sending.ended(many)}

        counters, length, count = sending.client.counters, many[0].length, page(sidecar)
        accounts = {name: account(turn) for name, turn in found.items()}
        assert {each["total"] for each in accounts.values()} == {length}
        assert {reason for each in accounts.values() for reason in each} == {"total", "scored", "dropped"}
        assert counters.dropped_requests > 0
        assert counters.errors == counters.faults == 0
        scored = sum(each["scored"] for each in accounts.values())
        dropped = sum(each.get("dropped", 0) for each in accounts.values())
        assert scored + dropped == length * len(many)
        assert (counters.tokens, counters.dropped_tokens) == (scored, dropped)
        assert count["affect_tokens_scored_total",] == scored
        assert count["affect_tokens_missing_total", "dropped"] == dropped
        assert count["affect_tokens_missing_total", "untold"] == 0

    def test_gives_up_the_highest_positions(self, serve: Any, sender: Any, small_bank: Bank) -> None:
        """Of turns under way, those that are given up all stand behind those that are kept, and these are whole."""
        sidecar = serve(credit_bytes=1 << 16)
        turns = [make_turn(small_bank, f"under way {n}", words=40, seed=n) for n in range(20)]
        total = sum(turn.length for turn in turns)
        sending = sender(queue_bytes=int(total * 0.7) * ROW)
        assert sending.client.wait_connected(60)
        sending.start(*turns)
        sending.flush()

        with sidecar.pipeline._lock:
            for begin in range(0, turns[0].length, 4):
                sending.rows(*[(turn, begin, min(turn.length, begin + 4)) for turn in turns])
            sending.end(*turns)
        found = {turn.request_id: turn for turn in sending.ended(turns)}

        kept = [position_of(name) for name, turn in found.items() if turn.coverage == 1]
        given_up = [position_of(name) for name, turn in found.items() if turn.coverage < 1]
        assert kept
        assert given_up
        assert max(kept) < min(given_up)
        assert all(account(turn)["total"] == turns[0].length for turn in found.values())

    @pytest.mark.parametrize("transport", [{}, {"shared_memory_bytes": 1 << 16}, {"projection": True}], ids=str)
    def test_accounts_are_exact_while_it_comes_and_goes(
        self, transport: dict[str, Any], serve: Any, sender: Any, many: list[Turn]
    ) -> None:
        """A sidecar that stops and goes under many small steps gets an exact account of every request."""
        sidecar, stop = serve(credit_bytes=1 << 16, **transport), threading.Event()
        sending = sender(queue_bytes=300 * ROW, dtype=torch.bfloat16)
        assert sending.client.wait_connected(60)

        def hinder() -> None:
            while not stop.is_set():
                with sidecar.pipeline._lock:
                    stop.wait(0.02)
                stop.wait(0.005)

        hindering = threading.Thread(target=hinder)
        hindering.start()
        for first in range(0, len(many), 25):
            sending.send(many[first : first + 25], step=3)
        stop.set()
        hindering.join()

        accounts = [account(turn) for turn in sending.ended(many)]
        assert {each["total"] for each in accounts} == {many[0].length}
        assert {reason for each in accounts for reason in each} <= {"total", "scored", "dropped"}
        assert sum(each["scored"] for each in accounts) == sending.client.counters.tokens
        assert sidecar.metrics.value("affect_tokens_scored_total") == sending.client.counters.tokens
