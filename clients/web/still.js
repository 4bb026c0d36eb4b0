// A still picture: its exits are held, so that the dial can show what was there at any moment; or plays them slowly.
import { Held } from "./held.js";
import { fitted, fittedSize, jpeg } from "./sources.js";

const SLOWLY_S = 7; // how long the exits play

export class Still {
  held = new Held();
  photo = null; // the canvas of the picture
  #server;
  #on;
  #run = null;
  #playing = 0;

  /** Calls `on.begun()`, `on.exit(exit)`, `on.ended(end)` or `on.failed(error)` for each run, and `on.played(ms)` while exits play. */
  constructor(server, on) {
    [this.#server, this.#on] = [server, on];
  }

  get running() {
    return this.#run !== null;
  }

  get playing() {
    return this.#playing !== 0;
  }

  /** Use another picture (a canvas). */
  use(photo) {
    this.stop();
    this.photo = photo;
    this.held = new Held();
  }

  /** The size in which the picture is sent if its longer side may have `limit_px` pixels. */
  size(limit_px) {
    return fittedSize(this.photo, limit_px);
  }

  /** Ask for the exits. Those that are held are forgotten if `afresh`: the request is another one. */
  async run(options, limit_px, afresh) {
    this.stop();
    if (afresh) this.held = new Held();
    const run = (this.#run = this.#server.predict(jpeg(fitted(this.photo, limit_px), 0.95), options));
    this.#on.begun();
    try {
      for await (const exit of run) {
        if (run !== this.#run) return;
        this.held.add(exit);
        this.#on.exit(exit);
      }
      if (run !== this.#run) return;
      this.#run = null;
      this.#on.ended(run.end);
    } catch (error) {
      if (run !== this.#run) return;
      this.#run = null;
      this.#on.failed(error);
    }
  }

  /** Ask the server to stop; the run ends by itself. */
  cancel() {
    this.#run?.cancel();
  }

  /** Move the deadline of the run to `deadline_ms` from now. Returns whether there is one that can be moved. */
  deadline(deadline_ms) {
    return this.#run?.deadline(deadline_ms) ?? false;
  }

  /** Forget the run, and stop playing. */
  stop() {
    this.pause();
    this.#run?.cancel();
    this.#run = null;
  }

  /** Play the exits that are held in slow motion, from `from_ms` to the last. */
  play(from_ms) {
    this.pause();
    const to_ms = this.held.last.elapsed_ms;
    const began = performance.now();
    const tick = () => {
      const share = Math.min(1, (performance.now() - began) / (1000 * SLOWLY_S));
      this.#playing = share < 1 ? requestAnimationFrame(tick) : 0;
      this.#on.played(from_ms + share * (to_ms - from_ms));
    };
    this.#playing = requestAnimationFrame(tick);
  }

  pause() {
    cancelAnimationFrame(this.#playing);
    this.#playing = 0;
  }
}
