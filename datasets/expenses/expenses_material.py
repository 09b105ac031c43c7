"""The language of the AuditExpenses rows: word lists and hand-written scenarios.

A scenario is one cluster. Its `kind` says what the question is about, its options how the answer is cut down, its
text has slots such as ``{team}`` or ``{q:months}`` that the builder fills from a company; what stands behind the
colon picks a word list or a spelling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

CATEGORY_WORDS: dict[str, tuple[str, ...]] = {  # travel, meals, software, equipment, training
    "en": ("travel", "meals", "software", "equipment", "training"),
    "cap": ("Travel", "Meals", "Software", "Equipment", "Training"),
    "casual": ("trips", "food", "licences", "hardware", "courses"),
    "long": ("travel costs", "meals", "software licences", "equipment purchases", "training fees"),
    "verb": ("travelling", "eating and drinking", "software subscriptions", "buying hardware", "courses and exams"),
    "de": ("Reisebudget", "Verpflegungsbudget", "Softwarebudget", "Ausstattungsbudget", "Weiterbildungsbudget"),
    "de2": ("Reisen", "Verpflegung", "Software", "Ausstattung", "Weiterbildung"),
    "fr": ("déplacements", "repas", "logiciels", "équipement", "formation"),
    "es": ("viajes", "comidas", "software", "equipamiento", "formación"),
    "it": ("viaggi", "pasti", "software", "attrezzature", "formazione"),
    "nl": ("reisbudget", "maaltijdbudget", "softwarebudget", "hardwarebudget", "opleidingsbudget"),
    "pt": ("viagens", "refeições", "software", "equipamento", "formação"),
    "pl": ("podróże", "posiłki", "oprogramowanie", "sprzęt", "szkolenia"),
    "sv": ("resebudget", "måltidsbudget", "mjukvarubudget", "utrustningsbudget", "utbildningsbudget"),
    "tr": ("seyahat", "yemek", "yazılım", "ekipman", "eğitim"),
    "ja": ("出張費", "食事代", "ソフトウェア費", "機器購入費", "研修費"),
}
QUARTER_WORDS: dict[str, tuple[str, ...]] = {
    "": ("Q1", "Q2", "Q3", "Q4"),
    "low": ("q1", "q2", "q3", "q4"),
    "slash": ("Q1/25", "Q2/25", "Q3/25", "Q4/25"),
    "year": ("2025-Q1", "2025-Q2", "2025-Q3", "2025-Q4"),
    "ord": ("first quarter", "second quarter", "third quarter", "fourth quarter"),
    "nth": ("1st quarter", "2nd quarter", "3rd quarter", "4th quarter"),
    "months": ("January to March", "April to June", "July to September", "October to December"),
    "mon": ("Jan-Mar", "Apr-Jun", "Jul-Sep", "Oct-Dec"),
    "between": ("between New Year and the end of March", "between the start of April and the end of June",
                "between the start of July and the end of September", "between the start of October and New Year's Eve"),
    "three": ("January, February and March", "April, May and June", "July, August and September",
              "October, November and December"),
    "end": ("31 March", "30 June", "30 September", "31 December"),
    "closed": ("end of March", "end of June", "end of September", "end of December"),
    "sent": ("Mon, 7 April 2025", "Thu, 3 July 2025", "Wed, 8 October 2025", "Fri, 9 January 2026"),
    "iso": ("2025-04-11", "2025-07-14", "2025-10-06", "2026-01-12"),
    "today": ("the 14th of April", "the 10th of July", "the 20th of October", "the 13th of January 2026"),
    "de": ("ersten Quartal", "zweiten Quartal", "dritten Quartal", "vierten Quartal"),
    "de_months": ("Januar bis März", "April bis Juni", "Juli bis September", "Oktober bis Dezember"),
    "fr": ("premier trimestre", "deuxième trimestre", "troisième trimestre", "quatrième trimestre"),
    "fr_months": ("de janvier à mars", "d'avril à juin", "de juillet à septembre", "d'octobre à décembre"),
    "es": ("primer trimestre", "segundo trimestre", "tercer trimestre", "cuarto trimestre"),
    "it": ("primo trimestre", "secondo trimestre", "terzo trimestre", "quarto trimestre"),
    "nl": ("eerste kwartaal", "tweede kwartaal", "derde kwartaal", "vierde kwartaal"),
    "pt": ("primeiro trimestre", "segundo trimestre", "terceiro trimestre", "quarto trimestre"),
    "pl": ("pierwszym kwartale", "drugim kwartale", "trzecim kwartale", "czwartym kwartale"),
    "sv": ("första kvartalet", "andra kvartalet", "tredje kvartalet", "fjärde kvartalet"),
    "tr": ("birinci çeyrekte", "ikinci çeyrekte", "üçüncü çeyrekte", "dördüncü çeyrekte"),
    "ja": ("第1四半期", "第2四半期", "第3四半期", "第4四半期"),
}  # fmt: skip
HALF_WORDS: dict[str, tuple[str, str]] = {
    "": ("first half of 2025", "second half of 2025"),
    "h": ("H1", "H2"),
    "summer": ("the six months up to the end of June", "the six months after the end of June"),
    "de": ("ersten Halbjahr", "zweiten Halbjahr"),
    "es": ("primer semestre", "segundo semestre"),
}
LEVEL_WORDS: dict[str, dict[str, str]] = {
    "": {"junior": "juniors", "senior": "seniors", "lead": "leads"},
    "one": {"junior": "junior", "senior": "senior", "lead": "lead"},
}
UNKNOWN_TEAMS = ("Quantum Garage", "Drone Squad", "Wellness Circle", "Robotics Guild", "Choir", "Moonshot Kitchen",
                 "Rocket Launch Crew", "Veterinary Clinic")  # fmt: skip
UNKNOWN_PEOPLE = ("Barnaby Fitzwilliam", "Clotilde Vandenbroucke", "Thorvald Ashdown", "Peregrine Oyelaran")


@dataclass(frozen=True)
class Scenario:
    id: str
    kind: str
    texts: tuple[str, ...]
    cells: str = "1q1c"
    language: str = "en"
    options: dict[str, Any] = field(default_factory=dict)


SCENARIOS: list[Scenario] = []


def s(id: str, kind: str, *texts: str, cells: str = "1q1c", language: str = "en", **options: Any) -> None:
    SCENARIOS.append(Scenario(id, kind, texts, cells, language, options))


# fmt: off
# -- one team, one category, one quarter -------------------------------------------------------------

s("plain-team", "team",
  "Who on the {team} team exceeded their {cat} budget in {q}?",
  "Who in {team} went over budget for {cat} in {q}?")
s("plain-formal", "team",
  "Please provide a list of all {team} employees whose {cat:long} in the {q:ord} of 2025 were higher than the budget "
  "available to them.")
s("terse-colon", "team", "{team} / {cat} / {q:year} -> over budget?")
s("slack-lower", "team", "hey can u check who in {team:lower} blew thru their {cat} money {q:low}? thx")
s("audit-note", "team",
  "Audit point 4.2 asks for evidence that individual {cat} budgets were respected in {team} during the three months "
  "that ended on {q:end} 2025. Name every breach.")
s("coffee-talk", "team",
  "I overheard somebody in the kitchen say that half of {team} spent like there is no tomorrow on {cat:casual} from "
  "{q:months}. Is there anything to it? Names please, only of people who really went past their limit.")
s("second-language", "team",
  "Good day, I need know which persons of team {team} have used more money as permitted for {cat} in the {q:nth}. "
  "Please the names and the sums.")
s("typos-heavy", "team",
  "cna you pls tel me whos over thier {cat} bugdet in teh {team} taem, {q} olny!!")
s("today-relative", "team",
  "Today is {q:today} and I still have no overview of the quarter that just closed. {team}, {cat}: who overspent?")
s("mail-forward", "team",
  "---------- Forwarded message ----------\nFrom: Paula (accounting)\nSent: {q:sent}\nSubject: Re: Re: coffee machine\n\n"
  "Hi, the new machine arrives on Thursday, please bring your own cup until then. By the way, could somebody finally "
  "tell me who in {team} was over their {cat} budget last quarter? {other} has already sent theirs, so no need to look "
  "at them again.\n\nThanks, Paula")
s("voice-memo", "team",
  "ok so, uhm, voice memo to self: before the Monday meeting find out, for {team}, no wait, yes, {team}, which of them "
  "went beyond what they are allowed for {cat}, and that's {q:months}, not the whole year")
s("negated", "team",
  "Strike everyone from the {team} roster who stayed within the {cat} budget they had in {q}. Whoever is left, I want "
  "to talk to.")
s("checklist", "team",
  "Closing checklist {q:slash}\n[x] accruals\n[x] bank\n[ ] {cat:cap} overspenders, {team}\nPlease do the open one.")
s("riddle", "team",
  "{team} has people who got less out of {q:months} than they took, budget-wise. Talking about {cat:verb}. Which?")
s("boss-annoyed", "team",
  "I signed off {cat} budgets for a reason. If anyone in {team} ignored theirs in the {q:ord}, I want the names on my "
  "desk with what they spent and what they were given. Not the ones who merely came close.")
s("json-request", "team",
  '{{"report": "budget_breach", "team": "{team}", "category": "{cat}", "period": "{q:year}"}}')
s("thank-you-card", "team",
  "We plan small thank-you cards for everybody in {team} who kept to the {cat} budget {q:between}. For that I need to "
  "know who must NOT get one.")
s("fact-check", "team",
  "Dominic claims nobody in {team} was above their {cat} allowance in {q}. Fact-check that: list whoever proves him "
  "wrong.", empty=2)
s("ticket", "team",
  "TICKET #88213 (priority: low)\nReporter: Bettina\nSummary: {cat} overruns\nDescription: Reported last week for "
  "{other}, closed. Same question now for {team}, period {q:mon} 2025. Expected: list of people above budget.")
s("haiku", "team",
  "Leaves fall on {team},\nsomeone's {cat} ran too high,\n{q} will tell us who.")

# -- one team, several quarters or categories ---------------------------------------------------------

s("two-quarters", "team",
  "Compare {q} and {q2} for {team}: who exceeded the {cat} budget in either of them? Each quarter on its own.",
  cells="2q1c")
s("two-quarters-chatty", "team",
  "Sorry to bother you again! Could you look at {cat:casual} for the {team} folks once more? I need whoever was over "
  "in the {q:ord} and also whoever was over in the {q2:ord}. If someone was over both times, I want to see them twice.",
  cells="2q1c")
s("half-year", "team",
  "Which {team} members overspent on {cat} in the {half}? Remember that budgets run per quarter, so list each quarter "
  "in which it happened.", cells="half")
s("half-year-short", "team", "{half:h} review, {team}, {cat}. Overruns by person and quarter.", cells="half")
s("half-year-board", "team",
  "For the board paper we look back on {half:summer} of 2025. Did any individual in {team} exceed the quarterly "
  "{cat} budget in that time, and if so in which quarter and by what amounts?", cells="half")
s("year-small", "team",
  "Annual statement, {team} only: every single case in 2025 where somebody's {cat} spending in a quarter was above "
  "that quarter's budget.", cells="year", max_team=5)
s("two-categories", "team",
  "In {q}, who in {team} was over on {cat} and who was over on {cat2}?", cells="1q2c")
s("two-categories-mail", "team",
  "Hello,\n\nfor the quarterly talk with {team} I need two lists, one for {cat:long} and one for {cat2:long}: the "
  "people who spent more in the {q:ord} than they had. One combined table is fine as long as the category is in it.\n\n"
  "Kind regards\nMarlene", cells="1q2c")
s("either-category", "team",
  "got anyone at {team} who's above budget for {cat} or {cat2}, {q:mon}? doesn't matter which one, show me all",
  cells="1q2c")
s("category-per-quarter", "team",
  "{team}: I care about {cat} in {q} and about {cat2} in {q2}. Nothing else. Who was over?", cells="cross")
s("category-per-quarter-story", "team",
  "We had complaints about {cat:casual} in {team} in the {q:ord}, and after that calmed down there was trouble with "
  "{cat2:casual} in the {q2:ord}. For those two cases, who had spent more than their budget?", cells="cross")
s("both-categories", "team",
  "Is there anybody in {team} who managed to exceed BOTH the {cat} and the {cat2} budget in {q}? Only those, with both "
  "entries.", cells="1q2c", pick="every_category")
s("exactly-one", "team",
  "From {team} I want the people who in {q:months} were over budget in exactly one of {cat} and {cat2}, not in both. "
  "Give the entry where they were over.", cells="1q2c", pick="exactly_one")
s("repeat-offenders", "team",
  "Repeat offenders in {team}: over the {cat} budget in {q} as well as in {q2}. One line for each of the two quarters, "
  "and leave out whoever was over just once.", cells="2q1c", pick="every_quarter")
s("again-mail", "team",
  "Sent: {q2:sent}\nTo: controlling\n\nYou wrote in spring that some people in {team} had a warning about {cat}. Whoever "
  "exceeded in {q} and then did it again in {q2} gets an invitation from me. Who is that? Please list both quarters "
  "for them.\nRoland", cells="2q1c", pick="every_quarter")
s("newcomers", "team",
  "Who in {team} exceeded the {cat} budget in {q2} although they had been fine in {q}? I only need the {q2} figures.",
  cells="2q1c", pick="only_last")
s("relapse", "team",
  "Between {q} and {q2} something changed in {team}. Show me those who were within their {cat} budget in the {q:ord} "
  "but above it in the {q2:ord}; figures of the later quarter.", cells="2q1c", pick="only_last")

# -- two teams, departments, managers -----------------------------------------------------------------

s("two-teams", "two_teams", "Who from {team} or {team2} overspent their {cat} budget in {q}?")
s("two-teams-versus", "two_teams",
  "{team} says that {team2} wastes more on {cat} than they do. Settle it: list everybody from the two teams who went "
  "over budget {q:between}.")
s("two-teams-lower", "two_teams", "{q:low} {cat:casual} check for {team:lower} + {team2:lower}, who's in the red")
s("two-teams-merge", "two_teams",
  "As the teams {team} and {team2} will share one office from next year, their coordinators ask for a joint list of "
  "the people whose {cat:long} surpassed the personal budget in the {q:ord}. Someone who belongs to both teams is to "
  "appear once.")
s("two-teams-most", "two_teams",
  "Which of {team} and {team2} has more people over their {cat} budget in {q}? List the people of that team who are "
  "over, and nobody from the other one.", pick="most_people")
s("two-teams-winner", "two_teams",
  "Bad-budget trophy {q:slash} ({cat}): it goes to whichever of the two teams, {team} or {team2}, has the larger "
  "number of members above budget. I need the winning members with their sums.", pick="most_people")
s("maybe-unknown-pair", "two_teams",
  "I was told to check the teams {team2} and {team} for {cat} overruns in {q:months}. I am new here, so if one of "
  "them does not exist just leave it out.", unknown=3)
s("parts-plain", "parts",
  "Two things: (1) {team}, {cat}, {q}; (2) {team2}, {cat2}, {q2}. In each case, who was over their budget?")
s("parts-mail", "parts",
  "Hi both,\nas agreed on the phone: for {team} please look at {cat} in the {q:ord}, for {team2} at {cat2} in the "
  "{q2:ord}. I don't need anything about {team2} for {cat} or the other way round. Who had spent too much?\nTeo")
s("parts-spoken", "parts",
  "so from {team} i need the ones over on {cat:casual}, {q}, and then separately from {team2} the ones over on "
  "{cat2:casual}, that was {q2}")
s("department", "dept", "List everyone in the {dept} department who was over their {cat} budget in {q}.")
s("department-head", "dept",
  "The head of {dept} wants to know, across all teams of the department, whose {cat:long} were above budget from "
  "{q:months}.")
s("department-casual", "dept", "whole of {dept} pls, {cat}, {q:slash}. who went over? all their teams not just one")
s("department-level", "dept",
  "Among the {level} in {dept} (all teams), did anyone spend more on {cat} in {q} than budgeted?", level=True)
s("department-level-memo", "dept",
  "Memo: the {level} of {dept} got a reminder about {cat} budgets. To see whether it was needed, list which of these "
  "{level} had exceeded theirs in the {q:ord}; the other levels got no reminder and are not of interest.", level=True)
s("manager", "manager", "Who in {manager}'s team went over the {cat} budget in {q}?")
s("manager-indirect", "manager",
  "{manager} asked me in the lift whether the people she or he is responsible for kept to their {cat} budgets during "
  "{q:three}. I said I'd check. Who did not?")
s("manager-letter", "manager",
  "Dear colleagues,\nas {manager} is on a boat until the end of the month and cannot be reached, I take care of the "
  "budget talks. Who reporting to {manager:first} has spent more than the {cat} budget of {q:year}? Do not include "
  "people of other managers; {other} is dealt with by Wolfgang.\nBest, Henrike")
s("manager-short", "manager", "{manager} reports - {cat:verb} - {q:mon} - breaches?")
s("manager-two", "manager2",
  "{manager} leads more than one team. Over all of them: who exceeded the {cat} budget in {q}?")
s("manager-two-hidden", "manager2",
  "Everyone who reports to {manager} and was above their {cat} budget in the {q:ord}, please. All of {manager:first}'s "
  "people, wherever they sit.")
s("twin-manager", "twin_manager",
  "{q}, {cat}: who went over in the {word} team? I mean the one of {manager}, there are several with {word} in the name.")
s("twin-manager-chat", "twin_manager",
  "can't remember what they are called exactly, something with \"{word}\", {manager} is in charge there. need their "
  "people who were above the {cat} budget in {q:months}")
s("twin-department", "twin_dept",
  "Who overspent on {cat} in {q:nth} in the {word} team? Not the others with {word} in their name, the one that belongs "
  "to {dept}.")
s("typo-name", "team_typo", "Need the {cat} overspenders of the {team:typo} team, {q} 2025.")
s("typo-name-mail", "team_typo",
  "Hello, sorry for my spelling, I write from the phone in the train. For teem {team:typo} I shuold get evrybody who "
  "was abov the {cat} buget form {q:months}. Thanks a lot, Gerd")
s("colleagues", "colleagues",
  "{person} complained that colleagues in the same team are careless with {cat} money. In {q}, who in that team, "
  "{person:first} included, exceeded the budget?")
s("colleagues-except", "colleagues",
  "Take the team in which {person} works. Apart from {person:first}, whose {cat:long} in the {q:ord} were too high for "
  "their budget?", exclude_self=True)

# -- people --------------------------------------------------------------------------------------------

s("person-any", "person", "Was {person} over any budget in {q}? All categories.", cells="1q5c", empty=1)
s("person-any-upset", "person",
  "{person} is really upset because payroll hinted at \"several exceeded budgets\" for {q:months}. Which ones were "
  "that, if any? I'd like to give a straight answer, category by category.", cells="1q5c", empty=1)
s("person-year", "person",
  "In which quarters of 2025 did {person} spend more on {cat} than the budget allowed?", cells="year", empty=1)
s("person-year-reference", "person",
  "Writing a reference for {person}, need to know about money manners: list all quarters this year (2025) in which "
  "the {cat} budget or the {cat2} budget was exceeded.", cells="year2c", empty=1)
s("person-half", "person",
  "{person}, {half:h} 2025, {cat} + {cat2}: over in any quarter?", cells="half2c", empty=2)
s("person-unknown", "person",
  "Could you go through the {cat} and {cat2} spending of {person} for both {q} and {q2} and report each time the "
  "budget was exceeded?", cells="2q2c", unknown=2, empty=0)
s("people-pair", "people2",
  "{person} and {person2} travel and order together a lot. Who of the two was over on {cat} or {cat2} in {q}?",
  cells="1q2c", empty=1)
s("people-pair-quarters", "people2",
  "Please check {person2} and {person}: {cat}, each quarter from {q} to {q3}. Where was the budget exceeded?",
  cells="3q1c", empty=1)
s("people-three", "people3",
  "Only these three, please: {person}, {person2}, {person3}. Who exceeded the {cat} budget in {q}?", empty=1)
s("people-three-apart", "apart3",
  "The expense reports of {person}, {person2} and {person3} (different teams!) were picked at random for the {q:ord}. "
  "Whose {cat:long} were above the personal budget?", empty=1)
s("people-apart-two", "apart2",
  "picked for spot check: {person}; {person2}. quarters {q} and {q2}. categories {cat} and {cat2}. report breaches",
  cells="2q2c", empty=1)
s("people-first-names", "first_names",
  "In {team} there are {person:first}, {person2:first} and {person3:first}. Of those three, who overspent on {cat} in "
  "{q} or {q2}?", cells="2q1c")

# -- leaving some out ----------------------------------------------------------------------------------

s("except-one", "team",
  "Everyone in {team} except {person} who went above the {cat} budget in {q}.", exclude=1)
s("except-two", "team",
  "I have already spoken to {person} and {person2}. Who else in {team} was over their {cat} budget {q:between}?",
  exclude=2)
s("except-mail", "team",
  "Re: Re: Fwd: numbers\n> the projector in room 3 is fixed\n> {other} moved their date\nThanks. Then only this is "
  "open: {team}, who was over with {cat} in the {q:nth}? Without {person:first}, that case is settled.", exclude=1)
s("level-only", "team", "Only the {level} of {team}: who exceeded the {cat} budget in {q} or in {q2}?", level=True,
  cells="2q1c")
s("level-without", "team",
  "Setting the {level} aside, which members of {team} spent more than their {cat} or {cat2} budget in {q:months}?",
  not_level=True, cells="1q2c")
s("leave-only", "team",
  "Some people in {team} were on leave for part of the year. Of those who had leave in {q}, who still exceeded the "
  "{cat} or the {cat2} budget of that quarter?", leave="only", cells="1q2c")
s("leave-without", "team",
  "{team}, {cat}, {q:months}: who was over budget? Please skip anyone who had leave in those months, HR looks at them "
  "separately.", leave="without")
s("leave-both", "two_teams",
  "HR here. From {team} and {team2}, take those with at least one month of leave in the {q:ord}. Did their {cat} "
  "spending exceed the budget that was left to them? Who?", leave="only", empty=1)
s("custom-only", "team",
  "People who negotiate their own budget should at least keep it. Which members of {team} had a personal agreement for "
  "{cat} valid in {q} and exceeded it in that quarter?", custom="only")
s("custom-only-two", "two_teams",
  "Check of personal budget agreements for {cat}, teams {team} and {team2}: where such an agreement applied in "
  "{q:months}, was it exceeded, and by whom?", custom="only")
s("custom-without", "team",
  "Who in {team} broke the standard {cat} budget in {q}? Leave out everybody for whom an individual agreement applied in "
  "that quarter.", custom="without")

# -- thresholds and rankings ---------------------------------------------------------------------------

s("threshold", "team",
  "Who in {team} was over the {cat} budget in {q} by more than {amount} EUR?", min_over=True)
s("threshold-chat", "team",
  "a few euros over is fine with me. but anyone in {team} who's MORE than {amount} euros above the {cat} budget, "
  "{q:mon}, i want to know", min_over=True)
s("threshold-rule", "team",
  "New rule: overruns up to and including {amount} EUR are tolerated. Who in {team} would have needed an explanation "
  "for {cat} in {q} or {q2} under that rule?", min_over=True, cells="2q1c")
s("threshold-dept", "dept",
  "Across {dept}: {cat} in {q}, overruns above {amount} EUR only.", min_over=True)
s("percent", "team",
  "Which people in {team} overshot their {cat} budget by more than {percent} percent in the {q:ord}?", min_ratio=True)
s("percent-steering", "two_teams",
  "The steering group only discusses cases beyond {percent}% overrun. Prepare the list for {cat}, {q:slash}, teams "
  "{team} and {team2}.", min_ratio=True)
s("worst", "team",
  "Who in {team} exceeded the {cat} budget by the largest amount in {q}? Just that one person.", pick="most")
s("worst-two-quarters", "team",
  "The single worst {cat} overrun (in EUR) in {team} in {q:months} or {q2:months}: whose and in which quarter?",
  pick="most", cells="2q1c")
s("worst-relative", "two_teams",
  "Relative to what they had, who among {team} and {team2} overspent most on {cat} in {q}? I mean percentage of the own "
  "budget, one name.", pick="most_ratio")
s("top-two", "team",
  "Give me the two biggest overruns, in euros, of {team} for {cat} or {cat2} in {q}. If there is only one at all, "
  "then that one.", pick="most", count=2, cells="1q2c")
s("narrowly", "team",
  "Of those in {team} who were over their {cat} budget in {q:months}, whose overrun was the smallest in euros? Only "
  "this person.",
  pick="least")
s("podium", "dept",
  "The podium of shame for {dept}, {q}: the three largest {cat} overruns in EUR (fewer if there are fewer).",
  pick="most", count=3)

# -- unknown teams -------------------------------------------------------------------------------------

s("maybe-unknown", "team",
  "Somebody mentioned the {team} team. If we have such a team: who there was over the {cat} budget in {q} or {q2}?",
  cells="2q1c", unknown=2)

# -- long mails ----------------------------------------------------------------------------------------

s("mail-chain", "team",
  "From: Deirdre\nDate: {q:iso}\nSubject: FW: FW: parking + numbers\n\nSee below, can you take this?\n\n> From: Clive\n> "
  "1) Level 2 of the garage is closed on Friday.\n> 2) The caterer of the autumn party wants a head count, {other} has "
  "not answered yet.\n> 3) We promised {cat} figures: for {team}, everybody whose spending in the last full quarter was "
  "above the budget.\n> 4) The plants need water.\n\nOnly point 3 is for you.")
s("mail-minutes", "team",
  "Minutes, item 7: \"{cat2:cap} was discussed and postponed. For {cat}, finance will name the members of {team} who "
  "exceeded their budget in {q}. {person} need not be named, the overrun (if any) was approved in the meeting.\" Please "
  "prepare what finance has to deliver.", exclude=1)
s("mail-apology", "two_teams",
  "Dear all, first of all apologies for the long silence, the move of the archive took longer than planned and half of "
  "the boxes are still in the wrong city. To the point: the auditors come on Tuesday and would like to see a list of "
  "staff from {team} and from {team2} with {cat:long} in excess of the personal budget for the {q:ord} of 2025. They "
  "are not interested in anything else, although they did ask about our plants. Shreya")
s("mail-half-relevant", "dept",
  "Hi! three questions, but two of them I could answer myself in the meantime (how many desks {other} needs, and who "
  "waters the cactus). Remaining: in {dept}, who had more {cat} spending than budget in {q:months}? Thanks & sunny "
  "greetings")
s("status-poll", "people3",
  "Poll for the weekly: has any of {person} / {person2} / {person3} gone past the {cat} or the {cat2} budget of the "
  "{q:nth}? Just the positives.", cells="1q2c", empty=1)
s("grandmother", "team",
  "Explain it to me as if I were your grandmother, but first get the facts: which of the dear people in {team} put more "
  "on the {cat} tab than their pocket money for {q:three} allowed?")
s("controller-abbrev", "manager",
  "Pls ext. list o/s {cat} p. head, mgr {manager}, {q:slash}, only > bdgt. Tx")
s("double-check", "team",
  "My spreadsheet shows overruns in {team} for {cat} in {q}, but I only added up the raw amounts and compared them with "
  "the standard budgets, which is surely wrong. What is the correct list?")
s("quiz", "team",
  "Friday quiz! Category: {cat}. Season: {q:months}. Candidates: all of {team}. Question: who spent beyond the personal "
  "limit?")
s("insurance", "two_teams",
  "Our insurer needs it in this form. Units concerned: {team}; {team2}. Cost type: {cat:cap}. Reporting period: "
  "{q:year}. Requested: individuals with expenditure above entitlement.")

# -- other languages -----------------------------------------------------------------------------------

s("de-plain", "team", "Wer aus dem Team {team} hat im {q:de} 2025 sein {cat:de} überschritten?", language="de")
s("de-mail", "team",
  "Guten Morgen,\nbevor ich in den Urlaub gehe, bräuchte ich noch eine Liste aller Personen aus {team}, die in den "
  "Monaten {q:de_months} für {cat:de2} mehr ausgegeben haben, als ihnen zustand. {person} bitte weglassen, das ist "
  "geklärt.\nViele Grüße, Wolfgang", language="de", exclude=1)
s("de-half", "team",
  "Budgetüberschreitungen {team}, {cat:de}, im {half:de} (je Quartal und Person)", language="de", cells="half")
s("de-dept", "dept",
  "Gibt es im Bereich {dept} jemanden, der beim {cat:de} im {q:de} mehr als {amount} Euro drüber lag?",
  language="de", min_over=True)
s("fr-plain", "team",
  "Qui, dans l'équipe {team}, a dépassé son budget {cat:fr} au {q:fr} 2025 ?", language="fr")
s("fr-mail", "manager",
  "Bonjour, je remplace une collègue à la comptabilité. Pourriez-vous m'indiquer quelles personnes de l'équipe dirigée par "
  "{manager} ont dépensé plus que leur budget {cat:fr} sur la période {q:fr_months} ? Merci d'avance.", language="fr")
s("es-plain", "two_teams",
  "¿Quién de los equipos {team} y {team2} se pasó del presupuesto de {cat:es} en el {q:es}?", language="es")
s("es-half", "team",
  "Necesito saber, trimestre por trimestre, quién del equipo {team} gastó de más en {cat:es} en el {half:es} de 2025.",
  language="es", cells="half")
s("it-plain", "team",
  "Chi del team {team} ha sforato il budget {cat:it} nel {q:it}? Mi servono anche gli importi.", language="it")
s("nl-plain", "team",
  "Wie van {team} is in het {q:nl} over het eigen {cat:nl} heen gegaan? {person} hoeft er niet bij.", language="nl",
  exclude=1)
s("pt-plain", "team",
  "Bom dia! Quem da equipa {team} gastou mais do que o orçamento de {cat:pt} no {q:pt} ou no {q2:pt} de 2025?",
  language="pt", cells="2q1c")
s("pl-plain", "team",
  "Kto z zespołu {team} przekroczył w {q:pl} 2025 swój budżet na {cat:pl}?", language="pl")
s("sv-plain", "team",
  "Vilka i {team} har överskridit sin {cat:sv} under {q:sv} 2025? Bara de som verkligen ligger över.", language="sv")
s("tr-plain", "team",
  "{team} ekibinde {q:tr} (2025) kişisel {cat:tr} bütçesini aşanlar kimler?", language="tr")
s("ja-plain", "team",
  "2025年{q:ja}に、{team}チームで{cat:ja}の予算を超過した人を教えてください。", language="ja")
