/** What died or froze, when that was noticed, what was done, and how long the run stood: over time, and as a table. */

import { fill, h, svg, table } from "./dom.js";
import { faultLine } from "./marks.js";
import { duration, epochOf, moment } from "./numbers.js";

const ROW = 26;
const LEAST_PX = 7;
const TOP = 22;
const STATES = /** @type {Record<string, string>} */ ({
  open: "◌\u00a0not\u00a0over",
  recovered: "✓\u00a0over",
  "given up": "✕\u00a0given\u00a0up",
});

/** @param {import("./run.js").Context} context @returns {Promise<import("./run.js").Tab>} */
export async function faultsTab(context) {
  const drawing = h("div.timeline");
  const chosen = h("p.chosen", { role: "status" });
  const rows = h("div");
  const said = h("p");
  const legend = h(
    "ul.legend.faultkeys",
    {},
    [
      ["gap", "not yet noticed"],
      ["over", "stood, and is over"],
      ["open", "not over"],
      ["givenup", "given up"],
    ].map(([look, text]) => h("li", {}, h(`i.swatch.block.fault-${look}`, { "aria-hidden": "true" }), text)),
  );
  const element = h("div", {}, said, drawing, legend, chosen, rows);
  const sizes = new ResizeObserver(() => draw());
  sizes.observe(drawing);
  let [drawn, told] = ["", ""];

  function show() {
    const { events } = context.run();
    if (JSON.stringify(events) === told) return draw();
    told = JSON.stringify(events);
    const lost = events.reduce((/** @type {number} */ sum, /** @type {any} */ event) => sum + (event.stood_s ?? 0), 0);
    said.textContent = events.length
      ? `${events.length} ${events.length === 1 ? "fault" : "faults"}, which stood for ${duration(lost)} in all.`
      : "Nothing has died or frozen in this run.";
    legend.hidden = !events.length;
    fill(rows, events.length ? faultTable(context, events) : null);
    draw();
  }

  function draw() {
    const run = context.run();
    const width = drawing.clientWidth;
    const now = JSON.stringify([width, run.events, run.elapsed_s]);
    if (now === drawn) return;
    drawn = now;
    const focused = [...drawing.querySelectorAll(".fault")].indexOf(/** @type {Element} */ (document.activeElement));
    fill(
      drawing,
      run.events.length && width ? timeline(run, width, (event) => (chosen.textContent = inWords(event))) : null,
    );
    drawing.querySelectorAll(".fault")[focused]?.focus();
  }

  show();
  return { element, shown: draw, onRun: show, close: () => sizes.disconnect() };
}

/**
 * A row for each who; a fault is a bar from its last sign of life to its end.
 * @param {any} run @param {number} width @param {(event: any) => void} choose
 */
function timeline(run, width, choose) {
  /** @type {{event: any, from: number, noticed: number, to: number}[]} */
  const faults = run.events
    .map((/** @type {any} */ event) => spanOf(event, lastSeen(run)))
    .filter((/** @type {any} */ { from }) => Number.isFinite(from));
  const who = [...new Set(faults.map(({ event }) => event.who))].sort();
  const from = Math.min(
    ...faults.map((/** @type {any} */ fault) => fault.from),
    ...run.attempts.map((/** @type {any} */ each) => epochOf(each.at)).filter(Number.isFinite),
  );
  const to = Math.max(...faults.map((/** @type {any} */ fault) => fault.to), lastSeen(run));
  const left = Math.min(110, width / 3);
  const place = (/** @type {number} */ at) => left + ((width - left - 12) * (at - from)) / Math.max(1, to - from);
  const height = TOP + ROW * who.length + 6;
  const lines = who.flatMap((name, row) => [
    svg("text", { x: 0, y: TOP + ROW * row + 17, class: "label" }, name),
    svg("line", { x1: left, x2: width, y1: TOP + ROW * row + 13, y2: TOP + ROW * row + 13, class: "row" }),
  ]);
  const ticks = [0, 1, 2, 3, 4].map((tick) => from + ((to - from) * tick) / 4);
  const shown = width < 600 ? [ticks[0], ticks[4]] : ticks;
  const axis = shown.map((at, tick) =>
    svg(
      "text",
      {
        x: place(at),
        y: 11,
        class: "label",
        "text-anchor": tick === 0 ? "start" : tick === shown.length - 1 ? "end" : "middle",
      },
      at > from ? `+${duration(at - from)}` : "start",
    ),
  );
  const bars = faults.map((/** @type {any} */ fault) =>
    bar(fault, TOP + ROW * who.indexOf(fault.event.who), place, choose),
  );
  return svg(
    "svg",
    { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "Faults over time" },
    ...axis,
    ...lines,
    ...bars,
  );
}

