"""How well the method does when it is fitted in the register it is tested on, beside TF-IDF: is the method the limit?

    python tests/bench/in_register.py --train goemotions/train.tsv --dev goemotions/dev.tsv

Fits whitened differences of means, and logistic regression on TF-IDF, on the same texts of the one file, and prints the
macro AUROC of both on the other, over every emotion the built-in bank names. About ten minutes on two cores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import Progress
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from monitor.calibration.activations import Activations, collect
from monitor.calibration.corpus import SHIPPED
from monitor.calibration.lines import EmotionText, read_emotions
from monitor.calibration.readers import read_texts
from monitor.calibration.statistics import cluster_weights, figure_of, macro_auroc_draws
from monitor.calibration.tables import as_texts
from monitor.capture.identity import weights_fingerprint
from monitor.demo.assistant import cache_folder, ensure_assistant, load_assistant
from monitor.probes.fit import Whitened
from monitor.probes.markers import find_markers


def main(
    train: Annotated[Path, typer.Option(help="Labelled texts to fit on.")],
    dev: Annotated[Path, typer.Option(help="Labelled texts to test on.")],
    limit: Annotated[int, typer.Option(help="Texts to fit on, the first after a seeded shuffle.")] = 8000,
    layer: Annotated[int, typer.Option(help="Layer of the demo assistant.")] = 16,
) -> None:
    """Prints both figures with their 95 % bootstrap intervals."""
    names = [emotion.name for emotion in read_emotions(SHIPPED / "emotions.json")]
    fitted, tested = read_texts(train, names).texts, read_texts(dev, names).texts
    fitted = [fitted[index] for index in np.random.default_rng(0).permutation(len(fitted))[:limit]]
    names = sorted({text.emotion for text in fitted} & {text.emotion for text in tested} & set(names))
    classes = np.array([names.index(text.emotion) if text.emotion in names else len(names) for text in fitted])
    truth = np.array([[text.emotion == name for name in names] for text in tested])

    rows, fresh = (_rows(texts, layer) for texts in (fitted, tested))
    probes = (fresh - rows.mean(axis=0)) @ Whitened().classes(rows, classes, len(names)).T
    words = TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2)).fit([text.text for text in fitted])
    model = LogisticRegression(C=10.0, max_iter=200).fit(words.transform([text.text for text in fitted]), classes)
    twin = model.decision_function(words.transform([text.text for text in tested]))[:, : len(names)]
    weights = cluster_weights(np.arange(len(tested)))
    for name, scores in (("probes", probes), ("TF-IDF", twin)):
        figure = figure_of(macro_auroc_draws(scores, truth, weights))
        print(
            f"{name}: macro AUROC {figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f}), {len(names)} emotions, "
            f"fitted on {len(fitted)} texts, tested on {len(tested)}"
        )


def _rows(texts: list[EmotionText], layer: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Mean rows of texts as a user's."""
    model, tokenizer = load_assistant(ensure_assistant())
    with Progress() as bar:
        task = bar.add_task("texts", total=len(texts))
        found: Activations = collect(
            model,
            tokenizer,
            find_markers(tokenizer),
            as_texts([text.text for text in texts], 0),
            [layer],
            cache=(cache_folder() / "activations", weights_fingerprint(model)),
            progress=lambda done, _total: bar.update(task, completed=done),
        )
    return found.means[:, 0, 0].astype(np.float64)


if __name__ == "__main__":
    typer.run(main)
