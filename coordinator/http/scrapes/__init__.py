"""GET /metrics of a coordinator: its own series, the cluster's gauges, and familiar names."""
