"""The metadata service's client against a server: what is sent, what is taken for absent, what is an error."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from kelpie_celery.clock import ManualClock
from kelpie_celery.errors import ImdsAbsent, ImdsError
from kelpie_worker.imds import ABSENT_S, MAX_COST, Imds
from tests.harness.http_stub import Reply
from tests.harness.salad_stub import ImdsStub, problem


@pytest.fixture
def stub() -> Iterator[ImdsStub]:
    with ImdsStub() as stub:
        yield stub


@pytest.fixture
def imds(stub: ImdsStub) -> Iterator[Imds]:
    imds = Imds(stub.url + "/", ManualClock())
    yield imds
    imds.close()


def test_every_call_carries_the_header_and_the_words_of_the_specification(stub: ImdsStub, imds: Imds) -> None:
    imds.set_deletion_cost(7)
    assert imds.deletion_cost() == 7
    imds.reallocate("CUDA device lost")
    imds.recreate()
    assert stub.calls() == [
        "PUT /v1/deletion-cost", "GET /v1/deletion-cost", "POST /v1/reallocate", "POST /v1/recreate",
    ]  # fmt: skip
    assert stub.reasons == ["CUDA device lost"]
    assert [e["status"] for e in stub.exchanges] == [204, 200, 204, 204]


@pytest.mark.parametrize(("asked", "sent"), [(-5, 0), (999_999_999, MAX_COST)])
def test_a_cost_stays_within_what_the_api_can_show(stub: ImdsStub, imds: Imds, asked: int, sent: int) -> None:
    imds.set_deletion_cost(asked)
    assert stub.costs == [sent]


def test_a_reason_has_at_most_1000_characters_and_at_least_one(stub: ImdsStub, imds: Imds) -> None:
    imds.reallocate("x" * 2000)
    imds.reallocate("")
    assert [len(reason) for reason in stub.reasons] == [1000, 7]


def test_no_proxy_of_the_environment_is_asked(stub: ImdsStub, imds: Imds, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    imds.set_deletion_cost(1)
    assert stub.costs == [1]


def test_where_nobody_listens_there_is_no_service_and_none_is_called_for_a_while() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        clock = ManualClock()
        imds = Imds(f"http://127.0.0.1:{nobody.getsockname()[1]}", clock)
        for moment in ("there is no metadata service", "there was no metadata service", "there was no"):
            with pytest.raises(ImdsAbsent, match=moment):
                imds.set_deletion_cost(1)
            assert imds.absent
        clock.advance(ABSENT_S + 1)
        assert not imds.absent
        with pytest.raises(ImdsAbsent, match="there is no"):
            imds.set_deletion_cost(1)


@pytest.mark.parametrize("status", [401, 404, 405])
def test_the_metadata_service_of_another_cloud_is_none(stub: ImdsStub, imds: Imds, status: int) -> None:
    stub.next_time("deletion-cost", Reply(status, "<html>", "text/html"))
    with pytest.raises(ImdsAbsent, match="not SaladCloud's"):
        imds.set_deletion_cost(1)
    assert imds.absent


def test_a_service_that_is_known_does_not_become_absent_by_an_answer(stub: ImdsStub, imds: Imds) -> None:
    imds.set_deletion_cost(1)
    stub.next_time("reallocate", problem(404, "no"))
    with pytest.raises(ImdsError) as caught:
        imds.reallocate("why not")
    assert not isinstance(caught.value, ImdsAbsent)


@pytest.mark.parametrize(
    "reply",
    [problem(400, "no"), problem(403, "no"), Reply(500, "<html>", "text/html"), Reply(302, headers={"Location": "/"})],
)
def test_an_answer_that_is_an_error_is_no_absence(stub: ImdsStub, imds: Imds, reply: Reply) -> None:
    stub.next_time("deletion-cost", reply)
    with pytest.raises(ImdsError, match=str(reply.status)) as caught:
        imds.set_deletion_cost(1)
    assert not isinstance(caught.value, ImdsAbsent)
    imds.set_deletion_cost(2)
    assert stub.costs == [2]


@pytest.mark.parametrize("body", [{"cost": 1}, [1]])
def test_an_answer_without_a_cost_is_an_error(stub: ImdsStub, imds: Imds, body: object) -> None:
    stub.next_time("deletion-cost", Reply(200, body))
    with pytest.raises(ImdsError, match="gave no deletion cost"):
        imds.deletion_cost()
