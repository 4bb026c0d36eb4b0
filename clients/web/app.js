// The page: a clip with its masks by a deadline, or a still picture with every exit, and the controls of both.
import { Anytime } from "./anytime.js";
import { Cards } from "./cards.js";
import { listen } from "./controls.js";
import { Dial } from "./dial.js";
import { Legend } from "./legend.js";
import { Live } from "./live.js";
import { Models } from "./models.js";
import { Panel } from "./panel.js";
import { Person } from "./person.js";
import { answered, lost } from "./run.js";
import { CameraSource, FileSource, SHOWN_PX, StreetSource, fitted } from "./sources.js";
import { Stage } from "./stage.js";
import { Still } from "./still.js";
import { VIEWS } from "./views.js";
import { complaint, summary } from "./wording.js";

const $ = (id) => document.getElementById(id);
const LEARNT_MS = 4000; // how often the exits' times are read again
const CREDIT = {
  street: "The street is drawn by this page, so the true class of every pixel is known.",
  portrait: "Eileen Collins, by NASA (public domain).",
};

const server = new Anytime(document.baseURI);
const models = new Models(server, $("model"));
const stage = new Stage($("anytime"));
const dial = new Dial(dialMoved, dialReleased);
const cards = new Cards(look);
const legend = new Legend(pick);
const person = new Person(() => rerun(true));
const still = new Still(server, { begun, exit: arrived, ended, failed, played });
const live = new Live(server, [stage, new Stage($("whole"))], asked, { answered: (exits) => dial.mark(exits), counted, failed });
const panel = new Panel(() => ({ base: new URL(".", document.baseURI).href, ...options(), box: still.photo && person.box(still.photo), clip: live.path }), (kind) => stage.copy(kind));
let street = null;
let pinned = null; // the number of the exit whose card was pressed
let only = null; // the class or joint that is picked in the legend
let fresh = false; // whether the run has all the time there is: the dial then follows its exits, unless it is turned
let visits = 0; // how often something else was chosen: what is read late is not shown
let slowly = false; // play the exits as soon as they are there

const view = () => (models.pose ? "mask" : $("look").value);
const limit = () => +$("resolution").value;
const sent = () => (still.photo ? still.size(limit()) : stage.size);
const box = () => (still.photo && person.box(sent())) || null;

/** What a request asks for: the further map only where it is looked at. */
function options() {
  const mapped = !models.pose && (still.photo || view() !== "mask" || $("dim").checked);
  return { model: models.name, deadline_ms: dial.ms, ...(mapped && { map: VIEWS[view()].map }) };
}

/** What player 0, by the deadline, or 1, the whole network, sends and shows now. */
function asked(index) {
  const last = models.exits;
  const whole = { model: models.name, deadline_ms: models.longest_ms, min_exit: last, max_exit: last };
  const look = { labels: models.labels, view: index ? "mask" : view(), only };
  return { options: index ? whole : options(), deadline_ms: dial.ms, dense: models.dense(stage.size), look };
}

async function begin() {
  for (const [value, { name }] of Object.entries(VIEWS)) $("look").add(new Option(name, value));
  try {
    await models.load();
  } catch (error) {
    become("failed", "");
    return complain(`The list of models cannot be read: ${error.message}`);
  }
  cards.reset(models.exits);
  await learn();
  setInterval(learn, LEARNT_MS);
  if (models.pose) portrait();
  else drive();
}

/** Read what the exits take by now, and rescale the dial unless it is being held. */
async function learn() {
  if (document.hidden || $("deadline").matches(":active")) return;
  const seconds = await models.learn(sent());
  if (seconds) dial.rescale(seconds);
  if (live.open) live.suggest(dial);
}

/** Play a clip; `name` is that of its button. */
async function play(name, source) {
  if (models.pose && name === "street") return portrait();
  leave(name, CREDIT[name]);
  document.body.dataset.mode = "live";
  cards.reset(models.exits);
  try {
    if (!(await live.play(source))) return;
    live.suggest(dial);
    become("live", server.why);
  } catch (error) {
    become("failed", "");
    complain(name === "camera" ? `The camera cannot be used: ${error.message.replace(/\.$/, "")}.` : "This browser cannot play this video.");
  }
}

/** Play the street; it is built once. */
const drive = () => play("street", (street ??= new StreetSource(live.offer)));

/** Leave what is on the page for what the button `name` stands for. */
function leave(name, credit = "") {
  visits++;
  live.close();
  still.use(null);
  [only, pinned, slowly, fresh, dial.touched] = [null, null, false, false, false];
  for (const button of $("sources").children) button.ariaPressed = String(button.dataset.source === name);
  $("credit").textContent = credit;
  stage.clear();
  person.forget();
  complain("");
}

function counted({ exits, fps }) {
  cards.count(exits);
  if (stage.exit) legend.draw(stage.exit, models.labels, { view: view(), only, sorted: false });
  const { failure } = live.players[0];
  report(server.why || (failure && fps === 0 ? complaint(failure, dial.ms) : ""));
}

/** Hold the frame that is on the stage, and play its exits slowly. */
function hold() {
  const picture = live.hold();
  if (!picture) return;
  slowly = true;
  use(picture);
}

/** Use an image or video file that was chosen, pasted or dropped. */
async function take(file, credit = "") {
  if (!file) return;
  if (file.type.startsWith("video/")) return play("file", new FileSource(live.offer, limit, file));
  leave("file", credit);
  become("running", "Reading the picture …");
  const visit = visits;
  try {
    const picture = await createImageBitmap(file); // the browser turns it upright by its EXIF data
    if (visit === visits) use(fitted(picture, SHOWN_PX));
    picture.close();
  } catch {
    become("failed", "");
    complain(`${file.name || "This file"} is not a picture that this browser can read. Try a JPEG or a PNG.`);
  }
}

