"""A bank on other versions of its model: as it is, realigned, and calibrated anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_corpus import make_corpus, make_model, read, write_corpus
from turned import turned

from monitor.calibration.corpus import Corpus
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.results import Findings
from monitor.evaluation.subject import Subject
from monitor.evaluation.versions.causal import causal_likeness, effects
from monitor.evaluation.versions.similarity import linear_cka, map_correlation
from monitor.evaluation.versions.suite import FRESH, REALIGNED, SAME, SHAPE, judged, slug, versions
from monitor.evaluation.versions.transfer import draw_sample, own_scores, rows_of, transfer
from monitor.evaluation.versions.version import Version
from monitor.probes.fit import Whitened

SKILLS = ("emotions", "excess")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where activations are kept."""
    return tmp_path_factory.mktemp("versions")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    """A corpus whose emotions and grades have signs."""
    return read(write_corpus(folder / "corpus", make_corpus(domains=8)))


@pytest.fixture(scope="module")
def subject(full: Evidence, tiny_tokenizer: Any, folder: Path) -> Subject:
    """The tiny model and its bank."""
    return Subject("tiny", make_model(len(tiny_tokenizer)), tiny_tokenizer, full.bank, folder / "cache")


@pytest.fixture(scope="module")
def findings(subject: Subject, tiny_tokenizer: Any, corpus: Corpus, folder: Path) -> Findings:
    """The model itself, the model in turned coordinates, and a wider one."""

    def opened(name: str, model: Any) -> Callable[[], Version]:
        return lambda: Version(name, model, tiny_tokenizer, folder / "cache")

    others = [
        opened("As It Is", subject.model),
        opened("turned", turned(subject.model)),
        opened("wider", make_model(len(tiny_tokenizer), hidden=64)),
    ]
    steps: list[tuple[int, int]] = []
    found = versions(subject, others, corpus, quick=True, seed=0, told=lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1]
    return found


def value(findings: Findings, name: str) -> float:
    """A measure's figure."""
    found = next(each.value for each in findings.measures if each.id == name)
    assert found is not None
    return found


class TestVersions:
    """The suite."""

    def test_tells_versions_apart(self, findings: Findings) -> None:
        """The model itself takes the same bank, a turned one a realigned bank, and a wider one only a fresh bank."""
        told = {each.what: each.verdict for each in findings.verdicts}
        assert told == {"As It Is": SAME, "turned": REALIGNED, "wider": SHAPE}
        assert "wider" in findings.answer

    def test_measures_nothing_lost_on_the_model_itself(self, findings: Findings) -> None:
        """Against itself a version is alike in everything."""
        for skill in SKILLS:
            assert value(findings, f"as_it_is.{skill}.change") == 0
            assert value(findings, f"as_it_is.{skill}.fresh") == value(findings, f"as_it_is.{skill}.same")
        assert value(findings, "as_it_is.cka") == pytest.approx(1)
        assert value(findings, "as_it_is.emotion_map") == pytest.approx(1)
        assert value(findings, "as_it_is.cosine") == pytest.approx(1, abs=1e-3)
        assert value(findings, "as_it_is.shift") == pytest.approx(0, abs=1e-3)
        assert value(findings, "as_it_is.causal") == pytest.approx(1, abs=1e-3)

    def test_finds_what_a_rotation_leaves(self, findings: Findings) -> None:
        """Turned rows are alike by CKA and their map, directions align, old probes fail as they are."""
        assert value(findings, "turned.cka") == pytest.approx(1, abs=1e-3)
        assert value(findings, "turned.emotion_map") == pytest.approx(1, abs=1e-2)
        assert value(findings, "turned.cosine") > 0.95
        assert value(findings, "turned.emotions.change") < -0.1
        for skill in SKILLS:
            assert value(findings, f"turned.{skill}.share") >= 0.98
        assert value(findings, "turned.causal") < 0.9

    def test_says_what_it_can_of_another_shape(self, findings: Findings) -> None:
        """A wider version has similarities and a fresh bank, and nothing that needs the old one's rows."""
        said = {each.id for each in findings.measures if each.id.startswith("wider.")}
        assert said == {"wider.cka", "wider.emotion_map", "wider.emotions.fresh", "wider.excess.fresh"}

    def test_gives_every_figure_its_number_and_interval(self, findings: Findings) -> None:
        """Notes say how much was read; names are lower case and stand once."""
        names = [each.id for each in findings.measures]
        assert len(names) == len(set(names))
        assert all(any(sign.isdigit() for sign in each.note) for each in findings.measures)
        for each in findings.measures:
            if each.id.endswith(".alarms"):
                assert (each.value, each.note) == (None, "the bank's reference is too small for a p-value of 0.01")
            else:
                assert each.low is not None
                assert each.high is not None
                assert each.low <= each.high

    def test_puts_every_version_in_every_table(self, findings: Findings) -> None:
        """Tables have a row a version."""
        for table in findings.tables:
            assert [row[0] for row in table.rows] == ["As It Is", "turned", "wider"]
            assert all(len(row) == len(table.columns) for row in table.rows)


