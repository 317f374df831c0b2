"""Random schedules of everything that may go wrong between a contractor and ServiceTitan.

    python -m st_memberships_orchestration_tests.torture_hostile --schedules 1000

Each schedule plans changes of one kind by the program's own commands and applies them while a
hostile ServiceTitan (`hostile`) answers anything before or after processing, reads late, repeats
and queues; while processes are frozen and killed, clocks are set, two plans overlap on two
machines, credentials are swapped and ledgers are lost. Then a person does to the letter what the
program prints. The stand-in's own truth is the judge: each change happened once, or its state says
that it is open, or that it was not made.
"""

import argparse
import random
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from st_memberships_orchestration.writing.ledger import Ledger
from st_memberships_orchestration_tests.attacks import (
    DOORS,
    HOUR,
    MINUTE,
    ROWS,
    apply_command,
    mark,
    rows_of,
    times,
)
from st_memberships_orchestration_tests.hostile import ANSWERS, Account, Done, Hostile, compact
from st_memberships_orchestration_tests.machine import PROGRAM, Machine, Running, Said, forkserver

PACE = 10
HAPPENED = {"succeeded", "not_applied", "not_read_back"}
"""Outcomes by which a change happened."""
DID_NOT = {"refused", "not_sent"}
"""Outcomes by which it did not. All others leave it open, or say that nothing was begun."""
FATES = ("none", "kill", "kill", "freeze", "freeze", "sleep", "set", "rival", "restart")
STEPS = 12
"""Commands that a person follows before he gives up."""