/** The picture that a pose model begins with. */
async function portrait() {
  leave("file");
  become("running", "Reading the picture …");
  const visit = visits;
  try {
    const response = await fetch("static/pictures/astronaut.jpg").catch(lost);
    if (!response.ok) await answered(response);
    const file = await response.blob();
    if (visit === visits) take(file, CREDIT.portrait);
  } catch (error) {
    if (visit !== visits) return;
    become("failed", "");
    complain(`The picture that comes with the page cannot be read: ${error.message}`);
  }
}

function use(canvas) {
  document.body.dataset.mode = "still";
  still.use(canvas);
  stage.show(canvas);
  stage.clear();
  rerun(true);
}

/** Run the still picture again: with all the time there is if `afresh`, so that all exits are held; else by the dial. */
function rerun(afresh) {
  if (!still.photo) return;
  const chosen = box();
  if (afresh) cards.reset(models.exits);
  [fresh, pinned] = [afresh, null];
  still.run({ ...options(), ...(chosen && { box: chosen }), ...(afresh && { deadline_ms: models.longest_ms }) }, limit(), afresh);
}

function begun() {
  complain("");
  become("running", "Waiting for the first exit …");
}

function arrived(exit) {
  cards.fill(exit, models.labels, still.photo);
  dial.mark(still.held.all);
  if (fresh && !slowly) dial.set(exit.elapsed_ms);
  if (slowly) show(still.held.all[0]);
  else look(null, false);
}

function ended({ exit, stop, skipped }) {
  const reached = still.held.all.filter((held) => held.exit <= exit); // deeper ones are of a run before
  cards.end(skipped);
  become("done", summary(reached, stop));
  if (!slowly || !still.held.last) return;
  slowly = false;
  still.play(still.held.all[0].elapsed_ms);
  describe();
}

function failed(error) {
  slowly = false;
  const held = error.status === 504 && still.held.last !== null; // the exits of an earlier run stay
  const sentence = complaint(error, fresh ? models.longest_ms : dial.ms);
  if (!held) cards.end([]);
  become(held ? "done" : "failed", held ? sentence : "");
  complain(held ? "" : sentence);
  if (held) look(null, false);
}

/** A moment of slow motion: the dial turns by itself. */
function played(ms) {
  dial.set(ms);
  look(null, false);
  const next = still.held.next(ms);
  if (next) stage.blend(next.exit, next.share ** 2);
  if (!still.playing) describe();
}

/** Show exit `number`, and keep it if `keep`; null shows the kept exit again, or the one that the dial allows. */
function look(number, keep) {
  if (!still.photo || !still.held.last) return;
  if (keep) pinned = number;
  const [first] = still.held.all;
  const chosen = still.held.get(number ?? pinned) ?? still.held.at(dial.ms);
  show(chosen ?? first);
  if (!chosen) stage.age(first.elapsed_ms - dial.ms);
}

function show(exit) {
  stage.draw(exit, { labels: models.labels, view: view(), only });
  stage.age(0);
  legend.draw(exit, models.labels, { view: view(), only, sorted: true });
  cards.press(exit.exit);
}

function dialMoved(ms) {
  [fresh, pinned] = [false, null];
  still.pause();
  describe();
  if (live.open) live.players[0].look(ms);
  look(null, false);
}

function dialReleased(ms) {
  if (!still.deadline(ms)) rerun(false);
}

function pick(label) {
  only = only === label ? null : label;
  look(null, false);
}

function become(state, sentence) {
  document.body.dataset.state = state;
  report(sentence);
  describe();
}

/** Screen readers read what is written to the status aloud, even if it is the same as before. */
function report(sentence) {
  if ($("status").textContent !== sentence) $("status").textContent = sentence;
}

function complain(sentence) {
  $("error").textContent = sentence;
  $("error").hidden = !sentence;
}

function describe() {
  $("run").textContent = live.open ? "Slow motion" : still.running ? "Stop" : still.playing ? "Pause" : "Play slowly";
  $("opacity-value").textContent = `${$("opacity").value} %`;
  document.body.style.setProperty("--mask", $("opacity").value / 100);
  document.body.classList.toggle("dim", ($("dim").checked || still.playing) && view() === "mask");
  $("look").disabled = models.pose;
  $("look-text").textContent = models.pose ? "" : VIEWS[view()].text;
  $("whole").hidden = !live.open || !$("beside").checked;
  $("beside-label").hidden = !live.open;
  person.wanted(models.pose && still.photo !== null);
  $("person-hint").hidden = !models.pose || !still.photo;
  panel.write();
}

listen({
  street: drive,
  camera: () => play("camera", new CameraSource(live.offer, limit)),
  take,
  run() {
    if (live.open) hold();
    else if (still.running) still.cancel();
    else if (still.playing) still.pause();
    else if (still.held.last) still.play(still.held.all[0].elapsed_ms);
    else rerun(true);
    describe();
  },
  async model() {
    cards.reset(models.exits);
    only = null;
    describe();
    if (live.open && models.pose) portrait();
    else rerun(true); // before anything is awaited: the exits that are held are of the model before
    await learn();
  },
  resolution: () => rerun(true),
  look() {
    describe();
    rerun(true);
  },
  beside: (wanted) => (live.beside(wanted), describe()),
  drawn: describe,
});
begin();
