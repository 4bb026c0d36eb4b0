/**
 * A client of the anytime server for browsers, without dependencies. One socket carries many requests.
 *
 *     import { Anytime, Newest } from "https://SERVER/static/anytime.js";
 *     const server = new Anytime("https://SERVER/");
 *     for await (const exit of server.predict(blob, { deadline_ms: 200 })) paint(exit.mask, exit.size);
 *
 *     const camera = new Newest(); // put({ image: blob }) whenever there is a frame
 *     for await (const { frame, exit } of server.frames(camera, { deadline_ms: 60 })) if (exit) paint(exit.mask, exit.size);
 *
 * Where no WebSocket gets through, each request is a POST, whose exits come as events; `server.why` says so. The deadline
 * of a POST cannot be moved. Every ten seconds the next request also tries a WebSocket again.
 *
 * @typedef {object} Options What a request asks for; see /docs of the server.
 * @property {string} [model]
 * @property {number} [deadline_ms] Milliseconds from the first byte at the server to the last of the answer.
 * @property {number} [min_exit] The first exit that is worth an answer.
 * @property {number} [max_exit] The last exit to compute.
 * @property {number} [quality] Stop once at most this share of the pixels would still change.
 * @property {"confidence" | "exit" | "unsure"} [map] A further map to add.
 * @property {number[]} [box] x, y, width and height of the person, for pose.
 *
 * @typedef {object} Exit One answer; later ones of the same request are better.
 * @property {number} exit Its number, from 1.
 * @property {number} exits How many the model has.
 * @property {number} elapsed_ms Milliseconds since the request arrived at the server.
 * @property {number} unsure The share of the positions that the next exit would still compute.
 * @property {number} [gmacs] Multiply-adds so far / 1024^3.
 * @property {[number, number]} size Height and width.
 * @property {Uint8Array} [mask] The class of each pixel, row by row.
 * @property {number[][]} [keypoints] x, y and score of each joint.
 * @property {Uint8Array} [extra] The further map, one value for each pixel.
 * @property {string} [kind] Which map `extra` is.
 *
 * @typedef {object} End
 * @property {number} exit The last exit that was reached; 0 for none.
 * @property {"complete" | "quality" | "deadline" | "cancelled" | "max_exit"} stop Why no further exit comes.
 * @property {number} elapsed_ms
 * @property {number[]} skipped Exits that were overtaken by a later one before they were sent.
 */
import { Newest } from "./newest.js";
import { post } from "./post.js";
import { Refused, Run, UNREACHABLE, answered, applyDelta, lost } from "./run.js";

export { Newest, Refused, Run };

const CLOSED = {
  1001: "The server is stopping.",
  1006: UNREACHABLE,
  1012: "The part of the server that had this request is gone; try again.",
  1013: "The server is overloaded; try again soon.",
};

const LOST = [0, 502]; // statuses: no connection, and what a proxy says when it has none
const RETRY_MS = 2000;
const POST_MS = 10_000; // how long requests go by POST before a socket is tried again

/** The newest of what a source gives; it drains the source as long as somebody reads. */
async function* fed(source) {
  const newest = new Newest();
  let read = true;
  const drain = async () => {
    for await (const frame of source) {
      if (!read) return; // the source hears of it
      newest.put(frame);
    }
  };
  drain().then(() => newest.end(), (error) => newest.end(error));
  try {
    yield* newest;
  } finally {
    read = false;
  }
}

export class Anytime {
  /** Why requests are sent by POST; empty while a WebSocket serves. */
  why = "";
  #base;
  #encoding;
  #socket = null;
  #opening = null;
  #tried_ms = 0; // when a socket was last refused
  #count = 0;
  #open = new Map(); // the requests that have not ended, by id
  #header = null; // the exit whose binary frames are arriving: {message, run, missing}

