"""Webhooks: events that leave the house, signed, at least once, and only for addresses that anybody may call."""
