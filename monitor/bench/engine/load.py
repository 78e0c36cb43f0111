"""What every run generates, and what is seen of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


@dataclass(frozen=True)
class Load:
    """What is generated.

    Attributes:
        batches: Requests at once, each measured by itself.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens of a reply, no fewer.
        rounds: Times each way is run.
    """

    batches: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    rounds: int


class Sample(NamedTuple):
    """One run: a batch of requests, from their arrival to the last token.

    What cannot be seen from here is NaN.

    Attributes:
        tokens: Tokens generated.
        processed: Tokens the model processed, prompts included: all but the last of each reply.
        seconds: How long it took.
        first: Seconds to the first token, of each request or of the batch as a whole.
        gaps: Seconds between a token and the next.
        cpu_seconds: Processor time of the engine's processes.
        resident_mb: Resident memory of the engine's processes at the end.
        cuda_mb: Most memory allocated on the GPU.
    """

    tokens: int
    processed: int
    seconds: float
    first: list[float]
    gaps: list[float]
    cpu_seconds: float
    resident_mb: float
    cuda_mb: float

    def figures(self) -> dict[str, float]:
        """The run in numbers."""
        median, high = np.percentile(self.gaps, (50, 99)) * 1e3
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "ttft_ms": float(np.median(self.first)) * 1e3,
            "itl_p50_ms": float(median),
            "itl_p99_ms": float(high),
            "cpu_ms_per_token": self.cpu_seconds / self.tokens * 1e3,
            "resident_mb": self.resident_mb,
            "cuda_mb": self.cuda_mb,
        }


class Engine(Protocol):
    """An inference engine that is up, with capture or without."""

    def run(self, batch: int) -> Sample:
        """Generates for so many requests at once, from prompts that no prefix cache knows."""
