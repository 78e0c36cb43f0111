"""What is measured: settings of the load, and how long each is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

Told = Callable[[int, int], None]
"""Told of things done and things in all."""
TRANSPORTS = ("grpc", "shared_memory", "projected")
BF16_BYTES = 2
SHIPPED = "smollm2-135m-instruct"
"""The bank of the row at default settings."""
_FRAME_BYTES = 4 << 20
_MOST_ROWS = 1024
_DEFAULT_OPEN_TURNS = 4096


@dataclass(frozen=True)
class Setting:
    """One row of the bench.

    Attributes:
        transport: How rows reach the sidecar, one of ``TRANSPORTS``.
        hidden_size: Width of a row at one layer.
        probes: Columns that need hidden states.
        layers: Layers of a row.
        requests_per_frame: Requests with rows in every frame.
        rows_per_frame: Rows of a frame, a multiple of ``requests_per_frame``.
        open_turns: Requests under way at once; at least ``requests_per_frame``.
        bank: Name of a shipped bank; empty: one is made up, of these sizes.
        curve: Whether the lag is looked at under several loads.
    """

    transport: str = "grpc"
    hidden_size: int = 4096
    probes: int = 171
    layers: int = 1
    requests_per_frame: int = 64
    rows_per_frame: int = 256
    open_turns: int = 64
    bank: str = ""
    curve: bool = False

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in bfloat16, all layers."""
        return self.layers * self.hidden_size * BF16_BYTES

    @property
    def frame_bytes(self) -> int:
        """Bytes of the rows of one frame."""
        return self.rows_per_frame * self.row_bytes

    @property
    def shape(self) -> str:
        """The sizes that decide about speed, for people."""
        return f"{self.hidden_size} x {self.probes}, {self.layers} layer{'s' * (self.layers > 1)}"

    @property
    def max_open_turns(self) -> int:
        """What the sidecar has to be told so that it takes them all."""
        return max(_DEFAULT_OPEN_TURNS, 2 * self.open_turns)


@dataclass(frozen=True)
class Pace:
    """How long one row is looked at; all times in seconds.

    Attributes:
        windows: Times the full load is measured, each between two measurements of the limits.
        window: Length of each.
        warm: Load before the first window.
        limit: Length of one measurement of a limit.
        paced: Length of the load at half speed, in which lag and scrapes are measured.
        scrapes: Scrapes in that time.
        curve: Shares of the full load under which the lag is looked at, where a setting asks for it.
    """

    windows: int = 3
    window: float = 2.0
    warm: float = 1.0
    limit: float = 0.4
    paced: float = 5.0
    scrapes: int = 15
    curve: tuple[float, ...] = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


FULL = Pace()
QUICK = Pace(windows=2, window=1.5, warm=0.5, limit=0.3, paced=2.0, scrapes=7, curve=())


def full_grid(transports: tuple[str, ...] = TRANSPORTS) -> list[Setting]:
    """Every size at 64 requests a frame; requests a frame and open turns at the main size; the default settings.

    Sizes are measured with frames as large as they are meant to be; one row shows a step of single tokens.
    """
    settings: list[Setting] = []
    for transport in transports:
        main = _sized(transport, 4096, 171, 1)
        settings.append(replace(main, curve=True))
        settings += [
            sized
            for hidden in (576, 4096, 8192)
            for probes in (16, 171)
            for layers in (1, 3)
            if (sized := _sized(transport, hidden, probes, layers)) != main
        ]
        many = replace(main, rows_per_frame=256, open_turns=256)
        settings += [replace(many, requests_per_frame=count) for count in (1, 16, 256)]
        settings += [replace(many, open_turns=count) for count in (100, 10_000)]
        settings.append(replace(many, rows_per_frame=64))
    return [*settings, default_setting()] if "grpc" in transports else settings


def quick_grid(transports: tuple[str, ...] = TRANSPORTS) -> list[Setting]:
    """The main size over every transport, and the default settings."""
    settings = [_sized(transport, 4096, 171, 1) for transport in transports]
    return [*settings, default_setting()] if "grpc" in transports else settings


def default_setting() -> Setting:
    """The shipped bank with everything else as it comes."""
    from monitor.probes.bank import load_bank

    bank = load_bank(SHIPPED)
    return Setting(
        hidden_size=bank.card.model.hidden_size,
        probes=bank.columns.probes,
        layers=len(bank.card.layers),
        bank=SHIPPED,
    )


def _sized(transport: str, hidden: int, probes: int, layers: int) -> Setting:
    """A size, with as many rows as keep a frame within 4 MiB."""
    rows = _MOST_ROWS
    while rows * layers * hidden * BF16_BYTES > _FRAME_BYTES:
        rows //= 2
    return Setting(transport, hidden, probes, layers, rows_per_frame=rows)
