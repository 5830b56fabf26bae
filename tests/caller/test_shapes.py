"""What comes through the door can be read by everyone behind it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from media_server.caller.conversing import Attention
from media_server.caller.report import report_turn
from media_server.caller.shapes import SHAPES, find_fault
from media_server.caller.subtitles import Subtitles
from media_server.protocol.realtime import RealtimeWire
from tests.protocol.samples import EVENTS


@pytest.mark.parametrize(
    ("event", "fault"),
    [
        ({"type": "something.new", "x": 1}, ""),
        ({"type": "parley.latency", "response_id": "r", "first_packet_ms": None, "llm_first_token_ms": 3}, ""),
        ({"type": "response.created"}, "'response.created': response is missing, wanted an object"),
        ({"type": "response.done", "response": {"id": 5}}, "'response.done': response.id is int, wanted a text"),
        (
            {"type": "response.done", "response": {"id": "r", "output": [{}, {"content": ["secret"]}]}},
            "'response.done': response.output[].content[] is str, wanted an object",
        ),
        (
            {"type": "parley.latency", "response_id": "r", "first_packet_ms": "secret"},
            "'parley.latency': first_packet_ms is str, wanted a number",
        ),
        (None, "wanted an object with a type"),
        ({"type": ["error"]}, "wanted an object with a type"),
    ],
)
def test_a_fault_is_named_with_its_place_and_without_what_was_said(event: Any, fault: str) -> None:
    assert find_fault(event) == fault


_LEAF: st.SearchStrategy[Any] = st.sampled_from([None, 1, 2.5, "a", [], {}])


def _events(shape: Any) -> st.SearchStrategy[Any]:
    """Return what mostly has this shape."""
    if isinstance(shape, dict):
        keys = {key.removesuffix("?"): _events(inner) for key, inner in shape.items()}
        fitting: st.SearchStrategy[Any] = st.fixed_dictionaries({}, optional=keys)
    elif isinstance(shape, list):
        fitting = st.lists(_events(shape[0]), max_size=2)
    else:
        fitting = st.just("a") if shape is str else st.just(2.5)
    return st.one_of(fitting, fitting, fitting, _LEAF)


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=30)
@given(data=st.data())
def test_whatever_has_no_fault_can_be_read(name: str, data: st.DataObject) -> None:
    fields = data.draw(_events(SHAPES[name]))
    event = {**(fields if isinstance(fields, dict) else {}), "type": name}
    for part in ("item", "response"):
        if isinstance(event.get(part), dict):
            event[part] = {"role": "user", "status": "failed", **event[part]}

    if not find_fault(event):
        Subtitles().lines(event)
        Attention().tell(event)
        report_turn("a", [event], answered=True, heard_ms=None)


def test_what_our_own_server_sends_has_no_fault() -> None:
    messages = [json.loads(text) for event in EVENTS for text in RealtimeWire().encode(event)]

    assert SHAPES.keys() <= {message["type"] for message in messages}
    assert [fault for message in messages if (fault := find_fault(message))] == []
