/** Light or dark: as the system has it, until the reader chooses. */

import { h } from "./dom.js";

const KEY = "tandem-theme";
const NEXT = /** @type {Record<string, string>} */ ({ auto: "light", light: "dark", dark: "auto" });
/** @type {Set<() => void>} */
const listeners = new Set();
/** @type {Map<string, string>} */
const known = new Map();

/** Hear of a change; returns what ends that. @param {() => void} listener */
export function onTheme(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** The colour that a class gives to text, for what is drawn on a canvas. @param {string} name of the class */
export function colour(name) {
  let found = known.get(name);
  if (found === undefined) {
    const probe = h("i", { class: name, hidden: true });
    document.body.append(probe);
    found = getComputedStyle(probe).color;
    probe.remove();
    known.set(name, found);
  }
  return found;
}

/** The switch. @returns {HTMLElement} */
export function themeSwitch() {
  let chosen = stored();
  const button = h("button.plain", { type: "button", on: { click: () => choose(NEXT[chosen]) } });
  /** @param {string} theme */
  function choose(theme) {
    chosen = theme;
    button.textContent = `Theme: ${theme}`;
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    store(theme);
    tell();
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tell);
  choose(chosen);
  return button;
}

function tell() {
  known.clear();
  for (const listener of listeners) listener();
}

function stored() {
  try {
    const theme = localStorage.getItem(KEY) ?? "auto";
    return theme in NEXT ? theme : "auto";
  } catch {
    return "auto"; // a browser may forbid it, as of files
  }
}

/** @param {string} theme */
function store(theme) {
  try {
    localStorage.setItem(KEY, theme);
  } catch {
    // It lasts as long as the page.
  }
}
