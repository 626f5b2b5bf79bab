"""Object-store servers for tests and benchmarks: SeaweedFS (real) and moto (a mock that accepts hostile keys).

    with running_weed() as weed:
        bucket = weed.bucket()          # a fresh prefix in one bucket
        bucket.put("a/b", b"...")       # key below the prefix
        config = bucket.config()        # a MountConfig; bucket.env holds the credentials

SeaweedFS gives every bucket volumes of its own (7 at first) and answers 500 when it has none left, hence the prefixes.
It also rewrites keys: `d//e` becomes `d/e`, a backslash a slash.  moto takes any key and any credentials.
"""

import contextlib
import http.client
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import obstore
from obstore.exceptions import GenericError
from obstore.store import S3Store

from fanoutfs.backend.keys import is_addressable
from fanoutfs.config.schema import MountConfig
from tests.support.processes import ServerProcess, free_ports, tool

ACCESS_KEY: Final = "AK"
SECRET_KEY: Final = "SKSKSKSK"
REGION: Final = "us-east-1"

AWS_ENV: Final = {
    "AWS_ACCESS_KEY_ID": ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
    "AWS_REGION": REGION,
    # Nothing of the developer's own may leak in.
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Bucket:
    """A place of one test: a bucket, or a prefix in one.  Keys of its methods are relative to the prefix."""

    endpoint: str
    name: str
    prefix: str = ""
    env: dict[str, str] = field(default_factory=lambda: dict(AWS_ENV))
    """What a mount of it needs in its environment."""

    @property
    def url(self) -> str:
        """The source of a mount."""
        return f"s3://{self.name}/{self.prefix}"

    @cached_property
    def store(self) -> S3Store:
        """An obstore over the whole bucket: its paths are full keys."""
        return S3Store(
            self.name,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region=REGION,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
            retry_config={"max_retries": 3},
        )

    @cached_property
    def client(self) -> Any:
        """A boto3 client: for keys that obstore refuses."""
        return s3_client(self.endpoint)

    def put(self, key: str, body: bytes) -> None:
        """Write an object, any key."""
        if is_addressable(self.prefix + key):
            # use_multipart: one PUT gives one plain MD5 ETag.
            obstore.put(self.store, self.prefix + key, body, use_multipart=False)
            return
        self.client.put_object(Bucket=self.name, Key=self.prefix + key, Body=body)

    def get(self, key: str) -> bytes:
        """Return an object's content."""
        body: bytes = self.client.get_object(Bucket=self.name, Key=self.prefix + key)["Body"].read()
        return body

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.client.delete_object(Bucket=self.name, Key=self.prefix + key)

    def keys(self) -> list[str]:
        """Return all keys below the prefix, relative to it, sorted."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=self.prefix)
        return sorted(entry["Key"].removeprefix(self.prefix) for page in pages for entry in page.get("Contents", ()))

    def config(self, endpoint: str = "", **settings: Any) -> MountConfig:
        """Return the settings of a mount of it; endpoint: of a proxy in front of the server."""
        mountpoint = settings.pop("mountpoint", Path("/nonexistent"))
        return MountConfig(self.url, mountpoint, endpoint_url=endpoint or self.endpoint, region=REGION, **settings)


def s3_client(endpoint: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> Any:
    """Return a boto3 client for a server of the tests."""
    import boto3  # type: ignore[import-untyped]  # 0.3 s and 40 MB: only for those who need it
    from botocore.config import Config  # type: ignore[import-untyped]

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret_key,
        region_name=REGION,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 2}),
    )


class S3Server:
    """A running server and the buckets tests make in it."""

    def __init__(self, process: ServerProcess, endpoint: str, *, has_many_buckets: bool) -> None:
        self.process = process
        self.endpoint = endpoint
        self._has_many_buckets = has_many_buckets
        self._numbers = itertools.count(1)
        self._made: set[str] = set()

    @property
    def address(self) -> str:
        """host:port, as the proxy wants it."""
        return self.endpoint.removeprefix("http://")

    def bucket(self) -> Bucket:
        """Return an empty place of its own: a bucket where they are cheap, else a prefix."""
        number = next(self._numbers)
        if self._has_many_buckets:
            return self.make_bucket(f"bucket-{number}")
        return Bucket(self.endpoint, self.make_bucket("bucket").name, f"t{number}/")

    def make_bucket(self, name: str) -> Bucket:
        """Create a bucket, if this object has not yet."""
        if name not in self._made:
            s3_client(self.endpoint).create_bucket(Bucket=name)
            self._made.add(name)
        return Bucket(self.endpoint, name)


@contextlib.contextmanager
def running_weed(volume_size_mb: int = 512) -> Iterator[S3Server]:
    """Run SeaweedFS.  Ready when an object has been written: the first volume takes seconds."""
    process = ServerProcess("weed")
    try:
        with _without_sockets(process):
            yield start_weed(process, volume_size_mb)
    finally:
        process.stop()


@contextlib.contextmanager
def _without_sockets(process: ServerProcess) -> Iterator[None]:
    """Remove the sockets that a SeaweedFS leaves in /tmp, wherever it runs, when it is ended."""
    try:
        yield
    finally:
        ports = _ports(process.pid) if process.is_started else []
        process.stop()
        for port in {number for each in ports for number in (each, each + 10_000)}:
            for socket in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket.unlink(missing_ok=True)


def _ports(pid: int) -> list[int]:
    """Return the ports on the command line of a SeaweedFS server; none when it has ended."""
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        pairs = (argument.partition("=") for argument in arguments)
        return [int(value) for name, _, value in pairs if name.endswith("port") and value.isdecimal()]
    return []


def start_weed(process: ServerProcess, volume_size_mb: int = 512) -> S3Server:
    """Start SeaweedFS in this (fresh) process slot."""
    master, volume, filer, s3 = free_ports(4, also_above=10_000)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (process.directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (process.directory / "data").mkdir()
    server = S3Server(process, f"http://127.0.0.1:{s3}", has_many_buckets=False)
    probe = Bucket(server.endpoint, "bucket")

    import botocore.exceptions  # type: ignore[import-untyped]

    def is_ready() -> bool:
        if not _answers(s3):
            return False
        try:
            if "bucket" not in server._made:
                server.make_bucket("bucket")
            obstore.put(probe.store, "probe", b"", use_multipart=False)
            obstore.delete(probe.store, "probe")
        except (GenericError, botocore.exceptions.ClientError):
            return False
        return True

    process.start(
        [
            tool("weed"),
            "-logdir=.",  # else it leaves files in /tmp
            "server",
            "-dir=data",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-volume.port={volume}",
            "-filer",
            f"-filer.port={filer}",
            "-s3",
            f"-s3.port={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.config=s3.json",
            "-volume.max=100",
            f"-master.volumeSizeLimitMB={volume_size_mb}",
        ],
        is_ready,
        deadline_s=60,
    )
    return server


@contextlib.contextmanager
def running_moto() -> Iterator[S3Server]:
    """Run moto's S3 server."""
    process = ServerProcess("moto", env={"PYTHONUNBUFFERED": "1"})
    (port,) = free_ports(1)
    try:
        process.start([tool("moto_server"), "-H", "127.0.0.1", "-p", str(port)], lambda: _answers(port), deadline_s=60)
        yield S3Server(process, f"http://127.0.0.1:{port}", has_many_buckets=True)
    finally:
        process.stop()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except http.client.HTTPException:
        return False
    finally:
        connection.close()
