// The page: one state, one function that draws it, and the controls that change it.
//
// For automatic tests the page says what it shows:
//
//   body[data-state]                     idle, connecting, reconnecting, listening, hearing, thinking, speaking, ducked, ended
//   #problem[data-code]                  a key of PROBLEMS, while one is shown
//   .message[data-item-id]               the wire's id of the item
//   .message[data-role]                  caller, agent, tool, divider
//   .message[data-status]                see conversation.js
//   .message .stable, .message .tail     the caller's words: certain, provisional
//   .message .spoken, .message .unspoken the agent's words: already spoken (or heard, if cut), not yet (or never)
//   .latency[data-voice-to-voice-ms]     the latency strip of a turn
//
// Whatever comes from outside enters the page by textContent (make() in messages.js, and setText()).

import { Call, listMicrophones } from "./call.js";
import { addTyped, apply, endCall, newConversation, over, startCall, takeUnconfirmed, visible } from "./conversation.js";
import { caption, FAILED, make, MESSAGE_PARTS, STAGES } from "./messages.js";
import { drawWaveform } from "./waveform.js";

const NOTICE_MS = 7000;
const THINKING_LIMIT_MS = 8000; // after that, "listening" is nearer to the truth than "thinking"
const CAPTIONS = 6;
const DOUBLE_CLICK_MS = 400;
const RETRIES = 5; // by itself, where a server takes no call now; each after twice the pause of the one before

const HEADLINES = {
  idle: "Ready when you are",
  connecting: "Connecting",
  reconnecting: "Reconnecting",
  listening: "Listening",
  hearing: "Hearing you",
  thinking: "Thinking",
  speaking: "Speaking",
  ducked: "Speaking softly",
  ended: "Call ended",
};

const HINTS = {
  idle: "Speak as you would to a person. Interrupt whenever you like.",
  connecting: "Your browser may ask for the microphone.",
  reconnecting: "The connection was lost. Bringing the call back.",
  ended: "Call again whenever you like.",
};
const HINT_IN_CALL = "Say hello. You can interrupt at any time.";
const HINT_TYPING = "Type a message, and hear the answer.";

const NO_MICROPHONE = { id: "none", label: "No microphone" }; // in the picker while a call has none; it cannot be picked

// What can go wrong: what the caller reads, and what they can do about it. Where the server said when to call again, the
// page does it by itself.
const PROBLEMS = {
  microphone_denied: {
    title: "The microphone is blocked",
    text: "Allow it for this page in the browser's address bar, or go on without one and type.",
    retry: "Try again",
    textOnly: true,
  },
  no_microphone: {
    title: "No microphone found",
    text: "Plug one in, or go on without one: type, and hear the answer.",
    retry: "Try again",
    textOnly: true,
  },
  microphone_busy: {
    title: "The microphone could not be opened",
    text: "Another program may be using it.",
    retry: "Try again",
    textOnly: true,
  },
  insecure_context: {
    title: "The browser allows no microphone here",
    text: "Open this page over https or on localhost, or go on without a microphone.",
    textOnly: true,
  },
  server_full: { title: "All lines are busy", text: "There is no room for another call just now.", retry: "Call again" },
  not_ready: { title: "The server is warming up", text: "Its engines are not ready yet.", retry: "Call again" },
  unauthorized: { title: "This server asks for a key", text: "Its operator can give you one.", key: true },
  unreachable: { title: "The server cannot be reached", text: "Check your network, then call again.", retry: "Call again" },
  refused: { title: "The server did not take the call", text: "", retry: "Call again" },
  no_media: {
    title: "The call could not be connected",
    text: "The server answered, but no sound comes through. A firewall may be in the way.",
    retry: "Call again",
  },
  lost: { title: "Connection lost", text: "The call could not be brought back. What was said is still here.", retry: "Call again" },
  failed: { title: "The call could not be placed", text: "", retry: "Try again" },
};

// Why a reply is incomplete.
const CUT_SHORT = {
  max_output_tokens: "The reply grew too long and ends here.",
  content_filter: "The reply was stopped by a filter.",
};

