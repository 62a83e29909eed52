"""Keys for needles, an adjective and a noun joined by a hyphen; words to count; sentences that mean nothing."""

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

_PLAIN = """
absorb accept acid actor advice album alley almond ankle answer antler arcade arch arena argue armor arrive artist
ascend attic auction author avenue bacon bagel baggage ballad ballet bamboo banana bandage banjo barn baron bathe
beach beard beetle begin behave believe belong biscuit blossom blouse board body bonfire bonnet borrow bottle bottom
bounce bowl breathe breeze brick bring bubble buffalo build bullet bundle burrow butler butter cabbage cactus cake
camel camera campus canal canvas captain caravan cargo carrot carve cashew casino catch cattle ceiling celery census
cereal chain chalk champion change chapter charm chart cheese chef chess chest chicken child chisel choir choose
church cider cinema citizen city clarinet clay clerk clinic cloth clown club coach cocoa coconut coffee collar college
comb come comic concert cookie corner cotton couch cough count courage cousin cover cozy crab crash crawl cream crew
crop crowd cruise crystal cube cucumber culture curb curry curtain curve cushion cycle dance debate decide deck deer
defend dentist deposit depth deputy derive describe desire desk diamond diary diet dinner diploma dish dive divide
doctor doll door doubt dozen dragon drama draw dream dress drink drive drop duck dust earn ease echo editor effort
elect elevator embark employ endure enemy energy engrave enjoy enter envelope episode equal erase errand escape essay
evening event evolve examine exhibit expand expect fabric fairy family famine fashion father fence festival fiction
field figure film filter finger fish flag flame flannel flavor fleet flesh float flood floor flour flow fluid foam
fold follow food foot forge fork formula fossil frame freeze friend fringe frog fruit fuel fungus funnel furnace
gadget gallery gallop gamble game garage garlic garment gasp gate gather gazelle genius gesture ghost ginger giraffe
give glance glass glide globe glory glue goat goose gorilla gossip govern grammar grape graph grass gravel greet grief
grill grind grip grocer group grow guard guess guest guide gulf habit hail hair handle happen hate haul heal hear heat
helmet help hero hide hippo hire hobby hockey hold holiday hood hoof hope horse hospital hotel house hover human humor
hunt hurry hurt icon idea idol ignite ignore image imagine inch include indulge infant inform inhale injure inquire
insect insist inspire insult invade invent invest invite iron item jaguar jail jazz jelly join joke journal judge
juggle juice jump jungle jury justice kangaroo karate keep kennel kick kidney king kiosk kiss kitchen kneel knife knit
knock know koala label labor lace lamb lamp land lane language laptop lasagna laser last laugh launch laundry lava
lawn lawyer lead leaf league leap leather lecture legend lend leopard letter lettuce level lift light like limb line
lion liquid list liver load loaf lobby lobster lock logic look lose lotus lounge love luggage lumber lunch lung
machine magic maid mail mammal manager mango mansion manual marathon margin mark marry mask mason match maze meal
measure medal medicine meet melody melt memory mend mention menu merge message metal meteor method milk mill mimic
mind mineral mint minute miracle model module monk monsoon month mood morning mortgage mother motor mouse mouth move
movie muffin mule muscle museum music mystery nail name napkin nation nature navy neck nectar need neighbor nephew
nerve nest nickel night noise noodle norm nose note notice novel number nurse nylon obey object obtain occur offer
office omelet onion opera opinion orbit orchid order organ ostrich outfit oven oxygen pack paddock page pain pair
pajamas panda panel panic pants papaya paper parade parcel pardon park parsley part pass pasta paste patch path patrol
pause pave payment peace peach peanut pear peasant pelican pencil penguin perceive perform perfume period permit
person petal phone photo phrase pick picnic picture pier pilot pioneer pipe pirate pistol pitch pizza plan plate play
plaza pledge plough plug poem poet point poison pole police polish polo pony pool porch pork port possess post potato
pour powder power praise pray prepare press priest prince print prison prize problem process profit program promise
protect prove provide pull pulse pump punch puppet pursue push puzzle pyramid quantity quarrel quarter queen question
queue quilt quit quiz quote race rack radar radio raft rail rain raisin rake ranch range rattle reach read reason
recall receive recipe record reduce refer reform refuse regard region regret reject relax relief rely remain rent
repeat reply request rescue resent resist respect rest result retire reveal reward rhino rhyme rhythm rice ride rifle
rinse rise risk ritual road roast robe robot rock rodeo roll roof room rooster rope rose rotate route rubber ruin rule
rumor rush sack sail salad salary sale salt salute sample sand sardine satin satire sauce sausage save scale scan
scarf scene school science scooter score scout scrape scratch screen script scrub sculptor season seat second section
seed seek segment sell senator send serve settle shade shadow shake shampoo shape share shark shave shed sheep sheet
shelf shell shelter shift shine ship shirt shiver shock shoe shop shore shorts shoulder shout show shrimp shrug shut
sibling siege sigh sign silk sink siren sister skate sketch skill skin skip skirt skull sleet sleeve slice slide slip
slope smell smile smoke snack snake sneeze soap sock soda sofa soil soldier solve song sort soul soup spade speak
speech speed spell spend spice spider spill spin spirit splash split sponge spot spring square squash squid squirrel
staff stage stain stamp stand star station stay steak steal step stew stick sting stir stitch stomach stone stop store
story strap straw stretch strike string stroke student studio study stumble style subway suffer sugar suggest suit
surface survive swamp swan swap sweat swim switch syrup tackle tail take talent talk tank tape target tariff taste
taxi teach team teenager temper tempt tenant tend tennis tent term test texture thank theft theory throat throne throw
thumb ticket tide tidy tights tile time title toad toast tobacco today toilet tomato tongue tool tooth topic torch
tornado toss touch tour towel town trade traffic travel tray treasure treat tree trench trend trial tribe trick trip
trombone truck trunk trust truth tube tuna tune turkey turn tutor twist type typhoon umbrella uncle unify union update
upgrade uproot urge utensil vacuum valet vanilla vase vault vehicle vendor verdict verse veteran victim victory video
vinegar viola virus visit vitamin voice volcano volley vote voyage vulture waffle wage waist wait wake walk wall
wander want warn wash waste watch water wave weapon wear weather wedding weed week weep weigh west whale wheel whisk
whisper widow wife wind wine wing wipe wire wish witness wonder wool word work world worm worry wrap wreck wrench
wrist write yacht yard yawn year yell yield yoga yogurt youth zipper zone zucchini
"""

KEYS = [f"{adjective}-{noun}" for adjective in _ADJECTIVES.split() for noun in _NOUNS.split()]
WORDS = _PLAIN.split()  # none is part of another, so that finding one in a text means that it was written

FILLER = (
    "\nThe road is long.",
    " The rain is cold.",
    " The bread is warm.",
    " On we walk.",
    " Home again by dusk.",
)
