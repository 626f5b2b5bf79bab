"""What files occupy while a daemon makes and removes them."""

import os
from pathlib import Path


def occupied_bytes(root: Path, *, with_directories: bool = True) -> int:
    """Return what du(1) would say of a tree; what goes away meanwhile does not count."""
    total = 0
    for folder, _folders, names in os.walk(root):
        for path in ([folder] if with_directories else []) + [os.path.join(folder, name) for name in names]:
            try:
                total += os.lstat(path).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
