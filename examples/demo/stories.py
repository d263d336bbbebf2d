"""Seeded generator of the demo text: short stories with a remembered world, and small facts.

A story keeps track of who is where, who holds what, what lies in which spot and how many of a thing
somebody owns, so later sentences and the closing questions can only be predicted from the earlier ones.
Names, weather, remarks and the order of events are free choices and cannot be predicted at all.
A model of this text therefore has something to know and something to be unsure about.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

# --- words with a meaning to the world -----------------------------------------------------------


def _row(text: str) -> list[str]:
    return text.split("|")


def _table(text: str) -> dict[str, str]:
    return dict(pair.split() for pair in _row(text))


GIRLS = _row("Mia|Anna|Lily|Nora|Ruth|Ella|Rosa|Zoe|Jane|Ivy|Clara|Leah|Maya|Tess|Olga|Nina|Vera|Emma")
BOYS = _row("Tom|Ben|Sam|Max|Leo|Paul|Omar|Finn|Jack|Hugo|Ivan|Luke|Adam|Karl|Theo|Noah|Eric|Dan")

DAYS = _row("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
MONTHS = _row("January|February|March|April|May|June|July|August|September|October|November|December")
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NUMBERS = _row(
    "zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|"
    "sixteen|seventeen|eighteen|nineteen|twenty"
)

INDOORS = _row(
    "in the kitchen|in the barn|in the library|at the school|in the attic|in the cellar|at the station|"
    "in the bakery|in the museum|in the workshop|in the castle|in the mill|in the hall|in the tower|"
    "in the shop|at the theatre"
)
OUTDOORS = _row(
    "in the garden|at the market|in the park|at the harbour|in the forest|in the meadow|on the beach|"
    "in the orchard|by the river|by the lake|on the hill|on the farm|in the field|on the square"
)
INDOOR_SPOTS = _row(
    "on the table|under the bench|behind the door|near the window|on the shelf|under a chair|in the corner|"
    "in a drawer|beside the stairs|on the floor|inside a cupboard|behind the curtain"
)
OUTDOOR_SPOTS = _row(
    "under a tree|behind a rock|on a bench|in the grass|beside the fence|near the path|under a bush|"
    "on a wall|beside the gate|behind the hedge|in the mud|between two stones"
)

LOOKS = _row(
    "red|blue|green|yellow|white|black|brown|purple|golden|silver|small|big|old|new|tiny|broken|shiny|"
    "heavy|soft|pretty|strange|dusty"
)
OBJECTS = _row(
    "ball|kite|book|lamp|hat|key|drum|cup|map|bell|coat|rope|spoon|boat|doll|clock|ring|coin|flute|pen|"
    "scarf|mirror|candle|letter|whistle|brush|bottle|plate|umbrella|hammer|blanket|picture"
)
GOODS = _row("apple|pear|plum|egg|nut|cake|shell|flower|cookie|button|carrot|onion|lemon|stamp|feather|mushroom")
FOODS = _row("bread|soup|honey|cheese|rice|fish|noodles|beans|porridge|jam|pancakes|pizza|salad|grapes|chocolate")

SOUNDS = _table(
    "dog woof|cat meow|cow moo|duck quack|sheep baa|pig oink|bee buzz|snake hiss|owl hoot|mouse squeak|"
    "rooster cock-a-doodle-doo|frog ribbit"
)
LEGS = _table(
    "dog four|cow four|duck two|owl two|bee six|ant six|spider eight|snake no|fish no|frog four|horse four|hen two"
)
YOUNG = _table(
    "dog puppy|cat kitten|cow calf|duck duckling|sheep lamb|pig piglet|horse foal|goat kid|hen chick|"
    "bear cub|frog tadpole"
)
BY_SIZE = _row("ant|bee|frog|mouse|duck|cat|goat|pig|cow|horse|elephant|whale")
COLOURS = {
    "grass": "green",
    "snow": "white",
    "the sky": "blue",
    "coal": "black",
    "a lemon": "yellow",
    "blood": "red",
    "chocolate": "brown",
    "milk": "white",
    "a carrot": "orange",
}
MADE_OF = {
    "bread": "flour",
    "butter": "milk",
    "a candle": "wax",
    "glass": "sand",
    "paper": "wood",
    "wine": "grapes",
    "a sweater": "wool",
    "cheese": "milk",
    "a nail": "iron",
    "a brick": "clay",
}
OPPOSITES = list(
    _table(
        "hot cold|big small|old young|wet dry|fast slow|up down|open closed|empty full|long short|hard soft|"
        "happy sad|early late|light dark|loud quiet"
    ).items()
)

# --- words that a template draws with <kind>: they carry no state, only a likelihood -------------

WORDS = {
    "weather": "sunny|rainy|windy|cold|warm|foggy|cloudy|quiet|snowy|stormy|bright|dull|hot|mild",
    "mood": "happy|sad|tired|hungry|proud|angry|curious|lonely|sleepy|brave|worried|excited|calm|bored|surprised|shy",
    "lead": "|||||then|soon|after a while,|a moment later,|before long,|at last,|suddenly,|after lunch,|"
    "a little later,|next,|in the end,",
    "manner": "|||slowly|quickly|happily|quietly|carefully|at once",
    "walk": "walked|ran|hurried|went|cycled|wandered|set off|came",
    "woman": "mother|sister|aunt|cousin|grandmother|teacher",
    "man": "father|brother|uncle|cousin|grandfather|teacher",
    "family": "<woman>|<man>",
    "errand": "to rest|to help a friend|to look at the birds|to buy some bread|to meet {her} <family>|to think|"
    "to sing|to hear the music|to draw a picture|to ask for work|to feed the ducks|to fetch some water|"
    "to see the ships|to read in peace|to hide from the <weather> wind",
    "pastime": "sang a <length> song|drank some <drink>|ate a piece of <snack>|told a <length> story|laughed|danced|"
    "fell asleep|whistled|drew a picture of a <beast>|wrote to {her} <family>|thought about {her} <family>|"
    "swept the floor|looked for shells|waved at {q}|counted the clouds|waited for the <weather> night|"
    "cleaned {her} <clothes>",
    "length": "long|short|funny|sad|strange|lovely|terrible|new",
    "drink": "tea|milk|water|juice|cocoa|soup|coffee",
    "snack": "bread|cheese|cake|pie|chocolate|fish|toast",
    "food": "|".join(FOODS),
    "beast": "horse|dragon|tiger|whale|bear|fox|rabbit|swan|lion|goat",
    "clothes": "boots|shoes|gloves|hands|glasses|trousers|socks",
    "trait": "kind|clever|lazy|friendly|noisy|careful|stubborn|polite|poor|rich",
    "job": "baker|farmer|teacher|sailor|painter|doctor|singer|tailor|gardener|student|carpenter|postman|cook|miller",
    "get": "bought|found|picked|got|was given|won",
    "lose": "ate|lost|sold|gave away|dropped|threw away",
    "box": "a basket|a bag|a box|a jar|a bucket|a sack|a bowl",
    "how": "||softly|loudly|with a smile|after a pause|in a <mood> voice|at last",
    "said": "said|answered|replied|whispered|called",
    "act": "ran|jumped|crept|hopped|walked|came|slipped",
    "past": "past the people|out of the dark|from behind a wall|over a stone|through a hole|up to {p}|around {q}|"
    "into the light|out of a box|along the road",
    "sky": "the rain began to fall|the sun came out|the wind grew stronger|a bell rang|it grew dark|a cart rolled by|"
    "the snow melted|the moon rose|thunder rolled|a bird sang|the clouds went away|somebody played the piano|"
    "a baby cried|the lights went out|a train went by|leaves fell from the trees",
    "far": "outside|far away|high above|in the distance|nearby|down the road|somewhere",
    "chore": "mend|paint|wash|sell|hide|polish|show you|bring back|look after|draw",
    "verdict": "wonderful|ugly|useful|beautiful|very old|too big|funny|cheap|lovely",
    "day": "|".join(DAYS),
}

# A kind of word, a remark about such a word {x}, and replies that fit the remark.
REMARKS = (
    ("food", "I am [so |very |]hungry", "[Let us|We should] eat some {x}", "There is {x} for [dinner|lunch|us]"),
    ("weather", "What a {x} day", "Yes, I like {x} days", "It was {x} [yesterday|this morning] too"),
    ("mood", "Can you help me", "Of course I can", "[Not now|Later], I am [too |]{x}"),
    ("family", "I miss my {x}", "Do not be sad", "[Write|Go] to your {x} [today|soon], then"),
    ("job", "My <family> is a {x}", "Mine is a <job>[ too|]", "A {x} must be <trait>"),
    ("food", "Do you like {x}", "I like <food> [more|better]", "No, I [never|seldom|hardly ever] eat {x}"),
    ("beast", "I saw a {x} [today|last night]", "A {x} is [always |]<verdict>", "I do not believe you"),
    ("mood", "You look {x}", "I am only a little {x}", "That is because it is so <weather>"),
)

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_WORD = re.compile(r"<(\w+)>")


def say(rng: Random, template: str, **names: str) -> str:
    """Fill a template: ``[a|b|]`` picks an alternative, ``<kind>`` a word of WORDS, ``{name}`` an argument."""
    text = template
    while match := _CHOICE.search(text) or _WORD.search(text):
        options = match[1] if match[0].startswith("[") else WORDS[match[1]]
        text = text[: match.start()] + rng.choice(options.split("|")) + text[match.end() :]
    return _tidy(text.format(**names))


def _tidy(text: str) -> str:
    """Close the holes that empty choices leave, put ``an`` before a vowel and start with a capital."""
    text = re.sub(r" +", " ", text).strip()
    text = re.sub(r" (?=[,.?!])", "", text)
    text = re.sub(r"\b([Aa]) (?=[aeio]|um|ug)", r"\1n ", text)
    first = 1 if text.startswith('"') else 0
    return text[:first] + text[first].upper() + text[first + 1 :]


def counted(number: int, noun: str) -> str:
    """Say ``three apples`` or ``one apple``."""
    return f"{NUMBERS[number]} {noun}" if number == 1 else f"{NUMBERS[number]} {noun}s"


# --- the world of one story ----------------------------------------------------------------------


@dataclass
class Person:
    """Somebody in the story: where they are, what they own in numbers and what they like."""

    name: str
    place: str
    owns: int = 0
    goods: str = ""
    likes: str = ""

    @property
    def she(self) -> str:
        """The pronoun."""
        return "she" if self.name in GIRLS else "he"

    @property
    def her(self) -> str:
        """The possessive."""
        return "her" if self.name in GIRLS else "his"

    @property
    def relative(self) -> str:
        """The kind of word for what this person is to somebody else."""
        return "<woman>" if self.name in GIRLS else "<man>"


@dataclass
class Thing:
    """An object that lasts through the story: somebody holds it, or it lies in a spot of a place."""

    name: str
    finder: Person
    holder: Person | None
    spot: str = ""
    lies_at: str = ""

    @property
    def place(self) -> str:
        """The place where it is, in somebody's hands or not."""
        return self.holder.place if self.holder else self.lies_at

    def where(self) -> str:
        """The answer to the question where it is, as the end of a sentence."""
        return f"with {self.holder.name} {self.place}" if self.holder else f"{self.spot} {self.place}"


