"""Dutch, Italian and Polish mails."""

from __future__ import annotations

from functools import partial

from tickets_material.model import scenario

nl = partial(scenario, lang="nl")
it = partial(scenario, lang="it")
pl = partial(scenario, lang="pl", cur="PLN")

SCENARIOS = [
    nl("nl-deurbel", "[Deurbel Bell|Bell doet raar|Bestelling {o1}]", """
De Bell uit bestelling {o1} {toestand}. [Opnieuw ingesteld, niets helpt.|De app zegt dat alles in orde is.] {vraag}
""", fault="defect", money={"m1": (110, 290)}, alts={
        "toestand": [("doet helemaal niets meer", {"level": "down"}), ("gaat af als de buren thuiskomen", {}),
                     ("is morsdood, {q1} deed hij het nog", {"level": "down"}), ("heeft een vlek in beeld", {})],
        "vraag": [("Graag mijn {m1} terug.", {"refund": {"m1": 1}}), ("Ik wil graag {d1} een nieuwe.", {}),
                  ("Een nieuwe of de {m1} terug, u mag kiezen.", {}), ("Kunt u mij bellen? Dat praat makkelijker.",
                                                                      {"person": True}),
                  ("Een tegoedbon van {m1} is ook goed.", {})]}),
    nl("nl-fietsenwinkel", "[Storing|Camera's winkel|Vault ligt eruit]", """
Wij hebben een fietsenwinkel met {aantal}. {wie} {termijn}
""", fault="service", alts={
        "aantal": [("twee filialen", {}), ("drie filialen", {}), ("een werkplaats erachter", {})],
        "wie": [("Sinds vanmorgen kan geen enkele medewerker bij de beelden in Vault.", {"level": "down", "reach": "many"}),
                ("Alleen ik kan sinds vanmorgen niet meer bij de beelden in Vault, de anderen wel.", {"level": "down"}),
                ("Vault werkt, maar is voor iedereen traag.", {"reach": "many"}),
                ("In onze testopstelling op kantoor kan niemand bij Vault; de winkel zelf merkt er niets van.",
                 {"level": "down", "reach": "many", "test": True})],
        "termijn": [("Graag een oplossing {d1:soon}.", {}), ("Graag uw reactie.", {}),
                    ("De verzekering komt {e1:late}, dan moet het werken.", {})]}, rows=4),
    nl("nl-retour", "[Retour|Retour {o1}|Terugsturen]", """
Ik stuur de Hub uit bestelling {o1} terug, [er is niets mis mee, mijn huis is gewoon te klein|ik had hem niet nodig].
Het retournummer is {n_rma}. {geld}
""", wish="return", money={"m1": (70, 130), "m2": (4, 8)}, alts={"geld": [
        ("Graag de {m1} op mijn rekening.", {"refund": {"m1": 1}}),
        ("Graag de {m1} plus {m2} verzendkosten op mijn rekening.", {"refund": {"m1": 1, "m2": 1}}),
        ("Zet de {m1} maar als tegoed in mijn account.", {}),
        ("Ik heb {d1:soon} een label nodig, en graag de {m1} op mijn rekening.", {"refund": {"m1": 1}}),
        ("De camera uit {x1} hou ik. Waar blijft het label?", {}),
    ]}),
    nl("nl-avg", "[Mijn account|Verzoek|Account]", """
{wat} Klantnummer {n_cust}. {termijn}
""", wish="account", alts={
        "wat": [("Op grond van de AVG verzoek ik u al mijn persoonsgegevens te wissen.", {"data": True}),
                ("Ik ben verhuisd naar Dorpsstraat 9, wilt u dat aanpassen?", {}),
                ("Op grond van de AVG wil ik inzage in alles wat u over mij bewaart.", {"data": True}),
                ("Mijn moeder is {q1} overleden; wilt u haar account sluiten?", {"death": True})],
        "termijn": [("Graag {d1:late} geregeld.", {}), ("Bij voorbaat dank.", {}), ("Graag {d1} geregeld.", {}),
                    ("Liever een antwoord in het Engels, please: my Dutch is not good enough for legal matters.",
                     {"reply": "en"})]}, rows=4),
    it("it-pacco", "[Pacco mai arrivato|Ordine {o1}|Dov'è il mio ordine?]", """
L'ordine {o1} risulta consegnato {q1}, [ma a casa non c'era nessuno|ma il portiere non ha visto niente]. Tracking
{n_track}. {chiedo}
""", fault="delivery", money={"m1": (80, 300), "m2": (6, 12)}, alts={"chiedo": [
        ("Chiedo il rimborso di {m1}.", {"refund": {"m1": 1}}),
        ("Chiedo il rimborso di {m1} e dei {m2} di spedizione.", {"refund": {"m1": 1, "m2": 1}}),
        ("Mi serve {d1}, spedite di nuovo.", {}),
        ("Se non arriva {d1}, chiederò il rimborso dei {m1}.", {}),
        ("Un buono da {m1} andrebbe benissimo.", {}),
    ]}),
    it("it-studio", "[Serrature bloccate|Studio legale - accessi|Key: guasto]", """
Scrivo per lo studio legale Bruni [e associati|di Trieste], siamo in dodici. {chi} [Per ora usiamo le chiavi di
ferro.|Il portinaio ci apre a mano.] {termine}
""", fault="service", alts={
        "chi": [("Da stamattina il badge non apre a nessuno di noi.", {"level": "down", "reach": "many"}),
                ("Da stamattina il mio badge non apre più, quelli dei colleghi sì.", {"level": "down"}),
                ("I badge aprono, ma l'elenco degli accessi riporta l'ora sbagliata.", {"reach": "many"}),
                ("Il badge non apriva a nessuno; ora funziona, vorremmo capire il motivo.",
                 {"level": "down", "reach": "many", "over": True}),
                ("Il badge non apre a nessuno e, se non risolvete, vi faremo causa.",
                 {"level": "down", "reach": "many", "legal": True})],
        "termine": [("Attendiamo riscontro {d1:soon}.", {}), ("Attendiamo riscontro.", {}),
                    ("Attendiamo riscontro {d1:late}.", {})]}),
    it("it-addebito", "[Addebito|Prezzo sbagliato|Ordine {o1}: prezzo]", """
Sul sito c'era scritto {m1}, sulla carta ne trovo {m2} (ordine {o1}). [Ho la schermata.|Allego la foto.] {chiedo}
""", fault="billing", money={"m1": (80, 110, 5), "m2": (120, 150, 5)}, alts={"chiedo": [
        ("Rimborsatemi la differenza.", {"refund": {"m2": 1, "m1": -1}}),
        ("Rimborsatemi la differenza {d1}.", {"refund": {"m2": 1, "m1": -1}}),
        ("Allora rinuncio: annullate e rimborsate tutto.", {"refund": {"m2": 1}}),
        ("La differenza scalatela dal prossimo ordine.", {}),
    ]}, rows=4),
    it("it-domanda", "[Domanda|Informazione|Eye all'aperto]", """
La Eye regge la pioggia, o va sotto una tettoia? [Vivo in montagna.|Da noi piove di traverso.] {poi}
""", wish="question", level="answer", money={"m1": (60, 90)}, alts={"poi": [
        ("Nessuna fretta.", {}), ("Devo saperlo {d1:soon}, arriva l'elettricista.", {}),
        ("Quella dell'ordine {x1} sta in cucina e va bene.", {}), ("In negozio costa {m1}, la prenderei da voi.", {}),
    ]}, rows=4),
    pl("pl-zwrot-pieniedzy", "[Zwrot pieniędzy|Zamówienie {o1}|Gdzie mój zwrot?]", """
Odesłałem zamówienie {o1} i {kiedy} potwierdzili Państwo odbiór ({n_rma}). {stan} {prosze}
""", fault="billing", money={"m1": (200, 420, 10), "m2": (50, 120, 10)}, alts={
        "kiedy": [("{q1}", {}), ("dawno temu", {})],
        "stan": [("Za towar {m1} do dziś nie wróciło na konto, proszę o przelew.", {"refund": {"m1": 1}}),
                 ("Z {m1} wróciło tylko {m2}, proszę o resztę.", {"refund": {"m1": 1, "m2": -1}})],
        "prosze": [("Czekam na to {d1}.", {}), ("To już moja trzecia wiadomość w tej sprawie.", {"repeat": True}),
                   ("Pozdrawiam serdecznie mimo wszystko.", {}),
                   ("Inaczej sprawa trafi do sądu.", {"legal": True})]}),
    pl("pl-termostat", "[Termostat Warm|Warm nie działa|Zimno]", """
Termostat Warm z zamówienia {o1} {stan}. [W domu jest małe dziecko.|Baterie wymienione.] {prosze}
""", fault="defect", money={"m1": (300, 440, 10)}, alts={
        "stan": [("w ogóle się nie włącza", {"level": "down"}), ("pokazuje złą godzinę", {}),
                 ("zaczął dymić i czuć go spalenizną", {"danger": True, "level": "down"}),
                 ("jest całkiem martwy", {"level": "down"}), ("głośno cyka", {})],
        "prosze": [("Proszę o nowy {d1}.", {}), ("Proszę o zwrot {m1}.", {"refund": {"m1": 1}}),
                   ("Wystarczy mi bon na {m1}.", {}), ("Co mam zrobić?", {}),
                   ("Jeśli nie wymienią go Państwo {d1:late}, zażądam zwrotu {m1}.", {})]}),
    pl("pl-biuro", "[Awaria|Zamki w biurze|Panel nie działa]", """
Piszę z biura rachunkowego. {kto} {termin} [Uruchomiliśmy wszystko od nowa.|Internet mamy sprawny.]
""", fault="service", alts={
        "kto": [("Od rana nikt z nas nie może otworzyć drzwi kartą.", {"level": "down", "reach": "many"}),
                ("Od rana moja karta nie otwiera drzwi, karty innych działają.", {"level": "down"}),
                ("Drzwi otwierają się z opóźnieniem kilku sekund, wszystkim.", {"reach": "many"}),
                ("Rano nikt nie mógł otworzyć drzwi kartą; teraz już działa, chcemy znać przyczynę.",
                 {"level": "down", "reach": "many", "over": True})],
        "termin": [("Prosimy o odpowiedź {d1:soon}.", {}), ("Prosimy o pomoc.", {}),
                   ("Prosimy o odpowiedź {d1:late}.", {})]}, rows=4),
    pl("pl-pytanie", "[Pytanie|Pytanie o gwarancję|Gwarancja]", """
Chciałabym zapytać, czy Państwa gwarancja obowiązuje też w Czechach. [Nic się nie zepsuło.|Wszystko działa.] {reszta}
""", wish="question", level="answer", alts={"reszta": [
        ("Nie spieszy się.", {}), ("Wyjeżdżamy {e1:soon} i chcę to wiedzieć do tego czasu.", {}),
        ("Mam dwa urządzenia, {x1} i {x2}.", {}), ("Chciałabym to wiedzieć {d1:late}.", {}),
    ]}, rows=4),
]
