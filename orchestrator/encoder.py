"""The bi-encoder: one transformer for queries and documents, pooled to a vector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data import UserError
from orchestrator.modules import ROUTER

Pooling = Literal["cls", "mean", "pooler"]

POOLING = "1_Pooling"  # the folder that says how, in sentence-transformers' layout
LENGTH = "sentence_bert_config.json"  # the file that says where texts are cut


class BiEncoder(nn.Module):
    """Encode token sequences to vectors `(n, D)`, queries and documents alike.

    Args:
        backbone: a Hugging Face encoder that returns `last_hidden_state`.
        pooling: "cls" takes the first token's state, "mean" averages over the tokens, "pooler" takes the backbone's
            own pooler (first token through a dense layer and tanh).
        normalize: scale the vectors to unit length, so that their dot product is the cosine.
    """

    def __init__(self, backbone: nn.Module, pooling: Pooling, normalize: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling
        self.normalize = normalize
        self.projection: nn.Linear | None = None  # of the pooled states, to vectors of another dimension

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Vectors `(n, D)` in float32 of the token ids `(n, L)`; `attention_mask (n, L)` is 0 at padding."""
        return self.pool(
            self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state, attention_mask
        )

    def pool(self, states: Tensor, mask: Tensor, ids: Tensor | None = None) -> Tensor:
        """Vectors `(n, D)` of the last hidden states `(n, L, D)`; `mask (n, L)` is 0 at padding. No `ids` are read."""
        states = states if states.dtype == torch.float64 else states.float()
        if self.pooling == "pooler":
            vectors = self.backbone.pooler(states)  # type: ignore[operator]
        elif self.pooling == "cls":
            vectors = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            vectors = (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        if self.projection is not None:
            vectors = self.projection(vectors)
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    @property
    def config(self) -> Any:
        """The backbone's Hugging Face configuration."""
        return self.backbone.config

    @property
    def max_tokens(self) -> int | None:
        """The longest sequence that it has positions for; None where positions are relative."""
        return positions(self.backbone)

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return int(self.projection.out_features if self.projection is not None else self.config.hidden_size)

    def project(self, dimension: int, seed: int) -> None:
        """Give the vectors another dimension by a linear map; no map where they have it already.

        It starts as a random orthogonal one, which into more dimensions leaves all angles and lengths as they are.
        """
        if dimension == self.dimension:
            return
        linear = nn.Linear(self.dimension, dimension, bias=False)
        nn.init.orthogonal_(linear.weight, generator=torch.Generator().manual_seed(seed))
        self.projection = linear


def own_pooling(folder: Path) -> Pooling:
    """How sentence-transformers' files in a model folder say that it pools; "mean" where there are none.

    Raises:
        UserError: in a way that is not known here.
    """
    file = folder / POOLING / "config.json"
    if not file.is_file():
        return "mean"
    config = json.loads(file.read_text(encoding="utf-8"))
    before = {key.removeprefix("pooling_mode_") for key, value in config.items() if value is True}
    named = config.get("pooling_mode") or sorted(before - {"include_prompt"})
    match named:
        case "mean" | ["mean"] | ["mean_tokens"]:
            return "mean"
        case "cls" | ["cls"] | ["cls_token"]:
            return "pooler" if _activation(folder, ".Tanh") else "cls"
    raise UserError(
        f"the model pools by {named if isinstance(named, str) else ' and '.join(named)}, which is not known here",
        where="encoder.pooling",
        mend="Set it to cls, mean or pooler.",
    )


def _activation(folder: Path, name: str) -> bool:
    """Whether a dense module with such an activation comes after the pooling."""
    files = folder.glob("?_Dense/config.json")
    return any(json.loads(file.read_text(encoding="utf-8"))["activation_function"].endswith(name) for file in files)


def parameters(encoder: nn.Module) -> int:
    """How many numbers there are to learn in it."""
    return sum(parameter.numel() for parameter in encoder.parameters())


def layers_of(kept: tuple[int, ...] | None, layers: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Which layers of a model `layers` of the ones that are `kept` of it are; None is all.

    Raises:
        UserError: there are not so many.
    """
    if kept is None or layers is None:
        return kept if layers is None else layers
    if max(layers) >= len(kept):
        raise _too_few(max(layers), len(kept))
    return tuple(kept[layer] for layer in layers)


def positions(backbone: nn.Module) -> int | None:
    """The most tokens of a sequence that a backbone has positions for; None where positions are relative."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin count positions from behind the padding's id.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def pad_id(folder: Path) -> int:
    """The token id that pads; what it is matters only to encoders that count positions from it (RoBERTa)."""
    from transformers import AutoConfig

    return int(getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "pad_token_id", None) or 0)


def load_encoder(
    folder: Path,
    *,
    pooling: Pooling,
    normalize: bool,
    layers: tuple[int, ...] | None = None,
    dropout: float = 0.0,
) -> BiEncoder:
    """A bi-encoder from a model folder, in evaluation mode and float32.

    Args:
        folder: config.json and model.safetensors, as `transformers` saves them.
        layers: which transformer layers to keep, counted from 0; None keeps all.
        dropout: the probability used wherever the model drops out, in training only.

    Raises:
        UserError: the folder holds no encoder, it has no pooler, or it has fewer layers than asked for.
    """
    from transformers import AutoConfig, AutoModel

    quiet_transformers()
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        # Eager attention: under bf16 autocast on a CPU it trains 1.4 times as fast as sdpa at these lengths.
        attention = "sdpa" if torch.cuda.is_available() else "eager"
        backbone, found = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation=attention,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _unloadable(folder, str(error).splitlines()[0]) from error
    # What a file lacks, transformers fills with random numbers.
    missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise _unloadable(folder, f"{len(missing)} weights are missing, the first {missing[0]}")
    has_pooler = getattr(backbone, "pooler", None) is not None and len(missing) == len(found["missing_keys"])
    if pooling == "pooler" and not has_pooler:
        raise UserError("this encoder has no pooler", where="encoder.pooling", mend="Use cls or mean.")
    if pooling != "pooler" and getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # it would only be trained by weight decay and saved for nothing
    if layers is not None:
        keep_layers(backbone, layers)
    set_dropout(backbone, dropout)
    encoder = BiEncoder(backbone, pooling, normalize)
    encoder.projection = _projection(folder, pooling)
    return encoder.eval()


def _projection(folder: Path, pooling: Pooling) -> nn.Linear | None:
    """The linear map behind the pooling that sentence-transformers' files in a model folder describe, if they do.

    Raises:
        UserError: there is a map that is not linear, and that is no pooler, which the backbone has, or more than one.
    """
    found: nn.Linear | None = None
    for file in sorted(folder.glob("?_Dense/config.json")):
        config = json.loads(file.read_text(encoding="utf-8"))
        activation = config["activation_function"].rsplit(".", 1)[-1]
        if activation != "Identity" and pooling != "pooler":
            raise _unloadable(folder, f"a dense layer with {activation} comes after its pooling by {pooling}")
        if activation == "Identity":
            if found is not None:
                raise _unloadable(folder, "several linear layers come after its pooling")
            found = nn.Linear(config["in_features"], config["out_features"], bias=config["bias"])
            state = load_file(str(file.with_name("model.safetensors")))
            found.load_state_dict({name.removeprefix("linear."): value for name, value in state.items()})
    return found


def quiet_transformers() -> None:
    """No bars, and no word of poolers and heads that nobody wants."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def copy_tokenizer(model: Path, folder: Path) -> None:
    """Copy the files of a model folder's tokenizer to another folder."""
    for pattern in ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "spiece.model"):
        for file in model.glob(pattern):
            shutil.copyfile(file, folder / file.name)