@dataclass
class Scene:
    """Everything that is true at one moment of a story."""

    rng: Random
    day: str
    people: list[Person]
    things: list[Thing] = field(default_factory=list)
    subject: Person | None = None

    def refer(self, person: Person) -> str:
        """Name a person, or use the pronoun when the last sentence was about the same one."""
        again = self.subject is person
        self.subject = person
        return person.she if again and self.rng.random() < 0.7 else person.name

    def others(self, person: Person) -> list[Person]:
        """Everybody else."""
        return [q for q in self.people if q is not person]

    def company(self, person: Person) -> list[Person]:
        """Everybody else in the same place."""
        return [q for q in self.others(person) if q.place == person.place]

    def tell(self, template: str, person: Person, **names: str) -> str:
        """Fill a template about ``person``: {p}, {she} and {her} are that one, {q} is somebody else by default."""
        names = {"q": self.rng.choice(self.others(person)).name, **names}
        return say(self.rng, template, p=self.refer(person), she=person.she, her=person.her, **names)

    def spot(self, place: str) -> str:
        """Pick a spot that such a place has."""
        return self.rng.choice(INDOOR_SPOTS if place in INDOORS else OUTDOOR_SPOTS)


def new_scene(rng: Random) -> Scene:
    """Make a scene of two people in one place and perhaps a third one elsewhere."""
    here, elsewhere = rng.sample(INDOORS + OUTDOORS, 2)
    names = rng.sample(GIRLS + BOYS, rng.choice((2, 2, 3)))
    people = [Person(name, place) for name, place in zip(names, (here, here, elsewhere), strict=False)]
    return Scene(rng, rng.choice(DAYS), people)


