"""What policies say about uploading a dirty inode: whether, when, in which class.

Core, trio thread only.  Rules go by a file's path and by its size as users see it.
"""

import contextlib
from typing import Protocol

from fanoutfs.cache.staging import StagingFiles
from fanoutfs.core.facts import Facts


class UploadRules(Protocol):
    """What publishing needs of the policies (`core.policybook`).  Paths are relative to the mountpoint."""

    def is_never(self, path: str, size_bytes: int, *, is_asked: bool) -> bool:
        """Tell whether a file's content is not to be uploaded.  is_asked: somebody asked for it by name."""
        ...

    def is_excluded(self, path: str) -> bool:
        """Tell whether a name on a path is one that is not uploaded by itself (`--no-upload`)."""
        ...

    def delay_s(self, path: str, size_bytes: int) -> float:
        """Return how long a file is left alone before it is uploaded."""
        ...

    def upload_class(self, path: str, size_bytes: int) -> str:
        """Return the storage class in which a file is uploaded; "": the store's default."""
        ...


class Rulings:
    """The rules, applied to facts."""

    def __init__(self, rules: UploadRules, files: StagingFiles, root_prefix: str) -> None:
        self._rules = rules
        self._files = files
        self._root_prefix = root_prefix

    def is_never(self, facts: Facts, *, is_asked: bool) -> bool:
        """Tell whether nothing is sent under the name; what the store has stays there unless `--no-upload` says no."""
        path, size_bytes = self.subject(facts)
        is_leaving = facts.inode.key != facts.key and self._rules.is_excluded(path)
        return (facts.has_new_content or is_leaving) and self._rules.is_never(path, size_bytes, is_asked=is_asked)

    def is_excluded(self, facts: Facts) -> bool:
        """Tell whether its name is one that `--no-upload` keeps out of the store."""
        return self._rules.is_excluded(self.subject(facts)[0])

    def upload_class(self, facts: Facts) -> str:
        """Return the class in which policy wants it; "": policy does not say."""
        return self._rules.upload_class(*self.subject(facts))

    def delay_s(self, facts: Facts, size_bytes: int) -> float:
        """Return how long it is left alone when it has grown to this size."""
        return self._rules.delay_s(facts.key.removeprefix(self._root_prefix), size_bytes)

    def subject(self, facts: Facts) -> tuple[str, int]:
        """Return what rules decide by: a file's path and its size."""
        size_bytes = facts.inode.size_bytes
        if facts.inode.is_staged:
            with contextlib.suppress(OSError):
                size_bytes = self._files.stat(facts.inode.ino, facts.inode.life).st_size
        return facts.key.removeprefix(self._root_prefix), size_bytes
