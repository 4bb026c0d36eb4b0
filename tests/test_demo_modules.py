"""The page's modules that are pure, evaluated in a browser without a server's answers."""

import base64
import json
import re
import shlex
import shutil
import subprocess

import pytest
from demo_page import CHROMIUM, photo
from pages import ROOT, adapted, blocks

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")


def imports(path):
    return {(path.parent / name).resolve() for name in re.findall(r'from "(\.[^"]+)"', path.read_text())}


def test_what_modules_of_the_page_import_is_loaded_beside_them():
    """Else the browser would hear of each only when it has the one that imports it."""
    app = ROOT / "clients" / "web" / "app.js"
    found, heard = set(), imports(app)
    while heard:
        module = heard.pop()
        heard |= imports(module) - found
        found.add(module)
    page = (app.parent / "index.html").read_text()
    preloaded = re.findall('rel="modulepreload" href="static/(.*)"', page)
    assert {app.parent / name for name in preloaded} == found - imports(app)


HELD = """
    const { Held } = await load("held");
    const held = new Held();
    for (const [exit, elapsed_ms] of [[1, 20], [2, 30], [4, 50]]) held.add({ exit, elapsed_ms });
"""


@pytest.mark.parametrize(("ms", "number"), [(19, None), (20, 1), (29.9, 1), (45, 2), (50, 4), (900, 4)])
def test_the_exit_at_a_moment_is_the_newest_that_was_there(run, ms, number):
    assert run(f"{HELD} return held.at({ms})?.exit ?? null;") == number


@pytest.mark.parametrize(("ms", "found"), [(10, None), (20, [2, 0]), (40, [4, 0.5]), (50, None)])
def test_the_next_exit_shines_through_by_the_time_that_has_passed(run, ms, found):
    assert run(f"{HELD} const next = held.next({ms}); return next && [next.exit.exit, next.share];") == found


def test_a_later_run_replaces_the_exits_that_it_reached(run):
    assert run(f"{HELD} held.add({{ exit: 1, elapsed_ms: 35 }}); return held.all.map((exit) => exit.elapsed_ms);") == [
        35,
        30,
        50,
    ]


def test_the_newest_frame_wins(run):
    code = """
        const { Newest } = await load("newest");
        const newest = new Newest();
        const taken = [];
        for (const frame of [1, 2, 3]) newest.put(frame);
        for await (const frame of newest) {
          taken.push(frame);
          if (frame === 3) { newest.put(4); newest.put(5); newest.end(); }
        }
        return [taken, newest.dropped];
    """
    assert run(code) == [[3, 5], 3]


@pytest.mark.parametrize(
    ("answers", "told", "waits_ms"),
    [
        (["exit", 0, "exit"], ["exit", "missed", "exit"], []),  # opened again at once
        (["exit", 0, 0, 502, "exit"], ["exit", "missed", "missed", "missed", "exit"], [2000, 2000]),
        ([504, 503, "exit"], ["missed", "missed", "exit"], []),
        ([503, 0, "exit"], ["missed", "missed", "exit"], []),
        ([0], ["thrown"], []),  # it never answered
        (["exit", 400], ["exit", "thrown"], []),  # no later frame mends that
    ],
)
def test_frames_go_on_where_a_connection_broke(run, answers, told, waits_ms):
    code = f"""
        const {{ Anytime, Newest, Refused }} = await load("anytime");
        const [server, source, answers, told, waits_ms] = [new Anytime(location.href), new Newest(), {answers}, [], []];
        server.predict = async function* () {{
          const answer = answers.shift();
          if (answer !== "exit") throw new Refused("no", "", answer);
          yield answer;
        }};
        source[Symbol.asyncIterator] = async function* () {{ while (answers.length) yield {{}}; }};
        const real = window.setTimeout;
        window.setTimeout = (act, ms) => {{ waits_ms.push(ms); queueMicrotask(act); }};
        try {{
          for await (const {{ exit, missed }} of server.frames(source)) told.push(exit ?? (missed && "missed"));
        }} catch {{ told.push("thrown"); }}
        window.setTimeout = real;
        return [told, waits_ms];
    """
    assert run(code) == [told, waits_ms]


def test_a_video_that_paused_is_read_once_and_tells_its_pace(run):
    code = """
        const { FileSource } = await load("sources");
        const [given, due] = [[], []];
        const source = new FileSource((frame) => given.push(frame.number), () => 480, new Blob());
        const [play, pause, requestVideoFrameCallback] = [async () => {}, () => {}, (take) => due.push(take)];
        Object.assign(source.video, { play, pause, requestVideoFrameCallback });
        Object.defineProperties(source.video, { videoWidth: { value: 8 }, videoHeight: { value: 6 } });
        await source.start();
        source.stop();
        await source.start();
        for (let frame = 0; frame < 100; frame += 2) // every other frame does not come here
          for (const take of due.splice(0)) take(0, { mediaTime: 0.04 * frame, presentedFrames: frame });
        return [given.length, due.length, source.interval_ms];
    """
    assert run(code) == [50, 1, pytest.approx(40, abs=0.1)]


