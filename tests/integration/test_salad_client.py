"""SaladCloud's client against a server: what is sent, what is tried again, what becomes of each answer."""

from __future__ import annotations

import logging
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from pydantic import SecretStr

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import SaladDenied, SaladError, SaladNotFound, SaladRefused, SaladUnavailable
from kelpie_celery.scaling.facts import FleetFacts, GroupStatus
from kelpie_scaler.salad import Group, Place, SaladClient
from kelpie_scaler.salad.transport import MAX_PAUSE_S, TRIES, Transport
from tests.harness.http_stub import Reply
from tests.harness.salad_stub import (
    GROUP_ID,
    KEY,
    MERGE_PATCH,
    NAME,
    ORGANIZATION,
    PROJECT,
    SaladStub,
    group_body,
    instance_body,
    problem,
)
from tests.harness.waiting import eventually

PLACE = Place(ORGANIZATION, PROJECT, NAME)
HTML = Reply(502, "<html><body>Bad gateway at the secret edge</body></html>", "text/html")


class Clock(ManualClock):
    """Notes how long was slept."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        super().sleep(seconds)


class Bucket:
    """Tokens, as many as there are."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.wait_s: float | None = 0.0

    def take_token(self, bucket: str, *, each_s: float, holds: int, most_s: float) -> float | None:
        assert holds + 60 / each_s <= 240
        self.taken.append(bucket)
        return self.wait_s


@pytest.fixture
def stub() -> Iterator[SaladStub]:
    with SaladStub() as stub:
        yield stub


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def client(stub: SaladStub, clock: Clock, bucket: Bucket) -> Iterator[SaladClient]:
    transport = Transport(stub.url + "/", SecretStr(KEY), bucket, clock=clock)
    yield SaladClient(transport)
    transport.close()


def calls(stub: SaladStub) -> list[str]:
    """Every request, without the project's path."""
    return [call.replace(Place(ORGANIZATION, PROJECT).path, "P") for call in stub.calls()]


# -- what is sent -------------------------------------------------------------------------------------------------


def test_a_group_is_found_by_its_id(client: SaladClient, stub: SaladStub) -> None:
    stub.groups = {"broken": {"id": "x", "name": "broken"}, NAME: group_body(running=2, replicas=3, status="running")}
    found = client.find_group(Place(ORGANIZATION, PROJECT), GROUP_ID.upper())
    expected = FleetFacts(GroupStatus.RUNNING, 3, 0, 0, 2, 0, pending_change=False)
    assert found == Group(GROUP_ID, NAME, expected)
    assert client.find_group(Place(ORGANIZATION, PROJECT), NAME) == found
    with pytest.raises(SaladNotFound, match="no container group of project 'default'"):
        client.find_group(Place(ORGANIZATION, PROJECT), "other")


def test_a_count_is_patched_as_a_merge_patch_of_replicas_alone_and_on_a_difference_only(
    client: SaladClient, stub: SaladStub
) -> None:
    group = client.group(PLACE)
    assert client.set_replicas(PLACE, group, 0) is group
    assert client.set_replicas(PLACE, group, 12).facts.replicas == 12
    assert calls(stub) == ["GET P/demo-workers", "PATCH P/demo-workers"]
    sent = stub.exchanges[-1]
    assert sent["body"] == {"replicas": 12}
    assert sent["headers"]["Content-Type"] == MERGE_PATCH
    assert sent["headers"]["Accept"] == "*/*"


@pytest.mark.parametrize("replicas", [-1, 501])
def test_a_count_that_the_api_does_not_know_is_not_sent(client: SaladClient, stub: SaladStub, replicas: int) -> None:
    group = client.group(PLACE)
    with pytest.raises(ValueError, match="0 to 500"):
        client.set_replicas(PLACE, group, replicas)
    assert len(stub.calls()) == 1


def test_start_stop_and_reallocate_send_no_body_and_read_none(client: SaladClient, stub: SaladStub) -> None:
    one = instance_body(1)
    stub.instances[NAME] = [one]
    client.start(PLACE)
    client.stop(PLACE)
    client.reallocate(PLACE, one["id"])
    assert calls(stub) == [
        "POST P/demo-workers/start", "POST P/demo-workers/stop",
        f"POST P/demo-workers/instances/{one['id']}/reallocate",
    ]  # fmt: skip
    assert {e["body"] for e in stub.exchanges} == {None}


def test_a_202_with_a_body_that_is_no_json_is_taken(client: SaladClient, stub: SaladStub) -> None:
    stub.next_time("start", Reply(202, "accepted", "text/plain"))
    client.start(PLACE)


def test_instances_are_read_with_old_and_new_names(client: SaladClient, stub: SaladStub) -> None:
    old = instance_body(2, deletion_cost=7)
    old["instance_id"] = old.pop("id")
    stub.instances[NAME] = [instance_body(1, state="downloading"), old]
    first, second = client.instances(PLACE)
    assert (first.state, second.id, second.deletion_cost) == ("downloading", old["instance_id"], 7)
    assert first.since == 1777885964.120337


