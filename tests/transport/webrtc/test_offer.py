"""The gate lets calls through, names what is wrong with the rest, and aiortc never meets a line that it cannot take."""

import time

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import SessionDescription
from hypothesis import given, settings
from hypothesis import strategies as st

from media_server.errors import BadRequestError, ClientError, TooLargeError, UnprocessableError
from media_server.transport.webrtc.offer import check_offer
from tests.transport.webrtc.far_end import unanswered

TRANSPORT = """\
a=ice-ufrag:tBr5
a=ice-pwd:55S3PSjy+ZAX7LO8OMTvZAGu
a=ice-options:trickle
a=fingerprint:sha-256 2A:01:60:39:75:42:AF:6C:E0:72:B3:EC:F5:DA:17:07:7E:C8:55:16:C5:D7:F4:45:FC:3A:A4:C8:32:89:D6:9D
a=setup:actpass
"""

# What Chromium 156 sends with one microphone and one data channel.
CHROMIUM = f"""\
v=0
o=- 6536925247112049340 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=extmap-allow-mixed
a=msid-semantic: WMS 175f30fe-8bac-4903-96c6-1d2d59239ee6
m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
a=candidate:1963564930 1 udp 2113937151 42330833-7c99-4815-bd7a-9e2f2789ee43.local 40328 typ host generation 0 \
network-cost 999
a=candidate:842163049 1 udp 1677729535 192.0.2.7 40328 typ srflx raddr 0.0.0.0 rport 0 generation 0 network-cost 999
{TRANSPORT}a=mid:0
a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=sendrecv
a=msid:175f30fe-8bac-4903-96c6-1d2d59239ee6 670b11ad-121d-4e6f-b568-85065cee24c4
a=rtcp-mux
a=rtcp-rsize
a=rtcp-xr:rcvr-rtt=all
a=rtpmap:111 opus/48000/2
a=rtcp-fb:111 transport-cc
a=fmtp:111 minptime=10;useinbandfec=1
a=rtpmap:63 red/48000/2
a=fmtp:63 111/111
a=rtpmap:9 G722/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:13 CN/8000
a=rtpmap:110 telephone-event/48000
a=rtpmap:126 telephone-event/8000
a=ssrc:3082840381 cname:FXZfqR1srEl7AvtG
a=ssrc:3082840381 msid:175f30fe-8bac-4903-96c6-1d2d59239ee6 670b11ad-121d-4e6f-b568-85065cee24c4
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
{TRANSPORT}a=mid:1
a=sctp-port:5000
a=max-message-size:262144
""".replace("\n", "\r\n")

TRANSPORT_CC = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
"""What other Chromiums offer besides."""

# The stock SDK posts what `createOffer` returns, before a candidate was gathered.
WITHOUT_CANDIDATES = "".join(line for line in CHROMIUM.splitlines(keepends=True) if "candidate" not in line)


def changed(old: str, new: str) -> str:
    """Return Chromium's offer with `old` replaced everywhere; `old` must be there."""
    assert old in CHROMIUM
    return CHROMIUM.replace(old, new)


def test_a_browsers_offer_keeps_what_a_call_needs() -> None:
    audio, data = SessionDescription.parse(check_offer(CHROMIUM)).media

    assert [(codec.mimeType, codec.payloadType, codec.clockRate) for codec in audio.rtp.codecs] == [
        ("audio/opus", 111, 48_000),
        ("audio/G722", 9, 8_000),
        ("audio/PCMU", 0, 8_000),
        ("audio/PCMA", 8, 8_000),
        ("audio/telephone-event", 110, 48_000),
        ("audio/telephone-event", 126, 8_000),
    ]
    assert audio.rtp.codecs[0].parameters == {"minptime": 10, "useinbandfec": 1}
    assert (audio.rtp.muxId, audio.direction, audio.rtcp_mux) == ("0", "sendrecv", True)
    assert audio.msid == "175f30fe-8bac-4903-96c6-1d2d59239ee6 670b11ad-121d-4e6f-b568-85065cee24c4"
    assert (data.rtp.muxId, data.sctp_port) == ("1", 5000)
    assert data.sctpCapabilities is not None
    assert data.sctpCapabilities.maxMessageSize == 262144


