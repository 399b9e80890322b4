"""The bi-encoder, pinned: pooling x normalization equal a naive loop over the backbone's states; padding does not
matter; positions count from the pad id; `layers` keeps the right ones of every family and reloads; dropout acts in
training alone; a saved folder loads here bit for bit and in sentence-transformers; what is refused, word for word.
"""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, LAYERS, save, sequences, state_equal

from data import UserError
from orchestrator.encoder import BiEncoder, load_encoder, own_pooling, save_encoder
from orchestrator.encoding import Encoding, pad

LENGTHS = [7, 2, 12, 5]
TEXTS = [
    "copper stills",
    "the spirit of the oak still, in yeast.",
    "yeast",
    "a longer text in which the copper of the still is named, and the oak, and the spirit, and the yeast of the still",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved random encoder of each family."""
    return {family: save(tmp_path_factory.mktemp(family), family) for family in FAMILIES}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A saved random BERT with a tokenizer."""
    return save(tmp_path_factory.mktemp("with-tokenizer"), "bert", tokenizer=tokenizer_folder, layers=2)


def padded(encoder: BiEncoder, lengths: list[int] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor]:
    return pad(sequences(lengths), encoder.config.pad_token_id)


def states(encoder: BiEncoder, ids: Any) -> Any:
    """The backbone's output for one sequence without padding."""
    return encoder.backbone(input_ids=torch.tensor(ids[None], dtype=torch.int64))


def naive(encoder: BiEncoder, pooling: str, normalize: bool, lengths: list[int] = LENGTHS) -> torch.Tensor:
    """The definition: one sequence at a time, one number after the other."""
    vectors = []
    for ids in sequences(lengths):
        output = states(encoder, ids)
        if pooling == "pooler":
            dense = encoder.backbone.pooler.dense
            vector = torch.tanh(dense.weight @ output.last_hidden_state[0, 0] + dense.bias)
        elif pooling == "cls":
            vector = output.last_hidden_state[0, 0]
        else:
            vector = sum(output.last_hidden_state[0, i] for i in range(len(ids))) / len(ids)
        if normalize:
            vector = vector / sum(x * x for x in vector) ** 0.5
        vectors.append(vector)
    return torch.stack(vectors)


@pytest.mark.parametrize(("pooling", "normalize"), product(("cls", "mean", "pooler"), (True, False)))
def test_pooling_equals_the_naive_loop(folders: dict[str, Path], pooling: Any, normalize: bool) -> None:
    encoder = load_encoder(folders["bert"], pooling=pooling, normalize=normalize)
    with torch.no_grad():
        ours = encoder(*padded(encoder))
        torch.testing.assert_close(ours, naive(encoder, pooling, normalize), atol=1e-5, rtol=0)
    assert (ours.shape, ours.dtype, encoder.dimension) == ((4, 32), torch.float32, 32)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_matter_and_positions_start_where_the_family_starts_them(
    folders: dict[str, Path], family: str
) -> None:
    encoder = load_encoder(folders[family], pooling="mean", normalize=True)
    ids, mask = padded(encoder)
    with torch.no_grad():
        torch.testing.assert_close(encoder(ids, mask), naive(encoder, "mean", True), atol=1e-5, rtol=0)
        wider = torch.nn.functional.pad(ids, (0, 9), value=encoder.config.pad_token_id)
        torch.testing.assert_close(
            encoder(wider, torch.nn.functional.pad(mask, (0, 9))), encoder(ids, mask), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_positions_count_from_the_pad_id(folders: dict[str, Path], family: str) -> None:
    encoder = load_encoder(folders[family], pooling="cls", normalize=False)
    assert encoder.config.pad_token_id == 1
    ids, mask = padded(encoder)
    with torch.no_grad():
        for row, length in enumerate(LENGTHS):
            alone = encoder.backbone(
                input_ids=ids[row : row + 1, :length], position_ids=torch.arange(2, 2 + length)[None]
            )
            torch.testing.assert_close(
                encoder(ids, mask)[row], alone.last_hidden_state[0, 0], atol=1e-5, rtol=0, msg=family
            )


def stack(encoder: BiEncoder) -> Any:
    """The list of a backbone's layers."""
    return next(m for m in encoder.backbone.modules() if isinstance(m, torch.nn.ModuleList))


class Skip(torch.nn.Module):
    """A layer that does nothing."""

    def __init__(self, layer: Any, as_tuple: bool) -> None:
        super().__init__()
        self.attention_type, self.as_tuple = getattr(layer, "attention_type", None), as_tuple

    def forward(self, states: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        return (states,) if self.as_tuple else states


@pytest.mark.parametrize("kept", [(0,), (0, 3), (0, 1, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_keeps_the_right_ones(
    folders: dict[str, Path], tmp_path: Path, family: str, kept: tuple[int, ...]
) -> None:
    whole = load_encoder(folders[family], pooling="mean", normalize=False)
    cut = load_encoder(folders[family], pooling="mean", normalize=False, layers=kept)
    assert cut.config.num_hidden_layers == len(kept) == len(stack(cut))
    for layer, origin in zip(stack(cut), kept, strict=True):
        assert state_equal(layer.state_dict(), stack(whole)[origin].state_dict())
    for origin in set(range(LAYERS)) - set(kept):
        stack(whole)[origin] = Skip(stack(whole)[origin], as_tuple=family == "mpnet")
    save_encoder(cut, tmp_path, tokenizer=tmp_path / "none", max_tokens=16)
    again = load_encoder(tmp_path, pooling="mean", normalize=False)
    assert again.config.num_hidden_layers == len(kept)
    ids, mask = padded(cut)
    with torch.no_grad():
        assert torch.equal(cut(ids, mask), whole(ids, mask))
        assert torch.equal(cut(ids, mask), again(ids, mask))


def test_layers_that_could_not_be_loaded_again_are_refused(folders: dict[str, Path]) -> None:
    # ModernBERT's first layer has no norm before its attention: another one in its place would lose its own.
    with pytest.raises(UserError) as refused:
        load_encoder(folders["modernbert"], pooling="mean", normalize=True, layers=(1, 3))
    assert str(refused.value) == (
        "encoder.layers: a modernbert encoder of layers 1, 3 alone cannot be saved and loaded again. Keep layer 0."
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_acts_in_training_and_there_alone(folders: dict[str, Path], family: str) -> None:
    without = load_encoder(folders[family], pooling="mean", normalize=False)
    ids, mask = padded(without)
    with torch.no_grad():
        at_rest = without(ids, mask)
        assert not without.training
        assert torch.equal(without.train()(ids, mask), at_rest)
        encoder = load_encoder(folders[family], pooling="mean", normalize=False, dropout=0.3)
        assert torch.equal(encoder(ids, mask), at_rest)
        encoder.train()
        assert not torch.allclose(encoder(ids, mask), encoder(ids, mask), atol=1e-3)


def test_dropout_reaches_the_attention(folders: dict[str, Path]) -> None:
    # With hidden dropout alone the probabilities of attention would still sum to 1.
    for family in FAMILIES:
        encoder = load_encoder(folders[family], pooling="mean", normalize=False, dropout=0.25).train()
        found = {
            module.p if isinstance(module, torch.nn.Dropout) else module.attention_dropout
            for module in encoder.modules()
            if isinstance(module, torch.nn.Dropout) or hasattr(module, "attention_dropout")
        }
        assert found == {0.25}, family


@pytest.mark.parametrize(("pooling", "normalize"), product(("cls", "mean", "pooler"), (True, False)))
def test_a_saved_folder_loads_here_and_in_sentence_transformers(
    bert: Path, tmp_path: Path, pooling: Any, normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer
    from transformers import AutoTokenizer

    encoder = load_encoder(bert, pooling=pooling, normalize=normalize)
    save_encoder(encoder, tmp_path / "saved", tokenizer=bert, max_tokens=12)
    again = load_encoder(tmp_path / "saved", pooling=pooling, normalize=normalize)
    assert state_equal(encoder.state_dict(), again.state_dict())
    assert own_pooling(tmp_path / "saved") == pooling

    tokenizer = AutoTokenizer.from_pretrained(bert)
    ids = [tokenizer(text, truncation=True, max_length=12)["input_ids"] for text in TEXTS]
    assert len(tokenizer(TEXTS[3])["input_ids"]) > 12  # so that it matters where a text is cut
    encoding = Encoding(torch.device("cpu"), "fp32", token_budget=64, pad_id=0)
    ours = encoding.embed(encoder, ids)
    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert theirs.max_seq_length == 12
    vectors = theirs.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(ours, vectors, atol=1e-5, rtol=0)
    # What search ranks by: the inner product.
    torch.testing.assert_close(ours @ ours.T, theirs.similarity(vectors, vectors), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mode", ["cls", "mean", "max", ("mean", "max")])
def test_how_a_model_of_sentence_transformers_pools(bert: Path, tmp_path: Path, mode: Any) -> None:
    from sentence_transformers import SentenceTransformer, models

    layers = [models.Transformer(str(bert)), models.Pooling(32, pooling_mode=mode)]
    SentenceTransformer(modules=layers, device="cpu").save(str(tmp_path / "theirs"))
    if mode in ("cls", "mean"):
        assert own_pooling(tmp_path / "theirs") == mode
        return
    with pytest.raises(UserError) as refused:
        own_pooling(tmp_path / "theirs")
    named = mode if isinstance(mode, str) else " and ".join(mode)
    what = f"encoder.pooling: the model pools by {named}, which is not known here. Set it to cls, mean or pooler."
    assert str(refused.value) == what


def test_a_dense_layer_that_is_no_pooler_is_refused_and_not_passed_over(bert: Path, tmp_path: Path) -> None:
    encoder = load_encoder(bert, pooling="pooler", normalize=True)
    save_encoder(encoder, tmp_path / "saved", tokenizer=bert, max_tokens=12)
    told = message(tmp_path / "saved", pooling="mean")
    assert "a dense layer with Tanh comes after its pooling by mean" in told


def test_older_files_say_how_a_model_pools_key_by_key(tmp_path: Path) -> None:
    assert own_pooling(tmp_path) == "mean"
    file = tmp_path / "1_Pooling" / "config.json"
    file.parent.mkdir()
    modes = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    for on, pooling in (("cls_token", "cls"), ("mean_tokens", "mean")):
        file.write_text(json.dumps({**modes, f"pooling_mode_{on}": True, "include_prompt": True}))
        assert own_pooling(tmp_path) == pooling
    file.write_text(json.dumps({**modes, "pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}))
    with pytest.raises(UserError, match="pools by cls_token and lasttoken"):
        own_pooling(tmp_path)


def message(folder: Path, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        load_encoder(folder, **{"pooling": "mean", "normalize": True, **options})
    return str(refused.value)


def test_too_many_layers(folders: dict[str, Path]) -> None:
    assert message(folders["bert"], layers=(0, 4)) == (
        "encoder.layers: layer 4 of an encoder with 4. Give layers from 0 to 3."
    )


@pytest.mark.parametrize("family", ["distilbert", "modernbert"])
def test_a_family_without_pooler(folders: dict[str, Path], family: str) -> None:
    assert message(folders[family], pooling="pooler") == (
        "encoder.pooling: this encoder has no pooler. Use cls or mean."
    )


def test_a_pooler_that_was_never_trained_is_no_pooler(folders: dict[str, Path], tmp_path: Path) -> None:
    encoder = load_encoder(folders["bert"], pooling="mean", normalize=True)
    save_encoder(encoder, tmp_path, tokenizer=tmp_path / "none", max_tokens=16)
    assert message(tmp_path, pooling="pooler") == "encoder.pooling: this encoder has no pooler. Use cls or mean."


def test_folders_that_hold_no_encoder(folders: dict[str, Path], tmp_path: Path) -> None:
    mend = "Give a folder or hub id of a BERT-like encoder."

    def broken(name: str) -> Path:
        return Path(shutil.copytree(folders["bert"], tmp_path / name))

    empty = tmp_path / "empty"
    empty.mkdir()
    no_weights = broken("no-weights")
    (no_weights / "model.safetensors").unlink()
    bad_config = broken("bad-config")
    (bad_config / "config.json").write_text("{")
    cut_off = broken("cut-off")
    (cut_off / "model.safetensors").write_bytes((folders["bert"] / "model.safetensors").read_bytes()[:5000])
    other_size = broken("other-size")
    config = json.loads((other_size / "config.json").read_text())
    (other_size / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    for folder in (tmp_path / "nowhere", empty, no_weights, bad_config, cut_off, other_size):
        begin = f'encoder.model: "{folder}" cannot be loaded as an encoder: '
        text = message(folder)
        assert text.startswith(begin), text
        assert text.endswith(mend), text
        assert "\n" not in text


def test_a_file_that_lacks_weights_is_not_filled_up_at_random(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["bert"], tmp_path / "lacking"))
    state = load_file(folder / "model.safetensors")
    lost = [name for name in state if re.search(r"layer\.3\.output\.dense", name)]
    assert len(lost) == 2
    save_file({k: v for k, v in state.items() if k not in lost}, folder / "model.safetensors", {"format": "pt"})
    assert message(folder) == (
        f'encoder.model: "{folder}" cannot be loaded as an encoder: 2 weights are missing, the first '
        "encoder.layer.3.output.dense.bias. Give a folder or hub id of a BERT-like encoder."
    )
