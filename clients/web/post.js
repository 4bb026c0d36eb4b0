// A request by POST, for where no WebSocket gets through: one answer, in JSON, with its maps as PNG files.
import { Refused } from "./run.js";

/** Send the request, and add its exit to `run`. */
export async function post(base, blob, { box, ...options }, run, signal) {
  const url = new URL("v1/predict", base);
  for (const [name, value] of Object.entries({ ...options, ...(box && { box: box.join(",") }) }))
    if (value !== undefined) url.searchParams.set(name, value);
  const response = await fetch(url, { method: "POST", body: blob, headers: { "Content-Type": blob.type }, signal });
  const body = await response.json();
  if (!response.ok) throw new Refused(body.error, body.code, response.status);
  const exit = { ...body, kind: body.map?.kind, extra: body.map && (await channel(body.map.data)) };
  if (body.mask) exit.mask = await classes(body.mask);
  run.add(exit);
  run.finish({ exit: body.exit, stop: body.stop, elapsed_ms: body.elapsed_ms, skipped: [] });
}

/** The class of each pixel: the number of its colour in the palette. */
async function classes({ data, palette }) {
  const numbers = new Map(palette.map(([red, green, blue], label) => [(red << 16) | (green << 8) | blue, label]));
  const pixels = await decoded(data);
  return Uint8Array.from({ length: pixels.length / 4 }, (_, at) => numbers.get((pixels[4 * at] << 16) | (pixels[4 * at + 1] << 8) | pixels[4 * at + 2]));
}

async function channel(data) {
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
  return brush.getImageData(0, 0, image.width, image.height).data;
}
