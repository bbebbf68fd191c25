"""Opening an S3 store: aiobotocore's client beside the wire, with the same trust and the same credentials.

aiobotocore is imported when a store is opened: it takes half a second, which a job without storage need not pay.

Limits: credentials come from the configuration alone.
"""

from __future__ import annotations

import functools
import gc
import os
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from kelpie_celery.clock import Clock, SystemClock
from kelpie_celery.errors import StorageSetupError
from kelpie_worker.sync.config import StorageConfig
from kelpie_worker.sync.object_store import ObjectStore
from kelpie_worker.sync.s3_store import S3Store
from kelpie_worker.sync.signing import StorageClock
from kelpie_worker.sync.wire import Wire

_loading = threading.Lock()


@asynccontextmanager
async def open_store(config: StorageConfig, clock: Clock | None = None) -> AsyncIterator[ObjectStore]:
    """An open S3 store; nothing is sent yet."""
    # With awscrt installed botocore would switch to its slower signer.
    os.environ.setdefault("BOTO_DISABLE_CRT", "true")
    from aiobotocore.config import AioConfig  # noqa: PLC0415 -- see the module's docstring
    from aiobotocore.session import AioSession  # noqa: PLC0415

    if not config.access_key or not config.secret_key:
        raise StorageSetupError(
            "the storage cannot be reached without credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
            bucket="",
        )
    # A profile or a file of the machine's, which belongs to a stranger, has no say in where the data goes.
    session = AioSession({"profile": (None, None, None, None), "config_file": (None, None, os.devnull, None)})
    session.register_component("data_loader", _loader())
    # botocore's own way to read a time takes longer than all the rest of a listing.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time)
    _check_region(config.region)
    tls = _tls(session.get_config_variable("ca_bundle")) if _is_tls(config) else None
    client = session.create_client(
        "s3", endpoint_url=config.endpoint_url, region_name=config.region,
        aws_access_key_id=config.access_key, aws_secret_access_key=config.secret_key,
        aws_session_token=config.session_token,
        config=AioConfig(
            signature_version="s3v4", connect_timeout=config.connect_timeout_s, read_timeout=config.read_timeout_s,
            # A name of a bucket before an endpoint of the user's own rarely resolves.
            s3={"addressing_style": "path" if config.endpoint_url else "auto"}, max_pool_connections=config.requests,
            retries={"total_max_attempts": 1}, request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )  # fmt: skip
    storage_clock = StorageClock(clock or SystemClock())
    async with client as s3, Wire(config, storage_clock, tls) as wire:
        yield S3Store(s3, wire, config, storage_clock)


def _time(value: str) -> datetime:
    """A time as S3 tells it: ISO 8601 in listings, another form in headers."""
    from botocore.utils import parse_timestamp  # noqa: PLC0415

    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return parse_timestamp(value)


def _check_region(region: str) -> None:
    from botocore.exceptions import InvalidRegionError  # noqa: PLC0415 -- see the module's docstring
    from botocore.utils import validate_region_name  # noqa: PLC0415 -- likewise

    try:
        validate_region_name(region)
    except InvalidRegionError:
        raise StorageSetupError("AWS_REGION is no name of a region; correct it", bucket="") from None


def _is_tls(config: StorageConfig) -> bool:
    return config.endpoint_url is None or config.endpoint_url.startswith("https")


@functools.cache
def _tls(bundle: str | None) -> ssl.SSLContext:
    """Trust whom botocore trusts (``AWS_CA_BUNDLE``, else its own list): a slim image may have no other list."""
    from botocore.httpsession import get_cert_path  # noqa: PLC0415

    try:
        return ssl.create_default_context(cafile=bundle or get_cert_path(verify=True))
    except OSError as error:  # an SSLError is one, too
        text = f"AWS_CA_BUNDLE names no file of certificates that can be read ({type(error).__name__}); correct it"
        raise StorageSetupError(text, bucket="") from None


def _loader() -> Any:
    """The descriptions of S3 that botocore works by, for all attempts: reading them takes a quarter of a second.

    A loader only reads and remembers, except that the first look at a service's model amends it; so that look is
    made here, alone.
    """
    with _loading:
        return _new_loader()


@functools.cache
def _new_loader() -> Any:
    from botocore.loaders import Loader  # noqa: PLC0415

    # Not ~/.aws/models of the machine's.
    loader = Loader([Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)
    loader.load_service_model("s3", "service-2", api_version=None)
    # All of that stays, and is 70,000 objects: the collector would look through them again and again, a twentieth of a
    # second each time, first of all in the middle of the first listing.
    gc.collect()
    gc.freeze()
    return loader
