/** Where the page has its data from: the server of `tandem watch`. */

/**
 * @typedef {object} Listener what is told while something is shown
 * @property {(run: any) => void} [run]
 * @property {(steps: any) => void} [steps]
 * @property {(runs: any) => void} [runs]
 * @property {() => void} [again] the connection is back: whatever was missed must be read
 * @property {(line: string) => void} state what is wrong with the connection; empty: nothing
 */

const AGAIN_MS = 1000;

export class ServerError extends Error {
  /** @param {number} status 0 where there was no answer @param {string} line */
  constructor(status, line) {
    super(line);
    this.status = status;
  }
}

export class Server {
  isLive = true;

  /** @param {string} token that the address had, for what changes something */
  constructor(token) {
    this.token = token;
  }

  /**
   * An answer of the API.
   * @param {string} path as `run` @param {Record<string, string | number>} [words] of the query
   * @returns {Promise<any>}
   * @throws {ServerError}
   */
  async get(path, words = {}) {
    return answer(() => fetch(`api/${path}${query(words)}`, { headers: this.headers() }));
  }

  /** Ask a run to stop. @param {string} id @param {string} token @throws {ServerError} */
  async stop(id, token) {
    const headers = { "X-Tandem-Token": token };
    return answer(() => fetch(`api/stop${query({ id })}`, { method: "POST", headers }));
  }

  /**
   * Listen to a run, or to the list (id empty), until the function that is returned is called.
   * @param {string} id @param {Listener} listener @param {string} [mark] up to where metrics are known
   */
  live(id, listener, mark = "") {
    let closed = false;
    let timer = 0;
    /** @type {EventSource | null} */
    let events = null;
    const open = (/** @type {boolean} */ again) => {
      events = new EventSource(`api/live${query({ ...(id && { id }), ...(mark && !again && { mark }) })}`);
      for (const kind of /** @type {const} */ (["run", "steps", "runs"]))
        events.addEventListener(kind, (event) => listener[kind]?.(JSON.parse(event.data)));
      events.onopen = () => {
        listener.state("");
        if (again) listener.again?.();
      };
      events.onerror = () => lost();
    };
    const lost = async () => {
      events?.close();
      if (closed) return;
      try {
        await this.get(id ? "run" : "runs", id ? { id } : {});
        timer = window.setTimeout(() => open(true), AGAIN_MS / 2);
      } catch (error) {
        if (closed) return;
        const status = /** @type {ServerError} */ (error).status;
        listener.state(status === 404 ? "This run is no longer there." : "The server does not answer. Trying again.");
        timer = window.setTimeout(lost, AGAIN_MS);
      }
    };
    open(false);
    return () => {
      closed = true;
      clearTimeout(timer);
      events?.close();
    };
  }

  headers() {
    return this.token ? { "X-Tandem-Token": this.token } : undefined;
  }
}

/** @param {Record<string, string | number>} words */
export function query(words) {
  const text = new URLSearchParams(Object.entries(words).map(([name, value]) => [name, String(value)])).toString();
  return text ? `?${text}` : "";
}

/** @param {() => Promise<Response>} ask */
async function answer(ask) {
  let response;
  try {
    response = await ask();
  } catch {
    throw new ServerError(0, "The server does not answer.");
  }
  const content = await response.json().catch(() => ({ error: `The server has answered ${response.status}.` }));
  if (!response.ok)
    throw new ServerError(response.status, content.error ?? `The server has answered ${response.status}.`);
  return content;
}
