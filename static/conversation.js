// What the events of the wire make of the conversation: plain data in, plain data changed, no page and no clock.
//
// An item of `conversation.items`, in the order in which it was said:
//
//   id, role            role: "caller", "agent", "tool" or "divider" (between two calls)
//   status              caller: "partial" -> "final" | "failed"
//                       agent:  "writing" -> "done" | "interrupted" | "failed"
//   stable, tail        the caller's words: those that stay, and those that may still change
//   text                what the agent wrote, or what the caller typed
//   aloud, spoken       whether the agent speaks this item, and how many of its characters were spoken
//   heard               the text that reached the caller's ear, where a reply was cut
//   cutOff              whether the end of the call cut it, not the caller
//   latency, bargeIn    the measures of the turn
//   unconfirmed         whether it was typed here and the server has not told of it yet; eventId: what it was sent as
//   revision            grows with every change: what is drawn is as old as the revision it was drawn from
//
// `spoken` counts code points, as the server does.

/** Return a conversation in which nobody has said anything. */
export function newConversation() {
  return {
    items: [],
    latencyOf: new Map(), // response id -> its latency: measures may come before the words
    spokenMeanwhile: false, // a reply has been heard since the caller finished
    waited: new Set(), // ids of responses that could begin only after that one
    hearing: null, // the item that the caller is speaking now
    awaiting: false, // the caller has finished, and no reply has begun
    replying: null, // the response being written
    playing: false, // the agent's sound goes out
    ducked: false,
    latencies: [], // of all turns, for the summary
    bargeIns: [],
  };
}

/** Begin another call below what was said before. */
export function startCall(conversation, label) {
  endCall(conversation);
  conversation.latencyOf.clear();
  conversation.waited.clear();
  if (conversation.items.length > 0) {
    conversation.items.push(newItem({ id: `call_${conversation.items.length}`, role: "divider", text: label }));
  }
}

/** Nobody speaks any more. What the agent had still to say stays unsaid. */
export function endCall(conversation) {
  Object.assign(conversation, { hearing: null, awaiting: false, replying: null, playing: false, ducked: false });
  for (const item of conversation.items) {
    if (item.role === "caller" && item.status === "partial") change(item, { status: "final", stable: joined(item), tail: "" });
    const cutOff = item.status === "writing" || unfinished(item) || (item.status === "interrupted" && item.heard === null);
    if (item.role !== "agent" || !cutOff) continue;
    if (item.status !== "interrupted") change(item, { cutOff: true });
    cut(item, split(item.text, spokenChars(item))[0]);
  }
}

/** Show what the caller typed before the server has confirmed it; it will be answered. */
export function addTyped(conversation, { id, text, eventId }) {
  conversation.items.push(newItem({ id, role: "caller", status: "final", text, eventId, unconfirmed: true }));
  conversation.awaiting = true;
}

/** Forget what the caller typed and the server has not confirmed, or of it what was sent as `eventId`; return its texts. */
export function takeUnconfirmed(conversation, eventId = null) {
  const taken = conversation.items.filter((item) => item.unconfirmed && (eventId === null || item.eventId === eventId));
  conversation.items = conversation.items.filter((item) => !taken.includes(item));
  return taken.map(({ text }) => text);
}

/** Whether there is anything of `item` to see. */
export function visible(item, conversation) {
  if (item.text !== "" || item.status === "failed") return true;
  return item.role === "caller" && (joined(item) !== "" || conversation.hearing === item.id);
}

/** Whether `item` is over, in the caller's ear too; what runs ahead of the voice is not. */
export function over(item, conversation) {
  if (item.role === "caller") return item.status === "final" || item.status === "failed";
  if (item.status === "interrupted") return item.heard !== null; // parley.heard follows every cut
  return ["done", "failed"].includes(item.status) && !conversation.playing && !unfinished(item);
}

/** Return the first `n` code points of `text`, and the rest. */
export function split(text, n) {
  const points = [...text];
  return [points.slice(0, n).join(""), points.slice(n).join("")];
}

/** Return how many code points of a reply were spoken, or heard if it was cut. */
export function spokenChars(item) {
  if (!item.aloud) return Infinity;
  if (item.heard !== null && item.text.startsWith(item.heard.trimEnd())) return [...item.heard].length;
  return item.spoken;
}

/** Change the conversation by one wire event. Unknown types are for others. */
export function apply(conversation, event) {
  CHANGES[event.type]?.(conversation, event);
}