def test_counts_are_read_under_both_of_their_names(client: SaladClient, stub: SaladStub) -> None:
    body = group_body(allocating=1, creating=2, running=3, stopping=4)
    state = body["current_state"]
    state["instance_status_count"] = state.pop("instance_status_counts")
    stub.groups[NAME] = body
    f = client.group(PLACE).facts
    assert (f.allocating, f.creating, f.running, f.stopping) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, ()),
        ({"queue_autoscaler": None, "scaling-actions": [], "scheduled-scaling-enabled": True}, ()),
        ({"queue_autoscaler": {"max_replicas": 3}}, ("queue autoscaler",)),
        (
            {"scheduled-scaling-enabled": True, "scaling-actions": [{"schedule": "0 0 * * *", "replicas": 1}]},
            ("scheduled scaling",),
        ),
    ],
)
def test_other_autoscalers_are_seen(
    client: SaladClient, stub: SaladStub, more: dict[str, Any], found: tuple[str, ...]
) -> None:
    stub.groups[NAME] = group_body(**more)
    assert client.group(PLACE).facts.autoscaled_by == found


def test_quotas_are_read(client: SaladClient) -> None:
    quotas = client.quotas(ORGANIZATION)
    assert (quotas.replicas, quotas.used, quotas.reallocations_per_minute) == (100, 37, 10)


# -- what is tried again ------------------------------------------------------------------------------------------

PASSING = [problem(429, "slow down"), problem(500, "oops"), problem(503, "later"), HTML, Reply(cut=True)]


@pytest.mark.parametrize("reply", PASSING)
def test_what_passes_is_tried_again(client: SaladClient, stub: SaladStub, clock: Clock, reply: Reply) -> None:
    stub.next_time(NAME, reply, reply)
    assert client.group(PLACE).name == NAME
    assert len(stub.calls()) == 3
    assert len(clock.slept) == 2


@pytest.mark.parametrize("reply", PASSING)
def test_what_does_not_pass_after_all_tries_is_unavailable(client: SaladClient, stub: SaladStub, reply: Reply) -> None:
    stub.next_time(NAME, *[reply] * TRIES)
    with pytest.raises(SaladUnavailable) as caught:
        client.group(PLACE)
    assert len(stub.calls()) == TRIES
    assert "secret edge" not in str(caught.value)
    assert KEY not in repr(caught.value)


@pytest.mark.parametrize(
    ("status", "kind"), [(400, SaladRefused), (401, SaladDenied), (403, SaladDenied), (404, SaladNotFound)]
)
def test_what_will_not_pass_is_not_tried_again(
    client: SaladClient, stub: SaladStub, status: int, kind: type[SaladError]
) -> None:
    stub.next_time("start", problem(status, "Quota of 10 replicas\n is used up"))
    with pytest.raises(kind, match=r"Quota of 10 replicas is used up") as caught:
        client.start(PLACE)
    assert (caught.value.status, caught.value.detail) == (status, "Quota of 10 replicas is used up")
    assert len(stub.calls()) == 1


def test_a_refusal_as_html_shows_nothing_of_the_page(client: SaladClient, stub: SaladStub) -> None:
    stub.next_time("start", Reply(403, "<html>edge says no</html>", "text/html; charset=utf-8"))
    with pytest.raises(SaladDenied) as caught:
        client.start(PLACE)
    assert "edge says no" not in str(caught.value)
    assert "no JSON (text/html)" in str(caught.value)


def test_a_problem_under_its_own_media_type_is_read(client: SaladClient, stub: SaladStub) -> None:
    stub.next_time("start", Reply(400, {"title": "Not now"}, "application/problem+json"))
    with pytest.raises(SaladRefused, match="Not now"):
        client.start(PLACE)


@pytest.mark.parametrize("body", ["<html>login</html>", ""])
def test_a_success_that_is_no_json_is_tried_again(client: SaladClient, stub: SaladStub, body: str) -> None:
    stub.next_time(NAME, Reply(200, body, "text/html"))
    assert client.group(PLACE).name == NAME


@pytest.mark.parametrize("body", [{}, [], {"current_state": {"status": "new"}, "replicas": 1}, None])
def test_an_answer_that_is_something_else_is_told_and_not_tried_again(
    client: SaladClient, stub: SaladStub, body: Any
) -> None:
    stub.next_time(NAME, Reply(200, body) if body is not None else Reply(200, "null", "text/json-ish"))
    with pytest.raises(SaladUnavailable, match="cannot be read as a container group"):
        client.group(PLACE)
    assert len(stub.calls()) == 1


