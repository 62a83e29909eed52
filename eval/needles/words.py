"""Keys for needles, an adjective and a noun joined by a hyphen; sentences that fill space and mean nothing."""

_ADJECTIVES = """
able amber ancient arctic ashen autumn azure bitter blunt bold brave brief bright brisk broad bronze calm candid
careful cheerful chilly clean clever cloudy coastal copper cosmic crimson crisp curious daily dapper deep dense
distant double drowsy dusty eager early eastern elder electric empty faint famous fearless fertile fierce final
floral foggy formal fragile fresh frosty gentle giant gifted glad glossy golden grand grateful gray green hasty
hidden hollow honest humble icy idle ivory jolly keen kind large lively local lofty lonely loyal lucky lunar marble
mellow merry mighty mild misty modest narrow neat nimble noble northern oaken odd olive open orange pale patient
plain polite proud purple quick quiet rapid rare rough round royal rustic sandy scarlet secret sharp shy silent
silver simple sleepy slender smooth snowy solar solid southern spare stark steady stony stormy subtle sunny sweet
swift tall tame tender thin timid tiny upper urban vast velvet vivid warm western wild winter wise witty wooden
young zesty
"""

_NOUNS = """
acorn anchor anvil apple apron arrow atlas axle badge bakery balcony banner barley barrel basin basket beacon beaver
bell bench berry bishop blanket boulder bracelet branch bridge brook broom bucket button cabin candle canoe canyon
carpet castle cavern cedar cello chapel cherry chimney circle cliff clover cobbler comet compass copse coral cottage
cradle crane creek cricket crown dagger daisy desert dolphin donkey drum eagle easel elbow ember engine falcon
farmer feather fern ferry fiddle finch flute forest fountain fox garden garnet glacier goblet grove guitar hammer
harbor harp hawk hazel hedge heron hill honey horizon island ivy jacket jewel kettle kite ladder lagoon lantern
lemon library lily lizard locket loom magnet maple market meadow melon mirror mitten moon mosaic mountain needle oak
oar ocean orchard otter oyster paddle palace parrot pebble pepper piano pigeon pillow pine planet plum pocket pond
prairie puddle pumpkin quarry quill rabbit raven reef ribbon ridge river robin rocket saddle sailor salmon satchel
seal shovel sickle sparrow spoon spruce stable statue stream summit table tailor temple thimble thistle thunder
tiger timber tower trumpet tulip tunnel turtle valley vessel village violin wagon walnut walrus weaver whistle
willow window wizard wolf yarn zebra
"""

KEYS = [f"{adjective}-{noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()]

FILLER = (
    "\nThe road is long.",
    " The rain is cold.",
    " The bread is warm.",
    " On we walk.",
    " Home again by dusk.",
)
