"""A language model with no set-up: SmolLM2-135M-Instruct in llama.cpp, in a process of its own.

It is a demonstration model, small enough for any machine and often wrong. What its server does
and does not do (llama.cpp at the version of `xllamacpp` that was tried, 2026.10):

- A streamed call that the client drops frees its slot at once. A plain one is noticed within a
  second, but only in a second in which the server finishes nothing else: cancel streamed calls.
- `n` above 1 works up to the number of slots, but `usage` counts the first choice only.
- A seed gives the same text alone and in a batch. Any model name is accepted.
- A prompt longer than a slot's context is refused with 400, `exceed_context_size_error`; an
  answer that reaches its end stops with `finish_reason: length`.
"""

import asyncio
import http.client
import importlib.util
import json
import os
import sys
import threading
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pdr_graph.errors import ConfigError, LocalError
from pdr_graph.local import model_server
from pdr_graph.local.cores import usable_cores
from pdr_graph.local.data_dir import Announce, fresh_log, last_line, own_folder
from pdr_graph.local.weights import SMOLLM2, fetch_weights, find_weights
