"""An attached phone as a device: chosen by profile and serial, held for a session, measured on in batches."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from amc_mobile import store
from amc_mobile.device import phone_state
from amc_mobile.device.adb import AdbPhone, AdbServer, AttachedPhone, choose_phone, remedy
from amc_mobile.device.conditions import Conditions, core_ranges
from amc_mobile.device.device import Heat, Job, Neighbourhood, Neighbours, OnNeighbours, Pass, Timing
from amc_mobile.device.layout import OnnxLayout, questions
from amc_mobile.device.layout import read as read_layout
from amc_mobile.device.libraries import RuntimeLibrary
from amc_mobile.device.phone_output import parse_core_list
from amc_mobile.device.phone_runner import CLEAN_UP, InstalledFile, PhoneRunner
from amc_mobile.device.phone_state import (
    UNLOCKED,
    PhoneFacts,
    PhoneState,
    clock_mode,
    held_mode,
    note_caps,
    noted_caps,
    phone_lock,
    read_facts,
    read_neighbours,
    read_properties,
    read_state,
)
from amc_mobile.device.profiles import DeviceProfile, layouts_folder, matching_profiles, profiles_folder
from amc_mobile.device.runner import (
    BenchError,
    BenchEvent,
    BenchGraph,
    BenchManifest,
    BenchModel,
    BenchPair,
    BenchResult,
    BenchStart,
)
from amc_mobile.errors import (
    AmbiguousDevice,
    CorruptFile,
    DeviceError,
    DeviceUnavailable,
    InvalidConfig,
    InvalidInput,
    PhoneUnfit,
    RunnerFailed,
)
from amc_mobile.formats import ONNX, PHONE_RUNTIMES

AWAKE = "Awake"
LAYOUT = "layout"  # name of the model that asks for it, and of the file that answers
LAYOUT_FORMAT_VERSION = 1  # 1: the text of an OnnxLayout
LAYOUT_DEADLINE_S = 60
TRIAL = "trial"
TRIAL_DEADLINE_S = 30
ONCE = Timing(samples=1, warmup_runs=0, min_samples=1)
STATE_VALID_S = 3.0  # what was just read with the facts is not read again

# Loading a model and its first inference, which no timing bounds; the runner is ended only when it hangs.
LOAD_ALLOWANCE_S = 5.0
MODEL_ALLOWANCE_S = 30.0  # one model that loads slowly, and whose fewest samples take longer than its timing allows
START_ALLOWANCE_S = 60.0


class PhoneDevice:
    """Makes passes on a phone in batches, within `session()`. A batch is one start of the runner, whose cost must be
    small against the measuring.

    `runner`: the benchmark program for the phone's processor. `waived`: names of problems that do not matter.
    Raises InvalidConfig for a wrong thread count or waiver.
    """

    jobs_per_batch = 1200

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
        on_wait: phone_state.OnWait | None = None,
        on_neighbours: OnNeighbours | None = None,
    ) -> None:
        phone_state.check_waivers(waived)
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
        self._mode = mode
        self._waived = frozenset(waived)
        self._on_wait = on_wait
        self._facts: PhoneFacts | None = None
        self._facts_read_s = -math.inf
        self._baseline: PhoneState | None = None
        self._paths: dict[str, str] = {}  # of models on the phone
        self._layout: str | None = None
        self._caps: Mapping[str, int] | None = None
        self._is_held = False  # a session is under way
        self._screen = ""  # of this session: the first that was not AWAKE, where it was seen
        self._neighbourhood = Neighbourhood(lambda: read_neighbours(adb), profile.quiet_wait_s, on_neighbours)

    @property
    def facts(self) -> PhoneFacts:
        if self._facts is None:
            self._facts = read_facts(self.adb)
            self._facts_read_s = time.monotonic()
        return self._facts

    @property
    def cores(self) -> tuple[int, ...]:
        """The cores that the runner is to use; empty: the phone chooses."""
        return self.profile.cores_for(self.threads, self.facts.state.policies)

    @contextmanager
    def session(self) -> Iterator[PhoneDevice]:
        """Takes the phone, waits until it is cool, checks it, holds its clocks, and gives everything back at the end.

        Raises PhoneBusy, PhoneUnfit naming the problems, PhoneDiskFull.
        """
        with ExitStack() as stack:
            stack.enter_context(phone_lock(self.adb.serial))
            facts = self.facts
            self._baseline = None
            self._is_held = True
            stack.callback(setattr, self, "_is_held", False)
            state = self.cool_down()
            phone_state.require_fit(phone_state.problems(facts, state, self.profile), self._waived)
            held = stack.enter_context(clock_mode(self.adb, facts.sdk, self._mode, run=self._open, at_end=CLEAN_UP))
            self._paths.clear()
            if held == UNLOCKED and self._baseline and phone_state.clock_limits(self._baseline, self.cores, self._caps):
                self._baseline = self._wait(
                    lambda state, cooling: phone_state.clock_limits(state, self.cores, self._clock_caps())
                )
            self._leave_alone()
            yield self

    def _open(self, script: str) -> None:
        self._baseline = self._runner.open(script)
        self._screen = ""
        self._see(self._baseline)

    def unfinished(self) -> str:
        """The plan of a batch that a killed process left on the phone, else "". `bench` with the same models takes its
        results, and waits for those that are still to come, instead of measuring again; within a session, once."""
        return self._runner.unfinished()

    def bench(
        self,
        entries: Sequence[BenchModel | BenchPair],
        files: Mapping[str, bytes],
        timing: Timing,
        *,
        deadline_s: int,
        plan: str = "",
        graph_path: str = "",
        model_deadline_s: int = 0,
        labels: Sequence[str] = (),
    ) -> Generator[BenchEvent, None, None]:
        """Measures models and yields what the runner reports as it comes: start, results, models that failed, end.

        `files`: the models, by the paths in `entries`. A path means the same model throughout a session: `files` is not
        asked for one that is on the phone already. `plan`: kept on the phone for `unfinished`. `graph_path`,
        `model_deadline_s`: see BenchManifest; the latter also ends a runner that cannot end itself.
        `labels`: the models' names for people, in order. Raises DeviceError where the kernel did not grant the cores,
        and what PhoneRunner.run raises.
        """
        paths = self._paths_on_phone(files)
        manifest = BenchManifest(
            runtime=self.library.runtime,
            library=self._runner.library_path,
            threads=self.threads,
            deadline_s=deadline_s,
            entries=tuple(_with_paths(entry, paths) for entry in entries),
            timing=timing,
            runtime_version=self.library.version,
            cores=core_ranges(self.cores),
            graph_path=graph_path,
            model_deadline_s=model_deadline_s,
        )
        for event in self._runner.run(manifest, plan=plan, labels=labels):
            if isinstance(event, BenchStart):
                self.require_cores(parse_core_list(event.cores_seen))
            yield event

    def _paths_on_phone(self, files: Mapping[str, bytes]) -> Mapping[str, str]:
        # Twice: new models may have taken the room of some that were there.
        for _ in range(2):
            missing = [name for name in files if not self._runner.has(self._paths.get(name))]
            self._paths |= zip(missing, self._runner.keep(files[name] for name in missing), strict=True)
        return self._paths

    def require_cores(self, granted: Collection[int]) -> None:
        """Raises DeviceError unless the runner may run on its cores and no others."""
        # Phones take a mask and ignore it, silently.
        if self.cores and set(granted) != set(self.cores):
            raise DeviceError(
                f"the phone runs the models on cores {core_ranges(tuple(sorted(granted))) or 'unknown'}, "
                f"not on {core_ranges(self.cores)}",
                next_step=f"name other cores in a profile of your own in {profiles_folder()}: cores = ...",
            )

    def cool_down(self) -> PhoneState:
        """Waits until the phone is neither hot nor throttled and, in a session, its clocks are what they were.

        Raises PhoneUnfit after the profile's longest wait.
        """
        return self._wait(self._drift)

    def _drift(self, state: PhoneState, cooling: bool) -> dict[str, str]:
        if self._baseline is None:
            return phone_state.thermal_problems(state, self.profile, cooling=cooling)
        return phone_state.drift(self._baseline, state, self.cores, self.profile, cooling=cooling)

    def _clock_caps(self) -> Mapping[str, int]:
        """The limits of the clocks that are always there, which no wait ends: a condition of what is measured."""
        if self._caps is None:
            self._caps = self._asked_clock_caps()
        return self._caps

    def _asked_clock_caps(self) -> Mapping[str, int]:
        is_free = held_mode(self._mode, self.facts.sdk) == UNLOCKED and phone_state.CLOCK_LIMITED not in self._waived
        if not is_free or not phone_state.clock_caps(self.facts.state, self.cores):
            return {}
        with ExitStack() as stack:
            if not self._is_held:
                stack.enter_context(phone_lock(self.adb.serial))
                stack.enter_context(clock_mode(self.adb, self.facts.sdk, UNLOCKED))  # wakes the screen
            state = read_state(self.adb)
            noted = noted_caps(self.adb.serial)
            if noted and phone_state.clock_caps(state, self.cores) == noted:
                return noted
            caps = phone_state.lasting_caps(lambda: read_state(self.adb), self.cores, self.profile, self._on_wait)
        if caps:
            note_caps(self.adb.serial, caps)
        return caps

    def _wait(self, problems: Callable[[PhoneState, bool], dict[str, str]]) -> PhoneState:
        return phone_state.wait_until_cool(
            self._read_state, self.profile, waived=self._waived, on_wait=self._on_wait, problems=problems
        )

    def _read_state(self) -> PhoneState:
        if time.monotonic() - self._facts_read_s < STATE_VALID_S:
            self._facts_read_s = -math.inf  # once: who asks again waits for a change
            return self.facts.state
        return read_state(self.adb)

    def _leave_alone(self) -> None:
        """Waits for other programs to end, but for those that were waited for in vain."""
        if not self._neighbourhood.is_steady:
            self._neighbourhood.wait()

    def _see(self, state: PhoneState) -> None:
        self._screen = self._screen if self._screen not in ("", AWAKE) else state.screen
        if state.neighbours is not None and phone_state.BUSY not in self._waived:
            self._neighbourhood.see(state.neighbours)

    def require_steady(self) -> None:
        """Raises PhoneUnfit when heat has come over the phone since the session began: what was measured is suspect."""
        assert self._baseline is not None, "only within a session"
        state = self._runner.take_state_at_end() or read_state(self.adb)
        self._see(state)
        problems = phone_state.drift(self._runner.taken_over or self._baseline, state, self.cores, self.profile)
        phone_state.require_fit(problems, self._waived)

    def layout(self) -> str:
        """How ONNX Runtime rewrites graphs on this phone, as `OnnxLayout.text` gives it; "" for other runtimes, and
        where the library cannot write its graph. Asked of each build of library, runner and system once."""
        if self._layout is None:
            self._layout = self._known_layout() if self.library.runtime == ONNX.runtime else ""
        return self._layout

    def _known_layout(self) -> str:
        facts = self.facts
        build = [self.library.sha256, self._runner_sha256, facts.soc, facts.properties.get("ro.build.fingerprint", "")]
        path = layouts_folder() / f"{hashlib.sha256(repr(build).encode()).hexdigest()[:32]}.json"
        if path.exists():
            with suppress(InvalidInput, CorruptFile):
                document = store.read_json(path, format_version=LAYOUT_FORMAT_VERSION)
                return OnnxLayout.parse(str(document.get("layout"))).text()
        text = self._asked_layout()
        if text:
            store.write_json(path, {"layout": text}, format_version=LAYOUT_FORMAT_VERSION)
        return text

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """The phone for what is not timed: neither heat nor clocks matter. Raises PhoneBusy, PhoneDiskFull."""
        with ExitStack() as stack:
            if not self._is_held:
                stack.enter_context(phone_lock(self.adb.serial))
                self._runner.open()
                self._paths.clear()
            yield

    def try_out(self, model: bytes) -> None:
        """Runs a model once. Raises DeviceError naming what fails: the library, the cores, the runner, the model."""
        with self.untimed():
            asked = [BenchModel(TRIAL, TRIAL)]
            for event in self.bench(asked, {TRIAL: model}, ONCE, deadline_s=TRIAL_DEADLINE_S):
                if isinstance(event, BenchError):
                    raise DeviceError(f"a tiny network did not run: {event.message}")

    def _asked_layout(self) -> str:
        with self.untimed():
            asked = [BenchModel(LAYOUT, LAYOUT)]
            events = self.bench(
                asked, {LAYOUT: questions()}, ONCE, deadline_s=LAYOUT_DEADLINE_S, graph_path=f"{LAYOUT}{ONNX.suffix}"
            )
            graphs = [event.file for event in events if isinstance(event, BenchGraph)]
        return read_layout(graphs[0]).text() if graphs else ""

    def conditions(self) -> Conditions:
        """The library's hash covers the runner too: a latency is bound to both."""
        facts = self.facts
        governors = {policy.governor for policy in facts.state.policies if set(policy.cores) & set(self.cores)}
        caps = [f"{cores}<={mhz}MHz" for cores, mhz in sorted(self._clock_caps().items())]
        both = hashlib.sha256(f"{self.library.sha256}{self._runner_sha256}".encode()).hexdigest()
        return Conditions(
            device=" ".join(f"{facts.properties.get('ro.product.manufacturer', '')} {facts.model}".split()),
            soc=facts.soc,
            os=" ".join(f"Android {facts.android} {facts.properties.get('ro.build.fingerprint', '')}".split()),
            runtime=self.library.runtime,
            runtime_version=self.library.version,
            library_sha256=both,
            delegate=PHONE_RUNTIMES[self.library.runtime].format.delegate,
            threads=self.threads,
            cores=core_ranges(self.cores) or "any",
            clock_mode=" ".join([held_mode(self._mode, facts.sdk), *sorted(governors), *caps]),
            layout=self.layout(),
            unit=facts.unit,
        )

    def passes(self, jobs: Sequence[Job], *, plan: str = "") -> Generator[Pass, None, None]:
        """Raises DeviceError naming the model that fails, and what `bench` raises."""
        files = _Files(jobs)
        yield from self._results([files.entry(job) for job in jobs], files, jobs, plan)

    def alternate(self, before: Job, after: Job, rounds: int) -> Iterator[tuple[Pass, Pass]]:
        """Both models open together in every round, timed before-after-after-before."""
        jobs = (before, after)
        files = _Files(jobs)
        pair = BenchPair(files.entry(before), files.entry(after))
        results = self._results([pair] * rounds, files, jobs * rounds)
        with closing(results):
            for first in results:
                yield first, next(results)

    def _results(
        self, entries: Sequence[BenchModel | BenchPair], files: _Files, jobs: Sequence[Job], plan: str = ""
    ) -> Generator[Pass, None, None]:
        deadline_s = START_ALLOWANCE_S + sum(2 * job.timing.max_s + LOAD_ALLOWANCE_S for job in jobs)
        model_deadline_s = MODEL_ALLOWANCE_S + max(2 * job.timing.max_s for job in jobs)
        events = self.bench(
            entries,
            files,
            jobs[0].timing,
            deadline_s=math.ceil(deadline_s),
            plan=plan,
            model_deadline_s=math.ceil(model_deadline_s),
            labels=[job.label for job in jobs],
        )
        given = 0
        with closing(events):
            for event in events:
                if isinstance(event, BenchError):
                    raise DeviceError(f"{jobs[event.index].label}: {event.message}")
                if isinstance(event, BenchResult):
                    if event.index != given:
                        raise RunnerFailed(f"result {event.index} came where {given} was due")
                    given += 1
                    yield Pass(event.samples_ms, record=event.record)

    def is_steady(self) -> bool:
        """Whether neither heat, lower clocks nor other programs have come over the phone since the session began."""
        try:
            self.require_steady()
        except PhoneUnfit:
            return False
        return self._neighbourhood.is_steady

    def settle(self) -> None:
        """Raises PhoneUnfit when the phone stays hot for longer than its profile allows."""
        self.cool_down()
        self._leave_alone()

    def neighbours(self) -> Neighbours | None:
        return self._neighbourhood.now

    def most_neighbours(self) -> Neighbours | None:
        return self._neighbourhood.most

    def heat(self) -> Heat:
        """Of the cores that the runner is on; nothing where the phone does not answer."""
        try:
            state = read_state(self.adb)
        except DeviceError:
            return Heat()  # a pulled cable ends no measurement
        cores = set(self.cores)
        limits_khz = [policy.scaling_max_khz for policy in state.policies if not cores or cores & set(policy.cores)]
        return Heat(state.celsius, clock_limit_mhz=max(limits_khz) / 1000 if limits_khz else None)

    def screen(self) -> str:
        return self._screen