def test_a_local_candidate_is_left_out_and_an_address_stays() -> None:
    audio = SessionDescription.parse(check_offer(CHROMIUM)).media[0]

    assert [(candidate.ip, candidate.port, candidate.type) for candidate in audio.ice_candidates] == [
        ("192.0.2.7", 40328, "srflx")
    ]


def test_the_end_of_candidates_is_not_told_when_a_candidate_was_left_out() -> None:
    only_local = changed("a=candidate:842163049 1 udp 1677729535 192.0.2.7", "a=candidate:1 1 udp 5 x.local")
    only_local = only_local.replace("a=mid:", "a=end-of-candidates\r\na=mid:")

    assert "candidate" not in check_offer(only_local)


def test_the_end_of_candidates_is_told_when_all_candidates_stay() -> None:
    lines = [line for line in CHROMIUM.splitlines() if ".local" not in line]
    whole = "\r\n".join(lines).replace("a=mid:0", "a=end-of-candidates\r\na=mid:0")

    assert SessionDescription.parse(check_offer(whole)).media[0].ice_candidates_complete


def test_an_offer_without_candidates_is_taken() -> None:
    assert SessionDescription.parse(check_offer(WITHOUT_CANDIDATES)).media[0].ice_candidates == []


def test_an_offer_without_a_data_channel_is_taken() -> None:
    audio_only = CHROMIUM.partition("m=application")[0].replace("BUNDLE 0 1", "BUNDLE 0")

    assert [media.kind for media in SessionDescription.parse(check_offer(audio_only)).media] == ["audio"]


def test_codecs_of_telephones_need_no_rtpmap() -> None:
    lines = [line for line in CHROMIUM.splitlines() if "rtpmap" not in line and "fmtp" not in line]

    audio = SessionDescription.parse(check_offer("\n".join(lines))).media[0]

    assert [(codec.mimeType, codec.payloadType) for codec in audio.rtp.codecs] == [
        ("audio/G722", 9),
        ("audio/PCMU", 0),
        ("audio/PCMA", 8),
    ]


def test_a_codec_counts_only_under_a_payload_type_that_aiortc_keeps() -> None:
    moved = changed("rtpmap:111 opus", "rtpmap:111 speex").replace("rtpmap:63 red", "rtpmap:63 opus")

    audio = SessionDescription.parse(check_offer(moved)).media[0]

    assert "audio/opus" not in [codec.mimeType for codec in audio.rtp.codecs]


def test_ice_and_dtls_may_stand_in_the_session() -> None:
    bare = CHROMIUM.replace(TRANSPORT.replace("\n", "\r\n"), "")
    moved = bare.replace("a=extmap-allow-mixed\r\n", TRANSPORT.replace("\n", "\r\n"))

    audio, data = SessionDescription.parse(check_offer(moved)).media

    assert audio.ice is not None
    assert audio.ice.usernameFragment == "tBr5"
    assert data.dtls is not None
    assert data.dtls.role == "auto"


def test_what_was_checked_once_passes_again_unchanged() -> None:
    once = check_offer(CHROMIUM)

    assert check_offer(once) == once


async def test_aiortc_answers_what_passed() -> None:
    caller, agent = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
    caller.addTransceiver("audio")
    caller.createDataChannel("oai-events")
    await caller.setLocalDescription(await caller.createOffer())

    await agent.setRemoteDescription(RTCSessionDescription(check_offer(caller.localDescription.sdp), "offer"))
    answer = await agent.createAnswer()
    await caller.setRemoteDescription(RTCSessionDescription(answer.sdp, "answer"))

    assert [media.kind for media in SessionDescription.parse(answer.sdp).media] == ["audio", "application"]
    await caller.close()
    await agent.close()


