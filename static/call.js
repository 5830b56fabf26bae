// One call to the server: microphone, peer connection, data channel, levels. It knows neither page nor conversation.
//
//   new        open() asks for the microphone, sends the offer and waits for the data channel
//   open       send() takes wire events; what comes in goes to listeners.event
//   troubled   the network changed or the connection was lost: listeners.troubled(true); the call brings itself back,
//              first by an ICE restart, then over another connection; listeners.troubled(false): it is open again
//   closed     by hangUp(), or listeners.closed(reason) told why: "ended" by the server, or "lost"

const CALLS_PATH = "v1/realtime/calls"; // relative, so that the page works behind a path prefix too
const ICE_SERVERS_PATH = "v1/realtime/ice_servers";
const RESUME_HEADER = "Parley-Resume"; // the token of a call, from a server that lets it be resumed
const RESUME_WITHIN_HEADER = "Parley-Resume-Within"; // and how many seconds it waits after it has last heard of us
const OPEN_LIMIT_MS = 15000;
const HEARTBEAT_LIMIT_MS = 3000; // parley.levels comes five times a second
const RESUME_PAUSES_MS = [0, 0, 2000, 4000, 8000]; // before each try; the last one again and again

// Of each try: until the answer, and from then until the channel is open. On a path of 500 ms that takes 2 s (TCP, TLS and
// the answer are 3 to 4 round trips) and 2.5 s (ICE is one, DTLS two: RFC 6347, 4.2.4; SCTP two: RFC 9260, 5.1). The rest
// is for what is lost on the way: TCP tries again after 1, 3 and 7 s. Where nothing answers, three tries fit into the
// 28 s that a server waits by default.
const RESUME_LIMIT_MS = 8000;
const BEAT_LIMIT_MS = 4000; // and then of its first heartbeat
const BEATING_MS = 1000; // a connection with a heartbeat so recent works
const RETRY_AFTER_S = 5; // where a 503 does not say

const SOUND = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };

/** Why a call could not be placed, or a microphone not opened. `code` is a key of PROBLEMS in parley.js, "hung_up", "overtaken" or "over". */
export class CallError extends Error {
  constructor(code, message, retryAfterS = null) {
    super(message);
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** Return the microphones as {id, label}; labels are empty until the caller has allowed one. */
export async function listMicrophones() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices
    .filter((device) => device.kind === "audioinput" && device.deviceId !== "default" && device.deviceId !== "")
    .map((device) => ({ id: device.deviceId, label: device.label }));
}

export class Call {
  #listeners;
  #speaker;
  #peer = null;
  #stale = []; // connections that another one is to replace: closed, one would say goodbye to the call
  #farEnd = ""; // the fingerprint of the server's side of the connection
  #channel = null;
  #sender = null; // of the microphone, or of silence
  #path = null;
  #token = null; // to resume the call with; null: the server knows of no such thing
  #tokenHoldsMs = 0;
  #iceServers = { list: [], untilMs: -Infinity }; // STUN and TURN servers, and how long their passwords hold
  #opened = false;
  #failOpening = () => {}; // ends the wait for a channel that will not open
  #troubled = false;
  #key = "";
  #closed = false;
  #abort = new AbortController();
  #context = new AudioContext();
  #microphone = null; // MediaStream, or null: the call sends silence
  #wishes = 0; // how often a microphone was asked for: the last one counts
  #muted = false;
  #callerMeter;
  #agentMeter;
  #heartbeatMs = null;
  #watch = 0;

  /** listeners: event(wireEvent), troubled(whether), closed(reason), microphoneLost(). speaker: the <audio> element. */
  constructor(speaker, listeners) {
    this.#speaker = speaker;
    this.#listeners = listeners;
    this.#callerMeter = new Meter(this.#context);
    this.#agentMeter = new Meter(this.#context);
  }

  /** Whether the call is open, but without a connection that works. */
  get troubled() {
    return this.#troubled;
  }

  get hasMicrophone() {
    return this.#microphone !== null;
  }

  /** Return once events can be sent. Throws CallError; after hangUp() one with the code "hung_up". */
  async open({ microphone, deviceId, key }) {
    this.#key = key;
    try {
      if (microphone) await this.#openMicrophone(deviceId ? { deviceId } : {});
      await this.#connect(OPEN_LIMIT_MS);
    } catch (error) {
      const wanted = !this.#closed;
      this.hangUp();
      throw wanted ? error : hungUp();
    }
    this.#opened = true;
    this.#watch = setInterval(() => this.#checkHeartbeat(), 500);
    this.#watchNetwork();
  }

