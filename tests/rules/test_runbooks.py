"""Runbooks: every alert has one, and every query, command and address in it is one that exists."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
from typer.main import get_command

from monitor.cli import app
from monitor.outputs.metrics import METRICS, Spec
from monitor.policy.alert import ALERT_NAME
from monitor.policy.faults import FAULTS
from monitor.policy.schema import SHIPPED, read_policy
from monitor.probes.bank import Bank
from monitor.rules.build import build
from monitor.settings import load_settings
from monitor.sidecar.server import Sidecar

FOLDER = Path(__file__).parents[2] / "alerts" / "runbooks"
SECTIONS = ["Meaning", "First three looks", "Likely causes", "What to do", "When to ignore"]
OTHER_PROGRAMS = {"amtool", "df", "ls", "openssl", "(umask"}
PAGES = sorted(FOLDER.glob("*.md"))
LABELS_OF_SCRAPES = {"job", "instance", "le"}
SUFFIXES = ("_bucket", "_sum", "_count")


def alerts() -> set[str]:
    """Every alert there is: those of the rules, of turns, and of faults."""
    groups = build(read_policy(SHIPPED / "service-desk.yaml"))["groups"]
    ruled = {rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule}
    return {*ruled, ALERT_NAME, *FAULTS}


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def every(language: str) -> list[Any]:
    """The blocks of all pages in one language, as parameters."""
    return [
        pytest.param(block, id=f"{page.stem}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page, language), 1)
    ]


def lines() -> list[Any]:
    """The lines of all shell blocks, as parameters."""
    return [
        pytest.param(line, id=f"{page.stem}-{line[:60]}")
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
    ]


def selectors(part: Any) -> Iterator[Any]:
    """Every vector selector within a parsed query."""
    if isinstance(part, promql_parser.VectorSelector):
        yield part
        return
    inner = (getattr(part, name, None) for name in ("lhs", "rhs", "expr", "param", "vector_selector"))
    for each in (*inner, *(getattr(part, "args", None) or ())):
        if each is not None and not isinstance(each, str | int | float):
            yield from selectors(each)


def metric(name: str) -> Spec:
    """The declaration of an exported metric by the name of one of its series."""
    if name in METRICS:
        return METRICS[name]
    (stem,) = [name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)]
    assert METRICS[stem].kind == "histogram"
    # Scores may be negative: such histograms have neither sum nor count.
    assert name.endswith("_bucket") or METRICS[stem].bounds[0] >= 0
    return METRICS[stem]


@pytest.fixture(scope="module")
def sidecar(small_bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """A running sidecar."""
    folder = tmp_path_factory.mktemp("runbooks")
    small_bank.save(folder / "bank")
    policy = folder / "policy.yaml"
    policy.write_text((SHIPPED / "service-desk.yaml").read_text().replace("0.01 ", "0.015 "))
    flags = {"bank": str(folder / "bank"), "policy": policy, "ingest": f"unix://{folder}/s", "http_port": 0}
    running = Sidecar(load_settings(None, {**flags, "drain_seconds": 0.0}))
    yield running
    running.stop()


class TestPages:
    """The pages themselves."""

    def test_are_one_for_each_alert(self) -> None:
        """Every alert has a page, and there is none for an alert that is gone."""
        assert {page.stem for page in PAGES} - {"README"} == alerts()

    @pytest.mark.parametrize("alert", sorted(alerts()))
    def test_have_all_sections(self, alert: str) -> None:
        """A page is named as its alert and has meaning, looks, causes, what to do and when to ignore, in this order."""
        text = (FOLDER / f"{alert}.md").read_text("utf-8")
        assert text.startswith(f"# {alert}\n")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS

    @pytest.mark.parametrize("alert", sorted(alerts()))
    def test_have_three_looks_with_a_query_and_a_command(self, alert: str) -> None:
        """Whoever looks first has three numbered looks, and among them what to ask Prometheus and what to run."""
        looks = (FOLDER / f"{alert}.md").read_text("utf-8").split("## First three looks\n")[1].split("\n## ")[0]
        assert re.findall(r"^(\d)\. ", looks, re.MULTILINE) == ["1", "2", "3"]
        assert "```promql\n" in looks
        text = (FOLDER / f"{alert}.md").read_text("utf-8")
        assert "```sh\n" in text

    def test_index_leads_to_each(self) -> None:
        """The index links every page."""
        assert set(re.findall(r"\((Affect\w+)\.md\)", (FOLDER / "README.md").read_text("utf-8"))) == alerts()

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
    def test_lead_to_pages_that_exist(self, page: Path) -> None:
        """No link leads nowhere."""
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
            assert (FOLDER / link).is_file(), link


class TestQueries:
    """What is asked of Prometheus."""

    @pytest.mark.parametrize("query", every("promql"))
    def test_parse_and_ask_for_what_is_exported(self, query: str) -> None:
        """Each is PromQL, and its metrics and labels are those of the sidecar's page."""
        found = list(selectors(promql_parser.parse(query)))
        assert found
        for selector in found:
            labels = {matcher.name for matcher in selector.matchers.matchers} - LABELS_OF_SCRAPES
            if selector.name in {"up", "ALERTS", None}:
                assert labels <= {"__name__"}
            else:
                assert labels <= set(metric(selector.name).labels)


class TestCommands:
    """What is run in a shell."""

    @pytest.mark.parametrize("line", lines())
    def test_exist_with_every_flag(self, line: str) -> None:
        """Our own commands are understood as they stand; the others are a few known programs."""
        program, *arguments = shlex.split(line)
        if program != "affect-monitor":
            assert program in {"curl", *OTHER_PROGRAMS}
            return
        command: Any = get_command(app)
        # A group may be a command of its own, too.
        while arguments and arguments[0] in getattr(command, "commands", {}):
            name, *arguments = arguments
            command = command.commands[name]
        # Raises where a flag, an argument or a value is not one of the command's.
        command.make_context(name, arguments)

    @pytest.mark.parametrize("line", [each for each in lines() if ":9469/" in each.values[0]])
    def test_addresses_are_answered(self, line: str, sidecar: Sidecar) -> None:
        """Every page of the sidecar that is called is there, for the method it is called with."""
        path = re.findall(r"http://127\.0\.0\.1:9469(/[^\s\"]*)", line)[0]
        answer = httpx.request("POST" if "-X POST" in line else "GET", sidecar.http_url + path)
        assert answer.status_code == httpx.codes.OK
