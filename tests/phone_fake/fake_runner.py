"""A stand-in for the benchmark program where tests need it to misbehave: the contract's manifest in, JSON lines out.

A model is a text of words: `ms=1.5` is its latency, `wait=0.2` the seconds it takes, `crash` ends the runner at once,
`garbage` writes bytes that are no text, `fail` is a model that does not load. A real model takes longer
the larger its file is, times what the phone's file `slowness` says.
"""

import json
import os
import sys
import time
from pathlib import Path

RESULTS = Path(sys.argv[2]).open("ab", buffering=0)  # noqa: SIM115


def emit(event, **values):
    RESULTS.write(json.dumps({"format_version": 1, "event": event, **values}).encode() + b"\n")


def main():
    globals_ = {}
    index = errors = 0
    for line in Path(sys.argv[1]).read_text().splitlines()[1:]:
        key, _, value = line.partition(" ")
        if key != "model":
            globals_[key] = value
            continue
        if index == 0:
            start(globals_)
        identifier, path = value.split(" ", 1)
        words = words_of(Path(path))
        time.sleep(float(words.get("wait", 0)))
        if "crash" in words:
            print("Segmentation fault", file=sys.stderr)
            os._exit(139)
        if "garbage" in words:
            RESULTS.write(b"\xff\xfe\n")
        if "fail" in words:
            emit("error", index=index, id=identifier, message="not a model")
            errors += 1
        else:
            ms = float(words["ms"])
            samples = [ms] * int(globals_.get("samples", 4))
            emit(
                "result", index=index, id=identifier, load_ms=1.0, first_ms=ms, warmup_runs=4, runs_per_sample=1,
                samples_ms=samples, peak_rss_kb=1000,
            )  # fmt: skip
        index += 1
    emit("end", status="done", results=index - errors, errors=errors, message="")


def words_of(path):
    content = path.read_bytes()
    if b"ms=" in content[:100]:
        return dict(word.partition("=")[::2] for word in content.decode().split())
    # A model of the real format: every phone takes a time of its own for its size.
    return {"ms": (0.1 + len(content) / 1e6) * float((Path(os.environ["PHONE"]) / "slowness").read_text())}


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
