"""The demo page in a real browser, served by the real server. `page_pictures.py` takes pictures of it."""

import pytest
import tiny
from demo_page import (
    CHROMIUM,
    FLAGS,
    choose,
    colours,
    finished,
    opened,
    photo,
    pixels,
    plays,
    timed,
    turn,
    upload,
)
from PIL import Image
from playwright.sync_api import expect, sync_playwright

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium, or brew install --cask google-chrome"
)
PALETTE = {(*colour, 255) for colour in tiny.SEGMENTATION.palette}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def sent():
    """The messages that the page has sent, in order."""
    return []


@pytest.fixture(scope="module")
def shared(browser, live_url, sent):
    with opened(browser, live_url, sent=sent, prepare=timed) as page:
        yield page


@pytest.fixture
def page(shared):
    """The page, which all tests share, as it opens: with the clip."""
    choose(shared, "#model", "tiny-segmentation")
    choose(shared, "#look", "mask")
    shared.get_by_role("button", name="Street").click()
    plays(shared)
    return shared


@pytest.fixture
def still(shared):
    """The page with a photo, all of whose exits have come."""
    choose(shared, "#model", "tiny-segmentation")
    choose(shared, "#look", "mask")
    upload(shared, photo())
    shared.locator("body[data-mode=still]").wait_for()
    finished(shared)
    turn(shared, 1000)
    finished(shared)
    return shared


def test_it_opens_with_a_clip_and_moving_masks(page):
    mask = pixels(page, "#anytime .mask")
    assert mask.shape == (360, 480, 4) and colours(mask) <= PALETTE
    before = page.locator("#anytime .photo").evaluate("canvas => canvas.toDataURL()")
    page.wait_for_function("before => document.querySelector('#anytime .photo').toDataURL() !== before", arg=before)
    expect(page.locator("#anytime .figures")).to_contain_text("masks a second")
    expect(page.locator("#anytime .figures")).to_contain_text("right, mIoU")
    expect(page.locator("#timeline")).to_contain_text("% of frames")


def test_a_clip_is_not_read_aloud(page):
    """Several times a second a screen reader would read what changes in a live region."""
    live = "[aria-live]:not([aria-live=off]), output:not([aria-live=off]), [role=status], [role=alert]"
    written = """async (live) => {
      let written = 0;
      const observer = new MutationObserver((changes) => (written += changes.length));
      const how = { childList: true, characterData: true, subtree: true };
      for (const region of document.querySelectorAll(live)) observer.observe(region, how);
      const [badge, list] = ["#anytime .badge", "#anytime .figures"].map((part) => document.querySelector(part));
      for (const part of [badge, list]) {
        const before = part.textContent;
        while (part.textContent === before) await new Promise(requestAnimationFrame);
      }
      return written;
    }"""
    assert page.evaluate(written, live) == 0


def test_the_whole_network_runs_beside_it_with_every_exit(page):
    page.get_by_role("switch").check()
    expect(page.locator("#whole .badge")).to_contain_text("Exit 4")
    expect(page.locator("#whole .figures")).to_contain_text("frames dropped")
    page.get_by_role("switch").uncheck()
    expect(page.locator("#whole")).to_be_hidden()


def test_the_dial_answers_while_it_is_dragged_without_a_request(still, sent):
    page, asked = still, sent
    shown, last = [], page.locator("#timeline [aria-disabled=false]").last
    expect(last).to_have_attribute("aria-pressed", "true")
    count = len(asked)
    for position in (1000, 0):
        turn(page, position, release=False)
        shown.append(pixels(page, "#anytime .mask").tobytes())
    expect(page.locator("#anytime .layers")).to_have_class("layers old")  # earlier than the first exit
    assert len(asked) == count and shown[0] != shown[1]
    assert colours(pixels(page, "#anytime .mask")) <= PALETTE  # it is dimmed, not gone
    turn(page, 1000)
    finished(page)
    assert [message["type"] for message in asked[count:]] == ["predict"]