const state = {
  call: null, // Call, from the click to the hang-up
  phase: "idle", // of the call: idle, connecting, reconnecting, open, ended
  conversation: newConversation(),
  microphones: [],
  microphoneId: recall("localStorage", "microphone"),
  muted: false,
  key: recall("sessionStorage", "key"),
  turnedMs: -Infinity, // when the call button last changed its meaning
  startedMs: null,
  lastedMs: null,
  awaitingSinceMs: null,
  mayRetry: false, // a call that could not be brought back is called again once, by itself
  retries: 0, // how often the page has called again by itself since the caller last did
  problem: null, // {code, detail, retryAtMs, microphone: whether the call was one with a microphone}
  notices: [], // {text, untilMs}
  awake: null, // promise of a wake lock, or of null
  queue: [], // typed before the call was open
  moved: false, // the call goes on over another connection
  replyOwed: false, // response.create came too early and is sent again
  following: true, // the end of the conversation is kept in sight
};

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const drawnMessages = new Map(); // item -> {element, revision}
const captionedItems = new WeakSet();
let drawIsDue = false;
let eventCount = 0;

// --- calling ---------------------------------------------------------------------------------------------------------

async function placeCall({ microphone = true, again = false, retries = 0 } = {}) {
  if (state.call) return;
  const call = new Call(page.speaker, {
    event: (event) => receive(call, event),
    troubled: (troubled) => bringBack(call, troubled),
    closed: (reason) => finish(call, reason),
    microphoneLost: () => notify("The microphone went away. You can still type, or choose another one."),
  });
  const deviceId = state.microphoneId;
  call.muted = again && state.muted;
  Object.assign(state, { call, retries, phase: again ? "reconnecting" : "connecting" });
  Object.assign(state, { problem: null, lastedMs: null, following: true, moved: false });
  if (!again) Object.assign(state, { mayRetry: true, muted: false, turnedMs: performance.now(), notices: [] });
  draw();
  try {
    await call.open({ microphone, deviceId, key: state.key });
  } catch (error) {
    if (state.call === call) fail(again ? "lost" : error.code, error, microphone);
    return;
  }
  startCall(state.conversation, again ? "Reconnected" : "New call");
  Object.assign(state, { retries: 0, phase: "open", startedMs: performance.now() });
  for (const text of state.queue.splice(0)) say(text);
  if (call.hasMicrophone && state.microphoneId !== deviceId) {
    // Another one was chosen meanwhile; until it is open, the first one listens.
    const chosen = state.microphoneId;
    state.microphoneId = deviceId;
    useMicrophone(chosen);
  }
  keepAwake();
  refreshMicrophones();
  draw();
}

/** Call once more as the caller did: who only typed is not listened to. */
function retry(retries = 0) {
  placeCall({ microphone: state.problem.microphone, retries });
}

/** The connection of a call is lost, or is back. */
function bringBack(call, troubled) {
  if (state.call !== call) return;
  state.phase = troubled ? "reconnecting" : "open";
  if (!troubled) {
    // What was typed into a dead connection did not arrive: it is not among the items so far.
    const lost = state.moved ? takeUnconfirmed(state.conversation) : [];
    const unsaid = [...lost, ...state.queue.splice(0)];
    for (const text of unsaid) say(text);
    if (state.moved && unsaid.length === 0) replyIfOwed(); // the end of the reply before may have been lost
    state.moved = false;
  }
  draw();
}

function hangUp() {
  finish(state.call, "hung_up");
}

/** The call is over. reason: hung_up, ended (by the server) or lost. */
function finish(call, reason) {
  if (!call || state.call !== call) return;
  const hadMicrophone = call.hasMicrophone;
  const wasOpen = live();
  call.hangUp();
  state.awake?.then((lock) => lock?.release());
  endCall(state.conversation);
  state.queue.unshift(...takeUnconfirmed(state.conversation)); // it did not arrive: it is said in the next call, or given back
  Object.assign(state, { call: null, replyOwed: false, turnedMs: performance.now() });
  state.lastedMs = wasOpen ? performance.now() - state.startedMs : null;
  state.phase = wasOpen || state.conversation.items.length > 0 ? "ended" : "idle";
  const again = reason === "lost" && state.mayRetry && wasOpen;
  if (reason !== "failed" && !again) giveBack();
  if (reason === "ended" && wasOpen) notify("The server ended the call.");
  if (again) {
    state.mayRetry = false;
    placeCall({ microphone: hadMicrophone, again: true });
  } else if (reason === "lost") state.problem = { code: "lost", detail: "", retryAtMs: null, microphone: hadMicrophone };
  draw();
}