const CHANGES = {
  "input_audio_buffer.speech_started": (conversation, { item_id }) => {
    conversation.hearing = item_id;
    conversation.awaiting = false;
    findOrAdd(conversation, item_id, "caller");
  },
  "input_audio_buffer.speech_stopped": (conversation, { item_id }) => {
    Object.assign(conversation, { hearing: null, awaiting: true, spokenMeanwhile: conversation.playing });
    change(findOrAdd(conversation, item_id, "caller"), {});
  },
  "input_audio_buffer.cleared": (conversation) => Object.assign(conversation, { hearing: null, awaiting: false }),
  "input_audio_buffer.committed": (conversation, { item_id, previous_item_id }) =>
    place(conversation, findOrAdd(conversation, item_id, "caller"), previous_item_id),

  "conversation.item.added": addItem,
  "conversation.item.done": addItem,
  "conversation.item.deleted": (conversation, { item_id }) => {
    conversation.items = conversation.items.filter((item) => item.id !== item_id);
  },

  "parley.partial": (conversation, { item_id, stable, tail }) => {
    const item = findOrAdd(conversation, item_id, "caller");
    if (item.status === "partial") change(item, { stable, tail, guessed: true });
  },
  "conversation.item.input_audio_transcription.delta": (conversation, { item_id, delta }) => {
    const item = findOrAdd(conversation, item_id, "caller");
    // parley.partial carries the stable words too; a server without it sends only these.
    if (item.status === "partial" && !item.guessed) change(item, { stable: item.stable + delta });
  },
  "conversation.item.input_audio_transcription.completed": (conversation, { item_id, transcript }) => {
    const stable = transcript.trim();
    change(findOrAdd(conversation, item_id, "caller"), { status: stable ? "final" : "failed", stable, tail: "" });
    if (!stable) conversation.awaiting = false;
  },
  "conversation.item.input_audio_transcription.failed": (conversation, { item_id }) => {
    change(findOrAdd(conversation, item_id, "caller"), { status: "failed", tail: "" });
    conversation.awaiting = false;
  },

  "response.created": (conversation, { response }) => {
    if (conversation.spokenMeanwhile) conversation.waited.add(response.id);
    conversation.replying = response.id;
    conversation.awaiting = false;
  },
  "response.output_item.added": (conversation, { response_id, item }) => {
    if (item.type === "message") measure(conversation, findOrAdd(conversation, item.id, "agent"), response_id);
  },
  "response.output_audio_transcript.delta": (conversation, event) => write(conversation, event, true),
  "response.output_text.delta": (conversation, event) => write(conversation, event, false),
  "response.output_audio_transcript.done": (conversation, { item_id, transcript }) => finishText(conversation, item_id, transcript),
  "response.output_text.done": (conversation, { item_id, text }) => finishText(conversation, item_id, text),
  "response.done": (conversation, { response }) => {
    if (conversation.replying === response.id) conversation.replying = null;
    for (const item of repliedIn(conversation, response.id)) {
      if (response.status === "cancelled") cut(item, item.heard);
      else if (response.status === "failed") change(item, { status: "failed" });
      else if (item.status === "writing") change(item, { status: "done" });
    }
  },

  "output_audio_buffer.started": (conversation) => {
    Object.assign(conversation, { playing: true, ducked: false, spokenMeanwhile: true });
  },
  "output_audio_buffer.stopped": (conversation, { response_id }) => {
    Object.assign(conversation, { playing: false, ducked: false });
    for (const item of repliedIn(conversation, response_id)) {
      if (item.status !== "interrupted") change(item, { spoken: Infinity });
    }
  },
  "output_audio_buffer.cleared": (conversation) => Object.assign(conversation, { playing: false, ducked: false }),
  "parley.duck": (conversation, { ducked }) => {
    conversation.ducked = ducked;
  },
  "parley.spoken": (conversation, { item_id, chars }) => {
    const item = find(conversation, item_id);
    if (item && item.status !== "interrupted") change(item, { spoken: chars, aloud: true });
  },
  "conversation.item.truncated": (conversation, { item_id }) => {
    const item = find(conversation, item_id);
    if (item) cut(item, item.heard);
  },
  "parley.heard": (conversation, { item_id, text }) => {
    const item = find(conversation, item_id);
    if (item) cut(item, text);
  },

  "parley.latency": (conversation, { response_id, ...stages }) => {
    if (stages.voice_to_voice_ms === null) return; // a greeting, or an answer to what was typed
    const latency = { ...stages, waited: conversation.waited.has(response_id) };
    conversation.latencies.push(latency);
    conversation.latencyOf.set(response_id, latency);
    for (const item of repliedIn(conversation, response_id)) change(item, { latency });
  },
  "parley.barge_in": (conversation, bargeIn) => {
    conversation.bargeIns.push(bargeIn);
    const reply = conversation.items.findLast(
      (item) => item.role === "agent" && (!bargeIn.response_id || item.responseId === bargeIn.response_id),
    );
    if (reply) change(reply, { bargeIn });
  },
};

