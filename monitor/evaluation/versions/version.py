"""A version of a model that need not have the bank's shape: it is read, not scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from monitor.calibration.activations import Activations, Progress, collect
from monitor.calibration.lines import Message
from monitor.capture.identity import weights_fingerprint
from monitor.capture.passes import decoder_blocks
from monitor.errors import SetupError
from monitor.probes.markers import find_markers


class Version:
    """A model and its tokenizer.

    Args:
        name: What it is called in reports.
        model: The model.
        tokenizer: Its tokenizer.
        cache: Folder that keeps activations.

    Raises:
        SetupError: The tokenizer has no chat template.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, cache: Path) -> None:
        self.name, self.model, self.tokenizer, self.cache = name, model, tokenizer, cache
        self.markers = find_markers(tokenizer)
        if not self.markers:
            raise SetupError("--version", f"{name} has no chat template, which says where replies begin; set it")
        self.fingerprint = weights_fingerprint(model)
        self.hidden_size, self.depth = int(model.config.hidden_size), len(decoder_blocks(model))

    def activations(
        self, conversations: Sequence[Sequence[Message]], layers: Sequence[int], progress: Progress | None = None
    ) -> Activations:
        """Pooled hidden states of conversations; see ``collect``."""
        return collect(
            self.model, self.tokenizer, self.markers, conversations, layers,
            cache=(self.cache / "activations", self.fingerprint), progress=progress,
        )  # fmt: skip


OpenVersion = Callable[[], Version]
"""Loads a version; versions are compared one by one, so that one at a time is in memory."""
