// The living waveform: the last seconds of both sides, the caller's above the line and the agent's below it.
//
// Newest at the right. An interruption is seen as it happens: the lower half falls silent under the upper one.
// Without a call it breathes; with reduced motion it stands still and only the two levels of now are shown.

const BAR_MS = 55; // one bar
const STEP_PX = 6;
const BAR_PX = 3;
const REST_PX = 1.5; // half the height of a bar of silence
const STILL_MS = 200; // how often the picture changes under reduced motion

const stillness = matchMedia("(prefers-reduced-motion: reduce)");
const darkness = matchMedia("(prefers-color-scheme: dark)");

/** Draw on `canvas` for as long as the page lives. read(): {mode: "rest" | "wait" | "call", caller, agent}, levels 0 to 1. */
export function drawWaveform(canvas, read) {
  const context = canvas.getContext("2d");
  const colours = {};
  let bars = []; // {caller, agent}, newest last
  let barStartMs = 0;

  function readColours() {
    const style = getComputedStyle(canvas);
    for (const side of ["caller", "agent"]) colours[side] = style.getPropertyValue(`--${side}`).trim();
  }

  function fit() {
    const scale = devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
  }

  function paint(xs, levelsAt) {
    const middle = canvas.clientHeight / 2;
    const reach = middle - REST_PX - 1;
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    for (const [side, sign] of [["caller", -1], ["agent", 1]]) {
      context.fillStyle = colours[side];
      context.beginPath();
      xs.forEach((x, index) => {
        const height = REST_PX + reach * levelsAt(index)[side];
        context.roundRect(x, sign < 0 ? middle - height : middle, BAR_PX, height, sign < 0 ? [2, 2, 0, 0] : [0, 0, 2, 2]);
      });
      context.fill();
    }
  }

  function breathe(nowMs, waiting) {
    const count = Math.ceil(canvas.clientWidth / STEP_PX);
    const xs = Array.from({ length: count }, (_, index) => index * STEP_PX);
    const pace = waiting ? 500 : 1900;
    paint(xs, (index) => {
      const place = index / count - 0.5;
      const bell = Math.exp(-place * place * 14);
      const wave = (phase) => bell * (0.27 + 0.25 * Math.sin(index * 0.33 + phase + nowMs / pace) * Math.sin(index * 0.11 - nowMs / (pace * 1.7)));
      return { caller: wave(0), agent: wave(1.3) };
    });
  }

  function scroll(nowMs, levels) {
    const count = Math.ceil(canvas.clientWidth / STEP_PX) + 1;
    if (nowMs - barStartMs > BAR_MS * count) bars = []; // the tab was hidden
    if (bars.length === 0) {
      barStartMs = nowMs;
      bars.push({ caller: 0, agent: 0 });
    }
    while (nowMs - barStartMs >= BAR_MS) {
      barStartMs += BAR_MS;
      bars.push({ caller: 0, agent: 0 });
    }
    bars = bars.slice(-count);
    const newest = bars[bars.length - 1];
    newest.caller = Math.max(newest.caller, levels.caller);
    newest.agent = Math.max(newest.agent, levels.agent);
    const right = canvas.clientWidth - BAR_PX - ((nowMs - barStartMs) / BAR_MS) * STEP_PX;
    const xs = Array.from({ length: count }, (_, index) => right - (count - 1 - index) * STEP_PX + STEP_PX);
    const missing = count - bars.length;
    paint(xs, (index) => bars[index - missing] ?? { caller: 0, agent: 0 });
  }

  function stand(levels) {
    const count = Math.ceil(canvas.clientWidth / STEP_PX);
    const xs = Array.from({ length: count }, (_, index) => index * STEP_PX);
    paint(xs, (index) => {
      const bell = Math.exp(-((index / count - 0.5) ** 2) * 14);
      return { caller: bell * levels.caller, agent: bell * levels.agent };
    });
  }

  function frame(nowMs) {
    const levels = read();
    if (stillness.matches) stand(levels);
    else if (levels.mode === "call") scroll(nowMs, levels);
    else breathe(nowMs, levels.mode === "wait");
    if (levels.mode !== "call") bars = [];
    if (stillness.matches) setTimeout(() => requestAnimationFrame(frame), STILL_MS);
    else requestAnimationFrame(frame); // the browser calls no frame while the tab is hidden
  }

  new ResizeObserver(fit).observe(canvas);
  darkness.addEventListener("change", readColours);
  readColours();
  fit();
  requestAnimationFrame(frame);
}
