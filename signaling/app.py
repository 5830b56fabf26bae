"""The house put together, and all that lives as long as the process.

    engines   the processes of the engines
    calls     the session manager: the calls are its children
    pacing    the timer of all outgoing packets
    lag       how late the event loop comes to work that is due; beats for the supervisor
    warm-up   loads the engines; ends when calls can be taken

They are children of the one TaskGroup of `serve`. At the end new calls are refused first (HTTP still answers, 503);
then calls, warm-up, engines, pacing and lag end in this order, since a call that ends may still need its engines.
"""

import asyncio
import gc
import logging
import signal
from collections.abc import Callable

from aiohttp import web

from media_server.config import Config
from media_server.errors import ParleyError
from media_server.events import Channel
from media_server.metrics import Metrics
from media_server.protocol.realtime import RealtimeWire
from media_server.session.manager import SessionManager
from media_server.transport.webrtc.pacing import Pacing
from media_server.transport.webrtc.peer import WebRtcPeer
from signaling import ice_servers, operations, realtime
from signaling.address import cannot_listen, url_of
from signaling.house import HOUSE, Engines, House
from signaling.middleware import add_headers, answer_errors
from signaling.neighbours import NEIGHBOURS, Neighbours, pass_on

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
LAG_PERIOD_S = 0.1

# A full collection at 152 peers holds the loop for 16 to 24 ms. What is there after the start stays; it is never
# looked at again, and the rest is looked at seldom.
GC_THRESHOLDS = (50_000, 20, 100)

_HTTP_CLOSE_LIMIT_S = 2.0  # for answers under way at the end, and for the rest of a body that was refused


def build_house(config: Config, engines: Engines, neighbours: Neighbours | None = None) -> House:
    """Return the house: every part knows those that it needs. `neighbours`: the server's other processes, if any."""
    metrics = Metrics()
    pacing = Pacing(metrics)

    def make_peer(on_channel: Callable[[Channel], None]) -> WebRtcPeer:
        return WebRtcPeer(
            config.webrtc,
            bind_host=config.webrtc.bind or config.server.host,
            wire=RealtimeWire,
            on_channel=on_channel,
            pacing=pacing,
            metrics=metrics,
        )

    return House(
        config=config,
        engines=engines,
        metrics=metrics,
        pacing=pacing,
        manager=SessionManager(engines, config, metrics, neighbours=neighbours),
        make_peer=make_peer,
    )


def build_app(house: House, neighbours: Neighbours | None = None) -> web.Application:
    """Return the front door of a house."""
    middlewares = [answer_errors] if neighbours is None else [answer_errors, pass_on]
    app = web.Application(middlewares=middlewares, client_max_size=house.config.server.max_body_bytes)
    app[HOUSE] = house
    if neighbours is not None:
        app[NEIGHBOURS] = neighbours
    app.on_response_prepare.append(add_headers)
    realtime.add_routes(app)
    ice_servers.add_routes(app)
    operations.add_routes(app)
    return app


async def serve(
    config: Config, engines: Engines, say: Callable[[str], None], neighbours: Neighbours | None = None
) -> None:
    """Serve calls until SIGINT or SIGTERM; then hang up and stop.

    Args:
        config: the configuration in force.
        engines: not loaded yet.
        say: told, line by line, what the operator should see.
        neighbours: the server's other processes, which share its port; None: there are none.

    Raises:
        AddressError: the address cannot be listened on.
        EngineError: an engine cannot be had.
        ConfigError: an engine cannot use what it was given.
    """
    house = build_house(config, engines, neighbours)
    runner = web.AppRunner(
        build_app(house, neighbours),
        access_log=None,
        shutdown_timeout=_HTTP_CLOSE_LIMIT_S,
        lingering_time=_HTTP_CLOSE_LIMIT_S,
    )
    await runner.setup()
    try:
        url = await _listen(runner, config.server.host, config.server.port, shared=neighbours is not None)
        if neighbours is not None:
            await web.UnixSite(runner, neighbours.socket).start()
        for line in engines.lines():
            say(line)
        say(f"listening on {url}, the engines are warming up")
        failure = await _live(house, url, say, neighbours)
    finally:
        if neighbours is not None:
            await neighbours.close()
        await runner.cleanup()
    if failure is not None:
        raise failure


async def _live(
    house: House, url: str, say: Callable[[str], None], neighbours: Neighbours | None
) -> ParleyError | None:
    """Run what lives as long as the process; return what ended it: None for a signal."""
    ending: asyncio.Future[ParleyError | None] = asyncio.get_running_loop().create_future()

    async def warm_up() -> None:
        begun_s = asyncio.get_running_loop().time()
        try:
            await house.engines.load()
        except ParleyError as error:
            _settle(ending, error)
            return
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        if neighbours is not None:
            neighbours.note_ready(True)
        say(f"ready for calls after {asyncio.get_running_loop().time() - begun_s:.1f} s: {url}")

    # A second signal ends the process at once. It does not where there is a supervisor: that one kills its processes,
    # and whoever ends a whole server may send a signal to each of them beside the supervisor's.
    with _Signals(ending, signal.SIG_DFL if neighbours is None else signal.SIG_IGN):
        async with asyncio.TaskGroup() as tasks:
            engines = tasks.create_task(house.engines.run(), name="engines")
            calls = tasks.create_task(house.manager.run(), name="calls")
            pacing = tasks.create_task(house.pacing.run(), name="pacing")
            lag = tasks.create_task(watch_lag(house.metrics, neighbours), name="lag")
            warming = tasks.create_task(warm_up(), name="warm-up")
            failure = await ending
            house.stopping.set()
            if neighbours is not None:
                neighbours.note_ready(False)
            if failure is None:
                say(f"stopping; calls to hang up: {house.manager.calls}; a second signal ends them at once")
            for task in (calls, warming, engines, pacing, lag):
                task.cancel()
                await asyncio.wait([task])
    return failure


async def watch_lag(metrics: Metrics, neighbours: Neighbours | None = None) -> None:
    """Measure for ever how late the loop comes to work that is due, and show the neighbours that it turns."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LAG_PERIOD_S
        await asyncio.sleep(LAG_PERIOD_S)
        metrics.observe("loop_lag_ms", max(0.0, loop.time() - due_s) * 1000)
        if neighbours is not None:
            neighbours.beat()


async def _listen(runner: web.AppRunner, host: str, port: int, *, shared: bool) -> str:
    try:
        await web.TCPSite(runner, host, port, reuse_port=shared or None).start()
    except OSError as error:
        raise cannot_listen(host, port, error) from error
    return url_of(host, runner.addresses[0][1])


class _Signals:
    """While entered, SIGINT and SIGTERM settle `ending`. `then`: what a second one does."""

    def __init__(self, ending: asyncio.Future[ParleyError | None], then: signal.Handlers) -> None:
        self._ending = ending
        self._then = then
        self._loop = asyncio.get_running_loop()

    def __enter__(self) -> None:
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._end)

    def __exit__(self, *_: object) -> None:
        self._forget()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _end(self) -> None:
        self._forget()
        for number in _SIGNALS:
            signal.signal(number, self._then)
        _settle(self._ending, None)

    def _forget(self) -> None:
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)


def _settle(ending: asyncio.Future[ParleyError | None], failure: ParleyError | None) -> None:
    if not ending.done():
        ending.set_result(failure)
