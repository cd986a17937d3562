"""Reading of text files: plain or gzipped, with or without a byte order mark."""

import gzip
import zlib
from pathlib import Path

from mmdistill.errors import DataError

HEAD_BYTES = 65536
"""Bytes at the start of a file by which its kind is recognised."""
LINE_BYTES = 2**20
"""Bytes that are read of a longer first line beyond these, such as a header of many columns."""


def decoded(path: Path, most: int | None = None) -> str:
    """Read a text file, decompressed if its name ends in ``.gz``, without a byte order mark.

    Args:
        path: the file.
        most: read only this many bytes, or the first line if that is longer (up to a limit), and drop invalid ones,
            since the last character may be cut; None: read and check the whole file.
    Raises:
        DataError: the file cannot be read, is damaged, or is not UTF-8 (the line is named).
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as handle:
            raw = handle.read(-1 if most is None else most)
            if most is not None and b"\n" not in raw:
                raw += handle.readline(LINE_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is a damaged gzip file and cannot be read: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return raw.decode("utf-8-sig", "strict" if most is None else "ignore")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path} is not UTF-8 throughout: line {line} holds the byte 0x{raw[error.start]:02x}; "
            "save the file as UTF-8"
        ) from error
