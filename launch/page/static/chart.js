/** A panel of curves over steps: drag zooms, keys do so too, and a table says the same in numbers. */

import { fill, h, table } from "./dom.js";
import { markPlugin } from "./marks.js";
import { number } from "./numbers.js";
import { smoothed, thinned } from "./series.js";
import { colour, onTheme } from "./theme.js";

/**
 * @typedef {object} Line
 * @property {string} label
 * @property {number} hue place among the colours
 * @property {number} dash place among the dashes
 * @property {import("./series.js").Points} points
 * @property {import("./series.js").Points} means what is smoothed, where it is read: else the points are
 * @typedef {{from: number, to: number} | null} Range of steps; null: all
 */

export const HUES = 8;
const DASHES = [[], [6, 4], [2, 3], [9, 3, 2, 3]];
const HEIGHT = 190;
/** Distances between the ticks of steps. */
export const WHOLE = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((each) => each * 10 ** power)).flat();
const TABLE_ROWS = 40;
const FEW_POINTS = 30;

export class Chart {
  /**
   * @param {object} options
   * @param {string} options.title
   * @param {boolean} [options.log]
   * @param {() => import("./marks.js").Mark[]} options.marks
   * @param {(range: Range) => void} options.onZoom a part of the steps was chosen; null: all of them
   */
  constructor({ title, log, marks, onZoom }) {
    this.title = title;
    this.log = log ?? false;
    this.marks = marks;
    this.onZoom = onZoom;
    /** @type {Line[]} */
    this.lines = [];
    this.smoothing = 0;
    /** @type {Range} */
    this.range = null;
    this.shape = "";
    /** @type {any} */
    this.plot = null;
    this.tip = h("div.tip", { hidden: true });
    this.canvas = h("div.canvas", {
      role: "img",
      tabindex: "0",
      on: { keydown: (/** @type {KeyboardEvent} */ event) => this.key(event) },
    });
    this.legend = h("ul.legend");
    this.rows = h("div", { hidden: true });
    this.toggle = h(
      "button.plain",
      { type: "button", "aria-pressed": "false", on: { click: () => this.toggleTable() } },
      "Table",
    );
    const head = h("figcaption", {}, h("h2", {}, title), this.toggle);
    this.element = h("figure.panel", {}, head, this.canvas, this.legend, this.rows);
    this.sizes = new ResizeObserver(() => this.fit());
    this.sizes.observe(this.canvas);
    this.unheard = onTheme(() => this.build());
  }

  /** @param {Line[]} lines @param {number} smoothing weight, 0 to 1 @param {Range} range */
  draw(lines, smoothing, range) {
    this.lines = lines.filter((line) => line.points.steps.length);
    this.smoothing = smoothing;
    this.range = range;
    const shape = JSON.stringify([
      this.lines.map(({ label, hue, dash, points }) => [label, hue, dash, points.steps.length < FEW_POINTS]),
      smoothing > 0,
    ]);
    if (shape === this.shape && this.plot) this.plot.setData(this.data());
    else this.build();
    this.shape = shape;
    this.canvas.setAttribute("aria-label", `${this.title}: ${this.lines.map(summary).join("; ") || "no values yet"}`);
    this.tell(null);
    if (!this.rows.hidden) this.fillTable();
  }

  close() {
    this.sizes.disconnect();
    this.unheard();
    this.plot?.destroy();
  }

