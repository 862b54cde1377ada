/** The samples of a step, those of a prompt side by side; rewards to choose by, and a search over all steps. */

import { searchForm } from "./completions.js";
import { choice, field, fill, h } from "./dom.js";
import { asSampled, groupElement, shownOf } from "./group.js";
import { counted, number } from "./numbers.js";

const MOST_BARS = 12;

/** @param {import("./run.js").Context} context @returns {Promise<import("./run.js").Tab>} */
export async function groupsTab(context) {
  const { source, id } = context;
  /** @type {{step: number, samples: number}[]} */
  let steps = [];
  /** @type {any} */
  let found = { step: null, groups: [] };
  /** The step that is shown, or is to be as soon as it is there. @type {number | null} */
  let wanted = null;
  let [turn, turnOfSteps] = [0, 0];
  /** @type {((reward: number | null) => boolean) | null} */
  let inBar = null;
  let [barName, shownText] = ["", ""];
  let status = "";
  let order = "sampled";

  const input = h("input", {
    type: "number",
    min: "0",
    "aria-label": "Step",
    on: { change: () => nearest(Number(input.value)) },
  });
  const earlier = h("button", { type: "button", "aria-label": "Earlier step", on: { click: () => move(-1) } }, "◀");
  const later = h("button", { type: "button", "aria-label": "Later step", on: { click: () => move(1) } }, "▶");
  const newest = h("button", { type: "button", on: { click: () => open(steps.at(-1)?.step) } }, "Newest");
  const statuses = choice(
    [
      ["", "any status"],
      ["ok", "ok"],
      ["truncated", "truncated"],
      ["failed", "failed"],
    ],
    "",
    (chosen) => {
      status = chosen;
      show();
    },
  );
  const orders = choice(
    [
      ["sampled", "as sampled"],
      ["best", "best first"],
    ],
    order,
    (chosen) => {
      order = chosen;
      show();
    },
  );
  const said = h("p.quiet", { role: "status" });
  const bars = h("div.histogram", { role: "group", "aria-label": "Rewards of this step: choose samples by reward" });
  const list = h("div.groups");
  const bar = h(
    "div.bar",
    {},
    field("Step", h("span.together", {}, earlier, input, later)),
    newest,
    field("Status", statuses),
    field("Order", orders),
  );
  const element = h(
    "div",
    {},
    bar,
    searchForm(context, (step, sample) => open(step, sample)),
    bars,
    said,
    list,
  );

  async function readSteps() {
    const mine = (turnOfSteps += 1);
    const answer = await source.get("samples", { id });
    if (mine !== turnOfSteps) return; // asked again meanwhile
    steps = answer.steps;
    input.max = String(steps.at(-1)?.step ?? 0);
  }

  /** @param {number} by */
  function move(by) {
    const place = steps.findIndex(({ step }) => step === wanted);
    const next = steps[Math.max(0, Math.min(steps.length - 1, place + by))];
    if (next) open(next.step);
  }

  /** @param {number} step */
  function nearest(step) {
    const chosen = steps.reduce(
      (best, each) => (Math.abs(each.step - step) < Math.abs(best.step - step) ? each : best),
      steps[0],
    );
    if (chosen) open(chosen.step);
  }

  /** @param {number | undefined} step @param {number | null} [sample] its index, to be brought into view */
  async function open(step, sample = null) {
    if (step === undefined) {
      said.textContent = "This run has written no completions.";
      return;
    }
    const mine = (turn += 1);
    wanted = step;
    try {
      const answer = await source.get("groups", { id, step });
      if (mine !== turn) return; // another step was chosen meanwhile, or another view
      found = answer;
    } catch (error) {
      if (mine === turn) wanted = found.step;
      throw error;
    }
    [inBar, barName] = [null, ""];
    input.value = String(step);
    context.note({ tab: "groups", step: String(step), sample: sample === null ? "" : String(sample) });
    show();
    const card = sample === null ? null : element.querySelector(`[data-sample="${sample}"]`);
    card?.scrollIntoView({ block: "nearest" });
    card?.focus({ preventScroll: true });
  }

  /** @param {any} sample */
  const kept = (sample) => (!inBar || inBar(sample.reward)) && (!status || sample.status === status);

  function show() {
    const all = found.groups.flatMap((/** @type {any} */ group) => group.samples);
    drawBars(all);
    const whole = [...found.groups].sort(
      (one, other) => other.samples.length - one.samples.length || one.samples[0].group - other.samples[0].group,
    );
    const shown = whole
      .map((/** @type {any} */ group) => {
        const samples = ordered(group.samples.filter(kept));
        return { ...group, samples, shown: shownOf(samples.length, group.samples, drawn) };
      })
      .filter((/** @type {any} */ group) => group.samples.length);
    const count = shown.reduce((/** @type {number} */ sum, /** @type {any} */ group) => sum + group.samples.length, 0);
    const chosen = barName ? ` with reward ${barName}` : "";
    shownText = `${count} of ${all.length} samples${chosen}, ${counted(shown.length, "prompt")}`;
    tell();
    fill(
      list,
      shown.map((/** @type {any} */ group, /** @type {number} */ index) =>
        groupElement(context, found.step, group, index),
      ),
    );
  }

  function tell() {
    const place = steps.findIndex(({ step }) => step === found.step);
    said.textContent = `Step ${found.step} (${place + 1} of ${steps.length} with completions): ${shownText}.`;
  }

  /** @param {any[]} samples */
  function ordered(samples) {
    return order === "best"
      ? [...samples].sort((one, other) => (other.reward ?? -Infinity) - (one.reward ?? -Infinity))
      : asSampled(samples);
  }

  /** @param {any[]} samples */
  function drawBars(samples) {
    const found = barsOf(samples.map((sample) => sample.reward));
    const most = Math.max(1, ...found.map(({ count }) => count));
    const buttons = found.map(({ label, count, holds }) => {
      const fillOf = h("i", { "aria-hidden": "true" });
      fillOf.style.height = `${Math.round((46 * count) / most)}px`;
      const pressed = label === barName;
      const act = () => {
        [inBar, barName] = pressed ? [null, ""] : [holds, label];
        show();
        bars.querySelector(`[data-bar="${label}"]`)?.focus();
      };
      return h(
        "button",
        { type: "button", "aria-pressed": String(pressed), "data-bar": label, on: { click: act } },
        h("b", {}, count),
        h("span.unseen", {}, count === 1 ? " sample with reward " : " samples with reward "),
        fillOf,
        label,
      );
    });
    fill(bars, buttons);
  }

  const [{ config }] = await Promise.all([source.get("config", { id }), readSteps()]);
  const drawn = config["algorithm.samples_per_prompt"];
  const { step, sample } = context.address();
  await open(step ? Number(step) : steps.at(-1)?.step, sample ? Number(sample) : null);
  return {
    element,
    onSteps: async () => {
      await readSteps();
      if (found.step === null) await open(steps.at(-1)?.step);
      else tell(); // what is read stays
    },
    close: () => (turn += 1),
  };
}

