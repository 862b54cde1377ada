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
  const { series } = context;
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
    await series.load(
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
    const { bins, of } = binned(
      series,
      series.of("time/step").steps.filter((step) => step > 0),
      most,
    );
    const phases = names().map((name) => ({ label: name.replace("time/", ""), values: of(name, 0) }));
    const shown = phases.map((phase, place) => ({ ...phase, look: `c${place % HUES}` }));
    const whole = of("time/step", 0);
    const rest = whole.map((seconds, bin) =>
      Math.max(0, seconds - shown.reduce((sum, { values }) => sum + values[bin], 0)),
    );
    const layers = [...shown, { label: IDLE, look: "rest", values: rest }];
    if (shares) for (const layer of layers) layer.values = layer.values.map((value, bin) => value / (whole[bin] || 1));
    steps.draw(bins, layers, (value) => (shares ? percent(value) : duration(value)));
    const parts = ENGINES.map(([name, label], place) => ({
      label,
      look: place ? `c${place}` : "rest",
      values: of(name, 0),
    }));
    const work = bins.map((_, bin) => Math.max(0, 1 - parts.reduce((sum, { values }) => sum + values[bin], 0)));
    engines.element.hidden = !series.of(ENGINES[0][0]).steps.length;
    engines.draw(bins, [{ label: "at work", look: "c0", values: work }, ...[...parts].reverse()], percent);
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
 * Means over runs of neighbouring steps, as a screen has no room for thousands.
 * @param {import("./series.js").Series} series @param {number[]} steps @param {number} most
 */
function binned(series, steps, most) {
  const size = Math.max(1, Math.ceil(steps.length / most));
  const count = Math.ceil(steps.length / size);
  const place = new Map(steps.map((step, index) => [step, Math.floor(index / size)]));
  const of = (/** @type {string} */ name, /** @type {number} */ missing) => {
    const sums = Array.from({ length: count }, () => 0);
    const points = series.of(name);
    points.steps.forEach((step, index) => {
      const bin = place.get(step);
      if (bin !== undefined) sums[bin] += points.values[index];
    });
    return sums.map((sum, bin) => (sum || missing) / Math.min(size, steps.length - bin * size));
  };
  return { bins: Array.from({ length: count }, (_, bin) => steps[bin * size]), of };
}

/** Layers over each other, as areas; below them what each is on average. */
class Stack {
  /** @param {string} title */
  constructor(title) {
    this.title = title;
    /** @type {any} */
    this.plot = null;
    /** @type {[number[], Layer[], (value: number) => string]} */
    this.drawn = [[], [], String];
    this.canvas = h("div.canvas", { role: "img" });
    this.rows = h("div");
    this.element = h("figure.panel.wide", {}, h("figcaption", {}, h("h2", {}, title)), this.canvas, this.rows);
    this.sizes = new ResizeObserver(() => this.build());
    this.sizes.observe(this.canvas);
    this.unheard = onTheme(() => this.build());
  }

  /**
   * @param {number[]} bins first step of each
   * @param {Layer[]} layers from below
   * @param {(value: number) => string} worded
   */
  draw(bins, layers, worded) {
    this.drawn = [bins, layers, worded];
    const means = layers.map(
      ({ values }) => values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length),
    );
    const whole = means.reduce((sum, mean) => sum + mean, 0) || 1;
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
    const [bins, layers] = this.drawn;
    if (!bins.length || !this.canvas.clientWidth) return;
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
      [bins, ...shown.map(({ values }) => values)],
      this.canvas,
    );
  }

  close() {
    this.sizes.disconnect();
    this.unheard();
    this.plot?.destroy();
  }
}

/** Each layer with those below it added. @param {Layer[]} layers */
function stacked(layers) {
  let sums = (layers[0]?.values ?? []).map(() => 0);
  return layers.map((layer) => {
    sums = sums.map((sum, bin) => sum + layer.values[bin]);
    return { ...layer, values: sums };
  });
}
