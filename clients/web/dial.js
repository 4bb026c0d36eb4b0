// The deadline dial: a slider whose scale shows when each exit usually comes, and when those of the frame in hand came.
import { Scale, readable } from "./scale.js";

export class Dial {
  touched = false; // whether the visitor has set it
  #input = document.querySelector("#deadline");
  #value = document.querySelector("#deadline-value");
  #ticks = document.querySelector("#ticks");
  #scale = new Scale(10, 100);
  #ms = 66;

  /** Calls `moved(ms)` while it is dragged, and `released(ms)` afterwards. */
  constructor(moved, released) {
    this.#input.oninput = () => {
      this.touched = true;
      this.#ms = this.#scale.ms(+this.#input.value);
      this.#write();
      moved(this.ms);
    };
    this.#input.onchange = () => released(this.ms);
  }

  get ms() {
    return Math.max(this.#ms, this.#scale.first_ms);
  }

  /** The earliest deadline: the first exit's time. */
  get first_ms() {
    return this.#scale.first_ms;
  }

  /** Turn it to `ms`. */
  set(ms) {
    this.#ms = ms;
    this.#input.value = this.#scale.position(ms);
    this.#write();
  }

  /** Rescale for exits that usually take these seconds. */
  rescale(seconds) {
    this.#scale = new Scale(1000 * seconds[0], 1000 * seconds.at(-1));
    this.#input.value = this.#scale.position(this.#ms);
    const ticks = seconds.map((second, index) => this.#tick(1000 * second, index + 1, seconds.length));
    this.#ticks.replaceChildren(...ticks, ...this.#ticks.querySelectorAll("i"));
    this.#thin(ticks);
    this.#write();
  }

  /** Mark when the exits of the frame in hand came. */
  mark(exits) {
    const dots = [...this.#ticks.querySelectorAll("i")];
    exits.forEach(({ elapsed_ms }, index) => {
      const dot = dots[index] ?? this.#ticks.appendChild(document.createElement("i"));
      dot.style.setProperty("--at", this.#scale.position(elapsed_ms) / 1000);
    });
    for (const dot of dots.slice(exits.length)) dot.remove();
  }

  /** Leave out the words that would cover others; the first tick keeps its own, and then the last. */
  #thin([first, ...others]) {
    const taken = [first.getBoundingClientRect()];
    for (const tick of [...others.slice(-1), ...others.slice(0, -1)]) {
      const place = tick.getBoundingClientRect();
      const crowded = taken.some(({ left, right }) => place.left < right && place.right > left);
      tick.classList.toggle("bare", crowded);
      if (!crowded) taken.push(place);
    }
  }

  #tick(ms, number, count) {
    const tick = document.createElement("b");
    const name = number === 1 ? "First guess" : number === count ? "Final" : `${number}`;
    tick.append(Object.assign(document.createElement("span"), { textContent: name }), ` ${readable(ms)}`);
    const at = this.#scale.position(ms) / 1000;
    tick.style.setProperty("--at", at);
    tick.classList.toggle("leftward", at > 0.7); // so that its words stay on the page
    return tick;
  }

  #write() {
    this.#value.textContent = this.#input.ariaValueText = readable(this.ms);
  }
}
