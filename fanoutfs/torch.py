"""Announce a PyTorch sampler's order, epoch after epoch.

    from fanoutfs.torch import AnnouncingSampler, sample_paths

    dataset = ImageFolder("/mnt/train")
    sampler = AnnouncingSampler(RandomSampler(dataset), sample_paths(dataset))
    loader = DataLoader(dataset, batch_size=256, sampler=sampler, num_workers=8, persistent_workers=True)

Runs in the training process; nothing else of fanoutfs imports it, and it imports nothing of torch: a sampler is an
iterable of indices with a length, and a subclass would only tie this to one release.

A DataLoader iterates its sampler in the main process, once an epoch, whatever its number of workers: there the order is
known before the first file is read.  It is announced from a thread, so that the first batch does not wait for the last
path; the daemon begins with the first chunk.  Each rank of a DistributedSampler announces its own share.

Announcing only makes reading faster: when it fails, this warns once and training goes on.
"""

import os
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol

from fanoutfs.cli.plans import PathLike, announce
from fanoutfs.errors import FanoutError


class SamplerLike(Protocol):
    """What a DataLoader takes as sampler (indices) or batch_sampler (lists of indices)."""

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch."""
        ...

    def __len__(self) -> int:
        """Return how many items an epoch has."""
        ...


class AnnouncingSampler:
    """Wraps a sampler, or a batch sampler, and announces each epoch's order when it is iterated.

    What it does not have itself (`set_epoch`, `batch_size`, ...) is the wrapped sampler's.
    """

    def __init__(
        self,
        sampler: SamplerLike,
        paths: Sequence[PathLike],
        *,
        mount: PathLike | None = None,
        name: str | None = None,
    ) -> None:
        """paths: of the data set's samples, by index.  mount, name: as for `fanoutfs.announce`.

        Without a name each sampler of a process has its own, so that training and validation do not replace each other.
        """
        self.sampler = sampler
        self._paths = paths
        self._mount = mount
        self._name = name
        self._epoch: _Epoch | None = None
        self._has_warned = False

    def __len__(self) -> int:
        """Return how many items an epoch has."""
        return len(self.sampler)

    def __getattr__(self, name: str) -> Any:
        """Return what the wrapped sampler has."""
        if name == "sampler":  # asked for while unpickling, before __init__ has run
            raise AttributeError(name)
        return getattr(self.sampler, name)

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch: take its whole order from the wrapped sampler, announce it, and hand it on."""
        order = list(self.sampler)
        if self._epoch is not None:
            self._epoch.stop()
        name = self._name or f"sampler {os.getpid()} {id(self):x}"
        self._epoch = _Epoch(self._paths_of(order), self._mount, name, self._warn)
        return iter(order)

    def wait_announced(self, timeout_s: float | None = None) -> None:
        """Return when the daemon knows the whole order of this epoch: for measurements."""
        if self._epoch is not None:
            self._epoch.thread.join(timeout_s)

    def _paths_of(self, order: Iterable[Any]) -> Iterator[PathLike]:
        for item in order:
            if isinstance(item, Iterable):  # a batch
                yield from self._paths_of(item)
            else:
                yield self._paths[int(item)]

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(f"the order of reading could not be announced: {error}", RuntimeWarning, stacklevel=2)


class _Epoch:
    """One announcement under way.  A daemon thread: it never keeps a process alive."""

    def __init__(self, paths: Iterator[PathLike], mount: PathLike | None, name: str, warn: Any) -> None:
        self._paths = paths
        self._mount = mount
        self._name = name
        self._warn = warn
        self._is_stopped = False
        self.thread = threading.Thread(target=self._run, name="fanoutfs-announce", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """End the announcement after its current chunk."""
        self._is_stopped = True
        self.thread.join()

    def _run(self) -> None:
        try:
            announce(self._until_stopped(), self._mount, name=self._name)
        except (FanoutError, OSError, LookupError) as error:
            if not self._is_stopped:
                self._warn(error)

    def _until_stopped(self) -> Iterator[PathLike]:
        for path in self._paths:
            if self._is_stopped:
                return
            yield path


def sample_paths(dataset: Any) -> list[PathLike]:
    """Return the paths of an ImageFolder-like data set (`samples`: pairs of path and class), also behind a Subset."""
    if hasattr(dataset, "samples"):
        return [sample[0] for sample in dataset.samples]
    if hasattr(dataset, "dataset") and isinstance(getattr(dataset, "indices", None), Sized):  # torch.utils.data.Subset
        paths = sample_paths(dataset.dataset)
        return [paths[index] for index in dataset.indices]
    raise TypeError(f"{type(dataset).__name__} has no `samples`: give the paths of its items by index")