# --- events: each says one thing and makes it true, or returns None when it cannot happen ---------


def find(s: Scene) -> str | None:
    """Somebody finds a thing that the story has not had yet."""
    name = f"{s.rng.choice(LOOKS)} {s.rng.choice(OBJECTS)}"
    if len(s.things) == 3 or any(thing.name == name for thing in s.things):
        return None
    person = s.rng.choice(s.people)
    s.things.append(Thing(name, finder=person, holder=person))
    template = "<lead> {p} [found|saw|noticed|discovered] a {thing} {spot} and [picked it up|took it|kept it]."
    return s.tell(template, person, thing=name, spot=s.spot(person.place))


def take(s: Scene) -> str | None:
    """Somebody picks up a thing that lies where they are."""
    pairs = [(p, t) for p in s.people for t in s.things if not t.holder and t.place == p.place]
    if not pairs:
        return None
    person, thing = s.rng.choice(pairs)
    thing.holder = person
    template = "<lead> {p} [took|picked up|grabbed|reached for] the {thing} [that lay |]{spot}[ and <pastime>|]."
    return s.tell(template, person, thing=thing.name, spot=thing.spot)


def give(s: Scene) -> str | None:
    """A thing goes from one person to another in the same place."""
    pairs = [(t, q) for t in s.things if t.holder for q in s.company(t.holder)]
    if not pairs:
        return None
    thing, receiver = s.rng.choice(pairs)
    giver, thing.holder = thing.holder, receiver
    thanks = "[, who felt <mood>|, who looked <mood>|, and {q} said thank you| as a present||]"
    template = "<lead> {p} [gave|handed|<manner> passed] the {thing} to {q}" + thanks + "."
    return s.tell(template, giver, thing=thing.name, q=receiver.name)


