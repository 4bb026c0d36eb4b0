"""What the page's sources of frames give back: the tracks of a camera and the bitmaps of frames."""

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
    const [camera, played] = [new CameraSource(() => {}, 480), []];
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