function newItem(fields) {
  return {
    status: "",
    stable: "",
    tail: "",
    text: "",
    aloud: false,
    spoken: 0,
    heard: null,
    cutOff: false,
    latency: null,
    bargeIn: null,
    responseId: null,
    guessed: false,
    unconfirmed: false,
    eventId: null,
    revision: 0,
    ...fields,
  };
}

function change(item, fields) {
  Object.assign(item, fields);
  item.revision += 1;
}

function find(conversation, id) {
  return conversation.items.find((item) => item.id === id);
}

function findOrAdd(conversation, id, role) {
  const found = find(conversation, id);
  if (found) return found;
  const item = newItem({ id, role, status: role === "caller" ? "partial" : "writing" });
  conversation.items.push(item);
  return item;
}

/** Put `item` after the one before it: null is the beginning of this call, undefined leaves it where it is. */
function place(conversation, item, previousId) {
  if (previousId === undefined) return;
  const others = conversation.items.filter((other) => other !== item);
  const previous =
    previousId === null
      ? others.findLastIndex((other) => other.role === "divider")
      : others.findIndex((other) => other.id === previousId);
  if (previous === -1 && previousId !== null) return;
  others.splice(previous + 1, 0, item);
  conversation.items = others;
}

function addItem(conversation, { item, previous_item_id }) {
  if (item.type === "function_call") {
    const call = findOrAdd(conversation, item.id, "tool");
    change(call, { text: item.name, status: "done" });
    return place(conversation, call, previous_item_id);
  }
  if (item.type !== "message" || item.role === "system") return undefined;
  if (item.role === "user") confirmTyped(conversation, item);
  const shown = findOrAdd(conversation, item.id, item.role === "user" ? "caller" : "agent");
  const aloud = item.content.some((part) => part.type.endsWith("audio"));
  const text = item.content.map((part) => part.text ?? part.transcript ?? "").join("");
  if (aloud) change(shown, { aloud });
  if (shown.role === "caller" && !aloud && text) change(shown, { text, status: "final" });
  if (shown.role === "caller" && aloud && text) change(shown, { stable: text, tail: "", status: "final" });
  if (shown.role === "agent" && shown.text === "" && text) change(shown, { text });
  if (shown.role === "agent" && shown.cutOff) settle(shown, item.status, text);
  return place(conversation, shown, previous_item_id);
}

/** The server made an item of what was typed here. One that gives it an id of its own is taken by the text. */
function confirmTyped(conversation, { id, content }) {
  const typed =
    find(conversation, id) ?? conversation.items.find((item) => item.unconfirmed && item.text === content[0]?.text);
  if (typed?.unconfirmed) change(typed, { id, unconfirmed: false });
}

function write(conversation, { item_id, response_id, delta }, aloud) {
  const item = findOrAdd(conversation, item_id, "agent");
  change(item, { text: item.text + delta, aloud });
  measure(conversation, item, response_id);
}

function finishText(conversation, itemId, text) {
  const item = find(conversation, itemId);
  // A cut reply ends with what was heard; here the rest stays to be seen, struck out.
  if (item && text && text.length > item.text.length) change(item, { text });
}

function measure(conversation, item, responseId) {
  if (item.responseId === responseId) return;
  change(item, { responseId, latency: conversation.latencyOf.get(responseId) ?? null });
}

function repliedIn(conversation, responseId) {
  return conversation.items.filter((item) => item.role === "agent" && item.responseId === responseId);
}

/** heard: null as long as the server has not told. What is not spoken is read: all of it. */
function cut(item, heard) {
  change(item, { status: "interrupted", heard: item.aloud ? heard : item.text });
}

/** The server tells how a reply ended whose end did not reach us. */
function settle(item, status, text) {
  if (status === "completed") change(item, { text, status: "done", heard: null, spoken: Infinity, cutOff: false });
  if (status === "incomplete") cut(item, text);
}

function unfinished(item) {
  return item.aloud && item.status === "done" && item.spoken < [...item.text].length;
}

function joined(item) {
  return `${item.stable} ${item.tail}`.trim();
}
