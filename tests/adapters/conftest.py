"""Tests with the real packages of others: ``make adapters`` installs them. Elsewhere they are skipped by name."""
