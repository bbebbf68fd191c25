"""The simulated SaladCloud over HTTP: what its answers look like, who may ask, faults, and the recording.

Its containers are ``sleep``: what they are is not at stake here.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.salad.behaviour import Behaviour, Timings, fixed
from kelpie_celery.local.salad.sim import SaladSim
from kelpie_celery.local.salad.snapshot import InstanceView
from tests.contract.salad_shapes import ANSWERS, check_exchange, exchanges
from tests.unit.salad_world import AUTOSCALER, prototype

SLEEP = ["/bin/sleep", "600"]
IN_TIME_S = 60.0
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
HERE = {"Metadata": "true"}
NAME = "demo-workers"
SECRET = "hunter2-not-to-be-recorded"


class Client:
    """A plain client of one simulator."""

    def __init__(self, sim: SaladSim) -> None:
        self.sim, self.session = sim, requests.Session()
        self.session.headers["Salad-Api-Key"] = sim.api_key
        self.organization = f"{sim.api_url}/organizations/{sim.organization}"
        self.groups = f"{self.organization}/projects/{sim.project}/containers"
        self.group = f"{self.groups}/{NAME}"

    def get(self, url: str, **more: Any) -> requests.Response:
        return self.session.get(url, timeout=IN_TIME_S, **more)

    def post(self, url: str, **more: Any) -> requests.Response:
        return self.session.post(url, timeout=IN_TIME_S, **more)

    def patch(self, url: str, body: dict[str, Any], headers: dict[str, str] = MERGE_PATCH) -> requests.Response:
        return self.session.patch(url, json=body, headers=headers, timeout=IN_TIME_S)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return tmp_path / "recording.jsonl"


@pytest.fixture
def sim(tmp_path: Path, recording: Path) -> Iterator[SaladSim]:
    never = Timings(act=fixed(1e9))  # what is told to move or restart keeps its id for as long as a test may take
    behaviour = Behaviour(time_factor=5000, timings=never, mean_run_s=0, seed=1, requests_per_minute=0)
    with SaladSim(tmp_path / "salad", behaviour, command=SLEEP, record=recording) as one:
        yield one


@pytest.fixture
def client(sim: SaladSim) -> Iterator[Client]:
    one = Client(sim)
    yield one
    one.session.close()


def running(sim: SaladSim, number: int = 1) -> list[InstanceView]:
    """That many instances, once they run as processes."""

    def look(one: SaladSim) -> list[InstanceView] | None:
        found = [instance for instance in one.group(NAME).instances if instance.pid and instance.state == "running"]
        return found if len(found) == number else None

    return sim.wait_until(look, IN_TIME_S)


def test_every_operation_answers_as_the_specification_says_and_is_recorded(
    client: Client, sim: SaladSim, recording: Path
) -> None:
    variables = {"environment_variables": {"TOKEN_OF_THE_USER": SECRET}}
    body = prototype(replicas=2)
    body["container"] |= variables
    assert client.post(client.groups, json=body).headers["Location"].endswith(f"/containers/{NAME}")
    assert client.get(client.group).json()["container"]["environment_variables"] == {"TOKEN_OF_THE_USER": SECRET}
    sim.wait_until(lambda one: one.group(NAME).status == "stopped", IN_TIME_S)
    client.post(f"{client.group}/start")
    first, second = running(sim, 2)
    client.get(client.groups)
    client.get(f"{client.group}/instances")
    client.get(f"{client.group}/instances/{first.id}")
    client.patch(f"{client.group}/instances/{first.id}", {"deletion_cost": 40})
    client.get(f"{client.organization}/quotas")
    with requests.Session() as inside:
        inside.headers.update(HERE)
        base = f"{sim.metadata_url(first.id)}/v1"
        assert inside.get(f"{base}/deletion-cost").json() == {"deletion_cost": 40}
        for name in ("status", "token"):
            inside.get(f"{base}/{name}")
        inside.put(f"{base}/deletion-cost", json={"deletion_cost": 9})
        inside.post(f"{base}/restart")
        inside.post(f"{base}/recreate")
        inside.post(f"{base}/reallocate", json={"reason": "a test"})
    for action in ("restart", "recreate", "reallocate"):
        client.post(f"{client.group}/instances/{second.machine_id}/{action}")
        second = running(sim, 2)[1]
    client.patch(client.group, {"replicas": 1, "queue_autoscaler": AUTOSCALER})
    client.get(f"{client.group}/system-logs")
    client.post(f"{client.group}/stop", json={})
    client.session.delete(client.group, timeout=IN_TIME_S)
    records = list(exchanges(recording))
    seen = {check_exchange(record) for record in records}
    assert seen == set(range(len(ANSWERS)))
    assert SECRET not in recording.read_text()
    assert sim.api_key not in recording.read_text()
    assert {record["headers"]["Salad-Api-Key"] for record in records if record["service"] == "api"} == {"***"}


def test_a_patch_is_answered_with_the_type_of_a_merge_patch(client: Client, sim: SaladSim) -> None:
    sim.create_group(NAME)
    answer = client.patch(client.group, {"replicas": 2})
    assert answer.headers["Content-Type"].startswith("application/merge-patch+json")
    assert answer.json()["replicas"] == 2


def test_a_patch_of_another_type_is_refused_when_strict(client: Client, sim: SaladSim) -> None:
    sim.create_group(NAME)
    assert client.patch(client.group, {"replicas": 2}, {"Content-Type": "application/json"}).status_code == 415
    assert sim.group(NAME).replicas == 0


@pytest.mark.parametrize("kind", ["none", "empty object", "type only"])
def test_a_start_is_taken_with_what_the_vendors_clients_send(kind: str, client: Client, sim: SaladSim) -> None:
    sim.create_group(NAME)
    more: dict[str, dict[str, Any]] = {
        "none": {}, "empty object": {"json": {}}, "type only": {"headers": {"Content-Type": "application/json"}},
    }  # fmt: skip
    answer = client.post(f"{client.group}/start", **more[kind])
    assert (answer.status_code, answer.content) == (202, b"")


@pytest.mark.parametrize(("strict", "again"), [(True, 400), (False, 202)], ids=["strict", "lenient"])
def test_what_its_state_does_not_allow_is_refused_over_http_when_strict(
    strict: bool, again: int, tmp_path: Path
) -> None:
    with SaladSim(tmp_path, Behaviour(strict=strict), command=SLEEP) as sim:
        client = Client(sim)
        sim.create_group(NAME, replicas=1)
        assert [client.post(f"{client.group}/start").status_code for _ in range(2)] == [202, again]
        instance = f"{client.group}/instances/{sim.group(NAME).instances[0].id}"
        assert client.post(f"{instance}/restart").status_code == again
        assert client.get(instance).status_code == (202 if strict else 200)
        plain = client.patch(client.group, {"replicas": 2}, {"Content-Type": "application/json"})
        assert plain.status_code == (415 if strict else 200)
        assert [client.post(f"{client.group}/stop").status_code for _ in range(2)] == [202, again]
        client.session.close()


@pytest.mark.parametrize("key", [None, "", "another"])
def test_a_wrong_key_is_refused(key: str | None, client: Client) -> None:
    client.session.headers.update({"Salad-Api-Key": key or ""})
    if key is None:
        del client.session.headers["Salad-Api-Key"]
    assert client.get(client.groups).status_code == 401
    assert client.get(f"{client.sim.url}/_sim/state").status_code == 401


@pytest.mark.parametrize("path", ["containers/none", "containers/none/instances", "containers/none/start", "nonsense"])
def test_what_is_not_there_is_told_as_a_problem(path: str, client: Client, recording: Path) -> None:
    url = f"{client.groups.removesuffix('containers')}{path}"
    answer = client.post(url) if path.endswith("start") else client.get(url)
    assert answer.status_code == 404
    assert [check_exchange(record) for record in exchanges(recording)] == [None]


def test_another_organization_or_project_is_not_found(client: Client) -> None:
    for url in (client.groups.replace("/local/", "/other/"), client.groups.replace("/default/", "/other/")):
        assert client.get(url).status_code == 404


def test_a_body_that_is_no_json_is_refused(client: Client, recording: Path) -> None:
    answer = client.post(client.groups, data=f"{{{SECRET}", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert SECRET not in recording.read_text()


def test_metadata_needs_its_header_and_no_proxy(client: Client, sim: SaladSim, recording: Path) -> None:
    sim.create_group(NAME, replicas=1, status="deploying")
    base = f"{sim.metadata_url(running(sim)[0].id)}/v1/status"
    refused = [{}, {"Metadata": "false"}, *({**HERE, f"X-Forwarded-{x}": "1"} for x in ("For", "Host", "Proto"))]
    for headers in refused:
        answer = requests.get(base, headers=headers, timeout=IN_TIME_S)
        assert answer.status_code == 403
        assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert requests.get(base, headers=HERE, timeout=IN_TIME_S).json() == {"ready": True, "started": True}
    for record in exchanges(recording):
        check_exchange(record)


@pytest.mark.parametrize(
    ("call", "body"),
    [("deletion-cost", {"deletion_cost": 2**31}), ("deletion-cost", {}), ("reallocate", {"Reason": "x"}),
     ("reallocate", {"reason": ""}), ("reallocate", None)],
)  # fmt: skip
def test_metadata_refuses_a_wrong_body_and_says_which_field(
    call: str, body: object, sim: SaladSim, recording: Path
) -> None:
    sim.create_group(NAME, replicas=1, status="deploying")
    url = f"{sim.metadata_url(running(sim)[0].id)}/v1/{call}"
    method = "PUT" if call == "deletion-cost" else "POST"
    answer = requests.request(method, url, json=body, headers=HERE, timeout=IN_TIME_S)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid-request")
    assert body is None or list(answer.json()["errors"]) == [
        "deletion_cost" if call == "deletion-cost" else "reason"
    ]  # fmt: skip
    for record in exchanges(recording):
        check_exchange(record)


def test_metadata_of_an_instance_that_is_gone_is_not_found(sim: SaladSim) -> None:
    sim.create_group(NAME, replicas=1, status="deploying")
    gone = running(sim)[0].id
    sim.interrupt(gone)
    answer = requests.get(f"{sim.metadata_url(gone)}/v1/status", headers=HERE, timeout=IN_TIME_S)
    assert answer.status_code == 404


def test_a_token_names_machine_and_group_and_is_the_same_within_minutes(sim: SaladSim) -> None:
    group = sim.create_group(NAME, replicas=1, status="deploying")
    instance = running(sim)[0]
    url = f"{sim.metadata_url(instance.id)}/v1/token"
    first, again = (requests.get(url, headers=HERE, timeout=IN_TIME_S).json()["jwt"] for _ in range(2))
    claims = json.loads(base64.urlsafe_b64decode(first.split(".")[1] + "=="))
    assert first == again
    assert (claims["sub"], claims["salad_workload_id"]) == (instance.machine_id, group.id)
    assert claims["exp"] - claims["iat"] == 300


def test_a_scale_in_over_http_ends_the_instance_with_the_lowest_cost(client: Client, sim: SaladSim) -> None:
    sim.create_group(NAME, replicas=3, status="deploying")
    instances = running(sim, 3)
    for instance, cost in zip(instances, (3, 0, 7), strict=True):
        url = f"{sim.metadata_url(instance.id)}/v1/deletion-cost"
        requests.put(url, json={"deletion_cost": cost}, headers=HERE, timeout=IN_TIME_S)
    client.patch(client.group, {"replicas": 2})
    left = sim.wait_until(lambda one: g.instances if len((g := one.group(NAME)).instances) == 2 else None, IN_TIME_S)
    assert {instance.id for instance in left} == {instances[0].id, instances[2].id}


# -- faults -----------------------------------------------------------------------------------------------------------


def test_an_ordered_429_comes_as_often_as_ordered_with_retry_after(client: Client, sim: SaladSim) -> None:
    sim.create_group(NAME)
    fault = sim.fail(429, times=2, retry_after_s=7, operation="get_container_group")
    answers = [client.get(client.group) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 429, 200]
    assert answers[0].headers["Retry-After"] == "7"
    assert fault.done == 2


def test_an_ordered_status_comes_without_retry_after_unless_asked_for(client: Client, sim: SaladSim) -> None:
    sim.fail(429)
    sim.fail(500)
    for status in (429, 500):
        answer = client.get(client.groups)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert "Retry-After" not in answer.headers


def test_an_ordered_page_is_no_json(client: Client, sim: SaladSim, recording: Path) -> None:
    sim.fail("html")
    answer = client.get(client.groups)
    assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (502, "text/html")
    assert [check_exchange(record) for record in exchanges(recording)] == [None]


def test_an_ordered_quota_refuses_a_patch(client: Client, sim: SaladSim) -> None:
    sim.create_group(NAME)
    sim.fail("quota", operation="update_*")
    assert client.patch(client.group, {"replicas": 1}).status_code == 403
    assert sim.group(NAME).replicas == 0


@pytest.mark.parametrize(("kind", "replicas"), [("drop", 0), ("lost", 4)])
def test_a_connection_ends_without_an_answer_before_or_after_the_operation(
    kind: str, replicas: int, client: Client, sim: SaladSim, recording: Path
) -> None:
    sim.create_group(NAME)
    sim.fail(kind)
    with pytest.raises(requests.ConnectionError):
        client.patch(client.group, {"replicas": 4})
    assert sim.group(NAME).replicas == replicas
    assert list(exchanges(recording)) == []


def test_a_slow_answer_is_late_and_the_operation_is_carried_out_at_once(client: Client, sim: SaladSim) -> None:
    sim.create_group(NAME)
    sim.fail("slow", delay_s=600.0)
    with pytest.raises(requests.ReadTimeout):
        client.session.patch(client.group, json={"replicas": 4}, headers=MERGE_PATCH, timeout=0.5)
    sim.wait_until(lambda one: one.group(NAME).replicas == 4, IN_TIME_S)
    assert client.get(client.group).status_code == 200


def test_metadata_can_be_made_to_fail_too(sim: SaladSim) -> None:
    sim.create_group(NAME, replicas=1, status="deploying")
    url = f"{sim.metadata_url(running(sim)[0].id)}/v1/status"
    sim.fail(500, service="imds")
    assert [requests.get(url, headers=HERE, timeout=IN_TIME_S).status_code for _ in range(2)] == [500, 200]


def test_more_requests_than_a_minute_allows_are_refused(tmp_path: Path) -> None:
    with SaladSim(tmp_path, Behaviour(requests_per_minute=3), command=SLEEP) as sim:
        client = Client(sim)
        assert [client.get(client.groups).status_code for _ in range(4)] == [200, 200, 200, 429]
        client.session.close()


# -- control, and Python ----------------------------------------------------------------------------------------------


def test_the_control_endpoints_do_what_python_does(client: Client, sim: SaladSim, recording: Path) -> None:
    sim.create_group(NAME, replicas=1, status="deploying")
    instance = running(sim)[0]
    control = f"{sim.url}/_sim"
    assert client.post(f"{control}/faults", json={"kind": 503, "times": 0}).status_code == 200
    assert client.get(client.groups).status_code == 503
    client.session.delete(f"{control}/faults", timeout=IN_TIME_S)
    assert client.get(client.groups).status_code == 200
    assert client.post(f"{control}/instances/{instance.id}/interrupt").status_code == 200
    client.session.put(f"{control}/quota", json={"replicas": 1}, timeout=IN_TIME_S)
    assert client.patch(client.group, {"replicas": 2}).status_code == 403
    state = client.get(f"{control}/state").json()
    assert (state["interruptions"], state["groups"][0]["name"]) == (1, NAME)
    assert all("_sim" not in record["url"] for record in exchanges(recording))


@pytest.mark.parametrize(
    "body", [{}, {"kind": "nonsense"}, {"kind": "500", "often": 2}, [], {"kind": 500, "times": "2"}]
)
def test_an_order_that_is_not_understood_is_refused(body: object, client: Client) -> None:
    answer = client.post(f"{client.sim.url}/_sim/faults", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_waiting_ends_with_the_state_of_affairs_when_it_was_in_vain(sim: SaladSim) -> None:
    sim.create_group(NAME)
    with pytest.raises(LocalStackError, match=r"not within 0\.2 s.*stopped"):
        sim.wait_until(lambda one: one.group(NAME).status == "running", 0.2)


def test_a_predicate_may_ask_over_http(client: Client, sim: SaladSim) -> None:
    sim.create_group(NAME, replicas=1, status="deploying")
    assert sim.wait_until(lambda _: client.get(client.group).json()["current_state"]["status"] == "running", IN_TIME_S)


def test_a_stopped_simulator_answers_no_more_and_cannot_be_started_again(tmp_path: Path) -> None:
    sim = SaladSim(tmp_path, command=SLEEP)
    with pytest.raises(LocalStackError, match="no address"):
        _ = sim.url
    sim.start()
    url = sim.url
    sim.stop()
    sim.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=IN_TIME_S)
    with pytest.raises(LocalStackError, match="make another one"):
        sim.start()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("salad-sim")]


def test_a_taken_port_is_told(tmp_path: Path, sim: SaladSim) -> None:
    port = int(sim.url.rpartition(":")[2])
    with pytest.raises(LocalStackError, match=f"cannot listen on 127.0.0.1:{port}"):
        SaladSim(tmp_path / "other", command=SLEEP, port=port).start()


def test_a_command_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(LocalStackError, match="no-such-program"):
        SaladSim(tmp_path, command=["no-such-program"])
