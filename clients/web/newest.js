// The newest of many values: a reader that is slower than its source misses the others.

/** Holds the newest value until somebody takes it; what it replaces is dropped. Iterate over it to take all that come. */
export class Newest {
  #value;
  #full = false;
  #ended = false;
  #error = null;
  #wake = () => {};
  dropped = 0;

  put(value) {
    if (this.#full) this.dropped++;
    [this.#value, this.#full] = [value, true];
    this.#wake();
  }

  /** Drop the value that waits. */
  clear() {
    this.#full = false;
  }

  /** No further value comes; `error` says why, if that is a fault. */
  end(error = null) {
    [this.#ended, this.#error] = [true, error];
    this.#wake();
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (!this.#full && !this.#ended) await new Promise((wake) => (this.#wake = wake));
      if (this.#error) throw this.#error;
      if (!this.#full) return;
      this.#full = false;
      yield this.#value;
    }
  }
}
