"""Where engines reach the sidecar: a unix socket with an owner and a mode, or TCP with mutual TLS."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import structlog

from monitor.errors import SetupError
from monitor.settings import SidecarSettings
from monitor.sidecar.tls import ServerTls, server_credentials

_LOG = structlog.get_logger("sidecar")
_LAST_PORT = 65535
_TLS = ("tls_cert", "tls_key", "tls_client_ca")


def listen(server: grpc.Server, settings: SidecarSettings, told: Callable[[SetupError | None], None]) -> int:
    """Binds a server to the ingest address; returns the port, 1 on a unix socket.

    Args:
        server: Not yet started.
        settings: The address and who may use it.
        told: Called after every change of the certificates: with None when it was taken, with the error when refused.

    Raises:
        SetupError: The address cannot be listened on, or must not be in this way.
    """
    address = settings.ingest
    path = socket_path(address)
    try:
        if path is not None:
            return _listen_unix(server, path, settings)
        tls = _server_tls(settings)
        if tls is not None:
            return int(server.add_secure_port(address, server_credentials(tls, told)))
        _check_insecure(settings)
        return int(server.add_insecure_port(address))
    except (RuntimeError, OSError) as error:
        raise SetupError("--ingest", f"cannot listen on {address} ({error}); choose another address") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host: a name or address, without port."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


# -- TCP --------------------------------------------------------------------------------------------------------------


def _server_tls(settings: SidecarSettings) -> ServerTls | None:
    """The files of mutual TLS; None where none is named."""
    certificate, key, client_ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if certificate is not None and key is not None and client_ca is not None:
        return ServerTls(certificate, key, client_ca)
    missing = [name for name in _TLS if getattr(settings, name) is None]
    if len(missing) < len(_TLS):
        raise SetupError(missing[0], f"is missing; {', '.join(_TLS)} go together: every client shows a certificate")
    return None


def _check_insecure(settings: SidecarSettings) -> None:
    """Refuses a port that strangers can send to."""
    address = settings.ingest
    ways = "give --tls-cert, --tls-key and --tls-client-ca, or take a unix socket"
    if not settings.insecure:
        raise SetupError("--ingest", f"{address} without TLS is open to strangers; {ways} (--insecure: for loopback)")
    if not is_loopback(address.rpartition(":")[0]):
        raise SetupError("--insecure", f"is for loopback, and {address} is not; {ways}, or listen on 127.0.0.1")


# -- unix sockets -----------------------------------------------------------------------------------------------------


def socket_path(address: str) -> Path | None:
    """The socket of an ingest address; None where it is a TCP port.

    Raises:
        SetupError: It is neither.
    """
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix:").removeprefix("//"))
    port = address.rpartition(":")[2]
    if not port.isdecimal() or int(port) > _LAST_PORT:
        # gRPC would wrap it round and listen somewhere else.
        raise SetupError("--ingest", f"{address} must be unix:///PATH or HOST:PORT, with a port from 0 to {_LAST_PORT}")
    return None


@contextmanager
def owners_alone() -> Iterator[None]:
    """What is made meanwhile is this user's alone: a socket is never open wider than it will be, not for a moment."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def open_to(path: Path, settings: SidecarSettings) -> None:
    """Gives a socket the owner, group and mode of the settings.

    Raises:
        SetupError: There is no such owner or group, or this user may not give it away.
    """
    for field, name in (("socket_owner", settings.socket_owner), ("socket_group", settings.socket_group)):
        if name:
            found = int(name) if name.isdecimal() else name
            try:
                # First the owner: the mode opens the socket to whoever its group is then.
                shutil.chown(path, **{"user" if field == "socket_owner" else "group": found})
            except LookupError:
                raise SetupError(field, f"there is no {name} on this machine; name another, or its number") from None
            except OSError as error:
                raise SetupError(field, f"{path} cannot be given to {name} ({error.strerror}); name another") from None
    path.chmod(int(settings.socket_mode, 8))


def _listen_unix(server: grpc.Server, path: Path, settings: SidecarSettings) -> int:
    named = [name for name in _TLS if getattr(settings, name) is not None]
    if named:
        fix = "leave it out; a unix socket is guarded by socket_mode, socket_owner and socket_group"
        raise SetupError(named[0], f"goes with an ingest of HOST:PORT; {fix}")
    clear_socket(path)
    folder = path.parent.stat().st_mode
    if folder & stat.S_IWOTH and not folder & stat.S_ISVTX:
        _LOG.warning("open_folder", folder=str(path.parent), message="anyone can put another socket here; chmod o-w it")
    with owners_alone():
        port = int(server.add_insecure_port(settings.ingest))
    open_to(path, settings)
    return port


def clear_socket(path: Path) -> None:
    """Removes a socket a dead sidecar left; refuses to remove anything else or a socket in use.

    Raises:
        SetupError: There is no such folder, or something else is there.
    """
    if not path.parent.is_dir():
        raise SetupError("--ingest", f"folder {path.parent} does not exist; create it or choose another path")
    if not path.exists():
        return
    if not path.is_socket():
        raise SetupError("--ingest", f"{path} exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise SetupError("--ingest", f"another sidecar serves on {path}; stop it or choose another path")
