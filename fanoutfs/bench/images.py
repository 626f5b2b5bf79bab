"""Photographs that nobody took: JPEGs as large as those of ImageNet (500 x 375, about 110 KiB), the same in every run.

A few dozen random pixels, enlarged, for the shapes, and fine noise over them for the size: a decoder has as much to do
as with a photograph of that size.
"""

import random
from pathlib import Path
from typing import Final

from PIL import Image

from fanoutfs.bench import load

SIZE: Final = (500, 375)
_SHAPES: Final = (32, 24)
_NOISE_SHARE: Final = 0.3  # measured: 108 KiB a file at quality 90, between 106 and 110
_QUALITY: Final = 90
_PER_CLASS: Final = 200


def make_images(directory: Path, count: int, processes: int) -> list[Path]:
    """Write `count` JPEGs in a directory for each class, as ImageFolder wants them; return their relative paths."""
    names = [Path(f"class-{number // _PER_CLASS:04}") / f"image-{number:06}.jpg" for number in range(count)]
    for folder in dict.fromkeys(name.parent for name in names):
        (directory / folder).mkdir(parents=True, exist_ok=True)

    def work(index: int, slot: load.Slot) -> None:
        mine = range(index, count, processes)
        for number in mine:
            _image(number).save(directory / names[number], "JPEG", quality=_QUALITY)
        slot.count(len(mine), 0)

    load.run_together(processes, work)
    return names


def _image(number: int) -> Image.Image:
    generator = random.Random(number)
    shapes = _random_image(generator, _SHAPES).resize(SIZE, Image.Resampling.BICUBIC)
    return Image.blend(shapes, _random_image(generator, SIZE), _NOISE_SHARE)


def _random_image(generator: random.Random, size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, generator.randbytes(size[0] * size[1] * 3))
