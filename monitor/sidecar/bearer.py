"""The bearer token: whoever may look inside and reload has it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import stat
from collections.abc import Callable
from pathlib import Path

from monitor.errors import SetupError
from monitor.sidecar.watched import Watched


class BearerToken:
    """A token in a file, read anew when the file changes.

    Args:
        file: Holds the token and perhaps a line end.
        told: Called after every change of it: with None when it was taken, with the error when it was refused.

    Raises:
        SetupError: The file cannot be read, is empty, or everyone on the machine may read it.
    """

    def __init__(self, file: Path, told: Callable[[SetupError | None], None]) -> None:
        self._watched = Watched([file], lambda: _digest(read_token(file)), told)

    def admits(self, authorization: str) -> bool:
        """Whether the value of an Authorization header shows the token; takes the same time for every wrong one."""
        scheme, _, given = authorization.partition(" ")
        return self._is(given.strip()) and scheme.lower() == "bearer"

    def admits_password(self, authorization: str) -> bool:
        """Whether the value of an Authorization header shows it as a password, as browsers do, of any user."""
        scheme, _, given = authorization.partition(" ")
        try:
            _, _, password = base64.b64decode(given.strip(), validate=True).partition(b":")
        except ValueError:
            password = b""
        return self._is(password.decode(errors="replace")) and scheme.lower() == "basic"

    def _is(self, given: str) -> bool:
        return hmac.compare_digest(_digest(given), self._watched.current())


def read_token(file: Path) -> str:
    """The token in a file.

    Raises:
        SetupError: The file cannot be read, is empty, or everyone on the machine may read it.
    """
    try:
        mode, token = file.stat().st_mode, file.read_text("ascii").strip()
    except OSError as error:
        raise SetupError("token_file", f"{file}: {error.strerror}; name a file that can be read") from None
    except UnicodeDecodeError:
        raise SetupError("token_file", f"{file}: is not ASCII; write one line of letters and digits") from None
    if mode & stat.S_IROTH:
        raise SetupError("token_file", f"{file}: everyone on this machine can read it; chmod o-r it")
    if not token:
        raise SetupError("token_file", f"{file}: is empty; write a token into it, such as openssl rand -hex 32 makes")
    return token


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
