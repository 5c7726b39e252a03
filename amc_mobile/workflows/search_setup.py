"""What a search starts from: its plans, what they cost, the limit and the policy. Fixed when the run starts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_mobile.channels.plan import multiple_for
from amc_mobile.data import DataSplit
from amc_mobile.errors import CorruptFile, InvalidConfig, InvalidInput
from amc_mobile.latency.probe import LEAST_MULTIPLE, stored_steps
from amc_mobile.models.checkpoints import weights_sha256
from amc_mobile.search.budget import Budget, Unit
from amc_mobile.search.episode_log import CHECK, EpisodeLog
from amc_mobile.search.policies import SPREAD_OVER_EPISODES, make_policy
from amc_mobile.search.policy import Policy
from amc_mobile.store import MAX_DOCUMENT_BYTES, parse_object, read_bytes
from amc_mobile.workflows.budgets import reference_p50_ms
from amc_mobile.workflows.latency_model import LatencyModel
from amc_mobile.workflows.network import Network
from amc_mobile.workflows.plans import ChannelPlans, Plans, WeightPlans
from amc_mobile.workflows.probe import GridMultiple, probed_multiple
from amc_mobile.workflows.progress import Progress
from amc_mobile.workflows.runs import Run, precision_part
from amc_mobile.workflows.search_config import SearchConfig
from amc_mobile.workflows.workspace import Settings

Widths = NDArray[np.int64]
LOG = logging.getLogger(__name__)


def plans_of(network: Network, wanted: SearchConfig) -> ChannelPlans | WeightPlans:
    """The plans that may be proposed, in the granularity asked for."""
    if wanted.granularity == "weight":
        return WeightPlans(network, min_density=wanted.min_keep_ratio, keep=wanted.keep)
    multiple = wanted.multiple or LEAST_MULTIPLE
    return ChannelPlans(network, multiple=multiple, min_keep_ratio=wanted.min_keep_ratio, keep=wanted.keep)


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
    if run.has("multiple"):  # a probe in between must not make it another search
        known = run.read("multiple")
        return GridMultiple(int(known["used"]), str(known["why"]))
    found = probed_multiple(latency) if latency is not None else GridMultiple(LEAST_MULTIPLE, "the default")
    run.write("multiple", asdict(found))
    return found


def _unmeasured(multiple: int, latency: LatencyModel | None) -> str:
    """What speaks against plans of finer multiples than a profile measures."""
    if latency is None or multiple % LEAST_MULTIPLE == 0 or stored_steps(latency.table, latency.conditions):
        return ""
    LOG.warning(
        "warning: --multiple %d: a profile measures multiples of %d only, so what other widths cost is a guess. Run "
        "`amc-mobile table probe` first; it measures them.", multiple, LEAST_MULTIPLE,
    )  # fmt: skip
    return f"; other widths than multiples of {LEAST_MULTIPLE} were never measured"


def finer_multiples(network: Network, plans: Plans, multiple: int) -> dict[str, int]:
    """By group: what narrow groups keep multiples of, which would have too few choices with `multiple`."""
    return {
        name: used
        for (name, channels), grid in zip(network.groups.channels.items(), plans.grids, strict=True)
        if len(grid) > 1 and (used := multiple_for(channels, multiple)) != multiple
    }


def limit_of(
    run: Run, wanted: SearchConfig, place: str, network: Network, plans: Plans, latency: LatencyModel | None,
    progress: Progress,
) -> tuple[float, float]:  # fmt: skip
    """(limit in the budget's unit, the original's p50 in ms or 0); fixed when the run starts.

    Raises InvalidInput for a run that began at another `place`: device, runtime and threads, as in a run's name.
    """
    if run.has("budget"):
        known = run.read("budget")
        if known["asked"] == wanted.asked:
            if (before := known.get("place", place)) != place:
                there, here = (name or "this computer" for name in (before, place))
                raise InvalidInput(
                    f"run {run.folder.name} has its latency budget on {there}, not on {here}",
                    next_step="pass another name with --run, or that --device, --runtime and --threads",
                )
            if latency is not None:
                latency.drift = float(known.get("drift", 1.0))
            return float(known["limit"]), float(known["reference_ms"])
    full = plans.sizes
    reference_ms = 0.0
    if latency is not None:
        if wanted.latency_ms is not None:  # is held against the device of now, a ratio against both alike
            latency.measure_drift(progress)
        reference_ms = reference_p50_ms(latency, network)
        limit = wanted.latency_ms if wanted.latency_ms is not None else (wanted.latency_ratio or 1.0) * reference_ms
    elif wanted.macs_ratio is not None:
        limit = wanted.macs_ratio * float(plans.macs(full))
    else:
        limit = (wanted.params_ratio or 1.0) * float(plans.parameters(full))
    drift = latency.drift if latency is not None else 1.0
    fixed = {"asked": wanted.asked, "place": place, "limit": limit, "reference_ms": reference_ms, "drift": drift}
    run.write("budget", fixed)
    return limit, reference_ms


def cost_of(unit: Unit, plans: Plans, latency: LatencyModel | None) -> Callable[[Widths], NDArray[np.float64]]:
    """What plans cost, in `unit`; of a latency with its error band on top."""
    if latency is not None:
        return latency.safe_p50_ms
    return plans.macs if unit == "macs" else plans.parameters


def policy_of(wanted: SearchConfig, budget: Budget, plans: Plans, *, seed: int) -> Policy:
    """The policy asked for; `from-file:PATH` reads the plan of another search or of a file."""
    name, _, path = wanted.policy.partition(":")
    return make_policy(
        name, plans.facts(), budget, seed=seed, episodes=wanted.episodes,
        errors=plans.errors(),
        given=[plan_from_file(Path(path), plans)] if path else [],
    )  # fmt: skip


def plan_from_file(path: Path, plans: Plans) -> Widths:
    """Widths (groups,) of a plan in JSON, alone or as the `plan` of a search. Raises InvalidInput."""
    try:
        document = parse_object(read_bytes(path.expanduser(), MAX_DOCUMENT_BYTES))
    except (CorruptFile, ValueError, RuntimeError) as error:  # RuntimeError: no home folder for a ~
        raise InvalidInput(f"{path} holds no plan: {error}", next_step="name a run's search.json") from error
    return plans.from_document(document.get("plan", document))


def identity_of(settings: Settings, wanted: SearchConfig, network: Network, data: DataSplit) -> dict[str, Any]:
    """What makes two searches the same: the log of one cannot go on as the other."""
    document = data.document()
    return {
        "model": settings.model, "weights": weights_sha256(network.module), "seed": settings.seed,
        "data": settings.data, "split": document["sizes"], "train": document["train_sha256"],
        **({"precision": precision_part(settings)} if precision_part(settings) else {}),
        **{f"search.{key}": value for key, value in asdict(wanted).items() if key != "episodes"},
        "scored_images": wanted.scored_images,
    }  # fmt: skip


def check_continues(run: Run, log: EpisodeLog, wanted: SearchConfig) -> None:
    """Raises InvalidInput where the run has begun as another search, or as one that cannot go on so long or so short.

    Comes before anything of the run is changed.
    """
    log.check_identity()
    if not log.started or not run.has("settings"):
        return
    before = int(run.read("settings")["search"]["episodes"])
    tried = sum(row.policy != CHECK for row in log.rows)
    if wanted.episodes < min(before, tried):
        raise InvalidInput(
            f"run {run.folder.name} has tried {tried} plans, more than --episodes {wanted.episodes}",
            next_step=f"pass --episodes {tried} or more, or another name with --run NAME",
        )
    name = wanted.policy.partition(":")[0]
    if wanted.episodes != before and name in SPREAD_OVER_EPISODES:
        raise InvalidInput(
            f"a search by {name} cannot be extended: its steps spread over the --episodes {before} of its beginning",
            next_step=f"pass --episodes {before}, or another name with --run NAME",
        )