def test_masks_of_every_exit_are_shown(still):
    cards = still.locator("#timeline [aria-disabled=false]")
    numbers = [int(card.get_attribute("data-exit")) for card in cards.all()]
    assert len(numbers) >= 2 and numbers[-1] == 4  # a fast exit may overtake the one before it
    masks = []
    for number in numbers:
        still.locator(f"#timeline [data-exit='{number}']").click()
        expect(still.locator("#anytime .badge")).to_contain_text(f"Exit {number} ·")
        masks.append(pixels(still, "#anytime .mask"))
        assert masks[-1].tobytes() == pixels(still, f"#timeline [data-exit='{number}'] canvas").tobytes()
    assert all(mask.shape == (120, 160, 4) and colours(mask) <= PALETTE for mask in masks)
    assert len({mask.tobytes() for mask in masks}) >= 2
    shares = still.locator("#legend small").all_inner_texts()
    assert sum(float(share.removesuffix(" %")) for share in shares) == pytest.approx(100, abs=0.5)
    expect(still.locator("#status")).to_contain_text("First guess")


def test_other_views_ask_for_their_map(still):
    seen = {pixels(still, "#anytime .mask").tobytes()}
    for view in ("Still computed", "Confidence", "Deciding exit"):
        still.get_by_label("Show").select_option(view)
        finished(still)
        still.locator("#timeline [aria-disabled=false]").first.click()
        seen.add(pixels(still, "#anytime .mask").tobytes())
    assert len(seen) == 4
    expect(still.locator("#legend-title")).to_have_text("Decided by")


def test_what_is_still_computed_is_dimmed_on_a_key(still):
    still.locator("#timeline [aria-disabled=false]").first.click()
    expect(still.locator("#anytime .dim")).to_be_hidden()
    still.keyboard.press("d")
    expect(still.locator("#anytime .dim")).to_be_visible()
    assert 0 < (pixels(still, "#anytime .dim")[..., 3] > 0).mean() < 1


def test_slow_motion_holds_a_frame_and_plays_its_exits(page):
    page.get_by_role("button", name="Slow motion").click()
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    finished(page)
    assert pixels(page, "#anytime .photo").shape == (360, 480, 4)
    page.get_by_role("button", name="Pause").click()
    page.get_by_role("button", name="Street").click()
    plays(page)


def test_a_camera_is_followed_and_rests_in_a_hidden_tab(page):
    page.evaluate("""() => {
      for (const name of ["play", "pause"]) {
        const real = HTMLVideoElement.prototype[name];
        HTMLVideoElement.prototype[name] = function () { window.video = name; return real.call(this); };
      }
    }""")
    page.get_by_role("button", name="Camera").click()
    page.wait_for_function("() => document.querySelector('#anytime .photo').height === 360 && window.video === 'play'")
    plays(page)
    hide = "hidden => { Object.defineProperty(document, 'hidden', { get: () => hidden, configurable: true });"
    hide += "document.dispatchEvent(new Event('visibilitychange')); }"
    for hidden, heard in ((True, "pause"), (False, "play")):
        page.evaluate(hide, hidden)
        page.wait_for_function("heard => window.video === heard", arg=heard)
    page.evaluate("delete document.hidden")
    choose(page, "#resolution", "960")  # holds for the frames to come
    page.wait_for_function("() => document.querySelector('#anytime .photo').height === 480")
    choose(page, "#resolution", "480")


def test_a_camera_that_is_unplugged_is_said(page):
    page.evaluate("""() => {
      const real = navigator.mediaDevices.getUserMedia;
      navigator.mediaDevices.getUserMedia = async function (wanted) {
        delete navigator.mediaDevices.getUserMedia;
        return (window.stream = await real.call(this, wanted));
      };
    }""")
    page.get_by_role("button", name="Camera").click()
    plays(page)
    page.evaluate("window.stream.getVideoTracks()[0].dispatchEvent(new Event('ended'))")
    expect(page.get_by_role("alert")).to_contain_text("The camera was unplugged")
    expect(page.locator("body")).to_have_attribute("data-state", "failed")


