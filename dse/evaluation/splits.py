"""Which rows may be searched, selected on, or only judged on, and proof that these do not overlap.

Two things live here, both without knowledge of files or examples:

* ``quota-hash-1`` places clusters of rows into splits. A placement, once made, is never changed.
* near-duplicate search by character 5-grams, exact at every size.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dse.errors import DatasetError, MissingHoldout

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "ALGORITHM", "SPLITS", "NearDuplicate", "assign", "check_quota", "input_text", "input_texts", "long_texts", "loose",
    "near_duplicates", "normal", "similar_pairs",
]  # fmt: skip

ALGORITHM = "quota-hash-1"
SPLITS = ("search", "select", "holdout")
THRESHOLD = 0.8
_LONG = 24  # characters


# ---- placing clusters -------------------------------------------------------------------------------------


def check_quota(quota: Any, where: str = "quota") -> dict[str, float]:
    """`quota` as ``{"search": q, "select": q, "holdout": q}``, shares of the rows that add up to 1.

    Raises:
        DatasetError: unknown or missing split, a share that is not a number in [0, 1], a sum other than 1.
        MissingHoldout: the holdout's share is 0 or absent.
    """
    if not isinstance(quota, Mapping):
        raise DatasetError(f"{where} is not an object", value=quota, field="quota",
                           remedy='Write {"search": 0.4, "select": 0.3, "holdout": 0.3}.')  # fmt: skip
    for name, share in quota.items():
        if name not in SPLITS:
            raise DatasetError(f"{where} names a split that does not exist", value=name, field="quota",
                               remedy=f"The splits are {', '.join(SPLITS)}.")  # fmt: skip
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise DatasetError(f"{where}: the share of {name!r} is not a number from 0 to 1", value=share, field="quota",
                               remedy="Write a share of the rows, for example 0.3.")  # fmt: skip
    if not quota.get("holdout"):
        raise MissingHoldout(f"{where} leaves no rows for the holdout", value=dict(quota), field="quota",
                             remedy="Give the holdout a share, usually 0.3: nothing is claimed without it.")  # fmt: skip
    missing = [name for name in SPLITS if name not in quota]
    if missing:
        raise DatasetError(f"{where} says nothing about {missing[0]!r}", value=dict(quota), field="quota",
                           remedy="Name all three splits; a share may be 0 for search and select.")  # fmt: skip
    if abs(sum(quota.values()) - 1) > 1e-9:
        raise DatasetError(f"{where} does not add up to 1", value=sum(quota.values()), field="quota",
                           remedy="Make the shares add up to 1.")  # fmt: skip
    return {name: quota[name] for name in SPLITS}


def assign(
    sizes: Mapping[str, int], quota: Mapping[str, float], salt: str, assignment: Mapping[str, str]
) -> dict[str, str]:
    """The assignment ``{cluster: split}`` that places every cluster of `sizes` (cluster -> number of rows).

    Clusters already in `assignment` stay where they are, also those that have no rows now. The others are taken in
    the order of ``sha256(salt + cluster)``; each goes where it reduces most (or raises least) the weighted squared
    distance of the row counts from ``quota * rows``. Afterwards clusters placed by *this* call may move while
    a move brings the counts nearer to the quota, so that one large cluster late in the order does no harm.
    The result depends on cluster names, sizes, quota, salt and earlier assignment only: never on row order.
    """
    result = dict(assignment)
    rows = sum(sizes.values())
    targets = {name: quota[name] * rows for name in SPLITS if quota[name] > 0}
    counts = dict.fromkeys(SPLITS, 0)
    for cluster, size in sizes.items():
        if cluster in result:
            counts[result[cluster]] += size

    def error(split: str, change: int) -> float:
        """How the distance changes when `split` gets `change` rows more."""
        return change * (change - 2 * (targets[split] - counts[split])) / targets[split]

    fresh = [cluster for cluster in sizes if cluster not in result]
    fresh.sort(key=lambda cluster: hashlib.sha256((salt + cluster).encode()).digest())
    for cluster in fresh:
        size = sizes[cluster]
        best = min(targets, key=lambda split: error(split, size))  # ties: the first
        result[cluster] = best
        counts[best] += size
    for _ in range(10):
        moved = False
        for cluster in fresh:
            size, here = sizes[cluster], result[cluster]
            leave = error(here, -size)
            best, gain = here, 1e-9
            for split in targets:
                if split != here and -(leave + error(split, size)) > gain:
                    best, gain = split, -(leave + error(split, size))
            if best != here:
                counts[here] -= size
                counts[best] += size
                result[cluster] = best
                moved = True
        if not moved:
            break
    return result


# ---- near-duplicates --------------------------------------------------------------------------------------


class NearDuplicate(NamedTuple):
    """Text `a` (index into the first list) and text `b` (index into the second) are this similar (Jaccard, 0.8-1)."""

    a: int
    b: int
    similarity: float


def input_text(inputs: Mapping[str, Any]) -> str:
    """The text that stands for `inputs` when duplicates are looked for.

    All strings and numbers at any depth, fields and keys in sorted order, joined by one space. Keys, booleans and
    nulls are left out. Numbers count because two short inputs with different numbers are different inputs.
    """
    parts: list[str] = []
    pending: list[Any] = [inputs]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            parts.append(value)
        elif isinstance(value, Mapping):
            pending.extend(value[key] for key in sorted(value, reverse=True))
        elif isinstance(value, (list, tuple)):
            pending.extend(reversed(value))
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            parts.append(json.dumps(value))
    return " ".join(parts)


def input_texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """`input_text` of each of these rows without the fields that are the same in all of them.

    A question or an instruction that every row repeats says nothing about which of them resemble each other, and would
    make near-duplicates of rows that have nothing else in common.
    """
    first = rows[0] if rows else {}
    same = {name for name, value in first.items() if all(name in row and row[name] == value for row in rows)}
    return [input_text({name: value for name, value in row.items() if name not in same}) for row in rows]


def long_texts(inputs: Mapping[str, Any]) -> list[str]:
    """The texts of `inputs`, at any depth, that are too long to stand anywhere by chance; as :func:`normal` has them."""
    found: list[str] = []
    pending: list[Any] = [inputs]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            found.append(normal(value))
        elif isinstance(value, (Mapping, list, tuple)):
            pending.extend(value.values() if isinstance(value, Mapping) else value)
    return [text for text in found if len(text) >= _LONG]


def loose(value: Any) -> Any:
    """`value` without what an import may change in it: 3.0 and 3, case and white space of texts."""
    if isinstance(value, str):
        return normal(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: loose(item) for key, item in value.items()}
    return [loose(item) for item in value] if isinstance(value, (list, tuple)) else value


def normal(text: str) -> str:
    """Folded for comparison: Unicode's compatible forms, no case, runs of white space as one space."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())  # casefold takes forms apart
    return " ".join(text.casefold().split())


