"""Images of Long Range Arena as sequences of grey values: CIFAR-10 and Pathfinder.

CIFAR-10 is the binary version as released (`data_batch_1.bin` to `_5`, `test_batch.bin`). Colours become grey as in
`tf.image.rgb_to_grayscale`, and the last tenth of the training images validates, as published.

Pathfinder is a folder of the release, such as `pathfinder32/curv_contour_length_14`. `metadata/*.npy` are text files
whose lines name an image in `imgs` and its label; 80 % train, 10 % validate, 10 % test. Empty images, of which the
release has some, are left out. The published order of the examples is that of a TensorFlow data set. Here the files are
read in the order of their numbers, so the three parts have other images.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np

from effconv.convert.errors import BadInputError

from .examples import Examples, Splits, bad_row, require

GREYS = 256
WEIGHTS = np.asarray([0.2989, 0.5870, 0.1140], np.float32)  # of red, green and blue
SIDE, PLANES = 32, 3
TRAIN, TEST = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]


def cifar(folder: Path) -> Splits:
    """CIFAR-10 in grey.

    Raises:
        BadInputError: a file is missing, or is not of the binary version.
    """
    inner = folder / "cifar-10-batches-bin" if (folder / "cifar-10-batches-bin").is_dir() else folder
    require(inner, [*TRAIN, *TEST], "Image")
    train, test = (_batches([inner / name for name in names]) for names in (TRAIN, TEST))
    cut = len(train) * 9 // 10
    return Splits(train.taken(range(cut)), train.taken(range(cut, len(train))), test, GREYS, 10)


def _batches(paths: list[Path]) -> Examples:
    size = 1 + PLANES * SIDE * SIDE
    tables = []
    for path in paths:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        if not len(data) or len(data) % size:
            raise BadInputError("not a CIFAR-10 batch", where=str(path), hint="give the binary version of CIFAR-10")
        tables.append(data.reshape(-1, size))
    table = np.concatenate(tables)
    images = table[:, 1:].reshape(-1, PLANES, SIDE * SIDE).transpose(0, 2, 1)  # n, pixels, colours
    return Examples(list(grey(images)), [int(label) for label in table[:, 0]])


def grey(colours: np.ndarray) -> np.ndarray:
    """Grey values (...,) of colours (..., 3), uint8, rounded as TensorFlow rounds them."""
    values = (colours.astype(np.float32) * np.float32(1 / 255)) @ WEIGHTS
    return np.minimum(values * np.float32(255.5), 255).astype(np.uint8)


def pathfinder(folder: Path) -> Splits:
    """Pathfinder at one difficulty and size.

    Raises:
        BadInputError: no metadata, a line without a label, or images of several sizes.
    """
    require(folder, ["metadata", "imgs"], "Pathfinder")
    files = sorted((folder / "metadata").glob("*.npy"), key=lambda path: (len(path.stem), path.stem))
    ids, labels = [], []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            fields = line.split(" ")
            if len(fields) < 4 or fields[3] not in ("0", "1"):
                raise bad_row(file, number, "not the folder, name, number and label of an image")
            image = _image(folder / fields[0] / fields[1])
            if image is not None:
                ids.append(image)
                labels.append(int(fields[3]))
    if not ids or len({len(image) for image in ids}) > 1:
        raise BadInputError("no images, or images of several sizes", where=str(folder), hint="give one difficulty")
    found, count = Examples(ids, labels), len(ids)
    cuts = (0, count * 8 // 10, count * 9 // 10, count)
    train, valid, test = (found.taken(range(a, b)) for a, b in itertools.pairwise(cuts))
    return Splits(train, valid, test, GREYS, 2)


def _image(path: Path) -> np.ndarray | None:
    """Grey values (t,); None for an empty file."""
    from PIL import Image, UnidentifiedImageError

    try:
        data = path.read_bytes()
        return np.asarray(Image.open(io.BytesIO(data)).convert("L")).reshape(-1) if data else None
    except (OSError, UnidentifiedImageError) as error:
        raise BadInputError(f"unreadable image: {error}", where=str(path), hint="unpack the data set again") from None
