"""The state machine against a mock endpoint: what is asked, what it costs, what survives."""

import asyncio
from contextlib import nullcontext

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from pdr_graph import PRESETS, Extensions, build_graph, preset, resume, solve
from pdr_graph.distill import Entry
from pdr_graph.errors import ConfigChangedError, ConfigError, ContextWindowError, QuorumError
from pdr_graph.prompts import Prompts
from pdr_graph.run import Parts
from pdr_graph.types import Solution, Verdict

PROBLEM = "What is 6 x 7?"
SMALL = {"max_tokens": 512, "kappa": 256, "solution_tokens": 256, "seed": 7}


def served(mock) -> tuple[int, int, int]:
    stats = mock.stats()
    return stats["calls"], stats["prompt_tokens"], stats["completion_tokens"]


def charged(result) -> tuple[int, int, int]:
    ledger = result.to_json()["ledger"]
    return ledger["calls"], ledger["prompt_tokens"], ledger["completion_tokens"]


def longest_chain(requests) -> int:
    """Count the calls of the longest chain in which each began when the one before had ended."""
    steps, ended = 0, 0.0
    for each in sorted(requests, key=lambda each: each["ended"]):
        if each["started"] >= ended:
            steps, ended = steps + 1, each["ended"]
    return steps


async def test_pdr_makes_27_calls_in_5_sequential_steps_and_counts_them_exactly(mock, connect):
    """Widths 16,8 with a summary: peak 16 in flight, wall time within 1.15 of the ideal."""
    config = preset("pdr", widths=(16, 8), distiller="summary", **SMALL)
    ratios, steps, peaks = [], [], []
    # Other work on the machine only ever adds to the time, so the best counts. A slow machine gets
    # a slower model, beside which the work of 27 calls is small; a sixth step is not.
    for delay_s in (0.5, 0.5, 0.5, 1, 1, 2, 4):
        mock.reset()
        mock.configure(delay_s=delay_s)
        result = await solve(PROBLEM, config, model=connect())
        assert served(mock) == charged(result)
        assert mock.stats()["calls"] == 27
        peaks.append(mock.stats()["peak_in_flight"])
        steps.append(longest_chain(mock.requests()))
        ratios.append(result.seconds / (5 * delay_s))
        if ratios[-1] <= 1.15 and peaks[-1] == 16:
            break
    assert min(ratios) <= 1.15
    assert (max(peaks), min(steps)) == (16, 5)
    nodes = [(row["round"], row["node"], row["calls"]) for row in result.ledger.rows]
    assert nodes == [
        (1, "drafter", 16),
        (1, "distiller", 1),
        (2, "drafter", 8),
        (2, "distiller", 1),
        (2, "refiner", 1),
    ]


async def test_b_seq_is_the_largest_call_of_each_step(mock, connect):
    """B_seq adds up the longest call of each sequential step, B_total every call."""
    result = await solve(PROBLEM, preset("pdr", widths=(4,), **SMALL), model=connect())
    requests = [request for request in mock.requests() if request["status"] == 200]
    assert len(requests) == 6
    ledger = result.ledger
    drafts, distil, refine = ledger.rows
    assert drafts["critical_tokens"] * 4 >= drafts["prompt_tokens"] + drafts["completion_tokens"]
    assert ledger.b_seq == sum(row["critical_tokens"] for row in (drafts, distil, refine))
    assert ledger.b_seq < ledger.b_total == sum(served(mock)[1:])
    assert result.to_json()["ledger"]["b_seq_nominal"] == 3 * 512
    assert result.to_json()["ledger"]["b_total_nominal"] == 6 * 512


@pytest.mark.parametrize("name", sorted(PRESETS))
async def test_every_preset_runs_and_its_ledger_is_the_servers(mock, connect, name):
    """One graph runs all strategies; the ledger equals what the server counted."""
    width = {"long_cot": (), "rsa": (3, 3), "majority": (4,), "genselect": (4,)}
    widths = width.get(name, (1, 1) if name.startswith("sr") else (4, 2))
    config = preset(name, widths=widths, **SMALL)
    result = await solve(PROBLEM, config, model=connect())
    assert result.answer is not None
    assert served(mock) == charged(result)
    assert result.config.preset == name


async def test_each_draft_is_a_sample_of_its_own(mock, connect):
    """M drafts are M requests with M seeds, so a server without `n` cannot pass off copies."""
    await solve(PROBLEM, preset("majority", widths=(16,), **SMALL), model=connect())
    bodies = [request["body"] for request in mock.requests()]
    assert len({body["seed"] for body in bodies}) == 16
    assert all(body.get("n") in {None, 1} for body in bodies)


