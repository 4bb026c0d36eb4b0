// The page: a photo, a deadline and a model go in; exits come out and stay to be looked at.
import { colour, Stage } from "./stage.js";
import { Stream } from "./stream.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const SHORTEST_MS = 10;
const STOPPED = {
  complete: "All exits are done.",
  max_exit: "The deepest exit allowed is done.",
  quality: "Good enough; stopped early.",
  deadline: "The deadline was reached.",
  cancelled: "Cancelled.",
};

const stage = new Stage();
const timeline = new Timeline(look);
const stream = new Stream(new URL("v1/stream", document.baseURI).href.replace(/^http/, "ws"));
let models = [];
let longest_ms = 10_000;
let photo = null; // what is shown: a canvas
let labels = { names: [], palette: [], skeleton: [] };
let exits = []; // of this run, by number
let pinned = null; // the number of the exit that was pressed; null: the newest
let only = null; // the class or joint picked in the legend
let late = 0; // counts runs, so that an old one does not come back

const model = () => models.find(({ name }) => name === $("model").value);
const deadline_ms = () => SHORTEST_MS * (longest_ms / SHORTEST_MS) ** ($("deadline").value / 1000);
const readable = (ms) => (ms < 100 ? `${ms.toFixed(0)} ms` : ms < 1000 ? `${(ms / 10).toFixed(0) * 10} ms` : `${(ms / 1000).toFixed(1)} s`);

async function loadModels() {
  try {
    const response = await fetch("v1/models");
    const body = await response.json();
    if (!response.ok) throw new Error(body.error);
    models = body.models;
    longest_ms = body.deadline_ms?.max ?? longest_ms;
    $("model").replaceChildren(...models.map(({ name, task }) => new Option(`${name} · ${task}`, name)));
    $("model").value = body.default ?? models[0]?.name;
    $("deadline").value = 1000 * Math.log(1000 / SHORTEST_MS) / Math.log(longest_ms / SHORTEST_MS);
    describe();
    timeline.reset(model().exits);
  } catch (error) {
    complain(`The list of models cannot be read: ${error.message}`);
  }
}

async function accept(file) {
  if (!file) return;
  try {
    const bitmap = await createImageBitmap(file); // upright, whatever the camera's EXIF says
    use(fitted(bitmap, 2048));
  } catch {
    complain(`${file.name || "This file"} is not a picture that your browser can read. Try a JPEG or PNG.`);
  }
}

function use(picture) {
  photo = picture;
  stage.show(picture);
  for (const id of ["run", "another"]) $(id).disabled = false;
  $("welcome").hidden = true;
  run();
}

/** A canvas with `picture`, made smaller if its longer side has more than `limit` pixels. */
function fitted(picture, limit) {
  const scale = Math.min(1, limit / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: Math.round(picture.width * scale), height: Math.round(picture.height * scale) });
  const brush = canvas.getContext("2d");
  brush.imageSmoothingQuality = "high";
  brush.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas;
}

async function run() {
  if (!photo || !model()) return;
  const number = ++late;
  stream.cancel();
  [exits, pinned, only] = [[], null, null];
  labels = { names: model().classes ?? model().joints ?? [], palette: model().palette ?? [], skeleton: model().skeleton ?? [] };
  stage.clear();
  timeline.reset(model().exits);
  showLegend();
  complain("");
  const image = await new Promise((resolve) => fitted(photo, +$("resolution").value).toBlob(resolve, "image/jpeg", 0.95));
  if (number !== late) return;
  become("running", "Waiting for the first exit …");
  timeline.start(deadline_ms());
  stream.predict({ model: model().name, deadline_ms: deadline_ms() }, image, { exit: arrived, end: ended, error: failed });
}

function arrived(exit) {
  exits[exit.exit] = exit;
  timeline.add(exit, labels, photo);
  if (pinned === null) show(exit.exit);
  $("status").textContent = `Exit ${exit.exit} of ${exit.exits} after ${exit.elapsed_ms.toFixed(0)} ms; ${(100 * exit.unsure).toFixed(0)} % still unsure.`;
}

