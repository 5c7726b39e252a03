from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from latency_toys import CONDITIONS, add_model, conv, passes

from amc_mobile.device.device import Pass
from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.latency.measurement import ModelMeasurement
from amc_mobile.latency.predictor import TimedShape, timed_shapes
from amc_mobile.latency.table import LatencyTable
from amc_mobile.latency.table_files import KernelShape, foreign_conditions, from_csv, from_lines, to_csv, to_lines
from amc_mobile.store import read_lines

UNIT, THIRD = replace(CONDITIONS, device=f"{CONDITIONS.device}, unit 1f"), conv(32, 8)
BUNDLE, CSV = Path("table.jsonl"), Path("layers.csv")
PHONE = foreign_conditions("slate5", soc="Slate", threads=1)
LAYERS = "net,run,layer,cin,ms\nbig,1,c0,3,4.25\nbig,1,c1,32,2.5\nbig,2,c0,3,4.5\nbig,2,c1,32,2.25\n"


@pytest.fixture
def table(tmp_path: Path) -> LatencyTable:
    made = LatencyTable(tmp_path / "table.sqlite")
    other = replace(CONDITIONS, threads=2)
    made.add_kernels([conv(8, 16), conv(16, 8)])
    for conditions in (CONDITIONS, other):
        rows = [(conv(8, 16).key, one) for one in passes(1.0, 1.01 + conditions.threads)]
        made.add_passes(conditions, [*rows, (conv(16, 8).key, Pass((3.0, 0.1 + 0.2), busy=True))], warmup_runs=4)
    add_model(made, "net", [8, 24], ModelMeasurement(passes(2.0), CONDITIONS, 5))
    return made


def test_a_bundle_brings_back_the_whole_table(table: LatencyTable, tmp_path: Path) -> None:
    lines = to_lines(table.contents())
    with LatencyTable(tmp_path / "other.sqlite") as other:
        assert other.add_contents(from_lines(BUNDLE, lines)) == 7
        assert other.contents() == table.contents()
        assert other.kernels(CONDITIONS) == table.kernels(CONDITIONS)
        assert to_lines(other.contents()) == lines


def test_what_is_there_already_is_left_out(table: LatencyTable) -> None:
    before = table.contents()
    assert table.add_contents(before) == 0
    assert table.contents() == before
    table.add_passes(CONDITIONS, [(conv(8, 16).key, Pass((7.0,)))], warmup_runs=4)
    lines = to_lines(table.contents())
    assert table.add_contents(from_lines(BUNDLE, lines)) == 0


@pytest.fixture
def shared(table: LatencyTable) -> LatencyTable:
    """The table with kernels taken over from another phone of the kind."""
    table.add_passes(UNIT, [(THIRD.key, Pass((2.0, 2.5)))], warmup_runs=4)
    table.add_kernels([THIRD])
    table.adopt(CONDITIONS, UNIT, [THIRD.key], 0.98)
    return table


def test_ratios_of_phones_that_share_a_table_come_along(shared: LatencyTable, tmp_path: Path) -> None:
    lines = to_lines(shared.contents())
    with LatencyTable(tmp_path / "other.sqlite") as other:
        for _ in range(2):
            other.add_contents(from_lines(BUNDLE, lines))
            assert other.adoptions() == {(CONDITIONS.key, UNIT.key): 0.98}
        assert to_lines(other.contents()) == lines


def test_a_ratio_on_record_stays(shared: LatencyTable) -> None:
    lines = to_lines(shared.contents())
    assert json.loads(lines[-2])["ratio"] == 0.98
    shared.add_contents(from_lines(BUNDLE, rebuilt(lines, {"ratio": 0.5}, len(lines) - 3)))
    assert shared.adoptions() == {(CONDITIONS.key, UNIT.key): 0.98}


def test_a_bundle_from_before_there_were_ratios_is_read(table: LatencyTable) -> None:
    lines = to_lines(table.contents())
    lines[0] = lines[0].replace('"format_version": 2', '"format_version": 1')
    assert from_lines(BUNDLE, lines) == table.contents()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ratio": 0}, "times 0"), ({"ratio": "1"}, "times '1'"), ({"ratio": True}, "times True"),
        ({"source": ""}, "does not belong"), ({"source": None, "ratio": None}, "times None"),
    ],
)  # fmt: skip
def test_impossible_ratios_are_refused_with_their_line(
    shared: LatencyTable, change: dict[str, object], why: str
) -> None:
    lines = to_lines(shared.contents())
    with pytest.raises(CorruptFile, match=why) as caught:
        from_lines(BUNDLE, rebuilt(lines, change, len(lines) - 3))
    assert f"line {len(lines) - 1}" in caught.value.message


