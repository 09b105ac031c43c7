"""French mails."""

from __future__ import annotations

from functools import partial

from tickets_material.model import scenario

s = partial(scenario, lang="fr")

SCENARIOS = [
    s("fr-colis-gardienne", "[Colis introuvable|Commande {o1}|Où est mon colis ?]", """
La commande {o1} est « livrée » depuis trois jours d'après le suivi ({n_track}). [La gardienne n'a rien vu.|Ma boîte
aux lettres est vide, celle du voisin aussi.] {demande}
""", fault="delivery", money={"m1": (90, 310), "m2": (5, 12)}, cur="EUR CHF", alts={"demande": [
        ("Merci de me rembourser les {m1}.", {"refund": {"m1": 1}}),
        ("Merci de me le renvoyer, j'en ai besoin {d1}.", {}),
        ("Remboursez-moi les {m1} ou renvoyez-le, comme vous préférez.", {}),
        ("Merci de me rembourser les {m1} et les {m2} de livraison express.", {"refund": {"m1": 1, "m2": 1}}),
        ("Pouvez-vous ouvrir une enquête ? La commande {x1}, elle, est bien arrivée.", {}),
    ]}),
    s("fr-clinique", "[Panne|Portes bloquées|Tableau de bord]", """
Ici le centre médical des Tilleuls. {qui} [Nous avons tout redémarré.|Le redémarrage n'a rien changé.] {delai}
""", fault="service", alts={
        "qui": [("Depuis ce matin, aucun d'entre nous n'arrive à ouvrir les portes avec le badge.",
                 {"level": "down", "reach": "many"}),
                ("Depuis ce matin, mon badge n'ouvre plus aucune porte ; ceux des collègues fonctionnent.",
                 {"level": "down"}),
                ("Les portes s'ouvrent, mais avec deux secondes de retard, pour tout le monde.", {"reach": "many"}),
                ("Aucun badge n'ouvrait les portes ce matin. C'est rétabli ; nous voudrions savoir pourquoi.",
                 {"level": "down", "reach": "many", "over": True})],
        "delai": [("Merci de nous répondre {d1:soon}.", {}), ("Merci de votre aide.", {}),
                  ("L'inspection a lieu {e1:late}, tout doit marcher pour ce jour-là.", {})]}, rows=4),
    s("fr-double-debit", "[Double débit|Prélèvement|Facture {n_inv}]", """
J'ai été débitée deux fois de {m1} pour la commande {o1}, dont une fois {q1}. [La facture {n_inv} ne mentionne qu'un
seul achat.|Relevé ci-joint.] {demande}
""", fault="billing", money={"m1": (90, 310)}, cur="EUR", alts={"demande": [
        ("Je demande le remboursement du second débit {d1}.", {"refund": {"m1": 1}}),
        ("Un avoir de {m1} sur ma prochaine commande me conviendrait.", {}),
        ("Je demande le remboursement du second débit, faute de quoi je saisirai le médiateur et le tribunal.",
         {"refund": {"m1": 1}, "legal": True}),
        ("Je demande le remboursement du second débit. C'est mon quatrième message à ce sujet.",
         {"refund": {"m1": 1}, "repeat": True}),
    ]}, rows=4),
    s("fr-thermostat", "[Thermostat Warm|Warm en panne|Chauffage]", """
Le Warm acheté avec la commande {o1} {etat}. [Il fait quatorze degrés dans le salon.|Piles neuves, rien n'y fait.]
{demande}
""", fault="defect", money={"m1": (120, 220)}, cur="EUR CHF", alts={
        "etat": [("est complètement mort", {"level": "down"}), ("affiche deux degrés de trop", {}),
                 ("a dégagé une odeur de brûlé cette nuit et son boîtier a noirci", {"danger": True, "level": "down"}),
                 ("ne s'allume plus du tout", {"level": "down"}), ("fait un petit bruit la nuit", {})],
        "demande": [("Je voudrais être remboursé : {m1}.", {"refund": {"m1": 1}}), ("Il me faut un remplacement {d1}.", {}),
                    ("Que faire ?", {}), ("Si rien ne se passe {d1:late}, je demanderai le remboursement des {m1}.", {}),
                    ("Pourriez-vous m'appeler ? J'écris mal.", {"person": True})]}),
    s("fr-resiliation", "[Résiliation|Abonnement Vault|Fin d'abonnement]", """
Je déménage [à l'étranger|dans une résidence déjà équipée] et je souhaite résilier mon abonnement Vault. {fin} {argent}
""", wish="cancellation", money={"m1": (36, 72, 6)}, cur="EUR", alts={
        "fin": [("Il doit prendre fin {d1:late}.", {}), ("À l'échéance, tout simplement.", {}),
                ("Merci de confirmer {d1:soon}.", {})],
        "argent": [("J'ai payé {m1} pour l'année, dont la moitié est entamée : merci de rembourser l'autre moitié.",
                    {"refund": {"m1": "1/2"}}),
                   ("Je ne demande pas de remboursement des {m1} payés.", {}), ("", {}),
                   ("Mon avocat de beau-père dit le plus grand bien de vos serrures.", {})]}),
    s("fr-question-portail", "[Question|Compatible avec mon portail ?|Portail et Bell]", """
Est-ce que la Bell peut commander un portail électrique [en 24 volts|d'une autre marque] ? {suite}
""", wish="question", level="answer", money={"m1": (110, 160)}, cur="EUR", alts={"suite": [
        ("Rien ne presse.", {}), ("La promotion à {m1} finit {e1:soon}, il me faudrait la réponse pour ce jour-là.", {}),
        ("J'en ai déjà une (commande {x1}) sur la porte d'entrée, très bien.", {}), ("J'aimerais le savoir {d1:late}.", {}),
    ]}, rows=4),
]
