/** What is shown, as the address after `#` says: it can be linked. */

/**
 * @typedef {object} Address
 * @property {string} run its id; empty for the list
 * @property {string} tab
 * @property {string} step empty: the newest
 * @property {string} sample
 * @property {string[]} beside ids of the runs that are drawn over it
 */

/** Runs that are drawn over another one: the server keeps eight in memory, and so many colours are told apart. */
export const MOST_BESIDE = 7;

/** @returns {Address} */
export function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1));
  return {
    run: words.get("run") ?? "",
    tab: words.get("tab") ?? "curves",
    step: words.get("step") ?? "",
    sample: words.get("sample") ?? "",
    beside: words.getAll("beside"),
  };
}

/** @param {Partial<Address>} address @returns {string} with its # */
export function hashOf(address) {
  const words = new URLSearchParams();
  if (address.run) words.set("run", address.run);
  if (address.tab && address.tab !== "curves") words.set("tab", address.tab);
  if (address.step) words.set("step", address.step);
  if (address.sample) words.set("sample", address.sample);
  for (const run of address.beside ?? []) words.append("beside", run);
  return `#${words}`;
}

/** Note where the reader is without leaving the view. @param {Address} address */
export function noteAddress(address) {
  history.replaceState(null, "", hashOf(address));
}
