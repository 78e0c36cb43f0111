"""Runbooks, from Markdown to pages."""

from __future__ import annotations

from pathlib import Path

from markdown_it import MarkdownIt

RUNBOOKS = Path(__file__).parent / "runbooks"
"""Runbooks in the package: alerts/runbooks of the checkout."""
_MARKDOWN = MarkdownIt("js-default", {"html": False})


def names() -> list[str]:
    """Alerts that have a runbook."""
    return sorted(file.stem for file in RUNBOOKS.glob("Affect*.md"))


def runbook(alert: str) -> str | None:
    """The runbook of an alert as HTML; None where there is none."""
    if alert not in names():
        return None
    html: str = _MARKDOWN.render((RUNBOOKS / f"{alert}.md").read_text("utf-8"))
    return html
