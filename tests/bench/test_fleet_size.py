"""The sizing of fleets: what is computed from what was measured."""

from __future__ import annotations

from fleet_size import DAY, Cost, samples_of, size, table

COST = Cost(series=300, recorded=100, bytes_a_sample=2.0, bytes_a_series=4000.0)


def test_a_fleet_is_its_pods_and_what_is_recorded_once() -> None:
    """Series grow with pods, records do not; samples are series by the interval."""
    found = size(1_000, COST, interval=30)
    assert found.series == 300_100
    assert found.samples == 300_100 / 30
    assert found.disk == 300_100 * 2.0 * DAY / 30
    assert found.memory == 300_100 * 4000
    assert found.kept == size(1, COST, interval=30).kept == 100 * 2.0 * DAY / 30


def test_the_table_has_a_line_for_each_fleet() -> None:
    """Counts have separators, bytes the unit that fits."""
    lines = table(COST, interval=30).splitlines()
    assert len(lines) == 7
    assert lines[2] == "| 1 | 400 | 13 | 2.3 MB | 1.6 MB | 576 kB |"
    assert lines[6].startswith("| 10,000 | 3,000,100 | 100,003 | 17.3 GB | 12 GB |")


def test_samples_are_lines_that_are_no_comments() -> None:
    """Help, types and blank lines count for nothing."""
    assert samples_of('# HELP a b\n# TYPE a gauge\na{b="#"} 1\n\nc 2\n') == ['a{b="#"} 1', "c 2"]
