"""The language material of the tickets dataset, and the code that turns it into mails."""

from __future__ import annotations

from tickets_material import de, en_delivery, en_faults, en_money, en_other, en_service, es_pt, fr, nl_it_pl
from tickets_material.model import Scenario

SCENARIOS: tuple[Scenario, ...] = tuple(
    scenario
    for module in (en_delivery, en_faults, en_service, en_money, en_other, de, fr, es_pt, nl_it_pl)
    for scenario in module.SCENARIOS
)
