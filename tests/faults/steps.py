"""Steps of a host's life and of what happens to it, taken in any order and held against the reference model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from django.db import connection
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from settlement.models import Attempt, AttemptState, Receipt, Sender, Transaction, TransactionEvent, TransactionKind
from settlement.txmanager import commands, outbox
from tests.faults import reference_model
from tests.faults.reference_model import Promise
from tests.faults.simulated_chain import CHAIN_ID, GWEI, SEND_FAULTS
from tests.faults.simulated_host import LIMITS, SimulatedHost

_BASE_FEES = (GWEI, GWEI, 2 * GWEI, 3 * GWEI, 10 * GWEI, 45 * GWEI, 80 * GWEI, 150 * GWEI)
_WAITS = (1, 5, 31, 61, 91, 121, 601, 3_600)
_BLOCKS = (1, 1, 1, 1, 1, 2, 3, 5)
_ROUNDS = 30


class Rule(StrEnum):
    """What a step does; ``which`` and ``much`` (0 to 7) say to whom and how."""

    BROADCAST = "broadcast"
    WATCH = "watch"
    MINE = "mine"
    ENQUEUE = "enqueue"
    WAIT = "wait"
    PRICE = "price"
    BUMP = "bump"
    CANCEL = "cancel"
    DROP = "drop"
    REORG = "reorg"
    ROLL_BACK = "roll back"
    FOREIGN = "foreign"
    SEND_FAULT = "send fault"
    SILENCE = "silence"
    BEHIND = "behind"
    POLICY = "policy"
    DIE_BROADCASTING = "die broadcasting"
    DIE_WATCHING = "die watching"
    AMBUSH_BROADCAST = "ambush broadcast"
    AMBUSH_WATCH = "ambush watch"
    SAME_KEY = "same key"


_WEIGHTS = {
    Rule.BROADCAST: 5,
    Rule.WATCH: 3,
    Rule.MINE: 4,
    Rule.ENQUEUE: 4,
    Rule.WAIT: 3,
    Rule.REORG: 3,
    Rule.SEND_FAULT: 2,
    Rule.DIE_BROADCASTING: 3,
    Rule.AMBUSH_BROADCAST: 3,
    Rule.AMBUSH_WATCH: 2,
}


@dataclass(frozen=True, slots=True)
class Step:
    rule: Rule
    which: int = 0
    much: int = 0


_WEIGHTED = [rule for rule in Rule for _ in range(_WEIGHTS.get(rule, 1))]
interleavings = st.lists(
    st.builds(Step, st.sampled_from(_WEIGHTED), st.integers(0, 7), st.integers(0, 7)), min_size=12, max_size=30
)


@dataclass
class Tally:
    """What was played. ``transitions`` counts changes of state, ``ends`` the states at the end."""

    examples: int = 0
    steps: int = 0
    deaths: int = 0
    attempts: int = 0
    rules: Counter[str] = field(default_factory=Counter)
    transitions: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)


@dataclass
class Play:
    """One interleaving."""

    host: SimulatedHost = field(default_factory=SimulatedHost)
    promises: dict[str, Promise] = field(default_factory=dict)
    foreign: bool = False

    def take(self, step: Step) -> None:
        getattr(self, "_" + step.rule.name.lower())(step.which, step.much)
        self.host.observe()
        reference_model.held(self.host.chain)
        self.host.offset += timedelta(seconds=1)

    def _broadcast(self, _which: int, _much: int) -> None:
        self.host.live(self.host.manager.broadcast)

    def _watch(self, _which: int, _much: int) -> None:
        self.host.live(self.host.manager.watch)

    def _mine(self, which: int, much: int) -> None:
        for _ in range(_BLOCKS[much]):
            self.host.chain.mine(at_most=1 + which)

    def _enqueue(self, which: int, much: int) -> None:
        for _ in range(1 + which % 3):
            self._enqueue_job(len(self.promises) + 8 * (len(self.promises) % 8 > 5 and much > 1), much)

    def _enqueue_job(self, job: int, much: int) -> None:
        # Jobs 6 and 7 of eight are refused by the contract: most of the time others are wanted.
        while f"job:{job}" in self.promises or (job % 8 > 5 and much > 1):
            job += 1
        call = self.host.marketplace.complete_session_job(job_id=job, conversation_cid="cid")
        outbox.enqueue(
            key=f"job:{job}",
            kind=TransactionKind.COMPLETE,
            call=call,
            chain_id=CHAIN_ID,
            sender=self.host.chain.sender,
            priority=much % 3,
            cost_limit=3 * 10**14 if much == 5 else None,
        )
        self.promises[f"job:{job}"] = Promise(work=(str(call.to).lower(), "0x" + call.data.hex()))

    def _same_key(self, which: int, much: int) -> None:
        if not self.promises:
            return
        key = sorted(self.promises)[which % len(self.promises)]
        job = int(key.removeprefix("job:")) + (1000 if much > 3 else 0)
        before = Transaction.objects.get(key=key)
        try:
            row = outbox.enqueue(
                key=key,
                kind=TransactionKind.COMPLETE,
                call=self.host.marketplace.complete_session_job(job_id=job, conversation_cid="cid"),
                chain_id=CHAIN_ID,
                sender=self.host.chain.sender,
            )
        except outbox.KeyReused:
            assert much > 3, "the same call was refused"
        else:
            assert much <= 3, "another call was taken under the same key"
            assert (row.pk, row.state, row.nonce) == (before.pk, before.state, before.nonce)

    def _wait(self, which: int, _much: int) -> None:
        self.host.offset += timedelta(seconds=_WAITS[which])

    def _price(self, which: int, _much: int) -> None:
        self.host.chain.base_fee = _BASE_FEES[which]

    def _some_row(self, which: int) -> int | None:
        rows = list(Transaction.objects.order_by("id").values_list("pk", flat=True))
        return rows[which % len(rows)] if rows else None

    def _bump(self, which: int, _much: int) -> None:
        waiting = Transaction.objects.unmined().order_by("id").values_list("pk", flat=True)
        if (row := waiting[which % len(waiting)] if waiting else None) is not None:
            commands.bump(row, actor="operator")

    def _cancel(self, which: int, _much: int) -> None:
        if (row := self._some_row(which)) is not None:
            commands.cancel(row, actor="operator", reason="test")

    def _drop(self, which: int, _much: int) -> None:
        self.host.chain.drop(which)

    def _reorg(self, which: int, much: int) -> None:
        if which > 3:
            # So that there is something to take back, and the table knows of it.
            self._mine(7, 0)
            self._watch(0, 0)
        self.host.chain.reorg(1 + which % (LIMITS.confirmations - 1), forgetful=much % 2 == 1, busy=much > 3)

    def _roll_back(self, which: int, much: int) -> None:
        # Below finality a foreign transaction can vanish as well; whose nonce it took may then run twice.
        if which > 3:
            self._mine(7, 7)
            self._watch(0, 0)
        if which > 1 and not self.foreign:
            self.host.reorged_deep = True
            self.host.chain.roll_back(1 + much)

    def _foreign(self, which: int, much: int) -> None:
        if not self.host.reorged_deep:
            self.foreign = True
            self.host.chain.use_elsewhere(fee=(1 + 40 * (which % 4)) * GWEI, at_once=much > 2)

    def _send_fault(self, which: int, much: int) -> None:
        self.host.node.send_faults.extend([SEND_FAULTS[which % len(SEND_FAULTS)]] * (1 + much % 3))

    def _silence(self, _which: int, much: int) -> None:
        self.host.node.silent = 1 + much

    def _behind(self, which: int, _much: int) -> None:
        self.host.node.behind = which % 3

    def _policy(self, which: int, much: int) -> None:
        node = self.host.node
        names = ("poor", "strict_base_fee", "no_gaps", "preconfirms", "has_no_receipts")
        name = names[which % len(names)]
        setattr(node, name, not getattr(node, name))
        node.dialect = much

    def _die_broadcasting(self, which: int, much: int) -> None:
        if much % 2:
            self._enqueue(much, much)
        self._die(self.host.manager.broadcast, which, much)

    def _die_watching(self, which: int, much: int) -> None:
        self._die(self.host.manager.watch, which, much)

    def _die(self, action: Callable[[], int], which: int, much: int) -> None:
        self.host.dies_in = 1 + 8 * (much % 4) + which
        self.host.live(action)
        # Half of the time another machine goes on, which cannot know that this process is gone.
        self.host.machine = 1 + (much > 3)

    def _ambush_broadcast(self, which: int, much: int) -> None:
        self.host.ambush = (1 + much, lambda: self._meanwhile(which, much))
        self.host.live(self.host.manager.broadcast)

    def _ambush_watch(self, which: int, much: int) -> None:
        self.host.ambush = (1 + much, lambda: self._meanwhile(which, much))
        self.host.live(self.host.manager.watch)

    def _meanwhile(self, which: int, much: int) -> None:
        """What happens between two requests of a broadcaster or a confirmer."""
        match which:
            case 0:
                self._mine(7, 0)
            case 1:
                self._reorg(much % 4, much)
            case 2:
                self._cancel(much, 0)
            case 3:
                self._bump(much, 0)
            case 4:
                self._mine(7, 7)
                self.host.new_manager().watch()
            case 5:
                # The first one hung for longer than its lease: another takes over, and then it goes on.
                self.host.offset += timedelta(minutes=3)
                self.host.new_manager().broadcast()
            case 6:
                self._foreign(3, 7)
            case _:
                self._enqueue(0, 0)
                self.host.new_manager().broadcast()

    def calm_down(self) -> None:
        """All faults end; whatever was promised is kept within a few rounds."""
        host = self.host
        host.node.calm()
        host.chain.base_fee = GWEI
        for _ in range(_ROUNDS):
            host.offset += timedelta(seconds=601)
            self._broadcast(0, 0)
            self._mine(7, 6)
            self._watch(0, 0)
            reference_model.held(host.chain)
            if not Transaction.objects.unfinished().exists():
                break
        else:
            raise AssertionError(f"not done: {list(Transaction.objects.unfinished().values())}")

    def judge(self) -> None:
        given_up = TransactionEvent.objects.filter(
            what__in=(TransactionEvent.What.CANCEL_REQUESTED, TransactionEvent.What.REFUSED)
        ).values_list("transaction__key", flat=True)
        for key in given_up:
            if key in self.promises:
                self.promises[key].given_up = True
        ended = {row.key: row.state for row in Transaction.objects.all() if row.key in self.promises}
        nonces = dict(Receipt.objects.values_list("transaction__nonce", "attempt__hash"))
        given = Transaction.objects.filter(nonce__isnull=False).values_list("nonce", flat=True)
        assert set(given) == set(nonces), f"nonces {set(given) - set(nonces)} have no receipt"
        unended = Attempt.objects.filter(state=AttemptState.SENT)
        assert not unended.exists(), f"not ended: {list(unended)}"
        reference_model.kept(self.host.chain, self.promises, ended, nonces)


def play(steps: Sequence[Step], tally: Tally | None = None) -> None:
    """Raises ``AssertionError`` where the reference model and the manager differ."""
    _empty_tables()
    playing = Play()
    with playing.host.installed():
        for step in steps:
            playing.take(step)
        playing.calm_down()
        playing.judge()
    if tally is not None:
        tally.examples += 1
        tally.steps += len(steps)
        tally.deaths += playing.host.deaths
        tally.attempts += len(playing.host.attempts)
        tally.rules.update(step.rule.value for step in steps)
        tally.transitions.update(" > ".join(arrow) for arrow in playing.host.transitions)
        tally.ends.update(row.state for row in playing.host.rows.values())


def _empty_tables() -> None:
    """And count their rows from 1 again: a row's number spreads its retries."""
    tables = [model._meta.db_table for model in (TransactionEvent, Receipt, Attempt, Transaction, Sender)]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")
            return
        for table in tables:
            cursor.execute(f"DELETE FROM {table}")
        cursor.execute("DELETE FROM sqlite_sequence")


def explore(*, examples: int, number: int) -> Tally:
    """So many random interleavings, shrunk where one fails."""
    tally = Tally()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    @given(interleavings)
    def check(steps: list[Step]) -> None:
        play(steps, tally)

    logging.disable(logging.CRITICAL)
    try:
        check()
    finally:
        logging.disable(logging.NOTSET)
    return tally
