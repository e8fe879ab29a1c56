"""A request to somebody's HTTP server, and what its answer means for the batch that it carried."""

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from sapflow.errors import BackendAwayError, ExporterRefusedError, SapflowError

MAX_ANSWER_BYTES = 2**16
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
    """Posts to one URL.

    Args:
        url: http or https; credentials in it are no good, since it is shown.
        headers: with every request.
        timeout: in seconds, to connect and for each answer.
        ca_file: certificates to trust instead of the system's.

    Raises:
        ExporterRefusedError: the URL is none.
    """

    def __init__(self, url: str, headers: Mapping[str, str], timeout: float, ca_file: str | None = None) -> None:
        self.url = check_url(url)
        self._headers = dict(headers)
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
        request = urllib.request.Request(self.url, body, {**self._headers, **(headers or {})}, method="POST")
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
                raise ExporterRefusedError(f"{self.url}: {reason.verify_message}: check the certificate") from error
            raise BackendAwayError(f"{self.url} cannot be reached ({reason or type(error).__name__})") from error

    def _meaning(self, code: int, retry_after: str | None) -> Exception:
        said = f"{self.url} answered {code} {http.client.responses.get(code, '')}".rstrip()
        if code in AT_FAULT:
            return BatchAtFaultError(said)
        if code in MISPLACED or code < 400:
            return ExporterRefusedError(f"{said}: check the URL and the credentials")
        return BackendAwayError(said, float(retry_after) if retry_after and retry_after.isdecimal() else None)


def check_url(url: str) -> str:
    """The URL, if events can be posted to it.

    Raises:
        ExporterRefusedError: they cannot.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in SCHEMES and parts.hostname and url.isprintable() and " " not in url and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ExporterRefusedError("the url of an exporter must be like https://host/path")
    if parts.username or parts.password:
        shown = urlunsplit(parts._replace(netloc=f"…@{parts.hostname}"))
        raise ExporterRefusedError(f"the url {shown} has credentials in it: give them as the page on exporting says")
    return url
