/** The curves of a run, several runs over each other where the reader chooses so. */

import { MOST_BESIDE } from "./address.js";
import { Chart } from "./chart.js";
import { field, fill, h, settled, table } from "./dom.js";
import { marksOf } from "./marks.js";
import { RunSeries } from "./series.js";

const MOST_FOUND = 24;
const OTHERS_MS = 5000;

/**
 * @param {import("./run.js").Context} context
 * @returns {Promise<import("./run.js").Tab>}
 */
export async function curvesTab(context) {
  const { source, series } = context;
  /** @type {Map<string, RunSeries>} */
  const others = new Map();
  let chosen = context.address().beside;
  /** @type {Chart[]} */
  let charts = [];
  /** What is drawn, and what is to be as soon as its values are there. */
  let [shape, asked, toldMarks] = ["", "", ""];
  let [smoothing, turn] = [0, 0];
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
  const beside = h("details.beside", {}, h("summary"), h("div.menu"));
  const bar = h("div.bar", {}, field("Smoothing", slider), weight, field("Metrics", search), whole, beside);
  const element = h("div", {}, bar, said, grid, hint, events);

  /** @param {number} value */
  function smooth(value) {
    const begins = value > 0 && !smoothing;
    smoothing = value;
    weight.textContent = String(value);
    redraw();
    if (begins) show();
  }

  /** @param {import("./chart.js").Range} chosen */
  function zoom(chosen) {
    range = chosen;
    whole.hidden = !range;
    redraw();
  }

  /** The panels, as the run has them or as was searched for. */
  async function show() {
    const mine = (turn += 1);
    const panels = wanted();
    asked = JSON.stringify(panels);
    try {
      await load(panels.flatMap((panel) => panel.metrics));
    } catch (error) {
      if (mine === turn) asked = shape;
      throw error;
    }
    if (mine !== turn) return; // others are wanted meanwhile
    if (asked !== shape) build(panels);
    shape = asked;
    redraw();
  }

  /** @param {string[]} names */
  async function load(names) {
    const smooth = smoothing > 0;
    const read = [...others].map(([id, each]) => each.load(names, smooth).catch((error) => leave(id, error)));
    await Promise.all([series.load(names, smooth), Promise.allSettled(read)]); // what another one lacks harms no one
  }

  /** @param {string} id @param {any} error */
  function leave(id, error) {
    if (error.status !== 404) throw error;
    others.delete(id);
    tellOthers();
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
        points: each.plain.of(metric),
        means: each.means.of(metric),
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
        value: run.id,
        on: { change: () => choose(run.id, box.checked) },
      });
      return h("label", {}, box, run.id);
    });
    fill(beside.querySelector(".menu"), h("p.quiet", {}, `At most ${MOST_BESIDE} beside this one.`), boxes);
    beside.hidden = !offered.length;
    tellOthers();
  }

  function tellOthers() {
    const left = chosen.length - MOST_BESIDE;
    const most = left > 0 ? `, ${left} left out: at most ${MOST_BESIDE}` : "";
    beside.querySelector("summary").textContent = others.size ? `Beside ${others.size} more${most}` : "Compare runs";
    for (const box of beside.querySelectorAll("input")) {
      box.checked = others.has(box.value);
      box.disabled = !box.checked && others.size >= MOST_BESIDE;
    }
  }

  /** @param {string} id @param {boolean} isChosen */
  async function choose(id, isChosen) {
    if (isChosen) others.set(id, new RunSeries(source, id));
    else others.delete(id);
    chosen = [...others.keys()];
    context.note({ beside: chosen });
    tellOthers();
    await show();
  }

  for (const id of chosen.slice(0, MOST_BESIDE)) others.set(id, new RunSeries(source, id));
  tellEvents();
  await Promise.all([show(), offerOthers()]);
  const timer = setInterval(() => {
    if (source.isLive && others.size) Promise.allSettled([...others.values()].map((each) => each.more())).then(redraw);
  }, OTHERS_MS);
  return {
    element,
    shown: redraw,
    onRun: () => {
      tellEvents();
      if (JSON.stringify(wanted()) !== asked) show();
    },
    onSteps: redraw,
    close: () => {
      turn += 1;
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
