/** One run: its head, its views, and what is told of it while it goes on. */

import { hashOf, noteAddress } from "./address.js";
import { curvesTab } from "./curves.js";
import { fill, h } from "./dom.js";
import { faultsTab } from "./faults.js";
import { groupsTab } from "./groups.js";
import { runHead } from "./head.js";
import { heldOutTab } from "./heldout.js";
import { logsTab } from "./logs.js";
import { phasesTab } from "./phases.js";
import { RunSeries } from "./series.js";
import { settingsTab } from "./settings.js";

const AGAIN_MS = 5000;

/**
 * @typedef {object} Context what a view knows
 * @property {any} source
 * @property {string} id
 * @property {RunSeries} series
 * @property {() => any} run the newest answer to `run`
 * @property {() => import("./address.js").Address} address
 * @property {(changes: Partial<import("./address.js").Address>) => void} note where the reader is
 * @property {(changes: Partial<import("./address.js").Address>) => string} link address of another view
 *
 * @typedef {object} Tab
 * @property {HTMLElement} element
 * @property {() => void} [shown] it is on the page
 * @property {() => void} [onRun] the answer to `run` has changed
 * @property {() => void} [onSteps] there are new steps
 * @property {() => void} [close]
 */

/**
 * Name in the address, title, what makes it, and whether a run has it.
 * @type {[string, string, (context: Context) => Promise<Tab>, (run: any) => boolean][]}
 */
const TABS = [
  ["curves", "Curves", curvesTab, () => true],
  ["phases", "Phases", phasesTab, (run) => run.phases.length > 0],
  ["faults", "Faults", faultsTab, () => true],
  ["groups", "Groups", groupsTab, (run) => run.has.samples],
  ["heldout", "Held-out", heldOutTab, (run) => run.has.eval_samples],
  ["settings", "Settings", settingsTab, () => true],
  ["logs", "Logs", logsTab, (run) => run.logs.length > 0],
];

/**
 * Show a run.
 * @param {any} source @param {import("./address.js").Address} address @param {(line: string) => void} tellState
 */
export async function runView(source, address, tellState) {
  const id = address.run;
  let run = await source.get("run", { id });
  const series = new RunSeries(source, id);
  /** @type {Tab | null} */
  let tab = null;
  let [shownTab, toldTabs] = ["", ""];
  let [turn, told] = [0, 0];
  const link = (/** @type {Partial<import("./address.js").Address>} */ changes) =>
    hashOf({ run: id, beside: address.beside, ...changes });
  const context = /** @type {Context} */ ({ source, id, series, run: () => run, address: () => address, link, note });
  const head = runHead(context);
  const tabs = h("nav.tabs", { "aria-label": "Views of the run" });
  const body = h("div.body");
  const element = h("div.run", {}, head.element, tabs, body);

  /** @param {Partial<import("./address.js").Address>} changes */
  function note(changes) {
    address = { ...address, ...changes };
    noteAddress(address);
  }

  function showTabs() {
    const offered = TABS.filter(([, , , has]) => has(run));
    const count = run.events.length;
    const now = JSON.stringify([offered.map(([name]) => name), count, shownTab]);
    if (now === toldTabs) return; // else the one that has the focus would lose it
    toldTabs = now;
    fill(
      tabs,
      offered.map(([name, title]) =>
        h(
          "a",
          { href: link({ tab: name }), "aria-current": name === shownTab ? "page" : null },
          title,
          name === "faults" && count ? h("span.count", {}, count) : null,
        ),
      ),
    );
  }

  /** On a narrow screen the current one may be out of sight. */
  function showCurrent() {
    const current = tabs.querySelector("[aria-current]");
    if (!current) return;
    const left = current.offsetLeft - tabs.offsetLeft;
    if (left + current.offsetWidth > tabs.clientWidth) tabs.scrollLeft = left - 20;
  }

  /** @param {string} name */
  async function open(name) {
    const [known, , make] = TABS.find(([each]) => each === name) ?? TABS[0];
    const mine = (turn += 1);
    shownTab = known;
    showTabs();
    tab?.close?.();
    tab = null;
    /** @type {Tab} */
    let made;
    try {
      made = await make(context);
    } catch (error) {
      made = { element: h("p.wrong", { role: "alert" }, /** @type {Error} */ (error).message) };
    }
    if (mine !== turn) return made.close?.(); // another one was chosen meanwhile
    tab = made;
    fill(body, tab.element);
    shown();
  }

  function shown() {
    showCurrent();
    tab?.shown?.();
  }

  /** What has come, or all of it anew where the file was cut. @param {any} found */
  async function onSteps(found) {
    if (found.reset) await series.again();
    else series.append(found);
    tab?.onSteps?.();
  }

  /** @param {any} found */
  function onRun(found) {
    told += 1;
    run = found;
    head.show();
    showTabs();
    tab?.onRun?.();
  }

  async function again() {
    const mine = (told += 1);
    const found = await source.get("run", { id });
    if (mine === told) onRun(found); // else a newer one was told meanwhile
    await onSteps({ reset: true });
  }

  await open(address.tab);
  const timer = setInterval(head.show, AGAIN_MS); // how long a phase lasts
  const unheard = source.live(id, { run: onRun, steps: onSteps, again, state: tellState }, series.mark);
  return {
    element,
    shown,
    /** Another view of the same run. @param {import("./address.js").Address} next */
    go: (next) => {
      const same = next.tab === shownTab && next.step === address.step && next.sample === address.sample;
      address = next;
      if (!same) open(next.tab);
    },
    close: () => {
      turn += 1;
      clearInterval(timer);
      unheard();
      tab?.close?.();
    },
  };
}
