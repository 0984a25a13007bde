"""The final answer is what a solution says it is, and nothing else."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdr_graph.answers.extract import LONGEST_ANSWER, final_answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"so $x = \boxed{25}$.", "25"),
        (r"\boxed {25}", "25"),
        ("\\boxed{\n25\n}", "25"),
        (r"\boxed 25", "25"),
        (r"\fbox{25}", "25"),
        (r"\framebox{25}", "25"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"First guess \boxed{26}. On reflection \boxed{25}.", "25"),
        (r"\boxed{3} is what I thought, but \boxed{4", "3"),
        (r"\boxed{1} and $\boxed{2}$", "1, 2"),
        (r"the answer is 3, no, \boxed{4}", "4"),
    ],
)
def test_last_closed_box_is_the_answer(solution: str, answer: str) -> None:
    """Whatever its spelling; boxes joined by "and" are one answer."""
    assert final_answer(solution) == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"$-\boxed{984}$", "-984"),
        (r"x = - \boxed{5}", "-5"),
        (r"$\pm\boxed{5}$", r"\pm5"),
        ("so\n- \\boxed{5}", "5"),
        (r"3 - \boxed{5}", "5"),
    ],
)
def test_sign_before_the_box_belongs_to_it(solution: str, answer: str) -> None:
    """A bullet and a subtraction are no signs."""
    assert final_answer(solution) == answer


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("The answer is 42.", "42"),
        ("Answer: 42", "42"),
        ("#### 42", "42"),
        ("She makes 9 * 2 = $18 every day.\n#### 18", "18"),
        ("**Answer:** $25$", "25"),
        ("Final Answer: **73**", "73"),
        ("**Final Answer**\n\n42", "42"),
        (r"## Final answer" + "\n" + r"\[ x = 5 \]", "x = 5"),
        (r"The final answer is $28\%$. I hope it is correct.", r"28\%"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("So the answer is $1331$ and $1728$.", "1331, 1728"),
        ("The answer is $70,000.", "70,000"),
        (r"The answer is $\$18.90$.", r"\$18.90"),
        ("The answer is 25 apples.", "25"),
        ("The answer is 3.5 cm.", "3.5 cm"),
        ("The answer is 5 pi.", "5 pi"),
        ("The answer is 25 or 26.", "25 or 26"),
        ("The answer is 5 because 2+3=5", "5"),
        ("The answer is 3. Wait. The answer is 4.", "4"),
        ("<answer>12</answer>", "12"),
        ("ANSWER: 711", "711"),
        ("The answer is given by $x=3$.", "x=3"),
        ("Answer:\n- 16 miles", "16 miles"),
        ("Answer:\n-16", "-16"),
        ("The answer is Evelyn.", "Evelyn"),
        ("The answer is A", "A"),
        ("The answer is true.", "true"),
        (r"\[\text{Answer: } 9\]", "9"),
        ("$$\\textbf{Answer: } 9$$", "9"),
        (r"\[\mathrm{Answer}: \frac12\]", r"\frac12"),
        ("The answer is €40.", "€40"),
        ("The answer is $4 million.", "4 million"),
        ("The answer is 5 km.", "5 km"),
        ("Answer: 6; 7", "6; 7"),
        ("Answer: x**2", "x**2"),
        ("答案：6", "6"),
        ("La respuesta es 6.", "6"),
        ("정답은 6입니다.", "6"),
    ],
)
def test_answer_line_is_the_answer_where_there_is_no_box(solution: str, answer: str) -> None:
    """Of several, the last counts; what is counted and reasons are left out, units are not."""
    assert final_answer(solution) == answer


@pytest.mark.parametrize(
    "solution",
    [
        "",
        "I could not finish. So far x = 25 + 3 ...",
        "We start. Step 3 gives 17. Hmm wait, what about 25",
        "The profit is $70,000.",
        r"\boxed{25",
        r"\boxed{}",
        "The answer is not 25.",
        "The answer is $\\boxed{}$",
        "The answer is somewhere in the range above, so let me check again",
        r"<think>maybe \boxed{25}",
        "<think>The answer is 3.</think> I do not know.",
        "The answer is correct.",
        "The final answer is as follows:",
        "The answer is:\n\nLet's compute",
        "the answer equals the sum of both",
        "Answer: I am not sure",
        "The answer is a positive integer",
        "Answer:\n1. First we add",
        "Answer: [your answer]",
        "Answer: ```python\nprint(1)\n```",
        "The answer is 5? No, it is 6.",
        r"\[\text{Answer: } \frac{3",
        r"\[\text{Answer: } \bo",
        "Answer: -",
        "La respuesta es la siguiente",
        "Die Antwort ist nicht 6.",
    ],
)
def test_no_answer_where_none_is_stated(solution: str) -> None:
    """A bare last number, a thought and a cut box are no answers."""
    assert final_answer(solution) is None


def test_thought_is_left_out_even_without_its_opening() -> None:
    """Some chat templates open the thought in the prompt."""
    assert final_answer(r"maybe \boxed{25}</think> It is \boxed{30}.") == "30"


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    """Nothing raises, and an answer is never empty or huge."""
    answer = final_answer(text)
    assert answer is None or 0 < len(answer) <= LONGEST_ANSWER


_PIECES = ["\\boxed{", "\\boxed", "{", "}", "\\", "$", "\\[", "answer is ", "Answer:", "####", "-"]


@given(st.lists(st.sampled_from([*_PIECES, "7", " ", "\n", "and", ".", "</think>"]), max_size=40))
def test_any_markup_is_read(pieces: list[str]) -> None:
    """Text made of nothing but markup raises nothing."""
    final_answer("".join(pieces))


@pytest.mark.parametrize(
    "piece",
    [
        "{",
        "\\",
        " ",
        "\n",
        "$",
        "*",
        "#",
        "\\boxed{",
        "\\boxed{1},",
        "answer ",
        "answer is ",
        "#### 1\n",
    ],
)
@pytest.mark.security
def test_a_million_characters_take_milliseconds(piece: str) -> None:
    """No text makes reading slow; the best of three ignores other processes."""
    text = (piece * (1_000_000 // len(piece) + 1))[:1_000_000]
    seconds = []
    for _ in range(3):
        start = time.process_time()
        final_answer(text)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05
