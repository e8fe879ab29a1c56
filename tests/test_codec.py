"""Events as bytes and back: whole or refused with its cause, whatever is expected of them and whatever they hold."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sanctum_events import random_run
from sapflow.errors import UnreadableEventError
from sapflow.telemetry.codec import decode, encode
from sapflow.telemetry.vocabulary import EventType

BODIES = [encode(event) for event in random_run(0, epochs=3)]
NAMES = st.sampled_from([*EventType, "", "UNKNOWN", "epoch_completed"])


def outcome(data: bytes, *expected: str) -> str:
    try:
        return repr(decode(data, *expected))  # NaN is equal to NaN
    except UnreadableEventError as error:
        return error.cause


@pytest.mark.parametrize("event", random_run(1, epochs=3), ids=lambda event: event.type)
def test_an_event_comes_back_as_it_was(event):
    assert decode(encode(event)) == decode(encode(event), event.type) == event


@given(body=st.sampled_from(BODIES), name=NAMES, data=st.data())
def test_what_is_expected_makes_no_difference_but_of_speed(body, name, data):
    assert outcome(body, name) == outcome(body)
    broken = bytearray(body)
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(bytes(broken), name) == outcome(bytes(broken))


def test_a_newer_schema_is_told_from_what_is_malformed():
    newer = BODIES[0].replace(b"\xa6schema\x01", b"\xa6schema\x02")
    assert newer != BODIES[0]
    assert outcome(newer, EventType.RUN_STARTED) == outcome(newer) == "newer schema"
