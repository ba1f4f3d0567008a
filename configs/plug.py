"""What a recipe writes to plug something in."""

from pydantic import JsonValue

from configs.base import Config


class PlugConfig(Config):
    """Something plugged in: a built-in name or `module:name`, and its keyword arguments."""

    use: str
    """Built-in name, or `package.module:attribute` importable by every actor."""
    args: dict[str, JsonValue] = {}
    """Keyword arguments bound to it; checked against its signature before any actor starts."""
