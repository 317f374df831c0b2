"""What one answer may cost: bytes as they arrive, bytes unpacked, and seconds in all.

ServiceTitan's pages are a few megabytes, sent within seconds. A server that is broken, or someone
in its place, could send for ever, a byte at a time, or kilobytes that unpack to gigabytes. As hooks
of an `httpx.Client`, `begin` and `bound` hold all answers through it, the token endpoint's too.
"""

import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpcore
import httpx

TIMEOUT = httpx.Timeout(100.0, connect=10.0)
"""ServiceTitan gives up after 100 s and advises clients to do the same (reference section 2)."""

LONGEST_ANSWER = 300.0
"""Seconds until an answer has to be complete, however steadily it arrives."""

LARGEST_PAGE = 100_000_000
"""Bytes of an answer to a read, unpacked: some twenty times the largest page that we have seen."""

LARGEST_RECEIPT = 1_000_000
"""Bytes of a token or of a write's receipt, and of what is read of a refusal: the rest is left."""

LOCATION = "location"
"""Where an answer points to, in its extensions."""

GZIP = b"\x1f\x8b"
"""How a pack begins."""

PIECE = 1_000_000
"""Bytes that are unpacked at a time."""

_request = threading.local()


def begin(request: httpx.Request) -> None:
    """Bound the time of `request`, from now to its answer's last byte, in the thread that sends it.

    Raises:
        httpx.ReadTimeout: by whoever reads the answer, when the time is over.
    """
    _request.ends = time.monotonic() + LONGEST_ANSWER
    request.headers["Accept-Encoding"] = "gzip"  # no other can be unpacked piece by piece
    request.extensions.setdefault("timeout", TIMEOUT.as_dict())
    before = request.extensions.get("trace")

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if before is not None:
            before(event, info)
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            _hurry(info["return_value"])

    request.extensions["trace"] = trace


def _hurry(stream: Any) -> None:
    """Make a new connection's reads end with the time of the request that they are for.

    httpx bounds each read alone, and a header that trickles in is thousands of reads.
    """
    read = stream.read

    def read_in_time(size: int, timeout: float | None = None) -> bytes:
        seconds = _request.ends - time.monotonic()
        if seconds <= 0:
            raise httpcore.ReadTimeout(f"the answer was not complete after {LONGEST_ANSWER:.0f} s")
        return read(size, seconds if timeout is None else min(timeout, seconds))

    stream.read = read_in_time


def bound(response: httpx.Response) -> None:
    """Bound the size of an answer whose body is not read yet, and lead it nowhere else.

    Raises:
        httpx.DecodingError: by whoever reads it, when it is too large or cannot be unpacked.
    """
    if (place := response.headers.pop("Location", None)) is not None:
        # httpx makes a request of it, though it follows none, and fails of a place that is none.
        response.extensions[LOCATION] = place
    encoding = response.headers.pop("Content-Encoding", "identity").strip().lower()
    is_page = response.is_success and response.request.method == "GET"
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Bounded(
        response.stream,
        encoding,
        LARGEST_PAGE if is_page else LARGEST_RECEIPT,
        is_cut=not response.is_success,
    )


class _Bounded(httpx.SyncByteStream):
    """A body, unpacked, of which no more than so many bytes are given out."""

    def __init__(
        self, stream: httpx.SyncByteStream, encoding: str, most: int, *, is_cut: bool
    ) -> None:
        self._stream = stream
        self._encoding = encoding
        self._most = most
        self._is_cut = is_cut

    def __iter__(self) -> Iterator[bytes]:
        allowed = self._most
        for piece in self._unpacked():
            if len(piece) > allowed:
                if not self._is_cut:
                    raise httpx.DecodingError(f"the answer is larger than {self._most:,} bytes")
                yield piece[:allowed]
                return
            allowed -= len(piece)
            yield piece

    def close(self) -> None:
        self._stream.close()

    def _unpacked(self) -> Iterator[bytes]:
        if self._encoding in ("identity", ""):
            yield from self._stream
        elif self._encoding in ("gzip", "x-gzip", "deflate"):
            yield from self._inflated()
        else:
            raise httpx.DecodingError(f"the answer is packed as {self._encoding[:30]!r}, not gzip")

    def _inflated(self) -> Iterator[bytes]:
        unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as its header says
        try:
            for chunk in self._stream:
                packed = chunk
                while packed:
                    if unpacking.eof:  # another pack may follow; what is none is no part of it
                        if not packed.startswith(GZIP[: len(packed)]):
                            break
                        unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)
                    yield unpacking.decompress(packed, PIECE)
                    packed = unpacking.unconsumed_tail or unpacking.unused_data
            yield unpacking.flush()
        except zlib.error as error:
            raise httpx.DecodingError(f"the answer cannot be unpacked: {error}") from error
