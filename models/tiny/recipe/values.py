"""Draws random values (names, numbers, words) that no model can know by heart, split by hash.

It knows how a value looks and on which side of the split it falls, and nothing of sentences.
A value is held out when the hash of its text says so: training draws only the one side,
evaluation only the other, so no list has to be kept to prove that they are disjoint.
"""

import random
import string
import zlib
from collections.abc import Callable

import words

ONSETS = [
    "b",
    "br",
    "bl",
    "c",
    "ch",
    "cl",
    "cr",
    "d",
    "dr",
    "f",
    "fl",
    "fr",
    "g",
    "gl",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "kr",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "pr",
    "qu",
    "r",
    "s",
    "sh",
    "sk",
    "sl",
    "sm",
    "sn",
    "sp",
    "st",
    "str",
    "t",
    "th",
    "tr",
    "v",
    "w",
    "wh",
    "y",
    "z",
] + [""] * 6
NUCLEI = [
    "a",
    "a",
    "a",
    "e",
    "e",
    "e",
    "i",
    "i",
    "i",
    "o",
    "o",
    "o",
    "u",
    "u",
    "ai",
    "au",
    "ea",
    "ee",
    "ei",
    "ia",
    "ie",
    "io",
    "oa",
    "oo",
    "ou",
    "y",
]
CODAS = [
    "n",
    "r",
    "l",
    "s",
    "t",
    "m",
    "k",
    "x",
    "d",
    "g",
    "p",
    "nd",
    "rt",
    "st",
    "ng",
    "th",
    "ck",
    "sh",
    "ll",
    "ss",
    "rn",
    "lm",
    "nt",
] + [""] * 22
FOREIGN_LETTERS = (
    "áéíóúàèçñäöüßåøœžšłőğı",
    "абвгдежзиклмнопрстуфхцчшыэюя",
    "αβγδεζηθικλμνξοπρστυφχψω",
    "山川田中木林水火土金日月東西南北京海石花",
    "अआइकखगघचजटडतदनपबमयरलवसह",
    "ابتثجحدرسشصطعفقكلمنهوي",
)
MAX_DRAWS = 10_000


def is_held_out(text: str) -> bool:
    """Returns True for about one value of ten: those that training never draws. Upper and lower
    case are the same, and so is the result on every machine."""
    return zlib.crc32(text.lower().encode()) % 10 == 0


def pseudo_word(rng: random.Random) -> str:
    """Returns a lower-case word of one to three random syllables, sometimes of random letters."""
    kind = rng.random()
    if kind < 0.06:
        return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 7)))
    if kind < 0.09:
        return "".join(rng.choices(rng.choice(FOREIGN_LETTERS), k=rng.randint(2, 5)))
    while True:
        syllables = rng.choices((1, 2, 3), weights=(1, 5, 2))[0]
        word = "".join(
            rng.choice(ONSETS) + rng.choice(NUCLEI) + (rng.choice(CODAS) if last else "")
            for last in [False] * (syllables - 1) + [True]
        )
        if 3 <= len(word) <= 10:
            return word


