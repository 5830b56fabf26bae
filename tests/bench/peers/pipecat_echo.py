"""An echo made with Pipecat: PYTHON pipecat_echo.py PORT [--vad], in an environment that has it.

A pipeline a call, over its SmallWebRTCTransport: input, its Silero VAD if asked for, an echo, output. It hears 16 kHz
and says 24 kHz, as ours does and as is its default. What an echo does not need (RTVI, turn tracking) is off.
"""

# Pipecat is not in the environment in which types are checked.
# mypy: disable-error-code="import-not-found, misc, untyped-decorator"

import asyncio
import sys
from typing import Any

import aioice.ice
import uvicorn
from fastapi import FastAPI
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import Frame, InputAudioRawFrame, OutputAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.audio.vad_processor import VADProcessor
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_transport import TransportParams
from pipecat.transports.smallwebrtc.connection import SmallWebRTCConnection
from pipecat.transports.smallwebrtc.request_handler import SmallWebRTCRequest, SmallWebRTCRequestHandler
from pipecat.transports.smallwebrtc.transport import SmallWebRTCTransport
from pipecat.workers.runner import WorkerRunner

HEARING_HZ, SPEAKING_HZ = 16_000, 24_000

calls: set[asyncio.Task[None]] = set()


class Echo(FrameProcessor):
    """Says what it hears."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Turn what was heard into what is said; pass everything else on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = OutputAudioRawFrame(
                audio=frame.audio, sample_rate=frame.sample_rate, num_channels=frame.num_channels
            )
        await self.push_frame(frame, direction)


async def run_call(connection: SmallWebRTCConnection, *, vad: bool) -> None:
    """Run the pipeline of one call until the caller is gone."""
    transport = SmallWebRTCTransport(
        connection,
        TransportParams(audio_in_enabled=True, audio_out_enabled=True),
    )
    ear = [VADProcessor(vad_analyzer=SileroVADAnalyzer())] if vad else []
    worker = PipelineWorker(
        Pipeline([transport.input(), *ear, Echo(), transport.output()]),
        params=PipelineParams(audio_in_sample_rate=HEARING_HZ, audio_out_sample_rate=SPEAKING_HZ),
        enable_rtvi=False,
        enable_turn_tracking=False,
        idle_timeout_secs=None,
    )

    @transport.event_handler("on_client_disconnected")
    async def end(*_: Any) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


def main() -> None:
    """Serve on loopback."""
    # aioice never offers 127.0.0.1, and the callers offer nothing else.
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    logger.remove()
    logger.add(sys.stderr, level="WARNING")
    vad = "--vad" in sys.argv[2:]
    app = FastAPI()
    handler = SmallWebRTCRequestHandler()

    async def begin(connection: SmallWebRTCConnection) -> None:
        call = asyncio.create_task(run_call(connection, vad=vad))
        calls.add(call)
        call.add_done_callback(calls.discard)

    @app.post("/api/offer")
    async def offer(asked: SmallWebRTCRequest) -> Any:
        return await handler.handle_web_request(asked, begin)

    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")


if __name__ == "__main__":
    main()
