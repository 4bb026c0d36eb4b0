// The scale of the deadline dial: positions from 0 to 1000 stand for milliseconds, evenly in their logarithm.

export const POSITIONS = 1000;
const BEYOND = 3; // the scale ends at so many times the last exit's time,
const LEAST_MS = 150; // but not before this: two frames of a clip

export class Scale {
  /** From `first_ms`, the time of the first exit, to well beyond `last_ms`, that of the last one. */
  constructor(first_ms, last_ms) {
    this.first_ms = first_ms;
    this.end_ms = Math.max(LEAST_MS, BEYOND * Math.max(last_ms, 1.2 * first_ms));
  }

  ms(position) {
    const ms = this.first_ms * (this.end_ms / this.first_ms) ** (position / POSITIONS);
    return position === 0 ? ms : +ms.toPrecision(ms < 100 ? 2 : 3);
  }

  position(ms) {
    const share = Math.log(Math.max(ms, this.first_ms) / this.first_ms) / Math.log(this.end_ms / this.first_ms);
    return Math.round(POSITIONS * Math.min(1, share));
  }
}

/** Seconds to each exit of a model for images of this size: as learnt since the start if there is such a size, else as measured at the start. */
export function seconds(model, height, width) {
  const shape = model.task === "pose" ? model.size : [height, width].map((side) => 32 * Math.ceil(side / 32));
  const learnt = model.learnt?.find((cost) => cost.shape[0] === shape[0] && cost.shape[1] === shape[1]);
  const ratio = (shape[0] * shape[1]) / padded(model);
  return learnt ? learnt.exits.map((exit) => exit.seconds) : model.exits.map((exit) => (exit.seconds === null ? null : exit.seconds * ratio));
}

/** Multiply-adds / 1024^3 of the dense network to its last exit, for images of this size. */
export function denseGmacs(model, height, width) {
  const shape = [height, width].map((side) => 32 * Math.ceil(side / 32));
  const ratio = model.task === "pose" ? 1 : (shape[0] * shape[1]) / padded(model);
  return model.exits.at(-1).gmacs * ratio;
}

const padded = ({ size }) => size.reduce((area, side) => area * 32 * Math.ceil(side / 32), 1);

/** "46 ms" or "1.2 s". */
export const readable = (ms) => (ms < 1000 ? `${ms < 10 ? +ms.toFixed(1) : Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
