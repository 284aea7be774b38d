"""Processes that share work: on this machine, or an engine's. What is lost with one of them is done again by another.

An engine is a block that yields ``call(function, task)``, which returns what the function makes of the task in some
process. Nothing here knows what the work is.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib import import_module
from queue import Empty, Queue
from threading import Event, Lock, Thread
from typing import Any

from diffeo.errors import UserError

__all__ = ["ENGINES", "cores", "expect_engine", "granted", "in_order", "processes"]

TRIES = 4  # of a task whose worker is lost
WATCHED = 0.5  # seconds between two looks at whether the parent is there
AHEAD = 2  # results for each worker that wait for an earlier one, at most

Call = Callable[[Callable[[Any], Any], Any], Any]


def in_order(
    function: Callable[[Any], Any], tasks: Iterable[Any], engine: str, workers: int | None
) -> Generator[Any, None, None]:
    """Yield what a function makes of tasks, in their order and each once, computed by the workers of an engine.

    Args:
        function: of one task, importable by its name in another process; results and tasks are pickled.
        tasks: that need not be known before.
        engine: one of ``ENGINES``.
        workers: how many tasks are under way at once; by default as many as the engine has cores.

    Raises:
        UserError: for an unknown engine, one that is not installed, a task with which worker after worker was lost, or
            as the function does.
    """
    expect_engine(engine, workers)
    with ExitStack() as stack:
        call, count = stack.enter_context(ENGINES[engine](workers))
        threads = ThreadPoolExecutor(count)
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        waiting: deque[Future[Any]] = deque()
        for task in tasks:
            waiting.append(threads.submit(call, _Caught(function), task))
            if len(waiting) > AHEAD * count:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def expect_engine(engine: str, workers: int | None) -> None:
    """Refuse an engine that there is not, before any work.

    Args:
        engine: its name.
        workers: how many, or None.

    Raises:
        UserError: for an unknown one, one that is not installed, or no workers.
    """
    if engine not in ENGINES:
        raise UserError(f"expected an engine (--engine) among {', '.join(ENGINES)}, got {engine!r}")
    if workers is not None and workers < 1:
        raise UserError(f"expected at least 1 worker (--workers), got {workers}")
    for module in _MODULES[engine]:
        _needed(engine, module)


class _Caught:
    """A function whose mistakes of users are results: engines wrap what is raised, or do it again."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, task: Any) -> Any:
        try:
            return self.function(task)
        except UserError as error:
            return error


def _result(future: Future[Any]) -> Any:
    result = future.result()
    if isinstance(result, UserError):
        raise result
    return result


def granted() -> int | None:
    """How many threads this process may use: as the engine that runs it says, or None where nobody does.

    That is what Ray has assigned to a task or an actor, OMP_NUM_THREADS, which Spark and Dask set, and else 1 in a
    process that another Python process has started, beside which there are others.
    """
    ray = sys.modules.get("ray")
    if ray is not None:
        with suppress(Exception):  # not in a worker
            return max(1, int(ray.get_runtime_context().get_assigned_resources()["CPU"]))
    words = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if words.isdecimal() and int(words):
        return int(words)
    return None if multiprocessing.parent_process() is None else 1


_MODULES = {"local": (), "ray": ("ray",), "spark": ("pyspark", "pyspark.sql"), "dask": ("dask", "dask.distributed")}


def _needed(engine: str, module: str) -> Any:
    """Import what an engine needs.

    Raises:
        UserError: if it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = module.split(".")[0]
        raise UserError(
            f"--engine {engine} needs {name}, which is not installed; pip install 'diffeo[{engine}]'"
        ) from error


def cores() -> int:
    """How many cores this process may use."""
    from joblib import cpu_count

    count: int = cpu_count()
    return count


@contextmanager
def processes(count: int) -> Iterator[Any]:
    """An executor of so many processes of one thread each, which need no guard in the script that starts them.

    They end with the block, and with this process, however it ends.

    Args:
        count: how many.
    """
    pool = _pool(count)
    try:
        yield pool
    finally:
        _end(pool)


def _end(pool: Any) -> None:
    """End an executor's processes, whatever they do; nobody may submit any more."""
    with suppress(Empty):  # loky's thread drops all calls, and breaks where it then finds one that it has to pass on
        while True:
            pool._work_ids.get_nowait()
    pool.shutdown(wait=True, kill_workers=True)