def test_a_redirect_is_not_followed(client: SaladClient, stub: SaladStub) -> None:
    with SaladStub() as elsewhere:
        stub.next_time(NAME, Reply(307, headers={"Location": f"{elsewhere.url}/{NAME}"}))
        with pytest.raises(SaladError, match="307"):
            client.group(PLACE)
        assert elsewhere.calls() == []


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 17), ("0", 0, 10), ("3600", MAX_PAUSE_S, MAX_PAUSE_S), ("-5", 0, 10), ("soon", 0, 10), ("nan", 0, 10)],
)
def test_the_pause_that_an_answer_asks_for_is_made_up_to_a_minute(
    client: SaladClient, stub: SaladStub, clock: Clock, header: str, least: float, most: float
) -> None:
    stub.next_time(NAME, problem(429, "slow down", **{"Retry-After": header}))
    client.group(PLACE)
    [pause_s] = clock.slept
    assert least <= pause_s <= most


def test_nobody_listening_is_unavailable(clock: Clock, bucket: Bucket) -> None:
    with SaladStub() as stub:
        url = stub.url
    client = SaladClient(Transport(url, SecretStr(KEY), bucket, clock=clock))
    with pytest.raises(SaladUnavailable, match="cannot be reached"):
        client.group(PLACE)
    assert len(bucket.taken) == TRIES


# -- rate, turns, connections, secrets ----------------------------------------------------------------------------


def test_every_try_takes_a_token_of_the_keys_own_bucket(client: SaladClient, stub: SaladStub, bucket: Bucket) -> None:
    stub.next_time(NAME, problem(500, "oops"))
    client.group(PLACE)
    client.start(PLACE)
    assert len(bucket.taken) == 3
    assert len(set(bucket.taken)) == 1
    assert KEY not in bucket.taken[0]


def test_a_token_that_comes_later_is_waited_for(client: SaladClient, clock: Clock, bucket: Bucket) -> None:
    bucket.wait_s = 2.5
    client.group(PLACE)
    assert clock.slept == [2.5]


def test_without_a_token_nothing_is_sent(client: SaladClient, stub: SaladStub, bucket: Bucket) -> None:
    bucket.wait_s = None
    with pytest.raises(SaladUnavailable, match="240 calls a minute are used up"):
        client.group(PLACE)
    assert stub.calls() == []


def test_the_right_to_act_is_asked_for_before_each_try_of_a_change_and_for_no_question(
    client: SaladClient, stub: SaladStub
) -> None:
    class Lost(Exception):
        pass

    asked: list[int] = []

    def may_act() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise Lost

    stub.next_time("start", problem(500, "oops"))
    acting = client.acting_while(may_act)
    acting.group(PLACE)
    assert asked == []
    with pytest.raises(Lost):
        acting.start(PLACE)
    assert calls(stub)[1:] == ["POST P/demo-workers/start"]


def test_threads_share_connections_and_keep_no_cookies(client: SaladClient, stub: SaladStub) -> None:
    stub.next_time(NAME, Reply(200, group_body(), headers={"Set-Cookie": "a=b"}))
    client.group(PLACE)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: client.group(PLACE), range(20)))) == 20
    assert not any("Cookie" in e["headers"] for e in stub.exchanges)
    assert {e["headers"]["Connection"] for e in stub.exchanges} == {"keep-alive"}


@pytest.fixture
def everything_said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.DEBUG)
    return lambda: "\n".join(repr(record.__dict__) for record in caplog.records)


def test_the_key_is_in_the_header_and_nowhere_else(
    client: SaladClient, stub: SaladStub, everything_said: Callable[[], str]
) -> None:
    stub.next_time(NAME, *[Reply(cut=True)] * TRIES)
    for attempt in range(2):
        try:
            client.group(PLACE)
        except SaladUnavailable as e:
            chain = [repr(e), str(e), repr(e.__cause__), repr(pickle.loads(pickle.dumps(SaladRefused(str(e)))))]
            assert attempt == 0
            assert not any(KEY in words for words in chain)
    assert {e["headers"]["Salad-Api-Key"] for e in stub.exchanges} == {KEY}
    assert KEY not in everything_said()
    assert KEY not in repr(client) + repr(client._transport) + repr(vars(client))


def test_a_slow_answer_delays_only_who_asked(client: SaladClient, stub: SaladStub) -> None:
    gate = threading.Event()
    stub.next_time(NAME, Reply(200, group_body(), wait=gate))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(client.group, PLACE)
        eventually("the slow call arrives", stub.calls)
        assert client.group(PLACE).name == NAME
        assert not slow.done()
        gate.set()
        assert slow.result(30).name == NAME


def test_an_answer_that_trickles_does_not_hold_a_call_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kelpie_scaler.salad.transport.WHOLE_S", 0.5)
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.recv(65536)
                head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"
                peer.sendall(head)
                while not over.wait(0.05):
                    peer.sendall(b" ")

        threading.Thread(target=serve, daemon=True).start()

        class Free:
            def take_token(self, bucket: str, *, each_s: float, holds: int, most_s: float) -> float | None:
                return 0.0

        transport = Transport(f"http://127.0.0.1:{server.getsockname()[1]}", SecretStr("k"), Free(), tries=1)
        with pytest.raises(SaladUnavailable, match="did not come to an end"):
            transport.call("GET", "/x")
        over.set()
        transport.close()
