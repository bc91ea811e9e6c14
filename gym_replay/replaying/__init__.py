"""Recorded episodes executed again: compared with the record, rendered, or recorded anew with other observations."""
