"""The first process of the sandbox that Debian's adbd runs in: mounts, network, adbd, and a relay to the outside.

Started by `adbd_sandbox`, inside new user, network, mount and pid namespaces; needs nothing but the standard library.
With its end the kernel ends all that runs in the sandbox. Lines on stdin: `unplug`, `plug`; the end of stdin ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

# In the private network namespace, which nothing else is in. Below 1024, since adbd also listens on a vsock, which
# knows no network namespaces: there such a port is refused to it.
PORT = 555
ADBD = "/usr/lib/android-sdk/platform-tools/adbd"
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
START_TIMEOUT_S = 20
# ELF, 64 bits, little-endian, an executable or a shared object, for AArch64.
MAGIC = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00"
MASK = b"\xff" * 7 + bytes(9) + b"\xfe\xff\xff\xff"


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def mount_all(root: Path, debian: Path, disk_mib: int) -> None:
    mount("--bind", root, root)  # a mount point of its own, for which df then answers
    mount("--bind", debian / "usr", root / "usr")
    mount("-t", "proc", "proc", root / "proc")
    mount("--bind", root / "state" / "cpuinfo.txt", root / "proc" / "cpuinfo")
    for name in DEVICES:
        (root / "dev" / name).touch()
        mount("--bind", Path("/dev") / name, root / "dev" / name)
    if disk_mib:
        mount("-t", "tmpfs", "-o", f"size={disk_mib}m", "tmpfs", root / "data" / "local" / "tmp")


def register_emulator(root: Path, emulator: str) -> None:
    folder = root / "proc" / "sys" / "fs" / "binfmt_misc"
    mount("-t", "binfmt_misc", "binfmt_misc", folder)
    escaped = ["".join(f"\\x{byte:02x}" for byte in text) for text in (MAGIC, MASK)]
    # F: the emulator is opened now, outside of the sandbox's root.
    (folder / "register").write_text(f":aarch64:M::{escaped[0]}:{escaped[1]}:{emulator}:F")


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | IFF_UP))


def start_adbd(root: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {
        "PATH": "/bin:/system/bin",
        "ADBD_PORT": str(PORT),
        "PHONE": "",  # the folder of the stand-ins' answers, as they see it
        "HOME": "/",
        "TMPDIR": "/data/local/tmp",
    }

    def enter() -> None:
        os.chroot(root)
        os.chdir("/")

    with log.open("wb") as file:
        return subprocess.Popen(
            [ADBD], env=environment, preexec_fn=enter, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def wait_for_adbd(adbd: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and adbd.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1):
            return
        time.sleep(0.02)
    sys.exit("adbd does not listen")


class Relay:
    """Passes connections to a socket of the outside on to adbd."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.is_plugged = True
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for pair in self._pairs:
            for sock in pair:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def _accept(self) -> None:
        while True:
            outside, _ = self._listener.accept()
            if not self.is_plugged:
                outside.close()
                continue
            inside = socket.create_connection(("127.0.0.1", PORT))
            self._pairs.append((outside, inside))
            for source, target in ((outside, inside), (inside, outside)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=pump, args=(source, target), daemon=True).start()


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 18):
            target.sendall(data)
    for sock in (source, target):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def reap_orphans(adbd: subprocess.Popen[bytes]) -> None:
    """What a shell of the phone leaves behind becomes a child of this process."""
    while adbd.poll() is None:
        ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
        if ended is not None and ended.si_pid != adbd.pid:
            os.waitpid(ended.si_pid, 0)
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("listener", type=int, help="file descriptor of a listening socket of the outside")
    parser.add_argument("--debian", type=Path, required=True, help="folder with the unpacked packages")
    parser.add_argument("--emulator", required=True, help="qemu-aarch64-static")
    parser.add_argument("--disk-mib", type=int, default=0, help="a disk of this size on /data/local/tmp; 0: the host's")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    mount_all(options.root, options.debian, options.disk_mib)
    register_emulator(options.root, options.emulator)
    raise_loopback()
    adbd = start_adbd(options.root, options.root / "adbd.log")
    wait_for_adbd(adbd)
    threading.Thread(target=reap_orphans, args=(adbd,), daemon=True).start()
    relay = Relay(socket.socket(fileno=options.listener))
    print("ready", flush=True)
    for line in sys.stdin:
        relay.is_plugged = line.strip() == "plug"
        if not relay.is_plugged:
            relay.cut()
        print(line, end="", flush=True)


if __name__ == "__main__":
    main()
