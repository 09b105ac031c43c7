"""Code mode under attack: each attempt runs as a model would send it, several at the same time on one host.

For every attempt: no implementation outside the allow-list ran, the run ended with an answer or a coded error, neither
the model nor the receipt saw anything of the host or of another run, and after each batch an honest run succeeds.
"""

from __future__ import annotations

import functools

import pytest

from adversarial.bombs import BOMBS
from adversarial.escapes import ESCAPES
from adversarial.lab import CANARY, Attack, Seen, check, run_batch
from adversarial.names import NAMES
from adversarial.values import VALUES

BATCHES = {"escape": ESCAPES, "name": NAMES, "bomb": BOMBS, "value": VALUES}


@functools.cache
def batch(name: str) -> dict[str, Seen]:
    return run_batch(BATCHES[name])


def cases() -> list[object]:
    return [pytest.param(name, one, id=f"{name}-{one.name}") for name, attacks in BATCHES.items() for one in attacks]


@pytest.mark.parametrize("name, one", cases())
def test_attempt(name: str, one: Attack) -> None:
    check(one, batch(name)[one.name], [other.name for other in BATCHES[name] if other is not one])


@pytest.mark.parametrize("name", BATCHES)
def test_the_host_keeps_serving(name: str) -> None:
    seen = batch(name)["canary"]
    assert seen.error is None and seen.answer == "6value of a"
    assert [one for one, _ in seen.ledger.calls].count("double") == 3 and CANARY


def test_every_attempt_has_a_name_of_its_own_and_says_what_it_shows() -> None:
    everything = [one for attacks in BATCHES.values() for one in attacks]
    assert len({one.name for one in everything}) == len(everything) >= 100
    assert all(one.shows for one in everything)