class Values:
    """Draws values of one side of the split. An instance draws no name twice."""

    def __init__(self, rng: random.Random, held_out: bool) -> None:
        self.rng = rng
        self.held_out = held_out
        self.drawn: set[str] = set()
        self._slots: dict[str, Callable[[], str]] = {
            "name": self.name,
            "person": self.person,
            "city": self.city,
            "job": self.job,
            "digits": self.digits,
            "age": self.age,
            "year": self.year,
            "word": self.word,
            "serial": self.serial,
            "clock": self.clock,
            "room": self.room,
            "thing": self.thing,
        }

    def draw(self, slot: str) -> str:
        """Returns a value of the kind called `slot` (a key of the table above)."""
        return self._slots[slot]()

    def name(self) -> str:
        """Returns a first name, which is nearly always invented."""
        return self._unique(
            lambda: (
                self.rng.choice(words.FIRST_NAMES)
                if self.rng.random() < 0.1
                else pseudo_word(self.rng).capitalize()
            )
        )

    def person(self) -> str:
        """Returns a first and a last name."""
        return f"{self.name()} {self._unique(lambda: pseudo_word(self.rng).capitalize())}"

    def city(self) -> str:
        """Returns a city, which is mostly invented and sometimes has two words."""
        kind = self.rng.random()
        if kind < 0.15:
            return self._pick(lambda: self.rng.choice(words.CITIES))
        first = self._unique(lambda: pseudo_word(self.rng).capitalize())
        if kind < 0.25:
            prefix = self.rng.choice(("New", "Port", "Old", "Bad", "San", "Upper"))
            return f"{prefix} {first}"
        return first

    def job(self) -> str:
        """Returns a job; half of them are real, half invented."""
        if self.rng.random() < 0.5:
            return self._pick(lambda: self.rng.choice(words.JOBS))
        kind = self.rng.random()
        if kind < 0.6:
            return self.word()
        suffix = self.rng.choice(("maker", "seller", "keeper", "driver", "officer"))
        return f"{self.word()} {suffix}"

    def word(self) -> str:
        """Returns a lower-case word: a noun or an invented one."""
        return self._unique(
            lambda: (
                self.rng.choice(words.NOUNS) if self.rng.random() < 0.3 else pseudo_word(self.rng)
            )
        )

    def thing(self) -> str:
        """Returns one or two words, of which the first may be capitalised."""
        kind = self.rng.random()
        if kind < 0.5:
            return self.word()
        if kind < 0.75:
            return self.word().capitalize()
        return f"{self.word()} {self.word()}"

    def digits(self) -> str:
        """Returns a number of two to seven digits."""
        size = self.rng.choices((2, 3, 4, 5, 6, 7), weights=(2, 3, 6, 3, 2, 1))[0]
        return self._unique(
            lambda: str(self.rng.randint(10 ** (size - 1), 10**size - 1)),
        )

    def age(self) -> str:
        """Returns an age in years, from 18 to 90."""
        return self._pick(lambda: str(self.rng.randint(18, 90)))

    def year(self) -> str:
        """Returns a year from 1200 to 2050."""
        return self._pick(lambda: str(self.rng.randint(1200, 2050)))

    def clock(self) -> str:
        """Returns a time of day, such as 17:45."""
        return self._pick(lambda: f"{self.rng.randint(0, 23)}:{self.rng.randint(0, 59):02d}")

    def room(self) -> str:
        """Returns a room number, such as B417 or 23."""
        return self._pick(lambda: self.rng.choice(("", "", *"ABCDEFGH")) + str(self._small()))

    def serial(self) -> str:
        """Returns letters and digits in groups, such as KX-40-T7."""

        def make() -> str:
            groups = self.rng.randint(1, 3)
            alphabet = string.ascii_uppercase + string.digits
            return "-".join(
                "".join(self.rng.choices(alphabet, k=self.rng.randint(2, 4))) for _ in range(groups)
            )

        return self._unique(make)

    def _small(self) -> int:
        return self.rng.randint(1, 999)

    def _pick(self, make: Callable[[], str]) -> str:
        """Returns the first value of `make` that is on this instance's side of the split."""
        for _ in range(MAX_DRAWS):
            value = make()
            if is_held_out(value) == self.held_out:
                return value
        raise RuntimeError("the value space has no value left on this side of the split")

    def _unique(self, make: Callable[[], str]) -> str:
        """Returns the first value of `make` that is on this instance's side of the split and that
        this method has not returned before, in upper or lower case."""
        for _ in range(MAX_DRAWS):
            value = self._pick(make)
            if value.lower() not in self.drawn:
                self.drawn.add(value.lower())
                return value
        raise RuntimeError("the value space is used up")
