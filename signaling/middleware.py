"""What holds for every route: errors in the one shape that clients know, headers, and how long a body may take.

    {"error": {"type": "invalid_request_error", "code": "not_found", "message": "...", "param": null}}

Whose fault it is decides the rest: a client is told what and why; a mistake of ours goes into the log with its
traceback, and the client learns only that there was one.
"""

import asyncio
import logging

from aiohttp import web
from aiohttp.typedefs import Handler

from media_server.errors import BadRequestError, ClientError, ParleyError, ServerFullError

logger = logging.getLogger(__name__)

API = "/v1/"

RESUME = "Parley-Resume"
"""The header with the token of a call: in the answer to its first offer, and in a request to resume it."""

RESUME_WITHIN = "Parley-Resume-Within"
"""How long a call that is no longer heard waits for its caller, in seconds: in the answer to its first offer."""

_HUNG_UP = "the client has hung up"

_HTTP_CODES = {403: "forbidden", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}

# A page of ours needs its own files, its own origin and the microphone; nothing else.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), autoplay=(self), camera=(), geolocation=(), display-capture=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked again each time, answered 304 while the ETag holds
}

# What the stock SDKs send and read when they run in a page of another origin.
_API_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": f"Location, Retry-After, {RESUME}, {RESUME_WITHIN}",
}
_PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": f"Authorization, Content-Type, X-OpenAI-Agents-SDK, {RESUME}",
    "Access-Control-Max-Age": "600",
}


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error in the one shape, and a browser's preflight before any route is asked."""
    if request.method == "OPTIONS" and request.path.startswith(API):
        return web.Response(status=204, headers=_PREFLIGHT_HEADERS)
    try:
        return await handler(request)
    except ClientError as error:
        return _client_error(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _http_error(request, error)
    except ParleyError as error:
        logger.error("%s %s: %s", request.method, request.path, error)
        return _our_error(error.http_status, error.code)
    except Exception:
        # The edge of a request: its bug ends it, and no other.
        logger.exception("%s %s failed", request.method, request.path)
        return _our_error(500, ParleyError.code)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Add what every answer carries; what a route has set itself stays."""
    headers = _PAGE_HEADERS | (_API_HEADERS if request.path.startswith(API) else {})
    for name, value in headers.items():
        response.headers.setdefault(name, value)
    response.headers["Server"] = "parley"  # aiohttp has put in its version, and Python's


async def read_body(request: web.Request, limit_s: float) -> bytes:
    """Return what was sent.

    Raises:
        BadRequestError: it did not arrive in time, or is badly compressed; or the client has hung up meanwhile: the
            offer of a caller who has given up must not take the place of their next one.
    """
    try:
        async with asyncio.timeout(limit_s):
            body = await request.read()
    except ConnectionError:
        raise BadRequestError(_HUNG_UP) from None
    except web.RequestPayloadError:
        raise BadRequestError("the body is not what its Content-Encoding says") from None
    except TimeoutError:
        message = f"the body did not arrive within {limit_s:g} s"
        raise BadRequestError(message, reason="body_too_slow") from None
    await asyncio.sleep(0)  # what came right behind the body is read by then
    if request.transport is None or request.transport.is_closing():
        raise BadRequestError(_HUNG_UP)
    return body


def _client_error(error: ClientError) -> web.Response:
    response = _error(error.http_status, error.reason, error.message, error.param)
    if isinstance(error, ServerFullError):
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def _http_error(request: web.Request, error: web.HTTPException) -> web.Response:
    code = _HTTP_CODES.get(error.status, BadRequestError.code if error.status < 500 else ParleyError.code)
    message = error.reason
    match error:
        case web.HTTPMethodNotAllowed():
            message = f"{request.method} is not allowed here, wanted {', '.join(sorted(error.allowed_methods))}"
        case web.HTTPRequestEntityTooLarge():
            message = f"the body is too large, wanted at most {request.client_max_size} bytes"
        case web.HTTPNotFound():
            message = f"there is nothing at {request.path[:80]!r}"
    response = _error(error.status, code, message)
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def _our_error(status: int, code: str) -> web.Response:
    return _error(status, code, "something went wrong on the server")


def _error(status: int, code: str, message: str, param: str | None = None) -> web.Response:
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"type": kind, "code": code, "message": message, "param": param}
    return web.json_response({"error": error}, status=status)
