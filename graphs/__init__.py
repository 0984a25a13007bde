"""Ready graphs on the configured endpoint, for LangGraph Studio and `langgraph dev`."""
