"""Marks: what keeps a finished turn from being judged."""

from __future__ import annotations

CANARY = "canary"
"""The sidecar brought it about itself."""
SAMPLED_OUT = "sampled_out"
"""It lies outside the sample, as was wanted."""
UNSEEN = ("partial", "abandoned", "nonfinite", "low_coverage")
"""It was meant to be seen and was not seen well enough."""
MARKS = (CANARY, "unvalidated", SAMPLED_OUT, *UNSEEN, "short")
"""All there are, in the order in which they are told."""
