"""What is kept of `--table`: the URL, and no password in any file or error."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from in_process import CommandLine
from torch import nn

from amc_mobile.store import write_json
from amc_mobile.workflows.runs import Run
from amc_mobile.workflows.search_config import SearchConfig
from amc_mobile.workflows.workspace import Settings, Workspace

URL, BARE = "postgresql+psycopg://amc:s3cret@127.0.0.1:1/db", "postgresql+psycopg://amc@127.0.0.1:1/db"


def written(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


def test_no_file_of_a_workspace_or_a_run_holds_the_password(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    settings = space.settings(table=URL)
    space.remember(settings)
    network = SimpleNamespace(module=nn.Linear(1, 1))
    Run(space.runs / "r").begin(settings, SearchConfig(macs_ratio=0.5), network)  # type: ignore[arg-type]
    assert "s3cret" not in written(tmp_path) + str(asdict(settings)) + repr(settings)
    assert written(tmp_path).count(BARE) == 2
    assert space.table_location() == space.table_location(settings) == BARE


def test_what_an_earlier_version_wrote_is_read_without_the_password(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    document = {"format_version": 1, "settings": {**asdict(Settings()), "table": URL}, "last_run": ""}
    (tmp_path / "workspace.json").write_text(json.dumps(document))
    run = Run(space.runs / "r")
    begun = {"settings": document["settings"], "search": {"macs_ratio": 0.5}, "weights_sha256": ""}
    write_json(run.folder / "settings.json", begun, format_version=1)
    assert space.table_location() == space.settings().table == run.settings().table == BARE
    space.remember(space.settings())
    assert "s3cret" not in (tmp_path / "workspace.json").read_text()


def test_a_wrong_table_in_a_config_file_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(f'table = ["{URL}"]\n')
    amc = CommandLine(tmp_path, monkeypatch, capsys)
    code, out, err = amc("search", "--macs-ratio", "0.5", "--config", "config.toml")
    assert code == 2 and "table is not of type str" in err
    assert "s3cret" not in out + err


@pytest.mark.parametrize("url", [URL, "mysql://amc:s3cret@h/d", "postgresql://amc:s3@cret@h/d"])
def test_no_error_of_a_command_shows_the_password(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'table = "{url}"\n')
    amc = CommandLine(tmp_path, monkeypatch, capsys)
    network = ("--model", "resnet20", "--data", "digits", "--device", "pixel_1")
    code, out, err = amc("search", "--offline", *network, "--latency-ms", "1", "--config", str(config), "--json")
    config.unlink()
    assert code == 1
    assert "error:" in err
    assert "s3" not in out + err + written(tmp_path)
