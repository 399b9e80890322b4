"""Low-rank adapters, by peft: α/r · B A is added to a weight, and learned (Hu et al. 2021, arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

import torch

from data import UserError
from orchestrator.config_schema import LoraSettings


def adapt(backbone: Any, settings: LoraSettings, seed: int) -> None:
    """Put an adapter beside every linear layer of a Hugging Face model; nothing else of it is trained then.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        mend = "Install it: pip install -c constraints.txt 'stillhouse[lora]'."
        raise UserError("adapters take the package peft, which is not here", where="encoder.lora", mend=mend) from error

    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules="all-linear")
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # A is random, B is 0
        inject_adapter_in_model(config, backbone)


def merge(backbone: Any) -> None:
    """Add what the adapters have learned to the weights, and take them out."""
    from peft.tuners.lora import LoraLayer

    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()  # type: ignore[attr-defined]
                setattr(parent, name, child.get_base_layer())  # type: ignore[attr-defined]
    # peft's mark of a model that has adapters, by which transformers would save these alone
    for mark in ("peft_config", "_hf_peft_config_loaded"):
        if mark in vars(backbone):
            delattr(backbone, mark)
