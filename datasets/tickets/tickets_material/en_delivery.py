"""English mails about parcels on their way, returns and cancellations."""

from __future__ import annotations

from tickets_material.model import scenario as s

SCENARIOS = [
    s("birthday-parcel", "[Where is {o1}?|order {o1}|parcel still not here]", """
I ordered the Bell for my dad [about ten days ago|a good week ago|at the start of the sale] and the tracking page has
been stuck at "label created" ever since. [The order is {o1}.|Order number: {o1}.|It's order {o1}, in case you need it.]

{need} [Could you find out where it is?|Can someone please chase the courier?|What is going on?]
""", fault="delivery", money={"m1": (90, 260)}, cur="GBP EUR", alts={"need": [
        ("His seventieth is {e1} and it has to be in my hands by then.", {}),
        ("His birthday was {q1} anyway, so I am in no hurry any longer.", {}),
        ("If it isn't here {d1}, I will want my {m1} back.", {}),
        ("There is no party or anything, he just keeps asking.", {}),
        ("We are giving it to him {e1:soon}, so I need it for that day.", {}),
    ]}),
    s("signed-by-potato", "[never arrived|\"Delivered\" - really?|{o1} not delivered]", """
Your courier [swears|claims|says] the parcel for order {o1} was handed over {q1}. [To whom? Not to me.|Nobody here got
anything.] I asked the neighbours on both sides, [the kiosk|the lady downstairs], I looked behind the bins. Tracking is
{n_track}, and the signature on the scan looks like a potato.

{ask}
""", fault="delivery", money={"m1": (90, 340), "m2": (5, 15)}, cur="GBP EUR USD", alts={"ask": [
        ("I don't want another one, please just refund the {m1}.", {"refund": {"m1": 1}}),
        ("Please send it again, it has to be here {d1}.", {}),
        ("Send another one or give me the {m1} back, I leave that to you.", {}),
        ("I'd like my {m1} back, and the {m2} for express shipping as well.", {"refund": {"m1": 1, "m2": 1}}),
        ("I bought one elsewhere by now, so return the {m1} I paid {d1:soon}, please.", {"refund": {"m1": 1}}),
    ]}),
    s("graphite-not-white", "[Wrong item in {o1}|got the wrong colour|you sent me the wrong camera]", """
I ordered twice from you this month. Order {x1} [was fine, no complaints there|came quickly and works], this is not
about that one. But with {o1} you sent me a [graphite|black] Eye instead of the white one [on the invoice
{n_inv}|I picked].

{fix}
""", fault="delivery", money={"m1": (70, 160)}, cur="EUR GBP", alts={"fix": [
        ("Please swap it. I need the right one {d1}, the scaffolding comes down after that.", {}),
        ("Please have it collected and refund the {m1}, I no longer want it.", {"refund": {"m1": 1}}),
        ("A swap is fine, there is no rush at all.", {}),
        ("I'll keep it, but I think a {m1} voucher for my next order would be fair.", {}),
        ("Swap it {d1:late} or I shall ask for the {m1} back.", {}),
    ]}),
    s("crushed-box", "[Damaged parcel, order {o1}|thermostat arrived broken|damage]", """
The box of order {o1} [looked as if somebody had driven over it|was crushed on one side] and the Warm inside has a
cracked housing. I have not installed it, [for obvious reasons|and I won't]. Photos attached.

{ask}
""", fault="delivery", money={"m1": (140, 260, 20)}, cur="EUR CHF", alts={"ask": [
        ("Please replace it or refund me the {m1}, whichever is easier for you.", {}),
        ("I would like the {m1} refunded, not a replacement.", {"refund": {"m1": 1}}),
        ("I only want a new one. The fitter comes {e1} and needs it on site by then.", {}),
        ("It was {m1}. Give me half of that back and I keep it as it is.", {"refund": {"m1": "1/2"}}),
        ("I only want a new one, and any day but Sunday suits me for the delivery.", {}),
    ]}),
    s("house-number", "[Wrong address on {o1}|address correction|please change address before it ships]", """
[Silly me:|My mistake entirely:] I gave number 21b with order {o1}, but we live at 12b. The shop page says "being
packed" [and won't let me edit|and the edit button is gone]. {urgency}
""", fault="delivery", alts={"urgency": [
        ("Could you correct it {d1}? That is when it leaves your warehouse, it says.", {}),
        ("Could you correct it? It is a pre-order, so you have all the time in the world.", {}),
        ("It leaves {e1:soon} and has to be corrected by then.", {}),
        ("Same mistake on order {o2}, please fix both.", {}),
        ("The older order {x1} had the right address, you can copy it from there.", {}),
    ]}),
    s("leeds-site", "[Incomplete delivery {r1}|missing boxes|Leeds site - delivery]", """
We placed three orders for our Leeds site, {r1}. {came} Our reference is PO {=88214}, the [haulier's note|consignment]
is {n_track}.

{then}
""", fault="delivery", signed=False, money={"m1": (700, 1900)}, cur="GBP", alts={
        "came": [("None of them has turned up in full: each lacks the mounting kits.", {}),
                 ("One pallet out of three has come and nobody can tell which order that was.", {}),
                 ("All three pallets went to our old depot in Hull.", {})],
        "then": [("The electricians are booked, so the rest must be on site {d1}.", {}),
                 ("Please let us know what you find. The fit-out has been postponed anyway.", {}),
                 ("We do not want the goods any more; credit the full {m1} to the card we paid with.",
                  {"refund": {"m1": 1}}),
                 ("Kindly confirm the whereabouts {d1:soon}.", {})]}),
    s("basel-customs", "[Held at customs|{o1} stuck in Basel|customs paperwork]", """
My parcel (order {o1}) is [sitting|stuck] at customs in Basel, reference {n_track}. They tell me that the commercial
invoice is missing and that only the sender can provide it. {limit}

[Shipping notification said {p1}, by the way.|You promised delivery {p1}.]
""", fault="delivery", alts={"limit": [
        ("Unless they have it {d1}, they return everything.", {}),
        ("They will keep it there as long as it takes, they are quite relaxed.", {}),
        ("They need it {d1:soon}, otherwise it goes back.", {}),
        ("The same goes for {o2}, which they hold as well.", {}),
        ("Could you upload it {d1:late}? Storage costs me money after that.", {}),
    ]}),
    s("flower-bed", "[Wonderful delivery|thanks for the shower|order {o1}]", """
What a brilliant idea of your courier to leave a box of electronics in [the flower bed|the bird bath, practically] in
the pouring rain. Truly, five stars. [Order {o1}.|It was {o1}.] Miraculously the Eye works, it is drying on the
radiator as I write.

{ask}
""", fault="delivery", money={"m1": (6, 19)}, cur="GBP EUR", alts={"ask": [
        ("The least you can do is give me back the {m1} I paid for your 'premium delivery'.", {"refund": {"m1": 1}}),
        ("I don't want anything from you. I just thought you should know.", {"level": "answer"}),
        ("I think a {m1} coupon would be a nice touch.", {}),
        ("Have a word with him, please, and tell me {d1:late} that you did.", {}),
        ("Just file it under 'customer delight'. No reply needed.", {"level": "answer"}),
    ]}),
    s("parcel-shop-closed", "[Can't collect my parcel|pick-up point closed|{o1}]", """
order {o1} went to a parcel shop that [shut down last summer|is boarded up], the app still lists it tho. courier says
only you as the sender can redirect it, ref {n_track}. {when}
""", fault="delivery", alts={"when": [
        ("they send it back if nothing happens {d1:soon}", {}),
        ("pls redirect to my home address, no stress", {}),
        ("redirect it to my office pls, i am there only till lunch but a colleague takes it any time after", {}),
        ("redirect pls, want it {d1}", {}),
    ]}, rows=4),
    s("short-where", "[{o1}|order {o1}|?|where]", """
{text}
""", fault="delivery", bare=True, tail=False, money={"m1": (30, 90)}, cur="GBP EUR", alts={"text": [
        ("Order {o1} where??", {}),
        ("{o1}: still nothing. Need it {d1:soon}.", {}),
        ("Not here yet. Order {o1}. No hurry, just asking you to look.", {}),
        ("Order {o1} never came. Money back, {m1}.", {"refund": {"m1": 1}}),
        ("order {o1} and order {o2} both missing. where are they", {}),
    ]}),
    # returns
    s("two-bells", "[Sending one back|Return from order {o1}|return]", """
My husband and I each ordered a Bell without telling the other (orders {o1} and {x1}; his, {x1}, we keep). The one
from {o1} is still sealed. I would like to send it back within the [two weeks|withdrawal period] I have as a consumer.

{money}
""", wish="return", money={"m1": (120, 320), "m2": (5, 9)}, cur="EUR GBP", alts={"money": [
        ("Please refund {m1} to my card once you have it.", {"refund": {"m1": 1}}),
        ("Please refund {m1}; I know that the {m2} for shipping stays with you.", {"refund": {"m1": 1}}),
        ("Please refund {m1}, and by law also the {m2} I paid for standard shipping.", {"refund": {"m1": 1, "m2": 1}}),
        ("Store credit over {m1} instead of money is fine with me.", {}),
        ("I need the label {d1:soon}, that is my last day, and of course the {m1} back.", {"refund": {"m1": 1}}),
    ]}),
    s("boiler-mismatch", "[Warm doesn't fit my boiler|exchange {o1}|wrong type ordered]", """
It turns out our boiler needs the OpenTherm version and I ordered the plain one ([order {o1}|{o1}]). Nothing wrong with
the device, I should have read the table. {want}
""", wish="return", money={"m1": (20, 45)}, cur="EUR", alts={"want": [
        ("Can we exchange it? I am happy to pay the {m1} difference.", {}),
        ("Can we exchange it? The heating engineer is here {e1}, it would have to be done by then.", {}),
        ("An exchange would be lovely, whenever it suits you.", {}),
        ("I had also ordered a second one, {o2}, same mistake. Please exchange both.", {}),
        ("Please exchange it {d1:soon}; the house is cold.", {}),
    ]}),
    s("rma-label", "[Return label|{n_rma}|the label you sent]", """
I announced a return and got the number {n_rma}, thank you. The label in the mail opens as [a blank page|gibberish] on
every device I own. It belongs to order {o1}. {rest}
""", wish="return", money={"m1": (40, 120)}, cur="GBP USD EUR", alts={"rest": [
        ("Please send a new one.", {}),
        ("Please send a new one {d1}, I am away after that.", {}),
        ("Please send a new one. The {m1} can go back to PayPal, as before.", {"refund": {"m1": 1}}),
        ("Please send a new one. The refund can go to PayPal.", {}),
        ("Please send a new one, the drop-off point closes for good {e1:soon}, so by then please.", {}),
    ]}),
    s("forty-keys", "[Return of surplus stock|Surplus Key locks, order {o1}|bulk return]", """
Our project was scaled down and we are left with {count} unopened Key locks from order {o1} ([our PO|internal no.]
{=70071}). Your account manager told us {q1} that surplus could go back. {money} {when}
""", wish="return", money={"m1": (120, 140, 10)}, cur="EUR GBP", alts={
        "count": [("four", {"refund": {"m1": 3}}), ("twelve", {"refund": {"m1": 11}}), ("three", {"refund": {"m1": 2}}),
                  ("ten", {"refund": {"m1": 9}})],
        "money": [("We keep one as a spare and expect credit for the others to our bank account, at the {m1} each that "
                   "we paid.", {})],
        "when": [("The forwarder could come any day.", {}), ("The forwarder comes {e1}; the paperwork must be here by "
                                                            "then.", {}), ("No hurry.", {})]}, rows=4),
    s("not-my-thing", "[return please|sending this back|{o1}]", """
So I tried the Eye for [a few days|a weekend] and I feel watched in my own kitchen. Nothing broken, it's me. Order is
{o1}. How do I send it back? {more}
""", wish="return", money={"m1": (70, 130)}, cur="USD GBP", alts={"more": [
        ("I paid {m1} and would like that back.", {"refund": {"m1": 1}}),
        ("I paid with a gift card, so new store credit for the {m1} is all I expect.", {}),
        ("I paid {m1}, of which you already sent back half after the price drop. Just the other half then.",
         {"refund": {"m1": "1/2"}}),
        ("The mount may stay with me, I hope? It was a present.", {}),
    ]}, rows=4),
    # cancellations
    s("sofa-first", "[Please cancel {o1}|cancel my order|order {o1}: cancel]", """
please cancel order {o1}, we have to buy a sofa first, says the boss (my wife). it hasn't shipped yet according to the
page. {money}
""", wish="cancellation", money={"m1": (140, 390)}, cur="EUR GBP USD", alts={"money": [
        ("i paid {m1} up front, send it back to the same card", {"refund": {"m1": 1}}),
        ("i chose pay on delivery so nothing to pay back", {}),
        ("it ships {e1:soon} so please stop it by then", {}),
        ("order {o2} too", {}),
        ("keep {x1}, that one was for my mum", {}),
    ]}),
    s("moving-abroad", "[Ending my subscription|Vault subscription|cancel Vault]", """
[After three happy years|Since we are moving to New Zealand] I would like to end my Vault subscription. {end} Nothing
to do with the service, it has been great.

{extra}
""", wish="cancellation", money={"m1": (36, 72, 6)}, cur="EUR GBP", alts={
        "end": [("It has to stop {d1:late}, our account here closes that day.", {}),
                ("The end of the paid period is fine, whenever that is.", {}),
                ("Please confirm in writing {d1}.", {})],
        "extra": [("I prepaid {m1} for the year and used half of it; please send the other half.",
                   {"refund": {"m1": "1/2"}}),
                  ("I don't expect any of the {m1} for this year back.", {}),
                  ("My brother-in-law is a lawyer and has the same doorbell, he will stay with you.", {}),
                  ("I prepaid {m1} for the year and used a third of it; please return the rest.",
                   {"refund": {"m1": "2/3"}})]}),
    s("cheaper-elsewhere", "[Cancellation|{o1} cheaper elsewhere|price]", """
The very same [Hub set|starter set] that I ordered from you (order {o1}, {m1}) is {m2} at the electronics shop round the
corner. {wish}
""", wish="cancellation", money={"m1": (215, 390), "m2": (120, 160)}, cur="EUR GBP", alts={"wish": [
        ("So please cancel and pay me back.", {"refund": {"m1": 1}}),
        ("So please cancel; the payment was only reserved, not taken.", {}),
        ("So please cancel and pay me back {d1}, I want to buy it there while the offer lasts.",
         {"refund": {"m1": 1}}),
        ("So please cancel it, and my other three orders, {r1}, as well. Nothing has been charged so far.", {}),
    ]}, rows=4),
    s("cancel-word", "[cancel|Cancellation|{o1}|stop]", """
{text}
""", wish="cancellation", bare=True, tail=False, money={"m1": (20, 90)}, cur="GBP USD", alts={"text": [
        ("Cancel {o1} please.", {}),
        ("cancel order {o1}, refund {m1}, done", {"refund": {"m1": 1}}),
        ("Cancel order {x1}. No, wait, wrong one: {o1}. Leave {x1} alone.", {}),
        ("Stop order {o1} {d1:soon} thx", {}),
        ("pls cancel my vault plan from next year. no rush", {}),
    ]}),
]
