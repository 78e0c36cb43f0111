"""Tests of the metrics, through the page that Prometheus scrapes."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_tools import promtool

from monitor.outputs.metrics import MAX_SERIES, METRICS, Metrics, reload_result

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.txt"
"""Written anew by ``AFFECT_UPDATE_GOLDEN=1 pytest tests/outputs/test_metrics.py``; look at the difference."""
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
UNITS = ("_total", "_info", "_seconds", "_ratio", "_probability", "_index", "_affect", "_score", "_bytes")
COUNTS = (
    "_open", "_capacity", "_active", "_waiting", "_successful", "_rows", "_fault", "_silenced", "_alarm", "_turns",
    "_evalue", "_line", "_distance", "_slope", "_budget", "_p_value", "_shift",
)  # fmt: skip


def registered(metrics: Metrics) -> CollectorRegistry:
    """A registry of these metrics alone."""
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry


def page(metrics: Metrics) -> str:
    """The page as Prometheus gets it without asking for OpenMetrics."""
    return generate_latest(registered(metrics)).decode()


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample of the page, None where it is not there."""
    return registered(metrics).get_sample_value(name, labels)


def samples(metrics: Metrics) -> int:
    """Samples on the page."""
    return sum(len(family.samples) for family in parse_text(page(metrics)))


def small(free: int) -> Metrics:
    """Metrics with room for so many samples more."""
    return Metrics(samples(Metrics()) + free)


def lively() -> Metrics:
    """Metrics after a fixed sequence of events."""
    metrics = Metrics()
    metrics.set("affect_build_info", 1, "0.1.0")
    metrics.replace("affect_bank_info", {("0123456789ab", "tiny", "true"): 1.0})
    metrics.set("affect_turns_capacity", 4096)
    metrics.set("affect_streams_open", 2)
    metrics.set("affect_turns_open", 3)
    metrics.declare("affect_turns_total", [("desk",), ("crisis",)])
    metrics.declare("affect_turns_over_total", [("desk", "affect"), ("desk", "warmth")])
    metrics.declare("affect_alerts_fired_total", [("desk", "affect")])
    metrics.declare("affect_tokens_missing_total", [("prefix_cached",), ("dropped",), ("restarted",), ("untold",)])
    metrics.add("affect_frames_total", 7)
    metrics.add("affect_received_bytes_total", 123456)
    metrics.add("affect_tokens_scored_total", 640)
    metrics.add("affect_tokens_filled_total", 96)
    metrics.add("affect_tokens_replayed_total", 3)
    metrics.add("affect_tokens_missing_total", 5, "dropped")
    metrics.add("affect_faults_total", 1, "shape")
    metrics.declare("affect_interventions_total", [("warmth",), ("other",)])
    metrics.add("affect_interventions_total", 2, "warmth")
    for coverage, over in ((1.0, -0.5), (1.0, 0.25), (0.8, 2.5)):
        metrics.add("affect_turns_total", 1, "desk")
        metrics.observe("affect_turn_coverage_ratio", coverage, "desk")
        metrics.observe("affect_turn_over_index", over, "desk")
        metrics.observe("affect_turn_family_score", over, "desk", "warmth")
        metrics.observe("affect_frame_seconds", 0.004)
        metrics.average("affect_emotion_probability", "desk", {"joy": coverage / 2})
    metrics.add("affect_turns_unjudged_total", 1, "desk", "low_coverage")
    metrics.add("affect_turns_judged_total", 2, "desk")
    metrics.replace("affect_drift_log_evalue", {("desk", "overfitting"): 5.25, ("desk", "users"): -0.5})
    metrics.replace("affect_drift_log_line", {("desk", "overfitting"): 4.605})
    metrics.replace("affect_drift_alarm", {("desk", "overfitting"): 1.0})
    metrics.replace("affect_drift_turns", {("desk",): 120.0})
    metrics.replace("affect_drift_distance", {("desk", "over_index", "psi"): 0.03})
    metrics.replace("affect_mirror_slope", {("desk", "estimate"): 0.4, ("desk", "low"): 0.3})
    metrics.replace("affect_policy_info", {("desk", "neutral", "warning", "team"): 1.0})
    metrics.replace("affect_policy_budget", {("desk", "over"): 0.02})
    metrics.set("affect_canary_p_value", 0.0005)
    metrics.set("affect_canary_turns", 12, "changed")
    metrics.add("affect_turns_over_total", 1, "desk", "affect")
    metrics.add("affect_turns_visibility_total", 1, "desk", "text_silent")
    metrics.replace("affect_alerts_active", {("desk", "affect", "firing"): 1.0})
    metrics.set("affect_alerts_fired_total", 1, "desk", "affect")
    metrics.add("affect_notifications_total", 1, "alertmanager", "sent")
    metrics.set("affect_notifications_waiting", 0, "alertmanager")
    metrics.replace("affect_alerts_silenced", {("crisis", "affect", "muted"): 1.0})
    metrics.set("affect_config_last_reload_successful", 1)
    metrics.set("affect_config_last_reload_success_timestamp_seconds", 1.75e9)
    return metrics


