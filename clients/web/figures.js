// The live numbers under a stage.

const share = (value) => (value === null ? "–" : `${(100 * value).toFixed(0)} %`);

export class Figures {
  #list;

  constructor(list) {
    this.#list = list;
  }

  /** Write the figures of a tally: those of a clip, with `dropped` frames. */
  write({ fps, computed, right }, saved, dropped) {
    this.#rows([
      [fps === null ? "–" : fps.toFixed(1), "masks a second"],
      [share(computed), "of the network computed"],
      [saved ? Math.round(saved).toLocaleString("en") : "–", "GMACs saved"],
      [dropped.toLocaleString("en"), "frames dropped"],
      ...(right === null ? [] : [[share(right), "right, mIoU"]]),
    ]);
  }

  clear() {
    this.#list.replaceChildren();
  }

  #rows(rows) {
    while (this.#list.children.length > rows.length) this.#list.lastElementChild.remove();
    rows.forEach(([figure, name], index) => {
      if (!this.#list.children[index]) {
        const row = this.#list.appendChild(document.createElement("div"));
        row.append(document.createElement("dd"), document.createElement("dt"));
      }
      const [dd, dt] = this.#list.children[index].children;
      if (dd.textContent !== figure) dd.textContent = figure;
      if (dt.textContent !== name) dt.textContent = name;
    });
  }
}
