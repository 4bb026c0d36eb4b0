"""The demo page in a real browser, served by the real server. Screenshots land in the test's folder."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
import tiny
from PIL import Image
from playwright.sync_api import expect, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["quic", "background-networking", "component-update", "sync", "gpu"]
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{part}" for part in QUIET)]

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium, or brew install --cask google-chrome"
)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, live_url):
    """The page with all the time it wants; fails the test if it asks another host or logs an error."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    trouble = []
    page.on("console", lambda message: trouble.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("request", lambda sent: None if sent.url.startswith((live_url, "blob:")) else trouble.append(sent.url))
    page.goto(live_url)
    expect(page.locator("#timeline button")).to_have_count(4)
    page.locator("#deadline").fill("1000")
    yield page
    page.close()
    assert trouble == []


def upload(page, data, name="photo.png"):
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": data})


def photo(height=360, width=480):
    file = io.BytesIO()
    Image.fromarray(tiny.image(height, width)).save(file, "PNG")
    return file.getvalue()


def finished(page):
    expect(page.locator("body[data-state=done]")).to_be_attached(timeout=30_000)


def pixels(page, selector):
    """A canvas, uint8 (H, W, 4)."""
    url = page.locator(selector).evaluate("canvas => canvas.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        return np.asarray(picture.convert("RGBA"))


def colours(array):
    """The distinct colours of an RGBA array."""
    return {tuple(map(int, value.tobytes())) for value in np.unique(array.view(np.uint32))}


def test_masks_of_every_exit_are_shown(page, tmp_path):
    upload(page, photo())
    finished(page)
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    cards = page.locator("#timeline button:enabled")
    numbers = [int(card.get_attribute("data-exit")) for card in cards.all()]
    assert len(numbers) >= 2 and numbers[-1] == 4  # a fast exit may overtake the one before it
    masks = []
    for number in numbers:
        page.locator(f"#timeline [data-exit='{number}']").click()
        expect(page.locator("#badge")).to_contain_text(f"Exit {number} ·")
        masks.append(pixels(page, "#mask"))
        assert masks[-1].tobytes() == pixels(page, f"#timeline [data-exit='{number}'] canvas").tobytes()
    palette = {(*colour, 255) for colour in tiny.SEGMENTATION.palette}
    assert all(mask.shape == (360, 480, 4) and colours(mask) <= palette for mask in masks)
    assert len({mask.tobytes() for mask in masks}) >= 2
    shares = page.locator("#legend small").all_inner_texts()
    assert sum(float(share.removesuffix(" %")) for share in shares) == pytest.approx(100, abs=0.5)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_unsure_area_is_hatched_and_can_be_hidden(page):
    upload(page, photo())
    finished(page)
    card = page.locator("#timeline button:enabled").first
    card.click()
    unsure = float(card.locator("span").last.inner_text().split(" ")[0]) / 100
    hatched = (pixels(page, "#unsure")[..., 3] > 0).mean()
    assert 0 < hatched == pytest.approx(unsure, abs=0.05)
    page.get_by_label("Hatch").uncheck()
    expect(page.locator("#unsure")).to_be_hidden()


def test_a_class_picked_in_the_legend_stands_alone(page):
    upload(page, photo())
    finished(page)
    page.locator("#legend button").first.click()
    expect(page.locator("#legend button").first).to_have_attribute("aria-pressed", "true")
    assert len(colours(pixels(page, "#mask"))) == 2  # its colour, and nothing


def test_poses_are_drawn(page):
    page.locator("#model").select_option("tiny-pose")
    upload(page, photo())
    finished(page)
    assert page.locator("#legend li").count() == 16
    assert page.locator("#mask").evaluate("canvas => [canvas.width, canvas.height]") == [480, 360]
    assert "right ankle" in page.locator("#legend").inner_text()


def test_a_person_is_chosen_by_dragging_a_box(page):
    asked = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda sent: asked.append(sent)))  # noqa: PLW0108
    expect(page.locator("#person-hint")).to_be_hidden()
    page.locator("#model").select_option("tiny-pose")
    expect(page.locator("#person-hint")).to_be_visible()
    upload(page, photo())
    finished(page)
    place = page.locator("#layers").bounding_box()
    corner = place["x"] + 0.75 * place["width"], place["y"] + 0.5 * place["height"]
    for to in (0.5, 0.25), (0.75, 0.5):  # drag to there, then click
        page.mouse.move(*corner)
        page.mouse.down()
        page.mouse.move(place["x"] + to[0] * place["width"], place["y"] + to[1] * place["height"], steps=3)
        page.mouse.up()
        expect(page.locator("#person")).to_be_visible(visible=to[0] < 0.75)
        finished(page)
    boxes = [json.loads(sent).get("box") for sent in asked if isinstance(sent, str) and "predict" in sent]
    assert boxes == [None, pytest.approx([240, 90, 120, 90], abs=2), None]
    page.locator("#model").select_option("tiny-segmentation")
    expect(page.locator("#person-hint")).to_be_hidden()


def test_the_sample_scene_needs_no_photo(page):
    page.get_by_role("button", name="Use the sample scene").click()
    finished(page)
    assert page.locator("#photo").evaluate("canvas => [canvas.width, canvas.height]") == [960, 720]
    assert pixels(page, "#mask").shape == (360, 480, 4)


def test_a_deadline_that_nothing_meets_is_said(page):
    page.locator("#deadline").fill("0")
    page.get_by_role("button", name="Use the sample scene").click()
    expect(page.get_by_role("alert")).to_contain_text("deadline_ms")
    page.locator("#deadline").fill("1000")  # which runs again
    finished(page)
    expect(page.get_by_role("alert")).to_be_hidden()


def test_what_is_no_picture_is_said(page):
    upload(page, b"just text", "notes.png")
    expect(page.get_by_role("alert")).to_contain_text("notes.png is not a picture")
    upload(page, photo())
    finished(page)


def test_a_run_can_be_cancelled(page):
    page.locator("#resolution").select_option("2048")
    upload(page, photo(1536, 2048))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_contain_text("Cancelled")
    expect(page.get_by_role("button", name="Run again")).to_be_enabled()


def test_the_keyboard_is_enough(page):
    upload(page, photo())
    finished(page)
    first, second = page.locator("#timeline button:enabled").all()[:2]
    first.focus()
    expect(first).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowRight")
    expect(second).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Enter")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")  # out of the timeline: what was pressed stays
    expect(second).to_have_attribute("aria-pressed", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser, live_url, tmp_path, scheme):
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(live_url)
    page.get_by_role("button", name="Use the sample scene").click()
    finished(page)
    page.screenshot(path=tmp_path / f"phone-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.close()
