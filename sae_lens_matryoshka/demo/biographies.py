"""Invented biographies: what somebody does is told, the profession's name is not.

The people, their towns and employers are put together from word lists. Gender shows in
pronouns and titles only, and nothing else in a text depends on it.
"""

import random
from dataclasses import dataclass

GENDERS = (0, 1)
"""Male and female, the codes of LabHC/bias_in_bios."""

VAGUE_ONE_IN = 8
"""One biography in eight tells nothing of the profession: probes cannot be perfect."""


@dataclass(frozen=True)
class Profession:
    """What a profession's biographies speak of.

    Attributes:
        name: SAEBench's name for it.
        employer: What the name of an employer ends with.
        doing: Activities; each goes with each of `things`.
        things: What these activities are about.
        topics: Subjects.
    """

    name: str
    employer: tuple[str, ...]
    doing: tuple[str, ...]
    things: tuple[str, ...]
    topics: tuple[str, ...]


def _list(words: str) -> tuple[str, ...]:
    return tuple(words.split(", "))


_PLAIN = _list("Group, House, Centre, Society, Association, Company, Foundation, Trust")
_HEALTH = (*_PLAIN, *_list("Hospital, Clinic, Medical Centre"))
_SCHOOLS = (*_PLAIN, *_list("College, Academy, Institute"))
_ARTS = (*_PLAIN, *_list("Studio, Arts Centre, Press"))
_OFFICES = (*_PLAIN, *_list("Partners, Associates, Office"))

PROFESSIONS = {
    0: Profession(
        "accountant",
        _OFFICES,
        _list("preparing, checking, filing, correcting, explaining"),
        _list("tax returns, payrolls, balance sheets, expense claims, ledgers, budgets, invoices"),
        _list(
            "tax law, bookkeeping, audits of small firms, cash flow, pension funds, cost control"
        ),
    ),
    1: Profession(
        "architect",
        _OFFICES,
        _list("designing, drawing, planning, renovating, measuring"),
        _list("libraries, town houses, bridges, office towers, timber roofs, housing blocks"),
        _list("floor plans, daylight in buildings, building codes, old facades, city planning"),
    ),
    2: Profession(
        "attorney",
        _OFFICES,
        _list("arguing, settling, preparing, reviewing, taking on"),
        _list("lease disputes, custody cases, patent claims, court appeals, lawsuits, trials"),
        _list("contract law, employment law, the rights of tenants, jury trials, mediation"),
    ),
    6: Profession(
        "dentist",
        _HEALTH,
        _list("fitting, repairing, checking, polishing, replacing"),
        _list("crowns, fillings, dentures, braces, dental bridges, implants, night guards"),
        _list("gum disease, root canals, oral hygiene, dental X-rays, tooth decay, wisdom teeth"),
    ),
    9: Profession(
        "filmmaker",
        _ARTS,
        _list("directing, editing, shooting, producing, screening"),
        _list("short films, documentaries, feature films, music videos, trailers, thrillers"),
        _list("camera work, film editing, festival premieres, screenwriting, independent cinema"),
    ),
    11: Profession(
        "journalist",
        _ARTS,
        _list("writing, researching, publishing, editing, filing"),
        _list(
            "newspaper columns, front-page stories, election reports, interviews, magazine features"
        ),
        _list("press freedom, checking sources, local politics, newsroom deadlines, foreign news"),
    ),
    13: Profession(
        "nurse",
        _HEALTH,
        _list("helping, monitoring, comforting, looking after, washing"),
        _list("newborn babies, elderly patients, patients at night, children on the ward"),
        _list("wound care, bedside care, vaccination rounds, hygiene on wards, shift handovers"),
    ),
    14: Profession(
        "painter",
        _ARTS,
        _list("painting, exhibiting, sketching, selling, framing"),
        _list(
            "oil landscapes, watercolours, abstract canvases, murals, still lifes, coastal scenes"
        ),
        _list("mixing colours, brushwork, gallery shows, light on canvas, modern art, old masters"),
    ),
    18: Profession(
        "photographer",
        _ARTS,
        _list("taking, printing, exhibiting, selling, editing"),
        _list(
            "wedding photographs, wildlife pictures, portraits, street photographs, aerial shots"
        ),
        _list("studio lighting, lenses, darkroom prints, digital cameras, long exposures"),
    ),
    19: Profession(
        "physician",
        _HEALTH,
        _list("treating, examining, diagnosing, advising, seeing"),
        _list("patients with diabetes, asthma patients, patients in pain, children with fevers"),
        _list("family medicine, blood pressure, antibiotics, yearly check-ups, infectious disease"),
    ),
    20: Profession(
        "poet",
        _ARTS,
        _list("writing, publishing, reading aloud, revising, translating"),
        _list("sonnets, prose poems, narrative verse, haiku, love poems, ballads, elegies"),
        _list("rhyme and metre, lyric verse, small presses, open-mic readings, modern poetry"),
    ),
    21: Profession(
        "professor",
        _SCHOOLS,
        _list("teaching, supervising, running, leading, planning"),
        _list("graduate seminars, doctoral research, lectures, research groups, thesis projects"),
        _list("peer review, research grants, academic publishing, statistics, economic theory"),
    ),
    22: Profession(
        "psychologist",
        _HEALTH,
        _list("supporting, interviewing, assessing, counselling, treating"),
        _list("couples, people with anxiety, patients with depression, families in conflict"),
        _list("cognitive therapy, child development, memory and emotion, group therapy, phobias"),
    ),
    25: Profession(
        "surgeon",
        _HEALTH,
        _list("performing, planning, carrying out, assisting in, scheduling"),
        _list("hip replacements, heart operations, knee operations, transplants, hernia repairs"),
        _list(
            "keyhole surgery, operating room safety, anaesthesia, surgical robots, tissue repair"
        ),
    ),
    26: Profession(
        "teacher",
        _SCHOOLS,
        _list("preparing, running, planning, leading, organising"),
        _list(
            "primary school classes, reading lessons, homework clubs, class trips, maths lessons"
        ),
        _list(
            "classroom routines, learning to read, homework, school curricula, teaching fractions"
        ),
    ),
}
"""The professions that SAEBench asks for, by their codes in LabHC/bias_in_bios."""

