from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from kombu.transport.virtual import Message

from kelpie_celery.messages import TAG, Capture, Envelope, decode, encode, published_at

BODY = [["an-id"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
ENVELOPE = Envelope(BODY, {"id": "an-id", "task": "kelpie.run_job"}, "kelpie.g", {"correlation_id": "an-id"})


class Channel:
    """As much of a kombu channel as a message needs."""

    def decode_body(self, body: str, encoding: str) -> bytes:
        assert encoding == "base64"
        return base64.b64decode(body)


def test_kombu_reads_what_we_write() -> None:
    channel: Any = Channel()
    message: Any = Message(json.loads(encode(ENVELOPE, priority=3, tag="1.5.an-id")), channel=channel)
    assert message.payload == BODY
    assert message.headers["task"] == "kelpie.run_job"
    assert message.delivery_tag == "1.5.an-id"
    assert message.delivery_info["routing_key"] == "kelpie.g"
    assert message.properties["priority"] == 3


def test_a_message_is_decoded_to_what_it_was_made_of() -> None:
    headers, properties, body = decode(encode(ENVELOPE, priority=0))
    assert headers == ENVELOPE.headers
    assert properties["correlation_id"] == "an-id"
    assert body == BODY


def test_the_place_of_the_delivery_tag_cannot_be_taken_by_what_a_user_wrote() -> None:
    hostile = Envelope(BODY, {"x": TAG}, "kelpie.g", {"argsrepr": TAG, "delivery_tag": TAG})
    text = encode(hostile, priority=0)
    assert json.loads(text.replace(TAG, "first", 1))["properties"]["delivery_tag"] == "first"
    assert text.index(TAG) < text.index("argsrepr")


def test_a_capture_keeps_a_message_and_leaves_out_what_is_for_the_producer() -> None:
    capture = Capture()
    capture.publish(
        BODY, headers={"id": "x"}, routing_key="kelpie.g", exchange="", serializer="json", retry=True, priority=None,
        correlation_id="x",
    )  # fmt: skip
    with capture.connection._reraise_as_library_errors():
        assert capture.envelopes == [Envelope(BODY, {"id": "x"}, "kelpie.g", {"correlation_id": "x"})]


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [("1700000000.250000.some-id", 1700000000.25), ("1700000000.250000.a.b", 1700000000.25), ("7d1e-uuid", None),
     (None, None), ("", None)],
)  # fmt: skip
def test_a_delivery_tag_tells_when_the_ledger_published(tag: object, seconds: float | None) -> None:
    assert published_at(tag) == seconds