def near_duplicates(
    texts_a: Sequence[str], texts_b: Sequence[str], threshold: float = THRESHOLD
) -> list[NearDuplicate]:
    """Every pair of a text from `texts_a` and one from `texts_b` with a similarity of at least `threshold`.

    Similarity is the Jaccard index of the sets of character 5-grams, after Unicode normalisation (NFKC) and casefold
    and with runs of white space as one space. A text of fewer than 5 characters is one gram, so short texts match only when equal; a text with
    nothing but white space matches nothing. Sorted by (a, b). Every pair given is verified; none is missed,
    barring a collision of 48-bit hashes. Time is near linear in the number of texts unless very many pairs
    share their rarest passages: 0.2 s for 1,000 texts of 400 characters, 3 s for 100,000 of 100, 12 s for 100,000 of 400.

    Two long texts that differ in one number only *are* near-duplicates by this definition, on purpose: on two
    sides of a split such a pair lets a memorised answer look like skill. Give such rows one cluster.

    Raises:
        ValueError: `threshold` is not in (0, 1].
    """
    groups = [0] * len(texts_a) + [1] * len(texts_b)
    offset = len(texts_a)
    pairs = similar_pairs([*texts_a, *texts_b], groups, threshold)
    return sorted(NearDuplicate(a, b - offset, similarity) for a, b, similarity in pairs)


