"""Images from files: the same pixels through every door, and errors that name the file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageError(ValueError):
    """A file that is no image, or one that cannot be read."""


def open_image(path: str | Path, mode: str = "RGB", *, exif_orientation: bool = False, frame: int = 0) -> Image:
    """The pixels of a file.

    Args:
        path: what PIL can read.
        mode: "RGB" for three channels, "L" for grey.
        exif_orientation: turn the image as the camera notes that it was held; otherwise pixels stay as they are stored.
        frame: of a file of several, such as a GIF.

    Returns:
        8-bit pixels; 16-bit grey ones are scaled by 1/257, so that white stays white.

    Raises:
        ImageError: naming the file, for one that is no image, is cut short or damaged, has more pixels than PIL takes
            for harmless, or numbers that no rule brings to 8 bits.
        OSError: for a file that is not there or must not be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if frame:
                image.seek(frame)
            return to_mode(image, mode, exif_orientation=exif_orientation)
    except UnidentifiedImageError as error:
        raise ImageError(f"{path} is not an image that PIL can read") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; shrink it first, or raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's, which names the file
        raise ImageError(f"{path} cannot be read: {error}") from error


def count_frames(path: str | Path) -> int:
    """Pictures in a file; 1 for what is no image, which ``open_image`` refuses."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return 1


def to_mode(image: Image, mode: str, *, exif_orientation: bool = False) -> Image:
    """An image of PIL in the mode "RGB" or "L"; see ``open_image``.

    Raises:
        ValueError: for numbers that no rule brings to 8 bits.
    """
    from PIL import Image, ImageOps

    if exif_orientation:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values: Any = np.asarray(image)
        if image.mode == "F" or values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError(f"its numbers (PIL's mode {image.mode!r}) are no 8- or 16-bit grey: convert it to 8 bits")
        image = Image.fromarray(np.round(values / 257).astype(np.uint8))
    return image.convert(mode)
