// The server's WebSocket: one request after another, exits as they come.

/** Apply the `delta` encoding: `held` is the map sent before (Uint8Array) or null; returns the new map, flat. */
export function applyDelta(bytes, held) {
  const view = new DataView(bytes);
  if (view.getUint32(0, true) === 0) return new Uint8Array(bytes, 4);
  const map = held.slice();
  const count = view.getUint32(4, true);
  let labels = 8 + 8 * count;
  for (let run = 0; run < count; run++) {
    const start = view.getUint32(8 + 4 * run, true);
    const length = view.getUint32(8 + 4 * (count + run), true);
    map.set(new Uint8Array(bytes, labels, length), start);
    labels += length;
  }
  return map;
}

export class Stream {
  #url;
  #socket = null;
  #count = 0;
  #request = null; // the one whose exits are wanted: {id, held: {kind: map}, on}
  #header = null;
  #parts = []; // of the exit that is arriving: {kind, encoding, bytes, data}

  constructor(url) {
    this.#url = url;
  }

  /** Send `image` (a Blob). `on` holds callbacks: accepted, exit, end, error; none is called once another predict began. */
  async predict(options, image, on) {
    const request = (this.#request = { id: `page-${++this.#count}`, held: {}, on });
    try {
      const socket = await this.#open();
      if (this.#request !== request) return;
      socket.send(JSON.stringify({ type: "predict", id: request.id, encoding: "delta", map: "unsure", ...options }));
      socket.send(image);
    } catch (error) {
      this.#fail(error.message);
    }
  }

  cancel() {
    this.#send({ type: "cancel" });
  }

  /** Milliseconds from now. */
  deadline(deadline_ms) {
    this.#send({ type: "deadline", deadline_ms });
  }

  #send(message) {
    if (this.#request && this.#socket?.readyState === WebSocket.OPEN)
      this.#socket.send(JSON.stringify({ ...message, id: this.#request.id }));
  }

  #open() {
    if (this.#socket?.readyState === WebSocket.OPEN) return this.#socket;
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(this.#url);
      socket.binaryType = "arraybuffer";
      socket.onopen = () => resolve((this.#socket = socket));
      socket.onmessage = ({ data }) => (typeof data === "string" ? this.#text(JSON.parse(data)) : this.#binary(data));
      socket.onclose = ({ code, reason }) => {
        const sentence = reason || { 1006: "The server cannot be reached. Is it running?", 1013: "The server is overloaded; try again soon." }[code];
        reject(new Error(sentence ?? `The server closed the connection (code ${code}).`));
        if (this.#socket === socket) this.#fail(sentence ?? `The server closed the connection (code ${code}).`);
      };
    });
  }

  #text(message) {
    const current = message.id == null || message.id === this.#request?.id;
    if (message.type === "exit") {
      const mask = message.keypoints ? [] : [{ kind: "mask", encoding: message.encoding }];
      this.#header = current ? message : null;
      this.#parts = [...mask, ...(message.extra ? [message.extra] : [])].map((part) => ({ ...part, data: null }));
      this.#deliver();
    } else if (current) {
      if (message.type === "error") this.#fail(message.error);
      else if (message.type === "end") this.#finish("end", message);
      else this.#request?.on[message.type]?.(message);
    }
  }

  #binary(data) {
    const part = this.#parts.find((candidate) => candidate.data === null);
    if (part) part.data = data;
    this.#deliver();
  }

  #deliver() {
    if (!this.#header || this.#parts.some((part) => part.data === null)) return;
    const exit = { ...this.#header, mask: null, unsureMap: null };
    const { held } = this.#request;
    for (const { kind, data } of this.#parts) {
      held[kind] = applyDelta(data, held[kind] ?? null);
      exit[kind === "mask" ? "mask" : "unsureMap"] = held[kind];
    }
    this.#header = null;
    this.#request.on.exit(exit);
  }

  #fail(sentence) {
    this.#finish("error", sentence);
  }

  #finish(event, value) {
    const request = this.#request;
    this.#request = null;
    request?.on[event](value);
  }
}
