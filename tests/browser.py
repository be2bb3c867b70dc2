"""Chromium without a window, steered over a pipe: a page is opened, looked at and used as a person would.

Source: the Chrome DevTools Protocol, https://chromedevtools.github.io/devtools-protocol; messages end with a zero byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
           "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]  # fmt: skip
SOON = 120  # seconds: a browser starts in two on an idle machine


class Browser:
    """One page. Use it in a `with` block.

    Args:
        profile: an empty folder for what the browser writes.
        dark: the page is shown to somebody who prefers dark colours.
    """

    def __init__(self, profile, dark=False):
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()

        def three_and_four():
            # Above both numbers first: one of the pipe's ends may be 3 or 4 itself.
            high = [os.dup(reads), os.dup(writes)]
            high = [os.dup2(each, 100 + place) for place, each in enumerate(high)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        command = [BROWSER, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, preexec_fn=three_and_four, close_fds=False, **quiet)
        os.close(reads)
        os.close(writes)
        self._number, self._rest, self.messages = 0, b"", []
        self._session = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def open(self, address):
        self._call("Page.navigate", url=address)
        self.until("document.readyState === 'complete'")

    def value(self, expression):
        """Of JavaScript, in the page."""
        result = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression):
        end = time.monotonic() + SOON
        while not self.value(expression):
            assert time.monotonic() < end, (expression, self.value("document.body.innerText"))
            time.sleep(0.02)

    def type(self, text):
        """Into what has the focus."""
        self._call("Input.insertText", text=text)

    def press(self, key, shift=False):
        code = {"Enter": 13, "Tab": 9}[key]
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector):
        box = self.value(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
                         f"(document.querySelector({json.dumps(selector)}).getBoundingClientRect())")  # fmt: skip
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def accessible(self):
        """(role, name) of everything that a screen reader finds."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in nodes if not n["ignored"]]

    def picture(self, path, width=800, height=600):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def fetched(self):
        """Addresses that the page asked for."""
        events = [each for each in self.messages if each.get("method") == "Network.requestWillBeSent"]
        return [each["params"]["request"]["url"] for each in events]

    def complaints(self):
        """What the browser's console says of errors, and exceptions that nobody caught."""
        logged = [m["params"]["entry"] for m in self.messages if m.get("method") == "Log.entryAdded"]
        thrown = [m["params"] for m in self.messages if m.get("method") == "Runtime.exceptionThrown"]
        return [entry["text"] for entry in logged if entry["level"] == "error"] + thrown

    def _call(self, method, **parameters):
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message(method)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.messages.append(answer)

    def _message(self, waits_for):
        while b"\0" not in self._rest:
            assert select.select([self._read], [], [], SOON)[0], f"{waits_for}: the browser says nothing"
            piece = os.read(self._read, 2**16)
            assert piece, f"{waits_for}: the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
