"""A page that needs no network: a template of this room, with what drew it inside."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "transformers", "plotly")


def write_offline(template: str, target: Path, filters: dict[str, Callable[..., Any]], **content: object) -> None:
    """Writes a page as HTML.

    Args:
        template: Its name; besides the content it has ``versions`` of what made the page, and ``plotly``, the script.
        target: The file; its folder must exist.
        filters: Of the template.
        content: What the template asks for.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= filters
    versions = {"Python": sys.version.split()[0], **{name: version(name) for name in _PACKAGES}}
    page = environment.get_template(template).render(versions=versions, plotly=get_plotlyjs(), **content)
    target.write_text(page, encoding="utf-8")
