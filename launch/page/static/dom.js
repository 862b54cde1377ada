/** Elements from names, attributes and children. Whatever a run has written enters the page here, as text. */

/**
 * @typedef {Node | string | number | null | undefined | false} Child
 * @typedef {Record<string, any>} Properties attributes; `on` has listeners by event, true and false are boolean ones
 */

/**
 * One element. Example: h("button.primary", {type: "button", on: {click: stop}}, "Stop")
 * @param {string} tag name, perhaps with classes behind dots
 * @param {Properties} [properties]
 * @param {...(Child | Child[])} children
 * @returns {any}
 */
export function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.className = classes.join(" ");
  setAll(element, properties);
  element.append(...present(children));
  return element;
}

/**
 * The same of a drawing.
 * @param {string} name
 * @param {Properties} [properties]
 * @param {...Child} children
 * @returns {any}
 */
export function svg(name, properties = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  setAll(element, properties);
  element.append(...present(children));
  return element;
}

/**
 * Put children in place of those that an element has.
 * @param {Element} element
 * @param {...(Child | Child[])} children
 */
export function fill(element, ...children) {
  element.replaceChildren(...present(children));
}

/** @param {(Child | Child[])[]} children @returns {(Node | string)[]} */
function present(children) {
  return children
    .flat()
    .filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : String(child)));
}

/** @param {Element} element @param {Properties} properties */
function setAll(element, properties) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    else if (name === "value") /** @type {any} */ (element).value = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, String(value));
  }
}

const INVISIBLE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;

/** Text whose control characters are seen: what a model writes may hold any. @param {string} text */
export function visible(text) {
  return text.replace(INVISIBLE, (char) => {
    const code = char.charCodeAt(0);
    if (code < 32) return String.fromCharCode(0x2400 + code);
    return code === 127 ? "\u2421" : `[U+${code.toString(16).toUpperCase().padStart(4, "0")}]`;
  });
}

/** A field with its label. @param {string} label @param {Element} input */
export function field(label, input) {
  return h("label.field", {}, h("span", {}, label), input);
}

/**
 * A choice.
 * @param {[string, string][]} options value and text of each
 * @param {string} chosen
 * @param {(value: string) => void} on
 */
export function choice(options, chosen, on) {
  const select = h("select", { on: { change: () => on(select.value) } });
  fill(
    select,
    options.map(([value, text]) => h("option", { value, selected: value === chosen }, text)),
  );
  return select;
}

/** Later, once calls have ceased. @param {() => void} act @param {number} milliseconds @returns {() => void} */
export function settled(act, milliseconds) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = window.setTimeout(act, milliseconds);
  };
}

/** A table that scrolls by itself. @param {string} caption @param {string[]} heads @param {Child[][]} rows */
export function table(caption, heads, rows) {
  return h(
    "div.scrolls",
    { tabindex: "0", role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("caption", {}, caption),
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          heads.map((head) => h("th", { scope: "col" }, head)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((row) =>
          h(
            "tr",
            {},
            row.map((cell) => h("td", {}, cell)),
          ),
        ),
      ),
    ),
  );
}

/** A dialog over the page; Escape closes it. @param {string} title @param {...(Child | Child[])} children */
export function openDialog(title, ...children) {
  const close = h("button.plain", { type: "button", "aria-label": "Close", on: { click: () => dialog.close() } }, "✕");
  const dialog = h("dialog", { "aria-label": title }, h("header", {}, h("h2", {}, title), close), ...children);
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
