"""``affect-monitor canary``: has a running sidecar play its canary prompts and shows what came of it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.errors import SetupError
from monitor.terminal import Bar

if TYPE_CHECKING:
    import httpx

_CALL_TIMEOUT = 10.0
_LOOK_SECONDS = 0.5
_LATE = 2.0
"""Seconds after which work gets a bar."""
_PATH = "/-/canary"


def canary(
    url: Annotated[str, typer.Option(help="Base address of the sidecar's pages.")] = "http://127.0.0.1:9469",
    token_file: Annotated[
        Path | None, typer.Option(envvar="AFFECT_TOKEN_FILE", help="The token, where the sidecar asks for one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Have a sidecar replay its canary prompts; exit code 1 when what answers no longer behaves as recorded."""
    import httpx

    from monitor.sidecar.bearer import read_token

    proof = {"authorization": f"Bearer {read_token(token_file)}"} if token_file else {}
    with httpx.Client(timeout=_CALL_TIMEOUT, headers=proof) as http:
        run = _answer(http, "POST", url)["run"]
        with Bar("prompts", _LATE) as told:
            while (state := _answer(http, "GET", url))["running"] and state["run"] == run:
                told(state["played"], state["of"])
                time.sleep(_LOOK_SECONDS)
    outcome = state["last"]
    if outcome is None or outcome["run"] < run:
        raise SetupError("--url", "the run broke off; the sidecar's log says why")
    print(json.dumps(outcome, indent=1) if as_json else _line(outcome))
    raise typer.Exit({"changed": 1, "failed": 2}.get(outcome["result"], 0))


def _answer(http: httpx.Client, method: str, url: str) -> Any:
    import httpx

    try:
        answer = http.request(method, url.rstrip("/") + _PATH)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SetupError("--url", f"no sidecar answers on {url} ({error}); name the address of its pages") from None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise SetupError("--token-file", f"the sidecar on {url} asks for its token")
    if not answer.is_success:
        raise SetupError("--url", f"{url} answers {answer.status_code}: {answer.text.strip()[:200]}")
    return answer.json()


def _line(outcome: dict[str, Any]) -> str:
    """What came of a run, in a sentence or two."""
    counts = f"{outcome['same']} prompts as recorded, {outcome['changed']} changed, {outcome['missing']} missing"
    if outcome["p_value"] is not None:
        moved = f"over-index moved by {outcome['shift']:+.2f}, affect of the prompts by {outcome['user_shift']:+.2f}"
        counts = f"{moved} (medians), p {outcome['p_value']:.2g}; {counts}"
    error = f"; {outcome['error']}" if outcome["error"] else ""
    return f"{outcome['result']}: {counts}{error}"
