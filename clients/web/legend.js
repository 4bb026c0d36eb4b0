// The legend lists the classes in the mask with their shares, or the joints with their scores.
import { colour } from "./stage.js";

/** [class, share of the pixels] of every class in the mask, largest share first. */
function shares({ mask }) {
  const counts = new Uint32Array(256);
  for (const label of mask) counts[label]++;
  const found = [...counts].map((count, label) => [label, count / mask.length]).filter(([, share]) => share);
  return found.sort(([, a], [, b]) => b - a);
}

export class Legend {
  #list = document.querySelector("#legend");
  #title = document.querySelector("#legend-title");
  #pick;

  /** Calls `pick(number)` when a class or joint is pressed. */
  constructor(pick) {
    this.#pick = pick;
  }

  clear() {
    this.#title.hidden = true;
    this.#list.replaceChildren();
  }

  draw(exit, labels, only) {
    const focused = document.activeElement.dataset.label;
    const rows = exit.mask ? shares(exit) : exit.keypoints.map(([, , score], joint) => [joint, score]);
    this.#title.textContent = exit.mask ? "In this picture" : "Joints and their scores";
    this.#title.hidden = false;
    const written = (value) => (exit.mask ? `${(100 * value).toFixed(1)} %` : value.toFixed(2));
    this.#list.replaceChildren(...rows.map(([label, value]) => this.#row(label, written(value), labels, only)));
    this.#list.querySelector(`[data-label="${focused}"]`)?.focus();
  }

  #row(label, value, { names, palette }, only) {
    const row = document.querySelector("#row").content.cloneNode(true);
    const button = row.querySelector("button");
    const [swatch, name, figure] = button.children;
    swatch.style.background = colour(palette, label);
    name.textContent = names[label];
    figure.textContent = value;
    button.dataset.label = label;
    button.ariaPressed = String(label === only);
    button.onclick = () => this.#pick(label);
    return row;
  }
}
