"""Bodies that come compressed: inflated under a bound, so that no small body becomes a large one."""

from __future__ import annotations

import zlib

from orchestrator_web.problems import BadRequest

GZIP_ONLY = 31  # zlib's window bits for a gzip file and nothing else
NAMES = frozenset({"gzip", "x-gzip"})  # RFC 9110, section 8.4.1.3
AS_IT_IS = frozenset({"", "identity"})


def decode_body(body: bytes, encoding: str, largest: int) -> bytes:
    """The body without its Content-Encoding.

    Raises BadRequest: 415 for an encoding that is not gzip, 413 for what inflates to more than `largest` bytes,
    400 for what is no whole gzip file.
    """
    name = encoding.strip().lower()
    if name in AS_IT_IS:
        return body
    if name not in NAMES:
        why = "Send the body as it is, or with Content-Encoding: gzip"
        raise BadRequest(why, status=415, code="unsupported_content_encoding")
    return inflate(body, largest)


def inflate(body: bytes, largest: int) -> bytes:
    gzip = zlib.decompressobj(GZIP_ONLY)
    try:
        inflated = gzip.decompress(body, largest + 1)
    except zlib.error as error:
        raise BadRequest(f"The body is not gzip: {error}", code="not_gzip") from None
    if len(inflated) > largest:
        raise BadRequest(f"The body inflates to more than {largest} bytes", status=413, code="body_too_large")
    if not gzip.eof:
        raise BadRequest("The gzip body is cut short: its end is missing", code="gzip_truncated")
    if gzip.unused_data:
        raise BadRequest(f"{len(gzip.unused_data)} bytes follow the end of the gzip body", code="gzip_trailing_data")
    return inflated
