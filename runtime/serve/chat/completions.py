"""`POST /v1/chat/completions`: a request becomes prompts for the engine, its answers become a response."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from starlette.responses import Response

from runtime.serve.chat.answers import Answers
from runtime.serve.chat.exchange import Exchange
from runtime.serve.chat.prepare import engine_requests
from runtime.serve.chat.streaming import EventStream
from runtime.serve.chat.waiting import while_connected
from runtime.serve.protocol.chat_response import Delta
from runtime.serve.protocol.errors import to_json

if TYPE_CHECKING:
    from starlette.requests import Request as HttpRequest

    from runtime.engine.thread import EngineThread
    from runtime.serve.protocol.chat_request import ChatRequest
    from runtime.serve.service import Service

_WHOLE_BEAT = 3600.0  # nothing is said between while an answer is collected


async def answer_chat(service: Service, body: ChatRequest, http: HttpRequest) -> Response:
    """Answer a chat request, whole or as a stream. Raises RequestError for one that gets no answer."""
    arrival = time.monotonic()
    body.refuse_contradictions()
    engine = service.engine
    with ExitStack() as closing:
        closing.enter_context(service.place(body.n))
        answers = Answers()
        closing.callback(answers.close)
        exchange = Exchange(service, body, answers, arrival)
        submitted = service.in_thread(_submit, service, engine, body, answers)
        await while_connected(http.receive, submitted, exchange.deadline)
        http.state.counts = exchange.counts
        if body.stream:
            return EventStream(exchange, closing.pop_all().close)
        whole = await while_connected(http.receive, _collect(exchange), exchange.deadline)
        return Response(to_json(exchange.envelope.whole(whole, exchange.counts)), media_type="application/json")


async def _collect(exchange: Exchange) -> list[Delta]:
    """The whole answers."""
    answers = [Delta() for _ in range(exchange.body.n)]
    async for deltas in exchange.deltas(_WHOLE_BEAT):
        for number, delta in deltas:
            answers[number].add(delta)
    return answers


def _submit(service: Service, engine: EngineThread, body: ChatRequest, answers: Answers) -> None:
    """Prepare a request and queue it, in a worker thread."""
    answers.submit(engine, engine_requests(service, body))
