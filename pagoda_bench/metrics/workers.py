"""Several processes that look at the batches of a set together, each at every so-many-th batch.

    with Workers(4) as workers:
        gather(stream, extractors, wanted, look=workers.looks)

Batches are those of one process, and what was seen comes back in their order, so nothing that is computed from it depends on
the number of processes. They are fresh interpreters (spawn), which open the images and load the networks by themselves, share
this process's threads, and end with it, however it ends.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors import load_extractor
from pagoda_bench.metrics.extractors.base import Extractor, Origin
from pagoda_bench.metrics.inputs import Array, Part, Stream
from pagoda_bench.metrics.looks import Captions, Seen, Wanted, looks
from pagoda_bench.metrics.opening import open_images

AHEAD = 4  # batches of one worker that wait here for those of slower ones
GRACE = 5.0  # seconds for a process to end


@dataclass(frozen=True)
class Network:
    """How a worker loads a network, and what must come of it."""

    origin: Origin
    protocol: Mapping[str, str]


@dataclass(frozen=True)
class Task:
    """One worker's part of a pass."""

    stream: Stream
    networks: Mapping[str, Network]  # those that are wanted
    wanted: Wanted
    count: int
    batch: int
    captions: Captions
    part: Part


@dataclass(frozen=True)
class Failure:
    """What ended a task early. `kind` is empty for a `UserError`, whose text says it all."""

    kind: str
    text: str


