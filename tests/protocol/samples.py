"""One event of each kind, and of each turn that it can take, for tests that must see them all."""

from media_server.conversation import FunctionCall, FunctionOutput, Latency, SpokenMessage, Usage
from media_server.events import (
    BargeInMeasured,
    CallStarted,
    DigitPressed,
    ErrorHappened,
    Event,
    ItemAdded,
    ItemDeleted,
    ItemRetrieved,
    ItemTruncated,
    LevelsMeasured,
    PlayoutCleared,
    PlayoutDucked,
    PlayoutStarted,
    PlayoutStopped,
    ReplyArgumentsGrew,
    ReplyDone,
    ReplyItemAdded,
    ReplyItemDone,
    ReplyStarted,
    ReplyTextGrew,
    Settings,
    SettingsChanged,
    SoundCleared,
    SoundCommitted,
    SpeechStarted,
    SpeechStopped,
    TranscriptCompleted,
    TranscriptFailed,
    TranscriptGrew,
    TranscriptGuessed,
    TurnDetection,
    TurnMeasured,
    WordsSpoken,
)

SAID = SpokenMessage(id="item_1", role="user", modality="audio", written=None)
SAID_KNOWN = SpokenMessage(id="item_1", role="user", modality="audio", written="a flat white please")
TYPED = SpokenMessage(id="item_2", role="user", modality="text", written="hello")
RULE = SpokenMessage(id="item_3", role="system", modality="text", written="Be brief.")
BEGUN = SpokenMessage(id="item_4", role="assistant", modality="audio", written="", status="in_progress")
SPOKEN = SpokenMessage(id="item_4", role="assistant", modality="audio", written="Coming right up.")
CUT = SpokenMessage(
    id="item_4", role="assistant", modality="audio", written="Coming right up.", heard="Coming", status="incomplete"
)
WRITTEN = SpokenMessage(id="item_5", role="assistant", modality="text", written="Done.")
CALL = FunctionCall(id="item_6", call_id="call_1", name="brew", arguments='{"size":"large"}')
CALL_BEGUN = FunctionCall(id="item_6", call_id="call_1", name="brew", arguments="", status="in_progress")
OUTPUT = FunctionOutput(id="item_7", call_id="call_1", output="ok")

TOOL = {"type": "function", "name": "brew", "description": "Brews.", "parameters": {"type": "object"}}
FULL_SETTINGS = Settings(
    model="house",
    instructions="Be kind.",
    modalities=("text",),
    voice="amy",
    speed=1.25,
    language="en",
    prompt="coffee",
    turn_detection=TurnDetection(kind="server_vad", threshold=0.4, prefix_ms=200, silence_ms=600, create_reply=False),
    tools=(TOOL,),
    tool_choice="brew",
    max_tokens=200,
    extra={
        "tracing": {"workflow_name": "cafe"},
        "include": ["item.input_audio_transcription.logprobs"],
        "audio.input.noise_reduction": {"type": "near_field"},
        "audio.input.transcription.model": "whisper-1",
        "audio.output.format": {"type": "audio/pcmu"},
        "parallel_tool_calls": True,
    },
)

EVENTS: tuple[Event, ...] = (
    CallStarted("rtc_1", Settings()),
    CallStarted("rtc_1", Settings(transcribe=False, turn_detection=None)),
    SettingsChanged("rtc_1", FULL_SETTINGS),
    SpeechStarted("item_1", 1200),
    SpeechStopped("item_1", 2400),
    SoundCommitted("item_1", None),
    SoundCommitted("item_1", "item_0"),
    SoundCleared(),
    *(
        ItemAdded(item, "item_0", done)
        for item in (SAID, SAID_KNOWN, TYPED, RULE, SPOKEN, CUT, WRITTEN, CALL, OUTPUT)
        for done in (True, False)
    ),
    ItemAdded(SAID, None, True),
    *(ItemRetrieved(item) for item in (SAID, SAID_KNOWN, BEGUN, CUT, CALL, OUTPUT)),
    ItemDeleted("item_1"),
    ItemTruncated("item_4", 640, "Coming"),
    TranscriptGrew("item_1", "a flat "),
    TranscriptGuessed("item_1", "a flat", "white"),
    TranscriptCompleted("item_1", "a flat white please", 1.2004),
    TranscriptFailed("item_1", "engine_failed", "Sorry, I did not catch that."),
    ReplyStarted("resp_1", ("audio",)),
    ReplyStarted("resp_1", ("text",), {"topic": "coffee"}),
    ReplyItemAdded("resp_1", BEGUN, 0, "item_1"),
    ReplyItemAdded("resp_1", WRITTEN, 0, None, in_conversation=False),
    ReplyItemAdded("resp_1", CALL_BEGUN, 1, "item_4"),
    ReplyTextGrew("resp_1", "item_4", 0, "Coming ", "audio"),
    ReplyTextGrew("resp_1", "item_5", 0, "Do", "text"),
    ReplyArgumentsGrew("resp_1", "item_6", 1, "call_1", '{"size"'),
    *(ReplyItemDone("resp_1", item, 0, "item_1") for item in (SPOKEN, CUT, WRITTEN, CALL)),
    ReplyItemDone("resp_1", WRITTEN, 0, None, in_conversation=False),
    ReplyDone(
        reply_id="resp_1",
        status="completed",
        modalities=("audio",),
        items=(SPOKEN, CALL),
        usage=Usage(input_tokens=30, output_tokens=12),
        metadata={"topic": "coffee"},
    ),
    ReplyDone(reply_id="resp_1", status="cancelled", modalities=("audio",), items=(CUT,), reason="turn_detected"),
    ReplyDone(reply_id="resp_1", status="cancelled", modalities=("audio",), items=()),
    ReplyDone(reply_id="resp_1", status="incomplete", modalities=("text",), items=(), reason="max_output_tokens"),
    ReplyDone(
        reply_id="resp_1",
        status="failed",
        modalities=("audio",),
        items=(),
        reason="engine_down",
        message="Sorry, that did not work.",
    ),
    PlayoutStarted("resp_1"),
    PlayoutStopped("resp_1"),
    PlayoutCleared("resp_1"),
    PlayoutDucked("resp_1", True),
    WordsSpoken("resp_1", "item_4", 6),
    TurnMeasured("resp_1", Latency(endpointing_ms=512.34, voice_to_voice_ms=801.07)),
    BargeInMeasured("resp_1", None, 123.45, 140.0, None),
    LevelsMeasured(-20.04, float("-inf"), True, False),
    DigitPressed("#", 120),
    ErrorHappened("invalid_request_error", "invalid_value", "no", "session.voice", "mine_1"),
    ErrorHappened("server_error", "engine_failed", "Sorry, that did not work."),
)
