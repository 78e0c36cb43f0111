"""The bench: what it reports fits together; how fast anything is depends on the machine and is not asserted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from typer.testing import CliRunner

from monitor.bench.bank import make_bank
from monitor.bench.bars import bars
from monitor.bench.cores import choose_cores, pinned
from monitor.bench.grid import Pace, Setting
from monitor.bench.load import RememberedProjection
from monitor.bench.measure import Row, measure
from monitor.bench.run import run
from monitor.bench.scrape import Scrape, lag_quantile
from monitor.bench.sidecar import NotOfferedError
from monitor.bench.soak import soak
from monitor.bench.stages import profile
from monitor.bench.traffic import Traffic
from monitor.errors import SetupError
from monitor.turns.roles import RoleLabeller
from monitor.wire.projection import Projection

if TYPE_CHECKING:
    from pathlib import Path

TINY = Setting(hidden_size=32, probes=16, requests_per_frame=4, rows_per_frame=64, open_turns=6)
SHORT = Pace(windows=1, window=0.3, warm=0.1, limit=0.02, paced=0.4, scrapes=2, curve=())
UNPINNED = choose_cores(unpinned=True)
PROMISED = (
    "transport", "hidden_size", "probes", "layers", "requests_per_frame", "tokens_per_second",
    "matmul_tokens_per_second", "ratio", "megabytes_per_second", "lag_p99_ms", "rss_mb",
    "cpu_seconds_per_million_tokens", "scrape_ms",
)  # fmt: skip


class _Recorder:
    """Stands where a client would; keeps what it is told."""

    def __init__(self) -> None:
        self.started: dict[str, int] = {}
        self.tokens: dict[str, list[int]] = {}
        self.ended: dict[str, int] = {}

    def start(self, request_id: str, prompt_length: int = 0, *, labels: Any = None) -> None:
        assert len(labels) == 2
        self.started[request_id] = prompt_length
        self.tokens[request_id] = []

    def rows(self, request_ids: Any, starts: Any, counts: Any, token_ids: Any, rows: torch.Tensor) -> None:
        assert len(set(request_ids)) == len(request_ids)
        assert sum(counts) == len(token_ids) == len(rows)
        at = 0
        for request_id, start, count in zip(request_ids, starts, counts, strict=True):
            assert start == len(self.tokens[request_id])
            self.tokens[request_id] += token_ids[at : at + count]
            at += count

    def end(self, request_id: str, total_tokens: int) -> None:
        assert total_tokens == len(self.tokens[request_id])
        self.ended[request_id] = total_tokens


@pytest.fixture(scope="module")
def row() -> Row:
    """A tiny setting, measured."""
    return measure(TINY, SHORT, UNPINNED)


def test_a_row_has_every_figure_that_was_promised(row: Row) -> None:
    """The fields that programs read are there, and numbers."""
    for name in PROMISED:
        assert row[name] is not None, name
        assert row[name] == row["transport"] or row[name] > 0, name


def test_every_token_that_was_sent_was_scored(row: Row) -> None:
    """Speed counts only what the sidecar says it scored, and nothing is lost."""
    assert row["tokens_scored"] == row["tokens_sent"] > 0
    assert "dropped" not in row
    assert row["frame_bytes_per_token"] > TINY.row_bytes


def test_the_ratio_is_to_the_faster_of_the_bare_products(row: Row) -> None:
    """The limit is not made to look low."""
    assert row["matmul_tokens_per_second"] == max(
        row["matmul_bfloat16_tokens_per_second"], row["matmul_float32_tokens_per_second"]
    )
    assert row["ratio"] == pytest.approx(row["tokens_per_second"] / row["matmul_tokens_per_second"], rel=2e-3)
    assert row["megabytes_per_second"] == pytest.approx(row["tokens_per_second"] * 64 / 1e6, rel=2e-3)


@pytest.mark.parametrize("requests", [1, 4, 64])
def test_traffic_keeps_as_many_turns_open_and_ends_them_whole(requests: int) -> None:
    """Requests live 512 tokens, half a user's and half a reply, and are replaced."""
    setting = Setting(hidden_size=32, probes=16, requests_per_frame=requests, rows_per_frame=64, open_turns=70)
    bank = make_bank(32, 16, 1)
    traffic, engine, rows = Traffic(setting, bank), _Recorder(), torch.zeros(64, 1, 32)
    traffic.begin(engine)
    for _ in range(700):
        traffic.step(engine, rows)
        assert len(engine.started) - len(engine.ended) == 70
    longest = [request_id for request_id, total in engine.ended.items() if total == 512]
    assert longest
    tokens = engine.tokens[longest[0]]
    labels = RoleLabeller(bank.markers)
    count = torch.tensor([len(tokens)]).numpy()
    tails = torch.full((1, labels.tail_length), -1).numpy()
    found = labels.label(torch.tensor(tokens).numpy(), count, torch.tensor([0]).numpy(), tails)
    assert set(found.roles[3:252].tolist()) == {2}
    assert set(found.roles[256:].tolist()) == {3}
    assert engine.started[longest[0]] == 256


