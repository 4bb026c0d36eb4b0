// A request by POST, for where no WebSocket gets through: its exits come as server-sent events, with their maps as PNG files.
import { Refused, answered, lost } from "./run.js";

/** Send the request, and add its exits to `run` as they come. Throws `Refused`. */
export async function post(base, blob, { box, ...options }, run, signal) {
  const url = new URL("v1/predict", base);
  for (const [name, value] of Object.entries({ ...options, ...(box && { box: box.join(",") }) }))
    if (value !== undefined) url.searchParams.set(name, value);
  const headers = { "Content-Type": blob.type, Accept: "text/event-stream" };
  const response = await fetch(url, { method: "POST", body: blob, headers, signal }).catch(lost);
  if (!response.ok) await answered(response);
  let palette = [];
  for await (const message of events(response.body)) {
    if (message.type === "accepted") ({ palette } = message);
    else if (message.type === "exit") run.add(await unpacked(message, palette));
    else if (message.type === "error") throw new Refused(message.error, message.code, message.status);
    else if (message.type === "end") return run.finish(message);
  }
  throw new Refused("The connection broke before the last exit.");
}

/** The messages of a stream of events: each is a line of JSON behind `data: `, and an empty line ends it. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read().catch(lost);
    if (done) return;
    const whole = (text + value).split("\n\n");
    text = whole.pop();
    for (const event of whole) yield JSON.parse(event.slice(event.indexOf("data: ") + 6));
  }
}

/** The exit of a message, with its maps as bytes. */
async function unpacked({ mask, extra, ...message }, palette) {
  return {
    ...message,
    ...(mask && { mask: await classes(mask, palette) }),
    ...(extra && { kind: extra.kind, extra: await channel(extra) }),
  };
}

/** The class of each pixel: the number of its colour in the palette. */
async function classes({ data }, palette) {
  const numbers = new Map(palette.map(([red, green, blue], label) => [(red << 16) | (green << 8) | blue, label]));
  const pixels = await decoded(data);
  return Uint8Array.from({ length: pixels.length / 4 }, (_, at) => numbers.get((pixels[4 * at] << 16) | (pixels[4 * at + 1] << 8) | pixels[4 * at + 2]));
}

async function channel({ data }) {
  const pixels = await decoded(data);
  return Uint8Array.from({ length: pixels.length / 4 }, (_, at) => pixels[4 * at]);
}

/** RGBA of a PNG file in base64. */
async function decoded(data) {
  const file = new Blob([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], { type: "image/png" });
  const image = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(image.width, image.height);
  const brush = canvas.getContext("2d", { willReadFrequently: true });
  brush.drawImage(image, 0, 0);
  image.close();
  return brush.getImageData(0, 0, canvas.width, canvas.height).data;
}
