"""The demo's scripted conversations: what is asked, and for some what the assistant is made to answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from monitor.errors import CorpusError

SHIPPED = Path(__file__).with_name("conversations.jsonl")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScriptMessage(_Part):
    """One message of an exchange."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Exchange(_Part):
    """One request of the script and what kind of reply it brings about."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    kind: Literal["ordinary", "distressed", "overshoot"] = Field(
        description="ordinary: plain both ways; distressed: an upset user, a fitting reply; overshoot: too much affect."
    )
    messages: tuple[ScriptMessage, ...] = Field(min_length=1, description="The conversation; the user speaks last.")
    labels: dict[str, str] = Field(default_factory=dict, description="What the policy routes by.")
    max_tokens: int = Field(ge=1, description="Tokens to generate; 1 where the reply is forced.")
    forced_reply: str | None = Field(
        default=None, min_length=1, description="Authored reply, in place of a generated one."
    )

    @model_validator(mode="after")
    def _user_speaks_last(self) -> Exchange:
        if self.messages[-1].role != "user":
            raise ValueError("the last of messages must be the user's; an authored reply goes into forced_reply")
        return self

    def body(self, model: str) -> dict[str, Any]:
        """The exchange as the body of ``POST /v1/chat/completions``, for the demo's server and vLLM alike."""
        messages = [message.model_dump() for message in self.messages]
        body: dict[str, Any] = {
            "model": model,
            "messages": messages,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "session_id": self.id,
            "metadata": dict(self.labels),
        }
        if self.forced_reply is not None:
            messages.append({"role": "assistant", "content": self.forced_reply})
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body


def load_script(file: Path = SHIPPED) -> tuple[Exchange, ...]:
    """Reads a script, JSON Lines with one exchange a line, in the order in which it is played.

    Raises:
        CorpusError: The file cannot be read, or a line is no exchange; names line and field.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(str(file), f"cannot be read ({error}); name a JSON Lines file of exchanges") from None
    exchanges: dict[str, Exchange] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        exchange = _parse(f"{file.name}:{number}", line)
        if exchange.id in exchanges:
            raise CorpusError(
                f"{file.name}:{number}:id", f"{exchange.id!r} is taken by an earlier line; choose another"
            )
        exchanges[exchange.id] = exchange
    if not exchanges:
        raise CorpusError(str(file), "holds no exchange; add at least one line")
    return tuple(exchanges.values())


def _parse(place: str, line: str) -> Exchange:
    try:
        return Exchange.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ":".join([place, ".".join(map(str, first["loc"]))]).rstrip(":")
        raise CorpusError(field, f"{first['msg']}; see Exchange in monitor/demo/script.py") from None
