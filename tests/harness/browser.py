"""A real browser without a window, for pages whose buttons are to be pressed.

Limits: Chromium and its driver must be installed; it may reach this machine only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.harness.waiting import eventually

T = TypeVar("T")
WIDTH, HEIGHT = 1680, 1050
FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    # Whatever page would ask for somebody else's script gets none.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--window-size={WIDTH},{HEIGHT}",
]  # fmt: skip


def program(*names: str) -> str:
    """The first of these programs that is on PATH."""
    found = next(filter(None, map(shutil.which, names)), None)
    assert found, f"no {' or '.join(names)} on PATH; on Debian and Ubuntu: apt-get install -y chromium chromium-driver"
    return found


class Browser:
    """A browser, as somebody who looks and clicks uses it.

    Attributes:
        driver: Selenium's driver.
    """

    def __init__(self, driver: Any, directory: Path) -> None:
        self.driver, self._directory = driver, directory

    def open(self, url: str) -> None:
        """Open a page."""
        self.driver.get(url)

    def find(self, selector: str) -> list[Any]:
        """The visible elements of a CSS selector."""
        return [element for element in self.driver.find_elements("css selector", selector) if element.is_displayed()]

    def text(self, selector: str = "body") -> str:
        """The visible text of what a selector finds; empty while there is nothing."""
        from selenium.common.exceptions import StaleElementReferenceException

        try:
            return "\n".join(element.text for element in self.find(selector))
        except StaleElementReferenceException:  # the page is being replaced
            return ""

    def click(self, selector: str) -> None:
        """Click the one element that is there."""
        eventually(f"{selector} is there once", lambda: len(self.find(selector)) == 1, 20, self.text)
        self.find(selector)[0].click()

    def wait(self, what: str, look: Callable[[], T | None], timeout_s: float = 60.0, *, reload: str = "") -> T:
        """Wait for something to be seen; ``reload`` asks for the page again each time, until that element is there."""

        def once() -> T | None:
            if reload:
                self.driver.refresh()
                eventually(f"{reload} is there", lambda: self.find(reload), 20, self.text)
            return look()

        return eventually(what, once, timeout_s, self.text)

    def sources(self) -> list[str]:
        """Where the page's scripts, styles and data came from."""
        script = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        return list(self.driver.execute_script(script))

    def photograph(self, name: str) -> Path:
        """Write a PNG of the window."""
        path = self._directory / f"{name}.png"
        path.write_bytes(self.driver.get_screenshot_as_png())
        return path


@contextmanager
def browsing(profile: Path, pictures: Path) -> Iterator[Browser]:
    """A browser with an empty profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium", "chromium-browser", "google-chrome")
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(program("chromedriver")))
    try:
        yield Browser(driver, pictures)
    finally:
        driver.quit()
