/** The configuration of a run, and how another one's differs. */

import { choice, field, fill, h, settled, table, visible } from "./dom.js";
import { matcher } from "./curves.js";

/** @param {import("./run.js").Context} context @returns {Promise<import("./run.js").Tab>} */
export async function settingsTab(context) {
  const { source, id } = context;
  const [{ config }, { runs }] = await Promise.all([source.get("config", { id }), source.get("runs")]);
  const search = h("input", {
    type: "search",
    placeholder: "name or regex",
    on: { input: settled(() => list(), 150) },
  });
  const offered = /** @type {[string, string][]} */ (
    runs.filter((/** @type {any} */ run) => run.id !== id).map((/** @type {any} */ run) => [run.id, run.id])
  );
  const other = choice([["", "none"], ...offered], "", compare);
  let turn = 0;
  const differences = h("div");
  const said = h("p.quiet", { role: "status" });
  const rows = h("div");
  const element = h(
    "div",
    {},
    h("div.bar", {}, field("Settings", search), offered.length ? field("Differences to", other) : null),
    differences,
    said,
    rows,
  );

  function list() {
    const wanted = matcher(search.value.trim());
    const all = Object.entries(config);
    const shown = all.filter(([name, value]) => wanted(name) || wanted(String(value)));
    said.textContent = all.length ? `${shown.length} of ${all.length} settings` : "This run has left no configuration.";
    fill(
      rows,
      shown.length
        ? table(
            "Settings",
            ["setting", "value"],
            shown.map(([name, value]) => [name, worded(value)]),
          )
        : null,
    );
  }

  /** @param {string} chosen */
  async function compare(chosen) {
    const mine = (turn += 1);
    if (!chosen) return fill(differences);
    const found = await source.get("config", { id, other: chosen });
    if (mine !== turn) return; // another run was chosen meanwhile
    const lines = found.differences.map((/** @type {any} */ each) => [
      each.field,
      worded(each.ours),
      worded(each.theirs),
    ]);
    fill(
      differences,
      lines.length
        ? table(`Differences to ${chosen}`, ["setting", "here", chosen], lines)
        : h("p", {}, `${chosen} has the same settings.`),
    );
  }

  list();
  return { element };
}

/** @param {unknown} value */
function worded(value) {
  if (value === undefined) return "not there";
  return visible(typeof value === "string" ? value : JSON.stringify(value));
}