async def test_sampling_parameters_reach_the_server(mock, connect):
    """Temperature, top_p and max_tokens are the caller's in every call."""
    config = preset("pdr", widths=(2,), **SMALL, temperature=0.3, top_p=0.9)
    await solve(PROBLEM, config, model=connect())
    for request in mock.requests():
        body = request["body"]
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.3, 0.9, 512)


async def test_the_same_seed_gives_the_same_run(mock, connect):
    """A run is reproducible from its seed, and another seed gives another run."""
    config = preset("pdr", widths=(4, 2), distiller="random_k", **SMALL)
    first = await solve(PROBLEM, config, model=connect())
    again = await solve(PROBLEM, config, model=connect())
    other = await solve(PROBLEM, config.model_copy(update={"seed": 8}), model=connect())
    assert first.solution == again.solution != other.solution


async def test_one_refused_draft_of_16_leaves_15(mock, connect):
    """A draft that is answered 400 for ever is counted as failed, and the run completes."""
    mock.configure(status=[{"match": {"call": 5}, "status": 400}])
    config = preset("pdr", widths=(16, 8), distiller="summary", **SMALL)
    result = await solve(PROBLEM, config, model=connect())
    ledger = result.to_json()["ledger"]
    assert (ledger["failed"], ledger["calls"]) == (1, 27)
    assert ledger["rows"][0]["failed"] == 1


async def test_a_dead_server_ends_in_one_sentence_within_the_retry_cap(mock, connect):
    """With every call answered 500 the run stops after `attempts` requests a draft."""
    mock.configure(status=[{"status": 500}])
    with pytest.raises(QuorumError, match="round 1: 0 of 4 drafts succeeded, 2 are needed"):
        await solve(PROBLEM, preset("pdr", widths=(4, 2), **SMALL), model=connect())
    assert mock.stats()["calls"] == 4 * 3


async def test_retried_requests_are_counted(mock, connect):
    """A 503 that is repaired by a retry shows as one more call and no failure."""
    mock.configure(status=[{"match": {"call": 1}, "status": 503, "times": 1}])
    result = await solve(PROBLEM, preset("majority", widths=(3,), **SMALL), model=connect())
    ledger = result.to_json()["ledger"]
    assert (ledger["calls"], ledger["failed"]) == (4, 0)


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ({"empty": True}, "empty"),
        ({"reasoning": "unclosed_think"}, "truncated"),
        ({"status": [{"status": 400}]}, "failed"),
    ],
)
async def test_unusable_drafts_are_told_apart(mock, connect, rules, error):
    """Empty, cut in mid-thought and refused are different reasons."""
    mock.configure(**rules)
    graph = build_graph(connect(), checkpointer=InMemorySaver())
    run = {"configurable": {"thread_id": "t"}}
    with pytest.raises(QuorumError):
        await graph.ainvoke(
            {"problem": PROBLEM}, run, context=preset("majority", widths=(2,), **SMALL)
        )
    state = (await graph.aget_state(run)).values
    assert {draft["error"] for draft in state["drafts"]} == {error}


async def test_stragglers_are_cut_by_a_quorum_and_their_requests_end(mock, connect):
    """With quorum 0.75 the round goes on without the slowest, whose request is cancelled."""
    mock.configure(status=[{"match": {"call": n}, "status": "hang"} for n in (1,)])
    config = preset("majority", widths=(4,), quorum=0.75, **SMALL)
    result = await asyncio.wait_for(solve(PROBLEM, config, model=connect()), 20)
    row = result.to_json()["ledger"]["rows"][0]
    assert (row["aborted"], row["failed"], row["estimated"]) == (1, 0, True)
    cut = [draft for draft in result.state["drafts"] if draft["error"] == "cut"]
    assert len(cut) == 1
    for _ in range(50):
        if mock.stats()["in_flight"] == 0:
            break
        await asyncio.sleep(0.1)
    assert (mock.stats()["in_flight"], mock.stats()["aborted"]) == (0, 1)


async def test_agreement_ends_the_rounds_without_another_call(mock, connect):
    """`stop_on_consensus` skips the distiller, later rounds and the refinement."""
    mock.configure(answers=["42"])
    config = preset("pdr_adaptive", widths=(4, 4), **SMALL)
    result = await solve(PROBLEM, config, model=connect())
    assert (result.answer, mock.stats()["calls"]) == ("42", 4)
    assert "100% of the drafts answer 42" in result.notes[0]