def put(s: Scene) -> str | None:
    """Somebody lays down what they hold."""
    held = [t for t in s.things if t.holder]
    if not held:
        return None
    thing = s.rng.choice(held)
    person, thing.holder = thing.holder, None
    thing.lies_at, thing.spot = person.place, s.spot(person.place)
    template = "<lead> {p} [<manner> put|left|placed|laid|hid|forgot] the {thing} {spot}[ and <pastime>|]."
    return s.tell(template, person, thing=thing.name, spot=thing.spot)


def move(s: Scene) -> str | None:
    """Somebody goes to another place, perhaps in company; what they hold comes along."""
    person = s.rng.choice(s.people)
    friends = s.company(person)[:1] if s.rng.random() < 0.4 else []
    person.place = s.rng.choice([x for x in INDOORS + OUTDOORS if x != person.place])
    for friend in friends:
        friend.place = person.place
    company = "".join(f" with {friend.name}" for friend in friends)
    held = [f"[ and took the {thing.name} along|]" for thing in s.things if thing.holder is person]
    template = "<lead> {p} <walk> <manner> to {place}{company}[ <errand>||]" + "".join(held[:1]) + "."
    return s.tell(template, person, place=person.place.split(" ", 1)[1], company=company)


def seek(s: Scene) -> str | None:
    """Somebody looks for a thing in the wrong place."""
    pairs = [(p, t) for p in s.people for t in s.things if p.place != t.place]
    if not pairs:
        return None
    person, thing = s.rng.choice(pairs)
    template = "<lead> {p} <manner> looked for the {thing} [everywhere |]{place}, but it was not there."
    return s.tell(template, person, thing=thing.name, place=person.place)


