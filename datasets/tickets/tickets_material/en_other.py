"""English mails that ask, praise, pitch, forward, or say several things at once."""

from __future__ import annotations

from tickets_material.model import scenario as s

SCENARIOS = [
    s("old-wiring", "[Question before buying|Does it fit?|Warm and old wiring]", """
Our house is from the fifties and so is the wiring: two wires at the thermostat, no neutral. Will the Warm run with
that? [Your table stops at three wires.|The chat robot said "yes, no".] {when}
""", wish="question", level="answer", money={"m1": (120, 180)}, cur="GBP EUR", alts={"when": [
        ("I'd order straight away.", {}), ("The offer at {m1} ends {e1:soon}, I would need to know by then.", {}),
        ("No rush, we renovate next year.", {}), ("I need to decide {d1:late}.", {}),
        ("I'd then cancel nothing, of course, my Hub from {x1} stays in any case.", {}),
    ]}),
    s("warranty-length", "[How long is the warranty?|Warranty period|guarantee]", """
Quick one: is the warranty on the Key two years or three? [The box says two, the site says three.|My box and your site
disagree.] {why}
""", wish="question", level="answer", alts={"why": [
        ("Nothing is broken, I just like to know.", {}),
        ("Nothing is broken. I have to fill in a form for my landlord {d1:soon}.", {}),
        ("Mine, from order {x1}, is two and a half years old and in the best of health.", {}),
        ("Nothing is broken. My brother wants to know {d1:late}, for his own purchase.", {}),
    ]}, rows=4),
    s("bulk-price", "[Price list|prices for {=200}+|Volume prices]", """
We equip holiday homes and look for a lock. Is there a price list for quantities above two hundred, and do you sell to
{where}? [At the moment we buy at {m1} a piece from somebody else.|A competitor is at {m1}.]

{when}
""", wish="question", level="answer", money={"m1": (90, 140)}, cur="EUR USD GBP", alts={
        "where": [("Portugal", {}), ("companies without a VAT ID", {}), ("Norway", {}), ("resellers", {})],
        "when": [("A link is enough.", {}), ("We decide {e1:late} and want to have compared you by then.", {}),
                 ("I present the options to my board {e1:soon}, so I need it by then.", {}),
                 ("Feel free to call me, mornings are best, in fact please do: I have more questions than fit here.",
                  {"person": True})]}),
    s("student-discount", "[Student discount?|discount|students]", """
hey do you guys have a student discount? {which} [asking for me and my whole dorm lol|im broke but i like your stuff]
""", wish="question", level="answer", money={"m1": (10, 25), "m2": (60, 99)}, cur="USD GBP", alts={"which": [
        ("a friend got {m1} off last year.", {}), ("camera is {m2} rn and i could do {m1} less.", {}),
        ("my last order was {x1} and i paid full price, thats ok, just for next time.", {}),
        ("need to know {d1:soon} bc payday", {}),
    ]}, rows=4),
    s("how-to-siren", "[Siren too loud|how to set the siren|alarm volume]", """
The siren of the Hub does what it should, only far too well: the dog hides in the bath. Where can I set it to
something a small dog survives? [I looked under Sound, Alarm and Devices.|I have been through every menu twice.] {x}
""", wish="question", level="answer", alts={"x": [
        ("", {}), ("We test it with the fire brigade {e1:soon}; I'd have to know by then.", {}),
        ("I have two, from {x1} and {x2}, both fine otherwise.", {}), ("I'll wait for your answer.", {}),
    ]}, rows=4),
    s("grandma-praise", "[Thank you!|praise|A happy customer]", """
I just want to say thank you. {who} [helped my grandmother with her doorbell for forty minutes|explained my grandmother
her thermostat, twice, without sighing]. She now tells everybody on the bus. {extra}
""", wish="other", level="answer", money={"m1": (20, 50)}, cur="GBP EUR", alts={
        "who": [("Your colleague Milena", {}), ("Somebody called Theo", {}), ("The gentleman on the line {q1}", {})],
        "extra": [("Order was {x1}, should you want to find him.", {}),
                  ("She wanted to send {m1} for the coffee fund, I told her that you can't take it.", {}),
                  ("A lawyer's letter would have been shorter, I know: I am one.", {}),
                  ("I do hope it reaches the right person.", {}),
                  ("Her birthday is {q1:future}, I'll give her a second one.", {})]}),
    s("dark-mode-idea", "[Idea|Feature request|suggestion for the app]", """
{idea} [Would be neat.|I'd pay for that.|Just a thought from a fan.] {when}
""", wish="other", level="answer", alts={
        "idea": [("It would be great if the Home app had a schedule for dark mode.", {}),
                 ("How about letting the doorbell play a different chime for each button?", {}),
                 ("Please think about a printed QR card for guests.", {}),
                 ("An export of temperatures as a spreadsheet would make my winter.", {})],
        "when": [("No answer needed.", {}), ("I know it won't be there {p1}.", {}),
                 ("Everything I have from you ({x1}, {x2}) works well.", {}), ("", {})]}, rows=4),
    s("seo-pitch", "[Partnership|Quick question about your website|Re: our call]", """
I came across halden and was impressed. We help companies like yours to {what}, from {m1} a month. Would you be free
for a short call {q1:future}? [If not, who is the right person?|It takes ten minutes.]
""", wish="other", level="answer", money={"m1": (300, 420)}, cur="USD EUR GBP", alts={"what": [
        ("rank higher", {}), ("get more five-star reviews", {}), ("cut cloud costs in half", {}),
        ("translate their manuals", {}),
    ]}, rows=4),
    s("journalist", "[Press enquiry|Request for comment|Article on door locks]", """
I write {for_whom}. The piece is about smart locks and what happens when {topic}. Could you tell me how the Key
behaves then? {when} [You can quote-check, of course.|Two or three sentences are enough.]
""", wish="question", level="answer", alts={
        "for_whom": [("for the Saturday supplement of a national newspaper", {"press": True}),
                     ("a small private blog that my mother reads", {}),
                     ("for the consumer magazine of a public broadcaster", {"press": True}),
                     ("my school essay for year ten", {})],
        "topic": [("the power goes", {}), ("a company folds", {}), ("batteries freeze", {})],
        "when": [("My deadline is {e1:soon}, I need it by then.", {}), ("I hand in {e1:late}, so by then, please.", {}),
                 ("There is no deadline yet.", {})]}),
    s("job-wanted", "[Application|Job as a technician|Do you have vacancies?]", """
I am an electrician with {years} years on the job and would like to work for you, best in {city}. [My papers are
attached.|References on request.] I could start {when}.
""", wish="other", level="answer", alts={
        "years": [("six", {}), ("eleven", {}), ("twenty", {}), ("three", {})],
        "when": [("{q1:future}", {}), ("at once", {}), ("after the summer", {})]}, rows=4),
    # several things in one mail
    s("invoice-and-fire", "[Invoice copy|{n_inv}|copy of invoice, and something else]", """
Could I have a copy of the invoice for order {o1}? I can't find it any more. {when}

Also, [this may be unimportant|not sure whether you care], but {also}
""", fault="billing", more=({"fault": "defect"},), alts={
        "when": [("For my taxes, I hand them in {e1:late} and want it by then.", {}), ("It isn't urgent.", {}),
                 ("I need it {d1}.", {})],
        "also": [("the Hub next to the meter has been giving off a burnt smell and its case is brown on one side.",
                  {"2.danger": True}),
                 ("the Hub's clock is a minute slow.", {}),
                 ("the Hub, order {o2}, has been dead for a week and so are all the switches.", {"2.level": "down"}),
                 ("the Eye over the door no longer turns on.", {"2.level": "down"}),
                 ("the lid of the battery box is loose.", {})]}),
    s("praise-then-outage", "[Well done|love it, but|feedback]", """
First, praise where it is due: the new app is beautiful, [the fonts!|my colleagues love it], and delivery of {x1} was
quick. Second, {second} Third, do you have the mount in black?
""", wish="other", level="answer", more=({"fault": "service"}, {"wish": "question", "level": "answer"}), alts={"second": [
        ("since this morning nobody at our two branches can open the doors from it.",
         {"2.level": "down", "2.reach": "many"}),
        ("it shows the temperature in Fahrenheit and I can't change it.", {}),
        ("I have not been able to open my door from it since {q1:bare}.", {"2.level": "down"}),
        ("it forgets my favourites; please fix that {d1:soon}.", {}),
        ("my parents, in whose house I live, and I can't open the door from it since {q1:bare}.",
         {"2.level": "down", "2.reach": "household"}),
    ]}),
    s("numbered-list", "[Several things|3 questions|A list]", """
I have collected a few things: /
1) Order {o1} is [a week|eleven days] late. /
2) {two} /
3) {three}

[One mail is better than three, I thought.|In that order, please, or any other.]
""", fault="delivery", more=({"fault": "account"}, {"fault": "billing"}), money={"m1": (10, 40)}, cur="EUR USD", alts={
        "two": [("My login has been blocked since {q1:bare}, I can't get at anything.", {"2.level": "down"}),
                ("My name is misspelt in my profile.", {}),
                ("Please change the phone number in my account.", {})],
        "three": [("You billed {m1} too much for {o2}; I'd like it back.", {"refund": {"m1": 1}}),
                  ("The invoice for {o2} says \"Mrs\", it should be \"Mr\", please correct that {d1}.", {}),
                  ("You billed {m1} too much for {o2}. Subtract it from the next invoice.", {}),
                  ("I need the invoice for {o2} {d1:soon}.", {})]}),
    s("swap-and-cancel", "[{o1} and {o2}|two orders|Change of plans]", """
Two requests. Please cancel {o1}, {why}. And the lamp post bracket from {o2} came with the [wrong screws|screws of some
other product], please send the right ones. {end}
""", wish="cancellation", more=({"fault": "delivery"},), money={"m1": (40, 90)}, cur="EUR GBP", alts={
        "why": [("we found the old one", {}), ("it was meant for a flat that we didn't get", {})],
        "end": [("The {m1} for the first can go back to my account.", {"refund": {"m1": 1}}),
                ("Use the {m1} from the first for the second, if it costs anything.", {}),
                ("I have the ladder only for now, so the screws have to be here {d1}.", {}),
                ("That's all.", {})]}, rows=4),
    s("late-and-locked", "[Two problems|order {o1} + login|help]", """
I wanted to look up where order {o1} is, [as it was due last week|since it's overdue], and found that {acc}. {end}
""", fault="delivery", more=({"fault": "account"},), alts={
        "acc": [("my account no longer exists, so I can't get at my cameras either", {"2.level": "down"}),
                ("my account shows the orders of my ex-husband instead, his new address included", {"2.exposed": True}),
                ("my account greets me by my maiden name", {}),
                ("my account is locked \"for safety\" and stays so, whatever I do", {"2.level": "down"})],
        "end": [("Please see to both.", {}), ("Please see to both {d1}.", {}), ("The order is needed {e1:soon} at the "
                                                                               "latest.", {})]}, rows=4),
    # forwarded mails
    s("fwd-reseller", "[Fwd: Kundenbeschwerde|FW: my customer|Fwd: Bell]", """
one of my customers, see below. he only speaks German, [I told him you would write to him directly|please write to him
directly, his address is in copy].

Jan (Elektro Hansen, dealer no. {n_cust})

----- Forwarded ----- /
Date: {f1} /
Hallo Herr Hansen, die Bell aus Ihrer Bestellung {o1} {state}. {when} Gruß, W. Petersen
""", fault="defect", signed=True, tail=False, reply="de", alts={
        "state": [("ist tot, seit ich sie angeschraubt habe", {"level": "down"}), ("klingelt nur manchmal", {}),
                  ("hat einen Kratzer auf der Linse", {})],
        "when": [("Ich brauche {d1<f1:de} Ersatz.", {}), ("Es eilt nicht.", {}), ("Bitte kümmern Sie sich.", {})]}),
    s("fwd-boss", "[FW: heating server room|Fwd: please handle|FW: urgent]", """
Please handle, [my boss is on leave|I only pass it on], thanks. Mia

> From: R. Achterberg /
> Sent: {f1} /
> Mia, the Warm in the archive {state} (order {o1}, not {x1}, that's the one in the lobby). Make them {what} {d1<f1}.
> And {extra}
""", fault="defect", signed=True, tail=False, money={"m1": (150, 220, 10)}, cur="EUR GBP", alts={
        "state": [("is stone dead", {"level": "down"}), ("beeps every hour", {}), ("shows the wrong day", {})],
        "what": [("replace it", {}), ("tell us what it is", {}), ("send somebody", {})],
        "extra": [("ask them for the {m1} back.", {"refund": {"m1": 1}}), ("be nice.", {}),
                  ("if they dither, we hand it to legal.", {"legal": True})]}, rows=4),
    s("fwd-chain", "[Re: Fwd: Re: order {o1}|RE: RE: where is it|Fwd: Re: shipment]", """
see the thread. {top}

>> On {f1} you wrote: /
>> Your order {o1} was handed to the carrier and will reach you {p1<f1}. /
>> Case {n_case}

> {f2} I wrote: /
> That date has passed. Tracking {n_track} says "exception".
""", fault="delivery", signed=True, tail=False, money={"m1": (50, 140)}, cur="GBP EUR", alts={"top": [
        ("third time of asking. where is it?", {"repeat": True}),
        ("still nothing. {d1:cap:soon} or never.", {}),
        ("now I want the {m1} back, not the parcel.", {"refund": {"m1": 1}}),
        ("if it isn't here {d1}, I want the {m1} back.", {}),
        ("all I ask is an honest date.", {}),
    ]}),
    # very short
    s("short-locked", "[help|hi|login]", """
{text}
""", fault="account", bare=True, tail=False, alts={"text": [
        ("cant log in, reset mail never comes, pls help", {"level": "down"}),
        ("cant log in me or my bf, reset mail never comes", {"level": "down", "reach": "household"}),
        ("nobody at the shop can log in, 9 of us, all get \"session expired\"", {"level": "down", "reach": "many"}),
        ("pls change my login name to annie_k, {d1:soon}", {}),
        ("couldnt log in this morning, works now, what was it?", {"level": "down", "over": True}),
    ]}),
    s("short-refund", "[REFUND|refund|money]", """
{text}
""", fault="defect", bare=True, tail=False, money={"m1": (40, 160), "m2": (560, 780)}, cur="USD GBP EUR", alts={"text": [
        ("Camera is junk, won't start. Order {o1}. {m1} back. NOW.", {"level": "down", "refund": {"m1": 1}}),
        ("Camera is junk, won't start. Order {o1}. I want a new one NOW.", {"level": "down"}),
        ("The set is junk, nothing starts. Order {o1}. {m2} back.", {"level": "down", "refund": {"m2": 1}}),
        ("Camera is okay-ish, blurry at the edges. Order {o1}. Exchange or {m1} back, you choose.", {}),
        ("Camera is junk, won't start. Order {o1}. {m1} back {d1}. Last warning before small claims court.",
         {"level": "down", "refund": {"m1": 1}, "legal": True}),
    ]}),
    s("caps-outage", "[DOWN|WHAT IS GOING ON|NOT AGAIN]", """
{text}
""", fault="service", level="down", bare=True, tail=False, alts={"text": [
        ("EVERYTHING DOWN AT ALL OUR STORES. FIX IT.", {"reach": "many"}),
        ("EVERYTHING DOWN IN MY HOUSE, MY FAMILY SITS IN THE DARK. FIX IT.", {"reach": "household"}),
        ("EVERYTHING WAS DOWN AT ALL OUR STORES, NOW IT IS UP AGAIN. WHY?", {"reach": "many", "over": True}),
        ("APP LOGS ME OUT ONCE A DAY. THIS IS A SCANDAL. FIX IT {d1:upper}.", {"level": "work"}),
        ("DOWN AGAIN, ME AND EVERY OTHER SHOP IN THE MALL. PHONE ME.", {"reach": "many", "person": True}),
    ]}),
    s("html-newsletter", "[Re: Our spring offers|Re: Winter is coming|AW: offers]", """
<div>you sent me an offer: <b>{m1} off</b> the Eye.&nbsp;</div> /
<div>{text}</div> /
<div style="color:grey">&gt; You get this mail because you are customer {n_cust}.</div>
""", fault="billing", bare=True, tail=False, money={"m1": (15, 30), "m2": (80, 120)}, cur="USD EUR", alts={"text": [
        ("I used the link and still paid {m2}&nbsp;for order {o1}. Please pay me the {m1} back.", {"refund": {"m1": 1}}),
        ("I used the link and still paid {m2}&nbsp;for order {o1}.<br>Please send me a code for {m1}.", {}),
        ("I used the link and still paid {m2}&nbsp;for order {o1}. Take the {m1} off my next order, that will do.", {}),
        ("I used the link and still paid the full price for order {o1}.<br>I want the {m1} back {d1:soon}.",
         {"refund": {"m1": 1}}),
    ]}, rows=4),
    s("second-language", "[Problem with a product|hello I have problem|my thermostat]", """
I am writing because of product Warm, I bought it in your internet shop, number of order is {o1}. {state} I was reading
the manual, but it is [not so clear for me|only in languages which I don't know]. {ask} Sorry for my english, [please
answer in german if possible|it is better for me if you answer in German].
""", fault="defect", reply="de", money={"m1": (130, 210)}, cur="EUR CHF", alts={
        "state": [("It makes nothing, the display is black.", {"level": "down"}),
                  ("It works but it is making a noise like a small bird.", {}),
                  ("The button for more warm is falling off.", {})],
        "ask": [("I wish to become my {m1} back.", {"refund": {"m1": 1}}), ("I wish a new one.", {}),
                ("I wish a new one {d1}.", {}), ("I would take a bon for {m1} also.", {})]}),
]
