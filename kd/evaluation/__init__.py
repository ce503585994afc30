"""Quality and cost of a finished run's nets: kd.evaluate and kd.benchmark."""
