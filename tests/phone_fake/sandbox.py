"""The fake phone's files and programs: a folder on this computer.

Commands run in this computer's /bin/sh with the phone's absolute paths turned into paths of the folder, and with small
programs in front of PATH that answer for Android's: getprop, dumpsys, cmd, settings, svc, df; tar and
cat on a full disk.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

STATE = Path(__file__).parent / "state"
PHONE_PATHS = re.compile(
    r"(?<![\w/.-])/(data/local/tmp|sys/devices/system/cpu|proc/cpuinfo|proc/stat|proc/sys/kernel/random)\b"
)
PROGRAMS = {
    "getprop": 'exec cat "$PHONE/state/getprop.txt"',
    "dumpsys": 'file="$PHONE/state/dumpsys_$1.txt"\n[ ! -e "$file" ] || exec cat "$file"\n'
    'echo "Can\'t find service: $1"',
    "cmd": 'case "$1 $2" in\n'
    '"power set-fixed-performance-mode-enabled") echo "$3" > "$PHONE/state/fixed_performance";;\n'
    '*) echo "cmd: Can\'t find service: $1" >&2; exit 20;;\nesac',
    "settings": 'file="$PHONE/state/setting_$3"\ncase "$1" in\n'
    'get) if [ -e "$file" ]; then exec cat "$file"; else echo null; fi;;\nput) echo "$4" > "$file";;\n'
    'delete) rm -f "$file"; echo "Deleted 1 rows";;\nesac',
    "svc": 'if [ "$1 $2" = "power stayon" ]; then\n'
    '[ "$3" = true ] && echo 7 > "$PHONE/state/setting_stay_on_while_plugged_in"\n'
    '[ "$3" = false ] && echo 0 > "$PHONE/state/setting_stay_on_while_plugged_in"\nfi\nexit 0',
    "df": 'read -r free < "$PHONE/state/free_kib"\n'
    'echo "Filesystem      1K-blocks     Used Available Use% Mounted on"\n'
    'echo "/dev/block/dm-9 112222333 $((112222333 - free)) $free  50% /data"',
    "cat": '[ $# -eq 0 ] || exec /bin/cat "$@"\nread -r free < "$PHONE/state/free_kib"\n'
    'head -c $((free * 1024)); [ "$(head -c 1 | wc -c)" -gt 0 ] || exit 0\n'
    "echo 'cat: xwrite: No space left on device' >&2; exit 1",
    "tar": 'read -r free < "$PHONE/state/free_kib"\n'
    'if [ "$free" -lt 16 ]; then n=0; while [ $n -lt 40 ]; do n=$((n + 1))\n'
    "echo \"tar: can't write 'models/model-$n': No space left on device\" >&2; done; exit 1; fi\n"
    'exec /usr/bin/tar "$@"',
}


class Sandbox:
    """A folder that stands for a phone's file system. `state`: what the phone's programs answer, as text files."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self._marker = f"AMC_FAKE_PHONE={uuid.uuid4().hex}"
        shutil.copytree(STATE / kind, self.state)
        for name in ("data/local/tmp", "bin", "proc/sys/kernel/random"):
            (folder / name).mkdir(parents=True)
        self.write("proc/cpuinfo", (self.state / "cpuinfo.txt").read_text())
        for line in (self.state / "cpufreq.txt").read_text().splitlines():
            path, _, value = line.partition(":")
            self.write(f"sys/devices/system/cpu/{path}", value + "\n")
        for name, body in PROGRAMS.items():
            program = folder / "bin" / name
            program.write_text(f"#!/bin/sh\n{body}\n")
            program.chmod(0o755)
        self.new_boot_id()

    def write(self, path: str, content: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)

    def edit(self, name: str, old: str, new: str) -> None:
        """Changes what a program of the phone answers."""
        path = self.state / name
        text = path.read_text()
        assert old in text, f"{name} does not hold {old!r}"
        path.write_text(text.replace(old, new))

    def set_clusters(self, clusters: Mapping[tuple[int, ...], int]) -> None:
        """Other core clusters: cores -> maximum clock in kHz. Programs run here: name cores that this computer has."""
        folder = "sys/devices/system/cpu/cpufreq"
        shutil.rmtree(self.folder / folder)
        for cores, max_khz in clusters.items():
            policy = f"{folder}/policy{cores[0]}"
            self.write(f"{policy}/related_cpus", " ".join(map(str, cores)) + "\n")
            self.write(f"{policy}/scaling_governor", "schedutil\n")
            for name in ("cpuinfo_max_freq", "scaling_max_freq"):
                self.write(f"{policy}/{name}", f"{max_khz}\n")

    def set_neighbours(self, percent: int) -> None:
        """What another program takes of the second of two cores from now on; time goes by whenever a shell sleeps."""
        (self.state / "neighbours").write_text(f"{percent}\n")
        program = self.folder / "bin" / "sleep"
        program.write_text(
            "#!/bin/sh\n"
            'read -r percent <"$PHONE/state/neighbours"; read -r cpu busy rest <"$PHONE/state/second" || busy=0\n'
            'read -r passed <"$PHONE/state/passed" || passed=0\n'
            "passed=$((passed + 100)); busy=$((busy + percent))\n"
            'echo $passed >"$PHONE/state/passed"; echo "cpu1 $busy 0 0 $((passed - busy)) 0" >"$PHONE/state/second"\n'
            'echo "cpu0 0 0 0 $passed 0" | cat - "$PHONE/state/second" >"$PHONE/proc/stat.new"\n'
            'mv "$PHONE/proc/stat.new" "$PHONE/proc/stat"; exec /usr/bin/sleep "$@"\n'
        )
        program.chmod(0o755)
        if not self.local("/proc/stat").exists():
            self.write("proc/stat", "cpu0 0 0 0 0 0\ncpu1 0 0 0 0 0\n")

    def new_boot_id(self) -> None:
        self.write("proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n")

    @property
    def free_bytes(self) -> int:
        return int((self.state / "free_kib").read_text()) * 1024

    @free_bytes.setter
    def free_bytes(self, size: int) -> None:
        (self.state / "free_kib").write_text(f"{size // 1024}\n")

    def local(self, path: str) -> Path:
        """Where a file of the phone lies on this computer."""
        return self.folder / path.lstrip("/")

    def start_shell(self, script: str) -> subprocess.Popen[bytes]:
        name, _, value = self._marker.partition("=")
        environment = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "PHONE": str(self.folder),
            "AMC_BENCH_CPU_FOLDER": f"{self.folder}/sys/devices/system/cpu",
            name: value,
        }
        script = PHONE_PATHS.sub(lambda match: str(self.folder) + match.group(0), script)
        return subprocess.Popen(
            ["/bin/sh", "-c", script],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def processes(self) -> list[int]:
        """The pids of what runs on the phone: those with this sandbox's marker in their environment."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and self._marker.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def wait_until_idle(self, limit_s: float = 20) -> list[int]:
        """Waits for what ends by itself; the pids of what has not then."""
        end = time.monotonic() + limit_s
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.02)
        return left

    def kill_all(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
