"""Latency and throughput, or the reasons why they mean nothing."""
