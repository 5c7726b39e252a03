"""A phone as a device to measure on: made fit, held steady, and described by its conditions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from amc_mobile.device import health
from amc_mobile.device.adb import AdbPhone
from amc_mobile.device.clock_mode import UNLOCKED, clock_mode
from amc_mobile.device.conditions import Conditions
from amc_mobile.device.host import core_ranges
from amc_mobile.device.phone import InstalledFile, PhoneRunner
from amc_mobile.device.phone_facts import PhoneFacts, PhoneState, read_facts, read_state
from amc_mobile.device.phone_lock import phone_lock
from amc_mobile.device.profile import DeviceProfile
from amc_mobile.device.runtime_library import RuntimeLibrary
from amc_mobile.device.user_folder import locks_folder
from amc_mobile.errors import InvalidConfig

DELEGATES = {"tflite": "XNNPACK", "litert": "XNNPACK", "onnxruntime": "CPUExecutionProvider"}
OnWait = Callable[[PhoneState, float], None]


class PhoneDevice:
    """Runs batches of models on a phone. Everything that touches the phone happens within `session()`.

    `runner`: the benchmark program for the phone's processor. `waived`: names of problems that do not matter.
    Raises InvalidConfig for a wrong thread count or waiver.
    """

    def __init__(
        self,
        adb: AdbPhone,
        profile: DeviceProfile,
        library: RuntimeLibrary,
        runner: Path,
        *,
        threads: int | None = None,
        mode: str = UNLOCKED,
        waived: Collection[str] = (),
        on_wait: OnWait | None = None,
    ) -> None:
        health.check_waivers(waived)
        self.threads = profile.threads if threads is None else threads
        if self.threads < 1:
            raise InvalidConfig(f"threads = {self.threads} must be at least 1", next_step="pass --threads 1")
        self.adb = adb
        self.profile = profile
        self.library = library
        self._runner_sha256 = hashlib.sha256(runner.read_bytes()).hexdigest()
        self._runner = PhoneRunner(
            adb, InstalledFile(runner, self._runner_sha256), InstalledFile(library.path, library.sha256)
        )
        self._wanted_mode = mode
        self._waived = frozenset(waived)
        self._on_wait = on_wait
        self._facts: PhoneFacts | None = None
        self._baseline: PhoneState | None = None
        self._mode = UNLOCKED

    @property
    def facts(self) -> PhoneFacts:
        if self._facts is None:
            self._facts = read_facts(self.adb)
        return self._facts

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores the runner is told to use; empty: the phone chooses."""
        return self.profile.cores_for(self.threads, self.facts.state.policies)

    @property
    def library_path(self) -> str:
        """The runtime library as a manifest names it."""
        return self._runner.library_path

    @contextmanager
    def session(self) -> Iterator[PhoneDevice]:
        """Takes the phone, waits until it is cool, checks it, holds its clocks, and gives everything back at the end.

        Raises PhoneBusy, PhoneUnfit naming the problems, PhoneDiskFull.
        """
        with ExitStack() as stack:
            stack.enter_context(phone_lock(self.adb.serial, locks_folder()))
            facts = self.facts
            state = self.cool_down()
            health.require_fit(health.problems(facts, state, self.profile), self._waived)
            self._mode = stack.enter_context(clock_mode(self.adb, facts.sdk, self._wanted_mode))
            self._runner.open()
            self._baseline = read_state(self.adb)
            yield self

    def run(self, manifest: str, files: Mapping[str, bytes], *, deadline_s: float) -> Iterator[str]:
        """Runs one batch; see PhoneRunner.run."""
        return self._runner.run(manifest, files, deadline_s=deadline_s)

    def cool_down(self) -> PhoneState:
        """Waits until the phone is neither hot nor throttled. Raises PhoneUnfit after the profile's longest wait."""
        return health.wait_until_cool(
            lambda: read_state(self.adb), self.profile, waived=self._waived, on_wait=self._on_wait
        )

    def require_steady(self) -> None:
        """Raises PhoneUnfit when heat has come over the phone since the session began: what was measured is suspect."""
        assert self._baseline is not None, "only within a session"
        found = health.drift(self._baseline, read_state(self.adb), self.cores, self.profile)
        health.require_fit(found, self._waived)

    def conditions(self) -> Conditions:
        """The library's hash covers the runner too: a latency is bound to both."""
        facts = self.facts
        governors = {policy.governor for policy in facts.state.policies if set(policy.cores) & set(self.cores)}
        both = hashlib.sha256(f"{self.library.sha256}{self._runner_sha256}".encode()).hexdigest()
        return Conditions(
            device=f"{facts.properties.get('ro.product.manufacturer', '')} {facts.model}".strip(),
            soc=facts.soc,
            os=f"Android {facts.android} {facts.properties.get('ro.build.fingerprint', '')}".strip(),
            runtime=self.library.runtime,
            runtime_version=self.library.version,
            library_sha256=both,
            delegate=DELEGATES[self.library.runtime],
            threads=self.threads,
            cores=core_ranges(self.cores) or "any",
            clock_mode=" ".join([self._mode, *sorted(governors)]),
        )
