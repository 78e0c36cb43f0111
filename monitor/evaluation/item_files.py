"""The authored items: where they lie, and their lines; what they are stands in their README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ITEMS = Path(__file__).parent / "items"


def item_lines(name: str, folder: Path = ITEMS) -> list[dict[str, Any]]:
    """Lines of a file of items."""
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
