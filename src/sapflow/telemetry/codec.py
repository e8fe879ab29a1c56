"""How an event becomes bytes and back: msgpack, with an envelope that every version can read."""

from typing import Any

import msgspec

from sapflow.errors import UnreadableEventError
from sapflow.telemetry.events import PAYLOADS, SCHEMA_VERSION, TelemetryEvent


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What every version writes around a payload that only some versions know."""

    schema: int
    run_id: str
    env_id: int | None
    sequence: int | None
    time: float
    type: str
    payload: msgspec.Raw


class _Whole(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An envelope whose payload is known beforehand: read in one pass."""

    schema: int
    run_id: str
    env_id: int | None
    sequence: int | None
    time: float
    type: str


_encoder = msgspec.msgpack.Encoder()
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_payload_decoders = {name: msgspec.msgpack.Decoder(payload) for name, payload in PAYLOADS.items()}
_whole_decoders: dict[str, Any] = {
    name: msgspec.msgpack.Decoder(
        msgspec.defstruct(f"_{name}", [("payload", payload)], bases=(_Whole,), frozen=True, kw_only=True, gc=False)
    )
    for name, payload in PAYLOADS.items()
}


def encode(event: TelemetryEvent) -> bytes:
    """An event as msgpack; NaN and infinities survive.

    Raises:
        TypeError, OverflowError: the payload holds something msgpack has no form for.
    """
    return _encoder.encode(
        Envelope(
            schema=SCHEMA_VERSION,
            run_id=event.run_id,
            env_id=event.env_id,
            sequence=event.sequence,
            time=event.time,
            type=event.type.value,
            payload=msgspec.Raw(_encoder.encode(event.payload)),
        )
    )


def decode(data: bytes, expected: str = "") -> TelemetryEvent:
    """The event in `data`, validated; faster where it is of the type that is expected.

    Raises:
        UnreadableEventError: its cause is "newer schema", "unknown type" or "malformed"; readers count it.
    """
    if (whole := _expected(data, expected)) is not None:
        return whole
    try:
        envelope = _envelope_decoder.decode(data)
        if envelope.schema > SCHEMA_VERSION:
            raise UnreadableEventError("newer schema", f"{envelope.schema}, this Sapflow reads {SCHEMA_VERSION}")
        decoder = _payload_decoders.get(envelope.type)
        if decoder is None:
            raise UnreadableEventError("unknown type", envelope.type)
        payload = decoder.decode(envelope.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableEventError("malformed", str(error)) from error
    return TelemetryEvent(
        run_id=envelope.run_id,
        env_id=envelope.env_id,
        sequence=envelope.sequence,
        time=envelope.time,
        payload=payload,
    )


def _expected(data: bytes, name: str) -> TelemetryEvent | None:
    """The event, if it is one of that type that this version can read."""
    decoder = _whole_decoders.get(name)
    if decoder is None:
        return None
    try:
        whole = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if whole.type != name or whole.schema > SCHEMA_VERSION:
        return None
    return TelemetryEvent(
        run_id=whole.run_id, env_id=whole.env_id, sequence=whole.sequence, time=whole.time, payload=whole.payload
    )
