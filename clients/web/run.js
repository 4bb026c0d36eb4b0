// A request under way, the error of one that failed, and how its maps are unpacked.

/** What is said where there is no connection. */
export const UNREACHABLE = "The server cannot be reached. Is it running?";

/** An error of the server. `status` is that of HTTP: 504 if nothing was ready in time, 503 if the server is too busy. */
export class Refused extends Error {
  constructor(sentence, code = "", status = 0) {
    super(sentence);
    Object.assign(this, { code, status });
  }
}

/** Throws what is said where there is no connection. */
export const lost = () => {
  throw new Refused(UNREACHABLE);
};

/** The JSON of an answer. Throws `Refused` unless it is a success. */
export async function answered(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new Refused(body?.error ?? `The server answered ${response.status} without JSON.`, body?.code, response.status);
}

/** A request that was sent. Iterate over it to get its exits as they come; then `end` is there. */
export class Run {
  /** @type {import("./anytime.js").End | null} */ end = null;
  /** Why no further exit comes, if that is a fault. @type {Error | null} */ failure = null;
  #exits = [];
  #wake = () => {};
  #cancel;
  #move;

  constructor(cancel, move) {
    [this.#cancel, this.#move] = [cancel, move];
  }

  /** Ask the server to stop. The iteration still ends by itself. */
  cancel() {
    this.#cancel();
  }

  /** Move the deadline to `deadline_ms` from now. Returns whether it can be moved; that of a POST cannot. */
  deadline(deadline_ms) {
    return this.#move(deadline_ms);
  }

  add(exit) {
    this.#exits.push(exit);
    this.#wake();
  }

  finish(end) {
    this.end ??= end;
    this.#wake();
  }

  fail(error) {
    this.failure ??= error;
    this.#wake();
  }

  /** @returns {AsyncGenerator<import("./anytime.js").Exit>} Throws `Refused`. */
  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (this.#exits.length) yield this.#exits.shift();
      if (this.failure) throw this.failure;
      if (this.end) return;
      await new Promise((wake) => (this.#wake = wake));
    }
  }
}

/** Decode a `delta`: zlib of the new map XOR `held`, the map before it (none at first, which counts as zeros). */
export async function applyDelta(buffer, held) {
  const inflated = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("deflate"));
  const map = new Uint8Array(await new Response(inflated).arrayBuffer());
  if (held) for (let at = 0; at < map.length; at++) map[at] ^= held[at];
  return map;
}
