"""The text of the synthetic data: a seeded grammar over `lexicon.yaml` writes short, plain English sentences.

They have 3 to 12 words in lower case without punctuation, as LoquaciousSet's labels. The embedded backbones are
pre-trained on them, and the quickstart's shards are made of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import yaml

from tiny_audio.config import ConfigError, one_line, require

LEXICON_PATH = Path(__file__).with_name("lexicon.yaml")
VOWELS = "aeiou"
CHARACTERS = " abcdefghijklmnopqrstuvwxyz"  # every character that occurs in a sentence
NEVER_HELD_OUT = ("numbers", "days", "months", "adverbs", "materials", "abstract")
PREPOSITIONS = [
    "in",
    "near",
    "behind",
    "beside",
    "under",
    "above",
    "inside",
    "outside",
    "across",
    "toward",
    "past",
    "around",
    "beyond",
]
TIMES = [
    "every morning",
    "last night",
    "this evening",
    "at noon",
    "before breakfast",
    "after dinner",
    "all day long",
    "during the storm",
    "before the rain",
    "on the weekend",
    "until midnight",
    "after the show",
    "at dawn",
    "next summer",
    "last winter",
]


@dataclass(frozen=True)
class Noun:
    """A noun in both numbers."""

    singular: str
    plural: str


@dataclass(frozen=True)
class Verb:
    """A verb in the forms that the grammar uses."""

    base: str
    third: str
    past: str
    ing: str


@dataclass(frozen=True)
class Lexicon:
    """Word classes by name; every entry is a `str`, a `Noun` or a `Verb`."""

    classes: dict[str, tuple]

    def forms(self) -> set[str]:
        """Returns every form of every word."""
        forms: set[str] = set()
        for entries in self.classes.values():
            for entry in entries:
                forms.update([entry] if isinstance(entry, str) else vars(entry).values())
        return forms


def plural(noun: str) -> str:
    """Returns the English plural of a regular noun."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in VOWELS:
        return noun[:-1] + "ies"
    return noun + ("es" if noun in ("potato", "tomato", "mango") else "s")


def _doubles(verb: str) -> bool:
    """Whether a one-syllable verb doubles its last letter: stop, stopped."""
    return (
        len(verb) >= 3
        and verb[-1] not in "aeiouwxy"
        and verb[-2] in VOWELS
        and verb[-3] not in VOWELS
        and sum(c in VOWELS for c in verb) == 1
    )


def _suffixed(verb: str, suffix: str) -> str:
    if verb.endswith("ie") and suffix == "ing":
        return verb[:-2] + "ying"
    if verb.endswith("e"):
        return verb[:-1] + suffix
    if verb.endswith("y") and verb[-2] not in VOWELS and suffix == "ed":
        return verb[:-1] + "ied"
    return verb + (verb[-1] if _doubles(verb) else "") + suffix


def conjugate(entry: str) -> Verb:
    """Conjugates an entry of the lexicon: `base`, or `base:past` for an irregular verb."""
    base, _, past = entry.partition(":")
    return Verb(base, plural(base), past or _suffixed(base, "ed"), _suffixed(base, "ing"))


def _noun(entry: str) -> Noun:
    singular, _, irregular = entry.partition(":")
    return Noun(singular, irregular or plural(singular))


@lru_cache(maxsize=1)
def _raw_lexicon() -> dict[str, list[str]]:
    return {name: words.split() for name, words in yaml.safe_load(LEXICON_PATH.read_text()).items()}


def blocked_words() -> set[str]:
    """Returns the words that no sentence may contain."""
    return set(_raw_lexicon()["blocked"])


@lru_cache(maxsize=2)
def load_lexicon(held_out: bool = False) -> Lexicon:
    """Returns the lexicon without the held-out words; or, with `held_out`, the held-out words of the classes that have any."""
    raw = _raw_lexicon()
    held_out_words = set(raw["held_out"])
    classes: dict[str, tuple] = {}
    for name, words in raw.items():
        if name in ("held_out", "blocked"):
            continue
        words = list(dict.fromkeys(words))
        if name not in NEVER_HELD_OUT:
            words = [word for word in words if (word.partition(":")[0] in held_out_words) == held_out]
        if name in ("actions", "motions"):
            classes[name] = tuple(conjugate(word) for word in words)
        elif name in ("people", "animals", "objects", "places", "foods"):
            classes[name] = tuple(_noun(word) for word in words)
        else:
            classes[name] = tuple(word.replace("-", " ") for word in words)
    return Lexicon(classes)


