"""The task `text-synthetic`: a decoder that predicts the bytes of an invented language, the same on every machine.

The language: documents that have a topic and a cast of names; sentences of a subject, a verb and an object that agree
in gender and number, also across bracketed insertions; recitals, which repeat words in their order or backwards. How
often a word is used is Zipfian, and which goes with which has to be learned word by word.

Everything is integer arithmetic on a counter-based generator, so that no byte depends on a version of anything.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np

from muonlab.tasks.corpus import Corpus, Shard
from muonlab.tasks.stream import counter_hash
from muonlab.tasks.text import NextToken

__all__ = ["SHA256", "Synthetic", "generate"]

# Of the training text with the held-out text behind it. Another text is another task: raise numerics_version.
SHA256 = "d67a0c9413cc043fbe6a99e95de592773a9cb703e4903b718cdb1829b6b3aa8e"
NUM_DOCUMENTS, NUM_HELDOUT, NUM_SENTENCES = 11_200, 560, 16  # the last for each document
CHUNK = 1_400  # documents made at a time: what the cache likes, without effect on the text

NOUNS, VERBS, ADJECTIVES, ADVERBS, NAMES = 2048, 1024, 512, 256, 1024  # powers of two: & is their remainder
KINDS = {  # of words: how many there are, and the endings of their forms
    "noun": (NOUNS, ("", "is")),  # singular, plural; a gender shows in what agrees with it
    "verb": (VERBS, ("a", "am", "ek", "ekum")),  # by the subject's form: 2 x gender + number
    "adjective": (ADJECTIVES, ("o", "oi", "en", "eni")),  # by the noun's form
    "adverb": (ADVERBS, ("",)),
    "preposition": (16, ("",)),
    "name": (NAMES, ("",)),
}
FIXED = (
    *("", ".", ":", " recite", " reverse", " (", " [", " {", " )", " ]", " }"),
    *(" ul", " uli", " an", " ani", " sho", " shoi", " she", " shei"),  # determiners: definite by form, indefinite
)
STOP, COLON, RECITE, OPEN, CLOSE, DETERMINER = 1, 2, 3, 5, 8, 11
ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "st")
VOWELS, CODAS = ("a", "e", "i", "o", "u"), ("", "", "", "", "", "n", "r", "l")
LONGER_FROM = (16, 400)  # ranks from which stems have a second and a third syllable
NUM_TOPICS, TOPIC_NOUNS, CAST, MOST_RECITED = 64, 64, 4, 6
UNIT = 1 << 16  # draws are below it
HASHES = 12  # for each sentence, four draws from each
STREAMS = {name: number for number, name in enumerate(("stems", "gender", "topics", "documents", "sentences", *KINDS))}

Ids = np.ndarray  # of words or of their ranks, int32


@dataclass(frozen=True, kw_only=True)
class Synthetic(NextToken):
    """Next-byte prediction on an invented language: 8.8 MB to train on, 0.4 MB held out, no sentence in both.

    >>> task = Synthetic(width=32, seq_len=64)
    >>> task.batch(seed=0, start=0, count=1)[0].numpy().astype("uint8").tobytes()
    b' sinrohoa ul zegavu. ani hiroeni vovirturis nefiekum she pilfalen'

    Raises   UsageError as `NextToken` does
    """

    numerics_version: ClassVar[str] = "1"

    @cached_property
    def corpus(self) -> Corpus:
        return generate()


@lru_cache(maxsize=1)
def generate() -> Corpus:
    """The corpus; made once in a process.

    Raises   RuntimeError if the text is not what it is everywhere else
    """
    grammar = _Grammar()
    parts = [grammar.sentences(at, min(CHUNK, NUM_DOCUMENTS - at)) for at in range(0, NUM_DOCUMENTS, CHUNK)]
    held = grammar.sentences(NUM_DOCUMENTS, NUM_HELDOUT)
    known, asked = np.sort(np.concatenate([_keys(part) for part in parts])), _keys(held)
    held[known[np.searchsorted(known[:-1], asked)] == asked, 1:] = 0
    train, heldout = b"".join(map(grammar.spelled, parts)), grammar.spelled(held)
    digest = hashlib.sha256(train + heldout).hexdigest()
    if digest != SHA256:
        raise RuntimeError(f"the synthetic text came out with the hash {digest}, everywhere else it is {SHA256}")
    texts = {"train": train, "heldout": heldout}
    return Corpus("bytes", *((Shard(name, np.frombuffer(text, dtype=np.uint8)),) for name, text in texts.items()))


def _keys(sentences: Ids) -> np.ndarray:
    """A hash of each sentence without the heading before it: (num_sentences,) uint64."""
    factors = counter_hash(0, 0, sentences.shape[1] - 1) | np.uint64(1)
    return (sentences[:, 1:].astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64)


class _Grammar:
    """Words, which of them go together, and how sentences are made of them."""

    def __init__(self) -> None:
        words, self.first = _lexicon()
        self.zipf = {num: _zipf(num) for num in (8, 16, 32, TOPIC_NOUNS, *(count for count, _ in KINDS.values()))}
        self.gender = _hashed("gender", 2, NOUNS)
        self.verb_of, self.adjective_of = _hashed("verb", VERBS, NOUNS), _hashed("adjective", ADJECTIVES, NOUNS)
        self.object_of, self.adverb_of = _hashed("noun", NOUNS, VERBS), _hashed("adverb", ADVERBS, VERBS)
        self.topical = self.zipf[NOUNS][_hashed("topics", UNIT, NUM_TOPICS * TOPIC_NOUNS)].reshape(NUM_TOPICS, -1)
        self.first["heading"] = len(words)
        words += [b"\n#%b:" % words[self.first["noun"] + 2 * nouns[0]] for nouns in self.topical.tolist()]
        self.letters = np.frombuffer(b"".join(words), dtype=np.uint8)
        self.length = np.array([len(word) for word in words], dtype=np.int32)
        self.place = np.cumsum(self.length, dtype=np.int32) - self.length

    def spelled(self, sentences: Ids) -> bytes:
        """The text; 0 is no word."""
        ids = sentences[sentences > 0]
        length = self.length[ids]
        end = np.cumsum(length, dtype=np.int32)
        place = np.repeat(self.place[ids] - end + length, length)  # of each byte, less its number in the text
        place += np.arange(len(place), dtype=np.int32)
        return self.letters[place].tobytes()

    def sentences(self, start: int, count: int) -> Ids:
        """Those of documents start ... start + count - 1, a row each, with the heading that comes before, if any."""
        draw = _draws("documents", start, count, 2)
        topic = np.repeat(self.zipf[NUM_TOPICS][next(draw)], NUM_SENTENCES)
        cast = np.stack([self.zipf[NAMES][next(draw)] for _ in range(CAST)], axis=1)
        cast = np.repeat(cast, NUM_SENTENCES, axis=0)
        num = count * NUM_SENTENCES
        recites, *draws = _draws("sentences", start * NUM_SENTENCES, num, HASHES)
        clause = self._clause(iter(draws), topic, cast)
        found = np.zeros((num, 2 + len(clause)), dtype=np.int32)
        found[::NUM_SENTENCES, 0] = self.first["heading"] + topic[::NUM_SENTENCES]
        for column, words in enumerate(clause, 1):
            found[:, column] = words
        rows = np.flatnonzero(recites < UNIT // 10)
        recital = self._recital(drawn[rows] for drawn in draws)
        found[rows, 1:] = 0
        found[rows, 1 : 1 + len(recital)] = np.transpose(recital)
        found[:, -1] = STOP
        return found

    def _clause(self, draw: Iterator[Ids], topic: Ids, cast: Ids) -> list[Ids]:
        """Subject, perhaps an insertion, verb, object, perhaps an adverb."""
        named, who = next(draw) < UNIT // 4, self._cast(draw, cast)
        noun, *phrase, form = self._phrase(draw, topic)
        subject = [np.where(named, 0, phrase[0]), np.where(named, 0, phrase[1]),
                   np.where(named, self.first["name"] + who, phrase[2])]  # fmt: skip
        noun, form = np.where(named, who, noun), np.where(named, 2 * (who & 1), form)
        inside, bracket = next(draw) < 3 * UNIT // 8, next(draw) % 3
        verb, word = self._verb(draw, noun, form)
        _, *phrase, _ = self._phrase(draw, topic, verb)
        nested, other = inside & (next(draw) < UNIT // 2), (bracket + 1 + (next(draw) & 1)) % 3
        about = self.first["preposition"] + self.zipf[16][next(draw)], self.first["name"] + self._cast(draw, cast)
        insertion = [part * inside for part in (OPEN + bracket, word, *phrase)]
        insertion += [part * nested for part in (OPEN + other, *about, CLOSE + other)] + [(CLOSE + bracket) * inside]
        verb, word = self._verb(draw, noun, form)
        _, *phrase, _ = self._phrase(draw, topic, verb)
        how = self.adverb_of[verb], self.zipf[ADVERBS][next(draw)]
        adverb = self.first["adverb"] + np.where(next(draw) < 3 * UNIT // 4, *how)
        return [*subject, *insertion, word, *phrase, adverb * (next(draw) < UNIT // 3)]

    def _recital(self, draw: Iterator[Ids]) -> list[Ids]:
        """Three to six words, then the same again, or the same backwards."""
        num, backwards = 3 + next(draw) % (MOST_RECITED - 2), next(draw) & 1
        words = np.stack([self.first["noun"] + 2 * self.zipf[NOUNS][next(draw)] for _ in range(MOST_RECITED)], axis=1)
        place = np.arange(MOST_RECITED)
        inside = place < num[:, None]
        again = np.where(backwards[:, None] == 1, num[:, None] - 1 - place, place) * inside
        copy = np.take_along_axis(words, again, axis=1) * inside
        colon = np.full(len(num), COLON)
        return [RECITE + backwards, *(words * inside).T, colon, *copy.T]

    def _cast(self, draw: Iterator[Ids], cast: Ids) -> Ids:
        return np.take_along_axis(cast, (self.zipf[8][next(draw)] & (CAST - 1))[:, None], axis=1)[:, 0]

    def _phrase(self, draw: Iterator[Ids], topic: Ids, verb: Ids | None = None) -> tuple[Ids, ...]:
        """A noun's rank, then determiner, adjective or none, and noun as words, and their form.

        The noun is one that the verb prefers, one of the topic, or any.
        """
        coin, pick = next(draw), next(draw)
        noun = np.where(coin < 3 * UNIT // 4, self.topical[topic, self.zipf[TOPIC_NOUNS][pick]], self.zipf[NOUNS][pick])
        if verb is not None:
            noun = np.where(coin < UNIT // 4, (self.object_of[verb] + self.zipf[32][pick]) & (NOUNS - 1), noun)
        number = next(draw) < UNIT // 4
        form = 2 * self.gender[noun] + number
        coin, pick = next(draw), next(draw)
        adjective = np.where(
            coin & 3 > 0, (self.adjective_of[noun] + self.zipf[8][pick]) & (ADJECTIVES - 1), self.zipf[ADJECTIVES][pick]
        )
        described = (coin >> 2) & 7 < 3
        determiner = DETERMINER + 4 * ((coin >> 5) & 7 < 3) + form
        adjective = (self.first["adjective"] + 4 * adjective + form) * described
        return noun, determiner, adjective, self.first["noun"] + 2 * noun + number, form

    def _verb(self, draw: Iterator[Ids], noun: Ids, form: Ids) -> tuple[Ids, Ids]:
        """Rank and word: one that the subject prefers, or any."""
        coin, pick = next(draw), next(draw)
        verb = np.where(
            coin < 5 * UNIT // 8, (self.verb_of[noun] + self.zipf[16][pick]) & (VERBS - 1), self.zipf[VERBS][pick]
        )
        return verb, self.first["verb"] + 4 * verb + form


def _lexicon() -> tuple[list[bytes], dict[str, int]]:
    """All forms of all words, each with the space before it, and where each kind begins; no two are spelled alike."""
    words = [word.encode() for word in FIXED]
    taken, first = set(words), {}
    hashes = iter(counter_hash(STREAMS["stems"], 0, UNIT).tolist())
    for kind, (count, endings) in KINDS.items():
        first[kind] = len(words)
        while (rank := (len(words) - first[kind]) // len(endings)) < count:
            stem = _stem(next(hashes), 1 + sum(rank >= limit for limit in LONGER_FROM))
            stem = stem.capitalize() if kind == "name" else stem
            forms = [f" {stem}{ending}".encode() for ending in endings]
            if taken.isdisjoint(forms):
                words += forms
                taken.update(forms)
    return words, first


def _stem(number: int, num_syllables: int) -> str:
    stem = ""
    for _ in range(num_syllables):
        for sounds in (ONSETS, VOWELS, CODAS):
            number, sound = divmod(number, len(sounds))
            stem += sounds[sound]
    return stem


def _zipf(num: int) -> Ids:
    """Draw -> rank below `num`, rank r about as often as 1 / (r + 2)."""
    ends = np.cumsum((1 << 40) // (np.arange(num, dtype=np.int64) + 2))
    return np.repeat(np.arange(num, dtype=np.int32), np.diff(ends * UNIT // ends[-1], prepend=0))


def _hashed(stream: str, below: int, count: int) -> Ids:
    return (counter_hash(STREAMS[stream], 0, count) % np.uint64(below)).astype(np.int32)


def _draws(stream: str, start: int, count: int, num_hashes: int) -> Iterator[Ids]:
    """Columns (count,) of numbers below 65,536, four from each hash."""
    hashes = counter_hash(STREAMS[stream], start * num_hashes, count * num_hashes).reshape(count, num_hashes)
    for column in np.ascontiguousarray(hashes.T):
        for shift in (0, 16, 32, 48):
            yield ((column >> np.uint64(shift)) & np.uint64(UNIT - 1)).astype(np.int32)
