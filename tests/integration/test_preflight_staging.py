"""Inputs of ``kelpie verify``: from a real storage, and from folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kelpie_celery.checkpoints.storage import open_storage
from kelpie_celery.local.servers import SeaweedServer
from kelpie_celery.settings import load_settings
from kelpie_celery.transfers import Transfer
from kelpie_worker.preflight.errors import CannotVerify
from kelpie_worker.preflight.staging import stage

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Private:
    """As much of a private storage as staging needs."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def upload_fileobj(self, file: Any, bucket: str, key: str) -> None:
        self.objects[f"{bucket}/{key}"] = file.read()


def of(bucket: str) -> dict[str, Transfer]:
    return {f"{bucket}/set/": Transfer("before", "input", bucket, "set/", "in", None, 0)}


def test_inputs_come_from_the_users_storage_which_is_only_read(
    s3_server: SeaweedServer, s3: S3Client, s3_bucket: str
) -> None:
    large = bytes(range(256)) * 40_000  # more than one piece
    for key, content in {"set/a": b"one", "set/sub/b": large, "set/empty": b"", "other/c": b"not asked for"}.items():
        s3.put_object(Bucket=s3_bucket, Key=key, Body=content)
    own = open_storage(load_settings({"KELPIE_REDIS_URL": "redis://127.0.0.1:1/0", **s3_server.env()}))
    private: Any = Private()
    told: list[str] = []
    stage(of(s3_bucket), {}, own, private, told.append)
    assert private.objects == {
        f"{s3_bucket}/set/a": b"one", f"{s3_bucket}/set/sub/b": large, f"{s3_bucket}/set/empty": b"",
    }  # fmt: skip
    assert told == [f"input s3://{s3_bucket}/set/: 3 objects of your storage"]
    for bucket, why in ((s3_bucket, "is empty"), ("no-such-bucket-here", "the bucket does not exist")):
        wanted = {f"{bucket}/none/": Transfer("before", "input", bucket, "none/", "in", None, 0)}
        with pytest.raises(CannotVerify, match=why):
            stage(wanted, {}, own, private, told.append)


def test_a_folder_stands_for_an_input_with_all_below_it(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_bytes(b"two")
    private: Any = Private()
    stage(of("data"), {"data/set/": tmp_path}, None, private, lambda _: None)
    assert private.objects == {"data/set/sub/b": b"two"}
    (tmp_path / "sub" / "b").unlink()
    with pytest.raises(CannotVerify, match="holds no file"):
        stage(of("data"), {"data/set/": tmp_path}, None, private, lambda _: None)
