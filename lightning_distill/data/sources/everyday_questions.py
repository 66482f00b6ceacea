"""Everyday questions without answers, for an assistant to answer: nothing to download.

Each asks for one sentence. Most answers of a small assistant then end within 60 tokens, and its
long ones wander.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import TypeVar

from lightning_distill.data.hashes import sha256
from lightning_distill.data.sources.base import Conversation
from lightning_distill.errors import ConfigError

Parsed = TypeVar("Parsed")

VERSION = 2  # raise it when this file starts to give other questions
ENDING = "Answer in one sentence."

# Templates, and what takes the place of {x} in each of them, separated by commas.
QUESTIONS = {
    (
        "What is {x}?",
        "Explain {x} to a child.",
        "Give a fact about {x}.",
        "Why does {x} matter?",
        "Describe {x}.",
    ): (
        "gravity, photosynthesis, the water cycle, electricity, the internet, a battery, "
        "the human heart, a vaccine, the moon, a rainbow, an earthquake, inflation, democracy, "
        "a bank, a computer program, the sun, a magnet, the ocean, a rain forest, a desert, "
        "the brain, sleep, a black hole, evolution, an ecosystem, recycling, solar power, "
        "a bridge, the printing press, the wheel, a telescope, a microscope, DNA, "
        "the immune system, climate change, a glacier, the alphabet, a map, music, poetry, "
        "friendship, honesty, a honey bee, an octopus, a whale, an oak tree, bread, chocolate, "
        "coffee"
    ),
    (
        "How do I {x}?",
        "Give me a tip to {x}.",
        "What do I need in order to {x}?",
        "What is a common mistake when people {x}?",
    ): (
        "bake bread, learn a language, grow tomatoes, write a letter, save money, plan a trip, "
        "prepare for an interview, clean a kitchen, cook rice, run faster, make new friends, "
        "learn to swim, paint a wall, train a dog, care for a cat, ride a bicycle, "
        "read more books, sleep better, give a speech, take good photos, fix a flat tire, "
        "start a garden, pack a suitcase, learn the guitar, write a poem, eat healthier, "
        "stay focused, learn to code, organize a desk, host a dinner, study for an exam, "
        "build a bookshelf, remember names, drink more water"
    ),
    (
        "Begin a story about {x}.",
        "Write a line of verse about {x}.",
    ): (
        "a lost key, a friendly robot, two neighbors, a rainy day, an old lighthouse, "
        "a curious fox, the first snow, a train journey, a broken clock, "
        "a market in the morning, a letter that came late, a garden at night, a new school"
    ),
    (
        "What is the capital of {x}?",
        "What is {x} known for?",
    ): (
        "France, Italy, Spain, Germany, Japan, Canada, Egypt, Brazil, Norway, Greece, "
        "Portugal, Austria, Poland, Mexico, Peru, Kenya, India, Vietnam, Australia, Ireland, "
        "Sweden, Turkey, Morocco, Argentina, Thailand, Chile"
    ),
}


class EverydayQuestions:
    """A row is one question; `data.answers=teacher` answers it. count: of the questions."""

    def __init__(self, count: int) -> None:
        groups = (product(templates, xs.split(", ")) for templates, xs in QUESTIONS.items())
        questions = [
            f"{template.format(x=x)} {ENDING}" for group in groups for template, x in group
        ]
        if count > len(questions):
            raise ConfigError(f"data.count={count} is more than the {len(questions)} questions.")
        self.questions = sorted(questions, key=sha256)[:count]  # of all kinds

    def fingerprint(self) -> str:
        return f"everyday questions {VERSION} {len(self.questions)}"

    def read(self, parse: Callable[[Conversation], Parsed]) -> Iterator[Parsed]:
        for question in self.questions:
            yield parse(Conversation([{"role": "user", "content": question}]))
