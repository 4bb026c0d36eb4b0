"""How a trained network is computed: executors turn it into an `AnytimeModel`."""
