/** Where a step's time goes: its phases as a stack, with what is left of it, and what the engines did meanwhile. */

import { HUES, WHOLE } from "./chart.js";
import { choice, field, fill, h, table } from "./dom.js";
import { duration, percent } from "./numbers.js";
import { colour, onTheme } from "./theme.js";

/**
 * @typedef {object} Layer
 * @property {string} label
 * @property {string} look class that gives its colour
 * @property {number[]} values one for each bin
 *
 * @typedef {{firsts: number[], counts: number[]}} Bins first step of each, and how many steps it has
 * @typedef {import("./series.js").Points} Points
 */

const [FEWEST_BINS, MOST_BINS, BIN_PX] = [30, 150, 8];
const HEIGHT = 240;
const ORDER = [
  "data",
  "prepare",
  "rollout",
  "score",
  "reference",
  "values",
  "advantages",
  "update",
  "sync",
  "evaluate",
  "checkpoint",
];
const IDLE = "idle (no phase)";
const ENGINES = /** @type {[string, string][]} */ ([
  ["bubble/engine_idle_fraction", "idle"],
  ["bubble/engine_paused_fraction", "stopped for new weights"],
  ["bubble/engine_underfilled_fraction", "less than half full"],
]);

/** @param {import("./run.js").Context} context @returns {Promise<import("./run.js").Tab>} */
export async function phasesTab(context) {
  const { means } = context.series;
  let shares = false;
  const steps = new Stack("Seconds of a step, by phase");
  const engines = new Stack("What the engines did, as shares of their time");
  const unit = choice(
    [
      ["seconds", "seconds"],
      ["shares", "shares of the step"],
    ],
    "seconds",
    (chosen) => {
      shares = chosen === "shares";
      draw();
    },
  );
  const element = h("div", {}, h("div.bar", {}, field("Shown as", unit)), steps.element, engines.element);

  async function load() {
    const phases = names();
    await means.load(
      [...phases, "time/step", ...ENGINES.map(([name]) => name)].filter((name) => context.run().metrics.includes(name)),
    );
    draw();
  }

  /** Metrics of the phases. @returns {string[]} */
  function names() {
    const names = context
      .run()
      .phases.map((/** @type {string} */ phase) => (phase.startsWith("time/") ? phase : `time/${phase}`));
    return names.sort((/** @type {string} */ one, /** @type {string} */ other) => placeOf(one) - placeOf(other));
  }

  function draw() {
    const most = Math.max(FEWEST_BINS, Math.min(MOST_BINS, Math.floor(steps.canvas.clientWidth / BIN_PX)));
    const { firsts, counts, perStep, each } = binned(means.of("time/step"), most);
    const phases = names().map((name) => ({ label: name.replace("time/", ""), values: perStep(means.of(name)) }));
    const shown = phases.map((phase, place) => ({ ...phase, look: `c${place % HUES}` }));
    const whole = perStep(means.of("time/step"));
    const rest = whole.map((seconds, bin) =>
      Math.max(0, seconds - shown.reduce((sum, { values }) => sum + values[bin], 0)),
    );
    const layers = [...shown, { label: IDLE, look: "rest", values: rest }];
    if (shares) for (const layer of layers) layer.values = layer.values.map((value, bin) => value / (whole[bin] || 1));
    steps.draw({ firsts, counts }, layers, (value) => (shares ? percent(value) : duration(value)));
    const parts = ENGINES.map(([name, label], place) => ({
      label,
      look: place ? `c${place}` : "rest",
      values: each(means.of(name)),
    }));
    const work = firsts.map((_, bin) => Math.max(0, 1 - parts.reduce((sum, { values }) => sum + values[bin], 0)));
    engines.element.hidden = !means.of(ENGINES[0][0]).steps.length;
    engines.draw(
      { firsts, counts },
      [{ label: "at work", look: "c0", values: work }, ...[...parts].reverse()],
      percent,
    );
  }

  await load();
  return {
    element,
    shown: draw,
    onRun: load,
    onSteps: draw,
    close: () => [steps, engines].forEach((stack) => stack.close()),
  };
}

/** Where a phase comes in a step; one that is not known comes last. @param {string} name */
function placeOf(name) {
  const place = ORDER.indexOf(name.replace("time/", ""));
  return place < 0 ? ORDER.length : place;
}

/**
 * Bins of neighbouring steps, as a screen has no room for thousands, and means over them.
 * @param {Points} steps a point for each step, or for each of the stretches that all metrics are means of
 * @param {number} most bins
 */
