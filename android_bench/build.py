"""Builds amc-bench: with zig's compiler (PyPI `ziglang`) for phones and Linux on Arm, with cc for this computer.

Stands alone, with nothing but the standard library, because the build hook of the wheel runs it before anything else of
this project is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
DIST = FOLDER.parent / "dist"
FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra")
PAGE_BYTES = 16384  # phones with Android 15 may have such pages

# All that the runner calls. A function missing here fails the link: each has to be one whose ABI is the same in musl,
# whose headers are used, and in bionic, which is what it meets on the phone.
LIBC_FUNCTIONS = (
    "__libc_init", "_exit", "alarm", "calloc", "clock_gettime", "close", "dup", "dup2", "free", "getenv", "getpid",
    "getrusage", "malloc", "memcpy", "memset", "nanosleep", "open", "read", "realloc", "sched_setaffinity", "signal",
    "snprintf", "sscanf", "strcat", "strchr", "strcmp", "strlen", "strncmp", "strrchr", "strspn", "strstr", "strtod",
    "strtol", "vsnprintf", "write",
)  # fmt: skip
LIBDL_FUNCTIONS = ("dlerror", "dlopen", "dlsym")


class BuildFailed(Exception):
    """A compiler is missing, or it refused."""


def zig_folder() -> Path | None:
    """The installed `ziglang` package, or None."""
    spec = importlib.util.find_spec("ziglang")
    return Path(spec.origin).parent if spec and spec.origin else None


def run(command: list[str], **environment: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)
    except OSError as error:
        raise BuildFailed(f"{command[0]} cannot be started ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{command[0]} did not finish in 10 minutes") from error
    if done.returncode:
        raise BuildFailed(f"{shlex.join(command)}\n{done.stderr}")


def sources() -> list[str]:
    return [str(path) for path in sorted(FOLDER.glob("*.c"))]


def zig_cc(arguments: list[str], scratch: Path) -> None:
    if zig_folder() is None:
        raise BuildFailed("the package ziglang is not installed: pip install ziglang")
    # zig writes beside the sources otherwise.
    run([sys.executable, "-m", "ziglang", "cc", *arguments], ZIG_LOCAL_CACHE_DIR=str(scratch / "zig-cache"))


def build_android(output: Path) -> Path:
    """An arm64 position-independent executable for Android (API 24 and later). Returns `output`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = zig_folder()
    headers = [
        f"-I{folder}/lib/libc/include/{name}" for name in ("aarch64-linux-musl", "generic-musl", "any-linux-any")
    ]
    target = ["-target", "aarch64-linux-musl", "-nostdlib", "-fno-sanitize=all", "-fno-stack-protector", "-O2"]
    # Android keeps its shadow call stack in x18.
    target.append("-ffixed-x18")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        stubs = []
        for library, functions in (("libc.so", LIBC_FUNCTIONS), ("libdl.so", LIBDL_FUNCTIONS)):
            # Empty functions under the phone's sonames, to link against; they stay on this computer.
            source, stub = scratch / f"{library}.c", scratch / library
            source.write_text("".join(f"void {name}(void) {{}}\n" for name in functions))
            quiet = ["-fno-builtin", "-Wno-everything"]
            zig_cc([*target, *quiet, "-shared", f"-Wl,-soname,{library}", str(source), "-o", str(stub)], scratch)
            stubs.append(str(stub))
        link = [
            "-pie",
            "-Wl,-dynamic-linker,/system/bin/linker64",
            f"-Wl,-z,max-page-size={PAGE_BYTES}",
            "-Wl,--hash-style=both",
            "-Wl,--no-undefined",
            "-Wl,-s",
        ]
        start = str(FOLDER / "without_ndk" / "start.c")
        zig_cc([*target, *FLAGS, "-fPIE", *headers, *link, *sources(), start, *stubs, "-o", str(output)], scratch)
    return output


def build_linux_arm64(output: Path) -> Path:
    """The same program for Linux on Arm with glibc, to be tried under qemu. Returns `output`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        # An old glibc's symbols: the executable then runs with whatever sysroot is at hand.
        target = ["-target", "aarch64-linux-gnu.2.28", "-fno-sanitize=all"]
        zig_cc([*target, *FLAGS, *sources(), "-ldl", "-o", str(output)], Path(temporary))
    return output


def build_host(output: Path) -> Path:
    """For this computer, with $CC or cc. Returns `output`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    run([*shlex.split(os.environ.get("CC", "cc")), *FLAGS, *sources(), "-ldl", "-o", str(output)])
    return output


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/build-android-bench", description="Builds amc-bench for a phone.")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--host", action="store_true", help="for this computer instead, with $CC or cc")
    which.add_argument("--linux-arm64", action="store_true", help="for Linux on Arm instead, to be run under qemu")
    parser.add_argument("--output", type=Path, help="the executable; default: under dist/")
    options = parser.parse_args()
    if options.host:
        build, output = build_host, DIST / "host" / "amc-bench"
    elif options.linux_arm64:
        build, output = build_linux_arm64, DIST / "linux" / "arm64" / "amc-bench"
    else:
        build, output = build_android, DIST / "android" / "arm64-v8a" / "amc-bench"
    try:
        print(build(options.output or output))
    except BuildFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
