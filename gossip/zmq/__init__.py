"""The driver of peers on real machines: ZeroMQ sockets, the clock, and updates in memory and files."""
