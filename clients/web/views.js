// How an exit is painted: its classes, its confidence, what is still computed, which exit decided each pixel; or a skeleton.

/** What may be looked at, with the further map that it needs and a line that explains it. */
export const VIEWS = {
  mask: { name: "Classes", map: "unsure", text: "What each pixel shows." },
  active: { name: "Still computed", map: "unsure", text: "Bright: decided, and left out from here on. Dark: the next exit still computes it." },
  confidence: { name: "Confidence", map: "confidence", text: "Clear: the model is sure of its class. Orange: it may still change its mind." },
  exit: { name: "Deciding exit", map: "exit", text: "Which exit decided each pixel: the darker, the later." },
};

const DIM = 0x24; // of 255: how much of its colour a class keeps while another is picked
const EXITS = [[199, 233, 180], [65, 182, 196], [34, 94, 168], [8, 29, 88], [40, 0, 60], [20, 0, 20]];

/** The CSS colour of class or joint `index`: the model's own, or else a hue that differs from its neighbours'. */
export function colour(palette, index) {
  return palette[index] ? `rgb(${palette[index].join(" ")})` : `hsl(${(index * 222.5) % 360} 65% 55%)`;
}

/** The CSS colour of what exit `number` decided. */
export const exitColour = (number) => `rgb(${EXITS[Math.min(number, EXITS.length) - 1].join(" ")})`;

/** Paint an exit into `canvas` as `view`. `only`: the class or joint that stands out. */
export function paint(canvas, exit, { palette, skeleton }, view = "mask", only = null) {
  if (exit.keypoints) return paintSkeleton(canvas, exit, { palette, skeleton }, only);
  const [height, width] = exit.size;
  const pixels = new Uint32Array(width * height);
  const { mask, extra } = exit;
  if (view === "mask" || exit.kind !== VIEWS[view].map) {
    const colours = table((label) => packed(palette[label] ?? [128, 128, 128], only === null || label === only ? 255 : DIM));
    for (let at = 0; at < pixels.length; at++) pixels[at] = colours[mask[at]];
  } else if (view === "active") {
    const colours = table((label) => packed(palette[label] ?? [128, 128, 128], 255));
    for (let at = 0; at < pixels.length; at++) pixels[at] = extra[at] ? 0xe6100c0a : colours[mask[at]];
  } else {
    const colours = view === "exit" ? table((number) => packed(EXITS[Math.min(Math.max(number, 1), EXITS.length) - 1], 255)) : table(heat);
    for (let at = 0; at < pixels.length; at++) pixels[at] = colours[extra[at]];
  }
  put(canvas, pixels, width, height);
}

/** Paint darkness over what is still computed, in a quarter of the size: the browser softens it. */
export function paintDim(canvas, { extra, kind, size: [height, width] }) {
  const [low, narrow] = [Math.ceil(height / 4), Math.ceil(width / 4)];
  const pixels = new Uint32Array(narrow * low);
  for (let y = 0, at = 0; y < low; y++)
    for (let x = 0; x < narrow; x++, at++) if (kind === "unsure" && extra[4 * y * width + 4 * x]) pixels[at] = 0xb0100c0a;
  put(canvas, pixels, narrow, low);
}

const packed = ([red, green, blue], opacity) => ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0;
const table = (colourOf) => Uint32Array.from({ length: 256 }, (_, value) => colourOf(value));

/** Clear where the model is sure, and the more orange, the less it is. */
const heat = (value) => packed([255, 96, 20], Math.round(255 * Math.min(1, 2.2 * (1 - value / 255))));

/** Draw limbs and joints, at the size of the photo. Joints with a score below 0.1 are left out. */
function paintSkeleton(canvas, { keypoints, size: [height, width] }, { palette, skeleton }, only) {
  Object.assign(canvas, { width, height });
  const brush = canvas.getContext("2d");
  const unit = Math.max(2, Math.max(width, height) / 130);
  const seen = (joint) => keypoints[joint][2] >= 0.1;
  Object.assign(brush, { lineCap: "round", lineWidth: 1.4 * unit });
  for (const [a, b] of skeleton.filter(([a, b]) => seen(a) && seen(b))) {
    brush.strokeStyle = colour(palette, b);
    brush.beginPath();
    brush.moveTo(keypoints[a][0], keypoints[a][1]);
    brush.lineTo(keypoints[b][0], keypoints[b][1]);
    brush.stroke();
  }
  Object.assign(brush, { strokeStyle: "#fff", lineWidth: unit / 2 });
  for (const [joint, [x, y]] of keypoints.entries()) {
    if (!seen(joint)) continue;
    brush.globalAlpha = only === null || joint === only ? 1 : 0.35;
    brush.fillStyle = colour(palette, joint);
    brush.beginPath();
    brush.arc(x, y, unit * (joint === only ? 2.6 : 1.3), 0, 7);
    brush.fill();
    brush.stroke();
  }
}

function put(canvas, pixels, width, height) {
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
}
