"""A caller made of plain aiortc, on 127.0.0.1: what our peer must get on with."""

import asyncio
import fractions
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aioice
import numpy as np
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcicetransport import candidate_to_aioice
from aiortc.rtp import RtpPacket
from aiortc.sdp import SessionDescription
from av import AudioFrame
from numpy.typing import NDArray

from media_server.config import WebRtcConfig, load_config
from media_server.errors import ClientError
from media_server.events import Channel, ClearSound, Command, ErrorHappened, Event, TranscriptGrew
from media_server.metrics import Metrics
from media_server.transport.webrtc.aiortc_private import gather_on
from media_server.transport.webrtc.pacing import Beat, Pacing
from media_server.transport.webrtc.peer import WebRtcPeer

CONFIG = load_config({}).config.webrtc.model_copy(
    update={"connect_timeout_s": 5, "gone_after_s": 5, "complexity": 5, "live_queue_ms": 10_000}
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

    def __init__(self, *, tone_hz: float = 0.0, codec: str | None = None, keys_hz: Sequence[int] = ()) -> None:
        """Prepare a call; `keys_hz`: the clocks of the telephone events that are offered, under 110, 111, ..."""
        self._keys_hz = keys_hz
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

    async def offer(self, address: str = "127.0.0.1") -> str:
        """Return an offer with candidates on loopback."""
        await gather_on(self.transceiver, [address])
        await self.pc.setLocalDescription(await self.pc.createOffer())
        sdp: str = self.pc.localDescription.sdp
        return self._with_keys(sdp)

    def _with_keys(self, offer: str) -> str:
        """Return the offer with telephone events, of which aiortc itself makes none."""
        keys = list(enumerate(self._keys_hz, start=110))
        head, rest = re.split(r"(?<=\r\n)(?=a=rtpmap)", offer, maxsplit=1)
        head = re.sub(r"(m=audio [^\r]*)", "".join([r"\1", *(f" {number}" for number, _ in keys)]), head)
        return head + "".join(f"a=rtpmap:{number} telephone-event/{hz}\r\n" for number, hz in keys) + rest

    async def send_packet(self, payload_type: int, sequence_number: int, timestamp: int, payload: bytes) -> None:
        """Send an RTP packet of our own making, once connected. For an end without a tone."""
        packet = RtpPacket(
            payload_type=payload_type,
            sequence_number=sequence_number,
            timestamp=timestamp,
            ssrc=self.transceiver.sender._ssrc,
            payload=payload,
        )
        await self.transceiver.sender.transport._send_rtp(packet.serialize())

    async def accept(self, answer: str) -> None:
        """Take our answer."""
        await self.pc.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))

    async def move(self, address: str, exchange: Callable[[str], Awaitable[str | None]]) -> bool:
        """Change to another network with an ICE restart, as browsers do and aiortc cannot.

        Args:
            address: of this machine, where the new socket is.
            exchange: gets the offer and gives its answer.

        Returns:
            Whether there was an answer, and with it a new path.
        """
        old = self.transceiver.receiver.transport.transport._connection
        new = aioice.Connection(ice_controlling=True)
        new._local_candidates = await new.get_component_candidates(component=1, addresses=[address])
        new._local_candidates_start = new._local_candidates_end = True
        offer = re.sub(r"a=candidate:.*\r\n", "", self.pc.localDescription.sdp)
        offer = re.sub(r"a=ice-ufrag:\S*", f"a=ice-ufrag:{new.local_username}", offer)
        answer = await exchange(re.sub(r"a=ice-pwd:\S*", f"a=ice-pwd:{new.local_password}", offer))
        if answer is None:
            for protocol in new._protocols:
                await protocol.close()
            return False
        media: Any = SessionDescription.parse(answer).media[0]
        new.remote_username, new.remote_password = media.ice.usernameFragment, media.ice.password
        for candidate in media.ice_candidates:
            await new.add_remote_candidate(candidate_to_aioice(candidate))
        await new.add_remote_candidate(None)
        new._queue = old._queue
        await new.connect()
        old._nominated = new._nominated
        old._protocols += new._protocols
        if new._query_consent_task is not None:
            new._query_consent_task.cancel()
        return True

    def forget(self) -> None:
        """Leave out of `hear` what has come so far."""
        track: Any = self.transceiver.receiver.track
        queue = track._queue
        while not queue.empty():
            queue.get_nowait()

    async def hear(self, n_frames: int) -> NDArray[np.int16]:
        """Return the (left side of the) next frames: 48 kHz for Opus, 16 kHz for G.722, 8 kHz for G.711."""
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


def unanswered(
    config: WebRtcConfig = CONFIG,
    *,
    address: str = "127.0.0.1",
    on_channel: Callable[[Channel], None] = lambda _: None,
) -> WebRtcPeer:
    """Return our peer, which waits for its offer."""
    metrics = Metrics()
    pacing = OnePacing(metrics)
    return WebRtcPeer(config, bind_host=address, wire=PlainWire, on_channel=on_channel, pacing=pacing, metrics=metrics)


@asynccontextmanager
async def calling(
    far: FarEnd, channels: list[Channel], config: WebRtcConfig = CONFIG, address: str = "127.0.0.1"
) -> AsyncIterator[WebRtcPeer]:
    """Yield our peer, answered and not yet running; close both ends."""
    peer = unanswered(config, address=address, on_channel=channels.append)
    try:
        await far.accept(await peer.answer(await far.offer(address)))
        yield peer
    finally:
        await peer.close()
        await far.pc.close()


def frequency_hz(pcm: NDArray[np.int16], rate_hz: int) -> float:
    """Return the loudest frequency."""
    spectrum = np.abs(np.fft.rfft(pcm.astype(np.float64) * np.hanning(len(pcm))))
    return float(np.argmax(spectrum)) * rate_hz / len(pcm)
