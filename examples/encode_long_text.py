"""Encode one long text with a converted sentence encoder, as a user of the repo would: without effconv.

python examples/encode_long_text.py demo-output/lsg-all-MiniLM-L6-v2-4096 text.txt --source PATH_OR_ID
"""

import argparse
from pathlib import Path

from sentence_transformers import SentenceTransformer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the converted repo: a folder or a Hub id")
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--source", help="the model it was converted from, to compare with")
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")

    model = SentenceTransformer(args.model, trust_remote_code=True)
    tokens = tokens_read(model, text)
    embedding = model.encode(text, normalize_embeddings=True)
    print(f"converted model: {tokens:,} tokens read of {token_count(model, text):,} (limit {model.max_seq_length:,})")
    print(f"embedding of {embedding.size} values: {', '.join(f'{value:+.4f}' for value in embedding[:6])}, ...")

    if args.source:
        source = SentenceTransformer(args.source)
        truncated = source.encode(text, normalize_embeddings=True)
        print(f"source model:    {tokens_read(source, text):,} tokens read (limit {source.max_seq_length:,})")
        print(f"cosine between the whole text and the source's truncated one: {float(embedding @ truncated):.4f}")


def token_count(model: SentenceTransformer, text: str) -> int:
    """How many tokens the text has, special tokens included."""
    return len(model.tokenizer(text, truncation=False, verbose=False)["input_ids"])


def tokens_read(model: SentenceTransformer, text: str) -> int:
    """How many of them the model reads."""
    return min(token_count(model, text), model.max_seq_length)


if __name__ == "__main__":
    main()