def ask(s: Scene) -> str | None:
    """One person asks where a thing is and another answers truthfully."""
    if not s.things:
        return None
    thing = s.rng.choice(s.things)
    person = s.rng.choice([p for p in s.people if p is not thing.holder])
    friend = s.rng.choice(s.others(person))
    s.subject = None
    question = '"Where is the {thing}?" asked {p} <how>. '
    answer = '"' + _answer(thing, friend) + '," <said> {q} <how>.'
    text = s.tell(question + answer, person, thing=thing.name, q=friend.name)
    s.subject = friend
    return text


def _answer(thing: Thing, speaker: Person) -> str:
    if thing.holder is speaker:
        return "[I have it|I have it here|It is with me]"
    if thing.holder:
        return f"[{thing.holder.name} has it|Ask {thing.holder.name}]"
    return f"It [is|must be|is still] {thing.where()}"


def gain(s: Scene) -> str | None:
    """Somebody comes to own things; the new number is the sum."""
    owners = [p for p in s.people if not p.owns]
    if not owners:
        return None
    person, had, more = s.rng.choice(owners), s.rng.randint(1, 9), s.rng.randint(1, 9)
    person.owns, person.goods = had + more, s.rng.choice(GOODS)
    template = "<lead> {p} had {had} in <box> and <get> {more} more, so [now|then] {she} had {total}."
    words = {"had": counted(had, person.goods), "more": NUMBERS[more], "total": counted(person.owns, person.goods)}
    return s.tell(template, person, **words)


def spend(s: Scene) -> str | None:
    """Somebody loses some of what they own; the new number is the difference."""
    owners = [p for p in s.people if p.owns > 1]
    if not owners:
        return None
    person = s.rng.choice(owners)
    had, less = person.owns, s.rng.randint(1, person.owns - 1)
    person.owns -= less
    template = "<lead> {p} <lose> {less} of the {had}, [so|and] {she} [still|] had {left} [left|]."
    words = {"less": NUMBERS[less], "had": counted(had, person.goods), "left": NUMBERS[person.owns]}
    return s.tell(template, person, **words)


def like(s: Scene) -> str | None:
    """Two tastes to remember."""
    person, friend = s.rng.sample(s.people, 2)
    if person.likes or friend.likes:
        return None
    person.likes, friend.likes = s.rng.sample(FOODS, 2)
    when = "[for dinner|of all things|at home|on Sundays|every day]"
    template = when + ", {p} liked {first} best, but {q} [always|] liked {second} better."
    return s.tell(template, person, q=friend.name, first=person.likes, second=friend.likes)


def chat(s: Scene) -> str | None:
    """A remark and one of the replies that fit it."""
    pairs = [(p, q) for p in s.people for q in s.company(p)]
    if not pairs:
        return None
    person, friend = s.rng.choice(pairs)
    kind, remark, *replies = s.rng.choice(REMARKS)
    end, verb = ("?", "asked") if remark.startswith(("Can", "Do")) else (",", "said")
    s.subject = None
    template = f'"{remark}{end}" {verb} {{p}} <how>. "{s.rng.choice(replies)}," <said> {{q}} <how>.'
    text = s.tell(template, person, q=friend.name, x=say(s.rng, f"<{kind}>").lower())
    s.subject = friend
    return text


def plan(s: Scene) -> str | None:
    """The holder of a thing says what will happen to it, or somebody judges it."""
    held = [t for t in s.things if t.holder]
    if not held:
        return None
    thing = s.rng.choice(held)
    s.subject = None
    promise = '{p} [said|promised|whispered], "[Tomorrow|On <day>|One day|Tonight] I will <chore> the {thing}."'
    opinion = "{q} [thought|said] that the {thing} [of {p}|] was <verdict>[ and <verdict>|]."
    text = s.tell(s.rng.choice((promise, opinion)), thing.holder, thing=thing.name)
    s.subject = None
    return text


