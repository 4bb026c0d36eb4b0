// A texture: a drawing with its copies of half the size, a quarter and so on, for surfaces that are further away.
import { sheet } from "./chance.js";

/** The canvas and its halves, down to a few pixels. */
export function halves(canvas) {
  const levels = [canvas];
  while (Math.min(levels.at(-1).width, levels.at(-1).height) > 8) {
    const { width, height } = levels.at(-1);
    const brush = sheet(width >> 1, height >> 1);
    brush.drawImage(levels.at(-1), 0, 0, width >> 1, height >> 1);
    levels.push(brush.canvas);
  }
  return levels;
}

export class Texture {
  #levels;
  #level;
  colour = new Float64Array(4); // red, green, blue and opacity that were read last, 0 to 255

  /** `canvas` shows `density` pixels a metre. It repeats from left to right, and from top to bottom if `tiled`. */
  constructor(canvas, density, tiled = false) {
    this.density = density;
    this.tiled = tiled;
    this.#levels = halves(canvas).map((level, depth) => {
      const { width, height } = level;
      const { data } = level.getContext("2d").getImageData(0, 0, width, height);
      return { data, width, height, density: density / 2 ** depth };
    });
    this.#level = this.#levels[0];
  }

  /** Choose the copy for a surface of which one pixel on the screen shows `metres`. */
  focus(metres) {
    const depth = Math.round(Math.log2(Math.max(1, metres * this.density)));
    this.#level = this.#levels[Math.min(depth, this.#levels.length - 1)];
  }

  /** Read the colour at so many metres from the left and from the top, blended from four pixels. */
  read(across, down) {
    const { data, width, height, density } = this.#level;
    const x = across * density - 0.5;
    const y = down * density - 0.5;
    const left = Math.floor(x);
    const top = Math.floor(y);
    const right = x - left;
    const low = y - top;
    const x0 = ((left % width) + width) % width;
    const x1 = x0 + 1 === width ? 0 : x0 + 1;
    let y0 = top < 0 ? 0 : top < height ? top : height - 1;
    let y1 = top + 1 < 0 ? 0 : top + 1 < height ? top + 1 : height - 1;
    if (this.tiled) {
      y0 = ((top % height) + height) % height;
      y1 = y0 + 1 === height ? 0 : y0 + 1;
    }
    const a = 4 * (y0 * width + x0);
    const b = 4 * (y0 * width + x1);
    const c = 4 * (y1 * width + x0);
    const d = 4 * (y1 * width + x1);
    const wb = right * (1 - low);
    const wc = (1 - right) * low;
    const wd = right * low;
    const wa = 1 - wb - wc - wd;
    const { colour } = this;
    colour[0] = data[a] * wa + data[b] * wb + data[c] * wc + data[d] * wd;
    colour[1] = data[a + 1] * wa + data[b + 1] * wb + data[c + 1] * wc + data[d + 1] * wd;
    colour[2] = data[a + 2] * wa + data[b + 2] * wb + data[c + 2] * wc + data[d + 2] * wd;
    colour[3] = data[a + 3] * wa + data[b + 3] * wb + data[c + 3] * wc + data[d + 3] * wd;
  }
}
