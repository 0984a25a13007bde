"""Calls to the model: connections, retries, token counts, and what each call cost."""
