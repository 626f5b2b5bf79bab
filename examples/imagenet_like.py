"""Read an ImageFolder-like tree with PyTorch, announcing each epoch's order to fanoutfs.

    python examples/imagenet_like.py /mnt/train --workers 4 --epochs 2 [--plain]

The tree is DIR/class/file.  Only the bytes are read: put your decoder where `Folder.__getitem__` says so.  --plain
leaves the announcement out, for comparison.  Needs torch (the extra `torch`).
"""

import argparse
import os
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

from fanoutfs.torch import AnnouncingSampler, sample_paths


class Folder(Dataset):  # type: ignore[type-arg, misc]
    """What torchvision's ImageFolder is, without its decoder: `samples` holds (path, class)."""

    def __init__(self, root: Path) -> None:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self.samples = [
            (str(root / name / file), number)
            for number, name in enumerate(classes)
            for file in sorted(os.listdir(root / name))
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[int, int]:
        path, number = self.samples[index]
        return len(Path(path).read_bytes()), number  # decode here


def main() -> None:
    """Read the epochs and print how fast."""
    parser = argparse.ArgumentParser(description="Read an ImageFolder-like tree through a mount.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--plain", action="store_true")
    options = parser.parse_args()
    dataset = Folder(options.root)
    shuffled = RandomSampler(dataset, generator=torch.Generator().manual_seed(0))
    sampler = shuffled if options.plain else AnnouncingSampler(shuffled, sample_paths(dataset))
    loader = DataLoader(
        dataset, options.batch, sampler=sampler, num_workers=options.workers, persistent_workers=options.workers > 0
    )
    for epoch in range(options.epochs):
        start = time.perf_counter()
        size_bytes = sum(int(sizes.sum()) for sizes, _numbers in loader)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}: {len(dataset)} files, {size_bytes} bytes, {len(dataset) / seconds:.0f} files/s")


if __name__ == "__main__":
    main()
