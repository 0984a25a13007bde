"""Models that draw tokens in this process, and return every token with its log-probability.

Training and small studies use them. `policy.py` has the protocol and `ScriptedPolicy`; the other
policies are `TransformersPolicy` and `VLLMPolicy`. `policy_client` makes a `ModelClient` of one,
which the graph calls like a server; `open_folder` opens a model folder. Only the modules of an
engine import it. A policy behind vLLM's endpoint is `ChatVLLM`, made by
`pdr_graph.train.recorder.telling_tokens`.

    Drawn(token_ids, logprobs, finish_reason)
    Policy: async draw(prompt_ids, sampling) -> Drawn; window: int | None
    TransformersPolicy(model, tokenizer, *, most_rows=256, most_tokens=65536, settle_s=0.002)
    VLLMPolicy(llm)                           # llm = open_engine(folder, **options of vllm.LLM)
    ScriptedPolicy(replies, tokenizer)
    policy_client(policy, tokenizer, *, name="policy", window=None, max_in_flight=1024)
    open_folder(folder, *, device=None) -> OpenedFolder(policy, tokenizer, name)
"""