class TestPage:
    """The whole page."""

    def test_is_the_golden_one(self) -> None:
        """A fixed sequence of events gives a fixed page, so that every change of a name or a help is seen in review."""
        text = page(lively())
        if os.environ.get("AFFECT_UPDATE_GOLDEN"):
            GOLDEN.write_text(text)
        assert text == GOLDEN.read_text()

    @pytest.mark.servers
    def test_passes_promtool(self) -> None:
        """Prometheus' own linter has nothing to say about the page."""
        assert promtool("check", "metrics", page=GOLDEN.read_bytes()) == ""

    def test_is_openmetrics_for_those_who_ask(self) -> None:
        """A scraper that accepts OpenMetrics gets it, valid by the strict parser, with the same samples."""
        encode, content_type = choose_encoder(OPENMETRICS)
        text = encode(registered(lively())).decode()
        assert content_type.startswith("application/openmetrics-text")
        assert text.endswith("# EOF\n")
        strict = {(each.name, *each.labels.items()): each.value for each in flat(parse_openmetrics(text))}
        plain = {(each.name, *each.labels.items()): each.value for each in flat(parse_text(page(lively())))}
        assert strict == plain

    def test_escapes_what_stands_in_labels(self) -> None:
        """A label value with quotes, backslashes and line breaks comes back as it went in."""
        metrics, name = Metrics(), 'a "model"\\ of\ntwo lines'
        metrics.set("affect_bank_info", 1, "id", name, "true")
        (found,) = [each for each in flat(parse_text(page(metrics))) if each.name == "affect_bank_info"]
        assert found.labels["model"] == name


def flat(families: Iterator[Metric]) -> Iterator[object]:
    """Samples of all families."""
    return (each for family in families for each in family.samples)


class TestNames:
    """The conventions every metric keeps."""

    @pytest.mark.parametrize("name", METRICS)
    def test_follow_the_conventions(self, name: str) -> None:
        """Prefix, help as a sentence, and a suffix that says what is counted or in which unit."""
        spec = METRICS[name]
        assert name.startswith("affect_")
        assert spec.help[0].isupper()
        assert spec.help.endswith(".")
        assert (spec.kind == "counter") == name.endswith("_total")
        assert name.endswith(UNITS if spec.kind == "histogram" else UNITS + COUNTS)

    @pytest.mark.parametrize("name", METRICS)
    def test_know_no_request(self, name: str) -> None:
        """No label takes a value that grows with traffic."""
        assert not {"request_id", "turn_id", "session_id", "external_id"} & set(METRICS[name].labels)
        assert not {"le", "quantile"} & set(METRICS[name].labels)

    @pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].kind == "histogram"])
    def test_bounds_ascend(self, name: str) -> None:
        """Buckets of a histogram ascend."""
        bounds = METRICS[name].bounds
        assert list(bounds) == sorted(set(bounds))

    def test_are_all_described(self) -> None:
        """A registry learns every name before the first scrape, and so refuses a second collector of them."""
        registry = registered(Metrics())
        with pytest.raises(ValueError, match="Duplicated"):
            registry.register(Metrics())


