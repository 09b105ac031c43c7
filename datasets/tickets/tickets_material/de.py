"""German mails."""

from __future__ import annotations

from functools import partial

from tickets_material.model import scenario

s = partial(scenario, lang="de")

SCENARIOS = [
    s("de-paket-nachbar", "[Paket nicht angekommen|Bestellung {o1}|Wo bleibt {o1}?]", """
laut Sendungsverfolgung ({n_track}) liegt das Paket zur Bestellung {o1} seit dem Wochenende beim Nachbarn. [Der Nachbar
weiß von nichts.|Welcher Nachbar, verrät mir niemand.] {frage}
""", fault="delivery", money={"m1": (90, 290)}, cur="EUR CHF", alts={"frage": [
        ("Bitte schicken Sie Ersatz, ich brauche das Gerät {d1}.", {}),
        ("Ich möchte keinen Ersatz mehr, sondern die {m1} zurück.", {"refund": {"m1": 1}}),
        ("Falls es {d1} nicht auftaucht, hätte ich gern die {m1} zurück.", {}),
        ("Meine Bestellung {x1} kam problemlos, daran liegt es also nicht. Bitte forschen Sie nach, es eilt nicht.", {}),
        ("Ersatz oder die {m1} zurück, das überlasse ich Ihnen.", {}),
    ]}),
    s("de-hausverwaltung", "[Heizungsausfall|Thermostate Lindenhof|Warm: Störung]", """
ich verwalte die Wohnanlage Lindenhof, 24 Wohnungen, überall Ihre Warm-Thermostate. {wer} [Die Mieter rufen im
Minutentakt an.|Draußen friert es.] {frist}
""", fault="defect", alts={
        "wer": [("Seit heute Nacht sind in allen Wohnungen die Anzeigen schwarz und die Heizkörper kalt.",
                 {"level": "down", "reach": "many"}),
                ("In der Wohnung von Frau Kramer ist die Anzeige seit heute Nacht schwarz und die Heizung kalt, sonst läuft "
                 "alles.", {"level": "down"}),
                ("Bei etwa der Hälfte geht die Uhr eine Stunde vor, geheizt wird normal.", {"reach": "many"}),
                ("Heute Nacht waren alle Anzeigen schwarz und alle Heizungen kalt. Inzwischen läuft alles wieder, ich "
                 "möchte nur wissen, woran es lag.", {"level": "down", "reach": "many", "over": True})],
        "frist": [("Ich bitte um Rückmeldung {d1:soon}.", {}), ("Ich bitte um Rückmeldung.", {}),
                  ("Der Eigentümerversammlung muss ich {d1:late} einen Bericht vorlegen.", {})]}),
    s("de-doppelt-abgebucht", "[Doppelte Abbuchung|Lastschrift|zweimal abgebucht, {o1}]", """
Sie haben für Bestellung {o1} zweimal {m1} abgebucht, {q1} und am Tag danach. [Rechnung war {n_inv}.|Rechnungsnummer
{n_inv}.] {wunsch}
""", fault="billing", money={"m1": (80, 330)}, cur="EUR CHF", alts={"wunsch": [
        ("Bitte erstatten Sie mir die zweite Abbuchung {d1}.", {"refund": {"m1": 1}}),
        ("Verrechnen Sie die zweite Abbuchung gern mit meinem nächsten Einkauf.", {}),
        ("Bitte erstatten Sie die zweite Abbuchung, sonst gehe ich zum Anwalt.", {"refund": {"m1": 1}, "legal": True}),
        ("Die zweite Abbuchung hat meine Bank schon zurückgeholt. Bitte schicken Sie mir deshalb keine Mahnung.", {}),
        ("Das ist jetzt meine dritte Mail dazu: Ich will die zweite Abbuchung zurück.",
         {"refund": {"m1": 1}, "repeat": True}),
    ]}),
    s("de-schloss-schmort", "[Türschloss Key|Schloss|Problem mit dem Key]", """
{was} Es ist das Key an der [Kellertür|Haustür], gekauft mit Bestellung {o1}, Seriennummer {n_serial}. [Was soll ich
tun?|Wie gehe ich vor?]
""", fault="defect", alts={"was": [
        ("Aus dem Schloss kam gestern Rauch, das Gehäuse ist angeschmort.", {"danger": True, "level": "down"}),
        ("Das Schloss braucht neuerdings drei Sekunden länger zum Öffnen.", {}),
        ("Das Schloss rührt sich nicht mehr, auch nicht mit neuen Batterien.", {"level": "down"}),
        ("Beim Batteriewechsel ist mir eine Zelle in der Hand heiß geworden und aufgeplatzt.", {"danger": True}),
        ("Das Schloss quietscht beim Zusperren. Eine Antwort {d1:soon} wäre schön, dann ist mein Schwiegersohn da.", {}),
    ]}),
    s("de-widerruf", "[Widerruf|Widerruf {o1}|Rücksendung]", """
hiermit widerrufe ich fristgerecht meine Bestellung {o1}. Das Gerät ist einwandfrei, [gefällt mir aber nicht|passt aber
farblich nicht]. {geld} [Die Bestellung {x1} behalte ich selbstverständlich.|]
""", wish="return", money={"m1": (110, 310), "m2": (5, 9)}, cur="EUR", alts={"geld": [
        ("Bitte erstatten Sie {m1} zuzüglich {m2} Versandkosten.", {"refund": {"m1": 1, "m2": 1}}),
        ("Bitte erstatten Sie {m1} {d1:late}.", {"refund": {"m1": 1}}),
        ("Statt der {m1} genügt mir ein Gutschein.", {}),
        ("Bitte erstatten Sie {m1}; die {m2} für den Versand trage ich.", {"refund": {"m1": 1}}),
    ]}, rows=4),
    s("de-dsgvo", "[Mein Konto|Anfrage|Kundennr. {n_cust}]", """
{was} Meine Kundennummer lautet {n_cust}. {frist}
""", wish="account", alts={
        "was": [("ich bitte um Auskunft nach Art. 15 DSGVO über alle zu meiner Person gespeicherten Daten.", {"data": True}),
                ("bitte ändern Sie meine Anschrift in Gartenweg 7.", {}),
                ("ich verlange nach Art. 17 DSGVO die Löschung aller meiner Daten.", {"data": True}),
                ("bitte streichen Sie mich aus dem Verteiler für Werbung.", {})],
        "frist": [("Ich erwarte die Erledigung {d1:late}.", {}), ("Vielen Dank.", {}), ("Bitte erledigen Sie das {d1}.", {}),
                  ("Please answer in English, I am only learning German.", {"reply": "en"})]}),
    s("de-app-wg", "[App startet nicht|Home-App|App kaputt]", """
{wer} Neu installiert haben wir schon. [Das Licht geht nur noch am Schalter, wie bei Oma.|Handy neu gestartet, klar.]
{frist}
""", fault="service", alts={
        "wer": [("in unserer WG startet die Home-App bei keinem von uns vieren mehr.",
                 {"level": "down", "reach": "household"}),
                ("die Home-App zeigt bei mir nach dem Update alles auf Niederländisch.", {}),
                ("auf allen Stationen unseres Pflegeheims startet die Home-App nicht mehr, das Personal kommt nicht an die "
                 "Türsteuerung.", {"level": "down", "reach": "many"}),
                ("auf meinem Handy startet die Home-App nicht mehr.", {"level": "down"})],
        "frist": [("Geht das {d1:soon} wieder?", {}), ("Bitte um Hilfe.", {}),
                  ("Wir sind {e1:late} alle verreist, dann muss es laufen.", {})]}, rows=4),
    s("de-rechnung-korrektur", "[Rechnungskorrektur|Falsche Rechnung {n_inv}|Rechnung]", """
auf der Rechnung {n_inv} zu Bestellung {o1} {fehler}. Unsere Buchhaltung nimmt sie so nicht an. {frist} [Für weitere
Fragen: Durchwahl {=418}.|]
""", fault="billing", money={"m1": (90, 300), "m2": (580, 950)}, cur="EUR", alts={
        "fehler": [("fehlt die Steuernummer", {}), ("steht der falsche Firmenname", {}),
                   ("stehen {m1} Versandkosten, die nicht vereinbart waren", {})],
        "frist": [("Wir brauchen sie {d1} korrigiert.", {}), ("Das hat Zeit.", {}),
                  ("Dasselbe gilt für {o2}.", {}),
                  ("Außerdem wurden {m2} zu viel abgebucht, die wir zurückerwarten.", {"refund": {"m2": 1}}),
                  ("Wir brauchen sie {d1:soon} korrigiert.", {})]}),
    s("de-lob-und-frage", "[Lob und Frage|Klingelton|Frage zur Bell]", """
die Bell ist wirklich hübsch, [meine Frau ist ganz begeistert|auch die Nachbarn sind neidisch]. {frage}
""", wish="question", level="answer", money={"m1": (20, 40)}, cur="EUR", alts={"frage": [
        ("Kann man den Klingelton austauschen?", {}),
        ("Kann man den Klingelton austauschen? Die Kinder kommen {e1:soon} und bis dahin hätte ich gern die Antwort.", {}),
        ("Gibt es sie auch in Messing? Die aus {x1} passt so gut zur Tür.", {}),
        ("Was kostet ein zweiter Gong? Im Laden verlangen sie {m1}.", {}),
    ]}, rows=4),
]
