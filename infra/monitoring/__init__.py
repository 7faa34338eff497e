"""What Prometheus and Grafana are given: targets, alerts, the dashboard, and the page of docs."""