def set_dropout(model: Any, probability: float) -> None:
    """Drop out with this probability wherever a Hugging Face model drops out."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        elif hasattr(module, "attention_dropout") and isinstance(module.attention_dropout, float):
            module.attention_dropout = probability


def _unloadable(folder: Path, why: str) -> UserError:
    return UserError(
        f'"{folder}" cannot be loaded as an encoder: {why}',
        where="encoder.model",
        mend="Give a folder or hub id of a BERT-like encoder.",
    )


def _too_few(layer: int, count: int) -> UserError:
    return UserError(
        f"layer {layer} of an encoder with {count}",
        where="encoder.layers",
        mend=f"Give layers from 0 to {count - 1}.",
    )


def keep_layers(backbone: Any, layers: tuple[int, ...]) -> None:
    """Take all other layers out of a Hugging Face model. Raises UserError where that cannot be."""
    count = backbone.config.num_hidden_layers
    if max(layers) >= count:
        raise _too_few(max(layers), count)
    for parent in backbone.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                setattr(parent, name, nn.ModuleList(child[layer] for layer in layers))
                _describe_kept(backbone, layers)
                return
    raise UserError(
        f"the layers of a {backbone.config.model_type} encoder are not found",
        where="encoder.layers",
        mend="Leave `layers` out to keep all of them.",
    )


def _describe_kept(backbone: Any, layers: tuple[int, ...]) -> None:
    """Make the configuration that of the kept layers, so that what is saved loads again as it is."""
    from transformers import AutoModel

    config, before = backbone.config, backbone.config.num_hidden_layers
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):  # full or sliding attention, by layer
        config.layer_types = [config.layer_types[layer] for layer in layers]
    with torch.device("meta"):
        loaded = AutoModel.from_config(config).state_dict().keys()
    if {key for key in backbone.state_dict() if not key.startswith("pooler.")} - set(loaded):
        first = min(set(range(before)) - set(layers))
        raise UserError(
            f"a {config.model_type} encoder of layers {', '.join(map(str, layers))} alone cannot be saved and loaded "
            "again",
            where="encoder.layers",
            mend=f"Keep layer {first}.",
        )


def save_encoder(encoder: BiEncoder, folder: Path, *, tokenizer: Path, max_tokens: int) -> None:
    """Write the encoder in the folder layout that sentence-transformers (and `load_encoder`) loads.

    Args:
        tokenizer: the model folder whose tokenizer files go along.
        max_tokens: the length at which texts are truncated.
    """
    _save_modules(Tower(encoder, tokenizer, max_tokens), folder)


class Tower(NamedTuple):
    """An encoder of queries, or of documents, with its tokenizer's folder and the length where it cuts texts."""

    encoder: BiEncoder
    tokenizer: Path
    max_tokens: int