def test_a_class_that_is_picked_or_in_focus_keeps_its_row(run):
    code = """
        const { Legend } = await load("legend");
        document.body.innerHTML = `<h2 id="legend-title"></h2><ul id="legend"></ul>
          <template id="row"><li><button><i></i><span></span><small></small></button></li></template>`;
        const [legend, labels] = [new Legend(() => {}), { names: ["a", "b", "c", "d"], palette: [] }];
        const draw = (only, ...mask) => legend.draw({ mask }, labels, { view: "mask", only, sorted: true });
        const text = () => [...document.querySelectorAll("#legend button")].map((button) => button.textContent);
        draw(null, 0, 1, 1, 2);
        const before = text();
        const row = document.querySelector("[data-label='2']");
        row.focus();
        draw(0, 1, 3, 3, 3);
        return [before, text(), document.activeElement === row];
    """
    assert run(code) == [["b50.0 %", "a25.0 %", "c25.0 %"], ["d75.0 %", "b25.0 %", "a0.0 %", "c0.0 %"], True]


def test_the_dial_begins_at_the_first_exit_and_reaches_beyond_the_last(run):
    code = """
        const { Scale } = await load("scale");
        const scale = new Scale(20, 46);
        const there = [0, 400, 1000].map((position) => [scale.ms(position), scale.position(scale.ms(position))]);
        return [...there, [scale.position(5), scale.position(900)]];
    """
    (first, zero), (_, middle), (end, last), outside = run(code)
    assert (first, zero, end, last, outside) == (20, 0, 150, 1000, [0, 1000]) and middle == pytest.approx(400, abs=8)


def test_what_exits_take_is_what_was_learnt_at_this_size_or_scales_with_the_area(run):
    code = """
        const { denseGmacs, seconds } = await load("scale");
        const exits = [{ seconds: 0.01, gmacs: 2 }, { seconds: 0.03, gmacs: 6 }];
        const learnt = [{ shape: [384, 480], exits: [{ seconds: 0.02 }, { seconds: 0.04 }] }];
        const model = { task: "segmentation", size: [360, 480], exits, learnt };
        const pose = { ...model, task: "pose", size: [384, 480] };
        return [seconds(model, 360, 480), seconds(model, 768, 480), seconds(pose, 9, 9), denseGmacs(model, 768, 960)];
    """
    assert run(code) == [[0.02, 0.04], [0.02, 0.06], [0.02, 0.04], 24]


def test_the_figures_are_of_the_last_seconds(run):
    code = """
        const { Tally } = await load("tally");
        const tally = new Tally();
        tally.add({ exit: 1, gmacs: 6 }, 6, 0); // too long ago
        for (const [exit, at] of [[2, 2000], [4, 2500], [null, 3000], [4, 3500]])
          tally.add(exit && { exit, gmacs: exit }, 6, at);
        return { ...tally.figures(4000), saved: tally.saved };
    """
    assert run(code) == {
        "fps": 1.5,
        "missed": 1,
        "exits": {"2": pytest.approx(1 / 3), "4": pytest.approx(2 / 3)},
        "computed": pytest.approx(10 / 18),
        "right": None,
        "saved": 8,
    }


@pytest.mark.parametrize(
    ("found", "truth", "score"),
    [
        ([0, 1], [0, 1], 1),
        ([0, 0], [0, 1], 0.25),
        ([3, 1], [1, 1], 0.5),
        ([1, 3], [1, 2], 1),  # the model does not know class 2
        ([0, 1], [2, 2], None),
    ],
)
def test_mean_iou_is_over_the_classes_that_are_there_and_that_the_model_knows(run, found, truth, score):
    """The model may number the classes otherwise."""
    code = f"""
        const {{ meanIou }} = await load("tally");
        const truth = {{ labels: {truth}, names: ["sky", "road", "pole"], width: 2, height: 1 }};
        const score = (names, mask) => meanIou({{ mask, size: [1, 2] }}, truth, names);
        const [names, mask] = [["sky", "road", "wall", "car"], {found}];
        return [score(names, mask), score(names.toReversed(), mask.map((label) => 3 - label))];
    """
    assert run(code) == [score, score]


def test_a_delta_is_applied_to_the_map_before(run):
    code = """
        const { applyDelta } = await load("run");
        const changes = new Blob([new Uint8Array([0, 3])]).stream();
        const packed = await new Response(changes.pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
        return [...(await applyDelta(packed, null)), ...(await applyDelta(packed, new Uint8Array([5, 6])))];
    """
    assert run(code) == [0, 3, 5, 5]