  build() {
    this.plot?.destroy();
    this.plot = null;
    fill(this.canvas, this.tip);
    if (!this.lines.length || !this.canvas.clientWidth) return;
    const axis = {
      stroke: colour("axis"),
      grid: { stroke: colour("grid"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    this.plot = new /** @type {any} */ (globalThis).uPlot(
      {
        width: this.canvas.clientWidth,
        height: HEIGHT,
        padding: [12, 20, 0, 0],
        legend: { show: false },
        cursor: { drag: { x: true, y: false, setScale: false }, sync: { key: "steps" }, points: { size: 5 } },
        scales: {
          x: {
            time: false,
            range: (/** @type {any} */ _, /** @type {number} */ least, /** @type {number} */ most) =>
              this.bounds(least, most),
          },
          y: { distr: this.log ? 3 : 1 },
        },
        axes: [
          { ...axis, size: 28, incrs: WHOLE },
          {
            ...axis,
            size: 54,
            grid: { ...axis.grid, ...(this.log && { filter: powersOfTen }) },
            values: (/** @type {any} */ _, /** @type {any[]} */ ticks) =>
              ticks.map((tick) => (tick === null ? "" : short(tick))),
          },
        ],
        series: [{ label: "step" }, ...this.series()],
        hooks: {
          setSelect: [(/** @type {any} */ plot) => this.selected(plot)],
          setCursor: [(/** @type {any} */ plot) => this.tell(plot.cursor.idx)],
        },
        plugins: [markPlugin(this.marks, this.tip)],
      },
      this.data(),
      this.canvas,
    );
    this.plot.over.addEventListener("dblclick", () => this.onZoom(null));
  }

  /** What each line looks like; where it is smoothed, a faint one of the values as they are stands before it. */
  series() {
    return this.lines.flatMap(({ label, hue, dash, points }) => {
      const few = points.steps.length < FEW_POINTS;
      const own = {
        label,
        stroke: colour(`c${hue % HUES}`),
        width: 1.5,
        dash: DASHES[dash % DASHES.length],
        spanGaps: true,
        points: { show: few, size: 4 },
      };
      return this.smoothing ? [{ ...own, alpha: 0.25, width: 1, points: { show: false } }, own] : [own];
    });
  }

  data() {
    const shown = (/** @type {number[]} */ values) =>
      this.log ? values.map((value) => (value > 0 ? value : null)) : values;
    const tables = this.lines.flatMap(({ points, means }) => {
      const own = [points.steps, shown(points.values)];
      if (!this.smoothing) return [own];
      const even = means.steps.length ? means : points;
      return [own, [even.steps, shown(smoothed(even, this.smoothing))]];
    });
    return /** @type {any} */ (globalThis).uPlot.join(tables);
  }

  /** @param {number} least @param {number} most */
  bounds(least, most) {
    if (this.range) return [this.range.from, this.range.to];
    return least === most ? [least - 1, most + 1] : [least, most];
  }

  /** @param {any} plot */
  selected(plot) {
    const { left, width } = plot.select;
    if (width < 3) return;
    plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.onZoom({ from: plot.posToVal(left, "x"), to: plot.posToVal(left + width, "x") });
  }

  /** The zoom by keys: + and -, left and right, Escape. @param {KeyboardEvent} event */
  key(event) {
    if (!this.plot) return;
    const { min, max } = this.plot.scales.x;
    const width = max - min;
    const ranges = /** @type {Record<string, Range>} */ ({
      "+": { from: min + width / 4, to: max - width / 4 },
      "-": { from: min - width / 2, to: max + width / 2 },
      ArrowLeft: { from: min - width / 4, to: max - width / 4 },
      ArrowRight: { from: min + width / 4, to: max + width / 4 },
      Escape: null,
    });
    if (!(event.key in ranges) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.onZoom(ranges[event.key]);
  }

  fit() {
    const width = this.canvas.clientWidth;
    if (!width) return;
    if (!this.plot) this.build();
    else if (this.plot.width !== width) this.plot.setSize({ width, height: HEIGHT });
  }

  /** Labels with the values under the pointer, else the newest. @param {number | null} place in the joined data */
  tell(place) {
    const step = place === null || place === undefined || !this.plot ? Infinity : this.plot.data[0][place];
    fill(
      this.legend,
      this.lines.map(({ label, hue, dash, points }) => {
        const swatch = h(`i.swatch.c${hue % HUES}.d${dash % DASHES.length}`, { "aria-hidden": "true" });
        const value = points.values[points.steps.findLastIndex((each) => each <= step)];
        return h("li", {}, swatch, `${label} `, h("b", {}, number(value)));
      }),
    );
  }

  toggleTable() {
    this.rows.hidden = !this.rows.hidden;
    this.canvas.hidden = !this.rows.hidden;
    this.toggle.setAttribute("aria-pressed", String(!this.rows.hidden));
    if (!this.rows.hidden) this.fillTable();
    else this.fit();
  }

  fillTable() {
    const steps = [...new Set(this.lines.flatMap(({ points }) => thinned(points, TABLE_ROWS).steps))].sort(
      (one, other) => other - one,
    );
    const values = this.lines.map(
      ({ points }) => new Map(points.steps.map((step, place) => [step, points.values[place]])),
    );
    const rows = steps
      .slice(0, 2 * TABLE_ROWS)
      .map((step) => [number(step), ...values.map((known) => number(known.get(step)))]);
    fill(this.rows, table(this.title, ["step", ...this.lines.map(({ label }) => label)], rows));
  }
}

/** A line in words. @param {Line} line */
function summary({ label, points: { steps, values } }) {
  let [least, most] = [Infinity, -Infinity];
  for (const value of values) [least, most] = [Math.min(least, value), Math.max(most, value)];
  const first = `${number(values[0])} at step ${steps[0]}`;
  const last = `${number(values.at(-1))} at step ${steps.at(-1)}`;
  return `${label} from ${first} to ${last}, least ${number(least)}, most ${number(most)}`;
}

/** Lines of a logarithmic axis. @param {any} _ @param {number[]} ticks */
function powersOfTen(_, ticks) {
  return ticks.map((tick) => (Number.isInteger(+Math.log10(tick).toFixed(9)) ? tick : null));
}

/** A tick of an axis. @param {number} value */
function short(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(3)}k`;
  return size !== 0 && size < 1e-3 ? value.toExponential(0) : String(+value.toPrecision(4));
}
