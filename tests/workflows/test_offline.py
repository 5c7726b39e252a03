"""A table used without its device, from the choice of its conditions to the report."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from in_process import CommandLine
from recorded_tables import GALAXY, phone, record, small_net

from amc_mobile.errors import InvalidInput
from amc_mobile.workflows.devices import SHOWN_KEY, choose_conditions
from amc_mobile.workflows.workspace import Settings

BUSY = phone(runtime="tflite", threads=4, cores="4-7")
OLD = phone(os="Android 14 google/shiba/shiba:14/UP1A/2:user/release-keys")
QUICK = ("--episodes", "3", "--policy", "uniform", "--calibration-images", "16", "--reward-images", "8", "--quiet")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    space, settings = small_net(folder)
    record(space, settings, phone())
    return folder


@pytest.fixture
def amc(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    shutil.copytree(recorded / "amc-workspace", tmp_path / "amc-workspace")
    return CommandLine(tmp_path, monkeypatch, capsys)


def net(recorded: Path) -> tuple[str, ...]:
    return ("--model", f"{recorded / 'net.py'}:build", "--data", "digits", "--input-size", "32", *QUICK)


def test_a_search_without_the_phone_says_at_every_step_that_nothing_was_measured(
    recorded: Path, amc: CommandLine
) -> None:
    code, out, err = amc("search", "--latency-ratio", "0.6", "--device", "pixel", "--offline", *net(recorded))
    assert code == 0, err
    assert "PREDICTED, NOT MEASURED: by the table of Google Pixel 8" in out
    (run,) = (amc.folder / "amc-workspace/runs").iterdir()
    search = json.loads((run / "search.json").read_text())
    assert (search["offline"], search["measured_ms"], search["measurements"]) == (True, None, 0)
    assert search["conditions"] == phone().to_document()
    assert search["predicted_cost"] <= search["budget"]["limit"]

    code, out, err = amc("export", "--onnx", "--offline", "--quiet")
    assert code == 4
    assert "same class 100.0%" in out and "PREDICTED, NOT MEASURED" in out
    assert "not verified on the device" in err and "without --offline" in err
    assert (run / "model.onnx").exists()

    code, out, err = amc("report")
    assert code == 0, err
    assert out.startswith("PREDICTED, NOT MEASURED  budget")
    assert "attach it and run `amc-mobile export`" in out and "Google Pixel 8" in out
    assert "PREDICTED, NOT MEASURED" in (run / "report.html").read_text()
    # Being offline is not remembered: the next step looks for the phone again.
    code, _, err = amc("search", "--latency-ratio", "0.6", *net(recorded))
    assert code == 1 and "table holds" not in err


def test_a_kernel_that_was_never_measured_is_named_with_the_command_that_measures_it(
    recorded: Path, amc: CommandLine
) -> None:
    with closing(sqlite3.connect(amc.folder / "amc-workspace/table.sqlite")) as database, database:
        database.execute("DELETE FROM sample WHERE subject = (SELECT key FROM kernel WHERE label LIKE '%16->32%')")
    code, _, err = amc("search", "--latency-ms", "1", "--device", "pixel", "--offline", *net(recorded))
    assert code == 1
    assert "no latency for 1 kernel: 2: Conv+Relu 3x3/2 16->32" in err
    assert "`amc-mobile profile --device pixel --model" in err


def test_a_device_that_the_table_does_not_know_lists_those_it_does(recorded: Path, amc: CommandLine) -> None:
    code, _, err = amc("search", "--latency-ms", "1", "--device", "galaxy", "--offline", *net(recorded))
    assert code == 1
    assert "nothing measured on galaxy" in err and "Google Pixel 8 (zuma)" in err
    shutil.rmtree(amc.folder / "amc-workspace")
    code, _, err = amc("search", "--latency-ms", "1", "--device", "galaxy", "--offline", *net(recorded))
    assert code == 1 and "no latency table" in err


FOREIGN = "net,layer,kind,cin,cout,size,stride,took\n" + "".join(
    f"w{c},0,conv,3,{c},32,1,{0.02 + c * 0.03}\nw{c},1,conv,{c},{c},16,2,{0.02 + c * c * 0.002}\n"
    f"w{c},2,pool,{c},{c},1,1,0.004\nw{c},3,fc,{c},10,1,1,{0.004 + c * 1e-5}\n"
    for c in (8, 16, 24, 32)
)
IMPORT = ("table", "import", "layers.csv", "--csv", "--device", "slate5", "--kernel", "net,layer", "--ms", "took",
          "--runtime", "onnxruntime")  # fmt: skip
SHAPE = "operator=kind,in_channels=cin,out_channels=cout,out_size=size,stride=stride"


def test_a_table_of_another_tool_is_imported_and_searched_with(recorded: Path, amc: CommandLine) -> None:
    (amc.folder / "layers.csv").write_text(FOREIGN)
    code, out, err = amc(*IMPORT, "--shape", SHAPE, "--network", "net")
    assert code == 0, err
    assert "added 16 of 16 passes" in out
    words = ("search", "--latency-ms", "1.2", "--device", "slate5", "--offline", "--reward", "macs", "--json")
    code, out, err = amc(*words, *net(recorded), "--policy", "evolution", "--episodes", "40")
    assert code == 0, err
    found = json.loads(out)
    assert found["conditions"]["device"] == "slate5" and found["offline"]
    assert 0.8 < found["predicted_cost"] <= 1.2 and found["measured_ms"] is None
    assert found["reward"] == pytest.approx(found["macs"] / found["original_macs"])
    assert found["macs"] > 0.25 * found["original_macs"]
    assert {name for names in found["kernel_sources"].values() for name in names} == {"0", "2", "reducemean_2", "6"}
    code, out, err = amc("report")
    assert code == 0, err
    assert "slate5" in out and out.startswith("PREDICTED, NOT MEASURED")


def test_a_table_of_another_tool_that_lacks_an_operator_names_it(recorded: Path, amc: CommandLine) -> None:
    (amc.folder / "layers.csv").write_text(
        "".join(line + "\n" for line in FOREIGN.splitlines() if ",pool," not in line)
    )
    assert amc(*IMPORT, "--shape", SHAPE)[0] == 0
    code, _, err = amc("search", "--latency-ms", "1.2", "--device", "slate5", "--offline", *net(recorded))
    assert code == 1
    assert "reducemean_2: ReduceMean 32" in err
    code, _, err = amc(*IMPORT, "--shape", "operator=kind,cin=cin")
    assert code == 2 and "'cin=cin'" in err and "in_channels" in err
    code, _, err = amc(*IMPORT, "--shape", "operator=kind,in_channels=cin")
    assert code == 2 and "lacks out_channels" in err


def test_the_conditions_are_those_of_the_device_with_the_runtime_and_threads_asked_for() -> None:
    known = [GALAXY, BUSY, phone()]
    assert choose_conditions(known, Settings(device="pixel")) == phone()
    assert choose_conditions(known, Settings(device="pixel_8", runtime="tflite", threads=4)) == BUSY
    assert choose_conditions(known, Settings(device="galaxy")) == GALAXY
    assert choose_conditions(known, Settings(device="samsung SM-S911B")) == GALAXY  # as the table names it
    with pytest.raises(InvalidInput, match=r"tflite, 1 thread\(s\)") as raised:
        choose_conditions(known, Settings(device="pixel", runtime="tflite"))
    assert "4 thread(s), cores 4-7" in raised.value.message and "SM-S911B" not in raised.value.message


def test_several_conditions_that_fit_are_listed_and_chosen_by_their_key() -> None:
    known = [OLD, phone(), GALAXY]
    with pytest.raises(InvalidInput, match="2 conditions of the table fit pixel") as raised:
        choose_conditions(known, Settings(device="pixel"))
    assert OLD.key[:SHOWN_KEY] in raised.value.message and "Android 14" in raised.value.message
    assert f"--conditions {phone().key[:SHOWN_KEY]}" in raised.value.next_step
    chosen = Settings(device="pixel", conditions=f"{GALAXY.key[:8]},{OLD.key[:8]}")
    assert choose_conditions(known, chosen) == OLD
