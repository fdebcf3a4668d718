"""Frames and messages as nobody honest sends them: does anything come of them but an error that says so?

    make fuzz MINUTES=5           # by another seed each time; it is printed
    make fuzz MINUTES=1 SEED=7    # again

Half of the time decoders get frames: each must be decoded in `SLOW_MS` of the processor's time, in memory in proportion
to its length, and may raise one kind of error. The other half peers get sequences of well-formed messages, by members
and by strangers: they raise nothing, and their invariants hold (`fuzzed/peers.py`).

A frame whose outcome is new is kept, and changed again: outcomes are messages and texts of errors, which say how far a
decoder came. Beside those of every kind the frames begin with `tests/fuzz/corpus`, in which is what was once decoded
wrong, too slowly, or with too much memory.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import sys
import time
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fuzzed import frames
from fuzzed.frames import Decoder
from fuzzed.peers import STEPS, Sequence

CORPUS = Path(__file__).resolve().parent.parent / "tests" / "fuzz" / "corpus"
SLOW_MS = 10.0
BYTES_PER_BYTE = 120
"""Of memory while a frame is decoded, for each of its own: an empty array's name is 2 bytes there, and 60 here,"""
BYTES_ANYWAY = 1 << 18
ROOM_BYTES = 1 << 30
"""Who asks for more than so much beside what the process has is told that there is none."""
KEPT_MAX = 400
"""Frames of one decoder."""
KEPT_BYTES_MAX = 1 << 11
AGAIN_MS = 0.3
LONG_BYTES = 1 << 15
"""Frames that take longer, or are longer, are decoded again, with an eye on memory."""


class FuzzError(Exception):
    """What was found."""


@dataclass
class Figures:
    """Of one decoder, or of all."""

    tried: int = 0
    taken: int = 0
    """Frames that were messages."""
    slowest_ms: float = 0.0
    peak_bytes: int = 0
    """Of memory, of one frame."""
    outcomes: set[str] = field(default_factory=set)


class Trial:
    """One decoder and what it was tried with."""

    def __init__(self, decoder: Decoder, slow_ms: float) -> None:
        self.decoder = decoder
        self.figures = Figures()
        self._slow_ms = slow_ms
        self._kept = [*decoder.samples]
        for path in sorted(CORPUS.glob(f"{decoder.name}-*")):
            self._kept.append(path.read_bytes())
        for data in list(self._kept):
            self.attempt(data)

    def turn(self, chance: random.Random) -> None:
        """One more frame."""
        data = self.decoder.change(chance, chance.choice(self._kept))
        outcome = self.attempt(data)
        if outcome not in self.figures.outcomes:
            self.figures.outcomes.add(outcome)
            if len(data) < KEPT_BYTES_MAX:
                if len(self._kept) < KEPT_MAX:
                    self._kept.append(data)
                else:
                    self._kept[chance.randrange(len(self.decoder.samples), KEPT_MAX)] = data

    def attempt(self, data: bytes) -> str:
        """Decode it, and look what it took."""
        begin = time.thread_time()
        outcome = self._outcome(data)
        took_ms = (time.thread_time() - begin) * 1e3
        if took_ms > AGAIN_MS or len(data) > LONG_BYTES:
            self._look_again(data, took_ms)
        self.figures.tried += 1
        return outcome

    def _outcome(self, data: bytes) -> str:
        try:
            message = self.decoder.decode(data)
        except self.decoder.errors as error:
            return re.sub(r"\d+|'.*?'|`.{40,}`", "", f"{type(error).__name__} {error}")[:100]
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is found
            self._fail(data, f"{type(error).__name__}: {error}"[:200], error)
        self.figures.taken += 1
        return type(message[0] if isinstance(message, tuple) and message else message).__name__

    def _look_again(self, data: bytes, took_ms: float) -> None:
        tracemalloc.start()
        try:
            self._outcome(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        self.figures.peak_bytes = max(self.figures.peak_bytes, peak)
        if peak > BYTES_ANYWAY + BYTES_PER_BYTE * len(data):
            self._fail(data, f"{peak} bytes of memory for a frame of {len(data)}")
        for _ in range(5 if took_ms > self.figures.slowest_ms else 0):  # the machine may have been busy
            begin = time.thread_time()
            self._outcome(data)
            took_ms = min(took_ms, (time.thread_time() - begin) * 1e3)
        self.figures.slowest_ms = max(self.figures.slowest_ms, took_ms)
        if took_ms > self._slow_ms:
            self._fail(data, f"{took_ms:.1f} ms for a frame of {len(data)} bytes")

    def _fail(self, data: bytes, what: str, cause: BaseException | None = None) -> None:
        path = Path(f"fuzz-{self.decoder.name}-{len(data)}")
        path.write_bytes(data)
        raise FuzzError(f"{self.decoder.name}: {what}; the frame is in {path}") from cause


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--frames", type=int, help="so many frames, and messages, whatever time that takes")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--slow-ms", type=float, default=SLOW_MS, help="of the processor's time, for one frame")
    parser.add_argument("--peer", type=int, help="the seed of one peer, to hear its story again")
    parser.add_argument("--only", help="decoders whose names begin so")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, resource.RLIM_INFINITY))
    chance = random.Random(arguments.seed)
    if arguments.peer is not None:
        Sequence(random.Random(arguments.peer)).run()
        return 0
    try:
        fuzz(chance, arguments)
    except FuzzError as error:
        print(error, f"(seed {arguments.seed})", file=sys.stderr)
        raise
    return 0


def fuzz(chance: random.Random, arguments: argparse.Namespace) -> None:
    begin = time.monotonic()
    trials = [
        Trial(decoder, arguments.slow_ms)
        for decoder in frames.decoders()
        if decoder.name.startswith(arguments.only or "")
    ]
    give_up = begin + 60 * arguments.minutes
    count = events = 0
    while count < arguments.frames if arguments.frames else time.monotonic() < give_up:
        for trial in trials:
            trial.turn(chance)
            count += 1
        if not arguments.only and count % (4 * len(trials)) == 0:  # a peer takes as long as some fifty frames
            seed = chance.getrandbits(32)
            try:
                events += Sequence(random.Random(seed)).run()
            except Exception as error:
                raise FuzzError(f"a peer: {type(error).__name__}: {error}; --peer {seed} tells it again") from error
    took_s = time.monotonic() - begin
    tell(trials, took_s)
    print(f"{events} events of {events // STEPS} peers, each invariant held after each")


def tell(trials: list[Trial], took_s: float) -> None:
    for trial in trials:
        row = trial.figures
        print(
            f"{trial.decoder.name:>16} {row.tried:9} frames, {row.taken:8} messages, {len(row.outcomes):5} outcomes, "
            f"slowest {row.slowest_ms:6.2f} ms, peak {row.peak_bytes / 1e6:6.2f} MB"
        )
    tried = sum(trial.figures.tried for trial in trials)
    slowest = max(trial.figures.slowest_ms for trial in trials)
    peak = max(trial.figures.peak_bytes for trial in trials)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{tried} frames, {tried / took_s:.0f} a second; the slowest took {slowest:.2f} ms, "
        f"the largest {peak / 1e6:.2f} MB beside itself; the process {held:.0f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
