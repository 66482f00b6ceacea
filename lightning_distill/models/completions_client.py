"""An OpenAI-compatible completions server, asked again where that may help.

Nothing here knows what is asked. The key is in the request's header and nowhere else: what a server
says, which may repeat it, is shown without it.
"""

import json
import logging
import os
import random
import re
import threading
import time
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, Retry
from urllib3.exceptions import HTTPError

from lightning_distill.errors import ConfigError

log = logging.getLogger(__name__)

AGAIN = {408, 429, *range(500, 600)}
LONGEST_PAUSE = 120.0  # seconds between two tries
LONGEST_ASKED = 3600.0  # where the server names them


class Completions:
    """POST {url}/completions.

    timeout: seconds without a byte of an answer. retries: after the first try, each after twice
    the pause of the one before; backoff: seconds of the first. connections: at once.
    key_variable: the environment variable that holds the key; None where there is none.
    """

    def __init__(
        self,
        url: str,
        timeout: float,
        retries: int,
        connections: int,
        key_variable: str | None,
        backoff: float,
    ) -> None:
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self.key_variable, self.backoff = key_variable, backoff
        self.stop = threading.Event()  # set where no further answer is of use
        self._first: ConfigError | None = None
        self._quiet_until = 0.0
        self._key = _key_of(key_variable)
        self._session = requests.Session()
        # Of an adapter's own retries the reading of the answer takes no part.
        adapter = HTTPAdapter(pool_maxsize=connections, max_retries=0)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        self._session.auth = self._authorise  # nor does requests look for one in a .netrc

    def ask(self, **body: Any) -> str:
        """The text of the answer. Raises ConfigError where there is none; that ends all asking."""
        try:
            return self._ask(body)
        except ConfigError as error:
            self._first = self._first or error
            self.stop.set()
            raise self._first from error.__cause__

    def _ask(self, body: dict[str, Any]) -> str:
        said, tried = "not asked", 0
        while not self.stop.is_set() and tried <= self.retries:
            tried += 1
            pause = min(self.backoff * 2 ** (tried - 1), LONGEST_PAUSE) * random.uniform(1, 1.25)
            try:
                response = self._session.post(
                    f"{self.url}/completions",
                    json=body,
                    timeout=self.timeout,
                    allow_redirects=False,  # to where the key would go along
                )
                if response.status_code == 200:
                    return response.content.decode("utf-8", "replace")
                if response.status_code not in AGAIN:
                    raise self._refusal(response)
                said = f"answered {self._status(response)}"
                pause = _asked_for(response.raw) or pause
            except requests.Timeout:
                said = f"no answer within teacher.timeout={self.timeout:g} seconds"
            except requests.RequestException as error:
                said = f"no answer ({self.shown(_innermost(error), 100)})"
            if tried <= self.retries:
                self._tell(said, pause)
                self.stop.wait(pause)
        tries = f"{tried} tries" if tried > 1 else "1 try"
        raise ConfigError(
            f"teacher.url={self.url}: {said}, after {tries}. What is labelled so far is kept, and "
            "the same command goes on from there."
        )

    def nonsense(self, answer: str, why: str) -> ConfigError:
        """For an answer that cannot be used."""
        return ConfigError(f"teacher.url={self.url} answered with {self.shown(answer, 100)}: {why}")

    def shown(self, text: str, most: int) -> str:
        """A server's words in a line of ours: without the key, and cut."""
        for key in {self._key, json.dumps(self._key)[1:-1]} - {""}:
            text = text.replace(key, "***")
        line = " ".join(text.split())
        line = "".join(c if c.isprintable() else "�" for c in line[: most + 1])
        return line if len(line) <= most else f"{line[: most - 1]}…"

    def _tell(self, said: str, pause: float) -> None:
        """Once for all connections, which mostly fail together."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + pause
            log.warning("%s: %s; trying again in %.3g s", self.url, said, pause)

    def _refusal(self, response: requests.Response) -> ConfigError:
        start, status = f"teacher.url={self.url}", response.status_code
        if status in (401, 403):
            what = "refused the key" if self._key else "asks for a key"
            where = f"put it into the environment variable {self.key_variable}"
            if self.key_variable is None:
                where = "name the environment variable that holds it by teacher.key_variable"
            return ConfigError(f"{start} {what}; {where}. It {self._status(response, 'said')}.")
        if 300 <= status < 400:
            to = self.shown(response.headers.get("Location", "nowhere"), 100)
            return ConfigError(f"{start} redirects to {to}; set teacher.url to where it is.")
        hint = ""
        if status == 404:
            hint = " teacher.url ends in /v1 with most servers, and teacher.name is one of theirs."
        return ConfigError(f"{start} answered {self._status(response)}.{hint}")

    def _status(self, response: requests.Response, verb: str = "") -> str:
        """`400 Bad Request: its own words`"""
        text = response.content.decode("utf-8", "replace")
        try:
            found: Any = json.loads(text)
            for name in ("error", "message", "detail"):
                found = found.get(name, found) if isinstance(found, dict) else found
            text = found if isinstance(found, str) else text
        except ValueError:
            pass
        parts = (verb, str(response.status_code), self.shown(response.reason or "", 50))
        line = " ".join(part for part in parts if part)
        return f"{line}: {self.shown(text, 200).rstrip('.')}" if text.strip() else line

    def _authorise(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _key_of(variable: str | None) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if not re.fullmatch(r"[!-~]*", key):  # an error about the header would show it
        raise ConfigError(
            f"The environment variable {variable} must hold a key and nothing else: a single word "
            "of ASCII characters."
        )
    return key


def _asked_for(response: BaseHTTPResponse) -> float | None:
    """Seconds to wait, where the server names them (Retry-After)."""
    try:
        seconds = Retry(0).get_retry_after(response)
    except (HTTPError, ValueError):
        return None
    return None if seconds is None else min(seconds, LONGEST_ASKED)


def _innermost(error: BaseException) -> str:
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
