"""A request to somebody's HTTP server, and what its answer means for the batch that it carried."""

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from sapflow.errors import BackendAwayError, ExporterRefusedError, SapflowError

MAX_ANSWER_BYTES = 2**16
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)  # RFC 9110, section 5.6.2
SCHEMES = ("http", "https")

# This batch is at fault; another may be taken.
AT_FAULT = frozenset({400, 413, 422})
# The place or the credentials are; the next batch would fare no better.
MISPLACED = frozenset({401, 403, 404, 405, 407, 410, 411, 415, 501})


class BatchAtFaultError(SapflowError):
    """The server will never take this batch as it is."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST loses its body, and events are only sent where a person wanted them."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Sender:
    """Posts to one URL, of which messages show the host alone: the rest may be a secret.

    Args:
        url: http or https, without a user's name and password.
        headers: with every request.
        timeout: in seconds, to connect and for each answer.
        ca_file: certificates to trust instead of the system's.

    Raises:
        ExporterRefusedError: the URL or a header is none, or the certificates are.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float, ca_file: str | None = None) -> None:
        self._url = check_url(url)
        self._place = f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
        self._headers = check_headers(headers)
        self._timeout = timeout
        try:
            context = ssl.create_default_context(cafile=ca_file)
        except OSError as error:
            raise ExporterRefusedError(f"the certificates {ca_file} cannot be used ({error})") from error
        self._opener = urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))

    def post(self, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
        """Bring `body`, and give the answer's, at most MAX_ANSWER_BYTES of it.

        Raises:
            BackendAwayError: the server cannot be reached, is slow, busy, full or failing.
            BatchAtFaultError: it will not have this body.
            ExporterRefusedError: it will have none.
        """
        request = urllib.request.Request(self._url, body, {**self._headers, **(headers or {})}, method="POST")
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                taken: bytes = answer.read(MAX_ANSWER_BYTES)
                return taken
        except urllib.error.HTTPError as error:
            with error:
                raise self._meaning(error.code, error.headers.get("Retry-After")) from error
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ExporterRefusedError(f"{self._place}: {reason.verify_message}: check the certificate") from error
            raise BackendAwayError(f"{self._place} cannot be reached ({reason or type(error).__name__})") from error

    def _meaning(self, code: int, retry_after: str | None) -> Exception:
        said = f"{self._place} answered {code} {http.client.responses.get(code, '')}".rstrip()
        if code in AT_FAULT:
            return BatchAtFaultError(said)
        if code in MISPLACED or code < 400:
            return ExporterRefusedError(f"{said}: check the URL and the credentials")
        return BackendAwayError(said, _seconds(retry_after))


def _seconds(retry_after: str | None) -> float | None:
    """From now until the time that the header asks for, in one of its two forms (RFC 9110, section 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return None


def check_url(url: str) -> str:
    """The URL, if events can be posted to it.

    Raises:
        ExporterRefusedError: they cannot.
    """
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")  # as a socket will do it
        plain = url.isascii() and url.isprintable() and " " not in url
        usable = parts.scheme in SCHEMES and parts.hostname and plain and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ExporterRefusedError("the url of an exporter must be like https://host/path, in ASCII")
    if parts.username or parts.password:
        raise ExporterRefusedError(
            f"the url with host {parts.hostname} has credentials in it: set the variable for them"
        )
    return url


def check_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, if they can be sent. Spaces around values, such as the end of a line in a file, are cut off.

    Raises:
        ExporterRefusedError: one cannot.
    """
    cleaned = {name: value.strip() for name, value in headers.items()}
    for name, value in cleaned.items():
        if not (TOKEN.fullmatch(name) and value.isascii() and value.isprintable()):
            raise ExporterRefusedError(f"the header {name[:80]!r} cannot be sent: it has characters that no header has")
    return cleaned
