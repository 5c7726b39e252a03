"""Find the plan: reward, budget and device wired to the search, then the final network refitted."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from amc_mobile.channels.plan import LEAST_CHOICES, PruningPlan, WeightPlan
from amc_mobile.data.split import DataSplit
from amc_mobile.errors import AccuracyNotKept, AmcMobileError, CorruptFile, InvalidConfig, InvalidInput, MissingLatency
from amc_mobile.latency.gate import is_accuracy_kept
from amc_mobile.latency.model import LatencyModel
from amc_mobile.latency.probe import LEAST_MULTIPLE, stored_steps
from amc_mobile.models.loading import weights_sha256
from amc_mobile.models.task import evaluate
from amc_mobile.pruning.least_squares import Matrices
from amc_mobile.report.tables import nothing_pruned
from amc_mobile.search.budget import CostLimit, format_cost
from amc_mobile.search.episode_log import EpisodeLog, EpisodeRow
from amc_mobile.search.loop import HIGHEST_REWARD, AccuracyGuarantee, DrawnLimits, SearchResult, run_search
from amc_mobile.search.policies import SPREAD_OVER_EPISODES, make_policy
from amc_mobile.search.policy import Policy
from amc_mobile.search.reward import HOLDING_COST
from amc_mobile.store import MAX_DOCUMENT_BYTES, from_document, parse_object, read_bytes, to_document
from amc_mobile.workflows.budgets import (
    Part,
    cost_of,
    drift_text,
    further_budget_text,
    further_counts,
    further_latency,
    limit_of,
    measured_text,
    measured_together,
    met_together,
    on_device,
    require_usable,
)
from amc_mobile.workflows.devices import not_measured, recorded
from amc_mobile.workflows.network import Network, default_grids, may_have_seen, require_trained
from amc_mobile.workflows.plans import ChannelPlans, Finished, Plans, PlanScorer, Preparations, Statistics, WeightPlans
from amc_mobile.workflows.profile import latency_model
from amc_mobile.workflows.report import keep_details
from amc_mobile.workflows.runs import (
    GridMultiple,
    LimitRecord,
    MultipleRecord,
    Run,
    SearchedBudget,
    SearchRecord,
    place_part,
    precision_part,
    run_name,
)
from amc_mobile.workflows.search_config import SearchConfig, asked_devices
from amc_mobile.workflows.table import probed_multiple
from amc_mobile.workflows.workspace import Progress, Settings, Workspace

Widths = NDArray[np.int64]
LOG = logging.getLogger(__name__)


def plans_of(network: Network, wanted: SearchConfig, multiple: int) -> Plans:
    """The plans that may be proposed, in the granularity asked for."""
    if wanted.granularity == "weight":
        return WeightPlans(network, min_density=wanted.min_keep_ratio, keep=wanted.keep)
    grids = default_grids(network, multiple=multiple, min_keep_ratio=wanted.min_keep_ratio, keep=wanted.keep)
    return ChannelPlans(network, grids)


def multiple_of(run: Run, wanted: SearchConfig, network: Network, latency: LatencyModel | None) -> GridMultiple:
    """What kept channels are multiples of: as asked, as the run has it, or as the device was found to prefer.

    Raises InvalidConfig for one that is asked for and that no group has channels for.
    """
    if wanted.multiple is not None:
        channels = network.groups.channels
        widest = max(channels, key=lambda name: channels[name], default="")
        if widest and wanted.multiple > channels[widest]:
            raise InvalidConfig(
                f"--multiple {wanted.multiple} is more than any channel group has: {widest} has {channels[widest]}",
                next_step="pass a smaller one, e.g. --multiple 16",
            )
        return GridMultiple(wanted.multiple, f"--multiple{_unmeasured(wanted.multiple, latency)}")
    if (before := run.find(GridMultiple)) is not None:  # a probe in between must not make it another search
        return before
    multiple = probed_multiple(latency) if latency is not None else GridMultiple(LEAST_MULTIPLE, "the default")
    run.save(multiple)
    return multiple


def _unmeasured(multiple: int, latency: LatencyModel | None) -> str:
    """What speaks against plans of finer multiples than a profile measures."""
    if latency is None or multiple % LEAST_MULTIPLE == 0 or stored_steps(latency.table, latency.conditions):
        return ""
    LOG.warning(
        "warning: --multiple %d: a profile measures multiples of %d only, so what other widths cost is a guess. Run "
        "`amc-mobile table probe` first; it measures them.", multiple, LEAST_MULTIPLE,
    )  # fmt: skip
    return f"; other widths than multiples of {LEAST_MULTIPLE} were never measured"


def policy_of(wanted: SearchConfig, budget: CostLimit, plans: Plans, *, seed: int) -> Policy:
    """The policy asked for; `from-file:PATH` reads the plan of another search or of a file."""
    name, _, path = wanted.policy.partition(":")
    return make_policy(
        name, plans.facts(), budget, seed=seed, episodes=wanted.episodes,
        errors=plans.errors(),
        given=[plan_from_file(Path(path), plans)] if path else [],
    )  # fmt: skip


def plan_from_file(path: Path, plans: Plans) -> Widths:
    """Widths (groups,) of a plan in JSON, alone or as the `plan` of a search. Raises InvalidInput."""
    next_step = "name a run's search.json"
    try:
        document = parse_object(read_bytes(path.expanduser(), MAX_DOCUMENT_BYTES))
    except (CorruptFile, ValueError, RuntimeError) as error:  # RuntimeError: no home folder for a ~
        raise InvalidInput(f"{path} holds no plan: {error}", next_step=next_step) from error
    document = document.get("plan", document)
    is_of_weights = isinstance(document, dict) and "kept_weights" in document
    kind: type[PruningPlan | WeightPlan] = WeightPlan if is_of_weights else PruningPlan
    return plans.widths(from_document(kind, document, str(path), next_step=next_step))


def _identity(network: Network, data: DataSplit, wanted: SearchConfig, seed: int, precision: str) -> dict[str, Any]:
    """What makes two searches the same: the log of one cannot go on as the other."""
    images = data.record()
    return {
        "model": network.settings.model, "weights": weights_sha256(network.module), "seed": seed,
        "data": network.settings.data, "split": dict(images.sizes), "train": images.train_sha256,
        **({"precision": precision} if precision_part(precision) else {}),
        **{f"search.{key}": value for key, value in to_document(wanted).items() if key != "episodes"},
        "scored_images": wanted.scored_images,
    }  # fmt: skip


def check_continues(run: Run, log: EpisodeLog, wanted: SearchConfig) -> None:
    """Raises InvalidInput where the run has begun as another search, or as one that cannot go on so long or so short.

    Comes before anything of the run is changed.
    """
    log.check_identity()
    if not log.started or not run.has_begun:
        return
    before = run.search_config().episodes
    tried = sum(row.is_episode for row in log.rows)
    if wanted.episodes < min(before, tried):
        raise InvalidInput(
            f"run {run.name} has tried {tried} plans, more than --episodes {wanted.episodes}",
            next_step=f"pass --episodes {tried} or more, or another name with --run NAME",
        )
    name = wanted.policy.partition(":")[0]
    if wanted.episodes != before and name in SPREAD_OVER_EPISODES:
        raise InvalidInput(
            f"a search by {name} cannot be extended: its steps spread over the --episodes {before} of its beginning",
            next_step=f"pass --episodes {before}, or another name with --run NAME",
        )


@dataclass(frozen=True)
class SearchOutcome:
    run: str
    search: SearchRecord

    def document(self) -> dict[str, Any]:
        return {"run": self.run, **to_document(self.search)}

    def text(self) -> str:
        s = self.search
        unit = s.budget.unit
        measured = f", {measured_text(s.measured_ms)}" if s.measured_ms is not None else ""
        ci_high_ms = s.budgets[0].ci_high_ms
        measured += f" (its interval ends at {ci_high_ms / s.budget.limit:.1%} of the budget)" if ci_high_ms else ""
        drift = drift_text(s.budgets[0])
        if s.offline and s.conditions is not None:
            measured = f"; {not_measured(s.conditions.device)}"
        sources = ", ".join(f"{len(sites)} {source}" for source, sites in s.kernel_sources.items() if sites)
        guessed = s.kernel_sources.get("extrapolated")
        sources += f" (beyond what was measured: {', '.join(guessed)})" if guessed else ""
        accuracies = ", ".join(f"{name} {value:.1%}" for name, value in s.test_top1.items())
        return (
            f"run {self.run}: {s.policy}, {s.episodes} episodes, reward {s.reward:.4f}\n"
            f"  budget {format_cost(s.budget.limit, unit)} ({s.budgets[0].asked}): "
            f"predicted {format_cost(s.predicted_cost, unit)}{measured}\n"
            + (f"  {drift}\n" if drift else "")
            + "".join(further_budget_text(row) for row in s.budgets[1:])
            + (f"  {self._over()}\n" if s.better_over else "")
            + (f"  {self._multiples()}\n" if s.granularity == "channel" else "")
            + (f"  {nothing_pruned(keeps_accuracy=s.max_loss is not None)}\n" if self.is_uncut else "")
            + (f"  {self.search.max_loss_text()}\n" if s.accuracy_kept is not None else "")
            + (f"  kernels of the prediction: {sources}\n" if s.offline else "")
            + f"  MACs {s.macs / 1e6:.2f} M of {s.original_macs / 1e6:.2f} M, "
            f"parameters {s.parameters / 1e6:.3f} M of {s.original_parameters / 1e6:.3f} M\n"
            f"  {s.refit.text()}\n"
            f"  {s.metric} on {s.test_images} {s.accuracy_on}: {accuracies}"
        )

    @property
    def is_uncut(self) -> bool:
        """Whether the plan found is the original network."""
        s = self.search
        return bool((s.macs, s.parameters) == (s.original_macs, s.original_parameters))

    def _over(self) -> str:
        """Why plans that scored better were not chosen."""
        over = self.search.better_over
        first, limit = over[0], self.search.budget.limit
        plans = "1 plan that scored better was" if len(over) == 1 else f"{len(over)} plans that scored better were"
        return (
            f"{plans} measured over the budget: the best, of episode {first.episode} ({first.policy}), "
            f"reward {first.reward:.4f}, takes up to {first.ci_high_ms:.4g} ms of {limit:.4g} ms"
        )

    def _multiples(self) -> str:
        """What kept channels are multiples of, group by group where that differs, and why."""
        asked, groups = self.search.multiple, self.search.multiple.groups
        finer = "".join(
            f"; of {used} in {', '.join(name for name, own in groups.items() if own == used)}"
            for used in sorted(set(groups.values()), reverse=True)
        )
        why = f" (with fewer than {LEAST_CHOICES * asked.used} channels, so that there is a choice)" if finer else ""
        return f"kept channels are multiples of {asked.used} or all: {asked.why}{finer}{why}"

    def raise_if_accuracy_not_kept(self) -> None:
        """Raises AccuracyNotKept (exit 3) where --max-loss was asked for and the refitted network loses more."""
        if self.search.accuracy_kept is False:
            raise AccuracyNotKept(
                self.search.max_loss_text(),
                next_step="raise --max-loss or the budget, lower --min-keep-ratio, or try more --episodes",
            )


def search_plan(
    space: Workspace,
    settings: Settings,
    wanted: SearchConfig,
    *,
    run: str | None,
    progress: Progress,
    prepared: Preparations | None = None,
    is_compared: bool = False,
    untrained: bool = False,
) -> SearchOutcome:
    """Searches, refits the best plan layer by layer and keeps both in a run folder. The run becomes the last one.

    `prepared`: what earlier searches of this network have worked out. `is_compared`: the run belongs to a comparison,
    and the last one stays what it is. `untrained`: a network that is no better than guessing is pruned all the same.

    Raises UnreachableBudget before searching, MissingLatency when the device has not been profiled, BudgetNotMet. A
    search that is refused before its first episode leaves no run and changes none.
    """
    place = place_part(settings, wanted.unit)
    granularity = "" if wanted.granularity == "channel" else wanted.granularity
    words = (settings.model, precision_part(settings.precision), place, wanted.asked, granularity, wanted.policy)
    folder = Run(space.runs / (run_name(run) if run else run_name(*words, f"s{settings.seed}")))
    is_offline = settings.offline and wanted.unit == "ms"
    command = f"amc-mobile profile --device {settings.device} --model {settings.model}" if is_offline else ""
    prepared = prepared or Preparations()
    with space.working_on(folder.name), _refusals(folder, command), ExitStack() as opened:
        network = prepared.network(space, settings)
        device, used = recorded(space, settings) if is_offline else (None, settings)
        torch.manual_seed(settings.seed)
        own = None
        if wanted.unit == "ms":
            own = opened.enter_context(closing(latency_model(space, used, network, progress, device=device)))
        further = [
            (name, ms, opened.enter_context(closing(further_latency(space, settings, network, name, progress))))
            for name, ms in asked_devices(wanted.also)
        ]
        search = _set_up(
            folder, wanted, network, own, further, device=settings.device, seed=settings.seed, place=place,
            precision=settings.precision, progress=progress,
        )  # fmt: skip
        _require_use(search, used.waived, untrained=untrained)
        folder.begin(used, search.config, network)
        folder.save(search.data.record())
        if not is_compared:
            space.remember(settings, run=folder.name)
        matrices = Matrices(settings.memory_bytes, space.folder)
        statistics = partial(
            prepared.statistics, network, search.data, channel_choice=wanted.channel_choice, seed=settings.seed,
            matrices=matrices, progress=progress,
        )  # fmt: skip
        may_be_seen = may_have_seen(space, network, len(search.data.reward))
        return _searched(search.prepared(statistics), progress, settings.memory_bytes, may_be_seen, is_offline)


@contextmanager
def _refusals(run: Run, command: str) -> Iterator[None]:
    """A search that is refused before its first episode leaves no run. `command`: measures what a table lacks that is
    used without its device."""
    try:
        yield
    except AmcMobileError as error:
        if isinstance(error, MissingLatency) and command:
            error.next_step = f"attach the device and measure: `{command}`; or import a table that has them"
        if not run.has_begun:
            shutil.rmtree(run.folder, ignore_errors=True)
        raise


@dataclass(frozen=True, eq=False)
class _Search:
    """What the steps of one search share. `parts`: its budgets, the own one first."""

    run: Run
    config: SearchConfig  # with the multiple that is used
    seed: int
    network: Network
    data: DataSplit
    plans: Plans
    multiple: GridMultiple
    log: EpisodeLog
    limit: LimitRecord
    parts: tuple[Part, ...]

    @property
    def own(self) -> Part:
        return self.parts[0]

    @property
    def budget(self) -> CostLimit:
        """That of all parts together."""
        return met_together(self.parts)

    def prepared(self, collect: Callable[[], Statistics]) -> _Search:
        """With plans that can be built, and budgets that are measured where their device is attached."""
        plans = self.plans.prepared(collect)
        parts = tuple(part.measured_in(self.run, plans, is_own=part is self.own) for part in self.parts)
        return replace(self, plans=plans, parts=parts)


def _set_up(
    run: Run, config: SearchConfig, network: Network, latency: LatencyModel | None,
    further: Sequence[tuple[str, float, LatencyModel]], *, device: str, seed: int, place: str, precision: str,
    progress: Progress,
) -> _Search:  # fmt: skip
    """Plans, log and budgets. `further`: devices with their own budgets, in ms; `place`: see LimitRecord."""
    data = network.split(calibration=config.calibration_images, reward=config.reward_images, seed=seed)
    multiple = multiple_of(run, config, network, latency)
    config = replace(config, multiple=multiple.used)
    plans = plans_of(network, config, multiple.used)
    log = EpisodeLog(run.folder / "episodes.csv", identity=_identity(network, data, config, seed, precision))
    check_continues(run, log, config)
    latency = latency.with_grids(plans.grids) if latency is not None else None
    limit = limit_of(run, config, place, plans, latency, progress)
    latency = latency.with_drift(limit.drift) if latency is not None else None
    cost = cost_of(config.unit, plans, latency)
    own = CostLimit(cost, limit.limit, tuple(plans.grids), config.unit, config.asked_of_model[0])
    parts = [Part(own, latency, device if latency else "", limit.reference_ms)]
    parts += further_counts(own, plans, macs=config.macs_ratio, parameters=config.params_ratio)
    parts += [on_device(model, own, name, limit_ms, run, progress) for name, limit_ms, model in further]
    return _Search(run, config, seed, network, data, plans, multiple, log, limit, tuple(parts))


def _searched(
    search: _Search, progress: Progress, memory_bytes: int | None, may_be_seen: bool, offline: bool
) -> SearchOutcome:
    """Figure 1 of the paper for each episode; then the best plan becomes the final network."""
    episodes = _episodes(search, progress)
    widths, granularity = episodes.result.widths, search.config.granularity
    final, refit_s = _final_network(search, widths, memory_bytes, progress)
    record = _record(search, episodes, final, refit_s, may_be_seen=may_be_seen, offline=offline)
    keep_details(search.run, search.network, search.own.latency, widths, granularity=granularity)
    search.run.save(record)
    return SearchOutcome(search.run.name, record)


def _require_use(search: _Search, waived: Collection[str], *, untrained: bool) -> None:
    """Raises InvalidInput or UnreachableBudget where there is nothing to be found."""
    config, own = search.config, search.own.budget
    require_usable(search.parts, waived)
    budget = search.budget
    budget.check()
    if config.reward not in HOLDING_COST and config.max_loss is None and budget.allows(budget.full):
        costs, allowed = (format_cost(cost, own.unit) for cost in (own.cost_of(own.full), own.limit))
        raise InvalidInput(
            f"the original network is within the budget already: it costs {costs} of {allowed}",
            next_step="lower the budget; or look for cheaper networks below it, with --reward error-log-macs "
            "(-params, -latency) or --max-loss 0.01",
        )
    if not untrained and config.reward != "macs":
        require_trained(search.network, search.data.reward)


@dataclass(frozen=True, eq=False)
class _Episodes:
    """What the episodes gave. `set_up_s`: CPU seconds before the first one."""

    result: SearchResult
    scorer: PlanScorer
    set_up_s: float


def _episodes(search: _Search, progress: Progress) -> _Episodes:
    """The agent proposes, the budget clips, the plan is pruned, scored and measured, the agent learns from it."""
    config, own, measure = search.config, search.own.budget, measured_together(search.parts)
    started = time.process_time()
    scorer = PlanScorer(
        search.network, search.data, search.plans, config.reward, images=config.scored_images, unit=config.unit,
        cost_of=own.cost_of, precision=config.reward_precision,
    )  # fmt: skip
    policy = policy_of(config, search.budget, search.plans, seed=search.seed)
    set_up_s = search.plans.set_up_s + time.process_time() - started
    episodes = min(config.episodes, policy.episodes_per_round or config.episodes)
    target = HIGHEST_REWARD
    if config.max_loss is not None:
        target = AccuracyGuarantee(max(scorer.original_top1 - config.max_loss, 0.0))
    elif config.reward in HOLDING_COST:
        target = DrawnLimits(search.seed)

    def on_episode(row: EpisodeRow) -> None:
        shown = f", {measured_text(row.measured_ms)}" if row.measured_ms is not None else ""
        shown += ", over the budget" if row.ci_high_ms is not None and row.ci_high_ms > own.limit else ""
        note = f"reward {row.reward:.4f}, predicted {format_cost(row.predicted_cost, config.unit)}{shown}"
        progress("search", row.episode + 1, episodes, note)

    result = run_search(
        policy, search.budget, scorer, episodes=episodes, log=search.log, on_episode=on_episode, measure=measure,
        measure_every=config.measure_every if measure else 0, measured_reward=scorer.measured_reward, target=target,
    )  # fmt: skip
    return _Episodes(result, scorer, set_up_s)


def _final_network(
    search: _Search, widths: Widths, memory_bytes: int | None, progress: Progress
) -> tuple[Finished, float]:
    """Refits the best plan and saves its weights. The number: CPU seconds that it took.

    A finished search that was extended without a better plan keeps its weights, and what was made of them.
    """
    run, plans = search.run, search.plans
    before = run.find(SearchRecord)
    if before is not None and before.plan == plans.plan(widths):
        return Finished(run.load_pruned(search.network, "pruned"), before.refit), before.cpu_s["refit"]
    progress("refit", 0, 1)
    started = time.process_time()
    finished = plans.finished(widths, search.data, seed=search.seed, memory_bytes=memory_bytes)
    cpu_s = time.process_time() - started
    progress("refit", 1, 1)
    run.remove(SearchRecord)  # never beside the weights of another plan
    run.save_weights("pruned", finished.network)
    run.save_masks(plans.masks(widths))
    return finished, cpu_s


def _record(
    search: _Search, episodes: _Episodes, final: Finished, refit_s: float, *, may_be_seen: bool, offline: bool
) -> SearchRecord:
    config, data, plans, network, latency = search.config, search.data, search.plans, search.network, search.own.latency
    result, scorer, limit, sizes = episodes.result, episodes.scorer, search.limit, plans.sizes
    budgets = tuple(part.record(result.widths) for part in search.parts)
    refitted_top1 = kept = None
    if config.max_loss is not None:  # is of the network that is kept, not of the one that the search scored
        refitted_top1 = scorer.top1(final.network)
        kept = is_accuracy_kept(refitted_top1, scorer.original_top1, config.max_loss)
    stages = {
        "original": network.module, "one-shot": plans.build(result.widths),
        "refitted": final.network,  # or what was kept instead of it
    }  # fmt: skip
    return SearchRecord(
        budgets=budgets,
        budget=SearchedBudget(config.unit, limit.limit, limit.asked, limit.reference_ms, limit.drift),
        conditions=None if latency is None else latency.conditions,
        multiple=MultipleRecord(search.multiple.used, search.multiple.why, plans.finer_multiples(search.multiple.used)),
        offline=offline,
        kernel_sources=_sources(result.widths, latency),
        policy=config.policy,
        episodes=result.episodes,
        evaluations=result.evaluations,
        better_over=result.better_over,
        measurements=result.measurements,
        reward=result.reward,
        episode=result.episode,
        predicted_cost=budgets[0].predicted_cost,
        measured_ms=result.measured_ms,
        ci_high_ms=budgets[0].ci_high_ms,
        plan=plans.plan(result.widths),
        granularity=config.granularity,
        macs=float(plans.macs(result.widths)),
        original_macs=float(plans.macs(sizes)),
        parameters=float(plans.parameters(result.widths)),
        original_parameters=float(plans.parameters(sizes)),
        cpu_s={"set_up": episodes.set_up_s, **search.log.seconds(), "refit": refit_s},
        reward_top1=result.top1,
        original_reward_top1=scorer.original_top1,
        max_loss=config.max_loss,
        refitted_reward_top1=refitted_top1,
        reward_images_may_be_seen=may_be_seen,
        accuracy_kept=kept,
        test_images=len(data.test),
        metric=network.task.metric,
        accuracy_on=data.accuracy_on,
        group_kinds=network.groups.kinds,
        refit=final.refit,
        test_top1={name: evaluate(module, data.test, task=network.task) for name, module in stages.items()},
    )


def _sources(widths: Widths, latency: LatencyModel | None) -> dict[str, tuple[str, ...]]:
    """Where each kernel's latency comes from: source -> names of the kernels."""
    found: dict[str, list[str]] = {}
    if latency is not None:
        names = {site.index: site.name for site in latency.template.sites}
        for index, prediction in latency.predictor.explain(widths).items():
            found.setdefault(prediction.source, []).append(names[index])
    return {source: tuple(names) for source, names in found.items()}
