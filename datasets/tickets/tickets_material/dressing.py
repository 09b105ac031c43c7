"""What surrounds a mail: greetings, closings, signatures, quoted replies, money formats and meaningless numbers."""

from __future__ import annotations

import random

GREETINGS = {
    "en": ("Hi,", "Hello,", "Hello there,", "Hi team,", "Dear Halden team,", "Dear Sir or Madam,", "Good morning,",
           "Good evening,", "Hey,", "Hi Halden,", "To whom it may concern,", "Hiya,", "Dear support,", "Hello again,",
           "Hope you're well.", "Evening all,", "Dear Sirs,", "", "", "", ""),
    "de": ("Hallo,", "Guten Tag,", "Sehr geehrte Damen und Herren,", "Moin,", "Liebes Halden-Team,", "Servus,", ""),
    "fr": ("Bonjour,", "Bonsoir,", "Madame, Monsieur,", "Bonjour à toute l'équipe,", ""),
    "es": ("Hola:", "Buenas tardes:", "Buenos días:", "Estimados señores:", ""),
    "nl": ("Hallo,", "Goedemiddag,", "Beste Halden,", "Geachte heer/mevrouw,", ""),
    "pt": ("Olá,", "Bom dia,", "Boa tarde,", "Exmos. Senhores,", ""),
    "it": ("Buongiorno,", "Salve,", "Gentile assistenza,", "Ciao,", ""),
    "pl": ("Dzień dobry,", "Witam,", "Szanowni Państwo,", ""),
}  # fmt: skip

CLOSINGS = {
    "en": ("Thanks,", "Thanks a lot", "Kind regards,", "Best,", "Best wishes", "Cheers", "Many thanks in advance,",
           "Regards,", "Yours sincerely,", "Yours faithfully,", "ta", "Thank you.", "All the best,", "BR,",
           "Awaiting your reply,", "-", "Greetings from {city},", "Warmly,", ""),
    "de": ("Viele Grüße", "Mit freundlichen Grüßen", "MfG", "Beste Grüße aus {city}", "Danke und Gruß", "LG", ""),
    "fr": ("Cordialement,", "Bien à vous,", "Merci d'avance,", "Salutations distinguées", "Bonne journée", ""),
    "es": ("Un saludo,", "Gracias y un saludo,", "Atentamente,", "Saludos desde {city}", ""),
    "nl": ("Met vriendelijke groet,", "Groetjes,", "Alvast bedankt,", "Mvg", ""),
    "pt": ("Cumprimentos,", "Obrigado,", "Com os melhores cumprimentos,", "Atenciosamente,", ""),
    "it": ("Cordiali saluti,", "Grazie e saluti", "Distinti saluti", "Buona giornata,", ""),
    "pl": ("Pozdrawiam", "Z poważaniem", "Z góry dziękuję,", ""),
}  # fmt: skip

NAMES = {
    "en": ("Priya Nair", "Tom Whitlock", "Aoife Brennan", "J. Okafor", "Marguerite Dunn", "Callum Reid", "Sunita Rao",
           "Ben", "Hannah Pryce", "Dmitri V.", "Mrs E. Hollis", "Wei Zhang", "Oluwaseun", "Rachel Stein", "G. Papas",
           "Freya Lindqvist", "Martin O'Shea", "Kat", "Imran Siddiqui", "Peter van der Berg", "Lottie", "Dr A. Mensah"),
    "de": ("Jutta Behrens", "K. Öztürk", "Matthias Reuter", "Familie Stadler", "Svenja", "Dr. Hans-Peter Lorenz"),
    "fr": ("Camille Roussel", "Jean-Marc Tissot", "Mme Bertin", "Youssef", "Élodie Garnier"),
    "es": ("Lucía Ferrer", "Joaquín Salas", "Marisol", "Íñigo Barrena"),
    "nl": ("Femke de Wit", "Joost", "M. Hendriks", "Sanne Bakker"),
    "pt": ("Inês Carvalho", "Rui Teles", "D. Amélia", "Tiago Moura"),
    "it": ("Giulia Ferri", "Davide Conti", "Sig.ra Pavan", "Marco"),
    "pl": ("Agnieszka Wrona", "Tomasz Zając", "Kasia", "Paweł Mazur"),
}  # fmt: skip

CITIES = {
    "en": ("Leeds", "Cork", "rainy Bristol", "Malta", "Aberdeen", "Rotterdam"),
    "de": ("Graz", "Hannover", "Bern", "Kiel"),
    "fr": ("Lyon", "Namur", "Lausanne"),
    "es": ("Cádiz", "Vigo", "Murcia"),
    "nl": ("Utrecht", "Gent"),
    "pt": ("Braga", "Faro"),
    "it": ("Trieste", "Bari"),
    "pl": ("Gdynia", "Lublin"),
}