@pytest.mark.parametrize("broken", ["from the start", "later"])
def test_a_video_that_breaks_is_said(page, broken):
    page.evaluate(
        """later => {
      const real = document.createElement;
      document.createElement = function (name) {
        const made = real.call(document, name);
        if (name === "video") window.video = made;
        if (name === "video" && later) made.play = async () => {};
        return made;
      };
    }""",
        broken == "later",
    )
    page.locator("#file").set_input_files({"name": "drive.mp4", "mimeType": "video/mp4", "buffer": b"no video"})
    expect(page.get_by_role("alert")).to_contain_text("This browser cannot play this video.")
    page.evaluate("delete document.createElement")


def test_without_websockets_it_posts_and_says_why(browser, live_url):
    broken = """window.WebSocket = class {
      static OPEN = 1;
      constructor() { setTimeout(() => this.onclose({ code: 1006, reason: "" })); }
    };"""
    with opened(browser, live_url, before=broken, prepare=timed, late=True) as page:
        plays(page)
        expect(page.locator("#status")).to_contain_text("No WebSocket gets through")
        assert colours(pixels(page, "#anytime .mask")) <= PALETTE
        choose(page, "#look", "exit")
        upload(page, photo())
        finished(page)
        turn(page, 1000)
        expect(page.locator("#timeline [aria-disabled=false]").nth(1)).to_be_attached()  # events bring every exit
        expect(page.locator("#legend-title")).to_have_text("Decided by")


def test_it_works_under_a_path(browser, live_url):
    """A proxy serves the page under a prefix; every request keeps to it."""
    before = """const Real = WebSocket;
      window.WebSocket = class extends Real { constructor(url) { super(String(url).replace("/prefix", "")); } };"""
    page = browser.new_page()
    asked = []
    page.on("request", lambda sent: asked.append(sent.url))
    page.add_init_script(before)
    page.route(
        f"{live_url}/prefix/**",
        lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace("/prefix", ""))),
    )
    page.goto(f"{live_url}/prefix/?from=elsewhere#top")
    expect(page.locator("body[data-state=live]")).to_be_attached()
    page.get_by_role("button", name="</>").click()
    expect(page.locator("#snippet")).to_contain_text(f"{live_url}/prefix/v1/predict?model=")
    page.close()
    assert asked and all(url.startswith((f"{live_url}/prefix/", "blob:", "data:")) for url in asked)


def test_the_class_under_the_pointer_is_named_inside_the_picture(still):
    tip, inset = still.locator("#anytime .tip"), 8
    place = still.locator("#layers").bounding_box()
    for x in (inset, place["width"] - inset):
        for y in (inset, place["height"] - inset):
            still.mouse.move(place["x"] + x, place["y"] + y)
            expect(tip).to_be_visible()
            name = tip.bounding_box()
            assert name["x"] > place["x"] - 1 and name["y"] > place["y"] - 1
            assert name["x"] + name["width"] < place["x"] + place["width"] + 1
            assert name["y"] + name["height"] < place["y"] + place["height"] + 1
    still.mouse.move(0, 0)


def test_a_class_picked_in_the_legend_dims_the_others(still):
    still.locator("#legend button").first.click()
    expect(still.locator("#legend button").first).to_have_attribute("aria-pressed", "true")
    expect(still.locator("#legend button").first).to_be_focused()
    opacities = {colour[3] for colour in colours(pixels(still, "#anytime .mask"))}
    assert max(opacities) == 255 and 0 < min(opacities) < 64


def test_poses_are_drawn(page):
    page.locator("#model").select_option("tiny-pose")
    finished(page)  # of the portrait that comes with the page
    assert page.locator("#legend li").count() == 16
    assert "right ankle" in page.locator("#legend").inner_text()
    assert page.locator("#anytime .mask").evaluate("canvas => Math.max(canvas.width, canvas.height)") == 480


