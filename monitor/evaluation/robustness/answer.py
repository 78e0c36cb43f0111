"""Which emotions hold, which collapse, and by what: one paragraph for someone who decides about a product."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from monitor.evaluation.robustness.averaged import Outcome
from monitor.evaluation.robustness.hiding import Hidden
from monitor.evaluation.robustness.presence import COLLAPSES, HOLDS, TEXT_EQUIVALENT, VERDICTS
from monitor.evaluation.robustness.suffix import WORDS

_FEW = 8
"""Texts of an emotion below which its own verdict is coarse."""
_WORST = 3
"""Kinds of perturbation that are named."""


def answer_of(outcome: Outcome, hidden: Sequence[Hidden]) -> str:
    """The paragraph."""
    sentences = (_clean(outcome), _steadiness(outcome), _harm(outcome), _talk(outcome), _hiding(hidden))
    return " ".join(filter(None, sentences))


def _clean(outcome: Outcome) -> str:
    by_verdict: dict[str, list[str]] = defaultdict(list)
    for each in outcome.clean.found:
        by_verdict[each.verdict].append(each.emotion)
    told = (
        f"Of {len(outcome.clean.found)} emotions that situations carry unnamed, {len(by_verdict[HOLDS])} are "
        f"read beyond what words alone tell ({_names(by_verdict[HOLDS])})"
    )
    for verdict, words in ((TEXT_EQUIVALENT, "not surely better than by words"), (COLLAPSES, "not found")):
        told += f"; {words}: {_names(by_verdict[verdict])}" if by_verdict[verdict] else ""
    texts = min(each.texts for each in outcome.clean.found)
    few = ", too few for one verdict to tell a probe from words: figures over all emotions are surer"
    return f"{told}. Each was tried on {texts} texts{few if texts < _FEW else ''}."


def _steadiness(outcome: Outcome) -> str:
    under: dict[str, dict[str, list[str]]] = {each.emotion: defaultdict(list) for each in outcome.clean.found}
    for each in outcome.perturbed:
        under[each.emotion][each.verdict].append(each.kind)
    counts = Counter(each.verdict for each in outcome.perturbed)
    best = max(under, key=lambda name: len(under[name][HOLDS]))
    worst = max(under, key=lambda name: len(under[name][COLLAPSES]))
    held, fallen = under[best][HOLDS], under[worst][COLLAPSES]
    return (
        f"Under {len(outcome.families)} kinds of perturbation ({len(outcome.perturbed)} verdicts: "
        f"{_names(f'{verdict} {counts[verdict]}' for verdict in VERDICTS)}) "
        + (f"{best} is the steadiest and holds under {len(held)}; " if held else "none surely holds; ")
        + (
            f"{worst} is the weakest and collapses under {len(fallen)} ({_names(fallen)})."
            if fallen
            else "none collapses."
        )
    )


def _harm(outcome: Outcome) -> str:
    losses = {each.kind: float(each.loss[0]) for each in outcome.families if not each.about}
    worst = sorted(losses, key=lambda kind: -losses[kind])[:_WORST]
    return "Most recall is lost to " + _names(f"{kind} ({100 * losses[kind]:.0f} points)" for kind in worst) + "."


def _talk(outcome: Outcome) -> str:
    fires = [f"{each.kind} {each.probe.recall[0]:.0%}" for each in outcome.families if each.about]
    return f"Emotional texts that are only talked about still fire ({_names(fires)})." if fires else ""


def _hiding(hidden: Sequence[Hidden]) -> str:
    if not hidden:
        return ""
    random, chosen = (float(np.mean([not each.probe[at] for each in hidden])) for at in (0, 1))
    return (
        f"{WORDS} words chosen against the probe and put after a text hide {chosen:.0%} of the emotions found, as many "
        f"random words {random:.0%}."
    )


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
