"""Methods side by side: each tuned with the same number of trials, then run with several seeds."""