def test_the_lag_is_interpolated_between_bounds() -> None:
    """Quantiles come from what was counted between two scrapes."""
    before = Scrape({}, {0.01: 5.0, 0.02: 5.0, math.inf: 5.0}, 0, 0.0)
    after = Scrape({}, {0.01: 55.0, 0.02: 105.0, math.inf: 105.0}, 0, 0.0)
    assert lag_quantile(before, after, 0.25) == pytest.approx(5.0)
    assert lag_quantile(before, after, 0.75) == pytest.approx(15.0)
    assert math.isnan(lag_quantile(after, after, 0.99))
    late = Scrape({}, {0.01: 5.0, 0.02: 5.0, math.inf: 9.0}, 0, 0.0)
    assert lag_quantile(before, late, 0.99) == pytest.approx(20.0)


def test_a_buffer_of_rows_is_multiplied_once() -> None:
    """What stands for an accelerator gives the same products as the client's own."""
    weights, bias, rows = torch.randn(32, 16), torch.randn(16), torch.randn(4, 1, 32).bfloat16()
    projection, expected = RememberedProjection(weights, bias), torch.empty(4, 16)
    Projection(weights, bias).apply(rows, expected)
    for _ in range(2):
        found = torch.empty(4, 16)
        projection.apply(rows, found)
        assert torch.equal(found, expected)


def test_memory_over_a_soak_has_a_slope_with_its_error() -> None:
    """Samples are taken at half load, and none of it is lost."""
    found = soak(replace(TINY, transport="shared_memory"), 0.02, UNPINNED, lambda _done, _total: None, interval=0.2)
    assert len(found["samples"]) == 6
    assert found["dropped"] == 0
    assert found["standard_error_mb_per_hour"] >= 0


def test_the_stages_of_a_frame_add_up() -> None:
    """The table of stages has all of a frame's time."""
    stages = profile(TINY, make_bank(32, 16, 1), UNPINNED, None)
    assert stages["total"] == pytest.approx(sum(stages.values()) - stages["total"], rel=0.01)
    assert stages["decode"] > 0
    assert stages["turn ends"] > 0


def test_every_bar_is_listed_and_judged_where_it_was_measured(row: Row) -> None:
    """What was not measured is neither passed nor missed."""
    assert {bar.passed for bar in bars([])} == {None}
    assert len({bar.name for bar in bars([])}) == len(bars([]))
    main = row | {"hidden_size": 4096, "probes": 171, "requests_per_frame": 64, "open_turns": 64, "bank": ""}
    judged = bars([main | {"ratio": 0.5, "core_ratio": 0.5, "tokens_per_second": 1.0, "rss_mb": 1e4}])
    assert [bar.passed for bar in judged[:3]] == [True, False, None]
    assert [bar.passed for bar in judged if bar.name == "resident memory"] == [False]
    few = main | {"requests_per_frame": 1, "open_turns": 256, "tokens_per_core_second": 1.0}
    many = few | {"requests_per_frame": 256, "tokens_per_core_second": 0.8}
    falls = [bar for bar in bars([few, many]) if bar.name.startswith("grpc: fall from 1 ")]
    assert [(bar.value, bar.passed) for bar in falls] == [("20.0%", False)]
    grown = {"rss_mb": 400.0, "slope_mb_per_hour": 9.0, "standard_error_mb_per_hour": 1.0}
    assert bars([], grown)[-1].passed is False


def test_one_core_is_refused_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ratios on a shared core mean little, which has to be wanted."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0})
    with pytest.raises(SetupError, match="--unpinned"):
        choose_cores()
    with pinned(choose_cores(unpinned=True).sidecar):
        pass


def test_the_command_writes_figures_and_a_page(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures as JSON, and a page that needs no network."""
    from monitor.cli import app

    monkeypatch.setattr("monitor.bench.run.measure", lambda *_: row)
    file, page = tmp_path / "bench.json", tmp_path / "bench.html"
    command = ["bench", "--quick", "--unpinned", "--json", str(file), "--plot", str(page)]
    told = CliRunner().invoke(app, command, catch_exceptions=False)
    assert told.exit_code == 0
    assert "product" in told.stdout
    found = json.loads(file.read_text())
    assert set(found) >= {"machine", "rows", "bars"}
    assert found["rows"] == [row] * 4
    shown = page.read_text()
    assert "Plotly.newPlot" in shown
    assert "<script src" not in shown


def test_what_cannot_be_measured_is_left_out(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transport that is not offered is said once, and the rest goes on."""

    def some(setting: Setting, *_: object) -> Row:
        if setting.transport == "projected":
            raise NotOfferedError("transport", "the sidecar does not offer projected; such rows are left out")
        if setting.probes == 9:
            raise SetupError("load", "the client process ended")
        return row

    monkeypatch.setattr("monitor.bench.run.measure", some)
    settings = [Setting("projected"), Setting(probes=9), Setting("projected"), TINY]
    found = run(settings, SHORT, UNPINNED, lambda _done, _total: None)
    assert found["rows"] == [row]
    assert len(found["left_out"]) == 2
    with pytest.raises(SetupError, match="nothing was measured: the sidecar does not offer"):
        run(settings[:1], SHORT, UNPINNED, lambda _done, _total: None)


def test_the_command_refuses_a_transport_that_is_none() -> None:
    """Before any work."""
    from monitor.cli import app

    told = CliRunner().invoke(app, ["bench", "--transport", "pigeon"])
    assert isinstance(told.exception, SetupError)
