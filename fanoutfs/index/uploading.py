"""What uploads leave in the index for a core that comes after a crash: whose they are, and which are in parts.

Pure `apply`, as `operations`; in the writer thread of the core.
"""

import json
from dataclasses import dataclass
from typing import Final

from fanoutfs.index.transaction import IndexTransaction

UPLOADS: Final = b"upload/"
VOLUME_TAG: Final = b"volume_tag"


@dataclass(frozen=True, slots=True)
class TagVolume:
    """Give the volume the tag by which its uploads are told from others', once.  Returns the one that counts."""

    tag: str

    def apply(self, txn: IndexTransaction) -> str:
        """Carry it out."""
        known = txn.setting(VOLUME_TAG)
        if known is None:
            txn.set_setting(VOLUME_TAG, self.tag.encode())
            return self.tag
        return known.decode()


@dataclass(frozen=True, slots=True)
class BeginUpload:
    """Remember a multipart upload before its first part: a core after this one aborts it."""

    key: str
    upload_id: str
    name: str

    def apply(self, txn: IndexTransaction) -> None:
        """Carry it out."""
        txn.set_setting(UPLOADS + self.name.encode(), json.dumps([self.key, self.upload_id]).encode())


@dataclass(frozen=True, slots=True)
class EndUpload:
    """Forget a multipart upload: it was completed or aborted."""

    name: str

    def apply(self, txn: IndexTransaction) -> None:
        """Carry it out."""
        txn.delete_settings(UPLOADS + self.name.encode())
