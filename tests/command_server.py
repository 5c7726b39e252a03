"""Imports modules, then forks a process for each command that it is asked for. Started by `command_line`.

A request is a datagram on the socket that is standard input: [folder, arguments, environment] in JSON, with the
descriptors of the command's stdout and stderr and of a pipe. The pipe brings its pid and, at its end, its exit code.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import warnings

NUMBER = struct.Struct("=q")
REQUEST_BYTES = 1 << 17


def serve(requests: socket.socket) -> bool:
    """Returns False where all requests are done, and True in the process of a command, which is to be run."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, REQUEST_BYTES, 3)
        if not request:
            return False
        if os.fork() == 0:
            requests.close()
            return watch(request, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        while reap():
            pass


def reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return False


def watch(request: bytes, descriptors: list[int]) -> bool:
    """Forks again: the first process tells the end of the second, which is the command's."""
    out, err, status = descriptors
    pid = os.fork()
    if pid:
        os.write(status, NUMBER.pack(pid))
        _, ended = os.waitpid(pid, 0)
        os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(ended)))
        os._exit(0)
    os.close(status)
    folder, words, environment = json.loads(request)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, max(out, err) + 1)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["amc-mobile", *words]
    # A shell that starts the tests in the background has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests were started with nohup
    return True


def run() -> None:
    """The command, to its end; all but the interpreter's taking down of the modules, which takes a second of them."""
    from amc_mobile.cli import main

    try:
        main()
    except SystemExit as end:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)


if __name__ == "__main__":
    sys.path[0] = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in sys.argv[1:]:
            importlib.import_module(name)
    gc.freeze()
    if serve(socket.socket(fileno=os.dup(0))):
        run()
