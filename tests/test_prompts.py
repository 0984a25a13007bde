"""The prompt files: what each may use, and that nothing in a draft is taken for a template."""

from pathlib import Path
from string import Template

import pytest
from hypothesis import given

from pdr_graph import prompts
from pdr_graph.config import make_config
from pdr_graph.errors import ConfigError
from pdr_graph.prompts import VARIABLES, Prompts
from tests.fakes import PROMPTS, odd_texts

PINNED = {
    "draft": {"problem", "answer_format"},
    "improve": {"problem", "workspace", "answer_format"},
    "summary": {"problem", "candidates", "words"},
    "critique": {"problem", "candidates", "words"},
    "top_k": {"problem", "candidates", "k"},
    "compare": {"problem", "candidates"},
    "select": {"problem", "candidates"},
    "judge": {"problem", "candidates"},
    "self_check": {"problem", "candidates"},
    "prefer": {"problem", "candidates"},
    "answer_math": set(),
    "answer_choice": set(),
    "answer_text": set(),
}
CALLS = sorted(name for name in PINNED if not name.startswith("answer_"))
HOSTILE = "a price of $x and ${y}, $$ and $ alone, \\boxed{4}"


@pytest.mark.parametrize("name", sorted(PINNED))
def test_each_file_uses_exactly_its_variables(name):
    """A variable that is filled but not used, or used but not filled, is a mistake."""
    file = Path(prompts.__file__).parent / f"{name}.md"
    assert set(Template(file.read_text("utf-8")).get_identifiers()) == PINNED[name]
    assert VARIABLES[name] == PINNED[name]


def test_there_is_a_file_for_every_name_and_no_other():
    """A prompt file that nothing renders would be read by nobody."""
    files = {file.stem for file in Path(prompts.__file__).parent.glob("*.md")}
    assert files == set(VARIABLES) == set(PINNED)


@pytest.mark.parametrize("name", CALLS)
def test_the_problem_comes_first(name):
    """The calls of a run share the problem as a prefix, which the server has in its cache."""
    values = dict.fromkeys(PINNED[name], "OTHER") | {"problem": "THE PROBLEM"}
    assert PROMPTS.render(name, **values).startswith("THE PROBLEM\n")


@pytest.mark.parametrize("name", CALLS)
def test_dollar_signs_in_what_is_filled_in_pass_untouched(name):
    """Problems and drafts may hold `$x` and `${y}`; they are no templates."""
    text = PROMPTS.render(name, **dict.fromkeys(PINNED[name], HOSTILE))
    assert text.count(HOSTILE) == len(PINNED[name])


@given(problem=odd_texts, workspace=odd_texts)
def test_any_text_can_be_filled_in(problem, workspace):
    """Rendering raises for no problem and no draft, and changes neither but at the ends."""
    text = PROMPTS.render("improve", problem=problem, workspace=workspace, answer_format="F")
    assert text.startswith(problem.strip())
    assert workspace in text


def test_the_box_is_asked_for_by_the_answer_kind_alone():
    """The calls are neutral; mathematics enters through the answer kind."""
    boxed = {name for name, text in PROMPTS.templates.items() if "\\boxed" in text}
    assert boxed == {"answer_math", "answer_choice"}


def test_a_file_of_the_users_own_takes_the_place_of_ours(tmp_path):
    """Only what the folder holds is replaced."""
    (tmp_path / "draft.md").write_text("Solve: $problem at $$5 ${answer_format}", "utf-8")
    own = Prompts.load(tmp_path)
    assert own.render("draft", problem="P", answer_format="F") == "Solve: P at $5 F"
    assert own.templates["improve"] == PROMPTS.templates["improve"]


def test_hashes_tell_a_changed_prompt():
    """A run's record shows which of the prompts were the user's own, and that they changed."""
    before = PROMPTS.hashes()
    after = Prompts({**PROMPTS.templates, "draft": "$problem"}).hashes()
    assert {name for name in before if before[name] != after[name]} == {"draft"}
    assert all(len(each) == 16 for each in before.values())
    assert list(before) == sorted(before)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"dratf.md": "$problem"}, r"dratf\.md' is named for no call; names: draft, improve"),
        ({"draft.md": "$problem costs $5"}, r"draft\.md' has a stray \$; write \$\$ for a dollar"),
        ({"draft.md": "$problem ${"}, r"draft\.md' has a stray \$"),
        (
            {"draft.md": "$problem $workspace"},
            r"draft\.md' uses \$workspace, which this call does not fill; "
            "known: answer_format, problem",
        ),
        ({"answer_math.md": "$problem"}, r"answer_math\.md' uses \$problem, .* known: none"),
        ({"notes.txt": "x"}, r"holds no NAME\.md file"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused_in_a_sentence(tmp_path, files, message):
    """Names, variables and dollar signs are checked when the prompts are read, not in mid-run."""
    for name, text in files.items():
        (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=message):
        Prompts.load(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    """The sentence holds the path as it was given."""
    with pytest.raises(ConfigError, match=r"prompt folder .*nowhere. does not exist"):
        Prompts.load(tmp_path / "nowhere")


def test_a_file_that_is_no_text_is_refused_in_a_sentence(tmp_path):
    """A file in another encoding is named, not a traceback."""
    (tmp_path / "draft.md").write_bytes(b"\xff\xfe$problem")
    with pytest.raises(ConfigError, match=r"draft\.md"):
        Prompts.load(tmp_path)


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_would_not_show_the_problem_is_refused(tmp_path, name):
    """A template without `$problem` would spend a run on nothing."""
    (tmp_path / f"{name}.md").write_text("Solve it.", "utf-8")
    with pytest.raises(ConfigError, match=r"leaves out \$"):
        Prompts.load(tmp_path)


@pytest.mark.parametrize(
    ("field", "text", "replaced"),
    [
        ("draft_prompt", "$problem", {"draft"}),
        ("improve_prompt", "$problem $workspace", {"improve"}),
        ("distill_prompt", "$problem $candidates", {"summary", "critique"}),
        ("judge_prompt", "$problem $candidates", {"judge"}),
    ],
)
def test_a_field_of_the_config_replaces_the_prompts_of_its_node(field, text, replaced):
    """What Studio's form holds at a node is what this node's calls say, and no other's."""
    own = PROMPTS.of_run(make_config(**{field: text}))
    changed = {name for name, text in own.templates.items() if text != PROMPTS.templates[name]}
    assert changed == replaced


def test_a_config_without_prompts_leaves_them_as_they_are():
    """A run without prompts of its own has the hashes of the built-in ones."""
    assert PROMPTS.of_run(make_config()) is PROMPTS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"draft_prompt": "$problem for $5"}, r"draft_prompt '\$problem for \$5' has a stray \$"),
        ({"draft_prompt": "Solve it."}, r"draft_prompt 'Solve it\.' leaves out \$problem"),
        ({"draft_prompt": ""}, r"draft_prompt '' leaves out \$problem"),
        ({"judge_prompt": "$problem $x $candidates"}, r"uses \$x, which this call does not fill"),
        ({"improve_prompt": "$problem" + 80 * "!"}, r"improve_prompt '\$problem!{32}…' leaves out"),
    ],
)
def test_a_field_that_does_not_fit_is_refused_in_a_sentence(fields, message):
    """The field is named, and as much of its text as tells which."""
    with pytest.raises(ConfigError, match=message):
        PROMPTS.of_run(make_config(**fields))
