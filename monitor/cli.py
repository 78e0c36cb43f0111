"""The command line: thin, every command a few lines around the room that does the work.

Exit codes: 0 done; 1 done but the answer is no (lines that failed, a bank or policy that does not pass a check);
2 cannot be done.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from monitor.errors import AffectMonitorError, BankError, PolicyError, SetupError

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ImportError as error:
    print(
        f"error {str(error.name).partition('.')[0]}: is not installed; pip install 'affect-monitor[sidecar]'",
        file=sys.stderr,
    )
    sys.exit(2)

from monitor.cli_attach import attach, detach
from monitor.cli_audit import audit_app
from monitor.cli_bench import bench_app
from monitor.cli_canary import canary
from monitor.cli_chat import chat_app
from monitor.cli_evaluate import evaluate_app
from monitor.cli_rules import rules_app
from monitor.cli_vllm import vllm_app
from monitor.terminal import ERRORS, Bar, check_file, check_folder, client_tls, load_model, need, numbers

if TYPE_CHECKING:
    from monitor.probes.bank import Bank, BankCard

app = typer.Typer(
    help="Sees from a deployed assistant's hidden states when its affect exceeds what situation and policy warrant.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from monitor import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _program(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Takes the options that stand before every command."""


bank_app = typer.Typer(help="Look at banks and check them.", no_args_is_help=True)
app.add_typer(bank_app, name="bank")
corpus_app = typer.Typer(help="Have a corpus written.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")
app.add_typer(audit_app, name="audit")
app.add_typer(rules_app, name="rules")
app.add_typer(vllm_app, name="vllm")
app.add_typer(chat_app, name="chat")
app.add_typer(bench_app, name="bench")
app.add_typer(evaluate_app, name="evaluate")
app.command()(canary)
app.command()(attach)
app.command()(detach)

_BANK = Annotated[str, typer.Option("--bank", help="Folder of a bank, or the name of a shipped one.")]
_MODEL = Annotated[str, typer.Option("--model", help="Folder of a transformers model; demo: the demo assistant.")]
_JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
_TURNS_PER_DAY = 10_000
"""Traffic for which alerts are forecast unless it is said."""


def main() -> None:
    """Entry point: typed errors become one line and exit code 2."""
    try:
        app()
    except AffectMonitorError as error:
        _tell(error)
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "monitor"}:
            raise
        _tell(SetupError(package, "is not installed; pip install 'affect-monitor[demo]'"))
        sys.exit(2)


def _tell(error: AffectMonitorError) -> None:
    """One line on standard error: where the fault lies, what it is and how it is mended."""
    # Not as markup: extras and lists stand in square brackets.
    message = " ".join(error.message.split())
    ERRORS.print(Text.assemble(("error", "bold red"), " ", (error.field, "bold"), ": ", message), soft_wrap=True)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="Exit after the script.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the summary to this file.")] = None,
    chat_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the chat server; 0: a free one.")] = 0,
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the sidecar's pages; 0: a free one.")] = 0,
) -> None:
    """Watch a real chat model being monitored: fetches it, plays scripted conversations, shows scores and alerts."""
    need("transformers", "demo")
    if json_file is not None:
        check_file(json_file, "--json")
    from monitor.demo.run import limit_threads, play

    limit_threads()
    summary = play(Console(), once=once, chat_port=chat_port, http_port=http_port)
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=1) + "\n")


