"""Spanish and Portuguese mails."""

from __future__ import annotations

from functools import partial

from tickets_material.model import scenario

es = partial(scenario, lang="es")
pt = partial(scenario, lang="pt")

SCENARIOS = [
    es("es-camara-muerta", "[Cámara Eye|La cámara no va|Pedido {o1}]", """
La cámara Eye del pedido {o1} {estado}. [He probado otro cable y otro enchufe.|La he reiniciado mil veces.] Número de
serie {n_serial}. {quiero}
""", fault="defect", money={"m1": (90, 280)}, alts={
        "estado": [("no enciende desde {q1}", {"level": "down"}), ("se ve borrosa por la noche", {}),
                   ("está completamente muerta", {"level": "down"}), ("hace un zumbido", {})],
        "quiero": [("Quiero que me devuelvan los {m1}.", {"refund": {"m1": 1}}), ("Necesito otra {d1}.", {}),
                   ("Me vale otra cámara o los {m1}, ustedes dirán.", {}), ("¿Qué hago?", {}),
                   ("Me conformo con un vale de {m1}.", {})]}),
    es("es-comunidad", "[Portal sin abrir|Avería en la comunidad|Cerraduras]", """
Soy la presidenta de una comunidad de vecinos con sus cerraduras Key en el portal y en los trasteros. {quien} [Ya se
imaginan el grupo de mensajes.|Los vecinos están que trinan.] {plazo}
""", fault="service", alts={
        "quien": [("Desde anoche no entra ningún código, a ningún vecino.", {"level": "down", "reach": "many"}),
                  ("Desde anoche a un vecino, el del cuarto, no le entra el código; a los demás sí.", {"level": "down"}),
                  ("Los códigos entran a la segunda, a todos.", {"reach": "many"}),
                  ("Anoche no entraba ningún código; hoy vuelve a funcionar todo y queremos saber qué pasó.",
                   {"level": "down", "reach": "many", "over": True})],
        "plazo": [("Esperamos respuesta {d1:soon}.", {}), ("Gracias de antemano.", {}),
                  ("La junta es {e1:late} y necesito la respuesta para ese día.", {})]}, rows=4),
    es("es-cobro-baja", "[Me siguen cobrando|Vault: cobro tras la baja|Cobro indebido]", """
Me di de baja de Vault {q1} (confirmación {n_case}) y después me han cobrado {m1} dos veces más. {pido}
""", fault="billing", money={"m1": (4, 15)}, alts={"pido": [
        ("Pido que me devuelvan los dos cobros.", {"refund": {"m1": 2}}),
        ("Uno ya me lo han devuelto; falta el otro.", {"refund": {"m1": 1}}),
        ("Pido que me devuelvan los dos cobros {d1}.", {"refund": {"m1": 2}}),
        ("Si no me devuelven los dos cobros, pongo una denuncia en consumo.", {"refund": {"m1": 2}, "legal": True}),
        ("El banco ya me los ha devuelto. Solo pido que no haya un tercero.", {}),
    ]}),
    es("es-regalo", "[Regalo que no llega|Pedido {o1}|¿Dónde está?]", """
Pedí un timbre Bell para mi hermana (pedido {o1}, seguimiento {n_track}). {cuando} [Otro que pedí antes, el {x1}, llegó
en dos días.|La página dice "en preparación" y de ahí no sale.]
""", fault="delivery", money={"m1": (90, 150)}, alts={"cuando": [
        ("Se lo regalo {e1:soon} y lo necesito para ese día.", {}), ("No corre prisa, pero me extraña.", {}),
        ("Se lo regalo {e1:late} y lo necesito para ese día.", {}),
        ("Si no está aquí {d1}, quiero los {m1} de vuelta.", {}),
        ("Su cumpleaños ya pasó, fue {q1}. Ya no lo quiero: devuélvanme los {m1}.", {"refund": {"m1": 1}}),
    ]}),
    es("es-idea-app", "[Sugerencia|Una idea para la app|App Home]", """
{idea} [Nada más, enhorabuena por el trabajo.|Lo dejo caer.] {resto}
""", wish="other", level="answer", alts={
        "idea": [("Estaría bien que la app Home tuviera un modo para personas mayores.", {}),
                 ("¿Y si el timbre pudiera ladrar?", {}), ("Me encantaría un mapa de la casa en la app Home.", {})],
        "resto": [("No hace falta que contesten.", {}), ("Mis dos aparatos ({x1} y {x2}) van de maravilla.", {}),
                  ("Presento un trabajo sobre esto en clase {e1:soon}: díganme para entonces si lo harán.", {}), ("", {})],
    }, rows=4),
    pt("pt-fechadura", "[Fechadura Key|Fechadura encravada|Encomenda {o1}]", """
A fechadura Key da encomenda {o1} {estado}. [Já troquei as pilhas.|Já segui o manual de ponta a ponta.] {peco}
""", fault="defect", money={"m1": (150, 290), "m2": (60, 110)}, alts={
        "estado": [("deixou de funcionar por completo", {"level": "down"}), ("faz um barulho estranho ao fechar", {}),
                   ("deitou fumo ontem à noite", {"danger": True, "level": "down"}), ("demora a responder", {}),
                   ("não dá sinal de vida", {"level": "down"})],
        "peco": [("Peço a devolução dos {m1}.", {"refund": {"m1": 1}}), ("Preciso de uma nova {d1}.", {}),
                 ("Paguei {m2} ao serralheiro e quero que paguem essa conta.", {}), ("O que devo fazer?", {}),
                 ("Aceito a troca ou os {m1} de volta, como preferirem.", {})]}),
    pt("pt-fatura", "[Fatura errada|Fatura {n_inv}|Correção de fatura]", """
A fatura {n_inv} da encomenda {o1} {erro}. [A nossa contabilista não a aceita.|Assim não a posso lançar.] {prazo}
""", fault="billing", money={"m1": (12, 40)}, alts={
        "erro": [("não traz o nosso número fiscal", {}), ("está em nome de outra empresa", {})],
        "prazo": [("Precisamos da correção {d1}.", {}), ("Não há pressa.", {}),
                  ("Além disso, cobraram {m1} a mais: queiram devolver essa quantia.", {"refund": {"m1": 1}}),
                  ("Além disso, cobraram {m1} a mais: descontem na próxima fatura.", {}),
                  ("Precisamos da correção {d1:soon}, e também da {o2}.", {})]}),
    pt("pt-conta", "[Conta bloqueada|Não consigo entrar|Acesso à conta]", """
{quem} [O e-mail para repor a palavra-passe nunca chega.|Diz sempre "tente mais tarde".] {prazo}
""", fault="account", alts={
        "quem": [("Não consigo entrar na minha conta.", {"level": "down"}),
                 ("Nem eu nem o meu marido conseguimos entrar na nossa conta.", {"level": "down", "reach": "household"}),
                 ("Nenhum dos trinta funcionários da nossa loja consegue entrar na conta.",
                  {"level": "down", "reach": "many"}),
                 ("Entro na conta, mas o meu apelido está mal escrito e não o consigo mudar.", {})],
        "prazo": [("Viajo {e1} e preciso disto resolvido para esse dia.", {}), ("Agradeço a ajuda.", {}),
                  ("Podem telefonar-me? Por escrito não me entendo.", {"person": True}),
                  ("Resolvam isto {d1:soon}, por favor.", {})]}, rows=4),
]
