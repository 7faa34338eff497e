"""Real clusters, whose processes and links are broken again and again while clients stream."""
