"""A sequence-to-sequence model that writes queries: loaded, made of an encoder, and what it writes of documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from data import Shard, UserError, open_collection
from data.arrow import numbers, read_arrow
from data.generators import shard_rows
from orchestrator import shards
from orchestrator.encoder import copy_tokenizer, keep_layers, positions, quiet_transformers, set_dropout
from orchestrator.encoding import TokenCount, chunks, device
from orchestrator.packed import Ids

SHARD_DOCUMENTS = 256
# Tokens of the documents that are read at once, padding included; each is then written of side by side, token by token.
TOKEN_BUDGET = {"cpu": 8192, "cuda": 131_072}


class Writing(NamedTuple):
    """How queries are written: what of a document the model is given, and how the next token is drawn."""

    prompt: str
    document_tokens: int
    query_tokens: int
    per_document: int
    temperature: float
    top_k: int | None
    top_p: float
    seed: int
    precision: str


class WriteQueries:
    """The worker: what a model writes of each of a shard's documents, as `document` (its row) and `text`.

    What is drawn depends on the seed and on the documents that are read at once, which are the same whatever the number
    of workers. A document of which nothing but blanks is written gives nothing, and of equal texts it gives one.

    Args:
        folder: of the model and its tokenizer.
        collection: its folder in the store.
        rows: an Arrow file with the rows of the documents, `document`.
    """

    def __init__(self, folder: Path, collection: Path, rows: Path, writing: Writing, threads: int) -> None:
        from transformers import AutoTokenizer

        torch.set_num_threads(threads)
        self._device, self._writing = device(), writing
        dtype = torch.bfloat16 if writing.precision == "bf16" else torch.float32
        self._model: Any = load_generator(folder).to(device=self._device, dtype=dtype)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._texts, self._rows = open_collection(collection).documents["text"], numbers(read_arrow(rows)["document"])

    def __call__(self, shard: Shard) -> pa.Table:
        meter = shards.Meter(self._device.type, self._writing.precision)
        rows = shard_rows(self._rows, shard, SHARD_DOCUMENTS)
        texts = [self._writing.prompt.replace("{text}", self._texts[row].as_py()) for row in rows.tolist()]
        limit = self._writing.document_tokens
        sequences = self._tokenizer(texts, truncation=True, max_length=limit, return_token_type_ids=False)["input_ids"]
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        written: dict[int, list[str]] = {}
        for chunk in chunks(lengths, TOKEN_BUDGET[self._device.type]):
            first = int(rows[chunk[0]])
            found = self._write([sequences[place] for place in chunk], first, meter.count)
            written |= dict(zip(chunk.tolist(), found, strict=True))
        documents = [row for place, row in enumerate(rows.tolist()) for _ in written[place]]
        queries = [text for place in range(len(rows)) for text in written[place]]
        table = pa.table({"document": pa.array(documents, pa.int64()), "text": pa.array(queries, pa.string())})
        return meter.into(table, len(rows))

    def _write(self, sequences: Sequence[Ids], first: int, count: TokenCount) -> list[list[str]]:
        """The queries of each of some documents; where they fill the device's memory, of one half and of the other."""
        try:
            return self._generate(sequences, first, count)
        except torch.OutOfMemoryError:
            if len(sequences) == 1:
                raise
            torch.cuda.empty_cache()
            half = len(sequences) // 2
        return self._write(sequences[:half], first, count) + self._write(sequences[half:], first, count)

    @torch.inference_mode()
    def _generate(self, sequences: Sequence[Ids], first: int, count: TokenCount) -> list[list[str]]:
        writing, tokenizer = self._writing, self._tokenizer
        padded = tokenizer.pad({"input_ids": list(sequences)}, return_tensors="pt").to(self._device)
        torch.manual_seed(writing.seed * 1_000_003 + first)
        ids: Tensor = self._model.generate(
            **padded,
            do_sample=True,
            num_beams=1,
            num_return_sequences=writing.per_document,
            max_new_tokens=writing.query_tokens,
            min_length=0,
            temperature=writing.temperature,
            top_k=writing.top_k or 0,
            top_p=writing.top_p,
        )
        read, wrote = int(padded["attention_mask"].sum()), int((ids != tokenizer.pad_token_id).sum())
        count.include(written_flops(self._model, read, wrote))
        texts = [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
        of_each = [texts[at : at + writing.per_document] for at in range(0, len(texts), writing.per_document)]
        return [[text for text in dict.fromkeys(found) if text] for found in of_each]


def written_flops(model: Any, read: int, wrote: int) -> TokenCount:
    """So many tokens that were read by the encoder and written by the decoder: two FLOPs for each parameter of the
    matrices of the one or of the other; attention's products, small at these lengths, are left out.
    """
    encoder = _matrices(model.get_encoder())
    decoder = _matrices(model) - encoder  # with the head over the vocabulary, wherever the model has it
    return TokenCount(read + wrote, read + wrote, 2.0 * (read * encoder + wrote * decoder))


def _matrices(model: nn.Module) -> int:
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))


