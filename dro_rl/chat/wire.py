"""What a chat request says, and the replies to it, in OpenAI's form.

Source: https://platform.openai.com/docs/api-reference/chat. What a reply has beside it is `sources`
in the assistant's message: the selected documents in the selector's order.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dro_rl.jsonlines import describe

if TYPE_CHECKING:  # a replica sets its environment before it imports what runs models
    from dro_rl.pipeline import Answer

_WORD = re.compile(r"\s*\S+|\s+")


class ChatError(Exception):
    """What a caller is told, in the form that OpenAI's clients read.

    Args:
        status: of HTTP.
        message: for a person.
        code: for a program.
        param: the field of the request that is wrong, if one is.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """As JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Message(BaseModel):
    role: str
    content: str | list[_Part] | None

    @property
    def text(self) -> str:
        parts = self.content or ""
        return parts if isinstance(parts, str) else "\n".join(part.text for part in parts)


class _ResponseFormat(BaseModel):
    type: Literal["text"]


def _last(messages: Any) -> Any:
    if not isinstance(messages, list) or not messages:
        raise ValueError("has to be a list that ends with the user's question")
    return messages[-1]


class ChatRequest(BaseModel):
    """What POST /v1/chat/completions takes.

    Answers are the run's: greedy, as long as in training. So `temperature`, `max_tokens` and other
    settings of sampling are not read; what would ask for another kind of reply is refused.
    """

    model_config = ConfigDict(extra="ignore")

    model: str
    message: Annotated[_Message, BeforeValidator(_last)] = Field(alias="messages")
    stream: bool = False
    n: Literal[1] | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    functions: list[Any] | None = Field(default=None, max_length=0)
    logprobs: Literal[False] | None = None
    response_format: _ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    audio: None = None

    @property
    def question(self) -> str:
        """The last message's text: a pair learned to answer questions that stand alone, so what
        was said before, images and calls of tools among it, is not looked at.

        Raises:
            ChatError: it is not the user's, or is empty.
        """
        if self.message.role != "user" or not self.message.text.strip():
            told = "the last message has to be the user's question, and not empty"
            raise ChatError(400, told, "invalid_messages", "messages")
        return self.message.text.strip()


def read_chat(body: bytes, model: str) -> ChatRequest:
    """A request to the model that is served.

    Raises:
        ChatError: it is malformed, or asks for another model.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        place = error.errors()[0]["loc"]
        param = str(place[0]) if place else None
        raise ChatError(400, describe(error), "invalid_request", param) from error
    if request.model != model:
        told = f"no model {request.model[:200]!r} here: this server has {model!r}"
        raise ChatError(404, told, "model_not_found", "model")
    return request


def sources(answer: Answer) -> list[dict[str, Any]]:
    """The selected documents; rank 1 is the selector's first, and the score is the retriever's
    (higher is better), null when unknown."""
    return [
        {
            "rank": rank,
            "title": document.title,
            "text": document.text,
            "score": answer.scores[place] if answer.scores else None,
        }
        for rank, (place, document) in enumerate(
            zip(answer.places, answer.documents, strict=True), start=1
        )
    ]


def completion(answer: Answer, model: str) -> dict[str, Any]:
    """The whole reply."""
    message = {"role": "assistant", "content": answer.text, "sources": sources(answer)}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {**_head("chat.completion", model), "choices": [choice]}


def events(answer: Answer, model: str) -> Iterator[str]:
    """The same as server-sent events: the sources first, then a word at a time."""
    head = _head("chat.completion.chunk", model)

    def event(delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return f"data: {json.dumps({**head, 'choices': [choice]}, ensure_ascii=False)}\n\n"

    yield event({"role": "assistant", "content": "", "sources": sources(answer)})
    for word in _WORD.findall(answer.text or ""):
        yield event({"content": word})
    yield event({}, "stop")
    yield "data: [DONE]\n\n"


def _head(kind: str, model: str) -> dict[str, Any]:
    name = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": name, "object": kind, "created": int(time.time()), "model": model}
