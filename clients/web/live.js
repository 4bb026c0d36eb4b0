// A clip that runs: a source of frames, the player by the deadline, and beside it the one that waits for the whole network.
import { Figures } from "./figures.js";
import { Player } from "./player.js";
import { SHOWN_PX, fitted } from "./sources.js";

const WRITTEN_MS = 500; // how often the numbers are written

export class Live {
  players;
  #figures = [...document.querySelectorAll(".figures")].map((list) => new Figures(list));
  #source = null;
  #beside = false;
  #on;
  #written_ms = 0;

  /** `ask(index)`: see `Player`. Calls `on.counted(figures)` now and then, `on.answered(exits)` for each frame, and `on.failed(error)`. */
  constructor(server, stages, ask, on) {
    this.#on = on;
    this.players = stages.map((stage, index) => new Player(server, stage, () => ask(index), (error) => (error ? on.failed(error) : this.#count(index))));
    document.addEventListener("visibilitychange", () => (document.hidden ? this.#source?.stop() : this.#source?.start().catch(on.failed)));
  }

  get open() {
    return this.#source !== null;
  }

  /** What a program would follow instead of this clip, or null. */
  get path() {
    return this.#source?.path ?? null;
  }

  /** What the frames of this clip are offered to. */
  offer = (frame) => this.players.forEach((player) => player.offer(frame));

  /** Play a source. Returns whether it still is the one to play once it has begun; raises what the source raises. */
  async play(source) {
    this.close();
    this.#source = source;
    source.lost = (error) => {
      if (source !== this.#source) return;
      this.close();
      this.#on.failed(error);
    };
    this.players[0].start();
    this.beside(this.#beside);
    try {
      if (!document.hidden) await source.start(); // else once somebody sees it
    } catch (error) {
      if (source !== this.#source) return false;
      this.close();
      throw error;
    }
    return source === this.#source;
  }

  /** Turn a dial that nobody has touched to the next frame, or to where a first guess can be expected. */
  suggest(dial) {
    if (!dial.touched) dial.set(Math.max(this.#source.interval_ms, 1.5 * dial.first_ms));
  }

  /** Let the whole network answer beside the deadline, or not. */
  beside(wanted) {
    this.#beside = wanted;
    const [, whole] = this.players;
    if (wanted && this.open && !whole.running) whole.start();
    if (!wanted) whole.stop();
  }

  /** Stop, and give back the picture on the stage (a canvas), or null. */
  hold() {
    const { frame } = this.players[0];
    const picture = frame && fitted(frame.picture, SHOWN_PX);
    if (picture) this.close();
    return picture;
  }

  close() {
    this.#source?.stop();
    this.#source?.close?.();
    this.#source = null;
    for (const player of this.players) player.stop();
    for (const figures of this.#figures) figures.clear();
  }

  #count(index) {
    if (index === 0) this.#on.answered(this.players[0].held.all);
    const now_ms = performance.now();
    if (now_ms - this.#written_ms < WRITTEN_MS) return;
    this.#written_ms = now_ms;
    const found = this.players.map(({ tally }) => tally.figures(now_ms));
    this.players.forEach(({ running, tally, dropped }, each) => running && this.#figures[each].write(found[each], tally.saved, dropped));
    this.#on.counted(found[0]);
  }
}
