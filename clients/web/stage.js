// A stage: a picture with an exit painted over it, the badge that tells which, and the name of the class under the pointer.
import { readable } from "./scale.js";
import { paint, paintDim } from "./views.js";

export class Stage {
  #part;
  #exit = null;
  #look = null; // {labels, view, only}
  #later = null; // the exit that shines through

  /** `figure` holds canvases of the classes photo, mask, next and dim, and elements of the classes badge and tip. */
  constructor(figure) {
    this.#part = Object.fromEntries(["layers", "photo", "mask", "next", "dim", "badge", "tip"].map((name) => [name, figure.querySelector(`.${name}`)]));
    this.#part.layers.addEventListener("pointermove", (event) => this.#name(event));
    this.#part.layers.addEventListener("pointerleave", () => (this.#part.tip.hidden = true));
  }

  /** The size of the picture on the stage. */
  get size() {
    return { width: this.#part.photo.width, height: this.#part.photo.height };
  }

  /** The exit on the stage, or null. */
  get exit() {
    return this.#exit;
  }

  /** Show a picture (a canvas). What is painted over it stays. */
  show(picture) {
    const { photo, layers } = this.#part;
    if (photo.width !== picture.width || photo.height !== picture.height) {
      Object.assign(photo, { width: picture.width, height: picture.height });
      layers.style.setProperty("--ratio", picture.width / picture.height);
    }
    const brush = photo.getContext("2d");
    brush.globalCompositeOperation = "copy"; // a picture before does not shine through one that is partly clear
    brush.drawImage(picture, 0, 0);
  }

  /** Remove what is painted over the picture. */
  clear() {
    this.#exit = this.#later = null;
    this.#part.badge.hidden = this.#part.tip.hidden = true;
    for (const name of ["mask", "next", "dim"]) this.#part[name].width = this.#part[name].height = 1;
    this.age(0);
  }

  /** Paint an exit. `look`: {labels, view, only}, see `paint`. */
  draw(exit, look) {
    const same = this.#exit === exit && this.#look?.view === look.view && this.#look.only === look.only;
    [this.#exit, this.#look] = [exit, look];
    this.#part.next.style.opacity = 0;
    if (same) return;
    this.#later = null; // it is to be painted in the same way
    paint(this.#part.mask, exit, look.labels, look.view, look.only);
    paintDim(this.#part.dim, exit);
  }

  /** Let a later exit shine through: `share` of it, from 0 to 1. */
  blend(exit, share) {
    const { next } = this.#part;
    if (this.#later !== exit) paint(next, exit, this.#look.labels, this.#look.view, this.#look.only);
    this.#later = exit;
    next.style.opacity = `calc(var(--mask) * ${share})`;
  }

  /** What is painted is `ms` older than the picture: it is dimmed, and the badge tells. 0: it belongs to the picture. */
  age(ms) {
    this.#part.layers.classList.toggle("old", ms > 0);
    if (!this.#exit) return;
    const { exit, elapsed_ms } = this.#exit;
    this.#say(ms > 0 ? `Exit ${exit} · ${readable(ms)} old` : `Exit ${exit} · ${readable(elapsed_ms)}`);
  }

  /** The picture with what is painted over it, or what is painted alone: a canvas of the picture's size. */
  copy({ overlay }) {
    const { photo, mask } = this.#part;
    const canvas = Object.assign(document.createElement("canvas"), overlay ? this.size : { width: mask.width, height: mask.height });
    const brush = canvas.getContext("2d");
    if (overlay) brush.drawImage(photo, 0, 0);
    if (overlay) brush.globalAlpha = +getComputedStyle(mask).opacity;
    brush.imageSmoothingEnabled = false;
    brush.drawImage(mask, 0, 0, canvas.width, canvas.height);
    return canvas;
  }

  #say(text) {
    if (this.#part.badge.textContent !== text) this.#part.badge.textContent = text;
    this.#part.badge.hidden = false;
  }

  #name({ clientX, clientY }) {
    const { tip, photo } = this.#part;
    tip.hidden = !this.#exit?.mask;
    if (tip.hidden) return;
    const [height, width] = this.#exit.size;
    const box = photo.getBoundingClientRect();
    const x = Math.min(width - 1, Math.floor(((clientX - box.left) / box.width) * width));
    const y = Math.min(height - 1, Math.floor(((clientY - box.top) / box.height) * height));
    const label = this.#exit.mask[y * width + x];
    tip.textContent = this.#look.labels.names[label] ?? "left out";
    const [across, down, half] = [clientX - box.left, clientY - box.top, tip.offsetWidth / 2];
    tip.classList.toggle("below", down < 1.5 * tip.offsetHeight); // above the pointer it would be cut off
    Object.assign(tip.style, { left: `${Math.max(half, Math.min(box.width - half, across))}px`, top: `${down}px` });
  }
}
