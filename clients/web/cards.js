// A card for each exit: its mask and time in a still picture; in a clip, how many of the frames end with it.
import { readable } from "./scale.js";
import { paint } from "./views.js";

const percent = (share) => `${(100 * share).toFixed(0)} %`;

export class Cards {
  #cards = document.querySelector("#timeline");
  #select;

  /** Calls `select(number, keep)` when a card is pointed at or focused (`keep` is false) or pressed (true). */
  constructor(select) {
    this.#select = select;
    this.#cards.onpointerleave = () => select(null, false);
    this.#cards.addEventListener("focusout", ({ relatedTarget }) => this.#cards.contains(relatedTarget) || select(null, false));
    this.#cards.onkeydown = ({ key }) => {
      const cards = [...this.#cards.querySelectorAll("[aria-disabled=false]")];
      cards[cards.indexOf(document.activeElement) + ({ ArrowLeft: -1, ArrowRight: 1 }[key] ?? NaN)]?.focus();
    };
  }

  /** Empty cards for a model with `count` exits. */
  reset(count) {
    while (this.#cards.children.length > count) this.#cards.lastElementChild.remove();
    while (this.#cards.children.length < count) this.#cards.append(this.#card(this.#cards.children.length + 1));
    for (const card of this.#cards.children) {
      card.ariaDisabled = "true";
      card.ariaPressed = "false";
      card.children[1].style.width = 0;
      card.children[3].textContent = card.children[4].textContent = "";
      card.querySelector("canvas").width = 1;
    }
  }

  /** Show how many of a clip's frames end with each exit: `shares` by number. */
  count(shares) {
    for (const card of this.#cards.children) {
      const share = shares[card.dataset.exit] ?? 0;
      card.children[1].style.width = `${100 * share}%`;
      card.children[3].textContent = `${percent(share)} of frames`;
    }
  }

  /** Fill the card of `exit` of a still picture. */
  fill(exit, labels, photo) {
    const card = this.#cards.children[exit.exit - 1];
    const thumbnail = card.querySelector("canvas");
    paint(thumbnail, exit, labels);
    if (exit.keypoints) {
      const brush = thumbnail.getContext("2d");
      brush.globalCompositeOperation = "destination-over";
      brush.drawImage(photo, 0, 0, thumbnail.width, thumbnail.height);
    }
    card.ariaDisabled = "false";
    card.children[3].textContent = readable(exit.elapsed_ms);
    card.children[4].textContent = exit.exit === exit.exits ? "final" : `${percent(exit.unsure)} still computed`;
  }

  /** Say of the exits in `skipped` that a later one overtook them, and of the others without an answer that they did not come. */
  end(skipped) {
    for (const card of this.#cards.querySelectorAll("[aria-disabled=true]"))
      card.children[3].textContent = skipped.includes(+card.dataset.exit) ? "overtaken" : "not reached";
  }

  /** Mark the card of the exit that is shown. */
  press(number) {
    for (const card of this.#cards.children) card.ariaPressed = String(+card.dataset.exit === number);
  }

  #card(exit) {
    const card = document.querySelector("#card").content.cloneNode(true).firstElementChild;
    const enabled = () => card.ariaDisabled === "false";
    card.dataset.exit = exit;
    card.children[2].textContent = `Exit ${exit}`;
    card.onpointerenter = card.onfocus = () => enabled() && this.#select(exit, false);
    card.onclick = () => enabled() && this.#select(exit, true);
    return card;
  }
}
