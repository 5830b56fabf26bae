"""What can go wrong, and whose fault it is.

    ParleyError
    |-- ClientError              the caller's side sent something that cannot be: they are told what and why
    |   |-- BadRequestError      400   malformed
    |   |-- NotFoundError        404   there is no such call or item
    |   |-- TooLargeError        413   larger than can ever fit
    |   |-- UnsupportedError     415   a media type that we do not speak
    |   |-- UnprocessableError   422   well-formed, but not a call that we can take
    |   '-- ServerFullError      503   come back later: `retry_after_s`
    |       '-- WarmingUpError   503   an engine is not ready (any more)
    |-- ConfigError              ours to be told by the operator, at start: what is wrong and where
    |-- AddressError             where we were told to listen, we cannot
    |-- EngineError              a model failed: costs a reply, never a call
    |   |-- EngineMissingError   its library or file is not there; says what to install or set
    |   '-- EngineDownError      its worker died too often
    '-- PeerGoneError            the far end is no longer there; the normal end of many calls

HTTP status, log level and retry follow from the class.
"""

from typing import ClassVar


class ParleyError(Exception):
    """The root of everything that we raise on purpose.

    Attributes:
        code: a stable word for machines, such as `server_full`.
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500


class ClientError(ParleyError):
    """The client's request cannot be served as it is.

    Attributes:
        param: the part of the request that is wrong, such as `session.voice`.
        event_id: the client's own id of the command that failed, echoed.
        reason: a code more exact than the one of the class.
    """

    code = "invalid_request"
    http_status = 400

    def __init__(
        self, message: str, *, param: str | None = None, event_id: str | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.event_id = event_id
        self.reason = reason or self.code


class BadRequestError(ClientError):
    """The request is malformed."""


class NotFoundError(ClientError):
    """What the request names does not exist (any more)."""

    code = "not_found"
    http_status = 404


class TooLargeError(ClientError):
    """The request is larger than can ever fit."""

    code = "too_large"
    http_status = 413


class UnsupportedError(ClientError):
    """The request is of a media type that we do not speak."""

    code = "unsupported_media_type"
    http_status = 415


class UnprocessableError(ClientError):
    """The request is well-formed, but asks for a call that we cannot take."""

    code = "unprocessable"
    http_status = 422


class ServerFullError(ClientError):
    """There is no room for another call now.

    Attributes:
        retry_after_s: when it is worth another try.
    """

    code = "server_full"
    http_status = 503

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WarmingUpError(ServerFullError):
    """An engine is not ready (any more)."""

    code = "not_ready"


class ConfigError(ParleyError):
    """The configuration is wrong; the message says where, what was found and what would be right."""

    code = "bad_config"


class AddressError(ParleyError):
    """The address that we were told to listen on is taken, or is not ours."""

    code = "address_failed"


class EngineError(ParleyError):
    """An engine failed to do its work."""

    code = "engine_failed"


class EngineMissingError(EngineError):
    """An engine's library or model is not there; the message says what to install or set."""

    code = "engine_missing"


class EngineDownError(EngineError):
    """An engine's workers died too often in a row, or could not load; says why."""

    code = "engine_down"


class PeerGoneError(ParleyError):
    """The far end of a connection is no longer there."""

    code = "peer_gone"
