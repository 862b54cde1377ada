/** One prompt and its samples, side by side. */

import { fill, h, visible } from "./dom.js";
import { counted, number } from "./numbers.js";
import { showTokens } from "./tokens.js";

const LONG_PROMPT = 280;

/** @param {import("./run.js").Context} context @param {number} step @param {any} group @param {number} index */
export function groupElement(context, step, group, index) {
  const rewards = group.samples
    .map((/** @type {any} */ sample) => sample.reward)
    .filter((/** @type {any} */ reward) => reward !== null);
  const mean =
    rewards.reduce((/** @type {number} */ sum, /** @type {number} */ reward) => sum + reward, 0) / rewards.length;
  const columns = Object.entries(group.samples[0].columns);
  const heading = h(
    "h2",
    { id: `group-${index}` },
    `Prompt ${index + 1}`,
    group.row === null || group.row === undefined ? null : h("span.quiet", {}, ` data row ${group.row}`),
  );
  const facts = h(
    "p.quiet",
    {},
    `${counted(group.samples.length, "sample")}, mean reward ${rewards.length ? number(mean) : "–"}`,
  );
  return h(
    "section.group",
    { "aria-labelledby": `group-${index}` },
    h("header", {}, heading, facts),
    promptElement(group.prompt),
    columns.length
      ? h(
          "dl.columns",
          {},
          columns.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, columnText(value)))),
        )
      : null,
    h(
      "div.samples",
      {},
      group.samples.map((/** @type {any} */ sample) => sampleElement(context, step, sample, bounds(rewards))),
    ),
  );
}

/** @param {string} prompt */
function promptElement(prompt) {
  const shown = visible(prompt);
  if (shown.length <= LONG_PROMPT) return h("pre.prompt", {}, shown);
  return h("details.prompt", {}, h("summary", {}, `${shown.slice(0, LONG_PROMPT)} …`), h("pre", {}, shown));
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
 */
function sampleElement(context, step, sample, [least, most]) {
  const { index, reward, rewards, advantage, length, status, version, turns } = sample;
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
    { tabindex: "0", "aria-label": `Completion of sample ${index}` },
    visible(sample.completion),
  );
  return h(
    "article.sample",
    { "data-sample": index, tabindex: "-1", "aria-label": `Sample ${index}, reward ${number(reward)}, ${status}` },
    h(
      "header",
      {},
      h("b.reward", { title: "reward" }, reward === null ? "not scored" : number(reward)),
      status && status !== "ok" ? h("span.badge.warn", {}, status) : null,
      h("span.quiet", {}, `#${index}`),
    ),
    meter,
    h(
      "dl.facts",
      {},
      facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
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
              "aria-label": `Tokens of sample ${index}`,
              on: { click: () => showTokens(context, step, index) },
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
