/** The list of runs, newest first; several can be chosen to be drawn over each other. */

import { MOST_BESIDE, hashOf } from "./address.js";
import { fill, h, settled } from "./dom.js";
import { stateBadge } from "./head.js";
import { ago, number } from "./numbers.js";

const AGAIN_MS = 30000;

/** @param {any} source @param {any} found answer to `runs` @param {(line: string) => void} tellState */
export function runsView(source, found, tellState) {
  /** @type {Set<string>} */
  const chosen = new Set();
  let told = 0;
  const search = h("input", {
    type: "search",
    placeholder: "job, model, state or name",
    on: { input: settled(() => show(), 100) },
  });
  const together = h("a.button", { hidden: true }, "");
  const said = h("p.quiet", { role: "status" });
  const body = h("tbody");
  const heads = ["", "run", "state", "step", "values", "job", "model", "changed"];
  const head = h(
    "thead",
    {},
    h(
      "tr",
      {},
      heads.map((name) => h("th", { scope: "col" }, name || h("span.unseen", {}, "choose"))),
    ),
  );
  const table = h(
    "div.scrolls",
    { tabindex: "0", role: "region", "aria-label": "Runs" },
    h("table.runs", {}, h("caption.unseen", {}, "Runs"), head, body),
  );
  const element = h(
    "div",
    {},
    h("h1", {}, `Runs in ${found.directory}`),
    h("div.bar", {}, h("label.field", {}, h("span", {}, "Show"), search), together),
    said,
    table,
  );

  function show() {
    const text = search.value.trim().toLowerCase();
    const runs = found.runs.filter((/** @type {any} */ run) =>
      [run.id, run.name, run.job, run.model, run.state].join(" ").toLowerCase().includes(text),
    );
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset.key;
    fill(body, runs.map(row));
    if (focused) /** @type {HTMLElement | null} */ (body.querySelector(`[data-key="${CSS.escape(focused)}"]`))?.focus();
    said.textContent = found.runs.length
      ? runs.length === found.runs.length
        ? ""
        : `${runs.length} of ${found.runs.length} runs`
      : "There is no run here yet. `tandem run` makes one.";
  }

  /** @param {any} run */
  function row(run) {
    const box = h("input", {
      type: "checkbox",
      checked: chosen.has(run.id),
      disabled: isFull() && !chosen.has(run.id),
      "aria-label": `Choose ${run.id}`,
      "data-key": `box ${run.id}`,
      on: { change: () => choose(run.id, box.checked) },
    });
    const link = h(
      "a",
      { href: hashOf({ run: run.id }), "data-key": `link ${run.id}` },
      run.id === "." ? run.name : run.id,
    );
    const values = Object.entries(run.values).map(([name, value]) =>
      h("span.value", {}, `${name} `, h("b", {}, number(/** @type {number} */ (value)))),
    );
    const state = h(
      "td",
      {},
      stateBadge(run.state),
      run.why && run.state !== "finished"
        ? h("span.why", {}, run.why)
        : run.phase && run.state === "running"
          ? h("span.quiet", {}, ` ${run.phase}`)
          : null,
    );
    const step = h("td.num", {}, number(run.step), run.steps ? h("span.quiet", {}, ` / ${number(run.steps)}`) : null);
    return h(
      "tr",
      {},
      h("td", {}, box),
      h("th", { scope: "row" }, link),
      state,
      step,
      h("td.values", {}, values),
      h("td", {}, run.job),
      h("td.model", {}, run.model),
      h("td.num", {}, ago(run.updated)),
    );
  }

  /** @param {string} id @param {boolean} isChosen */
  function choose(id, isChosen) {
    if (isChosen) chosen.add(id);
    else chosen.delete(id);
    const [first, ...beside] = chosen;
    together.hidden = chosen.size < 2;
    together.textContent = `Curves of ${chosen.size} runs together${isFull() ? ", the most there can be" : ""}`;
    together.href = hashOf({ run: first, beside });
    for (const box of body.querySelectorAll("input")) box.disabled = isFull() && !box.checked;
  }

  function isFull() {
    return chosen.size > MOST_BESIDE;
  }

  show();
  const timer = setInterval(show, AGAIN_MS); // how long ago something was
  const onRuns = (/** @type {any} */ next) => {
    told += 1;
    found = next;
    show();
  };
  const again = async () => {
    const mine = (told += 1);
    const next = await source.get("runs");
    if (mine === told) onRuns(next); // else a newer list was told meanwhile
  };
  const unheard = source.live("", {
    runs: onRuns,
    again,
    state: tellState,
  });
  return {
    element,
    shown: () => {},
    go: () => {},
    close: () => {
      clearInterval(timer);
      unheard();
    },
  };
}
