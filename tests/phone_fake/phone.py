"""The fake phone and a private adb server to attach it to."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path

import adbutils

from phone_fake.adbd import SCANNED_PORTS, FakeAdbd
from phone_fake.faults import Faults
from phone_fake.sandbox import Sandbox
from phone_fake.services import serve

FEATURES = "shell_v2,cmd,stat_v2,ls_v2,fixed_push_mkdir"


class FakePhone:
    """`kind`: a folder of `state/`. The phone is not attached before `PrivateAdbServer.attach`."""

    def __init__(self, folder: Path, kind: str = "pixel_8") -> None:
        self.sandbox = Sandbox(folder, kind)
        self.faults = Faults()
        self.features = FEATURES
        self._adbd = FakeAdbd(self.faults, lambda stream: serve(stream, self.sandbox), self._banner)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self._adbd.port}"

    @property
    def state(self) -> str:
        return self._adbd.state

    def become(self, state: str) -> None:
        """Changes to "device", "unauthorized", "offline" or "gone"; connections there are break."""
        self._adbd.state = state
        self._adbd.disconnect()

    def unplug(self) -> None:
        self.become("gone")

    def plug_in(self) -> None:
        self.become("device")

    def freeze(self) -> None:
        """adbd answers no more, and adb does not notice; what runs on the phone goes on."""
        self._adbd.thawed.clear()

    def thaw(self) -> None:
        self._adbd.thawed.set()

    def reboot(self) -> None:
        """All processes end and the boot id changes; files stay."""
        self._adbd.state = "gone"
        self._adbd.disconnect()
        self.sandbox.kill_all()
        self.sandbox.new_boot_id()
        self._adbd.state = "device"

    def stop(self) -> None:
        self.faults.mend()
        self._adbd.stop()
        self.sandbox.kill_all()

    def _banner(self) -> bytes:
        names = "".join(f"ro.product.{key}=fake;" for key in ("name", "model", "device"))
        return f"device::{names}features={self.features}".encode()


class PrivateAdbServer:
    """The real adb server on a port of its own, with a home of its own for its keys."""

    def __init__(self, home: Path) -> None:
        self.port = _free_port()
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        environment = {
            **os.environ,
            "HOME": str(self._home),
            "ADB_MDNS": "0",
            "ADB_USB": "0",
            "ANDROID_USER_HOME": str(self._home),
        }
        with (self._home / "adb_server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [adbutils.adb_path(), "-L", f"tcp:localhost:{self.port}", "nodaemon", "server"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
            )
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        self.kill()
        raise RuntimeError("the adb server did not start")

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ensure(self) -> None:
        """Starts the server again where nothing answers on its port."""
        with socket.socket() as probe:
            is_there = probe.connect_ex(("127.0.0.1", self.port)) == 0
        if not is_there:
            self.start()

    def stop(self) -> None:
        """Also ends a server that the code under test started on this port."""
        self.kill()
        with socket.socket() as connection:
            connection.settimeout(2)
            if connection.connect_ex(("127.0.0.1", self.port)) == 0:
                connection.sendall(b"0009host:kill")
                connection.recv(4)

    def attach(self, phone: FakePhone) -> str:
        """Connects the server to the phone and returns what adb says."""
        return adbutils.AdbClient("127.0.0.1", self.port, socket_timeout=20).connect(phone.serial)

    def state_of(self, phone: FakePhone) -> str:
        """What adb lists of the phone, e.g. "device"; empty where it lists none."""
        listed = adbutils.AdbClient("127.0.0.1", self.port, socket_timeout=20).list()
        return next((str(info.state) for info in listed if info.serial == phone.serial), "")

    def detach(self, phone: FakePhone) -> None:
        adbutils.AdbClient("127.0.0.1", self.port, socket_timeout=20).disconnect(phone.serial)


def _free_port() -> int:
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        if port not in SCANNED_PORTS:
            return port
