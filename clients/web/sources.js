// Where frames come from: the drawn street, a camera, a video file. Each gives frames until it is stopped.
import { LOOP_S, Street } from "./clip/street.js";

export const SHOWN_PX = 2048; // the longest side of a photo on the page
const KEPT = 12; // pictures of the latest frames are kept; older ones are reused, unless a player waits to show them

/** A size, made smaller if its longer side has more than `limit_px` pixels. */
export function fittedSize({ width, height }, limit_px) {
  const scale = Math.min(1, limit_px / Math.max(width, height));
  return { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) };
}

/** A canvas with `image`, made smaller if its longer side has more than `limit_px` pixels. */
export function fitted(image, limit_px) {
  const size = fittedSize(image, limit_px);
  const canvas = Object.assign(document.createElement("canvas"), size);
  const brush = canvas.getContext("2d");
  brush.imageSmoothingQuality = "high";
  brush.drawImage(image, 0, 0, size.width, size.height);
  return canvas;
}

/** A canvas as a JPEG file: a promise of a Blob. */
export const jpeg = (canvas, quality = 0.9) => new Promise((done) => canvas.toBlob(done, "image/jpeg", quality));

/** A frame: its number, when it came, its picture (a canvas), and its file, which is made when it is first asked for. */
class Frame {
  awaited = 0; // by how many players: each has not shown it yet
  #image = null;

  /** `truth`: the classes, where they are known. `file`: a promise of the picture as a JPEG file, where there is one. */
  constructor(number, picture, truth = null, file = null) {
    Object.assign(this, { number, picture, truth, at_ms: performance.now() });
    this.#image = file;
  }

  get image() {
    return (this.#image ??= jpeg(this.picture));
  }
}

/** Gives frames to `give`. Their pictures are drawn over later. `path`: what a program would open to get the like. */
class Source {
  lost = () => {}; // called with an error if no further frame comes
  #number = 0;
  #given = []; // the frames whose pictures are kept, the oldest first

  constructor(give) {
    this.give = give;
  }

  capture(image, width, height, truth = null, file = null) {
    let picture = null;
    while (this.#given.length >= KEPT && !this.#given[0].awaited) ({ picture } = this.#given.shift());
    picture ??= document.createElement("canvas");
    if (picture.width !== width || picture.height !== height) Object.assign(picture, { width, height });
    const brush = picture.getContext("2d");
    brush.globalCompositeOperation = "copy"; // a frame before does not shine through one that is partly clear
    brush.drawImage(image, 0, 0, width, height);
    const frame = new Frame(++this.#number, picture, truth, file);
    this.#given.push(frame);
    this.give(frame);
  }
}

const RATE = 15; // frames of the street a second

/** The drawn street. Its frames know their true classes. Each moment is drawn once, and kept as a file for the next loop. */
export class StreetSource extends Source {
  path = "street.mp4";
  interval_ms = 1000 / RATE;
  #street = new Street();
  #kept = []; // {file, truth} of each frame of the loop
  #index = 0;
  #timer = 0;

  async start() {
    let due = performance.now();
    const tick = async () => {
      const timer = this.#timer;
      await this.#next();
      if (timer !== this.#timer) return; // stopped meanwhile
      due = Math.max(due + this.interval_ms, performance.now()); // late frames do not hurry the next
      this.#timer = setTimeout(tick, due - performance.now());
    };
    clearTimeout(this.#timer);
    this.#timer = setTimeout(tick);
  }

  stop() {
    clearTimeout(this.#timer);
    this.#timer = 0;
  }

  async #next() {
    const index = this.#index++ % (RATE * LOOP_S);
    const { width, height } = this.#street.canvas;
    const kept = this.#kept[index];
    if (kept) {
      const image = await createImageBitmap(await kept.file);
      this.capture(image, width, height, kept.truth, kept.file);
      return image.close();
    }
    const canvas = this.#street.draw(index / RATE);
    const [file, truth] = [jpeg(canvas), this.#street.truth()];
    this.#kept[index] = { file, truth };
    this.capture(canvas, width, height, truth, file);
  }
}

/** What a video element shows once its subclass has opened it: a frame whenever the browser has a new one. */
class VideoSource extends Source {
  interval_ms = 1000 / 30; // until its frames tell
  #limit;
  #run = null; // stands for the time from a start to the next stop
  #last = null; // what the browser said of the last frame

  /** `limit()`: how many pixels the longer side of the next frame may have. */
  constructor(give, limit) {
    super(give);
    this.#limit = limit;
    this.video = Object.assign(document.createElement("video"), { muted: true, playsInline: true, loop: true });
    this.video.onerror = () => this.#run && this.lost(new Error("This browser cannot play this video."));
  }

  async start() {
    const run = (this.#run = {});
    this.#last = null;
    await this.open();
    if (run !== this.#run) return; // it was stopped before it opened
    try {
      await this.video.play();
    } catch (error) {
      if (run === this.#run) throw error; // else it was stopped before it played
    }
    const next = () => (this.video.requestVideoFrameCallback ? this.video.requestVideoFrameCallback(take) : requestAnimationFrame(take));
    const take = (_, seen) => {
      if (run !== this.#run) return;
      const { videoWidth, videoHeight } = this.video;
      const { width, height } = fittedSize({ width: videoWidth, height: videoHeight }, this.#limit());
      if (videoWidth) this.capture(this.video, width, height);
      if (seen) this.#pace(seen);
      next();
    };
    next();
  }

  stop() {
    this.#run = null;
    this.video.pause();
  }

  /** Learn how far the frames are apart, some of which may not have come here. */
  #pace(seen) {
    const found_ms = (1000 * (seen.mediaTime - this.#last?.mediaTime)) / (seen.presentedFrames - this.#last?.presentedFrames);
    if (found_ms > 0 && found_ms < 1000) this.interval_ms += (found_ms - this.interval_ms) / 8;
    this.#last = seen;
  }
}

export class CameraSource extends VideoSource {
  path = "camera:0";
  #stream = null; // a promise: the browser may ask for permission first

  async open() {
    if (!navigator.mediaDevices) throw new Error("browsers allow it over HTTPS and on this machine only");
    const wanted = { video: { width: { ideal: 640 }, height: { ideal: 480 }, facingMode: "environment" } };
    this.#stream ??= navigator.mediaDevices.getUserMedia(wanted);
    const stream = await this.#stream;
    this.video.srcObject = stream;
    const [track] = stream.getVideoTracks();
    track.onended = () => this.lost(new Error("The camera was unplugged, or may not be used any longer."));
    const { frameRate } = track.getSettings();
    if (frameRate) this.interval_ms = 1000 / frameRate;
  }

  /** Stop for good: the camera's light goes out, also if the permission comes later. */
  close() {
    this.stop();
    this.#stream?.then((stream) => stream.getTracks().forEach((track) => track.stop()), () => {});
  }
}

export class FileSource extends VideoSource {
  #file;

  constructor(give, limit, file) {
    super(give, limit);
    this.#file = file;
    this.path = file.name;
  }

  async open() {
    this.video.src ||= URL.createObjectURL(this.#file);
  }

  close() {
    this.stop();
    URL.revokeObjectURL(this.video.src);
  }
}
