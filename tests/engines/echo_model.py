"""A model for the tests of the workers: it echoes, or misbehaves as it is told."""

import os
import time
from typing import Any

from media_server.engines.workers.child import Send
from media_server.errors import ConfigError, EngineMissingError


class EchoModel:
    """What it is told by `options["load"]`: "" loads, `config` and `missing` say so, `hang` never ends,
    `die` ends the process, as long as the file `options["while"]` is there."""

    def __init__(self, options: dict[str, Any]) -> None:
        match options.get("load"):
            case "config":
                raise ConfigError("echo: expected a wall, found none")
            case "missing":
                raise EngineMissingError("echo: install a wall")
            case "hang":
                time.sleep(60)
            case "die" if os.path.exists(options.get("while", "/")):
                os._exit(3)
        self.about = {"walls": 4}
        self.closed = 0
        self.tidied = 0

    def open(self, request: dict[str, Any]) -> "EchoStream":
        """Begin a stream that does as the request says."""
        if request.get("do") == "refuse":
            raise ValueError("the wall does not answer")
        return EchoStream(self, request.get("do", ""))

    def tidy(self) -> None:
        """Count."""
        self.tidied += 1


class EchoStream:
    """Echoes each piece; at the end says how many bytes it heard."""

    def __init__(self, model: EchoModel, do: str) -> None:
        self._model = model
        self._do = do
        self._heard_bytes = 0

    def feed(self, body: bytes, send: Send) -> None:
        """Echo."""
        if self._do == "hang":
            time.sleep(60)
        if self._do == "raise":
            raise ValueError("the wall has a crack")
        self._heard_bytes += len(body)
        send({"heard_bytes": self._heard_bytes}, body[:8])

    def finish(self, send: Send) -> None:
        """Say how it was."""
        if self._do == "die":
            os._exit(3)
        if self._do == "endless":
            while send({}, b"x" * 1000):
                pass
        if self._do == "tell":
            send({"tidied": self._model.tidied}, b"")
            return
        if self._do == "flood":
            while send({}, bytes(1_000_000)):
                pass
        send({"heard_bytes": self._heard_bytes, "closed": self._model.closed}, b"")

    def close(self) -> None:
        """Count."""
        self._model.closed += 1
