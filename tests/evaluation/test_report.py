"""Tests of the report: the page that a tiny model and a small corpus give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from html_page import Page

from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.battery.report import write_report
from monitor.probes.bank import RowCard

ROWS = (
    RowCard(number="1a", name="what <holds>", bar=">= 0.90", value=0.95, low=0.9, high=0.97, passed=True, note="twin"),
    RowCard(number="7d", name="what fails", bar=">= 0.80", value=0.7, low=0.7, high=0.7, passed=False, note=""),
    RowCard(
        number="11", name="what is untried", bar="<= 1 %", value=None, low=None, high=None, passed=None, note="why"
    ),
)


def written(evidence: Evidence, folder: Path, rows: tuple[RowCard, ...] = ROWS) -> str:
    """The report of some evidence."""
    card = evidence.bank.card.model_copy(update={"battery": rows, "text_equivalent": ("fear",)})
    write_report(evidence, card, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(full: Evidence, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a corpus with every part."""
    return written(full, tmp_path_factory.mktemp("report"))


class TestPage:
    """What a reader gets."""

    def test_it_needs_no_network(self, html: str) -> None:
        """No address stands outside plotly's own text, and the page forbids itself to load anything."""
        before, _, rest = html.partition('<script id="plotly">')
        after = rest.partition("</script>")[2]
        assert after
        assert not re.search(r"https?:|//[a-z]", before + after)
        policy = next(e["content"] for e in Page(html).elements if e.get("http-equiv") == "Content-Security-Policy")
        assert str(policy).startswith("default-src 'none';")

    def test_every_plot_has_a_name_and_a_caption(self, html: str) -> None:
        """Eight plots are drawn, each into an image that its title names and its caption describes."""
        page = Page(html)
        images = [element for element in page.elements if element.get("role") == "img"]
        drawn = re.findall(r'Plotly\.newPlot\("([^"]+)"', page.scripts[-1])
        assert drawn == [image["id"] for image in images]
        assert len(drawn) == 8
        ids = page.ids()
        assert len(ids) == len(set(ids))
        assert {image[name] for image in images for name in ("aria-labelledby", "aria-describedby")} <= set(ids)

    def test_every_row_is_told(self, html: str) -> None:
        """Each row stands there with its claim as text, its figure with interval, and whether it passed."""
        words = Page(html).words
        assert "1a pass what <holds> >= 0.90 0.950 (0.900 to 0.970) twin" in words
        assert "7d miss what fails >= 0.80 0.700" in words
        assert "11 not run what is untried <= 1 % - why" in words

    def test_what_was_missed_comes_first(self, html: str) -> None:
        """The verdict names the missed row with its figure before it counts those that pass."""
        verdict = "Missed: 7d (what fails: 0.700, bar >= 0.80). 1 of 2 rows that were run pass. Not run: 11."
        assert verdict in Page(html).words

    def test_it_says_where_the_bank_comes_from(self, full: Evidence, html: str) -> None:
        """Fingerprints, hashes, the reference with what it certifies, and limits are there."""
        words, card = Page(html).words, full.bank.card
        assert f"Bank {card.bank_id} of tiny" in words
        for digest in (card.model.weights_fingerprint, card.tensors_sha256, *card.corpus_sha256.values()):
            assert digest in words
        for turns in card.reference.turns.values():
            finest = 100 * (1 - 0.05 ** (1 / turns))
            assert f"{turns} reference turns; the finest false-alarm rate they certify with 95 % confidence" in words
            assert f"{finest:.2f} %" in words
        assert "English only" in words
        assert "Text-equivalent, so that nothing is claimed beyond words: fear." in words

    def test_no_text_of_the_corpus_is_in_it(self, full: Evidence, html: str) -> None:
        """Neither prompts nor replies nor texts are shown."""
        texts = [item.user for item in full.corpus.grid] + [text.text for text in full.corpus.texts]
        assert not [text for text in texts if text in html]


class TestMissing:
    """What is not there."""

    def test_optional_parts_of_the_corpus(self, bare: Evidence, tmp_path: Path) -> None:
        """Without contrast pairs, crises, hard texts, series and plain users the page says what is not drawn."""
        page = Page(written(bare, tmp_path))
        assert page.scripts[-1].count("Plotly.newPlot(") == 6
        assert page.words.count("Not drawn:") == 2

    def test_nothing_missed(self, full: Evidence, tmp_path: Path) -> None:
        """Where every row passes, the verdict says so."""
        assert "No row was missed. 1 of 1 rows that were run pass." in Page(written(full, tmp_path, ROWS[:1])).words

    def test_nothing_run(self, full: Evidence, tmp_path: Path) -> None:
        """Without a row that was run nothing is claimed."""
        assert "nothing is claimed of this bank" in Page(written(full, tmp_path, ())).words
