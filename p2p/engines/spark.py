"""The Spark engine: every executor is a peer. Partitions are ordinary, independent Spark tasks.

    driver program                                    executor
    start:  a small job whose tasks start agents  ->  the first task starts the agent; it lives as long as the executor
    run:    one job over all epochs               ->  each task finds the agent beside it and hands it its update

No barrier, no shuffle, no weight in a closure or a result: only the skeleton of the model travels with the job.
"""

from __future__ import annotations

import importlib
import ipaddress
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from typing import Any, Literal, TypeVar, cast

from pyspark import RDD, Accumulator, Broadcast, InheritableThread, RDDBarrier, SparkConf, SparkContext, TaskContext
from pyspark.accumulators import _accumulatorRegistry

from gossip.errors import UsageError
from gossip.zmq.sockets import is_loopback
from p2p import chance, parcel
from p2p.agent.client import AgentGoneError, AgentSettings, ensure_agent
from p2p.driver.registrar import Registrar
from p2p.engines import Progress, spark_secrets
from p2p.row_order import in_order
from p2p.standby.process import Settings, is_beside, start_standby
from p2p.worker.errors import PartitionError, Seal
from p2p.worker.job import Job, TaskResult
from p2p.worker.task import run_partition

log = logging.getLogger("p2p")

START_TIMEOUT_S = 120.0
"""For all executors to come and start their agents: a busy cluster hands them out one by one."""
SETTLE_S = 0.3
"""How long a starting task stays, so that the others go to other executors; an agent starts in about as long."""
SETTLE_MAX_S = 5.0
"""It stays longer each time. With speculation Spark ends a task that takes longer than others, such as the first one on
an executor that is slow to begin, as soon as a copy of it is done elsewhere."""
STEADY_S = 3.0
"""Where the configuration does not say how many executors will come: nobody came for so long."""
STANDBY_TRIES = 4
"""To find an executor that has no standby yet."""
PROGRESS_S = 0.25
READ_ON_S = 2.0
"""So long a new worker takes to begin, which has to import gensim, and its kernels, anew."""
WAIT_S = 0.1
"""How soon Ctrl-C is noticed while a job runs."""
CANCEL_TIMEOUT_S = 10.0
"""Spark ends the Python workers of a job that was called off after two seconds."""

SET_HOST = "set spark.driver.host to an IPv4 address of this machine that the executors can reach"
"""What to do where agents of executors would not find the driver program's."""
SHUFFLE = b"+-"
"""What Spark draws in the lineage of an RDD where it reads a shuffle."""
Order = Literal["DETERMINATE", "UNORDERED", "INDETERMINATE"]
"""What Spark promises of an RDD that it computes again: all is as it was; the same rows in some order; nothing."""

T = TypeVar("T")


