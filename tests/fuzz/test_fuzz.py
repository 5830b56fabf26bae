"""A short run of what `python -m tests.fuzz` does at length, and every packet that once was a finding."""

import random

import pytest

from tests.fuzz.mutation import mutate
from tests.fuzz.run import SHARES, Footprint, Fuzz, kept
from tests.fuzz.templates import PACKETS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


def found(fuzz: Fuzz) -> list[str]:
    return [f"{each.kind}:{each.number} {each.data.hex()[:200]}\n{each.text}" for each in fuzz.findings.values()]


async def test_no_packet_that_once_did_harm_does_any() -> None:
    fuzz = Fuzz(seed=0)

    await fuzz.replay(kept())

    assert found(fuzz) == []


async def test_five_thousand_wrong_packets_neither_reach_the_loop_nor_leave_anything_behind() -> None:
    fuzz = Fuzz(seed=1)

    leaks = await fuzz.run(5_000)

    assert found(fuzz) == []
    assert leaks == []
    assert sum(tally.packets for tally in fuzz.tallies.values()) == 5_000
    assert all(fuzz.tallies[kind].taken for kind in SHARES if kind != "knock")


def test_a_packet_is_told_by_seed_kind_and_number_alone() -> None:
    packets = [Fuzz(seed=seed).packet(kind, 7) for seed in (0, 0, 1) for kind in SHARES]

    one, again, other = (packets[n * len(SHARES) : (n + 1) * len(SHARES)] for n in range(3))
    assert one == again
    assert one != other


def test_a_seed_of_one_byte_and_one_of_none_can_be_mutated() -> None:
    rng = random.Random(0)

    mutated = {mutate([b"x", b""], rng) for _ in range(2_000)}

    assert b"" in mutated
    assert max(map(len, mutated)) > 64


def test_more_tasks_and_much_more_memory_are_a_leak_and_less_is_none() -> None:
    before = Footprint(tasks=1, descriptors=9, threads=2, memory_mb=100.0)

    assert before.leaks(Footprint(tasks=1, descriptors=8, threads=2, memory_mb=110.0)) == []
    assert before.leaks(Footprint(tasks=3, descriptors=9, threads=2, memory_mb=120.0)) == [
        "tasks: 1 -> 3",
        "memory: 100.0 -> 120.0 MB",
    ]


def test_the_empty_datagram_is_among_what_is_sent() -> None:
    assert b"" in PACKETS["datagram"]
