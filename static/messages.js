// What the items of the conversation look like: words said and unsaid, the latency strip, the note of an interruption.
//
// Items are those of conversation.js. Elements are only made here; parley.js puts them on the page.

import { spokenChars, split } from "./conversation.js";

// The stages of a turn, as they follow one another. What first_packet_ms holds beyond them is the first sentence
// being written, and the way out.
export const STAGES = [
  { key: "endpointing_ms", name: "Turn end" },
  { key: "asr_final_ms", name: "Final words" },
  { key: "llm_first_token_ms", name: "First token" },
  { key: "tts_first_audio_ms", name: "First sound" },
  { key: "rest_ms", name: "Sentence and sending" },
];

export const FAILED = "The reply failed.";
const NOT_UNDERSTOOD = "(not understood)";
const WAITED = "Wait for the other reply"; // the last stage is nearly all of that, where there was one

/** Role of an item -> what makes its parts. `open`: whether its latency strip was unfolded. */
export const MESSAGE_PARTS = {
  divider: (item) => [make("span", { text: item.text })],
  tool: (item) => [make("p", { className: "who", text: "Tool" }), make("p", { className: "words" }, make("code", { text: item.text }))],
  caller: (item) => [make("p", { className: "who", text: "You" }), make("p", { className: "words" }, ...callerWords(item))],
  agent: (item, open) => [
    make("p", { className: "who", text: "Parley" }),
    make("div", { className: "said" }, make("p", { className: "words" }, ...agentWords(item)), ...measures(item, open)),
  ],
};

/** What a screen reader says of an item that is over: nothing that the caller was spared. */
export function caption(item) {
  if (item.role === "caller") return `You: ${item.text || item.stable || NOT_UNDERSTOOD}`;
  if (item.status === "interrupted") return `Parley: ${split(item.text, spokenChars(item))[0].trimEnd()} (${howCut(item)})`;
  return `Parley: ${item.text || FAILED}`;
}

function callerWords(item) {
  if (item.text) return [make("span", { className: "stable", text: item.text })];
  if (item.status === "failed" && !item.stable) return [make("em", { text: NOT_UNDERSTOOD })];
  const words = [make("span", { className: "stable", text: item.stable })];
  if (item.tail) words.push(item.stable ? " " : "", make("span", { className: "tail", text: item.tail }));
  if (item.status === "partial") words.push(make("span", { className: "dots", hiddenFromReaders: true }));
  return words;
}

function agentWords(item) {
  if (!item.text) return [make("em", { text: FAILED })];
  const [spoken, unspoken] = split(item.text, spokenChars(item));
  const words = [make("span", { className: "spoken", text: spoken })];
  if (unspoken && item.status === "interrupted") words.push(make("span", { className: "hidden", text: ` (${howCut(item)}; not heard:) ` }));
  if (unspoken) words.push(make(item.status === "interrupted" ? "s" : "span", { className: "unspoken", text: unspoken }));
  return words;
}

function howCut(item) {
  return item.cutOff ? "cut off" : "interrupted";
}

function measures(item, open) {
  const parts = [];
  if (item.latency) parts.push(latencyStrip(item.latency, open));
  if (item.status === "interrupted") parts.push(item.cutOff ? make("p", { className: "cut-off", text: "Cut off" }) : interruption(item.bargeIn));
  return parts.length > 0 ? [make("div", { className: "measures" }, ...parts)] : [];
}

function latencyStrip(latency, open) {
  const inside = (latency.asr_final_ms ?? 0) + (latency.llm_first_token_ms ?? 0) + (latency.tts_first_audio_ms ?? 0);
  const values = { ...latency, rest_ms: Math.max(0, (latency.first_packet_ms ?? 0) - inside) };
  const stages = STAGES.filter(({ key }) => values[key] >= 0.5).map(({ key, name }) => ({
    key,
    name: key === "rest_ms" && latency.waited ? WAITED : name,
    ms: Math.round(values[key]),
  }));
  const totalMs = Math.round(latency.voice_to_voice_ms);
  const spelled = stages.map(({ name, ms }) => `${name} ${ms} ms`).join(", ");
  const bar = make("span", { className: "bar", hiddenFromReaders: true });
  for (const { key, name, ms } of stages) {
    const segment = make("i", { title: `${name}: ${ms} ms` });
    segment.dataset.stage = key;
    segment.style.flexGrow = ms;
    bar.append(segment);
  }
  const summary = make("summary", { title: spelled }, bar, make("span", { text: `${totalMs} ms` }));
  summary.setAttribute("aria-label", `Answered after ${totalMs} milliseconds. ${spelled}`);
  const strip = make("details", { className: "latency" }, summary, make("dl", {}, ...stages.map(stageRow)));
  strip.dataset.voiceToVoiceMs = totalMs;
  strip.open = open;
  return strip;
}

function stageRow({ key, name, ms }) {
  const row = make("div", {}, make("dt", { text: name }), make("dd", { text: `${ms} ms` }));
  row.dataset.stage = key;
  return row;
}

function interruption(bargeIn) {
  if (!bargeIn) return make("p", { className: "interruption", text: "Interrupted" });
  const silentMs = bargeIn.ear_ms ?? bargeIn.silence_ms;
  const text = typeof silentMs === "number" ? `Interrupted · silent in ${Math.round(silentMs)} ms` : "Interrupted";
  const steps = [["softer", bargeIn.duck_ms], ["cut", bargeIn.cut_ms], ["last packet", bargeIn.silence_ms], ["silent at your ear", bargeIn.ear_ms]];
  const title = steps.filter(([, ms]) => typeof ms === "number").map(([name, ms]) => `${name} after ${Math.round(ms)} ms`).join(", ");
  return make("p", { className: "interruption", title, text });
}

/** Make an element. Its text is text, wherever it comes from: nothing here is ever parsed as HTML. */
export function make(tag, { className = "", text = "", title = "", hiddenFromReaders = false } = {}, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  if (title) element.title = title;
  if (hiddenFromReaders) element.setAttribute("aria-hidden", "true");
  element.append(...children);
  return element;
}
