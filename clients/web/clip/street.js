// The street: a drive that repeats after some seconds, drawn for any moment of it, with the true class of each pixel.
import { car, cyclist, lamp, post, signal, tree, walker } from "./sprites.js";
import { CLASSES, FAR_M, LENGTH_M, View } from "./view.js";

export { CLASSES };
export const LOOP_S = 12;
const SPEED = LENGTH_M / LOOP_S; // metres a second
const NEAR_M = 2.2;
const STEPS = [-1, -0.4, 0.4, 1]; // how far the legs are apart
const PHASES = [0, 1, 2, 3, 2, 1]; // the steps of a walk, or of pedalling; `pace` makes whole walks of a loop
const DARK = [34, 32, 38];

const standing = (sprite, x, ...places) => places.map((away) => ({ poses: [sprite], x, away, speed: SPEED }));
const moving = (draw, x, away, speed, pace = 2) => ({ poses: walk(draw), x, away, speed, pace });
const riding = (draw, x, away, sway) => ({ poses: walk(draw), x, away, speed: 0, sway, pace: 1.5 });

function walk(draw) {
  const drawn = STEPS.map(draw);
  return PHASES.map((step) => drawn[step]);
}

/** All that stands or moves. `speed` is towards the camera, in metres a second. */
function cast() {
  const trees = [31, 32, 33].map(tree);
  const [lamps, posts, signals] = [lamp(), post(), signal()];
  return [
    ...Array.from({ length: 14 }, (_, place) => standing(trees[place % 3], 10.6 + (place % 2) * 2.6, 3 + place * 5.1)).flat(),
    ...standing(lamps, 6.9, 14, 50),
    ...standing(posts, -4.4, 30),
    ...standing(signals, -4.4, 30),
    ...standing(posts, 5.4, 62),
    ...standing(signals, 5.4, 62),
    ...standing(car("150 156 166", 71), 3.6, 22, 44),
    { poses: [car("46 52 74", 72)], x: -0.6, away: 30, speed: 0, sway: 5 },
    { poses: [car("168 172 178", 73, true)], x: 2.5, away: 120, speed: 2 * SPEED },
    { poses: [car("90 26 28", 74, true)], x: 2.3, away: 62, speed: 2 * SPEED },
    riding((step) => cyclist([96, 92, 96], 81, step), -1.5, 11, 2.2),
    riding((step) => cyclist(DARK, 82, step), -2.5, 15, -1.6),
    moving((step) => walker(DARK, [30, 30, 38], 91, step), -5.2, 26, 5),
    moving((step) => walker([132, 26, 34], [28, 30, 40], 92, step), 6.3, 18, 7),
    moving((step) => walker([48, 50, 60], [36, 34, 36], 93, step), -4.7, 44, 5),
    moving((step) => walker([70, 66, 60], [24, 24, 28], 94, step), 5.8, 40, 5),
    moving((step) => walker(DARK, [40, 44, 62], 95, step), -5.4, 60, 7),
  ];
}

/** Where a member of the cast is at `time`: metres in front of the camera, nearest first. */
function places({ away, speed, sway = 0 }, time) {
  if (!speed) return [away + sway * Math.sin((2 * Math.PI * time) / LOOP_S)];
  const period = speed * LOOP_S;
  const first = (((away - speed * time) % period) + period) % period;
  return Array.from({ length: Math.ceil((FAR_M - first) / period) }, (_, turn) => first + turn * period);
}

export class Street {
  #view;
  #cast = cast();
  #seen = [];
  #labels;

  constructor(width = 480, height = 360) {
    this.#view = new View(width, height);
    this.canvas = Object.assign(document.createElement("canvas"), { width, height });
    this.#labels = Object.assign(document.createElement("canvas"), { width: width >> 1, height: height >> 1 });
  }

  /** Draw a moment, in seconds, into `canvas`. */
  draw(seconds) {
    const time = seconds % LOOP_S;
    this.#view.draw(SPEED * time);
    this.#seen = this.#cast
      .flatMap((actor) => places(actor, time).map((away) => ({ away, x: actor.x, sprite: pose(actor, time) })))
      .filter(({ away }) => away > NEAR_M && away < FAR_M)
      .sort((a, b) => b.away - a.away);
    this.#compose(this.canvas.getContext("2d"), "colours");
    return this.canvas;
  }

  /** The classes of the moment drawn last, at half its size: {labels: a Uint8Array, row by row, names: of the labels, width, height}. */
  truth() {
    const { width, height } = this.#labels;
    const brush = this.#labels.getContext("2d", { willReadFrequently: true });
    brush.imageSmoothingEnabled = false;
    brush.setTransform(0.5, 0, 0, 0.5, 0, 0);
    this.#compose(brush, "labels");
    const { data } = brush.getImageData(0, 0, width, height);
    const labels = new Uint8Array(width * height);
    for (let at = 0; at < labels.length; at++) labels[at] = data[4 * at] >> 4;
    return { labels, names: CLASSES, width, height };
  }

  #compose(brush, skin) {
    const { back, front } = this.#view;
    brush.drawImage(back[skin].canvas, 0, 0);
    const behind = ({ x }) => x > 7.6;
    for (const seen of this.#seen.filter(behind)) this.#stand(brush, skin, seen);
    brush.drawImage(front[skin].canvas, 0, 0);
    for (const seen of this.#seen.filter((one) => !behind(one))) this.#stand(brush, skin, seen);
  }

  #stand(brush, skin, { sprite, x, away }) {
    sprite.draw(brush, skin, this.#view.place(x, away, sprite.wide_m, sprite.tall_m));
  }
}

function pose({ poses, pace = 0 }, time) {
  return poses[Math.floor((time * pace * poses.length) / 2) % poses.length];
}