function fail(reason, error, microphone) {
  finish(state.call, "failed");
  const code = reason in PROBLEMS ? reason : "failed";
  const waits = error.retryAfterS && state.retries < RETRIES;
  const retryAtMs = waits ? performance.now() + error.retryAfterS * 1000 * 2 ** state.retries : null;
  if (retryAtMs === null) giveBack(); // else it is sent when the call succeeds
  state.problem = { code, detail: error.message, retryAtMs, microphone };
  draw();
  if (PROBLEMS[code].key) page.key.focus();
}

/** Whether there is a call that goes on, its connection may be lost or not. */
function live() {
  return state.phase === "open" || Boolean(state.call?.troubled);
}

/** Whether the page is about to call again by itself. */
function waiting() {
  return state.problem !== null && state.problem.retryAtMs !== null;
}

function dismissProblem() {
  if (waiting()) state.turnedMs = performance.now();
  state.problem = null;
  giveBack();
  draw();
}

/** Put what was typed back into its field: what was never sent, or these texts. */
function giveBack(texts = state.queue.splice(0)) {
  page.text.value = [...texts, page.text.value].filter((text) => text !== "").join(" ");
}

/** A phone whose screen goes dark may end the call; where the lock is refused, it may. */
function keepAwake() {
  state.awake = navigator.wakeLock?.request("screen").catch(() => null);
}

// --- the wire --------------------------------------------------------------------------------------------------------

function receive(call, event) {
  if (state.call !== call) return;
  if (event.type === "parley.levels") return; // a heartbeat: call.js counts it, nothing here changes
  // On another connection the items so far follow; what was under way on the one before is over.
  if (event.type === "session.created" && call.troubled) {
    endCall(state.conversation);
    state.moved = true;
  }
  apply(state.conversation, event);
  if (event.type === "input_audio_buffer.speech_stopped") state.awaitingSinceMs = performance.now();
  if (event.type === "response.done") finishReply(event.response);
  if (event.type === "error") receiveError(event.error);
  scheduleDraw();
}

function finishReply(response) {
  if (response.status === "failed") notify(response.status_details?.error?.message ?? FAILED);
  if (response.status === "incomplete") notify(CUT_SHORT[response.status_details?.reason] ?? "The reply is incomplete.");
  replyIfOwed();
}

function replyIfOwed() {
  if (!state.replyOwed) return;
  state.replyOwed = false;
  send("reply", { type: "response.create" });
}

function receiveError(error) {
  if (error.event_id?.startsWith("stop_")) return; // there was nothing to stop
  if (error.event_id?.startsWith("reply_") && error.code === "conversation_already_has_active_response") {
    state.replyOwed = true;
    return;
  }
  if (error.event_id) giveBack(takeUnconfirmed(state.conversation, error.event_id));
  notify(error.message);
}

/** Send an event under an id that says what it was for; an error that comes back names it. Return the id. */
function send(purpose, event) {
  eventCount += 1;
  const event_id = `${purpose}_${eventCount}`;
  state.call.send({ ...event, event_id });
  return event_id;
}

/** Say something by typing it. Without a call it places one that leaves the microphone alone. */
function say(text) {
  if (state.phase !== "open") {
    state.queue.push(text);
    placeCall({ microphone: false });
    return;
  }
  const { replying, playing } = state.conversation;
  if (replying || playing) {
    send("stop", { type: "response.cancel" });
    send("stop", { type: "output_audio_buffer.clear" });
  }
  const id = `typed_${Date.now().toString(36)}_${eventCount}`; // of at most 32 characters, and of no other call's item
  const item = { id, type: "message", role: "user", content: [{ type: "input_text", text }] };
  const eventId = send("text", { type: "conversation.item.create", item });
  send("reply", { type: "response.create" });
  addTyped(state.conversation, { id, text, eventId });
  Object.assign(state, { awaitingSinceMs: performance.now(), following: true });
  draw();
}

// --- what outlives the page: `storage` is localStorage or sessionStorage; where site data is blocked, touching them throws ---

function remember(storage, name, value) {
  try {
    window[storage].setItem(`parley.${name}`, value);
  } catch {
    // The caller chooses again next time.
  }
}

function recall(storage, name) {
  try {
    return window[storage].getItem(`parley.${name}`) ?? "";
  } catch {
    return "";
  }
}

// --- microphones -----------------------------------------------------------------------------------------------------

async function refreshMicrophones() {
  state.microphones = await listMicrophones();
  draw();
}

