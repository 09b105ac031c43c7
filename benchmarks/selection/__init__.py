"""How well candidates are chosen: planted worlds, and complete outcomes of published model runs."""
