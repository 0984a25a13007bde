"""What the orchestration costs, beside a bare client and beside the peers: `make bench`.

Every model call goes to an endpoint that costs almost nothing (`server.py`), in a process of its
own, so what is measured is the client. Every measurement is a process of its own too (`worker.py`).
Each case is a module of `cases`. Not covered: a real model, a network, TLS, several clients.
"""
