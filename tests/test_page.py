import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from samrobust.cli import main
from samrobust.datasets.coco import encode_mask
from samrobust.report import gallery
from samrobust.report.gallery import LARGEST_OUTLINES, Photographs, gallery_of
from samrobust.report.page import page, write_page
from samrobust.report.summary import Section, summarise
from samrobust.runs.store import read_run
from tests.conftest import rectangle
from tests.runs import MadeUp

FILE = "<img src=x onerror=document.title='broken'>"
CLASS = "<script>document.title='broken'</script>"
LARGEST_PAGE = 15 * 2**20
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


def command_line(*arguments: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["samrobust", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return runs of two segmenters on two data sets whose names hold markup."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folder in ("images", "masks", "val", "annotations"):
        (root / folder).mkdir()
    images, annotations = [], []
    for number in range(5):
        size_hw = (61 + number, 90)
        photograph = Image.fromarray(rng.integers(0, 256, (*size_hw, 3), dtype=np.uint8))
        mask = rectangle(size_hw, (9 + 5 * number, 8, 50, 43))
        photograph.save(root / "images" / f"{FILE}{number}.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(root / "masks" / f"{FILE}{number}.png")
        photograph.save(root / "val" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        coded = {"size": list(size_hw), "counts": encode_mask(mask).decode()}
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": coded}
        )
    listed = {"images": images, "annotations": annotations}
    listed["categories"] = [{"id": 1, "name": CLASS}]
    (root / "annotations" / "instances_val.json").write_text(json.dumps(listed))
    results = tmp_path_factory.mktemp("runs")
    asked = ("--segmenter", "box-fill", "--segmenter", "ellipse", "--trials", "5", "--quiet")
    data = ("--data-root", str(root), "--workers", "0", "--out", str(results))
    common = (*asked, *data, "--keep-masks", "worst")
    command_line("eval", "--dataset", "folder", *common)
    command_line("eval", "--dataset", "coco", "--split", "val", *common)
    return sorted(results.iterdir())


@pytest.fixture(scope="module")
def sections(runs: list[Path]) -> list[Section]:
    return summarise([read_run(run) for run in runs])


@pytest.fixture(scope="module")
def file(sections: list[Section], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(sections, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def opened(file: Path) -> Iterator[webdriver.Chrome]:
    """Return a real browser with the page, opened from disk."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromedriver, which are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}", "--window-size=1280,1000"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            browser.get(file.as_uri())
            yield browser
        finally:
            browser.quit()


def visible(browser: webdriver.Chrome, css: str) -> list[WebElement]:
    return [each for each in browser.find_elements(By.CSS_SELECTOR, css) if each.is_displayed()]


def choose(browser: webdriver.Chrome, control: str, value: str) -> None:
    Select(browser.find_element(By.ID, control)).select_by_visible_text(value)


def test_the_page_is_one_file_that_asks_the_network_for_nothing(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text) < LARGEST_PAGE
    assert "default-src 'none'" in text
    for found in ("src=", "href="):
        starts = [text[place:][:1] for place in _places(text, f' {found}"')]
        values = {text[place:][:5] for place in _places(text, f' {found}"')}
        assert starts
        assert values <= {"data:", "#phot"}


def _places(text: str, found: str) -> list[int]:
    return [place + len(found) for place in range(len(text)) if text.startswith(found, place)]


def test_markup_in_names_is_text(file: Path, opened: webdriver.Chrome) -> None:
    text = file.read_text(encoding="utf-8")
    assert FILE not in text
    assert CLASS not in text
    assert opened.title == "samrobust report"
    shown = opened.find_element(By.TAG_NAME, "main").text
    assert any(f"{FILE}{number}.png, object" in shown for number in range(9))
    assert CLASS in shown


def test_the_page_opens_without_an_error_and_shows_its_pictures(opened: webdriver.Chrome) -> None:
    opened.execute_script("for (const e of document.images) e.loading = 'eager'")
    ready = "return Array.from(document.images).every(e => e.complete && e.naturalWidth > 100)"
    started = time.monotonic()
    while not opened.execute_script(ready) and time.monotonic() - started < 30:
        time.sleep(0.2)
    assert opened.execute_script(ready)
    photographs: Any = opened.execute_script(
        "return Promise.all(Array.from(document.querySelectorAll('defs image')).map(e => {"
        "const i = new Image(); i.src = e.getAttribute('href');"
        "return i.decode().then(() => i.naturalWidth)}))"
    )
    assert photographs == [90] * len(photographs)
    assert len(photographs) >= 5
    assert opened.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_tables_sort_by_the_number_that_a_cell_begins_with(opened: webdriver.Chrome) -> None:
    table = visible(opened, ".part table")[0]
    head = table.find_elements(By.CSS_SELECTOR, "th")[4]  # mSF: the exact box has none
    for order, sign in (("ascending", 1), ("descending", -1)):
        head.find_element(By.TAG_NAME, "button").click()
        assert head.get_attribute("aria-sort") == order
        cells = [row.text for row in table.find_elements(By.CSS_SELECTOR, "td:nth-child(5)")]
        numbers = [sign * float(cell.split()[0]) for cell in cells if cell[0].isdigit()]
        assert numbers == sorted(numbers)
        assert len(numbers) == 12
        assert not any(cell[0].isdigit() for cell in cells[12:])


def test_filters_choose_rows_and_failures(opened: webdriver.Chrome) -> None:
    opened.refresh()
    assert len(visible(opened, ".part")) == 2
    choose(opened, "filter-segmenter", "ellipse")
    choose(opened, "filter-condition", "box-noise-0.6")
    rows = visible(opened, ".part table:first-of-type tbody tr")
    assert {row.text.split()[0] for row in rows} == {"ellipse"}
    assert {row.text.split()[1] for row in rows} == {"box-noise-0.6"}
    heads = [each.text for each in visible(opened, "article h4")]
    assert heads
    assert all(head.startswith("ellipse box-noise-0.6") for head in heads)
    opened.find_element(By.CSS_SELECTOR, "[data-kind=pair]").click()
    heads = [each.text for each in visible(opened, ".part[data-part='1'] article h4")]
    assert all("beats" in head and "ellipse" in head for head in heads)
    choose(opened, "filter-section", "noisy-box on folder in " + _root(opened))
    assert len(visible(opened, ".part")) == 1


def _root(browser: webdriver.Chrome) -> str:
    options = browser.find_elements(By.CSS_SELECTOR, "#filter-section option")
    (name,) = [each.text for each in options if "on folder in " in each.text]
    return name.rpartition(" in ")[2]


def test_nothing_is_wider_than_a_narrow_window(opened: webdriver.Chrome) -> None:
    opened.refresh()
    for dark in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": dark}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for width in (380, 1280):
            size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
            opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            script = "return document.documentElement.scrollWidth"
            assert opened.execute_script(script) <= width
        colour = opened.execute_script("return getComputedStyle(document.body).backgroundColor")
        red = int(str(colour).removeprefix("rgb(").split(",")[0])
        assert (red < 60) == (dark == "dark")


def test_the_worst_stand_first_and_say_what_they_lose(sections: list[Section]) -> None:
    found = gallery_of(sections[0], Photographs(), room=LARGEST_OUTLINES).exhibits
    losses = [each.loss for each in found]
    assert losses == sorted(losses, reverse=True)
    worst = next(each for each in found if each.kind == "drop")
    assert worst.panels[0].title == "photograph"
    values = [int(panel.title.rpartition(" ")[2]) for panel in worst.panels[1:]]
    assert values[0] == min(values)
    assert f"loses {100 * worst.loss:.0f} points" in worst.caption
    assert all(panel.box and panel.mask for panel in worst.panels[1:])
    pair = next(each for each in found if each.kind == "pair")
    assert len(pair.segmenters) == 2
    assert pair.panels[1].box == pair.panels[2].box  # the same prompt


def test_photographs_beyond_the_bound_are_left_out_and_counted(
    sections: list[Section], monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs = Photographs()
    every = gallery_of(sections[0], photographs, room=LARGEST_OUTLINES)
    n_bytes = sum(len(photograph.jpeg) for photograph in photographs.shown.values())
    monkeypatch.setattr(gallery, "LARGEST_PHOTOGRAPHS", n_bytes // 2)
    photographs = Photographs()
    some = gallery_of(sections[0], photographs, room=LARGEST_OUTLINES)
    assert 0 < len(photographs.shown) < 5
    assert some.n_left_out > 0
    assert len(some.exhibits) + some.n_left_out == len(every.exhibits)
    assert f"{some.n_left_out} more were left out" in page(sections[:1])


def test_outlines_take_no_more_room_than_they_have(sections: list[Section]) -> None:
    every = gallery_of(sections[0], Photographs(), room=LARGEST_OUTLINES)
    sizes = [
        sum(len(panel.target) + len(panel.mask) for panel in exhibit.panels)
        for exhibit in every.exhibits
    ]
    some = gallery_of(sections[0], Photographs(), room=sum(sizes[:2]))
    assert some.exhibits == every.exhibits[:2]
    assert some.n_left_out == len(every.exhibits) - 2


def test_runs_without_masks_or_objects_have_a_page(tmp_path: Path) -> None:
    sections = summarise([MadeUp(has_objects=False).store(tmp_path)])
    text = page(sections)
    assert "--keep-masks worst" in text
    assert "By size of the object" not in text
    assert "<article" not in text
