"""One model on one device: pages, prefix cache, batches, model, attention, sampling."""