/** Take a microphone. One that cannot be had is not chosen. */
async function useMicrophone(id) {
  const { call } = state;
  try {
    if (live()) await call.useMicrophone(id);
  } catch (error) {
    if (state.call === call && error.code !== "overtaken") notify(PROBLEMS[error.code]?.title ?? error.message);
    return;
  }
  state.microphoneId = id;
  remember("localStorage", "microphone", id);
  refreshMicrophones();
}

/** Return the id of the microphone that was chosen; empty, the default one, if it has been unplugged. */
function chosenMicrophone() {
  return state.microphones.some(({ id }) => id === state.microphoneId) ? state.microphoneId : "";
}

function toggleMute() {
  if (!state.call.hasMicrophone) {
    useMicrophone(chosenMicrophone());
    return;
  }
  state.muted = !state.muted;
  state.call.muted = state.muted;
  draw();
}

// --- drawing ---------------------------------------------------------------------------------------------------------

function notify(text) {
  state.notices = [...state.notices, { text, untilMs: performance.now() + NOTICE_MS }].slice(-3);
  draw();
}

/** Draw in the next frame; at once while the tab is hidden, for then there is none. */
function scheduleDraw() {
  if (document.hidden) draw();
  else if (!drawIsDue) {
    drawIsDue = true;
    requestAnimationFrame(draw);
  }
}

/** What the caller is told that happens. */
function shownState() {
  if (state.phase !== "open") return state.phase;
  const { hearing, awaiting, replying, playing, ducked } = state.conversation;
  if (hearing) return "hearing";
  if (playing) return ducked ? "ducked" : "speaking";
  const thinking = awaiting && performance.now() - state.awaitingSinceMs < THINKING_LIMIT_MS;
  return replying || thinking ? "thinking" : "listening";
}

/** Bring the page in line with the state. */
function draw() {
  drawIsDue = false;
  const shown = shownState();
  const calling = state.call !== null;
  const { items } = state.conversation;
  document.body.dataset.state = shown;
  document.body.dataset.layout = calling || items.length > 0 ? "call" : "hero";
  document.title = calling ? `${HEADLINES[shown]} · Parley` : "Parley";
  setText(page.headline, statusLine(shown));
  setText(page.hint, HINTS[shown] ?? (state.call.hasMicrophone ? HINT_IN_CALL : HINT_TYPING));
  setText(page.status, statusLine(shown));
  setText(page.progress, progress(shown));
  drawControls(calling);
  drawTimer();
  drawProblem();
  drawNotices();
  drawConversation();
  drawSummary();
}

function statusLine(shown) {
  if (shown === "ended" && state.lastedMs !== null) return `Call ended after ${clock(state.lastedMs)}`;
  if (shown === "listening" && !state.call.hasMicrophone) return "No microphone, typing only";
  if (shown === "listening" && state.muted) return "You are muted";
  return HEADLINES[shown];
}

/** What a screen reader is told: how the call stands, not who is speaking, which can be heard. */
function progress(shown) {
  if (shown === "idle") return "";
  if (state.phase !== "open") return statusLine(shown);
  return state.muted && state.call.hasMicrophone ? "You are muted" : "Connected";
}

function drawControls(calling) {
  const open = state.phase === "open";
  const off = live() && !state.call.hasMicrophone;
  const silent = off || state.muted;
  const label = off ? "Turn the microphone on" : state.muted ? "Unmute the microphone" : "Mute the microphone";
  const ends = calling || waiting();
  page.call.classList.toggle("hangup", ends);
  page.call.setAttribute("aria-keyshortcuts", ends ? "Escape" : state.phase === "idle" ? "Space" : "");
  setText(page["call-label"], ends ? (live() ? "Hang up" : "Cancel") : state.phase === "ended" ? "Call again" : "Call");
  page["call-icon"].setAttribute("href", ends ? "#icon-hangup" : "#icon-phone");
  setText(page["escape-label"], live() ? "hang up" : "cancel");
  page.mute.hidden = !live();
  if (off) page.mute.removeAttribute("aria-pressed");
  else page.mute.setAttribute("aria-pressed", String(state.muted));
  page.mute.setAttribute("aria-label", label);
  page.mute.title = label;
  page["mute-icon"].setAttribute("href", silent ? "#icon-mic-off" : "#icon-mic");
  page.text.placeholder = open ? "Type a message" : "Or type a message";
  drawMicrophones(off);
}

