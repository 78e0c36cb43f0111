"""Capture against the vLLM versions it knows: their own files, and their own engine core around no model.

What needs no device of vLLM runs as it is: configuration, requests, engine core, scheduler, cache manager, connector
factory, the calls of both model runners around a step. The worker computes a digest of the tokens so far in place of a
hidden state, so that a row from a wrong place or time is told from the right one.
"""

from __future__ import annotations

import pytest
from vllm_versions import each_version, passes

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]


@each_version
class TestShape:
    """What capture takes for granted of vLLM's classes."""

    def test_version_is_known(self, version: str) -> None:
        """Capture takes the version for one that it was made for."""
        passes(version, "known")

    def test_hooks(self, version: str) -> None:
        """Every hook that the connector overrides is one of vLLM's, and takes what vLLM passes."""
        passes(version, "hooks")

    def test_completeness(self, version: str) -> None:
        """Nothing that vLLM demands is missing, and its factory finds the connector, registered once or twice."""
        passes(version, "completeness")

    def test_imports(self, version: str) -> None:
        """Everything that capture imports from vLLM is there, what it imports late too."""
        passes(version, "imports")

    def test_requests(self, version: str) -> None:
        """Tokens, labels, session and external id of a request lie where they are read."""
        passes(version, "requests")

    def test_followed(self, version: str) -> None:
        """Plain generation is followed; pooling, embeddings, adapters and inputs that go on arriving are not."""
        passes(version, "followed")

    def test_ends(self, version: str) -> None:
        """Every way in which vLLM ends a request has a reason on the wire."""
        passes(version, "ends")


@each_version
class TestScheduling:
    """Random traffic on the real engine core and scheduler.

    Chunked prompts, prefix-cache hits, drafts accepted and rejected, preemption, aborts, resets of the cache, several
    answers to a prompt; hidden states in the one cache group and in one of their own, first come first served and by
    priority. Every row that is told is the right one, none comes twice, none is missing but the last sampled token's
    and what a preemption discarded for good, no block is read when it is free, and all are released.
    """

    def test_step_by_step(self, version: str) -> None:
        """With the first model runner."""
        passes(version, "scheduling")

    def test_second_runner(self, version: str) -> None:
        """With the second model runner, to which a request that was preempted is a new one."""
        passes(version, "scheduling_of_the_second_runner")

    def test_ahead(self, version: str) -> None:
        """Where steps are scheduled before the tokens of the last are known."""
        passes(version, "scheduling_ahead")

    def test_ahead_with_second_runner(self, version: str) -> None:
        """The same with the second model runner."""
        passes(version, "scheduling_ahead_of_the_second_runner")


@each_version
class TestTaps:
    """The same traffic where taps in the model keep the rows of a step, and the engine speculates by itself.

    Every row that was computed is told, the right one, once; what came from the prefix cache is told as missing, with
    its tokens. Slots come with the forward context or, where a whole graph is replayed, with the metadata of attention.
    """

    def test_step_by_step(self, version: str) -> None:
        """With both model runners."""
        passes(version, "taps")

    def test_ahead(self, version: str) -> None:
        """Where steps are scheduled ahead, and rows become final in a later step or after their request has ended."""
        passes(version, "taps_ahead")

    def test_without_ends(self, version: str) -> None:
        """On a pipeline's stage whose steps vLLM does not end."""
        passes(version, "taps_without_ends")


@each_version
class TestErrors:
    """Exceptions in place of everything that the connector's hooks call, while the engine serves.

    Every request is answered, blocks are released, no wrong row is told; there is one line of log for each kind, and
    the sidecar is told how many there were.
    """

    def test_once(self, version: str) -> None:
        """One error: requests under way may be told in part, those that come later are told whole."""
        passes(version, "errors_once")

    def test_five_in_a_row(self, version: str) -> None:
        """Five in a row stop capture; after a pause it goes on."""
        passes(version, "errors_five_times")

    def test_for_ever(self, version: str) -> None:
        """Errors that do not cease stop capture until they do."""
        passes(version, "errors_for_ever")

    def test_at_the_start(self, version: str) -> None:
        """Errors before the first step: the engine starts and serves, and nothing is captured."""
        passes(version, "errors_at_the_start")

    def test_nonsense(self, version: str) -> None:
        """Hooks that are passed what they do not understand answer what changes nothing."""
        passes(version, "nonsense")

    def test_at_the_end(self, version: str) -> None:
        """Errors at shutdown keep no engine from ending."""
        passes(version, "shutdown")

    def test_unknown_version(self, version: str) -> None:
        """A vLLM that capture does not know serves; nothing is captured, and the log says why."""
        passes(version, "unknown_version")
