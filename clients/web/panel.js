// The panel with what is seen in code, and the files that can be saved.
import { snippets } from "./snippets.js";

const $ = (id) => document.getElementById(id);

export class Panel {
  #language = "curl";
  #ask;

  /** `ask()` gives what `snippets` needs, and `copy({overlay})` a canvas to save. */
  constructor(ask, copy) {
    this.#ask = ask;
    $("code").onclick = () => {
      $("panel").hidden = !$("panel").hidden;
      $("code").ariaExpanded = String(!$("panel").hidden);
      this.write();
      if (!$("panel").hidden) $("panel").scrollIntoView({ block: "nearest" });
    };
    for (const button of $("panel").querySelectorAll("[data-language]"))
      button.onclick = () => {
        this.#language = button.dataset.language;
        for (const each of $("panel").querySelectorAll("[data-language]")) each.ariaPressed = String(each === button);
        this.write();
      };
    $("copy").hidden = !navigator.clipboard;
    $("copy").onclick = async () => {
      const copied = await navigator.clipboard.writeText($("snippet").textContent).then(() => true, () => false);
      $("copy").textContent = copied ? "Copied" : "Not allowed";
      setTimeout(() => ($("copy").textContent = "Copy"), 1500);
    };
    $("save-mask").onclick = () => save(copy({ overlay: false }), "mask.png");
    $("save-overlay").onclick = () => save(copy({ overlay: true }), "overlay.png");
  }

  /** Write the code anew, if it can be seen. */
  write() {
    if (!$("panel").hidden) $("snippet").textContent = snippets(this.#ask())[this.#language];
  }
}

async function save(canvas, name) {
  const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
