"""The Redis and S3 servers of the local stack: real ones, taken away and brought back."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
import psutil
import pytest
import redis
from botocore.exceptions import ClientError, ReadTimeoutError

from kelpie_celery.local import binaries
from kelpie_celery.local.errors import LocalStackError
from kelpie_celery.local.ports import BLOCK, TWIN, reserve
from kelpie_celery.local.processes import live_processes
from kelpie_celery.local.servers import SeaweedServer, ValkeyServer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def connect(server: ValkeyServer) -> redis.Redis:
    return redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=1)


def listeners(pid: int) -> list[tuple[str, int]]:
    return [c.laddr for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]


class TestValkey:
    def test_it_keeps_everything_and_listens_on_loopback_only(self, tmp_path: Path) -> None:
        with ValkeyServer(tmp_path) as server, connect(server) as client:
            assert server.ready_s < server.ready_timeout_s
            wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
            assert client.config_get(*wanted) == wanted
            assert listeners(server.pid) == [("127.0.0.1", server.port)]
            assert server.env() == {"KELPIE_REDIS_URL": f"redis://127.0.0.1:{server.port}/0"}

    @pytest.mark.parametrize("how", ["kill", "stop"])
    def test_data_and_port_outlive_it(self, how: str, tmp_path: Path) -> None:
        with ValkeyServer(tmp_path) as server, connect(server) as client:
            url = server.url
            client.set("job", "precious")
            getattr(server, how)()
            assert not server.running
            with pytest.raises(redis.ConnectionError):
                client.get("job")
            server.start()
            assert server.url == url
            assert client.get("job") == "precious"

    def test_while_paused_it_keeps_connections_and_answers_nothing(self, tmp_path: Path) -> None:
        with ValkeyServer(tmp_path) as server, connect(server) as client:
            assert client.ping()
            server.pause()
            with pytest.raises(redis.TimeoutError):
                client.ping()
            server.resume()
            assert client.ping()

    def test_two_run_side_by_side(self, tmp_path: Path) -> None:
        with ValkeyServer(tmp_path / "a") as one, ValkeyServer(tmp_path / "b") as two:
            assert one.port != two.port
            with connect(one) as first, connect(two) as second:
                first.set("who", "one")
                assert second.get("who") is None

    def test_a_later_server_in_the_same_directory_has_the_same_url(self, tmp_path: Path) -> None:
        with ValkeyServer(tmp_path) as server:
            url = server.url
        with ValkeyServer(tmp_path) as server:
            assert server.url == url

    def test_a_second_start_is_refused(self, tmp_path: Path) -> None:
        with ValkeyServer(tmp_path) as server, pytest.raises(LocalStackError, match="runs already"):
            server.start()

    def test_a_port_that_is_taken_is_named(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            server = ValkeyServer(tmp_path, port)
            with pytest.raises(LocalStackError, match=f"port {port} is taken"):
                server.start()
            server.close()

    def test_a_port_of_the_users_choice_is_kept(self, tmp_path: Path) -> None:
        block = reserve()
        with ValkeyServer(tmp_path, block[0]) as server, connect(server) as client:
            assert server.port == block[0]
            assert client.ping()
        block.release()

    def test_a_server_that_does_not_start_tells_why_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "own-redis"
        program.write_text("#!/bin/sh\necho cannot open the file\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("KELPIE_REDIS_SERVER", str(program))
        server = ValkeyServer(tmp_path / "redis")
        with pytest.raises(LocalStackError, match=r"(?s)exit code 1.*cannot open the file"):
            server.start()
        assert server.process not in live_processes()
        server.close()

    def test_a_server_program_that_the_user_names_is_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        program = tmp_path / "my-own-server"
        program.symlink_to(binaries.redis_server())
        monkeypatch.setenv("KELPIE_REDIS_SERVER", str(program))
        with ValkeyServer(tmp_path / "redis") as server, connect(server) as client:
            assert client.ping()
            assert "my-own-server" in psutil.Process(server.pid).cmdline()[0]

    def test_a_program_that_the_user_names_and_that_is_none_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("KELPIE_REDIS_SERVER", "/nonexistent/redis-server")
        server = ValkeyServer(tmp_path)
        with pytest.raises(LocalStackError, match="KELPIE_REDIS_SERVER=/nonexistent/redis-server"):
            server.start()
        server.close()


class TestPorts:
    def test_a_reserved_block_is_not_given_out_again_until_it_is_released(self) -> None:
        block = reserve()
        other = reserve(preferred=block.base)
        assert other.base != block.base
        block.release()
        again = reserve(preferred=block.base)
        assert again.base == block.base
        other.release()
        again.release()

    def test_a_block_in_which_a_stranger_listens_is_passed_over(self) -> None:
        block = reserve()
        base = block.base
        block.release()
        with socket.create_server(("127.0.0.1", base + BLOCK - 1 + TWIN)):
            other = reserve(preferred=base)
            assert other.base != base
            other.release()


class TestSeaweed:
    def test_objects_go_in_and_out_and_wrong_keys_are_refused(self, s3_server: SeaweedServer, s3_bucket: str) -> None:
        client = s3_server.client()
        client.put_object(Bucket=s3_bucket, Key="a/b.bin", Body=b"\x00" * 100_000)
        assert client.get_object(Bucket=s3_bucket, Key="a/b.bin")["Body"].read() == b"\x00" * 100_000
        env = s3_server.env()
        stranger = boto3.client(
            "s3",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key="wrong" * 8,
            region_name=env["AWS_REGION"],
        )
        with pytest.raises(ClientError) as refused:
            stranger.list_objects_v2(Bucket=s3_bucket)
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403

    def test_an_upload_does_not_make_a_bucket(self, s3: S3Client) -> None:
        with pytest.raises(ClientError) as refused:
            s3.put_object(Bucket="no-such-bucket-here", Key="k", Body=b"")
        assert refused.value.response["Error"]["Code"] == "NoSuchBucket"

    def test_it_listens_on_loopback_only_and_on_its_own_ports_only(self, s3_server: SeaweedServer) -> None:
        found = listeners(s3_server.pid)
        assert {address for address, _ in found} == {"127.0.0.1"}
        assert {port for _, port in found} <= set(s3_server.ports)

    def test_its_keys_are_private_random_and_told_nowhere(self, s3_server: SeaweedServer, tmp_path: Path) -> None:
        secret = s3_server.env()["AWS_SECRET_ACCESS_KEY"]
        assert (s3_server.directory / "credentials.json").stat().st_mode & 0o777 == 0o600
        assert secret not in s3_server.log.read_text()
        assert secret not in " ".join(psutil.Process(s3_server.pid).cmdline())
        with SeaweedServer(tmp_path) as other:
            assert other.env()["AWS_SECRET_ACCESS_KEY"] != secret

    def test_buckets_objects_and_keys_outlive_a_sigkill_beside_a_second_server(
        self, s3_server: SeaweedServer, tmp_path: Path
    ) -> None:
        assert s3_server.running
        with SeaweedServer(tmp_path, bucket="kept") as server:
            assert not set(server.ports) & set(s3_server.ports)
            before = server.env()
            client = server.client()
            client.put_object(Bucket="kept", Key="k", Body=b"precious")
            server.kill()
            server.start()
            assert server.env() == before
            assert client.get_object(Bucket="kept", Key="k")["Body"].read() == b"precious"
            client.put_object(Bucket="kept", Key="after", Body=b"2")

    def test_while_paused_it_answers_nothing(self, s3_server: SeaweedServer, s3: S3Client) -> None:
        impatient = s3_server.client(attempts=1, timeout_s=0.5)
        s3_server.pause()
        try:
            with pytest.raises(ReadTimeoutError):
                impatient.list_buckets()
        finally:
            s3_server.resume()
        s3.list_buckets()

    def test_its_client_follows_no_environment_of_the_users(
        self, s3_server: SeaweedServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {
            "AWS_PROFILE": "not-there",
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ACCESS_KEY_ID": "x",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }.items():
            monkeypatch.setenv(name, value)
        s3_server.client(attempts=1).list_buckets()
