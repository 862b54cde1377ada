/** The logs of a run, from their end backwards. */

import { choice, field, fill, h, visible } from "./dom.js";

const AGAIN_MS = 4000;

/** @param {import("./run.js").Context} context @returns {Promise<import("./run.js").Tab>} */
export async function logsTab(context) {
  const { source, id } = context;
  const names = /** @type {string[]} */ (context.run().logs);
  if (!names.length) return { element: h("p", {}, "This run has left no logs.") };
  let name = names[0];
  let [start, end, turn] = [0, 0, 0];
  let isWaiting = false;
  const earlier = h("button", { type: "button", on: { click: () => readEarlier() } }, "Earlier lines");
  const text = h("pre.log", { tabindex: "0", "aria-label": "Log" });
  const said = h("p.quiet", { role: "status" });
  const chooser = choice(
    names.map((each) => [each, each]),
    name,
    (chosen) => {
      name = chosen;
      earlier.disabled = true; // until there is something that lines could stand before
      readEnd();
    },
  );
  const element = h("div", {}, h("div.bar", {}, field("Log", chooser), earlier), said, text);

  /** @param {Record<string, number>} words @returns {Promise<any>} null: something else was asked for meanwhile */
  async function read(words) {
    const mine = (turn += 1);
    isWaiting = true;
    try {
      const found = await source.get("log", { id, name, ...words });
      return mine === turn ? found : null;
    } finally {
      if (mine === turn) isWaiting = false;
    }
  }

  async function readEnd() {
    const found = await read({});
    if (!found) return;
    if (found.end !== end || found.start !== start || text.dataset.name !== name) {
      const follows = text.scrollTop + text.clientHeight >= text.scrollHeight - 4;
      text.dataset.name = name;
      fill(text, shown(found.text));
      if (follows) text.scrollTop = text.scrollHeight;
    }
    tell(found.start, found.end);
  }

  async function readEarlier() {
    const found = await read({ before: start });
    if (!found) return;
    const height = text.scrollHeight;
    text.prepend(shown(found.text));
    text.scrollTop += text.scrollHeight - height;
    tell(found.start, end);
    text.dataset.name = ""; // what is shown is no longer the end alone: it stays until another log is chosen
  }

  /** @param {number} first @param {number} last bytes */
  function tell(first, last) {
    [start, end] = [first, last];
    earlier.disabled = start <= 0 || !source.isLive;
    said.textContent = end
      ? `Bytes ${start.toLocaleString("en-GB")} to ${end.toLocaleString("en-GB")}`
      : "This log is empty.";
  }

  await readEnd();
  const timer = setInterval(() => {
    const isAtEnd = text.dataset.name === name && !isWaiting;
    if (source.isLive && context.run().state === "running" && isAtEnd) readEnd().catch(() => {});
  }, AGAIN_MS);
  return { element, shown: () => (text.scrollTop = text.scrollHeight), close: () => clearInterval(timer) };
}

/** Progress bars write over their line: here each state of them is one. @param {string} text */
function shown(text) {
  return visible(text.replace(/\r\n?/g, "\n"));
}
