"""Plain models of transformers, made by `effconv new dense` as a control for the others."""
