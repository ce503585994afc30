"""Many runs by one command: the sweep, each of its jobs, the table at the end."""
