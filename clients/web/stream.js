// The WebSocket to the server. It carries one request after another, and reports each exit as it comes.

const CLOSED = { 1006: "The server cannot be reached. Is it running?", 1013: "The server is overloaded; try again soon." };

/** Decode a `delta`: zlib of the new map XOR `held`, the map before it (none at first, which counts as zeros). */
export async function applyDelta(buffer, held) {
  const inflated = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("deflate"));
  const map = new Uint8Array(await new Response(inflated).arrayBuffer());
  if (held) for (let i = 0; i < map.length; i++) map[i] ^= held[i];
  return map;
}

export class Stream {
  #url;
  #socket = null;
  #count = 0;
  #request = null; // the latest request: {id, on, sent, held: the last map of each kind}
  #exit = null; // the exit that is arriving: its header, and the maps so far
  #missing = []; // the kinds of its maps that are still to come
  #queue = Promise.resolve(); // handles messages one by one, because unpacking is asynchronous

  constructor(url) {
    this.#url = url;
  }

  /** Send `image` (a promise of a Blob). Calls `on.exit`, `on.end` or `on.error` until the next call of predict. */
  async predict(options, image, on) {
    const request = (this.#request = { id: `page-${++this.#count}`, on, held: {} });
    const [socket, blob] = await Promise.all([this.#open(), image]);
    if (!socket || this.#request !== request) return;
    request.sent = true;
    socket.send(JSON.stringify({ type: "predict", id: request.id, encoding: "delta", map: "unsure", ...options }));
    socket.send(blob);
  }

  /** Ask the server to stop. `on.end` is still called: at once if the image has not been sent yet. */
  cancel() {
    if (this.#request && !this.#request.sent) this.#last("end", { exit: 0, stop: "cancelled", elapsed_ms: 0, skipped: [] });
    else this.#send({ type: "cancel" });
  }

  /** Move the deadline to `deadline_ms` from now. */
  deadline(deadline_ms) {
    this.#send({ type: "deadline", deadline_ms });
  }

  #send(message) {
    if (this.#request && this.#socket?.readyState === WebSocket.OPEN)
      this.#socket.send(JSON.stringify({ ...message, id: this.#request.id }));
  }

  /** An open socket, or null if none can be opened; `on.error` is then called too. */
  #open() {
    if (this.#socket?.readyState === WebSocket.OPEN) return this.#socket;
    return new Promise((resolve) => {
      const socket = (this.#socket = new WebSocket(this.#url));
      socket.binaryType = "arraybuffer";
      socket.onopen = () => resolve(socket);
      socket.onmessage = ({ data }) => this.#next(() => (typeof data === "string" ? this.#text(JSON.parse(data)) : this.#binary(data)));
      socket.onclose = ({ code, reason }) => {
        resolve(null);
        const sentence = reason || CLOSED[code] || `The server hung up (code ${code}).`;
        this.#next(() => this.#socket === socket && this.#last("error", sentence));
      };
    });
  }

  #next(handle) {
    this.#queue = this.#queue.then(handle).catch((error) => this.#last("error", `The server's answer makes no sense: ${error.message}`));
  }

  #text(message) {
    const wanted = message.id === null || message.id === this.#request?.id;
    if (message.type === "exit") {
      this.#exit = wanted ? { ...message, request: this.#request, mask: null, unsureMap: null } : null;
      this.#missing = [...(message.keypoints ? [] : ["mask"]), ...(message.extra ? ["unsureMap"] : [])];
      this.#deliver();
    } else if (wanted && message.type === "error" && !message.open) this.#last("error", message.error);
    else if (wanted && message.type === "end") this.#last("end", message);
  }

  async #binary(buffer) {
    const kind = this.#missing.shift();
    if (!this.#exit) return; // it belongs to a request that was replaced
    const { held } = this.#exit.request;
    this.#exit[kind] = held[kind] = await applyDelta(buffer, held[kind]);
    this.#deliver();
  }

  #deliver() {
    if (this.#exit && !this.#missing.length && this.#exit.request === this.#request) this.#request.on.exit(this.#exit);
  }

  #last(event, value) {
    const request = this.#request;
    this.#request = null;
    request?.on[event](value);
  }
}
