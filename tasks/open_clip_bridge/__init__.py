"""The door to open_clip: its tokenizer, its captioning parts, and weights that come in its keys. Importing this folder imports none of it."""
