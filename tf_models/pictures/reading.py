"""A picture's file as pixels."""

import io
import os
import stat
import warnings

import numpy as np

from tf_models.pictures import storage
from tf_models.runtime.mistaken import kind, near
from tf_models.runtime.weights_format import printable

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")  # of files that may be meant


class PictureError(ValueError):
    """A picture, or a file beside it, that nothing can be made from: one line that says why."""

    exit_code = 1


def read_picture(path: str | os.PathLike, called: str | None = None) -> np.ndarray:
    """A picture's file as (H, W, 3), uint8, RGB, upright.

    Grey becomes RGB, transparency is dropped, of 16 bits the upper 8 are taken, and of several frames the first.

    Args:
        path: of this machine, or of a file system that Apache Beam knows.
        called: the picture's name in messages; by default the path.

    Raises:
        PictureError: no such file, not a picture, damaged, or with too many pixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    called = printable(str(path)) if called is None else called
    try:
        source: io.BytesIO | str | os.PathLike = path
        if isinstance(path, str) and storage.remote(path):
            source = io.BytesIO(storage.read(path))
        elif not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise PictureError("is not a file")
        elif kind(path) in ("weights", "checkpoint"):
            raise PictureError("is a file of weights, not a picture: the weights come first, and then the picture")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of many pixels before there are too many
            with Image.open(source) as opened:
                upright = ImageOps.exif_transpose(opened)
                if upright.mode == "I" or upright.mode.startswith("I;16"):
                    return _from_more_bits(np.asarray(upright), upright.mode)
                if upright.mode == "F":
                    raise PictureError("has floating-point numbers of an unknown range as pixels; save it in 8 bits")
                return np.asarray(upright.convert("RGB"))
    except PictureError as error:
        raise PictureError(f"{called} {error}") from None
    except FileNotFoundError:
        other = near(path, _ENDINGS)
        hint = f"; did you mean {printable(other)}?" if other else ""
        what = "folder" if str(path).endswith("/") else "file" if os.path.splitext(path)[1] else "file or folder"
        raise PictureError(f"{called}: no such {what}{hint}") from None
    except PermissionError:
        raise PictureError(f"{called} may not be read") from None
    except UnidentifiedImageError:
        raise PictureError(f"{called} is not a picture, or of an unknown format") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise PictureError(f"{called} has more than {most:,} pixels") from None
    except Exception as error:  # Pillow reports damage by many types
        raise PictureError(f"{called} is damaged: {error or type(error).__name__}") from None


def _from_more_bits(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey of 16 bits, or of 32 that hold 8 or 16."""
    if values.min() < 0 or values.max() > 0xFFFF:
        raise PictureError("has pixels of more than 16 bits; save it in 8")
    if mode != "I" or values.max() > 0xFF:
        values = values >> 8
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)
