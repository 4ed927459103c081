"""A headless Chromium that opens files, and what a test does with a page in it: look, type, click, wait."""

import base64
import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

NAMES = ("chromium", "chromium-browser", "google-chrome")
MISSING = "no browser to open the page in: install Chromium and its driver (Debian: chromium chromium-driver)"
DEADLINE = 60.0
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,900"
)

# The words of prose, the first ones the most often.
VOCABULARY = ("data/practice.jsonl",)

# In a list, once its texts are unpacked, the content of the dialog: its title, and for each column a heading, the facts
# and the texts; or null while it is closed.
TOLD = """
const dialog = document.querySelector("dialog"), pairs = (list) => Object.fromEntries(list);
if (!dialog.open) return [null];
if (!dialog.querySelector(".columns").children.length) return [];
return [{title: dialog.querySelector("h2").textContent, columns: [...dialog.querySelectorAll(".columns > *")].map(
  (column) => ({
    title: column.querySelector("h3")?.textContent ?? "",
    facts: pairs([...column.querySelectorAll("dl div")].map((pair) => [...pair.children].map((e) => e.textContent))),
    texts: pairs([...column.querySelectorAll("details")].map((part) => [...part.children].map((e) => e.textContent))),
  }))}];
"""


def programs() -> tuple[str, str] | None:
    """The paths of a Chromium and of its driver, or None where one is missing."""
    driver = shutil.which("chromedriver")
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def chromium(home: Path, environment: Mapping[str, str] | None = None) -> Iterator["Browser"]:
    """A running Chromium with a new profile in `home`, until the end of the block; there must be one."""
    found = programs()
    if found is None:
        raise FileNotFoundError(MISSING)
    options = ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS.split(), f"--user-data-dir={home / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = Service(found[1], env={**(environment or os.environ), "HOME": str(home)})
    driver = Chrome(options=options, service=service)
    try:
        driver.set_page_load_timeout(DEADLINE)
        driver.set_script_timeout(DEADLINE)
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """A tab of a running Chromium."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, page: Path, fragment: str = "", **emulated: Any) -> None:
        """Load the file anew, with nothing left of what was open before; `emulated` is as in `emulate`."""
        self.driver.get("about:blank")
        self.emulate(**emulated)
        self.console(), self.requests()  # of the page before
        self.driver.get(page.as_uri() + fragment)

    def emulate(self, media: str = "", scheme: str = "light", scripts: bool = True) -> None:
        """Show pages as for a medium ("print") and a colour scheme, and with or without their scripts."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})

    def js(self, script: str, *arguments: Any) -> Any:
        """The value that a script returns which is run in the page."""
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until the condition holds, and return what it gave; fails with `what` was awaited."""
        deadline = time.monotonic() + DEADLINE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {DEADLINE:g} s: {what}"
            time.sleep(0.01)
        return value

    def all(self, selector: str) -> list[WebElement]:
        """The elements that a CSS selector stands for."""
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> WebElement:
        """The first of them."""
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        """Click on the middle of an element, which must be in nobody's shade."""
        element = self.one(selector)
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def press(self, *keys: str, held: str | None = None) -> None:
        """Type into whatever has the focus, with another key held down."""
        actions = ActionChains(self.driver, duration=0)
        if held:
            actions.key_down(held)
        actions.send_keys(*keys)
        if held:
            actions.key_up(held)
        actions.perform()

    def search(self, text: str) -> None:
        """Type into the search, in the place of what was there."""
        field = self.one("input[type=search]")
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, Keys.DELETE)
        field.send_keys(text)

    def told(self) -> Any:
        """The content of the dialog, or None while it is closed."""
        return self.until(lambda: self.js(TOLD), "the texts of the task")[0]

    def address(self) -> str:
        """The fragment of the page's address."""
        return str(self.js("return location.hash"))

    def console(self) -> list[str]:
        """The warnings and errors that have come on the console since the last call."""
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] in ("WARNING", "SEVERE")]

    def requests(self) -> list[str]:
        """The addresses that have been asked for since the last call."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def screenshot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(picture["data"]))


def prose(seed: int, length: int) -> str:
    """About `length` characters of words that follow Zipf's law, with numbers between them: as dense as real text."""
    repo = Path(__file__).resolve().parent.parent
    words = sorted({word for name in VOCABULARY for word in (repo / name).read_text("utf-8").split()})
    chance = random.Random(seed)
    random.Random(0).shuffle(words)
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    chosen = chance.choices(words, weights, k=length // 6)
    for at in range(0, len(chosen), 9):
        chosen[at] = f"{chance.randrange(10_000)}{chance.choice(['.', ',', ' =', chr(10)])}"
    return " ".join(chosen)[:length]
