"""The words of the demo set that are ours: translations, one document, notes on licences. All are CC0-1.0."""

from typing import NamedTuple


class Translation(NamedTuple):
    """A caption in another language for one picture."""

    path: str
    language: str
    text: str


TRANSLATIONS = (
    Translation("food/fruit/pineapple.png", "fr", "Un ananas entier avec ses feuilles"),
    Translation("transportation/fire_engine_romus_01.png", "fr", "Une voiture de pompiers"),
    Translation("recreation/music/electric_guitar_andrea__01r.png", "de", "Eine elektrische Gitarre"),
    Translation("people/clothing/winter_hat_nathan_eady_01.png", "de", "Eine gestrickte Wintermütze"),
    Translation("food/pizza_cheese.png", "es", "Una porción de pizza con queso"),
    Translation("animals/mammals/dogs/bulldog_puppy_ganson.png", "es", "Un cachorro de bulldog sentado"),
    Translation("plants/mushroom.png", "ja", "赤いきのこのイラスト"),
    Translation("recreation/holiday/snowman_01.png", "ja", "帽子をかぶった雪だるま"),
)

DOCUMENT_TITLE = "A first afternoon under sail"

DOCUMENT = (
    "A small sailing boat needs three things before it moves: wind, water, and somebody who knows where the "
    "wind comes from. Look at flags, at smoke, at the ripples on the water. Turn your face until "
    "you feel it on both cheeks.",
    "transportation/boating/sailboat_illustration.png",
    "Point the boat as near to the wind as it will go and pull the sails in flat. This is sailing close hauled. "
    "The boat leans over, so sit on the high side.",
    "transportation/boating/sailing_close_hauled.png",
    "Now turn until the wind blows straight across the deck and let the sails out by half. You are reaching, the "
    "fastest and the easiest way to travel.",
    "transportation/boating/sailing_reaching.png",
    "Back at the dock, take one turn around the cleat, cross over it twice, and finish with a hitch. A good knot holds "
    "all night and comes loose in a second.",
    "transportation/boating/knot_cleat_hitch.png",
)
"""Paragraphs and the pictures between them, in reading order."""

PHOTO_CAPTION = "Astronaut in an orange space suit in front of a flag and a model of the space shuttle"
PHOTO_CREDIT = ("Eileen Collins, NASA astronaut", "NASA", "scikit-image: skimage/data/astronaut.png", "public domain")

LICENSES = """# Licences of the demo set

- The pictures come from the Open Clip Art Library by way of Debian's `openclipart-png` 1:0.18+dfsg-19. For every one of
  them the RDF in the SVG of the same path says "PublicDomain". They were cut, shrunk and re-encoded. `SOURCES.tsv`
  names the title, the author and the path of each; `images/mirror/` holds further copies of some of them.
- `images/astronaut.jpg` is a NASA photo of Eileen Collins as shipped by scikit-image, in the public domain.
- Captions are the titles and keywords of the same RDF. Translations, the document, and the files made to break are
  ours, under CC0-1.0.
"""
