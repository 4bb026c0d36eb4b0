// What the last seconds of a clip brought: frames a second, the exits they ended with, and what that took to compute.

const WINDOW_MS = 3000;

export class Tally {
  #answers = []; // {at_ms, exit, gmacs, dense}; exit 0 if nothing was ready in time
  #marks = []; // {at_ms, right}
  saved = 0;

  /** Count the last exit of a frame, or null. `dense` is what the whole network takes, in GMACs like `exit.gmacs`. */
  add(exit, dense, at_ms) {
    this.#answers.push({ at_ms, exit: exit?.exit ?? 0, gmacs: exit?.gmacs ?? 0, dense });
    if (exit?.gmacs) this.saved += Math.max(0, dense - exit.gmacs);
  }

  /** Note which share of the picture on the screen is labelled right. */
  mark(right, at_ms) {
    this.#marks.push({ at_ms, right });
  }

  /** {fps, missed, exits: shares by number, computed: share of the dense network, right}, of the last seconds. */
  figures(now_ms) {
    const recent = (list) => list.filter(({ at_ms }) => at_ms > now_ms - WINDOW_MS);
    this.#answers = recent(this.#answers);
    this.#marks = recent(this.#marks);
    const found = this.#answers.filter(({ exit }) => exit);
    const exits = {};
    for (const { exit } of found) exits[exit] = (exits[exit] ?? 0) + 1 / found.length;
    const sum = (list, key) => list.reduce((total, one) => total + one[key], 0);
    const span_s = Math.min(WINDOW_MS, now_ms - (this.#answers[0]?.at_ms ?? now_ms)) / 1000;
    return {
      fps: span_s > 0.5 ? found.length / span_s : null,
      missed: this.#answers.length - found.length,
      exits,
      computed: found.length && sum(found, "gmacs") ? sum(found, "gmacs") / sum(found, "dense") : null,
      right: this.#marks.length ? sum(this.#marks, "right") / this.#marks.length : null,
    };
  }
}

/**
 * The mean over the classes in `truth`, {labels, names, width, height}, of intersection over union with an exit's mask of any
 * size. Classes that are not among the model's `names` are left out; null if none is.
 */
export function meanIou({ mask, size: [tall, wide] }, { labels, names: drawn, width, height }, names) {
  const numbers = drawn.map((name) => names.indexOf(name)); // what the model calls each class
  const both = new Uint32Array(256);
  const either = new Uint32Array(256);
  const there = new Uint32Array(256);
  for (let y = 0, at = 0; y < height; y++) {
    const row = Math.floor((y * tall) / height) * wide;
    for (let x = 0; x < width; x++, at++) {
      const found = mask[row + Math.floor((x * wide) / width)];
      const truth = numbers[labels[at]];
      if (truth < 0) continue;
      there[truth]++;
      either[truth]++;
      if (found === truth) both[truth]++;
      else either[found]++;
    }
  }
  const classes = [...there.keys()].filter((label) => there[label]);
  return classes.length === 0 ? null : classes.reduce((sum, label) => sum + both[label] / either[label], 0) / classes.length;
}
