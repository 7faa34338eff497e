"""/admin/*: what operators see and do."""
