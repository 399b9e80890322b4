"""Prices of device hours: of what is reported alone, so they can change when all the rest is there."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.config import Experiment
from orchestrator.config_source import dump, undump
from orchestrator.records import Comparison, Prices


def priced(comparison: Comparison, experiment: Experiment) -> Comparison:
    """The comparison at the prices that an experiment gives, which its configuration says then too."""
    settings = experiment.prices
    prices = Prices(**settings.model_dump()) if settings else None
    if prices == comparison.prices:
        return comparison
    config = {**undump(comparison.config), "prices": settings.model_dump(mode="json") if settings else None}
    return replace(comparison, prices=prices, config=dump(config))