def similar_pairs(
    texts: Sequence[str], groups: Sequence[int], threshold: float = THRESHOLD, limit: int | None = None
) -> list[NearDuplicate]:
    """Pairs of indices into `texts` whose `groups` differ and that are at least `threshold` similar.

    In each pair the text of the lower group comes first. With `limit` the search may stop early, with at least
    `limit` pairs (or all there are); which ones is deterministic. See `near_duplicates` for the definition.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1], not {threshold!r}")
    folded = [normal(text) for text in texts]
    found: list[NearDuplicate] = []

    whole: dict[str, list[int]] = {}  # texts too short for a 5-gram, and exact copies
    for index, text in enumerate(folded):
        if text:
            whole.setdefault(text, []).append(index)
    for same in whole.values():
        if len(same) > 1:
            same.sort(key=lambda index: groups[index])
            for place, a in enumerate(same):
                found += (NearDuplicate(a, b, 1.0) for b in same[place + 1 :] if groups[b] != groups[a])
                if limit is not None and len(found) >= limit:
                    return found

    long = [index for index, text in enumerate(folded) if len(text) >= 5]
    grams: dict[int, frozenset[str]] = {}

    def grams_of(index: int) -> frozenset[str]:
        if index not in grams:
            text = folded[index]
            grams[index] = frozenset(text[at : at + 5] for at in range(len(text) - 4))
        return grams[index]

    seen: set[tuple[int, int]] = set()
    for left, right in _candidates([folded[i] for i in long], [groups[i] for i in long], threshold):
        pair = (long[left], long[right])
        if pair in seen or folded[pair[0]] == folded[pair[1]]:
            continue
        seen.add(pair)
        one, other = grams_of(pair[0]), grams_of(pair[1])
        shared = len(one & other)
        similarity = shared / (len(one) + len(other) - shared)
        if similarity >= threshold:
            found.append(NearDuplicate(*pair, similarity))
            if limit is not None and len(found) >= limit:
                break
    return found


# The candidate search. For Jaccard(A, B) >= t both |A & B| >= t|A| and |A & B| >= t|B| hold, hence, in any common
# order of grams, A and B share a gram among the first |A| - ceil(t|A|) + 1 of A and those of B (prefix filter).
# With the rarest grams first few texts share such a gram. A pair that does is kept only when the sizes allow t
# and when parity bitmaps allow it: each unshared gram flips one bit, so bitmaps of similar sets differ in few bits
# (at most |A ^ B| <= (1-t)/(1+t) * (|A|+|B|)). All three tests let every similar pair through.

_CELLS = 1 << 20  # grams in one numpy block
_PAIRS = 1 << 21  # pairs in one numpy block
_BITS = 512
_SLACK = 2  # grams that may be lost to hash collisions within one text without losing a pair


def _plan(lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Text indices in blocks of similar length, short ones first."""
    import numpy as np

    order = np.argsort(lengths, kind="stable")
    widths = (lengths[order] - 4).tolist()
    blocks: list[NDArray[np.int64]] = []
    start = 0
    for stop, width in enumerate(widths):
        # equal lengths waste nothing; a quarter of padding is fine
        if width * (stop + 1 - start) > _CELLS or width > 8 + 1.25 * widths[start]:
            if stop > start:
                blocks.append(order[start:stop])
            start = stop
    blocks.append(order[start:])
    return blocks


