// The legend lists the classes in the mask with their shares, or the joints with their scores.
import { colour, exitColour } from "./views.js";

/** The share of the pixels that each of the 256 classes has. */
function shares({ mask }) {
  const counts = new Uint32Array(256);
  for (const label of mask) counts[label]++;
  return Array.from(counts, (count) => count / mask.length);
}

export class Legend {
  #list = document.querySelector("#legend");
  #title = document.querySelector("#legend-title");
  #pick;

  /** Calls `pick(number)` when a class or joint is pressed. */
  constructor(pick) {
    this.#pick = pick;
  }

  /**
   * `sorted`: the largest share first. In a clip the order stays, so that nothing jumps.
   * A class that is picked or in focus keeps its row when it leaves the picture.
   */
  draw(exit, labels, { view, only, sorted }) {
    if (view === "exit" && exit.kind === "exit") return this.#exits(exit);
    const held = [only, this.#focused];
    let rows = exit.mask ? [...shares(exit).entries()] : exit.keypoints.map(([, , score], joint) => [joint, score]);
    if (exit.mask) rows = rows.filter(([label, share]) => share || held.includes(label));
    if (exit.mask && sorted) rows.sort(([, a], [, b]) => b - a);
    this.#title.textContent = exit.mask ? "In this picture" : "Joints and their scores";
    const written = (value) => (exit.mask ? `${(100 * value).toFixed(1)} %` : value.toFixed(2));
    this.#show(rows.map(([label, value]) => ({
      label,
      swatch: colour(labels.palette, label),
      name: labels.names[label] ?? "left out",
      figure: written(value),
      pressed: label === only,
    })));
  }

  #exits({ extra, exit }) {
    const counts = new Uint32Array(256);
    for (const number of extra) counts[number]++;
    this.#title.textContent = "Decided by";
    const numbers = Array.from({ length: exit }, (_, index) => index + 1);
    this.#show(numbers.map((number) => ({
      label: `exit-${number}`,
      swatch: exitColour(number),
      name: `Exit ${number}`,
      figure: `${((100 * counts[number]) / extra.length).toFixed(1)} %`,
      pressed: false,
    })));
  }

  /** The class or joint whose row is in focus, or null. */
  get #focused() {
    const { activeElement } = document;
    return this.#list.contains(activeElement) ? Number(activeElement.dataset.label) : null;
  }

  /** Show these rows. The row of a label stays the same element, so that no click and no focus is lost. */
  #show(rows) {
    const focused = this.#list.contains(document.activeElement) ? document.activeElement : null;
    const held = new Map(Array.from(this.#list.children, (row) => [row.firstElementChild.dataset.label, row]));
    rows.forEach((row, index) => {
      const element = held.get(String(row.label)) ?? this.#row(row.label);
      fill(element, row);
      if (this.#list.children[index] !== element) this.#list.insertBefore(element, this.#list.children[index] ?? null);
    });
    while (this.#list.children.length > rows.length) this.#list.lastElementChild.remove();
    if (focused) (this.#list.contains(focused) ? focused : this.#list.querySelector("button"))?.focus();
  }

  #row(label) {
    const row = document.querySelector("#row").content.cloneNode(true).firstElementChild;
    const button = row.firstElementChild;
    button.dataset.label = label;
    button.onclick = () => this.#pick(typeof label === "number" ? label : null);
    return row;
  }
}

function fill(row, { swatch, name, figure, pressed }) {
  const button = row.firstElementChild;
  const [colours, names, figures] = button.children;
  colours.style.background = swatch;
  names.textContent = name;
  figures.textContent = figure;
  button.ariaPressed = String(pressed);
}