QUERY_TOWER, DOCUMENT_TOWER = "query_0_Transformer", "document_0_Transformer"


def save_towers(queries: Tower, documents: Tower, folder: Path) -> None:
    """Write two encoders as one model, in the layout of sentence-transformers' Router (`encode_query`,
    `encode_document`); each of them is also a model folder of its own, as `save_encoder` writes one.
    """
    structure: dict[str, list[str]] = {}
    types: dict[str, str] = {}
    for route, place, tower in (("query", QUERY_TOWER, queries), ("document", DOCUMENT_TOWER, documents)):
        names = _save_modules(tower, folder / place)
        paths = [place, *(f"{place}/{i}_{name}" for i, name in enumerate(names) if i)]
        structure[route] = paths
        types |= {path: f"sentence_transformers.models.{name}" for path, name in zip(paths, names, strict=True)}
    router = {"types": types, "structure": structure, "parameters": {"default_route": None, "allow_empty_key": True}}
    _write_json(folder / ROUTER, router)
    _write_modules(folder, [("", "Router")])
    _write_similarity(folder, queries.encoder.normalize and documents.encoder.normalize)


def _save_modules(tower: Tower, folder: Path) -> list[str]:
    """Write an encoder, with what comes after its backbone in folders of their own; the modules' names."""
    encoder = tower.encoder
    folder.mkdir(parents=True, exist_ok=True)
    encoder.backbone.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    copy_tokenizer(tower.tokenizer, folder)
    _write_json(folder / LENGTH, {"max_seq_length": tower.max_tokens, "do_lower_case": False})
    modules = ["Transformer", "Pooling"]
    mode = "mean" if encoder.pooling == "mean" else "cls"
    _write_json(
        folder / POOLING / "config.json",
        {
            "word_embedding_dimension": int(encoder.config.hidden_size),
            "pooling_mode_cls_token": mode == "cls",
            "pooling_mode_mean_tokens": mode == "mean",
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    )
    if encoder.pooling == "pooler":
        _save_dense(encoder.backbone.pooler.dense, "Tanh", folder / f"{len(modules)}_Dense")  # type: ignore
        modules.append("Dense")
    if encoder.projection is not None:
        _save_dense(encoder.projection, "Identity", folder / f"{len(modules)}_Dense")
        modules.append("Dense")
    if encoder.normalize:
        (folder / f"{len(modules)}_Normalize").mkdir(exist_ok=True)
        modules.append("Normalize")
    _write_modules(folder, [("" if i == 0 else f"{i}_{name}", name) for i, name in enumerate(modules)])
    _write_similarity(folder, encoder.normalize)
    return modules


def _write_modules(folder: Path, modules: list[tuple[str, str]]) -> None:
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(modules)
    ]
    _write_json(folder / "modules.json", entries)


def _write_similarity(folder: Path, normalized: bool) -> None:
    similarity = "cosine" if normalized else "dot"  # search ranks by the inner product
    _write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": similarity})


def _save_dense(dense: nn.Linear, activation: str, folder: Path) -> None:
    """W x (+ b) and an activation, as a Dense module of sentence-transformers; after `cls` pooling a pooler is one."""
    module = "activation" if activation == "Tanh" else "linear"
    _write_json(
        folder / "config.json",
        {
            "in_features": dense.in_features,
            "out_features": dense.out_features,
            "bias": dense.bias is not None,
            "activation_function": f"torch.nn.modules.{module}.{activation}",
        },
    )
    state = {f"linear.{name}": value.detach().contiguous() for name, value in dense.state_dict().items()}
    save_file(state, str(folder / "model.safetensors"))


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
