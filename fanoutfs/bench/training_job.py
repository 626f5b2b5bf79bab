"""A training job's input side: a PyTorch DataLoader over a directory of images, shuffled, decoded, one epoch a line.

`python -m fanoutfs.bench.training_job`: says "ready" when torch is loaded, then reads one JSON object a line, {"root",
"workers", "batch", "seed", "mountpoint"}, and answers with one: see training.Trained.  mountpoint: where the order is
announced, by fanoutfs.torch; null: nowhere.

The clock runs over everything an epoch of a job has: listing the classes, shuffling, announcing, starting the workers,
reading (os.open, os.read, os.close), decoding to RGB, scaling to 224 x 224, collating.
"""

import io
import json
import os
import sys
import time
from typing import Any, Final

import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

from fanoutfs.bench.epoch_read import list_files
from fanoutfs.torch import AnnouncingSampler

_INPUT_SIZE: Final = (224, 224)
_READ: Final = os.O_RDONLY | os.O_CLOEXEC
_ALL: Final = sys.maxsize


class Images:
    """The images below a directory, classes and names sorted as ImageFolder sorts them; a map-style data set."""

    def __init__(self, root: str) -> None:
        """List the directory."""
        self.paths = [os.fsencode(root) + b"/" + name for name in list_files(os.fsencode(root), _ALL)]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return the pixels of one image, scaled, and the bytes of its file."""
        path = self.paths[index]
        fd = os.open(path, _READ)
        data = os.read(fd, os.fstat(fd).st_size + 1)
        os.close(fd)
        image = Image.open(io.BytesIO(data)).convert("RGB").resize(_INPUT_SIZE, Image.Resampling.BILINEAR)
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8), len(data)


def train(order: dict[str, Any]) -> dict[str, float]:
    """Read one epoch."""
    cpu_before, started = os.times(), time.monotonic()
    images = Images(order["root"])
    generator = torch.Generator().manual_seed(order["seed"])
    listed = time.monotonic()
    sampler: Any = RandomSampler(images, generator=generator)
    if order["mountpoint"]:
        sampler = AnnouncingSampler(sampler, images.paths, mount=order["mountpoint"])
    loader = DataLoader(images, batch_size=order["batch"], sampler=sampler, num_workers=order["workers"])
    samples = size = 0
    for pixels, sizes in loader:
        samples += len(pixels)
        size += int(sizes.sum())
    seconds = time.monotonic() - started
    cpu = [after - before for after, before in zip(os.times()[:4], cpu_before[:4], strict=True)]
    return {
        "samples": samples,
        "bytes_read": size,
        "seconds": seconds,
        "listing_s": listed - started,
        "cpu_s": sum(cpu),  # with the workers: they have been waited for
    }


def main() -> int:
    """Obey until stdin ends."""
    torch.set_num_threads(1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(train(json.loads(line))) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
