// The box of a person, for pose models. Dragging over the photo draws it; a click or a new photo removes it.

const SMALLEST = 0.02; // a drag over a smaller share of either side counts as a click

export class Person {
  #layers = document.querySelector("#layers");
  #frame = document.querySelector("#person");
  #changed;
  #start = null; // the point where the drag began
  #box = null; // left, top, right and bottom as shares of the photo; null is the whole photo

  /** Calls `changed` after every new choice. */
  constructor(changed) {
    this.#changed = changed;
    this.#layers.addEventListener("pointerdown", (event) => this.#begin(event));
    this.#layers.addEventListener("pointermove", (event) => this.#drag(event));
    this.#layers.addEventListener("pointerup", () => this.#end(true));
    this.#layers.addEventListener("pointercancel", () => this.#end(false));
  }

  /** Lets the visitor draw a box, or not: only pose models use one. */
  wanted(wanted) {
    this.#layers.classList.toggle("person", wanted);
    this.#show();
  }

  forget() {
    this.#box = null;
    this.#show();
  }

  /** x, y, width and height of the box in pixels of an image of this size; null is the whole image. */
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
    this.#box = null; // a click that drags nothing takes the whole photo
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