def test_a_ratio_for_unknown_conditions_is_refused(shared: LatencyTable, tmp_path: Path) -> None:
    lines = to_lines(shared.contents())
    wrong = from_lines(BUNDLE, rebuilt(lines, {"conditions": "ab"}, len(lines) - 3))
    with LatencyTable(tmp_path / "other.sqlite") as other:
        with pytest.raises(InvalidInput, match="unknown conditions 'ab'"):
            other.add_contents(wrong)
        assert other.contents().passes == []


def test_runs_that_took_equally_long_are_all_kept(tmp_path: Path) -> None:
    text = "kernel,ms,run\n" + "".join(f"reshape,0.002,{run}\n" for run in range(3))
    found = from_csv(CSV, text, PHONE, kernel=["kernel"], ms="ms", run="run")
    with LatencyTable(tmp_path / "t.sqlite") as table:
        assert table.add_contents(found) == 3
        assert table.add_contents(found) == 0
        (kernel,) = table.kernels(PHONE).values()
        assert len(kernel.passes) == 3


def rebuilt(lines: list[str], change: dict[str, object], number: int) -> list[str]:
    """A bundle with one line changed and its digest mended."""
    import hashlib

    body = lines[1:-1]
    body[number] = json.dumps(json.loads(body[number]) | change)
    end = json.dumps({"kind": "end", "sha256": hashlib.sha256("\n".join(body).encode()).hexdigest()})
    return [lines[0], *body, end]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"samples_ms": [1.0, -2.0]}, "not possible"), ({"samples_ms": []}, "without samples"),
        ({"samples_ms": [float("nan")]}, "NaN is not JSON"), ({"samples_ms": ["1"]}, "not a number"),
        ({"kind": "rumour"}, "unknown kind"), ({"samples_ms": None}, "line"),
    ],
)  # fmt: skip
def test_impossible_passes_are_refused_with_their_line(
    table: LatencyTable, change: dict[str, object], why: str
) -> None:
    lines = to_lines(table.contents())
    last = len(lines) - 3
    with pytest.raises(CorruptFile, match=why) as caught:
        from_lines(BUNDLE, rebuilt(lines, change, last))
    assert f"line {last + 2}" in caught.value.message


def test_a_key_that_stands_there_twice_is_refused(table: LatencyTable) -> None:
    lines = to_lines(table.contents())
    kernels = [i for i, text in enumerate(lines[1:-1]) if json.loads(text)["kind"] == "kernel"]
    first = json.loads(lines[1 + kernels[0]])
    with pytest.raises(CorruptFile, match="twice"):
        from_lines(BUNDLE, rebuilt(lines, first, kernels[1]))


def test_conditions_that_were_edited_are_refused(table: LatencyTable) -> None:
    lines = to_lines(table.contents())
    edited = replace(CONDITIONS, soc="Better 1").to_document()
    with pytest.raises(CorruptFile, match="does not belong"):
        from_lines(BUNDLE, rebuilt(lines, {"document": edited}, 0))


def test_cut_off_edited_foreign_and_newer_bundles_are_refused(table: LatencyTable) -> None:
    lines = to_lines(table.contents())
    for wrong, why in (
        (lines[:-1], "cut off"), (lines[:4] + lines[-1:], "cut off"), ([], "no bundle"), (["{}"], "no bundle"),
        (["hello"], "not a JSON object"), (["[1]"], "not a JSON object"),
        ([lines[0], lines[1].replace("toy", "tay"), *lines[2:]], "changed after"),
        ([lines[0].replace('"format_version": 2', '"format_version": 3'), *lines[1:]], "format 3"),
        ([lines[0].replace('"format_version": 2', '"format_version": 0'), *lines[1:]], "format 0"),
    ):  # fmt: skip
        with pytest.raises(CorruptFile, match=why):
            from_lines(BUNDLE, wrong)


def test_a_pass_of_something_unknown_is_refused_and_nothing_is_added(table: LatencyTable, tmp_path: Path) -> None:
    contents = table.contents()
    with LatencyTable(tmp_path / "other.sqlite") as other:
        for wrong, why in (
            (replace(contents, conditions={}), "conditions"),
            (replace(contents, kernels={}), "kernel or model"),
        ):
            with pytest.raises(InvalidInput, match=why):
                other.add_contents(wrong)
        assert other.contents().passes == []


