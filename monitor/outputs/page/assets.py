"""Files that the pages load: style, script, icon, and plotly's own script out of its package."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_OURS = Path(__file__).parent / "static"
_DIGITS = 12
PLOTLY = "plotly.min.js"
_STYLE_ID = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


def asset(name: str) -> Path | None:
    """Where a file lies; None where there is none of this name."""
    return _files().get(name)


@cache
def address(name: str) -> str:
    """Where a browser finds a file; changes when the file does, so that it may be kept for good.

    Raises:
        KeyError: There is no such file.
    """
    digest = hashlib.sha256(_files()[name].read_bytes()).hexdigest()
    return f"/static/{name}?v={digest[:_DIGITS]}"


@cache
def plotly_styles() -> list[str]:
    """Ids of style elements that plotly's script makes where the page has none: for maps, which are not drawn here.

    The pages' security policy forbids such elements, and browsers would complain of the attempt.
    """
    return _STYLE_ID.findall(_files()[PLOTLY].read_text("utf-8"))


@cache
def _files() -> dict[str, Path]:
    files = {file.name: file for file in _OURS.iterdir()}
    plotly = find_spec("plotly")  # not imported: that takes a while and is not needed
    if plotly is not None and plotly.origin is not None:
        files[PLOTLY] = Path(plotly.origin).parent / "package_data" / PLOTLY
    return files