class TestVerdict:
    """The rule of row 15."""

    @pytest.mark.parametrize(
        ("change", "share", "verdict"),
        [
            ((0.0, 0.02), (0.9, 0.9), SAME),
            ((-0.01, -0.01), (0.5, 0.5), SAME),
            ((-0.02, 0.0), (0.98, 1.0), REALIGNED),
            ((0.0, -0.02), (0.99, 0.97), FRESH),
        ],
    )
    def test_asks_every_skill(self, change: tuple[float, float], share: tuple[float, float], verdict: str) -> None:
        """A bank is valid where no skill lost more than 0.01, realigned where all keep 98 % of a fresh bank."""
        assert judged(dict(zip(SKILLS, change, strict=True)), dict(zip(SKILLS, share, strict=True))) == verdict

    def test_names_measures_as_bars_can(self) -> None:
        """Whatever a folder is called, ids are lower case with underscores."""
        assert slug("My Model-v2.1 (int8)") == "my_model_v2_1_int8"


class TestTransfer:
    """Probes of one version on another's rows."""

    def test_a_map_of_strangers_finds_nothing(self, subject: Subject, corpus: Corpus, tiny_tokenizer: Any) -> None:
        """Old probes read turned rows through a map of true pairs, and not through one of shuffled pairs."""
        sample = draw_sample(corpus, 400, 32, np.random.default_rng(0))
        old, new = (
            rows_of(
                Version("v", model, tiny_tokenizer, subject.cache).activations(sample.conversations, (3,)).means, sample
            )
            for model in (subject.model, turned(subject.model))
        )
        moved = transfer(old, new, sample, Whitened(), np.random.default_rng(0))
        own = own_scores(old, sample, Whitened())
        assert np.corrcoef(own.affect, moved.realigned.affect)[0, 1] > 0.99
        assert np.corrcoef(own.affect, moved.same.affect)[0, 1] < 0.9
        assert abs(np.corrcoef(own.affect, moved.random.affect)[0, 1]) < 0.4

    def test_draws_whole_topics_and_all_domains(self, corpus: Corpus) -> None:
        """A smaller sample holds all texts of its topics, and users of every domain; the same seed draws the same."""
        sample = draw_sample(corpus, 12, 8, np.random.default_rng(1))
        again = draw_sample(corpus, 12, 8, np.random.default_rng(1))
        assert sample.conversations == again.conversations
        topics = set(sample.cluster[sample.text])
        assert sample.text.sum() == sum(text.topic.lower() in topics for text in corpus.texts) < len(corpus.texts)
        assert (~sample.text).sum() == 3 * 8


class TestSimilarity:
    """Rows of two versions."""

    def test_of_rows_that_have_nothing_in_common(self) -> None:
        """Turned and stretched as a whole, rows stay alike; other rows are not."""
        rng = np.random.default_rng(0)
        rows, other = rng.normal(size=(300, 10)), rng.normal(size=(300, 12))
        rotation = np.linalg.qr(rng.normal(size=(10, 10)))[0]
        truth = np.arange(300)[:, None] % 12 == np.arange(12)
        weights = np.ones((1, 300))
        assert linear_cka(rows, 3 * rows @ rotation, weights)[0] == pytest.approx(1)
        assert linear_cka(rows, other, weights)[0] < 0.2
        assert map_correlation(rows, 3 * rows @ rotation, truth, weights)[0] == pytest.approx(1)
        assert abs(map_correlation(rows, other, truth, weights)[0]) < 0.4

    def test_of_pushes(self, subject: Subject, tiny_tokenizer: Any) -> None:
        """A push does the same to the same model, and families differ from each other."""
        version = Version("v", subject.model, tiny_tokenizer, subject.cache)
        prompts = [[{"role": "user", "content": text}] for text in ("abc def", "hij klm", "nop qrs")]
        found = effects(version, subject.bank, prompts)
        assert found.shape[:2] == (len(subject.bank.card.families), 3)
        alike = causal_likeness(found, found, 0)
        assert alike.figure.value == pytest.approx(1)
        assert alike.null < 0.99
