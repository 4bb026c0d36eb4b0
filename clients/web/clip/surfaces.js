// The drawn surfaces of the street: the ground, the fronts of the houses, and the railing in front of the park.
import { chance, grain, sheet } from "./chance.js";
import { Texture } from "./texture.js";

export const LENGTH_M = 72; // the street repeats after this length
export const KERB_M = [-3.4, 4.6]; // where the road ends, to the left and right of the camera
const GROUND = { density: 32, width_m: 24, length_m: 24 };

/** The ground: asphalt with its markings, and the pavement on both sides. Across 0 is 12 m to the left. */
export function ground() {
  const { density, width_m, length_m } = GROUND;
  const brush = sheet(width_m * density, length_m * density);
  const random = chance(5);
  const px = (metres) => (metres + width_m / 2) * density;
  const tall = length_m * density;
  brush.fillStyle = "rgb(56 56 60)"; // pavement
  brush.fillRect(0, 0, brush.canvas.width, tall);
  for (let y = 0; y < tall; y += 0.6 * density)
    for (let x = 0; x < brush.canvas.width; x += 0.9 * density) {
      const tone = 50 + 14 * random();
      brush.fillStyle = `rgb(${tone} ${tone} ${tone + 5})`;
      brush.fillRect(x, y, 0.9 * density - 1, 0.6 * density - 1);
    }
  brush.fillStyle = "rgb(46 50 60)"; // asphalt
  brush.fillRect(px(KERB_M[0]), 0, (KERB_M[1] - KERB_M[0]) * density, tall);
  for (let patch = 0; patch < 26; patch++) {
    const tone = random() < 0.5 ? "255 255 255" : "0 0 0";
    brush.fillStyle = `rgb(${tone} / ${0.015 + 0.03 * random()})`;
    const [x, y] = [px(KERB_M[0] + 7.4 * random()), tall * random()];
    for (const up of [0, tall, -tall]) brush.fillRect(x, y + up, density * (0.4 + 2 * random()), density * (1 + 7 * random()));
  }
  brush.strokeStyle = "rgb(24 26 30 / .55)"; // cracks
  for (let crack = 0; crack < 5; crack++) {
    brush.beginPath();
    let [x, y] = [px(KERB_M[0] + 1 + 6 * random()), (tall * (crack + random())) / 6];
    brush.moveTo(x, y);
    for (let piece = 0; piece < 8; piece++) brush.lineTo((x += density * (random() - 0.45)), (y += 0.4 * density * random()));
    brush.stroke();
  }
  for (const [kerb, inward] of [[KERB_M[0], 1], [KERB_M[1], -1]]) {
    brush.fillStyle = "rgb(88 88 90)";
    brush.fillRect(px(kerb - inward * 0.1) - 0.1 * density, 0, 0.2 * density, tall);
    brush.fillStyle = "rgb(30 32 36)";
    brush.fillRect(px(kerb + inward * 0.08) - 0.08 * density, 0, 0.16 * density, tall);
    brush.fillStyle = "rgb(128 116 66)"; // double yellow lines
    for (const away of [0.28, 0.48]) brush.fillRect(px(kerb + inward * away), 0, 0.09 * density, tall);
  }
  brush.fillStyle = "rgb(186 190 194)"; // the dashes in the middle
  for (let y = 0; y < length_m; y += 6) brush.fillRect(px(0.75), y * density, 0.14 * density, 2.4 * density);
  grain(brush, 15, 7);
  return new Texture(brush.canvas, density, true);
}

const WALLS = ["102 76 62", "150 148 142", "84 70 62", "116 104 88", "92 94 96", "128 112 92"];
const TRIMS = ["24 34 32", "40 24 24", "22 28 44", "52 50 46", "30 30 32"];

