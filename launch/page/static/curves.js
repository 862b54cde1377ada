/** The curves of a run, several runs over each other where the reader chooses so. */

import { Chart } from "./chart.js";
import { field, fill, h, settled, table } from "./dom.js";
import { marksOf } from "./marks.js";
import { Series } from "./series.js";

const MOST_FOUND = 24;
const OTHERS_MS = 5000;

/**
 * @param {import("./run.js").Context} context
 * @returns {Promise<import("./run.js").Tab>}
 */
export async function curvesTab(context) {
  const { source, series } = context;
  /** @type {Map<string, Series>} */
  const others = new Map();
  /** @type {Chart[]} */
  let charts = [];
  let [shape, toldMarks] = ["", ""];
  let smoothing = 0;
  /** @type {import("./chart.js").Range} */
  let range = null;

  const weight = h("output", {}, "0");
  const slider = h("input", {
    type: "range",
    min: "0",
    max: "0.99",
    step: "0.01",
    value: "0",
    on: { input: () => smooth(Number(slider.value)) },
  });
  const search = h("input", {
    type: "search",
    placeholder: "name or regex",
    on: { input: settled(() => show(), 200) },
  });
  const whole = h("button.plain", { type: "button", hidden: true, on: { click: () => zoom(null) } }, "All steps");
  const said = h("p.quiet", { role: "status" });
  const hint = h(
    "p.quiet",
    {},
    "Over steps. Drag to zoom, double-click for all; on a chart the keys + − ← → and Esc do the same.",
  );
  const grid = h("div.panels");
  const events = h("details.events");
  const beside = h("details.beside");
  const bar = h("div.bar", {}, field("Smoothing", slider), weight, field("Metrics", search), whole, beside);
  const element = h("div", {}, bar, said, grid, hint, events);

  /** @param {number} value */
  function smooth(value) {
    smoothing = value;
    weight.textContent = String(value);
    redraw();
  }

  /** @param {import("./chart.js").Range} chosen */
  function zoom(chosen) {
    range = chosen;
    whole.hidden = !range;
    redraw();
  }

  /** The panels, as the run has them or as was searched for. */
  async function show() {
    const panels = wanted();
    const names = panels.flatMap((panel) => panel.metrics);
    const read = [...others].map(([id, each]) => each.load(names).catch(() => others.delete(id))); // one may be gone
    await Promise.all([series.load(names), ...read]);
    const now = JSON.stringify(panels);
    if (now !== shape) build(panels);
    shape = now;
    redraw();
  }

  /** @returns {{title: string, metrics: string[], log: boolean}[]} */
  function wanted() {
    const { panels, metrics } = context.run();
    const text = search.value.trim();
    if (!text && (panels.length || !metrics.length)) {
      said.textContent = panels.length ? "" : "This run has no metrics yet.";
      return panels;
    }
    const found = metrics.filter(matcher(text));
    const cut = found.length > MOST_FOUND ? `, the first ${MOST_FOUND} are shown` : "";
    said.textContent = `${found.length} of ${metrics.length} metrics${cut}`;
    return found
      .slice(0, MOST_FOUND)
      .map((/** @type {string} */ name) => ({ title: name, metrics: [name], log: false }));
  }

  /** @param {{title: string, metrics: string[], log: boolean}[]} panels */
  function build(panels) {
    charts.forEach((chart) => chart.close());
    charts = panels.map(
      ({ title, log }) => new Chart({ title, log, marks: () => marksOf(context.run()), onZoom: zoom }),
    );
    fill(
      grid,
      charts.map((chart) => chart.element),
    );
    panels.forEach(({ metrics }, place) => (charts[place].lines = lines(metrics)));
  }

  function redraw() {
    const panels = shape ? JSON.parse(shape) : [];
    charts.forEach((chart, place) => chart.draw(lines(panels[place].metrics), smoothing, range));
  }

  /** Of one run, a colour for each metric; of several, one for each run. @param {string[]} metrics */
  function lines(metrics) {
    const runs = [
      { name: context.run().name, series },
      ...[...others].map(([id, each]) => ({ name: id, series: each })),
    ];
    return runs.flatMap(({ name, series: each }, run) =>
      metrics.map((metric, place) => ({
        label: runs.length === 1 ? metric : metrics.length === 1 ? name : `${name} ${metric}`,
        hue: runs.length === 1 ? place : run,
        dash: place,
        points: each.of(metric),
      })),
    );
  }

  function tellEvents() {
    const marks = marksOf(context.run());
    if (JSON.stringify(marks) === toldMarks) return;
    toldMarks = JSON.stringify(marks);
    const rows = marks.map(({ step, kind, text }) => [step, kind, text]);
    const open = events.open;
    fill(
      events,
      h("summary", {}, `Events on the axis (${marks.length})`),
      table("Events by step", ["step", "kind", "what"], rows),
    );
    events.open = open;
    events.hidden = !marks.length;
  }

  async function offerOthers() {
    const { runs } = await source.get("runs");
    const offered = runs.filter((/** @type {any} */ run) => run.id !== context.id);
    const boxes = offered.map((/** @type {any} */ run) => {
      const box = h("input", {
        type: "checkbox",
        checked: others.has(run.id),
        on: { change: () => choose(run.id, box.checked) },
      });
      return h("label", {}, box, run.id);
    });
    fill(
      beside,
      h("summary", {}, others.size ? `Beside ${others.size} more` : "Compare runs"),
      h("div.menu", {}, boxes),
    );
    beside.hidden = !offered.length;
  }

  /** @param {string} id @param {boolean} chosen */
  async function choose(id, chosen) {
    if (chosen) others.set(id, new Series(source, id));
    else others.delete(id);
    context.note({ beside: [...others.keys()] });
    beside.querySelector("summary").textContent = others.size ? `Beside ${others.size} more` : "Compare runs";
    await show();
  }

  for (const id of context.address().beside) others.set(id, new Series(source, id));
  tellEvents();
  await Promise.all([show(), offerOthers()]);
  const timer = setInterval(() => {
    if (source.isLive && others.size)
      Promise.all([...others.values()].map((each) => each.more())).then(redraw, () => {});
  }, OTHERS_MS);
  return {
    element,
    shown: redraw,
    onRun: () => {
      tellEvents();
      if (JSON.stringify(wanted()) !== shape) show();
    },
    onSteps: redraw,
    close: () => {
      clearInterval(timer);
      charts.forEach((chart) => chart.close());
    },
  };
}

/**
 * Whether a name is meant by a regex; by a part of it, where the text is none.
 * @param {string} text
 * @returns {(name: string) => boolean}
 */
export function matcher(text) {
  try {
    const regex = new RegExp(text, "i");
    return (name) => regex.test(name);
  } catch {
    return (name) => name.toLowerCase().includes(text.toLowerCase());
  }
}