def _article(word: str) -> str:
    return "an" if word[0] in VOWELS and not word.startswith(("use", "uni")) else "a"


class Grammar:
    """Writes random sentences. `novel` in [0, 1] is the probability that a word is one of the held-out words of its class."""

    def __init__(self, rng: random.Random, novel: float = 0.0):
        self.rng = rng
        self.novel = novel
        self.known, self.held_out = load_lexicon(), load_lexicon(held_out=True)
        self.known_forms = sorted(form for form in self.known.forms() if form.isalpha() and len(form) > 3)
        self.real_forms = self.known.forms() | self.held_out.forms()
        self.rules = (
            [self.person_does] * 5
            + [self.moves] * 3
            + [self.describes] * 2
            + [self.there_are] * 2
            + [self.asks] * 2
            + [self.orders] * 2
            + [self.plans, self.weather_of_things, self.thinks, self.buys, self.both, self.salad, self.made_of]
        )

    def word(self, name: str):
        held_out = self.held_out.classes[name]
        pool = held_out if held_out and self.rng.random() < self.novel else self.known.classes[name]
        return self.rng.choice(pool)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def singular(self, *names: str) -> str:
        noun = self.word(self.rng.choice(names)).singular
        adjective = self.word("adjectives") + " " if self.chance(0.4) else ""
        determiner = self.rng.choice(["the", "the", "the", "my", "this", "her", "his", "a"])
        if determiner == "a":
            determiner = _article(adjective or noun)
        return f"{determiner} {adjective}{noun}"

    def plural(self, *names: str) -> str:
        noun = self.word(self.rng.choice(names)).plural
        adjective = self.word("adjectives") + " " if self.chance(0.4) else ""
        return f"{self.rng.choice([self.word('numbers'), 'some', 'these', 'all the', 'our'])} {adjective}{noun}"

    def subject(self) -> str:
        return self.rng.choice([self.singular("people"), self.word("names"), self.word("names"), "we", "they", "she", "he"])

    def thing(self) -> str:
        return self.singular("objects", "foods") if self.chance(0.7) else self.plural("objects", "foods")

    def where(self) -> str:
        return f"{self.rng.choice(PREPOSITIONS)} the {self.word('places').singular}"

    def when(self) -> str:
        return self.rng.choice(
            [f"on {self.word('days')}", f"in {self.word('months')}", self.rng.choice(TIMES), self.word("adverbs")]
        )

    def person_does(self) -> str:
        tail = self.rng.choice(["", self.where(), self.when(), f"with {self.thing()}"])
        return f"{self.subject()} {self.word('actions').past} {self.thing()} {tail}"

    def moves(self) -> str:
        return f"{self.singular('people', 'animals')} {self.word('motions').past} {self.rng.choice([self.where(), self.when()])}"

    def describes(self) -> str:
        link = self.rng.choice(["and", "but"])
        subject = self.singular("people", "animals", "objects", "places")
        return f"{subject} {self.rng.choice(['is', 'was', 'looks'])} {self.word('adjectives')} {link} {self.word('adjectives')}"

    def there_are(self) -> str:
        place = self.where()
        return self.rng.choice(
            [
                f"there are {self.plural('objects', 'animals', 'people')} {place}",
                f"there is {self.singular('objects', 'foods', 'animals')} {place}",
            ]
        )

    def asks(self) -> str:
        return self.rng.choice(
            [
                f"where did {self.subject()} {self.word('actions').base} {self.thing()}",
                f"can you {self.word('actions').base} {self.thing()} {self.when()}",
                f"why is {self.singular('people', 'animals', 'places')} so {self.word('adjectives')}",
                f"who will {self.word('actions').base} {self.thing()} for {self.word('names')}",
            ]
        )

    def orders(self) -> str:
        start = self.rng.choice(["please", "do not", "you must", "never"])
        return f"{start} {self.word('actions').base} {self.thing()} {self.rng.choice([self.where(), self.when()])}"

    def plans(self) -> str:
        who, does = self.word("names"), self.word("actions").base
        return f"on {self.word('days')} {who} will {does} {self.thing()} {self.rng.choice(['', self.where()])}"

    def weather_of_things(self) -> str:
        return f"the {self.word('abstract')} of the {self.word('people').singular} was {self.word('adjectives')}"

    def thinks(self) -> str:
        return f"{self.word('names')} {self.rng.choice(['thinks', 'knows', 'says', 'hopes'])} that {self.describes()}"

    def buys(self) -> str:
        foods = f"{self.word('numbers')} {self.word('foods').plural}"
        return f"{self.subject()} bought {foods} and {self.singular('objects')} in {self.word('months')}"

    def both(self) -> str:
        return f"{self.word('names')} and {self.word('names')} were {self.word('motions').ing} {self.where()}"

    def made_of(self) -> str:
        thing = f"the {self.word('materials')} {self.word('objects').singular}"
        return f"{thing} {self.rng.choice(['is', 'was'])} {self.word('adjectives')} {self.when()}"

    def salad(self) -> str:
        """Returns words in random order: a decoder must read them, where it could guess a sentence."""
        names = list(self.known.classes)
        words = []
        for _ in range(self.rng.randint(3, 7)):
            entry = self.word(self.rng.choice(names))
            words.append(entry if isinstance(entry, str) else self.rng.choice(list(vars(entry).values())))
        return " ".join(words)

    def invented(self) -> str:
        """Joins the start of a known word to the end of another: no word, but it can be spoken and spelled."""
        while True:
            head, tail = self.rng.choice(self.known_forms), self.rng.choice(self.known_forms)
            word = head[: self.rng.randint(2, 5)] + tail[-self.rng.randint(2, 5) :]
            if word not in self.real_forms and not any(blocked in word for blocked in blocked_words()):
                return word

    def with_invented(self, text: str, share: float) -> str:
        """Replaces a share of the longer words of `text` with invented ones."""
        return " ".join(self.invented() if len(word) > 3 and self.chance(share) else word for word in text.split())

    def sentence(self, min_words: int = 3, max_words: int = 12) -> str:
        """Returns a sentence of `min_words` to `max_words` words."""
        while True:
            text = " ".join(self.rng.choice(self.rules)().split())
            if min_words <= len(text.split()) <= max_words and not set(text.split()) & blocked_words():
                return text