def _hashes(texts: list[str], lengths: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The hash of each gram as a matrix with one row a text, and which cells are grams. Last text longest."""
    import numpy as np

    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    hashes = codes[:-4].copy()
    for at in range(1, 5):
        hashes *= np.uint64(0x9E3779B97F4A7C15)
        hashes += codes[at : len(codes) - 4 + at]
    hashes ^= hashes >> np.uint64(29)  # splitmix64's finish: every bit depends on every character
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    starts = np.cumsum(lengths) - lengths
    columns = np.arange(int(lengths[-1]) - 4)
    real = columns[None, :] < (lengths - 4)[:, None]
    return hashes[np.minimum(starts[:, None] + columns[None, :], len(hashes) - 1)], real


def _candidates(texts: Sequence[str], groups: Sequence[int], threshold: float) -> Iterator[tuple[int, int]]:
    """Index pairs of different groups (lower group first) that may be similar; a pair may come more than once."""
    if len(set(groups)) < 2:
        return
    import numpy as np

    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    blocks = _plan(lengths)
    bits = max(12, min(22, int(lengths.sum()).bit_length()))
    shift = np.uint64(64 - bits)
    frequency = np.zeros(1 << bits, dtype=np.int64)
    for index in blocks:
        hashes, real = _hashes([texts[i] for i in index.tolist()], lengths[index])
        frequency += np.bincount((hashes[real] >> shift).view(np.int64), minlength=1 << bits)
    rank = np.minimum(frequency, 0xFFFE).astype(np.uint64)
    del frequency

    # one sortable word for each gram of a prefix: hash | place of its text in group order | room left after it
    group = np.asarray(groups, dtype=np.int64)
    by_group = np.argsort(group, kind="stable")
    place_of = np.empty(len(group), dtype=np.int64)
    place_of[by_group] = np.arange(len(group))
    room_bits = int(lengths.max()).bit_length()
    hash_shift = np.uint64(room_bits + len(texts).bit_length())

    sizes = np.zeros(len(texts), dtype=np.int64)
    bitmaps = np.zeros((len(texts), _BITS // 64), dtype=np.uint64)
    words: list[NDArray[np.uint64]] = []
    end = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
    for index in blocks:
        hashes, real = _hashes([texts[i] for i in index.tolist()], lengths[index])
        keys = (rank[hashes >> shift] << np.uint64(48)) | (hashes >> np.uint64(16))
        keys[~real] = end
        keys.sort(axis=1)
        first = keys != end
        first[:, 1:] &= keys[:, 1:] != keys[:, :-1]
        count = first.sum(axis=1)
        sizes[index] = count
        unique = keys[first]
        row = np.repeat(np.arange(len(index)), count)
        spots = row * _BITS + (unique & np.uint64(_BITS - 1)).view(np.int64)
        parity = (np.bincount(spots, minlength=len(index) * _BITS) & 1).astype(np.uint8)
        bitmaps[index] = np.packbits(parity.reshape(len(index), _BITS), axis=1).view(np.uint64)
        prefix = count - np.ceil(threshold * count - 1e-9).astype(np.int64) + 1 + _SLACK
        nth = np.arange(len(row)) - (np.cumsum(count) - count)[row]
        # a gram that occurs once in all texts is shared by nobody
        kept = (nth < prefix[row]) & (unique >> np.uint64(48) > 1)
        row = row[kept]
        word = unique[kept] << hash_shift
        word |= ((place_of[index][row] << room_bits) | (count[row] - nth[kept])).view(np.uint64)
        words.append(word)
    word = np.concatenate(words)
    del words
    word.sort()
    token = word >> hash_shift
    owner = by_group[((word & ((np.uint64(1) << hash_shift) - np.uint64(1))) >> np.uint64(room_bits)).view(np.int64)]
    room = (word & np.uint64((1 << room_bits) - 1)).view(np.int64)
    del word
    if not len(token):
        return

    # each gram pairs with the same gram in texts of later groups
    changed = np.concatenate(([True], token[1:] != token[:-1]))
    token_end = _ends(changed)
    changed[1:] |= group[owner[1:]] != group[owner[:-1]]
    part_end = _ends(changed)
    partners = token_end - part_end
    active = np.flatnonzero(partners)
    reach = np.cumsum(partners[active])
    needed = sizes * (threshold / (1 + threshold))
    widest = (1 - threshold) / (1 + threshold)
    done = 0
    while done < len(active):
        before = int(reach[done - 1]) if done else 0
        upto = max(done + 1, int(np.searchsorted(reach, before + _PAIRS, side="right")))
        entries = active[done:upto]
        done = upto
        many = partners[entries]
        left = np.repeat(entries, many)
        right = np.arange(len(left)) + np.repeat(part_end[entries] - np.cumsum(many) + many, many)
        # the first gram that two similar texts share leaves room for |A & B| >= t/(1+t) * (|A|+|B|)
        a, b = owner[left], owner[right]
        fits = np.minimum(room[left], room[right]) + _SLACK >= needed[a] + needed[b]
        a, b = a[fits], b[fits]
        for part in (slice(0, 4), slice(4, None)):  # half of the bitmap is enough for most
            differ = np.bitwise_count(bitmaps[a, part] ^ bitmaps[b, part]).sum(axis=1, dtype=np.int64)
            near = differ <= widest * (sizes[a] + sizes[b]) + 2 * _SLACK
            a, b = a[near], b[near]
        pairs = np.unique(a * len(texts) + b)
        for pair in pairs.tolist():
            yield divmod(pair, len(texts))


def _ends(starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """For every position the position after the last of its run; `starts` marks where runs begin."""
    import numpy as np

    bounds = np.append(np.flatnonzero(starts), len(starts))
    return np.repeat(bounds[1:], np.diff(bounds))