#: Signature blocks and other text below the name. None of it says anything about the case.
FOOTERS = {
    "en": ("Sent from my iPhone", "Sent from Outlook for Android", "Tel. {n_phone}", "M {n_phone}, VAT {n_vat}",
           "Facilities Management /\nswitchboard {n_phone} /\ncompany no. {n_reg}", "Customer no. {n_cust}",
           "Please consider the environment before printing this e-mail.",
           "This message is confidential and may be legally privileged. If you are not the intended recipient, "
           "delete it and tell the sender within 24 hours.",
           "P.S. My customer number is {n_cust}.", "-- /\nOpinions are my own. Mistakes are my phone's."),
    "de": ("Von meinem iPhone gesendet", "Tel.: {n_phone}", "Kundennr. {n_cust}", "USt-IdNr. {n_vat} /\nTel. {n_phone}",
           "Diese E-Mail kann vertrauliche und rechtlich geschützte Informationen enthalten."),
    "fr": ("Envoyé de mon iPhone", "Tél. {n_phone}", "N° client {n_cust}"),
    "es": ("Enviado desde mi iPhone", "Tfno. {n_phone}", "Cliente n.º {n_cust}"),
    "nl": ("Verstuurd vanaf mijn iPhone", "Tel. {n_phone}", "Klantnr. {n_cust}"),
    "pt": ("Enviado do meu iPhone", "Tlm. {n_phone}", "Cliente n.º {n_cust}"),
    "it": ("Inviato da iPhone", "Tel. {n_phone}", "Codice cliente {n_cust}"),
    "pl": ("Wysłane z iPhone'a", "tel. {n_phone}", "Nr klienta {n_cust}"),
}  # fmt: skip

#: A quoted automatic reply of our own: its deadline and number are ours, not the sender's.
TAILS = {
    "en": ("On {h1}, Halden Care wrote: /\n> Thank you for your message. Your request has the number {n_case}. /\n"
           "> We usually answer within 2 working days.",
           "----- Original message ----- /\nFrom: Halden Care <no-reply@halden.example> /\nSent: {h1} /\n\n"
           "We have received your request ({n_case}). Please do not reply to this mail. If you do not hear from us "
           "by the end of the week, write again."),
    "de": ("Am {h1} schrieb Halden Care: /\n> Vielen Dank für Ihre Nachricht. Ihre Vorgangsnummer: {n_case}. /\n"
           "> Wir antworten in der Regel innerhalb von 2 Werktagen.",),
    "fr": ("Le {h1}, Halden Care a écrit : /\n> Votre demande {n_case} est enregistrée. /\n> Réponse sous 2 jours ouvrés.",),
    "es": ("El {h1}, Halden Care escribió: /\n> Hemos recibido su solicitud {n_case}. /\n> Respondemos en 2 días hábiles.",),
    "nl": ("Op {h1} schreef Halden Care: /\n> Uw aanvraag {n_case} is ontvangen. /\n> U hoort binnen 2 werkdagen van ons.",),
    "pt": ("A {h1}, Halden Care escreveu: /\n> Recebemos o seu pedido {n_case}. /\n> Respondemos em 2 dias úteis.",),
    "it": ("Il {h1}, Halden Care ha scritto: /\n> Abbiamo ricevuto la sua richiesta {n_case}. /\n"
           "> Rispondiamo entro 2 giorni lavorativi.",),
    "pl": ("{h1} Halden Care napisał(a): /\n> Otrzymaliśmy zgłoszenie {n_case}. /\n> Odpowiadamy w 2 dni robocze.",),
}  # fmt: skip

#: Shouting in the subject. It changes nothing.
SHOUTS = {
    "en": ("URGENT: ", "URGENT!!! ", "!! ", "ASAP - ", "IMPORTANT: ", "HIGH PRIORITY - "),
    "de": ("DRINGEND: ", "EILT! "), "fr": ("URGENT : ",), "es": ("URGENTE: ",), "nl": ("SPOED: ",),
    "pt": ("URGENTE: ",), "it": ("URGENTE!! ",), "pl": ("PILNE: ",),
}  # fmt: skip

#: How an order number may look after the word for "order".
ORDER_STYLES = ("{n}", "{n}", "#{n}", "no. {n}", "ORD-{n:06d}", "ord-{n}", "ORD{n:06d}", "ORD {n:06d}", "{n:06d}",
                "Ord. {n}", "ORD_{n}", "O-{n:06d}")  # fmt: skip
