"""Date phrases in eight languages, each with the date that it means.

`deadlines(lang, base)` lists (kind, phrase, date): the date comes from the calendar, the phrase from the date.
Conventions of the data: "end of the week" is its Friday, "before 14 May" is 13 May, "middle of May" is 15 May,
working days are Monday to Friday, a weekday is the next one after the day of writing.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import date, timedelta

MONTHS = {
    "en": "January February March April May June July August September October November December",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "nl": "januari februari maart april mei juni juli augustus september oktober november december",
    "pt": "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
    "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "pl": "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia",
}
WEEKDAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "de": "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "es": "lunes martes miércoles jueves viernes sábado domingo",
    "nl": "maandag dinsdag woensdag donderdag vrijdag zaterdag zondag",
    "pt": "segunda-feira terça-feira quarta-feira quinta-feira sexta-feira sábado domingo",
    "it": "lunedì martedì mercoledì giovedì venerdì sabato domenica",
    "pl": "poniedziałku wtorku środy czwartku piątku soboty niedzieli",  # genitive, after "do"
}
#: After "w": the accusative, with its preposition.
PL_ON = ("w poniedziałek", "we wtorek", "w środę", "w czwartek", "w piątek", "w sobotę", "w niedzielę")

#: kind -> phrases; {w} weekday, {n} number, {d} day, {m} month, {y} year, {iso} ISO date.
BY: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "weekday": ("by {w}", "by {w} at the latest", "no later than {w}", "by {w} morning", "by noon on {w}"),
        "next_week": ("by {w} next week", "by {w} of next week"),
        "end_week": ("by the end of the week", "by the end of this week", "before the week is out"),
        "end_next_week": ("by the end of next week",),
        "end_month": ("by the end of the month", "by month end", "before the month is out"),
        "days": ("within {n} days", "in the next {n} days", "within {n} days from today"),
        "fortnight": ("within two weeks", "within a fortnight", "two weeks from today at the latest"),
        "hours": ("within {n} hours", "in the next {n} hours"),
        "workdays": ("within {n} working days", "within {n} business days"),
        "tomorrow": ("by tomorrow", "by tomorrow evening", "by tomorrow at the latest"),
        "overmorrow": ("by the day after tomorrow",),
        "today": ("today", "by the end of today", "before you close today"),
        "date": ("by {d} {m}", "by {m} {d}th", "by the {d}th of {m}", "by {d} {m} {y}", "by {iso}",
                 "no later than {d} {m}"),
        "before": ("before {d} {m}", "before the {d}th of {m}", "before {m} {d}th"),
        "middle": ("by the middle of {m}", "by mid-{m}"),
        "day_of_month": ("by the {d}th",),
    },
    "de": {
        "weekday": ("bis {w}", "bis spätestens {w}", "bis {w} früh"),
        "next_week": ("bis {w} nächster Woche",),
        "end_week": ("bis Ende der Woche", "noch in dieser Woche"),
        "end_next_week": ("bis Ende nächster Woche",),
        "end_month": ("bis Ende des Monats", "bis Monatsende"),
        "days": ("innerhalb von {n} Tagen", "binnen {n} Tagen"),
        "fortnight": ("innerhalb von zwei Wochen", "in den nächsten zwei Wochen"),
        "hours": ("innerhalb von {n} Stunden",),
        "workdays": ("innerhalb von {n} Arbeitstagen",),
        "tomorrow": ("bis morgen", "bis morgen Abend"),
        "overmorrow": ("bis übermorgen",),
        "today": ("heute noch", "bis heute Abend"),
        "date": ("bis zum {d}. {m}", "bis spätestens {d}. {m}", "bis {d}. {m} {y}", "bis zum {d}.{mm}."),
        "before": ("vor dem {d}. {m}",),
        "middle": ("bis Mitte {m}",),
        "day_of_month": ("bis zum {d}.",),
    },
    "fr": {
        "weekday": ("d'ici {w}", "au plus tard {w}", "d'ici {w} matin"),
        "next_week": ("au plus tard {w} de la semaine prochaine",),
        "end_week": ("d'ici la fin de la semaine", "avant la fin de la semaine"),
        "end_next_week": ("d'ici la fin de la semaine prochaine",),
        "end_month": ("d'ici la fin du mois", "avant la fin du mois"),
        "days": ("sous {n} jours", "dans les {n} jours"),
        "fortnight": ("dans les deux semaines",),
        "hours": ("sous {n} heures",),
        "workdays": ("sous {n} jours ouvrés",),
        "tomorrow": ("d'ici demain", "d'ici demain soir"),
        "overmorrow": ("d'ici après-demain",),
        "today": ("aujourd'hui même", "d'ici ce soir"),
        "date": ("d'ici le {d} {m}", "au plus tard le {d} {m}", "d'ici le {d} {m} {y}"),
        "before": ("avant le {d} {m}",),
        "middle": ("d'ici la mi-{m}",),
        "day_of_month": ("d'ici le {d}",),
    },
    "es": {
        "weekday": ("a más tardar el {w}", "el {w} como muy tarde"),
        "next_week": ("a más tardar el {w} de la semana que viene",),
        "end_week": ("antes de que acabe la semana", "a finales de esta semana como muy tarde"),
        "end_next_week": ("a finales de la semana que viene como muy tarde",),
        "end_month": ("antes de que acabe el mes", "antes de fin de mes"),
        "days": ("en un plazo de {n} días", "en los próximos {n} días"),
        "fortnight": ("en un plazo de dos semanas",),
        "hours": ("en las próximas {n} horas",),
        "workdays": ("en un plazo de {n} días laborables",),
        "tomorrow": ("mañana como muy tarde", "mañana a más tardar"),
        "overmorrow": ("pasado mañana a más tardar",),
        "today": ("hoy mismo",),
        "date": ("a más tardar el {d} de {m}", "el {d} de {m} como muy tarde"),
        "before": ("antes del {d} de {m}",),
        "middle": ("a mediados de {m} como muy tarde",),
        "day_of_month": ("a más tardar el día {d}",),
    },
    "nl": {
        "weekday": ("uiterlijk {w}", "uiterlijk {w} ochtend"),
        "next_week": ("uiterlijk {w} volgende week",),
        "end_week": ("voor het einde van de week", "nog deze week"),
        "end_next_week": ("voor het einde van volgende week",),
        "end_month": ("voor het einde van de maand",),
        "days": ("binnen {n} dagen",),
        "fortnight": ("binnen twee weken",),
        "hours": ("binnen {n} uur",),
        "workdays": ("binnen {n} werkdagen",),
        "tomorrow": ("uiterlijk morgen", "uiterlijk morgenavond"),
        "overmorrow": ("uiterlijk overmorgen",),
        "today": ("vandaag nog",),
        "date": ("uiterlijk {d} {m}", "uiterlijk op {d} {m} {y}"),
        "before": ("vóór {d} {m}",),
        "middle": ("uiterlijk half {m}",),
        "day_of_month": ("uiterlijk de {d}e",),
    },
    "pt": {
        "weekday": ("até {w}", "o mais tardar até {w}"),
        "next_week": ("até {w} da próxima semana",),
        "end_week": ("até ao fim da semana", "ainda esta semana"),
        "end_next_week": ("até ao fim da próxima semana",),
        "end_month": ("até ao fim do mês",),
        "days": ("no prazo de {n} dias", "nos próximos {n} dias"),
        "fortnight": ("no prazo de duas semanas",),
        "hours": ("nas próximas {n} horas",),
        "workdays": ("no prazo de {n} dias úteis",),
        "tomorrow": ("até amanhã", "até amanhã à noite"),
        "overmorrow": ("até depois de amanhã",),
        "today": ("ainda hoje",),
        "date": ("até {d} de {m}", "até ao dia {d} de {m}"),
        "before": ("antes de {d} de {m}", "antes do dia {d} de {m}"),
        "middle": ("até meados de {m}",),
        "day_of_month": ("até ao dia {d}",),
    },
    "it": {
        "weekday": ("entro {w}", "entro e non oltre {w}"),
        "next_week": ("entro {w} della prossima settimana",),
        "end_week": ("entro la fine della settimana",),
        "end_next_week": ("entro la fine della prossima settimana",),
        "end_month": ("entro la fine del mese", "entro fine mese"),
        "days": ("entro {n} giorni", "nei prossimi {n} giorni"),
        "fortnight": ("entro due settimane",),
        "hours": ("entro {n} ore",),
        "workdays": ("entro {n} giorni lavorativi",),
        "tomorrow": ("entro domani", "entro domani sera"),
        "overmorrow": ("entro dopodomani",),
        "today": ("oggi stesso", "entro stasera"),
        "date": ("entro il {d} {m}", "entro il {d} {m} {y}"),
        "before": ("prima del {d} {m}",),
        "middle": ("entro metà {m}",),
        "day_of_month": ("entro il {d}",),
    },
    "pl": {
        "weekday": ("do {w}", "najpóźniej do {w}"),
        "next_week": ("do {w} w przyszłym tygodniu",),
        "end_week": ("do końca tygodnia", "jeszcze w tym tygodniu"),
        "end_next_week": ("do końca przyszłego tygodnia",),
        "end_month": ("do końca miesiąca",),
        "days": ("w ciągu {n} dni",),
        "fortnight": ("w ciągu dwóch tygodni",),
        "hours": ("w ciągu {n} godzin",),
        "workdays": ("w ciągu {n} dni roboczych",),
        "tomorrow": ("do jutra", "najpóźniej do jutra wieczorem"),
        "overmorrow": ("do pojutrza",),
        "today": ("jeszcze dzisiaj",),
        "date": ("do {d} {m}", "najpóźniej do {d} {m}"),
        "before": ("przed {d} {m}",),
        "middle": ("do połowy {m}",),
        "day_of_month": ("do {d}-go",),
    },
}  # fmt: skip

ON: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {"weekday": ("on {w}", "this coming {w}"), "date": ("on {d} {m}", "on the {d}th of {m}", "on {m} {d}th"),
           "day_of_month": ("on the {d}th",), "tomorrow": ("tomorrow",), "overmorrow": ("the day after tomorrow",),
           "days": ("in {n} days", "{n} days from now"), "next_week": ("on {w} next week",)},
    "de": {"weekday": ("am {w}", "am kommenden {w}"), "date": ("am {d}. {m}",), "tomorrow": ("morgen",),
           "overmorrow": ("übermorgen",), "days": ("in {n} Tagen",)},
    "fr": {"weekday": ("{w}", "ce {w}"), "date": ("le {d} {m}",), "tomorrow": ("demain",), "days": ("dans {n} jours",)},
    "es": {"weekday": ("el {w}", "este {w}"), "date": ("el {d} de {m}",), "tomorrow": ("mañana",),
           "days": ("dentro de {n} días",)},
    "nl": {"weekday": ("aanstaande {w}",), "date": ("op {d} {m}",), "tomorrow": ("morgen",), "days": ("over {n} dagen",)},
    "pt": {"weekday": ("na próxima {w}",), "date": ("no dia {d} de {m}",), "tomorrow": ("amanhã",),
           "days": ("daqui a {n} dias",)},
    "it": {"weekday": ("{w} prossimo",), "date": ("il {d} {m}",), "tomorrow": ("domani",), "days": ("tra {n} giorni",)},
    "pl": {"weekday": ("{on}",), "date": ("{d} {m}",), "tomorrow": ("jutro",), "days": ("za {n} dni",)},
}  # fmt: skip

PAST: dict[str, tuple[str, ...]] = {
    "en": ("on {d} {m}", "on the {d}th of {m}", "on {w} {d} {m}"),
    "de": ("am {d}. {m}", "am {w}, den {d}. {m}"),
    "fr": ("le {d} {m}", "le {w} {d} {m}"),
    "es": ("el {d} de {m}", "el {w} {d} de {m}"),
    "nl": ("op {d} {m}", "op {w} {d} {m}"),
    "pt": ("no dia {d} de {m}", "a {d} de {m}"),
    "it": ("il {d} {m}", "{w} {d} {m}"),
    "pl": ("{d} {m}", "{on} {d} {m}"),
}

#: Days whose written form varies (1st, 2nd, l'8, 1er ...) are left out.
_PLAIN_DAYS = frozenset({4, 5, 6, 7, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 24, 25, 26, 27, 28, 29, 30})


def _fill(template: str, lang: str, day: date, n: int = 0) -> str:
    return template.format(
        w=WEEKDAYS[lang].split()[day.weekday()], n=n, d=day.day, m=MONTHS[lang].split()[day.month - 1],
        mm=f"{day.month:02d}", y=day.year, iso=day.isoformat(), on=PL_ON[day.weekday()],
    )  # fmt: skip


def _after_workdays(base: date, n: int) -> date:
    day = base
    while n:
        day += timedelta(days=1)
        n -= day.weekday() < 5
    return day


def _targets(base: date) -> Iterator[tuple[str, date, date, int]]:
    """(kind, date meant, date written, number written) of everything that can be said on `base`."""
    friday = base + timedelta(days=4 - base.weekday())
    month_end = base.replace(day=calendar.monthrange(base.year, base.month)[1])
    for ahead in range(1, 7):
        day = base + timedelta(days=ahead)
        if day.weekday() != base.weekday():
            yield "weekday", day, day, 0
    for weekday in range(5):
        day = friday + timedelta(days=3 + weekday)
        yield "next_week", day, day, 0
    if base < friday:
        yield "end_week", friday, friday, 0
    yield "end_next_week", friday + timedelta(days=7), friday, 0
    if base < month_end:
        yield "end_month", month_end, month_end, 0
    for n in (3, 5, 7, 8, 10, 14, 20, 21, 30):
        day = base + timedelta(days=n)
        yield "days", day, day, n
    yield "fortnight", base + timedelta(days=14), base, 0
    for n in (24, 48):
        yield "hours", base + timedelta(days=n // 24), base, n
    for n in (3, 4, 5, 6, 8, 10):
        yield "workdays", _after_workdays(base, n), base, n
    for ahead, kind in enumerate(("today", "tomorrow", "overmorrow")):
        yield kind, base + timedelta(days=ahead), base, 0
    for ahead in range(4, 45):
        day = base + timedelta(days=ahead)
        if day.day in _PLAIN_DAYS:
            yield "date", day, day, 0
            yield "before", day - timedelta(days=1), day, 0
            if ahead < 27:
                yield "day_of_month", day, day, 0
            if day.day == 15 and ahead > 9:
                yield "middle", day, day, 0


def deadlines(lang: str, base: date, *, on: bool = False) -> dict[str, list[tuple[str, date]]]:
    """Per kind the phrases that can be written on `base` and the dates that they mean."""
    table = (ON if on else BY)[lang]
    found: dict[str, list[tuple[str, date]]] = {}
    for kind, meant, written, n in _targets(base):
        for template in table.get(kind, ()):
            found.setdefault(kind, []).append((_fill(template, lang, written, n), meant))
    return found


def past_phrases(lang: str, day: date) -> list[str]:
    return [_fill(template, lang, day) for template in PAST[lang]]


def plain_day(day: date) -> bool:
    return day.day in _PLAIN_DAYS
