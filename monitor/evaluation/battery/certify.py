"""From a calibration to a bank that carries its own figures."""

from __future__ import annotations

from monitor.calibration.calibrate import Calibration
from monitor.evaluation.battery.evidence import Evidence
from monitor.evaluation.battery.rows import run_battery, text_equivalent
from monitor.probes.bank import Bank, seal


def certified(calibration: Calibration, evidence: Evidence) -> Bank:
    """The bank with the rows of the battery and the emotions that words show as well on its card."""
    battery = [row.model_dump() for row in run_battery(evidence)]
    return seal(
        {**calibration.card, "battery": battery, "text_equivalent": text_equivalent(evidence)}, calibration.bank.tensors
    )