def _with_paths(entry: BenchModel | BenchPair, paths: Mapping[str, str]) -> BenchModel | BenchPair:
    if isinstance(entry, BenchModel):
        return replace(entry, path=paths[entry.path])
    first, second = (replace(model, path=paths[model.path]) for model in (entry.first, entry.second))
    return BenchPair(first, second)


class _Files(Mapping[str, bytes]):
    """The files of some jobs by name, those with equal keys once. A file is built when it is asked for."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._names = {job.key: f"m{hashlib.sha256(job.key.encode()).hexdigest()[:24]}" for job in jobs}
        self._builders = {self._names[job.key]: job.model for job in reversed(jobs)}

    def entry(self, job: Job) -> BenchModel:
        """The job's line in the manifest."""
        return BenchModel(self._names[job.key], self._names[job.key], job.timing)

    def __getitem__(self, name: str) -> bytes:
        return self._builders[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._builders)

    def __len__(self) -> int:
        return len(self._builders)


USE_HOST = "or pass --device host to measure on this computer"


def select_phone(
    profile: DeviceProfile,
    profiles: Mapping[str, DeviceProfile],
    *,
    serial: str | None = None,
    server: AdbServer | None = None,
) -> AdbPhone:
    """The one attached phone that fits the profile, or the one with `serial`.

    Raises AmbiguousDevice listing the candidates, DeviceUnavailable saying what adb sees and what to do about each.
    """
    server = server or AdbServer()
    attached = server.settled_phones()
    if serial is not None:
        chosen = choose_phone(attached, serial)
        adb = AdbPhone(server, chosen)
        answered = read_properties(adb)
        if not profile.fits(answered):
            raise _no_fit(profile, [(chosen, answered)], profiles)
        return adb
    fitting: list[AdbPhone] = []
    others: list[tuple[AttachedPhone, Mapping[str, str]]] = []
    failures: list[DeviceError] = []
    for phone in attached:
        try:
            adb = AdbPhone(server, phone)
            properties: Mapping[str, str] = read_properties(adb)
        except DeviceError as error:  # another phone may still fit
            failures.append(error)
            properties = {}
        if profile.fits(properties):
            fitting.append(adb)
        else:
            others.append((phone, properties))
    if len(fitting) > 1:
        raise AmbiguousDevice(
            f"{len(fitting)} attached phones fit --device {profile.name}: {', '.join(p.serial for p in fitting)}",
            next_step=f"choose one: --serial {fitting[0].serial}",
        )
    if fitting:
        return fitting[0]
    if len(attached) == 1 and failures:
        raise failures[0]
    raise _no_fit(profile, others, profiles)


def _no_fit(
    profile: DeviceProfile,
    seen: Sequence[tuple[AttachedPhone, Mapping[str, str]]],
    profiles: Mapping[str, DeviceProfile],
) -> DeviceUnavailable:
    if not seen:
        return DeviceUnavailable(
            f"no phone is attached for --device {profile.name}: adb sees none",
            next_step="plug a phone in, switch on USB debugging in its developer options and accept its dialog; "
            f"{USE_HOST}",
        )
    lines, steps = [], []
    for phone, properties in seen:
        if phone.is_ready:
            fitting = matching_profiles(profiles, properties)
            model = " ".join(properties.get("ro.product.model", "a phone that does not answer").split())
            lines.append(f"{phone.serial}: {model}" + (f", which is {fitting[0].name}" if fitting else ""))
            steps += [f"--device {fitting[0].name}"] if fitting else []
        else:
            lines.append(f"{phone.serial}: {phone.state}")
            steps.append(f"{phone.serial}: {remedy(phone.state)}")
    return DeviceUnavailable(
        f"no attached phone fits --device {profile.name} ({profile.summary}); adb sees {'; '.join(lines)}",
        next_step="; ".join([*dict.fromkeys(steps), USE_HOST]),
    )
