"""The search for the best setting: its space, the search, and the comparison that ends it."""
