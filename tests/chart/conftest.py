"""The chart as Helm renders it."""

from __future__ import annotations

from pathlib import Path

import pytest
from helm_engine import CI, NEWEST, Document, Render, documents, read_values, rendered_files


@pytest.fixture(scope="session")
def render() -> Render:
    """``render(values_file, kube_version=...)``: the objects that a values file, or one named in ``ci/``, makes."""

    def rendered(values_file: Path | str, kube_version: str = NEWEST) -> list[Document]:
        file = CI[values_file] if isinstance(values_file, str) else values_file
        return documents(rendered_files(read_values(file), kube_version))

    return rendered
