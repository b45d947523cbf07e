"""What depends on weights alone, computed once for each weight, for models whose weights are frozen."""
