// What is seen, in code: curl, Python and JavaScript.

/** `asked`: {base, model, deadline_ms, map, box}. */
export function snippets({ base, model, deadline_ms, map, box }) {
  const shown = deadline_ms < 100 ? +deadline_ms.toFixed(1) : Math.round(deadline_ms);
  const query = Object.entries({ model, deadline_ms: shown, map, box: box?.map(Math.round).join(",") }).filter(([, value]) => value);
  const python = query.map(([name, value]) => `${name === "map" ? "extra" : name}=${name === "box" ? `(${value})` : typeof value === "number" ? value : `"${value}"`}`).join(", ");
  const options = query.map(([name, value]) => `${name}: ${name === "box" ? `[${value}]` : typeof value === "number" ? value : `"${value}"`}`).join(", ");
  return {
    curl: `curl --data-binary @photo.jpg \\\n     '${base}v1/predict?${query.map((pair) => pair.join("=")).join("&")}'`,
    python: [
      "from adpc_client import Client",
      "",
      `with Client("${base.replace(/\/$/, "")}") as client:`,
      `    with client.stream("photo.jpg", ${python}) as exits:`,
      "        for exit in exits:  # each is better than the last",
      "            print(exit.exit, exit.elapsed_ms, exit.unsure)",
    ].join("\n"),
    javascript: [
      `import { Anytime } from "${base}static/anytime.js";`,
      "",
      `const server = new Anytime("${base}");`,
      `for await (const exit of server.predict(photo, { ${options} }))`,
      "  console.log(exit.exit, exit.elapsed_ms, exit.unsure);",
    ].join("\n"),
  };
}
