/** Where the page has its data from in a report: answers of the API that stand in the file itself. */

import { ServerError } from "./server.js";

const AROUND = 120;

export class Report {
  isLive = false;
  token = "";

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

  /** As that of a server. @param {string} path @param {Record<string, string | number>} [words] @returns {Promise<any>} @throws {ServerError} */
  async get(path, words = {}) {
    if (path === "runs") return this.answers.runs;
    const run = this.answers[`run ${words.id}`];
    if (!run) throw new ServerError(404, `This report has no run ${words.id}.`);
    if (path === "metrics") return this.metrics(words);
    if (path === "search") return this.search(words);
    if (path === "config" && words.other) return this.differences(String(words.id), String(words.other));
    const key = [path, words.id, words.step, words.index, words.prompt, words.name]
      .filter((word) => word !== undefined)
      .join(" ");
    const found = this.answers[key];
    if (found === undefined || words.before !== undefined) throw new ServerError(404, "This report has no more of it.");
    return found;
  }

  /** @param {Record<string, string | number>} words */
  metrics({ id, names }) {
    const { step, values } = this.answers[`metrics ${id}`];
    const wanted = String(names)
      .split(",")
      .filter((name) => name in values);
    return { step, values: Object.fromEntries(wanted.map((name) => [name, values[name]])) };
  }

  /** Of the steps that the report has. @param {Record<string, string | number>} words */
  search({ id, text, status, from, most }) {
    const wanted = String(text).toLowerCase();
    const all = this.answers[`samples ${id}`].steps.flatMap((/** @type {any} */ { step }) =>
      this.answers[`groups ${id} ${step}`].groups.flatMap((/** @type {any} */ group) =>
        group.samples.map((/** @type {any} */ sample) => ({ step, prompt: group.prompt, ...sample })),
      ),
    );
    const found = all.filter(
      (/** @type {any} */ sample) =>
        (!status || sample.status === status) &&
        `${sample.completion}\n${sample.prompt}`.toLowerCase().includes(wanted),
    );
    const shown = found.slice(Number(from), Number(from) + Number(most));
    return {
      hits: shown.map((/** @type {any} */ sample) => hit(sample, wanted)),
      more: found.length > Number(from) + Number(most) ? Number(from) + Number(most) : null,
    };
  }

  /** @param {string} id @param {string} other */
  differences(id, other) {
    const [ours, theirs] = [id, other].map((run) => this.answers[`config ${run}`].config);
    const fields = [...new Set([...Object.keys(ours), ...Object.keys(theirs)])].sort();
    const differ = fields.filter((field) => JSON.stringify(ours[field]) !== JSON.stringify(theirs[field]));
    return { config: ours, differences: differ.map((field) => ({ field, ours: ours[field], theirs: theirs[field] })) };
  }

  /** Nothing comes. @returns {() => void} */
  live() {
    return () => {};
  }
}

/** @param {any} sample @param {string} wanted */
function hit({ step, index, prompt, completion }, wanted) {
  const start = Math.max(0, completion.toLowerCase().indexOf(wanted) - AROUND);
  return { step, index, prompt, completion: completion.slice(start, start + wanted.length + 2 * AROUND) };
}
