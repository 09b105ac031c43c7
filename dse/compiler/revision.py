"""What identifies a proposer. It goes into the identity of a compile, and with it into the count of holdout openings:
a setting that it does not see would be a free look at the holdout."""

from __future__ import annotations

from dse.contracts.revision import revision_of

__all__ = ["revision_of"]