def feel(s: Scene) -> str:
    """A mood, with or without a reason."""
    template = "<lead> {p} [felt|was|became|looked] <mood>[ and <pastime>| because <sky>| but <mood>||]."
    return s.tell(template, s.rng.choice(s.people))


def weather(s: Scene) -> str:
    """Something that nobody did."""
    s.subject = None
    text = s.tell("<far> <sky>[, and {p} <pastime>| while {p} <pastime>|].", s.rng.choice(s.people))
    s.subject = None
    return text


def animal(s: Scene) -> str:
    """An animal comes by and makes its own sound."""
    s.subject = None
    name, sound = s.rng.choice(list(SOUNDS.items()))
    came = "<lead> a {look} {animal} <act> <past> and said {sound}"
    template = came + "[, and everybody laughed|, which made {p} <mood>||]."
    text = s.tell(template, s.rng.choice(s.people), look=s.rng.choice(LOOKS), animal=name, sound=sound)
    s.subject = None
    return text


def sleep(s: Scene) -> str:
    """The story goes on the next day, and the days have an order."""
    s.day = DAYS[(DAYS.index(s.day) + 1) % len(DAYS)]
    s.subject = None
    return say(s.rng, "The next [day|morning] was [a <weather> {day}|{day}], and <sky>.", day=s.day)


EVENTS: dict[Callable[[Scene], str | None], int] = {
    find: 5,
    take: 4,
    give: 5,
    put: 4,
    move: 6,
    seek: 2,
    ask: 3,
    gain: 3,
    spend: 3,
    like: 1,
    chat: 4,
    plan: 2,
    feel: 3,
    weather: 2,
    animal: 2,
    sleep: 1,
}


# --- questions -----------------------------------------------------------------------------------


def questions(s: Scene) -> list[tuple[str, str]]:
    """List all questions that the story so far answers, with the answers."""
    pairs = [("What day is it[ now|]?", f"It is {s.day}.")]
    for thing in s.things:
        holder = thing.holder.name if thing.holder else "nobody"
        pairs.append((f"Where is the {thing.name}[ now|]?", f"The {thing.name} is {thing.where()}."))
        pairs.append((f"Who has the {thing.name}[ now|]?", f"{holder} has the {thing.name}."))
        pairs.append((f"Who found the {thing.name}[ first|]?", f"{thing.finder.name} found the {thing.name}."))
    for person in s.people:
        pairs.append((f"Where is {person.name}[ now|]?", f"{person.name} is {person.place}."))
        if person.owns:
            total = counted(person.owns, person.goods)
            pairs.append((f"How many {person.goods}s does {person.name} have?", f"{person.name} has {total}."))
        if person.likes:
            pairs.append((f"What does {person.name} like [best|most]?", f"{person.name} likes {person.likes}."))
    return pairs


def _dialogue(rng: Random, pairs: list[tuple[str, str]]) -> str:
    return "".join(f"\nQuestion: {say(rng, question)}\nAnswer: {say(rng, answer)}" for question, answer in pairs)


# --- whole documents -----------------------------------------------------------------------------


def _opening(s: Scene) -> str:
    first, second, *rest = s.people
    when = "[on a <weather> {day} [morning|afternoon|evening|night]|one {day}|it was {day}, and|one <weather> {day}] "
    who = (
        "{p}[, the <trait> <job>,|, a <job>,||] and {her} [friend|neighbour|<trait> friend|"
        + second.relative
        + "] {q} "
    )
    what = "[were [playing|working|waiting|resting|talking]|met|sat|stood|had a rest] {place}."
    sentences = [s.tell(when + who + what, first, q=second.name, day=s.day, place=first.place)]
    for person in rest:
        role = "[, the <trait> <job>,|, their " + person.relative + ",||] "
        sentences.append(
            s.tell("{p}" + role + "was {place}[ and <pastime>| and felt <mood>|].", person, place=person.place)
        )
    s.subject = None
    return " ".join(sentences)


