"""What LangGraph Studio opens: ready graphs on the configured endpoint."""