/** A row of houses with shops in their ground floors, `height_m` tall at most. `shade` darkens the whole row. */
export function houses(seed, height_m, shade, density = 28) {
  const brush = sheet(LENGTH_M * density, height_m * density);
  const random = chance(seed);
  const among = (list) => list[Math.floor(random() * list.length)];
  const box = (x, y, wide, tall, colour) => {
    brush.fillStyle = colour;
    brush.fillRect(x * density, (height_m - y - tall) * density, wide * density, tall * density);
  };
  for (let x = 0, wide; x < LENGTH_M; x += wide) {
    wide = LENGTH_M - x < 13 ? LENGTH_M - x : 6 + 5 * random();
    const tall = height_m - 1 - 3.2 * random();
    const wall = among(WALLS);
    box(x, 0, wide, tall, `rgb(${wall})`);
    brush.strokeStyle = "rgb(0 0 0 / .1)"; // courses of brick
    for (let y = (height_m - tall) * density; y < height_m * density; y += 4) {
      brush.beginPath();
      brush.moveTo(x * density, y + 0.5);
      brush.lineTo((x + wide) * density, y + 0.5);
      brush.stroke();
    }
    box(x, tall - 0.35, wide, 0.35, "rgb(58 54 52)"); // the eaves, and a chimney
    box(x + wide * 0.2, tall, 0.9, 1, "rgb(92 66 54)");
    box(x, 0, 0.12, tall, "rgb(0 0 0 / .4)");
    windows(box, random, x, wide, tall);
    shop(box, random, x, wide, among(TRIMS));
  }
  brush.globalCompositeOperation = "source-atop";
  const dusk = brush.createLinearGradient(0, 0, 0, brush.canvas.height);
  dusk.addColorStop(0, `rgb(8 10 16 / ${shade * 0.6})`);
  dusk.addColorStop(1, `rgb(8 10 16 / ${shade})`);
  brush.fillStyle = dusk;
  brush.fillRect(0, 0, brush.canvas.width, brush.canvas.height);
  brush.globalCompositeOperation = "source-over";
  grain(brush, 9, seed);
  return new Texture(brush.canvas, density);
}

function windows(box, random, x, wide, tall) {
  const count = Math.max(2, Math.round(wide / 2.4));
  for (let floor = 3.9; floor + 2 < tall; floor += 2.9)
    for (let place = 0; place < count; place++) {
      const left = x + ((place + 0.5) * wide) / count - 0.55;
      box(left - 0.1, floor - 0.15, 1.3, 1.95, "rgb(188 186 180)");
      box(left, floor, 1.1, 1.7, random() < 0.2 ? "rgb(122 138 150)" : "rgb(34 38 44)");
      box(left + 0.5, floor, 0.1, 1.7, "rgb(170 170 166)");
      box(left, floor + 0.8, 1.1, 0.09, "rgb(170 170 166)");
    }
}

function shop(box, random, x, wide, trim) {
  box(x + 0.15, 0, wide - 0.3, 3.3, `rgb(${trim})`);
  box(x + 0.15, 2.75, wide - 0.3, 0.6, random() < 0.5 ? "rgb(150 150 146)" : "rgb(70 34 34)");
  for (let letter = x + 1; letter < x + wide - 1.4; letter += 0.34)
    if (random() < 0.85) box(letter, 2.87, 0.2, 0.26, "rgb(176 166 140)");
  const panes = Math.max(1, Math.floor((wide - 2.2) / 2.8));
  const pane = (wide - 2.2) / panes;
  box(x + 0.5, 0.1, 1.1, 2.4, "rgb(22 24 28)"); // the door
  box(x + 0.65, 1, 0.8, 1.3, "rgb(70 76 82)");
  for (let place = 0; place < panes; place++) {
    const left = x + 1.9 + place * pane;
    box(left, 0.6, pane - 0.18, 2.05, "rgb(46 46 48)");
    for (let glow = 0; glow < 5; glow++) {
      const tone = random() < 0.4 ? "176 150 112" : "112 120 128";
      box(left + (pane - 1.3) * random(), 0.6 + 1.2 * random(), 0.4 + 0.7 * random(), 0.3 + 0.5 * random(), `rgb(${tone} / ${0.1 + 0.35 * random()})`);
    }
  }
}

export const RAILING_M = 2.3;
const FOOT_M = 0.75;

/** A railing on a low wall. Above the wall, `label` is that of a fence. */
export function railing(density = 40) {
  const length_m = 9;
  const brush = sheet(length_m * density, RAILING_M * density);
  const foot = (RAILING_M - FOOT_M) * density;
  brush.fillStyle = "rgb(20 20 20 / .55)"; // the shade of the hedge behind the bars
  brush.fillRect(0, 0.25 * density, brush.canvas.width, foot);
  brush.fillStyle = "rgb(22 22 24)";
  for (let x = 0; x < length_m; x += 0.15) brush.fillRect(x * density, 0, 0.045 * density, foot);
  for (const y of [0.2, 1.3]) brush.fillRect(0, y * density, brush.canvas.width, 0.07 * density);
  const random = chance(3);
  for (let y = foot; y < RAILING_M * density; y += 0.15 * density)
    for (let x = 0; x < brush.canvas.width; x += 0.3 * density) {
      const tone = 74 + 30 * random();
      brush.fillStyle = `rgb(${tone} ${tone - 4} ${tone - 12})`;
      brush.fillRect(x, y, 0.3 * density - 1, 0.15 * density - 1);
    }
  grain(brush, 16, 4);
  return new Texture(brush.canvas, density);
}

export const FENCE_ABOVE_M = FOOT_M;
