"""Objects that came to be where no directory is any more: what they leave in the store goes after them.

Writer thread of the core.  A directory is renamed while a file in it is put: the move may end before the put does, and
with it whatever would have removed the directory.  In most stores there is none beside its objects; those that are file
systems inside make one for the object, and keep it when that is deleted: an empty directory under the old name.
"""

from fanoutfs.index.changed import no_version
from fanoutfs.index.format import Departed
from fanoutfs.index.places import Places
from fanoutfs.index.transaction import IndexTransaction


def depart(txn: IndexTransaction, key: str, record: Departed, root_prefix: str) -> None:
    """Record that an object is in the store but not at its place here, and what nobody has here of the way there.

    A prefix that has a record already is deleted by that, after what is below; so is what a directory has left.
    """
    txn.changed.put_departed(key, record)
    places = Places.of_transaction(txn, root_prefix)
    end = key.rstrip("/").rfind("/") + 1
    while end > len(root_prefix):
        prefix = key[:end]
        if places.at(prefix) is not None:  # (a file, too: it waits until what is below has gone)
            return
        if txn.changed.departed(prefix) is None:
            txn.changed.put_departed(prefix, Departed(0, no_version()))
        end = key.rfind("/", 0, end - 1) + 1
