"""What clients ask of the chat server, and how it refuses."""

from __future__ import annotations

from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.responses import JSONResponse

from monitor.errors import AffectMonitorError

_MAX_MESSAGES, _MAX_CHARACTERS = 1024, 1 << 20
_MAX_LABELS = 16
_SEED_LIMIT = 1 << 63


class ChatError(AffectMonitorError):
    """A request that cannot be answered.

    Args:
        field: The field of the body at fault.
        message: What is wrong and what to do about it.
        status: HTTP status of the answer.
        code: OpenAI's name for the kind of fault.
    """

    reason = "chat"

    def __init__(
        self, field: str, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST, code: str = "invalid_value"
    ) -> None:
        super().__init__(field, message)
        self.status = status
        self.code = code

    def response(self) -> JSONResponse:
        """The error as OpenAI's API words it."""
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        body = {"message": str(self), "type": kind, "param": self.field or None, "code": self.code}
        return JSONResponse({"error": body}, self.status)


class _Part(BaseModel):
    # Clients send many fields of OpenAI's that mean nothing here; those that would change the answer are declared.
    model_config = ConfigDict(extra="ignore", frozen=True)


class ChatMessage(_Part):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=_MAX_CHARACTERS)


class _StreamOptions(_Part):
    include_usage: bool = False


class ChatRequest(_Part):
    """Body of ``POST /v1/chat/completions``."""

    model: str
    messages: tuple[ChatMessage, ...] = Field(min_length=1, max_length=_MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1, description="Older name of max_completion_tokens.")
    temperature: float = Field(default=0.0, ge=0, le=2, description="0: always the likeliest token.")
    seed: int | None = Field(default=None, ge=-_SEED_LIMIT, lt=_SEED_LIMIT)
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()
    n: Literal[1] = 1
    user: str = Field(default="", max_length=512)
    session_id: str = Field(default="", max_length=512, description="Conversation of the request; ``user`` if empty.")
    metadata: dict[str, str] = Field(default_factory=dict, max_length=_MAX_LABELS, description="Labels of the turn.")
    continue_final_message: bool = Field(
        default=False, description="The last message is the beginning of the reply, and generation goes on from it."
    )

    @model_validator(mode="after")
    def _has_beginning(self) -> ChatRequest:
        last = self.messages[-1]
        if self.continue_final_message and (last.role != "assistant" or not last.content.strip()):
            raise ValueError("continue_final_message")
        return self


def parse_request(body: bytes) -> ChatRequest:
    """Reads the body of ``POST /v1/chat/completions``.

    Raises:
        ChatError: It is none; names the field at fault.
    """
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ChatError("body", f"is not JSON: {first['msg']}", code="invalid_json") from None
        missing = first["type"] == "missing"
        name = ".".join(map(str, first["loc"])) or "body"
        message = first["msg"]
        if first["type"] == "value_error":
            name, message = "continue_final_message", "needs an assistant message with text as the last of messages"
        raise ChatError(name, message, code="missing_required_parameter" if missing else "invalid_value") from None