function drawMicrophones(off) {
  const known = state.microphones.map(({ id, label }, index) => ({ id, label: label || `Microphone ${index + 1}` }));
  const wanted = [...(off ? [NO_MICROPHONE] : []), { id: "", label: "Default microphone" }, ...known];
  const options = [...page.microphone.options];
  if (wanted.length !== options.length || wanted.some(({ id, label }, n) => options[n].value !== id || options[n].text !== label)) {
    page.microphone.replaceChildren(...wanted.map(({ id, label }) => new Option(label, id)));
    for (const option of page.microphone.options) option.disabled = option.value === NO_MICROPHONE.id;
  }
  page.microphone.value = off ? NO_MICROPHONE.id : chosenMicrophone();
}

function drawTimer() {
  page.timer.hidden = !live() && state.lastedMs === null;
  if (page.timer.hidden) return;
  setText(page.timer, clock(live() ? performance.now() - state.startedMs : state.lastedMs));
}

function drawProblem() {
  if (state.problem === null && page.problem.contains(document.activeElement)) page.call.focus();
  page.problem.hidden = state.problem === null;
  if (state.problem === null) {
    delete page.problem.dataset.code;
    return;
  }
  const { code, detail, retryAtMs } = state.problem;
  const { title, text, retry, textOnly, key } = PROBLEMS[code];
  page.problem.dataset.code = code;
  setText(page["problem-title"], title);
  setText(page["problem-text"], text || detail);
  setText(page["problem-countdown"], waiting() ? `Calling again in ${Math.ceil((retryAtMs - performance.now()) / 1000)} s` : "");
  page["problem-countdown"].hidden = !waiting();
  page["problem-actions"].hidden = waiting();
  setText(page["problem-retry"], retry ?? "");
  // Where the big button does the same, one is enough.
  page["problem-retry"].hidden = !retry || (state.phase === "ended" && state.problem.microphone);
  page["problem-text-only"].hidden = !textOnly;
  page["key-form"].hidden = !key;
}

function drawNotices() {
  state.notices = state.notices.filter(({ untilMs }) => untilMs > performance.now());
  const shown = [...page.notices.children].map((element) => element.textContent);
  if (shown.join("\n") === state.notices.map(({ text }) => text).join("\n")) return;
  page.notices.replaceChildren(...state.notices.map(({ text }) => make("p", { text })));
}

function drawConversation() {
  const items = state.conversation.items.filter((item) => visible(item, state.conversation));
  const shown = page.conversation.children;
  items.forEach((item, index) => {
    const element = drawMessage(item);
    // One that stands right is not touched: it would lose its focus, and arrive once more.
    if (shown[index] !== element) page.conversation.insertBefore(element, shown[index] ?? null);
  });
  while (shown.length > items.length) page.conversation.lastElementChild.remove();
  for (const item of drawnMessages.keys()) if (!state.conversation.items.includes(item)) drawnMessages.delete(item);
  if (state.following && items.length > 0) page.main.scrollTop = page.main.scrollHeight;
  page.latest.hidden = state.following || items.length === 0;
  drawCaptions(items);
}

/** Return the element of an item, made anew if the item has changed since. */
function drawMessage(item) {
  let drawn = drawnMessages.get(item);
  if (!drawn) drawnMessages.set(item, (drawn = { element: make("li", { className: "message" }), revision: -1 }));
  if (drawn.revision === item.revision) return drawn.element;
  drawn.revision = item.revision;
  Object.assign(drawn.element.dataset, { itemId: item.id, role: item.role, status: item.status });
  const open = drawn.element.querySelector("details")?.open ?? false;
  drawn.element.replaceChildren(...MESSAGE_PARTS[item.role](item, open));
  return drawn.element;
}

/** Give screen readers what was said once it is over: before, they would talk over the call. */
function drawCaptions(items) {
  for (const item of items) {
    if (item.role === "tool" || captionedItems.has(item) || !over(item, state.conversation)) continue;
    captionedItems.add(item);
    page.captions.append(make("p", { text: caption(item) }));
    while (page.captions.children.length > CAPTIONS) page.captions.firstChild.remove();
  }
}