class Workers:
    """Up to `jobs` processes, started when there is work for them and ended with the context.

    Raises `UserError` for fewer than one, and from `looks`: for networks that are in memory alone, for a worker that died
    (which, how, and where it was), and whatever a worker raised.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise UserError(f"{jobs} processes cannot evaluate: choose --jobs 1 or more")
        self.jobs = jobs
        self._crew: list[_Worker] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._dismiss()
        if self._folder is not None:
            self._folder.cleanup()

    def _dismiss(self) -> None:
        while self._crew:
            self._crew.pop().end()

    def looks(
        self,
        stream: Stream,
        extractors: Mapping[str, Extractor],
        wanted: Wanted,
        count: int,
        batch: int,
        captions: Captions = None,
    ) -> Iterator[Seen]:
        """As `looks.looks`, by all workers; by this process where there is one batch or one job."""
        number = min(self.jobs, -(-count // batch))
        if number < 2:
            yield from looks(stream, extractors, wanted, count, batch, captions)
            return
        names = {name for name, _ in wanted.moments | wanted.rows} | wanted.texts
        networks = {name: _network(name, extractors[name], self.jobs) for name in sorted(names)}
        shared = self._shared(stream)
        captions = captions if wanted.texts else None
        threads = max(1, torch.get_num_threads() // self.jobs)
        while len(self._crew) < number:
            self._crew.append(_Worker(len(self._crew), self.jobs, threads))
        crew, turn, done = self._crew[:number], 0, False
        try:
            for worker in crew:
                part = Part(worker.index, number)
                worker.begin(Task(shared, networks, wanted, count, batch, captions, part), stream.where)
            while (seen := _next(crew, turn % number)) is not None:
                yield seen
                turn += 1
            for index in range(number):  # all say that they are done before the next pass begins
                if index != turn % number and _next(crew, index) is not None:
                    raise UserError(f"{stream.where}: one process found more images there than another: does it change?")
            done = True
        finally:
            if not done:  # what is still on its way belongs to no other pass
                self._dismiss()

    def _shared(self, stream: Stream) -> Stream:
        """A stream that is cheap to send: images in memory lie in a file that all read."""
        if not isinstance(stream, Array):
            return stream
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="pagoda-bench-")
        path = Path(self._folder.name) / f"{len(os.listdir(self._folder.name))}.npz"
        stream.save(path)
        found = open_images(path)
        found.where = stream.where
        return found


class _Worker:
    """One process, as its parent sees it."""

    def __init__(self, index: int, jobs: int, threads: int) -> None:
        self.index, self.name = index, f"worker {index + 1} of {jobs}"
        self.waiting: deque[Seen | Failure | None] = deque()
        self._task: Task | None = None
        self._where, self._taken, self._begun = "", 0, False
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: SpawnProcess = context.Process(
            target=work, args=(theirs, index, threads), name=f"pagoda-bench {self.name}", daemon=True
        )
        try:
            with _deaf():
                self._process.start()
        except OSError as error:
            self.connection.close()
            raise UserError(f"{self.name} cannot be started ({error.strerror or error}): take fewer jobs") from None
        theirs.close()  # so that the end of the worker is the end of the connection

    def begin(self, task: Task, where: str) -> None:
        self.waiting.clear()
        self._task, self._where, self._taken = task, where, 0
        try:
            self.connection.send(task)
        except OSError:
            raise self._death() from None
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:80]
            raise UserError(f"{where} cannot be read by another process ({reason}): use one process (--jobs 1)") from None

    def receive(self) -> None:
        """Takes one message, which has come."""
        try:
            self.waiting.append(self.connection.recv())
        except (EOFError, OSError):
            raise self._death() from None
        self._taken += 1
        self._begun = True

    def next(self) -> Seen | None:
        """The oldest message; None at the end of the task. A failure is raised in its turn, as one process would."""
        found = self.waiting.popleft()
        if not isinstance(found, Failure):
            return found
        if not found.kind:
            raise UserError(found.text)
        self._taken -= 1
        raise UserError(f"{self.name} failed {self._at()}: {found.kind}: {found.text}; --jobs 1 shows where")

    def end(self) -> None:
        self.connection.close()
        self._process.terminate()
        self._process.join(GRACE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def _at(self) -> str:
        assert self._task is not None
        first = (self.index + self._taken * self._task.part.of) * self._task.batch
        last = min(first + self._task.batch, self._task.count) - 1
        return f"at images {first:,} to {last:,} of {self._where}" if first <= last else f"at the end of {self._where}"

    def _death(self) -> UserError:
        self._process.join(GRACE)
        code = self._process.exitcode
        how, hint = f"ended with exit code {code}", "--jobs 1 shows more"
        if code is not None and code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            hint = "often memory has run out; take fewer jobs, or a smaller --batch"
        elif code == 1 and not self._begun:
            hint = "it could not start; a script must call evaluate below: if __name__ == '__main__'"
        return UserError(f"{self.name} {how} {self._at()}: {hint}")


def _next(crew: list[_Worker], turn: int) -> Seen | None:
    """The next message of one worker; what others send meanwhile is kept for their turn."""
    while not crew[turn].waiting:
        able = {worker.connection: worker for worker in crew if len(worker.waiting) < AHEAD}
        for connection in wait(list(able)):
            able[connection].receive()  # type: ignore[index]
    return crew[turn].next()


def _network(name: str, extractor: Extractor, jobs: int) -> Network:
    if extractor.origin is None:
        raise UserError(f"network '{name}' is in memory alone, where {jobs} processes cannot share it: give its name or file")
    return Network(extractor.origin, extractor.protocol)


@contextmanager
def _deaf() -> Iterator[None]:
    """What starts here never hears Ctrl-C, which the terminal sends to all: this process ends the others itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def work(connection: Connection, index: int, threads: int) -> None:
    """What a worker does, in its own process: task after task, until nobody sends one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    loaded: dict[str, tuple[Network, Extractor]] = {}
    with connection, suppress(EOFError, BrokenPipeError):
        while True:
            connection.poll(None)
            with _Telling(connection):
                task: Task = connection.recv()
                for name, network in task.networks.items():
                    if name not in loaded or loaded[name][0] != network:
                        loaded[name] = (network, _load(network, index))
                extractors = {name: loaded[name][1] for name in task.networks}
                for seen in looks(task.stream, extractors, task.wanted, task.count, task.batch, task.captions, task.part):
                    connection.send(seen)
                connection.send(None)


def device_of(device: str, index: int, gpus: int) -> str:
    """Where worker number `index` computes: "cuda" means any, so workers take the GPUs in turn."""
    return f"cuda:{index % gpus}" if device == "cuda" and gpus > 1 else device


def _load(network: Network, index: int) -> Extractor:
    name, weights, device, precision = network.origin
    found = load_extractor(name, weights, device_of(device, index, torch.cuda.device_count()), precision)
    if found.protocol != network.protocol:
        raise UserError(f"the weights of network '{name}' changed while they were used: run it again")
    return found


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


class _Telling:
    """Sends what went wrong inside to the parent, which says it in one line; the worker lives on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if error is None or isinstance(error, (EOFError, BrokenPipeError, SystemExit)):
            return False
        name = "" if isinstance(error, UserError) else type(error).__name__
        self._connection.send(Failure(name, str(error) if not name else " ".join(str(error).split())[:200]))
        return True
