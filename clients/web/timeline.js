// The timeline shows a card for every exit, and marks when each came between the start and the deadline.
import { paintMask, paintSkeleton } from "./stage.js";

const percent = (part, whole) => `${Math.min(100, (100 * part) / whole)}%`;

export class Timeline {
  #cards = document.querySelector("#timeline");
  #track = document.querySelector("#track");
  #fill = document.querySelector("#track i");
  #select;
  #started = 0;
  #deadline = 1;
  #frame = 0;

  /** Calls `select(number, keep)` when a card is pointed at or focused (`keep` is false) or pressed (true). */
  constructor(select) {
    this.#select = select;
    this.#cards.onpointerleave = () => select(null, false);
    this.#cards.addEventListener("focusout", ({ relatedTarget }) => this.#cards.contains(relatedTarget) || select(null, false));
    this.#cards.onkeydown = ({ key }) => {
      const cards = [...this.#cards.querySelectorAll("button:enabled")];
      cards[cards.indexOf(document.activeElement) + ({ ArrowLeft: -1, ArrowRight: 1 }[key] ?? NaN)]?.focus();
    };
  }

  /** Show empty cards for `costs`, the model's exits with the seconds that each usually takes. */
  reset(costs) {
    cancelAnimationFrame(this.#frame);
    this.#cards.replaceChildren(...costs.map((cost) => this.#card(cost)));
    this.#track.replaceChildren(this.#fill);
    this.#fill.style.width = 0;
  }

  /** Start a run now, with its deadline `deadline_ms` from now. */
  start(deadline_ms) {
    [this.#started, this.#deadline] = [performance.now(), deadline_ms];
    const tick = () => {
      this.#fill.style.width = percent(performance.now() - this.#started, this.#deadline);
      this.#frame = requestAnimationFrame(tick);
    };
    tick();
  }

  /** Move the deadline to `deadline_ms` from now. */
  extend(deadline_ms) {
    const before = this.#deadline;
    this.#deadline = performance.now() - this.#started + deadline_ms;
    for (const mark of this.#track.querySelectorAll("b"))
      mark.style.left = percent((parseFloat(mark.style.left) * before) / 100, this.#deadline);
  }

  /** End the run after `elapsed_ms`. The server did not send the exits in `skipped`, since a later one was ready. */
  stop(elapsed_ms, skipped) {
    cancelAnimationFrame(this.#frame);
    this.#fill.style.width = percent(elapsed_ms, this.#deadline);
    for (const card of this.#cards.querySelectorAll("button:disabled"))
      card.children[2].textContent = skipped.includes(+card.dataset.exit) ? "overtaken" : "not reached";
  }

  /** Fill the card of `exit` and mark its time. */
  add(exit, labels, photo) {
    const card = this.#cards.children[exit.exit - 1];
    const [thumbnail, , time, unsure] = card.children;
    if (exit.mask) paintMask(thumbnail, exit, labels.palette);
    else {
      paintSkeleton(thumbnail, exit, labels);
      const brush = thumbnail.getContext("2d");
      brush.globalCompositeOperation = "destination-over";
      brush.drawImage(photo, 0, 0, thumbnail.width, thumbnail.height);
    }
    card.disabled = false;
    time.textContent = `${exit.elapsed_ms.toFixed(0)} ms`;
    unsure.textContent = `${(100 * exit.unsure).toFixed(0)} % unsure`;
    const mark = document.createElement("b");
    mark.style.left = percent(exit.elapsed_ms, this.#deadline);
    this.#track.append(mark);
  }

  /** Mark the card of the exit that is shown. */
  press(number) {
    for (const card of this.#cards.children) card.ariaPressed = String(card.dataset.exit === String(number));
  }

  #card({ exit, seconds }) {
    const card = document.querySelector("#card").content.cloneNode(true).firstElementChild;
    card.dataset.exit = exit;
    card.children[1].textContent = `Exit ${exit}`;
    card.children[2].textContent = seconds ? `≈ ${(1000 * seconds).toFixed(0)} ms` : "";
    card.onpointerenter = card.onfocus = () => this.#select(exit, false);
    card.onclick = () => this.#select(exit, true);
    return card;
  }
}