function drawSummary() {
  const { latencies, bargeIns } = state.conversation;
  page.summary.hidden = latencies.length === 0;
  if (page.summary.hidden) return;
  const rows = [
    ["Voice to voice", latencies.map((latency) => latency.voice_to_voice_ms)],
    ...STAGES.slice(0, -1).map(({ key, name }) => [name, latencies.map((latency) => latency[key])]),
    ["Interruption to silence", bargeIns.map((bargeIn) => bargeIn.ear_ms ?? bargeIn.silence_ms)],
  ].map(([name, values]) => [name, values.filter((value) => typeof value === "number")]);
  const figures = rows.filter(([, values]) => values.length > 0).map(([name, values]) => [name, percentile(values, 50), percentile(values, 95)]);
  const text = JSON.stringify(figures);
  if (page.summary.dataset.figures === text) return;
  page.summary.dataset.figures = text;
  setText(page["summary-figure"], `Answers in ${percentile(rows[0][1], 50)} ms`);
  setText(page["summary-count"], `${count(latencies.length, "turn")}, ${count(bargeIns.length, "interruption")}`);
  page["summary-rows"].replaceChildren(...figures.map(([name, p50, p95]) => summaryRow(name, p50, p95)));
}

function summaryRow(name, p50, p95) {
  const head = make("th", { text: name });
  head.scope = "row";
  return make("tr", {}, head, make("td", { text: p50 }), make("td", { text: p95 }));
}

/** Screen readers hear of a text only when it has really changed. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function clock(ms) {
  const seconds = Math.floor(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

function count(n, noun) {
  return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

/** The nearest rank, in whole milliseconds. */
function percentile(values, p) {
  const sorted = [...values].sort((a, b) => a - b);
  return Math.round(sorted[Math.max(0, Math.ceil((p / 100) * sorted.length) - 1)]);
}

// --- controls --------------------------------------------------------------------------------------------------------

/** A click so soon after the button has changed was meant for what it was before. */
function pressCall() {
  if (performance.now() - state.turnedMs < DOUBLE_CLICK_MS) return;
  if (state.call) hangUp();
  else if (waiting()) dismissProblem();
  else placeCall();
}

/** Letters are no shortcuts, for dictation types them too (WCAG 2.1.4). Space calls before the first word, if nothing has the focus. */
function pressKey(event) {
  const { target, key } = event;
  if (event.ctrlKey || event.metaKey || event.altKey || event.shiftKey || event.isComposing) return;
  if (key === "Escape") escape(target);
  if (key === " " && target === document.body && state.phase === "idle" && state.problem === null) {
    event.preventDefault();
    placeCall();
  }
}

/** Take back one thing: the nearest one. */
function escape(target) {
  if (page.summary.open) page.summary.open = false;
  else if (target.matches("input") && target.value !== "") target.value = "";
  else if (state.call) hangUp();
  else dismissProblem();
}

function tick() {
  if (waiting() && performance.now() >= state.problem.retryAtMs) retry(state.retries + 1);
  if (state.call || state.problem || state.notices.length > 0) draw();
}

page.call.addEventListener("click", pressCall);
page.mute.addEventListener("click", toggleMute);
page.microphone.addEventListener("change", () => useMicrophone(page.microphone.value));
page.typing.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = page.text.value.trim();
  page.text.value = "";
  if (text) say(text);
});
page["problem-retry"].addEventListener("click", () => retry());
page["problem-text-only"].addEventListener("click", () => placeCall({ microphone: false }));
page["problem-dismiss"].addEventListener("click", dismissProblem);
page["key-form"].addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = page.key.value.trim();
  remember("sessionStorage", "key", state.key);
  page.key.value = "";
  retry();
});
page.latest.addEventListener("click", () => {
  state.following = true;
  draw();
});
page.main.addEventListener("scroll", () => {
  const { scrollTop, scrollHeight, clientHeight } = page.main;
  state.following = scrollHeight - scrollTop - clientHeight < 48;
  page.latest.hidden = state.following;
});
document.addEventListener("keydown", pressKey);
document.addEventListener("click", (event) => {
  if (!page.summary.contains(event.target)) page.summary.open = false;
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && live()) keepAwake(); // the browser has let go of the lock
  draw();
});
addEventListener("pagehide", hangUp);
navigator.mediaDevices?.addEventListener("devicechange", refreshMicrophones);
setInterval(tick, 250);

drawWaveform(page.waveform, () => {
  const mode = state.phase === "open" ? "call" : state.call ? "wait" : "rest";
  return { mode, ...(state.call?.levels ?? { caller: 0, agent: 0 }) };
});
refreshMicrophones();