class SparkEngine:
    """Trains on the executors of one SparkContext."""

    def __init__(self, context: SparkContext) -> None:
        self.context = context
        self.address = driver_address(context)
        self.peers = 1
        self._settings: AgentSettings | None = None
        self._group = ""
        use_own_python(context)

    def partitions(self, data: RDD[Any]) -> int:
        check_runs(self.context)
        return data.getNumPartitions()

    def cautions(self, data: RDD[Any]) -> Mapping[str, str]:
        conf = self.context.getConf()
        if _is_local(self.context):
            return {}
        about_data = cautions(conf, _is_set(conf, "dynamicAllocation.enabled") and _kept(data))
        return {**about_data, **cautions_of_secrets(self.context)}

    def start(self, settings: AgentSettings | None, registrar: Registrar | None, modules: Collection[str] = ()) -> None:
        self._settings = settings
        if settings is None or registrar is None:
            self.peers = max(1, executor_count(self.context), _requested(self.context) or 1)
            return
        give_up = time.monotonic() + START_TIMEOUT_S
        registrar.forget({member.peer for member in registrar.by_role("peer") if registrar.is_silent(member)})
        executors, steady_since, settle_s = 0, time.monotonic(), SETTLE_S
        while True:
            before, executors = executors, executor_count(self.context)
            if executors != before:
                steady_since = time.monotonic()
            requested = _requested(self.context)
            wanted = max(executors, requested or 1)
            steady = executors >= requested if requested else time.monotonic() - steady_since > STEADY_S
            if steady and len(registrar.by_role("peer")) >= wanted:
                break
            if time.monotonic() > give_up:
                found = len(registrar.by_role("peer"))
                if found == executors > 0:
                    break  # fewer executors than asked for: train with those that are there
                raise UsageError(
                    f"{found} agents on {executors} executors after {START_TIMEOUT_S:g} s: see their stderr"
                )
            if len(registrar.by_role("peer")) < wanted:
                self._start_agents(settings, max(self.context.defaultParallelism, wanted), settle_s, modules)
                settle_s = min(2 * settle_s, SETTLE_MAX_S)
                registrar.wait(lambda: len(registrar.by_role("peer")) >= wanted, SETTLE_S)  # noqa: B023
            else:
                time.sleep(SETTLE_S)
        self.peers = len(registrar.by_role("peer"))

    @property
    def workers(self) -> int:
        return max(self.peers, self.context.defaultParallelism)

    def start_standby(self, settings: Settings) -> Callable[[], bool]:
        """Start another master, beside an executor that has none yet; what is returned says False if that failed."""
        errors: list[Exception] = []

        def start() -> None:
            try:
                for attempt in range(STANDBY_TRIES):
                    if any(self._start_standby(settings, anywhere=attempt + 1 == STANDBY_TRIES)):
                        return
            except Exception as error:  # noqa: BLE001 - who waits for the standby says that it did not come
                log.warning("a standby could not be started: %s", error)
                errors.append(error)

        InheritableThread(target=start, name="deepdist-standby", daemon=True).start()
        return lambda: not errors

    def _start_standby(self, settings: Settings, anywhere: bool) -> list[bool]:
        def start(_: Iterable[Any]) -> Iterator[bool]:
            anchor = os.getppid()
            name = f"deepdist-{settings.run[:12]}-{anchor}-standby"
            if is_beside(name) and not anywhere:
                time.sleep(SETTLE_S)  # the next try is more likely to go elsewhere
                yield False
                return
            process = start_standby(settings, anchor, "" if is_beside(name) else name)
            process.returncode = 0  # it outlives this worker: nobody here waits for it
            time.sleep(SETTLE_S)
            yield True

        job = self.context.parallelize([0], 1).mapPartitions(start)
        self.context.setJobGroup("deepdist-standby", "deepdist: starting a standby")
        return job.collect()

    def without_task(self, tasks: int) -> Collection[int] | None:
        return None if tasks < self.workers else ()

    def run(self, job: Job, data: RDD[Any], progress: Progress) -> list[TaskResult]:
        settings = self._settings
        seal = Seal()
        shipped = self.context.broadcast(parcel.dumps(job))
        # only a stage that reads a shuffle is run again, when an executor took shuffle files with it
        runs_again = SHUFFLE in (data.toDebugString() or b"")
        memory_bytes = data._memory_limit() << 20 if cuts_rows_by_chance(order_of(data), job) else None

        def trained(epoch: int) -> RDD[TaskResult]:
            def train(partition: int, rows: Iterable[Any]) -> Iterator[TaskResult]:
                yield _train(shipped, seal, settings, epoch, partition, rows, _attempt(runs_again), memory_bytes)

            return data.mapPartitionsWithIndex(train)

        # a union of the input itself would, where that has a partitioner, put all epochs of a partition into one task
        epochs = self.context.union([trained(epoch) for epoch in range(job.epochs)])
        self._group = f"deepdist-{job.run[:12]}"
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(job.partitions * job.epochs, progress, done), daemon=True)
        watcher.start()
        try:
            return self._run_job(self._group, "deepdist: training", epochs.collect, seal)
        finally:
            done.set()
            watcher.join()
            shipped.destroy()

    def cancel(self) -> None:
        self.context.cancelJobGroup(self._group)

    def stop(self) -> None:
        """The agents were asked to leave, and those that did not hear it end with their executors."""

    def _start_agents(
        self, settings: AgentSettings, tasks: int, settle_s: float, modules: Collection[str] = ()
    ) -> None:
        def start(_: Iterable[Any]) -> Iterator[None]:
            leave_at = time.monotonic() + settle_s
            importing = threading.Thread(target=_import, args=(modules,))
            importing.start()
            _agent_that_answers(settings)
            importing.join()
            time.sleep(max(0.0, leave_at - time.monotonic()))
            yield None

        job = self.context.parallelize(range(tasks), tasks).mapPartitions(start)
        self._run_job("deepdist-start", "deepdist: starting one agent per executor", job.count)

    def _run_job(self, group: str, description: str, action: Callable[[], T], seal: Seal | None = None) -> T:
        """Run a Spark action in a job group of its own and in a thread of its own; `seal` is that of its errors.

        While the main thread waits for Spark's answer it cannot ask Spark for anything, and Ctrl-C would leave the job
        running. The user's own job group stays as it is.
        """
        results: list[T] = []
        errors: list[Exception] = []

        def act() -> None:
            self.context.setJobGroup(group, description)
            try:
                results.append(action())
            except Exception as error:  # noqa: BLE001 - raised again by the main thread
                errors.append(error)

        thread = InheritableThread(target=act, name="deepdist-job", daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(WAIT_S)
        except BaseException:
            self.context.cancelJobGroup(group)
            thread.join(CANCEL_TIMEOUT_S)
            raise
        if errors:
            raise explained(errors[0], seal) from None
        return results[0]

    def _watch(self, total: int, progress: Progress, done: threading.Event) -> None:
        """Tell how many partitions are done, until the job is."""
        tracker = self.context.statusTracker()
        while not done.wait(PROGRESS_S):
            stages = [
                tracker.getStageInfo(stage)
                for job in tracker.getJobIdsForGroup(self._group)
                if (info := tracker.getJobInfo(job)) is not None
                for stage in info.stageIds
            ]
            # the job's last stage trains; those before it, if any, compute what it reads
            last = max((stage for stage in stages if stage is not None), key=lambda stage: stage.stageId, default=None)
            if last is not None:
                progress(min(last.numCompletedTasks, total), total)
        progress(total, total)


# ------------------------------------------------------------------------------------------------------ on a worker

_jobs: dict[int, tuple[Job, dict[int, Accumulator[Any]]]] = {}
"""The job of this worker, and the accumulators that it holds, by their number at Spark."""
_agents: dict[str, Any] = {}


def _import(modules: Iterable[str]) -> None:
    """Import what training will need; gensim takes a second. What cannot be imported, training will say."""
    for module in modules:
        with suppress(Exception):
            importlib.import_module(module)


def _load(shipped: Broadcast[bytes]) -> tuple[Job, dict[int, Accumulator[Any]]]:
    """The job, unpickled once per worker process, with its accumulators at zero."""
    key = hash(shipped.value)
    if key not in _jobs:
        _jobs.clear()
        # an accumulator that is unpickled enters itself here, or is the one of this number that is here already
        of_task = dict(_accumulatorRegistry)
        _accumulatorRegistry.clear()
        try:
            job = parcel.loads(shipped.value)
            _jobs[key] = job, dict(_accumulatorRegistry)
        finally:
            _accumulatorRegistry.clear()
            _accumulatorRegistry.update(of_task)
    job, accumulators = _jobs[key]
    for accumulator in accumulators.values():
        accumulator._value = accumulator.accum_param.zero(accumulator._value)
    return job, accumulators


def _hand_in(accumulators: Mapping[int, Accumulator[Any]]) -> None:
    """Have Spark, which forgets a worker's accumulators before each task, take in what those of the job hold now.

    What the rows are computed by may hold the same accumulators, which Spark unpickles for each task.
    """
    for number, accumulator in accumulators.items():
        if number in _accumulatorRegistry:
            _accumulatorRegistry[number].add(accumulator._value)
        else:
            _accumulatorRegistry[number] = accumulator


def _train(
    shipped: Broadcast[bytes],
    seal: Seal,
    settings: AgentSettings | None,
    epoch: int,
    partition: int,
    rows: Iterable[Any],
    attempt: int,
    memory_bytes: int | None,
) -> TaskResult:
    """Train a partition, with its rows in order if that may take so much memory; else as they come.

    Errors travel in the text of Spark's, under the seal; those of reading rows as they are, but for `UsageError`.
    """
    try:
        (job, accumulators), agent = _load(shipped), None if settings is None else _agent(settings)
    except BaseException as error:
        raise seal.sealed(PartitionError.of(error, epoch, partition)) from error
    fingerprint = None
    try:
        chance.seed(job.seed, job.epochs_before + epoch, partition)
        with nullcontext() if agent is None else agent.training():
            if memory_bytes is not None:
                rows, fingerprint = _in_order(rows, memory_bytes, epoch, partition)
            result = run_partition(job, agent, epoch, partition, rows, attempt, fingerprint)
        if job.resumes or job.pushes.wave is not None:
            _read_on(rows)
        _hand_in(accumulators)
        return result
    except PartitionError as error:
        raise seal.sealed(error) from error.__cause__
    except (AgentGoneError, UsageError) as error:
        raise seal.sealed(PartitionError.of(error, epoch, partition)) from error


def _read_on(rows: Iterable[Any]) -> None:
    """Read what a task without work has left, for a while: Spark ends a worker that leaves rows unread."""
    give_up = time.monotonic() + READ_ON_S
    for _ in rows:
        if time.monotonic() > give_up:
            break


def _attempt(stage_runs_again: bool) -> int:
    """Which attempt of its partition this task is: 0 only for one that no other can be mistaken for, then ever higher.

    Spark counts attempts within one run of a stage, and does not say which run that is. The ids of tasks grow over all
    runs, but do not tell a first attempt.
    """
    context = TaskContext.get()
    assert context is not None
    return context.taskAttemptId() + 1 if stage_runs_again else context.attemptNumber()


def _agent(settings: AgentSettings) -> Any:
    """This worker process's connection to the agent of its executor, made anew if that was killed."""
    if settings.run not in _agents or not _agents[settings.run].alive:
        for old in _agents.values():
            old.close()
        _agents.clear()
        _agents[settings.run] = ensure_agent(settings, os.getppid(), _folder())
    return _agents[settings.run]


def _agent_that_answers(settings: AgentSettings) -> Any:
    """The same once it has said something. One that stands still is waited for, and ended if it does so for long."""
    try:
        _agent(settings).furthest(0, 0)
    except AgentGoneError:
        pass  # another takes its place
    return _agent(settings)


def _folder() -> str | None:
    """Where Spark keeps what does not fit into memory."""
    return os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0] or None


