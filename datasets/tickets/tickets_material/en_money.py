"""English mails about invoices, charges and accounts."""

from __future__ import annotations

from tickets_material.model import scenario as s

SCENARIOS = [
    s("charged-twice", "[Double charge|charged twice for {o1}|my bank statement]", """
My statement shows {m1} to you twice, {q1} and on the following day, and I have only one order, {o1}. [Invoice is
{n_inv}.|The invoice, {n_inv}, shows it once.] {ask}
""", fault="billing", money={"m1": (70, 330)}, cur="EUR GBP USD", alts={"ask": [
        ("Please pay back the second charge.", {"refund": {"m1": 1}}),
        ("Please pay back the second charge {d1}, my account is overdrawn.", {"refund": {"m1": 1}}),
        ("I see that the second one was reversed this morning, so just confirm that it stays that way.", {}),
        ("Keep the second one as a balance for the order that I am about to place.", {}),
        ("And since I have sent the goods back in the meantime (you confirmed), please return both charges.",
         {"refund": {"m1": 2}}),
    ]}),
    s("after-the-end", "[Still being charged|Vault charged after cancellation|Subscription]", """
I ended my Vault plan {q1} and have your confirmation ({n_case}). You have taken {m1} again after that, [three
times by now|and that three times]. {ask}
""", fault="billing", money={"m1": (3, 12)}, cur="EUR USD GBP", alts={"ask": [
        ("I want all three payments back.", {"refund": {"m1": 3}}),
        ("I want all three payments back {d1}.", {"refund": {"m1": 3}}),
        ("You refunded the first one already; the other two are missing.", {"refund": {"m1": 2}}),
        ("My bank has got them back for me. Just make sure there is no fourth.", {}),
        ("I want all three payments back or I go to the consumer ombudsman.", {"refund": {"m1": 3}, "legal": True}),
    ]}),
    s("welcome-code", "[Promo code|Code WELCOME not accepted|discount]", """
Your newsletter promised {m1} off with the code WELCOME. {what} [I took a screenshot.|Screenshot attached.]
""", fault="billing", money={"m1": (10, 30), "m2": (90, 170)}, cur="EUR GBP USD", alts={"what": [
        ("At the checkout the code was refused, so I haven't ordered. Please make it work {d1}, the sale ends then.", {}),
        ("At the checkout it vanished and I paid the full {m2} for order {o1}. Please refund the {m1} I was promised.",
         {"refund": {"m1": 1}}),
        ("At the checkout it was refused. Order {o1} is not paid yet, so correct the bill, please.", {}),
        ("I forgot to type it in (order {o1}, {m2}). Could I have the code for next time instead?", {}),
        ("It was refused, I paid {m2} for {o1}, and now I'd like another code over {m1}.", {}),
    ]}),
    s("vat-id", "[Invoice without VAT ID|corrected invoice|Invoice for {o1}]", """
The invoice for order {o1} ({n_inv}) {lacks}. Our accountant [returns such things with a sad face|won't book it]. Our
VAT ID is {n_vat}. {when}
""", fault="billing", money={"m1": (200, 400)}, cur="EUR", alts={
        "lacks": [("lacks our VAT ID", {}), ("is made out to me instead of the company", {}),
                  ("shows {m1}, which is right, but not the tax rate", {})],
        "when": [("We need a corrected one {d1}.", {}), ("A corrected one would be nice.", {}),
                 ("The books close {e1:soon}, we need a corrected one by then.", {}),
                 ("The same for {o2}, please.", {}), ("With order {x1} you did it correctly.", {})]}),
    s("price-tag", "[Wrong price|Overcharged|{o1}: price]", """
The page said {m1}, I took a photo because it was so cheap. On my card it is {m2} (order {o1}). {ask}
""", fault="billing", money={"m1": (100, 140, 10), "m2": (160, 190, 10), "m3": (5, 15, 1)}, cur="GBP EUR USD", alts={"ask": [
        ("Please return the difference.", {"refund": {"m2": 1, "m1": -1}}),
        ("Then I don't want it: cancel and return the whole amount.", {"refund": {"m2": 1}}),
        ("Return the difference {d1}, please.", {"refund": {"m2": 1, "m1": -1}}),
        ("I can live with it, but please put the difference on my customer account as credit.", {}),
        ("You have sent me {m3} of the difference so far. I'd like the rest.", {"refund": {"m2": 1, "m1": -1, "m3": -1}}),
    ]}),
    s("promised-refund", "[Refund for {o1}|Where is my refund?|still waiting for money]", """
{history} Your colleague promised the {m1} for order {o1} {p1}. {got} {ask}
""", fault="billing", money={"m1": (80, 190, 10), "m2": (20, 60, 10)}, cur="EUR GBP", alts={
        "history": [("This is my third message about this.", {"repeat": True}),
                    ("I sent the thermostat back weeks ago.", {}),
                    ("You received my return {q1}.", {}), ("I don't like to nag.", {})],
        "got": [("So far nothing has come.", {"refund": {"m1": 1}}),
                ("So far only {m2} have come; where is the rest?", {"refund": {"m1": 1, "m2": -1}}),
                ("Of that, {m2} came, I want the rest.", {"refund": {"m1": 1, "m2": -1}})],
        "ask": [("Please pay {d1}.", {}), ("Please pay.", {}), ("I'd hate to have to involve a lawyer, but I will.",
                                                              {"legal": True})]}),
    s("auto-renewal", "[Automatic renewal|renewed without asking|Yearly plan]", """
The yearly Vault plan was renewed {q1} for {m1}. {knew} {ask}
""", fault="billing", money={"m1": (48, 96, 12)}, cur="EUR GBP USD", alts={
        "knew": [("I had switched off the renewal and can prove it.", {}),
                 ("No reminder came, although you promise one.", {}),
                 ("It was supposed to be the monthly plan.", {})],
        "ask": [("Reverse it, please, all of it.", {"refund": {"m1": 1}}),
                ("I'll keep the plan for a quarter of the year. Please pay back the other three quarters.",
                 {"refund": {"m1": "3/4"}}),
                ("Reverse it {d1}, all of it.", {"refund": {"m1": 1}}),
                ("Leave it, I'll use it. But switch off the next renewal, please.", {}),
                ("Turn the {m1} into credit for hardware and we are friends again.", {})]}),
    s("unknown-charge", "[I don't know this charge|HALDEN*{n_case}|unknown payment]", """
There is a line "HALDEN {n_case}" over {m1} on my credit card{suffix}. I have never [bought anything from you|been your
customer].

{ask}
""", fault="billing", money={"m1": (90, 380)}, cur="USD GBP EUR", alts={
        "suffix": [(", dated last week", {}), (", booked {q1}", {})],
        "ask": [("Please return the money.", {"refund": {"m1": 1}}),
                ("What is that? I'm not asking for anything but an explanation.", {}),
                ("Please return the money {d1:soon}, otherwise I'll report it to the police.",
                 {"refund": {"m1": 1}, "legal": True}),
                ("My bank has refunded me, I'm only writing so that you find the leak.", {}),
                ("Please return the money {d1}.", {"refund": {"m1": 1}})]}),
    s("dunning", "[Reminder for a paid bill|Your reminder {n_inv}|Dunning letter]", """
I have a reminder from you over {m1} for invoice {n_inv} (order {o1}). I paid that {q1}, [receipt attached|the bank
statement is attached]. {then}
""", fault="billing", money={"m1": (120, 330), "m2": (5, 9)}, cur="EUR GBP", alts={"then": [
        ("Please correct your books.", {}),
        ("Please confirm {d1} that this is settled.", {}),
        ("In a hurry I then paid it a second time. Please send one of the two payments back.", {"refund": {"m1": 1}}),
        ("I paid your {m2} reminder fee with it to have peace; I want that fee back.", {"refund": {"m2": 1}}),
        ("If I get another letter of that kind, my lawyer answers it.", {"legal": True}),
    ]}),
    s("wrong-currency", "[Charged in the wrong currency|currency|{o1}]", """
I live in Dublin, the order ({o1}) was in euros, and my card was charged as if the number were pounds. [It
comes out {m1} too much.|The bank says that makes {m1} more than it should be.] {ask}
""", fault="billing", money={"m1": (12, 45), "m2": (3, 9)}, cur="EUR", alts={"ask": [
        ("I would like that back.", {"refund": {"m1": 1}}),
        ("I would like that back {d1}.", {"refund": {"m1": 1}}),
        ("I would like that back, plus the {m2} my bank takes for the paperwork.", {"refund": {"m1": 1}}),
        ("I don't need it back, but repair it, other people in Ireland will see the same.", {}),
    ]}, rows=4),
    s("kids-bought", "[My son bought things|order by my child|{o1}, {o2}]", """
My son ({age}) got hold of the tablet and bought two cameras with my saved card: orders {o1} and {o2}, {m1} each. [They
have not shipped.|Neither has shipped.] [The gift card he used for order {x1} was his own, leave that.|He is very sorry.
So am I.] {ask}
""", wish="cancellation", money={"m1": (60, 120, 10)}, cur="GBP USD EUR", alts={
        "age": [("7", {}), ("9", {}), ("11", {}), ("6", {})],
        "ask": [("Please cancel both and return the money.", {"refund": {"m1": 2}}),
                ("Please cancel both. The money for one of them is back already, so only that for the other is missing.",
                 {"refund": {"m1": 1}}),
                ("Please cancel both before they go out, which is {e1:soon}. Money back to the card.",
                 {"refund": {"m1": 2}}),
                ("Please cancel both; the card was only authorised, nothing was taken.", {})]}, rows=4),
    # accounts
    s("lost-phone-2fa", "[Lost my phone|Two-factor|phone gone]", """
My phone is at the bottom of [Lake Garda|the harbour] and with it the code generator for my Halden account. {state}
{when}
""", wish="account", fault="account", alts={
        "state": [("I can't log in anywhere now.", {"level": "down"}),
                  ("On the laptop I am still logged in, but I'd like to register the new phone.", {}),
                  ("We share the account, so my husband is locked out too, we can't get in on any device.",
                   {"level": "down", "reach": "household"}),
                  ("The backup codes let me in, luckily; I need new ones.", {})],
        "when": [("We get back {e1}, it would have to work by then.", {}), ("Please help.", {}),
                 ("Please, {d1:soon}.", {}), ("I know that such checks take time, that's fine.", {})]}),
    s("right-to-erasure", "[My account|Customer {n_cust}|request]", """
{what} [My account runs under this address.|Customer number {n_cust}.] {limit} I don't have open orders[; the last one,
{x1}, is from long ago|].
""", wish="account", alts={
        "what": [("Under Article 17 GDPR I ask you to erase all personal data that you hold about me.", {"data": True}),
                 ("Under Article 15 GDPR I ask for a copy of all personal data that you hold about me.", {"data": True}),
                 ("I moved house. Please change the address in my profile to 4 Mill Lane.", {}),
                 ("Please take me off the newsletter, I have too many as it is.", {}),
                 ("I object to the use of my recordings for training your recognition and want to know who has had "
                  "access to them.", {"data": True})],
        "limit": [("I expect it to be done {d1:late}.", {}), ("Thank you for confirming it.", {}),
                  ("Please do this {d1}.", {})]}),
    s("new-address", "[Change of e-mail|e-mail address|new mail address]", """
I am [leaving my provider|getting married] and my mail address goes with it. Could you move my account to the new one,
[kat at example dot org|the one in copy]? The form sends the confirmation to the old address, {state}
""", wish="account", alts={"state": [
        ("which still works for now, but it is switched off {e1:late}, so please do it by then.", {}),
        ("which no longer exists, so I am shut out.", {"level": "down"}),
        ("which I read once a week. No hurry.", {}),
        ("which dies {e1:soon}. It has to be done by then.", {}),
        ("which I still have. Orders {x1} and {x2} may stay with it, they are done.", {}),
    ]}),
    s("fathers-account", "[My father's account|Account of R. Hollis|my father]", """
My father {state}. He had your Warm in every room and a Vault plan under the customer number {n_cust}. {ask} {when}
""", wish="account", money={"m1": (36, 60, 6)}, cur="GBP EUR", alts={
        "state": [("died {q1}", {"death": True}), ("has moved in with us and no longer needs it", {}),
                  ("passed away in the spring", {"death": True}), ("has sold the house and moves to the coast", {})],
        "ask": [("Please transfer the account to me.", {}),
                ("Please close the account and send back the {m1} for the rest of the year.", {"refund": {"m1": 1}}),
                ("Please close the account; the {m1} for the rest of the year can go to charity for all I care.", {}),
                ("Please tell me what papers you need.", {})],
        "when": [("The house is handed over {e1}, it has to be done by then.", {}), ("", {}), ("Take your time.", {})]}),
    s("sso-change", "[Single sign-on|SSO|login after domain change]", """
We renamed our company and with it the domain of our logins. {who} Tenant is {n_cust}. [Our admin followed the guide to
the letter.|The guide on your site has one step that no longer exists.]

{when}
""", wish="account", fault="account", alts={
        "who": [("Since then none of our sixty people can sign in to Halden.", {"level": "down", "reach": "many"}),
                ("Since then one colleague, the one with the umlaut, can't sign in.", {"level": "down"}),
                ("Everyone can sign in, only the old company name is still shown at the top.", {"reach": "many"}),
                ("We tried it on the sandbox tenant first and nobody can sign in there; the live one we have not "
                 "touched.", {"level": "down", "reach": "many", "test": True}),
                ("Nobody could sign in for a day; your night shift repaired it. We'd like to know which setting it was.",
                 {"level": "down", "reach": "many", "over": True})],
        "when": [("Please look into it {d1:soon}.", {}), ("Please look into it.", {}),
                 ("An auditor asks about it {e1:late}, so tell us by then.", {})]}),
    s("hacked", "[login|hacked?|strange login]", """
{what} I changed the password [at once|three times]. {ask}
""", fault="account", alts={
        "what": [("Last night somebody logged into my account from another country and watched the nursery camera for "
                  "forty minutes.", {"exposed": True}),
                 ("I got a mail about a login from \"unknown device\"; it turned out to be my own new television.", {}),
                 ("My ex still gets into the account and knows who was at my door on Friday. I never gave him the new "
                  "password.", {"exposed": True}),
                 ("Your mail about a new login named the wrong town. It was me, the map is just off.", {})],
        "ask": [("Please check the log {d1:soon}.", {}), ("Please check the log.", {}),
                ("I'd like to speak to a human being about this, on the phone.", {"person": True}),
                ("Please check the log. The unit was order {x1}, if that helps, though it isn't about the unit.", {})]}),
    s("invite-tenant", "[User rights|cannot add my tenant|access for a tenant]", """
I would like to give my tenant access to the front door but not to the cameras. [The app offers only all or
nothing.|I can't find the switch.] {state}
""", wish="question", level="answer", alts={"state": [
        ("How is it done?", {}), ("How is it done? She moves in {e1:soon} and must have it by then.", {}),
        ("How is it done? She moves in {e1:late} and must have it by then.", {}),
        ("Is that possible at all? I bought the lock with {x1}, before there were rights.", {}),
        ("Just send me the page of the manual.", {}),
    ]}),
]
