"""The page's connection: sockets that close, and requests that go by POST meanwhile. The test plays the server."""

import pytest
from demo_page import CHROMIUM

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

SOCKETS = """
    const { Anytime, Newest } = await load("anytime");
    const sockets = [];
    class Socket {
      static OPEN = 1;
      readyState = 0;
      sent = [];
      constructor() { sockets.push(this); }
      open() { this.readyState = 1; this.onopen(); }
      send(message) { if (this.readyState === 1) this.sent.push(message); }
      close(code) { this.readyState = 3; return this.onclose({ code, reason: "" }); }
      get ids() { return this.sent.filter((each) => typeof each === "string").map((each) => JSON.parse(each).id); }
      end(id) { this.onmessage({ data: JSON.stringify({ type: "end", id, exit: 1, stop: "complete" }) }); }
    }
    const settled = () => new Promise((done) => setTimeout(done)); // what has been resolved has been read
    const server = new Anytime("http://anytime.test/");
    const outcome = async (run) => {
      try { for await (const _ of run); } catch (error) { return error.message; }
      return run.end.stop;
    };
    const [realSocket, realFetch, realNow] = [window.WebSocket, window.fetch, performance.now];
    window.WebSocket = Socket;
    try { return await (async () => { %s })(); }
    finally { [window.WebSocket, window.fetch, performance.now] = [realSocket, realFetch, realNow]; }
"""


def test_a_socket_that_closes_while_an_image_is_encoded_is_replaced(run):
    code = """
        let encoded;
        const told = outcome(server.predict(new Promise((done) => (encoded = done))));
        sockets[0].open();
        await settled();
        sockets[0].close(1001);
        encoded(new Blob());
        await settled();
        sockets[1].open();
        await settled();
        sockets[1].end(sockets[1].ids[0]);
        return [await told, sockets[0].sent.length, sockets[1].sent.length];
    """
    assert run(SOCKETS % code) == ["complete", 0, 2]


def test_a_socket_that_closes_fails_its_own_requests_only(run):
    code = """
        const first = outcome(server.predict(new Blob()));
        await settled();
        sockets[0].open();
        await settled();
        sockets[0].readyState = 2; // the server's close frame has come
        const second = server.predict(new Blob());
        const told = outcome(second);
        await settled();
        sockets[1].open();
        await settled();
        sockets[0].close(1012);
        second.deadline(50);
        sockets[1].end(sockets[1].ids[0]);
        return [await first, await told, sockets[1].ids.length];
    """
    assert run(SOCKETS % code) == ["The part of the server that had this request is gone; try again.", "complete", 2]


def test_a_source_whose_frames_nobody_reads_is_ended(run):
    code = """
        const { Anytime } = await load("anytime");
        const server = new Anytime("http://anytime.test/");
        server.predict = async function* () { yield 1; };
        let [given, ended, more] = [0, 0, () => {}];
        async function* source() {
          try {
            for (;;) {
              yield { image: new Blob(), number: ++given };
              await new Promise((done) => (more = done));
            }
          } finally { ended++; }
        }
        for await (const { frame } of server.frames(source())) if (frame.number === 2) break; else more();
        more();
        await new Promise((done) => setTimeout(done));
        return [given, ended];
    """
    assert run(code) == [3, 1]


def test_a_socket_is_tried_again_after_a_time_of_posts(run):
    code = """
        const posted = [];
        let [now_ms, answer] = [0, () => {}];
        performance.now = () => now_ms;
        window.fetch = async (url) => {
          if (String(url).endsWith("v1/models")) return new Response("{}");
          posted.push(now_ms);
          return new Promise((done) => {
            answer = () => done(new Response('data: {"type": "end", "stop": "complete"}\\n\\n'));
          });
        };
        const ask = async (ms) => {
          now_ms = ms;
          const run = server.predict(new Blob());
          await settled();
          return run;
        };
        const first = outcome(await ask(0));
        await sockets[0].close(1006); // the server starts again: only HTTP is answered at this moment
        await settled();
        const why = server.why;
        answer();
        await first;
        const second = await ask(9_999);
        const moved = second.deadline(50);
        answer();
        await outcome(second);
        const tried = sockets.length;
        const third = outcome(await ask(10_000)); // does not wait for the socket that it tries
        answer();
        await third;
        sockets[1].open();
        const told = outcome(await ask(10_001));
        sockets[1].end(sockets[1].ids[0]);
        return [posted, why.slice(0, 12), moved, tried, sockets.length, await told, server.why];
    """
    assert run(SOCKETS % code) == [[0, 9_999, 10_000], "No WebSocket", False, 1, 2, "complete", ""]
