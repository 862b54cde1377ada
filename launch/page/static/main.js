/** The page: what its address says is what it shows. */

import { hashOf, readAddress, takeToken } from "./address.js";
import { fill, h } from "./dom.js";
import { Report } from "./report.js";
import { runView } from "./run.js";
import { runsView } from "./runs.js";
import { Server } from "./server.js";
import { themeSwitch } from "./theme.js";

const main = /** @type {HTMLElement} */ (document.querySelector("main"));
const connection = /** @type {HTMLElement} */ (document.querySelector("#connection"));
/** @type {{element: HTMLElement, shown: () => void, go: (address: import("./address.js").Address) => void, close: () => void} | null} */
let view = null;
let shown = "";
let turn = 0;

/** @param {string} line empty: all is well */
function tellState(line) {
  connection.textContent = line;
  connection.hidden = !line;
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
  const token = takeToken();
  /** @type {HTMLElement} */ (document.querySelector("#theme")).append(themeSwitch());
  const inlined = document.querySelector("#inlined");
  const source = inlined ? await Report.read(inlined.textContent ?? "") : new Server(token);
  if (inlined) /** @type {HTMLElement} */ (document.querySelector("#made")).textContent = source.made;
  addEventListener("hashchange", () => show(source));
  document.querySelector(".skip")?.addEventListener("click", (event) => {
    event.preventDefault(); // what follows # says what is shown
    main.focus();
  });
  await show(source);
}

start();
