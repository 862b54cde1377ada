/** Events of a run as vertical lines on the axis of steps, told where the pointer is near one. */

import { duration, number } from "./numbers.js";
import { colour } from "./theme.js";

/** @typedef {{step: number, kind: string, text: string}} Mark */

const NEAR_PX = 6;
/** What stands above a line: colours alone are not told apart by everybody. */
const LETTERS = /** @type {Record<string, string>} */ ({
  fault: "F",
  alert: "A",
  health: "H",
  start: "S",
  stop: "E",
  checkpoint: "",
});

/** Each movement of the pointer asks for them. @type {WeakMap<object, Mark[]>} */
const made = new WeakMap();

/** The marks of a run, with a line for each fault. @param {any} run @returns {Mark[]} */
export function marksOf(run) {
  const known = made.get(run);
  if (known) return known;
  const faults = run.events
    .filter((/** @type {any} */ event) => Number.isFinite(event.step))
    .map((/** @type {any} */ event) => ({ step: event.step, kind: "fault", text: faultLine(event) }));
  const marks = [...run.marks, ...faults].sort((one, other) => one.step - other.step);
  made.set(run, marks);
  return marks;
}

/** Example: rollout[1] died; noticed after 0.7 s; restarted; stood 21 s. @param {any} event */
export function faultLine(event) {
  const noticed =
    event.noticed_s === null || event.noticed_s === undefined ? "" : `noticed after ${duration(event.noticed_s)}`;
  const over = event.state === "open" ? "not over" : event.state === "given up" ? `given up: ${event.did}` : event.did;
  const stood = event.stood_s === null || event.stood_s === undefined ? "" : `stood ${duration(event.stood_s)}`;
  return [`${event.who} ${event.what}`, noticed, over, stood].filter(Boolean).join("; ");
}

/**
 * What draws marks on a chart, and tells of the one that is near.
 * @param {() => Mark[]} marks @param {HTMLElement} tip
 */
export function markPlugin(marks, tip) {
  return {
    hooks: {
      drawClear: (/** @type {any} */ plot) => draw(plot, marks()),
      setCursor: (/** @type {any} */ plot) => tell(plot, marks(), tip),
    },
  };
}

/** @param {any} plot @param {Mark[]} marks */
function draw(plot, marks) {
  const { ctx, bbox, scales } = plot;
  const pixel = devicePixelRatio || 1;
  ctx.save();
  ctx.font = `${10 * pixel}px system-ui, sans-serif`;
  ctx.textAlign = "center";
  for (const { step, kind } of marks) {
    if (step < scales.x.min || step > scales.x.max) continue;
    const x = Math.round(plot.valToPos(step, "x", true));
    ctx.strokeStyle = ctx.fillStyle = colour(`mark-${kind}`);
    ctx.lineWidth = pixel;
    ctx.globalAlpha = kind === "fault" ? 0.55 : 1;
    ctx.setLineDash(kind === "fault" ? [] : [3 * pixel, 3 * pixel]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.globalAlpha = 1;
    ctx.fillText(LETTERS[kind] ?? "", x, bbox.top - 2 * pixel);
  }
  ctx.restore();
}

/** @param {any} plot @param {Mark[]} marks @param {HTMLElement} tip */
function tell(plot, marks, tip) {
  const { left } = plot.cursor;
  const near =
    left < 0 || !plot.over.matches(":hover")
      ? [] // else it is another chart's pointer
      : marks.filter(({ step }) => Math.abs(plot.valToPos(step, "x") - left) <= NEAR_PX);
  tip.hidden = !near.length;
  if (!near.length) return;
  tip.textContent = near.map(({ step, text }) => `step ${number(step)}: ${text}`).join("\n");
  const room = plot.over.clientWidth;
  const from = plot.over.offsetLeft;
  tip.style.left = `${from + Math.max(0, Math.min(left + 8, room - tip.offsetWidth))}px`;
}
