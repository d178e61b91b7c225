"""Tiny random checkpoints with real tokenizers, made in a fraction of a second: the sources that the tests convert.

Every weight is random, biases and norms too, so that a swapped, dropped or untouched tensor shows in the outputs.
"""

from __future__ import annotations

import json
from pathlib import Path

from effconv.convert.families.registry import FAMILIES

BRACKETED = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
ANGLED = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
# By the class of a family's tokenizer; a family that is not here has a tokenizer of its own to be made below.
SPECIAL_TOKENS = {
    "BertTokenizer": BRACKETED,
    "ElectraTokenizer": BRACKETED,
    "DistilBertTokenizer": BRACKETED,
    "RobertaTokenizer": ANGLED,
    "BartTokenizer": ANGLED,
    "CamembertTokenizer": ANGLED,
    "XLMRobertaTokenizer": ANGLED,
    "BarthezTokenizer": ANGLED,
    "AlbertTokenizer": BRACKETED
    | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"},
    "RemBertTokenizer": BRACKETED
    | {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"},
    "MPNetTokenizer": ANGLED | {"unk_token": "[UNK]"},
    "T5Tokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
    "PegasusTokenizer": {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask_2>"},
}
BYTE_BPE = ("RobertaTokenizer", "BartTokenizer")
TOKENIZER_CLASSES = {"mbart": "BarthezTokenizer"}  # mBART's own adds 25 languages to the vocabulary
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "a",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "with",
    "as",
    "he",
    "be",
    "by",
    "at",
    "this",
    "had",
    "not",
    "are",
    "but",
    "from",
    "or",
    "have",
    "an",
    "they",
]


def save_tiny(
    folder: Path | str,
    family: str = "bert",
    head: str = "ForMaskedLM",
    positions: int = 64,
    *,
    seed: int = 0,
    tokenizer: bool = True,
    safetensors: bool = True,
    **config: object,
) -> Path:
    """Save a random model of one family and head, with its tokenizer, and return the folder.

    Args:
        folder: where to; made if missing.
        family: one of effconv's.
        head: the class's name without the family: `ForMaskedLM`, `ForSequenceClassification`, ..., or `Model`. The
            whole name of a model that the family is a part of.
        positions: how many tokens it takes (RoBERTa's table gets its two extra rows on top).
        seed: for the weights; the same seed gives the same bytes.
        tokenizer: whether to save one.
        safetensors: False writes `pytorch_model.bin`.
        config: any field of the config, over the tiny defaults (under DistilBERT's own names for DistilBERT).
    """
    import torch
    import transformers

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size = save_tokenizer(folder, family, positions) if tokenizer else len(wordpiece_vocab())
    code = FAMILIES[family].code
    settings = {**tiny_config(family, positions), "vocab_size": vocab_size, **config}
    model_config = getattr(transformers, code.config_class)(**settings)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        whole = head in FAMILIES[family].wholes
        model = getattr(transformers, head if whole else f"{code.class_prefix}{head}")(model_config).eval()
        trained = [
            parameter for parameter in model.parameters() if parameter.requires_grad
        ]  # Pegasus' sinusoids are not
        for tensor in (*trained, *(buffer for name, buffer in model.named_buffers() if name == "final_logits_bias")):
            tensor.add_(torch.randn_like(tensor) * 0.1)
    if safetensors:
        model.save_pretrained(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder


def dense(family: str, head: str, **config):
    """A tiny random model that was never saved."""
    import torch
    import transformers

    torch.manual_seed(0)
    settings = {"bos_token_id": 2, **tiny_config(family), "vocab_size": 60, **config}
    kind = getattr(transformers, FAMILIES[family].code.class_prefix + head)
    return kind(getattr(transformers, FAMILIES[family].code.config_class)(**settings)).eval()


def tiny_config(family: str, positions: int = 64) -> dict[str, object]:
    """The fields of a tiny model's config, but for the size of its vocabulary."""
    if family == "distilbert":
        return {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": positions}
    if not FAMILIES[family].positions:  # T5's and mT5's; their heads need not add up to d_model
        sizes = {"d_model": 32, "d_kv": 4, "d_ff": 64, "num_layers": 2, "num_heads": 4, "n_positions": positions}
        return {**sizes, "relative_attention_max_distance": 24, "relative_attention_num_buckets": 12}
    if FAMILIES[family].code.encoder:
        pegasus = family == "pegasus"
        sides = {"attention_heads": 4, "ffn_dim": 64, "layers": 2}
        return {
            "d_model": 32,
            **{f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in sides.items()},
            "max_position_embeddings": positions,
            "scale_embedding": family != "bart",
            "pad_token_id": int(not pegasus),
            "bos_token_id": 0,
            "eos_token_id": 2 - pegasus,
            "forced_eos_token_id": None,
            "decoder_start_token_id": 2 * (not pegasus),
        }
    offset = FAMILIES[family].special_positions({}) > 0
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": positions + 2 * offset,
        "pad_token_id": int(offset),
        **({"type_vocab_size": 1, "bos_token_id": 0, "eos_token_id": 2} if offset else {}),
        **({"embedding_size": 16} if family in ("electra", "albert") else {}),
        **({"languages": ["en_XX", "de_DE"], "default_language": "de_DE"} if family == "xmod" else {}),
        **({"input_embedding_size": 16, "output_embedding_size": 24} if family == "rembert" else {}),
        **({"use_task_id": True} if family == "ernie" else {}),
    }


def save_tiny_sentence_encoder(folder: Path | str, family: str = "bert", positions: int = 64, **config: object) -> Path:
    """Save a base model in the sentence-transformers layout: mean pooling, then normalisation."""
    folder = save_tiny(folder, family, "Model", positions, **config)
    modules = [("", "models.Transformer"), ("1_Pooling", "models.Pooling"), ("2_Normalize", "models.Normalize")]
    _write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{module}"}
            for i, (path, module) in enumerate(modules)
        ],
    )
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": positions, "do_lower_case": False})
    (folder / "1_Pooling").mkdir(exist_ok=True)
    width = config.get("hidden_size", config.get("dim", 32))
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": width, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
    )
    return folder


