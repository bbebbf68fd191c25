"""The worker that brings its own Python: what it does before it is a worker."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import cast

import certifi
import pytest

from kelpie_worker.bundled import forget_coercion, has_certificates, init_command, trust_own_certificates


def paths(cafile: str | None, capath: str | None) -> ssl.DefaultVerifyPaths:
    return ssl.DefaultVerifyPaths(cast("str", cafile), cast("str", capath), "", "", "", "")  # None where there is none


def test_the_first_process_becomes_an_init_that_starts_it_again(tmp_path: Path) -> None:
    init = tmp_path / "tini"
    init.touch()
    assert init_command(1, init, ["/opt/kelpie/kelpie-worker", "health"]) == [
        str(init), "--", "/opt/kelpie/kelpie-worker", "health",
    ]  # fmt: skip
    assert init_command(7, init, ["/opt/kelpie/kelpie-worker"]) == []


def test_without_an_init_it_runs_as_the_first_process(tmp_path: Path) -> None:
    assert init_command(1, tmp_path / "tini", ["kelpie-worker"]) == []


def test_a_locale_that_python_chose_does_not_reach_jobs() -> None:
    environ = {"PATH": "/bin", "LC_CTYPE": "C.UTF-8"}
    forget_coercion(environ, b"PATH=/bin\0")
    assert environ == {"PATH": "/bin"}


def test_a_locale_that_the_image_chose_stays() -> None:
    environ = {"LC_CTYPE": "de_DE.UTF-8"}
    forget_coercion(environ, b"PATH=/bin\0LC_CTYPE=de_DE.UTF-8\0")
    assert environ == {"LC_CTYPE": "de_DE.UTF-8"}


@pytest.mark.parametrize("there", [True, False])
def test_an_image_has_certificates_when_there_is_one_where_openssl_looks(tmp_path: Path, there: bool) -> None:
    assert not has_certificates(paths(None, None))
    assert has_certificates(paths("/etc/ssl/cert.pem", None))
    if there:
        (tmp_path / "ca.pem").touch()
    assert has_certificates(paths(None, str(tmp_path))) is there


def test_own_certificates_are_trusted_by_contexts_that_are_made_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *_: None)  # an image without any
    assert ssl.create_default_context().cert_store_stats()["x509_ca"] == 0
    trust_own_certificates(ssl.SSLContext)
    known = ssl.create_default_context().cert_store_stats()["x509_ca"]
    assert known == Path(certifi.where()).read_text().count("BEGIN CERTIFICATE")
