"""Image files built byte by byte, as hostile or odd as no writer makes them."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


_BLOCK = 1 << 20


@functools.cache
def _block_of_zeros():
    made = zlib.compressobj(9, wbits=-15)
    return made.compress(bytes(_BLOCK)) + made.flush(zlib.Z_FULL_FLUSH)


def zeros(count):
    """So many zeros and up to 1 MB more, deflated: one block again and again, for deflating gigabytes takes long."""
    blocks = -(-count // _BLOCK)
    checksum = struct.pack(">HH", blocks * _BLOCK % 65_521, 1)
    return b"\x78\xda" + _block_of_zeros() * blocks + b"\x03\x00" + checksum


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *, bits=8, colour=2, pixels=b"", before=b""):
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def png_of(values):
    """A PNG with 16 bits a value, of an array [H, W] or [H, W, C]."""
    height, width, *rest = values.shape
    colour = {(): 0, (2,): 4, (3,): 2, (4,): 6}[tuple(rest)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(width, height, bits=16, colour=colour, pixels=zlib.compress(rows))


def directory(entries, after=b"", end="<"):
    """A TIFF of one directory: (tag, type, count, value or offset); the offset None is where `after` begins."""
    begin = 8 + 2 + 12 * len(entries) + 4
    made = (b"II*\0" if end == "<" else b"MM\0*") + struct.pack(end + "IH", 8, len(entries))
    for tag, form, count, value in sorted(entries):
        value = begin if value is None else value
        short = form == 3 and count == 1
        made += struct.pack(end + "HHI", tag, form, count)
        made += struct.pack(end + "HH", value, 0) if short else struct.pack(end + "I", value)
    return made + struct.pack(end + "I", 0) + after


def tiff(width, height, pixels, *, bits=8, form=1, photometric=1, compression=1, end="<", more=()):
    """A grey TIFF of one strip."""
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, compression), (262, 3, 1, photometric),
        (273, 4, 1, None), (277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, len(pixels)), (339, 3, 1, form),
    ]  # fmt: skip
    replaced = {entry[0] for entry in more}
    return directory([e for e in entries if e[0] not in replaced] + list(more), pixels, end)


def tiff_of(values, **options):
    """A grey TIFF of an array [H, W] of whole numbers or floats."""
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    end = options.get("end", "<")
    pixels = values.astype(values.dtype.newbyteorder(end)).tobytes()
    return tiff(*values.shape[::-1], pixels, bits=values.dtype.itemsize * 8, form=form, **options)


def jpeg_with(marker, body, count):
    """A JPEG with a segment so many times."""
    whole = saved(Image.new("RGB", (16, 16)), "JPEG")
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body
    return whole[:2] + segment * count + whole[2:]


def jpeg_of_scans(width, height, count):
    """A progressive JPEG that passes over its pixels so many times more."""
    whole = saved(Image.new("RGB", (64, 64)), "JPEG", progressive=True)
    at = whole.index(b"\xff\xc2")
    whole = whole[: at + 5] + struct.pack(">HH", height, width) + whole[at + 9 :]
    scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 63, 0) + bytes(8)
    return whole[:-2] + scan * count + b"\xff\xd9"


def gif_with_comment(blocks):
    whole = saved(Image.new("L", (4, 4)), "GIF")
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 4, 4, 0, 0, 0)
        + b"!\xfe"
        + (b"\xff" + b"c" * 255) * blocks
        + b"\0"
        + whole[781:]
    )


def webp_claiming(width, height):
    """An animation that says its canvas is so large."""
    frame = Image.new("RGB", (64, 64))
    made = bytearray(
        saved(frame, "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 64), (9, 9, 9))])
    )
    at = made.index(b"VP8X") + 12
    made[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(made)


def ramp(dtype, low, high, shape=(9, 14)):
    return np.linspace(low, high, shape[0] * shape[1]).astype(dtype).reshape(shape)
