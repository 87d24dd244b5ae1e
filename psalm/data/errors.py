"""What can be wrong with data: one line that names the file, what was found, and what was expected."""


class DataError(ValueError):
    """A file or folder is missing, or not of the format expected."""


class BadImageError(DataError):
    """One image or PNG is missing or truncated: the only fault that ``skip_bad_images`` passes over."""
