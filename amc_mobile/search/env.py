"""The search as a Gymnasium environment: one episode fixes one channel group after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from amc_mobile.search.budget import Budget, Widths
from amc_mobile.search.ddpg_policies import choose
from amc_mobile.search.features import FEATURES, Features
from amc_mobile.search.reward import Outcome


class PruningEnv(gymnasium.Env[npt.NDArray[np.float32], npt.NDArray[np.float32]]):
    """Actions are keep ratios, brought to the nearest width the budget allows; never truncated.

    `score` gets the finished plan, widths (G,), which is within the budget.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  Gymnasium's own declaration

    def __init__(self, budget: Budget, features: Features, score: Callable[[Widths], Outcome]) -> None:
        budget.check()
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self._budget = budget
        self._features = features
        self._score = score
        self._decided: list[int] = []

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._decided = []
        return self._observation(), {}

    def step(
        self, action: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Fixes the width of the current group. `action`: shape (1,), in [0, 1].

        The reward is 0 until the last group is done: then the plan is scored and the episode terminates.
        `info` says the executed `keep_ratio`, and at the end the `widths`.
        """
        width = choose(self._budget, self._decided, float(action[0]))
        self._decided.append(width)
        info: dict[str, Any] = {"keep_ratio": width / self._features.full[len(self._decided) - 1]}
        if len(self._decided) < self._features.groups:
            return self._observation(), 0.0, False, False, info
        widths = self._budget.fit(self._decided)
        self._decided = [int(width) for width in widths]
        outcome = self._score(widths)
        info |= {"widths": widths, "top1": outcome.top1, "fidelity": outcome.fidelity}
        return self._observation(), float(outcome.reward), True, False, info

    def _observation(self) -> npt.NDArray[np.float32]:
        return self._features.observation(np.array(self._decided) / self._features.full[: len(self._decided)])
