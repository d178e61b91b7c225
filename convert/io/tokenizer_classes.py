"""What a tokenizer's class says of its files and of its special tokens, as transformers 4.57 and 5 have it.

Data alone: a plain conversion reads a tokenizer's files without transformers. tests/unit/test_tokenizer_classes.py
compares every row with the installed transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

FILE = "tokenizer.json"  # the whole tokenizer, as the tokenizers library stores it
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")  # read by every class
AS_STORED = "PreTrainedTokenizerFast"  # in transformers 4 and 5 the class that takes tokenizer.json as it stands
GENERIC = (AS_STORED, "TokenizersBackend")  # the second is its name in transformers 5 alone
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")  # in the order in which a class adds those that it lacks


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """A tokenizer class of transformers.

    Attributes:
        files: its vocabulary files, those of the slow and of the fast form. It reads the ones that are there.
        special: what it calls its special tokens where the tokenizer's files do not say.
        layout: how ids follow from a vocabulary that is not tokenizer.json. "" is the order of the file. `fairseq`,
            `camembert` and `pegasus` put tokens before a sentencepiece vocabulary, `counted` before lines of a token
            and its count. `t5` puts sentinels behind it, `bytes` behind the 256 bytes, which no file holds.
        codes: language codes between the vocabulary and the mask token.
    """

    files: tuple[str, ...]
    special: Mapping[str, str]
    layout: str = ""
    codes: int = 0


def class_named(name: str) -> TokenizerClass | None:
    """The class of that name, slow or fast; None for one that transformers does not have."""
    return CLASSES.get(name if name in GENERIC else name.removesuffix("Fast"))


def _special(names: str, tokens: str) -> dict[str, str]:
    return dict(zip(names.split(), tokens.split(), strict=True))


ALL = "bos eos unk sep pad cls mask"
ANGLED = _special(ALL, "<s> </s> <unk> </s> <pad> <s> <mask>")
BRACKETED = _special("unk sep pad cls mask", "[UNK] [SEP] [PAD] [CLS] [MASK]")
BRACKETED_ENDS = _special(ALL, "[CLS] [SEP] [UNK] [SEP] [PAD] [CLS] [MASK]")
ALBERTS = _special(ALL, "[CLS] [SEP] <unk> [SEP] <pad> [CLS] [MASK]")
XLNETS = _special(ALL, "<s> </s> <unk> <sep> <pad> <cls> <mask>")
ESMS = _special("eos unk pad cls mask", "<eos> <unk> <pad> <cls> <mask>")
XLMS = _special("bos unk sep pad cls mask", "<s> <unk> </s> <pad> </s> <special1>")
TRANSLATORS = _special("bos eos unk sep pad", "<s> </s> <unk> </s> <pad>")
T5S = _special("eos unk pad", "</s> <unk> <pad>")
GPTS = _special("bos eos unk", "<|endoftext|> <|endoftext|> <|endoftext|>")
LLAMAS = _special("bos eos unk", "<s> </s> <unk>")

WORDPIECE = (FILE, "vocab.txt")
BPE = (FILE, "vocab.json", "merges.txt")
SLOW_BPE = ("vocab.json", "merges.txt")
PIECES = (FILE, "spiece.model")
FAIRSEQ_PIECES = (FILE, "sentencepiece.bpe.model")


def _rows() -> Iterator[tuple[str, TokenizerClass]]:
    """Names without `Tokenizer`, and what these classes have in common."""
    row = TokenizerClass
    bert = "Bert ConvBert DPRContextEncoder DPRQuestionEncoder DPRReader DistilBert Electra LayoutLM Lxmert MobileBert"
    yield f"{bert} RoFormer SqueezeBert", row(WORDPIECE, BRACKETED)
    yield "Splinter Tapas", row(("vocab.txt",), BRACKETED)
    yield "RoCBert", row(("vocab.txt", "word_shape.json", "word_pronunciation.json"), BRACKETED)
    yield "BertJapanese", row(("vocab.txt", "spiece.model"), BRACKETED)
    yield "Funnel", row(WORDPIECE, XLNETS)
    yield "MPNet", row(WORDPIECE, {**ANGLED, "unk": "[UNK]"})
    yield "Esm", row(("vocab.txt",), ESMS)
    yield "Esmc", row((FILE,), ESMS)
    yield "CpmAnt", row(("vocab.txt",), _special("bos eos unk pad", "<s> </s> <unk> <pad>"))
    japanese = {**GPTS, "bos": "<|startoftext|>", "pad": "<|endoftext|>"}
    yield "GPTNeoXJapanese", row(("vocab.txt", "emoji.json"), japanese)
    yield "ProphetNet", row(("prophetnet.tokenizer",), {key: BRACKETED[key] for key in ("unk", "sep", "pad", "mask")})

    yield "Bart LED LayoutLMv3 Longformer MarkupLM Mvp Roberta", row(BPE, ANGLED)
    yield "Blenderbot", row(SLOW_BPE, ANGLED)
    yield "BlenderbotSmall", row(SLOW_BPE, _special("bos eos unk pad", "__start__ __end__ __unk__ __null__"))
    yield "Luke", row((*SLOW_BPE, "entity_vocab.json"), ANGLED)
    yield "Deberta", row(BPE, BRACKETED_ENDS)
    yield "Herbert", row(BPE, {key: token for key, token in ANGLED.items() if key != "eos"})
    yield "BioGpt", row(SLOW_BPE, TRANSLATORS)
    yield "Flaubert XLM", row(SLOW_BPE, XLMS)
    yield "CTRL", row(SLOW_BPE, {"unk": "<unk>"})
    yield "OpenAIGPT", row(BPE, {"unk": "<unk>"})
    yield "CodeGen GPT2", row(BPE, GPTS)
    yield "GPTNeoX", row(BPE, {**GPTS, "pad": "<|padding|>"})
    qwen = _special("eos unk pad", "<|endoftext|> <|endoftext|> <|endoftext|>")
    yield "Qwen2", row(BPE, qwen)
    yield "Qwen3_5", row((FILE, "tokenizer.model"), qwen)
    yield "Bloom", row((FILE,), _special("bos eos unk pad", "<s> </s> <unk> <pad>"))
    cohere = "<BOS_TOKEN> <|END_OF_TURN_TOKEN|> <UNK> <SEP> <PAD> <CLS> <MASK_TOKEN>"
    yield "Cohere", row(BPE, _special(ALL, cohere))

    yield "Phobert Bertweet", row(("vocab.txt", "bpe.codes"), ANGLED, "counted")
    yield "Bartpho", row(("dict.txt", "sentencepiece.bpe.model"), ANGLED, "counted")
    yield "LayoutXLM Nllb XLMRoberta", row(FAIRSEQ_PIECES, ANGLED, "fairseq")
    yield "XGLM", row(FAIRSEQ_PIECES, {key: token for key, token in ANGLED.items() if key != "mask"}, "fairseq")
    yield "MLuke", row(("sentencepiece.bpe.model", "entity_vocab.json"), ANGLED, "fairseq")
    yield "MBart", row(FAIRSEQ_PIECES, ANGLED, "fairseq", codes=25)
    mbart50 = {key: token for key, token in ANGLED.items() if key != "bos"}
    yield "MBart50", row(FAIRSEQ_PIECES, mbart50, "fairseq", codes=52)
    yield "PLBart", row(FAIRSEQ_PIECES, ANGLED, "fairseq", codes=3)
    yield "Camembert", row(FAIRSEQ_PIECES, ANGLED, "camembert")
    yield "Barthez", row(FAIRSEQ_PIECES, ANGLED)
    yield "M2M100", row(("vocab.json", "sentencepiece.bpe.model"), TRANSLATORS)
    yield "Marian", row(("vocab.json", "target_vocab.json", "source.spm", "target.spm"), T5S)

    yield "Albert FNet", row(PIECES, ALBERTS)
    yield "BigBird", row(PIECES, {**ALBERTS, "bos": "<s>", "eos": "</s>"})
    yield "RemBert", row((FILE, "sentencepiece.model"), ALBERTS)
    yield "DebertaV2", row((FILE, "spm.model"), BRACKETED_ENDS)
    yield "XLNet", row(PIECES, XLNETS)
    yield "Cpm", row((*PIECES, "tokenizer.model"), XLNETS)
    yield "T5 MT5", row(PIECES, T5S, "t5")
    yield "Udop", row(PIECES, {**T5S, "sep": "</s>"})
    yield "Pegasus", row(PIECES, {**T5S, "mask": "<mask_2>"}, "pegasus")
    yield "Reformer", row(PIECES, {"eos": "</s>", "unk": "<unk>"})
    yield "BertGeneration", row(("spiece.model",), {**LLAMAS, "sep": "<::::>", "pad": "<pad>"})
    yield "GPTSw3", row(("spiece.model",), {})
    yield "Llama CodeLlama", row((FILE, "tokenizer.model"), LLAMAS)
    gemma = _special("bos eos unk pad mask", "<bos> <eos> <unk> <pad> <mask>")
    yield "Gemma", row((FILE, "tokenizer.model"), gemma)

    yield "ByT5", row((), T5S, "bytes")
    yield "MyT5", row(("byte_maps.json",), T5S)
    yield "Perceiver", row((), _special("bos eos sep pad cls mask", "[BOS] [EOS] [SEP] [PAD] [CLS] [MASK]"))


CLASSES: Mapping[str, TokenizerClass] = {
    **{f"{name}Tokenizer": row for names, row in _rows() for name in names.split()},
    **dict.fromkeys(GENERIC, TokenizerClass((FILE, "tokenizer.model"), {})),
}
VOCABULARIES = tuple(dict.fromkeys(name for row in CLASSES.values() for name in row.files))
"""Every file that some class takes for a vocabulary."""
