"""Plain http servers: no ETag, no listing."""

import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fanoutfs.backend.connect import open_store
from fanoutfs.config.schema import MountConfig
from fanoutfs.errors import BackendError, VersionGoneError

BODY = b"0123456789"
FIRST, LATER = "Tue, 21 Oct 2025 07:28:00 GMT", "Tue, 21 Oct 2025 07:28:01 GMT"


@dataclass
class Site:
    """A server with one body under every path."""

    url: str = ""
    headers: dict[str, str] = field(default_factory=lambda: {"Last-Modified": FIRST})
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:
            """Stay silent."""

        def do_GET(self) -> None:
            found.asked.append((self.command, self.path, self.headers["If-Match"]))
            body, wanted = BODY, self.headers["Range"]
            if wanted:
                first, last = (int(each) for each in wanted.removeprefix("bytes=").split("-"))
                body = BODY[first : last + 1]
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(BODY)}")
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - http.server's name

        def do_PROPFIND(self) -> None:
            self.send_error(405)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield found
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("etag", "if_match"), [("", None), ('"q"', '"q"'), ('W/"q"', None)], ids=["no-etag", "strong", "weak"]
)
def test_range_is_read_with_a_condition_only_where_one_can_match(site: Site, etag: str, if_match: str | None) -> None:
    site.headers.update({"ETag": etag} if etag else {})
    backend = open_store(MountConfig(f"{site.url}/data", Path("/m")))
    version = backend.head("data/a b%20#?").version
    assert bytes(backend.get_range("data/a b%20#?", 2, 5, version)) == b"234"
    assert site.asked == [
        ("HEAD", "/data/a%20b%2520%23%3F", None),
        ("GET", "/data/a%20b%2520%23%3F", if_match),
    ]


def test_later_modification_time_without_etag_is_another_version(site: Site) -> None:
    backend = open_store(MountConfig(site.url, Path("/m")))
    version = backend.head("a").version
    site.headers["Last-Modified"] = LATER
    with pytest.raises(VersionGoneError):
        backend.get_range("a", 0, 1, version)


def test_listing_a_server_without_webdav_says_so(site: Site) -> None:
    with pytest.raises(BackendError, match="WebDAV"):
        list(open_store(MountConfig(site.url, Path("/m"))).list(""))
