"""Take pictures of the demo page of a server that runs: `python tests/page_pictures.py http://localhost:8000 DIR`."""

import sys
from pathlib import Path

from demo_page import CHROMIUM, FLAGS, finished, opened, turn
from playwright.sync_api import Browser, Page, expect, sync_playwright

QUALITY = 80  # of JPEG, so that a picture has less than 200 kB
WARM_MS = 4000
"""How long a clip runs before its picture is taken: its numbers are means over three seconds."""


def clip(page: Page) -> None:
    expect(page.locator("body[data-state=live]")).to_be_attached()
    page.wait_for_timeout(WARM_MS)


def beside(page: Page) -> None:
    clip(page)
    page.get_by_role("switch").check()
    page.wait_for_timeout(2 * WARM_MS)


def dragged(page: Page) -> None:
    clip(page)
    turn(page, 0)
    page.wait_for_timeout(1500)


def camera(page: Page) -> None:
    page.get_by_role("button", name="Camera").click()
    clip(page)


def slowly(page: Page) -> None:
    clip(page)
    page.get_by_role("button", name="Slow motion").click()
    finished(page)
    page.wait_for_timeout(1500)


def confidence(page: Page) -> None:
    slowly(page)
    page.get_by_role("button", name="Pause").click()
    page.get_by_label("Show").select_option("Confidence")
    finished(page)


def code(page: Page) -> None:
    slowly(page)
    page.get_by_role("button", name="</>").click()


def pose(page: Page) -> None:
    page.locator("#model").select_option("lsp-adpc-w18")
    finished(page)
    page.wait_for_timeout(300)


SCENES = {
    "clip": clip,
    "beside": beside,
    "dragged": dragged,
    "camera": camera,
    "slow-motion": slowly,
    "confidence": confidence,
    "code": code,
    "pose": pose,
}
LOOKS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def take(browser: Browser, url: str, folder: Path, names: list[str]) -> None:
    """Pictures `SCENE-LOOK.jpg` of each scene, or of those named `SCENE` or `SCENE-LOOK`."""
    for scene, act in SCENES.items():
        for look, options in LOOKS.items():
            if names and not {scene, f"{scene}-{look}"} & set(names):
                continue
            with opened(browser, url, **options) as page:
                act(page)
                page.screenshot(path=folder / f"{scene}-{look}.jpg", quality=QUALITY)


if __name__ == "__main__":
    url, folder, *names = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        take(browser, url.rstrip("/"), Path(folder), names)
        browser.close()
