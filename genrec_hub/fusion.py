"""Many domains as one: what they share by accident is found and taken out, and they flow into one stream of histories.

Source: temperature-weighted mixing as in Raffel et al., T5, JMLR 2020, section 3.5.2.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .catalog import Catalog
from .domain import Domain, Sequences

if TYPE_CHECKING:
    from datasets import IterableDataset

PARTS = 64
"""Pieces of a domain's users in a stream; a resumed stream reads at most one piece of each domain again."""


def normal_title(title: str) -> str:
    """A title without case, accents, punctuation and spacing, so that two shops' spellings of one thing are equal."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", title.casefold()) if not unicodedata.combining(char))
    if plain.isascii():
        words = re.findall(r"[^\W_]+", plain)
    else:  # the vowel signs of many scripts are marks, which \w leaves out
        words = "".join(char if char.isalnum() or unicodedata.category(char)[0] == "M" else " " for char in plain).split()
    return " ".join(words or plain.split())  # of a title of signs alone the signs


@dataclass(frozen=True)
class Leak:
    """What one training domain shares with one test domain: items by normalised title, users by id, and what hangs on them."""

    training: str
    test: str
    items: int
    users: int
    interactions: int


def leaks(training: Mapping[str, Domain], test: Mapping[str, Domain]) -> list[Leak]:
    """Counts what each training domain shares with each test domain; `interactions` are those of the training domain that go with it."""
    found = []
    for name, domain in training.items():
        titles, owners = [normal_title(title) for title in domain.catalog.titles], _owners(domain)
        for other, held in test.items():
            shut_titles, shut_users = {normal_title(title) for title in held.catalog.titles} - {""}, set(held.users)
            items = np.array([title in shut_titles for title in titles], bool)
            users = np.array([user in shut_users for user in domain.users], bool)
            lost = int((items[domain.sequences.items] | users[owners]).sum())
            found.append(Leak(name, other, int(items.sum()), int(users.sum()), lost))
    return found


def without_leaks(domain: Domain, test: Sequence[Domain]) -> Domain:
    """Returns a training domain without the users of the test domains and without the items that are called as theirs are.

    Users that keep nothing are gone; the order of what stays is kept.
    """
    shut_titles = {normal_title(title) for held in test for title in held.catalog.titles} - {""}
    shut_users = {user for held in test for user in held.users}
    items = np.array([normal_title(title) not in shut_titles for title in domain.catalog.titles], bool)
    users = np.array([user not in shut_users for user in domain.users], bool)
    owners = _owners(domain)
    keep = items[domain.sequences.items] & users[owners]
    left_items, left_users = np.flatnonzero(items), np.unique(owners[keep])
    new_row = np.full(len(domain.catalog), -1, np.int64)
    new_row[left_items] = np.arange(len(left_items))
    counts = np.bincount(owners[keep], minlength=len(domain))[left_users]
    return Domain(
        Catalog((domain.catalog[int(row)] for row in left_items), domain.catalog.license),
        [domain.users[user] for user in left_users],
        Sequences(new_row[domain.sequences.items[keep]], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)),
        None if domain.times is None else domain.times[keep],
        None if domain.given is None else domain.given[keep],
        domain.name,
    )


def mixing_weights(sizes: Sequence[int], temperature: float = 1.0) -> list[float]:
    """Shares of domains in a stream: size^(1/temperature), normalised. 1 = by size, large = all alike.

    Raises:
        ValueError: when the temperature is not above 0, or a domain has nothing in it.
    """
    if temperature <= 0 or min(sizes, default=0) <= 0:
        raise ValueError(f"Temperature {temperature} and domain sizes {list(sizes)}: all of them should be above 0.")
    weights = np.array(sizes, float) ** (1 / temperature)
    return [float(share) for share in weights / weights.sum()]


def fused_stream(
    domains: Mapping[str, Domain],
    *,
    temperature: float = 2.0,
    seed: int = 0,
    epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    most_users: int | None = None,
    max_items: int = 50,
    least: int = 2,
    repeat: bool = False,
) -> "IterableDataset":
    """Returns one stream of histories of all domains, as a `datasets.IterableDataset` with `state_dict` and `load_state_dict`.

    An entry is {"domain": name, "user": id, "items": the last rows of the domain's catalogue, oldest first}. Which domain comes next is
    drawn by the mixing weights, alike in every process until a domain ends; each process has users of its own. Every history comes
    once; with `repeat` the smaller domains begin again until the last one is through, which keeps the mixture to the end.

    Args:
        domains: name -> domain (training sequences alone: cut them before).
        temperature: of the mixing weights.
        seed: of the order and the draws.
        epoch: another order of the users each, a function of seed and epoch alone.
        rank: this process.
        world: processes; their users do not overlap, together they are all.
        most_users: users of a domain at the most, another sample every epoch.
        max_items: items of a history that are kept, the last ones.
        least: shorter histories are left out.
        repeat: keep the mixture by repeating.

    Raises:
        ValueError: when a domain has fewer users than there are processes.
        ModuleNotFoundError: when `datasets` is not installed.
    """
    try:
        from datasets import Features, IterableDataset, Sequence, Value, interleave_datasets
    except ImportError:
        raise ModuleNotFoundError("A fused stream needs datasets: pip install 'genrec_hub[train]'") from None
    features = Features({"domain": Value("string"), "user": Value("string"), "items": Sequence(Value("int64"))})
    streams, sizes = [], []
    for number, (name, domain) in enumerate(domains.items()):
        users = np.flatnonzero(domain.sequences.lengths >= least)
        users = np.random.default_rng((seed, epoch, number)).permutation(users)[:most_users]
        own = users[rank::world]
        if not len(own):
            raise ValueError(f"{name} has {len(users)} users with {least} items or more, too few for {world} processes: leave it out.")
        parts = np.array_split(own, min(PARTS, len(own)))
        entries = {"parts": [part.tolist() for part in parts], "name": name, "domain": domain, "most": max_items}
        streams.append(IterableDataset.from_generator(_entries, features=features, gen_kwargs=entries))
        sizes.append(len(users))
    strategy = "all_exhausted" if repeat else "all_exhausted_without_replacement"
    return interleave_datasets(streams, mixing_weights(sizes, temperature), seed=seed + epoch, stopping_strategy=strategy)


def _entries(parts: list[list[int]], name: str, domain: Domain, most: int) -> Iterator[dict[str, Any]]:
    for part in parts:
        for user in part:
            yield {"domain": name, "user": domain.users[user], "items": domain.sequences[user][-most:].tolist()}


def _owners(domain: Domain) -> np.ndarray:
    """The user of each interaction. Shape: -> (interactions,)."""
    return np.repeat(np.arange(len(domain)), domain.sequences.lengths)