def _in_order(rows: Iterable[Any], memory_bytes: int, epoch: int, partition: int) -> tuple[Iterator[Any], int]:
    """`in_order`; that a row does not lend itself to it is for the user, that rows cannot be read for Spark."""
    try:
        return in_order(rows, memory_bytes, _folder())
    except UsageError as error:
        raise PartitionError.of(error, epoch, partition) from error


# -------------------------------------------------------------------------------------------------- about the cluster


def check_runs(context: SparkContext) -> None:
    """Raise `UsageError` if it has been stopped."""
    if context._jsc is None:
        raise UsageError("the SparkContext has been stopped: make a new one, and a new DeepDist(model)")


def check_no_barrier(data: Any) -> None:
    """Raise `UsageError` for `rdd.barrier()`, which has partitions as an RDD has."""
    if isinstance(data, RDDBarrier):
        raise UsageError(
            "data is a RDDBarrier, expected an RDD: tasks of a training wait for nobody, and a barrier would have them "
            "begin and end together; give the RDD itself"
        )


def check_input(data: Any) -> None:
    """Raise `UsageError` for what cannot be computed: behind a barrier, or on a context that has been stopped."""
    check_no_barrier(data)
    check_runs(data.context)


def collect(
    data: RDD[Any],
    of_partition: Callable[[Iterable[Any]], Iterable[Any]],
    then: Callable[[RDD[Any]], RDD[Any]] = lambda made: made,
) -> list[Any]:
    """What `then` makes of what `of_partition` makes of each partition; its `UsageError` is raised here as it is."""
    check_input(data)
    use_own_python(data.context)
    seal = Seal()

    def made(partition: int, rows: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from of_partition(rows)
        except UsageError as error:
            raise seal.sealed(PartitionError.of(error, None, partition)) from error

    try:
        return then(data.mapPartitionsWithIndex(made)).collect()
    except Exception as error:  # noqa: BLE001 - raised again, in the user's words where they are known
        raise explained(error, seal) from None


def use_own_python(context: SparkContext) -> None:
    """On this machine let Spark run this Python, which has all it needs, instead of any `python3` on the PATH."""
    if _is_local(context) and "PYSPARK_PYTHON" not in os.environ:
        context.pythonExec = sys.executable


def driver_address(context: SparkContext) -> str:
    """An IPv4 address of the driver program's host that its executors can reach; a `UsageError` if there is none."""
    if _is_local(context):
        return "127.0.0.1"
    host = context.getConf().get("spark.driver.host") or "127.0.0.1"
    address = own_address(host)
    if is_loopback(address) and (far := elsewhere(context)):
        raise UsageError(
            f"spark.driver.host={host} is {address} on this machine, which {', '.join(sorted(far))} cannot reach: "
            + SET_HOST
        )
    return address


def own_address(host: str) -> str:
    """The IPv4 address of this machine that `host`, as executors know the driver program's host, stands for."""
    try:
        parsed = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        parsed = None
    if parsed is not None and parsed.version == 6:
        raise UsageError(f"spark.driver.host={host} is an IPv6 address, which agents do not speak: {SET_HOST}")
    try:
        found = list(dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(host, None, socket.AF_INET)))
    except OSError as error:
        raise UsageError(f"spark.driver.host={host} has no IPv4 address here ({error}): {SET_HOST}") from None
    here = sorted(filter(_is_here, found), key=is_loopback)
    if here:
        return here[0]
    raise UsageError(
        f"spark.driver.host={host} is no address of this machine (behind NAT, or in a container?): agents of executors "
        f"connect to a port that the driver program opens there; {SET_HOST}, such as by the host's network for a "
        "container"
    )


