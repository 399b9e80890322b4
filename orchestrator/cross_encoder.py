"""The cross-encoder: one transformer reads a query and a document together and says how relevant the one is.

Pooled, as is usual, it has a head on the first token's state. With dual pooling (Kim et al. 2023, EmbedDistill, Sec.
4.2) it makes a vector of the query's states and one of the document's, each in the context of the other, and their
product is the score: what a bi-encoder can be drawn to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from data import Rows, UserError
from orchestrator.encoder import copy_tokenizer, load_encoder, positions, quiet_transformers, set_dropout
from orchestrator.packed import Ids

if TYPE_CHECKING:
    from orchestrator.training import Tokens


class Scoring(NamedTuple):
    """How a cross-encoder scores: "pooled", or "dual", of vectors that are normalized or not."""

    scorer: Literal["pooled", "dual"] = "pooled"
    normalize: bool = True


POOLED = Scoring()


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

    def pairs(self, tokens: Tokens, query_rows: Rows, doc_rows: Rows) -> list[Ids]:
        """The same of rows of queries (n,) and of documents (n,)."""
        texts = zip(tokens.queries.take(query_rows), tokens.documents.take(doc_rows), strict=True)
        return [self.join(query, document) for query, document in texts]

    @property
    def longer(self) -> int:
        """How many tokens more a pair has than its texts alone; negative where it has fewer."""
        return len(self.before) + len(self.between) + len(self.after) - 2 * sum(self.around)


class CrossEncoder(nn.Module, ABC):
    """Read pairs of query and document.

    It is encoded with as a bi-encoder is (`Encoding.embed`), and takes the same fast path: what it makes of a pair is
    `dimension` numbers, of which `scores` makes one.
    """

    dimension: int

    def __init__(self, backbone: Any, layout: PairLayout) -> None:
        super().__init__()
        self.layout, self.backbone, self.config = layout, backbone, backbone.config
        if layout.separator is not None:
            backbone.embeddings = TypedEmbeddings(backbone.embeddings, layout.separator)

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence that it has positions for; None where positions are relative."""
        return positions(self.backbone)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Numbers `(n, dimension)` of pairs put together, `(n, L)`; `attention_mask (n, L)` is 0 at padding."""
        found = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        return self.pool(found.last_hidden_state, attention_mask, input_ids)

    @abstractmethod
    def pool(self, states: Tensor, attention_mask: Tensor, ids: Tensor) -> Tensor:
        """Numbers `(n, dimension)` in float32 of the last hidden states `(n, L, D)` of token ids `(n, L)`."""

    @abstractmethod
    def scores(self, found: Tensor) -> Tensor:
        """Scores `(n,)` of the numbers `(n, dimension)` of pairs."""

    def save(self, folder: Path, tokenizer: Path) -> None:
        """Write it in the layout of `transformers`, with the tokenizer of a model folder."""
        folder.mkdir(parents=True, exist_ok=True)
        typed = self.backbone.embeddings
        if isinstance(typed, TypedEmbeddings):
            self.backbone.embeddings = typed.embeddings
        try:
            self._save(folder)
        finally:
            self.backbone.embeddings = typed
        copy_tokenizer(tokenizer, folder)

    @abstractmethod
    def _save(self, folder: Path) -> None: ...


class PooledCrossEncoder(CrossEncoder):
    """The score is a logit `(n, 1)`, the log-odds of relevance.

    Args:
        model: a Hugging Face model for sequence classification with one label, or two: the second one's is the score
            then, less the first one's.
    """

    dimension = 1

    def __init__(self, model: Any, layout: PairLayout) -> None:
        super().__init__(getattr(model, model.base_model_prefix), layout)
        setattr(model, model.base_model_prefix, _Encoded(getattr(self.backbone, "pooler", None)))
        self._head = model

    def pool(self, states: Tensor, attention_mask: Tensor, ids: Tensor) -> Tensor:
        """Logits `(n, 1)`."""
        logits: Tensor = self._head(inputs_embeds=states, attention_mask=attention_mask).logits.float()
        return logits if logits.shape[1] == 1 else logits[:, 1:] - logits[:, :1]

    def scores(self, found: Tensor) -> Tensor:
        """The logits."""
        return found[:, 0]

    def _save(self, folder: Path) -> None:
        prefix = self._head.base_model_prefix
        encoded = getattr(self._head, prefix)
        setattr(self._head, prefix, self.backbone)
        try:
            self._head.save_pretrained(folder, safe_serialization=True)
        finally:
            setattr(self._head, prefix, encoded)


class DualCrossEncoder(CrossEncoder):
    """The score is the product of two vectors: the mean of the query's states, up to its separator, and the mean of the
    document's. Of a pair it makes `(2 D,)`, the query's vector first.

    Args:
        backbone: a Hugging Face encoder.
        normalize: scale both vectors to unit length, so that the score is a cosine.
    """

    def __init__(self, backbone: Any, layout: PairLayout, normalize: bool) -> None:
        super().__init__(backbone, layout)
        self.normalize, self.dimension = normalize, 2 * int(backbone.config.hidden_size)

    def pool(self, states: Tensor, attention_mask: Tensor, ids: Tensor) -> Tensor:
        """The two vectors, one after the other."""
        document = _separators_before(int(self.layout.between[0]), ids) > 0
        vectors = []
        for segment in (~document, document):
            weights = (segment & (attention_mask > 0)).unsqueeze(-1).float()
            vector = (states.float() * weights).sum(1) / weights.sum(1).clamp(min=1.0)
            vectors.append(F.normalize(vector, dim=-1) if self.normalize else vector)
        return torch.cat(vectors, dim=1)

    def scores(self, found: Tensor) -> Tensor:
        """The products."""
        queries, documents = found.chunk(2, dim=1)
        return (queries * documents).sum(1)

    def _save(self, folder: Path) -> None:
        self.backbone.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]


def _separators_before(separator: int, ids: Tensor) -> Tensor:
    """How many separators stand before each token `(n, L)` in its row."""
    found = (ids == separator).long()
    return found.cumsum(dim=1) - found


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
        before = _separators_before(self.separator, input_ids)
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


def load_cross_encoder(
    folder: Path, scoring: Scoring = POOLED, *, new_head: bool = False, dropout: float = 0.0
) -> CrossEncoder:
    """A cross-encoder from a model folder, in evaluation mode and float32.

    Args:
        new_head: give an encoder a head with random weights, to be trained; where there is one it is kept.
        dropout: the probability used wherever the model drops out, in training only.

    Raises:
        UserError: the folder holds no model for sequence classification, or one of more than two labels; for dual
            pooling, no encoder, or a tokenizer that puts nothing between two texts.
    """
    model: CrossEncoder
    if scoring.scorer == "pooled":
        model = PooledCrossEncoder(_classifier(folder, new_head), PairLayout.of(folder))
    else:
        backbone = load_encoder(folder, pooling="mean", normalize=False).backbone
        model = DualCrossEncoder(backbone, PairLayout.of(folder), scoring.normalize)
        if not len(model.layout.between):
            raise _no_cross_encoder(folder, "its tokenizer puts nothing between two texts")
    set_dropout(model, dropout)
    return model.eval()


def _classifier(folder: Path, new_head: bool) -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        headless = not any("SequenceClassification" in name for name in config.architectures or ())
        if new_head and headless:
            config.num_labels = 1
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
    inner = f"{model.base_model_prefix}."
    missing = sorted(  # transformers fills them with random numbers
        key
        for key in found["missing_keys"]
        if not new_head or (key.startswith(inner) and not key.startswith(f"{inner}pooler."))
    )
    if missing:
        raise _no_cross_encoder(folder, f"{len(missing)} weights are missing, the first {missing[0]}")
    if config.num_labels > 2:
        raise _no_cross_encoder(folder, f"it tells {config.num_labels} labels apart")
    return model


def _no_cross_encoder(folder: Path, why: str) -> UserError:
    return UserError(
        f'"{folder}" cannot be loaded as a cross-encoder: {why}',
        where="encoder.model",
        mend="Give a folder or hub id of a model for sequence classification with one label, such as "
        "cross-encoder/ms-marco-MiniLM-L6-v2.",
    )
