// The page sends a photo to a model with a deadline, and keeps every exit so that the visitor can compare them.
import { Legend } from "./legend.js";
import { Person } from "./person.js";
import { Stage } from "./stage.js";
import { Stream } from "./stream.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);
const SHORTEST_MS = 10;
const SHOWN_PX = 2048; // the longest side of the photo on the page
const STOPPED = {
  complete: "All exits are done.",
  max_exit: "The deepest exit allowed is done.",
  quality: "Good enough; stopped early.",
  deadline: "The next exit would have come too late.",
  cancelled: "Cancelled.",
};

const stage = new Stage();
const timeline = new Timeline(look);
const legend = new Legend(pick);
const person = new Person(run);
const stream = new Stream(new URL("v1/stream", document.baseURI).href.replace(/^http/, "ws"));
let models = [];
let longest_ms = 10_000;
let photo = null; // the canvas of the photo on the page
let labels = null; // names, palette and skeleton of the model that answers
let exits = []; // the exits of this run, by their number
let pinned = null; // the number of the exit whose card was pressed; null shows the newest exit
let only = null; // the class or joint that is picked in the legend
let runs = 0;

const model = () => models.find(({ name }) => name === $("model").value);
const deadline_ms = () => +(SHORTEST_MS * (longest_ms / SHORTEST_MS) ** ($("deadline").value / 1000)).toPrecision(2);
const running = () => document.body.dataset.state === "running";
const readable = (ms) => (ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`);

async function loadModels() {
  try {
    const response = await fetch("v1/models");
    const body = await response.json();
    if (!response.ok) throw new Error(body.error);
    models = body.models;
    longest_ms = body.deadline_ms.max;
    $("model").replaceChildren(...models.map(({ name }) => new Option(name)));
    $("model").value = body.default;
    $("deadline").value = (1000 * Math.log(body.deadline_ms.default / SHORTEST_MS)) / Math.log(longest_ms / SHORTEST_MS);
    timeline.reset(model().exits);
    describe();
  } catch (error) {
    complain(`The list of models cannot be read: ${error.message}`);
  }
}

/** Use an image file that was chosen, pasted or dropped. */
async function take(file) {
  if (!file) return;
  try {
    use(fitted(await createImageBitmap(file), SHOWN_PX)); // the browser turns it upright by its EXIF data
  } catch {
    complain(`${file.name || "This file"} is not a picture that this browser can read. Try a JPEG or a PNG.`);
  }
}

function use(canvas) {
  photo = canvas;
  stage.show(photo);
  person.forget();
  $("welcome").hidden = true;
  $("run").disabled = $("another").disabled = false;
  run();
}

/** A canvas with `image`, made smaller if its longer side has more than `limit_px` pixels. */
function fitted(image, limit_px) {
  const scale = Math.min(1, limit_px / Math.max(image.width, image.height));
  const size = { width: Math.round(image.width * scale), height: Math.round(image.height * scale) };
  const canvas = Object.assign(document.createElement("canvas"), size);
  const brush = canvas.getContext("2d");
  brush.imageSmoothingQuality = "high";
  brush.drawImage(image, 0, 0, size.width, size.height);
  return canvas;
}

function run() {
  if (!photo || !model()) return;
  const thisRun = ++runs;
  const { name, exits: costs, classes, joints, palette, skeleton = [] } = model();
  stream.cancel();
  labels = { names: classes ?? joints, palette, skeleton };
  [exits, pinned, only] = [[], null, null];
  stage.clear();
  legend.clear();
  timeline.reset(costs);
  complain("");
  become("running", "Waiting for the first exit …");
  const small = fitted(photo, $("resolution").value);
  const image = new Promise((done) => small.toBlob(done, "image/jpeg", 0.95));
  image.then(() => thisRun === runs && running() && timeline.start(deadline_ms()));
  const box = person.box(small);
  stream.predict({ model: name, deadline_ms: deadline_ms(), ...(box && { box }) }, image, { exit: arrived, end: ended, error: failed });
}

function arrived(exit) {
  exits[exit.exit] = exit;
  timeline.add(exit, labels, photo);
  if (pinned === null) show(exit.exit);
  $("status").textContent = `Exit ${exit.exit} of ${exit.exits} after ${exit.elapsed_ms.toFixed(0)} ms …`;
}

function ended({ exit, stop, elapsed_ms, skipped }) {
  timeline.stop(elapsed_ms, skipped);
  become("done", `${exit ? `Exit ${exit}` : "No exit"} after ${elapsed_ms.toFixed(0)} ms. ${STOPPED[stop]}`);
}

function failed(sentence) {
  timeline.stop(0, []);
  become("failed", "");
  complain(sentence);
}

/** Show exit `number`, and pin it if `keep`. null shows the pinned exit again, or the newest. */
function look(number, keep) {
  if (keep) pinned = number;
  show(number ?? pinned ?? exits.length - 1);
}

function pick(label) {
  only = only === label ? null : label;
  look(null, false);
}

function show(number) {
  if (!exits[number]) return;
  stage.draw(exits[number], labels, only);
  legend.draw(exits[number], labels, only);
  timeline.press(number);
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
  $("deadline-value").textContent = $("deadline").ariaValueText = readable(deadline_ms());
  $("opacity-value").textContent = `${$("opacity").value} %`;
  stage.opacity($("opacity").value / 100);
  stage.hatch($("show-unsure").checked);
  person.wanted(model()?.task === "pose");
  $("person-hint").hidden = model()?.task !== "pose";
}

$("choose").onclick = $("another").onclick = () => $("file").click();
$("sample").onclick = async () => {
  const scene = Object.assign(new Image(), { src: "static/scene.svg" });
  await scene.decode();
  use(fitted(scene, SHOWN_PX));
};
$("file").onchange = ({ target }) => take(target.files[0]).then(() => (target.value = ""));
$("settings").onsubmit = (event) => {
  event.preventDefault();
  if (running()) stream.cancel();
  else run();
};
$("settings").oninput = describe;
$("model").onchange = $("resolution").onchange = run;
$("deadline").onchange = () => {
  if (!running()) return run();
  stream.deadline(deadline_ms());
  timeline.extend(deadline_ms());
};
addEventListener("paste", ({ clipboardData }) => take(clipboardData.files[0]));
addEventListener("dragover", (event) => (event.preventDefault(), document.body.classList.add("dragging")));
addEventListener("dragleave", (event) => event.relatedTarget || document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});
loadModels();
