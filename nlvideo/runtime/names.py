"""Names shortened to fit tables and pictures."""


def shortened(name: str, length: int = 32) -> str:
    """Cuts the middle out of a long name: classes and folders often differ at their ends."""
    half = length // 2 - 1
    return name if len(name) <= length else f"{name[:half]}...{name[-half:]}"


def in_picture(name: str, length: int = 32) -> str:
    """Returns a name for a picture, where matplotlib would read dollars as math."""
    return shortened(name, length).replace("$", r"\$")
