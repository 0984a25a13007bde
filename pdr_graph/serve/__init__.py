"""PDR behind OpenAI's protocols: any client of them gets rounds, drafts and a ledger.

`pdr-graph serve` starts it; `app.create_app` is the ASGI application, for servers of your own.
It needs the extra `serve`. The protocols are chat completions and responses:
https://platform.openai.com/docs/api-reference
"""