def elsewhere(context: SparkContext) -> set[str]:
    """Hosts of the cluster that are not this machine: of executors, as far as they have come, and of its master."""
    assert context._jsc is not None
    hosts = {str(info.host()) for info in context._jsc.sc().statusTracker().getExecutorInfos()}
    if _master(context).startswith("spark://"):
        hosts |= {url.rpartition(":")[0] for url in _master(context).removeprefix("spark://").split(",")}
    return {host for host in hosts if not _is_here(host)}


def _is_here(host: str) -> bool:
    """Whether it is this machine that has this address."""
    try:
        with socket.socket() as probe:
            probe.bind((host, 0))
    except OSError:
        return False
    return True


def executor_count(context: SparkContext) -> int:
    """Executors alive now; in `local` mode the driver program is the only one."""
    assert context._jsc is not None
    everybody = len(context._jsc.sc().statusTracker().getExecutorInfos())
    return 1 if _master(context) == "local" or _master(context).startswith("local[") else everybody - 1


def executors_wanted(context: SparkContext) -> int:
    """Executors alive now, or as many as the configuration asks for; at least one."""
    return max(1, executor_count(context), _requested(context) or 1)


def order_of(data: RDD[Any]) -> Order:
    """What Spark promises when it computes `data` again. Cached blocks may be lost, so they change nothing; what is
    checkpointed is DETERMINATE."""
    return cast(Order, data._jrdd.rdd().outputDeterministicLevel().toString())