def unique_sentences(count: int, seed: int, exclude: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """Returns `count` different sentences of known words, none of them in `exclude`."""
    grammar, sentences = Grammar(random.Random(seed)), {}
    while len(sentences) < count:
        text = grammar.sentence()
        if text not in exclude:
            sentences[text] = None
    return list(sentences)


def novel_sentences(count: int, seed: int) -> list[str]:
    """Returns `count` different sentences of 8 to 12 words, each with exactly one word that no training text has."""
    grammar, sentences = Grammar(random.Random(seed), novel=0.12), {}
    held_out = grammar.held_out.forms() - grammar.known.forms()
    while len(sentences) < count:
        text = grammar.sentence(min_words=8)
        if sum(word in held_out for word in text.split()) == 1:
            sentences[text] = None
    return list(sentences)


def read_sentences(path: str, count: int, seed: int) -> list[str]:
    """Draws `count` different sentences from a file that has one on each line.

    Raises:
        ConfigError: the file cannot be read, or has too few.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"texts: {path}: not a file of UTF-8 text ({one_line(error)})") from None
    sentences = list(dict.fromkeys(" ".join(line.split()) for line in lines if line.strip()))
    require(len(sentences) >= count, f"texts: {path} has {len(sentences)} different sentences, not the {count} of all sets")
    return random.Random(seed).sample(sentences, count)
