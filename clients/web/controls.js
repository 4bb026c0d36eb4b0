// The controls of the page: what a visitor presses, chooses, types, pastes or drops, handed on as actions.

const $ = (id) => document.getElementById(id);
const TYPING = "input:not([type=range]):not([type=checkbox]), textarea, select";

/** Listen to the controls. `on` has a function for each action: street, camera, take, run, model, resolution, look, beside, drawn. */
export function listen(on) {
  $("sources").onclick = ({ target }) => {
    const { source } = target.dataset;
    if (source === "file") $("file").click();
    else if (source) on[source]();
  };
  $("file").onchange = ({ target }) => {
    on.take(target.files[0]);
    target.value = "";
  };
  $("settings").onsubmit = (event) => {
    event.preventDefault();
    on.run();
  };
  $("model").onchange = on.model;
  $("resolution").onchange = on.resolution;
  $("look").onchange = on.look;
  $("dim").onchange = on.drawn;
  $("opacity").oninput = on.drawn;
  $("beside").onchange = ({ target }) => on.beside(target.checked);
  addEventListener("keydown", (event) => {
    if (event.key.toLowerCase() !== "d" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches(TYPING)) return;
    $("dim").checked = !$("dim").checked;
    on.drawn();
  });
  addEventListener("paste", ({ clipboardData }) => on.take(clipboardData.files[0]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || document.body.classList.remove("dragging"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    on.take(event.dataTransfer.files[0]);
  });
}
