"""Serve an exported sentence encoder over HTTP, with onnxruntime and without torch.

    MODEL=lsg-encoder-export uvicorn --app-dir examples/serve app:app
    curl localhost:8000/embed -H "content-type: application/json" -d '{"inputs": ["a text", "another one"]}'

Needs `pip install 'effconv[serve]'`, or fastapi, uvicorn, onnxruntime and transformers. MODEL_FILE=model_qint8.onnx
serves the 8-bit form.
"""

import os
from pathlib import Path

import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoTokenizer

FOLDER = Path(os.environ["MODEL"])
tokenizer = AutoTokenizer.from_pretrained(FOLDER)
session = onnxruntime.InferenceSession(FOLDER / "onnx" / os.environ.get("MODEL_FILE", "model.onnx"))
names = [one.name for one in session.get_inputs()]
app = FastAPI()


class Texts(BaseModel):
    """The body of a request."""

    inputs: list[str]


@app.post("/embed")
def embed(texts: Texts) -> list[list[float]]:
    found = []
    for text in texts.inputs:  # one by one: a padded batch would spend time on its padding
        tokens = tokenizer([text], truncation=True, return_tensors="np")
        found.append(session.run(["sentence_embedding"], {name: tokens[name] for name in names})[0][0].tolist())
    return found
