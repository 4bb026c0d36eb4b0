// What stands and moves in the street, each drawn upright once: trees, cars, people, bicycles, lights.
import { chance, grain, sheet } from "./chance.js";
import { halves } from "./texture.js";
import { CLASS, labelled } from "./view.js";

/** A drawing of so many metres, in the sizes that it is needed in, and its outline in the colour of its class. */
class Sprite {
  #make;
  #made = null; // {colours, labels}, each a list of canvases

  constructor(name, wide_m, tall_m, density, seed, draw) {
    Object.assign(this, { wide_m, tall_m });
    this.#make = () => {
      const brush = sheet(Math.ceil(wide_m * density), Math.ceil(tall_m * density));
      brush.scale(density, density);
      brush.lineCap = brush.lineJoin = "round";
      draw(brush, chance(seed));
      brush.resetTransform();
      grain(brush, 14, seed);
      const colours = halves(brush.canvas);
      return { colours, labels: colours.map((level) => outline(level, CLASS[name])) };
    };
  }

  /** Draw it in its colours or as its class, from the copy that is the next larger. It is made when it is first seen. */
  draw(brush, skin, [left, top, width, height]) {
    this.#made ??= this.#make();
    const levels = this.#made[skin];
    const level = levels.findLast((canvas) => canvas.width >= width) ?? levels[0];
    brush.drawImage(level, left, top, width, height);
  }
}

function outline(canvas, label) {
  const { width, height } = canvas;
  const brush = sheet(width, height);
  const drawn = canvas.getContext("2d").getImageData(0, 0, width, height);
  const pixels = new Uint32Array(drawn.data.buffer);
  for (let at = 0; at < pixels.length; at++) pixels[at] = pixels[at] >>> 24 > 96 ? labelled(label) : 0;
  brush.putImageData(drawn, 0, 0);
  return brush.canvas;
}

function fill(brush, colour, ...points) {
  brush.fillStyle = colour;
  brush.beginPath();
  for (const [x, y] of points) brush.lineTo(x, y);
  brush.fill();
}

function round(brush, colour, x, y, wide, tall, radius) {
  brush.fillStyle = colour;
  brush.beginPath();
  brush.roundRect(x, y, wide, tall, radius);
  brush.fill();
}

function line(brush, colour, thick, ...points) {
  Object.assign(brush, { strokeStyle: colour, lineWidth: thick });
  brush.beginPath();
  for (const [x, y] of points) brush.lineTo(x, y);
  brush.stroke();
}

function disc(brush, colour, x, y, radius, tall = radius) {
  brush.fillStyle = colour;
  brush.beginPath();
  brush.ellipse(x, y, radius, tall, 0, 0, 7);
  brush.fill();
}

/** A bare tree in winter. */
export const tree = (seed) =>
  new Sprite("tree", 9, 10, 48, seed, (brush, random) => {
    const grow = (x, y, angle, long, thick, depth) => {
      const to = [x + long * Math.cos(angle), y - long * Math.sin(angle)];
      const tone = 48 + 9 * (7 - depth) + 34 * random();
      line(brush, `rgb(${tone + 8} ${tone} ${tone - 4})`, thick, [x, y], to);
      if (!depth) return;
      for (let twig = depth > 5 ? 4 : 3; twig--; )
        grow(...to, angle + 1.25 * (random() - 0.5) + (0.25 * (1.57 - angle)) * random(), long * (0.66 + 0.2 * random()), Math.max(0.022, thick * 0.58), depth - 1);
    };
    grow(4.5, 10, 1.57, 2.3, 0.34, 7);
  });

/** A car from behind, or from the front with its lights on. */
export const car = (colour, seed, front = false) =>
  new Sprite("car", 1.9, 1.5, 130, seed, (brush) => {
    round(brush, "rgb(8 8 10 / .75)", 0.06, 1.34, 1.78, 0.14, 0.06); // its shadow
    for (const x of [0.14, 1.5]) round(brush, "rgb(14 14 16)", x, 1.05, 0.26, 0.43, 0.06);
    fill(brush, `rgb(${colour})`, [0.32, 0.06], [1.58, 0.06], [1.78, 0.62], [1.84, 0.78], [1.84, 1.18], [0.06, 1.18], [0.06, 0.78], [0.12, 0.62]);
    round(brush, `rgb(${colour})`, 0.3, 0.02, 1.3, 0.3, 0.14);
    fill(brush, front ? "rgb(62 72 82)" : "rgb(26 30 36)", [0.42, 0.14], [1.48, 0.14], [1.64, 0.58], [0.26, 0.58]);
    fill(brush, "rgb(190 205 215 / .35)", [0.5, 0.17], [0.95, 0.17], [0.7, 0.55], [0.34, 0.55]);
    fill(brush, "rgb(255 255 255 / .16)", [0.12, 0.62], [1.78, 0.62], [1.82, 0.74], [0.08, 0.74]);
    round(brush, "rgb(0 0 0 / .35)", 0.08, 1.0, 1.74, 0.2, 0.06);
    const lamp = front ? "rgb(232 236 236)" : "rgb(150 26 24)";
    for (const x of [0.1, 1.48]) round(brush, lamp, x, 0.76, 0.32, 0.17, 0.06);
    if (front) round(brush, "rgb(18 18 20)", 0.55, 0.84, 0.8, 0.16, 0.04);
    round(brush, front ? "rgb(228 228 224)" : "rgb(214 186 70)", 0.68, 1.03, 0.54, 0.12, 0.02);
  });

