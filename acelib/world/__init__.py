"""The world of facts: its records, wordings, editing cases and texts."""
