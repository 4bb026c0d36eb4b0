// Chance with a seed: every visit draws the same street.

/** A function that returns pseudo-random numbers in [0, 1) (mulberry32). */
export function chance(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

/** Add grain to a drawing: each pixel that is not clear gets lighter or darker by up to `strength` of 255. */
export function grain(brush, strength, seed) {
  const { width, height } = brush.canvas;
  const drawn = brush.getImageData(0, 0, width, height);
  const random = chance(seed);
  for (let at = 0; at < drawn.data.length; at += 4) {
    if (drawn.data[at + 3] === 0) continue;
    const change = (random() + random() - 1) * strength;
    for (let channel = at; channel < at + 3; channel++) drawn.data[channel] += change;
  }
  brush.putImageData(drawn, 0, 0);
}

/** A drawing of this size in pixels: its 2-D context. */
export function sheet(width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  return canvas.getContext("2d", { willReadFrequently: true });
}