def load_generator(folder: Path) -> Any:
    """A model for sequence-to-sequence generation from its folder, in evaluation mode and float32.

    Raises:
        UserError: the folder holds none, or lacks weights.
    """
    from transformers import AutoModelForSeq2SeqLM

    quiet_transformers()
    try:
        model, found = AutoModelForSeq2SeqLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _no_generator(folder, str(error).splitlines()[0]) from error
    # Transformers fills them with random numbers; a pooler is not asked.
    if missing := sorted(key for key in found["missing_keys"] if "pooler." not in key):
        raise _no_generator(folder, f"{len(missing)} weights are missing, the first {missing[0]}")
    return model.eval()


def read_limit(model: Any) -> int | None:
    """The most tokens that the model reads; None where positions are relative."""
    encoder = model.get_encoder()
    known: int | None = getattr(encoder.config, "max_position_embeddings", None)
    return positions(encoder) or known


def warm_started(folder: Path, layers: tuple[int, ...] | None = None, dropout: float = 0.0) -> Any:
    """An encoder and a decoder that start from an encoder's weights (Rothe et al. 2020, arXiv 1907.12461).

    What the decoder has beyond them, attention to the document above all, is random: it has to be trained.

    Raises:
        UserError: there is no decoder of the encoder's kind.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, EncoderDecoderModel

    quiet_transformers()
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    begins, ends = tokenizer.cls_token_id, tokenizer.sep_token_id
    try:
        decoder = AutoModelForCausalLM.from_pretrained(folder, is_decoder=True, add_cross_attention=True, **options)
        encoder = AutoModel.from_pretrained(folder, **options)
        if begins is None or ends is None or not decoder.config.add_cross_attention:
            raise ValueError
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"no decoder can be made of a {config.model_type} encoder",
            where="generation.model",
            mend="Name one such as a BERT or RoBERTa, or take another generator.",
        ) from error
    encoder.pooler = None
    if layers is not None:
        keep_layers(encoder, layers)
        keep_layers(getattr(decoder, decoder.base_model_prefix), layers)
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    for settings in (model.config, model.generation_config):
        settings.decoder_start_token_id, settings.eos_token_id = begins, ends
        settings.pad_token_id = tokenizer.pad_token_id
    set_dropout(model, dropout)
    return model


def save_generator(model: Any, folder: Path, tokenizer: Path) -> None:
    """Write the model with its tokenizer; `load_generator` loads it, and so does transformers."""
    model.save_pretrained(folder, safe_serialization=True)
    copy_tokenizer(tokenizer, folder)


def _no_generator(folder: Path, why: str) -> UserError:
    return UserError(
        f'"{folder}" cannot be loaded as a sequence-to-sequence model: {why}',
        where="encoder.model",
        mend="Give a folder or hub id of one, such as a T5 or BART.",
    )