function binned({ steps, counts: given }, most) {
  const size = Math.max(1, Math.ceil((given ? sumOf(given) : steps.length) / most));
  const firsts = /** @type {number[]} */ ([]);
  const counts = /** @type {number[]} */ ([]);
  const binOf = new Map();
  steps.forEach((step, place) => {
    if (step === 0) return; // an evaluation before the first one
    if (!counts.length || counts[counts.length - 1] >= size) {
      firsts.push(step);
      counts.push(0);
    }
    counts[counts.length - 1] += given?.[place] ?? 1;
    binOf.set(step, counts.length - 1);
  });
  /** Sums over the values of each bin, and how many there are. @param {Points} points */
  function sums(points) {
    const [total, known] = [counts.map(() => 0), counts.map(() => 0)];
    points.steps.forEach((step, place) => {
      const bin = binOf.get(step);
      if (bin === undefined) return;
      const count = points.counts?.[place] ?? 1;
      total[bin] += count * points.values[place];
      known[bin] += count;
    });
    return { total, known };
  }
  return {
    /** First step of each bin. */
    firsts,
    /** Steps of each bin. */
    counts,
    /** Mean over all steps: one that has no such value has spent nothing there. */
    perStep: (/** @type {Points} */ points) => sums(points).total.map((sum, bin) => sum / counts[bin]),
    /** Mean over the steps that have a value. */
    each: (/** @type {Points} */ points) => {
      const { total, known } = sums(points);
      return total.map((sum, bin) => sum / Math.max(1, known[bin]));
    },
  };
}

/** Layers over each other, as areas; below them what each is on average. */
class Stack {
  /** @param {string} title */
  constructor(title) {
    this.title = title;
    /** @type {any} */
    this.plot = null;
    /** @type {[number[], Layer[]]} */
    this.drawn = [[], []];
    this.canvas = h("div.canvas", { role: "img" });
    this.rows = h("div");
    this.element = h("figure.panel.wide", {}, h("figcaption", {}, h("h2", {}, title)), this.canvas, this.rows);
    this.sizes = new ResizeObserver(() => this.build());
    this.sizes.observe(this.canvas);
    this.unheard = onTheme(() => this.build());
  }

  /**
   * @param {Bins} bins
   * @param {Layer[]} layers from below
   * @param {(value: number) => string} worded
   */
  draw({ firsts, counts }, layers, worded) {
    this.drawn = [firsts, layers];
    const all = Math.max(1, sumOf(counts));
    const means = layers.map(({ values }) => sumOf(values.map((value, bin) => value * counts[bin])) / all);
    const whole = sumOf(means) || 1;
    const swatch = (/** @type {string} */ look) => h(`i.swatch.block.${look}`, { "aria-hidden": "true" });
    const last = layers.map(({ values }) => values.at(-1) ?? 0);
    const rows = layers.map(({ label, look }, place) => [
      h("span", {}, swatch(look), label),
      worded(means[place]),
      worded(last[place]),
      percent(means[place] / whole),
    ]);
    fill(this.rows, table(`${this.title}: on average`, ["part", "on average", "newest", "share"], rows));
    const words = layers.map(({ label }, place) => `${label} ${percent(means[place] / whole)}`);
    this.canvas.setAttribute("aria-label", `${this.title}, on average: ${words.join(", ")}`);
    this.build();
  }

  build() {
    this.plot?.destroy();
    this.plot = null;
    const [firsts, layers] = this.drawn;
    if (!firsts.length || !this.canvas.clientWidth) return;
    const axis = {
      stroke: colour("axis"),
      grid: { stroke: colour("grid"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const shown = stacked(layers).reverse(); // the highest first: the others are painted over it
    this.plot = new /** @type {any} */ (globalThis).uPlot(
      {
        width: this.canvas.clientWidth,
        height: HEIGHT,
        padding: [8, 20, 0, 0],
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: false },
          y: { range: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ most) => [0, most || 1] },
        },
        axes: [
          { ...axis, size: 28, incrs: WHOLE },
          { ...axis, size: 54 },
        ],
        series: [
          {},
          ...shown.map(({ look }) => ({
            fill: colour(look),
            stroke: colour("ground"),
            width: 1,
            points: { show: false },
          })),
        ],
      },
      [firsts, ...shown.map(({ values }) => values)],
      this.canvas,
    );
  }

  close() {
    this.sizes.disconnect();
    this.unheard();
    this.plot?.destroy();
  }
}

/** @param {number[]} values */
function sumOf(values) {
  return values.reduce((sum, value) => sum + value, 0);
}

/** Each layer with those below it added. @param {Layer[]} layers */
function stacked(layers) {
  let sums = (layers[0]?.values ?? []).map(() => 0);
  return layers.map((layer) => {
    sums = sums.map((sum, bin) => sum + layer.values[bin]);
    return { ...layer, values: sums };
  });
}
