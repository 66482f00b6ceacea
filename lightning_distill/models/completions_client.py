"""A client of an OpenAI-compatible completions server, with retries.

The API key is sent in the request's header and appears nowhere else: a server's words, which may
repeat it, are redacted before they are shown.
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

RETRIED_STATUS = {408, 429, *range(500, 600)}
MAX_PAUSE = 120.0  # seconds between two tries
MAX_RETRY_AFTER = 3600.0  # seconds, where the server names them


class CompletionsClient:
    """POST {url}/completions.

    timeout: seconds without a byte of an answer. retries: after the first try, each after twice
    the pause of the one before; backoff: seconds of the first pause. connections: at once.
    key_variable: the environment variable that holds the API key; None for no key.
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
        self.stop = threading.Event()  # set to end the retries of all threads
        self._first_error: ConfigError | None = None
        self._quiet_until = 0.0
        self._key = _read_key(key_variable)
        self._session = requests.Session()
        # The adapter's own retries would not cover reading the answer.
        adapter = HTTPAdapter(pool_maxsize=connections, max_retries=0)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        self._session.auth = self._authorize  # also keeps requests from using a .netrc

    def complete(self, **body: Any) -> str:
        """The text of the answer, from any thread.

        Raises ConfigError where there is none; all other threads then raise the same one.
        """
        try:
            return self._post(body)
        except ConfigError as error:
            self._first_error = self._first_error or error
            self.stop.set()
            raise self._first_error from error.__cause__

    def _post(self, body: dict[str, Any]) -> str:
        failure, tries = "no request was sent", 0
        while not self.stop.is_set() and tries <= self.retries:
            tries += 1
            pause = min(self.backoff * 2 ** (tries - 1), MAX_PAUSE) * random.uniform(1, 1.25)
            try:
                response = self._session.post(
                    f"{self.url}/completions",
                    json=body,
                    timeout=self.timeout,
                    allow_redirects=False,  # another host would get the key
                )
                if response.status_code == 200:
                    return response.content.decode("utf-8", "replace")
                if response.status_code not in RETRIED_STATUS:
                    raise self._refusal(response)
                failure = f"answered {self._status(response)}"
                pause = _retry_after(response.raw) or pause
            except requests.Timeout:
                failure = f"no answer within teacher.timeout={self.timeout:g} seconds"
            except requests.RequestException as error:
                failure = f"no answer ({self.redacted(_root_cause(error), 100)})"
            if tries <= self.retries:
                self._warn_of_retry(failure, pause)
                self.stop.wait(pause)
        count = f"{tries} tries" if tries > 1 else "1 try"
        raise ConfigError(
            f"teacher.url={self.url}: {failure}, after {count}. The predictions so far are kept; "
            "re-running the command resumes from them."
        )

    def unusable_answer(self, answer: str, reason: str) -> ConfigError:
        return ConfigError(
            f"teacher.url={self.url} answered with {self.redacted(answer, 100)}: {reason}"
        )

    def redacted(self, text: str, max_length: int) -> str:
        """One printable line of a server's text, without the API key, cut to a length."""
        for key in {self._key, json.dumps(self._key)[1:-1]} - {""}:
            text = text.replace(key, "***")
        line = " ".join(text.split())
        line = "".join(c if c.isprintable() else "�" for c in line[: max_length + 1])
        return line if len(line) <= max_length else f"{line[: max_length - 1]}…"

    def _warn_of_retry(self, failure: str, pause: float) -> None:
        """Once for all connections, which mostly fail together."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + pause
            log.warning("%s: %s; trying again in %.3g s", self.url, failure, pause)

    def _refusal(self, response: requests.Response) -> ConfigError:
        start, status = f"teacher.url={self.url}", response.status_code
        if status in (401, 403):
            problem = "refused the key" if self._key else "asks for a key"
            remedy = f"put it into the environment variable {self.key_variable}"
            if self.key_variable is None:
                remedy = "name the environment variable that holds it by teacher.key_variable"
            return ConfigError(
                f"{start} {problem}; {remedy}. It answered {self._status(response)}."
            )
        if 300 <= status < 400:
            target = self.redacted(response.headers.get("Location", "nowhere"), 100)
            return ConfigError(f"{start} redirects to {target}; set teacher.url to where it is.")
        hint = ""
        if status == 404:
            hint = " teacher.url ends in /v1 with most servers, and teacher.name is one of theirs."
        return ConfigError(f"{start} answered {self._status(response)}.{hint}")

    def _status(self, response: requests.Response) -> str:
        """`400 Bad Request: the server's reason`"""
        reason = response.content.decode("utf-8", "replace")
        try:
            node: Any = json.loads(reason)
            for name in ("error", "message", "detail"):
                node = node.get(name, node) if isinstance(node, dict) else node
            reason = node if isinstance(node, str) else reason
        except ValueError:
            pass
        line = f"{response.status_code} {self.redacted(response.reason or '', 50)}".strip()
        return f"{line}: {self.redacted(reason, 200).rstrip('.')}" if reason.strip() else line

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _read_key(variable: str | None) -> str:
    key = os.environ.get(variable, "").strip() if variable else ""
    if not re.fullmatch(r"[!-~]*", key):  # requests' own error would show it
        raise ConfigError(
            f"The environment variable {variable} must hold a key and nothing else: a single word "
            "of ASCII characters."
        )
    return key


def _retry_after(response: BaseHTTPResponse) -> float | None:
    """Seconds of the Retry-After header, if there is one."""
    try:
        seconds = Retry(0).get_retry_after(response)
    except (HTTPError, ValueError):
        return None
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER)


def _root_cause(error: BaseException) -> str:
    while deeper := error.__cause__ or error.__context__:
        error = deeper
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