class TestSeries:
    """Values of series."""

    @pytest.mark.parametrize("name", [name for name, spec in METRICS.items() if not spec.labels and not spec.late])
    def test_without_labels_are_born_at_zero(self, name: str) -> None:
        """Every metric without labels is on the first page."""
        histogram = METRICS[name].kind == "histogram"
        assert sample(Metrics(), name + "_bucket" * histogram, **{"le": "+Inf"} if histogram else {}) == 0

    @pytest.mark.parametrize("name", [name for name, spec in METRICS.items() if spec.late])
    def test_late_ones_wait_for_their_value(self, name: str) -> None:
        """Where 0 would say something there is nothing before the first value."""
        metrics = Metrics()
        assert sample(metrics, name) is None
        metrics.set(name, 0.5)
        assert sample(metrics, name) == 0.5

    def test_with_labels_are_born_at_zero_when_declared(self) -> None:
        """A declared series exists at 0, and declaring it again does not set it back."""
        metrics = Metrics()
        assert sample(metrics, "affect_turns_total", policy="desk") is None
        metrics.declare("affect_turns_total", [("desk",)])
        assert sample(metrics, "affect_turns_total", policy="desk") == 0
        metrics.add("affect_turns_total", 2, "desk")
        metrics.declare("affect_turns_total", [("desk",)])
        assert sample(metrics, "affect_turns_total", policy="desk") == 2

    def test_with_wrong_labels_are_a_mistake_of_the_caller(self) -> None:
        """Too few or too many label values raise, and leave the page as it was."""
        metrics = Metrics()
        before = page(metrics)
        for labels in ((), ("desk", "more")):
            with pytest.raises(ValueError, match="labels"):
                metrics.add("affect_turns_total", 1, *labels)
        assert page(metrics) == before

    def test_replaced_ones_are_gone(self) -> None:
        """Replacing a gauge removes the series that are not named and keeps the others."""
        metrics = Metrics()
        metrics.replace("affect_alerts_active", {("desk", "affect", "pending"): 1.0, ("desk", "warmth", "firing"): 1.0})
        metrics.replace("affect_alerts_active", {("desk", "affect", "firing"): 1.0, ("desk", "warmth", "firing"): 2.0})
        shown = {(each.labels["target"], each.labels["state"]): each.value for each in active(metrics)}
        assert shown == {("affect", "firing"): 1, ("warmth", "firing"): 2}
        metrics.replace("affect_alerts_active", {})
        assert not list(active(metrics))

    def test_averages_start_at_the_first_value_and_follow_slowly(self) -> None:
        """The first value is taken as it is, later ones move the mean a part of the way."""
        metrics = Metrics()
        series = {"policy": "desk", "emotion": "joy"}
        metrics.average("affect_emotion_probability", "desk", {"joy": 0.8})
        assert sample(metrics, "affect_emotion_probability", **series) == 0.8
        metrics.average("affect_emotion_probability", "desk", {"joy": 0.0})
        assert 0.6 < (sample(metrics, "affect_emotion_probability", **series) or 0) < 0.8
        for _ in range(500):
            metrics.average("affect_emotion_probability", "desk", {"joy": 0.1})
        assert sample(metrics, "affect_emotion_probability", **series) == pytest.approx(0.1)

    def test_never_take_nan(self) -> None:
        """NaN, which no mean and no sum would ever lose again, is left out of averages and histograms."""
        metrics = Metrics()
        metrics.observe("affect_turn_over_index", math.nan, "desk")
        metrics.observe("affect_frame_seconds", math.nan)
        metrics.average("affect_emotion_probability", "desk", {"joy": math.nan, "fear": 0.5})
        assert "NaN" not in page(metrics)
        assert sample(metrics, "affect_frame_seconds_count") == 0
        assert sample(metrics, "affect_emotion_probability", policy="desk", emotion="fear") == 0.5

    def test_say_how_a_reload_went(self) -> None:
        """A refused reload shows as 0 and leaves the time of the last good one."""
        metrics = Metrics()
        reload_result(metrics, successful=True)
        taken = metrics.value("affect_config_last_reload_success_timestamp_seconds")
        reload_result(metrics, successful=False)
        assert taken > 0
        assert metrics.value("affect_config_last_reload_successful") == 0
        assert metrics.value("affect_config_last_reload_success_timestamp_seconds") == taken


