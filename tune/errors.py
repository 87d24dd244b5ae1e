"""Mistakes of a user that are refused before a search starts."""

from psalm.train.fields import SettingError


class SearchError(SettingError):
    """A mistake in what a search was asked for: one line that says what was given, what is allowed, what to do."""
