"""Headless Chromium, driven through chromedriver's WebDriver protocol over plain HTTP."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from infra.ports import free_port

DEADLINE_S = 30.0
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key that WebDriver's standard gives references to elements."""


def missing_browser() -> str:
    """Returns why no browser can be driven here; "" if one can."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)} here (Debian: chromium-driver)" if missing else ""


class Browser:
    """One window."""

    def __init__(self, session: httpx.Client) -> None:
        self._session = session

    def open(self, url: str) -> None:
        """Goes to a page."""
        self._post("url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """Runs the body of a function of JavaScript in the page; its value."""
        return self._post("execute/sync", {"script": script, "args": args})

    def click(self, selector: str) -> None:
        """Clicks what a person would have to be able to click."""
        self._post(f"element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Types into a field."""
        self._post(f"element/{self._find(selector)}/value", {"text": text})

    def text(self, selector: str) -> str:
        """Returns the text of the first element that the selector finds; "" of none."""
        return str(
            self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)
        )

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Polls until the condition is true; its value."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} did not happen: {self.text('body')[:2000]}"
            time.sleep(0.1)
        return value

    def resize(self, width: int, height: int) -> None:
        """Sets the size of the window."""
        self._post("window/rect", {"width": width, "height": height})

    def prefer(self, scheme: str) -> None:
        """Shows pages as one who prefers this colour scheme sees them, light or dark."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._command("Emulation.setEmulatedMedia", {"features": features})

    def picture(self, file: Path) -> None:
        """Writes what the whole page looks like as PNG."""
        shot = self._command("Page.captureScreenshot", {"captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(shot["data"]))

    def log(self, kind: str) -> list[dict[str, Any]]:
        """Takes the entries of a log since the last call: `browser` is the console, `performance`
        what the page has requested."""
        return list(self._post("se/log", {"type": kind}))

    def _command(self, name: str, parameters: dict[str, Any]) -> Any:
        return self._post("goog/cdp/execute", {"cmd": name, "params": parameters})

    def _find(self, selector: str) -> str:
        found = self._post("element", {"using": "css selector", "value": selector})
        return str(found[ELEMENT])

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._session.post(path, json=body)
        assert response.status_code == 200, f"{path}: {response.text[:500]}"
        return response.json()["value"]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A window of a new Chromium, with its profile in an empty directory."""
    port = free_port()
    driver = subprocess.Popen(
        ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120.0) as http:
            _wait_until_ready(http)
            arguments = [*ARGUMENTS, f"--user-data-dir={profile}"]
            wanted = {
                "goog:chromeOptions": {"args": arguments},
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            started = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
            assert started.status_code == 200, started.text
            name = started.json()["value"]["sessionId"]
            base_url = f"http://127.0.0.1:{port}/session/{name}/"
            with httpx.Client(base_url=base_url, timeout=120.0) as session:
                yield Browser(session)
                session.delete("")
    finally:
        driver.terminate()
        driver.wait(DEADLINE_S)


def _wait_until_ready(http: httpx.Client) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if http.get("/status").json()["value"]["ready"]:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "chromedriver does not answer"
        time.sleep(0.05)
