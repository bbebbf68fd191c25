"""A Redis and an S3 server of one's own, each as one process on loopback.

Both keep their ports, credentials and data over ``stop`` and ``start``, and both can be killed and paused,
so that tests and demos can take them away. Readiness is real: the server answers, and it is ours that
answers.

Limits: no TLS. The S3 server (SeaweedFS 4.x) lists in directory order, not byte order; stores ``x//y`` as
``x/y``; refuses keys with ``..``; gives deleted space back late, so keep its directory on disk.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from kelpie_celery.clock import Clock
from kelpie_celery.local import binaries
from kelpie_celery.local.credentials import load_or_make
from kelpie_celery.local.ports import LOOPBACK, TWIN
from kelpie_celery.local.processes import ManagedProcess
from kelpie_celery.local.server import Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REDIS_READY_S = 20.0
S3_READY_S = 60.0
REDIS_STOP_S = 10.0
S3_STOP_S = 5.0  # weed takes 2 s; one time in seven it hangs, and what it acknowledged survives a SIGKILL
Fsync = Literal["always", "everysec", "no"]
REGION = "us-east-1"  # SeaweedFS takes any
_VOLUMES = 10_000


class ValkeyServer(Server):
    """A Redis (Valkey) that forgets nothing: append-only file, no eviction, no snapshots.

    ``appendfsync="always"`` is what production needs (an acknowledged write survives a power loss);
    ``everysec`` is faster, and just as safe against a killed process.
    """

    name = "redis"

    def __init__(
        self,
        directory: Path,
        port: int = 0,
        *,
        appendfsync: Fsync = "always",
        clock: Clock | None = None,
    ) -> None:
        """A server that is not started yet; see ``Server``."""
        super().__init__(directory, port, clock=clock)
        self._appendfsync = appendfsync

    @property
    def url(self) -> str:
        """``redis://`` URL of database 0."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """``redis://`` URL of one of its 16 databases."""
        return f"redis://{LOOPBACK}:{self.port}/{database}"

    def env(self) -> dict[str, str]:
        """The environment that clients read."""
        return {"KELPIE_REDIS_URL": self.url}

    def _make_process(self) -> ManagedProcess:
        options = {
            "port": str(self.port),
            "bind": LOOPBACK,
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "maxmemory-policy": "noeviction",
            # A record is a small hash with two long values: kept compact, it takes a sixth less memory.
            "hash-max-listpack-value": "8192",
            "hash-max-listpack-entries": "128",
            "daemonize": "no",
        }
        argv = [
            str(binaries.redis_server()),
            *(part for name, value in options.items() for part in (f"--{name}", value)),
        ]
        return ManagedProcess(
            self.name,
            argv,
            env=_bare_env(self.directory),
            cwd=self.directory,
            log=self.log,
            clock=self._clock,
        )

    def _answers(self) -> bool:
        # No retries: with redis-py's own, a look at a server that is not up yet would take seconds.
        once = Retry(NoBackoff(), 0)
        probe = redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=2, retry=once)
        try:
            with probe:
                # INFO as well as PING: a stranger's server on this port must not pass for ours.
                return bool(probe.ping()) and probe.info("server")["process_id"] == self.pid
        except redis.RedisError:  # refused, or still loading its append-only file
            return False


