"""``affect-monitor audit``: looks into the audit store, verifies its chain, hands it on."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.errors import SetupError
from monitor.terminal import Bar, need

if TYPE_CHECKING:
    from monitor.outputs.audit_chain import Break, Verdict
    from monitor.outputs.audit_read import Record

audit_app = typer.Typer(
    help="Look into the audit store and verify it; a sidecar may write meanwhile.", no_args_is_help=True
)

_FILE = Annotated[Path, typer.Option("--file", help="What serve writes by --audit-file.", envvar="AFFECT_AUDIT_FILE")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
_SPANS = {"m": "minutes", "h": "hours", "d": "days"}
_LAST_NS = 2**63 - 1
_LATE = 2.0
"""Seconds after which work gets a bar."""
_WIDTH = 64
"""Tokens on a line of a strip."""


@audit_app.command("list")
def audit_list(
    file: _FILE,
    policy: Annotated[str | None, typer.Option(help="Turns of this policy alone.")] = None,
    alerted: Annotated[bool, typer.Option("--alerted", help="Turns that counted towards an alert alone.")] = False,
    since: Annotated[str, typer.Option(help="ISO time, or an age such as 90m, 12h, 7d.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="Rows at most: the latest ones.")] = 50,
    as_json: _JSON = False,
) -> None:
    """The latest rows: turns, administrative actions, what was lost and what was pruned."""
    from monitor.outputs.audit_read import latest

    with _opened(file) as store:
        found = latest(store, limit=limit, policy=policy, alerted=alerted, since_ns=_since(since))
    if as_json:
        print(json.dumps([_told(row) for row in found], indent=1))
        return
    table = Table(box=None, header_style="bold")
    for name in ("row", "when (UTC)", "kind", "what"):
        table.add_column(name, justify="right" if name == "row" else "left", no_wrap=name != "what")
    for row in found:
        table.add_row(str(row.seq), _when(row.unix_ns), row.kind, _line(row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


@audit_app.command("show")
def audit_show(
    turn_id: Annotated[str, typer.Argument(help="Turn id, from a list, an alert or a log.")],
    file: _FILE,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the model's tokenizer: shows text, where token ids are stored.")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """One turn: its scores, and the affect of its tokens where they are kept."""
    from monitor.outputs.audit_read import turn

    with _opened(file) as store:
        found = turn(store, turn_id)
    if found is None:
        raise SetupError("TURN_ID", f"{turn_id} is not in {file}; it was not sampled, was pruned or never happened")
    words = _words(found, tokenizer) if tokenizer else []
    if as_json:
        print(json.dumps(_told(found) | {"trace": found.trace} | ({"words": words} if words else {}), indent=1))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    _show_scores(console, found)
    if found.trace is not None:
        _show_trace(console, found.trace, words)


@audit_app.command("verify")
def audit_verify(
    file: _FILE,
    key_file: Annotated[
        Path | None, typer.Option(help="Secret of the chain, where it has one.", envvar="AFFECT_AUDIT_KEY_FILE")
    ] = None,
    head: Annotated[
        str, typer.Option(help="SEQ:HASH from the sidecar's log (audit_head): a copy kept elsewhere.")
    ] = "",
    as_json: _JSON = False,
) -> None:
    """Follow the hash chain; exit code 1 when a row was changed, deleted or moved, with the first one at fault."""
    from monitor.outputs.audit_chain import Chain, verify
    from monitor.outputs.audit_file import read_key
    from monitor.outputs.audit_read import compare_head, is_keyed

    chain = Chain(read_key(key_file, "--key-file"))
    with _opened(file) as store, Bar("rows", _LATE) as told:
        if is_keyed(store) and not chain.keyed:
            raise SetupError("--key-file", f"{file} was made with a key; give the file that holds it")
        verdict = verify(store, chain, told)
        bad = verdict.bad or (compare_head(store, head) if head else None)
    if as_json:
        print(json.dumps(_verdict(verdict, bad), indent=1))
    elif bad:
        print(f"{file} does not verify: row {bad.seq} {bad.what}")
    else:
        print(f"{file} ok: {verdict.rows} rows from {verdict.first} on, head {verdict.head}")
    raise typer.Exit(1 if bad else 0)


@audit_app.command("export")
def audit_export(file: _FILE, out: Annotated[Path, typer.Option(help="Parquet file to write.")]) -> None:
    """Write all rows to a Parquet file, for DuckDB, Spark and others."""
    from monitor.outputs.audit_export import export

    with _opened(file) as store, Bar("rows", _LATE) as told:
        count = export(store, out, told)
    print(f"{count} rows in {out}")


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    from monitor.outputs.audit_file import open_to_read

    store = open_to_read(file, "--file")
    try:
        yield store
    finally:
        store.close()


def _since(text: str) -> int:
    """The time meant by --since, in nanoseconds since the epoch."""
    if not text:
        return 0
    span = _SPANS.get(text[-1])
    try:
        if span:
            then = datetime.now(timezone.utc) - timedelta(**{span: float(text[:-1])})
        else:
            then = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except (ValueError, OverflowError):
        raise SetupError("--since", f"{text!r} is no time; write 2026-01-31T12:00, or an age such as 12h") from None
    if then.tzinfo is None:
        then = then.replace(tzinfo=timezone.utc)
    return min(int(then.timestamp() * 1e9), _LAST_NS)


def _when(unix_ns: int) -> str:
    return datetime.fromtimestamp(unix_ns // 10**9, timezone.utc).isoformat().removesuffix("+00:00")


def _told(row: Record) -> dict[str, Any]:
    return {"seq": row.seq, "kind": row.kind, "unix_ns": row.unix_ns, "hash": row.hash, **row.payload}


def _verdict(verdict: Verdict, bad: Break | None) -> dict[str, Any]:
    wrong = None if bad is None else {"seq": bad.seq, "what": bad.what}
    shown = {"first": verdict.first, "rows": verdict.rows, "head": str(verdict.head)}
    return {"ok": bad is None, **shown, "wrong": wrong}


def _line(row: Record) -> Text:
    """A row in short."""
    told = row.payload
    if row.kind != "turn":
        return Text(", ".join(f"{name} {value}" for name, value in told.items()))
    alerts, marks = ", ".join(told["alerts"]), ", ".join(told["marks"])
    held = ", ".join(each["family"] for each in _interventions(told) if each["touched"])
    return Text.assemble(
        f"{told['turn_id']} {told['policy']}: over-index {_number(told['over_index'])}, ",
        f"p {_number(told['p_value'], 4)}, coverage {told['coverage']:.0%}",
        (f", {told['visibility']}" if told["visibility"] else "", "dim"),
        (f" alert: {alerts}" if alerts else "", "bold red"),
        (f" not judged: {marks}" if marks else "", "yellow"),
        (f" held down: {held}" if held else "", "cyan"),
    )


def _interventions(told: dict[str, Any]) -> list[dict[str, Any]]:
    # Stores of earlier versions do not have them.
    return told.get("interventions", [])  # type: ignore[no-any-return]


def _number(value: float | None, digits: int = 2) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


# -- one turn ---------------------------------------------------------------------------------------------------------


def _show_scores(console: Console, row: Record) -> None:
    told = row.payload
    console.print(Text(f"turn {told['turn_id']}", style="bold"), Text(f"row {row.seq}, {_when(row.unix_ns)} UTC"))
    console.print(f"policy {told['policy']} ({told['stance']}), bank {told['bank_id']}, request {told['request_id']}")
    alerts, marks = ", ".join(told["alerts"]), ", ".join(told["marks"])
    if alerts:
        console.print(Text(f"alert: {alerts} {told['visibility']}", style="bold red"))
    if marks:
        console.print(Text(f"not judged: {marks}", style="yellow"))
    console.print(
        f"A {_number(told['assistant_affect'])} where {_number(told['warranted'])} is warranted for "
        f"U {_number(told['user_affect'])}: over-index {_number(told['over_index'])}, p {_number(told['p_value'], 4)}, "
        f"text twin {_number(told['twin_over_index'])}"
    )
    console.print(
        f"coverage {told['coverage']:.0%}: {told['user_tokens']} tokens of the user, "
        f"{told['assistant_tokens']} of the assistant"
    )
    for each in _interventions(told):
        console.print(
            f"cap on {each['family']} at {each['at']}, layers {each['layers']}: held down {each['touched']} of "
            f"{each['tokens']} generated tokens, by {_number(each['largest'])} at most, {_number(each['mean'])} in mean"
        )
    _show_pairs(console, "families", told["families"], told["user_families"], len(told["families"]))
    _show_pairs(console, "emotions", told["emotions"], told["user_emotions"], 10)


def _show_pairs(
    console: Console, what: str, assistant: dict[str, float | None], user: dict[str, float | None], most: int
) -> None:
    """Figures of assistant and user beside each other, the assistant's highest first."""
    if not assistant:
        return
    table = Table(box=None, header_style="bold")
    table.add_column(what)
    table.add_column("assistant", justify="right")
    table.add_column("user", justify="right")
    ordered = sorted(assistant, key=lambda name: -(assistant[name] or 0.0))
    for name in ordered[:most]:
        table.add_row(name, _number(assistant[name]), _number(user.get(name)))
    console.print(table)
    if len(ordered) > most:
        console.print(Text(f"and {len(ordered) - most} more; --json has all", style="dim"))


def _words(row: Record, folder: Path) -> list[str]:
    """The text of every token of a trace."""
    if row.trace is None or "token_ids" not in row.trace:
        raise SetupError(
            "--tokenizer", "no token ids are stored for this turn; serve keeps them where audit_text is on"
        )
    need("transformers", "demo")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise SetupError("--tokenizer", f"{folder} holds no tokenizer ({error}); name a model's folder") from None
    return [str(tokenizer.decode([token])) for token in row.trace["token_ids"]]


def _show_trace(console: Console, trace: dict[str, list[Any]], words: list[str]) -> None:
    """Affect token by token: a strip of bars, or a line a token where there is text."""
    from monitor.outputs.strip import Strip

    strip = Strip(trace["positions"], trace["roles"], trace["affect"])
    console.print(Text(f"affect of {len(strip)} tokens, {strip.legend}", style="bold"))
    lines = strip.told(words) if words else strip.lines(_WIDTH)
    for line in lines:
        console.print(line, soft_wrap=True)