/**
 * A bar for each reward, or for ranges where there are many.
 * @param {(number | null)[]} rewards
 * @returns {{label: string, count: number, holds: (reward: number | null) => boolean}[]}
 */
export function barsOf(rewards) {
  const known = /** @type {number[]} */ (rewards.filter((reward) => reward !== null));
  const none = rewards.length - known.length;
  const unscored = none
    ? [{ label: "none", count: none, holds: (/** @type {number | null} */ reward) => reward === null }]
    : [];
  const distinct = [...new Set(known)].sort((one, other) => one - other);
  if (distinct.length <= MOST_BARS) {
    const single = distinct.map((value) => ({
      label: number(value),
      count: known.filter((reward) => reward === value).length,
      holds: (/** @type {number | null} */ reward) => reward === value,
    }));
    return [...unscored, ...single];
  }
  const [least, most] = [distinct[0], distinct[distinct.length - 1]];
  const width = (most - least) / MOST_BARS;
  const binOf = (/** @type {number} */ reward) => Math.min(MOST_BARS - 1, Math.floor((reward - least) / width));
  const ranges = Array.from({ length: MOST_BARS }, (_, bin) => ({
    label: `${number(least + bin * width)} to ${number(least + (bin + 1) * width)}`,
    count: known.filter((reward) => binOf(reward) === bin).length,
    holds: (/** @type {number | null} */ reward) => reward !== null && binOf(reward) === bin,
  }));
  return [...unscored, ...ranges];
}
