"""Faults to order, and what is kept out of the recording of the simulated SaladCloud."""

from __future__ import annotations

import pytest

from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.salad.faults import Fault, Faults
from kelpie_celery.local.salad.recording import masked, masked_headers


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("429", Fault("429")),
        ("500*3", Fault("500", times=3)),
        ("html@update_*", Fault("html", operation="update_*")),
        ("429*0@get_container_group,retry-after=7", Fault("429", 0, "get_container_group", retry_after_s=7)),
        ("slow,delay=2.5,rate=0.5", Fault("slow", delay_s=2.5, rate=0.5)),
        ("503@reallocate,service=imds", Fault("503", operation="reallocate", service="imds")),
    ],
)
def test_a_fault_is_read_from_its_text(text: str, fault: Fault) -> None:
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not understood"),
        ("429 3", "not understood"),
        ("404x", "no fault '404x'"),
        ("200", "no fault '200'"),
        ("slov", "did you mean"),
        ("429,retry_after=1", "no option 'retry_after'"),
        ("slow,delay=soon", "delay needs a number"),
        ("500,rate=0", "rate of 0"),
        ("500,service=s3", "no service 's3'"),
    ],
)
def test_a_fault_that_is_not_understood_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(LocalStackError, match=why):
        Fault.parse(text)


def test_a_fault_strikes_as_often_as_ordered_and_only_where_it_fits() -> None:
    faults = Faults([Fault("500", times=2, operation="start_*")])
    assert faults.strike("api", "get_quotas") is None
    assert faults.strike("imds", "start_container_group") is None
    struck = [faults.strike("api", "start_container_group") for _ in range(3)]
    assert [fault is not None for fault in struck] == [True, True, False]


def test_a_fault_for_good_strikes_until_it_is_taken_back() -> None:
    faults = Faults([Fault("500", times=0)])
    assert all(faults.strike("api", "get_quotas") for _ in range(100))
    faults.clear()
    assert faults.strike("api", "get_quotas") is None


def test_a_fault_with_a_rate_strikes_about_that_often() -> None:
    faults = Faults([Fault("500", times=0, rate=0.25)], seed=1)
    assert 200 < sum(faults.strike("api", "get_quotas") is not None for _ in range(1000)) < 300


def test_one_exchange_takes_one_fault_the_first_that_fits() -> None:
    faults = Faults([Fault("429"), Fault("html")])
    assert [fault.kind for _ in range(2) if (fault := faults.strike("api", "get_quotas"))] == ["429", "html"]


def test_credentials_in_headers_are_masked_and_an_empty_one_is_told() -> None:
    headers = {"SALAD-API-Key": "hunter2", "Authorization": "hunter2", "Metadata": "true", "Cookie": ""}
    assert masked_headers(headers) == {
        "SALAD-API-Key": "***", "Authorization": "***", "Metadata": "true", "Cookie": "",
    }  # fmt: skip


def test_variables_registry_keys_and_tokens_are_masked_wherever_they_are() -> None:
    body = {
        "items": [{"container": {"environment_variables": {"A": "hunter2"}, "image": "a",
                                 "registry_authentication": {"basic": {"password": "hunter2"}}}}],
        "jwt": "hunter2", "replicas": 3,
    }  # fmt: skip
    found = masked(body)
    assert "hunter2" not in str(found)
    assert found["items"][0]["container"]["environment_variables"] == {"A": "***"}
    assert (found["items"][0]["container"]["image"], found["replicas"]) == ("a", 3)
