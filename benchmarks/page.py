"""From a click to the picture, the clip or the sound in the page, in headless Chromium.

    python benchmarks/page.py [folder]      # with a folder: also a screenshot of each tab

It opens `python -m scm_core.demo` with the shipped students and clicks on "Surprise me" for one
sample in two steps. Times are the browser's: from the click until the frame that shows the sample
has been painted, or until the sound plays. Needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

BAR = 0.25  # seconds
CLICKS = 21
PATIENCE = 120  # seconds that a busy machine may need to load the models
FLAGS = ("--headless=new", "--no-sandbox", "--mute-audio", "--window-size=1080,860")

# Clicks a button; milliseconds until what its tab shows is another medium, and that is there.
CLICK_TO_VISIBLE = """
const [panel, button, done] = arguments;
const medium = () => panel.querySelector("audio, video") || panel.querySelector("img");
const there = (one) => one.tagName == "IMG" ? one.complete && one.naturalWidth
    : one.readyState >= 3 && !one.paused;
const before = medium().src, start = performance.now();
const arrived = (one) => one && one.src != before && there(one);
const look = () => arrived(medium())
    ? requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)))
    : requestAnimationFrame(look);
button.click();
look();
"""

COUNT_SAMPLES = """
const [panel] = arguments;
window.seen = new Set();
new MutationObserver(() => window.seen.add(panel.querySelector("img, video").src))
    .observe(panel, {subtree: true, childList: true, attributes: true});
"""


class Page:
    """The page in a browser; what is named on it is looked for in the open tab."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def named(self, selector: str, text: str | None = None) -> WebElement:
        """The first visible element that matches, and that says exactly `text`."""
        for element in self.driver.find_elements(By.CSS_SELECTOR, selector):
            if element.is_displayed() and text in (None, element.text):
                return element
        raise LookupError(f"nothing visible is {selector} {text or ''}")

    def wait(self, condition: str, *values: object) -> None:
        """Until a JavaScript expression is true."""
        WebDriverWait(self.driver, PATIENCE, 0.05).until(
            lambda driver: driver.execute_script(f"return {condition}", *values), condition
        )

    @property
    def result(self) -> WebElement:
        return self.named(".result")

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Wait in the end until the result is another than in the beginning."""
        result = self.result
        before = self.driver.execute_script("return arguments[0].innerHTML", result)
        yield
        self.wait("arguments[0].innerHTML != arguments[1]", result, before)

    def source(self) -> str:
        """Of the first picture, clip or sound of the result."""
        return self.result.find_element(By.CSS_SELECTOR, "img, video").get_attribute("src")

    def open_tab(self, name: str) -> None:
        self.named("button[role=tab]", name).click()
        self.wait("arguments[0].ariaSelected == 'true'", self.named("button[role=tab]", name))

    def click(self, button: str) -> None:
        """Click, and wait until the result is another one."""
        with self.changing():
            self.named("button", button).click()

    def draw_one(self) -> None:
        """Have one sample drawn at a time; the page draws one as soon as that is chosen."""
        if self.named("label", "1").find_element(By.TAG_NAME, "input").is_selected():
            self.click("Generate")
        else:
            with self.changing():
                self.named("label", "1").click()

    def choose(self, label: str, value: str) -> None:
        """Choose a class of a dropdown, which draws it at once."""
        self.named(f"input[aria-label='{label}']").send_keys(Keys.CONTROL, "a")
        self.named(f"input[aria-label='{label}']").send_keys(value, Keys.ENTER)
        self.wait("arguments[0].innerText.includes(arguments[1])", self.result, value)

    def type(self, label: str, text: str, said: str | None = None) -> None:
        """Type into a text box, and wait until the result says that, or else the text."""
        box = self.named(f"textarea[aria-label='{label}'], label.container textarea, label input")
        box.send_keys(Keys.CONTROL, "a")
        box.send_keys(text, Keys.ENTER)
        self.wait("arguments[0].innerText.includes(arguments[1])", self.result, said or text)

    def drag_seed(self, moves: int) -> int:
        """Drag the seed to the right, slowly; how many samples are seen before it is let go."""
        drag = ActionChains(self.driver, duration=50)
        drag.click_and_hold(self.named(".seed input[type=range]"))
        for _ in range(moves):
            drag.move_by_offset(5, 0).pause(0.2)
        self.driver.execute_script(COUNT_SAMPLES, self.result)
        drag.perform()
        seen = self.driver.execute_script("return window.seen.size")
        ActionChains(self.driver).release().perform()
        return seen

    def race(self) -> str:
        """Race the teacher; what the page says of it."""
        self.named("button", "Race the teacher").click()
        self.wait("arguments[0].innerText.includes('less time')", self.result)
        return self.result.text

    def milliseconds(self) -> float:
        """From a click on "Surprise me" to the sample in the page."""
        button = self.named("button", "Surprise me")
        return self.driver.execute_async_script(CLICK_TO_VISIBLE, self.result, button)


@contextlib.contextmanager
def opened(*words: str) -> Iterator[Page]:
    """The page of `python -m scm_core.demo` with these words, on a free port, in a browser."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "scm_core.demo", f"port={port}", *words]
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in FLAGS:
        options.add_argument(flag)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(subprocess.Popen(line, stdout=subprocess.PIPE, text=True))
        stack.callback(server.terminate)
        said = next(server.stdout, "")
        if "Open http" not in said:
            raise RuntimeError(f"the page did not open: {said}")
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        driver = stack.enter_context(webdriver.Chrome(options, service))
        driver.set_script_timeout(PATIENCE)
        driver.get(f"http://127.0.0.1:{port}")
        page = Page(driver)
        page.wait("document.querySelector('.result img, .result video')")
        yield page


def main(folder: Path | None = None) -> None:
    """Print the median of each tab beside its bar; exit 1 above one."""
    medians = {}
    with opened() as page:
        for tab in page.driver.find_elements(By.CSS_SELECTOR, "button[role=tab]"):
            page.open_tab(tab.text)
            page.draw_one()
            name = tab.text.lower()
            medians[name] = statistics.median(page.milliseconds() for _ in range(CLICKS)) / 1000
            print(f"{name:<10}{medians[name]:8.3f} s from click to sample   (bar: {BAR} s)")
            if folder:
                page.race()
                time.sleep(1)  # for a clip to be in its middle
                page.driver.save_screenshot(str(folder / f"page-{name}.png"))
    sys.exit(any(median > BAR for median in medians.values()))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
