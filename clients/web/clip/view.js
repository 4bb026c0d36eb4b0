// The view from the camera: the surfaces of the street, pixel by pixel. Each pixel gets a colour and a class.
import { chance } from "./chance.js";
import { FENCE_ABOVE_M, LENGTH_M, RAILING_M, KERB_M, ground, houses, railing } from "./surfaces.js";

export const CLASSES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"];
export const CLASS = Object.fromEntries(CLASSES.map((name, label) => [name, label]));
export const FAR_M = 130;
const EYE_M = 1.55;
const LEFT_M = -6.4; // the fronts of the houses on the left
const RAILING_X_M = 7.6;
const RIGHT_M = 19; // the fronts behind the park
const HAZE = [206, 222, 226]; // the colour of what is far away
const GROUND_HAZE = [130, 136, 142];

/** The opaque pixel of a class in a picture of classes. */
export const labelled = (label) => 0xff000000 | (16 * label + 8);

/** Pixels of a picture and of its classes, with the canvas of each. */
class Sheet {
  constructor(width, height) {
    this.colours = new Layer(width, height);
    this.labels = new Layer(width, height);
  }

  done() {
    this.colours.put();
    this.labels.put();
  }
}

class Layer {
  constructor(width, height) {
    this.canvas = Object.assign(document.createElement("canvas"), { width, height });
    this.brush = this.canvas.getContext("2d");
    this.image = new ImageData(width, height);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  put() {
    this.brush.putImageData(this.image, 0, 0);
  }
}

export class View {
  #ground = ground();
  #left = houses(21, 11.5, 0.3);
  #right = houses(8, 12.5, 0.12, 20);
  #railing = railing();
  #noise;

  constructor(width, height) {
    Object.assign(this, { width, height, focal: 0.95 * width, middle: 0.56 * width, horizon: 0.49 * height });
    this.back = new Sheet(width, height);
    this.front = new Sheet(width, height); // the railing: trees stand between the two
    const random = chance(2);
    this.#noise = Float32Array.from({ length: 65536 }, () => 7 * (random() + random() - 1));
  }

  /** Left, top, width and height on the screen of something `away` metres off that stands on the ground. */
  place(x_m, away_m, wide_m, tall_m) {
    const scale = this.focal / away_m;
    return [this.middle + (x_m - wide_m / 2) * scale, this.horizon + (EYE_M - tall_m) * scale, wide_m * scale, tall_m * scale];
  }

  /** Draw the surfaces from `along` metres down the street. */
  draw(along) {
    this.#sky();
    for (let column = 0; column < this.width; column++) this.#fronts(column, along);
    this.#floor(along);
    this.front.colours.pixels.fill(0);
    this.front.labels.pixels.fill(0);
    for (let column = Math.ceil(this.middle) + 1; column < this.width; column++) {
      const away = (RAILING_X_M * this.focal) / (column + 0.5 - this.middle);
      this.#upright(this.front, column, this.#railing, away, away + along, RAILING_M, away / this.focal, FENCE_ABOVE_M, CLASS.fence);
    }
    this.back.done();
    this.front.done();
  }

  #sky() {
    const { colours, labels } = this.back;
    for (let row = 0; row < this.height; row++) {
      const low = Math.min(1, row / this.horizon);
      const [red, green, blue] = [176 + 70 * low, 232 + 20 * low, 253];
      const colour = 0xff000000 | (blue << 16) | (green << 8) | red;
      colours.pixels.fill(colour, row * this.width, (row + 1) * this.width);
      labels.pixels.fill(labelled(CLASS.sky), row * this.width, (row + 1) * this.width);
    }
  }

  /** One column of the houses to the left or the right, or of those that close the street far away. */
  #fronts(column, along) {
    const slope = (column + 0.5 - this.middle) / this.focal;
    const [texture, wall_m, top_m] = slope < 0 ? [this.#left, LEFT_M, 11.5] : [this.#right, RIGHT_M, 12.5];
    const away = Math.min(FAR_M, wall_m / (slope || 1e-9));
    const across = away < FAR_M ? away + along : slope * FAR_M + 30;
    const stretch = away < FAR_M ? away / Math.abs(wall_m) : 1;
    this.#upright(this.back, column, texture, away, across, top_m, (away / this.focal) * Math.sqrt(Math.max(1, stretch)));
  }

  /** One column of something that stands on the ground and is `tall` metres high: a building, above `split` metres a `label`. */
  #upright({ colours, labels }, column, texture, away, across, tall, metres, split = Infinity, label = 0) {
    const [low, high] = [labelled(CLASS.building), labelled(label)];
    const scale = this.focal / away;
    const top = Math.max(0, Math.ceil(this.horizon + (EYE_M - tall) * scale - 0.5));
    const foot = Math.min(this.height, Math.ceil(this.horizon + EYE_M * scale - 0.5));
    const haze = 0.55 * Math.min(1, away / FAR_M) ** 1.5;
    texture.focus(metres);
    for (let row = top, at = top * this.width + column; row < foot; row++, at += this.width) {
      const above = EYE_M - (row + 0.5 - this.horizon) / scale;
      texture.read(across, tall - above);
      if (texture.colour[3] < 128) continue;
      colours.pixels[at] = blended(texture.colour, HAZE, haze, this.#noise[(at * 7 + 31 * row) & 65535]);
      labels.pixels[at] = above > split ? high : low;
    }
  }

  /** The ground, row by row, wherever no house stands in front of it. */
  #floor(along) {
    const { colours, labels } = this.back;
    const [road, pavement] = [labelled(CLASS.road), labelled(CLASS.pavement)];
    for (let row = Math.ceil(this.horizon + 1); row < this.height; row++) {
      const away = (EYE_M * this.focal) / (row + 0.5 - this.horizon);
      if (away > FAR_M) continue;
      const metre = away / this.focal;
      const haze = 0.5 * (away / FAR_M);
      this.#ground.focus(metre * Math.sqrt(Math.max(1, away / EYE_M) / 2));
      const first = Math.max(0, Math.ceil(this.middle + LEFT_M / metre));
      for (let column = first, at = row * this.width + first; column < this.width; column++, at++) {
        const x = (column + 0.5 - this.middle) * metre;
        if (x > RIGHT_M) break;
        this.#ground.read(x + 12, -(away + along));
        colours.pixels[at] = blended(this.#ground.colour, GROUND_HAZE, haze, this.#noise[(at * 5 + 17 * row) & 65535]);
        labels.pixels[at] = x > KERB_M[0] && x < KERB_M[1] ? road : pavement;
      }
    }
  }
}

/** The pixel of a colour behind so much haze, with noise. */
function blended(colour, haze, share, noise) {
  const red = clamp(colour[0] + (haze[0] - colour[0]) * share + noise);
  const green = clamp(colour[1] + (haze[1] - colour[1]) * share + noise);
  const blue = clamp(colour[2] + (haze[2] - colour[2]) * share + noise);
  return 0xff000000 | (blue << 16) | (green << 8) | red;
}

const clamp = (value) => (value < 0 ? 0 : value > 255 ? 255 : value & 255);
export { LENGTH_M };
