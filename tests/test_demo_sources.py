"""What the page's sources of frames give and give back, and what its stage shows of them."""

import pytest
from demo_page import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

CAMERA = """
    const { CameraSource } = await load("sources");
    const [tracks, granted] = [[], []];
    const mediaDevices = {
      getUserMedia: () => new Promise((done) => granted.push(() => {
        const track = { on: true, stop() { this.on = false; }, getSettings: () => ({ frameRate: 20 }) };
        tracks.push(track);
        done({ getTracks: () => [track], getVideoTracks: () => [track] });
      })),
    };
    Object.defineProperty(navigator, "mediaDevices", { value: mediaDevices, configurable: true });
    const [camera, played] = [new CameraSource(() => {}, () => 480), []];
    Object.assign(camera.video, { play: async () => played.push("play"), pause() {}, requestVideoFrameCallback() {} });
    Object.defineProperty(camera.video, "srcObject", { value: null, writable: true });
    try { %s } finally { delete navigator.mediaDevices; }
"""


def test_a_camera_that_is_started_twice_while_the_browser_asks_is_opened_once(run):
    code = """
        const first = camera.start();
        camera.stop(); // the tab is hidden, and shown again
        const second = camera.start();
        for (const grant of granted) grant();
        await Promise.all([first, second]);
        const on = tracks.map((track) => track.on);
        camera.close();
        await null;
        return [on, tracks.map((track) => track.on), played.length, camera.interval_ms];
    """
    assert run(CAMERA % code) == [[True], [False], 1, 50]


def test_a_camera_that_is_closed_before_the_permission_comes_goes_out(run):
    code = """
        const start = camera.start();
        camera.close();
        granted[0]();
        await start;
        return [tracks.map((track) => track.on), played.length];
    """
    assert run(CAMERA % code) == [[False], 0]


def test_a_picture_is_drawn_over_only_after_it_was_shown(run):
    """Else a deadline longer than the kept pictures last would show later pictures under earlier masks."""
    code = """
        const { FileSource } = await load("sources");
        const { Player } = await load("player");
        const [shown, pictures, timers, real] = [[], new Set(), [], window.setTimeout];
        const stage = { clear() {}, show: (picture) => shown.push(picture) };
        const server = { async *frames() {} };
        const player = new Player(server, stage, () => ({ deadline_ms: 9000 }), () => {});
        const give = (frame) => { pictures.add(frame.picture); player.offer(frame); };
        const source = new FileSource(give, () => 480, new Blob());
        const capture = (count) => { while (count--) source.capture(document.createElement("canvas"), 8, 6); };
        player.start();
        window.setTimeout = (act) => timers.push(act);
        try {
          capture(40);
          for (const act of timers.splice(0)) act();
          const distinct = new Set(shown).size;
          capture(40);
          for (const act of timers.splice(0)) { act(); capture(1); }
          return [distinct, shown.length, pictures.size <= 80 + 12];
        } finally { window.setTimeout = real; player.stop(); }
    """
    assert run(code) == [40, 80, True]


FIGURE = """
    const { Stage } = await load("stage");
    const figure = document.createElement("figure");
    const parts = { div: ["layers"], canvas: ["photo", "mask", "next", "dim"], span: ["badge", "tip"] };
    for (const [tag, names] of Object.entries(parts))
      for (const name of names) figure.append(Object.assign(document.createElement(tag), { className: name }));
"""


def test_pictures_that_are_partly_clear_are_not_mixed(run):
    code = """
        const { FileSource } = await load("sources");
        const [stage, pictures] = [new Stage(figure), new Set()];
        const source = new FileSource((frame) => pictures.add(frame.picture), () => 480, new Blob());
        const [full, clear] = [0, 1].map(() => document.createElement("canvas"));
        full.getContext("2d").fillRect(0, 0, 300, 150);
        for (const image of [full, clear]) {
          stage.show(image);
          for (let count = 0; count < 12; count++) source.capture(image, 2, 1); // into the same canvases
        }
        const opacity = (canvas) => canvas.getContext("2d").getImageData(0, 0, 1, 1).data[3];
        return [pictures.size, ...[figure.querySelector(".photo"), ...pictures].map(opacity)];
    """
    assert run(FIGURE + code) == [12, *[0] * 13]


def test_a_class_is_picked_in_the_exit_that_shines_through_as_well(run):
    code = """
        const stage = new Stage(figure);
        const [first, next] = [1, 2].map((exit) => ({ exit, size: [1, 1], mask: [0] }));
        const opacity = () => figure.querySelector(".next").getContext("2d").getImageData(0, 0, 1, 1).data[3];
        const found = [];
        for (const only of [null, 1]) {
          stage.draw(first, { labels: { palette: [[9, 9, 9]] }, view: "mask", only });
          stage.blend(next, 0.5);
          found.push(opacity());
        }
        return found;
    """
    shown, dimmed = run(FIGURE + code)
    assert shown == 255 and dimmed < 64


BITMAPS = """
    const [real, bitmaps] = [window.createImageBitmap, []];
    window.createImageBitmap = async (...given) => {
      const bitmap = await real(...given);
      bitmaps.push(bitmap);
      return bitmap;
    };
    try { return await (async () => { %s })(); } finally { window.createImageBitmap = real; }
"""


def test_the_bitmaps_of_the_street_are_closed(run):
    """A bitmap that is closed has no width."""
    code = """
        const { StreetSource } = await load("sources");
        const { LOOP_S, Street } = await load("clip/street");
        Object.getPrototypeOf(new Street()).draw = function () { return this.canvas; };
        const [realTimer, frames] = [window.setTimeout, 15 * LOOP_S + 2]; // two of the second loop
        window.setTimeout = (act) => realTimer(act);
        let given = 0;
        await new Promise((done) => {
          const source = new StreetSource(() => {
            if (++given < frames) return;
            source.stop();
            done();
          });
          source.start();
        });
        window.setTimeout = realTimer;
        await new Promise((done) => setTimeout(done));
        return bitmaps.map((bitmap) => bitmap.width);
    """
    assert run(BITMAPS % code) == [0, 0]


def test_the_bitmaps_of_maps_by_post_are_closed(run):
    code = """
        const { post } = await load("post");
        const canvas = Object.assign(document.createElement("canvas"), { width: 2, height: 1 });
        canvas.getContext("2d").fillRect(0, 0, 2, 1);
        const mask = { data: canvas.toDataURL().split(",")[1] };
        const palette = [[9, 9, 9], [0, 0, 0]];
        const messages = [{ type: "accepted", palette }, { type: "exit", mask }, { type: "end" }];
        const [masks, fetched] = [[], window.fetch];
        window.fetch = async () => new Response(messages.map((each) => `data: ${JSON.stringify(each)}\\n\\n`).join(""));
        const run = { add: (exit) => masks.push([...exit.mask]), finish() {} };
        await post(location.href, new Blob(), {}, run);
        window.fetch = fetched;
        return [masks, bitmaps.map((bitmap) => bitmap.width)];
    """
    assert run(BITMAPS % code) == [[[1, 1]], [0]]
