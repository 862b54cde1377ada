/** Where the page has its data from in a report: answers of the API that stand in the file itself. */

import { ServerError } from "./server.js";

const AROUND = 120;

export class Report {
  isLive = false;

  /** @param {{made: string, answers: Record<string, any>}} content */
  constructor({ made, answers }) {
    this.made = made;
    this.answers = answers;
  }

  /** @param {string} text base64 of what gzip has made of JSON */
  static async read(text) {
    const bytes = Uint8Array.from(atob(text.trim()), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Report(await new Response(stream).json());
  }

  /**
   * As that of a server.
   * @param {string} path @param {Record<string, string | number>} [words] @returns {Promise<any>}
   * @throws {ServerError}
   */
  async get(path, words = {}) {
    if (path === "metrics") return this.metrics(words);
    if (path === "search") return this.search(words);
    return this.answer(path, words);
  }

  /** @param {string} path @param {Record<string, string | number>} words @throws {ServerError} */
  answer(path, words) {
    const asked = Object.entries(words).map(([name, value]) => `${name}=${encodeURIComponent(value)}`);
    const found = this.answers[`/api/${path}${asked.length ? `?${asked.join("&")}` : ""}`];
    if (found === undefined) throw new ServerError(404, "This is not in the report.");
    return found;
  }

  /** @param {Record<string, string | number>} words */
  metrics({ id, names, mean }) {
    // Of a short run each point is a step, and stands for its mean.
    const means = mean && this.answers[`/api/metrics?id=${encodeURIComponent(id)}&mean=1`];
    const { step, values, counts } = means || this.answer("metrics", { id });
    const wanted = (names === undefined ? Object.keys(values) : String(names).split(",")).filter(
      (name) => name in values,
    );
    const of = (/** @type {Record<string, any>} */ all) => Object.fromEntries(wanted.map((name) => [name, all[name]]));
    return { step, values: of(values), ...(counts && { counts: of(counts) }) };
  }

  /** Of the steps that the report has. @param {Record<string, string | number>} words */
  search({ id, text, status, from, most }) {
    const wanted = String(text).toLowerCase();
    const [first, last] = [Number(from), Number(from) + Number(most)];
    const found = this.samplesOf(String(id)).filter(
      (sample) =>
        (!status || sample.status === status) &&
        `${sample.completion}\n${sample.prompt}`.toLowerCase().includes(wanted),
    );
    const hits = found.slice(first, last).map((sample) => hit(sample, wanted));
    return { hits, more: found.length > last ? last : null };
  }

  /** @param {string} id @returns {any[]} */
  samplesOf(id) {
    const steps = /** @type {{step: number}[]} */ (this.answer("samples", { id }).steps);
    return steps.flatMap(({ step }) =>
      this.answer("groups", { id, step }).groups.flatMap((/** @type {any} */ { prompt, samples }) =>
        samples.map((/** @type {any} */ sample) => ({ step, prompt, ...sample })),
      ),
    );
  }

  /** Nothing comes. @returns {() => void} */
  live() {
    return () => {};
  }
}

/** @param {any} sample @param {string} wanted */
function hit({ step, index, group, sample, prompt, completion }, wanted) {
  const start = Math.max(0, completion.toLowerCase().indexOf(wanted) - AROUND);
  const around = completion.slice(start, start + wanted.length + 2 * AROUND);
  return { step, index, group, sample, prompt, completion: around };
}