@dataclass
class Schedule:
    """One random course of events."""

    name: str
    kind: str
    dice: random.Random
    world: Hostile
    account: Account
    machine: Machine
    other: Machine
    rows: list[dict[str, Any]]
    swapped: Account
    wrong: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    doubles: int = 0
    """Requests that a proxy repeats: nobody can prevent those."""
    ledgers: dict[Path, bytes] = field(default_factory=dict)
    meddled: dict[int, float] = field(default_factory=dict)
    """Line -> when another person changed its record."""

    def note(self, event: str) -> None:
        self.events.append(event)

    # What ServiceTitan does

    def make_hostile(self) -> None:
        world, dice = self.world, self.dice
        if dice.random() < 0.5:
            lag = dice.choice([3, 20, 60, (0, 30), (0, 5, 90)])
            world.lags["GET *"] = lag
            self.note(f"reads are {lag} s behind")
        if dice.random() < 0.2:
            world.skew = dice.choice([-20 * MINUTE, 20 * MINUTE, -3, 3])
            self.note(f"ServiceTitan's clock is {world.skew} s ahead")
        for row in self.rows:
            for _ in range(dice.choice([0, 1, 1, 2])):
                self._order(row)
        if dice.random() < 0.2:
            answer = dice.choice(["500 html", "429 header", "401 problem", "reset", "200 html"])
            world.order("POST connect/token", answer=answer, times=dice.randint(1, 3))
            self.note(f"tokens: {answer}")
        if dice.random() < 0.3:
            answer = dice.choice(["500 html", "429 header", "401 problem", "reset", "200 cut"])
            count, after = dice.randint(1, 12), dice.randint(0, 5)
            world.order("GET *", answer=answer, times=count, after=after)
            self.note(f"reads {after} to {after + count}: {answer}")

    def _order(self, row: dict[str, Any]) -> None:
        dice = self.dice
        what: dict[str, Any] = {
            "answer": dice.choice(sorted(ANSWERS)),
            "carried_out": dice.choice([0, 1, 1]),
            "slow": dice.choice([0, 0, 0, 0.3]),
        }
        if dice.random() < 0.15:
            what["late"] = dice.choice([5, 40, 95])
        elif dice.random() < 0.05:
            what |= {"carried_out": 2, "answer": ""}
            self.doubles += 1
        self.world.order(DOORS[self.kind], wanted=mark(self.kind, row), **what)
        self.note(f"{row}: {what}")

    def meddle(self) -> None:
        """Another person changes the record of a row, or buys what the row would sell."""
        place = self.dice.randrange(len(self.rows))
        row, account = self.rows[place], self.account
        if any(order.late and order.wanted == mark(self.kind, row) for order in self.world.orders):
            return  # what waits in a queue comes after all that anybody does
        if self.kind == "sell_memberships":
            account.add_membership(row["customer_id"], row["duration_billing_id"])
        elif self.kind.startswith("update"):
            table = DOORS[self.kind].removeprefix("PATCH ").removesuffix("/{id}")
            account.edit(table, row["id"], active=True)
        elif self.kind.startswith("mark"):
            account.edit("recurring-service-events", row["event_id"], jobId=account.add_job())
        else:
            return
        self.meddled[place + 2] = self.world.time.now()
        self.note(f"somebody changes what line {place + 2} is about")
        self.world.time.advance(HOUR)

    def tell(self) -> None:
        """What was received, and what the ledger noted of it, by the times of the machine."""
        for one in self.world.requests(DOORS[self.kind]):
            at = datetime.fromtimestamp(one.at, UTC)
            self.note(f"received at {at}: {one.door} {one.target} {compact(one.body)}")
        for done in self.account.done:
            self.note(f"done at {datetime.fromtimestamp(done.at, UTC)}: {shown(done)}")
        ledger = Ledger(self.machine.env["ST_LEDGER_URL"])
        for entry in ledger.entries():
            self.note(f"line {entry.line}, {entry.status}, {entry.detail}")
            self.events += [f"  {step}" for step in entry.trail]
        ledger.close()

    # What happens to the machines

    def round(self, commands: list[tuple[Machine, str]]) -> None:
        """Run the commands at once, while something happens to one of them."""
        running = [machine.start(command) for machine, command in commands]
        fate = self.dice.choice(
            ["none", "kill", "kill", "freeze", "freeze", "sleep", "set", "rival", "restart"]
        )
        victim = self.dice.randrange(len(running))
        self.note(f"{[machine.folder.name for machine, _ in commands]}: {fate}")
        time.sleep(self.dice.uniform(0, 0.6))
        away = self.dice.choice([5, MINUTE, 9 * MINUTE, 17 * MINUTE, 2 * HOUR])
        if fate == "kill":
            running[victim].kill()
        elif fate in ("freeze", "sleep"):
            with running[victim].frozen():
                self.world.time.advance(away)
                if fate == "sleep":
                    commands[victim][0].clock.slept(away)
                if self.dice.random() < 0.7:
                    running.append(self._rival(*commands[victim]))
                    time.sleep(self.dice.uniform(0.2, 1.5))
        elif fate == "restart":
            running[victim].kill()
            commands[victim][0].clock.restart()
        elif fate == "set":
            commands[victim][0].clock.set(self.dice.choice([-1, 1]) * away)
        elif fate == "rival":
            running.append(self._rival(*commands[victim]))
        for one in running:
            self.heard(one.said())
        self.world.time.advance(self.dice.choice([0, 10, 2 * MINUTE, 17 * MINUTE]))
        self.world.settle()

    def _rival(self, machine: Machine, command: str) -> Running:
        """The same command from the other machine, which has the same ledger."""
        rival = self.other if machine is self.machine else self.machine
        self.note(f"a rival on {rival.folder.name}")
        return rival.start(command)

    def heard(self, said: Said) -> None:
        if "Traceback" in said.text:
            self.wrong.append(f"{said.command} broke: {said.text[-2_000:]}")

    @contextmanager
    def in_another_account(self) -> Iterator[None]:
        """Somebody has put another account's credentials into the settings."""
        env = dict(self.machine.env)
        self.machine.has(self.swapped)
        yield
        self.machine.env = env

    def lose_ledger(self) -> None:
        paths = list(self.machine.folder.glob("ledger.db*"))
        restored = self.dice.random() < 0.5
        self.world.time.advance(HOUR)
        self.world.settle()
        for path in paths:
            path.unlink()
        for path, content in self.ledgers.items() if restored else ():
            path.write_bytes(content)
        self.note(f"the ledger is {'restored' if restored else 'deleted'}")

    # What a person does

    def follow(self, machine: Machine, command: str) -> Said:
        """Apply, and do to the letter what is printed, until it ends well or nothing changes."""
        said = machine.run(command)
        for _ in range(STEPS):
            self.heard(said)
            if said.code == 0:
                break
            if said.times:
                wait = max(said.times).timestamp() - machine.clock.wall()
                self.world.time.advance(max(wait, 0) + 1)
            for told in said.commands:
                if "happened|did-not-happen" in told:
                    self._settle(machine, told)
                elif told != command:
                    self.heard(machine.run(told))
            last, said = said, machine.run(command)
            if outcomes(last) == outcomes(said) and not said.times:
                break
        return said

    def _settle(self, machine: Machine, told: str) -> None:
        """A person has looked into ServiceTitan, and says what is there."""
        key = shlex.split(told.replace("|", " "))[2]
        ledger = Ledger(machine.env["ST_LEDGER_URL"])
        entry = ledger.entry(key)
        ledger.close()
        assert entry is not None, told
        done = [
            one
            for one in self.account.done
            if one.kind == self.kind and mark(self.kind, self.rows[entry.line - 2]) in shown(one)
        ]
        words = f"{PROGRAM} settle {key} {'happened' if done else 'did-not-happen'}"
        if done and done[-1].made:
            words += f" --record {done[-1].made}"
        said = machine.run(words)
        self.heard(said)
        self.note(f"{words}: {said.text.strip()}")

    def last_done(self, row: dict[str, Any]) -> float:
        wanted = mark(self.kind, row)
        return max(
            (one.at for one in self.account.done if one.kind == self.kind and wanted in shown(one)),
            default=0,
        )


