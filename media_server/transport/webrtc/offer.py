"""The gate before aiortc: an offer is read strictly, and only what we understood is written down again.

aiortc meets an odd offer with any of seven kinds of exception, waits a second for each `.local` candidate, and works
for 0.16 s on 5,000 ssrc lines. So nothing of a client's text reaches it as it came. `check_offer` reads what a call
needs into an `_Offer` and writes that out anew; what it does not know is left out, as RFC 8866 section 5.13 asks.

    BadRequestError       400   not SDP, or a line that breaks the grammar of its RFC
    UnprocessableError    422   good SDP, but not a call that we can take: no audio, video, no codec in common, ...
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from media_server.errors import BadRequestError, TooLargeError, UnprocessableError

MAX_OFFER_BYTES = 65_536
"""A browser's offer has 2 to 8 kB."""

MAX_LINES = 1_000
MAX_LINE_CHARS = 2_000
MAX_CANDIDATES = 32
MAX_SSRC_LINES = 100

# RFC 3551 section 6: the payload types that need no rtpmap. RFC 7587 section 4.1: Opus is always 48000/2.
_CODECS = {"opus/48000": "opus/48000/2", "g722/8000": "G722/8000", "pcmu/8000": "PCMU/8000", "pcma/8000": "PCMA/8000"}
_EVENTS = {f"telephone-event/{clock_hz}": f"telephone-event/{clock_hz}" for clock_hz in (48000, 8000)}  # RFC 4733
_STATIC_TYPES = {"0": "PCMU/8000", "8": "PCMA/8000", "9": "G722/8000"}
_DYNAMIC_TYPES = range(96, 128)

