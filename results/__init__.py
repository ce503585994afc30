"""Tables of results, and what makes RESULTS.md from them."""
