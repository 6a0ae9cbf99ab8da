"""The way to the office: calls over HTTP with this terminal's token, one connection that stays open (``/v1/VERB``)."""

from __future__ import annotations

import http.client
import json
import ssl
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from cardlib.errors import ConfigError, FormatError, LineTimeout, TransportError
from terminals.issuing import Fields, error_of

TIMEOUT_S = 20
MAX_ANSWER = 1 << 20


class OfficeLine:
    """One connection; of one thread at a time.

    ``ca`` is the file of who vouches for the office. Raises ConfigError for an address that is none, and for one
    beyond this machine without https.
    """

    def __init__(self, url: str, token: str, ca: Path | None = None, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("http", "https") or not host or parts.path.strip("/") or parts.query:
            raise ConfigError(f"office_url: {url!r} is no address like https://office.example:8080")
        if parts.scheme == "http" and not _is_here(host):
            raise ConfigError(f"office_url: {url} is beyond this machine: https belongs there")
        if not token.isascii() or not token.isprintable():
            raise ConfigError("the office token has other characters than a token has")
        self.name = f"{parts.scheme}://{parts.netloc}"
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            if parts.scheme == "https":
                context = ssl.create_default_context(cafile=ca)
                self._line: http.client.HTTPConnection = http.client.HTTPSConnection(
                    host, parts.port, timeout=timeout_s, context=context
                )
            else:
                self._line = http.client.HTTPConnection(host, parts.port, timeout=timeout_s)
        except (OSError, ValueError) as e:
            raise ConfigError(f"office_url {url}, office_ca {ca}: {e}") from e

    def call(self, verb: str, **fields: str | int) -> Fields:
        """One call. Raises what the office tells; TransportError when no answer came: it may have been heard."""
        body = json.dumps(fields).encode()
        try:
            self._line.request("POST", f"/v1/{verb}", body, self._headers)
            answer = self._line.getresponse()
            status, raw = answer.status, answer.read(MAX_ANSWER)
        except (OSError, http.client.HTTPException) as e:
            self.close()
            kind = LineTimeout if isinstance(e, TimeoutError) else TransportError
            raise kind(f"the office at {self.name} does not answer: {type(e).__name__}") from e
        try:
            found = json.loads(raw)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise FormatError(f"{self.name} answered {status} with no JSON object: is it the office?")
        if status != http.client.OK:
            raise error_of(found.get("error"))
        return found

    def close(self) -> None:
        """Hang up; the next call connects again."""
        self._line.close()


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