def test_the_street_repeats_and_knows_its_classes(run):
    code = """
        const { CLASSES, LOOP_S, Street } = await load("clip/street");
        const street = new Street(120, 90);
        const at = (time) => street.draw(time).toDataURL();
        const [start, later, again] = [at(2), at(5), at(2 + LOOP_S)];
        const truth = street.truth();
        const classes = [...new Set(truth.labels)].map((label) => CLASSES[label]);
        return [start === again, start === later, truth.labels.length, classes];
    """
    repeats, stands, count, classes = run(code)
    assert repeats and not stands and count == 60 * 45
    assert {"sky", "building", "road", "pavement", "tree", "fence", "car", "bicyclist"} <= set(classes)
    assert None not in classes


EXIT, END = {"type": "exit", "exit": 1, "keypoints": []}, {"type": "end", "exit": 1}
ERROR = {"type": "error", "error": "too late", "code": "no_exit", "status": 504}
BROKE = ["The connection broke before the last exit.", 0]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        ([{"type": "accepted"}, EXIT, {**EXIT, "exit": 2}, END], ["exit 1", "exit 2", "end"]),
        ([{"type": "accepted"}, EXIT, ERROR], ["exit 1", ["too late", 504]]),
        ([{"type": "accepted"}, EXIT], ["exit 1", BROKE]),
        ([], [BROKE]),
    ],
)
def test_exits_come_as_events_where_there_is_no_socket(run, messages, told):
    text = "".join(f"event: {message['type']}\ndata: {json.dumps(message)}\n\n" for message in messages)
    code = f"""
        const {{ post }} = await load("post");
        const [told, text, real] = [[], {json.dumps(text)}, window.fetch];
        const parts = text.match(/[^]{{1,7}}/g) ?? []; // events come cut into pieces
        const body = new ReadableStream({{
          start(flow) {{
            for (const part of parts) flow.enqueue(new TextEncoder().encode(part));
            flow.close();
          }},
        }});
        window.fetch = async () => new Response(body);
        const run = {{ add: (exit) => told.push(`exit ${{exit.exit}}`), finish: (end) => told.push(end.type) }};
        await post(location.href, new Blob(), {{}}, run).catch((error) => told.push([error.message, error.status]));
        window.fetch = real;
        return told;
    """
    assert run(code) == told


def said(run, program, *, lines=None):
    """What a program logs, which has `photo` to ask for; it is ended after so many `lines`."""
    imported = re.sub("^import (.*) from (.*);", r"const \1 = await import(\2);", program, flags=re.MULTILINE)
    return run(f"""
        const file = atob("{base64.b64encode(photo()).decode()}");
        const photo = new Blob([Uint8Array.from(file, (letter) => letter.charCodeAt(0))]);
        const told = [];
        const console = {{ log(...words) {{ if (told.push(words) === {lines or "Infinity"}) throw console; }} }};
        try {{
          {imported}
        }} catch (error) {{ if (error !== console) throw error; }}
        return told;
    """)


SEEN = pytest.mark.parametrize(
    "seen",
    [
        {"model": model, "clip": clip, **options}
        for model, options in (("tiny-segmentation", {"map": "unsure"}), ("tiny-pose", {"box": [8, 8, 40, 40.4]}))
        for clip in (None, "drive/*.jpg")
    ],
    ids=str,
)


def code_of(run, url, seen):
    asked = {"base": f"{url}/", "deadline_ms": 20_000, **seen}
    return run(f"const {{ snippets }} = await load('snippets'); return snippets({json.dumps(asked)});")


@SEEN
@pytest.mark.usefixtures("place")
def test_the_python_and_curl_of_what_is_seen_run(run, live_url, capsys, seen):
    code = code_of(run, live_url, seen)
    exec(compile(code["python"], "snippet", "exec"), {})
    assert re.search("^0 4 .* s old$" if seen["clip"] else "^4 .* ", capsys.readouterr().out, re.MULTILINE)
    if shutil.which("curl"):
        command = [*shlex.split(code["curl"].replace("\\\n", " ")), "--silent", "--fail"]
        assert json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["exit"] == 4


@SEEN
def test_the_javascript_of_what_is_seen_runs(run, live_url, seen):
    program = code_of(run, live_url, seen)["javascript"]
    program = re.sub("new Newest.*", "new Newest(); clip.put({ image: photo }); clip.end();", program)
    assert said(run, program)[-1][0] == 4


def test_the_programs_of_the_page_s_manual_run(run, live_url):
    asking, following = [adapted(text, live_url) for language, text in blocks("docs/page.md") if language == "js"]
    assert said(run, asking)[-1][::2] == [4, [120, 160]]
    assert {number for [number] in said(run, following, lines=5)} <= {1, 2, 3, 4}
