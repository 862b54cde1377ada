/** Where the page has its data from: the server of `tandem watch`. */

import { Listening } from "./listening.js";
import { query } from "./query.js";

export class ServerError extends Error {
  /** @param {number} status 0 where there was no answer @param {string} line */
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

const STRANGER = "Open the address that `tandem watch` has printed.";

export class Server {
  isLive = true;

  /**
   * An answer of the API.
   * @param {string} path as `run` @param {Record<string, string | number>} [words] of the query
   * @returns {Promise<any>}
   * @throws {ServerError}
   */
  async get(path, words = {}) {
    return answer(() => fetch(`api/${path}${query(words)}`));
  }

  /** Ask a run to stop. @param {string} id @throws {ServerError} */
  async stop(id) {
    const headers = { "X-Tandem": "stop" }; // which no link and no form of another site can send
    return answer(() => fetch(`api/stop${query({ id })}`, { method: "POST", headers }));
  }

  /**
   * Listen to a run, or to the list (id empty), until the function that is returned is called.
   * @param {string} id
   * @param {import("./listening.js").Listener} listener
   * @param {string} [mark] up to where metrics are known
   */
  live(id, listener, mark = "") {
    const listening = new Listening(this, id, listener, mark);
    return () => listening.close();
  }
}

/** @param {() => Promise<Response>} ask */
async function answer(ask) {
  let response;
  try {
    response = await ask();
  } catch {
    throw new ServerError(0, "The server does not answer.");
  }
  if (response.status === 403) throw new ServerError(403, STRANGER);
  const content = await response.json().catch(() => ({ error: `The server has answered ${response.status}.` }));
  if (!response.ok)
    throw new ServerError(response.status, content.error ?? `The server has answered ${response.status}.`);
  return content;
}