function ended({ exit, stop, elapsed_ms }) {
  timeline.stop(elapsed_ms);
  become("done", `${STOPPED[stop] ?? stop} ${exit ? `Exit ${exit}` : "No exit"} after ${elapsed_ms.toFixed(0)} ms.`);
}

function failed(sentence) {
  timeline.stop();
  become("failed", "");
  complain(sentence);
}

/** Look at exit `number` while pointing at it, or for good if `keep`; null: back to where we were. */
function look(number, keep) {
  if (keep) pinned = number;
  show(number ?? pinned ?? exits.length - 1);
}

function show(number) {
  if (!exits[number]) return;
  stage.draw(exits[number], labels, only);
  timeline.press(number);
  showLegend(exits[number]);
}

function showLegend(exit = null) {
  const rows = !exit ? [] : exit.mask ? shares(exit) : exit.keypoints.map(([, , score], index) => [index, score]);
  $("legend-title").hidden = !rows.length;
  $("legend-title").textContent = exit?.mask ? "In this picture" : "Joints and their scores";
  const focused = document.activeElement.dataset?.label;
  $("legend").replaceChildren(...rows.map(([index, share]) => legendRow(index, exit.mask ? `${(100 * share).toFixed(1)} %` : share.toFixed(2))));
  if (focused) document.querySelector(`[data-label="${focused}"]`)?.focus();
}

function legendRow(index, value) {
  const button = Object.assign(document.createElement("button"), { type: "button", ariaPressed: String(index === only) });
  button.dataset.label = index;
  const [swatch, name, figure] = ["i", "span", "small"].map((tag) => document.createElement(tag));
  swatch.style.background = colour(labels.palette, index);
  name.textContent = labels.names[index] ?? `class ${index}`;
  figure.textContent = value;
  button.append(swatch, name, figure);
  button.onclick = () => {
    only = only === index ? null : index;
    look(null, false);
  };
  const row = document.createElement("li");
  row.append(button);
  return row;
}

/** [class, share of the picture], largest first. */
function shares({ mask }) {
  const counts = new Uint32Array(256);
  for (const label of mask) counts[label]++;
  return [...counts.entries()].filter(([, count]) => count).sort(([, a], [, b]) => b - a).map(([index, count]) => [index, count / mask.length]);
}

function become(state, sentence) {
  document.body.dataset.state = state;
  $("run").textContent = state === "running" ? "Cancel" : "Run again";
  $("status").textContent = sentence;
}

function complain(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
}

function describe() {
  $("deadline-value").textContent = readable(deadline_ms());
  $("deadline").setAttribute("aria-valuetext", readable(deadline_ms()));
  $("opacity-value").textContent = `${$("opacity").value} %`;
  stage.opacity($("opacity").value / 100);
  stage.hatch($("show-unsure").checked);
}

$("choose").onclick = $("another").onclick = () => $("file").click();
$("sample").onclick = async () => {
  const scene = Object.assign(new Image(), { src: "static/scene.svg" });
  await scene.decode();
  use(fitted(scene, 2048));
};
$("file").onchange = ({ target }) => accept(target.files[0]).then(() => (target.value = ""));
$("settings").onsubmit = (event) => {
  event.preventDefault();
  if (document.body.dataset.state === "running") stream.cancel();
  else run();
};
$("settings").oninput = describe;
$("model").onchange = $("resolution").onchange = run;
$("deadline").onchange = () => {
  if (document.body.dataset.state !== "running") return run();
  stream.deadline(deadline_ms());
  timeline.extend(deadline_ms());
};
addEventListener("paste", ({ clipboardData }) => accept(clipboardData.files[0]));
addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("dragging")));
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  accept(event.dataTransfer.files[0]);
});
describe();
loadModels();