def _pool(count: int) -> Any:
    from joblib.externals.loky import ProcessPoolExecutor

    return ProcessPoolExecutor(count, env={"OMP_NUM_THREADS": "1"}, initializer=_end_with, initargs=(os.getpid(),))


def _end_with(parent: int) -> None:
    """End this process when its parent has ended: who is killed tells nobody, and others hold the pipes open."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCHED)
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _local(workers: int | None) -> Iterator[tuple[Call, int]]:
    """Processes on this machine, each of one thread; they need no guard in the script that starts them."""
    count = workers or cores()
    # A pool for each worker: where one process is killed, no other is affected.
    pools: Queue[Any] = Queue()
    made: list[Any] = []
    closed, taking = Event(), Lock()

    def fresh() -> Any:
        made.append(_pool(1))
        return made[-1]

    for _ in range(count):
        pools.put(fresh())

    def call(function: Callable[[Any], Any], task: Any) -> Any:
        for _ in range(TRIES):
            pool = pools.get()
            try:
                with taking:
                    if closed.is_set():
                        raise BrokenProcessPool("expected a pool that takes tasks, got one that has ended")
                    future = pool.submit(function, task)
                return future.result()
            except BrokenProcessPool:
                if closed.is_set():  # nobody waits for the result
                    raise
                made.remove(pool)
                pool.shutdown(wait=False, kill_workers=True)
                pool = fresh()
            finally:
                pools.put(pool)
        raise UserError(f"worker after worker was killed at the same part ({task}); is there enough memory?")

    try:
        yield call, count
    finally:
        with taking:
            closed.set()
        for pool in [*made]:
            _end(pool)


@contextmanager
def _ray(workers: int | None) -> Iterator[tuple[Call, int]]:
    """Tasks of Ray: of the cluster that RAY_ADDRESS names or the program has joined, or of one on this machine."""
    ray = _needed("ray", "ray")
    ours = not ray.is_initialized()
    if ours:
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or cores(), "include_dashboard": False}
        ray.init(logging_level="error", log_to_driver=False, **here)
    remote = ray.remote(_call).options(num_cpus=1, max_retries=TRIES - 1)

    def call(function: Callable[[Any], Any], task: Any) -> Any:
        try:
            return ray.get(remote.remote(function, task))
        except ray.exceptions.WorkerCrashedError as error:
            raise UserError(f"worker after worker was killed at the same part ({task}); is there enough memory?") from (
                error
            )

    try:
        yield call, workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _spark(workers: int | None) -> Iterator[tuple[Call, int]]:
    """Jobs of one task each, of the session that the program has, or of one that Spark's configuration describes."""
    pyspark = _needed("spark", "pyspark")
    sql = _needed("spark", "pyspark.sql")
    active = sql.SparkSession.getActiveSession()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = sql.SparkSession.builder.config("spark.ui.showConsoleProgress", "false")
    if active is None and not pyspark.SparkConf().contains("spark.master"):
        builder = builder.master(f"local[{workers or cores()},{TRIES}]").config("spark.ui.enabled", "false")
    session = active or builder.getOrCreate()
    if active is None:
        session.sparkContext.setLogLevel("OFF")
    context = session.sparkContext

    def call(function: Callable[[Any], Any], task: Any) -> Any:
        return context.parallelize([task], 1).map(function).collect()[0]

    try:
        yield call, workers or context.defaultParallelism
    finally:
        if active is None:
            session.stop()


@contextmanager
def _dask(workers: int | None) -> Iterator[tuple[Call, int]]:
    """Tasks of Dask: of the client that the program has, the scheduler that is configured, or a cluster here."""
    distributed = _needed("dask", "dask.distributed")
    dask = _needed("dask", "dask")
    with ExitStack() as stack:
        try:
            client = distributed.get_client()
        except ValueError:
            address = dask.config.get("scheduler-address", None)
            if address is None:
                quiet = {"dashboard_address": None, "silence_logs": 50}
                address = stack.enter_context(
                    distributed.LocalCluster(n_workers=workers or cores(), threads_per_worker=1, **quiet)
                )
            client = stack.enter_context(distributed.Client(address))

        def call(function: Callable[[Any], Any], task: Any) -> Any:
            return client.submit(function, task, pure=False).result()

        yield call, workers or max(1, sum(client.nthreads().values()))


def _call(function: Callable[[Any], Any], task: Any) -> Any:
    return function(task)


ENGINES: Mapping[str, Callable[[int | None], AbstractContextManager[tuple[Call, int]]]] = {
    "local": _local,
    "ray": _ray,
    "spark": _spark,
    "dask": _dask,
}
