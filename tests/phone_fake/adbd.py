"""The adb daemon of the fake phone: accepts the adb server, opens streams and hands them to services."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from itertools import count

from phone_fake.faults import Fault, Faults
from phone_fake.wire import AUTH, CLSE, CNXN, MAX_DATA, OKAY, OPEN, VERSION, WRTE, Message, read_message

DRIP_S = 0.05
SCANNED_PORTS = range(5555, 5586)  # a starting adb server connects to these by itself


class StreamClosed(Exception):
    """The other side closed the stream, or the connection is gone."""


class Stream:
    """One service in use. Reads and writes bytes; the fault of the service strikes as the bytes pass."""

    def __init__(self, connection: Connection, own_id: int, their_id: int, service: str) -> None:
        self.service = service
        self.own_id = own_id
        self.their_id = their_id
        self.received: queue.Queue[bytes | bytearray | None] = queue.Queue()
        self.fault: Fault | None = None
        self._connection = connection
        self._may_write = threading.Event()
        self._is_closed = threading.Event()
        self._parts: list[memoryview] = []
        self._available = 0
        self._passed = 0

    def acknowledged(self) -> None:
        self._may_write.set()

    def closed_by_other_side(self) -> None:
        self._is_closed.set()
        self._may_write.set()
        self.received.put(None)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises StreamClosed."""
        while self._available < size:
            part = self.received.get()
            if part is None:
                raise StreamClosed
            self._passed += len(part)
            self._strike_if_due()
            self._parts.append(memoryview(part))
            self._available += len(part)
            self._connection.send(Message(OKAY, self.own_id, self.their_id))
        taken = bytearray()
        while len(taken) < size:
            first = self._parts[0]
            wanted = size - len(taken)
            taken += first[:wanted]
            self._parts[:1] = [first[wanted:]] if wanted < len(first) else []
        self._available -= size
        return bytes(taken)

    def write(self, data: bytes) -> None:
        """Raises StreamClosed."""
        step = 1 if self.fault and self.fault.kind == "drip" else MAX_DATA // 4
        if self.fault and self.fault.kind in ("disconnect", "stall", "close"):
            step = max(1, min(step, self.fault.after_bytes - self._passed))
        for start in range(0, len(data), step):
            part = data[start : start + step]
            self._strike_if_due()
            if step == 1:
                self._is_closed.wait(DRIP_S)
            self._may_write.wait()
            if self._is_closed.is_set():
                raise StreamClosed
            self._may_write.clear()
            self._connection.send(Message(WRTE, self.own_id, self.their_id, part))
            self._passed += len(part)

    def close(self) -> None:
        if not self._is_closed.is_set():
            self._may_write.wait(5)
            self._connection.send(Message(CLSE, self.own_id, self.their_id))

    def _strike_if_due(self) -> None:
        fault = self.fault
        if fault is None or self._passed < fault.after_bytes:
            return
        if fault.kind == "disconnect":
            self._connection.close()
            raise StreamClosed
        if fault.kind == "close":
            self._connection.send(Message(CLSE, self.own_id, self.their_id))
            self._is_closed.set()
            raise StreamClosed
        if fault.kind == "stall":
            while not (self._connection.faults.mended.wait(0.05) or fault.released.is_set()):
                if self._is_closed.is_set():
                    raise StreamClosed


class Connection:
    """One adb server's connection."""

    def __init__(
        self, sock: socket.socket, faults: Faults, serve: Callable[[Stream], None], thawed: threading.Event
    ) -> None:
        self.faults = faults
        self._thawed = thawed
        self._socket = sock
        self._serve = serve
        self._streams: dict[int, Stream] = {}
        self._ids = count(1)
        self._send_lock = threading.Lock()

    def send(self, message: Message) -> None:
        self._thawed.wait()
        try:
            with self._send_lock:
                self._socket.sendall(message.encoded())
        except OSError as error:
            raise StreamClosed from error

    def run(self, banner: Callable[[], bytes], state: Callable[[], str]) -> None:
        """Answers until the connection ends."""
        try:
            while True:
                self._thawed.wait()
                self._handle(read_message(self._socket), banner, state)
        except (OSError, StreamClosed):
            pass
        finally:
            self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for stream in list(self._streams.values()):
            stream.closed_by_other_side()

    def _handle(self, message: Message, banner: Callable[[], bytes], state: Callable[[], str]) -> None:
        if message.command in (CNXN, AUTH):
            if state() == "unauthorized":
                self.send(Message(AUTH, 1, 0, bytes(20)))  # a token to sign; no signature is ever good enough
            elif state() == "device":
                self.send(Message(CNXN, VERSION, MAX_DATA, banner()))
        elif message.command == OPEN:
            stream = Stream(self, next(self._ids), message.arg0, message.data.rstrip(b"\0").decode())
            stream.fault = self.faults.strike(stream.service)
            self._streams[stream.own_id] = stream
            threading.Thread(target=self._serve_stream, args=(stream,), daemon=True).start()
        elif message.arg1 in self._streams:
            stream = self._streams[message.arg1]
            if message.command == OKAY:
                stream.acknowledged()
            elif message.command == WRTE:
                stream.received.put(message.data)
            elif message.command == CLSE:
                stream.closed_by_other_side()
                del self._streams[message.arg1]

    def _serve_stream(self, stream: Stream) -> None:
        try:
            self.send(Message(OKAY, stream.own_id, stream.their_id))
            stream.acknowledged()
            self._serve(stream)
            stream.close()
        except StreamClosed:
            pass


class FakeAdbd:
    """Listens on a port of its own. `state`: "device", "unauthorized", "offline" (never answers), "gone" (refuses)."""

    def __init__(self, faults: Faults, serve: Callable[[Stream], None], banner: Callable[[], bytes]) -> None:
        self.state = "device"
        self.thawed = threading.Event()  # while it is not set, connections are accepted and nothing is read or sent
        self.thawed.set()
        self._faults = faults
        self._serve = serve
        self._banner = banner
        self._connections: list[Connection] = []
        self._listener = listen()
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def disconnect(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections.clear()

    def stop(self) -> None:
        self.state = "gone"
        self.thawed.set()
        self._listener.close()
        self.disconnect()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            if self.state == "gone":
                sock.close()
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock, self._faults, self._serve, self.thawed)
            self._connections.append(connection)
            threading.Thread(target=connection.run, args=(self._banner, lambda: self.state), daemon=True).start()


def listen() -> socket.socket:
    """On a port of this computer that no starting adb server looks at."""
    while True:
        listener = socket.create_server(("127.0.0.1", 0))
        if listener.getsockname()[1] not in SCANNED_PORTS:
            return listener
        listener.close()
