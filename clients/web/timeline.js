// The exits of a run: a card each, and where they fell between the start and the deadline.
import { paintMask, paintSkeleton } from "./stage.js";

const milliseconds = (ms) => (ms < 10_000 ? `${ms.toFixed(0)} ms` : `${(ms / 1000).toFixed(1)} s`);

export class Timeline {
  #cards = document.querySelector("#timeline");
  #track = document.querySelector("#track");
  #select;
  #started = 0;
  #deadline = 1;
  #frame = 0;

  /** `select(exit number, keep)` is called when a card is pointed at or focused (keep: false) or pressed (true). */
  constructor(select) {
    this.#select = select;
    this.#cards.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const cards = [...this.#cards.querySelectorAll("button:enabled")];
      cards[cards.indexOf(document.activeElement) + step]?.focus();
    });
    this.#cards.addEventListener("pointerleave", () => select(null, false));
  }

  /** Empty cards for `costs`, the model's exits with the seconds that each is known to take. */
  reset(costs) {
    this.stop();
    this.#cards.replaceChildren(...costs.map((cost) => this.#card(cost)));
    this.#track.replaceChildren(this.#track.firstElementChild);
    this.#track.firstElementChild.style.width = 0;
  }

  /** A run begins now, with so many milliseconds to go. */
  start(deadline_ms) {
    [this.#started, this.#deadline] = [performance.now(), deadline_ms];
    const tick = () => {
      this.#fill(performance.now() - this.#started);
      this.#frame = requestAnimationFrame(tick);
    };
    tick();
  }

  stop(elapsed_ms = null) {
    cancelAnimationFrame(this.#frame);
    if (elapsed_ms !== null) this.#fill(elapsed_ms);
    for (const card of this.#cards.querySelectorAll("button:disabled")) card.children[2].textContent = "not reached";
  }

  extend(deadline_ms) {
    this.#deadline = performance.now() - this.#started + deadline_ms;
  }

  add(exit, labels, photo) {
    const card = this.#cards.children[exit.exit - 1];
    if (!card) return;
    const thumbnail = card.querySelector("canvas");
    if (exit.mask) paintMask(thumbnail, exit, labels.palette);
    else {
      paintSkeleton(thumbnail, exit, labels);
      const brush = thumbnail.getContext("2d");
      brush.globalCompositeOperation = "destination-over";
      brush.drawImage(photo, 0, 0, thumbnail.width, thumbnail.height);
    }
    card.disabled = false;
    card.children[2].textContent = milliseconds(exit.elapsed_ms);
    card.children[3].textContent = `${(100 * exit.unsure).toFixed(0)} % unsure`;
    const mark = document.createElement("b");
    mark.style.left = `${Math.min(100, (100 * exit.elapsed_ms) / this.#deadline)}%`;
    this.#track.append(mark);
  }

  /** Mark the card of the exit that is shown. */
  press(number) {
    for (const [index, card] of [...this.#cards.children].entries()) card.ariaPressed = String(index + 1 === number);
  }

  #card({ exit, seconds }) {
    const card = document.createElement("button");
    Object.assign(card, { type: "button", disabled: true, ariaPressed: "false" });
    card.dataset.exit = exit;
    const lines = [`Exit ${exit}`, seconds ? `about ${milliseconds(1000 * seconds)}` : "", ""];
    card.append(document.createElement("canvas"), ...lines.map((line) => Object.assign(document.createElement("span"), { textContent: line })));
    card.onpointerenter = card.onfocus = () => card.disabled || this.#select(exit, false);
    card.onclick = () => this.#select(exit, true);
    return card;
  }

  #fill(elapsed_ms) {
    this.#track.firstElementChild.style.width = `${Math.min(100, (100 * elapsed_ms) / this.#deadline)}%`;
  }
}
