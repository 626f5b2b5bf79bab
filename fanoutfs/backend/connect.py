"""Opens the backend a mount's settings name, with everything the core wants around it.

Environment that counts, beyond credentials (credentials.py): AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, AWS_REGION,
AWS_DEFAULT_REGION; Google and Azure variables as obstore documents them; HTTP_PROXY, HTTPS_PROXY, NO_PROXY.
"""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import obstore.exceptions
from obstore.store import AzureStore, GCSStore, HTTPStore, MemoryStore, S3Store

from fanoutfs.backend.base import Backend
from fanoutfs.backend.credentials import (
    CredentialSource,
    is_anonymous,
    read_profile,
    static_credentials,
)
from fanoutfs.backend.local import LocalBackend
from fanoutfs.backend.measure import Counter, MeasuringBackend, ignore
from fanoutfs.backend.metadata import find_metadata_credentials
from fanoutfs.backend.retry import RetryingBackend, RetryPolicy
from fanoutfs.backend.s3client import S3Client, S3Place
from fanoutfs.backend.s3gets import open_gets
from fanoutfs.backend.s3list import S3Lister
from fanoutfs.backend.s3write import S3Writer
from fanoutfs.backend.store import StoreBackend
from fanoutfs.backend.storewrite import ReadOnlyWriter, StoreWriter
from fanoutfs.backend.unanswered import Unanswered
from fanoutfs.config.schema import MountConfig
from fanoutfs.config.source import Source, parse_source
from fanoutfs.errors import BackendError, BucketMissingError, CredentialsError, UsageError

if TYPE_CHECKING:  # obstore declares these in its stubs only
    from obstore.store import ClientConfig, RetryConfig, S3Config, S3Credential

_DEFAULT_REGION: Final = "us-east-1"
_NO_RETRY: Final["RetryConfig"] = {"max_retries": 0}
"""retry.py retries; two layers would multiply."""


def open_backend(config: MountConfig, count: Counter = ignore, unanswered: Unanswered | None = None) -> Backend:
    """Return the backend of this mount: measured, then retried within op_timeout.  Call after fork; asks nothing yet.

    count: see measure.py for the names.  unanswered: notes changes that may come late, see retry.py.
    Raises UsageError (source), CredentialsError (none found), BucketMissingError (file:// directory).
    """
    measured = MeasuringBackend(open_store(config), count)
    return RetryingBackend(measured, RetryPolicy(deadline_s=config.op_timeout), count=count, unanswered=unanswered)


def open_s3_client(config: MountConfig) -> S3Client | None:
    """Return a client for questions about the bucket itself; None for other stores.  Raises as open_backend."""
    source = parse_source(config.source, config.prefix)
    if source.scheme != "s3":
        return None
    return S3Client(*_s3_access(source, config, os.environ), _stall_s(config))


def config_root(config: MountConfig) -> tuple[str, str]:
    """Return (identity of the volume, key prefix "" or ending with "/").

    The identity includes an endpoint that only environment or profile name.
    """
    source = parse_source(config.source, config.prefix)
    endpoint = ""
    if source.scheme == "s3":
        endpoint = _s3_endpoint(config, os.environ, _profile(config, os.environ))
    elif source.scheme == "az":
        endpoint = config.endpoint_url or os.environ.get("AZURE_STORAGE_ACCOUNT_NAME", "")
    elif source.scheme == "gs":
        endpoint = config.endpoint_url
    return source.identity(endpoint), source.key_prefix


def open_store(config: MountConfig) -> Backend:
    """Return the bare backend, without wrappers.  Raises as open_backend."""
    source = parse_source(config.source, config.prefix)
    if source.scheme == "file":
        if not Path(source.root or "/").is_dir():
            raise BucketMissingError(f"{source.root or '/'}: no such directory")
        return LocalBackend(source.root)
    if source.scheme == "memory":
        # Empty and private to this process: for tests only.
        return StoreBackend(MemoryStore(), if_match_form="bare")
    try:
        if source.scheme == "s3":
            return _open_s3(source, config, os.environ)
        options = _client_options(config, config.endpoint_url)
        if source.scheme == "gs":
            return StoreBackend(_open_gcs(source, config, options))
        if source.scheme == "az":
            return StoreBackend(_open_azure(source, config, options))
        url = f"{source.scheme}://{source.root}"
        http_store = HTTPStore(url, client_options=_client_options(config, url), retry_config=_NO_RETRY)
        return StoreBackend(http_store, writer=ReadOnlyWriter(StoreWriter(http_store)))
    except BackendError:
        raise
    except (ValueError, obstore.exceptions.BaseError) as error:
        # Only the first line: the rest is a debug dump of the settings.
        raise UsageError(f"source {config.source!r}: {str(error).splitlines()[0][:200]}") from None


def _s3_access(source: Source, config: MountConfig, env: Mapping[str, str]) -> tuple[S3Place, CredentialSource | None]:
    """Return where the bucket is and who we are to it; None: nobody."""
    profile = _profile(config, env)
    region = (
        config.region
        or env.get("AWS_REGION")
        or env.get("AWS_DEFAULT_REGION")
        or profile.get("region")
        or _DEFAULT_REGION
    )
    endpoint = _s3_endpoint(config, env, profile)
    endpoint = endpoint or f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    credentials = None if is_anonymous(env) else _s3_credentials(config, env, region)
    return S3Place(endpoint, source.root, region), credentials


