"""Going on with a checkpoint: its model, and the arguments that units of work depend on, which have to be the same."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from msgspec import structs

from gossip.arrays import Array, Arrays
from gossip.errors import UsageError
from gossip.marks import Counted
from p2p.adapters import Adapter
from p2p.adapters.model import Model
from p2p.caution import warn
from p2p.checkpoint import likeness
from p2p.checkpoint.plain import built, class_of
from p2p.checkpoint.reading import Checkpoint
from p2p.checkpoint.record import Record, SessionRecord, counted

RULES_OF: dict[str, tuple[str | None, ...]] = {"master": (None,), "averaging": (None,), "sync": (None, "mean", "sum")}
"""Rules by which updates may add up in a mode; peers have any."""
SUMS = (None, "sum")
"""What a master does, too, when it takes one update after the other."""


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that a session goes on with."""

    path: str
    record: Record

    @property
    def counted(self) -> Counted:
        """The units that count in the model."""
        return counted(self.record)

    def counters(self, model: Model) -> Arrays:
        """The model's counters, as they were when the training began."""
        arrays = model.arrays()
        return {
            name: np.array(values, arrays[name].dtype).reshape(arrays[name].shape)
            for name, values in self.record.training.counters.items()
            if name in arrays and len(values) == arrays[name].size
        }

    def session(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of `DeepDist`: those that were given, and else as they were. What differs is warned of.

        Raises:
            UsageError: the seed is another one, or something is needed that is not in a checkpoint.
        """
        was = self.record.session
        if options.get("seed", was.seed) != was.seed:
            raise UsageError(
                f"seed={options['seed']!r}, expected {was.seed} as in the checkpoint at {self.path}: random numbers of "
                "its units of work are drawn from that; leave it out"
            )
        found = {"mode": was.mode, "discipline": was.discipline, "seed": was.seed, "codec": was.codec, **options}
        if was.parameters is not None:
            found.setdefault("parameters", was.parameters)
        if was.codec is not None and "codec" not in options and not was.codec.replace("-", "").isalnum():
            raise UsageError(
                f"the checkpoint at {self.path} is of codec={was.codec}: give one, resume(path, codec=...)"
            )
        if was.mixing is not None and "mixing" not in options and was.mixing != "PushSum()":
            raise UsageError(
                f"the checkpoint at {self.path} is of mixing={was.mixing}: give a strategy, resume(path, mixing=...)"
            )
        given = {name: options[name] for name in ("mode", "discipline", "codec", "mixing") if name in options}
        self._tell({name: (_worded(value), getattr(was, name)) for name, value in given.items()})
        return found

    def training(self, asked: Mapping[str, Any], mode: str) -> dict[str, Any]:
        """Of arguments of `train` those that units of work depend on: as they were given, and else as they were. What
        is given and differs is warned of. In this `mode` it goes on: a master has no rule by which updates add up.

        Raises:
            UsageError: units of work would be others.
        """
        was, epochs, combine = self.record.training, asked["epochs"], asked["combine"]
        for name, before in (("chunk_rows", was.chunk_rows), ("exchange", was.exchange)):
            value = asked[name]
            if value != before and not (name == "chunk_rows" and value is None):
                raise UsageError(
                    f"{name}={value!r}, expected {before!r} as in the checkpoint at {self.path}, which goes on in the "
                    "middle of a training: its units of work would be others"
                )
        if isinstance(epochs, int) and epochs < was.epochs:
            raise UsageError(
                f"epochs={epochs}, expected at least {was.epochs} as in the checkpoint at {self.path}: all epochs of "
                "the training count, also those that are done; or leave it out"
            )
        given = {
            "epochs": (epochs, was.epochs),
            "combine": (combine, was.combine),
            "exchange_s": (asked["exchange_s"], was.exchange_s),
        }
        self._tell({name: pair for name, pair in given.items() if pair[0] is not None})
        if combine is None and mode in RULES_OF and was.combine not in RULES_OF[mode]:
            if was.combine not in SUMS:
                warn(
                    f"the checkpoint at {self.path} is of a training with combine={was.combine!r}; with mode={mode!r} "
                    "updates do not add up by that"
                )
        elif combine is None:
            combine = was.combine
        return {
            "epochs": was.epochs if epochs is None else epochs,
            "chunk_rows": was.chunk_rows,
            "combine": combine,
        }

    def _tell(self, given: Mapping[str, tuple[Any, Any]]) -> None:
        """Warn of arguments, as (now, then), that are not as they were."""
        other = {name: (now, then) for name, (now, then) in given.items() if now != then}
        if other:
            now, then = (", ".join(f"{name}={pair[which]!r}" for name, pair in other.items()) for which in (0, 1))
            warn(
                f"the checkpoint at {self.path} is of a training with {then}; it goes on with {now}, as given. Leave "
                "out what is to be as it was"
            )

    def check_data(self, data: Any, partitions: int) -> None:
        """Raise `UsageError` if the data has another number of partitions; warn if it does not look as it did."""
        was = self.record.training.partitions
        if partitions != was:
            raise UsageError(
                f"the data has {partitions} partitions, expected {was} as in the checkpoint at {self.path}, which goes "
                "on in the middle of a training: its units of work would be others. Give it the same data, in the "
                "same partitions"
            )
        other = likeness.first_other(self.record.training.data, likeness.of_data(data))
        if other is not None:
            what = "the data reads other files" if other < 0 else f"partition {other} of the data has other rows"
            warn(
                f"{what} than in the checkpoint at {self.path}, which goes on in the middle of a training: the units "
                "of work that count are of the rows from before, and those of the new data are passed by. Give it the "
                "same data, in the same partitions, or train the model anew: DeepDist(model)"
            )


@dataclass(frozen=True)
class Keeping:
    """What the checkpoints of a session have to know of it."""

    session: SessionRecord
    lineage: str = field(default_factory=partial(secrets.token_hex, 8))
    """The same for all checkpoints of a session, and of those that go on with it."""
    resumed: Resumed | None = None
    """The checkpoint that the next training goes on with."""

    @classmethod
    def of_session(
        cls,
        mode: str,
        discipline: str,
        mixing: Any,
        codec: Any,
        seed: int,
        parameters: Sequence[str] | None,
    ) -> Keeping:
        """Of one with these arguments."""
        return cls(
            SessionRecord(
                mode=mode,
                discipline=discipline,
                mixing=_worded(mixing),
                codec=_worded(codec),
                seed=seed,
                parameters=None if parameters is None else tuple(parameters),
            )
        )

    def of_mode(self, mode: str) -> Keeping:
        """The same of a training in another mode than the session's."""
        return replace(self, session=structs.replace(self.session, mode=mode))


def model_of(
    path: str,
    checkpoint: Checkpoint,
    model: Any,
    *,
    parameters: Sequence[str] | None,
    adapter: Adapter | None,
    allow_pickle: bool,
) -> Any:
    """The user's model as the checkpoint has it: `model`, if one is given, or one that is made anew.

    Raises:
        UsageError: `model` does not fit, or one is needed, or only a pickle has it and that is not allowed.
    """
    found = _found(path, checkpoint, model, allow_pickle)
    seen = Model(found, parameters, adapter)
    expected = {spec.name: (spec.dtype, spec.shape) for spec in checkpoint.record.arrays}
    mine = {spec.name: (spec.dtype, spec.shape) for spec in seen.own.specs}
    for name in {**expected, **mine}:
        if expected.get(name) != mine.get(name):
            raise UsageError(
                f"{name!r} of the model is {_words(mine.get(name))}, expected {_words(expected.get(name))} as in the "
                f"checkpoint at {path}: give a model like the one that was trained"
            )
    meaning = seen.adapter.meaning(found)
    if meaning != checkpoint.record.meaning:
        raise UsageError(
            f"the model's arrays are of {meaning or 'nothing in particular'}, expected those of "
            f"{checkpoint.record.meaning or 'nothing in particular'} as in the checkpoint at {path}: rows would stand "
            "for others. Give a model like the one that was trained"
        )
    seen.load({name: checkpoint.arrays[name] for name in expected})
    return found


def _found(path: str, checkpoint: Checkpoint, model: Any, allow_pickle: bool) -> Any:
    record = checkpoint.record
    if isinstance(model, type):
        if record.plain is None or class_of(record.plain) is None:
            raise UsageError(
                f"model={model.__name__} is a class, expected a model: that of the checkpoint is {record.model}"
            )
        return built(record.plain, _copies(checkpoint), model)
    if model is not None:
        return model
    if record.plain is not None:
        if kind := class_of(record.plain):
            raise UsageError(
                f"the checkpoint at {path} is of an object of class {kind}, which is not looked for by its name: give "
                "the class or a model, DeepDist.resume(path, model=...)"
            )
        return built(record.plain, _copies(checkpoint))
    if not allow_pickle or checkpoint.pickled is None:
        raise UsageError(
            f"the checkpoint at {path} has its model, a {record.model}, as a pickle, which runs code of whoever wrote "
            "it: give a model like it, DeepDist.resume(path, model=...), or allow_pickle=True if you trust the file"
        )
    return Model.from_skeleton(checkpoint.pickled).model


def _copies(checkpoint: Checkpoint) -> dict[str, Array]:
    return {name: array.copy() for name, array in checkpoint.arrays.items()}


def _worded(value: Any) -> str | None:
    """An argument as a manifest has it: a text or None as it is, an object in words."""
    return value if value is None or isinstance(value, str) else repr(value)


def _words(what: tuple[str, tuple[int, ...]] | None) -> str:
    return "not there" if what is None else f"{np.dtype(what[0]).name} of shape {what[1]}"