/** What is not over stands until the run was seen last. @param {any} event @param {number} seen */
function spanOf(event, seen) {
  const noticed = epochOf(event.at);
  const from = noticed - (event.noticed_s ?? 0);
  const to = event.state === "open" ? Math.max(noticed, seen) : from + (event.stood_s ?? 0);
  return { event, from, noticed, to };
}

/** Time of the last word of a run; 0 where it has said none. @param {any} run */
function lastSeen(run) {
  return epochOf(run.seen) || 0;
}

/** @param {any} fault @param {number} y @param {(at: number) => number} place @param {(event: any) => void} choose */
function bar({ event, from, noticed, to }, y, place, choose) {
  const [x, middle] = [place(from), place(noticed)];
  const end = Math.max(place(to), x + LEAST_PX);
  const look =
    { open: "open", recovered: "over", "given up": "givenup" }[/** @type {string} */ (event.state)] ?? "open";
  const group = svg(
    "g",
    {
      tabindex: "0",
      role: "button",
      "aria-label": inWords(event),
      class: "fault",
      on: { click: () => choose(event), focus: () => choose(event), mouseenter: () => choose(event), keydown: pressed },
    },
    svg("rect", { x: x - 2, y: y + 2, width: end - x + 4, height: ROW - 4, class: "around", rx: 3 }),
    svg("rect", {
      x: middle,
      y: y + 5,
      width: Math.max(LEAST_PX, end - middle),
      height: ROW - 10,
      class: `fault-${look}`,
    }),
    svg("rect", { x, y: y + 5, width: Math.max(0, middle - x), height: ROW - 10, class: "fault-gap" }),
  );
  /** @param {KeyboardEvent} key */
  function pressed(key) {
    if (key.key !== "Enter" && key.key !== " ") return;
    key.preventDefault();
    choose(event);
  }
  return group;
}

/** @param {any} event */
function inWords(event) {
  const where = event.step ? `step ${event.step}, ${event.phase}: ` : "";
  const cause = event.cause ? ` (${event.cause})` : "";
  const samples = event.samples.length ? `; samples: ${event.samples.join(", ")}` : "";
  return `${where}${faultLine(event)}${cause}${samples}`;
}

/** @param {import("./run.js").Context} context @param {any[]} events */
function faultTable(context, events) {
  const heads = [
    "no.",
    "state",
    "who",
    "what",
    "step",
    "phase",
    "noticed by",
    "after",
    "cause",
    "done",
    "stood",
    "samples",
    "at",
  ];
  const rows = events.map((event) => [
    event.fault,
    STATES[event.state] ?? event.state,
    event.who,
    event.what,
    event.step && context.run().has.samples
      ? h("a", { href: context.link({ tab: "groups", step: String(event.step) }) }, event.step)
      : event.step,
    event.phase,
    event.noticed_by,
    duration(event.noticed_s),
    event.cause,
    event.did,
    duration(event.stood_s),
    event.samples?.join(", "),
    moment(epochOf(event.at)),
  ]);
  return table("Faults", heads, rows);
}
