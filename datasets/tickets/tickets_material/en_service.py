"""English mails about the cloud, the app and everything between them."""

from __future__ import annotations

from tickets_material.model import scenario as s

SCENARIOS = [
    s("dentists", "[Dashboard|Vault down?|cannot see cameras]", """
We are a dental practice with four rooms and your cameras at both entrances. Since {since} {who}. [We restarted
everything that has a plug.|Restarting did not help.] {when}
""", fault="service", alts={
        "since": [("this morning", {}), ("lunch", {}), ("about an hour ago", {})],
        "who": [("nobody here can open the Vault dashboard, it just spins, on all fourteen computers",
                 {"level": "down", "reach": "many"}),
                ("I cannot open the dashboard on my computer, it just spins; my colleagues can",
                 {"level": "down"}),
                ("the dashboard takes half a minute to open for each of us, but then it works", {"reach": "many"}),
                ("the dashboard was gone for all of us; while writing this I see that it is back. Please tell us what "
                 "it was", {"level": "down", "reach": "many", "over": True}),
                ("neither reception nor the doctors get past the login spinner", {"level": "down", "reach": "many"})],
        "when": [("Please get back to us {d1:soon}.", {}), ("Please get back to us.", {}),
                 ("We have an inspection {e1:late} and must be able to show recordings by then.", {})]}),
    s("my-wife-and-i", "[App broken|since the update|Home app]", """
Since the update [last night|to the newest version] {who}. {after}

[I have an Android, she has an iPhone.|Two different phones, if that matters.|Reinstalled, same thing.]
""", fault="service", alts={
        "who": [("neither my wife nor I can open the Home app at all, it closes straight away",
                 {"level": "down", "reach": "household"}),
                ("the Home app shows the rooms in the wrong order", {}),
                ("the whole family, five phones, is locked out of the Home app: it crashes on start",
                 {"level": "down", "reach": "household"}),
                ("the widget of the Home app shows yesterday's temperature, the app itself the right one", {}),
                ("my flatmate and I just get a white page from the Home app",
                 {"level": "down", "reach": "household"})],
        "after": [("The lights can only be switched by hand.", {}), ("I would like the old version back.", {}),
                  ("Please fix this {d1}.", {}), ("My son says I should have waited with the update.", {}),
                  ("It has to work {d1:soon}.", {})]}),
    s("strangers-kitchen", "[cameras|live view|my cameras in the app]", """
{what} Account is the one I write from, camera serial
{n_serial}.

{then}
""", fault="service", alts={
        "what": [("When I open the live view of my Eye, I see somebody else's kitchen, with people in it. I "
                  "closed it at once.",
                  {"exposed": True}),
                 ("When I open the live view of my Eye, the picture is two seconds behind the sound.", {}),
                 ("A man I don't know wrote to me that he can see our garden camera in his app, and he described our "
                  "table.", {"exposed": True}),
                 ("The app calls my garden camera \"Kitchen\". Renaming doesn't stick.", {}),
                 ("My list of cameras has had three entries since yesterday that are not mine, and they play. I did not "
                  "look for long, I swear.",
                  {"exposed": True})],
        "then": [("Please explain.", {}), ("I expect an explanation {d1}.", {}), ("Is that normal?", {}),
                 ("What are you doing about it?", {})]}),
    s("missing-night", "[Missing recordings|recordings of last night|burglary]", """
{event} The clips between one and four in the morning are not in the app. Everything before and after is there. {need}

[Vault plan, paid until next year.|I pay for Vault precisely for this.]
""", fault="service", alts={
        "event": [("Somebody broke into our shed.", {}), ("Our car was scratched in the drive.", {}),
                  ("A fox took two hens.", {})],
        "need": [("The police want the footage {d1}, their reference is {n_policy}.", {}),
                 ("My insurer, claim {n_policy}, needs it {d1:late}.", {}),
                 ("I'd like to have them back for my own peace of mind.", {}),
                 ("The police wanted it {q1}; that is over now, but I would still like to have it.", {}),
                 ("Please restore them {d1:soon}, I believe you delete for good after that.", {})]}),
    s("integrator", "[API errors|{=502} from your API|Integration outage]", """
We integrate Halden devices for property firms. Since {=0915} your API answers every call with {=502}. {who}
Request ids: {n_case}, {n_case2}.

{ask}
""", fault="service", level="down", money={"m1": (700, 1400, 50)}, cur="EUR USD GBP", alts={
        "who": [("All our customers are affected, roughly two hundred buildings.", {"reach": "many"}),
                ("It only concerns our staging tenant; production is fine and no customer notices.",
                 {"reach": "many", "test": True}),
                ("Only one of our customers is affected, a bakery; her account cannot be reached at all.", {}),
                ("All customers were affected. It recovered half an hour ago; we would like a post-mortem.",
                 {"reach": "many", "over": True}),
                ("Three of our customers, in different towns, cannot reach their devices.", {"reach": "many"})],
        "ask": [("Please confirm that you are on it.", {}), ("We need a statement for them {d1:soon}.", {}),
                ("Our SLA report is due {e1:late}, we need the root cause by then.", {}),
                ("Any news is welcome.", {}),
                ("We ask for the {m1} of this month's licence back.", {"refund": {"m1": 1}})]}),
    s("trade-fair-demo", "[Demo wall|fair booth|demo units offline]", """
On our [booth|show wall] there are six Hubs. {what} Nobody lives there, it is a demo, [obviously|as I said on the
phone]. {when}
""", fault="service", level="down", alts={
        "what": [("Since yesterday all six have been \"offline\" in the cloud.", {"reach": "many", "test": True}),
                 ("One of the six has been \"offline\" since yesterday.", {"test": True}),
                 ("All six were thrown out of the cloud overnight and none comes back.",
                  {"reach": "many", "test": True}),
                 ("The dashboard for the wall is gone and none of us on the stand can get in.",
                  {"reach": "many", "test": True})],
        "when": [("The fair opens {e1:soon}; it must run by then.", {}), ("The fair is over, it is for the showroom now, "
                                                                        "so whenever.", {}),
                 ("The fair opens {e1:late}; it must run by then.", {}), ("Please check from your side.", {})]}, rows=4),
    s("hotel-doors", "[Doors!|Guests cannot get into their rooms|Key / front desk]", """
Hotel [Seeblick|am Markt], night desk. {who} I have the list of serials here, the first is {n_serial}. [Sorry for any
mistakes, english is not my language.|Please excuse my English.]

{when}
""", fault="service", money={"m1": (610, 980, 10)}, cur="EUR CHF", alts={
        "who": [("The codes that your cloud makes are refused on all doors, guests stand in the corridor.",
                 {"level": "down", "reach": "many"}),
                ("The codes that your cloud makes come with five minutes delay, then they work.", {"reach": "many"}),
                ("One guest can not come in room 12, code is always refused. Other rooms no problem.",
                 {"level": "down"}),
                ("From room 20 to room 31 no code is accepted, we open by hand for every person.",
                 {"level": "down", "reach": "many"}),
                ("For ten minutes no code was accepted in the whole house. Now is good again. We want to know why.",
                 {"level": "down", "reach": "many", "over": True})],
        "when": [("Please help.", {}), ("The director wants a report {d1}.", {}),
                 ("The director wants the {m1} for this season's plan back.", {"refund": {"m1": 1}}),
                 ("Please write us what to do {d1:soon}.", {})]}),
    s("status-green", "[All systems operational|Your lovely green status page|green]", """
Your status page is such a soothing green. [I sit and look at it|It gives me something to look at] because {who}. I
suppose we are all holding it wrong.

{end}
""", fault="service", alts={
        "who": [("the app has had no connection to anything since noon, at my place and at everyone's in our "
                 "neighbourhood group, nineteen households", {"level": "down", "reach": "many"}),
                ("my app has had no connection to anything since noon, and I'm the only one in our neighbourhood group",
                 {"level": "down"}),
                ("the app needs three taps where it used to need one", {}),
                ("neither I nor my parents in the same house have had a connection since noon",
                 {"level": "down", "reach": "household"})],
        "end": [("A sign of life {d1:soon} would be appreciated.", {}), ("No reply needed, just repair it.", {}),
                ("Bravo.", {}), ("I hope someone is awake over there.", {})]}, rows=4),
    s("enough-is-enough", "[I'm leaving|Cancel everything|Vault: goodbye]", """
{why} [I have been patient.|My patience has a limit and this is it.] Please end my Vault subscription {d}. {money}
""", fault="service", wish="cancellation", money={"m1": (36, 72, 6)}, cur="EUR USD GBP", alts={
        "why": [("Clips have arrived with a day's delay for weeks now.", {}),
                ("Vault hasn't recorded a single clip since {q1:bare}.", {"level": "down"}),
                ("For five weeks every second clip has been unplayable.", {}),
                ("I can't get into Vault at all since {q1:bare}, on no device.", {"level": "down"})],
        "d": [("{d1}", {}), ("for good", {}), ("at the end of the paid period", {}), ("{d1:soon}", {})],
        "money": [("I want the {m1} for this year back.", {"refund": {"m1": 1}}),
                  ("Keep the {m1} and buy servers with it.", {}),
                  ("I want half of the {m1} for this year back.", {"refund": {"m1": "1/2"}}), ("", {})]}),
    s("late-pings", "[notifications|Push messages late|alerts]", """
alerts from the doorbell reach my phone {how}. by then whoever it was is gone. phone settings all checked, battery saver
off. {extra}
""", fault="service", alts={
        "how": [("four to ten minutes late", {}), ("only when i open the app", {}), ("twice, or late, or both", {})],
        "extra": [("would be great to have this fixed {d1}", {}),
                  ("my last order {x1} has nothing to do with it i guess", {}),
                  ("also the sister in law has the same but she doesnt care", {}),
                  ("not urgent, i am home most of the time", {}), ("i expect a parcel {e1:soon} so please by then", {})]}),
    s("what-was-that", "[Yesterday's outage|Explanation wanted|outage]", """
{what} It works again now. [I am not angry, just curious.|I'd like to understand what happened.]

{ask}
""", fault="service", level="down", over=True, money={"m1": (3, 9)}, cur="EUR GBP", alts={
        "what": [("Yesterday evening nobody in our company could arm the alarm from the app for two hours.",
                  {"reach": "many"}),
                 ("Yesterday evening I could not arm my alarm from the app for two hours.", {}),
                 ("On Sunday the app of our whole housing association was dead for most of the day.",
                  {"reach": "many"}),
                 ("On Sunday my girlfriend and I could not get into the app for most of the day.",
                  {"reach": "household"})],
        "ask": [("A credit of {m1} on my next bill would be the decent thing.", {}),
                ("Please send me the report {d1}.", {}),
                ("Please refund me the {m1} for this month's plan.", {"refund": {"m1": 1}}),
                ("When will the report be published?", {})]}),
    s("school-office", "[School dashboard|Teachers locked out|Halden at St. Brigid's]", """
St. Brigid's primary school here. {who} [The caretaker has been running around with a bunch of keys.|It makes mornings
interesting.] {end}
""", fault="service", alts={
        "who": [("The door schedule in the dashboard has vanished and none of the staff can unlock with a badge.",
                 {"level": "down", "reach": "many"}),
                ("The door schedule opens the gym an hour too late since the clocks changed.", {"reach": "many"}),
                ("A single badge, that of Mrs Kelly, is active in the dashboard but has not "
                 "opened anything since {q1:bare}.", {"level": "down"}),
                ("The door schedule can be edited only from one of the two office computers.", {}),
                ("Every badge in the house is refused.", {"level": "down", "reach": "many"})],
        "end": [("Please sort it {d1:soon}.", {}), ("We would be grateful for help.", {}),
                ("The open day is {e1:late}, it needs to work by then.", {}),
                ("Could one of your technicians phone the office? We prefer to talk.", {"person": True})]}),
    s("upload-stuck", "[Upload stuck|Vault stuck at 99 percent|Vault]", """
My Vault has said "99 %" {since}. {effect} I deleted the cache [twice|and sang to it].
""", fault="service", alts={
        "since": [("since {q1:bare}", {}), ("for eleven days", {}), ("since the weekend", {})],
        "effect": [("New clips are stored, though, so it may be cosmetic.", {}),
                   ("Nothing new has been stored since; the service is of no use to me like this.", {"level": "down"}),
                   ("Nothing new has been stored since, and yes, I have tried a competitor, {q1}.",
                    {"level": "down"}),
                   ("New clips are stored. But I need the old one of our wedding {d1}.", {}),
                   ("It is only the number, everything else works. Fix it {d1:soon} and I send cake.", {})]}),
    s("wifi-migration", "[after router change|new router|Hub and new Wi-Fi]", """
New router, new name for the Wi-Fi, and now {state}. The app says "ask your administrator" and I am the administrator.
[I spent the whole of Saturday on this.|I'm a reasonably technical person.] {when}
""", fault="service", alts={
        "state": [("no device of mine can be reached any more", {"level": "down"}),
                  ("everything works except that the Hub shows the old name", {}),
                  ("none of the eight offices in our building can reach its devices: we share that router",
                   {"level": "down", "reach": "many"}),
                  ("my partner and I can't reach any device at home", {"level": "down", "reach": "household"})],
        "when": [("I travel {e1} and want it settled by then.", {}), ("Any idea?", {}), ("Help me {d1:soon} please.", {}),
                 ("Whenever you find the time.", {})]}),
]