_AUDIO_PROFILES = {"UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "TCP/TLS/RTP/SAVPF", "RTP/SAVPF"}
_DATA_PROFILES = {"UDP/DTLS/SCTP", "TCP/DTLS/SCTP"}
_DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")
_DEFAULT_MESSAGE_BYTES = 65_536  # RFC 8841 section 6.1: what holds without a=max-message-size; 0 means no limit
_MIN_MESSAGE_BYTES = 16_384
"""An event goes out whole or not at all, and `session.updated` or `response.done` have 2 to 10 kB. RFC 8831 section 6.6
names 16 kB as what all can take."""


_LINE = re.compile(r"([a-z])=(.*)", re.ASCII)
_MEDIA = re.compile(r"([a-z]+) [0-9]{1,5}(?:/[0-9]{1,5})? ([A-Za-z0-9/]+)((?: [A-Za-z0-9_.-]+)+)", re.ASCII)
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`{|}~-]{1,64}", re.ASCII)  # RFC 8866 section 9
_UFRAG = re.compile(r"[A-Za-z0-9+/]{4,256}", re.ASCII)  # RFC 8839 section 5.4
_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}", re.ASCII)
_FINGERPRINT = re.compile(r"([A-Za-z0-9-]{1,20}) ([0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2}){15,63})", re.ASCII)
_RTPMAP = re.compile(r"(0|[1-9][0-9]{0,2}) ([A-Za-z0-9_.-]+)/([0-9]{1,6})(?:/([0-9]{1,2}))?", re.ASCII)
_FMTP = re.compile(r"([0-9]{1,3}) (.*)", re.ASCII)
_NUMERIC_PARAMETER = re.compile(r"([a-z][a-z0-9-]{0,30})=([0-9]{1,9})", re.ASCII)
_EXTMAP = re.compile(r"([0-9]{1,5})(?:/[a-z]+)? ([!-~]+)(?: .*)?", re.ASCII)
_SSRC = re.compile(r"([0-9]{1,10}) ([A-Za-z0-9-]+)(?::([ -~]*))?", re.ASCII)
_MSID = re.compile(r"[!-~]{1,64}(?: [!-~]{1,64})?", re.ASCII)
_ORIGIN = re.compile(r"[!-~]+ [0-9]+ [0-9]+ IN IP[46] [!-~]+", re.ASCII)
_CANDIDATE = re.compile(
    r"([A-Za-z0-9+/]{1,32}) ([0-9]{1,5}) ([A-Za-z-]+) ([0-9]{1,10}) ([!-~]+) ([0-9]{1,5}) typ ([a-z]+)((?: [!-~]+)*)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """The lines of the session or of one m-line: attribute -> its values, in order. A flag has the value ''."""

    name: str
    attributes: dict[str, list[str]]

    def first(self, attribute: str) -> str | None:
        """Return the first value, None if there is none."""
        return next(iter(self.attributes.get(attribute, [])), None)

    def all(self, attribute: str) -> list[str]:
        """Return every value."""
        return self.attributes.get(attribute, [])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Media(_Section):
    kind: str
    profile: str
    formats: tuple[str, ...]


@dataclass(slots=True)
class _Offer:
    """A session section, and its m-lines in order."""

    session: _Section
    origin: str
    media: list[_Media] = field(default_factory=list)


def check_offer(sdp: str) -> str:
    """Return the offer as aiortc may have it, CRLF at each line's end: nothing in it makes aiortc raise or wait.

    Candidates with a `.local` name are left out: the peer is reached as a peer-reflexive candidate all the same.

    Raises:
        TooLargeError: more bytes or lines than an offer can have.
        BadRequestError: this is not SDP.
        UnprocessableError: this is SDP, but not a call that we can take.
    """
    offer = _read(sdp)
    audio = _check_media(offer.media)
    _check_bundle(offer)
    if len(audio.all("ssrc")) > MAX_SSRC_LINES:
        raise _refused(f"{audio.name}: {len(audio.all('ssrc'))} ssrc lines, wanted at most {MAX_SSRC_LINES}")
    n_candidates = sum(len(media.all("candidate")) for media in offer.media)
    if n_candidates > MAX_CANDIDATES:
        raise _refused(f"{n_candidates} candidates, wanted at most {MAX_CANDIDATES}")
    return "\r\n".join(
        [*_write_session(offer), *(line for media in offer.media for line in _write_media(offer, media))]
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def _read(sdp: str) -> _Offer:
    n_bytes = len(sdp.encode("utf-8", "surrogatepass"))
    if n_bytes > MAX_OFFER_BYTES:
        raise TooLargeError(f"the offer has {n_bytes} bytes, wanted at most {MAX_OFFER_BYTES}", param="sdp")
    lines = re.split(r"\r\n|\n|\r", sdp.rstrip("\r\n"))
    if len(lines) > MAX_LINES:
        raise TooLargeError(f"the offer has {len(lines)} lines, wanted at most {MAX_LINES}", param="sdp")
    if lines[0] != "v=0":
        raise _malformed(f"line 1: found {_cut(lines[0])}, wanted 'v=0': an SDP offer")
    offer = _Offer(_Section(name="session", attributes={}), "- 0 0 IN IP4 0.0.0.0")
    section = offer.session
    for number, line in enumerate(lines[1:], start=2):
        found = _LINE.fullmatch(line)
        if found is None or len(line) > MAX_LINE_CHARS:
            wanted = f"<letter>=<value>, at most {MAX_LINE_CHARS} characters"
            raise _malformed(f"line {number}: found {_cut(line)}, wanted {wanted}")
        match found.groups():
            case "m", value:
                section = _read_media(number, value)
                offer.media.append(section)
            case "a", value:
                attribute, _, rest = value.partition(":")
                section.attributes.setdefault(attribute, []).append(rest)
            case "o", value if _ORIGIN.fullmatch(value):
                offer.origin = value
    return offer


def _read_media(number: int, value: str) -> _Media:
    found = _MEDIA.fullmatch(value)
    if found is None:
        raise _malformed(f"line {number}: found {_cut('m=' + value)}, wanted m=<media> <port> <profile> <formats>")
    kind, profile, formats = found.groups()
    return _Media(
        name=f"m={kind}",
        attributes={},
        kind=kind,
        profile=profile,
        formats=tuple(formats.split()),
    )


def _check_media(media: list[_Media]) -> _Media:
    """Return the audio m-line, the only one."""
    kinds = [each.kind for each in media]
    if kinds.count("audio") != 1 or kinds.count("application") > 1 or set(kinds) - {"audio", "application"}:
        found = ", ".join(kinds[:8])[:80] or "none"
        raise _refused(f"m-lines: found {found}, wanted exactly one audio and at most one application")
    for each in media:
        profiles = _AUDIO_PROFILES if each.kind == "audio" else _DATA_PROFILES
        if each.profile not in profiles:
            raise _refused(f"{each.name}: profile {each.profile[:40]!r}, wanted {' or '.join(sorted(profiles))}")
        if each.kind == "application" and each.formats != ("webrtc-datachannel",):
            raise _refused(f"{each.name}: {_cut(' '.join(each.formats))}, wanted 'webrtc-datachannel'")
    audio = media[kinds.index("audio")]
    if not audio.all("rtcp-mux"):
        raise _refused(f"{audio.name}: no rtcp-mux, wanted RTP and RTCP on one port")
    return audio


def _check_bundle(offer: _Offer) -> None:
    mids = [_required(media, media.first("mid"), "mid", _TOKEN) for media in offer.media]
    if len(set(mids)) != len(mids):
        raise _malformed(f"mid {mids[0]!r} stands on two m-lines, wanted one of its own for each")
    groups = [value.split() for value in offer.session.all("group")]
    bundle = next((group[1:] for group in groups if group[:1] == ["BUNDLE"]), None)
    if bundle is None or sorted(bundle) != sorted(mids):
        found = "no BUNDLE group" if bundle is None else f"BUNDLE {_cut(' '.join(bundle))}"
        raise _refused(f"found {found}, wanted all m-lines on one transport: a=group:BUNDLE {' '.join(mids)}")


# --- writing ---------------------------------------------------------------------------------------------------------


def _write_session(offer: _Offer) -> Iterator[str]:
    bundle = next(value.split()[1:] for value in offer.session.all("group") if value.split()[:1] == ["BUNDLE"])
    yield from ("v=0", f"o={offer.origin}", "s=-", "t=0 0")
    if offer.session.all("ice-lite"):
        yield "a=ice-lite"
    yield f"a=group:BUNDLE {' '.join(bundle)}"
    yield "a=msid-semantic:WMS *"


def _write_media(offer: _Offer, media: _Media) -> Iterator[str]:
    body = _audio_lines(media) if media.kind == "audio" else _data_lines(media)
    yield from body
    yield f"a=mid:{media.first('mid')}"
    yield from _transport_lines(offer.session, media)
    yield from _candidate_lines(media)
    if media is offer.media[-1]:
        yield ""  # so that the last line ends in CRLF as well


def _audio_lines(media: _Media) -> list[str]:
    codecs = _codecs(media)
    if not set(codecs.values()) - set(_EVENTS):
        offered = ", ".join(value.partition(" ")[2] for value in media.all("rtpmap")[:8])
        raise _refused(f"{media.name}: codecs {_cut(offered)}, wanted one of {', '.join(_CODECS.values())}")
    direction = next((name for name in _DIRECTIONS if media.all(name)), "sendrecv")
    if direction == "inactive":
        raise _refused(f"{media.name}: inactive, wanted sendrecv, sendonly or recvonly")
    lines = [f"m=audio 9 {media.profile} {' '.join(codecs)}", f"a={direction}", "a=rtcp-mux"]
    lines += [f"a=rtpmap:{payload_type} {codec}" for payload_type, codec in codecs.items()]
    lines += _fmtp_lines(media, codecs)
    for value in media.all("extmap"):
        number, uri = _matched(media, value, "extmap", _EXTMAP)[:2]
        if 1 <= int(number) <= 255:  # RFC 8285 section 5: above stand only the ids that a browser renumbers
            lines.append(f"a=extmap:{int(number)} {uri}")
    for value in media.all("ssrc"):
        ssrc, attribute, text = _matched(media, value, "ssrc", _SSRC)
        if attribute == "cname" and text and int(ssrc) < 2**32:
            lines.append(f"a=ssrc:{int(ssrc)} cname:{text}")
    msid = media.first("msid")
    if msid is not None and _MSID.fullmatch(msid):
        lines.append(f"a=msid:{msid}")
    return lines


def _codecs(media: _Media) -> dict[str, str]:
    """Return payload type -> codec as in rtpmap, of those that we speak, and events, in the order of the m-line."""
    offered: dict[str, str] = {}
    for value in media.all("rtpmap"):
        payload_type, name, clock_hz, _ = _matched(media, value, "rtpmap", _RTPMAP)
        codec = (_CODECS | _EVENTS).get(f"{name.lower()}/{clock_hz}", "")
        dynamic = int(payload_type) in _DYNAMIC_TYPES
        offered.setdefault(payload_type, codec if dynamic or _STATIC_TYPES.get(payload_type) == codec else "")
    codecs = {one: offered.get(one, _STATIC_TYPES.get(one, "")) for one in media.formats}
    return {payload_type: codec for payload_type, codec in codecs.items() if codec}


def _fmtp_lines(media: _Media, codecs: dict[str, str]) -> Iterator[str]:
    for value in media.all("fmtp"):
        payload_type, text = _matched(media, value, "fmtp", _FMTP)
        if codecs.get(payload_type) == "opus/48000/2":
            # RFC 7587 section 6.1: every parameter of Opus is a number; others say nothing to us.
            parameters = [part.strip() for part in text.split(";")]
            known = [part for part in parameters if _NUMERIC_PARAMETER.fullmatch(part)]
            if known:
                yield f"a=fmtp:{payload_type} {';'.join(known)}"


def _data_lines(media: _Media) -> list[str]:
    port = media.first("sctp-port")
    if port is None or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise _malformed(f"{media.name}: sctp-port {_cut(port)}, wanted 1 to 65535")
    text = media.first("max-message-size") or str(_DEFAULT_MESSAGE_BYTES)
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII):
        raise _malformed(f"{media.name}: max-message-size {_cut(text)}, wanted a number of bytes")
    if 0 < int(text) < _MIN_MESSAGE_BYTES:
        raise _refused(f"{media.name}: max-message-size {text}, wanted at least {_MIN_MESSAGE_BYTES}, or 0: no limit")
    return [
        f"m=application 9 {media.profile} webrtc-datachannel",
        f"a=sctp-port:{int(port)}",
        f"a=max-message-size:{int(text)}",
    ]


def _transport_lines(session: _Section, media: _Media) -> Iterator[str]:
    """Yield ICE credentials, fingerprints and DTLS role; what the m-line lacks is taken from the session."""

    def value(attribute: str) -> str | None:
        return media.first(attribute) or session.first(attribute)

    yield f"a=ice-ufrag:{_required(media, value('ice-ufrag'), 'ice-ufrag', _UFRAG)}"
    yield f"a=ice-pwd:{_required(media, value('ice-pwd'), 'ice-pwd', _PASSWORD)}"
    fingerprints = media.all("fingerprint") or session.all("fingerprint")
    digests = [_matched(media, each, "fingerprint", _FINGERPRINT) for each in fingerprints[:8]]
    # RFC 8122 section 5: the name of the hash is not case-sensitive. 32 bytes in hex with colons are 95 characters.
    sha256 = [digest.upper() for name, digest in digests if name.lower() == "sha-256" and len(digest) == 95]
    if not sha256:
        found = ", ".join(name for name, _ in digests) or "none"
        raise _refused(f"{media.name}: fingerprint {found}, wanted a sha-256 of 32 bytes")
    yield from (f"a=fingerprint:sha-256 {digest}" for digest in sha256)
    setup = value("setup")
    if setup not in {"actpass", "active", "passive"}:
        raise _malformed(f"{media.name}: setup {_cut(setup)}, wanted actpass, active or passive")
    yield f"a=setup:{setup}"


def _candidate_lines(media: _Media) -> Iterator[str]:
    candidates = media.all("candidate")
    kept = list(_reachable(media, candidates))
    yield from (f"a=candidate:{candidate}" for candidate in kept)
    # The end after a candidate was left out would tell aioice to give up before the peer's own checks arrive.
    if kept and len(kept) == len(candidates) and media.all("end-of-candidates"):
        yield "a=end-of-candidates"


def _reachable(media: _Media, candidates: Iterable[str]) -> Iterator[str]:
    """Yield the candidates that aioice can use: UDP, RTP's component, an address in digits."""
    for value in candidates:
        foundation, component, transport, priority, address, port, kind, _ = _matched(
            media, value.strip(), "candidate", _CANDIDATE
        )
        usable = (
            transport.lower() == "udp"
            and int(component) == 1
            and kind in {"host", "srflx", "prflx", "relay"}
            and 0 < int(port) <= 65535
            and 0 < int(priority) < 2**31
            and _is_address(address)
        )
        if usable:
            yield f"{foundation} 1 udp {int(priority)} {address} {int(port)} typ {kind}"


def _is_address(text: str) -> bool:
    try:
        return "%" not in str(ipaddress.ip_address(text))
    except ValueError:
        return False  # a name: `.local` of a browser, or one that we would have to look up


# --- errors ----------------------------------------------------------------------------------------------------------


def _matched(media: _Section, value: str, attribute: str, grammar: re.Pattern[str]) -> tuple[str, ...]:
    found = grammar.fullmatch(value)
    if found is None:
        raise _malformed(f"{media.name}: a={attribute}:{value[:60]!r} breaks the grammar of that attribute")
    return tuple(group or "" for group in found.groups())


def _required(media: _Section, value: str | None, attribute: str, grammar: re.Pattern[str]) -> str:
    if value is None:
        raise _refused(f"{media.name}: no {attribute}, wanted a line a={attribute}:")
    if grammar.fullmatch(value) is None:
        raise _malformed(f"{media.name}: a={attribute}:{value[:60]!r} breaks the grammar of that attribute")
    return value


def _malformed(message: str) -> BadRequestError:
    return BadRequestError(message, param="sdp", reason="bad_sdp")


def _refused(message: str) -> UnprocessableError:
    return UnprocessableError(message, param="sdp", reason="unusable_sdp")


def _cut(text: str | None) -> str:
    return "missing" if text is None else repr(text[:80])
