"""Object stores.  Runs in the core (worker threads), constructed after fork.

Start reading at `base` (the protocol; `writing` has its second half), then `connect` (what a mount gets: retry over
measure over a store):

* `store` and `storewrite` (obstore: gs, az, http, memory, and the reads of s3), `local` and `localwrite` over
  `localfiles` (a directory): the implementations, one module for each half;
* `s3list` and `s3write` over `s3client` and `sigv4`: what our own requests do for S3, and why; `s3messages`, what they
  say; `s3probe`, how a server is asked what it can do; `s3gets`, many small objects at once;
* `retry`, `measure`, `faulty`: wrappers, each of which is a backend itself;
* `attributes`: what user metadata says about a file, in the words of s3fs and rclone;
* `source`, `keys`, `credentials`, `metadata`, `translate`: what a source names, which keys can be asked for, who we
  are, and what a failure means.

Importing this package loads no client library; `open_backend` does.
"""

from typing import TYPE_CHECKING

from fanoutfs.backend.base import Backend

if TYPE_CHECKING:
    from fanoutfs.backend.measure import Counter
    from fanoutfs.backend.unanswered import Unanswered
    from fanoutfs.config.schema import MountConfig

__all__ = ["Backend", "config_root", "open_backend"]


def open_backend(
    config: "MountConfig", count: "Counter | None" = None, unanswered: "Unanswered | None" = None
) -> Backend:
    """See `connect.open_backend`."""
    from fanoutfs.backend import connect, measure  # noqa: PLC0415 - loads obstore: fronts never need it

    return connect.open_backend(config, count or measure.ignore, unanswered)


def config_root(config: "MountConfig") -> tuple[str, str]:
    """See `connect.config_root`."""
    from fanoutfs.backend import connect  # noqa: PLC0415 - as above

    return connect.config_root(config)
