// The served models, the one that is chosen, and what its exits take.
import { denseGmacs, seconds } from "./scale.js";

export class Models {
  longest_ms = 10_000; // the longest deadline that the server grants
  #server;
  #select;
  #models = [];

  /** `select`: the element that chooses the model. */
  constructor(server, select) {
    [this.#server, this.#select] = [server, select];
  }

  /** Read which models there are, and choose the server's default. Throws `Refused`. */
  async load() {
    const found = await this.#server.models();
    this.#models = found.models;
    this.longest_ms = found.deadline_ms.max;
    this.#select.replaceChildren(...this.#models.map(({ name }) => new Option(name)));
    this.#select.value = found.default;
  }

  get chosen() {
    return this.#models.find(({ name }) => name === this.#select.value);
  }

  get name() {
    return this.chosen.name;
  }

  get exits() {
    return this.chosen.exits.length;
  }

  get pose() {
    return this.chosen?.task === "pose";
  }

  /** Names, colours and limbs. */
  get labels() {
    const { classes, joints, palette, skeleton = [] } = this.chosen;
    return { names: classes ?? joints, palette, skeleton };
  }

  /** Multiply-adds / 1024^3 of the whole network for images of this size. */
  dense({ width, height }) {
    return denseGmacs(this.chosen, height, width);
  }

  /** Read what the exits of the chosen model have taken lately: seconds of each for this size, or null if that is unknown. */
  async learn({ width, height }) {
    const found = await this.#server.model(this.name).catch(() => null);
    if (found?.name !== this.name) return null;
    this.#models[this.#models.indexOf(this.chosen)] = found;
    const learnt = width > 1 ? seconds(found, height, width) : seconds(found, ...found.size);
    return learnt.every((second) => second > 0) ? learnt : null;
  }
}
