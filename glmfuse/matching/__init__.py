"""From canonical terms to a plan, and the plan into the graph."""
