/** The page: what its address says is what it shows. */

import { hashOf, readAddress } from "./address.js";
import { fill, h } from "./dom.js";
import { Report } from "./report.js";
import { runView } from "./run.js";
import { runsView } from "./runs.js";
import { Server, ServerError } from "./server.js";
import { themeSwitch } from "./theme.js";

const main = /** @type {HTMLElement} */ (document.querySelector("main"));
const connection = /** @type {HTMLElement} */ (document.querySelector("#connection"));
/**
 * @typedef {object} View
 * @property {HTMLElement} element
 * @property {() => void} shown it is on the page
 * @property {(address: import("./address.js").Address) => void} go to another place in it
 * @property {() => void} close
 */

/** @type {View | null} */
let view = null;
let shown = "";
let turn = 0;
const TOLD_MS = 8000;

/** @param {string} line empty: all is well */
function tellState(line) {
  connection.textContent = line;
  connection.hidden = !line;
}

/** What was pressed and could not be read is told for a while. @param {PromiseRejectionEvent} event */
function tellFailure(event) {
  if (!(event.reason instanceof ServerError)) return;
  event.preventDefault();
  const line = event.reason.message;
  tellState(line);
  setTimeout(() => connection.textContent === line && tellState(""), TOLD_MS);
}

/** @param {any} source */
async function show(source) {
  const address = readAddress();
  if (view && shown === address.run) return view.go(address);
  const mine = (turn += 1);
  view?.close();
  view = null;
  shown = address.run;
  tellState("");
  try {
    const made = address.run ? await runView(source, address, tellState) : await listOrOnly(source);
    if (mine !== turn) return made?.close(); // the reader has gone on
    if (!made) return;
    view = made;
    document.title = `${address.run || "Runs"} – Tandem`;
    fill(main, made.element);
    made.shown();
    if (turn > 1 && document.activeElement === document.body) main.focus(); // what had the focus is gone
  } catch (error) {
    if (mine !== turn) return;
    shown = "\0"; // nothing: the same address may be tried again
    const line = /** @type {Error} */ (error).message;
    fill(
      main,
      h("p.wrong", { role: "alert" }, line),
      h(
        "p",
        {},
        h("a", { href: hashOf({}) }, "All runs"),
        " ",
        h("button", { type: "button", on: { click: () => show(source) } }, "Try again"),
      ),
    );
  }
}

/** The list; of a directory that is one run, that run. @param {any} source */
async function listOrOnly(source) {
  const found = await source.get("runs");
  if (found.runs.length === 1 && found.runs[0].id === ".") {
    location.replace(hashOf({ run: "." }));
    return null;
  }
  return runsView(source, found, tellState);
}

async function start() {
  /** @type {HTMLElement} */ (document.querySelector("#theme")).append(themeSwitch());
  const inlined = document.querySelector("#inlined");
  const source = inlined ? await Report.read(inlined.textContent ?? "") : new Server();
  if (source instanceof Report) /** @type {HTMLElement} */ (document.querySelector("#made")).textContent = source.made;
  addEventListener("hashchange", () => show(source));
  addEventListener("unhandledrejection", tellFailure);
  document.querySelector(".skip")?.addEventListener("click", (event) => {
    event.preventDefault(); // what follows # says what is shown
    main.focus();
  });
  await show(source);
}

start();
