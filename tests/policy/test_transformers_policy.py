"""Replies of a model in this process: whose tokens they are, and what they depend on.

Draws are of the whole distribution, of each row by itself; the cache holds what it should.
"""

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Sequence

import pytest

torch = pytest.importorskip("torch", reason="needs torch, of the extra train: make test-train")

from hypothesis import given
from hypothesis import strategies as st
from transformers import Qwen2Config
from transformers.cache_utils import DynamicLayer

from pdr_graph.errors import ConfigError, ContextWindowError
from pdr_graph.llm.client import Sampling
from pdr_graph.policy import Drawn, transformers_policy
from pdr_graph.policy.transformers_policy import (
    GrowingLayer,
    TransformersPolicy,
    growing_cache,
    sample,
)
from tests.policy.forward_pass import scored
from tests.policy.tiny_model import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
END = TOKENIZER.eos_token_id
PROMPTS = ["1 + 1 = ", "a much longer prompt, of which the others are padded to the length: ", "x"]


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(f"<user>{text}<assistant>", add_special_tokens=False)


def sampling(seed: int = 0, **fields) -> Sampling:
    return Sampling(**{"max_tokens": 60, "temperature": 1.0, "top_p": 1.0, "seed": seed, **fields})


def drawn(
    policy: TransformersPolicy, calls: Sequence[tuple[Sequence[int], Sampling]]
) -> list[Drawn]:
    """Make calls side by side."""

    async def all_of_them():
        return await asyncio.gather(*(policy.draw(*call) for call in calls))

    return asyncio.run(all_of_them())


CALLS = [
    (ids(PROMPTS[index % 3]), sampling(seed=index, temperature=(1.0, 0.7, 1.3)[index % 3]))
    for index in range(24)
]


@pytest.fixture(scope="module")
def policy() -> TransformersPolicy:
    return TransformersPolicy(tiny_model(), TOKENIZER)


@pytest.fixture(scope="module")
def replies(policy) -> list[Drawn]:
    """What many calls of several prompts draw side by side."""
    return drawn(policy, CALLS)


def test_log_probabilities_are_those_of_a_forward_pass(policy, replies):
    """Of one reply alone, without cache and padding, at its own temperature; to 1e-4."""
    for (prompt, asked), reply in zip(CALLS, replies, strict=True):
        expected = scored(policy.model, prompt, reply.token_ids, asked.temperature)
        assert reply.logprobs == pytest.approx(expected, abs=1e-4)


def test_replies_end_with_the_token_that_ends_them_or_at_their_limit(replies):
    """The end is among the tokens, and nothing comes after it."""
    assert {reply.finish_reason for reply in replies} == {"stop", "length"}
    for reply in replies:
        assert END not in reply.token_ids[:-1]
        assert (reply.token_ids[-1] == END) == (reply.finish_reason == "stop")
        if reply.finish_reason == "length":
            assert len(reply.token_ids) == 60
    assert all(len(each.token_ids) == len(each.logprobs) for each in replies)


def test_a_reply_does_not_depend_on_its_batch(policy, replies):
    """Alone, or with other mates, the same tokens."""
    assert [drawn(policy, [call])[0].token_ids for call in CALLS[:8]] == [
        reply.token_ids for reply in replies[:8]
    ]
    few = TransformersPolicy(policy.model, TOKENIZER, most_rows=5, most_tokens=300)
    assert [each.token_ids for each in drawn(few, CALLS)] == [each.token_ids for each in replies]


def test_the_same_calls_are_answered_alike_to_the_last_bit(policy, replies):
    """In whatever order they come."""
    assert drawn(policy, CALLS[::-1])[::-1] == replies


def test_seeds_tell_replies_of_one_prompt_apart(policy):
    """Each call has random numbers of its own."""
    prompt = ids("6 x 7?")
    found = drawn(policy, [(prompt, sampling(seed=seed)) for seed in range(12)])
    assert len({each.token_ids for each in found}) == 12


def test_a_lower_limit_only_cuts_the_reply(policy, replies):
    """The random numbers are those of the seed, not of the limit."""
    prompt, asked = CALLS[0]
    (short,) = drawn(policy, [(prompt, sampling(seed=asked.seed, max_tokens=5))])
    assert short.token_ids == replies[0].token_ids[:5]


def test_temperature_0_is_what_the_library_generates_greedily(policy):
    """Token by token the most likely one."""
    prompt = ids("6 x 7?")
    (ours,) = drawn(policy, [(prompt, sampling(temperature=0.0, max_tokens=30))])
    theirs = policy.model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=30,
        do_sample=False,
    )
    assert list(ours.token_ids) == theirs[0, len(prompt) :].tolist()


