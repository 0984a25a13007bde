"""PDR behind OpenAI's protocol: any client of a chat endpoint gets rounds, drafts and a ledger.

`pdr-graph serve` starts it; `app.create_app` is the ASGI application, for servers of your own.
It needs the extra `serve`. The protocol: https://platform.openai.com/docs/api-reference/chat
"""
