"""A stand-in for the benchmark program where tests need it to misbehave: the contract's manifest in, JSON lines out.

A model is a text of words: `ms=1.5` is its latency, `wait=0.2` the seconds it takes, `crash` ends the runner at once,
`hang` stops it as a signal does, `garbage` writes bytes that are no text, `fail` is a model that does not load. Any
other file's latency follows from its size, times what the phone's file `slowness` says, if it is there. What was
reported stands in `reported` beside the phone's other answers, a latency a line; the runner stops there when it has as
many lines as `pause_at` says, until that file is gone. `graph` beside them, if it is there, is the graph that a runtime
makes of any model.
"""

import base64
import json
import os
import signal
import sys
import time
from pathlib import Path

RESULTS = Path(sys.argv[2]).open("ab", buffering=0)  # noqa: SIM115
STATE = Path(os.environ["PHONE"]) / "state"
MS_PER_BYTE = 1e-4


def emit(event, **values):
    if (STATE / "free_kib").read_text().strip() == "0":
        os._exit(1)  # what cannot be written, the log neither
    RESULTS.write(json.dumps({"format_version": 1, "event": event, **values}).encode() + b"\n")


def main():
    globals_ = {}
    models = []
    for line in Path(sys.argv[1]).read_text().splitlines()[1:]:
        key, _, value = line.partition(" ")
        if key == "model":
            models.append((*value.split(" ", 1), dict(globals_)))
        elif key == "pair":
            first, first_path, second, second_path = value.split("\t")
            models += [(first, first_path, dict(globals_)), (second, second_path, dict(globals_))]
        else:
            globals_[key] = value
    start(globals_)
    errors = sum([not measured(index, *model) for index, model in enumerate(models)])
    emit("end", status="done", results=len(models) - errors, errors=errors, message="")


def measured(index, identifier, path, values):
    words = words_of(Path(path).read_bytes())
    time.sleep(float(words.get("wait", 0)))
    if "crash" in words:
        print("Segmentation fault", file=sys.stderr)
        os._exit(139)
    if "hang" in words:
        os.kill(os.getpid(), signal.SIGSTOP)
    if "garbage" in words:
        RESULTS.write(b"\xff\xfe\n")
    if "fail" in words:
        emit("error", index=index, id=identifier, message="not a model")
        return False
    pause()
    graph = STATE / "graph"
    if "graph_path" in values and graph.exists():
        emit("graph", index=index, id=identifier, base64=base64.b64encode(graph.read_bytes()).decode())
    ms = float(words["ms"])
    emit(
        "result", index=index, id=identifier, load_ms=1.0, first_ms=ms, warmup_runs=4, runs_per_sample=1,
        samples_ms=[ms] * int(values.get("samples", 4)), peak_rss_kb=1000, switches=2,
        clock_ms=20, clock_mhz_ms=45000, clock_top_ms=15,
    )  # fmt: skip
    with (STATE / "reported").open("a") as reported:
        reported.write(f"{ms!r}\n")
    return True


def words_of(content):
    if content.startswith((b"ms=", b"fail", b"crash", b"hang", b"garbage")):
        return dict(word.partition("=")[::2] for word in content.decode().split())
    slowness = STATE.parent / "slowness"
    return {"ms": len(content) * MS_PER_BYTE * (float(slowness.read_text()) if slowness.exists() else 1.0)}


def pause():
    limit, reported = STATE / "pause_at", STATE / "reported"
    try:
        if len(reported.read_text().splitlines()) != int(limit.read_text()):
            return
    except (OSError, ValueError):
        return
    while limit.exists():
        time.sleep(0.02)


def start(values):
    if not Path(values["library"]).exists():
        print("no library", values["library"], file=sys.stderr)
        os._exit(1)
    emit(
        "start", runner="fake", pid=os.getpid(), runtime=values["runtime"],
        runtime_version=values.get("runtime_version", ""), threads=int(values["threads"]),
        cores_wanted=values.get("cores", ""), cores_seen=values.get("cores", ""),
    )  # fmt: skip


main()