def test_weights_that_change_change_the_draws(policy):
    """The module is the trainer's own: nothing is pushed."""
    model = tiny_model()
    own = TransformersPolicy(model, TOKENIZER)
    before = drawn(own, CALLS[:2])
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    after = drawn(own, CALLS[:2])
    assert before != after
    prompt, asked = CALLS[0]
    expected = scored(model, prompt, after[0].token_ids, asked.temperature)
    assert after[0].logprobs == pytest.approx(expected, abs=1e-4)


def test_a_model_in_training_draws_without_dropout_and_goes_on_in_training():
    """Else its draws would be of the noise as well."""
    model = tiny_model(attention_dropout=0.5).train()
    (first,) = drawn(TransformersPolicy(model, TOKENIZER), CALLS[:1])
    assert model.training
    expected = scored(model.eval(), CALLS[0][0], first.token_ids, 1.0)
    assert first.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_a_model_with_an_adapter_draws_with_it():
    """As the trainer has it, not merged."""
    peft = pytest.importorskip("peft", reason="needs peft, of the extra train: make test-train")
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model(), config).eval()
    (reply,) = drawn(TransformersPolicy(model, TOKENIZER), CALLS[:1])
    expected = scored(model, CALLS[0][0], reply.token_ids, 1.0)
    assert reply.logprobs == pytest.approx(expected, abs=1e-4)
    with model.disable_adapter():
        assert scored(model, CALLS[0][0], reply.token_ids, 1.0) != pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("prompt", "fields", "error", "sentence"),
    [
        ("x", {"top_p": 0.5}, ConfigError, r"top_p 0\.5"),
        ("x", {"max_tokens": 1023}, ContextWindowError, "context window of 1024"),
    ],
)
def test_what_cannot_be_drawn_is_refused(policy, prompt, fields, error, sentence):
    """Before the model is asked."""
    with pytest.raises(error, match=sentence):
        drawn(policy, [(ids(prompt), sampling(**fields))])


def test_a_model_without_an_end_is_refused():
    """Every reply would run into its limit."""
    model = tiny_model()
    model.generation_config.eos_token_id = None
    endless = tiny_tokenizer()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="no token that ends a reply"):
        TransformersPolicy(model, endless)


def test_a_model_whose_callers_have_left_stops_drawing():
    """A reply of a thousand tokens ends soon after nobody wants it."""
    model = tiny_model(initializer_range=0.02)
    model.generation_config.eos_token_id = 10**6  # which is never drawn
    endless = tiny_tokenizer()
    endless.eos_token = None
    steps: list[float] = []
    begun = threading.Event()

    def count(*_: object) -> None:
        steps.append(time.monotonic())
        begun.set()

    model.register_forward_hook(count)
    policy = TransformersPolicy(model, endless)

    async def leave() -> None:
        call = asyncio.ensure_future(policy.draw(ids("x"), sampling(max_tokens=1000)))
        await asyncio.to_thread(begun.wait)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        # The next call is served once the first is done with.
        await policy.draw(ids("y"), sampling(max_tokens=1))

    asyncio.run(leave())
    assert len(steps) < 900


logit_lists = st.lists(st.floats(-20, 20), min_size=1, max_size=40)
uniforms = st.floats(0.0, 1.0, exclude_max=True)


def draw(logits, temperature, uniform):
    """Draw one token of one row."""
    tokens, logprobs = sample(
        torch.tensor([logits]), torch.tensor([temperature]), torch.tensor([uniform]).double()
    )
    return tokens.item(), logprobs.item()


@given(logits=logit_lists, temperature=st.floats(0.1, 2.0))
def test_each_token_is_drawn_as_often_as_it_is_probable(logits, temperature):
    """Over numbers that fill [0, 1) evenly, to the number's own step: none is left out."""
    num = 4000
    rows = torch.tensor([logits] * num)
    places = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    tokens, _ = sample(rows, torch.full((num,), temperature), places)
    shares = torch.bincount(tokens, minlength=len(logits)) / num
    expected = torch.softmax(torch.tensor(logits).double() / temperature, -1)
    assert (shares - expected).abs().max() <= 1.0 / num + 1e-6


