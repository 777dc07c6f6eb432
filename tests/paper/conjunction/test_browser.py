"""The form by which people judge, opened as a file in Chromium: what they tick is what is counted."""

from __future__ import annotations

from pathlib import Path

import PIL.Image
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from mvader_jax.paper.conjunction.folder import read_form, write_form
from mvader_jax.paper.conjunction.tasks import Conjunction, Seen, Thing


def test_what_is_ticked_is_saved_and_counted(browser: Browser, tmp_path: Path) -> None:
    pairs = (
        (Thing("green", "vase"), Thing("red", "tea cup")),
        (Thing("brown", "chair"), Thing("red", "vase")),
    )
    tasks = [Conjunction("images", number, things, things) for number, things in enumerate(pairs)]
    tasks.append(Conjunction("text", 0, pairs[0], ("a green vase and a red tea cup",)))
    paths = [tmp_path / "a & b" / f"{task.id}.png" for task in tasks]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        PIL.Image.new("RGB", (16, 8), (80 * number, 0, 0)).save(path)
    form = paths[0].parent / "form.html"
    write_form(form, tasks, paths)
    context = browser.new_context(accept_downloads=True)
    context.set_default_timeout(240_000)
    page, asked, failed = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(form.as_uri())
    shown = "document.images.length == 3 && [...document.images].every(one => one.naturalWidth == 16)"
    page.wait_for_function(shown)
    left, first, text = page.locator("#left"), page.locator("#images-000"), page.locator("#text-000")
    expect(left).to_have_text("3 left")
    # A thing in its colour is there; one that is not there has no colour.
    first.get_by_label("and it is a green vase").check()
    expect(first.get_by_label("there is a vase")).to_be_checked()
    first.get_by_label("and it is a red tea cup").check()
    first.get_by_label("there is a tea cup").uncheck()
    expect(first.get_by_label("and it is a red tea cup")).not_to_be_checked()
    first.get_by_label("judged").check()
    text.get_by_label("judged").check()
    page.locator("#images-001").get_by_label("there is a chair").check()
    expect(left).to_have_text("1 left")
    assert [
        one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")
    ] == []
    # What was ticked is there when the page is opened again.
    page.reload()
    expect(left).to_have_text("1 left")
    expect(page.locator("#images-001").get_by_label("there is a chair")).to_be_checked()
    with page.expect_download() as saved:
        page.click("#save")
    assert saved.value.suggested_filename == "judged.csv"
    saved.value.save_as(tmp_path / "judged.csv")
    context.close()
    nothing = Seen((False, False), (False, False))
    assert dict(read_form(tmp_path / "judged.csv")) == {
        "images": Seen((True, False), (True, False)),
        "text": nothing,
    }
    assert failed == [] and all(url.startswith(("file:", "blob:")) for url in asked)
