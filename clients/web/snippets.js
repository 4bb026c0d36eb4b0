// What is seen, in code: curl, Python and JavaScript.

/** A value as Python and JavaScript write it; `[` and `]` or `(` and `)` stand around a list. */
const literal = (value, [open, close]) => (Array.isArray(value) ? `${open}${value.join(", ")}${close}` : JSON.stringify(value));

/** `asked`: {base, model, deadline_ms, map, box, clip}. `clip` is what a program follows instead of the page's clip; null for a photo. */
export function snippets({ base, model, deadline_ms, map, box, clip }) {
  const shown = deadline_ms < 100 ? +deadline_ms.toFixed(1) : Math.round(deadline_ms);
  const options = Object.entries({ model, deadline_ms: shown, map, box: box?.map(Math.round) }).filter(([, value]) => value);
  const keywords = options.map(([name, value]) => `${name === "map" ? "extra" : name}=${literal(value, "()")}`).join(", ");
  const members = options.map(([name, value]) => `${name}: ${literal(value, "[]")}`).join(", ");
  return {
    curl: `curl --data-binary @photo.jpg \\\n     '${base}v1/predict?${options.map(([name, value]) => `${name}=${value}`).join("&")}'`,
    python: [
      "from adpc_client import Client",
      "",
      `with Client("${base.replace(/\/$/, "")}") as client:`,
      ...(clip
        ? [
            `    for frame, found in client.follow(${JSON.stringify(clip)}, ${keywords}):`,
            '        print(found.index, found.exit, f"{found.age_s:.3f} s old")',
          ]
        : [
            `    with client.stream("photo.jpg", ${keywords}) as exits:`,
            "        for exit in exits:  # each is better than the last",
            "            print(exit.exit, exit.elapsed_ms, exit.unsure)",
          ]),
    ].join("\n"),
    javascript: [
      `import { Anytime${clip ? ", Newest" : ""} } from "${base}static/anytime.js";`,
      "",
      `const server = new Anytime("${base}");`,
      ...(clip
        ? [
            "const clip = new Newest(); // put({ image: blob }) whenever there is a frame",
            `for await (const { frame, exit } of server.frames(clip, { ${members} }))`,
            "  if (exit) console.log(exit.exit, exit.elapsed_ms, exit.unsure);",
          ]
        : [
            `for await (const exit of server.predict(photo, { ${members} }))`,
            "  console.log(exit.exit, exit.elapsed_ms, exit.unsure);",
          ]),
    ].join("\n"),
  };
}
