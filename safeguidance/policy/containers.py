"""Text and XMP in PNG, WebP and JPEG files, put in and read without touching a pixel."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

XMP_KEY = "XML:com.adobe.xmp"
MOST_TEXT = 1_000_000
"""Bytes of an XMP packet or text that are read."""
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_XMP = (Path(__file__).parent / "data" / "jpeg_xmp.txt").read_bytes().strip() + b"\0"
_XMP_BIT, _ALPHA_BIT = 0x04, 0x10


class ContainerError(ValueError):
    """A file that is not of its format, or is damaged."""


def kind_of(content: bytes) -> str:
    """The format of a file: image/png, image/webp or image/jpeg; "" for any other."""
    if content.startswith(_PNG):
        return "image/png"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return "image/jpeg" if content.startswith(b"\xff\xd8\xff") else ""


def png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of each chunk.

    Raises:
        ContainerError: if one is cut or damaged.
    """
    at = len(_PNG)
    while at < len(content):
        if at + 12 > len(content):
            raise ContainerError("the PNG is cut")
        (size,), kind = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        data = content[at + 8 : at + 8 + size]
        if len(content) < at + 12 + size:
            raise ContainerError("the PNG is cut")
        if zlib.crc32(kind + data) != struct.unpack_from(">I", content, at + 8 + size)[0]:
            raise ContainerError("a chunk of the PNG is damaged")
        yield kind, data
        at += 12 + size


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def one_point() -> bytes:
    """The smallest PNG: one black point."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))
    return _PNG + b"".join(_png_chunk(kind, data) for kind, data in chunks)


def png_texts(content: bytes) -> dict[str, str]:
    """Texts of a PNG by key, compressed ones included where they are not too long.

    Raises:
        ContainerError: if a chunk is cut or damaged.
    """
    found = {}
    for kind, data in png_chunks(content):
        key, _, rest = data.partition(b"\0")
        if kind == b"tEXt":
            found[key.decode("latin-1")] = rest.decode("latin-1")
        elif kind == b"iTXt" and len(rest) > 2:
            text = rest[2:].split(b"\0", 2)[-1]
            if rest[0]:
                try:
                    text = zlib.decompressobj().decompress(text, MOST_TEXT)
                except zlib.error as error:
                    raise ContainerError(f"a text of the PNG is damaged ({error})") from error
            found[key.decode("latin-1")] = text.decode("utf-8", "replace")
    return found


def png_with(content: bytes, texts: dict[str, str]) -> bytes:
    """A PNG with texts before its pixels, in place of those with the same keys.

    Raises:
        ContainerError: if it is cut or damaged.
    """
    made = [
        _png_chunk(b"iTXt", key.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8")) for key, text in texts.items()
    ]
    parts, done = [_PNG], False
    for kind, data in png_chunks(content):
        if kind == b"IDAT" and not done:
            parts, done = parts + made, True
        if kind in (b"tEXt", b"iTXt", b"zTXt") and data.partition(b"\0")[0].decode("latin-1") in texts:
            continue
        parts.append(_png_chunk(kind, data))
    if not done:
        raise ContainerError("the PNG has no pixels")
    return b"".join(parts)


def _webp_chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at, end = [], 12, 8 + int.from_bytes(content[4:8], "little")
    if end > len(content):
        raise ContainerError("the WebP is cut")
    while at + 8 <= end:
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if at + 8 + size > end:
            raise ContainerError("the WebP is cut")
        found.append((content[at : at + 4], content[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return found


def webp_xmp(content: bytes) -> str:
    """The XMP of a WebP, "" where it has none.

    Raises:
        ContainerError: if it is cut.
    """
    return next((d.decode("utf-8", "replace") for kind, d in _webp_chunks(content) if kind == b"XMP "), "")


def webp_with_xmp(content: bytes, xmp: str) -> bytes:
    """A WebP with an XMP packet, in place of the one it has.

    Raises:
        ContainerError: if it is cut or of a form that WebP does not have.
    """
    chunks = [chunk for chunk in _webp_chunks(content) if chunk[0] != b"XMP "]
    if not chunks:
        raise ContainerError("the WebP is empty")
    if chunks[0][0] != b"VP8X":
        chunks.insert(0, (b"VP8X", _extended_header(*chunks[0])))
    header = chunks[0][1]
    if len(header) < 10:
        raise ContainerError("the WebP's header is cut")
    chunks[0] = (b"VP8X", bytes([header[0] | _XMP_BIT]) + header[1:])
    chunks.append((b"XMP ", xmp.encode("utf-8")))
    body = b"".join(kind + len(d).to_bytes(4, "little") + d + b"\0" * (len(d) % 2) for kind, d in chunks)
    return b"RIFF" + (len(body) + 4).to_bytes(4, "little") + b"WEBP" + body


def _extended_header(kind: bytes, data: bytes) -> bytes:
    """The header that a simple WebP needs to hold more than pixels."""
    if kind == b"VP8L" and len(data) >= 5 and data[0] == 0x2F:
        bits = int.from_bytes(data[1:5], "little")
        width, height, alpha = bits & 0x3FFF, bits >> 14 & 0x3FFF, _ALPHA_BIT if bits >> 28 & 1 else 0
    elif kind == b"VP8 " and len(data) >= 10 and data[3:6] == b"\x9d\x01\x2a":
        size = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
        width, height, alpha = (size[0] & 0x3FFF) - 1, (size[1] & 0x3FFF) - 1, 0
    else:
        raise ContainerError("the WebP has no pixels that are known")
    return bytes([alpha, 0, 0, 0]) + width.to_bytes(3, "little") + height.to_bytes(3, "little")


def _jpeg_segments(content: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Marker and data of each segment before the pixels, and where the pixels begin."""
    found: list[tuple[int, bytes]] = []
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, size = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xDA:
            return found, at
        if size < 2 or at + 2 + size > len(content):
            break
        found.append((marker, content[at + 4 : at + 2 + size]))
        at += 2 + size
    raise ContainerError("the JPEG is cut")


def jpeg_xmp(content: bytes) -> str:
    """The XMP of a JPEG, "" where it has none.

    Raises:
        ContainerError: if it is cut.
    """
    segments, _ = _jpeg_segments(content)
    packets = [data[len(_JPEG_XMP) :] for marker, data in segments if marker == 0xE1 and data.startswith(_JPEG_XMP)]
    return packets[0].decode("utf-8", "replace") if packets else ""


def jpeg_with_xmp(content: bytes, xmp: str) -> bytes:
    """A JPEG with an XMP packet, in place of the one it has.

    Raises:
        ContainerError: if it is cut, or the packet does not fit into a segment.
    """
    packet = _JPEG_XMP + xmp.encode("utf-8")
    if len(packet) > 65_533:
        raise ContainerError("the XMP is too long for a JPEG")
    segments, pixels = _jpeg_segments(content)
    kept = [one for one in segments if not (one[0] == 0xE1 and one[1].startswith(_JPEG_XMP))]
    # behind JFIF, which readers want first
    place = 1 if kept and kept[0][0] == 0xE0 else 0
    kept.insert(place, (0xE1, packet))
    made = b"".join(b"\xff" + bytes([m]) + (len(data) + 2).to_bytes(2, "big") + data for m, data in kept)
    return b"\xff\xd8" + made + content[pixels:]
