"""What the demo and the benchmark run on: servers, queues and processes of their own, none of which outlives them."""
