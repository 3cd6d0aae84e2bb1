"""One loaded model: its replicas' threads and the batches that run on them.

Guarantees: at most one batch runs per replica, so nothing waits where it cannot be cancelled; a row
that a batch gave back, because the batch was interrupted or did not fit into memory, waits again and
goes on where it was. All state belongs to the event loop; only ``TokenGenerator.run`` and the rows
are used by the replicas' threads. Does not decide when a batch starts (``scheduler`` does).
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from jobs.inference import generator as generators
from jobs.inference.batching import CostModel, Size, group
from jobs.inference.engine import ChatMessage, EngineError, GenerationFailed
from jobs.inference.generation import Generation
from jobs.inference.generator import OutOfMemory, TokenGenerator
from jobs.inference.waiting import WaitingRequests

logger = logging.getLogger(__name__)

# The batching window: requests that come together are waited for so long at most, and no longer than it takes
# until none came for the second of these times.
WINDOW_SECONDS = 0.010
_QUIET_SECONDS = 0.002
# As above, while the newest request was announced not to be the last.
_LONGEST_WINDOW_SECONDS = 0.250
_ANNOUNCED_SECONDS = 0.050
# Starting a batch again costs reading its contexts again. It is interrupted only after running so many times as
# long, so that at most a fifth of the time is lost, and never before the shortest slice. Exceptions, so that requests
# which come within a moment get together: a single row, which costs little, and rows that were interrupted less than
# so many times give way as soon as nobody came for the settling time. That is a quarter of what starting again would
# cost, within bounds: who comes later would have everybody start again once more.
_INTERRUPTION_FACTOR = 4.0
_SHORTEST_SLICE_SECONDS = 0.5
_SETTLING_PART = 0.25
_SETTLING_SECONDS = 0.020
_LONGEST_SETTLING_SECONDS = 0.250
_EARLY_INTERRUPTIONS = 3
# A batch that nobody can join gives way to others after this time.
_FULL_SLICE_SECONDS = 10.0
# Joining a running batch must save at least this part of what the joint batch costs: lengths of answers are guesses.
# What was not worth it is considered again after the second of these.
_LEAST_SAVING = 0.1
_CONSIDER_SECONDS = 0.2
_FIRST_GUESS_TOKENS = 128
_FIRST_GUESS_UNIT_SECONDS = 0.020
_LEARNING_RATE = 0.2


class RunningBatch:
    """Rows that compute together on one replica.

    ``joining`` are requests that wait for it to be interrupted and started again with them; ``since``
    is when the replica began to serve it without giving way to others.
    """

    def __init__(self, rows: Sequence[Generation], *, since: float | None = None) -> None:
        self.rows = list(rows)
        self.interrupted = threading.Event()
        self.started = time.monotonic()
        self.since = self.started if since is None else since
        self.sizes = [(row.context_length, row.produced) for row in rows]
        self.stepped = False
        self.joining: list[Generation] = []
        self.considered = 0.0

    def live(self) -> list[Generation]:
        """The rows that still produce."""
        return [row for row in self.rows if not row.stopped.is_set()]


class Lane:
    """A model with its waiting requests, its running batches and what was learnt about its speed."""

    def __init__(
        self,
        generator: TokenGenerator,
        *,
        waiting: WaitingRequests,
        costs: CostModel,
        on_change: Callable[[], None],
    ) -> None:
        self.generator = generator
        self.waiting = waiting
        self.batches: list[RunningBatch] = []
        self.batches_started = 0
        self.last_used = time.monotonic()
        self.most_rows = generator.loaded.batch_rows
        self._prompts = ThreadPoolExecutor(1, thread_name_prefix="prompt")
        self._replicas = ThreadPoolExecutor(generator.loaded.replicas, thread_name_prefix="replica")
        self._costs = costs
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._typical_tokens = float(_FIRST_GUESS_TOKENS)
        self._unit_seconds = _FIRST_GUESS_UNIT_SECONDS
        self._is_speed_known = False

    @property
    def free_replicas(self) -> int:
        """How many batches could start now."""
        return self.generator.loaded.replicas - len(self.batches)

    @property
    def busy(self) -> bool:
        """Whether anything runs, waits or gets ready."""
        return bool(self.batches or len(self.waiting) or self.waiting.preparing)

    def running(self) -> list[Generation]:
        """The rows that compute now."""
        return [row for batch in self.batches for row in batch.live()]

    def encode(self, messages: Sequence[ChatMessage], *, prompt: str | None) -> Future[tuple[int, ...]]:
        """Prompt token ids of a conversation, or of text as it is."""
        if prompt is None:
            return self._prompts.submit(self.generator.encode, messages)
        return self._prompts.submit(self.generator.encode_text, prompt)

    def in_turn(self) -> list[Generation]:
        """The waiting requests, the one whose turn it is first."""
        return self.waiting.in_turn(running=self.running())

    def gathers_until(self) -> float:
        """Until when (monotonic) to wait for more requests; the past if waiting cannot help."""
        newest, oldest = self.waiting.last_arrival, min(row.arrived for row in self.waiting)
        limit = oldest + WINDOW_SECONDS
        if len(self.waiting) >= self.most_rows * self.free_replicas:
            return 0.0
        if self.waiting.others_coming:
            return min(oldest + _LONGEST_WINDOW_SECONDS, newest + _ANNOUNCED_SECONDS)
        if self.waiting.preparing:
            return limit
        if len(self.waiting) < 2:
            return 0.0
        return min(limit, newest + _QUIET_SECONDS)

    def start(self, leader: Generation, *, slots: int) -> None:
        """Run ``leader`` with the waiting requests that are cheapest to compute together with it."""
        candidates = [row for row in self.in_turn() if row is not leader and _bucket(row) == _bucket(leader)]
        rows = [leader, *candidates]
        most = 1 if leader.request.top_logprobs else self._fair_rows(len(rows), slots=slots)
        groups = group([self._size(row) for row in rows], most=most, costs=self._costs)
        chosen = [rows[index] for index in next(indexes for indexes in groups if 0 in indexes)]
        self._launch(RunningBatch(chosen))

    def _launch(self, batch: RunningBatch) -> None:
        self.waiting.serve(batch.rows)
        self.batches.append(batch)
        self.batches_started += 1
        self.last_used = batch.started
        for row in batch.rows:
            if not row.has_run:
                row.queued_seconds = batch.started - row.arrived
            row.has_run = True
        work = self._replicas.submit(
            self.generator.run,
            generators.Batch(
                rows=batch.rows,
                on_step=lambda: self._announce(batch),
                interrupted=batch.interrupted,
            ),
        )
        work.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._ended, batch, done))

    def retry_after(self) -> int:
        """Seconds (1 to 60) until what runs and waits now is expected to be done."""
        waiting = [self._size(row) for row in self.waiting] or [Size(context=64, tokens=_FIRST_GUESS_TOKENS)]
        running = sum(self._costs.rest([self._size(row) for row in batch.live()]) for batch in self.batches)
        cost = running + self._grouped(waiting)
        return max(1, min(60, math.ceil(cost * self._unit_seconds / self.generator.loaded.replicas)))

    def interrupt_for_turn(self) -> bool:
        """Interrupt the batch that ran longest, if it had its slice and may need another; True if that was done."""
        running = [batch for batch in self.batches if batch.stepped and not batch.interrupted.is_set()]
        batch = min(running, key=lambda batch: batch.since, default=None)
        if batch is None or not _may_be_interrupted(batch):
            return False
        rows = batch.live()
        slice_seconds = max(_FULL_SLICE_SECONDS, self._restart_seconds(rows))
        rest = self._costs.rest([Size(context=row.context_length, tokens=row.remaining) for row in rows])
        if time.monotonic() - batch.since < slice_seconds or rest * self._unit_seconds < slice_seconds:
            return False
        batch.interrupted.set()
        return True

    def close(self) -> None:
        """Wait for the threads, then free the model. Blocks."""
        self._prompts.shutdown()
        self._replicas.shutdown()
        self.generator.close()

    def _announce(self, batch: RunningBatch) -> None:
        """Called by the computing thread after each step: one wake-up for all rows."""
        self._loop.call_soon_threadsafe(self._step, batch)

    def _step(self, batch: RunningBatch) -> None:
        if not batch.stepped:
            batch.stepped = True
            self._observe(batch, [Size(context=context, tokens=1) for context, _ in batch.sizes])
        for row in batch.rows:
            row.notify()
        if len(self.waiting) and not batch.interrupted.is_set():
            batch.joining = self._joining(batch)
            if batch.joining:
                batch.interrupted.set()

    def _joining(self, batch: RunningBatch) -> list[Generation]:
        """The waiting requests for whose sake ``batch`` should be started again, with them."""
        rows = batch.live()
        now = time.monotonic()
        if not rows or self.free_replicas or not _may_be_interrupted(batch):
            return []
        room = self._fair_rows(len(self.running()) + len(self.waiting), slots=len(self.batches)) - len(rows)
        if room < 1 or now < batch.considered + _CONSIDER_SECONDS or not self._has_run_long_enough(batch, rows=rows):
            return []
        batch.considered = now
        spoken_for = {row for other in self.batches for row in other.joining}
        candidates = [row for row in self.in_turn() if row not in spoken_for and _bucket(row) == _bucket(rows[0])]
        middle = sum(row.context_length for row in rows) / len(rows)
        nearest = sorted(candidates, key=lambda row: abs(row.context_length - middle))
        return nearest[: self._best_number(rows, nearest, room=room)]

    def _best_number(self, rows: Sequence[Generation], candidates: Sequence[Generation], *, room: int) -> int:
        """How many of ``candidates``, at most ``room``, should join ``rows``; 0 if it saves too little.

        Saved is what the rest of the batch and the joining requests' shares of batches of their own
        would cost otherwise.
        """
        here, there = [self._size(row) for row in rows], [self._size(row) for row in candidates]
        shares = [0.0] * len(there)
        for indexes in group(there, most=self.most_rows, costs=self._costs):
            cost = self._costs.batch([there[index] for index in indexes])
            for index in indexes:
                shares[index] = cost / len(indexes)
        best, most_saved = 0, 0.0
        for count in range(1, min(room, len(there)) + 1):
            together = self._costs.batch(here + there[:count])
            saved = self._costs.rest(here) + sum(shares[:count]) - together
            if saved > max(most_saved, _LEAST_SAVING * together):
                best, most_saved = count, saved
        return best

    def _grouped(self, sizes: Sequence[Size]) -> float:
        groups = group(sizes, most=self.most_rows, costs=self._costs)
        return sum(self._costs.batch([sizes[index] for index in indexes]) for indexes in groups)

    def _has_run_long_enough(self, batch: RunningBatch, *, rows: Sequence[Generation]) -> bool:
        """Whether starting these rows again now is a small part of their time, or an allowed exception."""
        now = time.monotonic()
        age = now - batch.started
        if len(rows) == 1 or max(row.interruptions for row in rows) < _EARLY_INTERRUPTIONS:
            return now - self.waiting.last_arrival >= self._settling_seconds(rows) or age >= _SHORTEST_SLICE_SECONDS
        return age >= max(_SHORTEST_SLICE_SECONDS, self._restart_seconds(rows))

    def _settling_seconds(self, rows: Sequence[Generation]) -> float:
        """How long nobody must have come before ``rows`` start again with those who wait."""
        together = [Size(context=row.context_length, tokens=0) for row in (*rows, *self.waiting)][: self.most_rows]
        wanted = _SETTLING_PART * self._unit_seconds * self._grouped(together)
        return max(_SETTLING_SECONDS, min(_LONGEST_SETTLING_SECONDS, wanted))

    def _restart_seconds(self, rows: Sequence[Generation]) -> float:
        """How long a batch of these rows must run before starting it again is a small part of the whole."""
        reading = [Size(context=row.context_length, tokens=0) for row in rows]
        return _INTERRUPTION_FACTOR * self._unit_seconds * (self._costs.batch(reading) if reading else 0.0)

    def _ended(self, batch: RunningBatch, work: Future[None]) -> None:
        self.batches.remove(batch)
        self.last_used = time.monotonic()
        failure = work.exception()
        if failure is None:
            self._learn(batch)
        rows = batch.live()
        if isinstance(failure, OutOfMemory) and len(batch.rows) > 1:
            self.most_rows = max(1, len(batch.rows) // 2)
            logger.warning(
                "a batch of %d rows did not fit into memory; at most %d from now on", len(batch.rows), self.most_rows
            )
            failure = None
        for row in rows:
            if failure is not None:
                row.fail(_explained(failure))
            else:
                row.interruptions += 1
                self.waiting.add(row)
        for row in batch.rows:
            row.notify()
        joined = [row for row in self.waiting if row in batch.joining]
        fits = len(rows) + len(joined) <= self.most_rows
        if failure is None and rows and joined and fits:
            self._launch(RunningBatch([*rows, *joined], since=batch.since))
        self._on_change()

    def _learn(self, batch: RunningBatch) -> None:
        done = [
            Size(context=context, tokens=max(1, row.produced - before))
            for row, (context, before) in zip(batch.rows, batch.sizes, strict=True)
        ]
        self._observe(batch, done)
        for row in batch.rows:
            if row.stopped.is_set():
                self._typical_tokens += _LEARNING_RATE / 4 * (row.produced - self._typical_tokens)

    def _observe(self, batch: RunningBatch, done: Sequence[Size]) -> None:
        """Learn the speed from what ``batch`` has done since it started."""
        unit = (time.monotonic() - batch.started) / self._costs.batch(done)
        rate = _LEARNING_RATE if self._is_speed_known else 1.0
        self._unit_seconds += rate * (unit - self._unit_seconds)
        self._is_speed_known = True

    def _size(self, row: Generation) -> Size:
        expected = max(row.produced // 2, int(self._typical_tokens) - row.produced, 1)
        return Size(context=row.context_length, tokens=max(1, min(row.remaining, expected)))

    def _fair_rows(self, requests: int, *, slots: int) -> int:
        """Rows per batch if ``requests`` are spread evenly over ``slots`` replicas."""
        return max(1, min(self.most_rows, math.ceil(requests / max(1, slots))))


def _bucket(row: Generation) -> tuple[object, ...]:
    """What rows of one batch must have in common: CTranslate2 takes one set of options per batch.

    A request that wants alternatives is its own bucket, as only the first row's logits are given.
    """
    request = row.request
    alone = request.request_id if request.top_logprobs else None
    scores = request.top_logprobs is not None
    if request.temperature == 0:
        return (0.0, request.repetition_penalty, scores, alone)
    return (request.temperature, request.top_k, request.top_p, request.repetition_penalty, scores, alone)


def _may_be_interrupted(batch: RunningBatch) -> bool:
    """A repetition penalty looks at what this batch generated, so such a row must stay in its batch."""
    return all(row.request.repetition_penalty == 1.0 for row in batch.rows)


def _explained(failure: BaseException) -> EngineError:
    if isinstance(failure, OutOfMemory):
        return GenerationFailed(
            "The device's memory does not suffice for this request. Shorten the prompt or lower max_tokens;"
            " the operator can set FABSTIR_COMPUTE_TYPE=int8 or use a smaller model."
        )
    if isinstance(failure, EngineError):
        return GenerationFailed(f"The generation failed: {failure}")
    return GenerationFailed(f"The generation failed: {type(failure).__name__}: {failure}")
