// One call to the server: microphone, peer connection, data channel, levels. It knows neither page nor conversation.
//
//   new        open() asks for the microphone, sends the offer and waits for the data channel
//   open       send() takes wire events; what comes in goes to listeners.event
//   closed     by hangUp(), or listeners.closed(reason) told why: "ended" by the server, or "lost"

const CALLS_PATH = "v1/realtime/calls"; // relative, so that the page works behind a path prefix too
const ICE_SERVERS_PATH = "v1/realtime/ice_servers";
const OPEN_LIMIT_MS = 15000;
const HEARTBEAT_LIMIT_MS = 3000; // parley.levels comes five times a second
const RETRY_AFTER_S = 5; // where a 503 does not say

const SOUND = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };

/** Why a call could not be placed, or a microphone not opened. `code` is a key of PROBLEMS in parley.js, "hung_up" or "overtaken". */
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
  #channel = null;
  #sender = null; // of the microphone, or of silence
  #path = null;
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

  /** listeners: event(wireEvent), closed(reason), microphoneLost(). speaker: the <audio> element. */
  constructor(speaker, listeners) {
    this.#speaker = speaker;
    this.#listeners = listeners;
    this.#callerMeter = new Meter(this.#context);
    this.#agentMeter = new Meter(this.#context);
  }

  get hasMicrophone() {
    return this.#microphone !== null;
  }

  /** Return once events can be sent. Throws CallError; after hangUp() one with the code "hung_up". */
  async open({ microphone, deviceId, key }) {
    this.#key = key;
    try {
      if (microphone) await this.#openMicrophone(deviceId ? { deviceId } : {});
      await this.#connect();
    } catch (error) {
      const wanted = !this.#closed;
      this.hangUp();
      throw wanted ? error : hungUp();
    }
    this.#watch = setInterval(() => this.#checkHeartbeat(), 500);
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

  async #connect() {
    const peer = (this.#peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" }));
    const track = this.#microphone?.getAudioTracks()[0] ?? this.#silence();
    this.#sender = peer.addTrack(track, this.#microphone ?? new MediaStream([track]));
    peer.ontrack = ({ track, streams }) => this.#play(streams[0] ?? new MediaStream([track]));
    peer.onconnectionstatechange = () => {
      if (peer.connectionState === "failed") this.#close("lost");
    };
    await Promise.all([this.#openChannel(peer), this.#negotiate(peer)]);
  }

  #openChannel(peer) {
    this.#channel = peer.createDataChannel("oai-events");
    this.#channel.onmessage = ({ data }) => this.#receive(data);
    this.#channel.onclose = () => this.#close("ended");
    return new Promise((resolve, reject) => {
      const fail = () => reject(new CallError(this.#path ? "no_media" : "unreachable", "the data channel did not open"));
      const limit = setTimeout(fail, OPEN_LIMIT_MS);
      this.#abort.signal.addEventListener("abort", fail);
      this.#channel.onopen = () => resolve(clearTimeout(limit));
    });
  }

  async #negotiate(peer) {
    peer.setConfiguration({ ...peer.getConfiguration(), iceServers: await this.#iceServers() });
    await peer.setLocalDescription();
    const answer = await this.#exchange(peer.localDescription.sdp);
    await peer.setRemoteDescription({ type: "answer", sdp: answer });
  }

  /** Return the server's STUN and TURN servers: none if it names none. A server that is not there is told of by the offer. */
  async #iceServers() {
    try {
      const response = await fetch(ICE_SERVERS_PATH, { headers: this.#headers, signal: this.#abort.signal });
      return response.ok ? (await response.json()).ice_servers : [];
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
    if (this.#closed) this.#leave();
    return response.text();
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

  #receive(data) {
    const event = JSON.parse(data);
    if (event.type === "parley.levels") this.#heartbeatMs = performance.now();
    this.#listeners.event(event);
  }

  /** A server without the heartbeat is trusted: its peer connection tells when it is gone. */
  #checkHeartbeat() {
    if (this.#heartbeatMs !== null && performance.now() - this.#heartbeatMs > HEARTBEAT_LIMIT_MS) this.#close("lost");
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