def save_tokenizer(folder: Path, family: str, positions: int) -> int:
    """Save a fast tokenizer (its slow form's vocabulary too) and return the size of its vocabulary."""
    name = TOKENIZER_CLASSES.get(family, FAMILIES[family].tokenizer_class)
    special = SPECIAL_TOKENS[name]
    if name in BYTE_BPE:
        vocab_size = _save_byte_bpe(folder)
    elif special["unk_token"] == "<unk>":
        vocab_size = _save_unigram(folder, special)
    else:
        vocab_size = _save_wordpiece(folder, special)
    own = {"offset": 2, "mask_token_sent": "<mask_1>"} if family == "pegasus" else {}
    if name == "T5Tokenizer":
        own = {"extra_ids": 1}
    _write_json(folder / "special_tokens_map.json", special)
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": name, "model_max_length": positions, **own, **special}
    )
    return vocab_size


def _save_wordpiece(folder: Path, special: dict[str, str]) -> int:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    bracketed = special is BRACKETED
    order = [] if bracketed else [special[f"{name}_token"] for name in ("cls", "pad", "sep", "unk", "mask")]
    vocab = wordpiece_vocab()
    vocab[: len(order)] = order
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(vocab[:5])
    if bracketed:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    else:  # MPNet's
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocab)


def wordpiece_vocab() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    punctuation = list(".,;:!?'\"()-0123456789")
    words = [word for word in WORDS if word != "a"]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *punctuation, *letters, *(f"##{c}" for c in letters), *words]


def _save_byte_bpe(folder: Path) -> int:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "n"), ("i", "n")]
    tokens = [*special, *alphabet, *(a + b for a, b in merges), "<mask>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    _write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([*special, AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(tokens)


def _save_unigram(folder: Path, special: dict[str, str]) -> int:
    """As sentencepiece models are stored: [piece, score] pairs, words with a leading ▁; there is no slow form."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    first, last, mask = special.get("cls_token", ""), special.get("sep_token", "</s>"), special.get("mask_token", "")
    order = [first, special["pad_token"], last, special["unk_token"], mask]
    if first == "[CLS]":  # ALBERT's
        order = [special["pad_token"], special["unk_token"], first, last, mask]
    elif not mask:  # T5's
        mask = "<extra_id_0>"
        order = [special["pad_token"], last, special["unk_token"], mask]
    elif not first:  # Pegasus'
        order = [special["pad_token"], last, "<mask_1>", mask, special["unk_token"]]
    pieces = [
        "▁",
        *(f"▁{word}" for word in WORDS),
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,;:!?'\"()-0123456789",
        *([] if special.get("mask_token") else ["▁<extra_id_0>"]),  # as mT5 has it
    ]
    vocab = [*((token, 0.0) for token in order), *((piece, -float(i)) for i, piece in enumerate(pieces, 1))]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=order.index(special["unk_token"])))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(
        [AddedToken(token, lstrip=True, special=True) if token == mask else token for token in order]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}".strip(),
        pair=f"{first} $A {last} $B:1 {last}:1" if first == "[CLS]" else f"{first} $A {last} {last} $B {last}".strip(),
        special_tokens=[(token, order.index(token)) for token in (first, last) if token],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(vocab)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
