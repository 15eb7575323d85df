"""Planning: stages and crossings of a network, taps, and the exact search for the best pooling plan."""
