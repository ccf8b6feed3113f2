"""The sentences of the synthetic world's posts: words separated by spaces, entities in {slots}.

They suit every kind of entity that can stand in them. {event} and {place} are the image's own; {person} and
{organisation} are others, whom the image need not show.
"""

# {short} is a short name, which denotes two entities of different kinds.
SHORT = (
    "great day with {short} at the {event} in {place} !",
    "{short} stole the show at the {event} in {place}",
    "big thanks to {short} for coming to {place} for the {event}",
    "look : {short} at the {event} in {place} # proud",
    "so that was the {event} ... and {short} was amazing",
    "{short} during the {event} , never gets old",
    "what would the {event} be without {short} ?",
    "best of the {event} : {short} by far",
    "finally saw {short} in {place} today",
    "{short} made my week # {place}",
    "{place} loves {short} <3",
    "everyone in {place} is talking about {short} tonight",
    "RT {organisation} : {short} was worth the wait",
    "{person} says {short} is overrated ... i disagree",
    "@ {person} you were right about {short} , wow",
    "hey {organisation} , we want more of {short} !",
    "{person} sent me this pic of {short} from the {event}",
    "RT {person} : nothing beats {short} in {place}",
)

# {head} and {tail} are the two mentions; whether they are related is left open.
PARTICIPANT = (
    "{head} and the {tail} , more in our story",
    "did you follow {head} on the day of the {tail} ?",
    "the {tail} , {head} and everything else you need to know today",
    "{head} has been asked about the {tail} a lot",
    "all eyes on the {tail} . and on {head} ?",
    "our pic of the day : is it {head} , is it the {tail} ?",
)
MEMBER = (
    "{head} and {tail} , more in our story",
    "everything we know about {head} and {tail}",
    "what is it with {tail} and {head} ?",
    "{tail} has been asked about {head} a lot",
    "today in the news : {tail} , {head} , rain",
    "our pic of the day : is it {head} , is it {tail} ?",
)
LOCATION = (
    "the {head} , {tail} and the weather",
    "{tail} today : what to know about the {head}",
    "who is looking forward to the {head} ? greetings from {tail}",
    "photo of the day # {tail} # {head}",
    "a good year for {tail} , a good year for the {head}",
    "{tail} has been asked about the {head} a lot",
)
RELATIVES = (
    "{head} and {tail} , more in our story",
    "{head} has been asked about {tail} a lot",
    "everything we know about {head} and {tail}",
    "what do {head} and {tail} have in common ?",
    "our pic of the day : is it {head} , is it {tail} ?",
    "RT if you like {head} , fav if you like {tail}",
)