ORDER_STYLES_OTHER = ("{n}", "{n}", "#{n}", "ORD-{n:06d}", "ord-{n}", "ORD {n:06d}", "{n:06d}", "ORD{n:06d}")

MONEY_STYLES = {
    ("en", "GBP"): ("£{a}", "£{a}", "£ {a}", "{a} GBP", "{a} pounds"),
    ("en", "USD"): ("${a}", "${a}", "USD {a}", "{a} dollars"),
    ("en", "EUR"): ("€{a}", "€{a}", "{a} EUR", "EUR {a}", "{a} euros"),
    ("en", "CHF"): ("CHF {a}", "{a} francs"),
    ("en", "PLN"): ("{a} PLN", "{a} zł"),
    ("de", "EUR"): ("{a} €", "{a} Euro", "EUR {a}", "{a}€"),
    ("de", "CHF"): ("CHF {a}", "{a} Franken", "Fr. {a}"),
    ("fr", "EUR"): ("{a} €", "{a} euros", "{a}€"),
    ("fr", "CHF"): ("{a} CHF", "CHF {a}", "{a} francs"),
    ("es", "EUR"): ("{a} €", "{a} euros", "{a}€"),
    ("nl", "EUR"): ("€ {a}", "€{a}", "{a} euro"),
    ("pt", "EUR"): ("{a} €", "{a} euros", "{a}€"),
    ("it", "EUR"): ("{a} €", "{a} euro", "€ {a}"),
    ("pl", "PLN"): ("{a} zł", "{a} PLN", "{a} złotych"),
}


def money_text(rng: random.Random, lang: str, currency: str, cents: int) -> str:
    """An amount as people of that language write it, e.g. ``1.249,00 €``."""
    style = rng.choice(MONEY_STYLES[lang, currency])
    whole, rest = divmod(cents, 100)
    point = "." if lang == "en" or currency == "CHF" else ","
    group = {"en": ",", "de": ".", "fr": " ", "es": ".", "nl": ".", "pt": ".", "it": ".", "pl": " "}[lang]
    if currency == "CHF":
        group = "'"
    digits = f"{whole:,}".replace(",", group if rng.random() < 0.7 else "")
    if rest or rng.random() < 0.3:
        digits += f"{point}{rest:02d}"
    return style.format(a=digits)


def number(rng: random.Random, kind: str, lang: str) -> str:
    """A number that identifies something else than one of our orders."""
    d = lambda n: "".join(rng.choice("0123456789") for _ in range(n))  # noqa: E731
    lead = rng.choice("123456789")
    if kind == "phone":
        return {
            "en": f"+44 20 7946 0{d(3)}", "de": f"0511 / {lead}{d(1)} {d(2)} {d(2)}",
            "fr": f"01 {d(2)} {d(2)} {d(2)} {d(2)}",
            "es": f"+34 9{d(2)} {d(3)} {d(3)}", "nl": f"06-{d(8)}", "pt": f"91{d(1)} {d(3)} {d(3)}",
            "it": f"+39 06 {d(4)} {d(4)}", "pl": f"+48 {lead}{d(2)} {d(3)} {d(3)}",
        }[lang]  # fmt: skip
    choices = {
        "track": (f"JD01 46{d(2)} {d(4)} {d(4)}", f"1Z{d(3)}AA1{d(8)}", f"003404{lead}{d(9)}", f"RR{d(9)}GB"),
        "inv": (f"INV-{lead}{d(5)}", f"RE-{lead}{d(4)}", f"2024/{lead}{d(3)}", f"HI{lead}{d(5)}"),
        "serial": (f"HK2-{lead}{d(4)}-B", f"SN {d(3)}-{d(4)}-{d(3)}", f"HX{lead}{d(6)}"),
        "case": (f"2025-{lead}{d(5)}", f"C-{lead}{d(5)}", f"T{lead}{d(6)}"),
        "cust": (f"K{lead}{d(5)}", f"{lead}{d(2)} {d(3)}", f"C-{lead}{d(4)}"),
        "rma": (f"RMA {lead}{d(4)}", f"RMA-{lead}{d(5)}"),
        "shop": (f"30{lead}-{d(7)}-{d(7)}",),
        "vat": (f"DE {lead}{d(2)} {d(3)} {d(3)}", f"GB {lead}{d(2)} {d(4)} {d(2)}"),
        "reg": (f"0{lead}{d(6)}",),
        "policy": (f"POL/{lead}{d(6)}",),
    }
    return rng.choice(choices[kind])