  /**
   * @param {string | URL} base The server's address, with the path in front of `v1/` if there is one.
   * @param {{encoding?: "raw" | "delta"}} [options] `delta` sends what changed, `raw` whole maps: quicker on the same machine.
   */
  constructor(base, { encoding } = {}) {
    this.#base = new URL(base);
    const near = ["localhost", "127.0.0.1", "[::1]"].includes(this.#base.hostname);
    this.#encoding = encoding ?? (near ? "raw" : "delta");
  }

  /** The models that are served: {default, models, deadline_ms}. Throws `Refused`. */
  async models() {
    return this.#get("v1/models");
  }

  /** One model, with `learnt`: what its exits take on each device, for each shape of the input. Throws `Refused`. */
  async model(name) {
    return this.#get(`v1/models/${encodeURIComponent(name)}`);
  }

  /**
   * Ask for the exits of an image.
   * @param {Blob | Promise<Blob>} image A JPEG, PNG, WebP or BMP file.
   * @param {Options} [options]
   * @returns {Run}
   */
  predict(image, options = {}) {
    const id = `page-${++this.#count}`;
    const abort = new AbortController();
    let [sent, posted, moved_ms, cancelled] = [false, false, null, false];
    const run = new Run(
      () => {
        cancelled = true;
        if (sent) this.#say({ type: "cancel", id });
        else run.finish({ exit: 0, stop: "cancelled", elapsed_ms: 0, skipped: [] });
        abort.abort();
      },
      (deadline_ms) => {
        moved_ms = deadline_ms;
        if (sent) this.#say({ type: "deadline", id, deadline_ms });
        return !posted;
      },
    );
    const begin = async () => {
      const [blob] = await Promise.all([image, this.#connected()]); // the socket opens while the image is encoded
      const socket = await this.#connected(); // the one before may have closed meanwhile
      if (cancelled) return;
      const asked = moved_ms === null ? options : { ...options, deadline_ms: moved_ms };
      posted = !socket;
      if (posted) return post(this.#base, blob, asked, run, abort.signal);
      this.#open.set(id, { run, socket, held: {}, unpacking: Promise.resolve() });
      socket.send(JSON.stringify({ type: "predict", id, encoding: this.#encoding, ...asked }));
      socket.send(blob);
      sent = true;
    };
    begin().catch((error) => cancelled || run.fail(error));
    return run;
  }

  /**
   * Follow a source of frames with one request in flight: the newest frame wins, and the others are dropped.
   * Yields every exit with its frame. `exit` is null, and `missed` says why, if nothing was ready in time, or if the
   * connection broke after the server had answered: it is then opened again, at first at once and later every two seconds.
   * @template {{image: Blob | Promise<Blob>}} Frame
   * @param {AsyncIterable<Frame>} source
   * @param {Options | ((frame: Frame) => Options)} [options]
   * @returns {AsyncGenerator<{frame: Frame, exit: Exit | null, run: Run, missed: string}>} Throws `Refused` for what no later frame mends.
   */
  async *frames(source, options = {}) {
    const newest = source instanceof Newest ? source : fed(source);
    let [answered, breaks] = [false, 0]; // whether the server has answered any frame; how many in a row found no connection
    for await (const frame of newest) {
      const run = this.predict(frame.image, typeof options === "function" ? options(frame) : options);
      try {
        for await (const exit of run) {
          [answered, breaks] = [true, 0];
          yield { frame, exit, run, missed: "" };
        }
      } catch (error) {
        const busy = [503, 504].includes(error.status);
        const broken = answered && LOST.includes(error.status);
        if (!busy && !broken) throw error;
        if (busy) [answered, breaks] = [true, 0];
        yield { frame, exit: null, run, missed: error.message };
        if (broken && breaks++) await new Promise((done) => setTimeout(done, RETRY_MS));
      }
    }
  }

  async #get(path) {
    return answered(await fetch(new URL(path, this.#base)).catch(lost));
  }

  #say(message) {
    const socket = this.#open.get(message.id)?.socket;
    if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  /** The open socket, or null if requests go by POST. */
  #connected() {
    if (this.#socket?.readyState === WebSocket.OPEN) return this.#socket;
    if (this.why && performance.now() < this.#tried_ms + POST_MS) return null;
    this.#opening ??= this.#connect().finally(() => (this.#opening = null));
    return this.why ? null : this.#opening; // a POST does not wait for the socket that is tried again
  }

  #connect() {
    const url = new URL("v1/stream", this.#base);
    url.protocol = url.protocol.replace("http", "ws");
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(url);
      let opened = false;
      socket.binaryType = "arraybuffer";
      socket.onopen = () => {
        [opened, this.#socket, this.why] = [true, socket, ""];
        resolve(socket);
      };
      socket.onmessage = ({ data }) => (typeof data === "string" ? this.#text(JSON.parse(data), socket) : this.#binary(data));
      socket.onclose = async ({ code, reason }) => {
        const error = new Refused(reason || CLOSED[code] || `The server hung up (code ${code}).`);
        if (opened) return this.#hungUp(socket, error);
        this.#tried_ms = performance.now();
        try {
          if (!this.why) await this.#get("v1/models"); // HTTP gets through: only the socket is kept from us
          this.why = "No WebSocket gets through to the server (a proxy may not pass them on), so each picture is sent by POST.";
          resolve(null);
        } catch (unreachable) {
          reject(unreachable);
        }
      };
    });
  }

  /** Fail the requests of this socket; those of the next one go on. */
  #hungUp(socket, error) {
    for (const [id, request] of this.#open) {
      if (request.socket !== socket) continue;
      this.#open.delete(id);
      request.run.fail(error);
    }
  }

  #text(message, socket) {
    const request = this.#open.get(message.id);
    if (message.type === "exit") {
      const missing = [...(message.keypoints ? [] : ["mask"]), ...(message.extra ? ["extra"] : [])];
      this.#header = { message, request, missing, frames: {} };
      this.#deliver();
    } else if (message.type === "error" && !message.open) {
      const error = new Refused(message.error, message.code, message.status);
      if (message.id === null) return this.#hungUp(socket, error);
      this.#last(message.id, ({ run }) => run.fail(error));
    } else if (message.type === "end") this.#last(message.id, ({ run }) => run.finish(message));
  }

  #binary(buffer) {
    this.#header.frames[this.#header.missing.shift()] = buffer;
    this.#deliver();
  }

  /** Unpack the exit once all of it is there. Exits of one request are unpacked in turn: a delta needs the map before it. */
  #deliver() {
    const { message, request, missing, frames } = this.#header;
    if (missing.length || !request) return;
    const unpack = async () => {
      const exit = { ...message, kind: message.extra?.kind, ...frames };
      for (const [kind, buffer] of Object.entries(frames))
        exit[kind] = request.held[kind] = message.encoding === "delta" ? await applyDelta(buffer, request.held[kind]) : new Uint8Array(buffer);
      request.run.add(exit);
    };
    request.unpacking = request.unpacking.then(unpack).catch((error) => request.run.fail(new Refused(`The server's answer makes no sense: ${error.message}`)));
  }

  #last(id, tell) {
    const request = this.#open.get(id);
    this.#open.delete(id);
    request?.unpacking.then(() => tell(request));
  }
}