@pytest.mark.parametrize("answer", ["aborted", "missing"])
def test_a_portrait_that_cannot_be_read_is_said(browser, live_url, answer):
    """In a page of its own, whose errors are not the test's."""
    other = browser.new_page()
    other.route("**/astronaut.jpg", lambda route: route.abort() if answer == "aborted" else route.fulfill(status=503))
    other.goto(live_url)
    other.locator("#model").select_option("tiny-pose")
    expect(other.get_by_role("alert")).to_contain_text(
        "The picture that comes with the page cannot be read: The server"
    )
    expect(other.locator("body")).to_have_attribute("data-state", "failed")
    other.close()


def test_another_model_is_asked_at_once(still):
    """Else the exits that are held would be painted with its labels until the server tells what its exits take."""
    asked = []

    def keep(route):
        asked.append(route)

    still.route("**/v1/models/tiny-pose", keep)  # not answered yet
    still.locator("#model").select_option("tiny-pose")
    finished(still)
    assert still.locator("#legend li").count() == 16
    still.unroute("**/v1/models/tiny-pose")
    for route in asked:
        route.continue_()


def test_a_person_is_chosen_by_dragging_a_box_and_a_click_takes_it_away(page, sent):
    asked = sent
    expect(page.locator("#person-hint")).to_be_hidden()
    page.locator("#model").select_option("tiny-pose")
    upload(page, photo())
    finished(page)
    expect(page.locator("#person-hint")).to_be_visible()
    place = page.locator("#layers").bounding_box()
    corner = place["x"] + 0.75 * place["width"], place["y"] + 0.5 * place["height"]
    page.mouse.move(*corner)
    page.mouse.down()
    page.mouse.move(place["x"] + 0.5 * place["width"], place["y"] + 0.25 * place["height"], steps=3)
    page.mouse.up()
    expect(page.locator("#person")).to_be_visible()
    finished(page)
    page.mouse.move(place["x"] + 0.9 * place["width"], place["y"] + 0.8 * place["height"])
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#person")).to_be_hidden()
    finished(page)
    boxes = [message.get("box") for message in asked if message.get("model") == "tiny-pose"]
    assert boxes[-3:] == [None, pytest.approx([80, 30, 40, 30], abs=2), None]


def test_what_nothing_meets_is_said_in_plain_words_and_leaves_the_mask(still):
    before = pixels(still, "#anytime .mask").any()
    turn(still, 0)
    finished(still)
    expect(still.locator("#status")).to_contain_text("Nothing was ready within")
    assert before and pixels(still, "#anytime .mask").any()
    expect(still.locator("#anytime .layers")).to_have_class("layers old")
    assert "deadline_ms" not in still.locator("main").inner_text()


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_thin_pictures_are_pictures(page, size):
    upload(page, photo(*size))
    finished(page)
    assert pixels(page, "#anytime .mask").shape[:2] == ((480, 1) if size[0] > 1 else (1, 480))


def delay_files(page):
    """The next file that the page makes of a canvas waits until `window.release` is called."""
    page.evaluate("""() => {
      const toBlob = HTMLCanvasElement.prototype.toBlob;
      delete window.release;
      HTMLCanvasElement.prototype.toBlob = function (...given) {
        HTMLCanvasElement.prototype.toBlob = toBlob;
        window.release = () => toBlob.apply(this, given);
      };
    }""")


def test_a_deadline_may_move_while_the_photo_is_encoded(still, sent):
    count = len(sent)
    delay_files(still)
    turn(still, 900)
    expect(still.locator("body")).to_have_attribute("data-state", "running")
    turn(still, 1000)
    still.evaluate("window.release()")
    finished(still)
    expect(still.get_by_role("alert")).to_be_hidden()
    assert [message["type"] for message in sent[count:]] == ["predict"]  # with the deadline that was moved meanwhile


