"""Long CoT beside PDR at matched budgets, on vLLM with any model folder."""
