"""Models that draw tokens in this process, or for it, and tell every token with its probability.

What training records and what small studies run: `policy.py` is the protocol,
`transformers_policy.py`, `vllm_policy.py` and `scripted.py` are policies, `client.py` makes a
`ModelClient` of one, which the graph then calls as it calls a server, and `folder.py` opens a
model folder, `tokenizer.py` its tokenizer. A policy behind vLLM's endpoint is `ChatVLLM` itself,
made by `pdr_graph.train.recorder.telling_tokens`. Only the modules of an engine import it.

    Drawn(token_ids, logprobs, finish_reason)
    Policy: async draw(prompt_ids, sampling) -> Drawn; window: int | None
    TransformersPolicy(model, tokenizer, *, most_rows=256, most_tokens=65536, settle_s=0.002)
    VLLMPolicy(llm)                           # llm = open_engine(folder, **options of vllm.LLM)
    ScriptedPolicy(replies, tokenizer)
    policy_client(policy, tokenizer, *, name="policy", window=None, max_in_flight=1024)
    open_folder(folder, *, device=None) -> OpenedFolder(policy, tokenizer, name)
"""
