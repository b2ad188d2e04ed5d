"""The search page in a real headless Chromium. Screenshots are kept in the folder that $ZEROGR_SCREENSHOTS names."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.service import held, served, settings, stopped_after_first_hits, tiny_index, until
from zerogr_ray.serving.keys import new_key, read_keys

BROWSER = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")),
    reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
)
pytestmark = [pytest.mark.model, BROWSER]

SIZES = {"wide": (1200, 800), "phone": (390, 844)}


@pytest.fixture(scope="module")
def shots():
    folder = Path(os.environ.get("ZEROGR_SCREENSHOTS") or Path(__file__).parents[2] / ".cache" / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return tiny_index(tmp_path_factory.mktemp("page"), count=40)


@pytest.fixture(scope="module")
def service(index, tmp_path_factory):
    small = tiny_index(tmp_path_factory.mktemp("small"), count=3, seed=4)
    cfg = settings(
        {"docs": str(index), "small": str(small)},
        tmp_path_factory.mktemp("state"),
        limits={"waiting": 1, "query_chars": 100},
    )
    with served(cfg) as (client, searcher):
        yield client, searcher


@pytest.fixture
def page(browser, service):
    browser.set_window_size(*SIZES["wide"])
    browser.get(f"{service[0].base_url}/")
    until(lambda: texts(browser, "#index option"), 20)
    return browser


def texts(browser, where):
    script = "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)"
    return browser.execute_script(script, where)


def said(browser):
    return texts(browser, "#said")[0]


def type_and_enter(browser, words):
    from selenium.webdriver.common.keys import Keys

    field = browser.switch_to.active_element  # the keyboard alone: the page puts the cursor there
    field.send_keys(Keys.CONTROL + "a")
    field.send_keys(words + Keys.ENTER)


def shoot(browser, folder, name):
    for size, (width, height) in SIZES.items():
        browser.set_window_size(width, height)
        overflow = browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
        assert overflow <= 0, f"{name} is wider than a {size} window"
        assert browser.save_screenshot(str(folder / f"{name}-{size}.png"))


def test_a_search_by_keyboard_shows_hits_with_temperature_latency_and_version(page, service, shots):
    type_and_enter(page, "red fox")
    until(lambda: "documents in" in said(page))
    version = service[0].get("/v1/indexes").json()["indexes"][0]["version"]
    assert f"by version {version} of docs" in said(page)
    assert " ms" in said(page)
    expected = service[0].post("/v1/search", json={"query": "red fox"}).json()["hits"]
    assert texts(page, "#hits .title") == [hit["title"] for hit in expected]
    assert texts(page, "#hits .docid") == [hit["docid"] for hit in expected]
    assert texts(page, "#hits .heat") == [f"T {hit['temperature']:.2f}" for hit in expected]
    shoot(page, shots, "search")


def test_hits_appear_one_by_one_before_the_search_has_ended(page, service):
    """The decoder is stopped in the middle of a search: what was drawn until then is on the page."""
    with stopped_after_first_hits(service[1]):
        type_and_enter(page, "open the web browser")
        until(lambda: texts(page, "#hits li"))
        assert "drawing" in said(page)
        some = len(texts(page, "#hits li"))
    until(lambda: "documents in" in said(page))
    assert len(texts(page, "#hits li")) == 10 > some


def test_an_index_without_documents_finds_nothing_and_says_so(page, service, shots):
    for number in range(3):
        service[0].delete(f"/v1/documents/d{number}?index=small")
    page.execute_script(
        "const one = document.getElementById('index'); one.value = 'small'; one.dispatchEvent(new Event('change'))"
    )
    type_and_enter(page, "fox")
    until(lambda: "Nothing found in" in said(page))
    assert texts(page, "#hits li") == []
    shoot(page, shots, "empty")


def test_an_error_is_said_on_the_page(page, shots):
    type_and_enter(page, "x" * 120)
    until(lambda: "120 asked for" in said(page))
    assert page.execute_script("return document.getElementById('said').className") == "error"
    shoot(page, shots, "error")


def test_overload_is_said_on_the_page_with_the_time_to_wait(page, service, shots):
    client, searcher = service
    with ThreadPoolExecutor(1) as other:
        with held(searcher):
            waiting = other.submit(client.post, "/v1/search", json={"query": "fox"})
            until(lambda: searcher.decoder.waiting == 1)
            type_and_enter(page, "red fox")
            until(lambda: "Too many searches" in said(page))
            shoot(page, shots, "overload")
        assert waiting.result().status_code == 200


def test_nothing_is_loaded_from_elsewhere_and_nothing_goes_wrong(page, service):
    type_and_enter(page, "red fox")
    until(lambda: "documents in" in said(page))
    page.get(f"{service[0].base_url}/docs")
    until(lambda: "/v1/search" in "".join(texts(page, ".opblock-summary-path")))
    sent = [json.loads(row["message"])["message"] for row in page.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    own = str(service[0].base_url)
    assert asked
    assert [url for url in asked if url.startswith(("http", "ws")) and not url.startswith(own)] == []
    bad = [row for row in page.get_log("browser") if row["level"] == "SEVERE" and "status of" not in row["message"]]
    assert bad == []


def test_a_service_with_keys_asks_for_one(browser, index, tmp_path):
    key = new_key(tmp_path / "keys.json", "page", ["search"])
    with served(settings(index, tmp_path / "state"), read_keys(tmp_path / "keys.json")) as (client, _):
        browser.get(f"{client.base_url}/")
        until(lambda: "wants an API key" in said(browser))
        field = browser.find_element("id", "key")
        field.send_keys(key)
        browser.execute_script("document.getElementById('key').dispatchEvent(new Event('change'))")
        until(lambda: texts(browser, "#index option"))
        browser.find_element("id", "query").send_keys("fox\n")
        until(lambda: "documents in" in said(browser))
