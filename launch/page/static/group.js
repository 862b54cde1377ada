/** One prompt and its samples, side by side. */

import { fill, h, visible } from "./dom.js";
import { number } from "./numbers.js";
import { showTokens } from "./tokens.js";

const LONG_PROMPT = 280;

/**
 * What a sample is called. Example: sample 3 of group 0; of an older file, its row: sample 11
 * @param {any} sample or a hit of the search
 */
export function nameOf({ index, group, sample }) {
  return isPlaced({ group, sample }) ? `sample ${sample} of group ${group}` : `sample ${index}`;
}

/** Whether a row says where it belongs, as those of older versions do not. @param {any} sample */
function isPlaced({ group, sample }) {
  return Number.isInteger(group) && Number.isInteger(sample);
}

/** Samples as they were drawn, of those that say so. @param {any[]} samples */
export function asSampled(samples) {
  return samples.every(isPlaced) ? [...samples].sort((one, other) => one.sample - other.sample) : samples;
}

/**
 * How many of a group are shown. Example: 3 of 8 shown
 * @param {number} shown @param {any[]} samples all that the file has of it
 * @param {number | undefined} drawn of each prompt, by the settings
 */
export function shownOf(shown, samples, drawn) {
  const isKnown = Number.isInteger(drawn) && samples.every((each) => isPlaced(each) && each.sample < Number(drawn));
  return isKnown ? `${shown} of ${drawn} shown` : `${shown} shown`;
}

/**
 * @param {import("./run.js").Context} context @param {number} step
 * @param {any} group with the samples that are shown, and `shown`, which says of how many
 * @param {number} index
 */
export function groupElement(context, step, group, index) {
  const rewards = group.samples
    .map((/** @type {any} */ sample) => sample.reward)
    .filter((/** @type {any} */ reward) => reward !== null);
  const mean =
    rewards.reduce((/** @type {number} */ sum, /** @type {number} */ reward) => sum + reward, 0) / rewards.length;
  const [first] = group.samples;
  const heading = h(
    "h2",
    { id: `group-${index}` },
    isPlaced(first) ? `Group ${first.group}` : `Prompt ${index + 1}`,
    group.row === null || group.row === undefined ? null : h("span.quiet", {}, ` data row ${group.row}`),
  );
  const facts = h("p.quiet", {}, `${group.shown}, mean reward of those shown ${rewards.length ? number(mean) : "–"}`);
  const shared = sharedColumns(group.samples);
  return h(
    "section.group",
    { "aria-labelledby": `group-${index}` },
    h("header", {}, heading, facts),
    promptElement(context, step, group),
    shared.length ? columnsElement(shared) : null,
    h(
      "div.samples",
      {},
      group.samples.map((/** @type {any} */ sample) => {
        const own = Object.entries(sample.columns).filter(([name]) => !shared.some(([each]) => each === name));
        return sampleElement(context, step, sample, bounds(rewards), own);
      }),
    ),
  );
}

/** Columns that all samples of a group have alike. @param {any[]} samples @returns {[string, unknown][]} */
function sharedColumns([first, ...others]) {
  return Object.entries(first.columns).filter(([name, value]) =>
    others.every(({ columns }) => JSON.stringify(columns[name]) === JSON.stringify(value)),
  );
}

/** @param {[string, unknown][]} columns */
function columnsElement(columns) {
  return h(
    "dl.columns",
    {},
    columns.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, columnText(value)))),
  );
}

/** @param {import("./run.js").Context} context @param {number} step @param {any} group */
function promptElement(context, step, { prompt, prompt_cut: isCut, samples }) {
  const shown = visible(prompt);
  if (shown.length <= LONG_PROMPT) return h("pre.prompt", {}, shown);
  const text = h("pre", {}, shown);
  const whole = async (/** @type {Event} */ event) => {
    const { index } = samples[0];
    fill(text, visible((await context.source.get("sample", { id: context.id, step, index })).prompt));
    /** @type {HTMLElement} */ (event.target).closest("p")?.remove();
  };
  const cut = h(
    "p.quiet",
    {},
    `Cut here, behind ${number(prompt.length)} characters. `,
    context.source.isLive ? h("button.plain", { type: "button", on: { click: whole } }, "Whole prompt") : null,
  );
  return h("details.prompt", {}, h("summary", {}, `${shown.slice(0, LONG_PROMPT)} …`), text, isCut ? cut : null);
}

/** @param {unknown} value */
function columnText(value) {
  return visible(typeof value === "string" ? value : JSON.stringify(value)).slice(0, 2000);
}

/** @param {number[]} rewards @returns {[number, number]} */
function bounds(rewards) {
  return [Math.min(0, ...rewards), Math.max(...rewards, 1e-9)];
}

/**
 * @param {import("./run.js").Context} context
 * @param {number} step
 * @param {any} sample
 * @param {[number, number]} range of the group's rewards
 * @param {[string, unknown][]} own columns that others of the group have otherwise
 */
function sampleElement(context, step, sample, [least, most], own) {
  const { index, reward, rewards, advantage, length, status, version, turns } = sample;
  const name = nameOf(sample);
  const sources = Object.entries(rewards ?? {});
  const meter = h("i.meter", { "aria-hidden": "true" }, h("i"));
  meter.firstChild.style.width = reward === null ? "0" : `${(100 * (reward - least)) / (most - least || 1)}%`;
  const facts = /** @type {[string, string][]} */ ([
    ["advantage", number(advantage)],
    ["length", length === null || length === undefined ? "" : `${number(length)} tokens`],
    ["version", version === null || version === undefined ? "" : number(version)],
    ["turns", turns === null || turns === undefined ? "" : number(turns)],
    ...(sources.length > 1 ? sources.map(([name, value]) => [name, number(/** @type {number} */ (value))]) : []),
  ]).filter(([, text]) => text);
  const text = h(
    "pre.completion",
    { tabindex: "0", "aria-label": `Completion of ${name}` },
    visible(sample.completion),
  );
  return h(
    "article.sample",
    { "data-sample": index, tabindex: "-1", "aria-label": `${name}, reward ${number(reward)}, ${status}` },
    h(
      "header",
      {},
      h("b.reward", { title: "reward" }, reward === null ? "not scored" : number(reward)),
      status && status !== "ok" ? h("span.badge.warn", {}, status) : null,
      h("span.quiet", {}, `#${isPlaced(sample) ? sample.sample : index}`),
    ),
    meter,
    h(
      "dl.facts",
      {},
      facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    own.length ? columnsElement(own) : null,
    text,
    h(
      "footer",
      {},
      sample.cut && context.source.isLive
        ? h(
            "button.plain",
            {
              type: "button",
              on: { click: (/** @type {Event} */ event) => showWhole(context, step, index, text, event) },
            },
            "Whole",
          )
        : null,
      sample.tokens
        ? h(
            "button.plain",
            {
              type: "button",
              "aria-label": `Tokens of ${name}`,
              on: { click: () => showTokens(context, step, index, text) },
            },
            "Tokens",
          )
        : null,
    ),
  );
}

/**
 * @param {import("./run.js").Context} context
 * @param {number} step
 * @param {number} index
 * @param {HTMLElement} text
 * @param {Event} event
 */
async function showWhole(context, step, index, text, event) {
  const whole = await context.source.get("sample", { id: context.id, step, index });
  fill(text, visible(whole.completion));
  /** @type {HTMLElement} */ (event.target).remove();
}
