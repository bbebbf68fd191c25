"""Where the storage is, how to be let in, and how long to wait for it.

Limits: credentials are static for the life of a process; their values never appear in a repr.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from kelpie_celery.settings import Settings


@dataclass(frozen=True)
class StorageConfig:
    """How to reach an S3-compatible storage.

    Attributes:
        endpoint_url: Its address; None for AWS.
        region: Its region; what a storage without regions is told does not matter.
        access_key: Access key id.
        secret_key: Its secret.
        session_token: Of temporary credentials.
        connect_timeout_s: For a connection.
        read_timeout_s: For the next byte in either direction.
        complete_timeout_s: For the answer to the end of an upload in parts, which may copy everything.
        requests: Calls that may be under way at once, each a request, or a batch of small files.
        page_keys: Keys that are asked for in one LIST; the storage may give fewer.
    """

    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str | None = field(default=None, repr=False)
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 60.0
    complete_timeout_s: float = 300.0
    requests: int = 16
    page_keys: int = 1000

    @classmethod
    def from_settings(cls, settings: Settings) -> StorageConfig:
        """What the worker's settings say."""
        key, secret, token = (
            value.get_secret_value() if value else ""
            for value in (settings.aws_access_key_id, settings.aws_secret_access_key, settings.aws_session_token)
        )
        return cls(
            endpoint_url=settings.aws_endpoint_url, region=settings.aws_region or "us-east-1",
            access_key=key, secret_key=secret, session_token=token or None,
        )  # fmt: skip
