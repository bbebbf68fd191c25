"""Whether a bucket lets kelpie do what it does: list, put, multipart, copy, get, presign, delete; and how quickly.

Everything that is written lies below ``<prefix>kelpie-doctor-probe.kelpie/``, a name that no restore and no input
takes for a file, and is deleted at the end.

Limits: one bucket, one prefix, 8 MiB one way and back: a figure of the moment.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from kelpie_celery._fields import mask_url
from kelpie_celery._transport import in_the_clear
from kelpie_celery.checkpoints.storage import open_client
from kelpie_celery.checkpoints.storage_errors import mapped
from kelpie_celery.clock import Clock
from kelpie_celery.errors import StorageError
from kelpie_celery.findings import Finding, error, info, ok, warning
from kelpie_celery.settings import Settings
from kelpie_celery.transfers import CONTROL_SUFFIX

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

FOLDER = f"kelpie-doctor-probe{CONTROL_SUFFIX}/"
SIZE_BYTES = 8 * 1024 * 1024
PART_BYTES = 5 * 1024 * 1024
"""The least that S3 takes for a part that is not the last one."""

SLOW_BYTES_S = 1024 * 1024
SKEW_S, MUCH_SKEW_S = 30.0, 300.0
EXPIRES_S, AFTER_S = 1, 3.0
MOST_S = 40.0
"""After this nothing more is begun, seconds, so that there is time to delete what was made."""
_MIB = 1024 * 1024
_TIMEOUT_S = 10
_PERMIT = "let the credentials do this below the prefix of your jobs"


def check_storage(settings: Settings, bucket: str, prefix: str, clock: Clock) -> list[Finding]:
    """All about one bucket.

    Raises:
        StorageError: There are no credentials, or the bucket cannot be listed.
    """
    client = open_client(settings)
    probe = _Probe(client, bucket, f"{prefix}{FOLDER}{uuid.uuid4().hex[:12]}/", clock)
    began = clock.boottime()
    found = [_endpoint(settings, bucket), *probe.listing()]
    try:
        found += probe.moving()
        for name, look, why in (
            ("storage multipart", probe.multipart, "files above 32 MiB are sent in parts"),
            ("storage copy", probe.copy, "plain keys are put together on the storage; else they are sent once more"),
            ("storage expiry", probe.expiry, "what a worker sends that has lost its job must be refused"),
        ):
            if clock.boottime() - began > MOST_S:
                text = f"not looked at: what came before took more than {MOST_S:g} s"
                found.append(info(name, text, "run kelpie doctor where the line to the storage is quicker"))
            else:
                found += _tried(name, look, why)
    finally:
        found += probe.clean()
    return found


def _tried(name: str, look: Callable[[], list[Finding]], why: str) -> list[Finding]:
    try:
        return look()
    except StorageError as e:
        make = warning if name == "storage copy" else error
        return [make(name, f"{e} ({why})", _PERMIT)]


def _endpoint(settings: Settings, bucket: str) -> Finding:
    endpoint = settings.aws_endpoint_url
    where = f"bucket {bucket!r} at {mask_url(endpoint) if endpoint else 'AWS'}"
    if endpoint and in_the_clear(endpoint):
        mend = "use an https:// endpoint unless you trust the network in between"
        return warning("storage", f"{where}: data goes to another machine unencrypted", mend)
    return ok("storage", where)


class _Probe:
    """Objects of our own in somebody's bucket."""

    def __init__(self, client: S3Client, bucket: str, folder: str, clock: Clock) -> None:
        self._client, self._bucket, self._folder, self._clock = client, bucket, folder, clock
        self._made: list[str] = []

    def _key(self, name: str) -> str:
        key = self._folder + name
        self._made.append(key)
        return key

    @contextmanager
    def _doing(self, what: str) -> Iterator[list[float]]:
        """Errors as ours, and how long it took."""
        began, took = self._clock.boottime(), [0.0]
        with mapped(what, self._bucket, self._folder):
            yield took
        took[0] = max(1e-6, self._clock.boottime() - began)

    def listing(self) -> list[Finding]:
        """Whether it can be listed, and what time it is there."""
        with self._doing("listing") as took:
            answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._folder, MaxKeys=1)
        headers: Any = answer["ResponseMetadata"]["HTTPHeaders"]
        listed = ok("storage list", f"answered in {1000 * took[0]:.0f} ms", latency_s=round(took[0], 4))
        return [listed, self._clocks(headers.get("date", ""), took[0])]

    def _clocks(self, date: str, took_s: float) -> Finding:
        try:
            theirs = parsedate_to_datetime(date).timestamp()
        except (TypeError, ValueError):
            return info("storage clock", "not known: the storage gives no date")
        # The date is in whole seconds.
        ahead_s = theirs + 0.5 - (self._clock.now() - took_s / 2)
        facts = {"ahead_s": round(ahead_s, 1)}
        if abs(ahead_s) < SKEW_S:
            return ok("storage clock", f"its clock is this machine's within {max(1.0, abs(ahead_s)):.0f} s", **facts)
        text = f"its clock and this machine's differ by {abs(ahead_s):.0f} s: requests are refused above 15 minutes, "
        text += "and what a frozen worker sends is refused too late or too early"
        make = error if abs(ahead_s) >= MUCH_SKEW_S else warning
        return make("storage clock", text, "set this machine's clock by NTP", **facts)

    def moving(self) -> list[Finding]:
        """Whether something can be stored and read, whole, and how quickly."""
        data, key = os.urandom(SIZE_BYTES), self._key("put")
        try:
            with self._doing("writing") as up:
                self._client.put_object(Bucket=self._bucket, Key=key, Body=data)
        except StorageError as e:
            return [error("storage put", str(e), _PERMIT)]
        found = [_speed("storage put", "stored", up[0])]
        try:
            with self._doing("reading") as down:
                back = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except StorageError as e:
            return [*found, error("storage get", str(e), _PERMIT)]
        if back != data:
            return [*found, error("storage get", "what came back is not what was stored", "do not use this storage")]
        return [*found, _speed("storage get", "read", down[0])]

    def multipart(self) -> list[Finding]:
        """Whether uploads in parts work."""
        key = self._key("multipart")
        with self._doing("writing in parts") as took:
            upload = self._client.create_multipart_upload(Bucket=self._bucket, Key=key)["UploadId"]
            try:
                parts = [self._part(key, upload, number, size) for number, size in ((1, PART_BYTES), (2, 1))]
                self._client.complete_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
                )
            except BaseException:
                with suppress(Exception):
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)
                raise
            size = self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]
        if size != PART_BYTES + 1:
            return [error("storage multipart", f"of {PART_BYTES + 1} bytes {size} came in", "do not use this storage")]
        return [ok("storage multipart", f"uploads in parts work ({took[0]:.2f} s)")]

    def _part(self, key: str, upload: str, number: int, size: int) -> Any:
        answer = self._client.upload_part(
            Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=bytes(size)
        )
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def copy(self) -> list[Finding]:
        """Whether the storage copies by itself."""
        key = self._key("copy")
        with self._doing("copying") as took:
            source: Any = {"Bucket": self._bucket, "Key": self._folder + "put"}
            self._client.copy_object(Bucket=self._bucket, Key=key, CopySource=source)
        return [ok("storage copy", f"the storage copies by itself (8 MiB in {took[0]:.2f} s)")]

    def expiry(self) -> list[Finding]:
        """Whether a presigned request is taken before it expires, and refused after."""
        key = self._key("presigned")
        before, after = self._presigned(key, 60), self._presigned(key, EXPIRES_S)
        taken = self._put(before)
        self._clock.sleep(AFTER_S)
        late = self._put(after)
        if not 200 <= taken < 300:  # noqa: PLR2004 -- a success
            text = f"a presigned request was answered with {taken}"
            return [error("storage expiry", text, "see whether a proxy in between changes requests")]
        if 200 <= late < 300:  # noqa: PLR2004
            text = "a presigned request was taken after it had expired: a worker that froze could overwrite plain keys"
            return [error("storage expiry", text, "use a storage that honours X-Amz-Expires, and set its clock by NTP")]
        return [ok("storage expiry", f"presigned requests work, and are refused once they have expired ({late})")]

    def _presigned(self, key: str, expires_s: int) -> str:
        with mapped("signing", self._bucket, key):
            params = {"Bucket": self._bucket, "Key": key}
            return self._client.generate_presigned_url("put_object", Params=params, ExpiresIn=expires_s)

    def _put(self, url: str) -> int:
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 -- half a second, loaded with the client
        from botocore.httpsession import URLLib3Session  # noqa: PLC0415 -- as above

        trusted: Any = os.environ.get("AWS_CA_BUNDLE") or True  # botocore takes a path too; its stubs do not say so
        session = URLLib3Session(verify=trusted, timeout=_TIMEOUT_S)
        with mapped("writing", self._bucket, self._folder):
            answer = session.send(AWSRequest("PUT", url, data=b"probe").prepare())
            return int(answer.status_code)

    def clean(self) -> list[Finding]:
        """Delete what was made."""
        try:
            with self._doing("deleting"):
                for key in self._made:
                    self._client.delete_object(Bucket=self._bucket, Key=key)
                left = self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._folder).get("KeyCount", 0)
        except StorageError as e:
            return [error("storage delete", f"{e}; what was tried is left at {self._folder}", _PERMIT)]
        if left:
            return [error("storage delete", f"{left} objects are still there below {self._folder}", _PERMIT)]
        return [ok("storage delete", "what was tried is gone again")]


def _speed(name: str, done: str, took_s: float) -> Finding:
    rate = SIZE_BYTES / took_s
    text = f"8 MiB {done} in {took_s:.2f} s ({rate / _MIB:.1f} MiB/s)"
    if rate < SLOW_BYTES_S:
        return warning(name, text, "a slow line: see what each checkpoint sends (kelpie verify)", bytes_s=round(rate))
    return ok(name, text, bytes_s=round(rate))
