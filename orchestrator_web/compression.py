"""Bodies that come compressed: inflated under a bound, so that no small body becomes a large one."""

from __future__ import annotations

import zlib

from orchestrator_web.problems import BadRequest

GZIP_ONLY = 31  # zlib's window bits for a gzip file and nothing else
MAGIC = b"\x1f\x8b"
PART = 4096
"""What a member leaves of what it was given is copied: of the whole body, with many small ones, for ever."""
NAMES = frozenset({"gzip", "x-gzip"})  # RFC 9110, section 8.4.1.3
AS_IT_IS = frozenset({"", "identity"})


def decode_body(body: bytes, encoding: str, largest: int) -> bytes:
    """The body without its Content-Encoding.

    Raises BadRequest: 415 for an encoding that is not gzip, 413 for what inflates to more than `largest` bytes,
    400 for what is no row of whole gzip members.
    """
    name = encoding.strip().lower()
    if name in AS_IT_IS:
        return body
    if name not in NAMES:
        why = "Send the body as it is, or with Content-Encoding: gzip"
        raise BadRequest(why, status=415, code="unsupported_content_encoding")
    return inflate(body, largest)


def inflate(body: bytes, largest: int) -> bytes:
    """All members one after the other, as RFC 1952 has them; together they are held to the bound."""
    inflated, at = bytearray(), 0
    while True:
        at = inflate_member(body, at, inflated, largest)
        if at == len(body):
            return bytes(inflated)
        if not MAGIC.startswith(body[at : at + len(MAGIC)]):
            raise BadRequest(f"{len(body) - at} bytes follow the end of the gzip body", code="gzip_trailing_data")


def inflate_member(body: bytes, at: int, inflated: bytearray, largest: int) -> int:
    """Add what the member holds that begins at `at`; answers where it ends."""
    gzip = zlib.decompressobj(GZIP_ONLY)
    while at < len(body) and not gzip.eof:
        part = body[at : at + PART]
        try:
            inflated += gzip.decompress(part, largest + 1 - len(inflated))
        except zlib.error as error:
            raise BadRequest(f"The body is not gzip: {error}", code="not_gzip") from None
        if len(inflated) > largest:
            raise BadRequest(f"The body inflates to more than {largest} bytes", status=413, code="body_too_large")
        at += len(part) - len(gzip.unused_data)
    if not gzip.eof:
        raise BadRequest("The gzip body is cut short: its end is missing", code="gzip_truncated")
    return at
