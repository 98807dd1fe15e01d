"""The corpus wing: from texts of any size to token shards, and to windows in an order that follows from a seed."""