def test_csv_is_one_line_per_kernel_and_conditions(table: LatencyTable) -> None:
    text = to_csv(table, {conv(8, 16).label: ["features.0", "features.3"]})
    lines = list(csv.DictReader(text.splitlines()))
    assert text.startswith("conditions,device,soc")
    assert len(lines) == 4
    line = next(line for line in lines if line["key"] == conv(8, 16).key and line["passes"] == "2")
    assert (line["in_channels"], line["out_channels"], line["layer"]) == ("8", "16", "features.0 features.3")
    assert (line["operator"], line["stride"], line["passes"], line["samples"]) == ("conv1x1", "1", "2", "8")


def test_an_exported_csv_can_be_read_as_a_foreign_table(table: LatencyTable) -> None:
    found = from_csv(CSV, to_csv(table, {}), PHONE, kernel=["key"], ms="ms", run="conditions")
    assert sorted(one.one.samples_ms[0] for one in found.passes) == sorted(
        kernel.low_ms for c in table.conditions() for kernel in table.kernels(c).values()
    )


def test_a_table_of_another_tool_becomes_a_table_of_ours(tmp_path: Path) -> None:
    found = from_csv(CSV, LAYERS, PHONE, kernel=["net", "layer", "cin"], ms="ms", run="run")
    with LatencyTable(tmp_path / "t.sqlite") as table:
        assert table.add_contents(found) == 4
        lows = {kernel.label: kernel.low_ms for kernel in table.kernels(PHONE).values()}
        assert lows == {"net=big layer=c0 cin=3": 4.25, "net=big layer=c1 cin=32": 2.25}
        assert table.conditions() == [PHONE]
    assert (PHONE.device, PHONE.soc, PHONE.runtime, PHONE.protocol_version) == ("slate5", "Slate", "unknown", 0)


SHAPES = "net,layer,kind,cin,cout,size,ms\nbig,c0,conv,3,16,32,4.25\nhalf,c0,conv,3,8,32,2.25\n"
SHAPE = {"operator": "kind", "in_channels": "cin", "out_channels": "cout", "out_size": "size"}


def test_a_foreign_table_may_tell_shapes_and_networks(tmp_path: Path) -> None:
    found = from_csv(CSV, SHAPES, PHONE, kernel=["net", "layer"], ms="ms", shape=SHAPE, network="net")
    with LatencyTable(tmp_path / "t.sqlite") as table:
        table.add_contents(found)
        rows = timed_shapes(table.kernels(PHONE), table.kernel_documents())
    shapes = [KernelShape("conv", 3, channels, out_size=32) for channels in (16, 8)]
    assert rows == [TimedShape(shapes[0], 4.25, "big"), TimedShape(shapes[1], 2.25, "half")]


def test_a_foreign_table_without_shapes_cannot_predict_and_says_how_to_mend_it(table: LatencyTable) -> None:
    table.add_contents(from_csv(CSV, SHAPES, PHONE, kernel=["net", "layer"], ms="ms"))
    with pytest.raises(InvalidInput, match="does not hold the shapes") as raised:
        timed_shapes(table.kernels(PHONE), table.kernel_documents())
    assert "--shape" in raised.value.next_step


def test_a_shape_that_cannot_be_is_refused_with_its_line() -> None:
    with pytest.raises(CorruptFile, match="line 3: out_channels 'eight'"):
        from_csv(CSV, SHAPES.replace(",8,", ",eight,"), PHONE, kernel=["net", "layer"], ms="ms", shape=SHAPE)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAYERS + "big,2,c1,32,9.0\n", "line 6: .* is in line 5 already"),
        (LAYERS + "big,3,c1,32,-1\n", "line 6: a latency of -1 ms"), (LAYERS + "big,3,c1,32,nan\n", "nan"),
        (LAYERS + "big,3,c1,32,fast\n", "'fast' is not a number"), (LAYERS + "big,3,,32,1\n", "line 6: an empty"),
        (LAYERS + "big,3\n", "line 6"), ("net,run,layer\n", "no column cin, ms"), ("", "no column"),
        ("net,run,layer,cin,ms\n", "no rows"), (LAYERS + 'big,3,"c', "no CSV|line 6"),
    ],
)  # fmt: skip
def test_csv_that_cannot_be_a_table_is_refused_with_its_line(text: str, why: str) -> None:
    with pytest.raises(CorruptFile, match=why):
        from_csv(CSV, text, PHONE, kernel=["net", "layer", "cin"], ms="ms", run="run")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"none\.jsonl: cannot be read \(No such file"):
        read_lines(tmp_path / "none.jsonl", next_step="export again")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(CorruptFile, match="not text"):
        read_lines(tmp_path / "bytes", next_step="export again")