/** Somebody on foot; `step` from -1 to 1 is how far the legs are apart. */
export const walker = (coat, trousers, seed, step) =>
  new Sprite("pedestrian", 0.8, 1.75, 130, seed, (brush) => {
    const hip = [0.4, 0.92];
    for (const [side, tone] of [[-1, 0.75], [1, 1]]) {
      const colour = `rgb(${trousers.map((value) => value * tone).join(" ")})`;
      line(brush, colour, 0.16, hip, [0.4 + 0.1 * side * step, 1.3], [0.4 + 0.2 * side * step, 1.66]);
      line(brush, "rgb(16 16 18)", 0.1, [0.38 + 0.2 * side * step, 1.7], [0.46 + 0.2 * side * step, 1.7]);
      line(brush, `rgb(${coat.map((value) => value * 0.8).join(" ")})`, 0.12, [0.4 + 0.14 * side, 0.42], [0.4 + 0.2 * side, 0.7], [0.4 + 0.17 * side - 0.1 * step, 0.95]);
    }
    round(brush, `rgb(${coat.join(" ")})`, 0.2, 0.32, 0.4, 0.72, 0.12);
    round(brush, "rgb(0 0 0 / .25)", 0.42, 0.34, 0.18, 0.7, 0.1);
    disc(brush, "rgb(124 92 76)", 0.4, 0.18, 0.1, 0.13);
    disc(brush, "rgb(34 26 22)", 0.4, 0.13, 0.11, 0.11);
  });

/** Somebody on a bicycle, from behind. */
export const cyclist = (coat, seed, step) =>
  new Sprite("bicyclist", 0.8, 1.8, 130, seed, (brush) => {
    line(brush, "rgb(14 14 16)", 0.07, [0.4, 1.1], [0.4, 1.74]);
    line(brush, "rgb(40 40 44)", 0.05, [0.4, 0.9], [0.4, 1.3]);
    disc(brush, "rgb(170 34 26)", 0.4, 1.12, 0.045);
    for (const side of [-1, 1]) {
      line(brush, side < 0 ? "rgb(24 26 36)" : "rgb(32 36 48)", 0.17, [0.4 + 0.09 * side, 0.92], [0.4 + 0.14 * side, 1.22 + 0.09 * side * step]);
      line(brush, "rgb(26 28 38)", 0.12, [0.4 + 0.14 * side, 1.22 + 0.09 * side * step], [0.4 + 0.13 * side, 1.5 + 0.12 * side * step]);
      line(brush, "rgb(206 214 70)", 0.09, [0.4 + 0.13 * side, 1.42 + 0.12 * side * step], [0.4 + 0.13 * side, 1.46 + 0.12 * side * step]);
      line(brush, `rgb(${coat.map((value) => value * 0.75).join(" ")})`, 0.12, [0.4 + 0.17 * side, 0.4], [0.4 + 0.27 * side, 0.72], [0.4 + 0.22 * side, 0.9]);
    }
    round(brush, `rgb(${coat.join(" ")})`, 0.19, 0.3, 0.42, 0.66, 0.14);
    round(brush, "rgb(0 0 0 / .22)", 0.42, 0.32, 0.19, 0.62, 0.1);
    round(brush, "rgb(20 22 30)", 0.25, 0.88, 0.3, 0.16, 0.06);
    disc(brush, "rgb(40 32 30)", 0.4, 0.16, 0.1, 0.14);
    disc(brush, "rgb(36 38 46)", 0.4, 0.11, 0.12, 0.1);
  });

/** A lamp post. */
export const lamp = () =>
  new Sprite("pole", 1.6, 6.4, 50, 61, (brush) => {
    line(brush, "rgb(76 78 76)", 0.13, [0.12, 6.4], [0.12, 3]);
    line(brush, "rgb(84 86 84)", 0.1, [0.12, 3], [0.12, 0.6], [0.3, 0.2], [0.8, 0.12], [1.2, 0.14]);
    round(brush, "rgb(150 152 150)", 1, 0.07, 0.55, 0.15, 0.06);
  });

/** The post of a traffic light, and its box: two sprites, since they are of two classes. */
export const post = () => new Sprite("pole", 0.3, 3.4, 90, 62, (brush) => line(brush, "rgb(92 94 92)", 0.12, [0.15, 0.1], [0.15, 3.4]));
export const signal = () =>
  new Sprite("sign", 0.5, 3.6, 90, 63, (brush) => {
    round(brush, "rgb(18 18 18)", 0.06, 0.04, 0.38, 1.06, 0.06);
    for (const [y, colour] of [[0.22, "70 24 20"], [0.56, "66 52 20"], [0.9, "60 232 160"]]) disc(brush, `rgb(${colour})`, 0.25, y, 0.11);
  });
