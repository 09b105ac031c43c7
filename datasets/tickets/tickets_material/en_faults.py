"""English mails about devices that fail."""

from __future__ import annotations

from tickets_material.model import scenario as s

SCENARIOS = [
    s("dead-eye", "[Eye camera|camera from order {o1}|problem with my camera]", """
The Eye from order {o1} {state}. I have tried [another socket|two chargers] and held the little reset button for
[half a minute|ages]. Serial is {n_serial}.

{ask}
""", fault="defect", money={"m1": (110, 310)}, cur="EUR GBP", alts={
        "state": [("has been completely dead since {q1:bare}", {"level": "down"}),
                  ("works, but the picture flickers at night", {}),
                  ("shows no sign of life whatsoever", {"level": "down"}),
                  ("records fine, only the status light is stuck on red", {}),
                  ("does not switch on at all any more", {"level": "down"})],
        "ask": [("Please send me a replacement.", {}), ("I want my {m1} back.", {"refund": {"m1": 1}}),
                ("I need a solution {d1}, we are away after that.", {}),
                ("What do you suggest?", {}), ("Please sort it out {d1:soon}.", {})]}),
    s("allotment-lock", "[Key lock|Lock at the allotment|Something is wrong with my Key]", """
{what} It is the Key on the door of our [allotment hut|garden house], serial {n_serial}, bought with order {o1}.

[What should I do?|Please advise.|I would like to know what to do next.]
""", fault="defect", alts={"what": [
        ("There was smoke coming out of the battery cover this morning and the plastic has melted.",
         {"danger": True, "level": "down"}),
        ("It eats a set of batteries every other week, that can't be right.", {}),
        ("When I changed the batteries, it got so hot that I have a blister on my thumb now.",
         {"danger": True}),
        ("The motor whines louder and louder, although it still locks and unlocks.", {}),
        ("After the last storm it stopped doing anything, new batteries or not.", {"level": "down"}),
    ]}),
    s("thirty-one-flats", "[Heating|Thermostats at Ashdown Court|Warm thermostats]", """
I manage a building with 31 flats, all of them with your Warm thermostats (orders {r1}). {who}

[Outside it is two degrees.|You can imagine what my inbox looks like.] {when}
""", fault="defect", alts={
        "who": [("Since {q1:bare} every single one shows a blank screen and the heating is off in the whole house.",
                 {"level": "down", "reach": "many"}),
                ("In one flat on the second floor the screen has been blank since {q1:bare}, the tenant has no heating. "
                 "Everyone else is fine.", {"level": "down"}),
                ("About a third of them click loudly for a few minutes every night. The heating itself runs "
                 "normally.", {"reach": "many"}),
                ("Eleven have stopped responding altogether and those tenants have no heating.",
                 {"level": "down", "reach": "many"}),
                ("They had all gone blank {q1}, but after the power cut they came back and have worked since. I would "
                 "like to know the reason.", {"level": "down", "reach": "many", "over": True})],
        "when": [("I need an answer {d1:soon}.", {}), ("Please tell me what happens next.", {}),
                 ("The owners meet {e1:late}, I need your written answer by then.", {})]}),
    s("chime", "[Doorbell|Bell at the front door|trouble with my Bell]", """
Lovely doorbell, except that {state}. My front step has never been so much talked about. It came with order
{o1}[, and the older one, {x1}, at the back door is perfectly fine| and, no, it isn't the volume].

{wish}
""", fault="defect", money={"m1": (99, 179)}, cur="GBP EUR", alts={
        "state": [("the chime only rings every third time or so", {}),
                  ("it has stopped working completely: no ring, no picture, nothing", {"level": "down"}),
                  ("it rings by itself when a lorry passes", {}),
                  ("the button is stuck and the whole thing is dead", {"level": "down"})],
        "wish": [("Could you repair or replace it?", {}), ("I'd like a refund.", {}),
                 ("Refund of {m1}, please.", {"refund": {"m1": 1}}),
                 ("If you can't mend it {d1}, I'd like the {m1} back.", {}),
                 ("Will you send somebody?", {})]}),
    s("third-mail-hub", "[Hub|my Hub, again|still no answer]", """
{count} My Hub [won't get past the blinking orange light|does nothing but blink orange], so nothing in the house works.
Order {o1}, your case number {n_case}. I followed all the steps [twice|on your help page], including the paper clip.

{end}
""", fault="defect", level="down", money={"m1": (109, 289)}, cur="EUR GBP", alts={
        "count": [("This is the third time I am writing about the same thing.", {"repeat": True}),
                  ("First of all, this is my first mail to you, so be gentle.", {}),
                  ("Fourth mail. Same Hub. Same problem.", {"repeat": True}),
                  ("My neighbour says he wrote to you three times before he got an answer; let's see how I do.", {})],
        "end": [("A new one, please.", {}), ("I want to have a working one {d1}.", {}),
                ("Please take it back and return the {m1}.", {"refund": {"m1": 1}}),
                ("Thank you for your patience with me.", {})]}),
    s("locksmith-bill", "[Locked out|Locksmith|Key jammed]", """
{q1:cap} the Key [on our front door|downstairs] jammed with my shopping, my phone and the cat inside. The locksmith
charged me {m1} (his invoice {n_inv} is attached). {now} It was order {o1}.

{ask}
""", fault="defect", money={"m1": (130, 240), "m2": (150, 190)}, cur="EUR GBP", alts={
        "now": [("The lock has not moved since.", {"level": "down"}),
                ("It has worked again ever since, but I don't trust it.", {}),
                ("It grinds now, but it does lock.", {})],
        "ask": [("I expect you to pay his bill.", {}),
                ("His bill is my problem, but I want the {m2} for the lock back.", {"refund": {"m2": 1}}),
                ("I expect you to pay his bill and to refund the {m2} for the lock.", {"refund": {"m2": 1}}),
                ("If you do not settle the bill {d1}, my solicitor will.", {"legal": True}),
                ("My sister is a solicitor and thinks it's hilarious. I don't. Please have it fixed.", {})]}),
    s("foggy-shop", "[Foggy cameras|condensation|Eye outdoor cameras order {o1}]", """
Three of the five Eye cameras around my [farm shop|garden centre] have fog behind the glass (order {o1}). {degree}

{when} I've sealed the cable entries as the leaflet says[, and the ones from {x1} on the same wall are clear|].
""", fault="defect", money={"m1": (590, 760)}, cur="GBP EUR", alts={
        "degree": [("You can still make out people, it is just not pretty.", {}),
                   ("All three have shut down meanwhile and don't come back.", {"level": "down"}),
                   ("By noon it's gone, in the mornings the picture is milky.", {})],
        "when": [("I'd like them replaced {d1}.", {}), ("I'd like them replaced at some point.", {}),
                 ("Take the whole set back, please, and refund the {m1}.", {"refund": {"m1": 1}}),
                 ("My insurer inspects the place {e1} and they have to be in order by then.", {}),
                 ("Please have someone ring me about it, I'm no good at writing.", {"person": True})]}),
    s("swollen-pack", "[battery|Battery pack Bell|strange battery]", """
{what} I bought it in the winter sale, order {o1}. [It's the rechargeable pack of the Bell.|The pack belongs to a
Bell.] {ask}
""", fault="defect", money={"m1": (25, 40)}, cur="EUR USD", alts={
        "what": [("The battery pack has puffed up like a pillow and cracked its case.", {"danger": True}),
                 ("The battery pack lasts only four days instead of two months.", {}),
                 ("The battery pack hissed and gave off a sharp smell while charging next to my son's bed.",
                  {"danger": True}),
                 ("The cover of the battery pack is scratched and rattles a bit.", {}),
                 ("The battery pack no longer takes any charge and the doorbell is off.", {"level": "down"})],
        "ask": [("Can I have a new one?", {}), ("Please refund the {m1}.", {"refund": {"m1": 1}}),
                ("Can you tell me {d1:late} what to do with it?", {}),
                ("It was {m1}, I'd take a voucher.", {})]}),
    s("bought-elsewhere", "[Warranty|warranty claim Eye|bought on a marketplace]", """
I bought two Eye cameras on a marketplace, not from you directly; their order number there is {n_shop}. One of them
{state}. The seller has vanished and says the maker's warranty applies. {own}

[Proof of purchase is attached.|I attach the receipt {n_inv}.]
""", fault="defect", alts={
        "state": [("has lost its night vision", {}), ("won't turn on", {"level": "down"}),
                  ("has a microphone that crackles", {})],
        "own": [("Please replace it.", {}),
                ("With you I only ever had order {x1}, a Hub, which is fine.", {}),
                ("I'd be glad of an answer {d1}.", {}),
                ("The mount I ordered from you to go with it, order {o1}, is bent as well; please replace both.", {})]}),
    s("guests-arrive", "[Keypad|guest house keypad|keypad for the guest flat]", """
The keypad of the Key at our little guest flat [ignores|doesn't react to] {which}. Order {o1}. The lock opens with the
app, [but I can't give the app to strangers|but guests don't have it]. {when}
""", fault="defect", alts={
        "which": [("the digits 4 and 7", {}), ("the bottom row from time to time", {}),
                  ("the digit 1 unless you press hard", {})],
        "when": [("Guests arrive {e1}, so it has to work by then.", {}),
                 ("Guests arrived {q1}; they coped. Next ones come in the summer.", {}),
                 ("Replacement {d1:soon} would save me.", {}),
                 ("No guests booked, so whenever you can.", {}),
                 ("Our letting agent wants it repaired {d1:late}.", {})]}),
    s("price-of-cold", "[Warm|cold again|thermostat]", """
Woke up at twelve degrees. [Again.|Lovely.] The Warm in the {rooms} {state}. [Bought with order {o1}, in March I
think.|Order {o1}.] I have a baby here and no sense of humour left.

{ask}
""", fault="defect", money={"m1": (150, 290), "m2": (40, 70)}, cur="GBP EUR", alts={
        "rooms": [("hall", {}), ("living room", {})],
        "state": [("is dead, black screen, no clicking, and so is the boiler control", {"level": "down"}),
                  ("thinks it is always summer: it reads six degrees too many", {}),
                  ("has given up entirely", {"level": "down"})],
        "ask": [("Replacement. {d1:cap:soon}.", {}), ("Refund, {m1}, and I go back to the old dial.",
                                                     {"refund": {"m1": 1}}),
                ("We had to buy a fan heater for {m2}. I want that from you, and a thermostat that works.", {}),
                ("Tell me it is a setting.", {})]}),
    s("moth-on-lens", "[motion alerts|False alarms|moths]", """
This is either a fault or a nature documentary: the Eye from order {o1} wakes us at three every night because [a moth
sits on the glass|of one spider]. Your help pages say it ignores insects. {which} {when}
""", fault="defect", money={"m1": (80, 120)}, cur="GBP", alts={
        "which": [("The sensor must be off, the second one from the same order is fine.", {}),
                  ("Order {o2}, bought a week later, does the same.", {}),
                  ("My friend's, order {x1}, next door doesn't do it, so mine is faulty.", {})],
        "when": [("Swap it, please.", {}), ("I'd like it swapped {d1}.", {}),
                 ("I'd rather have the {m1} back.", {"refund": {"m1": 1}}), ("Swap it {d1:soon} or I stop sleeping.", {})],
    }, rows=4),
]
