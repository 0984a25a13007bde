"""`pdr-graph compare`: its tables, its files, and what it refuses."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from tests.eval.recorded import draft, sample, workspace, write_run

PROBLEMS = [f"p{index}" for index in range(12)]


@pytest.fixture
def run(tmp_path):
    """Twelve problems: pdr solves nine, majority six of these for twice the tokens."""
    made = []
    for index, problem in enumerate(PROBLEMS):
        made.append(
            sample(
                problem=problem,
                answer="7" if index < 9 else "8",
                b_total=1000 + 10 * index,
                drafts=[draft(0, "7"), draft(1, "8")],
                workspaces=[workspace(True, sources=[0])],
            )
        )
        made.append(sample("majority", problem, answer="7" if index < 6 else "9", b_total=2000))
    return write_run(tmp_path / "runs" / "first", made)


def test_the_tables_say_what_the_records_say(forgetful, run):
    """Accuracy, the paired difference and the token ratio are shown with their intervals."""
    done = forgetful("compare", str(run))
    assert done.code == 0, done.err
    for text in ("75.0% [46.3, 100.0]", "50.0% [", "-25.0", "×1.90", "lost in refinement"):
        assert text in done.out


def test_json_holds_every_figure(forgetful, run):
    """It has the figures of the tables, unrounded, and a schema version."""
    found = forgetful("compare", str(run), "--json").json()
    assert found["schema"] == 1
    assert found["arms"]["pdr"]["accuracy"]["value"] == 0.75
    (contrast,) = found["contrasts"]
    assert contrast["difference"]["value"] == -0.25
    assert contrast["difference"]["p_value"] == 0.25  # three of three one way: 2 of 8 patterns
    assert contrast["ratios"]["b_total"]["value"] == pytest.approx(2000 / 1055)
    outcomes = found["outcomes"]["pdr"]["outcomes"]
    assert sum(each["samples"] for each in outcomes.values()) == 12


def test_pairs_are_chosen_and_corrected_together(forgetful, run):
    """A pair names its reference first."""
    found = forgetful("compare", str(run), "--pair", "majority:pdr", "--json").json()
    (contrast,) = found["contrasts"]
    assert (contrast["reference"], contrast["difference"]["value"]) == ("majority", 0.25)


def test_markdown_and_plots_are_written(forgetful, run, tmp_path):
    """There are two plots, each as PNG and as SVG."""
    plots, page = tmp_path / "deep" / "plots", tmp_path / "deep" / "table.md"
    done = forgetful("compare", str(run), "--markdown", str(page), "--plots", str(plots))
    assert done.code == 0, done.err
    assert "| pdr | 12 | 12 | 75.0% [" in page.read_text()
    assert sorted(file.name for file in plots.iterdir()) == [
        "accuracy-b-seq.png",
        "accuracy-b-seq.svg",
        "accuracy-b-total.png",
        "accuracy-b-total.svg",
    ]
    assert (plots / "accuracy-b-seq.png").read_bytes().startswith(b"\x89PNG")
    drawn = "".join(ElementTree.parse(plots / "accuracy-b-total.svg").getroot().itertext())
    assert "majority" in drawn
    assert "accuracy, %" in drawn


def test_a_page_holds_tables_plots_and_caveats(forgetful, tmp_path):
    """It is one file without script or links, and an arm's name is text."""
    name = "<script>alert(1)</script>"
    made = [sample(name, problem) for problem in PROBLEMS]
    run = write_run(tmp_path / "run", made, arms=(name,), num_samples=2)
    page = tmp_path / "deep" / "page.html"
    assert forgetful("compare", str(run), "--html", str(page)).code == 0
    text = page.read_text("utf-8")
    assert text.count("data:image/svg+xml;base64,") == 2
    assert "Not all samples are finished" in text
    assert "Where it is won and lost" in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")


def test_a_narrow_terminal_has_a_line_for_each_figure(forgetful, run, monkeypatch):
    """No figure is cut off."""
    monkeypatch.setenv("COLUMNS", "40")
    done = forgetful("compare", str(run))
    assert "accuracy          75.0%\n          [46.3, 100.0]\n" in done.out
    assert max(map(len, done.out.splitlines())) <= 40


def test_arms_of_two_runs_are_told_apart(forgetful, run, tmp_path):
    """The run's name is added to the arm's; another model is a caveat, not a refusal."""
    made = [sample(problem=problem, answer="7") for problem in PROBLEMS]
    other = write_run(tmp_path / "runs" / "second", made, arms=("pdr",), model="larger")
    done = forgetful("compare", str(run), str(other), "--pair", "first/pdr:second/pdr")
    assert done.code == 0, done.err
    assert "were run on different models (m and larger)" in " ".join(done.out.split())


def test_a_run_under_way_is_compared_as_far_as_it_is(forgetful, run):
    """Caveats name the missing samples, and problems that only one arm has tried."""
    lines = (run / "samples.jsonl").read_text().splitlines(keepends=True)
    (run / "samples.jsonl").write_text("".join(lines[:-1]))
    done = forgetful("compare", str(run))
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "Not all samples are finished (majority: 11 of 12)" in said
    assert "on the 11 problems that both tried, without 1 that only pdr tried" in said


def test_a_name_cannot_break_the_markdown(forgetful, tmp_path):
    """An arm may have any name."""
    name = "pdr|<b>"
    made = [sample(name, problem) for problem in PROBLEMS]
    run = write_run(tmp_path / "run", made, arms=(name,))
    page = tmp_path / "table.md"
    assert forgetful("compare", str(run), "--markdown", str(page)).code == 0
    assert "| pdr\\|\\<b\\> | 12 |" in page.read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--pair", "pdr"], "pair 'pdr' is not REFERENCE:ARM"),
        (["--pair", "pdr:none"], "no arm is called 'none'; there are: pdr, majority"),
        (["--pair", "pdr:pdr"], "compares an arm with itself"),
        (["--k", "2"], "k 2 does not fit arm"),
        (["--markdown", "/proc/none/x.md"], "cannot be written"),
        (["--plots", "/proc/none"], "cannot be written"),
    ],
)
def test_what_does_not_fit_is_named(forgetful, run, words, sentence):
    """One sentence names the argument and the remedy."""
    done = forgetful("compare", str(run), *words)
    assert done.code in {1, 2}
    assert sentence in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_a_folder_that_is_no_run_is_named(forgetful, run, tmp_path):
    """A run without samples, a run named twice and a damaged line are named too."""
    assert "holds no run.json" in forgetful("compare", str(tmp_path / "none")).err
    assert "is named twice" in forgetful("compare", str(run), str(run)).err
    empty = write_run(tmp_path / "empty", [], num_problems=3)
    assert "no sample is finished" in " ".join(forgetful("compare", str(empty)).err.split())
    with (run / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"schema": 2}) + "\n")
    assert "line 25 has schema version 2" in " ".join(forgetful("compare", str(run)).err.split())