def _open_s3(source: Source, config: MountConfig, env: Mapping[str, str]) -> Backend:
    place, credentials = _s3_access(source, config, env)
    endpoint = place.endpoint_url
    store = _s3_store(place, credentials, _client_options(config, endpoint))
    client = S3Client(place, credentials, _stall_s(config))
    return StoreBackend(
        store,
        S3Lister(client),
        writer=S3Writer(client, source.key_prefix),
        ranges=_open_ranges(place, credentials, config),
        patience_s=_patience_s(config),
        open_gets=lambda: open_gets(place, credentials, _stall_s(config), max(1, config.requests)),
    )


def _open_ranges(place: S3Place, credentials: CredentialSource | None, config: MountConfig) -> S3Client | None:
    """Return what receives parts where they are wanted; over TLS obstore does, in threads without the GIL.

    Measured, 8 parts of 8 MiB in flight from loopback on 2 busy cores: without TLS 770 to 1,770 MB/s for 0.31 s of CPU
    a GiB, obstore 640 to 1,170 for 0.6 to 1.0; with TLS 160 to 210 for 1.2 (16 KiB a call), obstore 300 to 530 for 1.9.
    """
    if place.endpoint_url.startswith("https://"):
        return None
    return S3Client(place, credentials, _stall_s(config), max(16, config.requests))


def _s3_store(place: S3Place, credentials: CredentialSource | None, options: "ClientConfig") -> S3Store:
    """Return obstore's client, every setting given explicitly: it would else take stray AWS_* variables."""
    settings: S3Config = {
        "endpoint": place.endpoint_url,
        "region": place.region,
        "skip_signature": credentials is None,
        "virtual_hosted_style_request": False,
    }
    if credentials is None:
        return S3Store(place.bucket, config=settings, client_options=options, retry_config=_NO_RETRY)
    held = credentials()
    if held.expires_at is None:
        settings["access_key_id"] = held.access_key_id
        settings["secret_access_key"] = held.secret_access_key
        if held.session_token:
            settings["session_token"] = held.session_token
        return S3Store(place.bucket, config=settings, client_options=options, retry_config=_NO_RETRY)

    def provide() -> "S3Credential":
        # Called by obstore when what it holds is about to expire.
        fresh = credentials()
        return {
            "access_key_id": fresh.access_key_id,
            "secret_access_key": fresh.secret_access_key,
            "token": fresh.session_token or None,
            "expires_at": fresh.expires_at,
        }

    return S3Store(
        place.bucket, config=settings, client_options=options, retry_config=_NO_RETRY, credential_provider=provide
    )


def _s3_credentials(config: MountConfig, env: Mapping[str, str], region: str) -> CredentialSource:
    found = static_credentials(config.aws_profile, env, Path.home())
    if found is not None:
        return lambda: found
    source = find_metadata_credentials(env, region)
    if source is None:
        raise CredentialsError(
            f"no credentials for {config.source}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile, "
            "or AWS_SKIP_SIGNATURE=true for a public bucket"
        )
    return source


def _profile(config: MountConfig, env: Mapping[str, str]) -> dict[str, str]:
    return read_profile(config.aws_profile or env.get("AWS_PROFILE") or "default", env, Path.home())


def _s3_endpoint(config: MountConfig, env: Mapping[str, str], profile: Mapping[str, str]) -> str:
    """Return the endpoint without a trailing "/", "" for AWS itself."""
    names = (
        config.endpoint_url,
        env.get("AWS_ENDPOINT_URL_S3"),
        env.get("AWS_ENDPOINT_URL"),
        profile.get("endpoint_url"),
    )
    endpoint = next((name for name in names if name), "").rstrip("/")
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UsageError(f"endpoint {endpoint!r}: write http://host:port or https://host")
    return endpoint


def _open_gcs(source: Source, config: MountConfig, options: "ClientConfig") -> GCSStore:
    if config.endpoint_url:
        return GCSStore(source.root, base_url=config.endpoint_url, client_options=options, retry_config=_NO_RETRY)
    return GCSStore(source.root, client_options=options, retry_config=_NO_RETRY)


def _open_azure(source: Source, config: MountConfig, options: "ClientConfig") -> AzureStore:
    if config.endpoint_url:
        return AzureStore(source.root, endpoint=config.endpoint_url, client_options=options, retry_config=_NO_RETRY)
    return AzureStore(source.root, client_options=options, retry_config=_NO_RETRY)


def _stall_s(config: MountConfig) -> float:
    """Return how long a connection may be silent: a third of the operation's time leaves room for a second try."""
    return max(1.0, min(10.0, config.op_timeout / 3))


def _patience_s(config: MountConfig) -> float:
    """Return how long one request may take."""
    return max(1.0, config.op_timeout * 0.9)


def _client_options(config: MountConfig, endpoint_url: str) -> "ClientConfig":
    return {
        "allow_http": endpoint_url.startswith("http://"),
        # One HTTP/2 connection would carry all ranges of a mount; HTTP/1.1 opens one per request in flight.
        "http1_only": True,
        "connect_timeout": timedelta(seconds=min(5.0, _stall_s(config))),
        "read_timeout": timedelta(seconds=_stall_s(config)),
        # The whole request: an 8 MiB part over a slow line must fit, or no retry will ever bring it.
        "timeout": timedelta(seconds=_patience_s(config)),
        "pool_idle_timeout": timedelta(seconds=30),
        "pool_max_idle_per_host": str(max(1, config.requests)),
        "user_agent": "fanoutfs",
    }
