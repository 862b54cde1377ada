/** What the server tells while a view is shown: a run's new steps, its state, or the list. */

import { query } from "./query.js";

/**
 * @typedef {object} Listener what is told while something is shown
 * @property {(run: any) => void} [run]
 * @property {(steps: any) => void} [steps]
 * @property {(runs: any) => void} [runs]
 * @property {() => void} [again] the connection is back: whatever was missed must be read
 * @property {(line: string) => void} state what is wrong with the connection; empty: nothing
 */

const [AGAIN_MS, MOST_MS] = [700, 10000];
const GONE = "This run is no longer there.";
const SILENT = "The server does not answer (that of `run --watch` ends with its run). Trying again.";

/** Listens until closed, and only while the page is seen: a browser has six connections to a server, for all tabs. */
export class Listening {
  /**
   * @param {import("./server.js").Server} server
   * @param {string} id of the run; empty: to the list
   * @param {Listener} listener
   * @param {string} mark up to where metrics are known
   */
  constructor(server, id, listener, mark) {
    this.server = server;
    this.words = /** @type {Record<string, string>} */ (id ? { id } : {});
    this.listener = listener;
    this.timer = 0;
    this.tries = 0;
    this.closed = false;
    /** @type {EventSource | null} */
    this.events = null;
    this.seen = () => (document.hidden ? this.pause() : this.open(true));
    document.addEventListener("visibilitychange", this.seen);
    this.open(false, mark);
  }

  /** @param {boolean} again what has happened meanwhile must be read @param {string} [mark] */
  open(again, mark = "") {
    this.pause();
    if (this.closed) return;
    const events = new EventSource(`api/live${query({ ...this.words, ...(mark && { mark }) })}`);
    for (const kind of /** @type {const} */ (["run", "steps", "runs"]))
      events.addEventListener(kind, (event) => this.listener[kind]?.(JSON.parse(event.data)));
    events.onopen = () => {
      this.listener.state("");
      this.tries = 0;
      if (again) this.listener.again?.();
    };
    events.onerror = () => this.lost();
    this.events = events;
  }

  /** Why there is no connection is what an ordinary question shows. */
  async lost() {
    this.pause();
    const line = await this.server.get(this.words.id ? "run" : "runs", this.words).then(
      () => "",
      (error) => (error.status === 404 ? GONE : error.status === 403 ? error.message : SILENT),
    );
    if (this.closed || document.hidden) return;
    if (line) this.listener.state(line);
    const wait = Math.min(MOST_MS, AGAIN_MS * 1.5 ** this.tries);
    this.tries += 1;
    this.timer = window.setTimeout(() => (line ? this.lost() : this.open(true)), wait);
  }

  pause() {
    clearTimeout(this.timer);
    this.events?.close();
    this.events = null;
  }

  close() {
    this.closed = true;
    document.removeEventListener("visibilitychange", this.seen);
    this.pause();
  }
}
