"""Object stores.  Runs in the core (worker threads), constructed after fork.

Start reading at `base` (the protocol), then `connect` (what a mount gets: retry over measure over a store):

* `store` (obstore: s3, gs, az, http, memory), `local` (a directory): the implementations;
* `s3list`, `sigv4`: S3 listings by our own, and why;
* `retry`, `measure`, `faulty`: wrappers, each of which is a backend itself;
* `source`, `keys`, `credentials`, `metadata`, `translate`: what a source names, which keys can be asked for, who we
  are, and what a failure means.

Importing this package loads no client library; `open_backend` does.
"""

from typing import TYPE_CHECKING

from fanoutfs.backend.base import Backend

if TYPE_CHECKING:
    from fanoutfs.backend.measure import Counter
    from fanoutfs.config.schema import MountConfig

__all__ = ["Backend", "config_root", "open_backend"]


def open_backend(config: "MountConfig", count: "Counter | None" = None) -> Backend:
    """See `connect.open_backend`."""
    from fanoutfs.backend import connect, measure  # noqa: PLC0415 - loads obstore: fronts never need it

    return connect.open_backend(config, count or measure.ignore)


def config_root(config: "MountConfig") -> tuple[str, str]:
    """See `connect.config_root`."""
    from fanoutfs.backend import connect  # noqa: PLC0415 - as above

    return connect.config_root(config)
