"""What a damaged disk, a careless program or a stranger can do to a folder, by kind.

An attack is a function of the victim and a seeded generator, so a case can be made again from its name.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .attacks_on_elements import elements, strings
from .attacks_on_environment import environment
from .attacks_on_files import code, cuts, flips, flips_everywhere, headers, leftovers, replaced, rooms
from .attacks_on_metadata import field_names, lists, metadata_text, metadata_values
from .attacks_on_records import counters, records, sizes
from .victims import Attack, Attacks, Site, Victim


def nothing(victim: Victim) -> Attacks:
    yield "untouched", lambda site: None


KINDS: dict[str, Callable[[Victim], Attacks]] = {
    "nothing": nothing,
    "cut or longer": cuts,
    "flipped bytes": flips,
    "flips everywhere": flips_everywhere,
    "another file": replaced,
    "another folder": rooms,
    "leftovers": leftovers,
    "headers": headers,
    "code": code,
    "metadata text": metadata_text,
    "metadata values": metadata_values,
    "field names": field_names,
    "lists of paths": lists,
    "environment": environment,
    "counters": counters,
    "records": records,
    "elements": elements,
    "strings": strings,
    "sizes": sizes,
}
RANDOM = ("flipped bytes", "flips everywhere", "counters", "records")
"""Kinds whose attacks differ from seed to seed."""


@dataclass(frozen=True)
class Case:
    """One attack on one victim; the seed decides what is random in it."""

    kind: str
    victim: str
    label: str
    attack: Attack
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind} / {self.victim} / {self.label} / {self.seed}"


def _combined(attacks: list[Attack]) -> Attack:
    def attack(site: Site) -> None:
        for one in attacks:
            one(site)

    return attack


def catalogue(victims: dict[str, Victim]) -> dict[str, list[Case]]:
    """Every attack on every victim, by kind."""
    cases = {
        kind: [Case(kind, name, label, attack) for name, victim in victims.items() for label, attack in attacks(victim)]
        for kind, attacks in KINDS.items()
    }
    several = []
    mixed = [case for kind, group in cases.items() if kind not in ("sizes", "nothing") for case in group]
    generator = random.Random("several at once")
    for name in victims:
        fitting = [case for case in mixed if case.victim == name]
        for _ in range(60):
            chosen = generator.sample(fitting, generator.randrange(2, 4))
            label = " + ".join(f"{case.kind}: {case.label}" for case in chosen)
            several.append(Case("several at once", name, label, _combined([case.attack for case in chosen])))
    cases["several at once"] = several
    return cases


def choose(cases: dict[str, list[Case]], count: int, seed: int, *, slow: bool = True) -> list[Case]:
    """``count`` cases, of every kind as many as it has or as of any other.

    Args:
        slow: whether cases that need seconds each may be among them.
    """
    streams: dict[str, Iterator[Case]] = {}
    for kind, group in cases.items():
        generator = random.Random(f"{seed} {kind}")
        pool = [case for case in group if slow or not is_slow(case)]
        generator.shuffle(pool)
        # A reader of an interrupted buffer waits for the writer, so most of a round would be spent on those.
        pool = [case for case in pool if case.victim != "interrupted" or kind == "nothing" or generator.random() < 0.2]
        streams[kind] = iter(pool) if kind not in RANDOM else _again(pool, seed)
    chosen: list[Case] = []
    while streams and len(chosen) < count:
        for kind in list(streams):
            case = next(streams[kind], None)
            if case is None:
                del streams[kind]
            elif len(chosen) < count:
                chosen.append(case)
    return chosen


def _again(pool: list[Case], seed: int) -> Iterator[Case]:
    """A pool over and over, with a new seed each time."""
    for number in itertools.count():
        yield from (Case(c.kind, c.victim, c.label, c.attack, seed * 1000 + number) for c in pool)


def is_slow(case: Case) -> bool:
    """Whether a case is left to the long round."""
    if case.victim == "interrupted" and case.kind != "nothing":
        return True  # readers wait for a writer that might be renaming files
    if case.label.startswith("pending: ") and "new: " in case.label and "new: copy" not in case.label:
        return True
    size = re.search(r"of \d{7,} bytes|^\d{7,} sparse records", case.label)
    return size is not None or "million" in case.label or case.label in ("many", "obsolete: very many")
