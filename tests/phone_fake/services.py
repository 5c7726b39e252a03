"""What the fake phone's adbd offers: the shell with protocol v2, and sync."""

from __future__ import annotations

import contextlib
import fcntl
import stat
import struct
import threading
from typing import IO

from phone_fake.adbd import Stream, StreamClosed
from phone_fake.sandbox import Sandbox

STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
GARBAGE = b"WARNING: linker: something wrote here \xff\xfe\x00 before us\n"
CHUNK = 64 * 1024
PIPE_BYTES = 1 << 20  # adbd has a socket here, which holds more than a pipe does


def serve(stream: Stream, sandbox: Sandbox) -> None:
    if stream.service.startswith("shell,v2,raw:"):
        _shell_v2(stream, sandbox, stream.service.removeprefix("shell,v2,raw:"))
    elif stream.service.startswith("sync:"):
        _Sync(stream, sandbox).serve()


def _shell_v2(stream: Stream, sandbox: Sandbox, script: str) -> None:
    if stream.fault and stream.fault.kind == "garbage":
        stream.write(_packet(STDOUT, GARBAGE))
    process = sandbox.start_shell(script)
    lock = threading.Lock()

    def forward(pipe: IO[bytes], kind: int) -> None:
        # Reads on after the stream is gone, as adbd does: the command must not notice.
        is_open = True
        while part := pipe.read1(CHUNK):  # type: ignore[attr-defined]
            try:
                if is_open:
                    with lock:
                        stream.write(_packet(kind, part))
            except StreamClosed:
                is_open = False
        pipe.close()

    def feed(pipe: IO[bytes]) -> None:
        with contextlib.suppress(StreamClosed, BrokenPipeError), pipe:
            while True:
                header = stream.read(5)
                content = stream.read(int.from_bytes(header[1:], "little"))
                if header[0] != STDIN:
                    return
                pipe.write(content)
                pipe.flush()

    assert process.stdin and process.stdout and process.stderr
    fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    threading.Thread(target=feed, args=(process.stdin,), daemon=True).start()
    readers = [
        threading.Thread(target=forward, args=(pipe, kind), daemon=True)
        for pipe, kind in ((process.stdout, STDOUT), (process.stderr, STDERR))
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    stream.write(_packet(EXIT, bytes([process.wait() & 0xFF])))


def _packet(kind: int, data: bytes) -> bytes:
    return bytes([kind]) + struct.pack("<I", len(data)) + data


class _Sync:
    def __init__(self, stream: Stream, sandbox: Sandbox) -> None:
        self._stream = stream
        self._sandbox = sandbox

    def serve(self) -> None:
        while True:
            name, size = self._header()
            if name == b"QUIT":
                return
            argument = self._stream.read(size).decode()
            if name == b"STAT":
                self._stat(argument)
            elif name == b"SEND":
                self._receive_file(argument)
            else:
                self._fail(f"unknown command {name!r}")

    def _header(self) -> tuple[bytes, int]:
        header = self._stream.read(8)
        return header[:4], int.from_bytes(header[4:], "little")

    def _fail(self, why: str) -> None:
        encoded = why.encode()
        self._stream.write(b"FAIL" + struct.pack("<I", len(encoded)) + encoded)

    def _stat(self, path: str) -> None:
        try:
            found = self._sandbox.local(path).stat()
            answer = (found.st_mode, found.st_size & 0xFFFFFFFF, int(found.st_mtime))
        except OSError:
            answer = (0, 0, 0)
        self._stream.write(b"STAT" + struct.pack("<III", *answer))

    def _receive_file(self, argument: str) -> None:
        path, _, mode = argument.rpartition(",")
        local = self._sandbox.local(path)
        local.parent.mkdir(parents=True, exist_ok=True)  # the real one does this too
        problem, free_bytes = "", self._sandbox.free_bytes
        with local.open("wb") as file:
            while True:
                name, size = self._header()
                if name == b"DONE":
                    break
                content = self._stream.read(size)
                if file.tell() + size > free_bytes:
                    problem = "couldn't write to file: No space left on device"
                if not problem:
                    file.write(content)
        if problem:
            self._fail(problem)
            return
        local.chmod(stat.S_IMODE(int(mode)))
        self._stream.write(b"OKAY" + bytes(4))
