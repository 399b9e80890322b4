"""The cross-encoder: one transformer reads a query and a document together and says how relevant the one is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from data import UserError
from orchestrator.encoder import positions, quiet_transformers
from orchestrator.packed import Ids


@dataclass(frozen=True)
class PairLayout:
    """How a tokenizer puts two texts together: the special tokens before, between and after them.

    `around` says how many special tokens stand before and after a text alone. `separator` ends the first text where the
    model tells the two apart by token types, None where it does not.
    """

    before: Ids
    between: Ids
    after: Ids
    around: tuple[int, int]
    separator: int | None

    @classmethod
    def of(cls, folder: Path) -> PairLayout:
        """That of the tokenizer in a model folder."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        pair, alone = tokenizer("a", "b"), tokenizer("a")
        ids, whose = np.array(pair["input_ids"], np.int32), pair.sequence_ids()
        first = [place for place, text in enumerate(whose) if text == 0]
        second = [place for place, text in enumerate(whose) if text == 1]
        own = [place for place, text in enumerate(alone.sequence_ids()) if text == 0]
        between = ids[first[-1] + 1 : second[0]]
        return cls(
            before=ids[: first[0]],
            between=between,
            after=ids[second[-1] + 1 :],
            around=(own[0], len(alone["input_ids"]) - 1 - own[-1]),
            separator=int(between[-1]) if any(pair.get("token_type_ids", ())) else None,
        )

    def join(self, query: Ids, document: Ids) -> Ids:
        """The token ids of a pair, of those of each text alone."""
        head, tail = self.around
        query, document = query[head : len(query) - tail], document[head : len(document) - tail]
        return np.concatenate([self.before, query, self.between, document, self.after])

    @property
    def longer(self) -> int:
        """How many tokens more a pair has than its texts alone; negative where it has fewer."""
        return len(self.before) + len(self.between) + len(self.after) - 2 * sum(self.around)


class CrossEncoder(nn.Module):
    """Score pairs of query and document: `(n, 1)` logits, the log-odds of relevance.

    It is encoded with as a bi-encoder is (`Encoding.embed`), and takes the same fast path.

    Args:
        model: a Hugging Face model for sequence classification with one label, or two: the second one's is the score
            then, less the first one's.
    """

    dimension = 1

    def __init__(self, model: Any, layout: PairLayout) -> None:
        super().__init__()
        self.layout = layout
        self.backbone: nn.Module = getattr(model, model.base_model_prefix)
        self.config = self.backbone.config
        if layout.separator is not None:
            self.backbone.embeddings = TypedEmbeddings(self.backbone.embeddings, layout.separator)
        setattr(model, model.base_model_prefix, _Encoded(getattr(self.backbone, "pooler", None)))
        self._head = model

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence that it has positions for; None where positions are relative."""
        return positions(self.backbone)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `(n, 1)` of pairs put together, `(n, L)`; `attention_mask (n, L)` is 0 at padding."""
        found = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        return self.pool(found.last_hidden_state, attention_mask)

    def pool(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `(n, 1)` of the last hidden states `(n, L, D)`."""
        logits: Tensor = self._head(inputs_embeds=states, attention_mask=attention_mask).logits.float()
        return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]


class TypedEmbeddings(nn.Module):
    """Embeddings that tell the second text of a pair by its place: behind the first separator.

    Args:
        embeddings: a model's own, which takes ids, positions and token types.
    """

    def __init__(self, embeddings: nn.Module, separator: int) -> None:
        super().__init__()
        self.embeddings, self.separator = embeddings, separator

    @property
    def position_embeddings(self) -> nn.Module:
        """The model's."""
        return self.embeddings.get_submodule("position_embeddings")

    def forward(
        self, input_ids: Tensor, token_type_ids: Tensor | None = None, position_ids: Tensor | None = None, **other: Any
    ) -> Tensor:
        """The embeddings of pairs `(n, L)`, or of pairs laid end to end `(1, T)`, whose positions begin anew."""
        separators = (input_ids == self.separator).long()
        before = separators.cumsum(dim=1) - separators
        if position_ids is not None:
            begins = position_ids == position_ids.min()
            before = before - torch.where(begins, before, 0).cummax(dim=1).values
        types = (before > 0).long()
        found: Tensor = self.embeddings(input_ids=input_ids, token_type_ids=types, position_ids=position_ids, **other)
        return found


class _Encoded(nn.Module):
    """In the encoder's place in a classification model: takes states for embeddings, so that the rest is the head."""

    def __init__(self, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pooler = pooler

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        pooled = None if self.pooler is None else self.pooler(inputs_embeds)
        return BaseModelOutputWithPooling(last_hidden_state=inputs_embeds, pooler_output=pooled)


def load_cross_encoder(folder: Path) -> CrossEncoder:
    """A cross-encoder from a model folder, in evaluation mode and float32.

    Raises:
        UserError: the folder holds no model for sequence classification, or one of more than two labels.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="sdpa" if torch.cuda.is_available() else "eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _no_cross_encoder(folder, str(error).splitlines()[0]) from error
    if missing := sorted(found["missing_keys"]):  # transformers fills them with random numbers
        raise _no_cross_encoder(folder, f"{len(missing)} weights are missing, the first {missing[0]}")
    if config.num_labels > 2:
        raise _no_cross_encoder(folder, f"it tells {config.num_labels} labels apart")
    return CrossEncoder(model, PairLayout.of(folder)).eval()


def _no_cross_encoder(folder: Path, why: str) -> UserError:
    return UserError(
        f'"{folder}" cannot be loaded as a cross-encoder: {why}',
        where="encoder.model",
        mend="Give a folder or hub id of a model for sequence classification with one label, such as "
        "cross-encoder/ms-marco-MiniLM-L6-v2.",
    )