  send(event) {
    if (this.#channel?.readyState === "open") this.#channel.send(JSON.stringify(event));
  }

  /** Switch to another microphone, or turn one on in a call that began without. Throws CallError. */
  async useMicrophone(deviceId) {
    await this.#openMicrophone(deviceId ? { deviceId: { exact: deviceId } } : {});
    await this.#sender.replaceTrack(this.#microphone.getAudioTracks()[0]);
  }

  /** Of this microphone, and of every other that the call will use. */
  set muted(muted) {
    this.#muted = muted;
    for (const track of this.#microphone?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  /** How loud both sides are now, 0 to 1. */
  get levels() {
    return { caller: this.#callerMeter.level, agent: this.#agentMeter.level };
  }

  /** End the call on both sides. Safe to call twice, and while the page goes away. */
  hangUp() {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#watch);
    this.#abort.abort();
    if (this.#path) this.#leave();
    this.#closeStale();
    this.#peer?.close();
    stop(this.#microphone);
    this.#speaker.srcObject = null;
    this.#context.close();
  }

  /** Tell the server that the call is over. */
  #leave() {
    // keepalive: the request outlives the page.
    fetch(`${this.#path}/hangup`, { method: "POST", keepalive: true, headers: this.#headers }).catch(() => {
      // The server notices by itself, a little later.
    });
  }

  /** Take another microphone for the one before. Throws CallError; "hung_up" or "overtaken" if nobody waits for it any more. */
  async #openMicrophone(wanted) {
    const wish = (this.#wishes += 1);
    if (!navigator.mediaDevices) throw new CallError("insecure_context", "no microphone outside a secure context");
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { ...SOUND, ...wanted } });
    } catch (error) {
      throw new CallError(microphoneProblem(error), error.message);
    }
    if (this.#closed || wish !== this.#wishes) {
      stop(stream);
      throw this.#closed ? hungUp() : new CallError("overtaken", "another microphone was asked for");
    }
    stop(this.#microphone);
    this.#microphone = stream;
    this.muted = this.#muted;
    this.#callerMeter.listen(stream);
    stream.getAudioTracks()[0].onended = () => {
      if (this.#microphone === stream) this.#loseMicrophone();
    };
  }

  #loseMicrophone() {
    this.#microphone = null;
    this.#sender?.replaceTrack(this.#silence());
    this.#listeners.microphoneLost();
  }

  /** The server wants sound to come in even from those who only type. */
  #silence() {
    return this.#context.createMediaStreamDestination().stream.getAudioTracks()[0];
  }

  /** Make a connection, the first or another one. limitMs: for the answer, and from then on for the channel. */
  async #connect(limitMs) {
    if (this.#peer) this.#stale.push(this.#peer);
    const peer = (this.#peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" }));
    const track = this.#microphone?.getAudioTracks()[0] ?? this.#silence();
    this.#sender = peer.addTrack(track, this.#microphone ?? new MediaStream([track]));
    peer.ontrack = ({ track, streams }) => this.#play(streams[0] ?? new MediaStream([track]));
    peer.onconnectionstatechange = () => {
      if (peer !== this.#peer) return;
      if (peer.connectionState === "failed") this.#recover("lost");
      if (peer.connectionState === "disconnected") this.#renew();
    };
    await Promise.all([this.#openChannel(peer, limitMs), this.#negotiate(peer, AbortSignal.timeout(limitMs))]);
  }

  #openChannel(peer, limitMs) {
    const channel = (this.#channel = peer.createDataChannel("oai-events"));
    channel.onmessage = ({ data }) => this.#receive(channel, data);
    channel.onclose = () => {
      // Either the server has ended the call, or it believes that we are gone: asked to go on, it tells which.
      if (channel === this.#channel) this.#recover("ended");
    };
    const { signal } = this.#abort;
    return new Promise((resolve, reject) => {
      const end = (then) => {
        clearTimeout(limit);
        peer.onsignalingstatechange = null;
        signal.removeEventListener("abort", fail);
        then();
      };
      const problem = () => new CallError(this.#path ? "no_media" : "unreachable", "the data channel did not open");
      const fail = () => end(() => reject(problem()));
      this.#failOpening = fail;
      let limit = setTimeout(fail, limitMs);
      signal.addEventListener("abort", fail);
      peer.onsignalingstatechange = () => {
        if (peer.signalingState !== "stable") return;
        clearTimeout(limit);
        limit = setTimeout(fail, limitMs);
      };
      channel.onopen = () => end(resolve);
    });
  }

  /** Offer and take the answer. After the limit no offer is sent any more: another connection may be on its way. */
  async #negotiate(peer, limit) {
    peer.setConfiguration({ ...peer.getConfiguration(), iceServers: await this.#askForIceServers(limit) });
    await peer.setLocalDescription();
    const offer = peer.localDescription.sdp;
    const answer = this.#path ? await this.#resume(offer, limit) : await this.#exchange(offer);
    this.#farEnd = fingerprint(answer);
    this.#closeStale();
    await peer.setRemoteDescription({ type: "answer", sdp: answer });
  }

  /**
   * Return the server's STUN and TURN servers: none if it names none. They are kept for half the time that their passwords
   * hold: who comes back need not ask first, and the call may go on for long after. A server that is not there is told of
   * by the offer.
   */
  async #askForIceServers(limit) {
    const askedMs = performance.now();
    if (askedMs < this.#iceServers.untilMs) return this.#iceServers.list;
    try {
      const response = await fetch(ICE_SERVERS_PATH, { headers: this.#headers, signal: limit });
      if (!response.ok) return [];
      const { ice_servers, ttl_s = 0 } = await response.json();
      this.#iceServers = { list: ice_servers, untilMs: askedMs + ttl_s * 500 };
      return ice_servers;
    } catch {
      return [];
    }
  }

  /** Send the offer. It is never taken back: the server may have given the call its place, which only a hang-up frees. */
  async #exchange(offer) {
    const headers = { ...this.#headers, "Content-Type": "application/sdp" };
    let response;
    try {
      response = await fetch(CALLS_PATH, { method: "POST", headers, body: offer });
    } catch (error) {
      throw new CallError("unreachable", error.message);
    }
    if (response.status !== 201) throw await refusal(response);
    this.#path = `${CALLS_PATH}/${response.headers.get("Location").split("/").pop()}`;
    this.#token = response.headers.get(RESUME_HEADER);
    this.#tokenHoldsMs = Number(response.headers.get(RESUME_WITHIN_HEADER)) * 1000;
    if (this.#closed) this.#leave();
    return response.text();
  }

  /** Offer the server to go on with the call; return its answer. Throws CallError; "over" if there is no such call any more. */
  async #resume(offer, limit) {
    const headers = { ...this.#headers, "Content-Type": "application/sdp", [RESUME_HEADER]: this.#token };
    let response;
    try {
      response = await fetch(`${this.#path}/resume`, { method: "POST", headers, body: offer, signal: limit });
    } catch (error) {
      throw new CallError("unreachable", error.message);
    }
    if (response.status === 404) throw new CallError("over", "the call is over");
    if (!response.ok) throw await refusal(response);
    return response.text();
  }

  #closeStale() {
    for (const peer of this.#stale.splice(0)) peer.close();
  }

  /** Bring the call back. `otherwise`: what listeners.closed is told where the server has ended the call. */
  async #recover(otherwise) {
    if (!this.#opened) {
      this.#failOpening();
      return;
    }
    if (this.#closed || this.#troubled) return;
    if (this.#token === null) {
      this.#close(otherwise);
      return;
    }
    this.#troubled = true;
    this.#listeners.troubled(true);
    const untilMs = performance.now() + this.#tokenHoldsMs - HEARTBEAT_LIMIT_MS; // it was lost before we noticed
    for (let n = 0; ; n += 1) {
      const pauseMs = RESUME_PAUSES_MS[n] ?? RESUME_PAUSES_MS.at(-1);
      if (n > 0 && performance.now() + pauseMs > untilMs) break;
      await this.#pause(pauseMs);
      if (this.#closed) return;
      try {
        if (n === 0 && this.#channel.readyState === "open") await this.#restart();
        else if (n === 0 || !this.#beating) await this.#connect(RESUME_LIMIT_MS); // the try before may work by now
        await this.#beat();
      } catch (error) {
        if (this.#closed) return;
        if (error.code === "over") break;
        otherwise = "lost";
        continue;
      }
      this.#troubled = false;
      this.#listeners.troubled(false);
      return;
    }
    this.#close(otherwise);
  }

  /** Change the addresses of the connection, and nothing else of it. Throws if the server has no such connection any more. */
  async #restart() {
    const peer = this.#peer;
    peer.restartIce();
    await peer.setLocalDescription();
    const answer = await this.#resume(peer.localDescription.sdp, AbortSignal.timeout(RESUME_LIMIT_MS));
    if (fingerprint(answer) !== this.#farEnd) throw new CallError("no_media", "the server wants another connection");
    await peer.setRemoteDescription({ type: "answer", sdp: answer });
  }

  get #beating() {
    return this.#channel.readyState === "open" && this.#heartbeatMs !== null && performance.now() - this.#heartbeatMs < BEATING_MS;
  }

  /** Wait for a heartbeat: one from before the answer may have come over the old path. */
  #beat() {
    const sinceMs = performance.now();
    const untilMs = sinceMs + BEAT_LIMIT_MS;
    return new Promise((resolve, reject) => {
      const look = setInterval(() => {
        const beaten = this.#heartbeatMs !== null && this.#heartbeatMs > sinceMs;
        if (!beaten && !this.#closed && performance.now() < untilMs) return;
        clearInterval(look);
        if (beaten) resolve();
        else reject(new CallError("no_media", "nothing came over the connection"));
      }, 100);
    });
  }

  /** Wait; not longer than until the browser has a network again, or the call is hung up. */
  #pause(ms) {
    const { signal } = this.#abort;
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        removeEventListener("online", end);
        signal.removeEventListener("abort", end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      addEventListener("online", end);
      signal.addEventListener("abort", end);
    });
  }

  /** Where the browser tells of another network, the connection need not break first. */
  #watchNetwork() {
    const { signal } = this.#abort;
    addEventListener("online", () => this.#renew(), { signal });
    let type = navigator.connection?.type; // of mobile browsers; "change" also tells of mere estimates of speed
    navigator.connection?.addEventListener(
      "change",
      () => {
        if (type !== navigator.connection.type && navigator.connection.type !== "none") this.#renew();
        type = navigator.connection.type;
      },
      { signal },
    );
  }

  #renew() {
    if (this.#token !== null && this.#opened) this.#recover("lost");
  }

  get #headers() {
    return this.#key ? { Authorization: `Bearer ${this.#key}` } : {};
  }

  #play(stream) {
    this.#speaker.srcObject = stream;
    this.#speaker.play().catch(() => {
      // autoplay is allowed after the caller's click; a call that is torn down meanwhile rejects harmlessly.
    });
    this.#agentMeter.listen(stream);
  }

  #receive(channel, data) {
    const event = JSON.parse(data);
    // One that comes late over a connection which another is to replace says nothing of the other.
    if (event.type === "parley.levels" && channel === this.#channel) this.#heartbeatMs = performance.now();
    this.#listeners.event(event);
  }

  /** A server without the heartbeat is trusted: its peer connection tells when it is gone. */
  #checkHeartbeat() {
    if (this.#heartbeatMs !== null && performance.now() - this.#heartbeatMs > HEARTBEAT_LIMIT_MS) this.#recover("lost");
  }

  #close(reason) {
    if (this.#closed) return;
    this.hangUp();
    this.#listeners.closed(reason);
  }
}

/** How loud a stream is. */
class Meter {
  #context;
  #analyser;
  #source = null;
  #samples = new Float32Array(1024); // 21 ms at 48 kHz

  constructor(context) {
    this.#context = context;
    this.#analyser = new AnalyserNode(context, { fftSize: 1024 });
  }

  listen(stream) {
    this.#source?.disconnect();
    this.#source = this.#context.createMediaStreamSource(stream);
    this.#source.connect(this.#analyser);
  }

  /** 0 at -60 dBFS RMS and below, 1 at -10 dBFS and above; the curve keeps speech from looking all equally loud. */
  get level() {
    if (!this.#source) return 0;
    this.#analyser.getFloatTimeDomainData(this.#samples);
    let sum = 0;
    for (const sample of this.#samples) sum += sample * sample;
    const dbfs = 10 * Math.log10(sum / this.#samples.length + 1e-9);
    return Math.min(1, Math.max(0, (dbfs + 60) / 50)) ** 1.8;
  }
}

function hungUp() {
  return new CallError("hung_up", "the caller hung up");
}

/** Return what a description says of the other side's identity. */
function fingerprint(sdp) {
  return /^a=fingerprint:(.*)$/m.exec(sdp)?.[1].trim();
}

function stop(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop();
}

function microphoneProblem(error) {
  if (error.name === "NotAllowedError" || error.name === "SecurityError") return "microphone_denied";
  if (error.name === "NotFoundError" || error.name === "OverconstrainedError") return "no_microphone";
  return "microphone_busy";
}

async function refusal(response) {
  const { message = "", code = "" } = (await response.json().catch(() => ({}))).error ?? {};
  if (response.status === 401 || response.status === 403) return new CallError("unauthorized", message);
  if (response.status !== 503) return new CallError("refused", message || `the server answered ${response.status}`);
  const retryAfterS = Number(response.headers.get("Retry-After")) || RETRY_AFTER_S;
  return new CallError(code === "server_full" ? "server_full" : "not_ready", message, retryAfterS);
}