async def test_agreement_of_all_rounds_ends_them(mock, connect):
    """With `pool_rounds`, a second round makes a majority of what the first began."""
    mock.configure(replies=[{"contains": "An attempt that reaches", "answers": ["42"]}])
    config = preset(
        "pdr",
        widths=(4, 4, 4),
        distiller="consensus",
        pool_rounds=True,
        stop_on_consensus=0.5,
        **SMALL,
    )
    result = await solve(PROBLEM, config, model=connect())
    assert (result.answer, mock.stats()["calls"]) == ("42", 8)
    assert "50% of the drafts answer 42" in result.notes[0]
    assert result.state["tally"]["voters"] == 8


async def test_rounds_end_once_no_draft_to_come_can_change_the_vote(mock, connect):
    """With one draft left and a lead of more than one, it is not asked for."""
    for seed in range(4):
        mock.reset()
        mock.configure(answers=["42", "42", "42", "7"])
        config = preset(
            "pdr_adaptive", widths=(6, 1), stop_on_consensus=1.0, **{**SMALL, "seed": seed}
        )
        result = await solve(PROBLEM, config, model=connect())
        counts = [vote["count"] for vote in result.state["tally"]["votes"]]
        if mock.stats()["calls"] == 6:
            assert counts[0] - sum(counts[1:]) > 1
        else:
            assert abs(counts[0] - sum(counts[1:])) <= 2


async def test_drafts_of_a_round_that_starts_afresh_read_the_problem_alone(mock, connect):
    """The distiller `none` passes nothing on, and asks nothing."""
    config = preset("pdr_adaptive", stop_on_consensus=1.0, widths=(2, 2), **SMALL)
    await solve(PROBLEM, config, model=connect())
    prompts = {str(row["body"]["messages"]) for row in mock.requests()}
    seeds = {row["body"]["seed"] for row in mock.requests()}
    assert (len(prompts), len(seeds)) == (1, 4)


async def test_a_round_that_cannot_be_paid_for_is_skipped_and_said(mock, connect):
    """`max_total_tokens` sends the run to the refiner before it is passed."""
    config = preset("pdr", widths=(4, 4, 4), max_total_tokens=9000, **SMALL)
    result = await solve(PROBLEM, config, model=connect())
    assert result.ledger.b_total <= 9000
    assert max(row["round"] for row in result.ledger.rows) < 3
    assert any("max_total_tokens 9000" in note for note in result.notes)


async def test_a_deadline_stops_further_rounds(mock, connect):
    """`deadline_s` is checked before a round starts, against the length of the last one."""
    mock.configure(delay_s=0.3)
    config = preset("pdr", widths=(2, 2, 2, 2), deadline_s=1.0, **SMALL)
    result = await solve(PROBLEM, config, model=connect())
    assert max(row["round"] for row in result.ledger.rows) == 1
    assert any("deadline_s 1" in note for note in result.notes)


async def test_a_budget_below_one_answer_is_refused(connect):
    """A budget that cannot pay for anything is an error and not an empty result."""
    with pytest.raises(ConfigError, match="max_total_tokens 100 cannot pay"):
        await solve(PROBLEM, preset("pdr", max_total_tokens=100, **SMALL), model=connect())


async def test_a_window_too_small_is_found_before_any_call(mock, connect):
    """The context window is compared with problem, kappa and max_tokens at the start."""
    with pytest.raises(ContextWindowError, match="context window is 600; lower max_tokens"):
        await solve(PROBLEM, preset("pdr", **SMALL), model=connect(window=600))
    assert mock.stats()["calls"] == 0


@pytest.mark.parametrize(
    ("name", "fields", "reads"),
    [
        ("long_cot", {}, False),
        ("majority", {"widths": (2,)}, False),
        ("genselect", {"widths": (2,)}, False),
        ("long_cot", {"max_extra_rounds": 1, "verifier": "judge"}, True),
        ("pdr", {"widths": (2,)}, True),
        ("rsa", {"widths": (2, 2)}, True),
    ],
)
async def test_kappa_takes_room_only_where_a_call_reads_a_workspace(connect, name, fields, reads):
    """Long CoT and a plain vote run in a window that kappa alone would fill."""
    config = preset(name, **{**SMALL, "max_tokens": 64, "kappa": 2048, **fields})
    refused = pytest.raises(ContextWindowError, match="kappa 2048")
    with refused if reads else nullcontext():
        await solve(PROBLEM, config, model=connect(window=900))


