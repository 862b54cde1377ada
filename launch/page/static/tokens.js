/** The tokens of a sample, coloured by what is known of each; what was not sampled is marked. */

import { choice, field, fill, h, openDialog, table, visible } from "./dom.js";
import { number } from "./numbers.js";

/**
 * @typedef {object} Tokens
 * @property {string[]} pieces
 * @property {boolean[]} sampled
 * @property {(number | null)[] | null} logprobs
 * @property {(number | null)[] | null} versions
 * @property {(number | null)[] | null} entropy
 * @property {(number | null)[] | null} ratio
 * @property {number} [left_out] how many more there were
 * @typedef {{look: string, text: string}} Step of a scale
 */

const VERSIONS = 6;
/** Borders between the colours of a scale; of logprobs in nats below 0. */
const SCALES = /** @type {Record<string, number[]>} */ ({
  logprobs: [0.05, 0.2, 0.5, 1, 2, 4],
  entropy: [0.05, 0.2, 0.5, 1, 2, 3],
  ratio: [0.5, 0.8, 0.95, 1.05, 1.25, 2],
});
const TITLES = /** @type {Record<string, string>} */ ({
  logprobs: "logprob",
  entropy: "entropy",
  ratio: "ratio",
  versions: "version",
});

let turn = 0;

/**
 * @param {import("./run.js").Context} context @param {number} step @param {number} index of the sample
 * @param {Element} card of the sample: where it is no longer on the page the reader has gone on
 */
export async function showTokens(context, step, index, card) {
  const mine = (turn += 1);
  const tokens = /** @type {Tokens} */ (await context.source.get("tokens", { id: context.id, step, index }));
  if (mine !== turn || !card.isConnected) return;
  const names = /** @type {(keyof Tokens)[]} */ (Object.keys(TITLES)).filter((name) => tokens[name]);
  const legend = h("ul.legend.scale");
  const text = h("div.tokens", {
    tabindex: "0",
    role: "group",
    "aria-label": "Tokens; left and right go through them",
    on: { mouseover: hovered, keydown: pressed },
  });
  const told = h("p.told", { role: "status" });
  const rows = h("div", { hidden: true });
  const toggle = h("button.plain", { type: "button", "aria-pressed": "false", on: { click: switchTable } }, "Table");
  const chooser = choice(
    names.map((name) => [name, TITLES[name]]),
    names[0],
    paint,
  );
  let at = -1;

  fill(
    text,
    tokens.pieces.map((piece, place) => h("span", { "data-place": place }, shown(piece))),
  );

  /** @param {string} name */
  function paint(name) {
    const { looks, steps } = scale(name, tokens);
    [...text.children].forEach((span, place) => (span.className = tokens.sampled[place] ? looks[place] : "given"));
    const given = tokens.sampled.some((own) => !own) ? [{ look: "given", text: "not sampled" }] : [];
    fill(
      legend,
      [...steps, ...given].map(({ look, text: words }) =>
        h("li", {}, h(`i.swatch.tint.${look}`, { "aria-hidden": "true" }), words),
      ),
    );
  }

  /** @param {number} place */
  function tell(place) {
    text.children[at]?.removeAttribute("aria-current");
    at = Math.max(0, Math.min(tokens.pieces.length - 1, place));
    text.children[at]?.setAttribute("aria-current", "true");
    const facts = names.map((name) => `${TITLES[name]} ${number(/** @type {any} */ (tokens[name])[at])}`);
    const known = tokens.sampled[at] ? facts.join(", ") : "not sampled";
    told.textContent = `${at + 1} of ${tokens.pieces.length}: “${shown(tokens.pieces[at])}” ${known}`;
  }

  /** @param {MouseEvent} event */
  function hovered(event) {
    const place = /** @type {HTMLElement} */ (event.target).dataset?.place;
    if (place !== undefined) tell(Number(place));
  }

  /** @param {KeyboardEvent} event */
  function pressed(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    tell(at + by);
    text.children[at]?.scrollIntoView({ block: "nearest" });
  }

  function switchTable() {
    rows.hidden = !rows.hidden;
    text.hidden = !rows.hidden;
    toggle.setAttribute("aria-pressed", String(!rows.hidden));
    const lines = tokens.pieces.map((piece, place) => [
      place + 1,
      shown(piece),
      tokens.sampled[place] ? "sampled" : "given",
      ...names.map((name) => number(/** @type {any} */ (tokens[name])[place])),
    ]);
    if (!rows.hidden)
      fill(rows, table("Tokens", ["place", "token", "from", ...names.map((name) => TITLES[name])], lines));
  }

  if (names.length) paint(names[0]);
  openDialog(
    `Tokens of sample ${index}, step ${step}`,
    h("div.bar", {}, names.length ? field("Colour by", chooser) : null, toggle),
    legend,
    told,
    text,
    tokens.left_out ? h("p.quiet", {}, `${number(tokens.left_out)} more tokens were not kept.`) : null,
    rows,
  );
}

/** @param {string} piece */
function shown(piece) {
  return visible(piece).replaceAll("\n", "↵\n");
}

/**
 * The class of each token, and what the classes mean.
 * @param {string} name
 * @param {Tokens} tokens
 * @returns {{looks: string[], steps: Step[]}}
 */
function scale(name, tokens) {
  const values = /** @type {(number | null)[]} */ (/** @type {any} */ (tokens)[name]);
  if (name === "versions") {
    const distinct = [...new Set(values.filter((value) => value !== null))].sort(
      (one, other) => Number(one) - Number(other),
    );
    const look = (/** @type {number | null} */ value) =>
      value === null ? "" : `v${distinct.indexOf(value) % VERSIONS}`;
    return {
      looks: values.map(look),
      steps: distinct.map((value) => ({ look: look(value), text: `version ${value}` })),
    };
  }
  const borders = SCALES[name];
  const kind = name === "ratio" ? "r" : "q";
  const sign = name === "logprobs" ? -1 : 1;
  const looks = values.map((value) =>
    value === null ? "" : `${kind}${borders.filter((border) => sign * value >= border).length}`,
  );
  const worded = borders.map((border) => `${sign < 0 ? "−" : ""}${border}`);
  const last = `${sign < 0 ? "below" : "above"} ${worded.at(-1)}`;
  const first = `${sign < 0 ? "above" : "below"} ${worded[0]}`;
  const texts = [first, ...worded.slice(1).map((to, place) => `${worded[place]} to ${to}`), last];
  const steps = texts.map((text, place) => ({ look: `${kind}${place}`, text }));
  return { looks, steps };
}
