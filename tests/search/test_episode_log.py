from dataclasses import replace

import pytest

from amc_mobile.errors import CorruptFile, InvalidInput
from amc_mobile.search.episode_log import COLUMNS, EpisodeLog, EpisodeRow, Pending

ROW = EpisodeRow(0, "uniform", 0.1 + 0.2, None, 1 / 3, 6.9, 7.0, None, None, 1e6, None, 0.1, 0.2, 0.3, 0.0, (8, 16))


def started(path) -> EpisodeLog:
    log = EpisodeLog(path, identity={"model": "plain20"})
    log.start({"policy": "random", "seed": 0}, {"limit": 7.0})
    return log


def test_rows_read_back_are_equal_to_the_last_bit(tmp_path):
    log = started(tmp_path / "episodes.csv")
    rows = [ROW, replace(ROW, episode=1, measured_ms=1e-17, ci_high_ms=2.0, top1=0.7)]
    for row in rows:
        log.append(row)
    assert EpisodeLog(tmp_path / "episodes.csv").rows == rows


def test_the_file_is_plain_csv_with_named_columns(tmp_path):
    started(tmp_path / "episodes.csv").append(ROW)
    header, line = (tmp_path / "episodes.csv").read_text().splitlines()
    assert header == ",".join(COLUMNS)
    assert line.endswith(",8 16")


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / "episodes.csv"
    log = started(path)
    log.append(ROW)
    with path.open("a") as stream:
        stream.write("1,uniform,0.3,,0.33")
    again = started(path)
    assert again.rows == [ROW]
    again.append(replace(ROW, episode=1))
    assert [row.episode for row in EpisodeLog(path).rows] == [0, 1]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "episodes.csv"
    started(path).append(ROW)
    path.write_text(path.read_text().replace("uniform", "uniform,extra"))
    with pytest.raises(CorruptFile, match="line 2"):
        EpisodeLog(path)


def test_a_pending_plan_is_known_until_its_line_is_written(tmp_path):
    path = tmp_path / "episodes.csv"
    pending = Pending("random", (8, 16), 6.9, 7.0)
    log = started(path)
    log.begin(pending)
    assert EpisodeLog(path).pending == pending
    log.append(ROW)
    assert EpisodeLog(path).pending is None


def test_a_log_of_another_search_is_refused_naming_what_differs(tmp_path):
    started(tmp_path / "episodes.csv")
    log = EpisodeLog(tmp_path / "episodes.csv", identity={"model": "resnet20"})
    with pytest.raises(InvalidInput, match="model was 'plain20', now 'resnet20'"):
        log.start({"policy": "random", "seed": 0}, {"limit": 7.0})
