// The exits of one frame that have arrived, and which of them is there at a given moment.

export class Held {
  #exits = new Map();

  /** Keep an exit; a later run of the same frame replaces the exit of the same number. */
  add(exit) {
    this.#exits.set(exit.exit, exit);
  }

  get(number) {
    return this.#exits.get(number) ?? null;
  }

  /** All of them, by number. */
  get all() {
    return [...this.#exits.values()].sort((a, b) => a.exit - b.exit);
  }

  get last() {
    return this.all.at(-1) ?? null;
  }

  /** The newest exit that is there `ms` after the start, or null. */
  at(ms) {
    return this.all.findLast(({ elapsed_ms }) => elapsed_ms <= ms) ?? null;
  }

  /** The exit after that of `at(ms)`, and how far (0 to 1) the time from one to the other has passed; null if none. */
  next(ms) {
    const before = this.at(ms);
    const after = this.all.find(({ elapsed_ms }) => elapsed_ms > ms);
    if (!before || !after) return null;
    return { exit: after, share: (ms - before.elapsed_ms) / (after.elapsed_ms - before.elapsed_ms) };
  }
}
