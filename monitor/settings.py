"""Settings of the sidecar: flag > environment (``AFFECT_*``) > file (``--settings FILE.yaml``) > default."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from monitor.errors import SetupError


class SidecarSettings(BaseSettings):
    """Everything ``affect-monitor serve`` can be told."""

    model_config = SettingsConfigDict(env_prefix="AFFECT_", extra="forbid")

    bank: str = Field(description="Folder of a bank, or the name of a shipped one.")
    policy: Path = Field(description="Policy file.")
    ingest: str = Field(default="unix:///run/affect/ingest.sock", description="Address of the gRPC service.")
    http_host: str = Field(default="127.0.0.1", description="Address of /metrics, health and the status page.")
    http_port: int = Field(default=9469, ge=0, le=65535, description="Port of the same; 0 takes a free one.")
    instance: str = Field(
        default_factory=socket.gethostname,
        min_length=1,
        description="Name of this sidecar, a label of the alerts it tells; default: the host's, in a pod the pod's.",
    )
    alertmanager_url: str = Field(
        default="", description="Alertmanager's base address; empty: it is not told of alerts."
    )
    webhook_url: str = Field(
        default="",
        description="Address that alerts are posted to, in the shape of Alertmanager's webhook; empty: none.",
    )
    max_frame_bytes: int = Field(default=16 << 20, ge=1 << 16, le=64 << 20, description="Largest frame taken.")
    credit_bytes: int = Field(default=32 << 20, ge=1 << 16, description="Bytes a client may have in flight.")
    sampling_rate: float = Field(default=1, gt=0, le=1, description="Share of requests that engines send, by their id.")
    shared_memory_bytes: int = Field(
        default=0, ge=0, le=1 << 28, description="Memory each engine may share on a unix socket, for rows; 0: none."
    )
    projection: bool = Field(
        default=False,
        description="Have engines multiply rows with the probes before they send them: a fraction of the bytes, but a "
        "new bank costs the turns that are open.",
    )
    prefix_cache_bytes: int = Field(
        default=64 << 20,
        ge=0,
        le=1 << 34,
        description="Memory for scores of prompts' beginnings, for engines that do not send again what their prefix "
        "cache holds; 0: such tokens stay gaps.",
    )
    max_open_turns: int = Field(default=4096, ge=1, le=1 << 20, description="Turns open at once.")
    turn_timeout_seconds: float = Field(default=300, gt=0, description="Silence after which an open turn is given up.")
    allow_unvalidated: bool = Field(
        default=False, description="Score models whose fingerprint is not the bank's, marked as unvalidated."
    )
    baseline_file: Path | None = Field(
        default=None,
        description="File that collects scores of judged turns without alert, for affect-monitor reference; no text.",
    )
    baseline_turns: int = Field(default=2000, ge=1, le=1 << 20, description="Turns that file may hold.")
    audit_file: Path | None = Field(
        default=None, description="SQLite file of turns that alerted, a sample of the rest, and administrative actions."
    )
    audit_sample_rate: float = Field(
        default=0.01, ge=0, le=1, description="Share of turns without alert that the audit file keeps."
    )
    audit_retain_days: float = Field(default=30, gt=0, description="Age at which its rows are pruned.")
    audit_retain_bytes: int = Field(
        default=1 << 30, ge=1 << 20, description="Size beyond which its oldest rows are pruned."
    )
    audit_tokens: int = Field(
        default=0, ge=0, le=4096, description="Last tokens of an alerted turn whose scores it keeps; 0: none."
    )
    audit_text: bool = Field(default=False, description="Whether the ids of those tokens are kept too, which is text.")
    audit_key_file: Path | None = Field(
        default=None, description="Secret of the audit file's hash chain: who lacks it can forge no row."
    )
    state_file: Path | None = Field(
        default=None,
        description="File of this sidecar alone, in which evidence of drift and alerts outlast a restart; no text.",
    )
    canary_url: str = Field(
        default="",
        pattern=r"^(https?://[^/].*)?$",
        description="Base address of the OpenAI-compatible server, for canary prompts; empty: none are played.",
    )
    canary_model: str = Field(default="", description="Its name of the model; empty: the bank's.")
    canary_file: Path | None = Field(default=None, description="Canary prompts, JSON Lines; default: the shipped ones.")
    canary_record: Path | None = Field(
        default=None, description="File that keeps what they scored first: later runs are compared with it; no text."
    )
    canary_alpha: float = Field(
        default=0.001,
        gt=0,
        lt=1,
        description="Chance that a run of an unchanged model is called changed, while chance has no direction.",
    )
    reload_on_change: bool = Field(
        default=False, description="Take policy and bank anew whenever their files change, as in a mounted ConfigMap."
    )
    keep_turns: int = Field(default=1000, ge=1, description="Finished turns kept in memory for looking at.")
    drain_seconds: float = Field(default=10, ge=0, description="Time open streams get when the sidecar is stopped.")
    threads: int = Field(default=1, ge=1, description="Threads of the scoring matrix product.")
    socket_mode: str = Field(default="0660", pattern="^0?[0-7]{3}$", description="Mode of the unix socket, octal.")
    socket_owner: str = Field(default="", description="User the unix socket is given to, name or number.")
    socket_group: str = Field(default="", description="Group the unix socket is given to, name or number.")
    tls_cert: Path | None = Field(default=None, description="Certificate of a TCP ingest, PEM; read anew on change.")
    tls_key: Path | None = Field(default=None, description="Its private key.")
    tls_client_ca: Path | None = Field(default=None, description="Certificates that sign those of clients.")
    insecure: bool = Field(default=False, description="Allows a TCP ingest without TLS, on loopback alone.")
    token_file: Path | None = Field(
        default=None, description="Token asked of whoever looks inside or reloads; read anew on change."
    )


def load_settings(file: Path | None, flags: dict[str, Any]) -> SidecarSettings:
    """Combines the sources.

    Raises:
        SetupError: A value is missing or wrong; names the setting, its flag and its variable.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    stored = _read(file) if file else {}
    try:
        return _WithFile(stored)(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            known = ", ".join(SidecarSettings.model_fields)
            raise SetupError(f"{file}:{name}", f"is no setting; take it out, or choose one of {known}") from None
        flag = f"--{name.replace('_', '-')}, " if name in flags else ""
        raise SetupError(name, f"{first['msg']}; set {flag}AFFECT_{name.upper()} or the settings file") from None


def _read(file: Path) -> dict[str, Any]:
    try:
        stored = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise SetupError("--settings", f"{file}: {error.strerror}; name a file that can be read") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: dates and numbers that are none
        raise SetupError(str(file), f"is not YAML: {error}") from None
    if stored is None:
        return {}
    if not isinstance(stored, dict) or not all(isinstance(name, str) for name in stored):
        raise SetupError(str(file), "must be a mapping of settings to values, such as max_open_turns: 100")
    return stored


def _WithFile(stored: dict[str, Any]) -> type[SidecarSettings]:  # noqa: N802 - makes a class
    """The settings with a file as the source of least precedence."""

    class Settings(SidecarSettings):
        @classmethod
        def settings_customise_sources(cls, settings_cls: Any, **sources: Any) -> Any:  # type: ignore[override]
            del settings_cls
            return sources["init_settings"], sources["env_settings"], lambda: stored

    return Settings
