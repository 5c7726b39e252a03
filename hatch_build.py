"""Puts the runner for phones and the profiles of phones into the wheel.

An editable installation uses the checkout's instead.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

RUNNER = "amc_mobile/device/bin/arm64-v8a/amc-bench"
PROFILES = "amc_mobile/device_profiles"


class RunnerHook(BuildHookInterface[Any]):
    """Builds the runner with `ziglang`. Where that is absent the wheel is built without it, and says so."""

    _scratch: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        folder = Path(self.root) / "android_bench"
        included: dict[str, str] = build_data["force_include"]
        included[str(Path(self.root) / "device_profiles")] = PROFILES
        build = _load(folder / "build.py")
        if build.zig_folder() is None:
            self.app.display_warning(
                "ziglang is not installed: this wheel carries no runner for phones. pip install ziglang, build again."
            )
            return
        self._scratch = tempfile.mkdtemp(prefix="amc-bench-")
        output = build.build_android(Path(self._scratch) / "amc-bench")
        output.chmod(0o755)
        included[str(output)] = RUNNER

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("amc_bench_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