@app.command()
def serve(
    bank: Annotated[str | None, typer.Option(help="Folder of a bank, or the name of a shipped one.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file.")] = None,
    ingest: Annotated[str | None, typer.Option(help="unix:///PATH or HOST:PORT of the gRPC service.")] = None,
    http_host: Annotated[str | None, typer.Option(help="Address of /metrics and the other pages.")] = None,
    http_port: Annotated[int | None, typer.Option(help="Port of the same; 0: a free one.")] = None,
    alertmanager_url: Annotated[str | None, typer.Option(help="Alertmanager's base address.")] = None,
    webhook_url: Annotated[str | None, typer.Option(help="Posts alerts here as Alertmanager's webhook does.")] = None,
    allow_unvalidated: Annotated[
        bool | None, typer.Option("--allow-unvalidated", help="Score models that are not the bank's, marked.")
    ] = None,
    drain_seconds: Annotated[float | None, typer.Option(help="Time open turns get at the end.")] = None,
    baseline_file: Annotated[
        Path | None, typer.Option(help="Collects scores of judged turns without alert here, for the reference command.")
    ] = None,
    baseline_turns: Annotated[int | None, typer.Option(help="Turns that file may hold.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate of a TCP ingest, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help="Certificates that sign those of clients.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Allow a TCP ingest without TLS, on loopback alone.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Token asked of whoever looks inside or reloads; read anew on change.")
    ] = None,
    audit_file: Annotated[
        Path | None,
        typer.Option(help="Keeps turns that alerted, a sample of the rest, and what was done to the sidecar."),
    ] = None,
    state_file: Annotated[
        Path | None, typer.Option(help="Evidence of drift and alerts outlast a restart in this file.")
    ] = None,
    canary_url: Annotated[
        str | None, typer.Option(help="Base address of the inference server, for canary prompts.")
    ] = None,
    canary_model: Annotated[str | None, typer.Option(help="Its name of the model; default: the bank's.")] = None,
    canary_file: Annotated[
        Path | None, typer.Option(help="Canary prompts, JSON Lines; default: the shipped ones.")
    ] = None,
    canary_record: Annotated[
        Path | None, typer.Option(help="Keeps what canary prompts scored first, which later runs are compared with.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="YAML file of settings; flags and AFFECT_* win over it.")
    ] = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Check settings, bank and policy, and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="More log.")] = False,
) -> None:
    """The sidecar: takes hidden states over gRPC, serves /metrics, raises alerts. SIGHUP reloads, SIGTERM drains."""
    from monitor.logs import configure_logs
    from monitor.settings import load_settings

    configure_logs(verbose=verbose)
    flags = {
        "bank": bank, "policy": policy, "ingest": ingest, "http_host": http_host, "http_port": http_port,
        "alertmanager_url": alertmanager_url, "allow_unvalidated": allow_unvalidated, "drain_seconds": drain_seconds,
        "baseline_file": baseline_file, "baseline_turns": baseline_turns, "audit_file": audit_file,
        "state_file": state_file, "tls_cert": tls_cert, "tls_key": tls_key, "tls_client_ca": tls_client_ca,
        "insecure": insecure, "token_file": token_file, "webhook_url": webhook_url, "canary_url": canary_url,
        "canary_model": canary_model, "canary_file": canary_file, "canary_record": canary_record,
    }  # fmt: skip
    chosen = load_settings(settings, flags)
    if check_config:
        _check(chosen.bank, chosen.policy)
        return
    # Before the bank is loaded: a signal that comes meanwhile must not end the process halfway.
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from monitor.sidecar.allocator import keep_freed_blocks
    from monitor.sidecar.server import Sidecar

    keep_freed_blocks()
    sidecar = Sidecar(chosen)
    signal.signal(signal.SIGHUP, lambda *_: threading.Thread(target=sidecar.reload).start())
    stop.wait()
    sidecar.stop()


@app.command("check-config")
def check_config(
    bank: Annotated[str | None, typer.Option(help="Folder of a bank, or the name of a shipped one.")] = None,
    policy: Annotated[Path | None, typer.Option(help="Policy file.")] = None,
    turns_per_day: Annotated[
        int,
        typer.Option(min=1, max=10**8, help="Judged turns a day for which alerts are forecast, for each policy."),
    ] = _TURNS_PER_DAY,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of policy files, for editors, and exit.")
    ] = False,
    as_json: _JSON = False,
) -> None:
    """Check a bank and a policy file against each other, and forecast false alarms; exit code 1 if they do not fit."""
    if schema:
        from monitor.policy.schema import PolicyFile

        print(json.dumps(PolicyFile.model_json_schema(), indent=1))
        return
    if bank is None or policy is None:
        raise SetupError("--policy" if bank else "--bank", "is needed, except with --schema; name one")
    _check(bank, policy, turns_per_day, as_json=as_json)