class SeaweedServer(Server):
    """An S3 server with one pair of random keys, made once for its directory and never logged.

    Like S3 itself it does not make a bucket on the first upload.
    """

    name = "s3"
    ready_timeout_s = S3_READY_S
    stop_timeout_s = S3_STOP_S

    def __init__(
        self, directory: Path, port: int = 0, *, bucket: str | None = None, clock: Clock | None = None
    ) -> None:
        """A server that is not started yet; see ``Server``.

        Args:
            directory: Where to keep everything; made when it is missing.
            port: Where to listen; 0 for a free port.
            bucket: A bucket to make at the start when it is missing.
            clock: Where time comes from.
        """
        super().__init__(directory, port, clock=clock)
        self.bucket = bucket
        self._probe: S3Client | None = None

    @property
    def endpoint_url(self) -> str:
        """``http://`` URL of the S3 API."""
        return f"http://{LOOPBACK}:{self.port}"

    def env(self) -> dict[str, str]:
        """The environment that clients read; it holds a secret."""
        access_key, secret_key = self._credentials()
        return {
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint_url,
        }

    def client(self, *, attempts: int = 5, timeout_s: float = 10.0) -> S3Client:
        """A boto3 client of this server, whatever the environment says.

        Args:
            attempts: How often a request is sent at most.
            timeout_s: For connecting, and for each read.
        """
        import boto3  # noqa: PLC0415 - half a second, and the Redis half does not need it
        import botocore.session  # noqa: PLC0415 - as above
        from botocore.config import Config  # noqa: PLC0415 - as above

        access_key, secret_key = self._credentials()
        config = Config(
            connect_timeout=timeout_s,
            read_timeout=timeout_s,
            retries={"total_max_attempts": attempts, "mode": "standard"},
            s3={"addressing_style": "path"},
            proxies={},
        )
        # A profile that the user's environment names, and their files, have no say here.
        alone = {"profile": (None, None, None, None), "config_file": (None, None, os.devnull, None)}
        core = botocore.session.Session(session_vars=alone)
        session = boto3.Session(access_key, secret_key, region_name=REGION, botocore_session=core)
        return session.client("s3", endpoint_url=self.endpoint_url, config=config)

    def create_bucket(self, name: str) -> None:
        """Make a bucket; harmless when it is there."""
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)

    def _prepare(self) -> None:
        if self.bucket:
            self.create_bucket(self.bucket)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when it takes too long; the ports stay reserved."""
        super().stop()
        self._remove_sockets()

    def _make_process(self) -> ManagedProcess:
        access_key, secret_key = self._credentials()
        # weed keeps the options of its last run there, ports among them: ours are the truth.
        (self.directory / "data" / "mini.options").unlink(missing_ok=True)
        (self.directory / "data").mkdir(exist_ok=True)
        self._probe = None
        env = {
            **_bare_env(self.directory),
            "AWS_ACCESS_KEY_ID": access_key,
            "AWS_SECRET_ACCESS_KEY": secret_key,
        }
        argv = [
            str(binaries.weed()),
            "mini",
            *(f"-{name}={value}" for name, value in self._options().items()),
        ]
        return ManagedProcess(self.name, argv, env=env, cwd=self.directory, log=self.log, clock=self._clock)

    def _options(self) -> dict[str, object]:
        # Every port by name: the defaults are fixed ones, which another instance may hold.
        ports: dict[str, object] = {"s3.port": self.port, "s3.port.grpc": self.port_at(0) + TWIN}
        for index, listener in enumerate(["master.port", "volume.port", "filer.port", "admin.port"], start=1):
            ports[listener] = self.port_at(index)
            ports[f"{listener}.grpc"] = self.port_at(index) + TWIN
        return {
            "dir": self.directory / "data",
            # By itself it allows one for each free gigabyte, and each bucket takes one or more.
            "volume.max": _VOLUMES,
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            **ports,
            "master.telemetry": "false",
            "s3.autoCreateBucket": "false",
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "webdav": "false",
            "admin.ui": "false",
        }

    def _answers(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as in client()

        if self._probe is None:
            self._probe = self.client(attempts=1, timeout_s=2.0)
        try:
            self._probe.list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def _credentials(self) -> tuple[str, str]:
        return load_or_make(self.directory / "credentials.json")

    def _remove_sockets(self) -> None:
        # weed leaves its unix sockets in /tmp, named by port.
        for port in self.ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - where weed puts them
                path.unlink(missing_ok=True)


def _bare_env(home: Path) -> dict[str, str]:
    # Nothing of the user's: both servers also read settings from the environment and from the home directory,
    # and weed writes logs where temporary files go.
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "TMPDIR": str(home), "LC_ALL": "C.UTF-8"}
