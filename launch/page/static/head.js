/**
 * What stands above every view of a run: its state, how far it is, its most telling numbers, and the button to stop it.
 */

import { fill, h, openDialog } from "./dom.js";
import { change, duration, number, percent } from "./numbers.js";

const SIGNS = /** @type {Record<string, string>} */ ({
  running: "●",
  finished: "✓",
  stopped: "■",
  failed: "✕",
  died: "✕",
  unknown: "?",
});

/** @param {string} state */
export function stateBadge(state) {
  return h(`span.badge.state-${state}`, {}, h("i", { "aria-hidden": "true" }, `${SIGNS[state] ?? "?"} `), state);
}

/** @param {import("./run.js").Context} context */
export function runHead(context) {
  const title = h("h1");
  const state = h("div.state", { role: "status", "aria-live": "polite" });
  const stop = h("button", { type: "button", hidden: true, on: { click: () => confirmStop(context) } }, "Stop …");
  const progress = h("progress", { "aria-label": "Steps done" });
  const facts = h("dl.facts.wide");
  const tiles = h("ul.tiles", { "aria-label": "Main numbers" });
  const element = h(
    "header.head",
    {},
    h("div.titles", {}, title, state, stop),
    h("div.progress", {}, progress, facts),
    tiles,
  );
  let told = "";

  function show() {
    const run = context.run();
    title.textContent = run.name;
    const now = JSON.stringify([run.state, run.why]);
    if (now !== told) fill(state, stateBadge(run.state), run.why ? h("span.why", {}, run.why) : null);
    told = now;
    stop.hidden = !(context.source.isLive && run.can_stop);
    progress.hidden = !run.steps;
    progress.max = run.steps || 1;
    progress.value = run.step || 0;
    progress.textContent = `${run.step} of ${run.steps}`;
    fill(
      facts,
      factsOf(run, context.source.isLive).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    );
    tiles.hidden = !run.tiles.length;
    fill(tiles, run.tiles.map(tileElement));
  }
  show();
  return { element, show };
}

/** @param {any} run @param {boolean} isLive a report does not grow older @returns {[string, string | Node][]} */
function factsOf(run, isLive) {
  const steps = run.steps ? `${number(run.step ?? 0)} of ${number(run.steps)}` : number(run.step);
  const facts = /** @type {[string, any][]} */ ([["step", steps]]);
  if (run.state === "running") {
    const since = isLive && run.phase_since ? ` for ${duration(Math.max(0, Date.now() / 1000 - run.phase_since))}` : "";
    facts.push(
      ["phase", run.phase ? `${run.phase}${since}` : "–"],
      ["left", run.eta_s === null ? "–" : `about ${duration(run.eta_s)}`],
    );
  }
  facts.push(
    ["took", duration(run.elapsed_s)],
    ["effective", percent(run.effective)],
    ["job", run.job],
    ["model", run.model],
  );
  return facts.filter(([, value]) => value && value !== "–");
}

/** @param {any} tile */
function tileElement({ metric, title, value, first, better }) {
  const gone = value === null || first === null ? 0 : Math.sign(value - first);
  const good = better ? (better === "up" ? gone : -gone) : 0;
  const look = good > 0 ? "span.change.good" : good < 0 ? "span.change.bad" : "span.change";
  const changed = change(value, first);
  return h(
    "li",
    { title: metric },
    h("span.quiet", {}, title),
    h("b", {}, number(value)),
    changed ? h(look, { title: "since the start" }, changed) : null,
  );
}

/** @param {import("./run.js").Context} context */
function confirmStop(context) {
  const said = h("p.wrong", { role: "alert" });
  const stop = h("button.primary", { type: "button", on: { click: act } }, "Stop the run");
  const keep = h("button", { type: "button", on: { click: () => dialog.close() } }, "Keep it running");
  const dialog = openDialog(
    `Stop ${context.run().name}?`,
    h("p", {}, "It finishes its step, saves a checkpoint and ends. A later start goes on from there."),
    said,
    h("div.bar", {}, stop, keep),
  );

  async function act() {
    stop.disabled = true;
    try {
      await context.source.stop(context.id);
      const close = h("button", { type: "button", on: { click: () => dialog.close() } }, "Close");
      fill(dialog, h("p", { role: "status" }, "The run was asked to stop."), h("div.bar", {}, close));
      close.focus();
    } catch (error) {
      said.textContent = /** @type {Error} */ (error).message;
      stop.disabled = false;
    }
  }
}
