"""The routes of the server."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from console.errors import InputError
from console.progress import say
from console.version import package_version
from runtime.chat import TooLongError
from runtime.serve.chat.completions import answer_chat
from runtime.serve.chat.prepare import open_inputs, thinks
from runtime.serve.chat.waiting import ClientGoneError
from runtime.serve.docs_page import docs_page
from runtime.serve.middleware.access_log import CLIENT_GONE, AccessLog
from runtime.serve.middleware.api_key import ApiKey
from runtime.serve.middleware.body_limit import BodyLimit, BodyLimits
from runtime.serve.page.routes import add_page
from runtime.serve.protocol.chat_request import ChatRequest
from runtime.serve.protocol.error_response import error_response
from runtime.serve.protocol.errors import TOO_LONG, RequestError, of_input, of_validation
from runtime.serve.protocol.tokenize_request import TokenizeRequest, tokens
from runtime.serve.service import Service

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_POLICY = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'", "cache-control": "no-cache"}


@dataclass(frozen=True)
class AppSettings:
    """Who may ask, and what is written down."""

    api_key: str | None = None
    """Key that requests must have; None for no key."""
    allow_origins: tuple[str, ...] = ()
    """Web pages whose scripts may read answers."""
    log_prompts: bool = False
    """Write prompts to the log."""
    body_limits: BodyLimits = field(default_factory=BodyLimits)
    """How much of bodies is held."""


def build_app(service: Service, settings: AppSettings) -> FastAPI:
    """The application for one service."""
    app = FastAPI(
        title=f"{service.name}: API",
        description="Chat completions as OpenAI's API has them. Fields that are not listed are refused.",
        version=package_version(),
        docs_url=None,
        redoc_url=None,
        middleware=_middleware(service, settings),
    )
    _add_error_handlers(app, service.model.folder)
    _add_model_routes(app, service, settings)
    _add_state_routes(app, service)
    _add_pages(app)
    return app


def _add_model_routes(app: FastAPI, service: Service, settings: AppSettings) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation, whole or as a stream."""
        _require_model(service, body.model)
        if settings.log_prompts:
            say(f"prompt: {[message.model_dump(exclude_none=True) for message in body.messages]}")
        return await answer_chat(service, body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """List the one model."""
        return {"object": "list", "data": [_describe(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe the model."""
        _require_model(service, name)
        return _describe(service)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> dict[str, Any]:
        """Count the tokens of a text or a conversation."""
        _require_model(service, body.model)
        with service.place(1):
            ids = await service.in_thread(_tokenize, service, body)
        return tokens(ids, service.context)


def _add_state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Say whether the server answers: 200, or 503 while it loads or stops."""
        return JSONResponse({"status": service.status}, 200 if service.status == "ok" else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/version")
    async def version_() -> dict[str, str]:
        """Version of this package."""
        return {"version": package_version()}


def _add_pages(app: FastAPI) -> None:
    document = cache(lambda: docs_page(app.openapi()))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(document(), headers=_POLICY)

    add_page(app)


def _tokenize(service: Service, body: TokenizeRequest) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise RequestError(400, "prompt: give either prompt or messages", param="prompt")
    if body.prompt is not None:
        try:
            service.model.chat.refuse_longer(body.prompt, service.context)
        except TooLongError as error:
            raise RequestError(400, str(error), param="prompt", code=TOO_LONG) from error
        return service.model.chat.encode_text(body.prompt)
    conversation = body.conversation
    assert conversation is not None
    inputs = open_inputs(service, conversation, thinking=thinks(service.model, conversation))
    return [int(token) for token in inputs.ids]


def _require_model(service: Service, name: str | None) -> None:
    if name not in (None, service.name):
        problem = f"model: {name!r} does not exist; this server has {service.name!r}"
        raise RequestError(404, problem, param="model", code="model_not_found")


def _describe(service: Service) -> dict[str, Any]:
    created, length = service.created, service.context
    return {
        "id": service.name,
        "object": "model",
        "created": created,
        "owned_by": "exaone-docvlm",
        "max_model_len": length,
    }


def _middleware(service: Service, settings: AppSettings) -> list[Middleware]:
    """What requests pass, outermost first."""
    passed = [Middleware(AccessLog, metrics=service.metrics)]
    if settings.allow_origins:
        origins = list(settings.allow_origins)
        passed.append(Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    if settings.api_key is not None:
        passed.append(Middleware(ApiKey, key=settings.api_key))
    passed.append(Middleware(BodyLimit, limits=settings.body_limits))
    return passed


def _add_error_handlers(app: FastAPI, folder: Path) -> None:
    """Give every error OpenAI's shape. folder: the model's."""

    async def input_error(_: Request, error: InputError) -> Response:
        return error_response(of_input(error, folder))

    handlers: dict[type[Exception], Callable[[Request, Any], Awaitable[Response]]] = {
        RequestError: _request_error,
        InputError: input_error,
        RequestValidationError: _validation_error,
        HTTPException: _http_error,
        ClientGoneError: _client_gone,
        Exception: _fault,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


async def _request_error(_: Request, error: RequestError) -> Response:
    return error_response(error)


async def _validation_error(_: Request, error: RequestValidationError) -> Response:
    return error_response(of_validation(error.errors(), error.body))


async def _http_error(request: Request, error: HTTPException) -> Response:
    words = {404: f"there is no {request.url.path} here; see /docs", 405: f"{request.method} is not allowed here"}
    return error_response(
        RequestError(error.status_code, words.get(error.status_code, str(error.detail)), headers=error.headers)
    )


async def _client_gone(_: Request, __: ClientGoneError) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _fault(_: Request, __: Exception) -> Response:
    return error_response(RequestError(500, "a fault of the server; its log says more"))