def cuts_rows_by_chance(order: Order, job: Job) -> bool:
    """Whether attempts at a partition may have other rows in their chunks, if they take them as they come."""
    if order == "UNORDERED":
        return job.chunk_rows is not None or job.rhythm.when == "continuous"
    return order == "INDETERMINATE"


def cautions(conf: SparkConf, cached: bool) -> dict[str, str]:
    """What in the configuration of a cluster is at odds with training; `cached`: the executors keep the input."""
    found = {}
    if _is_set(conf, "speculation"):
        found["speculation"] = (
            "spark.speculation is on: Spark runs slow tasks twice. Every chunk counts once all the same, but the "
            "second gradient is computed for nothing. Set spark.speculation=false, unless some hosts are far slower "
            "than others"
        )
    if _is_set(conf, "dynamicAllocation.enabled") and not cached:
        found["dynamic allocation"] = (
            "spark.dynamicAllocation.enabled is on and the input is not cached: Spark takes executors away that are "
            "idle, and their replicas go with them; those that come later copy the model and read the input again. "
            "Cache the input (rdd.cache()), or set spark.dynamicAllocation.enabled=false"
        )
    return found


def cautions_of_secrets(context: SparkContext) -> dict[str, str]:
    """What to warn of where tasks carry keys to other hosts."""
    if _is_local(context) or is_loopback(driver_address(context)):
        return {}
    return spark_secrets.cautions(context.getConf().get)


