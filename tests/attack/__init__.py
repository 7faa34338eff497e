"""An attacker of ours: what somebody tries who reaches the ports of a cluster."""