async def test_a_rejected_solution_gets_another_round_with_its_verdict(mock, connect):
    """The judge's refusal enters the workspace of the extra round."""
    mock.configure(
        replies=[{"contains": "Verdict: incorrect", "content": "Step 2 fails.\nVerdict: incorrect"}]
    )
    config = preset("pdr", widths=(2,), verifier="judge", max_extra_rounds=1, **SMALL)
    result = await solve(PROBLEM, config, model=connect())
    assert result.verdict["accepted"] is False
    assert max(row["round"] for row in result.ledger.rows) == 2
    prompts = [request["body"]["messages"][0]["content"] for request in mock.requests()]
    assert any("Step 2 fails." in prompt and "rejected" in prompt for prompt in prompts)


async def test_without_a_tokenizer_counts_are_estimated_and_marked(mock, connect):
    """A server without /tokenize leaves the workspace measured by the estimate, marked as such."""
    mock.configure(tokenize=None)
    result = await solve(PROBLEM, preset("pdr", widths=(2,), **SMALL), model=connect())
    marked = {row["node"]: row["estimated"] for row in result.ledger.rows}
    assert marked == {"drafter": False, "distiller": True, "refiner": False}
    assert result.state["record"]["token_counts"] == "estimate"


async def test_a_user_adds_steps_and_a_preset_by_passing_callables(mock, connect):
    """Distillers, finishes, verifiers and presets of one's own go through the public API."""

    async def longest(step):
        draft = max(step.drafts, key=lambda each: len(each["solution"]))
        return [[Entry(draft["solution"], sources=(draft["index"],))]]

    async def shout(step):
        return Solution(text="DONE", answer="1", truncated=False, finish="shout")

    async def picky(step):
        return Verdict(verifier="picky", accepted=step.solution["text"] == "DONE", reason="style")

    own = {**PRESETS, "mine": {"widths": (2, 1), "distiller": "longest", "finish": "shout"}}
    config = preset("mine", own, verifier="picky", **SMALL)
    extensions = Extensions(
        distillers={"longest": longest}, finishes={"shout": shout}, verifiers={"picky": picky}
    )
    result = await solve(PROBLEM, config, model=connect(), parts=Parts(extensions=extensions))
    assert (result.solution, result.verdict["accepted"]) == ("DONE", True)
    assert mock.stats()["calls"] == 3


async def test_a_step_may_be_named_by_its_import_path(mock, connect):
    """`package.module:attribute` works where no callable can be passed, as on a command line."""
    config = preset("pdr", widths=(2,), distiller="pdr_graph.distill.selection:latest", **SMALL)
    await solve(PROBLEM, config, model=connect())
    assert mock.stats()["calls"] == 3


async def test_unknown_steps_are_refused_before_any_call(mock, connect):
    """A name that nothing answers to is a sentence with the known ones."""
    with pytest.raises(
        ConfigError, match="unknown distiller 'sumary'; perhaps 'summary'; known: summary"
    ):
        await solve(PROBLEM, preset("pdr", distiller="sumary", **SMALL), model=connect())
    assert mock.stats()["calls"] == 0


async def test_a_thread_can_be_used_again_with_a_new_problem(mock, connect):
    """A second input on a thread, as agents send it, starts afresh and keeps nothing."""
    graph = build_graph(connect(), checkpointer=InMemorySaver())
    run = {"configurable": {"thread_id": "t"}}
    config = preset("pdr", widths=(2,), **SMALL)
    first = await graph.ainvoke({"problem": PROBLEM}, run, context=config)
    second = await graph.ainvoke({"problem": "What is 2 + 2?"}, run, context=config)
    assert second["problem"] == "What is 2 + 2?"
    assert len(second["ledger"]) == len(first["ledger"])
    assert second["round"] == 1


async def test_the_state_is_bounded_by_width_and_kappa(mock, connect):
    """Drafts are gone from the state once they are distilled for another round."""
    saver = InMemorySaver()
    graph = build_graph(connect(), checkpointer=saver)
    run = {"configurable": {"thread_id": "t"}}
    await graph.ainvoke({"problem": PROBLEM}, run, context=preset("pdr", widths=(4, 2), **SMALL))
    async for snapshot in graph.aget_state_history(run):
        rounds = {draft["round"] for draft in snapshot.values.get("drafts", [])}
        assert len(rounds) <= 1
        if snapshot.next == ("plan",):
            assert not snapshot.values.get("drafts")
        for workspace in snapshot.values.get("workspaces", []):
            assert workspace["tokens"] <= SMALL["kappa"]


