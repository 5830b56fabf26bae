"""A caller made of plain aiortc, on 127.0.0.1: what our peer must get on with."""

import asyncio
import fractions
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack
from av import AudioFrame
from numpy.typing import NDArray

from media_server.config import WebRtcConfig
from media_server.errors import ClientError
from media_server.events import Channel, ClearSound, Command, ErrorHappened, Event, TranscriptGrew
from media_server.metrics import Metrics
from media_server.transport.webrtc.aiortc_private import gather_on
from media_server.transport.webrtc.pacing import Beat, Pacing
from media_server.transport.webrtc.peer import WebRtcPeer

CONFIG = WebRtcConfig(
    connect_timeout_s=5,
    gone_after_s=5,
    bitrate_bps=32_000,
    complexity=5,
    live_queue_ms=10_000,
    wait_limit_ms=200,
)


class PlainWire:
    """A language of two words."""

    def encode(self, event: Event) -> tuple[str, ...]:
        """Tell what can be told."""
        match event:
            case TranscriptGrew():
                return (f"text {event.delta}",)
            case ErrorHappened():
                return (f"error {event.code} {event.event_id}",)
            case _:
                return (type(event).__name__,)

    def decode(self, text: str) -> Command:
        """Understand `clear ID`."""
        word, _, event_id = text.partition(" ")
        if word != "clear":
            raise ClientError(f"unknown word {word!r}", event_id=event_id or None, reason="unknown_word")
        return ClearSound(event_id=event_id)


class ToneTrack(MediaStreamTrack):
    """A sine of `hz` at an amplitude of 8,000, in real time, 48 kHz stereo: aiortc makes mono 3 dB quieter."""

    kind = "audio"

    def __init__(self, hz: float) -> None:
        super().__init__()
        self._hz = hz
        self._n = 0
        self._started_s = 0.0

    async def recv(self) -> AudioFrame:
        """Return the next 20 ms when they are due."""
        loop = asyncio.get_running_loop()
        if self._n == 0:
            self._started_s = loop.time()
        await asyncio.sleep(self._started_s + self._n / 48_000 - loop.time())
        at = (self._n + np.arange(960)) / 48_000
        pcm = (8_000 * np.sin(2 * np.pi * self._hz * at)).astype(np.int16)
        frame = AudioFrame.from_ndarray(np.repeat(pcm, 2).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate = 48_000
        frame.pts = self._n
        frame.time_base = fractions.Fraction(1, 48_000)
        self._n += 960
        return frame


class FarEnd:
    """One caller."""

    def __init__(self, *, tone_hz: float = 0.0, codec: str | None = None) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        self.transceiver = self.pc.addTransceiver(ToneTrack(tone_hz) if tone_hz else "audio", direction="sendrecv")
        if codec:
            capabilities = self.transceiver.receiver.getCapabilities("audio")
            assert capabilities is not None
            self.transceiver.setCodecPreferences([c for c in capabilities.codecs if c.name.lower() == codec])
        self.channel = self.pc.createDataChannel("oai-events")
        self.messages: asyncio.Queue[str] = asyncio.Queue()
        self.opened = asyncio.Event()
        self.channel.on("message", self.messages.put_nowait)
        self.channel.on("open", self.opened.set)

    async def offer(self) -> str:
        """Return an offer with candidates on loopback."""
        await gather_on(self.transceiver, ["127.0.0.1"])
        await self.pc.setLocalDescription(await self.pc.createOffer())
        sdp: str = self.pc.localDescription.sdp
        return sdp

    async def accept(self, answer: str) -> None:
        """Take our answer."""
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))

    async def hear(self, n_frames: int) -> NDArray[np.int16]:
        """Return the (left side of the) next frames that arrive: 48 kHz for Opus, 8 kHz for G.711."""
        heard = []
        for _ in range(n_frames):
            frame = await self.transceiver.receiver.track.recv()
            assert isinstance(frame, AudioFrame)
            heard.append(frame.to_ndarray()[0, :: len(frame.layout.channels)])
        return np.concatenate(heard)


class OnePacing(Pacing):
    """The timer of one call: runs as long as it is kept."""

    async def keep(self, beat: Beat) -> None:
        """See `Pacing`."""
        running = asyncio.create_task(self.run())
        try:
            await super().keep(beat)
        finally:
            running.cancel()
            await asyncio.wait([running])


@asynccontextmanager
async def calling(far: FarEnd, channels: list[Channel], config: WebRtcConfig = CONFIG) -> AsyncIterator[WebRtcPeer]:
    """Yield our peer, answered and not yet running; close both ends."""
    peer = WebRtcPeer(
        config, bind_host="127.0.0.1", wire=PlainWire, on_channel=channels.append, pacing=OnePacing(Metrics())
    )
    try:
        await far.accept(await peer.answer(await far.offer()))
        yield peer
    finally:
        await peer.close()
        await far.pc.close()


def frequency_hz(pcm: NDArray[np.int16], rate_hz: int) -> float:
    """Return the loudest frequency."""
    spectrum = np.abs(np.fft.rfft(pcm.astype(np.float64) * np.hanning(len(pcm))))
    return float(np.argmax(spectrum)) * rate_hz / len(pcm)