def shown(done: Done) -> str:
    return f"/{done.target} {compact(done.body)}"


def outcomes(said: Said) -> dict[int, str]:
    """What a command says of each line of its plan."""
    cells = [line.split("│")[1:4] for line in said.text.splitlines() if line.startswith("│")]
    return {int(line): outcome.strip() for line, _, outcome in cells if line.strip().isdigit()}


def run(name: str, kind: str, dice: random.Random, folder: Path) -> Schedule:
    """One schedule from its plan to its judgement."""
    with Hostile(seed=dice.randrange(10**6), pace=PACE) as world:
        account, swapped = world.account(), world.account(1_002)
        rows = rows_of(account, kind, dice.randint(2, 6))
        machine = Machine(folder / "one", world, account)
        other = Machine(folder / "other", world, account)
        other.env["ST_LEDGER_URL"] = machine.env["ST_LEDGER_URL"]
        other.clock.set(dice.choice([0, 0, -10 * MINUTE, 10 * MINUTE]))
        schedule = Schedule(name, kind, dice, world, account, machine, other, rows, swapped)
        commands = [(machine, apply_command(machine.plan(kind, rows)))]
        if dice.random() < 0.4:  # of the same changes, as two people had them planned
            part = rows[: dice.randint(1, len(rows))]
            commands.append((other, apply_command(other.plan(kind, part))))
        schedule.ledgers = {path: path.read_bytes() for path in machine.folder.glob("ledger.db*")}
        schedule.make_hostile()
        lost = dice.random() < 0.1
        for _ in range(dice.randint(1, 3)):
            schedule.round(commands)
        if dice.random() < 0.3:
            schedule.meddle()
        if dice.random() < 0.2:
            schedule.note("another account's credentials")
            with schedule.in_another_account():
                schedule.follow(machine, commands[0][1])
        if lost:
            schedule.lose_ledger()
        if dice.random() < 0.7:
            world.orders.clear()
        last = {}
        for each, command in commands:
            said = schedule.follow(each, command)
            last[each] = said
        world.orders.clear()
        world.time.advance(2 * MINUTE)
        world.settle()
        for each, command in commands:
            last[each] = schedule.follow(each, command)
        judge(schedule, last[machine], lost=lost)
        return schedule


def judge(schedule: Schedule, last: Said, *, lost: bool) -> None:
    account, kind = schedule.account, schedule.kind
    said = outcomes(last)
    doubled = 0
    for line, row in enumerate(schedule.rows, 2):
        count, outcome = times(account, kind, row), said.get(line, "nothing")
        schedule.note(f"line {line} happened {count} times, and is said to be {outcome}")
        doubled += max(count - 1, 0)
        if count > 1 and "sell" in kind and outcome == "succeeded":
            schedule.wrong.append(f"line {line} is {outcome} and happened {count} times")
        if line in schedule.meddled and schedule.last_done(row) > schedule.meddled[line]:
            schedule.wrong.append(f"line {line} was sent after somebody had changed its record")
        if outcome in HAPPENED and not count and not ("sell" in kind and line in schedule.meddled):
            schedule.wrong.append(f"line {line} is {outcome} and did not happen")
        if outcome in DID_NOT and count and not lost:
            schedule.wrong.append(f"line {line} is {outcome} and happened {count} times")
    if doubled > schedule.doubles:
        schedule.wrong.append(f"{doubled} doubles, of which {schedule.doubles} were a proxy's")
    if schedule.swapped.done:
        schedule.wrong.append(f"in another account: {schedule.swapped.done}")
    if not said and not last.code:
        schedule.wrong.append(f"nothing is said of any line: {last.text}")
    if schedule.wrong:
        schedule.tell()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--schedules", type=int, default=1_000)
    parser.add_argument("--start", type=int, default=0, help="Number of the first schedule.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="Only this schedule, and tell its course.")
    options = parser.parse_args()
    forkserver()
    ends: Counter[str] = Counter()
    wrong, started = 0, time.monotonic()
    numbers = range(options.start, options.start + options.schedules)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
    for number in numbers:
        dice = random.Random(options.seed * 100_000 + number)
        kind = sorted(ROWS)[number % len(ROWS)]
        with tempfile.TemporaryDirectory() as folder:
            schedule = run(f"{options.seed}/{number}", kind, dice, Path(folder))
        ends.update(event.split()[-1] for event in schedule.events if " times, and " in event)
        if schedule.wrong:
            wrong += 1
        if schedule.wrong or options.only is not None:
            print(f"\nschedule {number}, {kind}:", *schedule.events, sep="\n  ")
            print(*schedule.wrong, sep="\n  WRONG: ", flush=True)
        if number % 50 == 49:
            spent, done = time.monotonic() - started, number + 1 - numbers.start
            print(f"{done} schedules, {wrong} wrong, {spent:.0f} s", flush=True)
    print(dict(sorted(ends.items())))
    print(f"{wrong} of {len(numbers)} schedules are wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
