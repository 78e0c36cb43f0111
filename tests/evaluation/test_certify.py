"""A bank that carries its own figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from monitor.evaluation.battery.certify import certified
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.battery.rows import run_battery, text_equivalent
from monitor.probes.bank import load_bank


class TestCertified:
    """``certified``."""

    def test_seals_a_bank_that_loads_with_its_rows(self, full: Evidence, tmp_path: Path) -> None:
        """The bank passes its own checks when it is read back, and its card holds every row and marked emotion."""
        bank = certified(full.calibration, full)
        bank.save(tmp_path)
        loaded = load_bank(str(tmp_path))
        assert loaded.card == bank.card
        assert list(loaded.card.battery) == run_battery(full)
        assert list(loaded.card.text_equivalent) == text_equivalent(full)

    def test_leaves_all_else_as_it_was(self, full: Evidence) -> None:
        """Tensors and every other part of the card are the uncertified bank's; only the id is another."""
        bank, plain = certified(full.calibration, full), full.bank
        own = {"battery", "text_equivalent", "bank_id"}
        assert bank.card.model_dump(exclude=own) == plain.card.model_dump(exclude=own)
        assert bank.card.bank_id != plain.card.bank_id
        for name, array in vars(plain.tensors).items():
            np.testing.assert_array_equal(getattr(bank.tensors, name), array, err_msg=name)
