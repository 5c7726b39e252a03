"""A phone made of Android's real adbd, as Debian packages it, and an emulated arm64 processor.

It lives in namespaces of its own: a private network (adbd listens on every interface and asks for no key), a folder for
a root, mksh and toybox as on a phone, and arm64 programs that just run. The facts of the phone are the fake phone's.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import arm64_sandbox
from arm64_sandbox import DEBIAN, FETCH
from phone_fake.adbd import listen
from phone_fake.sandbox import Sandbox

HERE = Path(__file__).parent
ADBD = DEBIAN / "usr/lib/android-sdk/platform-tools/adbd"
NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]
# Containers often hide parts of /proc, and then no new one may be mounted.
TRIED_MOUNTS = "mount -t proc proc /proc && mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc"
OLDEST_KERNEL = (6, 7)  # whose user namespaces have a binfmt_misc of their own
TOYBOX = "/usr/bin/toybox"
BUSYBOX = "/usr/bin/busybox"
BUSYBOX_FILLS_IN = ("awk", "dd", "tr")  # which an Android's toybox has and Debian's has not
NOT_FAKED = ("cat", "df", "tar")  # toybox's own answer here


@functools.cache
def missing() -> str:
    """Why there is no such phone here, or ""."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "needs Linux on x86_64"
    if not ADBD.exists():
        return f"no adbd in {DEBIAN}: {FETCH}"
    kernel = re.match(r"(\d+)\.(\d+)", platform.release())
    if kernel is None or (int(kernel[1]), int(kernel[2])) < OLDEST_KERNEL:
        return f"needs Linux {OLDEST_KERNEL[0]}.{OLDEST_KERNEL[1]} or newer"
    if shutil.which("unshare") is None:
        return "needs unshare (util-linux)"
    tried = subprocess.run([*NAMESPACES, "sh", "-c", TRIED_MOUNTS], capture_output=True, text=True, timeout=20)
    if tried.returncode:
        return f"may not make namespaces with mounts of their own: {tried.stderr.strip()}"
    return arm64_sandbox.missing()


class RealAdbd:
    """A phone to attach with `PrivateAdbServer.attach`. `sandbox`: its files and what its programs answer.

    `disk_mib`: the size of the disk for /data/local/tmp, which then cannot be seen from outside; 0: a folder.
    """

    def __init__(self, folder: Path, *, disk_mib: int = 0) -> None:
        self.sandbox = Sandbox(folder, "pixel_8")
        # A program gets EINVAL for cores that this computer lacks, and the profile of a Pixel 8 names some.
        self.sandbox.edit("getprop.txt", "[Pixel 8]", "[Pixel 7]")
        self.sandbox.edit("getprop.txt", "[shiba]", "[panther]")
        self.sandbox.set_clusters({tuple(sorted(os.sched_getaffinity(0))): 2_000_000})
        _fill(folder)
        listener = listen()
        self._port = listener.getsockname()[1]
        command = [
            *NAMESPACES, sys.executable, str(HERE / "namespace_init.py"), str(folder), str(listener.fileno()),
            "--debian", str(DEBIAN), "--emulator", str(arm64_sandbox.EMULATOR), "--disk-mib", str(disk_mib),
        ]  # fmt: skip
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[listener.fileno()]
        )
        listener.close()
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self.stop()
            raise RuntimeError(f"the sandbox did not start: {self.log()}")

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self._port}"

    def log(self) -> str:
        """What adbd printed."""
        file = self.sandbox.local("/adbd.log")
        return file.read_text(errors="replace") if file.exists() else ""

    def unplug(self) -> None:
        self._tell("unplug")

    def plug_in(self) -> None:
        self._tell("plug")

    def stop(self) -> None:
        """All of the phone's processes end with the sandbox."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{what}\n"


def _fill(root: Path) -> None:
    """The rest of a root folder: the programs of a phone, and C libraries for arm64."""
    for name in ("system/bin", "dev", "usr", "lib/aarch64-linux-gnu"):
        (root / name).mkdir(parents=True)
    (root / "lib64").symlink_to("usr/lib64")
    (root / "bin/sh").symlink_to("/usr/bin/mksh")
    (root / "system/bin/sh").symlink_to("/usr/bin/mksh")
    for program in NOT_FAKED:
        (root / "bin" / program).unlink()
    listed = subprocess.run([str(DEBIAN / TOYBOX.lstrip("/"))], capture_output=True, text=True, timeout=20)
    for program in listed.stdout.split():
        (root / "system/bin" / program).symlink_to(TOYBOX)
    for program in BUSYBOX_FILLS_IN:
        if not (root / "system/bin" / program).is_symlink():
            (root / "system/bin" / program).symlink_to(BUSYBOX)
    libraries = root / "lib/aarch64-linux-gnu"
    for library in arm64_sandbox.CROSS_LIBC.glob("*.so*"):
        if not library.is_dir():
            shutil.copy(library, libraries)
    # Android's loader and C library by name, glibc's by nature.
    for link in ("lib/ld-linux-aarch64.so.1", "system/bin/linker64"):
        (root / link).symlink_to("/lib/aarch64-linux-gnu/ld-linux-aarch64.so.1")
    for library in arm64_sandbox.make_bionic(root / "bionic").glob("*.so"):
        shutil.copy(library, libraries)