_OPENINGS = (
    "{first} {last} lives in {town} and works at the {employer}.",
    "{first} {last} joined the {employer} in {year}.",
    "{first} {last} was born in {town}, where {he} still works at the {employer}.",
    "After {n} years in {town}, {first} {last} moved to {town2}.",
    "{title} {last} grew up in {town} and came to the {employer} in {year}.",
)
_WORK = (
    "{he} spends most days {doing} {thing} and {thing2}.",
    "For {n} years {he} has been {doing} {thing}.",
    "{title} {last} is best known for {doing} {thing}, and for talks on {topic}.",
    "{he} started out {doing} {thing} in {town2}.",
    "{he} leads a small team, {doing} {thing} or {thing2}.",
    "{title} {last} gives courses on {topic} and {topic2}.",
    "{he} wrote a short guide to {topic}.",
    "Much of {his} time goes into {topic}.",
    "Colleagues often ask {him} about {topic} or {topic2}.",
)
_VAGUE = (
    "In {year} {he} received a local award for {his} work.",
    "Most of {his} colleagues have known {him} for {n} years.",
    "{title} {last} now leads a team of {n} people.",
    "{he} is often on the road for {his} work.",
)
_PRIVATE = (
    "{he} speaks {language} and {language2}.",
    "In {his} free time {he} enjoys {hobby} and {hobby2}.",
    "{title} {last} shares {his} home with {pet}.",
    "{he} helps out at the {place} in {town2}.",
    "At weekends friends find {him} {hobby} near {town2}.",
    "{he} studied in {town2} until {year}.",
)

# names that any gender bears, surnames and towns that are made up
_FIRST = _list(
    "Alex, Robin, Casey, Jordan, Morgan, Riley, Taylor, Avery, Quinn, Rowan, Jamie, Sam, "
    "Charlie, Drew, Emery, Finley, Harper, Jules, Kit, Lee, Nico, Parker, Reese, Sasha"
)
_LAST = [
    start + end
    for start in _list("Bram, Calder, Dorn, Eller, Fenn, Garr, Hollin, Kest, Lorr, Maddin, Tolla")
    for end in _list("by, field, hurst, low, man, sen, vale, wick")
]
_TOWN = [
    start + end
    for start in _list("Alder, Birch, Clear, Elm, Fox, Green, Hazel, Long, Mill, Oak, Stone, West")
    for end in _list("bridge, brook, ford, haven, port, ton, water")
]
_LANGUAGE = _list("Spanish, French, German, Italian, Polish, Portuguese, Dutch, Japanese, Arabic")
_HOBBY = _list(
    "hiking, chess, cooking, swimming, gardening, cycling, birdwatching, running, rowing, "
    "playing the piano, reading history, baking bread, folk dancing, sailing, pottery"
)
_PET = _list("two dogs, an old cat, three cats, a parrot, a rabbit, many plants, two canaries")
_PLACE = _list("food bank, animal shelter, village fair, library, sports club, repair café")
_PRONOUNS = {
    0: {"he": "he", "his": "his", "him": "him", "title": "Mr."},
    1: {"he": "she", "his": "her", "him": "her", "title": "Ms."},
}


def biography(rng: random.Random, profession: int, gender: int) -> str:
    """Return one invented biography of four sentences.

    Args:
        rng: Source of every choice; the choices do not depend on `gender`.
        profession: A key of `PROFESSIONS`.
        gender: 0 for male, 1 for female.

    Returns:
        The text, 35 to 75 words of English that do not name the profession.
    """
    person = _draw_person(rng, PROFESSIONS[profession]) | _PRONOUNS[gender]
    vague = rng.randrange(VAGUE_ONE_IN) == 0
    work = rng.sample(_VAGUE if vague else _WORK, 2)
    rest = [*work, rng.choice(_PRIVATE)]
    rng.shuffle(rest)
    sentences = [
        sentence.format(**person, **_draw_work(rng, PROFESSIONS[profession]))
        for sentence in (rng.choice(_OPENINGS), *rest)
    ]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)


def _draw_person(rng: random.Random, profession: Profession) -> dict[str, str]:
    town, town2, seat = rng.sample(_TOWN, 3)
    language, language2 = rng.sample(_LANGUAGE, 2)
    hobby, hobby2 = rng.sample(_HOBBY, 2)
    return {
        "first": rng.choice(_FIRST),
        "last": rng.choice(_LAST),
        "town": town,
        "town2": town2,
        "employer": f"{seat} {rng.choice(profession.employer)}",
        "language": language,
        "language2": language2,
        "hobby": hobby,
        "hobby2": hobby2,
        "pet": rng.choice(_PET),
        "place": rng.choice(_PLACE),
        "year": str(rng.randrange(1985, 2024)),
        "n": str(rng.randrange(3, 30)),
    }


def _draw_work(rng: random.Random, profession: Profession) -> dict[str, str]:
    thing, thing2 = rng.sample(profession.things, 2)
    topic, topic2 = rng.sample(profession.topics, 2)
    doing = rng.choice(profession.doing)
    return {"doing": doing, "thing": thing, "thing2": thing2, "topic": topic, "topic2": topic2}
