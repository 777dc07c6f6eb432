"""The page in Chromium, headless: what a person does on it, by hand and by keyboard, and what they see.

`make browser` installs Chromium; where it is not there, these are left out and the header says so (tests/conftest.py).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import micro
import PIL.Image
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, expect

from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.sampling.settings import SamplingSettings
from mvader_jax.web.server import serve
from mvader_jax.web.studio import Studio

#: A machine with much else to do is slow.
PATIENCE = 240_000


class Few(Pipeline):
    """A pipeline that draws in four steps where nothing is said."""

    @property
    def defaults(self) -> SamplingSettings:
        return SamplingSettings(steps=4)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server, address = serve(Studio(Few(micro.bundle())), "127.0.0.1", None, None)
    yield address
    server.get_blocks().close(verbose=False)


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Any]:
    """Opens tabs; in the end no request has left this machine, and no script has failed."""
    contexts, asked, failed = [], [], []

    def opened(width: int = 1280) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 850})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(address)
        page.locator("#parts .row").first.wait_for()
        return page

    expect.set_options(timeout=PATIENCE)
    yield opened
    for context in contexts:
        context.close()
    assert {urlsplit(url).hostname for url in asked if not url.startswith(("data:", "blob:"))} == {
        "127.0.0.1"
    }
    assert failed == []


@pytest.fixture
def page(open_page: Any) -> Page:
    return open_page()


def png(seed: int = 1) -> bytes:
    data = io.BytesIO()
    PIL.Image.linear_gradient("L").resize((24, 24)).rotate(90 * seed).convert("RGB").save(data, format="PNG")
    return data.getvalue()


def file(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": data}


def add_file(page: Page, name: str, data: bytes) -> None:
    page.click("#add-picture")
    page.set_input_files("#file", [file(name, data)])
    expect(page.locator("#choose")).not_to_be_visible()


def drop(page: Page, name: str, data: bytes) -> None:
    """A file is dropped on the page."""
    page.evaluate(
        """([name, data]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], name, { type: "image/png" }));
            document.dispatchEvent(new DragEvent("drop", { dataTransfer: carried, bubbles: true, cancelable: true }));
        }""",
        [name, base64.b64encode(data).decode()],
    )


def shown(page: Page) -> str:
    """The address of the picture that was drawn, when it is there: previews have no caption."""
    address = """() => document.querySelector("#pictures figcaption")?.previousSibling.getAttribute("src")"""
    return str(page.wait_for_function(address).json_value())


def draw(page: Page, after: str = "") -> str:
    """Waits for another picture than `after`, or presses Draw for the first."""
    if not after:
        page.click("#draw")
        return shown(page)
    page.wait_for_function(
        """(before) => { const now = document.querySelector("#pictures figcaption")?.previousSibling;
            return now && now.getAttribute("src") !== before; }""",
        arg=after,
    )
    return shown(page)


def names(page: Page) -> list[str]:
    shown_by = "e => e.value ?? e.textContent"
    rows = page.locator("#parts .row").all()
    return [row.locator("textarea, .thumb span").first.evaluate(shown_by) for row in rows]


def slider(page: Page, part: int) -> Locator:
    return page.get_by_role("slider", name=f"weight of part {part}", exact=True)


def begin_with(page: Page, title: str) -> None:
    page.select_option("#preset", label=title)


def test_a_slider_changes_the_picture(page: Page) -> None:
    begin_with(page, "A text alone")
    page.get_by_role("textbox", name="text of part 1").fill("a red circle")
    add_file(page, "photo.png", png())
    assert names(page) == ["a red circle", "photo.png"]
    first = draw(page)
    slider(page, 2).focus()
    page.keyboard.press("Home")  # theta 0: the picture does not count
    second = draw(page, after=first)
    expect(page.get_by_role("spinbutton", name="weight of part 2, as a number")).to_have_value("0")
    expect(page.locator("#command")).to_contain_text("photo.png@0 ")
    expect(page.locator("#python")).to_contain_text("mv.Image('photo.png', 0)")
    page.get_by_role("spinbutton", name="weight of part 2, as a number").fill("0.3")
    page.keyboard.press("Enter")
    third = draw(page, after=second)
    assert len({first, second, third}) == 3
    expect(page.locator("#drawn li")).to_have_count(3)
    page.locator("#drawn li").last.get_by_text("Use again").click()
    expect(page.get_by_role("spinbutton", name="weight of part 2, as a number")).to_have_value("1")


def test_words_are_weighted_singly(page: Page) -> None:
    begin_with(page, "A text alone")
    page.get_by_role("textbox", name="text of part 1").fill("a red hat")
    page.click("text=words")
    page.click("role=button[name='weight “red”']")
    page.get_by_role("spinbutton", name="weight of the words “red”, as a number").fill("2")
    page.keyboard.press("Enter")
    expect(page.locator("#command")).to_contain_text("--span 1:red@2")
    expect(page.locator("#python")).to_contain_text("spans={'red': 2.0}")
    draw(page)


def test_rows_are_reordered_and_removed_by_keyboard(page: Page) -> None:
    begin_with(page, "Composition: two pictures")
    assert names(page) == ["circle.png", "square.png"]
    page.get_by_role("button", name="move down part 1").focus()
    page.keyboard.press("Enter")
    assert names(page) == ["square.png", "circle.png"]
    # The focus went with the row, whose only way is back.
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "paint a region of part 2"
    page.get_by_role("button", name="remove part 1").focus()
    page.keyboard.press("Space")
    assert names(page) == ["circle.png"]
    page.get_by_role("button", name="Add text").focus()
    page.keyboard.press("Enter")
    page.keyboard.type("in blue")
    assert names(page) == ["circle.png", "in blue"]
    page.keyboard.press("Control+Enter")
    shown(page)


def test_a_region_is_painted(page: Page) -> None:
    begin_with(page, "Variation: one picture")
    page.uncheck("#live")
    page.get_by_role("button", name="paint a region of part 1").click()
    box = page.locator("#canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.6 * box["height"], steps=4)
    page.mouse.up()
    page.click("#paint-done")
    expect(page.get_by_role("slider", name="weight of region 1 of part 1")).to_have_count(1)
    expect(page.locator("#command")).to_contain_text("--region 1:cross-region-")
    link = page.locator("#files a", has_text="region").get_attribute("href")
    body = page.request.get(f"{page.url}{link}").body()
    mask = PIL.Image.open(io.BytesIO(body)).convert("L")
    width, height = mask.size
    assert mask.getpixel((round(0.45 * width), round(0.45 * height))) == 255
    assert mask.getpixel((round(0.9 * width), round(0.1 * height))) == 0
    # And by keyboard, as a box.
    page.get_by_role("button", name="paint region 1 of part 1 again").click()
    page.click("#paint-clear")
    page.click("#box-add")
    page.click("#paint-done")
    expect(page.locator("#files a", has_text="region")).not_to_have_attribute("href", str(link))
    draw(page)


def test_a_sweep_is_a_grid(page: Page) -> None:
    page.click("#sweep summary")
    page.fill("#across-values", "0, 1")
    page.select_option("#down", label="guidance")
    page.fill("#down-values", "1 4")
    page.click("#draw-sweep")
    expect(page.locator("#pictures td img")).to_have_count(4)
    assert page.locator("#pictures th").all_inner_texts() == ["0", "1", "1", "4"]
    page.get_by_role("button", name="use again: row 2, column 1").click()
    page.click("#how summary")
    expect(page.locator("#guidance_scale")).to_have_value("4")
    expect(page.get_by_role("spinbutton", name="weight of part 1, as a number")).to_have_value("0")
    page.fill("#across-values", "one")
    page.click("#draw-sweep")
    expect(page.locator("#problem")).to_have_text(
        "the values across are numbers with commas between them, as in 0, 0.1, 1"
    )


def test_a_dropped_picture_brings_its_prompt_back(open_page: Any) -> None:
    first = open_page()
    first.uncheck("#live")
    begin_with(first, "A text alone")
    first.get_by_role("textbox", name="text of part 1").fill("a blue hat")
    add_file(first, "photo.png", png())
    first.get_by_role("spinbutton", name="weight of part 2, as a number").fill("0.25")
    first.click("#how summary")
    first.fill("#seed", "77")
    first.locator("#seed").blur()
    drawn = first.request.get(f"{first.url}{draw(first)}").body()
    other = open_page()
    drop(other, "found.png", drawn)
    expect(other.locator("#status")).to_contain_text("The prompt is back: a blue hat")
    assert names(other)[0] == "a blue hat"
    expect(other.get_by_role("spinbutton", name="weight of part 2, as a number")).to_have_value("0.25")
    expect(other.locator("#seed")).to_have_value("77")
    drop(other, "plain.png", png(2))  # one that says nothing is a part
    expect(other.locator("#parts .row")).to_have_count(3)


def test_where_it_looked_is_shown(page: Page) -> None:
    draw(page)
    page.click("text=Where it looked")
    rows = page.locator("#seen-rows li")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("got")
    expect(rows.first).to_contain_text("asked for 50 %")


def test_two_tabs_draw_at_once(open_page: Any) -> None:
    tabs = [open_page(), open_page()]
    for tab, seed in zip(tabs, ("11", "12"), strict=True):
        tab.click("#how summary")
        tab.fill("#seed", seed)
        tab.locator("#seed").blur()
    for tab in tabs:
        tab.click("#draw")
    for tab, seed in zip(tabs, ("11", "12"), strict=True):
        shown(tab)
        expect(tab.locator("#pictures figcaption span")).to_have_text(f"seed {seed}")
        expect(tab.locator("#drawn li")).to_have_count(1)


def test_a_drawing_is_cancelled(page: Page) -> None:
    page.click("#how summary")
    page.fill("#steps", "1000")
    page.locator("#steps").blur()
    page.click("#draw")
    page.click("#cancel")
    expect(page.locator("#status")).to_have_text("Cancelled.")
    page.fill("#steps", "3")
    page.locator("#steps").blur()
    draw(page)  # its turn comes: the other one is over


@pytest.mark.parametrize("data", [b"", b"not a picture", png()[:40], b"<html>"])
def test_a_broken_upload_gives_a_sentence(page: Page, data: bytes) -> None:
    before = names(page)
    drop(page, "broken.png", data)
    expect(page.locator("#problem")).to_contain_text("broken.png: the image ")
    assert "Traceback" not in page.content() and names(page) == before


def test_mistakes_are_sentences_on_the_page(page: Page) -> None:
    begin_with(page, "Baseline: image to image")
    page.get_by_role("button", name="remove part 2").click()
    page.click("#draw")
    expect(page.locator("#problem")).to_have_text("the task img2img takes exactly 1 image; there are 0")
    expect(page.locator("#command")).to_contain_text("# the task img2img")


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_readable_and_has_no_serious_fault(open_page: Any, width: int, tmp_path: Path) -> None:
    page = open_page(width)
    for summary in page.locator("summary").all():
        if summary.evaluate("e => !e.parentElement.open"):
            summary.click()
    draw(page)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for state in ("page", "choose", "paint"):
        if state == "choose":
            page.click("#add-picture")
        if state == "paint":
            page.click("#choose-cancel")
            page.get_by_role("button", name="paint a region of part 2").click()
        faults = Axe().run(page).response["violations"]
        serious = [fault for fault in faults if fault["impact"] in ("serious", "critical")]
        assert [(fault["id"], fault["nodes"][0]["html"]) for fault in serious] == []
        page.screenshot(path=tmp_path / f"{state}-{width}.png")
