"""The page of a sweep in a browser that has nothing but the file."""

from pathlib import Path

import pytest

from analysis.report import main

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def page_file(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert main(["--tracking-uri", f"sqlite:///{swept / 'mlflow.db'}", "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_fits_and_asks_for_nothing(browser, page_file, width):
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": 844})
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert not errors
    assert all(url.startswith(("file:", "data:")) for url in asked)
    page.close()


def test_tables_are_sorted_from_the_keyboard(browser, page_file):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    table = page.locator("table.sortable").first
    heads = table.locator("thead th").all_inner_texts()
    place = next(i for i, head in enumerate(heads) if head.startswith("adv. acc."))
    table.locator("thead button").nth(place).focus()
    for order, direction in ((sorted, "ascending"), (lambda values: sorted(values, reverse=True), "descending")):
        page.keyboard.press("Enter")
        values = [float(row.split("\t")[place]) for row in table.locator("tbody tr").all_inner_texts()]
        assert values == order(values)
        assert table.locator("thead th").nth(place).get_attribute("aria-sort") == direction
    page.close()


def test_images_are_chosen_by_cell_and_all_there_without_scripts(browser, page_file):
    page = browser.new_page()
    page.goto(page_file.as_uri())
    cells = page.locator(".gallery details")
    assert cells.count() == 4
    page.locator("select[data-axis=bits]").select_option("1")
    page.locator("select[data-axis=seed]").select_option("0")
    shown = page.locator(".gallery details:visible")
    assert shown.count() == 1
    assert shown.first.get_attribute("data-bits") == "1"
    picture = shown.locator("img").first
    picture.scroll_into_view_if_needed()
    assert picture.evaluate("async image => (await image.decode(), image.naturalWidth / image.naturalHeight)") == 3
    assert "clean, adversarial and difference of test image" in str(picture.get_attribute("alt"))
    page.close()
    assert page_file.read_text().count("<details") == 4
