"""A real browser to look at pages with: Chromium, over its debugging pipe (DevTools protocol)."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = (
    "--headless",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-pipe",
)
PATIENCE = 60  # seconds for an answer, on a machine that does much else


class Browser:
    """One page. `complaints` are what its console and its scripts reported."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM
        ours, theirs = os.pipe(), os.pipe()
        pipes = f"3</dev/fd/{ours[0]} 4>/dev/fd/{theirs[1]}"  # where it looks for them
        self.process = subprocess.Popen(
            [
                "sh",
                "-c",
                f'exec "$@" {pipes}',
                "sh",
                CHROMIUM,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(ours[0], theirs[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self.to, self.of = ours[1], theirs[0]
        self.buffer, self.calls, self.session = b"", 0, None
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self.calls:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, event: str) -> None:
        while self._read().get("method") != event:
            pass

    def open(self, file: Path, width: int = 1440, height: int = 900, dark: bool = False) -> float:
        """Returns the seconds until the page is loaded and its script has run."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        start = time.perf_counter()
        self.call("Page.navigate", url=file.as_uri())
        self.wait_for("Page.loadEventFired")
        return time.perf_counter() - start

    def run(self, script: str) -> Any:
        """The value of an expression, which may be a promise."""
        done = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str) -> None:
        text = {"Enter": "\r"}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, text=text, unmodifiedText=text)

    def close(self) -> None:
        os.close(self.to)  # at which it ends by itself
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.of)

    def _read(self) -> dict[str, Any]:
        """The next message: an answer or an event."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.of], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            data = os.read(self.of, 1 << 20)
            assert data, "the browser ended"
            self.buffer += data
        raw, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(raw)
        if complaint := _complaint(message.get("method"), message.get("params", {})):
            self.complaints.append(complaint)
        return message


def _complaint(event: str | None, params: dict[str, Any]) -> str | None:
    bad = ("error", "warning", "assert")
    if event == "Runtime.exceptionThrown":
        return str(params["exceptionDetails"])
    if event == "Log.entryAdded" and params["entry"]["level"] in bad:
        return str(params["entry"])
    if event == "Runtime.consoleAPICalled" and params["type"] in bad:
        return str(params["args"])
    return None
