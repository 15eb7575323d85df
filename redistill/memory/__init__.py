"""Memory: record a graph, count its peak under a convention, order and pack it, and measure it as it runs."""
