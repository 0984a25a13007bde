"""Turns SmolLM2's GGUF file into a model folder; run by the interpreter that has vLLM.

    python dequantise.py WEIGHTS.gguf FOLDER

The chat template also gets a mode that the model was not trained for: with `thinking=true` a reply
begins inside `<think>`, and a thinking budget ends it. The two tags replace two tokens of the
vocabulary that no chat uses, so the weights are those of the file. A few words follow the tag,
since the model answers nothing to a token that it has rarely seen.
"""

import json
import sys
from pathlib import Path

SPARE = {"<jupyter_start>": "<think>", "<jupyter_text>": "</think>"}
"""Tokens of SmolLM2 for code notebooks, and the tags that replace them."""

OPEN_THOUGHT = (
    "{% if add_generation_prompt and thinking is defined and thinking %}"
    "{{ '<think>\nLet me think.' }}{% endif %}"
)


def main(weights: Path, folder: Path) -> None:
    """Write weights in float32, tokenizer and template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(weights.parent), "gguf_file": weights.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _add_tags(folder / "tokenizer.json")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + OPEN_THOUGHT)


def _add_tags(file: Path) -> None:
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    for token in content["added_tokens"]:
        tag = SPARE.get(token["content"])
        if tag is not None:
            vocabulary[tag] = vocabulary.pop(token["content"])
            # A special token is left out of the text, and a thought's end must be read from it.
            token.update(content=tag, special=False)
    file.write_text(json.dumps(content, ensure_ascii=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
