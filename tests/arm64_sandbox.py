"""What it takes to run arm64 programs here: an emulator, a C library, and /proc and /sys as on a phone."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
FETCH = "scripts/fetch-test-tools"
TOOLS = Path(os.environ.get("AMC_MOBILE_TEST_TOOLS", ROOT / ".test-tools"))  # where FETCH puts them
DEBIAN = TOOLS / "debian"
LIBRARIES = TOOLS / "arm64"  # of the runtimes


def emulator(architecture: str) -> str | None:
    """A statically linked qemu for programs of an architecture, the fetched one before the system's."""
    fetched = DEBIAN / "usr" / "bin" / f"qemu-{architecture}"
    return str(fetched) if fetched.exists() else shutil.which(f"qemu-{architecture}-static")


EMULATOR = emulator("aarch64")
# Debian: libc6-arm64-cross, libstdc++6-arm64-cross
_cross = Path("usr/aarch64-linux-gnu/lib")
CROSS_LIBC = DEBIAN / _cross if (DEBIAN / _cross).is_dir() else Path("/") / _cross
CORES = 4

CPU_INFO = """processor\t: {core}
BogoMIPS\t: 26.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd05
CPU revision\t: 0

"""

# Bionic's start function, on top of glibc: enough to run the phone's executable without a phone.
BIONIC_START = """
#include <stdlib.h>
void __libc_init(void *raw, void (*on_exit)(void), int (*run)(int, char **, char **), const void *constructors) {
    long *block = raw;
    char **arguments = (char **)(block + 1);
    (void)on_exit, (void)constructors;
    exit(run((int)block[0], arguments, arguments + block[0] + 1));
}
"""


def missing() -> str:
    """Why nothing can be run, or ""."""
    if EMULATOR is None:
        return f"no qemu-aarch64: {FETCH}"
    if not (CROSS_LIBC / "libstdc++.so.6").exists():
        return f"no arm64 C library: {FETCH}"
    if importlib.util.find_spec("ziglang") is None:
        return "needs the package ziglang"
    return ""


def fetch_hint(reasons: Iterable[str]) -> str:
    """How to get what tests were skipped for, from the reasons of all that were; or ""."""
    count = sum(FETCH in reason for reason in reasons)
    if not count:
        return ""
    tests = "1 test was" if count == 1 else f"{count} tests were"
    return f"{tests} skipped for want of tools that {FETCH} fetches on Debian (no root needed; 100 MiB in .test-tools)"


def zig(*arguments: str) -> None:
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-linux-gnu.2.28", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def build(*options: str, output: Path) -> Path:
    command = [sys.executable, str(ROOT / "android_bench" / "build.py"), *options, "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return output


def make_sysroot(folder: Path) -> Path:
    """A root as an emulated program sees it. Runtimes look up the processor there, and crash where it is an x86's."""
    (folder / "proc").mkdir(parents=True)
    (folder / "proc" / "cpuinfo").write_text("".join(CPU_INFO.format(core=core) for core in range(CORES)))
    cpu = folder / "sys" / "devices" / "system" / "cpu"
    cpu.mkdir(parents=True)
    for name in ("possible", "present", "online"):
        (cpu / name).write_text(f"0-{CORES - 1}\n")
    (cpu / "kernel_max").write_text("7\n")
    for core in range(CORES):
        topology, frequency = cpu / f"cpu{core}" / "topology", cpu / f"cpu{core}" / "cpufreq"
        topology.mkdir(parents=True)
        frequency.mkdir()
        (topology / "core_id").write_text(f"{core}\n")
        (topology / "physical_package_id").write_text("0\n")
        (topology / "core_siblings_list").write_text(f"0-{CORES - 1}\n")
        (topology / "thread_siblings_list").write_text(f"{core}\n")
        (frequency / "cpuinfo_max_freq").write_text("1500000\n")
        (frequency / "cpuinfo_min_freq").write_text("300000\n")
    (folder / "lib").symlink_to(CROSS_LIBC)
    # Android's loader by name, glibc's by nature.
    loader = folder / "system" / "bin" / "linker64"
    loader.parent.mkdir(parents=True)
    shutil.copy(CROSS_LIBC / "ld-linux-aarch64.so.1", loader)
    return folder


def make_bionic(folder: Path) -> Path:
    """A folder with libraries under bionic's names that lead to glibc."""
    folder.mkdir()
    (folder / "start.c").write_text(BIONIC_START)
    (folder / "empty.c").write_text("int amc_bench_test_empty;\n")
    for soname, source in (("libc.so", "start.c"), ("libdl.so", "empty.c")):
        zig("-shared", f"-Wl,-soname,{soname}", str(folder / source), "-o", str(folder / soname))
    return folder


def emulated(executable: Path, sysroot: Path, libraries: Path | None = None) -> list[str]:
    """The command that runs an executable in the sandbox; the manifest's path is to follow."""
    search = ["-E", f"LD_LIBRARY_PATH={libraries}"] if libraries else []
    return [str(EMULATOR), "-L", str(sysroot), *search, str(executable)]
