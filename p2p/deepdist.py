"""The public interface: `DeepDist(model)`, `train`, `model`.

with DeepDist(model, mode="p2p") as dd:
    dd.train(data, gradient, descent)
    dd.model

`DeepDist` checks its arguments; a session (`p2p.sessions.agents`) does the work.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gossip.arguments import flag, names
from gossip.errors import UsageError
from p2p import arguments, engines
from p2p.adapters import Adapter
from p2p.adapters.model import Model, share_memory
from p2p.arguments import Mode
from p2p.caution import warn
from p2p.checkpoint import reading
from p2p.checkpoint.resuming import Keeping, Resumed, model_of
from p2p.checkpoint.writing import Place, Writer
from p2p.codec import Codec
from p2p.codecs import AUTO, chosen, named
from p2p.driver.evaluation import Evaluate
from p2p.driver.stopping import StopWhen
from p2p.driver.watchers import Watcher
from p2p.http import settings
from p2p.http.settings import Master
from p2p.master.coordinator import Feeder
from p2p.report import Evaluated, MastersLostError, Report, joined
from p2p.sessions.choice import session_of
from p2p.sessions.cluster import SimulatedCluster
from p2p.sessions.training import Begun, Training
from p2p.standby.launch import GOES_ON_S, LEADERLESS_S, Followed
from p2p.worker.combine import OUTER
from p2p.worker.job import Descent, Gradient

if TYPE_CHECKING:  # where nothing is mixed, scipy and networkx are not imported: half a second, and 40 MB
    from gossip.mixing import Strategy
    from gossip.topology import Topology
    from p2p.http.server import Server
    from p2p.lbfgs.method.options import LBFGS

M = TypeVar("M")


class DeepDist(Generic[M]):
    """Trains `model` on partitions of data, asynchronously, without a master (or with one: `mode="master"`), or in
    step, as a baseline (`mode="sync"` and `mode="averaging"`).

    The model is a dict of numpy arrays, any object with numpy attributes (`parameters` chooses among them), or of a
    class with an adapter of its own (`p2p.adapters`; `adapter` takes any other). It is changed in place: after the
    `with` block, and whenever `dd.model` is read, it holds what was learned. Each session has its own agents, which end
    with the `with` block.
    """

    def __init__(
        self,
        model: M,
        mode: Mode = "p2p",
        *,
        discipline: Literal["replicate", "mix"] = "replicate",
        topology: str | Topology | Callable[[int], Topology] | None = None,
        mixing: Strategy[Any] | None = None,
        parameters: Sequence[str] | None = None,
        adapter: Adapter | None = None,
        codec: Codec | str | None = AUTO,
        peers: int | None = None,
        engine: SimulatedCluster | engines.Engine | None = None,
        optimizer: LBFGS | None = None,
        seed: int = 0,
        progress: bool | None = None,
        drain_timeout_s: float = 60.0,
        update_norm_max: float | Literal["auto"] | None = None,
        master: str | Master | None = None,
        token: str | Literal[False] | None = None,
        standbys: int = 0,
        on_master_loss: Literal["raise", "p2p"] = "raise",
    ) -> None:
        """`mode`: "p2p" has a replica at every peer; "master" has `descent` take each update in the driver program;
        "sync" has it take the mean of one gradient of each worker, who all wait for that; "averaging" has workers train
        models of their own, and averages these after each epoch, weighted by rows. `discipline`: "replicate" has every
        update at every peer exactly once; "mix" has each peer average its replica with those of its neighbors, as
        `mixing` says (default `PushSum()`), on a `topology` (default "exponential"): a name, a function of the number
        of peers, or one for just so many; see `gossip.topology` and `gossip.mixing`. Then `dd.model` is the mean of all
        replicas. `peers`: processes of the local engine (default: one per core, at most one per partition); on Spark
        every executor is a peer. `engine`: what to train on instead: a simulated cluster, in this process, or any other
        `p2p.Engine`. `codec`: how updates of `gradient` and `descent` travel: "float16", "int8", "int2", "top-k"
        (`p2p.codecs`), any `p2p.Codec`, or None: exactly. "auto" is None, but for models of 16 kB or more whose updates
        add up as outer steps do (`combine="outer"`, the default for `p2p.descents.SGD`): these take two bits a number,
        and what that leaves goes with later updates. `optimizer`: `p2p.LBFGS(...)` trains on full gradients (see
        `train`) instead of updates. `seed`: of the random numbers that gradients draw by `p2p.current()`. `progress`:
        show a bar (default: on a terminal). `drain_timeout_s`: how long `train` may wait at its end for level replicas.
        `update_norm_max`: against peers that lie or are broken; without a master, and where every update is replicated.
        An update with a larger Euclidean norm, over all arrays of floats, is left out by its own peer, and a peer that
        publishes it all the same is put out by the others. "auto" goes by the norms of the others' updates, and leaves
        out those that are 8 times as long. Without it, the report names peers whose updates are absurd
        (`PeerReport.conduct`).
        `master`: where a master listens over HTTP while the session is open, such as "127.0.0.1:5000" or ":0" for a
        free port; then any process may take part by `p2p.fetch_model` and `p2p.send_gradient`. `p2p.Master` has more
        settings. They need the `token`, one of yours or one that is drawn (`dd.token`): what is drawn on loopback they
        find, in processes of the same user. False asks nobody on this machine for one. `standbys`: so many processes
        more that have a master's model, an even number; with them and the driver program's, half of them may be lost or
        stand still, and no update that was acknowledged is. `descent` runs at each of them.
        `on_master_loss`: what becomes of a training that loses more of them: "raise" `p2p.MastersLostError` after a
        minute, or, after 10 s, have peers go on without any ("p2p"), with a warning, from what had reached the driver
        program. Units of work that did not are done again; what only a master does, such as `max_staleness`, ends.
        """
        listens = settings.checked(master, token, mode)
        peers, seed, progress, drain_timeout_s = arguments.of_session(
            mode, peers, engine, seed, progress, drain_timeout_s
        )
        mix = arguments.mixed(discipline, topology, mixing, mode, engine)
        arguments.check_coded(codec, discipline, mode)
        trained = None if parameters is None else names("parameters", parameters)
        self._user_model = Model(model, trained, adapter, named(codec))
        self._optimizer = optimizer
        self._chooses_codec = codec == AUTO and mix is None
        self._busy = threading.Lock()
        """Held by the training that runs."""
        self._progress = progress
        self._state = "new"  # then "open", then "ended"
        self._mode: str = mode
        """Of the session that is there."""
        where: dict[str, Any] = {"peers": peers, "engine": engine, "seed": seed, "drain_timeout_s": drain_timeout_s}
        standbys = arguments.standbys_of(standbys, mode, optimizer is not None)
        self._goes_on = arguments.goes_on(on_master_loss, standbys, listens is not None)
        """Peers train on where masters are lost."""
        followed = Followed(standbys, GOES_ON_S if self._goes_on else LEADERLESS_S)
        limit = arguments.norm_max_of(update_norm_max, mode, mix is not None, optimizer is not None)
        self._session_in = partial(
            session_of, self._user_model, mix=mix, followed=followed, update_norm_max=limit, **where
        )
        if optimizer is None:
            self._session = self._session_in(mode=mode)
        else:
            from p2p.lbfgs.session import session  # only its users need these modules

            self._session = session(self._user_model, optimizer, mode=mode, discipline=discipline, codec=codec, **where)
        self._server = None if listens is None else _server(listens, self._user_model, lambda: self._session.refresh())
        self._keeping = Keeping.of_session(mode, discipline, mix and mix[0], codec, seed, trained)
        """What checkpoints have to know of it."""
        own = engine is not None and not isinstance(engine, SimulatedCluster)
        self._asked_for = partial(arguments.training, any_data=own, coded=codec not in (None, AUTO))
        """By a call of `train`; an engine of the user's own knows itself what can be trained on."""
        self._mode_of = partial(
            arguments.mode_of_training,
            own=mode,
            engine=engine,
            discipline=discipline,
            codec=codec,
            listens=self._server is not None,
            limit=limit,
        )
        """The mode of a training, of what `train` was asked for."""

    @classmethod
    def resume(
        cls, path: str | os.PathLike[str], model: Any = None, *, allow_pickle: bool = False, **options: Any
    ) -> DeepDist[Any]:
        """A session that goes on where the newest checkpoint in `path` stands.

        `path` is a folder or URL that `train` was given, or the manifest of one checkpoint.

            with DeepDist.resume(path) as dd:
                dd.train(data, gradient, descent, checkpoint=path)

        The first `train` goes on in the middle of the training that was: each unit of work counts once. `epochs`,
        `chunk_rows` and `combine` are as they were, unless they are given. The data has to be the same, in the same
        partitions, and gradient and descent have to be given again. So has `model`, if it is an object: one like that
        which was trained, or, if its attributes are but arrays, numbers and texts, its class. Others are in the
        checkpoint as a pickle, which runs code of whoever wrote it: `allow_pickle` opens it. `options` are those of
        `DeepDist`; mode, discipline, codec and seed are as they were. The number of peers may be another one.

        What descents and workers keep for themselves (momentum, rows that are sent later) begins anew.

        Raises:
            UsageError: no checkpoint there is whole, or something of it has to be given, or is another.
        """
        path = arguments.path_of("path", path)
        checkpoint = reading.read(path)
        resumed = Resumed(path, checkpoint.record)
        found = resumed.session(options)
        chosen, adapter = found.get("parameters"), found.get("adapter")
        whole = model_of(
            path, checkpoint, model, parameters=chosen, adapter=adapter, allow_pickle=flag("allow_pickle", allow_pickle)
        )
        session = cls(whole, **found)
        session._keeping = replace(session._keeping, lineage=checkpoint.record.lineage, resumed=resumed)
        session._session.begun = Begun(
            counted=resumed.counted,
            epochs_before=checkpoint.record.training.epochs_before,
            check_data=resumed.check_data,
            counters=resumed.counters(session._user_model),
        )
        return session

    def __enter__(self) -> Self:
        if self._state != "new":
            raise UsageError(f"this session is {self._state}, and each is entered once: make a new DeepDist(model)")
        _occupy(self._user_model)
        if self._server is not None:
            try:
                self._server.open()
            except BaseException:
                _open_models.remove(self._user_model)
                raise
        self._state = "open"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._server is not None:
                self._server.close()
            self._session.refresh()
        finally:
            self._state = "ended"
            try:
                self._session.stop()
            finally:
                _open_models.remove(self._user_model)

    @property
    def master(self) -> str | None:
        """Where the master listens, such as "127.0.0.1:41234"; None if it does not."""
        return None if self._server is None else self._server.address

    @property
    def token(self) -> str | None:
        """What other processes have to show to the master; None if nothing."""
        return None if self._server is None else self._server.settings.shown

    @property
    def model(self) -> M:
        """The user's model, with all that has reached the driver program so far, also while a training runs.

        What is written into its arrays between two trainings counts: the next one begins with that.
        """
        self._session.refresh()
        model: M = self._user_model.model
        return model

    def train(
        self,
        data: Any,
        gradient: Gradient,
        descent: Descent | None = None,
        epochs: int | None = None,
        *,
        chunk_rows: int | None = None,
        combine: str | None = None,
        exchange: Literal["chunk", "partition", "continuous"] = "chunk",
        exchange_s: float | None = None,
        evaluate: Evaluate | None = None,
        evaluate_every_s: float | None = None,
        stop_when: StopWhen | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        every_s: float | None = None,
        keep: int | None = None,
        watchers: Sequence[Watcher] = (),
        feeders: Sequence[Feeder] = (),
        on_incomplete: Literal["raise", "warn"] = "raise",
        max_staleness: int | None = None,
        on_bad_update: Literal["raise", "drop"] = "raise",
        staleness_weight: Literal["inverse"] | Callable[[int], float] | None = None,
        n_fetch: int = 1,
        n_push: int = 1,
        mode: Mode | None = None,
    ) -> Report:
        """Train on every partition of `data`, `epochs` times (once), and wait until all replicas are level.

        `data` is a Spark RDD or DataFrame, or a list of partitions, each an iterable of rows or a function that
        returns one. `gradient(model, rows)` runs on the workers: `model` is a local replica that it may change freely,
        `rows` an iterator over one partition, or over `chunk_rows` rows of it; what it returns is the update, None or
        {} for nothing. `descent(model, update)` changes the model's arrays in place; without one, the update is a dict
        of named arrays that are added to the model's. `combine` is how updates of peers add up ("sum", "mean", "damp",
        "adasum", "outer": `p2p.worker.combine`); by default as the descent, the gradient or else the adapter says. With
        mode="sync" it is "mean" (default) or "sum", of the updates that `descent` is given as one.

        `exchange` says when a task publishes what it learned and takes in what others did: "chunk" after every
        `chunk_rows` rows; "partition" once, at the end of the partition; "continuous" every `exchange_s` seconds (1) in
        the middle of a gradient, which has to train in place and call `p2p.pause` (that for word vectors does).

        `evaluate(model)` is called in the driver program, in a thread, with copies of the model (where peers mix, the
        mean of all replicas): at the beginning, every `evaluate_every_s` seconds (60) and at the end. It returns a
        number, or a mapping of names to numbers; see `Report.evaluations`. If it fails, so does the training.
        `stop_when(evaluations)` ends the training early when it returns true; with `Patience` the model is then that of
        the best evaluation. `watchers` are shown the model in the same way, each every so often; see `p2p.Watcher`.
        `feeders` bring updates to a master (`mode="master"`) from elsewhere than the tasks, while these run; see
        `p2p.Feeder`.

        With `DeepDist(optimizer=p2p.LBFGS(...))` the gradient is `loss_and_gradient(model, rows)`, which returns (loss,
        {name: gradient}), sums over the rows. `epochs` is how many passes there may be at most, `chunk_rows` the rows
        of a portion, and the report a `p2p.lbfgs.report.LBFGSReport`. Evaluations, checkpoints and what is about
        updates go with other trainings.

        `checkpoint`, a folder or a URL that fsspec knows, is where the model is written, with the units of work that
        count in it: at the beginning, every `every_s` seconds (30) and at the end, also when Ctrl-C ends the training.
        The newest `keep` (3) stay. `DeepDist.resume` goes on with the newest. A place that cannot be written to, or
        that another program writes to, is refused. A checkpoint that cannot be written later is counted in the report
        and warned of once; the training goes on.

        `on_incomplete`: "raise" `IncompleteTraining`, or "warn", if the model lacks updates that living peers have, or
        replicas are not level when `drain_timeout_s` is up. What died with a peer before anybody had pulled it is a
        figure of the report, and a warning above 1 % of the updates. Errors of user code are raised here, unchanged.

        `max_staleness` of a master: no update is applied after more than so many others since the model that it was
        computed from. Workers wait for a slow one then; at most `max_staleness` + 1 compute at a time.
        `on_bad_update` of a master, or in step: an update with a NaN or an infinity ends the training ("raise"), or is
        left out and counted in the report, with a warning ("drop").
        `staleness_weight` of a master: an update is multiplied by this weight before `descent` gets it, of how many
        others were applied since the model that it was computed from: "inverse" is one over their number (Zhang et al.
        2016), a function is given the number. All numbers of updates have to be floats then.
        `n_fetch` and `n_push` of a master: a worker fetches the model before each `n_fetch`th chunk, and pushes the sum
        of the updates of `n_push` chunks as one. Between two fetches it takes the steps of its own updates by itself,
        `descent` on its copy of the model (Dean et al. 2012, section 4.1 and algorithm 7.1). These steps are its own:
        a fetched model is the master's, and lacks what has not been pushed yet.

        `mode` of this training alone, if it is not to be that of the session, such as "master" after trainings by
        peers. Processes of the other mode end first. The model goes on as it is, with what `descent` keeps on it, and
        epochs, random numbers and a resumed checkpoint go on as they would in one mode.
        """
        asked = locals()
        del asked["self"]
        return self._train(asked)

    def _check_open(self) -> None:
        if self._state != "open":
            raise UsageError(
                f"train() outside of its session, which is {self._state}: write "
                "`with DeepDist(model) as dd: dd.train(...)`"
            )

    def _train(self, asked: dict[str, Any]) -> Report:
        """`asked` are the arguments of `train`."""
        self._check_open()
        if self._optimizer is not None:
            from p2p.lbfgs.session import asked as asked_for

            asked = asked_for(self._optimizer, asked)
        if (resumed := self._keeping.resumed) is not None:
            if self._session.begun is None:
                raise UsageError(
                    f"the training that went on from {resumed.path} was not finished, and this session knows no more "
                    "what is left of it: go on by another DeepDist.resume(path)"
                )
            asked |= resumed.training(asked, self._mode_of(asked["mode"]))
        mode = self._mode_of(asked.pop("mode"))
        place = arguments.place(*(asked.pop(name) for name in ("checkpoint", "every_s", "keep")))
        stopping = arguments.stopping(asked.pop("stop_when"), asked["evaluate"], self._user_model)
        with self._bar() as (show, tell):
            training = self._asked_for(mode=mode, **asked, stopping=stopping, progress=show, tell=tell)
            if not self._busy.acquire(blocking=False):
                raise UsageError(
                    "another training of this session is running, expected one at a time: wait for its end"
                )
            try:
                return self._run(training, place, mode)
            finally:
                self._busy.release()

    def _change_mode(self, mode: str) -> None:
        """The next training is in this one."""
        if mode == self._mode:
            return
        before = self._session
        before.refresh()
        before.stop()
        self._session, self._mode = self._session_in(mode=mode, before=before), mode

    def _run(self, training: Training, place: Place | None, mode: str) -> Report:
        model, stopping = self._user_model, training.stopping
        self._change_mode(mode)
        model.check_unchanged()
        model.check_numbers()
        arguments.warn_of_captured(model, training.gradient, training.descent)
        if self._goes_on and training.feeders:
            raise UsageError("feeders with on_master_loss='p2p', expected none: peers have nobody to bring updates to")
        self._choose_codec(training)
        with ExitStack() as stack:
            if place is not None:
                writer = Writer(place, self._keeping.of_mode(mode), model, stopping)
                stack.enter_context(writer.writing())
                training = replace(training, writer=writer)
            if self._server is not None:
                training = replace(training, feeders=(*training.feeders, self._server.face.gate))
                stack.enter_context(self._server.face.training(training.descent))
            report = self._trained(training)
            self._keeping = replace(self._keeping, resumed=None)  # another training is one of its own
            if stopping.best is not None:
                if self._server is not None:
                    stack.enter_context(self._server.face.still())
                model.load(stopping.best)
        model.check_numbers(trained=True)
        return report

    def _choose_codec(self, training: Training) -> None:
        if self._chooses_codec:
            outer = training.rule == OUTER and self._mode == "p2p"
            self._user_model.codec = chosen(self._user_model.layout.nbytes, outer_steps=outer)

    def _trained(self, training: Training) -> Report:
        session = self._session
        try:
            return session.train(training)
        except MastersLostError as lost:
            if not self._goes_on or lost.report is None:
                session.begun = None  # another training is not the rest of this one
                raise
            warn(
                f"the masters are lost after {lost.report.updates} updates that reached the driver program: peers go "
                "on from there without a master, and do again what did not reach it"
            )
            self._change_mode("p2p")
            self._choose_codec(training)
            try:
                return joined(lost.report, self._session.train(training))
            except UsageError as error:
                lost.add_note(f"on_master_loss='p2p': peers cannot go on with this training: {error}")
                raise lost from error

    @contextmanager
    def _bar(self) -> Iterator[tuple[engines.Progress, Callable[[Evaluated], None]]]:
        """A bar on the standard error that appears when the first partition is begun; it tells of evaluations, too."""
        shown = self._progress if self._progress is not None else sys.stderr.isatty()
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("partitions"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[evaluated]}"),
        )
        bar = Progress(*columns, console=Console(stderr=True), disable=not shown, transient=True)
        task = bar.add_task("training", start=False, evaluated="")

        def show(done: int, of: int) -> None:
            bar.start_task(task)
            bar.update(task, completed=done, total=of)
            bar.start()

        def tell(result: Evaluated) -> None:
            bar.update(task, evaluated=str(result))

        try:
            yield show, tell
        finally:
            bar.stop()


def _server(listens: Master, model: Model, refresh: Callable[[], None]) -> Server:
    from p2p.http.server import Server  # and h11, which is not installed everywhere

    return Server(listens, model, refresh)


_open_models: list[Model] = []
"""Of the sessions that are open in this process."""


def _occupy(model: Model) -> None:
    """Refuse a model that another open session trains: each would overwrite what the other has learned."""
    for other in _open_models:
        for name, array in model.arrays().items():
            for theirs in other.arrays().values():
                if share_memory(array, theirs):
                    raise UsageError(
                        f"{name!r} of the model is trained by another session that is still open, expected one session "
                        "a model: train it there, or end that `with` block first"
                    )
    _open_models.append(model)
