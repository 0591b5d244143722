"""Drives a headless Chromium by its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-port=0",
]
PATIENCE_S = 60.0


class PageError(Exception):
    """A script failed, or its page went away meanwhile."""


class Tab:
    """Holds the connection to a tab."""

    def __init__(self, connection: ClientConnection):
        self.connection, self.numbers, self.log = connection, itertools.count(1), []

    def command(self, method: str, **params) -> dict[str, Any]:
        """Sends a command and returns its result; what the tab reports meanwhile goes to the log."""
        number = next(self.numbers)
        self.connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while (message := json.loads(self.connection.recv(timeout=PATIENCE_S))).get("id") != number:
            self.log.append(message)
        if "error" in message:
            raise PageError(message["error"])
        return message["result"]

    def run(self, script: str) -> Any:
        """Evaluates an expression in the page, as a person's click would be, and returns its value."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        result = self.command("Runtime.evaluate", expression=script, **options)
        if "exceptionDetails" in result:
            raise PageError(result)
        return result["result"].get("value")

    def wait_for(self, condition: str) -> Any:
        """Waits until an expression is true; returns its value."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with suppress(PageError):  # it is loading
                if value := self.run(condition):
                    return value
            time.sleep(0.05)
        raise AssertionError(f"{condition} did not come true; the page says: {self.run('document.body.innerText')}")

    def open(self, url: str) -> None:
        """Goes to a page and waits until it is loaded."""
        self.run("globalThis.isOld = true")
        self.command("Page.navigate", url=url)
        self.wait_for("!globalThis.isOld && document.readyState === 'complete'")

    def choose(self, selector: str, path: Path) -> None:
        """Chooses a file in an input, as a person does in the dialog."""
        self.command("Page.setInterceptFileChooserDialog", enabled=True)
        self.run(f"document.querySelector({selector!r}).click()")
        root = self.command("DOM.getDocument")["root"]["nodeId"]
        node = self.command("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.command("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def press(self, key: str, code: int, text: str = "") -> None:
        """Presses a key."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        self.command("Input.dispatchKeyEvent", type="keyDown", **event)
        self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    def screenshot(self, path: Path) -> None:
        """Writes a PNG of the page."""
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(folder: Path, *flags: str) -> Iterator[Tab]:
    """Starts a Chromium whose profile is in an empty folder; yields a tab."""
    with subprocess.Popen(
        [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={folder}", "about:blank"], stderr=subprocess.DEVNULL
    ) as process:
        try:
            until = time.monotonic() + PATIENCE_S
            while not ((port_file := folder / "DevToolsActivePort").is_file() and port_file.read_text()):
                assert process.poll() is None, "Chromium does not start"
                assert time.monotonic() < until
                time.sleep(0.05)
            port = port_file.read_text().split()[0]
            tabs = requests.get(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE_S).json()
            url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(url, max_size=None) as connection:
                tab = Tab(connection)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    tab.command(f"{domain}.enable")
                yield tab
        finally:
            process.terminate()
