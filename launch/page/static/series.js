/** The values of a run's metrics over its steps: read by name once, then added to as steps come. */

/**
 * @typedef {{steps: number[], values: number[]}} Points without gaps: steps that have no value are left out
 * @typedef {{get: (path: string, words?: Record<string, string | number>) => Promise<any>}} Source
 */

const MOST_POINTS = 2000;

export class Series {
  /** @param {Source} source @param {string} id of the run */
  constructor(source, id) {
    this.source = source;
    this.id = id;
    /** @type {Map<string, Points>} */
    this.points = new Map();
    /** Up to where the first answer told: what comes later is to be told. */
    this.mark = "";
  }

  /** Read what is not known of these metrics. @param {string[]} names */
  async load(names) {
    const missing = names.filter((name) => !this.points.has(name));
    if (!missing.length) return;
    const found = await this.source.get("metrics", { id: this.id, ...named(missing), most: MOST_POINTS });
    this.mark ||= found.mark ?? "";
    for (const name of missing) this.points.set(name, { steps: [], values: [] });
    this.append(found);
  }

  /** Points of a metric; none of one that is not read. @param {string} name @returns {Points} */
  of(name) {
    return this.points.get(name) ?? { steps: [], values: [] };
  }

  /**
   * Add steps, of the metrics that are read.
   * @param {{step: number[], values: Record<string, (number | null)[]>}} found
   */
  append(found) {
    for (const [name, values] of Object.entries(found.values)) {
      const points = this.points.get(name);
      if (!points) continue;
      let last = points.steps.at(-1) ?? -1;
      values.forEach((value, place) => {
        const step = found.step[place];
        if (value === null || step <= last) return;
        points.steps.push(step);
        points.values.push(value);
        last = step;
      });
    }
  }

  /** Read anew what was read: the file was cut, or steps were missed. */
  async again() {
    const names = [...this.points.keys()];
    this.points.clear();
    await this.load(names);
  }

  /** Read what has come since. Of a run that nobody tells of. */
  async more() {
    const names = [...this.points.keys()];
    if (!names.length) return;
    const last = Math.max(0, ...names.map((name) => this.of(name).steps.at(-1) ?? 0));
    this.append(await this.source.get("metrics", { id: this.id, ...named(names), after: last, most: MOST_POINTS }));
  }
}

/**
 * What asks for these metrics; all are asked for where a comma is part of a name.
 * @param {string[]} names @returns {Record<string, string>}
 */
function named(names) {
  return names.some((name) => name.includes(",")) ? {} : { names: names.join(",") };
}

/**
 * Exponential moving average, corrected for its start.
 * @param {number[]} values @param {number} weight of what came before: 0 leaves them as they are
 */
export function smoothed(values, weight) {
  let mean = 0;
  let known = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    known = weight * known + (1 - weight);
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
