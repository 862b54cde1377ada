/** What a held-out prompt was answered over the steps: two of them as a diff, all of them as a list. */

import { wordDiff } from "./diff.js";
import { choice, field, fill, h, visible } from "./dom.js";
import { number } from "./numbers.js";

/** @param {import("./run.js").Context} context @returns {Promise<import("./run.js").Tab>} */
export async function heldOutTab(context) {
  const { source, id } = context;
  const { prompts } = await source.get("heldout", { id });
  if (!prompts.length) return { element: h("p", {}, "This run has written no completions of held-out prompts.") };
  const first = Number(prompts[0].number);
  /** @type {any} */
  let found = { steps: [] };
  let [older, newer, turn] = [0, 0, 0];

  const offered = prompts.map((/** @type {any} */ each) => [
    String(each.number),
    `${each.number}: ${visible(each.prompt).slice(0, 80)}`,
  ]);
  const chooser = choice(offered, String(first), (chosen) => open(Number(chosen)));
  const said = h("pre.prompt");
  const pair = h("div.bar");
  const shown = h("div");
  const list = h("ol.answers");
  const element = h("div", {}, h("div.bar", {}, field("Held-out prompt", chooser)), said, pair, shown, list);

  /** @param {number} chosen */
  async function open(chosen) {
    const mine = (turn += 1);
    const answer = await source.get("heldout", { id, prompt: chosen });
    if (mine !== turn) return; // another prompt was chosen meanwhile
    found = answer;
    [older, newer] = [0, found.steps.length - 1];
    said.textContent = visible(found.prompt);
    show();
  }

  function show() {
    const options = /** @type {[string, string][]} */ (
      found.steps.map((/** @type {any} */ { step }, /** @type {number} */ place) => [
        String(place),
        `step ${step}${again(place)}`,
      ])
    );
    const from = choice(options, String(older), (chosen) => compare(Number(chosen), newer));
    const to = choice(options, String(newer), (chosen) => compare(older, Number(chosen)));
    const [before, after] = [found.steps[older], found.steps[newer]];
    fill(
      pair,
      field("From", from),
      field("to", to),
      h("span.quiet", {}, `reward ${number(before?.reward)} → ${number(after?.reward)}`),
    );
    fill(shown, before ? diffElement(before.completion, after.completion) : null);
    fill(list, found.steps.map(answer));
  }

  /** Of several answers of one step, which. @param {number} place */
  function again(place) {
    const same = found.steps.filter((/** @type {any} */ each) => each.step === found.steps[place].step);
    return same.length > 1 ? ` (${same.indexOf(found.steps[place]) + 1})` : "";
  }

  /** @param {any} each @param {number} place */
  function answer(each, place) {
    const act = () => compare(older, place);
    const now = place === newer ? "true" : null;
    return h(
      "li",
      {},
      h(
        "button.row",
        { type: "button", "aria-current": now, on: { click: act } },
        h("b", {}, `step ${each.step}${again(place)}`),
        h("span.num", {}, number(each.reward)),
        h("span", {}, visible(each.completion).slice(0, 300)),
      ),
    );
  }

  /** @param {number} from @param {number} to */
  function compare(from, to) {
    [older, newer] = [from, to];
    show();
  }

  await open(first);
  return { element };
}

/** @param {string} older @param {string} newer */
function diffElement(older, newer) {
  const names = { same: "span", gone: "del", new: "ins" };
  const pieces = wordDiff(visible(older), visible(newer)).map(({ kind, text }) => h(names[kind], {}, text));
  return h("pre.completion.diff", { tabindex: "0", "aria-label": "What differs between the two answers" }, pieces);
}
