"""Started once for a whole test run, by conftest.py: it imports what most processes of the tests begin with,
and forks each process that a test asks for (`forks.py`). It uses nothing of what it has imported, so that no
thread runs in it, and it ends with the test run."""

import atexit
import gc
import importlib
import os
import pickle
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NoReturn

from pipeline.processes import end_with_parent

BEGIN_WITH = ("tasks", "pipeline.train.loop")
"""Modules that are there in each process."""
STDIN, OUT, ERR = range(3)
INSTALLED = sys.path[2:]
"""Behind the folder of this file and the one that PYTHONPATH names."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A process of Python. words: its command line behind the interpreter. call: runs instead, a pickled
    function and its arguments. paths: where modules are found, beside the folder of what is run and what is
    installed. imports: more modules that are to be there already; they stay in the server."""

    words: tuple[str, ...]
    call: bytes | None
    paths: tuple[str, ...]
    environment: dict[str, str]
    folder: str
    imports: tuple[str, ...]


def serve(listener: socket.socket) -> None:
    """Answers until the test run, which holds the other end of this process' stdin, is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while STDIN not in select.select([listener, STDIN], [], [])[0]:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as stream:
            _, files, *_ = socket.recv_fds(connection, 1, 2)
            request: Request = pickle.load(stream)
            for name in (*BEGIN_WITH, *request.imports):
                importlib.import_module(name)
            gc.collect()
            gc.freeze()
            if os.fork() == 0:
                listener.close()
                watch(request, files, connection)
            for file in files:
                os.close(file)
        collect()
    collect()


def collect() -> None:
    """Waits for those that have ended, so that their times count as those of the test run."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def watch(request: Request, files: list[int], connection: socket.socket) -> NoReturn:
    """Starts the process, tells its id, waits for it and tells its exit status."""
    try:
        end_with_parent()
        if (process := os.fork()) == 0:
            os.close(connection.fileno())
            become(request, files)
        for file in files:
            os.close(file)
        connection.sendall(f"{process}\n".encode())
        status = os.waitpid(process, 0)[1]
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    finally:
        os._exit(0)


def become(request: Request, files: list[int]) -> NoReturn:
    """This process does what is asked, and ends as the interpreter does: behind its threads, with what was
    registered for its exit."""
    code = 1
    try:
        end_with_parent()
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for file, number in zip((nothing, *files), (STDIN, OUT, ERR), strict=True):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request.folder)
        os.environ.clear()
        os.environ.update(request.environment)
        code = status_of(lambda: run(request))
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def status_of(do: Callable[[], Any]) -> int:
    """The exit status of a process that does this. 1 for any exception."""
    try:
        do()
        return 0
    except SystemExit as exit:
        if isinstance(exit.code, str):
            print(exit.code, file=sys.stderr)
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        return 1


def run(request: Request) -> None:
    main = sys.modules["__main__"] = ModuleType("__main__")
    sys.path[:] = [*request.paths, *INSTALLED]
    if request.call is not None:
        function, arguments = pickle.loads(request.call)
        function(*arguments)
        return
    first, *rest = request.words
    if first == "-m":
        sys.path.insert(0, request.folder)
        sys.argv = rest
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
        return
    sys.path.insert(0, "" if first == "-c" else os.path.dirname(first))
    sys.argv = [first, *rest[1:]] if first == "-c" else [first, *rest]
    if first != "-c":
        main.__file__ = first
    text = rest[0] if first == "-c" else open(first).read()
    exec(compile(text, "<string>" if first == "-c" else first, "exec"), main.__dict__)


if __name__ == "__main__":
    sys.modules["fork_server"] = sys.modules["__main__"]  # by which name requests come
    serve(socket.socket(fileno=int(sys.argv[1])))