@given(logits=logit_lists, temperature=st.floats(0.1, 2.0), uniform=uniforms)
def test_the_log_probability_is_that_of_the_distribution_drawn_from(logits, temperature, uniform):
    """Its temperature included."""
    token, logprob = draw(logits, temperature, uniform)
    scaled = [each / temperature for each in logits]
    total = math.fsum(math.exp(each - max(scaled)) for each in scaled)
    assert logprob == pytest.approx(scaled[token] - max(scaled) - math.log(total), abs=1e-4)


@given(logits=logit_lists, uniform=uniforms)
def test_temperature_0_takes_the_most_likely_token(logits, uniform):
    """Whatever the number; its log-probability is that of temperature 1."""
    token, logprob = draw(logits, 0.0, uniform)
    assert logits[token] == pytest.approx(max(logits), abs=1e-5)
    assert logprob == pytest.approx(draw(logits, 1.0, 0.5)[1], abs=50)
    table = torch.tensor(logits).log_softmax(-1)
    assert logprob == pytest.approx(table[token].item(), abs=1e-6)


@given(st.lists(st.tuples(logit_lists, uniforms), min_size=2, max_size=6))
def test_a_row_is_drawn_as_if_it_were_alone(rows):
    """Rows of one batch do not move one another."""
    longest = max(len(logits) for logits, _ in rows)
    padded = [logits + [-math.inf] * (longest - len(logits)) for logits, _ in rows]
    numbers = torch.tensor([uniform for _, uniform in rows]).double()
    tokens, _ = sample(torch.tensor(padded), torch.ones(len(rows)), numbers)
    alone = [draw(logits, 1.0, uniform)[0] for logits, uniform in zip(padded, numbers, strict=True)]
    assert tokens.tolist() == alone


def test_a_token_without_probability_is_never_drawn():
    """Not by the smallest number, nor by the largest."""
    logits = [-math.inf, 0.0, -math.inf, 0.0, -math.inf]
    assert draw(logits, 1.0, 0.0)[0] == 1
    assert draw(logits, 1.0, 0.5)[0] == 3
    assert draw(logits, 1.0, 1.0 - 2**-53)[0] == 3


def test_a_large_vocabulary_is_drawn_a_few_rows_at_a_time():
    """With the same tokens, in an amount of memory that does not grow with the batch."""
    torch.manual_seed(0)
    width = transformers_policy._MOST_NUMBERS // 2 + 1  # one row at a time
    logits = torch.randn(2, width)
    numbers = torch.tensor([0.25, 0.75]).double()
    tokens, logprobs = sample(logits, torch.ones(2), numbers)
    whole = logits.log_softmax(-1)
    assert tokens.shape == logprobs.shape == (2,)
    assert logprobs.tolist() == pytest.approx(whole[range(2), tokens].tolist(), abs=1e-6)


# ------------------------------------------------------------------------------ the cache


def states(rows: int, tokens: int):
    return torch.randn(rows, 2, tokens, 3), torch.randn(rows, 2, tokens, 3)


def test_it_holds_the_same_keys_and_values_step_by_step():
    """Prompt, tokens beyond its room, rows that leave and rows that are doubled."""
    torch.manual_seed(0)
    ours, stock = GrowingLayer(), DynamicLayer()

    def both(rows: int, tokens: int) -> None:
        new = states(rows, tokens)
        for mine, theirs in zip(ours.update(*new), stock.update(*new), strict=True):
            assert torch.equal(mine, theirs)
        assert ours.get_seq_length() == stock.get_seq_length()
        assert ours.get_mask_sizes(1) == stock.get_mask_sizes(1)

    both(2, 5)
    for layer in (ours, stock):
        layer.batch_select_indices(torch.tensor([0, 1, 1, 0]))
    for _ in range(150):
        both(4, 1)
    for layer in (ours, stock):
        layer.batch_select_indices(torch.tensor([3, 1]))
    for _ in range(10):
        both(2, 1)


def test_a_token_more_copies_nothing():
    """As long as there is room, keys stay where they are."""
    layer = GrowingLayer()
    layer.update(*states(2, 5))
    place = layer.keys.data_ptr()
    for _ in range(20):
        layer.update(*states(2, 1))
    assert layer.keys.data_ptr() == place


def test_layers_of_other_kinds_stay_as_they_are():
    """A window that slides is the library's own."""
    plain = growing_cache(Qwen2Config(num_hidden_layers=2))
    sliding = growing_cache(
        Qwen2Config(
            num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1
        )
    )
    assert [type(layer) for layer in plain.layers] == [GrowingLayer] * 2
    assert [isinstance(layer, GrowingLayer) for layer in sliding.layers] == [True, False]
