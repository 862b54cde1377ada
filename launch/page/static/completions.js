/** Search of all completions of a run, by text and status. */

import { choice, field, fill, h, visible } from "./dom.js";
import { nameOf } from "./group.js";

const MOST = 50;

/** @param {import("./run.js").Context} context @param {(step: number, sample: number) => void} open */
export function searchForm(context, open) {
  let status = "";
  let turn = 0;
  const words = h("input", { type: "search", placeholder: "text in completions and prompts" });
  const statuses = choice(
    [
      ["", "any"],
      ["failed", "failed"],
      ["truncated", "truncated"],
      ["ok", "ok"],
    ],
    "",
    (chosen) => (status = chosen),
  );
  const said = h("p.quiet", { role: "status" });
  const list = h("ol.hits");
  const more = h("button", { type: "button", hidden: true }, "More");
  const form = h(
    "form.bar",
    { role: "search", on: { submit: begin } },
    field("Search all steps", words),
    field("with status", statuses),
    h("button", { type: "submit" }, "Search"),
  );
  const element = h("div.search", {}, form, said, list, more);

  /** @param {Event} event */
  async function begin(event) {
    event.preventDefault();
    turn += 1;
    fill(list);
    more.hidden = true;
    said.textContent = "";
    if (words.value || status) await goOn({ text: words.value, status }, 0, 0);
  }

  /**
   * @param {{text: string, status: string}} asked
   * @param {number} from place at which to go on @param {number} before hits so far
   */
  async function goOn(asked, from, before) {
    const mine = (turn += 1);
    said.textContent = "Searching …";
    let found;
    try {
      found = await context.source.get("search", { id: context.id, ...asked, from, most: MOST });
    } finally {
      if (mine === turn) said.textContent = "";
    }
    if (mine !== turn) return; // something else is searched for meanwhile
    const count = before + found.hits.length;
    said.textContent = `${count || "No"} ${count === 1 ? "sample" : "samples"}${found.more === null ? "" : " so far"}.`;
    list.append(...found.hits.map((/** @type {any} */ hit) => h("li", {}, hitElement(hit, asked.text))));
    more.hidden = found.more === null;
    more.onclick = () => goOn(asked, found.more, count);
  }

  /** @param {any} hit @param {string} text */
  function hitElement(hit, text) {
    const { step, index, completion } = hit;
    const act = (/** @type {Event} */ event) => {
      event.preventDefault();
      open(step, index);
    };
    const link = context.link({ tab: "groups", step: String(step), sample: String(index) });
    return h(
      "a",
      { href: link, on: { click: act } },
      h("b", {}, `step ${step}, ${nameOf(hit)}`),
      " ",
      marked(visible(completion), text),
    );
  }
  return element;
}

/** The text with what was searched for marked. @param {string} text @param {string} wanted */
function marked(text, wanted) {
  const place = wanted ? text.toLowerCase().indexOf(wanted.toLowerCase()) : -1;
  if (place < 0) return [text];
  return [
    text.slice(0, place),
    h("mark", {}, text.slice(place, place + wanted.length)),
    text.slice(place + wanted.length),
  ];
}
