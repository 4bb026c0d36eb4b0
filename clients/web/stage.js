// The stage stacks three canvases: the photo, its mask or skeleton, and the hatched unsure area.

/** The CSS colour of class or joint `index`: the model's own, or else a hue that differs from its neighbours'. */
export function colour(palette, index) {
  return palette[index] ? `rgb(${palette[index].join(" ")})` : `hsl(${(index * 222.5) % 360} 65% 55%)`;
}

/** Draw a mask (Uint8Array, one class number for each pixel) into `canvas`. `only` leaves out every other class. */
export function paintMask(canvas, { mask, size: [height, width] }, palette, only = null) {
  const pixels = new Uint32Array(width * height);
  const colours = palette.map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
  for (let i = 0; i < pixels.length; i++)
    if (only === null || mask[i] === only) pixels[i] = colours[mask[i]] ?? 0xff808080;
  put(canvas, pixels, width, height);
}

/** Draw limbs and joints into `canvas`, at the size of the photo. Joints with a score below 0.1 are left out. */
export function paintSkeleton(canvas, { keypoints, size: [height, width] }, { palette, skeleton }, only = null) {
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
    brush.fillStyle = colour(palette, joint);
    brush.beginPath();
    brush.arc(x, y, unit * (joint === only ? 2.6 : 1.3), 0, 7);
    brush.fill();
    brush.stroke();
  }
}

/** Hatch the pixels where `unsure` is 1. */
function paintUnsure(canvas, unsure, [height, width]) {
  const pixels = new Uint32Array(width * height);
  const period = Math.max(6, Math.round(width / 60));
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++)
      if (unsure?.[i]) pixels[i] = (x + y) % period < period / 3 ? 0xc8ffffff : 0x30000000;
  put(canvas, pixels, width, height);
}

function put(canvas, pixels, width, height) {
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
}

export class Stage {
  #layers = document.querySelector("#layers");
  #photo = document.querySelector("#photo");
  #mask = document.querySelector("#mask");
  #unsure = document.querySelector("#unsure");
  #badge = document.querySelector("#badge");
  #tip = document.querySelector("#tip");
  #exit = null;
  #labels = null;

  constructor() {
    this.#layers.addEventListener("pointermove", (event) => this.#name(event));
    this.#layers.addEventListener("pointerleave", () => (this.#tip.hidden = true));
  }

  /** Show a new photo (a canvas) and remove the answer to the one before. */
  show(photo) {
    Object.assign(this.#photo, { width: photo.width, height: photo.height });
    this.#photo.getContext("2d").drawImage(photo, 0, 0);
    this.#layers.style.setProperty("--ratio", photo.width / photo.height);
    this.#layers.hidden = false;
    this.clear();
  }

  clear() {
    this.#exit = null;
    this.#badge.hidden = this.#tip.hidden = true;
    for (const canvas of [this.#mask, this.#unsure]) canvas.width = canvas.height = 1;
  }

  /** Draw an exit over the photo; `only` picks out one class or joint. */
  draw(exit, labels, only = null) {
    [this.#exit, this.#labels] = [exit, labels];
    if (exit.mask) paintMask(this.#mask, exit, labels.palette, only);
    else paintSkeleton(this.#mask, exit, labels, only);
    paintUnsure(this.#unsure, exit.unsureMap, exit.size);
    this.#badge.textContent = `Exit ${exit.exit} · ${exit.elapsed_ms.toFixed(0)} ms`;
    this.#badge.hidden = false;
  }

  opacity(share) {
    this.#mask.style.opacity = share;
  }

  hatch(shown) {
    this.#unsure.hidden = !shown;
  }

  /** Show the name of the class under the pointer. */
  #name({ clientX, clientY }) {
    this.#tip.hidden = !this.#exit?.mask;
    if (this.#tip.hidden) return;
    const [height, width] = this.#exit.size;
    const box = this.#photo.getBoundingClientRect();
    const x = Math.min(width - 1, Math.floor(((clientX - box.left) / box.width) * width));
    const y = Math.min(height - 1, Math.floor(((clientY - box.top) / box.height) * height));
    const at = y * width + x;
    this.#tip.textContent = this.#labels.names[this.#exit.mask[at]] + (this.#exit.unsureMap?.[at] ? " · unsure" : "");
    Object.assign(this.#tip.style, { left: `${clientX - box.left}px`, top: `${clientY - box.top}px` });
  }
}
