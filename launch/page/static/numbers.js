/** Numbers, times and durations as people read them. */

/** A value in about four digits; a dash where there is none. @param {number | null | undefined} value */
export function number(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e+", "e").replace("-", "−");
  const digits = Number.isInteger(value) || size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : 3;
  return minus(value.toLocaleString("en-GB", { maximumFractionDigits: digits, minimumFractionDigits: digits }));
}

/** Example: 2, sample -> 2 samples. @param {number} count @param {string} noun */
export function counted(count, noun) {
  return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** How far a value has come; empty where that is not known. @param {number | null} now @param {number | null} first */
export function change(now, first) {
  if (now === null || first === null || now === undefined || first === undefined) return "";
  return `${now >= first ? "+" : ""}${number(now - first)}`;
}

/** Example: 0.413 -> 41.3 %. @param {number | null | undefined} share */
export function percent(share) {
  return share === null || share === undefined ? "–" : `${(100 * share).toFixed(1)} %`;
}

/** Example: 192 -> 3 min 12 s. @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds && seconds < 0.095) return `${Math.round(1000 * seconds) || "< 1"} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const units = /** @type {const} */ ([
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ]);
  const first = units.findIndex(([, size]) => seconds >= size);
  const [[large, big], [small, little]] = [units[first], units[first + 1]];
  const many = Math.floor(seconds / big);
  const few = Math.floor((seconds - many * big) / little);
  return few ? `${many} ${large} ${few} ${small}` : `${many} ${large}`;
}

/** How long ago; a date where that is long. @param {number | null} epoch seconds since 1970 */
export function ago(epoch) {
  if (!epoch) return "–";
  const seconds = Date.now() / 1000 - epoch;
  if (seconds < 5) return "now";
  return seconds < 7 * 86400 ? `${duration(seconds)} ago` : new Date(1000 * epoch).toISOString().slice(0, 10);
}

/** Date and time of day. @param {number} epoch seconds since 1970 */
export function moment(epoch) {
  return new Date(1000 * epoch).toLocaleString("sv-SE");
}

/** Seconds since 1970 of a time that is such a number, or ISO text. @param {number | string} at */
export function epochOf(at) {
  return typeof at === "number" ? at : Date.parse(at) / 1000;
}

/** @param {string} text */
function minus(text) {
  return text.replace("-", "−");
}