def test_a_dial_that_is_turned_stays_when_exits_of_a_new_photo_come(still):
    delay_files(still)
    upload(still, photo())
    expect(still.locator("body")).to_have_attribute("data-state", "running")
    still.wait_for_function("() => window.release")
    turn(still, 1000)
    still.evaluate("window.release()")
    finished(still)
    assert still.locator("#deadline").input_value() == "1000"


def test_a_new_photo_without_an_answer_is_told_the_deadline_that_it_had(browser, live_url):
    """That of a new photo is the longest of the server, not that of the dial."""
    refusing = """window.WebSocket = class extends WebSocket {
      set onmessage(hear) {
        super.onmessage = ({ data }) => {
          const message = typeof data === "string" && JSON.parse(data);
          if (message.type !== "accepted") return;
          const { id } = message;
          hear({ data: JSON.stringify({ type: "error", id, code: "no_exit", status: 504, error: "too late" }) });
        };
      }
    };"""
    with opened(browser, live_url, before=refusing, prepare=timed) as page:
        expect(page.locator("body[data-state=live]")).to_be_attached()
        upload(page, photo())
        longest_ms = page.evaluate(
            "fetch('v1/models').then((found) => found.json()).then((found) => found.deadline_ms.max)"
        )
        expect(page.get_by_role("alert")).to_contain_text(f"Nothing was ready within {longest_ms / 1000:.1f} s.")


def test_what_is_no_picture_is_said(page):
    upload(page, b"just text", "notes.png")
    expect(page.get_by_role("alert")).to_contain_text("notes.png is not a picture")
    upload(page, photo())
    finished(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_the_keyboard_is_enough(still):
    first, second = still.locator("#timeline [aria-disabled=false]").all()[:2]
    first.focus()
    expect(first).to_have_attribute("aria-pressed", "true")
    still.keyboard.press("ArrowRight")
    expect(second).to_have_attribute("aria-pressed", "true")
    still.keyboard.press("Enter")
    for _ in range(int(second.get_attribute("data-exit"))):  # an exit between the two may have been overtaken
        still.keyboard.press("Shift+Tab")  # at last out of the cards: what was pressed stays
    expect(second).to_have_attribute("aria-pressed", "true")
    still.locator("#deadline").focus()
    still.keyboard.press("ArrowLeft")
    finished(still)
    expect(still.locator("#deadline")).to_be_focused()


def test_code_and_files_of_what_is_seen(still, tmp_path):
    still.get_by_role("button", name="</>").click()
    for language, word in (("curl", "v1/predict?"), ("Python", "client.stream("), ("JavaScript", "anytime.js")):
        still.get_by_role("button", name=language, exact=True).click()
        expect(still.locator("#snippet")).to_contain_text(word)
        expect(still.locator("#snippet")).to_contain_text("tiny-segmentation")
    for name, size in (("Save mask", (160, 120)), ("Save overlay", (160, 120))):
        with still.expect_download() as download:
            still.get_by_role("button", name=name).click()
        path = tmp_path / download.value.suggested_filename
        download.value.save_as(path)
        with Image.open(path) as image:
            assert image.size == size


def test_code_that_may_not_be_copied_is_said(page):
    """The page's errors are the test's: a rejection that nobody handles is one."""
    page.evaluate("() => { navigator.clipboard.writeText = async () => { throw new Error('not allowed'); }; }")
    if page.locator("#panel").is_hidden():
        page.get_by_role("button", name="</>").click()
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#copy")).to_have_text("Not allowed")
    page.evaluate("delete navigator.clipboard.writeText")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(page, scheme):
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.evaluate("scrollTo(0, 10_000)")
    expect(page.locator("#deadline")).to_be_in_viewport()  # beside the picture
    expect(page.locator("#anytime .layers")).to_be_in_viewport()
    page.set_viewport_size({"width": 1280, "height": 900})
