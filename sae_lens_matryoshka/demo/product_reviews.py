"""Invented sentences that name a product, put before a piece of a real review."""

import random
from dataclasses import dataclass

RATINGS = (1.0, 5.0)
"""One and five stars, as canrager/amazon_reviews_mcauley_1and5 has them."""

VAGUE_ONE_IN = 8
"""One opening in eight names no product: probes cannot be perfect."""


@dataclass(frozen=True)
class Category:
    """What a category's sentences speak of.

    Attributes:
        name: SAEBench's name for it.
        products: Products, in the singular.
        details: What somebody may look at in any of them.
    """

    name: str
    products: tuple[str, ...]
    details: tuple[str, ...]


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split(", "))


CATEGORIES = {
    1: Category(
        "Toys_and_Games",
        _list("board game, jigsaw puzzle, doll house, toy train, card game, block set, teddy bear"),
        _list("the pieces, the dice, the wheels, the colours, the rules, the figures"),
    ),
    2: Category(
        "Cell_Phones_and_Accessories",
        _list("phone case, screen protector, car mount, power bank, phone stand, phone charger"),
        _list("the grip, the screen, the charging port, the fit on my phone, the plug"),
    ),
    3: Category(
        "Industrial_and_Scientific",
        _list(
            "digital caliper, pressure gauge, glass beaker, drill bit, hose clamp, steel bearing"
        ),
        _list("the thread, the scale, the steel, the seal, the accuracy, the diameter"),
    ),
    5: Category(
        "Musical_Instruments",
        _list("acoustic guitar, violin bow, drum kit, ukulele, harmonica, guitar pedal, keyboard"),
        _list("the strings, the tuning, the sound, the neck, the tone, the keys"),
    ),
    6: Category(
        "Electronics",
        _list("wireless speaker, hard drive, router, television, laptop, camera, DVD player"),
        _list("the remote, the picture, the sound, the cable, the battery, the buttons"),
    ),
    11: Category(
        "Office_Products",
        _list("stapler, ink cartridge, ring binder, notebook, fountain pen, shredder, whiteboard"),
        _list("the paper, the ink, the pages, the label, the drawer, the cover"),
    ),
    18: Category(
        "Pet_Supplies",
        _list("dog leash, litter box, aquarium filter, bird cage, chew toy, dog bed, cat tree"),
        _list("the collar, the water tank, the bowl, the fur, the food, the smell"),
    ),
    24: Category(
        "Books",
        _list("novel, cookbook, biography, travel guide, history book, textbook, memoir, thriller"),
        _list("the plot, the chapters, the pages, the author, the cover, the pictures"),
    ),
    26: Category(
        "CDs_and_Vinyl",
        _list("album, live recording, vinyl record, double LP, box set, jazz CD, soundtrack"),
        _list("the songs, the band, the sound, the cover, the lyrics, the singer"),
    ),
    30: Category(
        "Software",
        _list("antivirus program, tax program, photo editor, language course, operating system"),
        _list("the download, the licence key, the menus, the update, the setup, the files"),
    ),
}
"""The categories that SAEBench asks for, by its codes."""

_SENTENCES = (
    "I bought this {product} for {person} in {month} and checked {detail}.",
    "This {product} came last {day}, and I looked at {detail} first.",
    "We ordered the {product} in {month} because of {detail}.",
    "My second {product} from this shop: {detail} and {detail2} matter to {person}.",
    "Got the {product} on {day}; {person} asked about {detail}.",
    "{person} wanted a new {product}, so I read about {detail} and {detail2}.",
)
_VAGUE = (
    "I bought this for {person} in {month}.",
    "This came last {day}, a present for {person}.",
    "We ordered it in {month} and it came on {day}.",
    "My second order from this shop, for {person}.",
)
_PERSON = _list("my brother, my sister, a friend, my neighbour, my uncle, my aunt, a colleague")
_DAY = _list("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday")
_MONTH = _list("January, March, April, May, June, July, August, October, November, December")


def product_sentences(rng: random.Random, category: int) -> str:
    """Return two invented sentences that open a review.

    Args:
        rng: Source of every choice.
        category: A key of `CATEGORIES`.

    Returns:
        The sentences; they hold no opinion.
    """
    vague = rng.randrange(VAGUE_ONE_IN) == 0
    sentences = rng.sample(_VAGUE if vague else _SENTENCES, 2)
    return " ".join(_filled(sentence, rng, CATEGORIES[category]) for sentence in sentences)


def _filled(sentence: str, rng: random.Random, category: Category) -> str:
    detail, detail2 = rng.sample(category.details, 2)
    filled = sentence.format(
        product=rng.choice(category.products),
        detail=detail,
        detail2=detail2,
        person=rng.choice(_PERSON),
        day=rng.choice(_DAY),
        month=rng.choice(_MONTH),
    )
    return filled[0].upper() + filled[1:]
