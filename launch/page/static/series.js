/** The values of a run's metrics over its steps: read by name once, then added to as steps come. */

/**
 * @typedef {object} Points without gaps: steps that have no value are left out
 * @property {number[]} steps
 * @property {number[]} values
 * @property {number[]} [counts] of how many values each is the mean; all are of one where this is not there
 *
 * @typedef {object} Found an answer to `metrics`, or steps as they came
 * @property {number[]} step
 * @property {Record<string, (number | null)[]>} values
 * @property {Record<string, number[]>} [counts]
 * @property {string} [mark]
 *
 * @typedef {{get: (path: string, words?: Record<string, string | number>) => Promise<any>}} Source
 */

const MOST_POINTS = 2000;

export class Series {
  /**
   * @param {Source} source
   * @param {string} id of the run
   * @param {boolean} [mean] of a long run, the means of its stretches are read, else their least and greatest values
   */
  constructor(source, id, mean = false) {
    this.source = source;
    this.words = { id, ...(mean && { mean: 1 }) };
    /** @type {Map<string, Points>} */
    this.points = new Map();
    /** What was asked for, answered or not. @type {Set<string>} */
    this.names = new Set();
    /** What has come while an answer is waited for. @type {Set<Found[]>} */
    this.waiting = new Set();
    /** How often all was read anew: answers from before are void. */
    this.turn = 0;
    /** Up to where the first answer told: what comes later is to be told. */
    this.mark = "";
    /** The last step up to which all is known; -1: there was none. */
    this.last = Infinity;
    /** Mark of the last answer: its number before the dot is another one once the file was cut. */
    this.newest = "";
  }

  /** Read what is not known of these metrics. @param {string[]} names */
  async load(names) {
    const missing = names.filter((name) => !this.points.has(name));
    if (!missing.length) return;
    for (const name of missing) this.names.add(name);
    // Means of one answer are of the same stretches, those of two are not.
    await (this.words.mean ? this.again() : this.read(missing));
  }

  /** @param {string[]} names */
  async read(names) {
    const { turn } = this;
    /** @type {Found[]} */
    const came = [];
    this.waiting.add(came);
    const found = await this.ask(names).finally(() => this.waiting.delete(came));
    if (turn !== this.turn) return; // all is read anew meanwhile, and these with it
    const mark = found.mark ?? "";
    if (wasCut(this.newest, mark)) return this.again();
    this.newest = mark;
    this.mark ||= mark;
    this.last = Math.min(this.last, found.step.at(-1) ?? -1);
    for (const name of names) this.points.set(name, { steps: [], values: [], ...(found.counts && { counts: [] }) });
    for (const each of [found, ...came]) this.add(each);
  }

  /** Points of a metric; none of one that is not read. @param {string} name @returns {Points} */
  of(name) {
    return this.points.get(name) ?? { steps: [], values: [] };
  }

  /** Add steps that have come; those of an answer that is waited for, too. @param {Found} found */
  append(found) {
    for (const came of this.waiting) came.push(found);
    this.add(found);
  }

  /** @param {Found} found */
  add({ step: steps, values, counts }) {
    for (const [name, column] of Object.entries(values)) {
      const points = this.points.get(name);
      if (!points) continue;
      let last = points.steps.at(-1) ?? -1;
      column.forEach((value, place) => {
        const step = steps[place];
        if (value === null || step <= last) return;
        points.steps.push(step);
        points.values.push(value);
        points.counts?.push(counts?.[name]?.[place] ?? 1);
        last = step;
      });
    }
  }

  /** Read anew what was read: the file was cut, or steps were missed. */
  async again() {
    this.turn += 1;
    if (!this.names.size) return;
    const { turn } = this;
    [this.last, this.newest] = [Infinity, ""];
    try {
      await this.read([...this.names]);
    } catch (error) {
      if (turn === this.turn) this.points.clear(); // whoever shows them reads them
      throw error;
    }
  }

  /** Read what has come since, or all where the file was cut. Of a run that nobody tells of. */
  async more() {
    if (!this.points.size) return this.again();
    const { turn } = this;
    const found = await this.ask([...this.points.keys()], this.last);
    if (turn !== this.turn) return;
    const mark = found.mark ?? "";
    if (wasCut(this.newest, mark)) return this.again();
    this.newest = mark;
    this.last = found.step.at(-1) ?? this.last;
    this.add(found);
  }

  /**
   * All are asked for where a comma is part of a name.
   * @param {string[]} names @param {number} [after] step; -1: of all @returns {Promise<Found>}
   */
  ask(names, after = -1) {
    /** @type {Record<string, string | number>} */
    const words = { ...this.words };
    if (!names.some((name) => name.includes(","))) words.names = names.join(",");
    if (after >= 0) words.after = after;
    return this.source.get("metrics", { ...words, most: MOST_POINTS });
  }
}

/** What the curves of a run are drawn from. */
export class RunSeries {
  /** @param {Source} source @param {string} id of the run */
  constructor(source, id) {
    this.plain = new Series(source, id);
    this.means = new Series(source, id, true);
  }

  /** Up to where the first answer told. */
  get mark() {
    return this.plain.mark || this.means.mark;
  }

  /** Read what is not known of these metrics. @param {string[]} names @param {boolean} smooth their means, too */
  async load(names, smooth) {
    await Promise.all([this.plain.load(names), smooth && this.means.load(names)]);
  }

  /** Add steps that have come. @param {Found} found */
  append(found) {
    this.plain.append(found);
    this.means.append(found);
  }

  /** Read anew what was read. */
  async again() {
    await Promise.all([this.plain.again(), this.means.again()]);
  }

  /** Read what has come since. Of a run that nobody tells of. */
  async more() {
    await Promise.all([this.plain.more(), this.means.more()]);
  }
}

/** Whether rows that an answer had are void in a later one. @param {string} before @param {string} now marks */
function wasCut(before, now) {
  if (!before) return false;
  const [[cuts, rows], [cutsNow, rowsNow]] = [before, now].map((mark) => mark.split(".").map(Number));
  return cuts !== cutsNow || rowsNow < rows;
}

/**
 * Exponential moving average, corrected for its start. A mean of several values counts as each of them.
 * @param {Points} points
 * @param {number} weight of what came before: 0 leaves the values as they are
 */
export function smoothed({ values, counts }, weight) {
  let mean = 0;
  let known = 0;
  return values.map((value, place) => {
    const kept = weight ** (counts?.[place] ?? 1);
    mean = kept * mean + (1 - kept) * value;
    known = kept * known + (1 - kept);
    return mean / known;
  });
}

/**
 * At most so many points, evenly chosen, with the first and the last.
 * @param {Points} points
 * @param {number} most
 * @returns {Points}
 */
export function thinned(points, most) {
  const count = points.steps.length;
  if (count <= most) return points;
  const places = Array.from({ length: most }, (_, place) => Math.round((place * (count - 1)) / (most - 1)));
  return { steps: places.map((place) => points.steps[place]), values: places.map((place) => points.values[place]) };
}
