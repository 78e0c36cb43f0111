"""The tables of ``evaluate distortion``."""

from __future__ import annotations

from collections.abc import Mapping

from monitor.evaluation.bars import figure_text
from monitor.evaluation.distortion.answered import REPLY_TOKENS, Answered
from monitor.evaluation.distortion.bending import settings
from monitor.evaluation.distortion.foretold import PREDICTORS, SCOPES, stem_of, targets
from monitor.evaluation.judge import RATE
from monitor.evaluation.results import Measure, Table


def tables_by_condition(answered: Answered, found: Mapping[str, Measure]) -> list[Table]:
    """Answers, their change from neutral, and affect: a table each, a row for each setting."""
    said = {
        "accuracy.fact": "facts right", "adherence": "policy kept", "preference.fact": "facts, right likelier",
        "preference.policy": "policy, right likelier", "yes_no": "yes told from no", "mixed": "mixed",
        "open": "neither",
    }  # fmt: skip
    changed = {
        "accuracy.fact.change": "facts right", "adherence.change": "policy kept",
        "preference.fact.change": "facts, right likelier", "preference.policy.change": "policy, right likelier",
        "margin.change": "nats a token", "bent.reply": "replies bent", "bent.preference": "preferences bent",
    }  # fmt: skip
    affect = {
        "user": "U", "affect": "A", "over": "over-index", "over.change": "less neutral", "alarms": f"p <= {RATE:g}",
        "twin": "by the text twin",
    }  # fmt: skip
    return [
        _table(
            "Answers by condition",
            f"Greedy replies of {REPLY_TOKENS} tokens, read by whole words (what is no column is wrong), and "
            "whether the right answer is the likelier. Yes told from no: AUROC, which a habit of either does not help.",
            said, answered, found,
        ),
        _table(
            "Against the same questions put neutrally",
            "Paired differences; then, of the answers right when neutral, the share that is wrong here.",
            changed, answered, found,
        ),
        _table("Affect of the replies", "Means over replies, in units of the reference.", affect, answered, found),
    ]  # fmt: skip


def _table(
    title: str, caption: str, columns: Mapping[str, str], answered: Answered, found: Mapping[str, Measure]
) -> Table:
    rows = [
        [setting.words, *(_cell(found.get(f"{name}.{setting.name}")) for name in columns)]
        for setting in settings(answered)
    ]
    held = [row for row in rows if set(row[1:]) != {"-"}]
    return Table(title=title, caption=caption, columns=["condition", *columns.values()], rows=held)


def _cell(found: Measure | None) -> str:
    return "-" if found is None else figure_text(found)


def table_of_signs(answered: Answered, found: Mapping[str, Measure]) -> Table:
    """AUROC of every predictor, a row for each target and scope."""
    rows = []
    for target in targets(answered):
        for scope, words in SCOPES.items():
            stem = stem_of(target, scope)
            row = [found[f"{stem}.{name}" if name else stem] for name in PREDICTORS]
            rows.append([target.words, words, *(figure_text(each) for each in row)])
    return Table(
        title="What tells a wrong answer (AUROC)",
        caption="0.5 is chance. Within one condition, what a condition does to all replies alike does not count.",
        columns=["answers", "compared", *PREDICTORS.values()],
        rows=rows,
    )
