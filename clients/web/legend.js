// The legend lists the classes in the mask with their shares, or the joints with their scores.
import { colour, exitColour } from "./views.js";

/** [class, share of the pixels] of every class in the mask. */
function shares({ mask }) {
  const counts = new Uint32Array(256);
  for (const label of mask) counts[label]++;
  return [...counts].map((count, label) => [label, count / mask.length]).filter(([, share]) => share);
}

export class Legend {
  #list = document.querySelector("#legend");
  #title = document.querySelector("#legend-title");
  #pick;

  /** Calls `pick(number)` when a class or joint is pressed. */
  constructor(pick) {
    this.#pick = pick;
  }

  /** `sorted`: the largest share first. In a clip the order stays, so that nothing jumps. */
  draw(exit, labels, { view, only, sorted }) {
    if (view === "exit" && exit.kind === "exit") return this.#exits(exit);
    const rows = exit.mask ? shares(exit) : exit.keypoints.map(([, , score], joint) => [joint, score]);
    if (sorted && exit.mask) rows.sort(([, a], [, b]) => b - a);
    this.#title.textContent = exit.mask ? "In this picture" : "Joints and their scores";
    const written = (value) => (exit.mask ? `${(100 * value).toFixed(1)} %` : value.toFixed(2));
    const row = ([label, value]) => this.#row(label, colour(labels.palette, label), labels.names[label] ?? "left out", written(value), label === only);
    this.#replace(rows.map(row));
  }

  #exits({ extra, exit }) {
    const counts = new Uint32Array(256);
    for (const number of extra) counts[number]++;
    this.#title.textContent = "Decided by";
    const numbers = Array.from({ length: exit }, (_, index) => index + 1);
    this.#replace(numbers.map((number) => this.#row(`exit ${number}`, exitColour(number), `Exit ${number}`, `${((100 * counts[number]) / extra.length).toFixed(1)} %`, false)));
  }

  /** Replace the rows; the one in focus stays the same element. */
  #replace(rows) {
    const focused = this.#list.contains(document.activeElement) ? document.activeElement.dataset.label : null;
    this.#list.replaceChildren(...rows);
    if (focused !== null) (this.#list.querySelector(`[data-label="${focused}"]`) ?? this.#list.querySelector("button"))?.focus();
  }

  #row(label, swatchColour, text, value, pressed) {
    const row = document.querySelector("#row").content.cloneNode(true).firstElementChild;
    const button = row.firstElementChild;
    const [swatch, name, figure] = button.children;
    swatch.style.background = swatchColour;
    name.textContent = text;
    figure.textContent = value;
    button.dataset.label = label;
    button.ariaPressed = String(pressed);
    button.onclick = () => this.#pick(typeof label === "number" ? label : null);
    return row;
  }
}