@app.command()
def calibrate(
    model: _MODEL,
    out: Annotated[Path, typer.Option(help="Folder for the bank and its report.")],
    corpus: Annotated[Path | None, typer.Option(help="Folder of a corpus; default: the one in the package.")] = None,
    texts: Annotated[
        list[Path] | None, typer.Option(help="Further labelled texts: JSON Lines, CSV, TSV or a datasets folder.")
    ] = None,
    approved: Annotated[
        Path | None, typer.Option(help="Approved conversations of this model, JSON Lines; default: the corpus's.")
    ] = None,
    estimator: Annotated[str, typer.Option(help="whitened, anchor or logistic.")] = "whitened",
    layers: Annotated[str, typer.Option(help="Layers of the bank, as in 16,20; default: the best of a sweep.")] = "",
    check_texts: Annotated[
        Path | None, typer.Option(help="Labelled texts by others, to test on alone (row 3 of the battery).")
    ] = None,
    check_dialogues: Annotated[
        Path | None, typer.Option(help="Neutral service dialogues by others, to test on alone (row 11).")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder for activations; default: the user's cache.")] = None,
) -> None:
    """Make a bank and its report: corpus -> activations -> probes -> calibration -> reference -> battery."""
    need("sklearn", "calibrate")
    need("plotly", "calibrate")
    check_folder(out, "--out")
    if cache is not None:
        check_folder(cache, "--cache")
    from monitor.calibration.calibrate import calibrate as make_bank
    from monitor.calibration.corpus import SHIPPED, read_corpus
    from monitor.calibration.dialogues import read_dialogues
    from monitor.calibration.readers import read_texts
    from monitor.demo.assistant import NAME, cache_folder
    from monitor.evaluation.battery.certify import certified
    from monitor.evaluation.battery.evidence import Evidence
    from monitor.evaluation.battery.report import write_report
    from monitor.probes.fit import ESTIMATORS

    if estimator not in ESTIMATORS:
        raise SetupError("--estimator", f"{estimator!r} is none of {sorted(ESTIMATORS)}")
    wanted = numbers(layers, "--layers")
    folder = corpus or SHIPPED
    read = read_corpus(folder, approved or folder / "approved.jsonl")
    emotions = [emotion.name for emotion in read.emotions]
    for path in texts or []:
        read = read.with_texts(path, read_texts(path, emotions).texts)
    outside = read_texts(check_texts, emotions).texts if check_texts else []
    dialogues = read_dialogues(check_dialogues) if check_dialogues else []
    with Bar("conversations") as told:
        made = make_bank(
            NAME if model == "demo" else Path(model).name,
            lambda: load_model(model),
            read,
            cache or cache_folder() / "activations",
            estimator=estimator,
            layers=wanted,
            further=len(outside) + sum(len(talk.exchanges()) for talk in dialogues),
            progress=told,
        )
        evidence = Evidence(made, outside, dialogues)
    bank = certified(made, evidence)
    bank.save(out)
    write_report(evidence, bank.card, out / "report.html")
    _show_battery(bank.card)
    print(f"bank {bank.card.bank_id} and its report: {out / 'report.html'}")


@app.command()
def reference(
    bank: _BANK,
    out: Annotated[Path, typer.Option(help="Folder for the bank with the new reference.")],
    approved: Annotated[
        Path | None, typer.Option(help="Approved conversations of the bank's model, JSON Lines; asks for --model.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The bank's model: folder of a transformers model; demo: the demo assistant.")
    ] = None,
    baseline: Annotated[Path | None, typer.Option(help="What serve wrote to its --baseline-file.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder that keeps activations and token ids; default: nothing is kept.")
    ] = None,
    as_json: _JSON = False,
) -> None:
    """Fit a bank's reference to your own ordinary traffic: the probes stay, what counts as excess is learnt anew."""
    if (approved is None) == (baseline is None):
        raise SetupError("--approved", "give either approved conversations or, by --baseline, a sidecar's turns")
    if (approved is None) != (model is None):
        raise SetupError("--model", "goes with --approved: the conversations run through it; --baseline needs none")
    check_folder(out, "--out")
    if cache is not None:
        check_folder(cache, "--cache")
    from monitor.calibration.refit import approved_turns, baseline_turns, check_approved, refit
    from monitor.probes.bank import load_bank

    loaded = load_bank(bank)
    if baseline is not None:
        gathered = baseline_turns(loaded, baseline)
    elif approved is not None and model is not None:
        need("transformers", "demo")
        check_approved(approved)
        with Bar("conversations") as told:
            gathered = approved_turns(loaded, *load_model(model), approved, cache, told)
    fitted = refit(loaded, gathered)
    fitted.save(out)
    _show_reference(fitted, out, as_json=as_json)


@app.command()
def score(
    bank: _BANK,
    model: _MODEL,
    source: Annotated[Path, typer.Option("--input", help="JSON Lines of conversations or texts.")],
    target: Annotated[Path, typer.Option("--output", help="Where the scores go, a line for a line.")],
    policy: Annotated[Path | None, typer.Option(help="Policy file; default: the service desk's.")] = None,
    allow_unvalidated: Annotated[
        bool, typer.Option("--allow-unvalidated", help="Score a model that is not the bank's.")
    ] = False,
) -> None:
    """Score texts and conversations offline, by the sidecar's own code; exit code 1 when a line could not be scored."""
    need("transformers", "demo")
    from monitor.policy.schema import SHIPPED, load_policy
    from monitor.probes.bank import load_bank
    from monitor.sidecar.offline import OfflineScorer

    loaded = load_bank(bank)
    policies = load_policy(policy or SHIPPED / "service-desk.yaml", loaded)
    scorer = OfflineScorer(loaded, policies, *load_model(model), allow_unvalidated=allow_unvalidated)
    with Bar("lines") as told:
        speed = scorer.score_file(source, target, told)
    ERRORS.print(
        f"{speed.lines} lines, {speed.failed} failed, {speed.tokens} tokens in {speed.seconds:.1f} s "
        f"({speed.tokens / max(speed.seconds, 1e-9):.0f} tokens/s; the model's forward pass took "
        f"{speed.model_seconds / max(speed.seconds, 1e-9):.0%} of it)",
        highlight=False,
    )
    raise typer.Exit(1 if speed.failed else 0)


@app.command()
def status(
    address: Annotated[
        str, typer.Option(help="Ingest address of a running sidecar.")
    ] = "unix:///run/affect/ingest.sock",
    token_file: Annotated[
        Path | None, typer.Option(envvar="AFFECT_TOKEN_FILE", help="The token, where the sidecar asks for one.")
    ] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(envvar="AFFECT_TLS_CA", help="Certificates that sign the sidecar's, PEM.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="AFFECT_TLS_CERT", help="Certificate to show to the sidecar.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(envvar="AFFECT_TLS_KEY", help="Its private key.")] = None,
) -> None:
    """What a running sidecar watches and how it is doing, as JSON."""
    import grpc
    from google.protobuf.json_format import MessageToDict

    from monitor.capture.credentials import open_channel
    from monitor.sidecar.bearer import read_token
    from monitor.wire.v1 import inspect_pb2, inspect_pb2_grpc

    tls = None if address.startswith("unix:") else client_tls(tls_ca, tls_cert, tls_key)
    proof = [("authorization", f"Bearer {read_token(token_file)}")] if token_file else []
    with open_channel(address, tls=tls) as channel:
        stub = inspect_pb2_grpc.InspectServiceStub(channel)
        try:
            found = stub.GetStatus(inspect_pb2.GetStatusRequest(), timeout=5.0, metadata=proof)
            alerts = stub.ListAlerts(inspect_pb2.ListAlertsRequest(), timeout=5.0, metadata=proof)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                raise SetupError("--token-file", f"the sidecar on {address} asks for its token") from None
            raise SetupError("--address", f"no sidecar answers on {address}: {error.details()}") from None
    shown: dict[str, Any] = MessageToDict(found, always_print_fields_with_no_presence=True)
    Console().print_json(json.dumps(shown | {"alerts": MessageToDict(alerts).get("alerts", [])}))


@corpus_app.command("write")
def corpus_write(
    out: Annotated[Path, typer.Option(help="File of texts, JSON Lines; where it exists, it is gone on with.")],
    model: Annotated[str, typer.Option(help="The model that writes: a folder, or demo.")] = "",
    endpoint: Annotated[str, typer.Option(help="Base address of an OpenAI-compatible server that writes.")] = "",
    endpoint_model: Annotated[str, typer.Option(help="The server's name of the model.")] = "",
    emotions: Annotated[
        Path | None,
        typer.Option(help="Emotions, in the layout of emotions.json; default: the 171 of the anchor paper."),
    ] = None,
    topics: Annotated[Path | None, typer.Option(help="JSON list of topics; default: the 100 in the package.")] = None,
    register: Annotated[list[str] | None, typer.Option(help="Kinds of text; default: story.")] = None,
    per_pair: Annotated[int, typer.Option(min=1, help="Texts for each emotion, topic and register.")] = 12,
) -> None:
    """Have a model write labelled texts: every emotion on every topic, without the emotion's word."""
    from monitor.calibration.corpus import SHIPPED
    from monitor.calibration.lines import NEUTRAL, read_emotions
    from monitor.calibration.write_corpus import read_topics, write_texts
    from monitor.calibration.writers import EndpointWriter, LocalWriter, Writer

    if bool(model) == bool(endpoint):
        raise SetupError("--model", "name a model or an --endpoint, one of the two")
    names = [emotion.name for emotion in read_emotions(emotions or SHIPPED / "emotions171.json")]
    listed = read_topics(topics or SHIPPED / "topics.json")
    writer: Writer = EndpointWriter(endpoint, endpoint_model) if endpoint else LocalWriter(*load_model(model))
    with Bar("texts") as told:
        found = write_texts(writer, [*names, NEUTRAL], listed, register or ["story"], per_pair, out, told)
    print(
        f"{found.written} texts written, {found.named} of them name their emotion, {found.left_out} left out, "
        f"{found.present} stood there"
    )


@bank_app.command("show")
def bank_show(bank: Annotated[str, typer.Argument(help="Folder or name.")], as_json: _JSON = False) -> None:
    """What a bank is: model, layers, emotions, reference, figures."""
    from monitor.probes.bank import load_bank

    card = load_bank(bank).card
    if as_json:
        print(card.model_dump_json(indent=1))
        return
    console = Console()
    console.print(f"bank {card.bank_id} for {card.model.name}, layers {list(card.layers)} of {card.model.depth}")
    for family in card.families:
        console.print(f"  {family}: {', '.join(e.name for e in card.emotions if e.family == family)}")
    turns = ", ".join(f"{stance.value} {count}" for stance, count in card.reference.turns.items())
    console.print(f"reference: {card.reference.source}\nturns by stance: {turns}")
    _show_battery(card)


@bank_app.command("verify")
def bank_verify(bank: Annotated[str, typer.Argument(help="Folder or name.")]) -> None:
    """Check hashes, shapes and values of a bank; exit code 1 when it does not verify."""
    from monitor.probes.bank import load_bank

    with _verdict():
        print(f"{load_bank(bank).card.bank_id} ok")


def _show_battery(card: BankCard) -> None:
    """The rows of the battery, a claim each, and the emotions words show as well."""
    console = Console(highlight=False)
    for row in card.battery:
        verdict, style = {True: ("pass", "green"), False: ("MISS", "bold red"), None: ("--  ", "dim")}[row.passed]
        figure = "" if row.value is None else f": {row.value:.3f}"
        interval = "" if row.low is None or row.low == row.high else f" ({row.low:.3f} to {row.high:.3f})"
        console.print(
            Text.assemble((verdict, style), f" {row.number:<4}{row.name}{figure}{interval}; bar {row.bar}"),
            soft_wrap=True,
        )
        if row.note:
            console.print(Text(f"         {row.note}", style="dim"), soft_wrap=True)
    console.print(f"text-equivalent emotions: {', '.join(card.text_equivalent) or 'none'}")


@bank_app.command("fetch")
def bank_fetch(
    url: Annotated[str, typer.Option(help="Address of a .tar.gz with bank.json and bank.safetensors.")],
    sha256: Annotated[str, typer.Option(help="SHA-256 of that file; another is refused.")],
    out: Annotated[Path, typer.Option(help="Folder for the bank; one that is there is replaced.")],
) -> None:
    """Fetch a bank, as a pod's init container does, and check that it is the one that was promised."""
    from monitor.probes.fetch import fetch_bank

    fetch_bank(url, sha256, out)
    print(f"bank in {out}")


@bank_app.command("realign")
def bank_realign(
    bank: _BANK,
    model: Annotated[str, typer.Option("--model", help="The bank's own model; demo: the demo assistant.")],
    new_model: Annotated[str, typer.Option(help="Folder of its new version.")],
    texts: Annotated[Path, typer.Option(help="Texts, best of your users': any file calibrate --texts takes.")],
    out: Annotated[Path, typer.Option(help="Folder for the bank.")],
    cache: Annotated[Path | None, typer.Option(help="Folder for activations; default: the user's cache.")] = None,
) -> None:
    """Carry a bank over to a new version of its model, by texts that both read; no label is needed."""
    need("sklearn", "calibrate")
    check_folder(out, "--out")
    from monitor.calibration.realign import read_shared, realign
    from monitor.demo.assistant import cache_folder
    from monitor.probes.bank import load_bank

    shared, old = read_shared(texts), load_bank(bank)
    with Bar("texts") as told:
        made = realign(
            old, load_model(model), load_model(new_model), shared, name=Path(new_model).name,
            cache=cache or cache_folder() / "activations", progress=told,
        )  # fmt: skip
    made.save(out)
    print(f"bank {made.card.bank_id} in {out}, not validated: look at it with affect-monitor evaluate versions")


@bank_app.command("diff")
def bank_diff(
    a: Annotated[str, typer.Argument(help="Folder or name.")],
    b: Annotated[str, typer.Argument(help="Folder or name.")],
    as_json: _JSON = False,
) -> None:
    """What differs between two banks; exit code 1 when they are not the same."""
    from monitor.probes.bank import load_bank
    from monitor.probes.diff import compare, told

    found = compare(load_bank(a), load_bank(b))
    print(found.model_dump_json(indent=1) if as_json else "\n".join(told(found)))
    raise typer.Exit(0 if found.same else 1)


def _show_reference(bank: Bank, out: Path, *, as_json: bool) -> None:
    from monitor.calibration.refit import certified_rates

    card, rates = bank.card, certified_rates(bank)
    if as_json:
        turns = {stance.value: count for stance, count in card.reference.turns.items()}
        finest = {stance.value: rate for stance, rate in rates.items()}
        shown = {"bank": str(out), "bank_id": card.bank_id, "source": card.reference.source}
        print(json.dumps({**shown, "turns": turns, "finest_false_alarm_rate": finest}, indent=1))
        return
    print(f"bank {card.bank_id} in {out}\nreference: {card.reference.source}")
    for stance, count in card.reference.turns.items():
        print(f"  {stance.value}: {count} turns, which certify false-alarm rates down to {rates[stance]:.4f}")


def _check(bank: str, policy: Path, turns_per_day: int = _TURNS_PER_DAY, *, as_json: bool = False) -> None:
    from dataclasses import asdict

    from monitor.policy.forecast import forecast
    from monitor.policy.schema import load_policy
    from monitor.probes.bank import load_bank

    with _verdict():
        loaded = load_bank(bank)
        policies = load_policy(policy, loaded)
    found = [forecast(entry, loaded, turns_per_day) for entry in policies.policies]
    if as_json:
        print(json.dumps({"bank": loaded.card.bank_id, "policies": [asdict(each) for each in found]}, indent=1))
        return
    from monitor.policy.show import show_forecasts

    show_forecasts(Console(width=None if sys.stdout.isatty() else 120, highlight=False), found)


@contextmanager
def _verdict() -> Iterator[None]:
    """Commands that check something: a fault in it is the answer no, not a command that cannot be carried out."""
    try:
        yield
    except (BankError, PolicyError) as error:
        if error.field.startswith("--"):
            raise
        _tell(error)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    main()
