/** What differs between two texts, word by word. */

const MOST_CHANGES = 800;

/** @typedef {{kind: "same" | "gone" | "new", text: string}} Piece */

/**
 * The shortest way from one text to another in words (Myers' algorithm); all of it as replaced where that is long.
 * @param {string} older @param {string} newer @returns {Piece[]}
 */
export function wordDiff(older, newer) {
  const [before, after] = [wordsOf(older), wordsOf(newer)];
  const least = Math.min(before.length, after.length);
  let start = 0;
  while (start < least && before[start] === after[start]) start += 1;
  let end = 0;
  while (end < least - start && before.at(-1 - end) === after.at(-1 - end)) end += 1;
  const middle = changes(before.slice(start, before.length - end), after.slice(start, after.length - end));
  const same = (/** @type {string[]} */ words) => words.map((text) => /** @type {Piece} */ ({ kind: "same", text }));
  return joined([...same(before.slice(0, start)), ...middle, ...same(end ? before.slice(-end) : [])]);
}

/** @param {string} text */
function wordsOf(text) {
  return text.match(/\S+\s*|\s+/g) ?? [];
}

/** @param {string[]} before @param {string[]} after @returns {Piece[]} */
function changes(before, after) {
  /** For each number of changes: diagonal -> how far one comes on it. @type {Map<number, number>[]} */
  const reached = [];
  let front = new Map([[1, 0]]);
  for (let count = 0; count <= Math.min(MOST_CHANGES, before.length + after.length); count += 1) {
    reached.push(new Map(front));
    for (let diagonal = -count; diagonal <= count; diagonal += 2) {
      let x = isDown(front, diagonal, count) ? at(front, diagonal + 1) : at(front, diagonal - 1) + 1;
      while (x < before.length && x - diagonal < after.length && before[x] === after[x - diagonal]) x += 1;
      front.set(diagonal, x);
      if (x >= before.length && x - diagonal >= after.length) return traced(reached, before, after);
    }
  }
  return [
    { kind: "gone", text: before.join("") },
    { kind: "new", text: after.join("") },
  ];
}

/** @param {Map<number, number>[]} reached @param {string[]} before @param {string[]} after @returns {Piece[]} */
function traced(reached, before, after) {
  /** @type {Piece[]} */
  const pieces = [];
  let [x, y] = [before.length, after.length];
  for (let count = reached.length - 1; count >= 0; count -= 1) {
    const front = reached[count];
    const diagonal = x - y;
    const from = isDown(front, diagonal, count) ? diagonal + 1 : diagonal - 1;
    const [left, top] = count ? [at(front, from), at(front, from) - from] : [0, 0];
    while (x > left && y > top) {
      pieces.push({ kind: "same", text: before[x - 1] });
      [x, y] = [x - 1, y - 1];
    }
    if (count) pieces.push(x === left ? { kind: "new", text: after[y - 1] } : { kind: "gone", text: before[x - 1] });
    [x, y] = [left, top];
  }
  return pieces.reverse();
}

/** @param {Map<number, number>} front @param {number} diagonal @param {number} count */
function isDown(front, diagonal, count) {
  return diagonal === -count || (diagonal !== count && at(front, diagonal - 1) < at(front, diagonal + 1));
}

/** @param {Map<number, number>} front @param {number} diagonal */
function at(front, diagonal) {
  return front.get(diagonal) ?? 0;
}

/** @param {Piece[]} pieces @returns {Piece[]} */
function joined(pieces) {
  /** @type {Piece[]} */
  const found = [];
  for (const piece of pieces) {
    const last = found.at(-1);
    if (last && last.kind === piece.kind) last.text += piece.text;
    else if (piece.text) found.push({ ...piece });
  }
  return found;
}
