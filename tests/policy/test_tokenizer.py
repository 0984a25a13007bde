"""One folder, one tokenizer: for who draws, who trains and who reads back."""

import pytest

pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from pdr_graph.policy.folder import open_folder, tokenizer_of
from pdr_graph.train.models import open_tokenizer
from pdr_graph.train.supervised import ChatText
from tests.policy.tiny_model import tiny_model, tiny_tokenizer

TEXT = "a b  12\n"


@pytest.fixture
def folder(tmp_path):
    """A Qwen2 whose tokenizer is none of Qwen2's."""
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_the_tokenizer_of_a_folder_is_the_one_that_it_holds(folder):
    """Whatever kind of model stands beside it, and with the blanks that it knows."""
    tokenizer, own = tokenizer_of(folder), tiny_tokenizer()
    assert tokenizer.encode(TEXT, add_special_tokens=False) == own.encode(TEXT)
    assert tokenizer.chat_template == own.chat_template
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (own.eos_token_id, own.pad_token_id)


def test_what_trains_draws_and_reads_back_has_one_tokenizer(folder):
    """Else prompts would be trained on that no evaluation asks."""
    tokens = tiny_tokenizer().encode(TEXT)
    opened = open_tokenizer(folder), open_folder(folder).tokenizer, ChatText.of_folder(folder)
    assert [each.encode(TEXT, add_special_tokens=False) for each in opened[:2]] == [tokens] * 2
    assert opened[2].reply(tuple(tokens)) == TEXT
