"""A headless Chromium driven through the DevTools protocol over a pipe: standard library only, no port, no network."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium reads commands on descriptor 3 and answers on 4; this puts the two ends there, wherever they were.
_START = (
    "import fcntl, os, sys; r, w = (fcntl.fcntl(int(f), fcntl.F_DUPFD, 10) for f in sys.argv[1:3]);"
    "os.dup2(r, 3); os.dup2(w, 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def find() -> str | None:
    """The browser's path, or None; NCOPS_CHROMIUM names another one."""
    named = os.environ.get("NCOPS_CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome", "chrome"]
    return next((path for name in names if (path := shutil.which(name))), None)


class Chromium:
    """One browser process. ``limit`` is the longest wait for an answer, in seconds."""

    def __init__(self, path: str, profile: Path, limit: float = 120.0):
        self.limit, self._number, self._buffer = limit, 0, b""
        self.events: list[dict] = []
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        self._log = profile.with_suffix(".log")
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), path, *FLAGS,
                 f"--user-data-dir={profile}", "about:blank"],
                pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)

    def close(self) -> None:
        try:
            self.call("Browser.close")
            self._process.wait(20)
        except (OSError, TimeoutError, ConnectionError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for end in (self._in, self._out):
            with contextlib.suppress(OSError):
                os.close(end)

    def call(self, method: str, session: str | None = None, **params) -> dict:
        """Sends a command and waits for its answer; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(time.monotonic() + self.limit)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self, deadline: float) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"Chromium said nothing for {self.limit:g} s")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise ConnectionError(
                    f"Chromium has ended; its last words: {self._log.read_text(errors='replace')[-500:]}"
                )
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def wait_for(self, method: str, session: str) -> dict:
        """The first event of this name in this tab, from now on or kept."""
        deadline = time.monotonic() + self.limit
        while True:
            for event in self.events:
                if event["method"] == method and event.get("sessionId") == session:
                    return event
            self._next(deadline)


class Page:
    """A tab that shows a file; ``problems`` are its console errors and exceptions, ``requests`` what it asked for."""

    def __init__(self, browser: Chromium, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False):
        self.browser, self.width = browser, width
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.media("screen", dark)
        browser.events.clear()
        self.call("Page.navigate", url=file.as_uri())
        browser.wait_for("Page.loadEventFired", self.session)

    def call(self, method: str, **params) -> dict:
        return self.browser.call(method, self.session, **params)

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, media: str, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def run(self, script: str):
        """The value of an expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def events(self, *methods: str) -> list[dict]:
        self.run("1")  # whatever happened before has arrived then
        own = (e for e in self.browser.events if e.get("sessionId") == self.session)
        return [e["params"] for e in own if e["method"] in methods]

    @property
    def problems(self) -> list[dict]:
        logged = self.events("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [e for e in logged if e.get("type") not in ("log", "info", "debug")]

    @property
    def requests(self) -> list[str]:
        return [e["request"]["url"] for e in self.events("Network.requestWillBeSent")]

    def screenshot(self, path: Path) -> Path:
        """The whole page, as far down as it goes."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def pdf(self, path: Path) -> Path:
        data = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path
