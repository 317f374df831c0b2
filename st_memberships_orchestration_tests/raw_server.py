"""A server on a raw socket, which sends what no framework would."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

Bytes = Iterator[bytes]


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Answers each request with what a function gives out for its path, byte for byte."""

    def __init__(self, speak: Callable[[str], Bytes]) -> None:
        self._speak = speak
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.heard: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._door.accept()
                threading.Thread(target=self._answer, args=(caller,), daemon=True).start()

    def _answer(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            heard = caller.makefile("rb")
            while request := heard.readline():
                self.heard.append(request)
                headers = dict(line.lower().split(b": ") for line in iter(heard.readline, b"\r\n"))
                heard.read(int(headers.get(b"content-length", b"0")))
                for part in self._speak(request.split()[1].decode()):
                    caller.sendall(part)

    def close(self) -> None:
        self._door.close()
