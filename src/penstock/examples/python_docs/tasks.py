"""The demo's evaluation: lm-eval tasks made of modules that nobody trains on.

- ``word_order``: which of four is the real sentence; in each of the others two
  neighbouring words are swapped. Guessing gets one in four.
- ``docs_bpb``: bits per byte of whole responses.

An evaluation that has leaked into training measures memory. Modules are held
out by family (``docs_source.is_held_out``), and what the training rows repeat
anyway, a copied sentence or eight words in a row, is left out of the items.

Run it as ``python tasks.py [FOLDER] [LIBRARY ...]``.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from docs_source import (  # type: ignore[import-not-found]  # found beside this file when run
    STDLIB,
    Doc,
    is_held_out,
    read_docs,
    sentences,
)

# Sharing this many words in a row with a training row counts as a copy.
LEAK_WORDS = 8

# Fewer words leave no three neighbours to swap; more cost time and teach nothing.
MIN_WORDS, MAX_WORDS = 6, 24

# Bounds on what an evaluation costs: 4 x 1,000 short sequences, 300 longer ones.
MAX_ITEMS, MAX_DOCUMENTS = 1_000, 300

# Shorter responses are mostly names, and their bits per byte mostly noise.
MIN_DOCUMENT_WORDS = 15

_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'\"()/_.-]*[.!?]")
_WORD = re.compile(r"[A-Za-z]+")

Item = dict[str, object]


def build_tasks(folder: Path, libraries: Sequence[str], seed: int) -> None:
    """Write the YAML and JSONL files of both tasks.

    Args:
        folder: Where to; made when it is not there.
        libraries: Every library that any model under comparison is trained on;
            the standard library always counts. Items that overlap with them are dropped.
        seed: Picks the words that are swapped and the order of the choices,
            not the modules that are held out.
    """
    held_out, training = divided(libraries)
    leaked = leaks(
        (sentence for doc in held_out for sentence in sentences(doc.response)),
        (doc.response for doc in training),
    )
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "word_order", _WORD_ORDER, _some(word_order(held_out, leaked, seed), MAX_ITEMS))
    _write(folder, "docs_bpb", _DOCS_BPB, _some(documents(held_out, leaked), MAX_DOCUMENTS))


def divided(libraries: Sequence[str]) -> tuple[list[Doc], list[Doc]]:
    """Read these libraries and the standard library: what is held out, what is trained on."""
    held_out: list[Doc] = []
    training: list[Doc] = []
    for library in dict.fromkeys([STDLIB, *libraries]):
        for doc in read_docs(library):
            if isinstance(doc, Doc):
                reserved = library == STDLIB and is_held_out(doc.module)
                (held_out if reserved else training).append(doc)
    return held_out, training


def normalised(text: str) -> tuple[str, ...]:
    """The words of a text, without case and punctuation."""
    return tuple(re.findall(r"[a-z0-9]+", text.lower()))


def leaks(held_out: Iterable[str], training: Iterable[str]) -> set[tuple[str, ...]]:
    """Find the held-out sentences that training texts repeat.

    A sentence of eight words or more leaks when eight of them in a row occur
    in one training text; a shorter one when it occurs as a whole.

    Returns:
        The ``normalised`` form of each sentence that leaks.
    """
    owners: dict[int, dict[tuple[str, ...], set[tuple[str, ...]]]] = {}
    for words in map(normalised, held_out):
        size = min(len(words), LEAK_WORDS)
        for gram in _grams(words, size):
            owners.setdefault(size, {}).setdefault(gram, set()).add(words)
    leaked: set[tuple[str, ...]] = set()
    for text in training:
        words = normalised(text)
        for size, grams in owners.items():
            for gram in grams.keys() & _grams(words, size):
                leaked |= grams[gram]
    return leaked


def _grams(words: tuple[str, ...], size: int) -> set[tuple[str, ...]]:
    return set(zip(*(words[start:] for start in range(size)), strict=False))


def word_order(docs: Iterable[Doc], leaked: set[tuple[str, ...]], seed: int) -> Iterator[Item]:
    """Make one item of each different sentence that has three places to swap words."""
    seen = set(leaked)
    for doc in docs:
        for sentence in sentences(doc.response):
            words = sentence.split()
            # Decided by the sentence alone, so that one that vanishes moves no other.
            chance = random.Random(f"{seed} {sentence}")  # noqa: S311 - not a secret
            places = _swappable(words)
            if (
                normalised(sentence) in seen
                or not MIN_WORDS <= len(words) <= MAX_WORDS
                or not _SENTENCE.fullmatch(sentence)
                or len(places) < 3
            ):
                continue
            seen.add(normalised(sentence))
            choices = [sentence, *(_swapped(words, i) for i in chance.sample(places, 3))]
            chance.shuffle(choices)
            yield _item(doc, choices=choices, answer=choices.index(sentence))


def _swappable(words: Sequence[str]) -> list[int]:
    """Where a word and the next can be swapped without a clue from case or punctuation.

    The first and the last word are left alone for the same reason.
    """
    return [
        i
        for i in range(1, len(words) - 2)
        if _WORD.fullmatch(words[i])
        and _WORD.fullmatch(words[i + 1])
        and words[i].lower() != words[i + 1].lower()
    ]


def _swapped(words: Sequence[str], i: int) -> str:
    return " ".join([*words[:i], words[i + 1], words[i], *words[i + 2 :]])


def documents(docs: Iterable[Doc], leaked: set[tuple[str, ...]]) -> Iterator[Item]:
    """Make one item of each different response of which no sentence leaked."""
    seen: set[tuple[str, ...]] = set()
    for doc in docs:
        words = normalised(doc.response)
        clean = leaked.isdisjoint(map(normalised, sentences(doc.response)))
        if clean and len(words) >= MIN_DOCUMENT_WORDS and words not in seen:
            seen.add(words)
            yield _item(doc, text=doc.response)


def _item(doc: Doc, **fields: object) -> Item:
    # Sentences of one module resemble each other: the gate's errors cluster by it.
    return {
        "cluster": doc.module,
        "origin": doc.origin,
        "instruction": doc.instruction,
        **fields,
    }


def _some(items: Iterable[Item], limit: int) -> list[Item]:
    """At most ``limit`` items, taken evenly from all."""
    every = list(items)
    return [every[i * len(every) // limit] for i in range(limit)] if len(every) > limit else every


_WORD_ORDER: Item = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{instruction}}",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
_DOCS_BPB: Item = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "text",
    "metric_list": [
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
    ],
}


def _write(folder: Path, name: str, task: Item, items: list[Item]) -> None:
    data = folder.resolve() / f"{name}.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    config = {
        "task": name,
        "dataset_path": "json",
        # lm-eval resolves a relative path against the working directory, wherever that is.
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        **task,
        "metadata": {"version": 1.0},
    }
    text = yaml.safe_dump(config, sort_keys=False)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    target, *names = sys.argv[1:] or ["tasks"]
    build_tasks(Path(target), names, seed=17)
