// A player: it sends the frames of a clip, one at a time, and shows each with its mask on a stage.
import { Newest } from "./newest.js";
import { Held } from "./held.js";
import { Tally, meanIou } from "./tally.js";

const SCORED = 3; // every third frame is compared with the truth

export class Player {
  tally = new Tally();
  frame = null; // the frame on the stage
  held = new Held(); // its exits
  dropped = 0;
  failure = null; // why the last frame had no exit
  #server;
  #stage;
  #ask;
  #changed;
  #newest = null;
  #mask = null; // {frame, exit}: what is painted
  #next = null; // the same, to be painted with the next refresh of the screen
  #timers = new Map(); // the frames that wait for their masks, by the timer that shows them without

  /**
   * `ask()` gives {options, deadline_ms, dense, look} at any time: what a frame is sent with, until when its picture waits
   * for its mask, what the whole network takes, and how to paint. `changed(error)` is called when a frame has ended.
   */
  constructor(server, stage, ask, changed) {
    [this.#server, this.#stage, this.#ask, this.#changed] = [server, stage, ask, changed];
  }

  get running() {
    return this.#newest !== null;
  }

  start() {
    this.stop();
    this.tally = new Tally();
    this.frame = this.#mask = this.#next = null;
    this.held = new Held();
    this.dropped = 0;
    this.failure = null;
    this.#stage.clear();
    this.#follow((this.#newest = new Newest()));
  }

  stop() {
    this.#newest?.clear();
    this.#newest?.end();
    this.#newest = null;
    for (const timer of this.#timers.keys()) this.#waited(timer);
  }

  /** A new frame has come. Its picture is shown with its mask, or without one once the deadline is over. */
  offer(frame) {
    if (!this.#newest) return;
    if (frame.truth && this.#mask?.exit.mask && frame.number % SCORED === 0) {
      const right = meanIou(this.#mask.exit, frame.truth, this.#ask().look.labels.names);
      if (right !== null) this.tally.mark(right, frame.at_ms);
    }
    this.#newest.put(frame);
    this.dropped = this.#newest.dropped;
    const timer = setTimeout(() => {
      this.#waited(timer);
      if (frame.number > (this.frame?.number ?? 0)) this.#show(frame);
    }, this.#ask().deadline_ms);
    this.#timers.set(timer, frame);
    frame.awaited++;
  }

  /** The frame of this timer waits no longer: its picture may be drawn over. */
  #waited(timer) {
    clearTimeout(timer);
    this.#timers.get(timer).awaited--;
    this.#timers.delete(timer);
  }

  /** Show at once what was there `ms` after the frame came. Before its first exit the mask of a frame before it stays. */
  look(ms) {
    const exit = this.held.at(ms);
    if (exit) this.#paint({ frame: this.frame, exit });
    else if (this.#mask) this.#stage.age(Math.max(1, performance.now() - this.#mask.frame.at_ms));
  }

  async #follow(newest) {
    try {
      let last = null; // of the frame that is being answered
      for await (const { frame, exit, run } of this.#server.frames(newest, () => this.#ask().options)) {
        if (newest !== this.#newest) return run.cancel();
        this.failure = exit ? null : run.failure;
        if (exit) this.#arrived(frame, exit);
        if (last && last.frame !== frame) this.#count(last);
        last = { frame, exit };
      }
    } catch (error) {
      if (newest !== this.#newest) return;
      this.stop();
      this.#changed(error);
    }
  }

  #count({ exit }) {
    this.tally.add(exit, this.#ask().dense, performance.now());
    this.#changed(null);
  }

  #arrived(frame, exit) {
    if (!this.#next) requestAnimationFrame(() => this.#refresh());
    if (this.#next && this.#next.frame.number > frame.number) return;
    this.#next = { frame, exit };
    if (frame.number > (this.frame?.number ?? 0)) this.#show(frame);
    if (frame === this.frame) this.held.add(exit);
  }

  #refresh() {
    const next = this.#next;
    this.#next = null;
    if (next && this.#newest) this.#paint(next);
  }

  #paint(mask) {
    this.#mask = mask;
    this.#stage.draw(mask.exit, this.#ask().look);
    this.#stage.age(this.frame.at_ms - mask.frame.at_ms);
  }

  /** Show the picture of a frame; the mask that is there gets older. */
  #show(frame) {
    this.frame = frame;
    this.held = new Held();
    this.#stage.show(frame.picture);
    if (this.#mask) this.#stage.age(frame.at_ms - this.#mask.frame.at_ms);
  }
}