def _is_set(conf: SparkConf, name: str) -> bool:
    return (conf.get(f"spark.{name}") or "false").strip().lower() == "true"


def _kept(data: RDD[Any]) -> bool:
    """Whether `data`, or something it is computed from, is cached."""
    if data.is_cached:
        return True
    seen, todo = set(), [data._jrdd.rdd()]
    while todo:
        rdd = todo.pop()
        if rdd.id() in seen:
            continue
        if rdd.getStorageLevel().useMemory() or rdd.getStorageLevel().useDisk():
            return True
        seen.add(rdd.id())
        dependencies = rdd.dependencies()
        todo += [dependencies.apply(index).rdd() for index in range(dependencies.size())]
    return False


def _is_local(context: SparkContext) -> bool:
    return _master(context).startswith("local")


def _master(context: SparkContext) -> str:
    return str(context.master)


def _requested(context: SparkContext) -> int | None:
    """Executors that the configuration asks for; None if it does not say."""
    if _master(context).startswith("local-cluster["):
        return int(_master(context).removeprefix("local-cluster[").split(",")[0])
    if _is_local(context):
        return 1
    instances = context.getConf().get("spark.executor.instances")
    return int(instances) if instances else None


def explained(error: Exception, seal: Seal | None = None) -> Exception:
    """What the user should see of a failed job: the own exception, or Spark's with what to do."""
    text = str(error)
    original = seal.told(text) if seal is not None else None
    if original is not None:
        return original
    for package in ("p2p", "gossip"):
        if f"No module named '{package}'" in text:
            return UsageError(
                f"the executors' Python lacks the package {package!r}: install deepdist-p2p there, or set "
                f"PYSPARK_PYTHON to a Python that has it (here: {sys.executable})"
            )
    return error