async def test_feedback_and_send_times_are_declined_and_the_mid_and_the_level_are_taken() -> None:
    offer = changed("a=extmap:4", f"a=extmap:3 {TRANSPORT_CC}\r\na=extmap:4")
    offer = "".join(line for line in offer.splitlines(keepends=True) if "candidate" not in line)
    peer = unanswered()

    answer = await peer.answer(check_offer(offer))
    await peer.close()
    lines = answer.partition("m=application")[0].splitlines()

    # RFC 8285 section 5: what is left out is not used, and what is taken keeps its number. RFC 4585 section 4.2: so it
    # is with feedback.
    assert [line for line in lines if line.startswith("a=extmap")] == [
        "a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level",
        "a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid",
    ]
    assert [line for line in lines if line.startswith("a=rtcp-fb")] == []
    assert "a=mid:0" in lines


@pytest.mark.parametrize(
    ("sdp", "message"),
    [
        pytest.param("", "line 1: found '', wanted 'v=0'", id="nothing"),
        pytest.param("{}", "line 1: found '{}', wanted 'v=0'", id="json"),
        pytest.param("v=0\r\nhello", "line 2: found 'hello', wanted <letter>=<value>", id="text"),
        pytest.param("v=0\na=" + "x" * 2000, "wanted <letter>=<value>, at most 2000 characters", id="long-line"),
        pytest.param(changed("m=audio 9", "m=audio x"), "wanted m=<media> <port> <profile> <formats>", id="m-line"),
        pytest.param(changed("a=setup:actpass", "a=setup:holdconn"), "setup 'holdconn', wanted actpass", id="setup"),
        pytest.param(changed("a=ice-ufrag:tBr5", "a=ice-ufrag:t"), "ice-ufrag", id="ufrag"),
        pytest.param(changed("rtpmap:111 opus/48000/2", "rtpmap:111 opus"), "rtpmap", id="rtpmap"),
        pytest.param(changed("a=mid:1", "a=mid:0"), "mid '0' stands on two m-lines", id="mid-twice"),
        pytest.param(changed("1 udp 2113937151", "one udp"), "candidate", id="candidate"),
        pytest.param(changed("a=sctp-port:5000", "a=sctp-port:0"), "sctp-port '0', wanted 1 to 65535", id="sctp-port"),
        pytest.param(changed("a=ssrc:3082840381", "a=ssrc:x"), "ssrc", id="ssrc"),
    ],
)
def test_what_is_malformed_is_a_bad_request(sdp: str, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        check_offer(sdp)

    assert message in caught.value.message
    assert (caught.value.param, caught.value.reason) == ("sdp", "bad_sdp")


@pytest.mark.parametrize(
    ("sdp", "message"),
    [
        pytest.param("v=0\r\n", "m-lines: found none, wanted exactly one audio", id="no-media"),
        pytest.param(changed("m=application", "m=video"), "m-lines: found audio, video", id="video"),
        pytest.param(changed("m=application", "m=audio"), "m-lines: found audio, audio", id="two-audio"),
        pytest.param(changed("UDP/TLS/RTP/SAVPF", "RTP/AVP"), "profile 'RTP/AVP'", id="plain-rtp"),
        pytest.param(changed("webrtc-datachannel", "5000"), "'5000', wanted 'webrtc-datachannel'", id="old-sctp"),
        pytest.param(changed("SAVPF 111 63 9 0 8 13 110 126", "SAVPF 13"), "wanted one of opus/48000/2", id="codec"),
        pytest.param(changed("SAVPF 111 63 9 0 8 13 110 126", "SAVPF 126"), "PCMU/8000, PCMA/8000", id="keys-alone"),
        pytest.param(changed("a=group:BUNDLE 0 1\r\n", ""), "no BUNDLE group", id="no-bundle"),
        pytest.param(changed("a=group:BUNDLE 0 1", "a=group:BUNDLE 0"), "found BUNDLE '0'", id="half-bundle"),
        pytest.param(changed("a=mid:1\r\n", ""), "no mid", id="no-mid"),
        pytest.param(changed("a=ice-ufrag:tBr5\r\n", ""), "no ice-ufrag", id="no-ufrag"),
        pytest.param(changed("a=fingerprint:sha-256", "a=fingerprint:sha-1"), "fingerprint sha-1", id="sha-1"),
        pytest.param(changed("a=rtcp-mux\r\n", ""), "no rtcp-mux", id="no-rtcp-mux"),
        pytest.param(changed("a=sendrecv", "a=inactive"), "inactive, wanted sendrecv", id="inactive"),
        pytest.param(
            changed("a=mid:0", "a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n" * 31 + "a=mid:0"), "33", id="33"
        ),
        pytest.param(changed("a=rtcp-rsize", "a=ssrc:1 cname:x\r\n" * 99 + "a=rtcp-rsize"), "101 ssrc", id="ssrc"),
        pytest.param(
            changed("message-size:262144", "message-size:16383"), "size 16383, wanted at least 16384", id="messages"
        ),
    ],
)
def test_what_is_no_call_for_us_is_unprocessable(sdp: str, message: str) -> None:
    with pytest.raises(UnprocessableError) as caught:
        check_offer(sdp)

    assert message in caught.value.message
    assert caught.value.reason == "unusable_sdp"


def test_a_peer_that_takes_messages_of_any_size_is_taken_at_its_word() -> None:
    assert "a=max-message-size:0\r\n" in check_offer(changed("message-size:262144", "message-size:0"))


def test_an_offer_of_a_hundred_kilobytes_is_too_large() -> None:
    with pytest.raises(TooLargeError, match="wanted at most 65536"):
        check_offer("v=0\r\n" + "a" * 100_000)


def test_an_offer_of_thousands_of_lines_is_too_large() -> None:
    with pytest.raises(TooLargeError, match="1002 lines, wanted at most 1000"):
        check_offer("v=0" + "\na=x" * 1001)


def test_an_offer_costs_less_than_a_millisecond() -> None:
    costs_s = []
    for _ in range(20):
        begin_s = time.perf_counter()
        check_offer(CHROMIUM)
        costs_s.append(time.perf_counter() - begin_s)

    assert min(costs_s) < 0.001


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400) | st.text(alphabet="vmac=0 :\r\n1", max_size=200).map(lambda text: "v=0\n" + text))
def test_any_text_is_refused_by_a_client_error(text: str) -> None:
    with pytest.raises(ClientError):
        check_offer(text)


