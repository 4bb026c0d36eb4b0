// What the page says, in plain words.
import { readable } from "./scale.js";

const STOPPED = {
  complete: "That was the last exit.",
  max_exit: "That was the last exit allowed.",
  quality: "Good enough, so it stopped early.",
  deadline: "The next exit would have come too late.",
  cancelled: "Stopped.",
};

/** What a run brought: "First guess after 20 ms, final after 46 ms." */
export function summary(exits, stop) {
  const [first, last] = [exits[0], exits.at(-1)];
  if (!last) return STOPPED[stop];
  const final = last.exit === last.exits;
  const rest = first === last ? "" : `, ${final ? "final" : `exit ${last.exit}`} ${readable(last.elapsed_ms)}`;
  return `First guess ${readable(first.elapsed_ms)}${rest}. ${STOPPED[stop]}`;
}

/** Why there is no answer, without the words of the protocol. */
export function complaint(error, deadline_ms) {
  const known = {
    400: "The server cannot read this picture. Try another JPEG or PNG.",
    401: "This server answers only with a key.",
    403: "This server does not allow that.",
    413: "This picture is too large for the server. Choose a smaller size.",
    415: "The server cannot read this kind of picture. Try a JPEG or a PNG.",
    429: "You ask more often than this server allows. Wait a moment.",
    503: "The server is too busy to answer in time. Allow it more time, or try again.",
    504: `Nothing was ready within ${readable(deadline_ms)}. Allow it more time.`,
  };
  return known[error.status] ?? error.message;
}
