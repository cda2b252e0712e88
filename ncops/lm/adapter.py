"""An adapter of PEFT, merged into the weights of its model."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ..errors import CommandError
from ..model import causal_tolerance

TOKENS = 8


def check_adapter(folder: Path) -> None:
    """Raises CommandError for a folder that holds no adapter."""
    if not (folder / "adapter_config.json").is_file():
        raise CommandError(f"--adapter: expected a folder with adapter_config.json, as PEFT saves one, got {folder}")


@torch.no_grad()
def merged(model: nn.Module, folder: Path) -> nn.Module:
    """``model`` with the adapter in ``folder`` added to its weights, in place; proved by logits on a few tokens.

    Raises:
        CommandError: the adapter is none of this model, is not made of weights, or merging changes what it does.
    """
    import peft

    settings = peft.PeftConfig.from_pretrained(str(folder))
    if settings.is_prompt_learning:
        raise CommandError(
            f"--adapter: {folder} is a learned prompt ({settings.peft_type.value}), which no weights can take in"
        )
    settings.inference_mode = True
    _untie(model)
    adapted = peft.PeftModel(model, settings)
    loading = adapted.load_adapter(str(folder), "default", torch_device=str(next(model.parameters()).device))
    for what, names in (("lacks", loading.missing_keys), ("has no place in this model for", loading.unexpected_keys)):
        if names:
            raise CommandError(f"--adapter: {folder} {what} {len(names)} weight(s), {names[0]} for one")
    rows = model.get_input_embeddings().weight.shape[0]
    ids = (torch.arange(TOKENS, device=next(model.parameters()).device) % rows)[None]
    before = adapted.eval()(input_ids=ids, use_cache=False).logits.double()
    model = adapted.merge_and_unload()
    after = model(input_ids=ids, use_cache=False).logits.double()
    moved = float((after - before).abs().max() / before.abs().max())
    if not moved <= causal_tolerance(next(model.parameters()).dtype):
        raise CommandError(f"--adapter: merged, {folder} makes other logits than beside its model (off by {moved:.1e})")
    return model


def _untie(model: nn.Module) -> None:
    """Gives the output embedding rows of its own: an adapter on one of two tied modules is not one on the other."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
        model.config.tie_word_embeddings = False