LINES = CHROMIUM.splitlines()
PIECES = st.sampled_from(
    [
        "a=",
        "m=",
        "0",
        "-1",
        "99999999999",
        ":",
        " ",
        "/",
        "\x0b",
        "\x85",
        "\u2028",
        "٣",
        "\ud800",
        "\n",
        "",
        "audio",
        "x",
    ]
)


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """Draw Chromium's offer with a few lines gone, doubled, swapped, or with a piece put in or cut out."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "double", "swap", "cut", "put"])):
            case "drop" if len(lines) > 1:
                del lines[at]
            case "double":
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case "swap":
                other = draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case "cut":
                begin = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:begin] + lines[at][begin + draw(st.integers(1, 8)) :]
            case _:
                begin = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:begin] + draw(PIECES) + lines[at][begin:]
    return "\r\n".join(lines)


@settings(max_examples=400, deadline=None)
@given(mutations())
def test_what_passes_is_understood_by_aiortc(sdp: str) -> None:
    try:
        passed = check_offer(sdp)
    except ClientError:
        return

    audio = next(media for media in SessionDescription.parse(passed).media if media.kind == "audio")
    assert audio.rtp.codecs
    assert audio.rtcp_mux
    assert audio.ice is not None
    assert audio.ice.password
    assert audio.dtls is not None
    assert audio.dtls.fingerprints