def tell_story(rng: Random) -> str:
    """Tell a story of five to nine events with one or two questions at its end."""
    scene = new_scene(rng)
    sentences = [_opening(scene)]
    length = len(sentences) + rng.randint(5, 9)
    last = None
    while len(sentences) < length:
        event = rng.choices(list(EVENTS), list(EVENTS.values()))[0]
        # The same event twice in a row reads like a stutter.
        sentence = event(scene) if event is not last else None
        if sentence:
            sentences.append(sentence)
            last = event
    asked = rng.sample(questions(scene), rng.choice((1, 2)))
    return " ".join(sentences) + _dialogue(rng, asked)


def _number_fact(rng: Random) -> tuple[str, str, str]:
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    if rng.random() < 0.5:
        total = f"{NUMBERS[a]} plus {NUMBERS[b]}"
        return f"{total} is {NUMBERS[a + b]}.", f"What is {total}?", f"{NUMBERS[a + b]}."
    return f"{a + b} - {a} = {b}.", f"What is {a + b} - {a}?", f"{b}."


def _order_fact(rng: Random) -> tuple[str, str, str]:
    kind = rng.choice(("day", "month", "letter", "number"))
    row = {"day": DAYS, "month": MONTHS, "letter": LETTERS, "number": NUMBERS}[kind]
    # Days and months go round; letters and numbers come to an end.
    start = rng.randrange(len(row) if kind in ("day", "month") else len(row) - 4)
    run = [row[(start + i) % len(row)] for i in range(rng.choice((3, 4, 5)))]
    line = rng.choice((f"The {kind} after {run[0]} is {run[1]}.", f"{', '.join(run)}."))
    return line, f"Which {kind} comes after {run[0]}?", f"{run[1]}."


def _animal_fact(rng: Random) -> tuple[str, str, str]:
    small, large = (BY_SIZE[i] for i in sorted(rng.sample(range(len(BY_SIZE)), 2)))
    loud, walker, parent = (rng.choice(list(table)) for table in (SOUNDS, LEGS, YOUNG))
    facts = (
        (f"A {loud} says {SOUNDS[loud]}.", f"What does a {loud} say?", f"A {loud} says {SOUNDS[loud]}."),
        (f"A {walker} has {LEGS[walker]} legs.", f"How many legs does a {walker} have?", f"{LEGS[walker]}."),
        (f"A young {parent} is a {YOUNG[parent]}.", f"What is a young {parent}?", f"A {YOUNG[parent]}."),
        (f"A {large} is bigger than a {small}.", f"Which is bigger, a {small} or a {large}?", f"A {large}."),
    )
    return rng.choice(facts)


def _thing_fact(rng: Random) -> tuple[str, str, str]:
    thing, product = rng.choice(list(COLOURS)), rng.choice(list(MADE_OF))
    one, other = rng.sample(rng.choice(OPPOSITES), 2)
    facts = (
        (f"{thing} is {COLOURS[thing]}.", f"What colour is {thing}?", f"{COLOURS[thing]}."),
        (f"{product} is made of {MADE_OF[product]}.", f"What is {product} made of?", f"{MADE_OF[product]}."),
        (f"The opposite of {one} is {other}.", f"What is the opposite of {one}?", f"{other}."),
    )
    return rng.choice(facts)


def tell_facts(rng: Random) -> str:
    """Tell small truths about numbers, order, animals and things, and ask about others; some only ask."""
    kinds = (_number_fact, _order_fact, _animal_fact, _thing_fact)
    lines = [say(rng, rng.choice(kinds)(rng)[0]) for _ in range(rng.choice((0, 3, 4, 5, 6, 7)))]
    asked = [rng.choice(kinds)(rng)[1:] for _ in range(rng.randint(1, 3))]
    return (" ".join(lines) + _dialogue(rng, asked)).strip()


def documents(seed: int) -> Iterator[str]:
    """Yield stories and fact sheets without end, about five to one."""
    rng = Random(seed)
    while True:
        yield tell_facts(rng) if rng.random() < 1 / 6 else tell_story(rng)