def test_every_edge_is_drawn():
    """Studio shows all nodes and both ways back to plan."""
    from langchain_core.language_models import FakeListChatModel

    drawing = build_graph(FakeListChatModel(responses=["x"])).get_graph()
    edges = {(edge.source, edge.target) for edge in drawing.edges}
    assert edges == {
        ("__start__", "plan"),
        ("plan", "drafter"),
        ("plan", "refiner"),
        ("drafter", "distiller"),
        ("distiller", "plan"),
        ("distiller", "refiner"),
        ("refiner", "verifier"),
        ("verifier", "plan"),
        ("verifier", "__end__"),
    }


async def test_prompts_of_a_config_are_what_its_calls_say(mock, connect):
    """Every call of a run by the templates of its own config; the record shows that they are."""
    own = {
        "draft_prompt": "DRAFT $problem $answer_format",
        "improve_prompt": "IMPROVE $problem $workspace $answer_format",
        "distill_prompt": "DISTILL $problem $candidates",
        "judge_prompt": "JUDGE $problem $candidates",
    }
    config = preset("pdr", widths=(2, 1), verifier="judge", **SMALL, **own)
    result = await solve(PROBLEM, config, model=connect())
    prompts = [row["body"]["messages"][0]["content"] for row in mock.requests()]
    assert [prompt.split()[0] for prompt in prompts] == [
        *("DRAFT", "DRAFT", "DISTILL", "IMPROVE", "DISTILL", "IMPROVE", "JUDGE")
    ]
    assert all(PROBLEM in prompt for prompt in prompts)
    assert result.config.draft_prompt == own["draft_prompt"]


async def test_a_prompt_that_does_not_fit_is_refused_before_any_call(mock, connect):
    """A template without the problem would spend a run on nothing."""
    config = preset("pdr", draft_prompt="Solve it.", **SMALL)
    with pytest.raises(ConfigError, match=r"draft_prompt 'Solve it\.' leaves out \$problem"):
        await solve(PROBLEM, config, model=connect())
    assert mock.stats()["calls"] == 0


async def test_a_run_does_not_go_on_by_other_prompts(mock, connect):
    """A resume with another template would mix two experiments."""
    mock.configure(status=[{"match": {"call": call}, "status": 400} for call in (1, 2)])
    config = preset("pdr", widths=(2,), **SMALL)
    saver = InMemorySaver()
    with pytest.raises(QuorumError):
        await solve(PROBLEM, config, model=connect(), checkpointer=saver, thread_id="t")
    with pytest.raises(ConfigChangedError, match="draft_prompt"):
        await resume(
            "t", model=connect(), checkpointer=saver, changes={"draft_prompt": "Now $problem"}
        )


async def test_prompts_of_ones_own_are_named_again_on_resume(mock, connect):
    """Without them the run would go on by the built-in ones; of a config they are in the record."""
    mock.configure(status=[{"match": {"every": 1}, "status": 400}])
    config = preset("pdr", widths=(2,), improve_prompt="Better: $problem $workspace", **SMALL)
    own = Prompts({**Prompts.load().templates, "draft": "Mine: $problem"})
    parts, ways = Parts(prompts=own), {"model": connect(), "checkpointer": InMemorySaver()}
    with pytest.raises(QuorumError):
        await solve(PROBLEM, config, parts=parts, thread_id="t", **ways)
    with pytest.raises(QuorumError):
        await solve(PROBLEM, config, thread_id="plain", **ways)
    mock.reset()
    with pytest.raises(
        ConfigChangedError, match="started with a set of prompts of its own; resume it with the"
    ):
        await resume("t", **ways)
    assert mock.requests() == []
    assert (await resume("plain", **ways)).solution
    assert (await resume("t", parts=parts, **ways)).solution
    assert sum("Mine: " in str(each["body"]) for each in mock.requests()) == 2


async def test_the_context_schema_shows_the_graphs_own_defaults(connect):
    """A form opened on the graph begins with the strategy that the graph runs as it stands."""
    shown = build_graph(connect(), default=preset("sr", kappa=512)).get_context_jsonschema()
    assert shown["properties"]["widths"]["default"] == [1, 1, 1]
    assert shown["properties"]["kappa"]["default"] == 512