def active(metrics: Metrics) -> Iterator[object]:
    """Samples of the alerts that are up."""
    return (each for each in flat(parse_text(page(metrics))) if each.name == "affect_alerts_active")


class TestHistograms:
    """Histograms."""

    def test_are_cumulative(self) -> None:
        """A bucket counts all values up to and including its bound; +Inf counts all; sum and count agree."""
        metrics = Metrics()
        for value in (0.0005, 0.001, 0.002, 0.3, 99.0):
            metrics.observe("affect_frame_seconds", value)
        buckets = {
            each.labels["le"]: each.value
            for each in flat(parse_text(page(metrics)))
            if each.name == "affect_frame_seconds_bucket"
        }
        assert (buckets["0.001"], buckets["0.0025"], buckets["0.25"], buckets["1.0"]) == (2, 3, 3, 4)
        assert buckets["5.0"] == 4
        assert buckets["+Inf"] == 5 == sample(metrics, "affect_frame_seconds_count")
        assert sample(metrics, "affect_frame_seconds_sum") == pytest.approx(99.3035)
        assert list(buckets.values()) == sorted(buckets.values())

    def test_of_scores_count_below_zero(self) -> None:
        """Scores below the lowest bound fall into the lowest bucket; a sum that may fall is not shown."""
        metrics = Metrics()
        for value in (-50.0, -0.75, 0.0, 50.0):
            metrics.observe("affect_turn_over_index", value, "desk")
        bucket = "affect_turn_over_index_bucket"
        found = [sample(metrics, bucket, policy="desk", le=le) for le in ("-3.0", "-0.5", "0.0", "6.0", "+Inf")]
        assert found == [1, 2, 3, 3, 4]
        assert sample(metrics, "affect_turn_over_index_sum", policy="desk") is None


