/** The query of a question to the server. */

/** Example: {id: "a/b"} -> ?id=a%2Fb; none -> nothing. @param {Record<string, string | number>} words */
export function query(words) {
  const text = new URLSearchParams(Object.entries(words).map(([name, value]) => [name, String(value)])).toString();
  return text ? `?${text}` : "";
}
