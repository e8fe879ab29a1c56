"""To a web hook: batches of events as JSON lines, with a key for each batch and, if wanted, a signature."""

import hashlib
import hmac
import os
import time
from collections.abc import Sequence

import msgspec

from sapflow.errors import ExporterRefusedError
from sapflow.exporters.exporter import Setting
from sapflow.exporters.http import Sender
from sapflow.exporters.json_form import json_line
from sapflow.telemetry.events import TelemetryEvent

SECRET_VARIABLE = "SAPFLOW_WEBHOOK_SECRET"
TOKEN_VARIABLE = "SAPFLOW_WEBHOOK_TOKEN"


class Options(msgspec.Struct, frozen=True):
    """`url` that batches are posted to; `timeout` in seconds."""

    url: str = ""
    timeout: float = 10.0


class Webhook:
    """Posts each batch as `application/x-ndjson`.

    `Idempotency-Key` is the same whenever a batch of the same events comes again. With a secret, `Sapflow-Signature` is
    "t=TIME,v1=HEX": the HMAC-SHA256 of TIME, a dot and the body.
    """

    def __init__(self, sender: Sender, secret: bytes, setting: Setting) -> None:
        self._sender = sender
        self._secret = secret
        self._setting = setting

    def export(self, events: Sequence[TelemetryEvent]) -> None:
        """See `Exporter.export`."""
        body = b"".join(json_line(event, self._setting.run.key) for event in events)
        keys = "\n".join(map(self._setting.key_of, events)).encode(errors="surrogatepass")
        headers = {"Idempotency-Key": hashlib.sha256(keys).hexdigest()}
        if self._secret:
            headers["Sapflow-Signature"] = signature(body, self._secret, int(time.time()))
        self._sender.post(body, headers)

    def close(self) -> None:
        """See `Exporter.close`."""


def signature(body: bytes, secret: bytes, now: int) -> str:
    """What the header `Sapflow-Signature` says of a body that is sent at `now`, in Unix seconds."""
    digest = hmac.new(secret, f"{now}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={now},v1={digest}"


def open_exporter(setting: Setting) -> Webhook:
    """See `exporter.Open`."""
    options = setting.options_as(Options)
    if not options.url:
        raise ExporterRefusedError(f"exporter {setting.name} needs a url: set exporters.{setting.name}.url")
    if not 0 < options.timeout <= 600:
        raise ExporterRefusedError(f"the timeout of exporter {setting.name} must be between 0 and 600 seconds")
    headers = {"Content-Type": "application/x-ndjson", "User-Agent": "sapflow"}
    if token := os.environ.get(TOKEN_VARIABLE):
        headers["Authorization"] = f"Bearer {token}"
    sender = Sender(options.url, headers, options.timeout)
    return Webhook(sender, os.environ.get(SECRET_VARIABLE, "").encode(), setting)