class TestCap:
    """The cap on series."""

    def test_leaves_room_for_what_a_sidecar_shows(self) -> None:
        """Ten policies over sixteen families and thirty emotions stay under the cap."""
        metrics = Metrics()
        for policy in map(str, range(10)):
            for name in ("affect_turn_over_index", "affect_turn_user_affect", "affect_turn_assistant_affect"):
                metrics.observe(name, 0, policy)
            for family in map(str, range(16)):
                metrics.observe("affect_turn_family_score", 0, policy, family)
                metrics.add("affect_turns_over_total", 1, policy, family)
            metrics.average("affect_emotion_probability", policy, dict.fromkeys(map(str, range(30)), 0.5))
        assert metrics.value("affect_series_dropped_total") == 0
        assert samples(metrics) <= MAX_SERIES

    def test_refuses_new_series_and_counts_the_updates(self) -> None:
        """Beyond the cap new label sets stay out, every refused update is counted, known series go on."""
        metrics = small(2)
        for policy in ("a", "b", "c", "d", "a", "c"):
            metrics.add("affect_turns_total", 1, policy)
        assert [metrics.value("affect_turns_total", policy) for policy in "abcd"] == [2, 1, 0, 0]
        assert sample(metrics, "affect_series_dropped_total") == 3

    def test_counts_samples_and_not_label_sets(self) -> None:
        """A histogram needs room for all its samples, and the page never holds more than the cap."""
        for free in range(40):
            metrics = small(free)
            cap = samples(Metrics()) + free
            metrics.observe("affect_turn_coverage_ratio", 1.0, "desk")
            metrics.observe("affect_turn_over_index", 1.0, "desk")
            for policy in map(str, range(free)):
                metrics.add("affect_turns_total", 1, policy)
            assert samples(metrics) == cap
        assert metrics.value("affect_turns_total", "0") == 1

    def test_holds_for_replaced_and_averaged_gauges(self) -> None:
        """Replacing and averaging refuse what goes beyond the cap and count it."""
        metrics = small(2)
        metrics.replace("affect_alerts_active", {(name, "affect", "firing"): 1.0 for name in "abc"})
        metrics.average("affect_emotion_probability", "desk", {"joy": 0.5})
        assert samples(metrics) == samples(Metrics()) + 2
        assert sample(metrics, "affect_series_dropped_total") == 2

    def test_takes_the_averages_of_a_policy_whole_or_not_at_all(self) -> None:
        """A policy whose emotions do not all fit shows none of them, and each refusal counts once."""
        metrics = small(2)
        for _ in range(2):
            metrics.average("affect_emotion_probability", "desk", dict.fromkeys(("joy", "fear", "distress"), 0.5))
        assert samples(metrics) == samples(Metrics())
        assert sample(metrics, "affect_series_dropped_total") == 2
        metrics.average("affect_emotion_probability", "desk", {"joy": 0.5, "fear": 0.25})
        assert sample(metrics, "affect_emotion_probability", policy="desk", emotion="fear") == 0.25

    def test_counts_averages_by_what_they_hold(self) -> None:
        """Other emotions, of a new bank, take the place of those before them: room is counted for the new ones."""
        metrics = small(3)
        for emotions in ("ab", "abc", "d", "efg"):
            metrics.average("affect_emotion_probability", "desk", dict.fromkeys(emotions, 0.5))
            assert samples(metrics) == samples(Metrics()) + len(emotions)
        assert sample(metrics, "affect_series_dropped_total") == 0
        assert sample(metrics, "affect_emotion_probability", policy="desk", emotion="a") is None

    def test_gives_replaced_series_back(self) -> None:
        """Series that a replacement removes make room for others, however often that happens."""
        metrics = small(2)
        for _ in range(100):
            metrics.replace("affect_alerts_active", {("desk", "affect", state): 1.0 for state in ("pending", "firing")})
            metrics.replace("affect_alerts_active", {})
        metrics.average("affect_emotion_probability", "desk", {"joy": 0.5, "fear": 0.5})
        assert sample(metrics, "affect_series_dropped_total") == 0
        assert sample(metrics, "affect_emotion_probability", policy="desk", emotion="fear") == 0.5

    def test_keeps_known_series_when_they_are_replaced_beside_new_ones(self) -> None:
        """A series that was there keeps its place when new ones come before it in a full replacement."""
        metrics = small(1)
        metrics.replace("affect_alerts_active", {("old", "affect", "firing"): 1.0})
        metrics.replace("affect_alerts_active", {("new", "affect", "firing"): 1.0, ("old", "affect", "firing"): 2.0})
        assert metrics.value("affect_alerts_active", "old", "affect", "firing") == 2
        assert metrics.value("affect_alerts_active", "new", "affect", "firing") == 0

    def test_below_what_is_always_there_leaves_a_page(self) -> None:
        """A cap that is too low for the metrics without labels still shows how much was refused."""
        metrics = Metrics(max_series=3)
        assert (sample(metrics, "affect_series_dropped_total") or 0) > 10


class TestThreads:
    """Use from several threads."""

    def test_lose_nothing_and_see_consistent_pages(self) -> None:
        """Concurrent additions all arrive, and every page scraped meanwhile agrees with itself and never goes back."""
        metrics, writers, rounds = Metrics(), 4, 2000
        running = threading.Event()
        shown = ("tokens_scored_total", "frame_seconds_count", "frame_seconds_sum")
        seen: list[tuple[float, ...]] = []

        def write(number: int) -> None:
            for turn in range(rounds):
                metrics.add("affect_tokens_scored_total", 2)
                metrics.observe("affect_frame_seconds", 0.002)
                metrics.replace("affect_alerts_active", {(str(number), "affect", str(turn % 3)): 1.0})
                metrics.average("affect_emotion_probability", "desk", dict.fromkeys(map(str, range(turn % 50)), 0.5))

        def scrape() -> None:
            registry = registered(metrics)
            while not running.is_set():
                families = parse_text(generate_latest(registry).decode())
                found = {each.name: each.value for each in flat(families) if "le" not in each.labels}
                seen.append(tuple(found[f"affect_{name}"] for name in shown))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
        scraper = threading.Thread(target=scrape)
        scraper.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        running.set()
        scraper.join()
        assert metrics.value("affect_tokens_scored_total") == 2 * writers * rounds
        assert sample(metrics, "affect_frame_seconds_count") == writers * rounds
        assert seen
        assert seen == sorted(seen)
        assert all(total == pytest.approx(0.002 * count) for _, count, total in seen)
