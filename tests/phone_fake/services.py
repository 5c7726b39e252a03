"""What the fake phone's adbd offers: the shell with protocol v2."""

from __future__ import annotations

import contextlib
import fcntl
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
