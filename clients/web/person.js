// The person in a photo, for poses: a box that is dragged over the picture. A click, or a new photo, takes all of it again.

const SMALLEST = 0.02; // of the picture's sides; less is a click

export class Person {
  #layers = document.querySelector("#layers");
  #frame = document.querySelector("#person");
  #changed;
  #start = null; // where the drag began
  #box = null; // left, top, right, bottom as shares of the picture

  /** `changed` is called with every new choice. */
  constructor(changed) {
    this.#changed = changed;
    this.#layers.addEventListener("pointerdown", (event) => this.#begin(event));
    this.#layers.addEventListener("pointermove", (event) => this.#drag(event));
    this.#layers.addEventListener("pointerup", () => this.#end(true));
    this.#layers.addEventListener("pointercancel", () => this.#end(false));
  }

  /** Whether a person is wanted at all. */
  wanted(wanted) {
    this.#layers.classList.toggle("person", wanted);
    this.#show();
  }

  forget() {
    this.#box = null;
    this.#show();
  }

  /** x, y, width and height in pixels of a picture of this size; null: all of it. */
  box({ width, height }) {
    if (!this.#box || !this.#on) return null;
    const [left, top, right, bottom] = this.#box;
    return [left * width, top * height, (right - left) * width, (bottom - top) * height];
  }

  get #on() {
    return this.#layers.classList.contains("person");
  }

  #begin(event) {
    if (!this.#on || event.button !== 0) return;
    event.preventDefault();
    this.#layers.setPointerCapture(event.pointerId);
    this.#start = this.#at(event);
  }

  #drag(event) {
    if (!this.#start) return;
    const [x, y] = this.#at(event);
    const [from, down] = this.#start;
    this.#box = [Math.min(x, from), Math.min(y, down), Math.max(x, from), Math.max(y, down)];
    this.#show();
  }

  #end(done) {
    if (!this.#start) return;
    this.#start = null;
    const [left, top, right, bottom] = this.#box ?? [0, 0, 0, 0];
    if (!done || right - left < SMALLEST || bottom - top < SMALLEST) this.forget();
    this.#changed();
  }

  #at({ clientX, clientY }) {
    const place = this.#layers.getBoundingClientRect();
    const share = (value) => Math.min(1, Math.max(0, value));
    return [share((clientX - place.left) / place.width), share((clientY - place.top) / place.height)];
  }

  #show() {
    this.#frame.hidden = !this.#box || !this.#on;
    const [left, top, right, bottom] = (this.#box ?? [0, 0, 0, 0]).map((share) => `${100 * share}%`);
    Object.assign(this.#frame.style, { left, top, width: `calc(${right} - ${left})`, height: `calc(${bottom} - ${top})` });
  }
}
