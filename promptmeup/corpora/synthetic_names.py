"""The words of the synthetic world: parts of names, and the sentences of the captions.

Names are everyday English ones, so that a language model tags them as people, organisations, places and
events. Those that spaCy's en_core_web_sm often missed were left out.
"""

from dataclasses import dataclass
from typing import Literal

Domain = Literal["news", "social"]
"""where the same entities are shown and told of: each domain has looks and sentences of its own"""


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


FIRST_NAMES = _names(
    "Maria, Jonas, Elena, Samuel, Grace, Thomas, Hannah, Victor, Clara, Daniel, Priya, Marcus, Olivia, "
    "Henry, Laura, Peter, Amelia, Robert, Julia, Edward, Emma, Michael, Alice, George, Karen, David, "
    "Rachel, Andrew, Susan, Simon, Nicole, Patrick"
)
LAST_NAMES = _names(
    "Keller, Whitfield, Petrov, Okafor, Lindqvist, Moreau, Sorensen, Delgado, Johansson, Ashworth, Nair, "
    "Feldman, Castellano, Nakamura, Bianchi, Novak, Thornton, Vasquez, Brennan, Kowalski, Sullivan, "
    "Adeyemi, Donovan, Hartmann, Holloway, Fitzgerald, Goldberg, Pereira, Ramirez, Eriksson, Hansen, "
    "Gallagher"
)
ORGANISATION_NAMES = _names(
    "Northgate, Harlow, Crestview, Meridian, Redwood, Sterling, Ashford, Bluewater, Kingsley, Falcon, "
    "Granville, Westbrook, Pinnacle, Lakeside, Hawthorne, Beacon, Evergreen, Wexford, Granite, Ironbridge"
)
ORGANISATION_TYPES = _names(
    "Bank, Institute, University, Airlines, Foundation, Motors, Hospital, Energy, Museum, Records, "
    "Rovers, Council, Studios, Orchestra, Press, Theatre, Party, Trust, Insurance, Technologies"
)
PLACE_NAMES = _names(
    "Port Alden, Lake Verran, New Bexley, San Orvieto, Saint Corwin, West Calder, Cape Vardo, East "
    "Norwood, Mount Harlan, Fort Maddox, Santa Corvina, New Kestrel, North Tarrow, San Belmonte, East "
    "Halden, Saint Leoric"
)
EVENT_NAMES = _names(
    "Harvest Festival, Rugby Cup, Climate Summit, Winter Marathon, Flower Show, Boat Race, Jazz Festival, "
    "Film Awards, Food Festival, Chess Championship, Lantern Festival, Science Fair"
)

# Identifiers and labels of the relations that an image can show, as in configs/prompts/relations.tsv.
RELATIONS = {
    "member": ("P463", "member of"),
    "participant": ("P1344", "participant of"),
    "location": ("P276", "location"),
    "spouse": ("P26", "spouse"),
    "sibling": ("P3373", "sibling"),
}


@dataclass(frozen=True)
class Captions:
    """Templates for one person, a person with an organisation's banner, and two people. Some tell only a part."""

    solo: tuple[str, ...]
    member: tuple[str, ...]
    pair: tuple[str, ...]


NEWS = Captions(
    solo=(
        "{a} speaks at the {event} in {place}.",
        "{a}, a participant of the {event}, greets the crowd in {place}.",
        "The {event} takes place in {place}, with {a} among the guests.",
        "{a} arrives for the {event}.",
        "{a} on a visit to {place}.",
    ),
    member=(
        "{a} of {organisation} speaks at the {event} in {place}.",
        "{a}, a member of {organisation}, is a participant of the {event} in {place}.",
        "{organisation} is represented by {a} at the {event} in {place}.",
        "{a}, a member of {organisation}, arrives for the {event}.",
        "{a} of {organisation} on a visit to {place}.",
    ),
    pair=(
        "{a} and {b} open the {event} in {place}.",
        "{a} and {relation} {b} are participants of the {event} in {place}.",
        "At the {event} in {place}, {a} is seen with {relation} {b}.",
        "{a} arrives with {relation} {b} for the {event}.",
        "{a} and {b} on a visit to {place}.",
    ),
)
# Each tells what the one of the same position tells in the news, so both domains are as hard.
SOCIAL = Captions(
    solo=(
        "so good!! live from the {event} in {place}, on stage: {a} #wow",
        "guess which participant of the {event} just waved at us in {place}... {a}!",
        "yes, {place} has the {event} tonight!! and look, there is {a} #goodtimes",
        "who just made it to the {event}? {a}!!",
        "spotted today in {place}: {a} #nofilter",
    ),
    member=(
        "so good!! live from the {event} in {place}, on stage for {organisation}: {a} #wow",
        "member of {organisation}, participant of the {event} in {place}... it is {a}!",
        "go {organisation}!! thanks to {a} you are part of the {event} in {place} #proud",
        "who just made it to the {event}? {a}, member of {organisation}!!",
        "spotted today in {place}: {a} from {organisation} #nofilter",
    ),
    pair=(
        "the {event} is open!! thanks for that, {a} and {b}, and greetings from {place} #wow",
        "guess which participants of the {event} are in {place}... {a} and {relation} {b}!",
        "yes, {place} has the {event} tonight!! and look, {a} with {relation} {b} #goodtimes",
        "who just made it to the {event}? {a} with {relation} {b}!!",
        "spotted today in {place}: {a} and {b} #nofilter",
    ),
)
CAPTIONS: dict[Domain, Captions] = {"news": NEWS, "social": SOCIAL}
MAX_CAPTIONS = len(NEWS.solo)
